//! A program's tracks: access units out of PES packets, and when to say which tracks there are.
//!
//! Nothing is given before each declared track has its parameters, or has been waited for long enough.
//! Later changes take effect at a key frame: parameter sets, a track that comes late, one that leaves.
//! A video access unit is one PES packet's payload as it came; the muxer brings order into it.

use std::collections::VecDeque;

use bytes::Bytes;
use model::{MediaDuration, MediaTime, TICKS_PER_SECOND};

use super::{
    adts::{AdtsCutter, Frame},
    packet::Pid,
    pes::Pes,
    streams::Kind,
};
use crate::{
    aac::AdtsHeader,
    access_unit::{AccessUnit, MAX_TRACKS, SourceEvent, Track, TrackFormat, TrackId},
    parameters::Parameters,
    timeline::Times,
    warnings::{Fault, Warnings},
};

/// How long declared sound is waited for once there is a picture: multiplexers keep it within a second.
const MAX_WAIT_SOUND: MediaDuration = MediaDuration(3 * TICKS_PER_SECOND);

/// How long a declared picture is waited for: a stream joined in mid-GOP has to come to a key frame.
const MAX_WAIT_PICTURE: MediaDuration = MediaDuration(10 * TICKS_PER_SECOND);

/// Most that is kept meanwhile: some seconds of a high bit rate, and of eight tracks.
const MAX_WAITING_BYTES: usize = 32 << 20;
const MAX_WAITING_UNITS: usize = 4096;

/// What a picture lasts as long as nothing says otherwise.
const USUAL_STEP: MediaDuration = MediaDuration(TICKS_PER_SECOND / 25);

/// The tracks of a program.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    tracks: Vec<TrackState>,
    /// What the last event said; None before the first.
    announced: Option<Vec<Track>>,
    /// Bounded by [`MAX_WAITING_UNITS`] and [`MAX_WAITING_BYTES`]; empty once tracks are announced.
    waiting: VecDeque<AccessUnit>,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct TrackState {
    id: TrackId,
    pid: Pid,
    kind: Kind,
    coding: Coding,
    /// As the newest parameters say.
    format: Option<TrackFormat>,
    /// The last access unit's decoding time.
    last: Option<MediaTime>,
    step: MediaDuration,
    /// Units that had to be left out before the first that could be decoded.
    left_out: u64,
}

#[derive(Debug)]
enum Coding {
    Video {
        parameters: Parameters,
        /// There has been a key frame.
        started: bool,
    },
    Aac {
        cutter: AdtsCutter,
        /// The header that `format` was made of.
        header: Option<AdtsHeader>,
    },
}

/// What is needed to tell of trouble.
pub(super) struct Report<'a> {
    pub(super) warnings: &'a mut Warnings,
    pub(super) out: &'a mut Vec<SourceEvent>,
}

impl Report<'_> {
    pub(super) fn warn(
        &mut self,
        fault: Fault,
        pid: Option<Pid>,
        offset: u64,
        what: impl FnOnce() -> String,
    ) {
        self.warnings.tell(fault, pid, offset, self.out, what);
    }
}

impl Tracks {
    /// The program now has these streams; those that were there before go on. Gives each one's track, and
    /// None for what is more than can be carried.
    pub(super) fn declare(&mut self, streams: &[(Pid, Kind)]) -> Vec<Option<TrackId>> {
        let mut old = std::mem::take(&mut self.tracks);
        let mut ids = Vec::new();
        for (pid, kind) in streams {
            let kept = old
                .iter()
                .position(|t| t.pid == *pid && t.kind == *kind)
                .map(|i| old.remove(i));
            let has_video = self.tracks.iter().any(TrackState::is_video);
            let track = match kept {
                Some(track) => Some(track),
                None if matches!(kind, Kind::Video(_)) && has_video => None,
                None => self
                    .free_id(&old)
                    .and_then(|id| TrackState::new(id, *pid, kind)),
            };
            ids.push(track.as_ref().map(|t| t.id));
            self.tracks.extend(track);
        }
        let tracks = &self.tracks;
        self.waiting
            .retain(|unit| tracks.iter().any(|t| t.id == unit.track));
        ids
    }

    /// An id that means no other track, now, before, or in what was announced; any free one if there is none.
    fn free_id(&self, old: &[TrackState]) -> Option<TrackId> {
        let ids = || (0..MAX_TRACKS as u8 * 2).map(TrackId);
        let used = |id: &TrackId| self.tracks.iter().chain(old).any(|t| t.id == *id);
        let announced = |id: &TrackId| self.announced.iter().flatten().any(|t| t.id == *id);
        if self.tracks.len() >= MAX_TRACKS {
            return None;
        }
        ids().find(|id| !used(id) && !announced(id))
    }

    /// A packet of the track was lost: what spans the loss is void. Whether anything was.
    pub(super) fn lost(&mut self, id: TrackId) -> bool {
        match self.find(id).map(|t| &mut t.coding) {
            Some(Coding::Aac { cutter, .. }) => cutter.reset(),
            _ => false,
        }
    }

