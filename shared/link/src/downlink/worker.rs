//! One thread for each session: takes its messages one after the other, does what they ask of the store, and
//! answers. The loop never waits for it; a slow disk shows as credit that is not given back.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use link_proto::{
    Channel, SessionId,
    messages::{ProtocolError, SegmentStart, ToEdge, ToHub},
    replicate::receiver::{Job, Outcome, Partial, Receiver},
};
use model::{DeviceName, HoleReason, RunInfo, SegmentInfo, SegmentNumber, StreamName};
use store::{Announced, OpenSegment, SegmentWriter, Store, StoreError};
use tokio::sync::mpsc;

/// What waits for a session's thread at most, in messages and other work. The session's receive windows bound
/// messages long before, since one is charged for until the thread has dealt with it; renewed channels begin
/// with new windows, and so must not be renewed for ever while the disk hangs.
const MAX_WAITING: usize = 65_536;
/// The same in bytes of messages.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What a session's thread is told.
#[derive(Debug)]
pub(super) enum Work {
    Message {
        generation: u64,
        channel: Channel,
        message: Bytes,
    },
    /// The channels were renewed: the edge begins anew.
    Reset,
    /// See whether the streams are still this device's.
    CheckOwner,
}

/// What a session's thread says.
#[derive(Debug)]
pub(super) enum Done {
    /// A message was dealt with.
    Taken {
        session: SessionId,
        generation: u64,
        channel: Channel,
        bytes: usize,
        answers: Vec<ToEdge>,
    },
    /// Streams were taken from the device.
    Refused {
        session: SessionId,
        answers: Vec<ToEdge>,
    },
    /// The edge is at fault.
    Violation {
        session: SessionId,
        error: ProtocolError,
    },
    /// The hub's disk or catalog is at fault; the edge may come back and try again.
    Failed { session: SessionId },
}

/// A session's thread, as the loop holds it.
pub(super) struct Worker {
    work: mpsc::UnboundedSender<Work>,
    waiting: Arc<Waiting>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// What waits for the thread.
#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// One look at whose the streams are says as much as many.
    check: AtomicBool,
}

impl Waiting {
    /// False: there is no room, or no need.
    fn enter(&self, work: &Work) -> Result<bool, Overrun> {
        let bytes = work.bytes();
        if matches!(work, Work::CheckOwner) && self.check.swap(true, Ordering::Relaxed) {
            return Ok(false);
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if count >= MAX_WAITING || before + bytes > MAX_WAITING_BYTES {
            return Err(Overrun);
        }
        Ok(true)
    }

    fn leave(&self, work: &Work) {
        if matches!(work, Work::CheckOwner) {
            self.check.store(false, Ordering::Relaxed);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(work.bytes(), Ordering::Relaxed);
    }
}

/// More waits for a session's thread than may: its disk hangs, and the session must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.len(),
            Self::Reset | Self::CheckOwner => 0,
        }
    }
}

impl Worker {
    /// `before`: the thread of the device's last session, which must have let go of its partials first.
    pub(super) fn start<T: From<Done> + Send + 'static>(
        store: Store,
        session: SessionId,
        device: DeviceName,
        before: Option<JoinHandle<()>>,
        done: mpsc::Sender<T>,
    ) -> io::Result<Self> {
        let (work, mut to_do) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let waiting = Arc::new(Waiting::default());
        let waits = Arc::clone(&waiting);
        let thread = thread::Builder::new()
            .name(format!("downlink-{device}"))
            .spawn(move || {
                if let Some(before) = before {
                    // One that panicked has let go too.
                    let _ = before.join();
                }
                let mut desk = Desk::new(store, session, device);
                while let Some(work) = to_do.blocking_recv() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    waits.leave(&work);
                    let (said, goes_on) = desk.take(work);
                    if said.is_some_and(|said| done.blocking_send(said.into()).is_err()) || !goes_on
                    {
                        return;
                    }
                }
            })?;
        Ok(Self {
            work,
            waiting,
            stop,
            thread,
        })
    }

    /// One more thing to do. After a failure the thread is gone and nothing is done.
    pub(super) fn give(&self, work: Work) -> Result<(), Overrun> {
        if self.waiting.enter(&work)? {
            let _ = self.work.send(work);
        }
        Ok(())
    }

    /// It ends after what it does just now; what waits is dropped, for the edge to ship again.
    pub(super) fn stop(self) -> JoinHandle<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
    }
}

/// A receiver with the store that it writes to.
struct Desk {
    store: Store,
    session: SessionId,
    device: DeviceName,
    receiver: Receiver,
    /// The segment that each stream is writing.
    writers: HashMap<StreamName, SegmentWriter>,
    /// The run last entered for each stream.
    runs: HashMap<StreamName, RunInfo>,
}

