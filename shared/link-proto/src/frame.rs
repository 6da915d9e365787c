//! What is inside a transport datagram, once opened: a header and a run of frames.
//!
//! ```text
//! header    generation u32 | sender's clock in µs u32
//! frame     kind u8 | length u16 | body
//! ```
//! Kinds that are not known are skipped, so that later versions may add some.

use crate::{
    api::Bye,
    arrivals::{MAX_SACK_BYTES, Sack},
    datagram::{BASE_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES, TAG_BYTES, TRANSPORT_HEADER_BYTES},
    parity::{Cover, SHARD_OVERHEAD},
};

pub(crate) const HEADER_BYTES: usize = 8;
pub(crate) const FRAME_OVERHEAD: usize = 3;

/// Room for header and frames in a datagram of such a size.
const fn plaintext_bytes(datagram_bytes: usize) -> usize {
    datagram_bytes - TRANSPORT_HEADER_BYTES - TAG_BYTES
}

/// Data of one KCP packet where datagrams have such a size: a parity over packets of it fills a datagram.
pub(crate) const fn kcp_mss(datagram_bytes: usize) -> usize {
    plaintext_bytes(datagram_bytes)
        - HEADER_BYTES
        - FRAME_OVERHEAD
        - PARITY_OVERHEAD
        - SHARD_OVERHEAD
}

/// Data of one KCP packet that any path carries, and what a peer may send.
pub(crate) const BASE_KCP_MSS: usize = kcp_mss(BASE_DATAGRAM_BYTES);
pub(crate) const MAX_KCP_MSS: usize = kcp_mss(MAX_DATAGRAM_BYTES);

const PING: u8 = 0;
const DATA: u8 = 1;
const FEEDBACK: u8 = 2;
const CREDIT: u8 = 3;
const BYE: u8 = 4;
const PARITY: u8 = 5;
const SACK: u8 = 6;
const SEEN: u8 = 7;
const PROBE: u8 = 8;
const REACHED: u8 = 9;

const DATA_OVERHEAD: usize = 6;
const FEEDBACK_BYTES: usize = 52;
const CREDIT_BYTES: usize = 24;

/// What a parity's frame has before its bytes.
pub(crate) const PARITY_OVERHEAD: usize = 11;
const SACK_OVERHEAD: usize = 14;
pub(crate) const MAX_SACK_FRAME_BYTES: usize = SACK_OVERHEAD + MAX_SACK_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: u32,
    pub(crate) sent_us: u32,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Frame<'a> {
    /// Asks for feedback at once.
    Ping,
    Data(Packet<'a>),
    Feedback(Feedback),
    /// Per channel: how many bytes (as [`crate::credit`] counts them) may be sent in this generation.
    Credit([u64; 3]),
    Bye(Bye),
    Parity(Cover, &'a [u8]),
    Sack(Sack),
    /// The highest datagram counter seen: what the acknowledgements up to this frame go by.
    Seen(u64),
    /// Padding: does a datagram of this size pass?
    Probe,
    /// A probe's datagram came, and had so many bytes.
    Reached(u16),
}

/// A KCP packet with data, without what the datagram's header and [`Frame::Sack`] say anyhow: 6 bytes in front
/// of the data for KCP's 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) channel: u8,
    pub(crate) fragment: u8,
    pub(crate) sn: u32,
    pub(crate) data: &'a [u8],
}

/// What a receiver tells of the datagrams that reached it. Counts are since the session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Feedback {
    /// Highest datagram counter seen.
    pub(crate) highest: u64,
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    /// The sender's clock in the datagram `highest`, and how long ago that arrived.
    pub(crate) echo_us: u32,
    pub(crate) hold_us: u32,
    /// The receiver's clock when the latest datagram arrived.
    pub(crate) arrival_us: u32,
    /// Least (receiver's clock − sender's clock) since the last feedback: the clocks' offset cancels out
    /// in differences.
    pub(crate) one_way_us: i32,
    /// Datagrams that came after a later one.
    pub(crate) reordered: u32,
    /// How often a datagram's counter was not the next after the highest: losses, however long, and
    /// datagrams that were overtaken.
    pub(crate) gaps: u32,
    /// Since the last feedback: by how much a datagram was longer under way than one that overtook it, at most.
    pub(crate) late_us: u32,
}

