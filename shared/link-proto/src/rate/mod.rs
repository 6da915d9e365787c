//! The sender's half of rate control: how fast the pacer may go.
//!
//! A model of the path, as in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue
//! 2016): what it delivers, its bare delay, its own loss. Unlike BBR, the queueing delay itself is measured
//! (one way, from the datagrams' clocks) and is what is steered by, as in Copa (Arun and Balakrishnan, NSDI
//! 2018), whose competitive mode this has too. Loss alone means nothing, radio loses at any rate: what is
//! lost when less is sent than the line carries is the line's own, and is made up for.
//!
//! | state | rate | ends |
//! |---|---|---|
//! | `Startup` | twice what was delivered, each round trip | a queue stands, or more brings no more |
//! | `Steady` | what was delivered; each few rounds a little below it, then a probe above | a queue stands |
//! | `Drain` | below what is delivered, by as much as the queue is too long | the queue is gone |
//! | `Compete` | grows, and falls with loss if the other does, whatever the delay | no queue stands for two seconds |
//!
//! `Drain` turns into `Compete` when the queue does not shrink though less is sent: somebody else fills it. Who that
//! is shows when this end gives way to losses: beside a flow that gives way too the queue shrinks soon; beside
//! one that is deaf to losses (as BBR is) it does not, and then the rate is held as long as the losses are bearable.
//! What the line carried before bounds the share that is taken, and the one that is held.
//! A probe that is delivered is followed by one of twice the size, so that a faster line is found soon.
//!
//! Only what was sent without a pause counts as evidence of what the path carries, unless it is more than was
//! known. A round ends when a datagram sent after its beginning is known to have arrived.

mod compete;
mod rounds;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{datagram::MAX_DATAGRAM_BYTES, frame::Feedback, windowed_min::WindowedMin};

use compete::Competition;
use rounds::Round;

/// Bytes per second: a line is tried at 2.5 Mbit/s first, which any camera's uplink has.
const INITIAL_RATE: f64 = 312_500.0;
/// 150 kbit/s: below this no video gets through anyhow, and recovery would take minutes.
const MIN_RATE: f64 = 18_750.0;
/// 10 Gbit/s.
const MAX_RATE: f64 = 1.25e9;

/// A queue of less than this is jitter, not a sign.
const QUEUE_TOLERANCE: Duration = Duration::from_millis(20);

/// How many limited rounds a delivery rate is remembered.
const BANDWIDTH_ROUNDS: usize = 10;

/// Samples and rounds have this many datagrams at least, or their numbers would be noise.
const MIN_SAMPLE_DATAGRAMS: u64 = 10;

/// A sample of delivery covers this much time at least.
const MIN_SAMPLE_TIME: Duration = Duration::from_millis(20);

/// The bare delay of the path is the least of so long a time: shorter would take a standing queue for the
/// path, longer would hold on to a path that is no more.
const BASE_WINDOW: Duration = Duration::from_secs(10);

/// While somebody competes, the bare delay is not seen: the one known before is held for so long.
const BASE_HELD: Duration = Duration::from_secs(120);

/// Loss is never made up for beyond this: half of what is sent.
const MAX_COMPENSATED_LOSS: f64 = 0.5;

/// Below the delivered rate first, which drains the queue and shows the line's own loss; then a while at
/// it; then a probe above ([`RateController::gain`]).
const GAINS: [f64; 5] = [0.8, 1.0, 1.0, 1.0, 1.0];

/// Start-up's factor over what was delivered. On a long line what is too much is known late.
const STARTUP_GAIN: f64 = 2.0;
const LONG_STARTUP_GAIN: f64 = 1.6;
const LONG_RTT: Duration = Duration::from_millis(75);

/// Rounds without growth that end start-up.
const FLAT_ROUNDS: u8 = 3;

/// `Drain` goes no lower than the first share of what is delivered, and so far below it at least that the
/// queue must be seen to shrink.
const MIN_DRAIN_GAIN: f64 = 0.4;
const MAX_DRAIN_GAIN: f64 = 0.75;

