//! Damaged catalogs and segments, lost catalogs, backups: what is left of the footage is served and shipped.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use system_tests::{Edge, Hub, fixture, get, playlist, segments, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

struct Site {
    dir: tempfile::TempDir,
    hub: Hub,
    edge: Edge,
}

fn site(hub_args: &[&str]) -> Result<Site> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start_with(&dir.path().join("hub"), hub_args)?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    Ok(Site { dir, hub, edge })
}

fn push(edge: &Edge) -> Result<()> {
    let file = fixture("h264-25.mp4");
    let file = file.to_str().context("path")?;
    let status = edge
        .push(&["--stream", "gate", file], Stdio::null())?
        .wait(LIMIT)?;
    ensure!(status.success(), "push: {status}");
    Ok(())
}

/// The hub serves every one of these, byte for byte.
fn assert_served(hub: &Hub, expected: &[(u64, String)]) -> Result<()> {
    ensure!(!expected.is_empty(), "nothing to compare");
    for (number, hash) in expected {
        let got = get(&hub.url(&format!("/s/gate/{number}.ts")))?;
        ensure!(got.status == 200, "{number}: {}", got.status);
        ensure!(
            blake3::hash(&got.body).to_string() == *hash,
            "{number} differs"
        );
    }
    Ok(())
}

fn media_sequence(hub: &Hub) -> Result<u64> {
    Ok(playlist(&hub.url("/s/gate/live.m3u8"))?.media_sequence)
}

fn garbage(data_dir: &Path) -> Result<()> {
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(data_dir.join(name));
    }
    fs::write(data_dir.join("catalog.db"), [0x5a; 8_192])?;
    Ok(())
}

fn file_of(data_dir: &Path, number: u64) -> PathBuf {
    data_dir.join(format!("segments/gate/0/{number}.ts"))
}

fn flip(path: &Path) -> Result<()> {
    let byte = fs::read(path)?[1_000];
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(1_000))?;
    file.write_all(&[byte ^ 1])?;
    Ok(())
}

#[test]
fn a_hubs_damaged_catalog_is_rebuilt_and_its_devices_are_asked_for() -> Result<()> {
    let mut site = site(&[])?;
    push(&site.edge)?;
    let before = site.edge.segments("gate")?;
    let sequence = media_sequence(&site.hub)?;
    site.hub.stop()?;
    garbage(site.hub.data_dir())?;
    site.hub.up()?;
    let log = site.hub.log();
    ensure!(
        log.contains("a new one was built from the segments"),
        "{log}"
    );
    ensure!(log.contains("devices and their keys were lost"), "{log}");
    assert_served(&site.hub, &before)?;
    ensure!(media_sequence(&site.hub)? >= sequence, "it went back");
    let recording = playlist(&site.hub.url("/s/gate/rec.m3u8"))?;
    ensure!(recording.segments.len() == before.len(), "{recording:?}");
    // The device is a stranger now; enrolled again it has its stream and numbers.
    let url = site.hub.enrolment("pole-7", site.hub.link_address())?;
    let (status, said) = site.edge.command(&["enroll", &url])?;
    ensure!(status.success(), "{said}");
    push(&site.edge)?;
    let after = site.edge.segments("gate")?;
    ensure!(after.len() == 2 * before.len(), "a number was used twice");
    ensure!(after[..before.len()] == before, "a number was used twice");
    assert_served(&site.hub, &after)?;
    let streams = site.hub.command(&["stream", "list"])?;
    ensure!(streams.contains("pole-7"), "{streams}");
    Ok(())
}

#[test]
fn a_catalog_damaged_while_it_runs_ends_the_hub_and_the_next_start_rebuilds() -> Result<()> {
    let mut site = site(&[])?;
    push(&site.edge)?;
    let before = site.edge.segments("gate")?;
    let path = site.hub.data_dir().join("catalog.db");
    // Ended in order, all is in one file.
    site.hub.stop()?;
    site.hub.up()?;
    let length = usize::try_from(fs::metadata(&path)?.len())?;
    ensure!(length > 8_192, "{length} bytes");
    // A foreign write: the hub doesn't go by what it has in memory any more.
    site.hub
        .command(&["enroll", "pole-8", "--address", "127.0.0.1:9"])?;
    // Every page but the first, which says what the file is.
    let mut file = File::options().write(true).open(&path)?;
    file.seek(SeekFrom::Start(4_096))?;
    file.write_all(&vec![0x5a; length - 4_096])?;
    drop(file);
    let _ = get(&site.hub.url("/api/v1/streams"));
    let status = site.hub.ended(Duration::from_secs(30))?;
    ensure!(status.code() == Some(1), "{status}");
    site.hub.up()?;
    let log = site.hub.log();
    ensure!(log.contains("the catalog is damaged"), "{log}");
    ensure!(
        log.contains("a new one was built from the segments"),
        "{log}"
    );
    assert_served(&site.hub, &before)
}

#[test]
fn an_edges_lost_catalog_is_rebuilt_and_what_is_unshipped_goes() -> Result<()> {
    let mut site = site(&[])?;
    push(&site.edge)?;
    site.hub.stop()?;
    let file = fixture("h264-25.mp4");
    let file = file.to_str().context("path")?;
    let offline = site
        .edge
        .push(&["--stream", "gate", "--wait", "1s", file], Stdio::null())?;
    let status = offline.wait(LIMIT)?;
    ensure!(status.code() == Some(1), "{status}");
    let before = site.edge.segments("gate")?;
    garbage(site.edge.data_dir())?;
    site.hub.up()?;
    let run = site.edge.run(&["--http", "127.0.0.1:0"])?;
    // What is asked for comes first: the last one does not tell that all are there.
    for (number, _) in &before {
        wait_for("the segments at the hub", LIMIT, || {
            let got = get(&site.hub.url(&format!("/s/gate/{number}.ts")));
            got.ok().filter(|got| got.status == 200)
        })?;
    }
    assert_served(&site.hub, &before)?;
    ensure!(
        run.log().contains("a new one was built from the segments"),
        "{}",
        run.log()
    );
    ensure!(run.stop()?.success(), "stop");
    push(&site.edge)?;
    let after = site.edge.segments("gate")?;
    ensure!(
        after[..before.len()] == before[..],
        "a number was used twice"
    );
    assert_served(&site.hub, &after)
}

