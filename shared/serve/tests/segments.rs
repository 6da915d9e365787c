//! Segments over HTTP: bytes, ranges, conditions and caching, from memory and from the file alike.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // a test's panic is its verdict

mod common;

use std::time::Duration;

use common::{World, content, name};
use model::{SegmentHash, SegmentNumber};

/// One that is kept in memory and one that is sent from its file.
const SMALL: (u64, usize) = (5, 188 * 1000);
const LARGE: (u64, usize) = (6, 188 * 30_000);

fn world() -> World {
    let world = World::new();
    world.stream("gate", 5);
    for (number, bytes) in [SMALL, LARGE] {
        world.segment("gate", 5, number, &content(number, bytes));
    }
    world
}

#[tokio::test]
async fn a_segment_comes_whole_with_its_hash() {
    let world = world();
    for (number, bytes) in [SMALL, LARGE] {
        let path = format!("/s/gate/{number}.ts");
        let body = content(number, bytes);
        let etag = format!("\"{}\"", SegmentHash::of(&body));
        for round in ["read", "remembered"] {
            let answer = world.get(&path).await;
            assert_eq!(answer.status, 200, "{path} {round}");
            assert!(answer.body == body, "{path} {round}");
            for (header, value) in [
                ("content-type", "video/mp2t"),
                ("content-length", bytes.to_string().as_str()),
                ("etag", etag.as_str()),
                ("cache-control", "public, max-age=3600, immutable"),
                ("accept-ranges", "bytes"),
                ("x-content-type-options", "nosniff"),
                ("access-control-allow-origin", "*"),
            ] {
                assert_eq!(
                    answer.header(header),
                    Some(value),
                    "{path} {round} {header}"
                );
            }
            let date = answer.header("last-modified").unwrap();
            // The end of the segment: 2 s after its start, and 2 s later for the next.
            let expected = if number == SMALL.0 {
                "22:13:22"
            } else {
                "22:13:24"
            };
            assert_eq!(date, format!("Tue, 14 Nov 2023 {expected} GMT"));
        }
    }
}

#[tokio::test]
async fn ranges() {
    let world = world();
    for (number, bytes) in [SMALL, LARGE] {
        let path = format!("/s/gate/{number}.ts");
        let body = content(number, bytes);
        let last = bytes - 1;
        for (range, status, part) in [
            ("bytes=0-187".to_owned(), 206, Some(0..188)),
            ("bytes=188-".to_owned(), 206, Some(188..bytes)),
            ("bytes=-188".to_owned(), 206, Some(bytes - 188..bytes)),
            (format!("bytes=-{}", bytes * 2), 206, Some(0..bytes)),
            (format!("bytes={last}-{last}"), 206, Some(last..bytes)),
            (format!("bytes=1000-{}", bytes * 2), 206, Some(1000..bytes)),
            (format!("bytes={bytes}-"), 416, None),
            ("bytes=-0".to_owned(), 416, None),
            ("bytes=0-1,4-5".to_owned(), 200, None),
            ("bytes=5-1".to_owned(), 200, None),
            ("pages=1-2".to_owned(), 200, None),
        ] {
            let answer = world.get_with(&path, &[("range", &range)]).await;
            assert_eq!(answer.status, status, "{path} {range}");
            let content_range = answer.header("content-range").map(str::to_owned);
            match (status, part) {
                (206, Some(part)) => {
                    assert!(answer.body == body[part.clone()], "{path} {range}");
                    let said = format!("bytes {}-{}/{bytes}", part.start, part.end - 1);
                    assert_eq!(content_range, Some(said), "{path} {range}");
                    assert_eq!(
                        answer.header("content-length").unwrap(),
                        part.len().to_string()
                    );
                }
                (416, _) => {
                    assert_eq!(content_range, Some(format!("bytes */{bytes}")));
                    assert_eq!(answer.error().1, "range_not_satisfiable");
                }
                _ => {
                    assert!(answer.body == body, "{path} {range}");
                    assert_eq!(content_range, None);
                }
            }
        }
    }
}

