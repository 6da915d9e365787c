//! A live window's life, playlist by playlist as text, and the rules under random operations.

// What helps a test may fail like one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::{BTreeMap, BTreeSet};

use m3u8_rs::{MediaPlaylist, Playlist};
use media::{
    live_list::{
        Change, DEFAULT_WINDOW, EntryKind, LiveEntry, LiveList, LiveState, MAX_ENTRIES, MAX_GAP,
        MIN_ENTRIES, MIN_TARGETS, NotListed, Retired,
    },
    playlist::{self, HOUR_LIST_END, UriForm},
};
use model::{MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, WallTime};
use proptest::prelude::*;

/// 2026-05-01T08:00:00Z
const START: WallTime = WallTime(1_777_622_400_000);
const FIRST_MSN: u64 = 1_777_622_402;

fn ms(ms: i64) -> MediaDuration {
    MediaDuration::from_millis(ms)
}

/// A stream's list with the clock at the end of the newest segment.
struct Stream {
    list: LiveList,
    run: RunInfo,
    now: WallTime,
    next: u64,
}

impl Stream {
    fn new(window: MediaDuration, target_duration_s: u32) -> Self {
        Self {
            list: LiveList::new(FIRST_MSN, window),
            run: run(1, target_duration_s),
            now: START,
            next: 1,
        }
    }

    fn new_run(&mut self, target_duration_s: u32) {
        self.run = run(self.next, target_duration_s);
    }

    fn next_segment(&mut self, duration: MediaDuration) -> SegmentInfo {
        let segment = segment(self.next, self.run.run.0, self.now, duration);
        self.next += 1;
        self.now = self.now.plus(duration);
        segment
    }

    fn append(&mut self, duration_ms: i64) -> Change {
        let segment = self.next_segment(ms(duration_ms));
        self.list
            .append_segment(&segment, &self.run, self.now)
            .expect("it is listed")
    }

    fn append_many(&mut self, count: usize) {
        for _ in 0..count {
            self.append(2_000);
        }
    }

    fn text(&self) -> String {
        playlist::live(&self.list, UriForm::Http).expect("it lists something")
    }
}

fn run(first: u64, target_duration_s: u32) -> RunInfo {
    RunInfo {
        run: SegmentNumber(first),
        codecs: "avc1.64001f,mp4a.40.2".to_owned(),
        resolution: Some((1_920, 1_080)),
        target_duration_s,
    }
}

fn segment(number: u64, run: u64, wall_start: WallTime, duration: MediaDuration) -> SegmentInfo {
    SegmentInfo {
        number: SegmentNumber(number),
        run: SegmentNumber(run),
        wall_start,
        media_start: MediaTime(0),
        duration,
        bytes: 1_000_000,
        hash: SegmentHash([0; 32]),
        independent: true,
    }
}

fn parse(text: &str) -> MediaPlaylist {
    let (rest, parsed) = m3u8_rs::parse_playlist(text.as_bytes()).expect("it parses");
    assert_eq!(rest, b"", "all of it");
    match parsed {
        Playlist::MediaPlaylist(playlist) => playlist,
        Playlist::MasterPlaylist(_) => panic!("not a media playlist"),
    }
}

/// A window of nothing keeps what the rules alone keep: 3 targets and 6 entries.
const NO_WINDOW: MediaDuration = MediaDuration::ZERO;

#[test]
fn an_empty_list_has_no_text() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    assert_eq!(playlist::live(&stream.list, UriForm::Http), None);
    stream.list.end(START);
    assert_eq!(stream.list.header().state, LiveState::Live);
    assert_eq!(playlist::live(&stream.list, UriForm::Http), None);
}

#[test]
fn the_first_segments() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    let change = stream.append(2_000);
    assert_eq!((change.appended.len(), change.listed_from), (1, FIRST_MSN));
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
1.ts
"
    );
    let odd = stream.next_segment(MediaDuration(180_180));
    stream
        .list
        .append_segment(&odd, &stream.run, stream.now)
        .unwrap();
    assert_eq!(
        playlist::live(&stream.list, UriForm::Folder).unwrap(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
0/1.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2.002,
0/2.ts
"
    );
}

