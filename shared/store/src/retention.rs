//! What to delete and why: a pure plan from records, limits and the time. No disk, no clock.
//!
//! Invariant 3's order: expired first; then, for want of space, what the hub has stored, oldest first; what it
//! has settled without its bytes; and only where a live source must go on, what it lacks. What readers of an
//! older live list may still ask for goes after what nobody does, and before anything that the hub lacks.

use std::time::Duration;

use model::{HoleReason, SegmentNumber, WallTime};

use crate::catalog::at_hub::AtHub;

/// How much a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionLimits {
    /// Segments older than this go, counted from their end or, if that is later, from their arrival here.
    /// None: age alone deletes nothing.
    pub max_age: Option<Duration>,
    /// Bytes of all segments together. None: only `reserve_bytes` limits.
    pub max_bytes: Option<u64>,
    /// Bytes to leave free on the file system, for the catalog, logs and neighbours.
    pub reserve_bytes: u64,
    /// Edge: what the hub has not stored goes last, and only if it must.
    pub keep_unshipped: bool,
}

/// A segment that may be deleted: the live list does not list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The caller's index of the stream.
    pub(crate) stream: usize,
    pub(crate) number: SegmentNumber,
    /// From when on it ages.
    pub(crate) counts_from: WallTime,
    pub(crate) bytes: u64,
    pub(crate) at_hub: AtHub,
    /// Readers of a list that had it may still ask for it: it goes for want of space only.
    pub(crate) graced: bool,
    /// Why the hub settled it without having it, where it did.
    pub(crate) given_up: Option<HoleReason>,
}

/// One segment to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deletion {
    pub(crate) stream: usize,
    pub(crate) number: SegmentNumber,
    pub(crate) bytes: u64,
    pub(crate) graced: bool,
    pub(crate) reason: HoleReason,
}

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Bytes of all segments, candidates or not.
    pub(crate) used: u64,
    /// Free on the file system.
    pub(crate) free: u64,
    /// Bytes that must go whatever the limits say: a write found the disk full.
    pub(crate) wanted: u64,
}

impl Fill {
    /// Bytes that must go for the limits to hold.
    pub(crate) fn excess(&self, limits: &RetentionLimits) -> u64 {
        let over = limits
            .max_bytes
            .map_or(0, |max| self.used.saturating_sub(max));
        over.max(limits.reserve_bytes.saturating_sub(self.free))
            .max(self.wanted)
    }
}

/// An end this far after its arrival is a clock that is wrong: ends are before arrivals.
const MAX_AHEAD_MS: i64 = 24 * 3_600_000;

/// An arrival before this (2024-01-01) was stamped by a clock that was not set.
const PLAUSIBLE: WallTime = WallTime(1_704_067_200_000);

/// From when on a segment ages: its end by the edge's clock or its arrival by ours, whichever is later; an edge
/// with an unset clock, or footage of long ago, does not expire on arrival, and one from the future expires.
pub(crate) fn counts_from(wall_end: WallTime, arrived: WallTime) -> WallTime {
    if arrived >= PLAUSIBLE {
        let latest = WallTime(arrived.0.saturating_add(MAX_AHEAD_MS));
        arrived.max(wall_end.min(latest))
    } else {
        arrived.max(wall_end)
    }
}

