//! Hub and edge-node as programs over the line, a live camera at the edge: what a cut, or a line narrower than
//! the video, does to live video, and how soon what was missed is at the hub.
//!
//! When a segment is whole, and when it is at the hub, is told by the two disks: a segment's file gets its name
//! when it is closed, and the file's change time (`ctime`) is that moment, by one clock for both. The hub lists
//! it after a commit more, which takes milliseconds.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use system_tests::{Edge, Hub, assert_all_at_hub, command_in, wait_for};

use crate::line::{Line, Traffic};

const STREAM: &str = "cam";

/// Where the camera sends to, at the edge's end.
const CAMERA: &str = "127.0.0.1:5000";

/// Until the programs have found each other and the line; not counted.
const SETTLE: Duration = Duration::from_secs(5);

/// After the camera's last packet the edge still closes its last segment; then all must be at the hub within this.
const PATIENCE: Duration = Duration::from_secs(600);

/// What happens.
#[derive(Debug, Args)]
pub struct Plan {
    /// Of video, before a cut at least
    #[arg(long, default_value_t = 30)]
    pub before: u32,
    /// Seconds in which nothing passes; 0: no cut
    #[arg(long = "cut", default_value_t = 60)]
    pub cut: u32,
    /// Of video, after the cut
    #[arg(long, default_value_t = 45)]
    pub after: u32,
}

/// From a segment's end at the edge to its file at the hub.
#[derive(Debug, Serialize)]
pub struct Lag {
    pub segments: usize,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

/// What came of it; all segments are at the hub, hash for hash.
#[derive(Debug, Serialize)]
pub struct Report {
    pub segments: usize,
    pub media_bytes: u64,
    /// Live video, as long as nothing happened.
    pub before: Lag,
    /// Live video: of segments that were newer than all before them when they came.
    pub live: Lag,
    /// From the camera's last packet until all was at the hub.
    pub rest_s: f64,
    pub cut: Option<AfterCut>,
    pub traffic: Traffic,
}

/// From when the line is whole again.
#[derive(Debug, Serialize)]
pub struct AfterCut {
    /// Until the hub has the newest segment that the edge has.
    pub live_again_ms: u64,
    /// Until all that was missed is there.
    pub filled_s: f64,
    pub hole_bytes: u64,
    /// Media of the hole, bits a second.
    pub fill_bps: u64,
    /// The line's rate without what live video took of it before the cut, IP headers and all.
    pub spare_bps: u64,
    /// Live video while the hole was filled.
    pub meanwhile: Lag,
}

/// Plays the clip at its own pace into the edge's UDP input, and does what the plan says to the line.
pub fn run(line: Line, clip: &Path, plan: &Plan, rate_bps: u64) -> Result<Report> {
    ensure!(
        rate_bps > 0,
        "the spare rate is told of a line that has one"
    );
    // What is started and asked from here is the hub's.
    line.hub.enter()?;
    let dir = tempfile::tempdir()?;
    let hub = Hub::start_at(IpAddr::V4(line.hub.address), &dir.path().join("hub"), &[])?;
    let edge = Edge::enrol_in(&line.edge.path(), &dir.path().join("edge"), &hub, "pole-7")?;
    let config = dir.path().join("edge.toml");
    fs::write(
        &config,
        format!(
            "[[stream]]\nname = '{STREAM}'\nsource = 'udp://{CAMERA}'\ntarget_duration = '1s'\n"
        ),
    )?;
    let running = edge.run(&["--config", config.to_str().context("path")?])?;
    let seconds = plan.before + plan.cut + plan.after;
    let mut camera = command_in(&line.edge.path(), "ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-re"])
        .args(["-stream_loop", "-1", "-i"])
        .arg(clip)
        .args(["-t", &seconds.to_string(), "-c", "copy", "-f", "mpegts"])
        .arg(format!("udp://{CAMERA}?pkt_size=1316"))
        .stdin(Stdio::null())
        .spawn()
        .context("ffmpeg")?;
    thread::sleep(SETTLE);
    let counted = (now(), line.traffic());
    let cut = (plan.cut > 0).then(|| {
        thread::sleep(Duration::from_secs(plan.before.into()).saturating_sub(SETTLE));
        let before = line.traffic();
        let since = now();
        line.set_cut(true);
        thread::sleep(Duration::from_secs(plan.cut.into()));
        line.set_cut(false);
        let bits = 8 * (before.edge_to_hub.bytes_in - counted.1.edge_to_hub.bytes_in);
        let live_bps = bits as f64 / (since - counted.0).as_secs_f64();
        (since, now(), live_bps as u64)
    });
    ensure!(camera.wait()?.success(), "ffmpeg failed");
    let ended = now();
    let (at_edge, at_hub) = wait_for("all segments to be at the hub", PATIENCE, || {
        let at_edge = closed(edge.data_dir())?;
        let at_hub = closed(hub.data_dir())?;
        let all = at_edge.len() as u32 >= seconds / 2
            && at_edge.keys().all(|number| at_hub.contains_key(number))
            && (now() - ended) > SETTLE * 2;
        all.then_some((at_edge, at_hub))
    })
    .with_context(|| format!("edge's log:\n{}", running.log()))?;
    let segments = assert_all_at_hub(&edge, &hub, STREAM)?;
    let traffic = line.traffic();
    ensure!(running.stop()?.success(), "edge-node failed");

