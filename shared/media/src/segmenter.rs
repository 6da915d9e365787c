//! Cutting access units into runs, segments and parts.
//!
//! [`Segmenter`] keeps what outlives a run: tracks, TARGETDURATION, timestamps' shift. [`run`] places the
//! access units of one run, [`target`] has the rules of length. Pure: what comes out is a list of
//! [`Cut`]s.
//!
//! One track is the clock: the video, or the first audio track without one. Durations are differences of
//! its decoding times, so they add up exactly; the other tracks' access units go where the clock is.
//! Every access unit after a run's first key frame comes out once, in order. Keeps invariants 5 (what is
//! held back is bounded by name) and 7 (bad timestamps end a run at worst).

mod run;
mod target;

use std::{collections::VecDeque, ops::RangeInclusive};

use bytes::Bytes;
use model::{MAX_SEGMENT_BYTES, MediaDuration, MediaTime};

use crate::{
    access_unit::{AccessUnit, MAX_TRACKS, SourceEvent, Track, TrackFormat},
    ts_mux,
};
use run::{Placed, Run};
use target::Target;

/// Longest access unit that is carried; a segment must hold two.
const MAX_UNIT_BYTES: usize = (MAX_SEGMENT_BYTES / 4) as usize;
/// Times that a clock can show: 400,000 years, with room for arithmetic around them.
const TIMES: RangeInclusive<MediaTime> = MediaTime(-(1 << 60))..=MediaTime(1 << 60);
/// Most bytes held back until the first segment's length has settled TARGETDURATION: 6 s of 40 Mbit/s.
const MAX_HELD_BYTES: usize = 32 << 20;
/// Most access units of sound held back before a run's first picture: 10 s of AAC.
const MAX_EARLY_UNITS: usize = 512;

/// How to cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmenterConfig {
    /// A segment ends at the key frame nearest to this length. Default 2 s.
    pub target_duration: MediaDuration,
    /// No part is longer, unless one access unit is. Default 333 ms.
    pub part_duration: MediaDuration,
    /// Highest TARGETDURATION in seconds that may be chosen. Default 6.
    pub cap_s: u32,
    /// TARGETDURATION of the live list that this source continues; None: choose one.
    pub list_target_s: Option<u32>,
    /// The longest distance between key frames, where a file's index tells it. Without it (and without
    /// `list_target_s`) the first segment is held back until it is whole.
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

/// What comes out, in this order: `(Run (Open Part+ Close)+)*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// A new run begins: a discontinuity, if it is not the first.
    Run(RunFormat),
    /// A segment begins.
    Open {
        /// Presentation time of its first sample: within a run, where the segment before ended, or later
        /// after a pause longer than a segment may be.
        media_start: MediaTime,
        /// Begins with a key frame, or the run has no video.
        independent: bool,
    },
    /// The next part of the open segment, whole: PAT, PMT, then access units.
    Part {
        bytes: Bytes,
        duration: MediaDuration,
        /// Begins with a key frame, or the run has no video.
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
    /// Access units before a run's first key frame, of an unknown track, empty, too large, or of
    /// another time.
    pub dropped: u64,
    /// Access units whose timestamps had to be changed.
    pub repaired: u64,
    /// Segments that begin where no key frame was.
    pub forced: u64,
}

/// Cuts one source after another for one live list; lives across runs.
#[derive(Debug)]
pub struct Segmenter {
    part_duration: MediaDuration,
    target: Target,
    counters: SegmenterCounters,
    /// The clock first.
    tracks: Vec<Track>,
    state: State,
    shift: Option<MediaDuration>,
    /// What is cut and not handed out yet: until TARGETDURATION is known, the run's beginning.
    made: Vec<Cut>,
}

#[derive(Debug)]
enum State {
    /// No picture to begin with yet; the sound that came meanwhile.
    Waiting(VecDeque<AccessUnit>),
    Running(Box<Run>),
}

impl Segmenter {
    pub fn new(config: SegmenterConfig) -> Self {
        Self {
            part_duration: config.part_duration,
            target: Target::new(&config),
            counters: SegmenterCounters::default(),
            tracks: Vec::new(),
            state: State::Waiting(VecDeque::new()),
            shift: None,
            made: Vec::new(),
        }
    }

    /// Takes the next event of the source and appends what it completes to `out`. Tracks that are the
    /// same as before change nothing, so that a file may go on where the last one ended.
    pub fn push(&mut self, event: SourceEvent, out: &mut Vec<Cut>) {
        match event {
            SourceEvent::Tracks(tracks) => {
                let tracks = carried(tracks);
                if tracks != self.tracks {
                    self.end_run();
                    self.tracks = tracks;
                }
            }
            SourceEvent::AccessUnit(unit) => {
                let known = self.tracks.iter().any(|t| t.id == unit.track);
                let sized = (1..=MAX_UNIT_BYTES).contains(&unit.data.len());
                let timed = TIMES.contains(&unit.dts) && TIMES.contains(&unit.pts);
                if known && sized && timed {
                    self.place(unit);
                } else {
                    self.counters.dropped += 1;
                }
            }
            SourceEvent::Discontinuity => self.end_run(),
            SourceEvent::Warning(_) => {}
        }
        self.hand_out(out);
    }

