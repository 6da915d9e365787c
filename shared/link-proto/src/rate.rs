//! The sender's half of rate control: how fast the pacer may go.
//!
//! The rate follows what the receiver says was delivered, and the delay that this built up. Growing delay
//! means that a queue stands somewhere: back off. Loss alone means nothing (radio loses at any rate): what
//! is lost even when sending a little slower than was delivered is the line's own loss, and is made up for.
//!
//! Everything is judged by rounds: a round ends when a datagram sent after its beginning is known to have
//! arrived. It is a round trip, or a feedback interval where that is longer.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::frame::Feedback;

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

/// A round has this many datagrams at least, or its numbers would be noise.
const MIN_ROUND_DATAGRAMS: u64 = 10;

/// The bare delay of the path is the least of so long a time: shorter would take a standing queue for the
/// path, longer would hold on to a path that is no more.
const BASE_WINDOW: Duration = Duration::from_secs(10);

/// Loss is never made up for beyond this: half of what is sent.
const MAX_COMPENSATED_LOSS: f64 = 0.5;

/// Below the delivered rate first, which drains the queue and shows the line's own loss; then a while at
/// it; then a probe above ([`RateController::probe`]).
const GAINS: [f64; 5] = [0.8, 1.0, 1.0, 1.0, 1.0];

pub(crate) struct RateController {
    phase: Phase,
    rate: f64,
    /// Delivery rates of the latest limited rounds.
    bandwidth: VecDeque<f64>,
    base_loss: f64,
    loss: f64,
    srtt: Option<Duration>,
    min_rtt: WindowedMin<Duration>,
    /// Least one-way time, relative to the first one (clock offset cancels out).
    base_one_way: WindowedMin<i64>,
    first_one_way: Option<i32>,
    /// Queueing delay in the latest feedbacks; the least of them stands, the rest is jitter.
    recent_queues: [Duration; 3],
    queue: Duration,
    latest: Option<Feedback>,
    round: Option<Round>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Doubles each round until the line is full.
    Startup { best: f64, flat_rounds: u8 },
    /// Goes through [`GAINS`].
    Steady { step: usize },
    /// A queue stands: sends less until it is gone. The first round still shows what went out before.
    BackOff {
        since_rate: f64,
        since_queue: Duration,
        rounds: u8,
    },
}

/// What was sent between the ends of two rounds, and the feedback from which its arrival is counted.
struct Round {
    began: Instant,
    first_counter: u64,
    bytes_at_start: u64,
    gain: f64,
    rate: f64,
    feedback: Feedback,
    before: Option<Sent>,
}

