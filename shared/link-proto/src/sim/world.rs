//! A hub and some edges on simulated lines, and the clock that drives them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Attacker, Line, Network, Rival, RivalKind,
    attacker::Work,
    network::{Delivery, LineState},
    rival::RIVAL_ADDRESS,
};
use crate::{
    Cipher, EdgeConfig, EdgeEndpoint, Endpoint, Event, HubConfig, HubEndpoint, public_key,
};

pub const HUB_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9710);

/// More steps than this without time going on are a live-lock.
const MAX_STEPS_AT_ONCE: u32 = 20_000;

/// Whose event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Hub,
    Edge(usize),
}

pub struct Edge {
    pub endpoint: EdgeEndpoint,
    pub address: SocketAddr,
    pub up: Line,
    pub down: Line,
    up_state: LineState,
    down_state: LineState,
    /// Shares the way up.
    pub rival: Option<Rival>,
    secret_key: [u8; 32],
}

impl Edge {
    /// Datagrams that this edge has put on its line, and their bytes without IP and UDP headers.
    pub fn sent(&self) -> (u64, u64) {
        (self.up_state.datagrams, self.up_state.bytes)
    }

    /// Of these, the datagrams and bytes that the line lost, and the bytes that did not fit its queue.
    pub fn lost(&self) -> (u64, u64, u64) {
        let state = &self.up_state;
        (
            state.lost_datagrams,
            state.lost_bytes,
            state.overflowed_bytes,
        )
    }

    /// How long a datagram that this edge sends now waits before its line.
    pub fn queueing_delay(&self, now: Instant) -> Duration {
        self.up_state.queueing_delay(now)
    }
}

