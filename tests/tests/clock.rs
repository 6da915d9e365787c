//! Wall clocks that were never set, that are wrong, that step: recordings are right in the end, and what is
//! live is not touched.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    process::Stdio,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Edge, FakeClock, Hub, Line, ListRules, assert_all_at_hub, camera, fixture, numbers, playlist,
    wait_for,
};

const YEAR_S: i64 = 365 * 86_400;

fn now_ms() -> Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64)
}

/// Wall time, duration in milliseconds and whether a discontinuity stands before it, of each segment of a
/// playlist.
fn times(url: &str) -> Result<Vec<(i64, i64, bool)>> {
    let list = playlist(url)?;
    let time = |s: &m3u8_rs::MediaSegment| {
        let wall = s.program_date_time.context("a segment without a time")?;
        let ms = (f64::from(s.duration) * 1e3).round() as i64;
        Ok((wall.timestamp_millis(), ms, s.discontinuity))
    };
    list.segments.iter().map(time).collect()
}

/// When a camera was started and when its first segment was opened, by this machine's clock: its first picture
/// was taken in between.
struct Began {
    earliest: i64,
    latest: i64,
}

impl Began {
    /// Waits for the edge to open the first segment of `cam`, whose camera was started at `earliest`.
    fn wait(edge: &Edge, earliest: i64) -> Result<Self> {
        let folder = edge.data_dir().join("segments/cam");
        wait_for("the first segment", Duration::from_secs(30), || {
            folder.exists().then_some(())
        })?;
        Ok(Self {
            earliest,
            latest: now_ms()?,
        })
    }
}

/// The recording began when its camera did and has no gap: each segment follows the one before it.
fn assert_right(times: &[(i64, i64, bool)], began: &Began) -> Result<()> {
    const ROUNDING_MS: i64 = 2;
    const CLOCK_MS: i64 = 100;
    let first = times.first().context("nothing recorded")?.0;
    println!(
        "the recording begins {} ms after its camera was started, {} ms before its first segment was seen",
        first - began.earliest,
        began.latest - first
    );
    ensure!(
        (began.earliest - CLOCK_MS..=began.latest + CLOCK_MS).contains(&first),
        "{first} instead of {} to {}",
        began.earliest,
        began.latest
    );
    for pair in times.windows(2) {
        let end = pair[0].0 + pair[0].1;
        ensure!(
            (pair[1].0 - end).abs() <= ROUNDING_MS,
            "{end} and then {:?}",
            pair[1]
        );
    }
    Ok(())
}

#[test]
fn an_edge_at_1970_is_put_right_by_the_hub() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let line = Line::to(hub.link_address())?;
    let mut edge = Edge::enrol_over(&dir.path().join("edge"), &hub, "pole-7", line.address())?;
    let clock = FakeClock::new(&dir.path().join("clock"))?;
    clock.unset(Duration::from_secs(90))?;
    edge.set_clock(&clock);

    // Offline it records by the only clock that it has.
    line.cut();
    let before = now_ms()?;
    let (mut ffmpeg, stdin) = camera(&fixture("live.ts"), 30)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    let began = Began::wait(&edge, before)?;
    let folder = edge.data_dir().join("segments/cam");
    wait_for("recordings", Duration::from_secs(30), || {
        (edge.segments("cam").ok()?.len() >= 4).then_some(())
    })?;
    let live = std::fs::read_to_string(folder.join("live.m3u8"))?;
    ensure!(live.contains("1970-01-01T00:0"), "{live}");
    ensure!(folder.join("1970-01-01T00.m3u8").exists());

    // It meets the hub while it records.
    line.mend();
    let mut rules = ListRules::new();
    let url = hub.url("/s/cam/live.m3u8");
    wait_for("all at the hub", Duration::from_secs(60), || {
        rules.check(&url).ok()?;
        playlist(&url).ok().filter(|list| list.end_list)
    })?;
    rules.check(&url)?;
    let status = push.wait(Duration::from_secs(30))?;
    ffmpeg.wait()?;
    ensure!(status.success(), "{status}");
    let segments = assert_all_at_hub(&edge, &hub, "cam")?;

    let recorded = times(&hub.url("/s/cam/rec.m3u8"))?;
    ensure!(
        recorded.len() == segments,
        "{} of {segments}",
        recorded.len()
    );
    assert_right(&recorded, &began)?;
    // The live list on site went on in its run as if nothing had been: what was listed stays as it was.
    let after = std::fs::read_to_string(folder.join("live.m3u8"))?;
    let dated = |text: &str| {
        text.lines()
            .filter(|l| l.contains("DATE-TIME:1970"))
            .count()
    };
    ensure!(
        after.starts_with(live.trim_end()),
        "{live}\nbecame\n{after}"
    );
    ensure!(dated(&after) == segments, "{after}");
    // The hour lists are right too.
    ensure!(!folder.join("1970-01-01T00.m3u8").exists());
    Ok(())
}

