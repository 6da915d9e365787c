//! A hostile network: floods beside live video, connections that only take places. All is counted, memory
//! stays bounded, and devices and viewers go on. Nothing here asserts a speed; `scripts/bench flood` measures.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Edge, Flood, Hub, Line, camera, fixture, get, get_with, hub_key, playlist, wait_for,
};

const LIMIT: Duration = Duration::from_secs(120);

/// One value of `/metrics`, by the start of its line.
fn metric(hub: &Hub, start: &str) -> Result<f64> {
    let text = get(&hub.admin_url("/metrics"))?.text();
    text.lines()
        .find(|line| line.starts_with(start))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .with_context(|| format!("no {start} in\n{text}"))
}

#[test]
fn a_flood_beside_a_live_push_costs_it_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let line = Line::to(hub.link_address())?;
    let edge = Edge::enrol_over(&dir.path().join("edge"), &hub, "pole-7", line.address())?;
    let key = hub_key(&hub.enrolment("unused", hub.link_address())?)?;
    let args = ["--stream", "gate", "-"];
    // Once beforehand, so that the memory of ordinary work is known.
    let (mut ffmpeg, video) = camera(&fixture("live.ts"), 4)?;
    let push = edge.push(&args, video)?;
    ffmpeg.wait()?;
    ensure!(push.wait(LIMIT)?.success());
    let ordinary = hub.resident_bytes()?;

    let before = line.forwarded();
    let (mut ffmpeg, video) = camera(&fixture("live.ts"), 10)?;
    let push = edge.push(&args, video)?;
    wait_for("a session to look into", LIMIT, || {
        (line.forwarded() > before + 50).then_some(())
    })?;
    let flood = Flood {
        hub: hub.link_address(),
        hub_key: key,
        captured: line.captured(),
        per_second: 10_000,
        time: Duration::from_secs(4),
    };
    let flood = thread::spawn(move || flood.run());
    while !flood.is_finished() {
        let answer = get(&hub.url("/s/gate/live.m3u8"))?;
        ensure!(answer.status == 200, "{}", answer.text());
        thread::sleep(Duration::from_millis(100));
    }
    let sent = flood.join().ok().context("the flood")??;
    ffmpeg.wait()?;
    ensure!(push.wait(LIMIT)?.success());

    for (number, hash) in edge.segments("gate")? {
        let answer = get(&hub.url(&format!("/s/gate/{number}.ts")))?;
        ensure!(answer.status == 200, "segment {number}: {}", answer.text());
        assert_eq!(blake3::hash(&answer.body).to_string(), hash, "{number}");
    }
    let grown = hub.resident_bytes()?.saturating_sub(ordinary);
    assert!(grown < 48 << 20, "{grown} bytes more, after {sent:?}");

    let mut counted = 0.0;
    for reason in [
        "malformed",
        "unknown_session",
        "forged",
        "replayed",
        "handshake_replayed",
    ] {
        let name = format!("penstock_link_datagrams_dropped_total{{reason=\"{reason}\"}}");
        let count = metric(&hub, &name)?;
        assert!(count > 0.0, "{name}");
        counted += count;
    }
    let cookies = metric(&hub, "penstock_link_cookies_sent_total")?;
    assert!(cookies > 0.0);
    // The kernel may have dropped some before anybody could count them; what was taken is all told.
    let received = metric(&hub, "penstock_link_datagrams_received_total")?;
    assert!(counted + cookies <= received);
    assert!(
        counted + cookies > received / 10.0,
        "{counted} of {received}"
    );
    let log = hub.log();
    assert_eq!(log.matches("a flood of datagrams").count(), 1, "{log}");
    assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
    Ok(())
}

/// A connection to an address of the hub, with something said.
fn connect(url: &str, text: &str) -> Result<TcpStream> {
    let address = url.strip_prefix("http://").context("http")?;
    let address: SocketAddr = address.trim_end_matches('/').parse()?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.write_all(text.as_bytes())?;
    Ok(socket)
}

