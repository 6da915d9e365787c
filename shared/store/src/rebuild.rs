//! A damaged catalog: set aside, what can still be read of it kept, the rest told by the files.
//!
//! The segments are read where all files without rows are ([`crate::adopt`]); here is what only the old
//! catalog knew. Each table is read as far as it goes, nothing that doesn't parse is taken, and a file that is
//! there counts more than a tombstone that says it isn't. Tokens are not kept: an invitation is made anew.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use model::{DeviceName, HoleReason, RunInfo, SegmentNumber, StreamName};
use rusqlite::{Connection, OpenFlags, Row, params};

use crate::{
    RecoveryReport, Store,
    catalog::{self, Catalog, damage, holes, segments, streams, taken},
    error::{AtPath, Result},
    files,
    store::wall_now,
    taken::Taken,
};

/// A floor may lie this far above the newest file: a year of two-second segments.
const MAX_FLOOR_STEP: u64 = 16_000_000;

/// A public key's length, X25519.
const KEY_BYTES: usize = 32;

/// What of a damaged catalog is not told by files.
#[derive(Debug, Default)]
pub(crate) struct Salvage {
    devices: Vec<OldDevice>,
    streams: HashMap<i64, OldStream>,
    /// The stream, the run, and whether its source can wait.
    runs: Vec<(i64, RunInfo, bool)>,
    taken: Vec<(StreamName, Taken)>,
    tombstones: Vec<(i64, SegmentNumber, SegmentNumber, HoleReason)>,
}

#[derive(Debug)]
struct OldDevice {
    name: DeviceName,
    key: Option<Vec<u8>>,
    enabled: bool,
    enrolled: Option<i64>,
}

#[derive(Debug)]
struct OldStream {
    name: StreamName,
    title: Option<String>,
    owner: Option<DeviceName>,
    created: i64,
    told_to_end: bool,
    ending: Option<i64>,
    stretch_first: i64,
    floor: i64,
    next_msn: Option<i64>,
}

/// Opens the catalog of a directory whose lock is held; sets a damaged one aside first. The second: where
/// that one is now.
pub(crate) fn open(data_dir: &Path) -> Result<(Catalog, Option<PathBuf>)> {
    let path = data_dir.join(catalog::FILE);
    if let Some(aside) = damage::rebuilding(data_dir)? {
        if aside.exists() {
            tracing::warn!("the last rebuild of the catalog was cut off: beginning again");
            damage::discard(&path)?;
        } else {
            // Noted, not yet moved.
            damage::move_to(&path, &aside)?;
        }
        return Ok((Catalog::open(data_dir)?, Some(aside)));
    }
    let wrong = if damage::is_suspect(data_dir) && path.exists() {
        tracing::warn!(path = %path.display(), "the catalog was found damaged: reading all of it");
        let wrong = damage::find(&path);
        if wrong.is_none() {
            tracing::warn!("nothing is wrong with it now: the disk or the memory may fail");
            damage::clear_suspicion(data_dir)?;
        }
        wrong
    } else {
        None
    };
    let wrong = match wrong {
        Some(wrong) => wrong,
        None => match Catalog::open(data_dir) {
            Ok(catalog) => return Ok((catalog, None)),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        },
    };
    let aside = damage::set_aside(&path)?;
    tracing::error!(%wrong, aside = %aside.display(), "the catalog is damaged: it is set aside, and a new one is built from the segments");
    Ok((Catalog::open(data_dir)?, Some(aside)))
}

impl Store {
    /// Takes over what a damaged catalog still tells: before any file is adopted.
    pub(crate) fn keep_salvage(
        &self,
        aside: &Path,
        report: &mut RecoveryReport,
    ) -> Result<Salvage> {
        let old = read(aside);
        self.inner().catalog.write(|c| {
            for device in &old.devices {
                let done = c
                    .prepare_cached(
                        "INSERT OR IGNORE INTO device (name, key, enabled, enrolled_ms) VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![device.name.as_str(), device.key, device.enabled, device.enrolled])?;
                report.salvaged_devices += done as u64;
            }
            for stream in old.streams.values() {
                let done = c
                    .prepare_cached(
                        "INSERT OR IGNORE INTO stream (name, title, owner, created_ms, told_to_end, ending, stretch_first)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        stream.name.as_str(),
                        stream.title,
                        stream.owner.as_ref().map(DeviceName::as_str),
                        stream.created,
                        stream.told_to_end,
                        stream.ending,
                        stream.stretch_first
                    ])?;
                report.salvaged_streams += done as u64;
                if let Some(next) = stream.next_msn {
                    let row = streams::get(c, &stream.name)?;
                    catalog::live::begin(c, row.id, next, None, wall_now())?;
                }
            }
            for (id, run, waits) in &old.runs {
                if let Some(stream) = old.streams.get(id) {
                    let row = streams::get(c, &stream.name)?;
                    streams::put_run_of(c, row.id, run, *waits)?;
                }
            }
            for (stream, file) in &old.taken {
                taken::keep(c, stream, file)?;
            }
            Ok(())
        })?;
        Ok(old)
    }

