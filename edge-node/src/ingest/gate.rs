//! Back-pressure: how far a source that can wait may run ahead of the hub.
//!
//! The shipping side says how things stand a few times a second; the ingest thread asks before each
//! segment. Keeps invariants 3 (held back, not evicted) and 5.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Segments cut and not stored on the hub while it is connected: 17 minutes of video, so that a hiccup of
/// the link never leaves it without work.
pub(crate) const MAX_AHEAD_SEGMENTS: u64 = 512;
/// The same in bytes: what fits the page cache of a small machine, so that shipping reads no disk.
pub(crate) const MAX_AHEAD_BYTES: u64 = 1 << 30;
/// Between two looks while held back.
const LOOK: Duration = Duration::from_millis(20);

/// How things stand on this disk.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    pub(crate) unshipped: u64,
    pub(crate) unshipped_bytes: u64,
    /// The hub is taking segments: running ahead of it buys nothing.
    pub(crate) connected: bool,
    /// The disk limit is reached and nothing that the hub has is left to evict.
    pub(crate) disk_full: bool,
}

impl Standing {
    /// Whether a source that can wait has to.
    pub(crate) fn holds_back(&self) -> bool {
        let ahead = self.unshipped >= MAX_AHEAD_SEGMENTS || self.unshipped_bytes >= MAX_AHEAD_BYTES;
        self.disk_full || (self.connected && ahead)
    }
}

/// Shared by the shipping side and the ingest thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn set(&self, standing: &Standing) {
        self.0.store(standing.holds_back(), Ordering::Relaxed);
    }

    /// Closes it until the next look.
    pub(crate) fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits until the gate is open; false if told to stop first.
    pub(crate) fn pass(&self, stop: &CancellationToken) -> bool {
        while self.is_closed() {
            if stop.is_cancelled() {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_back() {
        let standing = |unshipped, unshipped_bytes, connected, disk_full| Standing {
            unshipped,
            unshipped_bytes,
            connected,
            disk_full,
        };
        for (standing, held) in [
            (standing(0, 0, true, false), false),
            (standing(511, 0, true, false), false),
            (standing(512, 0, true, false), true),
            (standing(3, 1 << 30, true, false), true),
            (standing(100_000, 1 << 40, false, false), false),
            (standing(0, 0, false, true), true),
        ] {
            assert_eq!(standing.holds_back(), held, "{standing:?}");
        }
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let (gate, stop) = (Gate::default(), CancellationToken::new());
        assert!(gate.pass(&stop));
        gate.set(&Standing {
            disk_full: true,
            ..Standing::default()
        });
        stop.cancel();
        assert!(!gate.pass(&stop));
    }
}
