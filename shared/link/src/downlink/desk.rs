//! A session's work on the store: takes its messages one after the other, does what they ask, and answers.
//!
//! Whoever calls waits for the disk: never the loop (`worker.rs` says who does).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use link_proto::{
    Channel, SessionId,
    messages::{ProtocolError, SegmentStart, ToEdge, ToHub},
    replicate::receiver::{Job, Outcome, Partial, Receiver},
};
use model::{
    DeviceName, HoleReason, MediaDuration, RangeSet, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};
use store::{Announced, OpenSegment, SegmentWriter, Store, StoreError};

use super::{
    sight::Sight,
    worker::{Clerk, Done, Work},
};
use crate::wall_now;

/// A receiver with the store that it writes to.
pub(super) struct Desk {
    store: Store,
    session: SessionId,
    device: DeviceName,
    receiver: Receiver,
    /// The segments that each stream is writing: what is live, and backfill beside it.
    writers: HashMap<StreamName, BTreeMap<SegmentNumber, Writing>>,
    /// The run last entered for each stream.
    runs: HashMap<StreamName, RunInfo>,
    /// For each open stream the lowest number that was not used as this session opened it: what the edge says
    /// of what it holds is about those below.
    opened_at: HashMap<StreamName, SegmentNumber>,
    /// Segments that the store had found damaged when the session began: more since is a reason to compare anew.
    lost_before: u64,
    /// For whoever watches.
    sight: Arc<Sight>,
    /// Streams whose backlog may be another one than was counted.
    backlog_of: BTreeSet<StreamName>,
}

impl Clerk for Desk {
    fn take(&mut self, work: Work) -> (Option<Done>, bool) {
        let session = self.session;
        match work {
            Work::Reset => {
                self.receiver.reset();
                self.writers.clear();
                self.opened_at.clear();
                self.backlog_of.clear();
                self.sight.reset();
                (None, true)
            }
            Work::CheckOwner if self.store.scrub_totals().lost != self.lost_before => {
                tracing::info!(device = %self.device, "segments here were found damaged: the session begins anew, to ask for them again");
                (Some(Done::Failed { session }), false)
            }
            Work::CheckOwner => (self.check_owner(), true),
            Work::Count => {
                self.count_backlogs();
                (None, true)
            }
            Work::Message {
                generation,
                channel,
                message,
            } => {
                let bytes = message.len();
                match self.message(channel, message) {
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
}

struct Writing {
    writer: SegmentWriter,
    live: bool,
    /// Where the media ends that is here, by the device's clock; None where it was begun in an earlier session.
    end: Option<WallTime>,
}

impl Desk {
    pub(super) fn new(
        store: Store,
        session: SessionId,
        device: DeviceName,
        sight: Arc<Sight>,
    ) -> Self {
        Self {
            lost_before: store.scrub_totals().lost,
            store,
            session,
            device,
            receiver: Receiver::new(),
            writers: HashMap::new(),
            runs: HashMap::new(),
            opened_at: HashMap::new(),
            sight,
            backlog_of: BTreeSet::new(),
        }
    }

    fn message(&mut self, channel: Channel, message: Bytes) -> Result<Vec<ToEdge>, Fault> {
        let Some(message) = ToHub::decode(message)? else {
            tracing::debug!(device = %self.device, "a message of a later version");
            return Ok(Vec::new());
        };
        if let ToHub::Report(report) = message {
            self.sight.report(Instant::now(), wall_now(), report);
            return Ok(Vec::new());
        }
        let Some(job) = self.receiver.handle_message(channel, message)? else {
            return Ok(Vec::new());
        };
        Ok(self
            .carry_out(job)?
            .map(|outcome| self.receiver.handle_outcome(outcome))
            .unwrap_or_default())
    }

    /// Counts what is missing of the streams whose backlog has changed.
    fn count_backlogs(&mut self) {
        for stream in std::mem::take(&mut self.backlog_of) {
            match self.store.backlog(&stream) {
                Ok(backlog) => self.sight.lacks(&stream, backlog),
                // Only a number that somebody watches: the next message that needs the store tells.
                Err(error) => {
                    tracing::debug!(%stream, %error, "failed to count what is missing");
                }
            }
        }
    }

    fn backlog_changes(&mut self, stream: &StreamName) {
        if !self.backlog_of.contains(stream) {
            self.backlog_of.insert(stream.clone());
            self.sight.wants_count();
        }
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
            } => self.announce(stream, &runs, segments)?,
            Job::Start {
                start,
                live,
                instead_of,
            } => {
                let (stream, number) = (start.stream.clone(), start.number);
                for number in instead_of.into_iter().chain([number]) {
                    self.take_writer(&stream, number);
                }
                self.start_segment(&start, live)
                    .unwrap_or_else(|error| self.failed("begin", stream, number, &error))
            }
            Job::Pause { stream, number } => {
                let writing = self.take_writer(&stream, number);
                let (length, hash) = match &writing {
                    Some(Writing { writer, .. }) => (writer.bytes(), writer.hash()),
                    None => (0, SegmentHash::of(&[])),
                };
                Outcome::Paused {
                    stream,
                    partial: Partial {
                        number,
                        length,
                        hash,
                    },
                }
            }
            Job::Append {
                stream,
                number,
                data,
                part_end,
            } => {
                let writing = self.writers.get_mut(&stream);
                let appended = match writing.and_then(|writing| writing.get_mut(&number)) {
                    None => Ok(()),
                    Some(Writing { writer, .. }) => {
                        writer.append(&data).and_then(|()| match part_end {
                            Some(end) => writer.finish_part(end.duration, end.independent),
                            None => Ok(()),
                        })
                    }
                };
                let Err(error) = appended else {
                    if let Some(end) = part_end {
                        self.part_came(&stream, number, end.duration);
                    }
                    return Ok(None);
                };
                self.take_writer(&stream, number);
                self.failed("write", stream, number, &error)
            }
            Job::Close { stream, info } => {
                self.backlog_changes(&stream);
                self.close_segment(stream, &info)
            }
            Job::Settle {
                stream,
                ranges,
                reason,
            } => {
                self.backlog_changes(&stream);
                for range in ranges {
                    self.store.settle(&stream, range, reason)?;
                }
                return Ok(None);
            }
            Job::KeepOnly {
                stream,
                within,
                held,
            } => {
                self.keep_only(&stream, &within, &held)?;
                self.backlog_changes(&stream);
                return Ok(None);
            }
            Job::End { stream, last } => {
                self.store.end_stream(&stream, last)?;
                tracing::info!(%stream, last = last.map(|last| last.0), "stream ended");
                Outcome::Ended { stream, last }
            }
            Job::Restamp { stream, segments } => {
                let changed = self.store.restamp(&stream, &segments)?;
                if changed > 0 {
                    tracing::info!(device = %self.device, %stream, segments = changed, "its clock was corrected: segments got other wall times");
                }
                let Some((last, _)) = segments.last() else {
                    return Ok(None);
                };
                Outcome::Restamped {
                    stream,
                    last: *last,
                }
            }
        }))
    }

