//! Carries out retention: plans from the ledger, deletes in the order that invariant 1 asks.
//!
//! Rows go first, durably, then files: a crash between leaves files that no list names, and the next start
//! sweeps them. Age counts from arrival where that is later than what the segment's own wall time says: an
//! edge's clock may be unset. Our own clock may jump too: then age deletes nothing for a while.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use model::{HoleReason, SegmentNumber, StreamName, WallTime};

use crate::{
    JanitorReport, Store,
    catalog::{
        at_hub::{self, AtHub},
        holes, live, segments, spans,
        streams::{self, StreamRow},
    },
    error::Result,
    files::{self, FileKind},
    journal,
    live::{lowest_listed, lowest_needed},
    orphans::Aside,
    retention::{self, Candidate, Deletion, Fill, RetentionLimits},
};

/// Oldest segments of a stream that one round looks at.
const ROUND: usize = 256;

/// Rounds in one call: the rest waits for the next.
const MAX_ROUNDS: usize = 64;

/// A source that can wait is held back while less than this share of the limit is left.
const HOLD_BACK_SHARE: u64 = 10;

/// A source that can wait is held back this much before the reserve is touched: else what it cut would be
/// evicted to make room for what it cuts.
const HOLD_BACK_BYTES: u64 = 256 << 20;

/// A wall clock that is this much ahead of the monotonic one has jumped.
const CLOCK_JUMP_MS: i64 = 24 * 3_600_000;

/// After a jump, age deletes nothing for this long: time for the clock to be set right, or for somebody to
/// read the warning. Limits of space hold all the same.
const CLOCK_HOLD: Duration = Duration::from_secs(24 * 3_600);

/// A hub waits this long for the edge to bring a damaged segment again.
const LOST_WAIT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// At the limit this share of it is freed at once, so that not every segment written costs a deletion.
const ROOM_SHARE: u64 = 256;

/// A disk that is full is freed of this much at once: segments, inodes, and blocks of the catalog.
const FULL_BYTES: u64 = 8 << 20;

/// Where it is told at most that readers were not waited for.
const TELL_GRACED: Duration = Duration::from_secs(60);

/// What room is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// The limits, which a segment just written may have passed.
    Limits,
    /// A write found the disk full; only a live source evicts what the hub lacks.
    Full { live: bool },
}

impl Store {
    /// Makes room at once, between two rounds of retention. True: something was deleted.
    pub(crate) fn make_room(&self, room: Room) -> bool {
        let made = self.try_to_make_room(room);
        made.inspect_err(|error| tracing::debug!(%error, "failed to make room"))
            .is_ok_and(|report| report.deleted > 0)
    }

    fn try_to_make_room(&self, room: Room) -> Result<JanitorReport> {
        // What is full is looked at and made room on by one at a time: two would delete twice what is asked.
        let _alone = self.inner().evicting.lock();
        let now = self.steady_now();
        // Age is the daemon's round's business.
        let limits = RetentionLimits {
            max_age: None,
            ..self.inner().options.limits
        };
        let mut fill = self.fill()?;
        let mut report = JanitorReport::default();
        let mut may_evict = true;
        match room {
            Room::Limits if fill.excess(&limits) == 0 => return Ok(report),
            Room::Limits => {
                fill.used += limits.max_bytes.unwrap_or(0) / ROOM_SHARE;
            }
            Room::Full { live } => {
                may_evict = live;
                fill.wanted = FULL_BYTES;
                let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
                if self.candidates(&all, now)?.is_empty() {
                    return Ok(report);
                }
                // The catalog writes before it deletes.
                files::drop_ballast(&self.inner().data_dir)?;
            }
        }
        let made = self
            .flush_marks()
            .and_then(|()| self.evict(&limits, fill, may_evict, now, &mut report));
        if matches!(room, Room::Full { .. }) {
            // Where nothing was deleted it has kept its place.
            let _ = files::lay_ballast(&self.inner().data_dir);
        }
        made.map(|_| report)
    }

