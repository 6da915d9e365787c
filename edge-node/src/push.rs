//! `edge-node push`: sources into a stream, shipped, and an end with a verdict.
//!
//! Cutting runs on a blocking thread; here a timer shows progress, sets the gate and watches for signals.
//! The end is: all is cut → the stream is ended → the hub has stored it, or patience ran out.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use model::{HoleReason, SegmentNumber, StreamName};
use program::{
    clock::wall_now,
    exit::Failure,
    logging::Format,
    output,
    shutdown::{self, Shutdown},
};
use store::StoreError;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::PushArgs,
    clock::Clock,
    config::Settings,
    identity::Identity,
    ingest::{self, DEFAULT_MAX_RATE, Gate, Job, Report, SourceName},
    inputs::{Input, InputState, Inputs},
    node::{self, Node},
    plan::{Plan, Ready},
    progress::{self, Progress, Tally},
    recorder::{Recorder, RecorderConfig, WallClock},
    shipping::{Patience, Standing},
};

/// Between two looks at how things stand.
const LOOK: Duration = Duration::from_millis(200);
/// After the first signal: this long to ship what is left.
const MAX_LAST_SHIPPING: Duration = Duration::from_secs(10);

/// Pushes, and ends with a verdict.
pub(crate) fn push(settings: &Settings, args: &PushArgs, format: Format) -> Result<(), Failure> {
    let plan = Plan::of(args)?;
    let mut progress = Progress::start(format);
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
            result = push_all(settings, args, plan, identity, &mut progress, &signals) => result,
            () = second.cancelled() => Err(Failure::failed(
                "told twice to stop: stopped at once; what was cut stays on this disk, the next push or run ships it",
            )),
        }
    });
    progress.end();
    // A read that hangs (standard input, a dead disk) must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Cuts one file to disk without a hub: what `scripts/bench` measures.
pub(crate) fn bench_cut(settings: &Settings, file: &Path) -> Result<(), Failure> {
    let store = node::open_store(settings, "edge-node bench-cut")?;
    let folder = crate::identity::make_folder(&settings.data_dir).map_err(Failure::failed)?;
    let numbers = crate::numbers::Numbers::open(&folder).map_err(Failure::failed)?;
    let stream: StreamName = "bench".parse().map_err(Failure::failed)?;
    let config = RecorderConfig::new(stream.clone());
    let clock = Clock::start(store.clone()).map_err(Failure::failed)?;
    let recorder = Recorder::new(config, store.clone(), numbers, clock).map_err(Failure::failed)?;
    let job = Job {
        sources: vec![(SourceName::File(file.to_owned()), WallClock::At(wall_now()))],
        realtime: false,
        max_rate: DEFAULT_MAX_RATE,
    };
    let tally = Tally::default();
    let stop = CancellationToken::new();
    let input = Input::new(stream.clone(), file.display().to_string());
    let report = ingest::run(job, recorder, &tally, &Gate::default(), &input, &stop);
    verdict_on_sources(&report)?;
    if report.last.is_some() {
        store
            .end_stream(&stream, report.last)
            .map_err(Failure::failed)?;
    }
    output::line(&format!(
        "{} segments, {} bytes",
        tally.cut(),
        tally.cut_bytes()
    ))
    .map_err(|e| Failure::failed(format!("failed to write: {e}")))
}

async fn push_all(
    settings: &Settings,
    args: &PushArgs,
    plan: Plan,
    identity: Identity,
    progress: &mut Progress,
    signals: &Shutdown,
) -> Result<(), Failure> {
    let input = Input::new(args.stream.clone(), plan.source());
    let inputs = Inputs::new(vec![input.clone()]);
    let node = Node::start(settings, identity, "edge-node push", args.http, inputs).await?;
    if let Some(address) = node.http {
        tracing::info!("the local page is at http://{address}/");
    }
    let result = tokio::select! {
        result = push_on(&node, args, plan, input, progress, signals) => result,
        failure = node.catalog_damaged() => Err(failure),
    };
    progress.end();
    node.stop().await;
    tracing::debug!("stopped");
    result
}

