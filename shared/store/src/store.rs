//! The store itself: opening it, what is known of it while it is open, and who is told of changes.

mod content;
mod registry;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    ops::{Range, RangeInclusive},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use media::playlist::UriForm;
use model::{
    BootTime, DeviceName, MAX_SEGMENT_BYTES, MediaDuration, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};
use rusqlite::Connection;
use tokio::sync::watch;

use crate::{
    OpenSegment, OpenView, Playlist, RecoveryReport, SegmentWriter, StoreOptions, StreamState,
    StreamSummary,
    catalog::{
        Catalog, Fault, boots, renumber,
        segments::{self, SegmentRow, State},
        spans,
        streams::{self, StreamRow},
    },
    error::{AtPath, Result, StoreError},
    files::{self, Layout},
    janitor::Room,
    keeper::Keeper,
    live::{self, Advanced, Times},
    lock::Lock,
    rebuild,
    scrub::ScrubCounts,
    steady::Steady,
    tier::{Tier, TierStream},
    trouble::{Health, TroubleKind},
    wants::Wants,
};

/// A stream that wrote within this is live: two long segments without a part.
const LIVE_WITHIN: Duration = Duration::from_secs(12);

/// Every number there can be.
pub(crate) const ALL: RangeInclusive<SegmentNumber> = SegmentNumber(0)..=SegmentNumber(u64::MAX);

/// Recorded ranges told of a stream.
const MAX_RANGES: usize = 64;

/// A store that is open; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Ends the disk's thread with the last user's store; the thread's own has none.
    _keeper: Option<Arc<Keeper>>,
}

pub(crate) struct Inner {
    pub(crate) data_dir: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) options: StoreOptions,
    pub(crate) catalog: Catalog,
    changes: watch::Sender<u64>,
    streams: Mutex<HashMap<StreamName, Arc<Mutex<Memory>>>>,
    foreign_version: Mutex<i64>,
    steady: Mutex<Steady>,
    upkeep: Mutex<Upkeep>,
    pub(crate) scrubbed: ScrubCounts,
    pub(crate) tier: Arc<Tier>,
    pub(crate) health: Health,
    pub(crate) wants: Wants,
    /// Held by whoever deletes for want of room.
    pub(crate) evicting: Mutex<()>,
    lock: Mutex<Option<Arc<Lock>>>,
}

/// A segment being written.
pub(crate) struct Opened {
    pub(crate) view: OpenView,
    /// More than one while a device's new session takes over from its old one.
    pub(crate) writers: usize,
}

/// What is known of a stream while the store is open.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) open: BTreeMap<SegmentNumber, Opened>,
    pub(crate) playlist: Option<Arc<Playlist>>,
    playlist_loaded: bool,
    pub(crate) last_write: Option<Instant>,
    /// Segment folder and run whose ledger has the run's line.
    pub(crate) journaled: Option<(u64, SegmentNumber)>,
    /// Held from before a commit that changes the live list until its text is published: what viewers see
    /// follows the commits in their order (invariant 4).
    order: Arc<Mutex<()>>,
    /// Edge: held while hour lists are written; the highest number that a rewriting of them has listed.
    pub(crate) hour_lists: Arc<Mutex<Option<SegmentNumber>>>,
    /// Held while segments get other numbers: the uplink and the recorder both carry a renumbering on.
    pub(crate) moving: Arc<Mutex<()>>,
}

/// What upkeep remembers between its rounds.
#[derive(Default)]
pub(crate) struct Upkeep {
    pub(crate) orphans_swept: Option<Instant>,
    /// When the janitor last looked, by both clocks.
    pub(crate) janitor_looked: Option<(Instant, WallTime)>,
    /// Nothing expires by age before this: the wall clock has jumped.
    pub(crate) age_held: Option<Instant>,
    /// When it was last told that space did not wait for readers.
    pub(crate) graced_told: Option<Instant>,
    /// Where scrubbing goes on: stream, number.
    pub(crate) scrub_above: Option<(i64, i64)>,
}

impl Inner {
    pub(crate) fn window(&self) -> MediaDuration {
        MediaDuration::from_duration(self.options.live_window)
    }

    /// After the data directory was away: another daemon must not come in between.
    pub(crate) fn take_lock_again(&self) -> Result<()> {
        let lock = Lock::take(&self.data_dir, &self.options.holder)?;
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(lock));
        Ok(())
    }
}

/// The time by this machine's clock.
pub(crate) fn wall_now() -> WallTime {
    wall_time(SystemTime::now())
}

/// A file's time, or any other of this machine's clock.
pub(crate) fn wall_time(at: SystemTime) -> WallTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.data_dir.display())
    }
}

