//! Playlists in the segment folders, for staff who open them straight from disk (edge).
//!
//! `segments/{stream}/live.m3u8` rolls: written beside, then renamed. `segments/{stream}/2026-05-01T08.m3u8`
//! lists one UTC hour: appended, one write an entry, ENDLIST when the hour is over. They are views: a failure
//! here is logged and stops nothing, and the next start
//! makes the newest hour right again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use media::playlist::{self, HOUR_LIST_END, UriForm};
use model::{SegmentInfo, SegmentNumber, StreamName, WallTime};

use crate::{
    Store,
    catalog::{
        live::LiveRow,
        segments,
        streams::{self, StreamRow},
    },
    error::{AtPath, Result},
    live,
};

/// The highest TARGETDURATION that an hour may bring: what a forced cut keeps to.
const HOUR_TARGET_S: u32 = 6;

const LIVE_NAME: &str = "live.m3u8";

const HOUR_MS: i64 = 3_600_000;

/// Entries of a repaired hour list at most: segments of a tenth of a second, none left out.
const MAX_HOUR_ENTRIES: usize = 36_000;

impl Store {
    /// After a segment was closed: its hour list.
    pub(crate) fn write_local_playlists(&self, stream: &StreamName, info: &SegmentInfo) {
        if self.inner().options.local_playlists
            && let Err(error) = self.append_to_hour(stream, info)
        {
            tracing::warn!(%stream, number = info.number.0, %error, "failed to append to the hour list");
        }
    }

    /// After the live list changed: `live.m3u8`.
    pub(crate) fn write_local_live(&self, stream: &StreamName, row: &LiveRow) {
        let Some(playlist) = live::render(row, UriForm::Folder) else {
            return;
        };
        let folder = self.inner().layout.stream(stream);
        let (temporary, path) = (folder.join("live.m3u8.new"), folder.join(LIVE_NAME));
        let written = fs::write(&temporary, &playlist.text)
            .at(&temporary)
            .and_then(|()| fs::rename(&temporary, &path).at(&path));
        if let Err(error) = written {
            tracing::warn!(%stream, %error, "failed to write the local live playlist");
        }
    }

    /// After a start: `live.m3u8` is what was committed. A loss of power may have left zeros in it.
    pub(crate) fn repair_local_live(&self, stream: &StreamRow) -> Result<()> {
        let window = self.inner().window();
        let live = self
            .inner()
            .catalog
            .read(|c| Ok(crate::catalog::live::load(c, stream.id, window)?))?;
        let Some(row) = live else {
            return Ok(());
        };
        let path = self.inner().layout.stream(&stream.name).join(LIVE_NAME);
        let text = live::render(&row, UriForm::Folder).map(|playlist| playlist.text.clone());
        if text.is_some_and(|text| fs::read(&path).ok().as_deref() != Some(&*text)) {
            self.write_local_live(&stream.name, &row);
        }
        Ok(())
    }

