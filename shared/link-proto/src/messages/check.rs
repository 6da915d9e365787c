//! One check for each kind of field: from a wire value to a value of the model, or an error that names it.

use std::ops::RangeInclusive;

use bytes::Bytes;
use model::{
    HoleReason, MAX_SEGMENT_BYTES, MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};

use super::{
    MAX_CODECS_BYTES, MAX_RANGES, MAX_REASON_BYTES, MAX_RESTAMPED, MAX_SOFTWARE_BYTES,
    PROTOCOL_VERSION, wire,
};

/// Latest wall time on the wire: the last millisecond of the year 9999, which playlists can still write.
const MAX_WALL_MS: i64 = WallTime::LATEST.0;
/// Farthest media time from nought: 33-bit clocks wrap into it for more than a million years.
const MAX_MEDIA_90K: i64 = 1 << 62;
/// Highest number of a segment: a hundred segments a second use it up in a thousand million years, and a catalog
/// of 64-bit signed numbers has room above it.
const MAX_NUMBER: u64 = 1 << 62;
/// Longest segment or part: an hour, far above any target duration.
const MAX_DURATION_90K: u64 = 3_600 * 90_000;
/// Longest target duration in seconds.
const MAX_TARGET_DURATION_S: u32 = 3_600;
/// Largest width or height in pixels.
const MAX_PIXELS: u32 = 65_535;

/// A peer said what makes no sense; it is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a message is not valid protobuf")]
    NotProtobuf,
    #[error("{what} has {length} bytes or entries, over the limit of {limit}")]
    TooLong {
        what: &'static str,
        length: u64,
        limit: u64,
    },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} {value} is out of range")]
    OutOfRange { what: &'static str, value: i128 },
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// Each message is well formed, but it may not come now.
    #[error("{what} of stream {stream} {number}: {why}")]
    Unexpected {
        what: &'static str,
        stream: StreamName,
        number: SegmentNumber,
        why: &'static str,
    },
    #[error("{0} came where it may not")]
    OutOfOrder(&'static str),
}

type Result<T> = std::result::Result<T, ProtocolError>;

pub(super) fn version(version: u32) -> Result<u32> {
    // A later peer speaks this version too; nought is no version.
    if version < PROTOCOL_VERSION {
        return Err(out_of_range("version", version));
    }
    Ok(version)
}

pub(super) fn stream(name: String) -> Result<StreamName> {
    name.try_into()
        .map_err(|_| ProtocolError::Malformed("stream name"))
}

pub(super) fn software(text: String) -> Result<String> {
    text_within("software", text, MAX_SOFTWARE_BYTES)
}

pub(super) fn reason(text: String) -> Result<String> {
    text_within("reason", text, MAX_REASON_BYTES)
}

fn text_within(what: &'static str, text: String, limit: usize) -> Result<String> {
    at_most(what, text.len(), limit)?;
    if text.chars().any(char::is_control) {
        return Err(ProtocolError::Malformed(what));
    }
    Ok(text)
}

pub(super) fn at_most(what: &'static str, length: usize, limit: usize) -> Result<()> {
    if length > limit {
        return Err(ProtocolError::TooLong {
            what,
            length: length as u64,
            limit: limit as u64,
        });
    }
    Ok(())
}

pub(super) fn wall(what: &'static str, ms: i64) -> Result<WallTime> {
    if !(0..=MAX_WALL_MS).contains(&ms) {
        return Err(out_of_range(what, ms));
    }
    Ok(WallTime(ms))
}

pub(super) fn media_start(ticks: i64) -> Result<MediaTime> {
    if !(-MAX_MEDIA_90K..=MAX_MEDIA_90K).contains(&ticks) {
        return Err(out_of_range("media start", ticks));
    }
    Ok(MediaTime(ticks))
}

pub(super) fn duration(ticks: u64) -> Result<MediaDuration> {
    match i64::try_from(ticks) {
        Ok(signed) if ticks <= MAX_DURATION_90K => Ok(MediaDuration(signed)),
        _ => Err(out_of_range("duration", ticks)),
    }
}

pub(super) fn hash(bytes: &Bytes) -> Result<SegmentHash> {
    SegmentHash::from_slice(bytes).ok_or(ProtocolError::Malformed("hash"))
}

/// A length that a segment can have; nought only where it is an offset.
pub(super) fn segment_length(what: &'static str, length: u64) -> Result<u64> {
    if length == 0 || length > MAX_SEGMENT_BYTES {
        return Err(out_of_range(what, length));
    }
    Ok(length)
}

pub(super) fn offset(offset: u64) -> Result<u64> {
    if offset > MAX_SEGMENT_BYTES {
        return Err(out_of_range("offset", offset));
    }
    Ok(offset)
}

pub(super) fn hole_reason(code: u32) -> Result<HoleReason> {
    // A reason of a later version is still a hole; what it is called is all that is lost.
    match u8::try_from(code) {
        Ok(0) | Err(_) => Err(out_of_range("hole reason", code)),
        Ok(code) => Ok(HoleReason::from_code(code).unwrap_or(HoleReason::Refused)),
    }
}

/// Wall times by ascending number.
pub(super) fn walls(walls: Vec<wire::WallTime>) -> Result<Vec<(SegmentNumber, WallTime)>> {
    at_most("restamped segments", walls.len(), MAX_RESTAMPED)?;
    if walls.is_empty() {
        return Err(ProtocolError::Missing("restamped segments"));
    }
    if !walls.is_sorted_by(|a, b| a.number < b.number) {
        return Err(ProtocolError::Malformed("order of restamped segments"));
    }
    walls
        .into_iter()
        .map(|w| {
            Ok((
                SegmentNumber(w.number),
                wall("wall start", w.wall_start_ms)?,
            ))
        })
        .collect()
}

pub(super) fn ranges(ranges: Vec<wire::Range>) -> Result<Vec<RangeInclusive<SegmentNumber>>> {
    at_most("ranges", ranges.len(), MAX_RANGES)?;
    ranges
        .into_iter()
        .map(|range| {
            if range.first > range.last {
                return Err(out_of_range("range end", range.last));
            }
            Ok(SegmentNumber(range.first)..=SegmentNumber(range.last))
        })
        .collect()
}

/// Ranges of numbers that segments can have.
pub(super) fn numbers(list: Vec<wire::Range>) -> Result<Vec<RangeInclusive<SegmentNumber>>> {
    let list = ranges(list)?;
    for range in &list {
        number(range.end().0)?;
    }
    Ok(list)
}

pub(super) fn ranges_to_wire(ranges: &[RangeInclusive<SegmentNumber>]) -> Vec<wire::Range> {
    ranges
        .iter()
        .map(|range| wire::Range {
            first: range.start().0,
            last: range.end().0,
        })
        .collect()
}

pub(super) fn run(run: wire::Run) -> Result<RunInfo> {
    at_most("codecs", run.codecs.len(), MAX_CODECS_BYTES)?;
    // It lands between quotes in a playlist (RFC 6381, section 3.3: dots and commas join tokens).
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b',' | b'-' | b'_');
    if !run.codecs.bytes().all(plain) {
        return Err(ProtocolError::Malformed("codecs"));
    }
    let resolution = match (run.width, run.height) {
        (0, 0) => None,
        (width, height) => Some((pixels("width", width)?, pixels("height", height)?)),
    };
    if !(1..=MAX_TARGET_DURATION_S).contains(&run.target_duration_s) {
        return Err(out_of_range("target duration", run.target_duration_s));
    }
    Ok(RunInfo {
        run: SegmentNumber(run.run),
        codecs: run.codecs,
        resolution,
        target_duration_s: run.target_duration_s,
    })
}

