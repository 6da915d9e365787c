//! Where segments lie and how they become durable. No catalog here.
//!
//! `segments/{stream}/{number div 4096}/{number}.ts`; temporary names don't end in `.ts`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use model::{SegmentHash, SegmentNumber, StreamName};

use crate::error::{AtPath, Result};

/// Segments in one folder: 2.3 hours of two-second segments, quick to list on any file system.
pub(crate) const SEGMENTS_PER_FOLDER: u64 = 4_096;

/// Begins the folder name of a stream that is being removed.
const REMOVED: &str = ".removed-";

/// Bytes read at a time when a file is hashed.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// The layout below a data directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.join("segments"),
        }
    }

    /// Names of all streams that have a folder, ascending.
    pub(crate) fn streams(&self) -> Result<Vec<StreamName>> {
        let mut names: Vec<StreamName> = self
            .entries()?
            .iter()
            .filter(|path| path.is_dir())
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Whether any segment or partial lies in a stream's folders.
    pub(crate) fn has_segments(&self, stream: &StreamName) -> Result<bool> {
        for folder in self.newest_folders(stream, usize::MAX)? {
            if !self.list_folder(&folder)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a removed stream's folder goes before it is deleted: no stream's name, so that a kill in between
    /// brings nothing back.
    pub(crate) fn removal(&self, stream: &StreamName) -> PathBuf {
        self.root.join(format!("{REMOVED}{stream}"))
    }

    /// Folders of removed streams that are left.
    pub(crate) fn removed(&self) -> Result<Vec<PathBuf>> {
        let mut all = self.entries()?;
        all.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(REMOVED))
        });
        Ok(all)
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        match fs::read_dir(&self.root) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).at(&self.root),
        }
    }

    pub(crate) fn stream(&self, stream: &StreamName) -> PathBuf {
        self.root.join(stream.as_str())
    }

    pub(crate) fn folder(&self, stream: &StreamName, number: SegmentNumber) -> PathBuf {
        self.stream(stream)
            .join((number.0 / SEGMENTS_PER_FOLDER).to_string())
    }

    pub(crate) fn segment(&self, stream: &StreamName, number: SegmentNumber) -> PathBuf {
        self.folder(stream, number).join(format!("{number}.ts"))
    }

    pub(crate) fn partial(&self, stream: &StreamName, number: SegmentNumber) -> PathBuf {
        self.folder(stream, number).join(format!("{number}.part"))
    }

    /// Makes a stream's folder for `number`, durably.
    pub(crate) fn make_folder(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<PathBuf> {
        let folder = self.folder(stream, number);
        if !folder.is_dir() {
            fs::create_dir_all(&folder).at(&folder)?;
            for made in [&folder, &self.stream(stream), &self.root] {
                if let Some(parent) = made.parent() {
                    sync_folder(parent)?;
                }
            }
        }
        Ok(folder)
    }

    /// Numbers of whole segments and of partials in one folder; other names are none of ours.
    pub(crate) fn list_folder(&self, folder: &Path) -> Result<Vec<(SegmentNumber, FileKind)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).at(folder)? {
            let path = entry.at(folder)?.path();
            let stem = path.file_stem().and_then(|s| s.to_str());
            let Some(number) = stem.and_then(|s| s.parse().ok()) else {
                continue;
            };
            match path.extension().and_then(|e| e.to_str()) {
                Some("ts") => found.push((number, FileKind::Segment)),
                Some("part") => found.push((number, FileKind::Partial)),
                _ => {}
            }
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        Ok(found)
    }

    /// The newest `count` segment folders of a stream.
    pub(crate) fn newest_folders(&self, stream: &StreamName, count: usize) -> Result<Vec<PathBuf>> {
        let root = self.stream(stream);
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).at(&root),
        };
        let mut folders: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let index = path.file_name()?.to_str()?.parse().ok()?;
                path.is_dir().then_some((index, path))
            })
            .collect();
        folders.sort_unstable();
        Ok(folders
            .into_iter()
            .rev()
            .take(count)
            .map(|(_, path)| path)
            .collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment,
    Partial,
}

