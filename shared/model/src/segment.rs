//! What is known of a segment, wherever its bytes are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{MediaDuration, MediaTime, WallTime};

/// Longest segment in bytes that either end takes: 6 s of 340 Mbit/s, far above any camera.
pub const MAX_SEGMENT_BYTES: u64 = 256 << 20;

/// A segment's number within its stream: never repeats, never goes back (invariant 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The number that follows; the last one has no follower and stays.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl FromStr for SegmentNumber {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// BLAKE3 of a segment's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentHash(pub [u8; 32]);

impl SegmentHash {
    /// Hash of bytes already in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// For bytes that come in pieces.
    pub fn hasher() -> SegmentHasher {
        SegmentHasher::default()
    }

    /// From the 32 bytes of a row or message; None for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// BLAKE3 of bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct SegmentHasher(blake3::Hasher);

impl SegmentHasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all so far; more may follow.
    pub fn hash(&self) -> SegmentHash {
        SegmentHash(*self.0.finalize().as_bytes())
    }
}

impl fmt::Display for SegmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SegmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A closed segment: the same at both ends, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    pub number: SegmentNumber,
    /// The number of the first segment of its run; names the run.
    pub run: SegmentNumber,
    /// Wall time of its first sample.
    pub wall_start: WallTime,
    /// Presentation time of its first sample, on the run's unwrapped 90 kHz timeline.
    pub media_start: MediaTime,
    pub duration: MediaDuration,
    /// Length in bytes; at most [`MAX_SEGMENT_BYTES`].
    pub bytes: u64,
    pub hash: SegmentHash,
    /// Begins with a key frame (or has no video): decodable without its predecessor.
    pub independent: bool,
}

/// One part of a segment: a byte range that begins with PAT and PMT at an access unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartInfo {
    /// Offset of its first byte in the segment.
    pub offset: u64,
    pub bytes: u64,
    pub duration: MediaDuration,
    /// Begins with a key frame (or has no video).
    pub independent: bool,
}

/// What holds for all segments of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The number of its first segment.
    pub run: SegmentNumber,
    /// CODECS of RFC 6381, comma-separated, video first: `avc1.64001f,mp4a.40.2`.
    pub codecs: String,
    /// Width and height in pixels; None without video.
    pub resolution: Option<(u32, u32)>,
    /// TARGETDURATION in seconds that the edge cuts to: no segment of the run is longer once rounded.
    pub target_duration_s: u32,
}

/// Why a time range of a stream has no segment here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoleReason {
    /// The camera or source gave nothing.
    CameraDown,
    /// The edge has it and has not shipped it yet.
    OnEdge,
    /// The edge's disk limit forced it out before it was stored here.
    Evicted,
    /// Retention removed it.
    Expired,
    /// An operator removed it.
    Deleted,
    /// Its bytes failed their hash twice.
    Corrupt,
    /// The hub did not take it.
    Refused,
    /// The edge announced it and has it no more: its disk was wiped or lost.
    Lost,
    /// The number was another segment's already: its bytes go under a later one.
    Renumbered,
}

impl HoleReason {
    /// Every reason, in the order of their stable codes.
    pub const ALL: [Self; 9] = [
        Self::CameraDown,
        Self::OnEdge,
        Self::Evicted,
        Self::Expired,
        Self::Deleted,
        Self::Corrupt,
        Self::Refused,
        Self::Lost,
        Self::Renumbered,
    ];

    /// Stable code for the catalog and the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::CameraDown => 1,
            Self::OnEdge => 2,
            Self::Evicted => 3,
            Self::Expired => 4,
            Self::Deleted => 5,
            Self::Corrupt => 6,
            Self::Refused => 7,
            Self::Lost => 8,
            Self::Renumbered => 9,
        }
    }

    /// The reason of a code; None for one that a newer version wrote.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.code() == code)
    }

    /// The word, as in logs, API and dashboards.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CameraDown => "camera_down",
            Self::OnEdge => "on_edge",
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Renumbered => "renumbered",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_codes_are_stable_and_distinct() {
        for (i, reason) in HoleReason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason.code()), i + 1);
            assert_eq!(HoleReason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(HoleReason::from_code(0), None);
        assert_eq!(HoleReason::from_code(10), None);
    }
}
