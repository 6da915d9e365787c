//! `kill -9` of hub and edge at random moments: nothing lost, hash for hash, no number reused, no playlist
//! rule broken.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use system_tests::{
    Edge, Hub, Push, Watcher, fixture, get, playlist, random_clip, seeded, setting, wait_for,
};

const STREAMS: [&str; 3] = ["cam-a", "cam-b", "cam-c"];

/// A segment that was being written when the edge was killed may lose what its last access unit tore.
const MAX_TORN_BYTES: usize = 256 << 10;

/// What was ever seen on an edge's disk: the same number is the same bytes for ever (invariant 2).
#[derive(Default)]
struct Journal {
    /// Hashes of closed segments.
    closed: BTreeMap<(String, u64), blake3::Hash>,
    /// What of a segment was written when its edge was killed.
    torn: BTreeMap<(String, u64), Vec<u8>>,
}

impl Journal {
    /// Looks at the disk of an edge that does not run.
    fn look(&mut self, edge: &Edge) -> Result<()> {
        for stream in STREAMS {
            for (number, path) in files(edge, stream, "ts")? {
                let key = (stream.to_owned(), number);
                if !self.closed.contains_key(&key) {
                    self.close(key, &fs::read(&path)?)?;
                }
            }
            for (number, path) in files(edge, stream, "part")? {
                let bytes = fs::read(&path)?;
                self.torn.insert((stream.to_owned(), number), bytes);
            }
        }
        Ok(())
    }

    fn close(&mut self, key: (String, u64), bytes: &[u8]) -> Result<()> {
        if let Some(torn) = self.torn.get(&key) {
            ensure!(
                torn.starts_with(bytes) && bytes.len() + MAX_TORN_BYTES >= torn.len(),
                "{key:?}: {} bytes were there when the edge was killed, {} are left",
                torn.len(),
                bytes.len()
            );
        }
        let hash = blake3::hash(bytes);
        if let Some(before) = self.closed.insert(key.clone(), hash) {
            ensure!(before == hash, "{key:?} was used for other bytes before");
        }
        Ok(())
    }

    /// All that was ever closed is on the edge and at the hub, with the same bytes.
    fn compare(mut self, edge: &Edge, hub: &Hub) -> Result<usize> {
        self.look(edge)?;
        for ((stream, number), hash) in &self.closed {
            let got = get(&hub.url(&format!("/s/{stream}/{number}.ts")))?;
            ensure!(got.status == 200, "{stream} {number}: {}", got.text());
            ensure!(
                blake3::hash(&got.body) == *hash,
                "{stream} {number} differs at the hub"
            );
        }
        let empty = |torn: &[u8]| torn.len() <= 3 * 188;
        for (key, torn) in &self.torn {
            ensure!(
                self.closed.contains_key(key) || empty(torn),
                "{key:?} is gone: {} bytes were there when the edge was killed",
                torn.len()
            );
        }
        Ok(self.closed.len())
    }
}

fn files(edge: &Edge, stream: &str, extension: &str) -> Result<Vec<(u64, PathBuf)>> {
    let root = edge.data_dir().join("segments").join(stream);
    let mut found = Vec::new();
    let Ok(folders) = fs::read_dir(&root) else {
        return Ok(found);
    };
    for folder in folders {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let path = file?.path();
            let number = path.file_stem().and_then(|s| s.to_str()?.parse().ok());
            if path.extension().is_some_and(|e| e == extension)
                && let Some(number) = number
            {
                found.push((number, path));
            }
        }
    }
    Ok(found)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

/// A push of a random clip: at its own pace or as fast as it goes.
fn random_push(edge: &Edge, clips: &[PathBuf], rng: &mut Rng) -> Result<Push> {
    let clip = text(&clips[rng.usize(..clips.len())])?;
    let stream = STREAMS[rng.usize(..STREAMS.len())];
    let mut args = vec!["--stream", stream];
    if rng.u32(..3) > 0 {
        args.extend(["--realtime", "--start", "now"]);
    }
    args.push(clip);
    edge.push(&args, Stdio::null())
}

/// How long to leave the pair alone: often long enough to record, sometimes so short that the start is hit.
fn pause(rng: &mut Rng) -> Duration {
    match rng.u32(..3) {
        0 => Duration::from_millis(rng.u64(..120)),
        _ => Duration::from_millis(rng.u64(100..2_500)),
    }
}

