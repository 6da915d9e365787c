//! Rows of tombstones: numbers that will never be here, and what is settled with them.

use std::ops::RangeInclusive;

use model::{HoleReason, RangeSet, SegmentNumber};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    segments::{collect, number, sql},
    spans,
};

/// A tombstone says that this number will never be here.
pub(crate) fn is_buried(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM tombstone WHERE stream = ?1 AND first <= ?2 AND last >= ?2)",
    )?
    .query_row(params![stream, sql(n)], |row| row.get(0))
}

/// Takes rows out and leaves a tombstone. What was here shrinks the recorded ranges.
pub(crate) fn bury(
    c: &Connection,
    stream: i64,
    range: &RangeInclusive<SegmentNumber>,
    reason: HoleReason,
) -> rusqlite::Result<()> {
    let (first, last) = (sql(*range.start()), sql(*range.end()));
    if first > last {
        return Ok(());
    }
    for row in collect(
        c,
        "WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 ORDER BY number",
        params![stream, first, last],
    )? {
        spans::shrink(c, stream, &row.info)?;
    }
    c.prepare_cached("DELETE FROM segment WHERE stream = ?1 AND number BETWEEN ?2 AND ?3")?
        .execute(params![stream, first, last])?;
    // One tombstone where ranges of a reason touch: they stay few however much expires.
    let touching: Vec<(i64, i64)> = c
        .prepare_cached(
            "SELECT first, last FROM tombstone WHERE stream = ?1 AND reason = ?4 AND first <= ?3 + 1 AND last >= ?2 - 1",
        )?
        .query_map(params![stream, first, last, reason.code()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    // What others say of these numbers ends here; of those above them it holds on.
    c.prepare_cached(
        "DELETE FROM tombstone WHERE stream = ?1 AND reason <> ?4 AND first >= ?2 AND last <= ?3",
    )?
    .execute(params![stream, first, last, reason.code()])?;
    c.prepare_cached(
        "UPDATE tombstone SET first = ?3 + 1 WHERE stream = ?1 AND reason <> ?4 AND first BETWEEN ?2 AND ?3",
    )?
    .execute(params![stream, first, last, reason.code()])?;
    let (mut first, mut last) = (first, last);
    for (f, l) in touching {
        c.prepare_cached("DELETE FROM tombstone WHERE stream = ?1 AND first = ?2")?
            .execute(params![stream, f])?;
        first = first.min(f);
        last = last.max(l);
    }
    c.prepare_cached("INSERT OR REPLACE INTO tombstone VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![stream, first, last, reason.code()])?;
    Ok(())
}

/// The tombstone that covers the lowest number above `after`.
pub(crate) fn next_tombstone(
    c: &Connection,
    stream: i64,
    after: Option<SegmentNumber>,
) -> rusqlite::Result<Option<RangeInclusive<SegmentNumber>>> {
    let after = after.map_or(-1, sql);
    c.prepare_cached(
        "SELECT first, last FROM tombstone WHERE stream = ?1 AND last > ?2 ORDER BY first LIMIT 1",
    )?
    .query_row(params![stream, after], |row| {
        let (first, last): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(number(first.max(after + 1))..=number(last))
    })
    .optional()
}

pub(crate) fn tombstones(
    c: &Connection,
    stream: i64,
) -> rusqlite::Result<Vec<(RangeInclusive<SegmentNumber>, HoleReason)>> {
    c.prepare_cached("SELECT first, last, reason FROM tombstone WHERE stream = ?1 ORDER BY first")?
        .query_map([stream], |row| {
            let reason = HoleReason::from_code(row.get(2)?).unwrap_or(HoleReason::Deleted);
            Ok((number(row.get(0)?)..=number(row.get(1)?), reason))
        })?
        .collect()
}

/// Numbers of a range that are here or buried.
pub(crate) fn settled(
    c: &Connection,
    stream: i64,
    within: &RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<RangeSet> {
    let mut set = RangeSet::new();
    let mut statement = c.prepare_cached(
        "SELECT number FROM segment WHERE stream = ?1 AND number BETWEEN ?2 AND ?3 AND state = 1 ORDER BY number",
    )?;
    let bounds = params![stream, sql(*within.start()), sql(*within.end())];
    let mut island: Option<(SegmentNumber, SegmentNumber)> = None;
    for here in statement.query_map(bounds, |row| Ok(number(row.get(0)?)))? {
        let here = here?;
        island = match island {
            Some((first, last)) if last.next() == here => Some((first, here)),
            ended => {
                if let Some((first, last)) = ended {
                    set.insert_range(first..=last);
                }
                Some((here, here))
            }
        };
    }
    if let Some((first, last)) = island {
        set.insert_range(first..=last);
    }
    for (range, _) in tombstones(c, stream)? {
        set.insert_range(range);
    }
    Ok(set)
}

/// Why a number is buried, if it is.
pub(crate) fn tombstone_at(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
) -> rusqlite::Result<Option<HoleReason>> {
    c.prepare_cached(
        "SELECT reason FROM tombstone WHERE stream = ?1 AND first <= ?2 AND last >= ?2 ORDER BY first DESC LIMIT 1",
    )?
    .query_row(params![stream, sql(n)], |row| row.get(0))
    .optional()
    .map(|code: Option<u8>| {
        code.map(|code| HoleReason::from_code(code).unwrap_or(HoleReason::Deleted))
    })
}
