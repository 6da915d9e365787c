//! Files of watched folders (edge): which were taken, how far, and whether the hub has them.
//!
//! How far a file is stands in the same commit as each of its segments, so that a restart goes on behind
//! what is here: nothing of a file is taken twice, nothing is left out. Which file comes next, and what
//! becomes of it afterwards, is the caller's.

use model::{SegmentNumber, StreamName};

use crate::{
    Store,
    catalog::{streams, taken},
    error::Result,
};

/// Files remembered for each stream; with more, a folder is refused. Each costs some 200 bytes.
pub const MAX_TAKEN: usize = 100_000;

/// What tells a file from another of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileId {
    /// Its name in the folder, as bytes: it need not be text.
    pub name: Vec<u8>,
    pub size: u64,
    pub mtime_ns: i64,
    /// Of its first and last bytes: it stays when only the modification time is set.
    pub fingerprint: [u8; 32],
}

impl FileId {
    /// The same file, whatever its modification time says by now.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.size == other.size && self.fingerprint == other.fingerprint
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenState {
    UnderWay,
    /// Another came between, or the program ended.
    Interrupted,
    /// All of it is cut.
    Whole,
    Refused,
}

impl TakenState {
    pub(crate) const fn code(self) -> i64 {
        match self {
            Self::UnderWay => 0,
            Self::Interrupted => 1,
            Self::Whole => 2,
            Self::Refused => 3,
        }
    }

    pub(crate) const fn from_code(code: i64) -> Self {
        match code {
            0 => Self::UnderWay,
            2 => Self::Whole,
            3 => Self::Refused,
            _ => Self::Interrupted,
        }
    }
}

/// How much of a file is in the store, counted as the segmenter cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Whole segments.
    pub segments: u64,
    /// Bytes of the next one that are here already, up to the end of a part.
    pub bytes: u64,
    /// The run of the last of them.
    pub run: Option<SegmentNumber>,
}

/// A file that was taken, or begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub id: FileId,
    /// The target duration it is cut with, in milliseconds.
    pub target_ms: u64,
    pub state: TakenState,
    pub progress: Progress,
    /// Lowest and highest number of its segments, as they were recorded: they may have got others since.
    pub first: Option<SegmentNumber>,
    pub last: Option<SegmentNumber>,
    /// Numbers between them that hold nothing of it.
    pub void: u64,
    /// Why it was refused.
    pub reason: Option<String>,
}

/// Whether the hub has a file's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnHub {
    /// All of them, stored.
    All,
    /// So many are on their way.
    NotYet(u64),
    /// So many were given up here, or settled there without their bytes: the file is the only copy.
    Lost(u64),
}

impl Store {
    /// Files of a stream's folder, by name; at most [`MAX_TAKEN`].
    pub fn taken(&self, stream: &StreamName) -> Result<Vec<Taken>> {
        self.inner()
            .catalog
            .read(|c| Ok(taken::all(c, stream, MAX_TAKEN)?))
    }

    /// What is known of a file by its name.
    pub fn taken_file(&self, stream: &StreamName, name: &[u8]) -> Result<Option<Taken>> {
        self.inner()
            .catalog
            .read(|c| Ok(taken::find(c, stream, name)?))
    }

    /// A file is being taken from now on, all others of the stream are not: how it is to be cut and how
    /// much of it is here. A segment that was left open is closed before.
    pub fn begin_taken(&self, stream: &StreamName, id: &FileId, target_ms: u64) -> Result<Taken> {
        if self.stream_names()?.contains(stream) {
            self.close_left_open(stream)?;
        }
        self.inner().catalog.write(|c| {
            taken::interrupt(c, stream)?;
            let known = taken::find(c, stream, &id.name)?.filter(|known| known.id.is_same(id));
            if known.is_some() {
                taken::set_state(c, stream, &id.name, TakenState::UnderWay, None)?;
                taken::set_mtime(c, stream, &id.name, id.mtime_ns)?;
            } else {
                taken::put(c, stream, id, target_ms)?;
            }
            let begun = taken::find(c, stream, &id.name)?;
            Ok(begun.ok_or(rusqlite::Error::QueryReturnedNoRows)?)
        })
    }

    /// How a file's taking has ended; `reason` for one that is refused.
    pub fn set_taken(
        &self,
        stream: &StreamName,
        name: &[u8],
        state: TakenState,
        reason: Option<&str>,
    ) -> Result<()> {
        self.inner()
            .catalog
            .write(|c| Ok(taken::set_state(c, stream, name, state, reason)?))
    }

    /// Only the modification time of a file was set.
    pub fn touch_taken(&self, stream: &StreamName, name: &[u8], mtime_ns: i64) -> Result<()> {
        self.inner()
            .catalog
            .write(|c| Ok(taken::set_mtime(c, stream, name, mtime_ns)?))
    }

    /// The file is gone for good: another of its name is taken anew.
    pub fn forget_taken(&self, stream: &StreamName, name: &[u8]) -> Result<()> {
        self.inner()
            .catalog
            .write(|c| Ok(taken::forget(c, stream, name)?))
    }

    /// Whether the hub has what was cut of a file.
    pub fn taken_on_hub(&self, stream: &StreamName, name: &[u8]) -> Result<OnHub> {
        self.flush_marks()?;
        self.inner().catalog.read(|c| {
            let Some(file) = taken::find(c, stream, name)? else {
                return Ok(OnHub::NotYet(1));
            };
            let (Some(first), Some(last)) = (file.first, file.last) else {
                // Nothing was cut of it, so nothing of it is anywhere else.
                return Ok(OnHub::Lost(1));
            };
            let row = streams::get(c, stream)?;
            let (unstored, lost) = taken::missing_on_hub(c, row.id, first, last)?;
            Ok(match (lost.saturating_sub(file.void), unstored) {
                (0, 0) => OnHub::All,
                (0, unstored) => OnHub::NotYet(unstored),
                (lost, _) => OnHub::Lost(lost),
            })
        })
    }

    pub(crate) fn is_being_taken(&self, stream: &StreamName) -> Result<bool> {
        self.inner()
            .catalog
            .read(|c| Ok(taken::is_under_way(c, stream)?))
    }

    /// `run` records this stream: it is ended once its configuration drops it.
    pub fn mark_recorded(&self, stream: &StreamName) -> Result<()> {
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::set_recorded(c, row.id, true)?)
        })
    }

    /// Streams that `run` has recorded and that are not ended.
    pub fn recorded_streams(&self) -> Result<Vec<StreamName>> {
        let rows = self.inner().catalog.read(|c| Ok(streams::recorded(c)?))?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    }

    /// Ends a stream after the last number that it used, since nobody records it any more.
    pub fn end_recorded(&self, stream: &StreamName) -> Result<()> {
        self.close_left_open(stream)?;
        let last = self.floor(stream)?.0.checked_sub(1).map(SegmentNumber);
        self.end_stream(stream, last)?;
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::set_recorded(c, row.id, false)?)
        })
    }
}
