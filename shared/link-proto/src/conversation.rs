//! One KCP conversation: keeps the rules without which KCP stalls, and knows what it has in flight.
//!
//! KCP cuts messages into packets, orders them and gates its window. What it would do about losses is done
//! here in its stead, since it can't know of parity nor of what the line has carried: its own resends and its
//! acknowledgements, one of 24 bytes for each packet, never leave ([`Flight`] and [`Arrivals`] take their
//! place), and what the peer acknowledges is put before it in its own form.
//!
//! Nothing reaches KCP that isn't checked: its own parser trusts `una`, sizes and fragment numbers. New
//! packets come out only as many as the caller allows (KCP itself would send its whole window at once), and
//! what comes out is kept in an outbox that never refuses: an error there would make KCP believe in packets
//! that never left.

#![expect(
    clippy::disallowed_types,
    reason = "KCP owns its output; this shares it with the one caller, who never waits for it"
)]

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kcp::{KCP_OVERHEAD, Kcp};

use crate::{
    api::MAX_MESSAGE_BYTES,
    arrivals::{Arrivals, Sack},
    frame::{BASE_KCP_MSS, MAX_KCP_MSS},
    recovery::Flight,
};

const MAX_FRAGMENTS: usize = MAX_MESSAGE_BYTES.div_ceil(BASE_KCP_MSS);

/// KCP's own clockwork; nothing depends on it.
const TICK_MS: i32 = 10;

/// KCP takes packets for lost after so long, in vain: its resends never leave.
const KCP_RTO_MS: u32 = 60_000;

/// A flush walks over all that is in flight: where that is much, it is done this often at most.
const FLUSH_GAP: Duration = Duration::from_millis(1);

/// KCP keeps a list of what it would acknowledge, until a flush.
const MAX_ACKS_KEPT: usize = 128;

/// What KCP takes the peer's window for until it is told.
const UNTOLD_WINDOW: u16 = 128;

const PUSH: u8 = 81;
const ACK: u8 = 82;
const WINDOW_ASK: u8 = 83;
const WINDOW_TELL: u8 = 84;

/// An authentic peer sent what no KCP sends: its fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) struct Conversation {
    /// Made when it is first used: most of an idle device's channels never are.
    kcp: Option<Box<Kcp<Outbox>>>,
    conv: u32,
    outbox: Outbox,
    began: Instant,
    receive_window: u16,
    max_send_window: u16,
    /// Data of the packets that messages are cut into from now on, in bytes.
    mss: usize,
    pub(crate) flight: Flight,
    pub(crate) arrivals: Arrivals,
    /// One past the last packet of all messages given to KCP.
    end: u32,
    /// Messages not acknowledged whole: (one past the last packet, bytes).
    messages: VecDeque<(u32, usize)>,
    message_bytes: usize,
    acks_kept: usize,
    last_flush: Option<Instant>,
    scratch: Vec<u8>,
}

impl Conversation {
    pub(crate) fn new(now: Instant, conv: u32, receive_window: u16, max_send_window: u16) -> Self {
        Self {
            kcp: None,
            conv,
            outbox: Outbox::default(),
            began: now,
            receive_window,
            max_send_window,
            mss: BASE_KCP_MSS,
            flight: Flight::new(),
            arrivals: Arrivals::new(),
            end: 0,
            messages: VecDeque::new(),
            message_bytes: 0,
            acks_kept: 0,
            last_flush: None,
            scratch: Vec::new(),
        }
    }

    /// KCP itself, made now if this is its first use.
    fn kcp(&mut self) -> &mut Kcp<Outbox> {
        self.kcp.get_or_insert_with(|| {
            let mut kcp = Kcp::new(self.conv, self.outbox.clone());
            // No fast resend, no window of its own: both are ours (rule 2).
            kcp.set_nodelay(true, TICK_MS, 0, true);
            kcp.set_rx_minrto(KCP_RTO_MS);
            kcp.set_wndsize(1, self.receive_window);
            // Can't fail: the MTU is far above the least.
            let _ = kcp.set_mtu(self.mss + KCP_OVERHEAD);
            Box::new(kcp)
        })
    }

