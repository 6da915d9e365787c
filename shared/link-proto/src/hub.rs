//! The hub's end of the link: many sessions by index, half-open handshakes in a bounded table.
//!
//! What isn't authentic costs a MAC and a counter; an authentic handshake, which may be a replay, costs a
//! place among at most 256 until a datagram under its keys has come (invariant 6).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    api::*,
    cookie::{CookieJar, HubMacs},
    datagram::{Datagram, Initiation, Transport, emit_cookie_reply, emit_response},
    gate::{Gate, Pass},
    noise::{Responder, Ticket, public_key},
    rng::Rng,
    session::{Epoch, Identity, Received, Role, Session},
};

/// Answered handshakes that wait for their first datagram; the oldest makes room. At 200 handshakes a second
/// each has more than a second for that.
const MAX_HALF_OPEN: usize = 256;

/// Of one device at most so many, so that a replayed first message displaces only its own device's.
const MAX_HALF_OPEN_PER_PEER: usize = 4;

/// Then its edge has tried again anyhow.
const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);

/// Answers to handshakes that wait for the socket; more are dropped.
const MAX_ANSWERS: usize = 256;

/// Sessions that have not been admitted yet; the oldest makes room, so that many who never say who they are
/// keep nobody out. One costs its credit and KCP's smallest windows, some 700 KiB at worst.
const MAX_STRANGERS: usize = 256;

/// What a hub's endpoint must know.
#[derive(Clone)]
pub struct HubConfig {
    /// X25519 secret key of this hub.
    pub secret_key: [u8; 32],
    /// Admitted sessions at a time (default 16,384); one costs some 10 KiB idle, more when busy (see
    /// [`crate::MAX_SESSION_BYTES`]).
    pub max_sessions: usize,
    /// Handshakes a second from which on a cookie is asked for first (default 200, some 6 % of a core). With
    /// cookies there may be 500 more, 50 of them from one network.
    pub cookie_threshold: u32,
}

impl HubConfig {
    pub fn new(secret_key: [u8; 32]) -> Self {
        Self {
            secret_key,
            max_sessions: 16_384,
            cookie_threshold: 200,
        }
    }
}

/// See [`Endpoint`] for the loop. Any holder of a key may connect; who may stay is decided by the application,
/// which calls `admit` or `close`.
pub struct HubEndpoint {
    config: HubConfig,
    macs: HubMacs,
    cookies: CookieJar,
    rng: Rng,
    started: Instant,
    gate: Gate,
    half_open: VecDeque<HalfOpen>,
    /// What an index on the wire belongs to. Indices are ours and random: nobody can crowd them.
    indices: BTreeMap<u32, Place>,
    by_key: BTreeMap<[u8; 32], SessionId>,
    sessions: BTreeMap<SessionId, Entry>,
    /// Those that are not admitted, oldest first.
    strangers: VecDeque<SessionId>,
    next_session: u64,
    /// Sessions to be asked for transmits, in turn.
    ready: VecDeque<SessionId>,
    timers: BTreeSet<(Instant, SessionId)>,
    answers: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Answers and sessions take turns at the socket: a flood of questions holds no session up.
    answered_last: bool,
    events: VecDeque<Event>,
    counters: EndpointCounters,
    plain: Vec<u8>,
}

struct Entry {
    /// Apart: the tree's nodes are half empty as a rule.
    session: Box<Session>,
    peer_key: [u8; 32],
    /// Under which it receives: two at most, and what is left of keys before.
    indices: Vec<u32>,
    timer: Option<Instant>,
    is_ready: bool,
}

struct HalfOpen {
    peer_key: [u8; 32],
    epoch: Epoch,
    ticket: Ticket,
    until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Session(SessionId),
    HalfOpen,
}

