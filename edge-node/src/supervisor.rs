//! The streams that `run` records: a thread for each, started again when it fails, and no other's matter.
//!
//! A panic, a source that can't be opened and a disk that refuses end one attempt; the next comes after a
//! jittered back-off. Threads are as many as streams (invariant 5) and the operating system shares the
//! processor among them. Keeps invariant 7.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use backon::{BackoffBuilder, ExponentialBuilder};
use model::StreamName;
use tokio_util::sync::CancellationToken;

use crate::{
    config::StreamSettings,
    ingest::{self, Gate, Job, SourceName, Watch},
    inputs::{Count, Input, InputState, Inputs},
    node::Node,
    progress::Tally,
    recorder::{Recorder, RecorderConfig, WallClock},
    shipping::Standing,
};

/// Between two attempts: at first, and at most; each is lengthened by chance.
const MIN_BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);
/// An attempt that held so long was a good one: the next waits as if it were the first.
const GOOD_ATTEMPT: Duration = Duration::from_secs(60);
/// The longest sleep without a look at whether to stop.
const MAX_SLEEP: Duration = Duration::from_millis(50);
/// Time for threads to close their segments; one that hangs on a dead disk is left.
const MAX_STOP: Duration = Duration::from_secs(5);

/// The inputs of a configuration, before they are started.
pub(crate) fn inputs(streams: &[StreamSettings]) -> Inputs {
    let input = |s: &StreamSettings| Input::new(s.name.clone(), s.source.to_string());
    Inputs::new(streams.iter().map(input).collect())
}

/// The running threads.
pub(crate) struct Supervisor {
    running: Arc<AtomicUsize>,
    /// Of streams whose sources can wait.
    gates: Vec<(StreamName, Gate)>,
    stop: CancellationToken,
}

/// What one thread works on.
struct Recording {
    settings: StreamSettings,
    input: Arc<Input>,
    gate: Gate,
    store: store::Store,
    numbers: crate::numbers::Numbers,
    clock: crate::clock::Clock,
    stop: CancellationToken,
}

impl Supervisor {
    /// Starts a thread for each stream.
    pub(crate) fn start(
        node: &Node,
        streams: &[StreamSettings],
        inputs: &Inputs,
    ) -> io::Result<Self> {
        let mut supervisor = Self {
            running: Arc::default(),
            gates: Vec::new(),
            stop: CancellationToken::new(),
        };
        for (settings, input) in streams.iter().zip(inputs.iter()) {
            let gate = Gate::default();
            if !settings.source.is_live() {
                supervisor.gates.push((settings.name.clone(), gate.clone()));
            }
            let work = Recording {
                settings: settings.clone(),
                input: input.clone(),
                gate,
                store: node.store.clone(),
                numbers: node.numbers.clone(),
                clock: node.clock.clone(),
                stop: supervisor.stop.clone(),
            };
            let running = supervisor.running.clone();
            running.fetch_add(1, Relaxed);
            let run = move || {
                let _span = tracing::info_span!("input", name = %work.settings.name).entered();
                supervise(&work.input, &work.stop, MIN_BACK_OFF, || work.attempt());
                running.fetch_sub(1, Relaxed);
            };
            thread::Builder::new()
                .name(format!("in {}", settings.name))
                .spawn(run)?;
        }
        Ok(supervisor)
    }

    /// Holds sources back that can wait, or lets them go on. Call a few times a second.
    pub(crate) async fn set_gates(&self, node: &Node) -> Result<()> {
        for (stream, gate) in &self.gates {
            gate.set(&Standing::look(node, stream).await?.for_gate());
        }
        Ok(())
    }

    /// Closes what is open and ends the threads. No stream is ended by that.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let start = Instant::now();
        while self.running.load(Relaxed) > 0 {
            if start.elapsed() >= MAX_STOP {
                let threads = self.running.load(Relaxed);
                tracing::warn!(threads, "some inputs did not end in time");
                return;
            }
            tokio::time::sleep(MAX_SLEEP).await;
        }
    }
}

