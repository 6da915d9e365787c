//! What sources hand to the segmenter: tracks and access units on a 64-bit 90 kHz timeline.
//!
//! Plain values; parsing lives with each codec, cutting in `segmenter`.

use bytes::Bytes;
use model::MediaTime;

/// Most tracks a run can have (one video, the rest audio).
pub const MAX_TRACKS: usize = 8;

/// A track of a source, by its place in the list of tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackId(pub u8);

/// How a track's access units are coded, with what a decoder needs before the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrackFormat {
    /// Annex B access units. Parameter sets are whole NAL units without start codes.
    H264 {
        sps: Vec<Bytes>,
        pps: Vec<Bytes>,
        info: VideoInfo,
    },
    /// Annex B access units. Parameter sets are whole NAL units without start codes.
    H265 {
        vps: Vec<Bytes>,
        sps: Vec<Bytes>,
        pps: Vec<Bytes>,
        info: VideoInfo,
    },
    /// One ADTS frame (header included) per access unit.
    Aac { info: AudioInfo },
}

/// What the parameter sets say of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoInfo {
    pub width: u32,
    pub height: u32,
    /// RFC 6381: `avc1.64001f`, `hvc1.1.6.L93.B0`.
    pub codec: String,
}

/// What an AudioSpecificConfig or ADTS header says of the sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudioInfo {
    pub sample_rate: u32,
    /// 1 to 8 (7.1).
    pub channels: u8,
    /// RFC 6381: `mp4a.40.2`.
    pub codec: String,
}

/// One track of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    pub id: TrackId,
    pub format: TrackFormat,
}

impl Track {
    pub fn is_video(&self) -> bool {
        !matches!(self.format, TrackFormat::Aac { .. })
    }
}

/// One coded picture or audio frame with its timestamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUnit {
    pub track: TrackId,
    /// Presentation time, unwrapped.
    pub pts: MediaTime,
    /// Decoding time, unwrapped; equal to `pts` for audio.
    pub dts: MediaTime,
    /// Decoding can begin here (IDR, CRA, BLA, or a recovery point); always true for audio.
    pub key: bool,
    /// Annex B for video, one ADTS frame for audio.
    pub data: Bytes,
}

/// What a demuxer tells, in the order of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// The tracks of what follows. Comes before the first access unit and again whenever a track or its
    /// parameter sets change, which starts a new run.
    Tracks(Vec<Track>),
    AccessUnit(AccessUnit),
    /// The source's timeline broke (a jump that is no wrap, a declared discontinuity): a new run follows.
    Discontinuity,
    /// Something was wrong and was stepped over; reading goes on.
    Warning(SourceWarning),
}

/// Something wrong in a source, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceWarning {
    /// Byte offset in the source.
    pub offset: u64,
    /// PID, for TS.
    pub pid: Option<u16>,
    /// Lower-case fragment: what was wrong and, where it helps, what to do.
    pub what: String,
}
