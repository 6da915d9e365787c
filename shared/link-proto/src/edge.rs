//! The edge's end of the link: one hub, one session, handshakes with back-off beside it.
//!
//! A handshake is wanted where there is no session, where the hub is silent, and where keys grow old. It
//! asks to go on with the session there is; a hub that has lost it gives a new one.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    api::*,
    cookie::{COOKIE_LIFE, HubMacs, mac2},
    datagram::{Datagram, Mac, emit_initiation, initiation_header},
    loss::DEFAULT_MAX_REDUNDANCY,
    noise::{Initiator, Ticket},
    rng::Rng,
    session::{Epoch, Identity, Received, Role, Session},
};

/// Handshakes are repeated after a second, then ever more slowly.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
const RETRY_GROWTH: f64 = 1.5;

/// When many edges lose one hub, they must not all come back in the same moment.
const JITTER: (f64, f64) = (0.75, 1.25);

/// A hub that doesn't want this device is asked again this much later: somebody may have enabled it.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// After another box with this key came: the newest stays, so that two don't drive each other out all the time.
const REPLACED_RETRY: Duration = Duration::from_secs(420);

/// Answers to the last few attempts are taken: on a long line they come after the next attempt has left.
const MAX_ATTEMPTS: usize = 3;

/// What an edge must know to reach its hub.
#[derive(Clone)]
pub struct EdgeConfig {
    pub hub_address: SocketAddr,
    /// X25519 public key of the hub, pinned at enrolment.
    pub hub_key: [u8; 32],
    /// X25519 secret key of this device.
    pub secret_key: [u8; 32],
    pub cipher: Cipher,
}

/// See [`Endpoint`] for the loop. It hand-shakes from the start on and never gives up: after a loss it comes
/// back by itself, with a jittered back-off of 1 to 30 s.
pub struct EdgeEndpoint {
    config: EdgeConfig,
    macs: HubMacs,
    rng: Rng,
    started: Instant,
    session: Option<Session>,
    next_session: u64,
    handshake: Option<Handshake>,
    /// No handshake before this.
    not_before: Instant,
    cookie: Option<(Mac, Instant)>,
    out: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    counters: EndpointCounters,
    plain: Vec<u8>,
    /// Bytes per second that go out at most.
    max_rate: f64,
    max_redundancy: f64,
    finished: bool,
}

struct Handshake {
    attempts: VecDeque<Attempt>,
    tried: u32,
    retry: Duration,
    next: Instant,
}

struct Attempt {
    index: u32,
    mac1: Mac,
    noise: Initiator,
    cookie_taken: bool,
}

impl EdgeEndpoint {
    /// `seed`: 32 fresh random bytes; every key and jitter of this endpoint derives from them.
    pub fn new(config: EdgeConfig, now: Instant, seed: [u8; 32]) -> Self {
        Self {
            macs: HubMacs::new(&config.hub_key),
            config,
            rng: Rng::new(seed),
            started: now,
            session: None,
            next_session: 1,
            handshake: None,
            not_before: now,
            cookie: None,
            out: VecDeque::new(),
            events: VecDeque::new(),
            counters: EndpointCounters::default(),
            plain: Vec::new(),
            max_rate: f64::INFINITY,
            max_redundancy: DEFAULT_MAX_REDUNDANCY,
            finished: false,
        }
    }

    /// The hub's name resolved to another address; a running session goes on there.
    pub fn set_hub_address(&mut self, _now: Instant, address: SocketAddr) {
        self.config.hub_address = address;
        if let Some(session) = &mut self.session {
            session.peer = address;
        }
    }

    /// At most so many bits per second go out from now on, in UDP payloads, whatever the line carries; `None`: no
    /// limit. Holds for later sessions too.
    pub fn set_max_rate(&mut self, now: Instant, bits_per_second: Option<u64>) {
        self.max_rate = bits_per_second.map_or(f64::INFINITY, |bps| bps as f64 / 8.0);
        if let Some(session) = &mut self.session {
            session.set_max_rate(now, self.max_rate);
        }
    }

