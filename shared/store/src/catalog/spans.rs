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

fn joins(a: &Span, b: &Span) -> bool {
    b.from.0.saturating_sub(a.to.0).saturating_abs() <= JOIN_MS
}

/// Segments that are here, ascending, got other wall times (already in their rows): their ranges are cut at
/// them, and joined anew where they follow one another.
pub(crate) fn restamp(c: &Connection, stream: i64, infos: &[SegmentInfo]) -> rusqlite::Result<()> {
    let mut rest = infos;
    while let Some(first) = rest.first() {
        let old = at_or_below(c, stream, first.number)?;
        let Some(old) = old.filter(|span| span.last >= first.number) else {
            rest = rest.get(1..).unwrap_or_default();
            continue;
        };
        // As many as stand in that range with no other segment between them.
        let mut count = 1;
        while let (Some(last), Some(next)) = (rest.get(count - 1), rest.get(count)) {
            let follows = next.number == last.number.next()
                || segments::next_here(c, stream, last.number)?
                    .is_some_and(|row| row.info.number == next.number);
            if !follows || next.number > old.last {
                break;
            }
            count += 1;
        }
        let (group, others) = rest.split_at(count);
        cut_out(c, stream, &old, group)?;
        rest = others;
    }
    Ok(())
}

/// Takes a group of neighbours out of their range and enters them as one of their own.
fn cut_out(c: &Connection, stream: i64, old: &Span, group: &[SegmentInfo]) -> rusqlite::Result<()> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Ok(());
    };
    let mut new = Span {
        first: first.number,
        last: last.number,
        from: first.wall_start,
        to: last.wall_start.plus(last.duration),
        segments: group.len() as u64,
        bytes: group.iter().map(|info| info.bytes).sum(),
    };
    remove(c, stream, old)?;
    let (segments_below, bytes_below) =
        segments::count_here(c, stream, &(old.first..first.number))?;
    let before = segments::before(c, stream, first.number)?;
    if let Some(before) = before.filter(|_| segments_below > 0) {
        let below = Span {
            last: before.info.number,
            to: before.info.wall_start.plus(before.info.duration),
            segments: segments_below,
            bytes: bytes_below,
            ..*old
        };
        put(c, stream, &below)?;
    }
    let segments_above = old.segments.saturating_sub(segments_below + new.segments);
    let after = segments::next_here(c, stream, last.number)?;
    if let Some(after) = after.filter(|_| segments_above > 0) {
        let above = Span {
            first: after.info.number,
            from: after.info.wall_start,
            segments: segments_above,
            bytes: old.bytes.saturating_sub(bytes_below + new.bytes),
            ..*old
        };
        put(c, stream, &above)?;
    }
    if let Some(below) = at_or_below(c, stream, new.first)?.filter(|below| joins(below, &new)) {
        remove(c, stream, &below)?;
        new = merged(&below, &new);
    }
    if let Some(above) = above_number(c, stream, new.last)?.filter(|above| joins(&new, above)) {
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
