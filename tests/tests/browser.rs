//! The pages in headless Chromium: a click plays a live stream and a recording; the last hour of a link is plotted.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use system_tests::{Edge, Hub, fixture, playlist, tool, wait_for};

/// What a script saw in Chromium, without an error on the page.
fn look(what: &str, script: &str, args: &[&str]) -> Result<serde_json::Value> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("browser");
    let out = tool("node")
        .arg(folder.join(script))
        .args(args)
        .output()
        .context("node")?;
    ensure!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let seen: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    println!("{what}: {seen}");
    ensure!(
        seen["errors"].as_array().is_some_and(Vec::is_empty),
        "{seen}"
    );
    Ok(seen)
}

fn play(page: &str, stream: &str, mode: &str, seconds: u32) -> Result<serde_json::Value> {
    let seen = look(
        mode,
        "play.mjs",
        &[page, stream, mode, &seconds.to_string()],
    )?;
    ensure!(
        seen["after"]["fatal"].is_null() && seen["after"]["error"].is_null(),
        "{seen}"
    );
    Ok(seen)
}

/// What is drawn of a link: `ready` once each plot named has so many points.
fn plots(page: &str, points: u32, seconds: u32) -> Result<serde_json::Value> {
    let (points, seconds) = (points.to_string(), seconds.to_string());
    look("plots", "plots.mjs", &[page, &points, &seconds])
}

/// Asks the pages of hub and edge while live video comes.
#[test]
fn chromium_plots_the_last_hour_of_a_link() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let live = fixture("live.ts");
    let args = [
        "--stream",
        "live",
        "--realtime",
        "--http",
        "127.0.0.1:0",
        live.to_str().context("path")?,
    ];
    let push = edge.push(&args, Stdio::null())?;
    let seen = plots(&hub.admin_url("/"), 3, 50)?;
    ensure!(seen["device"] == "pole-7", "{seen}");
    // Points of each line, as drawn: paced, sent, media; lost; round trip; lag; backlog.
    for (plot, line) in [
        ("rate", 0),
        ("rate", 1),
        ("rate", 2),
        ("loss", 0),
        ("delay", 0),
        ("lag", 0),
        ("backlog", 0),
    ] {
        let points = seen["plots"][plot]["points"][line].as_f64();
        ensure!(points.is_some_and(|n| n >= 2.0), "{plot} {line}: {seen}");
        ensure!(seen["plots"][plot]["height"].as_f64() > Some(100.0));
    }
    // What is drawn is what the API tells.
    let told = system_tests::get(&hub.admin_url("/api/v1/devices/pole-7/link"))?;
    let told: serde_json::Value = serde_json::from_slice(&told.body)?;
    let last = told["samples"].as_array().and_then(|all| all.last());
    let last = last.context("a sample")?;
    ensure!(last["media_bps"].as_f64() > Some(0.0), "{last}");
    ensure!(last["shares"]["live"].as_f64() > Some(0.5), "{last}");
    ensure!(told["streams"][0]["live"] == true, "{told}");

    let log = push.log();
    let page = served_at(&log)?;
    let seen = plots(&format!("{page}link"), 2, 30)?;
    ensure!(seen["device"] == "pole-7", "{seen}");
    ensure!(
        seen["plots"]["rate"]["points"][1].as_f64() >= Some(1.0),
        "{seen}"
    );
    ensure!(
        seen["plots"]["lag"].is_null(),
        "only the hub knows it: {seen}"
    );
    push.kill()?;
    Ok(())
}

/// The address of an edge's page, from its log.
fn served_at(log: &str) -> Result<&str> {
    let at = log
        .rfind("http://127.0.0.1:")
        .context("the edge's address in its log")?;
    log[at..]
        .split(|c: char| c.is_whitespace() || c == '"')
        .next()
        .context("url")
}

fn number(seen: &serde_json::Value, when: &str, what: &str) -> Result<f64> {
    seen[when][what]
        .as_f64()
        .with_context(|| format!("no {what} {when}: {seen}"))
}

#[test]
fn chromium_plays_live_and_recorded_streams() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let recorded = fixture("h264-2997-bframes.mp4");
    let args = ["--stream", "recorded", recorded.to_str().context("path")?];
    ensure!(
        edge.push(&args, Stdio::null())?
            .wait(Duration::from_secs(60))?
            .success()
    );

    let live = fixture("live.ts");
    let args = [
        "--stream",
        "live",
        "--realtime",
        "--http",
        "127.0.0.1:0",
        live.to_str().context("path")?,
    ];
    let push = edge.push(&args, Stdio::null())?;
    let url = hub.url("/s/live/live.m3u8");
    wait_for("four live segments", Duration::from_secs(30), || {
        playlist(&url).ok().filter(|l| l.segments.len() >= 4)
    })?;

    let seen = play(&hub.url("/"), "live", "live", 6)?;
    let advanced = number(&seen, "after", "time")? - number(&seen, "before", "time")?;
    ensure!(advanced > 3.0, "played {advanced} s in 6: {seen}");
    let pictures = number(&seen, "after", "frames")? - number(&seen, "before", "frames")?;
    ensure!(pictures > 60.0, "{pictures} pictures in 6 s: {seen}");
    let latency = number(&seen, "after", "latency")?;
    let target = number(&seen, "after", "target")?;
    ensure!(
        latency <= 3.0 * target + 1.0,
        "{latency} s behind at a target of {target} s"
    );

    let seen = play(&hub.url("/"), "recorded", "recording", 4)?;
    let advanced = number(&seen, "after", "time")? - number(&seen, "before", "time")?;
    ensure!(advanced > 2.0, "played {advanced} s in 4: {seen}");
    let pictures = number(&seen, "after", "frames")? - number(&seen, "before", "frames")?;
    ensure!(pictures > 40.0, "{pictures} pictures in 4 s: {seen}");

    // The edge's own page plays the same.
    let log = push.log();
    let seen = play(served_at(&log)?, "live", "live", 4)?;
    let pictures = number(&seen, "after", "frames")? - number(&seen, "before", "frames")?;
    ensure!(pictures > 40.0, "{pictures} pictures in 4 s: {seen}");
    push.kill()?;
    Ok(())
}
