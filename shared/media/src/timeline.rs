//! From the 33-bit clock of MPEG-TS to 64-bit media time, one timeline for all tracks of a source.
//!
//! Wraps are undone. A jump that is no wrap is a discontinuity, announced once, when every track has
//! jumped: what the other tracks still bring of the old time goes before it. Pure bookkeeping; what the
//! items are is the caller's business.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::{MediaDuration, MediaTime, TICKS_PER_SECOND};

use crate::access_unit::TrackId;

/// The clock's period, 26.5 hours.
const WRAP: i64 = 1 << 33;

/// A step forward beyond this is a jump. Cameras pause for seconds; clocks that are set go by more.
pub const MAX_STEP_FORWARD: MediaDuration = MediaDuration(10 * TICKS_PER_SECOND);

/// A track's step back beyond this is a jump; one within it is clumsy rounding, or pictures in another
/// order than they are shown in from a source that leaves the decoding times out.
pub const MAX_STEP_BACK: MediaDuration = MediaDuration(TICKS_PER_SECOND / 4);

/// A picture is shown at most so long after it was decoded; more means that its times are nonsense.
pub const MAX_REORDER: MediaDuration = MediaDuration(10 * TICKS_PER_SECOND);

/// How much is held while waiting for the other tracks to jump too: a second of a track, and some
/// hundred pictures and sound packets.
const MAX_HELD_TIME: MediaDuration = MediaDuration(TICKS_PER_SECOND);
const MAX_HELD_ITEMS: usize = 512;

/// Timestamps as a PES header carries them, 33 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub pts: u64,
    /// None where the source leaves it out: equal to `pts`.
    pub dts: Option<u64>,
}

/// Times on the 64-bit timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub pts: MediaTime,
    /// At or before `pts`, by [`MAX_REORDER`] at most.
    pub dts: MediaTime,
}

/// What comes out of the timeline, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed<T> {
    /// `times` is None for an item that came without.
    Item {
        track: TrackId,
        times: Option<Times>,
        item: T,
    },
    /// What follows is on another time base.
    Discontinuity,
    /// A track's times jumped and came back: what it held meanwhile has no place.
    Dropped { track: TrackId, item: T },
}

/// A source's timeline.
#[derive(Debug)]
pub struct Timeline<T> {
    current: Option<Epoch>,
    jump: Option<Jump<T>>,
}

/// A stretch on one time base.
#[derive(Debug, Default)]
struct Epoch {
    /// The newest decoding time of any track.
    newest: i64,
    /// Each track's last.
    last: BTreeMap<TrackId, i64>,
}

/// Some tracks have left the current epoch.
#[derive(Debug)]
struct Jump<T> {
    to: Epoch,
    /// The first decoding time in `to`.
    start: i64,
    jumped: BTreeSet<TrackId>,
    /// At most [`MAX_HELD_ITEMS`].
    held: VecDeque<(TrackId, Option<Times>, T)>,
}

impl<T> Default for Timeline<T> {
    fn default() -> Self {
        Self {
            current: None,
            jump: None,
        }
    }
}

impl<T> Timeline<T> {
    /// Places the next item of a track; an item without times goes where its track is.
    pub fn push(
        &mut self,
        track: TrackId,
        stamp: Option<Stamp>,
        item: T,
        out: &mut Vec<Placed<T>>,
    ) {
        let Some(stamp) = stamp else {
            match &mut self.jump {
                Some(jump) if jump.jumped.contains(&track) => {
                    jump.held.push_back((track, None, item));
                    self.release_if_due(out);
                }
                _ => out.push(Placed::Item {
                    track,
                    times: None,
                    item,
                }),
            }
            return;
        };
        if let Some(jump) = &mut self.jump {
            let jumped = jump.jumped.contains(&track);
            let in_old = self.current.as_ref().and_then(|e| e.fit(track, stamp));
            let in_new = jump.to.fit(track, stamp);
            match (in_old, in_new) {
                // A track that has jumped is looked for in the new epoch first, others in the old.
                (in_old, Some(times)) if jumped || in_old.is_none() => {
                    jump.take(track, times, item);
                    self.release_if_due(out);
                    return;
                }
                (Some(_), _) if jumped => self.forget_jump(out),
                (Some(_), _) => {}
                (None, _) => self.release(out),
            }
        }
        self.place(track, stamp, item, out);
    }

