//! Retention carried out.

use std::time::Duration;

use model::{HoleReason, WallTime};

use super::*;
use crate::RetentionLimits;

fn limits(options: RetentionLimits) -> StoreOptions {
    StoreOptions {
        limits: options,
        live_window: Duration::from_secs(1),
        local_playlists: options.keep_unshipped,
        ..StoreOptions::default()
    }
}

fn here(site: &Site) -> Vec<u64> {
    let all = site.store().list(&gate(), n(0), 1_000).unwrap();
    all.iter().map(|info| info.number.0).collect()
}

#[test]
fn what_is_listed_stays_and_what_is_old_goes() {
    let site = Site::with(limits(RetentionLimits {
        max_age: Some(Duration::from_secs(60)),
        ..Default::default()
    }));
    for number in 1..=20 {
        put(site.store(), number, 1);
    }
    let now = WallTime(crate::store::wall_now().0 + 3_600_000);
    let report = site.store().run_janitor(now).unwrap();
    // Six are listed; the grace of those that left is counted from the machine's own clock.
    let kept = here(&site);
    assert!(kept.ends_with(&[15, 16, 17, 18, 19, 20]), "{kept:?}");
    assert_eq!(report.deleted as usize, 20 - kept.len());
    // The stream ends, and with it the list's claim on its segments.
    site.store().end_stream(&gate(), Some(n(20))).unwrap();
    let now = WallTime(crate::store::wall_now().0 + 2 * 3_600_000);
    site.store().run_janitor(now).unwrap();
    assert!(site.store().live_playlist(&gate()).unwrap().is_none());
    assert_eq!(
        here(&site),
        [15, 16, 17, 18, 19, 20],
        "whoever read the list may still read its segments"
    );
    let graced = WallTime(now.0 + 60_000);
    site.store().run_janitor(graced).unwrap();
    assert_eq!(here(&site), [0u64; 0]);
    assert!(site.store().live_playlist(&gate()).unwrap().is_none());
    let settled = site.store().settled(&gate()).unwrap();
    assert_eq!(settled.iter().collect::<Vec<_>>(), [n(1)..=n(20)]);
    let files = walk(&site.path().join("segments/gate"));
    assert_eq!(files, 0);
    // Numbers and sequences go on all the same.
    assert_eq!(site.store().floor(&gate()).unwrap(), n(21));
}

fn walk(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| {
            if e.path().is_dir() {
                walk(&e.path())
            } else {
                usize::from(e.path().extension().is_some_and(|x| x == "ts"))
            }
        })
        .sum()
}

