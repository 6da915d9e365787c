//! Reading MPEG transport streams from outside: whatever arrives, in pieces of any size.
//!
//! Layers, outermost first: [`packet`] finds TS packets and their fields, [`psi`] puts sections together,
//! [`pes`] puts PES packets together, [`demux`] makes [`SourceEvent`](crate::access_unit::SourceEvent)s
//! of them. Writing is `ts_mux`. Invariants 5 and 7 hold here: every buffer has a named limit, and no
//! bytes end the process.

pub mod demux;
