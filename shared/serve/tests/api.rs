//! The read-only API, health, metrics and the page's files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // a test's panic is its verdict

mod common;

use std::io::Read;

use common::{World, ask};
use flate2::read::GzDecoder;
use serde_json::json;
use serve::Role;

#[tokio::test]
async fn the_list_of_streams_has_the_documented_shape() {
    let world = World::new();
    assert_eq!(
        world.get("/api/v1/streams").await.json(),
        json!({ "streams": [] })
    );
    world.filled("gate", 10, 3);
    world.end("gate", 12);
    world.stream("empty", 0);
    let range = json!({ "from": "2023-11-14T22:13:20.000Z", "to": "2023-11-14T22:13:26.000Z" });
    let gate = json!({
        "name": "gate", "title": null, "device": null, "state": "ended",
        "codecs": "avc1.64001f,mp4a.40.2", "resolution": { "width": 1280, "height": 720 },
        "first": range["from"], "last": range["to"], "ranges": [range],
        "segments": 3, "bytes": 3 * 376, "first_number": 10, "last_number": 12,
        "unshipped": 0, "unshipped_bytes": 0, "given_up": 0,
        "live_url": "s/gate/live.m3u8", "rec_url": "s/gate/rec.m3u8",
    });
    for router in [&world.public, &world.admin] {
        let answer = ask(router, "GET", "/api/v1/streams", &[]).await;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let list = answer.json();
        let names: Vec<&str> = list["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["empty", "gate"]);
        let listed = &list["streams"][1];
        assert_eq!(*listed, gate);
        let one = ask(router, "GET", "/api/v1/streams/gate", &[]).await;
        assert_eq!(one.json(), gate);
        let empty = ask(router, "GET", "/api/v1/streams/empty", &[])
            .await
            .json();
        for nothing in ["first", "last", "first_number", "last_number"] {
            assert!(empty[nothing].is_null(), "{nothing}: {empty}");
        }
        assert_eq!(empty["ranges"], json!([]));
    }
}

#[tokio::test]
async fn an_edge_says_what_it_has_to_ship() {
    let world = World::with(Role::Edge, || Ok(()));
    world.filled("gate", 0, 3);
    let first = model::SegmentNumber(0);
    world
        .store
        .mark_stored(&common::name("gate"), first)
        .unwrap();
    let gate = world.get("/api/v1/streams/gate").await.json();
    assert_eq!(
        (&gate["unshipped"], &gate["unshipped_bytes"]),
        (&json!(2), &json!(752))
    );
}

#[tokio::test]
async fn a_stream_that_is_not_there() {
    let world = World::new();
    world.filled("gate", 0, 1);
    for (path, status, reason) in [
        (
            "/api/v1/streams/yard",
            404,
            "no stream named yard; known: gate",
        ),
        ("/api/v1/streams/Yard", 400, "use 1 to 64 characters"),
        ("/api/v1/streams/..%2f..", 400, "use 1 to 64 characters"),
        ("/api/v2/streams", 404, "nothing at /api/v2/streams"),
        ("/api/v1/devices", 404, "nothing at"),
        ("/metrics", 404, "nothing at /metrics"),
    ] {
        let (s, _, r) = world.get(path).await.error();
        assert_eq!(s, status, "{path}");
        assert!(r.contains(reason), "{path}: {r}");
    }
}

#[tokio::test]
async fn health_and_readiness() {
    let ready = World::with(Role::Edge, || Ok(()));
    let not = World::with(
        Role::Hub,
        || Err("the disk is full: free some space".into()),
    );
    for router in [&ready.public, &ready.admin, &not.public, &not.admin] {
        let answer = ask(router, "GET", "/healthz", &[]).await;
        assert_eq!(answer.json(), json!({ "status": "alive" }));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    for router in [&ready.public, &ready.admin] {
        let answer = ask(router, "GET", "/readyz", &[]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()),
            (200, json!({ "status": "ready" }))
        );
    }
    for router in [&not.public, &not.admin] {
        let answer = ask(router, "GET", "/readyz", &[]).await;
        let reason = "the disk is full: free some space".to_owned();
        assert_eq!(answer.error(), (503, "not_ready".to_owned(), reason));
        assert!(answer.header("retry-after").is_some());
    }
    let status = ready.get("/api/v1/status").await.json();
    assert_eq!(status["role"], "edge");
    assert_eq!(status["ready"], true);
    assert_eq!(status["sessions"], json!([]));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        status["time"]
            .as_str()
            .unwrap()
            .parse::<model::WallTime>()
            .is_ok()
    );
    let status = not.get("/api/v1/status").await.json();
    assert_eq!(status["role"], "hub");
    assert_eq!(status["not_ready"], "the disk is full: free some space");
}