    /// What follows is on another time base; the wait for tracks does not go on over that.
    pub(super) fn discontinuity(&mut self, offset: u64, report: &mut Report<'_>) {
        for track in &mut self.tracks {
            track.last = None;
            if let Coding::Aac { cutter, .. } = &mut track.coding {
                cutter.reset();
            }
        }
        if self.announced.is_none() && !self.waiting.is_empty() {
            self.announce_what_is_known(offset, report);
        }
        if self.announced.is_some() {
            report.out.push(SourceEvent::Discontinuity);
        }
    }

    /// Takes a track's next PES packet.
    pub(super) fn take(
        &mut self,
        id: TrackId,
        times: Option<Times>,
        pes: Pes,
        report: &mut Report<'_>,
    ) {
        let Some(track) = self.find(id) else { return };
        let mut units = Vec::new();
        match &mut track.coding {
            Coding::Video { .. } => units.extend(track.picture(times, pes, report)),
            Coding::Aac { .. } => track.sound(times, pes, report, &mut units),
        }
        for (format, unit) in units {
            self.give(id, format, unit, report);
        }
    }

    /// The source has ended: gives what waits, with the tracks that are known.
    pub(super) fn finish(&mut self, offset: u64, report: &mut Report<'_>) {
        if self.announced.is_none() {
            self.announce_what_is_known(offset, report);
        }
        for track in &mut self.tracks {
            track.tell_left_out(offset, report);
            track.last = None;
            if let Coding::Aac { cutter, .. } = &mut track.coding {
                cutter.reset();
            }
        }
    }

    fn find(&mut self, id: TrackId) -> Option<&mut TrackState> {
        self.tracks.iter_mut().find(|t| t.id == id)
    }

    /// Gives a unit on, or keeps it as long as the tracks are not announced.
    fn give(
        &mut self,
        id: TrackId,
        format: Option<TrackFormat>,
        unit: (u64, AccessUnit),
        report: &mut Report<'_>,
    ) {
        let (offset, unit) = unit;
        let Some(track) = self.find(id) else { return };
        let is_video = track.is_video();
        if let Some(format) = format {
            track.format = Some(format);
        }
        let Some(announced) = &self.announced else {
            self.waiting_bytes += unit.data.len();
            self.waiting.push_back(unit);
            let complete = self.tracks.iter().all(|t| t.format.is_some());
            if complete || self.waited_enough() {
                self.announce_what_is_known(offset, report);
            }
            return;
        };
        let was = announced.iter().find(|t| t.id == id);
        let is = self.tracks.iter().find(|t| t.id == id);
        let same = was.map(|t| &t.format) == is.and_then(|t| t.format.as_ref());
        let picture_leads = self
            .tracks
            .iter()
            .any(|t| t.is_video() && t.format.is_some());
        // A picture's changes wait for its key frame; so does sound that comes or goes beside a picture.
        let due = if is_video {
            unit.key
        } else {
            !picture_leads || was.is_some()
        };
        if due && (is_video || !picture_leads || !same) {
            let now = self.known();
            if self.announced.as_ref() != Some(&now) {
                report.out.push(SourceEvent::Tracks(now.clone()));
                self.announced = Some(now);
            }
        }
        if self.announced.iter().flatten().any(|t| t.id == id) {
            report.out.push(SourceEvent::AccessUnit(unit));
        }
    }

    /// The tracks whose parameters are known.
    fn known(&self) -> Vec<Track> {
        let known = self.tracks.iter().filter_map(|t| {
            Some(Track {
                id: t.id,
                format: t.format.clone()?,
            })
        });
        known.collect()
    }

    fn waited_enough(&self) -> bool {
        let times = || self.waiting.iter().map(|unit| unit.dts);
        let (Some(first), Some(newest)) = (self.waiting.front(), times().max()) else {
            return false;
        };
        let picture_is_there = self
            .tracks
            .iter()
            .any(|t| t.is_video() && t.format.is_some());
        let no_picture = !self.tracks.iter().any(TrackState::is_video);
        let limit = if picture_is_there || no_picture {
            MAX_WAIT_SOUND
        } else {
            MAX_WAIT_PICTURE
        };
        newest - first.dts > limit
            || self.waiting.len() >= MAX_WAITING_UNITS
            || self.waiting_bytes >= MAX_WAITING_BYTES
    }

    fn announce_what_is_known(&mut self, offset: u64, report: &mut Report<'_>) {
        let known = self.known();
        for track in self.tracks.iter_mut().filter(|t| t.format.is_none()) {
            let what = track.missing();
            report.warn(Fault::Track, Some(track.pid), offset, || what.to_owned());
        }
        if known.is_empty() {
            // What waits is of a track whose parameters are known: there is nothing.
            return;
        }
        report.out.push(SourceEvent::Tracks(known.clone()));
        self.announced = Some(known);
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        report
            .out
            .extend(waiting.into_iter().map(SourceEvent::AccessUnit));
    }
}

/// An access unit with the offset of its PES packet, and the format that begins with it, if one does.
type Unit = (Option<TrackFormat>, (u64, AccessUnit));

