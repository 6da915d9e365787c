//! A flood of datagrams that no honest device sends, on loopback only, bounded in rate and time.
//!
//! It knows what an insider knows: the hub's public key, and datagrams that it saw pass on a [`crate::Line`].
//! Written from the wire's description, not with the product's code.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64URL_NOPAD;

/// Sockets that a flood sends from, each in a network of its own (127.0.N.1).
const SOCKETS: u8 = 32;
/// Nobody floods for longer or faster by mistake.
const MAX_TIME: Duration = Duration::from_secs(120);
const MAX_PER_SECOND: u32 = 1_000_000;
/// Datagrams are sent in bursts this far apart.
const TICK: Duration = Duration::from_millis(1);

const FIRST_MESSAGE_BYTES: usize = 1_200;
/// How one begins: its type, the protocol's version (whatever has another is malformed), cipher, reserved.
const FIRST_MESSAGE: [u8; 4] = [1, 2, 0, 0];

/// What to send where.
pub struct Flood {
    pub hub: SocketAddr,
    pub hub_key: [u8; 32],
    /// Datagrams of real sessions: their indices are used, and they are sent again.
    pub captured: Vec<Vec<u8>>,
    pub per_second: u32,
    pub time: Duration,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub datagrams: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Refused by the kernel of this machine.
    pub failed: u64,
}

/// The hub's key out of an enrolment URL, `penstock://HOST:PORT/HUBKEY#TOKEN`.
pub fn hub_key(url: &str) -> Result<[u8; 32]> {
    let key = url
        .rsplit_once('/')
        .and_then(|(_, rest)| rest.split_once('#'))
        .context("an enrolment URL has a key and a token")?
        .0;
    let key = BASE64URL_NOPAD.decode(key.as_bytes())?;
    key.try_into().ok().context("a key has 32 bytes")
}

impl Flood {
    /// Sends until the time is over. Kinds take turns: noise, strangers' indices, known indices with garbage,
    /// first messages with a wrong and with a right MAC, replays.
    pub fn run(&self) -> Result<Sent> {
        ensure!(
            self.hub.ip().is_loopback(),
            "only a hub on loopback is flooded"
        );
        ensure!(
            self.per_second <= MAX_PER_SECOND && self.time <= MAX_TIME,
            "too much"
        );
        let sockets = (1..=SOCKETS)
            .map(|n| UdpSocket::bind((Ipv4Addr::new(127, 0, n, 1), 0)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut maker = Maker::new(self);
        let mut sent = Sent::default();
        let began = Instant::now();
        loop {
            let elapsed = began.elapsed();
            if elapsed >= self.time {
                break;
            }
            let due = (elapsed.as_secs_f64() * f64::from(self.per_second)) as u64;
            // What this machine can't send in time is not made up for later.
            let burst = u64::from(self.per_second / 50).max(1);
            let mut number = sent.datagrams + sent.failed;
            let end = due.min(number + burst);
            while number < end {
                let socket = &sockets[(number % u64::from(SOCKETS)) as usize];
                let datagram = maker.next();
                match socket.send_to(datagram, self.hub) {
                    Ok(bytes) => {
                        sent.datagrams += 1;
                        sent.bytes += bytes as u64;
                    }
                    Err(_) => sent.failed += 1,
                }
                number += 1;
            }
            if end == due {
                std::thread::sleep(TICK);
            }
        }
        sent.elapsed = began.elapsed();
        Ok(sent)
    }
}

struct Maker<'a> {
    mac_key: [u8; 32],
    random: u64,
    number: u64,
    /// First messages with a right MAC: each is sent again only after all others.
    forged: Vec<Vec<u8>>,
    replays: Vec<&'a [u8]>,
    buffer: Vec<u8>,
}

impl<'a> Maker<'a> {
    fn new(flood: &'a Flood) -> Self {
        let mut maker = Self {
            mac_key: blake3::derive_key("penstock 2026 link initiation mac", &flood.hub_key),
            random: 0x9e37_79b9_7f4a_7c15,
            number: 0,
            forged: Vec::new(),
            replays: flood
                .captured
                .iter()
                .filter(|bytes| bytes.len() >= 32)
                .map(Vec::as_slice)
                .collect(),
            buffer: Vec::new(),
        };
        maker.forged = (0..2_000).map(|_| maker.forge()).collect();
        maker
    }

    fn next(&mut self) -> &[u8] {
        self.number += 1;
        let turn = self.number / 6;
        match self.number % 6 {
            0 => {
                let size = (self.next_random() % 1_400) as usize;
                self.fill(size);
                &self.buffer
            }
            1 => {
                self.fill(1_232);
                self.buffer[..4].copy_from_slice(&[4, 0, 0, 0]);
                &self.buffer
            }
            2 if !self.replays.is_empty() => {
                let head = self.replays[turn as usize % self.replays.len()];
                self.fill(1_232);
                // Its index, and a counter that was never used.
                self.buffer[..8].copy_from_slice(&head[..8]);
                self.buffer[0] = 4;
                self.buffer[8..12].fill(0);
                &self.buffer
            }
            3 => {
                self.fill(FIRST_MESSAGE_BYTES);
                self.buffer[..4].copy_from_slice(&FIRST_MESSAGE);
                &self.buffer
            }
            4 => &self.forged[turn as usize % self.forged.len()],
            _ if !self.replays.is_empty() => self.replays[turn as usize % self.replays.len()],
            _ => {
                self.fill(40);
                &self.buffer
            }
        }
    }

    /// A first message with a right MAC and nothing true behind it.
    fn forge(&mut self) -> Vec<u8> {
        self.fill(FIRST_MESSAGE_BYTES);
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes[..4].copy_from_slice(&FIRST_MESSAGE);
        let mut hasher = blake3::Hasher::new_keyed(&self.mac_key);
        hasher.update(&bytes[..8]).update(&bytes[40..]);
        bytes[8..24].copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        bytes[24..40].fill(0);
        bytes
    }

    fn fill(&mut self, size: usize) {
        self.buffer.resize(size, 0);
        let mut state = self.next_random();
        for eight in self.buffer.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bytes = state.to_be_bytes();
            eight.copy_from_slice(&bytes[..eight.len()]);
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_flooded() {
        let flood = |hub: &str, per_second| Flood {
            hub: hub.parse().unwrap(),
            hub_key: [1; 32],
            captured: Vec::new(),
            per_second,
            time: Duration::from_millis(50),
        };
        assert!(flood("192.0.2.1:9", 10).run().is_err());
        assert!(flood("127.0.0.1:9", MAX_PER_SECOND + 1).run().is_err());
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sent = flood(&sink.local_addr().unwrap().to_string(), 2_000).run();
        assert!(sent.unwrap().datagrams > 0);
        let mut bytes = [0; 2_048];
        assert!(sink.recv(&mut bytes).is_ok());
    }

    #[test]
    fn the_key_is_in_the_url() {
        let key = BASE64URL_NOPAD.encode(&[7; 32]);
        let url = format!("penstock://127.0.0.1:9710/{key}#dG9rZW4");
        assert_eq!(hub_key(&url).unwrap(), [7; 32]);
        assert!(hub_key("penstock://127.0.0.1:9710").is_err());
    }
}
