//! Rows of segments: the ledger. What was never there, or is there no more, is in `holes.rs`; what the hub has of
//! it in `at_hub.rs`.

use std::{collections::BTreeSet, ops::RangeInclusive};

use model::{
    BootTime, MediaDuration, MediaTime, SegmentHash, SegmentInfo, SegmentNumber, WallTime,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::spans;
use crate::OpenSegment;

/// What a segment's row says of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Being written, or a partial that waits.
    Open,
    /// Whole, under its final name, durable.
    Here,
    /// At the edge.
    Announced,
}

impl State {
    const fn from_code(code: i64) -> Self {
        match code {
            1 => Self::Here,
            2 => Self::Announced,
            _ => Self::Open,
        }
    }
}

/// A segment's row; for one that is not here, duration, bytes and hash are as announced, or nought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentRow {
    pub(crate) state: State,
    pub(crate) info: SegmentInfo,
}

impl SegmentRow {
    pub(crate) fn open(&self) -> OpenSegment {
        OpenSegment {
            number: self.info.number,
            run: self.info.run,
            wall_start: self.info.wall_start,
            media_start: self.info.media_start,
            independent: self.info.independent,
        }
    }
}

/// A number as SQLite keeps it: 63 bits are more than any stream uses.
pub(crate) fn sql(number: SegmentNumber) -> i64 {
    i64::try_from(number.0).unwrap_or(i64::MAX)
}

pub(crate) fn number(value: i64) -> SegmentNumber {
    SegmentNumber(u64::try_from(value).unwrap_or(0))
}

pub(super) const COLUMNS: &str =
    "number, run, state, wall_ms, media_90k, duration_90k, bytes, hash, independent";

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<SegmentRow> {
    let hash: Option<Vec<u8>> = row.get(7)?;
    Ok(SegmentRow {
        state: State::from_code(row.get(2)?),
        info: SegmentInfo {
            number: number(row.get(0)?),
            run: number(row.get(1)?),
            wall_start: WallTime(row.get(3)?),
            media_start: MediaTime(row.get(4)?),
            duration: MediaDuration(row.get(5)?),
            bytes: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
            hash: hash
                .and_then(|h| SegmentHash::from_slice(&h))
                .unwrap_or(SegmentHash([0; 32])),
            independent: row.get(8)?,
        },
    })
}

/// `which`: everything of the statement after the table. Where a partial index serves, it is named: SQLite
/// would rather walk the whole ledger by its key.
pub(super) fn collect(
    c: &Connection,
    which: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<Vec<SegmentRow>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM segment {which}"))?
        .query_map(values, from_row)?
        .collect()
}

pub(crate) fn find(
    c: &Connection,
    stream: i64,
    number: SegmentNumber,
) -> rusqlite::Result<Option<SegmentRow>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM segment WHERE stream = ?1 AND number = ?2"
    ))?
    .query_row(params![stream, sql(number)], from_row)
    .optional()
}

/// The lowest row above `after`, whatever its state.
pub(crate) fn next_after(
    c: &Connection,
    stream: i64,
    after: Option<SegmentNumber>,
) -> rusqlite::Result<Option<SegmentRow>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM segment WHERE stream = ?1 AND number > ?2 ORDER BY number LIMIT 1"
    ))?
    .query_row(params![stream, after.map_or(-1, sql)], from_row)
    .optional()
}

pub(crate) fn list_here(
    c: &Connection,
    stream: i64,
    from: SegmentNumber,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    collect(
        c,
        "WHERE stream = ?1 AND number >= ?2 AND state = 1 ORDER BY number LIMIT ?3",
        params![stream, sql(from), limit as i64],
    )
}

/// The newest segments that are here, ascending.
pub(crate) fn newest_here(
    c: &Connection,
    stream: i64,
    from: SegmentNumber,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    let mut rows = collect(
        c,
        "WHERE stream = ?1 AND number >= ?2 AND state = 1 ORDER BY number DESC LIMIT ?3",
        params![stream, sql(from), limit as i64],
    )?;
    rows.reverse();
    Ok(rows)
}

/// Segments here that begin in a wall-clock range (the second bound excluded), ascending by number.
pub(crate) fn here_between(
    c: &Connection,
    stream: i64,
    from: WallTime,
    to: WallTime,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    let mut rows = collect(
        c,
        "WHERE stream = ?1 AND wall_ms >= ?2 AND wall_ms < ?3 AND state = 1 ORDER BY wall_ms LIMIT ?4",
        params![stream, from.0, to.0, limit as i64],
    )?;
    rows.sort_unstable_by_key(|row| row.info.number);
    Ok(rows)
}