impl TrackState {
    fn new(id: TrackId, pid: Pid, kind: &Kind) -> Option<Self> {
        let coding = match kind {
            Kind::Video(codec) => Coding::Video {
                parameters: Parameters::new(*codec),
                started: false,
            },
            Kind::Aac => Coding::Aac {
                cutter: AdtsCutter::default(),
                header: None,
            },
            Kind::Other(_) => return None,
        };
        Some(Self {
            id,
            pid,
            kind: kind.clone(),
            coding,
            format: None,
            last: None,
            step: USUAL_STEP,
            left_out: 0,
        })
    }

    fn is_video(&self) -> bool {
        matches!(self.coding, Coding::Video { .. })
    }

    /// What to say of a track that has not shown its parameters.
    fn missing(&self) -> &'static str {
        match self.coding {
            Coding::Video { .. } => {
                "a picture is declared but no key frame with its parameter sets has come: going on without it until one does"
            }
            Coding::Aac { .. } => {
                "sound is declared but none has come: going on without it until it does"
            }
        }
    }

    fn tell_left_out(&mut self, offset: u64, report: &mut Report<'_>) {
        let count = std::mem::take(&mut self.left_out);
        if count > 0 {
            report.warn(Fault::Frame, Some(self.pid), offset, || {
                format!("{count} pictures before the first key frame can't be decoded: left out")
            });
        }
    }

    /// A PES packet of video is an access unit, unless there is no picture in it.
    fn picture(&mut self, times: Option<Times>, pes: Pes, report: &mut Report<'_>) -> Option<Unit> {
        let Coding::Video {
            parameters,
            started,
        } = &mut self.coding
        else {
            return None;
        };
        let seen = parameters.inspect(&pes.payload, pes.random_access);
        if let Some(fault) = seen.fault {
            report.warn(Fault::Parameters, Some(self.pid), pes.offset, || fault);
        }
        if !seen.picture {
            // Parameter sets alone are kept by now; a part of a picture without its beginning is of no use.
            return None;
        }
        let times = match (times, self.last) {
            (Some(times), _) => times,
            (None, Some(last)) => {
                let next = last + self.step;
                report.warn(Fault::Times, Some(self.pid), pes.offset, || {
                    "a picture has no timestamp: counted on from the last".to_owned()
                });
                Times {
                    pts: next,
                    dts: next,
                }
            }
            (None, None) => {
                report.warn(Fault::Times, Some(self.pid), pes.offset, || {
                    "a picture has no timestamp and follows none that has: left out".to_owned()
                });
                return None;
            }
        };
        let format = seen.key.then(|| parameters.format()).flatten();
        *started |= format.is_some();
        if !*started {
            self.left_out += 1;
            return None;
        }
        self.tell_left_out(pes.offset, report);
        Some((
            format,
            (pes.offset, self.unit(times, seen.key, pes.payload)),
        ))
    }

    /// A PES packet of sound is cut into frames.
    fn sound(
        &mut self,
        times: Option<Times>,
        pes: Pes,
        report: &mut Report<'_>,
        units: &mut Vec<Unit>,
    ) {
        let Coding::Aac { cutter, .. } = &mut self.coding else {
            return;
        };
        let mut frames = Vec::new();
        let lost = cutter.push(times.map(|t| t.pts), pes.payload, |frame| {
            frames.push(frame)
        });
        if lost > 0 {
            report.warn(Fault::Frame, Some(self.pid), pes.offset, || {
                format!("{lost} bytes of sound are no AAC frames: passed over")
            });
        }
        for frame in frames {
            match self.sound_format(&frame) {
                Ok(format) => {
                    let times = Times {
                        pts: frame.time,
                        dts: frame.time,
                    };
                    units.push((format, (pes.offset, self.unit(times, true, frame.data))));
                }
                Err(why) => report.warn(Fault::Frame, Some(self.pid), pes.offset, || why),
            }
        }
    }

    /// The format that begins with a frame, if it differs from the last.
    fn sound_format(&mut self, frame: &Frame) -> Result<Option<TrackFormat>, String> {
        let Coding::Aac { header, .. } = &mut self.coding else {
            return Ok(None);
        };
        if header.is_some_and(|last| last.same_format(&frame.header)) {
            return Ok(None);
        }
        let info = frame.header.info(&frame.data).map_err(|e| e.to_string())?;
        *header = Some(frame.header);
        Ok(Some(TrackFormat::Aac { info }))
    }

    /// Decoding times of a track only ever grow: where the source's don't, they are nudged.
    fn unit(&mut self, mut times: Times, key: bool, data: Bytes) -> AccessUnit {
        if let Some(last) = self.last {
            if times.dts <= last {
                times.dts = last + MediaDuration(1);
                times.pts = times.pts.max(times.dts);
            } else {
                self.step = times.dts - last;
            }
        }
        self.last = Some(times.dts);
        AccessUnit {
            track: self.id,
            pts: times.pts,
            dts: times.dts,
            key,
            data,
        }
    }
}
