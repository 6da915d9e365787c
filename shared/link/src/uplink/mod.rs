//! An edge's end: ships what its store holds to one hub, for as long as the program runs.

mod app;
mod disk;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use link_proto::DEFAULT_MAX_REDUNDANCY;
pub use link_proto::replicate::sender::{Allowed, DEFAULT_LIVE_DEADLINE, MAX_WEIGHT, Policy};
use link_proto::{EdgeConfig, EdgeEndpoint, replicate::sender::Progress};
use model::{DeviceName, SegmentNumber, StreamName, WallTime};
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, KeyPair, LinkError, cipher, driver,
    keys::random_bytes,
    resolve::{any_port_towards, resolve},
    socket::UdpSocket,
};
use app::Uplink;

/// A name that can't be resolved at start is asked for again after this, then ever more slowly.
const FIRST_RESOLVE_RETRY: Duration = Duration::from_secs(1);
/// The slowest that a name is asked for again.
const MAX_RESOLVE_RETRY: Duration = Duration::from_secs(60);

/// How to reach the hub.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// `HOST:PORT`, resolved afresh at start and after losses.
    pub hub_address: String,
    pub hub_key: [u8; 32],
    pub key: KeyPair,
    /// After this long without an answer the hub counts as unreachable. Default [`crate::ANSWER_TIMEOUT`].
    pub answer_timeout: Duration,
    /// What goes before what, and what may go at all; may change while the uplink runs. [`default_orders`] where
    /// nobody gives any.
    pub orders: watch::Receiver<Orders>,
}

/// What the operator, or a budget, wants of the line.
#[derive(Debug, Clone, PartialEq)]
pub struct Orders {
    pub policy: Policy,
    /// Bits per second that go out at most, in UDP payloads. Default: what the line carries.
    pub max_rate_bps: Option<u64>,
    /// What may be sent before any loss is known, as a share of the media sent, 0 to 1. Default
    /// [`DEFAULT_MAX_REDUNDANCY`].
    pub max_redundancy: f64,
    /// What `policy.allowed` holds back, why and until when, in words.
    pub held_back: Option<String>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            max_rate_bps: None,
            max_redundancy: DEFAULT_MAX_REDUNDANCY,
            held_back: None,
        }
    }
}

/// Orders that never change.
pub fn default_orders() -> watch::Receiver<Orders> {
    watch::channel(Orders::default()).1
}

/// The hub's clock, as its welcome told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubTime {
    /// What the hub's clock showed at `at`, if the way there took as long as the way back.
    pub time: WallTime,
    pub at: Instant,
    /// Half the time between question and answer: off by more the clock can't be.
    pub uncertainty: Duration,
}

/// Hears the hub's time at each welcome, on the thread that reads the store; nothing is shipped before it
/// returns.
pub type HubTimeTaker = Arc<dyn Fn(HubTime) + Send + Sync>;

/// How the link stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    #[default]
    Connecting,
    Connected {
        device: DeviceName,
        since: WallTime,
    },
    /// Retried with back-off.
    Unreachable {
        why: String,
    },
    /// Unknown, disabled…; retried slowly.
    Refused {
        reason: String,
    },
}

/// What pages, progress bars and metrics show.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UplinkStatus {
    pub state: LinkState,
    /// Streams that the hub doesn't take from this device, and why; offered again now and then.
    pub refused_streams: Vec<(StreamName, String)>,
    /// Per stream of this device the lowest number that the hub has not seen used, as of the last welcome.
    pub floors: Vec<(StreamName, SegmentNumber)>,
    /// The hub's clock as of the last welcome.
    pub hub_time: Option<HubTime>,
    pub rtt: Option<Duration>,
    /// What the pacer lets out now.
    pub rate_bps: u64,
    /// Share of datagrams that did not arrive lately, 0 to 1.
    pub loss: f32,
    pub counters: Counters,
    /// What was sent, by class.
    pub progress: Progress,
    /// What is held back, why and until when.
    pub held_back: Option<String>,
}

/// Ships what the store holds until `shutdown`; then says `Bye` and returns. Never ends by itself on a lost
/// link.
pub async fn run(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    run_with_clock(config, store, status, shutdown, Arc::new(|_| {})).await
}

/// The same; `on_hub_time` may correct the store's wall times.
pub async fn run_with_clock(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
    on_hub_time: HubTimeTaker,
) -> Result<(), LinkError> {
    let resolved = tokio::select! {
        address = resolve_at_start(&config.hub_address, &status) => address,
        () = shutdown.cancelled() => return Ok(()),
    };
    let socket = UdpSocket::bind(any_port_towards(resolved))
        .map_err(LinkError::io("failed to open a UDP socket"))?;
    let edge = EdgeConfig {
        hub_address: resolved,
        hub_key: config.hub_key,
        secret_key: config.key.secret,
        cipher: cipher(),
    };
    let now = Instant::now();
    let mut endpoint = EdgeEndpoint::new(edge, now, random_bytes());
    let counters = socket.counters().clone();
    let mut app = Uplink::new(
        config,
        resolved,
        &store,
        status,
        shutdown,
        on_hub_time,
        counters,
    )?;
    driver::drive(&mut endpoint, &mut app, &socket)
        .await
        .map_err(LinkError::io("failed to read the UDP socket"))?;
    app.end().await
}

async fn resolve_at_start(
    address: &str,
    status: &watch::Sender<UplinkStatus>,
) -> std::net::SocketAddr {
    let mut retry = FIRST_RESOLVE_RETRY;
    loop {
        match resolve(address, None).await {
            Ok(found) => return found,
            Err(error) => {
                let why = format!("failed to resolve {address}: {error}");
                status.send_modify(|status| status.state = LinkState::Unreachable { why });
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(MAX_RESOLVE_RETRY);
    }
}
