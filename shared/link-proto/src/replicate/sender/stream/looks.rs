//! What the store shows of a stream: when it is asked, what is said of what it lists, and what is to be begun of it.

use super::*;

impl Stream {
    /// Takes in what the store showed; gives what to say. `begun`: the segments now on their way.
    pub(in crate::replicate::sender) fn looked(
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
            mut ahead,
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
        let newest_closed = newest.last().or(page.last()).map(|info| info.number);
        let listed = page.iter().chain(&newest).chain(&ahead);
        let found = ahead.len();
        let again = self
            .ahead
            .searched(self.complete, found, listed, newest_closed);
        self.stale |= again;
        match page.last().filter(|_| !self.complete) {
            Some(last) => {
                newest.retain(|info| info.number > last.number);
                ahead.retain(|info| {
                    info.number > last.number && !newest.iter().any(|n| n.number == info.number)
                });
                ahead.sort_unstable_by_key(|info| info.number);
                ahead.dedup_by_key(|info| info.number);
            }
            None => {
                newest.clear();
                ahead.clear();
            }
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
        let unannounced: Vec<_> = ahead
            .iter()
            .chain(&newest)
            .filter(unused)
            .filter(waits)
            .filter(|info| !self.announced.contains(&info.number))
            .copied()
            .collect();
        if !unannounced.is_empty() {
            messages.push(announcement(name, &runs, &unannounced));
        }
        self.tail = newest.iter().filter(waits).copied().collect();
        self.ahead.found = ahead.iter().filter(waits).copied().collect();
        let told = unannounced.iter().map(|info| info.number);
        self.announced.extend(told);
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
        self.listed = self.queue.len();
        messages
    }

    /// A page that was listed only to be announced.
    pub(in crate::replicate::sender) fn listed(
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

    /// A page of what is still to come; None where the store failed. Gives what to say.
    pub(in crate::replicate::sender) fn held(
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

    /// A look is asked for; where it is to search for what goes ahead of its turn.
    pub(in crate::replicate::sender) fn look(
        &mut self,
        ticket: u64,
    ) -> Vec<RangeInclusive<SegmentNumber>> {
        self.looking = Some(ticket);
        self.stale = false;
        self.answered.clear();
        self.ahead.search(self.complete)
    }

    /// Whether the store must be asked, given that a segment is begun that has not closed: because it has changed
    /// where that matters now, or because what it listed last runs out.
    pub(in crate::replicate::sender) fn wants_look(
        &self,
        flow_open: impl FnOnce() -> bool,
    ) -> bool {
        self.looking.is_none()
            && self.wait_until.is_none()
            && self.collision.is_none()
            && (self.runs_out()
                || self.ahead.wants_look(self.stale)
                || (self.stale && (self.queue.len() < ENOUGH_QUEUED || self.live || flow_open())))
    }

    /// There is more than was listed, and most of that has been begun. (What was listed and only waits for the hub's
    /// word is listed again until that has come.)
    fn runs_out(&self) -> bool {
        let queued = self.queue.len();
        !self.complete && !self.comparing && queued < ENOUGH_QUEUED.min(self.listed)
    }

    pub(in crate::replicate::sender) fn wants_list(&self) -> Option<SegmentNumber> {
        let wants = self.announce_due
            && self.listing.is_none()
            && self.wait_until.is_none()
            && self.collision.is_none()
            && self.announced.len() < MAX_ANNOUNCED_AHEAD;
        wants.then_some(self.announced_below)
    }

    /// Where the page of held numbers begins that is to be listed.
    pub(in crate::replicate::sender) fn wants_held(
        &mut self,
        ticket: u64,
    ) -> Option<SegmentNumber> {
        match &mut self.phase {
            Phase::Telling { from, listing } if listing.is_none() && self.wait_until.is_none() => {
                *listing = Some(ticket);
                Some(*from)
            }
            _ => None,
        }
    }
}
