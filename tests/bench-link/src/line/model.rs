//! One direction of the line as a pure value: what becomes of a packet, and when it is at the other end.
//!
//! In this order, as on a radio link: a queue before the bottleneck, the bottleneck, then the air, where
//! packets are lost, held up or doubled. What is lost in the air has used the bottleneck.

use std::time::Duration;

use serde::Serialize;

/// Packets under way at most where no queue limits them, in bytes: a second of 500 Mbit/s.
const MAX_UNDER_WAY_BYTES: u64 = 64 << 20;

/// A packet that others overtake is held back by up to this.
const HELD_BACK: Duration = Duration::from_millis(20);

/// What one direction does to packets.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// From the bottleneck to the other end.
    pub delay: Duration,
    /// Bits a second that pass, IP headers included; none: as many as come.
    pub rate_bps: Option<u64>,
    /// Bytes that wait before the bottleneck; a packet beyond is dropped (drop-tail).
    pub queue_bytes: u64,
    pub loss: Loss,
    /// Share of packets that are held back by up to 20 ms, so that later ones overtake them.
    pub reorder: f64,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// While it lasts nothing passes: from when on, counted from the start, and how long.
    pub cut: Option<(Duration, Duration)>,
}

/// Random loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each packet for itself (Bernoulli).
    Single { share: f64 },
    /// In runs of this mean length (Gilbert's model: nothing is lost in the good state, all in the bad;
    /// Elliott's extension adds loss within each, which no row here needs).
    Bursts { share: f64, mean_len: f64 },
}

/// What one direction counted; bytes are those of IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub lost: u64,
    pub queue_full: u64,
    pub cut: u64,
    pub held_back: u64,
    pub doubled: u64,
}

/// One direction at work. The same seed and the same packets give the same fates.
pub(super) struct Direction {
    shape: Shape,
    random: fastrand::Rng,
    /// In the bad state of the burst model.
    bad: bool,
    /// When the bottleneck will have sent all it has.
    free_at: Duration,
    pub(super) counters: Counters,
}

impl Direction {
    pub(super) fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            random: fastrand::Rng::with_seed(seed),
            bad: false,
            free_at: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    pub(super) fn set_cut(&mut self, cut: bool) {
        self.shape.cut = cut.then_some((Duration::ZERO, Duration::MAX));
    }

