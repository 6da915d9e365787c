//! From bytes to source events.

use crate::access_unit::SourceEvent;

/// A transport stream being read, pushed in pieces of any size.
#[derive(Debug, Default)]
pub struct Demuxer {}

impl Demuxer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the source and appends what they complete to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<SourceEvent>) {
        let _ = (bytes, out);
    }

    /// The source has ended: appends what was still being put together.
    pub fn finish(&mut self, out: &mut Vec<SourceEvent>) {
        let _ = out;
    }
}
