//! What has to stand before a picture: an access unit delimiter, and at key frames all parameter sets.
//!
//! The access unit's bytes are never copied here: the result is a list of slices of them and of what is
//! missing. Nothing is doubled: what the source repeated itself stays as it is.

use bytes::Bytes;

use crate::{
    access_unit::TrackFormat,
    annexb::{START_CODE, nal_units},
};

/// H.264 7.3.2.4: any slice types.
const H264_DELIMITER: &[u8] = &[0, 0, 0, 1, 0x09, 0xf0];
/// H.265 7.3.2.5: any slice types.
const H265_DELIMITER: &[u8] = &[0, 0, 0, 1, 0x46, 0x01, 0x50];

/// An access unit in pieces that stand one behind the other.
pub(super) enum Pieces<'a> {
    Plain([&'a [u8]; 2]),
    Rewritten(Vec<&'a [u8]>),
}

impl<'a> Pieces<'a> {
    pub(super) fn as_slice(&self) -> &[&'a [u8]] {
        match self {
            Self::Plain(pieces) => pieces,
            Self::Rewritten(pieces) => pieces,
        }
    }
}

/// What a NAL unit is for, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Delimiter,
    ParameterSet,
    Slice,
    Other,
}

/// A video access unit with what it lacks before it.
pub(super) fn with_preamble<'a>(format: &'a TrackFormat, data: &'a [u8], key: bool) -> Pieces<'a> {
    let (role, delimiter): (fn(u8) -> Role, _) = match format {
        TrackFormat::H264 { .. } => (h264_role, H264_DELIMITER),
        TrackFormat::H265 { .. } => (h265_role, H265_DELIMITER),
        TrackFormat::Aac { .. } => return Pieces::Plain([data, &[]]),
    };
    let role_of = |nal: &[u8]| nal.first().map_or(Role::Other, |&header| role(header));

    let mut units = nal_units(data);
    let delimited = units.peek().map(role_of) == Some(Role::Delimiter);
    if key {
        if delimited {
            units.next();
        }
        let mut before_slice = Vec::new();
        let first_slice = loop {
            match units.peek() {
                Some(rest) if role_of(rest) == Role::Slice => break Some(rest),
                Some(_) => before_slice.extend(units.next()),
                None => break None,
            }
        };
        let wanted = || parameter_sets(format).map(Bytes::as_ref);
        if !wanted().all(|set| before_slice.contains(&set)) {
            let kept = before_slice
                .iter()
                .copied()
                .filter(|nal| role_of(nal) != Role::ParameterSet || !wanted().any(|s| s == *nal));
            let mut pieces = vec![delimiter];
            for nal in wanted().chain(kept).chain(first_slice) {
                pieces.extend([&START_CODE[..], nal]);
            }
            return Pieces::Rewritten(pieces);
        }
    }
    if delimited {
        Pieces::Plain([data, &[]])
    } else {
        Pieces::Plain([delimiter, data])
    }
}

/// In the order in which they build on each other.
fn parameter_sets(format: &TrackFormat) -> impl Iterator<Item = &Bytes> {
    let sets: [&[Bytes]; 3] = match format {
        TrackFormat::H264 { sps, pps, .. } => [&[], sps, pps],
        TrackFormat::H265 { vps, sps, pps, .. } => [vps, sps, pps],
        TrackFormat::Aac { .. } => [&[], &[], &[]],
    };
    sets.into_iter().flatten()
}

/// nal_unit_type of H.264, Table 7-1.
fn h264_role(header: u8) -> Role {
    match header & 0x1f {
        1..=5 => Role::Slice,
        7 | 8 => Role::ParameterSet,
        9 => Role::Delimiter,
        _ => Role::Other,
    }
}

/// nal_unit_type of H.265, Table 7-1.
fn h265_role(header: u8) -> Role {
    match header >> 1 & 0x3f {
        0..=31 => Role::Slice,
        32..=34 => Role::ParameterSet,
        35 => Role::Delimiter,
        _ => Role::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_unit::VideoInfo;

    const AUD: &[u8] = H264_DELIMITER;
    const SPS: &[u8] = &[0x67, 1, 2, 3];
    const PPS: &[u8] = &[0x68, 4, 5];
    const SEI: &[u8] = &[0x06, 5, 1, 0x77, 0x80];
    const IDR: &[u8] = &[0x65, 9, 0, 0, 3, 1, 9];
    const SLICE: &[u8] = &[0x41, 9, 9];

    fn h264() -> TrackFormat {
        TrackFormat::H264 {
            sps: vec![Bytes::from_static(SPS)],
            pps: vec![Bytes::from_static(PPS)],
            info: VideoInfo {
                width: 64,
                height: 48,
                codec: "avc1.64001f".to_owned(),
            },
        }
    }

    fn unit(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter()
            .flat_map(|nal| [&START_CODE[..], nal].concat())
            .collect()
    }

    /// What it is, whether it is a key frame, NAL units before and after.
    type Case<'a> = (&'a str, bool, &'a [&'a [u8]], &'a [&'a [u8]]);

    #[test]
    fn adds_what_is_missing_and_doubles_nothing() {
        let aud = AUD.get(4..).unwrap();
        let cases: [Case<'_>; 9] = [
            ("bare key frame", true, &[IDR], &[aud, SPS, PPS, IDR]),
            (
                "complete",
                true,
                &[aud, SPS, PPS, IDR],
                &[aud, SPS, PPS, IDR],
            ),
            (
                "no delimiter",
                true,
                &[SPS, PPS, IDR],
                &[aud, SPS, PPS, IDR],
            ),
            ("delimiter only", true, &[aud, IDR], &[aud, SPS, PPS, IDR]),
            (
                "one set, late",
                true,
                &[aud, SEI, PPS, IDR],
                &[aud, SPS, PPS, SEI, IDR],
            ),
            (
                "SEI before",
                true,
                &[SEI, IDR, SLICE],
                &[aud, SPS, PPS, SEI, IDR, SLICE],
            ),
            ("not a key frame", false, &[SLICE], &[aud, SLICE]),
            ("delimited", false, &[aud, SLICE], &[aud, SLICE]),
            ("no picture", true, &[SEI], &[aud, SPS, PPS, SEI]),
        ];
        for (what, key, given, wanted) in cases {
            let (format, data) = (h264(), unit(given));
            let pieces = with_preamble(&format, &data, key);
            assert_eq!(pieces.as_slice().concat(), unit(wanted), "{what}");
        }
    }

    #[test]
    fn keeps_a_parameter_set_that_the_track_does_not_know() {
        let other: &[u8] = &[0x68, 7, 7];
        let (format, data) = (h264(), unit(&[SPS, other, IDR]));
        let pieces = with_preamble(&format, &data, true);
        let aud = AUD.get(4..).unwrap();
        assert_eq!(
            pieces.as_slice().concat(),
            unit(&[aud, SPS, PPS, other, IDR])
        );
    }

    #[test]
    fn h265_has_three_kinds_of_sets_and_longer_headers() {
        let (vps, sps, pps): (&[u8], &[u8], &[u8]) = (&[0x40, 1, 1], &[0x42, 1, 2], &[0x44, 1, 3]);
        let (idr, trail): (&[u8], &[u8]) = (&[0x26, 1, 9], &[0x02, 1, 9]);
        let format = TrackFormat::H265 {
            vps: vec![Bytes::from_static(&[0x40, 1, 1])],
            sps: vec![Bytes::from_static(&[0x42, 1, 2])],
            pps: vec![Bytes::from_static(&[0x44, 1, 3])],
            info: VideoInfo {
                width: 64,
                height: 48,
                codec: "hvc1.1.6.L93.B0".to_owned(),
            },
        };
        let aud = H265_DELIMITER.get(4..).unwrap();
        for (key, given, wanted) in [
            (true, unit(&[idr]), unit(&[aud, vps, sps, pps, idr])),
            (
                true,
                unit(&[vps, sps, pps, idr]),
                unit(&[aud, vps, sps, pps, idr]),
            ),
            (false, unit(&[trail]), unit(&[aud, trail])),
        ] {
            let pieces = with_preamble(&format, &given, key);
            assert_eq!(pieces.as_slice().concat(), wanted);
        }
    }
}
