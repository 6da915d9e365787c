//! What can go wrong in a store, and who is at fault.

use std::{
    io,
    path::{Path, PathBuf},
};

use model::{DeviceName, SegmentNumber, StreamName};

use crate::catalog::damage;

/// A store's failure.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk's fault: full, read-only, gone, slow to die.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The data directory is not there, or another one is in its place: the disk's fault, or an operator's.
    #[error("{path} is gone: is its disk mounted?")]
    Vanished { path: PathBuf },
    /// The disk fails, as was told when it began.
    #[error("{0}")]
    Failing(String),
    /// The catalog's disk, or a damaged catalog (then [`StoreError::is_damage`]).
    #[error("catalog {path}: {source}{}", hint(source))]
    Catalog {
        path: PathBuf,
        source: rusqlite::Error,
    },
    /// A catalog of a later version; the operator went back to an older program.
    #[error(
        "catalog {path} has version {found}, this program knows up to {known}: use the newer program, or restore a backup"
    )]
    CatalogTooNew {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// Another daemon has the directory; the operator's to solve.
    #[error("{path} is in use by {holder}: stop it, or give another --data-dir")]
    Locked { path: PathBuf, holder: String },
    #[error("no stream named {0}")]
    NoSuchStream(StreamName),
    /// The announcing device's fault, or an operator's who means to move the stream.
    #[error(
        "stream {stream} belongs to device {owner}: `hub stream move {stream} NEW_DEVICE` gives it away"
    )]
    OwnedByOther {
        stream: StreamName,
        owner: DeviceName,
    },
    /// The caller's fault: numbers never repeat (invariant 2).
    #[error("segment {stream} {number} exists already")]
    NumberUsed {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// The announcing device's fault.
    #[error(
        "stream {stream}: more than {limit} announced segments are not here: announce fewer ahead of shipping"
    )]
    TooManyAnnounced { stream: StreamName, limit: u64 },
    /// A closed segment whose bytes are not those announced. Peer's or line's fault; asked for again once.
    #[error("segment {stream} {number}: {what}")]
    Segment {
        stream: StreamName,
        number: SegmentNumber,
        what: String,
    },
}

impl StoreError {
    /// The catalog's file is no sound database any more.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Catalog { source, .. } if damage::is_damage(source))
    }
}

/// SQLite had no room for the index of its journal, and calls it an I/O error.
pub(crate) fn needs_room(source: &rusqlite::Error) -> bool {
    let code = source.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

fn hint(source: &rusqlite::Error) -> &'static str {
    if damage::is_damage(source) {
        " (start the daemon again: it sets the damaged file aside and rebuilds it from the segments)"
    } else if needs_room(source) {
        " (its -shm file can't grow: is the disk full?)"
    } else {
        ""
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// Adds the path to an I/O error.
pub(crate) trait AtPath<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|source| StoreError::Io {
            path: path.to_owned(),
            source,
        })
    }
}
