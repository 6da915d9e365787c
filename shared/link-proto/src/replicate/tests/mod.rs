//! Both halves over model stores: first a line that keeps everything, then one that breaks everything.

mod absurd;
mod classes;
mod day;
mod identity;
mod over_sessions;
mod pair;
mod properties;
mod schedule;
mod stores;
mod world;

use model::{HoleReason, RangeSet, SegmentHash, SegmentNumber, StreamName};

use crate::{
    Channel,
    messages::{MAX_RANGES, MAX_RESTAMPED, ToHub},
    replicate::{MAX_STREAMS, receiver::Receiver, sender::Sender},
};
use world::World;

/// Every segment that is on the edge is on the hub, hash for hash, but for those given up as corrupt.
fn assert_replicated(world: &World) {
    for (name, edge) in &world.edge.streams {
        let hub = &world.hub.streams[name];
        for (number, (info, bytes)) in &edge.closed {
            if hub.corrupt.contains(*number) {
                let reason = Some(&HoleReason::Corrupt);
                assert_eq!(edge.given_up.get(number), reason, "{name} {number}");
                assert!(
                    !edge.stored.contains(*number),
                    "{name} {number} is not there"
                );
                continue;
            }
            let there = hub.here.get(number).map(|(info, bytes)| (info, bytes));
            assert_eq!(there, Some((info, bytes)), "{name} {number}");
            assert!(edge.stored.contains(*number), "{name} {number} not marked");
        }
        assert_eq!(hub.partials.len(), 0, "{name}: partials are left");
        assert_eq!(hub.ended, edge.ending, "{name}");
        assert_eq!(edge.ended_on_hub, edge.ending.is_some(), "{name}");
    }
    assert_eq!(world.hub.offered_again, 0, "settled segments were shipped");
    assert!(world.sender.is_done());
}

fn record(world: &mut World, stream: &StreamName, parts: usize, part_bytes: usize) {
    for _ in 0..parts {
        let bytes = world.random.bytes(part_bytes);
        world.edge.streams.get_mut(stream).unwrap().part(&bytes);
        world.sender.changed();
    }
}

fn close(world: &mut World, stream: &StreamName) {
    world.edge.streams.get_mut(stream).unwrap().close();
    world.sender.changed();
}

#[test]
fn a_backlog_is_announced_then_shipped_in_order_and_ended() {
    let mut world = World::new(1);
    let gate = world.stream("gate");
    world.edge.streams.get_mut(&gate).unwrap().waits = true;
    for _ in 0..300 {
        record(&mut world, &gate, 2, 500);
        close(&mut world, &gate);
    }
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_replicated(&world);
    let hub = &world.hub.streams[&gate];
    assert!(hub.order.is_sorted());
    assert_eq!(hub.announced.count(), 300);
    let mut announced = RangeSet::new();
    for message in &world.messages {
        match message {
            ToHub::Announce { segments, .. } => {
                segments
                    .iter()
                    .for_each(|info| announced.insert(info.number));
            }
            ToHub::SegmentStart(start) => assert!(announced.contains(start.number)),
            _ => {}
        }
    }
}

