//! Stores in memory: an edge that records, a hub that keeps what it is given.

use std::{collections::BTreeMap, ops::RangeInclusive};

use bytes::Bytes;
use model::{
    HoleReason, MediaDuration, MediaTime, PartInfo, RangeSet, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};

use crate::{
    messages::{MAX_ANNOUNCED, MAX_RESTAMPED, SegmentStart},
    replicate::{
        receiver::{Job, Outcome, Partial},
        sender::{Command, LOOK_LIMIT, Looked, OpenFacts, Sender},
    },
};

const PART: MediaDuration = MediaDuration(30_000);

#[derive(Default)]
pub(super) struct EdgeStream {
    pub(super) closed: BTreeMap<SegmentNumber, (SegmentInfo, Vec<u8>)>,
    pub(super) stored: RangeSet,
    open: Option<(OpenFacts, Vec<u8>)>,
    run: SegmentNumber,
    next: u64,
    pub(super) holes: Vec<(RangeInclusive<SegmentNumber>, HoleReason)>,
    pub(super) ending: Option<Option<SegmentNumber>>,
    pub(super) ended_on_hub: bool,
    /// Closed segments whose wall time was corrected, and the hub has not confirmed it.
    pub(super) restamped: RangeSet,
}

#[derive(Default)]
pub(super) struct EdgeStore {
    pub(super) streams: BTreeMap<StreamName, EdgeStream>,
}

impl EdgeStream {
    pub(super) fn open(&mut self) {
        let number = SegmentNumber(self.next);
        self.next += 1;
        let facts = OpenFacts {
            number,
            run: self.run,
            wall_start: WallTime(1_000 * number.0 as i64),
            media_start: MediaTime(90_000 * number.0 as i64),
            independent: true,
            parts: Vec::new(),
        };
        self.open = Some((facts, Vec::new()));
    }

    /// A part with these bytes.
    pub(super) fn part(&mut self, bytes: &[u8]) {
        if self.open.is_none() {
            self.open();
        }
        let Some((facts, written)) = &mut self.open else {
            return;
        };
        facts.parts.push(PartInfo {
            offset: written.len() as u64,
            bytes: bytes.len() as u64,
            duration: PART,
            independent: written.is_empty(),
        });
        written.extend_from_slice(bytes);
    }

    /// Closes what is open, with what is written of it.
    pub(super) fn close(&mut self) {
        let Some((facts, bytes)) = self.open.take() else {
            return;
        };
        if bytes.is_empty() {
            let only = facts.number..=facts.number;
            self.holes.push((only, HoleReason::CameraDown));
            return;
        }
        let info = SegmentInfo {
            number: facts.number,
            run: facts.run,
            wall_start: facts.wall_start,
            media_start: facts.media_start,
            duration: MediaDuration(PART.0 * facts.parts.len() as i64),
            bytes: bytes.len() as u64,
            hash: SegmentHash::of(&bytes),
            independent: facts.independent,
        };
        self.closed.insert(facts.number, (info, bytes));
    }

    /// A killed program: the open segment loses its last bytes and is closed; numbers may jump.
    pub(super) fn restart(&mut self, lose_parts: usize, jump: u64) {
        if let Some((facts, bytes)) = &mut self.open {
            let keep = facts.parts.len().saturating_sub(lose_parts);
            facts.parts.truncate(keep);
            let length = facts
                .parts
                .last()
                .map_or(0, |part| part.offset + part.bytes);
            bytes.truncate(length as usize);
        }
        self.close();
        self.next += jump;
        self.run = SegmentNumber(self.next);
    }

    /// The disk limit forces the oldest segment out.
    pub(super) fn evict(&mut self) {
        let Some((&number, _)) = self.closed.first_key_value() else {
            return;
        };
        self.closed.remove(&number);
        if !self.stored.contains(number) {
            self.holes.push((number..=number, HoleReason::Evicted));
        }
    }

    pub(super) fn end(&mut self) {
        self.close();
        self.ending = Some(self.closed.keys().next_back().copied());
    }

    /// The clock is corrected: everything recorded so far began that much later.
    pub(super) fn correct(&mut self, by_ms: i64) {
        for (number, (info, _)) in &mut self.closed {
            info.wall_start.0 += by_ms;
            self.restamped.insert(*number);
        }
        if let Some((facts, _)) = &mut self.open {
            facts.wall_start.0 += by_ms;
            self.restamped.insert(facts.number);
        }
    }

    fn to_restamp(&self) -> Vec<(SegmentNumber, WallTime)> {
        let here = self.closed.iter();
        here.filter(|(n, _)| self.restamped.contains(**n) && self.stored.contains(**n))
            .map(|(n, (info, _))| (*n, info.wall_start))
            .take(MAX_RESTAMPED)
            .collect()
    }

