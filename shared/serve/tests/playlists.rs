//! Playlists over HTTP: headers, compression, caching, and what is said when there is none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // a test's panic is its verdict

mod common;

use std::io::Read;

use common::{BEGIN, World};
use flate2::read::GzDecoder;
use model::WallTime;

fn unpacked(bytes: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_live_playlist_says_what_it_is_and_how_long_it_keeps() {
    let world = World::new();
    world.filled("gate", 10, 4);
    let answer = world.get("/s/gate/live.m3u8").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().starts_with("#EXTM3U\n"));
    for number in 10..14 {
        assert!(
            answer.text().contains(&format!("\n{number}.ts\n")),
            "{}",
            answer.text()
        );
    }
    assert!(!answer.text().contains("#EXT-X-ENDLIST"));
    for (header, value) in [
        ("content-type", "application/vnd.apple.mpegurl"),
        ("cache-control", "max-age=1"),
        ("vary", "accept-encoding"),
        ("x-content-type-options", "nosniff"),
        ("access-control-allow-origin", "*"),
        ("content-length", answer.body.len().to_string().as_str()),
    ] {
        assert_eq!(answer.header(header), Some(value), "{header}");
    }
    assert!(
        answer
            .header("access-control-expose-headers")
            .unwrap()
            .contains("Content-Range")
    );
    assert!(answer.header("last-modified").is_some());
    let etag = answer.header("etag").unwrap();
    assert!(
        etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'),
        "{etag}"
    );
}

