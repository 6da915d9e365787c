//! The edge's disk thread: takes segments from memory to the disk, in order, and never gives up.
//!
//! One thread a store, so that a disk that hangs holds up nobody else. While the disk fails it is tried
//! again with back-off; what is written then is what memory still holds. Written for flash: a segment's end,
//! the next one's beginning and what the hub has stored since are one commit.
//!
//! Keeps invariant 1: file fsynced and renamed, folder fsynced, then the row says *here*.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::{BootTime, HoleReason, RunInfo, SegmentInfo, SegmentNumber, StreamName};
use rusqlite::Connection;

use crate::{
    OpenSegment, SourceKind, Store,
    catalog::{
        Fault, at_hub, boots, holes, renumber,
        segments::{self, State},
        streams::{self, StreamRow},
        taken,
    },
    error::{AtPath, Result},
    files,
    janitor::Room,
    store::{Inner, wall_now},
    tier::{Closed, Held, Tier, TierState},
    trouble::TroubleKind,
};

/// Marks of what the hub stored wait this long for a commit that takes them along.
const MARKS_AGE: Duration = Duration::from_secs(5);

/// The first try of a disk that failed, then ever more slowly.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The slowest that a disk is tried again.
const MAX_RETRY: Duration = Duration::from_secs(15);

/// Where trouble is told anew at most, while memory drops segments.
const TELL_LOST: Duration = Duration::from_secs(60);

/// Ends the thread with the last of the store's users, and waits for it.
pub(crate) struct Keeper {
    tier: Arc<Tier>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(inner: Arc<Inner>) -> io::Result<Self> {
        let tier = Arc::clone(&inner.tier);
        let thread = thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || Desk::new(Store::of(inner)).run())?;
        Ok(Self {
            tier,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tier.give(|state| state.closing = true);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic in it was told by itself.
            let _ = thread.join();
        }
    }
}

struct Desk {
    store: Store,
    /// The segment that each stream is writing.
    writing: HashMap<StreamName, Writing>,
    retry: Duration,
    retry_at: Option<Instant>,
    marks_at: Instant,
}

/// A segment's file being written.
struct Writing {
    number: SegmentNumber,
    path: PathBuf,
    file: File,
    chunks: usize,
    /// Its name is durable.
    named: bool,
}

/// What to do next; taken from memory under its lock.
struct Job {
    stream: StreamName,
    runs: Vec<(RunInfo, SourceKind)>,
    dropped: Vec<(std::ops::RangeInclusive<SegmentNumber>, HoleReason)>,
    marks: Vec<SegmentNumber>,
    segment: Option<Piece>,
    /// The segment after it, to be begun in the same commit.
    next: Option<Begun>,
    ending: Option<Option<SegmentNumber>>,
    ended_on_hub: bool,
}

impl Job {
    /// The catalog has something to hear besides segments.
    fn has_tidings(&self) -> bool {
        !self.dropped.is_empty() || !self.marks.is_empty() || self.ended_on_hub
    }
}

/// What is new of a segment.
struct Piece {
    begun: Begun,
    chunks: Vec<Bytes>,
    closed: Option<Closed>,
}

/// A segment as it was begun, and where that was on the clock of this boot.
#[derive(Debug, Clone, Copy)]
struct Begun {
    open: OpenSegment,
    boot: Option<BootTime>,
}

impl Begun {
    fn of(held: &Held) -> Self {
        Self {
            open: held.open,
            boot: held.boot,
        }
    }
}

impl Desk {
    fn new(store: Store) -> Self {
        Self {
            store,
            writing: HashMap::new(),
            retry: FIRST_RETRY,
            retry_at: None,
            marks_at: Instant::now(),
        }
    }

    fn tier(&self) -> &Tier {
        &self.store.inner().tier
    }

