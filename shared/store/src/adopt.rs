//! Files that the catalog has no row for: what becomes of each at a start.
//!
//! One that is newer than all that the catalog knows (a restored backup, a rebuilt catalog) is adopted: its row
//! comes from its folder's ledger ([`crate::journal`]) if its bytes are those, and is otherwise told from the
//! media (exact: number, length, hash, tracks; told: wall time from the file's own time, by media durations
//! within a run). One that was announced and is whole is *here*. One with a tombstone was deleted on purpose and
//! goes. Anything else is set aside in `orphans/`: nothing with footage in it is unlinked.
//!
//! Works upwards by number and commits every few hundred, so that a kill in between is gone on from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use model::{
    HoleReason, MediaDuration, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName,
    WallTime,
};
use rusqlite::Connection;

use crate::{
    RecoveryReport, Store,
    catalog::{
        Fault, holes,
        segments::{self, State},
        streams::{self, StreamRow},
    },
    error::{AtPath, Result},
    files::{self, FileKind},
    journal::Ledger,
    orphans::Aside,
    probe::{self, Probe},
    store::wall_time,
};

/// Rows of one commit: an fsync for each few hundred megabytes read.
const BATCH: usize = 256;
/// Media that begins this near to where the last ended goes on from it: a tenth of a second.
const JOIN_90K: i64 = 9_000;
/// Timestamps wrap here (ISO/IEC 13818-1 2.4.3.7).
const WRAP_90K: i64 = 1 << 33;
/// Between two lines in the log while it goes on.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// The least TARGETDURATION that is assumed of a run whose own is lost.
const LEAST_TARGET_S: i64 = 2;

/// A file to adopt.
struct Found {
    number: SegmentNumber,
    bytes: u64,
    hash: SegmentHash,
    /// When its last byte was written, by our own clock.
    written: WallTime,
    told: Told,
}

enum Told {
    Ledger(SegmentInfo, RunInfo),
    Media(Probe),
}

/// What the next segment may go on from.
struct Before {
    info: SegmentInfo,
    run: RunInfo,
    /// Where its timestamps end; None: not looked at.
    ends: Option<i64>,
}

/// A row to write.
struct Adopted {
    info: SegmentInfo,
    run: RunInfo,
    arrived: WallTime,
}

/// Counts for the log while it goes on.
pub(crate) struct Progress {
    told: Instant,
    files: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            told: Instant::now(),
            files: 0,
        }
    }

    fn one(&mut self, stream: &StreamName, number: SegmentNumber) {
        self.files += 1;
        if self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Instant::now();
            tracing::info!(%stream, number = number.0, files = self.files, "reading segments that the catalog does not know");
        }
    }
}

impl Store {
    /// Deals with every file of a stream's newest folders and of those at or above its floor.
    pub(crate) fn adopt_files(
        &self,
        stream: &StreamRow,
        newest: usize,
        progress: &mut Progress,
        report: &mut RecoveryReport,
    ) -> Result<()> {
        let layout = &self.inner().layout;
        let mut folders = layout.newest_folders(&stream.name, usize::MAX)?;
        let above = stream.floor.0 / files::SEGMENTS_PER_FOLDER;
        let index = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u64>().ok();
        let mut rank = 0;
        folders.retain(|folder| {
            rank += 1;
            rank <= newest || index(folder).is_some_and(|index| index >= above)
        });
        folders.reverse();
        let mut before = self.newest_before(stream)?;
        let adopted_before = report.adopted;
        for folder in folders {
            let found = self.sort_out(stream, &folder, progress, report)?;
            let rows = self.assign(stream, found, &mut before)?;
            for batch in rows.chunks(BATCH) {
                self.commit_adopted(stream, batch)?;
                report.adopted += batch.len() as u64;
            }
        }
        if report.adopted > adopted_before {
            self.list_adopted(stream)?;
            tracing::warn!(stream = %stream.name, segments = report.adopted - adopted_before, "adopted segments that the catalog did not know");
        }
        Ok(())
    }

    fn newest_before(&self, stream: &StreamRow) -> Result<Option<Before>> {
        self.inner().catalog.read(|c| {
            let Some(row) = segments::before(c, stream.id, stream.floor)? else {
                return Ok(None);
            };
            let run = streams::run(c, stream.id, row.info.run)?;
            Ok(run.map(|run| Before {
                info: row.info,
                run,
                ends: None,
            }))
        })
    }

