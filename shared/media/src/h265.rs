//! H.265 as far as cutting and naming need it: what an access unit begins with, and what an SPS says.
//!
//! Slices are not decoded. The SPS syntax is `shiguredo_mp4`'s.

use shiguredo_mp4::bitstream::h265 as syntax;

use crate::{
    access_unit::VideoInfo,
    annexb::{nal_units, sei_has, unescape},
    bits::BitReader,
};

/// nal_unit_type (Table 7-1).
mod nal {
    use std::ops::RangeInclusive;

    pub(super) const SLICES: RangeInclusive<u8> = 0..=31;
    /// BLA, IDR, CRA: pictures at which decoding can begin.
    pub(super) const IRAP: RangeInclusive<u8> = 16..=21;
    pub(super) const VPS: u8 = 32;
    pub(super) const SPS: u8 = 33;
    pub(super) const PPS: u8 = 34;
    pub(super) const PREFIX_SEI: u8 = 39;
}

/// payloadType of the recovery point SEI message (Annex D.2).
const SEI_RECOVERY_POINT: usize = 6;

/// An SPS that says nothing usable. The camera is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unusable H.265 sequence parameter set: {0}")]
pub struct SpsError(String);

/// What an access unit says before its first slice ends the looking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head<'a> {
    /// Whole NAL units.
    pub vps: Vec<&'a [u8]>,
    /// Whole NAL units.
    pub sps: Vec<&'a [u8]>,
    /// Whole NAL units.
    pub pps: Vec<&'a [u8]>,
    /// Decoding can begin here: an IRAP picture, or a recovery point SEI stands before the slice.
    pub key: bool,
    /// There is a slice at all.
    pub picture: bool,
}

/// Looks at an Annex B access unit up to its first slice.
pub fn head(access_unit: &[u8]) -> Head<'_> {
    let mut head = Head::default();
    let mut units = nal_units(access_unit);
    while let Some(&[first, second, ..]) = units.peek() {
        let kind = first >> 1 & 0x3f;
        // Other layers (SHVC, MV-HEVC) are carried along but say nothing of the base picture.
        let layer = (first & 1) << 5 | second >> 3;
        if layer != 0 {
            units.next();
        } else if nal::SLICES.contains(&kind) {
            head.picture = true;
            head.key |= nal::IRAP.contains(&kind);
            return head;
        } else if let Some(unit) = units.next() {
            match kind {
                nal::VPS => head.vps.push(unit),
                nal::SPS => head.sps.push(unit),
                nal::PPS => head.pps.push(unit),
                nal::PREFIX_SEI => {
                    head.key |= sei_has(unit.get(2..).unwrap_or_default(), SEI_RECOVERY_POINT);
                }
                _ => {}
            }
        }
    }
    head.key = false;
    head
}

/// What an SPS (a whole NAL unit) says of the picture, conformance window included.
pub fn video_info(sps: &[u8]) -> Result<VideoInfo, SpsError> {
    let sps = syntax::parse_sps(sps).map_err(|error| SpsError(error.reason))?;
    Ok(VideoInfo {
        width: sps.width.into(),
        height: sps.height.into(),
        codec: codec_string(&sps),
    })
}

/// ISO/IEC 14496-15 E.3: profile, compatibility flags in reverse bit order, tier and level, constraint
/// bytes without the zeros at their end.
fn codec_string(sps: &syntax::H265Sps) -> String {
    let space = match sps.general_profile_space {
        1 => "A",
        2 => "B",
        3 => "C",
        _ => "",
    };
    let tier = if sps.general_tier_flag == 0 { 'L' } else { 'H' };
    let mut text = format!(
        "hvc1.{space}{}.{:X}.{tier}{}",
        sps.general_profile_idc,
        sps.general_profile_compatibility_flags.reverse_bits(),
        sps.general_level_idc
    );
    let mut constraints = sps.general_constraint_indicator_flags << 16;
    while constraints != 0 {
        text += &format!(".{:X}", constraints >> 56);
        constraints <<= 8;
    }
    text
}

/// vps_video_parameter_set_id; None if it is cut short.
pub fn vps_id(vps: &[u8]) -> Option<u32> {
    vps.get(2).map(|&b| u32::from(b >> 4))
}

