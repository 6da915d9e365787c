//! The catalog: one SQLite file of what the store knows. Opening, migrating, transactions.
//!
//! Rows in, rows out: no segment file is touched here, nothing is decided. Writers go one by one through
//! one connection; readers have others, so that neither a slow fsync nor a long look holds up a viewer. Other processes
//! (`hub enroll` beside `hub serve`) open the same file. A file that SQLite calls damaged is told at once and
//! marked, for the next start to look at ([`damage`]).

pub(crate) mod at_hub;
pub(crate) mod boots;
pub(crate) mod damage;
pub(crate) mod holes;
pub(crate) mod live;
pub(crate) mod renumber;
pub(crate) mod segments;
pub(crate) mod spans;
pub(crate) mod streams;
pub(crate) mod taken;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::sync::watch;

use crate::error::{Result, StoreError};

/// The version that this program writes; each step up has its SQL in [`MIGRATIONS`].
const VERSION: i64 = 2;

/// From version n to n + 1.
const MIGRATIONS: [&str; VERSION as usize] = [include_str!("v1.sql"), include_str!("v2.sql")];

/// Its name in the data directory.
pub(crate) const FILE: &str = "catalog.db";

/// A subcommand beside a daemon waits this long for the other's commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections for reading: one long look (a recording of a day) and still one for everybody else.
const READERS: usize = 3;

/// Prepared statements kept per connection: all that this crate has.
const STATEMENTS: usize = 128;

/// The catalog of one data directory.
pub(crate) struct Catalog {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: [Mutex<Connection>; READERS],
    damage: watch::Sender<Option<String>>,
    /// The file that the connections hold, by device and inode: another one at its path is not ours.
    file: Mutex<Option<(u64, u64)>>,
    /// Which store this is.
    id: Vec<u8>,
}

/// Why a transaction was rolled back.
pub(crate) enum Fault {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Catalog {
    /// Opens or creates `catalog.db` and brings it to this program's version.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join(FILE);
        let fault = |source| StoreError::Catalog {
            path: path.clone(),
            source,
        };
        let writer = connect(&path).map_err(fault)?;
        migrate(&writer, &path)?;
        damage::check_tables(&writer).map_err(fault)?;
        let reader = || connect(&path).map(Mutex::new).map_err(fault);
        let readers = [reader()?, reader()?, reader()?];
        let id = store_id(&writer).map_err(fault)?;
        Ok(Self {
            writer: Mutex::new(writer),
            readers,
            file: Mutex::new(file_id(&path)),
            id,
            path,
            damage: watch::Sender::new(None),
        })
    }

    /// What SQLite said when it first found the file damaged; None while it has not.
    pub(crate) fn damage(&self) -> watch::Receiver<Option<String>> {
        self.damage.subscribe()
    }

    /// That the catalog's own file is what lies at its path: on a disk that was taken away nothing is
    /// written to whatever lies below.
    pub(crate) fn present(&self) -> Result<()> {
        let known = *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match file_id(&self.path) {
            Some(now) if Some(now) == known => Ok(()),
            _ => Err(self.vanished()),
        }
    }

    /// Goes on with the same store under another device or inode: its disk was away. True: it was.
    pub(crate) fn revive(&self) -> Result<bool> {
        let now = file_id(&self.path).ok_or_else(|| self.vanished())?;
        let known = *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if known == Some(now) {
            return Ok(false);
        }
        let fault = |source| self.error(Fault::Sql(source));
        let writer = connect(&self.path).map_err(fault)?;
        if store_id(&writer).map_err(fault)? != self.id {
            return Err(self.vanished());
        }
        for reader in &self.readers {
            *lock(reader) = connect(&self.path).map_err(fault)?;
        }
        *lock(&self.writer) = writer;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(true)
    }

    fn vanished(&self) -> StoreError {
        let folder = self.path.parent().unwrap_or(&self.path);
        StoreError::Vanished {
            path: folder.to_owned(),
        }
    }

    /// Runs `work` in one transaction: durable when this returns `Ok`, undone otherwise.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&Connection) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        self.present()?;
        let mut connection = lock(&self.writer);
        let run = || -> std::result::Result<T, Fault> {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        run().map_err(|fault| self.error(fault))
    }

    /// Runs `work` on what is committed.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let [first, ..] = &self.readers;
        let idle = self
            .readers
            .iter()
            .find_map(|reader| reader.try_lock().ok());
        let connection = idle.unwrap_or_else(|| lock(first));
        work(&connection).map_err(|fault| self.error(fault))
    }

    /// Changes whenever another process has committed.
    pub(crate) fn foreign_version(&self) -> Result<i64> {
        // Asked of the writing connection: its own commits don't count, all others do.
        let connection = lock(&self.writer);
        connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|e| self.error(e.into()))
    }

    fn error(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::Store(error) => error,
            Fault::Sql(source) => {
                self.look_for_damage(&source);
                StoreError::Catalog {
                    path: self.path.clone(),
                    source,
                }
            }
        }
    }

    /// A damaged catalog is marked, so that the next start checks it whole, and told to whoever can end the
    /// program: nothing that it answers can be relied on.
    fn look_for_damage(&self, error: &rusqlite::Error) {
        if !damage::is_damage(error) {
            return;
        }
        let first = self.damage.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert_with(|| error.to_string());
            first
        });
        if first {
            tracing::error!(path = %self.path.display(), %error, "the catalog is damaged: the next start checks it and, if it must, rebuilds it");
            if let Err(error) = damage::mark(&self.path) {
                tracing::error!(%error, "failed to mark the catalog as suspect");
            }
        }
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // A panic between begin and commit has rolled its transaction back: the connection is good.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device and inode of a file; None: it is not there.
fn file_id(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn store_id(connection: &Connection) -> rusqlite::Result<Vec<u8>> {
    let id = connection
        .query_row("SELECT id FROM store", [], |row| row.get(0))
        .optional()?;
    id.ok_or_else(|| damage::damaged("the store's own row is missing"))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit survives a power cut (invariant 1).
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

fn migrate(connection: &Connection, path: &Path) -> Result<()> {
    let fault = |source| StoreError::Catalog {
        path: path.to_owned(),
        source,
    };
    let step = || -> rusqlite::Result<i64> {
        // Two processes may come to a new directory at once: only one finds the old version.
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        for sql in MIGRATIONS
            .iter()
            .skip(usize::try_from(version).unwrap_or(usize::MAX))
        {
            connection.execute_batch(sql)?;
        }
        if version < VERSION {
            connection.pragma_update(None, "user_version", VERSION)?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(version)
    };
    let found = step().map_err(fault)?;
    if found > VERSION {
        return Err(StoreError::CatalogTooNew {
            path: path.to_owned(),
            found,
            known: VERSION,
        });
    }
    Ok(())
}
