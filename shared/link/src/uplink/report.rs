//! When an edge tells its hub how the link stands, and of which streams. What is told changes nothing there.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use link_proto::{
    SessionStats,
    messages::{LineReport, MAX_REPORTED_STREAMS, Report, SentReport, StreamReport, ToHub},
    replicate::{
        class::{ByClass, Class},
        sender::Sender,
    },
};
use model::{StreamName, WallTime};

/// The hub is told this often while something is sent.
const INTERVAL: Duration = Duration::from_secs(1);
/// And this often while nothing changes: ten thousand idle devices are to cost a hub next to nothing.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// A report takes one part of so many of what the line carries.
const SHARE: u64 = 100;
/// What a message costs on the wire beside its bytes.
const WIRE_OVERHEAD: u64 = 100;

/// One session's reports.
#[derive(Debug)]
pub(super) struct Reporter {
    /// The next one is not said before this.
    not_before: Instant,
    /// And after this even where nothing has changed.
    idle_until: Instant,
    /// What was told of each stream; as many as the sender has.
    told: BTreeMap<StreamName, (bool, ByClass)>,
    /// The stream told of last.
    turn: Option<StreamName>,
    control_bytes: u64,
}

impl Reporter {
    /// A session begins.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            not_before: now,
            idle_until: now,
            told: BTreeMap::new(),
            turn: None,
            control_bytes: 0,
        }
    }

    /// A message went by the control channel.
    pub(super) fn count_control(&mut self, bytes: usize) {
        self.control_bytes += bytes as u64;
    }

    /// How the link stands, with all streams; the clock is not read.
    pub(super) fn whole(&self, stats: &SessionStats, sender: &Sender) -> Report {
        let streams: Vec<_> = sender
            .sent()
            .map(|(stream, live, by_class)| StreamReport {
                stream: stream.clone(),
                live,
                by_class,
            })
            .collect();
        let mut by_class = ByClass::default();
        by_class.add(Class::Control, self.control_bytes);
        for (class, count) in streams.iter().flat_map(|stream| stream.by_class.iter()) {
            by_class.add(class, count);
        }
        Report {
            clock: WallTime::default(),
            line: LineReport::of(stats),
            sent: SentReport::of(stats, by_class),
            streams,
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before <= now
    }

    /// The message to say now, if there is a reason. `whole` is as [`Reporter::whole`] gave it.
    pub(super) fn next(
        &mut self,
        now: Instant,
        mut whole: Report,
        clock: impl FnOnce() -> WallTime,
    ) -> Option<ToHub> {
        self.not_before = now + INTERVAL;
        let known = |s: &StreamReport| self.told.get(&s.stream) == Some(&(s.live, s.by_class));
        let (same, mut changed): (Vec<_>, Vec<_>) = whole.streams.into_iter().partition(known);
        if changed.is_empty() && now < self.idle_until {
            return None;
        }
        // They come by name; those behind the last one go first.
        let behind = |s: &StreamReport| self.turn.as_ref().is_some_and(|turn| s.stream <= *turn);
        let first = changed.partition_point(behind);
        changed.rotate_left(first);
        changed.truncate(MAX_REPORTED_STREAMS);
        self.turn = changed.last().map(|stream| stream.stream.clone());
        self.told.retain(|name, _| {
            let named = |s: &StreamReport| s.stream == *name;
            same.iter().any(named) || changed.iter().any(named)
        });
        for stream in &changed {
            let told = (stream.live, stream.by_class);
            self.told.insert(stream.stream.clone(), told);
        }
        self.idle_until = now + IDLE_INTERVAL;
        whole.streams = changed;
        whole.clock = clock();
        Some(ToHub::Report(whole))
    }

    /// It was said in so many bytes, on a line that is paced to so much: when the next one may be.
    pub(super) fn said(&mut self, now: Instant, bytes: usize, rate_bps: u64) {
        let bits = (bytes as u64 + WIRE_OVERHEAD) * 8;
        let wait = Duration::from_millis(bits * SHARE * 1_000 / rate_bps.max(1));
        self.not_before = now + wait.clamp(INTERVAL, IDLE_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: WallTime = WallTime(1_777_636_800_000);

    fn streams(sent: impl Iterator<Item = (usize, u64)>) -> Report {
        let streams = sent.map(|(n, bytes)| {
            let mut by_class = ByClass::default();
            by_class.add(Class::Live, bytes);
            StreamReport {
                stream: format!("cam-{n:03}").parse().unwrap(),
                live: true,
                by_class,
            }
        });
        Report {
            streams: streams.collect(),
            ..Report::default()
        }
    }

    fn names(message: Option<ToHub>) -> Vec<String> {
        match message {
            None => Vec::new(),
            Some(ToHub::Report(report)) => {
                assert_eq!(report.clock, WALL);
                let names = report.streams.iter().map(|s| s.stream.to_string());
                names.collect()
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_idle_link_is_told_of_once_a_minute() {
        let start = Instant::now();
        let mut reporter = Reporter::new(start);
        let mut said = Vec::new();
        for second in 0..200 {
            let now = start + Duration::from_secs(second);
            assert!(reporter.is_due(now));
            // Sends for ten seconds.
            let whole = streams([(1, second.min(10))].into_iter());
            if reporter.next(now, whole, || WALL).is_some() {
                said.push(second);
            }
        }
        let busy: Vec<u64> = (0..=10).chain([70, 130, 190]).collect();
        assert_eq!(said, busy);
    }

    #[test]
    fn many_streams_are_told_of_in_turns() {
        let mut now = Instant::now();
        let mut reporter = Reporter::new(now);
        let mut told = BTreeMap::new();
        for round in 0..16 {
            let whole = streams((0..256).map(|n| (n, round)));
            let names = names(reporter.next(now, whole, || WALL));
            assert_eq!(names.len(), MAX_REPORTED_STREAMS);
            for name in names {
                *told.entry(name).or_insert(0) += 1;
            }
            now += INTERVAL;
        }
        assert_eq!(told.len(), 256);
        assert!(told.values().all(|&times| times == 1), "{told:?}");
    }

    #[test]
    fn a_report_takes_a_hundredth_of_the_line() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        for (rate_bps, wait) in [(100_000_000, 1), (64_000, 5), (1, 60)] {
            reporter.said(now, 300, rate_bps);
            assert!(!reporter.is_due(now + Duration::from_millis(999 * wait)));
            assert!(
                reporter.is_due(now + Duration::from_secs(wait)),
                "{rate_bps}"
            );
        }
    }
}
