//! What is seen of a session's streams while they come: what the device says of its link, how late live media is,
//! what is still missing. The session's desk writes it down, the loop reads it once a second. Nothing follows from
//! any of it: what the device says is its claim.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use link_proto::{
    messages::Report,
    replicate::{MAX_STREAMS, class::ByClass},
};
use model::{StreamName, WallTime};
use store::Backlog;

use super::{Said, StreamStatus};

/// Parts come several times a second: where none has come for so long, the newest one only grows older.
const QUIET: Duration = Duration::from_secs(2);
/// A stream whose device does not say whether it is live counts so for this long after live media came.
const LIVE_LASTS: Duration = Duration::from_secs(10);
/// A device's clock is compared anew after this: clocks drift.
const CLOCK_HOLDS: Duration = Duration::from_secs(60);
/// What is older as it comes is no late live media: it was stamped with another time than that of its recording.
const MAX_LAG: Duration = Duration::from_secs(86_400);

/// One session's; desk and loop share it.
#[derive(Debug)]
pub(super) struct Sight(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    ahead: Ahead,
    said: Option<Said>,
    /// Those that the session has opened; at most [`MAX_STREAMS`].
    streams: BTreeMap<StreamName, Stream>,
    /// As shown last, and whether that still holds.
    shown: Arc<[StreamStatus]>,
    stale: bool,
    /// What is missing is another count than was told last.
    uncounted: bool,
}

#[derive(Debug, Default)]
struct Stream {
    /// Since the channels were renewed last.
    is_open: bool,
    arrival: Option<Arrival>,
    /// As the device says.
    is_live: Option<bool>,
    by_class: ByClass,
    backlog: Backlog,
}

/// When the newest live media came, and how old it was.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Instant,
    /// None where that says nothing.
    lag: Option<Duration>,
}

/// How far the device's clock is ahead. Whatever holds a word up on its way makes that look less, so that the
/// highest of some time is nearest.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    ms: i64,
    /// None: it said so as it came, and may be better known.
    since: Option<Instant>,
}

impl Ahead {
    fn hear(&mut self, now: Instant, ms: i64) {
        let holds = self
            .since
            .is_some_and(|since| now.saturating_duration_since(since) < CLOCK_HOLDS);
        if !holds || ms >= self.ms {
            *self = Self {
                ms,
                since: Some(now),
            };
        }
    }
}

impl Sight {
    pub(super) fn new(clock_ahead_ms: i64) -> Self {
        Self(Mutex::new(Seen {
            ahead: Ahead {
                ms: clock_ahead_ms,
                since: None,
            },
            said: None,
            streams: BTreeMap::new(),
            shown: Arc::default(),
            stale: false,
            uncounted: false,
        }))
    }

    /// The stream is this device's.
    pub(super) fn open(&self, stream: &StreamName) {
        let mut seen = self.lock();
        if seen.streams.len() >= MAX_STREAMS && !seen.streams.contains_key(stream) {
            seen.streams.retain(|_, stream| stream.is_open);
        }
        seen.streams.entry(stream.clone()).or_default().is_open = true;
        seen.stale = true;
    }

    /// It is not, or no longer.
    pub(super) fn close(&self, stream: &StreamName) {
        let mut seen = self.lock();
        seen.streams.remove(stream);
        seen.stale = true;
    }

    /// The channels begin anew, and streams are opened again. Counts go on.
    pub(super) fn reset(&self) {
        let mut seen = self.lock();
        for stream in seen.streams.values_mut() {
            stream.is_open = false;
        }
    }

    /// What the device says; of streams that it has not opened, nothing is kept.
    pub(super) fn report(&self, now: Instant, wall: WallTime, report: Report) {
        let mut seen = self.lock();
        let half = report.line.rtt.unwrap_or_default() / 2;
        let way_ms = i64::try_from(half.as_millis()).unwrap_or(0);
        let ahead_ms = report.clock.0.saturating_sub(wall.0).saturating_add(way_ms);
        seen.ahead.hear(now, ahead_ms);
        let mut sent = report.sent;
        if let Some(said) = &seen.said {
            sent.raise(&said.sent);
        }
        seen.said = Some(Said {
            at: wall,
            line: report.line,
            sent,
        });
        for told in report.streams {
            if let Some(stream) = seen.streams.get_mut(&told.stream) {
                stream.is_live = Some(told.live);
                stream.by_class.raise(&told.by_class);
            }
        }
        seen.stale = true;
    }