#[test]
fn an_edge_that_is_set_without_a_hub_puts_itself_right() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut hub = Hub::start(&dir.path().join("hub"))?;
    let mut edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    hub.kill()?;
    let clock = FakeClock::new(&dir.path().join("clock"))?;
    clock.unset(Duration::from_secs(90))?;
    edge.set_clock(&clock);
    let before = now_ms()?;
    let (mut ffmpeg, stdin) = camera(&fixture("live.ts"), 20)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    let began = Began::wait(&edge, before)?;
    let folder = edge.data_dir().join("segments/cam");
    wait_for("recordings in 1970", Duration::from_secs(30), || {
        let list = std::fs::read_to_string(folder.join("1970-01-01T00.m3u8")).ok()?;
        (list.matches(".ts").count() >= 3).then_some(())
    })?;
    // NTP has found the time.
    clock.set(0)?;
    wait_for(
        "the hour list at the right hour",
        Duration::from_secs(20),
        || (!folder.join("1970-01-01T00.m3u8").exists()).then_some(()),
    )?;
    hub.up()?;
    let status = push.wait(Duration::from_secs(90))?;
    ffmpeg.wait()?;
    ensure!(status.success(), "{status}");
    let segments = assert_all_at_hub(&edge, &hub, "cam")?;
    let recorded = times(&hub.url("/s/cam/rec.m3u8"))?;
    ensure!(
        recorded.len() == segments,
        "{} of {segments}",
        recorded.len()
    );
    assert_right(&recorded, &began)
}

#[test]
fn steps_on_either_side_lose_nothing_and_move_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub_clock = FakeClock::new(&dir.path().join("hub-clock"))?;
    let edge_clock = FakeClock::new(&dir.path().join("edge-clock"))?;
    let mut hub = Hub::start_by(&dir.path().join("hub"), Some(&hub_clock))?;
    let mut edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    edge.set_clock(&edge_clock);
    let before = now_ms()?;
    let (mut ffmpeg, stdin) = camera(&fixture("live.ts"), 45)?;
    let push = edge.push(&["--stream", "cam", "-"], stdin)?;
    let began = Began::wait(&edge, before)?;
    let url = hub.url("/s/cam/live.m3u8");
    wait_for("the first segments", Duration::from_secs(30), || {
        (numbers(&url).len() >= 2).then_some(())
    })?;
    let mut rules = ListRules::new();
    for step in [
        3,
        -3,
        7_200,
        -7_200,
        YEAR_S,
        -YEAR_S,
        20 * YEAR_S,
        -20 * YEAR_S,
    ] {
        edge_clock.set(step)?;
        thread::sleep(Duration::from_millis(1_200));
        rules.check(&url)?;
        hub_clock.set(-step)?;
        thread::sleep(Duration::from_millis(1_200));
        rules.check(&url)?;
        // A hub that comes back with a wrong clock: the edge's own clock, right before, says otherwise.
        if step.abs() == YEAR_S {
            edge_clock.set(0)?;
            hub.kill()?;
            hub.up()?;
            thread::sleep(Duration::from_millis(1_500));
            rules.check(&url)?;
        }
    }
    // Years behind, both; the stream ends so.
    let status = push.wait(Duration::from_secs(90))?;
    ffmpeg.wait()?;
    ensure!(status.success(), "{status}");
    rules.check(&url)?;
    ensure!(playlist(&url)?.end_list);
    let segments = assert_all_at_hub(&edge, &hub, "cam")?;
    let recorded = times(&hub.url("/s/cam/rec.m3u8"))?;
    ensure!(
        recorded.len() == segments,
        "{} of {segments}",
        recorded.len()
    );
    assert_right(&recorded, &began)?;
    // Another device may enrol, a file may be pushed: nothing else hangs on the clock.
    hub_clock.set(0)?;
    edge_clock.set(0)?;
    let small = fixture("small.ts");
    let args = ["--stream", "late", small.to_str().context("path")?];
    let late = edge.push(&args, Stdio::null())?;
    ensure!(late.wait(Duration::from_secs(60))?.success());
    Ok(())
}
