//! Scrubbing: reads segments again and compares their hashes, so that a disk that forgets is found out while
//! another end may still have the bytes.
//!
//! In the order of the ledger, from the one that was checked longest ago, round and round; the caller keeps to
//! a rate. A damaged file is set aside (`orphans/{stream}/{number}.ts.corrupt`). On a hub the segment is asked
//! for again: it counts as announced, the next comparison with its edge lacks it, and the edge ships it again
//! or says that it can't. On an edge it becomes a hole (*corrupt*), which the hub hears of if it lacks it.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use model::{HoleReason, SegmentInfo, StreamName, WallTime};

use crate::{
    Store,
    catalog::{
        holes,
        segments::{self, ToScrub},
        streams,
    },
    error::{AtPath, Result},
    files,
    orphans::Aside,
    store::wall_now,
};

/// Segments looked up and marked in one go: one commit, and so one fsync, for all of them.
const BATCH: usize = 64;
/// A batch ends after so many bytes: the caller paces by batches.
const BATCH_BYTES: u64 = 8 << 20;
/// So many damaged ones in a batch without a sound one are no flipped bits: the disk has gone, and may be back.
const SUSPICIOUS: usize = 8;

/// What one batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    pub segments: u64,
    pub bytes: u64,
    /// Damaged, unreadable or gone.
    pub corrupt: u64,
    /// The end of the ledger was reached: the next batch begins at its start.
    pub round: bool,
}

/// What scrubbing did since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubTotals {
    pub segments: u64,
    pub bytes: u64,
    pub corrupt: u64,
    /// How often a segment that was here was given up or asked for again, at start-up or by scrubbing.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct ScrubCounts {
    segments: AtomicU64,
    bytes: AtomicU64,
    corrupt: AtomicU64,
    lost: AtomicU64,
}

impl Store {
    /// Reads the next segments whose file was hashed `every` ago or longer: some megabytes of them.
    pub fn scrub(&self, every: Duration) -> Result<Scrubbed> {
        let now = wall_now();
        let due = WallTime(
            now.0
                .saturating_sub(i64::try_from(every.as_millis()).unwrap_or(i64::MAX)),
        );
        let above = match self.with_upkeep(|upkeep| upkeep.scrub_above) {
            Some(above) => above,
            None => self
                .inner()
                .catalog
                .read(|c| Ok(segments::before_longest_unchecked(c)?))?
                .unwrap_or(START),
        };
        let (batch, names) = self
            .inner()
            .catalog
            .read(|c| Ok((segments::to_scrub(c, above, BATCH)?, streams::all(c)?)))?;
        let mut done = Scrubbed {
            round: batch.len() < BATCH,
            ..Scrubbed::default()
        };
        let mut good: Vec<&ToScrub> = Vec::new();
        let mut bad: Vec<(&StreamName, &SegmentInfo, String)> = Vec::new();
        let mut reached = above;
        for row in &batch {
            if done.bytes >= BATCH_BYTES {
                done.round = false;
                break;
            }
            reached = (row.stream, segments::sql(row.info.number));
            // A clock that went back leaves times to come: those are due.
            if row.checked > due && row.checked <= now {
                continue;
            }
            let Some(name) = names.iter().find(|stream| stream.id == row.stream) else {
                continue;
            };
            done.segments += 1;
            done.bytes += row.info.bytes;
            match self.look(&name.name, &row.info) {
                None => good.push(row),
                Some(what) => bad.push((&name.name, &row.info, what)),
            }
        }
        if good.is_empty() && bad.len() >= SUSPICIOUS {
            let what = format!(
                "{} segments in a row are damaged or gone, and none is sound: is the disk there?",
                bad.len()
            );
            let path = self.inner().data_dir.join("segments");
            return Err(io::Error::other(what)).at(&path);
        }
        for (stream, info, what) in bad {
            // Retention may have come in between.
            if self.segment(stream, info.number)?.as_ref() == Some(info) {
                let path = self.inner().layout.segment(stream, info.number);
                self.lose(stream, info, &what, &path)?;
                done.corrupt += 1;
            }
        }
        if !good.is_empty() {
            self.inner().catalog.write(|c| {
                for row in &good {
                    segments::set_checked(c, row.stream, row.info.number, now)?;
                }
                Ok(())
            })?;
        }
        let next = if done.round { START } else { reached };
        self.with_upkeep(|upkeep| upkeep.scrub_above = Some(next));
        let counts = &self.inner().scrubbed;
        counts.segments.fetch_add(done.segments, Relaxed);
        counts.bytes.fetch_add(done.bytes, Relaxed);
        counts.corrupt.fetch_add(done.corrupt, Relaxed);
        Ok(done)
    }

    /// What scrubbing did since the start.
    pub fn scrub_totals(&self) -> ScrubTotals {
        let counts = &self.inner().scrubbed;
        ScrubTotals {
            segments: counts.segments.load(Relaxed),
            bytes: counts.bytes.load(Relaxed),
            corrupt: counts.corrupt.load(Relaxed),
            lost: counts.lost.load(Relaxed),
        }
    }

    /// What is wrong with a segment's file; None: it holds its bytes.
    fn look(&self, stream: &StreamName, info: &SegmentInfo) -> Option<String> {
        let path = self.inner().layout.segment(stream, info.number);
        match files::hash_file_uncached(&path) {
            Ok((hasher, bytes)) if (bytes, files::hash_of(&hasher)) == (info.bytes, info.hash) => {
                None
            }
            Ok(_) => Some("its bytes are not those that were stored".to_owned()),
            Err(error) => Some(format!("its file can't be read: {error}")),
        }
    }

    /// A segment whose bytes are not to be had from this disk any more.
    pub(crate) fn lose(
        &self,
        stream: &StreamName,
        info: &SegmentInfo,
        what: &str,
        path: &Path,
    ) -> Result<()> {
        let edge = self.inner().options.local_playlists;
        let now = wall_now();
        self.inner().catalog.write(|c| {
            let row = streams::get(c, stream)?;
            if edge {
                holes::bury(c, row.id, &(info.number..=info.number), HoleReason::Corrupt)?;
            } else {
                segments::lose(c, row.id, info, now)?;
            }
            Ok(())
        })?;
        // Row first: what is set aside must not be listed as here. What can't even be moved stays where it is.
        let aside = self
            .set_aside(stream, info.number, path, Aside::Corrupt)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to set a damaged file aside");
                None
            });
        let then = if edge {
            "it is a hole now"
        } else {
            "the edge is asked for it again"
        };
        tracing::error!(
            %stream, number = info.number.0, path = %path.display(),
            aside = aside.map(|aside| aside.display().to_string()),
            "a segment is damaged: {what}; {then}"
        );
        self.inner().scrubbed.lost.fetch_add(1, Relaxed);
        self.tick();
        Ok(())
    }
}

/// Before the first segment of the first stream.
const START: (i64, i64) = (0, -1);
