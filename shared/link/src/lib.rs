//! The link over UDP: drives `link-proto` with tokio and replicates one store into another.
//!
//! Shells only: sockets, timers, random bytes, blocking reads and writes of the store. What to send and
//! when is decided in `link-proto`.
#![allow(unused_variables, dead_code)] // CONTRACT STUB: replaced by the real thing
mod driver;
mod keys;
mod resolve;
mod socket;

pub use keys::{EnrolUrl, EnrolUrlError, KeyPair};

use std::{net::SocketAddr, time::Duration};
use model::*;
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("no answer from {address}: unreachable, UDP blocked, or its key is not the one enrolled")] NoAnswer { address: String },
    #[error("the hub refused: {reason}")] Refused { reason: String },
    #[error("{what}: {source}")] Io { what: String, source: std::io::Error },
    /* more as needed */
}

pub mod enrol {
    use super::*;
    pub struct Enrolled { pub name: DeviceName, pub hub_address: String, pub hub_key: [u8; 32] }
    /// Enrols; `keep` makes the identity durable and is called before the hub is told that it was.
    pub async fn enrol(url: &EnrolUrl, key: &KeyPair, keep: impl FnOnce(&Enrolled) -> std::io::Result<()>) -> Result<Enrolled, LinkError> { todo!() }
}

pub mod uplink {
    use super::*;
    #[derive(Clone)]
    pub struct UplinkConfig { pub hub_address: String, pub hub_key: [u8; 32], pub key: KeyPair, /** 10 s */ pub answer_timeout: Duration }
    #[derive(Debug, Clone, PartialEq, Default)]
    pub enum LinkState { #[default] Connecting, Connected { device: DeviceName, since: WallTime }, /** retried with back-off */ Unreachable { why: String }, /** unknown, disabled… retried slowly */ Refused { reason: String } }
    #[derive(Debug, Clone, PartialEq, Default)]
    pub struct UplinkStatus { pub state: LinkState, pub refused_streams: Vec<(StreamName, String)>, pub rtt: Option<Duration>, pub rate_bps: u64, pub loss: f32, pub counters: Counters }
    /// Ships what the store holds until `shutdown`; then says `Bye` and returns. Never ends by itself on a lost link.
    pub async fn run(config: UplinkConfig, store: Store, status: watch::Sender<UplinkStatus>, shutdown: CancellationToken) -> Result<(), LinkError> { todo!() }
}

/// What the link counted since the start; names are the metric names.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counters { pub datagrams_sent: u64, pub datagrams_received: u64, pub bytes_sent: u64, pub bytes_received: u64, pub datagrams_bad: u64, pub datagrams_replayed: u64, pub handshakes: u64, pub handshakes_refused: u64, pub segments_shipped: u64, pub segments_stored: u64 }

pub mod downlink {
    use super::*;
    pub struct DownlinkConfig { pub listen: SocketAddr, pub key: KeyPair }
    #[derive(Debug, Clone)]
    pub struct SessionStatus { pub device: DeviceName, pub peer: SocketAddr, pub since: WallTime, pub rtt: Option<Duration>, pub loss: f32, pub bytes_received: u64 }
    #[derive(Debug, Clone, Default)]
    pub struct DownlinkStatus { pub listening: Option<SocketAddr>, pub sessions: Vec<SessionStatus>, pub counters: Counters }
    /// One UDP socket, many sessions; devices and tokens come from the store. Acts on a changed device within 2 s. Returns after `shutdown`, having said `Bye`.
    pub async fn run(config: DownlinkConfig, store: Store, status: watch::Sender<DownlinkStatus>, shutdown: CancellationToken) -> Result<(), LinkError> { todo!() }
}
