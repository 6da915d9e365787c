//! The hub's end of the link: many sessions by index, half-open handshakes in a bounded table.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;

use crate::api::*;

/// What a hub's endpoint must know.
#[derive(Clone)]
pub struct HubConfig {
    /// X25519 secret key of this hub.
    pub secret_key: [u8; 32],
    /// Sessions at a time (default 4096); one costs some KiB idle and up to the receive windows (12 MiB) busy.
    pub max_sessions: usize,
    /// Handshakes a second from which on a cookie is asked for first (default 200, some 6 % of a core).
    pub cookie_threshold: u32,
}

impl HubConfig {
    pub fn new(secret_key: [u8; 32]) -> Self {
        Self {
            secret_key,
            max_sessions: 4096,
            cookie_threshold: 200,
        }
    }
}

/// See [`Endpoint`] for the loop. Any holder of a key may connect; who may stay is decided by the application,
/// which calls `admit` or `close`.
pub struct HubEndpoint {}

impl HubEndpoint {
    /// `seed`: 32 fresh random bytes; every key and index of this endpoint derives from them.
    pub fn new(_config: HubConfig, _now: Instant, _seed: [u8; 32]) -> Self {
        unimplemented!()
    }

    /// Where the peer is now.
    pub fn peer_address(&self, _session: SessionId) -> Option<SocketAddr> {
        unimplemented!()
    }
}

impl Endpoint for HubEndpoint {
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
