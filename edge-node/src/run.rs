//! `edge-node run`: records the streams of the configuration, serves the local page and ships what is on the
//! disk, until a signal.

use std::time::Duration;

use anyhow::Context;
use model::StreamName;
use program::{
    exit::Failure,
    shutdown::{self, Shutdown},
};
use store::{Store, StoreError};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::Settings,
    identity::Identity,
    node::Node,
    supervisor::{self, Supervisor},
};

/// Between two looks at whether sources that can wait have to.
const LOOK: Duration = Duration::from_millis(500);

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
    let inputs = supervisor::inputs(&settings.streams);
    let http = Some(settings.http);
    let node = Node::start(settings, identity, "edge-node run", http, inputs.clone()).await?;
    if let Some(address) = node.http {
        tracing::info!("the local page is at http://{address}/");
    }
    let (store, kept) = (node.store.clone(), settings.streams.clone());
    let left = tokio::task::spawn_blocking(move || {
        let kept: Vec<&StreamName> = kept.iter().map(|s| &s.name).collect();
        end_dropped(&store, &kept)?;
        store.streams()
    })
    .await
    .context("failed to look at the streams")?
    .context("failed to look at the streams")?;
    for stream in left.iter().filter(|s| s.unshipped > 0) {
        tracing::info!(
            stream = %stream.name,
            segments = stream.unshipped,
            bytes = stream.unshipped_bytes,
            "ships what is left on this disk"
        );
    }
    let supervisor = Supervisor::start(&node, &settings.streams, &inputs)
        .context("failed to start a thread for each stream")?;
    let mut timer = interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            () = signals.first.cancelled() => break Ok(()),
            failure = node.catalog_damaged() => break Err(failure),
            _ = timer.tick() => {}
        }
        if let Err(error) = supervisor.set_gates(&node).await {
            tracing::error!("failed to see how full the disk is: {error}");
        }
    };
    tracing::info!("stopping");
    supervisor.stop().await;
    node.stop().await;
    result
}

/// Ends streams that an earlier `run` recorded and that the configuration has no more.
fn end_dropped(store: &Store, kept: &[&StreamName]) -> Result<(), StoreError> {
    for stream in store.recorded_streams()? {
        if !kept.contains(&&stream) {
            tracing::info!(%stream, "ended: the configuration has it no more");
            store.end_recorded(&stream)?;
        }
    }
    Ok(())
}
