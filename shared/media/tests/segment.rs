//! Segmenter and mux together: what goes in as access units comes out as transport stream, read back here
//! by a small reader that shares no code with either.

// What helps a test may fail like one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use media::{
    access_unit::{AccessUnit, AudioInfo, SourceEvent, Track, TrackFormat, TrackId, VideoInfo},
    segmenter::{Cut, RunFormat, Segmenter, SegmenterConfig},
};
use model::{MAX_SEGMENT_BYTES, MediaDuration, MediaTime, TICKS_PER_SECOND};
use proptest::prelude::*;

const VIDEO: TrackId = TrackId(0);
const AUDIO: TrackId = TrackId(1);
const VIDEO_PID: u16 = 0x100;
const AUDIO_PID: u16 = 0x101;
const SPS: &[u8] = &[0x67, 0x64, 0x00, 0x1f, 0xac];
const PPS: &[u8] = &[0x68, 0xee, 0x3c, 0xb0];
/// Ticks of an AAC frame at 48 kHz.
const AAC_TICKS: i64 = 1_920;
/// What a part may have beyond its duration: rates that don't fit whole milliseconds.
const PART_TICKS: i64 = 334 * 90;

fn ms(ms: i64) -> MediaDuration {
    MediaDuration::from_millis(ms)
}

fn video_track(width: u32) -> Track {
    Track {
        id: VIDEO,
        format: TrackFormat::H264 {
            sps: vec![Bytes::from_static(SPS)],
            pps: vec![Bytes::from_static(PPS)],
            info: VideoInfo {
                width,
                height: 360,
                codec: "avc1.64001f".to_owned(),
            },
        },
    }
}

fn audio_track(id: TrackId) -> Track {
    Track {
        id,
        format: TrackFormat::Aac {
            info: AudioInfo {
                sample_rate: 48_000,
                channels: 2,
                codec: "mp4a.40.2".to_owned(),
            },
        },
    }
}

/// A picture that tells which it is: a slice of `bytes` bytes with its number in front.
fn picture(number: u32, dts: i64, reorder: i64, key: bool, bytes: usize) -> AccessUnit {
    let mut data = vec![0, 0, 0, 1, if key { 0x65 } else { 0x41 }];
    data.extend(number.to_be_bytes().map(|b| b | 0x80));
    data.resize(data.len() + bytes, 0xab);
    AccessUnit {
        track: VIDEO,
        pts: MediaTime(dts + reorder),
        dts: MediaTime(dts),
        key,
        data: data.into(),
    }
}

/// An ADTS frame that tells which it is.
fn sound(track: TrackId, number: u32, pts: i64) -> AccessUnit {
    let length = 7 + 4 + number % 200;
    let mut data = vec![0xff, 0xf1, 0x4c, 0x80];
    data.extend([(length >> 3) as u8, ((length & 7) << 5) as u8 | 0x1f, 0xfc]);
    data.extend(number.to_be_bytes());
    data.resize(length as usize, 0xcd);
    AccessUnit {
        track,
        pts: MediaTime(pts),
        dts: MediaTime(pts),
        key: true,
        data: data.into(),
    }
}

fn cut(config: SegmenterConfig, events: impl IntoIterator<Item = SourceEvent>) -> Vec<Cut> {
    let (mut segmenter, mut out) = (Segmenter::new(config), Vec::new());
    for event in events {
        segmenter.push(event, &mut out);
    }
    segmenter.finish(&mut out);
    out
}

fn with_tracks(tracks: &[Track], units: Vec<AccessUnit>) -> Vec<SourceEvent> {
    let tracks = SourceEvent::Tracks(tracks.to_vec());
    let units = units.into_iter().map(SourceEvent::AccessUnit);
    [tracks].into_iter().chain(units).collect()
}

fn known_target(seconds: u32) -> SegmenterConfig {
    SegmenterConfig {
        list_target_s: Some(seconds),
        ..SegmenterConfig::default()
    }
}

// --- what came out, by the grammar `(Run (Open Part+ Close)+)*`

#[derive(Debug)]
struct RunOut {
    format: RunFormat,
    segments: Vec<SegmentOut>,
}

#[derive(Debug)]
struct SegmentOut {
    media_start: MediaTime,
    independent: bool,
    duration: MediaDuration,
    parts: Vec<(Bytes, MediaDuration, bool)>,
}

