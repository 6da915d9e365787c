//! An authenticated link between a device and a hub: keys, channels, pacing and keep-alive in one place.
//!
//! Both ends run the same machine; only the edge begins handshakes (`edge.rs`), only the hub follows its
//! peer's address (`hub.rs`). Nothing here is reached by what isn't authentic.

mod incoming;
mod losses;
mod outgoing;
mod timing;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    api::{
        Bye, Channel, CloseReason, Event, MAX_MESSAGE_BYTES, SendError, SessionId, SessionStats,
    },
    bucket::Bucket,
    datagram::MAX_DATAGRAM_BYTES,
    feedback::Receiver,
    frame::{Plaintext, kcp_mss},
    lane::{Lane, MAX_CREDIT_BYTES, MAX_WINDOW_PACKETS},
    lateness::Lateness,
    loss::{Beforehand, LossMeter},
    mtu::PathMtu,
    noise::Keys,
    pacing::Pacer,
    parity::{MAX_KEPT_PARITIES, MAX_RECENT_PACKETS},
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

/// Keys are replaced after an hour or 2^30 datagrams, long before AES-GCM's bounds.
const REKEY_AGE: Duration = Duration::from_secs(3600);
const REKEY_DATAGRAMS: u64 = 1 << 30;

/// What was on its way under the old keys may still come for so long.
const OLD_KEYS_LIVE: Duration = Duration::from_secs(30);

/// A channel's queue holds this much time at the present rate, within the two bounds.
const QUEUE_TIME_S: f64 = 0.05;
const MIN_QUEUE_BYTES: usize = 4 * MAX_MESSAGE_BYTES;
const MAX_QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// Credit that has grown is told this often, since each telling may be lost.
const CREDIT_REPEATS: u8 = 3;

/// `Bye` is said this often, and again to whatever comes in, until the linger is over.
const BYE_REPEATS: u8 = 3;
const BYE_INTERVAL: Duration = Duration::from_millis(50);
const LINGER: Duration = Duration::from_secs(3);

/// A peer may renew the channels this often in a row, and then once a second: an honest one does it after
/// three seconds of silence. Each renewal gives it fresh credit, so more is a violation.
const MAX_RENEWALS: f32 = 8.0;
const RENEWALS_PER_SECOND: f32 = 1.0;

