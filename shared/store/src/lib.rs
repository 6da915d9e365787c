//! The segment store of both ends: segments on disk, the catalog in SQLite, live lists, retention.
//!
//! Synchronous: async callers use `spawn_blocking`. No HTTP and no link here; what is worth deciding is
//! decided by pure code (`media::live_list`, `retention`) and carried out here.
//!
//! Keeps invariants 1, 2 and 4: durable first, visible second, forgotten last.
#![allow(unused_variables, dead_code)] // CONTRACT STUB: replaced by the real thing
use std::{ops::Range, path::{Path, PathBuf}, sync::Arc, time::Duration, fs::File};
use bytes::Bytes;
use model::*;

/// A store that is open; clones share it.
#[derive(Clone)]
pub struct Store { _inner: Arc<()> }

pub struct StoreOptions {
    /// Who holds the lock, for the message a second daemon prints: "hub serve", "edge-node push".
    pub holder: String,
    /// Write hour lists and live.m3u8 into the segment folders (edge).
    pub local_playlists: bool,
    pub live_window: Duration,      // default 120 s, at least 3 targets and 6 segments are always kept listed
    pub limits: RetentionLimits,
}
#[derive(Clone, Copy, Default)]
pub struct RetentionLimits { pub max_age: Option<Duration>, pub max_bytes: Option<u64>, pub reserve_bytes: u64, /** edge: keep what the hub has not stored yet unless forced */ pub keep_unshipped: bool }

/// What start-up found and repaired, for the log.
#[derive(Debug, Default)]
pub struct RecoveryReport { pub open_closed: u64, pub partials_kept: u64, pub orphans_removed: u64, pub missing_files: u64 }

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")] Io { path: PathBuf, source: std::io::Error },
    #[error("catalog {path}: {source}")] Catalog { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is in use by {holder}: stop it, or give another --data-dir")] Locked { path: PathBuf, holder: String },
    #[error("no stream named {0}")] NoSuchStream(StreamName),
    #[error("stream {stream} belongs to device {owner}: `hub stream move {stream} NEW_DEVICE` gives it away")] OwnedByOther { stream: StreamName, owner: DeviceName },
    #[error("segment {stream} {number} exists already")] NumberUsed { stream: StreamName, number: SegmentNumber },
    #[error("segment {stream} {number}: {what}")] Segment { stream: StreamName, number: SegmentNumber, what: String },
    /* more as needed */
}
type Result<T> = std::result::Result<T, StoreError>;

/// What opens a segment.
#[derive(Debug, Clone, Copy)]
pub struct OpenSegment { pub number: SegmentNumber, pub run: SegmentNumber, pub wall_start: WallTime, pub media_start: MediaTime, pub independent: bool }

/// The segment now being written to a stream, as far as it is readable (its file may be read up to `bytes`).
#[derive(Debug, Clone)]
pub struct OpenView { pub open: OpenSegment, pub bytes: u64, pub parts: Vec<PartInfo> }

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState { /** segments are coming */ Live, /** not ended, nothing is coming */ Idle, Ended }

#[derive(Debug, Clone)]
pub struct StreamSummary {
    pub name: StreamName, pub title: Option<String>, pub owner: Option<DeviceName>, pub state: StreamState,
    pub codecs: Option<String>, pub resolution: Option<(u32, u32)>,
    pub segments: u64, pub bytes: u64,
    /// Recorded ranges, newest first, at most 64: wall start, wall end.
    pub ranges: Vec<(WallTime, WallTime)>,
    pub first_number: Option<SegmentNumber>, pub last_number: Option<SegmentNumber>,
    /// Edge: how many closed segments the hub has not stored.
    pub unshipped: u64, pub unshipped_bytes: u64,
}

/// What the edge told of a segment that is not here yet (hub).
#[derive(Debug, Clone, Copy)]
pub struct Announced { pub info: SegmentInfo }

impl Store {
    pub fn open(dir: &Path, options: StoreOptions) -> Result<(Self, RecoveryReport)> { todo!() }
    /// Ticks whenever something changed (segment opened, part written, closed, stored, ended, devices): a level, not a queue.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> { todo!() }

