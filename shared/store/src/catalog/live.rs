//! Rows of live lists, to and from `media::live_list`'s values.

use media::live_list::{Change, EntryKind, LiveEntry, LiveHeader, LiveList, LiveState, Retired};
use model::{MediaDuration, SegmentNumber, WallTime};
use rusqlite::{Connection, OptionalExtension, params};

use super::segments::{number, sql};

/// A live list as committed.
pub(crate) struct LiveRow {
    pub(crate) list: LiveList,
    /// The highest number that was listed or stepped over: the list goes on above it.
    pub(crate) looked_to: Option<SegmentNumber>,
    pub(crate) changed: WallTime,
}

const fn state_code(state: LiveState) -> i64 {
    match state {
        LiveState::Live => 0,
        LiveState::Broken => 1,
        LiveState::Ended => 2,
    }
}

pub(crate) fn load(
    c: &Connection,
    stream: i64,
    window: MediaDuration,
) -> rusqlite::Result<Option<LiveRow>> {
    let row = c
        .prepare_cached(
            "SELECT next_msn, first_msn, discontinuity_sequence, target_duration_s, state, last_number, looked_to, changed_ms
             FROM live_list WHERE stream = ?1",
        )?
        .query_row([stream], |row| {
            let header = LiveHeader {
                next_msn: number(row.get(0)?).0,
                first_msn: number(row.get(1)?).0,
                discontinuity_sequence: number(row.get(2)?).0,
                target_duration_s: row.get(3)?,
                state: match row.get::<_, i64>(4)? {
                    1 => LiveState::Broken,
                    2 => LiveState::Ended,
                    _ => LiveState::Live,
                },
                last_number: row.get::<_, Option<i64>>(5)?.map(number),
            };
            let looked_to = row.get::<_, Option<i64>>(6)?.map(number);
            Ok((header, looked_to, WallTime(row.get(7)?)))
        })
        .optional()?;
    let Some((header, looked_to, changed)) = row else {
        return Ok(None);
    };
    let entries: Vec<LiveEntry> = c
        .prepare_cached(
            "SELECT msn, number, run, duration_90k, wall_ms, discontinuity, independent
             FROM live_entry WHERE stream = ?1 ORDER BY msn",
        )?
        .query_map([stream], |row| {
            let segment: Option<i64> = row.get(1)?;
            let run: Option<i64> = row.get(2)?;
            Ok(LiveEntry {
                msn: number(row.get(0)?).0,
                kind: match segment.zip(run) {
                    Some((segment, run)) => EntryKind::Segment {
                        number: number(segment),
                        run: number(run),
                        independent: row.get(6)?,
                    },
                    None => EntryKind::Gap,
                },
                duration: MediaDuration(row.get(3)?),
                wall_start: WallTime(row.get(4)?),
                discontinuity: row.get(5)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let retired: Vec<Retired> = c
        .prepare_cached(
            "SELECT number, keep_until_ms FROM live_retired WHERE stream = ?1 ORDER BY number",
        )?
        .query_map([stream], |row| {
            Ok(Retired {
                number: number(row.get(0)?),
                keep_until: WallTime(row.get(1)?),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(LiveRow {
        list: LiveList::restore(header, entries, retired, window),
        looked_to,
        changed,
    }))
}

/// The highest number that was listed or stepped over.
pub(crate) fn looked_to(c: &Connection, stream: i64) -> rusqlite::Result<Option<SegmentNumber>> {
    let found: Option<Option<i64>> = c
        .prepare_cached("SELECT looked_to FROM live_list WHERE stream = ?1")?
        .query_row([stream], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().map(number))
}

/// Writes what a mutation changed.
pub(crate) fn apply(
    c: &Connection,
    stream: i64,
    change: &Change,
    now: WallTime,
) -> rusqlite::Result<()> {
    for entry in &change.appended {
        let (segment, run, independent) = match entry.kind {
            EntryKind::Segment {
                number,
                run,
                independent,
            } => (Some(sql(number)), Some(sql(run)), independent),
            EntryKind::Gap => (None, None, false),
        };
        c.prepare_cached("INSERT INTO live_entry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![
                stream,
                sql(SegmentNumber(entry.msn)),
                segment,
                run,
                entry.duration.0,
                entry.wall_start.0,
                entry.discontinuity,
                independent
            ])?;
    }
    c.prepare_cached("DELETE FROM live_entry WHERE stream = ?1 AND msn < ?2")?
        .execute(params![stream, sql(SegmentNumber(change.listed_from))])?;
    c.prepare_cached("DELETE FROM live_retired WHERE stream = ?1 AND keep_until_ms <= ?2")?
        .execute(params![stream, now.0])?;
    for retired in &change.retired {
        c.prepare_cached("INSERT OR REPLACE INTO live_retired VALUES (?1, ?2, ?3)")?
            .execute(params![stream, sql(retired.number), retired.keep_until.0])?;
    }
    Ok(())
}

/// Writes the head of a list.
pub(crate) fn put_header(
    c: &Connection,
    stream: i64,
    header: &LiveHeader,
    looked_to: Option<SegmentNumber>,
    now: WallTime,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO live_list VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        stream,
        sql(SegmentNumber(header.next_msn)),
        sql(SegmentNumber(header.first_msn)),
        sql(SegmentNumber(header.discontinuity_sequence)),
        header.target_duration_s,
        state_code(header.state),
        header.last_number.map(sql),
        looked_to.map(sql),
        now.0
    ])?;
    Ok(())
}

/// A list that has listed nothing, its sequence at `next_msn`; it goes on above `looked_to`.
pub(crate) fn begin(
    c: &Connection,
    stream: i64,
    next_msn: i64,
    looked_to: Option<SegmentNumber>,
    now: WallTime,
) -> rusqlite::Result<()> {
    let next_msn = number(next_msn).0;
    let header = LiveHeader {
        next_msn,
        first_msn: next_msn,
        discontinuity_sequence: 0,
        target_duration_s: None,
        state: LiveState::Live,
        last_number: None,
    };
    put_header(c, stream, &header, looked_to, now)
}

/// Takes all entries of an ended list away: its segments have expired. Its counters stay, and so, for the
/// grace that readers of the old list have, do its segments.
pub(crate) fn clear_entries(
    c: &Connection,
    stream: i64,
    keep_until: WallTime,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO live_retired
         SELECT stream, number, ?2 FROM live_entry WHERE stream = ?1 AND number IS NOT NULL",
    )?
    .execute(params![stream, keep_until.0])?;
    c.prepare_cached("DELETE FROM live_entry WHERE stream = ?1")?
        .execute([stream])?;
    Ok(())
}

/// After a start: a grace that ends later than any can (the clock has gone back since) ends then.
pub(crate) fn shorten_grace(c: &Connection, latest: WallTime) -> rusqlite::Result<()> {
    c.execute(
        "UPDATE live_retired SET keep_until_ms = ?1 WHERE keep_until_ms > ?1",
        [latest.0],
    )?;
    Ok(())
}

/// When any live list last changed, by our own clock.
pub(crate) fn last_change(c: &Connection) -> rusqlite::Result<Option<WallTime>> {
    c.query_row("SELECT MAX(changed_ms) FROM live_list", [], |row| {
        Ok(row.get::<_, Option<i64>>(0)?.map(WallTime))
    })
}
