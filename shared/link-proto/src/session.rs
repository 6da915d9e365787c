//! An authenticated link between a device and a hub: keys, channels, pacing and keep-alive in one place.
//!
//! Both ends run the same machine; only the edge begins handshakes (`edge.rs`), only the hub follows its
//! peer's address (`hub.rs`). Nothing here is reached by what isn't authentic.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    api::{
        Bye, Channel, CloseReason, Event, MAX_MESSAGE_BYTES, SendError, SessionId, SessionStats,
        Transmit,
    },
    datagram::{
        MAX_DATAGRAM_BYTES, TAG_BYTES, TRANSPORT_HEADER_BYTES, Transport, transport_header,
    },
    feedback::{FEEDBACK_INTERVAL, Receiver},
    frame::{self, Frame, Header, Plaintext},
    lane::Lane,
    noise::Keys,
    pacing::Pacer,
    rate::RateController,
    replay::ReplayWindow,
};

/// After this long without an answer the channels stand still, and are renewed when the peer is back: KCP's
/// own back-off would hold the line down for many times the outage.
pub const SILENCE: Duration = Duration::from_secs(3);

/// How long a session's keys outlive its last authentic datagram: a cut of a few minutes costs no handshake.
pub const KEYS_OUTLIVE: Duration = Duration::from_secs(180);

/// What a peer may send on each channel before it is admitted, in bytes.
pub const STRANGER_CREDIT: u64 = 64 * 1024;

/// A peer that owes an answer is asked this often (several times within [`SILENCE`], since each may be lost).
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// A silent peer is asked this often.
const SILENT_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Keep-alive with data outstanding, and without (the least that home routers keep a mapping for is 30 s).
const BUSY_KEEP_ALIVE: Duration = Duration::from_secs(1);
const IDLE_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Keys are replaced after an hour or 2^30 datagrams, long before AES-GCM's bounds.
const REKEY_AGE: Duration = Duration::from_secs(3600);
const REKEY_DATAGRAMS: u64 = 1 << 30;
/// Without new keys nothing more is sent after so many.
const MAX_DATAGRAMS_PER_KEY: u64 = 1 << 34;

/// What was on its way under the old keys may still come for so long.
const OLD_KEYS_LIVE: Duration = Duration::from_secs(30);

/// KCP counts packets in 32 bits and compares some of them without wrapping: its conversations are renewed
/// long before.
const GENERATION_AGE: Duration = Duration::from_secs(24 * 3600);
const GENERATION_PACKETS: u32 = 1 << 31;

/// A channel's queue holds this much time at the present rate, within the two bounds.
const QUEUE_TIME_S: f64 = 0.05;
const MIN_QUEUE_BYTES: usize = 4 * MAX_MESSAGE_BYTES;
const MAX_QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// Above this loss an acknowledgement is sent twice, the second a little later: bursts take neighbours.
const ACK_TWICE_LOSS: f64 = 0.02;
const ACK_AGAIN_DELAY: Duration = Duration::from_millis(6);
const MAX_ACKS_AGAIN: usize = 64;

/// Credit that has grown is told this often, since each telling may be lost.
const CREDIT_REPEATS: u8 = 3;

/// `Bye` is said this often, and again to whatever comes in, until the linger is over.
const BYE_REPEATS: u8 = 3;
const BYE_INTERVAL: Duration = Duration::from_millis(50);
pub(crate) const LINGER: Duration = Duration::from_secs(3);

pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Names the session in a handshake that would go on with it.
    pub(crate) ticket: u64,
    pub(crate) peer: SocketAddr,
    role: Role,
    clock_start: Instant,
    state: State,
    keys: Epoch,
    old_keys: Option<(Epoch, Instant)>,
    /// Goes on over epochs.
    next_counter: u64,
    bytes_sent: u64,
    generation: u32,
    generation_began: Instant,
    admitted: bool,
    lanes: [Lane; 3],
    receiver: Receiver,
    rate: RateController,
    pacer: Pacer,
    reordered: u32,
    reordering: bool,
    last_received: Instant,
    last_sent: Instant,
    /// Since when the peer owes an answer.
    waiting_since: Option<Instant>,
    last_probe: Instant,
    ping: bool,
    credit_repeats: u8,
    credit_due: Option<Instant>,
    acks_again: VecDeque<(Instant, usize, Vec<u8>)>,
    plain: Plaintext,
    /// `plain` holds a datagram that didn't fit the last batch.
    staged: bool,
    stats: SessionStats,
    /// KCP's counts of former generations.
    former_packets: (u64, u64),
}