    /// A packet comes in; the times at which it arrives: never, once, or twice. Times count from the start
    /// and never go back.
    pub(super) fn offer(&mut self, now: Duration, len: usize) -> [Option<Duration>; 2] {
        let bytes = len as u64;
        self.counters.packets_in += 1;
        self.counters.bytes_in += bytes;
        if let Some((from, length)) = self.shape.cut
            && (from..from.saturating_add(length)).contains(&now)
        {
            self.counters.cut += 1;
            return [None, None];
        }
        let backlog = self.free_at.saturating_sub(now);
        let begins = now.max(self.free_at);
        let sent = match self.shape.rate_bps {
            Some(rate) => {
                let waiting = backlog.as_secs_f64() * rate as f64 / 8.0;
                if waiting + bytes as f64 > self.shape.queue_bytes as f64 {
                    self.counters.queue_full += 1;
                    return [None, None];
                }
                begins + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64)
            }
            None => begins,
        };
        self.free_at = sent;
        if self.is_lost() {
            self.counters.lost += 1;
            return [None, None];
        }
        let mut arrives = sent + self.shape.delay;
        if self.random.f64() < self.shape.reorder {
            self.counters.held_back += 1;
            arrives += HELD_BACK.mul_f64(self.random.f64());
        }
        self.arrived(bytes);
        let again = (self.random.f64() < self.shape.duplicate).then_some(arrives);
        if again.is_some() {
            self.counters.doubled += 1;
            self.arrived(bytes);
        }
        [Some(arrives), again]
    }

    /// No more than this may be under way, whoever sends.
    pub(super) fn under_way_limit() -> u64 {
        MAX_UNDER_WAY_BYTES
    }

    fn arrived(&mut self, bytes: u64) {
        self.counters.packets_out += 1;
        self.counters.bytes_out += bytes;
    }

    fn is_lost(&mut self) -> bool {
        match self.shape.loss {
            Loss::Single { share } => self.random.f64() < share,
            Loss::Bursts { share, mean_len } => {
                // Out of the bad state with 1/length a packet, into it so often that `share` is bad.
                let leave = 1.0 / mean_len;
                let enter = share * leave / (1.0 - share);
                let turn = if self.bad { leave } else { enter };
                self.bad ^= self.random.f64() < turn;
                self.bad
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Shape = Shape {
        delay: Duration::from_millis(50),
        rate_bps: None,
        queue_bytes: 256_000,
        loss: Loss::Single { share: 0.0 },
        reorder: 0.0,
        duplicate: 0.0,
        cut: None,
    };

    /// The fates of packets of 1,000 bytes, one each millisecond.
    fn fates(shape: Shape, packets: u32) -> (Vec<[Option<Duration>; 2]>, Counters) {
        let mut line = Direction::new(shape, 7);
        let fates = (0..packets)
            .map(|at| line.offer(Duration::from_millis(at.into()), 1_000))
            .collect();
        (fates, line.counters)
    }

    #[test]
    fn a_clean_line_only_delays() {
        let (fates, counters) = fates(CLEAN, 100);
        for (at, fate) in fates.iter().enumerate() {
            assert_eq!(*fate, [Some(Duration::from_millis(at as u64 + 50)), None]);
        }
        assert_eq!((counters.bytes_in, counters.bytes_out), (100_000, 100_000));
    }

    #[test]
    fn the_queue_fills_drains_and_drops_its_tail() {
        // 4 Mbit/s carry half of the 8 that come.
        let shape = Shape {
            rate_bps: Some(4_000_000),
            queue_bytes: 10_000,
            ..CLEAN
        };
        let mut line = Direction::new(shape, 7);
        let first = line.offer(Duration::ZERO, 1_000)[0];
        assert_eq!(first, Some(Duration::from_millis(52)));
        for at in 1..1_000 {
            line.offer(Duration::from_millis(at), 1_000);
        }
        let counters = line.counters;
        assert!((480..=520).contains(&counters.queue_full), "{counters:?}");
        // Ten packets wait: 20 ms. A second later all are gone.
        let late = line.offer(Duration::from_millis(2_000), 1_000)[0];
        assert_eq!(late, Some(Duration::from_millis(2_052)));
    }

    #[test]
    fn single_losses_have_their_share_and_bursts_their_length_too() {
        let single = Loss::Single { share: 0.1 };
        let bursts = Loss::Bursts {
            share: 0.1,
            mean_len: 8.0,
        };
        for (loss, expected_len) in [(single, 1.1), (bursts, 8.0)] {
            let (fates, counters) = fates(Shape { loss, ..CLEAN }, 200_000);
            let lost: Vec<bool> = fates.iter().map(|fate| fate[0].is_none()).collect();
            let share = lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64;
            assert!((share - 0.1).abs() < 0.01, "{loss:?}: {share}");
            assert_eq!(counters.packets_in, counters.packets_out + counters.lost);
            let runs = lost.windows(2).filter(|pair| pair[1] && !pair[0]).count();
            let len = counters.lost as f64 / runs as f64;
            assert!((len / expected_len - 1.0).abs() < 0.1, "{loss:?}: {len}");
        }
    }

    #[test]
    fn what_is_held_back_is_overtaken_and_what_is_doubled_comes_twice() {
        let shape = Shape {
            reorder: 0.2,
            duplicate: 0.1,
            ..CLEAN
        };
        let (fates, counters) = fates(shape, 10_000);
        let overtaken = fates.windows(2).filter(|w| w[1][0] < w[0][0]).count();
        assert!(overtaken > 1_000, "{overtaken}");
        let doubled = fates.iter().filter(|fate| fate[1].is_some()).count() as u64;
        assert_eq!(doubled, counters.doubled);
        assert!((900..1_100).contains(&doubled), "{doubled}");
        assert_eq!(counters.packets_out, 10_000 + doubled);
    }

    #[test]
    fn nothing_passes_a_cut() {
        let cut = Some((Duration::from_millis(20), Duration::from_millis(30)));
        let (fates, counters) = fates(Shape { cut, ..CLEAN }, 100);
        for (at, fate) in fates.iter().enumerate() {
            assert_eq!(fate[0].is_none(), (20..50).contains(&at), "{at}");
        }
        assert_eq!(counters.cut, 30);
    }

    #[test]
    fn the_same_seed_gives_the_same_fates() {
        let shape = Shape {
            loss: Loss::Single { share: 0.3 },
            ..CLEAN
        };
        assert_eq!(fates(shape.clone(), 1_000).0, fates(shape, 1_000).0);
    }
}
