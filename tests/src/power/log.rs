//! The write log: what every disk was told, and between it what was promised outside, in one order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Op;

/// Which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Hub,
    Edge,
}

/// What somebody outside could rely on from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promise {
    /// The row says *here*: the segment is durable on this side.
    Closed {
        side: Side,
        stream: String,
        number: u64,
    },
    /// The edge has entered the hub's `Stored`.
    Stored { stream: String, number: u64 },
    /// The edge has finished a part that ends at this byte of the segment.
    Part {
        stream: String,
        number: u64,
        bytes: u64,
    },
    /// A live list was served.
    Listed {
        side: Side,
        stream: String,
        /// Media sequence of its first entry and of the one after its last.
        sequences: (u64, u64),
        discontinuity_sequence: u64,
        numbers: Vec<u64>,
    },
    /// `hub enroll` printed its URL.
    Invited,
    /// `edge-node enroll` said that it is done.
    Enrolled,
    /// `push` ended with exit code 0.
    Pushed { stream: String },
}

#[derive(Debug, Clone)]
pub enum Entry {
    Op(Side, Op),
    Promise(Promise),
}

/// A log that grows; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Entry>>>);

impl Log {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, entry: Entry) {
        self.entries().push(entry);
    }

    pub fn promise(&self, promise: Promise) {
        self.push(Entry::Promise(promise));
    }

    pub fn len(&self) -> usize {
        self.entries().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that was logged until now.
    pub fn snapshot(&self) -> Vec<Entry> {
        self.entries().clone()
    }
}
