//! What `run` and `push` have running beside them: store, uplink, janitor, local HTTP.
//!
//! | task | waits on | does |
//! |---|---|---|
//! | uplink | datagrams, timers, the store | ships to the hub; begins anew after an error |
//! | link log | the uplink's state | says when it changes |
//! | clock | a timer | looks whether this machine's clock was set |
//! | janitor | a timer | carries out retention |
//! | scrub | a timer | reads segments again and compares their hashes |
//! | allowance | a timer | counts what a metered line carries, says what may go |
//! | http | connections | page, playlists, segments, /metrics, /link |
//! | link's hour | a timer | takes a sample of the link |
//!
//! A link that is down is no failure: it is tried again for ever.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use axum::routing::any_service;
use link::uplink::{self, Clocks, LinkState, UplinkConfig, UplinkStatus};
use program::{
    durable,
    exit::Failure,
    scrub::{ScrubSettings, keep_pace},
};
use serve::{App, Role};
use store::{RetentionLimits, Store, StoreOptions};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    allowance::{self, Meter},
    clock::Clock,
    config::Settings,
    identity::{self, Identity},
    inputs::Inputs,
    link_view::LinkWatch,
    metrics,
    numbers::Numbers,
    status,
};

/// After it an unanswered handshake is told as no answer; tries go on.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two rounds of retention: at 1 Gbit/s the disk moves by 0.6 GB in it, within the reserve.
const JANITOR_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at this machine's clock: one that was set is taken over within it.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// An uplink that has ended by an error begins anew after this, then ever more slowly.
const FIRST_RESTART: Duration = Duration::from_secs(1);
/// The slowest that it begins anew.
const MAX_RESTART: Duration = Duration::from_secs(60);
/// What the local live playlist lists.
const LIVE_WINDOW: Duration = Duration::from_secs(120);
/// Time for the hub to hear `Bye` and for requests to end, above HTTP's own limit of 5 s.
const MAX_STOP: Duration = Duration::from_secs(7);
/// Where `edge-node status` finds the local HTTP of whatever is running.
const HTTP_ADDRESS_FILE: &str = "http.address";

/// The running parts.
pub(crate) struct Node {
    pub(crate) store: Store,
    pub(crate) numbers: Numbers,
    pub(crate) clock: Clock,
    pub(crate) link: watch::Receiver<UplinkStatus>,
    /// Where page and playlists are served, if they are.
    pub(crate) http: Option<SocketAddr>,
    http_file: PathBuf,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Opens the store of a data directory; `holder` is who has it, for the message a second program prints.
pub(crate) fn open_store(settings: &Settings, holder: &str) -> Result<Store> {
    let dir = &settings.data_dir;
    store::make_data_dir(dir).map_err(|error| {
        let hint = identity::data_dir_hint(&error);
        anyhow!("failed to create {}: {error}{hint}", dir.display())
    })?;
    let options = StoreOptions {
        holder: holder.to_owned(),
        local_playlists: true,
        live_window: LIVE_WINDOW,
        limits: RetentionLimits {
            max_age: None,
            max_bytes: settings.max_bytes,
            reserve_bytes: settings.reserve_bytes,
            keep_unshipped: true,
        },
        sync_parts: settings.sync_parts,
        memory_bytes: settings.memory_bytes,
    };
    let began = Instant::now();
    let (store, found) = Store::open(dir, options)?;
    tracing::info!(
        data_dir = %dir.display(),
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
            streams = found.salvaged_streams + found.streams_found,
            tombstones_kept = found.salvaged_tombstones,
            "the catalog was damaged: it is set aside, and a new one was built from the segments and what was left of it"
        );
    }
    if found.open_closed > 0 || found.missing_files > 0 {
        tracing::warn!(
            open_closed = found.open_closed,
            missing_files = found.missing_files,
            "the last run ended out of order; what it left was put in order"
        );
    }
    Ok(store)
}