    fn unshipped(&self, from: SegmentNumber, limit: usize) -> Vec<SegmentInfo> {
        let here = self.closed.range(from..);
        here.filter(|(number, _)| !self.stored.contains(**number))
            .map(|(_, (info, _))| *info)
            .take(limit)
            .collect()
    }

    fn bytes(&self, number: SegmentNumber) -> Option<&[u8]> {
        match (self.closed.get(&number), &self.open) {
            (Some((_, bytes)), _) => Some(bytes),
            (None, Some((facts, bytes))) if facts.number == number => Some(bytes),
            _ => None,
        }
    }
}

fn runs<'a>(numbers: impl Iterator<Item = &'a SegmentNumber>) -> Vec<RunInfo> {
    let mut numbers: Vec<_> = numbers.copied().collect();
    numbers.dedup();
    let run = |run| RunInfo {
        run,
        codecs: "avc1.64001f".into(),
        resolution: Some((640, 360)),
        target_duration_s: 2,
    };
    numbers.into_iter().map(run).collect()
}

impl EdgeStore {
    /// Carries out a command and brings the answer.
    pub(super) fn execute(
        &mut self,
        now: std::time::Instant,
        command: Command,
        sender: &mut Sender,
    ) {
        match command {
            Command::Look { ticket, stream } => {
                let looked = self.streams.get(&stream).map(|s| {
                    let page = s.unshipped(SegmentNumber(0), LOOK_LIMIT);
                    let open = s.open.as_ref().map(|(facts, _)| facts.clone());
                    let of_open = open.iter().map(|facts| &facts.run);
                    Looked {
                        runs: runs(page.iter().map(|info| &info.run).chain(of_open)),
                        open,
                        page,
                        holes: s.holes.clone(),
                        ending: s.ending,
                        restamped: s.to_restamp(),
                    }
                });
                sender.handle_looked(now, ticket, &stream, looked);
            }
            Command::List {
                ticket,
                stream,
                from,
            } => {
                let listed = self.streams.get(&stream).map(|s| {
                    let page = s.unshipped(from, MAX_ANNOUNCED);
                    let runs = runs(page.iter().map(|info| &info.run));
                    (page, runs)
                });
                sender.handle_listed(now, ticket, &stream, listed);
            }
            Command::Hash {
                ticket,
                stream,
                number,
                length,
            } => {
                let bytes = self.streams.get(&stream).and_then(|s| s.bytes(number));
                let prefix = bytes.and_then(|bytes| bytes.get(..length as usize));
                sender.handle_hashed(ticket, prefix.map(SegmentHash::of));
            }
            Command::Read {
                ticket,
                stream,
                number,
                range,
            } => {
                let bytes = self.streams.get(&stream).and_then(|s| s.bytes(number));
                let wanted = bytes.and_then(|b| b.get(range.start as usize..range.end as usize));
                let read = wanted.map(Bytes::copy_from_slice);
                sender.handle_read(now, ticket, range.start, read);
            }
            Command::SetSettled { stream, settled } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.stored = settled;
                    sender.changed();
                }
            }
            Command::MarkStored { stream, number } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.stored.insert(number);
                    sender.changed();
                }
            }
            Command::MarkEnded { stream } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.ended_on_hub = true;
                }
            }
            Command::MarkRestamped { stream, segments } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    for (n, wall) in segments {
                        let now = s.closed.get(&n).map(|(info, _)| info.wall_start);
                        if now == Some(wall) {
                            s.restamped.remove_range(n..=n);
                        }
                    }
                }
            }
        }
    }
}

#[derive(Default)]
pub(super) struct HubStream {
    pub(super) here: BTreeMap<SegmentNumber, (SegmentInfo, Vec<u8>)>,
    /// In the order in which they were closed.
    pub(super) order: Vec<SegmentNumber>,
    pub(super) holes: RangeSet,
    pub(super) corrupt: RangeSet,
    pub(super) partials: BTreeMap<SegmentNumber, Vec<u8>>,
    pub(super) announced: RangeSet,
    pub(super) parts: u64,
    writing: Option<SegmentNumber>,
    failures: BTreeMap<SegmentNumber, u32>,
    pub(super) ended: Option<Option<SegmentNumber>>,
}

#[derive(Default)]
pub(super) struct HubStore {
    pub(super) streams: BTreeMap<StreamName, HubStream>,
    /// Streams of another device.
    pub(super) foreign: Vec<StreamName>,
    /// Segments offered although they were settled.
    pub(super) offered_again: u64,
    pub(super) disk_full: bool,
}