pub(crate) fn any_not_here(
    c: &Connection,
    stream: i64,
    within: &RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment INDEXED BY segment_not_here
         WHERE stream = ?1 AND state <> 1 AND number BETWEEN ?2 AND ?3)",
    )?
    .query_row(
        params![stream, sql(*within.start()), sql(*within.end())],
        |row| row.get(0),
    )
}

pub(crate) fn list_not_here(c: &Connection, stream: i64) -> rusqlite::Result<Vec<SegmentRow>> {
    collect(
        c,
        "INDEXED BY segment_not_here WHERE stream = ?1 AND state <> 1 ORDER BY number",
        [stream],
    )
}

/// A row *open*: false where the number is used already.
pub(crate) fn open(c: &Connection, stream: i64, open: &OpenSegment) -> rusqlite::Result<bool> {
    let changed = c
        .prepare_cached(
            "INSERT INTO segment (stream, number, run, state, wall_ms, media_90k, independent)
             VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6)
             ON CONFLICT (stream, number) DO UPDATE SET state = 0,
                 hash = CASE WHEN run = ?3 AND media_90k = ?5 THEN hash END,
                 run = ?3, wall_ms = ?4, media_90k = ?5, independent = ?6
             WHERE state = 2",
        )?
        .execute(params![
            stream,
            sql(open.number),
            sql(open.run),
            open.wall_start.0,
            open.media_start.0,
            open.independent
        ])?;
    Ok(changed > 0)
}

/// Where an open segment of a live source began on the clock of this boot.
pub(crate) fn set_boot(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
    at: BootTime,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment SET boot = ?3, boot_ms = ?4 WHERE stream = ?1 AND number = ?2",
    )?
    .execute(params![stream, sql(n), at.boot.0, at.ms])?;
    Ok(())
}

/// A row *announced*, unless the segment is here; what was announced before is replaced: only the edge knows what
/// will come. One being written learns what it will be, so that it is waited for should its partial be thrown
/// away.
pub(crate) fn announce(c: &Connection, stream: i64, info: &SegmentInfo) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT INTO segment (stream, number, run, state, wall_ms, media_90k, duration_90k, bytes, hash, independent)
         VALUES (?1, ?2, ?3, 2, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (stream, number) DO UPDATE SET duration_90k = ?6, bytes = ?7, hash = ?8,
             run = CASE state WHEN 2 THEN ?3 ELSE run END,
             wall_ms = CASE state WHEN 2 THEN ?4 ELSE wall_ms END,
             media_90k = CASE state WHEN 2 THEN ?5 ELSE media_90k END,
             independent = CASE state WHEN 2 THEN ?9 ELSE independent END
         WHERE state <> 1",
    )?
    .execute(params![
        stream,
        sql(info.number),
        sql(info.run),
        info.wall_start.0,
        info.media_start.0,
        info.duration.0,
        info.bytes as i64,
        info.hash.0.as_slice(),
        info.independent
    ])?;
    // Announced before, and its wall time was corrected since.
    c.prepare_cached(
        "UPDATE segment SET wall_ms = ?3 WHERE stream = ?1 AND number = ?2 AND state <> 1 AND wall_ms <> ?3",
    )?
    .execute(params![stream, sql(info.number), info.wall_start.0])?;
    Ok(())
}

/// The row is *here*; recorded ranges grow. `arrived`: when, by our own clock; its bytes were hashed then. Gives the wall time that the row has: it may have been corrected
/// while the segment was being written.
pub(crate) fn close(
    c: &Connection,
    stream: i64,
    info: &SegmentInfo,
    arrived: WallTime,
) -> rusqlite::Result<WallTime> {
    let wall: Option<i64> = c
        .prepare_cached(
            "UPDATE segment SET state = 1, duration_90k = ?3, bytes = ?4, hash = ?5, arrived_ms = ?6, checked_ms = MAX(?6, 0)
             WHERE stream = ?1 AND number = ?2 RETURNING wall_ms",
        )?
        .query_row(
            params![
                stream,
                sql(info.number),
                info.duration.0,
                info.bytes as i64,
                info.hash.0.as_slice(),
                arrived.0
            ],
            |row| row.get(0),
        )
        .optional()?;
    let wall_start = wall.map_or(info.wall_start, WallTime);
    spans::grow(
        c,
        stream,
        &SegmentInfo {
            wall_start,
            ..*info
        },
    )?;
    Ok(wall_start)
}

/// A row *here* for a file that had none.
pub(crate) fn adopt(
    c: &Connection,
    stream: i64,
    info: &SegmentInfo,
    arrived: WallTime,
) -> rusqlite::Result<()> {
    announce(c, stream, info)?;
    close(c, stream, info, arrived)?;
    Ok(())
}