impl Desk {
    fn new(store: Store, session: SessionId, device: DeviceName) -> Self {
        Self {
            store,
            session,
            device,
            receiver: Receiver::new(),
            writers: HashMap::new(),
            runs: HashMap::new(),
        }
    }

    /// What to say of it, and whether to go on.
    fn take(&mut self, work: Work) -> (Option<Done>, bool) {
        let session = self.session;
        match work {
            Work::Reset => {
                self.receiver.reset();
                self.writers.clear();
                (None, true)
            }
            Work::CheckOwner => (self.check_owner(), true),
            Work::Message {
                generation,
                channel,
                message,
            } => {
                let bytes = message.len();
                match self.message(message) {
                    Ok(answers) => {
                        let taken = Done::Taken {
                            session,
                            generation,
                            channel,
                            bytes,
                            answers,
                        };
                        (Some(taken), true)
                    }
                    Err(Fault::Edge(error)) => (Some(Done::Violation { session, error }), false),
                    Err(Fault::Store(error)) => {
                        if is_told(&self.store, &error) {
                            return (Some(Done::Failed { session }), false);
                        }
                        tracing::error!(device = %self.device, %error, "failed to do what an edge asks");
                        (Some(Done::Failed { session }), false)
                    }
                }
            }
        }
    }

    fn message(&mut self, message: Bytes) -> Result<Vec<ToEdge>, Fault> {
        let Some(message) = ToHub::decode(message)? else {
            tracing::debug!(device = %self.device, "a message of a later version");
            return Ok(Vec::new());
        };
        let Some(job) = self.receiver.handle_message(message)? else {
            return Ok(Vec::new());
        };
        Ok(self
            .carry_out(job)?
            .map(|outcome| self.receiver.handle_outcome(outcome))
            .unwrap_or_default())
    }

    fn carry_out(&mut self, job: Job) -> Result<Option<Outcome>, StoreError> {
        Ok(Some(match job {
            Job::Register { stream } => self.register(stream)?,
            Job::Compare { stream, below } => Outcome::Compared {
                settled: self.store.settled(&stream)?,
                stream,
                below,
            },
            Job::Announce {
                stream,
                runs,
                segments,
            } => {
                for run in &runs {
                    self.put_run(&stream, run)?;
                }
                let announced: Vec<_> = segments
                    .into_iter()
                    .map(|info| Announced { info })
                    .collect();
                self.store.announce(&stream, &announced)?;
                return Ok(None);
            }
            Job::Start(start) => {
                let (stream, number) = (start.stream.clone(), start.number);
                self.writers.remove(&stream);
                self.start_segment(&start)
                    .unwrap_or_else(|error| self.failed("begin", stream, number, &error))
            }
            Job::Append {
                stream,
                number,
                data,
                part_end,
            } => {
                let appended = match self.writers.get_mut(&stream) {
                    None => Ok(()),
                    Some(writer) => writer.append(&data).and_then(|()| match part_end {
                        Some(end) => writer.finish_part(end.duration, end.independent),
                        None => Ok(()),
                    }),
                };
                let Err(error) = appended else {
                    return Ok(None);
                };
                self.writers.remove(&stream);
                self.failed("write", stream, number, &error)
            }
            Job::Close { stream, info } => self.close_segment(stream, &info),
            Job::Settle {
                stream,
                ranges,
                reason,
            } => {
                for range in ranges {
                    self.store.settle(&stream, range, reason)?;
                }
                return Ok(None);
            }
            Job::End { stream, last } => {
                self.store.end_stream(&stream, last)?;
                tracing::info!(%stream, last = last.map(|last| last.0), "stream ended");
                Outcome::Ended { stream, last }
            }
        }))
    }

