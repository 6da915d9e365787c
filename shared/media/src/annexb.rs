//! NAL units as byte streams carry them (H.264 and H.265, Annex B) and as MP4 does (length-prefixed).
//!
//! Nothing here knows a codec: what a NAL unit means is in [`h264`](crate::h264) and
//! [`h265`](crate::h265).

use bytes::{BufMut, Bytes, BytesMut};

/// The start code that goes before every NAL unit written here.
pub const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// NAL units of a byte stream, without start codes and trailing zeros; empty ones are passed over.
pub fn nal_units(data: &[u8]) -> NalUnits<'_> {
    NalUnits {
        data,
        next: start_code(data, 0).and_then(|(_, after)| non_empty(data, after)),
    }
}

/// Iterator of [`nal_units`]. It looks no further than it is asked: a caller that stops at the first
/// slice does not pay for the slice's length, if it peeks with [`NalUnits::peek`].
#[derive(Debug, Clone)]
pub struct NalUnits<'a> {
    data: &'a [u8],
    /// Where the next NAL unit begins.
    next: Option<usize>,
}

impl<'a> NalUnits<'a> {
    /// From the next NAL unit's first byte to the end of the data, without looking for its end.
    pub fn peek(&self) -> Option<&'a [u8]> {
        self.data.get(self.next?..)
    }
}

impl<'a> Iterator for NalUnits<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let from = self.next?;
        let (end, after) = match start_code(self.data, from) {
            Some((at, after)) => (at, Some(after)),
            None => (self.data.len(), None),
        };
        self.next = after.and_then(|after| non_empty(self.data, after));
        self.data.get(from..end).map(trim_zeros)
    }
}

/// Where the first NAL unit with anything in it begins, at or after the place behind a start code.
fn non_empty(data: &[u8], mut after: usize) -> Option<usize> {
    loop {
        let rest = data.get(after..)?;
        let zeros = rest.iter().position(|&b| b != 0)?;
        if zeros < 2 || rest.get(zeros) != Some(&1) {
            return Some(after);
        }
        after += zeros + 1;
    }
}

/// The next `00 00 01` at or after `from`: where it begins and where the NAL unit behind it does.
fn start_code(data: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    loop {
        // A byte above 1 can't be the third of a start code nor be passed over by one: three on.
        match data.get(at..at + 3)? {
            [0, 0, 1] => return Some((at, at + 3)),
            &[_, _, third] if third > 1 => at += 3,
            _ => at += 1,
        }
    }
}

/// Trailing zeros belong to the stream, not to the NAL unit (B.1.1: trailing_zero_8bits).
fn trim_zeros(nal: &[u8]) -> &[u8] {
    let len = nal.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    nal.get(..len).unwrap_or_default()
}