    /// What was deleted stays so, where no file says otherwise: after all files were adopted.
    pub(crate) fn keep_tombstones(&self, old: &Salvage, report: &mut RecoveryReport) -> Result<()> {
        for stream in old.streams.values() {
            self.inner().catalog.write(|c| {
                let row = streams::get(c, &stream.name)?;
                let floor = segments::number(stream.floor);
                // One far above every file is damage, not memory (invariant 2 asks for the other kind).
                if floor.0 > row.floor.0 && floor.0 - row.floor.0 <= MAX_FLOOR_STEP {
                    streams::raise_floor(c, row.id, SegmentNumber(floor.0 - 1))?;
                }
                Ok(())
            })?;
        }
        for (id, first, last, reason) in &old.tombstones {
            let Some(stream) = old.streams.get(id) else {
                continue;
            };
            let kept = self.inner().catalog.write(|c| {
                let row = streams::get(c, &stream.name)?;
                let mut missing: model::RangeSet = std::iter::once(*first..=*last).collect();
                for here in segments::rows_in(c, row.id, &(*first..=*last))? {
                    missing.remove_range(here..=here);
                }
                for range in missing.iter() {
                    holes::bury(c, row.id, &range, *reason)?;
                    streams::raise_floor(c, row.id, *range.end())?;
                }
                Ok(missing.count())
            })?;
            report.salvaged_tombstones += u64::from(kept > 0);
        }
        Ok(())
    }

    /// Streams that lie on the disk and are in no row: they belong to nobody until a device announces them or
    /// an operator gives them away.
    pub(crate) fn register_found(&self, report: &mut RecoveryReport) -> Result<()> {
        for name in self.inner().layout.streams()? {
            let known = self
                .inner()
                .catalog
                .read(|c| Ok(streams::find(c, &name)?))?;
            if known.is_some() || !self.inner().layout.has_segments(&name)? {
                continue;
            }
            self.register_stream(&name, None)?;
            tracing::warn!(stream = %name, "a stream lies on the disk that the catalog did not know");
            report.streams_found += 1;
        }
        Ok(())
    }

    pub(crate) fn looked_to(&self, stream: i64) -> Result<Option<SegmentNumber>> {
        let window = self.inner().window();
        let row = self
            .inner()
            .catalog
            .read(|c| Ok(catalog::live::load(c, stream, window)?))?;
        Ok(row.and_then(|row| row.looked_to))
    }

    /// A list that never listed anything begins so late that one window fits in it.
    pub(crate) fn begin_list_near_its_end(&self, stream: &streams::StreamRow) -> Result<()> {
        let window = self.inner().window();
        let (list, newest) = self.inner().catalog.read(|c| {
            let list = catalog::live::load(c, stream.id, window)?;
            let newest = segments::newest_here(
                c,
                stream.id,
                SegmentNumber(0),
                media::live_list::MAX_ENTRIES,
            )?;
            Ok((list, newest))
        })?;
        let listed = |row: &catalog::live::LiveRow| {
            row.looked_to.is_some() || row.list.header().last_number.is_some()
        };
        if list.as_ref().is_some_and(listed) {
            return Ok(());
        }
        let mut sum = model::MediaDuration::ZERO;
        let mut from = None;
        for row in newest.iter().rev() {
            sum += row.info.duration;
            from = Some(row.info.number);
            if sum > window + window {
                break;
            }
        }
        let before = from
            .and_then(|from| from.0.checked_sub(1))
            .map(SegmentNumber);
        let now = wall_now();
        let kept = list.map_or(0, |row| row.list.header().next_msn);
        let next = i64::try_from(kept).unwrap_or(0).max(now.0 / 1_000);
        self.inner()
            .catalog
            .write(|c| Ok(catalog::live::begin(c, stream.id, next, before, now)?))
    }

