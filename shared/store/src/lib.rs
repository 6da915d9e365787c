//! The segment store of both ends: segments on disk, the catalog in SQLite, live lists, retention.
//!
//! Synchronous: async callers use `spawn_blocking`. No HTTP and no link here; what is worth deciding is
//! decided by pure code (`media::live_list`, [`RetentionLimits`]' plan) and carried out here.
//!
//! Keeps invariants 1, 2 and 4: durable first, visible second, forgotten last; numbers are burnt before use;
//! live lists are committed before they are served.

mod adopt;
mod backup;
mod catalog;
pub mod devices;
mod edge_writer;
mod error;
mod files;
mod janitor;
mod journal;
mod keeper;
mod live;
mod local_playlists;
mod lock;
mod orphans;
mod probe;
mod rebuild;
mod recording;
mod recover;
mod renumber;
mod replication;
mod restamp;
mod retention;
mod scrub;
mod steady;
mod store;
mod taken;
#[cfg(test)]
mod tests;
mod tier;
mod trouble;
mod wants;
mod writer;

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use bytes::Bytes;
use model::{
    DeviceName, HoleReason, MediaTime, PartInfo, SegmentInfo, SegmentNumber, StreamName, WallTime,
};

pub use backup::{BACKUP_NOTE, BackupReport};
pub use edge_writer::EdgeWriter;
pub use error::StoreError;
pub use files::make_data_dir;
pub use recording::MAX_RECORDING_SEGMENTS;
pub use replication::{Backlog, MAX_ANNOUNCED_ROWS};
pub use restamp::RESTAMP_TOLERANCE_MS;
pub use retention::RetentionLimits;
pub use scrub::{ScrubTotals, Scrubbed};
pub use store::Store;
pub use taken::{FileId, MAX_TAKEN, OnHub, Progress, Taken, TakenState};
pub use tier::{DEFAULT_MEMORY_BYTES, InMemory};
pub use trouble::{DiskTrouble, MemoryCounters, TroubleKind};
pub use wants::{MAX_WANTED_RANGES, WANT_EXPIRES, Wanted};
pub use writer::SegmentWriter;

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Who holds the lock, for the message that a second daemon prints: `hub serve`, `edge-node push`.
    pub holder: String,
    /// This store records (edge): open segments are closed after a crash, and hour lists and `live.m3u8`
    /// are written into the segment folders. A hub's partials wait to be resumed instead.
    pub local_playlists: bool,
    /// How much a live list keeps listed. Default 120 s; at least 3 targets and 6 segments in any case.
    pub live_window: Duration,
    pub limits: RetentionLimits,
    /// Each finished part is made durable before the next is written: a loss of power takes the open
    /// segment's last part at most. Without it, all of the open segment. Default false: a hub gets its
    /// parts again from the edge.
    pub sync_parts: bool,
    /// Memory in which segments wait while the disk fails or is slow (edge).
    pub memory_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            holder: "another program".to_owned(),
            local_playlists: false,
            live_window: media::live_list::DEFAULT_WINDOW.to_duration(),
            limits: RetentionLimits::default(),
            sync_parts: false,
            memory_bytes: DEFAULT_MEMORY_BYTES,
        }
    }
}

/// What start-up found and repaired, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Where a damaged catalog is now; a new one was built in its place.
    pub catalog_set_aside: Option<PathBuf>,
    /// Devices, streams and ranges of deleted numbers that the damaged catalog still told.
    pub salvaged_devices: u64,
    pub salvaged_streams: u64,
    pub salvaged_tombstones: u64,
    /// Streams that lay on the disk and were in no row.
    pub streams_found: u64,
    /// Segments that no row knew and that have one now.
    pub adopted: u64,
    /// Open segments that were closed at what they held (edge).
    pub open_closed: u64,
    /// Partials that wait to be resumed (hub).
    pub partials_kept: u64,
    /// Files that no row knew and that could not be adopted; they are in `orphans/` now.
    pub set_aside: u64,
    /// Files that were deleted on purpose and had outlived their row.
    pub orphans_removed: u64,
    /// Rows whose file was gone; on a hub they are asked for again, on an edge they are holes now.
    pub missing_files: u64,
}

/// How a source is recorded and shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A camera: what is not taken of it now is lost.
    Live,
    /// A file that is played at its own pace: shipped like a camera's video, held back like a file.
    Paced,
    /// A file or folder: it loses nothing by waiting, and is shipped as backfill.
    AtRest,
}

impl SourceKind {
    /// It is held back where others are evicted.
    pub fn can_wait(self) -> bool {
        self != Self::Live
    }

    /// What it gives goes out as it is cut.
    pub fn is_live(self) -> bool {
        self != Self::AtRest
    }
}

/// What opens a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSegment {
    pub number: SegmentNumber,
    pub run: SegmentNumber,
    pub wall_start: WallTime,
    pub media_start: MediaTime,
    pub independent: bool,
}

/// The segment being written to a stream, as far as it is readable.
#[derive(Debug, Clone)]
pub struct OpenView {
    pub open: OpenSegment,
    /// Its file may be read up to here: the end of its last finished part.
    pub bytes: u64,
    pub parts: Vec<PartInfo>,
}

/// What a stream does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// Segments are coming.
    Live,
    /// Not ended, but nothing is coming.
    Idle,
    Ended,
}

/// A stream for pages, API and commands.
#[derive(Debug, Clone)]
pub struct StreamSummary {
    pub name: StreamName,
    pub title: Option<String>,
    pub owner: Option<DeviceName>,
    pub state: StreamState,
    pub codecs: Option<String>,
    pub resolution: Option<(u32, u32)>,
    /// Segments that are here.
    pub segments: u64,
    pub bytes: u64,
    /// Recorded ranges, newest first, at most 64: wall start, wall end.
    pub ranges: Vec<(WallTime, WallTime)>,
    pub first_number: Option<SegmentNumber>,
    pub last_number: Option<SegmentNumber>,
    /// Edge: closed segments that the hub has not stored.
    pub unshipped: u64,
    pub unshipped_bytes: u64,
    /// Edge: closed segments here that the hub has settled without having them.
    pub given_up: u64,
}

/// What the edge told of a segment that is not here yet (hub).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    pub info: SegmentInfo,
}

/// What announced segments are at a hub.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Here, with the announced length and hash.
    pub stored: Vec<SegmentNumber>,
    /// Settled without being here.
    pub holes: Vec<(SegmentNumber, HoleReason)>,
    /// The lowest number under which another segment is here; what was announced behind it is not waited for.
    pub collides: Option<SegmentNumber>,
}

/// What an edge still has to ship, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldPage {
    /// Ascending.
    pub ranges: Vec<RangeInclusive<SegmentNumber>>,
    /// Where the next page begins; None: there is nothing behind these.
    pub next: Option<SegmentNumber>,
}

/// What the janitor did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JanitorReport {
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// Of these, evicted before the hub had them.
    pub forced: u64,
    /// Of these, deleted while readers of the live list might still ask for them: space did not wait.
    pub graced: u64,
}

/// A rendered playlist.
#[derive(Debug, Clone)]
pub struct Playlist {
    pub text: Bytes,
    /// A hash of the text, without quotes.
    pub etag: String,
    /// End-listed.
    pub ended: bool,
    pub target_duration_s: u32,
    pub last_modified: WallTime,
}
