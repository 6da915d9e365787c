//! `watch:/dir`: takes the files of a folder one after the other, each once, and clears up behind itself.
//!
//! The kernel's word (inotify) only makes it look sooner; each decision is made by looking, at least every
//! `scan_interval`. How far a file is stands in the catalog with its segments, so a restart goes on behind
//! them. A file goes away (`done`) only when the hub has stored all of it. Files can wait: they are held
//! back when the disk is full (invariant 3).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use model::WallTime;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use program::durable;
use store::{FileId, MAX_TAKEN, OnHub, Store, StoreError, TakenState};
use tokio_util::sync::CancellationToken;

use super::{
    Feed, Gate, Halt, MAX_SLEEP, SourceError, SourceName,
    folder::{self, Growth, Seen},
    probe,
};
use crate::{
    clock::Clock,
    config::Done,
    inputs::{Count, Input, InputState},
    numbers::Numbers,
    progress::Tally,
    recorder::{MAX_LAST_WRITE, RecordError, Recorder, RecorderConfig, WallClock},
};

/// A file that the disk does not give is tried again so often, and so long after the last time.
const MAX_TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// News of the kernel that wait; more are left out, since each look sees all.
const MAX_NEWS: usize = 1_024;
/// Names tried for a file that is moved to where one of its name is.
const MAX_NAMES: u32 = 1_000;

/// What is watched, and for whom.
pub(crate) struct Watch {
    pub(crate) folder: PathBuf,
    pub(crate) scan_interval: Duration,
    /// A file whose writer is not known to be done is whole when it has stayed as it is for so long.
    pub(crate) settle: Duration,
    pub(crate) done: Done,
    pub(crate) config: RecorderConfig,
    pub(crate) store: Store,
    pub(crate) numbers: Numbers,
    pub(crate) clock: Clock,
}

/// What is known of a file by its name.
#[derive(Debug, Clone, Copy)]
struct Known {
    size: u64,
    mtime_ns: i64,
    state: TakenState,
}

/// Watches until told to stop. Only the disk that is recorded to ends it.
pub(crate) fn watch(
    watch: &Watch,
    input: &Arc<Input>,
    gate: &Gate,
    stop: &CancellationToken,
) -> Result<(), RecordError> {
    let mut watching = Watching {
        watch,
        input,
        gate,
        stop,
        known: BTreeMap::new(),
        later: BTreeMap::new(),
        told: BTreeSet::new(),
        away: false,
    };
    for taken in watch.store.taken(&watch.config.stream)? {
        let known = Known {
            size: taken.id.size,
            mtime_ns: taken.id.mtime_ns,
            state: taken.state,
        };
        watching
            .known
            .insert(OsString::from_vec(taken.id.name), known);
    }
    watching.run()
}

struct Watching<'a> {
    watch: &'a Watch,
    input: &'a Arc<Input>,
    gate: &'a Gate,
    stop: &'a CancellationToken,
    /// At most [`MAX_TAKEN`].
    known: BTreeMap<OsString, Known>,
    /// Files that could not be read: how often, and when to try again.
    later: BTreeMap<OsString, (u32, Instant)>,
    /// Files of which it was said that they stay.
    told: BTreeSet<OsString>,
    /// The folder can't be read, and that was said.
    away: bool,
}

