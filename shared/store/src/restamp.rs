//! Corrections of wall times in the ledger: the second half of invariant 8.
//!
//! Edge: segments of live sources know where they began on the clock of this boot, which no step moves. Once
//! that boot's beginning is known better ([`Store::correct_boot`]; who decides is the program), it is written
//! down, every segment opened after it goes by it, and those before it are restamped page by page: segments,
//! recorded ranges, hour lists. A crash in between is made good by [`Store::resume_correction`]. Each restamped
//! segment is marked until the hub has confirmed its new time. Files that were pushed have times of their own
//! and are never restamped; nor are segments of another boot.
//!
//! Hub: [`Store::restamp`] sets what the edge says, as often as it says it.
//!
//! Live lists are not touched here (invariant 4); how they stand by their time is `live.rs`'s business.

use std::collections::BTreeSet;

use model::{BootId, SegmentInfo, SegmentNumber, StreamName, WallTime};
use rusqlite::{Connection, params};

use crate::{
    Store,
    catalog::{
        boots,
        segments::{self, SegmentRow, State, sql},
        spans,
        streams::{self, StreamRow},
    },
    error::Result,
    local_playlists,
};

/// A segment's wall time that is off by no more than this stays: clocks that are kept in time differ by as
/// much, and each restamp is a write.
pub const RESTAMP_TOLERANCE_MS: i64 = 1_000;

/// Segments restamped in one commit: what is being recorded waits no longer than for that.
const PAGE: usize = 256;

/// Edge.
impl Store {
    /// When this boot began, as an earlier correction says, and whether that was the hub's word; one that a
    /// crash interrupted is finished first.
    pub fn resume_correction(&self, boot: BootId) -> Result<Option<(WallTime, bool)>> {
        let found = self.inner().catalog.read(|c| Ok(boots::find(c, boot)?))?;
        if let Some(row) = found.as_ref().filter(|row| !row.done) {
            self.restamp_boot(boot, row.zero)?;
        }
        Ok(found.map(|row| (row.zero, row.by_hub)))
    }

    /// This boot began at `zero` (by the hub's word, or this machine's): all its live segments, those that
    /// will be opened too, go by it. How many had another wall time.
    pub fn correct_boot(&self, boot: BootId, zero: WallTime, by_hub: bool) -> Result<u64> {
        self.inner()
            .catalog
            .write(|c| Ok(boots::put(c, boot, zero, by_hub)?))?;
        self.restamp_boot(boot, zero)
    }

    /// The hub confirms `zero`, or this boot's clock has drifted: live segments opened from now on go by `zero`, those before it stay.
    pub fn go_on_from(&self, boot: BootId, zero: WallTime) -> Result<()> {
        self.inner().catalog.write(|c| {
            boots::put(c, boot, zero, true)?;
            Ok(boots::done(c, boot, zero)?)
        })
    }

