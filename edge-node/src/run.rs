//! `edge-node run`: serves the local page and ships what is on the disk, until a signal.

use std::time::Duration;

use anyhow::Context;
use program::{
    exit::Failure,
    shutdown::{self, Shutdown},
};

use crate::{config::Settings, identity::Identity, node::Node};

/// Runs until a signal.
pub(crate) fn run(settings: &Settings) -> Result<(), Failure> {
    let identity = Identity::load(&settings.data_dir).map_err(Failure::failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start")?;
    let result = runtime.block_on(async {
        let signals = shutdown::signals().context("failed to listen for signals")?;
        let second = signals.second.clone();
        tokio::select! {
            result = serve(settings, identity, signals) => result,
            () = second.cancelled() => Err(Failure::failed("told twice to stop: stopped at once")),
        }
    });
    // Blocking work that hangs on a dead disk must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(settings: &Settings, identity: Identity, signals: Shutdown) -> Result<(), Failure> {
    let node = Node::start(settings, identity, "edge-node run", Some(settings.http)).await?;
    if let Some(address) = node.http {
        tracing::info!("the local page is at http://{address}/");
    }
    let store = node.store.clone();
    let left = tokio::task::spawn_blocking(move || store.streams())
        .await
        .context("failed to list the streams")?
        .context("failed to list the streams")?;
    for stream in left.iter().filter(|s| s.unshipped > 0) {
        tracing::info!(
            stream = %stream.name,
            segments = stream.unshipped,
            bytes = stream.unshipped_bytes,
            "ships what is left on this disk"
        );
    }
    let result = tokio::select! {
        () = signals.first.cancelled() => Ok(()),
        failure = node.catalog_damaged() => Err(failure),
    };
    tracing::info!("stopping");
    node.stop().await;
    result
}
