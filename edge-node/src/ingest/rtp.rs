//! MPEG-TS in RTP (RFC 3550, payload type 33 of RFC 3551): the header, and putting packets back in order.
//!
//! Pure; the clock is an argument. MPEG-TS without RTP has nothing to be put in order by: its continuity
//! counters turn over every sixteen packets of a PID, so what comes out of order there counts as lost.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Payload type of MPEG-2 transport streams.
const MP2T: u8 = 33;
/// Packets held back for one that is missing: 40 ms of 8 Mbit/s, 47 kB.
const WINDOW: usize = 32;
/// The same in time, for slow streams.
const MAX_HOLD: Duration = Duration::from_millis(100);
/// A step of sequence numbers beyond this is a sender that began anew.
const MAX_STEP: i16 = 512;

/// What a packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RtpPacket<'a> {
    pub(super) sequence: u16,
    pub(super) source: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> RtpPacket<'a> {
    /// None: not RTP with MPEG-TS in it.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (&[b0, b1, s1, s0, _, _, _, _, c3, c2, c1, c0], rest) =
            datagram.split_first_chunk::<12>()?;
        if b0 >> 6 != 2 || b1 & 0x7f != MP2T {
            return None;
        }
        let mut payload = rest.get(usize::from(b0 & 0x0f) * 4..)?;
        if b0 & 0x10 != 0 {
            let (&[_, _, l1, l0], behind) = payload.split_first_chunk::<4>()?;
            payload = behind.get(usize::from(u16::from_be_bytes([l1, l0])) * 4..)?;
        }
        if b0 & 0x20 != 0 {
            let padding = usize::from(*payload.last()?);
            payload = payload.get(..payload.len().checked_sub(padding)?)?;
        }
        Some(Self {
            sequence: u16::from_be_bytes([s1, s0]),
            source: u32::from_be_bytes([c3, c2, c1, c0]),
            payload,
        })
    }
}

/// What was found wrong in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Disorder {
    pub(super) lost: u64,
    pub(super) reordered: u64,
    pub(super) repeated: u64,
}

/// Puts packets in order.
#[derive(Debug, Default)]
pub(super) struct Reorder {
    source: u32,
    /// The next sequence number, counted on over its wraps; None before the first packet.
    next: Option<i64>,
    /// Packets behind a missing one, at most [`WINDOW`].
    held: BTreeMap<i64, Vec<u8>>,
    held_since: Option<Instant>,
    disorder: Disorder,
}

impl Reorder {
    /// Takes a packet and appends what is in order to `out`.
    pub(super) fn push(&mut self, packet: RtpPacket<'_>, now: Instant, out: &mut Vec<u8>) {
        let next = match self.next {
            Some(next) if self.source == packet.source => next,
            _ => self.begin(packet, out),
        };
        let step = packet.sequence.wrapping_sub(next as u16) as i16;
        if step.unsigned_abs() > MAX_STEP.unsigned_abs() {
            self.begin(packet, out);
            self.give(packet.payload, out);
            return;
        }
        match step {
            0 => {
                self.give(packet.payload, out);
                self.give_held(out);
            }
            ..0 => self.disorder.repeated += 1,
            _ => {
                let at = next + i64::from(step);
                if self.held.insert(at, packet.payload.to_vec()).is_some() {
                    self.disorder.repeated += 1;
                }
                self.held_since.get_or_insert(now);
                if self.held.len() > WINDOW {
                    self.give_up(out);
                }
            }
        }
        self.expire(now, out);
    }

    /// Gives what waits for a packet that is not coming any more. Call at least every [`MAX_HOLD`].
    pub(super) fn expire(&mut self, now: Instant, out: &mut Vec<u8>) {
        let due = |since: Instant| now.saturating_duration_since(since) >= MAX_HOLD;
        if self.held_since.is_some_and(due) {
            self.give_up(out);
            self.held_since = (!self.held.is_empty()).then_some(now);
        }
    }

    /// What was wrong since the last call.
    pub(super) fn take_disorder(&mut self) -> Disorder {
        std::mem::take(&mut self.disorder)
    }

    fn begin(&mut self, packet: RtpPacket<'_>, out: &mut Vec<u8>) -> i64 {
        while !self.held.is_empty() {
            self.give_up(out);
        }
        self.source = packet.source;
        let next = i64::from(packet.sequence);
        self.next = Some(next);
        next
    }

