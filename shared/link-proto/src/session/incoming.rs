//! What comes in: replay, decryption, then frame by frame.

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use bytes::Bytes;

use super::{BYE_INTERVAL, MAX_RENEWALS, RENEWALS_PER_SECOND, Received, Role, Session, State};
use crate::{
    api::{Bye, Channel, CloseReason, Event},
    conversation::Malformed,
    datagram::{TRANSPORT_HEADER_BYTES, Transport},
    frame::{self, Frame},
    lane::Lane,
    mtu::Verdict,
    parity::Cover,
};

impl Session {
    /// Checks replay, opens, and acts on what is inside. `plain` is scratch memory.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: Transport<'_>,
        plain: &mut Vec<u8>,
        events: &mut VecDeque<Event>,
    ) -> Received {
        let Transport {
            receiver: index,
            counter,
            sealed,
        } = datagram;
        let current = index == self.keys.local_index;
        let epoch = match &mut self.old_keys {
            _ if current => &mut self.keys,
            Some((old, _)) if old.local_index == index => old,
            _ => return Received::Forged,
        };
        if !epoch.replay.is_new(counter) {
            self.stats.datagrams_replayed += 1;
            return Received::Replayed;
        }
        if epoch.keys.open(counter, sealed, plain).is_err() {
            return Received::Forged;
        }
        let newest = current && epoch.replay.is_newest(counter);
        epoch.replay.mark(counter);
        if let State::Closing { next, left, .. } = &mut self.state {
            // It hasn't heard yet.
            if *left == 0 && now >= *next + BYE_INTERVAL {
                *left = 1;
                *next = now;
            }
            return Received::Taken;
        }
        if self.state == State::Dead {
            return Received::Taken;
        }
        if newest && self.role == Role::Hub && from != self.peer {
            events.push_back(Event::PeerMoved {
                session: self.id,
                from: self.peer,
                to: from,
            });
            self.peer = from;
            self.rate.path_changed();
        }
        let bytes = TRANSPORT_HEADER_BYTES + sealed.len();
        if self.read(now, counter, bytes, plain, events).is_err() {
            self.stats.datagrams_bad += 1;
            self.violation(now, events);
        }
        self.after_input(events);
        Received::Taken
    }

    fn read(
        &mut self,
        now: Instant,
        counter: u64,
        bytes: usize,
        plain: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), frame::Malformed> {
        let (header, frames) = frame::parse_header(plain).ok_or(frame::Malformed)?;
        if header.generation > self.generation {
            if !self
                .renewals
                .take_of(now, RENEWALS_PER_SECOND, MAX_RENEWALS)
            {
                return Err(frame::Malformed);
            }
            self.renew_channels(now, header.generation, events);
        }
        self.on_sign_of_life(now, events);
        let now_us = self.clock_us(now);
        self.receiver
            .on_datagram(now, now_us, counter, header.sent_us, bytes);
        let this_generation = header.generation == self.generation;
        if !this_generation {
            self.stats.datagrams_bad += 1;
        }
        for frame in frames {
            match frame? {
                Frame::Ping => {
                    self.receiver.want_now(now);
                    if self.admitted {
                        self.credit_due = Some(now);
                    }
                }
                Frame::Data(packet) if this_generation => {
                    self.receiver.want(now);
                    self.owe_ack(now);
                    self.on_data(now, packet, events)?;
                }
                Frame::Parity(cover, bytes) if this_generation => {
                    self.receiver.want(now);
                    self.owe_ack(now);
                    self.on_parity(now, cover, bytes, events)?;
                }
                Frame::Sack(sack) if this_generation => {
                    self.receiver.want_slowly(now);
                    let lane = self.lane_mut(channel_of(sack.conv)?);
                    lane.conversation
                        .on_sack(now, &sack)
                        .map_err(|_| frame::Malformed)?;
                }
                Frame::Seen(counter) if this_generation => self.on_seen(now, counter),
                Frame::Credit(limits) if this_generation => {
                    for (lane, limit) in self.lanes.iter_mut().zip(limits) {
                        lane.on_credit(limit);
                    }
                }
                Frame::Data(_)
                | Frame::Credit(_)
                | Frame::Parity(..)
                | Frame::Sack(_)
                | Frame::Seen(_) => {}
                Frame::Probe => {
                    self.reached = u16::try_from(bytes).ok();
                    self.receiver.want_now(now);
                }
                Frame::Reached(bytes) => match self.mtu.on_reached(now, bytes.into()) {
                    Verdict::Grown => self.follow_mtu(),
                    Verdict::Confirmed => {
                        for lane in &mut self.lanes {
                            lane.conversation.flight.forgive();
                        }
                    }
                    Verdict::Fallen | Verdict::Unchanged => {}
                },
                Frame::Feedback(mut feedback) => {
                    // A probe that was too large is not the line's loss.
                    let excused = self.mtu.on_seen(feedback.highest);
                    feedback.datagrams = feedback.datagrams.saturating_add(excused);
                    feedback.gaps = feedback.gaps.wrapping_sub(excused as u32);
                    self.rate
                        .on_feedback(now, now_us, self.next_counter, &feedback);
                    self.pacer.set_rate(now, self.paced_rate());
                    self.losses.on_feedback(&feedback);
                    if self.large_lost() == 0 && !self.mtu.is_doubted() {
                        self.calm_loss = self.losses.loss();
                    }
                    self.lateness.on_feedback(now, &feedback);
                }
                Frame::Bye(reason) => {
                    self.kill(CloseReason::Peer(reason), events);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn on_data(
        &mut self,
        now: Instant,
        packet: frame::Packet<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), frame::Malformed> {
        let channel = *Channel::ALL
            .get(usize::from(packet.channel))
            .ok_or(frame::Malformed)?;
        self.deliver(channel, events, |lane, deliver| {
            lane.on_packet(now, packet, deliver)
        })
    }

    fn on_parity(
        &mut self,
        now: Instant,
        cover: Cover,
        bytes: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), frame::Malformed> {
        self.deliver(channel_of(cover.conv)?, events, |lane, deliver| {
            lane.on_parity(now, cover, bytes, deliver)
        })
    }

    /// What a lane takes may make messages whole.
    fn deliver(
        &mut self,
        channel: Channel,
        events: &mut VecDeque<Event>,
        take: impl FnOnce(&mut Lane, &mut dyn FnMut(Bytes)) -> Result<(), Malformed>,
    ) -> Result<(), frame::Malformed> {
        let session = self.id;
        let mut messages = 0;
        let taken = take(self.lane_mut(channel), &mut |message| {
            messages += 1;
            events.push_back(Event::Message {
                session,
                channel,
                message,
            });
        });
        self.stats.messages_received += messages;
        taken.map_err(|_| frame::Malformed)
    }

    pub(super) fn renew_channels(
        &mut self,
        now: Instant,
        generation: u32,
        events: &mut VecDeque<Event>,
    ) {
        self.generation = generation;
        self.generation_began = now;
        if self.state == State::Silent {
            self.state = State::Open;
            self.rate.after_silence();
            self.mtu.restart();
            self.pacer.set_rate(now, self.paced_rate());
        }
        for lane in &self.lanes {
            self.stats.packets_recovered += lane.recovered;
        }
        let admitted = self.admitted;
        self.lanes = Channel::ALL.map(|channel| Lane::new(now, channel, generation, admitted));
        self.follow_mtu();
        self.ack_due = None;
        self.detect_at = None;
        self.probes = 0;
        self.staged = false;
        self.probing = false;
        self.waiting_since = None;
        self.ping = true;
        if admitted {
            self.tell_credit();
        }
        events.push_back(Event::ChannelsReset { session: self.id });
    }

    fn violation(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if matches!(self.state, State::Open | State::Silent) {
            self.close(now, Bye::Violation);
            events.push_back(Event::Closed {
                session: self.id,
                reason: CloseReason::Violation,
            });
        }
    }

    pub(super) fn after_input(&mut self, events: &mut VecDeque<Event>) {
        if self.state != State::Open {
            return;
        }
        let limit = self.queue_limit();
        for channel in Channel::ALL {
            if self.lane_mut(channel).take_writable(limit) {
                events.push_back(Event::Writable {
                    session: self.id,
                    channel,
                });
            }
        }
    }
}

fn channel_of(conv: u32) -> Result<Channel, frame::Malformed> {
    Channel::ALL
        .get((conv & 3) as usize)
        .copied()
        .ok_or(frame::Malformed)
}