fn runs(cuts: &[Cut]) -> Vec<RunOut> {
    let mut runs: Vec<RunOut> = Vec::new();
    let mut open: Option<SegmentOut> = None;
    for cut in cuts {
        match cut {
            Cut::Run(format) => {
                assert!(open.is_none());
                assert!(runs.last().is_none_or(|run| !run.segments.is_empty()));
                runs.push(RunOut {
                    format: format.clone(),
                    segments: Vec::new(),
                });
            }
            Cut::Open {
                media_start,
                independent,
            } => {
                assert!(open.is_none() && !runs.is_empty());
                open = Some(SegmentOut {
                    media_start: *media_start,
                    independent: *independent,
                    duration: MediaDuration::ZERO,
                    parts: Vec::new(),
                });
            }
            Cut::Part {
                bytes,
                duration,
                independent,
            } => open
                .as_mut()
                .unwrap()
                .parts
                .push((bytes.clone(), *duration, *independent)),
            Cut::Close { duration } => {
                let mut segment = open.take().unwrap();
                assert!(!segment.parts.is_empty());
                let parts: i64 = segment.parts.iter().map(|(_, d, _)| d.0).sum();
                assert_eq!(parts, duration.0, "parts add up to their segment");
                assert!(duration.0 > 0);
                segment.duration = *duration;
                let run = runs.last_mut().unwrap();
                let target = i64::from(run.format.target_duration_s);
                assert!(duration.rounded_secs() <= target, "{duration:?} {target}");
                run.segments.push(segment);
            }
        }
    }
    assert!(open.is_none());
    assert!(runs.last().is_none_or(|run| !run.segments.is_empty()));
    runs
}

fn durations(run: &RunOut) -> Vec<i64> {
    run.segments
        .iter()
        .map(|s| s.duration.as_millis())
        .collect()
}

// --- the small reader

#[derive(Debug, Clone, PartialEq)]
struct Pes {
    pid: u16,
    pts: i64,
    dts: i64,
    random_access: bool,
    data: Vec<u8>,
}

/// Reads the parts of one run, counters and clock running on.
#[derive(Default)]
struct Reader {
    counters: BTreeMap<u16, u8>,
    pcr_pid: Option<u16>,
    last_pcr: Option<i64>,
}

impl Reader {
    /// A part's PES packets, in the order in which they begin.
    fn read(&mut self, part: &[u8]) -> Vec<Pes> {
        assert_eq!(part.len() % 188, 0);
        let mut done = Vec::new();
        let mut open: BTreeMap<u16, usize> = BTreeMap::new();
        for (at, packet) in part.chunks(188).enumerate() {
            assert_eq!(packet[0], 0x47);
            let pid = u16::from_be_bytes([packet[1] & 0x1f, packet[2]]);
            let unit_start = packet[1] & 0x40 != 0;
            let (has_field, has_payload) = (packet[3] & 0x20 != 0, packet[3] & 0x10 != 0);
            let counter = packet[3] & 0x0f;
            let field = if has_field {
                1 + usize::from(packet[4])
            } else {
                0
            };
            let flags = if field > 1 { packet[5] } else { 0 };
            assert!(field <= 184 && (has_payload || field == 184), "{field}");
            if let Some(&last) = self.counters.get(&pid) {
                let wanted = if has_payload { (last + 1) & 0x0f } else { last };
                assert_eq!(counter, wanted, "continuity of {pid:#x}");
            }
            self.counters.insert(pid, counter);
            assert_eq!(pid == 0, at == 0, "PAT first and once");
            assert_eq!(pid == 0x1000, at == 1, "PMT second and once");
            let payload = &packet[4 + field..];
            match at {
                0 => {
                    assert!(unit_start && payload[0] == 0 && field == 0);
                    assert_eq!(crc32(&payload[1..17]), 0);
                    assert_eq!(payload[9..13], [0, 1, 0xf0, 0x00], "one program");
                    assert!(payload[17..].iter().all(|&b| b == 0xff));
                }
                1 => {
                    let length = usize::from(u16::from_be_bytes([payload[2] & 0x0f, payload[3]]));
                    assert_eq!(crc32(&payload[1..4 + length]), 0);
                    let pcr = u16::from_be_bytes([payload[9] & 0x1f, payload[10]]);
                    assert!(self.pcr_pid.is_none_or(|before| before == pcr));
                    self.pcr_pid = Some(pcr);
                }
                _ => {}
            }
            if flags & 0x10 != 0 {
                assert_eq!(Some(pid), self.pcr_pid);
                let mut bytes = [0; 8];
                bytes[2..].copy_from_slice(&packet[6..12]);
                let pcr = u64::from_be_bytes(bytes);
                assert_eq!(pcr >> 9 & 0x3f, 0x3f, "reserved bits");
                let base = (pcr >> 15) as i64;
                if let Some(last) = self.last_pcr {
                    assert!(
                        (1..=9_000).contains(&since(last, base)),
                        "PCRs {last} {base}"
                    );
                }
                self.last_pcr = Some(base);
            }
            if at < 2 || !has_payload {
                continue;
            }
            if unit_start {
                let (pes, data) = pes_header(pid, payload, flags & 0x40 != 0);
                assert!(
                    self.last_pcr
                        .is_some_and(|pcr| (1..90_000).contains(&since(pcr, pes.dts)))
                );
                open.insert(pid, done.len());
                done.push((pes, u16::from_be_bytes([payload[4], payload[5]])));
                done.last_mut().unwrap().0.data.extend_from_slice(data);
            } else {
                done[open[&pid]].0.data.extend_from_slice(payload);
            }
        }
        done.into_iter()
            .map(|(pes, length)| {
                if length != 0 {
                    let header = if pes.pts == pes.dts { 8 } else { 13 };
                    assert_eq!(usize::from(length), header + pes.data.len());
                }
                pes
            })
            .collect()
    }
}

