//! The hub's half: what an edge's messages ask of the store, and what to answer.
//!
//! Each message gives at most one [`Job`]; the shell does the jobs of a session one after the other and
//! brings back an [`Outcome`], from which the answers follow. Nothing is `Stored` before the shell says that
//! it is durable (invariant 3). Who may be here at all (`Hello`, `Enrol`) was decided before.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{
    HoleReason, MAX_SEGMENT_BYTES, RangeSet, RunInfo, SegmentHash, SegmentInfo, SegmentNumber,
    StreamName, WallTime,
};

use super::{MAX_PARTIALS, MAX_STREAMS};
use crate::{
    Channel,
    messages::{Chunk, MAX_RANGES, PartEnd, ProtocolError, SegmentStart, Settled, ToEdge, ToHub},
};

/// How long an edge holds a segment back that the hub's disk could not take.
const DISK_WAIT_MS: u32 = 5_000;

/// What the store is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Make sure the stream exists and is this device's; then say what is settled, and which partials wait.
    Register { stream: StreamName },
    /// Say what is settled.
    Compare {
        stream: StreamName,
        below: SegmentNumber,
    },
    Announce {
        stream: StreamName,
        runs: Vec<RunInfo>,
        segments: Vec<SegmentInfo>,
    },
    /// Begin a segment, or go on with its partial where `offset` is its length.
    Start {
        start: SegmentStart,
        /// It is what is live now: the live list waits for nothing before it any more.
        live: bool,
        /// Stays as a partial: nothing more comes of it for now.
        instead_of: Option<SegmentNumber>,
    },
    /// Nothing more comes of a segment for now: it stays as a partial. Say how far it has come.
    Pause {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// Append to a segment that was begun.
    Append {
        stream: StreamName,
        number: SegmentNumber,
        data: Bytes,
        part_end: Option<PartEnd>,
    },
    /// Check, make durable, enter.
    Close {
        stream: StreamName,
        info: SegmentInfo,
    },
    Settle {
        stream: StreamName,
        ranges: Vec<std::ops::RangeInclusive<SegmentNumber>>,
        reason: HoleReason,
    },
    End {
        stream: StreamName,
        last: Option<SegmentNumber>,
    },
    /// Set the wall times of segments that are known; ascending, at least one.
    Restamp {
        stream: StreamName,
        segments: Vec<(SegmentNumber, WallTime)>,
    },
    /// Settle what was announced or begun before this session within these numbers and is not among `held`:
    /// the edge has it no more.
    KeepOnly {
        stream: StreamName,
        within: std::ops::RangeInclusive<SegmentNumber>,
        held: RangeSet,
    },
}

/// A segment's beginning that waits for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    pub number: SegmentNumber,
    pub length: u64,
    pub hash: SegmentHash,
}

/// What became of a job. A job without an answer of its own (`Settle`, `KeepOnly`, `Append`) that went well
/// has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Registered {
        stream: StreamName,
        settled: RangeSet,
        partials: Vec<Partial>,
    },
    /// The stream can't be this device's.
    StreamRefused { stream: StreamName, reason: String },
    Compared {
        stream: StreamName,
        below: SegmentNumber,
        settled: RangeSet,
    },
    /// Begun; bytes may come.
    Started,
    /// What is here of a segment that was paused.
    Paused {
        stream: StreamName,
        partial: Partial,
    },
    /// What announced numbers are here already.
    Announced {
        stream: StreamName,
        /// Here, with the announced length and hash.
        stored: Vec<SegmentNumber>,
        /// Settled without being here.
        holes: Vec<(SegmentNumber, HoleReason)>,
        /// The lowest that is here with other bytes, or of a run that is another one here; what was announced
        /// behind it is not waited for.
        collides: Option<SegmentNumber>,
        /// The lowest number not used here.
        floor: SegmentNumber,
    },
    /// A segment of that number is here: whether it is this one can't be said before it is closed.
    NumberUsed {
        stream: StreamName,
        number: SegmentNumber,
        /// The lowest number not used here.
        floor: SegmentNumber,
    },
    /// Here and durable.
    Stored {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// No partial of that length, or its bytes failed their hash for the first time: it is to come anew.
    Unusable {
        stream: StreamName,
        number: SegmentNumber,
    },
    /// Settled as a hole.
    Hole {
        stream: StreamName,
        number: SegmentNumber,
        reason: HoleReason,
    },
    /// The hub's disk or catalog is at fault; it may be well again later.
    Failed {
        stream: StreamName,
        number: SegmentNumber,
    },
    Ended {
        stream: StreamName,
        last: Option<SegmentNumber>,
    },
    Restamped {
        stream: StreamName,
        last: SegmentNumber,
    },
}