    // --- streams
    /// Makes sure the stream exists and belongs to `owner` (None: this edge itself). Reopens nothing.
    pub fn register_stream(&self, stream: &StreamName, owner: Option<&DeviceName>) -> Result<()> { todo!() }
    pub fn streams(&self) -> Result<Vec<StreamSummary>> { todo!() }
    pub fn stream(&self, stream: &StreamName) -> Result<Option<StreamSummary>> { todo!() }
    /// A run begins (its number is the number of its first segment). Idempotent.
    pub fn put_run(&self, stream: &StreamName, run: &RunInfo) -> Result<()> { todo!() }
    pub fn run(&self, stream: &StreamName, run: SegmentNumber) -> Result<Option<RunInfo>> { todo!() }
    /// The stream ends after `last` (None: it is empty). ENDLIST is committed as soon as every segment up to it is settled here.
    pub fn end_stream(&self, stream: &StreamName, last: Option<SegmentNumber>) -> Result<()> { todo!() }
    /// The number after which the stream was told to end, if it was and nothing came after it.
    pub fn ending(&self, stream: &StreamName) -> Result<Option<SegmentNumber>> { todo!() }

    // --- writing
    /// Burns the number, durably, before it returns; the stream must be registered and the run put.
    pub fn open_segment(&self, stream: &StreamName, open: OpenSegment) -> Result<SegmentWriter> { todo!() }
    /// Goes on with a partial that a restart or a lost session left (hub).
    pub fn resume_segment(&self, stream: &StreamName, number: SegmentNumber) -> Result<Option<SegmentWriter>> { todo!() }
    /// Partials of a stream that wait to be resumed: what opened them, length, BLAKE3 of those bytes (hub).
    pub fn partials(&self, stream: &StreamName) -> Result<Vec<(OpenSegment, u64, SegmentHash)>> { todo!() }

    // --- reading
    pub fn segment(&self, stream: &StreamName, number: SegmentNumber) -> Result<Option<SegmentInfo>> { todo!() }
    /// The file of a closed segment, opened, with what is known of it.
    pub fn open_file(&self, stream: &StreamName, number: SegmentNumber) -> Result<Option<(SegmentInfo, File)>> { todo!() }
    /// Bytes of a closed segment, or of the open one up to what is written.
    pub fn read(&self, stream: &StreamName, number: SegmentNumber, range: Range<u64>) -> Result<Bytes> { todo!() }
    pub fn open_view(&self, stream: &StreamName) -> Result<Option<OpenView>> { todo!() }
    /// Closed segments here from `from` on, ascending.
    pub fn list(&self, stream: &StreamName, from: SegmentNumber, limit: usize) -> Result<Vec<SegmentInfo>> { todo!() }

    // --- live lists and recordings
    /// The live playlist as committed, rendered once per change. None: no segment yet.
    pub fn live_playlist(&self, stream: &StreamName) -> Result<Option<Arc<Playlist>>> { todo!() }
    /// The recording of a time range (None/None: the newest settled stretch).
    pub fn recording(&self, stream: &StreamName, from: Option<WallTime>, to: Option<WallTime>) -> Result<Option<Playlist>> { todo!() }

    // --- replication, hub side
    /// Ranges of numbers that can no longer change here: here, or tombstoned.
    pub fn settled(&self, stream: &StreamName) -> Result<RangeSet> { todo!() }
    pub fn announce(&self, stream: &StreamName, segments: &[Announced]) -> Result<()> { todo!() }
    pub fn settle(&self, stream: &StreamName, range: std::ops::RangeInclusive<SegmentNumber>, reason: HoleReason) -> Result<()> { todo!() }
    /// The lowest number never used here for this stream.
    pub fn floor(&self, stream: &StreamName) -> Result<SegmentNumber> { todo!() }

