//! Random short stories over random lines, with both real endpoints and the replication on top, and what must hold
//! in every one of them: each segment is whole at the hub exactly once; memory stays within limits; it comes to an
//! end; no more goes over the wire than the ceiling allows; and live stays live where the line carries the video.
//!
//! A seed tells a whole story. `PENSTOCK_SEED=N` tells that one alone; `PENSTOCK_SIM_MINUTES=M` goes on for so long,
//! from that seed or from the first on, as `scripts/soak stories` does.

use std::time::{Duration, Instant};

use model::StreamName;

use super::{
    pair::{Pair, ms},
    world::Random,
};
use crate::{
    DEFAULT_MAX_REDUNDANCY,
    replicate::sender::MAX_READ_AHEAD,
    sim::{Bursts, Line},
};

/// So many stories that do not end well are enough to look into.
const MAX_WRONG: usize = 20;
/// Told when nothing else is asked for: some seconds.
const STORIES: u64 = 150;

const PART_TIME: Duration = ms(333);
/// A key frame begins a segment.
const KEY_FRAME_PARTS: u64 = 3;
const MAX_STREAMS: u64 = 3;
const MAX_INCIDENTS: u64 = 3;
/// Over this, with its headers and parity, the line does not carry the video: nothing is said of its lag.
const CARRIED_SHARE: f64 = 0.6;
/// After an incident is over the line must be found again (a silent session is probed twice a second, a handshake
/// repeated after some), and what could not go meanwhile goes too.
const RECOVERY: Duration = Duration::from_secs(8);
/// A path that got longer is taken for one with a queue until the memory of its bare delay is over.
const LONGER_PATH: Duration = Duration::from_secs(12);
/// What a part may take where the line carries the video: so many round trips (a lost packet, its repetition lost,
/// and so on), and a second for the queue that a key frame or a line found too slow makes.
const LAG_ROUND_TRIPS: u32 = 12;
const LAG: Duration = Duration::from_secs(1);
/// In this simulated time all that was recorded is at the hub.
const ENDS_WITHIN: Duration = Duration::from_secs(900);
/// The slowest line of a story, bits per second.
const SLOWEST_BPS: f64 = 300e3;

/// What one session may hold on lines such as these: the fastest carries 4 MB in its longest round trip and a half.
const MAX_HELD_BYTES: usize = 8 << 20;
/// What the sender may know of a story: some segments, ranges and pages of each stream.
const MAX_ENTRIES: usize = 512;

/// IPv4 and UDP headers.
const IP_BYTES: u64 = 28;
/// Headers of a full datagram, all of them, are 8 % of the media in it.
const HEADERS: f64 = 1.08;
/// Sent whatever the media is, so that it weighs on short stories of thin video: each handshake (two first messages,
/// `Hello`, credit), ...
const BYTES_PER_SESSION: u64 = 8_000;
/// ... each second of it (keep-alives, probes of a silent session, feedback and acknowledgements for what the hub
/// says), ...
const BYTES_PER_SECOND: u64 = 1_500;
/// ... each segment (announcement, start, end, wall times), and each part, whose last packet is not full.
const BYTES_PER_SEGMENT: u64 = 1_500;
const BYTES_PER_PART: u64 = 1_300;

/// What happens to a line or an end of it.
#[derive(Debug, Clone)]
enum Incident {
    Cut {
        up: bool,
        down: bool,
        time: Duration,
    },
    Moves,
    Rate(u64),
    Delay(Duration),
    Loss(f64),
    /// Larger datagrams vanish from now on.
    Mtu(usize),
    RestartEdge {
        lose_parts: usize,
    },
    RestartHub {
        lose_bytes: usize,
    },
}

#[derive(Debug)]
struct Story {
    seed: u64,
    up: Line,
    down: Line,
    /// Mean bytes of a part of each stream, and whether its source waits.
    streams: Vec<(usize, bool)>,
    parts: u64,
    /// After so much time and so many more events.
    incidents: Vec<(Duration, u64, Incident)>,
}

fn between(random: &mut Random, low: f64, high: f64) -> f64 {
    low + (high - low) * (random.below(1 << 32) as f64 / (1u64 << 32) as f64)
}