/// So long and so many round trips must the queue stand against a drain before somebody else fills it.
const COMPETITOR_TIME: Duration = Duration::from_millis(300);
const COMPETITOR_RTTS: u32 = 4;

/// Pauses in sending that are remembered until they are answered.
const MAX_PAUSES: usize = 64;

pub(crate) struct RateController {
    phase: Phase,
    rate: f64,
    /// Best delivery rates of the latest limited rounds, and of this one.
    bandwidth: VecDeque<f64>,
    round_best: f64,
    /// Delivery in the latest samples without a pause.
    latest_deliveries: [f64; 3],
    base_loss: f64,
    srtt: Option<Duration>,
    min_rtt: WindowedMin<Duration>,
    /// Least one-way time, relative to the first one (clock offset cancels out).
    base_one_way: WindowedMin<i64>,
    first_one_way: Option<i32>,
    /// Queueing delay in the latest feedbacks; the least of them stands, the rest is jitter.
    recent_queues: [Duration; 2],
    queue: Duration,
    latest: Option<Feedback>,
    /// Where the present sample began.
    sample_from: Option<Feedback>,
    rounds: VecDeque<Round>,
    /// Datagrams before which nothing was there to send.
    pauses: VecDeque<u64>,
    /// The next probe goes over the rate by this share, or the least.
    probe_excess: f64,
    /// What the line was seen to carry while nobody competed, in bytes per second.
    alone: Option<f64>,
    /// Since when the line has been full without a standing queue.
    alone_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Startup {
        best: f64,
        flat_rounds: u8,
    },
    /// Goes through [`GAINS`].
    Steady {
        step: usize,
    },
    /// `peak`: the longest queue since `since`. `before`: what was delivered then.
    Drain {
        since: Instant,
        peak: Duration,
        before: f64,
    },
    Compete(Competition),
}

struct Sample {
    /// Bytes per second.
    delivery: f64,
    limited: bool,
}

