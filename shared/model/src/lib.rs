//! The words of the house as types: names, numbers, times, hashes and what is known of a segment.
//!
//! Pure values only: no tokio, socket, file, clock or random source, and no policy. A value of one of
//! these types has been checked once, when it was made, and is trusted afterwards.

mod name;
mod range_set;
mod segment;
mod time;

pub use name::{DeviceName, MAX_NAME_BYTES, NameError, StreamName};
pub use range_set::RangeSet;
pub use segment::{
    HoleReason, MAX_SEGMENT_BYTES, PartInfo, RunInfo, SegmentHash, SegmentHasher, SegmentInfo,
    SegmentNumber,
};
pub use time::{
    BootId, BootTime, MediaDuration, MediaTime, TICKS_PER_SECOND, WallTime, WallTimeError,
};
