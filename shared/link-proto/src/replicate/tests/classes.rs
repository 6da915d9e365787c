//! What goes ahead of its turn: what viewers wait for, and events.

use std::time::{Duration, Instant};

use model::{SegmentNumber, StreamName};

use super::{
    pair::{Pair, ms},
    schedule::{Camera, SECOND, lags, line, p99},
};
use crate::{
    messages::{MAX_WANTED, ToEdge},
    replicate::sender::{Allowed, MAX_EVENTS, MAX_WANTS, Policy, Sender},
};

const SEGMENT_BYTES: usize = 200_000;

/// So many segments were recorded before there was a line.
fn backlog(pair: &mut Pair, stream: &StreamName, segments: u64) {
    for _ in 0..segments {
        pair.record(stream, SEGMENT_BYTES);
        pair.close(stream);
    }
}

fn has(pair: &Pair, stream: &StreamName, numbers: impl IntoIterator<Item = u64>) -> bool {
    let hub = pair.hub.streams.get(stream);
    let mut numbers = numbers.into_iter().map(SegmentNumber);
    hub.is_some_and(|hub| numbers.all(|number| hub.here.contains_key(&number)))
}

fn come(pair: &Pair, stream: &StreamName) -> usize {
    pair.hub.streams.get(stream).map_or(0, |hub| hub.here.len())
}

fn numbers(from: u64, to: u64) -> std::ops::RangeInclusive<SegmentNumber> {
    SegmentNumber(from)..=SegmentNumber(to)
}

fn ends(pair: &mut Pair, limit: Duration) {
    pair.end_all();
    assert!(pair.run(limit, |pair| pair.sender.is_done()));
    pair.assert_replicated();
}

#[test]
fn what_is_wanted_comes_before_older_backfill_and_live_stays_live() {
    let mut pair = Pair::new(1, &line(20_000_000));
    let mut camera = Camera::new(&mut pair);
    let gate = camera.stream.clone();
    backlog(&mut pair, &gate, 600);
    camera.record(&mut pair, 5 * SECOND);
    // The line is known now, and full of backfill.
    let before = pair.world.now;
    camera.record(&mut pair, 10 * SECOND);
    let asked = pair.world.now;
    let usual = p99(lags(&pair, before, asked));
    let here = come(&pair, &gate);
    assert!(here > 20, "{here}");
    // Neither among the oldest that a look lists nor among the newest; the second ask first.
    pair.want(&gate, &[430..=433, 401..=402]);
    let mut order = None;
    while order.is_none() {
        camera.record(&mut pair, ms(333));
        let all = has(&pair, &gate, (430..=433).chain(401..=402));
        order = all.then(|| pair.hub.streams[&gate].order.clone());
        assert!(pair.world.now < asked + 3 * SECOND, "what is wanted waits");
    }
    let place = |n| {
        let mut order = order.iter().flatten();
        order
            .position(|number| *number == SegmentNumber(n))
            .unwrap()
    };
    let wanted: Vec<_> = [430, 431, 432, 433, 401, 402].map(place).to_vec();
    assert!(wanted.is_sorted(), "in the order of the ask: {wanted:?}");
    assert!(!has(&pair, &gate, [here as u64 + 40]), "older ones wait");
    camera.record(&mut pair, 10 * SECOND);
    let meanwhile = p99(lags(&pair, asked, pair.world.now));
    println!("live p99 {usual:?}, then {meanwhile:?}");
    assert!(
        meanwhile <= usual + ms(50),
        "{meanwhile:?}, before {usual:?}"
    );
    assert_eq!(pair.sender.progress().want_bytes, 6 * SEGMENT_BYTES as u64);
    ends(&mut pair, 300 * SECOND);
    let recorded: usize = pair.edge.streams[&gate]
        .closed
        .values()
        .map(|(_, bytes)| bytes.len())
        .sum();
    assert_eq!(pair.media_bytes, recorded as u64, "nothing was sent twice");
}