    fn run(mut self) {
        loop {
            let now = Instant::now();
            let closing = self.tier().lock().closing;
            if closing || self.retry_at.is_none_or(|at| at <= now) {
                self.work();
            }
            if closing {
                return self.say_what_is_lost();
            }
            let now = Instant::now();
            let wait = match self.retry_at {
                Some(at) => at.saturating_duration_since(now),
                None => MARKS_AGE,
            };
            let heeds_news = self.retry_at.is_none();
            self.tier().wait_for_work(wait, heeds_news);
        }
    }

    fn say_what_is_lost(&self) {
        let (segments, bytes) = self.tier().lock().waiting_for_both();
        if segments > 0 {
            tracing::error!(
                segments,
                bytes,
                "these segments were only in memory: neither the disk nor the hub took them before the end"
            );
        }
    }

    /// Does what there is to do, or finds that the disk fails.
    fn work(&mut self) {
        let marks_due = self.marks_at.elapsed() >= MARKS_AGE || self.tier().lock().closing;
        if marks_due {
            self.marks_at = Instant::now();
        }
        // What one stream can't get rid of (a file that waits for room, a folder that is broken) must not keep
        // the others from the disk.
        let mut stuck = HashSet::new();
        let mut made_room = HashSet::new();
        let mut first = None;
        while let Some(job) = self.next_job(marks_due, &stuck) {
            let stream = job.stream.clone();
            let live = job.runs.iter().any(|(_, source)| !source.can_wait());
            let Err(error) = self.carry_out(job) else {
                // It has taken something: it may be asked for room again.
                made_room.remove(&stream);
                continue;
            };
            // Whatever it was, the segment is begun anew.
            self.writing.remove(&stream);
            self.tier().settle(|state| unbusy(state, &stream));
            let full = error.disk_fault() == Some(TroubleKind::Full);
            if full && made_room.insert(stream.clone()) && self.store.make_room(Room::Full { live })
            {
                continue;
            }
            let gone = matches!(error, crate::StoreError::Vanished { .. });
            stuck.insert(stream);
            first.get_or_insert(error);
            if gone {
                break;
            }
        }
        match first {
            Some(error) => self.failed(&error),
            None => {
                self.retry_at = None;
                self.try_again();
            }
        }
    }

