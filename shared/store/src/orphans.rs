//! `orphans/{stream}/…`: files with footage that no row of the catalog stands for. Set aside, never unlinked
//! on sight; what is deleted on purpose leaves a tombstone and does not come here.
//!
//! They are bounded ([`MAX_BYTES`], [`MAX_AGE`]): the oldest go first, each with a line in the log, and all
//! go before a segment does where the disk's own limits ask for room.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use model::{SegmentNumber, StreamName};

use crate::{
    Store,
    error::{AtPath, Result},
    files,
};

/// Most bytes of all orphans together: some 40 minutes of a camera of 4 Mbit/s.
pub(crate) const MAX_BYTES: u64 = 1 << 30;
/// Orphans older than this go: a month is enough to notice a warning.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Between two looks at their limits.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// Why a file is set aside: its new ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aside {
    /// A whole file that nobody knows.
    Unknown,
    /// A partial that nobody knows.
    Partial,
    /// Its bytes are not those that the ledger says.
    Corrupt,
}

impl Aside {
    const fn ending(self) -> &'static str {
        match self {
            Self::Unknown => "ts",
            Self::Partial => "part",
            Self::Corrupt => "ts.corrupt",
        }
    }
}

/// One file that was set aside.
struct Orphan {
    path: PathBuf,
    bytes: u64,
    since: SystemTime,
}

impl Store {
    fn orphans(&self) -> PathBuf {
        self.inner().data_dir.join("orphans")
    }

    /// Moves a file away from the segments; None: it was not there.
    pub(crate) fn set_aside(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
        file: &Path,
        why: Aside,
    ) -> Result<Option<PathBuf>> {
        if !file.exists() {
            return Ok(None);
        }
        let folder = self.orphans().join(stream.as_str());
        fs::create_dir_all(&folder).at(&folder)?;
        let mut to = folder.join(format!("{number}.{}", why.ending()));
        let mut more = 1;
        while to.exists() {
            to = folder.join(format!("{number}-{more}.{}", why.ending()));
            more += 1;
        }
        match fs::rename(file, &to) {
            // The segments lie on a disk of their own.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(file, &to).at(&to)?;
                files::remove(file)?;
            }
            moved => moved.at(file)?,
        }
        // Its age counts from now.
        if let Ok(file) = fs::File::options().append(true).open(&to) {
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(Some(to))
    }

    /// Keeps orphans within their limits, at most once an hour; all of them go where `room` is asked for.
    /// How many went.
    pub(crate) fn sweep_orphans(&self, room: bool) -> Result<u64> {
        let due = self.with_upkeep(|upkeep| {
            let due = room
                || upkeep
                    .orphans_swept
                    .is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
            if due {
                upkeep.orphans_swept = Some(Instant::now());
            }
            due
        });
        if !due {
            return Ok(0);
        }
        let mut all = list(&self.orphans());
        all.sort_by_key(|orphan| orphan.since);
        let mut bytes: u64 = all.iter().map(|orphan| orphan.bytes).sum();
        let now = SystemTime::now();
        let (most, mut gone) = (if room { 0 } else { MAX_BYTES }, 0);
        for orphan in &all {
            let old = now
                .duration_since(orphan.since)
                .is_ok_and(|age| age > MAX_AGE);
            if bytes <= most && !old {
                break;
            }
            files::remove(&orphan.path)?;
            tracing::warn!(path = %orphan.path.display(), bytes = orphan.bytes, "removed a file that was set aside: orphans are over their limit, or the disk needs room");
            bytes -= orphan.bytes;
            gone += 1;
        }
        Ok(gone)
    }
}

/// All orphans; a folder that can't be read has none.
fn list(root: &Path) -> Vec<Orphan> {
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    let entries = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
    let orphan = |entry: fs::DirEntry| {
        let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Orphan {
            path: entry.path(),
            bytes: meta.len(),
            since: meta.modified().ok()?,
        })
    };
    entries.flatten().filter_map(orphan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Site, gate, n};

    #[test]
    fn the_oldest_go_first_and_all_where_room_is_needed() {
        let site = Site::hub();
        let put = |number: u64, age: Duration, bytes: u64| {
            let file = site.path().join("file");
            fs::File::create(&file).unwrap().set_len(bytes).unwrap();
            let to = site
                .store()
                .set_aside(&gate(), n(number), &file, Aside::Unknown);
            let to = to.unwrap().unwrap();
            let file = fs::File::options().append(true).open(&to).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            to
        };
        let hour = Duration::from_secs(3_600);
        let (a, b) = (put(7, hour, MAX_BYTES), put(7, 2 * hour, 1));
        let c = put(9, MAX_AGE + hour, 1);
        assert_ne!(a, b, "one name, two files");
        // The hour between two looks is over at the first.
        assert_eq!(site.store().sweep_orphans(false).unwrap(), 2);
        assert!(a.exists() && !b.exists() && !c.exists());
        let d = put(8, 2 * hour, 1);
        assert_eq!(site.store().sweep_orphans(false).unwrap(), 0, "not due");
        assert_eq!(site.store().sweep_orphans(true).unwrap(), 2);
        assert!(!a.exists() && !d.exists());
    }
}
