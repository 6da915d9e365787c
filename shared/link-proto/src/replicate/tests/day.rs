//! A day of stream time through random cuts, kills, clock steps and full disks, with time that jumps.
//!
//! By default an hour; `PENSTOCK_SIM_HOURS` sets another number, as `scripts/soak sim` does.

use std::time::Duration;

use model::StreamName;

use super::pair::{Pair, lossy, ms};

/// A segment is six parts.
const PARTS: u64 = 6;
const PART_TIME: Duration = ms(333);
/// Small, so that a day fits; sizes vary as pictures do.
const MAX_PART_BYTES: u64 = 2_000;
/// What the edge keeps of what is stored: about a minute.
const KEPT: usize = 32;
/// After an incident of this length at most everything must be well again within a quarter of an hour.
const MAX_SPELL_S: u64 = 40;
/// What the sender may hold of a stream while nothing is wrong: segments on their way, ranges, a page of
/// segments in hand.
const MAX_HELD: usize = 1_024;

#[allow(
    clippy::disallowed_methods,
    reason = "how long to simulate is the soak script's choice"
)]
fn hours() -> u64 {
    let set = std::env::var("PENSTOCK_SIM_HOURS").ok();
    set.and_then(|hours| hours.parse().ok()).unwrap_or(1)
}

#[test]
fn a_day_loses_nothing_and_holds_no_more_than_an_hour_does() {
    let seed = 5;
    let mut pair = Pair::new(seed, &lossy(0.02));
    let streams: Vec<StreamName> = ["cam-1", "cam-2"].iter().map(|s| pair.stream(s)).collect();
    let parts = hours() * 3_600 * 1_000 / PART_TIME.as_millis() as u64;
    let mut most_held = [0, 0];
    let mut incidents = [0_u32; 7];
    let mut disk_full_until = None;
    for part in 0..parts {
        for stream in &streams {
            let bytes = 1 + pair.random.below(MAX_PART_BYTES) as usize;
            pair.record(stream, bytes);
            if part % PARTS == PARTS - 1 {
                pair.close(stream);
            }
        }
        if pair.random.one_in(400) {
            let kind = pair.random.below(7) as usize;
            incidents[kind] += 1;
            let spell = Duration::from_secs(pair.random.below(MAX_SPELL_S));
            match kind {
                0 => pair.restart_edge(1),
                1 => {
                    let lose = pair.random.below(4_000) as usize;
                    pair.restart_hub(lose);
                }
                2 => pair.world.cut(0, spell),
                3 => pair.world.cut_up(0, spell),
                4 => pair.world.cut_down(0, spell),
                // A machine that slept; monotonic clocks may count that.
                5 => pair.world.now += Duration::from_secs(600),
                _ => {
                    pair.hub.disk_full = true;
                    disk_full_until = Some(pair.world.now + spell);
                }
            }
        }
        if disk_full_until.is_some_and(|until| until <= pair.world.now) {
            pair.hub.disk_full = false;
            disk_full_until = None;
        }
        pair.run(PART_TIME, |_| false);
        // An hour's worth is compared and let go of, so that the stores themselves stay small.
        pair.let_go(KEPT);
        let half = usize::from(part >= parts / 2);
        most_held[half] = most_held[half].max(pair.sender.entries());
    }
    pair.hub.disk_full = false;
    pair.end_all();
    let done = |pair: &Pair| pair.sender.is_done();
    assert!(pair.run(Duration::from_secs(900), done));
    pair.assert_replicated();
    let compared = pair.let_go(0);
    let cut = 2 * parts / PARTS;
    // A killed edge loses the open segment's last part, and with it a segment that had no other.
    assert!(compared * 100 >= cut * 95, "{compared} of {cut}");
    assert!(
        pair.edge
            .streams
            .values()
            .all(|edge| edge.closed.is_empty())
    );
    assert!(incidents.iter().sum::<u32>() > 0);
    let [first, second] = most_held;
    println!(
        "{} h, {compared} segments; {incidents:?} restarts of edge and hub, cuts (both, up, down), sleeps, full disks; most held: {first}, then {second}",
        hours()
    );
    assert!(second <= MAX_HELD, "{second} held by the sender");
}
