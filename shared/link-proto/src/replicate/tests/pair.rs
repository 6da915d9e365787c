//! An edge and a hub with model stores, joined by real sessions on a simulated line: the shells between store and
//! session as `shared/link` has them, but without threads. Time jumps.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use model::{SegmentNumber, StreamName};

use super::{
    stores::{EdgeStore, HubStore},
    world::Random,
};
use crate::{
    Channel, Cipher, Endpoint, Event, SessionId,
    messages::{Chunk, Hello, PROTOCOL_VERSION, ToEdge, ToHub},
    replicate::{
        receiver::{Outcome, Receiver},
        sender::Sender,
    },
    sim::{Line, Who, World},
};

/// More rounds of work than this in one instant are a live-lock.
const MAX_ROUNDS: u32 = 100_000;

/// An edge and a hub with their stores; the shells between store and session as `shared/link` has them, but
/// without threads.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) random: Random,
    pub(super) edge: EdgeStore,
    pub(super) sender: Sender,
    pub(super) welcomed: Option<SessionId>,
    pub(super) hub: HubStore,
    receiver: Receiver,
    hub_session: Option<SessionId>,
    answers: std::collections::VecDeque<ToEdge>,
    pub(super) media_bytes: u64,
    /// When each part was recorded that has not come as live, by where it ends.
    recorded: BTreeMap<(StreamName, SegmentNumber, u64), Instant>,
    /// Parts that came as live: when, and how long after they were recorded.
    pub(super) live_parts: Vec<(Instant, Duration)>,
    /// When the newest part of each stream was recorded that came as live.
    pub(super) live_edge: BTreeMap<StreamName, Instant>,
    /// How often channels were renewed since live was behind what was under way.
    pub(super) renewals: u32,
    /// Bytes that came as backfill, with when.
    pub(super) backfill: Vec<(Instant, usize)>,
    /// Segments that were compared and let go of.
    compared: u64,
    /// Media bytes that senders before this one gave to sessions.
    handed_before: u64,
    /// Bytes of messages that the edge's session has under way.
    outstanding_bytes: usize,
    /// Bytes that may go again: what was under way when channels were renewed or an end restarted, and what a
    /// restart took from the disks.
    pub(super) again_bytes: u64,
    /// How often that happened.
    pub(super) interruptions: u64,
}

impl Pair {
    pub(super) fn new(seed: u64, line: &Line) -> Self {
        let mut world = World::new(seed);
        world.add_edge(line.clone(), line.clone(), Cipher::AesGcm);
        Self {
            world,
            random: Random::new(seed),
            edge: EdgeStore::default(),
            sender: Sender::new(),
            welcomed: None,
            hub: HubStore::default(),
            receiver: Receiver::new(),
            hub_session: None,
            answers: std::collections::VecDeque::new(),
            media_bytes: 0,
            recorded: BTreeMap::new(),
            live_parts: Vec::new(),
            live_edge: BTreeMap::new(),
            renewals: 0,
            backfill: Vec::new(),
            compared: 0,
            handed_before: 0,
            outstanding_bytes: 0,
            again_bytes: 0,
            interruptions: 0,
        }
    }

    pub(super) fn stream(&mut self, name: &str) -> StreamName {
        let name: StreamName = name.parse().unwrap();
        self.edge.streams.entry(name.clone()).or_default();
        self.name_streams();
        name
    }

    fn name_streams(&mut self) {
        let names = self.edge.streams.keys().cloned().collect();
        self.sender.set_streams(names);
    }

    pub(super) fn record(&mut self, stream: &StreamName, bytes: usize) {
        let bytes = self.random.bytes(bytes);
        let edge = self.edge.streams.get_mut(stream).unwrap();
        edge.part(&bytes);
        let (number, end) = edge.written().unwrap();
        let part = (stream.clone(), number, end);
        self.recorded.insert(part, self.world.now);
        self.sender.changed();
    }

    pub(super) fn close(&mut self, stream: &StreamName) {
        self.edge.streams.get_mut(stream).unwrap().close();
        self.sender.changed();
    }

    pub(super) fn end_all(&mut self) {
        self.edge.streams.values_mut().for_each(|edge| edge.end());
        self.sender.changed();
    }

    pub(super) fn restart_edge(&mut self, lose_parts: usize) {
        self.interrupted();
        for (name, edge) in &mut self.edge.streams {
            // A beginning that is longer than what is left goes again from nought.
            let hub = self.hub.streams.get(name).filter(|_| lose_parts > 0);
            let partials = hub.iter().flat_map(|hub| hub.partials.values());
            self.again_bytes += partials.map(|bytes| bytes.len() as u64).sum::<u64>();
            edge.restart(lose_parts, 0);
        }
        self.handed_before = self.handed_bytes();
        self.sender = Sender::new();
        self.welcomed = None;
        self.name_streams();
        self.world.restart_edge(0);
    }

