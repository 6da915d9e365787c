//! What the link asks and tells: what is settled here, announced, lost; what the hub has of ours.

use std::ops::RangeInclusive;

use model::{HoleReason, RangeSet, SegmentInfo, SegmentNumber, StreamName, WallTime};

use crate::{
    Announced, Comparison, HeldPage, Store,
    catalog::{
        at_hub, holes, live,
        segments::{self, State},
        streams,
    },
    error::{Result, StoreError},
    files,
    store::{ALL, wall_now},
};

/// Most segments of a stream that a hub knows of and lacks: nine hours of two-second segments, far above what
/// an edge announces ahead of shipping.
pub const MAX_ANNOUNCED_ROWS: u64 = 16_384;

/// What a hub knows of and lacks; what an edge has and its hub lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    pub segments: u64,
    /// As announced: what is here of a segment already counts too.
    pub bytes: u64,
    /// When the oldest of them begins.
    pub oldest: Option<WallTime>,
}

impl Backlog {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            segments: self.segments.saturating_add(other.segments),
            bytes: self.bytes.saturating_add(other.bytes),
            oldest: self.oldest.into_iter().chain(other.oldest).min(),
        }
    }
}

/// Segments tried on each side to tell a bad file from a bad disk.
const NEIGHBOURS: usize = 3;