    /// Plans and carries out retention once. The daemon calls it every few seconds and when a write finds
    /// the disk full.
    pub fn run_janitor(&self, now: WallTime) -> Result<JanitorReport> {
        let _alone = self.inner().evicting.lock();
        let mut report = JanitorReport::default();
        let mut limits = self.inner().options.limits;
        if self.is_age_held(Instant::now(), now)? {
            limits.max_age = None;
        }
        self.sweep_orphans(false)?;
        let scarce = |fill: Fill| limits.reserve_bytes > fill.free;
        if scarce(self.fill()?) {
            self.sweep_orphans(true)?;
        }
        self.flush_marks()?;
        for _ in 0..MAX_ROUNDS {
            let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
            self.drop_expired_lists(&all, limits.max_age, now)?;
            if self.evict(&limits, self.fill()?, true, now, &mut report)? < ROUND {
                break;
            }
        }
        if report.deleted > 0 {
            self.tick();
        }
        self.give_up_lost(now)?;
        if self.inner().options.local_playlists {
            for stream in self.stream_names()? {
                self.end_past_hour(&stream, now)?;
            }
        }
        Ok(report)
    }

    /// One round: deletes what the plan says; how many segments.
    fn evict(
        &self,
        limits: &RetentionLimits,
        fill: Fill,
        may_evict: bool,
        now: WallTime,
        report: &mut JanitorReport,
    ) -> Result<usize> {
        let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
        let mut candidates = self.candidates(&all, now)?;
        candidates.retain(|c| may_evict || c.at_hub != AtHub::Lacking);
        let plan = retention::plan(&candidates, limits, fill, now);
        for (index, row) in all.iter().enumerate() {
            let mine: Vec<&Deletion> = plan.iter().filter(|d| d.stream == index).collect();
            if !mine.is_empty() {
                self.delete(row, &mine, report)?;
            }
        }
        Ok(plan.len())
    }

    /// A source that can wait must wait: little space is left, and nothing that could make room is stored on
    /// the hub. Only live sources evict (invariant 3).
    pub fn should_hold_back(&self) -> Result<bool> {
        let limits = &self.inner().options.limits;
        if !limits.keep_unshipped {
            return Ok(false);
        }
        let fill = self.fill()?;
        let margin = |limit: u64| limit - limit / HOLD_BACK_SHARE;
        let least = limits.reserve_bytes.saturating_add(HOLD_BACK_BYTES);
        let near = limits.max_bytes.is_some_and(|max| fill.used >= margin(max));
        if !near && fill.free >= least {
            return Ok(false);
        }
        let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
        let mut unshipped = 0;
        for row in &all {
            unshipped += self
                .inner()
                .catalog
                .read(|c| Ok(at_hub::count_unshipped(c, row.id)?))?
                .1;
        }
        let full = limits.max_bytes.is_some_and(|max| unshipped >= margin(max));
        let scarce = fill.free < least && fill.used <= unshipped;
        Ok(full || scarce)
    }

    fn fill(&self) -> Result<Fill> {
        let used = self.inner().catalog.read(|c| {
            let mut used = 0;
            for row in streams::all(c)? {
                used += spans::totals(c, row.id)?.bytes;
            }
            Ok(used)
        })?;
        let free = files::free_bytes(&self.inner().data_dir)?;
        Ok(Fill {
            used,
            free,
            wanted: 0,
        })
    }

