//! A track of an MP4 file: its time scale, its edit list, and access units out of samples.

use bytes::Bytes;
use model::{MediaDuration, MediaTime, TICKS_PER_SECOND};
use shiguredo_mp4::{
    BaseBox,
    boxes::{AvccBox, ElstBox, HvccBox, Mp4aBox, SampleEntry},
};

use super::samples::Sample;
use crate::{
    aac::AacConfig,
    access_unit::{AccessUnit, TrackFormat, TrackId},
    annexb,
    parameters::{Parameters, VideoCodec},
};

/// Longest sample: as the longest PES packet of the TS demuxer.
pub(super) const MAX_SAMPLE_BYTES: u32 = 16 << 20;

/// From a track's time scale to 90 kHz, with its place on the movie's timeline. Exact: each time is
/// rounded by itself, so nothing adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) timescale: u32,
    /// The media time that is shown first (elst), in the track's time scale.
    pub(super) media_start: i64,
    /// How far into the movie that is, in 90 kHz.
    pub(super) delay: i64,
    /// Added to decoding times, so that none is after its presentation; not above 0.
    pub(super) decoding_shift: i64,
}

impl Clock {
    /// A clock without edits.
    pub(super) fn new(timescale: u32) -> Self {
        Self {
            timescale,
            media_start: 0,
            delay: 0,
            decoding_shift: 0,
        }
    }

    /// Takes an edit list: an empty edit delays, the first other one says what is shown first. False if
    /// there is more in it, which is not followed.
    pub(super) fn edit(&mut self, elst: &ElstBox, movie_timescale: u32) -> bool {
        let mut entries = elst.entries.iter().peekable();
        while let Some(empty) = entries.next_if(|e| e.media_time == -1) {
            let ticks = to_ticks(empty.edit_duration.into(), movie_timescale);
            self.delay = self.delay.saturating_add(ticks);
        }
        if let Some(first) = entries.next() {
            self.media_start = first.media_time.max(0);
        }
        entries.next().is_none()
    }

    /// Decoding and presentation time of a sample.
    pub(super) fn times(&self, sample: &Sample) -> (i64, i64) {
        let decoding = i128::from(sample.decoding) - i128::from(self.media_start);
        let at = |time| to_ticks(time, self.timescale).saturating_add(self.delay);
        (
            at(decoding + i128::from(self.decoding_shift)),
            at(decoding + i128::from(sample.composition)),
        )
    }

    /// A duration in the track's time scale.
    pub(super) fn duration(&self, duration: u64) -> MediaDuration {
        MediaDuration(to_ticks(duration.into(), self.timescale))
    }
}

/// Rounded to the nearest 90 kHz tick, within what media time can hold with room for sums.
pub(super) fn to_ticks(time: i128, timescale: u32) -> i64 {
    let scale = i128::from(timescale.max(1));
    // Far beyond any time, and far from overflow.
    let time = time.clamp(-(1 << 80), 1 << 80);
    let ticks = (time * i128::from(TICKS_PER_SECOND) * 2 + scale).div_euclid(scale * 2);
    let bound = i64::MAX / 4;
    ticks.clamp((-bound).into(), bound.into()) as i64
}

/// How the samples of a sample description are coded.
#[derive(Debug)]
pub(super) enum Coding {
    Video {
        codec: VideoCodec,
        length_size: usize,
        vps: Vec<Vec<u8>>,
        sps: Vec<Vec<u8>>,
        pps: Vec<Vec<u8>>,
    },
    Aac(AacConfig),
}

impl Coding {
    /// Reads a sample description; the error says what it is and what to do.
    pub(super) fn new(entry: &SampleEntry) -> Result<Self, String> {
        match entry {
            SampleEntry::Avc1(avc1) => Ok(Self::h264(&avc1.avcc_box)),
            SampleEntry::Hvc1(hvc1) => Ok(Self::h265(&hvc1.hvcc_box)),
            SampleEntry::Hev1(hev1) => Ok(Self::h265(&hev1.hvcc_box)),
            SampleEntry::Mp4a(mp4a) => Self::aac(mp4a),
            SampleEntry::Unknown(other) if other.box_type.as_bytes() == b"avc3" => {
                avc3(&other.payload)
                    .map(|avcc| Self::h264(&avcc))
                    .ok_or_else(|| "an avc3 sample description can't be read".to_owned())
            }
            SampleEntry::Opus(_) | SampleEntry::Flac(_) => Err(not_carried_sound(entry)),
            SampleEntry::Vp08(_) | SampleEntry::Vp09(_) | SampleEntry::Av01(_) => {
                Err(not_carried_video(entry))
            }
            other => Err(format!(
                "{} is not carried: transcode it with ffmpeg -c:v libx264 -c:a aac",
                name(other)
            )),
        }
    }

    fn h264(avcc: &AvccBox) -> Self {
        Self::Video {
            codec: VideoCodec::H264,
            length_size: usize::from(avcc.length_size_minus_one.get()) + 1,
            vps: Vec::new(),
            sps: avcc.sps_list.clone(),
            pps: avcc.pps_list.clone(),
        }
    }

