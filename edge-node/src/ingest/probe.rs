//! How long a file plays and what it asks of a playlist, before it is read: from the index of an MP4, from
//! first and last times of a TS.
//!
//! An estimate: a TS whose clock jumps in the middle plays otherwise. It only sets wall times.

use std::{fs::File, path::Path};

use media::{
    access_unit::SourceEvent,
    mp4::{Mp4Poll, Mp4Reader},
    sniff::Container,
    ts::demux::Demuxer,
};
use model::MediaDuration;

use super::{SourceError, file};

/// Bytes looked at from a TS file's start and from its end: some key-frame distances of any camera.
const LOOK_BYTES: u64 = 4 << 20;
/// One turn of the 33-bit clock.
const TURN: i64 = 1 << 33;

/// What a file is, as far as it can be known without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) size: u64,
    pub(crate) duration: MediaDuration,
    /// The longest distance between key frames, where an index tells it.
    pub(crate) longest_key_distance: Option<MediaDuration>,
}

/// Looks at a file.
pub(crate) fn probe(path: &Path) -> Result<Probe, SourceError> {
    let opened = file::open(path)?;
    let size = opened.size;
    match opened.container {
        Container::Mp4 => probe_mp4(&opened.file, size),
        Container::Ts => probe_ts(&opened.file, size),
    }
}

fn probe_mp4(mp4: &File, size: u64) -> Result<Probe, SourceError> {
    let mut reader = Mp4Reader::new(size);
    loop {
        match reader.poll()? {
            Mp4Poll::Read { offset, len } => {
                let data = file::read_range(mp4, offset, len)?;
                reader.handle_read(offset, data);
            }
            Mp4Poll::Ready(info) => {
                return Ok(Probe {
                    size,
                    duration: info.duration,
                    longest_key_distance: info.longest_key_distance,
                });
            }
            Mp4Poll::Event(_) => {}
            Mp4Poll::End => return Err(SourceError::NothingFound { bytes: size }),
        }
    }
}

fn probe_ts(ts: &File, size: u64) -> Result<Probe, SourceError> {
    let head = times(ts, 0, LOOK_BYTES.min(size))?;
    let tail = times(ts, size.saturating_sub(LOOK_BYTES), LOOK_BYTES)?;
    let duration = match (head, tail) {
        (Some((first, _)), Some((_, last))) => (last - first).rem_euclid(TURN),
        _ => 0,
    };
    Ok(Probe {
        size,
        duration: MediaDuration(duration),
        longest_key_distance: None,
    })
}

/// The lowest presentation time and the highest end, of all tracks, in a stretch of a TS file.
fn times(ts: &File, offset: u64, len: u64) -> Result<Option<(i64, i64)>, SourceError> {
    let data = file::read_range(ts, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
    let (mut demuxer, mut events) = (Demuxer::new(), Vec::new());
    demuxer.push(&data, &mut events);
    demuxer.finish(&mut events);
    let times = events.into_iter().filter_map(|event| match event {
        SourceEvent::AccessUnit(unit) => Some(unit.pts.0),
        _ => None,
    });
    Ok(times.fold(None, |span, pts| match span {
        None => Some((pts, pts)),
        Some((low, high)) => Some((low.min(pts), high.max(pts))),
    }))
}
