//! The time that live recordings are stamped with, and who corrects it (invariant 8).
//!
//! Wall time is a moment on the clock of this boot plus the *zero* at which the boot began. At start the zero is
//! what this machine's clock says, or what an earlier program of this boot was told. Then:
//!
//! - The hub's time comes with each welcome. Within its uncertainty and [`TOLERANCE`] nothing happens. Beyond,
//!   the hub is right: the zero moves, and what was recorded in this boot is restamped. Two exceptions. A zero
//!   on which hub and machine have agreed gives way only to both together: one clock that steps is wrong. And
//!   what a quartz may drift since the last agreement moves only what comes after it: the past was right in
//!   its time.
//! - This machine's clock, when it steps, moves nothing, since nobody can tell a correction from a mistake
//!   (NTP by its daemon slews both clocks alike, which is no step). But a clock that was never set (it showed a
//!   year before 2024, as after a boot without a battery) and then was set is a correction, unless the hub
//!   has said the time.
//! - A hub whose clock was never set is not listened to.
//!
//! [`Judge`] decides and is pure; [`Clock`] reads the clocks and has the store restamp. Files that are pushed
//! have times of their own.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use link::uplink::HubTime;
use model::{BootId, BootTime, WallTime};
use program::clock::wall_now;
use rustix::time::{ClockId, clock_gettime};
use store::{Store, StoreError};

/// The hub's clock may differ by this much above the uncertainty of how it was told: both may be kept by NTP.
const TOLERANCE: Duration = Duration::from_secs(1);
/// What a bad quartz drifts: 200 millionths.
const DRIFT_DIVISOR: i64 = 5_000;
/// The kernel's name for this boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// What both clocks of this machine show at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    boot_ms: i64,
    machine: WallTime,
}

impl Reading {
    fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        Self {
            boot_ms: boot
                .tv_sec
                .saturating_mul(1_000)
                .saturating_add(boot.tv_nsec / 1_000_000),
            machine: wall_now(),
        }
    }

    fn zero(self, wall: WallTime) -> i64 {
        wall.0.saturating_sub(self.boot_ms)
    }
}

/// This boot began at another time than was thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Correction {
    zero: WallTime,
    /// What was recorded before goes by it too.
    restamps: bool,
    by_hub: bool,
}

/// Decides when the boot began.
#[derive(Debug)]
struct Judge {
    zero: i64,
    /// Where on the boot's clock the hub last agreed, or was followed.
    agreed_ms: Option<i64>,
    /// The machine's clock agreed then too.
    witnessed: bool,
}

impl Judge {
    /// `known`: what an earlier program of this boot went by, and whether the hub had said so.
    fn new(reading: Reading, known: Option<(WallTime, bool)>) -> Self {
        let machine = reading.zero(reading.machine);
        let by_hub = known.filter(|(_, by_hub)| *by_hub);
        Self {
            zero: known.map_or(machine, |(zero, _)| zero.0),
            agreed_ms: by_hub.map(|_| 0),
            witnessed: by_hub.is_some_and(|(zero, _)| near(zero.0, machine, ms(TOLERANCE))),
        }
    }

    fn wall(&self, reading: Reading) -> WallTime {
        WallTime(self.zero.saturating_add(reading.boot_ms)).in_calendar()
    }

    /// Has the machine's clock been set for the first time?
    fn look(&mut self, reading: Reading) -> Option<Correction> {
        let set = !self.wall(reading).is_plausible() && reading.machine.is_plausible();
        if self.agreed_ms.is_some() || !set {
            return None;
        }
        self.zero = reading.zero(reading.machine);
        Some(Correction {
            zero: WallTime(self.zero),
            restamps: true,
            by_hub: false,
        })
    }

