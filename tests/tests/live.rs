//! Live streams from standard input: soon at the hub, whole after cuts.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Edge, Hub, Line, ListRules, assert_all_at_hub, camera, fixture, gstreamer_pictures, numbers,
    playlist, wait_for,
};

/// Watches a list every few milliseconds: when each segment was first seen.
fn watch(url: String, stop: Arc<AtomicBool>) -> thread::JoinHandle<HashMap<u64, Instant>> {
    thread::spawn(move || {
        let mut seen = HashMap::new();
        while !stop.load(Ordering::Relaxed) {
            for number in numbers(&url) {
                seen.entry(number).or_insert_with(Instant::now);
            }
            thread::sleep(Duration::from_millis(4));
        }
        seen
    })
}

#[test]
fn a_live_stream_is_listed_at_the_hub_as_soon_as_it_is_cut() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let (mut ffmpeg, stdin) = camera(&fixture("live.ts"), 24)?;
    let push = edge.push(&["--stream", "cam", "--http", "127.0.0.1:0", "-"], stdin)?;
    // The edge prints where it listens.
    let edge_url = wait_for(
        "the edge's address in its log",
        Duration::from_secs(10),
        || {
            let log = push.log();
            let at = log.find("http://127.0.0.1:")?;
            Some(
                log[at..]
                    .split(|c: char| c.is_whitespace() || c == '"')
                    .next()?
                    .trim_end_matches('/')
                    .to_owned(),
            )
        },
    )?;
    let stop = Arc::new(AtomicBool::new(false));
    let at_edge = watch(format!("{edge_url}/s/cam/live.m3u8"), stop.clone());
    let at_hub = watch(hub.url("/s/cam/live.m3u8"), stop.clone());
    let status = push.wait(Duration::from_secs(60))?;
    ffmpeg.wait()?;
    ensure!(status.success(), "{status}");
    stop.store(true, Ordering::Relaxed);
    let (at_edge, at_hub) = (
        at_edge.join().unwrap_or_default(),
        at_hub.join().unwrap_or_default(),
    );
    assert!(
        at_edge.len() >= 10 && at_hub.len() >= at_edge.len(),
        "{} and {}",
        at_edge.len(),
        at_hub.len()
    );
    let mut late: Vec<u128> = at_edge
        .iter()
        .filter_map(|(n, t)| Some(at_hub.get(n)?.saturating_duration_since(*t).as_millis()))
        .collect();
    late.sort_unstable();
    println!("from cut to listed at the hub, ms: {late:?}");
    let list = playlist(&hub.url("/s/cam/live.m3u8"))?;
    assert!(list.end_list);
    let seconds: f32 = list.segments.iter().map(|s| s.duration).sum();
    assert!((seconds - 24.0).abs() < 0.5, "{seconds} s listed of 24");
    assert_all_at_hub(&edge, &hub, "cam")?;
    Ok(())
}

#[test]
fn gstreamer_plays_a_live_stream() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fixture("h264-25.mp4");
    let args = [
        "--stream",
        "cam",
        "--realtime",
        clip.to_str().context("path")?,
    ];
    let push = edge.push(&args, Stdio::null())?;
    let url = hub.url("/s/cam/live.m3u8");
    wait_for("three segments", Duration::from_secs(20), || {
        (numbers(&url).len() >= 3).then_some(())
    })?;
    // More than was listed when it began: six seconds are 150 pictures.
    let shown = gstreamer_pictures(&url, 400)?;
    ensure!(shown >= 300, "{shown} pictures");
    push.kill()
}

#[test]
fn a_cut_line_heals() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let line = Line::to(hub.link_address())?;
    let edge = Edge::enrol_over(&dir.path().join("edge"), &hub, "pole-7", line.address())?;
    let (mut ffmpeg, stdin) = camera(&fixture("live.ts"), 34)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    let url = hub.url("/s/cam/live.m3u8");
    wait_for("the first segments", Duration::from_secs(20), || {
        (numbers(&url).len() >= 3).then_some(())
    })?;
    let mut rules = ListRules::new();
    rules.check(&url)?;
    line.cut();
    thread::sleep(Duration::from_secs(20));
    let during = numbers(&url).len();
    line.mend();
    let back = Instant::now();
    wait_for(
        "more segments after the cut",
        Duration::from_secs(20),
        || (numbers(&url).len() > during).then_some(()),
    )?;
    println!(
        "first new segment {:?} after the line's return",
        back.elapsed()
    );
    rules.check(&url)?;
    let status = push.wait(Duration::from_secs(60))?;
    ffmpeg.wait()?;
    ensure!(status.success(), "{status}");
    rules.check(&url)?;
    let segments = assert_all_at_hub(&edge, &hub, "cam")?;
    let list = playlist(&url)?;
    ensure!(
        list.end_list && list.segments.len() == segments,
        "{} of {segments} listed",
        list.segments.len()
    );
    ensure!(line.forwarded() > 0);
    Ok(())
}

#[test]
fn a_clean_stop_ends_the_stream_and_keeps_the_rest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fixture("live.ts");
    let clip = clip.to_str().context("path")?;
    let push = edge.push(&["--stream", "cam", "--realtime", clip], Stdio::null())?;
    let url = hub.url("/s/cam/live.m3u8");
    wait_for("the first segment", Duration::from_secs(20), || {
        (!numbers(&url).is_empty()).then_some(())
    })?;
    // The file was not read to its end: what was cut is on the hub, and the exit code says that not all is.
    ensure!(push.stop()?.code() == Some(1));
    ensure!(playlist(&url)?.end_list, "SIGTERM ends the stream");
    assert_all_at_hub(&edge, &hub, "cam")?;
    // The hub ends cleanly too.
    ensure!(hub.stop()?.success());
    // Without a hub the segments stay, and the edge says how many.
    let small = fixture("small.ts");
    let (status, text) = edge.command(&[
        "push",
        "--wait",
        "3s",
        "--stream",
        "late",
        small.to_str().context("path")?,
    ])?;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("segments stay on this disk"), "{text}");
    // `run` ships what is left.
    hub.up()?;
    let run = edge.run(&["--http", "127.0.0.1:0"])?;
    let late = hub.url("/s/late/live.m3u8");
    wait_for("the rest at the hub", Duration::from_secs(30), || {
        playlist(&late).ok().filter(|l| l.end_list)
    })?;
    assert_all_at_hub(&edge, &hub, "late")?;
    ensure!(run.stop()?.success());
    Ok(())
}