/// Which end this is. Only the hub follows its peer's address; only the edge keeps the way open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Edge,
    Hub,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Open,
    Silent,
    Closing {
        reason: Bye,
        left: u8,
        next: Instant,
        until: Instant,
    },
    Dead,
}

/// One pair of keys and what belongs to it.
pub(crate) struct Epoch {
    pub(crate) keys: Keys,
    pub(crate) local_index: u32,
    pub(crate) remote_index: u32,
    pub(crate) replay: ReplayWindow,
    began: Instant,
    first_counter: u64,
    received_before: u64,
}

impl Epoch {
    pub(crate) fn new(now: Instant, keys: Keys, local_index: u32, remote_index: u32) -> Self {
        Self {
            keys,
            local_index,
            remote_index,
            replay: ReplayWindow::new(),
            began: now,
            first_counter: 0,
            received_before: 0,
        }
    }
}

/// What became of a datagram for this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Taken,
    Replayed,
    Forged,
}

/// Who this session is, and with whom.
pub(crate) struct Identity {
    pub(crate) id: SessionId,
    pub(crate) ticket: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) role: Role,
    pub(crate) admitted: bool,
}

impl Session {
    /// `clock_start` is the zero of the clock that datagrams carry; any will do.
    pub(crate) fn new(now: Instant, clock_start: Instant, who: Identity, keys: Epoch) -> Self {
        let rate = RateController::new();
        Self {
            id: who.id,
            ticket: who.ticket,
            peer: who.peer,
            role: who.role,
            clock_start,
            state: State::Open,
            keys,
            old_keys: None,
            next_counter: 0,
            bytes_sent: 0,
            generation: 0,
            generation_began: now,
            admitted: who.admitted,
            lanes: Channel::ALL.map(|channel| Lane::new(now, channel, 0, who.admitted)),
            receiver: Receiver::default(),
            pacer: Pacer::new(now, rate.rate()),
            rate,
            reordered: 0,
            reordering: false,
            last_received: now,
            last_sent: now,
            waiting_since: None,
            last_probe: now,
            ping: true,
            credit_repeats: if who.admitted { CREDIT_REPEATS } else { 0 },
            credit_due: who.admitted.then_some(now),
            acks_again: VecDeque::new(),
            plain: Plaintext::default(),
            staged: false,
            stats: SessionStats::default(),
            former_packets: (0, 0),
        }
    }

    // ---- getters

