//! What a sender knows of the line's losses, and what it does about them beforehand.
//!
//! Loss and the mean length of bursts come from the receiver's counts: datagrams that are missing, and gaps
//! in their numbers. From them follow how much parity a group gets and how many copies of a lost packet go
//! out; [`Beforehand`] keeps all that is sent before a loss is known within its share.

use std::time::Duration;

use crate::frame::Feedback;

/// What may be sent before any loss is known (parity, packets repeated by tail probes), as a share of the media
/// sent, unless the operator says otherwise. Probes go in any case, since without them nobody would learn of a
/// lost tail; what they cost is taken from parity's share.
pub const DEFAULT_MAX_REDUNDANCY: f64 = 0.5;

/// Unused share that may be saved up at the default, a key frame's worth of parity, and what is remembered of tail
/// probes that went beyond it; in proportion where the share is another one.
const MAX_SAVED_BYTES: f64 = 48.0 * 1024.0;

/// Losses are remembered over about so many datagrams.
const MEMORY: f64 = 400.0;

/// A longer row of losses may be a line that was cut: it counts as this many, which says enough of the line.
const MAX_ROW: f64 = 16.0;

/// So many datagrams are taken to have come when nothing is known: one early loss isn't a bad line.
const PRIOR: f64 = 40.0;

/// Below this loss resending alone is cheap and quick enough.
const CLEAN: f64 = 0.003;

/// Between copies of a packet, where losses are single, and how much longer it gets where they aren't.
const COPY_GAP: Duration = Duration::from_millis(5);
const MAX_COPY_GAPS: f64 = 4.0;

/// How often a group's parity may turn out too little: more parity costs more than the resends it spares.
const RESIDUAL: f64 = 0.1;

/// What is remembered, fading.
pub(crate) struct LossMeter {
    sent: f64,
    lost: f64,
    gaps: f64,
    latest: Option<Feedback>,
}

impl LossMeter {
    pub(crate) fn new() -> Self {
        Self {
            sent: PRIOR,
            lost: 0.0,
            gaps: 0.0,
            latest: None,
        }
    }

    pub(crate) fn on_feedback(&mut self, feedback: &Feedback) {
        let Some(before) = self.latest.replace(*feedback) else {
            return;
        };
        if feedback.highest < before.highest || feedback.datagrams < before.datagrams {
            self.latest = Some(before);
            return;
        }
        let sent = (feedback.highest - before.highest) as f64;
        let came = (feedback.datagrams - before.datagrams) as f64;
        // Each datagram that came late had made a gap before, or part of one.
        let late = f64::from(feedback.reordered.wrapping_sub(before.reordered));
        // Fewer than before where excused probes were lost among others, in a gap that they didn't make.
        let gaps = f64::from(feedback.gaps.wrapping_sub(before.gaps).cast_signed()) - late;
        let cut = (sent - came - MAX_ROW * gaps.max(1.0)).max(0.0);
        let sent = sent - cut;
        let fade = (-sent / MEMORY).exp();
        self.sent = self.sent * fade + sent;
        self.lost = (self.lost * fade + sent - came).max(0.0);
        self.gaps = (self.gaps * fade + gaps).max(0.0);
    }

    /// Share of datagrams that don't come, 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        (self.lost / self.sent.max(PRIOR)).clamp(0.0, 1.0)
    }

    /// Datagrams lost in a row, on average; 1 where they are lost singly.
    pub(crate) fn burst(&self) -> f64 {
        if self.gaps < 1.0 {
            return 1.0;
        }
        (self.lost / self.gaps).max(1.0)
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.loss() < CLEAN
    }

    /// Parities for a group of so many packets.
    pub(crate) fn parities(&self, packets: usize) -> usize {
        if self.is_clean() || packets == 0 {
            return 0;
        }
        // A burst takes more than parity in proportion gives back; resending repairs it for less. What is
        // left for parity are the losses that come singly.
        let loss = self.loss() / burst_discount(self.burst());
        (1..=crate::erasure::MAX_PARITIES)
            .find(|parities| too_few(packets, *parities, loss) <= RESIDUAL)
            .unwrap_or(crate::erasure::MAX_PARITIES)
    }

    /// How far apart copies of a packet are: a burst takes neighbours.
    pub(crate) fn copy_gap(&self) -> Duration {
        COPY_GAP.mul_f64(self.burst().clamp(1.0, MAX_COPY_GAPS))
    }

    /// How often a lost packet is sent at once: each further loss costs a round trip.
    pub(crate) fn copies(&self) -> u32 {
        match self.loss() {
            loss if loss < 0.02 => 1,
            loss if loss < 0.25 => 2,
            _ => 3,
        }
    }
}

fn burst_discount(burst: f64) -> f64 {
    // Random loss of 20 % makes bursts of 1.25.
    (burst / 1.5).max(1.0)
}

/// Chance that more than `parities` of a group with them are lost.
fn too_few(packets: usize, parities: usize, loss: f64) -> f64 {
    let total = (packets + parities) as f64;
    let odds = loss / (1.0 - loss).max(1e-9);
    let mut chance = (1.0 - loss).powf(total);
    let mut sum = chance;
    for lost in 1..=parities {
        chance *= odds * (total - lost as f64 + 1.0) / lost as f64;
        sum += chance;
    }
    1.0 - sum
}

/// Bytes that may yet be sent before any loss is known.
pub(crate) struct Beforehand {
    share: f64,
    /// From minus to plus [`Beforehand::most`].
    saved: f64,
    /// All that was spent.
    spent_bytes: u64,
}

