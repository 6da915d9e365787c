//! The edge's half: what to look up, read and send, so that the hub gets what it lacks.
//!
//! Per stream: compare with what is settled at the hub, tell what is still to come, announce what the hub has
//! not confirmed, then ship oldest first; the
//! open segment goes part by part once everything before it has been sent. Streams take turns. Closed
//! segments go by the bulk channel, live ones by the live channel; a stream changes channels only when all
//! it sent on the other one is settled, so the hub gets a stream's segments in order.
//!
//! The shell holds the store: it carries out [`Command`]s in the order in which it gets them and brings the
//! answers back. An answer that nothing waits for any more is dropped by its `ticket`.
//!
//! Keeps invariants 3 (only the hub's word settles a segment) and 5 (reads ahead, unacknowledged segments
//! and queues have named limits). Which bytes of a segment go next is [`flow`]'s business, what is known of
//! a stream [`stream`]'s; [`command`] has the words for the shell.

mod command;
mod flow;
mod stream;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::{HoleReason, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName};

use super::MAX_STREAMS;
use crate::{
    Channel,
    messages::{ProtocolError, ToEdge, ToHub},
};
pub use command::{Command, Held, LOOK_LIMIT, Looked, OpenFacts, READ_BYTES};
use flow::Flow;
pub use stream::MAX_ANNOUNCED_AHEAD;
use stream::{Collision, Phase, Stream};

/// Most segments that were sent or are being sent and that the hub has not settled.
pub const MAX_UNACKNOWLEDGED: usize = 64;
/// With this many bytes in segments sent whole and not settled, no other segment is begun.
pub const MAX_UNACKNOWLEDGED_BYTES: u64 = 64 << 20;
/// Most bytes read ahead of the link over all streams, with those being read.
pub const MAX_READ_AHEAD: u64 = 4 << 20;
/// Closed segments in hand from which on the store need not be asked for more.
const ENOUGH_QUEUED: usize = 32;
/// Bulk segments begun: one is being sent, one is being read.
const MAX_BULK_FLOWS: usize = 2;
/// Commands that wait for the shell from which on no message should be taken.
const MAX_COMMANDS: usize = 1_024;
/// A segment that could not be read, or vanished, is looked for again after this.
const READ_WAIT: Duration = Duration::from_secs(1);
/// A segment whose bytes could not be read this often is given up.
const MAX_FAILED_READS: u32 = 3;
/// Segments whose reads failed, or that were sent in part, that are remembered over sessions; the rest begin to
/// be counted anew.
const MAX_REMEMBERED: usize = 1_024;
/// A stream that was refused is offered again after this: an operator may have given it to this device.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// What was sent and settled since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub segments_shipped: u64,
    pub segments_stored: u64,
    /// Media bytes sent for the first time: what goes again counts once.
    pub new_bytes_sent: u64,
}

/// See the module. Lives as long as the uplink; sessions come and go.
#[derive(Debug, Default)]
pub struct Sender {
    /// At most [`MAX_STREAMS`].
    streams: BTreeMap<StreamName, Stream>,
    /// The segments begun, in order; at most one of a stream on the live channel.
    flows: VecDeque<Flow>,
    commands: VecDeque<Command>,
    control: VecDeque<ToHub>,
    connected: bool,
    /// The last ticket given to a command or flow.
    last_ticket: u64,
    /// Something has changed that may let a segment begin.
    may_begin: bool,
    /// The stream whose segment was last begun on the bulk channel.
    last_bulk: Option<StreamName>,
    progress: Progress,
    /// What the hub has not seen used, by stream, as of its welcome.
    floors: BTreeMap<StreamName, SegmentNumber>,
    /// How often a segment could not be read.
    failed_reads: BTreeMap<(StreamName, SegmentNumber), u32>,
    /// How far each segment that is not settled was sent, over all sessions.
    reached: BTreeMap<(StreamName, SegmentNumber), u64>,
}

