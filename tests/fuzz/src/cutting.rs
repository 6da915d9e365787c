//! The segmenter and the timeline under access units with any times, and what a cut must be.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use media::{
    access_unit::{AccessUnit, AudioInfo, SourceEvent, Track, TrackFormat, TrackId, VideoInfo},
    segmenter::{Cut, Segmenter, SegmenterConfig},
    timeline::{MAX_REORDER, Placed, Stamp, Timeline},
    ts::packet::{Found, PACKET_BYTES, Packet, Packets},
};
use model::{MAX_SEGMENT_BYTES, MediaDuration, MediaTime};

/// Most operations of one input.
const MAX_OPERATIONS: usize = 400;
/// Where the product's own transport streams have their PMT.
const PMT_PID: u16 = 0x1000;

/// Cuts what a source gave, as the edge does, and checks the result.
pub(crate) fn cut_and_check(events: Vec<SourceEvent>) {
    let mut segmenter = Segmenter::new(SegmenterConfig::default());
    let mut cuts = Vec::new();
    for event in events {
        segmenter.push(event, &mut cuts);
    }
    segmenter.finish(&mut cuts);
    check_cuts(&cuts);
}

#[derive(Debug, Arbitrary)]
enum Source {
    /// Tracks from a few that differ in codec, number and parameters.
    Tracks(u8),
    Unit {
        track: u8,
        step: Step,
        reorder: i16,
        key: bool,
        bytes: u16,
    },
    Discontinuity,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Usual,
    Ticks(i16),
    Far(i32),
    Anywhere(i64),
}

/// Access units whose times jump, formats that change: every run, segment and part keeps the rules.
pub(crate) fn segmenter(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let config = SegmenterConfig {
        target_duration: MediaDuration::from_millis(
            i64::from(u.arbitrary::<u16>().unwrap_or(0) % 8_000) + 200,
        ),
        part_duration: MediaDuration::from_millis(
            i64::from(u.arbitrary::<u8>().unwrap_or(0)) * 4 + 40,
        ),
        cap_s: u32::from(u.arbitrary::<u8>().unwrap_or(0) % 10) + 1,
        list_target_s: u
            .arbitrary::<Option<u8>>()
            .unwrap_or(None)
            .map(|s| u32::from(s % 60) + 1),
        expected_longest: u
            .arbitrary::<Option<u16>>()
            .unwrap_or(None)
            .map(|ms| MediaDuration::from_millis(ms.into())),
    };
    let mut segmenter = Segmenter::new(config);
    let mut cuts = Vec::new();
    let mut clocks = BTreeMap::<u8, i64>::new();
    let mut given_bytes = 0;
    for _ in 0..MAX_OPERATIONS {
        let Ok(source) = u.arbitrary::<Source>() else {
            break;
        };
        if u.is_empty() {
            break;
        }
        let event = match source {
            Source::Tracks(which) => SourceEvent::Tracks(tracks(which)),
            Source::Discontinuity => SourceEvent::Discontinuity,
            Source::Unit {
                track,
                step,
                reorder,
                key,
                bytes,
            } => {
                let clock = clocks.entry(track % 4).or_default();
                *clock = match step {
                    Step::Usual => clock.saturating_add(3_600),
                    Step::Ticks(ticks) => clock.saturating_add(ticks.into()),
                    Step::Far(ticks) => clock.saturating_add(ticks.into()),
                    Step::Anywhere(at) => at,
                };
                let data = vec![bytes as u8 | 0x80; usize::from(bytes % 3_000)];
                given_bytes += data.len();
                SourceEvent::AccessUnit(AccessUnit {
                    track: TrackId(track % 4),
                    dts: MediaTime(*clock),
                    pts: MediaTime(clock.saturating_add(reorder.into())),
                    key,
                    data: data.into(),
                })
            }
        };
        segmenter.push(event, &mut cuts);
    }
    segmenter.finish(&mut cuts);
    check_cuts(&cuts);
    let parts = cuts.iter().map(|cut| match cut {
        Cut::Part { bytes, .. } => bytes.len(),
        _ => 0,
    });
    // Each unit's packets, tables before it, parameter sets, and PCRs over a pause of up to some seconds.
    let limit =
        2 * given_bytes + cuts.len() * 40 * PACKET_BYTES + MAX_OPERATIONS * 20 * PACKET_BYTES;
    let total: usize = parts.sum();
    assert!(total <= limit, "{total} bytes from {given_bytes}");
}

