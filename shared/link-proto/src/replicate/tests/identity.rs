//! Boxes whose numbers, streams or disks are not what the hub remembers: restored, moved, wiped, doubled.

use std::collections::BTreeSet;

use super::{
    stores::{EdgeStore, EdgeStream},
    world::World,
    *,
};
use crate::replicate::sender::MAX_ANNOUNCED_AHEAD;

fn some(world: &mut World, stream: &StreamName, segments: usize) {
    for _ in 0..segments {
        record(world, stream, 1, 700);
        close(world, stream);
    }
}

/// Another box comes with the same name: the edge's program and disk are others.
fn swap(world: &mut World, mut edge: EdgeStore) -> EdgeStore {
    std::mem::swap(&mut world.edge, &mut edge);
    world.restart_edge();
    edge
}

/// Hashes of all that a box has.
fn hashes(edge: &EdgeStore, stream: &StreamName) -> BTreeSet<[u8; 32]> {
    let closed = edge.streams[stream].closed.values();
    closed.map(|(info, _)| info.hash.0).collect()
}

/// The hub has every byte of these, each under a number of its own, and waits for nothing.
fn assert_all_there(world: &World, stream: &StreamName, wanted: &BTreeSet<[u8; 32]>) {
    let hub = &world.hub.streams[stream];
    let mut there = BTreeSet::new();
    for (number, (info, bytes)) in &hub.here {
        assert_eq!(SegmentHash::of(bytes), info.hash, "{number}");
        assert!(there.insert(info.hash.0), "{number} is there twice");
    }
    assert!(wanted.is_subset(&there), "bytes are missing at the hub");
    assert_eq!(hub.waiting(), [], "the hub waits for what never comes");
    let edge = &world.edge.streams[stream];
    for (number, (info, _)) in &edge.closed {
        if edge.stored.contains(*number) {
            assert_eq!(hub.here.get(number).map(|(i, _)| i.hash), Some(info.hash));
        }
    }
}

/// Segments that the edge has are at the hub in the order in which they were recorded.
fn assert_in_order(world: &World, stream: &StreamName) {
    let closed = world.edge.streams[stream].closed.values();
    let walls: Vec<_> = closed.map(|(info, _)| info.wall_start).collect();
    assert!(walls.is_sorted(), "{walls:?}");
}

#[test]
fn a_restored_image_loses_nothing_of_either_life() {
    for (before, first, second) in [(5, 20, 7), (5, 7, 200), (0, 3, 3), (300, 150, 70)] {
        let mut world = World::new(before as u64);
        let gate = world.stream("gate");
        some(&mut world, &gate, before);
        world.settle();
        let image = EdgeStream::restore(&world.edge.streams[&gate]);
        some(&mut world, &gate, first);
        world.settle();
        let first_life = hashes(&world.edge, &gate);
        let mut restored = EdgeStore::default();
        restored.streams.insert(gate.clone(), image);
        swap(&mut world, restored);
        // It records before it hears of the hub, and is recording as it does.
        world.sender.disconnected();
        some(&mut world, &gate, second);
        record(&mut world, &gate, 1, 300);
        world.reset();
        for _ in 0..40 {
            world.step();
        }
        record(&mut world, &gate, 1, 300);
        close(&mut world, &gate);
        some(&mut world, &gate, 2);
        world.edge.streams.get_mut(&gate).unwrap().end();
        world.settle();
        let mut all = hashes(&world.edge, &gate);
        all.extend(first_life);
        assert_all_there(&world, &gate, &all);
        assert_in_order(&world, &gate);
        let edge = &world.edge.streams[&gate];
        assert!(edge.ended_on_hub && world.sender.is_done());
        assert_eq!(world.hub.streams[&gate].ended, edge.ending);
    }
}

#[test]
fn a_stream_moved_to_a_box_with_its_own_of_that_name_keeps_both() {
    let mut world = World::new(20);
    let gate = world.stream("gate");
    some(&mut world, &gate, 30);
    world.settle();
    let theirs = hashes(&world.edge, &gate);
    let mut other = EdgeStore::default();
    other.streams.insert(gate.clone(), EdgeStream::default());
    swap(&mut world, other);
    world.sender.disconnected();
    some(&mut world, &gate, 12);
    world.reset();
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    let mut all = hashes(&world.edge, &gate);
    all.extend(theirs);
    assert_eq!(all.len(), 42);
    assert_all_there(&world, &gate, &all);
    assert_in_order(&world, &gate);
}

