//! Tests of the store as a whole, on real directories.

mod crash;
mod damage;
mod devices;
mod lists;
mod memory;
mod model_based;
mod renumber;
mod replication;
mod restamp;
mod taken;
mod upkeep;

use std::path::Path;

use model::{
    MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName,
    WallTime,
};
use tempfile::TempDir;

use crate::{OpenSegment, Store, StoreOptions};

/// 2026-05-01T08:00:00Z.
pub(crate) const T0: WallTime = WallTime(1_777_622_400_000);
const TWO_SECONDS: MediaDuration = MediaDuration(180_000);

pub(crate) fn gate() -> StreamName {
    "gate".parse().unwrap()
}

pub(crate) fn n(number: u64) -> SegmentNumber {
    SegmentNumber(number)
}

/// A store in a directory of its own, with the stream `gate` and run 1.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) options: StoreOptions,
    store: Option<Store>,
}

impl Site {
    pub(crate) fn hub() -> Self {
        Self::with(StoreOptions::default())
    }

    pub(crate) fn edge() -> Self {
        Self::with(StoreOptions {
            local_playlists: true,
            ..StoreOptions::default()
        })
    }

    pub(crate) fn with(options: StoreOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), options.clone()).unwrap();
        store.register_stream(&gate(), None).unwrap();
        store.put_run(&gate(), &run(1)).unwrap();
        Self {
            dir,
            options,
            store: Some(store),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Closes the store, as a kill does, and opens it again.
    pub(crate) fn restart(&mut self) -> crate::RecoveryReport {
        self.restart_after(|| {})
    }

    /// The same, with something that happens in between.
    pub(crate) fn restart_after(&mut self, between: impl FnOnce()) -> crate::RecoveryReport {
        self.store = None;
        between();
        let (store, report) = Store::open(self.dir.path(), self.options.clone()).unwrap();
        self.store = Some(store);
        report
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn live(&self) -> String {
        let playlist = self.store().live_playlist(&gate()).unwrap().unwrap();
        String::from_utf8(playlist.text.to_vec()).unwrap()
    }

    /// Segment URIs (and gaps) of the live list.
    pub(crate) fn listed(&self) -> Vec<String> {
        self.live()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    }
}

pub(crate) fn run(number: u64) -> RunInfo {
    RunInfo {
        run: n(number),
        codecs: "avc1.64001f,mp4a.40.2".to_owned(),
        resolution: Some((1280, 720)),
        target_duration_s: 2,
    }
}

pub(crate) fn open(number: u64, run: u64) -> OpenSegment {
    OpenSegment {
        number: n(number),
        run: n(run),
        wall_start: WallTime(T0.0 + number as i64 * 2_000),
        media_start: MediaTime(number as i64 * TWO_SECONDS.0),
        independent: true,
    }
}

pub(crate) fn bytes_of(number: u64) -> Vec<u8> {
    (0..564u64).map(|i| (i * 7 + number * 13) as u8).collect()
}

pub(crate) fn info_of(number: u64, run: u64) -> SegmentInfo {
    let open = open(number, run);
    let bytes = bytes_of(number);
    SegmentInfo {
        number: open.number,
        run: open.run,
        wall_start: open.wall_start,
        media_start: open.media_start,
        duration: TWO_SECONDS,
        bytes: bytes.len() as u64,
        hash: SegmentHash::of(&bytes),
        independent: true,
    }
}

/// Writes and closes a whole segment.
pub(crate) fn put(store: &Store, number: u64, run: u64) -> SegmentInfo {
    let mut writer = store.open_segment(&gate(), open(number, run)).unwrap();
    writer.append(&bytes_of(number)).unwrap();
    writer.finish_part(TWO_SECONDS, true).unwrap();
    writer.close(TWO_SECONDS, None).unwrap()
}
