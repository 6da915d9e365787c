//! Which datagrams are taken: those with MPEG-TS in them, of one sender at a time, in order.
//!
//! Pure; the clock is an argument. Keeps invariant 7: what is no MPEG-TS is counted and goes no further.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use media::ts::packet::{PACKET_BYTES, SYNC_BYTE};

use super::rtp::{Reorder, RtpPacket};
use crate::inputs::{Count, Input};

/// A port is the first sender's until it has been silent for so long; another's datagrams are left out.
const SENDER_SILENCE: Duration = Duration::from_secs(3);

/// The gate of one socket.
#[derive(Debug, Default)]
pub(super) struct Intake {
    sender: Option<(SocketAddr, Instant)>,
    reorder: Reorder,
}

impl Intake {
    /// Takes a datagram; appends the TS packets that are in order by it to `out`.
    pub(super) fn take(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        input: &Input,
        out: &mut Vec<u8>,
    ) {
        input.add(Count::Datagrams, 1);
        let rtp = RtpPacket::parse(datagram);
        let payload = rtp.map_or(datagram, |packet| packet.payload);
        if !is_ts(payload) {
            input.add(Count::Garbage, 1);
            return;
        }
        match self.sender {
            Some((sender, last))
                if sender != from && now.saturating_duration_since(last) < SENDER_SILENCE =>
            {
                input.add(Count::Foreign, 1);
                return;
            }
            Some((sender, _)) if sender != from => {
                tracing::info!(%from, before = %sender, "another sender from now on");
                self.reorder = Reorder::default();
            }
            None => tracing::info!(%from, "datagrams come"),
            Some(_) => {}
        }
        self.sender = Some((from, now));
        match rtp {
            Some(packet) => self.reorder.push(packet, now, out),
            None => out.extend_from_slice(payload),
        }
        self.count(input);
    }

    /// Time passes without a datagram.
    pub(super) fn expire(&mut self, now: Instant, input: &Input, out: &mut Vec<u8>) {
        self.reorder.expire(now, out);
        self.count(input);
    }

    fn count(&mut self, input: &Input) {
        let disorder = self.reorder.take_disorder();
        for (count, more) in [
            (Count::RtpLost, disorder.lost),
            (Count::RtpReordered, disorder.reordered),
            (Count::RtpRepeated, disorder.repeated),
        ] {
            if more > 0 {
                input.add(count, more);
            }
        }
    }
}

/// Whole TS packets and nothing else.
fn is_ts(payload: &[u8]) -> bool {
    let (packets, rest) = payload.as_chunks::<PACKET_BYTES>();
    !packets.is_empty() && rest.is_empty() && packets.iter().all(|p| p.first() == Some(&SYNC_BYTE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; 2 * PACKET_BYTES];
        (bytes[0], bytes[PACKET_BYTES]) = (SYNC_BYTE, SYNC_BYTE);
        bytes
    }

    #[test]
    fn one_sender_at_a_time() {
        let input = Input::new("gate".parse().unwrap(), String::new());
        let (mut intake, mut out) = (Intake::default(), Vec::new());
        let (a, b) = ("10.0.0.1:9".parse().unwrap(), "10.0.0.2:9".parse().unwrap());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        intake.take(b, b"no video", at(0), &input, &mut out);
        intake.take(a, &packets(1), at(0), &input, &mut out);
        intake.take(b, &packets(2), at(10), &input, &mut out);
        intake.take(a, &packets(3), at(2_000), &input, &mut out);
        intake.take(b, &packets(4), at(4_900), &input, &mut out);
        intake.take(b, &packets(5), at(5_000), &input, &mut out);
        intake.take(a, &packets(6), at(5_100), &input, &mut out);
        let fills: Vec<u8> = out.chunks(2 * PACKET_BYTES).map(|c| c[1]).collect();
        assert_eq!(fills, [1, 3, 5]);
        assert_eq!(input.count(Count::Datagrams), 7);
        assert_eq!(input.count(Count::Foreign), 3);
        assert_eq!(input.count(Count::Garbage), 1);
    }

    #[test]
    fn only_whole_packets() {
        assert!(is_ts(&packets(0)));
        assert!(!is_ts(&[]));
        assert!(!is_ts(&packets(0)[..375]));
        let mut second = packets(0);
        second[PACKET_BYTES] = 0;
        assert!(!is_ts(&second));
    }
}
