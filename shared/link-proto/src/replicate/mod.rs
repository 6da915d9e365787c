//! Replication of one store into another: the edge's [`sender`] and the hub's [`receiver`].
//!
//! "Replication compares, it does not remember": a new session, or channels that were renewed, begin with
//! what is settled at the hub; the edge ships what is missing there, oldest first, and keeps no other
//! state. Both halves are pure: they see messages and facts about a store, and answer with messages and
//! with work for the shell that holds the store (invariants 3, 5 and 7). No store and no session here.

pub mod class;
#[cfg(all(feature = "sim", not(test)))]
#[path = "tests/operations.rs"]
pub mod operations;
pub mod receiver;
pub mod sender;
#[cfg(test)]
mod tests;

/// Most streams that a device ships: a site of 256 cameras behind one box.
pub const MAX_STREAMS: usize = 256;

/// Most partials a hub offers for one stream; more than one only where streams were cut off again and again.
pub const MAX_PARTIALS: usize = 16;
