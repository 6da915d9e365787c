//! What a PMT's entries are: carried, or named so that the operator knows what to do.

use super::psi::ElementaryStream;
use crate::parameters::VideoCodec;

/// What can be done with an elementary stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Video(VideoCodec),
    /// ADTS.
    Aac,
    /// Not carried; the text says what it is and what to do.
    Other(String),
}

/// What an entry is, by stream_type (ISO/IEC 13818-1, Table 2-34, and what ATSC, DVB and others add) and,
/// where that leaves it open, by its descriptors.
pub(super) fn kind(stream: &ElementaryStream) -> Kind {
    match stream.stream_type {
        0x1b => Kind::Video(VideoCodec::H264),
        0x24 => Kind::Video(VideoCodec::H265),
        0x0f => Kind::Aac,
        0x01 => video("MPEG-1 video"),
        0x02 => video("MPEG-2 video"),
        0x10 => video("MPEG-4 part 2 video"),
        0x20 => video("H.264 MVC"),
        0x21 => video("JPEG 2000"),
        0x33 => video("H.266"),
        0x42 => video("AVS video"),
        0xd2 => video("AVS2 video"),
        0xea => video("VC-1"),
        0x03 | 0x04 => audio("MPEG audio (MP2 or MP3)"),
        0x11 => audio("AAC in LATM"),
        0x1c => audio("AAC without framing"),
        0x81 => audio("AC-3"),
        0x87 => audio("E-AC-3"),
        0x82 | 0x85 | 0x8a => audio("DTS"),
        0x80 | 0x83 => audio("PCM or TrueHD"),
        0x90..=0x9f => audio("vendor sound (perhaps G.711 or G.726)"),
        0x15 => data("metadata"),
        0x86 => data("SCTE-35 cues"),
        0x05 | 0x08..=0x0e | 0x12..=0x14 => data("data"),
        other => private(other, stream),
    }
}

fn private(stream_type: u8, stream: &ElementaryStream) -> Kind {
    match stream.registration.as_ref() {
        Some(b"HEVC") => return Kind::Video(VideoCodec::H265),
        Some(b"AV01") => return video("AV1"),
        Some(b"VC-1") => return video("VC-1"),
        Some(b"Opus") => return audio("Opus"),
        Some(b"AC-3") => return audio("AC-3"),
        Some(b"EAC3") => return audio("E-AC-3"),
        Some(b"BSSD") => return audio("SMPTE 302M sound"),
        Some(b"DTS1" | b"DTS2" | b"DTS3") => return audio("DTS"),
        Some(b"KLVA") => return data("KLV metadata"),
        _ => {}
    }
    let named = stream.descriptors.iter().find_map(|tag| match tag {
        0x6a => Some(audio("AC-3")),
        0x7a => Some(audio("E-AC-3")),
        0x7b => Some(audio("DTS")),
        0x7c => Some(audio("AAC in LATM")),
        0x56 => Some(data("teletext")),
        0x59 => Some(data("subtitles")),
        _ => None,
    });
    named.unwrap_or_else(|| {
        Kind::Other(format!(
            "a stream of unknown type 0x{stream_type:02x} is not carried"
        ))
    })
}

fn video(name: &str) -> Kind {
    Kind::Other(format!(
        "{name} is not carried: set the camera to H.264, or transcode it with ffmpeg -c:v libx264 -c:a copy"
    ))
}

fn audio(name: &str) -> Kind {
    Kind::Other(format!(
        "{name} is not carried: set the camera to AAC, or transcode it with ffmpeg -c:v copy -c:a aac"
    ))
}

fn data(name: &str) -> Kind {
    Kind::Other(format!("{name} is not carried"))
}
