//! What goes before what: classes, turns of streams by weight, and when live has grown too old to be live.
//!
//! Rules only; which bytes there are is `flow`'s and `stream`'s business. What is queued in a session can't be
//! reordered any more, so all of this is decided as late as the session's budget allows.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use model::StreamName;

use crate::replicate::class::Class;

/// How old live media may be before it is demoted to backfill, unless the operator says otherwise.
pub const DEFAULT_LIVE_DEADLINE: Duration = Duration::from_secs(5);
/// Highest weight of a stream: a thousand times the share of another one is as good as all.
pub const MAX_WEIGHT: u32 = 1_000;

/// For how long a stream's throughput is remembered.
const THROUGHPUT_TIME: Duration = Duration::from_secs(1);
/// A longer wait for the line is a stall, and says no more about its rate than this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Below so much waiting nothing is known of the line.
const LEAST_WAITED_S: f64 = 0.05;

/// What the operator wants of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Media of a live source that is older than this goes as backfill, and live goes on at the newest segment.
    pub live_deadline: Duration,
    /// Shares of the streams that have something to send of one class, 1 to [`MAX_WEIGHT`]; 1 where none is
    /// given.
    pub weights: BTreeMap<StreamName, u32>,
    /// What may go at all.
    pub allowed: Allowed,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            live_deadline: DEFAULT_LIVE_DEADLINE,
            weights: BTreeMap::new(),
            allowed: Allowed::All,
        }
    }
}

impl Policy {
    pub(super) fn weight(&self, stream: &StreamName) -> u32 {
        let weight = self.weights.get(stream).copied().unwrap_or(1);
        weight.clamp(1, MAX_WEIGHT)
    }
}

/// Which media may go; comparisons and announcements always do, so that the hub knows what it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allowed {
    #[default]
    All,
    /// Events and live, no backfill, waited for or not.
    LiveOnly,
    /// What an event marks, and nothing else.
    EventsOnly,
    /// No media at all.
    Nothing,
}

impl Allowed {
    pub(super) fn allows(self, class: Class) -> bool {
        let lowest = match self {
            Self::All => Class::Backfill,
            Self::LiveOnly => Class::Live,
            Self::EventsOnly => Class::Event,
            Self::Nothing => Class::Control,
        };
        class <= lowest
    }
}

/// One for each class of the bulk channel.
#[derive(Debug, Default)]
pub(super) struct PerBulkClass<T> {
    event: T,
    want: T,
    backfill: T,
}

impl<T> PerBulkClass<T> {
    pub(super) fn get(&self, class: Class) -> &T {
        match class {
            Class::Event => &self.event,
            Class::Want => &self.want,
            Class::Control | Class::Live | Class::Backfill => &self.backfill,
        }
    }

    pub(super) fn of(&mut self, class: Class) -> &mut T {
        match class {
            Class::Event => &mut self.event,
            Class::Want => &mut self.want,
            Class::Control | Class::Live | Class::Backfill => &mut self.backfill,
        }
    }
}

/// Where a stream stands among those that share a class: start-time fair queueing (Goyal, Vin, Cheng: "Start-
/// time Fair Queuing", SIGCOMM 1996). Who was idle begins where the others are, and has saved nothing up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Turn(u64);

/// The virtual time of a class: where the turn began that was served last.
#[derive(Debug, Default)]
pub(super) struct Turns(u64);

impl Turns {
    /// The lowest goes next.
    pub(super) fn begins(&self, turn: Turn) -> u64 {
        self.0.max(turn.0)
    }

    pub(super) fn serve(&mut self, turn: &mut Turn, bytes: u64, weight: u32) {
        self.0 = self.begins(*turn);
        let cost = bytes.saturating_mul(u64::from(MAX_WEIGHT)) / u64::from(weight.max(1));
        turn.0 = self.0.saturating_add(cost);
    }
}

/// What the line carries of a stream's live media, as seen while the stream had more than the line took.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    bytes: f64,
    waited_s: f64,
    waits_since: Option<Instant>,
}

impl Throughput {
    /// So many bytes were taken; `more`: others wait.
    pub(super) fn taken(&mut self, now: Instant, bytes: usize, more: bool) {
        if let Some(since) = self.waits_since.take() {
            let waited = now.saturating_duration_since(since).min(LONGEST_WAIT);
            let kept = (-waited.as_secs_f64() / THROUGHPUT_TIME.as_secs_f64()).exp();
            self.bytes = self.bytes * kept + bytes as f64;
            self.waited_s = self.waited_s * kept + waited.as_secs_f64();
        }
        self.waits_since = more.then_some(now);
    }