/// On a clock of 33 bits.
fn since(earlier: i64, later: i64) -> i64 {
    (later - earlier).rem_euclid(1 << 33)
}

fn pes_header(pid: u16, payload: &[u8], random_access: bool) -> (Pes, &[u8]) {
    assert_eq!(payload[..3], [0, 0, 1]);
    assert_eq!(
        payload[3],
        if pid == VIDEO_PID {
            0xe0
        } else {
            0xc0 + (pid - AUDIO_PID) as u8
        }
    );
    assert_eq!(payload[6], 0x84, "data_alignment_indicator");
    let stamp = |at: usize| {
        let b = |i: usize| i64::from(payload[at + i]);
        assert!(b(0) & 1 == 1 && b(2) & 1 == 1 && b(4) & 1 == 1);
        (b(0) >> 1 & 7) << 30 | b(1) << 22 | (b(2) >> 1) << 15 | b(3) << 7 | b(4) >> 1
    };
    let pts = stamp(9);
    let dts = if payload[7] == 0xc0 { stamp(14) } else { pts };
    let pes = Pes {
        pid,
        pts,
        dts,
        random_access,
        data: Vec::new(),
    };
    (pes, &payload[9 + usize::from(payload[8])..])
}

/// CRC-32/MPEG-2: nought over a section with its own CRC.
fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    })
}

/// The access units in a run's parts: (pid, pts, dts, data) with delimiters and parameter sets taken off.
fn units(run: &RunOut) -> Vec<(u16, i64, i64, Vec<u8>)> {
    let mut reader = Reader::default();
    let mut units = Vec::new();
    for segment in &run.segments {
        for (place, (bytes, _, part_independent)) in segment.parts.iter().enumerate() {
            let read = reader.read(bytes);
            let first = read.first().unwrap();
            let has_video = reader.pcr_pid == Some(VIDEO_PID);
            let begins_with_key = first.random_access && (first.pid == VIDEO_PID) == has_video;
            assert_eq!(*part_independent, begins_with_key);
            if place == 0 {
                assert_eq!(segment.independent, begins_with_key);
            }
            for pes in read {
                if pes.pid == VIDEO_PID {
                    let mut data = pes.data.as_slice();
                    data = data
                        .strip_prefix(&[0, 0, 0, 1, 9, 0xf0])
                        .expect("a delimiter");
                    if pes.random_access {
                        let sets = [&[0, 0, 0, 1], SPS, &[0, 0, 0, 1], PPS].concat();
                        data = data.strip_prefix(sets.as_slice()).expect("parameter sets");
                    }
                    units.push((pes.pid, pes.pts, pes.dts, data.to_vec()));
                    continue;
                }
                let (mut rest, mut pts) = (pes.data.as_slice(), pes.pts);
                while !rest.is_empty() {
                    let length = usize::from(rest[4]) << 3 | usize::from(rest[5]) >> 5;
                    let (frame, behind) = rest.split_at(length);
                    units.push((pes.pid, pts, pts, frame.to_vec()));
                    (rest, pts) = (behind, pts + AAC_TICKS);
                }
            }
        }
    }
    units
}

// --- by hand

/// Pictures `ticks` apart, key frames every `gop`.
fn pictures(count: u32, ticks: i64, gop: u32) -> Vec<AccessUnit> {
    (0..count)
        .map(|n| picture(n, 900_000 + i64::from(n) * ticks, 0, n % gop == 0, 500))
        .collect()
}

fn cut_pictures(config: SegmenterConfig, units: Vec<AccessUnit>) -> Vec<RunOut> {
    runs(&cut(config, with_tracks(&[video_track(640)], units)))
}

