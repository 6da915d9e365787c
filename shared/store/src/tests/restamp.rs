//! Corrections of the clock: the ledger follows, live lists stay.

use model::{BootId, BootTime};
use proptest::prelude::*;

use super::*;

const BOOT: BootId = BootId(77);
/// This boot began at the Unix epoch, as far as its clock knew.
const UNSET: WallTime = WallTime(0);

/// Opens a live segment that begins at `ms` on the boot's clock, by a clock that was never set.
fn open_live(store: &Store, number: u64, run: u64, boot: BootId, ms: i64) -> crate::SegmentWriter {
    let at = BootTime { boot, ms };
    let segment = OpenSegment {
        wall_start: at.wall(UNSET),
        media_start: MediaTime(ms * 90),
        ..open(number, run)
    };
    let mut writer = store.open_live_segment(&gate(), segment, at).unwrap();
    writer.append(&bytes_of(number)).unwrap();
    writer.finish_part(TWO_SECONDS, true).unwrap();
    writer
}

fn put_live(store: &Store, number: u64, run: u64, ms: i64) {
    let writer = open_live(store, number, run, BOOT, ms);
    writer.close(TWO_SECONDS, None).unwrap();
}

fn walls(store: &Store) -> Vec<i64> {
    let all = store.list(&gate(), n(0), 1_000).unwrap();
    all.iter().map(|info| info.wall_start.0).collect()
}

fn ranges(store: &Store) -> Vec<(i64, i64)> {
    let ranges = store.stream(&gate()).unwrap().unwrap().ranges;
    ranges.iter().map(|(from, to)| (from.0, to.0)).collect()
}

/// Names and texts of the hour lists.
fn hour_lists(site: &Site) -> Vec<(String, String)> {
    let folder = site.path().join("segments/gate");
    let mut lists: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "m3u8"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .filter(|(name, _)| name != "live")
        .collect();
    lists.sort();
    lists
}

#[test]
fn a_correction_moves_the_ledger_and_no_live_list() {
    let site = Site::edge();
    let store = site.store();
    // A file that was pushed, a segment of an earlier boot, then three of this one; the last one is open.
    put(store, 1, 1);
    let earlier = open_live(store, 2, 1, BootId(76), 500_000);
    earlier.close(TWO_SECONDS, None).unwrap();
    store.put_run(&gate(), &run(3)).unwrap();
    put_live(store, 3, 3, 10_000);
    put_live(store, 4, 3, 12_000);
    let writer = open_live(store, 5, 3, BOOT, 14_000);
    assert!(store.has_implausible(BOOT).unwrap());
    let before = site.live();
    assert_eq!(hour_lists(&site).len(), 2);

    let zero = WallTime(T0.0 + 3_600_000);
    assert_eq!(store.correct_boot(BOOT, zero, true).unwrap(), 3);
    let at = |ms: i64| zero.0 + ms;
    assert_eq!(
        walls(store),
        [T0.0 + 2_000, 500_000, at(10_000), at(12_000)]
    );
    let view = store.open_view(&gate()).unwrap().unwrap();
    assert_eq!(view.open.wall_start.0, at(14_000));
    assert_eq!(site.live(), before);
    assert!(!store.has_implausible(BOOT).unwrap());
    // Again it changes nothing.
    assert_eq!(store.correct_boot(BOOT, zero, true).unwrap(), 0);

    // What was open, and what comes, is right in the ledger; the live list goes on in its run.
    writer.close(TWO_SECONDS, None).unwrap();
    put_live(store, 6, 3, 16_000);
    assert_eq!(walls(store)[4..], [at(14_000), at(16_000)]);
    let live = site.live();
    let (begins, grown) = (before.trim_end(), live.trim_end());
    assert!(grown.starts_with(begins), "{live}");
    assert!(live.contains("1970-01-01T00:00:14.000"), "{live}");
    // The next run is at the right time, behind a discontinuity.
    store.put_run(&gate(), &run(7)).unwrap();
    put_live(store, 7, 7, 18_000);
    let right = "2026-05-01T09:00:18.000";
    assert!(site.live().contains(right), "{}", site.live());

    assert_eq!(
        ranges(store),
        [
            (at(10_000), at(20_000)),
            (500_000, 502_000),
            (T0.0 + 2_000, T0.0 + 4_000)
        ]
    );
    let lists = hour_lists(&site);
    let names: Vec<_> = lists.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["1970-01-01T00", "2026-05-01T08", "2026-05-01T09"]);
    assert!(lists[0].1.contains("2.ts") && !lists[0].1.contains("3.ts"));
    for number in 3..=7 {
        let uri = format!("{number}.ts");
        assert_eq!(lists[2].1.matches(&uri).count(), 1, "{}", lists[2].1);
    }
}

