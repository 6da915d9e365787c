//! Inputs of `edge-node run`: many at once of which some misbehave, folders through kills, senders that
//! disorder, fall silent and come back.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use system_tests::{Edge, Hub, Push, fixture, get, playlist, tool, wait_for};

const PACKET: usize = 188;
/// TS packets in a datagram, as senders put them.
const IN_DATAGRAM: usize = 7;

/// Ports of this machine that nobody has now.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    held.iter().map(|s| Ok(s.local_addr()?.port())).collect()
}

/// Sends a clip to ports, each datagram to all, over `seconds`; a socket for each port.
fn send_clip(clip: &[u8], ports: &[u16], seconds: u64) -> Result<()> {
    let sockets: Vec<UdpSocket> = ports
        .iter()
        .map(|port| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(("127.0.0.1", *port))?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()?;
    let datagrams: Vec<&[u8]> = clip.chunks(IN_DATAGRAM * PACKET).collect();
    let start = Instant::now();
    for (i, datagram) in datagrams.iter().enumerate() {
        let due = Duration::from_secs(seconds) * i as u32 / datagrams.len() as u32;
        thread::sleep(due.saturating_sub(start.elapsed()));
        for socket in &sockets {
            // Nobody there any more is the test's to find out.
            let _ = socket.send(datagram);
        }
    }
    Ok(())
}

/// Where the page of a running edge is, from its log.
fn page(run: &Push) -> Result<String> {
    wait_for("the page's address", Duration::from_secs(30), || {
        let log = run.log();
        let at = log.rfind("the local page is at ")? + "the local page is at ".len();
        let url = log[at..].split_whitespace().next()?.trim_end_matches('/');
        // The log may still end with an earlier run's.
        get(&format!("{url}/healthz")).ok()?;
        Some(url.to_owned())
    })
}

/// Waits until every input listens.
fn wait_for_inputs(page: &str) -> Result<()> {
    wait_for("the inputs to listen", Duration::from_secs(30), || {
        let found = inputs(page).ok()?;
        found
            .values()
            .all(|input| input["state"] == "waiting")
            .then_some(())
    })
}

/// What the edge tells of its inputs, by stream.
fn inputs(page: &str) -> Result<BTreeMap<String, Value>> {
    let answer = get(&format!("{page}/api/v1/status"))?;
    let status: Value = serde_json::from_slice(&answer.body)?;
    let list = status["inputs"].as_array().context("inputs")?;
    Ok(list
        .iter()
        .map(|i| {
            (
                i["stream"].as_str().unwrap_or_default().to_owned(),
                i.clone(),
            )
        })
        .collect())
}

fn hashes_at_hub(edge: &Edge, hub: &Hub, stream: &str) -> Result<Vec<String>> {
    edge.segments(stream)?
        .into_iter()
        .map(|(number, hash)| {
            let got = get(&hub.url(&format!("/s/{stream}/{number}.ts")))?;
            ensure!(got.status == 200, "{stream}/{number}: {}", got.text());
            ensure!(
                blake3::hash(&got.body).to_string() == hash,
                "{stream}/{number} differs"
            );
            Ok(hash)
        })
        .collect()
}

/// Hashes of the coded pictures (slices) of a clip, in the order of decoding.
fn pictures(clip: &Path) -> Result<Vec<String>> {
    if clip.extension().is_some_and(|e| e == "ts") {
        return Ok(slices(&elementary(&fs::read(clip)?)));
    }
    let out = tool("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-i"])
        .arg(clip)
        .args(["-map", "0:v:0", "-c", "copy", "-f", "h264", "-"])
        .output()
        .context("ffmpeg")?;
    ensure!(out.status.success(), "{}", clip.display());
    Ok(slices(&out.stdout))
}

/// What the PES packets of video in a transport stream carry.
fn elementary(ts: &[u8]) -> Vec<u8> {
    let (mut video, mut bytes) = (None, Vec::new());
    for packet in ts.as_chunks::<PACKET>().0 {
        let pid = u16::from_be_bytes([packet[1] & 0x1f, packet[2]]);
        let skip = if packet[3] & 0x20 != 0 {
            5 + usize::from(packet[4])
        } else {
            4
        };
        let mut payload = &packet[skip.min(PACKET)..];
        if packet[1] & 0x40 != 0 && payload.starts_with(&[0, 0, 1, 0xe0]) {
            video = Some(pid);
            payload = &payload[9 + usize::from(payload[8])..];
        }
        if video == Some(pid) {
            bytes.extend_from_slice(payload);
        }
    }
    bytes
}

