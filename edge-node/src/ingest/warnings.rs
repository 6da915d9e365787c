//! What was wrong in a source, told without flooding: once a kind, then how many more every few seconds.
//!
//! Pure but for the log lines; the clock is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use media::access_unit::SourceWarning;

use super::SourceName;

/// Between two lines of the same kind.
const INTERVAL: Duration = Duration::from_secs(10);
/// Kinds kept apart; a source that is wrong in more ways gets the rest under one.
const MAX_KINDS: usize = 64;
const OTHER: &str = "other trouble";

/// The warnings of one source.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    kinds: BTreeMap<String, Kind>,
    total: u64,
}

#[derive(Debug)]
struct Kind {
    told_at: Instant,
    untold: u64,
    last: SourceWarning,
}

/// A line to log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    warning: SourceWarning,
    /// Of the same kind that were not told by themselves.
    more: u64,
}

impl Warnings {
    /// Counts a warning and logs it unless one of its kind was logged just now.
    pub(crate) fn tell(&mut self, source: &SourceName, warning: SourceWarning, now: Instant) {
        if let Some(line) = self.take(warning, now) {
            log(source, &line);
        }
    }

    /// The source has ended: logs what was held back.
    pub(crate) fn end(&mut self, source: &SourceName) {
        for line in self.rest() {
            log(source, &line);
        }
    }

    /// How many there were in all.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    fn take(&mut self, warning: SourceWarning, now: Instant) -> Option<Line> {
        self.total += 1;
        let mut key = kind(&warning);
        if !self.kinds.contains_key(&key) && self.kinds.len() >= MAX_KINDS {
            key = OTHER.to_owned();
        }
        match self.kinds.get_mut(&key) {
            None => {
                let kind = Kind {
                    told_at: now,
                    untold: 0,
                    last: warning.clone(),
                };
                self.kinds.insert(key, kind);
                Some(Line { warning, more: 0 })
            }
            Some(kind) if now.saturating_duration_since(kind.told_at) >= INTERVAL => {
                let more = std::mem::take(&mut kind.untold);
                kind.told_at = now;
                Some(Line { warning, more })
            }
            Some(kind) => {
                kind.untold += 1;
                kind.last = warning;
                None
            }
        }
    }

    fn rest(&mut self) -> Vec<Line> {
        let kinds = std::mem::take(&mut self.kinds).into_values();
        kinds
            .filter(|kind| kind.untold > 0)
            .map(|kind| Line {
                warning: kind.last,
                more: kind.untold - 1,
            })
            .collect()
    }
}

/// Warnings that differ in numbers only are of one kind, on each PID.
fn kind(warning: &SourceWarning) -> String {
    let words = warning.what.chars().filter(|c| !c.is_ascii_digit());
    match warning.pid {
        Some(pid) => words.chain(format!(" {pid}").chars()).collect(),
        None => words.collect(),
    }
}

fn log(source: &SourceName, line: &Line) {
    let SourceWarning { offset, pid, what } = &line.warning;
    let more = (line.more > 0).then_some(line.more);
    tracing::warn!(%source, offset, pid, more, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(offset: u64, pid: u16, what: &str) -> SourceWarning {
        SourceWarning {
            offset,
            pid: Some(pid),
            what: what.to_owned(),
        }
    }

    #[test]
    fn one_line_a_kind_and_interval_and_the_rest_at_the_end() {
        let start = Instant::now();
        let mut warnings = Warnings::default();
        let lost = |n: u64| warning(n * 188, 256, &format!("{n} TS packets are missing"));
        assert!(warnings.take(lost(1), start).is_some());
        for n in 2..10 {
            assert_eq!(warnings.take(lost(n), start + Duration::from_secs(1)), None);
        }
        let other = warning(5, 257, "3 TS packets are missing");
        assert!(warnings.take(other, start).is_some(), "another PID");
        let later = warnings.take(lost(10), start + INTERVAL).unwrap();
        assert_eq!((later.warning.offset, later.more), (1_880, 8));
        assert_eq!(warnings.take(lost(11), start + INTERVAL), None);
        assert_eq!(warnings.take(lost(12), start + INTERVAL), None);
        let rest = warnings.rest();
        assert_eq!(rest.len(), 1);
        assert_eq!((rest[0].warning.offset, rest[0].more), (12 * 188, 1));
        assert_eq!(warnings.total(), 13);
    }

    #[test]
    fn kinds_are_bounded() {
        let now = Instant::now();
        let mut warnings = Warnings::default();
        for i in 0..1_000u16 {
            warnings.take(warning(0, i, "x"), now);
        }
        assert_eq!(warnings.kinds.len(), MAX_KINDS + 1);
        assert_eq!(warnings.total(), 1_000);
    }
}
