//! Writing one segment: bytes to a temporary file, parts made readable, then closed for ever.
//!
//! Keeps invariant 1: the file is fsynced, renamed and its folder fsynced before the row says *here*, and
//! that row and the live list's entry are one commit.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::Instant,
};

use model::{
    HoleReason, MAX_SEGMENT_BYTES, MediaDuration, PartInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName,
};

use crate::{
    OpenSegment, OpenView, Store,
    catalog::{holes, segments, taken},
    error::{AtPath, Result, StoreError},
    files::{self, hash_of, sync_folder},
    store::Opened,
};

/// A segment whose bytes failed their hash this often becomes a hole.
const MAX_HASH_FAILURES: u32 = 2;

/// Writes one segment. Dropping it leaves the partial on disk, to be resumed (hub) or closed (edge).
pub struct SegmentWriter {
    store: Store,
    stream: StreamName,
    open: OpenSegment,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    part_offset: u64,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SegmentWriter({} {:?}, {} bytes)",
            self.stream, self.open.number, self.bytes
        )
    }
}

impl SegmentWriter {
    /// `written`: the hasher and length of what the file already holds.
    pub(crate) fn new(
        store: Store,
        stream: StreamName,
        open: OpenSegment,
        path: PathBuf,
        file: File,
        written: (blake3::Hasher, u64),
    ) -> Self {
        let (hasher, bytes) = written;
        store.with_memory(&stream, |memory| {
            let view = OpenView {
                open,
                bytes,
                parts: Vec::new(),
            };
            let writers = memory.open.get(&open.number).map_or(0, |o| o.writers) + 1;
            memory.open.insert(open.number, Opened { view, writers });
            memory.last_write = Some(Instant::now());
        });
        Self {
            store,
            stream,
            open,
            path,
            file,
            hasher,
            bytes,
            part_offset: bytes,
        }
    }

    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    pub fn number(&self) -> SegmentNumber {
        self.open.number
    }

    /// Bytes written, whether in a finished part or not.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// BLAKE3 of what is written.
    pub fn hash(&self) -> SegmentHash {
        hash_of(&self.hasher)
    }

