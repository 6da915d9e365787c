//! A store with segments in a temporary folder, and requests to the real routers.
#![allow(dead_code)] // each test file uses its part

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use bytes::Bytes;
use model::{MediaDuration, MediaTime, RunInfo, SegmentInfo, SegmentNumber, StreamName, WallTime};
use serve::{App, Role};
use store::{OpenSegment, RetentionLimits, Store, StoreOptions};
use tower::ServiceExt;

/// Wall time of segment 0: long past, so that `Last-Modified` is never in the future.
pub(crate) const BEGIN: WallTime = WallTime(1_700_000_000_000);
pub(crate) const SEGMENT: MediaDuration = MediaDuration::from_millis(2_000);

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) public: Router,
    pub(crate) admin: Router,
    _dir: tempfile::TempDir,
}

pub(crate) fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Role::Hub, || Ok(()))
    }

    pub(crate) fn with(role: Role, ready: fn() -> Result<(), String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            holder: "a test".into(),
            local_playlists: false,
            live_window: Duration::from_secs(120),
            limits: RetentionLimits::default(),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let app = Arc::new(App {
            store: store.clone(),
            role,
            ready: Arc::new(ready),
            status: Arc::new(|| serde_json::json!({ "sessions": [] })),
        });
        let mut registry = prometheus_client::registry::Registry::with_prefix("penstock");
        serve::HttpCounters::default().register(&mut registry);
        Self {
            public: serve::public_router(app.clone()),
            admin: serve::admin_router(app, Arc::new(registry)),
            store,
            _dir: dir,
        }
    }

    /// A stream with a run that begins with segment `first`.
    pub(crate) fn stream(&self, stream: &str, first: u64) {
        let run = RunInfo {
            run: SegmentNumber(first),
            codecs: "avc1.64001f,mp4a.40.2".into(),
            resolution: Some((1280, 720)),
            target_duration_s: 2,
        };
        self.store.register_stream(&name(stream), None).unwrap();
        self.store.put_run(&name(stream), &run).unwrap();
    }

    /// Closes segment `number` of the run that began with `first`, with these bytes.
    pub(crate) fn segment(
        &self,
        stream: &str,
        first: u64,
        number: u64,
        bytes: &[u8],
    ) -> SegmentInfo {
        let at = MediaDuration((number - first) as i64 * SEGMENT.0);
        let open = OpenSegment {
            number: SegmentNumber(number),
            run: SegmentNumber(first),
            wall_start: BEGIN.plus(at),
            media_start: MediaTime(0) + at,
            independent: true,
        };
        let mut writer = self.store.open_segment(&name(stream), open).unwrap();
        writer.append(bytes).unwrap();
        writer.finish_part(SEGMENT, true).unwrap();
        writer.close(SEGMENT, None).unwrap()
    }

    /// A stream with `count` small segments from `first` on.
    pub(crate) fn filled(&self, stream: &str, first: u64, count: u64) {
        self.stream(stream, first);
        for number in first..first + count {
            self.segment(stream, first, number, &content(number, 376));
        }
    }

    pub(crate) fn end(&self, stream: &str, last: u64) {
        self.store
            .end_stream(&name(stream), Some(SegmentNumber(last)))
            .unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(&self.public, "GET", path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        ask(&self.public, "GET", path, headers).await
    }
}

/// Bytes that differ from segment to segment and from place to place.
pub(crate) fn content(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(number) >> 7) as u8)
        .collect()
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// These headers, with None for those that aren't there.
    pub(crate) fn some(&self, names: &[&'static str]) -> BTreeMap<&'static str, Option<String>> {
        names
            .iter()
            .map(|n| (*n, self.header(n).map(str::to_owned)))
            .collect()
    }

    /// An error's status, code and reason; fails if it isn't JSON in the agreed form.
    pub(crate) fn error(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        (self.status.as_u16(), text("error"), text("reason"))
    }
}

pub(crate) async fn ask(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
    }
}
