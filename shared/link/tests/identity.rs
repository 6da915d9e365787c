//! Whole stores whose numbers, disks or names are not what the hub remembers: restored, moved, wiped, doubled.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Edge, Hub, Recorder, runtime, until_stored};
use link::{KeyPair, uplink::LinkState};
use model::{HoleReason, SegmentHash, SegmentInfo, SegmentNumber, StreamName};
use store::Store;

fn all(store: &Store, stream: &StreamName) -> Vec<SegmentInfo> {
    store.list(stream, SegmentNumber(0), 100_000).unwrap()
}

fn hashes(store: &Store, stream: &StreamName) -> BTreeMap<[u8; 32], SegmentNumber> {
    let all = all(store, stream);
    all.iter().map(|info| (info.hash.0, info.number)).collect()
}

/// Waits until the edge has nothing left to ship.
async fn shipped(edge: &Edge, stream: &StreamName) {
    until_stored(edge.store(), "all is confirmed", |store| {
        store.stream(stream).unwrap().unwrap().unshipped == 0
    })
    .await;
}

/// The hub has these bytes, each whole and under one number.
fn assert_there(hub: &Hub, stream: &StreamName, wanted: &BTreeMap<[u8; 32], SegmentNumber>) {
    let there = hashes(hub.store(), stream);
    assert_eq!(
        there.len(),
        all(hub.store(), stream).len(),
        "twice the same"
    );
    for (hash, number) in wanted {
        assert!(there.contains_key(hash), "{number} is not at the hub");
    }
    for info in all(hub.store(), stream) {
        let bytes = hub
            .store()
            .read(stream, info.number, 0..info.bytes)
            .unwrap();
        assert_eq!(SegmentHash::of(&bytes), info.hash);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Records the next segment above all that the store knows to be used, as the recorder does.
fn record(gate: &mut Recorder, edge: &Edge) {
    let floor = edge.store().floor(&gate.stream).unwrap();
    gate.next = gate.next.max(floor.0);
    gate.segment(edge.store());
}

/// A recorder whose bytes differ from others' of the same numbers.
fn recorder(edge: &Edge, first: u64, part_bytes: usize) -> Recorder {
    let mut recorder = Recorder::new(edge.store(), "gate", first);
    recorder.part_bytes = part_bytes;
    recorder
}

#[test]
fn a_restored_image_overwrites_nothing_and_loses_nothing() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        let mut gate = recorder(&edge, 0, 5_000);
        let stream = gate.stream.clone();
        for _ in 0..5 {
            record(&mut gate, &edge);
        }
        shipped(&edge, &stream).await;
        edge.stop().await;
        let image = tempfile::tempdir().unwrap();
        copy(edge.dir.path(), image.path());
        edge.start_again();
        let mut gate = recorder(&edge, 5, 6_000);
        for _ in 0..20 {
            record(&mut gate, &edge);
        }
        shipped(&edge, &stream).await;
        let first_life = hashes(edge.store(), &stream);
        edge.stop().await;
        edge.dir = image;
        edge.start_again();
        // Faster than the link: numbers of the image, other bytes; one is being written as the hub answers.
        let mut gate = recorder(&edge, 5, 7_000);
        for _ in 0..12 {
            record(&mut gate, &edge);
        }
        gate.next = edge.store().floor(&stream).unwrap().0;
        let mut writer = gate.open(edge.store());
        writer.append(&gate.bytes(0)).unwrap();
        writer
            .finish_part(model::MediaDuration::from_millis(1_000), true)
            .unwrap();
        edge.connected().await;
        until_stored(edge.store(), "the closed ones have moved", |store| {
            let unshipped = store.unshipped(&stream, SegmentNumber(0), 100).unwrap();
            unshipped.is_empty()
        })
        .await;
        writer
            .close(model::MediaDuration::from_millis(1_000), None)
            .unwrap();
        gate.next = edge.store().floor(&stream).unwrap().0;
        record(&mut gate, &edge);
        edge.store()
            .end_stream(&stream, Some(SegmentNumber(gate.next - 1)))
            .unwrap();
        until_stored(edge.store(), "the end is confirmed", |store| {
            store.ended_on_hub(&stream).unwrap()
        })
        .await;
        shipped(&edge, &stream).await;
        let second_life = hashes(edge.store(), &stream);
        assert_eq!(second_life.len(), 5 + 12 + 2);
        assert_there(&hub, &stream, &first_life);
        assert_there(&hub, &stream, &second_life);
        for (hash, number) in &first_life {
            let info = hub.store().segment(&stream, *number).unwrap().unwrap();
            assert_eq!(info.hash.0, *hash, "{number} was overwritten");
        }
        let walls: Vec<_> = all(edge.store(), &stream)
            .iter()
            .map(|info| info.wall_start)
            .collect();
        assert!(walls[..walls.len() - 1].is_sorted(), "{walls:?}");
        let live = hub.store().live_playlist(&stream).unwrap().unwrap();
        assert!(live.ended);
    });
}

