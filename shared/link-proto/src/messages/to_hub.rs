//! [`ToHub`] to and from the wire.

use model::SegmentNumber;

use super::{
    Chunk, Hello, MAX_ANNOUNCED, MAX_CHUNK_BYTES, MAX_TOKEN_BYTES, PartEnd, ProtocolError,
    SegmentStart, ToHub, check, report,
    wire::{self, to_hub::Kind},
};

pub(super) fn from_wire(message: wire::ToHub) -> Result<Option<ToHub>, ProtocolError> {
    let Some(kind) = message.kind else {
        return Ok(None);
    };
    Ok(Some(match kind {
        Kind::Hello(m) => ToHub::Hello(hello(m.version, m.software, m.clock_ms)?),
        Kind::Enrol(m) => {
            check::at_most("token", m.token.len(), MAX_TOKEN_BYTES)?;
            if m.token.is_empty() {
                return Err(ProtocolError::Missing("token"));
            }
            ToHub::Enrol {
                hello: hello(m.version, m.software, m.clock_ms)?,
                token: m.token,
            }
        }
        Kind::EnrolConfirm(wire::EnrolConfirm {}) => ToHub::EnrolConfirm,
        Kind::StreamOpen(m) => ToHub::StreamOpen {
            stream: check::stream(m.stream)?,
        },
        Kind::SettledNext(m) => ToHub::SettledNext {
            stream: check::stream(m.stream)?,
            cursor: SegmentNumber(m.cursor),
        },
        Kind::Announce(m) => {
            check::at_most("announced runs", m.runs.len(), MAX_ANNOUNCED)?;
            check::at_most("announced segments", m.segments.len(), MAX_ANNOUNCED)?;
            ToHub::Announce {
                stream: check::stream(m.stream)?,
                runs: m
                    .runs
                    .into_iter()
                    .map(check::run)
                    .collect::<Result<_, _>>()?,
                segments: m
                    .segments
                    .into_iter()
                    .map(check::segment)
                    .collect::<Result<_, _>>()?,
            }
        }
        Kind::SegmentStart(m) => ToHub::SegmentStart(segment_start(m)?),
        Kind::Chunk(m) => ToHub::Chunk(chunk(m)?),
        Kind::SegmentClosed(m) => ToHub::SegmentClosed {
            stream: check::stream(m.stream)?,
            info: check::segment(m.segment.ok_or(ProtocolError::Missing("segment"))?)?,
        },
        Kind::SegmentPaused(m) => ToHub::SegmentPaused {
            stream: check::stream(m.stream)?,
            number: check::number(m.number)?,
        },
        Kind::Holes(m) => ToHub::Holes {
            stream: check::stream(m.stream)?,
            ranges: check::numbers(m.ranges)?,
            reason: check::hole_reason(m.reason)?,
        },
        Kind::StreamEnd(m) => ToHub::StreamEnd {
            stream: check::stream(m.stream)?,
            last: m.last.map(check::number).transpose()?,
        },
        Kind::Restamp(m) => ToHub::Restamp {
            stream: check::stream(m.stream)?,
            segments: check::walls(m.segments)?,
        },
        Kind::Holding(m) => holding(m)?,
        Kind::Report(m) => ToHub::Report(report::from_wire(m)?),
    }))
}

fn holding(m: wire::Holding) -> Result<ToHub, ProtocolError> {
    let ranges = check::ranges(m.ranges)?;
    let ascending = ranges
        .iter()
        .zip(ranges.iter().skip(1))
        .all(|(lower, higher)| lower.end() < higher.start());
    let inside = ranges
        .iter()
        .all(|range| range.start().0 >= m.first && range.end().0 <= m.last);
    if !ascending || !inside || m.first > m.last {
        return Err(ProtocolError::Malformed("order of held ranges"));
    }
    Ok(ToHub::Holding {
        stream: check::stream(m.stream)?,
        within: SegmentNumber(m.first)..=SegmentNumber(m.last),
        ranges,
    })
}

fn hello(version: u32, software: String, clock_ms: i64) -> Result<Hello, ProtocolError> {
    Ok(Hello {
        version: check::version(version)?,
        software: check::software(software)?,
        clock: check::wall("device clock", clock_ms)?,
    })
}

