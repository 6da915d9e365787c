//! What goes out: which conversation may work, what shares a datagram, what the pacer holds back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{BYE_INTERVAL, Session, State, timing::flush_at};
use crate::{
    api::{Event, Transmit},
    datagram::{MAX_DATAGRAM_BYTES, TAG_BYTES, TRANSPORT_HEADER_BYTES, transport_header},
    feedback::FEEDBACK_INTERVAL,
    frame::{Frame, Header},
};

/// Without new keys nothing more is sent after so many.
const MAX_DATAGRAMS_PER_KEY: u64 = 1 << 34;

/// Above this loss an acknowledgement is sent twice, the second a little later: bursts take neighbours.
const ACK_TWICE_LOSS: f64 = 0.02;
const ACK_AGAIN_DELAY: Duration = Duration::from_millis(6);
const MAX_ACKS_AGAIN: usize = 64;

impl Session {
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        out: &mut Vec<u8>,
        events: &mut VecDeque<Event>,
    ) -> Option<Transmit> {
        if self.state == State::Open && !self.staged {
            self.pump(now);
            self.after_input(events);
        }
        let start = out.len();
        let mut segment_size = 0;
        let mut datagrams = 0;
        while datagrams < max_datagrams {
            if !std::mem::take(&mut self.staged) && !self.build(now) {
                break;
            }
            let size = TRANSPORT_HEADER_BYTES + self.plain.bytes().len() + TAG_BYTES;
            if datagrams == 0 {
                segment_size = size;
            } else if size > segment_size {
                self.staged = true;
                break;
            }
            self.seal(now, size, out);
            datagrams += 1;
            if size < segment_size {
                break;
            }
        }
        (datagrams > 0).then(|| Transmit {
            to: self.peer,
            size: out.len() - start,
            segment_size: (datagrams > 1).then_some(segment_size),
        })
    }

    fn seal(&mut self, now: Instant, size: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&transport_header(self.keys.remote_index, self.next_counter));
        self.keys
            .keys
            .seal(self.next_counter, self.plain.bytes(), out);
        self.next_counter += 1;
        self.bytes_sent += size as u64;
        self.last_sent = now;
        self.pacer.spend(size);
    }

    /// Lets the conversations work: higher channels first, and no more than can leave soon.
    fn pump(&mut self, now: Instant) {
        let tokens = self.pacer.tokens(now) + self.pacer.bytes_per_wake_up();
        let waiting: usize = self
            .lanes
            .iter()
            .map(|lane| lane.conversation.data_waiting())
            .sum();
        let room = (tokens / MAX_DATAGRAM_BYTES as f64).max(0.0) as usize + 1;
        let mut room = room.saturating_sub(waiting).min(self.window_room());
        for lane in &mut self.lanes {
            let new = if lane.conversation.data_waiting() > 0 {
                0
            } else {
                lane.feed(room);
                room.min(lane.conversation.unsent_packets())
                    .min(lane.conversation.window_room())
            };
            let due = flush_at(lane).is_some_and(|at| now >= at);
            if due || lane.conversation.may_send(now, new) {
                lane.conversation.flush(now, new);
                room = room.saturating_sub(lane.conversation.data_waiting());
            }
        }
    }

    /// Packets that may yet be unacknowledged, over all channels.
    pub(super) fn window_room(&self) -> usize {
        let window = (self.rate.window_bytes() / MAX_DATAGRAM_BYTES as f64) as usize;
        let in_flight: usize = self
            .lanes
            .iter()
            .map(|lane| lane.conversation.in_flight())
            .sum();
        window.saturating_sub(in_flight)
    }

    pub(super) fn data_waiting(&self) -> bool {
        self.lanes
            .iter()
            .any(|lane| lane.conversation.data_waiting() > 0)
    }

    /// Puts the next datagram together in `plain`; `false`: there is none, or it must wait for the pacer.
    fn build(&mut self, now: Instant) -> bool {
        self.plain.start(Header {
            generation: self.generation,
            sent_us: self.clock_us(now),
        });
        match self.state {
            State::Dead => return false,
            State::Closing {
                reason,
                left,
                next,
                until,
            } => {
                if left == 0 || now < next {
                    return false;
                }
                self.state = State::Closing {
                    reason,
                    left: left - 1,
                    next: now + BYE_INTERVAL,
                    until,
                };
                return self.plain.push(&Frame::Bye(reason));
            }
            State::Open | State::Silent => {}
        }
        if self.next_counter - self.keys.first_counter >= MAX_DATAGRAMS_PER_KEY {
            return false;
        }
        let mut asks = false;
        if std::mem::take(&mut self.ping) {
            asks = self.plain.push(&Frame::Ping);
        }
        if self.receiver.due().is_some_and(|at| now >= at) {
            let feedback = self.receiver.take(now);
            let _ = self.plain.push(&Frame::Feedback(feedback));
        }
        self.push_credit(now);
        if self.state == State::Open {
            self.push_acks(now);
            asks |= self.push_data(now);
        }
        if asks && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        self.plain.has_frames()
    }

    fn push_credit(&mut self, now: Instant) {
        // With anything that answers it costs nothing to say it again.
        let due = self.credit_due.is_some_and(|at| now >= at);
        if !due {
            return;
        }
        let mut limits = [0; 3];
        for (limit, lane) in limits.iter_mut().zip(&mut self.lanes) {
            *limit = lane.announce();
        }
        let _ = self.plain.push(&Frame::Credit(limits));
        self.credit_repeats = self.credit_repeats.saturating_sub(1);
        self.credit_due = (self.credit_repeats > 0).then(|| now + FEEDBACK_INTERVAL);
    }

    fn push_acks(&mut self, now: Instant) {
        while let Some((at, _, packet)) = self.acks_again.front() {
            if now < *at || !self.plain.push(&Frame::Kcp(packet)) {
                break;
            }
            if let Some((_, lane, packet)) = self.acks_again.pop_front()
                && let Some(lane) = self.lanes.get_mut(lane)
            {
                lane.conversation.recycle(packet);
            }
        }
        let twice = self.rate.loss() > ACK_TWICE_LOSS;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            while lane
                .conversation
                .next_ack_bytes()
                .is_some_and(|bytes| self.plain.fits(bytes))
            {
                let Some(packet) = lane.conversation.pop_ack() else {
                    break;
                };
                let _ = self.plain.push(&Frame::Kcp(&packet));
                if twice && self.acks_again.len() < MAX_ACKS_AGAIN {
                    self.acks_again
                        .push_back((now + ACK_AGAIN_DELAY, at, packet));
                } else {
                    lane.conversation.recycle(packet);
                }
            }
        }
    }

    /// Whether there was any.
    fn push_data(&mut self, now: Instant) -> bool {
        let mut any = false;
        if self.pacer.tokens(now) <= 0.0 {
            return false;
        }
        for lane in &mut self.lanes {
            while lane
                .conversation
                .next_data_bytes()
                .is_some_and(|bytes| self.plain.fits(bytes))
            {
                let Some(packet) = lane.conversation.pop_data() else {
                    break;
                };
                let _ = self.plain.push(&Frame::Kcp(&packet));
                lane.conversation.recycle(packet);
                any = true;
            }
            if lane.conversation.next_data_bytes().is_some() {
                // Not past a higher channel's packet that didn't fit.
                break;
            }
        }
        any
    }
}