    /// Damaged catalogs that were set aside here, oldest first.
    pub fn set_aside_catalogs(&self) -> Result<Vec<PathBuf>> {
        damage::all_set_aside(&self.inner().data_dir)
    }

    /// Streams that an operator removed, whose files a kill left.
    pub(crate) fn finish_removals(&self) -> Result<()> {
        for folder in self.inner().layout.removed()? {
            std::fs::remove_dir_all(&folder).at(&folder)?;
        }
        Ok(())
    }

    /// The rebuild has ended well.
    pub(crate) fn end_rebuild(&self) -> Result<()> {
        damage::end_rebuild(&self.inner().data_dir)?;
        files::sync_folder(&self.inner().data_dir)
    }
}

/// Reads what can be read of a damaged catalog.
fn read(path: &Path) -> Salvage {
    let mut old = Salvage::default();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(c) = Connection::open_with_flags(path, flags) else {
        return old;
    };
    each(
        &c,
        "SELECT name, key, enabled, enrolled_ms FROM device",
        |row| {
            let key: Option<Vec<u8>> = row.get(1)?;
            if let Ok(name) = row.get::<_, String>(0)?.parse()
                && key.as_ref().is_none_or(|key| key.len() == KEY_BYTES)
            {
                old.devices.push(OldDevice {
                    name,
                    key,
                    enabled: row.get(2)?,
                    enrolled: row.get(3)?,
                });
            }
            Ok(())
        },
    );
    each(
        &c,
        "SELECT id, name, title, owner, created_ms, told_to_end, ending, stretch_first, floor FROM stream",
        |row| {
            if let Ok(name) = row.get::<_, String>(1)?.parse() {
                let owner: Option<String> = row.get(3)?;
                let stream = OldStream {
                    name,
                    title: row.get(2)?,
                    owner: owner.and_then(|owner| owner.parse().ok()),
                    created: row.get(4)?,
                    told_to_end: row.get(5)?,
                    ending: row.get(6)?,
                    stretch_first: row.get(7)?,
                    floor: row.get(8)?,
                    next_msn: None,
                };
                old.streams.insert(row.get(0)?, stream);
            }
            Ok(())
        },
    );
    each(&c, "SELECT stream, next_msn FROM live_list", |row| {
        let next: i64 = row.get(1)?;
        if let Some(stream) = old.streams.get_mut(&row.get(0)?)
            && (0..MAX_MSN).contains(&next)
        {
            stream.next_msn = Some(next);
        }
        Ok(())
    });
    // An early version's has no such column.
    let waits = match c.prepare("SELECT waits FROM run LIMIT 0") {
        Ok(_) => "waits",
        Err(_) => "0",
    };
    each(
        &c,
        &format!("SELECT stream, run, codecs, width, height, target_duration_s, {waits} FROM run"),
        |row| {
            let run = streams::run_from(row, 1)?;
            old.runs.push((row.get(0)?, run, row.get(6)?));
            Ok(())
        },
    );
    // Of a watched folder: without them each file in it would be recorded again.
    each(&c, &taken::all_streams(), |row| {
        if let Ok(stream) = row.get::<_, String>(taken::STREAM)?.parse() {
            old.taken.push((stream, taken::from_row(row)?));
        }
        Ok(())
    });
    each(
        &c,
        "SELECT stream, first, last, reason FROM tombstone",
        |row| {
            let (first, last): (i64, i64) = (row.get(1)?, row.get(2)?);
            if let Some(reason) = HoleReason::from_code(row.get(3)?)
                && (0..=last).contains(&first)
                && last < i64::MAX
            {
                let (first, last) = (segments::number(first), segments::number(last));
                old.tombstones.push((row.get(0)?, first, last, reason));
            }
            Ok(())
        },
    );
    old
}

/// A media sequence number above this is none that was counted: the seconds of the year 5138.
const MAX_MSN: i64 = 100_000_000_000;

/// Rows up to the first that can't be read.
fn each(c: &Connection, sql: &str, mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>) {
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = c.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            take(row)?;
        }
        Ok(())
    };
    if let Err(error) = read() {
        tracing::warn!(%error, "a part of the damaged catalog can't be read: what comes after it is lost");
    }
}
