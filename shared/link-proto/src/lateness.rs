//! How late datagrams are that others overtake, as the receiver tells: what is late must not be taken for lost.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use crate::{frame::Feedback, windowed_min::WindowedMin};

/// More datagrams than this that were overtaken between two feedbacks: the path does that.
const FEW: u32 = 2;

/// Once datagrams overtook each other, they are expected to for so long.
const REORDERING_LASTS: Duration = Duration::from_secs(30);

/// The latest one is remembered for so long, or half of it: one alone must not slow what is sent again for ever.
const LATENESS_WINDOW: Duration = Duration::from_secs(10);

/// Lateness that is waited for at least, where datagrams overtake each other.
const MIN_LATENESS: Duration = Duration::from_millis(5);

/// And at most, however late one was: what is lost waits as long.
const MAX_LATENESS: Duration = Duration::from_millis(500);

/// A path that held one back for some time may hold the next back for longer.
const MARGIN: f64 = 1.25;

pub(crate) struct Lateness {
    overtaken: u32,
    until: Option<Instant>,
    longest: WindowedMin<Reverse<Duration>>,
}

impl Lateness {
    pub(crate) fn new() -> Self {
        Self {
            overtaken: 0,
            until: None,
            longest: WindowedMin::new(LATENESS_WINDOW),
        }
    }

    pub(crate) fn on_feedback(&mut self, now: Instant, feedback: &Feedback) {
        if feedback.reordered.wrapping_sub(self.overtaken) > FEW {
            self.until = Some(now + REORDERING_LASTS);
        }
        self.overtaken = feedback.reordered;
        let late = Duration::from_micros(feedback.late_us.into());
        self.longest.add(now, Reverse(late.min(MAX_LATENESS)));
    }

    /// How much longer than a round trip the answer to a datagram may take though later ones are answered; none
    /// where datagrams come in order.
    pub(crate) fn beyond(&self, now: Instant, rtt: Duration) -> Option<Duration> {
        self.until.filter(|until| now < *until)?;
        let Reverse(late) = self.longest.get().unwrap_or(Reverse(Duration::ZERO));
        Some((rtt / 4).max(MIN_LATENESS).max(late.mul_f64(MARGIN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    #[test]
    fn the_latest_is_waited_for_and_forgotten() {
        let start = sim::start();
        let at = |ms| start + Duration::from_millis(ms);
        let told = |reordered, late_ms: u32| Feedback {
            reordered,
            late_us: late_ms * 1_000,
            ..Feedback::default()
        };
        let rtt = Duration::from_millis(100);
        let ms = |ms| Some(Duration::from_millis(ms));
        let mut lateness = Lateness::new();
        lateness.on_feedback(at(0), &told(2, 80));
        assert_eq!(lateness.beyond(at(0), rtt), None, "two are chance");
        lateness.on_feedback(at(25), &told(9, 40));
        assert_eq!(lateness.beyond(at(25), rtt), ms(100));
        // Mild ones go on; the one that was late is over.
        for step in 1..600 {
            lateness.on_feedback(at(25 + 25 * step), &told(9 + 3 * step as u32, 8));
        }
        assert_eq!(lateness.beyond(at(15_000), rtt), ms(25));
        assert_eq!(
            lateness.beyond(at(15_000), rtt / 100),
            ms(10),
            "of a round trip of one millisecond"
        );
        assert_eq!(lateness.beyond(at(50_000), rtt), None, "they come in order");
        lateness.on_feedback(at(50_000), &told(5_000, 90_000));
        assert_eq!(lateness.beyond(at(50_000), rtt), ms(625));
    }
}
