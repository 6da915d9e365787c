//! What goes out: which conversation may work, what shares a datagram, what the pacer holds back.

use std::{collections::VecDeque, time::Instant};

use super::{BYE_INTERVAL, Session, State};
use crate::{
    api::{Channel, Event, Transmit},
    conversation::content,
    datagram::{TAG_BYTES, TRANSPORT_HEADER_BYTES, transport_header},
    feedback::FEEDBACK_INTERVAL,
    frame::{Frame, Header, MAX_SACK_FRAME_BYTES, PARITY_OVERHEAD, Packet},
    lane::Lane,
    loss::{Beforehand, LossMeter},
    parity,
};

/// What a kernel takes in one go with segmentation offload: an IP packet, with its headers.
const MAX_BATCH_BYTES: usize = 65_000;

/// Without new keys nothing more is sent after so many.
const MAX_DATAGRAMS_PER_KEY: u64 = 1 << 34;

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
            } else if size > segment_size || out.len() - start + size > MAX_BATCH_BYTES {
                self.staged = true;
                break;
            }
            self.seal(now, size, out);
            datagrams += 1;
            // Where the device itself carries no datagram of a probe's size, what is in one batch with it is lost.
            if size < segment_size || std::mem::take(&mut self.probing) {
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
        let waiting: usize = self.lanes.iter().map(Lane::waiting).sum();
        let room = (tokens / self.mtu.datagram_bytes() as f64).max(0.0) as usize + 1;
        let mut room = room.saturating_sub(waiting).min(self.window_room());
        let group_time = self.group_time();
        for lane in &mut self.lanes {
            if lane
                .encoder
                .opened()
                .is_some_and(|at| now >= at + group_time)
            {
                close_group(now, lane, &self.losses, &mut self.beforehand);
            }
            if lane.waiting() > 0 {
                continue;
            }
            lane.feed(room);
            let new = room
                .min(lane.conversation.unsent_packets())
                .min(lane.conversation.window_room());
            if lane.conversation.may_send(now, new) {
                lane.conversation.flush(now, new);
                room = room.saturating_sub(lane.waiting());
            }
        }
        if !self.data_waiting() && self.pacer.tokens(now) > 0.0 {
            self.rate.on_pause(self.next_counter);
        }
    }

    /// Packets that may yet be unacknowledged, over all channels.
    pub(super) fn window_room(&self) -> usize {
        let window = (self.rate.window_bytes() / self.mtu.datagram_bytes() as f64) as usize;
        let in_flight: usize = self
            .lanes
            .iter()
            .map(|lane| lane.conversation.in_flight())
            .sum();
        window.saturating_sub(in_flight)
    }

    pub(super) fn data_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| lane.waiting() > 0)
    }

    /// Puts the next datagram together in `plain`; `false`: there is none, or it must wait for the pacer.
    fn build(&mut self, now: Instant) -> bool {
        let header = Header {
            generation: self.generation,
            sent_us: self.clock_us(now),
        };
        if self.state == State::Open
            && let Some((at, size)) = self.mtu.next_probe()
            && now >= at
            && self.pacer.tokens(now) > 0.0
        {
            self.plain.start(header, size);
            self.probing = self.plain.push(&Frame::Probe);
            self.mtu.on_probe_sent(now, self.next_counter, size);
            // Its answer tells that a smaller datagram, sent later, came.
            self.ping = true;
            return self.probing;
        }
        self.plain.start(header, self.mtu.datagram_bytes());
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
        if let Some(bytes) = self.reached.take() {
            let _ = self.plain.push(&Frame::Reached(bytes));
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
        if self.ack_due.is_none_or(|at| now < at) {
            return;
        }
        for lane in &mut self.lanes {
            while lane.conversation.arrivals.owes() {
                if !self.plain.fits(MAX_SACK_FRAME_BYTES) {
                    return; // in the next datagram
                }
                if let Some(sack) = lane.conversation.take_sack() {
                    let _ = self.plain.push(&Frame::Sack(sack));
                }
            }
        }
        if self.plain.push(&Frame::Seen(self.receiver.highest())) {
            self.ack_due = None;
            self.last_ack = Some(now);
        }
    }

    /// Lost packets, then parity, then what is new, channel by channel. Whether there was any.
    fn push_data(&mut self, now: Instant) -> bool {
        let mut any = false;
        if self.pacer.tokens(now) <= 0.0 {
            return false;
        }
        let counter = self.next_counter;
        for (lane, channel) in self.lanes.iter_mut().zip(Channel::ALL) {
            let mut full = false;
            while let Some(sn) = lane.conversation.flight.next_lost(now) {
                let (fragment, data) = content(lane.conversation.flight.bytes(sn));
                let data_bytes = data.len() as u64;
                full = !self.plain.push(&Frame::Data(Packet {
                    channel: channel.index() as u8,
                    fragment,
                    sn,
                    data,
                }));
                if full {
                    break;
                }
                lane.conversation.flight.on_sent_again(now, counter);
                self.stats.packets_sent += 1;
                self.stats.packets_resent += 1;
                self.stats.packet_bytes_resent += data_bytes;
                any = true;
            }
            while !full && let Some(bytes) = lane.encoder.next_bytes() {
                full = !self.plain.fits(PARITY_OVERHEAD + bytes);
                if !full && let Some(parity) = lane.encoder.pop() {
                    let _ = self.plain.push(&Frame::Parity(parity.cover, &parity.bytes));
                    for sn in parity.cover.packets() {
                        let flight = &mut lane.conversation.flight;
                        flight.on_parity(now, sn, Some(counter), parity.last);
                    }
                    self.stats.parities_sent += 1;
                    self.stats.parity_bytes_sent += parity.bytes.len() as u64;
                    any = true;
                }
            }
            // An open group is a run of packets: none may be left out of it, though losses have ceased.
            let lossy = channel != Channel::Bulk
                && !self.losses.is_clean()
                && !self.beforehand.is_forbidden();
            while !full && let Some(sn) = lane.conversation.flight.next_new() {
                let covered = lossy || lane.encoder.opened().is_some();
                let (fragment, data) = content(lane.conversation.flight.bytes(sn));
                let data_bytes = data.len() as u64;
                full = !self.plain.push(&Frame::Data(Packet {
                    channel: channel.index() as u8,
                    fragment,
                    sn,
                    data,
                }));
                if full {
                    break;
                }
                self.beforehand.earn(data.len());
                if covered {
                    let shard = parity::shard(fragment, data);
                    let waiting = lane.unsent_packets();
                    let burst = self.losses.burst();
                    lane.encoder.add(now, sn, shard, waiting, burst);
                }
                lane.conversation.flight.on_sent_new(now, counter, covered);
                self.stats.packets_sent += 1;
                self.stats.packet_bytes_sent += data_bytes;
                any = true;
                if channel != Channel::Control {
                    self.mtu.wanted(now);
                }
                if lane.encoder.is_full() {
                    close_group(now, lane, &self.losses, &mut self.beforehand);
                }
            }
            if lane.is_dry() && lane.encoder.opened().is_some() {
                close_group(now, lane, &self.losses, &mut self.beforehand);
            }
            if full {
                // Not past a higher channel's packet that didn't fit.
                break;
            }
        }
        any
    }
}

/// No more packets come to the open groups soon: their parity is next.
fn close_group(now: Instant, lane: &mut Lane, losses: &LossMeter, beforehand: &mut Beforehand) {
    let flight = &mut lane.conversation.flight;
    lane.encoder.close(
        |packets, bytes| beforehand.take(losses.parities(packets), PARITY_OVERHEAD + bytes),
        |sn| flight.on_parity(now, sn, None, true),
    );
}
