//! Rows of a renumbering: what is to be moved, what has moved, and what became of numbers.
//!
//! Edge only. Each function is one step inside the caller's transaction; files are none of this module's.

use std::ops::RangeInclusive;

use model::{HoleReason, RangeSet, RunInfo, SegmentNumber};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    at_hub, holes,
    segments::{self, SegmentRow, number, sql},
    spans, streams,
};

/// A number that became another, and that one again: followed this far. Each step is one collision with
/// another box's numbers.
const MAX_CHAIN: usize = 64;

/// A renumbering that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Unconfirmed segments from here ...
    pub(crate) first: SegmentNumber,
    /// ... to below this are moved; their new numbers begin here.
    pub(crate) base: SegmentNumber,
    /// The next new number.
    pub(crate) next: SegmentNumber,
}

pub(crate) fn plan(c: &Connection, stream: i64) -> rusqlite::Result<Option<Plan>> {
    c.prepare_cached("SELECT first, base, next FROM renumbering WHERE stream = ?1")?
        .query_row([stream], |row| {
            Ok(Plan {
                first: number(row.get(0)?),
                base: number(row.get(1)?),
                next: number(row.get(2)?),
            })
        })
        .optional()
}

pub(crate) fn put_plan(c: &Connection, stream: i64, plan: &Plan) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT OR REPLACE INTO renumbering VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            stream,
            sql(plan.first),
            sql(plan.base),
            sql(plan.next)
        ])?;
    Ok(())
}

pub(crate) fn end_plan(c: &Connection, stream: i64) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM renumbering WHERE stream = ?1")?
        .execute([stream])?;
    Ok(())
}

/// How many segments from a number on the hub has not confirmed: closed ones up to another number, and all
/// that are closed or being written.
pub(crate) fn count_unconfirmed(
    c: &Connection,
    stream: i64,
    from: SegmentNumber,
    listed_to: SegmentNumber,
) -> rusqlite::Result<(u64, u64)> {
    c.prepare_cached(
        "SELECT COALESCE(SUM(state = 1 AND number <= ?3), 0), COUNT(*) FROM segment
         WHERE stream = ?1 AND number >= ?2 AND stored = 0 AND state IN (0, 1)",
    )?
    .query_row(params![stream, sql(from), sql(listed_to)], |row| {
        Ok((
            row.get::<_, i64>(0)?.max(0) as u64,
            row.get::<_, i64>(1)?.max(0) as u64,
        ))
    })
}

/// Closed unconfirmed segments of the plan that still have their old numbers, ascending.
pub(crate) fn to_move(
    c: &Connection,
    stream: i64,
    plan: &Plan,
    limit: usize,
) -> rusqlite::Result<Vec<SegmentRow>> {
    let mut rows = at_hub::list_unshipped(c, stream, plan.first, limit)?;
    rows.retain(|row| row.info.number < plan.base);
    Ok(rows)
}

/// What the live list has listed or stepped over gets the numbers that those segments will have.
pub(crate) fn shift_live_list(
    c: &Connection,
    stream: i64,
    last_listed: SegmentNumber,
) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE live_list SET last_number = ?2, looked_to = ?2 WHERE stream = ?1")?
        .execute(params![stream, sql(last_listed)])?;
    Ok(())
}

/// One segment's rows get their new number; its run too, where the run began within the plan or goes on behind
/// it. The old number is buried: nothing ever comes under it.
pub(crate) fn move_rows(
    c: &Connection,
    stream: i64,
    plan: &Plan,
    row: &SegmentRow,
    to: SegmentNumber,
) -> rusqlite::Result<()> {
    let old = row.info;
    let run = move_run(c, stream, plan, old.run, to)?;
    let new = model::SegmentInfo {
        number: to,
        run,
        ..old
    };
    spans::shrink(c, stream, &old)?;
    let key = params![stream, sql(old.number), sql(to), sql(run)];
    c.prepare_cached("UPDATE segment SET number = ?3, run = ?4 WHERE stream = ?1 AND number = ?2")?
        .execute(key)?;
    spans::grow(c, stream, &new)?;
    c.prepare_cached(
        "UPDATE live_entry SET number = ?3, run = ?4 WHERE stream = ?1 AND number = ?2",
    )?
    .execute(key)?;
    let key = params![stream, sql(old.number), sql(to)];
    c.prepare_cached("UPDATE live_retired SET number = ?3 WHERE stream = ?1 AND number = ?2")?
        .execute(key)?;
    c.prepare_cached(
        "UPDATE stream SET ending = ?3, ended_on_hub = 0 WHERE id = ?1 AND ending = ?2",
    )?
    .execute(key)?;
    c.prepare_cached("UPDATE stream SET stretch_first = ?3 WHERE id = ?1 AND stretch_first = ?2")?
        .execute(key)?;
    let only = old.number..=old.number;
    holes::bury(c, stream, &only, HoleReason::Renumbered)?;
    streams::raise_floor(c, stream, to)?;
    note(c, stream, old.number, to)
}