fn slices(bytes: &[u8]) -> Vec<String> {
    let starts: Vec<usize> = (0..bytes.len().saturating_sub(3))
        .filter(|&i| bytes[i..i + 3] == [0, 0, 1])
        .map(|i| i + 3)
        .collect();
    let ends = starts.iter().skip(1).map(|s| s - 3).chain([bytes.len()]);
    starts
        .iter()
        .zip(ends)
        .filter(|(start, _)| matches!(bytes[**start] & 0x1f, 1 | 5))
        .map(|(start, end)| {
            let mut slice = &bytes[*start..end];
            while let [rest @ .., 0] = slice {
                slice = rest;
            }
            blake3::hash(slice).to_string()
        })
        .collect()
}

/// The pictures of all segments of a stream on an edge's disk, in order.
fn pictures_of_stream(edge: &Edge, stream: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (number, _) in edge.segments(stream)? {
        let folder = format!("segments/{stream}/{}/{number}.ts", number / 4_096);
        all.extend(pictures(&edge.data_dir().join(folder))?);
    }
    Ok(all)
}

fn write_config(dir: &Path, text: &str) -> Result<String> {
    let path = dir.join("edge.toml");
    fs::write(&path, text)?;
    Ok(path.to_str().context("path")?.to_owned())
}

#[test]
fn twenty_streams_of_which_three_misbehave() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let clip = fs::read(fixture("h264-bframes.ts"))?;
    // What a file of the same clip becomes.
    let file = fixture("h264-bframes.ts");
    let args = ["--stream", "file", file.to_str().context("path")?];
    let pushed = edge
        .push(&args, Stdio::null())?
        .wait(Duration::from_secs(60))?;
    ensure!(pushed.success(), "{pushed}");
    let expected = hashes_at_hub(&edge, &hub, "file")?;
    ensure!(expected.len() >= 5, "{} segments", expected.len());

    let ports = free_ports(20)?;
    let config: String = ports
        .iter()
        .enumerate()
        .map(|(i, port)| {
            let name = match i {
                17 => "garbage".to_owned(),
                18 => "silent".to_owned(),
                19 => "flood".to_owned(),
                i => format!("cam{i}"),
            };
            let rate = if i == 19 {
                "max_bytes_per_second = '1MB'\n"
            } else {
                ""
            };
            format!("[[stream]]\nname = '{name}'\nsource = 'udp://127.0.0.1:{port}'\n{rate}")
        })
        .collect();
    let config = write_config(dir.path(), &config)?;
    let run = edge.run(&["--config", &config, "--http", "127.0.0.1:0"])?;
    let page = page(&run)?;
    wait_for_inputs(&page)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut mischief = Vec::new();
    for (port, flood) in [(ports[17], false), (ports[19], true)] {
        let (stop, clip) = (stop.clone(), clip.clone());
        mischief.push(thread::spawn(move || -> Result<u64> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(("127.0.0.1", port))?;
            let (mut sent, mut noise) = (0, [0u8; 1_316]);
            for datagram in clip.chunks(IN_DATAGRAM * PACKET).cycle() {
                for (i, byte) in noise.iter_mut().enumerate() {
                    *byte = (sent as usize * 31 + i * 7) as u8 | 0x80;
                }
                let _ = socket.send(if flood { datagram } else { &noise });
                sent += 1;
                if sent % 64 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(sent)
        }));
    }
    send_clip(&clip, &ports[..17], 12)?;
    // They fall silent: what was open is closed, and so comes to the hub.
    for i in 0..17 {
        let stream = format!("cam{i}");
        wait_for(
            "all of a stream at the hub",
            Duration::from_secs(60),
            || {
                let here = edge.segments(&stream).ok()?;
                let got = hashes_at_hub(&edge, &hub, &stream).ok()?;
                (here.len() == expected.len() && got == expected).then_some(())
            },
        )
        .with_context(|| format!("{stream}: {:?} of {:?}", edge.segments(&stream), expected))?;
    }
    let found = inputs(&page)?;
    let count = |stream: &str, what: &str| found[stream]["counts"][what].as_u64().unwrap_or(0);
    for i in 0..17 {
        let stream = format!("cam{i}");
        assert_eq!(count(&stream, "datagrams_dropped"), 0, "{stream}");
        assert_eq!(count(&stream, "silences"), 1, "{stream}");
        assert_eq!(count(&stream, "bytes"), clip.len() as u64, "{stream}");
    }
    assert_eq!(found["silent"]["state"], "waiting");
    assert_eq!(found["silent"]["reason"], "no data for 10 s");
    assert_eq!(
        count("garbage", "datagrams"),
        count("garbage", "datagrams_garbage")
    );
    assert!(count("garbage", "datagrams") > 1_000);
    assert!(
        count("flood", "datagrams_dropped") > 1_000,
        "{}",
        found["flood"]
    );
    stop.store(true, Ordering::Relaxed);
    let sent: Vec<u64> = mischief
        .into_iter()
        .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked"))?)
        .collect::<Result<_>>()?;
    println!(
        "sent {sent:?} of garbage and flood; resident {} MB; flood: {}",
        run.resident_bytes()? / 1_000_000,
        found["flood"]["counts"]
    );
    let metrics = get(&format!("{page}/metrics"))?.text();
    assert!(
        metrics.contains("penstock_input_state{stream=\"silent\",state=\"waiting\"} 1"),
        "{metrics}"
    );
    ensure!(run.stop()?.success());
    Ok(())
}

