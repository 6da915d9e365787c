//! The memory between an edge's sources and its disk: segments as they are cut, until they are durable.
//!
//! Recording never waits for the disk: parts come here, the uplink ships them from here, and the disk's
//! thread ([`crate::keeper`]) writes them in order and takes them out. While the disk fails or is slow they
//! stay, within a named limit; above it the oldest go, each a hole with its reason (invariants 3 and 5). No
//! file and no catalog is touched here.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use model::{
    BootTime, HoleReason, MediaDuration, PartInfo, RangeSet, RunInfo, SegmentHasher, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};

use crate::{OpenSegment, OpenView, SourceKind};

/// Memory that an edge's segments may take while its disk does not: four minutes of 2 Mbit/s.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;

/// Marks that wait for the disk; more are let go of, since comparing with the hub finds them again.
const MAX_MARKS: usize = 65_536;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tier {
    state: Mutex<TierState>,
    /// There is something for the disk's thread.
    work: Condvar,
    /// Something was written, dropped, or failed.
    done: Condvar,
    limit: u64,
}

#[derive(Debug, Default)]
pub(crate) struct TierState {
    pub(crate) streams: BTreeMap<StreamName, TierStream>,
    /// Of all segments held.
    bytes: u64,
    next_age: u64,
    /// The store is being closed: the thread ends.
    pub(crate) closing: bool,
    /// There is something new to write.
    pub(crate) news: bool,
}

#[derive(Debug, Default)]
pub(crate) struct TierStream {
    pub(crate) segments: BTreeMap<SegmentNumber, Held>,
    /// Runs of segments held.
    pub(crate) runs: BTreeMap<SegmentNumber, (RunInfo, SourceKind)>,
    /// Numbers dropped that the catalog has not heard of, ascending.
    pub(crate) dropped: Vec<(RangeInclusive<SegmentNumber>, HoleReason)>,
    /// The end that the stream was told, while the catalog has not heard of it.
    pub(crate) ending: Option<Option<SegmentNumber>>,
    /// The hub has confirmed it.
    pub(crate) ended_on_hub: bool,
    /// Segments on the disk that the hub has stored and the catalog has not heard of, with their bytes.
    pub(crate) marks: BTreeMap<SegmentNumber, u64>,
    /// A commit is taking marks along: whether the catalog counts them is not known.
    pub(crate) marking: bool,
}

/// A segment held.
#[derive(Debug)]
pub(crate) struct Held {
    /// Ascending over all streams.
    pub(crate) age: u64,
    pub(crate) open: OpenSegment,
    /// Where it begins on the clock of this boot; None: it has a time of its own.
    pub(crate) boot: Option<BootTime>,
    pub(crate) waits: bool,
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) bytes: u64,
    parts: Vec<PartInfo>,
    hasher: SegmentHasher,
    pub(crate) closed: Option<Closed>,
    /// The hub has it.
    pub(crate) stored: bool,
    /// The hub has settled its number without it.
    pub(crate) given_up: Option<HoleReason>,
    /// The disk's thread is making it durable: it can't be dropped now.
    pub(crate) busy: bool,
    /// There was no room for it: what still comes of it is let go.
    gone: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) info: SegmentInfo,
    /// It ends where the segmenter ended it.
    pub(crate) whole: bool,
    pub(crate) at: Instant,
}

/// What is held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InMemory {
    /// Closed segments that are not on the disk.
    pub segments: u64,
    /// Bytes of these and of those being cut.
    pub bytes: u64,
}

/// What dropping did.
pub(crate) struct Dropped {
    pub(crate) stream: StreamName,
    pub(crate) number: SegmentNumber,
    /// The hub did not have it.
    pub(crate) lost: bool,
}

impl Tier {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            limit,
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, TierState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs under the lock, then wakes the disk's thread.
    pub(crate) fn give<T>(&self, work: impl FnOnce(&mut TierState) -> T) -> T {
        let mut state = self.lock();
        let done = work(&mut state);
        state.news = true;
        self.work.notify_all();
        done
    }