#[test]
fn kills_of_either_side_lose_nothing() -> Result<()> {
    let rounds = setting("PENSTOCK_KILL_ROUNDS", 20);
    let mut rng = seeded(1);
    let dir = tempfile::tempdir()?;
    let clips: Vec<_> = (0..(rounds / 20).clamp(4, 40))
        .map(|_| random_clip(dir.path(), &mut rng))
        .collect::<Result<_>>()?;
    let mut hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let watchers = STREAMS.map(|stream| Watcher::start(&hub.url(""), stream));
    let mut journal = Journal::default();
    let mut push: Option<Push> = None;
    let mut pushes = 0;
    let began = Instant::now();
    for round in 0..rounds {
        if push.as_mut().is_none_or(|push| push.has_ended()) {
            push = Some(random_push(&edge, &clips, &mut rng)?);
            pushes += 1;
        }
        thread::sleep(pause(&mut rng));
        let which = rng.u32(..3);
        if which != 1 {
            hub.kill()?;
        }
        if which != 0
            && let Some(push) = push.take()
        {
            push.kill()?;
            journal
                .look(&edge)
                .with_context(|| format!("round {round}"))?;
        }
        if which != 1 {
            // Sometimes killed again while it starts.
            if rng.u32(..4) == 0 {
                hub.begin()?;
                thread::sleep(Duration::from_millis(rng.u64(..60)));
                hub.kill()?;
            }
            hub.up()?;
        }
        if watchers.iter().any(Watcher::has_failed) {
            break;
        }
    }
    if let Some(push) = push {
        push.kill()?;
    }
    journal.look(&edge)?;
    let per_minute = f64::from(rounds) * 60.0 / began.elapsed().as_secs_f64();
    // What is left on the disk is shipped by the next push; it ends only when all of it is stored.
    for stream in STREAMS {
        let small = fixture("small.ts");
        let args = ["--stream", stream, "--wait", "5m", text(&small)?];
        let status = edge
            .push(&args, Stdio::null())?
            .wait(Duration::from_secs(330))?;
        ensure!(status.success(), "the last push of {stream}: {status}");
        ensure!(playlist(&hub.url(&format!("/s/{stream}/live.m3u8")))?.end_list);
    }
    let mut looks = 0;
    for watcher in watchers {
        looks += watcher.end()?.looks();
    }
    ensure!(looks >= u64::from(rounds), "{looks} looks at live lists");
    let segments = journal.compare(&edge, &hub)?;
    println!(
        "{rounds} rounds, {per_minute:.0} a minute: {segments} segments from {pushes} pushes of {} clips all at the hub; {looks} live lists looked at",
        clips.len()
    );
    Ok(())
}

/// Limits so low that both ends delete while they are killed: what is listed stays there, and what is newest.
#[test]
fn kills_during_retention_leave_what_is_listed() -> Result<()> {
    let rounds = 10 + setting("PENSTOCK_KILL_ROUNDS", 20) / 20;
    let mut rng = seeded(2);
    let dir = tempfile::tempdir()?;
    let config = "[retention]\nmax_bytes = \"3MB\"\n";
    let mut hub = Hub::start_configured(&dir.path().join("hub"), config)?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fixture("live.ts");
    let watcher = Watcher::start(&hub.url(""), STREAMS[0]);
    let limits = ["--max-bytes", "2MB", "--reserve-bytes", "1MB"];
    let mut push: Option<Push> = None;
    for _ in 0..rounds {
        if push.as_mut().is_none_or(|push| push.has_ended()) {
            let mut args = vec!["--stream", STREAMS[0]];
            args.extend(limits);
            args.push(text(&clip)?);
            push = Some(edge.push(&args, Stdio::null())?);
        }
        thread::sleep(pause(&mut rng) * 2);
        match rng.u32(..2) {
            0 => {
                hub.kill()?;
                hub.up()?;
            }
            _ => {
                if let Some(push) = push.take() {
                    push.kill()?;
                }
            }
        }
        if watcher.has_failed() {
            break;
        }
    }
    drop(push);
    let small = fixture("small.ts");
    let mut args = vec!["--stream", STREAMS[0], "--wait", "2m"];
    args.extend(limits);
    args.push(text(&small)?);
    let status = edge
        .push(&args, Stdio::null())?
        .wait(Duration::from_secs(150))?;
    ensure!(status.success(), "the last push: {status}");
    let rules = watcher.end()?;
    ensure!(rules.seen() > 0, "nothing was listed");
    // Whatever both ends still have is the same.
    let mut same = 0;
    for (number, hash) in edge.segments(STREAMS[0])? {
        let got = get(&hub.url(&format!("/s/{}/{number}.ts", STREAMS[0])))?;
        match got.status {
            200 => ensure!(
                blake3::hash(&got.body).to_string() == hash,
                "{number} differs"
            ),
            404 | 410 => continue,
            other => bail!("{number}: {other}"),
        }
        same += 1;
    }
    ensure!(same > 0, "no segment is at both ends");
    Ok(())
}

#[test]
fn kills_while_enrolling_leave_a_device_that_works() -> Result<()> {
    let rounds = 4 + setting("PENSTOCK_KILL_ROUNDS", 20) / 25;
    let mut rng = seeded(3);
    let dir = tempfile::tempdir()?;
    let mut hub = Hub::start(&dir.path().join("hub"))?;
    let small = fixture("small.ts");
    for round in 0..rounds {
        let name = format!("pole-{round}");
        let edge = Edge::unknown(&dir.path().join(&name));
        fs::create_dir_all(edge.data_dir())?;
        let url = hub.enrolment(&name, hub.link_address())?;
        let enrolling = edge.begin("enroll", &[&url])?;
        thread::sleep(Duration::from_millis(rng.u64(..60)));
        if rng.bool() {
            hub.kill()?;
            thread::sleep(Duration::from_millis(rng.u64(..30)));
            enrolling.kill()?;
            hub.up()?;
        } else {
            enrolling.kill()?;
        }
        // The same URL again: it is used up only once the edge has stored what it got.
        let (status, said) = edge.command(&["enroll", &url])?;
        ensure!(
            status.success() || said.contains("enrolled already") || said.contains("is enrolled"),
            "round {round}: {said}\n{}",
            hub.log()
        );
        let push = edge.push(
            &["--stream", &name, "--wait", "30s", text(&small)?],
            Stdio::null(),
        )?;
        let status = push.wait(Duration::from_secs(60))?;
        ensure!(status.success(), "round {round}: {status}");
    }
    let devices = hub.command(&["device", "list"])?;
    for round in 0..rounds {
        ensure!(devices.contains(&format!("pole-{round}")), "{devices}");
    }
    wait_for("all streams at the hub", Duration::from_secs(10), || {
        (0..rounds)
            .all(|r| {
                playlist(&hub.url(&format!("/s/pole-{r}/live.m3u8"))).is_ok_and(|l| l.end_list)
            })
            .then_some(())
    })
}
