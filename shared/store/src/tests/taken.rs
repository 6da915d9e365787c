//! Files of watched folders: how far each is survives what kills the program.

use std::{fs, thread, time::Duration};

use super::{Site, TWO_SECONDS, bytes_of, gate, n, open, put, run};
use crate::{FileId, OnHub, Progress, SourceKind, TakenState};

fn file(name: &str, fingerprint: u8) -> FileId {
    FileId {
        name: name.as_bytes().to_vec(),
        size: 1_000,
        mtime_ns: 5,
        fingerprint: [fingerprint; 32],
    }
}

fn progress(segments: u64, bytes: u64, run: u64) -> Progress {
    Progress {
        segments,
        bytes,
        run: Some(n(run)),
    }
}

/// A part as the muxer makes it: it begins with a program association table.
fn part(fill: u8) -> Vec<u8> {
    let mut bytes = vec![0x47, 0x40, 0x00, 0x10];
    bytes.resize(188, 0xff);
    bytes.extend([0x47, 0x01, 0x00, 0x10]);
    bytes.resize(376, fill);
    bytes
}

#[test]
fn progress_is_in_the_commit_of_each_segment() {
    let mut site = Site::edge();
    let begun = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    assert_eq!(
        (begun.state, begun.progress),
        (TakenState::UnderWay, Progress::default())
    );
    put(site.store(), 1, 1);
    put(site.store(), 2, 1);
    // The third is told to stop early, after a part.
    let mut third = site.store().open_segment(&gate(), open(3, 1)).unwrap();
    third.append(&bytes_of(3)).unwrap();
    third.finish_part(TWO_SECONDS, true).unwrap();
    third.close_early(TWO_SECONDS).unwrap();
    site.restart();
    let again = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 9_999)
        .unwrap();
    assert_eq!(again.progress, progress(2, 564, 1));
    assert_eq!(again.target_ms, 2_000, "it is cut as it was begun");
    put(site.store(), 4, 1);
    let again = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    assert_eq!(again.progress, progress(3, 0, 1));
    assert_eq!((again.first, again.last), (Some(n(1)), Some(n(4))));
    // Another file of that name is taken from its beginning.
    let other = site
        .store()
        .begin_taken(&gate(), &file("a", 2), 2_000)
        .unwrap();
    assert_eq!((other.progress, other.first), (Progress::default(), None));
}

#[test]
fn one_file_at_a_time_counts() {
    let site = Site::edge();
    let store = site.store();
    store.begin_taken(&gate(), &file("a", 1), 2_000).unwrap();
    put(store, 1, 1);
    store.begin_taken(&gate(), &file("b", 1), 2_000).unwrap();
    put(store, 2, 2);
    store
        .set_taken(&gate(), b"b", TakenState::Whole, None)
        .unwrap();
    put(store, 3, 3);
    let counts: Vec<_> = store
        .taken(&gate())
        .unwrap()
        .into_iter()
        .map(|t| (t.state, t.progress.segments, t.last))
        .collect();
    assert_eq!(
        counts,
        [
            (TakenState::Interrupted, 1, Some(n(1))),
            (TakenState::Whole, 1, Some(n(2)))
        ]
    );
}

#[test]
fn a_kill_leaves_whole_parts_and_what_is_counted_is_what_is_here() {
    let mut site = Site::edge();
    site.store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    // Killed before a byte: the number is void.
    drop(site.store().open_segment(&gate(), open(1, 1)).unwrap());
    site.restart();
    let begun = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    assert_eq!((begun.progress, begun.void), (Progress::default(), 1));
    // Killed within the first part: nothing of it is surely whole.
    let mut writer = site.store().open_segment(&gate(), open(2, 1)).unwrap();
    writer.append(&part(1)[..300]).unwrap();
    drop(writer);
    site.restart();
    let begun = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    assert_eq!((begun.progress.bytes, begun.void), (0, 2));
    assert!(site.store().list(&gate(), n(0), 9).unwrap().is_empty());
}

