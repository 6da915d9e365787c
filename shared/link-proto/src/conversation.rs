//! One KCP conversation: keeps the rules without which KCP stalls, and knows what it has in flight.
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

use crate::{api::MAX_MESSAGE_BYTES, frame::KCP_MTU};

/// Payload of one KCP packet.
pub(crate) const KCP_MSS: usize = KCP_MTU - KCP_OVERHEAD;

const MAX_FRAGMENTS: usize = MAX_MESSAGE_BYTES.div_ceil(KCP_MSS);

/// KCP's own clockwork; also how often losses are looked for while packets are in flight.
const TICK: Duration = Duration::from_millis(10);

/// A flush walks over all that is in flight: where that is much, it is done this often at most.
const FLUSH_GAP: Duration = Duration::from_millis(1);

/// Acknowledgements that are worth a flush by themselves.
const ACKS_PER_FLUSH: usize = 16;

/// What KCP takes the peer's window for until it is told, and its least time-out, in milliseconds.
const UNTOLD_WINDOW: u16 = 128;
const FIRST_LEAST_RTO_MS: u32 = 30;

const PUSH: u8 = 81;
const ACK: u8 = 82;
const WINDOW_ASK: u8 = 83;
const WINDOW_TELL: u8 = 84;

/// An authentic peer sent what no KCP sends: its fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) struct Conversation {
    /// Made when first used: it has buffers of its own, some 5 KiB, and of an idle device's three conversations
    /// two never carry anything.
    kcp: Option<Box<Kcp<Outbox>>>,
    conv: u32,
    fast_resend: u32,
    least_rto_ms: u32,
    outbox: Outbox,
    began: Instant,
    receive_window: u16,
    max_send_window: u16,
    /// Mirror of KCP's first unacknowledged packet, and what is acknowledged after it.
    una: u32,
    acknowledged: VecDeque<bool>,
    in_flight: usize,
    /// One past the last packet of all messages given to KCP.
    end: u32,
    /// Messages not acknowledged whole: (one past the last packet, bytes).
    messages: VecDeque<(u32, usize)>,
    message_bytes: usize,
    acks_owed: usize,
    /// Acknowledgements came in: there may be packets to send again.
    news: bool,
    last_flush: Option<Instant>,
}

impl Conversation {
    pub(crate) fn new(now: Instant, conv: u32, receive_window: u16, max_send_window: u16) -> Self {
        Self {
            kcp: None,
            conv,
            // After two later acknowledgements.
            fast_resend: 2,
            least_rto_ms: FIRST_LEAST_RTO_MS,
            outbox: Outbox::default(),
            began: now,
            receive_window,
            max_send_window,
            una: 0,
            acknowledged: VecDeque::new(),
            in_flight: 0,
            end: 0,
            messages: VecDeque::new(),
            message_bytes: 0,
            acks_owed: 0,
            news: false,
            last_flush: None,
        }
    }

    /// KCP itself, made now if this is its first use.
    fn kcp(&mut self) -> &mut Kcp<Outbox> {
        self.kcp.get_or_insert_with(|| {
            let mut kcp = Kcp::new(self.conv, self.outbox.clone());
            // No window of its own: pacing is ours (rule 2).
            kcp.set_nodelay(
                true,
                TICK.as_millis() as i32,
                self.fast_resend.cast_signed(),
                true,
            );
            kcp.set_wndsize(1, self.receive_window);
            kcp.set_rx_minrto(self.least_rto_ms);
            // Can't fail: the MTU is a constant far above the least.
            let _ = kcp.set_mtu(KCP_MTU);
            Box::new(kcp)
        })
    }

