//! Disks that fail, with whole programs: full, without inodes, read-only, gone and back, slow, and full at
//! one write after another. What the log says, and that the hub has all it was owed in the end.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Edge, Faults, Hub, Mount, Push, fixture, get, may_mount, playlist, wait_for, wait_for_log,
};

/// What the log says when memory takes over, and when it is over.
const BEGINS: &str = "the disk fails: ";
const ENDS: &str = "the disk works again: ";

/// A camera that plays for so many seconds at its own pace.
fn camera(seconds: u32) -> Result<(Child, Stdio)> {
    system_tests::camera(&fixture("live.ts"), seconds)
}

/// An edge on the disk at `dir` whose log lies elsewhere.
fn edge_on(dir: &Path, work: &Path, hub: &Hub) -> Result<Edge> {
    let mut edge = Edge::enrol(dir, hub, "pole-7")?;
    edge.log_to(&work.join("edge.log"));
    edge.set_env("PENSTOCK_RESERVE_BYTES", "0");
    Ok(edge)
}

/// Seconds of the stream's recording at the hub, which must have no hole.
fn whole_seconds(hub: &Hub, stream: &str) -> Result<f32> {
    let url = hub.url(&format!("/s/{stream}/rec.m3u8"));
    let list = playlist(&url)?;
    ensure!(list.end_list, "the recording is not ended");
    let cuts = list.segments.iter().filter(|s| s.discontinuity).count();
    ensure!(cuts == 0, "{cuts} discontinuities");
    Ok(list.segments.iter().map(|s| s.duration).sum())
}

/// Every segment on the edge's disk is at the hub, byte for byte.
fn assert_same(edge: &Edge, hub: &Hub, stream: &str) -> Result<usize> {
    let here = edge.segments(stream)?;
    for (number, hash) in &here {
        let got = get(&hub.url(&format!("/s/{stream}/{number}.ts")))?;
        ensure!(got.status == 200, "segment {number}: {}", got.status);
        let there = blake3::hash(&got.body).to_string();
        ensure!(there == *hash, "segment {number} differs");
    }
    Ok(here.len())
}

fn count(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

/// A stream is at the hub and goes on there.
fn segments_at(hub: &Hub, stream: &str) -> usize {
    let list = playlist(&hub.url(&format!("/s/{stream}/live.m3u8")));
    list.map_or(0, |list| list.segments.len())
}

fn wait_for_segments(hub: &Hub, stream: &str, at_least: usize) -> Result<()> {
    wait_for("segments at the hub", Duration::from_secs(60), || {
        (segments_at(hub, stream) >= at_least).then_some(())
    })
}

fn end_well(push: Push, mut ffmpeg: Child) -> Result<String> {
    ffmpeg.wait()?;
    let log = push.log();
    let path = push.log_path();
    let status = push.wait(Duration::from_secs(90))?;
    let log_after = fs::read_to_string(path).unwrap_or(log);
    ensure!(status.success(), "push: {status}\n{log_after}");
    Ok(log_after)
}

/// Live goes on while something fails, and is whole on both disks once it works again.
fn live_through(
    hub: &Hub,
    edge: &Edge,
    mut fail: impl FnMut() -> Result<()>,
    mut mend: impl FnMut() -> Result<()>,
) -> Result<String> {
    let (ffmpeg, stdin) = camera(24)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    wait_for_segments(hub, "cam", 1)?;
    fail()?;
    wait_for_log(|| push.log(), BEGINS)?;
    let before = segments_at(hub, "cam");
    // The hub goes on getting them, from memory.
    wait_for_segments(hub, "cam", before + 3)?;
    mend()?;
    wait_for_log(|| push.log(), ENDS)?;
    let log = end_well(push, ffmpeg)?;
    ensure!(count(&log, BEGINS) == 1 && count(&log, ENDS) == 1, "{log}");
    ensure!(log.contains("0 were lost"), "{log}");
    let seconds = whole_seconds(hub, "cam")?;
    ensure!(seconds > 23.0, "only {seconds} s of 24 are at the hub");
    // What went through memory is on the edge's disk too.
    let here = assert_same(edge, hub, "cam")?;
    ensure!(here == segments_at(hub, "cam"), "{here} on the edge's disk");
    Ok(log)
}

#[test]
fn live_goes_on_while_the_edges_disk_is_full() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disk = Mount::tmpfs(&dir.path().join("edge"), "size=24m")?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = edge_on(&dir.path().join("edge"), dir.path(), &hub)?;
    let filler = dir.path().join("edge/filler");
    let fill = || disk.fill().map(|_| ());
    let log = live_through(&hub, &edge, fill, || Ok(fs::remove_file(&filler)?))?;
    ensure!(log.contains("trouble=\"full\""), "{log}");
    Ok(())
}