#[test]
fn cuts_at_key_frames_near_two_seconds() {
    for (what, ticks, gop, wanted) in [
        ("25 fps, 2 s", 3_600, 50, 2_000),
        ("25 fps, 1 s", 3_600, 25, 2_000),
        ("29.97 fps, 60 pictures", 3_003, 60, 2_002),
        ("29.97 fps, 59 pictures", 3_003, 59, 1_969),
        ("25 fps, 1.5 s", 3_600, 38, 3_040),
        ("50 fps, all key frames", 1_800, 1, 2_000),
        ("1 fps, all key frames", 90_000, 1, 2_000),
    ] {
        let count = (30 * 90_000 / ticks) as u32;
        let out = cut_pictures(SegmenterConfig::default(), pictures(count, ticks, gop));
        assert_eq!(out.len(), 1, "{what}");
        let durations = durations(&out[0]);
        let whole = &durations[..durations.len() - 1];
        assert!(whole.iter().all(|&d| d == wanted), "{what}: {durations:?}");
        let target = out[0].format.target_duration_s;
        assert_eq!(i64::from(target), (wanted + 500) / 1_000, "{what}");
        assert!(out[0].segments.iter().all(|s| s.independent), "{what}");
        let sum: i64 = out[0].segments.iter().map(|s| s.duration.0).sum();
        assert_eq!(sum, i64::from(count) * ticks, "{what}");
    }
}

#[test]
fn a_long_gop_is_cut_by_force_at_the_cap_and_in_a_list_that_goes_on() {
    let out = cut_pictures(SegmenterConfig::default(), pictures(500, 3_600, 250));
    assert_eq!(out[0].format.target_duration_s, 6);
    assert_eq!(durations(&out[0]), [6_480, 3_520, 6_480, 3_520]);
    let independent: Vec<bool> = out[0].segments.iter().map(|s| s.independent).collect();
    assert_eq!(independent, [true, false, true, false]);

    let out = cut_pictures(known_target(2), pictures(200, 3_600, 100));
    assert_eq!(durations(&out[0]), [2_480, 1_520, 2_480, 1_520]);
    // A GOP of 1.52 s: two would be too long for this list.
    let out = cut_pictures(known_target(2), pictures(114, 3_600, 38));
    assert_eq!(durations(&out[0]), [1_520, 1_520, 1_520]);
}

#[test]
fn an_index_settles_targetduration_at_once() {
    let config = SegmenterConfig {
        expected_longest: Some(ms(4_000)),
        ..SegmenterConfig::default()
    };
    let mut segmenter = Segmenter::new(config);
    assert_eq!(segmenter.target_duration_s(), 4);
    let mut out = Vec::new();
    for event in with_tracks(&[video_track(640)], pictures(11, 3_600, 100)) {
        segmenter.push(event, &mut out);
    }
    assert!(matches!(
        out.as_slice(),
        [
            Cut::Run(RunFormat {
                target_duration_s: 4,
                ..
            }),
            Cut::Open { .. },
            Cut::Part { .. }
        ]
    ));
}

#[test]
fn without_a_list_the_first_segment_is_held_back_until_it_is_whole() {
    let mut segmenter = Segmenter::new(SegmenterConfig::default());
    let mut out = Vec::new();
    let mut arrived = Vec::new();
    for event in with_tracks(&[video_track(640)], pictures(90, 3_600, 75)) {
        segmenter.push(event, &mut out);
        arrived.push(out.len());
    }
    // Tracks, then 75 pictures: nothing. The key frame behind them: all of the first segment.
    assert!(arrived[..76].iter().all(|&cuts| cuts == 0));
    assert!(arrived[76] > 9);
    assert_eq!(segmenter.target_duration_s(), 3);
}

#[test]
fn a_part_comes_with_the_first_picture_behind_its_end() {
    for (ticks, pictures_in_part) in [(3_600, 8), (3_000, 10), (3_003, 10), (6_000, 5)] {
        let mut segmenter = Segmenter::new(known_target(2));
        let mut out = Vec::new();
        let mut parts = Vec::new();
        for (at, event) in with_tracks(&[video_track(640)], pictures(31, ticks, 100))
            .into_iter()
            .enumerate()
        {
            segmenter.push(event, &mut out);
            for cut in out.drain(..) {
                if let Cut::Part { duration, .. } = cut {
                    parts.push((at, duration.0));
                }
            }
        }
        // The event at 0 is `Tracks`, so picture n comes with event n + 1.
        assert_eq!(
            parts[0],
            (pictures_in_part + 1, pictures_in_part as i64 * ticks)
        );
    }
}

