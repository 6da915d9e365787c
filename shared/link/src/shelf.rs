//! The edge's disk thread: carries out the sender's commands on the store, in order, and brings answers back.
//!
//! Blocking work only, off the socket's loop. Nothing is decided here.

use bytes::Bytes;
use link_proto::{
    messages::MAX_ANNOUNCED,
    replicate::sender::{Command, LOOK_LIMIT, Looked, OpenFacts, READ_BYTES},
};
use model::{RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName};
use store::{Store, StoreError};
use tokio::sync::mpsc;

/// Errands that wait for the disk.
const QUEUE: usize = 64;

/// Places in it that commands leave free, for the few errands that can't be put off.
pub(crate) const KEPT_FREE: usize = 8;

/// Bytes hashed at a time when a prefix is compared.
const HASH_CHUNK_BYTES: u64 = 1 << 20;

/// What the disk thread is asked.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Which streams there are.
    Names,
    Command(Command),
}

/// What it brings back.
#[derive(Debug)]
pub(crate) enum Answer {
    Names(Vec<StreamName>),
    Looked {
        ticket: u64,
        stream: StreamName,
        looked: Option<Looked>,
    },
    Listed {
        ticket: u64,
        stream: StreamName,
        listed: Option<(Vec<SegmentInfo>, Vec<RunInfo>)>,
    },
    Hashed {
        ticket: u64,
        hash: Option<SegmentHash>,
    },
    Read {
        ticket: u64,
        from: u64,
        bytes: Option<Bytes>,
    },
}

/// The thread's two ends. It ends when the errands' sender is dropped.
pub(crate) struct Shelf {
    pub(crate) errands: mpsc::Sender<Errand>,
    pub(crate) answers: mpsc::Receiver<Answer>,
}

impl Shelf {
    pub(crate) fn start(store: Store) -> std::io::Result<Self> {
        let (errands, mut todo) = mpsc::channel(QUEUE);
        let (done, answers) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("uplink-disk".to_owned())
            .spawn(move || {
                while let Some(errand) = todo.blocking_recv() {
                    if let Some(answer) = carry_out(&store, errand)
                        && done.blocking_send(answer).is_err()
                    {
                        break;
                    }
                }
            })?;
        Ok(Self { errands, answers })
    }
}

fn carry_out(store: &Store, errand: Errand) -> Option<Answer> {
    match errand {
        Errand::Names => logged(store.stream_names(), "list streams").map(Answer::Names),
        Errand::Command(Command::MarkEnded { stream }) => {
            logged(store.mark_ended_on_hub(&stream), "note a stream's end");
            None
        }
        Errand::Command(Command::Look { ticket, stream }) => {
            let looked = logged(look(store, &stream), "look at a stream");
            Some(Answer::Looked {
                ticket,
                stream,
                looked,
            })
        }
        Errand::Command(Command::List {
            ticket,
            stream,
            from,
        }) => {
            let listed = store
                .unshipped(&stream, from, MAX_ANNOUNCED)
                .and_then(|page| Ok((page.clone(), runs(store, &stream, &page)?)));
            let listed = logged(listed, "list a stream");
            Some(Answer::Listed {
                ticket,
                stream,
                listed,
            })
        }
        Errand::Command(Command::Hash {
            ticket,
            stream,
            number,
            length,
        }) => {
            let hash = logged(hash(store, &stream, number, length), "hash a segment").flatten();
            Some(Answer::Hashed { ticket, hash })
        }
        Errand::Command(Command::Read {
            ticket,
            stream,
            number,
            range,
        }) => {
            let end = range.end.min(range.start.saturating_add(READ_BYTES));
            let bytes = store.read(&stream, number, range.start..end);
            Some(Answer::Read {
                ticket,
                from: range.start,
                bytes: logged(bytes, "read a segment"),
            })
        }
        Errand::Command(Command::SetSettled { stream, settled }) => {
            logged(store.set_settled(&stream, &settled), "note what is settled");
            None
        }
        Errand::Command(Command::MarkStored { stream, number }) => {
            logged(store.mark_stored(&stream, number), "note a stored segment");
            None
        }
    }
}

/// The open segment first, so that one that closes in between is in the page.
fn look(store: &Store, stream: &StreamName) -> Result<Looked, StoreError> {
    let view = store.open_view(stream)?;
    let page = store.unshipped(stream, SegmentNumber(0), LOOK_LIMIT)?;
    let mut runs = runs(store, stream, &page)?;
    if let Some(view) = &view
        && runs.iter().all(|run| run.run != view.open.run)
    {
        runs.extend(store.run(stream, view.open.run)?);
    }
    let ending = match store.ended_on_hub(stream)? {
        true => None,
        false => store.ending(stream)?,
    };
    Ok(Looked {
        open: view.map(|view| OpenFacts {
            number: view.open.number,
            run: view.open.run,
            wall_start: view.open.wall_start,
            media_start: view.open.media_start,
            independent: view.open.independent,
            parts: view.parts,
        }),
        page,
        runs,
        holes: store.holes(stream)?,
        ending,
    })
}

/// The runs of segments, each once.
fn runs(
    store: &Store,
    stream: &StreamName,
    page: &[SegmentInfo],
) -> Result<Vec<RunInfo>, StoreError> {
    let mut numbers: Vec<SegmentNumber> = page.iter().map(|info| info.run).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs = Vec::with_capacity(numbers.len());
    for number in numbers {
        runs.extend(store.run(stream, number)?);
    }
    Ok(runs)
}

/// The hash of a segment's first `length` bytes; None where it has fewer.
fn hash(
    store: &Store,
    stream: &StreamName,
    number: SegmentNumber,
    length: u64,
) -> Result<Option<SegmentHash>, StoreError> {
    let mut hasher = SegmentHash::hasher();
    let mut at = 0;
    while at < length {
        let end = length.min(at + HASH_CHUNK_BYTES);
        let bytes = store.read(stream, number, at..end)?;
        if bytes.len() as u64 != end - at {
            return Ok(None);
        }
        hasher.update(&bytes);
        at = end;
    }
    Ok(Some(hasher.hash()))
}

/// The disk's or catalog's fault: said, and tried again later by the sender.
fn logged<T>(result: Result<T, StoreError>, what: &str) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(%error, "failed to {what}"))
        .ok()
}
