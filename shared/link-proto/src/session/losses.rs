//! When acknowledgements are due, and what is done about packets that are not acknowledged.

use std::time::{Duration, Instant};

use super::Session;
use crate::{api::Channel, lane::Lane, parity::GROUP_TIME};

/// Acknowledgements wait for each other so long: they tell the state, so few say as much as many.
const ACK_GAP: Duration = Duration::from_millis(2);

/// Before the round trip is known a tail is probed for after so long.
const UNKNOWN_RTT: Duration = Duration::from_millis(400);

/// Tail probes that nothing answers come at twice the distance, each time, up to so far apart; on a long line
/// they double once. No farther: a burst takes several of them, and after [`super::SILENCE`] they end.
const MAX_PROBE_WAIT: Duration = Duration::from_millis(250);
const MAX_PROBE_DOUBLINGS: u32 = 8;

/// A group is let grow to this many packets where the line is slow, within [`MAX_GROUP_TIME`].
const SLOW_GROUP_PACKETS: f64 = 8.0;
const MAX_GROUP_TIME: Duration = Duration::from_millis(100);

impl Session {
    pub(super) fn owe_ack(&mut self, now: Instant) {
        if self.ack_due.is_none() {
            let after_last = self.last_ack.map_or(now, |last| last + ACK_GAP);
            self.ack_due = Some(after_last.max(now));
        }
    }

    /// The peer has seen this datagram, and acknowledged what it has of those before.
    pub(super) fn on_seen(&mut self, now: Instant, counter: u64) {
        if counter >= self.next_counter || counter < self.seen {
            return; // nonsense, or overtaken
        }
        self.seen = counter;
        self.probes = 0;
        self.heard = Some(now);
        self.detect_losses(now);
    }

    /// A timer of those below may have run out.
    pub(super) fn look_for_losses(&mut self, now: Instant) {
        if self.detect_at.is_some_and(|at| now >= at) {
            self.detect_losses(now);
        }
        if self.tail_probe_at().is_some_and(|at| now >= at) {
            self.probes = (self.probes + 1).min(MAX_PROBE_DOUBLINGS);
            self.heard = Some(now);
            for lane in &mut self.lanes {
                let bytes = lane.conversation.flight.probe();
                self.beforehand.spend(bytes);
            }
            self.doubt_mtu(now);
        }
    }

    /// A probe goes out a quarter of a round trip after the last datagram should have been answered
    /// (RFC 8985, section 7.2).
    pub(super) fn tail_probe_at(&self) -> Option<Instant> {
        let (mut waiting, mut unsent) = (0, 0);
        for lane in &self.lanes {
            waiting += lane.waiting();
            unsent += lane.ready_packets();
        }
        if waiting > 0 || (unsent > 0 && self.window_room() > 0) {
            return None; // more will follow
        }
        let tails = self.lanes.iter();
        let last = tails
            .filter_map(|lane| lane.conversation.flight.tail_since())
            .max()?;
        let rtt = self.rate.rtt().unwrap_or(UNKNOWN_RTT);
        let late = self.lateness.beyond(last, rtt).unwrap_or(rtt / 4);
        let wait = rtt + late + 2 * ACK_GAP;
        let most = MAX_PROBE_WAIT.max(2 * wait);
        let wait = (wait * (1 << self.probes)).min(most);
        Some(self.heard.map_or(last, |heard| heard.max(last)) + wait)
    }

    fn doubt_mtu(&mut self, now: Instant) {
        let lost = self.large_lost();
        self.mtu.on_row_of_losses(now, lost, self.calm_loss);
    }

    /// Large packets lost in a row, at most over the channels.
    pub(super) fn large_lost(&self) -> usize {
        let lanes = self.lanes.iter();
        let lost = lanes.map(|lane| lane.conversation.flight.large_lost());
        lost.max().unwrap_or(0)
    }

    pub(super) fn group_time(&self) -> Duration {
        let slow = SLOW_GROUP_PACKETS * self.mtu.datagram_bytes() as f64 / self.paced_rate();
        GROUP_TIME.max(Duration::from_secs_f64(slow).min(MAX_GROUP_TIME))
    }

    fn detect_losses(&mut self, now: Instant) {
        let rtt = self.rate.rtt().unwrap_or(UNKNOWN_RTT);
        let late = self.lateness.beyond(now, rtt);
        let patience = late.map_or(Duration::ZERO, |late| rtt + late);
        // On a short line the answer to one copy is there before the next would leave.
        let gap = self.losses.copy_gap();
        let copies = if rtt > 4 * gap {
            self.losses.copies()
        } else {
            1
        };
        self.detect_at = None;
        for (lane, channel) in self.lanes.iter_mut().zip(Channel::ALL) {
            let Lane { conversation, .. } = lane;
            let copies = if channel == Channel::Bulk { 1 } else { copies };
            let (again, _) = conversation
                .flight
                .detect(now, self.seen, patience, copies, gap);
            if let Some(again) = again {
                self.detect_at = Some(self.detect_at.map_or(again, |at| at.min(again)));
            }
        }
        self.doubt_mtu(now);
    }
}
