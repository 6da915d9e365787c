//! What a datagram that is dropped costs the hub, by kind, on one core and without a socket:
//! `cargo run --release -p link-proto --features sim --example garbage`.

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

use link_proto::{
    Cipher, EdgeConfig, EdgeEndpoint, Endpoint, HubConfig, HubEndpoint, public_key,
    sim::forged_initiation,
};

const ROUNDS: usize = 200_000;

fn main() {
    let began = Instant::now();
    let hub_key = public_key(&[1; 32]);
    let hub_address: SocketAddr = "192.0.2.2:2".parse().unwrap();
    let mut hub = HubEndpoint::new(HubConfig::new([1; 32]), began, [2; 32]);
    let config = EdgeConfig {
        hub_address,
        hub_key,
        secret_key: [3; 32],
        cipher: Cipher::AesGcm,
    };
    let mut edge = EdgeEndpoint::new(config, began, [4; 32]);
    let edge_address: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let mut buffer = Vec::new();
    let mut last = Vec::new();
    let mut first = Vec::new();
    for _ in 0..4 {
        while let Some(sent) = edge.poll_transmit(began, 1, &mut buffer) {
            hub.handle_datagram(began, edge_address, &buffer[..sent.size]);
            if first.is_empty() {
                first.clone_from(&buffer);
            }
            last = std::mem::take(&mut buffer);
        }
        while let Some(sent) = hub.poll_transmit(began, 1, &mut buffer) {
            edge.handle_datagram(began, hub_address, &buffer[..sent.size]);
            buffer.clear();
        }
    }
    let mut forged = vec![0x55; 1_232];
    forged[..8].copy_from_slice(&last[..8]);
    forged[8..16].copy_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0]);
    let mut unknown = forged.clone();
    unknown[4] ^= 0x80;
    let mut no_mac = vec![0x55; 1_200];
    no_mac[..4].copy_from_slice(&[1, 1, 0, 0]);
    let firsts: Vec<_> = (0..5_000).map(|n| forged_initiation(&hub_key, n)).collect();
    for (what, datagrams) in [
        ("noise", vec![vec![0x55; 1_000]]),
        ("for a session that is not there", vec![unknown]),
        ("for one that is, with garbage inside", vec![forged]),
        ("of a session, replayed", vec![last]),
        ("first messages with a wrong MAC", vec![no_mac]),
        ("first messages, replayed", vec![first]),
        ("first messages with a right MAC", firsts),
    ] {
        let mut now = Instant::now();
        let since = now;
        for round in 0..ROUNDS {
            let from = SocketAddr::from(([10, (round >> 8) as u8, round as u8, 1], 7));
            hub.handle_datagram(now, from, &datagrams[round % datagrams.len()]);
            if round % 512 == 511 {
                now = Instant::now();
                while hub.poll_transmit(now, 16, &mut buffer).is_some() {
                    buffer.clear();
                }
            }
        }
        let each: Duration = since.elapsed() / ROUNDS as u32;
        println!("{what:<38} {each:>9.0?} each");
    }
    println!("{:?}", hub.counters());
}
