//! [`ToEdge`] to and from the wire.

use bytes::Bytes;
use model::SegmentNumber;

use super::{
    MAX_FLOORS, MAX_WAIT_MS, MAX_WANTED, ProtocolError, Settled, ToEdge, check, reason_text,
    wire::{self, to_edge::Kind},
};

pub(super) fn from_wire(message: wire::ToEdge) -> Result<Option<ToEdge>, ProtocolError> {
    let Some(kind) = message.kind else {
        return Ok(None);
    };
    Ok(Some(match kind {
        Kind::Welcome(m) => {
            check::at_most("floors", m.floors.len(), MAX_FLOORS)?;
            let floor = |f: wire::Floor| Ok((check::stream(f.stream)?, SegmentNumber(f.number)));
            ToEdge::Welcome {
                name: m
                    .name
                    .try_into()
                    .map_err(|_| ProtocolError::Malformed("device name"))?,
                hub_time: check::wall("hub time", m.hub_ms)?,
                floors: m.floors.into_iter().map(floor).collect::<Result<_, _>>()?,
            }
        }
        Kind::Refused(m) => ToEdge::Refused {
            reason: check::reason(m.reason)?,
        },
        Kind::Enrolled(wire::Enrolled {}) => ToEdge::Enrolled,
        Kind::Resume(m) => ToEdge::Resume {
            stream: check::stream(m.stream)?,
            number: SegmentNumber(m.number),
            length: check::segment_length("length of a partial", m.length)?,
            hash: check::hash(&m.hash)?,
        },
        Kind::Settled(m) => ToEdge::Settled(settled(m)?),
        Kind::StreamRefused(m) => ToEdge::StreamRefused {
            stream: check::stream(m.stream)?,
            reason: check::reason(m.reason)?,
        },
        Kind::Stored(m) => ToEdge::Stored {
            stream: check::stream(m.stream)?,
            number: SegmentNumber(m.number),
        },
        Kind::Again(m) => ToEdge::Again {
            stream: check::stream(m.stream)?,
            number: SegmentNumber(m.number),
            wait_ms: m.wait_ms.min(MAX_WAIT_MS),
        },
        Kind::Hole(m) => ToEdge::Hole {
            stream: check::stream(m.stream)?,
            number: SegmentNumber(m.number),
            reason: check::hole_reason(m.reason)?,
        },
        Kind::Collides(m) => ToEdge::Collides {
            stream: check::stream(m.stream)?,
            number: check::number(m.number)?,
            floor: check::number(m.floor)?,
            compared: m.compared,
        },
        Kind::Ended(m) => ToEdge::Ended {
            stream: check::stream(m.stream)?,
            last: m.last.map(SegmentNumber),
        },
        Kind::Restamped(m) => ToEdge::Restamped {
            stream: check::stream(m.stream)?,
            last: SegmentNumber(m.last),
        },
        Kind::Want(m) => {
            check::at_most("wanted ranges", m.ranges.len(), MAX_WANTED)?;
            ToEdge::Want {
                stream: check::stream(m.stream)?,
                ranges: check::ranges(m.ranges)?,
            }
        }
    }))
}

fn settled(m: wire::Settled) -> Result<Settled, ProtocolError> {
    let ranges = check::ranges(m.ranges)?;
    let cursor = SegmentNumber(m.cursor);
    let descending = ranges
        .iter()
        .zip(ranges.iter().skip(1))
        .all(|(newer, older)| older.end() < newer.start());
    let above_cursor = ranges.last().is_none_or(|range| *range.start() >= cursor);
    if !(descending && above_cursor) {
        return Err(ProtocolError::Malformed("order of settled ranges"));
    }
    Ok(Settled {
        stream: check::stream(m.stream)?,
        ranges,
        cursor,
        done: m.done,
    })
}

pub(super) fn to_wire(message: &ToEdge) -> wire::ToEdge {
    let kind = match message {
        ToEdge::Welcome {
            name,
            hub_time,
            floors,
        } => Kind::Welcome(wire::Welcome {
            name: name.to_string(),
            hub_ms: hub_time.0,
            floors: floors
                .iter()
                .map(|(stream, number)| wire::Floor {
                    stream: stream.to_string(),
                    number: number.0,
                })
                .collect(),
        }),
        ToEdge::Refused { reason } => Kind::Refused(wire::Refused {
            reason: reason_text(reason),
        }),
        ToEdge::Enrolled => Kind::Enrolled(wire::Enrolled {}),
        ToEdge::Resume {
            stream,
            number,
            length,
            hash,
        } => Kind::Resume(wire::Resume {
            stream: stream.to_string(),
            number: number.0,
            length: *length,
            hash: Bytes::copy_from_slice(&hash.0),
        }),
        ToEdge::Settled(settled) => Kind::Settled(wire::Settled {
            stream: settled.stream.to_string(),
            ranges: check::ranges_to_wire(&settled.ranges),
            cursor: settled.cursor.0,
            done: settled.done,
        }),
        ToEdge::StreamRefused { stream, reason } => Kind::StreamRefused(wire::StreamRefused {
            stream: stream.to_string(),
            reason: reason_text(reason),
        }),
        ToEdge::Stored { stream, number } => Kind::Stored(wire::Stored {
            stream: stream.to_string(),
            number: number.0,
        }),
        ToEdge::Again {
            stream,
            number,
            wait_ms,
        } => Kind::Again(wire::Again {
            stream: stream.to_string(),
            number: number.0,
            wait_ms: *wait_ms,
        }),
        ToEdge::Hole {
            stream,
            number,
            reason,
        } => Kind::Hole(wire::Hole {
            stream: stream.to_string(),
            number: number.0,
            reason: u32::from(reason.code()),
        }),
        ToEdge::Collides {
            stream,
            number,
            floor,
            compared,
        } => Kind::Collides(wire::Collides {
            stream: stream.to_string(),
            number: number.0,
            floor: floor.0,
            compared: *compared,
        }),
        ToEdge::Ended { stream, last } => Kind::Ended(wire::Ended {
            stream: stream.to_string(),
            last: last.map(|last| last.0),
        }),
        ToEdge::Restamped { stream, last } => Kind::Restamped(wire::Restamped {
            stream: stream.to_string(),
            last: last.0,
        }),
        ToEdge::Want { stream, ranges } => Kind::Want(wire::Want {
            stream: stream.to_string(),
            ranges: check::ranges_to_wire(ranges),
        }),
    };
    wire::ToEdge { kind: Some(kind) }
}
