//! The hub's end: one UDP socket, many sessions, all writing into the same store.

mod admission;
mod app;
mod desk;
mod doubles;
mod flood;
mod session;
mod sight;
mod turns;
mod worker;

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use link_proto::{
    HubConfig, HubEndpoint,
    messages::{LineReport, SentReport},
    replicate::class::ByClass,
};
use model::{DeviceName, StreamName, WallTime};
use store::{Backlog, Store};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, KeyPair, LinkError, driver,
    history::{Reading, header_bytes},
    keys::random_bytes,
    socket::UdpSocket,
};
use app::Downlink;
use worker::Pool;

/// Where the hub listens and who it is.
#[derive(Debug, Clone)]
pub struct DownlinkConfig {
    pub listen: SocketAddr,
    pub key: KeyPair,
}

/// A device that is connected.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    pub device: DeviceName,
    pub peer: SocketAddr,
    pub since: WallTime,
    pub rtt: Option<Duration>,
    /// Share of this end's datagrams that did not arrive lately, 0 to 1.
    pub loss: f32,
    pub bytes_received: u64,
    /// How far its clock was ahead of ours as it connected, in milliseconds; the way here makes it less.
    pub clock_ahead_ms: i64,
    /// Packets rebuilt from parity.
    pub packets_recovered: u64,
    /// What the device said of its end last.
    pub said: Option<Said>,
    /// The streams that it ships, by name.
    pub streams: Arc<[StreamStatus]>,
}

/// A device's claims about its end of the link, cut to what makes sense.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// When, by the hub's clock.
    pub at: WallTime,
    pub line: LineReport,
    /// Since the session began; never goes back.
    pub sent: SentReport,
}

/// A stream that a connected device ships.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamStatus {
    pub stream: StreamName,
    /// Its live media comes, or would if the line let it.
    pub live: bool,
    /// How old the newest live media was as it came; where nothing comes any more, how old it is now.
    pub live_lag: Option<Duration>,
    /// Announced, and not here.
    pub backlog: Backlog,
    /// Media bytes that the device says it sent since the session began.
    pub by_class: ByClass,
}

impl SessionStatus {
    /// The largest of its streams' lags; None where nothing is live.
    pub fn live_lag(&self) -> Option<Duration> {
        self.streams.iter().filter_map(|s| s.live_lag).max()
    }

    /// What is missing of all its streams.
    pub fn backlog(&self) -> Backlog {
        let all = self.streams.iter().map(|s| s.backlog);
        all.fold(Backlog::default(), Backlog::and)
    }

    /// For a [`History`](crate::history::History): what it shows at this moment.
    pub fn reading(&self, at: WallTime, taken: Instant) -> Reading {
        let said = self.said.as_ref();
        Reading {
            at,
            taken,
            session: self.since,
            line: said.map(|said| said.line),
            sent: said.map(|said| said.sent).unwrap_or_default(),
            recovered: Some(self.packets_recovered),
            live_lag: self.live_lag(),
            backlog: self.backlog(),
            header_bytes: header_bytes(self.peer.ip()),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct DownlinkStatus {
    /// None until the socket is bound.
    pub listening: Option<SocketAddr>,
    pub sessions: Vec<SessionStatus>,
    pub counters: Counters,
}

/// One UDP socket, many sessions; devices and tokens come from the store. Acts on a changed device within
/// 2 s. Returns after `shutdown`, having said `Bye`.
///
/// The socket has a thread of its own: neither viewers nor disks keep it from draining what comes, and a flood
/// there takes no turn of theirs.
pub async fn run(
    config: DownlinkConfig,
    store: Store,
    status: watch::Sender<DownlinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(worker::MAX_THREADS)
        .thread_name("downlink-disk")
        .build()
        .map_err(LinkError::io("failed to start the link's runtime"))?;
    // Dropping this future ends the thread.
    let cut = CancellationToken::new();
    let _cut_at_end = cut.clone().drop_guard();
    let (result, ended) = oneshot::channel();
    thread::Builder::new()
        .name("link".to_owned())
        .spawn(move || {
            let ran =
                runtime.block_on(cut.run_until_cancelled(drive(config, store, status, shutdown)));
            // Where it was cut, nobody waits for the disk.
            runtime.shutdown_background();
            // Nobody waits for it any more where it was cut.
            let _ = result.send(ran.unwrap_or(Ok(())));
        })
        .map_err(LinkError::io("failed to start the link's thread"))?;
    ended.await.unwrap_or(Err(LinkError::LinkThread))
}

async fn drive(
    config: DownlinkConfig,
    store: Store,
    status: watch::Sender<DownlinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    let what = || format!("failed to listen on UDP {}", config.listen);
    let socket = UdpSocket::bind(config.listen).map_err(LinkError::io(what()))?;
    let listening = socket.local_addr().map_err(LinkError::io(what()))?;
    status.send_modify(|status| status.listening = Some(listening));
    let now = Instant::now();
    let mut endpoint = HubEndpoint::new(HubConfig::new(config.key.secret), now, random_bytes());
    let pool = Pool::of(tokio::runtime::Handle::current());
    let counters = socket.counters().clone();
    let mut app = Downlink::new(&store, listening, status, shutdown, pool, counters, now)?;
    driver::drive(&mut endpoint, &mut app, &socket)
        .await
        .map_err(LinkError::io("failed to read the UDP socket"))?;
    app.end().await
}
