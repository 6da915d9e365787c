//! `edge-node push` with a hub that does not answer: everything stays on the disk, in order, playable.
//!
//! Clips come from ffmpeg; where it is not installed there is nothing to push and the tests say so.

#![allow(clippy::unwrap_used, clippy::panic)] // a test's panic is its verdict

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// An edge-node's directory, enrolled with a hub that is not there.
struct Edge(tempfile::TempDir);

impl Edge {
    fn enrolled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        fs::create_dir(&identity).unwrap();
        let key = format!("CQ{}", "A".repeat(41));
        fs::write(
            identity.join("identity.toml"),
            format!(
                "device = \"pole-7\"\nhub_address = \"127.0.0.1:9\"\nhub_key = \"{key}\"\nsecret_key = \"{key}\"\n"
            ),
        )
        .unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-node"));
        command
            .args(args)
            .arg("--data-dir")
            .arg(self.0.path())
            .env_remove("PENSTOCK_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn push(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut all = vec!["push", "--stream", "gate", "--wait", "1s"];
        all.extend(args);
        told(self.command(&all).output().unwrap())
    }

    /// Lines of the live playlist in the stream's folder.
    fn playlist(&self) -> Vec<String> {
        let path = self.path("segments/gate/live.m3u8");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().map(str::to_owned).collect()
    }

    fn breaks(&self) -> usize {
        let lines = self.playlist();
        lines
            .iter()
            .filter(|l| *l == "#EXT-X-DISCONTINUITY")
            .count()
    }

    fn count(&self, tag: &str) -> usize {
        self.playlist()
            .iter()
            .filter(|l| l.starts_with(tag))
            .count()
    }
}