#[test]
fn a_wiped_disk_leaves_nothing_that_the_hub_waits_for() {
    let mut world = World::new(21);
    let gate = world.stream("gate");
    some(&mut world, &gate, 400);
    // All is announced, some is there, one is on its way.
    while world
        .hub
        .streams
        .get(&gate)
        .is_none_or(|s| s.here.len() < 5)
    {
        assert!(world.step());
    }
    assert!(world.hub.streams[&gate].waiting().len() > 50);
    let mut wiped = EdgeStore::default();
    wiped.streams.insert(gate.clone(), EdgeStream::default());
    swap(&mut world, wiped);
    world.settle();
    let hub = &world.hub.streams[&gate];
    assert_eq!(hub.waiting(), []);
    let lost = |reason: &&HoleReason| **reason == HoleReason::Lost;
    assert!(hub.reasons.values().filter(lost).count() > 50);
    // Provisional numbers of the new disk are no obstacle.
    some(&mut world, &gate, 3);
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_all_there(&world, &gate, &hashes(&world.edge, &gate));
}

#[test]
fn two_boxes_of_one_identity_lose_nothing_however_they_take_turns() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        let gate = world.stream("gate");
        some(&mut world, &gate, 4);
        world.settle();
        let mut other = EdgeStore::default();
        let image = EdgeStream::restore(&world.edge.streams[&gate]);
        other.streams.insert(gate.clone(), image);
        for _ in 0..12 {
            let segments = world.random.below(9) as usize;
            some(&mut world, &gate, segments);
            if world.random.one_in(2) {
                record(&mut world, &gate, 1, 200);
            }
            for _ in 0..world.random.below(400) {
                world.step();
            }
            if world.random.one_in(4) {
                world.restart_hub(500);
            }
            other = swap(&mut world, other);
        }
        let mut wanted = BTreeSet::new();
        // Each comes once more and has all the time it needs; nothing is begun any more.
        for _ in 0..2 {
            close(&mut world, &gate);
            world.settle();
            wanted.extend(hashes(&world.edge, &gate));
            assert_all_there(&world, &gate, &wanted);
            let edge = &world.edge.streams[&gate];
            let unconfirmed = edge.closed.keys().filter(|n| !edge.stored.contains(**n));
            assert_eq!(unconfirmed.count(), 0, "seed {seed}");
            other = swap(&mut world, other);
        }
    }
}

#[test]
fn what_cannot_be_read_becomes_a_hole_and_the_rest_goes_on() {
    let mut world = World::new(23);
    let gate = world.stream("gate");
    some(&mut world, &gate, 6);
    let edge = world.edge.streams.get_mut(&gate).unwrap();
    edge.unreadable.insert(SegmentNumber(2));
    edge.end();
    world.settle();
    let hub = &world.hub.streams[&gate];
    assert_eq!(hub.reasons[&SegmentNumber(2)], HoleReason::Corrupt);
    assert_replicated(&world);
    assert_eq!(hub.here.len(), 5);
}

#[test]
fn a_backlog_is_announced_only_so_far_ahead() {
    let mut world = World::new(24);
    let gate = world.stream("gate");
    for _ in 0..3 * MAX_ANNOUNCED_AHEAD {
        record(&mut world, &gate, 1, 10);
        close(&mut world, &gate);
    }
    world.edge.streams.get_mut(&gate).unwrap().end();
    let limit = MAX_ANNOUNCED_AHEAD + 128;
    let mut most = 0;
    while !world.sender.is_done() {
        for _ in 0..500 {
            world.step();
        }
        let waiting = world
            .hub
            .streams
            .get(&gate)
            .map_or(0, |s| s.waiting().len());
        most = most.max(waiting);
        assert!(waiting <= limit, "{waiting}");
    }
    assert!(most > MAX_ANNOUNCED_AHEAD / 2, "{most}");
    assert_replicated(&world);
}

#[test]
fn bytes_that_go_again_are_counted_once() {
    let mut world = World::new(25);
    let gate = world.stream("gate");
    world.hub.disk_full = true;
    record(&mut world, &gate, 3, 10_000);
    close(&mut world, &gate);
    for _ in 0..20 {
        while world.sender.poll_timeout().is_none() {
            assert!(world.step());
        }
        world.now = world.now.max(world.sender.poll_timeout().unwrap());
        world.step();
    }
    assert!(world.media_messages > 10, "{}", world.media_messages);
    assert!(world.sender.progress().new_bytes_sent <= 30_000);
    world.hub.disk_full = false;
    world.edge.streams.get_mut(&gate).unwrap().end();
    world.settle();
    assert_replicated(&world);
    assert_eq!(world.sender.progress().new_bytes_sent, 30_000);
}
