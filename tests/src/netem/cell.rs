//! One cell of the table: what is done to the line, and what came of it.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Net, net};
use crate::{Edge, Hub, Push, assert_all_at_hub, numbers};

/// Nothing here takes longer than the video and this, however bad the line is.
const PATIENCE: Duration = Duration::from_secs(600);

/// A cell that takes so much longer than its video has stood still somewhere: the logs are printed, though
/// everything arrived.
const SLOW: Duration = Duration::from_secs(60);

/// How often lists are looked at: the grain of what is measured. In user-mode Linux a look costs milliseconds
/// of the only processor.
const LOOK: Duration = Duration::from_millis(50);

const STREAM: &str = "cam";

/// What `scripts/netem` makes its clips of.
const VIDEO_MBPS: f64 = 4.0;

/// The temporary folder may lie in memory, with less room than the programs' usual reserve.
const RESERVE: [&str; 2] = ["--reserve-bytes", "1MB"];

/// What the line does to packets, each way, and what happens to it in mid-stream.
#[derive(Debug, Clone, PartialEq, Default, Args)]
pub struct Cell {
    /// Percent of packets lost
    #[arg(long, default_value_t = 0.0)]
    pub loss: f64,
    /// Milliseconds each way
    #[arg(long, default_value_t = 50)]
    pub delay: u32,
    /// Losses come in runs of this mean length (netem's gemodel); 0: each for itself
    #[arg(long, default_value_t = 0.0)]
    pub burst: f64,
    /// Percent of packets that go at once, before those that wait
    #[arg(long, default_value_t = 0.0)]
    pub reorder: f64,
    /// Percent of packets that arrive twice
    #[arg(long, default_value_t = 0.0)]
    pub duplicate: f64,
    /// Mbit/s; 0: no limit
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Seconds in mid-stream in which nothing passes
    #[arg(long, default_value_t = 0)]
    pub cut: u32,
    /// The edge's address changes in mid-stream
    #[arg(long = "move")]
    pub moves: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} % {} ms", self.loss, self.delay);
        if self.burst > 0.0 {
            text += &format!(", bursts of {}", self.burst);
        }
        if self.reorder > 0.0 {
            text += &format!(", reorder {} %", self.reorder);
        }
        if self.duplicate > 0.0 {
            text += &format!(", double {} %", self.duplicate);
        }
        if self.rate > 0.0 {
            text += &format!(", {} Mbit/s", self.rate);
        }
        if self.cut > 0 {
            text += &format!(", cut {} s", self.cut);
        }
        if self.moves {
            text += ", new address";
        }
        f.pad(&text)
    }
}

fn at(loss: f64, delay: u32) -> Cell {
    Cell {
        loss,
        delay,
        ..Cell::default()
    }
}

/// The six that CI runs: a clean line, loss, much loss, a long way, bursts, and all else at once.
pub fn ci() -> Vec<Cell> {
    vec![
        at(0.0, 50),
        at(10.0, 50),
        at(20.0, 50),
        at(5.0, 150),
        Cell {
            burst: 8.0,
            ..at(10.0, 50)
        },
        Cell {
            reorder: 5.0,
            duplicate: 2.0,
            moves: true,
            ..at(2.0, 50)
        },
    ]
}

/// The whole table; `cut` is as long as the video allows.
pub fn table() -> Vec<Cell> {
    let mut cells = Vec::new();
    for delay in [10, 50, 150] {
        for loss in [0.0, 1.0, 5.0, 10.0, 20.0, 30.0] {
            cells.push(at(loss, delay));
        }
    }
    for (loss, burst) in [(5.0, 4.0), (10.0, 8.0), (10.0, 20.0)] {
        cells.push(Cell {
            burst,
            ..at(loss, 50)
        });
    }
    let clean = at(0.0, 50);
    cells.push(Cell {
        reorder: 25.0,
        ..clean.clone()
    });
    cells.push(Cell {
        duplicate: 10.0,
        ..clean.clone()
    });
    cells.push(Cell {
        rate: 2.0,
        ..clean.clone()
    });
    cells.push(Cell { cut: 30, ..clean });
    cells.push(Cell {
        moves: true,
        ..at(5.0, 50)
    });
    cells
}

/// What came of a cell in which nothing is missing.
#[derive(Debug)]
pub struct Row {
    segments: usize,
    /// From a segment cut at the edge to listed live at the hub, sorted.
    listed: Vec<Duration>,
    media_bytes: u64,
    sent: net::Sent,
    took: Duration,
}

impl Row {
    pub const HEAD: &str =
        "segments  listed live: p50     p99     max ms  late   wire bytes   packets  seconds";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share: f64| {
            let rank = (share * self.listed.len() as f64).ceil() as usize;
            let found = self.listed.get(rank.saturating_sub(1));
            found.map_or_else(|| "-".to_owned(), |late| late.as_millis().to_string())
        };
        write!(
            f,
            "{:>8}  {:>16} {:>7} {:>7}     {:>4}  {:>6.3} x media {:>6} {:>8.1}",
            self.segments,
            ms(0.5),
            ms(0.99),
            ms(1.0),
            self.segments - self.listed.len().min(self.segments),
            self.sent.bytes as f64 / self.media_bytes as f64,
            self.sent.packets,
            self.took.as_secs_f64(),
        )
    }
}

