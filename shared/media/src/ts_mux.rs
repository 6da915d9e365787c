//! Writing MPEG transport streams: one program, laid out the same in every run.

use bytes::Bytes;

use crate::access_unit::{AccessUnit, Track};

/// Writes the access units of one run; lives as long as the run, so that counters run on.
#[derive(Debug)]
pub struct TsMux {}

impl TsMux {
    pub fn new(tracks: &[Track]) -> Self {
        let _ = tracks;
        Self {}
    }

    /// Appends an access unit to the part being written.
    pub fn write(&mut self, unit: &AccessUnit) {
        let _ = unit;
    }

    /// Bytes of the part so far.
    pub fn part_bytes(&self) -> usize {
        0
    }

    /// Ends the part; the next access unit begins one with PAT and PMT.
    pub fn finish_part(&mut self) -> Bytes {
        Bytes::new()
    }
}
