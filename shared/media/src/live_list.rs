//! What a stream's live playlist lists: a pure state machine over entries, without text or I/O.
//!
//! Keeps invariant 4 (only appended to and shortened at its head; TARGETDURATION never changes; media and
//! discontinuity sequence never go back) and what invariant 1 needs of it (which segments are listed, and
//! how long one that left must stay on disk). Every mutation returns a [`Change`]; the caller commits it
//! before it serves the new text, and rebuilds the list with [`LiveList::restore`] if the commit fails.
//!
//! A list has one TARGETDURATION for life. Once it has ended (ENDLIST, a hole past [`MAX_GAP`], or a
//! segment that is longer than its TARGETDURATION allows), the next segment *restarts* it: a new list in
//! the old one's place, whose sequences go on and whose first entry is that segment; all old entries leave.

use std::collections::VecDeque;

use model::{MediaDuration, RunInfo, SegmentInfo, SegmentNumber, TICKS_PER_SECOND, WallTime};

/// How much a live list keeps listed unless told otherwise.
pub const DEFAULT_WINDOW: MediaDuration = MediaDuration::from_millis(120_000);
/// A list is never shortened below this many targets of duration (RFC 8216bis 6.2.2).
pub const MIN_TARGETS: i64 = 3;
/// A list is never shortened below this many entries (Apple's authoring rule 8.11).
pub const MIN_ENTRIES: usize = 6;
/// Most entries of a list, whatever their durations: the default window in segments of 30 ms.
pub const MAX_ENTRIES: usize = 4_096;
/// Longest hole that GAP entries stand for; past it the list restarts behind the hole.
pub const MAX_GAP: MediaDuration = MediaDuration::from_millis(60_000);
/// Highest TARGETDURATION that a list takes: ten times the highest that our edge cuts to.
pub const MAX_TARGET_S: u32 = 60;

/// Longest that a segment may have to stay after it left a list with this window: see `retire`.
pub fn max_grace(window: MediaDuration) -> MediaDuration {
    let longest = i64::from(MAX_TARGET_S) * TICKS_PER_SECOND;
    let listed = window.0.max(longest.saturating_mul(MIN_ENTRIES as i64));
    let listed = listed.saturating_add(longest);
    MediaDuration(listed.saturating_add(listed / 2).saturating_add(longest))
}

/// One line of the list. Its sequence number means the same entry for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveEntry {
    /// Its media sequence number.
    pub msn: u64,
    pub kind: EntryKind,
    pub wall_start: WallTime,
    pub duration: MediaDuration,
    /// EXT-X-DISCONTINUITY stands before it.
    pub discontinuity: bool,
}

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Segment {
        number: SegmentNumber,
        run: SegmentNumber,
        independent: bool,
    },
    /// EXT-X-GAP: nothing is here and nothing will be.
    Gap,
}

impl LiveEntry {
    /// The segment's number; None for a gap.
    pub fn number(&self) -> Option<SegmentNumber> {
        match self.kind {
            EntryKind::Segment { number, .. } => Some(number),
            EntryKind::Gap => None,
        }
    }
}

/// What of a list is not its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveHeader {
    /// The next entry's media sequence number.
    pub next_msn: u64,
    /// How many DISCONTINUITY tags have left.
    pub discontinuity_sequence: u64,
    /// TARGETDURATION in seconds; None until the first segment is listed.
    pub target_duration_s: Option<u32>,
    /// The media sequence number that the list began with: names the list among its restarts.
    pub first_msn: u64,
    /// The highest segment number ever listed: none at or below it will be.
    pub last_number: Option<SegmentNumber>,
    pub state: LiveState,
}

/// Whether the list goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveState {
    Live,
    /// A hole past [`MAX_GAP`]: what is listed stays until the next segment restarts the list.
    Broken,
    /// ENDLIST.
    Ended,
}

/// A segment that is no longer listed and must stay for those who still read it (RFC 8216 6.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    pub number: SegmentNumber,
    pub keep_until: WallTime,
}

/// What a mutation changed: to be committed as one, then served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// New at the tail, ascending.
    pub appended: Vec<LiveEntry>,
    /// Entries below this media sequence number are gone.
    pub listed_from: u64,
    /// Segments that left, with the time until which they stay on disk.
    pub retired: Vec<Retired>,
    pub header: LiveHeader,
}

/// Why a segment is not listed. It is stored and belongs to recordings all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotListed {
    /// It came late: live goes on without it.
    #[error("segment {number} came after {last} was listed")]
    Behind {
        number: SegmentNumber,
        last: SegmentNumber,
    },
    /// The edge is at fault.
    #[error("segment {number} is {duration_ms} ms long, above {MAX_TARGET_S} s or below 1 ms")]
    Duration {
        number: SegmentNumber,
        duration_ms: i64,
    },
}