    /// What is sent before any loss is known (parity; tail probes count, but go in any case) is at most this share of
    /// the media sent from now on, 0 to 1; default [`DEFAULT_MAX_REDUNDANCY`]. Lowering it saves bytes on lossy lines and
    /// makes what is lost there later, by a round trip or two. Holds for later sessions too.
    pub fn set_max_redundancy(&mut self, share: f64) {
        self.max_redundancy = share;
        if let Some(session) = &mut self.session {
            session.set_max_redundancy(share);
        }
    }

    /// Begins all channels of a session that stands open anew: messages that the hub does not have are let go
    /// of (KCP can't take them back one by one), and `Event::ChannelsReset` tells when to go on from offsets.
    pub fn renew_channels(&mut self, now: Instant) {
        if let Some(session) = &mut self.session {
            session.renew(now, &mut self.events);
        }
    }

    /// The session there is, silent or not.
    pub fn session(&self) -> Option<SessionId> {
        self.session.as_ref().map(|session| session.id)
    }

    /// Ends for good: says `Bye` if there is a session, hand-shakes no more.
    pub fn shutdown(&mut self, now: Instant, reason: Bye) {
        self.finished = true;
        self.handshake = None;
        self.out.clear();
        if let Some(session) = &mut self.session {
            session.close(now, reason);
        }
    }

    /// After `shutdown`: nothing more to send, the driver may stop.
    pub fn is_finished(&self) -> bool {
        self.finished && self.session.as_ref().is_none_or(Session::has_said_bye)
    }

    fn wants_handshake(&self, now: Instant) -> bool {
        !self.finished
            && self.session.as_ref().is_none_or(|session| {
                session.is_silent() || session.is_closing() || session.wants_rekey(now)
            })
    }

    /// Begins, repeats or drops handshakes as the session wants it.
    fn shake_hands(&mut self, now: Instant) {
        if !self.wants_handshake(now) {
            self.handshake = None;
            return;
        }
        let Some(handshake) = &mut self.handshake else {
            // The first one at once; beside a session that was lost, spread over a second.
            let delay = match &self.session {
                Some(_) => FIRST_RETRY.mul_f64(self.rng.between(0.0, 1.0)),
                None => Duration::ZERO,
            };
            self.handshake = Some(Handshake {
                attempts: VecDeque::new(),
                tried: 0,
                retry: FIRST_RETRY,
                next: (now + delay).max(self.not_before),
            });
            return self.shake_hands(now);
        };
        if now < handshake.next {
            return;
        }
        if handshake.tried > 0 {
            self.events.push_back(Event::Unanswered {
                attempts: handshake.tried,
            });
        }
        handshake.tried = handshake.tried.saturating_add(1);
        let jitter = self.rng.between(JITTER.0, JITTER.1);
        handshake.next = now + handshake.retry.mul_f64(jitter);
        handshake.retry = handshake.retry.mul_f64(RETRY_GROWTH).min(MAX_RETRY);
        self.attempt(now);
    }

    fn attempt(&mut self, now: Instant) {
        let index = self.rng.next_u32();
        let header = initiation_header(self.config.cipher, index);
        let ticket = Ticket {
            session: self
                .session
                .as_ref()
                .filter(|session| !session.is_closing())
                .map_or(0, |session| session.ticket),
            resumed: false,
        };
        let made = Initiator::new(
            self.config.cipher,
            &self.config.secret_key,
            &self.config.hub_key,
            &header,
            ticket,
            self.rng.seed(),
        );
        let (Some((noise, message)), Some(handshake)) = (made, &mut self.handshake) else {
            return;
        };
        let mac1 = self.macs.mac1(&header, &message);
        let mac2 = match &self.cookie {
            Some((cookie, since)) if now < *since + COOKIE_LIFE => mac2(cookie, &mac1),
            _ => [0; 16],
        };
        if handshake.attempts.len() == MAX_ATTEMPTS {
            handshake.attempts.pop_front();
        }
        handshake.attempts.push_back(Attempt {
            index,
            mac1,
            noise,
            cookie_taken: false,
        });
        self.out.clear();
        self.out
            .push_back(emit_initiation(&header, &mac1, &mac2, &message));
    }