#[test]
fn a_flipped_bit_on_the_hub_is_healed_from_the_edge() -> Result<()> {
    let site = site(&["--scrub-every", "1s", "--scrub-rate", "50MB/s"])?;
    push(&site.edge)?;
    let before = site.edge.segments("gate")?;
    let number = before[1].0;
    let run = site.edge.run(&["--http", "127.0.0.1:0"])?;
    wait_for("the edge", LIMIT, || {
        let sessions = get(&site.hub.admin_url("/metrics")).ok()?.text();
        sessions.contains("penstock_link_sessions 1").then_some(())
    })?;
    flip(&file_of(site.hub.data_dir(), number))?;
    let aside = site
        .hub
        .data_dir()
        .join(format!("orphans/gate/{number}.ts.corrupt"));
    wait_for("the damage to be found", LIMIT, || {
        aside.exists().then_some(())
    })?;
    wait_for("the segment to be here again", LIMIT, || {
        let got = get(&site.hub.url(&format!("/s/gate/{number}.ts"))).ok()?;
        (got.status == 200).then_some(())
    })?;
    assert_served(&site.hub, &before)?;
    let metrics = get(&site.hub.admin_url("/metrics"))?.text();
    ensure!(
        metrics.contains("penstock_scrub_corrupt_total 1"),
        "{metrics}"
    );
    ensure!(
        site.hub.log().contains("a segment is damaged"),
        "{}",
        site.hub.log()
    );
    ensure!(run.stop()?.success(), "stop");
    Ok(())
}

#[test]
fn a_flipped_bit_on_the_edge_becomes_a_hole_there_and_harms_nobody_else() -> Result<()> {
    let site = site(&[])?;
    push(&site.edge)?;
    let before = site.edge.segments("gate")?;
    let number = before[1].0;
    flip(&file_of(site.edge.data_dir(), number))?;
    let run = site.edge.run(&[
        "--http",
        "127.0.0.1:0",
        "--scrub-every",
        "1s",
        "--scrub-rate",
        "50MB/s",
    ])?;
    let aside = site
        .edge
        .data_dir()
        .join(format!("orphans/gate/{number}.ts.corrupt"));
    wait_for("the damage to be found", LIMIT, || {
        aside.exists().then_some(())
    })?;
    ensure!(
        !file_of(site.edge.data_dir(), number).exists(),
        "still there"
    );
    ensure!(run.stop()?.success(), "stop");
    // The hub has it, whole.
    assert_served(&site.hub, &before)
}

#[test]
fn a_backup_made_while_a_push_runs_is_restored_with_and_without_the_segments() -> Result<()> {
    for with_segments in [true, false] {
        let mut site = site(&[])?;
        push(&site.edge)?;
        let first = site.edge.segments("gate")?;
        let file = fixture("h264-25.mp4");
        let file = file.to_str().context("path")?;
        let running = site
            .edge
            .push(&["--stream", "gate", "--realtime", file], Stdio::null())?;
        wait_for("a segment of the second push", LIMIT, || {
            let now = segments(site.hub.data_dir(), "gate").ok()?;
            (now.len() > first.len()).then_some(())
        })?;
        let backup = site.dir.path().join("backup");
        let to = backup.to_str().context("path")?.to_owned();
        let said = site.hub.command(&["backup", &to])?;
        ensure!(said.contains("1 devices, 1 streams"), "{said}");
        // A second one replaces it, somebody else's folder stays.
        site.hub.command(&["backup", &to])?;
        let other = site.dir.path().join("other");
        fs::create_dir(&other)?;
        fs::write(other.join("photo.jpg"), b"x")?;
        let refused = site
            .hub
            .command(&["backup", other.to_str().context("path")?]);
        ensure!(
            format!("{refused:?}").contains("neither empty nor a backup"),
            "{refused:?}"
        );
        wait_for("one segment more", LIMIT, || {
            let now = segments(site.hub.data_dir(), "gate").ok()?;
            (now.len() > first.len() + 1).then_some(())
        })?;
        site.hub.kill()?;
        let restored = site.dir.path().join("restored");
        let old = site.hub.data_dir().to_owned();
        site.hub.relocate(&restored)?;
        for name in ["catalog.db", "hub.key", "admin.token"] {
            fs::copy(backup.join(name), restored.join(name))?;
        }
        if with_segments {
            fs::rename(old.join("segments"), restored.join("segments"))?;
        }
        site.hub.up()?;
        let status = running.wait(LIMIT)?;
        ensure!(status.success(), "push: {status}: {}", site.hub.log());
        // `push` ships its own stream's rest; what the hub lost of before is unshipped again, too.
        let run = site.edge.run(&["--http", "127.0.0.1:0"])?;
        let all = site.edge.segments("gate")?;
        ensure!(all.len() > first.len(), "nothing was pushed");
        wait_for("everything at the hub again", LIMIT, || {
            let now = segments(&restored, "gate").ok()?;
            (now == all).then_some(())
        })?;
        assert_served(&site.hub, &all)?;
        let log = site.hub.log();
        ensure!(!log.contains("were lost with the catalog"), "{log}");
        ensure!(run.stop()?.success(), "stop");
    }
    Ok(())
}
