//! What live sources have in common: MPEG-TS that comes when it comes, pauses, and starts over.
//!
//! A source that falls silent has its open segment closed at its last whole access unit, so that the hub
//! gets it; what comes afterwards is a new run. One whose clock stands still or never settles is bounded
//! here (invariants 5 and 7).

use std::time::{Duration, Instant};

use media::{access_unit::SourceEvent, ts::demux::Demuxer};

use super::{Feed, Halt, SourceError, SourceName};
use crate::inputs::{Count, InputState};

/// Silence after which the open segment is closed: longer than any key-frame distance that is listed.
pub(super) const IDLE_CLOSE: Duration = Duration::from_secs(6);
/// Silence after which it is said that nothing comes.
const NO_DATA: Duration = Duration::from_secs(10);
/// When access units come and no segment is closed for so long, the clock hardly moves (or no key frame
/// comes): what is open, or held back, is closed all the same.
const MAX_OPEN: Duration = Duration::from_secs(30);
/// Breaks of the timeline that may come at once, and how often one more may.
const MAX_BREAKS: u32 = 20;
const BREAK_EVERY: Duration = Duration::from_secs(2);

/// A live source being read.
pub(super) struct Live {
    demuxer: Demuxer,
    events: Vec<SourceEvent>,
    bytes: u64,
    state: State,
    breaks: Option<Breaks>,
    /// Segments closed, access units that had come by then, and since when it is so.
    closed: (u64, u64, Instant),
}

enum State {
    /// Nothing has come since then.
    Silent {
        since: Instant,
        told: bool,
    },
    Flowing {
        last: Instant,
    },
}

/// How often the timeline may break.
struct Breaks {
    left: u32,
    since: Instant,
}

impl Live {
    /// `paced`: it comes in its own time, so that breaks of its timeline are rare. A pipe that is fed from
    /// files brings them as fast as the disk goes.
    pub(super) fn begin(paced: bool, now: Instant, feed: &mut Feed<'_>) -> Self {
        feed.joiner.begin_source(false);
        Self {
            demuxer: Demuxer::new(),
            events: Vec::new(),
            bytes: 0,
            state: State::Silent {
                since: now,
                told: false,
            },
            breaks: paced.then_some(Breaks {
                left: MAX_BREAKS,
                since: now,
            }),
            closed: (0, 0, now),
        }
    }

    /// Bytes that have come so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what came.
    pub(super) fn push(
        &mut self,
        source: &SourceName,
        bytes: &[u8],
        now: Instant,
        feed: &mut Feed<'_>,
    ) -> Result<(), Halt> {
        if let State::Silent { since, told } = self.state {
            if told {
                let silent = humantime::format_duration(Duration::from_secs(
                    now.saturating_duration_since(since).as_secs(),
                ));
                tracing::info!(%source, "data comes again after {silent}");
            }
            feed.input.set(InputState::Recording);
            self.closed = (feed.recorder.closed(), feed.units, now);
        }
        self.state = State::Flowing { last: now };
        self.bytes += bytes.len() as u64;
        feed.tally.add_read(bytes.len() as u64);
        feed.input.add(Count::Bytes, bytes.len() as u64);
        self.demuxer.push(bytes, &mut self.events);
        self.drain(source, now, feed)?;
        self.close_if_stuck(source, now, feed)
    }

    /// Call a few times a second, whether something comes or not.
    pub(super) fn tick(
        &mut self,
        source: &SourceName,
        now: Instant,
        feed: &mut Feed<'_>,
    ) -> Result<(), Halt> {
        match &mut self.state {
            State::Flowing { last } if now.saturating_duration_since(*last) >= IDLE_CLOSE => {
                let since = *last;
                self.close(source, now, feed)?;
                feed.input.add(Count::Silences, 1);
                self.state = State::Silent { since, told: false };
            }
            State::Silent { since, told }
                if !*told && now.saturating_duration_since(*since) >= NO_DATA =>
            {
                *told = true;
                let why = format!("no data for {} s", NO_DATA.as_secs());
                tracing::warn!(%source, "{why}; waiting");
                feed.input.set(InputState::Waiting { why });
            }
            State::Flowing { .. } | State::Silent { .. } => {}
        }
        Ok(())
    }

    /// The source has ended: feeds what was still being put together.
    pub(super) fn finish(&mut self, source: &SourceName, feed: &mut Feed<'_>) -> Result<(), Halt> {
        self.demuxer.finish(&mut self.events);
        for event in self.events.drain(..) {
            feed.take(source, event)?;
        }
        Ok(())
    }

    /// Closes what is open; what comes next is read afresh and begins a new run.
    fn close(
        &mut self,
        source: &SourceName,
        now: Instant,
        feed: &mut Feed<'_>,
    ) -> Result<(), Halt> {
        self.finish(source, feed)?;
        feed.end_run()?;
        feed.joiner.begin_source(false);
        self.demuxer = Demuxer::new();
        self.closed = (feed.recorder.closed(), feed.units, now);
        Ok(())
    }

    fn drain(
        &mut self,
        source: &SourceName,
        now: Instant,
        feed: &mut Feed<'_>,
    ) -> Result<(), Halt> {
        for event in self.events.drain(..) {
            let breaks = matches!(event, SourceEvent::Discontinuity | SourceEvent::Tracks(_));
            if breaks && let Some(limit) = &mut self.breaks {
                limit.take(now)?;
            }
            feed.take(source, event)?;
        }
        Ok(())
    }

    fn close_if_stuck(
        &mut self,
        source: &SourceName,
        now: Instant,
        feed: &mut Feed<'_>,
    ) -> Result<(), Halt> {
        let (closed, units, since) = self.closed;
        let idle = feed.units == units;
        if feed.recorder.closed() != closed || idle {
            self.closed = (feed.recorder.closed(), feed.units, now);
        } else if now.saturating_duration_since(since) >= MAX_OPEN {
            tracing::warn!(
                %source,
                "nothing was cut for {} s though pictures or sound come: its timestamps hardly move, or no key frame comes; a new run begins",
                MAX_OPEN.as_secs()
            );
            feed.input.add(Count::Warnings, 1);
            feed.end_run()?;
            self.closed = (feed.recorder.closed(), feed.units, now);
        }
        Ok(())
    }
}

impl Breaks {
    fn take(&mut self, now: Instant) -> Result<(), SourceError> {
        let regained = now.saturating_duration_since(self.since).as_secs() / BREAK_EVERY.as_secs();
        if regained > 0 {
            let regained = u32::try_from(regained).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(regained).min(MAX_BREAKS);
            self.since = now;
        }
        self.left = self.left.checked_sub(1).ok_or(SourceError::Restless)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_are_few_over_time() {
        let start = Instant::now();
        let mut breaks = Breaks {
            left: MAX_BREAKS,
            since: start,
        };
        for _ in 0..MAX_BREAKS {
            assert!(breaks.take(start).is_ok());
        }
        assert!(breaks.take(start).is_err());
        let later = start + 3 * BREAK_EVERY;
        for _ in 0..3 {
            assert!(breaks.take(later).is_ok());
        }
        assert!(breaks.take(later).is_err());
    }
}
