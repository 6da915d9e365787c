//! TS packets out of bytes: finding them, finding them again, and their fields (ISO/IEC 13818-1, 2.4.3).
//!
//! Packets of 188 bytes, also where 4 bytes go before each (M2TS) or 16 behind (204). Fields are only
//! read here; continuity is checked in `demux`, per PID.

/// Length of a TS packet.
pub const PACKET_BYTES: usize = 188;

/// First byte of a TS packet.
pub const SYNC_BYTE: u8 = 0x47;

/// Distances between packets: plain, M2TS with a time before each, with a checksum behind each.
pub const STRIDES: [usize; 3] = [PACKET_BYTES, 192, 204];

/// Sync bytes in a row that are taken for a stream.
const SYNC_RUN: usize = 3;

/// How far ahead a decision about sync looks.
const LOOKAHEAD: usize = (SYNC_RUN - 1) * 204 + 1;

/// Most bytes that are put beside what is kept, in one go.
const CHUNK_BYTES: usize = 64 << 10;

/// A 13-bit packet identifier.
pub type Pid = u16;

/// Where a stream's packets are: gets bytes, gives packets.
#[derive(Debug, Default)]
pub struct Packets {
    /// Bytes not yet given: between calls less than [`LOOKAHEAD`].
    buffer: Vec<u8>,
    /// Offset in the source of the buffer's first byte.
    offset: u64,
    /// How far apart packets are; None while sync is sought.
    stride: Option<usize>,
    /// Bytes between packets that are yet to come.
    between: usize,
    /// Bytes passed over since the last packet.
    skipped: u64,
}

/// What [`Packets`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    Packet {
        offset: u64,
        packet: &'a [u8],
    },
    /// Bytes that are no packets were passed over; a packet or the end follows.
    Skipped {
        offset: u64,
        bytes: u64,
    },
}

/// What is known of the bytes at a place.
enum Look {
    /// A packet, or one with a damaged sync byte among good ones.
    Packet { stride: usize, good: bool },
    /// No packet begins here.
    Nothing,
    /// Too few bytes to say.
    Short,
}

impl Packets {
    /// Takes bytes and gives each packet that is complete and known to be one.
    pub fn push(&mut self, bytes: &[u8], mut give: impl FnMut(Found<'_>)) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.buffer.extend_from_slice(chunk);
            self.give(false, &mut give);
        }
    }