impl Sender {
    pub fn new() -> Self {
        Self::default()
    }

    /// A session is welcome at the hub, or its channels were renewed: compares everything anew.
    pub fn connected(&mut self) {
        self.forget_session();
        self.connected = true;
    }

    /// The lowest numbers that the hub has not seen used, as its welcome says.
    pub fn set_floors(&mut self, floors: &[(StreamName, SegmentNumber)]) {
        self.floors = floors.iter().cloned().collect();
    }

    /// The session is gone.
    pub fn disconnected(&mut self) {
        self.forget_session();
        self.connected = false;
    }

    /// The streams in the store, those that matter most first. What is not named is dropped; what is over
    /// [`MAX_STREAMS`] is not shipped, and given back.
    pub fn set_streams(&mut self, mut names: Vec<StreamName>) -> Vec<StreamName> {
        let left_out = names.split_off(names.len().min(MAX_STREAMS));
        names.sort();
        let named = |name: &StreamName| names.binary_search(name).is_ok();
        self.streams.retain(|name, _| named(name));
        self.flows.retain(|flow| named(&flow.stream));
        for name in names {
            self.streams.entry(name).or_default();
        }
        left_out
    }

    /// The store has changed: new parts, closed segments, an end.
    pub fn changed(&mut self) {
        self.streams.values_mut().for_each(Stream::changed);
    }

