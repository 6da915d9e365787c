//! A simulated world: one hub, some edges, and lines between them that lose, delay, reorder, duplicate and
//! choke, all from one seed. Time jumps from event to event; nothing sleeps.

mod attacker;
mod bbr;
mod network;
mod rival;
mod world;

pub use attacker::{Attacker, forged_initiation};
pub use network::{Bursts, Line, Network};
pub use rival::{Rival, RivalKind};
pub use world::{Edge, HUB_ADDRESS, Who, World};

/// The name of a session that is not there, for what only carries it.
pub fn session_id(number: u64) -> crate::SessionId {
    crate::SessionId(number)
}

/// The beginning of simulated time. (An `Instant` can only be had from the clock; what it is does not matter.)
#[expect(
    clippy::disallowed_methods,
    reason = "simulated time needs a first instant"
)]
pub fn start() -> std::time::Instant {
    std::time::Instant::now()
}
