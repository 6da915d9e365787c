//! The index of a file (`moov`): its tracks, what is carried of them, and what can be said beforehand.

use model::{MediaDuration, MediaTime};
use shiguredo_mp4::{
    Decode,
    boxes::{HdlrBox, MvhdBox, TrakBox},
};

use super::{
    Mp4Error, Mp4Info,
    boxes::{body, boxes, find},
    samples::Cursor,
    track::{Clock, Coding, TrackReader},
};
use crate::access_unit::{MAX_TRACKS, Track, TrackId};

/// Most tracks of a file that are looked at, carried or not.
const MAX_DECLARED_TRACKS: usize = 64;

/// A file's index.
#[derive(Debug)]
pub(super) struct Index {
    /// The carried tracks, at most [`MAX_TRACKS`], of which one at most is video.
    pub(super) tracks: Vec<IndexedTrack>,
    pub(super) info: Mp4Info,
    /// Samples are in fragments behind the index.
    pub(super) fragmented: bool,
    /// What is left out and why.
    pub(super) warnings: Vec<String>,
}

/// A carried track.
#[derive(Debug)]
pub(super) struct IndexedTrack {
    /// track_ID, by which fragments name it.
    pub(super) number: u32,
    pub(super) reader: TrackReader,
    pub(super) samples: Cursor,
}

impl Index {
    /// Reads a whole `moov` box of a file of this size.
    pub(super) fn parse(moov: &[u8], file_size: u64) -> Result<Self, Mp4Error> {
        let moov = boxes(moov).next().as_ref().map(body).unwrap_or_default();
        let movie_timescale = find(moov, b"mvhd")
            .and_then(|(_, mvhd)| MvhdBox::decode(mvhd).ok())
            .map_or(1000, |(mvhd, _)| mvhd.timescale.get());
        let mut index = Self {
            tracks: Vec::new(),
            info: Mp4Info {
                tracks: Vec::new(),
                duration: MediaDuration::ZERO,
                longest_key_distance: None,
                media_bytes: 0,
            },
            fragmented: find(moov, b"mvex").is_some(),
            warnings: Vec::new(),
        };
        let traks = boxes(moov).filter(|(header, _)| header.kind == *b"trak");
        for (at, (_, trak)) in traks.take(MAX_DECLARED_TRACKS).enumerate() {
            if let Err(why) = index.add(trak, movie_timescale) {
                index.warnings.push(format!("track {}: {why}", at + 1));
            }
        }
        if index.tracks.is_empty() {
            return Err(Mp4Error::NoTracks {
                why: match index.warnings.is_empty() {
                    true => "it has none".to_owned(),
                    false => index.warnings.join("; "),
                },
            });
        }
        index.info.tracks = index
            .tracks
            .iter()
            .filter_map(|t| {
                Some(Track {
                    id: t.reader.id,
                    format: t.reader.format()?.clone(),
                })
            })
            .collect();
        index.settle_times();
        index.survey(file_size);
        Ok(index)
    }

    /// Adds a track if it is carried; why not, else.
    fn add(&mut self, trak: &[u8], movie_timescale: u32) -> Result<(), String> {
        let (trak, _) =
            TrakBox::decode(trak).map_err(|error| format!("can't be read ({})", error.reason))?;
        let handler = trak.mdia_box.hdlr_box.handler_type;
        if handler != HdlrBox::HANDLER_TYPE_VIDE && handler != HdlrBox::HANDLER_TYPE_SOUN {
            // Timecodes, chapters and hints are in many files and missed by nobody.
            return Ok(());
        }
        let stbl = trak.mdia_box.minf_box.stbl_box;
        let mut codings: Vec<_> = stbl.stsd_box.entries.iter().map(Coding::new).collect();
        if !codings.iter().any(Result::is_ok) {
            let first = codings.drain(..).find_map(Result::err);
            return Err(first.unwrap_or_else(|| "has no sample description".to_owned()));
        }
        let mut clock = Clock::new(trak.mdia_box.mdhd_box.timescale.get());
        let elst = trak.edts_box.and_then(|edts| edts.elst_box);
        if let Some(elst) = elst
            && !clock.edit(&elst, movie_timescale)
        {
            self.warnings.push(
                "an edit list with several edits: only the first is followed, all that was recorded is kept"
                    .to_owned(),
            );
        }
        let id = TrackId(self.tracks.len() as u8);
        let descriptions = codings.into_iter().map(Result::ok).collect();
        let mut reader = TrackReader::new(id, clock, descriptions);
        if reader.is_video() && self.tracks.iter().any(|t| t.reader.is_video()) {
            return Err("a second picture is not carried: give it a stream of its own".to_owned());
        }
        if self.tracks.len() >= MAX_TRACKS {
            return Err(format!("more than {MAX_TRACKS} tracks: left out"));
        }
        let samples = Cursor::new(stbl);
        reader.clock.decoding_shift = samples.least_composition().min(0);
        self.tracks.push(IndexedTrack {
            number: trak.tkhd_box.track_id,
            reader,
            samples,
        });
        Ok(())
    }

    /// Moves all tracks by as much as lets the first decoding time be no less than 0.
    fn settle_times(&mut self) {
        let first = |track: &IndexedTrack| {
            let sample = track.samples.clone().next().ok().flatten()?;
            Some(track.reader.clock.times(&sample).0)
        };
        let earliest = self.tracks.iter().filter_map(first).min().unwrap_or(0);
        for track in &mut self.tracks {
            let clock = &mut track.reader.clock;
            clock.delay = clock.delay.saturating_sub(earliest.min(0));
        }
    }

    /// Walks all samples once.
    fn survey(&mut self, file_size: u64) {
        for track in &self.tracks {
            let (clock, mut samples) = (track.reader.clock, track.samples.clone());
            let is_video = track.reader.is_video();
            let (mut span, mut last_key, mut longest) = (None, None, MediaDuration::ZERO);
            loop {
                let sample = match samples.next() {
                    Ok(Some(sample)) => sample,
                    Ok(None) => break,
                    Err(fault) => {
                        self.warnings.push(fault.to_string());
                        break;
                    }
                };
                if sample.offset.saturating_add(sample.size.into()) > file_size {
                    continue;
                }
                let at = MediaTime(clock.times(&sample).0);
                let end = at + clock.duration(sample.duration.into());
                span = Some((span.map_or(at, |(first, _)| first), end));
                self.info.media_bytes = self.info.media_bytes.saturating_add(sample.size.into());
                if is_video && sample.sync != Some(false) {
                    longest = longest.max(at - last_key.unwrap_or(at));
                    last_key = Some(at);
                }
            }
            if let Some((first, end)) = span {
                self.info.duration = self.info.duration.max(end - first);
                if is_video {
                    longest = longest.max(end - last_key.unwrap_or(first));
                    self.info.longest_key_distance = Some(longest);
                }
            }
        }
    }
}
