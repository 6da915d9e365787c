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