impl Story {
    fn draw(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rate = between(random, SLOWEST_BPS.ln(), 20e6_f64.ln()).exp();
        let up = line(random, rate);
        let rate_down = between(random, SLOWEST_BPS, 20e6);
        let down = line(random, rate_down);
        let down = Line {
            delay: up.delay,
            ..down
        };
        let streams = 1 + random.below(MAX_STREAMS);
        // From video that the line carries easily to some that it does not.
        let video = rate.min(2e6) * between(random, 0.05, 0.9) / streams as f64;
        let mean = (video / 8.0 * PART_TIME.as_secs_f64()) as usize;
        let streams = (0..streams).map(|_| (mean.max(200), random.one_in(5)));
        let streams = streams.collect();
        let parts = 20 + random.below(40);
        let time = PART_TIME * parts as u32;
        let mut incidents: Vec<_> = (0..random.below(MAX_INCIDENTS + 1))
            .map(|_| {
                let at = time.mul_f64(between(random, 0.0, 1.0));
                (at, random.below(60), Incident::draw(random, rate))
            })
            .collect();
        incidents.sort_by_key(|(at, ..)| *at);
        Self {
            seed,
            up,
            down,
            streams,
            parts,
            incidents,
        }
    }

    /// Of media that goes as live, bits per second.
    fn video_bps(&self) -> f64 {
        let bytes = self.streams.iter().map(|(mean, _)| *mean as f64);
        bytes.sum::<f64>() * 8.0 / PART_TIME.as_secs_f64()
    }
}

fn line(random: &mut Random, rate: f64) -> Line {
    let loss = match random.below(4) {
        0 => 0.0,
        1 => between(random, 0.0, 0.05),
        _ => between(random, 0.0, 0.4),
    };
    let bursts = random.one_in(4).then(|| Bursts {
        begin: between(random, 0.001, 0.015),
        end: between(random, 0.1, 0.5),
    });
    let jitter = if random.one_in(2) {
        Duration::ZERO
    } else {
        Duration::from_secs_f64(between(random, 0.0, 0.03))
    };
    let queue_time = between(random, 0.05, 0.5);
    Line {
        delay: Duration::from_secs_f64(between(random, 0.001, 0.15)),
        jitter,
        loss: if bursts.is_some() { loss / 4.0 } else { loss },
        bursts,
        duplicate: if random.one_in(3) {
            between(random, 0.0, 0.1)
        } else {
            0.0
        },
        rate_bps: Some(rate as u64),
        queue_bytes: ((rate / 8.0 * queue_time) as usize).max(16 * 1024),
        mtu: mtu(random),
    }
}

/// Of the largest UDP payload, as paths of up to 1,500 bytes have it.
fn mtu(random: &mut Random) -> usize {
    1_200 + random.below(273) as usize
}

impl Incident {
    fn draw(random: &mut Random, rate: f64) -> Self {
        match random.below(8) {
            0 => {
                let direction = random.below(3);
                Self::Cut {
                    up: direction != 1,
                    down: direction != 2,
                    time: Duration::from_secs_f64(between(random, 0.05, 3.0).powi(3)),
                }
            }
            1 => Self::Moves,
            2 => Self::Rate((rate * between(random, 0.2, 2.0)).max(SLOWEST_BPS) as u64),
            3 => Self::Delay(Duration::from_secs_f64(between(random, 0.001, 0.2))),
            4 => Self::Loss(between(random, 0.0, 0.4)),
            5 => Self::Mtu(mtu(random)),
            6 => Self::RestartEdge {
                lose_parts: random.below(3) as usize,
            },
            _ => Self::RestartHub {
                lose_bytes: random.below(60_000) as usize,
            },
        }
    }

    /// Lets it happen; when it is over.
    fn happen(&self, pair: &mut Pair) -> Instant {
        let edge = &mut pair.world.edges[0];
        match *self {
            Self::Cut { up, down, time } => {
                if up {
                    pair.world.cut_up(0, time);
                }
                if down {
                    pair.world.cut_down(0, time);
                }
                return pair.world.now + time;
            }
            Self::Moves => {
                let port = 2_000 + pair.random.below(60_000) as u16;
                pair.world.move_edge(0, ([203, 0, 113, 9], port).into());
            }
            Self::Rate(bps) => edge.up.rate_bps = Some(bps),
            Self::Delay(delay) => {
                (edge.up.delay, edge.down.delay) = (delay, delay);
                return pair.world.now + LONGER_PATH;
            }
            Self::Loss(loss) => (edge.up.loss, edge.up.bursts) = (loss, None),
            Self::Mtu(bytes) => (edge.up.mtu, edge.down.mtu) = (bytes, bytes),
            Self::RestartEdge { lose_parts } => pair.restart_edge(lose_parts),
            Self::RestartHub { lose_bytes } => pair.restart_hub(lose_bytes),
        }
        pair.world.now
    }
}

/// A story as it goes.
struct Telling<'a> {
    story: &'a Story,
    pair: Pair,
    streams: Vec<StreamName>,
    recorded_bytes: u64,
    segments: u64,
    /// When the line was well, and carried the video: what was recorded then must not be late.
    calm: Vec<(Instant, Instant, Duration)>,
    calm_since: Instant,
    /// The most that there was.
    held_bytes: usize,
    entries: usize,
}

