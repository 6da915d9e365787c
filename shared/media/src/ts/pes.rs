//! PES packets put together from payloads, and their timestamps (ISO/IEC 13818-1, 2.4.3.6).
//!
//! Flags, extensions and stuffing of any kind are passed over by the header's own length.

use bytes::{Bytes, BytesMut};

use crate::timeline::Stamp;

/// Longest PES packet, header included: an intra picture of 4K at its worst is a few megabytes.
pub const MAX_PES_BYTES: usize = 16 << 20;

/// Most that is set aside in advance for the next one.
const MAX_FORESIGHT: usize = 1 << 20;

/// Bytes up to PES_packet_length.
const START_BYTES: usize = 6;

/// Bytes up to PES_header_data_length.
const HEADER_BYTES: usize = 9;

/// A PES packet that was dropped. The source is at fault, or the way from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PesError {
    #[error("a PES packet does not begin with a start code: dropped")]
    NoStartCode,
    #[error("a PES packet ends {missing} bytes early: dropped")]
    CutShort { missing: usize },
    #[error("a PES packet is longer than {MAX_PES_BYTES} bytes: dropped")]
    TooLong,
    #[error("scrambled: give the stream unscrambled")]
    Scrambled,
}

/// A whole PES packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pes {
    /// Offset in the source of the TS packet that it begins in.
    pub offset: u64,
    pub stamp: Option<Stamp>,
    /// The source says that decoding can begin here.
    pub random_access: bool,
    pub payload: Bytes,
}

/// Puts the PES packets of one PID together.
#[derive(Debug, Default)]
pub struct PesAssembler {
    /// The PES packet under way; at most [`MAX_PES_BYTES`] and a packet.
    current: Option<Current>,
    /// How long the last one was.
    last_bytes: usize,
    /// The last one that was whole, to know a repeated packet by.
    last: Bytes,
}

#[derive(Debug)]
struct Current {
    offset: u64,
    random_access: bool,
    bytes: BytesMut,
}

impl PesAssembler {
    /// Whether a PES packet is under way.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Whether a payload ends what was taken last: a TS packet may come twice (2.4.3.3).
    pub fn ends_with(&self, payload: &[u8]) -> bool {
        match &self.current {
            Some(current) => current.bytes.ends_with(payload),
            None => self.last.ends_with(payload),
        }
    }

    /// Drops what is under way; whether there was anything.
    pub fn drop_current(&mut self) -> bool {
        self.current.take().is_some()
    }

    /// Begins a PES packet with a payload; what was under way must have been taken or dropped.
    pub fn start(
        &mut self,
        offset: u64,
        random_access: bool,
        payload: &[u8],
    ) -> Option<Result<Pes, PesError>> {
        let foresight = (self.last_bytes + self.last_bytes / 8).min(MAX_FORESIGHT);
        let mut bytes = BytesMut::with_capacity(foresight.max(payload.len()));
        bytes.extend_from_slice(payload);
        self.current = Some(Current {
            offset,
            random_access,
            bytes,
        });
        self.take_if_whole()
    }

    /// Goes on with a payload; gives the PES packet if that completes it.
    pub fn extend(&mut self, payload: &[u8]) -> Option<Result<Pes, PesError>> {
        let current = self.current.as_mut()?;
        if current.bytes.len() > MAX_PES_BYTES {
            self.current = None;
            return Some(Err(PesError::TooLong));
        }
        current.bytes.extend_from_slice(payload);
        self.take_if_whole()
    }

    /// Gives what is under way: one of unknown length ends where the next begins.
    pub fn take(&mut self) -> Option<Result<Pes, PesError>> {
        let current = self.current.take()?;
        self.last_bytes = current.bytes.len();
        let bytes = current.bytes.freeze();
        self.last = bytes.clone();
        Some(parse(current.offset, current.random_access, bytes))
    }

    fn take_if_whole(&mut self) -> Option<Result<Pes, PesError>> {
        let bytes = &self.current.as_ref()?.bytes;
        match declared_bytes(bytes) {
            Some(len) if bytes.len() >= len => self.take(),
            _ => None,
        }
    }
}

/// The packet's whole length, where it says one.
fn declared_bytes(bytes: &[u8]) -> Option<usize> {
    let &[0, 0, 1, _, l1, l2, ..] = bytes else {
        return None;
    };
    match u16::from_be_bytes([l1, l2]) {
        0 => None,
        len => Some(START_BYTES + usize::from(len)),
    }
}

/// Reads a whole packet.
fn parse(offset: u64, random_access: bool, mut bytes: Bytes) -> Result<Pes, PesError> {
    let &[0, 0, 1, stream_id, _, _, ref rest @ ..] = bytes.as_ref() else {
        return Err(PesError::NoStartCode);
    };
    let declared = declared_bytes(&bytes).unwrap_or(bytes.len());
    if let Some(missing @ 1..) = declared.checked_sub(bytes.len()) {
        return Err(PesError::CutShort { missing });
    }
    // Streams without a header (Table 2-21): maps, padding, private_stream_2, ECM, EMM, directories.
    let (stamp, header_bytes) = match stream_id {
        0xbc | 0xbe | 0xbf | 0xf0 | 0xf1 | 0xf2 | 0xf8 | 0xff => (None, START_BYTES),
        _ => {
            let &[b6, b7, len, ref fields @ ..] = rest else {
                return Err(PesError::CutShort { missing: 1 });
            };
            if b6 & 0x30 != 0 {
                return Err(PesError::Scrambled);
            }
            let fields = fields
                .get(..usize::from(len))
                .ok_or(PesError::CutShort { missing: 1 })?;
            (stamp(b7 >> 6, fields), HEADER_BYTES + usize::from(len))
        }
    };
    bytes.truncate(declared);
    let payload = bytes
        .len()
        .checked_sub(header_bytes)
        .map(|_| bytes.split_off(header_bytes))
        .ok_or(PesError::CutShort { missing: 1 })?;
    Ok(Pes {
        offset,
        stamp,
        random_access,
        payload,
    })
}