#[test]
fn a_full_edge_evicts_what_the_hub_has_first() {
    let site = Site::with(limits(RetentionLimits {
        max_bytes: Some(20 * 564),
        keep_unshipped: true,
        ..Default::default()
    }));
    for number in 1..=30 {
        put(site.store(), number, 1);
    }
    // All lists and their grace aside: an hour later nobody reads the old ones.
    site.store().end_stream(&gate(), Some(n(30))).unwrap();
    for number in [5, 6, 7, 8] {
        site.store().mark_stored(&gate(), n(number)).unwrap();
    }
    assert!(
        site.store().should_hold_back().unwrap(),
        "26 of 20 segments wait for the hub"
    );
    let now = WallTime(crate::store::wall_now().0 + 3_600_000);
    let report = site.store().run_janitor(now).unwrap();
    assert_eq!((report.deleted, report.forced), (10, 6));
    let gone: Vec<u64> = (1..=30)
        .filter(|number| !here(&site).contains(number))
        .collect();
    assert_eq!(gone, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(
        site.store().holes(&gate()).unwrap(),
        [
            (n(1)..=n(4), HoleReason::Evicted),
            (n(9)..=n(10), HoleReason::Evicted)
        ]
    );
    let summary = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!((summary.segments, summary.bytes), (20, 20 * 564));
    assert_eq!(summary.first_number, Some(n(11)));
    assert_eq!(summary.ranges.len(), 1);
}

#[test]
fn space_does_not_wait_for_readers_but_what_is_listed_stays() {
    let site = Site::with(limits(RetentionLimits {
        max_bytes: Some(564),
        keep_unshipped: true,
        ..Default::default()
    }));
    for number in 1..=30 {
        put(site.store(), number, 1);
        site.store().mark_stored(&gate(), n(number)).unwrap();
    }
    let report = site.store().run_janitor(site.store().steady_now()).unwrap();
    assert!(report.graced > 0 && report.forced == 0, "{report:?}");
    let listed: Vec<String> = here(&site).iter().map(|n| format!("{n}.ts")).collect();
    assert_eq!(site.listed(), listed);
}

#[test]
fn recorded_ranges_join_and_part() {
    let site = Site::hub();
    let announced: Vec<_> = (1..=9)
        .map(|number| crate::Announced {
            info: info_of(number, 1),
        })
        .collect();
    site.store().announce(&gate(), &announced).unwrap();
    let ranges = |site: &Site| -> Vec<(i64, i64)> {
        let summary = site.store().stream(&gate()).unwrap().unwrap();
        summary
            .ranges
            .iter()
            .map(|(from, to)| ((from.0 - T0.0) / 1_000, (to.0 - T0.0) / 1_000))
            .collect()
    };
    for number in [1, 2, 6, 7] {
        put(site.store(), number, 1);
    }
    assert_eq!(ranges(&site), [(12, 16), (2, 6)]);
    for number in [4, 3, 5] {
        put(site.store(), number, 1);
    }
    assert_eq!(ranges(&site), [(2, 16)]);
    let summary = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!((summary.segments, summary.bytes), (7, 7 * 564));
}

#[test]
fn old_footage_does_not_expire_on_arrival() {
    let site = Site::with(limits(RetentionLimits {
        max_age: Some(Duration::from_secs(3_600)),
        ..Default::default()
    }));
    for number in 1..=20 {
        let open = OpenSegment {
            // The edge's clock is not set.
            wall_start: WallTime(number as i64 * 2_000),
            ..open(number, 1)
        };
        let mut writer = site.store().open_segment(&gate(), open).unwrap();
        writer.append(&bytes_of(number)).unwrap();
        writer.finish_part(TWO_SECONDS, true).unwrap();
        writer.close(TWO_SECONDS, None).unwrap();
    }
    site.store().end_stream(&gate(), Some(n(20))).unwrap();
    let arrived = crate::store::wall_now().0;
    site.store()
        .run_janitor(WallTime(arrived + 60_000))
        .unwrap();
    assert_eq!(here(&site).len(), 20);
    assert!(site.store().live_playlist(&gate()).unwrap().is_some());
    for minutes in [61, 63] {
        let now = WallTime(arrived + minutes * 60_000);
        site.store().run_janitor(now).unwrap();
    }
    assert_eq!(here(&site), [0u64; 0]);
}

#[test]
fn a_clock_that_jumps_deletes_nothing_for_its_age() {
    let site = Site::with(limits(RetentionLimits {
        max_age: Some(Duration::from_secs(3_600)),
        ..Default::default()
    }));
    for number in 1..=20 {
        put(site.store(), number, 1);
    }
    site.store().end_stream(&gate(), Some(n(20))).unwrap();
    let real = crate::store::wall_now().0;
    let year = 365 * 86_400_000;
    let look = |wall: i64| {
        let report = site.store().run_janitor(WallTime(wall)).unwrap();
        report.deleted
    };
    // At the first look there is only the catalog to go by.
    assert_eq!(look(real + year), 0);
    assert_eq!(look(real + year + 7_200_000), 0, "held");
    // Set right, and wrong again while running.
    assert_eq!(look(real), 0);
    assert_eq!(look(real + 2 * year), 0);
    // The hold over, what the clock says counts.
    let held = std::time::Instant::now() + Duration::from_secs(25 * 3_600);
    let later = WallTime(real + 2 * year + 25 * 3_600_000);
    assert!(!site.store().is_age_held(held, later).unwrap());
}
