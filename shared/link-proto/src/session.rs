//! An authenticated link between a device and a hub: keys, channels, pacing and keep-alive in one place.

use std::time::Duration;

/// After this long without an answer the channels stand still, and are renewed when the peer is back: KCP's
/// own back-off would hold the line down for many times the outage.
pub const SILENCE: Duration = Duration::from_secs(3);

/// How long a session's keys outlive its last authentic datagram: a cut of a few minutes costs no handshake.
pub const KEYS_OUTLIVE: Duration = Duration::from_secs(180);

/// What a peer may send on each channel before it is admitted, in bytes.
pub const STRANGER_CREDIT: u64 = 64 * 1024;
