//! A loss test over the kernel's netem: hub and edge-node as processes, a line with loss, delay and worse
//! between them, live video over it. Verdict: every segment at the hub, hash for hash.

mod cell;
mod net;

pub use cell::{Cell, Row, ci, table};
pub use net::Net;
