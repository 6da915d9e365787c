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

/// Of an adaptation field: it has a program clock reference.
const PCR_FLAG: u8 = 0x10;

const PCR_BYTES: usize = 6;

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
/// that the tear is in; none goes where stuffing shows that the last one had ended. A tear is a length that is
/// no whole number of packets, or (after a loss of power) a packet without its sync byte.
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
    let [_, _, _, flags, length, what, rest @ ..] = packet;
    let clock = if what & PCR_FLAG == 0 { 0 } else { PCR_BYTES };
    flags & ADAPTATION_FIELD != 0
        && match usize::from(*length).checked_sub(1) {
            None => true,
            // A clock's last byte may look like stuffing.
            Some(rest_bytes) => rest_bytes > clock && rest.get(rest_bytes - 1) == Some(&STUFFING),
        }
}

/// Where the last part begins: each begins with a program association table.
pub(crate) fn last_part(bytes: &[u8]) -> usize {
    let (packets, _) = bytes.as_chunks::<TS_PACKET_BYTES>();
    let begins = |packet: &[u8; TS_PACKET_BYTES]| matches!(packet, [SYNC_BYTE, flags, 0, ..] if flags & UNIT_START != 0 && flags & 0x1f == 0);
    packets.iter().rposition(begins).unwrap_or(0) * TS_PACKET_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access_units(bytes: &[u8]) -> Vec<(u8, i64, Vec<u8>)> {
        let mut events = Vec::new();
        let mut demuxer = Demuxer::new();
        demuxer.push(bytes, &mut events);
        demuxer.finish(&mut events);
        let units = events.into_iter().filter_map(|event| match event {
            SourceEvent::AccessUnit(unit) => Some(unit),
            _ => None,
        });
        units
            .map(|unit| (unit.track.0, unit.pts.0, unit.data.to_vec()))
            .collect()
    }

    /// Wherever a segment is torn, and whatever follows there, what is kept are whole access units.
    #[test]
    fn a_tear_anywhere_leaves_whole_access_units() {
        let clip = include_bytes!("../../../fixtures/media/demux-h264-aac.ts");
        let all = access_units(clip);
        let mut kept_most = 0;
        for packets in 0..clip.len() / TS_PACKET_BYTES {
            let good = &clip[..packets * TS_PACKET_BYTES];
            let next = &clip[good.len()..][..100];
            for tail in [&[0; 7 * TS_PACKET_BYTES][..], &[0; 50], next] {
                let torn = [good, tail].concat();
                let whole = whole_bytes(&torn);
                assert!(whole <= good.len(), "{packets}");
                let units = access_units(&torn[..whole]);
                for unit in &units {
                    assert!(all.contains(unit), "{packets}: {} bytes", unit.2.len());
                }
                kept_most = kept_most.max(units.len());
            }
        }
        assert!(kept_most > 20, "{kept_most}");
    }

    #[test]
    fn a_clock_that_ends_like_stuffing_is_none() {
        let mut packet = [0; TS_PACKET_BYTES];
        packet[..12].copy_from_slice(&[
            SYNC_BYTE, 0x41, 0, 0x30, 7, PCR_FLAG, 0, 0, 0, 0, 0x7e, 0xff,
        ]);
        assert!(!is_stuffed(&packet));
        packet[4] = 8;
        packet[12] = STUFFING;
        assert!(is_stuffed(&packet));
    }
}
