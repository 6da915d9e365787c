//! Sections put together from payloads, and what PAT and PMT say (ISO/IEC 13818-1, 2.4.4).

use super::packet::Pid;

/// PID of the program association table.
pub const PAT_PID: Pid = 0;

/// Bytes before section_length ends.
const SECTION_HEADER_BYTES: usize = 3;

/// Most elementary streams of a PMT that are looked at; a section could hold 200.
const MAX_STREAMS: usize = 64;

/// A section that can't be used. The source is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    #[error("a table's checksum is wrong")]
    Checksum,
    #[error("a table is cut short")]
    CutShort,
}

/// Puts the sections of one PID together.
#[derive(Debug, Default)]
pub struct Sections {
    /// The section under way, from its table_id; less than 4 KiB and a packet: the
    /// length field has 12 bits.
    buffer: Vec<u8>,
}

impl Sections {
    /// A packet was lost: the section under way is void.
    pub fn reset(&mut self) {
        self.buffer.clear();
    }

    /// Takes a payload and gives each section that it completes.
    pub fn push(&mut self, starts: bool, payload: &[u8], mut give: impl FnMut(&[u8])) {
        if !starts {
            if !self.buffer.is_empty() {
                self.take(payload, &mut give);
            }
            return;
        }
        let Some((&pointer, rest)) = payload.split_first() else {
            return;
        };
        let (end_of_last, begin) = rest.split_at_checked(pointer.into()).unwrap_or((rest, &[]));
        if !self.buffer.is_empty() {
            self.take(end_of_last, &mut give);
        }
        self.buffer.clear();
        self.take(begin, &mut give);
    }

    fn take(&mut self, bytes: &[u8], give: &mut impl FnMut(&[u8])) {
        self.buffer.extend_from_slice(bytes);
        loop {
            let len = match *self.buffer.as_slice() {
                // Where a table_id would be: stuffing up to the packet's end.
                [0xff, ..] => return self.buffer.clear(),
                [_, b1, b2, ..] => {
                    SECTION_HEADER_BYTES + (usize::from(b1 & 0x0f) << 8 | usize::from(b2))
                }
                _ => return,
            };
            let Some(section) = self.buffer.get(..len) else {
                return;
            };
            give(section);
            self.buffer.drain(..len);
        }
    }
}

/// The program that is read: the first of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pat {
    /// None if the table lists none.
    pub first: Option<Program>,
    /// How many there are in this section.
    pub programs: usize,
}

/// A program's place in the PAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub number: u16,
    pub pmt_pid: Pid,
}

impl Pat {
    /// Reads a section of PID 0; None if it is another table or not yet in force.
    pub fn parse(section: &[u8]) -> Result<Option<Self>, SectionError> {
        let Some(table) = Table::parse(section, 0x00)? else {
            return Ok(None);
        };
        let programs = || {
            table.body.chunks_exact(4).filter_map(|entry| match *entry {
                // Program 0 is the network information table.
                [0, 0, _, _] => None,
                [n1, n2, p1, p2] => Some(Program {
                    number: u16::from_be_bytes([n1, n2]),
                    pmt_pid: u16::from_be_bytes([p1, p2]) & 0x1fff,
                }),
                _ => None,
            })
        };
        Ok(Some(Self {
            first: programs().next(),
            programs: programs().count(),
        }))
    }
}

/// What a program consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pmt {
    pub number: u16,
    /// At most [`MAX_STREAMS`].
    pub streams: Vec<ElementaryStream>,
}

/// One entry of a PMT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementaryStream {
    pub pid: Pid,
    pub stream_type: u8,
    /// format_identifier of a registration descriptor: `AC-3`, `HEVC`, `Opus`.
    pub registration: Option<[u8; 4]>,
    /// Tags of its descriptors, which name what `stream_type` 6 leaves open; at most 16.
    pub descriptors: Vec<u8>,
}

