//! Rounds: what was sent at one rate, and what became of it.

use std::time::Instant;

use super::{
    GAINS, MAX_COMPENSATED_LOSS, MIN_DRAIN_GAIN, MIN_SAMPLE_DATAGRAMS, Phase, RateController,
    STARTUP_GAIN,
};
use crate::frame::Feedback;

/// What was sent at one rate.
pub(super) struct Round {
    first_counter: u64,
    gain: f64,
    /// What was known to be delivered before.
    bandwidth: f64,
    began: Instant,
    /// The first feedback that tells of it.
    from: Option<Feedback>,
}

impl RateController {
    /// Ends rounds that are answered, and begins the next.
    pub(super) fn follow_rounds(&mut self, now: Instant, next_counter: u64, feedback: &Feedback) {
        if self.rounds.is_empty() {
            self.begin_round(now, next_counter);
            return;
        }
        for round in &mut self.rounds {
            if feedback.highest >= round.first_counter {
                round.from.get_or_insert(*feedback);
            }
        }
        while let Some(next) = self.rounds.get(1).map(|next| next.first_counter)
            && feedback.highest >= next
            && let Some(round) = self.rounds.pop_front()
        {
            self.end_round(now, &round, next, feedback);
        }
        let over = self
            .rounds
            .back()
            .is_some_and(|round| feedback.highest >= round.first_counter + MIN_SAMPLE_DATAGRAMS);
        if over {
            self.advance();
            self.begin_round(now, next_counter);
        }
        while self.pauses.front().is_some_and(|pause| {
            self.rounds
                .front()
                .is_some_and(|round| round.from.is_some_and(|from| *pause <= from.highest))
        }) && self.sample_from.is_some_and(|from| {
            self.pauses
                .front()
                .is_some_and(|pause| *pause <= from.highest)
        }) {
            self.pauses.pop_front();
        }
    }

    fn begin_round(&mut self, now: Instant, next_counter: u64) {
        self.rounds.push_back(Round {
            first_counter: next_counter,
            gain: match self.phase {
                Phase::Steady { step } => self.gain(step),
                Phase::Drain { .. } => MIN_DRAIN_GAIN,
                Phase::Startup { .. } | Phase::Compete(_) => 1.0,
            },
            bandwidth: self.bandwidth(),
            began: now,
            from: None,
        });
    }

    /// All of a round, which went until datagram `next`, is answered.
    fn end_round(&mut self, now: Instant, round: &Round, next: u64, feedback: &Feedback) {
        let Round {
            gain,
            bandwidth,
            began,
            ..
        } = *round;
        let from = round.from.unwrap_or(*feedback);
        let limited = !self.paused_between(from.highest, next);
        let sent = feedback.highest.saturating_sub(from.highest);
        if sent < MIN_SAMPLE_DATAGRAMS {
            return;
        }
        self.watch_solitude(now, limited);
        let came = feedback.datagrams.saturating_sub(from.datagrams);
        let loss = sent.saturating_sub(came) as f64 / sent as f64;
        let queue_stands = self.queue > self.tolerated_queue();
        if !queue_stands && (gain < 1.0 || !limited) {
            // The more datagrams, the more it counts.
            let weight = (sent as f64 / 200.0).min(0.5);
            self.base_loss += (loss.min(MAX_COMPENSATED_LOSS) - self.base_loss) * weight;
        }
        if let Phase::Compete(other) = self.phase {
            let took = now.saturating_duration_since(began).as_secs_f64().min(1.0);
            self.compete(now, other, sent, sent.saturating_sub(came), took);
            return;
        }
        if gain > 1.0 && limited && matches!(self.phase, Phase::Steady { .. }) {
            let arrival_us = feedback.arrival_us.wrapping_sub(from.arrival_us);
            let bytes = feedback.bytes.saturating_sub(from.bytes);
            let delivery = bytes as f64 / f64::from(arrival_us.max(1)) * 1e6;
            if !queue_stands && delivery > bandwidth * (1.0 + (gain - 1.0) / 2.0) {
                // There is more: at once again, and further.
                self.probe_excess = ((gain - 1.0) * 2.0).min(STARTUP_GAIN - 1.0);
                self.round_best = self.round_best.max(delivery);
                self.phase = Phase::Steady {
                    step: GAINS.len() - 1,
                };
            } else {
                self.probe_excess = 0.0;
            }
        }
    }
}
