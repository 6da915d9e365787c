//! `/api/v1/…` (read-only) and health.
//!
//! `GET /api/v1/streams` is `{ "streams": [ STREAM… ] }` by name, `GET /api/v1/streams/{stream}` one STREAM:
//! ```json
//! { "name": "gate", "title": "Front gate", "device": "pole-7", "state": "live",
//!   "codecs": "avc1.64001f,mp4a.40.2", "resolution": { "width": 1920, "height": 1080 },
//!   "first": "2026-05-01T08:00:00.000Z", "last": "2026-05-01T09:00:00.000Z",
//!   "ranges": [ { "from": "2026-05-01T08:00:00.000Z", "to": "2026-05-01T09:00:00.000Z" } ],
//!   "segments": 1800, "bytes": 900000000, "first_number": 17, "last_number": 1816,
//!   "unshipped": 0, "unshipped_bytes": 0, "given_up": 0,
//!   "live_url": "s/gate/live.m3u8", "rec_url": "s/gate/rec.m3u8" }
//! ```
//! `state` is `live`, `idle` (not ended, nothing is coming) or `ended`. What is not known is `null`. `ranges`
//! are newest first, at most 64; `first` and `last` are their bounds. The URLs are relative to `/`, so that a
//! proxy's prefix works. `unshipped` counts what an edge still has to ship, `given_up`
//! what of it the hub will not take (its bytes were corrupt, an operator deleted it); on a hub both are 0.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use model::{StreamName, WallTime};
use serde::Serialize;
use serde_json::{Map, Value, json};
use store::{StreamState, StreamSummary};
use tokio::sync::watch;

use crate::{
    App, Role,
    answer::{self, CACHE_NOT, Refusal},
    disk::Disk,
    watched::Watched,
};

/// The API's state: one listing, made once per change however many pages poll it.
pub(crate) struct Api {
    app: Arc<App>,
    disk: Disk,
    changes: watch::Receiver<u64>,
    listing: Watched<Listing>,
}

/// The streams as JSON.
struct Listing {
    all: Bytes,
    each: Vec<(StreamName, Bytes)>,
}

#[derive(Serialize)]
struct Streams<'a> {
    streams: &'a [Stream],
}

#[derive(Serialize)]
struct Stream {
    name: StreamName,
    title: Option<String>,
    device: Option<String>,
    state: &'static str,
    codecs: Option<String>,
    resolution: Option<Resolution>,
    first: Option<String>,
    last: Option<String>,
    ranges: Vec<TimeRange>,
    segments: u64,
    bytes: u64,
    first_number: Option<u64>,
    last_number: Option<u64>,
    unshipped: u64,
    unshipped_bytes: u64,
    given_up: u64,
    live_url: String,
    rec_url: String,
}

#[derive(Serialize)]
struct Resolution {
    width: u32,
    height: u32,
}

#[derive(Serialize)]
struct TimeRange {
    from: String,
    to: String,
}

impl Api {
    pub(crate) fn new(app: Arc<App>, disk: Disk) -> Self {
        Self {
            changes: app.store.changes(),
            app,
            disk,
            listing: Watched::new(),
        }
    }

    async fn listing(&self) -> Result<Arc<Listing>, Refusal> {
        let (store, role) = (self.app.store.clone(), self.app.role);
        self.listing
            .get(&self.changes, |_| {
                self.disk.run(move || {
                    let streams = store
                        .streams()
                        .map_err(|error| Refusal::internal("read the list of streams", &error))?;
                    Listing::new(streams, role).map(Arc::new)
                })
            })
            .await
    }
}

impl Listing {
    fn new(mut streams: Vec<StreamSummary>, role: Role) -> Result<Self, Refusal> {
        let failed = |error| Refusal::internal("write the list of streams", &error);
        streams.sort_by(|a, b| a.name.cmp(&b.name));
        if role == Role::Hub {
            // The store counts what no hub above it has, and nobody asked this one to ship.
            for stream in &mut streams {
                (stream.unshipped, stream.unshipped_bytes) = (0, 0);
            }
        }
        let streams: Vec<Stream> = streams.into_iter().map(Stream::from).collect();
        let all = serde_json::to_vec(&Streams { streams: &streams }).map_err(failed)?;
        let each = streams.iter().map(|stream| {
            let text = serde_json::to_vec(stream).map_err(failed)?;
            Ok((stream.name.clone(), Bytes::from(text)))
        });
        Ok(Self {
            all: all.into(),
            each: each.collect::<Result<_, Refusal>>()?,
        })
    }
}

