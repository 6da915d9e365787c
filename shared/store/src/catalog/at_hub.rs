//! Edge: what the rows of segments say that the hub has, and what goes first when space is short.

use std::ops::RangeInclusive;

use model::{HoleReason, RangeSet, SegmentNumber, WallTime};
use rusqlite::{Connection, OptionalExtension, params};

use super::segments::{COLUMNS, SegmentRow, collect, from_row, number, sql};

pub(crate) fn list_unshipped(
    c: &Connection,
    stream: i64,
    from: SegmentNumber,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    collect(
        c,
        "INDEXED BY segment_unshipped WHERE stream = ?1 AND number >= ?2 AND state = 1 AND stored = 0 ORDER BY number LIMIT ?3",
        params![stream, sql(from), limit as i64],
    )
}

/// The newest of them, ascending.
pub(crate) fn list_newest_unshipped(
    c: &Connection,
    stream: i64,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    let mut rows = collect(
        c,
        "INDEXED BY segment_unshipped WHERE stream = ?1 AND state = 1 AND stored = 0 ORDER BY number DESC LIMIT ?2",
        params![stream, limit as i64],
    )?;
    rows.reverse();
    Ok(rows)
}

/// How many segments the hub has not settled, and their bytes.
pub(crate) fn count_unshipped(c: &Connection, stream: i64) -> rusqlite::Result<(u64, u64)> {
    c.prepare_cached(
        "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM segment INDEXED BY segment_unshipped
         WHERE stream = ?1 AND state = 1 AND stored = 0",
    )?
    .query_row([stream], |row| {
        Ok((
            row.get::<_, i64>(0)?.max(0) as u64,
            row.get::<_, i64>(1)?.max(0) as u64,
        ))
    })
}

/// Ranges of numbers from `from` on that the hub has not settled, open or closed, at most `limit`; and where
/// the rest begins.
pub(crate) fn held(
    c: &Connection,
    stream: i64,
    from: SegmentNumber,
    limit: usize,
) -> rusqlite::Result<(Vec<RangeInclusive<SegmentNumber>>, Option<SegmentNumber>)> {
    let mut statement = c.prepare_cached(
        "SELECT number FROM segment INDEXED BY segment_unshipped
             WHERE stream = ?1 AND number >= ?2 AND state = 1 AND stored = 0
         UNION ALL
         SELECT number FROM segment INDEXED BY segment_open WHERE stream = ?1 AND number >= ?2 AND state = 0
         ORDER BY number",
    )?;
    let mut ranges: Vec<RangeInclusive<SegmentNumber>> = Vec::new();
    for held in statement.query_map(params![stream, sql(from)], |row| Ok(number(row.get(0)?)))? {
        let held = held?;
        if let Some(range) = ranges.last_mut().filter(|r| r.end().next() == held) {
            *range = *range.start()..=held;
        } else if ranges.len() == limit {
            return Ok((ranges, Some(held)));
        } else {
            ranges.push(held..=held);
        }
    }
    Ok((ranges, None))
}

/// Takes over what is settled at the hub: what it stored and does not know any more is to be shipped again, and
/// so is what it gave up. Being settled stores nothing.
pub(crate) fn set_stored(c: &Connection, stream: i64, settled: &RangeSet) -> rusqlite::Result<()> {
    // The hub lost its catalog: rare, so the common case touches nothing.
    for (first, last) in outside(settled) {
        unstore(c, stream, first, last)?;
    }
    Ok(())
}

/// Whether [`set_stored`] has something to do.
pub(crate) fn any_settled_outside(
    c: &Connection,
    stream: i64,
    settled: &RangeSet,
) -> rusqlite::Result<bool> {
    let mut find = c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment INDEXED BY segment_shipped
             WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 AND stored = 1)
         OR EXISTS (SELECT 1 FROM segment INDEXED BY segment_given_up
             WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 AND stored = 2)",
    )?;
    for (first, last) in outside(settled) {
        if find.query_row(params![stream, sql(first), sql(last)], |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The numbers that a set lacks, as ranges, both ends within.
fn outside(settled: &RangeSet) -> Vec<(SegmentNumber, SegmentNumber)> {
    let mut ranges = Vec::new();
    let mut from = SegmentNumber(0);
    for range in settled.iter() {
        if range.start().0 > from.0 {
            ranges.push((from, SegmentNumber(range.start().0 - 1)));
        }
        from = range.end().next();
    }
    ranges.push((from, SegmentNumber(i64::MAX as u64)));
    ranges
}

fn unstore(
    c: &Connection,
    stream: i64,
    first: SegmentNumber,
    last: SegmentNumber,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment INDEXED BY segment_shipped SET stored = 0
         WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 AND stored = 1",
    )?
    .execute(params![stream, sql(first), sql(last)])?;
    c.prepare_cached(
        "UPDATE segment INDEXED BY segment_given_up SET stored = 0, lost_reason = NULL
         WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 AND stored = 2",
    )?
    .execute(params![stream, sql(first), sql(last)])?;
    Ok(())
}

/// The bytes of a segment that is here and that the hub lacks; None: it is neither.
pub(crate) fn lacking_bytes(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
) -> rusqlite::Result<Option<u64>> {
    c.prepare_cached(
        "SELECT bytes FROM segment WHERE stream = ?1 AND number = ?2 AND state = 1 AND stored = 0",
    )?
    .query_row(params![stream, sql(n)], |row| row.get::<_, i64>(0))
    .optional()
    .map(|bytes| bytes.map(|bytes| bytes.max(0) as u64))
}

pub(crate) fn mark_stored(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment SET stored = 1, lost_reason = NULL WHERE stream = ?1 AND number = ?2",
    )?
    .execute(params![stream, sql(n)])?;
    Ok(())
}

