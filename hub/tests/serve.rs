//! The daemon: readiness, who may write on the admin listener, changes from beside it, stopping.

mod common;

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{Daemon, get, http, hub_in, run, serve, until};
use serde_json::json;

#[test]
fn starts_serves_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    assert_eq!(get(&format!("{}/healthz", hub.http)).status, 200);
    assert_eq!(get(&format!("{}/readyz", hub.http)).status, 200);
    let page = get(&format!("{}/", hub.http));
    assert_eq!(
        (page.status, page.content_type.starts_with("text/html")),
        (200, true),
        "{}",
        page.content_type
    );
    for path in [
        "/s/nosuch/live.m3u8",
        "/s/nosuch/rec.m3u8",
        "/s/nosuch/1.ts",
        "/nosuch",
    ] {
        let answer = get(&format!("{}{path}", hub.http));
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (404, "application/json"),
            "{path}"
        );
        assert!(!answer.error().is_empty());
    }
    // What writes, and what counts, isn't on the public listener.
    for path in ["/api/v1/devices", "/metrics"] {
        assert_eq!(get(&format!("{}{path}", hub.http)).status, 404, "{path}");
    }
    for secret in ["hub.key", "admin.token"] {
        assert_eq!(
            fs::metadata(dir.path().join(secret)).unwrap().mode() & 0o777,
            0o600,
            "{secret}"
        );
    }
    let token = fs::read(dir.path().join("admin.token")).unwrap();
    assert_eq!(hub.stop(), 0);

    // The secrets outlive it.
    let hub = Daemon::start(dir.path());
    assert_eq!(fs::read(dir.path().join("admin.token")).unwrap(), token);
    assert_eq!(hub.stop(), 0);
}

#[test]
fn a_second_signal_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    // A request that never comes to its end holds the orderly stop back.
    let mut slow = TcpStream::connect(hub.http.trim_start_matches("http://")).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
    until("the request has begun", || {
        get(&format!("{}/metrics", hub.admin))
            .text
            .contains("penstock_http_connections_open 1\n")
    });
    hub.terminate();
    hub.says("stopping");
    let asked = Instant::now();
    hub.terminate();
    assert_eq!(hub.end(), 1);
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_second_daemon_says_who_holds_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let first = Daemon::start(dir.path());
    let (code, out, err) = run(&mut serve(dir.path()));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is in use by hub serve"), "{err}");
    assert!(err.contains("--data-dir"), "{err}");
    assert_eq!(get(&format!("{}/readyz", first.http)).status, 200);
}

#[test]
fn an_address_in_use_names_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_address = udp.local_addr().unwrap().to_string();
    for (flag, address) in [
        ("--http", &address),
        ("--admin", &address),
        ("--link", &udp_address),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let mut command = common::hub(&["serve", "--data-dir"]);
        command.arg(dir.path());
        for other in ["--http", "--admin", "--link"] {
            command.args([other, if other == flag { address } else { any }]);
        }
        let (code, _, err) = run(command.stdout(Stdio::null()));
        assert_eq!(code, 1, "{err}");
        let last = err.lines().last().unwrap();
        assert!(
            last.starts_with("error: ") && last.contains(flag) && last.contains(address.as_str()),
            "{err}"
        );
    }
}