    /// How long so many bytes take; none where the line was never waited for.
    pub(super) fn time_of(&self, bytes: u64) -> Duration {
        if self.waited_s < LEAST_WAITED_S || self.bytes <= 0.0 {
            return Duration::ZERO;
        }
        let seconds = bytes as f64 * self.waited_s / self.bytes;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// Whether a segment that began so long ago may still go as live. Where the line carries less than the video
/// each segment falls further behind: then the last one is not followed in order that would leave the next one
/// no time to arrive before what viewers have is older than the deadline.
pub(super) fn is_fresh(
    deadline: Duration,
    age: Duration,
    duration: Duration,
    takes: Duration,
) -> bool {
    let falls_behind = takes.saturating_sub(duration);
    age.saturating_add(falls_behind.saturating_mul(2)) <= deadline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn turns_share_by_weight_and_idling_saves_nothing() {
        let mut turns = Turns::default();
        let mut streams = [(Turn::default(), 1), (Turn::default(), 3)];
        let mut served = [0, 0];
        let mut serve = |turns: &mut Turns, among: std::ops::Range<usize>| {
            let next = among.min_by_key(|&i| turns.begins(streams[i].0)).unwrap();
            let (turn, weight) = &mut streams[next];
            turns.serve(turn, 1_000, *weight);
            served[next] += 1;
            served
        };
        for _ in 0..400 {
            serve(&mut turns, 0..2);
        }
        assert_eq!(serve(&mut turns, 0..1), [101, 300]);
        // The second has nothing to send for a while; that gives it no credit.
        for _ in 0..1_000 {
            serve(&mut turns, 0..1);
        }
        let before = serve(&mut turns, 0..2);
        for _ in 0..399 {
            serve(&mut turns, 0..2);
        }
        let after = serve(&mut turns, 0..2);
        assert!((99..=102).contains(&(after[0] - before[0])), "{after:?}");
    }

    #[test]
    fn what_is_allowed_is_so_from_the_highest_class_down() {
        let allowed = |of: Allowed| Class::ALL.map(|class| of.allows(class));
        assert_eq!(allowed(Allowed::All), [true; 5]);
        let live = [true, true, true, false, false];
        assert_eq!(allowed(Allowed::LiveOnly), live);
        let events = [true, true, false, false, false];
        assert_eq!(allowed(Allowed::EventsOnly), events);
        let nothing = [true, false, false, false, false];
        assert_eq!(allowed(Allowed::Nothing), nothing);
    }

    #[test]
    fn throughput_is_what_came_through_while_more_waited() {
        let mut now = sim::start();
        let mut line = Throughput::default();
        assert_eq!(line.time_of(1 << 30), Duration::ZERO, "nothing is known");
        for _ in 0..100 {
            line.taken(now, 16_384, true);
            now += Duration::from_millis(64);
        }
        let took = line.time_of(256_000);
        assert!(
            (took.as_secs_f64() - 1.0).abs() < 0.05,
            "256 kB/s: {took:?}"
        );
        line.taken(now, 16_384, false);
        // A minute in which nothing was to be sent says nothing.
        line.taken(now + 60 * SECOND, 16_384, true);
        let took = line.time_of(256_000);
        assert!((took.as_secs_f64() - 1.0).abs() < 0.05, "{took:?}");
        // After a stall what comes through counts again soon.
        now += 70 * SECOND;
        for _ in 0..2_000 {
            line.taken(now, 16_384, true);
            now += Duration::from_millis(1);
        }
        assert!(line.time_of(256_000) < SECOND / 10);
    }

    #[test]
    fn what_falls_behind_is_followed_in_order_only_while_the_deadline_allows() {
        let fresh = |age_ms, takes_ms| {
            let ms = Duration::from_millis;
            is_fresh(5 * SECOND, ms(age_ms), 2 * SECOND, ms(takes_ms))
        };
        assert!(fresh(5_000, 2_000), "the line carries it");
        assert!(!fresh(5_001, 0));
        assert!(fresh(300, 4_000), "half a line");
        assert!(!fresh(2_000, 4_000));
        assert!(!fresh(0, 5_000));
    }
}
