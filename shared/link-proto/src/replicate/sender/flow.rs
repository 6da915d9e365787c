//! One segment on its way: which of its bytes to read, and which message of it goes next.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use model::{
    MediaDuration, MediaTime, PartInfo, RunInfo, SegmentHash, SegmentInfo, SegmentNumber,
    StreamName, WallTime,
};

use super::{OpenFacts, READ_BYTES};
use crate::{
    Channel,
    messages::{Chunk, MAX_CHUNK_BYTES, PartEnd, SegmentStart, ToHub},
    replicate::class::Class,
};

/// A segment begun on a channel. It may be open still; once it has closed it goes on where it is.
#[derive(Debug)]
pub(super) struct Flow {
    /// Answers of the store bear it.
    pub(super) ticket: u64,
    pub(super) stream: StreamName,
    pub(super) number: SegmentNumber,
    pub(super) channel: Channel,
    pub(super) class: Class,
    run: RunInfo,
    wall_start: WallTime,
    media_start: MediaTime,
    independent: bool,
    state: State,
    /// The beginning that the hub has, if it is known to have one.
    partial: Option<(u64, SegmentHash)>,
    /// Offset of the next byte to send.
    sent: u64,
    /// Media before the first part that is not sent whole.
    sent_media: MediaDuration,
    /// It was begun since the one before it was demoted: this one is let through.
    pub(super) is_spared: bool,
    /// Bytes that can be read.
    available: u64,
    /// Complete parts that are not sent whole, ascending.
    parts: VecDeque<PartInfo>,
    closed: Option<SegmentInfo>,
    /// What was read from `sent` on.
    buffered: VecDeque<Bytes>,
    buffered_bytes: u64,
    /// Bytes asked for that follow the buffered ones.
    reading_bytes: u64,
}

#[derive(Debug)]
enum State {
    /// The hub has a beginning of it: ours must be the same.
    Hashing {
        length: u64,
        hash: SegmentHash,
        asked: bool,
    },
    Starting,
    Sending,
    Finished,
}

/// What a flow needs from the store.
pub(super) enum Need {
    Hash { length: u64 },
    Read { range: Range<u64> },
}

impl Flow {
    /// A closed segment.
    pub(super) fn closed(
        ticket: u64,
        stream: StreamName,
        channel: Channel,
        run: RunInfo,
        info: SegmentInfo,
    ) -> Self {
        let facts = OpenFacts {
            number: info.number,
            run: info.run,
            wall_start: info.wall_start,
            media_start: info.media_start,
            independent: info.independent,
            parts: Vec::new(),
        };
        let mut flow = Self::open(ticket, stream, channel, run, &facts);
        flow.close(info);
        flow
    }

    /// A segment that is being written.
    pub(super) fn open(
        ticket: u64,
        stream: StreamName,
        channel: Channel,
        run: RunInfo,
        facts: &OpenFacts,
    ) -> Self {
        let mut flow = Self {
            ticket,
            stream,
            number: facts.number,
            channel,
            class: match channel {
                Channel::Live => Class::Live,
                _ => Class::Backfill,
            },
            run,
            wall_start: facts.wall_start,
            media_start: facts.media_start,
            independent: facts.independent,
            state: State::Starting,
            partial: None,
            sent: 0,
            sent_media: MediaDuration::ZERO,
            is_spared: false,
            available: 0,
            parts: VecDeque::new(),
            closed: None,
            buffered: VecDeque::new(),
            buffered_bytes: 0,
            reading_bytes: 0,
        };
        flow.grow(&facts.parts);
        flow
    }

    /// The hub has the first `length` bytes; longer than what is here they can't be ours.
    pub(super) fn resume(mut self, length: u64, hash: SegmentHash) -> Self {
        if length <= self.available {
            self.partial = Some((length, hash));
            self.state = State::Hashing {
                length,
                hash,
                asked: false,
            };
        }
        self
    }

    /// More parts of the open segment are complete.
    pub(super) fn grow(&mut self, parts: &[PartInfo]) {
        let end = |part: &PartInfo| part.offset.saturating_add(part.bytes);
        let (sent, unsent): (Vec<_>, Vec<_>) = parts
            .iter()
            .copied()
            .partition(|part| end(part) <= self.sent);
        self.parts = unsent.into();
        self.sent_media = sent
            .iter()
            .fold(MediaDuration::ZERO, |sum, part| sum + part.duration);
        self.available = self.available.max(parts.last().map_or(0, end));
    }

    /// The segment has closed. False: it is shorter than what was sent of it, so this flow is of no use.
    pub(super) fn close(&mut self, info: SegmentInfo) -> bool {
        self.available = info.bytes;
        self.closed = Some(info);
        self.sent + self.buffered_bytes + self.reading_bytes <= info.bytes
    }

