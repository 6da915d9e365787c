//! Stores, segments and transport stream bytes for tests of the public face.

use std::{path::Path, time::Duration};

use model::*;
use store::{OpenSegment, RetentionLimits, Store, StoreOptions};

pub(crate) const SECOND: MediaDuration = MediaDuration::from_millis(1_000);
pub(crate) const START: WallTime = WallTime(1_760_000_000_000);

pub(crate) fn options(edge: bool) -> StoreOptions {
    StoreOptions {
        holder: "test".to_owned(),
        local_playlists: edge,
        live_window: Duration::from_secs(20),
        limits: RetentionLimits {
            keep_unshipped: edge,
            ..RetentionLimits::default()
        },
        sync_parts: edge,
        ..StoreOptions::default()
    }
}

pub(crate) fn hub(dir: &Path) -> Store {
    Store::open(dir, options(false)).unwrap().0
}

pub(crate) fn edge(dir: &Path) -> Store {
    Store::open(dir, options(true)).unwrap().0
}

pub(crate) fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

pub(crate) fn n(number: u64) -> SegmentNumber {
    SegmentNumber(number)
}

pub(crate) fn run_info(run: u64) -> RunInfo {
    RunInfo {
        run: n(run),
        codecs: "mp4a.40.2".to_owned(),
        resolution: None,
        target_duration_s: 2,
    }
}

/// A segment of a run that began with number 1 at [`START`], two seconds each.
pub(crate) fn opening(number: u64, run: u64) -> OpenSegment {
    let since = MediaDuration::from_millis(2_000 * number as i64);
    OpenSegment {
        number: n(number),
        run: n(run),
        wall_start: START.plus(since),
        media_start: MediaTime(0) + since,
        independent: true,
    }
}

pub(crate) fn bytes_of(number: u64) -> Vec<u8> {
    ts(number as i64 * 180_000, 94)
}

pub(crate) fn info_of(number: u64, run: u64) -> SegmentInfo {
    let bytes = bytes_of(number);
    let open = opening(number, run);
    SegmentInfo {
        number: open.number,
        run: open.run,
        wall_start: open.wall_start,
        media_start: open.media_start,
        duration: SECOND + SECOND,
        bytes: bytes.len() as u64,
        hash: SegmentHash::of(&bytes),
        independent: true,
    }
}

pub(crate) fn register(store: &Store, stream: &StreamName) {
    store.register_stream(stream, None).unwrap();
    store.put_run(stream, &run_info(1)).unwrap();
}

/// Opens, fills and closes segment `number` of run `run`.
pub(crate) fn record(store: &Store, stream: &StreamName, number: u64, run: u64) -> SegmentInfo {
    let mut writer = store.open_segment(stream, opening(number, run)).unwrap();
    writer.append(&bytes_of(number)).unwrap();
    writer.finish_part(SECOND + SECOND, true).unwrap();
    writer.close(SECOND + SECOND, None).unwrap()
}

pub(crate) fn live_text(store: &Store, stream: &StreamName) -> String {
    store
        .live_playlist(stream)
        .unwrap()
        .map(|p| String::from_utf8(p.text.to_vec()).unwrap())
        .unwrap_or_default()
}

/// Segment numbers in a playlist's text.
pub(crate) fn listed(text: &str) -> Vec<u64> {
    text.lines()
        .filter(|l| !l.starts_with('#') && !l.starts_with("gap-"))
        .filter_map(|l| l.rsplit('/').next()?.strip_suffix(".ts")?.parse().ok())
        .collect()
}

pub(crate) fn tag(text: &str, tag: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(tag)?.trim().parse().ok())
}

/// MPEG-TS that begins with PAT and PMT and holds `frames` AAC frames of 1,920 ticks from `pts` on.
pub(crate) fn ts(pts: i64, frames: usize) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(section(
        0,
        0,
        &psi(&[
            0x00, 0xb0, 0x0d, 0x00, 0x01, 0xc1, 0, 0, 0x00, 0x01, 0xf0, 0x00,
        ]),
    ));
    out.extend(section(
        0x1000,
        0,
        &psi(&[
            0x02, 0xb0, 0x12, 0x00, 0x01, 0xc1, 0, 0, 0xe1, 0x00, 0xf0, 0x00, 0x0f, 0xe1, 0x00,
            0xf0, 0x00,
        ]),
    ));
    for frame in 0..frames {
        out.extend(pes(pts + 1_920 * frame as i64, frame as u8));
    }
    out
}

fn psi(body: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in body {
        crc ^= u32::from(*byte) << 24;
        for _ in 0..8 {
            crc = if crc & 0x8000_0000 != 0 {
                (crc << 1) ^ 0x04c1_1db7
            } else {
                crc << 1
            };
        }
    }
    let mut section = vec![0];
    section.extend(body);
    section.extend(crc.to_be_bytes());
    section
}

fn section(pid: u16, counter: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x47, 0x40 | (pid >> 8) as u8, pid as u8, 0x10 | counter];
    packet.extend(payload);
    packet.resize(188, 0xff);
    packet
}

fn pes(pts: i64, counter: u8) -> Vec<u8> {
    // ADTS: AAC-LC, 48 kHz, stereo, 40 bytes a frame.
    let mut payload = vec![0xff, 0xf1, 0x4c, 0x80, 0x05, 0x1f, 0xfc];
    payload.resize(40, 0x21);
    let p = pts as u64 & 0x1_ffff_ffff;
    let stamp = [
        0x21 | (p >> 29) as u8 & 0x0e,
        (p >> 22) as u8,
        (p >> 14) as u8 | 1,
        (p >> 7) as u8,
        (p << 1) as u8 | 1,
    ];
    let mut pes = vec![0, 0, 1, 0xc0, 0, (8 + payload.len()) as u8, 0x80, 0x80, 5];
    pes.extend(stamp);
    pes.extend(payload);
    let stuffing = 184 - pes.len() - 1;
    let mut packet = vec![0x47, 0x41, 0x00, 0x30 | counter & 0x0f, stuffing as u8, 0];
    packet.resize(5 + stuffing, 0xff);
    packet.extend(pes);
    packet
}
