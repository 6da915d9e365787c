//! Two real stores, real sockets on loopback.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "each test file uses its part, and fails loudly"
)]

use std::{net::SocketAddr, path::Path, time::Duration};

use link::{
    EnrolUrl, KeyPair, LinkError,
    downlink::{self, DownlinkConfig, DownlinkStatus},
    enrol,
    uplink::{self, LinkState, UplinkConfig, UplinkStatus},
};
use model::{
    DeviceName, MediaDuration, MediaTime, RunInfo, SegmentInfo, SegmentNumber, StreamName, WallTime,
};
use store::{OpenSegment, RetentionLimits, Store, StoreOptions};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn open(dir: &Path, edge: bool, limits: RetentionLimits) -> Store {
    let options = StoreOptions {
        holder: "a test".to_owned(),
        local_playlists: edge,
        limits,
        ..StoreOptions::default()
    };
    Store::open(dir, options).unwrap().0
}

/// Waits for a condition on what a watch shows.
pub(crate) async fn until<T>(
    watched: &mut watch::Receiver<T>,
    what: &str,
    mut met: impl FnMut(&T) -> bool,
) {
    tokio::time::timeout(PATIENCE, watched.wait_for(|value| met(value)))
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
        .unwrap();
}

/// Waits for a condition on a store.
pub(crate) async fn until_stored(store: &Store, what: &str, mut met: impl FnMut(&Store) -> bool) {
    let mut changes = store.changes();
    let watched = async {
        while !met(store) {
            changes.changed().await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, watched).await;
    assert!(in_time.is_ok(), "{what}: not within {PATIENCE:?}");
}

pub(crate) struct Hub {
    pub(crate) dir: TempDir,
    pub(crate) key: KeyPair,
    pub(crate) address: SocketAddr,
    pub(crate) running: Option<RunningHub>,
}

pub(crate) struct RunningHub {
    pub(crate) store: Store,
    pub(crate) status: watch::Receiver<DownlinkStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), LinkError>>,
}

impl Hub {
    pub(crate) async fn start() -> Self {
        let mut hub = Self {
            dir: tempfile::tempdir().unwrap(),
            key: KeyPair::generate(),
            address: "127.0.0.1:0".parse().unwrap(),
            running: None,
        };
        hub.start_again().await;
        hub
    }

    /// On the same address and store.
    pub(crate) async fn start_again(&mut self) {
        let store = open(self.dir.path(), false, RetentionLimits::default());
        let (sender, mut status) = watch::channel(DownlinkStatus::default());
        let stop = CancellationToken::new();
        let config = DownlinkConfig {
            listen: self.address,
            key: self.key.clone(),
        };
        let task = tokio::spawn(downlink::run(config, store.clone(), sender, stop.clone()));
        until(&mut status, "the hub listens", |s| s.listening.is_some()).await;
        self.address = status.borrow().listening.unwrap();
        self.running = Some(RunningHub {
            store,
            status,
            stop,
            task,
        });
    }

    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.cancel();
        running.task.await.unwrap().unwrap();
    }

    pub(crate) fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().store
    }

    pub(crate) fn url(&self, name: &str, token: &[u8]) -> EnrolUrl {
        let in_an_hour = WallTime(now().0 + 3_600_000);
        let name: DeviceName = name.parse().unwrap();
        self.store()
            .create_token(&name, token, in_an_hour, &[], now())
            .unwrap();
        EnrolUrl {
            address: self.address.to_string(),
            hub_key: self.key.public,
            token: token.to_vec(),
        }
    }

    pub(crate) async fn enrol(&self, name: &str) -> KeyPair {
        let key = KeyPair::generate();
        let url = self.url(name, name.as_bytes());
        let enrolled = enrol::enrol(&url, &key, |_| Ok(())).await.unwrap();
        assert_eq!(enrolled.name.as_str(), name);
        key
    }
}

pub(crate) struct Edge {
    pub(crate) dir: TempDir,
    pub(crate) config: UplinkConfig,
    pub(crate) limits: RetentionLimits,
    pub(crate) running: Option<RunningEdge>,
}

pub(crate) struct RunningEdge {
    pub(crate) store: Store,
    pub(crate) status: watch::Receiver<UplinkStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), LinkError>>,
}

