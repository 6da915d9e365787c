//! Streams of a store: registering them, their runs, what they hold, how they end. No segment is opened here.

use super::*;
use crate::catalog::at_hub;

impl Store {
    /// Makes sure the stream exists and belongs to `owner` (None: this edge itself).
    pub fn register_stream(&self, stream: &StreamName, owner: Option<&DeviceName>) -> Result<()> {
        let known = self.inner.catalog.read(|c| Ok(streams::find(c, stream)?))?;
        if known.is_some_and(|row| row.owner.as_ref() == owner) {
            return Ok(());
        }
        self.inner
            .catalog
            .write(|c| streams::register(c, stream, owner, wall_now()))?;
        self.tick();
        Ok(())
    }

    /// The names of all streams, ascending.
    pub fn stream_names(&self) -> Result<Vec<StreamName>> {
        let in_memory: Vec<_> = self.inner.tier.lock().streams.keys().cloned().collect();
        let rows = self.inner.catalog.read(|c| Ok(streams::all(c)?));
        let mut names: Vec<_> = match rows {
            Ok(rows) => rows.into_iter().map(|row| row.name).collect(),
            Err(_) if !in_memory.is_empty() && self.inner.health.is_troubled() => Vec::new(),
            Err(error) => return Err(error),
        };
        names.extend(in_memory);
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Looks at what memory holds of a stream.
    pub(crate) fn in_tier<T>(
        &self,
        stream: &StreamName,
        look: impl FnOnce(&TierStream) -> T,
    ) -> Option<T> {
        self.inner.tier.lock().streams.get(stream).map(look)
    }

    /// What the catalog says, or nothing where it has not heard of a stream that memory holds, or where the
    /// disk fails and memory is all there is.
    pub(crate) fn or_in_memory<T: Default>(
        &self,
        stream: &StreamName,
        read: Result<T>,
    ) -> Result<T> {
        let held = || self.in_tier(stream, |_| ()).is_some();
        match read {
            Err(StoreError::NoSuchStream(_)) if held() => Ok(T::default()),
            Err(error)
                if error.disk_fault().is_some() && self.inner.health.is_troubled() && held() =>
            {
                Ok(T::default())
            }
            read => read,
        }
    }

    pub fn streams(&self) -> Result<Vec<StreamSummary>> {
        let rows = self.inner.catalog.read(|c| Ok(streams::all(c)?))?;
        rows.into_iter().map(|row| self.summary(row)).collect()
    }

    pub fn stream(&self, stream: &StreamName) -> Result<Option<StreamSummary>> {
        let row = self.inner.catalog.read(|c| Ok(streams::find(c, stream)?))?;
        let held = || self.in_tier(stream, |held| self.only_in_memory(stream, held));
        match row {
            Some(row) => self.summary(row).map(Some),
            None => Ok(held()),
        }
    }

    /// A stream whose first segments have not come to the disk.
    fn only_in_memory(&self, stream: &StreamName, held: &TierStream) -> StreamSummary {
        let run = held.runs.values().next_back().map(|(run, _)| run);
        let unshipped = || held.unshipped(SegmentNumber(0));
        StreamSummary {
            name: stream.clone(),
            title: None,
            owner: None,
            state: StreamState::Live,
            codecs: run.map(|run| run.codecs.clone()),
            resolution: run.and_then(|run| run.resolution),
            segments: 0,
            bytes: 0,
            ranges: Vec::new(),
            first_number: None,
            last_number: None,
            unshipped: unshipped().count() as u64,
            unshipped_bytes: unshipped().map(|info| info.bytes).sum(),
            given_up: 0,
        }
    }

    fn summary(&self, row: streams::StreamRow) -> Result<StreamSummary> {
        // Memory first: what comes to the disk in between is counted twice, never left out.
        let waiting = self.in_tier(&row.name, |held| {
            let unshipped = || held.unshipped(SegmentNumber(0));
            let bytes: u64 = unshipped().map(|info| info.bytes).sum();
            (unshipped().count() as u64, bytes)
        });
        let waiting = waiting.unwrap_or_default();
        let (run, spans, totals, unshipped, given_up) = self.inner.catalog.read(|c| {
            Ok((
                streams::newest_run(c, row.id)?,
                spans::newest(c, row.id, MAX_RANGES)?,
                spans::totals(c, row.id)?,
                at_hub::count_unshipped(c, row.id)?,
                at_hub::count_given_up(c, row.id)?,
            ))
        })?;
        let marked = self.in_tier(&row.name, TierStream::marked);
        let marked = marked.unwrap_or_default();
        let writing = self.is_written(&row.name);
        Ok(StreamSummary {
            state: match (row.told_to_end, writing) {
                (true, _) => StreamState::Ended,
                (false, true) => StreamState::Live,
                (false, false) => StreamState::Idle,
            },
            name: row.name,
            title: row.title,
            owner: row.owner,
            codecs: run.as_ref().map(|run| run.codecs.clone()),
            resolution: run.and_then(|run| run.resolution),
            segments: totals.segments,
            bytes: totals.bytes,
            ranges: spans.iter().map(|span| (span.from, span.to)).collect(),
            first_number: totals.first,
            last_number: totals.last,
            unshipped: (unshipped.0 + waiting.0).saturating_sub(marked.0),
            unshipped_bytes: (unshipped.1 + waiting.1).saturating_sub(marked.1),
            given_up: given_up.iter().map(|(_, count)| count).sum(),
        })
    }

    pub(crate) fn has_writer(&self, stream: &StreamName, number: SegmentNumber) -> bool {
        self.look_at(stream, |memory| memory.open.contains_key(&number))
            .unwrap_or(false)
    }

    /// Whether segments are coming.
    pub(crate) fn is_written(&self, stream: &StreamName) -> bool {
        let written = self.look_at(stream, |memory| {
            let lately = |at: Instant| at.elapsed() < LIVE_WITHIN;
            !memory.open.is_empty() || memory.last_write.is_some_and(lately)
        });
        written.unwrap_or(false)
    }

    /// A run begins; its number is the number of its first segment. Idempotent; another run of that number is
    /// never overwritten: that is `NumberUsed`.
    pub fn put_run(&self, stream: &StreamName, run: &RunInfo) -> Result<()> {
        let known = self.run(stream, run.run)?;
        if known.as_ref() == Some(run) {
            return Ok(());
        }
        self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            streams::put_run(c, row.id, run)?;
            if streams::run(c, row.id, run.run)?.as_ref() != Some(run) {
                return Err(StoreError::NumberUsed {
                    stream: stream.clone(),
                    number: run.run,
                }
                .into());
            }
            Ok(())
        })
    }

    pub fn run(&self, stream: &StreamName, run: SegmentNumber) -> Result<Option<RunInfo>> {
        let held = self.in_tier(stream, |held| {
            held.runs.get(&run).map(|(run, _)| run.clone())
        });
        if let Some(held) = held.flatten() {
            return Ok(Some(held));
        }
        self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::run(c, row.id, run)?)
        })
    }

    /// The stream ends after `last` (None: it is empty). ENDLIST is committed as soon as every segment up to
    /// it is settled here.
    pub fn end_stream(&self, stream: &StreamName, last: Option<SegmentNumber>) -> Result<()> {
        let end_in_memory = || {
            self.inner.tier.give(|state| {
                let held = state.streams.entry(stream.clone()).or_default();
                held.ending = Some(last);
                held.ended_on_hub = false;
            });
            self.tick();
            Ok(())
        };
        if self.in_tier(stream, |held| !held.is_written()) == Some(true) {
            return end_in_memory();
        }
        let ended = self.change_live(stream, |c, row| {
            renumber::end_at(c, row.id, last)?;
            Ok(())
        });
        match ended {
            Err(error) if self._keeper.is_some() && error.disk_fault().is_some() => end_in_memory(),
            ended => ended,
        }
    }

    /// Whether the stream was told to end and nothing came after it: `Some(last)`, where `last` is None for
    /// a stream that ended empty.
    pub fn ending(&self, stream: &StreamName) -> Result<Option<Option<SegmentNumber>>> {
        if let Some(ending) = self.in_tier(stream, |held| held.ending).flatten() {
            return Ok(Some(ending));
        }
        let row = self.inner.catalog.read(|c| streams::get(c, stream));
        self.or_in_memory(stream, row.map(|row| row.told_to_end.then_some(row.ending)))
    }

    /// Edge: the hub has confirmed the end.
    pub fn mark_ended_on_hub(&self, stream: &StreamName) -> Result<()> {
        let troubled = self.inner.health.is_troubled();
        let in_memory = self.inner.tier.give(|state| {
            let held = state.streams.get_mut(stream);
            let held = held.filter(|held| troubled || held.ending.is_some());
            held.map(|held| held.ended_on_hub = true).is_some()
        });
        if in_memory {
            self.tick();
            return Ok(());
        }
        let marked = self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(streams::mark_ended_on_hub(c, row.id)?)
        });
        match marked {
            // The disk's thread tells the catalog when it can: the hub says it once only.
            Err(error) if self._keeper.is_some() && error.disk_fault().is_some() => {
                self.inner.tier.give(|state| {
                    let held = state.streams.entry(stream.clone()).or_default();
                    held.ended_on_hub = true;
                });
            }
            marked => marked?,
        }
        self.tick();
        Ok(())
    }

    /// Edge: whether the hub has confirmed the end that the stream was told.
    pub fn ended_on_hub(&self, stream: &StreamName) -> Result<bool> {
        let held = self.in_tier(stream, |held| match held.ending {
            Some(_) => Some(held.ended_on_hub),
            None => held.ended_on_hub.then_some(true),
        });
        if let Some(ended) = held.flatten() {
            return Ok(ended);
        }
        let row = self.inner.catalog.read(|c| streams::get(c, stream));
        self.or_in_memory(stream, row.map(|row| row.told_to_end && row.ended_on_hub))
    }
}