#[test]
fn what_is_being_sent_makes_room_and_goes_on_where_it_was() {
    let mut pair = Pair::new(2, &line(2_000_000));
    let stream = pair.stream("file");
    pair.edge.streams.get_mut(&stream).unwrap().waits = true;
    backlog(&mut pair, &stream, 200);
    assert!(pair.run(60 * SECOND, |pair| come(pair, &stream) == 5));
    // Each in turn, now and then in the midst of another one.
    for wanted in [180, 190, 170, 150, 199] {
        pair.run(ms(300), |_| false);
        let asked = pair.world.now;
        pair.want(&stream, &[wanted..=wanted]);
        let there = |pair: &Pair| has(pair, &stream, [wanted]);
        assert!(pair.run(10 * SECOND, there), "{wanted}");
        // A segment takes 0.85 s of the line; what was queued in the session goes before it.
        let took = pair.world.now - asked;
        assert!(took <= 2 * SECOND, "{wanted}: {took:?}");
    }
    ends(&mut pair, 400 * SECOND);
    assert_eq!(pair.media_bytes, 200 * SEGMENT_BYTES as u64, "once");
    assert_eq!(pair.interruptions, 0);
}

#[test]
fn a_long_stretch_is_wanted_and_streams_share_what_is_wanted() {
    let mut pair = Pair::new(3, &line(20_000_000));
    let streams = ["a", "b"].map(|name| pair.stream(name));
    for stream in &streams {
        pair.edge.streams.get_mut(stream).unwrap().waits = true;
        backlog(&mut pair, stream, 400);
    }
    let [a, b] = &streams;
    assert!(pair.run(60 * SECOND, |pair| come(pair, a) >= 10));
    // More than a look lists at once.
    pair.want(a, &[300..=349]);
    pair.want(b, &[300..=349]);
    let all = |pair: &Pair| has(pair, a, 300..=349) && has(pair, b, 300..=349);
    let asked = pair.world.now;
    assert!(pair.run(60 * SECOND, all));
    let took = pair.world.now - asked;
    // 160 Mbit.
    assert!(took <= 12 * SECOND, "{took:?}");
    let order: Vec<_> = streams
        .iter()
        .map(|s| {
            pair.hub.streams[s]
                .order
                .iter()
                .filter(|n| n.0 < 200)
                .count()
        })
        .collect();
    assert!(order.iter().all(|old| *old < 40), "{order:?}");
    ends(&mut pair, 300 * SECOND);
}

/// Bytes of each stream that came as live since.
fn live_since(pair: &Pair, since: Instant) -> usize {
    pair.live_parts.iter().filter(|(at, _)| *at > since).count()
}

#[test]
fn an_event_goes_before_live_on_a_narrow_line() {
    let mut pair = Pair::new(4, &line(2_000_000));
    let mut camera = Camera::new(&mut pair);
    let gate = camera.stream.clone();
    let door = pair.stream("door");
    backlog(&mut pair, &door, 300);
    camera.record(&mut pair, 10 * SECOND);
    assert!(!has(&pair, &door, [200]));
    let marked = pair.world.now;
    assert!(pair.sender.mark_event(&door, numbers(200, 205)));
    assert!(
        !pair
            .sender
            .mark_event(&"none".parse().unwrap(), numbers(0, 1))
    );
    let mut whole = None;
    while whole.is_none() {
        camera.record(&mut pair, ms(100));
        whole = has(&pair, &door, 200..=205).then_some(pair.world.now);
        assert!(pair.world.now < marked + 20 * SECOND, "the event waits");
    }
    let took = whole.unwrap() - marked;
    // 9.6 Mbit; some live was queued in the session.
    assert!(took <= 7 * SECOND, "{took:?}");
    let live = live_since(&pair, marked + SECOND);
    assert!(live <= 1, "{live} live parts came meanwhile");
    let event = pair.sender.progress().event_bytes;
    assert_eq!(event, 6 * SEGMENT_BYTES as u64);
    // And live goes on.
    camera.record(&mut pair, 10 * SECOND);
    assert!(live_since(&pair, whole.unwrap()) > 5);
    let _ = gate;
    ends(&mut pair, 1_000 * SECOND);
}

