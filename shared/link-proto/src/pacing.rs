//! The pacer: a token bucket over every outgoing datagram, retransmissions and acknowledgements included.
//!
//! How fast is the rate controller's business (`rate.rs`); this only keeps to it.

use std::time::{Duration, Instant};

use crate::datagram::MAX_DATAGRAM_BYTES;

/// The least burst: what a kernel and a home router take in one go.
const MIN_BURST_BYTES: f64 = (16 * MAX_DATAGRAM_BYTES) as f64;

/// At high rates the burst covers this much time, since timers of the driver are no finer than a
/// millisecond.
const BURST_TIME: Duration = Duration::from_millis(2);

/// How long the pacer asks to sleep at least, so that a wake-up sends several datagrams.
const MIN_WAIT: Duration = Duration::from_millis(1);

pub(crate) struct Pacer {
    rate: f64,
    /// May fall below nought: acknowledgements don't wait, but are paid for.
    tokens: f64,
    filled: Instant,
}

impl Pacer {
    /// `rate` in bytes per second.
    pub(crate) fn new(now: Instant, rate: f64) -> Self {
        Self {
            rate,
            tokens: MIN_BURST_BYTES,
            filled: now,
        }
    }

    pub(crate) fn set_rate(&mut self, now: Instant, rate: f64) {
        self.fill(now);
        self.rate = rate;
    }

    /// Bytes that may go out now; not above nought: none.
    pub(crate) fn tokens(&mut self, now: Instant) -> f64 {
        self.fill(now);
        self.tokens
    }

    pub(crate) fn spend(&mut self, bytes: usize) {
        self.tokens = (self.tokens - bytes as f64).max(-self.burst());
    }

    /// When it is worth asking again.
    pub(crate) fn ready_at(&self) -> Instant {
        let missing = (MAX_DATAGRAM_BYTES as f64 - self.tokens).max(0.0);
        self.filled + Duration::from_secs_f64(missing / self.rate).max(MIN_WAIT)
    }

    /// What accrues while the driver sleeps once.
    pub(crate) fn bytes_per_wake_up(&self) -> f64 {
        self.rate * MIN_WAIT.as_secs_f64()
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + self.rate * elapsed.as_secs_f64()).min(self.burst());
        self.filled = self.filled.max(now);
    }

    fn burst(&self) -> f64 {
        MIN_BURST_BYTES.max(self.rate * BURST_TIME.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    #[test]
    fn over_a_second_the_rate_is_kept_to_whatever_the_wake_ups() {
        for rate in [40_000.0, 1e6, 1e8] {
            let start = sim::start();
            let mut now = start;
            let mut pacer = Pacer::new(start, rate);
            let mut sent = 0;
            while now < start + Duration::from_secs(1) {
                while pacer.tokens(now) > 0.0 {
                    pacer.spend(1232);
                    sent += 1232;
                }
                now = pacer.ready_at();
            }
            let over = f64::from(sent) - rate;
            assert!(
                over >= -2.0 * 1232.0 - rate * 0.001
                    && over <= MIN_BURST_BYTES.max(rate * 0.002) + 2464.0,
                "{rate}: {over}"
            );
        }
    }

    #[test]
    fn idle_time_saves_up_one_burst_only() {
        let start = sim::start();
        let mut pacer = Pacer::new(start, 1e6);
        assert_eq!(
            pacer.tokens(start + Duration::from_secs(60)),
            MIN_BURST_BYTES
        );
        pacer.spend(1 << 20);
        assert_eq!(
            pacer.tokens(start + Duration::from_secs(60)),
            -MIN_BURST_BYTES
        );
    }
}
