//! The hub's end: one UDP socket, many sessions, all writing into the same store.

mod admission;
mod app;
mod desk;
mod doubles;
mod flood;
mod session;
mod turns;
mod worker;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use link_proto::{HubConfig, HubEndpoint};
use model::{DeviceName, WallTime};
use store::Store;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{Counters, KeyPair, LinkError, driver, keys::random_bytes, socket::UdpSocket};
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
