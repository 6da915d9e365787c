//! Which datagram counters were seen: a sliding window of 2,048 behind the highest one.

const WINDOW_BITS: u64 = 2048;
const WORDS: usize = (WINDOW_BITS / 64) as usize;

/// Counters may come in any order within the window; each is new once.
pub(crate) struct ReplayWindow {
    /// One more than the highest counter seen.
    next: u64,
    bits: [u64; WORDS],
}

impl ReplayWindow {
    pub(crate) fn new() -> Self {
        Self {
            next: 0,
            bits: [0; WORDS],
        }
    }

    /// Whether this counter was neither seen nor is too old. Changes nothing: ask before the datagram is
    /// authenticated, mark after.
    pub(crate) fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        if self.next - counter > WINDOW_BITS {
            return false;
        }
        let (word, bit) = place(counter);
        self.bits.get(word).is_some_and(|w| w & bit == 0)
    }

    pub(crate) fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            if counter - self.next >= WINDOW_BITS {
                self.bits = [0; WORDS];
            } else {
                // What lies between was not seen yet: clear what the ring held there before.
                for skipped in self.next..=counter {
                    let (word, bit) = place(skipped);
                    if let Some(w) = self.bits.get_mut(word) {
                        *w &= !bit;
                    }
                }
            }
            self.next = counter + 1;
        }
        let (word, bit) = place(counter);
        if let Some(w) = self.bits.get_mut(word) {
            *w |= bit;
        }
    }

    /// Whether a counter is beyond all seen so far.
    pub(crate) fn is_newest(&self, counter: u64) -> bool {
        counter >= self.next
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter % WINDOW_BITS / 64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_counter_is_new_once_within_the_window() {
        let mut window = ReplayWindow::new();
        for counter in [0, 5, 3, 2047, 2048, 4000, 1953] {
            assert!(window.is_new(counter), "{counter}");
            window.mark(counter);
            assert!(!window.is_new(counter), "{counter}");
        }
        assert!(!window.is_new(1952), "older than the window");
        assert!(window.is_new(1954));
        assert!(!window.is_new(u64::MAX), "the nonce that is never used");
        window.mark(u64::MAX - 1);
        assert!(!window.is_new(4000));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(start in 0u64..1 << 62, steps in proptest::collection::vec(-3000i64..3000, 1..400)) {
            let mut window = ReplayWindow::new();
            let mut seen = BTreeSet::new();
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let highest = seen.last().copied();
                let expect = match highest {
                    Some(highest) if at <= highest => highest - at < WINDOW_BITS && !seen.contains(&at),
                    _ => true,
                };
                prop_assert_eq!(window.is_new(at), expect);
                if expect {
                    window.mark(at);
                    seen.insert(at);
                }
            }
        }
    }
}
