//! Every message exactly once, whole and in order, whatever the line does, and always to an end.

use std::time::Duration;

use super::traffic::{Flow, Traffic};
use crate::{
    Channel, Cipher,
    sim::{Bursts, Line, World},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn flows() -> Vec<Flow> {
    vec![
        Flow::up(Channel::Control, 20),
        Flow::up(Channel::Live, 30),
        Flow::up(Channel::Bulk, 60),
        Flow::down(Channel::Control, 20),
    ]
}

#[test]
fn a_clean_line_carries_all_channels_both_ways() {
    for cipher in [Cipher::AesGcm, Cipher::ChaChaPoly] {
        let mut world = World::new(1);
        world.add_edge(Line::default(), Line::default(), cipher);
        let mut traffic = Traffic::new(flows());
        assert!(traffic.run(&mut world, Duration::from_secs(10)));
        assert!(
            world.elapsed() < Duration::from_secs(4),
            "{:?}",
            world.elapsed()
        );
        assert_eq!(traffic.resets, 0);
        assert_eq!(world.network.lost, 0);
        let (edge, _) = traffic.sessions();
        let stats = crate::Endpoint::stats(&world.edges[0].endpoint, edge).unwrap();
        assert!(
            stats.packets_resent * 100 <= stats.packets_sent,
            "{stats:?}"
        );
    }
}

/// A line and its troubles, drawn from the seed.
fn troubled(seed: u64) -> (World, Traffic) {
    let mut world = World::new(seed);
    let mut draw = |low: f64, high: f64| low + (high - low) * world.network.chance();
    let one_way = ms(draw(0.0, 150.0) as u64);
    let jitter = if draw(0.0, 1.0) < 0.5 {
        Duration::ZERO
    } else {
        ms(draw(0.0, 40.0) as u64)
    };
    let loss = if draw(0.0, 1.0) < 0.2 {
        0.0
    } else {
        draw(0.0, 0.3)
    };
    let bursts = (draw(0.0, 1.0) < 0.3).then(|| Bursts {
        begin: draw(0.001, 0.02),
        end: draw(0.1, 0.5),
    });
    let rate_bps = (draw(0.0, 1.0) < 0.6).then(|| draw(600e3, 50e6) as u64);
    let line = Line {
        delay: one_way,
        jitter,
        loss,
        bursts,
        duplicate: if draw(0.0, 1.0) < 0.3 {
            draw(0.0, 0.1)
        } else {
            0.0
        },
        rate_bps,
        queue_bytes: draw(20e3, 300e3) as usize,
        ..Line::default()
    };
    world.add_edge(line.clone(), line, Cipher::AesGcm);
    (world, Traffic::new(flows()))
}

#[test]
fn exactly_once_and_in_order_over_any_line() {
    for seed in 1..=150 {
        let (mut world, mut traffic) = troubled(seed);
        let done = traffic.run(&mut world, Duration::from_secs(300));
        let received: Vec<_> = traffic.flows.iter().map(|flow| flow.received).collect();
        assert!(
            done,
            "seed {seed}: {received:?} after {:?}",
            world.elapsed()
        );
        assert!(world.steps < 200_000, "seed {seed}: {} steps", world.steps);
        assert!(traffic.most_outstanding < 16 << 20, "seed {seed}");
        assert!(
            traffic.closes.is_empty(),
            "seed {seed}: {:?}",
            traffic.closes
        );
    }
}

#[test]
fn exactly_once_through_cuts_moves_and_restarts() {
    let (mut resets, mut closes, mut moves) = (0, 0, 0);
    for seed in 1..=150 {
        let (mut world, mut traffic) = troubled(seed);
        for round in 0..4 {
            let pause = ms((world.network.chance() * 2000.0) as u64);
            traffic.run(&mut world, pause);
            let cut = Duration::from_secs_f64(world.network.chance() * 12.0);
            match (world.network.chance() * 6.0) as u32 {
                0 => world.cut(0, cut),
                1 => world.cut_up(0, cut),
                2 => world.cut_down(0, cut),
                3 => world.move_edge(0, format!("203.0.113.9:{}", 2000 + round).parse().unwrap()),
                4 => {
                    world.restart_hub();
                    traffic.on_restart();
                }
                _ => {
                    world.restart_edge(0);
                    traffic.on_restart();
                }
            }
        }
        let done = traffic.run(&mut world, Duration::from_secs(600));
        let received: Vec<_> = traffic.flows.iter().map(|flow| flow.received).collect();
        assert!(
            done,
            "seed {seed}: {received:?} after {:?}",
            world.elapsed()
        );
        assert!(world.steps < 400_000, "seed {seed}: {} steps", world.steps);
        resets += traffic.resets;
        closes += traffic.closes.len();
        moves += traffic.moves;
    }
    assert!(
        resets > 30 && closes > 50 && moves > 20,
        "{resets} {closes} {moves}: all paths are walked"
    );
}
