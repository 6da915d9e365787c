//! Numbers that are another's at the hub: all that is unconfirmed moves, in order, and no kill loses a byte.

use std::{fs, path::Path};

use model::{HoleReason, MediaDuration, RangeSet};

use super::*;
use crate::{Announced, StoreError, catalog::streams};

/// Closed segments 1 to 9 of runs 1 and 5; the hub has confirmed 1 to 3.
fn site() -> Site {
    let site = Site::edge();
    for number in 1..=4 {
        put(site.store(), number, 1);
    }
    site.store()
        .change_live(&gate(), |c, row| {
            Ok(streams::put_run_of(c, row.id, &run(5), true)?)
        })
        .unwrap();
    for number in 5..=9 {
        put(site.store(), number, 5);
    }
    for number in 1..=3 {
        site.store().mark_stored(&gate(), n(number)).unwrap();
    }
    site
}

/// Runs whose sources can wait.
fn waiting_runs(store: &Store) -> Vec<i64> {
    let read = store.inner().catalog.read(|c| {
        let mut runs = c.prepare("SELECT run FROM run WHERE waits = 1 ORDER BY run")?;
        let runs = runs.query_map([], |row| row.get(0))?;
        Ok(runs.collect::<rusqlite::Result<_>>()?)
    });
    read.unwrap()
}

fn finish(store: &Store) {
    for _ in 0..10 {
        if store.go_on_renumbering(&gate()).unwrap().is_none() {
            return;
        }
    }
    panic!("it does not end");
}

