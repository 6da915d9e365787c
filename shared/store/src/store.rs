//! The store itself: opening, streams, reading, and the one path by which a live list changes.

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
    fn look_at<T>(&self, stream: &StreamName, look: impl FnOnce(&Memory) -> T) -> Option<T> {
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
    /// changed. A level, not a queue: look at what is there, then wait for the next tick.
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

/// Streams.
impl Store {
    /// Makes sure the stream exists and belongs to `owner` (None: this edge itself).
    pub fn register_stream(&self, stream: &StreamName, owner: Option<&DeviceName>) -> Result<()> {
        let known = self.inner.catalog.read(|c| Ok(streams::find(c, stream)?))?;
        if known.is_some_and(|row| row.owner.as_ref() == owner) {
            return Ok(());
        }
        self.inner
            .catalog
            .write(|c| streams::register(c, stream, owner, wall_now()))?;
        self.tick();
        Ok(())
    }

    /// The names of all streams, ascending.
    pub fn stream_names(&self) -> Result<Vec<StreamName>> {
        let in_memory: Vec<_> = self.inner.tier.lock().streams.keys().cloned().collect();
        let rows = self.inner.catalog.read(|c| Ok(streams::all(c)?));
        let mut names: Vec<_> = match rows {
            Ok(rows) => rows.into_iter().map(|row| row.name).collect(),
            Err(_) if !in_memory.is_empty() && self.inner.health.is_troubled() => Vec::new(),
            Err(error) => return Err(error),
        };
        names.extend(in_memory);
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Looks at what memory holds of a stream.
    pub(crate) fn in_tier<T>(
        &self,
        stream: &StreamName,
        look: impl FnOnce(&TierStream) -> T,
    ) -> Option<T> {
        self.inner.tier.lock().streams.get(stream).map(look)
    }

    /// What the catalog says, or nothing where it has not heard of a stream that memory holds, or where the
    /// disk fails and memory is all there is.
    pub(crate) fn or_in_memory<T: Default>(
        &self,
        stream: &StreamName,
        read: Result<T>,
    ) -> Result<T> {
        let held = || self.in_tier(stream, |_| ()).is_some();
        match read {
            Err(StoreError::NoSuchStream(_)) if held() => Ok(T::default()),
            Err(error)
                if error.disk_fault().is_some() && self.inner.health.is_troubled() && held() =>
            {
                Ok(T::default())
            }
            read => read,
        }
    }

    pub fn streams(&self) -> Result<Vec<StreamSummary>> {
        let rows = self.inner.catalog.read(|c| Ok(streams::all(c)?))?;
        rows.into_iter().map(|row| self.summary(row)).collect()
    }

    pub fn stream(&self, stream: &StreamName) -> Result<Option<StreamSummary>> {
        let row = self.inner.catalog.read(|c| Ok(streams::find(c, stream)?))?;
        let held = || self.in_tier(stream, |held| self.only_in_memory(stream, held));
        match row {
            Some(row) => self.summary(row).map(Some),
            None => Ok(held()),
        }
    }

    /// A stream whose first segments have not come to the disk.
    fn only_in_memory(&self, stream: &StreamName, held: &TierStream) -> StreamSummary {
        let run = held.runs.values().next_back().map(|(run, _)| run);
        let unshipped = || held.unshipped(SegmentNumber(0));
        StreamSummary {
            name: stream.clone(),
            title: None,
            owner: None,
            state: StreamState::Live,
            codecs: run.map(|run| run.codecs.clone()),
            resolution: run.and_then(|run| run.resolution),
            segments: 0,
            bytes: 0,
            ranges: Vec::new(),
            first_number: None,
            last_number: None,
            unshipped: unshipped().count() as u64,
            unshipped_bytes: unshipped().map(|info| info.bytes).sum(),
            given_up: 0,
        }
    }

    fn summary(&self, row: streams::StreamRow) -> Result<StreamSummary> {
        // Memory first: what comes to the disk in between is counted twice, never left out.
        let waiting = self.in_tier(&row.name, |held| {
            let unshipped = || held.unshipped(SegmentNumber(0));
            let bytes: u64 = unshipped().map(|info| info.bytes).sum();
            (unshipped().count() as u64, bytes)
        });
        let waiting = waiting.unwrap_or_default();
        let (run, spans, totals, unshipped, given_up) = self.inner.catalog.read(|c| {
            Ok((
                streams::newest_run(c, row.id)?,
                spans::newest(c, row.id, MAX_RANGES)?,
                spans::totals(c, row.id)?,
                segments::count_unshipped(c, row.id)?,
                segments::count_given_up(c, row.id)?,
            ))
        })?;
        let marked = self.in_tier(&row.name, TierStream::marked);
        let marked = marked.unwrap_or_default();
        let writing = self.is_written(&row.name);
        Ok(StreamSummary {
            state: match (row.told_to_end, writing) {
                (true, _) => StreamState::Ended,
                (false, true) => StreamState::Live,
                (false, false) => StreamState::Idle,
            },
            name: row.name,
            title: row.title,
            owner: row.owner,
            codecs: run.as_ref().map(|run| run.codecs.clone()),
            resolution: run.and_then(|run| run.resolution),
            segments: totals.segments,
            bytes: totals.bytes,
            ranges: spans.iter().map(|span| (span.from, span.to)).collect(),
            first_number: totals.first,
            last_number: totals.last,
            unshipped: (unshipped.0 + waiting.0).saturating_sub(marked.0),
            unshipped_bytes: (unshipped.1 + waiting.1).saturating_sub(marked.1),
            given_up: given_up.iter().map(|(_, count)| count).sum(),
        })
    }

    pub(crate) fn has_writer(&self, stream: &StreamName, number: SegmentNumber) -> bool {
        self.look_at(stream, |memory| memory.open.contains_key(&number))
            .unwrap_or(false)
    }

    /// Whether segments are coming.
    pub(crate) fn is_written(&self, stream: &StreamName) -> bool {
        let written = self.look_at(stream, |memory| {
            let lately = |at: Instant| at.elapsed() < LIVE_WITHIN;
            !memory.open.is_empty() || memory.last_write.is_some_and(lately)
        });
        written.unwrap_or(false)
    }

    /// A run begins; its number is the number of its first segment. Idempotent; another run of that number is
    /// never overwritten: that is `NumberUsed`.
    pub fn put_run(&self, stream: &StreamName, run: &RunInfo) -> Result<()> {
        let known = self.run(stream, run.run)?;
        if known.as_ref() == Some(run) {
            return Ok(());
        }
        self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            streams::put_run(c, row.id, run)?;
            if streams::run(c, row.id, run.run)?.as_ref() != Some(run) {
                return Err(StoreError::NumberUsed {
                    stream: stream.clone(),
                    number: run.run,
                }
                .into());
            }
            Ok(())
        })
    }

    pub fn run(&self, stream: &StreamName, run: SegmentNumber) -> Result<Option<RunInfo>> {
        let held = self.in_tier(stream, |held| {
            held.runs.get(&run).map(|(run, _)| run.clone())
        });
        if let Some(held) = held.flatten() {
            return Ok(Some(held));
        }
        self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::run(c, row.id, run)?)
        })
    }

    /// The stream ends after `last` (None: it is empty). ENDLIST is committed as soon as every segment up to
    /// it is settled here.
    pub fn end_stream(&self, stream: &StreamName, last: Option<SegmentNumber>) -> Result<()> {
        let end_in_memory = || {
            self.inner.tier.give(|state| {
                let held = state.streams.entry(stream.clone()).or_default();
                held.ending = Some(last);
                held.ended_on_hub = false;
            });
            self.tick();
            Ok(())
        };
        if self.in_tier(stream, |held| !held.is_written()) == Some(true) {
            return end_in_memory();
        }
        let ended = self.change_live(stream, |c, row| {
            renumber::end_at(c, row.id, last)?;
            Ok(())
        });
        match ended {
            Err(error) if self._keeper.is_some() && error.disk_fault().is_some() => end_in_memory(),
            ended => ended,
        }
    }

    /// Whether the stream was told to end and nothing came after it: `Some(last)`, where `last` is None for
    /// a stream that ended empty.
    pub fn ending(&self, stream: &StreamName) -> Result<Option<Option<SegmentNumber>>> {
        if let Some(ending) = self.in_tier(stream, |held| held.ending).flatten() {
            return Ok(Some(ending));
        }
        let row = self.inner.catalog.read(|c| streams::get(c, stream));
        self.or_in_memory(stream, row.map(|row| row.told_to_end.then_some(row.ending)))
    }

    /// Edge: the hub has confirmed the end.
    pub fn mark_ended_on_hub(&self, stream: &StreamName) -> Result<()> {
        let troubled = self.inner.health.is_troubled();
        let in_memory = self.inner.tier.give(|state| {
            let held = state.streams.get_mut(stream);
            let held = held.filter(|held| troubled || held.ending.is_some());
            held.map(|held| held.ended_on_hub = true).is_some()
        });
        if in_memory {
            self.tick();
            return Ok(());
        }
        let marked = self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::mark_ended_on_hub(c, row.id)?)
        });
        match marked {
            // The disk's thread tells the catalog when it can: the hub says it once only.
            Err(error) if self._keeper.is_some() && error.disk_fault().is_some() => {
                self.inner.tier.give(|state| {
                    let held = state.streams.entry(stream.clone()).or_default();
                    held.ended_on_hub = true;
                });
            }
            marked => marked?,
        }
        self.tick();
        Ok(())
    }

    /// Edge: whether the hub has confirmed the end that the stream was told.
    pub fn ended_on_hub(&self, stream: &StreamName) -> Result<bool> {
        let held = self.in_tier(stream, |held| match held.ending {
            Some(_) => Some(held.ended_on_hub),
            None => held.ended_on_hub.then_some(true),
        });
        if let Some(ended) = held.flatten() {
            return Ok(ended);
        }
        let row = self.inner.catalog.read(|c| streams::get(c, stream));
        self.or_in_memory(stream, row.map(|row| row.told_to_end && row.ended_on_hub))
    }
}