    pub(crate) fn set_receive_window(&mut self, packets: u16) {
        self.receive_window = packets;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_wndsize(0, packets);
        }
    }

    /// Raised where the line reorders, so that lateness isn't taken for loss.
    pub(crate) fn set_fast_resend(&mut self, later_acks: u32) {
        self.fast_resend = later_acks;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_fast_resend(later_acks);
        }
    }

    /// KCP's own estimate takes a round trip that never varied for one that never will.
    pub(crate) fn set_least_rto(&mut self, rto: Duration) {
        self.least_rto_ms = rto
            .as_millis()
            .clamp(u128::from(FIRST_LEAST_RTO_MS), 10_000) as u32;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_rx_minrto(self.least_rto_ms);
        }
    }

    /// A KCP packet of the peer. Whole messages go to `deliver`.
    pub(crate) fn input(
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
        let kcp = self.kcp();
        // KCP's receive window must never be seen closed: take all out before the next flush (rule 3).
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

    /// Gives a message to KCP; its packets leave as `flush` allows.
    pub(crate) fn send(&mut self, message: &[u8]) {
        let packets = message.len().div_ceil(KCP_MSS).max(1);
        assert!(packets <= MAX_FRAGMENTS, "the caller keeps to the limit");
        if self.kcp().send(message).is_ok() {
            self.end = self.end.wrapping_add(packets as u32);
            self.messages.push_back((self.end, message.len()));
            self.message_bytes += message.len();
        }
    }

    /// Packets given to KCP that never left.
    pub(crate) fn unsent_packets(&self) -> usize {
        self.end.wrapping_sub(self.next()) as usize
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes of messages that are not acknowledged whole.
    pub(crate) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// Packets sent so far, as KCP counts them.
    pub(crate) fn next(&self) -> u32 {
        self.una.wrapping_add(self.acknowledged.len() as u32)
    }

    /// How many more packets may be unacknowledged.
    pub(crate) fn window_room(&self) -> usize {
        let told = self.kcp.as_ref().map_or(UNTOLD_WINDOW, |kcp| kcp.rmt_wnd());
        usize::from(self.max_send_window.min(told)).saturating_sub(self.acknowledged.len())
    }

    /// When `flush` should be called, with no new packet to send; `None`: not before something comes in.
    pub(crate) fn flush_at(&self) -> Option<Instant> {
        let last = self.last_flush.unwrap_or(self.began);
        if self.acks_owed >= ACKS_PER_FLUSH && self.in_flight == 0 {
            Some(last)
        } else if self.acks_owed > 0 || self.news {
            Some(last + FLUSH_GAP)
        } else if self.in_flight > 0 {
            Some(last + TICK)
        } else {
            None
        }
    }

    /// Whether walking over all in flight pays for so few new packets.
    pub(crate) fn may_send(&self, now: Instant, new_packets: usize) -> bool {
        new_packets > 0
            && (self.in_flight <= 64 * new_packets
                || self.last_flush.is_none_or(|last| now >= last + FLUSH_GAP))
    }

    /// Lets out acknowledgements, what was lost, and up to `new_packets` new packets.
    pub(crate) fn flush(&mut self, now: Instant, new_packets: usize) {
        self.limit_new(new_packets);
        self.update(now);
        if let Some(kcp) = &mut self.kcp {
            // The outbox never fails.
            let _ = kcp.flush();
        }
        self.take_notice();
        self.acks_owed = 0;
        self.news = false;
        self.last_flush = Some(now);
    }

    /// A packet that only acknowledges, next in line.
    pub(crate) fn pop_ack(&mut self) -> Option<Vec<u8>> {
        self.outbox.lock().acks.pop_front()
    }

    pub(crate) fn pop_data(&mut self) -> Option<Vec<u8>> {
        self.outbox.lock().data.pop_front()
    }

    pub(crate) fn next_ack_bytes(&self) -> Option<usize> {
        self.outbox.lock().acks.front().map(Vec::len)
    }

    pub(crate) fn next_data_bytes(&self) -> Option<usize> {
        self.outbox.lock().data.front().map(Vec::len)
    }

    pub(crate) fn data_waiting(&self) -> usize {
        self.outbox.lock().data.len()
    }

    /// Gives a packet's memory back for the next ones.
    pub(crate) fn recycle(&mut self, packet: Vec<u8>) {
        self.outbox.lock().recycle(packet);
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        let outbox = self.outbox.lock();
        (outbox.sent, outbox.resent)
    }

    fn update(&mut self, now: Instant) {
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u32;
        if let Some(kcp) = &mut self.kcp {
            let _ = kcp.update(now_ms);
        }
        self.take_notice();
    }

    /// KCP sends new packets while they are within its send window: set that to what is out plus what is
    /// allowed. (Where nothing is out it takes no less than one.)
    fn limit_new(&mut self, new_packets: usize) {
        let window = (self.acknowledged.len() + new_packets)
            .clamp(1, usize::from(self.max_send_window)) as u16;
        if let Some(kcp) = &mut self.kcp {
            kcp.set_wndsize(window, self.receive_window);
        }
    }

    /// What the outbox saw leave for the first time is in flight now.
    fn take_notice(&mut self) {
        let new = std::mem::take(&mut self.outbox.lock().new);
        self.acknowledged.extend(std::iter::repeat_n(false, new));
        self.in_flight += new;
    }

    fn check(&self, packet: &[u8]) -> Result<(), Malformed> {
        let sent = self.acknowledged.len() as i32;
        let mut segments = 0;
        for segment in Segments(packet) {
            let segment = segment?;
            segments += 1;
            let sane = segment.conv == self.conv
                && match segment.cmd {
                    PUSH => segment.len <= KCP_MSS && usize::from(segment.frg) < MAX_FRAGMENTS,
                    ACK | WINDOW_ASK | WINDOW_TELL => segment.len == 0,
                    _ => false,
                }
                && distance(segment.una, self.una) <= sent
                && (segment.cmd != ACK || distance(segment.sn, self.una) < sent.max(1));
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
            while distance(segment.una, self.una) > 0 && self.pop_acknowledged() {}
            match segment.cmd {
                PUSH => self.acks_owed += 1,
                ACK => {
                    self.news = true;
                    let at = distance(segment.sn, self.una);
                    if let Some(seen) = usize::try_from(at)
                        .ok()
                        .and_then(|at| self.acknowledged.get_mut(at))
                        && !std::mem::replace(seen, true)
                    {
                        self.in_flight -= 1;
                    }
                    while self.acknowledged.front() == Some(&true) && self.pop_acknowledged() {}
                }
                _ => {}
            }
        }
        while let Some(&(end, bytes)) = self.messages.front() {
            if distance(end, self.una) > 0 {
                break;
            }
            self.messages.pop_front();
            self.message_bytes -= bytes;
        }
    }

    fn pop_acknowledged(&mut self) -> bool {
        match self.acknowledged.pop_front() {
            Some(seen) => {
                if !seen {
                    self.in_flight -= 1;
                }
                self.una = self.una.wrapping_add(1);
                true
            }
            None => false,
        }
    }
}

fn distance(later: u32, earlier: u32) -> i32 {
    later.wrapping_sub(earlier).cast_signed()
}

/// The headers of a KCP packet (little-endian, as KCP has them).
struct Segments<'a>(&'a [u8]);