    /// Live media up to `end`, by the device's clock, has come.
    pub(super) fn came(&self, now: Instant, wall: WallTime, stream: &StreamName, end: WallTime) {
        let mut seen = self.lock();
        let ahead_ms = seen.ahead.ms;
        let Some(stream) = seen.streams.get_mut(stream) else {
            return;
        };
        let late_ms = wall.0.saturating_sub(end.0).saturating_add(ahead_ms).max(0);
        let lag = Duration::from_millis(late_ms.unsigned_abs());
        let lag = Some(lag).filter(|lag| *lag < MAX_LAG);
        stream.arrival = Some(Arrival { at: now, lag });
        seen.stale = true;
    }

    /// What is missing has changed: to be counted once the loop says so, which is not with each message.
    pub(super) fn wants_count(&self) {
        self.lock().uncounted = true;
    }

    /// Whether what is missing should be counted now.
    pub(super) fn take_wants_count(&self) -> bool {
        std::mem::take(&mut self.lock().uncounted)
    }

    pub(super) fn lacks(&self, stream: &StreamName, backlog: Backlog) {
        let mut seen = self.lock();
        if let Some(stream) = seen.streams.get_mut(stream) {
            stream.backlog = backlog;
        }
        seen.stale = true;
    }

    /// What to show now.
    pub(super) fn look(&self, now: Instant) -> (Option<Said>, Arc<[StreamStatus]>) {
        let mut seen = self.lock();
        let ages = |stream: &Stream| stream.is_live_at(now);
        if seen.stale {
            // What grows older looks different each time.
            seen.stale = seen.streams.values().any(ages);
            let streams = seen.streams.iter();
            seen.shown = streams.map(|(name, s)| s.status(now, name)).collect();
        }
        (seen.said, Arc::clone(&seen.shown))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    fn is_live_at(&self, now: Instant) -> bool {
        let waited = |arrival: Arrival| now.saturating_duration_since(arrival.at);
        let came = self
            .arrival
            .is_some_and(|arrival| waited(arrival) < LIVE_LASTS);
        self.is_live.unwrap_or(came)
    }

    /// How late live media is; None where nothing is live.
    fn lag(&self, now: Instant) -> Option<Duration> {
        let arrival = self.arrival.filter(|_| self.is_live_at(now))?;
        let waited = now.saturating_duration_since(arrival.at);
        let grown = if waited < QUIET {
            Duration::ZERO
        } else {
            waited
        };
        Some(arrival.lag?.saturating_add(grown))
    }

    fn status(&self, now: Instant, name: &StreamName) -> StreamStatus {
        StreamStatus {
            stream: name.clone(),
            live: self.is_live_at(now),
            live_lag: self.lag(now),
            backlog: self.backlog,
            by_class: self.by_class,
        }
    }
}

#[cfg(test)]
mod tests {
    use link_proto::{
        messages::{LineReport, SentReport, StreamReport},
        replicate::class::Class,
    };

    use super::*;

    const NOON: i64 = 1_777_636_800_000;