async fn push_on(
    node: &Node,
    args: &PushArgs,
    plan: Plan,
    input: Arc<Input>,
    progress: &mut Progress,
    signals: &Shutdown,
) -> Result<(), Failure> {
    let stream = &args.stream;
    let before = Standing::look(node, stream).await?;
    let push = Push {
        node,
        stream,
        wait: args.wait,
        before,
        tally: Tally::default(),
        gate: Gate::default(),
        input,
    };
    let ready = tokio::task::spawn_blocking(move || plan.look())
        .await
        .context("failed to look at the sources")?;
    let first = push.floor().await?;
    let (report, cut_short) = push.cut(ready, progress, signals).await?;
    let shipped = match push.ship(&report, cut_short, progress, signals).await {
        Ok(()) => push.none_missing(first).await,
        failed => failed,
    };
    let sources = verdict_on_sources(&report);
    match (shipped, sources) {
        (Ok(()), Ok(())) => {
            let cut = report.cut;
            output::line(&format!(
                "{stream}: {cut} segments cut, all are stored on the hub"
            ))
            .map_err(|e| Failure::failed(format!("failed to write: {e}")))
        }
        (Err(shipped), Err(sources)) => Err(Failure::failed(format!("{sources}; {shipped}"))),
        (Err(failure), Ok(())) | (Ok(()), Err(failure)) => Err(failure),
    }
}

/// What one push goes by.
struct Push<'a> {
    node: &'a Node,
    stream: &'a StreamName,
    wait: Duration,
    before: Standing,
    tally: Tally,
    gate: Gate,
    input: Arc<Input>,
}

impl Push<'_> {
    /// Cuts all sources; the report, and why it was cut short if it was.
    async fn cut(
        &self,
        ready: Ready,
        progress: &mut Progress,
        signals: &Shutdown,
    ) -> Result<(Report, Option<String>), Failure> {
        let Ready { job, config, total } = ready;
        let stop = signals.first.child_token();
        let (sender, mut done) = oneshot::channel();
        let (store, numbers) = (self.node.store.clone(), self.node.numbers.clone());
        let clock = self.node.clock.clone();
        let (tally, gate, stopped) = (self.tally.clone(), self.gate.clone(), stop.clone());
        let input = self.input.clone();
        let run = move || {
            let report = match Recorder::new(config, store, numbers, clock) {
                Ok(recorder) => ingest::run(job, recorder, &tally, &gate, &input, &stopped),
                Err(error) => Report {
                    broken: Some(error),
                    ..Report::default()
                },
            };
            input.set(InputState::Stopped);
            let _ = sender.send(report);
        };
        std::thread::Builder::new()
            .name("ingest".to_owned())
            .spawn(run)
            .context("failed to start the ingest thread")?;
        let mut timer = interval(LOOK);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Patience::new(self.wait, Instant::now());
        let mut cut_short = None;
        loop {
            tokio::select! {
                report = &mut done => {
                    let report = report.context("the ingest thread died")?;
                    return Ok((report, cut_short));
                }
                _ = timer.tick() => {}
            }
            let standing = Standing::look(self.node, self.stream).await?;
            self.gate.set(&standing.for_gate());
            progress.show(self.standing(&standing, total, false), Instant::now());
            // A file that is held back waits as long as the hub takes something.
            let now = Instant::now();
            if !self.gate.is_closed() {
                patience = Patience::new(self.wait, now);
            } else if !patience.goes_on(&standing, now) && cut_short.is_none() {
                let trouble = standing.trouble(self.stream);
                cut_short = Some(format!(
                    "the disk limit is reached and nothing more was stored on the hub within {}: {trouble}",
                    humantime::format_duration(self.wait)
                ));
                stop.cancel();
            }
        }
    }

    /// Ends the stream and waits until the hub has all of it.
    async fn ship(
        &self,
        report: &Report,
        cut_short: Option<String>,
        progress: &mut Progress,
        signals: &Shutdown,
    ) -> Result<(), Failure> {
        let (node, stream) = (self.node, self.stream);
        if let Some(last) = report.last {
            let (store, stream) = (node.store.clone(), stream.clone());
            tokio::task::spawn_blocking(move || store.end_stream(&stream, Some(last)))
                .await
                .context("failed to end the stream")?
                .context("failed to end the stream")?;
        }
        let mut patience = Patience::new(self.wait, Instant::now());
        let mut asked_at: Option<Instant> = None;
        let mut changes = node.store.changes();
        loop {
            let standing = Standing::look(node, stream).await?;
            let now = Instant::now();
            progress.show(self.standing(&standing, None, true), now);
            let end_is_known = report.last.is_none() || standing.ended_on_hub;
            if standing.unshipped == 0 && end_is_known {
                tracing::debug!(%stream, "the hub has it all and has ended the stream");
                return match cut_short {
                    None => Ok(()),
                    Some(why) => Err(Failure::failed(why)),
                };
            }
            if signals.first.is_cancelled() && asked_at.is_none() {
                tracing::info!(
                    left = standing.unshipped,
                    "ending the stream; up to {} to ship what is left",
                    humantime::format_duration(MAX_LAST_SHIPPING)
                );
                asked_at = Some(now);
            }
            let out_of_time = asked_at.is_some_and(|at| now - at >= MAX_LAST_SHIPPING);
            let hopeless = standing.refusal(stream).is_some() || cut_short.is_some();
            if out_of_time || hopeless || !patience.goes_on(&standing, now) {
                let why = cut_short.unwrap_or_else(|| standing.trouble(stream));
                return Err(stays(standing.unshipped, &why));
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                _ = changes.changed() => sleep(LOOK / 10).await,
            }
        }
    }

    /// The lowest number that this push may use.
    async fn floor(&self) -> Result<SegmentNumber, Failure> {
        let (store, stream) = (self.node.store.clone(), self.stream.clone());
        let floor = tokio::task::spawn_blocking(move || store.floor(&stream))
            .await
            .context("failed to look at the stream")?;
        match floor {
            Ok(floor) => Ok(floor),
            Err(StoreError::NoSuchStream(_)) => Ok(SegmentNumber::default()),
            Err(error) => Err(Failure::failed(error)),
        }
    }

    /// That none of this push's segments became a hole (the disk limit, damage): those are not on the hub.
    /// Nor that the hub gave any up in its course.
    async fn none_missing(&self, first: SegmentNumber) -> Result<(), Failure> {
        let now = Standing::look(self.node, self.stream).await?;
        let (store, stream) = (self.node.store.clone(), self.stream.clone());
        let holes = tokio::task::spawn_blocking(move || match store.holes(&stream) {
            Err(StoreError::NoSuchStream(_)) => Ok(Vec::new()),
            holes => holes,
        })
        .await
        .context("failed to look for holes")?
        .context("failed to look for holes")?;
        let lost: Vec<String> = holes
            .iter()
            // What was renumbered is there under another number.
            .filter(|(range, reason)| *range.end() >= first && *reason != HoleReason::Renumbered)
            .map(|(range, reason)| {
                let (from, to) = (range.start(), range.end());
                format!("{from} to {to} ({})", reason.as_str())
            })
            .collect();
        let mut trouble = Vec::new();
        if !lost.is_empty() {
            trouble.push(format!("these segments are lost: {}", lost.join(", ")));
        }
        for (reason, count) in &now.given_up {
            let before = self.before.given_up.iter().find(|(r, _)| r == reason);
            let count = count.saturating_sub(before.map_or(0, |(_, count)| *count));
            if count > 0 {
                let segments = if count == 1 { "segment" } else { "segments" };
                let reason = reason.as_str();
                trouble.push(format!("the hub gave {count} {segments} up ({reason})"));
            }
        }
        if trouble.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "all else is on the hub, but {}",
            trouble.join("; ")
        )))
    }

    fn standing(&self, now: &Standing, total: Option<u64>, all_cut: bool) -> progress::Standing {
        let (cut, cut_bytes) = (self.tally.cut(), self.tally.cut_bytes());
        let all = self.before.unshipped + cut;
        let all_bytes = self.before.unshipped_bytes + cut_bytes;
        let sum = |standing: &Standing| standing.given_up.iter().map(|(_, n)| n).sum::<u64>();
        let given_up = sum(now).saturating_sub(sum(&self.before));
        progress::Standing {
            read: self.tally.read(),
            total,
            cut,
            stored: all.saturating_sub(now.unshipped + given_up),
            stored_bytes: all_bytes.saturating_sub(now.unshipped_bytes),
            all_cut,
            cut_bytes: all_bytes,
        }
    }
}

