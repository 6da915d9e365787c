//! The pieces of the file that are at hand: a few reads, the least used of which makes room for the next.
//!
//! Tracks lie beside each other in chunks of about a second. A window is read from the next sample on, so
//! it holds what follows of any track; with one for each track and two more, hardly a byte is read twice,
//! wherever the tracks lie.

use std::collections::VecDeque;

use bytes::Bytes;

/// How much is asked for at a time.
pub(super) const READ_BYTES: usize = 1 << 20;

/// Windows beyond one for each track.
const SPARE: usize = 2;

/// Pieces of the file, most recently used first.
#[derive(Debug, Default)]
pub(super) struct Windows {
    windows: VecDeque<(u64, Bytes)>,
}

impl Windows {
    /// The bytes of a range, if one window holds them all.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> Option<Bytes> {
        let holding = |(start, bytes): &(u64, Bytes)| {
            let from = usize::try_from(offset.checked_sub(*start)?).ok()?;
            let to = from.checked_add(len)?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        };
        let (at, found) = self
            .windows
            .iter()
            .enumerate()
            .find_map(|(at, window)| Some((at, holding(window)?)))?;
        if at > 0
            && let Some(window) = self.windows.remove(at)
        {
            self.windows.push_front(window);
        }
        Some(found)
    }

    /// Adds what was read, and lets go of the least used beyond what `tracks` need.
    pub(super) fn add(&mut self, offset: u64, bytes: Bytes, tracks: usize) {
        self.windows.push_front((offset, bytes));
        self.windows.truncate(tracks + SPARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_used() {
        let mut windows = Windows::default();
        windows.add(100, Bytes::from_static(b"abcdef"), 1);
        assert_eq!(windows.get(102, 3), Some(Bytes::from_static(b"cde")));
        assert_eq!(windows.get(99, 3), None);
        assert_eq!(windows.get(104, 3), None);
        assert_eq!(windows.get(u64::MAX, usize::MAX), None);
        windows.add(200, Bytes::from_static(b"x"), 1);
        windows.add(300, Bytes::from_static(b"y"), 1);
        assert!(windows.get(100, 6).is_some());
        windows.add(400, Bytes::from_static(b"z"), 1);
        assert!(windows.get(200, 1).is_none() && windows.get(100, 6).is_some());
        assert_eq!(windows.windows.len(), 3);
    }
}