    /// Every file of a folder: adopted ones come back, ascending; the others are dealt with.
    fn sort_out(
        &self,
        stream: &StreamRow,
        folder: &Path,
        progress: &mut Progress,
        report: &mut RecoveryReport,
    ) -> Result<Vec<Found>> {
        let edge = self.inner().options.local_playlists;
        let layout = &self.inner().layout;
        let mut ledger = None;
        let mut found: Vec<Found> = Vec::new();
        for (number, kind) in layout.list_folder(folder)? {
            let (row, buried) = self.inner().catalog.read(|c| {
                let row = segments::find(c, stream.id, number)?;
                Ok((row, holes::is_buried(c, stream.id, number)?))
            })?;
            let path = match kind {
                FileKind::Segment => layout.segment(&stream.name, number),
                FileKind::Partial => layout.partial(&stream.name, number),
            };
            let new = row.is_none() && number >= stream.floor;
            match (kind, row.as_ref().map(|row| row.state)) {
                (FileKind::Segment, Some(State::Here)) | (_, Some(State::Open)) => continue,
                // The whole one is here.
                (FileKind::Partial, Some(State::Here)) => {
                    files::remove(&path)?;
                    report.orphans_removed += 1;
                    continue;
                }
                (_, None) if buried => {
                    files::remove(&path)?;
                    report.orphans_removed += 1;
                    continue;
                }
                (FileKind::Segment, Some(State::Announced)) => {
                    progress.one(&stream.name, number);
                    if let Some(row) = &row
                        && self.take_announced(stream, &row.info, &path)?
                    {
                        report.adopted += 1;
                        continue;
                    }
                }
                (FileKind::Segment, None) if new => {
                    progress.one(&stream.name, number);
                    let ledger = ledger.get_or_insert_with(|| Ledger::read(folder));
                    if let Some(one) = read(number, &path, ledger)? {
                        found.push(one);
                        continue;
                    }
                }
                (FileKind::Partial, None) if new && edge => {
                    if let Some(one) = self.finish_partial(stream, number, &path)? {
                        found.push(one);
                        continue;
                    }
                }
                _ => {}
            }
            let why = match kind {
                FileKind::Partial => Aside::Partial,
                FileKind::Segment if row.is_some() || known(&ledger, number) => Aside::Corrupt,
                FileKind::Segment => Aside::Unknown,
            };
            if let Some(to) = self.set_aside(&stream.name, number, &path, why)? {
                tracing::debug!(stream = %stream.name, number = number.0, to = %to.display(), "set a file aside that no row stands for");
                report.set_aside += 1;
            }
        }
        // A partial and a whole file of one number: the whole one came first.
        found.dedup_by_key(|one| one.number);
        Ok(found)
    }

    /// Hub: a file whose row was only announced is *here* if it is what was announced.
    fn take_announced(&self, stream: &StreamRow, info: &SegmentInfo, path: &Path) -> Result<bool> {
        let (hasher, bytes) = files::hash_file(path)?;
        if (bytes, files::hash_of(&hasher)) != (info.bytes, info.hash) {
            return Ok(false);
        }
        let arrived = written(path)?;
        self.change_live(&stream.name, |c, row| {
            Ok(segments::close(c, row.id, info, arrived)?)
        })?;
        Ok(true)
    }

    /// Edge: what a lost row's partial holds that is whole becomes a segment.
    fn finish_partial(
        &self,
        stream: &StreamRow,
        number: SegmentNumber,
        path: &Path,
    ) -> Result<Option<Found>> {
        let bytes = fs::read(path).at(path)?;
        let whole = bytes.get(..probe::whole_bytes(&bytes)).unwrap_or_default();
        let Some(probe) = probe::probe(whole) else {
            return Ok(None);
        };
        let written = written(path)?;
        let file = File::options().write(true).open(path).at(path)?;
        file.set_len(whole.len() as u64).at(path)?;
        file.sync_all().at(path)?;
        let to = self.inner().layout.segment(&stream.name, number);
        fs::rename(path, &to).at(&to)?;
        files::sync_folder(&self.inner().layout.folder(&stream.name, number))?;
        Ok(Some(Found {
            number,
            bytes: whole.len() as u64,
            hash: SegmentHash::of(whole),
            written,
            told: Told::Media(probe),
        }))
    }