    fn h265(hvcc: &HvccBox) -> Self {
        let sets = |kind| {
            let arrays = hvcc.nalu_arrays.iter();
            let of_kind = arrays.filter(move |a| a.nal_unit_type.get() == kind);
            of_kind.flat_map(|a| a.nalus.clone()).collect()
        };
        Self::Video {
            codec: VideoCodec::H265,
            length_size: usize::from(hvcc.length_size_minus_one.get()) + 1,
            vps: sets(32),
            sps: sets(33),
            pps: sets(34),
        }
    }

    fn aac(mp4a: &Mp4aBox) -> Result<Self, String> {
        let config = &mp4a.esds_box.es.dec_config_descr;
        match config.object_type_indication {
            // MPEG-4 audio, and MPEG-2 AAC Main, LC, SSR.
            0x40 | 0x66..=0x68 => {}
            0x69 | 0x6b => {
                return Err(
                    "MP3 is not carried: transcode it with ffmpeg -c:v copy -c:a aac".into(),
                );
            }
            other => {
                return Err(format!(
                    "sound of object type 0x{other:02x} is not carried: transcode it with ffmpeg -c:v copy -c:a aac"
                ));
            }
        }
        let info = config.dec_specific_info.as_ref();
        let asc = info.map(|i| i.payload.as_slice()).unwrap_or_default();
        AacConfig::parse(asc)
            .map(Self::Aac)
            .map_err(|error| error.to_string())
    }

    pub(super) fn is_video(&self) -> bool {
        matches!(self, Self::Video { .. })
    }
}

/// An `avc3` description is an `avc1` whose parameter sets stand in the samples (ISO/IEC 14496-15, 5.4).
fn avc3(payload: &[u8]) -> Option<AvccBox> {
    /// Fields of VisualSampleEntry before its boxes (ISO/IEC 14496-12, 12.1.3).
    const VISUAL_BYTES: usize = 78;
    let (_, avcc) = super::boxes::find(payload.get(VISUAL_BYTES..)?, b"avcC")?;
    shiguredo_mp4::Decode::decode(avcc).ok().map(|(b, _)| b)
}

fn not_carried_sound(entry: &SampleEntry) -> String {
    format!(
        "{} is not carried: transcode it with ffmpeg -c:v copy -c:a aac",
        name(entry)
    )
}

fn not_carried_video(entry: &SampleEntry) -> String {
    format!(
        "{} is not carried: transcode it with ffmpeg -c:v libx264 -c:a copy",
        name(entry)
    )
}

/// The four letters that name a sample description.
fn name(entry: &SampleEntry) -> String {
    format!("{:?}", String::from_utf8_lossy(entry.box_type().as_bytes()))
}

/// Makes a track's access units.
#[derive(Debug)]
pub(super) struct TrackReader {
    pub(super) id: TrackId,
    pub(super) clock: Clock,
    /// One for each sample description, in order; None for one that can't be carried.
    descriptions: Vec<Option<Coding>>,
    /// Which of them is in force.
    description: u32,
    parameters: Option<Parameters>,
    format: Option<TrackFormat>,
    /// There has been a key frame, or there need not be one.
    started: bool,
    last: Option<i64>,
}

/// What a sample gave.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) unit: Option<AccessUnit>,
    /// The format that begins with the unit, if it is another than before.
    pub(super) format: Option<TrackFormat>,
    /// What was wrong, as a lower-case fragment.
    pub(super) fault: Option<String>,
}

impl TrackReader {
    /// A track of these descriptions, of which the first must be one that can be carried.
    pub(super) fn new(id: TrackId, clock: Clock, descriptions: Vec<Option<Coding>>) -> Self {
        let mut reader = Self {
            id,
            clock,
            descriptions,
            description: 0,
            parameters: None,
            format: None,
            started: false,
            last: None,
        };
        reader.format = reader.begin(0, &mut None);
        reader
    }

    /// What is known of the track's format before its next sample.
    pub(super) fn format(&self) -> Option<&TrackFormat> {
        self.format.as_ref()
    }

    pub(super) fn is_video(&self) -> bool {
        self.descriptions.iter().flatten().any(Coding::is_video)
    }

    /// Puts a sample description in force.
    fn begin(&mut self, description: u32, fault: &mut Option<String>) -> Option<TrackFormat> {
        self.description = description;
        let coding = self.descriptions.get(description as usize)?.as_ref()?;
        match coding {
            Coding::Aac(config) => {
                self.started = true;
                Some(TrackFormat::Aac {
                    info: config.info(),
                })
            }
            Coding::Video {
                codec,
                vps,
                sps,
                pps,
                ..
            } => {
                fn refs(sets: &[Vec<u8>]) -> Vec<&[u8]> {
                    sets.iter().map(Vec::as_slice).collect()
                }
                let mut parameters = Parameters::new(*codec);
                parameters.keep_all(&refs(vps), &refs(sps), &refs(pps), fault);
                let format = parameters.format();
                self.parameters = Some(parameters);
                format
            }
        }
    }

