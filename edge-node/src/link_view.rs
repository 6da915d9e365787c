//! The last hour of this edge's own link: samples taken every ten seconds, and `GET /api/v1/link`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{Json, Router, extract::State, routing::get};
use link::{
    history::{History, SAMPLE_INTERVAL, Sample},
    uplink::UplinkStatus,
    view::{LinkView, StreamView},
};
use model::{DeviceName, SegmentNumber, StreamName, WallTime};
use program::clock::wall_now;
use store::{Backlog, Store};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// The link's history with what it is made of; clones share it.
#[derive(Clone)]
pub(crate) struct LinkWatch {
    device: DeviceName,
    store: Store,
    link: watch::Receiver<UplinkStatus>,
    history: Arc<Mutex<History>>,
}

impl LinkWatch {
    pub(crate) fn new(
        device: DeviceName,
        store: Store,
        link: watch::Receiver<UplinkStatus>,
    ) -> Self {
        Self {
            device,
            store,
            link,
            history: Arc::default(),
        }
    }

    /// `GET /api/v1/link`
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/api/v1/link", get(show))
            .with_state(self)
    }

    /// Takes samples until it is told to stop.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        let mut timer = interval(SAMPLE_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = timer.tick() => {}
            }
            let watch = self.clone();
            if let Err(error) = spawn_blocking(move || watch.take()).await {
                tracing::error!(%error, "failed to take a sample of the link");
            }
        }
    }

    /// How the link stands in the last ten seconds, for `/metrics`; None without a session.
    pub(crate) fn now(&self) -> Option<Sample> {
        let status = self.link.borrow().clone();
        let reading = status.reading(wall_now(), Instant::now(), Backlog::default())?;
        Some(self.history().now(&reading))
    }

    fn take(&self) {
        let status = self.link.borrow().clone();
        let total = self.backlogs().into_iter().map(|(_, backlog)| backlog);
        let total = total.fold(Backlog::default(), Backlog::and);
        let at = wall_now();
        let reading = status.reading(at, Instant::now(), total);
        let mut history = self.history();
        history.keep_hour(at);
        if let Some(reading) = reading {
            history.take(reading);
        }
    }

    /// What the hub has not stored, by stream. Where the store can't be read, the log says so elsewhere.
    fn backlogs(&self) -> Vec<(StreamName, Backlog)> {
        let streams = self.store.streams().unwrap_or_default();
        let backlog = |stream: store::StreamSummary| {
            let backlog = Backlog {
                segments: stream.unshipped,
                bytes: stream.unshipped_bytes,
                oldest: self.oldest(&stream.name),
            };
            (stream.name, backlog)
        };
        streams.into_iter().map(backlog).collect()
    }

    fn oldest(&self, stream: &StreamName) -> Option<WallTime> {
        let first = self.store.unshipped(stream, SegmentNumber(0), 1);
        Some(first.ok()?.first()?.wall_start)
    }

    fn view(&self) -> LinkView {
        let status = self.link.borrow().clone();
        let backlogs = self.backlogs();
        let total = backlogs.iter().map(|(_, backlog)| *backlog);
        let total = total.fold(Backlog::default(), Backlog::and);
        let reading = status.reading(wall_now(), Instant::now(), total);
        let history = self.history();
        let said = |name: &StreamName| status.report.streams.iter().find(|s| s.stream == *name);
        let streams = backlogs.into_iter().map(|(name, backlog)| StreamView {
            live: said(&name).is_some_and(|s| s.live),
            live_lag: None,
            sent_bytes: said(&name).map(|s| s.by_class).unwrap_or_default(),
            name,
            backlog,
        });
        LinkView {
            connected: status.session.is_some(),
            peer: status.session.map(|(_, hub)| hub),
            since_ms: status.session.map(|(since, _)| since),
            now: reading.map(|reading| history.now(&reading)),
            streams: streams.collect(),
            ..LinkView::apart(self.device.clone(), Some(&history))
        }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn show(State(watch): State<LinkWatch>) -> Result<Json<LinkView>, axum::http::StatusCode> {
    match spawn_blocking(move || watch.view()).await {
        Ok(view) => Ok(Json(view)),
        Err(error) => {
            tracing::error!(%error, "failed to look at the link");
            Err(axum::http::StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}
