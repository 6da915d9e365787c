//! H.264 as far as cutting and naming need it: what an access unit begins with, and what an SPS says.
//!
//! Slices are not decoded. The SPS syntax is `shiguredo_mp4`'s.

use shiguredo_mp4::bitstream::h264 as syntax;

use crate::{
    access_unit::VideoInfo,
    annexb::{nal_units, sei_has, unescape},
    bits::BitReader,
};

/// nal_unit_type (Table 7-1).
mod nal {
    pub(super) const SLICE: u8 = 1;
    pub(super) const PARTITION_A: u8 = 2;
    pub(super) const IDR: u8 = 5;
    pub(super) const SEI: u8 = 6;
    pub(super) const SPS: u8 = 7;
    pub(super) const PPS: u8 = 8;
}

/// payloadType of the recovery point SEI message (Annex D.1).
const SEI_RECOVERY_POINT: usize = 6;

/// An SPS that says nothing usable. The camera is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unusable H.264 sequence parameter set: {0}")]
pub struct SpsError(String);

/// What an access unit says before its first slice ends the looking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head<'a> {
    /// Whole NAL units.
    pub sps: Vec<&'a [u8]>,
    /// Whole NAL units.
    pub pps: Vec<&'a [u8]>,
    /// Decoding can begin here: IDR, or a recovery point SEI stands before the slice.
    pub key: bool,
    /// The first slice is I or SI: with a container's word for it, decoding can begin here too.
    pub intra: bool,
    /// There is a slice at all.
    pub picture: bool,
}

/// Looks at an Annex B access unit up to its first slice.
pub fn head(access_unit: &[u8]) -> Head<'_> {
    let mut head = Head::default();
    let mut units = nal_units(access_unit);
    while let Some(&[header, ref behind @ ..]) = units.peek() {
        match header & 0x1f {
            kind @ (nal::SLICE | nal::PARTITION_A | nal::IDR) => {
                head.picture = true;
                head.key |= kind == nal::IDR;
                head.intra = head.key || slice_is_intra(behind);
                return head;
            }
            kind @ (nal::SPS | nal::PPS | nal::SEI) => match (kind, units.next()) {
                (nal::SPS, Some(unit)) => head.sps.push(unit),
                (nal::PPS, Some(unit)) => head.pps.push(unit),
                (_, Some([_, payload @ ..])) => head.key |= sei_has(payload, SEI_RECOVERY_POINT),
                _ => {}
            },
            _ => {
                units.next();
            }
        }
    }
    head.key = false;
    head
}

/// first_mb_in_slice, then slice_type: 2 and 7 are I, 4 and 9 SI (Table 7-6).
fn slice_is_intra(behind_header: &[u8]) -> bool {
    let start = unescape(behind_header, 16);
    let mut bits = BitReader::new(&start);
    let slice_type = bits.ue().and_then(|_| bits.ue());
    matches!(slice_type, Some(2 | 4 | 7 | 9))
}

/// What an SPS (a whole NAL unit) says of the picture, cropping included.
pub fn video_info(sps: &[u8]) -> Result<VideoInfo, SpsError> {
    let sps = syntax::parse_sps(sps).map_err(|error| SpsError(error.reason))?;
    let id = sps.profile_level_id;
    Ok(VideoInfo {
        width: sps.width.into(),
        height: sps.height.into(),
        codec: format!(
            "avc1.{:02x}{:02x}{:02x}",
            id.profile_idc, id.profile_iop, id.level_idc
        ),
    })
}

/// seq_parameter_set_id of an SPS; None if it is cut short.
pub fn sps_id(sps: &[u8]) -> Option<u32> {
    let start = unescape(sps.get(4..)?, 8);
    BitReader::new(&start).ue()
}

/// pic_parameter_set_id of a PPS; None if it is cut short.
pub fn pps_id(pps: &[u8]) -> Option<u32> {
    let start = unescape(pps.get(1..)?, 8);
    BitReader::new(&start).ue()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 1920×1080, Constrained Baseline, level 4.0: cropped from 1088 lines.
    const SPS: [u8; 25] = [
        0x67, 0x42, 0xc0, 0x28, 0xda, 0x01, 0xe0, 0x08, 0x9f, 0x97, 0x01, 0x10, 0x00, 0x00, 0x03,
        0x00, 0x01, 0x00, 0x00, 0x03, 0x00, 0x3c, 0x0f, 0x18, 0x32,
    ];
    /// The same size interlaced, High 4:2:2 in 10 bits.
    const SPS_INTERLACED: [u8; 27] = [
        0x67, 0x7a, 0x00, 0x28, 0xb6, 0xcd, 0x94, 0x07, 0x80, 0x44, 0xfc, 0xb8, 0x08, 0x80, 0x00,
        0x00, 0x03, 0x00, 0x80, 0x00, 0x00, 0x1e, 0x0f, 0x8b, 0x16, 0xcb, 0x00,
    ];
    const PPS: [u8; 4] = [0x68, 0xce, 0x0f, 0xc8];

    fn stream(units: &[&[u8]]) -> Vec<u8> {
        units
            .iter()
            .flat_map(|unit| [&[0, 0, 0, 1], *unit].concat())
            .collect()
    }

    #[test]
    fn what_an_sps_says() {
        for (sps, codec) in [
            (&SPS[..], "avc1.42c028"),
            (&SPS_INTERLACED[..26], "avc1.7a0028"),
        ] {
            let info = video_info(sps).unwrap();
            assert_eq!((info.width, info.height), (1920, 1080));
            assert_eq!(info.codec, codec);
            assert_eq!(sps_id(sps), Some(0));
        }
        assert_eq!(pps_id(&PPS), Some(0));
        assert_eq!((sps_id(&SPS[..4]), pps_id(&PPS[..1])), (None, None));
        let error = video_info(&SPS[..8]).unwrap_err().to_string();
        assert!(error.starts_with("unusable H.264 sequence"), "{error}");
        assert!(video_info(&PPS).is_err());
    }

    #[test]
    fn key_frames() {
        let (aud, recovery, other_sei) = ([9, 0xf0], [6, 6, 1, 0xc0, 0x80], [6, 1, 1, 0x32, 0x80]);
        // first_mb_in_slice 0, then slice_type 7 (I), 5 (P), 2 (I).
        let (idr, i, p) = ([0x65, 0x88, 0x84], [0x41, 0x88, 0x84], [0x41, 0x98, 0x00]);
        let i_alone = [0x41, 0xb0, 0x00];
        for (units, key, intra) in [
            (&[&aud[..], &SPS, &PPS, &idr][..], true, true),
            (&[&aud, &recovery, &i], true, true),
            (&[&aud, &other_sei, &recovery, &p], true, true),
            (&[&aud, &other_sei, &i], false, true),
            (&[&i_alone], false, true),
            (&[&aud, &p], false, false),
            // What comes behind the first slice says nothing.
            (&[&p, &recovery, &idr], false, false),
        ] {
            let data = stream(units);
            let head = head(&data);
            assert!(head.picture);
            assert_eq!((head.key, head.intra), (key, intra), "{units:02x?}");
        }
        let data = stream(&[&aud, &SPS, &PPS, &recovery]);
        let head = head(&data);
        assert_eq!((head.picture, head.key), (false, false));
        assert_eq!((head.sps, head.pps), (vec![&SPS[..]], vec![&PPS[..]]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(data in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..200)) {
            head(&data);
            let _ = (video_info(&data), sps_id(&data), pps_id(&data));
            let _ = video_info(&[&[0x67], &data[..]].concat());
        }
    }
}