#[test]
fn a_stream_moved_to_a_box_with_its_own_keeps_both() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        let mut gate = recorder(&edge, 0, 5_000);
        let stream = gate.stream.clone();
        for _ in 0..15 {
            record(&mut gate, &edge);
        }
        shipped(&edge, &stream).await;
        let theirs = hashes(edge.store(), &stream);
        edge.stop().await;
        let key = hub.enrol("site-2").await;
        let to = "site-2".parse().unwrap();
        assert!(hub.store().move_stream(&stream, &to).unwrap());
        let mut other = Edge::start(&hub, key);
        let mut gate = recorder(&other, 0, 8_000);
        for _ in 0..30 {
            record(&mut gate, &other);
        }
        other.connected().await;
        gate.end(other.store());
        until_stored(other.store(), "the end is confirmed", |store| {
            store.ended_on_hub(&stream).unwrap()
        })
        .await;
        shipped(&other, &stream).await;
        assert_there(&hub, &stream, &theirs);
        assert_there(&hub, &stream, &hashes(other.store(), &stream));
        assert_eq!(all(hub.store(), &stream).len(), 45);
    });
}

#[test]
fn a_wiped_disk_lets_the_hubs_list_go_on() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        let mut gate = recorder(&edge, 0, 2_000);
        let stream = gate.stream.clone();
        record(&mut gate, &edge);
        shipped(&edge, &stream).await;
        edge.stop().await;
        // Announced before the disk is gone, and never shipped.
        let info = all(hub.store(), &stream)[0];
        let announced: Vec<_> = (1..40)
            .map(|number| store::Announced {
                info: SegmentInfo {
                    number: SegmentNumber(number),
                    hash: SegmentHash([number as u8; 32]),
                    ..info
                },
            })
            .collect();
        hub.store().announce(&stream, &announced).unwrap();
        hub.stop().await;
        hub.start_again().await;
        // Nothing at all of the stream is on the new disk.
        edge.dir = tempfile::tempdir().unwrap();
        edge.start_again();
        until_stored(hub.store(), "what is gone is settled", |store| {
            store.settled(&stream).unwrap().count() == 40
        })
        .await;
        let lost = SegmentNumber(1)..=SegmentNumber(39);
        assert_eq!(
            hub.store().holes(&stream).unwrap(),
            [(lost, HoleReason::Lost)]
        );
        let mut gate = recorder(&edge, 40, 2_000);
        record(&mut gate, &edge);
        gate.end(edge.store());
        until_stored(hub.store(), "the list goes on to its end", |store| {
            let live = store.live_playlist(&stream).unwrap().unwrap();
            live.ended && String::from_utf8_lossy(&live.text).contains("40.ts")
        })
        .await;
    });
}

#[test]
fn a_file_that_cannot_be_read_ends_as_a_hole_and_the_rest_arrives() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        hub.stop().await;
        let edge = Edge::start(&hub, key);
        let mut gate = recorder(&edge, 0, 2_000);
        let stream = gate.stream.clone();
        for _ in 0..5 {
            record(&mut gate, &edge);
        }
        gate.end(edge.store());
        let folder = edge.dir.path().join("segments/gate/0");
        let file = fs::File::options().write(true).open(folder.join("1.ts"));
        file.unwrap().set_len(7).unwrap();
        // Its bytes are not what they were: the hub finds out, twice.
        let mut bytes = fs::read(folder.join("3.ts")).unwrap();
        bytes[1_000] ^= 1;
        fs::write(folder.join("3.ts"), bytes).unwrap();
        hub.start_again().await;
        until_stored(edge.store(), "the end is confirmed", |store| {
            store.ended_on_hub(&stream).unwrap()
        })
        .await;
        let there: Vec<_> = all(hub.store(), &stream)
            .iter()
            .map(|i| i.number.0)
            .collect();
        assert_eq!(there, [0, 2, 4]);
        let summary = edge.store().stream(&stream).unwrap().unwrap();
        assert_eq!((summary.unshipped, summary.given_up), (0, 1));
        let corrupt = HoleReason::Corrupt;
        assert_eq!(edge.store().given_up(&stream).unwrap(), [(corrupt, 1)]);
        let one = SegmentNumber(1)..=SegmentNumber(1);
        assert_eq!(edge.store().holes(&stream).unwrap(), [(one, corrupt)]);
        let live = hub.store().live_playlist(&stream).unwrap().unwrap();
        assert!(live.ended);
    });
}

#[test]
fn of_two_boxes_with_one_identity_the_newest_stays_and_the_other_is_told() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key: KeyPair = hub.enrol("site-1").await;
        let mut first = Edge::start(&hub, key.clone());
        let mut gate = recorder(&first, 0, 2_000);
        let stream = gate.stream.clone();
        record(&mut gate, &first);
        shipped(&first, &stream).await;
        let mut second = Edge::start(&hub, key);
        let mut clone = recorder(&second, 0, 3_000);
        record(&mut clone, &second);
        second.connected().await;
        first
            .until("told of the other", |state| {
                matches!(state, LinkState::Refused { reason } if reason.contains("another box uses this identity"))
            })
            .await;
        shipped(&second, &stream).await;
        assert_there(&hub, &stream, &hashes(first.store(), &stream));
        assert_there(&hub, &stream, &hashes(second.store(), &stream));
        // It stays away: the one that is there is not driven out.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        let connected = |edge: &Edge| matches!(edge.status().state, LinkState::Connected { .. });
        assert!(connected(&second) && !connected(&first));
    });
}
