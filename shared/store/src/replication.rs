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
            // What was here, was found damaged and can't be had again, is lost to that, whatever the edge says.
            for number in segments::lost_in(c, row.id, &range)? {
                segments::bury(c, row.id, &(number..=number), HoleReason::Corrupt)?;
                missing.remove_range(number..=number);
            }
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
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::set_stored(c, row.id, settled)?)
        })?;
        self.tick();
        Ok(())
    }

    /// Edge: the hub said `Stored` (or settled) for one segment.
    pub fn mark_stored(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::mark_stored(c, row.id, number)?)
        })?;
        self.tick();
        Ok(())
    }

    /// Edge: closed segments the hub has not settled, from `from` on, ascending.
    pub fn unshipped(
        &self,
        stream: &StreamName,
        from: SegmentNumber,
        limit: usize,
    ) -> Result<Vec<SegmentInfo>> {
        let rows = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_unshipped(c, row.id, from, limit)?)
        })?;
        Ok(rows.into_iter().map(|row| row.info).collect())
    }

    /// Edge: number ranges that can't be shipped (any more), with their reasons: also what expired here after
    /// it was stored, since the hub may have lost it.
    pub fn gone(
        &self,
        stream: &StreamName,
    ) -> Result<Vec<(RangeInclusive<SegmentNumber>, HoleReason)>> {
        self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::tombstones(c, row.id)?)
        })
    }

    /// Edge: number ranges that will never be shipped, with their reasons.
    pub fn holes(
        &self,
        stream: &StreamName,
    ) -> Result<Vec<(RangeInclusive<SegmentNumber>, HoleReason)>> {
        // What expired here was stored on the hub before.
        Ok(self
            .gone(stream)?
            .into_iter()
            .filter(|(_, reason)| *reason != HoleReason::Expired)
            .collect())
    }
}
