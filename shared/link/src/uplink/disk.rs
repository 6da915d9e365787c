//! The thread that reads the edge's store: carries out the sender's commands, one after the other.

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    messages::{MAX_ANNOUNCED, MAX_RANGES, MAX_RESTAMPED},
    replicate::{
        MAX_STREAMS,
        sender::{
            AHEAD_LIMIT, Command, Held, LOOK_LIMIT, Looked, NEWEST_LIMIT, OpenFacts, READ_BYTES,
            Sender,
        },
    },
};
use model::{RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName};
use store::{Store, StoreError};
use tokio::sync::mpsc;

use super::{HubTime, HubTimeTaker};

/// Commands given to the thread that it has not begun, and answers not taken: reads are bounded by the
/// sender's own limit of bytes, the rest is small.
const QUEUE: usize = 64;

/// Corrected times that the catalog could not be told to be known are told to the hub again after this.
const RESTAMP_WAIT: Duration = Duration::from_secs(10);

/// Work for the thread.
pub(super) enum Work {
    Do(Command),
    /// Which streams there are.
    Streams,
    /// The program is to hear the hub's time, and to correct what is in the store before it is told.
    HubTime(HubTimeTaker, HubTime),
}

/// An answer for the sender.
#[derive(Debug)]
pub(super) enum Answer {
    Looked {
        ticket: u64,
        stream: StreamName,
        looked: Option<Box<Looked>>,
    },
    Listed {
        ticket: u64,
        stream: StreamName,
        listed: Option<(Vec<SegmentInfo>, Vec<RunInfo>)>,
    },
    Held {
        ticket: u64,
        stream: StreamName,
        held: Option<Held>,
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
    /// In the order in which they matter.
    Streams(Vec<StreamName>),
    /// The store is as the hub's time asks.
    HubTimeTaken(HubTime),
}

impl Answer {
    /// Hands it to the sender; streams that are left out come back.
    pub(super) fn give(self, now: Instant, sender: &mut Sender) -> Vec<StreamName> {
        match self {
            Self::Looked {
                ticket,
                stream,
                looked,
            } => sender.handle_looked(now, ticket, &stream, looked.map(|looked| *looked)),
            Self::Listed {
                ticket,
                stream,
                listed,
            } => sender.handle_listed(now, ticket, &stream, listed),
            Self::Held {
                ticket,
                stream,
                held,
            } => sender.handle_held(now, ticket, &stream, held),
            Self::Hashed { ticket, hash } => sender.handle_hashed(ticket, hash),
            Self::Read {
                ticket,
                from,
                bytes,
            } => sender.handle_read(now, ticket, from, bytes),
            Self::Streams(names) => return sender.set_streams(names),
            Self::HubTimeTaken(_) => {}
        }
        Vec::new()
    }
}

/// The thread's ends.
pub(super) struct Disk {
    pub(super) work: mpsc::Sender<Work>,
    pub(super) answers: mpsc::Receiver<Answer>,
    thread: thread::JoinHandle<()>,
}

impl Disk {
    /// Ends the thread; what waits is dropped. It has let go of the store when this returns.
    pub(super) fn end(self) -> thread::Result<()> {
        let Self {
            work,
            answers,
            thread,
        } = self;
        drop((work, answers));
        thread.join()
    }
}

/// Starts the thread.
pub(super) fn start(store: Store) -> io::Result<Disk> {
    let (work, mut to_do) = mpsc::channel(QUEUE);
    let (done, answers) = mpsc::channel(QUEUE);
    let thread = thread::Builder::new()
        .name("uplink-disk".to_owned())
        .spawn(move || {
            let mut failed = Failed::default();
            while let Some(work) = to_do.blocking_recv() {
                if let Some(answer) = carry_out(&store, &mut failed, work)
                    && done.blocking_send(answer).is_err()
                {
                    return;
                }
            }
        })?;
    Ok(Disk {
        work,
        answers,
        thread,
    })
}

/// What the catalog could not be told.
#[derive(Default)]
struct Failed {
    /// Streams whose comparison with the hub it has not heard: what it calls stored may not be.
    settled: HashSet<StreamName>,
    /// Streams whose corrected times it has not heard to be known; told again after this.
    restamped: HashMap<StreamName, Instant>,
}

fn carry_out(store: &Store, failed: &mut Failed, work: Work) -> Option<Answer> {
    Some(match work {
        Work::Streams => Answer::Streams(logged("list", None, streams(store))?),
        Work::Do(Command::Look {
            ticket,
            stream,
            ahead,
        }) => Answer::Looked {
            ticket,
            looked: logged("look at", Some(&stream), look(store, &stream, &ahead)).map(
                |mut looked| {
                    if failed
                        .restamped
                        .get(&stream)
                        .is_some_and(|at| *at > Instant::now())
                    {
                        looked.restamped.clear();
                    }
                    Box::new(looked)
                },
            ),
            stream,
        },
        Work::Do(Command::List {
            ticket,
            stream,
            from,
        }) => Answer::Listed {
            ticket,
            listed: logged("list", Some(&stream), list(store, &stream, from)),
            stream,
        },
        Work::Do(Command::ListHeld {
            ticket,
            stream,
            from,
        }) => Answer::Held {
            ticket,
            held: match failed.settled.contains(&stream) {
                // All of it: the hub must not settle what it may still be given.
                true => Some(Held {
                    ranges: vec![from..=SegmentNumber(u64::MAX)],
                    next: None,
                }),
                false => logged("list", Some(&stream), held(store, &stream, from)),
            },
            stream,
        },
        Work::Do(Command::Hash {
            ticket,
            stream,
            number,
            length,
        }) => Answer::Hashed {
            ticket,
            hash: logged("hash", Some(&stream), hash(store, &stream, number, length)).flatten(),
        },
        Work::Do(Command::Read {
            ticket,
            stream,
            number,
            range,
        }) => Answer::Read {
            ticket,
            from: range.start,
            bytes: logged("read", Some(&stream), store.read(&stream, number, range)),
        },
        Work::Do(Command::SetSettled { stream, settled }) => {
            let done = known(store, &stream, || store.set_settled(&stream, &settled));
            match logged("mark", Some(&stream), done) {
                Some(()) => failed.settled.remove(&stream),
                None => failed.settled.insert(stream),
            };
            return None;
        }
        Work::Do(Command::MarkStored { stream, number }) => {
            logged("mark", Some(&stream), store.mark_stored(&stream, number))?;
            return None;
        }
        Work::Do(Command::GiveUp {
            stream,
            number,
            reason,
        }) => {
            let done = store.give_up(&stream, number, reason);
            logged("mark", Some(&stream), done)?;
            return None;
        }
        Work::Do(Command::Renumber {
            stream,
            number,
            floor,
        }) => {
            let done = store.renumber(&stream, number, floor);
            logged("renumber", Some(&stream), done)?;
            return None;
        }
        Work::Do(Command::Bury { stream, number }) => {
            let done = store.bury_unreadable(&stream, number);
            logged("bury", Some(&stream), done)?;
            return None;
        }
        Work::Do(Command::MarkEnded { stream }) => {
            logged("mark", Some(&stream), store.mark_ended_on_hub(&stream))?;
            return None;
        }
        Work::Do(Command::MarkRestamped { stream, segments }) => {
            let marked = store.mark_restamped(&stream, &segments);
            match logged("mark", Some(&stream), marked) {
                Some(()) => failed.restamped.remove(&stream),
                None => failed
                    .restamped
                    .insert(stream, Instant::now() + RESTAMP_WAIT),
            };
            return None;
        }
        Work::HubTime(take, time) => {
            take(time);
            Answer::HubTimeTaken(time)
        }
    })
}

fn logged<T>(what: &str, stream: Option<&StreamName>, result: Result<T, StoreError>) -> Option<T> {
    result
        .inspect_err(|error| match stream {
            Some(stream) => {
                tracing::warn!(%stream, %error, "failed to {what} what is to be shipped")
            }
            None => tracing::warn!(%error, "failed to {what} the streams"),
        })
        .ok()
}

/// Where there are too many, those with something to ship come first.
fn streams(store: &Store) -> Result<Vec<StreamName>, StoreError> {
    let names = store.stream_names()?;
    if names.len() <= MAX_STREAMS {
        return Ok(names);
    }
    let mut streams = store.streams()?;
    let idle = |s: &store::StreamSummary| s.unshipped == 0 && s.state != store::StreamState::Live;
    streams.sort_by_key(idle);
    Ok(streams.into_iter().map(|stream| stream.name).collect())
}

/// Does something to a stream that the hub knows; nothing where this disk has lost it.
fn known<T: Default>(
    store: &Store,
    stream: &StreamName,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match work() {
        Err(StoreError::NoSuchStream(_)) if store.stream(stream)?.is_none() => Ok(T::default()),
        done => done,
    }
}

fn held(store: &Store, stream: &StreamName, from: SegmentNumber) -> Result<Held, StoreError> {
    let page = known(store, stream, || store.held(stream, from, MAX_RANGES))?;
    Ok(Held {
        ranges: page.ranges,
        next: page.next,
    })
}

type Ranges = [RangeInclusive<SegmentNumber>];

fn look(store: &Store, stream: &StreamName, ahead: &Ranges) -> Result<Looked, StoreError> {
    known(store, stream, || look_at(store, stream, ahead))
}

/// What of these ranges is to be shipped.
fn found(
    store: &Store,
    stream: &StreamName,
    ranges: &Ranges,
) -> Result<Vec<SegmentInfo>, StoreError> {
    let mut found = Vec::new();
    for range in ranges {
        let room = AHEAD_LIMIT.saturating_sub(found.len());
        if room == 0 {
            break;
        }
        let page = store.unshipped(stream, *range.start(), room)?;
        found.extend(page.into_iter().filter(|info| range.contains(&info.number)));
    }
    Ok(found)
}

fn look_at(store: &Store, stream: &StreamName, ahead: &Ranges) -> Result<Looked, StoreError> {
    if let Some(from) = store.go_on_renumbering(stream)? {
        return Ok(Looked {
            renumbering: Some(from),
            ..Looked::default()
        });
    }
    // What is open among numbers that wait for others gets another one once it is closed.
    let waiting = store.renumbering(stream)?;
    // In this order a segment that closes, or an end that is told, in between is seen or seen next time.
    let ending = store.ending(stream)?;
    let open = store.open_view(stream)?;
    let open = open.filter(|view| !is_waiting(&waiting, view.open.number));
    let open = open.map(|view| OpenFacts {
        number: view.open.number,
        run: view.open.run,
        wall_start: view.open.wall_start,
        media_start: view.open.media_start,
        independent: view.open.independent,
        parts: view.parts,
    });
    let mut page = store.unshipped(stream, SegmentNumber(0), LOOK_LIMIT)?;
    let mut newest = match page.len() {
        LOOK_LIMIT => store.newest_unshipped(stream, NEWEST_LIMIT)?,
        // They are in the page.
        _ => Vec::new(),
    };
    let mut ahead = match page.len() {
        LOOK_LIMIT => found(store, stream, ahead)?,
        _ => Vec::new(),
    };
    ahead.retain(|info| !is_waiting(&waiting, info.number));
    page.retain(|info| !is_waiting(&waiting, info.number));
    newest.retain(|info| !is_waiting(&waiting, info.number));
    let of_page = page.iter().chain(&newest).chain(&ahead);
    let of_page = of_page.map(|info| info.run);
    Ok(Looked {
        runs: runs(
            store,
            stream,
            of_page.chain(open.iter().map(|open| open.run)),
        )?,
        open,
        page,
        live: store.is_live_source(stream),
        newest,
        ahead,
        holes: store.gone(stream)?,
        ending,
        restamped: store.restamped(stream, MAX_RESTAMPED)?,
        renumbering: None,
    })
}

/// Among numbers that wait for others.
fn is_waiting(waiting: &Option<RangeInclusive<SegmentNumber>>, number: SegmentNumber) -> bool {
    let waits = |range: &RangeInclusive<_>| range.contains(&number);
    waiting.as_ref().is_some_and(waits)
}

fn list(
    store: &Store,
    stream: &StreamName,
    from: SegmentNumber,
) -> Result<(Vec<SegmentInfo>, Vec<RunInfo>), StoreError> {
    let mut page = store.unshipped(stream, from, MAX_ANNOUNCED)?;
    let waiting = store.renumbering(stream)?;
    page.retain(|info| !is_waiting(&waiting, info.number));
    let runs = runs(store, stream, page.iter().map(|info| info.run))?;
    Ok((page, runs))
}

fn runs(
    store: &Store,
    stream: &StreamName,
    numbers: impl Iterator<Item = SegmentNumber>,
) -> Result<Vec<RunInfo>, StoreError> {
    let mut runs: Vec<RunInfo> = Vec::new();
    for number in numbers {
        if runs.iter().any(|run| run.run == number) {
            continue;
        }
        match store.run(stream, number)? {
            Some(run) => runs.push(run),
            None => {
                tracing::error!(%stream, run = number.0, "a segment's run is not in the catalog")
            }
        }
    }
    Ok(runs)
}

fn hash(
    store: &Store,
    stream: &StreamName,
    number: SegmentNumber,
    length: u64,
) -> Result<Option<SegmentHash>, StoreError> {
    let mut hasher = SegmentHash::hasher();
    let mut at = 0;
    while at < length {
        let bytes = store.read(stream, number, at..length.min(at + READ_BYTES))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        hasher.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(Some(hasher.hash()))
}
