//! Randomness from a seed that the driver hands in: every key, index and jitter of an endpoint.
//!
//! A BLAKE3 generator with fast key erasure: each draw replaces the key, so that what leaks later tells
//! nothing of what was drawn before. No operating system is asked (invariant 8).

use snow::types::Random;

pub(crate) struct Rng {
    key: [u8; 32],
}

impl Rng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { key: seed }
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let mut stream = blake3::Hasher::new_keyed(&self.key)
            .update(b"penstock rng")
            .finalize_xof();
        stream.fill(&mut self.key);
        stream.fill(out);
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.fill(&mut seed);
        seed
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_be_bytes(bytes)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// Evenly from `low` to `high`.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * f64::from(self.next_u32()) / f64::from(u32::MAX)
    }
}

impl Random for Rng {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.fill(dest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_follow_from_the_seed() {
        let mut one = Rng::new([7; 32]);
        let mut two = Rng::new([7; 32]);
        let draws: Vec<u64> = (0..100).map(|_| one.next_u64()).collect();
        assert_eq!(draws, (0..100).map(|_| two.next_u64()).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = draws.iter().collect();
        assert_eq!(distinct.len(), 100);
        assert_ne!(Rng::new([8; 32]).next_u64(), draws[0]);
    }
}
