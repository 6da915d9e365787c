//! Reading MP4 files by asking for byte ranges: no I/O here, and constant memory beside the index.
//!
//! The loop: [`Mp4Reader::poll`] until it says `End`; on `Read`, read and answer with
//! [`Mp4Reader::handle_read`]. Samples come in the order of decoding over all tracks, wherever they lie in
//! the file. Invariants 5 and 7 hold here: what the index claims is checked sample by sample, and what is
//! wrong with one is told and stepped over.

mod boxes;
mod fragments;
mod index;
mod samples;
mod track;
mod windows;

use std::collections::VecDeque;

use bytes::Bytes;
use model::MediaDuration;

use self::{
    boxes::{Header, MAX_HEADER_BYTES, body, boxes, find},
    fragments::TrackDefaults,
    index::Index,
    samples::{Cursor, Sample},
    track::{MAX_SAMPLE_BYTES, TrackReader},
    windows::{READ_BYTES, Windows},
};
use crate::{
    access_unit::{SourceEvent, Track},
    timeline::MAX_STEP_FORWARD,
    warnings::{Fault, Warnings},
};

/// Longest index: a day of video at 60 pictures a second has 80 MB, unfolded about twice that.
const MAX_INDEX_BYTES: u64 = 128 << 20;

/// Longest `moof` box.
const MAX_FRAGMENT_INDEX_BYTES: u64 = 16 << 20;

/// Most boxes that are passed over on the way to the index: a file has a handful.
const MAX_BOXES_BEFORE_INDEX: u32 = 10_000;

/// What the reader wants or has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mp4Poll {
    /// Read `len` bytes at `offset` and hand them to [`Mp4Reader::handle_read`]; fewer mean that the file
    /// ends there.
    Read {
        offset: u64,
        len: usize,
    },
    /// The index has been read. Comes once, before the first event.
    Ready(Mp4Info),
    Event(SourceEvent),
    /// Nothing more will come.
    End,
}

/// What the index says of the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mp4Info {
    /// The carried tracks, as far as they are known before the first sample.
    pub tracks: Vec<Track>,
    /// The longest track's duration; zero if it is not known (a fragmented file).
    pub duration: MediaDuration,
    /// The longest distance between key frames (or from the last to the end), by the index; None without
    /// video or if it is not known.
    pub longest_key_distance: Option<MediaDuration>,
    /// Bytes of all carried samples, for progress; zero if it is not known.
    pub media_bytes: u64,
}

/// Why a file can't be read at all. The file, or whoever chose it, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mp4Error {
    #[error("the file is empty")]
    Empty,
    #[error("not an MP4 file: no box begins at offset {offset}")]
    NotMp4 { offset: u64 },
    #[error(
        "the file has no index (moov): it ends at {file_size}, and the box {kind:?} at {offset} should go on to {end}. It was cut short or never closed; copy it again, or record with fragments (ffmpeg -movflags +frag_keyframe)"
    )]
    CutShort {
        kind: String,
        offset: u64,
        end: u64,
        file_size: u64,
    },
    #[error(
        "the file has no index (moov) in its {file_size} bytes: it was never closed; record with fragments (ffmpeg -movflags +frag_keyframe)"
    )]
    NoIndex { file_size: u64 },
    #[error(
        "the index at {offset} has {size} bytes, more than the {MAX_INDEX_BYTES} that are read"
    )]
    IndexTooLong { offset: u64, size: u64 },
    #[error("no track can be carried: {why}")]
    NoTracks { why: String },
}

/// An MP4 file being read.
#[derive(Debug)]
pub struct Mp4Reader {
    file_size: u64,
    phase: Phase,
    /// The read that was asked for last, until it is answered.
    asked: Option<(u64, usize)>,
    answer: Option<Bytes>,
    /// What comes before anything else.
    events: VecDeque<SourceEvent>,
    /// Samples that had to be left out unread.
    left_out: u64,
    warnings: Warnings,
}

#[derive(Debug)]
enum Phase {
    /// Going from box to box for the index.
    Seeking {
        at: u64,
        boxes: u32,
    },
    /// Reading the index.
    Index {
        at: u64,
        len: usize,
    },
    Samples(Box<Movie>),
    Ended,
    Failed(Mp4Error),
}

/// The media of a file whose index has been read.
#[derive(Debug)]
struct Movie {
    tracks: Vec<MovieTrack>,
    windows: Windows,
    /// What the last event said; None before the first.
    announced: Option<Vec<Track>>,
    /// The newest decoding time.
    newest: Option<i64>,
    /// Bytes of samples so far: more than the file has means that it repeats itself.
    given_bytes: u64,
    /// Where the next box is, in a fragmented file.
    fragments: Option<u64>,
}

