//! Cutting access units into runs, segments and parts.

use bytes::Bytes;
use model::{MediaDuration, MediaTime};

use crate::access_unit::SourceEvent;

/// How to cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmenterConfig {
    /// A segment ends at the first key frame at or after this much of it. Default 2 s.
    pub target_duration: MediaDuration,
    /// No part is longer, unless one access unit is. Default 333 ms.
    pub part_duration: MediaDuration,
    /// Highest TARGETDURATION in seconds that may be chosen. Default 6.
    pub cap_s: u32,
    /// TARGETDURATION of the live list that this source continues; None: choose one.
    pub list_target_s: Option<u32>,
    /// From a file's index: its longest segment (see [`longest_cut`]) or longest key-frame distance.
    pub expected_longest: Option<MediaDuration>,
}

impl Default for SegmenterConfig {
    fn default() -> Self {
        Self {
            target_duration: MediaDuration::from_millis(2_000),
            part_duration: MediaDuration::from_millis(333),
            cap_s: 6,
            list_target_s: None,
            expected_longest: None,
        }
    }
}

/// What comes out, in this order: `Run (Open Part+ Close)+`, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// A new run begins: a discontinuity, if it is not the first.
    Run(RunFormat),
    /// A segment begins.
    Open {
        /// Presentation time of its first sample.
        media_start: MediaTime,
        /// Begins with a key frame, or the run has no video.
        independent: bool,
    },
    /// The next part of the open segment, whole: PAT, PMT, then access units.
    Part {
        bytes: Bytes,
        duration: MediaDuration,
        independent: bool,
    },
    /// The open segment is whole; `duration` is the sum of its parts'.
    Close { duration: MediaDuration },
}

/// What holds for all segments of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFormat {
    /// CODECS of RFC 6381, comma-separated, video first.
    pub codecs: String,
    /// Width and height in pixels; None without video.
    pub resolution: Option<(u32, u32)>,
    /// TARGETDURATION: no segment of the run is longer once rounded.
    pub target_duration_s: u32,
}

/// What was not carried as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmenterCounters {
    /// Access units before a run's first key frame, or of no track that is known.
    pub dropped: u64,
    /// Access units whose timestamps had to be changed.
    pub repaired: u64,
    /// Segments cut where no key frame was.
    pub forced: u64,
}

/// Cuts one source. One instance per source and live list; it lives across runs.
#[derive(Debug)]
pub struct Segmenter {
    config: SegmenterConfig,
    counters: SegmenterCounters,
}

impl Segmenter {
    pub fn new(config: SegmenterConfig) -> Self {
        Self {
            config,
            counters: SegmenterCounters::default(),
        }
    }

    /// Takes the next event of the source and appends what it completes to `out`.
    pub fn push(&mut self, event: SourceEvent, out: &mut Vec<Cut>) {
        let _ = (event, out);
    }

    /// The source has ended: closes what is open. A new source may be pushed after it.
    pub fn finish(&mut self, out: &mut Vec<Cut>) {
        let _ = out;
    }

    /// TARGETDURATION in seconds of every run from here on; the configured one until the first is known.
    pub fn target_duration_s(&self) -> u32 {
        self.config.list_target_s.unwrap_or(2)
    }

    pub fn counters(&self) -> SegmenterCounters {
        self.counters
    }
}

/// The longest segment that the cut rule gives for a file's key-frame times (ascending) and its end.
pub fn longest_cut(
    key_times: &[MediaTime],
    end: MediaTime,
    target: MediaDuration,
) -> MediaDuration {
    let _ = (key_times, end);
    target
}
