//! Fuzz targets: each parser of outside bytes, and each state machine by sequences of operations.
//!
//! A target takes any bytes and panics where a property does not hold: that is a finding. Each is bounded in
//! time and memory. `scripts/soak fuzz` runs them under libFuzzer (`libfuzzer/`); `tests/replay.rs` runs them
//! over `fixtures/corpora` in every CI. No fuzzing engine here.

// A target's panic is its verdict.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod cutting;
mod http;
mod link_bytes;
mod link_states;
mod live;
mod media_bytes;
mod seeds;
mod store_states;
mod words;

use std::sync::OnceLock;

pub use seeds::seeds;

/// One thing to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As in `scripts/soak fuzz --target` and `fixtures/corpora`.
    pub name: &'static str,
    /// Longest input that is worth trying, in bytes.
    pub max_len: usize,
    pub run: fn(&[u8]),
}

/// All targets: bytes first, then sequences of operations.
pub const TARGETS: &[Target] = &[
    target("demux_ts", 64 << 10, media_bytes::demux_ts),
    target("ts_tables", 4 << 10, media_bytes::ts_tables),
    target("pes", 8 << 10, media_bytes::pes),
    target("aac", 8 << 10, media_bytes::aac),
    target("nal", 4 << 10, media_bytes::nal),
    target("mp4", 64 << 10, media_bytes::mp4),
    target("sniff", 8 << 10, media_bytes::sniff),
    target("words", 1 << 10, words::words),
    target("config", 4 << 10, words::config),
    target("http", 2 << 10, http::http),
    target("messages", 24 << 10, link_bytes::messages),
    target("peer_messages", 16 << 10, link_bytes::peer_messages),
    target("strangers", 4 << 10, link_bytes::strangers),
    target("liars", 4 << 10, link_bytes::liars),
    target("segmenter", 4 << 10, cutting::segmenter),
    target("timeline", 4 << 10, cutting::timeline),
    target("live_list", 4 << 10, live::live_list),
    target("range_set", 1 << 10, words::range_set),
    target("sessions", 1 << 10, link_states::sessions),
    target("replication", 1 << 10, link_states::replication),
    target("store", 512, store_states::store),
    target("recover", 4 << 10, store_states::recover),
];

const fn target(name: &'static str, max_len: usize, run: fn(&[u8])) -> Target {
    Target { name, max_len, run }
}

/// The target of a name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

/// Takes the target that the environment names, for libFuzzer's program.
///
/// # Panics
/// Where `PENSTOCK_FUZZ_TARGET` names none.
pub fn choose() {
    let name = std::env::var("PENSTOCK_FUZZ_TARGET").unwrap_or_default();
    let target = find(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!(
            "PENSTOCK_FUZZ_TARGET={name:?} names no target: there are {}",
            names.join(" ")
        )
    });
    CHOSEN.get_or_init(|| target.run);
}

/// Runs the target taken by [`choose`].
///
/// # Panics
/// Where a property of the target does not hold.
pub fn run_chosen(data: &[u8]) {
    CHOSEN.get().expect("chosen at the start")(data);
}
