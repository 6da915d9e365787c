//! What start-up repairs: open rows and the newest folders only, so that it takes a bounded time.
//!
//! On an edge an open segment is closed at what its file holds; on a hub its partial waits to be resumed.
//! Files that no row knows are removed, rows whose file is gone become holes (*corrupt*).

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
};

use media::{access_unit::SourceEvent, live_list, ts::demux::Demuxer};
use model::{HoleReason, MediaDuration, SegmentHash, SegmentInfo, SegmentNumber, StreamName};

use crate::{
    RecoveryReport, Store,
    catalog::{
        live,
        segments::{self, SegmentRow, State},
        spans,
        streams::{self, StreamRow},
    },
    error::{AtPath, Result},
    files::{self, FileKind},
    store::ALL,
};

/// Folders looked through for each stream: the one being written and the one before.
const NEWEST_FOLDERS: usize = 2;

const TS_PACKET_BYTES: usize = 188;

const SYNC_BYTE: u8 = 0x47;

/// `payload_unit_start_indicator`: a PES packet or a section begins here.
const UNIT_START: u8 = 0x40;

/// The packet has an adaptation field.
const ADAPTATION_FIELD: u8 = 0x20;

const STUFFING: u8 = 0xff;

impl Store {
    pub(crate) fn recover(&self) -> Result<RecoveryReport> {
        let mut report = RecoveryReport::default();
        let latest = self
            .steady_now()
            .plus(live_list::max_grace(self.inner().window()));
        self.inner()
            .catalog
            .write(|c| Ok(live::shorten_grace(c, latest)?))?;
        let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
        for row in &all {
            self.recover_renumbering(row)?;
            self.recover_open(row, &mut report)?;
            self.recover_folders(row, &mut report)?;
            self.sweep_below_first(&row.name, row.id)?;
            self.change_live(&row.name, |_, _| Ok(()))?;
            if self.inner().options.local_playlists {
                self.repair_local_live(row)?;
                self.repair_hour_list(&row.name)?;
            }
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
        bytes.truncate(whole_bytes(&bytes));
        if self.is_being_taken(stream)? {
            // Its file still has the rest: what is here ends at a part that is surely whole, to go on behind.
            bytes.truncate(last_part(&bytes));
        }
        let Some(duration) = media_duration(&bytes) else {
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

    fn recover_folders(&self, stream: &StreamRow, report: &mut RecoveryReport) -> Result<()> {
        let mut present = HashSet::new();
        let folders = self
            .inner()
            .layout
            .newest_folders(&stream.name, NEWEST_FOLDERS)?;
        for folder in &folders {
            for (number, kind) in self.inner().layout.list_folder(folder)? {
                let state = self
                    .inner()
                    .catalog
                    .read(|c| Ok(segments::find(c, stream.id, number)?))?
                    .map(|row| row.state);
                match (kind, state) {
                    (FileKind::Segment, Some(State::Here)) => {
                        present.insert(number);
                    }
                    (FileKind::Partial, Some(State::Open)) => {}
                    (FileKind::Segment, _) => {
                        files::remove(&self.inner().layout.segment(&stream.name, number))?;
                        report.orphans_removed += 1;
                    }
                    (FileKind::Partial, _) => {
                        files::remove(&self.inner().layout.partial(&stream.name, number))?;
                        report.orphans_removed += 1;
                    }
                }
            }
        }
        self.bury_missing(stream, &present, report)
    }

    /// Rows of the newest folders whose files are gone.
    fn bury_missing(
        &self,
        stream: &StreamRow,
        present: &HashSet<SegmentNumber>,
        report: &mut RecoveryReport,
    ) -> Result<()> {
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
            if !present.contains(&info.number) && !path.exists() {
                tracing::error!(stream = %stream.name, number = info.number.0, path = %path.display(), "a segment's file is gone: it becomes a hole");
                self.inner().catalog.write(|c| {
                    Ok(segments::bury(
                        c,
                        stream.id,
                        &(info.number..=info.number),
                        HoleReason::Corrupt,
                    )?)
                })?;
                report.missing_files += 1;
            }
        }
        Ok(())
    }
}

/// How much of a file is whole: all of it, or, where it is torn, what lies before the access unit (or table)
/// that the tear is in. A tear is a length that is no whole number of packets, or (after a loss of power) a
/// packet without its sync byte.
fn whole_bytes(bytes: &[u8]) -> usize {
    let (packets, rest) = bytes.as_chunks::<TS_PACKET_BYTES>();
    let good = packets
        .iter()
        .take_while(|packet| packet.first() == Some(&SYNC_BYTE))
        .count();
    let tail = packets.get(good).map_or(rest, |packet| packet.as_slice());
    let begins = match tail {
        [] => true,
        // A torn packet that itself begins something has torn nothing before it.
        [SYNC_BYTE, flags, ..] => flags & UNIT_START != 0,
        _ => false,
    };
    let ended = packets.get(..good).and_then(|packets| packets.last());
    let whole = if begins || ended.is_some_and(is_stuffed) {
        good
    } else {
        packets
            .iter()
            .take(good)
            .rposition(|packet| matches!(packet, [_, flags, ..] if flags & UNIT_START != 0))
            .unwrap_or(0)
    };
    whole * TS_PACKET_BYTES
}

/// Whether a packet is filled up with stuffing, as only the last one of an access unit is.
fn is_stuffed(packet: &[u8; TS_PACKET_BYTES]) -> bool {
    let [_, _, _, flags, length, rest @ ..] = packet;
    flags & ADAPTATION_FIELD != 0
        && match usize::from(*length).checked_sub(1) {
            None => true,
            Some(last) => rest.get(last) == Some(&STUFFING),
        }
}

/// Where the last part begins: each begins with a program association table.
fn last_part(bytes: &[u8]) -> usize {
    let (packets, _) = bytes.as_chunks::<TS_PACKET_BYTES>();
    let begins = |packet: &[u8; TS_PACKET_BYTES]| matches!(packet, [SYNC_BYTE, flags, 0, ..] if flags & UNIT_START != 0 && flags & 0x1f == 0);
    packets.iter().rposition(begins).unwrap_or(0) * TS_PACKET_BYTES
}

/// The duration of a segment's first track: from its first to its last access unit and one more like it.
fn media_duration(bytes: &[u8]) -> Option<MediaDuration> {
    let mut events = Vec::new();
    let mut demuxer = Demuxer::new();
    demuxer.push(bytes, &mut events);
    demuxer.finish(&mut events);
    let video = events.iter().find_map(|event| match event {
        SourceEvent::Tracks(tracks) => tracks.iter().find(|t| t.is_video()).map(|t| t.id),
        _ => None,
    });
    let mut times: Vec<i64> = events
        .iter()
        .filter_map(|event| match event {
            SourceEvent::AccessUnit(unit) if video.is_none_or(|id| id == unit.track) => {
                Some(unit.pts.0)
            }
            _ => None,
        })
        .collect();
    times.sort_unstable();
    times.dedup();
    let (first, last) = (times.first()?, times.last()?);
    let count = i64::try_from(times.len()).ok()?;
    // One access unit alone is taken for a fortieth of a second.
    let one = if count > 1 {
        (last - first) / (count - 1)
    } else {
        2_250
    };
    Some(MediaDuration(last - first + one.max(1)))
}