impl Watching<'_> {
    fn run(mut self) -> Result<(), RecordError> {
        let mut growth = Growth::default();
        let mut news = News::default();
        while !self.stop.is_cancelled() {
            news.follow(&self.watch.folder);
            let closed = news.take();
            let now = Instant::now();
            if let Some(seen) = self.look() {
                self.make_room(&seen)?;
                for file in growth.whole(&seen, &closed, self.watch.settle, now) {
                    if self.is_due(file, now) {
                        self.take_file(file)?;
                    }
                    if self.stop.is_cancelled() {
                        return Ok(());
                    }
                }
                self.clear_up()?;
                self.input.set(InputState::Waiting {
                    why: "no new file".to_owned(),
                });
            }
            news.wait(self.watch.scan_interval, self.stop);
        }
        Ok(())
    }

    fn look(&mut self) -> Option<Vec<Seen>> {
        let folder = self.watch.folder.display();
        match folder::look(&self.watch.folder, MAX_TAKEN) {
            Ok(seen) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!(%folder, "the folder is back");
                }
                Some(seen)
            }
            Err(error) => {
                let why = format!("failed to read the folder: {error}");
                if !std::mem::replace(&mut self.away, true) {
                    tracing::warn!(%folder, "{why}; trying on");
                }
                self.input.set(InputState::Waiting { why });
                None
            }
        }
    }

    /// What is known of files that are gone makes room for others, when there is none.
    fn make_room(&mut self, seen: &[Seen]) -> Result<(), StoreError> {
        if self.known.len() < MAX_TAKEN {
            return Ok(());
        }
        let there: BTreeSet<&OsString> = seen.iter().map(|s| &s.name).collect();
        let gone: Vec<OsString> = self
            .known
            .keys()
            .filter(|name| !there.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.forget(&name)?;
        }
        Ok(())
    }

    fn is_due(&self, file: &Seen, now: Instant) -> bool {
        let done = self.known.get(&file.name).is_some_and(|known| {
            (known.size, known.mtime_ns) == (file.size, file.mtime_ns)
                && matches!(known.state, TakenState::Whole | TakenState::Refused)
        });
        let later = self.later.get(&file.name);
        !done && later.is_none_or(|(_, at)| now >= *at)
    }

    fn take_file(&mut self, file: &Seen) -> Result<(), RecordError> {
        if !self.gate.pass(self.stop) {
            return Ok(());
        }
        let watch = self.watch;
        let stream = &watch.config.stream;
        let path = watch.folder.join(&file.name);
        let id = match folder::identify(&watch.folder, file) {
            Ok(id) => id,
            Err(error) => return self.try_later(file, &SourceError::Open(error)),
        };
        // Only its time was set since it was taken.
        let known = self.known.get(&file.name);
        if known.is_some_and(|k| matches!(k.state, TakenState::Whole | TakenState::Refused)) {
            let taken = watch.store.taken_file(stream, &id.name)?;
            if taken.is_some_and(|taken| taken.id.is_same(&id)) {
                watch.store.touch_taken(stream, &id.name, id.mtime_ns)?;
                if let Some(known) = self.known.get_mut(&file.name) {
                    known.mtime_ns = file.mtime_ns;
                }
                return Ok(());
            }
            tracing::info!(file = %path.display(), "another file of this name: taken anew");
        }
        // How far a file was taken is what the disk has of it.
        if !watch.store.wait_for_all(stream, MAX_LAST_WRITE)? {
            return Err(RecordError::Unwritten);
        }
        let target_ms = u64::try_from(watch.config.target_duration.as_millis());
        let begun = watch
            .store
            .begin_taken(stream, &id, target_ms.unwrap_or(u64::MAX))?;
        self.note(file, TakenState::UnderWay);
        let probe = match probe(&path) {
            Ok(probe) => probe,
            Err(error) => return self.fail(file, &id, &error),
        };
        if begun.progress.segments > 0 || begun.progress.bytes > 0 {
            tracing::info!(
                file = %path.display(),
                segments = begun.progress.segments,
                "goes on behind what was taken of it"
            );
        }
        let config = RecorderConfig {
            target_duration: Duration::from_millis(begun.target_ms),
            longest_key_distance: probe.longest_key_distance,
            ..watch.config.clone()
        };
        let recorder = Recorder::resume(
            config,
            watch.store.clone(),
            watch.numbers.clone(),
            watch.clock.clone(),
            begun.progress,
        )?;
        let tally = Tally::default();
        let mut feed = Feed::new(recorder, &tally, self.gate, self.input, self.stop);
        let ends = WallTime(file.mtime_ns.div_euclid(1_000_000)).in_calendar();
        let wall = WallClock::At(ends.minus(probe.duration));
        match feed.read(&SourceName::File(path), wall) {
            Ok(()) => {
                feed.recorder.finish()?;
                watch
                    .store
                    .set_taken(stream, &id.name, TakenState::Whole, None)?;
                self.note(file, TakenState::Whole);
                self.later.remove(&file.name);
                self.input.add(Count::FilesTaken, 1);
                Ok(())
            }
            Err(Halt::Asked) => feed.recorder.pause(),
            Err(Halt::Record(error)) => Err(error),
            Err(Halt::Source(error @ (SourceError::Open(_) | SourceError::Read { .. }))) => {
                feed.recorder.pause()?;
                self.fail(file, &id, &error)
            }
            Err(Halt::Source(error)) => {
                feed.recorder.finish()?;
                self.fail(file, &id, &error)
            }
        }
    }

    /// A file that could not be read, or not to its end.
    fn fail(&mut self, file: &Seen, id: &FileId, error: &SourceError) -> Result<(), RecordError> {
        let tries = self.later.get(&file.name).map_or(0, |(tries, _)| *tries);
        let disk = matches!(error, SourceError::Open(_) | SourceError::Read { .. });
        let (store, stream) = (&self.watch.store, &self.watch.config.stream);
        if disk && tries + 1 < MAX_TRIES {
            store.set_taken(stream, &id.name, TakenState::Interrupted, None)?;
            self.note(file, TakenState::Interrupted);
            return self.try_later(file, error);
        }
        let reason = error.to_string();
        tracing::warn!(file = %file.name.display(), "refused: {reason}");
        store.set_taken(stream, &id.name, TakenState::Refused, Some(&reason))?;
        self.note(file, TakenState::Refused);
        self.later.remove(&file.name);
        self.input.add(Count::FilesRefused, 1);
        if let Done::Move(to) = &self.watch.done {
            self.put_away(&file.name, &to.join("refused"))?;
        }
        Ok(())
    }

    fn try_later(&mut self, file: &Seen, error: &SourceError) -> Result<(), RecordError> {
        let tries = self.later.get(&file.name).map_or(1, |(tries, _)| tries + 1);
        tracing::warn!(file = %file.name.display(), tries, "{error}; tried again later");
        let at = Instant::now() + TRY_AGAIN;
        // Files that have gone since make room.
        if self.later.len() >= MAX_TAKEN {
            self.later.clear();
        }
        self.later.insert(file.name.clone(), (tries, at));
        Ok(())
    }

    /// Deletes or moves what the hub has all of.
    fn clear_up(&mut self) -> Result<(), RecordError> {
        if matches!(self.watch.done, Done::Keep) {
            return Ok(());
        }
        let whole: Vec<OsString> = self
            .known
            .iter()
            .filter(|(_, known)| known.state == TakenState::Whole)
            .map(|(name, _)| name.clone())
            .collect();
        for name in whole {
            let stream = &self.watch.config.stream;
            match self.watch.store.taken_on_hub(stream, name.as_bytes())? {
                OnHub::All => match &self.watch.done {
                    Done::Delete => self.remove(&name)?,
                    Done::Move(to) => self.put_away(&name, to)?,
                    Done::Keep => {}
                },
                OnHub::NotYet(_) => {}
                OnHub::Lost(segments) => {
                    if self.told.len() < MAX_TAKEN && self.told.insert(name.clone()) {
                        tracing::warn!(
                            file = %name.display(),
                            segments,
                            "stays where it is: the hub does not have all of it, and here it was given up"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the file is still the one that was taken.
    fn is_unchanged(&self, name: &OsStr) -> io::Result<bool> {
        let meta = fs::metadata(self.watch.folder.join(name))?;
        Ok(self.known.get(name).is_some_and(|known| {
            (known.size, known.mtime_ns) == (meta.len(), folder::mtime_ns(&meta))
        }))
    }

    fn remove(&mut self, name: &OsStr) -> Result<(), RecordError> {
        let gone = match self.is_unchanged(name) {
            // The next look takes it anew.
            Ok(false) => return Ok(()),
            Ok(true) => fs::remove_file(self.watch.folder.join(name)),
            Err(error) => Err(error),
        };
        self.gone(name, gone, "delete")
    }

    fn put_away(&mut self, name: &OsStr, to: &Path) -> Result<(), RecordError> {
        let gone = match self.is_unchanged(name) {
            Ok(false) => return Ok(()),
            Ok(true) => move_file(&self.watch.folder.join(name), to),
            Err(error) => Err(error),
        };
        self.gone(name, gone, "move")
    }

    fn gone(&mut self, name: &OsStr, gone: io::Result<()>, what: &str) -> Result<(), RecordError> {
        match gone {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.away => {}
            Err(error) => {
                if self.told.len() < MAX_TAKEN && self.told.insert(name.to_owned()) {
                    tracing::warn!(file = %name.display(), "failed to {what} it: {error}; trying on");
                }
                return Ok(());
            }
        }
        tracing::info!(file = %name.display(), "{what}: done");
        self.forget(name)?;
        Ok(())
    }

    fn forget(&mut self, name: &OsStr) -> Result<(), StoreError> {
        let stream = &self.watch.config.stream;
        self.watch.store.forget_taken(stream, name.as_bytes())?;
        self.known.remove(name);
        self.told.remove(name);
        self.later.remove(name);
        Ok(())
    }

    fn note(&mut self, file: &Seen, state: TakenState) {
        let known = Known {
            size: file.size,
            mtime_ns: file.mtime_ns,
            state,
        };
        self.known.insert(file.name.clone(), known);
    }
}

/// Moves a file into a folder, which is made if need be; one of its name there stays.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let name = from.file_name().unwrap_or_default();
    let free = (0..MAX_NAMES).map(|n| match n {
        0 => to.join(name),
        n => {
            let mut numbered = name.to_owned();
            numbered.push(format!(".{n}"));
            to.join(numbered)
        }
    });
    let target = free
        .into_iter()
        .find(|path| fs::symlink_metadata(path).is_err())
        .ok_or_else(|| io::Error::other(format!("{MAX_NAMES} files of its name are there")))?;
    match fs::rename(from, &target) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let copy = to.join(".moving.part");
            fs::copy(from, &copy)?;
            let file = File::options().write(true).open(&copy)?;
            if let Ok(modified) = fs::metadata(from).and_then(|meta| meta.modified()) {
                file.set_modified(modified)?;
            }
            file.sync_all()?;
            fs::rename(&copy, &target)?;
            durable::sync_folder(to)?;
            fs::remove_file(from)
        }
        Err(error) => Err(error),
        Ok(()) => durable::sync_folder(to),
    }
}

/// What the kernel tells of a folder.
#[derive(Default)]
struct News {
    watcher: Option<Follower>,
    /// Names of files whose writers are done.
    closed: BTreeSet<OsString>,
}

struct Follower {
    _watcher: RecommendedWatcher,
    news: Receiver<OsString>,
    /// Device and inode: another folder may be mounted over it.
    folder: (u64, u64),
}

impl News {
    /// Follows the folder that is there now, if the kernel lets it.
    fn follow(&mut self, folder: &Path) {
        let there = fs::metadata(folder).map(|meta| (meta.dev(), meta.ino()));
        let followed = self.watcher.as_ref().map(|follower| follower.folder);
        match there {
            Ok(there) if followed == Some(there) => {}
            Ok(there) => match Follower::start(folder, there) {
                Ok(follower) => self.watcher = Some(follower),
                Err(error) => {
                    self.watcher = None;
                    tracing::debug!(folder = %folder.display(), "only looked at from time to time: {error}");
                }
            },
            Err(_) => self.watcher = None,
        }
    }

    /// Waits for news or for the time of the next look.
    fn wait(&mut self, limit: Duration, stop: &CancellationToken) {
        let until = Instant::now() + limit;
        while !stop.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let step = left.min(MAX_SLEEP);
            match self.watcher.as_ref().map(|f| f.news.recv_timeout(step)) {
                Some(Ok(name)) => {
                    self.closed.insert(name);
                    return;
                }
                Some(Err(RecvTimeoutError::Timeout)) => {}
                Some(Err(RecvTimeoutError::Disconnected)) | None => std::thread::sleep(step),
            }
        }
    }

    /// Names of files that are whole, as far as is known.
    fn take(&mut self) -> BTreeSet<OsString> {
        if let Some(follower) = &self.watcher {
            self.closed.extend(follower.news.try_iter().take(MAX_NEWS));
        }
        std::mem::take(&mut self.closed)
    }
}

impl Follower {
    fn start(folder: &Path, identity: (u64, u64)) -> notify::Result<Self> {
        let (sender, news) = sync_channel(MAX_NEWS);
        let mut watcher = notify::recommended_watcher(move |event| tell(event, &sender))?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self {
            _watcher: watcher,
            news,
            folder: identity,
        })
    }
}

/// Passes on which files are whole: closed after writing, or renamed to their name.
fn tell(event: notify::Result<notify::Event>, news: &SyncSender<OsString>) {
    let Ok(event) = event else { return };
    let path = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => event.paths.first(),
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => {
            event.paths.last()
        }
        _ => None,
    };
    if let Some(name) = path.and_then(|path| path.file_name()) {
        // Too many at once: the next look sees them, and waits until they have settled.
        let _ = news.try_send(name.to_owned());
    }
}