fn tracks(which: u8) -> Vec<Track> {
    let info = |codec: &str| VideoInfo {
        width: 640,
        height: 360,
        codec: codec.into(),
    };
    let set = |bytes: &[u8]| vec![Bytes::copy_from_slice(bytes)];
    let h264 = TrackFormat::H264 {
        sps: set(&[0x67, 0x42, which & 7, 0x28]),
        pps: set(&[0x68, 0xce, 0x0f, 0xc8]),
        info: info("avc1.42c028"),
    };
    let h265 = TrackFormat::H265 {
        vps: set(&[0x40, 1, 12]),
        sps: set(&[0x42, 1, 1]),
        pps: set(&[0x44, 1, 0xc0]),
        info: info("hvc1.1.6.L93.B0"),
    };
    let aac = TrackFormat::Aac {
        info: AudioInfo {
            sample_rate: 48_000,
            channels: 1 + (which & 1),
            codec: "mp4a.40.2".into(),
        },
    };
    let formats = match which >> 4 {
        0..=4 => vec![h264, aac],
        5..=6 => vec![h265, aac.clone(), aac],
        7..=8 => vec![aac.clone(), h264],
        9 => vec![aac],
        10 => vec![h264.clone(), h264, aac],
        11 => vec![h265],
        12 => Vec::new(),
        _ => vec![h264],
    };
    formats
        .into_iter()
        .zip(0..)
        .map(|(format, id)| Track {
            id: TrackId(id),
            format,
        })
        .collect()
}

/// The rules of what is cut: its order, its lengths, and that each part is a transport stream by itself.
pub(crate) fn check_cuts(cuts: &[Cut]) {
    let mut target = None;
    let mut open: Option<(MediaTime, MediaDuration, u64)> = None;
    let mut ended_at: Option<MediaTime> = None;
    let mut counters = BTreeMap::new();
    let mut in_run = false;
    for cut in cuts {
        match cut {
            Cut::Run(format) => {
                assert!(open.is_none(), "a run begins in a segment");
                assert_eq!(
                    *target.get_or_insert(format.target_duration_s),
                    format.target_duration_s,
                    "TARGETDURATION changed"
                );
                assert!(format.target_duration_s >= 1 && !format.codecs.is_empty());
                (in_run, ended_at) = (true, None);
                counters.clear();
            }
            Cut::Open { media_start, .. } => {
                assert!(in_run && open.is_none());
                if let Some(end) = ended_at {
                    assert!(
                        *media_start >= end,
                        "a segment begins before the last one ended"
                    );
                }
                open = Some((*media_start, MediaDuration::ZERO, 0));
            }
            Cut::Part {
                bytes, duration, ..
            } => {
                let (_, sum, length) = open.as_mut().expect("a part belongs to a segment");
                assert!(duration.0 >= 0, "a part of {duration:?}");
                *sum += *duration;
                *length += bytes.len() as u64;
                check_part(bytes, &mut counters);
            }
            Cut::Close { duration } => {
                let (start, sum, length) = open.take().expect("a close belongs to a segment");
                assert!(length > 0 && length <= MAX_SEGMENT_BYTES);
                assert_eq!(sum, *duration, "the parts' durations");
                assert!(duration.0 > 0, "a segment of {duration:?}");
                let target = i64::from(target.expect("a run was told"));
                assert!(
                    duration.rounded_secs() <= target,
                    "{duration:?} in a list of {target} s"
                );
                ended_at = Some(start + *duration);
            }
        }
    }
    assert!(open.is_none(), "a segment is left open");
}

