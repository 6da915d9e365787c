//! What a conversation has under way: which packets are lost, and when they are sent again.
//!
//! This takes the place of KCP's own resending, which counts later acknowledgements of single packets and
//! knows nothing of parity. A packet is lost when the peer has seen a later datagram (and its parity, if it
//! has any) and still lacks it: RACK of RFC 8985, by datagram counters, which never repeat and so are never
//! ambiguous. Where no later datagram follows, a probe does (RFC 8985, section 7).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Later datagrams that must be seen before a packet without parity counts as lost.
const LATER_DATAGRAMS: u64 = 2;

/// Packets found lost at once that are sent in copies: so many more are a line that was cut, and is well again.
const MAX_COPIED: usize = 16;

/// Packets that one tail probe repeats at most.
const PROBE_PACKETS: usize = 4;

pub(crate) struct Flight {
    /// Packets from `una` on.
    una: u32,
    packets: VecDeque<Packet>,
    /// How many of them have left at least once.
    sent: usize,
    unacknowledged: usize,
    lost: VecDeque<u32>,
    /// Second and third copies of what was lost.
    copies: VecDeque<(Instant, u32)>,
    last_sent: Option<Instant>,
    /// The latest datagram with a large packet that is known to have come; and large packets that were lost or not
    /// answered since.
    large_came: Option<u64>,
    large_lost: usize,
    spare: Vec<Vec<u8>>,
}

struct Packet {
    bytes: Vec<u8>,
    state: State,
    /// When it left last, or its parity did, and in which datagram.
    at: Option<Instant>,
    counter: u64,
    /// In which it left first.
    first_counter: u64,
    has_parity: bool,
    /// Larger than what any path carries.
    large: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Sent,
    /// Its group's parity has not left yet: nobody may judge.
    Open,
    Lost,
    Acknowledged,
}

impl Packet {
    /// It is large and left after such a datagram.
    fn is_large_after(&self, counter: Option<u64>) -> bool {
        self.large && counter.is_none_or(|came| came < self.counter)
    }

    /// It has left, and nobody knows what became of it.
    fn is_under_way(&self) -> bool {
        matches!(self.state, State::Sent | State::Open)
    }
}

/// Enough for a burst.
const MAX_SPARE: usize = 64;

impl Flight {
    pub(crate) fn new() -> Self {
        Self {
            una: 0,
            packets: VecDeque::new(),
            sent: 0,
            unacknowledged: 0,
            lost: VecDeque::new(),
            copies: VecDeque::new(),
            last_sent: None,
            large_came: None,
            large_lost: 0,
            spare: Vec::new(),
        }
    }

    pub(crate) fn una(&self) -> u32 {
        self.una
    }

