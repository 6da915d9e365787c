//! What the hub says, what the store answers, and what follows from it for the segments on their way.

use super::*;

impl Sender {
    /// What the hub says. An error ends the session: the hub is at fault. What it says of a stream or segment
    /// that is not (or no longer) on its way is dropped.
    pub fn handle_message(&mut self, now: Instant, message: ToEdge) -> Result<(), ProtocolError> {
        match message {
            ToEdge::Welcome { .. } | ToEdge::Enrolled | ToEdge::Refused { .. } => {
                return Err(ProtocolError::OutOfOrder("a greeting"));
            }
            ToEdge::Resume {
                stream,
                number,
                length,
                hash,
            } => {
                self.may_begin = true;
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.partial(number, length, hash);
                }
            }
            ToEdge::Settled(page) => {
                let Some(stream) = self.streams.get_mut(&page.stream) else {
                    return Ok(());
                };
                if stream.compare(&page)? {
                    let settled = stream.tell();
                    self.commands.push_back(Command::SetSettled {
                        stream: page.stream,
                        settled,
                    });
                } else {
                    self.control.push_back(ToHub::SettledNext {
                        stream: page.stream,
                        cursor: page.cursor,
                    });
                }
            }
            ToEdge::StreamRefused { stream, reason } => {
                self.flows.retain(|flow| flow.stream != stream);
                self.pauses
                    .retain(|(_, pause)| !matches!(pause, ToHub::SegmentPaused { stream: of, .. } if *of == stream));
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.renew();
                    state.phase = Phase::Refused {
                        reason,
                        again_at: now + REFUSED_WAIT,
                    };
                }
            }
            ToEdge::Stored { stream, number } => self.settled(&stream, number, None),
            ToEdge::Hole {
                stream,
                number,
                reason,
            } => self.settled(&stream, number, Some(reason)),
            ToEdge::Collides {
                stream,
                number,
                floor,
                compared,
            } => {
                self.take_off(&stream, number);
                if let Some(state) = self.streams.get_mut(&stream).filter(|s| s.is_shipping()) {
                    if compared {
                        state.collide(Collision { number, floor });
                        self.flows.retain(|flow| flow.stream != stream);
                    } else {
                        state.hold(number);
                    }
                }
            }
            ToEdge::Again {
                stream,
                number,
                wait_ms,
            } => {
                let wait = Duration::from_millis(u64::from(wait_ms));
                self.take_back(&stream, number, (wait_ms > 0).then(|| now + wait));
            }
            ToEdge::Ended { stream, last } => {
                if let Some(state) = self.streams.get_mut(&stream)
                    && state.ended(last)
                {
                    self.commands.push_back(Command::MarkEnded { stream });
                }
            }
            ToEdge::Want { stream, ranges } => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.want(ranges);
                    self.reclass(&stream);
                }
            }
            ToEdge::Restamped { stream, last } => {
                let state = self.streams.get_mut(&stream);
                if let Some(segments) = state.and_then(|state| state.restamped(last)) {
                    self.commands
                        .push_back(Command::MarkRestamped { stream, segments });
                }
            }
        }
        Ok(())
    }

    /// The answer to [`Command::Look`]; None where the store failed.
    pub fn handle_looked(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        looked: Option<Looked>,
    ) {
        let waits = |state: &&mut Stream| state.looking == Some(ticket);
        let Some(state) = self.streams.get_mut(stream).filter(waits) else {
            return;
        };
        self.may_begin = true;
        let Some(looked) = looked else {
            state.looking = None;
            state.restart(Some(now + READ_WAIT));
            return;
        };
        // A segment on its way may have got parts, have closed, or be gone.
        self.flows.retain_mut(|flow| {
            if flow.stream != *stream {
                return true;
            }
            let newer = looked.newest.iter().chain(&looked.ahead);
            if let Some(info) = looked
                .page
                .iter()
                .chain(newer)
                .find(|info| info.number == flow.number)
            {
                return flow.close(*info);
            }
            match &looked.open {
                Some(open) if open.number == flow.number => {
                    flow.grow(&open.parts);
                    true
                }
                // Between the oldest and the newest not all is listed.
                _ => {
                    let last = looked.page.last().map(|info| info.number);
                    looked.page.len() >= LOOK_LIMIT && last.is_some_and(|last| flow.number > last)
                }
            }
        });
        let begun: Vec<_> = self
            .flows
            .iter()
            .filter(|flow| flow.stream == *stream)
            .map(|flow| flow.number)
            .collect();
        let messages = state.looked(now, stream, looked, &begun);
        self.control.extend(messages);
        self.demote(now);
    }

    /// The answer to [`Command::List`] with the runs of its segments; None where the store failed.
    pub fn handle_listed(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        listed: Option<(Vec<SegmentInfo>, Vec<RunInfo>)>,
    ) {
        let waits = |state: &&mut Stream| state.listing == Some(ticket);
        let Some(state) = self.streams.get_mut(stream).filter(waits) else {
            return;
        };
        self.may_begin = true;
        match listed {
            Some((page, runs)) => self.control.extend(state.listed(stream, &page, &runs)),
            None => {
                state.listing = None;
                state.restart(Some(now + READ_WAIT));
            }
        }
    }

    /// The answer to [`Command::ListHeld`]; None where the store failed.
    pub fn handle_held(
        &mut self,
        now: Instant,
        ticket: u64,
        stream: &StreamName,
        held: Option<Held>,
    ) {
        self.may_begin = true;
        if let Some(state) = self.streams.get_mut(stream) {
            let message = state.held(stream, ticket, held, now + READ_WAIT);
            self.control.extend(message);
        }
    }

    /// The answer to [`Command::Hash`]; None where it could not be read.
    pub fn handle_hashed(&mut self, ticket: u64, hash: Option<SegmentHash>) {
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.ticket == ticket) {
            flow.hashed(hash);
        }
    }

    /// The answer to [`Command::Read`]: bytes from `from` on; None where they could not be read.
    pub fn handle_read(&mut self, now: Instant, ticket: u64, from: u64, bytes: Option<Bytes>) {
        let Some(flow) = self.flows.iter_mut().find(|flow| flow.ticket == ticket) else {
            return;
        };
        let of = (flow.stream.clone(), flow.number);
        if bytes.is_some_and(|bytes| flow.read(from, bytes)) {
            self.failed_reads.remove(&of);
            return;
        }
        let is_closed = flow.is_closed();
        let (stream, number) = of.clone();
        self.take_back(&stream, number, Some(now + READ_WAIT));
        let failures = remembered(&mut self.failed_reads, of.clone());
        *failures += 1;
        if *failures >= MAX_FAILED_READS && is_closed {
            self.failed_reads.remove(&of);
            self.commands.push_back(Command::Bury { stream, number });
        }
    }

    /// The hub has settled a segment that was announced or sent, or is on its way; `hole`: without having it.
    fn settled(&mut self, stream: &StreamName, number: SegmentNumber, hole: Option<HoleReason>) {
        let on_its_way = self.take_off(stream, number);
        let Some(state) = self.streams.get_mut(stream) else {
            return;
        };
        if hole.is_some() && state.is_open(number) {
            return state.hold(number);
        }
        if !(state.forget(number) || on_its_way) {
            return;
        }
        state.answer(number);
        self.reached.remove(&(stream.clone(), number));
        let of = stream.clone();
        match hole {
            None => {
                self.progress.segments_stored += 1;
                let stream = of;
                self.commands
                    .push_back(Command::MarkStored { stream, number });
            }
            Some(
                reason @ (HoleReason::Corrupt
                | HoleReason::Refused
                | HoleReason::Deleted
                | HoleReason::Expired),
            ) => self.commands.push_back(Command::GiveUp {
                stream: of,
                number,
                reason,
            }),
            // Somebody under this name told the hub that it would never come; here it is.
            Some(_) => {
                let floor = self.floors.get(stream).copied().unwrap_or_default();
                state.collide(Collision { number, floor });
                self.flows.retain(|flow| flow.stream != *stream);
            }
        }
    }

    /// A segment that was sent or is on its way must go anew.
    fn take_back(&mut self, stream: &StreamName, number: SegmentNumber, until: Option<Instant>) {
        if self.take_off(stream, number)
            && let Some(state) = self.streams.get_mut(stream)
        {
            state.step_back(number);
            state.restart(until);
        }
    }

    /// True if the segment was on its way or waits for the hub's word.
    fn take_off(&mut self, stream: &StreamName, number: SegmentNumber) -> bool {
        self.may_begin = true;
        let before = self.flows.len();
        self.flows
            .retain(|flow| flow.number != number || flow.stream != *stream);
        let waited = self.streams.get_mut(stream).is_some_and(|state| {
            let paused = state.unpause(number);
            state.acknowledge(number) || paused
        });
        waited || self.flows.len() < before
    }
}