    /// Runs under the lock, then wakes those who wait for the disk's thread.
    pub(crate) fn settle<T>(&self, work: impl FnOnce(&mut TierState) -> T) -> T {
        let done = work(&mut self.lock());
        self.done.notify_all();
        done
    }

    /// Waits until there is news, or for so long; while the disk fails news changes nothing.
    pub(crate) fn wait_for_work(&self, limit: Duration, heeds_news: bool) {
        let state = self.lock();
        let waits = |state: &mut TierState| !(state.closing || state.news && heeds_news);
        let waited = self.work.wait_timeout_while(state, limit, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.news = false;
    }

    /// Waits until `ready`, or for so long.
    pub(crate) fn wait_until(
        &self,
        limit: Duration,
        mut ready: impl FnMut(&TierState) -> bool,
    ) -> bool {
        let state = self.lock();
        let waited = self
            .done
            .wait_timeout_while(state, limit, |state| !ready(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ready(&state)
    }

    /// Makes room until the limit holds; what went comes back, to be counted and told.
    pub(crate) fn shed(&self) -> Vec<Dropped> {
        let mut state = self.lock();
        let mut all = Vec::new();
        while state.bytes > self.limit {
            match state.drop_one() {
                Some(dropped) => all.push(dropped),
                None => break,
            }
        }
        drop(state);
        if !all.is_empty() {
            self.done.notify_all();
        }
        all
    }

    pub(crate) fn in_memory(&self) -> InMemory {
        let state = self.lock();
        let segments = state.streams.values().flat_map(|s| s.segments.values());
        InMemory {
            segments: segments.filter(|held| held.closed.is_some()).count() as u64,
            bytes: state.bytes,
        }
    }
}

impl TierState {
    /// A segment begins.
    pub(crate) fn open(
        &mut self,
        stream: &StreamName,
        open: OpenSegment,
        boot: Option<BootTime>,
        waits: bool,
    ) {
        let age = self.next_age;
        self.next_age += 1;
        let held = Held {
            age,
            open,
            boot,
            waits,
            chunks: Vec::new(),
            bytes: 0,
            parts: Vec::new(),
            hasher: SegmentHasher::default(),
            closed: None,
            stored: false,
            given_up: None,
            busy: false,
            gone: false,
        };
        let stream = self.streams.entry(stream.clone()).or_default();
        stream.segments.insert(open.number, held);
    }

    pub(crate) fn held(&mut self, stream: &StreamName, n: SegmentNumber) -> Option<&mut Held> {
        self.streams.get_mut(stream)?.segments.get_mut(&n)
    }

    /// Adds a part to an open segment.
    pub(crate) fn append(
        &mut self,
        stream: &StreamName,
        n: SegmentNumber,
        bytes: Bytes,
        duration: MediaDuration,
        independent: bool,
    ) {
        let Some(held) = self.held(stream, n).filter(|held| !held.gone) else {
            return;
        };
        let length = bytes.len() as u64;
        held.parts.push(PartInfo {
            offset: held.bytes,
            bytes: length,
            duration,
            independent,
        });
        held.hasher.update(&bytes);
        held.bytes += length;
        held.chunks.push(bytes);
        self.bytes += length;
    }

    /// Takes a segment out: it is on the disk, or a hole.
    pub(crate) fn remove(&mut self, stream: &StreamName, n: SegmentNumber) -> Option<Held> {
        let state = self.streams.get_mut(stream)?;
        let held = state.segments.remove(&n)?;
        self.bytes -= held.bytes;
        let needed: Vec<_> = state.segments.values().map(|h| h.open.run).collect();
        let newest = state.runs.last_key_value().map(|(run, _)| *run);
        // The newest stays: its next segment may come.
        state
            .runs
            .retain(|run, _| needed.contains(run) || Some(*run) == newest);
        Some(held)
    }

    /// The next to go: what the hub has, then the oldest; never what can come again, never what is being
    /// made durable.
    fn drop_one(&mut self) -> Option<Dropped> {
        let droppable = |held: &&Held| !held.waits && !held.busy && held.bytes > 0;
        let (stream, number, stored, open) = self
            .streams
            .iter()
            .flat_map(|(name, s)| s.segments.values().map(move |held| (name, held)))
            .filter(|(_, held)| droppable(held))
            // What is being cut goes last: more of it comes.
            .min_by_key(|(_, held)| (held.closed.is_none(), !held.stored, held.age))
            .map(|(name, held)| {
                let open = held.closed.is_none();
                (name.clone(), held.open.number, held.stored, open)
            })?;
        if open {
            let held = self.held(&stream, number)?;
            held.gone = true;
            held.chunks.clear();
            held.parts.clear();
            let bytes = std::mem::take(&mut held.bytes);
            self.bytes -= bytes;
        } else {
            self.remove(&stream, number)?;
            self.note_hole(&stream, number, lost_as(stored));
        }
        Some(Dropped {
            stream,
            number,
            lost: !stored,
        })
    }

    /// A number will never be on this disk.
    fn note_hole(&mut self, stream: &StreamName, number: SegmentNumber, reason: HoleReason) {
        let dropped = &mut self.streams.entry(stream.clone()).or_default().dropped;
        match dropped.last_mut() {
            Some((range, last)) if *last == reason && range.end().next() == number => {
                *range = *range.start()..=number;
            }
            _ => dropped.push((number..=number, reason)),
        }
    }

    /// A segment is whole; None: it was let go of, and is a hole.
    pub(crate) fn close(
        &mut self,
        stream: &StreamName,
        n: SegmentNumber,
        duration: MediaDuration,
        whole: bool,
        now: Instant,
    ) -> Option<SegmentInfo> {
        let held = self.held(stream, n)?;
        if held.gone || held.bytes == 0 {
            // One that was begun and has nothing in it holds nothing to be missed.
            let reason = match held.gone {
                true => HoleReason::Evicted,
                false => HoleReason::Corrupt,
            };
            self.remove(stream, n);
            self.note_hole(stream, n, reason);
            return None;
        }
        let info = SegmentInfo {
            number: held.open.number,
            run: held.open.run,
            wall_start: held.open.wall_start,
            media_start: held.open.media_start,
            duration,
            bytes: held.bytes,
            hash: held.hasher.hash(),
            independent: held.open.independent,
        };
        held.closed = Some(Closed {
            info,
            whole,
            at: now,
        });
        Some(info)
    }

    /// How long the longest-waiting closed segment has waited for the disk.
    pub(crate) fn longest_wait(&self, now: Instant) -> Duration {
        let segments = self.streams.values().flat_map(|s| s.segments.values());
        let closed = segments.filter_map(|held| held.closed.as_ref());
        closed
            .map(|closed| now.saturating_duration_since(closed.at))
            .max()
            .unwrap_or_default()
    }

    /// Segments that are whole and not on the disk: how many, how many bytes.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        let segments = self.streams.values().flat_map(|s| s.segments.values());
        segments
            .filter(|held| held.closed.is_some())
            .fold((0, 0), |(n, bytes), held| (n + 1, bytes + held.bytes))
    }

    /// Those of them that the hub lacks too.
    pub(crate) fn waiting_for_both(&self) -> (u64, u64) {
        let streams = self.streams.values();
        streams
            .flat_map(|s| s.unshipped(SegmentNumber(0)))
            .fold((0, 0), |(n, bytes), info| (n + 1, bytes + info.bytes))
    }

    /// The catalog knows a segment otherwise than it was begun: its wall time was corrected, or its run has
    /// another number.
    pub(crate) fn correct(&mut self, stream: &StreamName, open: &OpenSegment) {
        let Some(state) = self.streams.get_mut(stream) else {
            return;
        };
        let Some(held) = state.segments.get_mut(&open.number) else {
            return;
        };
        let run = state.runs.get(&held.open.run).cloned();
        if let Some((run, source)) = run.filter(|_| held.open.run != open.run) {
            let run = RunInfo {
                run: open.run,
                ..run
            };
            state.runs.insert(open.run, (run, source));
        }
        held.open = *open;
        if let Some(closed) = &mut held.closed {
            closed.info.run = open.run;
            closed.info.wall_start = open.wall_start;
        }
    }

    /// The same for a corrected wall time alone.
    pub(crate) fn set_wall(&mut self, stream: &StreamName, n: SegmentNumber, wall: WallTime) {
        if let Some(held) = self.held(stream, n) {
            held.open.wall_start = wall;
            if let Some(closed) = &mut held.closed {
                closed.info.wall_start = wall;
            }
        }
    }

    /// The hub has a segment. False: it is not held here.
    pub(crate) fn mark(&mut self, stream: &StreamName, n: SegmentNumber) -> bool {
        match self.held(stream, n) {
            Some(held) => {
                held.stored = true;
                true
            }
            None => false,
        }
    }

    /// The hub has a segment that is on the disk.
    pub(crate) fn note_mark(&mut self, stream: &StreamName, n: SegmentNumber, bytes: u64) {
        let marks = &mut self.streams.entry(stream.clone()).or_default().marks;
        if marks.len() < MAX_MARKS {
            marks.insert(n, bytes);
        }
    }

    /// What the hub has, all of it.
    pub(crate) fn set_settled(&mut self, stream: &StreamName, settled: &RangeSet) {
        if let Some(stream) = self.streams.get_mut(stream) {
            // What it had and has no more is to be shipped again.
            stream.marks.retain(|number, _| settled.contains(*number));
            for (number, held) in &mut stream.segments {
                // That a number is settled does not say that this segment is stored.
                held.stored &= settled.contains(*number);
            }
        }
    }
}

/// What the hub has is no hole to be told of.
fn lost_as(stored: bool) -> HoleReason {
    match stored {
        true => HoleReason::Expired,
        false => HoleReason::Evicted,
    }
}

impl TierStream {
    /// Nothing of it is waited for.
    pub(crate) fn is_written(&self) -> bool {
        self.segments.is_empty() && self.dropped.is_empty() && self.ending.is_none()
    }

    /// Segments that the catalog counts as lacking at the hub and that the hub has, with their bytes; asked
    /// after the catalog. Too few where that is not known: what is left to ship is never told as done.
    pub(crate) fn marked(&self) -> (u64, u64) {
        if self.marking {
            return (0, 0);
        }
        (self.marks.len() as u64, self.marks.values().sum())
    }

    /// Numbers from one on that are held and that the hub has not settled, ascending.
    pub(crate) fn numbers(&self, from: SegmentNumber) -> Vec<SegmentNumber> {
        let held = self.segments.range(from..);
        held.filter(|(_, held)| !held.stored && !held.gone)
            .map(|(number, _)| *number)
            .collect()
    }

    pub(crate) fn open_view(&self) -> Option<OpenView> {
        let held = self.segments.values().next_back()?;
        (held.closed.is_none() && !held.gone).then(|| OpenView {
            open: held.open,
            bytes: held.bytes,
            parts: held.parts.clone(),
        })
    }

    /// Closed segments that the hub lacks, ascending.
    pub(crate) fn unshipped(&self, from: SegmentNumber) -> impl Iterator<Item = SegmentInfo> + '_ {
        self.segments
            .range(from..)
            .filter(|(_, held)| !held.stored && held.given_up.is_none())
            .filter_map(|(_, held)| held.closed.map(|closed| closed.info))
    }
}

impl Held {
    /// Bytes of a range, fewer where it ends before.
    pub(crate) fn read(&self, range: Range<u64>) -> Bytes {
        let mut found = BytesMut::new();
        let mut at = 0;
        for chunk in &self.chunks {
            let length = chunk.len() as u64;
            let from = range.start.max(at).min(at + length) - at;
            let to = range.end.max(at).min(at + length) - at;
            // In the chunk, so it fits.
            let piece = chunk.get(from as usize..to.max(from) as usize);
            found.extend_from_slice(piece.unwrap_or_default());
            at += length;
        }
        found.freeze()
    }