struct Segment {
    conv: u32,
    cmd: u8,
    frg: u8,
    sn: u32,
    una: u32,
    len: usize,
}

impl Iterator for Segments<'_> {
    type Item = Result<Segment, Malformed>;

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

impl Segments<'_> {
    fn take(&mut self) -> Option<Segment> {
        let (header, rest) = self.0.split_first_chunk::<KCP_OVERHEAD>()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?))
        };
        let len = word(20)? as usize;
        self.0 = rest.get(len..)?;
        Some(Segment {
            conv: word(0)?,
            cmd: *header.get(4)?,
            frg: *header.get(5)?,
            sn: word(12)?,
            una: word(16)?,
            len,
        })
    }
}

/// Where KCP writes its packets.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Packets>>);

#[derive(Default)]
struct Packets {
    acks: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// The next packet number that wasn't sent yet, and how many were since the caller looked.
    next: u32,
    new: usize,
    sent: u64,
    resent: u64,
}

/// Enough spare buffers for a burst.
const MAX_SPARE: usize = 64;

/// Packets that wait for the pacer. What comes on top was sent before, since the caller lets out new ones
/// only as they fit: it is dropped as the line would, and KCP sends it again.
const MAX_WAITING: usize = 8192;

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Packets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packets {
    fn recycle(&mut self, mut packet: Vec<u8>) {
        if self.spare.len() < MAX_SPARE {
            packet.clear();
            self.spare.push(packet);
        }
    }
}

