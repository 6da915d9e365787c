//! The hub's disk work for one session: carries out the receiver's jobs on the store, in order.
//!
//! Blocking work only, off the socket's loop; it is moved to a blocking thread for a batch of jobs and back.
//! Who may be here is answered here too, since devices and tokens are in the catalog.

use std::collections::HashMap;

use bytes::Bytes;
use link_proto::{
    messages::{Hello, MAX_FLOORS, PartEnd, SegmentStart},
    replicate::receiver::{Job, Outcome, Partial},
};
use model::{DeviceName, HoleReason, SegmentInfo, SegmentNumber, StreamName};
use store::{Announced, OpenSegment, SegmentWriter, Store, StoreError};

use crate::wall_now;

/// What a session asks of the disk.
#[derive(Debug)]
pub(crate) enum Work {
    Greet(Hello),
    Enrol {
        hello: Hello,
        token: Bytes,
    },
    EnrolConfirm {
        token: Bytes,
    },
    Replicate(Job),
    /// A message that asks for nothing.
    Nothing,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Welcome {
        name: DeviceName,
        floors: Vec<(StreamName, SegmentNumber)>,
        software: String,
        /// The device is known by this token only: it must confirm.
        enrolling: bool,
    },
    Enrolled {
        name: DeviceName,
    },
    Refused {
        reason: String,
    },
    Outcome(Outcome),
}

/// The disk's view of one session.
pub(crate) struct Intake {
    store: Store,
    key: [u8; 32],
    /// Where it comes from, for the list of devices.
    peer: String,
    device: Option<DeviceName>,
    /// The segment being received of each stream; the receiver bounds the streams.
    writers: HashMap<StreamName, SegmentWriter>,
}

impl Intake {
    pub(crate) fn new(store: Store, key: [u8; 32], peer: String) -> Self {
        Self {
            store,
            key,
            peer,
            device: None,
            writers: HashMap::new(),
        }
    }

    /// Carries out one piece of work; None where nothing is to be said.
    pub(crate) fn carry_out(&mut self, work: Work) -> Option<Done> {
        let done = match work {
            Work::Greet(hello) => self.greet(hello),
            Work::Enrol { hello, token } => self.enrol(hello, &token),
            Work::EnrolConfirm { token } => self.confirm(&token),
            Work::Replicate(job) => return self.replicate(job).map(Done::Outcome),
            Work::Nothing => return None,
        };
        Some(done.unwrap_or_else(|error| {
            tracing::error!(%error, "failed to look a device up");
            Done::Refused {
                reason: format!("the hub's catalog is in trouble: {error}"),
            }
        }))
    }

    fn greet(&mut self, hello: Hello) -> Result<Done, StoreError> {
        // Partials of an earlier life of this session wait for their streams to be opened anew.
        self.writers.clear();
        let refused = |reason: &str| Done::Refused {
            reason: reason.to_owned(),
        };
        let Some(device) = self.store.device_by_key(&self.key)? else {
            return Ok(refused(
                "this device is not known here: enrol it with a line from `hub enroll NAME`",
            ));
        };
        if !device.enabled {
            return Ok(refused(&format!(
                "device {name} is disabled: `hub device enable {name}` lets it in again",
                name = device.name
            )));
        }
        self.store.seen(&device.name, &self.peer, wall_now())?;
        self.welcome(device.name, hello, false)
    }

    fn welcome(
        &mut self,
        name: DeviceName,
        hello: Hello,
        enrolling: bool,
    ) -> Result<Done, StoreError> {
        let mut floors = Vec::new();
        for stream in self.store.streams_of(&name)?.into_iter().take(MAX_FLOORS) {
            let floor = self.store.floor(&stream)?;
            floors.push((stream, floor));
        }
        self.device = (!enrolling).then(|| name.clone());
        Ok(Done::Welcome {
            name,
            floors,
            software: hello.software,
            enrolling,
        })
    }

    fn enrol(&mut self, hello: Hello, token: &[u8]) -> Result<Done, StoreError> {
        match self.store.check_token(token, &self.key, wall_now())? {
            Ok(name) => self.welcome(name, hello, true),
            Err(error) => Ok(Done::Refused {
                reason: error.to_string(),
            }),
        }
    }

    fn confirm(&mut self, token: &[u8]) -> Result<Done, StoreError> {
        Ok(match self.store.use_token(token, &self.key, wall_now())? {
            Ok(name) => Done::Enrolled { name },
            Err(error) => Done::Refused {
                reason: error.to_string(),
            },
        })
    }

    fn replicate(&mut self, job: Job) -> Option<Outcome> {
        match job {
            Job::Register { stream } => Some(self.register(stream)),
            Job::Compare { stream, below } => Some(match self.store.settled(&stream) {
                Ok(settled) => Outcome::Compared {
                    stream,
                    below,
                    settled,
                },
                Err(error) => trouble(stream, &error),
            }),
            Job::Announce {
                stream,
                runs,
                segments,
            } => {
                let announced: Vec<_> = segments.iter().map(|&info| Announced { info }).collect();
                let done = runs
                    .iter()
                    .try_for_each(|run| self.store.put_run(&stream, run))
                    .and_then(|()| self.store.announce(&stream, &announced));
                done.err().map(|error| trouble(stream, &error))
            }
            Job::Start(start) => Some(self.start(start)),
            Job::Append {
                stream,
                number,
                data,
                part_end,
            } => self.append(stream, number, &data, part_end),
            Job::Close { stream, info } => self.close(stream, info),
            Job::Settle {
                stream,
                ranges,
                reason,
            } => {
                let done = ranges
                    .into_iter()
                    .try_for_each(|range| self.store.settle(&stream, range, reason));
                done.err().map(|error| trouble(stream, &error))
            }
            Job::End { stream, last } => Some(match self.store.end_stream(&stream, last) {
                Ok(()) => Outcome::Ended { stream, last },
                Err(error) => trouble(stream, &error),
            }),
        }
    }