    /// Packets from `una` on, acknowledged or not.
    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let packets = self.packets.iter().map(|packet| packet.bytes.capacity());
        let spare = self.spare.iter().map(Vec::capacity);
        let copies = (self.lost.len() + self.copies.len()) * size_of::<(Instant, u32)>();
        packets.chain(spare).sum::<usize>() + copies
    }

    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Packets that wait to leave: new ones and lost ones.
    pub(crate) fn waiting(&self) -> usize {
        self.packets.len() - self.sent + self.lost.len()
    }

    pub(crate) fn has_new(&self) -> bool {
        self.sent < self.packets.len()
    }

    /// A new packet of KCP's, the next in order.
    pub(crate) fn push(&mut self, bytes: &[u8], large: bool) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(bytes);
        self.packets.push_back(Packet {
            bytes: copy,
            state: State::New,
            at: None,
            counter: 0,
            first_counter: 0,
            has_parity: false,
            large,
        });
        self.unacknowledged += 1;
    }

    pub(crate) fn is_acknowledged(&self, sn: u32) -> bool {
        let place = sn.wrapping_sub(self.una);
        place.cast_signed() < 0
            || self
                .packets
                .get(place as usize)
                .is_some_and(|packet| packet.state == State::Acknowledged)
    }

    pub(crate) fn on_acknowledged(&mut self, sn: u32) {
        if let Some(packet) = packet(&mut self.packets, self.una, sn)
            && packet.state != State::Acknowledged
        {
            packet.state = State::Acknowledged;
            self.unacknowledged -= 1;
            // Which copy came is not known: the first, to be sure.
            if packet.large
                && self
                    .large_came
                    .is_none_or(|came| came < packet.first_counter)
            {
                self.large_came = Some(packet.first_counter);
                self.large_lost = 0;
            }
        }
        while let Some(first) = self.packets.front()
            && first.state == State::Acknowledged
        {
            self.pop();
        }
    }

    /// All before `una` came.
    pub(crate) fn on_una(&mut self, una: u32) {
        while una.wrapping_sub(self.una).cast_signed() > 0 && !self.packets.is_empty() {
            self.on_acknowledged(self.una);
        }
    }

    fn pop(&mut self) {
        if let Some(mut packet) = self.packets.pop_front() {
            self.una = self.una.wrapping_add(1);
            self.sent = self.sent.saturating_sub(1);
            if self.spare.len() < MAX_SPARE {
                packet.bytes.clear();
                self.spare.push(packet.bytes);
            }
        }
    }

    /// The packet to send again next, at most so long.
    pub(crate) fn next_lost(&mut self, now: Instant) -> Option<u32> {
        while let Some((at, sn)) = self.copies.front()
            && *at <= now
        {
            self.lost.push_back(*sn);
            self.copies.pop_front();
        }
        while let Some(sn) = self.lost.front() {
            if !self.is_acknowledged(*sn) {
                return Some(*sn);
            }
            self.lost.pop_front();
        }
        None
    }

    /// When a copy is to be sent.
    pub(crate) fn copy_at(&self) -> Option<Instant> {
        self.copies.front().map(|(at, _)| *at)
    }

    pub(crate) fn next_new(&self) -> Option<u32> {
        self.has_new()
            .then(|| self.una.wrapping_add(self.sent as u32))
    }

    pub(crate) fn bytes(&self, sn: u32) -> &[u8] {
        self.packets
            .get(sn.wrapping_sub(self.una) as usize)
            .map_or(&[], |packet| &packet.bytes)
    }

    /// The packet of `next_new` has left; `open`: parity will follow.
    pub(crate) fn on_sent_new(&mut self, now: Instant, counter: u64, open: bool) {
        let place = self.sent;
        self.sent += 1;
        self.last_sent = Some(now);
        if let Some(packet) = self.packets.get_mut(place)
            && packet.state == State::New
        {
            packet.state = if open { State::Open } else { State::Sent };
            packet.at = Some(now);
            packet.counter = counter;
            packet.first_counter = counter;
        }
    }

    /// The packet of `next_lost` has left.
    pub(crate) fn on_sent_again(&mut self, now: Instant, counter: u64) {
        self.last_sent = Some(now);
        let Some(sn) = self.lost.pop_front() else {
            return;
        };
        if let Some(packet) = packet(&mut self.packets, self.una, sn)
            && packet.state != State::Acknowledged
        {
            packet.state = State::Sent;
            packet.at = Some(now);
            packet.counter = counter;
            packet.has_parity = false;
        }
    }

    /// Parity over this packet has left, or, without a counter, none will; `last`: no more of it follows.
    pub(crate) fn on_parity(&mut self, now: Instant, sn: u32, counter: Option<u64>, last: bool) {
        if counter.is_some() {
            self.last_sent = Some(now);
        }
        if let Some(packet) = packet(&mut self.packets, self.una, sn)
            && packet.state == State::Open
        {
            if let Some(counter) = counter {
                packet.at = Some(now);
                packet.counter = counter;
                packet.has_parity = true;
            }
            if last {
                packet.state = State::Sent;
            }
        }
    }

    /// Finds what is lost, since the peer has seen datagram `seen`. Nothing is judged sooner than `patience`
    /// after it left (where datagrams overtake each other); `copies` of each are sent, `gap` apart. Gives when to
    /// look again, if that is known, and how many were lost.
    pub(crate) fn detect(
        &mut self,
        now: Instant,
        seen: u64,
        patience: Duration,
        copies: u32,
        gap: Duration,
    ) -> (Option<Instant>, usize) {
        let mut again: Option<Instant> = None;
        let mut found = 0;
        for (packet, place) in self.packets.iter_mut().take(self.sent).zip(0u32..) {
            let later = if packet.has_parity {
                0
            } else {
                LATER_DATAGRAMS
            };
            if packet.state != State::Sent || seen < packet.counter.saturating_add(later) {
                continue;
            }
            let ripe = packet.at.map_or(now, |at| at + patience);
            if ripe > now {
                again = Some(again.map_or(ripe, |at| at.min(ripe)));
                continue;
            }
            packet.state = State::Lost;
            found += 1;
            self.large_lost += usize::from(packet.is_large_after(self.large_came));
            let sn = self.una.wrapping_add(place);
            self.lost.push_back(sn);
            let copies = if found <= MAX_COPIED { copies } else { 1 };
            for copy in 1..copies {
                let at = now + gap * copy;
                let place = self.copies.partition_point(|(other, _)| *other <= at);
                self.copies.insert(place, (at, sn));
            }
        }
        (again, found)
    }

    /// Large packets lost or not answered in a row: perhaps the path no longer carries such.
    pub(crate) fn large_lost(&self) -> usize {
        self.large_lost
    }

    /// It was not their size.
    pub(crate) fn forgive(&mut self) {
        self.large_lost = 0;
    }

    /// When the last packet left, if any is under way that might be lost unseen.
    pub(crate) fn tail_since(&self) -> Option<Instant> {
        (self.unacknowledged > 0 && self.waiting() == 0)
            .then_some(self.last_sent)
            .flatten()
    }

    /// Nothing was heard of the last datagrams: sends the oldest of what they carried again.
    /// Gives how many bytes.
    pub(crate) fn probe(&mut self) -> usize {
        let mut bytes = 0;
        let under_way = self.packets.iter_mut().zip(0u32..);
        let oldest = under_way.filter(|(packet, _)| packet.is_under_way());
        for (packet, place) in oldest.take(PROBE_PACKETS) {
            packet.state = State::Lost;
            self.lost.push_back(self.una.wrapping_add(place));
            self.large_lost += usize::from(packet.is_large_after(self.large_came));
            bytes += packet.bytes.len();
        }
        bytes
    }
}

