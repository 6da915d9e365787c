//! What the line gives, as numbers: a change in behaviour shows as a diff of these tables.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;

use super::traffic::endpoint;
use crate::{
    Channel, Cipher, Endpoint, Event,
    sim::{Line, Who, World},
};

const SECOND: Duration = Duration::from_secs(1);

/// What was measured after a warm-up.
struct Measured {
    bulk_mbps: f64,
    /// From `send` to delivery, sorted.
    latencies: Vec<Duration>,
    wire_per_payload: f64,
}

impl Measured {
    fn latency_ms(&self, share: f64) -> u128 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies
            .get(at.min(self.latencies.len().saturating_sub(1)))
            .map_or(0, Duration::as_millis)
    }
}

/// A live stream of `live_bps` in messages of 8 KiB, beside as much bulk as goes, for 10 s after 8 s (a long line is found in some 5 s).
fn measure(line: Line, live_bps: u64, bulk: bool) -> Measured {
    const LIVE_MESSAGE: usize = 8 * 1024;
    let mut world = World::new(7);
    world.add_edge(line.clone(), line, Cipher::AesGcm);
    let interval = match live_bps {
        0 => Duration::from_secs(3600),
        bps => Duration::from_secs_f64(LIVE_MESSAGE as f64 * 8.0 / bps as f64),
    };
    let mut session = None;
    let mut next_live = world.now;
    let mut waiting = std::collections::VecDeque::new();
    let (warm, end) = (world.now + 8 * SECOND, world.now + 18 * SECOND);
    let (mut latencies, mut bulk_bytes, mut payload) = (Vec::new(), 0usize, 0usize);
    let mut bytes_before = 0;
    while world.now < end {
        for (who, event) in world.take_events() {
            match event {
                Event::Connected { session: id, .. } if who == Who::Hub => world.hub.admit(id),
                Event::Connected { session: id, .. } => {
                    session = Some(id);
                    next_live = world.now;
                }
                Event::Message {
                    session,
                    channel,
                    message,
                } => {
                    endpoint(&mut world, who).consumed(session, channel, message.len());
                    let sent = (channel == Channel::Live).then(|| waiting.pop_front().unwrap());
                    if world.now >= warm {
                        payload += message.len();
                        match sent {
                            Some(sent) => latencies.push(world.now - sent),
                            None => bulk_bytes += message.len(),
                        }
                    }
                }
                _ => {}
            }
        }
        if world.now < warm {
            bytes_before = world.network.bytes;
        }
        if let Some(session) = session {
            let now = world.now;
            let edge = &mut world.edges[0].endpoint;
            while next_live <= now {
                let message = Bytes::from(vec![1; LIVE_MESSAGE]);
                if edge.send(now, session, Channel::Live, message).is_err() {
                    break;
                }
                // Late messages count from when they were due.
                waiting.push_back(next_live);
                next_live += interval;
            }
            while bulk && edge.send_budget(session, Channel::Bulk) > 0 {
                let message = Bytes::from(vec![2; 16 * 1024]);
                edge.send(now, session, Channel::Bulk, message).unwrap();
            }
        }
        world.step();
    }
    latencies.sort();
    Measured {
        bulk_mbps: bulk_bytes as f64 * 8.0 / 10.0 / 1e6,
        latencies,
        wire_per_payload: (world.network.bytes - bytes_before) as f64 / payload.max(1) as f64,
    }
}

fn line(rtt_ms: u64, loss_percent: u32, rate_bps: u64, queue_ms: u64) -> Line {
    Line {
        delay: Duration::from_millis(rtt_ms / 2),
        loss: f64::from(loss_percent) / 100.0,
        rate_bps: Some(rate_bps),
        queue_bytes: (rate_bps * queue_ms / 8000).max(4000) as usize,
        ..Line::default()
    }
}

const LOSSES: [u32; 6] = [0, 1, 5, 10, 20, 30];

#[test]
fn bulk_fills_a_line_of_20_mbit() {
    let mut table = String::from(
        "Mbit/s of bulk on a line of 20 Mbit/s with 100 ms of queue, and wire bytes per payload\nloss %",
    );
    let rtts = [10, 50, 100, 300];
    for rtt in rtts {
        let _ = write!(table, "   RTT {rtt:3} ms");
    }
    for loss in LOSSES {
        let _ = write!(table, "\n{loss:6}");
        for rtt in rtts {
            let got = measure(line(rtt, loss, 20_000_000, 100), 0, true);
            let _ = write!(
                table,
                "   {:5.1} {:4.2}",
                got.bulk_mbps, got.wire_per_payload
            );
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn live_stays_quick_beside_bulk() {
    let mut table = String::from(
        "ms from send to delivery (p50/p99) of 4 Mbit/s live in messages of 8 KiB, beside bulk, 20 Mbit/s\nloss %",
    );
    let rtts = [10, 50, 100, 300];
    for rtt in rtts {
        let _ = write!(table, "   RTT {rtt:3} ms");
    }
    for loss in LOSSES {
        let _ = write!(table, "\n{loss:6}");
        for rtt in rtts {
            let got = measure(line(rtt, loss, 20_000_000, 100), 4_000_000, true);
            let _ = write!(
                table,
                "   {:4}/{:5}",
                got.latency_ms(0.5),
                got.latency_ms(0.99)
            );
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn rates_from_slow_to_fast() {
    let mut table = String::from(
        "Mbit/s of bulk by rate of the line, 50 ms RTT, 1 % loss, queue in ms\n  Mbit/s",
    );
    let queues = [20, 100, 500];
    for queue in queues {
        let _ = write!(table, "   queue {queue:3}");
    }
    for rate_bps in [300_000, 1_000_000, 5_000_000, 100_000_000, 400_000_000] {
        let _ = write!(table, "\n{:8.1}", f64::from(rate_bps) / 1e6);
        for queue in queues {
            let got = measure(line(50, 1, rate_bps as u64, queue), 0, true);
            let _ = write!(table, "   {:9.2}", got.bulk_mbps);
        }
    }
    insta::assert_snapshot!(table);
}
