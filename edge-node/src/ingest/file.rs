//! Files: MP4 and MPEG-TS, told apart by content; read in order, in constant memory.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;
use media::{
    mp4::{Mp4Poll, Mp4Reader},
    sniff::{Container, SNIFF_BYTES, sniff},
    ts::demux::Demuxer,
};

use super::{Feed, Halt, SourceError, SourceName};

/// Bytes of a TS file read at once: few system calls, and small beside any machine's memory.
const READ_BYTES: usize = 1 << 20;

/// A file that is open, and what it is.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) container: Container,
}

/// Opens a file and looks at its first bytes.
pub(super) fn open(path: &Path) -> Result<Opened, SourceError> {
    let file = File::open(path).map_err(SourceError::Open)?;
    let meta = file.metadata().map_err(SourceError::Open)?;
    if meta.is_dir() {
        return Err(SourceError::Folder);
    }
    if meta.len() == 0 {
        return Err(SourceError::Empty);
    }
    // Advice only: a file system that takes none is read all the same.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    let mut first = vec![0; SNIFF_BYTES];
    let got =
        read_at(&file, &mut first, 0).map_err(|source| SourceError::Read { offset: 0, source })?;
    first.truncate(got);
    Ok(Opened {
        container: sniff(&first)?,
        size: meta.len(),
        file,
    })
}

/// Feeds a file to its end; its length.
pub(super) fn read(source: &SourceName, path: &Path, feed: &mut Feed<'_>) -> Result<u64, Halt> {
    let opened = open(path)?;
    // Clocks of MP4 files begin at nought: that two of them meet means nothing.
    feed.joiner.begin_source(opened.container == Container::Ts);
    match opened.container {
        Container::Ts => read_ts(source, &opened, feed)?,
        Container::Mp4 => read_mp4(source, &opened, feed)?,
    }
    Ok(opened.size)
}

fn read_ts(source: &SourceName, opened: &Opened, feed: &mut Feed<'_>) -> Result<(), Halt> {
    let mut demuxer = Demuxer::new();
    let mut events = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let got = read_at(&opened.file, &mut buffer, offset)
            .map_err(|source| SourceError::Read { offset, source });
        // What was put together before a bad sector is kept.
        let (got, error) = match got {
            Ok(got) => (got, None),
            Err(error) => (0, Some(error)),
        };
        if got == 0 {
            demuxer.finish(&mut events);
        } else {
            demuxer.push(buffer.get(..got).unwrap_or_default(), &mut events);
        }
        for event in events.drain(..) {
            feed.take(source, event)?;
        }
        if let Some(error) = error {
            return Err(error.into());
        }
        if got == 0 {
            return Ok(());
        }
        offset += got as u64;
        feed.count_read(got as u64)?;
    }
}

fn read_mp4(source: &SourceName, opened: &Opened, feed: &mut Feed<'_>) -> Result<(), Halt> {
    let mut reader = Mp4Reader::new(opened.size);
    // The index is read first, wherever it is; after it the samples, in order: how far that is, is what the
    // bar shows.
    let (mut in_samples, mut counted) = (false, 0);
    loop {
        match reader.poll()? {
            Mp4Poll::Read { offset, len } => {
                let data = read_range(&opened.file, offset, len)?;
                let end = offset + data.len() as u64;
                reader.handle_read(offset, data);
                if in_samples {
                    feed.count_read(end.saturating_sub(counted))?;
                    counted = counted.max(end);
                }
            }
            Mp4Poll::Ready(_) => in_samples = true,
            Mp4Poll::Event(event) => feed.take(source, event)?,
            Mp4Poll::End => return feed.count_read(opened.size.saturating_sub(counted)),
        }
    }
}

/// A range of the file; shorter only where the file ends.
pub(super) fn read_range(file: &File, offset: u64, len: usize) -> Result<Bytes, SourceError> {
    let mut data = vec![0; len];
    let got =
        read_at(file, &mut data, offset).map_err(|source| SourceError::Read { offset, source })?;
    data.truncate(got);
    Ok(Bytes::from(data))
}

/// Fills the buffer from `offset` on as far as the file goes.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if got == 0 => return Err(e),
            // What came before a bad sector is good; the next read meets it again.
            Err(_) => break,
        }
    }
    Ok(got)
}
