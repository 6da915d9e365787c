//! Damaged and lost catalogs, files without rows, flipped bits.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use model::HoleReason;

use super::{crash::media, *};

/// Everything is due at once.
const AT_ONCE: Duration = Duration::ZERO;

fn all(store: &Store) -> Vec<SegmentInfo> {
    store.list(&gate(), n(0), 10_000).unwrap()
}

fn folder(site: &Site) -> PathBuf {
    site.path().join("segments/gate/0")
}

/// Overwrites bytes of a closed store's file.
fn spoil(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Puts the catalog into one file, as a start does, so that damage to it is not healed by the journal.
fn checkpoint(site: &Site) {
    let c = rusqlite::Connection::open(site.path().join("catalog.db")).unwrap();
    c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

fn media_sequence(site: &Site) -> u64 {
    let live = site.live();
    let line = live
        .lines()
        .find_map(|l| l.strip_prefix("#EXT-X-MEDIA-SEQUENCE:"));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_catalog_that_is_no_database_is_set_aside_and_rebuilt_to_the_letter() {
    for edge in [false, true] {
        let mut site = if edge { Site::edge() } else { Site::hub() };
        for number in 1..=9 {
            put(site.store(), number, 1);
        }
        site.store().put_run(&gate(), &run(10)).unwrap();
        for number in 10..=12 {
            put(site.store(), number, 10);
        }
        let (before, sequence) = (all(site.store()), media_sequence(&site));
        checkpoint(&site);
        fs::write(site.path().join("catalog.db"), b"a cat sat on it").unwrap();
        let report = site.restart();
        let aside = report.catalog_set_aside.unwrap();
        assert_eq!(fs::read(aside).unwrap(), b"a cat sat on it");
        assert_eq!((report.adopted, report.streams_found), (12, 1));
        assert_eq!(all(site.store()), before);
        for number in [1, 10] {
            assert_eq!(
                site.store().run(&gate(), n(number)).unwrap(),
                Some(run(number))
            );
        }
        assert_eq!(site.store().floor(&gate()).unwrap(), n(13));
        assert_eq!(site.listed().last().unwrap(), "12.ts");
        assert!(media_sequence(&site) >= sequence);
        // Nothing is left to do, and the list goes on.
        put(site.store(), 13, 10);
        assert_eq!(site.restart(), crate::RecoveryReport::default());
        assert_eq!(site.listed().last().unwrap(), "13.ts");
    }
}

#[test]
fn a_malformed_page_met_while_running_is_told_marked_and_rebuilt_with_what_is_left() {
    let mut site = Site::hub();
    let name = "pole-7".parse().unwrap();
    let now = T0;
    let later = WallTime(now.0 + 1_000_000);
    site.store()
        .create_token(&name, b"token", later, &[gate()], now)
        .unwrap();
    site.store()
        .use_token(b"token", &[7; 32], now)
        .unwrap()
        .unwrap();
    // Enough rows for pages of their own.
    for number in 1..=400 {
        put(site.store(), number, 1);
    }
    site.store()
        .settle(&gate(), n(401)..=n(405), HoleReason::Evicted)
        .unwrap();
    let before = all(site.store());
    drop(site.store.take());
    checkpoint(&site);
    let path = site.path().join("catalog.db");
    let c = rusqlite::Connection::open(&path).unwrap();
    let root: i64 = c
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'segment'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    let (pages, size): (i64, i64) = c
        .query_row(
            "SELECT page_count, page_size FROM pragma_page_count, pragma_page_size",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    drop(c);
    assert!(pages > root + 8, "{pages} pages");
    spoil(&path, ((root - 1) * size) as u64, &[0xee; 64]);
    let report = site.restart();
    assert_eq!((report.adopted, report.salvaged_devices), (400, 1));
    assert_eq!(all(site.store()), before);
    let devices = site.store().devices().unwrap();
    assert_eq!(devices.len(), 1, "what other pages held is kept");
    assert_eq!(devices[0].key, Some([7; 32]));
    let stream = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!(stream.owner, Some(name));
    assert_eq!(
        site.store().holes(&gate()).unwrap(),
        [(n(401)..=n(405), HoleReason::Evicted)]
    );
    assert_eq!(site.store().floor(&gate()).unwrap(), n(406));
    assert!(site.store().set_aside_catalogs().unwrap().len() == 1);
}

#[test]
fn a_store_without_its_own_row_is_rebuilt_and_files_taken_stay_taken() {
    let mut site = Site::edge();
    let file = crate::FileId {
        name: b"a.mp4".to_vec(),
        size: 1_000,
        mtime_ns: 5,
        fingerprint: [1; 32],
    };
    site.store().begin_taken(&gate(), &file, 2_000).unwrap();
    site.store()
        .change_live(&gate(), |c, row| {
            Ok(crate::catalog::streams::put_run_of(
                c,
                row.id,
                &run(2),
                true,
            )?)
        })
        .unwrap();
    put(site.store(), 1, 1);
    let whole = crate::TakenState::Whole;
    site.store()
        .set_taken(&gate(), b"a.mp4", whole, None)
        .unwrap();
    let before = site.store().taken(&gate()).unwrap();
    drop(site.store.take());
    let c = rusqlite::Connection::open(site.path().join("catalog.db")).unwrap();
    c.execute("DELETE FROM store", []).unwrap();
    drop(c);
    assert!(site.restart().catalog_set_aside.is_some());
    assert_eq!(all(site.store()).len(), 1);
    assert_eq!(site.store().taken(&gate()).unwrap(), before);
    let waits: bool = site
        .store()
        .inner()
        .catalog
        .read(|c| Ok(c.query_row("SELECT waits FROM run WHERE run = 2", [], |row| row.get(0))?))
        .unwrap();
    assert!(waits, "its source can wait");
}

#[test]
fn damage_is_marked_and_the_word_goes_round() {
    let mut site = Site::hub();
    put(site.store(), 1, 1);
    let damage = site.store().catalog_damage();
    assert_eq!(*damage.borrow(), None);
    let corrupt = || {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        crate::catalog::Fault::Sql(rusqlite::Error::SqliteFailure(code, None))
    };
    let error = site
        .store()
        .inner()
        .catalog
        .read::<()>(|_| Err(corrupt()))
        .unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("rebuilds it"),
        "{error}"
    );
    assert!(damage.borrow().is_some());
    assert!(site.path().join("catalog.suspect").exists());
    // The disk had only misread it.
    assert_eq!(site.restart().catalog_set_aside, None);
    assert!(!site.path().join("catalog.suspect").exists());
    assert_eq!(site.listed(), ["1.ts"]);
}

#[test]
fn a_rebuild_that_was_cut_off_begins_again() {
    let mut site = Site::hub();
    for number in 1..=600 {
        put(site.store(), number, 1);
    }
    let before = all(site.store());
    checkpoint(&site);
    fs::write(site.path().join("catalog.db"), b"a cat sat on it").unwrap();
    site.restart();
    // As after a kill: half of the rows are there, the note says that it has not ended.
    let aside = site.store().set_aside_catalogs().unwrap();
    let name = aside[0].file_name().unwrap().to_str().unwrap().to_owned();
    drop(site.store.take());
    fs::write(site.path().join("catalog.rebuilding"), &name).unwrap();
    let c = rusqlite::Connection::open(site.path().join("catalog.db")).unwrap();
    c.execute("DELETE FROM segment WHERE number > 300", [])
        .unwrap();
    drop(c);
    let (store, report) = Store::open(site.path(), site.options.clone()).unwrap();
    assert_eq!(report.adopted, 600);
    site.store = Some(store);
    assert_eq!(all(site.store()), before);
    assert_eq!(site.store().set_aside_catalogs().unwrap(), aside);
    // Noted, and killed before anything was moved.
    drop(site.store.take());
    fs::write(
        site.path().join("catalog.rebuilding"),
        "catalog.db.damaged-20260501T080000Z\n",
    )
    .unwrap();
    let (store, report) = Store::open(site.path(), site.options.clone()).unwrap();
    assert_eq!((report.adopted, report.salvaged_streams), (600, 1));
    site.store = Some(store);
    assert_eq!(all(site.store()), before);
}

/// Segments of silence, a third of a second each, without a ledger.
fn told_by_media(site: &Site, count: u64) -> Vec<SegmentInfo> {
    let bytes = media(1).concat();
    for number in 1..=count {
        let open = OpenSegment {
            media_start: MediaTime(0),
            ..open(number, 1)
        };
        let mut writer = site.store().open_segment(&gate(), open).unwrap();
        writer.append(&bytes).unwrap();
        writer.finish_part(TWO_SECONDS, true).unwrap();
        writer.close(TWO_SECONDS, None).unwrap();
        let path = folder(site).join(format!("{number}.ts"));
        let file = File::options().append(true).open(path).unwrap();
        let at =
            SystemTime::UNIX_EPOCH + Duration::from_millis((T0.0 + number as i64 * 60_000) as u64);
        file.set_modified(at).unwrap();
    }
    fs::remove_file(folder(site).join("ledger")).unwrap();
    all(site.store())
}

#[test]
fn without_a_ledger_the_media_tell() {
    let mut site = Site::edge();
    let before = told_by_media(&site, 3);
    drop(site.store.take());
    fs::remove_file(site.path().join("catalog.db")).unwrap();
    let report = site.restart();
    assert_eq!((report.adopted, report.catalog_set_aside), (3, None));
    let after = all(site.store());
    for (a, b) in before.iter().zip(&after) {
        assert_eq!((a.number, a.bytes, a.hash), (b.number, b.bytes, b.hash));
        // Each begins anew on its clock: runs of their own, that end when their files were written.
        assert_eq!(b.run, b.number);
        let end = T0.0 + b.number.0 as i64 * 60_000;
        assert!((b.wall_start.plus(b.duration).0 - end).abs() <= 1, "{b:?}");
        assert!((20_000..60_000).contains(&b.duration.0), "{b:?}");
    }
    let run = site.store().run(&gate(), n(2)).unwrap().unwrap();
    assert_eq!((run.codecs.as_str(), run.resolution), ("mp4a.40.2", None));
    // The hub must not wait for numbers that nobody has.
    assert_eq!(
        site.store().gone(&gate()).unwrap(),
        [(n(0)..=n(0), HoleReason::Corrupt)]
    );
    assert_eq!(site.store().unshipped(&gate(), n(0), 10).unwrap().len(), 3);
}

#[test]
fn a_file_of_a_clock_that_was_never_set_gets_a_time_that_a_peer_takes() {
    let mut site = Site::edge();
    told_by_media(&site, 1);
    drop(site.store.take());
    fs::remove_file(site.path().join("catalog.db")).unwrap();
    let file = File::options()
        .append(true)
        .open(folder(&site).join("1.ts"));
    file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(site.restart().adopted, 1);
    assert_eq!(all(site.store())[0].wall_start, WallTime(0));
}

#[test]
fn a_restored_older_catalog_takes_in_what_came_since() {
    let mut site = Site::hub();
    for number in 1..=5 {
        put(site.store(), number, 1);
    }
    let announced = [6, 7].map(|number| crate::Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    let backup = site.path().join("backup.db");
    let copied = site.store().copy_catalog(&backup).unwrap();
    assert_eq!((copied.streams, copied.segments), (1, 5));
    for number in 6..=12 {
        put(site.store(), number, 1);
    }
    site.store()
        .settle(&gate(), n(13)..=n(13), HoleReason::Evicted)
        .unwrap();
    let before = all(site.store());
    let sequence = media_sequence(&site);
    drop(site.store.take());
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(site.path().join(name));
    }
    fs::rename(&backup, site.path().join("catalog.db")).unwrap();
    // One of those announced was spoilt, one that is new as well.
    spoil(&folder(&site).join("7.ts"), 5, b"?");
    spoil(&folder(&site).join("9.ts"), 5, b"?");
    let report = site.restart();
    assert_eq!((report.adopted, report.set_aside), (5, 2));
    let after: Vec<_> = all(site.store());
    let expected: Vec<_> = before
        .into_iter()
        .filter(|info| ![7, 9].contains(&info.number.0))
        .collect();
    assert_eq!(after, expected);
    assert_eq!(site.store().floor(&gate()).unwrap(), n(13));
    assert!(site.path().join("orphans/gate/9.ts.corrupt").exists());
    assert!(media_sequence(&site) >= sequence);
    // Both are asked for again by the next comparison.
    let settled = site.store().settled(&gate()).unwrap();
    assert!(!settled.contains(n(7)) && !settled.contains(n(9)));
}

#[test]
fn a_removed_stream_stays_removed() {
    let mut site = Site::hub();
    put(site.store(), 1, 1);
    assert!(site.store().remove_stream(&gate()).unwrap());
    assert!(!site.path().join("segments/gate").exists());
    // A kill in between: its folder is out of the way, its row is gone.
    fs::create_dir_all(site.path().join("segments/.removed-gate/0")).unwrap();
    fs::write(site.path().join("segments/.removed-gate/0/1.ts"), b"x").unwrap();
    let report = site.restart();
    assert_eq!(report.streams_found, 0);
    assert_eq!(site.store().stream_names().unwrap(), []);
    assert!(!site.path().join("segments/.removed-gate").exists());
}

#[test]
fn what_was_deleted_on_purpose_is_not_brought_back() {
    let mut site = Site::hub();
    for number in 1..=3 {
        put(site.store(), number, 1);
    }
    let two = fs::read(folder(&site).join("2.ts")).unwrap();
    site.store()
        .inner()
        .catalog
        .write(|c| {
            Ok(crate::catalog::holes::bury(
                c,
                1,
                &(n(2)..=n(2)),
                HoleReason::Expired,
            )?)
        })
        .unwrap();
    fs::write(folder(&site).join("2.ts"), two).unwrap();
    let report = site.restart();
    assert_eq!(
        (report.orphans_removed, report.set_aside, report.adopted),
        (1, 0, 0)
    );
    assert!(!folder(&site).join("2.ts").exists());
}

#[test]
fn a_flipped_bit_is_found_on_both_ends() {
    let hub = Site::hub();
    let edge = Site::edge();
    for site in [&hub, &edge] {
        for number in 1..=100 {
            put(site.store(), number, 1);
        }
        let before = site.store().stream(&gate()).unwrap().unwrap();
        assert_eq!(before.segments, 100);
        // Nothing is due so soon after it was written.
        let rested = site.store().scrub(Duration::from_secs(3_600)).unwrap();
        assert_eq!((rested.segments, rested.round), (0, false));
        spoil(&folder(site).join("42.ts"), 100, b"!");
        fs::remove_file(folder(site).join("77.ts")).unwrap();
        let mut found = 0;
        for _ in 0..4 {
            found += site.store().scrub(AT_ONCE).unwrap().corrupt;
        }
        assert_eq!(found, 2);
        assert!(site.path().join("orphans/gate/42.ts.corrupt").exists());
        assert!(site.store().segment(&gate(), n(42)).unwrap().is_none());
        assert!(site.store().open_file(&gate(), n(42)).unwrap().is_none());
        let totals = site.store().scrub_totals();
        assert_eq!((totals.corrupt, totals.lost), (2, 2));
        assert!(totals.segments >= 100 && totals.bytes >= 100 * 564);
        let after = site.store().stream(&gate()).unwrap().unwrap();
        assert_eq!((after.segments, after.bytes), (98, 98 * 564));
    }
    let corrupt = HoleReason::Corrupt;
    assert_eq!(
        edge.store().holes(&gate()).unwrap(),
        [(n(42)..=n(42), corrupt), (n(77)..=n(77), corrupt)]
    );
    // The hub lacks them: shipped again they are here; disclaimed they are lost to damage, not to age.
    assert!(hub.store().holes(&gate()).unwrap().is_empty());
    let settled = hub.store().settled(&gate()).unwrap();
    assert!(!settled.contains(n(42)) && !settled.contains(n(77)));
    put(hub.store(), 42, 1);
    hub.store()
        .settle(&gate(), n(70)..=n(80), HoleReason::Expired)
        .unwrap();
    assert_eq!(
        hub.store().holes(&gate()).unwrap(),
        [(n(77)..=n(77), corrupt)]
    );
    assert_eq!(hub.store().stream(&gate()).unwrap().unwrap().segments, 99);
}

#[test]
fn a_damaged_segment_that_nobody_brings_is_given_up_in_the_end() {
    let site = Site::hub();
    put(site.store(), 1, 1);
    put(site.store(), 2, 1);
    fs::remove_file(folder(&site).join("1.ts")).unwrap();
    assert_eq!(site.store().scrub(AT_ONCE).unwrap().corrupt, 1);
    let now = crate::store::wall_now().0;
    site.store()
        .run_janitor(WallTime(now + 86_400_000))
        .unwrap();
    assert!(site.store().holes(&gate()).unwrap().is_empty());
    site.store()
        .run_janitor(WallTime(now + 31 * 86_400_000))
        .unwrap();
    assert_eq!(
        site.store().holes(&gate()).unwrap(),
        [(n(1)..=n(1), HoleReason::Corrupt)]
    );
}

#[test]
fn a_disk_that_is_gone_is_not_taken_for_damage() {
    let site = Site::edge();
    for number in 1..=20 {
        put(site.store(), number, 1);
    }
    let (there, gone) = (site.path().join("segments"), site.path().join("unmounted"));
    fs::rename(&there, &gone).unwrap();
    let error = site.store().scrub(AT_ONCE).unwrap_err().to_string();
    assert!(error.contains("is the disk there"), "{error}");
    fs::rename(&gone, &there).unwrap();
    assert_eq!(site.store().scrub(AT_ONCE).unwrap().corrupt, 0);
    assert_eq!(all(site.store()).len(), 20);
}