impl Pmt {
    /// Reads a section of a PMT's PID; None if it is another table or not yet in force.
    pub fn parse(section: &[u8]) -> Result<Option<Self>, SectionError> {
        let Some(table) = Table::parse(section, 0x02)? else {
            return Ok(None);
        };
        let &[_, _, l1, l2, ref rest @ ..] = table.body else {
            return Err(SectionError::CutShort);
        };
        let mut rest = rest.get(length(l1, l2)..).ok_or(SectionError::CutShort)?;
        let mut streams = Vec::new();
        while let &[stream_type, p1, p2, l1, l2, ref behind @ ..] = rest {
            let (descriptors, next) = behind
                .split_at_checked(length(l1, l2))
                .ok_or(SectionError::CutShort)?;
            rest = next;
            if streams.len() < MAX_STREAMS {
                streams.push(ElementaryStream::new(
                    u16::from_be_bytes([p1, p2]) & 0x1fff,
                    stream_type,
                    descriptors,
                ));
            }
        }
        Ok(Some(Self {
            number: table.id_extension,
            streams,
        }))
    }
}

impl ElementaryStream {
    fn new(pid: Pid, stream_type: u8, mut descriptors: &[u8]) -> Self {
        let mut stream = Self {
            pid,
            stream_type,
            registration: None,
            descriptors: Vec::new(),
        };
        while let &[tag, len, ref behind @ ..] = descriptors {
            let Some((body, next)) = behind.split_at_checked(len.into()) else {
                break;
            };
            descriptors = next;
            if tag == 0x05 {
                stream.registration = body.first_chunk().copied();
            }
            if stream.descriptors.len() < 16 {
                stream.descriptors.push(tag);
            }
        }
        stream
    }
}

/// A 12-bit length under four other bits.
fn length(high: u8, low: u8) -> usize {
    usize::from(high & 0x0f) << 8 | usize::from(low)
}

/// A section of the long syntax.
struct Table<'a> {
    id_extension: u16,
    /// Between the header and the checksum.
    body: &'a [u8],
}

impl<'a> Table<'a> {
    fn parse(section: &'a [u8], table_id: u8) -> Result<Option<Self>, SectionError> {
        if section.first() != Some(&table_id) {
            return Ok(None);
        }
        if crc32(section) != 0 {
            return Err(SectionError::Checksum);
        }
        let &[_, _, _, e1, e2, version, _, _, ref rest @ ..] = section else {
            return Err(SectionError::CutShort);
        };
        let body = rest
            .len()
            .checked_sub(4)
            .and_then(|len| rest.get(..len))
            .ok_or(SectionError::CutShort)?;
        // current_next_indicator: tables that will apply later are repeated when they do.
        let current = version & 1 == 1;
        Ok(current.then_some(Self {
            id_extension: u16::from_be_bytes([e1, e2]),
            body,
        }))
    }
}