    fn on_response(&mut self, now: Instant, receiver: u32, sender: u32, message: &[u8]) {
        let Some(handshake) = &mut self.handshake else {
            self.counters.datagrams_unknown += 1;
            return;
        };
        let Some(at) = handshake
            .attempts
            .iter()
            .position(|attempt| attempt.index == receiver)
        else {
            self.counters.datagrams_unknown += 1;
            return;
        };
        let Some(Ok(ticket)) = handshake
            .attempts
            .get_mut(at)
            .map(|attempt| attempt.noise.finish(message))
        else {
            self.counters.datagrams_forged += 1;
            return;
        };
        let Some(Ok(keys)) = handshake
            .attempts
            .remove(at)
            .map(|attempt| attempt.noise.into_keys())
        else {
            return;
        };
        self.handshake = None;
        self.counters.handshakes += 1;
        let epoch = Epoch::new(now, keys, receiver, sender);
        match &mut self.session {
            Some(session) if ticket.resumed && session.ticket == ticket.session => {
                session.renew_keys(now, epoch);
                session.on_sign_of_life(now, &mut self.events);
            }
            _ => self.open(now, ticket.session, epoch),
        }
    }

    fn open(&mut self, now: Instant, ticket: u64, epoch: Epoch) {
        if let Some(mut old) = self.session.take() {
            old.kill(CloseReason::Replaced, &mut self.events);
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let who = Identity {
            id,
            ticket,
            peer: self.config.hub_address,
            role: Role::Edge,
            // The hub is who was pinned: nothing to wait for.
            admitted: true,
        };
        let mut session = Session::new(now, self.started, who, epoch);
        session.set_max_rate(now, self.max_rate);
        session.set_max_redundancy(self.max_redundancy);
        self.session = Some(session);
        self.events.push_back(Event::Connected {
            session: id,
            peer_key: self.config.hub_key,
            peer: self.config.hub_address,
        });
    }

    fn on_cookie(&mut self, now: Instant, receiver: u32, masked: &Mac, tag: &Mac) {
        let attempt = self.handshake.as_mut().and_then(|handshake| {
            handshake
                .attempts
                .iter_mut()
                .find(|attempt| attempt.index == receiver)
        });
        let Some(attempt) = attempt else {
            self.counters.datagrams_unknown += 1;
            return;
        };
        match self.macs.unwrap(&attempt.mac1, masked, tag) {
            Some(cookie) if !attempt.cookie_taken => {
                attempt.cookie_taken = true;
                self.cookie = Some((cookie, now));
                self.attempt(now);
            }
            Some(_) => self.counters.datagrams_replayed += 1,
            None => self.counters.datagrams_forged += 1,
        }
    }

    /// Forgets a session that is over, and what its end means for the next handshake.
    fn bury(&mut self, now: Instant) {
        if self.session.as_ref().is_some_and(Session::is_dead) {
            self.session = None;
        }
        // A refusal is told by an event that was just queued.
        if let Some(Event::Closed { reason, .. }) = self.events.back() {
            self.not_before = now
                + match reason {
                    CloseReason::Peer(Bye::Refused | Bye::Violation) | CloseReason::Violation => {
                        REFUSED_RETRY.mul_f64(self.rng.between(JITTER.0, JITTER.1))
                    }
                    CloseReason::Peer(Bye::Replaced) => {
                        REPLACED_RETRY.mul_f64(self.rng.between(JITTER.0, JITTER.1))
                    }
                    CloseReason::Peer(_) => {
                        FIRST_RETRY.mul_f64(self.rng.between(JITTER.0, JITTER.1))
                    }
                    CloseReason::TimedOut | CloseReason::Replaced => Duration::ZERO,
                };
        }
    }

    /// An authentic datagram with whatever inside, as only a broken edge would send it; empty without a session.
    #[cfg(any(test, feature = "sim"))]
    pub fn seal_anything(&mut self, plain: &[u8]) -> Vec<u8> {
        self.session
            .as_mut()
            .map_or(Vec::new(), |session| session.seal_anything(plain))
    }

    #[cfg(test)]
    pub(crate) fn ticket(&self, session: SessionId) -> Option<u64> {
        self.of(session).map(|known| known.ticket)
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.session.as_ref().map_or(0, Session::held_bytes)
    }

    fn of(&self, session: SessionId) -> Option<&Session> {
        self.session.as_ref().filter(|known| known.id == session)
    }

    fn of_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.session.as_mut().filter(|known| known.id == session)
    }
}

