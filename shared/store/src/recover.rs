//! What start-up repairs: open rows and the newest folders only, so that it takes a bounded time.
//!
//! On an edge an open segment is closed at what its file holds; on a hub its partial waits to be resumed.
//! What becomes of files that no row knows is in [`crate::adopt`]; a row whose file is gone is asked for again
//! on a hub, and is a hole (*corrupt*) on an edge. A catalog that was damaged or lost is rebuilt on the way
//! ([`crate::rebuild`]): then every segment is read.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use media::live_list;
use model::{SegmentHash, SegmentInfo, SegmentNumber, StreamName};

use crate::{
    RecoveryReport, Store,
    adopt::Progress,
    catalog::{
        live,
        segments::{self, SegmentRow, State},
        spans,
        streams::{self, StreamRow},
    },
    error::{AtPath, Result},
    files, probe,
    store::ALL,
};

/// Folders looked through for each stream: the one being written and the one before.
const NEWEST_FOLDERS: usize = 2;

impl Store {
    /// `damaged`: where a damaged catalog was set aside; ours is new then, and every segment is read.
    pub(crate) fn recover(&self, damaged: Option<PathBuf>) -> Result<RecoveryReport> {
        let mut report = RecoveryReport::default();
        self.finish_removals()?;
        let salvage = damaged
            .as_ref()
            .map(|aside| self.keep_salvage(aside, &mut report))
            .transpose()?;
        let latest = self
            .steady_now()
            .plus(live_list::max_grace(self.inner().window()));
        self.inner()
            .catalog
            .write(|c| Ok(live::shorten_grace(c, latest)?))?;
        self.register_found(&mut report)?;
        let mut progress = Progress::new();
        let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
        for row in &all {
            self.recover_renumbering(row)?;
            self.recover_open(row, &mut report)?;
            self.adopt_files(row, NEWEST_FOLDERS, &mut progress, &mut report)?;
            self.lose_missing(row, &mut report)?;
        }
        if let Some(salvage) = &salvage {
            self.keep_tombstones(salvage, &mut report)?;
            self.end_rebuild()?;
            report.catalog_set_aside = damaged;
        }
        for row in &all {
            self.sweep_below_first(&row.name, row.id)?;
            self.change_live(&row.name, |_, _| Ok(()))?;
            if self.inner().options.local_playlists {
                let repaired = self
                    .repair_local_live(row)
                    .and_then(|()| self.repair_hour_list(&row.name));
                // Staff see an old list until the next segment; the recording is what counts.
                if let Err(error) = repaired {
                    tracing::warn!(stream = %row.name, %error, "failed to repair the local playlists");
                }
            }
        }
        if report.set_aside > 0 {
            tracing::warn!(files = report.set_aside, folder = %self.inner().data_dir.join("orphans").display(), "set files aside that the catalog does not know and that could not be adopted");
        }
        Ok(report)
    }

    fn recover_open(&self, stream: &StreamRow, report: &mut RecoveryReport) -> Result<()> {
        let rows = self
            .inner()
            .catalog
            .read(|c| Ok(segments::list_not_here(c, stream.id)?))?;
        for row in rows.iter().filter(|row| row.state == State::Open) {
            let number = row.info.number;
            self.take_back(&stream.name, number)?;
            let partial = self.inner().layout.partial(&stream.name, number);
            let empty = fs::metadata(&partial).map_or(true, |m| m.len() == 0);
            if empty {
                self.abandon(&stream.name, number)?;
            } else if self.inner().options.local_playlists {
                report.open_closed += u64::from(self.close_recovered(&stream.name, row)?);
            } else {
                report.partials_kept += 1;
            }
        }
        Ok(())
    }

    /// A file that was renamed, but whose row was not committed, is a partial again.
    pub(crate) fn take_back(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        let whole = self.inner().layout.segment(stream, number);
        match fs::rename(&whole, self.inner().layout.partial(stream, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(&whole),
            _ => Ok(()),
        }
    }

    /// Edge: closes what a writer that was lost (an error, a panic) left open, so that the list goes on.
    pub(crate) fn close_left_open(&self, stream: &StreamName) -> Result<()> {
        let rows = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_open(c, row.id, &ALL)?)
        })?;
        for row in rows {
            let number = row.info.number;
            if !self.has_writer(stream, number) {
                self.take_back(stream, number)?;
                self.close_recovered(stream, &row)?;
            }
        }
        Ok(())
    }

    /// Hub: an open row whose writer and bytes are gone (the disk refused them) is none: it may be opened again.
    pub(crate) fn forget_left_open(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<()> {
        let open = self.row(stream, number)?;
        let left =
            open.is_some_and(|row| row.state == State::Open) && !self.has_writer(stream, number);
        if left && !self.inner().layout.partial(stream, number).exists() {
            self.abandon(stream, number)?;
        }
        Ok(())
    }

    /// Closes an edge's open segment at its last whole access unit; false: there was none.
    fn close_recovered(&self, stream: &StreamName, row: &SegmentRow) -> Result<bool> {
        let number = row.info.number;
        let partial = self.inner().layout.partial(stream, number);
        let mut bytes = match fs::read(&partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.at(&partial)?,
        };
        bytes.truncate(probe::whole_bytes(&bytes));
        if self.is_being_taken(stream)? {
            // Its file still has the rest: what is here ends at a part that is surely whole, to go on behind.
            bytes.truncate(probe::last_part(&bytes));
        }
        let Some(duration) = probe::probe(&bytes).map(|found| found.duration) else {
            tracing::warn!(%stream, number = number.0, "an open segment held no whole access unit: it becomes a hole");
            self.abandon(stream, number)?;
            return Ok(false);
        };
        let file = File::options().write(true).open(&partial).at(&partial)?;
        file.set_len(bytes.len() as u64).at(&partial)?;
        file.sync_all().at(&partial)?;
        let path = self.inner().layout.segment(stream, number);
        fs::rename(&partial, &path).at(&path)?;
        files::sync_folder(&self.inner().layout.folder(stream, number))?;
        self.commit_closed(
            stream,
            &SegmentInfo {
                duration,
                bytes: bytes.len() as u64,
                hash: SegmentHash::of(&bytes),
                ..row.info
            },
            false,
        )?;
        Ok(true)
    }

    /// Rows of the newest folders whose files are gone.
    fn lose_missing(&self, stream: &StreamRow, report: &mut RecoveryReport) -> Result<()> {
        let highest = self
            .inner()
            .catalog
            .read(|c| Ok(spans::totals(c, stream.id)?.last))?;
        let Some(highest) = highest else {
            return Ok(());
        };
        let newest = highest.0 / files::SEGMENTS_PER_FOLDER;
        let from = newest.saturating_sub(NEWEST_FOLDERS as u64 - 1) * files::SEGMENTS_PER_FOLDER;
        let limit = NEWEST_FOLDERS * files::SEGMENTS_PER_FOLDER as usize;
        for info in self.list(&stream.name, SegmentNumber(from), limit)? {
            let path = self.inner().layout.segment(&stream.name, info.number);
            if !path.exists() {
                self.lose(&stream.name, &info, "its file is gone", &path)?;
                report.missing_files += 1;
            }
        }
        Ok(())
    }
}