/// Writing.
impl Store {
    /// Opens a segment. Its number is burnt, durably, before this returns (invariant 2). The stream must be
    /// registered and its run put.
    pub fn open_segment(&self, stream: &StreamName, open: OpenSegment) -> Result<SegmentWriter> {
        self.open_at(stream, open, None)
    }

    /// Opens a segment of a live source, which began at `at` by the clock of this boot. Where that clock was
    /// corrected ([`Store::correct_boot`]) its wall time follows from it, else it is `open`'s until then.
    pub fn open_live_segment(
        &self,
        stream: &StreamName,
        open: OpenSegment,
        at: BootTime,
    ) -> Result<SegmentWriter> {
        self.open_at(stream, open, Some(at))
    }

    fn open_at(
        &self,
        stream: &StreamName,
        mut open: OpenSegment,
        at: Option<BootTime>,
    ) -> Result<SegmentWriter> {
        self.inner.catalog.present()?;
        self.inner.layout.make_folder(stream, open.number)?;
        if self.inner.options.local_playlists {
            self.close_left_open(stream)?;
            // Its run may have got another number since it began.
            open.run = self.inner.catalog.read(|c| {
                let row = streams::get(c, stream)?;
                Ok(renumber::run_now(c, row.id, open.run)?)
            })?;
        } else {
            self.forget_left_open(stream, open.number)?;
        }
        self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            // In this transaction: a correction finds the row, or the row finds the correction.
            let corrected = at.map(|at| boots::wall(c, at)).transpose()?.flatten();
            open.wall_start = corrected.unwrap_or(open.wall_start);
            let buried = segments::next_tombstone(
                c,
                row.id,
                open.number.0.checked_sub(1).map(SegmentNumber),
            )?
            .is_some_and(|range| range.contains(&open.number));
            if buried || !segments::open(c, row.id, &open)? {
                return Err(StoreError::NumberUsed {
                    stream: stream.clone(),
                    number: open.number,
                }
                .into());
            }
            if let Some(at) = at {
                segments::set_boot(c, row.id, open.number, at)?;
            }
            if row.told_to_end && row.ending.is_none_or(|ending| open.number > ending) {
                streams::begin_anew(c, row.id, open.number)?;
            }
            Ok(streams::raise_floor(c, row.id, open.number)?)
        })?;
        let path = self.inner.layout.partial(stream, open.number);
        let file = match File::create(&path).at(&path) {
            Ok(file) => file,
            Err(error) => {
                self.abandon(stream, open.number)?;
                return Err(error);
            }
        };
        let writer = SegmentWriter::new(
            self.clone(),
            stream.clone(),
            open,
            path,
            file,
            (blake3::Hasher::new(), 0),
        );
        self.tick();
        Ok(writer)
    }

    /// Goes on with a partial that a restart or a lost session left (hub).
    pub fn resume_segment(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentWriter>> {
        // Asked before the row: a writer is gone only after its row has said *here*.
        let has_writer = self.has_writer(stream, number);
        let row = self.row(stream, number)?;
        let Some(row) = row.filter(|row| row.state == State::Open) else {
            return Ok(None);
        };
        if !has_writer {
            self.take_back(stream, number)?;
        }
        let path = self.inner.layout.partial(stream, number);
        if !path.exists() {
            return Ok(None);
        }
        let written = files::hash_file(&path)?;
        let file = File::options().append(true).open(&path).at(&path)?;
        Ok(Some(SegmentWriter::new(
            self.clone(),
            stream.clone(),
            row.open(),
            path,
            file,
            written,
        )))
    }

    /// Partials of a stream that wait to be resumed: what opened them, length, BLAKE3 of those bytes (hub).
    pub fn partials(&self, stream: &StreamName) -> Result<Vec<(OpenSegment, u64, SegmentHash)>> {
        let rows = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_not_here(c, row.id)?)
        })?;
        let mut partials = Vec::new();
        for row in rows.iter().filter(|row| row.state == State::Open) {
            let path = self.inner.layout.partial(stream, row.info.number);
            if path.exists() {
                let (hasher, bytes) = files::hash_file(&path)?;
                partials.push((row.open(), bytes, files::hash_of(&hasher)));
            }
        }
        Ok(partials)
    }
}

