//! Rows of files taken from watched folders.

use model::{HoleReason, SegmentInfo, SegmentNumber, StreamName};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{holes, renumber, segments};
use crate::taken::{FileId, Progress, Taken, TakenState};

const COLUMNS: &str = "name, size, mtime_ns, fingerprint, target_ms, state, segments, bytes, run, first, last, void, reason";

/// Where [`all_streams`] names the stream.
pub(crate) const STREAM: usize = 13;

/// Reads all rows, whosever they are.
pub(crate) fn all_streams() -> String {
    format!("SELECT {COLUMNS}, stream FROM taken")
}

pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Taken> {
    let unsigned = |column| {
        row.get::<_, i64>(column)
            .map(|n| u64::try_from(n).unwrap_or(0))
    };
    let fingerprint: Vec<u8> = row.get(3)?;
    let number = |column| {
        row.get::<_, Option<i64>>(column)
            .map(|n| n.map(segments::number))
    };
    Ok(Taken {
        id: FileId {
            name: row.get(0)?,
            size: unsigned(1)?,
            mtime_ns: row.get(2)?,
            fingerprint: fingerprint.try_into().unwrap_or([0; 32]),
        },
        target_ms: unsigned(4)?,
        state: TakenState::from_code(row.get(5)?),
        progress: Progress {
            segments: unsigned(6)?,
            bytes: unsigned(7)?,
            run: number(8)?,
        },
        first: number(9)?,
        last: number(10)?,
        void: unsigned(11)?,
        reason: row.get(12)?,
    })
}

pub(crate) fn find(
    c: &Connection,
    stream: &StreamName,
    name: &[u8],
) -> rusqlite::Result<Option<Taken>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM taken WHERE stream = ?1 AND name = ?2"
    ))?
    .query_row(params![stream.as_str(), name], from_row)
    .optional()
}

pub(crate) fn all(
    c: &Connection,
    stream: &StreamName,
    limit: usize,
) -> rusqlite::Result<Vec<Taken>> {
    c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM taken WHERE stream = ?1 ORDER BY name LIMIT ?2"
    ))?
    .query_map(params![stream.as_str(), limit as i64], from_row)?
    .collect()
}

/// A file not seen before, or another of that name.
pub(crate) fn put(
    c: &Connection,
    stream: &StreamName,
    id: &FileId,
    target_ms: u64,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO taken (stream, name, size, mtime_ns, fingerprint, target_ms, state)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
    )?
    .execute(params![
        stream.as_str(),
        id.name,
        i64::try_from(id.size).unwrap_or(i64::MAX),
        id.mtime_ns,
        id.fingerprint.as_slice(),
        i64::try_from(target_ms).unwrap_or(i64::MAX),
    ])?;
    Ok(())
}

/// A row as an earlier catalog had it.
pub(crate) fn keep(c: &Connection, stream: &StreamName, file: &Taken) -> rusqlite::Result<()> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    c.prepare_cached(&format!(
        "INSERT OR IGNORE INTO taken ({COLUMNS}, stream)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
    ))?
    .execute(params![
        file.id.name,
        signed(file.id.size),
        file.id.mtime_ns,
        file.id.fingerprint.as_slice(),
        signed(file.target_ms),
        file.state.code(),
        signed(file.progress.segments),
        signed(file.progress.bytes),
        file.progress.run.map(segments::sql),
        file.first.map(segments::sql),
        file.last.map(segments::sql),
        signed(file.void),
        file.reason,
        stream.as_str(),
    ])?;
    Ok(())
}

/// Whatever of a stream is being taken is not any more.
pub(crate) fn interrupt(c: &Connection, stream: &StreamName) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE taken SET state = 1 WHERE stream = ?1 AND state = 0")?
        .execute([stream.as_str()])?;
    Ok(())
}