    pub(super) fn restart_hub(&mut self, lose: usize) {
        let partials = self.hub.streams.values().flat_map(|s| s.partials.values());
        let lost = partials.map(|bytes| bytes.len().min(lose) as u64);
        self.again_bytes += lost.sum::<u64>();
        self.hub.restart(lose);
        self.receiver = Receiver::new();
        self.hub_session = None;
        self.answers.clear();
        self.world.restart_hub();
    }

    /// Media bytes that the sender gave to its sessions; what went again counts again.
    pub(super) fn handed_bytes(&self) -> u64 {
        let progress = self.sender.progress();
        self.handed_before + progress.media_bytes()
    }

    /// What is under way goes again.
    fn interrupted(&mut self) {
        self.again_bytes += std::mem::take(&mut self.outstanding_bytes) as u64;
        self.interruptions += 1;
    }

    /// The hub asks for these ahead of the rest.
    pub(super) fn want(&mut self, stream: &StreamName, ranges: &[RangeInclusive<u64>]) {
        let numbers = |r: &RangeInclusive<u64>| SegmentNumber(*r.start())..=SegmentNumber(*r.end());
        let ranges = ranges.iter().map(numbers);
        self.answers.push_back(ToEdge::Want {
            stream: stream.clone(),
            ranges: ranges.collect(),
        });
    }

