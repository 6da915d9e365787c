//! The parameter sets of a video track as they come by: what a decoder needs at the next key frame.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    access_unit::{TrackFormat, VideoInfo},
    h264, h265,
};

/// Most sets of a kind that are kept; the codecs allow 16, 32 and 64 to 256, cameras use one or two.
const MAX_SETS: usize = 32;

/// Longest set that is kept: each segment repeats them all.
const MAX_SET_BYTES: usize = 8 << 10;

/// The codecs whose parameter sets are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VideoCodec {
    H264,
    H265,
}

/// What was found in an access unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Inspected {
    /// There is a slice.
    pub(crate) picture: bool,
    /// Decoding can begin here.
    pub(crate) key: bool,
    /// Sets that could not be used, as a lower-case fragment.
    pub(crate) fault: Option<String>,
}

/// A track's parameter sets by their ids, the newest of each.
#[derive(Debug)]
pub(crate) struct Parameters {
    codec: VideoCodec,
    vps: BTreeMap<u32, Bytes>,
    sps: BTreeMap<u32, Bytes>,
    pps: BTreeMap<u32, Bytes>,
    /// Of the SPS that changed last.
    info: Option<VideoInfo>,
}

impl Parameters {
    pub(crate) fn new(codec: VideoCodec) -> Self {
        Self {
            codec,
            vps: BTreeMap::new(),
            sps: BTreeMap::new(),
            pps: BTreeMap::new(),
            info: None,
        }
    }

    /// Looks at an Annex B access unit and keeps the sets before its first slice. With `hint`, the
    /// container's word that decoding can begin here, an intra picture is enough for a key frame.
    pub(crate) fn inspect(&mut self, access_unit: &[u8], hint: bool) -> Inspected {
        let mut fault = None;
        let (picture, key) = match self.codec {
            VideoCodec::H264 => {
                let head = h264::head(access_unit);
                self.keep_all(&[], &head.sps, &head.pps, &mut fault);
                (head.picture, head.key || hint && head.intra)
            }
            VideoCodec::H265 => {
                let head = h265::head(access_unit);
                self.keep_all(&head.vps, &head.sps, &head.pps, &mut fault);
                (head.picture, head.key)
            }
        };
        Inspected {
            picture,
            key,
            fault,
        }
    }

    /// Keeps sets that a container carries apart, whole NAL units; the fault of those that it can't.
    pub(crate) fn keep_all(
        &mut self,
        vps: &[&[u8]],
        sps: &[&[u8]],
        pps: &[&[u8]],
        fault: &mut Option<String>,
    ) {
        for &unit in sps {
            if let Err(why) = self.keep_sps(unit) {
                fault.get_or_insert(why);
            }
        }
        for (units, sets, id_of) in [
            (vps, &mut self.vps, h265::vps_id as fn(&[u8]) -> Option<u32>),
            (
                pps,
                &mut self.pps,
                match self.codec {
                    VideoCodec::H264 => h264::pps_id,
                    VideoCodec::H265 => h265::pps_id,
                },
            ),
        ] {
            for &unit in units {
                if let Err(why) = keep(sets, id_of(unit), unit) {
                    fault.get_or_insert(why);
                }
            }
        }
    }

    fn keep_sps(&mut self, unit: &[u8]) -> Result<(), String> {
        let (id, info) = match self.codec {
            VideoCodec::H264 => (
                h264::sps_id(unit),
                h264::video_info(unit).map_err(|e| e.to_string()),
            ),
            VideoCodec::H265 => (
                h265::sps_id(unit),
                h265::video_info(unit).map_err(|e| e.to_string()),
            ),
        };
        let info = info?;
        if keep(&mut self.sps, id, unit)? {
            self.info = Some(info);
        }
        Ok(())
    }

    /// The track's format, once every kind of set is there.
    pub(crate) fn format(&self) -> Option<TrackFormat> {
        let info = self.info.clone()?;
        let all = |sets: &BTreeMap<u32, Bytes>| {
            (!sets.is_empty()).then(|| sets.values().cloned().collect::<Vec<_>>())
        };
        Some(match self.codec {
            VideoCodec::H264 => TrackFormat::H264 {
                sps: all(&self.sps)?,
                pps: all(&self.pps)?,
                info,
            },
            VideoCodec::H265 => TrackFormat::H265 {
                vps: all(&self.vps)?,
                sps: all(&self.sps)?,
                pps: all(&self.pps)?,
                info,
            },
        })
    }
}

