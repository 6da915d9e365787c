//! Hand-shaking: under loss, under load, against the wrong hub, again after either end was restarted.

use std::{net::SocketAddr, time::Duration};

use super::traffic::{Flow, Traffic};
use crate::{
    Bye, Channel, Cipher, CloseReason, Endpoint, Event, HubConfig,
    sim::{HUB_ADDRESS, Line, Who, World, forged_initiation},
};

const SECOND: Duration = Duration::from_secs(1);

fn lossy(loss: f64) -> Line {
    Line {
        loss,
        ..Line::default()
    }
}

/// Whether both ends are connected within the limit.
fn connects(world: &mut World, limit: Duration) -> bool {
    let (mut at_edge, mut at_hub) = (false, false);
    world.run(
        limit,
        |_, who, event| {
            if matches!(event, Event::Connected { .. }) {
                *(if who == Who::Hub {
                    &mut at_hub
                } else {
                    &mut at_edge
                }) = true;
            }
        },
        |_| false,
    );
    at_edge && at_hub
}

#[test]
fn takes_one_round_trip_and_tells_both_who_is_there() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut seen = Vec::new();
    world.run(
        SECOND,
        |world, who, event| {
            if let Event::Connected { peer_key, peer, .. } = event {
                seen.push((who, peer_key, peer, world.elapsed()));
            }
        },
        |_| false,
    );
    let mut secret = [0x45; 32];
    secret[..8].copy_from_slice(&1u64.to_be_bytes());
    let edge_address = world.edges[0].address;
    assert_eq!(
        seen,
        [
            (
                Who::Edge(0),
                crate::public_key(&[0x48; 32]),
                HUB_ADDRESS,
                Duration::from_millis(20)
            ),
            (
                Who::Hub,
                crate::public_key(&secret),
                edge_address,
                Duration::from_millis(30)
            ),
        ]
    );
    let counters = world.hub.counters();
    assert_eq!((counters.handshakes, counters.datagrams_forged), (1, 0));
}

#[test]
fn gets_through_with_two_of_five_datagrams_lost() {
    for seed in 1..=100 {
        let mut world = World::new(seed);
        world.add_edge(lossy(0.4), lossy(0.4), Cipher::ChaChaPoly);
        let mut traffic = Traffic::new(vec![Flow::up(Channel::Control, 3)]);
        assert!(traffic.run(&mut world, 300 * SECOND), "seed {seed}");
    }
}

#[test]
fn a_wrong_hub_key_meets_silence() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    // Another hub sits at the address.
    world.hub = crate::HubEndpoint::new(HubConfig::new([0x49; 32]), world.now, [9; 32]);
    let mut unanswered = 0;
    world.run(
        11 * SECOND,
        |_, who, event| match event {
            Event::Unanswered { attempts } if who == Who::Edge(0) => unanswered = attempts,
            other => panic!("{other:?}"),
        },
        |_| false,
    );
    assert!((4..8).contains(&unanswered), "{unanswered}");
    let counters = world.hub.counters();
    assert_eq!(counters.datagrams_sent, 0);
    assert_eq!(counters.datagrams_forged, counters.datagrams_received);
}

#[test]
fn attempts_become_rarer_up_to_half_a_minute() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    world.cut(0, 3600 * SECOND);
    let mut last = 0;
    let mut times = Vec::new();
    world.run(
        600 * SECOND,
        |world, _, event| {
            if let Event::Unanswered { attempts } = event {
                assert_eq!(attempts, last + 1);
                last = attempts;
                times.push(world.elapsed());
            }
        },
        |_| false,
    );
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] < 2 * SECOND);
    assert!(gaps.iter().all(|gap| *gap <= 38 * SECOND), "{gaps:?}");
    assert!(gaps.last().unwrap() >= &(22 * SECOND));
    assert!(!connects(&mut world, 2900 * SECOND), "the line is cut");
    assert!(connects(&mut world, 200 * SECOND), "and it never gives up");
}

#[test]
fn under_load_a_cookie_is_asked_for_and_given_back() {
    let config = HubConfig {
        cookie_threshold: 0,
        ..HubConfig::new([0x48; 32])
    };
    let mut world = World::with_hub(1, config);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![Flow::up(Channel::Control, 1)]);
    assert!(
        traffic.run(&mut world, SECOND),
        "at once, not after a retry"
    );
    assert_eq!(world.hub.counters().cookies_sent, 1);
    assert_eq!(world.hub.counters().handshakes, 1);
}

#[test]
fn before_the_peer_is_authentic_no_more_bytes_go_back_than_came() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    world.step();
    let mut buffer = Vec::new();
    let hub_key = crate::public_key(&[0x48; 32]);
    let spoofed: SocketAddr = "192.0.2.77:1".parse().unwrap();
    for number in 0..1000 {
        let first = match number {
            0 => capture_initiation(),
            _ => forged_initiation(&hub_key, number),
        };
        world.hub.handle_datagram(world.now, spoofed, &first);
        let mut back = 0;
        while let Some(transmit) = world.hub.poll_transmit(world.now, 16, &mut buffer) {
            back += transmit.size;
        }
        assert!(back <= first.len());
        buffer.clear();
    }
    let counters = world.hub.counters();
    assert!(counters.datagrams_forged < 200, "those cost arithmetic");
    assert_eq!(counters.cookies_sent, 500);
    assert!(counters.handshakes_over_budget >= 299, "{counters:?}");
    assert_eq!(counters.handshakes, 0);
    assert_eq!(
        world.hub.poll_event(),
        None,
        "nobody has proved to be there"
    );
}

