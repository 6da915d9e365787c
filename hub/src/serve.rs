//! `hub serve`: the daemon. Wires the store, the link and HTTP together, one task each.
//!
//! | task | waits on | does |
//! |---|---|---|
//! | link | datagrams, timers | takes segments from devices |
//! | http | connections | page, playlists, segments |
//! | admin | connections | API with writes, /metrics |
//! | janitor | a timer | carries out retention |
//! | scrub | a timer | reads stored segments again and compares their hashes |
//! | catalog | the catalog's damage | ends the daemon, so that the next start rebuilds it |
//! | foreign | a timer | notices what subcommands wrote to the catalog |
//! | disk | a timer | looks at the disk; while it fails, tries it |
//! | links | a timer | takes a sample of each device's link |
//!
//! A task that ends by itself ends the daemon: a hub that only looks alive is worse than one that its
//! service manager starts again. The first signal ends all in order, the second at once.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use data_encoding::BASE64URL_NOPAD;
use link::{
    KeyPair,
    downlink::{self, DownlinkConfig, DownlinkStatus},
};
use program::shutdown::{self, Shutdown};
use serde_json::json;
use serve::{App, HttpCounters, Limits, Role};
use store::{RetentionLimits, Store, StoreOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Admin},
    config::Settings,
    enroll, keys,
    links::{self, Links},
    metrics,
    tasks::Tasks,
    upkeep::{self, blocking},
};

/// Runs until a signal; an error if anything ended by itself.
pub(crate) fn run(settings: Settings) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start")?;
    let result = runtime.block_on(async {
        let signals = shutdown::signals().context("failed to listen for signals")?;
        tokio::select! {
            result = serve(settings, signals.clone()) => result,
            () = signals.second.cancelled() => Err(anyhow!("told twice to stop: stopped at once")),
        }
    });
    // Blocking work that hangs on a dead disk must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(settings: Settings, signals: Shutdown) -> Result<()> {
    let store = blocking({
        let settings = settings.clone();
        move || open_store(&settings)
    })
    .await?;
    let key = KeyPair::from_secret(keys::load_or_create(
        &settings.data_dir,
        keys::HUB_KEY_FILE,
    )?);
    let token = BASE64URL_NOPAD.encode(&keys::load_or_create(
        &settings.data_dir,
        keys::ADMIN_TOKEN_FILE,
    )?);

    let http = serve::bind(settings.http)
        .await
        .with_context(|| format!("failed to listen on {} (--http)", settings.http))?;
    let admin = serve::bind(settings.admin)
        .await
        .with_context(|| format!("failed to listen on {} (--admin)", settings.admin))?;
    let (http_address, admin_address) = (http.local_addr()?, admin.local_addr()?);

    let (status, link_status) = watch::channel(DownlinkStatus::default());
    let app = Arc::new(app(store.clone(), link_status.clone()));
    let (counters, admin_counters) = (HttpCounters::default(), HttpCounters::default());
    let links = Links::default();
    let registry = Arc::new(metrics::registry(
        store.clone(),
        link_status.clone(),
        links.clone(),
        &counters,
        &admin_counters,
    ));
    let writes = admin::router(Arc::new(Admin {
        store: store.clone(),
        key: key.clone(),
        token,
        address: enroll::known_address(&settings),
        link: link_status.clone(),
        links: links.clone(),
    }));

    let stop = signals.first;
    let mut tasks = Tasks::default();
    let link = DownlinkConfig {
        listen: settings.link,
        key,
    };
    let asked = format!("link on {} (--link)", settings.link);
    let downlink = downlink::run(link, store.clone(), status, stop.clone());
    tasks.spawn("link", async move { downlink.await.context(asked) });
    let public = serve::public_router(app.clone());
    tasks.spawn(
        "http",
        forever(serve::run_with(
            http,
            public,
            stop.clone(),
            Limits::default(),
            counters,
        )),
    );
    let admin_routes = serve::admin_router(app, registry).merge(writes);
    tasks.spawn(
        "admin",
        forever(serve::run_with(
            admin,
            admin_routes,
            stop.clone(),
            Limits::default(),
            admin_counters,
        )),
    );
    tasks.spawn(
        "janitor",
        forever(upkeep::janitor(store.clone(), stop.clone())),
    );
    tasks.spawn(
        "scrub",
        forever(upkeep::scrub(store.clone(), settings.scrub, stop.clone())),
    );
    tasks.spawn(
        "catalog",
        upkeep::watch_catalog(store.clone(), stop.clone()),
    );
    tasks.spawn(
        "foreign",
        forever(upkeep::notice_foreign_writes(store.clone(), stop.clone())),
    );
    tasks.spawn(
        "disk",
        forever(upkeep::check_disk(store.clone(), stop.clone())),
    );
    tasks.spawn(
        "links",
        forever(links::keep(links, link_status.clone(), stop.clone())),
    );
    let addresses = Addresses {
        http: http_address,
        admin: admin_address,
    };
    tasks.spawn(
        "greeting",
        greet(
            store,
            settings.data_dir,
            link_status,
            addresses,
            stop.clone(),
        ),
    );
    tasks.run(&stop).await
}

