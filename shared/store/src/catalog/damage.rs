//! A catalog that is damaged: how that is told, marked, checked, and set aside. No segment is looked at here.
//!
//! SQLite finds a flipped bit when it comes by it, not before. So the whole file is read only where there is
//! reason to: after an error that says *damaged*, marked by `catalog.suspect`. A kill or a loss of power is no
//! such reason, the journal heals those.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode};

use crate::{
    error::{AtPath, Result},
    files,
    store::wall_now,
};

/// Says that the catalog must be read whole before it is used.
const SUSPECT: &str = "catalog.suspect";
/// Says that a rebuild has not ended; holds the name under which the damaged file was set aside.
const REBUILDING: &str = "catalog.rebuilding";
/// Damaged catalogs that are kept for whoever wants to look into them; older ones go.
const MAX_SET_ASIDE: usize = 3;
/// Every table of ours.
const TABLES: [&str; 16] = [
    "device",
    "token",
    "stream",
    "run",
    "segment",
    "span",
    "tombstone",
    "live_list",
    "live_entry",
    "live_retired",
    "boot_clock",
    "renumbered",
    "renumbering",
    "run_becomes",
    "store",
    "taken",
];
/// What belongs to a database in WAL mode beside its file; before it, when it is moved, so that a kill in
/// between leaves no journal to a database that it isn't of.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Whether SQLite says that the file is no sound database.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// A database that says it has our version and lacks a table of ours is damaged as well.
pub(super) fn check_tables(c: &Connection) -> rusqlite::Result<()> {
    for table in TABLES {
        let there: bool = c.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)",
            [table],
            |row| row.get(0),
        )?;
        if !there {
            return Err(damaged(&format!("table {table} is missing")));
        }
    }
    Ok(())
}

/// The error for what SQLite itself takes for sound.
pub(super) fn damaged(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some(what.to_owned()),
    )
}

/// Marks the catalog at `path` as suspect, durably.
pub(super) fn mark(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::create(folder.join(SUSPECT))
        .and_then(|file| file.sync_all())
        .at(path)?;
    files::sync_folder(folder)
}

pub(crate) fn is_suspect(data_dir: &Path) -> bool {
    data_dir.join(SUSPECT).exists()
}

pub(crate) fn clear_suspicion(data_dir: &Path) -> Result<()> {
    files::remove(&data_dir.join(SUSPECT))
}

/// Reads the whole catalog, indexes too: what is wrong with it, or None. Takes as long as the file takes to
/// be read; only a suspect one is.
pub(crate) fn find(path: &Path) -> Option<String> {
    let check = || -> rusqlite::Result<String> {
        Connection::open(path)?.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    match check() {
        Ok(said) if said == "ok" => None,
        Ok(said) => Some(said),
        Err(error) if is_damage(&error) => Some(error.to_string()),
        // Its disk can't be read just now, or somebody holds it: no verdict.
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "failed to check the catalog");
            None
        }
    }
}

/// The set-aside catalog of a rebuild that has begun and not ended.
pub(crate) fn rebuilding(data_dir: &Path) -> Result<Option<PathBuf>> {
    let path = data_dir.join(REBUILDING);
    match fs::read_to_string(&path) {
        Ok(name) => {
            let name = name.trim();
            let ours = name.starts_with("catalog.db.damaged-") && !name.contains('/');
            Ok(ours.then(|| data_dir.join(name)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(&path),
    }
}

/// The rebuild is whole: the catalog is good again.
pub(crate) fn end_rebuild(data_dir: &Path) -> Result<()> {
    clear_suspicion(data_dir)?;
    files::remove(&data_dir.join(REBUILDING))?;
    files::sync_folder(data_dir)
}

/// Sets the catalog at `path` aside under a name with the time, after that name is noted: where it is now.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let now = wall_now();
    let time = now.to_utc().map_or_else(
        || now.0.to_string(),
        |time| time.format("%Y%m%dT%H%M%SZ").to_string(),
    );
    let mut name = format!("catalog.db.damaged-{time}");
    let mut more = 1;
    while folder.join(&name).exists() {
        name = format!("catalog.db.damaged-{time}-{more}");
        more += 1;
    }
    let note = folder.join(REBUILDING);
    let mut file = File::create(&note).at(&note)?;
    writeln!(file, "{name}").at(&note)?;
    file.sync_all().at(&note)?;
    files::sync_folder(folder)?;
    let aside = folder.join(name);
    move_to(path, &aside)?;
    forget_older(folder)?;
    Ok(aside)
}

/// Moves a database with what belongs to it.
pub(crate) fn move_to(path: &Path, aside: &Path) -> Result<()> {
    let with = |base: &Path, end: &str| {
        let mut name = base.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    for end in BESIDE.iter().chain(&[""]) {
        let (from, to) = (with(path, end), with(aside, end));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at(&from),
            _ => {}
        }
    }
    files::sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Removes a new catalog whose rebuild was cut off.
pub(crate) fn discard(path: &Path) -> Result<()> {
    for end in BESIDE.iter().chain(&[""]) {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        files::remove(Path::new(&name))?;
    }
    Ok(())
}

/// Damaged catalogs that were set aside, oldest first.
pub(crate) fn all_set_aside(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir).at(data_dir)? {
        let path = entry.at(data_dir)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| {
            name.starts_with("catalog.db.damaged-") && !BESIDE.iter().any(|end| name.ends_with(end))
        }) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn forget_older(data_dir: &Path) -> Result<()> {
    let all = all_set_aside(data_dir)?;
    for path in all.iter().take(all.len().saturating_sub(MAX_SET_ASIDE)) {
        discard(path)?;
    }
    Ok(())
}