    /// Data of one packet, in bytes, for messages given from now on. It may only grow: what KCP has cut stays so.
    pub(crate) fn set_mss(&mut self, mss: usize) {
        self.mss = mss.clamp(self.mss, MAX_KCP_MSS);
        if let Some(kcp) = &mut self.kcp {
            let _ = kcp.set_mtu(self.mss + KCP_OVERHEAD);
        }
    }

    pub(crate) fn mss(&self) -> usize {
        self.mss
    }

    pub(crate) fn set_receive_window(&mut self, packets: u16) {
        self.receive_window = packets;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_wndsize(0, packets);
        }
    }

    /// What the peer said last that it takes.
    fn peer_window(&self) -> u16 {
        let told = self.kcp.as_ref().map(|kcp| kcp.rmt_wnd());
        told.unwrap_or(UNTOLD_WINDOW)
    }

    /// A packet as KCP has it. Whole messages go to `deliver`.
    fn input(
        &mut self,
        now: Instant,
        packet: &[u8],
        mut deliver: impl FnMut(Bytes),
    ) -> Result<(), Malformed> {
        self.check(packet)?;
        self.kcp();
        self.limit_new(0);
        self.update(now);
        self.kcp().input(packet).map_err(|_| Malformed)?;
        self.mirror(packet);
        if self.acks_kept >= MAX_ACKS_KEPT {
            self.flush(now, 0);
        }
        // KCP's receive window must never be seen closed: take all out before the next flush (rule 3).
        let kcp = self.kcp();
        while let Ok(size) = kcp.peeksize() {
            if size > MAX_MESSAGE_BYTES {
                return Err(Malformed);
            }
            let mut message = vec![0; size];
            match kcp.recv(&mut message) {
                Ok(_) => deliver(Bytes::from(message)),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// A packet with data of the peer's, or one that parity gave back. Whole messages go to `deliver`.
    pub(crate) fn on_data(
        &mut self,
        now: Instant,
        sn: u32,
        fragment: u8,
        data: &[u8],
        deliver: impl FnMut(Bytes),
    ) -> Result<(), Malformed> {
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        self.write_segment(&mut packet, now, PUSH, fragment, self.peer_window(), sn);
        packet.truncate(KCP_OVERHEAD - 4);
        packet.extend_from_slice(&(data.len() as u32).to_le_bytes());
        packet.extend_from_slice(data);
        let taken = self.input(now, &packet, deliver);
        self.scratch = packet;
        taken
    }

    /// What the peer has: KCP is told so of each packet that it didn't know of.
    pub(crate) fn on_sack(&mut self, now: Instant, sack: &Sack) -> Result<(), Malformed> {
        let sent = self.flight.len() as i32;
        let known = |sn: u32, most: i32| distance(sn, self.flight.una()) <= most;
        if sack.conv != self.conv
            || !known(sack.una, sent)
            || !sack.packets().all(|sn| known(sn, sent - 1))
        {
            return Err(Malformed);
        }
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        let una = distance(sack.una, self.flight.una()).max(0) as u32;
        let una = self.flight.una().wrapping_add(una);
        self.write_segment(&mut packet, now, WINDOW_TELL, 0, sack.window, una);
        for sn in sack.packets() {
            if distance(sn, una) >= 0 && !self.flight.is_acknowledged(sn) {
                self.write_segment(&mut packet, now, ACK, 0, sack.window, sn);
            }
        }
        for una_field in packet
            .chunks_exact_mut(KCP_OVERHEAD)
            .filter_map(|header| header.get_mut(16..20))
        {
            una_field.copy_from_slice(&una.to_le_bytes());
        }
        let taken = self.input(now, &packet, |_| {});
        self.scratch = packet;
        taken
    }

    /// What the peer should know of what came.
    pub(crate) fn take_sack(&mut self) -> Option<Sack> {
        self.arrivals.take(self.conv, self.receive_window)
    }

    /// Gives a message to KCP; its packets leave as `flush` allows.
    pub(crate) fn send(&mut self, message: &[u8]) {
        let packets = message.len().div_ceil(self.mss).max(1);
        assert!(packets <= MAX_FRAGMENTS, "the caller keeps to the limit");
        if self.kcp().send(message).is_ok() {
            self.end = self.end.wrapping_add(packets as u32);
            self.messages.push_back((self.end, message.len()));
            self.message_bytes += message.len();
        }
    }

    /// Packets given to KCP that never left it.
    pub(crate) fn unsent_packets(&self) -> usize {
        self.end.wrapping_sub(self.next()) as usize
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flight.unacknowledged()
    }

    /// Bytes of messages that are not acknowledged whole.
    pub(crate) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// Packets sent so far, as KCP counts them.
    pub(crate) fn next(&self) -> u32 {
        self.flight.una().wrapping_add(self.flight.len() as u32)
    }

    /// How many more packets may be unacknowledged.
    pub(crate) fn window_room(&self) -> usize {
        usize::from(self.max_send_window.min(self.peer_window())).saturating_sub(self.flight.len())
    }

    /// Whether walking over all in flight pays for so few new packets.
    pub(crate) fn may_send(&self, now: Instant, new_packets: usize) -> bool {
        new_packets > 0
            && (self.in_flight() <= 64 * new_packets
                || self.last_flush.is_none_or(|last| now >= last + FLUSH_GAP))
    }

    /// Lets out up to `new_packets` new packets.
    pub(crate) fn flush(&mut self, now: Instant, new_packets: usize) {
        self.limit_new(new_packets);
        self.update(now);
        if let Some(kcp) = &mut self.kcp {
            // The outbox never fails.
            let _ = kcp.flush();
        }
        self.take_notice();
        self.acks_kept = 0;
        self.last_flush = Some(now);
    }

    fn update(&mut self, now: Instant) {
        let now_ms = self.clock_ms(now);
        if let Some(kcp) = &mut self.kcp {
            let _ = kcp.update(now_ms);
        }
        self.take_notice();
    }

    fn clock_ms(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.began).as_millis() as u32
    }

    /// KCP sends new packets while they are within its send window: set that to what is out plus what is
    /// allowed. (Where nothing is out it takes no less than one.)
    fn limit_new(&mut self, new_packets: usize) {
        let window =
            (self.flight.len() + new_packets).clamp(1, usize::from(self.max_send_window)) as u16;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_wndsize(window, self.receive_window);
        }
    }

    /// What KCP let out is in flight now, and waits for the pacer.
    fn take_notice(&mut self) {
        let mut outbox = self.outbox.lock();
        let mut rest = outbox.bytes.as_slice();
        while let Some(Ok(segment)) = Segments(rest).next()
            && let Some((packet, others)) = rest.split_at_checked(KCP_OVERHEAD + segment.data.len())
        {
            let large = segment.data.len() > BASE_KCP_MSS;
            self.flight.push(packet, large);
            rest = others;
        }
        outbox.bytes.clear();
    }

    /// A segment without data.
    fn write_segment(
        &self,
        out: &mut Vec<u8>,
        now: Instant,
        cmd: u8,
        frg: u8,
        window: u16,
        sn: u32,
    ) {
        out.extend_from_slice(&self.conv.to_le_bytes());
        out.extend_from_slice(&[cmd, frg]);
        out.extend_from_slice(&window.to_le_bytes());
        for word in [self.clock_ms(now), sn, self.flight.una(), 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn check(&self, packet: &[u8]) -> Result<(), Malformed> {
        let sent = self.flight.len() as i32;
        let mut segments = 0;
        for segment in Segments(packet) {
            let segment = segment?;
            segments += 1;
            let sane = segment.conv == self.conv
                && match segment.cmd {
                    PUSH => {
                        segment.data.len() <= MAX_KCP_MSS
                            && usize::from(segment.frg) < MAX_FRAGMENTS
                    }
                    ACK | WINDOW_ASK | WINDOW_TELL => segment.data.is_empty(),
                    _ => false,
                }
                && distance(segment.una, self.flight.una()) <= sent
                && (segment.cmd != ACK || distance(segment.sn, self.flight.una()) < sent.max(1));
            if !sane {
                return Err(Malformed);
            }
        }
        if segments == 0 {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    fn mirror(&mut self, packet: &[u8]) {
        for segment in Segments(packet).flatten() {
            self.flight.on_una(segment.una);
            match segment.cmd {
                PUSH => {
                    self.acks_kept += 1;
                    self.arrivals.on_packet(segment.sn, self.receive_window);
                }
                ACK => self.flight.on_acknowledged(segment.sn),
                _ => {}
            }
        }
        while let Some(&(end, bytes)) = self.messages.front() {
            if distance(end, self.flight.una()) > 0 {
                break;
            }
            self.messages.pop_front();
            self.message_bytes -= bytes;
        }
    }
}

fn distance(later: u32, earlier: u32) -> i32 {
    later.wrapping_sub(earlier).cast_signed()
}

/// Fragment and data of a packet in [`Conversation::flight`].
pub(crate) fn content(packet: &[u8]) -> (u8, &[u8]) {
    match Segments(packet).next() {
        Some(Ok(segment)) => (segment.frg, segment.data),
        _ => (0, &[]),
    }
}

/// The headers of a KCP packet (little-endian, as KCP has them).
struct Segments<'a>(&'a [u8]);

struct Segment<'a> {
    conv: u32,
    cmd: u8,
    frg: u8,
    sn: u32,
    una: u32,
    data: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let taken = self.take();
        if taken.is_none() {
            self.0 = &[];
        }
        Some(taken.ok_or(Malformed))
    }
}

impl<'a> Segments<'a> {
    fn take(&mut self) -> Option<Segment<'a>> {
        let (header, rest) = self.0.split_first_chunk::<KCP_OVERHEAD>()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?))
        };
        let (data, rest) = rest.split_at_checked(word(20)? as usize)?;
        self.0 = rest;
        Some(Segment {
            conv: word(0)?,
            cmd: *header.get(4)?,
            frg: *header.get(5)?,
            sn: word(12)?,
            una: word(16)?,
            data,
        })
    }
}

