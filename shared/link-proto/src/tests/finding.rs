//! How soon a line is used and how long its queue gets meanwhile, as numbers: at the start, after a step of its
//! rate, after an outage, beside a flow that fills buffers.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;

use super::traffic::endpoint;
use crate::{
    Channel, Cipher, Endpoint, Event, SessionId,
    sim::{Line, RivalKind, Who, World},
};

/// As much bulk as goes, and what of it came in each second.
struct Bulk {
    world: World,
    session: Option<SessionId>,
    bytes: usize,
}

impl Bulk {
    fn new(line: Line) -> Self {
        let mut world = World::new(5);
        world.add_edge(line.clone(), line, Cipher::AesGcm);
        Self {
            world,
            session: None,
            bytes: 0,
        }
    }

    /// Mbit/s that came, and the longest queue, in ms.
    fn run(&mut self, time: Duration) -> (f64, u128) {
        let until = self.world.now + time;
        let before = self.bytes;
        let mut longest = Duration::ZERO;
        while self.world.now < until {
            for (who, event) in self.world.take_events() {
                match event {
                    Event::Connected { session, .. } if who == Who::Hub => {
                        self.world.hub.admit(session);
                    }
                    Event::Connected { session, .. } => self.session = Some(session),
                    Event::Message {
                        session,
                        channel,
                        message,
                    } => {
                        endpoint(&mut self.world, who).consumed(session, channel, message.len());
                        self.bytes += message.len();
                    }
                    _ => {}
                }
            }
            let now = self.world.now;
            let edge = &mut self.world.edges[0].endpoint;
            if let Some(session) = self.session {
                while edge.send_budget(session, Channel::Bulk) > 0 {
                    let message = Bytes::from(vec![2; 16 * 1024]);
                    edge.send(now, session, Channel::Bulk, message).unwrap();
                }
            }
            self.world.step_until(Some(until));
            longest = longest.max(self.world.edges[0].queueing_delay(self.world.now));
        }
        let mbps = (self.bytes - before) as f64 * 8.0 / time.as_secs_f64() / 1e6;
        (mbps, longest.as_millis())
    }
}

fn line(rtt_ms: u64, loss_percent: u32, rate_bps: u64, queue_ms: u64) -> Line {
    Line {
        delay: Duration::from_millis(rtt_ms / 2),
        loss: f64::from(loss_percent) / 100.0,
        rate_bps: Some(rate_bps),
        queue_bytes: (rate_bps * queue_ms / 8000) as usize,
        ..Line::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_line_is_found_at_the_start() {
    let mut table = String::from(
        "Mbit/s of bulk in the first seconds, and the longest queue in ms (it holds 200)\nline",
    );
    for (mbps, rtt, loss) in [
        (1, 50, 0),
        (5, 50, 0),
        (20, 10, 0),
        (20, 50, 0),
        (20, 100, 0),
        (20, 100, 10),
        (20, 300, 0),
        (20, 300, 5),
        (100, 50, 1),
        (400, 50, 1),
    ] {
        let _ = write!(table, "\n{mbps:3} Mbit/s, {rtt:3} ms, {loss:2} %:");
        let mut bulk = Bulk::new(line(rtt, loss, mbps * 1_000_000, 200));
        for _ in 0..6 {
            let (mbps, queue) = bulk.run(SECOND);
            let _ = write!(table, " {mbps:6.2}/{queue:3}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_step_of_the_rate_is_followed() {
    let mut table = String::from(
        "Mbit/s of bulk, each second, and the longest queue in ms; 50 ms of round trip, 2 % loss",
    );
    for (from, to) in [(20, 5), (5, 20), (20, 2), (2, 50)] {
        let mut bulk = Bulk::new(line(50, 2, from * 1_000_000, 200));
        bulk.run(10 * SECOND);
        let _ = write!(table, "\n{from:2} to {to:2} Mbit/s:");
        bulk.world.edges[0].up = line(50, 2, to * 1_000_000, 200);
        for _ in 0..6 {
            let (mbps, queue) = bulk.run(SECOND);
            let _ = write!(table, " {mbps:6.2}/{queue:3}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn after_an_outage_the_line_is_used_at_once() {
    let mut table =
        String::from("Mbit/s of bulk in the seconds after an outage of a line of 20 Mbit/s");
    for (rtt, seconds) in [(50, 2), (50, 10), (50, 60), (300, 60)] {
        let mut bulk = Bulk::new(line(rtt, 1, 20_000_000, 200));
        bulk.run(10 * SECOND);
        let outage = seconds * SECOND;
        bulk.world.cut(0, outage);
        bulk.run(outage);
        let _ = write!(table, "\n{rtt:3} ms, {seconds:2} s:");
        for _ in 0..5 {
            let (mbps, _) = bulk.run(SECOND);
            let _ = write!(table, " {mbps:6.2}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn beside_a_flow_that_fills_buffers_a_share_is_held() {
    let mut table = String::from(
        "bulk beside one flow of TCP on 20 Mbit/s with 256 KB of queue: Mbit/s of bulk / of the other,\n5 s each; then the other is gone",
    );
    for (kind, one_way, late) in [
        (RivalKind::Cubic, 10, true),
        (RivalKind::Cubic, 50, true),
        (RivalKind::Cubic, 50, false),
        (RivalKind::Bbr, 10, true),
        (RivalKind::Bbr, 50, true),
        (RivalKind::Bbr, 50, false),
    ] {
        let mut bulk = Bulk::new(Line {
            queue_bytes: 256 * 1024,
            mtu: 1472,
            ..line(2 * one_way, 0, 20_000_000, 0)
        });
        if late {
            bulk.run(30 * SECOND);
        }
        bulk.world.add_rival(0, kind);
        let _ = write!(
            table,
            "\n{kind:?}, {one_way:2} ms one way, the other {}:",
            if late { "later" } else { "first" }
        );
        let mut before = 0;
        for _ in 0..12 {
            let (mbps, _) = bulk.run(5 * SECOND);
            let bytes = bulk.world.edges[0].rival.as_ref().unwrap().bytes;
            let other = (bytes - before) as f64 * 8.0 / 5e6;
            before = bytes;
            let _ = write!(table, " {mbps:4.1}/{other:4.1}");
        }
        bulk.world.edges[0].rival = None;
        let (mbps, _) = bulk.run(5 * SECOND);
        let (_, queue) = bulk.run(5 * SECOND);
        let _ = write!(table, "; {mbps:4.1}, queue {queue} ms");
    }
    insta::assert_snapshot!(table);
}
