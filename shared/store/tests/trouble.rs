//! Bad days, seen from outside: lost writers, torn files, late and repeated words of a peer, a subcommand
//! beside the daemon, many threads. Each was a fault once.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod kit;

use std::{fs, ops::RangeInclusive, path::Path, time::Duration};

use kit::*;
use model::*;
use store::{Announced, RetentionLimits, Store, StoreOptions, devices::TokenError};

/// After every grace.
const LATER: WallTime = WallTime(4_000_000_000_000);

fn range(a: u64, b: u64) -> RangeInclusive<SegmentNumber> {
    n(a)..=n(b)
}

#[test]
fn the_test_media_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    {
        let store = edge(dir.path());
        register(&store, &cam);
        let mut w = store.open_segment(&cam, opening(1, 1)).unwrap();
        w.append(&bytes_of(1)).unwrap();
        w.finish_part(SECOND, true).unwrap();
    }
    let (store, report) = Store::open(dir.path(), options(true)).unwrap();
    assert_eq!(report.open_closed, 1);
    let info = store.segment(&cam, n(1)).unwrap().unwrap();
    assert_eq!(
        (info.duration.0, info.bytes, info.hash),
        (
            94 * 1_920,
            bytes_of(1).len() as u64,
            SegmentHash::of(&bytes_of(1))
        )
    );
    assert_eq!(listed(&live_text(&store, &cam)), [1]);
}

#[test]
fn a_segment_announced_while_it_is_open_outlives_its_discarded_partial() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    record(&store, &cam, 1, 1);
    let mut w = store.open_segment(&cam, opening(2, 1)).unwrap();
    w.append(&bytes_of(2)[..376]).unwrap();
    store
        .announce(
            &cam,
            &[Announced {
                info: info_of(2, 1),
            }],
        )
        .unwrap();
    w.discard().unwrap();
    store
        .announce(
            &cam,
            &[Announced {
                info: info_of(3, 1),
            }],
        )
        .unwrap();
    record(&store, &cam, 3, 1);
    assert_eq!(
        listed(&live_text(&store, &cam)),
        [1],
        "3 waits for 2, which was announced"
    );
    record(&store, &cam, 2, 1);
    assert_eq!(listed(&live_text(&store, &cam)), [1, 2, 3]);
}

#[test]
fn an_end_told_late_does_not_end_what_came_after() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    record(&store, &cam, 1, 1);
    store.end_stream(&cam, Some(n(1))).unwrap();
    assert!(live_text(&store, &cam).contains("ENDLIST"));
    store.put_run(&cam, &run_info(2)).unwrap();
    record(&store, &cam, 2, 2);
    assert!(!live_text(&store, &cam).contains("ENDLIST"));
    store.end_stream(&cam, Some(n(1))).unwrap();
    assert!(!live_text(&store, &cam).contains("ENDLIST"));
    assert_eq!(store.ending(&cam).unwrap(), None);
}

#[test]
fn an_operator_ends_a_stream_whose_edge_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    record(&store, &cam, 1, 1);
    drop(store.open_segment(&cam, opening(2, 1)).unwrap());
    let never = Announced {
        info: info_of(3, 1),
    };
    store.announce(&cam, &[never]).unwrap();
    store.end_stream(&cam, Some(n(1))).unwrap();
    assert!(live_text(&store, &cam).contains("ENDLIST"));
}

#[test]
fn a_hub_whose_disk_refused_a_segment_takes_it_when_it_is_offered_again() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    let folder = dir.path().join("segments/cam/0");
    // Its row was committed, its file not made: something is in the way.
    fs::create_dir_all(folder.join("1.part")).unwrap();
    store.open_segment(&cam, opening(1, 1)).unwrap_err();
    fs::remove_dir(folder.join("1.part")).unwrap_or_default();
    assert!(store.resume_segment(&cam, n(1)).unwrap().is_none());
    let mut writer = store.open_segment(&cam, opening(1, 1)).unwrap();
    writer.append(&bytes_of(1)).unwrap();
    drop(writer);
    // Its file was renamed, its row not committed.
    fs::rename(folder.join("1.part"), folder.join("1.ts")).unwrap();
    let writer = store.resume_segment(&cam, n(1)).unwrap().unwrap();
    let info = info_of(1, 1);
    assert_eq!(writer.bytes(), info.bytes);
    writer
        .close(info.duration, Some((info.bytes, info.hash)))
        .unwrap();
    assert_eq!(store.segment(&cam, n(1)).unwrap(), Some(info));
}

