//! The link over UDP: drives `link-proto` with tokio and replicates one store into another.
//!
//! Shells only: sockets, timers, random bytes, blocking reads and writes of the store. What to send and
//! when is decided in `link-proto`. Each end is a loop (`driver`) that never waits for a disk: an edge's
//! store is read by one thread, the hub's is written by as many as have something to write.

#[cfg(feature = "bare")]
pub mod bare;
pub mod downlink;
mod driver;
mod drops;
pub mod enrol;
pub mod history;
mod keys;
mod reach;
mod resolve;
mod socket;
mod throttle;
pub mod uplink;
pub mod view;

use std::time::{Duration, SystemTime};

use link_proto::EndpointCounters;
use model::WallTime;

pub use keys::{EnrolUrl, EnrolUrlError, KeyPair};
pub use reach::Reach;

use socket::SocketCounters;

/// Without any answer for this long, what can be the matter is said.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the link can't go on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network's or the operator's fault: a wrong key is met with silence.
    #[error(
        "no answer from {address}: unreachable, UDP blocked, or its key is not the one enrolled ({reach})"
    )]
    NoAnswer { address: String, reach: Reach },
    /// The hub's word; its operator can change it.
    #[error("the hub refused: {reason}")]
    Refused { reason: String },
    /// This machine's fault.
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    /// The hub's fault: authentic, but it makes no sense.
    #[error("the hub broke the protocol: {0}")]
    Protocol(#[from] link_proto::messages::ProtocolError),
    /// The hub ended the session.
    #[error("the hub closed the session")]
    Closed,
    /// A broken invariant of this program: the thread that drives the socket has ended.
    #[error("the link's thread has ended")]
    LinkThread,
    /// A broken invariant of this program: the thread that does the disk's work has ended.
    #[error("the disk thread has ended")]
    DiskThread,
}

impl LinkError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What the link counted since the start; names are the metric names.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counters {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Malformed, forged, or for a session that is gone.
    pub datagrams_bad: u64,
    pub datagrams_replayed: u64,
    pub handshakes: u64,
    pub handshakes_refused: u64,
    /// What was not acted on, by reason.
    pub dropped: Dropped,
    /// Hub: first messages answered with a cookie, since there were many.
    pub cookies_sent: u64,
    /// Hub: sessions that had not said who they are when newer ones needed their place.
    pub strangers_dropped: u64,
    /// Edge: segments sent whole.
    pub segments_shipped: u64,
    /// Segments that the hub has stored, as this end saw it.
    pub segments_stored: u64,
    /// Edge: media bytes sent for the first time; what goes again counts once.
    pub new_bytes_sent: u64,
    /// Hub: sessions that were replaced while their box was still there: two boxes use one identity.
    pub identity_conflicts: u64,
    /// Hub: sessions ended because an authentic peer said what makes no sense.
    pub violations: u64,
    /// Datagrams that the kernel dropped, since the socket's receive buffer was full.
    pub datagrams_dropped_by_kernel: u64,
    /// Batches that the network device refused to cut into datagrams: since the first one, they go out singly.
    pub gso_refused: u64,
}

impl Counters {
    fn of(endpoint: EndpointCounters, socket: &SocketCounters) -> Self {
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
            dropped: Dropped {
                malformed: endpoint.datagrams_malformed,
                unknown_session: endpoint.datagrams_unknown,
                forged: endpoint.datagrams_forged,
                replayed: endpoint.datagrams_replayed,
                handshake_replayed: endpoint.handshakes_replayed,
                handshake_over_budget: endpoint.handshakes_over_budget,
            },
            cookies_sent: endpoint.cookies_sent,
            strangers_dropped: endpoint.strangers_dropped,
            segments_shipped: 0,
            segments_stored: 0,
            new_bytes_sent: 0,
            identity_conflicts: 0,
            violations: 0,
            datagrams_dropped_by_kernel: socket.kernel_drops(),
            gso_refused: socket.gso_refused(),
        }
    }
}

/// Datagrams that were dropped; a field's name is its label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Wrong size, type or version.
    pub malformed: u64,
    /// For a session that is not there.
    pub unknown_session: u64,
    /// A MAC or tag that doesn't fit.
    pub forged: u64,
    /// Of a session, and came before.
    pub replayed: u64,
    /// A first message that came before.
    pub handshake_replayed: u64,
    /// A first message over the second's budget.
    pub handshake_over_budget: u64,
}

impl Dropped {
    /// Each reason with its count.
    pub fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("malformed", self.malformed),
            ("unknown_session", self.unknown_session),
            ("forged", self.forged),
            ("replayed", self.replayed),
            ("handshake_replayed", self.handshake_replayed),
            ("handshake_over_budget", self.handshake_over_budget),
        ]
    }

    fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    /// What came on top of an earlier reading.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            malformed: self.malformed.saturating_sub(earlier.malformed),
            unknown_session: self.unknown_session.saturating_sub(earlier.unknown_session),
            forged: self.forged.saturating_sub(earlier.forged),
            replayed: self.replayed.saturating_sub(earlier.replayed),
            handshake_replayed: self
                .handshake_replayed
                .saturating_sub(earlier.handshake_replayed),
            handshake_over_budget: self
                .handshake_over_budget
                .saturating_sub(earlier.handshake_over_budget),
        }
    }
}

/// The wall clock; the one place in this crate where it is read.
fn wall_now() -> WallTime {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    WallTime(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// How this program names itself to its peer.
fn software() -> String {
    concat!("penstock ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Who this device is, as the first message says it.
fn hello() -> link_proto::messages::Hello {
    link_proto::messages::Hello {
        version: link_proto::messages::PROTOCOL_VERSION,
        software: software(),
        clock: wall_now(),
    }
}

/// What this processor encrypts faster: AES only where it has the instructions.
fn cipher() -> link_proto::Cipher {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    if aes {
        link_proto::Cipher::AesGcm
    } else {
        link_proto::Cipher::ChaChaPoly
    }
}