/// Hub: what was here is not any more (its file is damaged or gone) and is asked for again: the row waits as
/// announced, marked with the time, until the edge ships it or says that it can't.
pub(crate) fn lose(
    c: &Connection,
    stream: i64,
    info: &SegmentInfo,
    now: WallTime,
) -> rusqlite::Result<()> {
    spans::shrink(c, stream, info)?;
    c.prepare_cached(
        "UPDATE segment SET state = 2, checked_ms = ?3 WHERE stream = ?1 AND number = ?2",
    )?
    .execute(params![stream, sql(info.number), -now.0.max(1)])?;
    Ok(())
}

/// Numbers of a range that were here, were found damaged, and wait for the edge.
pub(crate) fn lost_in(
    c: &Connection,
    stream: i64,
    range: &RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<Vec<SegmentNumber>> {
    c.prepare_cached(
        "SELECT number FROM segment INDEXED BY segment_not_here
         WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state <> 1 AND state = 2 AND checked_ms < 0",
    )?
    .query_map(params![stream, sql(*range.start()), sql(*range.end())], |row| {
        Ok(number(row.get(0)?))
    })?
    .collect()
}

/// The same, where they have waited since before a time.
pub(crate) fn lost_before(
    c: &Connection,
    stream: i64,
    before: WallTime,
) -> rusqlite::Result<Vec<SegmentNumber>> {
    c.prepare_cached(
        "SELECT number FROM segment INDEXED BY segment_not_here
         WHERE stream = ?1 AND state <> 1 AND state = 2 AND checked_ms < 0 AND checked_ms > ?2",
    )?
    .query_map(params![stream, before.0.saturating_neg()], |row| {
        Ok(number(row.get(0)?))
    })?
    .collect()
}

/// Every number of a range that has a row.
pub(crate) fn rows_in(
    c: &Connection,
    stream: i64,
    range: &RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<Vec<SegmentNumber>> {
    c.prepare_cached("SELECT number FROM segment WHERE stream = ?1 AND number BETWEEN ?2 AND ?3")?
        .query_map(
            params![stream, sql(*range.start()), sql(*range.end())],
            |row| Ok(number(row.get(0)?)),
        )?
        .collect()
}

/// When a segment arrived, by our own clock; 0 where an earlier version wrote it.
pub(crate) fn arrived(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
) -> rusqlite::Result<Option<WallTime>> {
    c.prepare_cached("SELECT arrived_ms FROM segment WHERE stream = ?1 AND number = ?2")?
        .query_row(params![stream, sql(n)], |row| Ok(WallTime(row.get(0)?)))
        .optional()
}

/// A segment to be read again: its stream, the row, when its file was last hashed.
pub(crate) struct ToScrub {
    pub(crate) stream: i64,
    pub(crate) info: SegmentInfo,
    pub(crate) checked: WallTime,
}

/// Segments here above a place (stream, number), in that order.
pub(crate) fn to_scrub(
    c: &Connection,
    above: (i64, i64),
    limit: usize,
) -> rusqlite::Result<Vec<ToScrub>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS}, stream, checked_ms FROM segment
         WHERE (stream, number) > (?1, ?2) AND state = 1 ORDER BY stream, number LIMIT ?3"
    ))?
    .query_map(params![above.0, above.1, limit as i64], |row| {
        Ok(ToScrub {
            info: from_row(row)?.info,
            stream: row.get(9)?,
            checked: WallTime(row.get(10)?),
        })
    })?
    .collect()
}

/// The place just before the segment that was checked longest ago. Reads every row: once a start.
pub(crate) fn before_longest_unchecked(c: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
    c.query_row(
        "SELECT stream, number - 1, MIN(checked_ms) FROM segment WHERE state = 1",
        [],
        |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get(1)?)),
    )
}

pub(crate) fn set_checked(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
    now: WallTime,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment SET checked_ms = ?3 WHERE stream = ?1 AND number = ?2 AND state = 1",
    )?
    .execute(params![stream, sql(n), now.0.max(0)])?;
    Ok(())
}

/// The bytes failed their hash: the row waits to be filled again. How often that has happened.
pub(crate) fn fail(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<u32> {
    c.prepare_cached(
        "UPDATE segment SET state = 2, failures = failures + 1 WHERE stream = ?1 AND number = ?2 RETURNING failures",
    )?
    .query_row(params![stream, sql(n)], |row| row.get(0))
    .optional()
    .map(|failures| failures.unwrap_or(1))
}

/// An open row goes back to what was announced, or away where nothing was.
pub(crate) fn unopen(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment SET state = 2 WHERE stream = ?1 AND number = ?2 AND state = 0 AND hash IS NOT NULL",
    )?
    .execute(params![stream, sql(n)])?;
    c.prepare_cached("DELETE FROM segment WHERE stream = ?1 AND number = ?2 AND state = 0")?
        .execute(params![stream, sql(n)])?;
    Ok(())
}