    fn register(&mut self, stream: StreamName) -> Outcome {
        self.writers.remove(&stream);
        let Some(device) = &self.device else {
            return Outcome::StreamRefused {
                stream,
                reason: "this device is not enrolled yet".to_owned(),
            };
        };
        let compared = self
            .store
            .register_stream(&stream, Some(device))
            .and_then(|()| Ok((self.store.settled(&stream)?, self.store.partials(&stream)?)));
        match compared {
            Ok((settled, partials)) => Outcome::Registered {
                stream,
                settled,
                partials: partials
                    .into_iter()
                    .map(|(open, length, hash)| Partial {
                        number: open.number,
                        length,
                        hash,
                    })
                    .collect(),
            },
            Err(error) => {
                tracing::warn!(%device, %stream, %error, "refused a stream");
                Outcome::StreamRefused {
                    stream,
                    reason: error.to_string(),
                }
            }
        }
    }

    fn start(&mut self, start: SegmentStart) -> Outcome {
        let (stream, number) = (start.stream.clone(), start.number);
        // Another one that was open stays as a partial.
        self.writers.remove(&stream);
        match self.begin(start) {
            Ok(Some(writer)) => {
                self.writers.insert(stream, writer);
                Outcome::Started
            }
            Ok(None) => Outcome::Unusable { stream, number },
            Err(StoreError::NumberUsed { .. }) => match self.hole(&stream, number) {
                Some(reason) => Outcome::Hole {
                    stream,
                    number,
                    reason,
                },
                None => Outcome::AlreadySettled { stream, number },
            },
            Err(error) => failed(stream, number, &error),
        }
    }

    /// None: no partial of that length.
    fn begin(&self, start: SegmentStart) -> Result<Option<SegmentWriter>, StoreError> {
        let (stream, number) = (&start.stream, start.number);
        self.store.put_run(stream, &start.run)?;
        if let Some(partial) = self.store.resume_segment(stream, number)? {
            if start.offset > 0 && partial.bytes() == start.offset {
                return Ok(Some(partial));
            }
            partial.discard()?;
        }
        if start.offset > 0 {
            return Ok(None);
        }
        let open = OpenSegment {
            number,
            run: start.run.run,
            wall_start: start.wall_start,
            media_start: start.media_start,
            independent: start.independent,
        };
        self.store.open_segment(stream, open).map(Some)
    }

    fn append(
        &mut self,
        stream: StreamName,
        number: SegmentNumber,
        data: &[u8],
        part_end: Option<PartEnd>,
    ) -> Option<Outcome> {
        let writer = self.writer(&stream, number)?;
        let mut written = writer.append(data);
        if let (Ok(()), Some(part)) = (&written, part_end) {
            written = writer.finish_part(part.duration, part.independent);
        }
        written.err().map(|error| {
            self.writers.remove(&stream);
            failed(stream, number, &error)
        })
    }

    fn close(&mut self, stream: StreamName, info: SegmentInfo) -> Option<Outcome> {
        let number = info.number;
        self.writer(&stream, number)?;
        let writer = self.writers.remove(&stream)?;
        Some(
            match writer.close(info.duration, Some((info.bytes, info.hash))) {
                Ok(_) => Outcome::Stored { stream, number },
                Err(error @ StoreError::Segment { .. }) => {
                    tracing::warn!(%stream, number = number.0, %error, "a segment came damaged");
                    match self.hole(&stream, number) {
                        Some(reason) => Outcome::Hole {
                            stream,
                            number,
                            reason,
                        },
                        None => Outcome::Unusable { stream, number },
                    }
                }
                Err(error) => failed(stream, number, &error),
            },
        )
    }

    /// The segment now being received; a chunk of another has lost its beginning and was answered.
    fn writer(&mut self, stream: &StreamName, number: SegmentNumber) -> Option<&mut SegmentWriter> {
        self.writers
            .get_mut(stream)
            .filter(|writer| writer.number() == number)
    }

    /// Why a settled number has no segment here; None where it has one.
    fn hole(&self, stream: &StreamName, number: SegmentNumber) -> Option<HoleReason> {
        let holes = self.store.holes(stream).ok()?;
        holes
            .into_iter()
            .find(|(range, _)| range.contains(&number))
            .map(|(_, reason)| reason)
    }
}

fn failed(stream: StreamName, number: SegmentNumber, error: &StoreError) -> Outcome {
    tracing::error!(%stream, number = number.0, %error, "failed to store a segment; the edge keeps it and tries again");
    Outcome::Failed { stream, number }
}

/// The catalog failed: the stream is offered again a while later.
fn trouble(stream: StreamName, error: &StoreError) -> Outcome {
    tracing::error!(%stream, %error, "failed to compare a stream; the edge tries again");
    Outcome::StreamRefused {
        stream,
        reason: format!("the hub's catalog is in trouble: {error}"),
    }
}
