//! From sources to the recorder: one blocking thread reads, demuxes, paces and records a push, or one stream
//! of `run`.
//!
//! A source that can't be read, or not to its end, is told and the next one goes on; only the disk ends
//! the whole. Memory of one source, beside the disk's page cache: 4 MiB read and not demuxed (live), the
//! access units that demuxer and segmenter put together (some MB; at most 16 MiB a PID and 56 MiB). Nothing here decides where a segment ends: that is the segmenter's.

mod file;
mod folder;
mod gate;
mod intake;
mod join;
mod live;
mod probe;
mod realtime;
mod rtp;
mod source_name;
mod stdin;
#[cfg(test)]
mod tests;
mod udp;
mod udp_address;
mod warnings;
mod watch;
#[cfg(test)]
mod watch_tests;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use media::access_unit::SourceEvent;
use model::{MediaDuration, MediaTime, SegmentNumber};
use store::SourceKind;
use tokio_util::sync::CancellationToken;

pub(crate) use gate::{Gate, Standing};
pub(crate) use probe::{Probe, probe};
pub(crate) use source_name::SourceName;
pub(crate) use udp::DEFAULT_MAX_RATE;
pub(crate) use watch::{Watch, watch};

use crate::{
    inputs::{Count, Input, InputState},
    progress::Tally,
    recorder::{RecordError, Recorder, WallClock},
};
use join::Joiner;
use realtime::Pacer;
use warnings::Warnings;

/// The longest sleep without a look at whether to stop.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// What is to be pushed, and how.
pub(crate) struct Job {
    /// In order, each with the wall clock that its first run gets if it begins one.
    pub(crate) sources: Vec<(SourceName, WallClock)>,
    pub(crate) realtime: bool,
    /// Bytes a second that a sender of datagrams may send.
    pub(crate) max_rate: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) cut: u64,
    /// The last segment cut.
    pub(crate) last: Option<SegmentNumber>,
    /// Sources that were not read, or not to their end, and why.
    pub(crate) failed: Vec<(SourceName, SourceError)>,
    /// A file that was left before its end, since the program was told to stop.
    pub(crate) left: Option<SourceName>,
    /// The disk gave up: nothing after it was recorded.
    pub(crate) broken: Option<RecordError>,
}

/// A source that could not be read, or not to its end. The source, or whoever chose it, is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("failed to open: {0}")]
    Open(std::io::Error),
    #[error("failed to read at byte {offset}: {source}")]
    Read { offset: u64, source: std::io::Error },
    #[error("the file is empty")]
    Empty,
    #[error("is a folder: give the files in it")]
    Folder,
    #[error("failed to listen: {0}")]
    Listen(std::io::Error),
    #[error("failed to receive: {0}")]
    Receive(std::io::Error),
    #[error(
        "its timeline breaks without end: timestamps jump or tracks change more often than can be recorded"
    )]
    Restless,
    #[error("{0}")]
    NotMedia(#[from] media::sniff::NotMedia),
    #[error("{0}")]
    Mp4(#[from] media::mp4::Mp4Error),
    #[error("MP4 can't be read from standard input, only MPEG-TS: push the file by its name")]
    Mp4OnStdin,
    #[error(
        "no video or sound that is carried was found in {bytes} bytes (H.264, H.265 and AAC are; `ffprobe` tells what is in it)"
    )]
    NothingFound { bytes: u64 },
}

/// Why reading a source stopped before its end.
#[derive(Debug)]
enum Halt {
    /// The source is at fault; the next one goes on.
    Source(SourceError),
    /// The disk is at fault.
    Record(RecordError),
    /// The operator asked.
    Asked,
}

impl<E: Into<SourceError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Source(error.into())
    }
}

/// Reads all sources to their end, or until told to stop. Blocks.
pub(crate) fn run(
    job: Job,
    recorder: Recorder,
    tally: &Tally,
    gate: &Gate,
    input: &Arc<Input>,
    stop: &CancellationToken,
) -> Report {
    let mut feed = Feed::new(recorder, tally, gate, input, stop);
    feed.pacer = job.realtime.then(Pacer::default);
    feed.max_rate = job.max_rate;
    let mut report = Report::default();
    for (source, wall) in job.sources {
        match feed.read(&source, wall) {
            Ok(()) => {}
            Err(Halt::Source(error)) => {
                tracing::warn!(%source, "{error}");
                report.failed.push((source, error));
            }
            Err(Halt::Asked) => {
                report.left = matches!(source, SourceName::File(_)).then_some(source);
                break;
            }
            Err(Halt::Record(error)) => {
                report.broken = Some(error);
                break;
            }
        }
    }
    match feed.recorder.finish() {
        Ok(()) => {}
        Err(error) => {
            report.broken.get_or_insert(error);
        }
    }
    report.cut = feed.recorder.closed();
    tally.set_cut(report.cut, feed.recorder.closed_bytes());
    report.last = feed.recorder.last_number();
    report
}

/// Where every reader puts what it found.
struct Feed<'a> {
    recorder: Recorder,
    joiner: Joiner,
    pacer: Option<Pacer>,
    warnings: Warnings,
    tally: &'a Tally,
    gate: &'a Gate,
    input: &'a Arc<Input>,
    stop: &'a CancellationToken,
    max_rate: u64,
    /// Access units of this source so far.
    units: u64,
    pace: Pace,
    /// Segments cut when room was last asked for.
    cut: u64,
}

/// How far a source that can't wait runs ahead of the clock: one that does is no camera, and can wait.
#[derive(Debug, Default)]
struct Pace {
    first: Option<(MediaTime, Instant)>,
    last: Option<MediaTime>,
    ahead: Duration,
}