    /// The source has ended: gives what is left, if it is whole packets. Another source may follow.
    pub fn finish(&mut self, mut give: impl FnMut(Found<'_>)) {
        self.give(true, &mut give);
        self.skipped += self.buffer.len() as u64;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        if self.skipped > 0 {
            give(Found::Skipped {
                offset: self.offset.saturating_sub(self.skipped),
                bytes: self.skipped,
            });
        }
        *self = Self {
            offset: self.offset,
            ..Self::default()
        };
    }

    fn give(&mut self, ended: bool, give: &mut impl FnMut(Found<'_>)) {
        let mut at = 0;
        loop {
            let gone = self.between.min(self.buffer.len() - at);
            at += gone;
            self.between -= gone;
            let rest = self.buffer.get(at..).unwrap_or_default();
            match look(rest, self.stride, ended) {
                Look::Packet { stride, good } => {
                    let locked = self.stride.replace(stride).is_some();
                    let offset = self.offset + at as u64;
                    if good {
                        // The time before the first packet of M2TS is none of our business.
                        if self.skipped > 0
                            && (locked || self.skipped > (stride - PACKET_BYTES) as u64)
                        {
                            give(Found::Skipped {
                                offset: offset.saturating_sub(self.skipped),
                                bytes: self.skipped,
                            });
                        }
                        self.skipped = 0;
                        if let Some(packet) = rest.get(..PACKET_BYTES) {
                            give(Found::Packet { offset, packet });
                        }
                    } else {
                        self.skipped += stride as u64;
                    }
                    self.between = stride;
                }
                Look::Nothing => {
                    self.stride = None;
                    self.skipped += 1;
                    at += 1;
                }
                Look::Short => break,
            }
        }
        self.buffer.drain(..at);
        self.offset += at as u64;
    }
}

/// Whether `rest` begins with a packet; `stride` is what has held so far.
fn look(rest: &[u8], stride: Option<usize>, ended: bool) -> Look {
    if rest.len() < PACKET_BYTES {
        return Look::Short;
    }
    let begins = rest.first() == Some(&SYNC_BYTE);
    match stride {
        Some(stride) if begins => Look::Packet { stride, good: true },
        _ if rest.len() < LOOKAHEAD && !ended => Look::Short,
        // The next two are where they should be: only this one is damaged.
        Some(stride) if rest.len() > 2 * stride && run_from(rest, stride, 1) => Look::Packet {
            stride,
            good: false,
        },
        _ if begins => STRIDES
            .into_iter()
            .find(|&stride| run_from(rest, stride, 1))
            .map_or(Look::Nothing, |stride| Look::Packet { stride, good: true }),
        _ => Look::Nothing,
    }
}

/// Whether sync bytes stand at multiples of `stride` from `first` on, as far as `rest` reaches.
fn run_from(rest: &[u8], stride: usize, first: usize) -> bool {
    (first..SYNC_RUN).all(|i| rest.get(i * stride).is_none_or(|&b| b == SYNC_BYTE))
}

/// The fields of a packet that reading needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    pub pid: Pid,
    /// The receiver before us could not mend it.
    pub damaged: bool,
    /// A PES packet or section begins in the payload.
    pub starts_unit: bool,
    pub scrambled: bool,
    /// 0 to 15; counts packets with payload.
    pub continuity: u8,
    /// The adaptation field declares a break of time base or continuity.
    pub discontinuity: bool,
    /// The adaptation field says that decoding can begin here.
    pub random_access: bool,
    /// Empty if there is none.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet of 188 bytes; None if its fields contradict each other.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let (&[_, b1, b2, b3], rest) = packet.split_first_chunk::<4>()?;
        let (has_adaptation, has_payload) = (b3 & 0x20 != 0, b3 & 0x10 != 0);
        let (mut flags, mut payload) = (0, rest);
        if has_adaptation {
            let (&len, behind) = rest.split_first()?;
            let field = behind.get(..usize::from(len))?;
            flags = field.first().copied().unwrap_or(0);
            payload = behind.get(usize::from(len)..)?;
        }
        if !has_payload {
            payload = &[];
        }
        Some(Self {
            pid: Pid::from(b1 & 0x1f) << 8 | Pid::from(b2),
            damaged: b1 & 0x80 != 0,
            starts_unit: b1 & 0x40 != 0,
            scrambled: b3 & 0xc0 != 0,
            continuity: b3 & 0x0f,
            discontinuity: flags & 0x80 != 0,
            random_access: flags & 0x40 != 0,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet whose payload has no sync byte in it.
    fn packet(pid: Pid, continuity: u8, fill: u8) -> Vec<u8> {
        let mut p = vec![SYNC_BYTE, (pid >> 8) as u8, pid as u8, 0x10 | continuity];
        p.resize(PACKET_BYTES, fill);
        p
    }

    fn stream(count: u8) -> Vec<u8> {
        (0..count).flat_map(|i| packet(0x100, i, i)).collect()
    }

    /// Offsets of packets, and skipped ranges as `(offset, bytes)`.
    fn found(pieces: &[&[u8]]) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut packets, mut offsets, mut skipped) = (Packets::default(), vec![], vec![]);
        let mut give = |found: Found<'_>| match found {
            Found::Packet { offset, packet } => {
                assert_eq!((packet.len(), packet[0]), (PACKET_BYTES, SYNC_BYTE));
                offsets.push(offset);
            }
            Found::Skipped { offset, bytes } => skipped.push((offset, bytes)),
        };
        for piece in pieces {
            packets.push(piece, &mut give);
            assert!(packets.buffer.len() < LOOKAHEAD);
        }
        packets.finish(&mut give);
        (offsets, skipped)
    }