/// Makes a data directory and what is missing above it, durably: else a loss of power takes the directory,
/// whatever was synced in it.
pub fn make_data_dir(dir: &Path) -> io::Result<()> {
    let parent = |folder: &Path| match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let missing = dir.ancestors().take_while(|folder| !folder.is_dir());
    let missing: Vec<&Path> = missing.filter(|f| !f.as_os_str().is_empty()).collect();
    fs::create_dir_all(dir)?;
    if missing.is_empty() {
        // A start that was killed may have made it and no more. Where we can't read the parent, it wasn't us.
        let _ = File::open(parent(dir)).and_then(|f| f.sync_all());
    }
    for folder in missing {
        File::open(parent(folder))?.sync_all()?;
    }
    Ok(())
}

/// Makes renames and new names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).at(folder)
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}

/// Hashes a file's bytes from the start; returns the hasher, so that more can follow, and the length.
pub(crate) fn hash_file(path: &Path) -> Result<(blake3::Hasher, u64)> {
    let mut file = File::open(path).at(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((hasher, bytes)),
            Ok(n) => {
                hasher.update(chunk.get(..n).unwrap_or_default());
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at(path),
        }
    }
}

/// The same from the disk itself, not from memory, and without pushing anything else out of memory.
pub(crate) fn hash_file_uncached(path: &Path) -> Result<(blake3::Hasher, u64)> {
    let file = File::open(path).at(path)?;
    // An advice: where it isn't taken, the bytes are hashed all the same.
    let forget = || rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let _ = forget();
    let hashed = hash_file(path);
    let _ = forget();
    hashed
}

/// The hash so far.
pub(crate) fn hash_of(hasher: &blake3::Hasher) -> SegmentHash {
    SegmentHash(*hasher.finalize().as_bytes())
}

/// Bytes free for us on the file system that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)
        .map_err(io::Error::from)
        .at(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether the file system that holds `path` takes anything at all.
pub(crate) fn writable(path: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(path)
        .map_err(io::Error::from)
        .at(path)?;
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)).at(path);
    }
    // Some file systems count no inodes.
    if stat.f_bavail == 0 || (stat.f_files > 0 && stat.f_ffree == 0) {
        return Err(io::Error::from(io::ErrorKind::StorageFull)).at(path);
    }
    Ok(())
}

/// Bytes written to see whether a disk works: a segment of a good camera, so that a disk on the edge of full
/// is not taken for well with each segment.
const TRY_BYTES: usize = 2 << 20;

/// Writes a file, durably, and removes it.
pub(crate) fn try_writing(folder: &Path) -> Result<()> {
    let path = folder.join("try.tmp");
    let tried = File::create(&path)
        .and_then(|mut file| {
            file.write_all(&vec![0; TRY_BYTES])?;
            file.sync_all()
        })
        .at(&path);
    remove(&path)?;
    tried
}

/// What lies ready to be given up so that a full disk can still be told what to delete: the catalog writes
/// before it deletes. Enough for its log of a few hundred rows.
const BALLAST_BYTES: u64 = 1 << 20;

fn ballast(data_dir: &Path) -> PathBuf {
    data_dir.join("ballast")
}

/// Lays ballast in, where there is room.
pub(crate) fn lay_ballast(data_dir: &Path) -> Result<()> {
    let path = ballast(data_dir);
    if fs::metadata(&path).is_ok_and(|meta| meta.len() == BALLAST_BYTES) {
        return Ok(());
    }
    let file = File::create(&path).at(&path)?;
    let laid = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES);
    if let Err(error) = laid {
        remove(&path)?;
        return Err(io::Error::from(error)).at(&path);
    }
    Ok(())
}

/// Throws it overboard.
pub(crate) fn drop_ballast(data_dir: &Path) -> Result<()> {
    remove(&ballast(data_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_made_with_all_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        make_data_dir(&deep).unwrap();
        make_data_dir(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(make_data_dir(&dir.path().join("file/below")).is_err());
    }
}