/// The raw payload of a NAL unit's first `max` bytes: emulation prevention bytes taken out (7.4.1).
pub(crate) fn unescape(nal: &[u8], max: usize) -> Vec<u8> {
    let nal = nal.get(..max).unwrap_or(nal);
    let mut out = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

/// How many bytes of SEI are looked through for a recovery point: behind captions, before novels.
const MAX_SEI_BYTES: usize = 4 << 10;

/// Whether the SEI payload behind a NAL header holds a message of this type (H.264 7.3.2.3.1, H.265
/// 7.3.5: the same syntax).
pub(crate) fn sei_has(payload: &[u8], wanted: usize) -> bool {
    let rbsp = unescape(payload, MAX_SEI_BYTES);
    let mut rest = rbsp.as_slice();
    // 0x80 is the stop bit behind the last message.
    while rest.first().is_some_and(|&b| b != 0x80) {
        let (Some(kind), Some(len)) = (sei_number(&mut rest), sei_number(&mut rest)) else {
            return false;
        };
        if kind == wanted {
            return true;
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    false
}

/// A type or length: 0xff bytes add up until one that is less.
fn sei_number(rest: &mut &[u8]) -> Option<usize> {
    let mut sum = 0;
    loop {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        sum += usize::from(byte);
        if byte != 0xff {
            return Some(sum);
        }
    }
}

/// A length-prefixed sample as a byte stream, and the offset of the first NAL unit that its lengths place
/// outside the sample, if one does: what was good before it is kept.
///
/// `length_size` is 1 to 4 (ISO/IEC 14496-15, lengthSizeMinusOne + 1).
pub fn from_length_prefixed(sample: &[u8], length_size: usize) -> (Bytes, Option<usize>) {
    if length_size == START_CODE.len() {
        return from_four_byte_lengths(sample);
    }
    let mut out = BytesMut::with_capacity(sample.len() + 16);
    let mut at = 0;
    while at < sample.len() {
        let Some((from, to)) = length_prefixed_nal(sample, at, length_size) else {
            return (out.freeze(), Some(at));
        };
        if let Some(nal) = sample.get(from..to).filter(|nal| !nal.is_empty()) {
            out.put_slice(&START_CODE);
            out.put_slice(nal);
        }
        at = to;
    }
    (out.freeze(), None)
}

/// The usual case in one copy: each length is as long as the start code that takes its place.
fn from_four_byte_lengths(sample: &[u8]) -> (Bytes, Option<usize>) {
    let mut out = BytesMut::from(sample);
    let mut at = 0;
    while at < sample.len() {
        let Some((from, to)) = length_prefixed_nal(sample, at, START_CODE.len()) else {
            out.truncate(at);
            return (out.freeze(), Some(at));
        };
        if let Some(length) = out.get_mut(at..from) {
            length.copy_from_slice(&START_CODE);
        }
        at = to;
    }
    (out.freeze(), None)
}

/// Where the NAL unit whose length is at `at` begins and ends; None outside the sample.
fn length_prefixed_nal(sample: &[u8], at: usize, length_size: usize) -> Option<(usize, usize)> {
    let from = at + length_size;
    let len = sample
        .get(at..from)?
        .iter()
        .fold(0, |len, &b| len << 8 | usize::from(b));
    let to = from.checked_add(len)?;
    (to <= sample.len()).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nals(data: &[u8]) -> Vec<&[u8]> {
        nal_units(data).collect()
    }

    #[test]
    fn finds_nal_units() {
        assert_eq!(nals(&[]), [[0u8; 0]; 0]);
        assert_eq!(nals(&[9, 9, 9]), [[0u8; 0]; 0]);
        assert_eq!(
            nals(&[
                0, 0, 0, 1, 9, 0xf0, 0, 0, 1, 0x67, 1, 0, 0, 0, 0, 1, 0x65, 0, 2
            ]),
            [&[9, 0xf0][..], &[0x67, 1], &[0x65, 0, 2]]
        );
        // Junk before the first start code, an empty unit, trailing zeros.
        assert_eq!(nals(&[7, 0, 0, 1, 0, 0, 1, 5, 6, 0, 0, 0]), [[5, 6]]);
        assert_eq!(nals(&[0, 0, 1]), [[0u8; 0]; 0]);
    }

    #[test]
    fn peeks_without_looking_for_the_end() {
        let data = [0, 0, 1, 0x65, 1, 2, 0, 0, 1, 0x41];
        assert_eq!(nal_units(&data).peek(), Some(&data[3..]));
    }

    #[test]
    fn takes_emulation_prevention_out() {
        assert_eq!(
            unescape(&[0, 0, 3, 1, 0, 0, 3, 0, 0, 3], 64),
            [0, 0, 1, 0, 0, 0, 0]
        );
        assert_eq!(unescape(&[0, 0, 3, 3], 64), [0, 0, 3]);
        assert_eq!(unescape(&[1, 2, 3], 2), [1, 2]);
    }

    #[test]
    fn finds_sei_messages() {
        // pic_timing (1) of two bytes, then recovery_point (6).
        let sei = [1, 2, 0xaa, 0xbb, 6, 1, 0xc0, 0x80];
        assert!(sei_has(&sei, 6));
        assert!(sei_has(&sei, 1));
        assert!(!sei_has(&sei, 5));
        let mut long = vec![5, 0xff, 0x01];
        long.extend([9; 256]);
        long.extend([6, 1, 0xc0, 0x80]);
        assert!(sei_has(&long, 6));
        for cut in [&[][..], &[6], &[1, 9], &[0xff, 0xff], &[0x80]] {
            assert!(!sei_has(cut, 6), "{cut:?}");
        }
    }

    #[test]
    fn turns_lengths_into_start_codes() {
        let sample = [0, 0, 0, 2, 9, 0xf0, 0, 0, 0, 3, 0x65, 1, 2];
        let (out, bad) = from_length_prefixed(&sample, 4);
        assert_eq!(out[..], [0, 0, 0, 1, 9, 0xf0, 0, 0, 0, 1, 0x65, 1, 2]);
        assert_eq!(bad, None);
        let (out, bad) = from_length_prefixed(&[2, 9, 0xf0, 0, 3, 0x65, 1, 2], 1);
        assert_eq!(out[..], [0, 0, 0, 1, 9, 0xf0, 0, 0, 0, 1, 0x65, 1, 2]);
        assert_eq!(bad, None);
        // The second length points outside: the first unit is kept.
        let (out, bad) = from_length_prefixed(&[0, 0, 0, 2, 9, 0xf0, 0xff, 0, 0, 3, 1], 4);
        assert_eq!((&out[..], bad), (&[0, 0, 0, 1, 9, 0xf0][..], Some(6)));
        let (out, bad) = from_length_prefixed(&[0, 2, 9, 0xf0, 0], 2);
        assert_eq!((&out[..], bad), (&[0, 0, 0, 1, 9, 0xf0][..], Some(4)));
    }

    proptest! {
        #[test]
        fn any_units_survive_the_way_through_lengths(
            units in prop::collection::vec(prop::collection::vec(1u8..=255, 1..40), 0..8),
            length_size in 1usize..=4,
        ) {
            let mut sample = Vec::new();
            for unit in &units {
                let length = (unit.len() as u32).to_be_bytes();
                sample.extend(&length[4 - length_size..]);
                sample.extend(unit);
            }
            let (stream, bad) = from_length_prefixed(&sample, length_size);
            prop_assert_eq!(bad, None);
            prop_assert_eq!(nals(&stream), units.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_safe(data in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..200), length_size in 1usize..=4) {
            let found: usize = nal_units(&data).map(<[u8]>::len).sum();
            prop_assert!(found <= data.len());
            let (out, _) = from_length_prefixed(&data, length_size);
            prop_assert!(out.len() <= data.len() * 4 + 4);
            sei_has(&data, 6);
        }
    }
}