#[test]
fn a_run_has_what_its_tracks_say() {
    let tracks = [
        audio_track(AUDIO),
        audio_track(TrackId(2)),
        video_track(640),
    ];
    let out = runs(&cut(
        known_target(2),
        with_tracks(&tracks, pictures(10, 3_600, 50)),
    ));
    assert_eq!(
        out[0].format,
        RunFormat {
            codecs: "avc1.64001f,mp4a.40.2".to_owned(),
            resolution: Some((640, 360)),
            target_duration_s: 2,
        }
    );
    assert_eq!(out[0].segments[0].media_start, MediaTime(900_000));
}

#[test]
fn changed_tracks_and_discontinuities_begin_runs_at_key_frames_and_same_tracks_do_not() {
    let mut events = with_tracks(&[video_track(640)], pictures(60, 3_600, 50));
    events.push(SourceEvent::Tracks(vec![video_track(640)]));
    let later = |from: u32, to: u32| {
        pictures(to, 3_600, 50)
            .into_iter()
            .skip(from as usize)
            .map(SourceEvent::AccessUnit)
    };
    events.extend(later(60, 110));
    events.push(SourceEvent::Tracks(vec![video_track(1_280)]));
    events.extend(later(110, 170));
    events.push(SourceEvent::Discontinuity);
    events.extend(later(170, 260));
    let mut segmenter = Segmenter::new(known_target(2));
    let mut cuts = Vec::new();
    for event in events {
        segmenter.push(event, &mut cuts);
    }
    segmenter.finish(&mut cuts);
    let out = runs(&cuts);
    let seen: Vec<(Option<u32>, Vec<i64>)> = out
        .iter()
        .map(|run| (run.format.resolution.map(|(w, _)| w), durations(run)))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(640), vec![2_000, 2_000, 400]),
            (Some(1_280), vec![800]),
            (Some(1_280), vec![2_000, 400]),
        ]
    );
    // 110 to 149 and 170 to 199: before a key frame of their run.
    assert_eq!(segmenter.counters().dropped, 40 + 30);
}

#[test]
fn sound_around_the_beginning() {
    let mut units: Vec<AccessUnit> = (0..200)
        .map(|n| sound(AUDIO, n, 900_000 - 90_000 + i64::from(n) * AAC_TICKS))
        .chain(pictures(100, 3_600, 50))
        .collect();
    units.sort_by_key(|u| u.dts);
    let mut segmenter = Segmenter::new(known_target(2));
    let mut cuts = Vec::new();
    for event in with_tracks(&[video_track(640), audio_track(AUDIO)], units) {
        segmenter.push(event, &mut cuts);
    }
    segmenter.finish(&mut cuts);
    let units = units_of(&runs(&cuts), AUDIO_PID);
    // The last 100 ms before the picture may be an encoder's priming and stay.
    assert_eq!(segmenter.counters().dropped, 43);
    assert_eq!(units.first(), Some(&(900_000 - 90_000 + 43 * AAC_TICKS)));
    assert_eq!(units.len(), 200 - 43);
}

fn units_of(runs: &[RunOut], pid: u16) -> Vec<i64> {
    runs.iter()
        .flat_map(units)
        .filter(|(of, ..)| *of == pid)
        .map(|(_, pts, ..)| pts)
        .collect()
}

#[test]
fn sound_alone_is_cut_nearest_to_two_seconds() {
    let frames = (0..1_000).map(|n| sound(AUDIO, n, 900_000 + i64::from(n) * AAC_TICKS));
    let out = runs(&cut(
        SegmenterConfig::default(),
        with_tracks(&[audio_track(AUDIO)], frames.collect()),
    ));
    assert_eq!(out[0].format.resolution, None);
    assert_eq!(out[0].format.codecs, "mp4a.40.2");
    assert_eq!(out[0].format.target_duration_s, 2);
    let whole = durations(&out[0]);
    assert!(whole[..10].iter().all(|&d| d == 2_005), "{whole:?}");
    assert!(out[0].segments.iter().all(|s| s.independent));
    assert_eq!(units_of(&out, AUDIO_PID).len(), 1_000);
}

#[test]
fn sound_that_is_missing_in_the_middle_changes_nothing() {
    let mut units: Vec<AccessUnit> = (0..800)
        .filter(|n| !(200..600).contains(n))
        .map(|n| sound(AUDIO, n, 900_000 + i64::from(n) * AAC_TICKS))
        .chain(pictures(400, 3_600, 50))
        .collect();
    units.sort_by_key(|u| u.dts);
    let out = runs(&cut(
        known_target(2),
        with_tracks(&[video_track(640), audio_track(AUDIO)], units),
    ));
    assert_eq!(durations(&out[0]), [2_000; 8]);
    assert_eq!(units_of(&out, AUDIO_PID).len(), 400);
}

