//! What HTTP counts, and `/metrics`, which tells it.
//!
//! Labels come from fixed lists, never from requests.

use std::{error::Error, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    answer::{CACHE_NOT, Refusal},
    disk::Disk,
};

const KINDS: [&str; 4] = ["playlist", "segment", "api", "page"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counts of one listener, or of several that share a clone: requests by kind and class of status, and
/// connections.
#[derive(Debug, Clone)]
pub struct HttpCounters {
    requests: Family<RequestLabels, Counter>,
    /// The same, found without a lock: by kind, then class.
    by_kind: Arc<[[Counter; CLASSES.len()]; KINDS.len()]>,
    pub(crate) connections: Counter,
    pub(crate) open: Gauge,
    pub(crate) refused: Counter,
    /// Idle ones that made room.
    pub(crate) displaced: Counter,
    failed: Family<FailureLabels, Counter>,
}

/// Why a connection ended in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// Idle too long, or its request's head took too long.
    Idle,
    /// It took next to nothing of an answer.
    Stalled,
    /// What it sent is no request.
    Malformed,
    /// It went away.
    Cut,
}

impl Failure {
    const ALL: [Failure; 4] = [Self::Idle, Self::Stalled, Self::Malformed, Self::Cut];

    pub(crate) fn of(error: &hyper::Error) -> Self {
        let io = error
            .source()
            .and_then(|source| source.downcast_ref::<std::io::Error>());
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut) {
            Self::Stalled
        } else if error.is_timeout() {
            Self::Idle
        } else if error.is_parse() {
            Self::Malformed
        } else {
            Self::Cut
        }
    }

    fn label(self) -> FailureLabels {
        let reason = match self {
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Malformed => "malformed",
            Self::Cut => "cut",
        };
        FailureLabels { reason }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    class: &'static str,
}

impl Default for HttpCounters {
    fn default() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let by_kind = KINDS.map(|kind| {
            CLASSES.map(|class| {
                requests
                    .get_or_create(&RequestLabels { kind, class })
                    .clone()
            })
        });
        let failed = Family::<FailureLabels, Counter>::default();
        for failure in Failure::ALL {
            let _ = failed.get_or_create(&failure.label());
        }
        Self {
            requests,
            by_kind: Arc::new(by_kind),
            connections: Counter::default(),
            open: Gauge::default(),
            refused: Counter::default(),
            displaced: Counter::default(),
            failed,
        }
    }
}

impl HttpCounters {
    /// Enters the counters into a registry as `http_…`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "Requests answered, by kind and class of status",
            self.requests.clone(),
        );
        registry.register(
            "http_connections_accepted",
            "Connections accepted",
            self.connections.clone(),
        );
        registry.register(
            "http_connections_open",
            "Connections open now",
            self.open.clone(),
        );
        registry.register(
            "http_connections_refused",
            "Connections answered 503 because too many were being answered",
            self.refused.clone(),
        );
        registry.register(
            "http_connections_displaced",
            "Idle connections closed to make room for new ones",
            self.displaced.clone(),
        );
        registry.register(
            "http_connections_failed",
            "Connections that ended in an error, by reason: idle, stalled, malformed, cut",
            self.failed.clone(),
        );
    }

    pub(crate) fn count(&self, kind: Kind, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        let counter = self
            .by_kind
            .get(kind as usize)
            .and_then(|classes| classes.get(class));
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    pub(crate) fn count_failure(&self, failure: Failure) {
        self.failed.get_or_create(&failure.label()).inc();
    }

    /// Connections that ended in an error so far.
    pub fn failures(&self) -> u64 {
        let count = |failure: &Failure| self.failed.get_or_create(&failure.label()).get();
        Failure::ALL.iter().map(count).sum()
    }

    /// Idle connections closed so far to make room.
    pub fn displaced(&self) -> u64 {
        self.displaced.get()
    }

    /// Requests counted so far, of all kinds and classes.
    pub fn requests(&self) -> u64 {
        self.by_kind.iter().flatten().map(Counter::get).sum()
    }
}

/// What a request is for, as far as its path tells; in the order of [`KINDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Playlist,
    Segment,
    Api,
    Page,
}

impl Kind {
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/s/") {
            if path.ends_with(".m3u8") {
                Self::Playlist
            } else {
                Self::Segment
            }
        } else if path == "/" || path == "/link" || path.starts_with("/assets/") {
            Self::Page
        } else {
            Self::Api
        }
    }
}

/// The state of `/metrics`.
#[derive(Clone)]
pub(crate) struct Exposition {
    registry: Arc<Registry>,
    disk: Disk,
}

impl Exposition {
    pub(crate) fn new(registry: Arc<Registry>, disk: Disk) -> Self {
        Self { registry, disk }
    }
}

/// `GET /metrics`, in the text format of OpenMetrics. Collectors may look into the store.
pub(crate) async fn metrics(State(state): State<Exposition>) -> Result<Response, Refusal> {
    let registry = state.registry;
    let text = state
        .disk
        .run(move || {
            let mut text = String::new();
            text::encode(&mut text, &registry)
                .map_err(|error| Refusal::internal("collect the metrics", &error))?;
            Ok(text)
        })
        .await?;
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, CACHE_NOT);
    Ok(response)
}

/// A connection that is counted as open until it is dropped.
pub(crate) struct OpenConnection(Gauge);

impl OpenConnection {
    pub(crate) fn new(counters: &HttpCounters) -> Self {
        counters.connections.inc();
        counters.open.inc();
        Self(counters.open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_were_for() {
        let counters = HttpCounters::default();
        for (path, status) in [
            ("/s/gate/live.m3u8", 200),
            ("/s/gate/live.m3u8", 304),
            ("/s/gate/7.ts", 206),
            ("/s/gate/gap-7.ts", 404),
            ("/api/v1/streams", 200),
            ("/readyz", 503),
            ("/assets/app.js", 200),
            ("/", 200),
        ] {
            counters.count(Kind::of(path), StatusCode::from_u16(status).unwrap());
        }
        assert_eq!(counters.requests(), 8);
        let mut registry = Registry::with_prefix("penstock");
        counters.register(&mut registry);
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            "penstock_http_requests_total{kind=\"playlist\",class=\"2xx\"} 1",
            "penstock_http_requests_total{kind=\"playlist\",class=\"3xx\"} 1",
            "penstock_http_requests_total{kind=\"segment\",class=\"2xx\"} 1",
            "penstock_http_requests_total{kind=\"segment\",class=\"4xx\"} 1",
            "penstock_http_requests_total{kind=\"api\",class=\"5xx\"} 1",
            "penstock_http_requests_total{kind=\"page\",class=\"2xx\"} 2",
        ] {
            assert!(shown.contains(line), "{line}\n{shown}");
        }
    }

    #[test]
    fn a_status_of_no_class_is_not_counted_and_harms_nothing() {
        let counters = HttpCounters::default();
        counters.count(Kind::Page, StatusCode::from_u16(999).unwrap());
        assert_eq!(counters.requests(), 0);
    }
}