#[test]
fn sliding() {
    let mut stream = Stream::new(NO_WINDOW, 2);
    stream.append_many(6);
    let change = stream.append(2_000);
    assert_eq!(change.listed_from, FIRST_MSN + 1);
    // Its own 2 s and one and a half times the list of 14 s that it left.
    let keep_until = stream.now.plus(ms(2_000 + 21_000));
    let number = SegmentNumber(1);
    assert_eq!(change.retired, [Retired { number, keep_until }]);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622403
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2,
2.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:04.000Z
#EXTINF:2,
3.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:06.000Z
#EXTINF:2,
4.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:08.000Z
#EXTINF:2,
5.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:10.000Z
#EXTINF:2,
6.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:12.000Z
#EXTINF:2,
7.ts
"
    );
    let before = |t: WallTime| WallTime(t.0 - 1);
    assert!(stream.list.needs(SegmentNumber(2), WallTime(i64::MAX)));
    assert!(stream.list.needs(number, before(keep_until)));
    assert!(!stream.list.needs(number, keep_until));
    assert_eq!(stream.list.retired().len(), 1);
}

#[test]
fn a_discontinuity_enters_and_leaves() {
    let mut stream = Stream::new(NO_WINDOW, 2);
    stream.append(2_000);
    stream.new_run(2);
    stream.append(2_000);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
1.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2,
2.ts
"
    );
    stream.append_many(5);
    let head = "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622403
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2,
2.ts
";
    assert!(stream.text().starts_with(head), "{}", stream.text());
    stream.append(2_000);
    let head = "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622404
#EXT-X-DISCONTINUITY-SEQUENCE:1
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:04.000Z
#EXTINF:2,
3.ts
";
    assert!(stream.text().starts_with(head), "{}", stream.text());
}

#[test]
fn a_hole_is_gaps_and_the_run_goes_on_after_a_discontinuity() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append(2_000);
    let change = stream.list.append_gap(stream.now, ms(3_000), stream.now);
    assert_eq!(change.appended.len(), 2);
    stream.now = stream.now.plus(ms(3_000));
    stream.next += 2;
    stream.append(2_000);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
1.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXT-X-GAP
#EXTINF:1.5,
gap-1777622403.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:03.500Z
#EXT-X-GAP
#EXTINF:1.5,
gap-1777622404.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:05.000Z
#EXTINF:2,
4.ts
"
    );
}

#[test]
fn a_missing_number_is_a_discontinuity() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append(2_000);
    stream.next += 1;
    let change = stream.append(2_000);
    assert!(change.appended[0].discontinuity);
}

#[test]
fn past_the_gap_limit_the_next_segment_restarts_the_list() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append_many(2);
    let before = stream.text();
    let change = stream
        .list
        .append_gap(stream.now, MAX_GAP + ms(1), stream.now);
    assert_eq!(change.header.state, LiveState::Broken);
    assert_eq!(stream.text(), before);
    stream.now = stream.now.plus(MAX_GAP);
    stream.append(2_000);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622404
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:01:04.000Z
#EXTINF:2,
3.ts
"
    );
}

#[test]
fn the_end_and_a_restart_after_it() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append(2_000);
    stream.new_run(2);
    stream.append(1_240);
    let change = stream.list.end(stream.now);
    assert_eq!(change.header.state, LiveState::Ended);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
1.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:1.24,
2.ts
#EXT-X-ENDLIST
"
    );
    // The next push has longer segments: a list of its own, whose sequences go on.
    stream.new_run(4);
    let change = stream.append(4_000);
    assert_eq!(change.listed_from, FIRST_MSN + 2);
    assert_eq!(change.retired.len(), 2);
    assert_eq!(change.header.first_msn, FIRST_MSN + 2);
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:4
#EXT-X-MEDIA-SEQUENCE:1777622404
#EXT-X-DISCONTINUITY-SEQUENCE:1
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:03.240Z
#EXTINF:4,
3.ts
"
    );
}

#[test]
fn a_segment_that_targetduration_forbids_begins_a_new_list() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append_many(3);
    stream.new_run(6);
    stream.append(2_490);
    assert_eq!(parse(&stream.text()).target_duration, 2);
    assert_eq!(stream.list.entries().len(), 4);
    stream.append(2_500);
    let list = parse(&stream.text());
    assert_eq!((list.target_duration, list.segments.len()), (6, 1));
    assert_eq!(list.media_sequence, FIRST_MSN + 4);
}