/// The stream ends with the segment that was recorded as `last` (None: it ends empty), by its number now;
/// unless it was told late, and the stream has gone on since.
pub(crate) fn end_at(
    c: &Connection,
    stream: i64,
    last: Option<SegmentNumber>,
) -> rusqlite::Result<()> {
    let last = last.map(|last| number_now(c, stream, last)).transpose()?;
    let above = last.map_or(SegmentNumber(0), SegmentNumber::next);
    let gone_on = match plan(c, stream)? {
        // Those from its base on come before `last` too, but for what was recorded since.
        Some(plan) if last.is_some_and(|last| last < plan.base) => {
            let next = segments::list_here(c, stream, above, 1)?;
            let newer = segments::list_here(c, stream, plan.next, 1)?;
            next.iter().any(|row| row.info.number < plan.base) || !newer.is_empty()
        }
        _ => !segments::list_here(c, stream, above, 1)?.is_empty(),
    };
    if !gone_on {
        streams::tell_to_end(c, stream, last)?;
    }
    Ok(())
}

/// The run that a moved segment is of: made anew under its first moved segment's number.
fn move_run(
    c: &Connection,
    stream: i64,
    plan: &Plan,
    run: SegmentNumber,
    to: SegmentNumber,
) -> rusqlite::Result<SegmentNumber> {
    let moved = run_step(c, stream, run)?.filter(|becomes| *becomes >= plan.base);
    if let Some(becomes) = moved {
        return Ok(becomes);
    }
    if let Some(info) = streams::run(c, stream, run)? {
        streams::put_run(c, stream, &RunInfo { run: to, ..info })?;
        streams::go_on_as(c, stream, run, to)?;
    }
    c.prepare_cached("INSERT OR REPLACE INTO run_becomes VALUES (?1, ?2, ?3)")?
        .execute(params![stream, sql(run), sql(to)])?;
    Ok(to)
}

fn run_step(
    c: &Connection,
    stream: i64,
    run: SegmentNumber,
) -> rusqlite::Result<Option<SegmentNumber>> {
    c.prepare_cached("SELECT becomes FROM run_becomes WHERE stream = ?1 AND run = ?2")?
        .query_row(params![stream, sql(run)], |row| Ok(number(row.get(0)?)))
        .optional()
}

/// The run that segments of `run` are of now.
pub(crate) fn run_now(
    c: &Connection,
    stream: i64,
    mut run: SegmentNumber,
) -> rusqlite::Result<SegmentNumber> {
    for _ in 0..MAX_CHAIN {
        match run_step(c, stream, run)? {
            Some(becomes) => run = becomes,
            None => break,
        }
    }
    Ok(run)
}

/// The number that a segment has now.
pub(crate) fn number_now(
    c: &Connection,
    stream: i64,
    mut of: SegmentNumber,
) -> rusqlite::Result<SegmentNumber> {
    for _ in 0..MAX_CHAIN {
        let step: Option<(i64, i64)> = c
            .prepare_cached(
                "SELECT first, becomes FROM renumbered WHERE stream = ?1 AND first <= ?2 AND last >= ?2
                 ORDER BY first DESC LIMIT 1",
            )?
            .query_row(params![stream, sql(of)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match step {
            Some((first, becomes)) => of = number(becomes + (sql(of) - first)),
            None => break,
        }
    }
    Ok(of)
}

/// Numbers, and all that became of them.
pub(crate) fn images(
    c: &Connection,
    stream: i64,
    of: RangeInclusive<SegmentNumber>,
) -> rusqlite::Result<RangeSet> {
    let mut all = RangeSet::new();
    all.insert_range(of.clone());
    let mut step = vec![of];
    for _ in 0..MAX_CHAIN {
        let mut next = Vec::new();
        for range in &step {
            let mut statement = c.prepare_cached(
                "SELECT MAX(first, ?2) - first + becomes, MIN(last, ?3) - first + becomes FROM renumbered
                 WHERE stream = ?1 AND first <= ?3 AND last >= ?2",
            )?;
            let (from, to) = (sql(*range.start()), sql(*range.end()));
            let found = statement.query_map(params![stream, from, to], |row| {
                Ok(number(row.get(0)?)..=number(row.get(1)?))
            })?;
            for image in found {
                next.push(image?);
            }
        }
        if next.is_empty() {
            break;
        }
        next.iter()
            .for_each(|range| all.insert_range(range.clone()));
        step = next;
    }
    Ok(all)
}

/// Old numbers within the plan whose segments have moved: their files are not wanted any more.
pub(crate) fn moved_within(
    c: &Connection,
    stream: i64,
    plan: &Plan,
) -> rusqlite::Result<Vec<RangeInclusive<SegmentNumber>>> {
    c.prepare_cached(
        "SELECT first, last FROM renumbered WHERE stream = ?1 AND first >= ?2 AND first < ?3",
    )?
    .query_map(params![stream, sql(plan.first), sql(plan.base)], |row| {
        Ok(number(row.get(0)?)..=number(row.get(1)?))
    })?
    .collect()
}

/// Notes what became of a number; stretches that move together are one row.
fn note(
    c: &Connection,
    stream: i64,
    old: SegmentNumber,
    new: SegmentNumber,
) -> rusqlite::Result<()> {
    let (old, new) = (sql(old), sql(new));
    let grown = c
        .prepare_cached(
            "UPDATE renumbered SET last = ?2 WHERE stream = ?1 AND last = ?2 - 1 AND becomes + (?2 - first) = ?3",
        )?
        .execute(params![stream, old, new])?;
    if grown == 0 {
        c.prepare_cached("INSERT OR REPLACE INTO renumbered VALUES (?1, ?2, ?2, ?3)")?
            .execute(params![stream, old, new])?;
    }
    Ok(())
}