/// Opening.
impl Store {
    /// Opens or creates the store of a data directory as its one daemon, and reconciles what a crash left.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<(Self, RecoveryReport)> {
        files::make_data_dir(dir).at(dir)?;
        let lock = Arc::new(Lock::take(dir, &options.holder)?);
        match Self::open_locked(dir, options.clone(), lock.clone()) {
            // Met only now, and marked: the second time it is read whole, and rebuilt.
            Err(error) if error.is_damage() => Self::open_locked(dir, options, lock),
            // Even to be opened the catalog writes.
            Err(error) if error.disk_fault() == Some(TroubleKind::Full) => {
                files::drop_ballast(dir)?;
                Self::open_locked(dir, options, lock)
            }
            opened => opened,
        }
    }

    fn open_locked(
        dir: &Path,
        options: StoreOptions,
        lock: Arc<Lock>,
    ) -> Result<(Self, RecoveryReport)> {
        let (catalog, damaged) = rebuild::open(dir)?;
        let mut store = Self::assemble(dir, options, catalog, Some(lock))?;
        let report = match store.recover(damaged.clone()) {
            Err(error) if error.disk_fault() == Some(TroubleKind::Full) => {
                tracing::warn!(%error, "the disk is full: making room, then putting the store in order again");
                if !store.make_room(Room::Full { live: true }) {
                    files::drop_ballast(dir)?;
                }
                store.recover(damaged)?
            }
            done => done?,
        };
        if store.inner.options.local_playlists {
            if let Err(error) = files::lay_ballast(dir) {
                tracing::warn!(%error, "no room for what a full disk is told with");
            }
            let keeper = Keeper::start(Arc::clone(&store.inner)).at(dir)?;
            store._keeper = Some(Arc::new(keeper));
        }
        Ok((store, report))
    }

    /// Opens the catalog beside a daemon, for subcommands: no lock, nothing reconciled, no segment written.
    pub fn open_beside(dir: &Path) -> Result<Self> {
        files::make_data_dir(dir).at(dir)?;
        Self::assemble(dir, StoreOptions::default(), Catalog::open(dir)?, None)
    }

    fn assemble(
        dir: &Path,
        options: StoreOptions,
        catalog: Catalog,
        lock: Option<Arc<Lock>>,
    ) -> Result<Self> {
        let version = catalog.foreign_version()?;
        let tier = Arc::new(Tier::new(options.memory_bytes));
        Ok(Self {
            _keeper: None,
            inner: Arc::new(Inner {
                data_dir: dir.to_owned(),
                layout: Layout::new(dir),
                options,
                catalog,
                changes: watch::Sender::new(0),
                streams: Mutex::default(),
                foreign_version: Mutex::new(version),
                steady: Mutex::new(Steady::new(wall_now(), Instant::now())),
                upkeep: Mutex::default(),
                scrubbed: ScrubCounts::default(),
                tier,
                health: Health::default(),
                wants: Wants::default(),
                evicting: Mutex::default(),
                lock: Mutex::new(lock),
            }),
        })
    }

    /// The same store for its own thread.
    pub(crate) fn of(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            _keeper: None,
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// What SQLite said when it found the catalog damaged; None while it has not. Whoever runs the program
    /// ends it then: the next start rebuilds what it must.
    pub fn catalog_damage(&self) -> watch::Receiver<Option<String>> {
        self.inner.catalog.damage()
    }

    pub(crate) fn with_upkeep<T>(&self, work: impl FnOnce(&mut Upkeep) -> T) -> T {
        let upkeep = self.inner.upkeep.lock();
        work(&mut upkeep.unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn memory_of(&self, stream: &StreamName) -> Arc<Mutex<Memory>> {
        let mut streams = self
            .inner
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        streams.entry(stream.clone()).or_default().clone()
    }

    /// Looks at what is known of a stream; asking for one that isn't there leaves nothing behind (invariant 5).
    pub(crate) fn look_at<T>(
        &self,
        stream: &StreamName,
        look: impl FnOnce(&Memory) -> T,
    ) -> Option<T> {
        let memory = {
            let streams = self.inner.streams.lock();
            let streams = streams.unwrap_or_else(PoisonError::into_inner);
            streams.get(stream).cloned()
        }?;
        let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        Some(look(&memory))
    }

    /// Runs under the stream's lock; short work only.
    pub(crate) fn with_memory<T>(
        &self,
        stream: &StreamName,
        work: impl FnOnce(&mut Memory) -> T,
    ) -> T {
        let memory = self.memory_of(stream);
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut memory)
    }

    /// The time by which things are kept and let go: this machine's clock as it was when the store was opened,
    /// and what has passed since. A step of the clock does not move it, so none makes anything expire; see
    /// `steady.rs`.
    pub fn steady_now(&self) -> WallTime {
        let mut steady = self
            .inner
            .steady
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        steady.now(wall_now(), Instant::now())
    }

    /// Ticks whenever something changed: a segment opened, a part finished, closed, stored, ended, a device
    /// changed. A level, not a queue: look at what is there, then wait for the next tick. Ask the store nothing
    /// while the number is borrowed (as in `wait_for`): the next tick waits for that.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    pub(crate) fn tick(&self) {
        self.inner.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Whether another process (a subcommand) changed the catalog since the last call; if so, ticks. The
    /// daemon asks each second.
    pub fn notice_foreign_changes(&self) -> Result<bool> {
        let now = self.inner.catalog.foreign_version()?;
        let mut last = self
            .inner
            .foreign_version
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = *last != now;
        *last = now;
        drop(last);
        if changed {
            // `hub stream end` and `remove` change what is listed.
            self.forget_playlists();
            self.tick();
        }
        Ok(changed)
    }
}