    /// The sources have ended: closes what is open.
    pub fn finish(&mut self, out: &mut Vec<Cut>) {
        self.end_run();
        self.hand_out(out);
    }

    /// TARGETDURATION in seconds of every run; the configured target's until the first segment is whole.
    pub fn target_duration_s(&self) -> u32 {
        self.target.seconds()
    }

    pub fn counters(&self) -> SegmenterCounters {
        self.counters
    }

    fn place(&mut self, unit: AccessUnit) {
        match &mut self.state {
            State::Running(run) => {
                let mut out = Out {
                    target: &mut self.target,
                    counters: &mut self.counters,
                    cuts: &mut self.made,
                };
                if let Placed::Elsewhere(unit) = run.push(unit, &mut out) {
                    self.end_run();
                    self.wait_or_begin(unit);
                }
            }
            State::Waiting(_) => self.wait_or_begin(unit),
        }
    }

    /// A run begins with a key frame of its clock; sound before it waits, pictures can't be decoded.
    fn wait_or_begin(&mut self, unit: AccessUnit) {
        let State::Waiting(early) = &mut self.state else {
            return;
        };
        let is_clock = self.tracks.first().is_some_and(|t| t.id == unit.track);
        if is_clock && unit.key {
            let early = std::mem::take(early);
            self.begin_run(unit, early);
        } else if is_clock {
            self.counters.dropped += 1;
        } else {
            early.push_back(unit);
            if early.len() > MAX_EARLY_UNITS {
                early.pop_front();
                self.counters.dropped += 1;
            }
        }
    }

    fn begin_run(&mut self, first: AccessUnit, early: VecDeque<AccessUnit>) {
        // One shift for all runs keeps a source's timestamps comparable across its discontinuities.
        let shift = self
            .shift
            .filter(|&shift| ts_mux::shift_for(first.dts + shift) == MediaDuration::ZERO)
            .unwrap_or_else(|| ts_mux::shift_for(first.dts));
        self.shift = Some(shift);
        self.made.push(Cut::Run(self.format()));
        let mut out = Out {
            target: &mut self.target,
            counters: &mut self.counters,
            cuts: &mut self.made,
        };
        let mut run = Run::begin(&self.tracks, shift, self.part_duration, first, &mut out);
        for unit in early {
            // Sound never leads elsewhere.
            let _ = run.push(unit, &mut out);
        }
        self.state = State::Running(Box::new(run));
    }

    fn end_run(&mut self) {
        match std::mem::replace(&mut self.state, State::Waiting(VecDeque::new())) {
            State::Running(run) => run.end(&mut Out {
                target: &mut self.target,
                counters: &mut self.counters,
                cuts: &mut self.made,
            }),
            State::Waiting(early) => self.counters.dropped += early.len() as u64,
        }
    }

    fn format(&self) -> RunFormat {
        let mut codecs: Vec<&str> = Vec::new();
        for track in &self.tracks {
            let codec = match &track.format {
                TrackFormat::H264 { info, .. } | TrackFormat::H265 { info, .. } => &info.codec,
                TrackFormat::Aac { info } => &info.codec,
            };
            if !codecs.contains(&codec.as_str()) {
                codecs.push(codec);
            }
        }
        RunFormat {
            codecs: codecs.join(","),
            resolution: self.tracks.first().and_then(|track| match &track.format {
                TrackFormat::H264 { info, .. } | TrackFormat::H265 { info, .. } => {
                    Some((info.width, info.height))
                }
                TrackFormat::Aac { .. } => None,
            }),
            target_duration_s: self.target.seconds(),
        }
    }

    /// Nothing leaves before TARGETDURATION is settled, since the run's head tells it.
    fn hand_out(&mut self, out: &mut Vec<Cut>) {
        if self.made.is_empty() {
            return;
        }
        if !self.target.is_settled() {
            let bytes = self.made.iter().map(|cut| match cut {
                Cut::Part { bytes, .. } => bytes.len(),
                _ => 0,
            });
            if bytes.sum::<usize>() <= MAX_HELD_BYTES {
                return;
            }
            self.target.settle_at_cap();
        }
        for cut in &mut self.made {
            if let Cut::Run(format) = cut {
                format.target_duration_s = self.target.seconds();
            }
        }
        out.append(&mut self.made);
    }
}

/// What a run works on beside itself.
struct Out<'a> {
    target: &'a mut Target,
    counters: &'a mut SegmenterCounters,
    cuts: &'a mut Vec<Cut>,
}

/// The first video track and all audio tracks, the clock first.
fn carried(tracks: Vec<Track>) -> Vec<Track> {
    let (video, audio): (Vec<Track>, Vec<Track>) = tracks.into_iter().partition(Track::is_video);
    video
        .into_iter()
        .take(1)
        .chain(audio)
        .take(MAX_TRACKS)
        .collect()
}
