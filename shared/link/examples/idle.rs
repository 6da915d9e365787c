//! The devices of `scripts/bench idle`: many that are connected and say nothing, in one process over a few
//! sockets, so that the hub's memory and processor time can be read off.
//!
//! `idle enrol HUB_DATA_DIR DEVICES` writes them into the catalog of a hub that does not run.
//! `idle connect HUB HUB_KEY DEVICES PER_SECOND` connects them, prints `connected` once all are welcome, keeps
//! them until a line comes on standard input, and then prints how many sessions there still are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a bench that fails loudly"
)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use link::KeyPair;
use link_proto::{
    Channel, Cipher, EdgeConfig, EdgeEndpoint, Endpoint, Event, SessionId,
    messages::{Hello, PROTOCOL_VERSION, ToEdge, ToHub},
};
use model::WallTime;
use store::{Store, StoreOptions};

/// Sockets that the devices share.
const SOCKETS: usize = 8;
/// First messages and what is for a session name its receiver here (see link-proto's datagrams).
const INDEX: std::ops::Range<usize> = 4..8;
const FIRST_MESSAGE: u8 = 1;
/// Devices that are not welcome by then never will be.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["enrol", dir, devices] => enrol(Path::new(dir), devices.parse().expect("DEVICES")),
        ["connect", hub, key, devices, per_second] => {
            let key = BASE64URL_NOPAD.decode(key.as_bytes()).expect("HUB_KEY");
            let mut site = Site::new(
                hub.parse().expect("HUB"),
                key.try_into().expect("a key has 32 bytes"),
                devices.parse().expect("DEVICES"),
            );
            site.connect(per_second.parse().expect("PER_SECOND"));
        }
        _ => panic!(
            "usage: idle enrol HUB_DATA_DIR DEVICES | connect HUB HUB_KEY DEVICES PER_SECOND"
        ),
    }
}

/// The n-th device's key: the same for both commands.
fn key(device: u64) -> KeyPair {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&device.to_be_bytes());
    KeyPair::from_secret(secret)
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallTime(since.unwrap().as_millis() as i64)
}

fn enrol(dir: &Path, devices: u64) {
    let options = StoreOptions {
        holder: "bench idle".to_owned(),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir, options).unwrap();
    for device in 0..devices {
        let name = format!("idle-{device}").parse().unwrap();
        let token = device.to_be_bytes();
        let expires = WallTime(now().0 + 3_600_000);
        store
            .create_token(&name, &token, expires, &[], now())
            .unwrap();
        store
            .use_token(&token, &key(device).public, now())
            .unwrap()
            .unwrap();
    }
}

struct Site {
    hub: SocketAddr,
    hub_key: [u8; 32],
    wanted: u64,
    sockets: Vec<UdpSocket>,
    devices: Vec<Device>,
    /// Whose an index is that a first message named.
    by_index: HashMap<[u8; 4], usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    welcome: usize,
}

struct Device {
    endpoint: EdgeEndpoint,
    session: Option<SessionId>,
    welcome: bool,
    armed: Option<Instant>,
}

impl Site {
    fn new(hub: SocketAddr, hub_key: [u8; 32], wanted: u64) -> Self {
        let sockets = (0..SOCKETS).map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Self {
            hub,
            hub_key,
            wanted,
            sockets: sockets.collect(),
            devices: Vec::new(),
            by_index: HashMap::new(),
            timers: BinaryHeap::new(),
            welcome: 0,
        }
    }

    fn connect(&mut self, per_second: u64) {
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            let _ = io::stdin().read_line(&mut String::new());
            let _ = end.send(());
        });
        let began = Instant::now();
        let mut told = false;
        while ended.try_recv() == Err(TryRecvError::Empty) {
            let due = (began.elapsed().as_millis() as u64 * per_second / 1_000).min(self.wanted);
            for device in self.devices.len() as u64..due {
                self.begin(device);
            }
            let busy = self.receive() | self.expire();
            if !told && self.welcome as u64 == self.wanted {
                println!("connected");
                told = true;
            }
            assert!(
                told || began.elapsed() < PATIENCE + Duration::from_secs(self.wanted / per_second),
                "only {} of {} are welcome",
                self.welcome,
                self.wanted
            );
            if !busy {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let there = self
            .devices
            .iter()
            .filter(|device| device.session.is_some());
        println!("{}", there.count());
    }

    fn begin(&mut self, device: u64) {
        let config = EdgeConfig {
            hub_address: self.hub,
            hub_key: self.hub_key,
            secret_key: key(device).secret,
            cipher: Cipher::AesGcm,
        };
        let mut seed = key(device).public;
        seed[0] ^= began_at() as u8;
        self.devices.push(Device {
            endpoint: EdgeEndpoint::new(config, Instant::now(), seed),
            session: None,
            welcome: false,
            armed: None,
        });
        self.work(device as usize);
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [0; 2_048];
        let mut busy = false;
        for at in 0..SOCKETS {
            while let Ok((size, from)) = self.sockets[at].recv_from(&mut buffer) {
                busy = true;
                let datagram = &buffer[..size];
                let index = datagram.get(INDEX).and_then(|index| index.try_into().ok());
                let Some(&device) = index.and_then(|index: [u8; 4]| self.by_index.get(&index))
                else {
                    continue;
                };
                let endpoint = &mut self.devices[device].endpoint;
                endpoint.handle_datagram(Instant::now(), from, datagram);
                self.work(device);
            }
        }
        busy
    }

    fn expire(&mut self) -> bool {
        let now = Instant::now();
        let mut busy = false;
        while let Some(&Reverse((at, device))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            if self.devices[device].armed == Some(at) {
                busy = true;
                self.devices[device].armed = None;
                self.devices[device].endpoint.handle_timeout(now);
                self.work(device);
            }
        }
        busy
    }

    /// Events, then transmits, then the timer.
    fn work(&mut self, at: usize) {
        let now = Instant::now();
        let device = &mut self.devices[at];
        while let Some(event) = device.endpoint.poll_event() {
            match event {
                Event::Connected { session, .. } | Event::ChannelsReset { session } => {
                    device.session = Some(session);
                    let hello = ToHub::Hello(Hello {
                        version: PROTOCOL_VERSION,
                        software: "idle".to_owned(),
                        clock: WallTime(began_at()),
                    });
                    let sent = device
                        .endpoint
                        .send(now, session, Channel::Control, hello.encode());
                    sent.unwrap();
                }
                Event::Message {
                    session,
                    channel,
                    message,
                } => {
                    device.endpoint.consumed(session, channel, message.len());
                    match ToEdge::decode(message) {
                        Ok(Some(ToEdge::Welcome { .. })) => {
                            self.welcome +=
                                usize::from(!std::mem::replace(&mut device.welcome, true));
                        }
                        other => panic!("{other:?}"),
                    }
                }
                Event::Closed { .. } => device.session = None,
                _ => {}
            }
        }
        let mut out = Vec::new();
        while let Some(transmit) = device.endpoint.poll_transmit(now, 1, &mut out) {
            if out.first() == Some(&FIRST_MESSAGE) {
                self.by_index.insert(out[INDEX].try_into().unwrap(), at);
            }
            let _ = self.sockets[at % SOCKETS].send_to(&out, transmit.to);
            out.clear();
        }
        let timeout = device.endpoint.poll_timeout();
        if timeout != device.armed {
            device.armed = timeout;
            self.timers
                .extend(timeout.map(|timeout| Reverse((timeout, at))));
        }
    }
}

/// Unix milliseconds as the program was started.
fn began_at() -> i64 {
    static BEGAN: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *BEGAN.get_or_init(|| now().0)
}