    fn append_to_hour(&self, stream: &StreamName, info: &SegmentInfo) -> Result<()> {
        let listed_to = self.hour_lists(stream);
        let listed_to = listed_to.lock().unwrap_or_else(PoisonError::into_inner);
        if listed_to.is_some_and(|last| last >= info.number) {
            return Ok(());
        }
        let before = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::before(c, row.id, info.number)?)
        })?;
        let before = before.map(|row| row.info);
        let hour = |info: &SegmentInfo| hour_name(info.wall_start);
        let Some(name) = hour(info) else {
            return Ok(());
        };
        let folder = self.inner().layout.stream(stream);
        if let Some(old) = before.as_ref().and_then(hour).filter(|old| *old != name) {
            end_hour(&folder.join(old))?;
        }
        let same_hour = before.filter(|before| hour(before).as_ref() == Some(&name));
        let entry = playlist::hour_list_entry(info, same_hour.as_ref(), UriForm::Folder);
        append(&folder.join(name), &entry)
    }

    /// After a start: the newest hour list is what the ledger says, whatever a kill or a loss of power left.
    pub(crate) fn repair_hour_list(&self, stream: &StreamName) -> Result<()> {
        match self.newest_hour(stream)? {
            Some((newest, _)) => self.rewrite_hour(stream, hour_of(newest.wall_start), false),
            None => Ok(()),
        }
    }

    /// After a correction of wall times: the lists of these hours (their first milliseconds), and of all that
    /// lie in the folder, are what the ledger says.
    pub(crate) fn rewrite_hour_lists(
        &self,
        stream: &StreamName,
        mut hours: BTreeSet<i64>,
    ) -> Result<()> {
        let listed_to = self.hour_lists(stream);
        let mut listed_to = listed_to.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((newest, _)) = self.newest_hour(stream)? else {
            return Ok(());
        };
        let folder = self.inner().layout.stream(stream);
        for entry in fs::read_dir(&folder).at(&folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            hours.extend(hour_named(&name));
        }
        for hour in hours {
            self.rewrite_hour(stream, hour, hour < hour_of(newest.wall_start))?;
        }
        *listed_to = Some(newest.number);
        Ok(())
    }

    /// The same after segments of a range of numbers (the end excluded) got these numbers.
    pub(crate) fn rewrite_hour_lists_of(
        &self,
        stream: &StreamName,
        first: SegmentNumber,
        end: SegmentNumber,
    ) -> Result<()> {
        let hours = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::hours_of(c, row.id, first, end, HOUR_MS)?)
        })?;
        self.rewrite_hour_lists(stream, hours)
    }

    /// Writes the list of an hour, unless it says so already; an hour with nothing in it has none.
    fn rewrite_hour(&self, stream: &StreamName, hour: i64, over: bool) -> Result<()> {
        let Some(name) = hour_name(WallTime(hour)) else {
            return Ok(());
        };
        let path = self.inner().layout.stream(stream).join(name);
        let to = WallTime(hour.saturating_add(HOUR_MS));
        let entries: Vec<SegmentInfo> = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let rows = segments::here_between(c, row.id, WallTime(hour), to, MAX_HOUR_ENTRIES)?;
            Ok(rows.into_iter().map(|row| row.info).collect())
        })?;
        if entries.is_empty() {
            return crate::files::remove(&path);
        }
        let mut text = playlist::hour_list_head(HOUR_TARGET_S);
        let mut before = None;
        for info in &entries {
            text += &playlist::hour_list_entry(info, before, UriForm::Folder);
            before = Some(info);
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        let ended = there.strip_suffix(HOUR_LIST_END);
        if ended.unwrap_or(&there) == text && (ended.is_some() || !over) {
            return Ok(());
        }
        if over {
            text += HOUR_LIST_END;
        }
        let temporary = path.with_extension("new");
        fs::write(&temporary, &text).at(&temporary)?;
        fs::rename(&temporary, &path).at(&path)
    }

    /// Held while hour lists of a stream are written; the highest number that a rewriting listed.
    fn hour_lists(&self, stream: &StreamName) -> Arc<Mutex<Option<SegmentNumber>>> {
        self.with_memory(stream, |memory| memory.hour_lists.clone())
    }

    /// Ends the newest hour list once its hour is over and nothing is being written.
    pub(crate) fn end_past_hour(&self, stream: &StreamName, now: WallTime) -> Result<()> {
        if self.is_written(stream) {
            return Ok(());
        }
        match (self.newest_hour(stream)?, hour_name(now)) {
            (Some((_, hour)), Some(current)) if hour < current => {
                end_hour(&self.inner().layout.stream(stream).join(hour))
            }
            _ => Ok(()),
        }
    }

    fn newest_hour(&self, stream: &StreamName) -> Result<Option<(SegmentInfo, String)>> {
        let newest = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::before(c, row.id, SegmentNumber(u64::MAX))?)
        })?;
        Ok(newest.and_then(|row| Some((row.info, hour_name(row.info.wall_start)?))))
    }

    /// Hour lists whose hour is before the oldest segment that is here.
    pub(crate) fn sweep_hour_lists(&self, stream: &StreamName, oldest: WallTime) -> Result<()> {
        let Some(keep) = hour_name(oldest) else {
            return Ok(());
        };
        let folder = self.inner().layout.stream(stream);
        for entry in fs::read_dir(&folder).at(&folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Names sort as their hours do.
            if is_hour_name(&name) && name < keep {
                crate::files::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The first millisecond of the UTC hour around a time.
pub(crate) fn hour_of(time: WallTime) -> i64 {
    time.0.div_euclid(HOUR_MS).saturating_mul(HOUR_MS)
}

/// The first millisecond of the hour that a list is named after.
fn hour_named(name: &str) -> Option<i64> {
    let hour = name.strip_suffix(".m3u8").filter(|_| is_hour_name(name))?;
    let time: WallTime = format!("{hour}:00:00Z").parse().ok()?;
    Some(time.0)
}

/// `2026-05-01T08.m3u8`.
fn hour_name(time: WallTime) -> Option<String> {
    time.to_utc()
        .map(|t| t.format("%Y-%m-%dT%H.m3u8").to_string())
}

fn is_hour_name(name: &str) -> bool {
    name.len() == "2026-05-01T08.m3u8".len()
        && name.ends_with(".m3u8")
        && name.starts_with(|c: char| c.is_ascii_digit())
}

/// Appends an entry in one write. A list that was ended (video of a past hour is pushed again) goes on.
fn append(path: &Path, entry: &str) -> Result<()> {
    let mut file = open(path)?;
    let length = file.seek(SeekFrom::End(0)).at(path)?;
    if length == 0 {
        let text = playlist::hour_list_head(HOUR_TARGET_S) + entry;
        return file.write_all(text.as_bytes()).at(path);
    }
    if let Some(end) = ended_at(&mut file, length).at(path)? {
        file.set_len(end).at(path)?;
        file.seek(SeekFrom::End(0)).at(path)?;
    }
    file.write_all(entry.as_bytes()).at(path)
}

/// Appends ENDLIST to a list that lacks it.
fn end_hour(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut file = open(path)?;
    let length = file.seek(SeekFrom::End(0)).at(path)?;
    if ended_at(&mut file, length).at(path)?.is_none() {
        file.seek(SeekFrom::End(0)).at(path)?;
        file.write_all(HOUR_LIST_END.as_bytes()).at(path)?;
        // A start repairs the newest hour only: this one must be whole from here on.
        file.sync_data().at(path)?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .at(path)
}

/// Where the ENDLIST of a list begins, if it has one.
fn ended_at(file: &mut File, length: u64) -> std::io::Result<Option<u64>> {
    let Some(start) = length.checked_sub(HOUR_LIST_END.len() as u64) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(start))?;
    let mut tail = String::new();
    file.read_to_string(&mut tail)?;
    Ok((tail == HOUR_LIST_END).then_some(start))
}
