//! How large a datagram the path carries: found by probing, from a size that any path carries (RFC 8899).
//!
//! A probe is a datagram of its own that carries nothing else, so that its loss costs nothing and is not taken
//! for the line's (`Session` leaves it out of account). The largest size is tried first, since most paths have it;
//! then the sizes between are halved. Where datagrams of a size that was found vanish later, while
//! smaller ones come through, the size is asked for again, and given up without an answer (RFC 8899, section 4.3).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::datagram::{BASE_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES};

/// UDP payloads worth trying, of the paths that are common: IPv6's least (1,280), tunnels (WireGuard, GRE, IPsec
/// of several kinds), PPPoE, Ethernet under IPv6 and IPv4.
const SIZES: [usize; 9] = [
    1232,
    1272,
    1332,
    1372,
    1392,
    1412,
    1432,
    1452,
    MAX_DATAGRAM_BYTES,
];

/// A size is tried anew after so long: the path may have got better (RFC 8899's `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);

/// How often a size is tried before it counts as too large, on a clean line and at most.
const MIN_TRIES: u32 = 3;
const MAX_TRIES: u32 = 10;

/// A size in use is tried so often more: giving it up costs all that is under way.
const CHECK_TRIES: u32 = 2;

/// A size is given up wrongly this often at most, where losses alone take the probes or their answers.
const WRONG_VERDICTS: f64 = 0.01;

/// Large packets in a row that were lost or not answered before their size is doubted, on a clean line and at most.
const MIN_SUSPICIOUS: usize = 8;
const MAX_SUSPICIOUS: usize = 32;

/// So rarely do losses alone make such a row.
const CHANCE_ROW: f64 = 1e-6;

/// An answer is waited for at least so long beyond the round trip.
const PATIENCE: Duration = Duration::from_millis(30);

/// Where not even a later datagram is answered, nothing is learnt; asked again after so long.
const UNANSWERED_GAP: Duration = Duration::from_millis(300);

/// Before the round trip is known.
const UNKNOWN_RTT: Duration = Duration::from_millis(400);

/// Probes remembered until feedback tells whether they count as lost.
const MAX_UNJUDGED: usize = 16;

pub(crate) struct PathMtu {
    /// The largest size that is known to pass.
    current: usize,
    /// The least that is known not to.
    too_large: usize,
    aim: Aim,
    probe: Option<Probe>,
    /// Datagram counters of probes that have left and are not known to have come.
    unjudged: VecDeque<u64>,
    /// Probes that feedback shows missing: not the line's loss.
    excused: u64,
    /// The highest datagram counter that the peer has seen.
    seen: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Aim {
    /// Nothing large was sent yet.
    Unused,
    Search {
        size: usize,
        tries: u32,
        at: Instant,
    },
    /// The size in use is doubted.
    Check { tries: u32, at: Instant },
    /// Found, until it is tried anew.
    Found { until: Instant },
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Probe {
    size: usize,
    counter: u64,
    left: Instant,
}

/// What became of the size in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Unchanged,
    /// What was sent with the size until now does not come.
    Fallen,
    /// Datagrams of the size in use do pass: what was lost was lost otherwise.
    Confirmed,
    Grown,
}

impl PathMtu {
    pub(crate) fn new() -> Self {
        Self {
            current: BASE_DATAGRAM_BYTES,
            too_large: MAX_DATAGRAM_BYTES + 1,
            aim: Aim::Unused,
            probe: None,
            unjudged: VecDeque::new(),
            excused: 0,
            seen: 0,
        }
    }

    /// The largest datagram that may be sent now.
    pub(crate) fn datagram_bytes(&self) -> usize {
        self.current
    }

    /// Large messages are sent: a larger size is worth looking for.
    pub(crate) fn wanted(&mut self, now: Instant) {
        if self.aim == Aim::Unused {
            self.search(now);
        }
    }

    /// The path may be another: begins again from the size that any carries.
    pub(crate) fn restart(&mut self) {
        self.current = BASE_DATAGRAM_BYTES;
        self.too_large = MAX_DATAGRAM_BYTES + 1;
        self.aim = Aim::Unused;
        self.probe = None;
    }

    /// So many large packets are lost in a row. `loss`: share of datagrams that the line loses, 0 to 1.
    pub(crate) fn on_row_of_losses(&mut self, now: Instant, packets: usize, loss: f64) {
        let row = (CHANCE_ROW.ln() / loss.clamp(1e-9, 0.9).ln()).ceil() as usize;
        if packets >= row.clamp(MIN_SUSPICIOUS, MAX_SUSPICIOUS) {
            self.doubt(now);
        }
    }

    pub(crate) fn is_doubted(&self) -> bool {
        matches!(self.aim, Aim::Check { .. })
    }

    fn doubt(&mut self, now: Instant) {
        if self.current > BASE_DATAGRAM_BYTES && !matches!(self.aim, Aim::Check { .. }) {
            self.aim = Aim::Check { tries: 0, at: now };
            self.probe = None;
        }
    }

