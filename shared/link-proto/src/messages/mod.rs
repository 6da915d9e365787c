//! The messages of a session as values that can only hold sense, to and from protobuf.
//!
//! A channel keeps message boundaries, so each message is one protobuf value. Everything a peer sends is
//! checked here once: names, lengths, ranges, times. What a later version adds is skipped. What to say
//! and when is `replicate`'s business, not this module's.
//!
//! Keeps invariants 5 and 7: every list and text has a named limit, and no bytes lead to a panic.

mod check;
mod report;
mod to_edge;
mod to_hub;
mod wire;

use std::ops::RangeInclusive;

use bytes::Bytes;
use model::{
    DeviceName, HoleReason, MediaDuration, MediaTime, PartInfo, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};

pub use check::ProtocolError;
pub use report::{LineReport, MAX_REPORTED_STREAMS, Report, SentReport, StreamReport};

use crate::MAX_MESSAGE_BYTES;

/// What this build speaks; a peer of another version is understood as far as both know.
pub const PROTOCOL_VERSION: u32 = 1;
/// Most media bytes in one [`Chunk`]: one loss holds up no more than this.
pub const MAX_CHUNK_BYTES: usize = 16 * 1024;
/// Most ranges in one message (architecture: settled ranges go 256 a message, then a cursor).
pub const MAX_RANGES: usize = 256;
/// Most ranges that one [`ToEdge::Want`] asks for.
pub const MAX_WANTED: usize = 64;
/// Most segments in one announcement: with their runs they fit a message.
pub const MAX_ANNOUNCED: usize = 64;
/// Most segments restamped by one message: some 6 KB.
pub const MAX_RESTAMPED: usize = 256;
/// Most floors in a welcome: as many as a device may have streams.
pub const MAX_FLOORS: usize = 256;
/// Longest enrolment token in bytes.
pub const MAX_TOKEN_BYTES: usize = 64;
/// Longest reason in bytes; what is longer is cut when it is sent.
pub const MAX_REASON_BYTES: usize = 512;
/// Longest name of a program with its version in bytes.
pub const MAX_SOFTWARE_BYTES: usize = 128;
/// Longest CODECS attribute in bytes.
pub const MAX_CODECS_BYTES: usize = 256;
/// Longest time that a hub may put a segment off.
pub const MAX_WAIT_MS: u32 = 60_000;

/// From an edge to its hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHub {
    /// The first message of a known device.
    Hello(Hello),
    /// The first message of a device with a token.
    Enrol {
        hello: Hello,
        token: Bytes,
    },
    /// The identity is durable on the device: the token may be used up.
    EnrolConfirm,
    /// Compare this stream; answered by [`ToEdge::Settled`] or [`ToEdge::StreamRefused`].
    StreamOpen {
        stream: StreamName,
    },
    /// Asks for what is settled below `cursor`.
    SettledNext {
        stream: StreamName,
        cursor: SegmentNumber,
    },
    /// What the edge has and the hub lacks; at most [`MAX_ANNOUNCED`] of each.
    Announce {
        stream: StreamName,
        runs: Vec<RunInfo>,
        segments: Vec<SegmentInfo>,
    },
    SegmentStart(SegmentStart),
    Chunk(Chunk),
    /// All bytes of the segment were sent; this is what they must be.
    SegmentClosed {
        stream: StreamName,
        info: SegmentInfo,
    },
    /// No more of the segment comes on this channel: it goes on elsewhere, later. Answered by
    /// [`ToEdge::Resume`] or [`ToEdge::Again`].
    SegmentPaused {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// Numbers that will never come; at most [`MAX_RANGES`].
    Holes {
        stream: StreamName,
        ranges: Vec<RangeInclusive<SegmentNumber>>,
        reason: HoleReason,
    },
    /// Nothing follows `last`; None: the stream is empty.
    StreamEnd {
        stream: StreamName,
        last: Option<SegmentNumber>,
    },
    /// Corrected wall times of segments that the hub has, ascending; at least one, at most
    /// [`MAX_RESTAMPED`]. Answered by [`ToEdge::Restamped`].
    Restamp {
        stream: StreamName,
        segments: Vec<(SegmentNumber, WallTime)>,
    },
    /// Of the numbers of `within` the edge has these to ship and no others; ascending and disjoint, at most
    /// [`MAX_RANGES`].
    Holding {
        stream: StreamName,
        within: RangeInclusive<SegmentNumber>,
        ranges: Vec<RangeInclusive<SegmentNumber>>,
    },
    /// How the link stands, for whoever watches it.
    Report(Report),
}

