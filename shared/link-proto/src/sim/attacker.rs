//! Somebody on the line who sees every datagram, drops, changes, repeats and invents them.

use std::{collections::VecDeque, net::SocketAddr};

use super::network::Delivery;
use crate::{
    Cipher,
    cookie::HubMacs,
    datagram::{INITIATION_BYTES, MACS_END, emit_initiation, initiation_header},
};

/// Datagrams that an attacker remembers.
const MAX_KEPT: usize = 1_024;

/// Chances of each wrong for each datagram that passes, 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attacker {
    pub drop: f64,
    /// The datagram arrives changed, and not as it was.
    pub change: f64,
    /// An old one comes again, from its sender, from elsewhere, or back to where it came from.
    pub replay: f64,
    /// One comes that was made of pieces of others or of nothing.
    pub invent: f64,
}

/// An attacker at work.
pub(super) struct Work {
    chances: Attacker,
    hub_key: [u8; 32],
    random: u64,
    kept: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub(super) wrongs: u64,
}

impl Work {
    pub(super) fn new(chances: Attacker, hub_key: [u8; 32], seed: u64) -> Self {
        Self {
            chances,
            hub_key,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            kept: VecDeque::new(),
            wrongs: 0,
        }
    }

    /// What goes on instead of a datagram.
    pub(super) fn meet(&mut self, mut delivery: Delivery) -> Vec<Delivery> {
        if self.kept.len() >= MAX_KEPT {
            let at = self.below(MAX_KEPT);
            self.kept.swap_remove_back(at);
        }
        let (from, to) = (delivery.from, delivery.to);
        self.kept.push_back((from, to, delivery.bytes.clone()));
        let mut out = Vec::new();
        if self.chance(self.chances.replay) {
            let (from, to, bytes) = self.any();
            let (from, to) = match self.below(3) {
                0 => (from, to),
                1 => (self.elsewhere(), to),
                _ => (to, from),
            };
            out.push(Delivery { from, to, bytes });
        }
        if self.chance(self.chances.invent) {
            let bytes = self.invent();
            let from = if self.below(2) == 0 {
                from
            } else {
                self.elsewhere()
            };
            out.push(Delivery { from, to, bytes });
        }
        if self.chance(self.chances.change) {
            self.change(&mut delivery.bytes);
            out.push(delivery);
        } else if !self.chance(self.chances.drop) {
            out.push(delivery);
        }
        out
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        match self.below(4) {
            0 => bytes.truncate(self.below(bytes.len().max(1))),
            1 => bytes.push(self.next() as u8),
            // Index and counter.
            2 => {
                let at = self.below(16.min(bytes.len().max(1)));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            _ => {
                let at = self.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }

    fn invent(&mut self) -> Vec<u8> {
        match self.below(4) {
            0 => {
                let number = self.next();
                forged_initiation(&self.hub_key, number)
            }
            1 => {
                // The head of one, the rest of another.
                let (_, _, mut bytes) = self.any();
                let (_, _, rest) = self.any();
                let at = [4, 8, 16, 40][(self.random % 4) as usize].min(bytes.len());
                bytes.truncate(at);
                bytes.extend_from_slice(rest.get(at..).unwrap_or_default());
                bytes
            }
            2 => {
                let (_, _, mut bytes) = self.any();
                bytes[0] = self.below(6) as u8;
                bytes
            }
            _ => (0..self.below(1_300)).map(|_| self.next() as u8).collect(),
        }
    }

    /// Any datagram it remembers.
    fn any(&mut self) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let at = self.below(self.kept.len());
        self.kept[at].clone()
    }

    fn elsewhere(&mut self) -> SocketAddr {
        let number = self.next();
        SocketAddr::from(([10, number as u8, (number >> 8) as u8, 9], 6_666))
    }

    fn chance(&mut self, chance: f64) -> bool {
        let met = ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < chance;
        self.wrongs += u64::from(met);
        met
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 16) as usize) % limit.max(1)
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A first message with a right MAC and nothing true behind it, as anybody can write who knows the hub's key.
/// Each number gives another one.
pub fn forged_initiation(hub_key: &[u8; 32], number: u64) -> Vec<u8> {
    let header = initiation_header(Cipher::AesGcm, number as u32);
    let mut noise = vec![9; INITIATION_BYTES - MACS_END];
    noise[..8].copy_from_slice(&number.to_be_bytes());
    let mac1 = HubMacs::new(hub_key).mac1(&header, &noise);
    emit_initiation(&header, &mac1, &[0; 16], &noise)
}