pub(crate) fn set_state(
    c: &Connection,
    stream: &StreamName,
    name: &[u8],
    state: TakenState,
    reason: Option<&str>,
) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE taken SET state = ?3, reason = ?4 WHERE stream = ?1 AND name = ?2")?
        .execute(params![stream.as_str(), name, state.code(), reason])?;
    Ok(())
}

pub(crate) fn set_mtime(
    c: &Connection,
    stream: &StreamName,
    name: &[u8],
    mtime_ns: i64,
) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE taken SET mtime_ns = ?3 WHERE stream = ?1 AND name = ?2")?
        .execute(params![stream.as_str(), name, mtime_ns])?;
    Ok(())
}

pub(crate) fn forget(c: &Connection, stream: &StreamName, name: &[u8]) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM taken WHERE stream = ?1 AND name = ?2")?
        .execute(params![stream.as_str(), name])?;
    Ok(())
}

/// Whether a file of this stream is being taken.
pub(crate) fn is_under_way(c: &Connection, stream: &StreamName) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM taken INDEXED BY taken_now WHERE stream = ?1 AND state = 0)",
    )?
    .query_row([stream.as_str()], |row| row.get(0))
}

/// A segment is here: the file being taken is so much further. One that was closed before its end counts
/// by its bytes.
pub(crate) fn note_closed(
    c: &Connection,
    stream: &StreamName,
    info: &SegmentInfo,
    whole: bool,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE taken INDEXED BY taken_now
         SET segments = segments + ?4, bytes = IIF(?4, 0, bytes + ?5),
             run = ?2, first = COALESCE(first, ?3), last = ?3
         WHERE stream = ?1 AND state = 0",
    )?
    .execute(params![
        stream.as_str(),
        segments::sql(info.run),
        segments::sql(info.number),
        whole,
        i64::try_from(info.bytes).unwrap_or(i64::MAX),
    ])?;
    Ok(())
}

/// A number was given up with nothing in it.
pub(crate) fn note_void(
    c: &Connection,
    stream: &StreamName,
    number: SegmentNumber,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE taken INDEXED BY taken_now
         SET void = void + 1, first = COALESCE(first, ?2), last = ?2
         WHERE stream = ?1 AND state = 0",
    )?
    .execute(params![stream.as_str(), segments::sql(number)])?;
    Ok(())
}

/// Of a file's segments: how many are on their way, and how many the hub will not have: numbers that were given
/// up here (void ones are among them), and segments that it settled without their bytes. `first` and `last`
/// are numbers as they were recorded: where segments got others since, both are looked at.
pub(crate) fn missing_on_hub(
    c: &Connection,
    stream: i64,
    first: SegmentNumber,
    last: SegmentNumber,
) -> rusqlite::Result<(u64, u64)> {
    let numbers = renumber::images(c, stream, first..=last)?;
    let (mut unstored, mut lost) = (0, 0);
    for range in numbers.iter() {
        let (waiting, refused): (i64, i64) = c
            .prepare_cached(
                "SELECT COALESCE(SUM(stored = 0), 0), COALESCE(SUM(stored = 2), 0) FROM segment
                 WHERE stream = ?1 AND number BETWEEN ?2 AND ?3",
            )?
            .query_row(
                params![
                    stream,
                    segments::sql(*range.start()),
                    segments::sql(*range.end())
                ],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
        unstored += u64::try_from(waiting).unwrap_or(0);
        lost += u64::try_from(refused).unwrap_or(0);
    }
    for (range, reason) in holes::tombstones(c, stream)? {
        // What expired here was there before; what was renumbered is there, or missing, under another number.
        if matches!(reason, HoleReason::Expired | HoleReason::Renumbered) {
            continue;
        }
        for of in numbers.iter() {
            let from = range.start().0.max(of.start().0);
            let to = range.end().0.min(of.end().0);
            lost += to.saturating_add(1).saturating_sub(from);
        }
    }
    Ok((unstored, lost))
}
