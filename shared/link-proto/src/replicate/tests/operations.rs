//! Both halves over the model stores of the tests, driven from outside: for fuzzing, with feature `sim`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's world may fail loudly, and this is a part of it"
)]

#[path = "stores.rs"]
mod stores;
#[path = "world.rs"]
mod world;

use model::StreamName;

use world::World;

/// What can happen to a pair of stores, told by numbers of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A part of so many bytes (at most 40,000 are made) on one of two streams.
    Record {
        stream: u8,
        bytes: u16,
    },
    Close {
        stream: u8,
    },
    End {
        stream: u8,
    },
    /// Messages move, and stores work, for so many steps.
    Steps(u16),
    /// The channels are renewed: what is under way is lost.
    Reset,
    RestartEdge {
        lose_parts: u8,
    },
    RestartHub {
        lose: u8,
    },
    /// One chunk in so many arrives with a flipped bit; nought none.
    Corrupt {
        one_in: u8,
    },
}

/// Carries the operations out, lets all come to rest, and checks that what the edge has is at the hub, hash
/// for hash, but for what was given up as corrupt.
///
/// # Panics
/// Where that does not hold: this is a test.
pub fn replay(seed: u64, operations: impl IntoIterator<Item = Operation>) {
    let mut world = World::new(seed);
    let streams = [world.stream("gate"), world.stream("yard")];
    for operation in operations {
        perform(&mut world, &streams, operation);
    }
    world.corrupt_one_in = 0;
    for edge in world.edge.streams.values_mut() {
        edge.end();
    }
    world.sender.changed();
    world.settle();
    for (name, edge) in &world.edge.streams {
        let hub = &world.hub.streams[name];
        for (number, (info, bytes)) in &edge.closed {
            if !hub.corrupt.contains(*number) {
                let there = hub.here.get(number).map(|(info, bytes)| (info, bytes));
                assert_eq!(there, Some((info, bytes)), "{name} {number}");
            }
            assert!(edge.stored.contains(*number), "{name} {number} not marked");
        }
        assert_eq!(hub.ended, edge.ending, "{name}");
    }
    assert_eq!(world.hub.offered_again, 0, "settled segments were shipped");
    assert!(world.sender.is_done());
}

fn perform(world: &mut World, streams: &[StreamName; 2], operation: Operation) {
    let name = |stream: u8| &streams[usize::from(stream) % streams.len()];
    match operation {
        Operation::Record { stream, bytes } => {
            let bytes = world.random.bytes(usize::from(bytes % 40_000) + 1);
            let edge = world.edge.streams.get_mut(name(stream)).unwrap();
            edge.part(&bytes);
        }
        Operation::Close { stream } => world.edge.streams.get_mut(name(stream)).unwrap().close(),
        Operation::End { stream } => world.edge.streams.get_mut(name(stream)).unwrap().end(),
        Operation::Steps(steps) => {
            for _ in 0..steps % 4_096 {
                if !world.step() {
                    break;
                }
            }
        }
        Operation::Reset => world.reset(),
        Operation::RestartEdge { lose_parts } => {
            for edge in world.edge.streams.values_mut() {
                edge.restart(usize::from(lose_parts % 4), 0);
            }
            world.restart_edge();
        }
        Operation::RestartHub { lose } => world.restart_hub(usize::from(lose % 4)),
        Operation::Corrupt { one_in } => world.corrupt_one_in = u64::from(one_in),
    }
    world.sender.changed();
}
