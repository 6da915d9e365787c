//! The lines: what happens to a datagram between two addresses.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// One direction of a line.
#[derive(Debug, Clone)]
pub struct Line {
    pub delay: Duration,
    /// Added to the delay, evenly from nought to this: datagrams overtake each other.
    pub jitter: Duration,
    /// Share of datagrams lost at random, 0 to 1.
    pub loss: f64,
    pub bursts: Option<Bursts>,
    /// Share of datagrams that come twice.
    pub duplicate: f64,
    /// Bits per second; `None`: as fast as light.
    pub rate_bps: Option<u64>,
    /// What waits before a line with a rate; more is dropped.
    pub queue_bytes: usize,
    /// Larger datagrams (bytes of UDP payload) are dropped.
    pub mtu: usize,
}

/// Loss in bursts: a line that is good or bad, and loses all while it is bad.
#[derive(Debug, Clone, Copy)]
pub struct Bursts {
    /// Chance that a datagram finds the line turned bad.
    pub begin: f64,
    /// Chance that a datagram finds it good again: the mean burst is one over this.
    pub end: f64,
}

impl Default for Line {
    /// Clean, 10 ms, without a limit of rate.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            duplicate: 0.0,
            rate_bps: None,
            queue_bytes: 256 * 1024,
            mtu: 1472,
        }
    }
}

/// Bursts are counted in datagrams; on a line that was idle for so long, whatever was is over.
const BURSTS_REMEMBERED: Duration = Duration::from_secs(1);

/// A datagram under way.
pub(super) struct Delivery {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// All lines and what is under way on them.
pub struct Network {
    random: u64,
    under_way: BTreeMap<(Instant, u64), Delivery>,
    sent: u64,
    /// Datagrams that were lost, cut off or dropped from a queue.
    pub lost: u64,
    pub delivered: u64,
    pub bytes: u64,
}

/// State of one direction of a line.
#[derive(Default)]
pub(super) struct LineState {
    bad: bool,
    /// When the last datagram was sent.
    last: Option<Instant>,
    busy_until: Option<Instant>,
    pub(super) cut_until: Option<Instant>,
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    /// Of these, what was lost, cut off or too large; what a full queue dropped is counted apart.
    pub(super) lost_datagrams: u64,
    pub(super) lost_bytes: u64,
    pub(super) overflowed_bytes: u64,
}

impl LineState {
    pub(super) fn queueing_delay(&self, now: Instant) -> Duration {
        self.busy_until
            .map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now))
    }
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            under_way: BTreeMap::new(),
            sent: 0,
            lost: 0,
            delivered: 0,
            bytes: 0,
        }
    }

    /// A number from 0 to 1 (xorshift: quick, and the same on every machine).
    pub fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn send(
        &mut self,
        now: Instant,
        line: &Line,
        state: &mut LineState,
        delivery: Delivery,
    ) {
        self.bytes += delivery.bytes.len() as u64;
        state.bytes += delivery.bytes.len() as u64;
        state.datagrams += 1;
        let cut = state.cut_until.is_some_and(|until| now < until);
        if let Some(bursts) = line.bursts {
            if state
                .last
                .is_some_and(|last| now > last + BURSTS_REMEMBERED)
            {
                state.bad = self.chance() < bursts.begin / (bursts.begin + bursts.end);
            }
            let turn = if state.bad { bursts.end } else { bursts.begin };
            if self.chance() < turn {
                state.bad = !state.bad;
            }
        } else {
            state.bad = false;
        }
        state.last = Some(now);
        let lost = self.chance() < line.loss;
        if cut || lost || state.bad || delivery.bytes.len() > line.mtu {
            self.lost += 1;
            state.lost_datagrams += 1;
            state.lost_bytes += delivery.bytes.len() as u64;
            return;
        }
        let mut leaves = now;
        if let Some(rate_bps) = line.rate_bps {
            let begins = state.busy_until.map_or(now, |busy| busy.max(now));
            let bits = |bytes: usize| bytes as f64 * 8.0 / rate_bps as f64;
            if begins.saturating_duration_since(now).as_secs_f64() > bits(line.queue_bytes) {
                self.lost += 1;
                state.overflowed_bytes += delivery.bytes.len() as u64;
                return;
            }
            leaves = begins + Duration::from_secs_f64(bits(delivery.bytes.len()));
            state.busy_until = Some(leaves);
        }
        if self.chance() < line.duplicate {
            let again = Delivery {
                bytes: delivery.bytes.clone(),
                ..delivery
            };
            self.put(leaves, line, again);
        }
        self.put(leaves, line, delivery);
    }

    fn put(&mut self, leaves: Instant, line: &Line, delivery: Delivery) {
        let jitter = line.jitter.mul_f64(self.chance());
        self.sent += 1;
        self.under_way
            .insert((leaves + line.delay + jitter, self.sent), delivery);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn pop(&mut self, now: Instant) -> Option<Delivery> {
        let first = self.under_way.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        self.delivered += 1;
        Some(first.remove())
    }
}