#[test]
fn a_watched_folder_is_taken_once_through_kills() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let (folder, done) = (dir.path().join("in"), dir.path().join("done"));
    fs::create_dir(&folder)?;
    let files = [
        ("a.ts", "live.ts"),
        ("b.ts", "h264-bframes.ts"),
        ("c.mp4", "h264-25.mp4"),
        ("d.ts", "change.ts"),
        ("e.ts", "wrap.ts"),
        ("f.ts", "live.ts"),
        ("g.ts", "live.ts"),
        ("h.ts", "live.ts"),
    ];
    let mut expected = Vec::new();
    for (name, clip) in files {
        expected.extend(pictures(&fixture(clip))?);
        fs::copy(fixture(clip), folder.join(name))?;
    }
    fs::copy(fixture("text.mp4"), folder.join("aa-text.mp4"))?;
    fs::write(folder.join(".hidden.ts"), b"x")?;
    fs::copy(fixture("small.ts"), folder.join("z.ts.part"))?;
    let config = write_config(
        dir.path(),
        &format!(
            "[[stream]]\nname = 'tapes'\nsource = 'watch:{}'\nscan_interval = '100ms'\nsettle = '100ms'\ndone = 'move'\nmove_to = '{}'\n",
            folder.display(),
            done.display()
        ),
    )?;
    let args = ["--config", &config, "--http", "127.0.0.1:0"];
    // Killed until it was hit within a file some times.
    let (mut rounds, mut behind) = (0, 0);
    let mut seed: u64 = 7;
    while behind < 3 && rounds < 60 {
        let run = edge.run(&args)?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(150 + (seed >> 33) % 300));
        let log = run.log();
        run.kill()?;
        rounds += 1;
        behind = log.matches("goes on behind").count();
        if fs::read_dir(&folder)?.count() < 4 {
            break;
        }
    }
    println!("{rounds} kills, {behind} times gone on within a file");
    let run = edge.run(&args)?;
    let left = || -> Result<Vec<PathBuf>> {
        let mut left: Vec<PathBuf> = fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        left.sort();
        Ok(left)
    };
    wait_for(
        "the files to be moved away",
        Duration::from_secs(120),
        || left().ok().filter(|left| left.len() == 2),
    )
    .with_context(|| format!("{:?}\n{}", left(), run.log()))?;
    assert_eq!(
        left()?,
        [folder.join(".hidden.ts"), folder.join("z.ts.part")]
    );
    for (name, clip) in files {
        assert!(
            fs::read(done.join(name))? == fs::read(fixture(clip))?,
            "{name}"
        );
    }
    assert!(done.join("refused/aa-text.mp4").exists());
    // Every picture once, in order, here and at the hub.
    hashes_at_hub(&edge, &hub, "tapes")?;
    let got = pictures_of_stream(&edge, "tapes")?;
    assert_eq!(got.len(), expected.len(), "{}", run.log());
    assert!(got == expected, "other pictures, or in another order");
    assert!(behind > 0, "no kill hit a file");
    // A file of a name that was there before is another file.
    fs::copy(fixture("small.ts"), dir.path().join("next.ts"))?;
    fs::rename(dir.path().join("next.ts"), folder.join("a.ts"))?;
    wait_for("the next file", Duration::from_secs(60), || {
        done.join("a.ts.1").exists().then_some(())
    })?;
    expected.extend(pictures(&fixture("small.ts"))?);
    assert!(pictures_of_stream(&edge, "tapes")? == expected);
    ensure!(run.stop()?.success());
    Ok(())
}