#[derive(Clone, Copy)]
struct Sent {
    rate: f64,
    gain: f64,
    /// The pacer was what held it back, not a lack of data.
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
            base_loss: 0.0,
            loss: 0.0,
            srtt: None,
            min_rtt: WindowedMin::new(),
            base_one_way: WindowedMin::new(),
            first_one_way: None,
            recent_queues: [Duration::ZERO; 3],
            queue: Duration::ZERO,
            latest: None,
            round: None,
        }
    }

    /// Bytes per second for the pacer.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    #[cfg(test)]
    fn loss(&self) -> f64 {
        self.loss
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

    /// What may be unacknowledged: two bandwidth-delay products with some room for the acknowledgements'
    /// own delay. Beyond that nothing would arrive sooner.
    pub(crate) fn window_bytes(&self) -> f64 {
        /// Before the first answer: a long line's.
        const UNKNOWN_RTT: Duration = Duration::from_millis(300);
        const ACK_DELAY: Duration = Duration::from_millis(40);
        const MIN_WINDOW: f64 = 48.0 * 1232.0;
        let rtt = self.min_rtt.get().unwrap_or(UNKNOWN_RTT) + ACK_DELAY;
        (2.0 * self.rate * rtt.as_secs_f64()).max(MIN_WINDOW)
    }

    /// After a silence the path may be another: what was measured on the old one is void, and half its rate
    /// a careful beginning.
    pub(crate) fn after_silence(&mut self) {
        let rate = (self.rate / 2.0).max(INITIAL_RATE.min(self.rate));
        let (srtt, loss) = (self.srtt, self.loss);
        *self = Self::new();
        self.rate = rate.clamp(MIN_RATE, MAX_RATE);
        self.srtt = srtt;
        self.loss = loss;
    }

    /// The peer has another address: other delays, perhaps; the rate may stay until they are known.
    pub(crate) fn path_changed(&mut self) {
        self.min_rtt = WindowedMin::new();
        self.base_one_way = WindowedMin::new();
        self.first_one_way = None;
        self.round = None;
    }

    /// `now_us` is the clock that our datagrams carry; `next_counter` and `bytes_sent` say how far sending is.
    pub(crate) fn on_feedback(
        &mut self,
        now: Instant,
        now_us: u32,
        next_counter: u64,
        bytes_sent: u64,
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

        let Some(round) = &self.round else {
            self.round = Some(self.begin_round(now, next_counter, bytes_sent, *feedback, None));
            return;
        };
        let datagrams = feedback.highest.saturating_sub(round.feedback.highest);
        // Doubling goes over any line soon: no round must pass before that is seen.
        let is_over =
            matches!(self.phase, Phase::Startup { .. }) && self.queue > self.tolerated_queue();
        if datagrams < MIN_ROUND_DATAGRAMS || (feedback.highest < round.first_counter && !is_over) {
            return;
        }
        self.end_round(now, next_counter, bytes_sent, feedback);
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
        self.base_one_way.add(now, one_way);
        let base = self.base_one_way.get().unwrap_or(one_way);
        let queue = Duration::from_micros((one_way - base).try_into().unwrap_or(0));
        let [_, b, c] = self.recent_queues;
        self.recent_queues = [b, c, queue];
        self.queue = queue.min(b).min(c);
    }

    fn begin_round(
        &self,
        now: Instant,
        next_counter: u64,
        bytes_sent: u64,
        feedback: Feedback,
        before: Option<Sent>,
    ) -> Round {
        Round {
            began: now,
            first_counter: next_counter,
            bytes_at_start: bytes_sent,
            gain: match self.phase {
                Phase::Steady { step } => self.gain(step),
                Phase::Startup { .. } | Phase::BackOff { .. } => 1.0,
            },
            rate: self.rate,
            feedback,
            before,
        }
    }

    fn end_round(&mut self, now: Instant, next_counter: u64, bytes_sent: u64, feedback: &Feedback) {
        let Some(round) = self.round.take() else {
            return;
        };
        let seconds = now.saturating_duration_since(round.began).as_secs_f64();
        if seconds <= 0.0 {
            self.round = Some(round);
            return;
        }
        let send_rate = (bytes_sent - round.bytes_at_start) as f64 / seconds;
        let this = Sent {
            rate: send_rate,
            gain: round.gain,
            limited: send_rate >= 0.7 * round.rate,
        };
        // On a short path the feedback tells of what was sent in this very round, on a long one of what was
        // sent in the round before.
        let middle = round.first_counter + (next_counter - round.first_counter) / 2;
        let told = if feedback.highest < round.first_counter {
            Some(Sent {
                limited: true,
                ..this
            })
        } else if feedback.highest > middle {
            Some(this)
        } else {
            round.before
        };

        let sent = feedback.highest - round.feedback.highest;
        let arrived = feedback.datagrams - round.feedback.datagrams;
        let loss = sent.saturating_sub(arrived) as f64 / sent as f64;
        self.loss += (loss - self.loss) * (sent as f64 / 200.0).clamp(0.05, 0.5);

        let arrival_us = feedback.arrival_us.wrapping_sub(round.feedback.arrival_us);
        let bytes = feedback.bytes.saturating_sub(round.feedback.bytes);
        let delivery = bytes as f64 / f64::from(arrival_us.max(1)) * 1e6;
        if let Some(told) = told {
            // A burst that jitter pressed together arrives faster than the line carries.
            self.judge(told, delivery.min(told.rate), loss, sent);
        }
        self.round = Some(self.begin_round(now, next_counter, bytes_sent, *feedback, Some(this)));
    }

    fn judge(&mut self, sent: Sent, delivery: f64, loss: f64, datagrams: u64) {
        let best = self.bandwidth();
        if sent.limited || delivery > best {
            if self.bandwidth.len() == BANDWIDTH_ROUNDS {
                self.bandwidth.pop_front();
            }
            self.bandwidth.push_back(delivery);
        }
        if sent.gain < 1.0 && datagrams >= 2 * MIN_ROUND_DATAGRAMS {
            self.base_loss = (self.base_loss + loss.min(MAX_COMPENSATED_LOSS)) / 2.0;
        }
        let queue_stands = self.queue > self.tolerated_queue();
        let rate = match self.phase {
            Phase::Startup { .. } | Phase::Steady { .. } if queue_stands && sent.limited => {
                self.back_off(delivery)
            }
            _ if !sent.limited && !matches!(self.phase, Phase::BackOff { .. }) => return,
            Phase::Startup { best, flat_rounds } => self.start_up(best, flat_rounds),
            Phase::Steady { step } => {
                let step = (step + 1) % (GAINS.len() + 1);
                self.phase = Phase::Steady { step };
                self.capacity() * self.gain(step)
            }
            Phase::BackOff {
                since_rate,
                since_queue,
                rounds,
            } => self.recover(since_rate, since_queue, rounds, delivery, queue_stands),
        };
        self.rate = rate.clamp(MIN_RATE, MAX_RATE);
    }

    fn start_up(&mut self, best: f64, flat_rounds: u8) -> f64 {
        let bandwidth = self.bandwidth();
        if bandwidth > best * 1.25 {
            self.phase = Phase::Startup {
                best: bandwidth,
                flat_rounds: 0,
            };
        } else if flat_rounds < 2 {
            self.phase = Phase::Startup {
                best,
                flat_rounds: flat_rounds + 1,
            };
            return self.rate;
        } else {
            // The line is full, though no queue is seen: the lower step comes first and shows its own loss.
            self.base_loss = self.loss.min(MAX_COMPENSATED_LOSS);
            self.phase = Phase::Steady { step: 0 };
            return self.capacity() * self.gain(0);
        }
        self.rate * 2.0
    }

    /// What came through while a queue stands is what the line carries.
    fn back_off(&mut self, delivery: f64) -> f64 {
        self.phase = Phase::BackOff {
            since_rate: self.rate,
            since_queue: self.queue,
            rounds: 0,
        };
        self.bandwidth.clear();
        self.bandwidth.push_back(delivery);
        self.capacity() * self.drain_gain()
    }

    fn recover(
        &mut self,
        since_rate: f64,
        since_queue: Duration,
        rounds: u8,
        delivery: f64,
        queue_stands: bool,
    ) -> f64 {
        if !queue_stands {
            self.phase = Phase::Steady { step: 1 };
            return self.capacity();
        }
        self.phase = Phase::BackOff {
            since_rate,
            since_queue,
            rounds: rounds.saturating_add(1),
        };
        // The first round after a step down still tells of the time before it.
        if rounds.is_multiple_of(2) {
            return self.rate;
        }
        if self.rate < since_rate / 2.0 && self.queue > since_queue.mul_f64(0.75) {
            // Half the rate did not shorten the queue: it isn't ours, or the path itself became longer.
            self.base_one_way = WindowedMin::new();
            self.first_one_way = None;
            self.phase = Phase::Steady { step: 1 };
            return self.rate;
        }
        self.bandwidth.clear();
        self.bandwidth.push_back(delivery.max(self.rate / 2.0));
        (self.capacity() * self.drain_gain()).min(self.rate)
    }

    fn drain_gain(&self) -> f64 {
        if self.queue > 3 * self.tolerated_queue() {
            0.5
        } else {
            0.8
        }
    }

    fn bandwidth(&self) -> f64 {
        self.bandwidth.iter().copied().fold(0.0, f64::max)
    }

    /// What must be sent for the line to be full behind its own loss.
    fn capacity(&self) -> f64 {
        self.bandwidth() / (1.0 - self.base_loss)
    }

    fn gain(&self, step: usize) -> f64 {
        GAINS.get(step).copied().unwrap_or_else(|| self.probe())
    }

    /// A probe lasts a round: on a long line it goes only so far over the rate that the queue it builds is
    /// about [`QUEUE_TOLERANCE`].
    fn probe(&self) -> f64 {
        let rtt = self.min_rtt.get().unwrap_or_default().as_secs_f64();
        1.0 + (QUEUE_TOLERANCE.as_secs_f64() / rtt).clamp(0.08, 0.2)
    }

    fn tolerated_queue(&self) -> Duration {
        let rtt = self.min_rtt.get().unwrap_or_default();
        QUEUE_TOLERANCE.max(rtt / 5)
    }
}

/// The least value of the last one to two half windows.
struct WindowedMin<T> {
    current: Option<T>,
    previous: Option<T>,
    turn_at: Option<Instant>,
}

impl<T: Copy + Ord> WindowedMin<T> {
    fn new() -> Self {
        Self {
            current: None,
            previous: None,
            turn_at: None,
        }
    }

    fn add(&mut self, now: Instant, value: T) {
        let turn_at = *self.turn_at.get_or_insert(now + BASE_WINDOW / 2);
        if now >= turn_at {
            self.previous = self.current.take();
            self.turn_at = Some(now + BASE_WINDOW / 2);
        }
        self.current = Some(self.current.map_or(value, |least| least.min(value)));
    }

    fn get(&self) -> Option<T> {
        match (self.current, self.previous) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
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
                    gaps: 0,
                };
                self.controller.on_feedback(
                    self.now,
                    now_us,
                    self.sent,
                    self.sent_bytes as u64,
                    &feedback,
                );
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
            assert!((model.controller.loss() - loss).abs() < 0.1, "{loss}");
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
            model
                .controller
                .on_feedback(now, 0, sent, model.sent_bytes as u64, &feedback);
            assert_eq!(model.controller.rate(), rate);
        }
    }
}
