//! Two real endpoints over a simulated line, by behaviour.

mod delivery;
mod goodput;
mod handshake;
mod hostile;
mod roaming;
mod traffic;
