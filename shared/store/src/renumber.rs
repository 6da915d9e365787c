//! Other numbers for segments whose numbers turned out to be another's at the hub (edge).
//!
//! The plan is committed first; then batch by batch: the files get their new names beside the old ones, one
//! commit moves the rows, and only then the old names go. Killed at any point, either name still has the bytes
//! and the next look or start goes on (invariants 1 and 2). Numbers for what is being written while this goes
//! on are left free, so that new numbers keep the order of recording.

use std::{collections::BTreeSet, fs, io, path::Path, sync::PoisonError, time::Duration};

use model::{HoleReason, SegmentNumber, StreamName};
use rusqlite::Connection;

use crate::{
    Store,
    catalog::{
        Fault, at_hub, live,
        renumber::{self, Plan},
        segments,
        streams::{self, StreamRow},
    },
    error::{AtPath, Result},
    files,
};

/// Segments moved in one commit: a month's backlog takes minutes, one batch a fraction of a second.
const BATCH: usize = 256;
/// Before numbers are changed, what memory holds is given this long to come to the disk.
const WRITE_WAIT: Duration = Duration::from_secs(2);
/// Numbers left free for segments that are begun while a plan is made and carried out.
const ROOM: u64 = 8;

impl Store {
    /// Edge: the number is another segment's at the hub, which has seen none from `floor` on used. This segment
    /// and all behind it that the hub has not confirmed get numbers above that, in their order; the moving
    /// itself is done by [`Store::go_on_renumbering`]. Nothing happens where the segment has moved already or
    /// the hub has it.
    pub fn renumber(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
        floor: SegmentNumber,
    ) -> Result<()> {
        if !self.has_written(stream) {
            // The hub is asked again, and says so again, when the disk has them.
            return Ok(());
        }
        // What the hub has keeps its number.
        self.flush_marks()?;
        let floor = floor.max(self.above_memory(stream));
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            begin(c, &row, number, floor)
        })?;
        self.tick();
        Ok(())
    }

    /// Edge: the hub has settled a number and will not take the segment under it. What only expired there may
    /// have been another's: a segment of a run that the hub never had gets another number instead.
    pub fn give_up(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
        reason: HoleReason,
    ) -> Result<()> {
        let held = self.inner().tier.settle(|state| {
            let held = state.held(stream, number)?;
            held.given_up = Some(reason);
            Some(())
        });
        if held.is_some() {
            self.tick();
            return Ok(());
        }
        self.flush_marks()?;
        let above = self.above_memory(stream);
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            let Some(segment) = segments::find(c, row.id, number)? else {
                return Ok(());
            };
            if reason == HoleReason::Expired
                && !at_hub::hub_had_run(c, row.id, segment.info.run, number)?
            {
                return begin(c, &row, number, row.floor.max(above));
            }
            Ok(at_hub::give_up(c, row.id, number, reason)?)
        })?;
        self.tick();
        Ok(())
    }

    /// Edge: where a renumbering is under way, moves some segments. Some: where it begins; there is more to do.
    pub fn go_on_renumbering(&self, stream: &StreamName) -> Result<Option<SegmentNumber>> {
        if self.plan(stream)?.is_none() {
            return Ok(None);
        }
        // Two at once would take each other's new names for leftovers.
        let moving = self.with_memory(stream, |memory| memory.moving.clone());
        let _alone = moving.lock().unwrap_or_else(PoisonError::into_inner);
        self.move_some(stream)
    }

    /// Whether the disk has every closed segment of a stream; it is given a moment.
    fn has_written(&self, stream: &StreamName) -> bool {
        self.inner().tier.wait_until(WRITE_WAIT, |state| {
            let held = state.streams.get(stream);
            held.is_none_or(|held| held.segments.values().all(|held| held.closed.is_none()))
        })
    }

    fn plan(&self, stream: &StreamName) -> Result<Option<Plan>> {
        let read = self.inner().catalog.read(|c| {
            Ok(match streams::find(c, stream)? {
                Some(row) => renumber::plan(c, row.id)?,
                None => None,
            })
        });
        self.or_in_memory(stream, read)
    }

    /// The lowest number above all that are in memory.
    fn above_memory(&self, stream: &StreamName) -> SegmentNumber {
        let highest = self.in_tier(stream, |held| held.segments.keys().next_back().copied());
        highest
            .flatten()
            .map_or(SegmentNumber(0), SegmentNumber::next)
    }

    fn move_some(&self, stream: &StreamName) -> Result<Option<SegmentNumber>> {
        let found = self.inner().catalog.read(|c| {
            let Some(row) = streams::find(c, stream)? else {
                return Ok(None);
            };
            let Some(plan) = renumber::plan(c, row.id)? else {
                return Ok(None);
            };
            let rows = renumber::to_move(c, row.id, &plan, BATCH)?;
            let within = plan.first..=before(plan.base);
            let open = !segments::list_open(c, row.id, &within)?.is_empty();
            Ok(Some((row, plan, rows, open)))
        })?;
        let Some((row, plan, rows, open)) = found else {
            return Ok(None);
        };
        if rows.is_empty() {
            if !open {
                self.end_renumbering(&row, &plan)?;
            }
            return Ok(None);
        }
        let new = |index: usize| SegmentNumber(plan.next.0 + index as u64);
        let mut folders = BTreeSet::new();
        for (index, segment) in rows.iter().enumerate() {
            folders.insert(self.inner().layout.make_folder(stream, new(index))?);
            let layout = &self.inner().layout;
            link(
                &layout.segment(stream, segment.info.number),
                &layout.segment(stream, new(index)),
            )?;
        }
        for folder in &folders {
            files::sync_folder(folder)?;
        }
        self.change_live(stream, |c, row| {
            // The janitor may have taken some meanwhile.
            let still = renumber::to_move(c, row.id, &plan, BATCH)?;
            for (index, segment) in rows.iter().enumerate() {
                let there = |other: &&segments::SegmentRow| other.info == segment.info;
                if still.iter().any(|other| there(&other)) {
                    renumber::move_rows(c, row.id, &plan, segment, new(index))?;
                }
            }
            let next = new(rows.len());
            Ok(renumber::put_plan(c, row.id, &Plan { next, ..plan })?)
        })?;
        for (index, segment) in rows.iter().enumerate() {
            let layout = &self.inner().layout;
            files::remove(&layout.segment(stream, segment.info.number))?;
            match self.segment(stream, new(index))? {
                Some(info) => self.write_journal(stream, &info),
                None => files::remove(&layout.segment(stream, new(index)))?,
            }
        }
        self.publish_again(stream)?;
        if let (Some(from), Some(to)) = (rows.first(), rows.last()) {
            tracing::info!(%stream, from = from.info.number.0, to = to.info.number.0, becomes = plan.next.0, "segments got other numbers: theirs were taken at the hub");
        }
        Ok(Some(plan.first))
    }

    /// Edge: the numbers that wait for others: what is open among them is not to be shipped yet.
    pub fn renumbering(
        &self,
        stream: &StreamName,
    ) -> Result<Option<std::ops::RangeInclusive<SegmentNumber>>> {
        Ok(self
            .plan(stream)?
            .map(|plan| plan.first..=before(plan.base)))
    }

    /// After a start: old names of what a killed program had moved go, and new names of what it had not: those
    /// were links, and would be taken for footage that the catalog does not know.
    pub(crate) fn recover_renumbering(&self, row: &StreamRow) -> Result<()> {
        let found = self.inner().catalog.read(|c| {
            Ok(match renumber::plan(c, row.id)? {
                Some(plan) => {
                    let moved = renumber::moved_within(c, row.id, &plan)?;
                    let to_move = renumber::to_move(c, row.id, &plan, BATCH)?;
                    Some((plan, moved, to_move))
                }
                None => None,
            })
        })?;
        let Some((plan, moved, to_move)) = found else {
            return Ok(());
        };
        for (number, old) in (plan.next.0..).map(SegmentNumber).zip(&to_move) {
            let path = self.inner().layout.segment(&row.name, number);
            if self.row(&row.name, number)?.is_some() || !path.exists() {
                continue;
            }
            let (hasher, _) = files::hash_file(&path)?;
            // Anything else is a segment of its own that was killed before its row was there.
            if files::hash_of(&hasher) == old.info.hash {
                files::remove(&path)?;
            }
        }
        for number in moved
            .into_iter()
            .flat_map(|range| range.start().0..=range.end().0)
        {
            files::remove(
                &self
                    .inner()
                    .layout
                    .segment(&row.name, SegmentNumber(number)),
            )?;
        }
        Ok(())
    }

    /// After a segment was closed: it may be one that waits for another number.
    pub(crate) fn renumber_closed(&self, stream: &StreamName) {
        // One to move it, one to end the plan; what a long backlog needs is the uplink's to do.
        for _ in 0..2 {
            match self.go_on_renumbering(stream) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%stream, %error, "failed to give segments other numbers; tried again later");
                    return;
                }
            }
        }
    }

    fn end_renumbering(&self, row: &StreamRow, plan: &Plan) -> Result<()> {
        if self.inner().options.local_playlists {
            self.rewrite_hour_lists_of(&row.name, plan.base, plan.next)?;
        }
        self.inner()
            .catalog
            .write(|c| Ok(renumber::end_plan(c, row.id)?))?;
        self.tick();
        Ok(())
    }

    /// The live list's text after its entries got other numbers.
    fn publish_again(&self, stream: &StreamName) -> Result<()> {
        self.forget_playlist(stream);
        if self.inner().options.local_playlists {
            let row = self.inner().catalog.read(|c| {
                let row = streams::get(c, stream)?;
                Ok(live::load(c, row.id, self.inner().window())?)
            })?;
            if let Some(row) = row {
                self.write_local_live(stream, &row);
            }
        }
        Ok(())
    }
}

