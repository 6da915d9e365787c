//! Beside somebody who fills the path's queue: what share is taken, by whether the other gives way to losses.

use std::time::{Duration, Instant};

use super::{COMPETITOR_RTTS, COMPETITOR_TIME, Phase, RateController};
use crate::datagram::MAX_DATAGRAM_BYTES;

/// In competition the rate grows by this share a second, near to what CUBIC (RFC 9438) does after a loss,
/// and falls to this share on congestion (RFC 9438, section 4.6).
const COMPETE_GROWTH: f64 = 0.07;
const COMPETE_BACKOFF: f64 = 0.7;

/// Who yields to losses as TCP does lets the queue shrink to this share soon after all have lost something. Whoever
/// does not (BBR, for one) takes what is given up, and is not given way to.
const YIELDED_QUEUE: f64 = 0.5;

/// Beside somebody deaf to losses, a rate is held while no more than this share is lost beyond the line's own.
const HELD_LOSS: f64 = 0.10;

/// Whether the other yields is asked anew after so long: others may have come.
const TRIAL_INTERVAL: Duration = Duration::from_secs(5);

/// Weight of a round in the loss seen while competing.
const COMPETE_LOSS_WEIGHT: f64 = 0.15;

/// What fills a line for so long, without a sign of anybody else, is what it carries: a flow of TCP with CUBIC that
/// gave way is back by then.
const ALONE_AFTER: Duration = Duration::from_secs(20);

/// Of what the line carried before somebody came, so much is taken beside him at most, and held at least while no
/// more than [`MAX_FLOOR_LOSS`] is lost: then the line itself may have got worse.
const MAX_COMPETE_SHARE: f64 = 0.6;
const MIN_COMPETE_SHARE: f64 = 0.35;
const MAX_FLOOR_LOSS: f64 = 0.25;

/// Without a queue for so long, nobody competes any more.
const COMPETE_QUIET: Duration = Duration::from_secs(2);

/// What is known of somebody who fills the path's queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Competition {
    /// Since when no queue stands.
    quiet: Option<Instant>,
    /// When this end last gave way.
    fell: Instant,
    /// The rate and the queue before that, until it is seen whether the other gave way too.
    trial: Option<(f64, Duration)>,
    /// The other does not yield to losses.
    deaf: bool,
    /// Loss beyond the line's own, lately.
    loss: f64,
    /// What the line carried alone, in bytes per second; `None`: the other was there first.
    alone: Option<f64>,
}

impl Competition {
    pub(super) fn begin(now: Instant, alone: Option<f64>) -> Self {
        Self {
            quiet: None,
            fell: now,
            trial: None,
            deaf: false,
            loss: 0.0,
            alone,
        }
    }

    /// Whether the other is not there any more.
    pub(super) fn has_gone(&mut self, now: Instant, queue_stands: bool) -> bool {
        self.quiet = (!queue_stands).then(|| self.quiet.unwrap_or(now));
        self.quiet.is_some_and(|quiet| now >= quiet + COMPETE_QUIET)
    }
}

impl RateController {
    /// A round is over. What a camera sends tells of the camera, and who yields to losses is not seen for a while.
    pub(super) fn watch_solitude(&mut self, now: Instant, limited: bool) {
        if !limited || !matches!(self.phase, Phase::Steady { .. } | Phase::Drain { .. }) {
            self.alone_since = None;
        } else if now >= *self.alone_since.get_or_insert(now) + ALONE_AFTER {
            self.alone = Some(self.bandwidth());
        }
    }

    /// Whether the other gave way as this end did.
    pub(super) fn watch_trial(&mut self, now: Instant, other: &mut Competition) {
        let Some((rate, queue)) = other.trial else {
            return;
        };
        let rtt = self.srtt.unwrap_or_default();
        if self.queue <= queue.mul_f64(YIELDED_QUEUE) {
            other.deaf = false;
            other.trial = None;
        } else if now >= other.fell + COMPETITOR_TIME.max(rtt * COMPETITOR_RTTS) {
            other.deaf = true;
            other.trial = None;
            self.rate = self.rate.max(rate);
        }
    }

    /// A round beside somebody else is over: of so many datagrams, so many were lost.
    pub(super) fn compete(
        &mut self,
        now: Instant,
        mut other: Competition,
        sent: u64,
        lost: u64,
        took: f64,
    ) {
        // More than the line's own loss explains, by three standard deviations.
        let expected = self.base_loss * sent as f64;
        let explained = expected + 3.0 * expected.sqrt() + 0.5;
        let rtt = self.srtt.unwrap_or_default();
        let beyond = (lost as f64 / sent as f64 - self.base_loss).max(0.0);
        other.loss += (beyond - other.loss) * COMPETE_LOSS_WEIGHT;
        let congested = lost as f64 > explained;
        let held = other.deaf && now < other.fell + TRIAL_INTERVAL;
        if congested && held && other.loss <= HELD_LOSS {
            // It is the other's doing, and giving way changes nothing.
        } else if congested && now >= other.fell + 2 * rtt {
            other.trial = (other.loss <= HELD_LOSS).then_some((self.rate, self.queue));
            other.fell = now;
            self.rate *= COMPETE_BACKOFF;
        } else if !congested {
            let most = 1.25 * self.latest_delivery() / (1.0 - self.base_loss);
            // On a share of little it grows as TCP does there: by a packet each round trip (RFC 5681).
            let packet = MAX_DATAGRAM_BYTES as f64 / rtt.as_secs_f64().max(0.01).powi(2);
            let growth = (COMPETE_GROWTH * self.rate).max(packet);
            let grown = self.rate + growth * took;
            self.rate = grown.min(most.max(self.rate));
        }
        if let Some(alone) = other.alone {
            let alone = alone / (1.0 - self.base_loss);
            if other.loss <= MAX_FLOOR_LOSS {
                self.rate = self.rate.max(MIN_COMPETE_SHARE * alone);
            }
            self.rate = self.rate.min(MAX_COMPETE_SHARE * alone);
        }
        self.phase = Phase::Compete(other);
    }
}
