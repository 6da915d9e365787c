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

use std::collections::BTreeMap;

use model::{HoleReason, SegmentHash, SegmentInfo, SegmentNumber, StreamName};

use stores::EdgeStream;
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
    /// The edge's clock is corrected by so much.
    Correct {
        by_ms: u16,
    },
    /// An image of the edge's disk is made, for later.
    Image,
    /// The edge's disk is the last image again: what it records now gets numbers that were used since.
    Restore,
    /// The edge's disk and numbers are gone.
    Wipe,
}

/// Carries the operations out, lets all come to rest, and checks that
///
/// - what the edge has is at the hub, hash for hash and with its corrected times, and known here to be; or the
///   hub gave it up as corrupt, and that is known here;
/// - what a disk that was restored or wiped since knew to be at the hub is there still;
/// - what the edge gave up is settled at the hub, which waits for nothing and holds no beginnings.
///
/// # Panics
/// Where that does not hold: this is a test.
pub fn replay(seed: u64, operations: impl IntoIterator<Item = Operation>) {
    let mut world = World::new(seed);
    let mut story = Story {
        streams: [world.stream("gate"), world.stream("yard")],
        image: None,
        restored: false,
        stored: BTreeMap::new(),
    };
    for operation in operations {
        story.perform(&mut world, operation);
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
            if let Some(reason) = edge.given_up.get(number) {
                assert_eq!(*reason, HoleReason::Corrupt, "{name} {number}");
                assert!(hub.corrupt.contains(*number), "{name} {number} is well");
                assert!(!hub.here.contains_key(number), "{name} {number} is there");
                assert!(!edge.stored.contains(*number), "{name} {number} is marked");
                continue;
            }
            let there = hub.here.get(number).map(|(info, _)| *info);
            let there = there.map(|there| match story.restored {
                // An image may be older than a correction that the hub has.
                true => SegmentInfo {
                    wall_start: info.wall_start,
                    ..there
                },
                false => there,
            });
            assert_eq!(there, Some(*info), "{name} {number}");
            assert_eq!(SegmentHash::of(bytes), info.hash, "{name} {number}");
            assert!(edge.stored.contains(*number), "{name} {number} not marked");
        }
        for (range, reason) in &edge.holes {
            for number in range.start().0..=range.end().0 {
                let number = SegmentNumber(number);
                let settled = hub.here.contains_key(&number) || hub.holes.contains(number);
                assert!(settled, "{name} {number}: {reason:?} is not known");
            }
        }
        for (number, (info, bytes)) in &hub.here {
            assert_eq!(SegmentHash::of(bytes), info.hash, "{name} {number}");
        }
        assert_eq!(hub.waiting(), [], "{name}: what never comes");
        assert_eq!(hub.partials.len(), 0, "{name}: beginnings are left");
        assert_eq!(hub.ended, edge.ending, "{name}");
    }
    for ((name, number), hash) in &story.stored {
        let there = world.hub.streams[name].here.get(number);
        assert_eq!(
            there.map(|(info, _)| info.hash),
            Some(*hash),
            "{name} {number} of an earlier disk"
        );
    }
    assert_eq!(world.hub.offered_again, 0, "settled segments were shipped");
    assert!(world.sender.is_done());
}

struct Story {
    streams: [StreamName; 2],
    image: Option<[EdgeStream; 2]>,
    restored: bool,
    /// What earlier disks of the edge knew to be at the hub.
    stored: BTreeMap<(StreamName, SegmentNumber), SegmentHash>,
}

impl Story {
    fn perform(&mut self, world: &mut World, operation: Operation) {
        let name = |stream: u8| &self.streams[usize::from(stream) % self.streams.len()];
        match operation {
            Operation::Record { stream, bytes } => {
                let bytes = world.random.bytes(usize::from(bytes % 40_000) + 1);
                let edge = world.edge.streams.get_mut(name(stream)).unwrap();
                edge.part(&bytes);
            }
            Operation::Close { stream } => {
                world.edge.streams.get_mut(name(stream)).unwrap().close();
            }
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
            Operation::Correct { by_ms } => {
                for edge in world.edge.streams.values_mut() {
                    edge.correct(i64::from(by_ms));
                }
            }
            Operation::Image => {
                let of = |name| EdgeStream::restore(&world.edge.streams[name]);
                self.image = Some(self.streams.each_ref().map(of));
            }
            Operation::Restore => {
                let disk = self.image.as_ref();
                if let Some(disk) = disk.map(|disk| disk.each_ref().map(EdgeStream::restore)) {
                    self.restored = true;
                    self.swap(world, disk);
                }
            }
            Operation::Wipe => self.swap(world, Default::default()),
        }
        world.sender.changed();
    }

    /// The edge's disk is another one.
    fn swap(&mut self, world: &mut World, disk: [EdgeStream; 2]) {
        for (name, disk) in self.streams.iter().zip(disk) {
            let Some(before) = world.edge.streams.insert(name.clone(), disk) else {
                continue;
            };
            for (number, (info, _)) in before.closed {
                if before.stored.contains(number) {
                    self.stored.insert((name.clone(), number), info.hash);
                }
            }
        }
        world.restart_edge();
    }
}