    /// Lets time go on; stops early once `done`.
    pub(super) fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.world.now + limit;
        loop {
            for (who, event) in self.world.take_events() {
                match who {
                    Who::Edge(_) => self.at_edge(event),
                    Who::Hub => self.at_hub(event),
                }
            }
            self.pump();
            if done(self) {
                return true;
            }
            if self.world.now >= until {
                return false;
            }
            let waits = self.sender.poll_timeout().filter(|at| *at > self.world.now);
            match self.world.next_event() {
                Some(next) if next <= waits.unwrap_or(until).min(until) => {
                    self.world.step();
                }
                _ => self.world.now = waits.unwrap_or(until).min(until),
            }
        }
    }

    fn at_edge(&mut self, event: Event) {
        let now = self.world.now;
        if matches!(event, Event::ChannelsReset { .. } | Event::Closed { .. }) {
            self.interrupted();
        }
        let endpoint = &mut self.world.edges[0].endpoint;
        match event {
            Event::Connected { session, .. } => {
                let hello = ToHub::Hello(Hello {
                    version: PROTOCOL_VERSION,
                    software: "test".into(),
                    clock: model::WallTime(0),
                });
                endpoint
                    .send(now, session, Channel::Control, hello.encode())
                    .unwrap();
            }
            Event::ChannelsReset { session } if self.welcomed == Some(session) => {
                self.sender.connected();
            }
            Event::ChannelsReset { session } => self.at_edge(Event::Connected {
                session,
                peer_key: [0; 32],
                peer: crate::sim::HUB_ADDRESS,
            }),
            Event::Message {
                session,
                channel,
                message,
            } => {
                endpoint.consumed(session, channel, message.len());
                match ToEdge::decode(message).unwrap().unwrap() {
                    ToEdge::Welcome { .. } => {
                        self.welcomed = Some(session);
                        self.sender.connected();
                    }
                    message => self.sender.handle_message(now, message).unwrap(),
                }
            }
            Event::Closed { .. } => {
                self.welcomed = None;
                self.sender.disconnected();
            }
            _ => {}
        }
    }

    fn at_hub(&mut self, event: Event) {
        match event {
            Event::Connected { session, .. } => {
                self.hub_session = Some(session);
                self.receiver = Receiver::new();
                self.answers.clear();
            }
            Event::ChannelsReset { session } if self.hub_session == Some(session) => {
                self.receiver.reset();
                self.answers.clear();
            }
            Event::Message {
                session,
                channel,
                message,
            } => {
                let length = message.len();
                match ToHub::decode(message).unwrap().unwrap() {
                    ToHub::Hello(_) => {
                        self.world.hub.admit(session);
                        self.answers.push_back(ToEdge::Welcome {
                            name: "site-1".parse().unwrap(),
                            hub_time: model::WallTime(0),
                            floors: Vec::new(),
                        });
                    }
                    message => {
                        if let ToHub::Chunk(chunk) = &message {
                            self.media_bytes += chunk.data.len() as u64;
                            self.note_chunk(channel, chunk);
                        }
                        let job = self.receiver.handle_message(channel, message).unwrap();
                        let outcome: Option<Outcome> = job.and_then(|job| self.hub.execute(job));
                        let answers = outcome.map(|outcome| self.receiver.handle_outcome(outcome));
                        self.answers.extend(answers.into_iter().flatten());
                    }
                }
                self.world.hub.consumed(session, channel, length);
            }
            Event::Closed { session, .. } if self.hub_session == Some(session) => {
                self.hub_session = None;
                self.answers.clear();
            }
            _ => {}
        }
    }

    fn note_chunk(&mut self, channel: Channel, chunk: &Chunk) {
        let now = self.world.now;
        if channel == Channel::Bulk {
            self.backfill.push((now, chunk.data.len()));
            return;
        }
        let end = chunk.offset + chunk.data.len() as u64;
        let key = |end| (chunk.stream.clone(), chunk.number, end);
        let whole = self.recorded.range(key(chunk.offset + 1)..=key(end));
        let whole: Vec<_> = whole.map(|(part, at)| (part.clone(), *at)).collect();
        for (part, at) in whole {
            // What a restarted hub has lost comes again: that is no live part any more.
            self.recorded.remove(&part);
            self.live_parts.push((now, now - at));
            let newest = self.live_edge.entry(chunk.stream.clone()).or_insert(at);
            *newest = at.max(*newest);
        }
    }

    fn pump(&mut self) {
        let now = self.world.now;
        if self.sender.poll_timeout().is_some_and(|at| at <= now) {
            self.sender.handle_timeout(now);
        }
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < MAX_ROUNDS, "the edge works without an end");
            let mut busy = false;
            while let Some(command) = self.sender.poll_command(now) {
                self.edge.execute(now, command, &mut self.sender);
                busy = true;
            }
            if let Some(session) = self.welcomed {
                let endpoint = &mut self.world.edges[0].endpoint;
                let under_way = || {
                    let stats = endpoint.stats(session).unwrap();
                    (stats.outstanding_bytes, stats.rate_bps)
                };
                if self.sender.wants_renewal(now, under_way) {
                    self.renewals += 1;
                    self.outstanding_bytes = under_way().0;
                    endpoint.renew_channels(now);
                    break;
                }
                for channel in Channel::ALL {
                    while endpoint.send_budget(session, channel) > 0
                        && let Some(message) = self.sender.poll_message(now, channel)
                    {
                        endpoint
                            .send(now, session, channel, message.encode())
                            .unwrap();
                        busy = true;
                    }
                }
            }
            if let Some(stats) = self
                .welcomed
                .and_then(|session| self.world.edges[0].endpoint.stats(session))
            {
                self.outstanding_bytes = stats.outstanding_bytes;
            }
            if !busy {
                break;
            }
        }
        let Some(session) = self.hub_session else {
            return;
        };
        let hub = &mut self.world.hub;
        while hub.send_budget(session, Channel::Control) > 0
            && let Some(answer) = self.answers.pop_front()
        {
            hub.send(now, session, Channel::Control, answer.encode())
                .unwrap();
        }
    }

    /// Compares what is stored, all but the newest `keep` of each stream, and deletes it at both ends as
    /// retention would. How many were compared so far.
    pub(super) fn let_go(&mut self, keep: usize) -> u64 {
        for (name, edge) in &mut self.edge.streams {
            let Some(hub) = self.hub.streams.get_mut(name) else {
                continue;
            };
            let old = edge.closed.len().saturating_sub(keep);
            let stored: Vec<_> = edge.closed.keys().take(old).copied().collect();
            for number in stored {
                if edge.stored.contains(number) {
                    assert_eq!(hub.here.remove(&number), edge.closed.remove(&number));
                    hub.holes.insert(number);
                    self.compared += 1;
                }
            }
        }
        self.compared
    }

    pub(super) fn assert_replicated(&self) {
        for (name, edge) in &self.edge.streams {
            let hub = &self.hub.streams[name];
            for (number, segment) in &edge.closed {
                assert_eq!(hub.here.get(number), Some(segment), "{name} {number}");
            }
            assert_eq!(hub.ended, edge.ending);
        }
        assert_eq!(self.hub.offered_again, 0);
    }
}

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn lossy(loss: f64) -> Line {
    Line {
        delay: ms(40),
        jitter: ms(5),
        loss,
        rate_bps: Some(20_000_000),
        ..Line::default()
    }
}
