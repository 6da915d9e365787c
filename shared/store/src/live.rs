//! The shell around `media::live_list`: which segment comes next, committing, rendering once per change.
//!
//! The ledger says what comes next: the lowest number above the last one looked at that has a row or a
//! tombstone. A row that is *here* is listed; one that is open or announced is waited for (shipping is in
//! number order and announcements come first, so it arrives or is settled); a tombstone is a hole, and
//! becomes EXT-X-GAP once the segment behind it is here and tells how long it was. Numbers with neither
//! were burnt without media. Where an edge can't keep up it says at which segment live goes on ([`step_over`]):
//! whatever is not here before that is a hole in the list too. Keeps invariants 1 and 4: committed with the segment, then published.
//!
//! A correction of the clock moves no live media (invariant 8): PROGRAM-DATE-TIME must not jump within a run
//! (RFC 8216bis 6.2.1), so a run's entries stand by the wall time of the first of them that was listed and the
//! media between them, whatever the ledger says since. The next run begins at the corrected time, behind its
//! discontinuity. How long a hole was is the ledger's word.

use std::sync::Arc;

use bytes::Bytes;
use media::{
    live_list::{LiveList, LiveState},
    playlist::{self, UriForm},
};
use model::{MediaDuration, SegmentInfo, SegmentNumber, WallTime};
use rusqlite::Connection;

use crate::{
    Playlist,
    catalog::{
        Fault, holes,
        live::{self, LiveRow},
        segments::{self, State},
        streams::{self, StreamRow},
    },
};

/// Segments listed in one commit at most: after a long catch-up the rest follows with the next one.
const MAX_LISTED_AT_ONCE: usize = 4_096;

/// The times of a change to a live list.
pub(crate) struct Times {
    /// By this machine's clock: when it changed.
    pub(crate) wall: WallTime,
    /// By the clock that no step moves: how long what leaves must stay.
    pub(crate) steady: WallTime,
}

/// What one look at the ledger did.
pub(crate) struct Advanced {
    /// The list as it now stands; None: nothing was ever listed.
    pub(crate) row: Option<LiveRow>,
    pub(crate) changed: bool,
    /// Segments newly listed, ascending.
    pub(crate) listed: Vec<SegmentInfo>,
}

/// Brings a stream's live list up to the ledger, inside the transaction that changed the ledger.
pub(crate) fn advance(
    c: &Connection,
    stream: &StreamRow,
    window: MediaDuration,
    times: &Times,
) -> Result<Advanced, Fault> {
    let now = times.steady;
    let mut row = load(c, stream, window, times.wall)?;
    let before = (*row.list.header(), row.looked_to);
    let mut listed = Vec::new();
    let mut hole = is_stepped_over(c, stream.id, &row)?;
    let mut looked_to = row.looked_to;
    while listed.len() < MAX_LISTED_AT_ONCE {
        let Some(next) = segments::next_after(c, stream.id, looked_to)? else {
            break;
        };
        let tombstone = holes::next_tombstone(c, stream.id, looked_to)?;
        if let Some(range) = tombstone.filter(|range| *range.start() < next.info.number) {
            // Stepped over for good only once the segment behind it is listed.
            hole = true;
            looked_to = Some(*range.end());
            continue;
        }
        if next.state != State::Here {
            break;
        }
        list_one(c, stream, &mut row, &next.info, hole, now)?;
        hole = false;
        looked_to = Some(next.info.number);
        row.looked_to = looked_to;
        listed.push(next.info);
    }
    end_if_told(c, stream, &mut row, now)?;
    let changed = before != (*row.list.header(), row.looked_to);
    if changed {
        // A viewer that asks whether it changed since must not hear no because a clock went back.
        row.changed = times.wall.max(row.changed);
        let (header, looked_to) = (row.list.header(), row.looked_to);
        live::put_header(c, stream.id, header, looked_to, row.changed)?;
    }
    let known = row.list.header().last_number.is_some();
    Ok(Advanced {
        row: known.then_some(row),
        changed,
        listed,
    })
}

/// The live list goes on above `to`: what comes below it later is for recordings only.
pub(crate) fn step_over(
    c: &Connection,
    stream: &StreamRow,
    window: MediaDuration,
    now: WallTime,
    to: SegmentNumber,
) -> Result<(), Fault> {
    let row = load(c, stream, window, now)?;
    if row.looked_to.is_none_or(|looked| looked < to) {
        live::put_header(c, stream.id, row.list.header(), Some(to), row.changed)?;
    }
    Ok(())
}

fn load(
    c: &Connection,
    stream: &StreamRow,
    window: MediaDuration,
    now: WallTime,
) -> Result<LiveRow, Fault> {
    Ok(
        live::load(c, stream.id, window)?.unwrap_or_else(|| LiveRow {
            list: LiveList::new(u64::try_from(now.0 / 1_000).unwrap_or(0), window),
            looked_to: None,
            changed: now,
        }),
    )
}

