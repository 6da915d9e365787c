//! What the sender asks of the shell that holds the store, and what it is told. Values only.

use std::ops::{Range, RangeInclusive};

use model::{
    HoleReason, MediaTime, PartInfo, RangeSet, RunInfo, SegmentInfo, SegmentNumber, StreamName,
    WallTime,
};

use super::MAX_UNACKNOWLEDGED;

/// Segments a look-up lists: all unacknowledged ones and as many to come.
pub const LOOK_LIMIT: usize = 2 * MAX_UNACKNOWLEDGED;
/// Newest segments that a look-up lists beside the oldest: what may be live still.
pub const NEWEST_LIMIT: usize = 16;
/// Most ranges in which a look-up searches for what goes ahead of its turn: one query each.
pub const MAX_AHEAD_RANGES: usize = 16;
/// Most segments that it lists of them: enough to be sent until the next.
pub const AHEAD_LIMIT: usize = 16;
/// Bytes read at one go: enough to make the reading cheap.
pub const READ_BYTES: u64 = 256 * 1024;

/// Work for the shell that holds the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Look at a stream; answer with [`Sender::handle_looked`](super::Sender::handle_looked). `ahead`: where to look
    /// for what goes ahead of its turn, at most [`MAX_AHEAD_RANGES`], of any size.
    Look {
        ticket: u64,
        stream: StreamName,
        ahead: Vec<RangeInclusive<SegmentNumber>>,
    },
    /// List closed segments that the hub has not settled from `from` on, at most
    /// [`MAX_ANNOUNCED`](crate::messages::MAX_ANNOUNCED); answer
    /// with [`Sender::handle_listed`](super::Sender::handle_listed).
    List {
        ticket: u64,
        stream: StreamName,
        from: SegmentNumber,
    },
    /// Hash the first `length` bytes of a segment; answer with [`Sender::handle_hashed`](super::Sender::handle_hashed).
    Hash {
        ticket: u64,
        stream: StreamName,
        number: SegmentNumber,
        length: u64,
    },
    /// Read bytes of a segment, at most [`READ_BYTES`]; answer with [`Sender::handle_read`](super::Sender::handle_read).
    Read {
        ticket: u64,
        stream: StreamName,
        number: SegmentNumber,
        range: Range<u64>,
    },
    /// List what is to be shipped from `from` on, open or closed; answer with
    /// [`Sender::handle_held`](super::Sender::handle_held).
    ListHeld {
        ticket: u64,
        stream: StreamName,
        from: SegmentNumber,
    },
    /// These numbers are settled at the hub, and no others: what was stored there and is not among them is to
    /// be shipped again. What was not confirmed as stored is not so by being among them.
    SetSettled {
        stream: StreamName,
        settled: RangeSet,
    },
    /// This segment is at the hub, byte for byte.
    MarkStored {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// The hub has settled this number and will not take the segment under it.
    GiveUp {
        stream: StreamName,
        number: SegmentNumber,
        reason: HoleReason,
    },
    /// The number is another segment's at the hub: this one and all unconfirmed ones behind it are to get
    /// numbers from `floor` on, in their order. Nothing of them is on its way. The next look tells how it goes.
    Renumber {
        stream: StreamName,
        number: SegmentNumber,
        floor: SegmentNumber,
    },
    /// A closed segment that could not be read again and again: it is a hole from now on, unless the whole disk
    /// is at fault.
    Bury {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// The hub has confirmed the end that the store was told.
    MarkEnded { stream: StreamName },
    /// The hub knows these corrected wall times.
    MarkRestamped {
        stream: StreamName,
        segments: Vec<(SegmentNumber, WallTime)>,
    },
}

/// What a [`Command::Look`] found.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// The segment being written, looked up before the page, so that one that closes in between is not
    /// missed.
    pub open: Option<OpenFacts>,
    /// The oldest closed segments that the hub has not settled, ascending, at most [`LOOK_LIMIT`].
    pub page: Vec<SegmentInfo>,
    /// A source that can't wait writes the stream now: what is newest goes before the rest.
    pub live: bool,
    /// The newest closed segments that the hub has not settled, ascending, at most [`NEWEST_LIMIT`]; some may be
    /// in the page too.
    pub newest: Vec<SegmentInfo>,
    /// Closed segments that the hub has not settled within the ranges of [`Command::Look`], range by range and
    /// ascending in each, at most [`AHEAD_LIMIT`]; some may be in the others too.
    pub ahead: Vec<SegmentInfo>,
    /// The runs of all of them.
    pub runs: Vec<RunInfo>,
    /// Numbers that will never come.
    pub holes: Vec<(RangeInclusive<SegmentNumber>, HoleReason)>,
    /// The stream was told to end, after this segment (None: it is empty).
    pub ending: Option<Option<SegmentNumber>>,
    /// Segments at the hub whose wall time was corrected since it got them, ascending, at most
    /// [`MAX_RESTAMPED`](crate::messages::MAX_RESTAMPED).
    pub restamped: Vec<(SegmentNumber, WallTime)>,
    /// Segments from this number on are being renumbered and not all have their new numbers: nothing can be
    /// shipped before another look.
    pub renumbering: Option<SegmentNumber>,
}

/// What a [`Command::ListHeld`] found.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Ascending, at most [`MAX_RANGES`](crate::messages::MAX_RANGES).
    pub ranges: Vec<RangeInclusive<SegmentNumber>>,
    /// Where the next page begins; None: there is nothing behind these.
    pub next: Option<SegmentNumber>,
}

/// A segment being written, as far as its parts are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFacts {
    pub number: SegmentNumber,
    pub run: SegmentNumber,
    pub wall_start: WallTime,
    pub media_start: MediaTime,
    pub independent: bool,
    /// Contiguous from offset nought.
    pub parts: Vec<PartInfo>,
}