/// A first message of the edge of a fresh world with the same keys.
fn capture_initiation() -> Vec<u8> {
    let mut other = World::new(99);
    other.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut buffer = Vec::new();
    let now = other.now;
    other.edges[0]
        .endpoint
        .poll_transmit(now, 1, &mut buffer)
        .unwrap();
    assert_eq!(buffer.len(), 1200);
    buffer
}

#[test]
fn a_replayed_first_message_displaces_nothing() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let replay = capture_initiation();
    let mut traffic = Traffic::new(vec![Flow::up(Channel::Bulk, 300)]);
    traffic.run(&mut world, Duration::from_millis(500));
    for port in 1..=100 {
        world.inject(
            SocketAddr::from(([192, 0, 2, 9], port)),
            HUB_ADDRESS,
            replay.clone(),
        );
    }
    assert_eq!(world.hub.counters().handshakes_replayed, 99);
    assert_eq!(world.hub.tables()[0], 1, "one place, and no answer twice");
    assert!(traffic.run(&mut world, 60 * SECOND));
    assert_eq!((traffic.connects, traffic.resets, traffic.moves), (2, 0, 0));
    assert!(traffic.closes.is_empty());
}

#[test]
fn an_edge_that_was_restarted_replaces_its_session() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![Flow::up(Channel::Bulk, 300)]);
    traffic.run(&mut world, Duration::from_millis(300));
    world.restart_edge(0);
    traffic.on_restart();
    assert!(traffic.run(&mut world, 60 * SECOND));
    assert_eq!(traffic.closes, [(Who::Hub, CloseReason::Replaced)]);
    assert_eq!(traffic.connects, 4);
}

#[test]
fn a_hub_that_was_restarted_is_noticed_and_met_again() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![Flow::up(Channel::Bulk, 300)]);
    traffic.run(&mut world, Duration::from_millis(300));
    world.restart_hub();
    traffic.on_restart();
    let restarted = world.now;
    while traffic.connects < 4 {
        traffic.run(&mut world, Duration::from_millis(10));
        assert!(
            world.now < restarted + 5 * SECOND,
            "silence, then a handshake within a second"
        );
    }
    assert!(traffic.run(&mut world, 60 * SECOND));
    assert_eq!(traffic.closes, [(Who::Edge(0), CloseReason::Replaced)]);
}

#[test]
fn bye_is_heard_and_a_refused_edge_comes_back_later() {
    let mut world = World::new(1);
    world.add_edge(lossy(0.2), lossy(0.2), Cipher::AesGcm);
    let mut connects = Vec::new();
    let mut heard = Vec::new();
    world.run(
        40 * SECOND,
        |world, who, event| match (who, event) {
            (Who::Hub, Event::Connected { session, .. }) => {
                connects.push(world.elapsed());
                let now = world.now;
                world.hub.close(now, session, Bye::Refused);
            }
            (Who::Edge(_), Event::Closed { reason, .. }) => heard.push(reason),
            _ => {}
        },
        |_| false,
    );
    assert_eq!(connects.len(), 2, "{connects:?}");
    assert!(connects[1] - connects[0] > 20 * SECOND);
    assert_eq!(heard[0], CloseReason::Peer(Bye::Refused));
}

#[test]
fn an_edge_that_shuts_down_says_so_and_is_finished_soon() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![Flow::up(Channel::Control, 1)]);
    assert!(traffic.run(&mut world, SECOND));
    let now = world.now;
    world.edges[0].endpoint.shutdown(now, Bye::Shutdown);
    let mut closed = None;
    world.run(
        SECOND,
        |_, _, event| {
            if let Event::Closed { reason, .. } = event {
                closed = Some(reason);
            }
        },
        |world| world.edges[0].endpoint.is_finished(),
    );
    assert!(world.now < now + Duration::from_millis(200));
    world.run(
        5 * SECOND,
        |_, _, event| {
            if let Event::Closed { reason, .. } = event {
                closed = Some(reason);
            }
        },
        |_| false,
    );
    assert_eq!(closed, Some(CloseReason::Peer(Bye::Shutdown)));
    assert_eq!(world.edges[0].endpoint.session(), None);
}

#[test]
fn keys_are_renewed_without_a_trace_in_the_channels() {
    let mut world = World::new(1);
    world.add_edge(lossy(0.05), lossy(0.05), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![
        Flow::up(Channel::Live, 1000),
        Flow::down(Channel::Control, 1000),
    ]);
    // A few messages every ten minutes, for half a day.
    for part in 1..=72 {
        for flow in &mut traffic.flows {
            flow.total = part;
        }
        assert!(traffic.run(&mut world, 30 * SECOND), "part {part}");
        let until = world.now + 600 * SECOND;
        while world.now < until {
            for (who, event) in world.take_events() {
                traffic.on_event(&mut world, who, event);
            }
            world.step();
        }
    }
    assert!(
        world.hub.counters().handshakes >= 11,
        "{:?}",
        world.hub.counters()
    );
    assert!(traffic.closes.is_empty());
    assert_eq!(traffic.connects, 2);
    assert!(
        world.steps < 100_000,
        "{} steps: idle costs next to nothing",
        world.steps
    );
}