#[test]
fn a_recording_shows_the_corrected_time() {
    let site = Site::edge();
    put_live(site.store(), 1, 1, 10_000);
    put_live(site.store(), 2, 1, 12_000);
    site.store().correct_boot(BOOT, T0, true).unwrap();
    let from = Some(WallTime(T0.0 + 9_000));
    let list = site
        .store()
        .recording(&gate(), from, None)
        .unwrap()
        .unwrap();
    let text = String::from_utf8(list.text.to_vec()).unwrap();
    assert!(
        text.contains("2026-05-01T08:00:10.000") && !text.contains("1970"),
        "{text}"
    );
    let unset = site
        .store()
        .recording(&gate(), Some(UNSET), Some(WallTime(60_000)));
    assert!(unset.unwrap().is_none());
}

#[test]
fn a_hole_is_as_long_as_the_ledger_says() {
    let site = Site::edge();
    let store = site.store();
    put_live(store, 1, 1, 10_000);
    let lost = open_live(store, 2, 1, BOOT, 12_000);
    store.correct_boot(BOOT, T0, true).unwrap();
    lost.discard().unwrap();
    // Two seconds are missing, not half a century.
    store.put_run(&gate(), &run(3)).unwrap();
    put_live(store, 3, 3, 14_000);
    let listed = site.listed();
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert!(listed[1].starts_with("gap-"), "{listed:?}");
}

#[test]
fn an_interrupted_correction_is_finished() {
    let mut site = Site::edge();
    for i in 0..600 {
        put_live(site.store(), i + 1, 1, i as i64 * 2_000);
    }
    // Killed after the decision was written down, before the segments were.
    let inner = site.store().inner();
    let decided = inner
        .catalog
        .write(|c| Ok(crate::catalog::boots::put(c, BOOT, T0, false)?));
    decided.unwrap();
    site.restart();
    let store = site.store();
    assert_eq!(store.resume_correction(BOOT).unwrap(), Some((T0, false)));
    let expected: Vec<i64> = (0..600).map(|i| T0.0 + i * 2_000).collect();
    assert_eq!(walls(store), expected);
    assert_eq!(ranges(store), [(T0.0, T0.0 + 1_200_000)]);
    assert_eq!(store.resume_correction(BootId(1)).unwrap(), None);
    // Drift moves what comes, not what is there.
    store.go_on_from(BOOT, WallTime(T0.0 + 1_500)).unwrap();
    put_live(store, 601, 1, 1_200_000);
    assert_eq!(
        walls(store)[598..],
        [T0.0 + 1_196_000, T0.0 + 1_198_000, T0.0 + 1_201_500]
    );
}

