//! Bits out of and into bytes, most significant first, as every MPEG syntax has them.

/// Reads bits; None past the end.
#[derive(Debug, Clone)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Next bit, counted from the start.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn bit(&mut self) -> Option<bool> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }

    /// `count` bits, at most 32.
    pub(crate) fn bits(&mut self, count: u32) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.bit()?);
        }
        Some(value)
    }

    pub(crate) fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count)?;
        (self.at <= self.bytes.len().checked_mul(8)?).then_some(())
    }

    /// To the next byte boundary.
    pub(crate) fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }

    /// Unsigned Exp-Golomb, ue(v) of H.264 9.1 and H.265 9.2.
    pub(crate) fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        // At most 31 zeros: the sum is at most 2^32 - 2.
        Some(((1u64 << zeros) as u32 - 1) + self.bits(zeros)?)
    }
}

/// Writes bits.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits used of the last byte; 0 when it is full or there is none.
    used: u32,
}

impl BitWriter {
    pub(crate) fn bit(&mut self, bit: bool) {
        if self.used == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (7 - self.used);
        }
        self.used = (self.used + 1) % 8;
    }

    /// The low `count` bits of `value`.
    pub(crate) fn bits(&mut self, count: u32, value: u32) {
        for i in (0..count).rev() {
            self.bit(value >> i & 1 == 1);
        }
    }

    /// To the next byte boundary, with zeros.
    pub(crate) fn align(&mut self) {
        self.used = 0;
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bits_and_exp_golomb() {
        let mut r = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1000_0000]);
        // 1 | 010 | 011 | 00100 | 00101 …
        assert_eq!(
            [r.ue(), r.ue(), r.ue(), r.ue(), r.ue()],
            [Some(0), Some(1), Some(2), Some(3), Some(4)]
        );
        assert_eq!(r.bits(8), None);
        assert_eq!(BitReader::new(&[0; 8]).ue(), None);
        assert_eq!(BitReader::new(&[0xff]).skip(9), None);
        let mut longest = vec![0, 0, 0, 1];
        longest.extend([0xff; 4]);
        assert_eq!(BitReader::new(&longest).ue(), Some(u32::MAX - 1));
    }

    #[test]
    fn writes_what_it_reads() {
        let mut w = BitWriter::default();
        w.bits(3, 5);
        w.bits(12, 0xabc);
        w.align();
        w.bits(8, 0x7f);
        let bytes = w.into_bytes();
        assert_eq!(bytes, [0b1011_0101, 0b0111_1000, 0x7f]);
        let mut r = BitReader::new(&bytes);
        assert_eq!((r.bits(3), r.bits(12)), (Some(5), Some(0xabc)));
        r.align();
        assert_eq!((r.bits(8), r.bit()), (Some(0x7f), None));
    }
}
