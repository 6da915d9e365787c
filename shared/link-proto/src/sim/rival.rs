//! Somebody else on the same line: one bulk flow that fills its queue, as TCP with CUBIC (RFC 9438) does.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::network::Delivery;

/// Where it sends to.
pub(super) const RIVAL_ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 80);

const PACKET_BYTES: usize = 1472;
const BETA: f64 = 0.7;
const C: f64 = 0.4;
const TIMEOUT: Duration = Duration::from_secs(1);

pub struct Rival {
    from: SocketAddr,
    /// Packets.
    window: f64,
    slow_start: bool,
    most: f64,
    since: Instant,
    /// Losses before this packet were answered.
    recovered: u64,
    next: u64,
    under_way: VecDeque<u64>,
    acks: VecDeque<(Instant, u64)>,
    heard: Instant,
    /// Bytes that arrived.
    pub bytes: u64,
}

impl Rival {
    pub(super) fn new(now: Instant, from: SocketAddr) -> Self {
        Self {
            from,
            window: 10.0,
            slow_start: true,
            most: 0.0,
            since: now,
            recovered: 0,
            next: 0,
            under_way: VecDeque::new(),
            acks: VecDeque::new(),
            heard: now,
            bytes: 0,
        }
    }

    pub(super) fn poll(&mut self) -> Option<Delivery> {
        if self.under_way.len() as f64 >= self.window {
            return None;
        }
        let mut bytes = vec![0; PACKET_BYTES];
        bytes[..8].copy_from_slice(&self.next.to_be_bytes());
        self.under_way.push_back(self.next);
        self.next += 1;
        Some(Delivery {
            from: self.from,
            to: RIVAL_ADDRESS,
            bytes,
        })
    }

    pub(super) fn on_arrival(&mut self, answered: Instant, packet: &[u8]) {
        let number = u64::from_be_bytes(packet[..8].try_into().unwrap_or_default());
        self.bytes += packet.len() as u64;
        self.acks.push_back((answered, number));
    }

    pub(super) fn next(&self) -> Instant {
        let timeout = self.heard + TIMEOUT;
        self.acks
            .front()
            .map_or(timeout, |(at, _)| (*at).min(timeout))
    }

    pub(super) fn handle_time(&mut self, now: Instant) {
        while let Some((at, number)) = self.acks.front().copied()
            && at <= now
        {
            self.acks.pop_front();
            self.on_ack(now, number);
        }
        if now >= self.heard + TIMEOUT {
            self.heard = now;
            self.under_way.clear();
            self.give_way(now);
            self.window = 2.0;
        }
    }

    fn on_ack(&mut self, now: Instant, number: u64) {
        self.heard = now;
        let mut lost = false;
        while let Some(first) = self.under_way.front()
            && *first <= number
        {
            lost |= *first < number && *first >= self.recovered;
            self.under_way.pop_front();
        }
        if lost {
            self.give_way(now);
        } else if self.slow_start {
            self.window += 1.0;
        } else {
            let elapsed = (now - self.since).as_secs_f64();
            let turn = (self.most * (1.0 - BETA) / C).cbrt();
            let target = C * (elapsed - turn).powi(3) + self.most;
            self.window += ((target - self.window) / self.window).clamp(0.01 / self.window, 0.5);
        }
    }

    fn give_way(&mut self, now: Instant) {
        self.most = self.window;
        self.window = (self.window * BETA).max(2.0);
        self.slow_start = false;
        self.since = now;
        self.recovered = self.next;
    }
}
