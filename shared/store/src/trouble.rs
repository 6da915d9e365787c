//! What a disk's failure is, and what is known of the one that lasts: told once when it begins and once when
//! it ends, however many writes fail in between.
//!
//! No file is touched here but to ask how the file system stands.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use model::WallTime;
use rusqlite::ErrorCode;

use crate::{
    Store,
    error::{Result, StoreError, needs_room},
    files,
    store::wall_now,
};

/// What the disk does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// No space or no inode is left.
    Full,
    /// It takes seconds for what takes milliseconds.
    Slow,
    /// Read-only, gone, or it answers with errors.
    Broken,
}

impl TroubleKind {
    /// The word, as in logs, API and dashboards.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Slow => "slow",
            Self::Broken => "broken",
        }
    }
}

/// A disk's failure that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskTrouble {
    pub kind: TroubleKind,
    /// What failed, and where.
    pub what: String,
    pub since: WallTime,
}

/// What went through memory because the disk failed, since the start (edge).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryCounters {
    pub segments: u64,
    pub bytes: u64,
    /// Of these, dropped before the hub had them.
    pub lost: u64,
}

/// How the disk stands.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    trouble: Option<DiskTrouble>,
    counters: MemoryCounters,
    /// As they were when the trouble began.
    before: MemoryCounters,
    /// When a loss was last told.
    told_lost: Option<Instant>,
}

impl Health {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn trouble(&self) -> Option<DiskTrouble> {
        self.with(|state| state.trouble.clone())
    }

    pub(crate) fn is_troubled(&self) -> bool {
        self.with(|state| state.trouble.is_some())
    }

    pub(crate) fn counters(&self) -> MemoryCounters {
        self.with(|state| state.counters)
    }

    /// Counts segments that memory holds because of the disk.
    pub(crate) fn count(&self, segments: u64, bytes: u64) {
        self.with(|state| {
            state.counters.segments += segments;
            state.counters.bytes += bytes;
        });
    }

    pub(crate) fn count_lost(&self) {
        self.with(|state| state.counters.lost += 1);
    }

    /// True: a loss was not told within the last `interval`.
    pub(crate) fn may_tell_lost(&self, interval: Duration) -> bool {
        self.with(|state| {
            let may = state.told_lost.is_none_or(|at| at.elapsed() >= interval);
            if may {
                state.told_lost = Some(Instant::now());
            }
            may
        })
    }

    /// True: this is news.
    pub(crate) fn begin(&self, kind: TroubleKind, what: &str) -> bool {
        self.with(|state| {
            if let Some(trouble) = &mut state.trouble {
                // One trouble may turn into another: a disk that was removed while it was full.
                trouble.kind = kind;
                what.clone_into(&mut trouble.what);
                return false;
            }
            state.before = state.counters;
            state.trouble = Some(DiskTrouble {
                kind,
                what: what.to_owned(),
                since: wall_now(),
            });
            true
        })
    }

    /// The trouble that has ended, with what went through memory in it.
    pub(crate) fn end(&self) -> Option<(DiskTrouble, MemoryCounters)> {
        self.with(|state| {
            let trouble = state.trouble.take()?;
            let (now, before) = (state.counters, state.before);
            Some((
                trouble,
                MemoryCounters {
                    segments: now.segments - before.segments,
                    bytes: now.bytes - before.bytes,
                    lost: now.lost - before.lost,
                },
            ))
        })
    }
}