#[test]
fn an_edge_starts_on_a_full_disk_and_goes_on() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disk = Mount::tmpfs(&dir.path().join("edge"), "size=24m")?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = edge_on(&dir.path().join("edge"), dir.path(), &hub)?;
    let (ffmpeg, stdin) = camera(8)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    wait_for_segments(&hub, "cam", 2)?;
    // Killed with a segment open, which the next start must close.
    push.kill()?;
    drop(ffmpeg);
    disk.fill()?;
    let (ffmpeg, stdin) = camera(12)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    let log = end_well(push, ffmpeg)?;
    ensure!(log.contains("the disk is full: making room"), "{log}");
    ensure!(count(&log, "dropped, each a hole") == 0, "{log}");
    let list = playlist(&hub.url("/s/cam/live.m3u8"))?;
    let seconds: f32 = list.segments.iter().map(|s| s.duration).sum();
    ensure!(list.end_list && seconds > 11.0, "only {seconds} s");
    Ok(())
}

#[test]
fn live_goes_on_without_inodes() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disk = Mount::tmpfs(&dir.path().join("edge"), "size=24m,nr_inodes=80")?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = edge_on(&dir.path().join("edge"), dir.path(), &hub)?;
    let fillers = dir.path().join("edge/fillers");
    let fill = || disk.fill_inodes().map(|_| ());
    let log = live_through(&hub, &edge, fill, || Ok(fs::remove_dir_all(&fillers)?))?;
    ensure!(log.contains("trouble=\"full\""), "{log}");
    Ok(())
}

#[test]
fn live_goes_on_while_the_edges_disk_is_away_and_nothing_is_written_below_it() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("edge");
    let disk = Mount::bound(&dir.path().join("disk"), &at)?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = edge_on(&at, dir.path(), &hub)?;
    let mend = || {
        let below: Vec<_> = fs::read_dir(&at)?.collect();
        ensure!(below.is_empty(), "written below the mount: {below:?}");
        disk.bring_back()
    };
    let log = live_through(&hub, &edge, || disk.take_away(), mend)?;
    ensure!(log.contains("is gone: is its disk mounted?"), "{log}");
    Ok(())
}

#[test]
fn live_ends_well_on_a_disk_that_turned_read_only_and_a_file_is_refused() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("edge");
    let disk = Mount::ext4(&dir.path().join("image"), &at, 64)?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = edge_on(&at, dir.path(), &hub)?;
    let (ffmpeg, stdin) = camera(20)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    wait_for_segments(&hub, "cam", 2)?;
    disk.turn_read_only()?;
    wait_for_log(|| push.log(), BEGINS)?;
    let log = end_well(push, ffmpeg)?;
    ensure!(count(&log, BEGINS) == 1, "{log}");
    ensure!(log.contains("trouble=\"broken\""), "{log}");
    let seconds = whole_seconds(&hub, "cam")?;
    ensure!(seconds > 19.0, "only {seconds} s of 20 are at the hub");

    let file = fixture("small.ts");
    let file = file.to_str().context("path")?;
    let (status, text) = edge.command(&["push", "--stream", "file", file])?;
    ensure!(status.code() == Some(1), "{status}: {text}");
    ensure!(text.contains("Read-only file system"), "{text}");
    Ok(())
}

#[test]
fn a_slow_disk_holds_up_neither_camera_nor_hub() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let at = dir.path().join("edge");
    let mut edge = edge_on(&at, dir.path(), &hub)?;
    let faults = Faults::build(dir.path())?;
    for (name, value) in faults.env(&at) {
        edge.set_env(name, &value);
    }
    let (mut ffmpeg, stdin) = camera(30)?;
    let began = Instant::now();
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    wait_for_segments(&hub, "cam", 1)?;
    faults.slow(3_000)?;
    wait_for_log(|| push.log(), BEGINS)?;
    ensure!(push.log().contains("trouble=\"slow\""), "{}", push.log());
    let before = segments_at(&hub, "cam");
    wait_for_segments(&hub, "cam", before + 3)?;
    ffmpeg.wait()?;
    // Thirty seconds of video; what is over is what the camera was held up.
    let held_up = began.elapsed().saturating_sub(Duration::from_secs(30));
    ensure!(held_up < Duration::from_secs(15), "held up for {held_up:?}");
    faults.none()?;
    let log = end_well(push, ffmpeg)?;
    let seconds = whole_seconds(&hub, "cam")?;
    ensure!(
        seconds > 29.0,
        "only {seconds} s of 30 are at the hub\n{log}"
    );
    assert_same(&edge, &hub, "cam")?;
    Ok(())
}

