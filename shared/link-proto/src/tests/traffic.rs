//! An application for tests: numbered messages in both directions, checked to come exactly once, in order
//! and whole; after a renewal it goes on from what the other end has, as replication does.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    Channel, Endpoint, Event, MAX_MESSAGE_BYTES, SendError, SessionId,
    sim::{Who, World},
};

/// Messages of one channel in one direction between an edge and the hub.
pub(super) struct Flow {
    pub(super) up: bool,
    pub(super) channel: Channel,
    pub(super) total: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) largest: usize,
}

impl Flow {
    pub(super) fn up(channel: Channel, total: u64) -> Self {
        Self {
            up: true,
            channel,
            total,
            sent: 0,
            received: 0,
            largest: MAX_MESSAGE_BYTES,
        }
    }

    pub(super) fn down(channel: Channel, total: u64) -> Self {
        Self {
            up: false,
            ..Self::up(channel, total)
        }
    }
}

pub(super) struct Traffic {
    pub(super) flows: Vec<Flow>,
    pub(super) edge: usize,
    /// The hub's sessions with other edges: admitted, and how they ended.
    pub(super) others: Vec<SessionId>,
    pub(super) others_closed: Vec<crate::CloseReason>,
    edge_session: Option<SessionId>,
    hub_session: Option<SessionId>,
    /// Both ends are in the same generation of the same session, and senders know what was received.
    agreed: Option<(SessionId, SessionId, u32)>,
    pub(super) resets: u32,
    pub(super) connects: u32,
    pub(super) closes: Vec<(Who, crate::CloseReason)>,
    pub(super) moves: u32,
    pub(super) most_outstanding: usize,
}

impl Traffic {
    pub(super) fn new(flows: Vec<Flow>) -> Self {
        Self {
            flows,
            edge: 0,
            others: Vec::new(),
            others_closed: Vec::new(),
            edge_session: None,
            hub_session: None,
            agreed: None,
            resets: 0,
            connects: 0,
            closes: Vec::new(),
            moves: 0,
            most_outstanding: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.flows.iter().all(|flow| flow.received == flow.total)
    }

    pub(super) fn run(&mut self, world: &mut World, limit: Duration) -> bool {
        let until = world.now + limit;
        while world.now < until {
            for (who, event) in world.take_events() {
                self.on_event(world, who, event);
            }
            if self.is_done() {
                return true;
            }
            self.fill(world);
            if !world.step() {
                return false;
            }
        }
        false
    }

    pub(super) fn sessions(&self) -> (SessionId, SessionId) {
        (self.edge_session.unwrap(), self.hub_session.unwrap())
    }

    /// Either end was restarted: both get new sessions. What was received is on their disks.
    pub(super) fn on_restart(&mut self) {
        self.edge_session = None;
        self.hub_session = None;
        self.agreed = None;
    }

    pub(super) fn on_event(&mut self, world: &mut World, who: Who, event: Event) {
        if self.is_of_another(world, who, &event) {
            return;
        }
        match event {
            Event::Connected { session, .. } => {
                match who {
                    Who::Hub => {
                        self.hub_session = Some(session);
                        world.hub.admit(session);
                    }
                    Who::Edge(_) => self.edge_session = Some(session),
                }
                self.connects += 1;
            }
            Event::Closed { session, reason } => {
                let mine = match who {
                    Who::Hub => &mut self.hub_session,
                    Who::Edge(_) => &mut self.edge_session,
                };
                if *mine == Some(session) {
                    *mine = None;
                }
                self.closes.push((who, reason));
            }
            Event::ChannelsReset { .. } => self.resets += 1,
            Event::PeerMoved { .. } => self.moves += 1,
            Event::Message {
                session,
                channel,
                message,
            } => {
                let to_hub = who == Who::Hub;
                let flow = self
                    .flows
                    .iter_mut()
                    .find(|flow| flow.up == to_hub && flow.channel == channel)
                    .unwrap();
                assert_eq!(
                    number(&message),
                    flow.received,
                    "{who:?} {channel:?}: a message twice or out of order"
                );
                assert_eq!(message, content(flow.received, flow.largest), "not whole");
                flow.received += 1;
                endpoint(world, who).consumed(session, channel, message.len());
            }
            Event::Writable { .. } | Event::Silent { .. } | Event::Unanswered { .. } => {}
        }
        self.agree(world);
    }

    fn is_of_another(&mut self, world: &mut World, who: Who, event: &Event) -> bool {
        if let Who::Edge(place) = who {
            return place != self.edge;
        }
        match event {
            Event::Connected { session, peer, .. } => {
                let mut edges = world.edges.iter().enumerate();
                let other = edges.any(|(at, edge)| at != self.edge && edge.address == *peer);
                if other {
                    self.others.push(*session);
                    world.hub.admit(*session);
                }
                other
            }
            Event::Closed { session, reason } if self.others.contains(session) => {
                self.others_closed.push(*reason);
                true
            }
            Event::Message { session, .. }
            | Event::Silent { session }
            | Event::PeerMoved { session, .. }
            | Event::Writable { session, .. }
            | Event::ChannelsReset { session } => self.others.contains(session),
            _ => false,
        }
    }

    /// What replication does with offsets: once both ends are in a new generation, senders go on from what
    /// was received.
    fn agree(&mut self, world: &World) {
        let now = (|| {
            let (edge, hub) = (self.edge_session?, self.hub_session?);
            let endpoint = &world.edges[self.edge].endpoint;
            if endpoint.ticket(edge)? != world.hub.ticket(hub)? {
                return None; // one end has a session that the other doesn't know yet, or no more
            }
            let at_edge = endpoint.stats(edge)?.generation;
            let at_hub = world.hub.stats(hub)?.generation;
            (at_edge == at_hub).then_some((edge, hub, at_edge))
        })();
        if now.is_some() && now != self.agreed {
            for flow in &mut self.flows {
                flow.sent = flow.received;
            }
        }
        self.agreed = now;
    }

    fn fill(&mut self, world: &mut World) {
        self.agree(world);
        let Some((edge, hub, _)) = self.agreed else {
            return;
        };
        for flow in &mut self.flows {
            let (who, session) = if flow.up {
                (Who::Edge(self.edge), edge)
            } else {
                (Who::Hub, hub)
            };
            let now = world.now;
            let endpoint = endpoint(world, who);
            while flow.sent < flow.total && endpoint.send_budget(session, flow.channel) > 0 {
                let message = content(flow.sent, flow.largest);
                match endpoint.send(now, session, flow.channel, message) {
                    Ok(()) => flow.sent += 1,
                    Err(SendError::Full | SendError::Closed) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            if let Some(stats) = endpoint.stats(session) {
                self.most_outstanding = self.most_outstanding.max(stats.outstanding_bytes);
            }
        }
    }
}

pub(super) fn endpoint(world: &mut World, who: Who) -> &mut dyn Endpoint {
    match who {
        Who::Hub => &mut world.hub,
        Who::Edge(place) => &mut world.edges[place].endpoint,
    }
}

/// A message that can be told from all others: its number, then bytes that follow from it.
fn content(number: u64, largest: usize) -> Bytes {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let size = 8 + (mixed >> 32) as usize % (largest - 7);
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.resize(size, (mixed >> 17) as u8);
    Bytes::from(bytes)
}

fn number(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[..8].try_into().unwrap())
}