impl Recording {
    /// Records until told to stop; why it can't go on otherwise.
    fn attempt(&self) -> Result<(), String> {
        let mut config = RecorderConfig::new(self.settings.name.clone());
        config.target_duration = self.settings.target_duration;
        config.by_run = true;
        let (store, numbers) = (self.store.clone(), self.numbers.clone());
        let clock = self.clock.clone();
        if let SourceName::Folder(folder) = &self.settings.source {
            let watch = Watch {
                folder: folder.clone(),
                scan_interval: self.settings.scan_interval,
                settle: self.settings.settle,
                done: self.settings.done.clone(),
                config,
                store,
                numbers,
                clock,
            };
            return ingest::watch(&watch, &self.input, &self.gate, &self.stop)
                .map_err(|error| format!("failed to record: {error}"));
        }
        let job = Job {
            sources: vec![(self.settings.source.clone(), WallClock::Arrival)],
            realtime: false,
            max_rate: self.settings.max_rate,
        };
        let recorder = Recorder::new(config, store, numbers, clock)
            .map_err(|error| format!("failed to record: {error}"))?;
        let tally = Tally::default();
        let report = ingest::run(job, recorder, &tally, &self.gate, &self.input, &self.stop);
        if let Some(error) = report.broken {
            return Err(format!("failed to record: {error}"));
        }
        match report.failed.into_iter().next() {
            Some((_, error)) if !self.stop.is_cancelled() => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}

/// Attempts again and again until told to stop.
fn supervise(
    input: &Input,
    stop: &CancellationToken,
    min_back_off: Duration,
    mut attempt: impl FnMut() -> Result<(), String>,
) {
    let builder = ExponentialBuilder::default()
        .with_min_delay(min_back_off)
        .with_max_delay(MAX_BACK_OFF)
        .without_max_times()
        .with_jitter();
    let mut delays = builder.build();
    let mut told = None;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(&mut attempt))
            .unwrap_or_else(|panic| Err(format!("a bug: it panicked: {}", words_of(&*panic))));
        let why = match result {
            Err(why) => why,
            Ok(()) if stop.is_cancelled() => break,
            Ok(()) => "it ended by itself".to_owned(),
        };
        if began.elapsed() >= GOOD_ATTEMPT {
            delays = builder.build();
            told = None;
        }
        let delay = delays.next().unwrap_or(MAX_BACK_OFF);
        input.add(Count::Failures, 1);
        if told.as_ref() == Some(&why) {
            tracing::debug!("{why}; tried again in {:.1} s", delay.as_secs_f32());
        } else {
            tracing::warn!("{why}; tried again in {:.1} s, and on", delay.as_secs_f32());
        }
        input.set(InputState::Retrying { why: why.clone() });
        told = Some(why);
        let until = Instant::now() + delay;
        while !stop.is_cancelled() && Instant::now() < until {
            thread::sleep(MAX_SLEEP.min(delay));
        }
    }
    input.set(InputState::Stopped);
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_panics_or_fails_is_tried_again_until_told_to_stop() {
        let input = Input::new("gate".parse().unwrap(), String::new());
        let stop = CancellationToken::new();
        let mut states = Vec::new();
        let mut tries = 0;
        supervise(&input, &stop, Duration::from_millis(1), || {
            states.push(input.state());
            tries += 1;
            match tries {
                1 => panic!("of a test"),
                2 => Err("no such port".to_owned()),
                3 => Ok(()),
                _ => {
                    stop.cancel();
                    Ok(())
                }
            }
        });
        let retrying = |why: &str| InputState::Retrying {
            why: why.to_owned(),
        };
        assert_eq!(
            states,
            [
                InputState::Starting,
                retrying("a bug: it panicked: of a test"),
                retrying("no such port"),
                retrying("it ended by itself")
            ]
        );
        assert_eq!(input.count(Count::Failures), 3);
        assert_eq!(input.state(), InputState::Stopped);
    }
}