impl<'a> Telling<'a> {
    fn new(story: &'a Story) -> Self {
        let mut pair = Pair::new(story.seed, &story.up);
        pair.world.edges[0].down = story.down.clone();
        let streams = (0..story.streams.len()).map(|n| pair.stream(&format!("cam-{n}")));
        let streams: Vec<_> = streams.collect();
        for (stream, (_, waits)) in streams.iter().zip(&story.streams) {
            pair.edge.streams.get_mut(stream).unwrap().waits = *waits;
        }
        Self {
            calm_since: pair.world.now + RECOVERY,
            story,
            pair,
            streams,
            recorded_bytes: 0,
            segments: 0,
            calm: Vec::new(),
            held_bytes: 0,
            entries: 0,
        }
    }

    fn tell(mut self) -> Told {
        let began = self.pair.world.now;
        let mut incidents = self.story.incidents.iter().peekable();
        for part in 0..self.story.parts {
            self.record(part);
            let next = began + PART_TIME * (part as u32 + 1);
            while let Some((_, events, incident)) = incidents.next_if(|(at, ..)| began + *at < next)
            {
                let at = self.story.incidents.iter().map(|(at, ..)| began + *at);
                let at = at.filter(|at| *at > self.pair.world.now).min();
                self.run_to(at.unwrap_or(next).min(next));
                let until = self.pair.world.steps + events;
                let left = next.saturating_duration_since(self.pair.world.now);
                self.pair.run(left, |pair| pair.world.steps >= until);
                self.calm_ends();
                let over = incident.happen(&mut self.pair);
                self.calm_since = self.calm_since.max(over + RECOVERY);
            }
            self.run_to(next);
        }
        self.calm_ends();
        self.pair.end_all();
        let done = |pair: &Pair| pair.sender.is_done();
        let told = self.pair.run(ENDS_WITHIN, done);
        assert!(told, "it does not end: {:?}", self.pair.sender.progress());
        self.check(began)
    }

    fn record(&mut self, part: u64) {
        let random = &mut self.pair.random;
        let cuts = random.below(64);
        for (stream, (mean, _)) in self.streams.iter().zip(&self.story.streams) {
            let is_first = self.pair.edge.streams[stream].written().is_none();
            // Sizes vary as pictures do; a key frame's part is larger.
            let random = &mut self.pair.random;
            let usual = mean / 2 + random.below(*mean as u64) as usize;
            let bytes = if is_first { usual * 2 } else { usual * 4 / 5 };
            self.recorded_bytes += bytes as u64;
            self.pair.record(stream, bytes);
            if (part + cuts).is_multiple_of(2 * KEY_FRAME_PARTS) {
                self.segments += 1;
                self.pair.close(stream);
            }
        }
    }

    fn run_to(&mut self, until: Instant) {
        while self.pair.world.now < until {
            let slice = (until - self.pair.world.now).min(ms(100));
            self.pair.run(slice, |_| false);
            if self.pair.welcomed.is_none() {
                // Bursts are counted in datagrams: where a handshake is all that is sent, they are long.
                self.calm_ends();
                self.calm_since = self.pair.world.now + RECOVERY;
            }
            let held = self.pair.world.edges[0].endpoint.held_bytes();
            let at_hub = self.pair.world.hub.most_held_bytes();
            assert!(held.max(at_hub) <= MAX_HELD_BYTES, "{held}, {at_hub} held");
            let entries = self.pair.sender.entries();
            assert!(entries <= MAX_ENTRIES, "{entries} entries of the sender");
            self.held_bytes = self.held_bytes.max(held).max(at_hub);
            self.entries = self.entries.max(entries);
            let ahead = self.pair.sender.read_ahead();
            assert!(ahead <= MAX_READ_AHEAD, "{ahead} bytes read ahead");
        }
    }

    /// Since an incident was got over all was well until now.
    fn calm_ends(&mut self) {
        let edge = &self.pair.world.edges[0];
        let round_trip = edge.up.delay + edge.up.jitter + edge.down.delay + edge.down.jitter;
        let lag = LAG + LAG_ROUND_TRIPS * round_trip;
        let now = self.pair.world.now;
        // What is recorded last is still under way when the incident comes.
        let until = now.checked_sub(lag).unwrap_or(now);
        if self.calm_since < until && self.is_carried() {
            self.calm.push((self.calm_since, until, lag));
        }
        self.calm_since = self.calm_since.max(now);
    }

    fn is_carried(&self) -> bool {
        let up = &self.pair.world.edges[0].up;
        let bursts = up.bursts.map_or(0.0, |b| b.begin / (b.begin + b.end));
        let loss = 1.0 - (1.0 - up.loss) * (1.0 - bursts);
        let needed =
            self.story.video_bps() * HEADERS * (1.0 + DEFAULT_MAX_REDUNDANCY) / (1.0 - loss);
        needed <= CARRIED_SHARE * up.rate_bps.unwrap_or(u64::MAX) as f64
    }

