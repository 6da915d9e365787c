//! The edge's half: what to look up, read and send, so that the hub gets what it lacks.
//!
//! Per stream: compare with what is settled at the hub, tell what is still to come, announce what the hub has
//! not confirmed, then ship. What a live source records goes by the live channel, part by part as it is cut, in
//! order while it is younger than the deadline. What is older is demoted to backfill, and live goes on at the
//! newest segment: late, never lost. Backfill goes by the bulk channel, beside live, oldest first; what a
//! source that can wait records is backfill as soon as it is closed. Ahead of the rest of it goes what viewers wait
//! for, and ahead of all, live too, what an event marks. Streams share each class by weight.
//!
//! The shell holds the store: it carries out [`Command`]s in the order in which it gets them and brings the
//! answers back. An answer that nothing waits for any more is dropped by its `ticket`.
//!
//! Keeps invariants 3 (only the hub's word settles a segment) and 5 (reads ahead, unacknowledged segments
//! and queues have named limits). Which bytes of a segment go next is [`flow`]'s business, what is known of
//! a stream [`stream`]'s, what goes before what [`schedule`]'s; [`command`] has the words for the shell. What hub
//! and store say is taken in by [`answers`], what begins is decided in [`begin`], what goes out next in [`next`].

mod answers;
mod begin;
mod command;
mod flow;
mod next;
mod schedule;
mod stream;
mod tally;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
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
pub use command::{
    AHEAD_LIMIT, Command, Held, LOOK_LIMIT, Looked, MAX_AHEAD_RANGES, NEWEST_LIMIT, OpenFacts,
    READ_BYTES,
};
use flow::Flow;
pub use schedule::{Allowed, DEFAULT_LIVE_DEADLINE, MAX_WEIGHT, Policy};
use schedule::{PerBulkClass, Turns};
use stream::{Collision, Next, Phase, Stream};
pub use stream::{MAX_ANNOUNCED_AHEAD, MAX_EVENTS, MAX_WANTS};
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
/// Bulk segments begun of a class: one is being sent, one is being read.
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
    /// Media bytes sent, by class; what goes again counts again.
    pub event_bytes: u64,
    pub live_bytes: u64,
    pub want_bytes: u64,
    pub backfill_bytes: u64,
    /// Live segments that grew too old on their way or before it, and became backfill.
    pub segments_demoted: u64,
}

impl Progress {
    fn count(&mut self, class: Class, bytes: usize) {
        let sent = match class {
            // Messages about media are not counted here.
            Class::Control => return,
            Class::Event => &mut self.event_bytes,
            Class::Live => &mut self.live_bytes,
            Class::Want => &mut self.want_bytes,
            Class::Backfill => &mut self.backfill_bytes,
        };
        *sent += bytes as u64;
    }

    /// Media bytes sent of all classes; what went again counts again.
    pub fn media_bytes(&self) -> u64 {
        self.event_bytes + self.live_bytes + self.want_bytes + self.backfill_bytes
    }
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
    /// What to say of segments that were put off on their way, by channel; at most one of a stream as live, and one
    /// as backfill.
    pauses: VecDeque<(Channel, ToHub)>,
    policy: Policy,
    /// A live segment was demoted on its way since the channels were last thought of.
    has_demoted: bool,
    /// The channels are not renewed again before this.
    renew_not_before: Option<Instant>,
    live_turns: Turns,
    bulk_turns: PerBulkClass<Turns>,
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

    /// These segments belong to an event, recorded already or not: they go before everything else. Kept over
    /// sessions, at most [`MAX_EVENTS`] stretches of a stream, the oldest forgotten first. False: no such stream is
    /// shipped.
    pub fn mark_event(
        &mut self,
        stream: &StreamName,
        range: RangeInclusive<SegmentNumber>,
    ) -> bool {
        let Some(state) = self.streams.get_mut(stream) else {
            return false;
        };
        state.mark_event(range);
        self.reclass(stream);
        true
    }

    /// The store has changed: new parts, closed segments, an end.
    pub fn changed(&mut self) {
        self.streams.values_mut().for_each(Stream::changed);
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
                stream.renew();
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

    /// Bytes of media held or asked for.
    #[cfg(test)]
    pub(crate) fn read_ahead(&self) -> u64 {
        self.flows.iter().map(Flow::read_ahead).sum()
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
        self.streams.values_mut().for_each(Stream::renew);
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
                return Some(Command::Look {
                    ticket: self.last_ticket,
                    stream: name.clone(),
                    ahead: stream.look(self.last_ticket),
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
