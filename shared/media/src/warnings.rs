//! Warnings about a source that don't flood: the first few of a kind, then each time their number doubles.

use std::collections::BTreeMap;

use crate::{
    access_unit::{SourceEvent, SourceWarning},
    ts::packet::Pid,
};

/// So many of a kind and PID are told one by one.
const TOLD_SINGLY: u64 = 4;

/// Most kinds and PIDs that are counted apart; beyond, all count as one.
const MAX_COUNTERS: usize = 64;

/// What a warning is about, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Sync,
    Packet,
    Continuity,
    Scrambled,
    Table,
    Program,
    Pes,
    Times,
    Frame,
    Parameters,
    Track,
    Sample,
    /// What is counted together once there are too many kinds.
    Many,
}

/// Counts and tells.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    counts: BTreeMap<(Fault, Option<Pid>), u64>,
}

impl Warnings {
    /// Counts a warning and, if it is due, tells it; `what` is made only then.
    pub(crate) fn tell(
        &mut self,
        fault: Fault,
        pid: Option<Pid>,
        offset: u64,
        out: &mut Vec<SourceEvent>,
        what: impl FnOnce() -> String,
    ) {
        let full = self.counts.len() >= MAX_COUNTERS && !self.counts.contains_key(&(fault, pid));
        let key = if full {
            (Fault::Many, None)
        } else {
            (fault, pid)
        };
        let count = self.counts.entry(key).or_default();
        *count += 1;
        if *count > TOLD_SINGLY && !count.is_power_of_two() {
            return;
        }
        let mut what = what();
        if *count > TOLD_SINGLY {
            what += &format!(" ({count} times so far)");
        }
        out.push(SourceEvent::Warning(SourceWarning { offset, pid, what }));
    }
}
