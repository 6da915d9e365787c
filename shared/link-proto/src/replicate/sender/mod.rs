//! The edge's half: what to look up, read and send, so that the hub gets what it lacks.
//!
//! Per stream: compare with what is settled at the hub, tell what is still to come, announce what the hub has
//! not confirmed, then ship. What a live source records goes by the live channel, part by part as it is cut, in
//! order while it is younger than the deadline. What is older is demoted to backfill, and live goes on at the
//! newest segment: late, never lost. Backfill goes by the bulk channel, beside live, oldest first; what a
//! source that can wait records is backfill as soon as it is closed. Streams share each class by weight.
//!
//! The shell holds the store: it carries out [`Command`]s in the order in which it gets them and brings the
//! answers back. An answer that nothing waits for any more is dropped by its `ticket`.
//!
//! Keeps invariants 3 (only the hub's word settles a segment) and 5 (reads ahead, unacknowledged segments
//! and queues have named limits). Which bytes of a segment go next is [`flow`]'s business, what is known of
//! a stream [`stream`]'s, what goes before what [`schedule`]'s; [`command`] has the words for the shell.

mod command;
mod flow;
mod schedule;
mod stream;
mod tally;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::{HoleReason, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName};

use super::{
    MAX_STREAMS,
    class::{ByClass, Class},
};
use crate::{
    Channel,
    messages::{ProtocolError, ToEdge, ToHub},
};
pub use command::{Command, Held, LOOK_LIMIT, Looked, NEWEST_LIMIT, OpenFacts, READ_BYTES};
use flow::Flow;
use schedule::Turns;
pub use schedule::{Allowed, DEFAULT_LIVE_DEADLINE, MAX_WEIGHT, Policy};
pub use stream::MAX_ANNOUNCED_AHEAD;
use stream::{Collision, Next, Phase, Stream};
use tally::Tally;

