//! Several sources, one stream: whether the next file's timestamps go on from the last one's.
//!
//! Pure. A file that goes on stays in the run: its times are moved onto the run's timeline (each file is
//! unwrapped by itself, so they may be a turn of the 33-bit clock apart). Any other begins a new run.

use std::collections::BTreeMap;

use media::access_unit::{AccessUnit, SourceEvent, Track, TrackId};
use model::{MediaDuration, MediaTime};

/// How far after the end of the last file the next one may begin: sound and picture of one file end up to
/// this far apart. Before that end it may begin by a frame at most: decoding times never go back in a run.
const MAX_SEAM: MediaDuration = MediaDuration::from_millis(500);
/// One turn of the 33-bit clock.
const TURN: i64 = 1 << 33;
/// A frame's duration while only one of a track is known.
const DEFAULT_FRAME: i64 = 3_600;
/// A distance that is no frame's duration any more, but a hole.
const MAX_FRAME: i64 = 90_000;

/// Joins the events of source after source.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    tracks: Vec<Track>,
    /// Where each track of the run goes on.
    next_dts: BTreeMap<TrackId, Next>,
    /// What is added to this source's times.
    shift: i64,
    seam: Option<Seam>,
}

#[derive(Debug, Clone, Copy)]
struct Next {
    last: i64,
    frame: i64,
}

/// A new source has begun and has not shown a time yet.
#[derive(Debug, Default)]
struct Seam {
    tracks: Option<Vec<Track>>,
    /// Its kind of file may go on from the last one.
    may_go_on: bool,
}

impl Joiner {
    /// A source begins; `may_go_on` if its clock may be the last source's.
    pub(crate) fn begin_source(&mut self, may_go_on: bool) {
        self.seam = Some(Seam {
            tracks: None,
            may_go_on,
        });
    }

    /// Passes an event on, or what replaces it, to `out`.
    pub(crate) fn take(&mut self, event: SourceEvent, mut out: impl FnMut(SourceEvent)) {
        match event {
            SourceEvent::Tracks(tracks) => match &mut self.seam {
                Some(seam) => seam.tracks = Some(tracks),
                None => {
                    self.tracks.clone_from(&tracks);
                    self.next_dts.clear();
                    out(SourceEvent::Tracks(tracks));
                }
            },
            SourceEvent::AccessUnit(mut unit) => {
                if let Some(seam) = self.seam.take() {
                    self.cross(seam, &unit, &mut out);
                }
                unit.pts.0 = unit.pts.0.saturating_add(self.shift);
                unit.dts.0 = unit.dts.0.saturating_add(self.shift);
                self.remember(unit.track, unit.dts);
                out(SourceEvent::AccessUnit(unit));
            }
            SourceEvent::Discontinuity => match &mut self.seam {
                Some(seam) => seam.may_go_on = false,
                None => {
                    self.next_dts.clear();
                    out(SourceEvent::Discontinuity);
                }
            },
            warning @ SourceEvent::Warning(_) => out(warning),
        }
    }

    /// The first access unit of a new source: on with the run, or a new one.
    fn cross(&mut self, seam: Seam, unit: &AccessUnit, out: &mut impl FnMut(SourceEvent)) {
        let same_tracks = seam
            .tracks
            .as_ref()
            .is_none_or(|tracks| *tracks == self.tracks);
        let shift = self
            .next_dts
            .get(&unit.track)
            .and_then(|next| turns_to(unit.dts.0, next));
        match shift {
            Some(shift) if seam.may_go_on && same_tracks => self.shift = shift,
            _ => {
                self.shift = 0;
                if !self.next_dts.is_empty() {
                    out(SourceEvent::Discontinuity);
                }
                self.next_dts.clear();
                if let Some(tracks) = seam.tracks {
                    self.tracks.clone_from(&tracks);
                    out(SourceEvent::Tracks(tracks));
                }
            }
        }
    }

    fn remember(&mut self, track: TrackId, dts: MediaTime) {
        let last = dts.0;
        let next = self.next_dts.entry(track).or_insert(Next {
            last,
            frame: DEFAULT_FRAME,
        });
        let distance = last.saturating_sub(next.last);
        if (1..=MAX_FRAME).contains(&distance) {
            next.frame = distance;
        }
        next.last = last;
    }
}

