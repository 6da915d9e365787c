//! One run: places access units on the clock, and cuts where it says.
//!
//! A unit of the clock waits until the next one comes, for only then is its duration known: so no segment
//! grows over its limit, and a part is closed by the first unit behind its end. Other tracks' units wait
//! until the clock has passed them; the clock never waits for them.
//!
//! Where pictures stop and sound goes on, sound takes the clock over until pictures are back.

use std::collections::VecDeque;

use model::{MAX_SEGMENT_BYTES, MediaDuration, MediaTime, TICKS_PER_SECOND};

use super::{Cut, Out, target::KeyFrame};
use crate::{
    access_unit::{AccessUnit, Track, TrackFormat, TrackId},
    ts_mux::TsMux,
};

/// Longest pause within a run; what comes after it begins a new one.
const MAX_PAUSE: MediaDuration = MediaDuration(60 * TICKS_PER_SECOND);
/// The clock's steps back up to this are mended; beyond it a new run begins.
const MAX_STEP_BACK: MediaDuration = MediaDuration(TICKS_PER_SECOND);
/// A picture is shown at most so long after it was decoded.
const MAX_REORDER: MediaDuration = MediaDuration(10 * TICKS_PER_SECOND);
/// Sound that is this far ahead of the pictures takes the clock over; so far behind, it is dropped.
const MAX_APART: MediaDuration = MediaDuration(10 * TICKS_PER_SECOND);
/// Most units that wait for the clock: [`MAX_APART`] of seven tracks of AAC at 48 kHz.
const MAX_WAITING_UNITS: usize = 4_096;
/// Most bytes that wait for the clock.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// Sound up to this before a run's first picture belongs to it: an encoder's priming.
const LEADING_SOUND: MediaDuration = MediaDuration::from_millis(100);
/// Sound's steps back up to this are mended, beyond it what comes again is dropped.
const MAX_OVERLAP: MediaDuration = MediaDuration::from_millis(100);
/// A part is closed early at this size: 333 ms of 200 Mbit/s.
const MAX_PART_BYTES: usize = 8 << 20;
/// What the last unit of a run lasts if there is nothing to tell by: a picture of 25 a second.
const USUAL_PICTURE: MediaDuration = MediaDuration::from_millis(40);
/// Rates like 30 a second don't fit whole milliseconds: a part may be this much longer.
const PART_TOLERANCE: MediaDuration = MediaDuration::from_millis(1);

/// A run with its open segment.
#[derive(Debug)]
pub(super) struct Run {
    mux: TsMux,
    clock: TrackId,
    has_video: bool,
    part_duration: MediaDuration,
    began: MediaTime,
    /// From decoding to presentation at the first key frame. A segment's presentation begins so much
    /// behind its decoding, even where pictures that are shown before its key frame come behind it.
    reorder: MediaDuration,
    /// The clock's newest unit, whose duration isn't known yet.
    pending: AccessUnit,
    /// The duration of the unit before it.
    usual: MediaDuration,
    /// Other tracks' units that the clock has not passed, ascending.
    waiting: VecDeque<AccessUnit>,
    waiting_bytes: usize,
    /// The newest decoding time of each track.
    newest: Vec<(TrackId, MediaTime)>,
    last_key: MediaTime,
    longest_key_distance: MediaDuration,
    segment: Segment,
}

#[derive(Debug)]
struct Segment {
    start: MediaTime,
    part_start: MediaTime,
    part_independent: bool,
    /// Of its finished parts.
    bytes: usize,
}

/// Whether a unit belongs to this run.
pub(super) enum Placed {
    Here,
    /// The timeline broke before it: the run ends, and it may begin the next.
    Elsewhere(AccessUnit),
}

impl Run {
    /// `tracks`: the clock first. `first`: a key frame of it.
    pub(super) fn begin(
        tracks: &[Track],
        shift: MediaDuration,
        part_duration: MediaDuration,
        mut first: AccessUnit,
        out: &mut Out<'_>,
    ) -> Self {
        mend_presentation(&mut first, out);
        let mut run = Self {
            mux: TsMux::new(tracks, shift),
            clock: first.track,
            has_video: tracks.first().is_some_and(Track::is_video),
            part_duration: part_duration + PART_TOLERANCE,
            began: first.dts,
            reorder: first.pts - first.dts,
            usual: tracks.first().map_or(USUAL_PICTURE, usual_duration),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            newest: vec![(first.track, first.dts)],
            last_key: first.dts,
            longest_key_distance: out.target.expected_distance(),
            segment: Segment::at(first.dts),
            pending: first,
        };
        run.open(run.began, true, out);
        run
    }

