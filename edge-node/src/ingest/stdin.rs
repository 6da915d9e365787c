//! MPEG-TS on standard input: live, as it comes.
//!
//! A thread of its own reads, so that the ingest thread can stop while nothing comes, and a segment being
//! made durable keeps nobody from reading. The pipe's writer is slowed down only past a named limit.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
};

use media::{
    sniff::{Container, sniff},
    ts::demux::Demuxer,
};

use super::{Feed, Halt, MAX_SLEEP, SourceError, SourceName};

/// Bytes asked for at once; a pipe gives at most 64 KiB unless it was made larger.
const READ_BYTES: usize = 256 << 10;
/// Pieces read and not yet demuxed: with pipes' 64 KiB, 4 MiB or four seconds of 8 Mbit/s.
const MAX_QUEUED: usize = 64;

type Piece = io::Result<Vec<u8>>;

/// Feeds standard input to its end; how many bytes came.
pub(super) fn read(source: &SourceName, feed: &mut Feed<'_>) -> Result<u64, Halt> {
    feed.joiner.begin_source(false);
    let pieces = pieces(io::stdin())?;
    demux(source, &pieces, feed)
}

/// Reads in a thread of its own. It ends with the input, or with the process.
fn pieces(mut input: impl Read + Send + 'static) -> Result<Receiver<Piece>, SourceError> {
    let (sender, receiver) = sync_channel(MAX_QUEUED);
    let run = move || {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let piece = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(got) => Ok(buffer.get(..got).unwrap_or_default().to_vec()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = piece.is_err();
            if sender.send(piece).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(run)
        .map_err(SourceError::Open)?;
    Ok(receiver)
}

fn demux(source: &SourceName, pieces: &Receiver<Piece>, feed: &mut Feed<'_>) -> Result<u64, Halt> {
    let mut demuxer = Demuxer::new();
    let mut events = Vec::new();
    let mut offset = 0;
    loop {
        let mut end = None;
        match pieces.recv_timeout(MAX_SLEEP) {
            Ok(Ok(bytes)) => {
                if offset == 0 && sniff(&bytes) == Ok(Container::Mp4) {
                    return Err(SourceError::Mp4OnStdin.into());
                }
                demuxer.push(&bytes, &mut events);
                offset += bytes.len() as u64;
                feed.tally.add_read(bytes.len() as u64);
            }
            Ok(Err(source)) => end = Some(Err(SourceError::Read { offset, source })),
            Err(RecvTimeoutError::Disconnected) => end = Some(Ok(offset)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if feed.stop.is_cancelled() && end.is_none() {
            end = Some(Ok(offset));
        }
        if end.is_some() {
            demuxer.finish(&mut events);
        }
        for event in events.drain(..) {
            feed.take(source, event)?;
        }
        if let Some(end) = end {
            return Ok(end?);
        }
    }
}