#[test]
fn pictures_that_stop_leave_the_clock_to_the_sound() {
    // Pictures from 0 to 4 s and again from 30 s, sound all the time.
    let mut units: Vec<AccessUnit> = (0..1_875)
        .map(|n| sound(AUDIO, n, 900_000 + i64::from(n) * AAC_TICKS))
        .chain(pictures(1_000, 3_600, 50).into_iter().filter(|u| {
            let at = u.dts.0 - 900_000;
            !(4 * 90_000..30 * 90_000).contains(&at)
        }))
        .collect();
    units.sort_by_key(|u| u.dts);
    let out = runs(&cut(
        known_target(2),
        with_tracks(&[video_track(640), audio_track(AUDIO)], units),
    ));
    assert_eq!(out.len(), 1);
    let sum: i64 = durations(&out[0]).iter().sum();
    assert!((39_900..=40_100).contains(&sum), "{sum}");
    assert_eq!(units_of(&out, AUDIO_PID).len(), 1_875);
    assert_eq!(units_of(&out, VIDEO_PID).len(), 100 + 250);
}

#[test]
fn a_pause_longer_than_a_segment() {
    let paused = |units: Vec<AccessUnit>| -> Vec<AccessUnit> {
        let late = |mut unit: AccessUnit| {
            if unit.dts.0 >= 900_000 + 55 * 3_600 {
                unit.dts = unit.dts + ms(8_000);
                unit.pts = unit.dts;
            }
            unit
        };
        units.into_iter().map(late).collect()
    };
    // In mid-GOP the run goes on, for its pictures need what came before.
    let out = cut_pictures(known_target(2), paused(pictures(100, 3_600, 50)));
    assert_eq!(out.len(), 1);
    assert_eq!(durations(&out[0]), [2_000, 160, 2_499, 1_800]);
    assert_eq!(units_of(&out, VIDEO_PID).len(), 100);
    // A key frame begins a new one.
    let out = cut_pictures(known_target(2), paused(pictures(100, 3_600, 55)));
    assert_eq!(out.len(), 2);
    assert_eq!(durations(&out[1]), [1_800]);
}

#[test]
fn broken_timestamps_are_mended_or_begin_a_run() {
    let mut small = pictures(100, 3_600, 50);
    small[20].dts = small[18].dts;
    small[20].pts = small[18].dts - ms(500);
    let (mut segmenter, mut cuts) = (Segmenter::new(known_target(2)), Vec::new());
    for event in with_tracks(&[video_track(640)], small) {
        segmenter.push(event, &mut cuts);
    }
    segmenter.finish(&mut cuts);
    let out = runs(&cuts);
    assert_eq!((out.len(), durations(&out[0])), (1, vec![2_000, 2_000]));
    assert_eq!(segmenter.counters().repaired, 1);
    assert_eq!(units_of(&out, VIDEO_PID).len(), 100);

    let back = pictures(60, 3_600, 50)
        .into_iter()
        .chain(pictures(60, 3_600, 50));
    let out = cut_pictures(known_target(2), back.collect());
    assert_eq!(out.len(), 2);
}

#[test]
fn timestamps_below_nought_are_moved_once_for_all_runs() {
    let mut frames = pictures(50, 3_600, 50);
    for (n, unit) in frames.iter_mut().enumerate() {
        unit.dts = MediaTime(n as i64 * 3_600 - 7_200);
        unit.pts = unit.dts + MediaDuration(7_200);
    }
    let mut events = with_tracks(&[video_track(640)], frames);
    events.push(SourceEvent::Discontinuity);
    let later = pictures(10, 3_600, 50);
    events.extend(later.into_iter().map(SourceEvent::AccessUnit));
    let out = runs(&cut(known_target(2), events));
    assert_eq!(out[0].segments[0].media_start, MediaTime(0));
    assert_eq!(units(&out[0])[0].1, 900_000);
    assert_eq!(units(&out[1])[0].1, 900_000 + 900_000);
}

#[test]
fn a_wrap_of_the_clock_goes_through() {
    let start = (1 << 33) - 90_000;
    let frames: Vec<AccessUnit> = (0..50)
        .map(|n| picture(n, start + i64::from(n) * 3_600, 7_200, n == 0, 100))
        .collect();
    let out = cut_pictures(known_target(2), frames);
    let stamps: Vec<(i64, i64)> = units(&out[0]).iter().map(|u| (u.1, u.2)).collect();
    assert_eq!(stamps[0], (start + 7_200, start));
    assert_eq!(stamps[49], (7_200 + 86_400, 86_400));
}