impl HubStream {
    fn settled(&self) -> RangeSet {
        let mut settled = self.holes.clone();
        self.here.keys().for_each(|&number| settled.insert(number));
        settled
    }

    fn start(&mut self, start: &SegmentStart) -> bool {
        let length = self.partials.get(&start.number).map_or(0, Vec::len) as u64;
        if start.offset > 0 && start.offset != length {
            return false;
        }
        let partial = self.partials.entry(start.number).or_default();
        partial.truncate(start.offset as usize);
        self.writing = Some(start.number);
        true
    }
}

impl HubStore {
    pub(super) fn execute(&mut self, job: Job) -> Option<Outcome> {
        match job {
            Job::Register { stream } => {
                if self.foreign.contains(&stream) {
                    return Some(Outcome::StreamRefused {
                        stream,
                        reason: "it belongs to another device".into(),
                    });
                }
                let state = self.streams.entry(stream.clone()).or_default();
                state.writing = None;
                let partials = state.partials.iter().map(|(&number, bytes)| Partial {
                    number,
                    length: bytes.len() as u64,
                    hash: SegmentHash::of(bytes),
                });
                Some(Outcome::Registered {
                    settled: state.settled(),
                    partials: partials.collect(),
                    stream,
                })
            }
            Job::Compare { stream, below } => Some(Outcome::Compared {
                settled: self.streams[&stream].settled(),
                stream,
                below,
            }),
            Job::Announce {
                stream, segments, ..
            } => {
                let state = self.streams.get_mut(&stream).unwrap();
                for info in segments {
                    state.announced.insert(info.number);
                }
                None
            }
            Job::Start(start) => {
                let (stream, number) = (start.stream.clone(), start.number);
                let state = self.streams.get_mut(&stream).unwrap();
                if state.settled().contains(number) {
                    self.offered_again += 1;
                    return Some(Outcome::AlreadySettled { stream, number });
                }
                Some(match state.start(&start) {
                    true => Outcome::Started,
                    false => Outcome::Unusable { stream, number },
                })
            }
            Job::Append {
                stream,
                number,
                data,
                part_end,
            } => {
                if self.disk_full {
                    return Some(Outcome::Failed { stream, number });
                }
                let state = self.streams.get_mut(&stream).unwrap();
                assert_eq!(state.writing, Some(number));
                state
                    .partials
                    .get_mut(&number)
                    .unwrap()
                    .extend_from_slice(&data);
                state.parts += u64::from(part_end.is_some());
                None
            }
            Job::Close { stream, info } => {
                let number = info.number;
                let state = self.streams.get_mut(&stream).unwrap();
                assert_eq!(state.writing.take(), Some(number));
                let bytes = state.partials.remove(&number).unwrap();
                if SegmentHash::of(&bytes) != info.hash {
                    let failures = state.failures.entry(number).or_default();
                    *failures += 1;
                    if *failures < 2 {
                        return Some(Outcome::Unusable { stream, number });
                    }
                    state.holes.insert(number);
                    state.corrupt.insert(number);
                    return Some(Outcome::Hole {
                        stream,
                        number,
                        reason: HoleReason::Corrupt,
                    });
                }
                let twice = state.here.insert(number, (info, bytes));
                assert!(twice.is_none(), "{stream} {number} stored twice");
                state.order.push(number);
                Some(Outcome::Stored { stream, number })
            }
            Job::Settle { stream, ranges, .. } => {
                let state = self.streams.get_mut(&stream).unwrap();
                for range in ranges {
                    state.partials.retain(|number, _| !range.contains(number));
                    let mut missing = RangeSet::from_iter([range]);
                    state.here.keys().for_each(|&n| missing.remove_range(n..=n));
                    missing.iter().for_each(|r| state.holes.insert_range(r));
                }
                None
            }
            Job::End { stream, last } => {
                self.streams.get_mut(&stream).unwrap().ended = Some(last);
                Some(Outcome::Ended { stream, last })
            }
            Job::Restamp { stream, segments } => {
                let last = segments.last()?.0;
                let state = self.streams.get_mut(&stream).unwrap();
                for (number, wall) in segments {
                    if let Some((info, _)) = state.here.get_mut(&number) {
                        info.wall_start = wall;
                    }
                }
                Some(Outcome::Restamped { stream, last })
            }
        }
    }

    /// A killed program: partials lose bytes that were not on the disk.
    pub(super) fn restart(&mut self, lose: usize) {
        for state in self.streams.values_mut() {
            state.writing = None;
            for bytes in state.partials.values_mut() {
                bytes.truncate(bytes.len().saturating_sub(lose));
            }
        }
    }
}