#[test]
fn what_a_kill_leaves_of_a_segment_written_in_one_go_is_counted() {
    let mut site = Site::edge();
    let store = site.store();
    let begun = store.begin_taken(&gate(), &file("a", 1), 2_000).unwrap();
    assert_eq!(begun.progress, Progress::default());
    // The segment is whole before the disk hears of it, and the disk then fails where its file gets its name.
    let (here, away) = (site.path().to_owned(), site.path().with_extension("away"));
    fs::rename(&here, &away).unwrap();
    let mut writer = store.record(&gate(), &run(1), open(1, 1), None, SourceKind::AtRest);
    for part in super::crash::media(2) {
        writer.append_part(part.into(), TWO_SECONDS, true);
    }
    let info = writer.close(TWO_SECONDS).unwrap();
    while store.disk_trouble().is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    let name = "segments/gate/0/1.ts";
    fs::create_dir_all(away.join(name)).unwrap();
    fs::rename(&away, &here).unwrap();
    while store
        .disk_trouble()
        .is_some_and(|trouble| !trouble.what.contains("1.ts"))
    {
        thread::sleep(Duration::from_millis(10));
    }
    let report = site.restart_after(|| fs::remove_dir(here.join(name)).unwrap());
    assert_eq!((report.open_closed, report.adopted), (1, 0));
    let begun = site
        .store()
        .begin_taken(&gate(), &file("a", 1), 2_000)
        .unwrap();
    let here = site.store().list(&gate(), n(0), 9).unwrap();
    let bytes: u64 = here.iter().map(|info| info.bytes).sum();
    assert!(bytes > 0 && bytes <= info.bytes, "{here:?}");
    assert_eq!(begun.progress, progress(0, bytes, 1));
}

#[test]
fn a_file_may_go_only_when_the_hub_has_all_of_it() {
    let site = Site::edge();
    let store = site.store();
    store.begin_taken(&gate(), &file("a", 1), 2_000).unwrap();
    assert_eq!(store.taken_on_hub(&gate(), b"a").unwrap(), OnHub::Lost(1));
    put(store, 1, 1);
    // A number without anything in it is no loss.
    drop(store.open_segment(&gate(), open(2, 1)).unwrap());
    store.abandon(&gate(), n(2)).unwrap();
    put(store, 3, 1);
    store
        .set_taken(&gate(), b"a", TakenState::Whole, None)
        .unwrap();
    assert_eq!(store.taken_on_hub(&gate(), b"a").unwrap(), OnHub::NotYet(2));
    store.mark_stored(&gate(), n(1)).unwrap();
    assert_eq!(store.taken_on_hub(&gate(), b"a").unwrap(), OnHub::NotYet(1));
    store.mark_stored(&gate(), n(3)).unwrap();
    assert_eq!(store.taken_on_hub(&gate(), b"a").unwrap(), OnHub::All);
    // One that is damaged here before the hub has it is lost: the file is kept.
    store.begin_taken(&gate(), &file("b", 1), 2_000).unwrap();
    put(store, 4, 1);
    put(store, 5, 1);
    store
        .set_taken(&gate(), b"b", TakenState::Whole, None)
        .unwrap();
    store.mark_stored(&gate(), n(5)).unwrap();
    store
        .inner()
        .catalog
        .write(|c| {
            let row = crate::catalog::streams::get(c, &gate())?;
            let reason = model::HoleReason::Evicted;
            Ok(crate::catalog::holes::bury(
                c,
                row.id,
                &(n(4)..=n(4)),
                reason,
            )?)
        })
        .unwrap();
    assert_eq!(store.taken_on_hub(&gate(), b"b").unwrap(), OnHub::Lost(1));
    store.forget_taken(&gate(), b"b").unwrap();
    assert_eq!(store.taken(&gate()).unwrap().len(), 1);
}

