//! What time brings: probes, silence, old keys, the end; and when to look again.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{KEYS_OUTLIVE, Role, SILENCE, Session, State};
use crate::{
    api::{CloseReason, Event},
    lane::Lane,
    mtu::Verdict,
};

/// A peer that owes an answer is asked this often (several times within [`SILENCE`], since each may be lost).
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// A silent peer is asked this often: when the line is back, live video waits for the answer.
const SILENT_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Keep-alive with data outstanding, and without (the least that home routers keep a mapping for is 30 s).
const BUSY_KEEP_ALIVE: Duration = Duration::from_secs(1);
const IDLE_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// KCP counts packets in 32 bits and compares some of them without wrapping: its conversations are renewed
/// long before.
const GENERATION_AGE: Duration = Duration::from_secs(24 * 3600);
const GENERATION_PACKETS: u32 = 1 << 31;

impl Session {
    pub(crate) fn handle_timeout(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if self
            .old_keys
            .as_ref()
            .is_some_and(|(_, until)| now >= *until)
        {
            self.old_keys = None;
        }
        match self.state {
            State::Closing { until, .. } => {
                if now >= until {
                    self.state = State::Dead;
                }
                return;
            }
            State::Dead => return,
            State::Open | State::Silent => {}
        }
        if now >= self.last_received + KEYS_OUTLIVE {
            self.kill(CloseReason::TimedOut, events);
            return;
        }
        if self.state == State::Open && self.waiting_since.is_some_and(|at| now >= at + SILENCE) {
            self.state = State::Silent;
            events.push_back(Event::Silent { session: self.id });
        }
        if self.probe_at().is_some_and(|at| now >= at) {
            self.last_probe = now;
            self.ping = true;
        }
        for lane in &mut self.lanes {
            lane.decoder.forget(now);
        }
        if self.state == State::Open {
            self.look_for_losses(now);
            let (rtt, loss) = (self.rate.rtt(), self.calm_loss);
            if self.mtu.on_time(now, rtt, loss) == Verdict::Fallen {
                // What is under way was cut for the old size.
                self.renew_channels(now, self.generation.wrapping_add(1), events);
            }
        }
        if self.wants_new_generation(now) {
            self.renew_channels(now, self.generation.wrapping_add(1), events);
        }
    }

    /// Asked after all transmits were drained.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Dead => return None,
            State::Closing {
                left, next, until, ..
            } => return Some(if left > 0 { next.min(until) } else { until }),
            State::Open | State::Silent => {}
        }
        let mut earliest = self.last_received + KEYS_OUTLIVE;
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                earliest = earliest.min(at);
            }
        };
        consider(self.probe_at());
        consider(self.receiver.due());
        consider(self.credit_due);
        consider(self.old_keys.as_ref().map(|(_, until)| *until));
        if self.state == State::Open {
            consider(self.waiting_since.map(|at| at + SILENCE));
            consider(self.ack_due);
            consider(self.detect_at);
            consider(self.tail_probe_at());
            consider(self.mtu.due(self.rate.rtt()));
            let probe = self.mtu.next_probe();
            consider(probe.map(|(at, _)| at.max(self.pacer.ready_at())));
            let group_time = self.group_time();
            let mut waits_for_pacer = self.staged;
            for lane in &self.lanes {
                let copy_at = lane.conversation.flight.copy_at();
                consider(copy_at.map(|at| at.max(self.pacer.ready_at())));
                consider(lane.encoder.opened().map(|at| at + group_time));
                consider(lane.decoder.forget_at());
                waits_for_pacer |= lane.waiting() > 0 || lane.ready_packets() > 0;
            }
            if waits_for_pacer && (self.staged || self.data_waiting() || self.window_room() > 0) {
                consider(Some(self.pacer.ready_at()));
            }
        }
        Some(earliest)
    }

    /// When to ask the peer for a sign of life.
    fn probe_at(&self) -> Option<Instant> {
        if self.state == State::Silent {
            return Some(self.last_probe + SILENT_PROBE_INTERVAL);
        }
        if let Some(waiting) = self.waiting_since {
            return Some((waiting + PROBE_INTERVAL).max(self.last_probe + PROBE_INTERVAL));
        }
        if !self.lanes.iter().all(Lane::is_idle) {
            return Some(self.last_sent.max(self.last_probe) + BUSY_KEEP_ALIVE);
        }
        // The edge keeps the way through its router open; the hub need not.
        (self.role == Role::Edge).then(|| self.last_sent.max(self.last_probe) + IDLE_KEEP_ALIVE)
    }

    fn wants_new_generation(&self, now: Instant) -> bool {
        self.state == State::Open
            && self.role == Role::Edge
            && (now >= self.generation_began + GENERATION_AGE
                || self
                    .lanes
                    .iter()
                    .any(|lane| lane.conversation.next() >= GENERATION_PACKETS))
    }
}