#[test]
fn connections_that_only_take_places_keep_no_viewer_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fixture("small.ts");
    let push = edge.push(
        &["--stream", "gate", clip.to_str().context("path")?],
        Stdio::null(),
    )?;
    ensure!(push.wait(LIMIT)?.success());
    let list = playlist(&hub.url("/s/gate/rec.m3u8"))?;
    let segment = format!("/s/gate/{}", list.segments[0].uri);
    let whole = get(&hub.url(&segment))?.body;

    let mut held = Vec::new();
    for round in 0..13 {
        for (listener, path) in [(hub.url("/"), &segment), (hub.admin_url("/"), &segment)] {
            for n in 0..50 {
                let text = match n % 4 {
                    0 => String::new(),
                    1 => format!("GET {path} HTTP/1.1\r\nhost: "),
                    2 => "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
                    _ => "\r\n".to_owned(),
                };
                held.push(connect(&listener, &text)?);
            }
        }
        let answer = get(&hub.url(&segment))?;
        ensure!(answer.body == whole, "round {round}: {}", answer.status);
        ensure!(get(&hub.admin_url("/healthz"))?.status == 200);
    }
    let open = metric(&hub, "penstock_http_connections_open")?;
    assert!(open <= 1_100.0, "{open} open");
    drop(held);
    Ok(())
}

#[test]
fn absurd_requests_are_answered_with_sense() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fixture("small.ts");
    let push = edge.push(
        &["--stream", "gate", clip.to_str().context("path")?],
        Stdio::null(),
    )?;
    ensure!(push.wait(LIMIT)?.success());
    let list = playlist(&hub.url("/s/gate/rec.m3u8"))?;
    let segment = hub.url(&format!("/s/gate/{}", list.segments[0].uri));
    let whole = get(&segment)?.body;

    let thousands = format!("bytes={}", vec!["0-1"; 3_000].join(","));
    let overlapping = format!(
        "bytes={}",
        (0..1_000)
            .map(|n| format!("{n}-"))
            .collect::<Vec<_>>()
            .join(",")
    );
    for (range, status) in [
        (thousands.as_str(), 200),
        (overlapping.as_str(), 200),
        ("bytes=0-18446744073709551615", 206),
        ("bytes=18446744073709551615-", 416),
        ("bytes=-18446744073709551615", 206),
        ("bytes=99999999999999999999999-", 200),
        ("bytes=-0", 416),
        ("bytes=--1", 200),
        ("bytes=1--1", 200),
        ("bytes=5-1", 200),
        ("bytes=0x0-0x9", 200),
        ("bytes= 0 - 1 ,", 200),
        ("\u{fffd}=0-1", 200),
    ] {
        let answer = get_with(&segment, &[("range", range)])?;
        let shown = &range[..range.len().min(40)];
        assert_eq!(answer.status, status, "{shown}: {}", answer.text().len());
        if status != 416 {
            assert_eq!(answer.body, whole, "{shown}");
        }
    }
    for (path, statuses) in [
        ("/s/gate%00/live.m3u8", [400, 404]),
        ("/s/gate/%00.ts", [400, 404]),
        ("/s/../../etc/passwd", [400, 404]),
        ("/s/gate/..%2f..%2fhub.key", [400, 404]),
        ("/s/%2e%2e/%2e%2e/catalog.db", [400, 404]),
        ("/s/\u{1f3a5}/live.m3u8", [400, 404]),
        ("//s//gate//live.m3u8", [400, 404]),
        ("/assets/..%2f..%2fadmin.token", [400, 404]),
        ("/s/gate/rec.m3u8?from=-99999999999999999999", [400, 404]),
        (
            "/s/gate/rec.m3u8?from=9223372036854775807&to=-9223372036854775808",
            [400, 404],
        ),
    ] {
        let mut socket = connect(
            &hub.url("/"),
            &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        )?;
        let mut text = Vec::new();
        socket.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let status = text.get(9..12).and_then(|s| s.parse::<u16>().ok());
        assert!(
            status.is_some_and(|s| statuses.contains(&s)),
            "{path}: {text}"
        );
    }
    // A megabyte in one header line.
    for listener in [hub.url("/"), hub.admin_url("/")] {
        let mut socket = connect(&listener, "GET / HTTP/1.1\r\nhost: x\r\ncookie: ")?;
        let piece = "x".repeat(1 << 16);
        for _ in 0..16 {
            if socket.write_all(piece.as_bytes()).is_err() {
                break;
            }
        }
        let mut text = Vec::new();
        let _ = socket.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 431"),
            "{text}"
        );
    }
    assert_eq!(get(&segment)?.body, whole);
    let malformed = "penstock_http_connections_failed_total{reason=\"malformed\"}";
    assert!(metric(&hub, malformed)? >= 1.0);
    ensure!(!hub.log().contains("panicked"), "{}", hub.log());
    Ok(())
}