/// Keeps a set under its id; whether that changed anything.
fn keep(sets: &mut BTreeMap<u32, Bytes>, id: Option<u32>, unit: &[u8]) -> Result<bool, String> {
    let id = id.ok_or("a parameter set is cut short")?;
    if unit.len() > MAX_SET_BYTES {
        return Err(format!(
            "a parameter set of {} bytes is longer than the {MAX_SET_BYTES} that are kept",
            unit.len()
        ));
    }
    match sets.get(&id) {
        Some(old) if old[..] == *unit => return Ok(false),
        None if sets.len() >= MAX_SETS => {
            return Err(format!("more than {MAX_SETS} parameter sets of a kind"));
        }
        _ => {}
    }
    sets.insert(id, Bytes::copy_from_slice(unit));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPS: [u8; 25] = [
        0x67, 0x42, 0xc0, 0x28, 0xda, 0x01, 0xe0, 0x08, 0x9f, 0x97, 0x01, 0x10, 0x00, 0x00, 0x03,
        0x00, 0x01, 0x00, 0x00, 0x03, 0x00, 0x3c, 0x0f, 0x18, 0x32,
    ];

    fn stream(units: &[&[u8]]) -> Vec<u8> {
        units
            .iter()
            .flat_map(|unit| [&[0, 0, 1], *unit].concat())
            .collect()
    }

    #[test]
    fn a_format_needs_every_kind_and_follows_changes() {
        let mut parameters = Parameters::new(VideoCodec::H264);
        parameters.inspect(&stream(&[&SPS, &[0x65, 0x88]]), false);
        assert_eq!(parameters.format(), None);
        let seen = parameters.inspect(&stream(&[&[0x68, 0xce, 1], &[0x65, 0x88]]), false);
        assert!(seen.picture && seen.key && seen.fault.is_none());
        let Some(TrackFormat::H264 { sps, pps, info }) = parameters.format() else {
            panic!("{parameters:?}");
        };
        assert_eq!((&sps[0][..], &pps[0][..]), (&SPS[..], &[0x68, 0xce, 1][..]));
        assert_eq!(info.codec, "avc1.42c028");

        // Another PPS of the same id takes the place of the first; one of another id stands beside it.
        parameters.inspect(
            &stream(&[&[0x68, 0xce, 2], &[0x68, 0x40, 9], &[0x41, 0x88]]),
            false,
        );
        let Some(TrackFormat::H264 { pps, .. }) = parameters.format() else {
            panic!("{parameters:?}");
        };
        assert_eq!(pps, [&[0x68, 0xce, 2][..], &[0x68, 0x40, 9]]);
    }

    #[test]
    fn a_hint_makes_an_intra_picture_a_key_frame() {
        let mut parameters = Parameters::new(VideoCodec::H264);
        let (intra, other) = (stream(&[&[0x41, 0x88]]), stream(&[&[0x41, 0x98]]));
        let mut key = |data: &[u8], hint| parameters.inspect(data, hint).key;
        assert!(key(&intra, true) && !key(&intra, false) && !key(&other, true));
    }

    #[test]
    fn what_can_not_be_kept_is_told_and_bounded() {
        let mut parameters = Parameters::new(VideoCodec::H264);
        let keep = |parameters: &mut Parameters, sps: &[u8], pps: &[u8]| {
            let mut fault = None;
            let one = |unit| if unit == [0u8; 0] { vec![] } else { vec![unit] };
            parameters.keep_all(&[], &one(sps), &one(pps), &mut fault);
            fault.unwrap_or_default()
        };
        assert!(keep(&mut parameters, &SPS[..8], &[]).contains("unusable"));
        assert!(keep(&mut parameters, &[], &[0x68]).contains("cut short"));
        let long = [&[0x68, 0xce][..], &[1; MAX_SET_BYTES]].concat();
        assert!(keep(&mut parameters, &[], &long).contains("longer than"));
        // PPS ids 0 to 32: ue(v) writes n as n + 1 behind as many zeros as that has bits below its first.
        let told: Vec<String> = (1u64..=33)
            .map(|n| {
                let zeros = n.ilog2();
                let code = (n << (63 - 2 * zeros)).to_be_bytes();
                keep(&mut parameters, &[], &[&[0x68][..], &code, &[1]].concat())
            })
            .collect();
        assert_eq!(
            told.iter().filter(|t| t.contains("more than 32")).count(),
            1,
            "{told:?}"
        );
    }
}