#[tokio::test]
async fn conditions() {
    let world = world();
    for (number, bytes) in [SMALL, LARGE] {
        let path = format!("/s/gate/{number}.ts");
        let first = common::ask(&world.public, "HEAD", &path, &[]).await;
        let etag = first.header("etag").unwrap().to_owned();
        let date = first.header("last-modified").unwrap().to_owned();
        assert!(first.body.is_empty());
        assert_eq!(first.header("content-length").unwrap(), bytes.to_string());
        for (headers, status, length) in [
            (vec![("if-none-match", etag.as_str())], 304, 0),
            (vec![("if-none-match", "\"x\"")], 200, bytes),
            (vec![("if-modified-since", date.as_str())], 304, 0),
            (vec![("range", "bytes=0-9"), ("if-range", &etag)], 206, 10),
            (vec![("range", "bytes=0-9"), ("if-range", &date)], 206, 10),
            (
                vec![("range", "bytes=0-9"), ("if-range", "\"x\"")],
                200,
                bytes,
            ),
            (vec![("if-match", etag.as_str())], 200, bytes),
        ] {
            let answer = world.get_with(&path, &headers).await;
            assert_eq!(answer.status, status, "{path} {headers:?}");
            assert_eq!(answer.body.len(), length, "{path} {headers:?}");
            assert_eq!(
                answer.header("etag"),
                Some(etag.as_str()),
                "{path} {headers:?}"
            );
        }
        let failed = world.get_with(&path, &[("if-match", "\"x\"")]).await;
        assert_eq!(failed.error().0, 412);
    }
}

#[tokio::test]
async fn what_is_not_here() {
    let world = world();
    for (path, status, reason) in [
        ("/s/gate/4.ts", 404, "stream gate has no segment 4 here"),
        ("/s/gate/7.ts", 404, "stream gate has no segment 7 here"),
        ("/s/gate/gap-5.ts", 404, "this is a gap"),
        ("/s/gate/gap-0.ts", 404, "this is a gap"),
        ("/s/gate/05.ts", 404, "nothing at /s/gate/05.ts"),
        ("/s/gate/5.TS", 404, "nothing at /s/gate/5.TS"),
        ("/s/gate/18446744073709551616.ts", 404, "nothing at"),
        ("/s/yard/5.ts", 404, "no stream named yard; known: gate"),
        ("/s/-/5.ts", 400, "use 1 to 64 characters"),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = common::ask(&world.public, method, path, &[]).await;
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(
                answer.header("access-control-allow-origin"),
                Some("*"),
                "{path}"
            );
            if method == "GET" {
                let said = answer.error().2;
                assert!(said.contains(reason), "{path}: {said}");
            }
        }
    }
}

/// Invariant 1: nothing is visible before its bytes are durable under their final name.
#[tokio::test]
async fn a_segment_that_is_being_written_is_not_served() {
    let world = world();
    let open = store::OpenSegment {
        number: SegmentNumber(7),
        run: SegmentNumber(5),
        wall_start: common::BEGIN,
        media_start: model::MediaTime(0),
        independent: true,
    };
    let mut writer = world.store.open_segment(&name("gate"), open).unwrap();
    writer.append(b"half").unwrap();
    assert_eq!(world.get("/s/gate/7.ts").await.status, 404);
    writer.append(b" and half").unwrap();
    writer.close(common::SEGMENT, None).unwrap();
    let answer = world.get("/s/gate/7.ts").await;
    assert_eq!(
        (answer.status.as_u16(), answer.text()),
        (200, "half and half")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_who_ask_at_once_share_one_reading() {
    let world = world();
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let router = world.public.clone();
            tokio::spawn(async move { common::ask(&router, "GET", "/s/gate/5.ts", &[]).await })
        })
        .collect();
    let mut places = Vec::new();
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200);
        places.push(answer.body);
    }
    let first = places[0].as_ptr();
    assert!(places.iter().all(|body| body.as_ptr() == first));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_segment_leaves_memory_within_seconds() {
    let world = world();
    assert_eq!(world.get("/s/gate/5.ts").await.status, 200);
    assert!(world.store.remove_stream(&name("gate")).unwrap());
    tokio::time::advance(Duration::from_secs(5)).await;
    let answer = world.get("/s/gate/5.ts").await;
    assert_eq!(
        answer.status,
        404,
        "{}",
        answer.header("etag").unwrap_or_default()
    );
}