impl HubEndpoint {
    /// `seed`: 32 fresh random bytes; every key and index of this endpoint derives from them.
    pub fn new(config: HubConfig, now: Instant, seed: [u8; 32]) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            macs: HubMacs::new(&public_key(&config.secret_key)),
            cookies: CookieJar::new(now, &mut rng),
            gate: Gate::new(now, &mut rng, config.cookie_threshold),
            config,
            rng,
            started: now,
            half_open: VecDeque::new(),
            indices: BTreeMap::new(),
            by_key: BTreeMap::new(),
            sessions: BTreeMap::new(),
            strangers: VecDeque::new(),
            next_session: 1,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            answers: VecDeque::new(),
            answered_last: false,
            events: VecDeque::new(),
            counters: EndpointCounters::default(),
            plain: Vec::new(),
        }
    }

    /// Where the peer is now.
    pub fn peer_address(&self, session: SessionId) -> Option<SocketAddr> {
        Some(self.sessions.get(&session)?.session.peer)
    }

    /// An authentic datagram with whatever inside, as only a broken hub would send it; empty without the
    /// session.
    #[cfg(any(test, feature = "sim"))]
    pub fn seal_anything(&mut self, session: SessionId, plain: &[u8]) -> Vec<u8> {
        self.sessions
            .get_mut(&session)
            .map_or(Vec::new(), |entry| entry.session.seal_anything(plain))
    }

    /// Places taken: half-open handshakes, answers, strangers, indices, events.
    #[cfg(test)]
    pub(crate) fn tables(&self) -> [usize; 5] {
        [
            self.half_open.len(),
            self.answers.len(),
            self.strangers.len(),
            self.indices.len(),
            self.events.len(),
        ]
    }

    /// The most that one session holds.
    #[cfg(test)]
    pub(crate) fn most_held_bytes(&self) -> usize {
        let sessions = self.sessions.values();
        sessions
            .map(|entry| entry.session.held_bytes())
            .max()
            .unwrap_or(0)
    }

    #[cfg(test)]
    pub(crate) fn ticket(&self, session: SessionId) -> Option<u64> {
        Some(self.sessions.get(&session)?.session.ticket)
    }

    fn on_initiation(&mut self, now: Instant, from: SocketAddr, initiation: &Initiation<'_>) {
        // Whether the MAC is right doesn't matter for one that is not answered anyhow.
        if self.gate.has_seen(&initiation.mac1) {
            self.counters.handshakes_replayed += 1;
            return;
        }
        if !self.macs.fits(initiation) {
            self.counters.datagrams_forged += 1;
            return;
        }
        let proven = initiation.mac2 != [0; 16]
            && self.cookies.accepts(now, &mut self.rng, from, initiation);
        match self.gate.pass(now, &mut self.rng, from, proven) {
            Pass::Go => {}
            Pass::Cookie => {
                let cookie = self.cookies.cookie(now, &mut self.rng, from);
                let (masked, tag) = self.macs.wrap(&initiation.mac1, &cookie);
                self.counters.cookies_sent += 1;
                self.answer(from, emit_cookie_reply(initiation.sender, &masked, &tag));
                return;
            }
            Pass::Refuse => {
                self.counters.handshakes_over_budget += 1;
                return;
            }
        }
        let Ok(responder) = Responder::new(
            initiation.cipher,
            &self.config.secret_key,
            &initiation.header,
            initiation.noise,
            self.rng.seed(),
        ) else {
            self.counters.datagrams_forged += 1;
            return;
        };
        self.gate.saw(initiation.mac1);
        let peer_key = responder.peer_key;
        let known = self.by_key.get(&peer_key).copied();
        if known.is_none() && self.is_full() {
            self.counters.handshakes_refused += 1;
            return;
        }
        let asked = responder.ticket.session;
        let resumed = asked != 0
            && known
                .and_then(|id| self.sessions.get(&id))
                .is_some_and(|entry| entry.session.ticket == asked && !entry.session.is_closing());
        let ticket = Ticket {
            session: if resumed {
                asked
            } else {
                self.rng.next_u64().max(1)
            },
            resumed,
        };
        let index = self.free_index();
        let Ok((keys, message)) = responder.answer(ticket) else {
            self.counters.datagrams_forged += 1;
            return;
        };
        self.keep_half_open(
            now,
            HalfOpen {
                peer_key,
                epoch: Epoch::new(now, keys, index, initiation.sender),
                ticket,
                until: now + HALF_OPEN_LIFE,
            },
        );
        self.answer(from, emit_response(initiation.sender, index, &message));
    }

    fn free_index(&mut self) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    fn keep_half_open(&mut self, now: Instant, half: HalfOpen) {
        // The oldest are in front, and all live equally long.
        while self
            .half_open
            .front()
            .is_some_and(|other| other.until <= now)
        {
            self.take_half_open(0);
        }
        let of_peer = |other: &HalfOpen| other.peer_key == half.peer_key;
        if self.half_open.iter().filter(|other| of_peer(other)).count() >= MAX_HALF_OPEN_PER_PEER {
            if let Some(at) = self.half_open.iter().position(of_peer) {
                self.take_half_open(at);
            }
        } else if self.half_open.len() >= MAX_HALF_OPEN {
            self.take_half_open(0);
            self.counters.handshakes_refused += 1;
        }
        self.indices.insert(half.epoch.local_index, Place::HalfOpen);
        self.half_open.push_back(half);
    }

    fn take_half_open(&mut self, at: usize) -> Option<HalfOpen> {
        let half = self.half_open.remove(at)?;
        self.indices.remove(&half.epoch.local_index);
        Some(half)
    }

    fn is_full(&self) -> bool {
        self.sessions.len().saturating_sub(self.strangers.len()) >= self.config.max_sessions
    }

    fn answer(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((to, bytes));
        } else {
            self.counters.answers_dropped += 1;
        }
    }

    fn transmit_answer(&mut self, out: &mut Vec<u8>) -> Option<Transmit> {
        let (to, bytes) = self.answers.pop_front()?;
        out.extend_from_slice(&bytes);
        let transmit = Transmit {
            to,
            size: bytes.len(),
            segment_size: None,
        };
        self.counters.count_sent(&transmit);
        Some(transmit)
    }

    fn on_transport(&mut self, now: Instant, from: SocketAddr, datagram: Transport<'_>) {
        let index = datagram.receiver;
        let at = match self.indices.get(&index) {
            Some(&Place::Session(id)) => {
                self.on_session_datagram(now, from, id, datagram);
                return;
            }
            Some(Place::HalfOpen) => self
                .half_open
                .iter()
                .position(|half| half.epoch.local_index == index),
            None => None,
        };
        let Some(at) = at else {
            self.counters.datagrams_unknown += 1;
            return;
        };
        let authentic = self.half_open.get(at).is_some_and(|half| {
            half.epoch
                .keys
                .open(datagram.counter, datagram.sealed, &mut self.plain)
                .is_ok()
        });
        if !authentic {
            self.counters.datagrams_forged += 1;
            return;
        }
        if let Some(half) = self.take_half_open(at)
            && let Some(id) = self.establish(now, from, half)
        {
            self.on_session_datagram(now, from, id, datagram);
        }
    }

    /// The peer has shown that it holds the new keys: only now anything of an older session may change.
    fn establish(&mut self, now: Instant, from: SocketAddr, half: HalfOpen) -> Option<SessionId> {
        let index = half.epoch.local_index;
        let known = self.by_key.get(&half.peer_key).copied();
        if let Some(id) = known
            && let Some(entry) = self.sessions.get_mut(&id)
        {
            if half.ticket.resumed && entry.session.ticket == half.ticket.session {
                entry.session.renew_keys(now, half.epoch);
                let session = &entry.session;
                for former in entry
                    .indices
                    .extract_if(.., |former| !session.owns(*former))
                {
                    self.indices.remove(&former);
                }
                entry.indices.push(index);
                self.indices.insert(index, Place::Session(id));
                self.counters.handshakes += 1;
                return Some(id);
            }
            if half.ticket.resumed {
                // The edge believes in a session that has been replaced meanwhile: it will find out.
                return None;
            }
            // A box that was restarted does not hear it; a second one of this identity must know why it is
            // not heard any more.
            self.events.push_back(Event::Closed {
                session: id,
                reason: CloseReason::Replaced,
            });
            entry.session.close(now, Bye::Replaced);
            self.make_ready(id);
            self.bury_replaced(half.peer_key, id);
        } else if half.ticket.resumed || self.is_full() {
            self.counters.handshakes_refused += 1;
            return None;
        }
        self.counters.handshakes += 1;
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let who = Identity {
            id,
            ticket: half.ticket.session,
            peer: from,
            role: Role::Hub,
            admitted: false,
        };
        let session = Session::new(now, self.started, who, half.epoch);
        self.sessions.insert(
            id,
            Entry {
                session: Box::new(session),
                peer_key: half.peer_key,
                indices: vec![index],
                timer: None,
                is_ready: false,
            },
        );
        self.indices.insert(index, Place::Session(id));
        self.by_key.insert(half.peer_key, id);
        if self.strangers.len() >= MAX_STRANGERS
            && let Some(oldest) = self.strangers.front().copied()
        {
            self.counters.strangers_dropped += 1;
            if let Some(entry) = self.sessions.get_mut(&oldest) {
                entry.session.kill(CloseReason::TimedOut, &mut self.events);
            }
            self.bury(oldest);
        }
        self.strangers.push_back(id);
        self.events.push_back(Event::Connected {
            session: id,
            peer_key: half.peer_key,
            peer: from,
        });
        Some(id)
    }

    /// Of each peer one replaced session may linger to say so; older ones go.
    fn bury_replaced(&mut self, peer_key: [u8; 32], newest: SessionId) {
        let of_peer = self
            .sessions
            .iter()
            .filter(|(id, entry)| **id != newest && entry.peer_key == peer_key);
        let older: Vec<_> = of_peer.map(|(id, _)| *id).collect();
        for id in older {
            self.bury(id);
        }
    }

    fn on_session_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: SessionId,
        datagram: Transport<'_>,
    ) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        match entry
            .session
            .handle_datagram(now, from, datagram, &mut self.plain, &mut self.events)
        {
            Received::Taken => self.make_ready(id),
            Received::Replayed => self.counters.datagrams_replayed += 1,
            Received::Forged => self.counters.datagrams_forged += 1,
        }
    }

    fn make_ready(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut entry.is_ready, true) {
            self.ready.push_back(id);
        }
    }

    /// Nothing more to send: buries the session or sets its timer.
    fn settle(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.get_mut(&id) else {
            return;
        };
        entry.is_ready = false;
        if entry.session.is_dead() {
            self.bury(id);
            return;
        }
        let timer = entry.session.poll_timeout();
        let old = std::mem::replace(&mut entry.timer, timer);
        if old != timer {
            if let Some(old) = old {
                self.timers.remove(&(old, id));
            }
            if let Some(timer) = timer {
                self.timers.insert((timer, id));
            }
        }
    }

    fn bury(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, id));
        }
        for index in &entry.indices {
            self.indices.remove(index);
        }
        self.strangers.retain(|stranger| *stranger != id);
        if self.by_key.get(&entry.peer_key) == Some(&id) {
            self.by_key.remove(&entry.peer_key);
        }
    }
}

