//! What is known of one stream in this session: how far it was compared, announced and shipped.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use model::{
    HoleReason, MediaDuration, RangeSet, RunInfo, SegmentHash, SegmentInfo, SegmentNumber,
    StreamName, WallTime,
};

use super::{
    ENOUGH_QUEUED, Held, LOOK_LIMIT, Looked, OpenFacts,
    schedule::{Throughput, Turn, is_fresh},
};
use crate::messages::{MAX_ANNOUNCED, MAX_RANGES, MAX_RESTAMPED, ProtocolError, Settled, ToHub};

/// Most settled ranges taken from a hub for one stream, newest first. What is settled below them is offered
/// again, and the hub says so segment by segment.
const MAX_SETTLED_RANGES: usize = 64 * MAX_RANGES;
/// Most holes told at one look; the rest at the next.
const MAX_HOLES_PER_LOOK: usize = 4 * MAX_RANGES;
/// Most segments announced ahead of shipping, of one stream: enough for the hub to know what comes within the
/// hour; a longer backlog is announced as it goes.
pub const MAX_ANNOUNCED_AHEAD: usize = 2_048;
/// Most beginnings of segments at the hub that are known of one stream: those that it told as the session began,
/// and what was demoted since. A segment that is not among them goes again from nought.
const MAX_BEGINNINGS: usize = 256;

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
    /// Beginnings of segments at the hub; at most [`MAX_BEGINNINGS`].
    partials: BTreeMap<SegmentNumber, (u64, SegmentHash)>,

    /// The store has changed since the last look.
    pub(super) stale: bool,
    /// The ticket of a look that is not answered.
    pub(super) looking: Option<u64>,
    /// The last look saw every segment that the hub lacks.
    complete: bool,
    /// Closed segments to begin, the oldest, ascending; at most [`LOOK_LIMIT`].
    queue: VecDeque<SegmentInfo>,
    /// Those of the newest that are behind the queue and are not all that is behind it; ascending.
    tail: VecDeque<SegmentInfo>,
    /// A source that can't wait writes the stream.
    live: bool,
    /// Where its newest media ends, and since when that is known.
    newest: Option<(WallTime, Instant)>,
    /// The highest number that was begun as live: live does not go back.
    live_to: Option<SegmentNumber>,
    /// The last live segment was demoted on its way.
    spare_next: bool,
    /// The highest number to be shipped that the hub has settled: up to it everything goes in order, so that it
    /// can get other numbers in that order.
    used_to: Option<SegmentNumber>,
    /// Demoted on their way: the hub is to say how far they have come. At most as many as are announced.
    paused: BTreeSet<SegmentNumber>,
    /// What the line carries of it.
    pub(super) throughput: Throughput,
    pub(super) live_turn: Turn,
    pub(super) bulk_turn: Turn,
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
            tail: VecDeque::new(),
            live: false,
            newest: None,
            live_to: None,
            spare_next: false,
            used_to: None,
            paused: BTreeSet::new(),
            throughput: Throughput::default(),
            live_turn: Turn::default(),
            bulk_turn: Turn::default(),
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

/// What of a stream to begin as live.
#[derive(Debug)]
pub(super) enum Next {
    Closed(SegmentInfo),
    Open(OpenFacts),
}

