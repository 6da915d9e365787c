//! What of a stream may begin, as live or as backfill.

use super::*;

impl Stream {
    /// How long ago this was live, by the stream's own times; none where it is not live.
    pub(in crate::replicate::sender) fn age(
        &self,
        now: Instant,
        since: WallTime,
    ) -> Option<Duration> {
        let (newest, at) = self.newest.filter(|_| self.live)?;
        let behind = u64::try_from(newest.0.saturating_sub(since.0)).unwrap_or(0);
        Some(Duration::from_millis(behind) + now.saturating_duration_since(at))
    }

    /// Everything of it goes in order: numbers that the hub has used are among what is to be shipped.
    pub(super) fn goes_in_order(&self) -> bool {
        let first = self.queue.front().map(|info| info.number);
        self.used_to.is_some_and(|used| {
            first
                .or(self.open.as_ref().map(|open| open.number))
                .is_some_and(|first| first <= used)
        })
    }

    pub(super) fn waits(&self) -> bool {
        let waits = self.wait_until.is_some() || self.collision.is_some() || self.comparing;
        !self.is_shipping() || waits
    }

    pub(super) fn is_announced(&self, number: SegmentNumber) -> bool {
        number < self.announced_below || self.announced.contains(&number)
    }

    fn is_fresh(&self, now: Instant, deadline: Duration, info: &SegmentInfo) -> bool {
        let takes = self.throughput.time_of(info.bytes);
        self.age(now, info.wall_start)
            .is_some_and(|age| is_fresh(deadline, age, info.duration.to_duration(), takes))
    }

    /// What to begin as live, where nothing of this stream is on its way as such: what follows in order, unless
    /// it is too old; then the newest there is, which is what is being written.
    pub(in crate::replicate::sender) fn next_live(
        &self,
        now: Instant,
        deadline: Duration,
    ) -> Option<Next> {
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
    pub(super) fn next_backfill(&self, now: Instant, deadline: Duration) -> Option<SegmentInfo> {
        if self.waits() {
            return None;
        }
        let first = self
            .queue
            .iter()
            .find(|info| !self.paused.contains(&info.number))?;
        // It is live's, and so is what is behind it.
        let goes = !self.goes_live(now, deadline, first) && self.is_announced(first.number);
        goes.then_some(*first)
    }

    /// Live has not passed it, and it is young enough.
    pub(super) fn goes_live(&self, now: Instant, deadline: Duration, info: &SegmentInfo) -> bool {
        self.live
            && !self.goes_in_order()
            && self.live_to.is_none_or(|last| info.number > last)
            && self.is_fresh(now, deadline, info)
    }

    /// A segment was begun. True: as live, and the one before was demoted on its way.
    pub(in crate::replicate::sender) fn begun(
        &mut self,
        number: SegmentNumber,
        live: bool,
    ) -> bool {
        self.drop_queued(number);
        if live {
            self.live_to = self.live_to.max(Some(number));
        }
        live && std::mem::take(&mut self.spare_next)
    }

    /// A live segment was demoted on its way.
    pub(in crate::replicate::sender) fn demoted(&mut self) {
        self.spare_next = true;
        self.stale = true;
    }

    /// What was begun as live last must go anew.
    pub(in crate::replicate::sender) fn step_back(&mut self, number: SegmentNumber) {
        if self.live_to == Some(number) {
            self.live_to = number.0.checked_sub(1).map(SegmentNumber);
        }
    }
}
