//! The command line without a daemon: texts, exit codes, settings, invitations.

mod common;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use common::{hub, hub_in, run};
use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

fn example() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("hub.example.toml")
}

#[test]
fn version_and_help() {
    let (code, out, _) = run(&mut hub(&["--version"]));
    assert_eq!(
        (code, out.trim()),
        (0, concat!("hub ", env!("CARGO_PKG_VERSION")))
    );
    let (code, out, _) = run(&mut hub(&["--help"]));
    assert_eq!(code, 0);
    for word in [
        "serve",
        "enroll",
        "device",
        "stream",
        "check-config",
        "Examples:",
        "Exit codes: 0 done, 1 failed, 2 usage, 78",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn usage_errors_end_with_2() {
    for (args, say) in [
        (&["serve", "--nosuch"][..], "unexpected argument"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&[], "Usage: hub"),
        (&["serve", "--http", "here"], "invalid"),
        (
            &["serve", "--max-age", "1s"],
            "retention.max_age: give at least",
        ),
        (
            &["serve", "--live-window", "1s"],
            "live.window: give 10s to 2h",
        ),
        (
            &["enroll", "Gate House"],
            "use 1 to 64 characters of a-z, 0-9",
        ),
        (
            &["enroll", "../up", "--address", "h"],
            "use 1 to 64 characters of a-z, 0-9",
        ),
        (
            &["enroll", "gate", "--address", "0.0.0.0:9710"],
            "is not HOST:PORT",
        ),
        (
            &["enroll", "gate", "--address", "h", "--expires", "1s"],
            "a token lives 1m to 30d, not 1s",
        ),
        (&["device", "disable"], "required arguments"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut command = hub(args);
        command.env("PENSTOCK_DATA_DIR", &data);
        let (code, out, err) = run(&mut command);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(say), "{args:?}: {err}");
        assert!(!data.exists(), "{args:?} made files");
    }
}

#[test]
fn the_example_config_is_good_and_complete() {
    let path = example();
    let (code, out, err) = run(hub(&["check-config"]).arg(&path));
    assert_eq!(
        (code, out),
        (0, format!("{}: good\n", path.display())),
        "{err}"
    );

    // With every commented key switched on it is good too, so those keys exist as well.
    let text = fs::read_to_string(&path).unwrap();
    let is_key = |line: &&str| {
        line.strip_prefix("# ")
            .is_some_and(|l| l.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')))
    };
    let keys: Vec<_> = text.lines().filter(is_key).collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    let all: Vec<_> = text
        .lines()
        .map(|l| if is_key(&l) { &l[2..] } else { l })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("hub.toml");
    fs::write(&full, all.join("\n")).unwrap();
    let (code, _, err) = run(hub(&["check-config"]).arg(&full));
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_bad_config_ends_with_78_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.toml");
    for (text, say) in [
        (
            "[link]\nlisten_on = 'x'\n",
            "hub.toml, line 2, key link.listen_on: unknown field `listen_on`",
        ),
        (
            "\n[http]\nlisten = 'everywhere'\n",
            "hub.toml, line 3, key http.listen: ",
        ),
        (
            "[retention]\nmax_age = 'a week'\n",
            "hub.toml, line 2, key retention.max_age: ",
        ),
        (
            "[retention]\nmax_bytes = 'lots'\n",
            "hub.toml, line 2, key retention.max_bytes: ",
        ),
        (
            "[link]\npublic_address = '0.0.0.0:1'\n",
            "hub.toml, line 2, key link.public_address: ",
        ),
        (
            "[live]\nwindow = '1s'\n",
            "hub.toml, key live.window: give 10s to 2h, not 1s",
        ),
        ("data_dir = \n", "hub.toml, line 1"),
    ] {
        fs::write(&path, text).unwrap();
        let data = dir.path().join("data");
        for args in [
            &["check-config"][..],
            &["serve", "--config"],
            &["enroll", "x", "--address", "h", "--config"],
        ] {
            let (code, out, err) = run(hub(args).arg(&path).env("PENSTOCK_DATA_DIR", &data));
            assert_eq!((code, out.as_str()), (78, ""), "{args:?} {text:?}: {err}");
            assert!(err.contains(say), "{args:?} {text:?}: {err}");
        }
        assert!(!data.exists());
    }
    let (code, _, err) = run(&mut hub(&["check-config", "/no/such/file"]));
    assert_eq!(code, 78);
    assert!(err.contains("/no/such/file"), "{err}");
}

#[test]
fn an_invitation_is_one_line_with_key_and_token() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("not/there/yet");
    let enroll = |name| {
        let (code, out, err) = hub_in(
            &data,
            &[
                "enroll",
                name,
                "--address",
                "hub.example.org",
                "--stream",
                "gate",
            ],
        );
        assert_eq!(code, 0, "{err}");
        assert!(err.contains("it works once"), "{err}");
        let line = out.strip_suffix('\n').unwrap().to_owned();
        assert!(!line.contains('\n'), "{out}");
        let rest = line
            .strip_prefix("penstock://hub.example.org:9710/")
            .unwrap_or_else(|| panic!("{line}"));
        let (key, token) = rest.split_once('#').unwrap();
        let bytes = |text: &str| {
            BASE64URL_NOPAD
                .decode(text.as_bytes())
                .unwrap_or_else(|e| panic!("{text}: {e}"))
        };
        assert_eq!((bytes(key).len(), bytes(token).len()), (32, 32), "{line}");
        (key.to_owned(), token.to_owned())
    };
    // Before the first start: key and catalog are made. Twice: the same hub, another token.
    let (first, second) = (enroll("pole-7"), enroll("pole-7"));
    assert_eq!(first.0, second.0);
    assert_ne!(first.1, second.1);
    assert_eq!(
        fs::metadata(data.join("hub.key")).unwrap().mode() & 0o777,
        0o600
    );
    // The token is not in the data directory in the clear.
    for entry in fs::read_dir(&data)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
    {
        let bytes = fs::read(&entry).unwrap();
        let token = BASE64URL_NOPAD.decode(first.1.as_bytes()).unwrap();
        assert!(
            !bytes.windows(32).any(|w| w == token),
            "{}",
            entry.display()
        );
        assert!(
            !bytes
                .windows(first.1.len())
                .any(|w| w == first.1.as_bytes()),
            "{}",
            entry.display()
        );
    }
    // A stream that is reserved isn't given away in passing.
    let (code, out, err) = hub_in(
        &data,
        &["enroll", "pole-8", "--address", "h", "--stream", "gate"],
    );
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("pole-7") && err.contains("gate"), "{err}");
}

#[test]
fn the_address_comes_from_flag_variable_file_or_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hub.toml");
    fs::write(
        &config,
        format!(
            "data_dir = {:?}\nlink.public_address = 'file.example'\n",
            dir.path().join("d")
        ),
    )
    .unwrap();
    let enroll = || {
        let mut command = hub(&["enroll", "gate", "--config"]);
        command.arg(&config);
        command
    };
    for (command, begin) in [
        (&mut enroll(), "penstock://file.example:9710/"),
        (
            enroll().env("PENSTOCK_PUBLIC_ADDRESS", "variable.example"),
            "penstock://variable.example:9710/",
        ),
        (
            enroll()
                .env("PENSTOCK_PUBLIC_ADDRESS", "variable.example")
                .args(["--address", "[2001:db8::1]:99"]),
            "penstock://[2001:db8::1]:99/",
        ),
    ] {
        let (code, out, err) = run(command);
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with(begin), "{out}");
    }
    fs::write(
        &config,
        format!(
            "data_dir = {:?}\nlink.listen = '10.1.2.3:9711'\n",
            dir.path().join("d")
        ),
    )
    .unwrap();
    assert!(
        run(&mut enroll())
            .1
            .starts_with("penstock://10.1.2.3:9711/")
    );
    let (code, out, err) = hub_in(&dir.path().join("d"), &["enroll", "gate"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("Pass --address HOST:PORT"), "{err}");
}