    /// Adds bytes to the part being written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.bytes.saturating_add(bytes.len() as u64) > MAX_SEGMENT_BYTES {
            return Err(self.wrong("it is longer than any segment may be"));
        }
        self.file.write_all(bytes).at(&self.path)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes all bytes since the last part a part, readable by others through `open_view` and `read`; then,
    /// with `sync_parts`, durable: readers don't wait for the disk, and the next part does.
    pub fn finish_part(&mut self, duration: MediaDuration, independent: bool) -> Result<()> {
        let part = PartInfo {
            offset: self.part_offset,
            bytes: self.bytes - self.part_offset,
            duration,
            independent,
        };
        self.part_offset = self.bytes;
        self.publish(|view| {
            view.bytes = self.bytes;
            view.parts.push(part);
        });
        self.store.tick();
        if self.store.inner().options.sync_parts {
            self.file.sync_data().at(&self.path)?;
            if part.offset == 0 {
                // The file's name: its own sync need not make that durable.
                let layout = &self.store.inner().layout;
                sync_folder(&layout.folder(&self.stream, self.open.number))?;
            }
        }
        tracing::trace!(stream = %self.stream, number = self.open.number.0, bytes = self.bytes, "part finished");
        Ok(())
    }

    /// Closes the segment before its end: what a source that can wait still has of it comes under another
    /// number. Otherwise as [`Self::close`].
    pub fn close_early(self, duration: MediaDuration) -> Result<SegmentInfo> {
        self.close_as(duration, None, false)
    }

    /// Closes the segment: fsync, rename, fsync of the folder, then row *here* and live list in one commit.
    ///
    /// With `expected`, length and hash must agree: otherwise the partial is dropped and the error says so;
    /// the second time the segment becomes a hole (*corrupt*).
    pub fn close(
        self,
        duration: MediaDuration,
        expected: Option<(u64, SegmentHash)>,
    ) -> Result<SegmentInfo> {
        self.close_as(duration, expected, true)
    }

    fn close_as(
        self,
        duration: MediaDuration,
        expected: Option<(u64, SegmentHash)>,
        whole: bool,
    ) -> Result<SegmentInfo> {
        let hash = self.hash();
        // Two sessions of a device may for a moment write one partial: then the file has more than we wrote.
        let is_ours = self.file.metadata().at(&self.path)?.len() == self.bytes;
        if !is_ours || expected.is_some_and(|expected| expected != (self.bytes, hash)) {
            return Err(self.refuse()?);
        }
        self.file.sync_all().at(&self.path)?;
        let layout = &self.store.inner().layout;
        let path = layout.segment(&self.stream, self.open.number);
        fs::rename(&self.path, &path).at(&path)?;
        sync_folder(&layout.folder(&self.stream, self.open.number))?;
        let info = SegmentInfo {
            number: self.open.number,
            run: self.open.run,
            wall_start: self.open.wall_start,
            media_start: self.open.media_start,
            duration,
            bytes: self.bytes,
            hash,
            independent: self.open.independent,
        };
        self.store.commit_closed(&self.stream, &info, whole)?;
        Ok(info)
    }

    /// The bytes are not those announced.
    fn refuse(&self) -> Result<StoreError> {
        let number = self.open.number;
        let failures = self.store.change_live(&self.stream, |c, row| {
            let failures = segments::fail(c, row.id, number)?;
            if failures >= MAX_HASH_FAILURES {
                holes::bury(c, row.id, &(number..=number), HoleReason::Corrupt)?;
            }
            Ok(failures)
        })?;
        files::remove(&self.path)?;
        let what = if failures >= MAX_HASH_FAILURES {
            "its bytes failed their hash again: given up as corrupt"
        } else {
            "its bytes fail their hash: asked for once more"
        };
        Ok(self.wrong(what))
    }

    fn wrong(&self, what: &str) -> StoreError {
        StoreError::Segment {
            stream: self.stream.clone(),
            number: self.open.number,
            what: what.to_owned(),
        }
    }

    /// Throws the partial away. The number stays burnt; an announced segment may be opened again.
    pub fn discard(self) -> Result<()> {
        self.store.abandon(&self.stream, self.open.number)
    }

    fn publish(&self, change: impl FnOnce(&mut OpenView)) {
        self.store.with_memory(&self.stream, |memory| {
            if let Some(opened) = memory.open.get_mut(&self.open.number) {
                change(&mut opened.view);
            }
            memory.last_write = Some(Instant::now());
        });
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        let number = self.open.number;
        self.store.with_memory(&self.stream, |memory| {
            if let Some(opened) = memory.open.get_mut(&number) {
                opened.writers -= 1;
                if opened.writers == 0 {
                    memory.open.remove(&number);
                }
            }
        });
        self.store.tick();
    }
}

impl Store {
    /// Row *here*, how far a file being taken is, live list; then everything that readers see. `whole`: it
    /// ends where the segmenter ended it.
    pub(crate) fn commit_closed(
        &self,
        stream: &StreamName,
        info: &SegmentInfo,
        whole: bool,
    ) -> Result<()> {
        let edge = self.inner().options.local_playlists;
        let now = self.steady_now();
        let wall_start = self.change_live(stream, |c, row| {
            if edge {
                taken::note_closed(c, stream, info, whole)?;
            }
            Ok(segments::close(c, row.id, info, now)?)
        })?;
        let info = &SegmentInfo {
            wall_start,
            ..*info
        };
        tracing::debug!(%stream, number = info.number.0, bytes = info.bytes, duration_ms = info.duration.as_millis(), "segment closed");
        self.write_journal(stream, info);
        self.write_local_playlists(stream, info);
        if self.inner().options.local_playlists {
            self.renumber_closed(stream);
        }
        Ok(())
    }

    /// Gives an open segment up. On an edge, where nobody else has it, that is a hole: its first parts may
    /// have gone out, and the hub must not wait for the rest.
    pub(crate) fn abandon(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        let edge = self.inner().options.local_playlists;
        self.change_live(stream, |c, row| {
            if edge {
                holes::bury(c, row.id, &(number..=number), HoleReason::Corrupt)?;
                taken::note_void(c, stream, number)?;
            } else {
                segments::unopen(c, row.id, number)?;
            }
            Ok(())
        })?;
        files::remove(&self.inner().layout.partial(stream, number))
    }
}
