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