#[test]
fn two_writers_of_one_partial_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    let bytes = bytes_of(1);
    let mut old = store.open_segment(&cam, opening(1, 1)).unwrap();
    old.append(&bytes[..376]).unwrap();
    let mut new = store.resume_segment(&cam, n(1)).unwrap().unwrap();
    old.append(&bytes[376..564]).unwrap();
    new.append(&bytes[376..]).unwrap();
    drop(old);
    let info = info_of(1, 1);
    let error = new
        .close(info.duration, Some((info.bytes, info.hash)))
        .unwrap_err();
    assert!(error.to_string().contains("once more"), "{error}");
    assert!(store.segment(&cam, n(1)).unwrap().is_none());
    assert_eq!(record(&store, &cam, 1, 1), info);
}

#[test]
fn an_edge_goes_on_after_a_writer_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = edge(dir.path());
    register(&store, &cam);
    record(&store, &cam, 1, 1);
    let mut w = store.open_segment(&cam, opening(2, 1)).unwrap();
    w.append(&bytes_of(2)).unwrap();
    drop(w);
    store.put_run(&cam, &run_info(3)).unwrap();
    record(&store, &cam, 3, 3);
    let text = live_text(&store, &cam);
    assert!(
        text.contains("\n0/3.ts") || text.contains("\n3.ts"),
        "{text}"
    );
}

#[test]
fn what_an_edge_could_not_save_is_a_hole_that_the_hub_hears_of() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    {
        let store = edge(dir.path());
        register(&store, &cam);
        record(&store, &cam, 1, 1);
        let mut w = store.open_segment(&cam, opening(2, 1)).unwrap();
        w.append(&[0; 188]).unwrap();
        w.finish_part(SECOND, true).unwrap();
    }
    let store = edge(dir.path());
    assert_eq!(
        store.holes(&cam).unwrap(),
        [(range(2, 2), HoleReason::Corrupt)]
    );
    assert!(store.floor(&cam).unwrap() > n(2));
}

#[test]
fn a_tail_of_noughts_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    {
        let store = edge(dir.path());
        register(&store, &cam);
        let mut w = store.open_segment(&cam, opening(1, 1)).unwrap();
        w.append(&bytes_of(1)).unwrap();
        w.finish_part(SECOND, true).unwrap();
        w.append(&[0; 188 * 7]).unwrap();
    }
    let store = edge(dir.path());
    let info = store.segment(&cam, n(1)).unwrap().unwrap();
    // The last packet before the noughts is filled up: its access unit had ended.
    assert_eq!(info.bytes, bytes_of(1).len() as u64);
}

#[test]
fn a_torn_part_is_cut_off() {
    for torn in [1, 187, 189, 188 * 40 + 17] {
        let dir = tempfile::tempdir().unwrap();
        let cam = stream("cam");
        {
            let store = edge(dir.path());
            register(&store, &cam);
            let mut w = store.open_segment(&cam, opening(1, 1)).unwrap();
            w.append(&ts(0, 50)).unwrap();
            w.finish_part(SECOND, true).unwrap();
            w.append(&ts(50 * 1_920, 44)[..torn]).unwrap();
        }
        let store = edge(dir.path());
        let info = store.segment(&cam, n(1)).unwrap().unwrap();
        assert_eq!(info.bytes % 188, 0);
        assert!(
            info.bytes >= ts(0, 50).len() as u64 || torn < 188,
            "{torn}: {}",
            info.bytes
        );
        assert_eq!(
            store.read(&cam, n(1), 0..info.bytes).unwrap().len() as u64,
            info.bytes
        );
        assert_eq!(
            SegmentHash::of(&store.read(&cam, n(1), 0..info.bytes).unwrap()),
            info.hash
        );
    }
}

#[test]
fn eviction_takes_everything_stored_before_anything_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let size = bytes_of(1).len() as u64;
    let store = Store::open(
        dir.path(),
        StoreOptions {
            limits: RetentionLimits {
                max_bytes: Some(size * 380),
                keep_unshipped: true,
                ..Default::default()
            },
            ..options(true)
        },
    )
    .unwrap()
    .0;
    register(&store, &cam);
    for number in 1..=400 {
        record(&store, &cam, number, 1);
    }
    for number in 310..=350 {
        store.mark_stored(&cam, n(number)).unwrap();
    }
    let report = store.run_janitor(LATER).unwrap();
    assert_eq!((report.deleted, report.forced), (20, 0));
    assert!(store.segment(&cam, n(1)).unwrap().is_some());
}

