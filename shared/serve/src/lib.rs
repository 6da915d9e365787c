//! HTTP of a store, the same at both ends: page, playlists, segments, read-only API, health, metrics.
//!
//! No link and no ingest here: what the programs know beyond the store comes in through [`App`]. The store
//! is synchronous, so whatever reaches it runs on blocking threads, a bounded number at a time; what
//! viewers ask for again and again (live playlists, recent segments) is answered from memory without them.
//!
//! Keeps invariant 5 (every cache, queue and header has a named limit) and invariant 7 (no request panics
//! the process; what is wrong with it is said as JSON).

mod answer;
mod api;
mod counters;
mod disk;
mod known;
mod media;
mod page;
mod places;
mod playlists;
mod preconditions;
mod segments;
mod server;
mod stalled;
mod watched;

use std::sync::Arc;

use axum::{
    Router,
    http::Uri,
    response::Response,
    routing::{any, get},
};
use prometheus_client::registry::Registry;
use store::Store;

pub use counters::HttpCounters;
pub use server::{Limits, bind, run_with};

use answer::Refusal;
use api::Api;
use disk::Disk;
use media::Media;
use page::Page;

/// Which end this is: the page says so, and the hub keeps more segments in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Hub,
    Edge,
}

impl Role {
    /// The word, as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Edge => "edge",
        }
    }
}

/// What the pages and routes need of the program around them.
pub struct App {
    pub store: Store,
    pub role: Role,
    /// Ok, or why not ready, as a sentence. Runs on a blocking thread.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Extra JSON for `GET /api/v1/status`, an object whose keys stand beside `role`, `version`, `time` and
    /// `ready`. Runs on a blocking thread. The page shows `link.state` (`connected`, or a word for what is
    /// the matter) and `link.reason` (a sentence) where they are there, a way to `/link` where `link.plots` is true,
    /// and the length of `sessions`.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

/// Page, `/s/…`, read-only `/api/v1/…`, `/healthz`, `/readyz`.
pub fn public_router(app: Arc<App>) -> Router {
    let disk = Disk::new();
    let media = Arc::new(Media::new(app.store.clone(), app.role, disk.clone()));
    let page = Arc::new(Page::new());
    Router::new()
        .route("/s/{*path}", any(media::serve).with_state(media))
        .route("/", get(page::streams).with_state(page.clone()))
        .route("/assets/{file}", get(page::asset).with_state(page))
        .merge(api_router(app, disk))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
}

/// The public router's API and health plus `/metrics`, and the page of links at `/` and `/link`; the program merges
/// its own routes: writes, and what that page asks for (`/api/v1/devices` and `/api/v1/devices/{device}/link` of a
/// hub, `/api/v1/link` of an edge).
pub fn admin_router(app: Arc<App>, metrics: Arc<Registry>) -> Router {
    let disk = Disk::new();
    let metrics = counters::Exposition::new(metrics, disk.clone());
    let page = Arc::new(Page::new());
    Router::new()
        .route("/metrics", get(counters::metrics).with_state(metrics))
        .route("/", get(page::links).with_state(page.clone()))
        .route("/link", get(page::links).with_state(page.clone()))
        .route("/assets/{file}", get(page::asset).with_state(page))
        .merge(api_router(app, disk))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
}

fn api_router(app: Arc<App>, disk: Disk) -> Router {
    let api = Arc::new(Api::new(app, disk));
    Router::new()
        .route("/api/v1/streams", get(api::streams))
        .route("/api/v1/streams/{stream}", get(api::stream))
        .route("/api/v1/status", get(api::status))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .with_state(api)
}

async fn nothing_here(uri: Uri) -> Response {
    Refusal::not_found(format!(
        "nothing at {}: / lists the streams, /s/STREAM/live.m3u8 plays one, /api/v1/streams tells of them",
        answer::shortened(uri.path()),
    ))
    .respond()
}

async fn wrong_method() -> Response {
    Refusal::wrong_method().respond()
}
