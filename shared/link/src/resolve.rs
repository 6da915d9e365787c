//! The hub's name to an address: afresh at start; on loss the last address three times, then resolved again,
//! at most once a minute.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// A lost hub is tried this often at its last address before its name is asked for again.
const TRIES_BEFORE_RESOLVING: u32 = 3;

/// A name is asked for at most this often: a dead DNS server is not hammered by a thousand edges.
const RESOLVE_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// Decides when a name is worth asking for again.
#[derive(Debug, Default)]
pub(crate) struct ResolvePlan {
    last: Option<Instant>,
}

impl ResolvePlan {
    /// Whether to resolve now, after `unanswered` attempts in a row; counts as done if so.
    pub(crate) fn due(&mut self, now: Instant, unanswered: u32) -> bool {
        let wanted = unanswered == 0 || unanswered >= TRIES_BEFORE_RESOLVING;
        let allowed = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= RESOLVE_AT_MOST_EVERY);
        if wanted && allowed {
            self.last = Some(now);
        }
        wanted && allowed
    }
}

/// The first address of `HOST:PORT`, of the family of `like` if there is one: a socket speaks one family. The
/// error says whether the name or its server failed.
pub(crate) async fn resolve(
    address: &str,
    like: Option<SocketAddr>,
) -> std::io::Result<SocketAddr> {
    tokio::net::lookup_host(address)
        .await?
        .find(|found| like.is_none_or(|like| like.is_ipv4() == found.is_ipv4()))
        .ok_or_else(|| std::io::Error::other("the name has no address"))
}

/// Any port of this machine, in the family of the peer.
pub(crate) fn any_port_towards(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_at_start_then_after_three_losses_and_once_a_minute() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut plan = ResolvePlan::default();
        assert!(plan.due(start, 0));
        for (seconds, unanswered, due) in [
            (1, 1, false),
            (2, 2, false),
            (4, 3, false), // three losses, but within the minute
            (59, 9, false),
            (60, 10, true),
            (61, 11, false),
            (125, 12, true),
        ] {
            assert_eq!(plan.due(after(seconds), unanswered), due, "at {seconds} s");
        }
    }
}
