//! The edge's end of the link: one hub, one session, handshakes with back-off beside it.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;

use crate::api::*;

/// What an edge must know to reach its hub.
#[derive(Clone)]
pub struct EdgeConfig {
    pub hub_address: SocketAddr,
    /// X25519 public key of the hub, pinned at enrolment.
    pub hub_key: [u8; 32],
    /// X25519 secret key of this device.
    pub secret_key: [u8; 32],
    pub cipher: Cipher,
}

/// See [`Endpoint`] for the loop. It hand-shakes from the first `poll_transmit` on and never gives up: after
/// a loss it comes back by itself, with a jittered back-off of 1 to 30 s.
pub struct EdgeEndpoint {}

impl EdgeEndpoint {
    /// `seed`: 32 fresh random bytes; every key and jitter of this endpoint derives from them.
    pub fn new(_config: EdgeConfig, _now: Instant, _seed: [u8; 32]) -> Self {
        unimplemented!()
    }

    /// The hub's name resolved to another address; a running session goes on there.
    pub fn set_hub_address(&mut self, _now: Instant, _address: SocketAddr) {
        unimplemented!()
    }

    /// The session there is, silent or not.
    pub fn session(&self) -> Option<SessionId> {
        unimplemented!()
    }

    /// Ends for good: says `Bye` if there is a session, hand-shakes no more.
    pub fn shutdown(&mut self, _now: Instant, _reason: Bye) {
        unimplemented!()
    }

    /// After `shutdown`: nothing more to send, the driver may stop.
    pub fn is_finished(&self) -> bool {
        unimplemented!()
    }
}

impl Endpoint for EdgeEndpoint {
    fn handle_datagram(&mut self, _now: Instant, _from: SocketAddr, _datagram: &[u8]) {
        unimplemented!()
    }
    fn handle_timeout(&mut self, _now: Instant) {
        unimplemented!()
    }
    fn poll_timeout(&mut self) -> Option<Instant> {
        unimplemented!()
    }
    fn poll_transmit(
        &mut self,
        _now: Instant,
        _max: usize,
        _out: &mut Vec<u8>,
    ) -> Option<Transmit> {
        unimplemented!()
    }
    fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }
    fn send(
        &mut self,
        _now: Instant,
        _s: SessionId,
        _c: Channel,
        _m: Bytes,
    ) -> Result<(), SendError> {
        unimplemented!()
    }
    fn send_budget(&self, _session: SessionId, _channel: Channel) -> usize {
        unimplemented!()
    }
    fn consumed(&mut self, _session: SessionId, _channel: Channel, _message_bytes: usize) {
        unimplemented!()
    }
    fn admit(&mut self, _session: SessionId) {
        unimplemented!()
    }
    fn close(&mut self, _now: Instant, _session: SessionId, _reason: Bye) {
        unimplemented!()
    }
    fn stats(&self, _session: SessionId) -> Option<SessionStats> {
        unimplemented!()
    }
    fn counters(&self) -> EndpointCounters {
        unimplemented!()
    }
}