/// See [`World::step`]. Commands to the endpoints may be given between any two steps.
pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub hub: HubEndpoint,
    pub edges: Vec<Edge>,
    pub network: Network,
    attacker: Option<Work>,
    /// Commands since the last step have effects only once transmits are drained.
    events: Vec<(Who, Event)>,
    hub_config: HubConfig,
    seed: u64,
    seeds_given: u64,
    steps_at_once: u32,
    pub steps: u64,
    buffer: Vec<u8>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with_hub(seed, HubConfig::new([0x48; 32]))
    }

    pub fn with_hub(seed: u64, config: HubConfig) -> Self {
        let start = super::start();
        let mut hub_seed = [1; 32];
        hub_seed[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            start,
            now: start,
            hub: HubEndpoint::new(config.clone(), start, hub_seed),
            edges: Vec::new(),
            network: Network::new(seed),
            attacker: None,
            events: Vec::new(),
            hub_config: config,
            seed,
            seeds_given: 0,
            steps_at_once: 0,
            steps: 0,
            buffer: Vec::new(),
        }
    }

    /// An edge that begins to hand-shake now; gives its place in `edges`.
    pub fn add_edge(&mut self, up: Line, down: Line, cipher: Cipher) -> usize {
        let place = self.edges.len();
        let mut secret_key = [0x45; 32];
        secret_key[..8].copy_from_slice(&(place as u64 + 1).to_be_bytes());
        self.add_edge_with_key(up, down, cipher, secret_key)
    }

    pub fn add_edge_with_key(
        &mut self,
        up: Line,
        down: Line,
        cipher: Cipher,
        secret_key: [u8; 32],
    ) -> usize {
        let place = self.edges.len();
        let config = EdgeConfig {
            hub_address: HUB_ADDRESS,
            hub_key: public_key(&self.hub_config.secret_key),
            secret_key,
            cipher,
        };
        let seed = self.next_seed();
        self.edges.push(Edge {
            endpoint: EdgeEndpoint::new(config, self.now, seed),
            address: SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), 40_000 + place as u16)),
            up,
            down,
            up_state: LineState::default(),
            down_state: LineState::default(),
            rival: None,
            secret_key,
        });
        place
    }

    /// From now on somebody is on all lines who knows the hub's public key.
    pub fn attack(&mut self, chances: Attacker) {
        let hub_key = public_key(&self.hub_config.secret_key);
        self.attacker = Some(Work::new(chances, hub_key, self.seed + 1));
    }

    /// How often the attacker did something.
    pub fn wrongs(&self) -> u64 {
        self.attacker.as_ref().map_or(0, |work| work.wrongs)
    }

    /// The hub's program starts anew with the same key: it knows no session.
    pub fn restart_hub(&mut self) {
        let seed = self.next_seed();
        self.hub = HubEndpoint::new(self.hub_config.clone(), self.now, seed);
    }

    /// The edge's program starts anew with the same key.
    pub fn restart_edge(&mut self, place: usize) {
        let seed = self.next_seed();
        let now = self.now;
        let hub_key = public_key(&self.hub_config.secret_key);
        let edge = &mut self.edges[place];
        let config = EdgeConfig {
            hub_address: HUB_ADDRESS,
            hub_key,
            secret_key: edge.secret_key,
            cipher: Cipher::AesGcm,
        };
        edge.endpoint = EdgeEndpoint::new(config, now, seed);
    }

    /// From now on somebody else sends as much as goes, on the edge's way up.
    pub fn add_rival(&mut self, place: usize, kind: RivalKind) {
        let edge = &mut self.edges[place];
        edge.rival = Some(Rival::new(self.now, edge.address, kind));
    }

    /// Nothing passes in either direction for so long.
    pub fn cut(&mut self, place: usize, duration: Duration) {
        self.cut_up(place, duration);
        self.cut_down(place, duration);
    }

    pub fn cut_up(&mut self, place: usize, duration: Duration) {
        self.edges[place].up_state.cut_until = Some(self.now + duration);
    }

    pub fn cut_down(&mut self, place: usize, duration: Duration) {
        self.edges[place].down_state.cut_until = Some(self.now + duration);
    }

    /// The edge sends from another address from now on; what is on its way to the old one is lost.
    pub fn move_edge(&mut self, place: usize, address: SocketAddr) {
        self.edges[place].address = address;
    }

    /// Drains what endpoints have to send, jumps to the next event and lets it happen. `false`: nothing will
    /// ever happen again.
    pub fn step(&mut self) -> bool {
        self.step_until(None)
    }

    /// As [`World::step`], but time goes no further than `until`, when a test has something to do.
    pub fn step_until(&mut self, until: Option<Instant>) -> bool {
        let Some(next) = self.next_event().into_iter().chain(until).min() else {
            return false;
        };
        let hub = self.hub.poll_timeout();
        self.steps += 1;
        if next > self.now {
            self.now = next;
            self.steps_at_once = 0;
        } else {
            self.steps_at_once += 1;
            assert!(
                self.steps_at_once < MAX_STEPS_AT_ONCE,
                "live-lock at {:?}",
                self.now - self.start
            );
        }
        while let Some(delivery) = self.network.pop(self.now) {
            self.deliver(&delivery);
        }
        if hub.is_some_and(|at| at <= self.now) {
            self.hub.handle_timeout(self.now);
        }
        for edge in &mut self.edges {
            if let Some(rival) = &mut edge.rival {
                rival.handle_time(self.now);
            }
            if edge
                .endpoint
                .poll_timeout()
                .is_some_and(|at| at <= self.now)
            {
                edge.endpoint.handle_timeout(self.now);
            }
        }
        self.drain();
        true
    }

    /// When the next step is; `None`: nothing will ever happen again.
    pub fn next_event(&mut self) -> Option<Instant> {
        self.drain();
        let hub = self.hub.poll_timeout();
        let edges = self
            .edges
            .iter_mut()
            .filter_map(|edge| edge.endpoint.poll_timeout());
        let first = edges.chain(hub).chain(self.network.next()).min();
        let rivals = self.edges.iter().filter_map(|edge| edge.rival.as_ref());
        rivals.map(Rival::next).chain(first).min()
    }

    /// Steps until `done` says so, at most for `limit`; whether it did. `react` gets each event and may give
    /// commands.
    pub fn run(
        &mut self,
        limit: Duration,
        mut react: impl FnMut(&mut World, Who, Event),
        mut done: impl FnMut(&mut World) -> bool,
    ) -> bool {
        let until = self.now + limit;
        loop {
            self.drain();
            for (who, event) in self.take_events() {
                react(self, who, event);
            }
            if done(self) {
                return true;
            }
            if self.now >= until || !self.step() {
                return false;
            }
        }
    }

    /// What happened since the last call, in order for each endpoint.
    pub fn take_events(&mut self) -> Vec<(Who, Event)> {
        std::mem::take(&mut self.events)
    }

    /// A datagram that nobody of ours has sent.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.deliver(&Delivery { from, to, bytes });
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn deliver(&mut self, delivery: &Delivery) {
        if delivery.to == RIVAL_ADDRESS {
            let mut edges = self.edges.iter_mut();
            if let Some(edge) = edges.find(|edge| edge.address == delivery.from)
                && let Some(rival) = &mut edge.rival
            {
                rival.on_arrival(self.now + edge.down.delay, &delivery.bytes);
            }
        } else if delivery.to == HUB_ADDRESS {
            self.hub
                .handle_datagram(self.now, delivery.from, &delivery.bytes);
        } else if let Some(edge) = self
            .edges
            .iter_mut()
            .find(|edge| edge.address == delivery.to)
        {
            edge.endpoint
                .handle_datagram(self.now, delivery.from, &delivery.bytes);
        }
    }

    fn drain(&mut self) {
        const MAX_BATCH: usize = 16;
        let Self {
            hub,
            edges,
            network,
            attacker,
            buffer,
            now,
            events,
            ..
        } = self;
        let mut meet = |delivery| match attacker {
            Some(attacker) => attacker.meet(delivery),
            None => vec![delivery],
        };
        for edge in edges.iter_mut() {
            while let Some(delivery) = edge.rival.as_mut().and_then(|rival| rival.poll(*now)) {
                network.send(*now, &edge.up, &mut edge.up_state, delivery);
            }
            buffer.clear();
            while let Some(transmit) = edge.endpoint.poll_transmit(*now, MAX_BATCH, buffer) {
                for bytes in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    let delivery = Delivery {
                        from: edge.address,
                        to: transmit.to,
                        bytes: bytes.to_vec(),
                    };
                    for delivery in meet(delivery) {
                        network.send(*now, &edge.up, &mut edge.up_state, delivery);
                    }
                }
                buffer.clear();
            }
        }
        while let Some(transmit) = hub.poll_transmit(*now, MAX_BATCH, buffer) {
            for bytes in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                let delivery = Delivery {
                    from: HUB_ADDRESS,
                    to: transmit.to,
                    bytes: bytes.to_vec(),
                };
                if let Some(edge) = edges.iter_mut().find(|edge| edge.address == transmit.to) {
                    for delivery in meet(delivery) {
                        network.send(*now, &edge.down, &mut edge.down_state, delivery);
                    }
                } else {
                    network.lost += 1;
                }
            }
            buffer.clear();
        }
        for (place, edge) in edges.iter_mut().enumerate() {
            while let Some(event) = edge.endpoint.poll_event() {
                events.push((Who::Edge(place), event));
            }
        }
        while let Some(event) = hub.poll_event() {
            events.push((Who::Hub, event));
        }
    }

    fn next_seed(&mut self) -> [u8; 32] {
        self.seeds_given += 1;
        let mut seed = [2; 32];
        seed[..8].copy_from_slice(&self.seed.to_be_bytes());
        seed[8..16].copy_from_slice(&self.seeds_given.to_be_bytes());
        seed
    }
}