fn open_store(settings: &Settings) -> Result<Store> {
    let options = StoreOptions {
        holder: "hub serve".to_owned(),
        local_playlists: false,
        live_window: settings.live_window,
        limits: RetentionLimits {
            max_age: settings.max_age,
            max_bytes: settings.max_bytes,
            reserve_bytes: settings.reserve_bytes,
            keep_unshipped: false,
        },
        ..StoreOptions::default()
    };
    let began = Instant::now();
    let (store, found) = Store::open(&settings.data_dir, options)?;
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        open_closed = found.open_closed,
        partials_kept = found.partials_kept,
        adopted = found.adopted,
        set_aside = found.set_aside,
        orphans_removed = found.orphans_removed,
        missing_files = found.missing_files,
        took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "opened the store"
    );
    if let Some(aside) = &found.catalog_set_aside {
        tracing::error!(
            aside = %aside.display(),
            segments = found.adopted,
            streams_kept = found.salvaged_streams,
            streams_found = found.streams_found,
            devices_kept = found.salvaged_devices,
            tombstones_kept = found.salvaged_tombstones,
            "the catalog was damaged: it is set aside, and a new one was built from the segments and what was left of it"
        );
    }
    let lost = found.catalog_set_aside.is_some() || found.streams_found > 0;
    if lost && store.devices()?.is_empty() {
        tracing::error!("{DEVICES_LOST}");
    }
    if found.streams_found > 0 {
        tracing::warn!(
            streams = found.streams_found,
            "streams without an owner go to the first device that ships them; `hub enroll NAME --stream STREAM` or `hub stream move` says which"
        );
    }
    Ok(store)
}

/// What a lost catalog means for devices.
pub(crate) const DEVICES_LOST: &str = "devices and their keys were lost with the catalog: put a backup's catalog.db back (`hub backup --help`), or enrol each device again with `hub enroll NAME`; streams and numbers stay";

/// What pages and routes ask of the hub.
fn app(store: Store, link: watch::Receiver<DownlinkStatus>) -> App {
    let ready = link.clone();
    let disk = store.clone();
    App {
        store,
        role: Role::Hub,
        ready: Arc::new(
            move || match (ready.borrow().listening, disk.disk_trouble()) {
                (None, _) => Err("the link's socket is not bound yet".to_owned()),
                (_, Some(trouble)) => Err(format!("the disk fails: {}", trouble.what)),
                (Some(_), None) => Ok(()),
            },
        ),
        status: Arc::new(move || {
            let link = link.borrow();
            let sessions: Vec<_> = link.sessions.iter().map(admin::session_json).collect();
            json!({ "link": { "listening": link.listening.map(|a| a.to_string()) }, "sessions": sessions })
        }),
    }
}

/// Where the listeners really are: a port of 0 in the settings means any that is free.
struct Addresses {
    http: SocketAddr,
    admin: SocketAddr,
}

/// Says where everything is once the link listens, the page's URL last.
async fn greet(
    store: Store,
    data_dir: PathBuf,
    mut link: watch::Receiver<DownlinkStatus>,
    addresses: Addresses,
    stop: CancellationToken,
) -> Result<()> {
    let bound = link.wait_for(|status| status.listening.is_some());
    let listening = tokio::select! {
        bound = bound => bound.ok().and_then(|status| status.listening),
        () = stop.cancelled() => None,
    };
    let Some(listening) = listening else {
        return Ok(());
    };
    tracing::info!(address = %listening, "devices ship to UDP port {}", listening.port());
    tracing::info!(url = %format_args!("http://{}/metrics", reachable(addresses.admin)), "admin API and metrics");
    if blocking(move || Ok(store.devices()?.is_empty())).await? {
        tracing::info!(
            "no device yet: `hub enroll NAME --data-dir {}` invites one",
            data_dir.display()
        );
    }
    tracing::info!(url = %format_args!("http://{}/", reachable(addresses.http)), "ready: open this page");
    stop.cancelled().await;
    Ok(())
}

/// An address that a browser on this machine can open.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let mut address = listening;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

async fn forever(task: impl Future<Output = ()>) -> Result<()> {
    task.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_url_can_be_opened() {
        for (listening, open) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            assert_eq!(reachable(listening.parse().unwrap()).to_string(), open);
        }
    }
}
