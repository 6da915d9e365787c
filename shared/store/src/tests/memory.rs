//! Recording through memory: the disk's thread writes in order, drops leave holes, and a disk that was away is
//! gone on with.

use std::{fs, time::Duration};

use bytes::Bytes;
use model::{HoleReason, MediaDuration, RangeSet};

use super::{Site, bytes_of, gate, info_of, n, open, run};
use crate::{SourceKind, Store, StoreError, StoreOptions, TroubleKind};

const TWO_SECONDS: MediaDuration = MediaDuration(180_000);
const SOON: Duration = Duration::from_secs(20);

fn cut(store: &Store, number: u64, source: SourceKind) {
    let mut writer = store.record(&gate(), &run(1), open(number, 1), None, source);
    let bytes = bytes_of(number);
    let (a, b) = bytes.split_at(bytes.len() / 2);
    writer.append_part(Bytes::copy_from_slice(a), MediaDuration(90_000), true);
    writer.append_part(Bytes::copy_from_slice(b), MediaDuration(90_000), false);
    assert_eq!(writer.close(TWO_SECONDS), Some(info_of(number, 1)));
}

fn unshipped(store: &Store) -> Vec<u64> {
    let all = store.unshipped(&gate(), n(0), 100).unwrap();
    all.iter().map(|info| info.number.0).collect()
}

fn written(store: &Store) {
    assert!(store.wait_for_all(&gate(), SOON).unwrap());
}

/// Waits until memory is empty, whatever the disk has been through.
fn settled(store: &Store) {
    let start = std::time::Instant::now();
    while store.in_memory().bytes > 0 || store.disk_trouble().is_some() {
        assert!(start.elapsed() < SOON * 3, "{:?}", store.disk_trouble());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn segments_come_to_the_disk_in_order_and_stay_after_a_restart() {
    let mut site = Site::edge();
    for number in 1..=5 {
        cut(site.store(), number, SourceKind::Live);
    }
    written(site.store());
    assert_eq!(site.listed(), ["1.ts", "2.ts", "3.ts", "4.ts", "5.ts"]);
    site.store().mark_stored(&gate(), n(2)).unwrap();
    assert_eq!(unshipped(site.store()), [1, 3, 4, 5]);
    let summary = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!((summary.segments, summary.unshipped), (5, 4));
    let mut open_one = site
        .store()
        .record(&gate(), &run(1), open(6, 1), None, SourceKind::Live);
    open_one.append_part(Bytes::from(bytes_of(6)), TWO_SECONDS, true);
    let view = site.store().open_view(&gate()).unwrap().unwrap();
    assert_eq!((view.open.number, view.parts.len()), (n(6), 1));
    let read = site.store().read(&gate(), n(6), 10..20).unwrap();
    assert_eq!(read, bytes_of(6)[10..20]);
    // Broken off, it ends at its last part.
    drop(open_one);
    written(site.store());
    site.restart();
    assert_eq!(unshipped(site.store()), [1, 3, 4, 5, 6]);
    let all = site.store().list(&gate(), n(0), 10).unwrap();
    assert_eq!(all[..5], (1..=5).map(|i| info_of(i, 1)).collect::<Vec<_>>());
}

#[test]
fn a_stream_that_ends_ends_behind_its_last_segment() {
    let site = Site::edge();
    cut(site.store(), 1, SourceKind::Live);
    cut(site.store(), 2, SourceKind::Live);
    site.store().end_stream(&gate(), Some(n(2))).unwrap();
    assert_eq!(site.store().ending(&gate()).unwrap(), Some(Some(n(2))));
    written(site.store());
    assert_eq!(site.store().ending(&gate()).unwrap(), Some(Some(n(2))));
    assert!(site.live().ends_with("#EXT-X-ENDLIST\n"), "{}", site.live());
}

#[test]
fn while_the_disk_is_away_memory_serves_the_link_and_then_the_disk() {
    let site = Site::with(StoreOptions {
        local_playlists: true,
        // Four of these segments.
        memory_bytes: 4 * 564,
        ..StoreOptions::default()
    });
    let store = site.store();
    cut(store, 1, SourceKind::Live);
    written(store);
    let (here, away) = (site.path().to_owned(), site.path().with_extension("away"));
    fs::rename(&here, &away).unwrap();
    for number in 2..=4 {
        cut(store, number, SourceKind::Live);
    }
    let start = std::time::Instant::now();
    while store.disk_trouble().is_none() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(10));
    }
    let trouble = store.disk_trouble().unwrap();
    assert_eq!(trouble.kind, TroubleKind::Broken);
    assert!(trouble.what.contains("is gone"), "{}", trouble.what);
    assert!(!here.exists(), "nothing is written where the disk was");
    assert_eq!(unshipped(store), [1, 2, 3, 4]);
    // The hub has one of them; then room is needed for two more.
    store.mark_stored(&gate(), n(3)).unwrap();
    cut(store, 5, SourceKind::Live);
    cut(store, 6, SourceKind::Live);
    cut(store, 7, SourceKind::Live);
    assert_eq!(unshipped(store), [1, 4, 5, 6, 7]);
    let holes = store.holes(&gate()).unwrap();
    assert_eq!(holes, [(n(2)..=n(2), HoleReason::Evicted)]);
    // A file is told at once.
    let file = store.wait_for_disk(&gate(), SOON);
    assert!(file.is_ok(), "nothing of a file is held");
    cut(store, 8, SourceKind::AtRest);
    cut(store, 9, SourceKind::AtRest);
    let refused = store.wait_for_disk(&gate(), SOON).unwrap_err();
    assert!(matches!(refused, StoreError::Failing(_)), "{refused}");

    // The same disk under another inode, as after a new mount.
    copy_all(&away, &here);
    settled(store);
    let counters = store.memory_counters();
    assert!(counters.segments >= 7, "{counters:?}");
    // Files take room that live segments give way to.
    assert_eq!(counters.lost, 1 + lost_to_files(store));
    let numbers: Vec<u64> = store
        .list(&gate(), n(0), 20)
        .unwrap()
        .iter()
        .map(|info| info.number.0)
        .collect();
    assert_eq!(numbers.first(), Some(&1));
    assert!(numbers.ends_with(&[8, 9]), "{numbers:?}");
    assert!(site.listed().iter().any(|uri| uri.starts_with("gap-")));
    // Here or explained.
    let all: RangeSet = [n(1)..=n(9)].into_iter().collect();
    assert_eq!(store.settled(&gate()).unwrap(), all);
    fs::remove_dir_all(away).unwrap();
}

/// Live segments dropped besides the first.
fn lost_to_files(store: &Store) -> u64 {
    let holes = store.holes(&gate()).unwrap();
    let evicted = holes.iter().filter(|(_, why)| *why == HoleReason::Evicted);
    evicted
        .map(|(r, _)| r.end().0 - r.start().0 + 1)
        .sum::<u64>()
        - 1
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success());
}

#[test]
fn a_camera_and_a_file_at_its_own_pace_are_shipped_as_they_come() {
    for (source, live) in [
        (SourceKind::Live, true),
        (SourceKind::Paced, true),
        (SourceKind::AtRest, false),
    ] {
        let site = Site::edge();
        cut(site.store(), 1, source);
        assert_eq!(site.store().is_live_source(&gate()), live, "{source:?}");
    }
}