impl Beforehand {
    pub(crate) fn new() -> Self {
        Self {
            share: DEFAULT_MAX_REDUNDANCY,
            saved: 0.0,
            spent_bytes: 0,
        }
    }

    /// From now on, 0 to 1.
    pub(crate) fn set_share(&mut self, share: f64) {
        self.share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            DEFAULT_MAX_REDUNDANCY
        };
        self.saved = self.saved.min(self.most());
    }

    /// Nothing at all may be sent beforehand.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.share == 0.0
    }

    pub(crate) fn spent_bytes(&self) -> u64 {
        self.spent_bytes
    }

    fn most(&self) -> f64 {
        MAX_SAVED_BYTES * self.share / DEFAULT_MAX_REDUNDANCY
    }

    /// Media was sent for the first time.
    pub(crate) fn earn(&mut self, bytes: usize) {
        self.saved = (self.saved + self.share * bytes as f64).min(self.most());
    }

    /// How many of such a size are paid for, up to `most`; they are spent.
    pub(crate) fn take(&mut self, most: usize, bytes: usize) -> usize {
        let affordable = (self.saved / bytes.max(1) as f64).max(0.0) as usize;
        let taken = most.min(affordable);
        self.saved -= (taken * bytes) as f64;
        self.spent_bytes += (taken * bytes) as u64;
        taken
    }

    /// What can't wait for a share of its own: it is paid for later.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.saved = (self.saved - bytes as f64).max(-self.most());
        self.spent_bytes += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(sent: u64, lost: u64, gaps: u32) -> LossMeter {
        let mut meter = LossMeter::new();
        meter.on_feedback(&Feedback::default());
        meter.on_feedback(&Feedback {
            highest: sent,
            datagrams: sent - lost,
            gaps,
            ..Feedback::default()
        });
        meter
    }

    #[test]
    fn a_cut_is_no_loss_rate() {
        let mut meter = meter(200, 2, 2);
        let at = |highest, datagrams, gaps| Feedback {
            highest,
            datagrams,
            gaps,
            ..Feedback::default()
        };
        // A row of 800; excused probes were among them.
        meter.on_feedback(&at(1_010, 208, 3));
        assert!((0.05..0.1).contains(&meter.loss()), "{}", meter.loss());
        assert_eq!(meter.copies(), 2);
        meter.on_feedback(&at(1_410, 608, 2));
        assert!(meter.loss() < 0.06, "{}", meter.loss());
        assert!(meter.burst() <= MAX_ROW, "{}", meter.burst());
    }

    #[test]
    fn parity_follows_loss_and_leaves_bursts_to_resends() {
        assert_eq!(meter(1000, 0, 0).parities(16), 0);
        assert_eq!(meter(1000, 2, 2).parities(16), 0);
        assert_eq!(meter(10_000, 100, 100).parities(16), 1);
        assert_eq!(meter(10_000, 500, 480).parities(16), 2);
        assert_eq!(meter(10_000, 1000, 900).parities(16), 4);
        assert_eq!(meter(10_000, 2000, 1600).parities(16), 7);
        let bursts = meter(10_000, 1000, 125);
        assert!((bursts.burst() - 8.0).abs() < 0.5, "{}", bursts.burst());
        assert_eq!(bursts.parities(16), 1);
        assert!(
            meter(10_000, 1000, 900).parities(64) < 12,
            "large groups need less"
        );
    }

    #[test]
    fn one_early_loss_is_no_bad_line_and_reordering_is_none() {
        assert!(meter(10, 1, 1).loss() < 0.03);
        let mut meter = meter(1000, 0, 0);
        meter.on_feedback(&Feedback {
            highest: 2000,
            datagrams: 2000,
            gaps: 300,
            reordered: 300,
            ..Feedback::default()
        });
        assert!(meter.is_clean());
        assert_eq!(meter.burst(), 1.0);
    }

    #[test]
    fn no_more_goes_out_beforehand_than_its_share() {
        let mut beforehand = Beforehand::new();
        assert_eq!(beforehand.take(3, 1000), 0);
        beforehand.earn(5000);
        assert_eq!(beforehand.take(9, 1000), 2);
        assert_eq!(beforehand.take(9, 1000), 0);
        beforehand.earn(100_000_000);
        assert_eq!(beforehand.take(1000, 1024), 48);
        assert_eq!(beforehand.spent_bytes(), 2_000 + 48 * 1024);
    }

    #[test]
    fn probes_are_paid_for_later_and_without_a_share_nothing_else_goes() {
        let mut beforehand = Beforehand::new();
        beforehand.spend(4 * 1024);
        beforehand.earn(8 * 1024);
        assert_eq!(beforehand.take(1, 1024), 0, "the debt comes first");
        beforehand.earn(2 * 1024);
        assert_eq!(beforehand.take(9, 1024), 1);
        assert_eq!(beforehand.spent_bytes(), 5 * 1024);
        beforehand.set_share(0.0);
        assert!(beforehand.is_forbidden());
        beforehand.earn(100_000_000);
        assert_eq!(beforehand.take(9, 1), 0);
        beforehand.set_share(0.25);
        beforehand.earn(100_000_000);
        assert_eq!(beforehand.take(1000, 1024), 24);
        beforehand.set_share(f64::NAN);
        assert!(!beforehand.is_forbidden());
    }
}