#[test]
fn a_past_range_that_ends_in_a_hole_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = hub(dir.path());
    register(&store, &cam);
    for number in 1..=5 {
        record(&store, &cam, number, 1);
    }
    store.put_run(&cam, &run_info(1_000)).unwrap();
    record(&store, &cam, 1_000, 1_000);
    let rec = store
        .recording(
            &cam,
            Some(START),
            Some(START.plus(MediaDuration::from_millis(60_000))),
        )
        .unwrap()
        .unwrap();
    assert!(rec.ended, "{}", String::from_utf8_lossy(&rec.text));
    assert_eq!(listed(&String::from_utf8_lossy(&rec.text)), [1, 2, 3, 4, 5]);
    let open = store.recording(&cam, Some(START), None).unwrap().unwrap();
    assert!(!open.ended);
}

#[test]
fn a_daemon_shows_what_a_subcommand_ended_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (cam, yard) = (stream("cam"), stream("yard"));
    let store = hub(dir.path());
    for s in [&cam, &yard] {
        register(&store, s);
        record(&store, s, 1, 1);
        assert!(!live_text(&store, s).contains("ENDLIST"));
    }
    let beside = Store::open_beside(dir.path()).unwrap();
    beside.end_stream(&cam, Some(n(1))).unwrap();
    beside.remove_stream(&yard).unwrap();
    assert!(store.notice_foreign_changes().unwrap());
    assert!(live_text(&store, &cam).contains("ENDLIST"));
    assert!(!matches!(store.live_playlist(&yard), Ok(Some(_))));
    assert!(!store.notice_foreign_changes().unwrap());
}

#[test]
fn a_used_token_gives_no_rights_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = hub(dir.path());
    let gate: DeviceName = "gate".parse().unwrap();
    let later = WallTime(START.0 + 60_000);
    let (old, new) = ([1; 32], [2; 32]);
    store
        .create_token(&gate, b"first", later, &[], START)
        .unwrap();
    assert_eq!(
        store.use_token(b"first", &old, START).unwrap(),
        Ok(gate.clone())
    );
    assert_eq!(
        store.use_token(b"first", &old, START).unwrap(),
        Ok(gate.clone()),
        "a lost answer"
    );
    assert!(store.set_device_enabled(&gate, false).unwrap());
    let _ = store.use_token(b"first", &old, START).unwrap();
    assert!(
        !store.devices().unwrap()[0].enabled,
        "disabled stays disabled"
    );
    store
        .create_token(&gate, b"second", later, &[], START)
        .unwrap();
    assert_eq!(
        store.use_token(b"second", &new, START).unwrap(),
        Ok(gate.clone())
    );
    assert_eq!(
        store.use_token(b"first", &old, START).unwrap(),
        Err(TokenError::Used)
    );
    assert_eq!(store.device_by_key(&old).unwrap(), None);
    assert_eq!(store.device_by_key(&new).unwrap().unwrap().name, gate);
}

#[test]
fn many_threads_leave_the_list_that_was_committed_last() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let cam = stream("cam");
        let store = hub(dir.path());
        register(&store, &cam);
        std::thread::scope(|scope| {
            for lane in 0..4u64 {
                let (store, cam) = (store.clone(), cam.clone());
                scope.spawn(move || {
                    for i in 0..20 {
                        let number = 1 + i * 4 + lane;
                        if number % 7 == 0 {
                            store
                                .settle(&cam, range(number, number), HoleReason::Evicted)
                                .unwrap();
                        } else {
                            record(&store, &cam, number, 1);
                        }
                    }
                });
            }
            let (store, cam) = (store.clone(), cam.clone());
            scope.spawn(move || {
                let mut last = 0;
                for _ in 0..2_000 {
                    let text = live_text(&store, &cam);
                    let msn = tag(&text, "#EXT-X-MEDIA-SEQUENCE:").unwrap_or(0);
                    let end =
                        msn + text.lines().filter(|l| l.starts_with("#EXTINF")).count() as u64;
                    assert!(end >= last, "went back");
                    last = end;
                    for number in listed(&text) {
                        assert!(store.open_file(&cam, n(number)).unwrap().is_some());
                    }
                }
            });
        });
        let shown = live_text(&store, &cam);
        drop(store);
        assert_eq!(shown, live_text(&hub(dir.path()), &cam));
    }
}