    /// The duration of all parts: what a source that broke off leaves.
    pub(crate) fn duration(&self) -> MediaDuration {
        let parts = self.parts.iter().map(|part| part.duration.0);
        MediaDuration(parts.sum())
    }
}

#[cfg(test)]
mod tests {
    use model::MediaTime;

    use super::*;

    fn gate() -> StreamName {
        "gate".parse().unwrap()
    }

    fn opening(number: u64) -> OpenSegment {
        OpenSegment {
            number: SegmentNumber(number),
            run: SegmentNumber(1),
            wall_start: WallTime(number as i64 * 2_000),
            media_start: MediaTime(0),
            independent: true,
        }
    }

    fn put(tier: &Tier, number: u64, bytes: usize, waits: bool) -> Option<SegmentInfo> {
        let second = MediaDuration(90_000);
        tier.give(|state| {
            state.open(&gate(), opening(number), None, waits);
            let n = SegmentNumber(number);
            for part in 0..2 {
                let bytes = Bytes::from(vec![number as u8 + part; bytes / 2]);
                state.append(&gate(), n, bytes, second, part == 0);
            }
            state.close(&gate(), n, MediaDuration(180_000), true, Instant::now())
        })
    }

    fn shed(tier: &Tier) -> Vec<(u64, bool)> {
        let dropped = tier.shed();
        dropped.iter().map(|d| (d.number.0, d.lost)).collect()
    }

