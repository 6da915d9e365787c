//! An edge and a hub joined by channels that deliver in order, until they are renewed and forget.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::StreamName;

use super::stores::{EdgeStore, HubStore};
use crate::{
    Channel, MAX_MESSAGE_BYTES,
    messages::{ToEdge, ToHub},
    replicate::{
        receiver::Receiver,
        sender::{Command, MAX_READ_AHEAD, Sender},
    },
};

/// Messages that a channel takes before it is full.
const CHANNEL: usize = 6;

/// SplitMix64: a seed tells a whole story.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) random: Random,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) edge: EdgeStore,
    pub(super) hub: HubStore,
    /// What the edge's store thread has before it.
    commands: VecDeque<Command>,
    up: [VecDeque<Bytes>; 3],
    down: VecDeque<Bytes>,
    pub(super) media_messages: u64,
    /// Flips a bit of media once in so many chunks; nought never.
    pub(super) corrupt_one_in: u64,
    pub(super) messages: Vec<ToHub>,
}

impl World {
    #[allow(
        clippy::disallowed_methods,
        reason = "a beginning to count from; nothing is measured"
    )]
    pub(super) fn new(seed: u64) -> Self {
        let mut sender = Sender::new();
        sender.connected();
        Self {
            now: Instant::now(),
            random: Random::new(seed),
            sender,
            receiver: Receiver::new(),
            edge: EdgeStore::default(),
            hub: HubStore::default(),
            commands: VecDeque::new(),
            up: Default::default(),
            down: VecDeque::new(),
            media_messages: 0,
            corrupt_one_in: 0,
            messages: Vec::new(),
        }
    }

    pub(super) fn stream(&mut self, name: &str) -> StreamName {
        let name: StreamName = name.parse().unwrap();
        self.edge.streams.entry(name.clone()).or_default();
        self.sender
            .set_streams(self.edge.streams.keys().cloned().collect());
        name
    }

    /// One thing happens: the edge's store works, something is sent, or something arrives. False where
    /// nothing could.
    pub(super) fn step(&mut self) -> bool {
        self.now += Duration::from_millis(1);
        if self.sender.poll_timeout().is_some_and(|at| at <= self.now) {
            self.sender.handle_timeout(self.now);
        }
        let first = self.random.below(6) as usize;
        (0..6).any(|turn| match (first + turn) % 6 {
            0 => self.work(),
            1 => self.send(Channel::Control),
            2 => self.send(Channel::Live),
            3 => self.send(Channel::Bulk),
            4 => self.arrive_at_hub(),
            _ => self.arrive_at_edge(),
        })
    }

    /// Runs until nothing happens any more, over the waits.
    pub(super) fn settle(&mut self) {
        for _ in 0..2_000_000 {
            if self.step() {
                continue;
            }
            match self.sender.poll_timeout() {
                Some(at) if self.sender.refused().next().is_none() => self.now = self.now.max(at),
                _ => return,
            }
        }
        panic!("it does not come to rest");
    }

    /// The channels are renewed: what was not delivered is gone.
    pub(super) fn reset(&mut self) {
        self.up.iter_mut().for_each(VecDeque::clear);
        self.down.clear();
        self.sender.connected();
        self.receiver.reset();
    }

    /// The edge's program is killed; the store thread dies with it.
    pub(super) fn restart_edge(&mut self) {
        self.commands.clear();
        self.sender = Sender::new();
        self.sender
            .set_streams(self.edge.streams.keys().cloned().collect());
        self.reset();
        self.receiver = Receiver::new();
    }

    pub(super) fn restart_hub(&mut self, lose: usize) {
        self.hub.restart(lose);
        self.sender.disconnected();
        self.receiver = Receiver::new();
        self.reset();
    }

    fn work(&mut self) -> bool {
        while let Some(command) = self.sender.poll_command(self.now) {
            self.commands.push_back(command);
        }
        let ahead: u64 = self
            .commands
            .iter()
            .map(|command| match command {
                Command::Read { range, .. } => range.end - range.start,
                _ => 0,
            })
            .sum();
        assert!(ahead <= 2 * MAX_READ_AHEAD, "{ahead} bytes asked for");
        let Some(command) = self.commands.pop_front() else {
            return false;
        };
        self.edge.execute(self.now, command, &mut self.sender);
        true
    }

    fn send(&mut self, channel: Channel) -> bool {
        let queue = &mut self.up[channel.index()];
        if queue.len() >= CHANNEL {
            return false;
        }
        let Some(mut message) = self.sender.poll_message(self.now, channel) else {
            return false;
        };
        self.messages.push(message.clone());
        if let ToHub::Chunk(chunk) = &mut message {
            self.media_messages += 1;
            if self.corrupt_one_in > 0 && self.random.one_in(self.corrupt_one_in) {
                let mut data = chunk.data.to_vec();
                data[0] ^= 1;
                chunk.data = data.into();
            }
        }
        let bytes = message.encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        queue.push_back(bytes);
        true
    }

    fn arrive_at_hub(&mut self) -> bool {
        let first = self.random.below(3) as usize;
        let arrived = (0..3).find_map(|turn| {
            let channel = Channel::ALL[(first + turn) % 3];
            Some((channel, self.up[channel.index()].pop_front()?))
        });
        let Some((channel, bytes)) = arrived else {
            return false;
        };
        let message = ToHub::decode(bytes).unwrap().unwrap();
        let job = self.receiver.handle_message(channel, message).unwrap();
        if let Some(outcome) = job.and_then(|job| self.hub.execute(job)) {
            for answer in self.receiver.handle_outcome(outcome) {
                self.down.push_back(answer.encode());
            }
        }
        true
    }

    fn arrive_at_edge(&mut self) -> bool {
        let Some(bytes) = self.down.pop_front() else {
            return false;
        };
        let message = ToEdge::decode(bytes).unwrap().unwrap();
        self.sender.handle_message(self.now, message).unwrap();
        true
    }
}