/// The hub settled a segment without having it.
pub(crate) fn give_up(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
    reason: HoleReason,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE segment SET stored = 2, lost_reason = ?3 WHERE stream = ?1 AND number = ?2 AND state = 1 AND stored = 0",
    )?
    .execute(params![stream, sql(n), reason.code()])?;
    Ok(())
}

/// How many segments here the hub gave up, by reason.
pub(crate) fn count_given_up(
    c: &Connection,
    stream: i64,
) -> rusqlite::Result<Vec<(HoleReason, u64)>> {
    c.prepare_cached(
        "SELECT lost_reason, COUNT(*) FROM segment INDEXED BY segment_given_up
         WHERE stream = ?1 AND state = 1 AND stored = 2 GROUP BY lost_reason ORDER BY lost_reason",
    )?
    .query_map([stream], |row| {
        let code: Option<u8> = row.get(0)?;
        let reason = code.and_then(HoleReason::from_code);
        Ok((
            reason.unwrap_or(HoleReason::Refused),
            row.get::<_, i64>(1)?.max(0) as u64,
        ))
    })?
    .collect()
}

/// Whether a segment is here that the hub has not settled.
pub(crate) fn is_unshipped(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment WHERE stream = ?1 AND number = ?2 AND state = 1 AND stored = 0)",
    )?
    .query_row(params![stream, sql(n)], |row| row.get(0))
}

/// Whether the hub has confirmed a segment of this run below a number, here still or expired since.
pub(crate) fn hub_had_run(
    c: &Connection,
    stream: i64,
    run: SegmentNumber,
    below: SegmentNumber,
) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment INDEXED BY segment_shipped
             WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 AND stored = 1 AND run = ?2)
         OR EXISTS (SELECT 1 FROM tombstone WHERE stream = ?1 AND first < ?3 AND last >= ?2 AND reason = ?4)",
    )?
    .query_row(
        params![stream, sql(run), sql(below), HoleReason::Expired.code()],
        |row| row.get(0),
    )
}

/// What the hub says of a segment here, in the order in which an edge lets go (invariant 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AtHub {
    /// It has it.
    Stored,
    /// It has settled it without its bytes.
    Settled,
    /// It lacks it.
    Lacking,
}

impl AtHub {
    pub(crate) const ALL: [Self; 3] = [Self::Stored, Self::Settled, Self::Lacking];
}

/// The oldest segments here below a number, by what the hub says of them, each with when it arrived and, where the
/// hub settled it, why. `live_only`: only of runs whose
/// source can't wait.
pub(crate) fn oldest(
    c: &Connection,
    stream: i64,
    below: SegmentNumber,
    at_hub: AtHub,
    live_only: bool,
    limit: usize,
) -> rusqlite::Result<Vec<(SegmentRow, WallTime, Option<HoleReason>)>> {
    let (index, stored) = match at_hub {
        AtHub::Stored => ("segment_shipped", 1),
        AtHub::Settled => ("segment_given_up", 2),
        AtHub::Lacking => ("segment_unshipped", 0),
    };
    let live = if live_only {
        "AND run NOT IN (SELECT run FROM run WHERE stream = ?1 AND waits = 1)"
    } else {
        ""
    };
    c.prepare_cached(&format!(
        "SELECT {COLUMNS}, arrived_ms, lost_reason FROM segment INDEXED BY {index}
         WHERE stream = ?1 AND number < ?2 AND state = 1 AND stored = {stored} {live} ORDER BY number LIMIT ?3"
    ))?
    .query_map(params![stream, sql(below), limit as i64], |row| {
        let reason: Option<u8> = row.get(10)?;
        let given_up = (at_hub == AtHub::Settled).then(|| {
            let known = reason.and_then(HoleReason::from_code);
            known.unwrap_or(HoleReason::Refused)
        });
        Ok((from_row(row)?, WallTime(row.get(9)?), given_up))
    })?
    .collect()
}
