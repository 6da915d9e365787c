//! From access units to segments in the store: numbers, runs and wall times are given here.
//!
//! Where to cut is the segmenter's; how bytes become durable is the store's. Keeps invariant 2 (numbers come
//! from durable reservations) and invariant 8 (wall time is an anchor plus media elapsed, set once a run; a
//! live source's anchor is a point on the clock of this boot, so that the ledger can be corrected).

use std::time::Duration;

use media::{
    access_unit::SourceEvent,
    segmenter::{Cut, RunFormat, Segmenter, SegmenterConfig},
};
use model::{
    BootTime, MAX_SEGMENT_BYTES, MediaDuration, MediaTime, RunInfo, SegmentNumber, StreamName,
    WallTime,
};
use store::{EdgeWriter, OpenSegment, Progress, SourceKind, Store, StoreError};

use crate::{
    clock::Clock,
    config::DEFAULT_TARGET,
    numbers::{Numbers, NumbersError},
    resume::{Passed, Resume},
};

/// Where the wall time of the next run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WallClock {
    /// It begins then.
    At(WallTime),
    /// It begins where the last one ended.
    GoesOn,
    /// It begins when it comes in: live sources.
    Arrival,
}

/// How to record.
#[derive(Debug, Clone)]
pub(crate) struct RecorderConfig {
    pub(crate) stream: StreamName,
    pub(crate) target_duration: Duration,
    /// The longest distance between key frames of what will come, where an index tells it.
    pub(crate) longest_key_distance: Option<MediaDuration>,
    /// `run` records it: it is ended when its configuration drops it.
    pub(crate) by_run: bool,
}

impl RecorderConfig {
    pub(crate) fn new(stream: StreamName) -> Self {
        Self {
            stream,
            target_duration: DEFAULT_TARGET,
            longest_key_distance: None,
            by_run: false,
        }
    }
}

/// A segment that could not be kept. The disk is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Numbers(#[from] NumbersError),
    #[error("the disk has not taken the last segments: it is full or slow")]
    Unwritten,
}

/// At the end of the sources the disk is given this long to take what was cut last.
pub(crate) const MAX_LAST_WRITE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, RecordError>;

/// Records one stream.
pub(crate) struct Recorder {
    stream: StreamName,
    store: Store,
    numbers: Numbers,
    clock: Clock,
    /// The lowest number that the catalog knew to be unused when it was last read.
    floor: SegmentNumber,
    segmenter: Segmenter,
    cuts: Vec<Cut>,
    next_wall: WallClock,
    newest_dts: Option<MediaTime>,
    state: State,
    /// What of the source is in the store already, until that is passed.
    resume: Option<Resume>,
    by_run: bool,
    last_end: Option<WallTime>,
    last_number: Option<SegmentNumber>,
    closed: u64,
    closed_bytes: u64,
    source: SourceKind,
}

/// Between segments and within one.
enum State {
    /// No run yet.
    Idle,
    /// A run is announced and gets its number with its first segment.
    NewRun(RunFormat),
    Between(Run),
    /// Within a segment that is in the store already, at least its beginning.
    Passing(Run, Passed),
    Open(Run, Box<Segment>),
}

#[derive(Debug, Clone)]
struct Run {
    info: RunInfo,
    wall_start: WallTime,
    media_start: MediaTime,
    /// Where it began on the clock of this boot; None for what has a time of its own.
    boot_start: Option<BootTime>,
}

struct Segment {
    writer: EdgeWriter,
    wall_start: WallTime,
    /// Of its parts so far.
    duration: MediaDuration,
    /// What of it is in the store under another number.
    before: MediaDuration,
}