/// Segments 1 to 4 of "a" (1 is on the hub, 5 is void) and 6, 7 of "b" are given other numbers.
#[test]
fn what_became_of_a_file_is_known_after_its_segments_got_other_numbers() {
    let mut site = Site::edge();
    let store = site.store();
    store.begin_taken(&gate(), &file("a", 1), 2_000).unwrap();
    for number in 1..=4 {
        put(store, number, 1);
    }
    drop(store.open_segment(&gate(), open(5, 1)).unwrap());
    store.abandon(&gate(), n(5)).unwrap();
    store.begin_taken(&gate(), &file("b", 1), 2_000).unwrap();
    put(store, 6, 1);
    put(store, 7, 1);
    store
        .set_taken(&gate(), b"b", TakenState::Whole, None)
        .unwrap();
    store.mark_stored(&gate(), n(1)).unwrap();
    let on_hub = |store: &crate::Store, name: &[u8]| store.taken_on_hub(&gate(), name).unwrap();
    assert_eq!(on_hub(store, b"a"), OnHub::NotYet(3));
    store.renumber(&gate(), n(2), n(100)).unwrap();
    while store.go_on_renumbering(&gate()).unwrap().is_some() {}
    site.restart();
    let store = site.store();
    let moved: Vec<_> = store.unshipped(&gate(), n(0), 9).unwrap();
    let moved: Vec<_> = moved.iter().map(|info| info.number).collect();
    assert_eq!((moved.len(), moved[0] > n(100)), (5, true));
    assert_eq!(on_hub(store, b"a"), OnHub::NotYet(3));
    assert_eq!(on_hub(store, b"b"), OnHub::NotYet(2));
    // The number of the last of them is not mistaken for the end of all.
    store.mark_stored(&gate(), moved[2]).unwrap();
    assert_eq!(on_hub(store, b"a"), OnHub::NotYet(2));
    // Moved again, from its second one on: the first was stored meanwhile.
    store.mark_stored(&gate(), moved[0]).unwrap();
    store.renumber(&gate(), moved[1], n(500)).unwrap();
    while store.go_on_renumbering(&gate()).unwrap().is_some() {}
    assert_eq!(on_hub(store, b"a"), OnHub::NotYet(1));
    let again = store.unshipped(&gate(), n(500), 9).unwrap();
    assert_eq!(again.len(), 3);
    store.mark_stored(&gate(), again[0].number).unwrap();
    assert_eq!(on_hub(store, b"a"), OnHub::All);
    assert_eq!(on_hub(store, b"b"), OnHub::NotYet(2));
    // Settled there without its bytes: the file is the only copy.
    store.mark_stored(&gate(), again[1].number).unwrap();
    let refused = model::HoleReason::Refused;
    store.give_up(&gate(), again[2].number, refused).unwrap();
    assert_eq!(on_hub(store, b"b"), OnHub::Lost(1));
}

/// What was lost before its neighbours got other numbers stays lost.
#[test]
fn a_loss_is_not_forgotten_when_the_rest_of_a_file_is_moved() {
    let site = Site::edge();
    let store = site.store();
    store.begin_taken(&gate(), &file("a", 1), 2_000).unwrap();
    for number in 1..=3 {
        put(store, number, 1);
    }
    store
        .set_taken(&gate(), b"a", TakenState::Whole, None)
        .unwrap();
    let path = site.path().join("segments/gate/0/2.ts");
    std::fs::write(&path, b"short").unwrap();
    assert!(store.bury_unreadable(&gate(), n(2)).unwrap());
    store.renumber(&gate(), n(1), n(100)).unwrap();
    while store.go_on_renumbering(&gate()).unwrap().is_some() {}
    for info in store.unshipped(&gate(), n(0), 9).unwrap() {
        store.mark_stored(&gate(), info.number).unwrap();
    }
    assert_eq!(store.taken_on_hub(&gate(), b"a").unwrap(), OnHub::Lost(1));
}

#[test]
fn only_what_run_recorded_is_ended_when_its_configuration_drops_it() {
    let mut site = Site::edge();
    let store = site.store();
    put(store, 1, 1);
    assert!(store.recorded_streams().unwrap().is_empty());
    store.mark_recorded(&gate()).unwrap();
    let mut left = store.open_segment(&gate(), open(2, 1)).unwrap();
    left.append(&bytes_of(2)).unwrap();
    drop(left);
    site.restart();
    let store = site.store();
    assert_eq!(store.recorded_streams().unwrap(), [gate()]);
    store.end_recorded(&gate()).unwrap();
    assert!(store.live_playlist(&gate()).unwrap().unwrap().ended);
    assert!(store.recorded_streams().unwrap().is_empty());
    // It may be recorded again: the list goes on.
    put(store, 3, 3);
    store.mark_recorded(&gate()).unwrap();
    assert_eq!(store.recorded_streams().unwrap(), [gate()]);
}