/// One session's state above the store: which streams are open, and how far each segment has come.
#[derive(Debug, Default)]
pub struct Receiver {
    /// At most [`MAX_STREAMS`].
    streams: BTreeMap<StreamName, Stream>,
}

#[derive(Debug)]
enum Stream {
    Open(Media),
    /// What still comes for it is dropped.
    Refused,
}

/// The segments that come of a stream: what is live, and beside it backfill.
#[derive(Debug, Default)]
struct Media {
    live: Option<Incoming>,
    bulk: Option<Incoming>,
}

#[derive(Debug)]
struct Incoming {
    number: SegmentNumber,
    /// Where the next chunk must begin.
    offset: u64,
    /// Its answer is given; what still comes for it is dropped.
    answered: bool,
}

impl Receiver {
    pub fn new() -> Self {
        Self::default()
    }

    /// The channels were renewed: the edge opens its streams anew.
    pub fn reset(&mut self) {
        self.streams.clear();
    }

    /// What a message asks for; none where there is nothing to do. An error ends the session: the edge is at
    /// fault.
    pub fn handle_message(
        &mut self,
        channel: Channel,
        message: ToHub,
    ) -> Result<Option<Job>, ProtocolError> {
        match message {
            ToHub::Hello(_) => Err(ProtocolError::OutOfOrder("hello")),
            ToHub::Enrol { .. } | ToHub::EnrolConfirm => {
                Err(ProtocolError::OutOfOrder("enrolment"))
            }
            ToHub::StreamOpen { stream } => self.open(stream),
            // Not about the store: for whoever watches.
            ToHub::Report(_) => Ok(None),
            ToHub::SettledNext { stream, cursor } => {
                Ok(self.media(&stream)?.map(|_| Job::Compare {
                    stream,
                    below: cursor,
                }))
            }
            ToHub::Announce {
                stream,
                runs,
                segments,
            } => Ok(self.media(&stream)?.map(|_| Job::Announce {
                stream,
                runs,
                segments,
            })),
            ToHub::SegmentStart(start) => self.start(channel, start),
            ToHub::Chunk(chunk) => self.chunk(channel, chunk),
            ToHub::SegmentClosed { stream, info } => self.closed(channel, stream, info),
            ToHub::SegmentPaused { stream, number } => self.paused(channel, stream, number),
            ToHub::Holes {
                stream,
                ranges,
                reason,
            } => Ok(self.media(&stream)?.map(|_| Job::Settle {
                stream,
                ranges,
                reason,
            })),
            ToHub::StreamEnd { stream, last } => {
                Ok(self.media(&stream)?.map(|_| Job::End { stream, last }))
            }
            ToHub::Restamp { stream, segments } => Ok(self
                .media(&stream)?
                .map(|_| Job::Restamp { stream, segments })),
            ToHub::Holding {
                stream,
                within,
                ranges,
            } => Ok(self.media(&stream)?.map(|_| Job::KeepOnly {
                stream,
                within,
                held: ranges.into_iter().collect(),
            })),
        }
    }