/// CRC-32/MPEG-2 (Annex A): 0 over a section with its checksum.
pub fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        let index = (crc >> 24) as u8 ^ byte;
        crc << 8 ^ CRC_TABLE.get(usize::from(index)).copied().unwrap_or(0)
    })
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = ((i as u32) << 24, 0);
        while bit < 8 {
            crc = crc << 1
                ^ if crc & 0x8000_0000 != 0 {
                    0x04c1_1db7
                } else {
                    0
                };
            bit += 1;
        }
        #[allow(clippy::indexing_slicing)] // below 256; no other way in a constant
        {
            table[i] = crc;
        }
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A section with its length and checksum filled in.
    fn section(table_id: u8, extension: u16, body: &[u8]) -> Vec<u8> {
        let len = (5 + body.len() + 4) as u16;
        let mut s = vec![table_id];
        s.extend((0xb000 | len).to_be_bytes());
        s.extend(extension.to_be_bytes());
        s.extend([0xc1, 0, 0]);
        s.extend(body);
        s.extend(crc32(&s).to_be_bytes());
        s
    }

    fn pushed(payloads: &[(bool, &[u8])]) -> Vec<Vec<u8>> {
        let (mut sections, mut out) = (Sections::default(), Vec::new());
        for &(starts, payload) in payloads {
            sections.push(starts, payload, |s| out.push(s.to_vec()));
        }
        out
    }

    #[test]
    fn checksum() {
        assert_eq!(crc32(b"123456789"), 0x0376_e6e7);
        assert_eq!(crc32(&section(0, 1, &[0, 1, 0xe1, 0])), 0);
    }

    #[test]
    fn sections_over_packets_behind_pointers_and_stuffing() {
        let (a, b) = (section(2, 1, &[7; 300]), section(0, 9, &[]));
        assert_eq!(
            pushed(&[(true, &[&[0], &b[..], &b[..], &[0xff; 9]].concat())]),
            [b.clone(), b.clone()]
        );
        // Over two packets; then its end and the next behind a pointer; junk before the first start.
        assert_eq!(
            pushed(&[
                (false, &[1, 2, 3]),
                (true, &[&[0], &a[..180]].concat()),
                (false, &a[180..280]),
                (
                    true,
                    &[&[(a.len() - 280) as u8], &a[280..], &b[..], &b[..2]].concat()
                ),
                (false, &b[2..]),
            ]),
            [a.clone(), b.clone(), b.clone()]
        );
        // A pointer beyond the payload, an empty payload, a start where an end was due.
        assert_eq!(
            pushed(&[
                (true, &[200, 1]),
                (true, &[]),
                (true, &[&[0], &a[..9]].concat()),
                (true, &[&[0], &b[..]].concat())
            ]),
            [b]
        );
    }

    #[test]
    fn reads_the_tables() {
        let pat = section(
            0,
            1,
            &[0, 0, 0xe0, 0x10, 0, 3, 0xf0, 0x21, 0, 4, 0xe0, 0x30],
        );
        let program = Program {
            number: 3,
            pmt_pid: 0x1021,
        };
        assert_eq!(
            Pat::parse(&pat),
            Ok(Some(Pat {
                first: Some(program),
                programs: 2
            }))
        );
        assert_eq!(Pmt::parse(&pat), Ok(None));
        let pmt = section(
            2,
            3,
            &[
                0xe1, 0x00, 0xf0, 0x02, 0x0a, 0x00, // PCR PID, a program descriptor
                0x1b, 0xe1, 0x00, 0xf0, 0x00, //
                0x06, 0xe1, 0x01, 0xf0, 0x08, 0x05, 0x04, b'A', b'C', b'-', b'3', 0x6a, 0x00,
            ],
        );
        let stream = |pid, stream_type, registration, descriptors| ElementaryStream {
            pid,
            stream_type,
            registration,
            descriptors,
        };
        assert_eq!(
            Pmt::parse(&pmt),
            Ok(Some(Pmt {
                number: 3,
                streams: vec![
                    stream(0x100, 0x1b, None, vec![]),
                    stream(0x101, 0x06, Some(*b"AC-3"), vec![5, 0x6a]),
                ],
            }))
        );
        let mut broken = pmt.clone();
        broken[12] ^= 1;
        assert_eq!(Pmt::parse(&broken), Err(SectionError::Checksum));
        assert_eq!(
            Pmt::parse(&section(2, 3, &[0xe1, 0, 0xf0, 99])),
            Err(SectionError::CutShort)
        );
        let mut next = pmt[..pmt.len() - 4].to_vec();
        next[5] = 0xc0;
        next.extend(crc32(&next).to_be_bytes());
        assert_eq!(Pmt::parse(&next), Ok(None));
    }

    proptest! {
        #[test]
        fn any_payloads_are_safe(payloads in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..184)), 0..60)) {
            let mut sections = Sections::default();
            for (starts, payload) in &payloads {
                sections.push(*starts, payload, |s| {
                    let _ = (Pat::parse(s), Pmt::parse(s));
                });
                prop_assert!(sections.buffer.len() < 4098 + 184);
            }
        }

        #[test]
        fn any_table_body_is_safe(table in prop_oneof![Just(0u8), Just(2u8)], body in prop::collection::vec(any::<u8>(), 0..200)) {
            let s = section(table, 1, &body);
            prop_assert!(Pat::parse(&s).is_ok());
            let _ = Pmt::parse(&s);
        }
    }
}