    fn register(&mut self, stream: StreamName) -> Result<Outcome, StoreError> {
        self.writers.remove(&stream);
        match self.store.register_stream(&stream, Some(&self.device)) {
            Ok(()) => {}
            Err(error @ StoreError::OwnedByOther { .. }) => {
                tracing::warn!(device = %self.device, %error, "stream refused");
                return Ok(Outcome::StreamRefused {
                    stream,
                    reason: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        }
        let partials = self.store.partials(&stream)?;
        let partials = partials.into_iter().map(|(open, length, hash)| Partial {
            number: open.number,
            length,
            hash,
        });
        Ok(Outcome::Registered {
            settled: self.store.settled(&stream)?,
            partials: partials.collect(),
            stream,
        })
    }

    fn put_run(&mut self, stream: &StreamName, run: &RunInfo) -> Result<(), StoreError> {
        if self.runs.get(stream) != Some(run) {
            self.store.put_run(stream, run)?;
            self.runs.insert(stream.clone(), run.clone());
        }
        Ok(())
    }

    fn start_segment(&mut self, start: &SegmentStart) -> Result<Outcome, StoreError> {
        let (stream, number) = (start.stream.clone(), start.number);
        let writer = match self.store.resume_segment(&stream, number)? {
            Some(partial) if start.offset > 0 && partial.bytes() == start.offset => partial,
            partial => {
                if let Some(partial) = partial {
                    partial.discard()?;
                }
                if start.offset > 0 {
                    return Ok(Outcome::Unusable { stream, number });
                }
                self.put_run(&stream, &start.run)?;
                let open = OpenSegment {
                    number,
                    run: start.run.run,
                    wall_start: start.wall_start,
                    media_start: start.media_start,
                    independent: start.independent,
                };
                match self.store.open_segment(&stream, open) {
                    Ok(writer) => writer,
                    Err(StoreError::NumberUsed { .. }) => {
                        return Ok(Outcome::AlreadySettled { stream, number });
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.writers.insert(stream, writer);
        Ok(Outcome::Started)
    }

    fn close_segment(&mut self, stream: StreamName, info: &SegmentInfo) -> Outcome {
        let number = info.number;
        let Some(writer) = self.writers.remove(&stream) else {
            return Outcome::Unusable { stream, number };
        };
        match writer.close(info.duration, Some((info.bytes, info.hash))) {
            Ok(_) => Outcome::Stored { stream, number },
            Err(error @ StoreError::Segment { .. }) => {
                tracing::warn!(device = %self.device, %error, "segment not taken");
                // The store counts: the second time it has settled the number itself.
                match self.store.settled(&stream) {
                    Ok(settled) if !settled.contains(number) => {
                        Outcome::Unusable { stream, number }
                    }
                    Ok(_) => Outcome::Hole {
                        stream,
                        number,
                        reason: HoleReason::Corrupt,
                    },
                    Err(error) => self.failed("look up", stream, number, &error),
                }
            }
            Err(error) => self.failed("close", stream, number, &error),
        }
    }

    fn failed(
        &self,
        what: &str,
        stream: StreamName,
        number: SegmentNumber,
        error: &StoreError,
    ) -> Outcome {
        if is_told(&self.store, error) {
            tracing::debug!(%stream, number = number.0, %error, "failed to {what} a segment");
        } else {
            tracing::error!(%stream, number = number.0, %error, "failed to {what} a segment");
        }
        Outcome::Failed { stream, number }
    }

    /// Streams that an operator gave to another device, or removed, are refused from now on.
    fn check_owner(&mut self) -> Option<Done> {
        let mine = self
            .store
            .streams_of(&self.device)
            .inspect_err(|error| tracing::warn!(device = %self.device, %error, "failed to see which streams it has"))
            .ok()?;
        let lost: Vec<_> = self
            .receiver
            .streams()
            .filter(|stream| !mine.contains(stream))
            .cloned()
            .collect();
        let answers: Vec<_> = lost
            .into_iter()
            .map(|stream| {
                tracing::warn!(device = %self.device, %stream, "the stream is not this device's any more");
                self.writers.remove(&stream);
                let reason = format!("stream {stream} was taken from device {}", self.device);
                self.receiver.refuse(stream, reason)
            })
            .collect();
        (!answers.is_empty()).then_some(Done::Refused {
            session: self.session,
            answers,
        })
    }
}

/// Who is at fault for what a message led to.
enum Fault {
    Edge(ProtocolError),
    Store(StoreError),
}

impl From<ProtocolError> for Fault {
    fn from(error: ProtocolError) -> Self {
        Self::Edge(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The disk is at fault: the store says so once, not with each segment.
fn is_told(store: &Store, error: &StoreError) -> bool {
    store.note_disk_fault(error);
    error.disk_fault().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_hung_disk_has_an_end() {
        let waiting = Waiting::default();
        assert_eq!(waiting.enter(&Work::CheckOwner), Ok(true));
        assert_eq!(waiting.enter(&Work::CheckOwner), Ok(false));
        waiting.leave(&Work::CheckOwner);
        assert_eq!(waiting.enter(&Work::CheckOwner), Ok(true));
        waiting.leave(&Work::CheckOwner);
        for _ in 0..MAX_WAITING {
            assert_eq!(waiting.enter(&Work::Reset), Ok(true));
        }
        assert_eq!(waiting.enter(&Work::Reset), Err(Overrun));

        let waiting = Waiting::default();
        let message = || Work::Message {
            generation: 0,
            channel: Channel::Bulk,
            message: Bytes::from(vec![0; MAX_WAITING_BYTES / 4]),
        };
        for _ in 0..4 {
            assert_eq!(waiting.enter(&message()), Ok(true));
        }
        assert_eq!(waiting.enter(&message()), Err(Overrun));
    }
}