#[test]
fn the_hub_is_told_until_it_confirms() {
    let site = Site::edge();
    let store = site.store();
    for i in 1..=4 {
        put_live(store, i, 1, i as i64 * 2_000);
    }
    store.mark_stored(&gate(), n(1)).unwrap();
    store.mark_stored(&gate(), n(2)).unwrap();
    store.flush_marks().unwrap();
    assert!(store.restamped(&gate(), 256).unwrap().is_empty());
    store.correct_boot(BOOT, T0, true).unwrap();
    // What the hub does not have is announced with the right time anyway.
    let told = store.restamped(&gate(), 256).unwrap();
    let wall = |i: i64, zero: WallTime| WallTime(zero.0 + i * 2_000);
    assert_eq!(told, [(n(1), wall(1, T0)), (n(2), wall(2, T0))]);
    assert_eq!(store.restamped(&gate(), 1).unwrap(), told[..1]);
    // Corrected again before the hub's word comes: that is about the first correction.
    let again = WallTime(T0.0 + 5_000);
    store.correct_boot(BOOT, again, true).unwrap();
    store.mark_restamped(&gate(), &told).unwrap();
    let told = store.restamped(&gate(), 256).unwrap();
    assert_eq!(told, [(n(1), wall(1, again)), (n(2), wall(2, again))]);
    store.mark_restamped(&gate(), &told).unwrap();
    assert!(store.restamped(&gate(), 256).unwrap().is_empty());
    // It may have got one on the way, with the old time.
    store.mark_stored(&gate(), n(3)).unwrap();
    store.flush_marks().unwrap();
    assert_eq!(
        store.restamped(&gate(), 256).unwrap(),
        [(n(3), wall(3, again))]
    );
}

#[test]
fn the_hub_takes_corrected_times() {
    let site = Site::hub();
    let store = site.store();
    for i in 1..=3 {
        put(store, i, 1);
    }
    let announced = crate::Announced {
        info: info_of(5, 1),
    };
    store.announce(&gate(), &[announced]).unwrap();
    let before = site.live();
    let later = |i: i64| WallTime(T0.0 + 86_400_000 + i * 2_000);
    let told = [
        (n(2), later(2)),
        (n(3), later(3)),
        (n(5), later(5)),
        (n(9), later(9)),
    ];
    assert_eq!(store.restamp(&gate(), &told).unwrap(), 3);
    assert_eq!(store.restamp(&gate(), &told).unwrap(), 0);
    assert_eq!(site.live(), before);
    assert_eq!(walls(store), [T0.0 + 2_000, later(2).0, later(3).0]);
    assert_eq!(
        ranges(store),
        [(later(2).0, later(4).0), (T0.0 + 2_000, T0.0 + 4_000)]
    );
    // Shipped with the time that its edge had read before the correction; that comes again, and counts for what
    // is being written too.
    let mut writer = store.open_segment(&gate(), open(5, 1)).unwrap();
    writer.append(&bytes_of(5)).unwrap();
    assert_eq!(store.restamp(&gate(), &told).unwrap(), 1);
    writer.close(TWO_SECONDS, None).unwrap();
    assert_eq!(walls(store)[3], later(5).0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random restamps on a hub: counts and bytes stay exact, ranges lie in order and hold every segment.
    #[test]
    fn recorded_ranges_stay_exact(
        steps in prop::collection::vec((1u64..40, 1u64..40, -100_000_000_000i64..100_000_000_000), 1..8)
    ) {
        let site = Site::hub();
        let store = site.store();
        for i in (1..40).filter(|i| i % 7 != 0) {
            put(store, i, 1);
        }
        let before = site.live();
        for (first, count, by) in steps {
            let told: Vec<_> = (first..first + count)
                .filter(|i| i % 5 != 0)
                .map(|i| (n(i), WallTime(T0.0 + by + i as i64 * 2_000).in_calendar()))
                .collect();
            if !told.is_empty() {
                store.restamp(&gate(), &told).unwrap();
            }
            let all = store.list(&gate(), n(0), 100).unwrap();
            let summary = store.stream(&gate()).unwrap().unwrap();
            prop_assert_eq!(summary.segments, all.len() as u64);
            prop_assert_eq!(summary.bytes, all.iter().map(|info| info.bytes).sum::<u64>());
            let spans = store
                .inner()
                .catalog
                .read(|c| Ok(crate::catalog::spans::newest(c, 1, 100)?))
                .unwrap();
            for pair in spans.windows(2) {
                prop_assert!(pair[1].last < pair[0].first);
            }
            for info in &all {
                let holds = |s: &&crate::catalog::spans::Span| {
                    (s.first..=s.last).contains(&info.number)
                };
                let span = spans.iter().find(holds);
                prop_assert!(span.is_some_and(|s| s.from <= info.wall_start), "{:?}", info);
            }
        }
        prop_assert_eq!(site.live(), before);
    }
}