fn packet(packets: &mut VecDeque<Packet>, una: u32, sn: u32) -> Option<&mut Packet> {
    packets.get_mut(sn.wrapping_sub(una) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    const NONE: Duration = Duration::ZERO;
    const GAP: Duration = Duration::from_millis(5);

    fn flight(packets: u64, now: Instant, open: bool) -> Flight {
        let mut flight = Flight::new();
        for counter in 0..packets {
            flight.push(&[counter as u8; 3], counter < 4);
            assert_eq!(flight.next_new(), Some(counter as u32));
            flight.on_sent_new(now, counter, open);
        }
        flight
    }

    #[test]
    fn two_later_datagrams_make_a_loss() {
        let now = sim::start();
        let mut flight = flight(5, now, false);
        flight.on_una(1);
        flight.on_acknowledged(3);
        assert_eq!((flight.una(), flight.unacknowledged()), (1, 3));
        assert_eq!(flight.detect(now, 3, NONE, 1, GAP), (None, 1));
        assert_eq!(flight.next_lost(now), Some(1));
        assert_eq!(flight.bytes(1), [1; 3]);
        flight.on_sent_again(now, 5);
        assert_eq!(flight.large_lost(), 0, "a later one came");
        assert_eq!(flight.detect(now, 6, NONE, 1, GAP), (None, 2), "2 and 4");
        flight.on_una(5);
        assert_eq!(flight.next_lost(now), None, "it came after all");
        assert_eq!((flight.unacknowledged(), flight.waiting()), (0, 0));
    }

    #[test]
    fn parity_is_waited_for_and_then_seen_at_once() {
        let now = sim::start();
        let mut flight = flight(3, now, true);
        assert_eq!(
            flight.detect(now, 50, NONE, 1, GAP),
            (None, 0),
            "the group is open"
        );
        for sn in 0..3 {
            flight.on_parity(now, sn, Some(7), true);
        }
        assert_eq!(flight.detect(now, 6, NONE, 1, GAP), (None, 0));
        flight.on_acknowledged(1);
        assert_eq!(flight.detect(now, 7, NONE, 1, GAP), (None, 2));
        assert_eq!(flight.waiting(), 2);
    }

    #[test]
    fn copies_follow_and_lateness_is_waited_for() {
        let now = sim::start();
        let mut flight = flight(3, now, false);
        let patience = Duration::from_millis(30);
        assert_eq!(
            flight.detect(now, 2, patience, 2, GAP),
            (Some(now + patience), 0)
        );
        assert_eq!(
            flight.detect(now + patience, 2, patience, 2, GAP),
            (None, 1)
        );
        assert_eq!(flight.next_lost(now + patience), Some(0));
        flight.on_sent_again(now + patience, 3);
        assert_eq!(flight.next_lost(now + patience), None);
        assert_eq!(flight.copy_at(), Some(now + patience + GAP));
        assert_eq!(flight.next_lost(now + patience + GAP), Some(0));
        flight.on_una(1);
        assert_eq!(flight.next_lost(now + patience + GAP), None);
    }

    #[test]
    fn a_probe_repeats_the_oldest() {
        let now = sim::start();
        let mut flight = flight(6, now, true);
        assert_eq!(flight.tail_since(), Some(now));
        assert_eq!(flight.probe(), 3 * PROBE_PACKETS);
        assert_eq!(flight.waiting(), PROBE_PACKETS);
        assert_eq!(flight.large_lost(), 4);
        flight.on_acknowledged(1);
        assert_eq!(flight.large_lost(), 0);
        assert_eq!(flight.tail_since(), None);
        assert_eq!(flight.next_lost(now), Some(0));
    }
}
