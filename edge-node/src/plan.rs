//! What a push is to do: its sources, the wall times they get, and how they are cut.
//!
//! Looks at the files; reads none through.

use std::ffi::OsString;

use model::{MediaDuration, StreamName, WallTime};
use program::{
    clock::{wall_now, wall_time},
    exit::Failure,
};

use crate::{
    cli::{PushArgs, Start},
    ingest::{self, DEFAULT_MAX_RATE, Job, Probe, SourceName},
    recorder::{RecorderConfig, WallClock},
};

/// Sources in one push; more come from a script that calls it again.
const MAX_SOURCES: usize = 10_000;

/// What the words after `push` mean.
pub(crate) struct Plan {
    stream: StreamName,
    sources: Vec<SourceName>,
    start: Option<Start>,
    realtime: bool,
}

/// A plan after a look at its files.
pub(crate) struct Ready {
    pub(crate) job: Job,
    pub(crate) config: RecorderConfig,
    /// Bytes of all files; None for standard input.
    pub(crate) total: Option<u64>,
}

/// What is known of a source before it is read.
struct Looked {
    probe: Option<Probe>,
    mtime: Option<WallTime>,
}

impl Plan {
    /// Checks the words.
    pub(crate) fn of(args: &PushArgs) -> Result<Self, Failure> {
        if args.sources.len() > MAX_SOURCES {
            let given = args.sources.len();
            return Err(Failure::usage(format!(
                "{given} sources; give at most {MAX_SOURCES} at once"
            )));
        }
        let parse = |text: &OsString| {
            SourceName::parse(text).map_err(|unread| Failure::usage(unread.hint(&args.stream)))
        };
        let plan = Self {
            stream: args.stream.clone(),
            sources: args.sources.iter().map(parse).collect::<Result<_, _>>()?,
            start: args.start,
            realtime: args.realtime,
        };
        if let Some(SourceName::Folder(path)) = plan
            .sources
            .iter()
            .find(|s| matches!(s, SourceName::Folder(_)))
        {
            let (stream, path) = (&args.stream, path.display());
            return Err(Failure::usage(format!(
                "folders are watched by `edge-node run`; push the files by name: `edge-node push --stream {stream} {path}/*`"
            )));
        }
        if let Some(live) = plan.sources.iter().find(|s| s.is_live()) {
            if plan.sources.len() > 1 {
                return Err(Failure::usage(format!(
                    "{live} stands alone: push files before or after it"
                )));
            }
            if plan.start == Some(Start::Mtime) {
                return Err(Failure::usage(format!(
                    "--start mtime is for files: {live} has no such time"
                )));
            }
        }
        Ok(plan)
    }

    /// Looks at the files. One that can't be looked at is told when its turn comes to be read.
    pub(crate) fn look(self) -> Ready {
        let looked: Vec<Looked> = self.sources.iter().map(Looked::at).collect();
        let probes = || looked.iter().filter_map(|l| l.probe);
        let mut config = RecorderConfig::new(self.stream.clone());
        config.longest_key_distance = probes().filter_map(|p| p.longest_key_distance).max();
        let total = (!self.is_live()).then(|| probes().map(|p| p.size).sum());
        let walls = self.walls(&looked, wall_now());
        let job = Job {
            sources: self.sources.into_iter().zip(walls).collect(),
            realtime: self.realtime,
            max_rate: DEFAULT_MAX_RATE,
        };
        Ready { job, config, total }
    }

    /// What is pushed, for status.
    pub(crate) fn source(&self) -> String {
        match self.sources.as_slice() {
            [one] => one.to_string(),
            many => format!("{} files", many.len()),
        }
    }

    fn is_live(&self) -> bool {
        self.sources.iter().any(SourceName::is_live)
    }

    /// The wall clock of each source.
    fn walls(&self, looked: &[Looked], now: WallTime) -> Vec<WallClock> {
        let comes_now = self.is_live() || self.realtime;
        let begin = match self.start {
            None | Some(Start::Now) if comes_now => {
                return vec![WallClock::Arrival; looked.len()];
            }
            Some(Start::Mtime) => return looked.iter().map(Looked::ends_at_mtime).collect(),
            Some(Start::At(time)) => time,
            Some(Start::Now) => now,
            // So that it ends now.
            None => {
                let durations = looked.iter().filter_map(|l| l.probe).map(|p| p.duration);
                now.minus(durations.fold(MediaDuration::ZERO, |sum, d| sum + d))
            }
        };
        let mut walls = vec![WallClock::GoesOn; looked.len()];
        if let Some(first) = walls.first_mut() {
            *first = WallClock::At(begin);
        }
        walls
    }
}

impl Looked {
    fn at(source: &SourceName) -> Self {
        let SourceName::File(path) = source else {
            return Self {
                probe: None,
                mtime: None,
            };
        };
        let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
        Self {
            probe: ingest::probe(path).ok(),
            mtime: modified.ok().map(wall_time),
        }
    }

    fn ends_at_mtime(&self) -> WallClock {
        match (self.mtime, self.probe) {
            (Some(end), Some(probe)) => WallClock::At(end.minus(probe.duration)),
            _ => WallClock::GoesOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(seconds: i64, mtime: i64) -> Looked {
        Looked {
            probe: Some(Probe {
                size: 1,
                duration: MediaDuration::from_millis(seconds * 1_000),
                longest_key_distance: None,
            }),
            mtime: Some(WallTime(mtime)),
        }
    }

    fn walls(sources: &[&str], start: Option<Start>, realtime: bool) -> Vec<WallClock> {
        let plan = Plan {
            stream: "gate".parse().unwrap(),
            sources: sources
                .iter()
                .map(|s| SourceName::parse(s.as_ref()).unwrap())
                .collect(),
            start,
            realtime,
        };
        let looked: Vec<Looked> = match plan.is_live() {
            true => vec![Looked::at(&SourceName::Stdin)],
            false => (0..sources.len())
                .map(|i| looked(10, 50_000 + i as i64 * 30_000))
                .collect(),
        };
        plan.walls(&looked, WallTime(1_000_000))
    }

    #[test]
    fn wall_times_of_sources() {
        use WallClock::{Arrival, At, GoesOn};
        let at = |ms| At(WallTime(ms));
        let two = ["a.ts", "b.ts"];
        let given = Some(Start::At(WallTime(7)));
        assert_eq!(walls(&two, None, false), [at(980_000), GoesOn], "ends now");
        assert_eq!(
            walls(&two, Some(Start::Now), false),
            [at(1_000_000), GoesOn]
        );
        assert_eq!(walls(&two, given, false), [at(7), GoesOn]);
        assert_eq!(walls(&two, given, true), [at(7), GoesOn]);
        assert_eq!(
            walls(&two, Some(Start::Mtime), false),
            [at(40_000), at(70_000)]
        );
        assert_eq!(walls(&two, None, true), [Arrival, Arrival]);
        assert_eq!(walls(&["udp://:5000"], None, false), [Arrival]);
        assert_eq!(walls(&["-"], None, false), [Arrival]);
        assert_eq!(walls(&["-"], Some(Start::Now), false), [Arrival]);
        assert_eq!(walls(&["-"], given, false), [at(7)]);
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_goes_on() {
        let missing = Looked::at(&SourceName::File("/no/such/file".into()));
        assert_eq!(missing.ends_at_mtime(), WallClock::GoesOn);
    }
}