pub(crate) fn parse_header(plain: &[u8]) -> Option<(Header, Frames<'_>)> {
    let (generation, rest) = plain.split_first_chunk::<4>()?;
    let (sent_us, rest) = rest.split_first_chunk::<4>()?;
    let header = Header {
        generation: u32::from_be_bytes(*generation),
        sent_us: u32::from_be_bytes(*sent_us),
    };
    Some((header, Frames { rest }))
}

/// An authentic peer wrote something that doesn't parse: its fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let frame = self.take();
            match frame {
                Some(Some(frame)) => return Some(Ok(frame)),
                Some(None) => {}
                None => {
                    self.rest = &[];
                    return Some(Err(Malformed));
                }
            }
        }
        None
    }
}

impl<'a> Frames<'a> {
    /// `Some(None)`: a kind that isn't known.
    fn take(&mut self) -> Option<Option<Frame<'a>>> {
        let (&[kind, high, low], rest) = self.rest.split_first_chunk::<FRAME_OVERHEAD>()?;
        let (body, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        self.rest = rest;
        Some(match kind {
            PING => Some(Frame::Ping),
            DATA => {
                let ([channel, fragment], body) = body.split_first_chunk()?;
                let (sn, data) = body.split_first_chunk()?;
                Some(Frame::Data(Packet {
                    channel: *channel,
                    fragment: *fragment,
                    sn: u32::from_be_bytes(*sn),
                    data,
                }))
            }
            FEEDBACK => Some(Frame::Feedback(parse_feedback(body)?)),
            CREDIT => {
                let mut body = Reader(body);
                Some(Frame::Credit([body.u64()?, body.u64()?, body.u64()?]))
            }
            BYE => Some(Frame::Bye(bye_of(*body.first()?))),
            PARITY => Some(parse_parity(body)?),
            SACK => Some(Frame::Sack(parse_sack(body)?)),
            SEEN => Some(Frame::Seen(Reader(body).u64()?)),
            PROBE => Some(Frame::Probe),
            REACHED => Some(Frame::Reached(Reader(body).u16()?)),
            _ => None,
        })
    }
}

fn parse_feedback(body: &[u8]) -> Option<Feedback> {
    let mut body = Reader(body);
    Some(Feedback {
        highest: body.u64()?,
        datagrams: body.u64()?,
        bytes: body.u64()?,
        echo_us: body.u32()?,
        hold_us: body.u32()?,
        arrival_us: body.u32()?,
        one_way_us: body.u32()?.cast_signed(),
        reordered: body.u32()?,
        gaps: body.u32()?,
        // An older peer does not tell.
        late_us: body.u32().unwrap_or(0),
    })
}

fn parse_parity(body: &[u8]) -> Option<Frame<'_>> {
    let mut body = Reader(body);
    let (conv, first) = (body.u32()?, body.u32()?);
    let ([stride, count, number], bytes) = body.0.split_first_chunk()?;
    let cover = Cover {
        conv,
        first,
        stride: *stride,
        count: *count,
        number: *number,
    };
    Some(Frame::Parity(cover, bytes))
}

fn parse_sack(body: &[u8]) -> Option<Sack> {
    let mut body = Reader(body);
    let sack = Sack {
        conv: body.u32()?,
        window: body.u16()?,
        una: body.u32()?,
        base: body.u32()?,
        bits: body.0.to_vec(),
    };
    (sack.bits.len() <= MAX_SACK_BYTES).then_some(sack)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*bytes))
    }
}

fn bye_of(byte: u8) -> Bye {
    match byte {
        0 => Bye::Done,
        1 => Bye::Shutdown,
        2 => Bye::Refused,
        3 => Bye::Violation,
        4 => Bye::Replaced,
        other => Bye::Other(other),
    }
}

fn bye_byte(bye: Bye) -> u8 {
    match bye {
        Bye::Done => 0,
        Bye::Shutdown => 1,
        Bye::Refused => 2,
        Bye::Violation => 3,
        Bye::Replaced => 4,
        Bye::Other(other) => other,
    }
}

/// A datagram's plaintext while it is put together; never over what its datagram may have.
#[derive(Default)]
pub(crate) struct Plaintext {
    bytes: Vec<u8>,
    limit: usize,
}

