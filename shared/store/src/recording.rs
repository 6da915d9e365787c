//! The playlist of a time range: what is here of it, end-listed where nothing can come any more.

use media::playlist::{self, UriForm};
use model::{SegmentInfo, SegmentNumber, StreamName, WallTime};

use crate::{
    Playlist, Store,
    catalog::{
        segments::{self, SegmentRow},
        streams,
    },
    error::Result,
    store::wall_now,
};

/// Most segments of one recording: 27 hours of two-second segments, 5 MB of text. A longer range is cut off
/// behind that (ask for the rest with `from`).
pub const MAX_RECORDING_SEGMENTS: usize = 50_000;

/// A segment may begin this long before the range and reach into it: the longest that is ever listed.
const LONGEST_SEGMENT_MS: i64 = 60_000;

impl Store {
    /// The recording of a time range. Neither bound: the newest stretch, that is everything since the stream
    /// last began anew after an end (a push of several files is one stretch). None: no such stream, or
    /// nothing here in that range.
    pub fn recording(
        &self,
        stream: &StreamName,
        from: Option<WallTime>,
        to: Option<WallTime>,
    ) -> Result<Option<Playlist>> {
        let found = self.inner().catalog.read(|c| {
            let Some(row) = streams::find(c, stream)? else {
                return Ok(None);
            };
            let rows = if from.is_none() && to.is_none() {
                segments::newest_here(c, row.id, row.stretch_first, MAX_RECORDING_SEGMENTS)?
            } else {
                let start = from.unwrap_or(WallTime(i64::MIN));
                let end = to.unwrap_or(WallTime(i64::MAX));
                let earliest = WallTime(start.0.saturating_sub(LONGEST_SEGMENT_MS));
                let mut rows =
                    segments::here_between(c, row.id, earliest, end, MAX_RECORDING_SEGMENTS)?;
                rows.retain(|row| row.info.wall_start.plus(row.info.duration) > start);
                rows
            };
            let waiting = segments::next_not_here(c, row.id)?;
            // Segments come in order: one here that begins behind the range says that the range is over.
            let passed = match to {
                Some(to) => segments::any_here_from(c, row.id, to)?,
                None => false,
            };
            let mut target = 1;
            let mut runs: Vec<SegmentNumber> = rows.iter().map(|row| row.info.run).collect();
            runs.dedup();
            for run in runs {
                let run = streams::run(c, row.id, run)?;
                target = target.max(run.map_or(1, |run| run.target_duration_s));
            }
            Ok(Some((row, rows, waiting, passed, target)))
        })?;
        let Some((row, rows, waiting, passed, target)) = found else {
            return Ok(None);
        };
        // Told to end after a number that was not even announced yet: what comes before it may be missing.
        let ended = row.told_to_end && row.ending.is_none_or(|ending| ending < row.floor);
        let settled = is_settled(ended, passed, waiting.as_ref(), to);
        let infos: Vec<SegmentInfo> = rows.iter().map(|row| row.info).collect();
        Ok(
            playlist::recording(&infos, target, settled, UriForm::Http).map(|text| Playlist {
                etag: blake3::hash(text.as_bytes()).to_hex().to_string(),
                text: text.into(),
                ended: settled,
                target_duration_s: target,
                last_modified: wall_now(),
            }),
        )
    }
}

/// Nothing can come into the range any more: nothing that waits lies before its end, and either the stream
/// has ended or something begins at or after the range's end.
fn is_settled(
    ended: bool,
    passed: bool,
    waiting: Option<&SegmentRow>,
    to: Option<WallTime>,
) -> bool {
    match waiting {
        Some(row) => to.is_some_and(|to| row.info.wall_start >= to),
        None => ended || passed,
    }
}