/// sps_seq_parameter_set_id, which stands behind the profile, tier and level (7.3.2.2.1, 7.3.3); None if
/// the SPS is cut short.
pub fn sps_id(sps: &[u8]) -> Option<u32> {
    let rbsp = unescape(sps.get(2..)?, 128);
    let mut bits = BitReader::new(&rbsp);
    bits.skip(4)?;
    let sub_layers = bits.bits(3)?;
    bits.skip(1 + 88 + 8)?;
    let mut to_skip = 0;
    for _ in 0..sub_layers {
        to_skip += if bits.bit()? { 88 } else { 0 };
        to_skip += if bits.bit()? { 8 } else { 0 };
    }
    if sub_layers > 0 {
        bits.skip(2 * (8 - sub_layers as usize))?;
    }
    bits.skip(to_skip)?;
    bits.ue()
}

/// pps_pic_parameter_set_id; None if it is cut short.
pub fn pps_id(pps: &[u8]) -> Option<u32> {
    let start = unescape(pps.get(2..)?, 8);
    BitReader::new(&start).ue()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 1920×1080, Main 10, level 4.0.
    const VPS: [u8; 24] = [
        0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x02, 0x20, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00,
        0x03, 0x00, 0x00, 0x03, 0x00, 0x78, 0x95, 0x98, 0x09,
    ];
    const SPS: [u8; 42] = [
        0x42, 0x01, 0x01, 0x02, 0x20, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00,
        0x03, 0x00, 0x78, 0xa0, 0x03, 0xc0, 0x80, 0x10, 0xe4, 0xd9, 0x65, 0x66, 0x92, 0x4c, 0xaf,
        0x01, 0x68, 0x08, 0x00, 0x00, 0x03, 0x00, 0x08, 0x00, 0x00, 0x03, 0x00,
    ];
    const PPS: [u8; 7] = [0x44, 0x01, 0xc1, 0x72, 0xb4, 0x62, 0x40];

    fn stream(units: &[&[u8]]) -> Vec<u8> {
        units
            .iter()
            .flat_map(|unit| [&[0, 0, 1], *unit].concat())
            .collect()
    }

    #[test]
    fn what_an_sps_says() {
        let info = video_info(&SPS).unwrap();
        assert_eq!((info.width, info.height), (1920, 1080));
        assert_eq!(info.codec, "hvc1.2.4.L120.90");
        assert_eq!(
            (vps_id(&VPS), sps_id(&SPS), pps_id(&PPS)),
            (Some(0), Some(0), Some(0))
        );
        assert_eq!(
            (vps_id(&VPS[..2]), sps_id(&SPS[..9]), pps_id(&PPS[..2])),
            (None, None, None)
        );
        let error = video_info(&SPS[..12]).unwrap_err().to_string();
        assert!(error.starts_with("unusable H.265 sequence"), "{error}");
    }

    #[test]
    fn codec_strings() {
        let sps = syntax::H265Sps {
            general_profile_space: 1,
            general_tier_flag: 1,
            general_profile_idc: 4,
            general_profile_compatibility_flags: 0x0800_0000,
            general_constraint_indicator_flags: 0xbd00_0800_0000,
            general_level_idc: 153,
            ..syntax::parse_sps(&SPS).unwrap()
        };
        assert_eq!(codec_string(&sps), "hvc1.A4.10.H153.BD.0.8");
        let none = syntax::H265Sps {
            general_constraint_indicator_flags: 0,
            ..sps
        };
        assert_eq!(codec_string(&none), "hvc1.A4.10.H153");
    }

    #[test]
    fn key_frames() {
        let unit = |kind: u8, layer: u8| [kind << 1 | layer >> 5, layer << 3 | 1, 0xaf, 0x10];
        let recovery = [39 << 1, 1, 6, 1, 0xd0, 0x80];
        for kind in 0..=31 {
            let data = stream(&[&unit(35, 0), &unit(kind, 0)]);
            let head = head(&data);
            assert_eq!(
                (head.picture, head.key),
                (true, (16..=21).contains(&kind)),
                "{kind}"
            );
        }
        assert!(head(&stream(&[&recovery, &unit(1, 0)])).key);
        assert!(!head(&stream(&[&unit(1, 0), &recovery, &unit(19, 0)])).key);
        // A picture of another layer is not the base's.
        assert!(head(&stream(&[&unit(1, 9), &unit(19, 0)])).key);
        assert!(!head(&stream(&[&unit(19, 9), &unit(1, 0)])).key);

        let data = stream(&[&VPS, &SPS[..], &PPS, &recovery]);
        let head = head(&data);
        assert_eq!((head.picture, head.key), (false, false));
        assert_eq!(
            (head.vps.len(), head.sps.len(), head.pps),
            (1, 1, vec![&PPS[..]])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(data in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..200)) {
            head(&data);
            let _ = (video_info(&data), vps_id(&data), sps_id(&data), pps_id(&data));
            let _ = video_info(&[&[0x42, 1], &data[..]].concat());
        }
    }
}
