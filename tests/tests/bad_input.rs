//! What bad input gets: a clear word with its place, what was good is kept, nothing dies.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use system_tests::{Edge, Hub, fixture, frames, get, playlist};

const LIMIT: Duration = Duration::from_secs(60);

fn site(dir: &std::path::Path) -> Result<(Hub, Edge)> {
    let hub = Hub::start(&dir.join("hub"))?;
    let edge = Edge::enrol(&dir.join("edge"), &hub, "pole-7")?;
    Ok((hub, edge))
}

#[test]
fn files_that_are_no_video_are_refused_with_a_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (hub, edge) = site(dir.path())?;
    for (name, reason) in [
        ("empty.mp4", "empty"),
        ("text.mp4", "neither"),
        ("no-moov.mp4", "moov"),
    ] {
        let file = fixture(name);
        let (status, text) =
            edge.command(&["push", "--stream", "bad", file.to_str().context("path")?])?;
        assert_eq!(status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(name), "{name} is not named: {text}");
        assert!(
            text.to_lowercase().contains(reason),
            "{name}: no {reason:?} in: {text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }
    let answer = get(&hub.url("/s/bad/live.m3u8"))?;
    assert_eq!(answer.status, 404, "{}", answer.text());
    Ok(())
}

#[test]
fn what_was_good_in_a_damaged_file_is_kept() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (hub, edge) = site(dir.path())?;
    for (name, source, share) in [
        ("truncated.mp4", "h264-2997-bframes.mp4", 0.4),
        ("lying.mp4", "h264-2997-bframes.mp4", 0.0),
        ("corrupt.ts", "h264-bframes.ts", 0.6),
        ("lost-sync.ts", "h264-bframes.ts", 0.6),
    ] {
        let file = fixture(name);
        let stream = name.replace('.', "-");
        let (status, text) =
            edge.command(&["push", "--stream", &stream, file.to_str().context("path")?])?;
        assert!(!text.contains("panicked"), "{name}: {text}");
        assert!(
            status.code().is_some_and(|code| code <= 1),
            "{name}: {status}"
        );
        assert!(text.contains(name), "{name} is not named in: {text}");
        if share > 0.0 {
            let whole = frames(fixture(source).to_str().context("path")?)?.len();
            let list = playlist(&hub.url(&format!("/s/{stream}/rec.m3u8")))?;
            assert!(list.end_list, "{name}");
            let seconds: f32 = list.segments.iter().map(|s| s.duration).sum();
            let rate = if source.contains("2997") { 30.0 } else { 25.0 };
            assert!(
                f64::from(seconds) * rate > whole as f64 * share,
                "{name}: only {seconds} s kept"
            );
        }
    }
    // The hub is as well as before.
    let good = fixture("small.ts");
    let status = edge
        .push(
            &["--stream", "after", good.to_str().context("path")?],
            Stdio::null(),
        )?
        .wait(LIMIT)?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn a_file_from_before_1970_harms_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (hub, edge) = site(dir.path())?;
    let old = dir.path().join("old.ts");
    std::fs::copy(fixture("small.ts"), &old)?;
    // Its modification time is its end: it begins before 1970.
    let file = std::fs::File::options().write(true).open(&old)?;
    file.set_modified(std::time::UNIX_EPOCH)?;
    let args = [
        "--stream",
        "old",
        "--start",
        "mtime",
        old.to_str().context("path")?,
    ];
    let status = edge.push(&args, Stdio::null())?.wait(LIMIT)?;
    ensure!(status.success(), "{status}");
    let list = playlist(&hub.url("/s/old/rec.m3u8"))?;
    assert!(list.end_list && !list.segments.is_empty());
    Ok(())
}

#[test]
fn names_addresses_and_keys_that_are_wrong_are_refused_with_the_rule() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (hub, edge) = site(dir.path())?;
    let clip = fixture("small.ts");
    let clip = clip.to_str().context("path")?;
    for name in ["../up", "a/b", "Gate", "🎥", ""] {
        let (status, text) = edge.command(&["push", "--stream", name, clip])?;
        assert_eq!(status.code(), Some(2), "{name:?}: {text}");
        assert!(
            text.contains("a-z"),
            "{name:?}: the rule is not told: {text}"
        );
    }
    let (status, text) = edge.command(&[
        "push",
        "--stream",
        "cam",
        "rtsp://user:secret@10.0.0.9/main",
    ])?;
    assert!(!status.success());
    assert!(text.contains("rtsp") && !text.contains("secret"), "{text}");

    // A token is used once.
    let url = hub.enrolment("shed", hub.link_address())?;
    let first = Edge::unknown(&dir.path().join("first"));
    let second = Edge::unknown(&dir.path().join("second"));
    let (status, text) = first.command(&["enroll", &url])?;
    assert!(status.success(), "{text}");
    let (status, text) = second.command(&["enroll", &url])?;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("used"), "{text}");

    // A stream belongs to who had it first.
    let (status, text) = edge.command(&["push", "--stream", "mine", clip])?;
    assert!(status.success(), "{text}");
    let (status, text) = first.command(&["push", "--wait", "5s", "--stream", "mine", clip])?;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("pole-7"), "the owner is not named: {text}");
    assert!(hub.log().contains("mine"), "the hub is silent about it");

    // A disabled device hears so, and is heard again once enabled.
    hub.command(&["device", "disable", "shed"])?;
    std::thread::sleep(Duration::from_secs(3));
    let (status, text) = first.command(&["push", "--wait", "5s", "--stream", "other", clip])?;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("disabled"), "{text}");
    assert!(text.contains("stay"), "{text}");
    hub.command(&["device", "enable", "shed"])?;
    std::thread::sleep(Duration::from_secs(3));
    let (status, text) = first.command(&["push", "--stream", "again", clip])?;
    assert!(status.success(), "{text}");

    // A wrong hub key meets silence, and the edge says what that can be.
    let (head, token) = url.split_once('#').context("url")?;
    let (address, key) = head.rsplit_once('/').context("url")?;
    let mut key: Vec<char> = key.chars().collect();
    key[3] = if key[3] == 'a' { 'b' } else { 'a' };
    let wrong = format!("{address}/{}#{token}", key.into_iter().collect::<String>());
    let (status, text) = Edge::unknown(&dir.path().join("third")).command(&["enroll", &wrong])?;
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(
        text.contains("unreachable, UDP blocked, or its key is not the one enrolled"),
        "{text}"
    );
    Ok(())
}

#[test]
fn garbage_on_the_wire_changes_nothing_but_a_counter() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (hub, edge) = site(dir.path())?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in 0..5_000usize {
        let mut datagram = vec![0u8; i % 1_500];
        for byte in &mut datagram {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        if let Some(first) = datagram.first_mut() {
            *first %= 8;
        }
        let _ = socket.send_to(&datagram, hub.link_address());
    }
    let clip = fixture("small.ts");
    let status = edge
        .push(
            &["--stream", "calm", clip.to_str().context("path")?],
            Stdio::null(),
        )?
        .wait(LIMIT)?;
    ensure!(status.success(), "{status}");
    let metrics = get(&hub.admin_url("/metrics"))?.text();
    let bad: f64 = metrics
        .lines()
        .filter(|l| l.starts_with("penstock_link_datagrams_bad"))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert!(bad >= 1_000.0, "{bad} counted; metrics:\n{metrics}");
    Ok(())
}