/// Where KCP writes its packets.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Packets>>);

#[derive(Default)]
struct Packets {
    /// New packets, one after the other; the caller empties it after each call that may fill it.
    bytes: Vec<u8>,
    /// The next packet number that wasn't sent yet.
    next: u32,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Packets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Outbox {
    /// Takes what is new; what KCP would send again or acknowledge is not its business.
    fn write(&mut self, packet: &[u8]) -> io::Result<usize> {
        let mut packets = self.lock();
        let mut rest = packet;
        for segment in Segments(packet).flatten() {
            let Some((bytes, others)) = rest.split_at_checked(KCP_OVERHEAD + segment.data.len())
            else {
                break;
            };
            rest = others;
            if segment.cmd == PUSH && segment.sn == packets.next {
                packets.next = packets.next.wrapping_add(1);
                packets.bytes.extend_from_slice(bytes);
            }
        }
        Ok(packet.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sim;

    const CONV: u32 = 6;

    fn pair() -> (Conversation, Conversation, Instant) {
        let now = sim::start();
        let new = || Conversation::new(now, CONV, 1024, 1024);
        (new(), new(), now)
    }

    /// All that waits goes over, or is lost, and is acknowledged.
    fn carry(
        from: &mut Conversation,
        to: &mut Conversation,
        now: Instant,
        mut comes: impl FnMut(u32) -> bool,
    ) -> Vec<Bytes> {
        let mut messages = Vec::new();
        let mut counter = 0;
        loop {
            let lost = from.flight.next_lost(now);
            let Some(sn) = lost.or(from.flight.next_new()) else {
                break;
            };
            let packet = from.flight.bytes(sn).to_vec();
            match lost {
                Some(_) => from.flight.on_sent_again(now, counter),
                None => from.flight.on_sent_new(now, counter, false),
            }
            counter += 1;
            if comes(sn) {
                to.input(now, &packet, |message| messages.push(message))
                    .unwrap();
            }
        }
        while let Some(sack) = to.take_sack() {
            from.on_sack(now, &sack).unwrap();
        }
        messages
    }

    #[test]
    fn lets_out_what_is_allowed_and_knows_what_is_in_flight() {
        let (mut a, mut b, mut now) = pair();
        a.send(&[1; 5 * BASE_KCP_MSS]);
        a.send(&[2; 10]);
        assert_eq!(
            (a.unsent_packets(), a.message_bytes()),
            (6, 5 * BASE_KCP_MSS + 10)
        );
        a.flush(now, 2);
        assert_eq!(
            (a.unsent_packets(), a.in_flight(), a.flight.waiting()),
            (4, 2, 2)
        );
        a.flush(now, 4);
        assert_eq!((a.unsent_packets(), a.in_flight()), (0, 6));
        now += Duration::from_millis(20);
        assert_eq!(
            carry(&mut a, &mut b, now, |_| true),
            [vec![1; 5 * BASE_KCP_MSS], vec![2; 10]]
        );
        assert_eq!((a.in_flight(), a.message_bytes(), a.next()), (0, 0, 6));
    }

    #[test]
    fn kcp_is_made_when_first_used_and_knows_what_was_set_before() {
        let (mut a, mut b, now) = pair();
        b.set_receive_window(300);
        b.flush(now, 4);
        assert_eq!(b.window_room(), usize::from(UNTOLD_WINDOW));
        assert!(a.kcp.is_none() && b.kcp.is_none());
        a.send(&[1; 10]);
        a.flush(now, 1);
        assert_eq!(carry(&mut a, &mut b, now, |_| true), [vec![1; 10]]);
        assert_eq!(b.kcp.as_ref().unwrap().rcv_wnd(), 300);
        assert_eq!(a.peer_window(), 300, "as the answer says");
    }

    #[test]
    fn what_is_lost_is_sent_again_and_kcp_itself_sends_nothing_twice() {
        let (mut a, mut b, mut now) = pair();
        a.send(&[7; 3 * BASE_KCP_MSS]);
        a.flush(now, 3);
        assert!(carry(&mut a, &mut b, now, |sn| sn != 1).is_empty());
        assert_eq!(a.in_flight(), 1);
        now += Duration::from_secs(300);
        a.flush(now, 0);
        assert_eq!(a.flight.waiting(), 0);
        assert_eq!(
            a.flight.detect(now, 9, Duration::ZERO, 1, Duration::ZERO),
            (None, 1)
        );
        assert_eq!(
            carry(&mut a, &mut b, now, |_| true),
            [vec![7; 3 * BASE_KCP_MSS]]
        );
        assert_eq!((a.in_flight(), a.message_bytes()), (0, 0));
    }

    #[test]
    fn what_parity_gives_back_is_a_packet_like_others() {
        let (mut a, mut b, now) = pair();
        a.send(&[7; 3 * BASE_KCP_MSS]);
        a.flush(now, 3);
        assert!(carry(&mut a, &mut b, now, |sn| sn != 1).is_empty());
        let mut messages = Vec::new();
        b.on_data(now, 1, 1, &[7; BASE_KCP_MSS], |message| {
            messages.push(message)
        })
        .unwrap();
        assert_eq!(messages, [vec![7; 3 * BASE_KCP_MSS]]);
        carry(&mut a, &mut b, now, |_| true);
        assert_eq!(a.in_flight(), 0);
        b.on_data(now, 1, 1, &[7; BASE_KCP_MSS], |_| panic!("it is old"))
            .unwrap();
        assert_eq!(b.on_data(now, 5, 255, &[7], |_| {}), Err(Malformed));
    }

    /// A packet as KCP lays it out.
    fn packet(conv: u32, cmd: u8, frg: u8, sn: u32, una: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = conv.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[cmd, frg, 128, 0]);
        for word in [0, sn, una, data.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn what_no_kcp_sends_never_reaches_it() {
        let (mut a, ..) = pair();
        let now = a.began;
        let good = packet(CONV, PUSH, 0, 0, 0, &[1]);
        for (bad, why) in [
            (vec![], "empty"),
            (good[..20].to_vec(), "cut off"),
            ([&good[..], &[0]].concat(), "something after it"),
            (
                packet(CONV + 1, PUSH, 0, 0, 0, &[1]),
                "another conversation",
            ),
            (packet(CONV, 80, 0, 0, 0, &[]), "no command"),
            (packet(CONV, PUSH, 255, 0, 0, &[1]), "too many fragments"),
            (
                packet(CONV, PUSH, 0, 0, 0, &[1; MAX_KCP_MSS + 1]),
                "over the size of a packet",
            ),
            (
                packet(CONV, PUSH, 0, 0, 1, &[1]),
                "acknowledges what was not sent",
            ),
            (packet(CONV, ACK, 0, 5, 0, &[]), "so does this"),
            (
                packet(CONV, ACK, 0, 0, 0, &[1]),
                "an acknowledgement with data",
            ),
        ] {
            assert_eq!(a.input(now, &bad, |_| {}), Err(Malformed), "{why}");
        }
        let sack = Sack {
            conv: CONV,
            window: 9,
            una: 0,
            base: 0,
            bits: vec![],
        };
        for (bad, why) in [
            (
                Sack {
                    conv: CONV + 1,
                    ..sack.clone()
                },
                "another conversation",
            ),
            (
                Sack {
                    una: 1,
                    ..sack.clone()
                },
                "what was not sent",
            ),
            (
                Sack {
                    bits: vec![1],
                    ..sack.clone()
                },
                "so does this",
            ),
        ] {
            assert_eq!(a.on_sack(now, &bad), Err(Malformed), "{why}");
        }
        assert_eq!(a.on_sack(now, &sack), Ok(()));
        let mut messages = 0;
        assert_eq!(a.input(now, &good, |_| messages += 1), Ok(()));
        assert_eq!(messages, 1);
    }

    proptest! {
        #[test]
        fn a_peer_that_lies_makes_no_panic(
            steps in proptest::collection::vec(
                (80u8..86, 0u8..30, 0u32..40, 0u32..6, 0usize..40, any::<bool>()), 1..120,
            )
        ) {
            let (mut a, _, mut now) = pair();
            for (cmd, frg, sn, una, size, send) in steps {
                if send {
                    a.send(&[1; 3000]);
                    a.flush(now, 2);
                }
                let mut longest = 0;
                let size = if cmd == PUSH { size } else { 0 };
                let bytes = packet(CONV, cmd, frg, sn, una, &vec![3; size]);
                let _ = a.input(now, &bytes, |message| longest = longest.max(message.len()));
                prop_assert!(longest <= MAX_MESSAGE_BYTES);
                let sack = Sack {
                    conv: CONV,
                    window: una as u16,
                    una,
                    base: sn,
                    bits: vec![frg, cmd],
                };
                let _ = a.on_sack(now, &sack);
                prop_assert!(a.in_flight() <= a.flight.len());
                now += Duration::from_millis(7);
                a.flush(now, 1);
                if a.flight.has_new() {
                    a.flight.on_sent_new(now, 1, true);
                }
            }
        }
    }
}
