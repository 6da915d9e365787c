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
    HoleReason, MediaDuration, PartInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName,
};

use crate::{
    OpenSegment, OpenView, Store,
    catalog::{segments, streams},
    error::{AtPath, Result, StoreError},
    files::{hash_of, sync_folder},
    store::wall_now,
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
        let writer = Self {
            store,
            stream,
            open,
            path,
            file,
            hasher,
            bytes,
            part_offset: bytes,
        };
        writer.publish(|view| view.bytes = bytes);
        writer
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
        self.file.write_all(bytes).at(&self.path)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes all bytes since the last part a part, readable by others through `open_view` and `read`.
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
        Ok(())
    }

    /// Closes the segment: fsync, rename, fsync of the folder, then row *here* and live list in one commit.
    ///
    /// With `expected`, length and hash must agree: otherwise the partial is dropped and the error says so;
    /// the second time the segment becomes a hole (*corrupt*).
    pub fn close(
        mut self,
        duration: MediaDuration,
        expected: Option<(u64, SegmentHash)>,
    ) -> Result<SegmentInfo> {
        let hash = self.hash();
        if expected.is_some_and(|expected| expected != (self.bytes, hash)) {
            return Err(self.refuse()?);
        }
        self.file.flush().at(&self.path)?;
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
        self.store.commit_closed(&self.stream, &info)?;
        Ok(info)
    }

    /// The bytes are not those announced.
    fn refuse(&mut self) -> Result<StoreError> {
        let number = self.open.number;
        crate::files::remove(&self.path)?;
        let inner = self.store.inner();
        let failures = inner.catalog.write(|c| {
            let row = streams::get(c, &self.stream)?;
            let failures = segments::fail(c, row.id, number)?;
            if failures >= MAX_HASH_FAILURES {
                segments::bury(c, row.id, &(number..=number), HoleReason::Corrupt)?;
            }
            Ok(failures)
        })?;
        if failures >= MAX_HASH_FAILURES {
            self.store.advance_live(&self.stream)?;
        }
        let what = if failures >= MAX_HASH_FAILURES {
            "its bytes failed their hash again: given up as corrupt"
        } else {
            "its bytes fail their hash: asked for once more"
        };
        Ok(StoreError::Segment {
            stream: self.stream.clone(),
            number,
            what: what.to_owned(),
        })
    }

    /// Throws the partial away. The number stays burnt; an announced segment may be opened again.
    pub fn discard(self) -> Result<()> {
        crate::files::remove(&self.path)?;
        let number = self.open.number;
        self.store.inner().catalog.write(|c| {
            let row = streams::get(c, &self.stream)?;
            Ok(segments::unopen(c, row.id, number)?)
        })
    }

    fn publish(&self, change: impl FnOnce(&mut OpenView)) {
        self.store.with_memory(&self.stream, |memory| {
            let view = memory.open.entry(self.open.number);
            change(view.or_insert_with(|| OpenView {
                open: self.open,
                bytes: 0,
                parts: Vec::new(),
            }));
            memory.last_write = Some(Instant::now());
        });
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        let number = self.open.number;
        self.store
            .with_memory(&self.stream, |memory| memory.open.remove(&number));
        self.store.tick();
    }
}

impl Store {
    /// Row *here*, live list, then everything that readers see.
    pub(crate) fn commit_closed(&self, stream: &StreamName, info: &SegmentInfo) -> Result<()> {
        let now = wall_now();
        let advanced = self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            segments::close(c, row.id, info)?;
            crate::live::advance(c, &row, self.inner().window(), now)
        })?;
        tracing::debug!(%stream, number = info.number.0, bytes = info.bytes, duration_ms = info.duration.as_millis(), "segment closed");
        self.publish_live(stream, advanced);
        self.write_local_playlists(stream, info);
        Ok(())
    }
}
