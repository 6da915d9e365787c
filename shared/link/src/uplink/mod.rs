//! An edge's end: ships what its store holds to one hub, for as long as the program runs.

mod app;
mod disk;
mod report;
mod way;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use link_proto::DEFAULT_MAX_REDUNDANCY;
pub use link_proto::replicate::sender::{Allowed, DEFAULT_LIVE_DEADLINE, MAX_WEIGHT, Policy};
use link_proto::{EdgeConfig, EdgeEndpoint, messages::Report, replicate::sender::Progress};
use model::{DeviceName, SegmentNumber, StreamName, WallTime};
use store::{Backlog, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, KeyPair, LinkError, cipher, driver,
    history::{Reading, header_bytes},
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

/// The clock that stamps what live sources record.
pub type RecordingClock = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// What the program does with the time.
#[derive(Clone)]
pub struct Clocks {
    /// May correct the store's wall times.
    pub on_hub_time: HubTimeTaker,
    /// Told to the hub, so that how late live media is can be told by one clock.
    pub recording: RecordingClock,
}

impl Default for Clocks {
    /// Corrects nothing; the machine's clock stamps.
    fn default() -> Self {
        Self {
            on_hub_time: Arc::new(|_| {}),
            recording: Arc::new(crate::wall_now),
        }
    }
}

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
    /// When the session began, the hub's address, and how the link stands since; None without a session.
    pub session: Option<(WallTime, SocketAddr)>,
    pub report: Arc<Report>,
}

impl UplinkStatus {
    /// For a [`History`](crate::history::History): what it shows at this moment; None without a session.
    /// `backlog`: what the hub has not stored.
    pub fn reading(&self, at: WallTime, taken: Instant, backlog: Backlog) -> Option<Reading> {
        let (session, hub) = self.session?;
        Some(Reading {
            at,
            taken,
            session,
            line: Some(self.report.line),
            sent: self.report.sent,
            recovered: None,
            live_lag: None,
            backlog,
            header_bytes: header_bytes(hub.ip()),
        })
    }
}

/// Ships what the store holds until `shutdown`; then says `Bye` and returns. Never ends by itself on a lost
/// link.
pub async fn run(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    run_with_clocks(config, store, status, shutdown, Clocks::default()).await
}

/// The same with the program's clocks.
pub async fn run_with_clocks(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
    clocks: Clocks,
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
    let mut app = Uplink::new(config, resolved, &store, status, shutdown, clocks, counters)?;
    driver::drive(&mut endpoint, &mut app, &socket)
        .await
        .map_err(LinkError::io("failed to read the UDP socket"))?;
    app.end().await
}

async fn resolve_at_start(address: &str, status: &watch::Sender<UplinkStatus>) -> SocketAddr {
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