/// The whole turns that bring `dts` to where the track goes on; None if none do.
fn turns_to(dts: i64, next: &Next) -> Option<i64> {
    let before = next.last.checked_sub(dts)?;
    let turns = before.checked_add(TURN / 2)?.div_euclid(TURN);
    let shift = turns.checked_mul(TURN)?;
    let after = shift.checked_sub(before)?;
    (0..=next.frame + MAX_SEAM.0)
        .contains(&after)
        .then_some(shift)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use media::access_unit::{AudioInfo, TrackFormat};

    use super::*;

    fn tracks(sample_rate: u32) -> SourceEvent {
        let info = AudioInfo {
            sample_rate,
            channels: 2,
            codec: "mp4a.40.2".to_owned(),
        };
        SourceEvent::Tracks(vec![Track {
            id: TrackId(0),
            format: TrackFormat::Aac { info },
        }])
    }

    fn unit(dts: i64) -> SourceEvent {
        SourceEvent::AccessUnit(AccessUnit {
            track: TrackId(0),
            pts: MediaTime(dts),
            dts: MediaTime(dts),
            key: true,
            data: Bytes::new(),
        })
    }

    /// `T` tracks, `D` discontinuity, numbers times.
    fn joined(sources: &[(bool, Vec<SourceEvent>)]) -> Vec<String> {
        let (mut joiner, mut got) = (Joiner::default(), Vec::new());
        for (may_go_on, events) in sources {
            joiner.begin_source(*may_go_on);
            for event in events {
                joiner.take(event.clone(), |event| {
                    got.push(match event {
                        SourceEvent::Tracks(_) => "T".to_owned(),
                        SourceEvent::Discontinuity => "D".to_owned(),
                        SourceEvent::AccessUnit(unit) => unit.dts.0.to_string(),
                        SourceEvent::Warning(_) => "W".to_owned(),
                    });
                });
            }
        }
        got
    }

    fn file(first: i64) -> Vec<SourceEvent> {
        vec![tracks(48_000), unit(first), unit(first + 1_920)]
    }

    #[test]
    fn a_file_that_goes_on_stays_in_the_run() {
        for seam in [0, 1_920, -1_920, 45_000] {
            let got = joined(&[(true, file(9_000)), (true, file(9_000 + 3_840 + seam))]);
            let second = 12_840 + seam;
            let expected = [
                "T",
                "9000",
                "10920",
                &second.to_string(),
                &(second + 1_920).to_string(),
            ];
            assert_eq!(got, expected, "{seam}");
        }
    }

    #[test]
    fn the_clock_may_turn_between_files() {
        let near = TURN - 2_000;
        let got = joined(&[(true, file(near)), (true, file(1_840)), (true, file(5_680))]);
        let after = (TURN + 5_680).to_string();
        assert_eq!(got.iter().filter(|e| *e == "T").count(), 1);
        assert_eq!(got[3], (TURN + 1_840).to_string());
        assert_eq!(got[5], after);
        assert!(!got.contains(&"D".to_owned()));
    }

    #[test]
    fn any_other_file_begins_a_new_run() {
        let first = || (true, file(9_000));
        let new_run = ["T", "9000", "10920", "D", "T"];
        let mut other_rate = file(12_840);
        other_rate[0] = tracks(44_100);
        let mut broken = file(12_840);
        broken.insert(1, SourceEvent::Discontinuity);
        for second in [
            (true, file(12_840 + 45_001)),
            (true, file(12_840 - 1_921)),
            (true, file(9_000)),
            (false, file(12_840)),
            (true, other_rate),
            (true, broken),
            (true, file(i64::MIN)),
            (true, file(i64::MAX - 5_000)),
        ] {
            assert_eq!(joined(&[first(), second])[..5], new_run);
        }
        assert_eq!(joined(&[(true, vec![]), first()])[..2], ["T", "9000"]);
    }

    #[test]
    fn within_a_source_events_pass_as_they_are() {
        let mut events = file(0);
        events.extend([SourceEvent::Discontinuity, tracks(44_100), unit(7)]);
        assert_eq!(joined(&[(true, events)]), ["T", "0", "1920", "D", "T", "7"]);
    }
}
