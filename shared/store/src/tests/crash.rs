//! What a kill at each point leaves, and what the next start makes of it.

use std::fs;

use media::{
    access_unit::{AccessUnit, AudioInfo, SourceEvent, Track, TrackFormat, TrackId},
    segmenter::{Cut, Segmenter, SegmenterConfig},
};
use model::{HoleReason, MediaTime};

use super::*;

/// Real transport stream bytes: `parts` parts of silence.
pub(crate) fn media(parts: usize) -> Vec<Vec<u8>> {
    let track = Track {
        id: TrackId(0),
        format: TrackFormat::Aac {
            info: AudioInfo {
                sample_rate: 48_000,
                channels: 2,
                codec: "mp4a.40.2".to_owned(),
            },
        },
    };
    let mut segmenter = Segmenter::new(SegmenterConfig::default());
    let mut cuts = Vec::new();
    segmenter.push(SourceEvent::Tracks(vec![track]), &mut cuts);
    // ADTS: AAC-LC, 48 kHz, stereo, 13 bytes in all.
    let frame = [
        0xff, 0xf1, 0x4c, 0x80, 0x01, 0xbf, 0xfc, 0x21, 0x10, 0x04, 0x60, 0x8c, 0x1c,
    ];
    for i in 0..100i64 {
        let at = MediaTime(900_000 + i * 1_920);
        let unit = AccessUnit {
            track: TrackId(0),
            pts: at,
            dts: at,
            key: true,
            data: bytes::Bytes::copy_from_slice(&frame),
        };
        segmenter.push(SourceEvent::AccessUnit(unit), &mut cuts);
    }
    segmenter.finish(&mut cuts);
    let parts: Vec<Vec<u8>> = cuts
        .into_iter()
        .filter_map(|cut| match cut {
            Cut::Part { bytes, .. } => Some(bytes.to_vec()),
            _ => None,
        })
        .take(parts)
        .collect();
    assert!(!parts.is_empty());
    parts
}

#[test]
fn an_edge_closes_what_a_kill_left_open() {
    let mut site = Site::edge();
    put(site.store(), 1, 1);
    let parts = media(3);
    let mut writer = site.store().open_segment(&gate(), open(2, 1)).unwrap();
    for part in &parts {
        writer.append(part).unwrap();
        writer.finish_part(MediaDuration(29_970), true).unwrap();
    }
    drop(writer);
    let report = site.restart();
    assert_eq!(report.open_closed, 1);
    let info = site.store().segment(&gate(), n(2)).unwrap().unwrap();
    assert_eq!(info.hash, SegmentHash::of(&parts.concat()));
    assert!((70_000..110_000).contains(&info.duration.0), "{info:?}");
    assert_eq!(site.listed(), ["1.ts", "2.ts"]);
}

#[test]
fn a_torn_access_unit_is_cut_off() {
    let mut site = Site::edge();
    let parts = media(3);
    let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(&parts[0]).unwrap();
    writer.append(&parts[1]).unwrap();
    writer.append(&parts[2][..parts[2].len() - 100]).unwrap();
    drop(writer);
    site.restart();
    let info = site.store().segment(&gate(), n(1)).unwrap().unwrap();
    // One access unit of silence is one packet.
    assert_eq!(info.bytes as usize, parts.concat().len() - 188);
}

#[test]
fn a_loss_of_power_takes_what_follows_the_last_whole_unit() {
    let parts = media(3);
    let whole = parts.concat();
    // Sectors that were never written read as zeros; a unit of silence ends in its own, stuffed packet.
    for (zeros, keeps) in [(4_096, whole.len()), (100, whole.len())] {
        let mut site = Site::edge();
        let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
        writer.append(&whole).unwrap();
        writer.append(&vec![0; zeros]).unwrap();
        drop(writer);
        assert_eq!(site.restart().open_closed, 1);
        let info = site.store().segment(&gate(), n(1)).unwrap().unwrap();
        assert_eq!(info.bytes as usize, keeps, "{zeros} zeros");
        assert_eq!(info.hash, SegmentHash::of(&whole));
    }
    // A unit of three packets whose last two are gone: what is there of it goes too.
    let mut site = Site::edge();
    let mut begun = [0xaa; 188];
    begun[..4].copy_from_slice(&[0x47, 0x41, 0x00, 0x10]);
    let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(&whole).unwrap();
    writer.append(&begun).unwrap();
    writer.append(&[0; 376]).unwrap();
    drop(writer);
    site.restart();
    let info = site.store().segment(&gate(), n(1)).unwrap().unwrap();
    assert_eq!(info.hash, SegmentHash::of(&whole));
}