    /// Whether live segments of this boot were stamped by a clock that was never set.
    pub fn has_implausible(&self, boot: BootId) -> Result<bool> {
        self.inner().catalog.read(|c| {
            for stream in streams::all(c)? {
                if boots::any_before(c, stream.id, boot, WallTime::PLAUSIBLE)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Segments at the hub that it may know by another wall time, ascending.
    pub fn restamped(
        &self,
        stream: &StreamName,
        limit: usize,
    ) -> Result<Vec<(SegmentNumber, WallTime)>> {
        let read = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let found = c
                .prepare_cached(
                    "SELECT number, wall_ms FROM segment INDEXED BY segment_restamped
                     WHERE stream = ?1 AND restamped = 1 AND state = 1 AND stored = 1
                     ORDER BY number LIMIT ?2",
                )?
                .query_map(params![row.id, limit as i64], |row| {
                    Ok((segments::number(row.get(0)?), WallTime(row.get(1)?)))
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(found)
        });
        self.or_in_memory(stream, read)
    }

    /// The hub knows these wall times. One that was corrected again meanwhile stays marked.
    pub fn mark_restamped(
        &self,
        stream: &StreamName,
        told: &[(SegmentNumber, WallTime)],
    ) -> Result<()> {
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            let mut statement = c.prepare_cached(
                "UPDATE segment SET restamped = 0 WHERE stream = ?1 AND number = ?2 AND wall_ms = ?3",
            )?;
            for (number, wall) in told {
                statement.execute(params![row.id, sql(*number), wall.0])?;
            }
            Ok(())
        })
    }

    fn restamp_boot(&self, boot: BootId, zero: WallTime) -> Result<u64> {
        let all = self.inner().catalog.read(|c| Ok(streams::all(c)?))?;
        let mut changed = 0;
        for stream in &all {
            changed += self.restamp_stream(stream, boot, zero)?;
        }
        self.inner()
            .catalog
            .write(|c| Ok(boots::done(c, boot, zero)?))?;
        self.tick();
        Ok(changed)
    }

    fn restamp_stream(&self, stream: &StreamRow, boot: BootId, zero: WallTime) -> Result<u64> {
        let mut from = self
            .inner()
            .catalog
            .read(|c| Ok(boots::first_of(c, stream.id, boot)?))?;
        let mut changed = 0;
        let mut walls = BTreeSet::new();
        while let Some(first) = from {
            let (page, rows) = self.inner().catalog.write(|c| {
                let page = boots::segments_of(c, stream.id, boot, first, PAGE)?;
                let mut rows = Vec::new();
                for (number, at) in &page {
                    let row = segments::find(c, stream.id, *number)?;
                    let wall = at.wall(zero);
                    rows.extend(
                        row.filter(|row| is_off(row.info.wall_start, wall))
                            .map(|row| (row, wall)),
                    );
                }
                set_walls(c, stream.id, &rows, true)?;
                Ok((page, rows))
            })?;
            self.show(&stream.name, &rows);
            changed += rows.len() as u64;
            for (_, at) in &page {
                let wall = at.wall(zero);
                // Where it stays, it may stand in the hour beside.
                for ms in [-RESTAMP_TOLERANCE_MS, RESTAMP_TOLERANCE_MS] {
                    walls.insert(local_playlists::hour_of(WallTime(
                        wall.0.saturating_add(ms),
                    )));
                }
            }
            from = page
                .last()
                .filter(|_| page.len() == PAGE)
                .map(|(number, _)| number.next());
        }
        if !walls.is_empty() && self.inner().options.local_playlists {
            self.rewrite_hour_lists(&stream.name, walls)?;
        }
        Ok(changed)
    }
}

/// Hub.
impl Store {
    /// Sets the wall times of segments that are known here, whatever their state; ascending by number. How
    /// many had another one.
    pub fn restamp(&self, stream: &StreamName, walls: &[(SegmentNumber, WallTime)]) -> Result<u64> {
        let look = |c: &Connection| {
            let stream = streams::get(c, stream)?;
            let mut rows = Vec::new();
            for (number, wall) in walls {
                let row = segments::find(c, stream.id, *number)?;
                rows.extend(
                    row.filter(|row| row.info.wall_start != *wall)
                        .map(|row| (row, *wall)),
                );
            }
            Ok((stream, rows))
        };
        // Most were announced with the right time: nothing is written then.
        let (_, rows) = self.inner().catalog.read(look)?;
        if rows.is_empty() {
            return Ok(0);
        }
        let rows = self.inner().catalog.write(|c| {
            let (stream, rows) = look(c)?;
            set_walls(c, stream.id, &rows, false)?;
            Ok(rows)
        })?;
        self.show(stream, &rows);
        self.tick();
        Ok(rows.len() as u64)
    }

    /// Readers of a segment being written see its new time; a rebuild will find that of a closed one.
    fn show(&self, stream: &StreamName, rows: &[(SegmentRow, WallTime)]) {
        for (row, wall) in rows.iter().filter(|(row, _)| row.state == State::Here) {
            let info = SegmentInfo {
                wall_start: *wall,
                ..row.info
            };
            self.write_journal(stream, &info);
        }
        let open = || rows.iter().filter(|(row, _)| row.state == State::Open);
        if open().next().is_none() {
            return;
        }
        self.inner().tier.settle(|state| {
            for (row, wall) in open() {
                state.set_wall(stream, row.info.number, *wall);
            }
        });
        self.with_memory(stream, |memory| {
            for (row, wall) in open() {
                if let Some(opened) = memory.open.get_mut(&row.info.number) {
                    opened.view.open.wall_start = *wall;
                }
            }
        });
    }
}

fn is_off(is: WallTime, should: WallTime) -> bool {
    is.0.saturating_sub(should.0).saturating_abs() > RESTAMP_TOLERANCE_MS
}

/// Rows, ascending, and the recorded ranges that they are in. `mark`: the hub is to be told.
fn set_walls(
    c: &Connection,
    stream: i64,
    rows: &[(SegmentRow, WallTime)],
    mark: bool,
) -> rusqlite::Result<()> {
    let mut statement = c.prepare_cached(
        "UPDATE segment SET wall_ms = ?3, restamped = MAX(restamped, ?4) WHERE stream = ?1 AND number = ?2",
    )?;
    for (row, wall) in rows {
        statement.execute(params![stream, sql(row.info.number), wall.0, mark])?;
    }
    let here: Vec<SegmentInfo> = rows
        .iter()
        .filter(|(row, _)| row.state == State::Here)
        .map(|(row, wall)| SegmentInfo {
            wall_start: *wall,
            ..row.info
        })
        .collect();
    spans::restamp(c, stream, &here)
}