impl Cell {
    /// Pushes the clip at its own pace over the line. An error: something is missing at the hub, or a program
    /// failed.
    pub fn run(&self, net: &Net, clip: &Path, seconds: u32) -> Result<Row> {
        let dir = tempfile::tempdir()?;
        let hub = Hub::start_at(net::HUB_ADDRESS.into(), &dir.path().join("hub"), &RESERVE)?;
        let edge = Edge::enrol_in(
            &net::namespace(net::EDGE),
            &dir.path().join("edge"),
            &hub,
            "pole-7",
        )?;
        net.shape(self)?;
        let before = net.sent(net::EDGE)?;
        let began = Instant::now();
        let clip = clip.to_str().context("the clip's path")?;
        let args = [
            "--stream",
            STREAM,
            "--realtime",
            "--start",
            "now",
            "--wait",
            "10m",
            clip,
        ];
        let push = edge.push(&[&args[..], &RESERVE].concat(), Stdio::null())?;
        let log = push.log_path();
        let watch = Watch::begin(&edge, &hub);
        let ended = self
            .disturb(net, seconds)
            .and_then(|()| ended(push, seconds));
        let took = began.elapsed();
        let listed = watch.end();
        let after = net.sent(net::EDGE)?;
        net.move_back()?;
        ended.with_context(|| format!("hub's log:\n{}", hub.log()))?;
        let expected = Duration::from_secs(u64::from(seconds) * self.stretch());
        if took > expected + SLOW {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            eprintln!(
                "{self} took {took:?}; edge's log:\n{log}\nhub's log:\n{}",
                hub.log()
            );
        }
        let segments = assert_all_at_hub(&edge, &hub, STREAM)?;
        // A clip is cut every two seconds.
        ensure!(
            segments >= seconds as usize / 2,
            "{segments} segments of {seconds} s"
        );
        Ok(Row {
            segments,
            listed,
            media_bytes: media_bytes(&edge)?,
            sent: net::Sent {
                packets: after.packets - before.packets,
                bytes: after.bytes - before.bytes,
            },
            took,
        })
    }

    /// How many times as long as the video it takes at least: a line of half its rate takes twice as long.
    fn stretch(&self) -> u64 {
        if self.rate > 0.0 {
            (VIDEO_MBPS / self.rate).ceil().max(1.0) as u64
        } else {
            1
        }
    }

    /// What happens in mid-stream.
    fn disturb(&self, net: &Net, seconds: u32) -> Result<()> {
        let video = Duration::from_secs(seconds.into());
        if self.moves {
            thread::sleep(video / 2);
            net.move_edge()?;
        }
        if self.cut > 0 {
            thread::sleep(video / 4);
            net.cut()?;
            thread::sleep(Duration::from_secs(self.cut.into()));
            net.shape(self)?;
        }
        Ok(())
    }
}

fn ended(push: Push, seconds: u32) -> Result<()> {
    let log = push.log_path();
    let status = push.wait(PATIENCE + Duration::from_secs(seconds.into()))?;
    ensure!(
        status.success(),
        "edge-node push: {status}\n{}",
        std::fs::read_to_string(log).unwrap_or_default()
    );
    Ok(())
}

fn media_bytes(edge: &Edge) -> Result<u64> {
    let mut bytes = 0;
    for (number, _) in edge.segments(STREAM)? {
        bytes += std::fs::metadata(segment(edge, number))?.len();
    }
    Ok(bytes)
}

fn segment(edge: &Edge, number: u64) -> PathBuf {
    let folder = edge.data_dir().join("segments").join(STREAM);
    folder
        .join((number / 4096).to_string())
        .join(format!("{number}.ts"))
}

/// Looks at the edge's own list and at the hub's: when each segment was first in them.
struct Watch {
    stop: Arc<AtomicBool>,
    at_edge: thread::JoinHandle<HashMap<u64, Instant>>,
    at_hub: thread::JoinHandle<HashMap<u64, Instant>>,
}

impl Watch {
    fn begin(edge: &Edge, hub: &Hub) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let list = edge
            .data_dir()
            .join("segments")
            .join(STREAM)
            .join("live.m3u8");
        let url = hub.url(&format!("/s/{STREAM}/live.m3u8"));
        Self {
            at_edge: look(stop.clone(), move || numbers_in(&list)),
            at_hub: look(stop.clone(), move || numbers(&url)),
            stop,
        }
    }

    /// From cut to listed, sorted; without those that never were in the hub's live list.
    fn end(self) -> Vec<Duration> {
        // The last one may have been listed just now.
        thread::sleep(LOOK * 4);
        self.stop.store(true, Ordering::Relaxed);
        let at_edge = self.at_edge.join().unwrap_or_default();
        let at_hub = self.at_hub.join().unwrap_or_default();
        let mut listed: Vec<Duration> = at_edge
            .iter()
            .filter_map(|(n, cut)| Some(at_hub.get(n)?.saturating_duration_since(*cut)))
            .collect();
        listed.sort_unstable();
        listed
    }
}

fn look(
    stop: Arc<AtomicBool>,
    list: impl Fn() -> Vec<u64> + Send + 'static,
) -> thread::JoinHandle<HashMap<u64, Instant>> {
    thread::spawn(move || {
        let mut seen = HashMap::new();
        while !stop.load(Ordering::Relaxed) {
            for number in list() {
                seen.entry(number).or_insert_with(Instant::now);
            }
            thread::sleep(LOOK);
        }
        seen
    })
}

/// The segments that the edge's own list names, by paths below its folder.
fn numbers_in(list: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    let uris = text.lines().filter(|line| !line.starts_with('#'));
    uris.filter_map(|uri| uri.rsplit('/').next()?.strip_suffix(".ts")?.parse().ok())
        .collect()
}