impl Endpoint for EdgeEndpoint {
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.len() as u64;
        match Datagram::parse(datagram) {
            Some(Datagram::Response {
                receiver,
                sender,
                noise,
            }) => self.on_response(now, receiver, sender, noise),
            Some(Datagram::CookieReply {
                receiver,
                masked,
                tag,
            }) => self.on_cookie(now, receiver, &masked, &tag),
            Some(Datagram::Transport(datagram)) => {
                let Some(session) = self.session.as_mut().filter(|s| s.owns(datagram.receiver))
                else {
                    self.counters.datagrams_unknown += 1;
                    return;
                };
                let events_before = self.events.len();
                match session.handle_datagram(
                    now,
                    from,
                    datagram,
                    &mut self.plain,
                    &mut self.events,
                ) {
                    Received::Taken => {}
                    Received::Replayed => self.counters.datagrams_replayed += 1,
                    Received::Forged => self.counters.datagrams_forged += 1,
                }
                if self.events.len() > events_before {
                    self.bury(now);
                }
            }
            Some(Datagram::Initiation(_)) | None => self.counters.datagrams_malformed += 1,
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(session) = &mut self.session {
            session.handle_timeout(now, &mut self.events);
            self.bury(now);
        }
        self.shake_hands(now);
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        let session = self.session.as_ref().and_then(Session::poll_timeout);
        let handshake = self.handshake.as_ref().map(|handshake| handshake.next);
        [session, handshake].into_iter().flatten().min()
    }

    fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.shake_hands(now);
        let transmit = if let Some(message) = self.out.pop_front() {
            out.extend_from_slice(&message);
            Transmit {
                to: self.config.hub_address,
                size: message.len(),
                segment_size: None,
            }
        } else {
            let session = self.session.as_mut()?;
            session.poll_transmit(now, max_datagrams, out, &mut self.events)?
        };
        self.counters.count_sent(&transmit);
        Some(transmit)
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn send(
        &mut self,
        _now: Instant,
        session: SessionId,
        channel: Channel,
        message: Bytes,
    ) -> Result<(), SendError> {
        self.of_mut(session)
            .ok_or(SendError::Closed)?
            .send(channel, message)
    }

    fn send_budget(&self, session: SessionId, channel: Channel) -> usize {
        self.of(session)
            .map_or(0, |known| known.send_budget(channel))
    }

    fn consumed(&mut self, session: SessionId, channel: Channel, message_bytes: usize) {
        if let Some(known) = self.of_mut(session) {
            known.consumed(channel, message_bytes);
        }
    }

    fn admit(&mut self, session: SessionId) {
        if let Some(known) = self.of_mut(session) {
            known.admit();
        }
    }

    fn close(&mut self, now: Instant, session: SessionId, reason: Bye) {
        if let Some(known) = self.of_mut(session) {
            known.close(now, reason);
        }
    }

    fn stats(&self, session: SessionId) -> Option<SessionStats> {
        self.of(session).map(Session::stats)
    }

    fn counters(&self) -> EndpointCounters {
        self.counters
    }
}
