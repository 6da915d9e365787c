//! The real program on the command line: what it refuses, how it says so, and its exit codes.

#![allow(clippy::unwrap_used, clippy::panic)] // a test's panic is its verdict

use std::{
    path::Path,
    process::{Command, Stdio},
};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn edge_node(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_edge-node"))
        .args(args)
        .env_remove("PENSTOCK_ENROLL_URL")
        .env_remove("PENSTOCK_DATA_DIR")
        .env_remove("PENSTOCK_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_shows_examples_and_version_the_version() {
    for command in [
        &["--help"][..],
        &["enroll", "--help"],
        &["run", "--help"],
        &["push", "--help"],
        &["status", "--help"],
        &["check-config", "--help"],
    ] {
        let ran = edge_node(command);
        assert_eq!(ran.code, Some(0), "{command:?}");
        assert!(
            ran.out.contains("Examples:\n  edge-node "),
            "{command:?}: {}",
            ran.out
        );
        assert!(!ran.out.contains("bench-cut"), "{}", ran.out);
    }
    let ran = edge_node(&["--version"]);
    assert_eq!(
        ran.out,
        format!("edge-node {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_exit_2_with_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = text(dir.path());
    for name in ["../up", "a/b", "Gate", "🎥", ""] {
        let ran = edge_node(&["push", "--data-dir", data_dir, "--stream", name, "a.ts"]);
        assert_eq!(ran.code, Some(2), "{name:?}: {}", ran.err);
        assert!(ran.err.contains("a-z"), "{name:?}: {}", ran.err);
    }
    for (source, says) in [
        (
            "rtsp://user:secret@10.0.0.9/main",
            "does not read rtsp:// sources yet",
        ),
        ("udp://camera:5000", "give an IP address"),
        ("watch:/srv/in", "folders are watched by `edge-node run`"),
    ] {
        let ran = edge_node(&["push", "--data-dir", data_dir, "--stream", "gate", source]);
        assert_eq!(ran.code, Some(2), "{source}: {}", ran.err);
        assert!(ran.err.contains(says), "{source}: {}", ran.err);
        assert!(!ran.err.contains("secret"), "{}", ran.err);
    }
    for args in [
        &["push", "--stream", "gate"][..],
        &["push", "--stream", "gate", "-", "a.ts"],
        &["push", "--stream", "gate", "udp://:5000", "a.ts"],
        &["push", "--stream", "gate", "--start", "mtime", "-"],
        &["push", "--stream", "gate", "--start", "yesterday", "a.ts"],
        &["push", "--stream", "gate", "--wait", "soon", "a.ts"],
        &["frobnicate"],
        &[],
    ] {
        let ran = edge_node(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
    }
}

#[test]
fn an_enrolment_url_that_is_none_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    for url in [
        "https://hub/secret-token",
        "penstock://hub#secret-token",
        "secret-token",
    ] {
        let ran = edge_node(&["enroll", url, "--data-dir", text(dir.path())]);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(
            ran.err.contains("penstock://HOST:PORT/HUBKEY#TOKEN"),
            "{}",
            ran.err
        );
        assert!(!ran.err.contains("secret-token"), "{}", ran.err);
    }
    let ran = edge_node(&["enroll", "-", "--data-dir", text(dir.path())]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(
        ran.err.contains("no URL came on standard input"),
        "{}",
        ran.err
    );
}

#[test]
fn not_enrolled_says_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = text(dir.path());
    for args in [
        &["push", "--data-dir", data_dir, "--stream", "gate", "a.ts"][..],
        &["run", "--data-dir", data_dir],
    ] {
        let ran = edge_node(args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("hub enroll NAME"), "{}", ran.err);
        assert!(
            ran.err
                .contains(&format!("edge-node enroll URL --data-dir {data_dir}")),
            "{}",
            ran.err
        );
    }
}

#[test]
fn configs_are_checked_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("edge.example.toml");
    let ran = edge_node(&["check-config", text(&example)]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("good"), "{}", ran.out);
    for (config, says) in [
        (
            "data_dri = '/x'\n",
            "line 1, key data_dri: unknown field `data_dri`",
        ),
        (
            "\n[http]\nlisten = 'everywhere'\n",
            "line 3, key http.listen: invalid socket address",
        ),
        (
            "[disk]\nmax_bytes = '10 apples'\n",
            "line 2, key disk.max_bytes",
        ),
        (
            "[[stream]]\nname = 'Gate'\nsource = '-'\n",
            "line 2, key stream.name",
        ),
        (
            "[[stream]]\nname = 'gate'\nsource = 'udp://:5000'\ndone = 'burn'\n",
            "line 4, key stream.done",
        ),
        (
            "[[stream]]\nname = 'gate'\nsource = 'rtsp://u:secret@10.0.0.9/main'\n",
            "key stream.source: stream gate: this version does not read rtsp:// sources yet",
        ),
    ] {
        std::fs::write(&path, config).unwrap();
        for args in [
            &["check-config", text(&path)][..],
            &["run", "--config", text(&path)],
        ] {
            let ran = edge_node(args);
            assert_eq!(ran.code, Some(78), "{args:?}: {}", ran.err);
            assert!(ran.err.contains(says), "{config:?}: {}", ran.err);
            assert!(!ran.err.contains("secret"), "{}", ran.err);
        }
    }
    let ran = edge_node(&["check-config", "/no/such/file"]);
    assert_eq!(ran.code, Some(78));
    assert!(ran.err.contains("/no/such/file"), "{}", ran.err);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    let url = format!(
        "penstock://127.0.0.1:9/{}#{}",
        "CQ".to_owned() + &"A".repeat(41),
        "A".repeat(43)
    );
    let ran = edge_node(&["enroll", &url, "--data-dir", text(&below)]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains(text(&file)), "{}", ran.err);
}

#[test]
fn the_status_of_nothing_says_how_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let ran = edge_node(&["status", "--data-dir", text(&dir.path().join("none"))]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.out.contains("not enrolled: `hub enroll NAME`"),
        "{}",
        ran.out
    );
    assert!(!dir.path().join("none").exists(), "asking makes nothing");
}