fn segment_start(m: wire::SegmentStart) -> Result<SegmentStart, ProtocolError> {
    let run = check::run(m.run.ok_or(ProtocolError::Missing("run"))?)?;
    check::in_run(run.run.0, m.number)?;
    Ok(SegmentStart {
        stream: check::stream(m.stream)?,
        number: check::number(m.number)?,
        run,
        wall_start: check::wall("wall start", m.wall_start_ms)?,
        media_start: check::media_start(m.media_start_90k)?,
        independent: m.independent,
        offset: check::offset(m.offset)?,
    })
}

fn chunk(m: wire::Chunk) -> Result<Chunk, ProtocolError> {
    if m.data.is_empty() {
        return Err(ProtocolError::Missing("data"));
    }
    check::at_most("data", m.data.len(), MAX_CHUNK_BYTES)?;
    check::offset(check::offset(m.offset)? + m.data.len() as u64)?;
    let part_end = match m.part_end {
        None => None,
        Some(end) => Some(PartEnd {
            duration: check::duration(end.duration_90k)?,
            independent: end.independent,
        }),
    };
    Ok(Chunk {
        stream: check::stream(m.stream)?,
        number: check::number(m.number)?,
        offset: m.offset,
        data: m.data,
        part_end,
    })
}

pub(super) fn to_wire(message: &ToHub) -> wire::ToHub {
    let kind = match message {
        ToHub::Hello(hello) => Kind::Hello(wire::Hello {
            version: hello.version,
            software: hello.software.clone(),
            clock_ms: hello.clock.0,
        }),
        ToHub::Enrol { hello, token } => Kind::Enrol(wire::Enrol {
            version: hello.version,
            software: hello.software.clone(),
            clock_ms: hello.clock.0,
            token: token.clone(),
        }),
        ToHub::EnrolConfirm => Kind::EnrolConfirm(wire::EnrolConfirm {}),
        ToHub::StreamOpen { stream } => Kind::StreamOpen(wire::StreamOpen {
            stream: stream.to_string(),
        }),
        ToHub::SettledNext { stream, cursor } => Kind::SettledNext(wire::SettledNext {
            stream: stream.to_string(),
            cursor: cursor.0,
        }),
        ToHub::Announce {
            stream,
            runs,
            segments,
        } => Kind::Announce(wire::Announce {
            stream: stream.to_string(),
            runs: runs.iter().map(check::run_to_wire).collect(),
            segments: segments.iter().map(check::segment_to_wire).collect(),
        }),
        ToHub::SegmentStart(start) => Kind::SegmentStart(wire::SegmentStart {
            stream: start.stream.to_string(),
            number: start.number.0,
            run: Some(check::run_to_wire(&start.run)),
            wall_start_ms: start.wall_start.0,
            media_start_90k: start.media_start.0,
            independent: start.independent,
            offset: start.offset,
        }),
        ToHub::Chunk(chunk) => Kind::Chunk(wire::Chunk {
            stream: chunk.stream.to_string(),
            number: chunk.number.0,
            offset: chunk.offset,
            data: chunk.data.clone(),
            part_end: chunk.part_end.map(|end| wire::PartEnd {
                duration_90k: check::duration_to_wire(end.duration),
                independent: end.independent,
            }),
        }),
        ToHub::SegmentClosed { stream, info } => Kind::SegmentClosed(wire::SegmentClosed {
            stream: stream.to_string(),
            segment: Some(check::segment_to_wire(info)),
        }),
        ToHub::SegmentPaused { stream, number } => Kind::SegmentPaused(wire::SegmentPaused {
            stream: stream.to_string(),
            number: number.0,
        }),
        ToHub::Holes {
            stream,
            ranges,
            reason,
        } => Kind::Holes(wire::Holes {
            stream: stream.to_string(),
            ranges: check::ranges_to_wire(ranges),
            reason: u32::from(reason.code()),
        }),
        ToHub::StreamEnd { stream, last } => Kind::StreamEnd(wire::StreamEnd {
            stream: stream.to_string(),
            last: last.map(|last| last.0),
        }),
        ToHub::Restamp { stream, segments } => Kind::Restamp(wire::Restamp {
            stream: stream.to_string(),
            segments: segments
                .iter()
                .map(|(number, wall)| wire::WallTime {
                    number: number.0,
                    wall_start_ms: wall.0,
                })
                .collect(),
        }),
        ToHub::Holding {
            stream,
            within,
            ranges,
        } => Kind::Holding(wire::Holding {
            stream: stream.to_string(),
            ranges: check::ranges_to_wire(ranges),
            first: within.start().0,
            last: within.end().0,
        }),
        ToHub::Report(report) => Kind::Report(report::to_wire(report)),
    };
    wire::ToHub { kind: Some(kind) }
}