#[tokio::test]
async fn a_playlist_is_compressed_for_whom_takes_it_and_has_an_etag_per_form() {
    let world = World::new();
    world.filled("gate", 0, 20);
    let plain = world.get("/s/gate/live.m3u8").await;
    let packed = world
        .get_with("/s/gate/live.m3u8", &[("accept-encoding", "br, gzip")])
        .await;
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(
        packed.header("content-length").unwrap(),
        packed.body.len().to_string()
    );
    assert!(packed.body.len() < plain.body.len() / 2);
    assert_eq!(unpacked(&packed.body), plain.text());
    assert_ne!(packed.header("etag"), plain.header("etag"));

    for (etag, status) in [
        (plain.header("etag").unwrap(), 304),
        (packed.header("etag").unwrap(), 304),
        ("*", 304),
        ("\"another\"", 200),
    ] {
        for encoding in ["gzip", "identity"] {
            let headers = [("if-none-match", etag), ("accept-encoding", encoding)];
            let answer = world.get_with("/s/gate/live.m3u8", &headers).await;
            assert_eq!(answer.status, status, "{etag} {encoding}");
            if status == 304 {
                assert!(answer.body.is_empty());
                assert_eq!(answer.header("content-encoding"), None);
                assert_eq!(answer.header("cache-control"), Some("max-age=1"));
                let of_form = if encoding == "gzip" { &packed } else { &plain };
                for header in ["etag", "content-length"] {
                    assert_eq!(answer.header(header), of_form.header(header));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_head_request_gets_the_same_headers_and_nothing_else() {
    let world = World::new();
    world.filled("gate", 0, 3);
    for path in [
        "/s/gate/live.m3u8",
        "/s/gate/rec.m3u8",
        "/s/gate/1.ts",
        "/s/nowhere/live.m3u8",
    ] {
        let get = world.get(path).await;
        let head = common::ask(&world.public, "HEAD", path, &[]).await;
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        for header in [
            "content-type",
            "content-length",
            "etag",
            "cache-control",
            "last-modified",
        ] {
            if get.status == 200 {
                assert_eq!(head.header(header), get.header(header), "{path} {header}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_shows_at_once_and_no_change_keeps_the_etag() {
    let world = World::new();
    world.filled("gate", 0, 3);
    let before = world.get("/s/gate/live.m3u8").await;
    let again = world.get("/s/gate/live.m3u8").await;
    assert_eq!(before.header("etag"), again.header("etag"));
    assert_eq!(before.body.as_ptr(), again.body.as_ptr(), "rendered anew");

    // Another stream's change is none of this one's.
    world.filled("yard", 0, 1);
    let other = world.get("/s/gate/live.m3u8").await;
    assert_eq!(before.header("etag"), other.header("etag"));

    world.segment("gate", 0, 3, b"more");
    let after = world.get("/s/gate/live.m3u8").await;
    assert_ne!(before.header("etag"), after.header("etag"));
    assert!(after.text().ends_with("\n3.ts\n"), "{}", after.text());

    world.end("gate", 3);
    let ended = world.get("/s/gate/live.m3u8").await;
    assert!(
        ended.text().ends_with("#EXT-X-ENDLIST\n"),
        "{}",
        ended.text()
    );
    assert_eq!(ended.header("cache-control"), Some("max-age=1"));
}

#[tokio::test]
async fn a_recording_keeps_longer_when_it_can_no_longer_grow() {
    let world = World::new();
    world.filled("gate", 0, 10);
    world.end("gate", 9);
    let at = |s: i64| WallTime(BEGIN.0 + s * 1000);
    let (from, to) = (at(4), at(12));
    for (query, listed, cache) in [
        (String::new(), 0..10, "max-age=1"),
        (format!("?from={}&to={}", from.0, to.0), 2..6, "max-age=300"),
        (
            format!("?from={from}&to={to}&_HLS_msn=3"),
            2..6,
            "max-age=300",
        ),
        (format!("?from={from}"), 2..10, "max-age=1"),
    ] {
        let path = format!("/s/gate/rec.m3u8{query}");
        for round in ["read", "remembered"] {
            let answer = world.get(&path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let numbers: Vec<u64> = answer
                .text()
                .lines()
                .filter_map(|line| line.strip_suffix(".ts")?.parse().ok())
                .collect();
            assert_eq!(
                numbers,
                listed.clone().collect::<Vec<_>>(),
                "{path} {round}"
            );
            assert!(answer.text().ends_with("#EXT-X-ENDLIST\n"), "{path}");
            assert_eq!(answer.header("cache-control"), Some(cache), "{path}");
            assert_eq!(
                answer.header("content-type"),
                Some("application/vnd.apple.mpegurl")
            );
        }
    }
}

#[tokio::test]
async fn a_recording_of_a_growing_stream_grows() {
    let world = World::new();
    world.filled("gate", 0, 3);
    let path = format!("/s/gate/rec.m3u8?from={}", BEGIN.0);
    let before = world.get(&path).await;
    world.segment("gate", 0, 3, b"more");
    let after = world.get(&path).await;
    assert!(!before.text().contains("\n3.ts"), "{}", before.text());
    assert!(after.text().contains("\n3.ts"), "{}", after.text());
}

#[tokio::test]
async fn what_has_no_playlist_says_why() {
    let world = World::new();
    world.filled("gate", 0, 3);
    world.stream("new", 0);
    let rule = "use 1 to 64 characters";
    for (path, status, error, reason) in [
        (
            "/s/yard/live.m3u8",
            404,
            "not_found",
            "no stream named yard; known: gate, new",
        ),
        (
            "/s/yard/rec.m3u8",
            404,
            "not_found",
            "no stream named yard; known: gate, new",
        ),
        (
            "/s/new/live.m3u8",
            404,
            "not_yet",
            "stream new has no segment yet",
        ),
        (
            "/s/new/rec.m3u8",
            404,
            "not_yet",
            "stream new has no segment yet",
        ),
        (
            "/s/gate/rec.m3u8?from=1&to=2",
            404,
            "not_found",
            "stream gate has nothing recorded from 1970-01-01T00:00:00.001Z to 1970-01-01T00:00:00.002Z",
        ),
        (
            "/s/gate/rec.m3u8?from=yesterday",
            400,
            "bad_request",
            "from: \"yesterday\" is not a time",
        ),
        (
            "/s/gate/rec.m3u8?from=2&to=1",
            400,
            "bad_request",
            "is not before",
        ),
        ("/s/Gate/live.m3u8", 400, "bad_request", rule),
        ("/s/../live.m3u8", 400, "bad_request", rule),
        ("/s/%2e%2e%2fetc/live.m3u8", 400, "bad_request", rule),
        ("/s/%F0%9F%8E%A5/live.m3u8", 400, "bad_request", rule),
        (
            "/s/gate/playlist.m3u8",
            404,
            "not_found",
            "a stream has live.m3u8",
        ),
        ("/s/gate/", 404, "not_found", "a stream has live.m3u8"),
        ("/s/gate", 404, "not_found", "a stream has live.m3u8"),
        ("/nowhere", 404, "not_found", "nothing at /nowhere"),
    ] {
        // Twice: what is remembered is no other answer.
        for _ in 0..2 {
            let answer = world.get(path).await;
            let (s, e, r) = answer.error();
            assert_eq!((s, e.as_str()), (status, error), "{path}: {r}");
            assert!(r.contains(reason), "{path}: {r}");
            assert_eq!(answer.header("cache-control"), Some("max-age=1"), "{path}");
            let retry = (error == "not_yet").then_some("2");
            assert_eq!(answer.header("retry-after"), retry, "{path}");
            if path.starts_with("/s/") {
                assert_eq!(
                    answer.header("access-control-allow-origin"),
                    Some("*"),
                    "{path}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_stream_plays_as_soon_as_it_has_a_segment() {
    let world = World::new();
    world.stream("gate", 7);
    assert_eq!(world.get("/s/gate/live.m3u8").await.status, 404);
    world.segment("gate", 7, 7, b"first");
    assert_eq!(world.get("/s/gate/live.m3u8").await.status, 200);
    assert_eq!(world.get("/s/gate/rec.m3u8").await.status, 200);
}

#[tokio::test]
async fn only_reading_is_answered_and_other_origins_may_read() {
    let world = World::new();
    world.filled("gate", 0, 1);
    for path in ["/s/gate/live.m3u8", "/s/gate/0.ts"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = common::ask(&world.public, method, path, &[]).await;
            assert_eq!(answer.error().0, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"));
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        let headers = [
            ("origin", "https://viewer.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "range"),
        ];
        let preflight = common::ask(&world.public, "OPTIONS", path, &headers).await;
        assert_eq!(preflight.status, 204);
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            preflight.header("access-control-allow-methods"),
            Some("GET, HEAD")
        );
        assert!(
            preflight
                .header("access-control-allow-headers")
                .unwrap()
                .contains("Range")
        );
    }
    // Not so for the API and the page.
    for path in ["/api/v1/streams", "/"] {
        assert_eq!(
            world.get(path).await.header("access-control-allow-origin"),
            None,
            "{path}"
        );
        let post = common::ask(&world.public, "POST", path, &[]).await;
        assert_eq!(post.error().0, 405, "{path}");
    }
}