#[test]
fn a_segment_never_outgrows_its_bytes() {
    let huge = 40 << 20;
    let units = (0..10)
        .map(|n| picture(n, 900_000 + i64::from(n) * 3_600, 0, n == 0, huge))
        .collect();
    let out = cut_pictures(known_target(2), units);
    assert_eq!(out[0].segments.len(), 2);
    for segment in &out[0].segments {
        let bytes: usize = segment.parts.iter().map(|(bytes, ..)| bytes.len()).sum();
        assert!(bytes as u64 <= MAX_SEGMENT_BYTES);
        assert!(
            segment
                .parts
                .iter()
                .all(|(bytes, ..)| bytes.len() < 2 * huge)
        );
    }
}

// --- properties

/// A camera or file with its habits.
#[derive(Debug, Clone)]
struct Source {
    ticks: i64,
    /// Pictures from key frame to key frame, repeated.
    gops: Vec<u32>,
    b_frames: u32,
    jitter: Vec<i64>,
    count: u32,
    audio_offset: i64,
    /// How far sound comes behind the pictures of its time in the source.
    audio_lag: i64,
    second_audio: bool,
    bytes: usize,
    config: SegmenterConfig,
}

fn source() -> impl Strategy<Value = Source> {
    let ticks = prop::sample::select(vec![1_500, 1_800, 3_000, 3_003, 3_600, 9_000, 30_000]);
    let config = (
        prop::option::of(1u32..7),
        prop::option::of(100i64..12_000),
        prop::sample::select(vec![500i64, 2_000, 4_000]),
    )
        .prop_map(|(list_target_s, expected, target)| SegmenterConfig {
            target_duration: ms(target),
            list_target_s,
            expected_longest: expected.map(ms),
            ..SegmenterConfig::default()
        });
    (
        ticks,
        prop::collection::vec(1u32..120, 1..5),
        0u32..4,
        prop::collection::vec(0i64..900, 1..7),
        2u32..400,
        -9_000i64..9_000,
        -40_000i64..40_000,
        any::<bool>(),
        1usize..1_000,
        config,
    )
        .prop_map(
            |(
                ticks,
                gops,
                b_frames,
                jitter,
                count,
                audio_offset,
                audio_lag,
                second_audio,
                bytes,
                config,
            )| {
                Source {
                    ticks,
                    gops,
                    b_frames,
                    jitter,
                    count,
                    audio_offset,
                    audio_lag,
                    second_audio,
                    bytes,
                    config,
                }
            },
        )
}

impl Source {
    fn tracks(&self) -> Vec<Track> {
        let mut tracks = vec![video_track(640), audio_track(AUDIO)];
        if self.second_audio {
            tracks.push(audio_track(TrackId(2)));
        }
        tracks
    }

