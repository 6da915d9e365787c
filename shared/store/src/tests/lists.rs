//! Live lists and recordings as viewers see them.

use model::{HoleReason, WallTime};

use super::*;
use crate::StreamState;

#[test]
fn before_the_first_segment_there_is_no_list() {
    let site = Site::hub();
    assert!(site.store().live_playlist(&gate()).unwrap().is_none());
    assert!(
        site.store()
            .recording(&gate(), None, None)
            .unwrap()
            .is_none()
    );
    assert!(
        site.store()
            .live_playlist(&"nobody".parse().unwrap())
            .is_err()
    );
}

#[test]
fn a_list_goes_on_after_a_restart() {
    let mut site = Site::hub();
    for number in 1..=3 {
        put(site.store(), number, 1);
    }
    let before = site.live();
    site.restart();
    assert_eq!(site.live(), before);
    put(site.store(), 4, 1);
    assert_eq!(site.listed(), ["1.ts", "2.ts", "3.ts", "4.ts"]);
    assert!(!site.live().contains("DISCONTINUITY\n"));
}

#[test]
fn what_comes_out_of_order_is_listed_in_order() {
    let site = Site::hub();
    let announced = [1, 2, 3].map(|number| crate::Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    put(site.store(), 2, 1);
    assert!(site.store().live_playlist(&gate()).unwrap().is_none());
    put(site.store(), 1, 1);
    assert_eq!(site.listed(), ["1.ts", "2.ts"]);
    put(site.store(), 3, 1);
    assert_eq!(site.listed(), ["1.ts", "2.ts", "3.ts"]);
}

#[test]
fn burnt_numbers_are_stepped_over() {
    let site = Site::hub();
    put(site.store(), 1, 1);
    site.store().put_run(&gate(), &run(1_000)).unwrap();
    put(site.store(), 1_000, 1_000);
    assert_eq!(site.listed(), ["1.ts", "1000.ts"]);
    assert!(site.live().contains("#EXT-X-DISCONTINUITY\n"));
}

#[test]
fn a_hole_becomes_gaps_as_long_as_what_is_missing() {
    let site = Site::hub();
    let announced = [1, 2, 3, 4].map(|number| crate::Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    put(site.store(), 1, 1);
    put(site.store(), 4, 1);
    assert_eq!(site.listed(), ["1.ts"], "2 and 3 are waited for");
    site.store()
        .settle(&gate(), n(2)..=n(3), HoleReason::Evicted)
        .unwrap();
    let listed = site.listed();
    assert_eq!(listed.len(), 4, "{listed:?}");
    assert_eq!((listed[0].as_str(), listed[3].as_str()), ("1.ts", "4.ts"));
    assert!(listed[1].starts_with("gap-") && listed[2].starts_with("gap-"));
}

#[test]
fn an_end_is_listed_once_all_before_it_is_here() {
    let site = Site::hub();
    let announced = [1, 2].map(|number| crate::Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    put(site.store(), 1, 1);
    site.store().end_stream(&gate(), Some(n(2))).unwrap();
    assert!(!site.live().contains("ENDLIST"));
    put(site.store(), 2, 1);
    assert!(site.live().contains("ENDLIST"));
    let stream = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!(stream.state, StreamState::Ended);
    assert_eq!(site.store().ending(&gate()).unwrap(), Some(Some(n(2))));
}

#[test]
fn a_stream_that_begins_anew_lists_the_new_run_only() {
    let mut site = Site::hub();
    put(site.store(), 1, 1);
    put(site.store(), 2, 1);
    site.store().end_stream(&gate(), Some(n(2))).unwrap();
    site.restart();
    assert!(site.live().contains("ENDLIST"));
    site.store().put_run(&gate(), &run(3)).unwrap();
    put(site.store(), 3, 3);
    assert_eq!(site.listed(), ["3.ts"]);
    assert!(!site.live().contains("ENDLIST"));
    assert_eq!(site.store().ending(&gate()).unwrap(), None);
}

#[test]
fn a_recording_is_end_listed_where_nothing_can_come() {
    let site = Site::hub();
    for number in 1..=5 {
        put(site.store(), number, 1);
    }
    let text = |from: Option<i64>, to: Option<i64>| {
        let at = |seconds: Option<i64>| seconds.map(|s| WallTime(T0.0 + s * 1_000));
        let found = site.store().recording(&gate(), at(from), at(to)).unwrap();
        found.map(|playlist| String::from_utf8(playlist.text.to_vec()).unwrap())
    };
    let uris = |text: &str| text.lines().filter(|l| l.ends_with(".ts")).count();
    let open = text(None, None).unwrap();
    assert!(uris(&open) == 5 && !open.contains("ENDLIST"), "{open}");
    // Segments are at 2-4, 4-6, 6-8, 8-10 and 10-12 s.
    let middle = text(Some(5), Some(9)).unwrap();
    assert!(uris(&middle) == 3 && middle.contains("ENDLIST"), "{middle}");
    assert!(text(Some(100), Some(200)).is_none());
    site.store().end_stream(&gate(), Some(n(5))).unwrap();
    assert!(text(None, None).unwrap().contains("ENDLIST"));
    // The next stretch is a recording of its own by default.
    site.store().put_run(&gate(), &run(6)).unwrap();
    put(site.store(), 6, 6);
    assert_eq!(uris(&text(None, None).unwrap()), 1);
    assert_eq!(uris(&text(Some(0), None).unwrap()), 6);
}

#[test]
fn an_edge_writes_playlists_that_open_from_the_folder() {
    let mut site = Site::edge();
    for number in 1..=2 {
        put(site.store(), number, 1);
    }
    site.restart();
    // 1,800 numbers later it is nine o'clock.
    site.store().put_run(&gate(), &run(1_801)).unwrap();
    put(site.store(), 1_801, 1_801);
    let folder = site.path().join("segments/gate");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let eight = read("2026-05-01T08.m3u8");
    assert_eq!(eight.matches("#EXTINF").count(), 2, "{eight}");
    assert!(
        eight.starts_with("#EXTM3U\n") && eight.ends_with("0/2.ts\n#EXT-X-ENDLIST\n"),
        "{eight}"
    );
    let nine = read("2026-05-01T09.m3u8");
    assert!(
        nine.contains("0/1801.ts") && !nine.contains("ENDLIST"),
        "{nine}"
    );
    assert!(read("live.m3u8").contains("0/1801.ts"));
    for uri in eight.lines().filter(|l| l.ends_with(".ts")) {
        assert!(folder.join(uri).exists(), "{uri}");
    }
}

#[test]
fn a_grace_from_a_clock_years_ahead_is_cut_at_the_next_start() {
    let mut site = Site::hub();
    for i in 1..=9 {
        put(site.store(), i, 1);
    }
    let far = WallTime(site.store().steady_now().0 + 365 * 86_400_000);
    let retired = "INSERT INTO live_retired VALUES (1, 1, ?1)";
    let write = |c: &rusqlite::Connection| Ok(c.execute(retired, [far.0])?);
    site.store().inner().catalog.write(write).unwrap();
    site.restart();
    let window = site.options.live_window;
    let keep_until: i64 = site
        .store()
        .inner()
        .catalog
        .read(|c| {
            let sql = "SELECT keep_until_ms FROM live_retired WHERE number = 1";
            Ok(c.query_row(sql, [], |row| row.get(0))?)
        })
        .unwrap();
    let left = keep_until - site.store().steady_now().0;
    // Long enough for every list that may have held it, and no year.
    assert!(
        left > window.as_millis() as i64 && left < 3_600_000,
        "{left} ms"
    );
}

#[test]
fn live_goes_on_at_once_where_the_edge_says_and_recordings_heal_later() {
    let mut site = Site::hub();
    let announced = [1, 2, 3, 4, 5].map(|number| crate::Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    put(site.store(), 1, 1);
    // Of 2 a part came, as live; 3 and 4 are too old.
    site.store().go_on_live_at(&gate(), n(2)).unwrap();
    let mut writer = site.store().open_segment(&gate(), open(2, 1)).unwrap();
    writer.append(&bytes_of(2)[..100]).unwrap();
    drop(writer);
    site.store().go_on_live_at(&gate(), n(5)).unwrap();
    assert_eq!(site.listed(), ["1.ts"]);
    // Backfill that is sooner than the end of 5 does not come before it.
    put(site.store(), 3, 1);
    assert_eq!(site.listed(), ["1.ts"]);
    site.restart();
    put(site.store(), 5, 1);
    let listed = site.listed();
    let ends = (listed.first().unwrap(), listed.last().unwrap());
    assert_eq!(ends, (&"1.ts".to_owned(), &"5.ts".to_owned()));
    let gaps = listed.iter().filter(|uri| uri.starts_with("gap-")).count();
    assert_eq!((gaps, listed.len()), (3, 5), "{listed:?}");
    put(site.store(), 4, 1);
    site.store()
        .resume_segment(&gate(), n(2))
        .unwrap()
        .unwrap()
        .discard()
        .unwrap();
    put(site.store(), 2, 1);
    assert_eq!(site.listed(), listed, "what was listed stays");
    let recording = site.store().recording(&gate(), None, None).unwrap();
    let text = String::from_utf8(recording.unwrap().text.to_vec()).unwrap();
    let here = text.lines().filter(|line| line.ends_with(".ts")).count();
    assert_eq!(here, 5, "{text}");
    // In order nothing is stepped over.
    put(site.store(), 6, 1);
    site.store().go_on_live_at(&gate(), n(7)).unwrap();
    put(site.store(), 7, 1);
    assert_eq!(site.listed().len(), 7);
}
