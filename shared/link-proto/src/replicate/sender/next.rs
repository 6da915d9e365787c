//! What is read next, and which message goes next on a channel of media.

use super::*;

impl Sender {
    pub(super) fn read(&mut self) -> Option<Command> {
        let ahead: u64 = self.flows.iter().map(Flow::read_ahead).sum();
        let room = MAX_READ_AHEAD.saturating_sub(ahead);
        let mut need = |flow: &mut Flow| {
            let (ticket, number) = (flow.ticket, flow.number);
            let need = flow.need(room)?;
            let stream = flow.stream.clone();
            Some(match need {
                flow::Need::Hash { length } => Command::Hash {
                    ticket,
                    stream,
                    number,
                    length,
                },
                flow::Need::Read { range } => Command::Read {
                    ticket,
                    stream,
                    number,
                    range,
                },
            })
        };
        Class::ALL.into_iter().find_map(|class| {
            let of_class = self.flows.iter_mut().filter(|flow| flow.class == class);
            of_class.into_iter().find_map(&mut need)
        })
    }

    /// Live segments take turns chunk by chunk; while one of an event is on its way by the bulk channel, others wait.
    pub(super) fn next_live(&mut self, now: Instant) -> Option<ToHub> {
        if let Some(pause) = self.next_pause(Channel::Live) {
            return Some(pause);
        }
        let is_event = |flow: &Flow| flow.class == Class::Event;
        // Until the hub has it: the session would let live pass by what it has taken of it.
        let mut streams = self.streams.values();
        let event = streams.any(|stream| !stream.events_sent.is_empty());
        let mut flows = self.flows.iter();
        let event = event || flows.any(|f| f.channel == Channel::Bulk && is_event(f));
        let turns = self.flows.iter().enumerate().filter_map(|(index, flow)| {
            let is_next = flow.channel == Channel::Live
                && flow.is_ready()
                && self.policy.allowed.allows(flow.class)
                && (is_event(flow) || !event);
            let stream = self.streams.get(&flow.stream).filter(|_| is_next)?;
            Some((flow.class, self.live_turns.begins(stream.live_turn), index))
        });
        let (class, _, index) = turns.min()?;
        let message = self.next_of_flow(index)?;
        if let ToHub::Chunk(chunk) = &message {
            self.progress.count(class, chunk.data.len());
            self.tally.count(&chunk.stream, class, chunk.data.len());
            let mut flows = self.flows.iter();
            let more = flows.any(|flow| flow.stream == chunk.stream && flow.is_live_unsent());
            let weight = self.policy.weight(&chunk.stream);
            if let Some(stream) = self.streams.get_mut(&chunk.stream) {
                stream.throughput.taken(now, chunk.data.len(), more);
                let bytes = chunk.data.len() as u64;
                self.live_turns.serve(&mut stream.live_turn, bytes, weight);
            }
        }
        Some(message)
    }

    /// Segments of the backlog one after the other.
    pub(super) fn next_bulk(&mut self) -> Option<ToHub> {
        if let Some(pause) = self.next_pause(Channel::Bulk) {
            return Some(pause);
        }
        let of_bulk = self.flows.iter().enumerate();
        let of_bulk = of_bulk.filter(|(_, flow)| flow.channel == Channel::Bulk);
        let (class, index) = of_bulk.map(|(index, flow)| (flow.class, index)).min()?;
        if !self.policy.allowed.allows(class) {
            return None;
        }
        let message = self.next_of_flow(index)?;
        if let ToHub::Chunk(chunk) = &message {
            self.progress.count(class, chunk.data.len());
            self.tally.count(&chunk.stream, class, chunk.data.len());
        }
        Some(message)
    }

    fn next_pause(&mut self, channel: Channel) -> Option<ToHub> {
        let at = self.pauses.iter().position(|(of, _)| *of == channel)?;
        self.pauses.remove(at).map(|(_, pause)| pause)
    }

    fn next_of_flow(&mut self, index: usize) -> Option<ToHub> {
        let flow = self.flows.get_mut(index)?;
        let message = flow.next_message()?;
        if let ToHub::Chunk(chunk) = &message {
            let end = chunk.offset + chunk.data.len() as u64;
            let of = (chunk.stream.clone(), chunk.number);
            let reached = remembered(&mut self.reached, of);
            self.progress.new_bytes_sent += end.saturating_sub(*reached);
            *reached = end.max(*reached);
        }
        if let Some(bytes) = flow.finished() {
            let flow = self.flows.remove(index)?;
            self.sent_whole(&flow, bytes);
        }
        Some(message)
    }

    fn sent_whole(&mut self, flow: &Flow, bytes: u64) {
        self.may_begin = true;
        self.progress.segments_shipped += 1;
        if let Some(stream) = self.streams.get_mut(&flow.stream) {
            stream.unacknowledged.insert(flow.number, bytes);
            if flow.channel == Channel::Bulk && flow.class == Class::Event {
                stream.events_sent.insert(flow.number);
            }
        }
    }
}