    /// Gives each its run and its times.
    fn assign(
        &self,
        stream: &StreamRow,
        found: Vec<Found>,
        before: &mut Option<Before>,
    ) -> Result<Vec<Adopted>> {
        let mut rows: Vec<Adopted> = Vec::with_capacity(found.len());
        let mut rest = found.as_slice();
        while let Some((first, after)) = rest.split_first() {
            if let Told::Ledger(info, run) = &first.told {
                *before = Some(Before {
                    info: *info,
                    run: run.clone(),
                    ends: None,
                });
                rows.push(Adopted {
                    info: *info,
                    run: run.clone(),
                    arrived: first.written,
                });
                rest = after;
                continue;
            }
            let stretch = stretch(rest);
            let (mine, others) = rest.split_at(stretch);
            let from = match before.take() {
                Some(before) => self.goes_on(stream, before, first)?,
                None => None,
            };
            let rows_of = tell(mine, from, others.first());
            if let (Some(last), Some(Told::Media(probe))) =
                (rows_of.last(), mine.last().map(|one| &one.told))
            {
                *before = Some(Before {
                    info: last.info,
                    run: last.run.clone(),
                    ends: Some(probe.first_pts.0 + probe.duration.0),
                });
            }
            rows.extend(rows_of);
            rest = others;
        }
        Ok(rows)
    }

    /// The segment before, if `next` goes on from it: the next number, the same tracks, no jump of its clock.
    fn goes_on(&self, stream: &StreamRow, before: Before, next: &Found) -> Result<Option<Before>> {
        let Told::Media(probe) = &next.told else {
            return Ok(None);
        };
        if before.info.number.next() != next.number || before.run.codecs != probe.codecs {
            return Ok(None);
        }
        let ends = match before.ends {
            Some(ends) => Some(ends),
            None => {
                let path = self
                    .inner()
                    .layout
                    .segment(&stream.name, before.info.number);
                let bytes = fs::read(&path).unwrap_or_default();
                probe::probe(&bytes).map(|p| p.first_pts.0 + p.duration.0)
            }
        };
        let joins = ends.is_some_and(|ends| joins(ends, probe.first_pts.0));
        Ok(joins.then_some(before))
    }

    fn commit_adopted(&self, stream: &StreamRow, batch: &[Adopted]) -> Result<()> {
        let edge = self.inner().options.local_playlists;
        self.inner().catalog.write(|c| {
            for one in batch {
                adopt_one(c, stream, one, edge)?;
            }
            Ok(())
        })?;
        for one in batch {
            self.write_journal(&stream.name, &one.info);
        }
        Ok(())
    }

    /// The live list goes on behind what was adopted. A list of which nothing is left begins anew a window
    /// before the newest segment, its sequence at Unix seconds: it can't go back (invariant 4).
    fn list_adopted(&self, stream: &StreamRow) -> Result<()> {
        self.begin_list_near_its_end(stream)?;
        loop {
            let looked = self.looked_to(stream.id)?;
            self.change_live(&stream.name, |_, _| Ok(()))?;
            if self.looked_to(stream.id)? == looked {
                return Ok(());
            }
        }
    }
}

fn adopt_one(
    c: &Connection,
    stream: &StreamRow,
    one: &Adopted,
    edge: bool,
) -> std::result::Result<(), Fault> {
    let row = streams::get(c, &stream.name)?;
    let number = one.info.number;
    if edge && number > row.floor {
        // Nobody else has what lay in between: the hub must not wait for it.
        let last = SegmentNumber(number.0.saturating_sub(1));
        holes::bury(c, row.id, &(row.floor..=last), HoleReason::Corrupt)?;
    }
    if streams::run(c, row.id, one.run.run)?.is_none() {
        streams::put_run(c, row.id, &one.run)?;
    }
    segments::adopt(c, row.id, &one.info, one.arrived)?;
    if row.told_to_end && row.ending.is_none_or(|ending| number > ending) {
        streams::begin_anew(c, row.id, number)?;
    }
    Ok(streams::raise_floor(c, row.id, number)?)
}