    /// Places an item while no jump is under way, or while its track has not jumped.
    fn place(&mut self, track: TrackId, stamp: Stamp, item: T, out: &mut Vec<Placed<T>>) {
        let epoch = self
            .current
            .get_or_insert_with(|| Epoch::starting_at(stamp));
        match epoch.fit(track, stamp) {
            Some(times) => {
                epoch.note(track, times);
                out.push(Placed::Item {
                    track,
                    times: Some(times),
                    item,
                });
            }
            None => {
                let to = Epoch::starting_at(stamp);
                let start = to.newest;
                let times = to.times(stamp);
                let jump = self.jump.insert(Jump {
                    to,
                    start,
                    jumped: BTreeSet::new(),
                    held: VecDeque::new(),
                });
                jump.take(track, times, item);
                self.release_if_due(out);
            }
        }
    }

    /// The tracks may be others from here on, or the source ends: what is held comes out, and only the
    /// tracks that stay are waited for.
    pub fn flush(&mut self, stays: impl Fn(TrackId) -> bool, out: &mut Vec<Placed<T>>) {
        self.release(out);
        if let Some(epoch) = &mut self.current {
            epoch.last.retain(|&track, _| stays(track));
        }
    }

    fn release_if_due(&mut self, out: &mut Vec<Placed<T>>) {
        let Some(jump) = &self.jump else { return };
        let all_jumped = self
            .current
            .as_ref()
            .is_none_or(|e| e.last.keys().all(|track| jump.jumped.contains(track)));
        let full = jump.held.len() >= MAX_HELD_ITEMS
            || jump.to.newest.saturating_sub(jump.start) > MAX_HELD_TIME.0;
        if all_jumped || full {
            self.release(out);
        }
    }

    fn release(&mut self, out: &mut Vec<Placed<T>>) {
        let Some(jump) = self.jump.take() else { return };
        out.push(Placed::Discontinuity);
        out.extend(
            jump.held
                .into_iter()
                .map(|(track, times, item)| Placed::Item { track, times, item }),
        );
        self.current = Some(jump.to);
    }

    fn forget_jump(&mut self, out: &mut Vec<Placed<T>>) {
        let held = self.jump.take().into_iter().flat_map(|jump| jump.held);
        out.extend(held.map(|(track, _, item)| Placed::Dropped { track, item }));
    }
}

impl<T> Jump<T> {
    fn take(&mut self, track: TrackId, times: Times, item: T) {
        self.to.note(track, times);
        self.jumped.insert(track);
        self.held.push_back((track, Some(times), item));
    }
}

impl Epoch {
    fn starting_at(stamp: Stamp) -> Self {
        Self {
            newest: (decoding(stamp) % WRAP as u64) as i64,
            last: BTreeMap::new(),
        }
    }

    /// The times of a stamp if it can follow on this time base.
    fn fit(&self, track: TrackId, stamp: Stamp) -> Option<Times> {
        let times = self.times(stamp);
        let earliest = match self.last.get(&track) {
            Some(last) => last - MAX_STEP_BACK.0,
            None => self.newest - MAX_STEP_FORWARD.0,
        };
        let latest = self.newest + MAX_STEP_FORWARD.0;
        (earliest..=latest).contains(&times.dts.0).then_some(times)
    }

