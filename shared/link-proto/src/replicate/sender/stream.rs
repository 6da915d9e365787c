//! What is known of one stream in this session: how far it was compared, announced and shipped.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    time::Instant,
};

use model::{
    HoleReason, RangeSet, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName, WallTime,
};

use super::{ENOUGH_QUEUED, Held, LOOK_LIMIT, Looked, OpenFacts};
use crate::{
    Channel,
    messages::{MAX_ANNOUNCED, MAX_RANGES, MAX_RESTAMPED, ProtocolError, Settled, ToHub},
    replicate::MAX_PARTIALS,
};

/// Most settled ranges taken from a hub for one stream, newest first. What is settled below them is offered
/// again, and the hub says so segment by segment.
const MAX_SETTLED_RANGES: usize = 64 * MAX_RANGES;
/// Most holes told at one look; the rest at the next.
const MAX_HOLES_PER_LOOK: usize = 4 * MAX_RANGES;
/// Most segments announced ahead of shipping, of one stream: enough for the hub to know what comes within the
/// hour; a longer backlog is announced as it goes.
pub const MAX_ANNOUNCED_AHEAD: usize = 2_048;
/// Closed segments waiting from which on a stream is no longer live and goes by the bulk channel.
const BEHIND: usize = 4;

#[derive(Debug, Default)]
pub(super) enum Phase {
    /// Not opened in this session.
    #[default]
    New,
    Comparing {
        /// The cursor of the last page.
        cursor: Option<SegmentNumber>,
    },
    /// Tells the hub what is still to come, page by page.
    Telling {
        /// Where the next page begins.
        from: SegmentNumber,
        /// The ticket of a page that is being listed.
        listing: Option<u64>,
    },
    Shipping,
    Refused {
        reason: String,
        again_at: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    /// Settled at the hub as the session began, and what was settled or told as holes since. A segment to be
    /// shipped that is among them waits for the hub's answer to its announcement.
    settled: RangeSet,
    /// Beginnings of segments at the hub; at most [`MAX_PARTIALS`].
    partials: BTreeMap<SegmentNumber, (u64, SegmentHash)>,

    /// The store has changed since the last look.
    pub(super) stale: bool,
    /// The ticket of a look that is not answered.
    pub(super) looking: Option<u64>,
    /// The last look saw every segment that the hub lacks.
    complete: bool,
    /// Closed segments to begin, ascending; at most [`LOOK_LIMIT`].
    queue: VecDeque<SegmentInfo>,
    runs: BTreeMap<SegmentNumber, RunInfo>,
    open: Option<OpenFacts>,
    /// Settled since the last look was asked for, so it may still list them.
    answered: BTreeSet<SegmentNumber>,

    /// Announced, to be shipped, and not answered; at most [`MAX_ANNOUNCED_AHEAD`] and a look.
    announced: BTreeSet<SegmentNumber>,
    /// Their numbers are used at the hub: they wait to be closed and compared; at most as many as are begun.
    held: BTreeSet<SegmentNumber>,
    /// The last look saw segments that wait for the hub's comparison: what is behind them is not begun, so
    /// that it can still get other numbers in its order.
    comparing: bool,
    /// Segments must get other numbers, once nothing of the stream is on its way.
    collision: Option<Collision>,

    /// Everything the hub lacks below this was announced.
    announced_below: SegmentNumber,
    pub(super) announce_due: bool,
    pub(super) listing: Option<u64>,

    /// Sent whole and not settled, with their bytes.
    pub(super) unacknowledged: BTreeMap<SegmentNumber, u64>,
    channel: Channel,
    /// Nothing is looked up or begun before this.
    pub(super) wait_until: Option<Instant>,

    /// Told to end, after this segment if it has any.
    ending: Option<Option<SegmentNumber>>,
    end_told: Option<Option<SegmentNumber>>,
    end_confirmed: Option<Option<SegmentNumber>>,

    /// Corrected wall times that were told and not confirmed; at most [`MAX_RESTAMPED`].
    restamping: Option<Vec<(SegmentNumber, WallTime)>>,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            phase: Phase::New,
            settled: RangeSet::new(),
            partials: BTreeMap::new(),
            stale: true,
            looking: None,
            complete: false,
            queue: VecDeque::new(),
            runs: BTreeMap::new(),
            open: None,
            answered: BTreeSet::new(),
            announced: BTreeSet::new(),
            held: BTreeSet::new(),
            comparing: false,
            collision: None,
            announced_below: SegmentNumber(0),
            announce_due: false,
            listing: None,
            unacknowledged: BTreeMap::new(),
            channel: Channel::Bulk,
            wait_until: None,
            ending: None,
            end_told: None,
            end_confirmed: None,
            restamping: None,
        }
    }
}