#[test]
fn devices_and_streams_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let hub = |args: &[&str]| hub_in(dir.path(), args);
    let (code, out, err) = hub(&["device", "list"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "DEVICE  STATE  STREAMS  LAST SEEN  FROM\n"),
        "{err}"
    );
    assert!(err.contains("hub enroll NAME"), "{err}");
    assert_eq!(hub(&["stream", "list", "--json"]).1.trim(), "[]");

    for (name, stream) in [("pole-7", "gate"), ("pole-8", "yard")] {
        assert_eq!(
            hub(&["enroll", name, "--address", "h", "--stream", stream]).0,
            0
        );
    }
    let devices: Value = serde_json::from_str(&hub(&["device", "list", "--json"]).1).unwrap();
    let pole_7 = devices
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["name"] == "pole-7")
        .unwrap();
    assert_eq!(pole_7["state"], "invited");
    assert_eq!(pole_7["streams"], serde_json::json!(["gate"]));
    assert_eq!(pole_7["last_seen_ms"], Value::Null);

    // Unknown names: 1, and those that are known.
    for args in [
        &["device", "disable", "pole-9"][..],
        &["device", "enable", "pole-9"],
        &["device", "remove", "pole-9"],
    ] {
        let (code, out, err) = hub(args);
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(
            err,
            "error: no device named pole-9; known: pole-7, pole-8\n"
        );
    }
    for args in [
        &["stream", "end", "nosuch"][..],
        &["stream", "remove", "nosuch"],
        &["stream", "move", "nosuch", "pole-8"],
    ] {
        let (code, _, err) = hub(args);
        assert_eq!(code, 1);
        assert!(
            err.starts_with("error: no stream named nosuch; known: "),
            "{err}"
        );
    }
    let (code, _, err) = hub(&["stream", "move", "gate", "pole-9"]);
    assert_eq!(
        (code, err.as_str()),
        (1, "error: no device named pole-9; known: pole-7, pole-8\n")
    );

    assert_eq!(
        hub(&["device", "disable", "pole-7"]).1,
        "pole-7 is disabled; what it shipped stays here (a running `hub serve` acts on it within 2 s)\n"
    );
    let table = hub(&["device", "list"]).1;
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("pole-7  disabled  gate")),
        "{table}"
    );
    assert_eq!(
        hub(&["device", "enable", "pole-7"]).1,
        "pole-7 is enabled (a running `hub serve` acts on it within 2 s)\n"
    );
    assert_eq!(hub(&["device", "remove", "pole-8"]).0, 0);
    assert!(!hub(&["device", "list"]).1.contains("pole-8"));
}
