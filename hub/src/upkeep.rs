//! What the daemon does by the clock: retention, scrubbing, noticing what other processes wrote to the catalog;
//! and that it ends when the catalog is damaged.

use std::{future::Future, time::Duration};

use anyhow::{Result, anyhow};
use program::{
    clock,
    scrub::{ScrubSettings, keep_pace},
};
use store::Store;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Between two rounds of retention: at 1 Gbit/s the disk moves by 0.6 GB in it, within the reserve.
const JANITOR_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at the catalog for foreign writes; subcommands promise effect within 2 s.
const FOREIGN_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks at the disk.
const DISK_INTERVAL: Duration = Duration::from_secs(2);

/// Looks at the disk again and again; the store says when it begins to fail and when it works again.
pub(crate) async fn check_disk(store: Store, stop: CancellationToken) {
    every(DISK_INTERVAL, stop, || {
        let store = store.clone();
        async move {
            if let Err(error) = blocking(move || Ok(store.check_disk()?)).await {
                tracing::debug!(error = %format_args!("{error:#}"), "the disk fails");
            }
        }
    })
    .await;
}

/// Carries out retention again and again. A round that fails is told and tried again.
pub(crate) async fn janitor(store: Store, stop: CancellationToken) {
    every(JANITOR_INTERVAL, stop, || {
        let (store, told) = (store.clone(), store.clone());
        async move {
            let round = move || {
                store.expire_tokens(clock::wall_now())?;
                // By a clock that doesn't step: a year ahead by mistake, all would have expired.
                Ok(store.run_janitor(store.steady_now())?)
            };
            match blocking(round).await {
                Ok(done) if done.deleted > 0 => {
                    tracing::info!(deleted = done.deleted, bytes = done.deleted_bytes, forced = done.forced, "retention removed segments");
                }
                Ok(_) => {}
                // Told by the look at the disk, once.
                Err(error) if told.disk_trouble().is_some() => {
                    tracing::debug!(error = %format_args!("{error:#}"), "retention failed");
                }
                Err(error) => tracing::error!(error = %format_args!("{error:#}"), "retention failed; trying again"),
            }
        }
    })
    .await;
}

/// Reads segments again, at the rate that the settings give.
pub(crate) async fn scrub(store: Store, settings: ScrubSettings, stop: CancellationToken) {
    keep_pace(settings, stop, || {
        let store = store.clone();
        async move {
            match blocking(move || Ok(store.scrub(settings.every)?)).await {
                Ok(done) => Some((done.bytes, done.round)),
                Err(error) => {
                    tracing::error!(error = %format_args!("{error:#}"), "scrubbing failed; trying again");
                    None
                }
            }
        }
    })
    .await;
}

/// Ends with an error once the catalog is found damaged: the service manager starts the daemon again, and that
/// rebuilds the catalog.
pub(crate) async fn watch_catalog(store: Store, stop: CancellationToken) -> Result<()> {
    let mut damage = store.catalog_damage();
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        Ok(what) = damage.wait_for(Option::is_some) => Err(anyhow!(
            "the catalog is damaged ({}): the next start checks and rebuilds it",
            what.as_deref().unwrap_or_default()
        )),
        else => Ok(()),
    }
}

/// Wakes the rest of the daemon after a subcommand wrote to the catalog.
pub(crate) async fn notice_foreign_writes(store: Store, stop: CancellationToken) {
    every(FOREIGN_INTERVAL, stop, || {
        let store = store.clone();
        async move {
            match blocking(move || Ok(store.notice_foreign_changes()?)).await {
                Ok(true) => tracing::debug!("another process changed the catalog"),
                Ok(false) => {}
                Err(error) => tracing::error!(error = %format_args!("{error:#}"), "failed to look for changes in the catalog"),
            }
        }
    })
    .await;
}

/// Calls `work` at each tick until `stop`; a tick missed is not made up for.
async fn every<F: Future<Output = ()>>(
    period: Duration,
    stop: CancellationToken,
    mut work: impl FnMut() -> F,
) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => work().await,
        }
    }
}

/// Runs the catalog's blocking work off the tasks that wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
