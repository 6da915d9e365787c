//! A copy of the catalog that is consistent while everything goes on.
//!
//! By `VACUUM INTO`: one read transaction, which no writer waits for and no writer makes begin again. Tokens are
//! left out, so that an invitation that was used up is not alive again after a restore.

use std::{fs, path::Path};

use rusqlite::{Connection, OpenFlags};

use crate::{
    Store, catalog,
    error::{AtPath, Result, StoreError},
    files,
};

/// The note that says that a folder is a backup of ours; written last.
pub const BACKUP_NOTE: &str = "penstock-backup.json";

/// What is in a copied catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackupReport {
    pub devices: u64,
    pub streams: u64,
    pub segments: u64,
    pub bytes: u64,
}

impl Store {
    /// Bytes that a backup of the catalog takes at most.
    pub fn catalog_bytes(&self) -> Result<u64> {
        self.inner().catalog.read(|c| {
            let pages: i64 = c.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let size: i64 = c.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            Ok(u64::try_from(pages.saturating_mul(size)).unwrap_or(0))
        })
    }

    /// Copies the catalog to `to`, which must not exist, durably. Beside a daemon or not.
    pub fn copy_catalog(&self, to: &Path) -> Result<BackupReport> {
        let path = to.to_string_lossy().into_owned();
        self.inner().catalog.read(|c| {
            c.execute("VACUUM INTO ?1", [&path])?;
            Ok(())
        })?;
        let fault = |source| StoreError::Catalog {
            path: to.to_owned(),
            source,
        };
        let report = finish_copy(to).map_err(fault)?;
        fs::File::open(to).and_then(|file| file.sync_all()).at(to)?;
        Ok(BackupReport {
            bytes: fs::metadata(to).at(to)?.len(),
            ..report
        })
    }

    /// Where the catalog of a data directory is.
    pub fn catalog_path(data_dir: &Path) -> std::path::PathBuf {
        data_dir.join(catalog::FILE)
    }

    /// Makes what was renamed into a folder durable.
    pub fn sync_folder(folder: &Path) -> Result<()> {
        files::sync_folder(folder)
    }
}

fn finish_copy(path: &Path) -> rusqlite::Result<BackupReport> {
    let c = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    c.pragma_update(None, "journal_mode", "DELETE")?;
    c.execute("DELETE FROM token", [])?;
    let count = |sql: &str| c.query_row(sql, [], |row| row.get::<_, i64>(0));
    Ok(BackupReport {
        devices: count("SELECT COUNT(*) FROM device")?.max(0) as u64,
        streams: count("SELECT COUNT(*) FROM stream")?.max(0) as u64,
        segments: count("SELECT COALESCE(SUM(segments), 0) FROM span")?.max(0) as u64,
        bytes: 0,
    })
}
