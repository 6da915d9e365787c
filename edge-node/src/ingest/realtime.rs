//! `--realtime`: how long to hold an access unit back so that a file comes like from a camera.
//!
//! Pure: the monotonic clock is an argument (invariant 8).

use std::time::{Duration, Instant};

use model::MediaTime;

/// How far a source may fall behind its own pace and still catch up in a burst; beyond it (a machine that
/// slept, a disk that was full) it goes on at its pace from here.
const MAX_BEHIND: Duration = Duration::from_secs(5);
/// The longest wait that a timestamp can ask for; beyond it the timeline has jumped.
const MAX_AHEAD: Duration = Duration::from_secs(10);

/// Holds media time against monotonic time.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// This media time was due at this instant.
    anchor: Option<(MediaTime, Instant)>,
}

impl Pacer {
    /// How long to wait until what is decoded at `dts` is due.
    pub(crate) fn wait(&mut self, dts: MediaTime, now: Instant) -> Duration {
        let due = self.anchor.and_then(|(media, at)| {
            let elapsed = dts - media;
            if elapsed.0 >= 0 {
                at.checked_add(elapsed.to_duration())
            } else {
                // A track that lags behind the other is due already; a jump back is caught below.
                at.checked_sub((media - dts).to_duration())
            }
        });
        match due {
            Some(due) if due >= now && due - now <= MAX_AHEAD => due - now,
            Some(due) if due < now && now - due <= MAX_BEHIND => Duration::ZERO,
            _ => {
                self.anchor = Some((dts, now));
                Duration::ZERO
            }
        }
    }

    /// The timeline broke: what comes next is due at once.
    pub(crate) fn restart(&mut self) {
        self.anchor = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: i64 = 3_600;

    #[test]
    fn access_units_come_at_their_pace() {
        let start = Instant::now();
        let mut now = start;
        let mut pacer = Pacer::default();
        for i in 0..250 {
            now += pacer.wait(MediaTime(1_000_000 + i * FRAME), now);
            // The sound of the same moment lags by 200 ms and never makes anything wait.
            assert_eq!(
                pacer.wait(MediaTime(982_000 + i * FRAME), now),
                Duration::ZERO
            );
        }
        assert_eq!(now - start, Duration::from_millis(40) * 249);
    }

    #[test]
    fn a_short_stall_is_caught_up_a_long_one_is_not() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        pacer.wait(MediaTime(0), start);
        let late = start + Duration::from_secs(4);
        assert_eq!(pacer.wait(MediaTime(FRAME), late), Duration::ZERO);
        assert_eq!(
            pacer.wait(MediaTime(101 * FRAME), late),
            Duration::from_millis(40),
            "still on its first clock"
        );
        let slept = start + Duration::from_secs(100);
        assert_eq!(pacer.wait(MediaTime(102 * FRAME), slept), Duration::ZERO);
        assert_eq!(
            pacer.wait(MediaTime(103 * FRAME), slept),
            Duration::from_millis(40)
        );
    }

    #[test]
    fn jumps_start_afresh() {
        let now = Instant::now();
        let mut pacer = Pacer::default();
        pacer.wait(MediaTime(1 << 33), now);
        for (jump, next) in [
            (0, FRAME),
            (i64::MAX, i64::MAX),
            (i64::MIN, i64::MIN + FRAME),
        ] {
            assert_eq!(pacer.wait(MediaTime(jump), now), Duration::ZERO, "{jump}");
            assert!(pacer.wait(MediaTime(next), now) <= Duration::from_millis(40));
        }
        pacer.restart();
        assert_eq!(pacer.wait(MediaTime(5_000_000), now), Duration::ZERO);
    }
}