/// Plans deletions among `candidates` (in any order).
pub(crate) fn plan(
    candidates: &[Candidate],
    limits: &RetentionLimits,
    fill: Fill,
    now: WallTime,
) -> Vec<Deletion> {
    let keeps = |c: &Candidate| limits.keep_unshipped && c.at_hub == AtHub::Lacking;
    let expired = |c: &Candidate| {
        let is_older = |age: Duration| {
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            now.0.saturating_sub(c.counts_from.0) > age
        };
        !c.graced && limits.max_age.is_some_and(is_older)
    };
    let mut oldest: Vec<&Candidate> = candidates.iter().collect();
    let class = |c: &Candidate| limits.keep_unshipped.then_some(c.at_hub);
    oldest.sort_by_key(|c| (c.graced, class(c), c.counts_from, c.stream, c.number));
    let mut excess = fill.excess(limits);
    let mut plan = Vec::new();
    let mut delete = |c: &Candidate, reason, excess: &mut u64| {
        *excess = excess.saturating_sub(c.bytes);
        plan.push(Deletion {
            stream: c.stream,
            number: c.number,
            bytes: c.bytes,
            graced: c.graced,
            reason,
        });
    };
    for c in oldest.iter().filter(|c| expired(c) && !keeps(c)) {
        delete(c, c.given_up.unwrap_or(HoleReason::Expired), &mut excess);
    }
    // What the hub has before what it settled without its bytes: so they are sorted.
    for c in oldest.iter().filter(|c| !expired(c) && !keeps(c)) {
        if excess == 0 {
            break;
        }
        delete(c, c.given_up.unwrap_or(HoleReason::Expired), &mut excess);
    }
    for c in oldest.iter().filter(|c| keeps(c)) {
        if excess == 0 {
            break;
        }
        delete(c, HoleReason::Evicted, &mut excess);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime(1_000_000_000);
    const ROOMY: Fill = Fill {
        used: 1_000,
        free: u64::MAX,
        wanted: 0,
    };

    fn candidate(number: u64, age_s: i64, stored: bool) -> Candidate {
        Candidate {
            stream: 0,
            number: SegmentNumber(number),
            counts_from: WallTime(NOW.0 - age_s * 1_000),
            bytes: 100,
            at_hub: if stored {
                AtHub::Stored
            } else {
                AtHub::Lacking
            },
            graced: false,
            given_up: None,
        }
    }

    fn planned(
        limits: RetentionLimits,
        fill: Fill,
        candidates: &[Candidate],
    ) -> Vec<(u64, HoleReason)> {
        plan(candidates, &limits, fill, NOW)
            .iter()
            .map(|d| (d.number.0, d.reason))
            .collect()
    }

    #[test]
    fn age_counts_from_arrival_where_the_edges_clock_is_wrong() {
        let arrived = WallTime(1_777_622_400_000);
        for (end, from) in [
            (0, arrived.0),
            (arrived.0 - 86_400_000, arrived.0),
            (arrived.0 + 5_000, arrived.0 + 5_000),
            (4_000_000_000_000, arrived.0 + MAX_AHEAD_MS),
        ] {
            assert_eq!(counts_from(WallTime(end), arrived), WallTime(from));
        }
        // Our own clock was not set when it came, or an older program did not note it.
        assert_eq!(counts_from(arrived, WallTime(60_000)), arrived);
        assert_eq!(counts_from(WallTime(5), WallTime(0)), WallTime(5));
    }

    #[test]
    fn what_readers_may_ask_for_goes_for_want_of_space_and_before_what_the_hub_lacks() {
        let graced = |number, stored| Candidate {
            graced: true,
            ..candidate(number, 900, stored)
        };
        let all = [
            graced(1, true),
            graced(2, false),
            candidate(3, 100, true),
            candidate(4, 100, false),
        ];
        let limits = |max_bytes| RetentionLimits {
            max_age: Some(Duration::from_secs(50)),
            max_bytes,
            reserve_bytes: 0,
            keep_unshipped: true,
        };
        let numbers = |max_bytes| -> Vec<u64> {
            let planned = planned(limits(max_bytes), ROOMY, &all);
            planned.iter().map(|(number, _)| *number).collect()
        };
        assert_eq!(numbers(None), [3], "age leaves them alone");
        assert_eq!(numbers(Some(ROOMY.used - 200)), [3, 1]);
        assert_eq!(numbers(Some(ROOMY.used - 300)), [3, 1, 4]);
        assert_eq!(numbers(Some(ROOMY.used - 400)), [3, 1, 4, 2]);
    }

    #[test]
    fn nothing_goes_without_a_limit() {
        let all = [candidate(1, 1_000_000, true)];
        assert_eq!(planned(RetentionLimits::default(), ROOMY, &all), []);
    }

    #[test]
    fn age_takes_what_is_old_but_not_what_the_hub_lacks() {
        let limits = RetentionLimits {
            max_age: Some(Duration::from_secs(60)),
            keep_unshipped: true,
            ..Default::default()
        };
        let all = [
            candidate(1, 90, true),
            candidate(2, 80, false),
            candidate(3, 61, true),
            candidate(4, 60, true),
        ];
        let expired = HoleReason::Expired;
        assert_eq!(planned(limits, ROOMY, &all), [(1, expired), (3, expired)]);
        let hub = RetentionLimits {
            keep_unshipped: false,
            ..limits
        };
        assert_eq!(
            planned(hub, ROOMY, &all),
            [(1, expired), (2, expired), (3, expired)]
        );
    }

    #[test]
    fn what_the_hub_gave_up_goes_between_what_it_has_and_what_it_lacks() {
        let mut candidates = [
            candidate(1, 50, false),
            candidate(2, 40, false),
            candidate(3, 30, true),
        ];
        candidates[1].at_hub = AtHub::Settled;
        candidates[1].given_up = Some(HoleReason::Corrupt);
        let limits = RetentionLimits {
            max_bytes: Some(0),
            keep_unshipped: true,
            ..RetentionLimits::default()
        };
        let used = candidates.iter().map(|c| c.bytes).sum();
        let fill = Fill {
            used,
            free: 0,
            wanted: 0,
        };
        let order: Vec<_> = plan(&candidates, &limits, fill, WallTime(1_000_000_000))
            .iter()
            .map(|d| (d.number.0, d.reason))
            .collect();
        assert_eq!(
            order,
            [
                (3, HoleReason::Expired),
                (2, HoleReason::Corrupt),
                (1, HoleReason::Evicted)
            ]
        );
    }

    #[test]
    fn space_takes_stored_first_then_oldest() {
        let limits = RetentionLimits {
            max_bytes: Some(750),
            keep_unshipped: true,
            ..Default::default()
        };
        let all = [
            candidate(1, 50, false),
            candidate(2, 40, true),
            candidate(3, 30, false),
            candidate(4, 20, true),
        ];
        assert_eq!(
            planned(limits, ROOMY, &all),
            [
                (2, HoleReason::Expired),
                (4, HoleReason::Expired),
                (1, HoleReason::Evicted)
            ]
        );
    }

    #[test]
    fn what_the_hub_settled_without_bytes_goes_between_and_a_full_disk_wants_room() {
        let limits = RetentionLimits {
            keep_unshipped: true,
            ..Default::default()
        };
        let full = Fill {
            wanted: 350,
            ..ROOMY
        };
        let mut all = [
            candidate(1, 50, false),
            candidate(2, 40, true),
            candidate(3, 30, false),
            candidate(4, 20, true),
        ];
        all[2].at_hub = AtHub::Settled;
        all[2].given_up = Some(HoleReason::Corrupt);
        assert_eq!(planned(limits, ROOMY, &all), []);
        assert_eq!(
            planned(limits, full, &all),
            [
                (2, HoleReason::Expired),
                (4, HoleReason::Expired),
                (3, HoleReason::Corrupt),
                (1, HoleReason::Evicted)
            ]
        );
    }

    #[test]
    fn the_file_systems_reserve_counts_as_well() {
        let limits = RetentionLimits {
            reserve_bytes: 500,
            ..Default::default()
        };
        let fill = Fill {
            used: 1_000,
            free: 350,
            wanted: 0,
        };
        let all = [
            candidate(1, 3, false),
            candidate(2, 2, false),
            candidate(3, 1, false),
        ];
        assert_eq!(
            planned(limits, fill, &all),
            [(1, HoleReason::Expired), (2, HoleReason::Expired)]
        );
    }
}