    /// The answers to a job's outcome: at most [`MAX_PARTIALS`] and one, or one for each announced segment.
    pub fn handle_outcome(&mut self, outcome: Outcome) -> Vec<ToEdge> {
        match outcome {
            Outcome::Registered {
                stream,
                settled,
                mut partials,
            } => {
                // The newest are the likeliest to be asked for still.
                partials.sort_by_key(|partial| std::cmp::Reverse(partial.number));
                partials.truncate(MAX_PARTIALS);
                let mut answers: Vec<_> = partials
                    .iter()
                    .filter_map(|partial| resume(&stream, partial))
                    .collect();
                answers.push(ToEdge::Settled(settled_page(stream, &settled, None)));
                answers
            }
            Outcome::StreamRefused { stream, reason } => vec![self.refuse(stream, reason)],
            Outcome::Compared {
                stream,
                below,
                settled,
            } => vec![ToEdge::Settled(settled_page(stream, &settled, Some(below)))],
            Outcome::Started => Vec::new(),
            Outcome::Paused { stream, partial } => {
                vec![resume(&stream, &partial).unwrap_or_else(|| again(stream, partial.number, 0))]
            }
            Outcome::Announced {
                stream,
                stored,
                holes,
                collides,
                floor,
            } => {
                let of = || stream.clone();
                let stored = stored.into_iter().map(|number| ToEdge::Stored {
                    stream: of(),
                    number,
                });
                let holes = holes.into_iter().map(|(number, reason)| ToEdge::Hole {
                    stream: of(),
                    number,
                    reason,
                });
                let collides = collides.map(|number| ToEdge::Collides {
                    stream: of(),
                    number,
                    floor,
                    compared: true,
                });
                stored.chain(holes).chain(collides).collect()
            }
            Outcome::NumberUsed {
                stream,
                number,
                floor,
            } => {
                self.answered(&stream, number);
                vec![ToEdge::Collides {
                    stream,
                    number,
                    floor,
                    compared: false,
                }]
            }
            Outcome::Stored { stream, number } => vec![ToEdge::Stored { stream, number }],
            Outcome::Unusable { stream, number } => {
                self.answered(&stream, number);
                vec![again(stream, number, 0)]
            }
            Outcome::Hole {
                stream,
                number,
                reason,
            } => {
                self.answered(&stream, number);
                vec![ToEdge::Hole {
                    stream,
                    number,
                    reason,
                }]
            }
            Outcome::Failed { stream, number } => {
                self.answered(&stream, number);
                vec![again(stream, number, DISK_WAIT_MS)]
            }
            Outcome::Ended { stream, last } => vec![ToEdge::Ended { stream, last }],
            Outcome::Restamped { stream, last } => vec![ToEdge::Restamped { stream, last }],
        }
    }

    /// The streams that this session ships.
    pub fn streams(&self) -> impl Iterator<Item = &StreamName> {
        self.streams
            .iter()
            .filter(|(_, state)| matches!(state, Stream::Open(_)))
            .map(|(name, _)| name)
    }

    /// The stream is not (or no longer) this device's: what to tell it. Only this stream stops.
    pub fn refuse(&mut self, stream: StreamName, reason: String) -> ToEdge {
        if let Some(state) = self.streams.get_mut(&stream) {
            *state = Stream::Refused;
        }
        ToEdge::StreamRefused { stream, reason }
    }

    fn open(&mut self, stream: StreamName) -> Result<Option<Job>, ProtocolError> {
        if self.streams.len() >= MAX_STREAMS && !self.streams.contains_key(&stream) {
            return Err(ProtocolError::TooLong {
                what: "list of streams",
                length: MAX_STREAMS as u64 + 1,
                limit: MAX_STREAMS as u64,
            });
        }
        self.streams
            .insert(stream.clone(), Stream::Open(Media::default()));
        Ok(Some(Job::Register { stream }))
    }

    /// What comes of a stream; None: the stream was refused.
    fn media(&mut self, stream: &StreamName) -> Result<Option<&mut Media>, ProtocolError> {
        match self.streams.get_mut(stream) {
            Some(Stream::Open(media)) => Ok(Some(media)),
            Some(Stream::Refused) => Ok(None),
            None => Err(ProtocolError::OutOfOrder("a stream that was not opened")),
        }
    }

    fn start(
        &mut self,
        channel: Channel,
        start: SegmentStart,
    ) -> Result<Option<Job>, ProtocolError> {
        let Some(media) = self.media(&start.stream)? else {
            return Ok(None);
        };
        let (slot, other) = media.of(channel)?;
        // What still comes of it on the other channel was sent before this.
        if let Some(other) = other.as_mut().filter(|o| o.number == start.number) {
            other.answered = true;
        }
        let before = slot.replace(Incoming {
            number: start.number,
            offset: start.offset,
            answered: false,
        });
        Ok(Some(Job::Start {
            live: channel == Channel::Live,
            instead_of: before
                .filter(|before| !before.answered && before.number != start.number)
                .map(|before| before.number),
            start,
        }))
    }

