//! What goes when, over real sessions on simulated lines: too slow ones, cut ones, shared ones.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use model::{SegmentNumber, StreamName};

use super::pair::{Pair, ms};
use crate::{
    replicate::sender::{DEFAULT_LIVE_DEADLINE, Policy},
    sim::Line,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Three parts a second, six to a segment.
pub(super) const PART_TIME: Duration = ms(333);
const PARTS: u64 = 6;
/// A camera of 4 Mbit/s.
const PART_BYTES: usize = 166_500;

pub(super) fn line(rate_bps: u64) -> Line {
    Line {
        delay: ms(40),
        rate_bps: Some(rate_bps),
        ..Line::default()
    }
}

/// A camera on a stream, and what its viewers have.
pub(super) struct Camera {
    pub(super) stream: StreamName,
    parts: u64,
    /// When each segment was whole on the edge.
    closed: BTreeMap<SegmentNumber, Instant>,
    /// How old the newest media at the hub was at most, and the end of the live list.
    oldest: Duration,
    oldest_list: Duration,
}

impl Camera {
    pub(super) fn new(pair: &mut Pair) -> Self {
        Self {
            stream: pair.stream("gate"),
            parts: 0,
            closed: BTreeMap::new(),
            oldest: Duration::ZERO,
            oldest_list: Duration::ZERO,
        }
    }

    /// Records for so long, and looks at the live list meanwhile.
    pub(super) fn record(&mut self, pair: &mut Pair, time: Duration) {
        let until = pair.world.now + time;
        while pair.world.now < until {
            pair.record(&self.stream, PART_BYTES);
            self.parts += 1;
            if self.parts.is_multiple_of(PARTS) {
                let number = pair.edge.streams[&self.stream].written().unwrap().0;
                pair.close(&self.stream);
                self.closed.insert(number, pair.world.now);
            }
            let next = pair.world.now + PART_TIME;
            while pair.world.now < next {
                pair.run((next - pair.world.now).min(ms(20)), |_| false);
                self.look(pair);
            }
        }
    }

    fn look(&mut self, pair: &Pair) {
        let hub = pair.hub.streams.get(&self.stream);
        if let Some(last) = hub.and_then(|hub| hub.listed.last()) {
            let age = pair.world.now - self.closed[last];
            self.oldest_list = self.oldest_list.max(age);
        }
        if let Some(edge) = pair.live_edge.get(&self.stream) {
            self.oldest = self.oldest.max(pair.world.now - *edge);
        }
    }
}

pub(super) fn p99(mut all: Vec<Duration>) -> Duration {
    assert!(all.len() >= 20, "{} samples", all.len());
    all.sort();
    all[all.len() * 99 / 100]
}

pub(super) fn lags(pair: &Pair, from: Instant, to: Instant) -> Vec<Duration> {
    let within = |at: Instant| from <= at && at < to;
    let parts = pair.live_parts.iter().filter(|(at, _)| within(*at));
    parts.map(|(_, lag)| *lag).collect()
}

#[test]
fn on_half_a_line_live_stays_live_and_the_rest_comes_later() {
    for (seed, rate_bps) in [
        (1, 2_000_000),
        (2, 2_000_000),
        (3, 2_800_000),
        (4, 3_600_000),
    ] {
        let mut pair = Pair::new(seed, &line(rate_bps));
        let mut camera = Camera::new(&mut pair);
        camera.record(&mut pair, 90 * SECOND);
        let lag = DEFAULT_LIVE_DEADLINE + 2 * SECOND;
        println!(
            "{rate_bps}: the newest media was {:?} old at most, the list's end {:?}; {:?}",
            camera.oldest,
            camera.oldest_list,
            pair.sender.progress()
        );
        assert!(camera.oldest <= lag, "{rate_bps}: {:?}", camera.oldest);
        // Only whole segments are listed: one is missed and one is under way.
        assert!(
            camera.oldest_list <= lag + 4 * SECOND,
            "{rate_bps}: {:?}",
            camera.oldest_list
        );
        let now = pair.world.now;
        let late = lags(&pair, pair.world.start, now).into_iter().max();
        assert!(late <= Some(lag), "{rate_bps}: {late:?}");
        let listed = pair.hub.streams[&camera.stream].listed.len() as u64;
        assert!(
            listed * PARTS * 2 * 4_000_000 >= camera.parts * rate_bps,
            "{listed}"
        );
        // The camera stops.
        pair.end_all();
        let done = |pair: &Pair| pair.sender.is_done();
        assert!(pair.run(300 * SECOND, done));
        pair.assert_replicated();
        assert_eq!(pair.media_bytes, camera.parts * PART_BYTES as u64, "once");
    }
}

#[test]
fn after_a_cut_live_is_there_at_once_and_backfill_takes_what_it_leaves() {
    let rate_bps = 20_000_000;
    let mut pair = Pair::new(5, &line(rate_bps));
    let mut camera = Camera::new(&mut pair);
    camera.record(&mut pair, 5 * SECOND);
    let steady = pair.world.now;
    camera.record(&mut pair, 30 * SECOND);
    pair.world.cut(0, 60 * SECOND);
    let back = pair.world.now + 60 * SECOND;
    let usual = p99(lags(&pair, steady, pair.world.now));
    let listed = |pair: &Pair| pair.hub.streams[&camera.stream].listed.clone();
    let before = listed(&pair);
    camera.record(&mut pair, 60 * SECOND);
    let down = pair.world.now;
    camera.record(&mut pair, 5 * SECOND);
    let since = |lag: Duration| {
        let mut parts = pair.live_parts.iter();
        let first = parts.find(|(at, l)| *at > down && *l < lag);
        first.unwrap().0 - back
    };
    let (first, caught_up) = (since(3 * SECOND), since(SECOND / 2));
    assert!(first <= 2 * SECOND, "{first:?}");
    // Not one segment of the hole is listed before what is live, nor waited for.
    let hub = &pair.hub.streams[&camera.stream];
    let next = hub.listed[before.len()];
    assert!(next.0 > before.last().unwrap().0 + 25, "{next}");
    assert!(
        hub.here.len() < camera.closed.len() - 10,
        "backfill goes on"
    );
    // Until the hole is filled.
    let mut filled = None;
    while filled.is_none() {
        camera.record(&mut pair, SECOND);
        let hub = &pair.hub.streams[&camera.stream];
        let lacks = |number: &&SegmentNumber| !hub.here.contains_key(number);
        filled = camera
            .closed
            .keys()
            .filter(|n| **n < next)
            .find(lacks)
            .is_none()
            .then_some(pair.world.now);
        assert!(pair.world.now < back + 60 * SECOND, "it is never filled");
    }
    let backfill: Vec<_> = pair.backfill.iter().filter(|(at, _)| *at > back).collect();
    let (began, ended) = (backfill[0].0, backfill[backfill.len() - 1].0);
    let bytes: usize = backfill.iter().map(|(_, bytes)| bytes).sum();
    let rate = bytes as f64 * 8.0 / (ended - began).as_secs_f64();
    // Live takes 4 Mbit/s, and its headers.
    let spare = rate_bps as f64 - 4_000_000.0 * 1.06;
    // A second later the line is known again.
    let meanwhile = p99(lags(&pair, back + caught_up + SECOND, ended));
    println!(
        "first live part after {first:?}, all of them after {caught_up:?}; backfill {:.2} of {:.2} Mbit/s from {:?} on for {:?}; p99 {usual:?}, then {meanwhile:?}",
        rate / 1e6,
        spare / 1e6,
        began - back,
        ended - began
    );
    assert!(rate >= 0.85 * spare, "{rate} of {spare}");
    assert!(
        meanwhile <= usual + ms(50),
        "{meanwhile:?}, before {usual:?}"
    );
    pair.end_all();
    let done = |pair: &Pair| pair.sender.is_done();
    assert!(pair.run(60 * SECOND, done));
    pair.assert_replicated();
}

#[test]
fn a_line_that_collapses_costs_no_segment() {
    for seed in 0..4 {
        let mut pair = Pair::new(seed, &line(20_000_000));
        let mut camera = Camera::new(&mut pair);
        camera.record(&mut pair, 11 * SECOND);
        pair.world.edges[0].up.rate_bps = Some(400_000);
        camera.record(&mut pair, 40 * SECOND);
        assert!(pair.sender.progress().segments_demoted > 0);
        // What was under way at the old rate is let go of, for what is live now.
        assert!((1..=4).contains(&pair.renewals), "{}", pair.renewals);
        pair.world.edges[0].up.rate_bps = Some(20_000_000);
        camera.record(&mut pair, 20 * SECOND);
        let last = *pair.hub.streams[&camera.stream].listed.last().unwrap();
        let age = pair.world.now - camera.closed[&last];
        assert!(age <= 3 * SECOND, "live again: {age:?}");
        pair.end_all();
        let done = |pair: &Pair| pair.sender.is_done();
        assert!(pair.run(120 * SECOND, done), "seed {seed}");
        pair.assert_replicated();
    }
}

#[test]
fn backlogs_share_the_line_by_weight_and_none_starves() {
    let mut pair = Pair::new(7, &line(10_000_000));
    let streams = ["heavy", "light", "small"].map(|name| pair.stream(name));
    let [heavy, light, small] = &streams;
    let backlog = |pair: &mut Pair, stream: &StreamName, segments: usize| {
        pair.edge.streams.get_mut(stream).unwrap().waits = true;
        for _ in 0..segments {
            pair.record(stream, 100_000);
            pair.close(stream);
        }
    };
    pair.sender.set_policy(Policy {
        weights: BTreeMap::from([(heavy.clone(), 3)]),
        ..Policy::default()
    });
    backlog(&mut pair, heavy, 300);
    backlog(&mut pair, light, 300);
    let stored = |pair: &Pair, stream: &StreamName| {
        pair.hub.streams.get(stream).map_or(0, |hub| hub.here.len())
    };
    let some = |pair: &Pair| stored(pair, heavy) + stored(pair, light) >= 200;
    assert!(pair.run(60 * SECOND, some));
    let (three, one) = (stored(&pair, heavy), stored(&pair, light));
    assert!(
        (145..=155).contains(&three) && one >= 45,
        "{three} and {one}"
    );
    // What comes now is not behind all that was there before.
    backlog(&mut pair, small, 10);
    let before = pair.world.now;
    assert!(pair.run(60 * SECOND, |pair| stored(pair, small) == 10));
    let took = pair.world.now - before;
    // A fifth of the line, and a second for what was begun.
    assert!(took <= 6 * SECOND, "{took:?}");
    pair.end_all();
    assert!(pair.run(120 * SECOND, |pair| pair.sender.is_done()));
    pair.assert_replicated();
}
