//! A channel as its session keeps it: a short queue, credit in both directions, a KCP conversation.
//!
//! Credit is what keeps memory bounded (invariant 5): a sender never has more under way than the receiving
//! application has room for, so that KCP's own receive window never closes.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use crate::{
    api::Channel,
    conversation::{Conversation, Malformed},
    frame::Packet,
    parity::{Cover, Decoder, Encoder},
    session::STRANGER_CREDIT,
};

/// What a message costs beside its bytes, so that many small ones are bounded too.
const MESSAGE_OVERHEAD: u64 = 64;

/// Receive window of KCP before the peer is admitted: the least that KCP takes.
const STRANGER_PACKETS: u16 = 128;

/// A channel's limits once the peer is admitted.
struct Window {
    credit: u64,
    packets: u16,
}

/// Bulk carries 300 Mbit/s over 200 ms. Live and control are a fraction of that.
const CONTROL: Window = Window {
    credit: 512 * 1024,
    packets: 1024,
};
const LIVE: Window = Window {
    credit: 4 * 1024 * 1024,
    packets: 4096,
};
const BULK: Window = Window {
    credit: 8 * 1024 * 1024,
    packets: 8192,
};

/// Bytes that a peer may have sent on all channels together that were not said to be consumed.
pub const MAX_CREDIT_BYTES: usize = (CONTROL.credit + LIVE.credit + BULK.credit) as usize;
pub(crate) const MAX_WINDOW_PACKETS: usize =
    CONTROL.packets as usize + LIVE.packets as usize + BULK.packets as usize;

fn window(channel: Channel) -> Window {
    match channel {
        Channel::Control => CONTROL,
        Channel::Live => LIVE,
        Channel::Bulk => BULK,
    }
}

pub(crate) struct Lane {
    channel: Channel,
    pub(crate) conversation: Conversation,
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
    /// Packets that parity gave back.
    pub(crate) recovered: u64,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// A `send` was refused: tell when there is room.
    refused: bool,
    admitted: bool,
    sent: u64,
    may_send: u64,
    received: u64,
    consumed: u64,
    announced: u64,
}

impl Lane {
    pub(crate) fn new(now: Instant, channel: Channel, generation: u32, admitted: bool) -> Self {
        let packets = window(channel).packets;
        let conv = conv(channel, generation);
        let mut lane = Self {
            channel,
            conversation: Conversation::new(now, conv, STRANGER_PACKETS, packets),
            encoder: Encoder::new(conv),
            decoder: Decoder::new(),
            recovered: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            refused: false,
            admitted: false,
            sent: 0,
            may_send: STRANGER_CREDIT,
            received: 0,
            consumed: 0,
            announced: STRANGER_CREDIT,
        };
        if admitted {
            lane.admit();
        }
        lane
    }

    pub(crate) fn admit(&mut self) {
        self.admitted = true;
        self.conversation
            .set_receive_window(window(self.channel).packets);
    }

    pub(crate) fn push(&mut self, message: Bytes) {
        self.queued_bytes += message.len() + MESSAGE_OVERHEAD as usize;
        self.queue.push_back(message);
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.conversation.message_bytes() + self.queue.iter().map(Bytes::len).sum::<usize>()
    }

