//! Rows of streams and runs.

use std::collections::BTreeMap;

use model::{DeviceName, MediaTime, RunInfo, SegmentInfo, SegmentNumber, StreamName, WallTime};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Fault, segments};
use crate::error::StoreError;

/// A stream's row.
#[derive(Debug, Clone)]
pub(crate) struct StreamRow {
    pub(crate) id: i64,
    pub(crate) name: StreamName,
    pub(crate) title: Option<String>,
    pub(crate) owner: Option<DeviceName>,
    pub(crate) told_to_end: bool,
    pub(crate) ending: Option<SegmentNumber>,
    pub(crate) ended_on_hub: bool,
    pub(crate) stretch_first: SegmentNumber,
    pub(crate) floor: SegmentNumber,
}

const COLUMNS: &str =
    "id, name, title, owner, told_to_end, ending, ended_on_hub, stretch_first, floor";

fn from_row(row: &Row<'_>) -> rusqlite::Result<StreamRow> {
    let owner: Option<String> = row.get(3)?;
    Ok(StreamRow {
        id: row.get(0)?,
        name: parsed(row, 1)?,
        title: row.get(2)?,
        owner: owner.map(|_| parsed(row, 3)).transpose()?,
        told_to_end: row.get(4)?,
        ending: row.get::<_, Option<i64>>(5)?.map(segments::number),
        ended_on_hub: row.get(6)?,
        stretch_first: segments::number(row.get(7)?),
        floor: segments::number(row.get(8)?),
    })
}

pub(crate) fn find(c: &Connection, name: &StreamName) -> rusqlite::Result<Option<StreamRow>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM stream WHERE name = ?1"))?
        .query_row([name.as_str()], from_row)
        .optional()
}

/// The stream's row, or the error that there is none.
pub(crate) fn get(c: &Connection, name: &StreamName) -> Result<StreamRow, Fault> {
    find(c, name)?.ok_or_else(|| StoreError::NoSuchStream(name.clone()).into())
}

pub(crate) fn all(c: &Connection) -> rusqlite::Result<Vec<StreamRow>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM stream ORDER BY name"))?
        .query_map([], from_row)?
        .collect()
}

/// The names of a device's streams, ascending.
pub(crate) fn names_of(c: &Connection, owner: &DeviceName) -> rusqlite::Result<Vec<StreamName>> {
    c.prepare_cached("SELECT name FROM stream WHERE owner = ?1 ORDER BY name")?
        .query_map([owner.as_str()], |row| parsed(row, 0))?
        .collect()
}

pub(crate) fn owners(c: &Connection) -> rusqlite::Result<BTreeMap<StreamName, DeviceName>> {
    c.prepare_cached("SELECT name, owner FROM stream WHERE owner IS NOT NULL")?
        .query_map([], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?
        .collect()
}

/// A name in a column of text.
fn parsed<N: std::str::FromStr<Err = model::NameError>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<N> {
    row.get::<_, String>(column)?.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

/// Creates the stream, or gives an unowned one its first owner. An owned one stays.
pub(crate) fn register(
    c: &Connection,
    name: &StreamName,
    owner: Option<&DeviceName>,
    now: WallTime,
) -> Result<(), Fault> {
    let Some(row) = find(c, name)? else {
        c.prepare_cached("INSERT INTO stream (name, owner, created_ms) VALUES (?1, ?2, ?3)")?
            .execute(params![name.as_str(), owner.map(DeviceName::as_str), now.0])?;
        return Ok(());
    };
    match (row.owner, owner) {
        (Some(has), Some(wants)) if has != *wants => Err(StoreError::OwnedByOther {
            stream: name.clone(),
            owner: has,
        }
        .into()),
        (None, Some(owner)) => Ok(set_owner(c, row.id, owner)?),
        _ => Ok(()),
    }
}

pub(crate) fn set_owner(c: &Connection, id: i64, owner: &DeviceName) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE stream SET owner = ?2 WHERE id = ?1")?
        .execute(params![id, owner.as_str()])?;
    Ok(())
}

pub(crate) fn remove(c: &Connection, id: i64) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM stream WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// The number is used from now on (invariant 2).
pub(crate) fn raise_floor(c: &Connection, id: i64, used: SegmentNumber) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE stream SET floor = MAX(floor, ?2) WHERE id = ?1")?
        .execute(params![id, segments::sql(used.next())])?;
    Ok(())
}

/// The stream ends after `last`.
pub(crate) fn tell_to_end(
    c: &Connection,
    id: i64,
    last: Option<SegmentNumber>,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE stream SET told_to_end = 1, ending = ?2, ended_on_hub = 0 WHERE id = ?1",
    )?
    .execute(params![id, last.map(segments::sql)])?;
    Ok(())
}

/// Whether `run` records it.
pub(crate) fn set_recorded(c: &Connection, id: i64, recorded: bool) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE stream SET recorded = ?2 WHERE id = ?1 AND recorded <> ?2")?
        .execute(params![id, recorded])?;
    Ok(())
}

/// Streams that `run` recorded and nothing has ended.
pub(crate) fn recorded(c: &Connection) -> rusqlite::Result<Vec<StreamRow>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM stream WHERE recorded = 1 AND told_to_end = 0 ORDER BY name"
    ))?
    .query_map([], from_row)?
    .collect()
}