impl Plaintext {
    /// For a datagram of at most so many bytes.
    pub(crate) fn start(&mut self, header: Header, datagram_bytes: usize) {
        self.limit = plaintext_bytes(datagram_bytes);
        self.bytes.clear();
        self.bytes
            .extend_from_slice(&header.generation.to_be_bytes());
        self.bytes.extend_from_slice(&header.sent_us.to_be_bytes());
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn has_frames(&self) -> bool {
        self.bytes.len() > HEADER_BYTES
    }

    /// Frames are together only in a datagram that any path carries, so that nothing small is lost with what is
    /// too large by now. Alone a frame may be as large as the path was found to carry.
    pub(crate) fn fits(&self, body_bytes: usize) -> bool {
        let most = if self.has_frames() {
            self.limit.min(plaintext_bytes(BASE_DATAGRAM_BYTES))
        } else {
            self.limit
        };
        self.bytes.len() + FRAME_OVERHEAD + body_bytes <= most
    }

    /// Whether the frame fitted; if not, nothing was written.
    #[must_use]
    pub(crate) fn push(&mut self, frame: &Frame<'_>) -> bool {
        match frame {
            Frame::Ping => self.frame(PING, &[]),
            Frame::Data(packet) => {
                let length = DATA_OVERHEAD + packet.data.len();
                if !self.fits(length) {
                    return false;
                }
                self.head(DATA, length);
                self.bytes
                    .extend_from_slice(&[packet.channel, packet.fragment]);
                self.bytes.extend_from_slice(&packet.sn.to_be_bytes());
                self.bytes.extend_from_slice(packet.data);
                true
            }
            Frame::Credit(limits) => {
                let mut body = [0; CREDIT_BYTES];
                for (place, limit) in body.chunks_exact_mut(8).zip(limits) {
                    place.copy_from_slice(&limit.to_be_bytes());
                }
                self.frame(CREDIT, &body)
            }
            Frame::Bye(bye) => self.frame(BYE, &[bye_byte(*bye)]),
            Frame::Seen(counter) => self.frame(SEEN, &counter.to_be_bytes()),
            Frame::Reached(bytes) => self.frame(REACHED, &bytes.to_be_bytes()),
            Frame::Probe => {
                let Some(padding) = self.limit.checked_sub(self.bytes.len() + FRAME_OVERHEAD)
                else {
                    return false;
                };
                self.head(PROBE, padding);
                self.bytes.resize(self.limit, 0);
                true
            }
            Frame::Parity(cover, bytes) => {
                if !self.fits(PARITY_OVERHEAD + bytes.len()) {
                    return false;
                }
                self.head(PARITY, PARITY_OVERHEAD + bytes.len());
                self.bytes.extend_from_slice(&cover.conv.to_be_bytes());
                self.bytes.extend_from_slice(&cover.first.to_be_bytes());
                self.bytes
                    .extend_from_slice(&[cover.stride, cover.count, cover.number]);
                self.bytes.extend_from_slice(bytes);
                true
            }
            Frame::Sack(sack) => {
                if !self.fits(SACK_OVERHEAD + sack.bits.len()) {
                    return false;
                }
                self.head(SACK, SACK_OVERHEAD + sack.bits.len());
                self.bytes.extend_from_slice(&sack.conv.to_be_bytes());
                self.bytes.extend_from_slice(&sack.window.to_be_bytes());
                self.bytes.extend_from_slice(&sack.una.to_be_bytes());
                self.bytes.extend_from_slice(&sack.base.to_be_bytes());
                self.bytes.extend_from_slice(&sack.bits);
                true
            }
            Frame::Feedback(feedback) => {
                if !self.fits(FEEDBACK_BYTES) {
                    return false;
                }
                self.head(FEEDBACK, FEEDBACK_BYTES);
                for number in [feedback.highest, feedback.datagrams, feedback.bytes] {
                    self.bytes.extend_from_slice(&number.to_be_bytes());
                }
                for number in [
                    feedback.echo_us,
                    feedback.hold_us,
                    feedback.arrival_us,
                    feedback.one_way_us.cast_unsigned(),
                    feedback.reordered,
                    feedback.gaps,
                    feedback.late_us,
                ] {
                    self.bytes.extend_from_slice(&number.to_be_bytes());
                }
                true
            }
        }
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> bool {
        if !self.fits(body.len()) {
            return false;
        }
        self.head(kind, body.len());
        self.bytes.extend_from_slice(body);
        true
    }

    fn head(&mut self, kind: u8, length: usize) {
        let [.., high, low] = (length as u32).to_be_bytes();
        self.bytes.extend_from_slice(&[kind, high, low]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Feedback {
        Feedback {
            highest: 1,
            datagrams: 2,
            bytes: 3,
            echo_us: 4,
            hold_us: 5,
            arrival_us: 6,
            one_way_us: -7,
            reordered: 8,
            gaps: 9,
            late_us: 10,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            generation: 3,
            sent_us: 9,
        };
        let frames = [
            Frame::Ping,
            Frame::Data(Packet {
                channel: 1,
                fragment: 2,
                sn: 3,
                data: &[4, 5],
            }),
            Frame::Feedback(sample()),
            Frame::Credit([1, u64::MAX, 3]),
            Frame::Bye(Bye::Other(77)),
            Frame::Bye(Bye::Refused),
            Frame::Parity(
                Cover {
                    conv: 1,
                    first: 2,
                    stride: 3,
                    count: 4,
                    number: 5,
                },
                &[6, 7],
            ),
            Frame::Sack(Sack {
                conv: 1,
                window: 2,
                una: 3,
                base: 4,
                bits: vec![5, 6],
            }),
            Frame::Seen(u64::MAX - 1),
            Frame::Reached(1472),
            Frame::Probe,
        ];
        let mut plain = Plaintext::default();
        plain.start(header, BASE_DATAGRAM_BYTES);
        for frame in &frames {
            assert!(plain.push(frame));
        }
        let (read, rest) = parse_header(plain.bytes()).unwrap();
        assert_eq!(read, header);
        let rest: Vec<_> = rest.map(|frame| frame.unwrap()).collect();
        assert_eq!(rest, frames);
    }

    #[test]
    fn exact_bytes() {
        let mut plain = Plaintext::default();
        let header = Header {
            generation: 1,
            sent_us: 0x0203_0405,
        };
        plain.start(header, BASE_DATAGRAM_BYTES);
        assert!(plain.push(&Frame::Ping));
        assert!(plain.push(&Frame::Bye(Bye::Shutdown)));
        assert!(plain.push(&Frame::Data(Packet {
            channel: 2,
            fragment: 3,
            sn: 0x0405_0607,
            data: &[0xaa, 0xbb],
        })));
        assert_eq!(
            plain.bytes(),
            [
                0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 4, 0, 1, 1, 1, 0, 8, 2, 3, 4, 5, 6, 7, 0xaa, 0xbb
            ]
        );
    }

    #[test]
    fn parity_over_full_packets_fills_a_datagram_exactly() {
        let mut plain = Plaintext::default();
        let header = Header {
            generation: 0,
            sent_us: 0,
        };
        let cover = Cover {
            conv: 0,
            first: 0,
            stride: 1,
            count: 64,
            number: 63,
        };
        for datagram_bytes in [BASE_DATAGRAM_BYTES, 1300, MAX_DATAGRAM_BYTES] {
            plain.start(header, datagram_bytes);
            let shard = vec![0; SHARD_OVERHEAD + kcp_mss(datagram_bytes)];
            assert!(plain.push(&Frame::Parity(cover, &shard)));
            assert_eq!(plain.bytes().len(), plaintext_bytes(datagram_bytes));
            assert!(!plain.push(&Frame::Ping));
        }
    }

    #[test]
    fn unknown_kinds_are_skipped_and_cut_off_frames_are_malformed() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 200, 0, 2, 1, 1, 0, 0, 0];
        let (_, frames) = parse_header(&bytes).unwrap();
        assert_eq!(frames.collect::<Vec<_>>(), [Ok(Frame::Ping)]);
        let (_, frames) = parse_header(&bytes[..12]).unwrap();
        assert_eq!(frames.collect::<Vec<_>>(), [Err(Malformed)]);
        assert!(parse_header(&bytes[..7]).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            if let Some((_, frames)) = parse_header(&bytes) {
                prop_assert!(frames.count() <= bytes.len());
            }
        }
    }
}
