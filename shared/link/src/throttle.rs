//! A log line that strangers can cause is written now and then, with how many were left out.

use std::time::{Duration, Instant};

/// Lines in a row before any is left out, and how long each takes to be earned again.
const MAX_LINES: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Throttle {
    lines: u32,
    earned: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        Self {
            lines: MAX_LINES,
            earned: None,
            left_out: 0,
        }
    }

    /// Whether to write a line now: then how many were left out since the last one.
    pub(crate) fn allows(&mut self, now: Instant) -> Option<u64> {
        let earned = *self.earned.get_or_insert(now);
        let whole = now.saturating_duration_since(earned).as_secs() / INTERVAL.as_secs();
        if whole > 0 {
            let whole = u32::try_from(whole).unwrap_or(u32::MAX);
            self.lines = self.lines.saturating_add(whole).min(MAX_LINES);
            self.earned = Some(now);
        }
        if self.lines == 0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_written_then_one_a_second_with_the_count_of_the_others() {
        let start = Instant::now();
        let mut throttle = Throttle::new();
        let written = (0..100).filter(|_| throttle.allows(start).is_some());
        assert_eq!(written.count(), 20);
        assert_eq!(throttle.allows(start + Duration::from_millis(900)), None);
        assert_eq!(throttle.allows(start + Duration::from_secs(1)), Some(81));
        assert_eq!(throttle.allows(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(3_600);
        let written = (0..100).filter(|_| throttle.allows(later).is_some());
        assert_eq!(written.count(), 20);
    }
}