    fn register(&mut self, stream: StreamName) -> Result<Outcome, StoreError> {
        self.writers.remove(&stream);
        match self.store.register_stream(&stream, Some(&self.device)) {
            Ok(()) => {}
            Err(error @ StoreError::OwnedByOther { .. }) => {
                tracing::warn!(device = %self.device, %error, "stream refused");
                self.sight.close(&stream);
                return Ok(Outcome::StreamRefused {
                    stream,
                    reason: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        }
        self.sight.open(&stream);
        self.backlog_changes(&stream);
        let floor = self.store.floor(&stream)?;
        self.opened_at.insert(stream.clone(), floor);
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

    fn announce(
        &mut self,
        stream: StreamName,
        runs: &[RunInfo],
        mut segments: Vec<SegmentInfo>,
    ) -> Result<Outcome, StoreError> {
        self.backlog_changes(&stream);
        let mut other_run = None;
        for run in runs {
            match self.put_run(&stream, run) {
                Ok(()) => {}
                Err(StoreError::NumberUsed { .. }) => {
                    let first = segments.iter().position(|info| info.run == run.run);
                    other_run = first.into_iter().chain(other_run).min();
                }
                Err(error) => return Err(error),
            }
        }
        // The first segment of a run that is another one here; it and what follows it is not taken.
        let of_other_run = other_run.and_then(|at| segments.get(at)).map(|i| i.number);
        segments.truncate(other_run.unwrap_or(segments.len()));
        let announced: Vec<_> = segments
            .into_iter()
            .map(|info| Announced { info })
            .collect();
        let found = match self.store.announce(&stream, &announced) {
            Ok(found) => found,
            Err(error @ StoreError::TooManyAnnounced { .. }) => {
                tracing::warn!(device = %self.device, %error, "stream refused");
                self.writers.remove(&stream);
                self.sight.close(&stream);
                return Ok(Outcome::StreamRefused {
                    stream,
                    reason: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        };
        let collides = found.collides.or(of_other_run);
        if let Some(number) = collides {
            tracing::warn!(device = %self.device, %stream, number = number.0, "a number is announced that is another segment's here: the device gives its own another one");
        }
        Ok(Outcome::Announced {
            floor: self.store.floor(&stream)?,
            stream,
            stored: found.stored,
            holes: found.holes,
            collides,
        })
    }

    /// What was known before this session opened the stream and the device has no more will never come.
    fn keep_only(
        &self,
        stream: &StreamName,
        within: &RangeInclusive<SegmentNumber>,
        held: &RangeSet,
    ) -> Result<(), StoreError> {
        let Some(last) = self
            .opened_at
            .get(stream)
            .and_then(|floor| floor.0.checked_sub(1))
        else {
            return Ok(());
        };
        let within = *within.start()..=SegmentNumber(last).min(*within.end());
        let lost = self.store.keep_only(stream, &within, held)?;
        if lost > 0 {
            tracing::warn!(device = %self.device, %stream, lost, "the device does not have any more what it announced: those segments are lost");
        }
        Ok(())
    }

    fn put_run(&mut self, stream: &StreamName, run: &RunInfo) -> Result<(), StoreError> {
        if self.runs.get(stream) != Some(run) {
            self.store.put_run(stream, run)?;
            self.runs.insert(stream.clone(), run.clone());
        }
        Ok(())
    }

    fn start_segment(&mut self, start: &SegmentStart, live: bool) -> Result<Outcome, StoreError> {
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
                match self.put_run(&stream, &start.run) {
                    Ok(()) => {}
                    Err(StoreError::NumberUsed { .. }) => return self.number_used(stream, number),
                    Err(error) => return Err(error),
                }
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
                        return self.number_used(stream, number);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        if live {
            self.store.go_on_live_at(&stream, number)?;
        }
        let writing = self.writers.entry(stream).or_default();
        let end = (start.offset == 0).then_some(start.wall_start);
        writing.insert(number, Writing { writer, live, end });
        Ok(Outcome::Started)
    }

    /// A part is here whole.
    fn part_came(&mut self, stream: &StreamName, number: SegmentNumber, duration: MediaDuration) {
        let writing = self.writers.get_mut(stream);
        if let Some(writing) = writing.and_then(|writing| writing.get_mut(&number))
            && let Some(end) = &mut writing.end
        {
            *end = end.plus(duration);
            if writing.live {
                self.sight.came(Instant::now(), wall_now(), stream, *end);
            }
        }
    }

    /// The segment is not written any more; it stays as a partial where the writer is only dropped.
    fn take_writer(&mut self, stream: &StreamName, number: SegmentNumber) -> Option<Writing> {
        let writing = self.writers.get_mut(stream)?;
        let taken = writing.remove(&number);
        if writing.is_empty() {
            self.writers.remove(stream);
        }
        taken
    }

    /// A segment was begun whose number (or run) is used here.
    fn number_used(
        &self,
        stream: StreamName,
        number: SegmentNumber,
    ) -> Result<Outcome, StoreError> {
        if let Some(reason) = self.store.hole(&stream, number)? {
            return Ok(Outcome::Hole {
                stream,
                number,
                reason,
            });
        }
        Ok(Outcome::NumberUsed {
            floor: self.store.floor(&stream)?,
            stream,
            number,
        })
    }

    fn close_segment(&mut self, stream: StreamName, info: &SegmentInfo) -> Outcome {
        let number = info.number;
        let Some(Writing { writer, live, .. }) = self.take_writer(&stream, number) else {
            return Outcome::Unusable { stream, number };
        };
        // Something before it may have been announced since it began.
        if live && let Err(error) = self.store.go_on_live_at(&stream, number) {
            return self.failed("list", stream, number, &error);
        }
        match writer.close(info.duration, Some((info.bytes, info.hash))) {
            Ok(_) => {
                if live {
                    let end = info.wall_start.plus(info.duration);
                    self.sight.came(Instant::now(), wall_now(), &stream, end);
                }
                Outcome::Stored { stream, number }
            }
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
                self.sight.close(&stream);
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