impl Store {
    /// Ranges of numbers that can no longer change here: here, or tombstoned.
    pub fn settled(&self, stream: &StreamName) -> Result<RangeSet> {
        self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(holes::settled(c, row.id, &ALL)?)
        })
    }

    /// Hub: segments the edge has and will ship, in ascending order. Those whose numbers are used here are
    /// compared; the rest is waited for. At most [`MAX_ANNOUNCED_ROWS`] are waited for at once.
    pub fn announce(&self, stream: &StreamName, announced: &[Announced]) -> Result<Comparison> {
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            let waiting = segments::count_not_here(c, row.id, MAX_ANNOUNCED_ROWS)?;
            let mut room = MAX_ANNOUNCED_ROWS - waiting;
            let mut found = Comparison::default();
            for Announced { info } in announced {
                let number = info.number;
                let known = segments::find(c, row.id, number)?;
                match &known {
                    Some(known) if known.state == State::Here => {
                        let same = (known.info.bytes, known.info.hash) == (info.bytes, info.hash);
                        if same {
                            found.stored.push(number);
                        } else {
                            found.collides = found.collides.or(Some(number));
                        }
                        continue;
                    }
                    // It comes under another number.
                    _ if found.collides.is_some() => continue,
                    Some(_) => {}
                    None => {
                        if let Some(reason) = holes::tombstone_at(c, row.id, number)? {
                            found.holes.push((number, reason));
                            continue;
                        }
                        room = room
                            .checked_sub(1)
                            .ok_or_else(|| StoreError::TooManyAnnounced {
                                stream: stream.clone(),
                                limit: MAX_ANNOUNCED_ROWS,
                            })?;
                    }
                }
                segments::announce(c, row.id, info)?;
                streams::raise_floor(c, row.id, number)?;
            }
            Ok(found)
        })
    }

    /// Hub: what the edge has announced and this store lacks.
    pub fn backlog(&self, stream: &StreamName) -> Result<Backlog> {
        self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let (segments, bytes, oldest) = segments::count_announced(c, row.id)?;
            Ok(Backlog {
                segments,
                bytes,
                oldest,
            })
        })
    }

    /// Hub: of what was announced or begun within some numbers the edge has only `held` still: the rest is
    /// settled as lost, but for what is being written now. How many.
    pub fn keep_only(
        &self,
        stream: &StreamName,
        within: &RangeInclusive<SegmentNumber>,
        held: &RangeSet,
    ) -> Result<u64> {
        let gone = self.change_live(stream, |c, row| {
            let mut gone = segments::list_not_here(c, row.id)?;
            gone.retain(|row| {
                let number = row.info.number;
                within.contains(&number)
                    && !held.contains(number)
                    && !self.has_writer(stream, number)
            });
            for lost in &gone {
                let number = lost.info.number;
                holes::bury(c, row.id, &(number..=number), HoleReason::Lost)?;
            }
            Ok(gone)
        })?;
        for row in gone.iter().filter(|row| row.state == State::Open) {
            files::remove(&self.inner().layout.partial(stream, row.info.number))?;
        }
        Ok(gone.len() as u64)
    }

    /// Hub: why a number is settled without being here, if it is.
    pub fn hole(&self, stream: &StreamName, number: SegmentNumber) -> Result<Option<HoleReason>> {
        self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(holes::tombstone_at(c, row.id, number)?)
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
            for here in holes::settled(c, row.id, &range)?.iter() {
                missing.remove_range(here);
            }
            let partials = segments::list_open(c, row.id, &range)?;
            // What was here, was found damaged and can't be had again, is lost to that, whatever the edge says.
            for number in segments::lost_in(c, row.id, &range)? {
                holes::bury(c, row.id, &(number..=number), HoleReason::Corrupt)?;
                missing.remove_range(number..=number);
            }
            for range in missing.iter() {
                holes::bury(c, row.id, &range, reason)?;
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

    /// Edge: takes over what is settled at the hub: what it had and does not know any more is to be shipped
    /// again. That a number is settled there does not say that the segment of this number here is stored.
    pub fn set_settled(&self, stream: &StreamName, settled: &RangeSet) -> Result<()> {
        self.inner()
            .tier
            .settle(|state| state.set_settled(stream, settled));
        // As a rule there is nothing to change, and a disk that hangs holds up its writers only.
        let takes_back = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(at_hub::any_settled_outside(c, row.id, settled)?)
        });
        let set = match takes_back {
            Ok(false) => Ok(()),
            _ => self.inner().catalog.write(|c| {
                let row = streams::get(c, stream)?;
                Ok(at_hub::set_stored(c, row.id, settled)?)
            }),
        };
        self.tick();
        match set {
            Err(StoreError::NoSuchStream(_)) if self.in_tier(stream, |_| ()).is_some() => Ok(()),
            set => set,
        }
    }

    /// Edge: the hub said `Stored` (or settled) for one segment. Kept in memory until a commit takes it along:
    /// lost in a crash, comparing with the hub finds it again.
    pub fn mark_stored(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        let held = self.inner().tier.settle(|state| state.mark(stream, number));
        tracing::debug!(%stream, number = number.0, "segment stored on the hub");
        if !held {
            // Told twice, it must not count twice.
            let bytes = self.inner().catalog.read(|c| {
                let row = streams::get(c, stream)?;
                Ok(at_hub::lacking_bytes(c, row.id, number)?)
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
                    at_hub::mark_stored(c, row.id, number)?;
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

    /// Edge: what the hub has not settled, from `from` on, open or closed, at most `limit` ranges.
    pub fn held(&self, stream: &StreamName, from: SegmentNumber, limit: usize) -> Result<HeldPage> {
        // Memory first: what comes to the disk in between is there twice, never left out.
        let in_memory = self.in_tier(stream, |held| held.numbers(from));
        let read = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(at_hub::held(c, row.id, from, limit)?)
        });
        // Where the catalog can't be read nobody knows what is held: the hub is not to settle anything.
        let (ranges, mut next) = match read {
            Err(StoreError::NoSuchStream(_)) if in_memory.is_some() => Default::default(),
            read => read?,
        };
        let mut held: RangeSet = ranges.into_iter().collect();
        let page_ends = next;
        for number in in_memory.unwrap_or_default() {
            if page_ends.is_none_or(|end| number < end) {
                held.insert(number);
            }
        }
        let mut ranges: Vec<_> = held.iter().collect();
        if let Some(first_left_out) = ranges.get(limit) {
            next = Some(*first_left_out.start());
            ranges.truncate(limit);
        }
        Ok(HeldPage { ranges, next })
    }

    /// Edge: how many segments here the hub settled without having them, by reason.
    pub fn given_up(&self, stream: &StreamName) -> Result<Vec<(HoleReason, u64)>> {
        let read = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(at_hub::count_given_up(c, row.id)?)
        });
        self.or_in_memory(stream, read)
    }

    /// Edge: a closed segment that could not be read again and again becomes a hole (*corrupt*). False: it can
    /// be read, or no other can either, which is the disk's fault and not this file's.
    pub fn bury_unreadable(&self, stream: &StreamName, number: SegmentNumber) -> Result<bool> {
        let Some(info) = self.segment(stream, number)? else {
            return Ok(false);
        };
        let path = self.inner().layout.segment(stream, number);
        let why = match files::hash_file(&path) {
            Ok((_, bytes)) if bytes == info.bytes => return Ok(false),
            Ok((_, bytes)) => format!("it has {bytes} bytes of {}", info.bytes),
            Err(error) => error.to_string(),
        };
        let others: Vec<_> = self
            .list(stream, SegmentNumber(0), NEIGHBOURS)?
            .into_iter()
            .chain(self.list(stream, number.next(), NEIGHBOURS)?)
            .filter(|other| other.number != number)
            .collect();
        let readable = |other: &SegmentInfo| {
            let bytes = self.read(stream, other.number, 0..1);
            bytes.is_ok_and(|bytes| !bytes.is_empty())
        };
        if !others.is_empty() && !others.iter().any(readable) {
            tracing::error!(%stream, number = number.0, path = %path.display(), %why, "failed to read a segment, nor can its neighbours be read: is the disk well?");
            return Ok(false);
        }
        self.change_live(stream, |c, row| {
            Ok(holes::bury(
                c,
                row.id,
                &(number..=number),
                HoleReason::Corrupt,
            )?)
        })?;
        tracing::error!(%stream, number = number.0, path = %path.display(), %why, "a segment can't be read: it becomes a hole");
        Ok(true)
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
            Ok(at_hub::list_unshipped(
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

    /// Edge: the newest closed segments that the hub has not settled, ascending, at most `limit`.
    pub fn newest_unshipped(&self, stream: &StreamName, limit: usize) -> Result<Vec<SegmentInfo>> {
        // Memory first, as above.
        let (held, marks) = self
            .in_tier(stream, |held| {
                let marks: Vec<_> = held.marks.keys().copied().collect();
                (held.unshipped(SegmentNumber(0)).collect::<Vec<_>>(), marks)
            })
            .unwrap_or_default();
        let rows = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let limit = limit.saturating_add(marks.len());
            Ok(at_hub::list_newest_unshipped(c, row.id, limit)?)
        });
        let rows = self.or_in_memory(stream, rows)?;
        let mut all: Vec<SegmentInfo> = rows.into_iter().map(|row| row.info).collect();
        all.retain(|info| marks.binary_search(&info.number).is_err());
        all.extend(held);
        all.sort_by_key(|info| info.number);
        all.dedup_by_key(|info| info.number);
        Ok(all.split_off(all.len().saturating_sub(limit)))
    }

    /// Whether what is recorded of the stream is live, or was when it last was since the store was opened: an
    /// edge's sources record through memory; whoever writes segments itself does so as they come.
    pub fn is_live_source(&self, stream: &StreamName) -> bool {
        let newest = self.in_tier(stream, |held| {
            held.runs
                .last_key_value()
                .map(|(_, (_, source))| source.is_live())
        });
        let is_open = || self.look_at(stream, |memory| !memory.open.is_empty());
        newest.flatten().or_else(is_open).unwrap_or(false)
    }

    /// Hub: what begins with this number is live now: the live list waits for nothing before it any more. What
    /// is missing there becomes EXT-X-GAP once this segment is here, and heals recordings when it comes.
    pub fn go_on_live_at(&self, stream: &StreamName, number: SegmentNumber) -> Result<()> {
        let waits = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let next = segments::next_after(c, row.id, live::looked_to(c, row.id)?)?;
            Ok(next.is_some_and(|next| next.info.number < number))
        })?;
        if let Some(to) = number.0.checked_sub(1).filter(|_| waits) {
            let (window, now) = (self.inner().window(), wall_now());
            self.change_live(stream, |c, row| {
                crate::live::step_over(c, row, window, now, SegmentNumber(to))
            })?;
            tracing::debug!(%stream, number = number.0, "live goes on at this segment: what is missing before it comes later");
        }
        Ok(())
    }

    /// Edge: number ranges that can't be shipped (any more), with their reasons: also what expired here after
    /// it was stored, since the hub may have lost it.
    pub fn gone(
        &self,
        stream: &StreamName,
    ) -> Result<Vec<(RangeInclusive<SegmentNumber>, HoleReason)>> {
        let dropped = self.in_tier(stream, |held| held.dropped.clone());
        let all = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(holes::tombstones(c, row.id)?)
        });
        let mut all = self.or_in_memory(stream, all)?;
        all.extend(dropped.unwrap_or_default());
        Ok(all)
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
