//! Which segments begin, class by class, and which are put off for them.

use super::*;

/// The classes of the bulk channel, in the order in which they go.
const BULK: [Class; 3] = [Class::Event, Class::Want, Class::Backfill];

impl Sender {
    /// Begins what may begin: of each live stream one segment as live, then what goes by the bulk channel, class by
    /// class and stream by stream. Nothing of a class is begun while something of a higher one is on its way there.
    pub(super) fn begin(&mut self, now: Instant) {
        // What was found is announced before any of it is shipped.
        if !self.may_begin || !self.control.is_empty() {
            return;
        }
        self.may_begin = false;
        self.demote(now);
        self.set_aside();
        let mut unacknowledged = self.flows.len();
        let mut bytes = 0;
        for stream in self.streams.values() {
            unacknowledged += stream.unacknowledged.len();
            bytes += stream.unacknowledged.values().sum::<u64>();
        }
        if unacknowledged >= 2 * MAX_UNACKNOWLEDGED || bytes >= 2 * MAX_UNACKNOWLEDGED_BYTES {
            return;
        }
        self.begin_live(now);
        for class in BULK {
            let of_bulk = self.flows.iter().filter(|f| f.channel == Channel::Bulk);
            let higher = of_bulk.clone().any(|flow| flow.class < class);
            let mut begun = of_bulk.filter(|flow| flow.class == class).count();
            let room = unacknowledged < MAX_UNACKNOWLEDGED && bytes < MAX_UNACKNOWLEDGED_BYTES;
            if higher || (class == Class::Backfill && !room) {
                break;
            }
            while self.policy.allowed.allows(class)
                && begun < MAX_BULK_FLOWS
                && unacknowledged < 2 * MAX_UNACKNOWLEDGED
                && (class != Class::Backfill || unacknowledged < MAX_UNACKNOWLEDGED)
                && self.begin_bulk(now, class)
            {
                begun += 1;
                unacknowledged += 1;
            }
        }
        self.set_aside();
    }

    fn begin_live(&mut self, now: Instant) {
        let deadline = self.policy.live_deadline;
        for (name, stream) in &mut self.streams {
            let is_live = |flow: &Flow| flow.channel == Channel::Live && flow.stream == *name;
            if self.flows.iter().any(is_live) {
                continue;
            }
            let Some(next) = stream.next_live(now, deadline) else {
                continue;
            };
            let (number, run) = match &next {
                Next::Closed(info) => (info.number, info.run),
                Next::Open(facts) => (facts.number, facts.run),
            };
            let class = match stream.class_of(number) {
                Class::Event => Class::Event,
                _ => Class::Live,
            };
            if !self.policy.allowed.allows(class) {
                continue;
            }
            let Some(run) = stream.run(run) else {
                continue;
            };
            self.last_ticket += 1;
            let (ticket, name, channel) = (self.last_ticket, name.clone(), Channel::Live);
            let mut flow = match next {
                Next::Closed(info) => Flow::closed(ticket, name, channel, run, info),
                Next::Open(facts) => Flow::open(ticket, name, channel, run, &facts),
            };
            flow.class = class;
            flow.is_spared = stream.begun(flow.number, true);
            self.flows
                .push_back(match stream.take_partial(flow.number) {
                    Some((length, hash)) => flow.resume(length, hash),
                    None => flow,
                });
        }
    }

    /// Begins one segment of a class, of the stream whose turn it is.
    fn begin_bulk(&mut self, now: Instant, class: Class) -> bool {
        let deadline = self.policy.live_deadline;
        let turns = self.bulk_turns.of(class);
        let waiting = self.streams.iter().filter_map(|(name, stream)| {
            let info = stream.next_bulk(now, deadline, class)?;
            let run = stream.run(info.run)?;
            let begins = turns.begins(*stream.bulk_turns.get(class));
            Some((begins, name, info, run))
        });
        let Some((_, name, info, run)) = waiting.min_by_key(|(turn, ..)| *turn) else {
            return false;
        };
        let name = name.clone();
        let weight = self.policy.weight(&name);
        let Some(stream) = self.streams.get_mut(&name) else {
            return false;
        };
        let partial = stream.take_partial(info.number);
        let length = partial.map_or(0, |(length, _)| length);
        let rest = info.bytes.saturating_sub(length);
        turns.serve(stream.bulk_turns.of(class), rest, weight);
        stream.begun(info.number, false);
        self.last_ticket += 1;
        let mut flow = Flow::closed(self.last_ticket, name, Channel::Bulk, run, info);
        flow.class = class;
        self.flows.push_back(match partial {
            Some((length, hash)) => flow.resume(length, hash),
            None => flow,
        });
        true
    }

    /// Segments were marked or asked for that may be on their way already.
    pub(super) fn reclass(&mut self, stream: &StreamName) {
        self.may_begin = true;
        let Some(state) = self.streams.get(stream) else {
            return;
        };
        for flow in self.flows.iter_mut().filter(|f| f.stream == *stream) {
            match (flow.channel, state.class_of(flow.number)) {
                (_, Class::Event) => flow.class = Class::Event,
                (Channel::Bulk, class) => flow.class = class,
                _ => {}
            }
        }
    }

    /// What is of a lower class than something else on the bulk channel makes room: it goes on where it is, later.
    fn set_aside(&mut self) {
        let of_bulk = self.flows.iter().filter(|f| f.channel == Channel::Bulk);
        let Some(highest) = of_bulk.map(|flow| flow.class).min() else {
            return;
        };
        let mut kept = VecDeque::with_capacity(self.flows.len());
        for flow in std::mem::take(&mut self.flows) {
            if flow.channel != Channel::Bulk || flow.class == highest {
                kept.push_back(flow);
            } else if let Some(stream) = self.streams.get_mut(&flow.stream) {
                stream.set_aside(flow.info());
                self.pauses.extend(put_off(stream, flow));
            }
        }
        self.flows = kept;
    }

    /// Live segments whose next bytes are older than the deadline become backfill, unless most of it was sent:
    /// the rest is there sooner than all of a newer one. So is not every other one, or a line that is far too
    /// slow would never see one whole.
    pub(super) fn demote(&mut self, now: Instant) {
        let deadline = self.policy.live_deadline;
        let mut kept = VecDeque::with_capacity(self.flows.len());
        for flow in std::mem::take(&mut self.flows) {
            let stream = self.streams.get_mut(&flow.stream);
            let Some(stream) = stream.filter(|stream| {
                flow.channel == Channel::Live
                    && !flow.is_spared
                    && flow.is_barely_begun()
                    && stream
                        .age(now, flow.unsent_since())
                        .is_some_and(|age| age > deadline)
            }) else {
                kept.push_back(flow);
                continue;
            };
            stream.demoted();
            self.has_demoted = true;
            self.pauses.extend(put_off(stream, flow));
            self.progress.segments_demoted += 1;
            self.may_begin = true;
        }
        self.flows = kept;
    }
}

/// A segment on its way is let go of and goes on later; what to say of that, and on which channel.
fn put_off(stream: &mut Stream, flow: Flow) -> Option<(Channel, ToHub)> {
    if flow.is_said() {
        stream.pause(flow.number);
        let paused = ToHub::SegmentPaused {
            stream: flow.stream,
            number: flow.number,
        };
        return Some((flow.channel, paused));
    }
    if let Some((length, hash)) = flow.unsaid_partial() {
        stream.partial(flow.number, length, hash);
    }
    None
}