    /// Makes an access unit of a sample's bytes. What can't be decoded for want of a key frame is left out.
    pub(super) fn make(&mut self, sample: &Sample, bytes: &Bytes) -> Made {
        let mut fault = None;
        if sample.description != self.description {
            self.begin(sample.description, &mut fault);
        }
        let nothing = |fault| Made {
            unit: None,
            format: None,
            fault,
        };
        let coding = self.descriptions.get(sample.description as usize);
        let (data, key, format) = match (coding.and_then(Option::as_ref), &mut self.parameters) {
            (Some(Coding::Aac(config)), _) => match config.to_adts(bytes) {
                Ok(data) => {
                    let info = config.info();
                    (data, true, Some(TrackFormat::Aac { info }))
                }
                Err(error) => return nothing(Some(error.to_string())),
            },
            (Some(Coding::Video { length_size, .. }), Some(parameters)) => {
                let (data, bad) = annexb::from_length_prefixed(bytes, *length_size);
                if let Some(at) = bad {
                    fault.get_or_insert(format!(
                        "a length at byte {at} of the sample points outside it: what comes before is kept"
                    ));
                }
                // Without a table of them, every sample is one.
                let seen = parameters.inspect(&data, sample.sync != Some(false));
                if let Some(why) = seen.fault {
                    fault.get_or_insert(why);
                }
                if !seen.picture {
                    return nothing(fault.or(Some("a sample without a picture: left out".into())));
                }
                let format = seen.key.then(|| parameters.format()).flatten();
                (data, seen.key, format)
            }
            _ => return nothing(Some("a sample description that can't be carried".into())),
        };
        self.started |= format.is_some();
        if !self.started {
            let why = "a picture before the first key frame can't be decoded: left out";
            return nothing(fault.or(Some(why.into())));
        }
        let changed = format.filter(|format| self.format.as_ref() != Some(format));
        if let Some(format) = &changed {
            self.format = Some(format.clone());
        }
        let (dts, pts) = self.times(sample);
        Made {
            unit: Some(AccessUnit {
                track: self.id,
                pts: MediaTime(pts),
                dts: MediaTime(dts),
                key,
                data,
            }),
            format: changed,
            fault,
        }
    }

    /// Decoding times only ever grow, and none is after its presentation.
    fn times(&mut self, sample: &Sample) -> (i64, i64) {
        let (dts, pts) = self.clock.times(sample);
        let dts = match self.last {
            Some(last) => dts.max(last + 1),
            None => dts,
        };
        self.last = Some(dts);
        (dts, pts.max(dts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(decoding: u64, composition: i64) -> Sample {
        Sample {
            index: 0,
            offset: 0,
            size: 0,
            decoding,
            composition,
            duration: 1,
            sync: None,
            description: 0,
        }
    }

    #[test]
    fn times_do_not_drift() {
        // 29.97 fps in its usual scale and sound at 44.1 kHz, ten hours in.
        let video = Clock::new(30_000);
        assert_eq!(
            video.times(&sample(1001 * 1_078_920, 0)).0,
            3003 * 1_078_920
        );
        let sound = Clock::new(44_100);
        let frames = 1_550_390u64;
        let exact = (frames * 1024) as f64 * 90_000.0 / 44_100.0;
        assert_eq!(
            sound.times(&sample(frames * 1024, 0)).0,
            exact.round() as i64
        );
        assert_eq!(
            (
                to_ticks(-1, 180_000),
                to_ticks(-2, 180_000),
                to_ticks(1, 180_000)
            ),
            (0, -1, 1)
        );
        assert_eq!(to_ticks(i128::MAX, 1), i64::MAX / 4);
        assert_eq!(to_ticks(1, 0), 90_000);
    }

    #[test]
    fn edits_delay_and_start() {
        use shiguredo_mp4::{FixedPointNumber, boxes::ElstEntry};
        let entry = |edit_duration, media_time| ElstEntry {
            edit_duration,
            media_time,
            media_rate: FixedPointNumber::new(1, 0),
        };
        let list = |entries: &[ElstEntry]| ElstBox {
            entries: entries.to_vec(),
        };
        let mut clock = Clock::new(12_800);
        assert!(clock.edit(&list(&[entry(500, -1), entry(9000, 1024)]), 1000));
        // Half a second in, and what stands 1024 in is shown first.
        assert_eq!(clock.times(&sample(0, 1024)), (45_000 - 7200, 45_000));
        let mut clock = Clock::new(12_800);
        assert!(!clock.edit(&list(&[entry(1, 0), entry(1, 5)]), 1000));
        assert!(clock.edit(&list(&[]), 1000));
        // Negative composition offsets move decoding back.
        clock.decoding_shift = -512;
        assert_eq!(clock.times(&sample(0, -512)), (-3600, -3600));
    }
}
