//! Rows of recorded ranges: what pages and APIs show of a ledger without reading it all.
//!
//! A range is a stretch of segments that are here and follow one another on the wall clock. Kept with each
//! segment that comes or goes, in the same commit; counts and bytes are exact, edges are for the eye.

use model::{SegmentInfo, SegmentNumber, WallTime};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::segments::{self, number, sql};

/// Segments that follow one another within this are one recorded range.
const JOIN_MS: i64 = 2_000;

/// A recorded range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: SegmentNumber,
    pub(crate) last: SegmentNumber,
    pub(crate) from: WallTime,
    pub(crate) to: WallTime,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Span> {
    Ok(Span {
        first: number(row.get(0)?),
        last: number(row.get(1)?),
        from: WallTime(row.get(2)?),
        to: WallTime(row.get(3)?),
        segments: row.get::<_, i64>(4)?.max(0) as u64,
        bytes: row.get::<_, i64>(5)?.max(0) as u64,
    })
}

const SPAN: &str = "SELECT first, last, from_ms, to_ms, segments, bytes FROM span";

/// Recorded ranges, newest first.
pub(crate) fn newest(c: &Connection, stream: i64, limit: usize) -> rusqlite::Result<Vec<Span>> {
    c.prepare_cached(&format!(
        "{SPAN} WHERE stream = ?1 ORDER BY first DESC LIMIT ?2"
    ))?
    .query_map(params![stream, limit as i64], from_row)?
    .collect()
}

/// What all segments of a stream that are here come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) first: Option<SegmentNumber>,
    pub(crate) last: Option<SegmentNumber>,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

pub(crate) fn totals(c: &Connection, stream: i64) -> rusqlite::Result<Totals> {
    c.prepare_cached(
        "SELECT MIN(first), MAX(last), COALESCE(SUM(segments), 0), COALESCE(SUM(bytes), 0) FROM span WHERE stream = ?1",
    )?
    .query_row([stream], |row| {
        Ok(Totals {
            first: row.get::<_, Option<i64>>(0)?.map(number),
            last: row.get::<_, Option<i64>>(1)?.map(number),
            segments: row.get::<_, i64>(2)?.max(0) as u64,
            bytes: row.get::<_, i64>(3)?.max(0) as u64,
        })
    })
}

fn put(c: &Connection, stream: i64, span: &Span) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT OR REPLACE INTO span VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            stream,
            sql(span.first),
            sql(span.last),
            span.from.0,
            span.to.0,
            span.segments as i64,
            span.bytes as i64
        ])?;
    Ok(())
}

fn remove(c: &Connection, stream: i64, span: &Span) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM span WHERE stream = ?1 AND first = ?2")?
        .execute(params![stream, sql(span.first)])?;
    Ok(())
}

fn at_or_below(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<Option<Span>> {
    c.prepare_cached(&format!(
        "{SPAN} WHERE stream = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1"
    ))?
    .query_row(params![stream, sql(n)], from_row)
    .optional()
}

fn above_number(c: &Connection, stream: i64, n: SegmentNumber) -> rusqlite::Result<Option<Span>> {
    c.prepare_cached(&format!(
        "{SPAN} WHERE stream = ?1 AND first > ?2 ORDER BY first LIMIT 1"
    ))?
    .query_row(params![stream, sql(n)], from_row)
    .optional()
}

pub(crate) fn grow(c: &Connection, stream: i64, info: &SegmentInfo) -> rusqlite::Result<()> {
    let mut new = Span {
        first: info.number,
        last: info.number,
        from: info.wall_start,
        to: info.wall_start.plus(info.duration),
        segments: 1,
        bytes: info.bytes,
    };
    let joins = |a: &Span, b: &Span| (b.from.0.saturating_sub(a.to.0)).abs() <= JOIN_MS;
    if let Some(below) = at_or_below(c, stream, info.number)? {
        // A segment inside a range fills a hole of it; one after it may go on from its end.
        if below.last > info.number || joins(&below, &new) {
            remove(c, stream, &below)?;
            new = merged(&below, &new);
        }
    }
    if let Some(above) = above_number(c, stream, info.number)?
        && joins(&new, &above)
    {
        remove(c, stream, &above)?;
        new = merged(&new, &above);
    }
    put(c, stream, &new)
}

fn merged(a: &Span, b: &Span) -> Span {
    Span {
        first: a.first.min(b.first),
        last: a.last.max(b.last),
        from: a.from.min(b.from),
        to: a.to.max(b.to),
        segments: a.segments + b.segments,
        bytes: a.bytes + b.bytes,
    }
}

/// Takes a segment (still in its row) out of its range. A hole in the middle leaves the range in one piece:
/// ranges are for the eye, the ledger knows each number.
pub(crate) fn shrink(c: &Connection, stream: i64, info: &SegmentInfo) -> rusqlite::Result<()> {
    let Some(old) = at_or_below(c, stream, info.number)? else {
        return Ok(());
    };
    remove(c, stream, &old)?;
    let mut span = Span {
        segments: old.segments.saturating_sub(1),
        bytes: old.bytes.saturating_sub(info.bytes),
        ..old
    };
    if span.segments == 0 {
        return Ok(());
    }
    if info.number == old.first
        && let Some(next) = segments::next_after(c, stream, Some(info.number))?
    {
        span.first = next.info.number;
        span.from = next.info.wall_start;
    }
    if info.number == old.last {
        span.to = info.wall_start.max(span.from);
        span.last = SegmentNumber(info.number.0.saturating_sub(1)).max(span.first);
    }
    put(c, stream, &span)
}