    pub(super) fn push(&mut self, unit: AccessUnit, out: &mut Out<'_>) -> Placed {
        if unit.track == self.clock {
            self.push_clock(unit, out)
        } else {
            self.push_other(unit, out);
            Placed::Here
        }
    }

    /// Places what waits and closes the segment.
    pub(super) fn end(mut self, out: &mut Out<'_>) {
        let last = self.waiting.back().map_or(self.pending.dts, |u| u.dts);
        if last - self.pending.dts > out.target.limit() {
            self.hand_over_clock(out);
        }
        let end = self.pending.dts + self.usual;
        self.place_pending(end, out);
        self.release(MediaTime(i64::MAX));
        self.close(end, out);
    }

    fn push_clock(&mut self, mut unit: AccessUnit, out: &mut Out<'_>) -> Placed {
        if self.sound_is_clock() && unit.dts <= self.pending.dts {
            // Pictures are coming back and have not caught up with the sound yet.
            if self.mend_order(&mut unit, out) {
                mend_presentation(&mut unit, out);
                self.write(&unit);
            }
            return Placed::Here;
        }
        let step = unit.dts - self.pending.dts;
        let too_late = step > MAX_PAUSE || (unit.key && step > out.target.limit());
        if too_late || step + MAX_STEP_BACK < MediaDuration::ZERO {
            return Placed::Elsewhere(unit);
        }
        if step <= MediaDuration::ZERO {
            unit.dts = self.pending.dts + MediaDuration(1);
            unit.pts = unit.pts.max(unit.dts);
            out.counters.repaired += 1;
        }
        mend_presentation(&mut unit, out);
        self.note(unit.track, unit.dts);
        self.advance(unit, out);
        Placed::Here
    }

    fn push_other(&mut self, mut unit: AccessUnit, out: &mut Out<'_>) {
        let leads = unit.dts + LEADING_SOUND < self.began;
        let ahead = unit.dts - self.pending.dts;
        let far = ahead > MAX_PAUSE || ahead + MAX_APART < MediaDuration::ZERO;
        if leads || far {
            out.counters.dropped += 1;
            return;
        }
        if !self.mend_order(&mut unit, out) {
            return;
        }
        if self.sound_is_clock() && unit.dts > self.pending.dts {
            self.advance(unit, out);
            return;
        }
        let place = self.waiting.partition_point(|w| w.dts <= unit.dts);
        self.waiting_bytes += unit.data.len();
        self.waiting.insert(place, unit);
        if ahead > MAX_APART
            || self.waiting.len() > MAX_WAITING_UNITS
            || self.waiting_bytes > MAX_WAITING_BYTES
        {
            self.hand_over_clock(out);
        }
    }

    /// Whether sound has the clock though there is a video track.
    fn sound_is_clock(&self) -> bool {
        self.pending.track != self.clock
    }

    /// Lets the sound that waits drive on, until pictures are back.
    fn hand_over_clock(&mut self, out: &mut Out<'_>) {
        loop {
            let passed = self.waiting.partition_point(|w| w.dts <= self.pending.dts);
            let Some(unit) = self.waiting.remove(passed) else {
                return;
            };
            self.waiting_bytes -= unit.data.len();
            self.advance(unit, out);
        }
    }

    /// The clock's next unit has come: places the one before it and decides what ends here.
    fn advance(&mut self, next: AccessUnit, out: &mut Out<'_>) {
        let now = next.dts;
        let step = now - self.pending.dts;
        self.place_pending(now, out);
        self.release(now);
        let is_key = next.key && next.track == self.clock;
        if step > out.target.limit() {
            // A pause longer than a segment may be: the list leaves out what nothing can be said of.
            self.close(self.segment.start + out.target.limit(), out);
            out.counters.forced += 1;
            self.open(now, false, out);
        } else if is_key && self.ends_before_key(now, out) {
            self.close(now, out);
            self.open(now, true, out);
        } else if now + step - self.segment.part_start > self.part_duration {
            self.finish_part(now, out);
        }
        self.usual = step.min(out.target.limit());
        self.pending = next;
        out.target.at_least(now - self.segment.start);
    }

    fn ends_before_key(&mut self, now: MediaTime, out: &Out<'_>) -> bool {
        let distance = now - self.last_key;
        self.last_key = now;
        let key = KeyFrame {
            elapsed: now - self.segment.start,
            distance,
            longest_distance: self.longest_key_distance,
        };
        if distance <= out.target.limit() {
            self.longest_key_distance = self.longest_key_distance.max(distance);
        }
        out.target.cuts_before(key)
    }