    // --- replication, edge side
    /// Replaces what is known of the hub: numbers in `settled` need no shipping, all others here do.
    pub fn set_settled(&self, stream: &StreamName, settled: &RangeSet) -> Result<()> { todo!() }
    /// The hub said `Stored` (or settled) for one segment.
    pub fn mark_stored(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> { todo!() }
    /// Closed segments the hub has not settled, from `from` on, ascending.
    pub fn unshipped(&self, stream: &StreamName, from: SegmentNumber, limit: usize) -> Result<Vec<SegmentInfo>> { todo!() }
    /// Tombstones the hub should hear of (evicted, corrupt, burnt): number ranges with reason.
    pub fn holes(&self, stream: &StreamName) -> Result<Vec<(std::ops::RangeInclusive<SegmentNumber>, HoleReason)>> { todo!() }

    // --- upkeep
    /// Plans and carries out retention once. The daemon calls it every few seconds and when a write says the disk is full.
    pub fn run_janitor(&self, now: WallTime) -> Result<JanitorReport> { todo!() }
    /// A source that can wait must wait: the disk limit is reached and nothing that is stored on the hub is left to evict.
    pub fn should_hold_back(&self) -> Result<bool> { todo!() }
}

#[derive(Debug, Default, Clone, Copy)]
pub struct JanitorReport { pub deleted: u64, pub deleted_bytes: u64, pub forced: u64 }

/// Writes one segment. Dropping it leaves the partial on disk (resumable).
pub struct SegmentWriter { _private: () }
impl SegmentWriter {
    pub fn bytes(&self) -> u64 { todo!() }
    /// BLAKE3 of what is written.
    pub fn hash(&self) -> SegmentHash { todo!() }
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> { todo!() }
    /// Makes all bytes since the last part a part, readable by others through `open_view` and `read`.
    pub fn finish_part(&mut self, duration: MediaDuration, independent: bool) -> Result<()> { todo!() }
    /// fsync, rename, fsync of the folder, row *here* and live list in one commit. With `expected`, length and hash must agree:
    /// otherwise the partial is dropped and the error says so; the second time the segment becomes a hole (*corrupt*).
    pub fn close(self, duration: MediaDuration, expected: Option<(u64, SegmentHash)>) -> Result<SegmentInfo> { todo!() }
    /// Throws the partial away; the number stays burnt.
    pub fn discard(self) -> Result<()> { todo!() }
}

/// A rendered playlist.
#[derive(Debug, Clone)]
pub struct Playlist { pub text: Bytes, pub etag: String, pub ended: bool, pub target_duration_s: u32, pub last_modified: WallTime }

pub mod devices {
    //! Devices, their keys and enrolment tokens (hub). Methods on [`Store`].
    use super::*;
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Device { pub name: DeviceName, pub key: Option<[u8; 32]>, pub enabled: bool, pub enrolled: Option<WallTime>, pub last_seen: Option<WallTime>, pub last_address: Option<String> }
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    pub enum TokenError {
        #[error("this enrolment token is not known here")] Unknown,
        #[error("this enrolment token was used already: make a new one with `hub enroll NAME`")] Used,
        #[error("this enrolment token has expired: make a new one with `hub enroll NAME`")] Expired,
    }
    impl Store {
        /// A token (stored as its hash) with which NAME may enrol once; reserves streams for it.
        pub fn create_token(&self, name: &DeviceName, token: &[u8], expires: WallTime, streams: &[StreamName], now: WallTime) -> Result<()> { todo!() }
        /// Checks a token without using it up: the device's name. A key that began with this token may repeat it.
        pub fn check_token(&self, token: &[u8], key: &[u8; 32], now: WallTime) -> Result<std::result::Result<DeviceName, TokenError>> { todo!() }
        /// The edge has confirmed: the token is used, the device's key replaced.
        pub fn use_token(&self, token: &[u8], key: &[u8; 32], now: WallTime) -> Result<std::result::Result<DeviceName, TokenError>> { todo!() }
        pub fn device_by_key(&self, key: &[u8; 32]) -> Result<Option<Device>> { todo!() }
        pub fn devices(&self) -> Result<Vec<Device>> { todo!() }
        /// false: no such device.
        pub fn set_device_enabled(&self, name: &DeviceName, enabled: bool) -> Result<bool> { todo!() }
        pub fn remove_device(&self, name: &DeviceName) -> Result<bool> { todo!() }
        pub fn seen(&self, name: &DeviceName, address: &str, now: WallTime) -> Result<()> { todo!() }
        pub fn move_stream(&self, stream: &StreamName, to: &DeviceName) -> Result<bool> { todo!() }
        pub fn remove_stream(&self, stream: &StreamName) -> Result<bool> { todo!() }
        pub fn streams_of(&self, device: &DeviceName) -> Result<Vec<StreamName>> { todo!() }
    }
}
