//! How late a camera's pictures come, as numbers: a change in behaviour shows as a diff of this table.
//!
//! The camera of the bench: 4 Mbit/s, 25 pictures a second, a key frame of six times the mean each 2 s. An
//! access unit is handed over at once and counts as come when the hub has all of it, in order.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use bytes::Bytes;

use crate::{
    Channel, Cipher, Endpoint, Event, MAX_MESSAGE_BYTES, SessionId,
    sim::{Bursts, Line, Who, World},
};

pub(super) const FRAME_TIME: Duration = Duration::from_millis(40);
const FRAMES_PER_GOP: u64 = 50;
const MEAN_FRAME_BYTES: usize = 20_000;
const KEY_FRAME_BYTES: usize = 6 * MEAN_FRAME_BYTES;
const OTHER_FRAME_BYTES: usize =
    (50 * MEAN_FRAME_BYTES - KEY_FRAME_BYTES) / (FRAMES_PER_GOP as usize - 1);

/// IPv4 and UDP headers.
const IP_BYTES: u64 = 28;

/// The camera and what became of its pictures.
pub(super) struct Camera {
    pub(super) began: Option<std::time::Instant>,
    frames: u64,
    taken: u64,
    /// Messages that wait for the channel: (when the picture was made, message, last of its picture).
    waiting: VecDeque<(Duration, Bytes, bool)>,
    under_way: VecDeque<(Duration, bool)>,
    /// When made, and how much later whole at the hub.
    pub(super) come: Vec<(Duration, Duration)>,
    pub(super) bytes_come: usize,
    session: Option<SessionId>,
}

impl Camera {
    pub(super) fn new(frames: u64) -> Self {
        Self {
            began: None,
            frames,
            taken: 0,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            come: Vec::new(),
            bytes_come: 0,
            session: None,
        }
    }

    /// To be called before each step of the world: takes events, makes pictures, sends.
    pub(super) fn turn(&mut self, world: &mut World) {
        for (who, event) in world.take_events() {
            match event {
                Event::Connected { session, .. } if who == Who::Hub => world.hub.admit(session),
                Event::Connected { session, .. } => {
                    self.session = Some(session);
                    self.began.get_or_insert(world.now);
                }
                Event::Message {
                    session,
                    channel,
                    message,
                } => {
                    super::traffic::endpoint(world, who).consumed(session, channel, message.len());
                    if channel == Channel::Live {
                        self.on_message(world.now, message.len());
                    }
                }
                _ => {}
            }
        }
        let (Some(session), Some(began)) = (self.session, self.began) else {
            return;
        };
        while self.taken < self.frames && world.now >= began + FRAME_TIME * self.taken as u32 {
            self.make_picture();
        }
        let edge = &mut world.edges[0].endpoint;
        while let Some((made, message, last)) = self.waiting.front() {
            if edge
                .send(world.now, session, Channel::Live, message.clone())
                .is_err()
            {
                break;
            }
            self.under_way.push_back((*made, *last));
            self.waiting.pop_front();
        }
    }

    /// The time of the next picture: the world must not jump over it.
    pub(super) fn next(&self) -> Option<std::time::Instant> {
        (self.taken < self.frames)
            .then(|| {
                self.began
                    .map(|began| began + FRAME_TIME * self.taken as u32)
            })
            .flatten()
    }

    pub(super) fn is_done(&self) -> bool {
        self.come.len() as u64 == self.frames
    }

    fn make_picture(&mut self) {
        let key = self.taken.is_multiple_of(FRAMES_PER_GOP);
        let mut left = if key {
            KEY_FRAME_BYTES
        } else {
            OTHER_FRAME_BYTES
        };
        let made = FRAME_TIME * self.taken as u32;
        while left > 0 {
            let bytes = left.min(MAX_MESSAGE_BYTES);
            left -= bytes;
            let message = Bytes::from(vec![self.taken as u8; bytes]);
            self.waiting.push_back((made, message, left == 0));
        }
        self.taken += 1;
    }

    fn on_message(&mut self, now: std::time::Instant, bytes: usize) {
        let (made, last) = self.under_way.pop_front().unwrap();
        self.bytes_come += bytes;
        if last {
            let began = self.began.unwrap();
            self.come.push((made, (now - began).saturating_sub(made)));
        }
    }
}

struct Measured {
    /// Of pictures after the warm-up, sorted.
    latencies: Vec<Duration>,
    bytes_come: u64,
    /// With IP and UDP headers.
    wire_bytes: u64,
    time: Duration,
}

impl Measured {
    fn ms(&self, share: f64) -> u128 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies[at.min(self.latencies.len() - 1)].as_millis()
    }

    fn mbps(&self) -> f64 {
        self.bytes_come as f64 * 8.0 / self.time.as_secs_f64() / 1e6
    }

    fn overhead(&self) -> f64 {
        self.wire_bytes as f64 / self.bytes_come as f64
    }
}

