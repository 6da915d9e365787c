//! A day of video in fast motion through cuts, kills, full disks and clock steps: nothing lost, memory and files
//! flat.
//!
//! By default some minutes of stream time; `scripts/soak day` sets `PENSTOCK_DAY_MINUTES` to 1,440. The
//! video comes `SPEED` times as fast as a camera would send it, so its wall times say nothing here.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rusqlite::{Connection, OpenFlags};
use system_tests::{
    Edge, FakeClock, Hub, Line, Mount, Push, Watcher, fixture, may_mount, playlist, seeded, setting,
};

const SPEED: u32 = 60;
const STREAM: &str = "cam";

/// Between two incidents, in real time.
const CALM: std::ops::Range<u64> = 2_000..9_000;

/// Of one program: its buffers, and an edge's memory that stands in for its disk.
const MOST_MEMORY: u64 = 125_000_000;

/// From here on memory must be flat.
const LONG_MINUTES: u32 = 240;

/// A camera that never ends and does not wait to be read.
fn camera(clip: &Path) -> Result<(Child, Stdio)> {
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "quiet", "-nostdin"])
        .args(["-readrate", &SPEED.to_string(), "-stream_loop", "-1", "-i"])
        .arg(clip)
        .args(["-c", "copy", "-f", "mpegts", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("ffmpeg")?;
    let out = ffmpeg.stdout.take().context("stdout")?;
    Ok((ffmpeg, Stdio::from(out)))
}

/// Hub, edge and camera, and what they use.
struct Site {
    hub: Hub,
    edge: Edge,
    /// The edge's, in memory, so that it can be filled.
    disk: Mount,
    /// Of hub and edge.
    clocks: [FakeClock; 2],
    line: Line,
    running: Option<(Push, Child)>,
    clip: std::path::PathBuf,
    incidents: BTreeMap<&'static str, u32>,
}

impl Site {
    fn record(&mut self) -> Result<()> {
        if self
            .running
            .as_mut()
            .is_some_and(|(push, _)| !push.has_ended())
        {
            return Ok(());
        }
        self.stop_camera()?;
        let (camera, video) = camera(&self.clip)?;
        let limit = ["--max-bytes", "200MB", "--reserve-bytes", "1MB"];
        let args = [&["--stream", STREAM], &limit[..], &["-"]].concat();
        self.running = Some((self.edge.push(&args, video)?, camera));
        Ok(())
    }

    /// `kill -9` of the edge, and of the camera with it.
    fn stop_camera(&mut self) -> Result<()> {
        if let Some((push, mut camera)) = self.running.take() {
            push.kill()?;
            camera.kill()?;
            camera.wait()?;
        }
        Ok(())
    }

    fn incident(&mut self, rng: &mut Rng) -> Result<()> {
        let spell = Duration::from_millis(rng.u64(200..4_000));
        let what = match rng.u32(..12) {
            0..=2 => {
                self.line.cut();
                thread::sleep(spell);
                self.line.mend();
                "line cut"
            }
            3 | 4 => {
                self.hub.kill()?;
                thread::sleep(spell / 4);
                self.hub.up()?;
                "hub killed"
            }
            5 => {
                self.stop_camera()?;
                "edge killed"
            }
            6 => {
                self.stop_camera()?;
                self.hub.kill()?;
                self.hub.up()?;
                "both killed"
            }
            8 | 9 => {
                let filler = self.disk.fill()?;
                thread::sleep(spell / 2);
                fs::remove_file(filler)?;
                // Once it is well again nothing is in memory alone.
                thread::sleep(Duration::from_secs(4));
                "edge's disk full"
            }
            10 | 11 => {
                let of = [3, 7_200, 86_400 * 400, 86_400 * 7_300];
                let step = of[rng.usize(..of.len())] * if rng.bool() { 1 } else { -1 };
                self.clocks[rng.usize(..2)].set(step)?;
                "clock stepped"
            }
            _ => {
                self.line.cut();
                self.hub.kill()?;
                self.hub.up()?;
                thread::sleep(spell);
                self.line.mend();
                "line cut, hub killed"
            }
        };
        *self.incidents.entry(what).or_default() += 1;
        Ok(())
    }
}

/// Memory (bytes) and open files of a program, as the day went.
#[derive(Default)]
struct Usage(Vec<(u64, u64)>);

/// What a stretch of the day used: memory as a rule and at most, files at most.
struct Stretch {
    median: u64,
    most: u64,
    files: u64,
}

impl Usage {
    /// The first and the last third.
    fn ends(&self) -> Result<[Stretch; 2]> {
        let third = self.0.len() / 3;
        let stretch = |of: &[(u64, u64)]| -> Result<Stretch> {
            let mut memory: Vec<u64> = of.iter().map(|u| u.0).collect();
            memory.sort_unstable();
            Ok(Stretch {
                median: *memory.get(memory.len() / 2).context("never looked")?,
                most: *memory.last().context("never looked")?,
                files: of.iter().map(|u| u.1).max().context("never looked")?,
            })
        };
        Ok([
            stretch(&self.0[..third])?,
            stretch(&self.0[self.0.len() - third..])?,
        ])
    }

    /// Flat in a long day, and never much.
    fn check(&self, who: &str, minutes: u32) -> Result<()> {
        let [first, last] = self.ends()?;
        let mb = |bytes: u64| bytes / 1_000_000;
        println!(
            "{who}: in the first third {} MB, most {}, {} files; in the last {} MB, most {}, {} files",
            mb(first.median),
            mb(first.most),
            first.files,
            mb(last.median),
            mb(last.most),
            last.files
        );
        ensure!(first.most.max(last.most) <= MOST_MEMORY, "too much memory");
        // Shorter ones are over before all buffers have been in use once. What is most goes by how long the
        // other side was away; what is the rule must not grow.
        if minutes >= LONG_MINUTES {
            let limit = first.median + first.median / 4 + 8_000_000;
            ensure!(last.median <= limit, "memory grows");
        }
        ensure!(last.files <= first.files + 16, "open files grow");
        Ok(())
    }
}

#[test]
fn a_day_in_fast_motion() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let minutes = setting("PENSTOCK_DAY_MINUTES", 15);
    let mut rng = seeded(4);
    let dir = tempfile::tempdir()?;
    let clock = |name: &str| FakeClock::new(&dir.path().join(name));
    let clocks = [clock("hub-clock")?, clock("edge-clock")?];
    let hub = Hub::start_by(&dir.path().join("hub"), Some(&clocks[0]))?;
    let line = Line::to(hub.link_address())?;
    let at = dir.path().join("edge");
    let disk = Mount::tmpfs(&at, "size=320m")?;
    let mut edge = Edge::enrol_over(&at, &hub, "pole-7", line.address())?;
    edge.log_to(&dir.path().join("edge.log"));
    edge.set_clock(&clocks[1]);
    let watcher = Watcher::start(&hub.url(""), STREAM);
    let mut site = Site {
        hub,
        edge,
        disk,
        clocks,
        line,
        running: None,
        clip: fixture("small.ts"),
        incidents: BTreeMap::new(),
    };
    let day = Duration::from_secs(u64::from(minutes) * 60 / u64::from(SPEED));
    let began = Instant::now();
    let (mut hub_usage, mut edge_usage) = (Usage::default(), Usage::default());
    while began.elapsed() < day && !watcher.has_failed() {
        site.record()?;
        let calm = Instant::now() + Duration::from_millis(rng.u64(CALM));
        while Instant::now() < calm {
            thread::sleep(Duration::from_millis(500));
            hub_usage.0.extend(site.hub.usage());
            let edge = site.running.as_ref();
            edge_usage
                .0
                .extend(edge.and_then(|(push, _)| push.usage().ok()));
        }
        site.incident(&mut rng)?;
    }
    // The camera goes away; what it sent is shipped to the end.
    if let Some((push, mut camera)) = site.running.take() {
        camera.kill()?;
        camera.wait()?;
        let log = push.log_path();
        let status = push.wait(Duration::from_secs(600))?;
        let log = fs::read_to_string(log)?;
        let end = log.len().saturating_sub(4_000);
        let end = log.get(end..).unwrap_or(&log);
        ensure!(status.success(), "the last push: {status}\n{end}");
    } else {
        let clip = site.clip.clone();
        let args = [
            "--stream",
            STREAM,
            "--wait",
            "10m",
            clip.to_str().context("path")?,
        ];
        let status = site
            .edge
            .push(&args, Stdio::null())?
            .wait(Duration::from_secs(660))?;
        ensure!(status.success(), "the last push: {status}");
    }
    let rules = watcher.end()?;
    ensure!(playlist(&site.hub.url(&format!("/s/{STREAM}/live.m3u8")))?.end_list);
    ensure!(site.hub.stop()?.success());
    let whole = whole(site.hub.data_dir())?;
    // A kill may leave a number with nothing in it; nothing else makes a hole.
    let kills: u32 = ["edge killed", "both killed"]
        .iter()
        .filter_map(|k| site.incidents.get(k))
        .sum();
    ensure!(
        whole.holes <= u64::from(kills),
        "{} holes, {kills} kills of the edge",
        whole.holes
    );
    println!(
        "{:.1} h of video in {} s, {} segments in {} runs, {} live lists looked at; {:?}",
        whole.seconds / 3_600.0,
        began.elapsed().as_secs(),
        whole.segments,
        whole.runs,
        rules.looks(),
        site.incidents
    );
    ensure!(whole.segments > 0 && whole.seconds > f64::from(minutes) * 60.0 / 3.0);
    hub_usage.check("hub", minutes)?;
    edge_usage.check("edge", minutes)?;
    Ok(())
}

