//! The link as a pure value: datagrams, handshake, encryption, KCP, pacing, messages, replication.
//!
//! No tokio, socket, clock or random source here: time, randomness and bytes come in as arguments,
//! decisions go out as values (invariant 8). An [`EdgeEndpoint`] and a [`HubEndpoint`] speak the
//! [`Endpoint`] loop; `shared/link` drives them over UDP.

mod api;
mod edge;
mod hub;
pub mod session;

pub use api::{
    Bye, Channel, Cipher, CloseReason, Endpoint, EndpointCounters, Event, MAX_MESSAGE_BYTES,
    SendError, SessionId, SessionStats, Transmit,
};
pub use edge::{EdgeConfig, EdgeEndpoint};
pub use hub::{HubConfig, HubEndpoint};
/// X25519 public key of a secret key (any 32 random bytes are one).
pub fn public_key(_secret_key: &[u8; 32]) -> [u8; 32] {
    unimplemented!()
}
