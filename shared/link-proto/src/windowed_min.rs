//! The least value of a time that moves along.

use std::time::{Duration, Instant};

/// The bare delay of the path is the least of so long a time: shorter would take a standing queue for the
/// path, longer would hold on to a path that is no more.
const BASE_WINDOW: Duration = Duration::from_secs(10);

/// While somebody competes, the bare delay is not seen: the one known before is held for so long.
const BASE_HELD: Duration = Duration::from_secs(120);

/// The least value of the last one to two half windows.
pub(super) struct WindowedMin<T> {
    current: Option<T>,
    previous: Option<T>,
    turn_at: Option<Instant>,
    held_since: Option<Instant>,
}

impl<T: Copy + Ord> WindowedMin<T> {
    pub(super) fn new() -> Self {
        Self {
            current: None,
            previous: None,
            turn_at: None,
            held_since: None,
        }
    }

    pub(super) fn add(&mut self, now: Instant, value: T) {
        let turn_at = *self.turn_at.get_or_insert(now + BASE_WINDOW / 2);
        if now >= turn_at {
            self.previous = self.current.take();
            self.turn_at = Some(now + BASE_WINDOW / 2);
        }
        self.current = Some(self.current.map_or(value, |least| least.min(value)));
    }

    /// Forgets nothing, for up to [`BASE_HELD`].
    pub(super) fn hold(&mut self, now: Instant) {
        let held = *self.held_since.get_or_insert(now);
        if now < held + BASE_HELD {
            self.turn_at = Some(now + BASE_WINDOW / 2);
        }
    }

    pub(super) fn release(&mut self) {
        self.held_since = None;
    }

    pub(super) fn get(&self) -> Option<T> {
        match (self.current, self.previous) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
