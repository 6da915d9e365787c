//! A budget a second, with a second's worth saved up at most.

use std::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f32,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(now: Instant, tokens: f32) -> Self {
        Self { tokens, at: now }
    }

    /// One of `per_second`, of which a second's worth may be saved up.
    pub(crate) fn take(&mut self, now: Instant, per_second: f32) -> bool {
        self.take_of(now, per_second, per_second)
    }

    /// One of `per_second`, of which `most` may be saved up.
    pub(crate) fn take_of(&mut self, now: Instant, per_second: f32, most: f32) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f32();
        self.tokens = (self.tokens + elapsed * per_second).min(most);
        self.at = now;
        let goes = self.tokens >= 1.0;
        if goes {
            self.tokens -= 1.0;
        }
        goes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sim;

    #[test]
    fn gives_so_many_a_second_and_saves_no_more_than_it_may() {
        let start = sim::start();
        let mut bucket = Bucket::full(start, 10.0);
        let mut taken = |ms| {
            let now = start + Duration::from_millis(ms);
            (0..100).filter(|_| bucket.take(now, 10.0)).count()
        };
        assert_eq!(taken(0), 10);
        assert_eq!(taken(0), 0);
        assert_eq!(taken(510), 5);
        assert_eq!(taken(60_000), 10);
        let mut few = Bucket::full(start, 8.0);
        assert_eq!((0..20).filter(|_| few.take_of(start, 1.0, 8.0)).count(), 8);
        assert!(few.take_of(start + Duration::from_secs(1), 1.0, 8.0));
        assert!(!Bucket::full(start, 0.0).take(start, 0.0));
    }
}
