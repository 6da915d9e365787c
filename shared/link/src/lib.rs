//! The link over UDP: drives `link-proto` with tokio and replicates one store into another.
//!
//! Shells only: sockets, timers, random bytes, blocking reads and writes of the store. What to send and when
//! is decided in `link-proto`.

pub mod downlink;
mod driver;
pub mod enrol;
mod intake;
mod keys;
mod resolve;
mod shelf;
mod socket;
pub mod uplink;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use link_proto::{
    EndpointCounters,
    messages::{Hello, PROTOCOL_VERSION},
};
use model::WallTime;

pub use keys::{EnrolUrl, EnrolUrlError, KeyPair};

/// Without any answer for this long, what can be the matter is said.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the link can't mend by itself.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network's fault, or the operator's: see its text.
    #[error(
        "no answer from {address}: unreachable, UDP blocked, or its key is not the one enrolled"
    )]
    NoAnswer { address: String },
    /// The hub's operator decides.
    #[error("the hub refused: {reason}")]
    Refused { reason: String },
    /// This machine's network or disk.
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
}

impl LinkError {
    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}

/// What the link counted since the start; names are the metrics' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Malformed, forged, or for no session.
    pub datagrams_bad: u64,
    pub datagrams_replayed: u64,
    pub handshakes: u64,
    pub handshakes_refused: u64,
    pub segments_shipped: u64,
    pub segments_stored: u64,
}

impl Counters {
    fn of(endpoint: EndpointCounters) -> Self {
        Self {
            datagrams_sent: endpoint.datagrams_sent,
            datagrams_received: endpoint.datagrams_received,
            bytes_sent: endpoint.bytes_sent,
            bytes_received: endpoint.bytes_received,
            datagrams_bad: endpoint.datagrams_malformed
                + endpoint.datagrams_unknown
                + endpoint.datagrams_forged,
            datagrams_replayed: endpoint.datagrams_replayed,
            handshakes: endpoint.handshakes,
            handshakes_refused: endpoint.handshakes_refused,
            segments_shipped: 0,
            segments_stored: 0,
        }
    }
}

/// The time by this machine's clock.
fn wall_now() -> WallTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How this program greets a hub.
fn hello() -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        software: concat!("penstock ", env!("CARGO_PKG_VERSION")).to_owned(),
        clock: wall_now(),
    }
}
