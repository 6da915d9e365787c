//! What goes ahead of its turn: segments of events, and what somebody at the hub waits for.
//!
//! Both are ranges of numbers, of any size: what of them is to be shipped is for the store to say, a few segments at
//! a time. Marks of events stay over sessions, asks do not.

use super::*;
use crate::replicate::{
    class::Class,
    sender::{AHEAD_LIMIT, MAX_AHEAD_RANGES},
};

/// Most stretches of a stream that are marked as events.
pub const MAX_EVENTS: usize = 64;
/// Most ranges of a stream that the hub asks for at a time; of more the oldest ask is forgotten.
pub const MAX_WANTS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// At most [`MAX_EVENTS`] ranges.
    pub(super) events: RangeSet,
    /// In the order of the asks; at most [`MAX_WANTS`].
    wants: VecDeque<RangeInclusive<SegmentNumber>>,
    /// What the last look found of both beyond the oldest and the newest; at most [`AHEAD_LIMIT`].
    pub(super) found: Vec<SegmentInfo>,
    /// Something was marked or asked for that no look has searched for.
    is_new: bool,
    /// There was more than a look lists.
    is_cut_off: bool,
    /// The marks and asks that the look under way searches for.
    searched: Searched,
}

#[derive(Debug, Default)]
struct Searched {
    events: Vec<RangeInclusive<SegmentNumber>>,
    /// The first so many.
    wants: usize,
}

impl Ahead {
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.events.range_count() + self.wants.len() + self.found.len()
    }

    /// The store must be searched, whatever else is in hand; `stale`: it has changed.
    pub(super) fn wants_look(&self, stale: bool) -> bool {
        self.is_new || (stale && self.is_cut_off && self.found.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.wants.is_empty()
    }

    fn want(&mut self, range: RangeInclusive<SegmentNumber>) {
        let asked = |known: &RangeInclusive<SegmentNumber>| {
            known.contains(range.start()) && known.contains(range.end())
        };
        if self.wants.iter().any(asked) {
            return;
        }
        if self.wants.len() >= MAX_WANTS {
            self.wants.pop_front();
            self.searched.wants = self.searched.wants.saturating_sub(1);
        }
        self.wants.push_back(range);
        self.is_new = true;
    }

    fn mark(&mut self, range: RangeInclusive<SegmentNumber>) {
        self.events.insert_range(range);
        while self.events.range_count() > MAX_EVENTS {
            let Some(oldest) = self.events.iter().next() else {
                break;
            };
            self.events.remove_range(oldest);
        }
        self.is_new = true;
    }

    /// A look is on its way that lists all there is anyway, or searches for these.
    pub(super) fn search(&mut self, all_listed: bool) -> Vec<RangeInclusive<SegmentNumber>> {
        self.is_new = false;
        self.searched = Searched::default();
        if all_listed {
            return Vec::new();
        }
        let room = MAX_AHEAD_RANGES / 2;
        // The newest events: that is what is being looked for.
        self.searched.events = self.events.iter().rev().take(room).collect();
        self.searched.wants = self.wants.len().min(room);
        let events = self.searched.events.iter();
        let wants = self.wants.iter().take(self.searched.wants);
        events.chain(wants).cloned().collect()
    }

    /// What the look listed: `all_listed` if that is all there is to be shipped, up to `newest`. True: it did not
    /// search, and should have.
    pub(super) fn searched<'a>(
        &mut self,
        all_listed: bool,
        found: usize,
        listed: impl Iterator<Item = &'a SegmentInfo> + Clone,
        newest: Option<SegmentNumber>,
    ) -> bool {
        let is_there = |range: &RangeInclusive<SegmentNumber>| {
            let mut listed = listed.clone();
            listed.any(|info| range.contains(&info.number))
        };
        let searched = std::mem::take(&mut self.searched);
        let has_searched = !searched.events.is_empty() || searched.wants > 0;
        let (events, wants) = if all_listed {
            (self.events.iter().collect(), self.wants.len())
        } else if found < AHEAD_LIMIT {
            (searched.events, searched.wants)
        } else {
            // There may be more behind what was listed.
            (Vec::new(), 0)
        };
        // What an event marks may yet be recorded.
        let is_past =
            |range: &RangeInclusive<_>| newest.is_some_and(|newest| *range.end() < newest);
        for range in events.into_iter().filter(|r| is_past(r) && !is_there(r)) {
            self.events.remove_range(range);
        }
        self.is_cut_off = !all_listed && found >= AHEAD_LIMIT;
        let mut place = 0;
        self.wants.retain(|range| {
            place += 1;
            place > wants || is_there(range)
        });
        let again = !all_listed && !self.is_empty() && !has_searched;
        self.is_new |= again;
        again
    }
}

impl Stream {
    /// The hub asks for these ranges ahead of the rest of the backfill.
    pub(in crate::replicate::sender) fn want(
        &mut self,
        ranges: Vec<RangeInclusive<SegmentNumber>>,
    ) {
        for range in ranges {
            self.ahead.want(range);
        }
        self.stale |= self.ahead.is_new;
    }

    /// These belong to an event.
    pub(in crate::replicate::sender) fn mark_event(
        &mut self,
        range: RangeInclusive<SegmentNumber>,
    ) {
        self.ahead.mark(range);
        self.stale = true;
    }

    /// The class of a segment that is not live.
    pub(in crate::replicate::sender) fn class_of(&self, number: SegmentNumber) -> Class {
        if self.ahead.events.contains(number) {
            Class::Event
        } else if self.ahead.wants.iter().any(|r| r.contains(&number)) {
            Class::Want
        } else {
            Class::Backfill
        }
    }

    /// The next segment of a class of the bulk channel.
    pub(in crate::replicate::sender) fn next_bulk(
        &self,
        now: Instant,
        deadline: Duration,
        class: Class,
    ) -> Option<SegmentInfo> {
        match class {
            Class::Event => self.next_of(now, deadline, self.ahead.events.iter()),
            Class::Want => self.next_of(now, deadline, self.ahead.wants.iter().cloned()),
            Class::Control | Class::Live | Class::Backfill => self.next_backfill(now, deadline),
        }
    }

    /// The first closed segment of the first of these ranges of which any may go; not what live takes.
    fn next_of(
        &self,
        now: Instant,
        deadline: Duration,
        mut ranges: impl Iterator<Item = RangeInclusive<SegmentNumber>>,
    ) -> Option<SegmentInfo> {
        if self.waits() || self.goes_in_order() {
            return None;
        }
        let known = self.queue.iter().chain(&self.tail).chain(&self.ahead.found);
        let may_go = known.filter(|info| {
            !self.paused.contains(&info.number)
                && self.is_announced(info.number)
                && !self.goes_live(now, deadline, info)
        });
        ranges.find_map(|range| {
            let of_range = may_go.clone().filter(|info| range.contains(&info.number));
            of_range.min_by_key(|info| info.number).copied()
        })
    }

    /// Makes room on the bulk channel; it goes on later, where it is.
    pub(in crate::replicate::sender) fn set_aside(&mut self, info: Option<SegmentInfo>) {
        let Some(info) = info else {
            self.stale = true;
            return;
        };
        let place = self
            .queue
            .partition_point(|known| known.number < info.number);
        if self
            .queue
            .get(place)
            .is_none_or(|known| known.number != info.number)
        {
            self.queue.insert(place, info);
        }
    }
}