    fn check(self, began: Instant) -> Told {
        let Self { pair, .. } = &self;
        pair.assert_replicated();
        for (name, hub) in &pair.hub.streams {
            let edge = &pair.edge.streams[name];
            assert!(
                hub.here.len() == edge.closed.len() && hub.order.len() == hub.here.len(),
                "{name}: the hub has what the edge never closed"
            );
        }
        let handed = pair.handed_bytes();
        let again = self.recorded_bytes + pair.again_bytes;
        assert!(handed <= again, "{handed} media bytes sent, {again} due");

        let (datagrams, bytes) = pair.world.edges[0].sent();
        let wire = bytes + IP_BYTES * datagrams;
        let (_, lost, overflowed) = pair.world.edges[0].lost();
        let loss = (lost + overflowed) as f64 / bytes as f64;
        let time = (pair.world.now - began).as_secs();
        let fixed = BYTES_PER_SESSION * (1 + pair.interruptions)
            + BYTES_PER_SECOND * (time + 1)
            + BYTES_PER_SEGMENT * self.segments
            + BYTES_PER_PART * self.story.parts * self.streams.len() as u64;
        let media = HEADERS * (1.0 + DEFAULT_MAX_REDUNDANCY) * handed as f64;
        let most = (media + fixed as f64) / (1.0 - loss);
        assert!(
            wire as f64 <= most,
            "{wire} bytes on the wire, {most:.0} allowed for {handed} of media at a loss of {loss:.3}"
        );

        let mut worst = 0.0_f64;
        for &(from, to, most) in &self.calm {
            for &(at, lag) in &pair.live_parts {
                if (from..to).contains(&(at - lag)) {
                    worst = worst.max(lag.as_secs_f64() / most.as_secs_f64());
                    assert!(
                        lag <= most,
                        "a live part was {lag:?} late, {most:?} allowed"
                    );
                }
            }
        }
        Told {
            wire: wire as f64 / most,
            fixed: (wire as f64 * (1.0 - loss) - media) / fixed as f64,
            lag: worst,
            held_bytes: self.held_bytes,
            entries: self.entries,
            steps: pair.world.steps,
        }
    }
}

/// How near a story came to its limits.
#[derive(Debug, Default)]
struct Told {
    /// Of the bytes allowed on the wire, and of those that are allowed whatever the media is.
    wire: f64,
    fixed: f64,
    lag: f64,
    held_bytes: usize,
    entries: usize,
    steps: u64,
}

impl Told {
    fn raise(&mut self, to: &Self) {
        self.wire = self.wire.max(to.wire);
        self.fixed = self.fixed.max(to.fixed);
        self.lag = self.lag.max(to.lag);
        self.held_bytes = self.held_bytes.max(to.held_bytes);
        self.entries = self.entries.max(to.entries);
        self.steps = self.steps.max(to.steps);
    }
}

/// What was wrong, with the story.
fn tell(seed: u64) -> Result<Told, String> {
    let story = Story::draw(seed);
    std::panic::catch_unwind(|| Telling::new(&story).tell()).map_err(|why| {
        let why = why.downcast_ref::<String>().cloned();
        let why = why.unwrap_or_else(|| "see above".into());
        format!("PENSTOCK_SEED={seed}: {why}\n    {story:?}")
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "which stories to tell, and for how long, is the choice of who runs the test"
)]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[allow(
    clippy::disallowed_methods,
    reason = "how long to go on and how fast it went, on this machine"
)]
fn wall_clock() -> Instant {
    Instant::now()
}

#[test]
fn every_story_ends_well() {
    let seed = asked("PENSTOCK_SEED");
    let minutes = asked("PENSTOCK_SIM_MINUTES");
    let first = seed.unwrap_or(1);
    let began = wall_clock();
    let mut most = Told::default();
    let mut wrong = Vec::new();
    let mut stories = 0;
    loop {
        match tell(first + stories) {
            Ok(told) => most.raise(&told),
            Err(why) => {
                eprintln!("{why}");
                wrong.push(why);
            }
        }
        stories += 1;
        let enough = match (minutes, seed) {
            (Some(minutes), _) => began.elapsed() >= Duration::from_secs(60 * minutes),
            (None, Some(_)) => true,
            (None, None) => stories == STORIES,
        };
        if enough || wrong.len() >= MAX_WRONG {
            break;
        }
    }
    let a_minute = stories as f64 * 60.0 / began.elapsed().as_secs_f64();
    println!("{stories} stories from seed {first} on, {a_minute:.0} a minute; {most:.2?}");
    assert!(wrong.is_empty(), "{} of them, see above", wrong.len());
}