#[test]
fn a_restarted_hub_goes_on() {
    let mut stream = Stream::new(NO_WINDOW, 2);
    stream.append_many(3);
    stream.new_run(2);
    stream.append_many(6);
    let list = &stream.list;
    let restored = LiveList::restore(
        *list.header(),
        list.entries().copied(),
        list.retired().copied(),
        NO_WINDOW,
    );
    let before = stream.text();
    stream.list = restored;
    assert_eq!(stream.text(), before);
    stream.append(2_000);
    assert!(
        stream.text().starts_with(
            "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622406
#EXT-X-DISCONTINUITY-SEQUENCE:1
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:08.000Z
#EXTINF:2,
5.ts
"
        ),
        "{}",
        stream.text()
    );
    let numbers: Vec<u64> = stream.list.retired().map(|r| r.number.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

#[test]
fn audio_only_has_odd_durations() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.run.codecs = "mp4a.40.2".to_owned();
    stream.run.resolution = None;
    for frames in [94, 93] {
        let segment = stream.next_segment(MediaDuration(1_024 * 90_000 / 48_000 * frames));
        stream
            .list
            .append_segment(&segment, &stream.run, stream.now)
            .unwrap();
    }
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2.005333,
1.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.005Z
#EXTINF:1.984,
2.ts
"
    );
}

#[test]
fn a_forced_cut_takes_independent_segments_away_while_it_is_listed() {
    let mut stream = Stream::new(NO_WINDOW, 2);
    stream.append(2_480);
    let mut forced = stream.next_segment(ms(1_520));
    forced.independent = false;
    stream
        .list
        .append_segment(&forced, &stream.run, stream.now)
        .unwrap();
    assert_eq!(
        stream.text(),
        "#EXTM3U
#EXT-X-VERSION:8
#EXT-X-TARGETDURATION:2
#EXT-X-MEDIA-SEQUENCE:1777622402
#EXT-X-DISCONTINUITY-SEQUENCE:0
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2.48,
1.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.480Z
#EXTINF:1.52,
2.ts
"
    );
    stream.append_many(7);
    assert!(parse(&stream.text()).independent_segments);
}

#[test]
fn what_comes_late_or_has_no_length_is_not_listed() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    stream.append_many(2);
    let before = stream.text();
    for (segment, wanted) in [
        (
            segment(2, 1, START, ms(2_000)),
            NotListed::Behind {
                number: SegmentNumber(2),
                last: SegmentNumber(2),
            },
        ),
        (
            segment(3, 1, START, ms(0)),
            NotListed::Duration {
                number: SegmentNumber(3),
                duration_ms: 0,
            },
        ),
        (
            segment(3, 1, START, ms(3_600_000)),
            NotListed::Duration {
                number: SegmentNumber(3),
                duration_ms: 3_600_000,
            },
        ),
        (
            segment(3, 1, START, MediaDuration(i64::MIN)),
            NotListed::Duration {
                number: SegmentNumber(3),
                duration_ms: MediaDuration(i64::MIN).as_millis(),
            },
        ),
    ] {
        let run = stream.run.clone();
        let refused = stream.list.append_segment(&segment, &run, stream.now);
        assert_eq!(refused, Err(wanted));
        assert_eq!(stream.text(), before);
    }
}

#[test]
fn tiny_segments_do_not_fill_memory() {
    let mut stream = Stream::new(DEFAULT_WINDOW, 2);
    for _ in 0..MAX_ENTRIES + 10 {
        stream.append(1);
    }
    assert_eq!(stream.list.entries().len(), MAX_ENTRIES);
}

#[test]
fn a_recording_heals_until_it_is_settled() {
    let two = |number, run, start: i64| segment(number, run, START.plus(ms(start)), ms(2_000));
    let mut entries = vec![
        two(4_095, 1, 0),
        two(4_097, 1, 4_000),
        two(4_098, 4_098, 6_000),
    ];
    assert_eq!(
        playlist::recording(&entries, 2, false, UriForm::Http).unwrap(),
        "#EXTM3U
#EXT-X-VERSION:3
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
4095.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:04.000Z
#EXTINF:2,
4097.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:06.000Z
#EXTINF:2,
4098.ts
"
    );
    entries.insert(1, two(4_096, 1, 2_000));
    assert_eq!(
        playlist::recording(&entries, 2, true, UriForm::Folder).unwrap(),
        "#EXTM3U
#EXT-X-VERSION:3
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-TARGETDURATION:2
#EXT-X-PLAYLIST-TYPE:VOD
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
0/4095.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2,
1/4096.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:04.000Z
#EXTINF:2,
1/4097.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:06.000Z
#EXTINF:2,
1/4098.ts
#EXT-X-ENDLIST
"
    );
    assert_eq!(playlist::recording(&[], 2, true, UriForm::Http), None);
    let long = [segment(1, 1, START, ms(5_700))];
    let text = playlist::recording(&long, 2, true, UriForm::Http).unwrap();
    assert_eq!(parse(&text).target_duration, 6);
}

