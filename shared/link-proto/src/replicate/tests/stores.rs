//! Stores in memory: an edge that records, a hub that keeps what it is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use bytes::Bytes;
use model::{
    HoleReason, MediaDuration, MediaTime, PartInfo, RangeSet, RunInfo, SegmentHash, SegmentInfo,
    SegmentNumber, StreamName, WallTime,
};

use crate::{
    messages::{MAX_ANNOUNCED, MAX_RANGES, MAX_RESTAMPED, SegmentStart},
    replicate::{
        receiver::{Job, Outcome, Partial},
        sender::{AHEAD_LIMIT, Command, Held, LOOK_LIMIT, Looked, NEWEST_LIMIT, OpenFacts, Sender},
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
    /// What the hub gave up.
    pub(super) given_up: BTreeMap<SegmentNumber, HoleReason>,
    /// Unconfirmed numbers within are to become those from the second on.
    renumbering: Option<(RangeInclusive<SegmentNumber>, u64)>,
    /// Segments that can't be read.
    pub(super) unreadable: RangeSet,
    /// Its source can wait.
    pub(super) waits: bool,
    /// Where the next segment begins.
    wall: WallTime,
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
            wall_start: self.wall,
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

    /// How far the open segment has come.
    pub(super) fn written(&self) -> Option<(SegmentNumber, u64)> {
        let (facts, bytes) = self.open.as_ref()?;
        Some((facts.number, bytes.len() as u64))
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
        self.wall = info.wall_start.plus(info.duration);
        self.closed.insert(facts.number, (info, bytes));
        self.renumber_some();
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

    /// A box made from an image of this one: what it records from here on has the same numbers as what this
    /// one recorded after it.
    pub(super) fn restore(image: &Self) -> Self {
        Self {
            closed: image.closed.clone(),
            stored: image.stored.clone(),
            next: image.next,
            run: SegmentNumber(image.next),
            wall: image.wall,
            waits: image.waits,
            ..Self::default()
        }
    }

    fn is_unconfirmed(&self, number: SegmentNumber) -> bool {
        !self.stored.contains(number) && !self.given_up.contains_key(&number)
    }

    fn renumber(&mut self, number: SegmentNumber, floor: SegmentNumber) {
        let here = self.closed.contains_key(&number) && self.is_unconfirmed(number);
        if self.renumbering.is_some() || !here {
            return;
        }
        let base = floor.0.max(self.next) + 1;
        self.renumbering = Some((number..=SegmentNumber(base - 1), base));
        self.next = base + self.closed.range(number..).count() as u64 + 2;
    }

    /// Moves a few; true: there was something to move.
    fn renumber_some(&mut self) -> bool {
        let Some((range, mut next)) = self.renumbering.clone() else {
            return false;
        };
        let of_range = self.closed.range(range.clone()).map(|(&n, _)| n);
        let old: Vec<_> = of_range
            .filter(|&n| self.is_unconfirmed(n))
            .take(7)
            .collect();
        for &number in &old {
            let Some((mut info, bytes)) = self.closed.remove(&number) else {
                continue;
            };
            info.number = SegmentNumber(next);
            info.run = info.number;
            next += 1;
            self.holes.push((number..=number, HoleReason::Renumbered));
            if self.ending == Some(Some(number)) {
                (self.ending, self.ended_on_hub) = (Some(Some(info.number)), false);
            }
            self.closed.insert(info.number, (info, bytes));
        }
        let waits = self
            .open
            .as_ref()
            .is_some_and(|(f, _)| range.contains(&f.number));
        self.renumbering = (waits || !old.is_empty()).then_some((range, next));
        !old.is_empty()
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
        self.wall.0 += by_ms;
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
        here.filter(|(number, _)| self.is_unconfirmed(**number))
            .map(|(_, (info, _))| *info)
            .take(limit)
            .collect()
    }

    fn bytes(&self, number: SegmentNumber) -> Option<&[u8]> {
        if self.unreadable.contains(number) {
            return None;
        }
        match (self.closed.get(&number), &self.open) {
            (Some((_, bytes)), _) => Some(bytes),
            (None, Some((facts, bytes))) if facts.number == number => Some(bytes),
            _ => None,
        }
    }
}

fn runs<'a>(numbers: impl Iterator<Item = &'a SegmentNumber>) -> Vec<RunInfo> {
    let numbers: BTreeSet<_> = numbers.copied().collect();
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
            Command::Look {
                ticket,
                stream,
                ahead,
            } => {
                let looked = self.streams.get_mut(&stream).map(|s| {
                    if s.renumber_some() {
                        let (range, _) = s.renumbering.clone().unwrap();
                        return Looked {
                            renumbering: Some(*range.start()),
                            ..Looked::default()
                        };
                    }
                    let waiting = s.renumbering.as_ref().map(|(range, _)| range.clone());
                    let page = s.unshipped(SegmentNumber(0), LOOK_LIMIT);
                    let open = s.open.as_ref().map(|(facts, _)| facts.clone());
                    let open = open.filter(|f| !waiting.is_some_and(|w| w.contains(&f.number)));
                    let of_open = open.iter().map(|facts| &facts.run);
                    let all = s.unshipped(SegmentNumber(0), usize::MAX);
                    let newest = all[all.len().saturating_sub(NEWEST_LIMIT)..].to_vec();
                    let ahead = ahead.into_iter().flat_map(|range| {
                        let found = s.unshipped(*range.start(), AHEAD_LIMIT).into_iter();
                        found.take_while(move |info| range.contains(&info.number))
                    });
                    let ahead: Vec<_> = ahead.take(AHEAD_LIMIT).collect();
                    let of_page = page.iter().chain(&newest).chain(&ahead);
                    let of_page = of_page.map(|info| &info.run);
                    Looked {
                        live: !s.waits,
                        runs: runs(of_page.chain(of_open)),
                        newest,
                        ahead,
                        open,
                        page,
                        holes: s.holes.clone(),
                        ending: s.ending,
                        restamped: s.to_restamp(),
                        renumbering: None,
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
                    let known = std::mem::take(&mut s.stored);
                    for number in known.iter().flat_map(|r| r.start().0..=r.end().0) {
                        let number = SegmentNumber(number);
                        if settled.contains(number) {
                            s.stored.insert(number);
                        }
                    }
                    s.given_up.retain(|&number, _| settled.contains(number));
                    sender.changed();
                }
            }
            Command::MarkStored { stream, number } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.stored.insert(number);
                    sender.changed();
                }
            }
            Command::ListHeld {
                ticket,
                stream,
                from,
            } => {
                let held = self.streams.get(&stream).map(|s| {
                    let mut all: RangeSet = s
                        .unshipped(from, usize::MAX)
                        .iter()
                        .map(|info| info.number..=info.number)
                        .collect();
                    if let Some((open, _)) = s.open.as_ref().filter(|(o, _)| o.number >= from) {
                        all.insert(open.number);
                    }
                    Held {
                        ranges: all.iter().take(MAX_RANGES).collect(),
                        next: all.iter().nth(MAX_RANGES).map(|range| *range.start()),
                    }
                });
                sender.handle_held(now, ticket, &stream, held);
            }
            Command::GiveUp {
                stream,
                number,
                reason,
            } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.given_up.insert(number, reason);
                    sender.changed();
                }
            }
            Command::Renumber {
                stream,
                number,
                floor,
            } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.renumber(number, floor);
                    sender.changed();
                }
            }
            Command::Bury { stream, number } => {
                if let Some(s) = self.streams.get_mut(&stream) {
                    s.closed.remove(&number);
                    s.holes.push((number..=number, HoleReason::Corrupt));
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
    pub(super) reasons: BTreeMap<SegmentNumber, HoleReason>,
    pub(super) corrupt: RangeSet,
    pub(super) partials: BTreeMap<SegmentNumber, Vec<u8>>,
    pub(super) announced: RangeSet,
    pub(super) parts: u64,
    writing: BTreeSet<SegmentNumber>,
    /// The live list, as the store keeps it: nothing before a live segment is waited for.
    pub(super) listed: Vec<SegmentNumber>,
    looked_to: Option<SegmentNumber>,
    failures: BTreeMap<SegmentNumber, u32>,
    pub(super) ended: Option<Option<SegmentNumber>>,
}

#[derive(Default)]
pub(super) struct HubStore {
    pub(super) streams: BTreeMap<StreamName, HubStream>,
    /// Streams of another device.
    pub(super) foreign: Vec<StreamName>,
    /// Segments offered although they were known to be settled.
    pub(super) offered_again: u64,
    pub(super) disk_full: bool,
}

impl HubStream {
    fn settled(&self) -> RangeSet {
        let mut settled = self.holes.clone();
        self.here.keys().for_each(|&number| settled.insert(number));
        settled
    }

    /// What is waited for: announced or begun, and not settled.
    pub(super) fn waiting(&self) -> Vec<SegmentNumber> {
        let settled = self.settled();
        let announced = self.announced.iter().flat_map(|r| r.start().0..=r.end().0);
        let all = announced.chain(self.partials.keys().map(|number| number.0));
        let mut waiting: Vec<_> = all
            .map(SegmentNumber)
            .filter(|&number| !settled.contains(number))
            .collect();
        waiting.sort_unstable();
        waiting.dedup();
        waiting
    }

    fn floor(&self) -> SegmentNumber {
        let here = self.here.keys().next_back().copied();
        let partial = self.partials.keys().next_back().copied();
        let highest = [here, partial, self.holes.last(), self.announced.last()];
        let highest = highest.into_iter().flatten().max();
        highest.map_or(SegmentNumber(0), SegmentNumber::next)
    }

    /// Lists what is here in order, up to what is waited for.
    fn advance(&mut self) {
        let above = |looked_to: Option<SegmentNumber>| looked_to.map_or(0, |n| n.0 + 1);
        let waited = self.waiting();
        loop {
            let from = SegmentNumber(above(self.looked_to));
            let next = self.here.range(from..).next().map(|(&number, _)| number);
            let Some(next) = next else { return };
            if waited.iter().any(|n| (from..next).contains(n)) {
                return;
            }
            self.listed.push(next);
            self.looked_to = Some(next);
        }
    }

    fn hole(&self, number: SegmentNumber) -> Option<HoleReason> {
        let reason = self.reasons.get(&number).copied();
        self.holes
            .contains(number)
            .then(|| reason.unwrap_or(HoleReason::Evicted))
    }

    fn start(&mut self, start: &SegmentStart) -> bool {
        let length = self.partials.get(&start.number).map_or(0, Vec::len) as u64;
        if start.offset > 0 && start.offset != length {
            return false;
        }
        let partial = self.partials.entry(start.number).or_default();
        partial.truncate(start.offset as usize);
        self.writing.insert(start.number);
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
                state.writing.clear();
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
                let (mut stored, mut holes, mut collides) = (Vec::new(), Vec::new(), None);
                for info in segments {
                    let number = info.number;
                    if let Some((here, _)) = state.here.get(&number) {
                        if here.hash != info.hash {
                            collides = collides.or(Some(number));
                            continue;
                        }
                        stored.push(number);
                    } else if collides.is_some() {
                    } else if let Some(reason) = state.hole(number) {
                        holes.push((number, reason));
                    } else {
                        state.announced.insert(number);
                    }
                }
                Some(Outcome::Announced {
                    floor: state.floor(),
                    stream,
                    stored,
                    holes,
                    collides,
                })
            }
            Job::KeepOnly {
                stream,
                within,
                held,
            } => {
                let state = self.streams.get_mut(&stream).unwrap();
                for number in state.waiting() {
                    let is_written = state.writing.contains(&number);
                    if within.contains(&number) && !held.contains(number) && !is_written {
                        state.partials.remove(&number);
                        state.holes.insert(number);
                        state.reasons.insert(number, HoleReason::Lost);
                    }
                }
                None
            }
            Job::Start {
                start,
                live,
                instead_of,
            } => {
                let (stream, number) = (start.stream.clone(), start.number);
                let state = self.streams.get_mut(&stream).unwrap();
                if let Some(number) = instead_of {
                    assert!(state.writing.remove(&number));
                }
                if state.settled().contains(number) {
                    // What an edge does not hold is lost after it was told what is settled: should it use the
                    // number then, it can't know better.
                    // What was evicted may have been on its way as that was told.
                    let hole = state.hole(number);
                    let excused = matches!(hole, Some(HoleReason::Lost | HoleReason::Evicted));
                    if !excused && (start.offset > 0 || !state.here.contains_key(&number)) {
                        self.offered_again += 1;
                    }
                    if let Some(reason) = state.hole(number) {
                        return Some(Outcome::Hole {
                            stream,
                            number,
                            reason,
                        });
                    }
                    return Some(Outcome::NumberUsed {
                        floor: state.floor(),
                        stream,
                        number,
                    });
                }
                if live {
                    let before = number.0.checked_sub(1).map(SegmentNumber);
                    state.looked_to = state.looked_to.max(before);
                }
                Some(match state.start(&start) {
                    true => Outcome::Started,
                    false => Outcome::Unusable { stream, number },
                })
            }
            Job::Pause { stream, number } => {
                let state = self.streams.get_mut(&stream).unwrap();
                assert!(state.writing.remove(&number));
                let bytes = state.partials.get(&number).map_or(&[][..], Vec::as_slice);
                let partial = Partial {
                    number,
                    length: bytes.len() as u64,
                    hash: SegmentHash::of(bytes),
                };
                Some(Outcome::Paused { stream, partial })
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
                assert!(state.writing.contains(&number));
                // Told as a hole while it was on its way.
                let Some(partial) = state.partials.get_mut(&number) else {
                    assert!(state.holes.contains(number));
                    return Some(Outcome::Failed { stream, number });
                };
                partial.extend_from_slice(&data);
                state.parts += u64::from(part_end.is_some());
                None
            }
            Job::Close { stream, info } => {
                let number = info.number;
                let state = self.streams.get_mut(&stream).unwrap();
                assert!(state.writing.remove(&number));
                let Some(bytes) = state.partials.remove(&number) else {
                    assert!(state.holes.contains(number));
                    return Some(Outcome::Failed { stream, number });
                };
                if SegmentHash::of(&bytes) != info.hash {
                    let failures = state.failures.entry(number).or_default();
                    *failures += 1;
                    if *failures < 2 {
                        return Some(Outcome::Unusable { stream, number });
                    }
                    state.holes.insert(number);
                    state.corrupt.insert(number);
                    state.reasons.insert(number, HoleReason::Corrupt);
                    return Some(Outcome::Hole {
                        stream,
                        number,
                        reason: HoleReason::Corrupt,
                    });
                }
                let twice = state.here.insert(number, (info, bytes));
                assert!(twice.is_none(), "{stream} {number} stored twice");
                state.order.push(number);
                state.advance();
                Some(Outcome::Stored { stream, number })
            }
            Job::Settle {
                stream,
                ranges,
                reason,
            } => {
                let state = self.streams.get_mut(&stream).unwrap();
                for range in ranges {
                    state.partials.retain(|number, _| !range.contains(number));
                    let mut missing = RangeSet::from_iter([range]);
                    state.here.keys().for_each(|&n| missing.remove_range(n..=n));
                    for number in missing.iter().flat_map(|r| r.start().0..=r.end().0) {
                        let number = SegmentNumber(number);
                        if !state.holes.contains(number) {
                            state.holes.insert(number);
                            state.reasons.insert(number, reason);
                        }
                    }
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
            state.writing.clear();
            for bytes in state.partials.values_mut() {
                bytes.truncate(bytes.len().saturating_sub(lose));
            }
        }
    }
}
