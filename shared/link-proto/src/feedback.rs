//! The receiver's half of rate control: what reached it, and when to tell the sender.

use std::time::{Duration, Instant};

use crate::frame::Feedback;

/// Feedback goes out this often while datagrams come in: often enough for a controller that thinks in round
/// trips, and at most some 40 small datagrams a second.
pub(crate) const FEEDBACK_INTERVAL: Duration = Duration::from_millis(25);

/// An end that only answers needs little more than its round trip.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Receiver {
    feedback: Feedback,
    arrived: Option<Instant>,
    /// Least one-way time since the last feedback.
    one_way_us: Option<i32>,
    /// One-way time of the datagram with the highest counter.
    newest_one_way_us: i32,
    last_sent: Option<Instant>,
    due: Option<Instant>,
}

impl Receiver {
    /// An authentic datagram; `now_us` is this end's clock, `sent_us` the peer's in the datagram.
    pub(crate) fn on_datagram(
        &mut self,
        now: Instant,
        now_us: u32,
        counter: u64,
        sent_us: u32,
        bytes: usize,
    ) {
        let first = self.feedback.datagrams == 0;
        self.feedback.datagrams += 1;
        self.feedback.bytes += bytes as u64;
        self.feedback.arrival_us = now_us;
        let one_way_us = now_us.wrapping_sub(sent_us).cast_signed();
        // The clocks' offset is arbitrary: compare by wrapping difference.
        self.one_way_us = Some(match self.one_way_us {
            Some(least) if one_way_us.wrapping_sub(least) >= 0 => least,
            _ => one_way_us,
        });
        if first || counter > self.feedback.highest {
            if !first && counter != self.feedback.highest + 1 {
                self.feedback.gaps = self.feedback.gaps.wrapping_add(1);
            }
            self.feedback.highest = counter;
            self.feedback.echo_us = sent_us;
            self.arrived = Some(now);
            self.newest_one_way_us = one_way_us;
        } else {
            let late = one_way_us.wrapping_sub(self.newest_one_way_us);
            let late = u32::try_from(late).unwrap_or(0);
            self.feedback.late_us = self.feedback.late_us.max(late);
            self.feedback.reordered = self.feedback.reordered.wrapping_add(1);
        }
    }

    /// The datagram carried something worth an answer.
    pub(crate) fn want(&mut self, now: Instant) {
        let at = self
            .last_sent
            .map_or(now, |last| (last + FEEDBACK_INTERVAL).max(now));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The datagram carried only answers: that they come is told now and then.
    pub(crate) fn want_slowly(&mut self, now: Instant) {
        let at = self
            .last_sent
            .map_or(now, |last| (last + SLOW_INTERVAL).max(now));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The peer waits for an answer.
    pub(crate) fn want_now(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// The highest datagram counter seen.
    pub(crate) fn highest(&self) -> u64 {
        self.feedback.highest
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn take(&mut self, now: Instant) -> Feedback {
        self.due = None;
        self.last_sent = Some(now);
        self.feedback.hold_us = self.arrived.map_or(0, |at| {
            now.saturating_duration_since(at)
                .as_micros()
                .try_into()
                .unwrap_or(u32::MAX)
        });
        if let Some(one_way_us) = self.one_way_us.take() {
            self.feedback.one_way_us = one_way_us;
        }
        let feedback = self.feedback;
        self.feedback.late_us = 0;
        feedback
    }

    pub(crate) fn datagrams(&self) -> u64 {
        self.feedback.datagrams
    }

    /// How many the peer has sent, the newest that came included.
    pub(crate) fn expected(&self) -> u64 {
        match self.feedback.datagrams {
            0 => 0,
            _ => self.feedback.highest + 1,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.feedback.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    #[test]
    fn tells_what_came_and_when() {
        let start = sim::start();
        let ms = |n| start + Duration::from_millis(n);
        let mut receiver = Receiver::default();
        // The peer's clock is ahead: one-way times are negative.
        receiver.on_datagram(ms(10), 10_000, 5, 50_000, 100);
        receiver.on_datagram(ms(12), 12_000, 7, 53_000, 200);
        receiver.on_datagram(ms(13), 13_000, 6, 52_000, 300);
        receiver.want(ms(13));
        assert_eq!(receiver.due(), Some(ms(13)));
        assert_eq!(
            receiver.take(ms(20)),
            Feedback {
                highest: 7,
                datagrams: 3,
                bytes: 600,
                echo_us: 53_000,
                hold_us: 8_000,
                arrival_us: 13_000,
                one_way_us: -41_000,
                reordered: 1,
                gaps: 1,
                late_us: 2_000,
            }
        );
        assert_eq!(receiver.take(ms(20)).late_us, 0, "told once");
        receiver.on_datagram(ms(21), 21_000, 8, 60_000, 1);
        receiver.want(ms(21));
        assert_eq!(receiver.due(), Some(ms(45)), "an interval after the last");
        receiver.want_now(ms(22));
        assert_eq!(receiver.due(), Some(ms(22)));
    }
}