    /// Whether age may delete nothing now: the wall clock has jumped, and may jump back. `monotonic` and `now`
    /// are one moment by two clocks.
    pub(crate) fn is_age_held(&self, monotonic: Instant, now: WallTime) -> Result<bool> {
        if self.inner().options.limits.max_age.is_none() {
            return Ok(false);
        }
        let looked = self.with_upkeep(|upkeep| upkeep.janitor_looked.replace((monotonic, now)));
        let expected = match looked {
            Some((then, wall)) => {
                let passed = monotonic.saturating_duration_since(then).as_millis();
                Some(
                    wall.0
                        .saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)),
                )
            }
            // The first look: what the lists were last changed at is as near as one can tell.
            None => self
                .inner()
                .catalog
                .read(|c| Ok(live::last_change(c)?))?
                .map(|changed| changed.0),
        };
        let ahead = expected.map_or(0, |expected| now.0.saturating_sub(expected));
        let held = self.with_upkeep(|upkeep| {
            if ahead > CLOCK_JUMP_MS {
                upkeep.age_held = Some(monotonic + CLOCK_HOLD);
            } else if ahead < -CLOCK_JUMP_MS {
                upkeep.age_held = None;
            }
            upkeep.age_held.is_some_and(|until| monotonic < until)
        });
        if ahead > CLOCK_JUMP_MS {
            tracing::warn!(
                hours_ahead = ahead / 3_600_000,
                hold_hours = CLOCK_HOLD.as_secs() / 3_600,
                "the clock is far ahead of what was expected: nothing is deleted for its age until the hold is over"
            );
        }
        Ok(held)
    }

    /// An ended list whose newest segment has expired has nothing to show any more. Its segments keep the
    /// grace that readers of it have.
    fn drop_expired_lists(
        &self,
        all: &[StreamRow],
        max_age: Option<Duration>,
        now: WallTime,
    ) -> Result<()> {
        let Some(age) = max_age else {
            return Ok(());
        };
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        for row in all.iter().filter(|row| row.told_to_end) {
            let window = self.inner().window();
            let (list, arrived) = self.inner().catalog.read(|c| {
                let list = live::load(c, row.id, window)?;
                let last = list
                    .as_ref()
                    .and_then(|list| list.list.header().last_number);
                let arrived = last
                    .map(|last| segments::arrived(c, row.id, last))
                    .transpose()?;
                Ok((list, arrived.flatten()))
            })?;
            let Some(list) = list else { continue };
            let Some(newest) = list.list.entries().last() else {
                continue;
            };
            let end = newest.wall_start.plus(newest.duration);
            let counts_from = retention::counts_from(end, arrived.unwrap_or(WallTime(0)));
            if now.0.saturating_sub(counts_from.0) > age {
                let listed = list.list.entries();
                let listed = listed.fold(newest.duration, |sum, entry| sum + entry.duration);
                self.inner()
                    .catalog
                    .write(|c| Ok(live::clear_entries(c, row.id, now.plus(listed))?))?;
                self.forget_playlist(&row.name);
            }
        }
        Ok(())
    }

    /// Oldest first, of each kind that the plan prefers over another: what is stored on the hub must be found
    /// however much lies before it that is not (invariant 3).
    fn candidates(&self, all: &[StreamRow], now: WallTime) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for (stream, row) in all.iter().enumerate() {
            self.inner().catalog.read(|c| {
                let list = live::load(c, row.id, self.inner().window())?;
                let none = SegmentNumber(i64::MAX as u64);
                let below = list.as_ref().and_then(lowest_listed).unwrap_or(none);
                let needed = list.and_then(|list| lowest_needed(&list, now));
                let needed = needed.unwrap_or(none);
                let live_only = self.inner().options.limits.keep_unshipped;
                for at_hub in AtHub::ALL {
                    let held_back = live_only && at_hub == AtHub::Lacking;
                    if held_back && !streams::any_live_run(c, row.id)? {
                        continue;
                    }
                    let rows = at_hub::oldest(c, row.id, below, at_hub, held_back, ROUND)?;
                    candidates.extend(rows.into_iter().map(|(row, arrived, given_up)| Candidate {
                        stream,
                        number: row.info.number,
                        counts_from: retention::counts_from(
                            row.info.wall_start.plus(row.info.duration),
                            arrived,
                        ),
                        bytes: row.info.bytes,
                        at_hub,
                        graced: row.info.number >= needed,
                        given_up,
                    }));
                }
                Ok(())
            })?;
        }
        Ok(candidates)
    }

    fn delete(
        &self,
        row: &StreamRow,
        plan: &[&Deletion],
        report: &mut JanitorReport,
    ) -> Result<()> {
        self.inner().catalog.write(|c| {
            for d in plan {
                holes::bury(c, row.id, &(d.number..=d.number), d.reason)?;
            }
            Ok(())
        })?;
        for d in plan {
            files::remove(&self.inner().layout.segment(&row.name, d.number))?;
            report.deleted += 1;
            report.deleted_bytes += d.bytes;
            report.graced += u64::from(d.graced);
            if d.reason == HoleReason::Evicted {
                report.forced += 1;
                tracing::warn!(stream = %row.name, number = d.number.0, "evicted before the hub had it: the disk limit is reached");
            }
        }
        if plan.iter().any(|d| d.graced) {
            self.tell_graced(&row.name);
        }
        self.sweep_below_first(&row.name, row.id)
    }

    /// A limit is shorter than the live list and its readers need: told now and then.
    fn tell_graced(&self, stream: &StreamName) {
        let now = Instant::now();
        let tell = self.with_upkeep(|upkeep| {
            let due = upkeep.graced_told.is_none_or(|at| now >= at + TELL_GRACED);
            if due {
                upkeep.graced_told = Some(now);
            }
            due
        });
        if tell {
            tracing::warn!(%stream, "segments were deleted that readers of the live list may still ask for: the disk limit is less than the list and its grace take");
        }
    }

    /// Removes folders and hour lists that lie wholly before the stream's first segment.
    pub(crate) fn sweep_below_first(&self, stream: &StreamName, id: i64) -> Result<()> {
        let first = self.inner().catalog.read(|c| {
            let first = spans::totals(c, id)?.first;
            let row = match first {
                Some(first) => segments::find(c, id, first)?,
                None => None,
            };
            // Nothing below the lowest row of any state is wanted either.
            let waiting = segments::next_not_here(c, id)?;
            Ok(match (row, waiting) {
                (Some(a), Some(b)) if b.info.number < a.info.number => Some(b),
                (a, b) => a.or(b),
            })
        })?;
        let Some(first) = first else { return Ok(()) };
        let keep = first.info.number.0 / files::SEGMENTS_PER_FOLDER;
        for folder in self.inner().layout.newest_folders(stream, usize::MAX)? {
            let index: Option<u64> = folder
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if index.is_some_and(|index| index < keep) {
                self.sweep_folder(stream, id, &folder)?;
            }
        }
        if self.inner().options.local_playlists {
            self.sweep_hour_lists(stream, first.info.wall_start)?;
        }
        Ok(())
    }

    /// Takes the files of a folder away that has no rows: those with a tombstone are deleted, others set aside.
    fn sweep_folder(&self, stream: &StreamName, id: i64, folder: &Path) -> Result<()> {
        let layout = &self.inner().layout;
        for (number, kind) in layout.list_folder(folder)? {
            let (path, why) = match kind {
                FileKind::Segment => (layout.segment(stream, number), Aside::Unknown),
                FileKind::Partial => (layout.partial(stream, number), Aside::Partial),
            };
            let buried = self
                .inner()
                .catalog
                .read(|c| Ok(holes::is_buried(c, id, number)?))?;
            if buried {
                files::remove(&path)?;
            } else if let Some(to) = self.set_aside(stream, number, &path, why)? {
                tracing::warn!(%stream, number = number.0, to = %to.display(), "set a file aside that the catalog does not know");
            }
        }
        journal::remove_with_folder(folder)
    }

    /// Hub: segments that were found damaged and that no edge has brought or disclaimed for a long time.
    fn give_up_lost(&self, now: WallTime) -> Result<()> {
        let wait = i64::try_from(LOST_WAIT.as_millis()).unwrap_or(i64::MAX);
        let before = WallTime(now.0.saturating_sub(wait));
        for row in self.inner().catalog.read(|c| Ok(streams::all(c)?))? {
            let lost = self
                .inner()
                .catalog
                .read(|c| Ok(segments::lost_before(c, row.id, before)?))?;
            for number in lost {
                tracing::error!(stream = %row.name, number = number.0, "a damaged segment was not brought again: it is a hole now");
                self.settle(&row.name, number..=number, HoleReason::Corrupt)?;
            }
        }
        Ok(())
    }
}
