//! An enrolled device that lies below replication: the hub's memory for it stays bounded, others go on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use common::{Edge, Hub, Recorder, assert_replicated, runtime};
use link::KeyPair;
use link_proto::{
    Channel, Cipher, EdgeConfig, EdgeEndpoint, Endpoint, Event, MAX_SESSION_BYTES,
    messages::{Hello, PROTOCOL_VERSION, ToHub},
};
use model::WallTime;

/// Packets that fill every receive window of every channel, each without the first one.
const PACKETS: u32 = 8_192;
const PACKET_BYTES: usize = 1_100;

struct Liar {
    endpoint: EdgeEndpoint,
    socket: UdpSocket,
    hub: SocketAddr,
    welcomed: bool,
}

impl Liar {
    /// Connects and says who it is, as an honest device does.
    fn connect(hub: SocketAddr, hub_key: [u8; 32], key: &KeyPair) -> Self {
        let config = EdgeConfig {
            hub_address: hub,
            hub_key,
            secret_key: key.secret,
            cipher: Cipher::AesGcm,
        };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut liar = Self {
            endpoint: EdgeEndpoint::new(config, Instant::now(), [9; 32]),
            socket,
            hub,
            welcomed: false,
        };
        let limit = Instant::now() + common::PATIENCE;
        while !liar.welcomed {
            liar.turn();
            assert!(Instant::now() < limit, "not welcomed");
        }
        liar
    }

    fn turn(&mut self) {
        self.endpoint.handle_timeout(Instant::now());
        let mut buffer = Vec::new();
        while let Some(sent) = self.endpoint.poll_transmit(Instant::now(), 1, &mut buffer) {
            self.socket.send_to(&buffer, sent.to).unwrap();
            buffer.clear();
        }
        let mut bytes = [0; 2_048];
        if let Ok((size, from)) = self.socket.recv_from(&mut bytes) {
            self.endpoint
                .handle_datagram(Instant::now(), from, &bytes[..size]);
        }
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Connected { session, .. } => {
                    let hello = ToHub::Hello(Hello {
                        version: PROTOCOL_VERSION,
                        software: "a liar".to_owned(),
                        clock: WallTime(0),
                    });
                    self.endpoint
                        .send(Instant::now(), session, Channel::Control, hello.encode())
                        .unwrap();
                }
                Event::Message { .. } => self.welcomed = true,
                _ => {}
            }
        }
    }

    fn say(&mut self, plain: &[u8]) {
        let datagram = self.endpoint.seal_anything(plain);
        self.socket.send_to(&datagram, self.hub).unwrap();
    }
}

/// A datagram's inside with a packet of the first generation.
fn packet(channel: u8, number: u32) -> Vec<u8> {
    let mut plain = vec![0; 8];
    plain.push(1);
    plain.extend_from_slice(&(PACKET_BYTES as u16 + 6).to_be_bytes());
    plain.extend_from_slice(&[channel, 0]);
    plain.extend_from_slice(&number.to_be_bytes());
    plain.resize(plain.len() + PACKET_BYTES, 7);
    plain
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn a_device_that_fills_every_window_stays_within_its_bounds() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let (key, honest) = (hub.enrol("liar").await, hub.enrol("site-1").await);
        let (address, hub_key) = (hub.address, hub.key.public);
        let mut edge = Edge::start(&hub, honest);
        edge.connected().await;
        let lies = thread::spawn(move || {
            let mut liar = Liar::connect(address, hub_key, &key);
            let before = resident_bytes();
            for _ in 0..2 {
                for number in 0..PACKETS {
                    // Far beyond each window too, and never what is waited for.
                    for (channel, number) in [(0, number + 900), (1, number + 1), (2, number + 1)] {
                        liar.say(&packet(channel, number));
                    }
                    if number % 32 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            resident_bytes().saturating_sub(before)
        });
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        for _ in 0..10 {
            gate.segment(edge.store());
        }
        gate.end(edge.store());
        assert_replicated(&edge, &hub, &gate.stream).await;
        let grown = lies.join().unwrap();
        println!("{grown} bytes more of {MAX_SESSION_BYTES}");
        assert!(grown < MAX_SESSION_BYTES, "{grown} bytes more");
        // The counters are shown once a second, and the lies may have taken less.
        let mut status = hub.running.as_ref().unwrap().status.clone();
        common::until(&mut status, "the lies", |s| {
            s.counters.datagrams_received > u64::from(PACKETS)
        })
        .await;
        edge.stop().await;
    });
}