    /// The stamp's times nearest to the newest.
    fn times(&self, stamp: Stamp) -> Times {
        let dts = MediaTime(self.newest + difference(decoding(stamp), self.newest));
        let pts = dts + MediaDuration(difference(stamp.pts, dts.0));
        let sane = dts <= pts && pts - dts <= MAX_REORDER;
        Times {
            pts,
            dts: if sane { dts } else { pts },
        }
    }

    fn note(&mut self, track: TrackId, times: Times) {
        self.newest = self.newest.max(times.dts.0);
        self.last.insert(track, times.dts.0);
    }
}

/// The decoding time, unless it makes no sense beside the presentation time, which then stands for it.
fn decoding(stamp: Stamp) -> u64 {
    let dts = stamp.dts.unwrap_or(stamp.pts);
    let ahead = difference(stamp.pts, dts as i64);
    if (0..=MAX_REORDER.0).contains(&ahead) {
        dts
    } else {
        stamp.pts
    }
}

/// `clock` minus `time` by the shorter way round, in -2^32..2^32.
fn difference(clock: u64, time: i64) -> i64 {
    let ahead = ((clock % WRAP as u64) as i64 - time).rem_euclid(WRAP);
    if ahead < WRAP / 2 {
        ahead
    } else {
        ahead - WRAP
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V: TrackId = TrackId(0);
    const A: TrackId = TrackId(1);
    const S: u64 = 90_000;

    /// Pushes (track, dts) with pts = dts and shows what comes out.
    fn run(steps: &[(TrackId, u64)]) -> String {
        let (mut timeline, mut out) = (Timeline::default(), Vec::new());
        for (i, &(track, pts)) in steps.iter().enumerate() {
            timeline.push(track, Some(Stamp { pts, dts: None }), i, &mut out);
        }
        timeline.flush(|_| true, &mut out);
        show(&out)
    }

    fn show(out: &[Placed<usize>]) -> String {
        let words: Vec<String> = out
            .iter()
            .map(|placed| match placed {
                Placed::Item {
                    track,
                    times: Some(times),
                    item,
                } => format!(
                    "{}{item}@{}",
                    if *track == V { 'v' } else { 'a' },
                    times.dts.0
                ),
                Placed::Item { item, .. } => format!("?{item}"),
                Placed::Discontinuity => "|".to_owned(),
                Placed::Dropped { item, .. } => format!("-{item}"),
            })
            .collect();
        words.join(" ")
    }

    #[test]
    fn undoes_the_wrap() {
        let last = (1u64 << 33) - 1;
        assert_eq!(
            run(&[(V, last - 10), (A, 5), (V, last), (V, 20), (A, last - 3)]),
            "v0@8589934581 a1@8589934597 v2@8589934591 v3@8589934612 a4@8589934588"
        );
    }

    #[test]
    fn counts_on_over_many_wraps() {
        let (mut timeline, mut out) = (Timeline::default(), Vec::new());
        let mut time = 0u64;
        while time < 5 << 33 {
            let stamp = Stamp {
                pts: time % (1 << 33),
                dts: None,
            };
            timeline.push(V, Some(stamp), time, &mut out);
            time += 9 * S;
        }
        for placed in out {
            let Placed::Item {
                times: Some(times),
                item,
                ..
            } = placed
            else {
                panic!("{placed:?}");
            };
            assert_eq!(times.dts.0 as u64, item);
        }
    }

    #[test]
    fn a_jump_of_all_tracks_is_one_discontinuity_behind_what_is_left_of_the_old_time() {
        assert_eq!(
            run(&[
                (V, S),
                (A, S),
                (V, 1000 * S),
                (A, S + 1),
                (A, S + 2),
                (A, 1000 * S),
                (V, 1000 * S + 9)
            ]),
            "v0@90000 a1@90000 a3@90001 a4@90002 | v2@90000000 a5@90000000 v6@90000009"
        );
        // Backwards too, also by less than the step forward that is allowed.
        assert_eq!(
            run(&[(V, 9 * S), (V, 2 * S), (V, 2 * S + 1)]),
            "v0@810000 | v1@180000 v2@180001"
        );
    }

    #[test]
    fn one_nonsense_stamp_is_dropped_alone() {
        assert_eq!(
            run(&[(V, S), (A, S), (V, 5000 * S), (A, S + 1), (V, S + 9)]),
            "v0@90000 a1@90000 a3@90001 -2 v4@90009"
        );
    }

    #[test]
    fn a_track_that_is_gone_holds_nothing_up_for_long() {
        assert_eq!(
            run(&[
                (V, S),
                (A, S),
                (V, 100 * S),
                (V, 101 * S),
                (V, 102 * S),
                (V, 103 * S)
            ]),
            "v0@90000 a1@90000 | v2@9000000 v3@9090000 v4@9180000 v5@9270000"
        );
    }

    #[test]
    fn steps_within_tolerance_are_no_jump() {
        assert_eq!(
            run(&[
                (V, 20 * S),
                (A, 11 * S),
                (V, 30 * S),
                (V, 30 * S - 5),
                (A, 11 * S + 1)
            ]),
            "v0@1800000 a1@990000 v2@2700000 v3@2699995 a4@990001"
        );
    }

    #[test]
    fn times_without_sense_become_one() {
        let epoch = Epoch::starting_at(Stamp {
            pts: 100,
            dts: None,
        });
        for (pts, dts, wanted) in [
            (200, Some(150), (200, 150)),
            (200, None, (200, 200)),
            // Decoded after it is shown; shown long after it is decoded.
            (200, Some(201), (200, 200)),
            (200 + 11 * S, Some(200), (200 + 11 * S, 200 + 11 * S)),
            // The wrap between the two.
            (5, Some((1 << 33) - 5), (5, u64::MAX - 4)),
        ] {
            let times = epoch.times(Stamp { pts, dts });
            assert_eq!((times.pts.0 as u64, times.dts.0 as u64), wanted);
        }
    }

    #[test]
    fn items_without_times_stay_with_their_track() {
        let (mut timeline, mut out) = (Timeline::default(), Vec::new());
        let at = |pts| Some(Stamp { pts, dts: None });
        for (item, (track, stamp)) in [
            (V, at(S)),
            (A, at(S)),
            (A, None),
            (V, at(999 * S)),
            (V, None),
            (A, None),
            (A, at(999 * S)),
        ]
        .into_iter()
        .enumerate()
        {
            timeline.push(track, stamp, item, &mut out);
        }
        assert_eq!(
            show(&out),
            "v0@90000 a1@90000 ?2 ?5 | v3@89910000 ?4 a6@89910000"
        );
    }

    proptest! {
        #[test]
        fn any_stamps_are_placed_or_dropped_and_little_is_held(
            stamps in prop::collection::vec((0u8..3, any::<u64>(), prop::option::of(any::<u64>()), any::<bool>()), 0..300)
        ) {
            let (mut timeline, mut out) = (Timeline::default(), Vec::new());
            for (i, &(track, pts, dts, none)) in stamps.iter().enumerate() {
                let stamp = Stamp { pts: pts >> (pts % 64), dts: dts.map(|d| d >> (d % 64)) };
                timeline.push(TrackId(track), (!none).then_some(stamp), i, &mut out);
                prop_assert!(timeline.jump.as_ref().is_none_or(|j| j.held.len() < MAX_HELD_ITEMS));
            }
            timeline.flush(|_| true, &mut out);
            let mut seen = vec![0; stamps.len()];
            for placed in &out {
                match placed {
                    Placed::Item { item, times, .. } => {
                        seen[*item] += 1;
                        if let Some(t) = times {
                            prop_assert!(t.dts <= t.pts && t.pts - t.dts <= MAX_REORDER);
                        }
                    }
                    Placed::Dropped { item, .. } => seen[*item] += 1,
                    Placed::Discontinuity => {}
                }
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
        }
    }
}