/// The live list of one stream.
#[derive(Debug, Clone)]
pub struct LiveList {
    window: MediaDuration,
    header: LiveHeader,
    entries: VecDeque<LiveEntry>,
    /// Sum of the entries' durations.
    listed: MediaDuration,
    /// Ascending by number.
    retired: VecDeque<Retired>,
}

impl LiveList {
    /// A stream's first list. `first_msn` is Unix seconds, so that it can't go back even if all else is lost.
    pub fn new(first_msn: u64, window: MediaDuration) -> Self {
        Self::restore(
            LiveHeader {
                next_msn: first_msn,
                discontinuity_sequence: 0,
                target_duration_s: None,
                first_msn,
                last_number: None,
                state: LiveState::Live,
            },
            [],
            [],
            window,
        )
    }

    /// The list as last committed: entries from `listed_from` on and what was retired, both ascending.
    pub fn restore(
        header: LiveHeader,
        entries: impl IntoIterator<Item = LiveEntry>,
        retired: impl IntoIterator<Item = Retired>,
        window: MediaDuration,
    ) -> Self {
        let entries: VecDeque<_> = entries.into_iter().collect();
        let listed = entries
            .iter()
            .fold(MediaDuration::ZERO, |sum, e| sum + e.duration);
        Self {
            window,
            header,
            entries,
            listed,
            retired: retired.into_iter().collect(),
        }
    }

    pub fn header(&self) -> &LiveHeader {
        &self.header
    }

    /// What is listed, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &LiveEntry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// Every listed segment begins with a key frame.
    pub fn is_independent(&self) -> bool {
        self.entries.iter().all(|e| match e.kind {
            EntryKind::Segment { independent, .. } => independent,
            EntryKind::Gap => true,
        })
    }

    /// Whether a segment must stay on disk at `now`: listed, or its grace after leaving isn't over.
    pub fn needs(&self, number: SegmentNumber, now: WallTime) -> bool {
        self.entries.iter().any(|e| e.number() == Some(number))
            || self
                .retired
                .iter()
                .any(|r| r.number == number && r.keep_until > now)
    }

    /// Segments that left lately, ascending; those whose grace is over at the last change are forgotten.
    pub fn retired(&self) -> impl ExactSizeIterator<Item = &Retired> {
        self.retired.iter()
    }

    /// Lists a closed segment at the tail and shortens the head; restarts the list where it must.
    pub fn append_segment(
        &mut self,
        segment: &SegmentInfo,
        run: &RunInfo,
        now: WallTime,
    ) -> Result<Change, NotListed> {
        let number = segment.number;
        if let Some(last) = self.header.last_number.filter(|last| *last >= number) {
            return Err(NotListed::Behind { number, last });
        }
        let wanted = wanted_target_s(segment, run).ok_or(NotListed::Duration {
            number,
            duration_ms: segment.duration.as_millis(),
        })?;
        let fits = |target: u32| i64::from(target) >= segment.duration.rounded_secs();
        let mut retired = Vec::new();
        if self.header.state != LiveState::Live || !self.header.target_duration_s.is_none_or(fits) {
            self.restart(now, &mut retired);
        }
        self.header.target_duration_s.get_or_insert(wanted);
        let entry = LiveEntry {
            msn: self.header.next_msn,
            kind: EntryKind::Segment {
                number,
                run: segment.run,
                independent: segment.independent,
            },
            wall_start: segment.wall_start,
            duration: segment.duration,
            discontinuity: self.breaks_before(segment),
        };
        self.header.last_number = Some(number);
        self.push(entry);
        self.shorten(now, &mut retired);
        Ok(self.change(vec![entry], retired, now))
    }

    /// Lists a hole as GAP entries of one length, at most TARGETDURATION. On a list that is empty or has ended
    /// a hole means nothing; past [`MAX_GAP`] the next segment restarts the list instead.
    pub fn append_gap(
        &mut self,
        wall_start: WallTime,
        duration: MediaDuration,
        now: WallTime,
    ) -> Change {
        let target = match self.header.target_duration_s {
            Some(s) if self.header.state == LiveState::Live && !self.entries.is_empty() => {
                MediaDuration::from_millis(i64::from(s) * 1_000)
            }
            _ => return self.change(Vec::new(), Vec::new(), now),
        };
        if self.trailing_gap() + duration > MAX_GAP {
            self.header.state = LiveState::Broken;
            return self.change(Vec::new(), Vec::new(), now);
        }
        let pieces = duration.0.div_euclid(target.0) + i64::from(duration.0 % target.0 > 0);
        let mut appended = Vec::new();
        for piece in 0..pieces {
            let from = MediaDuration(duration.0 * piece / pieces);
            let to = MediaDuration(duration.0 * (piece + 1) / pieces);
            let entry = LiveEntry {
                msn: self.header.next_msn,
                kind: EntryKind::Gap,
                wall_start: wall_start.plus(from),
                duration: to - from,
                discontinuity: false,
            };
            self.push(entry);
            appended.push(entry);
        }
        let mut retired = Vec::new();
        self.shorten(now, &mut retired);
        self.change(appended, retired, now)
    }