impl RateController {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Startup {
                best: 0.0,
                flat_rounds: 0,
            },
            rate: INITIAL_RATE,
            bandwidth: VecDeque::with_capacity(BANDWIDTH_ROUNDS),
            round_best: 0.0,
            latest_deliveries: [0.0; 3],
            base_loss: 0.0,
            srtt: None,
            min_rtt: WindowedMin::new(BASE_WINDOW),
            base_one_way: WindowedMin::new(BASE_WINDOW),
            first_one_way: None,
            recent_queues: [Duration::ZERO; 2],
            queue: Duration::ZERO,
            latest: None,
            sample_from: None,
            rounds: VecDeque::new(),
            pauses: VecDeque::new(),
            probe_excess: 0.0,
            alone: None,
            alone_since: None,
        }
    }

    /// Bytes per second for the pacer.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// Bytes per second that arrived lately, as the peer tells; nought before it has.
    pub(crate) fn delivery(&self) -> f64 {
        self.latest.map_or(0.0, |_| self.latest_delivery())
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.srtt
    }

    pub(crate) fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.get()
    }

    pub(crate) fn queueing_delay(&self) -> Duration {
        self.queue
    }

    /// Somebody else fills the path's queue.
    pub(crate) fn competes(&self) -> bool {
        matches!(self.phase, Phase::Compete(_))
    }

    /// What may be unacknowledged: two bandwidth-delay products with some room for the acknowledgements'
    /// own delay. Beyond that nothing would arrive sooner.
    pub(crate) fn window_bytes(&self) -> f64 {
        /// Before the first answer: a long line's.
        const UNKNOWN_RTT: Duration = Duration::from_millis(300);
        const ACK_DELAY: Duration = Duration::from_millis(40);
        const MIN_WINDOW: f64 = 48.0 * MAX_DATAGRAM_BYTES as f64;
        let mut rtt = self.min_rtt.get().unwrap_or(UNKNOWN_RTT) + ACK_DELAY;
        if self.competes() {
            rtt += self.queue; // which isn't ours, but what is sent waits in it
        }
        (2.0 * self.rate * rtt.as_secs_f64()).max(MIN_WINDOW)
    }

    /// After a silence the path may be another: what was measured on the old one is void, and half of what it
    /// carried a careful beginning.
    pub(crate) fn after_silence(&mut self) {
        let carried = self.capacity().max(self.rate.min(INITIAL_RATE));
        let srtt = self.srtt;
        *self = Self::new();
        self.rate = (carried / 2.0)
            .max(INITIAL_RATE.min(carried))
            .clamp(MIN_RATE, MAX_RATE);
        self.srtt = srtt;
    }

    /// The peer has another address: other delays, perhaps; the rate may stay until they are known.
    pub(crate) fn path_changed(&mut self) {
        self.min_rtt = WindowedMin::new(BASE_WINDOW);
        self.base_one_way = WindowedMin::new(BASE_WINDOW);
        self.first_one_way = None;
        self.sample_from = None;
        self.rounds.clear();
    }

    /// There is nothing to send though the pacer would let it: datagram `next_counter` comes after a pause.
    pub(crate) fn on_pause(&mut self, next_counter: u64) {
        if self.pauses.back() != Some(&next_counter) {
            if self.pauses.len() == MAX_PAUSES {
                self.pauses.pop_front();
            }
            self.pauses.push_back(next_counter);
        }
    }

    /// `now_us` is the clock that our datagrams carry; `next_counter` says how far sending is.
    pub(crate) fn on_feedback(
        &mut self,
        now: Instant,
        now_us: u32,
        next_counter: u64,
        feedback: &Feedback,
    ) {
        if feedback.highest >= next_counter
            || self.latest.is_some_and(|latest| {
                feedback.datagrams < latest.datagrams || feedback.highest < latest.highest
            })
        {
            return; // overtaken by a later one, or nonsense
        }
        self.measure_rtt(now, now_us, feedback);
        self.measure_queue(now, feedback);
        self.latest = Some(*feedback);
        if let Some(sample) = self.sample(feedback) {
            self.judge(now, &sample);
        }
        self.follow_rounds(now, next_counter, feedback);
        self.rate = self.rate.clamp(MIN_RATE, MAX_RATE);
    }

    fn measure_rtt(&mut self, now: Instant, now_us: u32, feedback: &Feedback) {
        let rtt_us = now_us
            .wrapping_sub(feedback.echo_us)
            .wrapping_sub(feedback.hold_us)
            .cast_signed();
        let Ok(rtt_us) = u64::try_from(rtt_us) else {
            return;
        };
        let rtt = Duration::from_micros(rtt_us.max(1));
        self.min_rtt.add(now, rtt);
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 7 + rtt) / 8));
    }

    fn measure_queue(&mut self, now: Instant, feedback: &Feedback) {
        let first = *self.first_one_way.get_or_insert(feedback.one_way_us);
        let one_way = i64::from(feedback.one_way_us.wrapping_sub(first));
        if self.competes() {
            self.base_one_way.hold(now, BASE_HELD);
        } else {
            self.base_one_way.release();
        }
        self.base_one_way.add(now, one_way);
        let base = self.base_one_way.get().unwrap_or(one_way);
        let queue = Duration::from_micros((one_way - base).try_into().unwrap_or(0));
        let [_, before] = self.recent_queues;
        self.recent_queues = [before, queue];
        self.queue = queue.min(before);
    }

    /// What was delivered since the last sample, if that is enough to tell.
    fn sample(&mut self, feedback: &Feedback) -> Option<Sample> {
        let from = *self.sample_from.get_or_insert(*feedback);
        let sent_us = feedback.echo_us.wrapping_sub(from.echo_us);
        let arrival_us = feedback.arrival_us.wrapping_sub(from.arrival_us);
        if feedback.highest - from.highest < MIN_SAMPLE_DATAGRAMS
            || Duration::from_micros(arrival_us.into()) < MIN_SAMPLE_TIME
        {
            return None;
        }
        self.sample_from = Some(*feedback);
        let limited = !self.paused_between(from.highest, feedback.highest);
        // A burst that jitter pressed together arrives faster than the line carries.
        let us = f64::from(arrival_us.max(sent_us));
        let delivery = feedback.bytes.saturating_sub(from.bytes) as f64 / us * 1e6;
        Some(Sample { delivery, limited })
    }

    fn paused_between(&self, after: u64, until: u64) -> bool {
        self.pauses
            .iter()
            .any(|pause| *pause > after && *pause <= until)
    }

    fn judge(&mut self, now: Instant, sample: &Sample) {
        // Once a drain has emptied the queue, what comes through is only what is sent.
        let draining = matches!(self.phase, Phase::Drain { .. });
        if sample.limited && (!draining || self.queue > self.tolerated_queue()) {
            let [_, b, c] = self.latest_deliveries;
            self.latest_deliveries = [b, c, sample.delivery];
        }
        if sample.limited || sample.delivery > self.bandwidth() {
            self.round_best = self.round_best.max(sample.delivery);
        }
        let mut queue_stands = self.queue > self.tolerated_queue();
        if let (Phase::Startup { .. }, [_, newest]) = (self.phase, self.recent_queues) {
            // Doubling goes over any line soon: the first sign must do.
            queue_stands = newest > self.tolerated_queue();
            self.queue = newest;
        }
        match self.phase {
            Phase::Startup { .. } | Phase::Steady { .. } if queue_stands && sample.limited => {
                self.phase = Phase::Drain {
                    since: now,
                    peak: self.queue,
                    before: self.bandwidth().max(self.latest_delivery()),
                };
                self.drain();
            }
            Phase::Startup { .. } if sample.limited => {
                let gain = if self.min_rtt.get().unwrap_or_default() > LONG_RTT {
                    LONG_STARTUP_GAIN
                } else {
                    STARTUP_GAIN
                };
                let loss = self.base_loss.min(MAX_COMPENSATED_LOSS);
                self.rate = self.rate.max(sample.delivery / (1.0 - loss) * gain);
            }
            Phase::Startup { .. } | Phase::Steady { .. } => {}
            Phase::Drain {
                since,
                peak,
                before,
            } => self.go_on_draining(now, since, peak, before),
            Phase::Compete(mut other) => {
                let gone = other.has_gone(now, queue_stands);
                self.watch_trial(now, &mut other);
                self.phase = Phase::Compete(other);
                if gone {
                    self.settle();
                }
            }
        }
    }

    fn go_on_draining(&mut self, now: Instant, since: Instant, peak: Duration, before: f64) {
        if self.queue <= self.tolerated_queue() / 2 {
            self.settle();
            return;
        }
        let rtt = self.srtt.unwrap_or_default();
        if self.queue < peak.mul_f64(0.75) {
            self.phase = Phase::Drain {
                since: now,
                peak: self.queue,
                before,
            };
        } else if now >= since + COMPETITOR_TIME.max(rtt * COMPETITOR_RTTS) {
            self.phase = Phase::Compete(Competition::begin(now, self.alone));
            self.rate = before / (1.0 - self.base_loss);
            return;
        } else {
            self.phase = Phase::Drain {
                since,
                peak: peak.max(self.queue),
                before,
            };
        }
        self.drain();
    }

    /// What comes through while a queue stands is what the line carries. So much less is sent that the queue
    /// is gone after about a round trip.
    fn drain(&mut self) {
        let too_long = self.queue.saturating_sub(self.tolerated_queue() / 4);
        let within = self.min_rtt.get().unwrap_or_default() + Duration::from_millis(100);
        let share = too_long.as_secs_f64() / within.as_secs_f64();
        let gain = (1.0 - share).clamp(MIN_DRAIN_GAIN, MAX_DRAIN_GAIN);
        self.rate = self.latest_delivery() / (1.0 - self.base_loss) * gain;
    }

    /// The queue is gone: goes on at what came through.
    fn settle(&mut self) {
        self.bandwidth.clear();
        self.bandwidth.push_back(self.latest_delivery());
        self.round_best = 0.0;
        self.probe_excess = 0.0;
        self.phase = Phase::Steady { step: 1 };
        self.rate = self.capacity();
    }

    /// A round of sending is over: the next one's rate.
    fn advance(&mut self) {
        let best = std::mem::take(&mut self.round_best);
        if best == 0.0 {
            return; // nothing is known that wasn't
        }
        if self.bandwidth.len() == BANDWIDTH_ROUNDS {
            self.bandwidth.pop_front();
        }
        self.bandwidth.push_back(best);
        match self.phase {
            Phase::Startup { best, flat_rounds } => {
                let bandwidth = self.bandwidth();
                if bandwidth > best * 1.25 {
                    self.phase = Phase::Startup {
                        best: bandwidth,
                        flat_rounds: 0,
                    };
                } else if flat_rounds < FLAT_ROUNDS {
                    self.phase = Phase::Startup {
                        best,
                        flat_rounds: flat_rounds + 1,
                    };
                } else {
                    // The line is full, though no queue is seen: the lower step comes first.
                    self.phase = Phase::Steady { step: 0 };
                    self.rate = self.capacity() * self.gain(0);
                }
            }
            Phase::Steady { step } => {
                let step = (step + 1) % (GAINS.len() + 1);
                self.phase = Phase::Steady { step };
                self.rate = self.capacity() * self.gain(step);
            }
            Phase::Drain { .. } | Phase::Compete(_) => {}
        }
    }

    fn bandwidth(&self) -> f64 {
        self.bandwidth.iter().copied().fold(0.0, f64::max)
    }

    /// The best of the latest samples without a pause; where there are none, what is known.
    fn latest_delivery(&self) -> f64 {
        let latest = self.latest_deliveries.iter().copied().fold(0.0, f64::max);
        if latest > 0.0 {
            latest
        } else {
            self.bandwidth().max(MIN_RATE)
        }
    }

    /// What must be sent for the line to be full behind its own loss.
    fn capacity(&self) -> f64 {
        self.bandwidth() / (1.0 - self.base_loss)
    }

    fn gain(&self, step: usize) -> f64 {
        GAINS.get(step).copied().unwrap_or_else(|| self.probe())
    }

    /// A probe lasts a round: on a long line it goes only so far over the rate that the queue it builds is
    /// within what is tolerated.
    fn probe(&self) -> f64 {
        let rtt = self.min_rtt.get().unwrap_or_default().as_secs_f64();
        let room = 0.6 * self.tolerated_queue().as_secs_f64();
        let least = (room / rtt).clamp(0.08, 0.2);
        1.0 + least.max(self.probe_excess)
    }

    /// Jitter, and on a slow line the time of a datagram itself, make a queue no sign.
    fn tolerated_queue(&self) -> Duration {
        let rtt = self.min_rtt.get().unwrap_or_default();
        let datagrams = Duration::from_secs_f64(1.5 * MAX_DATAGRAM_BYTES as f64 / self.rate);
        QUEUE_TOLERANCE.max(rtt / 5).max(datagrams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    /// A line of so many bytes per second, that loses evenly, with a feedback each 25 ms.
    struct Model {
        controller: RateController,
        now: Instant,
        start: Instant,
        sent_bytes: f64,
        sent: u64,
        arrived: f64,
        arrived_bytes: f64,
        backlog: f64,
        loss: f64,
    }

    const DATAGRAM: f64 = 1232.0;
    const STEP: Duration = Duration::from_millis(25);
    const ONE_WAY_US: i32 = 10_000;

    impl Model {
        fn new(loss: f64) -> Self {
            let start = sim::start();
            Self {
                controller: RateController::new(),
                now: start,
                start,
                sent_bytes: 0.0,
                sent: 0,
                arrived: 0.0,
                arrived_bytes: 0.0,
                backlog: 0.0,
                loss,
            }
        }

        /// `offered`: what the application has to send, bytes per second.
        fn run(&mut self, seconds: u32, capacity: f64, offered: f64) {
            for _ in 0..seconds * 40 {
                let step = STEP.as_secs_f64();
                let bytes = self.controller.rate().min(offered) * step;
                if offered < self.controller.rate() {
                    self.controller.on_pause(self.sent);
                }
                self.sent_bytes += bytes;
                self.sent = (self.sent_bytes / DATAGRAM) as u64;
                self.backlog += bytes * (1.0 - self.loss);
                let through = self.backlog.min(capacity * step);
                self.backlog = (self.backlog - through).min(capacity * 0.2);
                self.arrived_bytes += through;
                self.arrived += through / DATAGRAM;
                self.now += STEP;
                let now_us = (self.now - self.start).as_micros() as u32;
                let queue_us = (self.backlog / capacity * 1e6) as i32;
                let feedback = Feedback {
                    highest: self.sent.saturating_sub(1),
                    datagrams: self.arrived as u64,
                    bytes: self.arrived_bytes as u64,
                    echo_us: now_us.wrapping_sub((2 * ONE_WAY_US + queue_us) as u32),
                    hold_us: 0,
                    arrival_us: now_us,
                    one_way_us: ONE_WAY_US + queue_us - 77,
                    reordered: 0,
                    late_us: 0,
                    gaps: 0,
                };
                self.controller
                    .on_feedback(self.now, now_us, self.sent, &feedback);
            }
        }
    }

    #[test]
    fn finds_the_line_and_follows_it_down_and_up() {
        for capacity in [100e3, 1e6, 50e6] {
            let mut model = Model::new(0.0);
            for (factor, seconds) in [(1.0, 10), (0.3, 5), (1.0, 20)] {
                model.run(seconds, capacity * factor, f64::MAX);
                let ratio = model.controller.rate() / (capacity * factor);
                assert!(
                    (0.7..1.3).contains(&ratio),
                    "{capacity} x {factor}: {ratio}"
                );
                assert!(model.controller.queueing_delay() < Duration::from_millis(60));
            }
        }
    }

    #[test]
    fn the_lines_own_loss_is_made_up_for_and_not_fled_from() {
        for loss in [0.05, 0.3] {
            let mut model = Model::new(loss);
            model.run(20, 1e6, f64::MAX);
            let ratio = model.controller.rate() * (1.0 - loss) / 1e6;
            assert!((0.7..1.35).contains(&ratio), "{loss}: {ratio}");
            assert!((model.controller.base_loss - loss).abs() < 0.1, "{loss}");
        }
    }

    #[test]
    fn without_data_there_is_no_evidence_and_no_change() {
        let mut model = Model::new(0.0);
        model.run(10, 1e7, f64::MAX);
        let rate = model.controller.rate();
        model.run(10, 1e7, 1e5);
        let idle = model.controller.rate();
        assert!((0.75..1.25).contains(&(idle / rate)), "{rate} {idle}");

        let mut model = Model::new(0.0);
        model.run(20, 1e9, 5e5);
        assert!(model.controller.rate() < 2e6, "{}", model.controller.rate());
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut model = Model::new(0.0);
        model.run(1, 1e6, f64::MAX);
        let rate = model.controller.rate();
        for feedback in [
            Feedback::default(),
            Feedback {
                highest: u64::MAX,
                datagrams: u64::MAX,
                bytes: u64::MAX,
                ..Feedback::default()
            },
        ] {
            let (now, sent) = (model.now, model.sent);
            model.controller.on_feedback(now, 0, sent, &feedback);
            assert_eq!(model.controller.rate(), rate);
        }
    }
}
