//! A rival that goes by a model, deaf to losses: what TCP with BBR (version 1, as Linux has it) does to a line.
//!
//! After Cardwell et al., "BBR: Congestion-Based Congestion Control" (ACM Queue 2016), as far as its share beside
//! others goes: the bandwidth's filter, the gains, the window of two bandwidth-delay products, the looks at the
//! bare round trip. No packet is sent again: nobody reads this flow.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What it leaves with for the network.
pub(super) const PACKET_BYTES: usize = 1472;

const STARTUP_GAIN: f64 = 2.885;
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
const BANDWIDTH_ROUNDS: usize = 10;
const RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT: Duration = Duration::from_millis(200);
const MIN_WINDOW: f64 = 4.0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Startup { best: f64, flat: u8 },
    Drain,
    Cycle { at: usize, since: Instant },
    ProbeRtt { until: Instant },
}

pub(super) struct Bbr {
    mode: Mode,
    /// Packets per second: the best of each of the latest rounds.
    rounds: VecDeque<f64>,
    round_ends: u64,
    min_rtt: Duration,
    min_rtt_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// Packet number, when it left, what was delivered by then, and when.
    under_way: VecDeque<(u64, Instant, u64, Instant)>,
    next_at: Instant,
}

impl Bbr {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            mode: Mode::Startup { best: 0.0, flat: 0 },
            rounds: VecDeque::from([100.0]),
            round_ends: 0,
            min_rtt: Duration::from_secs(1),
            min_rtt_at: now,
            delivered: 0,
            delivered_at: now,
            under_way: VecDeque::new(),
            next_at: now,
        }
    }

    /// When packet `number` may leave, if the window lets it.
    pub(super) fn ready(&self) -> Option<Instant> {
        ((self.under_way.len() as f64) < self.window()).then_some(self.next_at)
    }

    pub(super) fn on_sent(&mut self, now: Instant, number: u64) {
        self.under_way
            .push_back((number, now, self.delivered, self.delivered_at));
        self.next_at = self.next_at.max(now) + Duration::from_secs_f64(1.0 / self.pace());
    }

    pub(super) fn on_ack(&mut self, now: Instant, number: u64) {
        while let Some((first, left, delivered, delivered_at)) = self.under_way.front().copied()
            && first <= number
        {
            self.under_way.pop_front();
            if first < number {
                continue; // lost, which means nothing
            }
            self.delivered += 1;
            self.delivered_at = now;
            let rtt = now - left;
            if rtt <= self.min_rtt {
                (self.min_rtt, self.min_rtt_at) = (rtt, now);
            }
            let since = (now - delivered_at).max(Duration::from_millis(1));
            self.sample(
                number,
                (self.delivered - delivered) as f64 / since.as_secs_f64(),
            );
        }
        self.go_on(now);
    }

    pub(super) fn on_timeout(&mut self) {
        self.under_way.clear();
    }

    fn sample(&mut self, number: u64, rate: f64) {
        if number >= self.round_ends {
            self.round_ends = self.under_way.back().map_or(number, |last| last.0) + 1;
            if let Mode::Startup { best, flat } = &mut self.mode {
                let bandwidth = self.rounds.iter().copied().fold(0.0, f64::max);
                (*best, *flat) = if bandwidth > *best * 1.25 {
                    (bandwidth, 0)
                } else {
                    (*best, *flat + 1)
                };
            }
            self.rounds.push_back(0.0);
            if self.rounds.len() > BANDWIDTH_ROUNDS {
                self.rounds.pop_front();
            }
        }
        if let Some(best) = self.rounds.back_mut() {
            *best = best.max(rate);
        }
    }

    fn go_on(&mut self, now: Instant) {
        let under_way = self.under_way.len() as f64;
        match self.mode {
            Mode::Startup { flat, .. } if flat >= 3 => self.mode = Mode::Drain,
            Mode::Drain if under_way <= self.bdp() => {
                self.mode = Mode::Cycle { at: 2, since: now };
            }
            Mode::Cycle { at, since } if now >= since + self.min_rtt => {
                let at = (at + 1) % CYCLE.len();
                self.mode = Mode::Cycle { at, since: now };
            }
            Mode::ProbeRtt { until } if now >= until => {
                self.min_rtt_at = now;
                self.mode = Mode::Cycle { at: 2, since: now };
            }
            _ => {}
        }
        if now >= self.min_rtt_at + RTT_WINDOW && !matches!(self.mode, Mode::ProbeRtt { .. }) {
            self.min_rtt = Duration::from_secs(1);
            self.mode = Mode::ProbeRtt {
                until: now + PROBE_RTT,
            };
        }
    }

    fn bandwidth(&self) -> f64 {
        self.rounds.iter().copied().fold(1.0, f64::max)
    }

    fn bdp(&self) -> f64 {
        self.bandwidth() * self.min_rtt.as_secs_f64()
    }

    fn pace(&self) -> f64 {
        let gain = match self.mode {
            Mode::Startup { .. } => STARTUP_GAIN,
            Mode::Drain => 1.0 / STARTUP_GAIN,
            Mode::Cycle { at, .. } => CYCLE.get(at).copied().unwrap_or(1.0),
            Mode::ProbeRtt { .. } => 1.0,
        };
        self.bandwidth() * gain
    }

    fn window(&self) -> f64 {
        let gain = match self.mode {
            Mode::Startup { .. } | Mode::Drain => STARTUP_GAIN,
            Mode::Cycle { .. } => 2.0,
            Mode::ProbeRtt { .. } => return MIN_WINDOW,
        };
        (self.bdp() * gain).max(10.0)
    }
}