#[tokio::test]
async fn metrics_are_on_the_admin_side_only() {
    let world = World::new();
    let answer = ask(&world.admin, "GET", "/metrics", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(answer.text().contains("penstock_http_requests_total"));
    assert!(answer.text().ends_with("# EOF\n"));
    assert_eq!(
        ask(&world.admin, "GET", "/s/gate/live.m3u8", &[])
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn the_page_of_links_is_on_the_admin_side_only() {
    let world = World::new();
    for path in ["/", "/link"] {
        let page = ask(&world.admin, "GET", path, &[]).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(!page.text().contains("{{"), "an unfilled mark");
        let urls = page.text().split('"').filter(|t| t.starts_with("assets/"));
        let mut scripts = Vec::new();
        for url in urls {
            let asset = ask(&world.admin, "GET", &format!("/{url}"), &[]).await;
            assert_eq!(asset.status, 200, "{url}");
            scripts.extend(url.split('?').next().filter(|name| name.ends_with(".js")));
        }
        assert_eq!(scripts, ["assets/common.js", "assets/link.js"]);
    }
    assert_eq!(world.get("/link").await.error().0, 404);
}

/// A program's write routes beside the read-only ones, on the same paths.
#[tokio::test]
async fn a_program_adds_its_own_routes_to_the_admin_side() {
    use axum::routing::{delete, get};
    let world = World::new();
    let own = axum::Router::new()
        .route("/api/v1/devices", get(|| async { "devices" }))
        .route("/api/v1/streams/{stream}", delete(|| async { "deleted" }));
    let merged = world.admin.clone().merge(own);
    for (method, path, status) in [
        ("GET", "/api/v1/devices", 200),
        ("DELETE", "/api/v1/streams/gate", 200),
        ("GET", "/api/v1/streams/gate", 404),
        ("PUT", "/api/v1/streams/gate", 405),
        ("GET", "/api/v1/streams", 200),
    ] {
        assert_eq!(
            ask(&merged, method, path, &[]).await.status,
            status,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn the_page_brings_all_that_it_needs() {
    let world = World::new();
    let page = world.get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(
        page.header("cache-control"),
        Some("max-age=0, must-revalidate")
    );
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
    assert!(!page.text().contains("{{"), "an unfilled mark");
    let etag = page.header("etag").unwrap();
    let again = world.get_with("/", &[("if-none-match", etag)]).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));

    let urls: Vec<&str> = page
        .text()
        .split('"')
        .filter(|text| text.starts_with("assets/"))
        .collect();
    assert!(urls.len() >= 4, "{urls:?}");
    for url in urls {
        let plain = world.get(&format!("/{url}")).await;
        assert_eq!(plain.status, 200, "{url}");
        assert_eq!(
            plain.header("x-content-type-options"),
            Some("nosniff"),
            "{url}"
        );
        assert!(
            plain.header("cache-control").unwrap().contains("immutable"),
            "{url}"
        );
        let gzip = [("accept-encoding", "gzip")];
        let packed = world.get_with(&format!("/{url}"), &gzip).await;
        assert_eq!(packed.header("content-encoding"), Some("gzip"), "{url}");
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed.body[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert!(unpacked == plain.body, "{url}");
    }
    assert_eq!(world.get("/assets/hls.LICENSE.txt").await.status, 200);
    assert_eq!(world.get("/assets/../Cargo.toml").await.status, 404);
    assert_eq!(world.get("/assets/nothing.js").await.error().0, 404);
}

/// Relative URLs only: the page works under any prefix that a reverse proxy gives it.
#[test]
fn nothing_in_the_page_is_absolute() {
    for text in [
        include_str!("../assets/index.html"),
        include_str!("../assets/link.html"),
        include_str!("../assets/common.js"),
        include_str!("../assets/app.js"),
        include_str!("../assets/link.js"),
    ] {
        for absolute in [
            "src=\"/",
            "href=\"/",
            "fetch(\"/",
            "json(\"/",
            "`/s/${",
            "\"/api",
        ] {
            assert!(!text.contains(absolute), "{absolute}");
        }
    }
}