    /// When a probe is to leave, and of what size.
    pub(crate) fn next_probe(&self) -> Option<(Instant, usize)> {
        match self.aim {
            _ if self.probe.is_some() => None,
            Aim::Search { size, at, .. } => Some((at, size)),
            Aim::Check { at, .. } => Some((at, self.current)),
            Aim::Unused | Aim::Found { .. } => None,
        }
    }

    /// The probe asked for has left; a datagram that any path carries follows it.
    pub(crate) fn on_probe_sent(&mut self, now: Instant, counter: u64, size: usize) {
        self.probe = Some(Probe {
            size,
            counter,
            left: now,
        });
        if self.unjudged.len() == MAX_UNJUDGED {
            self.unjudged.pop_front();
        }
        self.unjudged.push_back(counter);
    }

    /// The peer has got a probe of such a size.
    pub(crate) fn on_reached(&mut self, now: Instant, size: usize) -> Verdict {
        let Some(probe) = self.probe.filter(|probe| probe.size == size) else {
            return Verdict::Unchanged; // late, or never asked
        };
        self.probe = None;
        self.unjudged.retain(|counter| *counter != probe.counter);
        match self.aim {
            Aim::Check { .. } => {
                self.aim = Aim::Found {
                    until: now + RAISE_AFTER,
                };
                Verdict::Confirmed
            }
            Aim::Search { .. } => {
                self.current = self.current.max(size);
                self.search(now);
                Verdict::Grown
            }
            Aim::Unused | Aim::Found { .. } => Verdict::Unchanged,
        }
    }

    /// The peer has seen this datagram. Gives how many of the missing before it, since the session began, were probes.
    pub(crate) fn on_seen(&mut self, highest: u64) -> u64 {
        self.seen = self.seen.max(highest);
        while self.unjudged.front().is_some_and(|first| *first <= highest) {
            self.unjudged.pop_front();
            self.excused += 1;
        }
        self.excused
    }

    /// When a probe's answer, or a new search, is due.
    pub(crate) fn due(&self, rtt: Option<Duration>) -> Option<Instant> {
        if let Some(probe) = self.probe {
            return Some(probe.left + self.patience(&probe, rtt));
        }
        match self.aim {
            Aim::Found { until } => Some(until),
            Aim::Unused | Aim::Search { .. } | Aim::Check { .. } => None,
        }
    }

    fn patience(&self, probe: &Probe, rtt: Option<Duration>) -> Duration {
        let answer = rtt.unwrap_or(UNKNOWN_RTT).mul_f64(1.25) + PATIENCE;
        if self.seen > probe.counter {
            answer
        } else {
            answer.max(UNANSWERED_GAP)
        }
    }

    /// `due` is over. `loss`: share of datagrams that the line loses, 0 to 1.
    pub(crate) fn on_time(&mut self, now: Instant, rtt: Option<Duration>, loss: f64) -> Verdict {
        if self.due(rtt).is_none_or(|due| now < due) {
            return Verdict::Unchanged;
        }
        let Some(probe) = self.probe.take() else {
            if let Aim::Found { .. } = self.aim {
                self.too_large = MAX_DATAGRAM_BYTES + 1;
                self.search(now);
            }
            return Verdict::Unchanged;
        };
        // Where nothing later came either, nothing is learnt of the size.
        let failed = u32::from(self.seen > probe.counter);
        match self.aim {
            Aim::Search { size, tries, .. } if tries + failed >= max_tries(loss) => {
                self.too_large = size;
                self.search(now);
            }
            Aim::Search { size, tries, .. } => {
                let tries = tries + failed;
                self.aim = Aim::Search {
                    size,
                    tries,
                    at: now,
                };
            }
            Aim::Check { tries, .. } if tries + failed >= max_tries(loss) + CHECK_TRIES => {
                self.too_large = self.current;
                self.current = BASE_DATAGRAM_BYTES;
                self.search(now);
                return Verdict::Fallen;
            }
            Aim::Check { tries, .. } => {
                let tries = tries + failed;
                self.aim = Aim::Check { tries, at: now };
            }
            Aim::Unused | Aim::Found { .. } => {}
        }
        Verdict::Unchanged
    }