#[derive(Debug)]
struct MovieTrack {
    number: u32,
    reader: TrackReader,
    source: Samples,
    /// The next sample, with its decoding time.
    next: Option<(i64, Sample)>,
}

/// Where a track's samples come from.
#[derive(Debug)]
enum Samples {
    Index(Cursor),
    Fragments {
        defaults: TrackDefaults,
        /// Of one fragment.
        samples: VecDeque<Sample>,
    },
}

impl Mp4Reader {
    pub fn new(file_size: u64) -> Self {
        Self {
            file_size,
            phase: Phase::Seeking { at: 0, boxes: 0 },
            asked: None,
            answer: None,
            events: VecDeque::new(),
            left_out: 0,
            warnings: Warnings::default(),
        }
    }

    /// The next thing to do or to take; an error is final.
    pub fn poll(&mut self) -> Result<Mp4Poll, Mp4Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Mp4Poll::Event(event));
            }
            if let Some((offset, len)) = self.asked
                && self.answer.is_none()
            {
                return Ok(Mp4Poll::Read { offset, len });
            }
            let step = match &self.phase {
                Phase::Seeking { at, boxes } => {
                    let (at, boxes) = (*at, *boxes);
                    self.seek(at, boxes)
                }
                Phase::Index { at, len } => {
                    let (at, len) = (*at, *len);
                    self.index(at, len)
                }
                Phase::Samples(_) => {
                    self.sample();
                    Ok(None)
                }
                Phase::Ended => return Ok(Mp4Poll::End),
                Phase::Failed(error) => return Err(error.clone()),
            };
            match step {
                Ok(None) => {}
                Ok(Some(poll)) => return Ok(poll),
                Err(error) => self.phase = Phase::Failed(error),
            }
        }
    }

    /// The answer to the last `Read`; any other is ignored.
    pub fn handle_read(&mut self, offset: u64, data: Bytes) {
        let Some((wanted, len)) = self.asked.filter(|&(wanted, _)| wanted == offset) else {
            return;
        };
        if data.len() < len {
            // The file is shorter than it was said to be.
            self.file_size = self.file_size.min(wanted.saturating_add(data.len() as u64));
        }
        self.answer = Some(data);
    }

    /// The bytes of a range, or None and they are asked for.
    fn read(&mut self, offset: u64, len: usize) -> Option<Bytes> {
        if self.asked == Some((offset, len))
            && let Some(answer) = self.answer.take()
        {
            self.asked = None;
            return Some(answer);
        }
        self.asked = Some((offset, len));
        self.answer = None;
        None
    }

    /// Looks at the box at `at`: is it the index, or where does the next one begin?
    fn seek(&mut self, at: u64, boxes: u32) -> Result<Option<Mp4Poll>, Mp4Error> {
        let left = self.file_size.saturating_sub(at);
        if self.file_size == 0 {
            return Err(Mp4Error::Empty);
        }
        if left == 0 || boxes > MAX_BOXES_BEFORE_INDEX {
            return Err(Mp4Error::NoIndex {
                file_size: self.file_size,
            });
        }
        let Some(bytes) = self.read(at, left.min(MAX_HEADER_BYTES as u64) as usize) else {
            return Ok(None);
        };
        let header = Header::parse(&bytes).ok_or(Mp4Error::NotMp4 { offset: at })?;
        if boxes == 0 && !header.kind.iter().all(u8::is_ascii_graphic) {
            return Err(Mp4Error::NotMp4 { offset: at });
        }
        let size = header.size.unwrap_or(left);
        let end = at.saturating_add(size);
        if end > self.file_size {
            return Err(Mp4Error::CutShort {
                kind: String::from_utf8_lossy(&header.kind).into_owned(),
                offset: at,
                end,
                file_size: self.file_size,
            });
        }
        self.phase = if header.kind != *b"moov" {
            Phase::Seeking {
                at: end,
                boxes: boxes + 1,
            }
        } else if size > MAX_INDEX_BYTES {
            return Err(Mp4Error::IndexTooLong { offset: at, size });
        } else {
            Phase::Index {
                at,
                len: size as usize,
            }
        };
        Ok(None)
    }

    fn index(&mut self, at: u64, len: usize) -> Result<Option<Mp4Poll>, Mp4Error> {
        let Some(moov) = self.read(at, len) else {
            return Ok(None);
        };
        let index = Index::parse(&moov, self.file_size)?;
        for what in index.warnings {
            self.warn(Fault::Track, at, || what);
        }
        let fragments = index.fragmented.then_some(at + len as u64);
        let tracks = index.tracks.into_iter().map(|track| MovieTrack {
            number: track.number,
            reader: track.reader,
            source: match index.fragmented {
                false => Samples::Index(track.samples),
                true => Samples::Fragments {
                    defaults: defaults(&moov, track.number),
                    samples: VecDeque::new(),
                },
            },
            next: None,
        });
        self.phase = Phase::Samples(Box::new(Movie {
            tracks: tracks.collect(),
            windows: Windows::default(),
            announced: None,
            newest: None,
            given_bytes: 0,
            fragments,
        }));
        Ok(Some(Mp4Poll::Ready(index.info)))
    }

    /// One step: gives a sample, asks for its bytes, or ends.
    fn sample(&mut self) {
        let Phase::Samples(mut movie) = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return;
        };
        if self.step(&mut movie) {
            self.phase = Phase::Samples(movie);
        } else if self.left_out > 1 {
            let (offset, count) = (self.file_size, self.left_out);
            self.warn(Fault::Track, offset, || {
                format!("{count} samples were left out in all")
            });
        }
    }

    /// The first sample that can't be read stands for all that follow.
    fn tell_left_out(&mut self, track: u32, sample: &Sample) {
        let (
            Sample {
                index,
                offset,
                size,
                ..
            },
            file_size,
        ) = (*sample, self.file_size);
        self.warn(Fault::Sample, offset, || {
            let why = match size {
                0 => "is empty".to_owned(),
                _ if size > MAX_SAMPLE_BYTES => {
                    format!("is longer than the {MAX_SAMPLE_BYTES} bytes that are taken")
                }
                _ => format!(
                    "is not in the file of {file_size} bytes, which was cut short or has a wrong index"
                ),
            };
            let place = format!("{size} bytes at {offset}");
            format!("sample {index} of track {track} ({place}) {why}: it and others like it are left out")
        });
    }

    /// Whether there is more.
    fn step(&mut self, movie: &mut Movie) -> bool {
        let Some(at) = movie.earliest() else {
            return match movie.fragments {
                Some(offset) => self.fragment(movie, offset),
                None => false,
            };
        };
        let tracks = movie.tracks.len();
        let Some(track) = movie.tracks.get_mut(at) else {
            return false;
        };
        let Some((_, sample)) = track.next else {
            return false;
        };
        let end = sample.offset.saturating_add(sample.size.into());
        if sample.size == 0 || sample.size > MAX_SAMPLE_BYTES || end > self.file_size {
            track.next = None;
            self.left_out += 1;
            if self.left_out == 1 {
                let number = track.number;
                self.tell_left_out(number, &sample);
            }
            return true;
        }
        let len = sample.size as usize;
        let Some(bytes) = movie.windows.get(sample.offset, len) else {
            let left = self.file_size - sample.offset;
            let wanted = left.min(READ_BYTES.max(len) as u64) as usize;
            if let Some(window) = self.read(sample.offset, wanted) {
                movie.windows.add(sample.offset, window, tracks);
            }
            return true;
        };
        track.next = None;
        movie.given_bytes = movie.given_bytes.saturating_add(len as u64);
        if movie.given_bytes > self.file_size {
            self.warn(Fault::Sample, sample.offset, || {
                "the index places samples over each other: what comes now was there before, and is left out"
                    .to_owned()
            });
            return false;
        }
        self.give(movie, at, &sample, &bytes);
        true
    }

    fn give(&mut self, movie: &mut Movie, at: usize, sample: &Sample, bytes: &Bytes) {
        let Some(track) = movie.tracks.get_mut(at) else {
            return;
        };
        let made = track.reader.make(sample, bytes);
        if let Some(fault) = made.fault {
            let number = track.number;
            self.warn(Fault::Frame, sample.offset, || {
                format!("sample {} of track {number}: {fault}", sample.index)
            });
        }
        let Some(unit) = made.unit else { return };
        if made.format.is_some() || movie.announced.is_none() {
            let known = movie.known();
            if movie.announced.as_ref() != Some(&known) {
                self.events.push_back(SourceEvent::Tracks(known.clone()));
                movie.announced = Some(known);
            }
        }
        let jump = movie
            .newest
            .is_some_and(|newest| unit.dts.0 - newest > MAX_STEP_FORWARD.0);
        if jump {
            self.events.push_back(SourceEvent::Discontinuity);
        }
        movie.newest = movie.newest.max(Some(unit.dts.0));
        self.events.push_back(SourceEvent::AccessUnit(unit));
    }

    /// Goes to the next box of a fragmented file; whether there is more.
    fn fragment(&mut self, movie: &mut Movie, offset: u64) -> bool {
        let left = self.file_size.saturating_sub(offset);
        if left < 8 {
            return false;
        }
        // A header first; then, if it is a fragment's index, all of it.
        let pending = self.asked.filter(|&(at, _)| at == offset);
        let len = pending.map_or(left.min(MAX_HEADER_BYTES as u64) as usize, |(_, len)| len);
        let Some(bytes) = self.read(offset, len) else {
            return true;
        };
        let Some(header) = Header::parse(&bytes) else {
            self.warn(Fault::Sample, offset, || {
                "no box begins here: what follows can't be read".to_owned()
            });
            return false;
        };
        let size = header.size.unwrap_or(left);
        movie.fragments = Some(offset.saturating_add(size));
        if header.kind != *b"moof" {
            return true;
        }
        if size > left.min(MAX_FRAGMENT_INDEX_BYTES) {
            self.warn(Fault::Sample, offset, || {
                format!("a fragment's index of {size} bytes is too long or cut short: left out")
            });
            return true;
        }
        if (bytes.len() as u64) < size {
            movie.fragments = Some(offset);
            self.read(offset, size as usize);
            return true;
        }
        let runs = fragments::parse(&bytes, offset, |number| movie.defaults(number));
        match runs {
            Ok(runs) => movie.take(runs),
            Err(why) => self.warn(Fault::Sample, offset, || why),
        }
        true
    }

    fn warn(&mut self, fault: Fault, offset: u64, what: impl FnOnce() -> String) {
        let mut out = Vec::new();
        self.warnings.tell(fault, None, offset, &mut out, what);
        self.events.extend(out);
    }
}