/// Some runs of a line taken together: one alone may be lucky.
fn measure(line: &Line) -> Measured {
    let mut runs = (11..15).map(|seed| measure_one(line.clone(), seed));
    let first = runs.next().unwrap();
    let mut all = runs.fold(first, |mut all, run| {
        all.latencies.extend(run.latencies);
        all.bytes_come += run.bytes_come;
        all.wire_bytes += run.wire_bytes;
        all.time += run.time;
        all
    });
    all.latencies.sort();
    all
}

/// 40 s of video. The first 4 s count for none of the latencies (the line is being found), but for the bytes.
fn measure_one(line: Line, seed: u64) -> Measured {
    const FRAMES: u64 = 1000;
    const WARM: Duration = Duration::from_secs(4);
    let mut world = World::new(seed);
    world.add_edge(line.clone(), line, Cipher::AesGcm);
    let mut camera = Camera::new(FRAMES);
    while !camera.is_done() {
        camera.turn(&mut world);
        world.step_until(camera.next());
        assert!(
            world.elapsed() < Duration::from_secs(120),
            "pictures are missing"
        );
    }
    let last = camera.come.last().unwrap();
    let latencies = camera
        .come
        .iter()
        .filter(|(made, _)| *made >= WARM)
        .map(|(_, late)| *late)
        .collect();
    let (datagrams, bytes) = world.edges[0].sent();
    Measured {
        latencies,
        bytes_come: camera.bytes_come as u64,
        wire_bytes: bytes + IP_BYTES * datagrams,
        time: last.0 + last.1,
    }
}

fn line(one_way_ms: u64, loss_percent: u32) -> Line {
    Line {
        delay: Duration::from_millis(one_way_ms),
        loss: f64::from(loss_percent) / 100.0,
        rate_bps: Some(20_000_000),
        queue_bytes: 256 * 1024,
        mtu: 1472,
        ..Line::default()
    }
}

/// Gilbert–Elliott: so much is lost, in bursts of so many datagrams on average.
pub(super) fn bursts(share: f64, mean: f64) -> Bursts {
    Bursts {
        begin: share / (1.0 - share) / mean,
        end: 1.0 / mean,
    }
}

#[test]
fn a_camera_on_bad_lines() {
    let mut lines = Vec::new();
    for one_way in [10, 50, 150] {
        for loss in [0, 1, 5, 10, 20, 30] {
            lines.push((format!("{one_way:3} ms, {loss:2} %"), line(one_way, loss)));
        }
    }
    let odd = |name: &str, line: Line| (name.to_owned(), line);
    lines.push(odd(
        "50 ms, 10 % in bursts of 8",
        Line {
            bursts: Some(bursts(0.1, 8.0)),
            ..line(50, 0)
        },
    ));
    lines.push(odd(
        "150 ms, 10 % in bursts of 8",
        Line {
            bursts: Some(bursts(0.1, 8.0)),
            ..line(150, 0)
        },
    ));
    lines.push(odd(
        "50 ms, 5 %, 20 ms of jitter",
        Line {
            jitter: Duration::from_millis(20),
            ..line(50, 5)
        },
    ));
    for loss in [0, 5] {
        lines.push(odd(
            &format!("10 ms, {loss} %, 60 ms of jitter"),
            Line {
                jitter: Duration::from_millis(60),
                ..line(10, loss)
            },
        ));
    }
    lines.push(odd(
        "50 ms, 0 %, 3 ms of jitter",
        Line {
            jitter: Duration::from_millis(3),
            ..line(50, 0)
        },
    ));
    lines.push(odd(
        "50 ms, 5 %, 5 % twice",
        Line {
            duplicate: 0.05,
            ..line(50, 5)
        },
    ));
    lines.push(odd(
        "50 ms, 5 %, MTU 1,232",
        Line {
            mtu: 1232,
            ..line(50, 5)
        },
    ));
    let mut table = String::from(
        "4 Mbit/s, 25 pictures/s, GOP 2 s, on 20 Mbit/s with 256 KB of queue: ms from made to whole at the hub,\nMbit/s, IP bytes up per byte of video\n",
    );
    let _ = write!(
        table,
        "{:30} {:>5} {:>5} {:>5} {:>6} {:>6}",
        "line, one way", "p50", "p99", "max", "Mbit/s", "wire"
    );
    for (name, line) in lines {
        let got = measure(&line);
        let _ = write!(
            table,
            "\n{name:30} {:5} {:5} {:5} {:6.2} {:6.3}",
            got.ms(0.5),
            got.ms(0.99),
            got.ms(1.0),
            got.mbps(),
            got.overhead()
        );
    }
    insta::assert_snapshot!(table);
}
