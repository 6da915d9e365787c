//! A folder that files are put into: which are there, and which of them are whole.
//!
//! A file is whole once its writer closed it or renamed it in (as the kernel tells), or once its size and
//! time have stayed as they are for a while: the only sign on network file systems. What is done with the
//! files is `watch`'s; the clock is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use store::FileId;

use super::file::read_at;

/// Bytes of a file's beginning and of its end that it is known by.
const FINGERPRINT_BYTES: usize = 64 << 10;
/// Ends of names that programs give to what they are still writing.
const TEMPORARY_ENDS: [&[u8]; 6] = [
    b".part",
    b".tmp",
    b".temp",
    b".filepart",
    b".crdownload",
    b"~",
];

/// A file as a look found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: OsString,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
}

/// The files of a folder in the order of their names; folders, temporary and empty files are left out.
pub(super) fn look(folder: &Path, most: usize) -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_temporary(&name) {
            continue;
        }
        // One that has gone since is none.
        let Ok(meta) = fs::metadata(entry.path()) else {
            continue;
        };
        if !meta.is_file() || meta.len() == 0 {
            continue;
        }
        if seen.len() >= most {
            return Err(io::Error::other(format!(
                "more than {most} files: move some away"
            )));
        }
        seen.push(Seen {
            name,
            size: meta.len(),
            mtime_ns: mtime_ns(&meta),
        });
    }
    seen.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

pub(super) fn mtime_ns(meta: &fs::Metadata) -> i64 {
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}

/// Whether a name says that the file is still being written.
pub(super) fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || TEMPORARY_ENDS.iter().any(|end| name.ends_with(end))
}

/// What a file is known by.
pub(super) fn identify(folder: &Path, seen: &Seen) -> io::Result<FileId> {
    let file = File::open(folder.join(&seen.name))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; FINGERPRINT_BYTES];
    for offset in [0, seen.size.saturating_sub(FINGERPRINT_BYTES as u64)] {
        let got = read_at(&file, &mut buffer, offset)?;
        hasher.update(buffer.get(..got).unwrap_or_default());
    }
    Ok(FileId {
        name: seen.name.as_bytes().to_vec(),
        size: seen.size,
        mtime_ns: seen.mtime_ns,
        fingerprint: *hasher.finalize().as_bytes(),
    })
}

/// Tells files that are whole from those that grow.
#[derive(Debug, Default)]
pub(super) struct Growth {
    files: BTreeMap<OsString, Watched>,
}

#[derive(Debug)]
struct Watched {
    size: u64,
    mtime_ns: i64,
    /// It has been so since.
    since: Instant,
    closed: bool,
}

impl Growth {
    /// After a look: those that are whole, in order. `closed`: names whose writer is done, as the kernel
    /// told since the last look.
    pub(super) fn whole<'a>(
        &mut self,
        seen: &'a [Seen],
        closed: &BTreeSet<OsString>,
        settle: Duration,
        now: Instant,
    ) -> Vec<&'a Seen> {
        let mut before = std::mem::take(&mut self.files);
        let mut whole = Vec::new();
        for file in seen {
            let as_before = before
                .remove(&file.name)
                .filter(|w| (w.size, w.mtime_ns) == (file.size, file.mtime_ns));
            let mut watched = as_before.unwrap_or(Watched {
                size: file.size,
                mtime_ns: file.mtime_ns,
                since: now,
                closed: false,
            });
            watched.closed |= closed.contains(&file.name);
            if watched.closed || now.saturating_duration_since(watched.since) >= settle {
                whole.push(file);
            }
            self.files.insert(file.name.clone(), watched);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, size: u64, mtime_ns: i64) -> Seen {
        Seen {
            name: name.into(),
            size,
            mtime_ns,
        }
    }

    #[test]
    fn a_file_is_whole_once_closed_or_when_it_stays_as_it_is() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        let settle = Duration::from_secs(5);
        let mut look = |files: &[Seen], closed: &[&str], at: u64| -> Vec<String> {
            let closed = closed.iter().map(OsString::from).collect();
            let now = start + Duration::from_secs(at);
            let whole = growth.whole(files, &closed, settle, now);
            whole
                .iter()
                .map(|s| s.name.to_string_lossy().into_owned())
                .collect()
        };
        let a = seen("a", 10, 1);
        assert!(look(std::slice::from_ref(&a), &[], 0).is_empty());
        assert!(look(&[a.clone(), seen("b", 5, 1)], &[], 4).is_empty());
        assert_eq!(look(&[a.clone(), seen("b", 6, 1)], &[], 5), ["a"]);
        // It grows on, and only its time moves.
        assert_eq!(look(&[a.clone(), seen("b", 6, 2)], &[], 9), ["a"]);
        assert_eq!(look(&[a.clone(), seen("b", 6, 2)], &[], 13), ["a"]);
        assert_eq!(look(&[a.clone(), seen("b", 6, 2)], &["b"], 13), ["a", "b"]);
        // Written again after it was closed.
        assert_eq!(look(&[a.clone(), seen("b", 9, 3)], &[], 14), ["a"]);
        assert_eq!(look(&[seen("b", 9, 3)], &[], 19), ["b"]);
        assert!(look(&[a], &[], 20).is_empty(), "it was away");
    }

    #[test]
    fn temporary_names_folders_and_empty_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.ts", "a.ts", ".c.ts", "d.ts.part", "e.tmp", "f.ts~"] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        fs::write(dir.path().join("empty.ts"), b"").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let names: Vec<OsString> = look(dir.path(), 9)
            .unwrap()
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["a.ts", "b.ts"]);
        assert!(look(dir.path(), 1).is_err());
        assert!(look(&dir.path().join("nosuch"), 9).is_err());
    }

    #[test]
    fn the_same_bytes_are_the_same_file_whatever_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ts");
        let id = |mtime_ns| {
            let size = fs::metadata(&path).unwrap().len();
            identify(dir.path(), &seen("a.ts", size, mtime_ns)).unwrap()
        };
        fs::write(&path, vec![7; 200_000]).unwrap();
        let first = id(1);
        assert!(first.is_same(&id(2)) && first != id(2));
        let mut other = vec![7; 200_000];
        other[199_999] = 8;
        fs::write(&path, other).unwrap();
        assert!(!first.is_same(&id(1)));
    }
}