/// The lowest number that is another segment's at the hub, and what the hub has not seen used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Collision {
    pub(super) number: SegmentNumber,
    pub(super) floor: SegmentNumber,
}

/// What of a stream to begin next.
#[derive(Debug)]
pub(super) enum Next {
    Closed(Channel, SegmentInfo),
    Open(OpenFacts),
}

impl Stream {
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.settled.range_count()
            + self.partials.len()
            + self.queue.len()
            + self.runs.len()
            + self.answered.len()
            + self.announced.len()
            + self.held.len()
            + self.unacknowledged.len()
    }

    pub(super) fn is_shipping(&self) -> bool {
        matches!(self.phase, Phase::Shipping)
    }

    /// A page of what is settled at the hub. True: it was the last one.
    pub(super) fn compare(&mut self, page: &Settled) -> Result<bool, ProtocolError> {
        let Phase::Comparing { cursor } = &mut self.phase else {
            return Err(ProtocolError::OutOfOrder("a page of settled ranges"));
        };
        let goes_down = cursor.is_none_or(|last| page.cursor < last);
        if !page.done && !goes_down {
            return Err(ProtocolError::OutOfOrder("a cursor that does not go down"));
        }
        *cursor = Some(page.cursor);
        for range in &page.ranges {
            self.settled.insert_range(range.clone());
        }
        Ok(page.done || self.settled.range_count() >= MAX_SETTLED_RANGES)
    }

    /// All was compared; what is still to come is told next.
    pub(super) fn tell(&mut self) -> RangeSet {
        self.phase = Phase::Telling {
            from: SegmentNumber(0),
            listing: None,
        };
        self.settled.clone()
    }

    /// Where the page of held numbers begins that is to be listed.
    pub(super) fn wants_held(&mut self, ticket: u64) -> Option<SegmentNumber> {
        match &mut self.phase {
            Phase::Telling { from, listing } if listing.is_none() && self.wait_until.is_none() => {
                *listing = Some(ticket);
                Some(*from)
            }
            _ => None,
        }
    }

    /// A page of what is still to come; None where the store failed. Gives what to say.
    pub(super) fn held(
        &mut self,
        name: &StreamName,
        ticket: u64,
        held: Option<Held>,
        again_at: Instant,
    ) -> Option<ToHub> {
        let Phase::Telling { from, listing } = &mut self.phase else {
            return None;
        };
        if *listing != Some(ticket) {
            return None;
        }
        *listing = None;
        let Some(held) = held else {
            self.wait_until = self.wait_until.max(Some(again_at));
            return None;
        };
        let last = held.next.map_or(u64::MAX, |next| next.0.saturating_sub(1));
        let message = ToHub::Holding {
            stream: name.clone(),
            within: *from..=SegmentNumber(last),
            ranges: held.ranges,
        };
        match held.next {
            Some(next) => *from = next,
            None => self.phase = Phase::Shipping,
        }
        Some(message)
    }

    /// The number is used at the hub: the segment waits to be closed and compared.
    pub(super) fn hold(&mut self, number: SegmentNumber) {
        self.held.insert(number);
        self.announced.remove(&number);
        self.queue.retain(|info| info.number != number);
        self.stale = true;
    }

    pub(super) fn is_open(&self, number: SegmentNumber) -> bool {
        self.open.as_ref().is_some_and(|open| open.number == number)
    }

    /// True if the hub's word on this segment was waited for, on its way or not.
    pub(super) fn forget(&mut self, number: SegmentNumber) -> bool {
        let queued = self.queue.len();
        self.queue.retain(|info| info.number != number);
        let held = self.held.remove(&number);
        self.announced.remove(&number) || held || self.queue.len() < queued
    }

    /// A number is another segment's at the hub: nothing more is begun before that is put right.
    pub(super) fn collide(&mut self, collision: Collision) {
        self.queue.clear();
        self.collision = Some(match self.collision {
            None => collision,
            Some(known) => Collision {
                number: known.number.min(collision.number),
                floor: known.floor.max(collision.floor),
            },
        });
    }

    /// What is to be renumbered now, where `begun` segments are on their way.
    pub(super) fn take_collision(&mut self, begun: usize) -> Option<Collision> {
        if begun > 0 || !self.unacknowledged.is_empty() {
            return None;
        }
        let collision = self.collision.take()?;
        self.renumbered(collision.number);
        // What was being looked up has the old numbers.
        self.looking = None;
        self.listing = None;
        Some(collision)
    }

    /// Numbers from here on are others now.
    fn renumbered(&mut self, from: SegmentNumber) {
        self.queue.clear();
        self.announced.clear();
        self.held.clear();
        self.comparing = false;
        self.announced_below = self.announced_below.min(from);
        self.open = None;
        self.complete = false;
        self.stale = true;
    }

    pub(super) fn partial(&mut self, number: SegmentNumber, length: u64, hash: SegmentHash) {
        if self.partials.len() < MAX_PARTIALS {
            self.partials.insert(number, (length, hash));
        }
    }

    pub(super) fn take_partial(&mut self, number: SegmentNumber) -> Option<(u64, SegmentHash)> {
        self.partials.remove(&number)
    }

    pub(super) fn run(&self, run: SegmentNumber) -> Option<RunInfo> {
        self.runs.get(&run).cloned()
    }

    /// The store has changed.
    pub(super) fn changed(&mut self) {
        self.stale = true;
        // Enough to ship is in hand: only what is new needs announcing.
        self.announce_due |= self.queue.len() >= ENOUGH_QUEUED;
    }

    /// Whether the store must be asked, given that a segment is begun that has not closed.
    pub(super) fn wants_look(&self, flow_open: impl FnOnce() -> bool) -> bool {
        self.looking.is_none()
            && self.wait_until.is_none()
            && self.collision.is_none()
            && (self.stale || (!self.complete && !self.comparing))
            && (self.queue.len() < ENOUGH_QUEUED || flow_open())
    }

    pub(super) fn look(&mut self, ticket: u64) {
        self.looking = Some(ticket);
        self.stale = false;
        self.answered.clear();
    }

    pub(super) fn wants_list(&self) -> Option<SegmentNumber> {
        let wants = self.announce_due
            && self.listing.is_none()
            && self.wait_until.is_none()
            && self.collision.is_none()
            && self.announced.len() < MAX_ANNOUNCED_AHEAD;
        wants.then_some(self.announced_below)
    }

    /// Takes in what the store showed; gives what to say. `begun`: the segments now on their way.
    pub(super) fn looked(
        &mut self,
        name: &StreamName,
        looked: Looked,
        begun: &[SegmentNumber],
    ) -> Vec<ToHub> {
        let Looked {
            open,
            page,
            runs,
            holes,
            ending,
            restamped,
            renumbering,
        } = looked;
        self.looking = None;
        if let Some(from) = renumbering {
            self.renumbered(from);
            return Vec::new();
        }
        self.complete = page.len() < LOOK_LIMIT;
        self.open = open;
        self.ending = ending;
        let mut messages = self.tell_holes(name, holes);
        // While much is being shipped, few of them wait for more.
        let enough = self.complete || restamped.len() >= MAX_RESTAMPED;
        if self.restamping.is_none() && !restamped.is_empty() && enough {
            messages.push(ToHub::Restamp {
                stream: name.clone(),
                segments: restamped.clone(),
            });
            self.restamping = Some(restamped);
        }
        // What was evicted meanwhile is not waited for.
        let seen: BTreeSet<_> = page.iter().map(|info| info.number).collect();
        let unseen_from = page.last().filter(|_| !self.complete);
        self.announced.retain(|number| {
            seen.contains(number) || unseen_from.is_some_and(|last| *number > last.number)
        });
        let is_new = |info: &&SegmentInfo| {
            let used = self.settled.contains(info.number) || self.held.contains(&info.number);
            let waits =
                self.announced.contains(&info.number) || self.answered.contains(&info.number);
            let again = used && !waits && info.number < self.announced_below;
            let first = self.complete && info.number >= self.announced_below;
            (again || first) && !begun.contains(&info.number)
        };
        let new: Vec<_> = page.iter().filter(is_new).copied().collect();
        for segments in new.chunks(MAX_ANNOUNCED) {
            messages.push(announcement(name, &runs, segments));
        }
        self.announced.extend(new.iter().map(|info| info.number));
        if self.complete
            && let Some(last) = page.last()
        {
            self.announced_below = self.announced_below.max(last.number.next());
        }
        self.announce_due = !self.complete;
        self.comparing = page.iter().any(|info| {
            let used = self.settled.contains(info.number) || self.held.contains(&info.number);
            used && !self.answered.contains(&info.number)
        });
        self.runs = runs.into_iter().map(|run| (run.run, run)).collect();
        self.queue = page
            .into_iter()
            .filter(|info| {
                !self.comparing
                    && !begun.contains(&info.number)
                    && !self.unacknowledged.contains_key(&info.number)
                    && !self.answered.contains(&info.number)
            })
            .collect();
        messages
    }

    /// A page that was listed only to be announced.
    pub(super) fn listed(
        &mut self,
        name: &StreamName,
        page: &[SegmentInfo],
        runs: &[RunInfo],
    ) -> Option<ToHub> {
        self.listing = None;
        self.announce_due = page.len() >= MAX_ANNOUNCED;
        self.announced_below = page
            .last()
            .map_or(self.announced_below, |last| last.number.next());
        self.announced.extend(page.iter().map(|info| info.number));
        (!page.is_empty()).then(|| announcement(name, runs, page))
    }

    /// Holes that the hub has not heard of.
    fn tell_holes(
        &mut self,
        name: &StreamName,
        holes: Vec<(RangeInclusive<SegmentNumber>, HoleReason)>,
    ) -> Vec<ToHub> {
        let mut by_reason: BTreeMap<u8, (HoleReason, Vec<_>)> = BTreeMap::new();
        let mut told = 0;
        for (range, reason) in holes {
            let known = self
                .settled
                .first_missing_from(*range.start())
                .is_none_or(|missing| missing > *range.end());
            if known || reason == HoleReason::OnEdge || range.is_empty() {
                continue;
            }
            if told == MAX_HOLES_PER_LOOK {
                self.stale = true;
                break;
            }
            told += 1;
            self.settled.insert_range(range.clone());
            let (_, ranges) = by_reason
                .entry(reason.code())
                .or_insert((reason, Vec::new()));
            ranges.push(range);
        }
        by_reason
            .into_values()
            .flat_map(|(reason, ranges)| {
                let messages: Vec<_> = ranges
                    .chunks(MAX_RANGES)
                    .map(|ranges| ToHub::Holes {
                        stream: name.clone(),
                        ranges: ranges.to_vec(),
                        reason,
                    })
                    .collect();
                messages
            })
            .collect()
    }

    /// What to begin next, where `begun` segments of this stream are on their way.
    pub(super) fn next(&mut self, begun: usize) -> Option<Next> {
        let waits = self.wait_until.is_some() || self.collision.is_some() || self.comparing;
        if !self.is_shipping() || waits {
            return None;
        }
        // Changing channels before all on the other one is settled would let segments overtake each other.
        let may_change = begun == 0 && self.unacknowledged.is_empty();
        let Some(&info) = self.queue.front() else {
            let open = self.open.as_ref().filter(|open| {
                self.complete
                    && begun == 0
                    && !open.parts.is_empty()
                    && !self.unacknowledged.contains_key(&open.number)
                    && !self.answered.contains(&open.number)
                    && !self.settled.contains(open.number)
                    && !self.held.contains(&open.number)
            })?;
            if self.channel != Channel::Live && !may_change {
                return None;
            }
            self.channel = Channel::Live;
            return Some(Next::Open(open.clone()));
        };
        if info.number >= self.announced_below {
            return None;
        }
        let behind = self.queue.len() >= BEHIND || !self.complete;
        match self.channel {
            Channel::Live if behind && !may_change => return None,
            Channel::Live if behind => self.channel = Channel::Bulk,
            Channel::Live if begun > 0 => return None,
            _ => {}
        }
        Some(Next::Closed(self.channel, info))
    }

    /// The first of the queue was begun.
    pub(super) fn begun(&mut self) {
        self.queue.pop_front();
    }

    /// The hub has settled this segment.
    pub(super) fn answer(&mut self, number: SegmentNumber) {
        self.answered.insert(number);
        self.stale |= self.comparing;
        // Should it expire here, the hub need not hear.
        self.settled.insert(number);
    }

    /// A segment must be looked for again: nothing goes before it.
    pub(super) fn restart(&mut self, wait_until: Option<Instant>) {
        self.queue.clear();
        self.stale = true;
        self.wait_until = self.wait_until.max(wait_until);
    }

    /// The end, once all before it is settled and it was not told.
    pub(super) fn end_to_tell(
        &mut self,
        begun: impl FnOnce() -> usize,
    ) -> Option<Option<SegmentNumber>> {
        let last = self.ending?;
        if self.end_told == Some(last) || !self.is_caught_up(begun()) {
            return None;
        }
        self.end_told = Some(last);
        Some(last)
    }

    /// The hub has confirmed this end. True if it is the one that was told.
    pub(super) fn ended(&mut self, last: Option<SegmentNumber>) -> bool {
        self.end_confirmed = Some(last);
        self.end_told == Some(last)
    }

    /// The hub has confirmed corrected wall times up to a number: those that were told.
    pub(super) fn restamped(
        &mut self,
        last: SegmentNumber,
    ) -> Option<Vec<(SegmentNumber, WallTime)>> {
        let told = |told: &mut Vec<(SegmentNumber, WallTime)>| {
            told.last().is_some_and(|(number, _)| *number == last)
        };
        let confirmed = self.restamping.take_if(told)?;
        // There may be more.
        self.stale = true;
        Some(confirmed)
    }

    /// All that the store holds is settled at the hub, and nothing is being written.
    pub(super) fn is_caught_up(&self, begun: usize) -> bool {
        self.is_shipping()
            && self.complete
            && !self.stale
            && self.looking.is_none()
            && self.queue.is_empty()
            && self.unacknowledged.is_empty()
            && self.announced.is_empty()
            && self.collision.is_none()
            && self.open.is_none()
            && self.restamping.is_none()
            && begun == 0
    }

    pub(super) fn is_done(&self, begun: usize) -> bool {
        match self.phase {
            Phase::Refused { .. } => true,
            _ => self.is_caught_up(begun) && self.end_confirmed_or_none(),
        }
    }

    fn end_confirmed_or_none(&self) -> bool {
        self.ending.is_none() || self.end_confirmed == self.ending
    }
}

fn announcement(name: &StreamName, runs: &[RunInfo], segments: &[SegmentInfo]) -> ToHub {
    let of_these = |run: &&RunInfo| segments.iter().any(|info| info.run == run.run);
    ToHub::Announce {
        stream: name.clone(),
        runs: runs.iter().filter(of_these).cloned().collect(),
        segments: segments.to_vec(),
    }
}