    /// Ends the list: ENDLIST. A list without entries has nothing to end.
    pub fn end(&mut self, now: WallTime) -> Change {
        if !self.entries.is_empty() {
            self.header.state = LiveState::Ended;
        }
        self.change(Vec::new(), Vec::new(), now)
    }

    /// All entries leave; sequences go on; the next list chooses its own TARGETDURATION.
    fn restart(&mut self, now: WallTime, retired: &mut Vec<Retired>) {
        let playlist = self.listed;
        while let Some(entry) = self.drop_head() {
            retired.extend(retire(&entry, playlist, now));
        }
        self.header.first_msn = self.header.next_msn;
        self.header.target_duration_s = None;
        self.header.state = LiveState::Live;
    }

    /// Whether a segment doesn't go on where the newest entry ends. A restarted list's first entry does
    /// not either, for whoever still holds the old list; only a stream's very first has nothing before it.
    fn breaks_before(&self, segment: &SegmentInfo) -> bool {
        match self.entries.back().map(|e| e.kind) {
            Some(EntryKind::Segment { number, run, .. }) => {
                run != segment.run || number.next() != segment.number
            }
            Some(EntryKind::Gap) => true,
            None => self.header.last_number.is_some(),
        }
    }

    fn trailing_gap(&self) -> MediaDuration {
        self.entries
            .iter()
            .rev()
            .take_while(|e| e.kind == EntryKind::Gap)
            .fold(MediaDuration::ZERO, |sum, e| sum + e.duration)
    }

    fn push(&mut self, entry: LiveEntry) {
        self.header.next_msn = entry.msn.saturating_add(1);
        self.listed += entry.duration;
        self.entries.push_back(entry);
    }

    /// Drops entries at the head that neither the window nor a rule keeps.
    fn shorten(&mut self, now: WallTime, retired: &mut Vec<Retired>) {
        let targets = i64::from(self.header.target_duration_s.unwrap_or(1)) * MIN_TARGETS;
        let keep = self
            .window
            .max(MediaDuration::from_millis(targets.saturating_mul(1_000)));
        while let Some(head) = self.entries.front() {
            let spare = self.listed - head.duration >= keep && self.entries.len() > MIN_ENTRIES;
            if !spare && self.entries.len() <= MAX_ENTRIES {
                break;
            }
            let playlist = self.listed;
            if let Some(entry) = self.drop_head() {
                retired.extend(retire(&entry, playlist, now));
            }
        }
    }

    fn drop_head(&mut self) -> Option<LiveEntry> {
        let entry = self.entries.pop_front()?;
        self.listed = self.listed - entry.duration;
        if entry.discontinuity {
            self.header.discontinuity_sequence =
                self.header.discontinuity_sequence.saturating_add(1);
        }
        Some(entry)
    }

    fn change(&mut self, appended: Vec<LiveEntry>, retired: Vec<Retired>, now: WallTime) -> Change {
        self.retired.retain(|r| r.keep_until > now);
        self.retired.extend(retired.iter().copied());
        Change {
            appended,
            listed_from: self.entries.front().map_or(self.header.next_msn, |e| e.msn),
            retired,
            header: self.header,
        }
    }
}

/// The TARGETDURATION of a list that begins with this segment; None if no list may hold it.
fn wanted_target_s(segment: &SegmentInfo, run: &RunInfo) -> Option<u32> {
    let rounded = u32::try_from(segment.duration.rounded_secs()).ok()?;
    let wanted = run.target_duration_s.max(rounded).max(1);
    (segment.duration.as_millis() >= 1 && rounded <= MAX_TARGET_S)
        .then_some(wanted.min(MAX_TARGET_S))
}

/// After removal a segment stays for its own duration and that of the longest list that held it; the list
/// it leaves is taken for the longest, with half as much again for those it was longer before.
fn retire(entry: &LiveEntry, playlist: MediaDuration, now: WallTime) -> Option<Retired> {
    let grace = MediaDuration(playlist.0.saturating_add(playlist.0 / 2)) + entry.duration;
    Some(Retired {
        number: entry.number()?,
        keep_until: now.plus(grace),
    })
}