/// How many segments wait or are being written, counted up to a limit.
pub(crate) fn count_not_here(c: &Connection, stream: i64, limit: u64) -> rusqlite::Result<u64> {
    c.prepare_cached(
        "SELECT COUNT(*) FROM (SELECT 1 FROM segment INDEXED BY segment_not_here
         WHERE stream = ?1 AND state <> 1 LIMIT ?2)",
    )?
    .query_row(params![stream, limit as i64], |row| row.get::<_, i64>(0))
    .map(|count| count.max(0) as u64)
}

/// What was announced and is not here: how many, their bytes, and when the oldest begins.
pub(crate) fn count_announced(
    c: &Connection,
    stream: i64,
) -> rusqlite::Result<(u64, u64, Option<WallTime>)> {
    c.prepare_cached(
        "SELECT COUNT(*), COALESCE(SUM(bytes), 0), MIN(wall_ms) FROM segment INDEXED BY segment_not_here
         WHERE stream = ?1 AND state <> 1 AND hash IS NOT NULL",
    )?
    .query_row([stream], |row| {
        Ok((
            row.get::<_, i64>(0)?.max(0) as u64,
            row.get::<_, i64>(1)?.max(0) as u64,
            row.get::<_, Option<i64>>(2)?.map(WallTime),
        ))
    })
}

/// Rows of a range that are being written or wait to be resumed.
pub(crate) fn list_open(
    c: &Connection,
    stream: i64,
    within: &RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<Vec<SegmentRow>> {
    collect(
        c,
        "INDEXED BY segment_open WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 0 ORDER BY number",
        params![stream, sql(*within.start()), sql(*within.end())],
    )
}

/// Whether any segment is here that begins at a wall time or later.
pub(crate) fn any_here_from(c: &Connection, stream: i64, from: WallTime) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment WHERE stream = ?1 AND wall_ms >= ?2 AND state = 1)",
    )?
    .query_row(params![stream, from.0], |row| row.get(0))
}

/// The lowest row that is not here.
pub(crate) fn next_not_here(c: &Connection, stream: i64) -> rusqlite::Result<Option<SegmentRow>> {
    Ok(collect(
        c,
        "INDEXED BY segment_not_here WHERE stream = ?1 AND state <> 1 ORDER BY number LIMIT 1",
        [stream],
    )?
    .into_iter()
    .next())
}

/// The newest segment here below a number.
pub(crate) fn before(
    c: &Connection,
    stream: i64,
    below: SegmentNumber,
) -> rusqlite::Result<Option<SegmentRow>> {
    Ok(collect(
        c,
        "WHERE stream = ?1 AND number < ?2 AND state = 1 ORDER BY number DESC LIMIT 1",
        params![stream, sql(below)],
    )?
    .into_iter()
    .next())
}

/// The lowest segment here above a number.
pub(crate) fn next_here(
    c: &Connection,
    stream: i64,
    after: SegmentNumber,
) -> rusqlite::Result<Option<SegmentRow>> {
    Ok(collect(
        c,
        "WHERE stream = ?1 AND number > ?2 AND state = 1 ORDER BY number LIMIT 1",
        params![stream, sql(after)],
    )?
    .into_iter()
    .next())
}

/// How many segments of a range (its end excluded) are here, and their bytes.
pub(crate) fn count_here(
    c: &Connection,
    stream: i64,
    within: &std::ops::Range<SegmentNumber>,
) -> rusqlite::Result<(u64, u64)> {
    c.prepare_cached(
        "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM segment
         WHERE stream = ?1 AND number >= ?2 AND number < ?3 AND state = 1",
    )?
    .query_row(params![stream, sql(within.start), sql(within.end)], |row| {
        Ok((
            row.get::<_, i64>(0)?.max(0) as u64,
            row.get::<_, i64>(1)?.max(0) as u64,
        ))
    })
}

/// The hours (their first milliseconds) in which segments here of a range of numbers (the end excluded) begin.
pub(crate) fn hours_of(
    c: &Connection,
    stream: i64,
    first: SegmentNumber,
    end: SegmentNumber,
    hour_ms: i64,
) -> rusqlite::Result<BTreeSet<i64>> {
    c.prepare_cached(
        "SELECT DISTINCT wall_ms / ?4 FROM segment
         WHERE stream = ?1 AND number >= ?2 AND number < ?3 AND state = 1",
    )?
    .query_map(params![stream, sql(first), sql(end), hour_ms], |row| {
        Ok(row.get::<_, i64>(0)?.saturating_mul(hour_ms))
    })?
    .collect()
}