impl Movie {
    /// The track whose next sample is decoded first.
    fn earliest(&mut self) -> Option<usize> {
        for track in &mut self.tracks {
            if track.next.is_none() {
                let sample = match &mut track.source {
                    // Where tables disagree was told when the index was read.
                    Samples::Index(cursor) => cursor.next().ok().flatten(),
                    Samples::Fragments { samples, .. } => samples.pop_front(),
                };
                track.next = sample.map(|s| (track.reader.clock.times(&s).0, s));
            }
        }
        let times = self.tracks.iter().enumerate();
        times
            .filter_map(|(i, t)| Some((t.next.as_ref()?.0, i)))
            .min()
            .map(|(_, i)| i)
    }

    fn known(&self) -> Vec<Track> {
        let known = self.tracks.iter().filter_map(|t| {
            Some(Track {
                id: t.reader.id,
                format: t.reader.format()?.clone(),
            })
        });
        known.collect()
    }

    fn defaults(&self, number: u32) -> Option<TrackDefaults> {
        self.tracks.iter().find_map(|t| match &t.source {
            Samples::Fragments { defaults, .. } if t.number == number => Some(*defaults),
            _ => None,
        })
    }

    /// Takes the samples of a fragment.
    fn take(&mut self, runs: Vec<fragments::Run>) {
        let first_fragment = self.newest.is_none();
        for run in runs {
            let track = self
                .tracks
                .iter_mut()
                .find(|t| t.number == run.track_number);
            let Some(MovieTrack {
                reader,
                source: Samples::Fragments { defaults, samples },
                ..
            }) = track
            else {
                continue;
            };
            if let Some(last) = run.samples.last() {
                defaults.decoding = last.decoding.saturating_add(last.duration.into());
                defaults.count = defaults.count.saturating_add(run.samples.len() as u32);
            }
            if first_fragment {
                let least = run.samples.iter().map(|s| s.composition).min();
                let shift = &mut reader.clock.decoding_shift;
                *shift = (*shift).min(least.unwrap_or(0));
            }
            samples.extend(run.samples);
        }
        if first_fragment {
            let first = |t: &MovieTrack| match &t.source {
                Samples::Fragments { samples, .. } => {
                    samples.front().map(|s| t.reader.clock.times(s).0)
                }
                Samples::Index(_) => None,
            };
            let earliest = self.tracks.iter().filter_map(first).min().unwrap_or(0);
            for track in &mut self.tracks {
                let delay = &mut track.reader.clock.delay;
                *delay = delay.saturating_sub(earliest.min(0));
            }
        }
    }
}

/// What `trex` says of a track's fragments.
fn defaults(moov: &[u8], number: u32) -> TrackDefaults {
    let moov = boxes(moov).next().as_ref().map(body).unwrap_or_default();
    let mvex = find(moov, b"mvex").as_ref().map(body).unwrap_or_default();
    let of_track = boxes(mvex).find_map(|found| {
        let fields = body(&found);
        let field = |i: usize| {
            let bytes = fields.get(4 + 4 * i..)?.first_chunk()?;
            Some(u32::from_be_bytes(*bytes))
        };
        let ours = found.0.kind == *b"trex" && field(0) == Some(number);
        ours.then(|| {
            Some(TrackDefaults {
                duration: field(2)?,
                size: field(3)?,
                non_sync: field(4)? & 0x1_0000 != 0,
                ..TrackDefaults::default()
            })
        })
        .flatten()
    });
    of_track.unwrap_or_default()
}