    fn gate() -> StreamName {
        "gate".parse().unwrap()
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn report(clock: i64, stream: &StreamName, live: bool) -> Report {
        let mut by_class = ByClass::default();
        by_class.add(Class::Live, 1_000);
        Report {
            clock: WallTime(clock),
            line: LineReport {
                rtt: Some(Duration::from_millis(100)),
                ..LineReport::default()
            },
            sent: SentReport {
                bytes: 2_000,
                by_class,
                ..SentReport::default()
            },
            streams: vec![StreamReport {
                stream: stream.clone(),
                live,
                by_class,
            }],
        }
    }

    #[test]
    fn lag_is_told_by_the_hubs_clock_whatever_the_devices_shows() {
        let (start, day_ms) = (Instant::now(), 86_400_000);
        let sight = Sight::new(day_ms);
        sight.open(&gate());
        // Its clock is a day ahead; what it says is 50 ms on its way.
        sight.report(
            start,
            WallTime(NOON),
            report(NOON + day_ms - 50, &gate(), true),
        );
        sight.came(
            start,
            WallTime(NOON),
            &gate(),
            WallTime(NOON + day_ms - 400),
        );
        let lag = |now| sight.look(now).1[0].live_lag;
        assert_eq!(lag(start), Some(Duration::from_millis(400)));
        // A word that was held up for seconds says less of the clock, and is not believed.
        sight.report(
            start,
            WallTime(NOON + 5_000),
            report(NOON + day_ms, &gate(), true),
        );
        sight.came(
            start,
            WallTime(NOON + 1_000),
            &gate(),
            WallTime(NOON + day_ms + 700),
        );
        assert_eq!(lag(start), Some(Duration::from_millis(300)));
        // Nothing comes any more: what is here grows old.
        assert_eq!(lag(start + seconds(1)), Some(Duration::from_millis(300)));
        assert_eq!(lag(start + seconds(9)), Some(Duration::from_millis(9_300)));
        // The camera is off.
        let off = report(NOON + day_ms + 9_950, &gate(), false);
        sight.report(start + seconds(10), WallTime(NOON + 10_000), off);
        assert_eq!(lag(start + seconds(10)), None);
    }

    #[test]
    fn what_is_stamped_with_another_day_is_live_without_a_lag() {
        let start = Instant::now();
        let sight = Sight::new(0);
        sight.open(&gate());
        sight.report(start, WallTime(NOON), report(NOON - 50, &gate(), true));
        let shown = |end| {
            sight.came(start, WallTime(NOON), &gate(), WallTime(end));
            sight.look(start).1[0].clone()
        };
        let old = shown(NOON - 86_400_000);
        assert_eq!((old.live, old.live_lag), (true, None));
        assert_eq!(shown(NOON - 86_300_000).live_lag, Some(seconds(86_300)));
    }

    #[test]
    fn a_device_that_says_nothing_has_no_live_stream_for_long() {
        let start = Instant::now();
        let sight = Sight::new(0);
        sight.open(&gate());
        sight.came(start, WallTime(NOON), &gate(), WallTime(NOON - 100));
        let shown = |now| sight.look(now).1[0].clone();
        assert!(shown(start).live);
        assert!(shown(start + seconds(9)).live);
        assert!(!shown(start + seconds(10)).live);
    }

    #[test]
    fn claims_about_streams_of_others_are_not_kept_and_counts_never_go_back() {
        let start = Instant::now();
        let sight = Sight::new(0);
        let yard: StreamName = "yard".parse().unwrap();
        sight.report(start, WallTime(NOON), report(NOON, &yard, true));
        sight.came(start, WallTime(NOON), &yard, WallTime(NOON));
        sight.lacks(&yard, Backlog::default());
        assert!(sight.look(start).1.is_empty());
        sight.open(&gate());
        sight.report(start, WallTime(NOON), report(NOON, &gate(), true));
        let mut less = report(NOON, &gate(), true);
        less.sent = SentReport::default();
        less.streams[0].by_class = ByClass::default();
        sight.report(start, WallTime(NOON), less);
        let (said, streams) = sight.look(start);
        assert_eq!(said.unwrap().sent.bytes, 2_000);
        assert_eq!(streams[0].by_class.get(Class::Live), 1_000);
        sight.reset();
        sight.open(&gate());
        assert_eq!(
            sight.look(start).1,
            streams,
            "renewed channels change nothing"
        );
        sight.close(&gate());
        assert!(sight.look(start).1.is_empty());
    }

    #[test]
    fn streams_are_bounded_however_often_channels_are_renewed() {
        let start = Instant::now();
        let sight = Sight::new(0);
        for round in 0..3 {
            sight.reset();
            for n in 0..MAX_STREAMS {
                sight.open(&format!("cam-{round}-{n}").parse().unwrap());
            }
        }
        let shown = sight.look(start).1;
        assert_eq!(shown.len(), MAX_STREAMS);
        assert!(shown.iter().all(|s| s.stream.as_str().starts_with("cam-2")));
    }
}