    fn chunk(&mut self, channel: Channel, chunk: Chunk) -> Result<Option<Job>, ProtocolError> {
        let unexpected = |why| ProtocolError::Unexpected {
            what: "chunk",
            stream: chunk.stream.clone(),
            number: chunk.number,
            why,
        };
        let Some(media) = self.media(&chunk.stream)? else {
            return Ok(None);
        };
        let (slot, _) = media.of(channel)?;
        let Some(incoming) = slot
            .as_mut()
            .filter(|incoming| incoming.number == chunk.number)
        else {
            return Err(unexpected("the segment was not started"));
        };
        if incoming.offset != chunk.offset {
            return Err(unexpected("its offset is not where the last one ended"));
        }
        incoming.offset += chunk.data.len() as u64;
        if incoming.answered {
            return Ok(None);
        }
        Ok(Some(Job::Append {
            stream: chunk.stream,
            number: chunk.number,
            data: chunk.data,
            part_end: chunk.part_end,
        }))
    }

    fn closed(
        &mut self,
        channel: Channel,
        stream: StreamName,
        info: SegmentInfo,
    ) -> Result<Option<Job>, ProtocolError> {
        let what = "end of segment";
        let Some(incoming) = self.take(channel, &stream, info.number, what)? else {
            return Ok(None);
        };
        if incoming.offset != info.bytes {
            return Err(ProtocolError::Unexpected {
                what,
                stream,
                number: info.number,
                why: "its length is not what was sent",
            });
        }
        Ok(Some(Job::Close { stream, info }))
    }

    fn paused(
        &mut self,
        channel: Channel,
        stream: StreamName,
        number: SegmentNumber,
    ) -> Result<Option<Job>, ProtocolError> {
        let incoming = self.take(channel, &stream, number, "pause of segment")?;
        Ok(incoming.map(|_| Job::Pause { stream, number }))
    }

    /// The segment of which nothing more comes on this channel; None where its answer is given.
    fn take(
        &mut self,
        channel: Channel,
        stream: &StreamName,
        number: SegmentNumber,
        what: &'static str,
    ) -> Result<Option<Incoming>, ProtocolError> {
        let Some(media) = self.media(stream)? else {
            return Ok(None);
        };
        let (slot, _) = media.of(channel)?;
        match slot.take_if(|incoming| incoming.number == number) {
            Some(incoming) => Ok(Some(incoming).filter(|incoming| !incoming.answered)),
            None => Err(ProtocolError::Unexpected {
                what,
                stream: stream.clone(),
                number,
                why: "the segment was not started",
            }),
        }
    }

    fn answered(&mut self, stream: &StreamName, number: SegmentNumber) {
        let Some(Stream::Open(media)) = self.streams.get_mut(stream) else {
            return;
        };
        let both = [&mut media.live, &mut media.bulk].into_iter().flatten();
        for incoming in both.filter(|incoming| incoming.number == number) {
            incoming.answered = true;
        }
    }
}

/// What comes on a channel.
type Slot = Option<Incoming>;

impl Media {
    /// What comes on this channel, and what on the other one.
    fn of(&mut self, channel: Channel) -> Result<(&mut Slot, &mut Slot), ProtocolError> {
        match channel {
            Channel::Live => Ok((&mut self.live, &mut self.bulk)),
            Channel::Bulk => Ok((&mut self.bulk, &mut self.live)),
            Channel::Control => Err(ProtocolError::OutOfOrder("media among control messages")),
        }
    }
}

/// None where there is nothing to go on from.
fn resume(stream: &StreamName, partial: &Partial) -> Option<ToEdge> {
    (1..=MAX_SEGMENT_BYTES)
        .contains(&partial.length)
        .then(|| ToEdge::Resume {
            stream: stream.clone(),
            number: partial.number,
            length: partial.length,
            hash: partial.hash,
        })
}

fn again(stream: StreamName, number: SegmentNumber, wait_ms: u32) -> ToEdge {
    ToEdge::Again {
        stream,
        number,
        wait_ms,
    }
}

/// The newest [`MAX_RANGES`] settled ranges below a cursor.
fn settled_page(stream: StreamName, settled: &RangeSet, below: Option<SegmentNumber>) -> Settled {
    let mut under: RangeSet;
    let settled = match below {
        None => settled,
        Some(below) => {
            under = settled.clone();
            under.remove_range(below..=SegmentNumber(u64::MAX));
            &under
        }
    };
    let ranges: Vec<_> = settled.iter().rev().take(MAX_RANGES).collect();
    let done = ranges.len() == settled.range_count();
    let cursor = match ranges.last() {
        Some(oldest) if !done => *oldest.start(),
        _ => SegmentNumber(0),
    };
    Settled {
        stream,
        ranges,
        cursor,
        done,
    }
}
