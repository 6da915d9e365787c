//! Writing MPEG transport streams: one program, laid out the same in every run.
//!
//! Every part begins with PAT and PMT and with an access unit of its own. Continuity counters and
//! timestamps run on for the life of a [`TsMux`], which is the life of a run (RFC 8216bis 3). PCRs are at
//! most 100 ms apart. Key frames come with their access unit delimiter and parameter sets ([`preamble`]).
//!
//! `mpeg2ts` writes whatever has fields; [`packets`] says which bytes it does not write, and why.

mod packets;
mod preamble;

use bytes::Bytes;
use model::{MediaDuration, MediaTime};

use crate::access_unit::{AccessUnit, Track, TrackFormat, TrackId};
use packets::{Carried, Packets, PesStart, Pid};

/// The one video track; audio tracks come behind it, in their order, whether it is there or not.
const VIDEO_PID: u16 = 0x100;
const FIRST_AUDIO_PID: u16 = 0x101;
const VIDEO_STREAM_ID: u8 = 0xe0;
const FIRST_AUDIO_STREAM_ID: u8 = 0xc0;

/// Sound is gathered for so long before it becomes a PES: four frames of AAC at 48 kHz.
const AUDIO_PES_SPAN: MediaDuration = MediaDuration::from_millis(80);
/// PES_packet_length has 16 bits and counts some fields too.
const MAX_AUDIO_PES_BYTES: usize = 60_000;
/// Where timestamps begin if the source's would make the PCR negative: as Apple's tools do.
const SHIFTED_START: MediaDuration = MediaDuration::from_millis(10_000);

/// Writes the access units of one run; lives as long as the run, so that counters run on.
#[derive(Debug)]
pub struct TsMux {
    streams: Vec<Stream>,
    packets: Packets,
}

/// One track on its way out.
#[derive(Debug)]
struct Stream {
    track: TrackId,
    format: TrackFormat,
    pid: Pid,
    stream_id: u8,
    gathered: Gathered,
}

/// ADTS frames that wait to become a PES.
#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    first_pts: MediaTime,
}

/// What to add to the timestamps of a run that begins at `first_dts`, so that neither they nor the PCR
/// before them are negative: nothing, for sources that have a clock of their own.
pub fn shift_for(first_dts: MediaTime) -> MediaDuration {
    let since_zero = first_dts - MediaTime(0);
    if since_zero >= packets::PCR_LEAD {
        MediaDuration::ZERO
    } else if since_zero + SHIFTED_START >= packets::PCR_LEAD {
        SHIFTED_START
    } else {
        SHIFTED_START - since_zero
    }
}

impl TsMux {
    /// For the tracks of one run, at most [`MAX_TRACKS`](crate::access_unit::MAX_TRACKS) (others are left
    /// out); `shift` is added to all timestamps (see [`shift_for`]).
    pub fn new(tracks: &[Track], shift: MediaDuration) -> Self {
        let mut audio_tracks = 0u8;
        let mut streams = Vec::new();
        for track in tracks.iter().take(crate::access_unit::MAX_TRACKS) {
            let (pid, stream_id) = if track.is_video() {
                (VIDEO_PID, VIDEO_STREAM_ID)
            } else {
                let place = audio_tracks;
                audio_tracks += 1;
                (
                    FIRST_AUDIO_PID + u16::from(place),
                    FIRST_AUDIO_STREAM_ID + place,
                )
            };
            streams.push(Stream {
                track: track.id,
                format: track.format.clone(),
                pid: Pid::new(pid),
                stream_id,
                gathered: Gathered::default(),
            });
        }
        let carried: Vec<Carried> = streams
            .iter()
            .map(|stream| Carried::of(&stream.format, stream.pid.number))
            .collect();
        Self {
            packets: Packets::new(&carried, shift),
            streams,
        }
    }

    /// Appends an access unit to the part being written; one of no track of the run is passed over.
    pub fn write(&mut self, unit: &AccessUnit) {
        if !self.streams.iter().any(|s| s.track == unit.track) {
            return;
        }
        if self.packets.part.is_empty() {
            self.packets.begin_part();
        }
        for stream in &mut self.streams {
            let ripe = unit.dts - stream.gathered.first_pts >= AUDIO_PES_SPAN;
            let full = stream.track == unit.track
                && stream.gathered.bytes.len() + unit.data.len() > MAX_AUDIO_PES_BYTES;
            if ripe || full {
                stream.flush(&mut self.packets);
            }
        }
        if let Some(stream) = self.streams.iter_mut().find(|s| s.track == unit.track) {
            stream.write(unit, &mut self.packets);
        }
    }

    /// Bytes of the part so far.
    pub fn part_bytes(&self) -> usize {
        let waiting: usize = self.streams.iter().map(|s| s.gathered.bytes.len()).sum();
        self.packets.part.len() + waiting
    }

    /// Ends the part; the next access unit begins one with PAT and PMT. Empty if nothing was written.
    pub fn finish_part(&mut self) -> Bytes {
        for stream in &mut self.streams {
            stream.flush(&mut self.packets);
        }
        self.packets.finish_part()
    }
}

impl Stream {
    fn write(&mut self, unit: &AccessUnit, packets: &mut Packets) {
        if let TrackFormat::Aac { .. } = self.format {
            if self.gathered.bytes.is_empty() {
                self.gathered.first_pts = unit.pts;
            }
            self.gathered.bytes.extend_from_slice(&unit.data);
            return;
        }
        let pieces = preamble::with_preamble(&self.format, &unit.data, unit.key);
        let start = PesStart {
            stream_id: self.stream_id,
            pts: unit.pts,
            dts: unit.dts,
            random_access: unit.key,
        };
        packets.write_pes(&mut self.pid, &start, pieces.as_slice());
    }

    fn flush(&mut self, packets: &mut Packets) {
        if self.gathered.bytes.is_empty() {
            return;
        }
        let start = PesStart {
            stream_id: self.stream_id,
            pts: self.gathered.first_pts,
            dts: self.gathered.first_pts,
            // Without pictures, decoding can begin with any sound.
            random_access: packets.is_clock(&self.pid),
        };
        packets.write_pes(&mut self.pid, &start, &[&self.gathered.bytes]);
        self.gathered.bytes.clear();
    }
}
