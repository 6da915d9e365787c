//! The link as a pure value: datagrams, handshake, encryption, KCP, loss repair, parity, pacing, messages,
//! replication.
//!
//! No tokio, socket, clock or random source here: time, randomness and bytes come in as arguments,
//! decisions go out as values (invariant 8). An [`EdgeEndpoint`] and a [`HubEndpoint`] speak the
//! [`Endpoint`] loop; `shared/link` drives them over UDP.

mod api;
mod arrivals;
mod bucket;
mod conversation;
mod cookie;
mod datagram;
mod edge;
mod erasure;
mod feedback;
mod frame;
mod gate;
mod hub;
mod lane;
mod lateness;
mod loss;
pub mod messages;
mod mtu;
mod noise;
mod pacing;
mod parity;
mod rate;
mod recovery;
mod replay;
pub mod replicate;
mod rng;
mod session;
#[cfg(any(test, feature = "sim"))]
#[allow(clippy::indexing_slicing, reason = "a test's world may fail loudly")]
pub mod sim;
#[cfg(test)]
mod tests;
mod windowed_min;

pub use api::{
    Bye, Channel, Cipher, CloseReason, Endpoint, EndpointCounters, Event, MAX_MESSAGE_BYTES,
    SendError, SessionId, SessionStats, Transmit,
};
pub use datagram::{BASE_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES};
pub use edge::{EdgeConfig, EdgeEndpoint};
pub use hub::{HubConfig, HubEndpoint};
pub use lane::MAX_CREDIT_BYTES;
pub use loss::DEFAULT_MAX_REDUNDANCY;
pub use noise::public_key;
pub use session::{KEYS_OUTLIVE, MAX_SESSION_BYTES, SILENCE, STRANGER_CREDIT};