    /// The hub's clock shows `hub` now, give or take.
    fn hear(
        &mut self,
        reading: Reading,
        hub: WallTime,
        uncertainty: Duration,
    ) -> Option<Correction> {
        if !hub.is_plausible() {
            return None;
        }
        let zero = reading.zero(hub);
        let machine = reading.zero(reading.machine);
        let tolerance = ms(TOLERANCE);
        let within = tolerance.saturating_add(ms(uncertainty));
        let machine_agrees = near(machine, zero, within);
        if near(self.zero, zero, within) {
            let first = self.agreed_ms.replace(reading.boot_ms).is_none();
            self.witnessed |= machine_agrees;
            // Kept for the next program of this boot; an earlier one may have gone by a wrong clock.
            return first.then_some(Correction {
                zero: WallTime(self.zero),
                restamps: true,
                by_hub: true,
            });
        }
        let drift = self.agreed_ms.map_or(0, |at| {
            reading.boot_ms.saturating_sub(at).max(0) / DRIFT_DIVISOR
        });
        let drifted =
            self.agreed_ms.is_some() && near(self.zero, zero, within.saturating_add(drift));
        if self.witnessed && !machine_agrees && !drifted {
            return None;
        }
        self.zero = zero;
        self.agreed_ms = Some(reading.boot_ms);
        self.witnessed = machine_agrees;
        Some(Correction {
            zero: WallTime(zero),
            restamps: !drifted,
            by_hub: true,
        })
    }
}

fn near(a: i64, b: i64, within_ms: i64) -> bool {
    a.saturating_sub(b).saturating_abs() <= within_ms
}

fn ms(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

/// Now, for a recording.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) wall: WallTime,
    /// None where the system doesn't name its boots: nothing is corrected later then.
    pub(crate) boot: Option<BootTime>,
}

/// The clock of a program that records; clones share it.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Inner>);

struct Inner {
    store: Store,
    boot: Option<BootId>,
    judged: Mutex<Judged>,
    /// Held while the store is being corrected: one after the other.
    correcting: Mutex<()>,
}

struct Judged {
    judge: Judge,
    /// Decided, and not yet in the store.
    due: Option<Correction>,
}

impl Clock {
    /// Finishes a correction that a crash interrupted. What a clock that was set since has stamped before, in
    /// this boot, is corrected at the first [`Clock::look`].
    pub(crate) fn start(store: Store) -> Result<Self, StoreError> {
        let boot = boot_id();
        if boot.is_none() {
            tracing::warn!(
                "{BOOT_ID_FILE} can't be read: wall times of recordings are never corrected"
            );
        }
        let known = match boot {
            Some(boot) => store.resume_correction(boot)?,
            None => None,
        };
        let reading = Reading::now();
        let judge = Judge::new(reading, known);
        let unset = match boot {
            Some(boot) if known.is_none() && reading.machine.is_plausible() => {
                store.has_implausible(boot)?
            }
            _ => false,
        };
        let due = unset.then_some(Correction {
            zero: WallTime(judge.zero),
            restamps: true,
            by_hub: false,
        });
        let judged = Mutex::new(Judged { judge, due });
        Ok(Self(Arc::new(Inner {
            store,
            boot,
            judged,
            correcting: Mutex::new(()),
        })))
    }

    pub(crate) fn now(&self) -> Now {
        let reading = Reading::now();
        let boot = self.0.boot.map(|boot| BootTime {
            boot,
            ms: reading.boot_ms,
        });
        Now {
            wall: self.judged().judge.wall(reading),
            boot,
        }
    }

    /// Looks at the machine's clock; corrects the store where it must. Blocks; called every second.
    pub(crate) fn look(&self) {
        let reading = Reading::now();
        {
            let mut judged = self.judged();
            if let Some(correction) = judged.judge.look(reading) {
                tracing::warn!(now = %reading.machine, "this machine's clock was set");
                judged.due = Some(correction);
            }
        }
        self.correct();
    }