/// Reading.
impl Store {
    pub(crate) fn row(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentRow>> {
        self.inner.catalog.read(|c| {
            let Some(row) = streams::find(c, stream)? else {
                return Ok(None);
            };
            Ok(segments::find(c, row.id, number)?)
        })
    }

    /// A segment that is here.
    pub fn segment(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentInfo>> {
        let row = self.row(stream, number)?;
        Ok(row
            .filter(|row| row.state == State::Here)
            .map(|row| row.info))
    }

    /// The file of a closed segment, opened, with what is known of it.
    pub fn open_file(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<(SegmentInfo, File)>> {
        let Some(info) = self.segment(stream, number)? else {
            return Ok(None);
        };
        let path = self.inner.layout.segment(stream, number);
        match File::open(&path) {
            Ok(file) => Ok(Some((info, file))),
            // Retention came between row and file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Or the whole disk has gone.
                self.inner.catalog.present()?;
                Ok(None)
            }
            Err(error) => Err(error).at(&path),
        }
    }

    /// Bytes of a closed segment, or of the open one up to what is written; fewer where it ends before.
    pub fn read(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let held = self.in_tier(stream, |held| {
            held.segments
                .get(&number)
                .map(|held| held.read(range.clone()))
        });
        if let Some(bytes) = held.flatten().filter(|bytes| !bytes.is_empty()) {
            return Ok(bytes);
        }
        let missing = || StoreError::Segment {
            stream: stream.clone(),
            number,
            what: "it is not here (any more)".to_owned(),
        };
        let (partial, whole) = (
            self.inner.layout.partial(stream, number),
            self.inner.layout.segment(stream, number),
        );
        // It may be closed, and so renamed, between two looks.
        let mut found = None;
        for path in [&whole, &partial, &whole] {
            match File::open(path) {
                Ok(file) => {
                    found = Some((file, path));
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at(path),
            }
        }
        let (file, path) = found.ok_or_else(missing)?;
        let end = range.end.min(file.metadata().at(path)?.len());
        let length = end.saturating_sub(range.start).min(MAX_SEGMENT_BYTES);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.start).at(path)?;
        Ok(Bytes::from(bytes))
    }

    /// The newest segment being written, as far as it is readable.
    pub fn open_view(&self, stream: &StreamName) -> Result<Option<OpenView>> {
        if let Some(view) = self.in_tier(stream, TierStream::open_view).flatten() {
            return Ok(Some(view));
        }
        let view = self.look_at(stream, |memory| {
            memory
                .open
                .last_key_value()
                .map(|(_, opened)| opened.view.clone())
        });
        Ok(view.flatten())
    }

    /// Closed segments here from `from` on, ascending.
    pub fn list(
        &self,
        stream: &StreamName,
        from: SegmentNumber,
        limit: usize,
    ) -> Result<Vec<SegmentInfo>> {
        let rows = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_here(c, row.id, from, limit)?)
        })?;
        Ok(rows.into_iter().map(|row| row.info).collect())
    }

    /// The live playlist as committed, rendered once per change. None: no segment yet.
    pub fn live_playlist(&self, stream: &StreamName) -> Result<Option<Arc<Playlist>>> {
        let cached = self.look_at(stream, |memory| {
            memory.playlist_loaded.then(|| memory.playlist.clone())
        });
        if let Some(playlist) = cached.flatten() {
            return Ok(playlist);
        }
        self.inner.catalog.read(|c| streams::get(c, stream))?;
        // Once after a start: not between another's commit and its publication.
        let order = self.with_memory(stream, |memory| memory.order.clone());
        let _in_order = order.lock().unwrap_or_else(PoisonError::into_inner);
        let row = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(crate::catalog::live::load(c, row.id, self.inner.window())?)
        })?;
        let playlist = row.and_then(|row| live::render(&row, UriForm::Http));
        self.with_memory(stream, |memory| {
            if !memory.playlist_loaded {
                memory.playlist_loaded = true;
                memory.playlist = playlist;
            }
            Ok(memory.playlist.clone())
        })
    }

    /// Changes the ledger of a stream and brings its live list up to it, in one commit; then publishes.
    pub(crate) fn change_live<T>(
        &self,
        stream: &StreamName,
        work: impl FnOnce(&Connection, &StreamRow) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let order = self.with_memory(stream, |memory| memory.order.clone());
        let _in_order = order.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Times {
            wall: wall_now(),
            steady: self.steady_now(),
        };
        let (done, advanced) = self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            let done = work(c, &row)?;
            // What was done may have changed it.
            let row = streams::get(c, stream)?;
            Ok((done, live::advance(c, &row, self.inner.window(), &now)?))
        })?;
        self.publish_live(stream, &advanced);
        Ok(done)
    }

    /// After the commit: what viewers see.
    fn publish_live(&self, stream: &StreamName, advanced: &Advanced) {
        if advanced.changed
            && let Some(row) = &advanced.row
        {
            let playlist = live::render(row, UriForm::Http);
            self.with_memory(stream, |memory| {
                memory.playlist_loaded = true;
                memory.playlist = playlist;
            });
            if self.inner.options.local_playlists {
                self.write_local_live(stream, row);
            }
        }
        for info in &advanced.listed {
            tracing::debug!(%stream, number = info.number.0, "segment listed");
        }
        self.tick();
    }

    /// Forgets the rendered list: its rows were changed otherwise.
    pub(crate) fn forget_playlist(&self, stream: &StreamName) {
        self.with_memory(stream, |memory| {
            memory.playlist_loaded = false;
            memory.playlist = None;
        });
    }

    /// The same for all streams, also those that are gone.
    fn forget_playlists(&self) {
        let known: Vec<StreamName> = {
            let streams = self.inner.streams.lock();
            let streams = streams.unwrap_or_else(PoisonError::into_inner);
            streams.keys().cloned().collect()
        };
        for stream in known {
            self.forget_playlist(&stream);
        }
    }
}