    /// What it is, once it has closed.
    pub(super) fn info(&self) -> Option<SegmentInfo> {
        self.closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Where the media begins that is not sent, by the segment's wall time.
    pub(super) fn unsent_since(&self) -> WallTime {
        let sent = match self.closed {
            Some(info) if info.bytes > 0 => {
                let share = i128::from(info.duration.0) * i128::from(self.sent);
                MediaDuration((share / i128::from(info.bytes)) as i64)
            }
            _ => self.sent_media,
        };
        self.wall_start.plus(sent)
    }

    /// Less than half of what there is of it has been sent.
    pub(super) fn is_barely_begun(&self) -> bool {
        self.sent < self.available.div_ceil(2)
    }

    /// Whether the hub was told of it.
    pub(super) fn is_said(&self) -> bool {
        matches!(self.state, State::Sending | State::Finished)
    }

    /// The beginning that the hub has, of a segment that it was not told of.
    pub(super) fn unsaid_partial(&self) -> Option<(u64, SegmentHash)> {
        self.partial.filter(|_| !self.is_said())
    }

    /// Whether there is a message now.
    pub(super) fn is_ready(&self) -> bool {
        match self.state {
            State::Hashing { .. } | State::Finished => false,
            State::Starting => true,
            State::Sending => {
                !self.buffered.is_empty() || self.closed.is_some_and(|info| info.bytes == self.sent)
            }
        }
    }

    /// A live one of which more is there than was sent.
    pub(super) fn is_live_unsent(&self) -> bool {
        self.channel == Channel::Live && self.sent < self.available
    }

    /// All was said; the bytes of the segment.
    pub(super) fn finished(&self) -> Option<u64> {
        matches!(self.state, State::Finished).then_some(self.sent)
    }

    /// Bytes held or asked for.
    pub(super) fn read_ahead(&self) -> u64 {
        self.buffered_bytes + self.reading_bytes
    }

    /// What to ask the store for now, if `room` for read-ahead is left.
    pub(super) fn need(&mut self, room: u64) -> Option<Need> {
        if let State::Hashing { length, asked, .. } = &mut self.state {
            let ask = !std::mem::replace(asked, true);
            return ask.then_some(Need::Hash { length: *length });
        }
        let from = self.sent + self.buffered_bytes;
        let until = self.available.min(from + READ_BYTES);
        let wanted = self.reading_bytes == 0
            && self.buffered_bytes < READ_BYTES / 2
            && from < until
            && until - from <= room;
        if !wanted {
            return None;
        }
        self.reading_bytes = until - from;
        Some(Need::Read { range: from..until })
    }

    /// The hash of what the hub has a beginning of, if it could be read.
    pub(super) fn hashed(&mut self, ours: Option<SegmentHash>) {
        if let State::Hashing { length, hash, .. } = self.state {
            if ours == Some(hash) {
                self.sent = length;
                self.drop_sent_parts();
            }
            self.state = State::Starting;
        }
    }

    /// Bytes from `from` on. False: they are not what was asked for.
    pub(super) fn read(&mut self, from: u64, bytes: Bytes) -> bool {
        if from != self.sent + self.buffered_bytes || bytes.len() as u64 != self.reading_bytes {
            return false;
        }
        self.buffered_bytes += self.reading_bytes;
        self.reading_bytes = 0;
        self.buffered.push_back(bytes);
        true
    }

    /// The next message, if there is one now.
    pub(super) fn next_message(&mut self) -> Option<ToHub> {
        match self.state {
            State::Hashing { .. } | State::Finished => None,
            State::Starting => {
                self.state = State::Sending;
                Some(ToHub::SegmentStart(SegmentStart {
                    stream: self.stream.clone(),
                    number: self.number,
                    run: self.run.clone(),
                    wall_start: self.wall_start,
                    media_start: self.media_start,
                    independent: self.independent,
                    offset: self.sent,
                }))
            }
            State::Sending => self.next_chunk().or_else(|| self.end()),
        }
    }

    fn next_chunk(&mut self) -> Option<ToHub> {
        let part_end = self.parts.front().map(|part| part.offset + part.bytes);
        let block = self.buffered.front_mut()?;
        let left_of_part = part_end
            .and_then(|end| end.checked_sub(self.sent))
            .and_then(|left| usize::try_from(left).ok())
            .unwrap_or(usize::MAX);
        let data = block.split_to(block.len().min(MAX_CHUNK_BYTES).min(left_of_part));
        if block.is_empty() {
            self.buffered.pop_front();
        }
        let offset = self.sent;
        self.sent += data.len() as u64;
        self.buffered_bytes -= data.len() as u64;
        let part_end = match self.parts.front() {
            Some(part) if part_end == Some(self.sent) => Some(PartEnd::from(part)),
            _ => None,
        };
        self.drop_sent_parts();
        Some(ToHub::Chunk(Chunk {
            stream: self.stream.clone(),
            number: self.number,
            offset,
            data,
            part_end,
        }))
    }

    fn end(&mut self) -> Option<ToHub> {
        let info = self.closed.filter(|info| info.bytes == self.sent)?;
        self.state = State::Finished;
        Some(ToHub::SegmentClosed {
            stream: self.stream.clone(),
            info,
        })
    }

    fn drop_sent_parts(&mut self) {
        while self
            .parts
            .front()
            .is_some_and(|part| part.offset + part.bytes <= self.sent)
        {
            if let Some(part) = self.parts.pop_front() {
                self.sent_media += part.duration;
            }
        }
    }
}
