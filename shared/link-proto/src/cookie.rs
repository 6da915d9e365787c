//! What stands in front of a handshake: a MAC that only those can make who know the hub's public key, and
//! under load a cookie that only the holder of the address has seen.
//!
//! Both are checked before any public-key arithmetic and without keeping anything (invariant 6).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    datagram::{HEADER_END, Initiation, Mac},
    rng::Rng,
};

/// How long a cookie secret is used; the one before it is still honoured as long again.
pub(crate) const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Keys derived from the hub's public key: no secret, but unknown to those who scan for open ports.
pub(crate) struct HubMacs {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl HubMacs {
    pub(crate) fn new(hub_key: &[u8; 32]) -> Self {
        Self {
            mac1: blake3::derive_key("penstock 2026 link initiation mac", hub_key),
            cookie: blake3::derive_key("penstock 2026 link cookie reply", hub_key),
        }
    }

    pub(crate) fn mac1(&self, header: &[u8; HEADER_END], noise: &[u8]) -> Mac {
        mac(&self.mac1, &[header, noise])
    }

    /// In constant time.
    pub(crate) fn fits(&self, initiation: &Initiation<'_>) -> bool {
        equal(
            &self.mac1(&initiation.header, initiation.noise),
            &initiation.mac1,
        )
    }

    /// The cookie as it travels: only who sent (or saw) the initiation can read or forge it.
    pub(crate) fn wrap(&self, mac1: &Mac, cookie: &Mac) -> (Mac, Mac) {
        let masked = xor(cookie, &mac(&self.cookie, &[b"mask", mac1]));
        (masked, mac(&self.cookie, &[b"tag", mac1, &masked]))
    }

    pub(crate) fn unwrap(&self, mac1: &Mac, masked: &Mac, tag: &Mac) -> Option<Mac> {
        equal(&mac(&self.cookie, &[b"tag", mac1, masked]), tag)
            .then(|| xor(masked, &mac(&self.cookie, &[b"mask", mac1])))
    }
}

/// Proves that the sender of an initiation receives at the address it sends from.
pub(crate) fn mac2(cookie: &Mac, mac1: &Mac) -> Mac {
    let key = blake3::derive_key("penstock 2026 link cookie", cookie);
    mac(&key, &[mac1])
}

/// The hub's cookies: made from the address and a secret that turns every two minutes, kept nowhere.
pub(crate) struct CookieJar {
    current: [u8; 32],
    previous: [u8; 32],
    turned: Instant,
}

impl CookieJar {
    pub(crate) fn new(now: Instant, rng: &mut Rng) -> Self {
        Self {
            current: rng.seed(),
            previous: rng.seed(),
            turned: now,
        }
    }

    pub(crate) fn cookie(&mut self, now: Instant, rng: &mut Rng, from: SocketAddr) -> Mac {
        self.turn(now, rng);
        bake(&self.current, from)
    }

    pub(crate) fn accepts(
        &mut self,
        now: Instant,
        rng: &mut Rng,
        from: SocketAddr,
        initiation: &Initiation<'_>,
    ) -> bool {
        self.turn(now, rng);
        [&self.current, &self.previous].into_iter().any(|secret| {
            equal(
                &mac2(&bake(secret, from), &initiation.mac1),
                &initiation.mac2,
            )
        })
    }

    fn turn(&mut self, now: Instant, rng: &mut Rng) {
        let age = now.saturating_duration_since(self.turned);
        if age < COOKIE_LIFE {
            return;
        }
        self.previous = if age < 2 * COOKIE_LIFE {
            self.current
        } else {
            rng.seed()
        };
        self.current = rng.seed();
        self.turned = now;
    }
}

fn bake(secret: &[u8; 32], from: SocketAddr) -> Mac {
    let port = from.port().to_be_bytes();
    match from.ip() {
        IpAddr::V4(ip) => mac(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(secret, &[&ip.octets(), &port]),
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Mac {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(part);
    }
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn xor(a: &Mac, b: &Mac) -> Mac {
    std::array::from_fn(|at| match (a.get(at), b.get(at)) {
        (Some(a), Some(b)) => a ^ b,
        _ => 0,
    })
}

fn equal(a: &Mac, b: &Mac) -> bool {
    a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::Cipher, datagram::initiation_header, sim};

    fn initiation(macs: &HubMacs, cookie: Option<&Mac>) -> Initiation<'static> {
        let header = initiation_header(Cipher::AesGcm, 3);
        let noise = &[5; 1160];
        let mac1 = macs.mac1(&header, noise);
        let mac2 = cookie.map_or([0; 16], |cookie| mac2(cookie, &mac1));
        Initiation {
            cipher: Cipher::AesGcm,
            sender: 3,
            header,
            mac1,
            mac2,
            noise,
        }
    }

    #[test]
    fn only_who_knows_the_hub_key_fits() {
        let macs = HubMacs::new(&[1; 32]);
        assert!(macs.fits(&initiation(&macs, None)));
        assert!(!macs.fits(&initiation(&HubMacs::new(&[2; 32]), None)));
        let mut changed = initiation(&macs, None);
        changed.noise = &[6; 1160];
        assert!(!macs.fits(&changed));
    }

    #[test]
    fn a_cookie_is_for_one_address_and_lasts_two_turns() {
        let macs = HubMacs::new(&[1; 32]);
        let mut rng = Rng::new([0; 32]);
        let start = sim::start();
        let here: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let mut jar = CookieJar::new(start, &mut rng);
        let cookie = jar.cookie(start, &mut rng, here);

        let plain = initiation(&macs, None);
        assert!(!jar.accepts(start, &mut rng, here, &plain));
        let with = initiation(&macs, Some(&cookie));
        for (seconds, fits) in [
            (0, true),
            (119, true),
            (121, true),
            (239, true),
            (250, false),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(jar.accepts(now, &mut rng, here, &with), fits, "{seconds} s");
        }
        let now = start + Duration::from_secs(260);
        let cookie = jar.cookie(now, &mut rng, here);
        let with = initiation(&macs, Some(&cookie));
        assert!(jar.accepts(now, &mut rng, here, &with));
        for elsewhere in ["192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000"] {
            assert!(
                !jar.accepts(now, &mut rng, elsewhere.parse().unwrap(), &with),
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn a_cookie_reply_is_read_by_who_asked_only() {
        let macs = HubMacs::new(&[1; 32]);
        let (masked, tag) = macs.wrap(&[7; 16], &[9; 16]);
        assert_ne!(masked, [9; 16]);
        assert_eq!(macs.unwrap(&[7; 16], &masked, &tag), Some([9; 16]));
        assert_eq!(macs.unwrap(&[8; 16], &masked, &tag), None);
        assert_eq!(macs.unwrap(&[7; 16], &[0; 16], &tag), None);
        assert_eq!(HubMacs::new(&[2; 32]).unwrap(&[7; 16], &masked, &tag), None);
    }
}
