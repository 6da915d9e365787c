//! Which container a source is, from its first bytes.

/// A container that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    Mp4,
    Ts,
}

/// Bytes that are neither container. Whoever chose the source is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotMedia(String);

/// Best with the first [`SNIFF_BYTES`] of the source, or all of it if it is shorter.
pub fn sniff(first: &[u8]) -> Result<Container, NotMedia> {
    if first.get(4..8) == Some(b"ftyp") {
        Ok(Container::Mp4)
    } else if first.first() == Some(&0x47) {
        Ok(Container::Ts)
    } else {
        Err(NotMedia("neither MP4 nor MPEG-TS".to_owned()))
    }
}

/// How many first bytes [`sniff`] wants: enough for a run of sync bytes behind some junk.
pub const SNIFF_BYTES: usize = 8 << 10;