impl Node {
    /// Opens the store and starts the tasks. `identity` must be enrolled.
    pub(crate) async fn start(
        settings: &Settings,
        identity: Identity,
        holder: &'static str,
        http: Option<SocketAddr>,
        inputs: Inputs,
    ) -> Result<Self> {
        let (store, clock) = {
            let settings = settings.clone();
            spawn_blocking(move || {
                let store = open_store(&settings, holder)?;
                let clock = Clock::start(store.clone())?;
                Ok::<_, anyhow::Error>((store, clock))
            })
            .await??
        };
        let folder = identity::make_folder(&settings.data_dir)?;
        let numbers = Numbers::open(&folder)?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (sender, link) = watch::channel(UplinkStatus::default());

        let http_file = settings.data_dir.join(HTTP_ADDRESS_FILE);
        let mut bound = None;
        if let Some(address) = http {
            let listener = serve::bind(address)
                .await
                .with_context(|| format!("failed to listen on {address} (--http)"))?;
            let at = listener.local_addr()?;
            let is_private = at.ip().is_loopback();
            let app = Arc::new(app(&store, &link, &identity, settings, &inputs, is_private));
            let counters = serve::HttpCounters::default();
            let mut router = serve::public_router(app.clone());
            if is_private {
                let watch = LinkWatch::new(identity.device.clone(), store.clone(), link.clone());
                let mut registry =
                    metrics::registry(store.clone(), link.clone(), watch.clone(), inputs);
                counters.register(&mut registry);
                let metrics = serve::admin_router(app, Arc::new(registry));
                router = router
                    .route("/metrics", any_service(metrics.clone()))
                    .route("/link", any_service(metrics))
                    .merge(watch.clone().router());
                tasks.spawn(watch.keep(stop.clone()));
            }
            let limits = serve::Limits::default();
            tasks.spawn(serve::run_with(
                listener,
                router,
                stop.clone(),
                limits,
                counters,
            ));
            durable::write(&http_file, format!("{at}\n").as_bytes(), 0o644)
                .with_context(|| format!("failed to write {}", http_file.display()))?;
            bound = Some(at);
        }

        let (orders, listens) = watch::channel(settings.uplink.orders(&settings.streams));
        if let Some(allowance) = settings.uplink.allowance {
            let meter = Meter::open(&folder, allowance)
                .context("failed to read what the line has carried this month")?;
            tasks.spawn(allowance::keep(meter, link.clone(), orders, stop.clone()));
        }
        let config = UplinkConfig {
            hub_address: identity.hub_address.clone(),
            hub_key: identity.hub_key,
            key: identity.key.clone(),
            answer_timeout: ANSWER_TIMEOUT,
            orders: listens,
        };
        let (hears, tells) = (clock.clone(), clock.clone());
        let clocks = Clocks {
            on_hub_time: Arc::new(move |time| hears.hear(time)),
            recording: Arc::new(move || tells.now().wall),
        };
        tasks.spawn(ship(config, store.clone(), sender, stop.clone(), clocks));
        tasks.spawn(follow_floors(link.clone(), numbers.clone(), stop.clone()));
        tasks.spawn(log_link(link.clone(), identity.hub_address, stop.clone()));
        tasks.spawn(watch_clock(clock.clone(), stop.clone()));
        tasks.spawn(janitor(store.clone(), stop.clone()));
        tasks.spawn(scrub(store.clone(), settings.scrub, stop.clone()));
        Ok(Self {
            store,
            numbers,
            clock,
            link,
            http: bound,
            http_file,
            tasks,
            stop,
        })
    }

    /// Waits until the catalog is found damaged; whoever runs this ends with it, and the next start rebuilds
    /// the catalog.
    pub(crate) async fn catalog_damaged(&self) -> Failure {
        let mut damage = self.store.catalog_damage();
        let what = match damage.wait_for(Option::is_some).await {
            Ok(what) => what.clone().unwrap_or_default(),
            // The store is held by this node: its word can't be lost.
            Err(_) => std::future::pending().await,
        };
        Failure::failed(format!(
            "the catalog is damaged ({what}): the next start checks and rebuilds it from the segments"
        ))
    }

    /// Says goodbye to the hub and to viewers, within a bounded time.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(MAX_STOP, all).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if self.http.is_some() {
            let _ = fs::remove_file(&self.http_file);
        }
    }
}