impl Write for Outbox {
    fn write(&mut self, packet: &[u8]) -> io::Result<usize> {
        let mut packets = self.lock();
        let mut carries_data = false;
        for segment in Segments(packet).flatten() {
            if segment.cmd == PUSH {
                carries_data = true;
                packets.sent += 1;
                if segment.sn == packets.next {
                    packets.next = packets.next.wrapping_add(1);
                    packets.new += 1;
                } else {
                    packets.resent += 1;
                }
            }
        }
        if packets.data.len() >= MAX_WAITING || packets.acks.len() >= MAX_WAITING {
            return Ok(packet.len());
        }
        let mut copy = packets.spare.pop().unwrap_or_default();
        copy.extend_from_slice(packet);
        if carries_data {
            packets.data.push_back(copy);
        } else {
            packets.acks.push_back(copy);
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

    fn carry(from: &mut Conversation, to: &mut Conversation, now: Instant) -> Vec<Bytes> {
        let mut messages = Vec::new();
        while let Some(packet) = from.pop_ack().or_else(|| from.pop_data()) {
            to.input(now, &packet, |message| messages.push(message))
                .unwrap();
            from.recycle(packet);
        }
        messages
    }

    #[test]
    fn lets_out_what_is_allowed_and_knows_what_is_in_flight() {
        let (mut a, mut b, mut now) = pair();
        a.send(&[1; 5 * KCP_MSS]);
        a.send(&[2; 10]);
        assert_eq!(
            (a.unsent_packets(), a.message_bytes()),
            (6, 5 * KCP_MSS + 10)
        );
        a.flush(now, 2);
        assert_eq!(
            (a.unsent_packets(), a.in_flight(), a.data_waiting()),
            (4, 2, 2)
        );
        a.flush(now, 4);
        assert_eq!((a.unsent_packets(), a.in_flight()), (0, 6));
        now += Duration::from_millis(20);
        assert_eq!(
            carry(&mut a, &mut b, now),
            [vec![1; 5 * KCP_MSS], vec![2; 10]]
        );
        assert_eq!(b.flush_at(), Some(sim_end(&b)), "acknowledgements are owed");
        b.flush(now, 0);
        now += Duration::from_millis(20);
        assert!(carry(&mut b, &mut a, now).is_empty());
        assert_eq!((a.in_flight(), a.message_bytes(), a.next()), (0, 0, 6));
        assert_eq!(a.counts(), (6, 0));
    }

    fn sim_end(conversation: &Conversation) -> Instant {
        conversation.last_flush.unwrap_or(conversation.began) + FLUSH_GAP
    }

    #[test]
    fn kcp_is_made_when_first_used_and_knows_what_was_set_before() {
        let (mut a, mut b, now) = pair();
        b.set_receive_window(300);
        b.set_fast_resend(3);
        b.set_least_rto(Duration::from_millis(70));
        b.flush(now, 4);
        assert_eq!(b.window_room(), usize::from(UNTOLD_WINDOW));
        assert_eq!((b.flush_at(), b.may_send(now, 0)), (None, false));
        assert!(a.kcp.is_none() && b.kcp.is_none());
        a.send(&[1; 10]);
        a.flush(now, 1);
        assert!(a.kcp.is_some());
        assert_eq!(carry(&mut a, &mut b, now), [vec![1; 10]]);
        assert_eq!(b.kcp.as_ref().unwrap().rcv_wnd(), 300);
        b.flush(now + TICK, 0);
        carry(&mut b, &mut a, now + TICK);
        assert_eq!(a.kcp.as_ref().unwrap().rmt_wnd(), 300, "as the answer says");
    }

    #[test]
    fn what_is_lost_is_sent_again() {
        let (mut a, mut b, mut now) = pair();
        a.send(&[7; 3 * KCP_MSS]);
        a.flush(now, 3);
        let lost = a.pop_data().unwrap();
        let mut messages = carry(&mut a, &mut b, now);
        assert!(messages.is_empty(), "not whole");
        for _ in 0..100 {
            now += TICK;
            a.flush(now, 0);
            b.flush(now, 0);
            messages.extend(carry(&mut a, &mut b, now));
            carry(&mut b, &mut a, now);
        }
        assert_eq!(messages, [vec![7; 3 * KCP_MSS]]);
        assert_eq!(a.in_flight(), 0);
        let (sent, resent) = a.counts();
        assert!(sent > 3 && resent == sent - 3);
        b.input(now, &lost, |_| panic!("it is old")).unwrap();
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
                packet(CONV, PUSH, 0, 0, 0, &[1; KCP_MSS + 1]),
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
                prop_assert!(a.in_flight() <= a.acknowledged.len());
                now += Duration::from_millis(7);
                a.flush(now, 1);
                while let Some(packet) = a.pop_ack().or_else(|| a.pop_data()) {
                    a.recycle(packet);
                }
            }
        }
    }
}
