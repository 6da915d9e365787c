//! The same over real sessions on a simulated line: loss, delay, cuts, restarts, and time that jumps.

use std::time::Duration;

use super::pair::{Pair, lossy, ms};
use crate::sim::Line;

#[test]
fn live_parts_arrive_within_some_round_trips_on_a_clean_line() {
    let mut pair = Pair::new(1, &Line::default());
    let gate = pair.stream("gate");
    assert!(pair.run(ms(2_000), |pair| pair.welcomed.is_some()));
    for part in 1..=30 {
        pair.record(&gate, 60_000);
        let before = pair.world.now;
        let there = |pair: &Pair| pair.hub.streams.get(&gate).is_some_and(|s| s.parts == part);
        assert!(pair.run(ms(2_000), there), "part {part}");
        let took = pair.world.now - before;
        // Rounds of 20 ms: the first part compares first.
        assert!(took <= ms(if part == 1 { 200 } else { 120 }), "{took:?}");
        if part % 6 == 0 {
            pair.close(&gate);
        }
        pair.run(ms(300), |_| false);
    }
    pair.end_all();
    assert!(pair.run(ms(5_000), |pair| pair.sender.is_done()));
    pair.assert_replicated();
    assert_eq!(pair.media_bytes, 30 * 60_000, "nothing was sent twice");
}

#[test]
fn a_cut_of_twenty_seconds_costs_no_segment() {
    for seed in 0..8 {
        let mut pair = Pair::new(seed, &lossy(0.02));
        let gate = pair.stream("gate");
        for part in 0..120 {
            pair.record(&gate, 40_000);
            if part % 6 == 5 {
                pair.close(&gate);
            }
            if part == 30 {
                pair.world.cut(0, Duration::from_secs(20));
            }
            pair.run(ms(333), |_| false);
        }
        pair.end_all();
        let done = |pair: &Pair| pair.sender.is_done();
        assert!(pair.run(Duration::from_secs(60), done), "seed {seed}");
        pair.assert_replicated();
        let recorded = 120 * 40_000;
        // What was on its way when the channels were renewed is sent again.
        assert!(
            pair.media_bytes < recorded + recorded / 4,
            "{}",
            pair.media_bytes
        );
    }
}

#[test]
fn restarts_cuts_and_loss_cost_nothing_that_the_edge_has() {
    for seed in 0..16 {
        let loss = [0.0, 0.05, 0.1, 0.2][seed as usize % 4];
        let mut pair = Pair::new(seed, &lossy(loss));
        let streams = [pair.stream("cam-1"), pair.stream("cam-2")];
        for _ in 0..150 {
            for stream in &streams {
                let bytes = 1 + pair.random.below(40_000) as usize;
                pair.record(stream, bytes);
                if pair.random.one_in(6) {
                    pair.close(stream);
                }
            }
            match pair.random.below(60) {
                0 => {
                    let lose = pair.random.below(3) as usize;
                    pair.restart_edge(lose);
                }
                1 => {
                    let lose = pair.random.below(60_000) as usize;
                    pair.restart_hub(lose);
                }
                2 => {
                    let seconds = pair.random.below(15);
                    pair.world.cut(0, Duration::from_secs(seconds));
                }
                3 => pair.world.cut_down(0, Duration::from_secs(5)),
                // A machine that was asleep.
                4 => pair.world.now += Duration::from_secs(600),
                _ => {}
            }
            pair.run(ms(333), |_| false);
        }
        pair.end_all();
        let done = |pair: &Pair| pair.sender.is_done();
        assert!(pair.run(Duration::from_secs(900), done), "seed {seed}");
        pair.assert_replicated();
    }
}
