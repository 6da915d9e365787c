//! Which container a source is, from its first bytes; where it is none that can be read, what it seems to
//! be and what to do.

use crate::ts::packet::{PACKET_BYTES, STRIDES, SYNC_BYTE};

/// How many first bytes [`sniff`] wants: enough for a run of packets behind some junk.
pub const SNIFF_BYTES: usize = 8 << 10;

/// Sync bytes in a row that are taken for MPEG-TS.
const SYNC_RUN: usize = 5;

/// A container that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    Mp4,
    Ts,
}

/// Bytes that are neither container. Whoever chose the source is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMedia {
    #[error("it is empty")]
    Empty,
    #[error(
        "it is {0}, not MP4 or MPEG-TS; put it into one of them: ffmpeg -i IN -c copy -f mpegts OUT.ts"
    )]
    Other(&'static str),
    #[error("it is neither MP4 nor MPEG-TS{0}")]
    Unknown(&'static str),
}

/// Best with the first [`SNIFF_BYTES`] of the source, or all of it if it is shorter.
pub fn sniff(first: &[u8]) -> Result<Container, NotMedia> {
    if first.is_empty() {
        return Err(NotMedia::Empty);
    }
    if is_mp4(first) {
        return Ok(Container::Mp4);
    }
    if is_ts(first) {
        return Ok(Container::Ts);
    }
    let known = MAGIC.iter().find(|(at, magic, _)| {
        let rest = first.get(*at..).unwrap_or_default();
        rest.starts_with(magic)
    });
    if let Some((_, _, name)) = known {
        return Err(NotMedia::Other(name));
    }
    let text = first
        .iter()
        .take(512)
        .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    Err(NotMedia::Unknown(if text { ": it is text" } else { "" }))
}

/// Where other formats say what they are.
const MAGIC: [(usize, &[u8], &str); 12] = [
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"FLV\x01", "FLV"),
    (8, b"AVI ", "AVI"),
    (8, b"WAVE", "WAV"),
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"ID3", "MP3"),
    (0, b"\x00\x00\x01\xba", "an MPEG program stream"),
    (0, b"\x30\x26\xb2\x75", "ASF or WMV"),
    (0, b"\x06\x0e\x2b\x34", "MXF"),
    (0, b"\x00\x00\x00\x01", "a bare H.264 or H.265 stream"),
    (0, b"\xff\xf1", "a bare AAC stream"),
];

/// The first box has a type that a file can begin with.
fn is_mp4(first: &[u8]) -> bool {
    let kinds: [&[u8]; 8] = [
        b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot",
    ];
    first.get(4..8).is_some_and(|kind| kinds.contains(&kind))
}

/// A run of sync bytes begins somewhere, or all that there is is packets.
fn is_ts(first: &[u8]) -> bool {
    let run = |from: usize, stride: usize| {
        let mut places = first.iter().skip(from).step_by(stride).take(SYNC_RUN);
        places.all(|&b| b == SYNC_BYTE)
    };
    let room = first.len().saturating_sub(PACKET_BYTES - 1);
    STRIDES.into_iter().any(|stride| {
        let behind_junk = first.len().saturating_sub((SYNC_RUN - 1) * stride);
        // In a short source, packets must begin at its beginning, or behind the time of M2TS.
        let starts = behind_junk.max(room.min(5));
        (0..starts).any(|from| run(from, stride))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers() {
        let packet = |fill: u8| [&[SYNC_BYTE][..], &[fill; 187]].concat();
        let packets: Vec<u8> = (0..8).flat_map(packet).collect();
        assert_eq!(sniff(&packets), Ok(Container::Ts));
        assert_eq!(sniff(&packets[..188]), Ok(Container::Ts));
        assert_eq!(sniff(&packets[100..]), Ok(Container::Ts));
        let m2ts: Vec<u8> = (0..8)
            .flat_map(|i| [vec![0; 4], packet(i)].concat())
            .collect();
        assert_eq!(sniff(&m2ts), Ok(Container::Ts));
        assert_eq!(sniff(b"\0\0\0\x20ftypisom"), Ok(Container::Mp4));
        assert_eq!(sniff(b"\0\0\0\x01mdat\0\0\0\0"), Ok(Container::Mp4));
    }

    #[test]
    fn what_is_none_is_named() {
        for (bytes, wanted) in [
            (&b""[..], "it is empty"),
            (b"#EXTM3U\n", "neither MP4 nor MPEG-TS: it is text"),
            (b"\x1a\x45\xdf\xa3....", "Matroska"),
            (b"RIFF....AVI LIST", "AVI"),
            (b"\x00\x00\x01\xba\x44", "program stream"),
            (b"G", "it is text"),
            (&[0x11; 4000], "it is neither MP4 nor MPEG-TS"),
            (&[0x89, b'P', b'N', b'G'], "it is neither MP4 nor MPEG-TS"),
        ] {
            let text = sniff(bytes).unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }
}