/// A camera's buffer, a pipe's and a key-frame distance together are shorter.
const MAX_AHEAD: Duration = Duration::from_secs(60);

/// A step of the source's clock beyond this says nothing of its pace.
const MAX_STEP: MediaDuration = MediaDuration(10 * 90_000);

impl Pace {
    fn note(&mut self, dts: MediaTime, now: Instant) {
        let last = self.last.replace(dts).unwrap_or(dts);
        if dts - last > MAX_STEP || last - dts > MAX_STEP {
            self.first = None;
        }
        let (first, at) = *self.first.get_or_insert((dts, now));
        let media = (dts - first).max(MediaDuration::ZERO).to_duration();
        self.ahead = media.saturating_sub(now.saturating_duration_since(at));
    }

    fn runs_ahead(&self) -> bool {
        self.ahead > MAX_AHEAD
    }
}

impl<'a> Feed<'a> {
    fn new(
        recorder: Recorder,
        tally: &'a Tally,
        gate: &'a Gate,
        input: &'a Arc<Input>,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            recorder,
            joiner: Joiner::default(),
            pacer: None,
            warnings: Warnings::default(),
            tally,
            gate,
            input,
            stop,
            max_rate: DEFAULT_MAX_RATE,
            units: 0,
            pace: Pace::default(),
            cut: 0,
        }
    }
}

impl Feed<'_> {
    fn read(&mut self, source: &SourceName, wall: WallClock) -> Result<(), Halt> {
        self.recorder.set_wall_clock(wall);
        self.units = 0;
        self.warnings = Warnings::default();
        tracing::debug!(%source, "reading");
        let result = match source {
            SourceName::Stdin => {
                self.set_source(SourceKind::Live);
                stdin::read(source, self)
            }
            SourceName::Udp(address) => {
                self.set_source(SourceKind::Live);
                udp::read(source, address, self.max_rate, self)
            }
            SourceName::File(path) => {
                let kind = match self.pacer {
                    Some(_) => SourceKind::Paced,
                    None => SourceKind::AtRest,
                };
                self.set_source(kind);
                self.input.set(InputState::Recording);
                file::read(source, path, self)
            }
            // `watch` reads the files in it.
            SourceName::Folder(_) => Err(SourceError::Folder.into()),
        };
        self.warnings.end(source);
        let bytes = result?;
        if self.units == 0 {
            return Err(SourceError::NothingFound { bytes }.into());
        }
        let (units, warnings) = (self.units, self.warnings.total());
        tracing::info!(%source, bytes, access_units = units, warnings, "read to the end");
        Ok(())
    }

    fn set_source(&mut self, source: SourceKind) {
        self.recorder.set_source(source);
        self.pace = Pace::default();
    }

    /// Waits for the disk and for room on it, if this source can.
    fn hold_back(&mut self) -> Result<(), Halt> {
        let closed = self.recorder.closed();
        let cut = std::mem::replace(&mut self.cut, closed) != closed;
        let waits = self.recorder.can_wait() || self.pace.runs_ahead();
        if cut && waits {
            // Asked with each segment: the timer's look is too late for a source this fast.
            let full = self.recorder.should_hold_back().map_err(Halt::Record)?;
            if full {
                self.gate.close();
            }
        }
        while self.recorder.can_wait()
            && !self
                .recorder
                .wait_for_disk(MAX_SLEEP)
                .map_err(Halt::Record)?
        {
            if self.stop.is_cancelled() {
                return Err(Halt::Asked);
            }
        }
        if waits && self.gate.is_closed() && !self.gate.pass(self.stop) {
            return Err(Halt::Asked);
        }
        Ok(())
    }

    /// Bytes of the source have been read.
    fn count_read(&mut self, bytes: u64) -> Result<(), Halt> {
        self.tally.add_read(bytes);
        self.input.add(Count::Bytes, bytes);
        if self.stop.is_cancelled() {
            return Err(Halt::Asked);
        }
        Ok(())
    }

    /// Takes what a demuxer found.
    fn take(&mut self, source: &SourceName, event: SourceEvent) -> Result<(), Halt> {
        match event {
            SourceEvent::Warning(warning) => {
                self.input.add(Count::Warnings, 1);
                self.warnings.tell(source, warning, Instant::now());
                return Ok(());
            }
            SourceEvent::AccessUnit(ref unit) => {
                self.units += 1;
                let dts = unit.dts;
                self.pace.note(dts, Instant::now());
                if let Some(pacer) = &mut self.pacer {
                    let wait = pacer.wait(dts, Instant::now());
                    self.sleep(wait)?;
                }
            }
            SourceEvent::Tracks(_) | SourceEvent::Discontinuity => {
                if let Some(pacer) = &mut self.pacer {
                    pacer.restart();
                }
            }
        }
        let Self {
            joiner, recorder, ..
        } = self;
        let mut result = Ok(());
        joiner.take(event, |event| {
            if result.is_ok() {
                result = recorder.take(event);
            }
        });
        result.map_err(Halt::Record)?;
        self.tally
            .set_cut(self.recorder.closed(), self.recorder.closed_bytes());
        self.hold_back()
    }

    /// Closes what is open; what comes next begins a new run.
    fn end_run(&mut self) -> Result<(), Halt> {
        let ended = self.recorder.take(SourceEvent::Discontinuity);
        ended.map_err(Halt::Record)?;
        self.tally
            .set_cut(self.recorder.closed(), self.recorder.closed_bytes());
        Ok(())
    }

    fn sleep(&self, wait: Duration) -> Result<(), Halt> {
        let until = Instant::now() + wait;
        loop {
            if self.stop.is_cancelled() {
                return Err(Halt::Asked);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(MAX_SLEEP));
        }
    }
}