#[test]
fn a_folder_that_comes_late_goes_and_comes_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let (folder, away) = (dir.path().join("in"), dir.path().join("away"));
    let config = write_config(
        dir.path(),
        &format!(
            "[[stream]]\nname = 'tapes'\nsource = 'watch:{}'\nscan_interval = '100ms'\n",
            folder.display()
        ),
    )?;
    let run = edge.run(&["--config", &config, "--http", "127.0.0.1:0"])?;
    let page = page(&run)?;
    let counted = |what: &str, wanted: u64| {
        wait_for(what, Duration::from_secs(60), || {
            let found = inputs(&page).ok()?;
            let counts = &found.get("tapes")?["counts"];
            (counts["files_taken"].as_u64()? == wanted).then_some(())
        })
        .with_context(|| run.log())
    };
    wait_for(
        "a word on the missing folder",
        Duration::from_secs(30),
        || {
            run.log()
                .contains("failed to read the folder")
                .then_some(())
        },
    )?;
    fs::create_dir(&folder)?;
    // Renamed in: whole at once; copied: closed by its writer.
    fs::copy(fixture("small.ts"), dir.path().join("x"))?;
    fs::rename(dir.path().join("x"), folder.join("1.ts"))?;
    counted("the first file", 1)?;
    fs::rename(&folder, &away)?;
    thread::sleep(Duration::from_millis(500));
    fs::rename(&away, &folder)?;
    fs::copy(fixture("small.ts"), folder.join("2.ts"))?;
    counted("the second file", 2)?;
    // Only its time is set: it is the same file.
    fs::File::options()
        .write(true)
        .open(folder.join("1.ts"))?
        .set_modified(std::time::SystemTime::now())?;
    fs::copy(fixture("small.ts"), folder.join("3.ts"))?;
    counted("the third file", 3)?;
    assert!(folder.join("1.ts").exists(), "kept");
    ensure!(run.stop()?.success());
    // Nor is any taken again after a restart.
    let before = edge.segments("tapes")?.len();
    let run = edge.run(&["--config", &config, "--http", "127.0.0.1:0"])?;
    fs::copy(fixture("small.ts"), folder.join("0.ts"))?;
    wait_for("the fourth file", Duration::from_secs(60), || {
        (edge.segments("tapes").ok()?.len() > before).then_some(())
    })?;
    thread::sleep(Duration::from_secs(6));
    let each = pictures(&fixture("small.ts"))?.len();
    assert_eq!(pictures_of_stream(&edge, "tapes")?.len(), 4 * each);
    ensure!(run.stop()?.success());
    Ok(())
}

/// RTP packets of a clip, some of them late by a few, some twice.
fn rtp(clip: &[u8]) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = clip
        .chunks(IN_DATAGRAM * PACKET)
        .enumerate()
        .map(|(i, payload)| {
            let mut packet = vec![0x80, 33];
            packet.extend((65_000 + i as u32).to_be_bytes()[2..].iter());
            packet.extend([0, 0, 0, 0, 1, 2, 3, 4]);
            packet.extend(payload);
            packet
        })
        .collect();
    for at in (10..packets.len() - 10).step_by(17) {
        let late = packets.remove(at);
        packets.insert(at + 5, late);
    }
    let twice = packets[20].clone();
    packets.insert(21, twice);
    packets
}