#[test]
fn only_the_token_writes() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    let token = fs::read_to_string(dir.path().join("admin.token")).unwrap();
    let near_miss = token[1..].trim();
    let token = Some(token.trim());
    let url = |path: &str| format!("{}/api/v1/{path}", hub.admin);
    let invite = json!({ "name": "pole-7", "streams": ["gate"], "address": "hub.example.org" });

    let writes = [
        ("POST", "devices"),
        ("PATCH", "devices/x"),
        ("DELETE", "devices/x"),
        ("POST", "streams/x/end"),
        ("PATCH", "streams/x"),
        ("DELETE", "streams/x"),
    ];
    for (method, path) in writes {
        for wrong in [None, Some(""), Some("wrong"), Some(near_miss)] {
            let answer = http(method, &url(path), wrong, Some(&invite));
            assert_eq!(answer.status, 401, "{method} {path} {wrong:?}");
            assert!(answer.error().contains("admin.token"));
        }
    }
    assert_eq!(get(&url("devices")).json(), json!([]));

    let made = http("POST", &url("devices"), token, Some(&invite));
    assert_eq!(made.status, 200, "{}", made.text);
    assert!(
        made.json()["url"]
            .as_str()
            .unwrap()
            .starts_with("penstock://hub.example.org:9710/")
    );
    let listed = get(&url("devices")).json();
    assert_eq!(
        (
            &listed[0]["name"],
            &listed[0]["state"],
            &listed[0]["session"]
        ),
        (&json!("pole-7"), &json!("invited"), &json!(null))
    );

    let change = json!({ "enabled": false });
    assert_eq!(
        http("PATCH", &url("devices/pole-7"), token, Some(&change)).status,
        200
    );
    assert_eq!(get(&url("devices")).json()[0]["state"], "disabled");

    // Refusals say what is wrong, and who is at fault by their status.
    let rival = json!({ "name": "pole-8", "streams": ["gate"], "address": "h" });
    for (method, path, body, status, say) in [
        (
            "PATCH",
            "devices/pole-9",
            &change,
            404,
            "no device named pole-9; known: pole-7",
        ),
        ("PATCH", "devices/Pole", &change, 400, "a-z"),
        (
            "PATCH",
            "devices/pole-7",
            &json!({ "enable": 1 }),
            422,
            "enable",
        ),
        ("DELETE", "devices/pole-9", &change, 404, "pole-9"),
        ("POST", "devices", &rival, 409, "pole-7"),
        (
            "POST",
            "devices",
            &json!({ "name": "x", "expires": "1s", "address": "h" }),
            400,
            "1m to 30d",
        ),
        ("POST", "devices", &json!({ "name": "../x" }), 422, "a-z"),
        (
            "POST",
            "streams/nosuch/end",
            &change,
            404,
            "no stream named nosuch",
        ),
        (
            "DELETE",
            "streams/nosuch",
            &change,
            404,
            "no stream named nosuch",
        ),
        (
            "PATCH",
            "streams/nosuch",
            &json!({ "device": "pole-7" }),
            404,
            "no stream named nosuch",
        ),
        (
            "PATCH",
            "streams/gate",
            &json!({ "device": "pole-9" }),
            404,
            "no device named pole-9",
        ),
    ] {
        let answer = http(method, &url(path), token, Some(body));
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert!(
            answer.error().contains(say),
            "{method} {path}: {}",
            answer.text
        );
    }
    let long = json!({ "name": "x", "address": "y".repeat(70_000) });
    assert_eq!(
        http("POST", &url("devices"), token, Some(&long)).status,
        413
    );

    assert_eq!(
        http("DELETE", &url("devices/pole-7"), token, None).status,
        200
    );
    assert_eq!(get(&url("devices")).json(), json!([]));
    assert_eq!(hub.stop(), 0);
}

#[test]
fn a_devices_link_is_told_on_the_admin_listener() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    let (code, _, err) = hub_in(dir.path(), &["enroll", "pole-7", "--address", &hub.link]);
    assert_eq!(code, 0, "{err}");
    let link = |listener: &str, name: &str| get(&format!("{listener}/api/v1/devices/{name}/link"));
    until("the daemon knows", || {
        link(&hub.admin, "pole-7").status == 200
    });
    assert_eq!(
        link(&hub.admin, "pole-7").json(),
        json!({
            "device": "pole-7", "connected": false, "peer": null, "since_ms": null, "reported_ms": null,
            "now": null, "streams": [], "interval_ms": 10_000, "samples": [],
        })
    );
    let unknown = link(&hub.admin, "pole-9");
    assert_eq!(unknown.status, 404);
    assert!(
        unknown
            .error()
            .contains("no device named pole-9; known: pole-7"),
        "{}",
        unknown.text
    );
    assert_eq!(link(&hub.admin, "Pole").status, 400);
    let page = get(&format!("{}/", hub.admin));
    assert_eq!(
        (page.status, page.content_type.starts_with("text/html")),
        (200, true)
    );
    assert!(page.text.contains("assets/link.js"), "{}", page.text);
    // None of it is public.
    for path in ["/api/v1/devices/pole-7/link", "/link"] {
        assert_eq!(get(&format!("{}{path}", hub.http)).status, 404, "{path}");
    }
    assert_eq!(hub.stop(), 0);
}

#[test]
fn subcommands_work_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    let (code, out, err) = hub_in(dir.path(), &["enroll", "pole-7", "--address", &hub.link]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with(&format!("penstock://{}/", hub.link)),
        "{out}"
    );
    let state = || get(&format!("{}/api/v1/devices", hub.admin)).json()[0]["state"].clone();
    assert_eq!(state(), "invited");
    let (code, out, _) = hub_in(dir.path(), &["device", "disable", "pole-7"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("pole-7 is disabled;"), "{out}");
    let took = until("the daemon knows", || state() == "disabled");
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert_eq!(hub.stop(), 0);
}

#[test]
fn metrics_have_the_words_of_the_house() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Daemon::start(dir.path());
    // A datagram that makes no sense is counted, nothing more.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"GET / HTTP/1.1", &hub.link).unwrap();
    let metrics = || get(&format!("{}/metrics", hub.admin)).text;
    until("the datagram is counted", || {
        metrics().contains("penstock_link_datagrams_bad_total 1")
    });
    let text = metrics();
    for name in [
        "penstock_link_datagrams_received_total 1",
        "penstock_link_sessions 0",
        "penstock_streams 0",
        "penstock_store_bytes 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == name), "{name}: {text}");
    }
    assert_eq!(hub.stop(), 0);
}