#[test]
fn full_at_any_write_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let at = dir.path().join("edge");
    let mut edge = edge_on(&at, dir.path(), &hub)?;
    let faults = Faults::build(dir.path())?;
    for (name, value) in faults.env(&at) {
        edge.set_env(name, &value);
    }
    // Opening the store takes some writes, which may fail and say so; from there on none ends anything.
    let mut recorded = 0;
    for (round, nth) in [60, 90, 120, 150, 180, 220, 260].into_iter().enumerate() {
        let stream = format!("cam-{round}");
        faults.fail(28, nth, 4)?;
        let before = fs::read_to_string(dir.path().join("edge.log")).map_or(0, |log| log.len());
        let clip = fs::File::open(fixture("small.ts"))?;
        let push = edge.push(&["--stream", &stream, "-"], Stdio::from(clip))?;
        let log = push.log_path();
        let status = push.wait(Duration::from_secs(90))?;
        let log = fs::read_to_string(log)?[before..].to_owned();
        if !log.contains("a run begins") {
            ensure!(log.contains("full") || log.contains("No space"), "{log}");
            continue;
        }
        ensure!(status.success(), "write {nth}: {status}\n{log}");
        whole_seconds(&hub, &stream)?;
        ensure!(assert_same(&edge, &hub, &stream)? > 0, "nothing was cut");
        recorded += 1;
    }
    ensure!(recorded >= 3, "only {recorded} got as far as recording");
    let log = fs::read_to_string(dir.path().join("edge.log"))?;
    ensure!(count(&log, BEGINS) > 0, "no write failed: {log}");
    Ok(())
}

/// A hub whose disk fails says so once, serves what it has, and goes on without a restart.
fn hub_through(
    dir: &Path,
    hub: &Hub,
    fail: impl FnOnce() -> Result<()>,
    mend: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let edge = Edge::enrol(&dir.join("edge"), hub, "pole-7")?;
    let (ffmpeg, stdin) = camera(24)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    wait_for_segments(hub, "cam", 2).with_context(|| push.log() + &hub.log())?;
    fail()?;
    wait_for_log(|| hub.log(), BEGINS)?;
    let ready = get(&hub.url("/readyz"))?;
    ensure!(ready.status == 503, "{}: {}", ready.status, ready.text());
    ensure!(ready.text().contains("the disk fails"), "{}", ready.text());
    ensure!(get(&hub.url("/healthz"))?.status == 200);
    ensure!(get(&hub.url("/s/cam/live.m3u8"))?.status == 200);
    sleep(Duration::from_secs(4));
    mend()?;
    wait_for_log(|| hub.log(), "the disk works again")?;
    end_well(push, ffmpeg)?;
    let log = hub.log();
    ensure!(count(&log, BEGINS) == 1, "{log}");
    ensure!(get(&hub.url("/readyz"))?.status == 200);
    let seconds = whole_seconds(hub, "cam")?;
    ensure!(seconds > 23.0, "only {seconds} s of 24 are at the hub");
    assert_same(&edge, hub, "cam")?;
    Ok(())
}

#[test]
fn a_full_hub_says_so_serves_on_and_recovers() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("hub");
    let disk = Mount::tmpfs(&at, "size=32m")?;
    let mut hub = Hub::start_logging(&at, &dir.path().join("hub.log"))?;
    let filler = at.join("filler");
    let fill = || disk.fill().map(|_| ());
    let done = hub_through(dir.path(), &hub, fill, || Ok(fs::remove_file(&filler)?));
    hub.kill()?;
    done
}

#[test]
fn a_hub_whose_disk_is_away_writes_nothing_below_it_and_recovers() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("hub");
    let disk = Mount::bound(&dir.path().join("disk"), &at)?;
    let mut hub = Hub::start_logging(&at, &dir.path().join("hub.log"))?;
    let mend = || {
        let below: Vec<_> = fs::read_dir(&at)?.collect();
        ensure!(below.is_empty(), "written below the mount: {below:?}");
        disk.bring_back()
    };
    let done = hub_through(dir.path(), &hub, || disk.take_away(), mend);
    hub.kill()?;
    done
}