/// Unconfirmed segments 4 to 9 are at 108 on, whole and in order.
fn assert_moved(site: &Site) {
    let store = site.store();
    let all: Vec<u64> = (1..=3).chain(108..=113).collect();
    assert_eq!(store.numbers_here(&gate()), all);
    for (number, was) in (108..=113).zip(4..=9) {
        let info = store.segment(&gate(), n(number)).unwrap().unwrap();
        let run = if was == 4 { 108 } else { 109 };
        let expected = SegmentInfo {
            number: n(number),
            run: n(run),
            ..info_of(was, 1)
        };
        assert_eq!(info, expected);
        let bytes = store.read(&gate(), n(number), 0..1_000).unwrap();
        assert_eq!(&bytes[..], bytes_of(was));
    }
    for number in [108, 109] {
        let info = store.run(&gate(), n(number)).unwrap().unwrap();
        assert_eq!(info, run(number));
    }
    // The file's is one still.
    assert_eq!(waiting_runs(store), [5, 109]);
    assert_eq!(
        store.holes(&gate()).unwrap(),
        [(n(4)..=n(9), HoleReason::Renumbered)]
    );
    let mut listed: Vec<String> = site.listed();
    listed.retain(|uri| !uri.starts_with("gap"));
    let uris: Vec<String> = all.iter().map(|number| format!("{number}.ts")).collect();
    assert_eq!(listed, uris);
    let folder = site.path().join("segments/gate");
    let hour = fs::read_to_string(folder.join("2026-05-01T08.m3u8")).unwrap();
    let live = fs::read_to_string(folder.join("live.m3u8")).unwrap();
    for text in [hour, live] {
        let names: Vec<&str> = text.lines().filter(|l| l.ends_with(".ts")).collect();
        let expected: Vec<String> = all.iter().map(|number| format!("0/{number}.ts")).collect();
        assert_eq!(names, expected);
    }
    let mut files = names_in(&folder.join("0"));
    files.sort();
    let mut expected = uris;
    expected.push("ledger".to_owned());
    expected.sort();
    assert_eq!(files, expected, "no file under an old name, none lost");
    let summary = store.stream(&gate()).unwrap().unwrap();
    assert_eq!((summary.segments, summary.bytes), (9, 9 * 564));
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn all_that_is_unconfirmed_moves_above_the_hubs_floor_in_order() {
    let mut site = site();
    site.store().end_stream(&gate(), Some(n(9))).unwrap();
    site.store().renumber(&gate(), n(4), n(100)).unwrap();
    finish(site.store());
    assert_moved(&site);
    assert_eq!(site.store().ending(&gate()).unwrap(), Some(Some(n(113))));
    site.restart();
    assert_moved(&site);
    // What has moved, and what the hub has, does not move again.
    for number in [4, 9, 2] {
        site.store().renumber(&gate(), n(number), n(500)).unwrap();
        finish(site.store());
    }
    assert_moved(&site);
    // New segments come above, and an end that is told late means the number that it has now.
    let floor = site.store().floor(&gate()).unwrap();
    assert!(floor > n(113), "{floor}");
    site.store().end_stream(&gate(), Some(n(9))).unwrap();
    assert_eq!(site.store().ending(&gate()).unwrap(), Some(Some(n(113))));
}

#[test]
fn the_open_segment_moves_once_it_is_closed_and_comes_before_later_ones() {
    let site = site();
    let mut writer = site.store().open_segment(&gate(), open(10, 5)).unwrap();
    site.store().renumber(&gate(), n(4), n(100)).unwrap();
    finish(site.store());
    assert_eq!(
        site.store().renumbering(&gate()).unwrap(),
        Some(n(4)..=n(107)),
        "the open one is waited for"
    );
    writer.append(&bytes_of(10)).unwrap();
    writer.finish_part(MediaDuration(180_000), true).unwrap();
    let closed = writer.close(MediaDuration(180_000), None).unwrap();
    assert_eq!(closed.number, n(10), "the recorder knows it by that");
    assert_eq!(site.store().renumbering(&gate()).unwrap(), None);
    let floor = site.store().floor(&gate()).unwrap();
    assert!(floor > n(114), "{floor}");
    put(site.store(), floor.0, 5);
    let all = site.store().list(&gate(), n(100), 100).unwrap();
    let last: Vec<_> = all.iter().map(|info| (info.number, info.run)).collect();
    assert_eq!(last[6..], [(n(114), n(109)), (floor, n(109))]);
    let uri = [n(114), floor].map(|number| format!("{number}.ts"));
    let listed = site.listed();
    assert_eq!(listed[listed.len() - 2..], uri);
}

/// A kill at each step: before the links, between links, before the commit, after it, and between unlinks.
#[test]
fn a_kill_at_any_step_loses_nothing() {
    for step in 0..5 {
        let mut site = site();
        let folder = site.path().join("segments/gate/0");
        site.store().renumber(&gate(), n(4), n(100)).unwrap();
        let link = |from: u64, to: u64| {
            let path = |number| folder.join(format!("{number}.ts"));
            fs::hard_link(path(from), path(to)).unwrap();
        };
        match step {
            0 => {}
            1 => link(4, 108),
            2 => (4..=9).for_each(|number| link(number, number + 104)),
            // After the commit the old names are there still.
            3 | 4 => {
                let keep = site.path().join("keep");
                fs::create_dir(&keep).unwrap();
                let names: Vec<_> = (4..=9).map(|number| format!("{number}.ts")).collect();
                for name in &names {
                    fs::hard_link(folder.join(name), keep.join(name)).unwrap();
                }
                let more = site.store().go_on_renumbering(&gate()).unwrap();
                assert_eq!(more, Some(n(4)));
                for name in names.iter().skip(if step == 3 { 0 } else { 3 }) {
                    fs::hard_link(keep.join(name), folder.join(name)).unwrap();
                }
            }
            _ => unreachable!(),
        }
        let report = site.restart();
        assert_eq!((report.adopted, report.set_aside), (0, 0), "step {step}");
        finish(site.store());
        assert_moved(&site);
        let orphans = site.path().join("orphans");
        assert!(!orphans.exists() || names_in(&orphans).is_empty());
    }
}

#[test]
fn what_expired_at_the_hub_is_ours_only_if_it_had_the_run() {
    let site = site();
    for (number, given_up) in [(4, true), (5, false)] {
        site.store()
            .give_up(&gate(), n(number), HoleReason::Expired)
            .unwrap();
        let plan = site.store().renumbering(&gate()).unwrap();
        assert_eq!(plan.is_none(), given_up, "{number}");
    }
    finish(site.store());
    let moved = site.store().unshipped(&gate(), n(0), 100).unwrap();
    assert_eq!(moved.len(), 5);
    assert!(moved.iter().all(|info| info.number > n(9)));
    assert_eq!(
        site.store().given_up(&gate()).unwrap(),
        [(HoleReason::Expired, 1)]
    );
}

#[test]
fn a_hub_compares_what_is_announced_with_what_it_has() {
    let site = Site::hub();
    for number in 1..=3 {
        put(site.store(), number, 1);
    }
    let announce = |infos: &[SegmentInfo]| {
        let announced: Vec<_> = infos.iter().map(|&info| Announced { info }).collect();
        site.store().announce(&gate(), &announced).unwrap()
    };
    let other = SegmentInfo {
        hash: SegmentHash([9; 32]),
        ..info_of(3, 1)
    };
    let found = announce(&[info_of(1, 1), info_of(2, 1), other, info_of(4, 1)]);
    assert_eq!(found.stored, [n(1), n(2)]);
    assert_eq!(found.collides, Some(n(3)));
    assert_eq!(
        site.store().floor(&gate()).unwrap(),
        n(4),
        "4 is not looked at"
    );
    // A run that is another one is not written over.
    let codecs = "hvc1.1.6.L93.B0".to_owned();
    let another = RunInfo { codecs, ..run(1) };
    assert!(matches!(
        site.store().put_run(&gate(), &another),
        Err(StoreError::NumberUsed { .. })
    ));
    assert_eq!(site.store().run(&gate(), n(1)).unwrap(), Some(run(1)));
}

#[test]
fn what_a_wiped_edge_does_not_hold_any_more_is_lost_and_the_list_goes_on() {
    let site = Site::hub();
    let announced: Vec<_> = (1..=6)
        .map(|number| Announced {
            info: info_of(number, 1),
        })
        .collect();
    site.store().announce(&gate(), &announced).unwrap();
    put(site.store(), 1, 1);
    let mut partial = site.store().open_segment(&gate(), open(2, 1)).unwrap();
    partial.append(b"a beginning").unwrap();
    drop(partial);
    let writing = site.store().open_segment(&gate(), open(3, 1)).unwrap();
    put(site.store(), 6, 1);
    assert_eq!(site.listed(), ["1.ts"], "the rest waits");
    let held: RangeSet = [n(5)..=n(5)].into_iter().collect();
    let lost = |within| site.store().keep_only(&gate(), &within, &held).unwrap();
    assert_eq!(lost(n(0)..=n(1)), 0);
    assert_eq!(lost(n(0)..=n(u64::MAX)), 2, "2 and 4: 3 is being written");
    let holes = site.store().holes(&gate()).unwrap();
    let reason = HoleReason::Lost;
    assert_eq!(holes, [(n(2)..=n(2), reason), (n(4)..=n(4), reason)]);
    drop(writing);
    let none = RangeSet::new();
    let all = n(0)..=n(9);
    assert_eq!(site.store().keep_only(&gate(), &all, &none).unwrap(), 2);
    let listed = site.listed();
    assert_eq!(listed.first().unwrap(), "1.ts");
    assert_eq!(listed.last().unwrap(), "6.ts");
    assert!(listed[1].starts_with("gap"), "{listed:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_buried_and_a_dead_disk_is_not() {
    let site = site();
    let folder = site.path().join("segments/gate/0");
    assert!(!site.store().bury_unreadable(&gate(), n(6)).unwrap());
    let file = fs::File::options()
        .write(true)
        .open(folder.join("6.ts"))
        .unwrap();
    file.set_len(100).unwrap();
    assert!(site.store().bury_unreadable(&gate(), n(6)).unwrap());
    let corrupt = (n(6)..=n(6), HoleReason::Corrupt);
    assert_eq!(site.store().holes(&gate()).unwrap(), [corrupt]);
    fs::rename(&folder, site.path().join("gone")).unwrap();
    assert!(!site.store().bury_unreadable(&gate(), n(7)).unwrap());
    assert_eq!(site.store().holes(&gate()).unwrap().len(), 1);
}

#[test]
fn announced_rows_are_bounded() {
    let site = Site::hub();
    let mut number = 1;
    let announce = |from: u64| {
        let some: Vec<_> = (from..from + 512)
            .map(|number| Announced {
                info: info_of(number, 1),
            })
            .collect();
        site.store().announce(&gate(), &some)
    };
    let error = loop {
        match announce(number) {
            Ok(_) => number += 512,
            Err(error) => break error,
        }
        assert!(number <= crate::MAX_ANNOUNCED_ROWS + 1);
    };
    assert!(matches!(error, StoreError::TooManyAnnounced { .. }));
    assert_eq!(number, crate::MAX_ANNOUNCED_ROWS + 1);
    // What is known already may be announced again.
    announce(1).unwrap();
}

/// The recorder and the uplink carry one renumbering on at the same time.
#[test]
fn two_threads_that_move_segments_lose_none() {
    let site = Site::edge();
    for number in 1..=60 {
        put(site.store(), number, 1);
    }
    site.store().renumber(&gate(), n(1), n(100)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| finish(site.store()));
        }
    });
    let all = site.store().list(&gate(), n(0), 100).unwrap();
    assert_eq!(all.len(), 60);
    for (info, was) in all.iter().zip(1..) {
        assert_eq!(info.number, n(107 + was));
        let bytes = site.store().read(&gate(), info.number, 0..1_000).unwrap();
        assert_eq!(&bytes[..], bytes_of(was));
    }
}