/// What a session can come to hold, in bytes, whatever its peer does (invariant 5). For each channel: messages
/// that wait to be sent, KCP's send and receive windows full of packets, those sent once more in case that
/// they are lost, messages received that the application has not dealt with, and what is kept for parity.
pub const MAX_SESSION_BYTES: usize = 3 * MAX_QUEUE_BYTES
    + 3 * MAX_WINDOW_PACKETS * MAX_DATAGRAM_BYTES
    + MAX_CREDIT_BYTES
    + 3 * (MAX_KEPT_PARITIES + MAX_RECENT_PACKETS) * MAX_DATAGRAM_BYTES;

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
    renewals: Bucket,
    admitted: bool,
    lanes: [Lane; 3],
    receiver: Receiver,
    rate: RateController,
    pacer: Pacer,
    mtu: PathMtu,
    /// A probe of the peer's came that was not answered: the size of its datagram.
    reached: Option<u16>,
    /// Bytes per second that the operator allows at most.
    max_rate: f64,
    lateness: Lateness,
    losses: LossMeter,
    /// The share of datagrams lost when large ones last came: not for their size.
    calm_loss: f64,
    beforehand: Beforehand,
    /// The highest of our datagrams that the peer has seen, and when it last said so or was asked.
    seen: u64,
    heard: Option<Instant>,
    /// Tail probes since then.
    probes: u32,
    detect_at: Option<Instant>,
    ack_due: Option<Instant>,
    last_ack: Option<Instant>,
    last_received: Instant,
    last_sent: Instant,
    /// Since when the peer owes an answer.
    waiting_since: Option<Instant>,
    last_probe: Instant,
    ping: bool,
    credit_repeats: u8,
    credit_due: Option<Instant>,
    plain: Plaintext,
    /// `plain` holds a datagram that didn't fit the last batch.
    staged: bool,
    /// It is a probe of the path's MTU.
    probing: bool,
    stats: SessionStats,
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
            renewals: Bucket::full(now, MAX_RENEWALS),
            admitted: who.admitted,
            lanes: Channel::ALL.map(|channel| Lane::new(now, channel, 0, who.admitted)),
            receiver: Receiver::default(),
            pacer: Pacer::new(now, rate.rate()),
            mtu: PathMtu::new(),
            reached: None,
            max_rate: f64::INFINITY,
            rate,
            lateness: Lateness::new(),
            losses: LossMeter::new(),
            calm_loss: 0.0,
            beforehand: Beforehand::new(),
            seen: 0,
            heard: None,
            probes: 0,
            detect_at: None,
            ack_due: None,
            last_ack: None,
            last_received: now,
            last_sent: now,
            waiting_since: None,
            last_probe: now,
            ping: true,
            credit_repeats: if who.admitted { CREDIT_REPEATS } else { 0 },
            credit_due: who.admitted.then_some(now),
            plain: Plaintext::default(),
            staged: false,
            probing: false,
            stats: SessionStats::default(),
        }
    }

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

    /// An authentic datagram with whatever inside, as only a broken peer would send it.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn seal_anything(&mut self, plain: &[u8]) -> Vec<u8> {
        let counter = self.next_counter;
        self.next_counter += 1;
        let mut out = crate::datagram::transport_header(self.keys.remote_index, counter).to_vec();
        self.keys.keys.seal(counter, plain, &mut out);
        out
    }

    /// What its channels hold, of all that [`MAX_SESSION_BYTES`] bounds.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.lanes.iter().map(Lane::held_bytes).sum()
    }

    pub(crate) fn stats(&self) -> SessionStats {
        let mut stats = SessionStats {
            rtt: self.rate.rtt(),
            min_rtt: self.rate.min_rtt(),
            queueing_delay: self.rate.queueing_delay(),
            rate_bps: (self.paced_rate() * 8.0) as u64,
            datagram_bytes: self.mtu.datagram_bytes(),
            delivery_bps: (self.rate.delivery() * 8.0) as u64,
            competes: self.rate.competes(),
            loss: self.losses.loss() as f32,
            loss_burst: self.losses.burst() as f32,
            datagrams_sent: self.next_counter,
            datagrams_received: self.receiver.datagrams(),
            datagrams_expected: self.receiver.expected(),
            bytes_sent: self.bytes_sent,
            bytes_received: self.receiver.bytes(),
            bytes_beforehand: self.beforehand.spent_bytes(),
            generation: self.generation,
            silent: self.is_silent(),
            outstanding_bytes: self.lanes.iter().map(Lane::outstanding_bytes).sum(),
            ..self.stats
        };
        stats.packets_recovered += self.lanes.iter().map(|lane| lane.recovered).sum::<u64>();
        stats
    }

    /// Bytes per second that go out at most from now on, whatever the line carries.
    pub(crate) fn set_max_rate(&mut self, now: Instant, max_rate: f64) {
        self.max_rate = max_rate;
        self.pacer.set_rate(now, self.paced_rate());
    }

    /// What may be sent before any loss is known from now on, as a share of the media sent, 0 to 1.
    pub(crate) fn set_max_redundancy(&mut self, share: f64) {
        self.beforehand.set_share(share);
    }

    fn paced_rate(&self) -> f64 {
        self.rate.rate().min(self.max_rate)
    }

    /// Begins all channels anew: what waits in them is let go of.
    pub(crate) fn renew(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if self.state == State::Open {
            self.renew_channels(now, self.generation.wrapping_add(1), events);
        }
    }

    pub(crate) fn send_budget(&self, channel: Channel) -> usize {
        if self.state != State::Open {
            return 0;
        }
        self.queue_limit()
            .saturating_sub(self.lane(channel).queued_bytes())
    }

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

    /// Messages are cut from now on as the path's MTU has it.
    fn follow_mtu(&mut self) {
        let mss = kcp_mss(self.mtu.datagram_bytes());
        for lane in &mut self.lanes {
            lane.conversation.set_mss(mss);
        }
    }

    fn tell_credit(&mut self) {
        self.credit_repeats = CREDIT_REPEATS;
        self.credit_due = Some(self.last_received);
    }

    fn queue_limit(&self) -> usize {
        ((self.paced_rate() * QUEUE_TIME_S) as usize).clamp(MIN_QUEUE_BYTES, MAX_QUEUE_BYTES)
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
