//! The row of this boot's corrected clock, and which segments go by it.

use model::{BootId, BootTime, SegmentNumber, WallTime};
use rusqlite::{Connection, OptionalExtension, params};

use super::segments::{number, sql};

/// The row of a boot.
pub(crate) struct BootRow {
    /// When it began by the corrected clock.
    pub(crate) zero: WallTime,
    /// The hub has said or confirmed it.
    pub(crate) by_hub: bool,
    /// All its segments go by it.
    pub(crate) done: bool,
}

pub(crate) fn find(c: &Connection, boot: BootId) -> rusqlite::Result<Option<BootRow>> {
    c.prepare_cached("SELECT zero_ms, by_hub, done FROM boot_clock WHERE boot = ?1")?
        .query_row([boot.0], |row| {
            Ok(BootRow {
                zero: WallTime(row.get(0)?),
                by_hub: row.get(1)?,
                done: row.get(2)?,
            })
        })
        .optional()
}

/// The corrected wall time of a point; None where the boot's clock was never corrected.
pub(crate) fn wall(c: &Connection, at: BootTime) -> rusqlite::Result<Option<WallTime>> {
    Ok(find(c, at.boot)?.map(|row| at.wall(row.zero)))
}

/// The hub may know a segment by another wall time.
pub(crate) fn mark_restamped(
    c: &Connection,
    stream: i64,
    n: SegmentNumber,
) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE segment SET restamped = 1 WHERE stream = ?1 AND number = ?2")?
        .execute(params![stream, sql(n)])?;
    Ok(())
}

/// The correction of the newest boot; what was known of others goes: nothing is cut in them any more.
pub(crate) fn put(
    c: &Connection,
    boot: BootId,
    zero: WallTime,
    by_hub: bool,
) -> rusqlite::Result<()> {
    c.execute("DELETE FROM boot_clock WHERE boot <> ?1", [boot.0])?;
    c.execute(
        "INSERT OR REPLACE INTO boot_clock VALUES (?1, ?2, ?3, 0)",
        params![boot.0, zero.0, by_hub],
    )?;
    Ok(())
}

/// Every segment of the boot goes by `zero`, unless it was corrected again meanwhile.
pub(crate) fn done(c: &Connection, boot: BootId, zero: WallTime) -> rusqlite::Result<()> {
    c.execute(
        "UPDATE boot_clock SET done = 1 WHERE boot = ?1 AND zero_ms = ?2",
        params![boot.0, zero.0],
    )?;
    Ok(())
}

/// Segments from `from` on that began in a boot: number and where on its clock, ascending.
pub(crate) fn segments_of(
    c: &Connection,
    stream: i64,
    boot: BootId,
    from: SegmentNumber,
    limit: usize,
) -> rusqlite::Result<Vec<(SegmentNumber, BootTime)>> {
    c.prepare_cached(
        "SELECT number, boot_ms FROM segment WHERE stream = ?1 AND number >= ?2 AND boot = ?3
         ORDER BY number LIMIT ?4",
    )?
    .query_map(params![stream, sql(from), boot.0, limit as i64], |row| {
        let at = BootTime {
            boot,
            ms: row.get(1)?,
        };
        Ok((number(row.get(0)?), at))
    })?
    .collect()
}

/// The lowest number below which no segment of the boot lies: numbers of a stream only grow, so it is found
/// from the newest on down, past segments of no boot (files), to the first of another boot.
pub(crate) fn first_of(
    c: &Connection,
    stream: i64,
    boot: BootId,
) -> rusqlite::Result<Option<SegmentNumber>> {
    let mut statement = c.prepare_cached(
        "SELECT number, boot FROM segment WHERE stream = ?1 ORDER BY number DESC",
    )?;
    let mut rows = statement.query([stream])?;
    let mut first = None;
    while let Some(row) = rows.next()? {
        match row.get::<_, Option<i64>>(1)? {
            Some(of) if of == boot.0 => first = Some(number(row.get(0)?)),
            Some(_) => break,
            None => {}
        }
    }
    Ok(first)
}

/// Whether a segment of the boot has a wall time below another.
pub(crate) fn any_before(
    c: &Connection,
    stream: i64,
    boot: BootId,
    wall: WallTime,
) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM segment INDEXED BY segment_by_wall
         WHERE stream = ?1 AND wall_ms < ?2 AND boot = ?3)",
    )?
    .query_row(params![stream, wall.0, boot.0], |row| row.get(0))
}