#[test]
fn an_hour_list_grows_entry_by_entry() {
    let first = segment(7, 7, START, ms(2_000));
    let second = segment(8, 7, START.plus(ms(2_000)), MediaDuration(180_180));
    let third = segment(9, 9, START.plus(ms(9_000)), ms(1_000));
    let mut text = playlist::hour_list_head(6);
    text += &playlist::hour_list_entry(&first, None, UriForm::Folder);
    text += &playlist::hour_list_entry(&second, Some(&first), UriForm::Folder);
    text += &playlist::hour_list_entry(&third, Some(&second), UriForm::Folder);
    text += HOUR_LIST_END;
    assert_eq!(
        text,
        "#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:6
#EXT-X-PLAYLIST-TYPE:EVENT
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:00.000Z
#EXTINF:2,
0/7.ts
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:02.000Z
#EXTINF:2.002,
0/8.ts
#EXT-X-DISCONTINUITY
#EXT-X-PROGRAM-DATE-TIME:2026-05-01T08:00:09.000Z
#EXTINF:1,
0/9.ts
#EXT-X-ENDLIST
"
    );
    assert_eq!(parse(&text).segments.len(), 3);
}

/// EXTINF as written, summed, stays within a tick of the truth over a day of awkward segments.
#[test]
fn written_durations_do_not_drift() {
    let ticks = 180_181; // 2.00201111… s
    let info = segment(1, 1, START, MediaDuration(ticks));
    let text = playlist::hour_list_entry(&info, None, UriForm::Http);
    let written = text
        .split_once("#EXTINF:")
        .unwrap()
        .1
        .split_once(',')
        .unwrap()
        .0;
    let error = written.parse::<f64>().unwrap() - ticks as f64 / 90_000.0;
    let segments_a_day = 86_400.0 / 2.0;
    assert!((error * segments_a_day).abs() < 0.033, "{written}");
}

