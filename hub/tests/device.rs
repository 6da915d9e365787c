//! A device over the real link: enrolled, disabled, replaced; its stream listed, moved, ended, removed.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;

use std::{path::Path, time::Duration};

use common::{Daemon, get, http, hub_in, until};
use link::{
    EnrolUrl, KeyPair, LinkError, enrol,
    uplink::{self, LinkState, UplinkConfig, UplinkStatus},
};
use model::{MediaDuration, MediaTime, RunInfo, SegmentNumber, StreamName, WallTime};
use serde_json::json;
use store::{OpenSegment, Store, StoreOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Segments of 2 s in the test's stream.
const SEGMENTS: u64 = 3;

fn invitation(data: &Path, name: &str, hub: &Daemon) -> EnrolUrl {
    let (code, out, err) = hub_in(
        data,
        &["enroll", name, "--address", &hub.link, "--stream", "gate"],
    );
    assert_eq!(code, 0, "{err}");
    out.trim().parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Enrols as an edge does; the reason if the hub refuses.
fn enrol(url: &EnrolUrl, key: &KeyPair) -> Result<String, String> {
    match runtime().block_on(enrol::enrol(url, key, |_| Ok(()))) {
        Ok(enrolled) => Ok(enrolled.name.to_string()),
        Err(LinkError::Refused { reason }) => Err(reason),
        Err(error) => panic!("{error}"),
    }
}

/// A device's store with a stream of [`SEGMENTS`] segments, not ended.
fn recorded(dir: &Path, stream: &StreamName) -> Store {
    let options = StoreOptions {
        holder: "test".to_owned(),
        local_playlists: false,
        live_window: Duration::from_secs(120),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir, options).unwrap();
    let run = SegmentNumber(1);
    let info = RunInfo {
        run,
        codecs: "avc1.64001f".to_owned(),
        resolution: Some((640, 480)),
        target_duration_s: 2,
    };
    store.register_stream(stream, None).unwrap();
    store.put_run(stream, &info).unwrap();
    let length = MediaDuration::from_millis(2_000);
    let (mut wall_start, mut media_start) = (WallTime(1_777_622_400_000), MediaTime(0));
    for n in 1..=SEGMENTS {
        let open = OpenSegment {
            number: SegmentNumber(n),
            run,
            wall_start,
            media_start,
            independent: true,
        };
        let mut writer = store.open_segment(stream, open).unwrap();
        writer.append(&[n as u8; 188 * 100]).unwrap();
        writer.finish_part(length, true).unwrap();
        writer.close(length, None).unwrap();
        (wall_start, media_start) = (wall_start.plus(length), media_start + length);
    }
    store
}

/// Runs an uplink until `until` holds of its status.
fn ship(
    store: &Store,
    hub: &Daemon,
    url: &EnrolUrl,
    key: &KeyPair,
    until: impl Fn(&UplinkStatus) -> bool,
) {
    let config = UplinkConfig {
        hub_address: hub.link.clone(),
        hub_key: url.hub_key,
        key: key.clone(),
        answer_timeout: Duration::from_secs(10),
        orders: uplink::default_orders(),
    };
    runtime().block_on(async {
        let (status, mut seen) = watch::channel(UplinkStatus::default());
        let stop = CancellationToken::new();
        let running = tokio::spawn(uplink::run(config, store.clone(), status, stop.clone()));
        let reached = tokio::time::timeout(Duration::from_secs(20), seen.wait_for(until))
            .await
            .is_ok();
        assert!(reached, "not reached: {:?}", *seen.borrow());
        stop.cancel();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn an_invitation_works_once_and_a_new_one_replaces_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    let (first, second) = (KeyPair::generate(), KeyPair::generate());

    let url = invitation(dir.path(), "pole-7", &hub);
    assert_eq!(enrol(&url, &first).unwrap(), "pole-7");
    let reason = enrol(&url, &second).unwrap_err();
    assert!(reason.contains("used already"), "{reason}");
    let mut unknown = url.clone();
    unknown.token = vec![7; 32];
    assert!(
        enrol(&unknown, &second)
            .unwrap_err()
            .contains("not known here")
    );

    let devices = get(&format!("{}/api/v1/devices", hub.admin)).json();
    assert_eq!(
        (&devices[0]["name"], &devices[0]["state"]),
        (&json!("pole-7"), &json!("enrolled"))
    );
    let key = devices[0]["key"].clone();
    let again = invitation(dir.path(), "pole-7", &hub);
    assert_eq!(enrol(&again, &second).unwrap(), "pole-7");
    let devices = get(&format!("{}/api/v1/devices", hub.admin)).json();
    assert_ne!(devices[0]["key"], key);
    assert_eq!(devices[0]["streams"], json!(["gate"]));
    let metrics = get(&format!("{}/metrics", hub.admin)).text;
    assert!(
        metrics.contains("penstock_link_handshakes_total"),
        "{metrics}"
    );
    assert_eq!(hub.stop(), 0);
}

#[test]
fn a_stream_is_shipped_moved_ended_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("hub");
    let hub = Daemon::start(&data);
    let gate: StreamName = "gate".parse().unwrap();
    let key = KeyPair::generate();
    let url = invitation(&data, "pole-7", &hub);
    enrol(&url, &key).unwrap();
    let edge = recorded(&dir.path().join("edge"), &gate);
    ship(&edge, &hub, &url, &key, |status| {
        status.counters.segments_stored >= SEGMENTS
    });

    let list = || hub_in(&data, &["stream", "list"]).1;
    assert!(list().contains("gate    pole-7  "), "{}", list());
    let streams: serde_json::Value =
        serde_json::from_str(&hub_in(&data, &["stream", "list", "--json"]).1).unwrap();
    assert_eq!(
        (&streams[0]["segments"], &streams[0]["bytes"]),
        (&json!(SEGMENTS), &json!(SEGMENTS * 18_800))
    );
    assert_eq!(streams[0]["from_ms"], json!(1_777_622_400_000i64));
    let devices = hub_in(&data, &["device", "list"]).1;
    assert!(devices.contains("127.0.0.1:"), "{devices}");
    let live = || get(&format!("{}/s/gate/live.m3u8", hub.http));
    assert_eq!(
        live().text.matches("#EXTINF").count(),
        SEGMENTS as usize,
        "{}",
        live().text
    );
    assert!(!live().text.contains("#EXT-X-ENDLIST"));

    // Disabled, it hears so; its owner is another then, and it hears that.
    let refused = |why: &'static str| move |status: &UplinkStatus| matches!(&status.state, LinkState::Refused { reason } if reason.contains(why));
    assert_eq!(hub_in(&data, &["device", "disable", "pole-7"]).0, 0);
    ship(&edge, &hub, &url, &key, refused("disabled"));
    assert_eq!(hub_in(&data, &["device", "enable", "pole-7"]).0, 0);
    let (code, _, err) = hub_in(
        &data,
        &[
            "enroll",
            "pole-8",
            "--address",
            &hub.link,
            "--stream",
            "gate",
        ],
    );
    assert_eq!(code, 1);
    assert!(err.contains("`hub stream move gate NEW_DEVICE`"), "{err}");
    assert_eq!(
        hub_in(&data, &["enroll", "pole-8", "--address", &hub.link]).0,
        0
    );
    let (code, out, _) = hub_in(&data, &["stream", "move", "gate", "pole-8"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("gate belongs to pole-8 "), "{out}");
    ship(&edge, &hub, &url, &key, |status| {
        status
            .refused_streams
            .iter()
            .any(|(stream, reason)| *stream == gate && reason.contains("pole-8"))
    });

    // Ended beside the daemon: its playlist ends within 2 s.
    let (code, out, _) = hub_in(&data, &["stream", "end", "gate"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("gate ends; "), "{out}");
    let took = until("the live playlist ends", || {
        live().text.contains("#EXT-X-ENDLIST")
    });
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(
        hub_in(&data, &["stream", "end", "gate"]).1,
        "gate has ended already\n"
    );

    // Removed through the API: gone from there, from the page's list and from the disk.
    let segment = || get(&format!("{}/s/gate/1.ts", hub.http)).status;
    assert_eq!(segment(), 200);
    let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
    let answer = http(
        "DELETE",
        &format!("{}/api/v1/streams/gate", hub.admin),
        Some(token.trim()),
        None,
    );
    assert_eq!(answer.status, 200, "{}", answer.text);
    until("the stream is gone", || {
        live().status == 404 && segment() == 404
    });
    assert_eq!(hub_in(&data, &["stream", "list", "--json"]).1.trim(), "[]");
    assert_eq!(hub.stop(), 0);
}
