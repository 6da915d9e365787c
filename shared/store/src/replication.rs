//! What the link asks and tells: what is settled here, announced, lost; what the hub has of ours.

use std::ops::RangeInclusive;

use model::{HoleReason, RangeSet, SegmentInfo, SegmentNumber, StreamName};

use crate::{
    Announced, Store,
    catalog::{segments, streams},
    error::Result,
    files,
    store::ALL,
};

impl Store {
    /// Ranges of numbers that can no longer change here: here, or tombstoned.
    pub fn settled(&self, stream: &StreamName) -> Result<RangeSet> {
        self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::settled(c, row.id, &ALL)?)
        })
    }

    /// Hub: segments the edge has and will ship, in ascending order; known ones are stepped over.
    pub fn announce(&self, stream: &StreamName, announced: &[Announced]) -> Result<()> {
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            for Announced { info } in announced {
                let settled = segments::next_tombstone(
                    c,
                    row.id,
                    info.number.0.checked_sub(1).map(SegmentNumber),
                )?
                .is_some_and(|range| range.contains(&info.number));
                if !settled {
                    segments::announce(c, row.id, info)?;
                }
            }
            let highest = announced.iter().map(|a| a.info.number).max();
            if let Some(highest) = highest {
                streams::raise_floor(c, row.id, highest)?;
            }
            Ok(())
        })
    }

    /// Numbers that will never be here, with the reason. What is here stays.
    pub fn settle(
        &self,
        stream: &StreamName,
        range: RangeInclusive<SegmentNumber>,
        reason: HoleReason,
    ) -> Result<()> {
        let partials = self.change_live(stream, |c, row| {
            let mut missing: RangeSet = [range.clone()].into_iter().collect();
            for here in segments::settled(c, row.id, &range)?.iter() {
                missing.remove_range(here);
            }
            let partials = segments::list_open(c, row.id, &range)?;
            for range in missing.iter() {
                segments::bury(c, row.id, &range, reason)?;
                streams::raise_floor(c, row.id, *range.end())?;
            }
            Ok(partials)
        })?;
        for row in partials {
            files::remove(&self.inner().layout.partial(stream, row.info.number))?;
        }
        Ok(())
    }

    /// The lowest number never used here for this stream.
    pub fn floor(&self, stream: &StreamName) -> Result<SegmentNumber> {
        Ok(self
            .inner()
            .catalog
            .read(|c| streams::get(c, stream))?
            .floor)
    }

    /// Edge: replaces what is known of the hub: numbers in `settled` need no shipping, all others here do.
    pub fn set_settled(&self, stream: &StreamName, settled: &RangeSet) -> Result<()> {
        self.inner()
            .tier
            .settle(|state| state.set_settled(stream, settled));
        let set = self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::set_stored(c, row.id, settled)?)
        });
        self.tick();
        // Lost, it is compared again.
        self.or_in_memory(stream, set)
    }

    /// Edge: the hub said `Stored` (or settled) for one segment. Kept in memory until a commit takes it along:
    /// lost in a crash, comparing with the hub finds it again.
    pub fn mark_stored(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        let held = self.inner().tier.settle(|state| state.mark(stream, number));
        if !held {
            // Told twice, it must not count twice.
            let bytes = self.inner().catalog.read(|c| {
                let row = streams::get(c, stream)?;
                Ok(segments::lacking_bytes(c, row.id, number)?)
            });
            if let Some(bytes) = self.or_in_memory(stream, bytes)? {
                self.inner()
                    .tier
                    .settle(|state| state.note_mark(stream, number, bytes));
            }
        }
        self.tick();
        Ok(())
    }

    /// Edge: the catalog hears of all marks now, a commit a stream: the janitor goes by them.
    pub(crate) fn flush_marks(&self) -> Result<()> {
        let waiting: Vec<_> = {
            let mut state = self.inner().tier.lock();
            let marked = state
                .streams
                .iter_mut()
                .filter(|(_, s)| !s.marks.is_empty());
            marked
                .map(|(name, s)| {
                    s.marking = true;
                    let numbers: Vec<_> = s.marks.keys().copied().collect();
                    (name.clone(), numbers)
                })
                .collect()
        };
        for (stream, numbers) in waiting {
            let marked = self.inner().catalog.write(|c| {
                let row = streams::get(c, &stream)?;
                for &number in &numbers {
                    segments::mark_stored(c, row.id, number)?;
                }
                Ok(())
            });
            self.inner().tier.settle(|state| {
                let Some(held) = state.streams.get_mut(&stream) else {
                    return;
                };
                held.marking = false;
                if marked.is_ok() {
                    held.marks
                        .retain(|number, _| numbers.binary_search(number).is_err());
                }
            });
            marked?;
        }
        Ok(())
    }

    /// Edge: closed segments the hub has not settled, from `from` on, ascending.
    pub fn unshipped(
        &self,
        stream: &StreamName,
        from: SegmentNumber,
        limit: usize,
    ) -> Result<Vec<SegmentInfo>> {
        // Memory first: what comes to the disk in between is there twice, never left out.
        let (held, marks) = self
            .in_tier(stream, |held| {
                let marks: Vec<_> = held.marks.range(from..).map(|(n, _)| *n).collect();
                (held.unshipped(from).collect::<Vec<_>>(), marks)
            })
            .unwrap_or_default();
        let rows = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_unshipped(
                c,
                row.id,
                from,
                limit.saturating_add(marks.len()),
            )?)
        });
        let rows = self.or_in_memory(stream, rows)?;
        let mut all: Vec<SegmentInfo> = rows.into_iter().map(|row| row.info).collect();
        all.retain(|info| marks.binary_search(&info.number).is_err());
        if !held.is_empty() {
            all.extend(held);
            all.sort_by_key(|info| info.number);
            all.dedup_by_key(|info| info.number);
        }
        all.truncate(limit);
        Ok(all)
    }

    /// Edge: number ranges that will never be shipped, with their reasons.
    pub fn holes(
        &self,
        stream: &StreamName,
    ) -> Result<Vec<(RangeInclusive<SegmentNumber>, HoleReason)>> {
        let dropped = self.in_tier(stream, |held| held.dropped.clone());
        let all = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::tombstones(c, row.id)?)
        });
        let mut all = self.or_in_memory(stream, all)?;
        all.extend(dropped.unwrap_or_default());
        // What expired here was stored on the hub before.
        Ok(all
            .into_iter()
            .filter(|(_, reason)| *reason != HoleReason::Expired)
            .collect())
    }
}
