//! A peer that changes its address, falls silent, comes back.

use std::time::Duration;

use super::traffic::{Flow, Traffic};
use crate::{
    Channel, Cipher, CloseReason, Endpoint, Event, KEYS_OUTLIVE, SILENCE,
    sim::{Line, Who, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn world_with(total: u64) -> (World, Traffic) {
    let mut world = World::new(3);
    let line = Line {
        rate_bps: Some(20_000_000),
        ..Line::default()
    };
    world.add_edge(line.clone(), line, Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![
        Flow::up(Channel::Bulk, total),
        Flow::down(Channel::Live, total / 10),
    ]);
    traffic.run(&mut world, Duration::from_millis(700));
    (world, traffic)
}

#[test]
fn a_new_address_in_mid_transfer_costs_nothing() {
    let (mut world, mut traffic) = world_with(500);
    for port in 1..=5 {
        world.move_edge(0, format!("203.0.113.200:{port}").parse().unwrap());
        traffic.run(&mut world, Duration::from_millis(200));
    }
    assert!(traffic.run(&mut world, 60 * SECOND));
    assert_eq!((traffic.moves, traffic.resets, traffic.connects), (5, 0, 2));
    let (_, hub) = traffic.sessions();
    assert_eq!(world.hub.peer_address(hub), Some(world.edges[0].address));
}

#[test]
fn a_short_cut_is_healed_by_the_channels_themselves() {
    let (mut world, mut traffic) = world_with(300);
    world.cut(0, SILENCE - SECOND);
    assert!(traffic.run(&mut world, 60 * SECOND));
    assert_eq!((traffic.resets, traffic.connects), (0, 2));
}

#[test]
fn after_a_longer_silence_the_channels_are_renewed_under_the_same_session() {
    for seconds in [5, 20, 100] {
        let (mut world, mut traffic) = world_with(300);
        world.cut(0, seconds * SECOND);
        let back = world.now + seconds * SECOND;
        while traffic.resets < 2 {
            traffic.run(&mut world, Duration::from_millis(50));
            assert!(
                world.now < back + 2 * SECOND,
                "a probe each second finds the line again"
            );
        }
        assert!(traffic.run(&mut world, 30 * SECOND));
        assert_eq!(traffic.connects, 2, "{seconds} s: the keys outlive it");
        assert!(traffic.closes.is_empty());
    }
}

#[test]
fn keys_outlive_some_minutes_and_no_more() {
    let (mut world, mut traffic) = world_with(300);
    world.cut(0, KEYS_OUTLIVE + 60 * SECOND);
    traffic.run(&mut world, KEYS_OUTLIVE + 10 * SECOND);
    let timed_out = CloseReason::TimedOut;
    assert_eq!(traffic.closes.len(), 2);
    assert!(traffic.closes.contains(&(Who::Hub, timed_out)));
    assert!(traffic.closes.contains(&(Who::Edge(0), timed_out)));
    traffic.on_restart();
    assert!(traffic.run(&mut world, 200 * SECOND));
    assert_eq!(traffic.connects, 4);
}

#[test]
fn an_idle_line_is_kept_open_cheaply_and_never_taken_for_silent() {
    let mut world = World::new(5);
    let lossy = Line {
        loss: 0.1,
        ..Line::default()
    };
    world.add_edge(lossy.clone(), lossy, Cipher::AesGcm);
    let mut silences = 0;
    world.run(
        3600 * SECOND,
        |world, who, event| match event {
            Event::Connected { session, .. } if who == Who::Hub => world.hub.admit(session),
            Event::Silent { .. } | Event::Closed { .. } => silences += 1,
            _ => {}
        },
        |_| false,
    );
    assert_eq!(silences, 0);
    let counters = world.hub.counters();
    assert!(
        (200..1000).contains(&counters.datagrams_received),
        "{counters:?}"
    );
}

#[test]
fn many_edges_share_one_hub() {
    let mut world = World::new(6);
    for _ in 0..100 {
        world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    }
    let (mut connected, mut received) = (0, 0);
    let done = world.run(
        20 * SECOND,
        |world, who, event| match (who, event) {
            (Who::Hub, Event::Connected { session, .. }) => {
                connected += 1;
                world.hub.admit(session);
                let now = world.now;
                world
                    .hub
                    .send(now, session, Channel::Control, vec![1; 5000].into())
                    .unwrap();
            }
            (
                Who::Edge(place),
                Event::Message {
                    session,
                    channel,
                    message,
                },
            ) => {
                received += message.len();
                world.edges[place]
                    .endpoint
                    .consumed(session, channel, message.len());
            }
            _ => {}
        },
        |world| world.hub.counters().handshakes == 100 && world.elapsed() > SECOND,
    );
    assert!(done);
    assert_eq!((connected, received), (100, 500_000));
}