/// From a hub to an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToEdge {
    Welcome {
        name: DeviceName,
        /// The hub's wall clock as it sent this.
        hub_time: WallTime,
        /// Per stream of this device the lowest number the hub has not seen used; at most [`MAX_FLOORS`].
        floors: Vec<(StreamName, SegmentNumber)>,
    },
    /// The device may not stay; the hub closes the session after this.
    Refused {
        reason: String,
    },
    /// The token is used up, the device's key is known.
    Enrolled,
    /// The hub has the first `length` bytes of this segment, with this hash.
    Resume {
        stream: StreamName,
        number: SegmentNumber,
        length: u64,
        hash: SegmentHash,
    },
    Settled(Settled),
    StreamRefused {
        stream: StreamName,
        reason: String,
    },
    /// Durable at the hub: the edge may let go of it (invariant 3).
    Stored {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// Not taken: send it anew after `wait_ms`, from its beginning.
    Again {
        stream: StreamName,
        number: SegmentNumber,
        wait_ms: u32,
    },
    /// The hub settled it without having it.
    Hole {
        stream: StreamName,
        number: SegmentNumber,
        reason: HoleReason,
    },
    /// The number is another segment's at the hub.
    Collides {
        stream: StreamName,
        number: SegmentNumber,
        /// The lowest number that the hub has not seen used.
        floor: SegmentNumber,
        /// Length, hash or run were compared and differ; else only the number is known to be used.
        compared: bool,
    },
    /// The end after `last` is committed.
    Ended {
        stream: StreamName,
        last: Option<SegmentNumber>,
    },
    /// The wall times of a [`ToHub::Restamp`] up to this number are committed.
    Restamped {
        stream: StreamName,
        last: SegmentNumber,
    },
    /// Somebody waits for these: they go ahead of the rest of the backfill, range by range; at most
    /// [`MAX_WANTED`]. What of them is not to be shipped is not meant.
    Want {
        stream: StreamName,
        ranges: Vec<RangeInclusive<SegmentNumber>>,
    },
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub version: u32,
    /// Program and version, for the hub's log.
    pub software: String,
    /// The device's wall clock as it sent this; may be far off.
    pub clock: WallTime,
}

/// The bytes of a segment follow on this channel from `offset` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStart {
    pub stream: StreamName,
    pub number: SegmentNumber,
    pub run: RunInfo,
    pub wall_start: WallTime,
    pub media_start: MediaTime,
    pub independent: bool,
    pub offset: u64,
}

/// Some bytes of a segment; at most [`MAX_CHUNK_BYTES`], at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub stream: StreamName,
    pub number: SegmentNumber,
    pub offset: u64,
    pub data: Bytes,
    /// With this chunk a part is complete.
    pub part_end: Option<PartEnd>,
}

/// What is known of a part once it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartEnd {
    pub duration: MediaDuration,
    pub independent: bool,
}

impl From<&PartInfo> for PartEnd {
    fn from(part: &PartInfo) -> Self {
        Self {
            duration: part.duration,
            independent: part.independent,
        }
    }
}

/// A page of what can no longer change at the hub, newest first; at most [`MAX_RANGES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub stream: StreamName,
    /// Descending and disjoint.
    pub ranges: Vec<RangeInclusive<SegmentNumber>>,
    /// The ranges hold all that is settled from here up to the cursor of the page before.
    pub cursor: SegmentNumber,
    /// Nothing is settled below the cursor.
    pub done: bool,
}

impl ToHub {
    /// As a message of a channel.
    pub fn encode(&self) -> Bytes {
        encode(&to_hub::to_wire(self))
    }

    /// From a message of a channel; None for a kind that a later version added.
    pub fn decode(message: Bytes) -> Result<Option<Self>, ProtocolError> {
        to_hub::from_wire(decode(message)?)
    }
}

impl ToEdge {
    /// As a message of a channel.
    pub fn encode(&self) -> Bytes {
        encode(&to_edge::to_wire(self))
    }

    /// From a message of a channel; None for a kind that a later version added.
    pub fn decode(message: Bytes) -> Result<Option<Self>, ProtocolError> {
        to_edge::from_wire(decode(message)?)
    }
}

/// A text as a reason for a peer: printable, and cut at [`MAX_REASON_BYTES`].
pub(crate) fn reason_text(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if short.len() + c.len_utf8() > MAX_REASON_BYTES {
            break;
        }
        short.push(c);
    }
    short
}

fn encode(message: &impl prost::Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M, ProtocolError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong {
            what: "message",
            length: message.len() as u64,
            limit: MAX_MESSAGE_BYTES as u64,
        });
    }
    M::decode(message).map_err(|_| ProtocolError::NotProtobuf)
}

#[cfg(test)]
mod tests;
