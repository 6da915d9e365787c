//! The rules that a live list keeps for as long as it is served (invariants 1 and 4), held against what is
//! really served, answer by answer.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, FixedOffset};
use m3u8_rs::MediaPlaylist;

use crate::http::{self, get};

/// Between two looks of a [`Watcher`].
const LOOK_INTERVAL: Duration = Duration::from_millis(30);

/// What a list has promised so far.
#[derive(Debug, Default)]
pub struct ListRules {
    sequence: u64,
    discontinuities: u64,
    /// By media sequence: what it names, its duration, its time, and whether a discontinuity goes before it.
    known: BTreeMap<u64, Entry>,
    target: Option<u64>,
    looks: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    uri: String,
    duration: f32,
    discontinuity: bool,
    time: Option<DateTime<FixedOffset>>,
}

impl ListRules {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many lists were looked at.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// Media sequences seen so far.
    pub fn seen(&self) -> usize {
        self.known.len()
    }

    /// Looks at the list of a URL; one that is not there, or nobody who answers, breaks no rule.
    pub fn check(&mut self, url: &str) -> Result<()> {
        let Ok(answer) = get(url) else { return Ok(()) };
        if answer.status != 200 {
            return Ok(());
        }
        self.hold(&http::parse(url, &answer.body)?)?;
        Ok(())
    }

    /// Looks at a list that an edge keeps in its segment folder; none there breaks no rule.
    pub fn check_file(&mut self, path: &Path) -> Result<()> {
        let Ok(text) = std::fs::read(path) else {
            return Ok(());
        };
        self.hold(&http::parse(&path.display().to_string(), &text)?)?;
        Ok(())
    }

    /// Holds a list against the rules; the URIs that are new in it.
    fn hold(&mut self, list: &MediaPlaylist) -> Result<Vec<String>> {
        self.looks += 1;
        ensure!(
            list.media_sequence >= self.sequence,
            "media sequence {} after {}",
            list.media_sequence,
            self.sequence
        );
        ensure!(
            list.discontinuity_sequence >= self.discontinuities,
            "discontinuity sequence {} after {}",
            list.discontinuity_sequence,
            self.discontinuities
        );
        let last_known = self.known.last_key_value().map(|(sequence, _)| *sequence);
        if let Some(target) = self.target
            && target != list.target_duration
        {
            // Only a list begun anew, behind all that was listed before, may choose its own.
            ensure!(
                last_known.is_none_or(|last| list.media_sequence > last),
                "target duration {} after {target} in a list that goes on",
                list.target_duration
            );
        }
        self.target = Some(list.target_duration);
        (self.sequence, self.discontinuities) = (list.media_sequence, list.discontinuity_sequence);
        let mut new = Vec::new();
        for (sequence, segment) in (list.media_sequence..).zip(&list.segments) {
            ensure!(
                segment.duration.round() as u64 <= list.target_duration,
                "{}: {} s over a target of {}",
                segment.uri,
                segment.duration,
                list.target_duration
            );
            let entry = Entry {
                uri: segment.uri.clone(),
                duration: segment.duration,
                discontinuity: segment.discontinuity,
                time: segment.program_date_time,
            };
            match self.known.get_mut(&sequence) {
                None => {
                    new.push(entry.uri.clone());
                    self.known.insert(sequence, entry);
                }
                Some(known) => {
                    // The first entry's tag may leave with the entry before it.
                    if sequence == list.media_sequence {
                        known.discontinuity = entry.discontinuity;
                    }
                    ensure!(
                        *known == entry,
                        "media sequence {sequence} was {known:?}, is {entry:?}"
                    );
                }
            }
        }
        Ok(new)
    }
}

/// Looks at one live list on and on, and fetches each segment as it is listed: what is listed is there.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<ListRules>>>,
}

impl Watcher {
    /// Watches the list of `stream` at a server whose URL before `/s/` is `root`.
    pub fn start(root: &str, stream: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (root, stream, stopped) = (
            format!("{root}/s/{stream}"),
            stream.to_owned(),
            stop.clone(),
        );
        let thread = thread::spawn(move || {
            let mut rules = ListRules::new();
            while !stopped.load(Ordering::Relaxed) {
                look(&mut rules, &root).with_context(|| format!("the live list of {stream}"))?;
                thread::sleep(LOOK_INTERVAL);
            }
            Ok(rules)
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// A rule was broken: it has stopped looking.
    pub fn has_failed(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(|thread| thread.is_finished())
    }

    /// Ends; what it saw, or the rule that was broken.
    pub fn end(mut self) -> Result<ListRules> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(rules)) => rules,
            _ => bail!("the watcher panicked"),
        }
    }
}

fn look(rules: &mut ListRules, root: &str) -> Result<()> {
    let url = format!("{root}/live.m3u8");
    let Ok(answer) = get(&url) else { return Ok(()) };
    if answer.status != 200 {
        return Ok(());
    }
    for uri in rules.hold(&http::parse(&url, &answer.body)?)? {
        let gap = uri.starts_with("gap-");
        // Killed in between: the next look is at the same list.
        if let Ok(segment) = get(&format!("{root}/{uri}")) {
            let expected = if gap { 404 } else { 200 };
            ensure!(
                segment.status == expected,
                "{uri} is listed, but answers {}: {}",
                segment.status,
                segment.text()
            );
        }
    }
    Ok(())
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
