//! Two real endpoints over a simulated line, by behaviour.

mod delivery;
mod goodput;
mod traffic;
