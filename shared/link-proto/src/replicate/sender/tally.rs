//! What was handed to the channels in this session, by stream and class. Counts only.

use std::collections::BTreeMap;

use model::StreamName;

use crate::replicate::class::{ByClass, Class};

/// At most as many streams as the sender has.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<StreamName, ByClass>);

impl Tally {
    /// Media bytes of a stream.
    pub(super) fn count(&mut self, stream: &StreamName, class: Class, bytes: usize) {
        let bytes = bytes as u64;
        match self.0.get_mut(stream) {
            Some(counts) => counts.add(class, bytes),
            None => self.0.entry(stream.clone()).or_default().add(class, bytes),
        }
    }

    pub(super) fn of(&self, stream: &StreamName) -> ByClass {
        self.0.get(stream).copied().unwrap_or_default()
    }

    /// Forgets the streams that are not shipped any more.
    pub(super) fn keep(&mut self, shipped: impl Fn(&StreamName) -> bool) {
        self.0.retain(|stream, _| shipped(stream));
    }

    /// Another session begins.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