/// Runs the uplink, again with back-off where it ends by an error (a socket's).
async fn ship(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    stop: CancellationToken,
    clocks: Clocks,
) {
    let mut wait = FIRST_RESTART;
    loop {
        let began = Instant::now();
        let ended = uplink::run_with_clocks(
            config.clone(),
            store.clone(),
            status.clone(),
            stop.clone(),
            clocks.clone(),
        );
        let Err(error) = ended.await else { return };
        if began.elapsed() > MAX_RESTART {
            wait = FIRST_RESTART;
        }
        let again = humantime::format_duration(wait).to_string();
        tracing::error!("the uplink has ended: {error}; it begins anew in {again}");
        status.send_modify(|status| {
            let why = format!("the uplink has ended: {error}");
            status.state = LinkState::Unreachable { why };
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
        wait = (wait * 2).min(MAX_RESTART);
    }
}

/// The address that a program on this data directory serves on, or served on when it was killed.
pub(crate) fn running_http(data_dir: &Path) -> Option<SocketAddr> {
    let text = fs::read_to_string(data_dir.join(HTTP_ADDRESS_FILE)).ok()?;
    text.trim().parse().ok()
}

fn app(
    store: &Store,
    link: &watch::Receiver<UplinkStatus>,
    identity: &Identity,
    settings: &Settings,
    inputs: &Inputs,
    plots: bool,
) -> App {
    let (link, inputs) = (link.clone(), inputs.clone());
    let about = status::About {
        device: identity.device.clone(),
        hub_address: identity.hub_address.clone(),
        data_dir: settings.data_dir.clone(),
        plots,
    };
    App {
        store: store.clone(),
        role: Role::Edge,
        // A link that is down is no reason to take the local page away.
        ready: Arc::new(|| Ok(())),
        status: {
            let store = store.clone();
            Arc::new(move || {
                status::json(
                    &about,
                    &link.borrow(),
                    &inputs,
                    &status::DiskState::of(&store),
                )
            })
        },
    }
}

/// Takes over what the hub has seen used, at each welcome: a stream that was another box's goes on above it.
async fn follow_floors(
    mut link: watch::Receiver<UplinkStatus>,
    numbers: Numbers,
    stop: CancellationToken,
) {
    let mut known = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = link.changed() => if changed.is_err() { return },
        }
        let floors = link.borrow_and_update().floors.clone();
        if floors == known {
            continue;
        }
        known.clone_from(&floors);
        let numbers = numbers.clone();
        match spawn_blocking(move || numbers.raise(&floors)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("failed to keep the hub's floors: {error}"),
            Err(error) => tracing::error!("failed to keep the hub's floors: {error}"),
        }
    }
}

async fn log_link(mut link: watch::Receiver<UplinkStatus>, hub: String, stop: CancellationToken) {
    let mut told = LinkState::default();
    let mut told_streams = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = link.changed() => if changed.is_err() { return },
        }
        let (state, refused) = {
            let status = link.borrow_and_update();
            (status.state.clone(), status.refused_streams.clone())
        };
        if state != told {
            match &state {
                LinkState::Connecting => tracing::info!(%hub, "connecting"),
                LinkState::Connected { device, .. } => tracing::info!(%hub, %device, "connected"),
                LinkState::Unreachable { why } => {
                    tracing::warn!(%hub, "{why}; trying on");
                }
                LinkState::Refused { reason } => {
                    tracing::warn!(%hub, "the hub refuses this device: {reason}; trying on");
                }
            }
            told = state;
        }
        if refused != told_streams {
            for (stream, reason) in refused.iter().filter(|r| !told_streams.contains(r)) {
                tracing::warn!(%hub, %stream, "the hub refuses the stream: {reason}");
            }
            told_streams = refused;
        }
    }
}

async fn watch_clock(clock: Clock, stop: CancellationToken) {
    let mut timer = interval(CLOCK_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let clock = clock.clone();
        if let Err(error) = spawn_blocking(move || clock.look()).await {
            tracing::error!("failed to look at the clock: {error}");
        }
    }
}

async fn scrub(store: Store, settings: ScrubSettings, stop: CancellationToken) {
    keep_pace(settings, stop, || {
        let store = store.clone();
        async move {
            match spawn_blocking(move || store.scrub(settings.every)).await {
                Ok(Ok(done)) => Some((done.bytes, done.round)),
                Ok(Err(error)) => {
                    tracing::error!("failed to read segments again: {error}");
                    None
                }
                Err(error) => {
                    tracing::error!("failed to read segments again: {error}");
                    None
                }
            }
        }
    })
    .await;
}

async fn janitor(store: Store, stop: CancellationToken) {
    let mut timer = interval(JANITOR_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let store = store.clone();
        match spawn_blocking(move || store.run_janitor(store.steady_now())).await {
            Ok(Ok(done)) if done.forced > 0 => tracing::warn!(
                deleted = done.deleted,
                forced = done.forced,
                "the disk limit forced out segments that the hub does not have"
            ),
            Ok(Ok(done)) if done.deleted > 0 => {
                tracing::debug!(
                    deleted = done.deleted,
                    bytes = done.deleted_bytes,
                    "made room"
                );
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                // A disk that fails fails each time.
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!("failed to make room: {error}");
                    told = Some(error);
                }
                continue;
            }
            Err(error) => tracing::error!("failed to make room: {error}"),
        }
        told = None;
    }
}
