//! HTTP of a store, the same at both ends: page, playlists, segments, read-only API, health, metrics.
//!
//! No link and no ingest here: what the programs know beyond the store comes in through [`App`].
#![allow(unused_variables, dead_code)] // CONTRACT STUB: replaced by the real thing
use std::{net::SocketAddr, sync::Arc};
use store::Store;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role { Hub, Edge }

/// What the pages and routes need of the program around them.
pub struct App {
    pub store: Store,
    pub role: Role,
    /// Ok, or why not ready, as a sentence.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Extra JSON for GET /api/v1/status (edge: link state; hub: sessions).
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}
/// Page, /s/…, read-only /api/v1/streams…, /healthz, /readyz.
pub fn public_router(app: Arc<App>) -> axum::Router { todo!() }
/// Everything of the public router's API plus /metrics, health; the program merges its own write routes.
pub fn admin_router(app: Arc<App>, metrics: Arc<prometheus_client::registry::Registry>) -> axum::Router { todo!() }
/// Binds; the error names address and what to do.
pub async fn bind(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> { todo!() }
/// Serves until `shutdown`, then lets requests in flight end within 5 s. Connection cap, header timeout and header size are named limits.
pub async fn run(listener: tokio::net::TcpListener, router: axum::Router, shutdown: CancellationToken) { todo!() }