#[derive(Debug, Clone)]
enum Op {
    Segment { ticks: i64, independent: bool },
    NewRun { target_s: u32 },
    Skip,
    Late,
    Gap { ms: i64 },
    End,
    Restore,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (1_000i64..224_900, prop::bool::weighted(0.9))
            .prop_map(|(ticks, independent)| Op::Segment { ticks, independent }),
        1 => (1_000i64..600_000).prop_map(|ticks| Op::Segment { ticks, independent: true }),
        2 => (1u32..7).prop_map(|target_s| Op::NewRun { target_s }),
        1 => Just(Op::Skip),
        1 => Just(Op::Late),
        2 => (0i64..30_000).prop_map(|ms| Op::Gap { ms }),
        1 => Just(Op::End),
        1 => Just(Op::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Invariants 1 and 4, whatever happens.
    #[test]
    fn the_rules_hold(
        window_s in 0i64..40,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let window = ms(window_s * 1_000);
        let mut stream = Stream::new(window, 2);
        // What a store would have committed: entries and grace.
        let mut committed: BTreeMap<u64, LiveEntry> = BTreeMap::new();
        let mut grace: BTreeMap<SegmentNumber, WallTime> = BTreeMap::new();
        let mut seen: BTreeMap<u64, (String, bool)> = BTreeMap::new();
        let mut targets: BTreeMap<u64, u64> = BTreeMap::new();
        let mut last = None;

        for op in ops {
            let before: Vec<LiveEntry> = stream.list.entries().copied().collect();
            let old = *stream.list.header();
            let change = match op {
                Op::Segment { ticks, independent } => {
                    let mut segment = stream.next_segment(MediaDuration(ticks));
                    segment.independent = independent;
                    Some(stream.list.append_segment(&segment, &stream.run, stream.now).unwrap())
                }
                Op::NewRun { target_s } => {
                    stream.new_run(target_s);
                    None
                }
                Op::Skip => {
                    stream.next += 3;
                    None
                }
                Op::Late => {
                    if let Some(number) = old.last_number {
                        let late = segment(number.0, 1, START, ms(2_000));
                        prop_assert!(stream.list.append_segment(&late, &stream.run, stream.now).is_err());
                    }
                    None
                }
                Op::Gap { ms: length } => {
                    let start = stream.now;
                    stream.now = stream.now.plus(ms(length));
                    stream.next += 1;
                    Some(stream.list.append_gap(start, ms(length), stream.now))
                }
                Op::End => Some(stream.list.end(stream.now)),
                Op::Restore => {
                    let header = *stream.list.header();
                    let retired: Vec<Retired> = grace
                        .iter()
                        .map(|(&number, &keep_until)| Retired { number, keep_until })
                        .collect();
                    let entries = committed.values().copied();
                    stream.list = LiveList::restore(header, entries, retired, window);
                    None
                }
            };
            if let Some(change) = change {
                committed.extend(change.appended.iter().map(|e| (e.msn, *e)));
                committed = committed.split_off(&change.listed_from);
                grace.extend(change.retired.iter().map(|r| (r.number, r.keep_until)));
                prop_assert_eq!(change.header, *stream.list.header());
                prop_assert!(change.retired.iter().all(|r| r.keep_until > stream.now));
            }
            let listed: Vec<LiveEntry> = stream.list.entries().copied().collect();
            prop_assert_eq!(&listed, &committed.values().copied().collect::<Vec<_>>());

            // What left stays for a while: invariant 1.
            let numbers: BTreeSet<_> = listed.iter().filter_map(LiveEntry::number).collect();
            for gone in before.iter().filter_map(LiveEntry::number).filter(|n| !numbers.contains(n)) {
                prop_assert!(stream.list.needs(gone, stream.now));
            }

            let header = *stream.list.header();
            prop_assert!(header.next_msn >= old.next_msn);
            prop_assert!(header.discontinuity_sequence >= old.discontinuity_sequence);
            if header.first_msn == old.first_msn {
                // The same list: appended to and shortened at its head, never below its least length.
                let left = before.iter().filter(|e| !listed.contains(e)).count();
                prop_assert!(listed.starts_with(&before[left..]));
                if left > 0 {
                    let length: i64 = listed.iter().map(|e| e.duration.0).sum();
                    let target = i64::from(header.target_duration_s.unwrap());
                    prop_assert!(length >= MIN_TARGETS * target * 90_000);
                    prop_assert!(length >= window.0);
                    prop_assert!(listed.len() >= MIN_ENTRIES);
                }
                if old.target_duration_s.is_some() {
                    prop_assert_eq!(header.target_duration_s, old.target_duration_s);
                }
            }

            let Some(text) = playlist::live(&stream.list, UriForm::Http) else {
                prop_assert!(listed.is_empty());
                continue;
            };
            let parsed = parse(&text);
            prop_assert_eq!(parsed.version, Some(8));
            prop_assert_eq!(parsed.playlist_type, None);
            prop_assert_eq!(parsed.segments.len(), listed.len());
            prop_assert_eq!(parsed.end_list, header.state == LiveState::Ended);
            prop_assert_eq!(
                parsed.independent_segments,
                listed.iter().all(|e| !matches!(e.kind, EntryKind::Segment { independent: false, .. }))
            );
            let target = *targets.entry(header.first_msn).or_insert(parsed.target_duration);
            prop_assert_eq!(parsed.target_duration, target);
            // The discontinuity of an entry counts from the stream's beginning, as players count it.
            let mut discontinuities = parsed.discontinuity_sequence;
            for (at, entry) in parsed.segments.iter().enumerate() {
                discontinuities += u64::from(entry.discontinuity);
                prop_assert!((entry.duration.round() as u64) <= target);
                prop_assert!(entry.program_date_time.is_some());
                let msn = parsed.media_sequence + at as u64;
                let meaning = (format!("{}@{discontinuities}", entry.uri), entry.discontinuity);
                prop_assert_eq!(seen.entry(msn).or_insert_with(|| meaning.clone()), &meaning);
                let is_gap = entry.unknown_tags.iter().any(|tag| tag.tag == "X-GAP");
                prop_assert_eq!(is_gap, entry.uri == format!("gap-{msn}.ts"));
            }
            let now = (parsed.media_sequence, parsed.discontinuity_sequence);
            prop_assert!(last.is_none_or(|last: (u64, u64)| last.0 <= now.0 && last.1 <= now.1));
            last = Some(now);
        }
    }
}