impl StoreError {
    /// The disk is at fault, and how; None: somebody else is.
    pub fn disk_fault(&self) -> Option<TroubleKind> {
        match self {
            Self::Io { source, .. } => Some(match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TroubleKind::Full,
                _ => TroubleKind::Broken,
            }),
            Self::Vanished { .. } | Self::Failing(_) => Some(TroubleKind::Broken),
            Self::Catalog { source, .. } => match source.sqlite_error_code()? {
                ErrorCode::DiskFull => Some(TroubleKind::Full),
                _ if needs_room(source) => Some(TroubleKind::Full),
                ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseBusy => Some(TroubleKind::Broken),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Store {
    /// The disk's failure that lasts, if there is one.
    pub fn disk_trouble(&self) -> Option<DiskTrouble> {
        self.inner().health.trouble()
    }

    /// Edge: what went through memory because of the disk, since the start.
    pub fn memory_counters(&self) -> MemoryCounters {
        self.inner().health.counters()
    }

    /// Hub: an error of the store was the disk's fault; told once. True: it was news.
    pub fn note_disk_fault(&self, error: &StoreError) -> bool {
        let Some(kind) = error.disk_fault() else {
            return false;
        };
        let news = self.inner().health.begin(kind, &error.to_string());
        if news {
            tracing::error!(
                trouble = kind.as_str(),
                "the disk fails: {error}; nothing is taken from edges, which keep what they have and try again; what is here is still served"
            );
        }
        news
    }

    /// Hub: looks at the disk, and, while it fails, tries it. The daemon asks every few seconds.
    pub fn check_disk(&self) -> Result<()> {
        let tried = if self.inner().health.is_troubled() {
            self.try_disk()
        } else {
            self.inner()
                .catalog
                .present()
                .and_then(|()| files::writable(&self.inner().data_dir))
        };
        match &tried {
            Ok(()) => {
                if let Some((trouble, _)) = self.inner().health.end() {
                    let seconds = (wall_now().0 - trouble.since.0) / 1_000;
                    tracing::info!(
                        seconds,
                        was = trouble.what,
                        "the disk works again; segments are taken"
                    );
                    self.tick();
                }
            }
            Err(error) => {
                self.note_disk_fault(error);
            }
        }
        tried
    }

    /// Writes a little, durably, the way a segment is written.
    pub(crate) fn try_disk(&self) -> Result<()> {
        self.revive()?;
        files::try_writing(&self.inner().data_dir)?;
        self.inner().catalog.write(|c| {
            // A write like any other: nought becomes nought.
            c.execute("UPDATE store SET tried = tried + 1", [])?;
            Ok(())
        })
    }

    /// Goes on with a data directory that was away and is there again.
    pub(crate) fn revive(&self) -> Result<()> {
        if self.inner().catalog.revive()? {
            self.inner().take_lock_again()?;
            tracing::info!(data_dir = %self.inner().data_dir.display(), "the data directory is there again");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_apart() {
        let io = |code| StoreError::Io {
            path: "/x".into(),
            source: io::Error::from_raw_os_error(code),
        };
        let sqlite = |code| StoreError::Catalog {
            path: "/x".into(),
            source: rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None),
        };
        // ENOSPC, EDQUOT, EROFS, EIO; SQLITE_FULL, _IOERR, _READONLY, _CONSTRAINT.
        for (error, expected) in [
            (io(28), Some(TroubleKind::Full)),
            (io(122), Some(TroubleKind::Full)),
            (io(30), Some(TroubleKind::Broken)),
            (io(5), Some(TroubleKind::Broken)),
            (sqlite(13), Some(TroubleKind::Full)),
            (sqlite(10), Some(TroubleKind::Broken)),
            (sqlite(8), Some(TroubleKind::Broken)),
            (sqlite(19), None),
        ] {
            assert_eq!(error.disk_fault(), expected, "{error}");
        }
    }

    #[test]
    fn a_trouble_is_news_once_and_counts_its_own() {
        let health = Health::default();
        health.count(3, 30);
        assert!(health.begin(TroubleKind::Full, "full"));
        assert!(!health.begin(TroubleKind::Broken, "gone"));
        health.count(2, 20);
        health.count_lost();
        let (trouble, through) = health.end().unwrap();
        assert_eq!(trouble.what, "gone");
        assert_eq!((through.segments, through.bytes, through.lost), (2, 20, 1));
        assert!(health.end().is_none());
        assert_eq!(health.counters().segments, 5);
    }
}
