//! A track's samples in order, out of the run-length tables of its index: one step at a time, in constant
//! memory beside the tables, and without trusting them to agree.

use std::sync::Arc;

use shiguredo_mp4::{
    Either,
    boxes::{CttsEntry, StblBox, StscEntry, StszBox, SttsEntry},
};

/// Most samples of a track: a year of sound. Tables that repeat one size can claim any number.
const MAX_SAMPLES: u32 = 1 << 27;

/// Where a sample is and when, in the track's time scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Counted from 0.
    pub(super) index: u32,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) decoding: u64,
    /// Presentation minus decoding.
    pub(super) composition: i64,
    pub(super) duration: u32,
    /// The index says that decoding can begin here; None if it says so of no sample in particular.
    pub(super) sync: Option<bool>,
    /// Which sample description, from 0.
    pub(super) description: u32,
}

/// Tables that don't agree. Whoever wrote the file is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the index names {named} samples but says where and when only of {placed}")]
pub(super) struct TableFault {
    pub(super) named: u32,
    pub(super) placed: u32,
}

/// The tables, shared by the cursors over them.
#[derive(Debug)]
struct Tables {
    deltas: Vec<SttsEntry>,
    compositions: Vec<CttsEntry>,
    chunks: Vec<StscEntry>,
    sizes: StszBox,
    offsets: Either<Vec<u32>, Vec<u64>>,
    /// None if every sample is one.
    sync: Option<Vec<u32>>,
}

/// A place in a track's samples.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    tables: Arc<Tables>,
    next: u32,
    decoding: u64,
    /// Entry and samples taken of it.
    delta: (usize, u32),
    composition: (usize, u32),
    /// The chunk being read, from 0; samples left in it; the next one's offset.
    chunk: usize,
    left_in_chunk: u32,
    offset: u64,
    chunk_entry: usize,
    sync: usize,
}

impl Cursor {
    pub(super) fn new(stbl: StblBox) -> Self {
        let tables = Tables {
            deltas: stbl.stts_box.entries,
            compositions: stbl.ctts_box.map(|b| b.entries).unwrap_or_default(),
            chunks: stbl.stsc_box.entries,
            sizes: stbl.stsz_box,
            offsets: match stbl.stco_or_co64_box {
                Either::A(b) => Either::A(b.chunk_offsets),
                Either::B(b) => Either::B(b.chunk_offsets),
            },
            sync: stbl
                .stss_box
                .map(|b| b.sample_numbers.into_iter().map(u32::from).collect()),
        };
        Self {
            tables: Arc::new(tables),
            next: 0,
            decoding: 0,
            delta: (0, 0),
            composition: (0, 0),
            chunk: 0,
            left_in_chunk: 0,
            offset: 0,
            chunk_entry: 0,
            sync: 0,
        }
    }

    /// How many samples the index names.
    pub(super) fn named(&self) -> u32 {
        let named = match &self.tables.sizes {
            StszBox::Fixed { sample_count, .. } => *sample_count,
            StszBox::Variable { entry_sizes } => entry_sizes.len().try_into().unwrap_or(u32::MAX),
        };
        named.min(MAX_SAMPLES)
    }

    /// The least that any sample's presentation comes after its decoding; negative in files that say when
    /// each picture is shown without regard to decoding.
    pub(super) fn least_composition(&self) -> i64 {
        let offsets = self.tables.compositions.iter().map(|e| e.sample_offset);
        offsets.min().unwrap_or(0)
    }