    /// Hears the hub's time; corrects the store where it must. Blocks.
    pub(crate) fn hear(&self, hub: HubTime) {
        let reading = Reading::now();
        let late = i64::try_from(Instant::now().saturating_duration_since(hub.at).as_millis());
        let time = WallTime(hub.time.0.saturating_add(late.unwrap_or(0)));
        {
            let mut judged = self.judged();
            let before = judged.judge.wall(reading);
            let heard = judged.judge.hear(reading, time, hub.uncertainty);
            let wrong_ms = before.0.saturating_sub(judged.judge.wall(reading).0);
            let from_hub_ms = judged.judge.wall(reading).0.saturating_sub(time.0);
            let uncertainty = hub.uncertainty;
            if wrong_ms != 0 {
                tracing::warn!(wrong_ms, ?uncertainty, "the hub's time is taken over");
            }
            if from_hub_ms.saturating_abs() > ms(TOLERANCE + uncertainty) {
                tracing::warn!(hub = %time, ours = %before, "the hub's clock is not believed: was it never set, or has it stepped?");
            }
            if let Some(heard) = heard {
                let restamps = heard.restamps || judged.due.is_some_and(|due| due.restamps);
                judged.due = Some(Correction { restamps, ..heard });
            }
        }
        self.correct();
    }