impl From<StreamSummary> for Stream {
    fn from(s: StreamSummary) -> Self {
        let text = |t: WallTime| t.to_string();
        Self {
            live_url: format!("s/{}/live.m3u8", s.name),
            rec_url: format!("s/{}/rec.m3u8", s.name),
            name: s.name,
            title: s.title,
            device: s.owner.map(String::from),
            state: match s.state {
                StreamState::Live => "live",
                StreamState::Idle => "idle",
                StreamState::Ended => "ended",
            },
            codecs: s.codecs,
            resolution: s
                .resolution
                .map(|(width, height)| Resolution { width, height }),
            first: s.ranges.iter().map(|(from, _)| *from).min().map(text),
            last: s.ranges.iter().map(|(_, to)| *to).max().map(text),
            ranges: s
                .ranges
                .into_iter()
                .map(|(from, to)| TimeRange {
                    from: text(from),
                    to: text(to),
                })
                .collect(),
            segments: s.segments,
            bytes: s.bytes,
            first_number: s.first_number.map(|n| n.0),
            last_number: s.last_number.map(|n| n.0),
            unshipped: s.unshipped,
            unshipped_bytes: s.unshipped_bytes,
            given_up: s.given_up,
        }
    }
}

/// `GET /api/v1/streams`
pub(crate) async fn streams(State(api): State<Arc<Api>>) -> Result<Response, Refusal> {
    Ok(answer::json_bytes(api.listing().await?.all.clone()))
}

/// `GET /api/v1/streams/{stream}`
pub(crate) async fn stream(
    State(api): State<Arc<Api>>,
    Path(stream): Path<String>,
) -> Result<Response, Refusal> {
    let stream: StreamName = stream
        .parse()
        .map_err(|error: model::NameError| Refusal::bad_request(error.to_string()))?;
    let listing = api.listing().await?;
    match listing.each.iter().find(|(name, _)| *name == stream) {
        Some((_, text)) => Ok(answer::json_bytes(text.clone())),
        None => Err(Refusal::no_stream(
            &stream,
            listing.each.iter().map(|(name, _)| name),
        )),
    }
}

/// `GET /api/v1/status`: `role`, `version`, `time`, `ready` (and `not_ready`, why not), and what the program
/// adds beside them.
pub(crate) async fn status(State(api): State<Arc<Api>>) -> Result<Response, Refusal> {
    let app = api.app.clone();
    let (extra, ready) = api
        .disk
        .run(move || Ok(((app.status)(), (app.ready)())))
        .await?;
    let mut status = match extra {
        Value::Object(extra) => extra,
        Value::Null => Map::new(),
        other => Map::from_iter([("program".to_owned(), other)]),
    };
    status.insert("role".to_owned(), api.app.role.as_str().into());
    status.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
    status.insert("time".to_owned(), answer::wall_now().to_string().into());
    status.insert("ready".to_owned(), ready.is_ok().into());
    if let Err(reason) = ready {
        status.insert("not_ready".to_owned(), reason.into());
    }
    Ok(uncached(answer::json(&Value::Object(status))))
}

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> Response {
    uncached(answer::json(&json!({ "status": "alive" })))
}

/// `GET /readyz`: it can do its work, or 503 with the reason.
pub(crate) async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let app = api.app.clone();
    let ready = api
        .disk
        .run(move || (app.ready)().map_err(Refusal::not_ready))
        .await;
    match ready {
        Ok(()) => uncached(answer::json(&json!({ "status": "ready" }))),
        Err(refusal) => refusal.into_response(),
    }
}

fn uncached(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, CACHE_NOT);
    response
}
