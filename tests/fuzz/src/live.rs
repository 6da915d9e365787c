//! The live list under segments and holes of any kind: invariant 4, and its text read back as a player does.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use m3u8_rs::MediaPlaylist;
use media::{
    live_list::{Change, LiveEntry, LiveList, LiveState, MAX_ENTRIES, MAX_TARGET_S},
    playlist::{self, UriForm},
};
use model::{MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, WallTime};

const MAX_OPERATIONS: usize = 300;
const FIRST_MSN: u64 = 1_777_622_400;

#[derive(Debug, Arbitrary)]
enum Operation {
    Usual,
    Segment {
        skip: i8,
        new_run: bool,
        duration: Duration,
        target_s: u8,
        independent: bool,
        wall_step_ms: i32,
    },
    Gap {
        duration: Duration,
    },
    End,
    /// As after a restart of the program.
    Restore,
}

#[derive(Debug, Arbitrary)]
enum Duration {
    Millis(u16),
    Ticks(i32),
    Any(i64),
}

impl Duration {
    fn get(&self) -> MediaDuration {
        match *self {
            Self::Millis(ms) => MediaDuration::from_millis(ms.into()),
            Self::Ticks(ticks) => MediaDuration(ticks.into()),
            Self::Any(ticks) => MediaDuration(ticks),
        }
    }
}

/// What a viewer has seen of the list.
#[derive(Default)]
struct Viewer {
    sequence: u64,
    discontinuities: u64,
    /// By media sequence number.
    seen: BTreeMap<u64, (String, f32, bool)>,
    /// The beginning of the list, and its TARGETDURATION.
    target: Option<(u64, u64)>,
}

pub(crate) fn live_list(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let window = MediaDuration::from_millis(i64::from(u.arbitrary::<u16>().unwrap_or(0)) * 4);
    let mut list = LiveList::new(FIRST_MSN, window);
    let mut viewer = Viewer::default();
    let (mut number, mut run, mut wall) = (0u64, 0u64, WallTime(1_777_622_400_000));
    for _ in 0..MAX_OPERATIONS {
        if u.is_empty() {
            break;
        }
        let Ok(operation) = u.arbitrary::<Operation>() else {
            break;
        };
        let before: Vec<LiveEntry> = list.entries().copied().collect();
        let change = match operation {
            Operation::Usual => {
                number += 1;
                let change = list.append_segment(
                    &segment(number, run, wall, MediaDuration(180_000), true),
                    &run_info(run, 2),
                    wall,
                );
                wall = wall.plus(MediaDuration(180_000));
                change.ok()
            }
            Operation::Segment {
                skip,
                new_run,
                duration,
                target_s,
                independent,
                wall_step_ms,
            } => {
                number = number.saturating_add_signed(skip.into());
                if new_run {
                    run = number;
                }
                wall = WallTime(wall.0 + i64::from(wall_step_ms));
                let info = segment(number, run, wall, duration.get(), independent);
                list.append_segment(&info, &run_info(run, target_s.into()), wall)
                    .ok()
            }
            Operation::Gap { duration } => Some(list.append_gap(wall, duration.get(), wall)),
            Operation::End => Some(list.end(wall)),
            Operation::Restore => {
                let retired: Vec<_> = list.retired().copied().collect();
                list = LiveList::restore(*list.header(), before.clone(), retired, window);
                None
            }
        };
        check_change(&before, change.as_ref(), &list);
        check_list(&list);
        viewer.look(&list);
    }
}

fn segment(
    number: u64,
    run: u64,
    wall_start: WallTime,
    duration: MediaDuration,
    independent: bool,
) -> SegmentInfo {
    SegmentInfo {
        number: SegmentNumber(number),
        run: SegmentNumber(run),
        wall_start,
        media_start: MediaTime(0),
        duration,
        bytes: 188,
        hash: SegmentHash([0; 32]),
        independent,
    }
}

fn run_info(run: u64, target_duration_s: u32) -> RunInfo {
    RunInfo {
        run: SegmentNumber(run),
        codecs: "avc1.64001f".into(),
        resolution: None,
        target_duration_s,
    }
}

/// What was committed gives the list: nothing else has changed.
fn check_change(before: &[LiveEntry], change: Option<&Change>, list: &LiveList) {
    let mut expected = before.to_vec();
    if let Some(change) = change {
        expected.extend(&change.appended);
        expected.retain(|entry| entry.msn >= change.listed_from);
        assert_eq!(change.header, *list.header());
        for retired in &change.retired {
            let listed = list
                .entries()
                .any(|entry| entry.number() == Some(retired.number));
            assert!(!listed, "{retired:?} is listed");
        }
    }
    assert!(list.entries().eq(expected.iter()));
}

fn check_list(list: &LiveList) {
    let header = list.header();
    assert!(list.entries().len() <= MAX_ENTRIES);
    let (mut newest, mut msn) = (None, None);
    for entry in list.entries() {
        assert!(msn.is_none_or(|msn| entry.msn == msn + 1) && entry.msn < header.next_msn);
        msn = Some(entry.msn);
        assert!(entry.duration.0 > 0, "{entry:?}");
        let target = header.target_duration_s.expect("entries, so a target");
        assert!((1..=MAX_TARGET_S).contains(&target));
        assert!(
            entry.duration.rounded_secs() <= target.into(),
            "{entry:?} in {target} s"
        );
        if let Some(number) = entry.number() {
            assert!(
                newest.is_none_or(|newest| newest < number),
                "{entry:?} after {newest:?}"
            );
            assert!(Some(number) <= header.last_number);
            newest = Some(number);
        }
    }
}

impl Viewer {
    /// Reads the playlist and holds it against all that was read before.
    fn look(&mut self, list: &LiveList) {
        let Some(text) = playlist::live(list, UriForm::Http) else {
            assert_eq!(list.entries().len(), 0);
            return;
        };
        let playlist = read(&text);
        let header = list.header();
        assert!(
            playlist.media_sequence >= self.sequence,
            "the sequence went back"
        );
        assert!(
            playlist.discontinuity_sequence >= self.discontinuities,
            "discontinuities went back"
        );
        (self.sequence, self.discontinuities) =
            (playlist.media_sequence, playlist.discontinuity_sequence);
        assert_eq!(playlist.end_list, header.state == LiveState::Ended);
        match self.target {
            Some((first, target)) if first == header.first_msn => {
                assert_eq!(playlist.target_duration, target, "TARGETDURATION changed");
            }
            _ => self.target = Some((header.first_msn, playlist.target_duration)),
        }
        assert_eq!(playlist.segments.len(), list.entries().len());
        for (msn, segment) in (playlist.media_sequence..).zip(&playlist.segments) {
            assert!(
                segment.duration.round() <= playlist.target_duration as f32,
                "{segment:?}"
            );
            let entry = (segment.uri.clone(), segment.duration, segment.discontinuity);
            let known = self.seen.entry(msn).or_insert_with(|| entry.clone());
            assert_eq!(*known, entry, "sequence {msn} was rewritten");
        }
    }
}

pub(crate) fn read(text: &str) -> MediaPlaylist {
    let (rest, playlist) = m3u8_rs::parse_media_playlist(text.as_bytes()).expect("a playlist");
    assert!(rest.is_empty(), "{text}");
    playlist
}
