//! Sessions and replication under a network and programs that do anything at any time.

use std::{collections::BTreeMap, time::Duration};

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use link_proto::{
    Bye, Channel, Cipher, Endpoint, Event, MAX_MESSAGE_BYTES, SessionId,
    replicate::operations,
    sim::{Bursts, Line, Who, World},
};

const MAX_OPERATIONS: usize = 60;

#[derive(Debug, Arbitrary)]
enum Operation {
    Send {
        up: bool,
        channel: u8,
        bytes: u16,
        times: u8,
    },
    Run {
        ms: u16,
    },
    Cut {
        ms: u16,
        up: bool,
        down: bool,
    },
    Line(Weather),
    Move {
        port: u8,
    },
    RestartHub,
    RestartEdge,
    Close {
        at_hub: bool,
    },
    /// Time stands still for the endpoints' timers, as in a program that is stopped.
    Sleep {
        s: u8,
    },
}

#[derive(Debug, Arbitrary)]
struct Weather {
    delay_ms: u8,
    jitter_ms: u8,
    loss: u8,
    duplicate: u8,
    bursts: bool,
    rate: Option<u8>,
    small_mtu: bool,
}

impl Weather {
    fn line(&self) -> Line {
        Line {
            delay: Duration::from_millis(self.delay_ms.into()),
            jitter: Duration::from_millis(self.jitter_ms.into()),
            loss: f64::from(self.loss % 128) / 200.0,
            duplicate: f64::from(self.duplicate % 64) / 100.0,
            bursts: self.bursts.then_some(Bursts {
                begin: 0.01,
                end: 0.2,
            }),
            rate_bps: self.rate.map(|rate| (u64::from(rate) + 1) * 50_000),
            queue_bytes: 64 * 1024,
            mtu: if self.small_mtu { 1_000 } else { 1_252 },
        }
    }
}

/// Who receives, by which session and channel: the last message's number.
type Heard = BTreeMap<(bool, SessionId, Channel), u32>;

/// Messages of a session's channel come once, in order and whole; queues stay short; time goes on.
pub(crate) fn sessions(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new(u.arbitrary().unwrap_or(1));
    world.add_edge(Line::default(), Line::default(), Cipher::ChaChaPoly);
    let mut sent = 0u32;
    let (mut edge, mut hub) = (None, None);
    let mut heard = Heard::new();
    for _ in 0..MAX_OPERATIONS {
        if u.is_empty() {
            break;
        }
        let Ok(operation) = u.arbitrary::<Operation>() else {
            break;
        };
        let mut pass = Duration::from_millis(5);
        match operation {
            Operation::Send {
                up,
                channel,
                bytes,
                times,
            } => {
                for _ in 0..times % 16 {
                    sent += 1;
                    let now = world.now;
                    let channel = Channel::ALL[usize::from(channel) % 3];
                    let message = message(sent, usize::from(bytes) % (MAX_MESSAGE_BYTES - 8));
                    let _ = match (up, edge, hub) {
                        (true, Some(id), _) => {
                            world.edges[0].endpoint.send(now, id, channel, message)
                        }
                        (false, _, Some(id)) => world.hub.send(now, id, channel, message),
                        _ => break,
                    };
                }
            }
            Operation::Run { ms } => pass = Duration::from_millis(ms.into()) / 4,
            Operation::Cut { ms, up, down } => {
                let duration = Duration::from_millis(ms.into());
                if up {
                    world.cut_up(0, duration);
                }
                if down {
                    world.cut_down(0, duration);
                }
            }
            Operation::Line(weather) => {
                world.edges[0].up = weather.line();
                world.edges[0].down = weather.line();
            }
            Operation::Move { port } => {
                let address =
                    std::net::SocketAddr::from(([203, 0, 113, 9], 50_000 + u16::from(port)));
                world.move_edge(0, address);
            }
            Operation::RestartHub => {
                world.restart_hub();
                hub = None;
                // Session ids begin anew with the program.
                heard.retain(|(at_hub, ..), _| !at_hub);
            }
            Operation::RestartEdge => {
                world.restart_edge(0);
                edge = None;
                heard.retain(|(at_hub, ..), _| *at_hub);
            }
            Operation::Close { at_hub } => {
                let now = world.now;
                match (at_hub, edge, hub) {
                    (true, _, Some(id)) => world.hub.close(now, id, Bye::Shutdown),
                    (false, Some(id), _) => world.edges[0].endpoint.close(now, id, Bye::Shutdown),
                    _ => {}
                }
            }
            Operation::Sleep { s } => world.now += Duration::from_secs(s.into()),
        }
        run(&mut world, pass, &mut edge, &mut hub, &mut heard);
        for stats in [
            edge.and_then(|id| world.edges[0].endpoint.stats(id)),
            hub.and_then(|id| world.hub.stats(id)),
        ] {
            assert!(
                stats.is_none_or(|stats| stats.outstanding_bytes < 16 << 20),
                "{stats:?}"
            );
        }
    }
    // The line is well again: the two find each other, and a message goes through.
    world.edges[0].up = Line::default();
    world.edges[0].down = Line::default();
    let arrived = |heard: &Heard| {
        heard
            .iter()
            .any(|((at_hub, ..), last)| *at_hub && *last > sent)
    };
    for _ in 0..240 {
        run(
            &mut world,
            Duration::from_secs(1),
            &mut edge,
            &mut hub,
            &mut heard,
        );
        if arrived(&heard) {
            return;
        }
        if let Some(id) = edge {
            let now = world.now;
            let _ = world.edges[0]
                .endpoint
                .send(now, id, Channel::Control, message(u32::MAX, 10));
            // Sent again and again with one number: only the first counts.
            heard.retain(|_, last| *last != u32::MAX);
        }
    }
    let stats = [
        edge.and_then(|id| world.edges[0].endpoint.stats(id)),
        hub.and_then(|id| world.hub.stats(id)),
    ];
    panic!(
        "no message came through in four minutes on a clean line: {stats:?} {:?} {:?}",
        world.edges[0].endpoint.counters(),
        world.hub.counters(),
    );
}