fn told(output: Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

/// Makes a clip of `seconds`, or says that it can't.
fn clip(path: &Path, seconds: u32, more: &[&str]) -> bool {
    let made = Command::new("ffmpeg")
        .args([
            "-v",
            "error",
            "-y",
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=160x120:r=25",
        ])
        .args([
            "-f",
            "lavfi",
            "-i",
            "sine=sample_rate=48000",
            "-t",
            &seconds.to_string(),
        ])
        .args([
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-g",
            "50",
            "-c:a",
            "aac",
            "-shortest",
        ])
        .args(more)
        .arg(path)
        .status();
    match made {
        Ok(status) => {
            assert!(status.success());
            true
        }
        Err(error) => {
            eprintln!("skipped, no ffmpeg: {error}");
            false
        }
    }
}

fn pictures(playlist: &Path) -> usize {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-count_packets", "-select_streams", "v:0"])
        .args(["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0"])
        .arg(playlist)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text.lines()
        .find_map(|l| l.trim().trim_end_matches(',').parse().ok())
        .unwrap_or_else(|| panic!("ffprobe said {text:?}"))
}

fn http(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 OK\r\n"), "{answer}");
    answer
}

#[test]
fn without_a_hub_segments_stay_and_play_from_the_folder() {
    let edge = Edge::enrolled();
    for name in ["clip.mp4", "clip.ts"] {
        let edge = Edge::enrolled();
        let file = edge.path(name);
        if !clip(&file, 10, &[]) {
            return;
        }
        let started = Instant::now();
        let (code, text) = edge.push(&[file.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("5 segments stay on this disk"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(edge.count("#EXTINF"), 5, "{:?}", edge.playlist());
        assert_eq!(edge.breaks(), 0);
        assert_eq!(edge.playlist().last().unwrap(), "#EXT-X-ENDLIST");
        assert_eq!(pictures(&edge.path("segments/gate/live.m3u8")), 250);

        let (code, text) = told(edge.command(&["status"]).output().unwrap());
        assert_eq!(code, Some(0), "{text}");
        assert!(
            text.contains("pole-7, enrolled with the hub at 127.0.0.1:9"),
            "{text}"
        );
        assert!(
            text.lines()
                .any(|l| l.starts_with("gate") && l.contains(" 5 (")),
            "{text}"
        );
    }
    drop(edge);
}

#[test]
fn numbers_go_on_from_push_to_push() {
    let edge = Edge::enrolled();
    let file = edge.path("clip.ts");
    if !clip(&file, 4, &[]) {
        return;
    }
    for _ in 0..3 {
        let (code, text) = edge.push(&[file.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{text}");
    }
    let mut numbers: Vec<u64> = fs::read_dir(edge.path("segments/gate/0"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ts"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    let first = numbers[0];
    assert_eq!(numbers, (first..first + 6).collect::<Vec<_>>());
}

#[test]
fn a_file_that_goes_on_stays_in_the_run_and_another_does_not() {
    let edge = Edge::enrolled();
    let whole = edge.path("whole.ts");
    if !clip(&whole, 8, &[]) {
        return;
    }
    let parts = edge.path("part%d.ts");
    let cut = Command::new("ffmpeg")
        .args([
            "-v",
            "error",
            "-i",
            whole.to_str().unwrap(),
            "-c",
            "copy",
            "-copyts",
        ])
        .args([
            "-muxdelay",
            "0",
            "-f",
            "segment",
            "-segment_time",
            "4",
            parts.to_str().unwrap(),
        ])
        .status()
        .unwrap();
    assert!(cut.success());
    let (a, b) = (edge.path("part0.ts"), edge.path("part1.ts"));
    let (code, text) = edge.push(&[a.to_str().unwrap(), b.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(edge.breaks(), 0, "{:?}", edge.playlist());
    assert_eq!(pictures(&edge.path("segments/gate/live.m3u8")), 200);

    let edge = Edge::enrolled();
    let (code, text) = edge.push(&[b.to_str().unwrap(), a.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(edge.breaks(), 1, "{:?}", edge.playlist());
}

#[test]
fn bad_files_are_named_and_good_ones_beside_them_kept() {
    let edge = Edge::enrolled();
    let good = edge.path("good.ts");
    if !clip(&good, 4, &[]) {
        return;
    }
    let (empty, words) = (edge.path("empty.mp4"), edge.path("words.ts"));
    fs::write(&empty, "").unwrap();
    fs::write(&words, "this is no video. ".repeat(1_000)).unwrap();
    let missing = edge.path("missing.mp4");
    let (code, text) = edge.push(&[
        empty.to_str().unwrap(),
        words.to_str().unwrap(),
        good.to_str().unwrap(),
        missing.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(1), "{text}");
    let verdict = text.lines().find(|l| l.starts_with("error: ")).unwrap();
    for (name, why) in [
        ("empty.mp4", "the file is empty"),
        ("words.ts", "neither"),
        ("missing.mp4", "No such file"),
    ] {
        assert!(
            verdict.contains(name) && verdict.contains(why),
            "{name}: {verdict}"
        );
    }
    assert!(
        verdict.contains("2 segments stay on this disk"),
        "{verdict}"
    );
    assert_eq!(edge.count("#EXTINF"), 2);

    let edge = Edge::enrolled();
    let (code, text) = edge.push(&[words.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains("stay"), "{text}");
    assert!(!edge.path("segments/gate").exists(), "nothing was cut");
}

#[test]
fn wall_times_are_the_ones_asked_for() {
    let edge = Edge::enrolled();
    let file = edge.path("clip.mp4");
    if !clip(&file, 4, &[]) {
        return;
    }
    let (_, text) = edge.push(&["--start", "2026-05-01T08:00:00Z", file.to_str().unwrap()]);
    let first = "#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z";
    assert!(
        edge.playlist().iter().any(|l| l == first),
        "{text}: {:?}",
        edge.playlist()
    );
}

#[test]
fn live_video_on_standard_input_ends_in_order_on_a_signal() {
    let edge = Edge::enrolled();
    let file = edge.path("clip.ts");
    if !clip(&file, 6, &[]) {
        return;
    }
    let mut child = edge
        .command(&["push", "--stream", "gate", "--wait", "1s", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Standard input stays open, as a camera's does.
    let mut input = child.stdin.take().unwrap();
    input.write_all(&fs::read(&file).unwrap()).unwrap();
    let started = Instant::now();
    while !edge.path("segments/gate/live.m3u8").exists() || edge.count("#EXTINF") < 2 {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "nothing was cut"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let asked = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(asked.success());
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("3 segments stay on this disk"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(30), "{text}");
    assert_eq!(edge.playlist().last().unwrap(), "#EXT-X-ENDLIST");
    drop(input);
}

#[test]
fn realtime_takes_its_time() {
    let edge = Edge::enrolled();
    let file = edge.path("clip.mp4");
    if !clip(&file, 3, &[]) {
        return;
    }
    let started = Instant::now();
    let (code, text) = edge.push(&["--realtime", file.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        started.elapsed() >= Duration::from_millis(2_500),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn one_program_at_a_time_has_the_data_directory() {
    let edge = Edge::enrolled();
    let mut running = edge
        .command(&["run", "--http", "127.0.0.1:0"])
        .spawn()
        .unwrap();
    let address = edge.path("http.address");
    let started = Instant::now();
    while !address.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "run did not start"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let (code, text) = edge.push(&["a.ts"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by edge-node run"), "{text}");
    let (code, text) = told(edge.command(&["status", "--json"]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["running"], true, "{text}");
    assert_eq!(status["device"], "pole-7");
    assert_eq!(status["streams"], serde_json::json!([]));
    let metrics = http(fs::read_to_string(&address).unwrap().trim(), "/metrics");
    for name in [
        "penstock_link_connected 0",
        "penstock_link_datagrams_sent_total ",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    let asked = Command::new("kill")
        .arg(running.id().to_string())
        .status()
        .unwrap();
    assert!(asked.success());
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert!(!address.exists(), "the address is taken back");
}
