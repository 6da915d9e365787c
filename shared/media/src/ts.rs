//! Reading MPEG transport streams from outside: whatever arrives, in pieces of any size.
//!
//! Layers, outermost first: [`packet`] finds TS packets and their fields, [`psi`] puts tables together,
//! [`pes`] puts PES packets together, the [timeline](crate::timeline) places them, `tracks` makes access
//! units of them, and [`demux`] joins these. Writing is `ts_mux`. Invariants 5 and 7 hold here: every
//! buffer has a named limit, and no bytes end the process.

mod adts;
pub mod demux;
pub mod packet;
pub mod pes;
pub mod psi;
mod streams;
mod tracks;