    #[test]
    fn plain_m2ts_and_204() {
        assert_eq!(found(&[&stream(4)]), (vec![0, 188, 376, 564], vec![]));
        let m2ts: Vec<u8> = (0..4)
            .flat_map(|i| [vec![1, 2, 3, 4], packet(9, i, 0)].concat())
            .collect();
        assert_eq!(found(&[&m2ts]), (vec![4, 196, 388, 580], vec![]));
        let long: Vec<u8> = (0..4)
            .flat_map(|i| [packet(9, i, 0), vec![5; 16]].concat())
            .collect();
        assert_eq!(found(&[&long]), (vec![0, 204, 408, 612], vec![]));
        // One packet alone, and none.
        assert_eq!(found(&[&stream(1)]), (vec![0], vec![]));
        assert_eq!(found(&[&[]]), (vec![], vec![]));
    }

    #[test]
    fn finds_sync_again() {
        // Junk before; then a packet whose sync byte is damaged; then a hole, and half a packet at the end.
        let mut bytes = [vec![0x47, 1, 2], stream(6)].concat();
        let all = vec![3, 191, 379, 567, 755, 943];
        assert_eq!(found(&[&bytes]), (all.clone(), vec![(0, 3)]));
        bytes[567] = 0;
        let without: Vec<u64> = all.into_iter().filter(|&o| o != 567).collect();
        assert_eq!(found(&[&bytes]), (without, vec![(0, 3), (567, 188)]));
        let holed = [&stream(4)[..], &stream(4)[100..], &stream(1)[..90]].concat();
        assert_eq!(
            found(&[&holed]),
            (
                vec![0, 188, 376, 564, 840, 1028, 1216],
                vec![(752, 88), (1404, 90)]
            )
        );
        let noise = vec![0x11; 5000];
        assert_eq!(found(&[&noise]), (vec![], vec![(0, 5000)]));
    }

    #[test]
    fn fields() {
        let mut bytes = packet(0x1abc, 7, 0xee);
        bytes[1] |= 0x40;
        let p = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (p.pid, p.starts_unit, p.continuity, p.payload.len()),
            (0x1abc, true, 7, 184)
        );
        // Adaptation field of one byte with both flags, then payload; without payload; too long.
        bytes[3] = 0x37;
        bytes[4..6].copy_from_slice(&[1, 0xc0]);
        let p = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (p.discontinuity, p.random_access, p.payload.len()),
            (true, true, 182)
        );
        bytes[3] = 0x27;
        assert_eq!(Packet::parse(&bytes).unwrap().payload, []);
        bytes[4] = 184;
        assert_eq!(Packet::parse(&bytes), None);
        bytes[4] = 0;
        assert!(!Packet::parse(&bytes).unwrap().discontinuity);
        bytes[1] |= 0x80;
        bytes[3] = 0xd0;
        let p = Packet::parse(&bytes).unwrap();
        assert_eq!((p.damaged, p.scrambled), (true, true));
        assert_eq!(Packet::parse(&bytes[..3]), None);
    }

    proptest! {
        #[test]
        fn any_chunking_of_anything_gives_the_same(
            bits in prop::collection::vec(prop_oneof![
                3 => Just(packet(1, 2, 3)),
                1 => prop::collection::vec(any::<u8>(), 0..300),
                1 => Just(vec![SYNC_BYTE]),
            ], 0..12),
            cuts in prop::collection::vec(1usize..400, 1..60),
        ) {
            let bytes = bits.concat();
            let whole = found(&[&bytes]);
            let (mut pieces, mut rest) = (vec![], bytes.as_slice());
            for &cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            prop_assert_eq!(found(&pieces), whole);
        }
    }
}
