//! Which first messages are worth public-key arithmetic: a budget a second, shared out by where they come from.
//!
//! Whoever knows the hub's public key can write first messages that look right (invariant 6), so their number
//! a second is limited whoever sends them. Those without a cookie share one budget, since anybody may write
//! any address on them; those with one come from where they say and have a second budget, of which no network
//! gets more than its share. A flood of the first kind can't touch the second. Nothing here grows: networks
//! share a fixed number of buckets by a secret hash.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use crate::{bucket::Bucket, cookie::COOKIE_LIFE, datagram::Mac, rng::Rng};

/// Handshakes a second of those who have shown that they receive at their address: some 15 % of a core.
const PROVEN_PER_SECOND: f32 = 500.0;

/// Of these for one network (IPv4 /24, IPv6 /48): a site of hundreds of cameras is back within seconds.
const PROVEN_PER_NETWORK: f32 = 50.0;

/// Cookies a second, each a small datagram: some 3 % of a core.
const COOKIES_PER_SECOND: f32 = 5_000.0;
const COOKIES_PER_NETWORK: f32 = 500.0;

/// Buckets that networks share. Two in one bucket share a budget until the hash changes.
const NETWORKS: usize = 1_024;

/// First messages remembered, so that a replay costs no arithmetic and displaces nobody's half-open handshake.
/// At the full budget that is six seconds; of honest devices, days.
const MAX_SEEN: usize = 4_096;

/// What to do with a first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Worth a handshake.
    Go,
    /// Ask its sender for a cookie.
    Cookie,
    /// Over a budget: say nothing.
    Refuse,
}

pub(crate) struct Gate {
    open_per_second: f32,
    open: Bucket,
    proven: Bucket,
    cookies: Bucket,
    networks: Vec<Network>,
    salt: (u64, u64),
    salted: Instant,
    seen: Seen,
}

#[derive(Clone, Copy)]
struct Network {
    proven: Bucket,
    cookies: Bucket,
}

impl Gate {
    /// `open_per_second`: handshakes without a cookie.
    pub(crate) fn new(now: Instant, rng: &mut Rng, open_per_second: u32) -> Self {
        let open_per_second = open_per_second as f32;
        let network = Network {
            proven: Bucket::full(now, PROVEN_PER_NETWORK),
            cookies: Bucket::full(now, COOKIES_PER_NETWORK),
        };
        Self {
            open_per_second,
            open: Bucket::full(now, open_per_second),
            proven: Bucket::full(now, PROVEN_PER_SECOND),
            cookies: Bucket::full(now, COOKIES_PER_SECOND),
            networks: vec![network; NETWORKS],
            salt: (rng.next_u64(), rng.next_u64()),
            salted: now,
            seen: Seen::default(),
        }
    }

    /// `proven`: the message carries a good cookie.
    pub(crate) fn pass(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        from: SocketAddr,
        proven: bool,
    ) -> Pass {
        if self.open.take(now, self.open_per_second) {
            return Pass::Go;
        }
        if now.saturating_duration_since(self.salted) >= COOKIE_LIFE {
            // Whoever shared a bucket with a flood is rid of it.
            self.salt = (rng.next_u64(), rng.next_u64());
            self.salted = now;
        }
        let at = self.place(from.ip());
        let Some(network) = self.networks.get_mut(at) else {
            return Pass::Refuse;
        };
        if proven {
            let goes = network.proven.take(now, PROVEN_PER_NETWORK)
                && self.proven.take(now, PROVEN_PER_SECOND);
            return if goes { Pass::Go } else { Pass::Refuse };
        }
        let goes = network.cookies.take(now, COOKIES_PER_NETWORK)
            && self.cookies.take(now, COOKIES_PER_SECOND);
        if goes { Pass::Cookie } else { Pass::Refuse }
    }

    /// Whether a first message was answered before; known by its MAC, which covers all of it.
    pub(crate) fn has_seen(&self, mac1: &Mac) -> bool {
        self.seen.known.contains(mac1)
    }

    /// Of an authentic first message.
    pub(crate) fn saw(&mut self, mac1: Mac) {
        self.seen.enter(mac1);
    }

    fn place(&self, address: IpAddr) -> usize {
        let network = match address {
            IpAddr::V4(ip) => u64::from(u32::from(ip) >> 8),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => u64::from(u32::from(ip) >> 8),
                None => (u128::from(ip) >> 80) as u64 | 1 << 63,
            },
        };
        let mixed = (network ^ self.salt.0).wrapping_mul(self.salt.1 | 1);
        (mixed >> 32) as usize % NETWORKS
    }
}