#[test]
fn an_event_of_what_is_live_goes_before_other_cameras() {
    let mut pair = Pair::new(5, &line(2_000_000));
    let streams = ["a", "b"].map(|name| pair.stream(name));
    let [quiet, event] = &streams;
    // Before it happens, as a detector on the edge would; and it outlives the session.
    assert!(pair.sender.mark_event(event, numbers(0, 1_000)));
    for part in 0..60 {
        for stream in &streams {
            pair.record(stream, 60_000);
            if part % 6 == 5 {
                pair.close(stream);
            }
        }
        if part == 20 {
            pair.world.cut(0, 5 * SECOND);
        }
        pair.run(ms(333), |_| false);
    }
    let parts = |pair: &Pair, stream| pair.hub.streams[stream].parts;
    let (others, events) = (parts(&pair, quiet), parts(&pair, event));
    println!("{events} parts of the event, {others} of the other camera");
    assert!(events >= 2 * others, "{events} and {others}");
    ends(&mut pair, 300 * SECOND);
}

#[test]
fn where_only_events_may_go_nothing_else_does() {
    let mut pair = Pair::new(6, &line(20_000_000));
    let stream = pair.stream("gate");
    pair.sender.set_policy(Policy {
        allowed: Allowed::EventsOnly,
        ..Policy::default()
    });
    backlog(&mut pair, &stream, 200);
    assert!(pair.sender.mark_event(&stream, numbers(150, 151)));
    pair.want(&stream, &[20..=30]);
    pair.run(30 * SECOND, |_| false);
    let order = &pair.hub.streams[&stream].order;
    assert_eq!(*order, [150, 151].map(SegmentNumber));
    pair.sender.set_policy(Policy::default());
    ends(&mut pair, 300 * SECOND);
}

#[test]
fn absurd_asks_harm_nothing() {
    let mut pair = Pair::new(7, &line(20_000_000));
    let stream = pair.stream("gate");
    backlog(&mut pair, &stream, 300);
    assert!(pair.run(60 * SECOND, |pair| come(pair, &stream) >= 20));
    let unknown: StreamName = "nobodys".parse().unwrap();
    let usual = pair.sender.entries();
    for round in 0..200 {
        let all = [
            0..=u64::MAX,
            u64::MAX - 1..=u64::MAX,
            0..=19,
            1 << 40..=1 << 50,
        ];
        pair.want(&stream, &all);
        pair.want(&unknown, &all);
        // More than anybody may remember, each of another shape.
        let many: Vec<_> = (0..MAX_WANTED as u64)
            .map(|n| 1_000_000 + round * 1_000 + 2 * n..=1_000_000 + round * 1_000 + 2 * n)
            .collect();
        pair.want(&stream, &many);
        pair.run(ms(20), |_| false);
        let entries = pair.sender.entries();
        assert!(entries <= usual + 512, "{entries}, {usual} before");
    }
    ends(&mut pair, 300 * SECOND);
    assert_eq!(pair.media_bytes, 300 * SEGMENT_BYTES as u64, "once");
}

#[test]
fn asks_and_marks_are_bounded() {
    let mut sender = Sender::new();
    let stream: StreamName = "gate".parse().unwrap();
    sender.set_streams(vec![stream.clone()]);
    sender.connected();
    let before = sender.entries();
    let now = crate::sim::start();
    for n in 0..1_000 {
        assert!(sender.mark_event(&stream, numbers(10 * n, 10 * n + 1)));
        let want = ToEdge::Want {
            stream: stream.clone(),
            ranges: vec![numbers(10 * n, 10 * n + 1)],
        };
        sender.handle_message(now, want).unwrap();
    }
    assert_eq!(sender.entries() - before, MAX_EVENTS + MAX_WANTS);
    sender.disconnected();
    assert_eq!(sender.entries() - before, MAX_EVENTS, "asks end with it");
}