#[test]
fn nothing_listed_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let store = Store::open(
        dir.path(),
        StoreOptions {
            limits: RetentionLimits {
                max_bytes: Some(1),
                max_age: Some(Duration::from_secs(1)),
                ..Default::default()
            },
            ..options(false)
        },
    )
    .unwrap()
    .0;
    register(&store, &cam);
    for number in 1..=40 {
        record(&store, &cam, number, 1);
        store.run_janitor(LATER).unwrap();
        for number in listed(&live_text(&store, &cam)) {
            assert!(
                store.open_file(&cam, n(number)).unwrap().is_some(),
                "{number} is listed"
            );
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// What a kill right now would leave, started again: the rules hold, and what was stored is there.
fn check_a_kill(dir: &Path, is_edge: bool, closed: &[SegmentInfo], shown: &str) {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(dir, copy.path());
    let cam = stream("cam");
    for _ in 0..2 {
        let (store, report) = Store::open(copy.path(), options(is_edge)).unwrap();
        assert_eq!((report.missing_files, report.orphans_removed), (0, 0));
        for info in closed {
            assert_eq!(store.segment(&cam, info.number).unwrap(), Some(*info));
            let bytes = store.read(&cam, info.number, 0..info.bytes).unwrap();
            assert_eq!(SegmentHash::of(&bytes), info.hash);
        }
        let text = live_text(&store, &cam);
        for number in listed(&text) {
            assert!(store.open_file(&cam, n(number)).unwrap().is_some());
        }
        let first = |text: &str| tag(text, "#EXT-X-MEDIA-SEQUENCE:").unwrap_or(0);
        assert!(first(&text) >= first(shown));
        assert!(
            listed(&text).starts_with(&listed(shown)),
            "{shown} became {text}"
        );
        let next = store.floor(&cam).unwrap();
        assert!(closed.iter().all(|info| info.number < next));
        if is_edge && !closed.is_empty() {
            let hour = fs::read_dir(copy.path().join("segments/cam"))
                .unwrap()
                .flatten();
            let hour = hour
                .map(|e| e.path())
                .find(|p| p.to_string_lossy().contains("T0"));
            let text = fs::read_to_string(hour.unwrap()).unwrap();
            let here: Vec<u64> = store
                .list(&cam, n(0), 100)
                .unwrap()
                .iter()
                .map(|i| i.number.0)
                .collect();
            assert_eq!(listed(&text), here);
        }
    }
}

#[test]
fn a_kill_at_any_step_loses_nothing_that_was_closed() {
    for is_edge in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let cam = stream("cam");
        let store = Store::open(dir.path(), options(is_edge)).unwrap().0;
        let mut closed = Vec::new();
        let kill = |closed: &[SegmentInfo]| {
            check_a_kill(dir.path(), is_edge, closed, &live_text(&store, &cam))
        };
        store.register_stream(&cam, None).unwrap();
        kill(&closed);
        store.put_run(&cam, &run_info(1)).unwrap();
        for number in 1..=4 {
            if !is_edge {
                store
                    .announce(
                        &cam,
                        &[Announced {
                            info: info_of(number, 1),
                        }],
                    )
                    .unwrap();
                kill(&closed);
            }
            let mut writer = store.open_segment(&cam, opening(number, 1)).unwrap();
            kill(&closed);
            let bytes = bytes_of(number);
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            writer.append(head).unwrap();
            kill(&closed);
            writer.finish_part(SECOND, true).unwrap();
            writer.append(tail).unwrap();
            writer.finish_part(SECOND, false).unwrap();
            kill(&closed);
            closed.push(writer.close(SECOND + SECOND, None).unwrap());
            kill(&closed);
        }
        store.end_stream(&cam, Some(n(4))).unwrap();
        kill(&closed);
    }
}

#[test]
fn an_hour_list_ends_with_its_hour_and_is_repaired_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let cam = stream("cam");
    let hour = dir.path().join("segments/cam/2025-10-09T08.m3u8");
    {
        let store = edge(dir.path());
        register(&store, &cam);
        for number in 1..=3 {
            record(&store, &cam, number, 1);
        }
    }
    let whole = fs::read_to_string(&hour).unwrap();
    assert_eq!(listed(&whole), [1, 2, 3]);
    fs::write(&hour, &whole[..whole.len() - 9]).unwrap();
    let store = edge(dir.path());
    assert_eq!(fs::read_to_string(&hour).unwrap(), whole);
    store.run_janitor(START).unwrap();
    assert_eq!(
        fs::read_to_string(&hour).unwrap(),
        whole,
        "the hour goes on"
    );
    for _ in 0..2 {
        store.run_janitor(LATER).unwrap();
        assert_eq!(
            fs::read_to_string(&hour).unwrap(),
            format!("{whole}#EXT-X-ENDLIST\n")
        );
    }
    drop(store);
    edge(dir.path());
    assert!(fs::read_to_string(&hour).unwrap().ends_with("ENDLIST\n"));
}
