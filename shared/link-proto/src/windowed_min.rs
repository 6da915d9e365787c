//! The least value of a time that moves along.

use std::time::{Duration, Instant};

/// The least value of the last one to two halves of a window.
pub(crate) struct WindowedMin<T> {
    half: Duration,
    current: Option<T>,
    previous: Option<T>,
    turn_at: Option<Instant>,
    held_since: Option<Instant>,
}

impl<T: Copy + Ord> WindowedMin<T> {
    pub(crate) fn new(window: Duration) -> Self {
        Self {
            half: window / 2,
            current: None,
            previous: None,
            turn_at: None,
            held_since: None,
        }
    }

    pub(crate) fn add(&mut self, now: Instant, value: T) {
        let turn_at = *self.turn_at.get_or_insert(now + self.half);
        if now >= turn_at {
            self.previous = self.current.take();
            self.turn_at = Some(now + self.half);
        }
        self.current = Some(self.current.map_or(value, |least| least.min(value)));
    }

    /// Forgets nothing, for up to `most`.
    pub(crate) fn hold(&mut self, now: Instant, most: Duration) {
        let held = *self.held_since.get_or_insert(now);
        if now < held + most {
            self.turn_at = Some(now + self.half);
        }
    }

    pub(crate) fn release(&mut self) {
        self.held_since = None;
    }

    pub(crate) fn get(&self) -> Option<T> {
        match (self.current, self.previous) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