fn before(number: SegmentNumber) -> SegmentNumber {
    SegmentNumber(number.0.saturating_sub(1))
}

/// Commits a plan: from here on no new segment gets a number that the plan needs.
fn begin(
    c: &Connection,
    row: &StreamRow,
    number: SegmentNumber,
    floor: SegmentNumber,
) -> std::result::Result<(), Fault> {
    if renumber::plan(c, row.id)?.is_some() || !at_hub::is_unshipped(c, row.id, number)? {
        return Ok(());
    }
    let looked_to = live::looked_to(c, row.id)?;
    let (listed, all) =
        renumber::count_unconfirmed(c, row.id, number, looked_to.unwrap_or_default())?;
    let base = SegmentNumber(floor.max(row.floor).0.saturating_add(ROOM));
    let last = base.0.saturating_add(all).saturating_add(ROOM);
    let plan = Plan {
        first: number,
        base,
        next: base,
    };
    renumber::put_plan(c, row.id, &plan)?;
    streams::raise_floor(c, row.id, SegmentNumber(last))?;
    if listed > 0 && looked_to.is_some_and(|to| to >= number) {
        let last_listed = SegmentNumber(base.0 + listed - 1);
        renumber::shift_live_list(c, row.id, last_listed)?;
    }
    tracing::warn!(stream = %row.name, number = number.0, segments = all, becomes = base.0, "this box's numbers are another's at the hub (a restored image, a stream that was moved, or a second box with this identity): what the hub has not confirmed gets others");
    Ok(())
}

/// A second name for a file's bytes; a copy where the file system knows no second names.
fn link(old: &Path, new: &Path) -> Result<()> {
    // What is there was left by a kill: no row knows it.
    files::remove(new)?;
    match fs::hard_link(old, new) {
        Ok(()) => Ok(()),
        // The row is here, the file is not: the next read of it will say so.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => {
            fs::copy(old, new).at(new)?;
            fs::File::open(new).and_then(|file| file.sync_all()).at(new)
        }
    }
}

#[cfg(test)]
impl Store {
    /// Every number of the stream that has a row, for tests.
    pub(crate) fn numbers_here(&self, stream: &StreamName) -> Vec<u64> {
        let all = self.list(stream, SegmentNumber(0), 1_000).unwrap();
        all.iter().map(|info| info.number.0).collect()
    }
}