impl Recorder {
    /// A recorder for a stream; nothing is written before the first segment.
    pub(crate) fn new(
        config: RecorderConfig,
        store: Store,
        numbers: Numbers,
        clock: Clock,
    ) -> Result<Self> {
        let RecorderConfig { stream, by_run, .. } = config;
        // TARGETDURATION never changes in the life of a live list (invariant 4); behind an ended one a new
        // list begins, which chooses its own.
        let list_target_s = match store.live_playlist(&stream) {
            Ok(list) => list
                .filter(|list| !list.ended)
                .map(|list| list.target_duration_s),
            Err(StoreError::NoSuchStream(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let segmenter = Segmenter::new(SegmenterConfig {
            target_duration: MediaDuration::from_duration(config.target_duration),
            list_target_s,
            expected_longest: config.longest_key_distance,
            ..SegmenterConfig::default()
        });
        Ok(Self {
            stream,
            store,
            numbers,
            clock,
            floor: SegmentNumber::default(),
            segmenter,
            cuts: Vec::new(),
            next_wall: WallClock::Arrival,
            newest_dts: None,
            state: State::Idle,
            resume: None,
            by_run,
            last_end: None,
            last_number: None,
            closed: 0,
            closed_bytes: 0,
            source: SourceKind::Live,
        })
    }

    /// A recorder for a source that is cut anew from its beginning, of which `progress` is in the store
    /// already: that is passed over, and what follows goes on in the same run.
    pub(crate) fn resume(
        config: RecorderConfig,
        store: Store,
        numbers: Numbers,
        clock: Clock,
        progress: Progress,
    ) -> Result<Self> {
        let mut recorder = Self::new(config, store, numbers, clock)?;
        recorder.resume = Resume::behind(progress);
        Ok(recorder)
    }

    /// A source begins: the wall clock of its first run, if it begins one.
    pub(crate) fn set_wall_clock(&mut self, wall: WallClock) {
        // A source with nothing in it leaves its time to the one that goes on from it.
        if !(wall == WallClock::GoesOn && matches!(self.next_wall, WallClock::At(_))) {
            self.next_wall = wall;
        }
    }

    /// What comes next is from such a source.
    pub(crate) fn set_source(&mut self, source: SourceKind) {
        self.source = source;
    }

    /// It loses nothing by waiting for the disk; any other goes on from memory.
    pub(crate) fn can_wait(&self) -> bool {
        self.source.can_wait()
    }

    /// Waits until the disk has taken what a source that can wait has cut, or for so long. False: it has
    /// not. An error: waiting does not help.
    pub(crate) fn wait_for_disk(&self, limit: Duration) -> Result<bool> {
        Ok(!self.can_wait() || self.store.wait_for_disk(&self.stream, limit)?)
    }

    /// Little room is left, and a source that can wait must.
    pub(crate) fn should_hold_back(&self) -> Result<bool> {
        Ok(self.store.should_hold_back()?)
    }

    /// Takes the next event of the source.
    pub(crate) fn take(&mut self, event: SourceEvent) -> Result<()> {
        if let SourceEvent::AccessUnit(unit) = &event {
            self.newest_dts = Some(unit.dts);
        }
        let mut cuts = std::mem::take(&mut self.cuts);
        self.segmenter.push(event, &mut cuts);
        let result = cuts.drain(..).try_for_each(|cut| self.carry_out(cut));
        self.cuts = cuts;
        result
    }

    /// The sources have ended: closes what is open, waits a while for the disk, and gives unused numbers back.
    /// Live video that the disk has not taken is shipped from memory.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let mut cuts = Vec::new();
        self.segmenter.finish(&mut cuts);
        cuts.into_iter().try_for_each(|cut| self.carry_out(cut))?;
        let counters = self.segmenter.counters();
        tracing::debug!(
            stream = %self.stream,
            dropped = counters.dropped,
            repaired = counters.repaired,
            forced = counters.forced,
            "cut"
        );
        let written = self.store.wait_for_all(&self.stream, MAX_LAST_WRITE);
        if self.can_wait() && !written? {
            return Err(RecordError::Unwritten);
        }
        if let Err(error) = self.numbers.give_back(&self.stream) {
            // The next start goes on above them.
            tracing::debug!(stream = %self.stream, %error, "failed to give numbers back");
        }
        Ok(())
    }

    /// Stops within the source, which goes on later behind what is here: closes what is open as it is.
    pub(crate) fn pause(&mut self) -> Result<()> {
        if let State::Open(_, segment) = std::mem::replace(&mut self.state, State::Idle) {
            let Segment {
                writer, duration, ..
            } = *segment;
            // One without a part is a number with nothing in it.
            writer.close_early(duration);
        }
        let written = self.store.wait_for_all(&self.stream, MAX_LAST_WRITE);
        if self.can_wait() && !written? {
            return Err(RecordError::Unwritten);
        }
        self.numbers.give_back(&self.stream)?;
        Ok(())
    }

    /// Segments closed.
    pub(crate) fn closed(&self) -> u64 {
        self.closed
    }

    pub(crate) fn closed_bytes(&self) -> u64 {
        self.closed_bytes
    }

    /// The last segment closed.
    pub(crate) fn last_number(&self) -> Option<SegmentNumber> {
        self.last_number
    }

    fn carry_out(&mut self, cut: Cut) -> Result<()> {
        let state = std::mem::replace(&mut self.state, State::Idle);
        if let Some(resume) = self.resume {
            self.state = self.pass(resume, cut, state)?;
            return Ok(());
        }
        self.state = match (cut, state) {
            (Cut::Run(format), _) => State::NewRun(format),
            (
                Cut::Open {
                    media_start,
                    independent,
                },
                State::NewRun(format),
            ) => self.open_run(format, media_start, independent)?,
            (
                Cut::Open {
                    media_start,
                    independent,
                },
                State::Between(run),
            ) => {
                let number = self.next_number()?;
                self.open(run, number, media_start, independent)
            }
            (
                Cut::Part {
                    bytes,
                    duration,
                    independent,
                },
                State::Open(run, mut segment),
            ) => {
                let whole = segment.writer.bytes().saturating_add(bytes.len() as u64);
                if whole > MAX_SEGMENT_BYTES {
                    return Err(self.wrong(run.info.run, format!("over {MAX_SEGMENT_BYTES} bytes")));
                }
                segment.writer.append_part(bytes, duration, independent);
                segment.duration += duration;
                State::Open(run, segment)
            }
            (Cut::Close { duration }, State::Open(run, segment)) => {
                let duration = duration - segment.before;
                let number = segment.writer.number();
                let bytes = segment.writer.bytes();
                if segment.writer.close(duration).is_none() {
                    tracing::warn!(stream = %self.stream, number = number.0, "memory had no room for a segment: it is a hole");
                }
                self.last_end = Some(segment.wall_start.plus(duration));
                self.last_number = Some(number);
                self.closed += 1;
                self.closed_bytes += bytes;
                State::Between(run)
            }
            // The segmenter's order is `Run (Open Part+ Close)+`: nothing else comes.
            (Cut::Open { .. } | Cut::Part { .. } | Cut::Close { .. }, state) => state,
        };
        Ok(())
    }

    fn open_run(
        &mut self,
        format: RunFormat,
        media_start: MediaTime,
        independent: bool,
    ) -> Result<State> {
        let (wall_start, boot_start) = self.wall_of_run(media_start);
        self.note_recorded()?;
        let number = self.next_number()?;
        let info = run_info(number, format);
        tracing::info!(
            stream = %self.stream,
            run = %number,
            codecs = %info.codecs,
            resolution = info.resolution.map(|(w, h)| format!("{w}x{h}")),
            "a run begins"
        );
        let run = Run {
            info,
            wall_start,
            media_start,
            boot_start,
        };
        Ok(self.open(run, number, media_start, independent))
    }

    /// When a run that begins here begins: on the wall clock and, where it comes live, on the boot's.
    fn wall_of_run(&mut self, media_start: MediaTime) -> (WallTime, Option<BootTime>) {
        match std::mem::replace(&mut self.next_wall, WallClock::GoesOn) {
            WallClock::At(time) => (time, None),
            WallClock::GoesOn => {
                let begins = self.last_end.unwrap_or_else(|| self.clock.now().wall);
                (begins, None)
            }
            WallClock::Arrival => {
                self.next_wall = WallClock::Arrival;
                let now = self.clock.now();
                // What comes now is the newest; the run began this much of media before it.
                let since = self.newest_dts.map(|dts| dts - media_start);
                let since = since.unwrap_or_default().max(MediaDuration::ZERO);
                let before = MediaDuration::ZERO - since;
                (now.wall.minus(since), now.boot.map(|at| at.plus(before)))
            }
        }
    }

    /// Carries out a cut of what is in the store already, up to where that ends.
    fn pass(&mut self, resume: Resume, cut: Cut, state: State) -> Result<State> {
        Ok(match (cut, state) {
            (Cut::Run(format), _) => State::NewRun(format),
            (Cut::Open { media_start, .. }, State::NewRun(format)) => {
                let (wall_start, boot_start) = self.wall_of_run(media_start);
                let run = Run {
                    info: run_info(resume.run(), format),
                    wall_start,
                    media_start,
                    boot_start,
                };
                State::Passing(run, Passed::at(media_start))
            }
            (Cut::Open { media_start, .. }, State::Between(run)) => {
                State::Passing(run, Passed::at(media_start))
            }
            (
                Cut::Part {
                    bytes,
                    duration,
                    independent,
                },
                State::Passing(run, mut passed),
            ) => {
                if resume.has(&mut passed, bytes.len() as u64, duration) {
                    State::Passing(run, passed)
                } else {
                    // From here on it is new.
                    self.resume = None;
                    let number = self.next_number()?;
                    self.state = self.open(run, number, passed.at, independent);
                    if let State::Open(_, segment) = &mut self.state {
                        segment.before = passed.at - passed.start;
                    }
                    self.carry_out(Cut::Part {
                        bytes,
                        duration,
                        independent,
                    })?;
                    std::mem::replace(&mut self.state, State::Idle)
                }
            }
            (Cut::Close { duration }, State::Passing(run, passed)) => {
                let wall = run.wall_start.plus(passed.start - run.media_start);
                self.last_end = Some(wall.plus(duration));
                self.resume = resume.passed_one();
                State::Between(run)
            }
            (Cut::Open { .. } | Cut::Part { .. } | Cut::Close { .. }, state) => state,
        })
    }

    /// Above all that the catalog knows to be used; a renumbering may have used more since the last one. While
    /// the disk fails nothing is renumbered.
    fn next_number(&mut self) -> Result<SegmentNumber> {
        match self.store.floor(&self.stream) {
            Ok(floor) => self.floor = floor,
            Err(StoreError::NoSuchStream(_)) => {}
            Err(error) if error.disk_fault().is_some() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.numbers.take(&self.stream, self.floor)?)
    }

    /// `run` records this stream. Live video goes on where the disk can't be told: the next run tells it.
    fn note_recorded(&mut self) -> Result<()> {
        if !self.by_run {
            return Ok(());
        }
        let noted = self
            .store
            .register_stream(&self.stream, None)
            .and_then(|()| self.store.mark_recorded(&self.stream));
        match noted {
            Err(error) if !self.can_wait() && error.disk_fault().is_some() => Ok(()),
            noted => Ok(noted?),
        }
    }

    fn open(
        &mut self,
        run: Run,
        number: SegmentNumber,
        media_start: MediaTime,
        independent: bool,
    ) -> State {
        // A source that stayed in the run has no use for a wall clock of its own.
        if matches!(self.next_wall, WallClock::At(_)) {
            self.next_wall = WallClock::GoesOn;
        }
        let elapsed = media_start - run.media_start;
        let wall_start = run.wall_start.plus(elapsed).in_calendar();
        let open = OpenSegment {
            number,
            run: run.info.run,
            wall_start,
            media_start,
            independent,
        };
        let boot = run.boot_start.map(|began| began.plus(elapsed));
        let writer = self
            .store
            .record(&self.stream, &run.info, open, boot, self.source);
        State::Open(
            run,
            Box::new(Segment {
                writer,
                wall_start,
                duration: MediaDuration::ZERO,
                before: MediaDuration::ZERO,
            }),
        )
    }

    fn wrong(&self, number: SegmentNumber, what: String) -> RecordError {
        RecordError::Store(StoreError::Segment {
            stream: self.stream.clone(),
            number,
            what,
        })
    }
}

fn run_info(run: SegmentNumber, format: RunFormat) -> RunInfo {
    RunInfo {
        run,
        codecs: format.codecs,
        resolution: format.resolution,
        target_duration_s: format.target_duration_s,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use media::access_unit::{AccessUnit, AudioInfo, Track, TrackFormat, TrackId};
    use store::StoreOptions;

    use super::*;

    /// Ticks of an AAC frame at 48 kHz.
    const FRAME: i64 = 1_920;

    struct Site {
        _dir: tempfile::TempDir,
        store: Store,
        numbers: Numbers,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = StoreOptions {
                local_playlists: true,
                ..StoreOptions::default()
            };
            let (store, _) = Store::open(dir.path(), options).unwrap();
            let numbers = Numbers::open(dir.path()).unwrap();
            Self {
                _dir: dir,
                store,
                numbers,
            }
        }

        fn recorder(&self) -> Recorder {
            let config = RecorderConfig::new(gate());
            let clock = Clock::start(self.store.clone()).unwrap();
            Recorder::new(config, self.store.clone(), self.numbers.clone(), clock).unwrap()
        }

        /// Number, run, wall start and duration in milliseconds of every segment.
        fn segments(&self) -> Vec<(u64, u64, i64, i64)> {
            let all = self.store.list(&gate(), SegmentNumber(0), 100).unwrap();
            all.iter()
                .map(|s| {
                    let duration = s.duration.as_millis();
                    (s.number.0, s.run.0, s.wall_start.0, duration)
                })
                .collect()
        }
    }

    fn gate() -> StreamName {
        "gate".parse().unwrap()
    }

    fn tracks() -> SourceEvent {
        let info = AudioInfo {
            sample_rate: 48_000,
            channels: 2,
            codec: "mp4a.40.2".to_owned(),
        };
        SourceEvent::Tracks(vec![Track {
            id: TrackId(0),
            format: TrackFormat::Aac { info },
        }])
    }

    /// Sound from one second of the camera's clock to another.
    fn sound(recorder: &mut Recorder, from_s: i64, to_s: i64) {
        for i in from_s * 90_000 / FRAME..to_s * 90_000 / FRAME {
            let at = MediaTime(i * FRAME);
            let unit = AccessUnit {
                track: TrackId(0),
                pts: at,
                dts: at,
                key: true,
                data: Bytes::from_static(&[0xff, 0xf1, 0x4c, 0x80, 0x01, 0x7f, 0xfc, 0, 0, 0, 0]),
            };
            recorder.take(SourceEvent::AccessUnit(unit)).unwrap();
        }
    }

    #[test]
    fn runs_follow_one_another_on_the_wall_clock() {
        let site = Site::new();
        let mut recorder = site.recorder();
        // The first source has nothing in it: its time goes to the next.
        recorder.set_wall_clock(WallClock::At(WallTime(1_000_000)));
        recorder.set_wall_clock(WallClock::GoesOn);
        recorder.take(tracks()).unwrap();
        sound(&mut recorder, 100, 104);
        recorder.take(SourceEvent::Discontinuity).unwrap();
        sound(&mut recorder, 10, 12);
        recorder.set_wall_clock(WallClock::At(WallTime(9_000_000)));
        recorder.take(SourceEvent::Discontinuity).unwrap();
        sound(&mut recorder, 50, 52);
        recorder.finish().unwrap();

        let segments = site.segments();
        let runs: Vec<u64> = segments.iter().map(|s| s.1).collect();
        assert_eq!(recorder.closed(), segments.len() as u64);
        assert_eq!(
            recorder.last_number(),
            segments.last().map(|s| SegmentNumber(s.0))
        );
        // Numbers without a gap; a run's number is that of its first segment.
        for (i, &(number, run, ..)) in segments.iter().enumerate() {
            assert_eq!(number, i as u64);
            assert!(run <= number && runs.contains(&run));
        }
        // Wall times without a gap, but for the run with a time of its own.
        assert_eq!(segments[0].2, 1_000_000);
        for pair in segments.windows(2) {
            let (_, _, wall, duration) = pair[0];
            let expected = if pair[1].2 == 9_000_000 {
                9_000_000
            } else {
                wall + duration
            };
            assert!((pair[1].2 - expected).abs() <= 1, "{segments:?}");
        }
        let begins: Vec<i64> = segments
            .iter()
            .filter(|s| s.0 == s.1)
            .map(|s| s.2)
            .collect();
        assert_eq!(begins.len(), 3, "{segments:?}");
        assert_eq!(begins[2], 9_000_000);
    }

    #[test]
    fn a_source_that_stays_in_the_run_keeps_its_clock() {
        let site = Site::new();
        let mut recorder = site.recorder();
        recorder.set_wall_clock(WallClock::At(WallTime(1_000_000)));
        recorder.take(tracks()).unwrap();
        sound(&mut recorder, 0, 4);
        recorder.set_wall_clock(WallClock::At(WallTime(77)));
        sound(&mut recorder, 4, 8);
        // Its time was for its beginning, not for a run within it.
        recorder.take(SourceEvent::Discontinuity).unwrap();
        sound(&mut recorder, 100, 102);
        recorder.finish().unwrap();
        assert!(
            site.segments().iter().all(|s| s.2 >= 1_000_000),
            "{:?}",
            site.segments()
        );
    }

    #[test]
    fn what_comes_live_is_stamped_with_its_arrival() {
        let site = Site::new();
        let mut recorder = site.recorder();
        recorder.set_wall_clock(WallClock::Arrival);
        recorder.take(tracks()).unwrap();
        sound(&mut recorder, 0, 6);
        recorder.finish().unwrap();
        let segments = site.segments();
        let now = program::clock::wall_now();
        assert!((now.0 - segments[0].2).abs() < 10_000);
        assert!(
            (segments[1].2 - segments[0].2 - segments[0].3).abs() <= 1,
            "{segments:?}"
        );
    }

    #[test]
    fn the_next_recorder_goes_on_with_number_and_target() {
        let site = Site::new();
        for round in 1..=3 {
            let mut recorder = site.recorder();
            recorder.take(tracks()).unwrap();
            sound(&mut recorder, 0, 2);
            recorder.finish().unwrap();
            recorder.finish().unwrap();
            assert_eq!(recorder.closed(), 1);
            assert_eq!(recorder.last_number(), Some(SegmentNumber(round - 1)));
        }
        let list = site.store.live_playlist(&gate()).unwrap().unwrap();
        assert_eq!(list.target_duration_s, 2);
    }

    #[test]
    fn nothing_in_nothing_out() {
        let site = Site::new();
        let mut recorder = site.recorder();
        recorder.take(tracks()).unwrap();
        recorder.take(SourceEvent::Discontinuity).unwrap();
        recorder.finish().unwrap();
        assert_eq!((recorder.closed(), recorder.last_number()), (0, None));
        assert!(site.store.stream(&gate()).unwrap().is_none());
    }
}
