//! Somebody else on the same line: one bulk flow, as TCP with CUBIC (RFC 9438), which fills the line's queue, or
//! with BBR ([`Bbr`]).

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    bbr::{Bbr, PACKET_BYTES},
    network::Delivery,
};

/// Where it sends to.
pub(super) const RIVAL_ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 80);

const BETA: f64 = 0.7;
const C: f64 = 0.4;
const TIMEOUT: Duration = Duration::from_secs(1);

/// What steers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RivalKind {
    Cubic,
    Bbr,
}

pub struct Rival {
    from: SocketAddr,
    control: Control,
    next: u64,
    acks: VecDeque<(Instant, u64)>,
    heard: Instant,
    now: Instant,
    /// Bytes that arrived.
    pub bytes: u64,
}

enum Control {
    Cubic(Cubic),
    Bbr(Bbr),
}

impl Rival {
    pub(super) fn new(now: Instant, from: SocketAddr, kind: RivalKind) -> Self {
        Self {
            from,
            control: match kind {
                RivalKind::Cubic => Control::Cubic(Cubic::new(now)),
                RivalKind::Bbr => Control::Bbr(Bbr::new(now)),
            },
            next: 0,
            acks: VecDeque::new(),
            heard: now,
            now,
            bytes: 0,
        }
    }

    pub(super) fn poll(&mut self, now: Instant) -> Option<Delivery> {
        match &mut self.control {
            Control::Cubic(cubic) if cubic.may_send() => cubic.under_way.push_back(self.next),
            Control::Bbr(bbr) if bbr.ready().is_some_and(|at| at <= now) => {
                bbr.on_sent(now, self.next);
            }
            Control::Cubic(_) | Control::Bbr(_) => return None,
        }
        let mut bytes = vec![0; PACKET_BYTES];
        bytes[..8].copy_from_slice(&self.next.to_be_bytes());
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
        let paced = match &self.control {
            Control::Bbr(bbr) => bbr.ready().map(|at| at.max(self.now)),
            Control::Cubic(_) => None,
        };
        let ack = self.acks.front().map(|(at, _)| *at);
        paced.into_iter().chain(ack).fold(timeout, Instant::min)
    }

    pub(super) fn handle_time(&mut self, now: Instant) {
        self.now = now;
        while let Some((at, number)) = self.acks.front().copied()
            && at <= now
        {
            self.acks.pop_front();
            self.heard = now;
            match &mut self.control {
                Control::Cubic(cubic) => cubic.on_ack(now, number, self.next),
                Control::Bbr(bbr) => bbr.on_ack(now, number),
            }
        }
        if now >= self.heard + TIMEOUT {
            self.heard = now;
            match &mut self.control {
                Control::Cubic(cubic) => cubic.on_timeout(now, self.next),
                Control::Bbr(bbr) => bbr.on_timeout(),
            }
        }
    }
}

struct Cubic {
    /// Packets.
    window: f64,
    slow_start: bool,
    most: f64,
    since: Instant,
    /// Losses before this packet were answered.
    recovered: u64,
    under_way: VecDeque<u64>,
}

impl Cubic {
    fn new(now: Instant) -> Self {
        Self {
            window: 10.0,
            slow_start: true,
            most: 0.0,
            since: now,
            recovered: 0,
            under_way: VecDeque::new(),
        }
    }

    fn may_send(&self) -> bool {
        (self.under_way.len() as f64) < self.window
    }

    fn on_ack(&mut self, now: Instant, number: u64, next: u64) {
        let mut lost = false;
        while let Some(first) = self.under_way.front()
            && *first <= number
        {
            lost |= *first < number && *first >= self.recovered;
            self.under_way.pop_front();
        }
        if lost {
            self.give_way(now, next);
        } else if self.slow_start {
            self.window += 1.0;
        } else {
            let elapsed = (now - self.since).as_secs_f64();
            let turn = (self.most * (1.0 - BETA) / C).cbrt();
            let target = C * (elapsed - turn).powi(3) + self.most;
            self.window += ((target - self.window) / self.window).clamp(0.01 / self.window, 0.5);
        }
    }

    fn on_timeout(&mut self, now: Instant, next: u64) {
        self.under_way.clear();
        self.give_way(now, next);
        self.window = 2.0;
    }

    fn give_way(&mut self, now: Instant, next: u64) {
        self.most = self.window;
        self.window = (self.window * BETA).max(2.0);
        self.slow_start = false;
        self.since = now;
        self.recovered = next;
    }
}