struct Whole {
    segments: u64,
    runs: u64,
    seconds: f64,
    /// Numbers that hold nothing.
    holes: u64,
}

/// Reads the hub's ledger: within a run every segment follows the one before it, and every hole says why.
fn whole(hub: &Path) -> Result<Whole> {
    let catalog =
        Connection::open_with_flags(hub.join("catalog.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let lost: i64 =
        catalog.query_row("SELECT COUNT(*) FROM segment WHERE state <> 1", [], |r| {
            r.get(0)
        })?;
    ensure!(lost == 0, "{lost} segments were announced and never came");
    let mut holes = catalog.prepare("SELECT first, last, reason FROM tombstone")?;
    let holes: Vec<(i64, i64, i64)> = holes
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let mut rows = catalog.prepare(
        "SELECT number, run, media_90k, duration_90k FROM segment ORDER BY stream, number",
    )?;
    let mut rows = rows.query([])?;
    let mut before: Option<(i64, i64, i64)> = None;
    let mut whole = Whole {
        segments: 0,
        runs: 0,
        seconds: 0.0,
        holes: holes
            .iter()
            .map(|(first, last, _)| last.abs_diff(*first) + 1)
            .sum(),
    };
    while let Some(row) = rows.next()? {
        let (number, run, start, duration): (i64, i64, i64, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        whole.segments += 1;
        whole.seconds += duration as f64 / 90_000.0;
        match before {
            Some((last, same, end)) if same == run => {
                let explained = holes
                    .iter()
                    .any(|(first, to, _)| (last + 1..=number - 1).contains(first) && *to < number);
                ensure!(
                    number == last + 1 || explained,
                    "no segment between {last} and {number} of run {run}"
                );
                ensure!(
                    number != last + 1 || start == end,
                    "{number} begins at {start}, {last} ends at {end}"
                );
            }
            _ => whole.runs += 1,
        }
        before = Some((number, run, start + duration));
    }
    println!("holes (first, last, reason): {holes:?}");
    Ok(whole)
}