fn stays(segments: u64, why: &str) -> Failure {
    let segments = match segments {
        0 => return Failure::failed(format!("all segments are on the hub, but {why}")),
        1 => "1 segment stays".to_owned(),
        n => format!("{n} segments stay"),
    };
    Failure::failed(format!(
        "{segments} on this disk ({why}); the next `edge-node push` or `edge-node run` ships them"
    ))
}

/// What the sources and the disk did; the first few that failed are named.
fn verdict_on_sources(report: &Report) -> Result<(), Failure> {
    const MAX_NAMED: usize = 5;
    if let Some(error) = &report.broken {
        return Err(Failure::failed(format!("failed to record: {error}")));
    }
    if report.cut == 0 && report.failed.is_empty() && report.left.is_none() {
        return Err(Failure::failed(
            "nothing was cut: no key frame came to begin at",
        ));
    }
    let mut named: Vec<String> = report
        .failed
        .iter()
        .take(MAX_NAMED)
        .map(|(source, error)| format!("{source}: {error}"))
        .collect();
    if report.failed.len() > MAX_NAMED {
        named.push(format!("and {} more", report.failed.len() - MAX_NAMED));
    }
    if let Some(source) = &report.left {
        named.push(format!(
            "stopped before the end of {source}; what follows was not read"
        ));
    }
    if named.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(named.join("; ")))
}