fn message(number: u32, bytes: usize) -> Bytes {
    let mut message = number.to_be_bytes().to_vec();
    message.resize(4 + bytes, number as u8);
    message.into()
}

fn run(
    world: &mut World,
    pass: Duration,
    edge: &mut Option<SessionId>,
    hub: &mut Option<SessionId>,
    heard: &mut Heard,
) {
    let until = world.now + pass;
    let steps = world.steps;
    loop {
        for (who, event) in world.take_events() {
            let at_hub = who == Who::Hub;
            let known = if at_hub { &mut *hub } else { &mut *edge };
            match event {
                Event::Connected { session, .. } => {
                    *known = Some(session);
                    if at_hub {
                        world.hub.admit(session);
                    } else {
                        world.edges[0].endpoint.admit(session);
                        let now = world.now;
                        // The hub knows of a session by its first datagram.
                        let _ = world.edges[0].endpoint.send(
                            now,
                            session,
                            Channel::Control,
                            message(0, 0),
                        );
                    }
                }
                Event::Closed { session, .. } if *known == Some(session) => *known = None,
                Event::Message {
                    session,
                    channel,
                    message,
                } => {
                    match at_hub {
                        true => world.hub.consumed(session, channel, message.len()),
                        false => world.edges[0]
                            .endpoint
                            .consumed(session, channel, message.len()),
                    }
                    let number = u32::from_be_bytes(message[..4].try_into().expect("four bytes"));
                    assert!(message[4..].iter().all(|&b| b == number as u8), "not whole");
                    let last = heard.insert((at_hub, session, channel), number);
                    assert!(
                        last.is_none_or(|last| last < number || number == 0),
                        "{number} after {last:?}"
                    );
                }
                _ => {}
            }
        }
        if world.now >= until || !world.step() {
            break;
        }
        assert!(world.steps - steps < 400_000, "too busy for {pass:?}");
    }
}

#[derive(Debug, Arbitrary)]
enum Change {
    Record { stream: u8, bytes: u16 },
    Close { stream: u8 },
    End { stream: u8 },
    Steps(u16),
    Reset,
    RestartEdge { lose_parts: u8 },
    RestartHub { lose: u8 },
    Corrupt { one_in: u8 },
    Correct { by_ms: u16 },
    Image,
    Restore,
    Wipe,
}

/// An edge's and a hub's halves over model stores: what is recorded arrives, whatever is lost, restarted, restored
/// or wiped.
pub(crate) fn replication(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let seed = u.arbitrary().unwrap_or(1);
    let mut changes = Vec::new();
    while !u.is_empty() && changes.len() < 2 * MAX_OPERATIONS {
        let Ok(change) = u.arbitrary::<Change>() else {
            break;
        };
        changes.push(match change {
            Change::Record { stream, bytes } => operations::Operation::Record { stream, bytes },
            Change::Close { stream } => operations::Operation::Close { stream },
            Change::End { stream } => operations::Operation::End { stream },
            Change::Steps(steps) => operations::Operation::Steps(steps),
            Change::Reset => operations::Operation::Reset,
            Change::RestartEdge { lose_parts } => operations::Operation::RestartEdge { lose_parts },
            Change::RestartHub { lose } => operations::Operation::RestartHub { lose },
            Change::Corrupt { one_in } => operations::Operation::Corrupt { one_in },
            Change::Correct { by_ms } => operations::Operation::Correct { by_ms },
            Change::Image => operations::Operation::Image,
            Change::Restore => operations::Operation::Restore,
            Change::Wipe => operations::Operation::Wipe,
        });
    }
    operations::replay(seed, changes);
}
