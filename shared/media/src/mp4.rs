//! Reading MP4 files by asking for byte ranges: no I/O here, constant memory beside the index.
//!
//! The loop: [`Mp4Reader::poll`] until it says `End`; on `Read`, read and answer with
//! [`Mp4Reader::handle_read`].

use bytes::Bytes;
use model::MediaDuration;

use crate::access_unit::{SourceEvent, Track};

/// What the reader wants or has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mp4Poll {
    /// Read `len` bytes at `offset` and hand them to [`Mp4Reader::handle_read`]; fewer mean that the file
    /// ends there.
    Read {
        offset: u64,
        len: usize,
    },
    /// The index has been read. Comes once, before the first event.
    Ready(Mp4Info),
    Event(SourceEvent),
    /// Nothing more will come.
    End,
}

/// What the index says of the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mp4Info {
    pub tracks: Vec<Track>,
    /// The longest track's duration.
    pub duration: MediaDuration,
    /// The longest distance between key frames (or from the last to the end); None without video.
    pub longest_key_distance: Option<MediaDuration>,
    /// Bytes of all carried samples, for progress.
    pub media_bytes: u64,
}

/// Why a file can't be read at all. The file, or whoever chose it, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mp4Error {
    #[error("the file is empty")]
    Empty,
}

/// An MP4 file being read.
#[derive(Debug)]
pub struct Mp4Reader {
    file_size: u64,
}

impl Mp4Reader {
    pub fn new(file_size: u64) -> Self {
        Self { file_size }
    }

    /// The next thing to do or to take; an error is final.
    pub fn poll(&mut self) -> Result<Mp4Poll, Mp4Error> {
        if self.file_size == 0 {
            return Err(Mp4Error::Empty);
        }
        Ok(Mp4Poll::End)
    }

    /// The answer to the last `Read`.
    pub fn handle_read(&mut self, offset: u64, data: Bytes) {
        let _ = (offset, data);
    }
}