#[derive(Default)]
struct Seen {
    known: BTreeSet<Mac>,
    order: VecDeque<Mac>,
}

impl Seen {
    fn enter(&mut self, mac1: Mac) {
        if !self.known.insert(mac1) {
            return;
        }
        if self.order.len() >= MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(mac1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sim;

    fn from(a: u8, b: u8) -> SocketAddr {
        SocketAddr::from(([10, a, b, 7], 4_000))
    }

    fn gate(open: u32) -> (Gate, Rng, Instant) {
        let (now, mut rng) = (sim::start(), Rng::new([7; 32]));
        (Gate::new(now, &mut rng, open), rng, now)
    }

    #[test]
    fn without_a_cookie_all_share_one_budget_and_then_are_asked_for_one() {
        let (mut gate, mut rng, now) = gate(200);
        let mut pass = |at, n: u32| gate.pass(at, &mut rng, from((n >> 8) as u8, n as u8), false);
        let first: Vec<_> = (0..300).map(|n| pass(now, n)).collect();
        assert_eq!(first.iter().filter(|p| **p == Pass::Go).count(), 200);
        assert_eq!(first[250], Pass::Cookie);
        let later = now + Duration::from_millis(100);
        let later: Vec<_> = (0..300).map(|n| pass(later, n)).collect();
        assert_eq!(later.iter().filter(|p| **p == Pass::Go).count(), 20);
    }

    #[test]
    fn a_network_gets_its_share_only_and_another_one_still_gets_its_own() {
        let (mut gate, mut rng, now) = gate(0);
        let flood: Vec<_> = (0..10_000)
            .map(|_| gate.pass(now, &mut rng, from(1, 1), true))
            .collect();
        assert_eq!(flood.iter().filter(|p| **p == Pass::Go).count(), 50);
        assert!(!flood.contains(&Pass::Cookie));
        // Spoofed floods use up cookies, never what is for those who have one.
        for n in 0..100_000u32 {
            gate.pass(now, &mut rng, from((n >> 8) as u8, n as u8), false);
        }
        let honest = (0..200u8).filter(|n| from(2, *n) != from(1, 1));
        let passed = honest
            .filter(|n| gate.pass(now, &mut rng, from(2, *n), true) == Pass::Go)
            .count();
        assert!(passed >= 195, "{passed}: one may share the flood's bucket");
    }

    #[test]
    fn cookies_have_a_budget_too() {
        let (mut gate, mut rng, now) = gate(0);
        let sent = (0..200_000u32)
            .filter(|n| {
                let from = from((n >> 8) as u8, *n as u8);
                gate.pass(now, &mut rng, from, false) == Pass::Cookie
            })
            .count();
        assert_eq!(sent, COOKIES_PER_SECOND as usize);
    }

    #[test]
    fn who_shares_a_bucket_with_a_flood_is_rid_of_it_later() {
        let (mut gate, mut rng, now) = gate(0);
        let flooded = gate.place(from(1, 1).ip());
        let unlucky = (0..=u16::MAX)
            .map(|n| from((n >> 8) as u8, n as u8))
            .find(|other| *other != from(1, 1) && gate.place(other.ip()) == flooded)
            .unwrap();
        while gate.pass(now, &mut rng, from(1, 1), true) == Pass::Go {}
        assert_eq!(gate.pass(now, &mut rng, unlucky, true), Pass::Refuse);
        gate.pass(now + COOKIE_LIFE, &mut rng, from(9, 9), true);
        assert_ne!(gate.place(unlucky.ip()), gate.place(from(1, 1).ip()));
    }

    #[test]
    fn what_was_seen_is_known_and_bounded() {
        let (mut gate, _, _) = gate(0);
        let mac = |n: u32| {
            let mut mac = [0; 16];
            mac[..4].copy_from_slice(&n.to_be_bytes());
            mac
        };
        for n in 0..10_000 {
            gate.saw(mac(n));
            gate.saw(mac(n));
        }
        assert!(gate.has_seen(&mac(9_999)) && gate.has_seen(&mac(10_000 - 4_096)));
        assert!(!gate.has_seen(&mac(10_000 - 4_097)));
        assert_eq!(gate.seen.known.len(), MAX_SEEN);
        assert_eq!(gate.seen.order.len(), MAX_SEEN);
    }
}
