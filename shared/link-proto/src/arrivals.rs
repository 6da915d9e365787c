//! Which of the peer's KCP packets came, and how that is told: selective acknowledgements.
//!
//! KCP acknowledges each packet once, in 24 bytes; where the answer is lost, the packet counts as lost. This
//! tells the state instead of the events (as RFC 2018 and QUIC do): every acknowledgement repeats what the
//! ones before it said, so losing some costs nothing.

use std::collections::VecDeque;

/// Bits of one acknowledgement at most, in bytes.
pub(crate) const MAX_SACK_BYTES: usize = 64;
const SACK_BITS: u32 = MAX_SACK_BYTES as u32 * 8;

/// What one conversation's receiver has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sack {
    pub(crate) conv: u32,
    /// Packets that may come from `una` on.
    pub(crate) window: u16,
    /// All before this one came.
    pub(crate) una: u32,
    /// Packet of the first bit.
    pub(crate) base: u32,
    /// The lowest bit of a byte comes first; those not told are not known.
    pub(crate) bits: Vec<u8>,
}

pub(crate) struct Arrivals {
    /// The first that has not come, and which came after it.
    expected: u32,
    after: VecDeque<bool>,
    /// The part that changed since it was told.
    news: Option<(u32, u32)>,
    owed: bool,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            expected: 0,
            after: VecDeque::new(),
            news: None,
            owed: false,
        }
    }

    /// Packet `sn` came (again, perhaps). What is beyond the window, KCP doesn't take.
    pub(crate) fn on_packet(&mut self, sn: u32, window: u16) {
        self.owed = true;
        let ahead = sn.wrapping_sub(self.expected);
        if ahead >= u32::from(window) {
            return; // before `expected`, or too far
        }
        let place = ahead as usize;
        if self.after.len() <= place {
            self.after.resize(place + 1, false);
        }
        if let Some(came) = self.after.get_mut(place) {
            *came = true;
        }
        self.news = Some(match self.news {
            Some((low, high)) => (low.min(sn), high.max(sn)),
            None => (sn, sn),
        });
        while self.after.front() == Some(&true) {
            self.after.pop_front();
            self.expected = self.expected.wrapping_add(1);
        }
    }

    pub(crate) fn has(&self, sn: u32) -> bool {
        let ahead = sn.wrapping_sub(self.expected);
        ahead.cast_signed() < 0 || self.after.get(ahead as usize) == Some(&true)
    }

    /// Something that shows losses came: worth telling, though no packet is new.
    pub(crate) fn owe(&mut self) {
        self.owed = true;
    }

    pub(crate) fn owes(&self) -> bool {
        self.owed
    }

    /// The next acknowledgement; several where news lie far apart.
    pub(crate) fn take(&mut self, conv: u32, window: u16) -> Option<Sack> {
        if !std::mem::take(&mut self.owed) {
            return None;
        }
        let mut sack = Sack {
            conv,
            window,
            una: self.expected,
            base: self.expected,
            bits: Vec::new(),
        };
        let Some((low, high)) = self.news.take() else {
            return Some(sack);
        };
        if high < self.expected {
            return Some(sack);
        }
        // As much of what is not new as there is room for: it may not have been heard.
        let room = SACK_BITS.saturating_sub(high - low.max(self.expected) + 1);
        sack.base = low
            .max(self.expected)
            .saturating_sub(room)
            .max(self.expected);
        let end = high.min(sack.base.saturating_add(SACK_BITS - 1));
        sack.bits = vec![0; (end - sack.base) as usize / 8 + 1];
        for (sn, place) in (sack.base..=end).zip(0u32..) {
            if self.has(sn)
                && let Some(byte) = sack.bits.get_mut(place as usize / 8)
            {
                *byte |= 1 << (place % 8);
            }
        }
        if end < high {
            self.news = Some((end + 1, high));
            self.owed = true;
        }
        Some(sack)
    }
}

impl Sack {
    /// The packets after `una` that came.
    pub(crate) fn packets(&self) -> impl Iterator<Item = u32> {
        self.bits.iter().zip(0u32..).flat_map(move |(byte, at)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| self.base.wrapping_add(at * 8 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arrivals: &mut Arrivals) -> (u32, Vec<u32>) {
        let sack = arrivals.take(1, 9).unwrap();
        assert_eq!((sack.conv, sack.window), (1, 9));
        (sack.una, sack.packets().collect())
    }

    #[test]
    fn tells_what_came_after_a_hole_again_and_again() {
        let mut arrivals = Arrivals::new();
        assert!(arrivals.take(1, 9).is_none());
        for sn in [0, 1, 3] {
            arrivals.on_packet(sn, 1000);
        }
        assert_eq!(told(&mut arrivals), (2, vec![3]));
        assert!(!arrivals.owes());
        arrivals.on_packet(5, 1000);
        assert_eq!(told(&mut arrivals), (2, vec![3, 5]));
        arrivals.on_packet(2, 1000);
        assert_eq!(
            told(&mut arrivals),
            (4, vec![]),
            "what is whole needs no bits"
        );
        arrivals.on_packet(1, 1000);
        assert_eq!(told(&mut arrivals), (4, vec![]), "a copy is answered too");
        assert!(arrivals.has(3) && arrivals.has(5) && !arrivals.has(4));
    }

    #[test]
    fn far_apart_news_take_several_and_what_is_beyond_the_window_is_none() {
        let mut arrivals = Arrivals::new();
        arrivals.on_packet(1, 5000);
        arrivals.on_packet(1300, 5000);
        arrivals.on_packet(5000, 5000);
        let mut all = Vec::new();
        while arrivals.owes() {
            let sack = arrivals.take(1, 9).unwrap();
            assert!(sack.bits.len() <= MAX_SACK_BYTES);
            all.extend(sack.packets());
        }
        assert_eq!(all, [1, 1300]);
    }
}