/// Whole packets, PAT and PMT first, and every PID's counter runs on through the run.
fn check_part(bytes: &[u8], counters: &mut BTreeMap<u16, u8>) {
    assert!(!bytes.is_empty() && bytes.len().is_multiple_of(PACKET_BYTES));
    for (at, packet) in bytes.chunks(PACKET_BYTES).enumerate() {
        let packet = Packet::parse(packet).expect("a whole packet");
        match at {
            0 => assert_eq!(packet.pid, 0, "PAT first"),
            1 => assert_eq!(packet.pid, PMT_PID, "then PMT"),
            _ => {}
        }
        if !packet.payload.is_empty() {
            let counter = packet.continuity;
            if let Some(last) = counters.insert(packet.pid, counter) {
                assert_eq!(counter, (last + 1) & 15, "PID {:#x}", packet.pid);
            }
        }
    }
    if bytes.len() >= 3 * PACKET_BYTES {
        let (mut packets, mut found) = (Packets::default(), 0);
        let mut give = |f: Found<'_>| match f {
            Found::Packet { .. } => found += 1,
            Found::Skipped { bytes, .. } => panic!("{bytes} bytes are no packets"),
        };
        packets.push(bytes, &mut give);
        packets.finish(&mut give);
        assert_eq!(found, bytes.len() / PACKET_BYTES);
    }
}

#[derive(Debug, Arbitrary)]
enum Placing {
    Item {
        track: u8,
        pts: Clock,
        dts: Option<Clock>,
    },
    Without {
        track: u8,
    },
    Flush {
        stays: u8,
    },
}

#[derive(Debug, Arbitrary)]
enum Clock {
    /// Ticks after the track's last.
    After(u16),
    Before(u16),
    Any(u64),
}

/// Every item comes out once, in the order of its track, with times that make sense.
pub(crate) fn timeline(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut timeline = Timeline::default();
    let mut out = Vec::new();
    let mut last = BTreeMap::<u8, u64>::new();
    let mut given = 0u32;
    for _ in 0..2 * MAX_OPERATIONS {
        if u.is_empty() {
            break;
        }
        let Ok(placing) = u.arbitrary::<Placing>() else {
            break;
        };
        match placing {
            Placing::Item { track, pts, dts } => {
                let track = track % 3;
                let before = last.get(&track).copied().unwrap_or(0);
                let clock = |clock: Clock| match clock {
                    Clock::After(ticks) => before + u64::from(ticks),
                    Clock::Before(ticks) => before.wrapping_sub(ticks.into()),
                    Clock::Any(at) => at,
                } & ((1 << 33) - 1);
                let stamp = Stamp {
                    pts: clock(pts),
                    dts: dts.map(clock),
                };
                last.insert(track, stamp.dts.unwrap_or(stamp.pts));
                timeline.push(TrackId(track), Some(stamp), given, &mut out);
                given += 1;
            }
            Placing::Without { track } => {
                timeline.push(TrackId(track % 3), None, given, &mut out);
                given += 1;
            }
            Placing::Flush { stays } => timeline.flush(|track| stays >> track.0 & 1 == 1, &mut out),
        }
    }
    timeline.flush(|_| false, &mut out);
    let mut newest = BTreeMap::new();
    let mut seen = vec![false; given as usize];
    for placed in out {
        let (track, item) = match placed {
            Placed::Discontinuity => continue,
            Placed::Dropped { track, item } => (track, item),
            Placed::Item { track, times, item } => {
                if let Some(times) = times {
                    let shown_after = (times.pts - times.dts).0;
                    assert!((0..=MAX_REORDER.0).contains(&shown_after), "{times:?}");
                }
                let before = newest.insert(track, item);
                assert!(
                    before.is_none_or(|before| before < item),
                    "{track:?}: {item} after {before:?}"
                );
                (track, item)
            }
        };
        let once = !std::mem::replace(&mut seen[item as usize], true);
        assert!(once, "{track:?}: {item} twice");
    }
    assert!(seen.iter().all(|&seen| seen), "an item was lost");
}
