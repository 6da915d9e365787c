//! Requests of any path, query and headers to the router of a store with some segments.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    body::Body,
    http::{HeaderName, HeaderValue, Method, Request, StatusCode},
};
use model::{MediaDuration, MediaTime, RunInfo, SegmentNumber, StreamName, WallTime};
use serve::{App, Role};
use store::{OpenSegment, Store, StoreOptions};
use tower::ServiceExt;

const SEGMENTS: u64 = 3;
const SEGMENT_BYTES: usize = 1_000;
/// Longest answer: a page, or a playlist of three segments.
const MAX_ANSWER_BYTES: usize = 1 << 20;

struct Site {
    router: Router,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn content(number: u64) -> Vec<u8> {
    (0..SEGMENT_BYTES as u64)
        .map(|i| (i * 7 + number * 31) as u8)
        .collect()
}

/// One for the whole process: requests change nothing in it.
fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let gate: StreamName = "gate".parse().unwrap();
        store.register_stream(&gate, None).unwrap();
        let run = RunInfo {
            run: SegmentNumber(1),
            codecs: "avc1.64001f".into(),
            resolution: Some((1280, 720)),
            target_duration_s: 2,
        };
        store.put_run(&gate, &run).unwrap();
        let duration = MediaDuration::from_millis(2_000);
        for number in 1..=SEGMENTS {
            let open = OpenSegment {
                number: SegmentNumber(number),
                run: SegmentNumber(1),
                wall_start: WallTime(1_700_000_000_000 + number as i64 * 2_000),
                media_start: MediaTime(number as i64 * duration.0),
                independent: true,
            };
            let mut writer = store.open_segment(&gate, open).unwrap();
            writer.append(&content(number)).unwrap();
            writer.finish_part(duration, true).unwrap();
            writer.close(duration, None).unwrap();
        }
        let app = App {
            store,
            role: Role::Hub,
            ready: Arc::new(|| Ok(())),
            status: Arc::new(|| serde_json::json!({ "sessions": [] })),
        };
        Site {
            router: serve::public_router(Arc::new(app)),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            _dir: dir,
        }
    })
}

/// The first line is the path with its query, then header lines; `HEAD ` or `POST ` may stand before the path.
pub(crate) fn http(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let (method, path) = match first {
        [b'H', b'E', b'A', b'D', b' ', path @ ..] => (Method::HEAD, path),
        [b'P', b'O', b'S', b'T', b' ', path @ ..] => (Method::POST, path),
        path => (Method::GET, path),
    };
    let mut request = Request::builder().method(method.clone()).uri(path);
    for line in lines.take(16) {
        let mut halves = line.splitn(2, |&byte| byte == b':');
        let (name, value) = (
            halves.next().unwrap_or_default(),
            halves.next().unwrap_or_default(),
        );
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.trim_ascii()),
        ) else {
            continue;
        };
        request = request.header(name, value);
    }
    let Ok(request) = request.body(Body::empty()) else {
        return;
    };
    let path = request.uri().path().to_owned();
    let site = site();
    site.runtime.block_on(async {
        let (parts, body) = site
            .router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        let body = axum::body::to_bytes(body, MAX_ANSWER_BYTES)
            .await
            .expect("an answer of some size");
        assert!(
            !parts.status.is_server_error(),
            "{} for {path}",
            parts.status
        );
        let number = path
            .strip_prefix("/s/gate/")
            .and_then(|file| file.strip_suffix(".ts")?.parse().ok());
        let Some(number) = number.filter(|number| (1..=SEGMENTS).contains(number)) else {
            return;
        };
        let whole = content(number);
        match parts.status {
            StatusCode::OK if method == Method::GET => assert_eq!(body, whole),
            StatusCode::PARTIAL_CONTENT => {
                let range = parts.headers["content-range"].to_str().unwrap();
                let (bounds, of) = range
                    .strip_prefix("bytes ")
                    .unwrap()
                    .split_once('/')
                    .unwrap();
                let (from, to) = bounds.split_once('-').unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                assert_eq!(of, SEGMENT_BYTES.to_string());
                assert!(!body.is_empty() && body == whole[from..=to], "{range}");
            }
            StatusCode::NOT_MODIFIED => assert!(body.is_empty()),
            _ => {}
        }
    });
}
