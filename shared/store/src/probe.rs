//! What a segment's bytes tell of it: its times, tracks, and where it is torn. No disk and no catalog here.

use media::{
    access_unit::{SourceEvent, Track, TrackFormat},
    ts::demux::Demuxer,
};
use model::{MediaDuration, MediaTime};

const TS_PACKET_BYTES: usize = 188;

const SYNC_BYTE: u8 = 0x47;

/// `payload_unit_start_indicator`: a PES packet or a section begins here.
const UNIT_START: u8 = 0x40;

/// The packet has an adaptation field.
const ADAPTATION_FIELD: u8 = 0x20;

const STUFFING: u8 = 0xff;

/// What was found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Presentation time of its first sample, as its timestamps say (33 bits wide at the source).
    pub(crate) first_pts: MediaTime,
    /// From the first to the last access unit of its first track, and one more like it.
    pub(crate) duration: MediaDuration,
    /// Begins with a key frame, or has no video.
    pub(crate) independent: bool,
    /// CODECS of RFC 6381, comma-separated, video first.
    pub(crate) codecs: String,
    pub(crate) resolution: Option<(u32, u32)>,
}

/// Looks through a segment; None: it holds no whole access unit.
pub(crate) fn probe(bytes: &[u8]) -> Option<Probe> {
    let mut events = Vec::new();
    let mut demuxer = Demuxer::new();
    demuxer.push(bytes, &mut events);
    demuxer.finish(&mut events);
    let tracks = events.iter().rev().find_map(|event| match event {
        SourceEvent::Tracks(tracks) => Some(tracks.as_slice()),
        _ => None,
    })?;
    let video = tracks.iter().find(|t| t.is_video());
    let mut times = Vec::new();
    let mut independent = None;
    for event in &events {
        if let SourceEvent::AccessUnit(unit) = event
            && video.is_none_or(|video| video.id == unit.track)
        {
            times.push(unit.pts.0);
            independent.get_or_insert(unit.key);
        }
    }
    times.sort_unstable();
    times.dedup();
    let (first, last) = (times.first()?, times.last()?);
    let count = i64::try_from(times.len()).ok()?;
    // One access unit alone is taken for a fortieth of a second.
    let one = if count > 1 {
        (last - first) / (count - 1)
    } else {
        2_250
    };
    let (codecs, resolution) = describe(tracks);
    Some(Probe {
        first_pts: MediaTime(*first),
        duration: MediaDuration(last - first + one.max(1)),
        independent: independent?,
        codecs,
        resolution,
    })
}

/// Codecs and resolution as the segmenter tells them of a run.
fn describe(tracks: &[Track]) -> (String, Option<(u32, u32)>) {
    let mut codecs: Vec<&str> = Vec::new();
    let mut resolution = None;
    let (video, sound): (Vec<_>, Vec<_>) = tracks.iter().partition(|track| track.is_video());
    for track in video.into_iter().chain(sound) {
        let codec = match &track.format {
            TrackFormat::H264 { info, .. } | TrackFormat::H265 { info, .. } => {
                resolution.get_or_insert((info.width, info.height));
                &info.codec
            }
            TrackFormat::Aac { info } => &info.codec,
        };
        if !codecs.contains(&codec.as_str()) {
            codecs.push(codec);
        }
    }
    (codecs.join(","), resolution)
}

/// How much of a file is whole: all of it, or, where it is torn, what lies before the access unit (or table)
/// that the tear is in. A tear is a length that is no whole number of packets, or (after a loss of power) a
/// packet without its sync byte.
pub(crate) fn whole_bytes(bytes: &[u8]) -> usize {
    let (packets, rest) = bytes.as_chunks::<TS_PACKET_BYTES>();
    let good = packets
        .iter()
        .take_while(|packet| packet.first() == Some(&SYNC_BYTE))
        .count();
    let tail = packets.get(good).map_or(rest, |packet| packet.as_slice());
    let begins = match tail {
        [] => true,
        // A torn packet that itself begins something has torn nothing before it.
        [SYNC_BYTE, flags, ..] => flags & UNIT_START != 0,
        _ => false,
    };
    let ended = packets.get(..good).and_then(|packets| packets.last());
    let whole = if begins || ended.is_some_and(is_stuffed) {
        good
    } else {
        packets
            .iter()
            .take(good)
            .rposition(|packet| matches!(packet, [_, flags, ..] if flags & UNIT_START != 0))
            .unwrap_or(0)
    };
    whole * TS_PACKET_BYTES
}

/// Whether a packet is filled up with stuffing, as only the last one of an access unit is.
fn is_stuffed(packet: &[u8; TS_PACKET_BYTES]) -> bool {
    let [_, _, _, flags, length, rest @ ..] = packet;
    flags & ADAPTATION_FIELD != 0
        && match usize::from(*length).checked_sub(1) {
            None => true,
            Some(last) => rest.get(last) == Some(&STUFFING),
        }
}

/// Where the last part begins: each begins with a program association table.
pub(crate) fn last_part(bytes: &[u8]) -> usize {
    let (packets, _) = bytes.as_chunks::<TS_PACKET_BYTES>();
    let begins = |packet: &[u8; TS_PACKET_BYTES]| matches!(packet, [SYNC_BYTE, flags, 0, ..] if flags & UNIT_START != 0 && flags & 0x1f == 0);
    packets.iter().rposition(begins).unwrap_or(0) * TS_PACKET_BYTES
}