    /// Carries out what was decided; what fails is tried again at the next look.
    fn correct(&self) {
        let correcting = self.0.correcting.lock();
        let _correcting = correcting.unwrap_or_else(PoisonError::into_inner);
        let due = self.judged().due;
        let (Some(due), Some(boot)) = (due, self.0.boot) else {
            return;
        };
        let corrected = if due.restamps {
            self.0.store.correct_boot(boot, due.zero, due.by_hub)
        } else {
            self.0.store.go_on_from(boot, due.zero).map(|()| 0)
        };
        match corrected {
            Ok(segments) => {
                tracing::info!(segments, "wall times of this boot are corrected");
                let mut judged = self.judged();
                judged.due = judged.due.filter(|still| *still != due);
            }
            Err(error) => tracing::error!(%error, "failed to correct wall times; trying again"),
        }
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.0.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn boot_id() -> Option<BootId> {
    let text = fs::read_to_string(BOOT_ID_FILE).ok()?;
    let hash = blake3::hash(text.trim().as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>()?;
    Some(BootId(i64::from_le_bytes(*first) & i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_800_000_000_000;
    const YEAR: i64 = 365 * 86_400_000;
    const FIVE_MS: Duration = Duration::from_millis(5);

    fn at(boot_s: i64, machine: i64) -> Reading {
        Reading {
            boot_ms: boot_s * 1_000,
            machine: WallTime(machine),
        }
    }

    #[test]
    fn a_step_of_the_machines_clock_moves_nothing() {
        let mut judge = Judge::new(at(100, T), None);
        for step in [-YEAR, -3_600_000, -2_000, 0, 2_000, 3_600_000, YEAR] {
            let reading = at(160, T + 60_000 + step);
            assert_eq!(judge.look(reading), None, "{step}");
            assert_eq!(judge.wall(reading), WallTime(T + 60_000), "{step}");
        }
    }

    #[test]
    fn a_clock_that_is_set_for_the_first_time_is_a_correction() {
        let mut judge = Judge::new(at(10, 5_000), None);
        assert_eq!(judge.look(at(20, 15_000)), None);
        let set = judge.look(at(30, T)).unwrap();
        assert_eq!(set.zero, WallTime(T - 30_000));
        assert!(set.restamps);
        // Once.
        assert_eq!(judge.look(at(40, T + 10_000)), None);
        // Not behind the hub's back: it has said the time already.
        let mut judge = Judge::new(at(10, 5_000), None);
        assert!(judge.hear(at(20, 15_000), WallTime(T), FIVE_MS).is_some());
        assert_eq!(judge.look(at(30, T - YEAR)), None);
    }

    #[test]
    fn the_hub_is_followed_beyond_its_uncertainty() {
        for (wrong, uncertainty_ms, follows) in [
            (0, 5, false),
            (900, 5, false),
            (-900, 5, false),
            (2_000, 5, true),
            (2_000, 3_000, false),
            (-YEAR, 3_000, true),
            (YEAR, 3_000, true),
            (-T, 5, true),
        ] {
            let mut judge = Judge::new(at(100, T + wrong), None);
            let uncertainty = Duration::from_millis(uncertainty_ms);
            let correction = judge.hear(at(100, T + wrong), WallTime(T), uncertainty);
            let zero = if follows { T } else { T + wrong } - 100_000;
            let expected = Correction {
                zero: WallTime(zero),
                restamps: true,
                by_hub: true,
            };
            assert_eq!(correction, Some(expected), "{wrong} {uncertainty_ms}");
            // What agrees once more is no news.
            assert_eq!(judge.hear(at(100, T), WallTime(T), uncertainty), None);
        }
    }

    #[test]
    fn a_hub_that_was_never_set_is_not_listened_to() {
        let mut judge = Judge::new(at(100, T), None);
        assert_eq!(judge.hear(at(100, T), WallTime(77_000), FIVE_MS), None);
        assert_eq!(judge.wall(at(100, T)), WallTime(T));
    }

    #[test]
    fn a_hub_that_steps_is_outvoted_by_two() {
        let mut judge = Judge::new(at(100, T), None);
        let kept = judge.hear(at(100, T), WallTime(T + 10), FIVE_MS).unwrap();
        assert_eq!((kept.zero.0, kept.restamps), (T - 100_000, true));
        let stepped = WallTime(T + 60_000 + YEAR);
        assert_eq!(judge.hear(at(160, T + 60_000), stepped, FIVE_MS), None);
        // Nor does it gain by a machine's clock that has stepped elsewhere.
        let elsewhere = at(160, T + 60_000 - YEAR);
        assert_eq!(judge.hear(elsewhere, stepped, FIVE_MS), None);
        // Both say so: both were corrected.
        let both = at(160, T + 60_000 + YEAR);
        assert!(judge.hear(both, stepped, FIVE_MS).unwrap().restamps);
        // A machine that was never right is no witness.
        let mut judge = Judge::new(at(100, 5_000), None);
        assert!(
            judge
                .hear(at(100, 5_000), WallTime(T + YEAR), FIVE_MS)
                .is_some()
        );
        assert!(
            judge
                .hear(at(160, 65_000), WallTime(T + 60_000), FIVE_MS)
                .is_some()
        );
    }

    #[test]
    fn drift_moves_only_what_comes_after() {
        let mut judge = Judge::new(at(0, T), None);
        assert!(judge.hear(at(0, T), WallTime(T), FIVE_MS).is_some());
        // 17 s in ten days are 20 millionths; the machine's clock drifts with the boot's until NTP steps it.
        let (ten_days, ms) = (864_000, 864_000_000);
        let hub = WallTime(T + ms + 17_000);
        let correction = judge.hear(at(ten_days, hub.0), hub, FIVE_MS).unwrap();
        assert!(!correction.restamps);
        assert_eq!(judge.wall(at(ten_days, 0)), hub);
        let far = WallTime(hub.0 + 3_600_000);
        assert!(
            judge
                .hear(at(ten_days, far.0), far, FIVE_MS)
                .unwrap()
                .restamps
        );
    }

    #[test]
    fn an_earlier_program_of_this_boot_has_heard_it() {
        let judge = Judge::new(at(50, 9_000), Some((WallTime(T), true)));
        assert_eq!(judge.wall(at(50, 9_000)), WallTime(T + 50_000));
        // With a machine's clock that says the same, a hub that has stepped is outvoted at once.
        let now = at(50, T + 50_010);
        let mut judge = Judge::new(now, Some((WallTime(T), true)));
        assert_eq!(judge.hear(now, WallTime(T + YEAR), FIVE_MS), None);
        assert_eq!(judge.wall(now), WallTime(T + 50_000));
    }

    #[test]
    fn a_clock_set_wrong_by_hand_gives_way_to_the_hub_after_a_restart_too() {
        let now = at(50, T + 50_000);
        let mut judge = Judge::new(now, Some((WallTime(T), false)));
        let right = WallTime(T + 50_000 + YEAR);
        assert!(judge.hear(now, right, FIVE_MS).unwrap().restamps);
        assert_eq!(judge.wall(now), right);
    }

    /// A site of simulated clocks: random steps of either side's, random restarts of the program, a hub that is
    /// heard now and then. What is stamped goes by the decisions as the store carries them out.
    fn story(seed: u64) {
        let mut seed = seed;
        let mut below = |limit: i64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as i64 % limit
        };
        let step = |below: &mut dyn FnMut(i64) -> i64| match below(5) {
            0 => 0,
            1 => below(20_000) - 10_000,
            2 => below(2 * 86_400_000) - 86_400_000,
            3 => below(4 * YEAR) - 2 * YEAR,
            _ => -T,
        };
        let uncertainty = Duration::from_millis(20);
        // How far off the machine's clock is.
        let (mut machine, mut boot_ms) = (step(&mut below), 1_000);
        let reading = |boot_ms: i64, machine: i64| Reading {
            boot_ms,
            machine: WallTime((T + boot_ms + machine).max(0)),
        };
        let mut judge = Judge::new(reading(boot_ms, machine), None);
        let mut known = None;
        let mut stamps: Vec<(i64, WallTime)> = Vec::new();
        let mut carry_out = |correction: Option<Correction>, stamps: &mut Vec<(i64, WallTime)>| {
            let Some(correction) = correction else {
                return known;
            };
            known = Some((correction.zero, correction.by_hub));
            for (at, wall) in stamps.iter_mut().filter(|_| correction.restamps) {
                let right = correction.zero.0 + *at;
                if !near(wall.0, right, store::RESTAMP_TOLERANCE_MS) {
                    *wall = WallTime(right);
                }
            }
            known
        };
        let mut kept = None;
        for _ in 0..60 {
            boot_ms += 500 + below(20_000);
            let now = reading(boot_ms, machine);
            match below(8) {
                0 => machine = step(&mut below),
                1 => judge = Judge::new(now, kept),
                2 => {
                    // The hub is off as well, once it and the machine have agreed, and not as the machine is.
                    let off = if judge.witnessed { step(&mut below) } else { 0 };
                    let off = if near(off, machine, 5_000) { 0 } else { off };
                    let hub = WallTime((T + boot_ms + off).max(0));
                    kept = carry_out(judge.hear(now, hub, uncertainty), &mut stamps);
                }
                _ => kept = carry_out(judge.look(now), &mut stamps),
            }
            stamps.push((boot_ms, judge.wall(now)));
        }
        // A last word of a hub that is right, and a machine that does not stand against it.
        let now = reading(boot_ms, 0);
        let right = WallTime(T + boot_ms);
        carry_out(judge.hear(now, right, uncertainty), &mut stamps);
        stamps.push((boot_ms, judge.wall(now)));
        for (at, wall) in stamps {
            let off = wall.0 - (T + at);
            // Twice the tolerance (of the hub, of restamping), its uncertainty, and what drift allows.
            assert!(off.abs() <= 2_020 + 250, "{off} ms off at {at}");
        }
    }

    #[test]
    fn whatever_steps_the_last_word_of_a_right_hub_puts_all_right() {
        for seed in 0..3_000 {
            story(seed);
        }
    }

    #[test]
    fn this_boot_has_a_name_and_a_clock_that_runs() {
        let boot = boot_id().unwrap();
        assert!(boot.0 >= 0);
        assert_eq!(boot_id(), Some(boot));
        let (a, b) = (Reading::now(), Reading::now());
        assert!(a.boot_ms > 0 && b.boot_ms >= a.boot_ms);
    }
}
