//! MPEG-TS on standard input: live, as it comes.
//!
//! A thread of its own reads, so that the ingest thread can stop while nothing comes, and a segment being
//! made durable keeps nobody from reading. The pipe's writer is slowed down only past a named limit.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Instant,
};

use media::sniff::{Container, sniff};

use super::{Feed, Halt, MAX_SLEEP, SourceError, SourceName, live::Live};

/// Bytes asked for at once; a pipe gives at most 64 KiB unless it was made larger.
const READ_BYTES: usize = 256 << 10;
/// Pieces read and not yet demuxed: with pipes' 64 KiB, 4 MiB or four seconds of 8 Mbit/s.
const MAX_QUEUED: usize = 64;

type Piece = io::Result<Vec<u8>>;

/// Feeds standard input to its end; how many bytes came.
pub(super) fn read(source: &SourceName, feed: &mut Feed<'_>) -> Result<u64, Halt> {
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
    let mut live = Live::begin(false, Instant::now(), feed);
    loop {
        let mut end = None;
        match pieces.recv_timeout(MAX_SLEEP) {
            Ok(Ok(bytes)) => {
                if live.bytes() == 0 && sniff(&bytes) == Ok(Container::Mp4) {
                    return Err(SourceError::Mp4OnStdin.into());
                }
                live.push(source, &bytes, Instant::now(), feed)?;
            }
            Ok(Err(error)) => {
                end = Some(Err(SourceError::Read {
                    offset: live.bytes(),
                    source: error,
                }));
            }
            Err(RecvTimeoutError::Disconnected) => end = Some(Ok(live.bytes())),
            Err(RecvTimeoutError::Timeout) => live.tick(source, Instant::now(), feed)?,
        }
        if feed.stop.is_cancelled() && end.is_none() {
            end = Some(Ok(live.bytes()));
        }
        if let Some(end) = end {
            live.finish(source, feed)?;
            return Ok(end?);
        }
    }
}