/// A file as ledger or media tell it; None: neither does.
fn read(number: SegmentNumber, path: &Path, ledger: &Ledger) -> Result<Option<Found>> {
    let bytes = fs::read(path).at(path)?;
    let hash = SegmentHash::of(&bytes);
    let length = bytes.len() as u64;
    let told = match ledger.segments.get(&number) {
        Some(info) if (info.bytes, info.hash) != (length, hash) => None,
        Some(info) => {
            let run = ledger.runs.get(&info.run).cloned();
            let run = run.or_else(|| {
                let probe = probe::probe(&bytes)?;
                Some(run_of(info.run, &probe, info.duration))
            });
            run.map(|run| Told::Ledger(*info, run))
        }
        None => probe::probe(&bytes).map(Told::Media),
    };
    let written = written(path)?;
    Ok(told.map(|told| Found {
        number,
        bytes: length,
        hash,
        written,
        told,
    }))
}

fn known(ledger: &Option<Ledger>, number: SegmentNumber) -> bool {
    ledger
        .as_ref()
        .is_some_and(|ledger| ledger.segments.contains_key(&number))
}

fn written(path: &Path) -> Result<WallTime> {
    let modified = fs::metadata(path).and_then(|meta| meta.modified());
    Ok(wall_time(modified.unwrap_or(SystemTime::UNIX_EPOCH)))
}

fn joins(ends: i64, begins: i64) -> bool {
    let apart = (begins - ends).rem_euclid(WRAP_90K);
    apart <= JOIN_90K || WRAP_90K - apart <= JOIN_90K
}

fn run_of(run: SegmentNumber, probe: &Probe, longest: MediaDuration) -> RunInfo {
    let target = longest.rounded_secs().max(LEAST_TARGET_S);
    RunInfo {
        run,
        codecs: probe.codecs.clone(),
        resolution: probe.resolution,
        target_duration_s: u32::try_from(target).unwrap_or(u32::MAX),
    }
}

/// How many of the first go on from one another, told by media alone.
fn stretch(found: &[Found]) -> usize {
    let follows = |pair: &[Found]| match pair {
        [a, b] => match (&a.told, &b.told) {
            (Told::Media(x), Told::Media(y)) => {
                a.number.next() == b.number
                    && x.codecs == y.codecs
                    && joins(x.first_pts.0 + x.duration.0, y.first_pts.0)
            }
            _ => false,
        },
        _ => false,
    };
    1 + found.windows(2).take_while(|pair| follows(pair)).count()
}

/// Rows of a stretch: on from `from`; else a run of its own that ends when its newest file was written, or
/// where the next one, which the ledger knows, begins.
fn tell(stretch: &[Found], from: Option<Before>, next: Option<&Found>) -> Vec<Adopted> {
    let probes = || {
        stretch.iter().filter_map(|one| match &one.told {
            Told::Media(probe) => Some((one, probe)),
            Told::Ledger(..) => None,
        })
    };
    let Some((first, first_probe)) = probes().next() else {
        return Vec::new();
    };
    let total = probes().fold(MediaDuration::ZERO, |sum, (_, probe)| sum + probe.duration);
    let longest = probes().map(|(_, probe)| probe.duration).max();
    let (mut run, mut wall, mut media) = match from {
        Some(before) => (
            before.run,
            before.info.wall_start.plus(before.info.duration),
            before.info.media_start + before.info.duration,
        ),
        None => {
            let last = stretch.last().unwrap_or(first);
            let end = match next.map(|next| (&next.told, next.number)) {
                Some((Told::Ledger(info, _), number)) if number == last.number.next() => {
                    info.wall_start
                }
                _ => last.written,
            };
            let run = run_of(
                first.number,
                first_probe,
                longest.unwrap_or(MediaDuration::ZERO),
            );
            (run, end.minus(total), first_probe.first_pts)
        }
    };
    run.resolution = run.resolution.or(first_probe.resolution);
    probes()
        .map(|(one, probe)| {
            let info = SegmentInfo {
                number: one.number,
                run: run.run,
                // A clock that was never set may have written it.
                wall_start: wall.in_calendar(),
                media_start: media,
                duration: probe.duration,
                bytes: one.bytes,
                hash: one.hash,
                independent: probe.independent,
            };
            wall = wall.plus(probe.duration);
            media = media + probe.duration;
            Adopted {
                info,
                run: run.clone(),
                arrived: one.written,
            }
        })
        .collect()
}