#[test]
fn the_local_live_playlist_is_put_right_at_a_start() {
    let mut site = Site::edge();
    put(site.store(), 1, 1);
    let path = site.path().join("segments/gate/live.m3u8");
    let good = fs::read(&path).unwrap();
    for torn in [vec![0; good.len()], Vec::new(), good[..40].to_vec()] {
        fs::write(&path, torn).unwrap();
        site.restart();
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[test]
fn an_open_segment_without_media_is_dropped_and_its_number_burnt() {
    let mut site = Site::edge();
    drop(site.store().open_segment(&gate(), open(1, 1)).unwrap());
    let mut writer = site.store().open_segment(&gate(), open(2, 1)).unwrap();
    writer.append(b"torn").unwrap();
    drop(writer);
    site.restart();
    assert_eq!(site.store().list(&gate(), n(0), 10).unwrap(), []);
    assert_eq!(site.store().floor(&gate()).unwrap(), n(3));
    put(site.store(), 3, 1);
    assert_eq!(site.listed(), ["3.ts"]);
}

#[test]
fn a_kill_between_rename_and_commit_loses_nothing() {
    // The file has its final name, its row is still open.
    let mut hub = Site::hub();
    let mut writer = hub.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(&bytes_of(1)).unwrap();
    drop(writer);
    let folder = hub.path().join("segments/gate/0");
    fs::rename(folder.join("1.part"), folder.join("1.ts")).unwrap();
    let report = hub.restart();
    assert_eq!((report.partials_kept, report.orphans_removed), (1, 0));
    assert_eq!(hub.store().partials(&gate()).unwrap()[0].1, 564);

    let mut edge = Site::edge();
    let parts = media(2);
    let mut writer = edge.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(&parts.concat()).unwrap();
    drop(writer);
    let folder = edge.path().join("segments/gate/0");
    fs::rename(folder.join("1.part"), folder.join("1.ts")).unwrap();
    assert_eq!(edge.restart().open_closed, 1);
    assert_eq!(edge.listed(), ["1.ts"]);
}

#[test]
fn files_without_rows_are_set_aside_and_rows_without_files_asked_for_again() {
    let mut site = Site::hub();
    for number in 1..=3 {
        put(site.store(), number, 1);
    }
    let folder = site.path().join("segments/gate/0");
    fs::write(folder.join("77.ts"), b"nobody's").unwrap();
    fs::write(folder.join("78.part"), b"nobody's").unwrap();
    fs::write(folder.join("notes.txt"), b"somebody's").unwrap();
    fs::remove_file(folder.join("2.ts")).unwrap();
    let report = site.restart();
    assert_eq!((report.set_aside, report.missing_files), (2, 1));
    assert!(folder.join("notes.txt").exists() && !folder.join("77.ts").exists());
    let aside = site.path().join("orphans/gate");
    assert!(aside.join("77.ts").exists() && aside.join("78.part").exists());
    // The edge hears that it is lacking, and may have it.
    assert!(!site.store().settled(&gate()).unwrap().contains(n(2)));
    assert!(site.store().open_file(&gate(), n(2)).unwrap().is_none());
    put(site.store(), 2, 1);
    assert!(site.store().settled(&gate()).unwrap().contains(n(2)));

    let mut edge = Site::edge();
    put(edge.store(), 1, 1);
    fs::remove_file(edge.path().join("segments/gate/0/1.ts")).unwrap();
    assert_eq!(edge.restart().missing_files, 1);
    assert_eq!(
        edge.store().holes(&gate()).unwrap(),
        [(n(1)..=n(1), HoleReason::Corrupt)]
    );
}

#[test]
fn a_second_daemon_is_told_who_holds_the_directory() {
    let site = Site::hub();
    let error = Store::open(site.path(), StoreOptions::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is in use by another program (process"),
        "{error}"
    );
    // Subcommands may look beside it.
    let beside = Store::open_beside(site.path()).unwrap();
    assert_eq!(beside.streams().unwrap().len(), 1);
}

#[test]
fn a_catalog_of_a_later_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("catalog.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
}