impl Edge {
    pub(crate) fn start(hub: &Hub, key: KeyPair) -> Self {
        let config = UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: hub.key.public,
            key,
            answer_timeout: Duration::from_millis(500),
            orders: link::uplink::default_orders(),
        };
        Self::start_with(config)
    }

    pub(crate) fn start_with(config: UplinkConfig) -> Self {
        Self::start_within(config, RetentionLimits::default())
    }

    pub(crate) fn start_within(config: UplinkConfig, limits: RetentionLimits) -> Self {
        let mut edge = Self {
            limits,
            dir: tempfile::tempdir().unwrap(),
            config,
            running: None,
        };
        edge.start_again();
        edge
    }

    pub(crate) fn start_again(&mut self) {
        let store = open(self.dir.path(), true, self.limits);
        let (sender, status) = watch::channel(UplinkStatus::default());
        let stop = CancellationToken::new();
        let config = self.config.clone();
        let task = tokio::spawn(uplink::run(config, store.clone(), sender, stop.clone()));
        self.running = Some(RunningEdge {
            store,
            status,
            stop,
            task,
        });
    }

    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.cancel();
        running.task.await.unwrap().unwrap();
    }

    pub(crate) fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().store
    }

    /// Waits for a state of the link.
    pub(crate) async fn until(&mut self, what: &str, met: impl Fn(&LinkState) -> bool) {
        let status = &mut self.running.as_mut().unwrap().status;
        until(status, what, |status| met(&status.state)).await;
    }

    pub(crate) async fn connected(&mut self) {
        self.until("connected", |state| {
            matches!(state, LinkState::Connected { .. })
        })
        .await;
    }

    pub(crate) fn status(&self) -> UplinkStatus {
        self.running.as_ref().unwrap().status.borrow().clone()
    }
}

pub(crate) fn now() -> WallTime {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    WallTime(since.as_millis() as i64)
}

/// Records made-up segments: two parts each.
pub(crate) struct Recorder {
    pub(crate) stream: StreamName,
    pub(crate) next: u64,
    pub(crate) part_bytes: usize,
    run: SegmentNumber,
}

impl Recorder {
    pub(crate) fn new(store: &Store, stream: &str, first: u64) -> Self {
        let recorder = Self {
            stream: stream.parse().unwrap(),
            next: first,
            part_bytes: 50_000,
            run: SegmentNumber(first),
        };
        store.register_stream(&recorder.stream, None).unwrap();
        let run = RunInfo {
            run: recorder.run,
            codecs: "avc1.64001f".to_owned(),
            resolution: Some((640, 360)),
            target_duration_s: 2,
        };
        store.put_run(&recorder.stream, &run).unwrap();
        recorder
    }

    pub(crate) fn segment(&mut self, store: &Store) -> SegmentInfo {
        let mut writer = self.open(store);
        for part in 0..2 {
            let bytes = self.bytes(part);
            writer.append(&bytes).unwrap();
            writer
                .finish_part(MediaDuration::from_millis(1_000), part == 0)
                .unwrap();
        }
        let info = writer
            .close(MediaDuration::from_millis(2_000), None)
            .unwrap();
        self.next += 1;
        info
    }

    pub(crate) fn open(&self, store: &Store) -> store::SegmentWriter {
        let open = OpenSegment {
            number: SegmentNumber(self.next),
            run: self.run,
            wall_start: WallTime(1_777_000_000_000 + 2_000 * self.next as i64),
            media_start: MediaTime(180_000 * self.next as i64),
            independent: true,
        };
        store.open_segment(&self.stream, open).unwrap()
    }

    pub(crate) fn bytes(&self, part: u64) -> Vec<u8> {
        let seed = self.next * 7 + part;
        (0..self.part_bytes as u64)
            .map(|i| (i.wrapping_mul(seed | 1) >> 3) as u8)
            .collect()
    }

    pub(crate) fn end(&self, store: &Store) {
        let last = (self.next > self.run.0).then(|| SegmentNumber(self.next - 1));
        store.end_stream(&self.stream, last).unwrap();
    }
}

/// Waits until the hub has the stream whole and ended, then compares it byte for byte.
pub(crate) async fn assert_replicated(edge: &Edge, hub: &Hub, stream: &StreamName) {
    let store = edge.store().clone();
    until_stored(edge.store(), "the stream's end is confirmed", |store| {
        store.ended_on_hub(stream).unwrap() && store.stream(stream).unwrap().unwrap().unshipped == 0
    })
    .await;
    let sent = store.list(stream, SegmentNumber(0), 100_000).unwrap();
    let there = hub.store().list(stream, SegmentNumber(0), 100_000).unwrap();
    assert_eq!(sent, there);
    for info in &sent {
        let bytes = |store: &Store| store.read(stream, info.number, 0..info.bytes).unwrap();
        assert_eq!(
            bytes(&store),
            bytes(hub.store()),
            "{stream} {}",
            info.number
        );
    }
    assert!(hub.store().live_playlist(stream).unwrap().unwrap().ended);
}