    /// The next sample; None behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Sample>, TableFault> {
        if self.next >= self.named() {
            return Ok(None);
        }
        let fault = TableFault {
            named: self.named(),
            placed: self.next,
        };
        let size = match &self.tables.sizes {
            StszBox::Fixed { sample_size, .. } => sample_size.get(),
            StszBox::Variable { entry_sizes } => {
                *entry_sizes.get(self.next as usize).ok_or(fault)?
            }
        };
        let duration = self.step_delta().ok_or(fault)?;
        let description = self.step_chunk().ok_or(fault)?;
        let sample = Sample {
            index: self.next,
            offset: self.offset,
            size,
            decoding: self.decoding,
            composition: self.step_composition(),
            duration,
            sync: self.step_sync(),
            description,
        };
        self.next += 1;
        self.left_in_chunk -= 1;
        self.offset = self.offset.saturating_add(size.into());
        self.decoding = self.decoding.saturating_add(duration.into());
        Ok(Some(sample))
    }

    fn step_delta(&mut self) -> Option<u32> {
        let (entry, taken) = &mut self.delta;
        loop {
            let run = self.tables.deltas.get(*entry)?;
            if *taken < run.sample_count {
                *taken += 1;
                return Some(run.sample_delta);
            }
            (*entry, *taken) = (*entry + 1, 0);
        }
    }

    fn step_composition(&mut self) -> i64 {
        let (entry, taken) = &mut self.composition;
        loop {
            let Some(run) = self.tables.compositions.get(*entry) else {
                return 0;
            };
            if *taken < run.sample_count {
                *taken += 1;
                return run.sample_offset;
            }
            (*entry, *taken) = (*entry + 1, 0);
        }
    }

    /// Goes to a chunk that has samples left; the description of its samples.
    fn step_chunk(&mut self) -> Option<u32> {
        while self.left_in_chunk == 0 {
            self.offset = match &self.tables.offsets {
                Either::A(offsets) => (*offsets.get(self.chunk)?).into(),
                Either::B(offsets) => *offsets.get(self.chunk)?,
            };
            self.chunk += 1;
            let number = self.chunk as u64;
            let later = self.tables.chunks.get(self.chunk_entry + 1);
            if later.is_some_and(|e| u64::from(e.first_chunk.get()) <= number) {
                self.chunk_entry += 1;
            }
            self.left_in_chunk = self.tables.chunks.get(self.chunk_entry)?.sample_per_chunk;
        }
        let entry = self.tables.chunks.get(self.chunk_entry)?;
        Some(entry.sample_description_index.get() - 1)
    }

    fn step_sync(&mut self) -> Option<bool> {
        let numbers = self.tables.sync.as_ref()?;
        let number = self.next + 1;
        while numbers.get(self.sync).is_some_and(|&n| n < number) {
            self.sync += 1;
        }
        Some(numbers.get(self.sync) == Some(&number))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn cursor(sizes: StszBox, deltas: &[(u32, u32)], offsets: Vec<u64>) -> Cursor {
        let nz = |n| NonZeroU32::new(n).unwrap();
        let entry = |first, count, description| StscEntry {
            first_chunk: nz(first),
            sample_per_chunk: count,
            sample_description_index: nz(description),
        };
        let tables = Tables {
            deltas: deltas
                .iter()
                .map(|&(sample_count, sample_delta)| SttsEntry {
                    sample_count,
                    sample_delta,
                })
                .collect(),
            compositions: vec![
                CttsEntry {
                    sample_count: 1,
                    sample_offset: 20,
                },
                CttsEntry {
                    sample_count: 1,
                    sample_offset: -5,
                },
            ],
            chunks: vec![entry(1, 2, 1), entry(2, 0, 1), entry(3, 1, 2)],
            sizes,
            offsets: Either::B(offsets),
            sync: Some(vec![1, 3]),
        };
        Cursor {
            tables: Arc::new(tables),
            next: 0,
            decoding: 0,
            delta: (0, 0),
            composition: (0, 0),
            chunk: 0,
            left_in_chunk: 0,
            offset: 0,
            chunk_entry: 0,
            sync: 0,
        }
    }

    fn sizes(sizes: &[u32]) -> StszBox {
        StszBox::Variable {
            entry_sizes: sizes.to_vec(),
        }
    }

    #[test]
    fn walks_the_runs() {
        let mut cursor = cursor(
            sizes(&[5, 6, 7, 8]),
            &[(1, 10), (0, 99), (3, 20)],
            vec![100, 200, 300, 400],
        );
        assert_eq!((cursor.named(), cursor.least_composition()), (4, -5));
        let mut seen = Vec::new();
        while let Some(s) = cursor.next().unwrap() {
            seen.push((
                s.offset,
                s.size,
                s.decoding,
                s.composition,
                s.duration,
                s.sync,
                s.description,
            ));
        }
        assert_eq!(
            seen,
            [
                (100, 5, 0, 20, 10, Some(true), 0),
                (105, 6, 10, -5, 20, Some(false), 0),
                (300, 7, 30, 0, 20, Some(true), 1),
                (400, 8, 50, 0, 20, Some(false), 1),
            ]
        );
    }

    #[test]
    fn tables_that_disagree_end_where_they_do() {
        for (deltas, offsets) in [
            (&[(3, 10)][..], vec![1, 2, 3, 4]),
            (&[(9, 10)], vec![1, 2, 3]),
        ] {
            let mut cursor = cursor(sizes(&[5, 6, 7, 8]), deltas, offsets);
            for _ in 0..3 {
                assert!(cursor.next().unwrap().is_some());
            }
            let fault = TableFault {
                named: 4,
                placed: 3,
            };
            assert_eq!(cursor.next(), Err(fault));
            assert_eq!(cursor.next(), Err(fault));
        }
    }

    #[test]
    fn claims_are_bounded() {
        let all = StszBox::Fixed {
            sample_size: NonZeroU32::MAX,
            sample_count: u32::MAX,
        };
        let mut cursor = cursor(all, &[(u32::MAX, u32::MAX); 3], vec![u64::MAX; 9]);
        assert_eq!(cursor.named(), MAX_SAMPLES);
        assert_eq!(cursor.next().unwrap().unwrap().offset, u64::MAX);
        assert_eq!(cursor.next().unwrap().unwrap().offset, u64::MAX);
    }
}