/// Most segments that were sent or are being sent and that the hub has not settled; live may have as many again,
/// so that a backlog never holds it up.
pub const MAX_UNACKNOWLEDGED: usize = 64;
/// With this many bytes in segments sent whole and not settled, no other segment is begun as backfill; with
/// twice as many, none at all.
pub const MAX_UNACKNOWLEDGED_BYTES: u64 = 64 << 20;
/// Most bytes read ahead of the link over all streams, with those being read.
pub const MAX_READ_AHEAD: u64 = 4 << 20;
/// Closed segments in hand from which on the store need not be asked for more.
const ENOUGH_QUEUED: usize = 32;
/// Bulk segments begun: one is being sent, one is being read.
const MAX_BULK_FLOWS: usize = 2;
/// Commands that wait for the shell from which on no message should be taken.
const MAX_COMMANDS: usize = 1_024;
/// Where more than this is under way when a live segment is demoted, newer ones would come too late behind it.
const MAX_UNDER_WAY: Duration = Duration::from_secs(2);
/// Channels are renewed for that at most this often: each time what is under way goes again.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
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
    /// Media bytes sent as live, and as backfill; what goes again counts again.
    pub live_bytes: u64,
    pub backfill_bytes: u64,
    /// Live segments that grew too old on their way or before it, and became backfill.
    pub segments_demoted: u64,
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
    /// What to say on the live channel of segments that were demoted on their way; at most one of a stream.
    pauses: VecDeque<ToHub>,
    policy: Policy,
    /// A live segment was demoted on its way since the channels were last thought of.
    has_demoted: bool,
    /// The channels are not renewed again before this.
    renew_not_before: Option<Instant>,
    live_turns: Turns,
    bulk_turns: Turns,
    connected: bool,
    /// The last ticket given to a command or flow.
    last_ticket: u64,
    /// Something has changed that may let a segment begin.
    may_begin: bool,
    progress: Progress,
    tally: Tally,
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

    /// What goes before what, and what may go, from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.may_begin = true;
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
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
        self.tally.clear();
        self.connected = false;
    }

    /// The streams in the store, those that matter most first. What is not named is dropped; what is over
    /// [`MAX_STREAMS`] is not shipped, and given back.
    pub fn set_streams(&mut self, mut names: Vec<StreamName>) -> Vec<StreamName> {
        let left_out = names.split_off(names.len().min(MAX_STREAMS));
        names.sort();
        let named = |name: &StreamName| names.binary_search(name).is_ok();
        self.streams.retain(|name, _| named(name));
        self.tally.keep(named);
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
                self.may_begin = true;
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
                self.pauses
                    .retain(|pause| !matches!(pause, ToHub::SegmentPaused { stream: of, .. } if *of == stream));
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
            let closed = looked.page.iter().chain(&looked.newest);
            if let Some(info) = closed.clone().find(|info| info.number == flow.number) {
                return flow.close(*info);
            }
            match &looked.open {
                Some(open) if open.number == flow.number => {
                    flow.grow(&open.parts);
                    true
                }
                // Between the oldest and the newest not all is listed.
                _ => {
                    let last = looked.page.last().map(|info| info.number);
                    looked.page.len() >= LOOK_LIMIT && last.is_some_and(|last| flow.number > last)
                }
            }
        });
        let begun: Vec<_> = self
            .flows
            .iter()
            .filter(|flow| flow.stream == *stream)
            .map(|flow| flow.number)
            .collect();
        let messages = state.looked(now, stream, looked, &begun);
        self.control.extend(messages);
        self.demote(now);
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
    pub fn poll_command(&mut self, now: Instant) -> Option<Command> {
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
            self.begin(now);
            self.read()
        })
    }

    /// The next message for a channel; None when there is none now.
    pub fn poll_message(&mut self, now: Instant, channel: Channel) -> Option<ToHub> {
        if !self.connected {
            return None;
        }
        match channel {
            Channel::Control => self.control.pop_front().or_else(|| self.next_control()),
            Channel::Live => self.next_live(now).or_else(|| {
                self.begin(now);
                self.next_live(now)
            }),
            Channel::Bulk => self.next_bulk().or_else(|| {
                self.begin(now);
                self.next_bulk()
            }),
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

    /// Whether the session should renew its channels: a live segment was demoted, and what the session has taken
    /// before and can't give back would hold up what is newer. `under_way`: bytes of messages that are not
    /// acknowledged, and bits per second at which they go.
    pub fn wants_renewal(
        &mut self,
        now: Instant,
        under_way: impl FnOnce() -> (usize, u64),
    ) -> bool {
        let too_soon = self.renew_not_before.is_some_and(|at| now < at);
        if !std::mem::take(&mut self.has_demoted) || too_soon {
            return false;
        }
        let (bytes, rate_bps) = under_way();
        let wants = bytes as u128 * 8_000 > MAX_UNDER_WAY.as_millis() * u128::from(rate_bps);
        if wants {
            self.renew_not_before = Some(now + RENEWAL_INTERVAL);
        }
        wants
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
        let queues = self.commands.len() + self.control.len() + self.pauses.len();
        streams + self.flows.len() + queues
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

    /// Each stream: whether a source that can't wait writes it now, and the media bytes handed to the channels in
    /// this session.
    pub fn sent(&self) -> impl Iterator<Item = (&StreamName, bool, ByClass)> {
        let streams = self.streams.iter();
        streams.map(|(name, stream)| (name, stream.is_live(), self.tally.of(name)))
    }

    fn forget_session(&mut self) {
        self.flows.clear();
        self.control.clear();
        self.pauses.clear();
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

    /// Begins what may begin: of each live stream one segment as live, then backfill, stream by stream.
    fn begin(&mut self, now: Instant) {
        // What was found is announced before any of it is shipped.
        if !self.may_begin || !self.control.is_empty() {
            return;
        }
        self.may_begin = false;
        self.demote(now);
        let mut unacknowledged = self.flows.len();
        let mut bytes = 0;
        for stream in self.streams.values() {
            unacknowledged += stream.unacknowledged.len();
            bytes += stream.unacknowledged.values().sum::<u64>();
        }
        if unacknowledged >= 2 * MAX_UNACKNOWLEDGED || bytes >= 2 * MAX_UNACKNOWLEDGED_BYTES {
            return;
        }
        if self.policy.allowed.live() {
            self.begin_live(now);
        }
        let mut backfill = 0;
        for flow in &self.flows {
            backfill += usize::from(flow.channel == Channel::Bulk);
        }
        while self.policy.allowed.backfill()
            && backfill < MAX_BULK_FLOWS
            && unacknowledged < MAX_UNACKNOWLEDGED
            && bytes < MAX_UNACKNOWLEDGED_BYTES
            && self.begin_backfill(now)
        {
            backfill += 1;
            unacknowledged += 1;
        }
    }

    fn begin_live(&mut self, now: Instant) {
        let deadline = self.policy.live_deadline;
        for (name, stream) in &mut self.streams {
            let is_live = |flow: &Flow| flow.channel == Channel::Live && flow.stream == *name;
            if self.flows.iter().any(is_live) {
                continue;
            }
            let Some(next) = stream.next_live(now, deadline) else {
                continue;
            };
            let run = match &next {
                Next::Closed(info) => info.run,
                Next::Open(facts) => facts.run,
            };
            let Some(run) = stream.run(run) else {
                continue;
            };
            self.last_ticket += 1;
            let (ticket, name, channel) = (self.last_ticket, name.clone(), Channel::Live);
            let mut flow = match next {
                Next::Closed(info) => Flow::closed(ticket, name, channel, run, info),
                Next::Open(facts) => Flow::open(ticket, name, channel, run, &facts),
            };
            flow.is_spared = stream.begun(flow.number, true);
            self.flows
                .push_back(match stream.take_partial(flow.number) {
                    Some((length, hash)) => flow.resume(length, hash),
                    None => flow,
                });
        }
    }

    /// Begins one segment of the stream whose turn it is.
    fn begin_backfill(&mut self, now: Instant) -> bool {
        let deadline = self.policy.live_deadline;
        let waiting = self.streams.iter().filter_map(|(name, stream)| {
            let info = stream.next_bulk(now, deadline)?;
            let run = stream.run(info.run)?;
            Some((self.bulk_turns.begins(stream.bulk_turn), name, info, run))
        });
        let Some((_, name, info, run)) = waiting.min_by_key(|(turn, ..)| *turn) else {
            return false;
        };
        let name = name.clone();
        let weight = self.policy.weight(&name);
        let Some(stream) = self.streams.get_mut(&name) else {
            return false;
        };
        let partial = stream.take_partial(info.number);
        let length = partial.map_or(0, |(length, _)| length);
        let rest = info.bytes.saturating_sub(length);
        self.bulk_turns.serve(&mut stream.bulk_turn, rest, weight);
        stream.begun(info.number, false);
        self.last_ticket += 1;
        let flow = Flow::closed(self.last_ticket, name, Channel::Bulk, run, info);
        self.flows.push_back(match partial {
            Some((length, hash)) => flow.resume(length, hash),
            None => flow,
        });
        true
    }

    /// Live segments whose next bytes are older than the deadline become backfill, unless most of it was sent:
    /// the rest is there sooner than all of a newer one. So is not every other one, or a line that is far too
    /// slow would never see one whole.
    fn demote(&mut self, now: Instant) {
        let deadline = self.policy.live_deadline;
        let mut kept = VecDeque::with_capacity(self.flows.len());
        for flow in std::mem::take(&mut self.flows) {
            let stream = self.streams.get_mut(&flow.stream);
            let Some(stream) = stream.filter(|stream| {
                flow.channel == Channel::Live
                    && !flow.is_spared
                    && flow.is_barely_begun()
                    && stream
                        .age(now, flow.unsent_since())
                        .is_some_and(|age| age > deadline)
            }) else {
                kept.push_back(flow);
                continue;
            };
            stream.demoted();
            self.has_demoted = true;
            if flow.is_said() {
                stream.pause(flow.number);
                self.pauses.push_back(ToHub::SegmentPaused {
                    stream: flow.stream,
                    number: flow.number,
                });
            } else if let Some((length, hash)) = flow.unchecked_partial() {
                stream.partial(flow.number, length, hash);
            }
            self.progress.segments_demoted += 1;
            self.may_begin = true;
        }
        self.flows = kept;
    }

    fn read(&mut self) -> Option<Command> {
        let ahead: u64 = self.flows.iter().map(Flow::read_ahead).sum();
        let room = MAX_READ_AHEAD.saturating_sub(ahead);
        let live = |flow: &&mut Flow| flow.channel == Channel::Live;
        let mut need = |flow: &mut Flow| {
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
        };
        let first = self.flows.iter_mut().filter(live).find_map(&mut need);
        first.or_else(|| self.flows.iter_mut().find_map(&mut need))
    }

    /// Live segments take turns chunk by chunk.
    fn next_live(&mut self, now: Instant) -> Option<ToHub> {
        if let Some(pause) = self.pauses.pop_front() {
            return Some(pause);
        }
        if !self.policy.allowed.live() {
            return None;
        }
        let turns = self.flows.iter().enumerate().filter_map(|(index, flow)| {
            let is_next = flow.channel == Channel::Live && flow.is_ready();
            let stream = self.streams.get(&flow.stream).filter(|_| is_next)?;
            Some((self.live_turns.begins(stream.live_turn), index))
        });
        let (_, index) = turns.min()?;
        let message = self.next_of_flow(index)?;
        if let ToHub::Chunk(chunk) = &message {
            self.progress.live_bytes += chunk.data.len() as u64;
            self.tally
                .count(&chunk.stream, Class::Live, chunk.data.len());
            let mut flows = self.flows.iter();
            let more = flows.any(|flow| flow.stream == chunk.stream && flow.is_live_unsent());
            let weight = self.policy.weight(&chunk.stream);
            if let Some(stream) = self.streams.get_mut(&chunk.stream) {
                stream.throughput.taken(now, chunk.data.len(), more);
                let bytes = chunk.data.len() as u64;
                self.live_turns.serve(&mut stream.live_turn, bytes, weight);
            }
        }
        Some(message)
    }

    /// Segments of the backlog one after the other.
    fn next_bulk(&mut self) -> Option<ToHub> {
        if !self.policy.allowed.backfill() {
            return None;
        }
        let mut flows = self.flows.iter();
        let index = flows.position(|flow| flow.channel == Channel::Bulk)?;
        let message = self.next_of_flow(index)?;
        if let ToHub::Chunk(chunk) = &message {
            self.progress.backfill_bytes += chunk.data.len() as u64;
            self.tally
                .count(&chunk.stream, Class::Backfill, chunk.data.len());
        }
        Some(message)
    }

    fn next_of_flow(&mut self, index: usize) -> Option<ToHub> {
        let flow = self.flows.get_mut(index)?;
        let message = flow.next_message()?;
        if let ToHub::Chunk(chunk) = &message {
            let end = chunk.offset + chunk.data.len() as u64;
            let of = (chunk.stream.clone(), chunk.number);
            let reached = remembered(&mut self.reached, of);
            self.progress.new_bytes_sent += end.saturating_sub(*reached);
            *reached = end.max(*reached);
        }
        if let Some(bytes) = flow.finished() {
            let flow = self.flows.remove(index)?;
            self.sent_whole(&flow, bytes);
        }
        Some(message)
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
            state.step_back(number);
            state.restart(until);
        }
    }

    /// True if the segment was on its way or waits for the hub's word.
    fn take_off(&mut self, stream: &StreamName, number: SegmentNumber) -> bool {
        self.may_begin = true;
        let before = self.flows.len();
        self.flows
            .retain(|flow| flow.number != number || flow.stream != *stream);
        let waited = self.streams.get_mut(stream).is_some_and(|state| {
            let paused = state.unpause(number);
            state.unacknowledged.remove(&number).is_some() || paused
        });
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
