//! Recording on an edge: a segment as it is cut, into memory; the disk's thread makes it durable.
//!
//! Nothing here waits for the disk but [`Store::wait_for_disk`], which a source that can wait calls.

use std::time::{Duration, Instant};

use bytes::Bytes;
use model::{BootTime, MediaDuration, RunInfo, SegmentInfo, SegmentNumber, StreamName};

use crate::{
    OpenSegment, SourceKind, Store,
    error::{Result, StoreError},
    tier::InMemory,
    trouble::TroubleKind,
};

/// A closed segment that waits this long for the disk makes the disk slow: several fsyncs of a bad card.
const SLOW_AFTER: Duration = Duration::from_secs(8);

/// Closed segments of a source that can wait which the disk's thread has in hand before the source waits.
const MAX_AHEAD: usize = 1;

/// Cuts one segment. Dropping it without [`EdgeWriter::close`] closes it at its last part.
#[derive(Debug)]
pub struct EdgeWriter {
    store: Store,
    stream: StreamName,
    number: SegmentNumber,
    bytes: u64,
    open: bool,
}

impl Store {
    /// Edge: begins a segment of a run. `boot`: where a live source's segment begins on the clock of this boot;
    /// where that clock was corrected ([`Store::correct_boot`]) its wall time follows from it. The number must come from a durable reservation (invariant 2).
    pub fn record(
        &self,
        stream: &StreamName,
        run: &RunInfo,
        open: OpenSegment,
        boot: Option<BootTime>,
        source: SourceKind,
    ) -> EdgeWriter {
        self.inner().tier.give(|state| {
            let held = state.streams.entry(stream.clone()).or_default();
            held.runs.insert(run.run, (run.clone(), source));
            state.open(stream, open, boot, source.can_wait());
        });
        self.note_write(stream);
        self.tick();
        EdgeWriter {
            store: self.clone(),
            stream: stream.clone(),
            number: open.number,
            bytes: 0,
            open: true,
        }
    }

    /// Edge: waits until the disk has taken what a source that can wait has cut, or for so long. False: it
    /// has not; ask again. An error: the disk fails in a way that waiting does not help.
    pub fn wait_for_disk(&self, stream: &StreamName, limit: Duration) -> Result<bool> {
        self.wait_for(limit, |state| {
            let held = state.streams.get(stream);
            let closed = |s: &crate::tier::TierStream| {
                let held = s.segments.values();
                held.filter(|h| h.waits && h.closed.is_some()).count()
            };
            held.map_or(0, closed) <= MAX_AHEAD
        })
    }

    /// Edge: waits until the disk has taken everything of a stream; the same answers.
    pub fn wait_for_all(&self, stream: &StreamName, limit: Duration) -> Result<bool> {
        self.wait_for(limit, |state| {
            state.streams.get(stream).is_none_or(|s| s.is_written())
        })
    }

    fn wait_for(
        &self,
        limit: Duration,
        ready: impl Fn(&crate::tier::TierState) -> bool,
    ) -> Result<bool> {
        let broken = || {
            let trouble = self.disk_trouble()?;
            (trouble.kind == TroubleKind::Broken).then_some(trouble.what)
        };
        let done = self
            .inner()
            .tier
            .wait_until(limit, |state| ready(state) || broken().is_some());
        match broken() {
            Some(what) if !ready(&self.inner().tier.lock()) => Err(StoreError::Failing(what)),
            _ => Ok(done),
        }
    }

    /// Edge: what is in memory and not on the disk.
    pub fn in_memory(&self) -> InMemory {
        self.inner().tier.in_memory()
    }

    /// The limit of the memory that stands in for the disk.
    pub fn memory_limit(&self) -> u64 {
        self.inner().tier.limit()
    }

    fn note_write(&self, stream: &StreamName) {
        self.with_memory(stream, |memory| memory.last_write = Some(Instant::now()));
    }
}

impl EdgeWriter {
    pub fn number(&self) -> SegmentNumber {
        self.number
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a part; it can be shipped at once.
    pub fn append_part(&mut self, bytes: Bytes, duration: MediaDuration, independent: bool) {
        self.bytes += bytes.len() as u64;
        self.store.inner().tier.give(|state| {
            state.append(&self.stream, self.number, bytes, duration, independent);
        });
        self.store.shed_memory();
        self.store.note_write(&self.stream);
        self.store.tick();
    }

    /// The segment is whole; None: memory had no room for it, and it is a hole.
    pub fn close(mut self, duration: MediaDuration) -> Option<SegmentInfo> {
        self.finish(Some(duration), true)
    }

    /// Closes the segment before its end: what a source that can wait still has of it comes under another
    /// number. Otherwise as [`Self::close`].
    pub fn close_early(mut self, duration: MediaDuration) -> Option<SegmentInfo> {
        self.finish(Some(duration), false)
    }

    fn finish(&mut self, duration: Option<MediaDuration>, whole: bool) -> Option<SegmentInfo> {
        self.open = false;
        let now = Instant::now();
        let health = &self.store.inner().health;
        let info = self.store.inner().tier.give(|state| {
            let held = state.held(&self.stream, self.number)?;
            let duration = duration.unwrap_or_else(|| held.duration());
            state.close(&self.stream, self.number, duration, whole, now)
        });
        if let Some(info) = &info
            && health.is_troubled()
        {
            health.count(1, info.bytes);
        }
        let slow = self.store.inner().tier.lock().longest_wait(now) >= SLOW_AFTER;
        if slow && !health.is_troubled() {
            let what = format!(
                "{} takes longer than {} s for a segment",
                self.store.inner().data_dir.display(),
                SLOW_AFTER.as_secs()
            );
            self.store.begin_trouble(TroubleKind::Slow, &what);
        }
        self.store.note_write(&self.stream);
        self.store.tick();
        info
    }
}

impl Drop for EdgeWriter {
    fn drop(&mut self) {
        if self.open {
            self.finish(None, false);
        }
    }
}