#[test]
fn what_is_live_goes_part_by_part_before_the_segment_closes() {
    let mut world = World::new(2);
    let gate = world.stream("gate");
    for segment in 0..5 {
        for part in 1..=4 {
            record(&mut world, &gate, 1, 40_000);
            world.settle();
            let hub = &world.hub.streams[&gate];
            assert_eq!(hub.parts, segment * 4 + part);
            let there = hub.partials.get(&SegmentNumber(segment)).map(Vec::len);
            assert_eq!(there, Some(40_000 * part as usize));
        }
        close(&mut world, &gate);
        world.settle();
        assert_eq!(world.hub.streams[&gate].here.len() as u64, segment + 1);
    }
    // Three chunks a part: nothing was sent twice.
    assert_eq!(world.media_messages, 5 * 4 * 3);
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.sender.changed();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn a_cut_costs_no_byte_that_the_hub_has() {
    let mut world = World::new(3);
    let gate = world.stream("gate");
    record(&mut world, &gate, 8, 16 * 1024);
    world.settle();
    assert_eq!(world.media_messages, 8);
    world.reset();
    record(&mut world, &gate, 1, 16 * 1024);
    close(&mut world, &gate);
    world.settle();
    assert_eq!(world.media_messages, 9, "it went on where it was");
    // A beginning that is not the edge's goes again from nought.
    record(&mut world, &gate, 2, 16 * 1024);
    world.settle();
    let hub = world.hub.streams.get_mut(&gate).unwrap();
    hub.partials.get_mut(&SegmentNumber(1)).unwrap()[0] ^= 1;
    world.reset();
    close(&mut world, &gate);
    world.settle();
    assert_eq!(world.media_messages, 13);
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.sender.changed();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn bytes_that_fail_their_hash_are_asked_for_once_more_then_given_up() {
    let mut world = World::new(4);
    let gate = world.stream("gate");
    world.corrupt_one_in = 1;
    for _ in 0..2 {
        record(&mut world, &gate, 1, 1_000);
        close(&mut world, &gate);
    }
    world.settle();
    let hub = &world.hub.streams[&gate];
    assert_eq!((hub.here.len(), hub.corrupt.count()), (0, 2));
    assert_eq!(world.media_messages, 4);
    world.corrupt_one_in = 0;
    record(&mut world, &gate, 1, 1_000);
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.sender.changed();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn a_full_disk_at_the_hub_is_waited_out() {
    let mut world = World::new(5);
    let gate = world.stream("gate");
    world.hub.disk_full = true;
    record(&mut world, &gate, 3, 1_000);
    close(&mut world, &gate);
    while world.sender.poll_timeout().is_none() {
        assert!(world.step());
    }
    assert!(world.sender.poll_timeout() > Some(world.now + std::time::Duration::from_secs(4)));
    world.hub.disk_full = false;
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn a_refused_stream_stops_alone_and_is_offered_again_later() {
    let mut world = World::new(6);
    let (mine, theirs) = (world.stream("mine"), world.stream("theirs"));
    world.hub.foreign.push(theirs.clone());
    for stream in [&mine, &theirs] {
        record(&mut world, stream, 2, 1_000);
        world.edge.streams.get_mut(stream).unwrap().end();
    }
    world.settle();
    assert_eq!(world.hub.streams[&mine].here.len(), 1);
    let refused: Vec<_> = world.sender.refused().collect();
    assert_eq!(refused, [(&theirs, "it belongs to another device")]);
    assert!(world.sender.is_done(), "nothing more can be done now");
    // The operator gives it away.
    world.hub.foreign.clear();
    world.now = world.sender.poll_timeout().unwrap();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn evicted_segments_become_holes_and_the_end_does_not_wait_for_them() {
    let mut world = World::new(7);
    let gate = world.stream("gate");
    for _ in 0..6 {
        record(&mut world, &gate, 1, 1_000);
        close(&mut world, &gate);
    }
    let edge = world.edge.streams.get_mut(&gate).unwrap();
    (0..3).for_each(|_| edge.evict());
    edge.end();
    world.settle();
    assert_replicated(&world);
    let holes: Vec<_> = world.hub.streams[&gate].holes.iter().collect();
    assert_eq!(holes, [SegmentNumber(0)..=SegmentNumber(2)]);
}

#[test]
fn thousands_of_settled_ranges_come_page_by_page() {
    let mut world = World::new(8);
    let gate = world.stream("gate");
    for _ in 0..3 * MAX_RANGES * 2 {
        record(&mut world, &gate, 1, 10);
        close(&mut world, &gate);
    }
    // The hub has every other segment.
    let hub = world.hub.streams.entry(gate.clone()).or_default();
    for (&number, segment) in &world.edge.streams[&gate].closed {
        if number.0 % 2 == 0 {
            hub.here.insert(number, segment.clone());
        }
    }
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_replicated(&world);
    let pages = |m: &&ToHub| matches!(m, ToHub::SettledNext { .. });
    assert_eq!(world.messages.iter().filter(pages).count(), 2);
    assert_eq!(world.media_messages as usize, 3 * MAX_RANGES);
}

#[test]
fn streams_take_turns() {
    let mut world = World::new(9);
    let streams = [world.stream("a"), world.stream("b"), world.stream("c")];
    world.settle();
    for stream in &streams {
        world.edge.streams.get_mut(stream).unwrap().waits = true;
        for _ in 0..20 {
            record(&mut world, stream, 1, 1_000);
            close(&mut world, stream);
        }
        world.edge.streams.get_mut(stream).unwrap().end();
    }
    world.settle();
    assert_replicated(&world);
    let mut started = [0i32; 3];
    for message in &world.messages {
        if let ToHub::SegmentStart(start) = message {
            let index = streams.iter().position(|s| *s == start.stream).unwrap();
            started[index] += 1;
            let ahead = started.iter().max().unwrap() - started.iter().min().unwrap();
            assert!(ahead <= 2, "{started:?}");
        }
    }
}

#[test]
fn an_empty_stream_ends_and_too_many_streams_are_left_out() {
    let mut world = World::new(10);
    let empty = world.stream("empty");
    world.edge.streams.get_mut(&empty).unwrap().end();
    world.settle();
    assert_replicated(&world);
    let names = (0..MAX_STREAMS + 2).map(|i| format!("s{i}").parse().unwrap());
    assert_eq!(Sender::new().set_streams(names.collect()).len(), 2);
}

#[test]
fn an_edge_that_breaks_the_order_is_named() {
    let mut receiver = Receiver::new();
    let stream: StreamName = "gate".parse().unwrap();
    let open = ToHub::StreamOpen {
        stream: stream.clone(),
    };
    let end = ToHub::StreamEnd { stream, last: None };
    assert_eq!(
        receiver
            .handle_message(Channel::Control, end)
            .unwrap_err()
            .to_string(),
        "a stream that was not opened came where it may not"
    );
    assert!(
        receiver
            .handle_message(Channel::Control, open)
            .unwrap()
            .is_some()
    );
    assert_eq!(
        receiver
            .handle_message(Channel::Control, ToHub::EnrolConfirm)
            .unwrap_err()
            .to_string(),
        "enrolment came where it may not"
    );
}

/// The edge's clock is corrected, seconds to years either way.
fn correct(world: &mut World) {
    let by_ms = 1 << world.random.below(40);
    for edge in world.edge.streams.values_mut() {
        edge.correct(by_ms);
    }
    world.sender.changed();
}

#[test]
fn corrected_wall_times_are_told_page_by_page_and_only_once() {
    let mut world = World::new(11);
    let gate = world.stream("gate");
    for _ in 0..2 * MAX_RESTAMPED + 10 {
        record(&mut world, &gate, 1, 10);
        close(&mut world, &gate);
    }
    world.settle();
    let told = |world: &World| {
        let told = world.messages.iter().filter_map(|m| match m {
            ToHub::Restamp { segments, .. } => Some(segments.len()),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    assert!(told(&world).is_empty());
    correct(&mut world);
    // The hub's word on the first page is lost with the session.
    while told(&world).is_empty() {
        assert!(world.step());
    }
    world.reset();
    world.settle();
    assert_eq!(told(&world), [256, 256, 256, 10]);
    assert!(world.edge.streams[&gate].restamped.is_empty());
    // What the hub never had is announced with its right time.
    record(&mut world, &gate, 1, 10);
    correct(&mut world);
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_replicated(&world);
}

/// One story: an edge that records two streams while everything breaks; then all is well and must be whole.
fn troubled(seed: u64) {
    let mut world = World::new(seed);
    let streams = [world.stream("cam-1"), world.stream("cam-2")];
    world.corrupt_one_in = if seed.is_multiple_of(3) { 200 } else { 0 };
    for _ in 0..1_500 {
        for _ in 0..world.random.below(8) {
            world.step();
        }
        let stream = &streams[world.random.below(2) as usize].clone();
        match world.random.below(60) {
            0..20 => {
                let length = 1 + world.random.below(60_000) as usize;
                record(&mut world, stream, 1, length);
            }
            20..26 => close(&mut world, stream),
            26 => world.reset(),
            27 if world.random.one_in(3) => {
                let (lose, jump) = (world.random.below(3) as usize, world.random.below(3) * 500);
                for edge in world.edge.streams.values_mut() {
                    edge.restart(lose, jump);
                }
                world.restart_edge();
            }
            28 if world.random.one_in(3) => {
                let lose = world.random.below(70_000) as usize;
                world.restart_hub(lose);
            }
            29 if seed.is_multiple_of(5) && world.random.one_in(3) => {
                world.edge.streams.get_mut(stream).unwrap().evict();
                world.sender.changed();
            }
            30 => world.hub.disk_full = world.random.one_in(4),
            31 if world.random.one_in(3) => correct(&mut world),
            _ => {}
        }
    }
    world.corrupt_one_in = 0;
    world.hub.disk_full = false;
    for edge in world.edge.streams.values_mut() {
        edge.end();
    }
    world.sender.changed();
    world.settle();
    assert_replicated(&world);
}

#[test]
fn whatever_breaks_the_hub_gets_every_segment_once() {
    for seed in 0..150 {
        troubled(seed);
    }
}