fn pixels(what: &'static str, count: u32) -> Result<u32> {
    if !(1..=MAX_PIXELS).contains(&count) {
        return Err(out_of_range(what, count));
    }
    Ok(count)
}

pub(super) fn run_to_wire(run: &RunInfo) -> wire::Run {
    let (width, height) = run.resolution.unwrap_or_default();
    wire::Run {
        run: run.run.0,
        codecs: run.codecs.clone(),
        width,
        height,
        target_duration_s: run.target_duration_s,
    }
}

pub(super) fn segment(segment: wire::Segment) -> Result<SegmentInfo> {
    in_run(segment.run, segment.number)?;
    Ok(SegmentInfo {
        number: number(segment.number)?,
        run: SegmentNumber(segment.run),
        wall_start: wall("wall start", segment.wall_start_ms)?,
        media_start: media_start(segment.media_start_90k)?,
        duration: duration(segment.duration_90k)?,
        bytes: segment_length("segment length", segment.length)?,
        hash: hash(&segment.hash)?,
        independent: segment.independent,
    })
}

pub(super) fn number(number: u64) -> Result<SegmentNumber> {
    if number > MAX_NUMBER {
        return Err(out_of_range("segment number", number));
    }
    Ok(SegmentNumber(number))
}

/// A run is named by its first segment, so no segment of it has a lower number.
pub(super) fn in_run(run: u64, number: u64) -> Result<()> {
    if run > number {
        return Err(out_of_range("run", run));
    }
    Ok(())
}

pub(super) fn segment_to_wire(info: &SegmentInfo) -> wire::Segment {
    wire::Segment {
        number: info.number.0,
        run: info.run.0,
        wall_start_ms: info.wall_start.0,
        media_start_90k: info.media_start.0,
        duration_90k: duration_to_wire(info.duration),
        length: info.bytes,
        hash: Bytes::copy_from_slice(&info.hash.0),
        independent: info.independent,
    }
}

pub(super) fn duration_to_wire(duration: MediaDuration) -> u64 {
    u64::try_from(duration.0).unwrap_or_default()
}

pub(super) fn out_of_range(what: &'static str, value: impl Into<i128>) -> ProtocolError {
    ProtocolError::OutOfRange {
        what,
        value: value.into(),
    }
}