/// PTS and DTS as `PTS_DTS_flags` announces them.
fn stamp(flags: u8, fields: &[u8]) -> Option<Stamp> {
    let (pts, rest) = fields.split_first_chunk()?;
    match flags {
        0b10 => Some(Stamp {
            pts: clock(pts),
            dts: None,
        }),
        0b11 => Some(Stamp {
            pts: clock(pts),
            dts: rest.first_chunk().map(clock),
        }),
        _ => None,
    }
}

/// 33 bits in five bytes, marker bits between them.
fn clock(&[b0, b1, b2, b3, b4]: &[u8; 5]) -> u64 {
    u64::from(b0 >> 1 & 7) << 30
        | u64::from(b1) << 22
        | u64::from(b2 >> 1) << 15
        | u64::from(b3) << 7
        | u64::from(b4 >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// PTS 8589934591 (all ones) and DTS 1, with stuffing and a payload.
    fn with_stamps(length: u16) -> Vec<u8> {
        let mut p = vec![0, 0, 1, 0xe0];
        p.extend(length.to_be_bytes());
        p.extend([0x80, 0xc0, 12, 0x3f, 0xff, 0xff, 0xff, 0xff]);
        p.extend([0x11, 0x00, 0x01, 0x00, 0x03, 0xff, 0xff]);
        p.extend([1, 2, 3, 4]);
        p
    }

    #[test]
    fn stamps_and_payload() {
        let mut assembler = PesAssembler::default();
        assert_eq!(assembler.start(7, true, &with_stamps(0)), None);
        let pes = assembler.take().unwrap().unwrap();
        assert_eq!(
            pes,
            Pes {
                offset: 7,
                stamp: Some(Stamp {
                    pts: 8_589_934_591,
                    dts: Some(1)
                }),
                random_access: true,
                payload: Bytes::from_static(&[1, 2, 3, 4]),
            }
        );
        assert_eq!(assembler.take(), None);
    }

    #[test]
    fn a_declared_length_ends_it_at_once() {
        let bytes = with_stamps(19);
        let mut assembler = PesAssembler::default();
        assert_eq!(assembler.start(0, false, &bytes[..10]), None);
        assert_eq!(assembler.extend(&bytes[10..20]), None);
        assert!(assembler.ends_with(&bytes[10..20]));
        // What stands behind it in the TS packet is not its.
        let pes = assembler
            .extend(&[&bytes[20..], &[9, 9]].concat())
            .unwrap()
            .unwrap();
        assert_eq!(pes.payload[..], [1, 2, 3, 4]);
        assert!(!assembler.is_busy() && assembler.ends_with(&[4, 9, 9]));
        assert_eq!(assembler.extend(&[1]), None);
    }

    #[test]
    fn what_is_dropped_and_why() {
        let parse = |bytes: &[u8]| {
            let mut assembler = PesAssembler::default();
            assembler
                .start(0, false, bytes)
                .or_else(|| assembler.take())
                .unwrap()
        };
        assert_eq!(parse(&[]), Err(PesError::NoStartCode));
        assert_eq!(
            parse(&[0, 0, 2, 0xe0, 0, 0, 0x80, 0, 0]),
            Err(PesError::NoStartCode)
        );
        assert_eq!(
            parse(&with_stamps(25)),
            Err(PesError::CutShort { missing: 6 })
        );
        assert_eq!(
            parse(&[0, 0, 1, 0xe0, 0, 0, 0x80, 0x80, 5, 0x21]),
            Err(PesError::CutShort { missing: 1 })
        );
        assert_eq!(
            parse(&[0, 0, 1, 0xe0, 0, 0, 0x80]),
            Err(PesError::CutShort { missing: 1 })
        );
        assert_eq!(
            parse(&[0, 0, 1, 0xe0, 0, 0, 0x90, 0, 0]),
            Err(PesError::Scrambled)
        );
        // Padding has no header, and flags without room have no stamps.
        assert_eq!(
            parse(&[0, 0, 1, 0xbe, 0, 1, 0xff]).unwrap().payload.len(),
            1
        );
        assert_eq!(
            parse(&[0, 0, 1, 0xe0, 0, 0, 0x80, 0xc0, 0]).unwrap().stamp,
            None
        );
    }

    #[test]
    fn is_bounded() {
        let mut assembler = PesAssembler::default();
        assembler.start(0, false, &with_stamps(0));
        let piece = vec![0; 1 << 20];
        let errors: Vec<_> = (0..20).filter_map(|_| assembler.extend(&piece)).collect();
        assert_eq!(errors, [Err(PesError::TooLong)]);
    }

    proptest! {
        #[test]
        fn any_payloads_are_safe(payloads in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..184)), 0..20)) {
            let mut assembler = PesAssembler::default();
            for (start, payload) in &payloads {
                if *start {
                    assembler.take();
                    assembler.start(0, false, &[&[0, 0, 1, 0xe0], &payload[..]].concat());
                } else {
                    assembler.extend(payload);
                }
            }
            assembler.take();
        }
    }
}