    /// Goes on with the next size worth trying.
    fn search(&mut self, now: Instant) {
        let left = SIZES
            .iter()
            .copied()
            .filter(|size| *size > self.current && *size < self.too_large);
        let left: Vec<usize> = left.collect();
        let next = if self.too_large > MAX_DATAGRAM_BYTES {
            left.last()
        } else {
            left.get(left.len() / 2)
        };
        self.aim = match next {
            Some(size) => Aim::Search {
                size: *size,
                tries: 0,
                at: now,
            },
            None => Aim::Found {
                until: now + RAISE_AFTER,
            },
        };
    }
}

fn max_tries(loss: f64) -> u32 {
    // Probe and answer must both come.
    let fails = 1.0 - (1.0 - loss).powi(2);
    let tries = WRONG_VERDICTS.ln() / fails.clamp(1e-9, 0.99).ln();
    (tries.ceil() as u32).clamp(MIN_TRIES, MAX_TRIES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    const RTT: Option<Duration> = Some(Duration::from_millis(100));

    /// Goes on until nothing is tried, on a path that carries `path` bytes; gives what was tried.
    fn search(mtu: &mut PathMtu, now: &mut Instant, counter: &mut u64, path: usize) -> Vec<usize> {
        let mut tried = Vec::new();
        loop {
            if let Some((at, size)) = mtu.next_probe() {
                assert!(at <= *now);
                tried.push(size);
                *counter += 2;
                mtu.on_probe_sent(*now, *counter - 1, size);
                *now += Duration::from_millis(100);
                if size <= path {
                    assert_ne!(mtu.on_reached(*now, size), Verdict::Unchanged);
                }
                mtu.on_seen(*counter);
            } else if matches!(mtu.aim, Aim::Found { .. } | Aim::Unused) {
                return tried;
            } else {
                *now = (*now).max(mtu.due(RTT).unwrap());
                if mtu.on_time(*now, RTT, 0.0) == Verdict::Fallen {
                    return tried;
                }
            }
        }
    }

    #[test]
    fn finds_what_the_path_carries_and_the_largest_at_once() {
        for (path, found, probes) in [
            (9000, 1472, 1),
            (1472, 1472, 1),
            (1471, 1452, 6),
            (1420, 1412, 8),
            (1240, 1232, 13),
            (1231, 1200, 15),
        ] {
            let (mut mtu, mut now, mut counter) = (PathMtu::new(), sim::start(), 0);
            assert_eq!(mtu.next_probe(), None);
            mtu.wanted(now);
            let tried = search(&mut mtu, &mut now, &mut counter, path);
            assert_eq!(mtu.datagram_bytes(), found, "{path}: {tried:?}");
            assert_eq!(tried.len(), probes, "{path}: {tried:?}");
            let lost = tried.iter().filter(|size| **size > path).count();
            assert_eq!(mtu.on_seen(counter), lost as u64, "excused");
            assert_eq!(mtu.due(RTT), Some(now + RAISE_AFTER));
        }
    }

    #[test]
    fn a_size_that_no_longer_passes_is_given_up_and_found_again() {
        let (mut mtu, mut now, mut counter) = (PathMtu::new(), sim::start(), 0);
        mtu.wanted(now);
        search(&mut mtu, &mut now, &mut counter, 1472);
        mtu.on_row_of_losses(now, 7, 0.0);
        assert_eq!(mtu.next_probe(), None);
        mtu.on_row_of_losses(now, 8, 0.4);
        assert_eq!(mtu.next_probe(), None, "losses alone make that");
        mtu.on_row_of_losses(now, 8, 0.0);
        assert_eq!(mtu.next_probe(), Some((now, 1472)));
        mtu.on_probe_sent(now, 50, 1472);
        assert_eq!(mtu.on_reached(now, 1472), Verdict::Confirmed);
        assert_eq!(mtu.datagram_bytes(), 1472);
        counter = 50;
        mtu.on_row_of_losses(now, 7, 0.0);
        assert_eq!(mtu.next_probe(), None);
        mtu.on_row_of_losses(now, 8, 0.4);
        assert_eq!(mtu.next_probe(), None, "losses alone make that");
        mtu.on_row_of_losses(now, 8, 0.0);
        let tried = search(&mut mtu, &mut now, &mut counter, 1300);
        assert_eq!(tried, [1472; 5]);
        assert_eq!(mtu.datagram_bytes(), BASE_DATAGRAM_BYTES);
        search(&mut mtu, &mut now, &mut counter, 1300);
        assert_eq!(mtu.datagram_bytes(), 1272);
        now += RAISE_AFTER;
        assert_eq!(mtu.on_time(now, RTT, 0.0), Verdict::Unchanged);
        search(&mut mtu, &mut now, &mut counter, 1472);
        assert_eq!(mtu.datagram_bytes(), 1472);
    }

    #[test]
    fn silence_is_no_verdict() {
        let (mut mtu, start) = (PathMtu::new(), sim::start());
        let mut now = start;
        mtu.wanted(now);
        for counter in 0..20 {
            let (at, size) = mtu.next_probe().unwrap();
            assert_eq!((at, size), (now, MAX_DATAGRAM_BYTES));
            mtu.on_probe_sent(now, counter, size);
            assert_eq!(mtu.next_probe(), None);
            now = mtu.due(RTT).unwrap();
            assert_eq!(mtu.on_time(now, RTT, 0.0), Verdict::Unchanged);
        }
        assert_eq!(now, start + 20 * UNANSWERED_GAP);
        assert!(mtu.unjudged.len() <= MAX_UNJUDGED);
        assert_eq!(
            mtu.on_reached(now, 1452),
            Verdict::Unchanged,
            "never asked for"
        );
    }

    #[test]
    fn a_lossy_line_is_asked_more_often() {
        assert_eq!(max_tries(0.0), 3);
        assert_eq!(max_tries(0.2), 5);
        assert_eq!(max_tries(0.4), MAX_TRIES);
        assert_eq!(max_tries(1.0), MAX_TRIES);
    }
}