    /// Writes the unit whose duration is known now, in a new part or segment if it would make the open one
    /// too long or too large.
    fn place_pending(&mut self, end: MediaTime, out: &mut Out<'_>) {
        let at = self.pending.dts;
        let waiting = self.waiting_bytes + self.waiting.len() * 256;
        let bytes = self.mux.part_bytes() + muxed_bytes(&self.pending) + waiting;
        let too_long = end - self.segment.start > out.target.limit();
        let too_large = (self.segment.bytes + bytes) as u64 > MAX_SEGMENT_BYTES;
        if at > self.segment.start && (too_long || too_large) {
            let independent = self.pending.key && !self.sound_is_clock();
            self.close(at, out);
            out.counters.forced += u64::from(!independent);
            self.open(at, independent, out);
        } else if at > self.segment.part_start
            && (end - self.segment.part_start > self.part_duration || bytes > MAX_PART_BYTES)
        {
            self.finish_part(at, out);
        }
        let pending = std::mem::replace(&mut self.pending.data, bytes::Bytes::new());
        self.write(&AccessUnit {
            data: pending,
            ..self.pending
        });
    }

    /// Writes what the clock has passed.
    fn release(&mut self, now: MediaTime) {
        while let Some(unit) = self.waiting.pop_front_if(|unit| unit.dts < now) {
            self.waiting_bytes -= unit.data.len();
            self.write(&unit);
        }
    }

    fn write(&mut self, unit: &AccessUnit) {
        if self.mux.part_bytes() == 0 {
            self.segment.part_independent =
                !self.has_video || (unit.track == self.clock && unit.key);
        }
        self.mux.write(unit);
    }

    fn open(&mut self, start: MediaTime, independent: bool, out: &mut Out<'_>) {
        self.segment = Segment::at(start);
        out.cuts.push(Cut::Open {
            media_start: start + self.reorder,
            independent,
        });
    }

    fn close(&mut self, at: MediaTime, out: &mut Out<'_>) {
        self.finish_part(at, out);
        let duration = at - self.segment.start;
        out.target.first_segment(duration);
        out.cuts.push(Cut::Close { duration });
    }

    fn finish_part(&mut self, at: MediaTime, out: &mut Out<'_>) {
        let bytes = self.mux.finish_part();
        if bytes.is_empty() {
            return;
        }
        self.segment.bytes += bytes.len();
        out.cuts.push(Cut::Part {
            bytes,
            duration: at - self.segment.part_start,
            independent: self.segment.part_independent,
        });
        self.segment.part_start = at;
    }

    /// Decoding times of a track ascend: mends small steps back. False: what came lies far back, came
    /// before, and is dropped.
    fn mend_order(&mut self, unit: &mut AccessUnit, out: &mut Out<'_>) -> bool {
        let newest = self.newest.iter().find(|(track, _)| *track == unit.track);
        if let Some(&(_, newest)) = newest
            && unit.dts <= newest
        {
            if newest - unit.dts > MAX_OVERLAP {
                out.counters.dropped += 1;
                return false;
            }
            unit.dts = newest + MediaDuration(1);
            unit.pts = unit.pts.max(unit.dts);
            out.counters.repaired += 1;
        }
        self.note(unit.track, unit.dts);
        true
    }

    fn note(&mut self, track: TrackId, dts: MediaTime) {
        match self.newest.iter_mut().find(|(known, _)| *known == track) {
            Some((_, newest)) => *newest = dts,
            None => self.newest.push((track, dts)),
        }
    }
}

impl Segment {
    fn at(start: MediaTime) -> Self {
        Self {
            start,
            part_start: start,
            part_independent: false,
            bytes: 0,
        }
    }
}

fn mend_presentation(unit: &mut AccessUnit, out: &mut Out<'_>) {
    let reorder = unit.pts - unit.dts;
    if reorder < MediaDuration::ZERO || reorder > MAX_REORDER {
        unit.pts = unit.dts;
        out.counters.repaired += 1;
    }
}

fn usual_duration(track: &Track) -> MediaDuration {
    match &track.format {
        TrackFormat::Aac { info } => {
            MediaDuration(1_024 * TICKS_PER_SECOND / i64::from(info.sample_rate.max(1)))
        }
        TrackFormat::H264 { .. } | TrackFormat::H265 { .. } => USUAL_PICTURE,
    }
}

/// An upper bound of what a unit becomes in packets.
fn muxed_bytes(unit: &AccessUnit) -> usize {
    unit.data.len() + unit.data.len() / 32 + 4_096
}
