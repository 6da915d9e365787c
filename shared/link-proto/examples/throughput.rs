//! How much payload one core carries through both ends of a session, without sockets:
//! `cargo run --release -p link-proto --example throughput [MEGABYTES]`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a measurement, with a clock"
)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Channel, Cipher, EdgeConfig, EdgeEndpoint, Endpoint, Event, HubConfig, HubEndpoint, public_key,
};

fn main() {
    let megabytes = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(500);
    for cipher in [Cipher::AesGcm, Cipher::ChaChaPoly] {
        for drain_each in [1, 16] {
            measure(cipher, megabytes, drain_each);
        }
    }
}

/// `drain_each`: datagrams that a driver takes in before it drains.
fn measure(cipher: Cipher, megabytes: usize, drain_each: usize) {
    let edge_address: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let hub_address: SocketAddr = "192.0.2.2:2".parse().unwrap();
    let began = Instant::now();
    let mut hub = HubEndpoint::new(HubConfig::new([1; 32]), began, [2; 32]);
    let config = EdgeConfig {
        hub_address,
        hub_key: public_key(&[1; 32]),
        secret_key: [3; 32],
        cipher,
    };
    let mut edge = EdgeEndpoint::new(config, began, [4; 32]);
    let message = Bytes::from(vec![7; 16 * 1024]);
    let (mut sent, mut received) = (0, 0);
    let total = megabytes * 1024 * 1024;
    let mut session = None;
    let mut buffer = Vec::new();
    // Simulated time, so that idle waits cost nothing; the work is measured in real time.
    let mut now = began;
    while received < total {
        if let Some(session) = session {
            while sent < total
                && edge
                    .send(now, session, Channel::Bulk, message.clone())
                    .is_ok()
            {
                sent += message.len();
            }
        }
        let mut progress = false;
        let mut taken = 0;
        while let Some(transmit) = edge.poll_transmit(now, 16, &mut buffer) {
            progress = true;
            for datagram in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                hub.handle_datagram(now, edge_address, datagram);
                taken += 1;
                if taken >= drain_each {
                    taken = 0;
                    drain(&mut hub, &mut edge, now, hub_address);
                }
            }
            buffer.clear();
        }
        progress |= drain(&mut hub, &mut edge, now, hub_address);
        while let Some(event) = edge.poll_event() {
            if let Event::Connected { session: id, .. } = event {
                session = Some(id);
            }
        }
        while let Some(event) = hub.poll_event() {
            match event {
                Event::Connected { session, .. } => hub.admit(session),
                Event::Message {
                    session,
                    channel,
                    message,
                } => {
                    received += message.len();
                    hub.consumed(session, channel, message.len());
                }
                _ => {}
            }
        }
        if !progress {
            let next = [edge.poll_timeout(), hub.poll_timeout()]
                .into_iter()
                .flatten()
                .min()
                .unwrap();
            now = next.max(now + Duration::from_micros(50));
            edge.handle_timeout(now);
            hub.handle_timeout(now);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let stats = edge.stats(session.unwrap()).unwrap();
    println!(
        "{cipher:?}, drained each {drain_each:2}: {:.0} Mbit/s of payload on one core for both ends \
         ({} resent of {} packets, paced at {} Mbit/s, {:.2} s simulated)",
        received as f64 * 8e-6 / seconds,
        stats.packets_resent,
        stats.packets_sent,
        stats.rate_bps / 1_000_000,
        (now - began).as_secs_f64(),
    );
}

fn drain(hub: &mut HubEndpoint, edge: &mut EdgeEndpoint, now: Instant, from: SocketAddr) -> bool {
    let mut buffer = Vec::new();
    let mut any = false;
    while let Some(transmit) = hub.poll_transmit(now, 16, &mut buffer) {
        any = true;
        for datagram in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
            edge.handle_datagram(now, from, datagram);
        }
        buffer.clear();
    }
    any
}