    fn units(&self) -> Vec<AccessUnit> {
        let start = 900_000;
        let mut keys = vec![0];
        for gop in self.gops.iter().cycle() {
            let next = keys[keys.len() - 1] + gop;
            if next >= self.count {
                break;
            }
            keys.push(next);
        }
        // Order of arrival: decoding time, sound with its lag.
        let mut arriving: Vec<(i64, AccessUnit)> = Vec::new();
        for n in 0..self.count {
            let dts =
                start + i64::from(n) * self.ticks + self.jitter[n as usize % self.jitter.len()];
            let key = keys.binary_search(&n).is_ok();
            // As encoders do: references are shown behind the B-frames that need them.
            let late = if key {
                1
            } else {
                i64::from(n % (self.b_frames + 1))
            };
            let reorder = if self.b_frames == 0 {
                0
            } else {
                late * self.ticks
            };
            let bytes = if key { self.bytes * 20 } else { self.bytes };
            arriving.push((dts, picture(n, dts, reorder, key, bytes)));
        }
        let end = start + i64::from(self.count) * self.ticks;
        for track in self.tracks().iter().filter(|t| !t.is_video()) {
            let pts = |n: i64| start + self.audio_offset.abs() + n * AAC_TICKS;
            for n in (0..).take_while(|&n| pts(n) < end) {
                arriving.push((pts(n) + self.audio_lag, sound(track.id, n as u32, pts(n))));
            }
        }
        arriving.sort_by_key(|(at, _)| *at);
        arriving.into_iter().map(|(_, unit)| unit).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn all_access_units_come_out_once_in_order_and_durations_add_up(source in source()) {
        let given = source.units();
        let out = runs(&cut(source.config.clone(), with_tracks(&source.tracks(), given.clone())));
        prop_assert_eq!(out.len(), 1);
        let run = &out[0];

        let came_out = units(run);
        for (track, pid) in [(VIDEO, VIDEO_PID), (AUDIO, AUDIO_PID), (TrackId(2), AUDIO_PID + 1)] {
            let wanted: Vec<_> = given
                .iter()
                .filter(|u| u.track == track)
                .map(|u| (pid, u.pts.0, u.dts.0, u.data.to_vec()))
                .collect();
            let got: Vec<_> = came_out.iter().filter(|u| u.0 == pid).cloned().collect();
            prop_assert_eq!(got, wanted);
        }

        let pictures: Vec<&AccessUnit> = given.iter().filter(|u| u.track == VIDEO).collect();
        let first = pictures[0].dts;
        let last_two: Vec<i64> = pictures.iter().rev().take(2).map(|u| u.dts.0).collect();
        let end = MediaTime(2 * last_two[0] - last_two[1]);
        let sum: i64 = run.segments.iter().map(|s| s.duration.0).sum();
        prop_assert_eq!(sum, (end - first).0);

        let mut start = first;
        for segment in &run.segments {
            let opening = pictures.iter().find(|u| u.dts == start).expect("at a picture");
            prop_assert!(!segment.independent || opening.key);
            prop_assert_eq!(segment.media_start, start + (pictures[0].pts - first));
            let mut part_start = start;
            for (_, duration, _) in &segment.parts {
                let part_end = part_start + *duration;
                let inside = pictures.iter().filter(|u| u.dts >= part_start && u.dts < part_end).count();
                prop_assert!(inside >= 1);
                prop_assert!(duration.0 <= PART_TICKS || inside == 1, "{duration:?}");
                part_start = part_end;
            }
            start = start + segment.duration;
        }
        if let Some(list) = source.config.list_target_s {
            prop_assert_eq!(run.format.target_duration_s, list);
        } else {
            prop_assert!(run.format.target_duration_s <= 6);
        }
    }

    /// Sound that comes in time lies in the segment of its time; the last has what outlasts its pictures.
    #[test]
    fn sound_lies_with_its_pictures(source in source()) {
        let source = Source { audio_lag: 0, second_audio: false, ..source };
        let out = runs(&cut(source.config.clone(), with_tracks(&source.tracks(), source.units())));
        let mut start = 900_000 + source.jitter[0];
        let mut reader = Reader::default();
        let mut leading = 9_000;
        let last = out[0].segments.len() - 1;
        for (place, segment) in out[0].segments.iter().enumerate() {
            let end = start + segment.duration.0;
            for (part, ..) in &segment.parts {
                for pes in reader.read(part).iter().filter(|pes| pes.pid == AUDIO_PID) {
                    prop_assert!(pes.pts >= start - leading, "{} {start}", pes.pts);
                    prop_assert!(pes.pts < end || place == last, "{} {end}", pes.pts);
                }
            }
            (start, leading) = (end, 0);
        }
    }

    /// Whatever comes, the grammar and the limits hold, and nothing panics: invariant 7.
    #[test]
    fn anything_may_come(
        list_target_s in prop::option::of(0u32..4),
        events in prop::collection::vec(wild_event(), 1..200),
    ) {
        let config = SegmenterConfig { list_target_s, ..SegmenterConfig::default() };
        for run in runs(&cut(config, events)) {
            for segment in &run.segments {
                let bytes: usize = segment.parts.iter().map(|(bytes, ..)| bytes.len()).sum();
                prop_assert!(bytes as u64 <= MAX_SEGMENT_BYTES);
                prop_assert!(segment.parts.iter().all(|(bytes, ..)| bytes.len() % 188 == 0));
            }
        }
    }
}

fn wild_event() -> impl Strategy<Value = SourceEvent> {
    let time = prop_oneof![
        6 => 0i64..20 * TICKS_PER_SECOND,
        1 => any::<i64>(),
        1 => prop::sample::select(vec![i64::MIN, i64::MAX, (1 << 33) - 1, -1]),
    ];
    let unit = (
        0u8..4,
        time.clone(),
        time,
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..400),
    )
        .prop_map(|(track, pts, dts, key, data)| {
            SourceEvent::AccessUnit(AccessUnit {
                track: TrackId(track),
                pts: MediaTime(pts),
                dts: MediaTime(dts),
                key,
                data: data.into(),
            })
        });
    let tracks = prop::sample::select(vec![
        vec![],
        vec![video_track(640)],
        vec![video_track(640), audio_track(AUDIO)],
        vec![audio_track(AUDIO), audio_track(TrackId(2))],
        (0..12).map(|n| audio_track(TrackId(n))).collect(),
    ]);
    prop_oneof![
        30 => unit,
        1 => tracks.prop_map(SourceEvent::Tracks),
        1 => Just(SourceEvent::Discontinuity),
    ]
}
