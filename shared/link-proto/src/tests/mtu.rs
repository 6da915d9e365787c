//! The path's MTU is found, followed down and up, and never mistaken for loss.

use std::time::Duration;

use super::traffic::{Flow, Traffic};
use crate::{
    BASE_DATAGRAM_BYTES, Channel, Cipher, Endpoint, MAX_DATAGRAM_BYTES, SessionStats,
    sim::{Line, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn line(mtu: usize, loss: f64) -> Line {
    Line {
        delay: Duration::from_millis(25),
        rate_bps: Some(20_000_000),
        // Start-up shall lose nothing.
        queue_bytes: 1 << 20,
        loss,
        mtu,
        ..Line::default()
    }
}

fn world(seed: u64, line: &Line) -> World {
    let mut world = World::new(seed);
    world.add_edge(line.clone(), line.clone(), Cipher::AesGcm);
    world
}

fn stats(world: &World, traffic: &Traffic) -> SessionStats {
    let (edge, _) = traffic.sessions();
    world.edges[0].endpoint.stats(edge).unwrap()
}

/// So many seconds of the line's rate.
fn flows(seconds: u64) -> Vec<Flow> {
    vec![
        Flow::up(Channel::Live, seconds * 100),
        Flow::down(Channel::Control, 20),
    ]
}

#[test]
fn what_the_path_carries_is_found_and_nothing_counts_as_lost() {
    for (mtu, found) in [
        (BASE_DATAGRAM_BYTES, BASE_DATAGRAM_BYTES),
        (1232, 1232),
        (1300, 1272),
        (1440, 1432),
        (MAX_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES),
        (9000, MAX_DATAGRAM_BYTES),
    ] {
        let mut world = world(1, &line(mtu, 0.0));
        let mut traffic = Traffic::new(flows(5));
        assert!(traffic.run(&mut world, 30 * SECOND), "{mtu}");
        let stats = stats(&world, &traffic);
        assert_eq!(stats.datagram_bytes, found, "{mtu}");
        assert_eq!(
            (stats.loss, stats.parities_sent, traffic.resets),
            (0.0, 0, 0),
            "{mtu}"
        );
    }
}

#[test]
fn losses_do_not_make_a_path_narrow() {
    for seed in 0..20 {
        let mut world = world(seed, &line(MAX_DATAGRAM_BYTES, 0.2));
        let mut traffic = Traffic::new(flows(5));
        assert!(traffic.run(&mut world, 60 * SECOND), "{seed}");
        let stats = stats(&world, &traffic);
        assert_eq!(stats.datagram_bytes, MAX_DATAGRAM_BYTES, "{seed}");
        assert_eq!(traffic.resets, 0, "{seed}");
    }
}

#[test]
fn a_path_that_gets_narrower_costs_a_renewal_and_one_that_gets_wider_is_found() {
    for (seed, loss) in [(1, 0.0), (2, 0.1), (3, 0.2)] {
        let mut world = world(seed, &line(MAX_DATAGRAM_BYTES, loss));
        let mut traffic = Traffic::new(flows(40));
        assert!(!traffic.run(&mut world, 10 * SECOND));
        assert_eq!(stats(&world, &traffic).datagram_bytes, MAX_DATAGRAM_BYTES);
        let before = traffic.flows[0].received;
        world.edges[0].up.mtu = 1300;
        assert!(!traffic.run(&mut world, 5 * SECOND), "{loss}");
        // Not all at once: what went under at first is sent again.
        assert!(traffic.flows[0].received > before + 150, "{loss}");
        assert!(
            !traffic.run(&mut world, 3 * SECOND),
            "{loss}: the search goes on"
        );
        assert_eq!(stats(&world, &traffic).datagram_bytes, 1272, "{loss}");
        assert!((2..=4).contains(&traffic.resets), "{}", traffic.resets);
        world.edges[0].up.mtu = MAX_DATAGRAM_BYTES;
        assert!(traffic.run(&mut world, 120 * SECOND), "{loss}");
        let later = world.now + 11 * 60 * SECOND;
        while world.now < later && world.step_until(Some(later)) {
            world.take_events();
        }
        assert_eq!(
            stats(&world, &traffic).datagram_bytes,
            MAX_DATAGRAM_BYTES,
            "{loss}"
        );
    }
}

#[test]
fn after_a_silence_the_path_is_looked_at_anew() {
    let mut world = world(4, &line(MAX_DATAGRAM_BYTES, 0.0));
    let mut traffic = Traffic::new(flows(30));
    assert!(!traffic.run(&mut world, 5 * SECOND));
    world.cut(0, 10 * SECOND);
    world.edges[0].up.mtu = BASE_DATAGRAM_BYTES;
    assert!(traffic.run(&mut world, 120 * SECOND));
    assert_eq!(stats(&world, &traffic).datagram_bytes, BASE_DATAGRAM_BYTES);
}