    /// Bytes of messages, packets and parity, both ways; a packet in flight is KCP's too.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.queued_bytes
            + 2 * self.conversation.flight.held_bytes()
            + self.encoder.held_bytes()
            + self.decoder.held_bytes()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.conversation.message_bytes() == 0
    }

    pub(crate) fn note_refusal(&mut self) {
        self.refused = true;
    }

    /// Whether to say `Writable`, once.
    pub(crate) fn take_writable(&mut self, limit: usize) -> bool {
        // Half empty, or each message would cost a wake-up.
        let writable = self.refused && self.queued_bytes <= limit / 2;
        if writable {
            self.refused = false;
        }
        writable
    }

    /// Moves messages into KCP until it has `packets` that it could send, as far as credit goes.
    pub(crate) fn feed(&mut self, packets: usize) -> usize {
        let mut fed = 0;
        while self.conversation.unsent_packets() < packets {
            let Some(message) = self.queue.front() else {
                break;
            };
            let cost = cost(message.len());
            if self.sent + cost > self.may_send {
                break;
            }
            self.sent += cost;
            self.queued_bytes -= message.len() + MESSAGE_OVERHEAD as usize;
            self.conversation.send(message);
            self.queue.pop_front();
            fed += 1;
        }
        fed
    }

    /// Packets that wait to leave: lost ones, parity, new ones.
    pub(crate) fn waiting(&self) -> usize {
        self.conversation.flight.waiting() + self.encoder.waiting()
    }

    /// Nothing follows what has left, as far as this end knows.
    pub(crate) fn is_dry(&self) -> bool {
        !self.conversation.flight.has_new()
            && self.conversation.unsent_packets() == 0
            && self.queue.is_empty()
    }

    /// Packets that the application has given and that never left.
    pub(crate) fn unsent_packets(&self) -> usize {
        self.conversation.unsent_packets() + self.queued_bytes.div_ceil(self.conversation.mss())
    }

    /// Packets that wait for nothing but the pacer.
    pub(crate) fn ready_packets(&self) -> usize {
        let first = match self.queue.front() {
            Some(first) if self.sent + cost(first.len()) <= self.may_send => {
                self.queued_bytes.div_ceil(self.conversation.mss()).max(1)
            }
            _ => 0,
        };
        (self.conversation.unsent_packets() + first).min(self.conversation.window_room())
    }

    pub(crate) fn on_packet(
        &mut self,
        now: Instant,
        packet: Packet<'_>,
        mut deliver: impl FnMut(Bytes),
    ) -> Result<(), Malformed> {
        let received = &mut self.received;
        let mut deliver = |message: Bytes| {
            *received += cost(message.len());
            deliver(message);
        };
        let Packet {
            fragment, sn, data, ..
        } = packet;
        self.conversation
            .on_data(now, sn, fragment, data, &mut deliver)?;
        self.decoder
            .on_packet(sn, || crate::parity::shard(fragment, data));
        let recovered = self.decoder.recover(Some(sn), &self.conversation.arrivals);
        self.recovered += take_recovered(
            now,
            &mut self.conversation,
            &mut self.decoder,
            recovered,
            &mut deliver,
        )?;
        self.keeps_to_credit()
    }

    pub(crate) fn on_parity(
        &mut self,
        now: Instant,
        cover: Cover,
        bytes: &[u8],
        mut deliver: impl FnMut(Bytes),
    ) -> Result<(), Malformed> {
        self.decoder
            .on_parity(now, cover, bytes, &self.conversation.arrivals)
            .map_err(|_| Malformed)?;
        self.conversation.arrivals.owe();
        let recovered = self.decoder.recover(None, &self.conversation.arrivals);
        let received = &mut self.received;
        self.recovered += take_recovered(
            now,
            &mut self.conversation,
            &mut self.decoder,
            recovered,
            &mut |message: Bytes| {
                *received += cost(message.len());
                deliver(message);
            },
        )?;
        self.keeps_to_credit()
    }

    fn keeps_to_credit(&self) -> Result<(), Malformed> {
        // More than was ever allowed: no honest peer does that.
        if self.received > self.announced.max(self.limit()) {
            return Err(Malformed);
        }
        Ok(())
    }

    pub(crate) fn consumed(&mut self, message_bytes: usize) {
        self.consumed = (self.consumed + cost(message_bytes)).min(self.received);
    }

    /// Credit only grows; a late announcement changes nothing.
    pub(crate) fn on_credit(&mut self, limit: u64) {
        self.may_send = self.may_send.max(limit);
    }

    /// Whether the peer's credit has grown enough to tell it.
    pub(crate) fn owes_credit(&self) -> bool {
        self.limit() >= self.announced + self.window() / 4
    }

    pub(crate) fn announce(&mut self) -> u64 {
        self.announced = self.announced.max(self.limit());
        self.announced
    }

    fn limit(&self) -> u64 {
        self.consumed + self.window()
    }

    fn window(&self) -> u64 {
        if self.admitted {
            window(self.channel).credit
        } else {
            STRANGER_CREDIT
        }
    }
}

fn take_recovered(
    now: Instant,
    conversation: &mut Conversation,
    decoder: &mut Decoder,
    recovered: Vec<(u32, u8, Vec<u8>)>,
    deliver: &mut impl FnMut(Bytes),
) -> Result<u64, Malformed> {
    let count = recovered.len() as u64;
    for (sn, fragment, data) in recovered {
        decoder.on_packet(sn, || crate::parity::shard(fragment, &data));
        conversation.on_data(now, sn, fragment, &data, &mut *deliver)?;
    }
    Ok(count)
}

fn cost(message_bytes: usize) -> u64 {
    message_bytes as u64 + MESSAGE_OVERHEAD
}

/// A conversation's id: no packet of an older generation can be taken for one of this.
fn conv(channel: Channel, generation: u32) -> u32 {
    (generation << 2) | channel.index() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    #[test]
    fn credit_holds_back_what_the_other_end_has_no_room_for() {
        let now = sim::start();
        let mut lane = Lane::new(now, Channel::Live, 0, true);
        for _ in 0..10 {
            lane.push(Bytes::from(vec![0; 16 * 1024]));
        }
        assert_eq!(lane.feed(usize::MAX), 3, "64 KiB less what messages cost");
        assert_eq!(lane.feed(usize::MAX), 0);
        lane.on_credit(10);
        assert_eq!(lane.feed(usize::MAX), 0, "credit never shrinks");
        lane.on_credit(1 << 20);
        assert_eq!(lane.feed(15), 0, "KCP has enough for now");
        assert_eq!(lane.feed(usize::MAX), 7);
        assert!(lane.queue.is_empty() && lane.queued_bytes() == 0);
        assert!(!lane.is_idle(), "nothing is acknowledged");
        assert_eq!(lane.outstanding_bytes(), 160 * 1024);
    }

    #[test]
    fn credit_is_told_when_a_quarter_has_grown() {
        let now = sim::start();
        let mut lane = Lane::new(now, Channel::Control, 0, false);
        assert_eq!(lane.announce(), STRANGER_CREDIT);
        lane.received = 1 << 20;
        lane.consumed(15_000);
        assert!(!lane.owes_credit());
        lane.consumed(2_000);
        assert!(lane.owes_credit());
        assert_eq!(
            lane.announce(),
            STRANGER_CREDIT + 17_000 + 2 * MESSAGE_OVERHEAD
        );
        assert!(!lane.owes_credit());
        lane.admit();
        assert_eq!(lane.announce(), 512 * 1024 + 17_000 + 2 * MESSAGE_OVERHEAD);
        lane.consumed(usize::MAX / 2);
        assert_eq!(lane.consumed, lane.received, "not more than came");
    }

    #[test]
    fn generations_and_channels_have_conversations_of_their_own() {
        let ids: std::collections::BTreeSet<_> = (0..10)
            .flat_map(|generation| Channel::ALL.map(|channel| conv(channel, generation)))
            .collect();
        assert_eq!(ids.len(), 30);
    }
}
