//! Playlists as text: values in, `m3u8-rs` out. What to list is decided elsewhere (`live_list`, the store).
//!
//! URIs are relative: beside the playlist over HTTP, in folders of 4,096 on disk.
//!
//! EXT-X-VERSION is 8 in a live list, which may come to hold EXT-X-GAP at any time and must not change its
//! version then (Apple's table asks 8 for GAP); recordings and hour lists need no more than 3 (decimal
//! EXTINF).

use chrono::FixedOffset;
use m3u8_rs::{ExtTag, MediaPlaylist, MediaPlaylistType, MediaSegment};
use model::{MediaDuration, SegmentInfo, SegmentNumber, WallTime};

use crate::live_list::{EntryKind, LiveEntry, LiveList, LiveState};

const LIVE_VERSION: usize = 8;
const RECORDING_VERSION: usize = 3;
/// Segments in one folder on disk.
const FOLDER_SEGMENTS: u64 = 4_096;

/// Where a playlist's segments are, seen from the playlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UriForm {
    /// `{number}.ts`, beside the playlist.
    Http,
    /// `{number div 4096}/{number}.ts`, below the stream's folder.
    Folder,
}

impl UriForm {
    /// The URI of a segment, relative to its playlist.
    pub fn segment(self, number: SegmentNumber) -> String {
        match self {
            Self::Http => format!("{number}.ts"),
            Self::Folder => format!("{}/{number}.ts", number.0 / FOLDER_SEGMENTS),
        }
    }
}

/// A live list as it stands; an empty one has no text yet.
pub fn live(list: &LiveList, form: UriForm) -> Option<String> {
    let header = list.header();
    let first = list.entries().next()?;
    let mut text = render(&MediaPlaylist {
        version: Some(LIVE_VERSION),
        target_duration: u64::from(header.target_duration_s?),
        media_sequence: first.msn,
        discontinuity_sequence: header.discontinuity_sequence,
        independent_segments: list.is_independent(),
        end_list: header.state == LiveState::Ended,
        segments: list.entries().map(|e| live_segment(e, form)).collect(),
        ..Default::default()
    });
    if header.discontinuity_sequence == 0 {
        // m3u8-rs leaves a nought out; a list that can ever be discontinuous always says it (Apple 8.17).
        let tag = format!("#EXT-X-MEDIA-SEQUENCE:{}\n", first.msn);
        text = text.replacen(&tag, &format!("{tag}#EXT-X-DISCONTINUITY-SEQUENCE:0\n"), 1);
    }
    Some(text)
}

/// The recording of a time range: `segments` ascending, all of them here. Settled: nothing can come any
/// more (VOD, ENDLIST). A new run or a missing number is a discontinuity. No segments: no text.
pub fn recording(
    segments: &[SegmentInfo],
    target_duration_s: u32,
    settled: bool,
    form: UriForm,
) -> Option<String> {
    segments.first()?;
    let before = [None].into_iter().chain(segments.iter().map(Some));
    let target = segments
        .iter()
        .map(|s| u64::try_from(s.duration.rounded_secs()).unwrap_or(0))
        .fold(u64::from(target_duration_s).max(1), u64::max);
    Some(render(&MediaPlaylist {
        version: Some(RECORDING_VERSION),
        target_duration: target,
        independent_segments: segments.iter().all(|s| s.independent),
        playlist_type: settled.then_some(MediaPlaylistType::Vod),
        end_list: settled,
        segments: segments
            .iter()
            .zip(before)
            .map(|(s, before)| recorded_segment(s, before, form))
            .collect(),
        ..Default::default()
    }))
}

/// How an hour list begins. TARGETDURATION is the highest that the hour may bring.
pub fn hour_list_head(target_duration_s: u32) -> String {
    render(&MediaPlaylist {
        version: Some(RECORDING_VERSION),
        target_duration: u64::from(target_duration_s.max(1)),
        playlist_type: Some(MediaPlaylistType::Event),
        ..Default::default()
    })
}

/// What one segment appends to an hour list; `before` is the entry it comes after in the same list.
pub fn hour_list_entry(
    segment: &SegmentInfo,
    before: Option<&SegmentInfo>,
    form: UriForm,
) -> String {
    let text = render(&MediaPlaylist {
        segments: vec![recorded_segment(segment, before, form)],
        ..Default::default()
    });
    // The head that m3u8-rs writes of an empty playlist: `#EXTM3U` and a TARGETDURATION of 0.
    let head = render(&MediaPlaylist::default());
    text.strip_prefix(head.as_str()).unwrap_or(&text).to_owned()
}

/// How an hour list ends.
pub const HOUR_LIST_END: &str = "#EXT-X-ENDLIST\n";

fn live_segment(entry: &LiveEntry, form: UriForm) -> MediaSegment {
    let (uri, unknown_tags) = match entry.kind {
        EntryKind::Segment { number, .. } => (form.segment(number), Vec::new()),
        EntryKind::Gap => (format!("gap-{}.ts", entry.msn), vec![gap_tag()]),
    };
    MediaSegment {
        uri,
        duration: extinf(entry.duration),
        discontinuity: entry.discontinuity,
        program_date_time: program_date_time(entry.wall_start),
        unknown_tags,
        ..Default::default()
    }
}

fn recorded_segment(
    segment: &SegmentInfo,
    before: Option<&SegmentInfo>,
    form: UriForm,
) -> MediaSegment {
    MediaSegment {
        uri: form.segment(segment.number),
        duration: extinf(segment.duration),
        discontinuity: before
            .is_some_and(|b| b.run != segment.run || b.number.next() != segment.number),
        program_date_time: program_date_time(segment.wall_start),
        ..Default::default()
    }
}

fn gap_tag() -> ExtTag {
    ExtTag {
        tag: "X-GAP".to_owned(),
        rest: None,
    }
}

/// Seconds for EXTINF, rounded to the microsecond: an `f32` below 16 s prints six decimals exactly, so that
/// sums stay within a tick for hours.
fn extinf(duration: MediaDuration) -> f32 {
    let micros = (duration.0.max(0) as f64 * 100.0 / 9.0).round();
    (micros / 1e6) as f32
}

/// None for a wall time outside the calendar.
fn program_date_time(time: WallTime) -> Option<chrono::DateTime<FixedOffset>> {
    time.to_utc().map(|t| t.fixed_offset())
}

fn render(playlist: &MediaPlaylist) -> String {
    let mut text = Vec::with_capacity(256 + playlist.segments.len() * 96);
    match playlist.write_to(&mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => unreachable!("writing to memory does not fail"),
    }
}
