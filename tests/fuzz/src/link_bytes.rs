//! What peers and strangers send: datagrams, frames under the session's keys, messages.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bytes::Bytes;
use link_proto::{
    Channel, Cipher, Endpoint, Event, MAX_MESSAGE_BYTES,
    messages::{MAX_ANNOUNCED, ToEdge, ToHub},
    replicate::{
        MAX_PARTIALS,
        receiver::{Job, Outcome, Partial, Receiver},
        sender::{Command, Held, Sender},
    },
    sim::{HUB_ADDRESS, Line, Who, World},
};
use model::{HoleReason, RangeSet, SegmentHash, SegmentNumber};

const SECOND: Duration = Duration::from_secs(1);

/// A message that is understood is the same once written and read again.
pub(crate) fn messages(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(Some(message)) = ToHub::decode(bytes.clone()) {
        let again = message.encode();
        assert!(again.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(ToHub::decode(again), Ok(Some(message)));
    }
    if let Ok(Some(message)) = ToEdge::decode(bytes) {
        let again = message.encode();
        assert!(again.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(ToEdge::decode(again), Ok(Some(message)));
    }
}

/// Messages in any order to both halves of replication; stores that answer whatever fits. An error ends it.
pub(crate) fn peer_messages(data: &[u8]) {
    let now = link_proto::sim::start();
    let (mut receiver, mut sender) = (Receiver::new(), Sender::new());
    sender.set_streams(["gate", "yard"].map(|name| name.parse().unwrap()).to_vec());
    sender.connected();
    let mut rest = data;
    while let [how, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (message, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        let message = Bytes::copy_from_slice(message);
        if how & 1 == 0 {
            let Ok(Some(message)) = ToHub::decode(message) else {
                continue;
            };
            let channel = match how & 8 {
                0 => Channel::Bulk,
                _ => Channel::Live,
            };
            let Ok(job) = receiver.handle_message(channel, message) else {
                return;
            };
            if let Some(outcome) = job.and_then(|job| answer(*how, job)) {
                let answers = receiver.handle_outcome(outcome);
                assert!(answers.len() <= MAX_PARTIALS.max(MAX_ANNOUNCED) + 1);
                for answer in answers {
                    let bytes = answer.encode();
                    assert!(bytes.len() <= MAX_MESSAGE_BYTES);
                    // A reason is made printable on the way.
                    let read = ToEdge::decode(bytes).expect("it can be read");
                    assert_eq!(read.map(|read| read.encode()), Some(answer.encode()));
                }
            }
        } else {
            let Ok(Some(message)) = ToEdge::decode(message) else {
                continue;
            };
            if sender.handle_message(now, message).is_err() {
                return;
            }
            drain(&mut sender, *how);
        }
    }
}

/// The store's answer, well or ill by a few bits.
fn answer(how: u8, job: Job) -> Option<Outcome> {
    let well = how & 2 == 0;
    Some(match job {
        Job::Register { stream } if well => Outcome::Registered {
            settled: RangeSet::from_iter(
                (0..u64::from(how)).map(|n| SegmentNumber(3 * n)..=SegmentNumber(3 * n + 1)),
            ),
            partials: Vec::new(),
            stream,
        },
        Job::Register { stream } => Outcome::StreamRefused {
            stream,
            reason: "no\nreason \u{1F600}".repeat(how.into()),
        },
        Job::Compare { stream, below } => Outcome::Compared {
            settled: RangeSet::from_iter([SegmentNumber(0)..=below]),
            stream,
            below,
        },
        Job::Announce {
            stream, segments, ..
        } => {
            let mut numbers = segments.iter().map(|info| info.number);
            let collides = if well { None } else { numbers.next_back() };
            let (mut stored, mut holes) = (Vec::new(), Vec::new());
            for number in numbers {
                match (number.0 ^ u64::from(how >> 2)) % 3 {
                    0 => stored.push(number),
                    1 => holes.push((number, HoleReason::Expired)),
                    _ => {}
                }
            }
            Outcome::Announced {
                stream,
                stored,
                holes,
                collides,
                floor: SegmentNumber(u64::from(how)),
            }
        }
        Job::Start { .. } if well => Outcome::Started,
        Job::Start { start, .. } if how & 4 == 0 => Outcome::NumberUsed {
            stream: start.stream,
            number: start.number,
            floor: start.number.next(),
        },
        Job::Start { start, .. } => Outcome::Unusable {
            stream: start.stream,
            number: start.number,
        },
        Job::Pause { stream, number } => Outcome::Paused {
            stream,
            partial: Partial {
                number,
                length: u64::from(how & 4),
                hash: SegmentHash::of(&[]),
            },
        },
        Job::Append { stream, number, .. } if !well => Outcome::Failed { stream, number },
        Job::Close { stream, info } if well => Outcome::Stored {
            stream,
            number: info.number,
        },
        Job::Close { stream, info } => Outcome::Unusable {
            stream,
            number: info.number,
        },
        Job::End { stream, last } => Outcome::Ended { stream, last },
        Job::Restamp { stream, segments } => Outcome::Restamped {
            stream,
            last: segments.last()?.0,
        },
        _ => return None,
    })
}

/// A store that has nothing, or has lost what it had.
fn drain(sender: &mut Sender, how: u8) {
    let now = link_proto::sim::start();
    let mut commands = VecDeque::new();
    for _ in 0..64 {
        let Some(command) = sender.poll_command(now) else {
            break;
        };
        commands.push_back(command);
    }
    for command in commands {
        match command {
            Command::Look { ticket, stream, .. } => {
                sender.handle_looked(now, ticket, &stream, (how & 2 == 0).then(Default::default));
            }
            Command::List { ticket, stream, .. } => {
                sender.handle_listed(now, ticket, &stream, (how & 2 == 0).then(Default::default));
            }
            Command::ListHeld {
                ticket,
                stream,
                from,
            } => {
                let held = Held {
                    ranges: vec![from..=from],
                    next: (how & 4 == 0).then(|| from.next()),
                };
                sender.handle_held(now, ticket, &stream, (how & 2 == 0).then_some(held));
            }
            Command::Hash { ticket, .. } => sender.handle_hashed(ticket, None),
            Command::Read { ticket, range, .. } => {
                sender.handle_read(now, ticket, range.start, None)
            }
            // What is only marked has no answer.
            _ => {}
        }
    }
    for channel in Channel::ALL {
        for _ in 0..8 {
            let Some(message) = sender.poll_message(now, channel) else {
                break;
            };
            assert_eq!(
                ToHub::decode(message.encode()),
                Ok(Some(message)),
                "it can be read"
            );
        }
    }
}

/// A world with one edge, connected: the session at the edge, and at the hub.
fn connected() -> (World, [link_proto::SessionId; 2]) {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::ChaChaPoly);
    let (mut edge, mut hub) = (None, None);
    world.run(
        10 * SECOND,
        |world, who, event| {
            if let Event::Connected { session, .. } = event {
                match who {
                    Who::Hub => {
                        world.hub.admit(session);
                        hub = Some(session);
                    }
                    Who::Edge(_) => {
                        edge = Some(session);
                        let hello = Bytes::from_static(b"hello");
                        let now = world.now;
                        let _ = world.edges[0]
                            .endpoint
                            .send(now, session, Channel::Control, hello);
                    }
                }
            }
        },
        |world| world.elapsed() > SECOND,
    );
    let sessions = [
        edge.expect("an edge's session"),
        hub.expect("a hub's session"),
    ];
    (world, sessions)
}

/// Datagrams of strangers, real ones changed among them: nothing happens but counters, and no more bytes go
/// back than came in (invariant 6).
pub(crate) fn strangers(data: &[u8]) {
    let mut world = World::new(2);
    let place = world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let now = world.now;
    let mut captured = Vec::new();
    let sent = world.edges[place]
        .endpoint
        .poll_transmit(now, 1, &mut captured);
    assert!(sent.is_some() && captured.len() == 1_200);
    let stranger: SocketAddr = "192.0.2.66:6".parse().unwrap();
    let (mut came, mut went) = (0, 0);
    let mut rest = data;
    while let [how, length, behind @ ..] = rest {
        let (part, behind) = behind.split_at((usize::from(*length) * 6).min(behind.len()));
        rest = behind;
        let mut datagram = captured.clone();
        match how % 6 {
            // As it is.
            0 => datagram = part.to_vec(),
            // Real, with bytes changed: place, place, difference.
            1 | 2 => {
                for change in part.chunks_exact(3) {
                    let at =
                        usize::from(u16::from_be_bytes([change[0], change[1]])) % datagram.len();
                    datagram[at] ^= change[2];
                }
            }
            // Real, cut or lengthened.
            3 => datagram.resize(usize::from(*length) * 6, 0),
            // Of the right length and type for each kind.
            4 => {
                datagram = vec![0; [1_200, 76, 40, 64][usize::from(how >> 3) % 4]];
                let kept = part.len().min(datagram.len());
                datagram[..kept].copy_from_slice(&part[..kept]);
                datagram[0] = how >> 3 & 3;
                datagram[0] += 1;
            }
            _ => {
                world.now += Duration::from_millis(u64::from(*length) * 10);
                world.hub.handle_timeout(world.now);
                continue;
            }
        }
        let now = world.now;
        came += datagram.len();
        world.hub.handle_datagram(now, stranger, &datagram);
        let mut out = Vec::new();
        while let Some(transmit) = world.hub.poll_transmit(now, 4, &mut out) {
            assert_eq!(transmit.to, stranger);
        }
        went += out.len();
        assert!(went <= came, "{went} bytes went back for {came}");
        world.edges[place]
            .endpoint
            .handle_datagram(now, HUB_ADDRESS, &datagram);
        assert!(
            world.hub.poll_event().is_none(),
            "something happened at the hub"
        );
        assert!(
            world.edges[place].endpoint.poll_event().is_none(),
            "something happened at the edge"
        );
    }
    assert!(world.hub.poll_event().is_none());
    // And the edge itself is still welcome.
    let connected = std::cell::Cell::new(false);
    world.run(
        120 * SECOND,
        |_, _, event| connected.set(connected.get() || matches!(event, Event::Connected { .. })),
        |_| connected.get(),
    );
    assert!(connected.get(), "the edge is shut out");
}

/// Authentic peers that lie: anything under the keys, in both directions. Their own session ends at worst.
pub(crate) fn liars(data: &[u8]) {
    let (mut world, [_, hub]) = connected();
    let mut rest = data;
    let mut taken = 0usize;
    let mut datagrams = 0;
    while let [how, length, behind @ ..] = rest {
        let (part, behind) = behind.split_at((usize::from(*length) * 4).min(behind.len()));
        rest = behind;
        datagrams += 1;
        if datagrams > 64 {
            break;
        }
        // A datagram begins with its generation and four more bytes; then frames.
        let mut plain = vec![0; 8];
        if how & 4 != 0 {
            plain.clear();
        }
        plain.extend_from_slice(part);
        let (from, to, bytes) = if how & 1 == 0 {
            let edge = &mut world.edges[0];
            (
                edge.address,
                HUB_ADDRESS,
                edge.endpoint.seal_anything(&plain),
            )
        } else {
            (
                HUB_ADDRESS,
                world.edges[0].address,
                world.hub.seal_anything(hub, &plain),
            )
        };
        world.inject(from, to, bytes);
        if how & 2 == 0 {
            world.step();
        }
        for (_, event) in world.take_events() {
            if let Event::Message { message, .. } = event {
                assert!(message.len() <= MAX_MESSAGE_BYTES);
                taken += message.len();
            }
        }
    }
    // Nothing is made of nothing: messages are no longer than what came.
    assert!(
        taken <= data.len() + 64,
        "{taken} bytes of messages from {}",
        data.len()
    );
    let before = world.steps;
    let events = std::cell::Cell::new(0);
    world.run(
        5 * SECOND,
        |_, _, _| events.set(events.get() + 1),
        |_| false,
    );
    assert!(world.steps - before < 20_000, "it settles");
    assert!(events.get() < 2_000, "{} events", events.get());
}
