//! Two real endpoints over a simulated line, by behaviour.

mod ceiling;
mod delivery;
mod finding;
mod goodput;
mod handshake;
mod hostile;
mod latency;
mod mtu;
mod roaming;
mod traffic;