/// Segments come again after an end: a new stretch begins.
pub(crate) fn begin_anew(c: &Connection, id: i64, first: SegmentNumber) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE stream SET told_to_end = 0, ending = NULL, ended_on_hub = 0, stretch_first = ?2 WHERE id = ?1",
    )?
    .execute(params![id, segments::sql(first)])?;
    Ok(())
}

pub(crate) fn mark_ended_on_hub(c: &Connection, id: i64) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE stream SET ended_on_hub = 1 WHERE id = ?1 AND told_to_end = 1")?
        .execute([id])?;
    Ok(())
}

/// A run that is there stays as it is.
pub(crate) fn put_run(c: &Connection, id: i64, run: &RunInfo) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT INTO run (stream, run, codecs, width, height, target_duration_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (stream, run) DO NOTHING",
    )?
    .execute(params![
        id,
        segments::sql(run.run),
        run.codecs,
        run.resolution.map(|(width, _)| width),
        run.resolution.map(|(_, height)| height),
        run.target_duration_s
    ])?;
    Ok(())
}

/// Where the run stands on the live list: wall and media start of the first of its segments listed there.
pub(crate) fn live_anchor(
    c: &Connection,
    id: i64,
    run: SegmentNumber,
) -> rusqlite::Result<Option<(WallTime, MediaTime)>> {
    let found: Option<(Option<i64>, Option<i64>)> = c
        .prepare_cached(
            "SELECT live_wall_ms, live_media_90k FROM run WHERE stream = ?1 AND run = ?2",
        )?
        .query_row(params![id, segments::sql(run)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(found
        .and_then(|(wall, media)| wall.zip(media))
        .map(|(wall, media)| (WallTime(wall), MediaTime(media))))
}

/// A run that goes on under another number stands where it stood, and its source can wait as it could.
pub(crate) fn go_on_as(
    c: &Connection,
    id: i64,
    from: SegmentNumber,
    to: SegmentNumber,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE run SET waits = old.waits,
             live_wall_ms = COALESCE(old.live_wall_ms, run.live_wall_ms),
             live_media_90k = COALESCE(old.live_media_90k, run.live_media_90k)
         FROM (SELECT waits, live_wall_ms, live_media_90k FROM run WHERE stream = ?1 AND run = ?2) AS old
         WHERE stream = ?1 AND run = ?3",
    )?
    .execute(params![id, segments::sql(from), segments::sql(to)])?;
    Ok(())
}

/// The first segment of a run is listed live.
pub(crate) fn set_live_anchor(
    c: &Connection,
    id: i64,
    first: &SegmentInfo,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE run SET live_wall_ms = ?3, live_media_90k = ?4 WHERE stream = ?1 AND run = ?2",
    )?
    .execute(params![
        id,
        segments::sql(first.run),
        first.wall_start.0,
        first.media_start.0
    ])?;
    Ok(())
}

/// A run as an edge records it: one that is known stays as it is. `waits`: its source can wait.
pub(crate) fn put_run_of(
    c: &Connection,
    id: i64,
    info: &RunInfo,
    waits: bool,
) -> rusqlite::Result<()> {
    if run(c, id, info.run)?.as_ref() == Some(info) {
        return Ok(());
    }
    put_run(c, id, info)?;
    c.prepare_cached("UPDATE run SET waits = ?3 WHERE stream = ?1 AND run = ?2")?
        .execute(params![id, segments::sql(info.run), waits])?;
    Ok(())
}

/// Whether any run's source could not wait: else nothing of the stream may be evicted.
pub(crate) fn any_live_run(c: &Connection, id: i64) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT EXISTS (SELECT 1 FROM run WHERE stream = ?1 AND waits = 0)")?
        .query_row([id], |row| row.get(0))
}

fn run_from_row(row: &Row<'_>) -> rusqlite::Result<RunInfo> {
    run_from(row, 0)
}

/// A run whose columns begin at one.
pub(crate) fn run_from(row: &Row<'_>, at: usize) -> rusqlite::Result<RunInfo> {
    let (width, height): (Option<u32>, Option<u32>) = (row.get(at + 2)?, row.get(at + 3)?);
    Ok(RunInfo {
        run: segments::number(row.get(at)?),
        codecs: row.get(at + 1)?,
        resolution: width.zip(height),
        target_duration_s: row.get(at + 4)?,
    })
}

pub(crate) fn run(
    c: &Connection,
    id: i64,
    run: SegmentNumber,
) -> rusqlite::Result<Option<RunInfo>> {
    c.prepare_cached(
        "SELECT run, codecs, width, height, target_duration_s FROM run WHERE stream = ?1 AND run = ?2",
    )?
    .query_row(params![id, segments::sql(run)], run_from_row)
    .optional()
}

pub(crate) fn newest_run(c: &Connection, id: i64) -> rusqlite::Result<Option<RunInfo>> {
    c.prepare_cached(
        "SELECT run, codecs, width, height, target_duration_s FROM run WHERE stream = ?1 ORDER BY run DESC LIMIT 1",
    )?
    .query_row([id], run_from_row)
    .optional()
}