    /// Nothing is left to write: whether the disk is well again is tried before it is told.
    fn try_again(&mut self) {
        if !self.store.inner().health.is_troubled() || self.tier().lock().waiting().0 > 0 {
            return;
        }
        match self.store.try_disk() {
            Ok(()) => {
                self.retry = FIRST_RETRY;
                self.store.end_trouble();
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &crate::StoreError) {
        self.writing.clear();
        let now = Instant::now();
        let kind = error.disk_fault().unwrap_or(TroubleKind::Broken);
        self.store.begin_trouble(kind, &error.to_string());
        self.retry_at = Some(now + self.retry);
        self.retry = (self.retry * 2).min(MAX_RETRY);
    }

    /// The stream whose oldest segment has waited longest.
    fn next_job(&self, marks_due: bool, stuck: &HashSet<StreamName>) -> Option<Job> {
        let mut state = self.tier().lock();
        let has_work = |name: &StreamName, s: &crate::tier::TierStream| {
            let first = s.segments.values().next();
            let settles = !s.dropped.is_empty()
                || (s.ending.is_some() && s.segments.is_empty())
                || (s.ending.is_none() && s.ended_on_hub)
                || (marks_due && !s.marks.is_empty());
            let begun = self.writing.get(name);
            let segment = first.is_some_and(|held| match begun {
                Some(w) if w.number == held.open.number => {
                    held.closed.is_some() || held.chunks.len() > w.chunks
                }
                _ => true,
            });
            let age = first.map_or(u64::MAX, |held| held.age);
            (segment || settles).then_some(age)
        };
        let (stream, _) = state
            .streams
            .iter()
            .filter(|(name, _)| !stuck.contains(*name))
            .filter_map(|(name, s)| Some((name.clone(), has_work(name, s)?)))
            .min_by_key(|(_, age)| *age)?;
        let s = state.streams.get_mut(&stream)?;
        let done = |number| match self.writing.get(&stream) {
            Some(w) if w.number == number => w.chunks,
            _ => 0,
        };
        let mut held = s.segments.values_mut();
        let segment = held.next().map(|held| {
            held.busy = held.closed.is_some();
            Piece {
                begun: Begun::of(held),
                chunks: held
                    .chunks
                    .get(done(held.open.number)..)
                    .unwrap_or_default()
                    .to_vec(),
                closed: held.closed,
            }
        });
        let closes = segment.as_ref().is_some_and(|s| s.closed.is_some());
        let next = held.next().map(|held| Begun::of(held)).filter(|_| closes);
        let empty = segment.is_none() || (closes && next.is_none());
        Some(Job {
            runs: s.runs.values().cloned().collect(),
            dropped: s.dropped.clone(),
            marks: s.marks.keys().copied().collect(),
            ending: s.ending.filter(|_| empty),
            ended_on_hub: s.ended_on_hub,
            segment,
            next,
            stream,
        })
    }

    fn carry_out(&mut self, mut job: Job) -> Result<()> {
        self.store.revive()?;
        self.store.inner().catalog.present()?;
        let Some(piece) = job.segment.take() else {
            self.commit(&job, None, None)?;
            return Ok(());
        };
        let (stream, number) = (job.stream.clone(), piece.begun.open.number);
        let mut writing = match self.writing.remove(&stream) {
            Some(writing) if writing.number == number => {
                if piece.closed.is_none() && job.has_tidings() {
                    self.commit(&job, None, None)?;
                }
                writing
            }
            other => {
                if let Some(other) = other {
                    // Memory let go of it.
                    files::remove(&other.path)?;
                }
                self.begin(&job, &piece)?
            }
        };
        for chunk in &piece.chunks {
            writing.file.write_all(chunk).at(&writing.path)?;
        }
        writing.chunks += piece.chunks.len();
        let layout = &self.store.inner().layout;
        let Some(closed) = piece.closed else {
            if self.store.inner().options.sync_parts && writing.chunks > 0 {
                writing.file.sync_data().at(&writing.path)?;
                if !writing.named {
                    // Its own sync need not make the file's name durable.
                    files::sync_folder(&layout.folder(&stream, number))?;
                    writing.named = true;
                }
            }
            tracing::trace!(%stream, number = number.0, parts = writing.chunks, "parts written");
            self.writing.insert(stream, writing);
            return Ok(());
        };
        writing.file.sync_all().at(&writing.path)?;
        let path = layout.segment(&stream, number);
        fs::rename(&writing.path, &path).at(&path)?;
        files::sync_folder(&layout.folder(&stream, number))?;
        let next = job.next;
        let info = self.commit(&job, Some((&piece.begun, &closed)), next.as_ref())?;
        let info = info.unwrap_or(closed.info);
        let given_up = self.tier().settle(|state| {
            let held = state.remove(&stream, number)?;
            if held.stored {
                state.note_mark(&stream, number, info.bytes);
            }
            held.given_up
        });
        if let Some(next) = next {
            // Begun: its file comes with its first part. One that can't be made now is begun anew then.
            match self.file_of(&stream, next.open.number) {
                Ok(begun) => {
                    self.writing.insert(stream.clone(), begun);
                }
                Err(error) => tracing::debug!(%stream, %error, "failed to begin a segment's file"),
            }
        }
        self.store.tick();
        tracing::debug!(%stream, number = number.0, bytes = info.bytes, duration_ms = info.duration.as_millis(), "segment closed");
        self.store.write_journal(&stream, &info);
        self.store.write_local_playlists(&stream, &info);
        if let Some(reason) = given_up
            && let Err(error) = self.store.give_up(&stream, number, reason)
        {
            // It is announced again, and the hub says so again.
            tracing::debug!(%stream, %error, "failed to mark what the hub gave up");
        }
        self.store.renumber_closed(&stream);
        self.store.make_room(Room::Limits);
        Ok(())
    }

    /// A segment that the last commit did not begin: the first, or one after a failure. Its row comes before
    /// its file even if it is closed already: of a file without a row nobody could say after a crash which
    /// input it is a piece of, and that piece would be taken once more.
    fn begin(&mut self, job: &Job, piece: &Piece) -> Result<Writing> {
        self.commit(job, None, Some(&piece.begun))?;
        self.file_of(&job.stream, piece.begun.open.number)
    }

    fn file_of(&self, stream: &StreamName, number: SegmentNumber) -> Result<Writing> {
        let layout = &self.store.inner().layout;
        layout.make_folder(stream, number)?;
        let path = layout.partial(stream, number);
        let file = File::create(&path).at(&path)?;
        Ok(Writing {
            number,
            path,
            file,
            chunks: 0,
            named: false,
        })
    }

    /// One commit of all that the catalog has not heard of a stream. Gives what it closed as the catalog has it.
    fn commit(
        &mut self,
        job: &Job,
        closed: Option<(&Begun, &Closed)>,
        begun: Option<&Begun>,
    ) -> Result<Option<SegmentInfo>> {
        let stream = &job.stream;
        self.store.register_stream(stream, None)?;
        let mut leftovers = Vec::new();
        let mut entered = Vec::new();
        let mut done = None;
        let now = self.store.steady_now();
        self.tier().settle(|state| {
            if let Some(s) = state.streams.get_mut(stream) {
                s.marking = !job.marks.is_empty();
            }
        });
        self.store.change_live(stream, |c, row| {
            for (run, source) in &job.runs {
                streams::put_run_of(c, row.id, run, source.can_wait())?;
            }
            for (range, reason) in &job.dropped {
                for row in segments::list_open(c, row.id, range)? {
                    leftovers.push(row.info.number);
                }
                holes::bury(c, row.id, range, *reason)?;
                streams::raise_floor(c, row.id, *range.end())?;
                for number in range.start().0..=range.end().0 {
                    taken::note_void(c, stream, SegmentNumber(number))?;
                }
            }
            for &number in &job.marks {
                at_hub::mark_stored(c, row.id, number)?;
            }
            if let Some((begun, closed)) = closed {
                let known = segments::find(c, row.id, begun.open.number)?;
                let (run, wall_start) = match &known {
                    Some(known) => (known.info.run, known.info.wall_start),
                    None => {
                        let open = enter(c, row, begun)?;
                        (open.run, open.wall_start)
                    }
                };
                let mut info = SegmentInfo {
                    run,
                    wall_start,
                    ..closed.info
                };
                if known.is_none_or(|known| known.state != State::Here) {
                    taken::note_closed(c, stream, &info, closed.whole)?;
                    info.wall_start = segments::close(c, row.id, &info, now)?;
                }
                done = Some(info);
            }
            if let Some(begun) = begun
                && segments::find(c, row.id, begun.open.number)?.is_none()
            {
                entered.push(enter(c, row, begun)?);
            }
            if let Some(last) = job.ending {
                renumber::end_at(c, row.id, last)?;
            }
            if job.ended_on_hub {
                streams::mark_ended_on_hub(c, row.id)?;
            }
            Ok(())
        })?;
        self.tier().settle(|state| {
            for open in &entered {
                state.correct(stream, open);
            }
            let Some(s) = state.streams.get_mut(stream) else {
                return;
            };
            // The last may have grown since.
            let told = |(range, reason): &(std::ops::RangeInclusive<_>, _)| {
                let mut known = job.dropped.iter();
                known.any(|(r, why)| why == reason && r == range)
            };
            s.dropped.retain(|dropped| !told(dropped));
            for number in &job.marks {
                s.marks.remove(number);
            }
            s.marking = false;
            if job.ending.is_some() && s.ending == job.ending {
                s.ending = None;
            }
            if job.ended_on_hub && s.ending.is_none() {
                s.ended_on_hub = false;
            }
        });
        for number in leftovers {
            let partial = self.store.inner().layout.partial(stream, number);
            if let Err(error) = files::remove(&partial) {
                // The next start removes it.
                tracing::debug!(%stream, %error, "failed to remove what is left of a dropped segment");
            }
        }
        Ok(done)
    }
}

/// The row of a segment that begins: in its run as that is numbered now and, in this transaction so that a
/// correction finds the row or the row the correction, by the corrected clock. What it is then.
fn enter(
    c: &Connection,
    row: &StreamRow,
    begun: &Begun,
) -> std::result::Result<OpenSegment, Fault> {
    let mut open = begun.open;
    open.run = renumber::run_now(c, row.id, open.run)?;
    if let Some(at) = begun.boot {
        open.wall_start = boots::wall(c, at)?.unwrap_or(open.wall_start);
    }
    segments::open(c, row.id, &open)?;
    if let Some(at) = begun.boot {
        segments::set_boot(c, row.id, open.number, at)?;
    }
    if open.wall_start != begun.open.wall_start {
        // It may have been announced from memory by the other time.
        boots::mark_restamped(c, row.id, open.number)?;
    }
    let open = &open;
    if row.told_to_end && row.ending.is_none_or(|ending| open.number > ending) {
        streams::begin_anew(c, row.id, open.number)?;
    }
    streams::raise_floor(c, row.id, open.number)?;
    Ok(*open)
}

fn unbusy(state: &mut TierState, stream: &StreamName) {
    if let Some(stream) = state.streams.get_mut(stream) {
        stream.marking = false;
        for held in stream.segments.values_mut() {
            held.busy = false;
        }
    }
}

impl Store {
    /// Drops what memory has no room for, and says so now and then.
    pub(crate) fn shed_memory(&self) {
        let dropped = self.inner().tier.shed();
        let lost = dropped.iter().filter(|d| d.lost);
        let lost: HashSet<_> = lost.map(|d| &d.stream).collect();
        for one in dropped.iter().filter(|d| d.lost) {
            self.inner().health.count_lost();
            tracing::debug!(stream = %one.stream, number = one.number.0, "dropped from memory: neither disk nor hub had taken it");
        }
        if !lost.is_empty() && self.inner().health.may_tell_lost(TELL_LOST) {
            tracing::error!(
                memory_bytes = self.inner().tier.limit(),
                streams = lost.len(),
                "memory is full and neither the disk nor the hub takes segments: the oldest are dropped, each a hole"
            );
        }
    }

    /// The disk fails: told once.
    pub(crate) fn begin_trouble(&self, kind: TroubleKind, what: &str) {
        if !self.inner().health.begin(kind, what) {
            return;
        }
        let tier = &self.inner().tier;
        let (segments, bytes) = tier.lock().waiting();
        self.inner().health.count(segments, bytes);
        tracing::warn!(
            trouble = kind.as_str(),
            memory_bytes = tier.limit(),
            "the disk fails: {what}; live goes on from memory and the hub gets it from there, files wait"
        );
        self.tick();
    }

    /// The disk works again and has taken what memory held.
    pub(crate) fn end_trouble(&self) {
        if let Some((trouble, through)) = self.inner().health.end() {
            tracing::warn!(
                was = trouble.what,
                seconds = (wall_now().0 - trouble.since.0) / 1_000,
                segments = through.segments,
                bytes = through.bytes,
                lost = through.lost,
                "the disk works again: {} segments went through memory, {} were lost",
                through.segments,
                through.lost
            );
            self.tick();
        }
    }
}