    let passages: Vec<Passage> = at_edge
        .iter()
        .filter_map(|(number, (cut, bytes))| {
            let (came, _) = at_hub.get(number)?;
            Some(Passage {
                cut: *cut,
                came: *came,
                bytes: *bytes,
            })
        })
        .collect();
    let calm =
        |p: &&Passage| p.cut > counted.0 && cut.is_none_or(|(since, ..)| p.cut.max(p.came) < since);
    let newest = newest_first(&passages);
    Ok(Report {
        segments,
        media_bytes: passages.iter().map(|p| p.bytes).sum(),
        before: lag(passages.iter().filter(calm)),
        live: lag(newest.iter()),
        rest_s: last(&passages).saturating_sub(ended).as_secs_f64(),
        cut: cut.map(|(since, whole, live_bps)| {
            after_cut(&passages, since, whole, rate_bps.saturating_sub(live_bps))
        }),
        traffic,
    })
}

/// A segment's way; times since 1970.
#[derive(Debug, Clone, Copy)]
struct Passage {
    cut: Duration,
    came: Duration,
    bytes: u64,
}

fn after_cut(passages: &[Passage], since: Duration, whole: Duration, spare_bps: u64) -> AfterCut {
    let hole: Vec<&Passage> = passages
        .iter()
        .filter(|p| p.cut < whole && p.came > since)
        .collect();
    let hole_bytes = hole.iter().map(|p| p.bytes).sum();
    let filled = hole.iter().map(|p| p.came).max().unwrap_or(whole);
    // The newest of those that the edge had when it came.
    let again = passages
        .iter()
        .enumerate()
        .filter(|(at, p)| {
            let next = passages.get(at + 1);
            p.came > whole && next.is_none_or(|next| next.cut > p.came)
        })
        .map(|(_, p)| p.came)
        .min()
        .unwrap_or(filled);
    let fill = filled.saturating_sub(whole);
    let meanwhile = passages.iter().filter(|p| p.cut > again && p.cut < filled);
    AfterCut {
        live_again_ms: again.saturating_sub(whole).as_millis() as u64,
        filled_s: fill.as_secs_f64(),
        hole_bytes,
        fill_bps: (8.0 * hole_bytes as f64 / fill.as_secs_f64()) as u64,
        spare_bps,
        meanwhile: lag(meanwhile),
    }
}

/// Those that were newer than all that had come before them.
fn newest_first(passages: &[Passage]) -> Vec<Passage> {
    let mut by_arrival = passages.to_vec();
    by_arrival.sort_by_key(|p| p.came);
    let mut newest = Duration::ZERO;
    by_arrival.retain(|p| {
        let newer = p.cut > newest;
        newest = newest.max(p.cut);
        newer
    });
    by_arrival
}

fn last(passages: &[Passage]) -> Duration {
    passages.iter().map(|p| p.came).max().unwrap_or_default()
}

fn lag<'a>(passages: impl Iterator<Item = &'a Passage>) -> Lag {
    let mut all: Vec<u64> = passages
        .map(|p| p.came.saturating_sub(p.cut).as_millis() as u64)
        .collect();
    all.sort_unstable();
    let rank = |percent: usize| {
        let at = (all.len() * percent).div_ceil(100).saturating_sub(1);
        all.get(at).copied().unwrap_or_default()
    };
    Lag {
        segments: all.len(),
        p50_ms: rank(50),
        p99_ms: rank(99),
        max_ms: rank(100),
    }
}

/// Numbers of the closed segments below a data directory: when each got its name, and its bytes.
fn closed(data_dir: &Path) -> Option<BTreeMap<u64, (Duration, u64)>> {
    let mut found = BTreeMap::new();
    let folders = fs::read_dir(data_dir.join("segments").join(STREAM)).ok()?;
    for folder in folders.flatten().filter(|folder| folder.path().is_dir()) {
        for file in fs::read_dir(folder.path()).ok()?.flatten() {
            let path = file.path();
            let number = path.file_stem()?.to_str()?.parse::<u64>();
            // Those that are gone by now were renamed: they are looked at next time.
            if let (Ok(number), Some("ts"), Ok(meta)) = (
                number,
                path.extension().and_then(|e| e.to_str()),
                file.metadata(),
            ) {
                let changed = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
                found.insert(number, (changed, meta.len()));
            }
        }
    }
    Some(found)
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(cut_ms: u64, came_ms: u64) -> Passage {
        Passage {
            cut: Duration::from_millis(cut_ms),
            came: Duration::from_millis(came_ms),
            bytes: 1_000,
        }
    }

    #[test]
    fn a_cut_is_told_by_who_came_when() {
        // A second each; nothing passes from 2.5 s to 5.5 s, then the newest comes first.
        let passages = [
            passage(1_000, 1_100),
            passage(2_000, 2_100),
            passage(3_000, 6_600),
            passage(4_000, 6_700),
            passage(5_000, 5_800),
            passage(6_000, 6_150),
            passage(7_000, 7_100),
        ];
        let (since, whole) = (Duration::from_millis(2_500), Duration::from_millis(5_500));
        let told = after_cut(&passages, since, whole, 24_000);
        assert_eq!(told.live_again_ms, 300);
        assert_eq!(told.filled_s, 1.2);
        assert_eq!((told.hole_bytes, told.fill_bps), (3_000, 20_000));
        assert_eq!((told.meanwhile.segments, told.meanwhile.max_ms), (1, 150));
        let newest = newest_first(&passages);
        assert_eq!(newest.len(), 5);
        assert_eq!(lag(newest.iter()).max_ms, 800);
    }
}