impl Stream {
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.settled.range_count()
            + self.partials.len()
            + self.queue.len()
            + self.tail.len()
            + self.paused.len()
            + self.runs.len()
            + self.answered.len()
            + self.announced.len()
            + self.held.len()
            + self.unacknowledged.len()
    }

    /// A source that can't wait writes it now.
    pub(super) fn is_live(&self) -> bool {
        self.live
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
        self.used_to = self
            .used_to
            .max(highest_of_both(&self.settled, &held.ranges));
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
        self.drop_queued(number);
        self.stale = true;
    }

    pub(super) fn is_open(&self, number: SegmentNumber) -> bool {
        self.open.as_ref().is_some_and(|open| open.number == number)
    }

    /// True if the hub's word on this segment was waited for, on its way or not.
    pub(super) fn forget(&mut self, number: SegmentNumber) -> bool {
        let queued = self.drop_queued(number);
        let held = self.held.remove(&number);
        let paused = self.paused.remove(&number);
        self.announced.remove(&number) || held || paused || queued
    }

    /// True if it was queued.
    fn drop_queued(&mut self, number: SegmentNumber) -> bool {
        let queued = self.queue.len() + self.tail.len();
        self.queue.retain(|info| info.number != number);
        self.tail.retain(|info| info.number != number);
        self.queue.len() + self.tail.len() < queued
    }

    fn clear_queues(&mut self) {
        self.queue.clear();
        self.tail.clear();
    }

    /// A number is another segment's at the hub: nothing more is begun before that is put right.
    pub(super) fn collide(&mut self, collision: Collision) {
        self.clear_queues();
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
        self.clear_queues();
        self.paused.clear();
        self.live_to = None;
        self.announced.clear();
        self.held.clear();
        self.comparing = false;
        self.announced_below = self.announced_below.min(from);
        self.open = None;
        self.complete = false;
        self.stale = true;
    }

    pub(super) fn partial(&mut self, number: SegmentNumber, length: u64, hash: SegmentHash) {
        self.paused.remove(&number);
        if self.partials.len() < MAX_BEGINNINGS {
            self.partials.insert(number, (length, hash));
        }
    }

    /// Demoted on its way; it goes on once the hub has said how far it has come.
    pub(super) fn pause(&mut self, number: SegmentNumber) {
        self.paused.insert(number);
    }

    /// The hub has said that it does not go on where it was.
    pub(super) fn unpause(&mut self, number: SegmentNumber) -> bool {
        self.paused.remove(&number)
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
            && (self.queue.len() < ENOUGH_QUEUED || self.live || flow_open())
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
        now: Instant,
        name: &StreamName,
        looked: Looked,
        begun: &[SegmentNumber],
    ) -> Vec<ToHub> {
        let Looked {
            open,
            page,
            live,
            mut newest,
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
        match page.last().filter(|_| !self.complete) {
            Some(last) => newest.retain(|info| info.number > last.number),
            None => newest.clear(),
        }
        self.live = live;
        self.open = open;
        self.ending = ending;
        self.note_newest(now, newest.last().or(page.last()));
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
        let unused = |info: &&SegmentInfo| {
            !self.settled.contains(info.number) && !self.held.contains(&info.number)
        };
        let waits = |info: &&SegmentInfo| {
            !begun.contains(&info.number)
                && !self.unacknowledged.contains_key(&info.number)
                && !self.answered.contains(&info.number)
        };
        // So few that one message takes them.
        let ahead: Vec<_> = newest
            .iter()
            .filter(unused)
            .filter(waits)
            .filter(|info| !self.announced.contains(&info.number))
            .copied()
            .collect();
        if !ahead.is_empty() {
            messages.push(announcement(name, &runs, &ahead));
        }
        self.tail = newest.iter().filter(waits).copied().collect();
        self.announced.extend(ahead.iter().map(|info| info.number));
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

    /// Where the newest media ends, if the store showed some that is newer.
    fn note_newest(&mut self, now: Instant, closed: Option<&SegmentInfo>) {
        let open = self.open.as_ref().map(|open| {
            let parts = open.parts.iter().map(|part| part.duration);
            let parts = parts.fold(MediaDuration::ZERO, |sum, part| sum + part);
            open.wall_start.plus(parts)
        });
        let closed = closed.map(|info| info.wall_start.plus(info.duration));
        if let Some(end) = open.max(closed)
            && self.newest.is_none_or(|(known, _)| known != end)
        {
            self.newest = Some((end, now));
        }
    }

    /// How long ago this was live, by the stream's own times; none where it is not live.
    pub(super) fn age(&self, now: Instant, since: WallTime) -> Option<Duration> {
        let (newest, at) = self.newest.filter(|_| self.live)?;
        let behind = u64::try_from(newest.0.saturating_sub(since.0)).unwrap_or(0);
        Some(Duration::from_millis(behind) + now.saturating_duration_since(at))
    }

    /// Everything of it goes in order: numbers that the hub has used are among what is to be shipped.
    fn goes_in_order(&self) -> bool {
        let first = self.queue.front().map(|info| info.number);
        self.used_to.is_some_and(|used| {
            first
                .or(self.open.as_ref().map(|open| open.number))
                .is_some_and(|first| first <= used)
        })
    }

    fn waits(&self) -> bool {
        let waits = self.wait_until.is_some() || self.collision.is_some() || self.comparing;
        !self.is_shipping() || waits
    }

    fn is_announced(&self, number: SegmentNumber) -> bool {
        number < self.announced_below || self.announced.contains(&number)
    }

    fn is_fresh(&self, now: Instant, deadline: Duration, info: &SegmentInfo) -> bool {
        let takes = self.throughput.time_of(info.bytes);
        self.age(now, info.wall_start)
            .is_some_and(|age| is_fresh(deadline, age, info.duration.to_duration(), takes))
    }

    /// What to begin as live, where nothing of this stream is on its way as such: what follows in order, unless
    /// it is too old; then the newest there is, which is what is being written.
    pub(super) fn next_live(&self, now: Instant, deadline: Duration) -> Option<Next> {
        if !self.live || self.waits() || self.goes_in_order() {
            return None;
        }
        let goes_on = |number| self.live_to.is_none_or(|last| number > last);
        let mut closed = self.queue.iter().chain(&self.tail);
        let follows =
            closed.find(|info| goes_on(info.number) && !self.paused.contains(&info.number));
        if let Some(info) = follows.filter(|info| self.is_fresh(now, deadline, info)) {
            return self
                .is_announced(info.number)
                .then_some(Next::Closed(*info));
        }
        let open = self.open.as_ref().filter(|open| {
            goes_on(open.number)
                && !open.parts.is_empty()
                && !self.unacknowledged.contains_key(&open.number)
                && !self.answered.contains(&open.number)
                && !self.settled.contains(open.number)
                && !self.held.contains(&open.number)
                && !self.paused.contains(&open.number)
        });
        open.cloned().map(Next::Open)
    }

    /// The oldest closed segment that is to go as backfill.
    pub(super) fn next_bulk(&self, now: Instant, deadline: Duration) -> Option<SegmentInfo> {
        if self.waits() {
            return None;
        }
        let is_live = self.live && !self.goes_in_order();
        let first = self
            .queue
            .iter()
            .find(|info| !self.paused.contains(&info.number))?;
        // It is live's, and so is what is behind it.
        let goes_live = is_live
            && self.live_to.is_none_or(|last| first.number > last)
            && self.is_fresh(now, deadline, first);
        (!goes_live && self.is_announced(first.number)).then_some(*first)
    }

    /// A segment was begun. True: as live, and the one before was demoted on its way.
    pub(super) fn begun(&mut self, number: SegmentNumber, live: bool) -> bool {
        self.drop_queued(number);
        if live {
            self.live_to = self.live_to.max(Some(number));
        }
        live && std::mem::take(&mut self.spare_next)
    }

    /// A live segment was demoted on its way.
    pub(super) fn demoted(&mut self) {
        self.spare_next = true;
        self.stale = true;
    }

    /// What was begun as live last must go anew.
    pub(super) fn step_back(&mut self, number: SegmentNumber) {
        if self.live_to == Some(number) {
            self.live_to = number.0.checked_sub(1).map(SegmentNumber);
        }
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
        self.clear_queues();
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
            && self.paused.is_empty()
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

/// The highest number that is in both.
fn highest_of_both(
    settled: &RangeSet,
    ranges: &[RangeInclusive<SegmentNumber>],
) -> Option<SegmentNumber> {
    let mut used = settled.iter().rev().peekable();
    for range in ranges.iter().rev() {
        while used.next_if(|used| used.start() > range.end()).is_some() {}
        if let Some(used) = used.peek().filter(|used| used.end() >= range.start()) {
            return Some(*used.end().min(range.end()));
        }
    }
    None
}