/// Something that is not listed lies between the newest listed segment and where the list goes on.
fn is_stepped_over(c: &Connection, stream: i64, row: &LiveRow) -> Result<bool, Fault> {
    let (Some(last), Some(to)) = (row.list.header().last_number, row.looked_to) else {
        return Ok(false);
    };
    if to <= last {
        return Ok(false);
    }
    let next = segments::next_after(c, stream, Some(last))?;
    let tombstone = holes::next_tombstone(c, stream, Some(last))?;
    Ok(next.is_some_and(|next| next.info.number <= to)
        || tombstone.is_some_and(|range| *range.start() <= to))
}

fn list_one(
    c: &Connection,
    stream: &StreamRow,
    row: &mut LiveRow,
    info: &SegmentInfo,
    hole: bool,
    now: WallTime,
) -> Result<(), Fault> {
    if hole
        && let Some(end) = row
            .list
            .entries()
            .last()
            .map(|e| e.wall_start.plus(e.duration))
    {
        let behind = correction(c, stream.id, &row.list)?;
        let begins = info.wall_start.0.saturating_sub(behind);
        let missing = MediaDuration::from_millis(begins.saturating_sub(end.0));
        if missing > MediaDuration::ZERO {
            let change = row.list.append_gap(end, missing, now);
            live::apply(c, stream.id, &change, now)?;
        }
    }
    let run = streams::run(c, stream.id, info.run)?.unwrap_or_else(|| model::RunInfo {
        run: info.run,
        codecs: String::new(),
        resolution: None,
        target_duration_s: 2,
    });
    let info = &on_live_clock(c, stream.id, info)?;
    match row.list.append_segment(info, &run, now) {
        Ok(change) => live::apply(c, stream.id, &change, now)?,
        Err(error) => {
            tracing::warn!(stream = %stream.name, number = info.number.0, %error, "not listed live");
        }
    }
    Ok(())
}

/// By how many milliseconds the ledger has been corrected since the newest segment was listed.
fn correction(c: &Connection, stream: i64, list: &LiveList) -> Result<i64, Fault> {
    let listed = list
        .entries()
        .rev()
        .find_map(|e| Some((e.number()?, e.wall_start)));
    let Some((number, live)) = listed else {
        return Ok(0);
    };
    let ledger = segments::find(c, stream, number)?;
    Ok(ledger.map_or(0, |row| row.info.wall_start.0.saturating_sub(live.0)))
}

/// The segment with the wall time at which its run stands on the live list.
fn on_live_clock(c: &Connection, stream: i64, info: &SegmentInfo) -> Result<SegmentInfo, Fault> {
    Ok(match streams::live_anchor(c, stream, info.run)? {
        Some((wall, media)) => SegmentInfo {
            wall_start: wall.plus(info.media_start - media).in_calendar(),
            ..*info
        },
        None => {
            streams::set_live_anchor(c, stream, info)?;
            *info
        }
    })
}

/// ENDLIST once everything up to the told end is settled.
fn end_if_told(
    c: &Connection,
    stream: &StreamRow,
    row: &mut LiveRow,
    now: WallTime,
) -> Result<(), Fault> {
    if !stream.told_to_end || row.list.header().state == LiveState::Ended {
        return Ok(());
    }
    let settled = match stream.ending {
        None => true,
        Some(ending) => {
            let waiting = segments::next_after(c, stream.id, row.looked_to)?
                .is_some_and(|next| next.info.number <= ending);
            let known = row.looked_to.is_some_and(|looked| looked >= ending)
                || holes::next_tombstone(c, stream.id, row.looked_to)?
                    .is_some_and(|range| *range.end() >= ending);
            !waiting && known
        }
    };
    if settled {
        let change = row.list.end(now);
        live::apply(c, stream.id, &change, now)?;
    }
    Ok(())
}

/// The list as text; None while it is empty.
pub(crate) fn render(row: &LiveRow, form: UriForm) -> Option<Arc<Playlist>> {
    let text = playlist::live(&row.list, form)?;
    let header = row.list.header();
    Some(Arc::new(Playlist {
        etag: blake3::hash(text.as_bytes()).to_hex().to_string(),
        text: Bytes::from(text),
        ended: header.state == LiveState::Ended,
        target_duration_s: header.target_duration_s.unwrap_or(2),
        last_modified: row.changed,
    }))
}

/// The lowest number that is listed.
pub(crate) fn lowest_listed(row: &LiveRow) -> Option<SegmentNumber> {
    row.list.entries().filter_map(|e| e.number()).min()
}

/// The lowest number that is listed or must stay for readers of an older list.
pub(crate) fn lowest_needed(row: &LiveRow, now: WallTime) -> Option<SegmentNumber> {
    let retired = row
        .list
        .retired()
        .filter(|r| r.keep_until > now)
        .map(|r| r.number);
    retired.chain(lowest_listed(row)).min()
}