    /// What the hub says. An error ends the session: the hub is at fault. What it says of a stream or segment
    /// that is not (or no longer) on its way is dropped.
    pub fn handle_message(&mut self, now: Instant, message: ToEdge) -> Result<(), ProtocolError> {
        match message {
            ToEdge::Welcome { .. } | ToEdge::Enrolled | ToEdge::Refused { .. } => {
                return Err(ProtocolError::OutOfOrder("a greeting"));
            }
            ToEdge::Resume {
                stream,
                number,
                length,
                hash,
            } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.partial(number, length, hash);
                }
            }
            ToEdge::Settled(page) => {
                let Some(stream) = self.streams.get_mut(&page.stream) else {
                    return Ok(());
                };
                if stream.compare(&page)? {
                    let settled = stream.tell();
                    self.commands.push_back(Command::SetSettled {
                        stream: page.stream,
                        settled,
                    });
                } else {
                    self.control.push_back(ToHub::SettledNext {
                        stream: page.stream,
                        cursor: page.cursor,
                    });
                }
            }
            ToEdge::StreamRefused { stream, reason } => {
                self.flows.retain(|flow| flow.stream != stream);
                if let Some(state) = self.streams.get_mut(&stream) {
                    *state = Stream::default();
                    state.phase = Phase::Refused {
                        reason,
                        again_at: now + REFUSED_WAIT,
                    };
                }
            }
            ToEdge::Stored { stream, number } => self.settled(&stream, number, None),
            ToEdge::Hole {
                stream,
                number,
                reason,
            } => self.settled(&stream, number, Some(reason)),
            ToEdge::Collides {
                stream,
                number,
                floor,
                compared,
            } => {
                self.take_off(&stream, number);
                if let Some(state) = self.streams.get_mut(&stream).filter(|s| s.is_shipping()) {
                    if compared {
                        state.collide(Collision { number, floor });
                        self.flows.retain(|flow| flow.stream != stream);
                    } else {
                        state.hold(number);
                    }
                }
            }
            ToEdge::Again {
                stream,
                number,
                wait_ms,
            } => {
                let wait = Duration::from_millis(u64::from(wait_ms));
                self.take_back(&stream, number, (wait_ms > 0).then(|| now + wait));
            }
            ToEdge::Ended { stream, last } => {
                if let Some(state) = self.streams.get_mut(&stream)
                    && state.ended(last)
                {
                    self.commands.push_back(Command::MarkEnded { stream });
                }
            }
            ToEdge::Restamped { stream, last } => {
                let state = self.streams.get_mut(&stream);
                if let Some(segments) = state.and_then(|state| state.restamped(last)) {
                    self.commands
                        .push_back(Command::MarkRestamped { stream, segments });
                }
            }
        }
        Ok(())
    }

    /// The answer to [`Command::Look`]; None where the store failed.
    pub fn handle_looked(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        looked: Option<Looked>,
    ) {
        let waits = |state: &&mut Stream| state.looking == Some(ticket);
        let Some(state) = self.streams.get_mut(stream).filter(waits) else {
            return;
        };
        self.may_begin = true;
        let Some(looked) = looked else {
            state.looking = None;
            state.restart(Some(now + READ_WAIT));
            return;
        };
        // A segment on its way may have got parts, have closed, or be gone.
        self.flows.retain_mut(|flow| {
            if flow.stream != *stream {
                return true;
            }
            if let Some(info) = looked.page.iter().find(|info| info.number == flow.number) {
                return flow.close(*info);
            }
            match &looked.open {
                Some(open) if open.number == flow.number => {
                    flow.grow(&open.parts);
                    true
                }
                _ => false,
            }
        });
        let begun: Vec<_> = self
            .flows
            .iter()
            .filter(|flow| flow.stream == *stream)
            .map(|flow| flow.number)
            .collect();
        let messages = state.looked(stream, looked, &begun);
        self.control.extend(messages);
    }

    /// The answer to [`Command::List`] with the runs of its segments; None where the store failed.
    pub fn handle_listed(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        listed: Option<(Vec<SegmentInfo>, Vec<RunInfo>)>,
    ) {
        let waits = |state: &&mut Stream| state.listing == Some(ticket);
        let Some(state) = self.streams.get_mut(stream).filter(waits) else {
            return;
        };
        self.may_begin = true;
        match listed {
            Some((page, runs)) => self.control.extend(state.listed(stream, &page, &runs)),
            None => {
                state.listing = None;
                state.restart(Some(now + READ_WAIT));
            }
        }
    }

    /// The answer to [`Command::ListHeld`]; None where the store failed.
    pub fn handle_held(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        held: Option<Held>,
    ) {
        self.may_begin = true;
        if let Some(state) = self.streams.get_mut(stream) {
            let message = state.held(stream, ticket, held, now + READ_WAIT);
            self.control.extend(message);
        }
    }

    /// The answer to [`Command::Hash`]; None where it could not be read.
    pub fn handle_hashed(&mut self, ticket: u64, hash: Option<SegmentHash>) {
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.ticket == ticket) {
            flow.hashed(hash);
        }
    }

    /// The answer to [`Command::Read`]: bytes from `from` on; None where they could not be read.
    pub fn handle_read(&mut self, now: Instant, ticket: u64, from: u64, bytes: Option<Bytes>) {
        let Some(flow) = self.flows.iter_mut().find(|flow| flow.ticket == ticket) else {
            return;
        };
        let of = (flow.stream.clone(), flow.number);
        if bytes.is_some_and(|bytes| flow.read(from, bytes)) {
            self.failed_reads.remove(&of);
            return;
        }
        let is_closed = flow.is_closed();
        let (stream, number) = of.clone();
        self.take_back(&stream, number, Some(now + READ_WAIT));
        let failures = remembered(&mut self.failed_reads, of.clone());
        *failures += 1;
        if *failures >= MAX_FAILED_READS && is_closed {
            self.failed_reads.remove(&of);
            self.commands.push_back(Command::Bury { stream, number });
        }
    }

    /// Work for the shell; None when there is none now.
    pub fn poll_command(&mut self) -> Option<Command> {
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        if !self.connected {
            return None;
        }
        self.renumber();
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        self.look_up().or_else(|| {
            self.begin();
            self.read()
        })
    }

    /// The next message for a channel; None when there is none now.
    pub fn poll_message(&mut self, channel: Channel) -> Option<ToHub> {
        if !self.connected {
            return None;
        }
        match channel {
            Channel::Control => self.control.pop_front().or_else(|| self.next_control()),
            Channel::Live | Channel::Bulk => {
                if let Some(message) = self.next_of_flows(channel) {
                    return Some(message);
                }
                self.begin();
                self.next_of_flows(channel)
            }
        }
    }

    /// When [`Sender::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self.streams.values().map(|stream| match stream.phase {
            Phase::Refused { again_at, .. } => Some(again_at),
            _ => stream.wait_until,
        });
        deadlines.flatten().min().filter(|_| self.connected)
    }

    /// Streams whose wait is over go on.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.may_begin = true;
        for stream in self.streams.values_mut() {
            stream.wait_until = stream.wait_until.filter(|&until| until > now);
            if matches!(stream.phase, Phase::Refused { again_at, .. } if again_at <= now) {
                *stream = Stream::default();
            }
        }
    }

    /// Entries of all tables and queues together: what must not grow with the hours.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> usize {
        let streams = self.streams.values().map(Stream::entries).sum::<usize>();
        streams + self.flows.len() + self.commands.len() + self.control.len()
    }

    /// So much work waits for the shell that no message should be taken before it is done.
    pub fn is_backed_up(&self) -> bool {
        self.commands.len() >= MAX_COMMANDS
    }

    /// All that the store holds is settled at the hub, ends are confirmed, and nothing is being written.
    pub fn is_done(&self) -> bool {
        self.connected
            && self.commands.is_empty()
            && self.control.is_empty()
            && self
                .streams
                .iter()
                .all(|(name, stream)| stream.is_done(self.begun(name)))
    }

    /// The streams that the hub refuses, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&StreamName, &str)> {
        self.streams
            .iter()
            .filter_map(|(name, stream)| match &stream.phase {
                Phase::Refused { reason, .. } => Some((name, reason.as_str())),
                _ => None,
            })
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    fn forget_session(&mut self) {
        self.flows.clear();
        self.control.clear();
        // What the hub has said stays said: marks in `commands` are carried out.
        self.streams
            .values_mut()
            .for_each(|stream| *stream = Stream::default());
    }

    /// The next stream to open, or the next end to tell.
    fn next_control(&mut self) -> Option<ToHub> {
        for (name, stream) in &mut self.streams {
            if matches!(stream.phase, Phase::New) {
                stream.phase = Phase::Comparing { cursor: None };
                return Some(ToHub::StreamOpen {
                    stream: name.clone(),
                });
            }
            let begun = || self.flows.iter().filter(|f| f.stream == *name).count();
            if let Some(last) = stream.end_to_tell(begun) {
                return Some(ToHub::StreamEnd {
                    stream: name.clone(),
                    last,
                });
            }
        }
        None
    }

    /// Streams of which nothing is on its way any more get the numbers that the hub asks for.
    fn renumber(&mut self) {
        for (name, stream) in &mut self.streams {
            let begun = self.flows.iter().filter(|f| f.stream == *name).count();
            if let Some(Collision { number, floor }) = stream.take_collision(begun) {
                self.commands.push_back(Command::Renumber {
                    stream: name.clone(),
                    number,
                    floor,
                });
            }
        }
    }

    fn look_up(&mut self) -> Option<Command> {
        // What is found is announced: not before the last announcements are on their way.
        if !self.control.is_empty() {
            return None;
        }
        for (name, stream) in &mut self.streams {
            if let Some(from) = stream.wants_held(self.last_ticket + 1) {
                self.last_ticket += 1;
                return Some(Command::ListHeld {
                    ticket: self.last_ticket,
                    stream: name.clone(),
                    from,
                });
            }
            if !stream.is_shipping() {
                continue;
            }
            let open = |flow: &Flow| flow.stream == *name && !flow.is_closed();
            if stream.wants_look(|| self.flows.iter().any(open)) {
                self.last_ticket += 1;
                stream.look(self.last_ticket);
                return Some(Command::Look {
                    ticket: self.last_ticket,
                    stream: name.clone(),
                });
            }
            if let Some(from) = stream.wants_list() {
                self.last_ticket += 1;
                stream.listing = Some(self.last_ticket);
                return Some(Command::List {
                    ticket: self.last_ticket,
                    stream: name.clone(),
                    from,
                });
            }
        }
        None
    }

    /// Begins what may begin: live segments of all streams, and closed ones stream by stream.
    fn begin(&mut self) {
        // What was found is announced before any of it is shipped.
        if !self.may_begin || !self.control.is_empty() {
            return;
        }
        self.may_begin = false;
        let mut unacknowledged = 0;
        let mut unacknowledged_bytes = 0;
        for stream in self.streams.values() {
            unacknowledged += stream.unacknowledged.len();
            unacknowledged_bytes += stream.unacknowledged.values().sum::<u64>();
        }
        let mut bulk = 0;
        for flow in &self.flows {
            bulk += usize::from(flow.channel == Channel::Bulk);
        }
        unacknowledged += bulk;
        for name in self.in_turn() {
            if unacknowledged >= MAX_UNACKNOWLEDGED
                || unacknowledged_bytes >= MAX_UNACKNOWLEDGED_BYTES
            {
                return;
            }
            let begun = self.begun(&name);
            let Some(stream) = self.streams.get_mut(&name) else {
                continue;
            };
            self.last_ticket += 1;
            let ticket = self.last_ticket;
            let (number, flow) = match stream.next(begun) {
                None => continue,
                Some(stream::Next::Closed(Channel::Bulk, _)) if bulk >= MAX_BULK_FLOWS => continue,
                Some(stream::Next::Closed(channel, info)) => {
                    let Some(run) = stream.run(info.run) else {
                        continue;
                    };
                    stream.begun();
                    let flow = Flow::closed(ticket, name.clone(), channel, run, info);
                    (info.number, flow)
                }
                Some(stream::Next::Open(facts)) => {
                    let Some(run) = stream.run(facts.run) else {
                        continue;
                    };
                    let flow = Flow::open(ticket, name.clone(), Channel::Live, run, &facts);
                    (facts.number, flow)
                }
            };
            let flow = match stream.take_partial(number) {
                Some((length, hash)) => flow.resume(length, hash),
                None => flow,
            };
            unacknowledged += 1;
            if flow.channel == Channel::Bulk {
                bulk += 1;
                self.last_bulk = Some(name);
            }
            self.flows.push_back(flow);
        }
    }

    /// The streams, beginning after the one whose segment was last begun; twice round, so that a stream
    /// alone may have two segments begun.
    fn in_turn(&self) -> Vec<StreamName> {
        let after: Bound<&StreamName> = match &self.last_bulk {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let later = self
            .streams
            .range::<StreamName, _>((after, Bound::Unbounded));
        let round: Vec<_> = later
            .chain(self.streams.iter())
            .map(|(name, _)| name)
            .take(self.streams.len())
            .collect();
        let twice = round.iter().chain(round.iter());
        twice.map(|&name| name.clone()).collect()
    }

    fn read(&mut self) -> Option<Command> {
        let ahead: u64 = self.flows.iter().map(Flow::read_ahead).sum();
        let room = MAX_READ_AHEAD.saturating_sub(ahead);
        self.flows.iter_mut().find_map(|flow| {
            let (ticket, number) = (flow.ticket, flow.number);
            let need = flow.need(room)?;
            let stream = flow.stream.clone();
            Some(match need {
                flow::Need::Hash { length } => Command::Hash {
                    ticket,
                    stream,
                    number,
                    length,
                },
                flow::Need::Read { range } => Command::Read {
                    ticket,
                    stream,
                    number,
                    range,
                },
            })
        })
    }

    /// Bulk segments one after the other; live ones take turns.
    fn next_of_flows(&mut self, channel: Channel) -> Option<ToHub> {
        for index in 0..self.flows.len() {
            let flow = self.flows.get_mut(index)?;
            if flow.channel != channel {
                continue;
            }
            let Some(message) = flow.next_message() else {
                if channel == Channel::Bulk {
                    return None;
                }
                continue;
            };
            if let ToHub::Chunk(chunk) = &message {
                let end = chunk.offset + chunk.data.len() as u64;
                let of = (chunk.stream.clone(), chunk.number);
                let reached = remembered(&mut self.reached, of);
                self.progress.new_bytes_sent += end.saturating_sub(*reached);
                *reached = end.max(*reached);
            }
            let finished = flow.finished();
            if finished.is_some() || channel == Channel::Live {
                let flow = self.flows.remove(index)?;
                match finished {
                    Some(bytes) => self.sent_whole(&flow, bytes),
                    None => self.flows.push_back(flow),
                }
            }
            return Some(message);
        }
        None
    }

    fn sent_whole(&mut self, flow: &Flow, bytes: u64) {
        self.may_begin = true;
        self.progress.segments_shipped += 1;
        if let Some(stream) = self.streams.get_mut(&flow.stream) {
            stream.unacknowledged.insert(flow.number, bytes);
        }
    }

    /// The hub has settled a segment that was announced or sent, or is on its way; `hole`: without having it.
    fn settled(&mut self, stream: &StreamName, number: SegmentNumber, hole: Option<HoleReason>) {
        let on_its_way = self.take_off(stream, number);
        let Some(state) = self.streams.get_mut(stream) else {
            return;
        };
        if hole.is_some() && state.is_open(number) {
            return state.hold(number);
        }
        if !(state.forget(number) || on_its_way) {
            return;
        }
        state.answer(number);
        self.reached.remove(&(stream.clone(), number));
        let of = stream.clone();
        match hole {
            None => {
                self.progress.segments_stored += 1;
                let stream = of;
                self.commands
                    .push_back(Command::MarkStored { stream, number });
            }
            Some(
                reason @ (HoleReason::Corrupt
                | HoleReason::Refused
                | HoleReason::Deleted
                | HoleReason::Expired),
            ) => self.commands.push_back(Command::GiveUp {
                stream: of,
                number,
                reason,
            }),
            // Somebody under this name told the hub that it would never come; here it is.
            Some(_) => {
                let floor = self.floors.get(stream).copied().unwrap_or_default();
                state.collide(Collision { number, floor });
                self.flows.retain(|flow| flow.stream != *stream);
            }
        }
    }

    /// A segment that was sent or is on its way must go anew.
    fn take_back(&mut self, stream: &StreamName, number: SegmentNumber, until: Option<Instant>) {
        if self.take_off(stream, number)
            && let Some(state) = self.streams.get_mut(stream)
        {
            state.restart(until);
        }
    }

    /// True if the segment was on its way or waits for the hub's word.
    fn take_off(&mut self, stream: &StreamName, number: SegmentNumber) -> bool {
        self.may_begin = true;
        let before = self.flows.len();
        self.flows
            .retain(|flow| flow.number != number || flow.stream != *stream);
        let waited = self
            .streams
            .get_mut(stream)
            .is_some_and(|state| state.unacknowledged.remove(&number).is_some());
        waited || self.flows.len() < before
    }

    fn begun(&self, stream: &StreamName) -> usize {
        self.flows.iter().filter(|f| f.stream == *stream).count()
    }
}

/// The count kept for a segment; where too many are, the lowest is forgotten.
fn remembered<T: Default>(
    counts: &mut BTreeMap<(StreamName, SegmentNumber), T>,
    of: (StreamName, SegmentNumber),
) -> &mut T {
    if counts.len() >= MAX_REMEMBERED && !counts.contains_key(&of) {
        counts.pop_first();
    }
    counts.entry(of).or_default()
}