    pub(crate) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing { .. })
    }

    /// All that `close` has to say was said.
    pub(crate) fn has_said_bye(&self) -> bool {
        matches!(self.state, State::Closing { left: 0, .. } | State::Dead)
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.state == State::Silent
    }

    /// Whether the index is one under which this session receives.
    pub(crate) fn owns(&self, index: u32) -> bool {
        self.keys.local_index == index
            || self
                .old_keys
                .as_ref()
                .is_some_and(|(old, _)| old.local_index == index)
    }

    /// The edge should make new keys.
    pub(crate) fn wants_rekey(&self, now: Instant) -> bool {
        self.state == State::Open
            && (now.saturating_duration_since(self.keys.began) >= REKEY_AGE
                || self.next_counter - self.keys.first_counter >= REKEY_DATAGRAMS
                || self.receiver.datagrams() - self.keys.received_before >= REKEY_DATAGRAMS)
    }

    pub(crate) fn stats(&self) -> SessionStats {
        let mut stats = SessionStats {
            rtt: self.rate.rtt(),
            min_rtt: self.rate.min_rtt(),
            queueing_delay: self.rate.queueing_delay(),
            rate_bps: (self.rate.rate() * 8.0) as u64,
            loss: self.rate.loss() as f32,
            datagrams_sent: self.next_counter,
            datagrams_received: self.receiver.datagrams(),
            bytes_sent: self.bytes_sent,
            bytes_received: self.receiver.bytes(),
            generation: self.generation,
            silent: self.is_silent(),
            outstanding_bytes: self.lanes.iter().map(Lane::outstanding_bytes).sum(),
            ..self.stats
        };
        (stats.packets_sent, stats.packets_resent) = self.former_packets;
        for lane in &self.lanes {
            let (sent, resent) = lane.conversation.counts();
            stats.packets_sent += sent;
            stats.packets_resent += resent;
        }
        stats
    }

    pub(crate) fn send_budget(&self, channel: Channel) -> usize {
        if self.state != State::Open {
            return 0;
        }
        self.queue_limit()
            .saturating_sub(self.lane(channel).queued_bytes())
    }

    // ---- commands

    pub(crate) fn send(&mut self, channel: Channel, message: Bytes) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(SendError::TooLarge(message.len()));
        }
        match self.state {
            State::Open => {}
            State::Silent => {
                self.lane_mut(channel).note_refusal();
                return Err(SendError::Full);
            }
            State::Closing { .. } | State::Dead => return Err(SendError::Closed),
        }
        if self.send_budget(channel) == 0 {
            self.lane_mut(channel).note_refusal();
            return Err(SendError::Full);
        }
        self.lane_mut(channel).push(message);
        self.stats.messages_sent += 1;
        Ok(())
    }

    pub(crate) fn consumed(&mut self, channel: Channel, message_bytes: usize) {
        let lane = self.lane_mut(channel);
        lane.consumed(message_bytes);
        if lane.owes_credit() {
            self.tell_credit();
        }
    }

    pub(crate) fn admit(&mut self) {
        if !std::mem::replace(&mut self.admitted, true) {
            self.lanes.iter_mut().for_each(Lane::admit);
            self.tell_credit();
        }
    }

    pub(crate) fn close(&mut self, now: Instant, reason: Bye) {
        if matches!(self.state, State::Open | State::Silent) {
            self.state = State::Closing {
                reason,
                left: BYE_REPEATS,
                next: now,
                until: now + LINGER,
            };
        }
    }

    /// The end without a word: the peer has another session.
    pub(crate) fn kill(&mut self, reason: CloseReason, events: &mut VecDeque<Event>) {
        if matches!(self.state, State::Open | State::Silent) {
            events.push_back(Event::Closed {
                session: self.id,
                reason,
            });
        }
        self.state = State::Dead;
    }

    /// New keys for the same session; the old ones are good for receiving a while longer.
    pub(crate) fn renew_keys(&mut self, now: Instant, mut keys: Epoch) {
        keys.first_counter = self.next_counter;
        keys.received_before = self.receiver.datagrams();
        let old = std::mem::replace(&mut self.keys, keys);
        self.old_keys = Some((old, now + OLD_KEYS_LIVE));
        self.ping = true;
    }

    /// A handshake was answered: the peer is there.
    pub(crate) fn on_sign_of_life(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        self.last_received = now;
        self.waiting_since = None;
        if self.state == State::Silent {
            self.renew_channels(now, self.generation.wrapping_add(1), events);
        }
    }

    // ---- what comes in

    /// Checks replay, opens, and acts on what is inside. `plain` is scratch memory.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: Transport<'_>,
        plain: &mut Vec<u8>,
        events: &mut VecDeque<Event>,
    ) -> Received {
        let Transport {
            receiver: index,
            counter,
            sealed,
        } = datagram;
        let current = index == self.keys.local_index;
        let epoch = match &mut self.old_keys {
            _ if current => &mut self.keys,
            Some((old, _)) if old.local_index == index => old,
            _ => return Received::Forged,
        };
        if !epoch.replay.is_new(counter) {
            self.stats.datagrams_replayed += 1;
            return Received::Replayed;
        }
        if epoch.keys.open(counter, sealed, plain).is_err() {
            return Received::Forged;
        }
        let newest = current && epoch.replay.is_newest(counter);
        epoch.replay.mark(counter);
        if let State::Closing { next, left, .. } = &mut self.state {
            // It hasn't heard yet.
            if *left == 0 && now >= *next + BYE_INTERVAL {
                *left = 1;
                *next = now;
            }
            return Received::Taken;
        }
        if self.state == State::Dead {
            return Received::Taken;
        }
        if newest && self.role == Role::Hub && from != self.peer {
            events.push_back(Event::PeerMoved {
                session: self.id,
                from: self.peer,
                to: from,
            });
            self.peer = from;
            self.rate.path_changed();
        }
        let bytes = TRANSPORT_HEADER_BYTES + sealed.len();
        if self.read(now, counter, bytes, plain, events).is_err() {
            self.stats.datagrams_bad += 1;
            self.violation(now, events);
        }
        self.after_input(events);
        Received::Taken
    }

    fn read(
        &mut self,
        now: Instant,
        counter: u64,
        bytes: usize,
        plain: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), frame::Malformed> {
        let (header, frames) = frame::parse_header(plain).ok_or(frame::Malformed)?;
        if header.generation > self.generation {
            self.renew_channels(now, header.generation, events);
        }
        self.on_sign_of_life(now, events);
        let now_us = self.clock_us(now);
        self.receiver
            .on_datagram(now, now_us, counter, header.sent_us, bytes);
        let this_generation = header.generation == self.generation;
        if !this_generation {
            self.stats.datagrams_bad += 1;
        }
        for frame in frames {
            match frame? {
                Frame::Ping => {
                    self.receiver.want_now(now);
                    if self.admitted {
                        self.credit_due = Some(now);
                    }
                }
                Frame::Kcp(packet) if this_generation => {
                    self.receiver.want(now);
                    self.on_kcp(now, packet, events)?;
                }
                Frame::Credit(limits) if this_generation => {
                    for (lane, limit) in self.lanes.iter_mut().zip(limits) {
                        lane.on_credit(limit);
                    }
                }
                Frame::Kcp(_) | Frame::Credit(_) => {}
                Frame::Feedback(feedback) => {
                    self.rate.on_feedback(
                        now,
                        now_us,
                        self.next_counter,
                        self.bytes_sent,
                        &feedback,
                    );
                    self.pacer.set_rate(now, self.rate.rate());
                    self.watch_reordering(feedback.reordered);
                    if let Some(rto) = self.rate.least_rto() {
                        for lane in &mut self.lanes {
                            lane.conversation.set_least_rto(rto);
                        }
                    }
                }
                Frame::Bye(reason) => {
                    self.kill(CloseReason::Peer(reason), events);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn on_kcp(
        &mut self,
        now: Instant,
        packet: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), frame::Malformed> {
        let conv = packet
            .first_chunk::<4>()
            .map(|conv| u32::from_le_bytes(*conv))
            .ok_or(frame::Malformed)?;
        let channel = *Channel::ALL
            .get((conv & 3) as usize)
            .ok_or(frame::Malformed)?;
        let session = self.id;
        let mut messages = 0;
        let taken = self
            .lane_mut(channel)
            .on_packet(now, packet, |message| {
                messages += 1;
                events.push_back(Event::Message {
                    session,
                    channel,
                    message,
                });
            })
            .map_err(|_| frame::Malformed);
        self.stats.messages_received += messages;
        taken
    }

    /// Where datagrams overtake each other, one more acknowledgement is waited for before a packet counts as
    /// lost.
    fn watch_reordering(&mut self, reordered: u32) {
        let reordering = self.reordering || reordered.wrapping_sub(self.reordered) > 2;
        self.reordered = reordered;
        if reordering && !self.reordering {
            self.reordering = true;
            self.set_fast_resend();
        }
    }

    fn set_fast_resend(&mut self) {
        for lane in &mut self.lanes {
            lane.conversation
                .set_fast_resend(if self.reordering { 3 } else { 2 });
        }
    }

    fn renew_channels(&mut self, now: Instant, generation: u32, events: &mut VecDeque<Event>) {
        self.generation = generation;
        self.generation_began = now;
        if self.state == State::Silent {
            self.state = State::Open;
            self.rate.after_silence();
            self.pacer.set_rate(now, self.rate.rate());
        }
        for lane in &self.lanes {
            let (sent, resent) = lane.conversation.counts();
            self.former_packets.0 += sent;
            self.former_packets.1 += resent;
        }
        let admitted = self.admitted;
        self.lanes = Channel::ALL.map(|channel| Lane::new(now, channel, generation, admitted));
        self.set_fast_resend();
        self.acks_again.clear();
        self.staged = false;
        self.waiting_since = None;
        self.ping = true;
        if admitted {
            self.tell_credit();
        }
        events.push_back(Event::ChannelsReset { session: self.id });
    }

    fn violation(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if matches!(self.state, State::Open | State::Silent) {
            self.close(now, Bye::Violation);
            events.push_back(Event::Closed {
                session: self.id,
                reason: CloseReason::Violation,
            });
        }
    }

    fn after_input(&mut self, events: &mut VecDeque<Event>) {
        if self.state != State::Open {
            return;
        }
        let limit = self.queue_limit();
        for channel in Channel::ALL {
            if self.lane_mut(channel).take_writable(limit) {
                events.push_back(Event::Writable {
                    session: self.id,
                    channel,
                });
            }
        }
    }

    // ---- time

    pub(crate) fn handle_timeout(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if self
            .old_keys
            .as_ref()
            .is_some_and(|(_, until)| now >= *until)
        {
            self.old_keys = None;
        }
        match self.state {
            State::Closing { until, .. } => {
                if now >= until {
                    self.state = State::Dead;
                }
                return;
            }
            State::Dead => return,
            State::Open | State::Silent => {}
        }
        if now >= self.last_received + KEYS_OUTLIVE {
            self.kill(CloseReason::TimedOut, events);
            return;
        }
        if self.state == State::Open && self.waiting_since.is_some_and(|at| now >= at + SILENCE) {
            self.state = State::Silent;
            events.push_back(Event::Silent { session: self.id });
        }
        if self.probe_at().is_some_and(|at| now >= at) {
            self.last_probe = now;
            self.ping = true;
        }
        if self.wants_new_generation(now) {
            self.renew_channels(now, self.generation.wrapping_add(1), events);
        }
    }

    /// Asked after all transmits were drained.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Dead => return None,
            State::Closing {
                left, next, until, ..
            } => return Some(if left > 0 { next.min(until) } else { until }),
            State::Open | State::Silent => {}
        }
        let mut earliest = self.last_received + KEYS_OUTLIVE;
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                earliest = earliest.min(at);
            }
        };
        consider(self.probe_at());
        consider(self.receiver.due());
        consider(self.credit_due);
        consider(self.old_keys.as_ref().map(|(_, until)| *until));
        if self.state == State::Open {
            consider(self.waiting_since.map(|at| at + SILENCE));
            consider(self.acks_again.front().map(|(at, ..)| *at));
            let mut waits_for_pacer = self.staged;
            for lane in &self.lanes {
                consider(flush_at(lane));
                waits_for_pacer |= lane.conversation.data_waiting() > 0 || lane.ready_packets() > 0;
            }
            if waits_for_pacer && (self.staged || self.data_waiting() || self.window_room() > 0) {
                consider(Some(self.pacer.ready_at()));
            }
        }
        Some(earliest)
    }

    /// When to ask the peer for a sign of life.
    fn probe_at(&self) -> Option<Instant> {
        if self.state == State::Silent {
            return Some(self.last_probe + SILENT_PROBE_INTERVAL);
        }
        if let Some(waiting) = self.waiting_since {
            return Some((waiting + PROBE_INTERVAL).max(self.last_probe + PROBE_INTERVAL));
        }
        if !self.lanes.iter().all(Lane::is_idle) {
            return Some(self.last_sent.max(self.last_probe) + BUSY_KEEP_ALIVE);
        }
        // The edge keeps the way through its router open; the hub need not.
        (self.role == Role::Edge).then(|| self.last_sent.max(self.last_probe) + IDLE_KEEP_ALIVE)
    }

    fn wants_new_generation(&self, now: Instant) -> bool {
        self.state == State::Open
            && self.role == Role::Edge
            && (now >= self.generation_began + GENERATION_AGE
                || self
                    .lanes
                    .iter()
                    .any(|lane| lane.conversation.next() >= GENERATION_PACKETS))
    }

    // ---- what goes out

    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        out: &mut Vec<u8>,
        events: &mut VecDeque<Event>,
    ) -> Option<Transmit> {
        if self.state == State::Open && !self.staged {
            self.pump(now);
            self.after_input(events);
        }
        let start = out.len();
        let mut segment_size = 0;
        let mut datagrams = 0;
        while datagrams < max_datagrams {
            if !std::mem::take(&mut self.staged) && !self.build(now) {
                break;
            }
            let size = TRANSPORT_HEADER_BYTES + self.plain.bytes().len() + TAG_BYTES;
            if datagrams == 0 {
                segment_size = size;
            } else if size > segment_size {
                self.staged = true;
                break;
            }
            self.seal(now, size, out);
            datagrams += 1;
            if size < segment_size {
                break;
            }
        }
        (datagrams > 0).then(|| Transmit {
            to: self.peer,
            size: out.len() - start,
            segment_size: (datagrams > 1).then_some(segment_size),
        })
    }

    fn seal(&mut self, now: Instant, size: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&transport_header(self.keys.remote_index, self.next_counter));
        self.keys
            .keys
            .seal(self.next_counter, self.plain.bytes(), out);
        self.next_counter += 1;
        self.bytes_sent += size as u64;
        self.last_sent = now;
        self.pacer.spend(size);
    }

    /// Lets the conversations work: higher channels first, and no more than can leave soon.
    fn pump(&mut self, now: Instant) {
        let tokens = self.pacer.tokens(now) + self.pacer.bytes_per_wake_up();
        let waiting: usize = self
            .lanes
            .iter()
            .map(|lane| lane.conversation.data_waiting())
            .sum();
        let room = (tokens / MAX_DATAGRAM_BYTES as f64).max(0.0) as usize + 1;
        let mut room = room.saturating_sub(waiting).min(self.window_room());
        for lane in &mut self.lanes {
            let new = if lane.conversation.data_waiting() > 0 {
                0
            } else {
                lane.feed(room);
                room.min(lane.conversation.unsent_packets())
                    .min(lane.conversation.window_room())
            };
            let due = flush_at(lane).is_some_and(|at| now >= at);
            if due || lane.conversation.may_send(now, new) {
                lane.conversation.flush(now, new);
                room = room.saturating_sub(lane.conversation.data_waiting());
            }
        }
    }

    /// Packets that may yet be unacknowledged, over all channels.
    fn window_room(&self) -> usize {
        let window = (self.rate.window_bytes() / MAX_DATAGRAM_BYTES as f64) as usize;
        let in_flight: usize = self
            .lanes
            .iter()
            .map(|lane| lane.conversation.in_flight())
            .sum();
        window.saturating_sub(in_flight)
    }

    fn data_waiting(&self) -> bool {
        self.lanes
            .iter()
            .any(|lane| lane.conversation.data_waiting() > 0)
    }

    /// Puts the next datagram together in `plain`; `false`: there is none, or it must wait for the pacer.
    fn build(&mut self, now: Instant) -> bool {
        self.plain.start(Header {
            generation: self.generation,
            sent_us: self.clock_us(now),
        });
        match self.state {
            State::Dead => return false,
            State::Closing {
                reason,
                left,
                next,
                until,
            } => {
                if left == 0 || now < next {
                    return false;
                }
                self.state = State::Closing {
                    reason,
                    left: left - 1,
                    next: now + BYE_INTERVAL,
                    until,
                };
                return self.plain.push(&Frame::Bye(reason));
            }
            State::Open | State::Silent => {}
        }
        if self.next_counter - self.keys.first_counter >= MAX_DATAGRAMS_PER_KEY {
            return false;
        }
        let mut asks = false;
        if std::mem::take(&mut self.ping) {
            asks = self.plain.push(&Frame::Ping);
        }
        if self.receiver.due().is_some_and(|at| now >= at) {
            let feedback = self.receiver.take(now);
            let _ = self.plain.push(&Frame::Feedback(feedback));
        }
        self.push_credit(now);
        if self.state == State::Open {
            self.push_acks(now);
            asks |= self.push_data(now);
        }
        if asks && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        self.plain.has_frames()
    }

    fn push_credit(&mut self, now: Instant) {
        // With anything that answers it costs nothing to say it again.
        let due = self.credit_due.is_some_and(|at| now >= at);
        if !due {
            return;
        }
        let mut limits = [0; 3];
        for (limit, lane) in limits.iter_mut().zip(&mut self.lanes) {
            *limit = lane.announce();
        }
        let _ = self.plain.push(&Frame::Credit(limits));
        self.credit_repeats = self.credit_repeats.saturating_sub(1);
        self.credit_due = (self.credit_repeats > 0).then(|| now + FEEDBACK_INTERVAL);
    }

    fn push_acks(&mut self, now: Instant) {
        while let Some((at, _, packet)) = self.acks_again.front() {
            if now < *at || !self.plain.push(&Frame::Kcp(packet)) {
                break;
            }
            if let Some((_, lane, packet)) = self.acks_again.pop_front()
                && let Some(lane) = self.lanes.get_mut(lane)
            {
                lane.conversation.recycle(packet);
            }
        }
        let twice = self.rate.loss() > ACK_TWICE_LOSS;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            while lane
                .conversation
                .next_ack_bytes()
                .is_some_and(|bytes| self.plain.fits(bytes))
            {
                let Some(packet) = lane.conversation.pop_ack() else {
                    break;
                };
                let _ = self.plain.push(&Frame::Kcp(&packet));
                if twice && self.acks_again.len() < MAX_ACKS_AGAIN {
                    self.acks_again
                        .push_back((now + ACK_AGAIN_DELAY, at, packet));
                } else {
                    lane.conversation.recycle(packet);
                }
            }
        }
    }

    /// Whether there was any.
    fn push_data(&mut self, now: Instant) -> bool {
        let mut any = false;
        if self.pacer.tokens(now) <= 0.0 {
            return false;
        }
        for lane in &mut self.lanes {
            while lane
                .conversation
                .next_data_bytes()
                .is_some_and(|bytes| self.plain.fits(bytes))
            {
                let Some(packet) = lane.conversation.pop_data() else {
                    break;
                };
                let _ = self.plain.push(&Frame::Kcp(&packet));
                lane.conversation.recycle(packet);
                any = true;
            }
            if lane.conversation.next_data_bytes().is_some() {
                // Not past a higher channel's packet that didn't fit.
                break;
            }
        }
        any
    }

    // ---- helpers

    fn tell_credit(&mut self) {
        self.credit_repeats = CREDIT_REPEATS;
        self.credit_due = Some(self.last_received);
    }

    fn queue_limit(&self) -> usize {
        ((self.rate.rate() * QUEUE_TIME_S) as usize).clamp(MIN_QUEUE_BYTES, MAX_QUEUE_BYTES)
    }

    fn clock_us(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.clock_start).as_micros() as u32
    }

    fn lane(&self, channel: Channel) -> &Lane {
        let [control, live, bulk] = &self.lanes;
        match channel {
            Channel::Control => control,
            Channel::Live => live,
            Channel::Bulk => bulk,
        }
    }

    fn lane_mut(&mut self, channel: Channel) -> &mut Lane {
        let [control, live, bulk] = &mut self.lanes;
        match channel {
            Channel::Control => control,
            Channel::Live => live,
            Channel::Bulk => bulk,
        }
    }
}

/// When a conversation should work by itself. While packets of it wait for the pacer it need not look for
/// losses, which it would only queue behind them.
fn flush_at(lane: &Lane) -> Option<Instant> {
    let conversation = &lane.conversation;
    if conversation.data_waiting() > 0 && conversation.in_flight() > 0 {
        return None;
    }
    conversation.flush_at()
}