#[test]
fn disordered_rtp_arrives_whole_and_push_ends_on_sigterm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let port = free_ports(1)?[0];
    let push = edge.push(
        &[
            "--stream",
            "cam",
            "--http",
            "127.0.0.1:0",
            &format!("udp://127.0.0.1:{port}"),
        ],
        Stdio::null(),
    )?;
    let page = page(&push)?;
    wait_for_inputs(&page)?;
    let clip = fs::read(fixture("h264-bframes.ts"))?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    let packets = rtp(&clip);
    for (i, packet) in packets.iter().enumerate() {
        socket.send(packet)?;
        if i % 8 == 0 {
            thread::sleep(Duration::from_millis(20));
        }
    }
    wait_for("all of it", Duration::from_secs(20), || {
        let found = inputs(&page).ok()?;
        (found["cam"]["counts"]["bytes"].as_u64()? == clip.len() as u64).then_some(())
    })?;
    let counts = inputs(&page)?["cam"]["counts"].clone();
    assert_eq!(counts["rtp_lost"], 0, "{counts}");
    assert_eq!(counts["rtp_repeated"], 1, "{counts}");
    assert!(counts["rtp_reordered"].as_u64() > Some(10), "{counts}");
    assert!(push.stop()?.success());
    assert!(playlist(&hub.url("/s/cam/live.m3u8"))?.end_list);
    hashes_at_hub(&edge, &hub, "cam")?;
    let expected = pictures(&fixture("h264-bframes.ts"))?;
    assert!(pictures_of_stream(&edge, "cam")? == expected);
    Ok(())
}

#[test]
fn run_goes_on_in_its_list_and_ends_only_what_its_config_drops() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    let ports = free_ports(2)?;
    let stream = |name: &str, port: u16| {
        format!("[[stream]]\nname = '{name}'\nsource = 'udp://127.0.0.1:{port}'\n")
    };
    let both = stream("stays", ports[0]) + &stream("goes", ports[1]);
    let clip = fs::read(fixture("small.ts"))?;
    let record = |config: &str, ports: &[u16]| -> Result<()> {
        let config = write_config(dir.path(), config)?;
        let run = edge.run(&["--config", &config, "--http", "127.0.0.1:0"])?;
        let page = page(&run)?;
        wait_for_inputs(&page)?;
        send_clip(&clip, ports, 4)?;
        let seen = inputs(&page)?;
        ensure!(seen["stays"]["state"] == "recording", "{seen:?}");
        ensure!(run.stop()?.success());
        Ok(())
    };
    record(&both, &ports)?;
    record(&both, &ports)?;
    let small = fixture("small.ts");
    let push = edge.push(
        &[
            "--stream",
            "pushed",
            "--realtime",
            small.to_str().context("path")?,
        ],
        Stdio::null(),
    )?;
    let pushed = hub.url("/s/pushed/live.m3u8");
    wait_for("the pushed stream", Duration::from_secs(30), || {
        playlist(&pushed).ok().filter(|l| !l.segments.is_empty())
    })?;
    push.kill()?;
    record(&stream("stays", ports[0]), &ports[..1])?;
    let config = write_config(dir.path(), &stream("stays", ports[0]))?;
    let run = edge.run(&["--config", &config, "--http", "127.0.0.1:0"])?;
    let goes = hub.url("/s/goes/live.m3u8");
    let ended = wait_for(
        "the end of the dropped stream",
        Duration::from_secs(30),
        || playlist(&goes).ok().filter(|l| l.end_list),
    )
    .with_context(|| run.log())?;
    let breaks =
        |list: &m3u8_rs::MediaPlaylist| list.segments.iter().filter(|s| s.discontinuity).count();
    assert_eq!(breaks(&ended), 1, "two runs in one list");
    let stays = wait_for("all of the other", Duration::from_secs(30), || {
        let list = playlist(&hub.url("/s/stays/live.m3u8")).ok()?;
        (list.segments.len() == edge.segments("stays").ok()?.len()).then_some(list)
    })?;
    assert!(!stays.end_list);
    assert_eq!(breaks(&stays), 2, "three runs in one list");
    assert!(
        !playlist(&pushed)?.end_list,
        "what push recorded is not run's to end"
    );
    ensure!(run.stop()?.success());
    Ok(())
}