    fn give(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
        self.next = self.next.map(|next| next + 1);
    }

    fn give_held(&mut self, out: &mut Vec<u8>) {
        while let Some(payload) = self.next.and_then(|next| self.held.remove(&next)) {
            self.disorder.reordered += 1;
            self.give(&payload, out);
        }
        if self.held.is_empty() {
            self.held_since = None;
        }
    }

    /// Goes on at the lowest that is held.
    fn give_up(&mut self, out: &mut Vec<u8>) {
        let (Some(next), Some((&lowest, _))) = (self.next, self.held.first_key_value()) else {
            return;
        };
        self.disorder.lost += u64::try_from(lowest - next).unwrap_or(0);
        self.next = Some(lowest);
        // These came in their order: it was the lost one that did not.
        let before = self.disorder.reordered;
        self.give_held(out);
        self.disorder.reordered = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80, MP2T];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn headers() {
        let plain = packet(258, &[1, 2, 3]);
        let read = RtpPacket::parse(&plain).unwrap();
        assert_eq!(
            (read.sequence, read.source, read.payload),
            (258, 7, &[1, 2, 3][..])
        );
        // Two CSRCs, an extension of one word, two bytes of padding.
        let mut full = packet(1, &[0; 8]);
        full[0] = 0xb2;
        full.extend([0, 0, 0, 1, 9, 9, 9, 9, 5, 6, 7, 0, 2]);
        assert_eq!(RtpPacket::parse(&full).unwrap().payload, [5, 6, 7]);
        for (at, value) in [(0, 0x40), (1, 96), (0, 0x8f)] {
            let mut bad = plain.clone();
            bad[at] = value;
            assert_eq!(RtpPacket::parse(&bad), None);
        }
        for len in 0..12 {
            assert_eq!(RtpPacket::parse(&plain[..len]), None);
        }
        let mut padded = packet(1, &[200]);
        padded[0] = 0xa0;
        assert_eq!(RtpPacket::parse(&padded), None);
    }

    fn run(sequences: &[u16]) -> (Vec<u8>, Disorder) {
        let (mut reorder, mut out) = (Reorder::default(), Vec::new());
        let now = Instant::now();
        for &sequence in sequences {
            let bytes = packet(sequence, &[sequence as u8]);
            reorder.push(RtpPacket::parse(&bytes).unwrap(), now, &mut out);
            assert!(reorder.held.len() <= WINDOW);
        }
        reorder.expire(now + MAX_HOLD, &mut out);
        assert!(reorder.held.is_empty());
        (out, reorder.take_disorder())
    }

    fn disorder(lost: u64, reordered: u64, repeated: u64) -> Disorder {
        Disorder {
            lost,
            reordered,
            repeated,
        }
    }

    #[test]
    fn order_is_mended_and_what_is_lost_is_counted() {
        assert_eq!(
            run(&[65_534, 65_535, 0, 1]),
            (vec![254, 255, 0, 1], disorder(0, 0, 0))
        );
        assert_eq!(
            run(&[65_535, 2, 0, 1, 3]),
            (vec![255, 0, 1, 2, 3], disorder(0, 1, 0))
        );
        assert_eq!(run(&[5, 5, 6, 4, 7]), (vec![5, 6, 7], disorder(0, 0, 2)));
        assert_eq!(run(&[5, 8, 9]), (vec![5, 8, 9], disorder(2, 0, 0)));
        // A sender that begins anew, forwards and back.
        assert_eq!(run(&[5, 40_000, 40_001, 3]).0, [5, 64, 65, 3]);
        // So many behind a lost one that the wait is over.
        let many: Vec<u16> = std::iter::once(0).chain(2..60).collect();
        let (out, found) = run(&many);
        assert_eq!((out.len(), found.lost), (59, 1));
    }

    #[test]
    fn the_wait_for_a_lost_one_is_short() {
        let (mut reorder, mut out) = (Reorder::default(), Vec::new());
        let start = Instant::now();
        for sequence in [1, 3] {
            let bytes = packet(sequence, &[sequence as u8]);
            reorder.push(RtpPacket::parse(&bytes).unwrap(), start, &mut out);
        }
        reorder.expire(start + MAX_HOLD / 2, &mut out);
        assert_eq!(out, [1]);
        reorder.expire(start + MAX_HOLD, &mut out);
        assert_eq!(out, [1, 3]);
    }
}