impl Endpoint for HubEndpoint {
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += datagram.len() as u64;
        match Datagram::parse(datagram) {
            Some(Datagram::Transport(datagram)) => self.on_transport(now, from, datagram),
            Some(Datagram::Initiation(initiation)) => self.on_initiation(now, from, &initiation),
            Some(Datagram::Response { .. } | Datagram::CookieReply { .. }) | None => {
                self.counters.datagrams_malformed += 1;
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(entry) = self.sessions.get_mut(&id) {
                entry.timer = None;
                entry.session.handle_timeout(now, &mut self.events);
                self.make_ready(id);
            }
        }
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let answers_wait = std::mem::replace(&mut self.answered_last, false);
        if !answers_wait && let Some(transmit) = self.transmit_answer(out) {
            self.answered_last = true;
            return Some(transmit);
        }
        while let Some(id) = self.ready.pop_front() {
            let transmit = self.sessions.get_mut(&id).and_then(|entry| {
                entry
                    .session
                    .poll_transmit(now, max_datagrams, out, &mut self.events)
            });
            if let Some(transmit) = transmit {
                // It may have more: after the others.
                self.ready.push_back(id);
                self.counters.count_sent(&transmit);
                return Some(transmit);
            }
            self.settle(id);
        }
        self.transmit_answer(out)
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
        let entry = self.sessions.get_mut(&session).ok_or(SendError::Closed)?;
        let sent = entry.session.send(channel, message);
        self.make_ready(session);
        sent
    }

    fn send_budget(&self, session: SessionId, channel: Channel) -> usize {
        self.sessions
            .get(&session)
            .map_or(0, |entry| entry.session.send_budget(channel))
    }

    fn consumed(&mut self, session: SessionId, channel: Channel, message_bytes: usize) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.session.consumed(channel, message_bytes);
            self.make_ready(session);
        }
    }

    fn admit(&mut self, session: SessionId) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.session.admit();
            self.strangers.retain(|stranger| *stranger != session);
            self.make_ready(session);
        }
    }

    fn close(&mut self, now: Instant, session: SessionId, reason: Bye) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.session.close(now, reason);
            self.make_ready(session);
        }
    }

    fn stats(&self, session: SessionId) -> Option<SessionStats> {
        Some(self.sessions.get(&session)?.session.stats())
    }

    fn counters(&self) -> EndpointCounters {
        self.counters
    }
}
