//! A clock for what is kept and let go: the grace of segments that left a live list, ages in retention.
//!
//! It begins as the machine's clock and runs by monotonic time, so that a step (of seconds or years, by an
//! operator or NTP) frees nothing early and holds nothing back. One step is followed: that of a clock which
//! was never set until then. After a restart it begins anew; a grace from before is cut to what one can be at
//! most (`catalog::live::shorten_grace`). No clock is read here.

use std::time::{Duration, Instant};

use model::WallTime;

#[derive(Debug)]
pub(crate) struct Steady {
    wall: WallTime,
    at: Instant,
}

impl Steady {
    pub(crate) fn new(wall: WallTime, now: Instant) -> Self {
        Self { wall, at: now }
    }

    /// `machine`: what the machine's clock shows.
    pub(crate) fn now(&mut self, machine: WallTime, now: Instant) -> WallTime {
        let passed: Duration = now.saturating_duration_since(self.at);
        let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let time = WallTime(self.wall.0.saturating_add(passed));
        if !time.is_plausible() && machine.is_plausible() {
            *self = Self::new(machine, now);
            return machine;
        }
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_passes_and_no_step_but_the_first_setting() {
        let (t, start) = (1_800_000_000_000, Instant::now());
        let later = |s: u64| start + Duration::from_secs(s);
        let year = 365 * 86_400_000;
        let mut steady = Steady::new(WallTime(t), start);
        for machine in [t, t + year, t - year, 0] {
            assert_eq!(
                steady.now(WallTime(machine), later(60)),
                WallTime(t + 60_000)
            );
        }
        let mut steady = Steady::new(WallTime(5_000), start);
        assert_eq!(steady.now(WallTime(65_000), later(60)), WallTime(65_000));
        assert_eq!(steady.now(WallTime(t), later(70)), WallTime(t));
        assert_eq!(
            steady.now(WallTime(t + year), later(80)),
            WallTime(t + 10_000)
        );
    }
}