    #[test]
    fn the_oldest_goes_first_but_what_the_hub_has_before_it() {
        let tier = Tier::new(300);
        for number in 1..=3 {
            put(&tier, number, 100, false).unwrap();
        }
        assert_eq!(shed(&tier), []);
        assert!(tier.lock().mark(&gate(), SegmentNumber(2)));
        put(&tier, 4, 100, false).unwrap();
        put(&tier, 5, 100, false).unwrap();
        assert_eq!(shed(&tier), [(2, false), (1, true)]);
        let state = tier.lock();
        let holes = &state.streams[&gate()].dropped;
        let n = SegmentNumber;
        assert_eq!(holes[0], (n(2)..=n(2), HoleReason::Expired));
        assert_eq!(holes[1], (n(1)..=n(1), HoleReason::Evicted));
        let left: Vec<u64> = state.streams[&gate()]
            .unshipped(n(0))
            .map(|info| info.number.0)
            .collect();
        assert_eq!(left, [3, 4, 5]);
        drop(state);
        assert_eq!(tier.in_memory().bytes, 300);
    }

    #[test]
    fn what_can_come_again_is_kept_and_what_is_cut_goes_last() {
        let tier = Tier::new(100);
        put(&tier, 1, 100, true).unwrap();
        tier.give(|state| {
            state.open(&gate(), opening(2), None, false);
            let bytes = Bytes::from(vec![0; 50]);
            state.append(&gate(), SegmentNumber(2), bytes, MediaDuration(1), true);
        });
        assert_eq!(shed(&tier), [(2, true)]);
        // What still comes of it is let go, and it ends as a hole.
        tier.give(|state| {
            let (n, bytes) = (SegmentNumber(2), Bytes::from(vec![0; 50]));
            state.append(&gate(), n, bytes, MediaDuration(1), true);
            assert!(state.streams[&gate()].open_view().is_none());
            assert!(
                state
                    .close(&gate(), n, MediaDuration(2), true, Instant::now())
                    .is_none()
            );
            assert_eq!(
                state.streams[&gate()].dropped,
                [(n..=n, HoleReason::Evicted)]
            );
        });
        assert_eq!(
            tier.in_memory(),
            InMemory {
                segments: 1,
                bytes: 100
            }
        );
    }

    #[test]
    fn bytes_are_read_across_parts() {
        let tier = Tier::new(1_000);
        let info = put(&tier, 1, 100, false).unwrap();
        let mut state = tier.lock();
        let held = state.held(&gate(), SegmentNumber(1)).unwrap();
        let whole = held.read(0..1_000);
        assert_eq!(model::SegmentHash::of(&whole), info.hash);
        assert_eq!(held.read(45..55), whole.slice(45..55));
        assert_eq!(held.read(99..200), whole.slice(99..100));
        assert!(held.read(100..200).is_empty() && held.read(7..7).is_empty());
        assert_eq!(held.duration(), MediaDuration(180_000));
    }
}
