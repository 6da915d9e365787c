//! First inputs where the repository has no file to take: messages, requests, words.

use std::time::Duration;

use bytes::Bytes;
use link_proto::{
    messages::{
        Chunk, Hello, LineReport, PROTOCOL_VERSION, PartEnd, Report, SegmentStart, SentReport,
        Settled, StreamReport, ToEdge, ToHub,
    },
    replicate::class::ByClass,
};
use model::{
    HoleReason, MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber,
    StreamName, WallTime,
};

/// Inputs to begin with, made here; none for targets that begin from files or from nothing.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "messages" => all().map(|(_, bytes)| bytes.to_vec()).collect(),
        "peer_messages" => vec![conversation(0), conversation(1), conversation(2)],
        "http" => REQUESTS
            .iter()
            .map(|request| request.as_bytes().to_vec())
            .collect(),
        "words" => WORDS.iter().map(|word| word.as_bytes().to_vec()).collect(),
        "strangers" => vec![
            vec![1, 0, 0, 0],
            vec![0, 4, 4, 0, 0, 0],
            vec![4, 200, 1, 1, 0, 0],
        ],
        "liars" => LIES.iter().map(|lie| lie.to_vec()).collect(),
        "segmenter" | "timeline" | "live_list" | "range_set" | "sessions" | "replication"
        | "store" => (1..=8u8).map(|seed| spread(seed, 256)).collect(),
        _ => Vec::new(),
    }
}

const REQUESTS: [&str; 12] = [
    "/s/gate/live.m3u8\naccept-encoding: gzip",
    "/s/gate/rec.m3u8?from=2023-11-14T22:13:20Z&to=1700000100000",
    "/s/gate/1.ts\nrange: bytes=10-99",
    "/s/gate/1.ts\nrange: bytes=-5\nif-range: \"x\"",
    "/s/gate/2.ts\nif-none-match: W/\"a\", *",
    "/s/gate/3.ts\nif-modified-since: Sun, 09 Sep 2001 01:46:40 GMT\nif-match: \"b\"",
    "/s/gate/3.ts\nrange: bytes=0-1,5-\nif-unmodified-since: Sun, 09 Sep 2001 01:46:40 GMT",
    "HEAD /s/gate/gap-17.ts",
    "/api/v1/streams/gate",
    "/assets/app.js\nif-none-match: \"a\"",
    "POST /healthz",
    "/s/..%2f/%00/1.ts?from=%ff",
];

const WORDS: [&str; 8] = [
    "gate-2.north",
    "2026-05-01T08:00:00.250Z",
    "2026-05-01T10:00:00+02:00",
    "1777622400000",
    "-1",
    "18446744073709551615",
    "penstock://hub.example.org:9710/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA#AAAA",
    "penstock://[::1]:9710/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
];

/// How, length in fours, then frames: kind, length in two bytes, body.
const LIES: [&[u8]; 7] = [
    &[0, 2, 1, 0, 9, 0, 0, 0, 0, 0],
    &[1, 2, 1, 0, 2, 0, 0, 0, 0, 0],
    &[0, 3, 4, 0, 3, 0, 0, 0, 2, 0, 1, 0, 0, 0],
    // A packet, a parity that is one, an acknowledgement, a counter that was seen.
    &[0, 3, 1, 0, 9, 1, 0, 0, 0, 0, 0, 7, 7, 7],
    &[
        0, 5, 5, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 3, 0, 7, 7, 7,
    ],
    &[
        1, 5, 6, 0, 17, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ],
    &[1, 3, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Bytes that differ, the same every time.
fn spread(seed: u8, bytes: usize) -> Vec<u8> {
    let mut state = u32::from(seed) | 0x9e37_0000;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Every kind of message: whether it goes to the edge, and its bytes.
fn all() -> impl Iterator<Item = (bool, Bytes)> {
    let up = to_hub()
        .into_iter()
        .map(|message| (false, message.encode()));
    up.chain(
        to_edge()
            .into_iter()
            .map(|message| (true, message.encode())),
    )
}

fn conversation(how: u8) -> Vec<u8> {
    let mut out = Vec::new();
    for (to_edge, message) in all().filter(|(_, message)| !message.is_empty()) {
        out.push(how << 1 & 0xfe | u8::from(to_edge));
        out.extend_from_slice(&(message.len() as u16).to_be_bytes());
        out.extend_from_slice(&message);
    }
    out
}

fn gate() -> StreamName {
    "gate".parse().unwrap()
}

fn info() -> SegmentInfo {
    SegmentInfo {
        number: SegmentNumber(7),
        run: SegmentNumber(5),
        wall_start: WallTime(1_777_622_400_000),
        media_start: MediaTime(90_000),
        duration: MediaDuration(180_000),
        bytes: 6,
        hash: SegmentHash::of(b"abcdef"),
        independent: true,
    }
}

fn run() -> RunInfo {
    RunInfo {
        run: SegmentNumber(5),
        codecs: "avc1.64001f,mp4a.40.2".into(),
        resolution: Some((1280, 720)),
        target_duration_s: 2,
    }
}

/// In an order that a hub takes, but for the greetings, which come last.
fn to_hub() -> Vec<ToHub> {
    let (stream, number) = (gate(), SegmentNumber(7));
    let hello = Hello {
        version: PROTOCOL_VERSION,
        software: "penstock 0.1.0".into(),
        clock: WallTime(1_777_622_400_000),
    };
    let chunk = |offset, data: &'static [u8], part_end| {
        ToHub::Chunk(Chunk {
            stream: gate(),
            number,
            offset,
            data: Bytes::from_static(data),
            part_end,
        })
    };
    let start = |offset| {
        ToHub::SegmentStart(SegmentStart {
            stream: gate(),
            number,
            run: run(),
            wall_start: info().wall_start,
            media_start: info().media_start,
            independent: true,
            offset,
        })
    };
    vec![
        ToHub::StreamOpen {
            stream: stream.clone(),
        },
        ToHub::SettledNext {
            stream: stream.clone(),
            cursor: number,
        },
        ToHub::Announce {
            stream: stream.clone(),
            runs: vec![run()],
            segments: vec![info()],
        },
        start(0),
        chunk(0, b"abc", None),
        ToHub::SegmentPaused {
            stream: stream.clone(),
            number,
        },
        start(3),
        chunk(
            3,
            b"def",
            Some(PartEnd {
                duration: MediaDuration(180_000),
                independent: true,
            }),
        ),
        ToHub::SegmentClosed {
            stream: stream.clone(),
            info: info(),
        },
        ToHub::Holes {
            stream: stream.clone(),
            ranges: vec![SegmentNumber(1)..=SegmentNumber(3)],
            reason: HoleReason::Evicted,
        },
        ToHub::Restamp {
            stream: stream.clone(),
            segments: vec![(number, WallTime(1_777_622_401_000))],
        },
        ToHub::Holding {
            stream: stream.clone(),
            within: SegmentNumber(0)..=number,
            ranges: vec![SegmentNumber(5)..=SegmentNumber(6)],
        },
        ToHub::Report(Report {
            clock: WallTime(1_777_622_400_000),
            line: LineReport {
                rate_bps: 8_000_000,
                loss_ppm: 50_000,
                rtt: Some(Duration::from_millis(100)),
                ..LineReport::default()
            },
            sent: SentReport {
                bytes: 1_000_000,
                ..SentReport::default()
            },
            streams: vec![StreamReport {
                stream: stream.clone(),
                live: true,
                by_class: ByClass::default(),
            }],
        }),
        ToHub::StreamEnd {
            stream,
            last: Some(number),
        },
        ToHub::EnrolConfirm,
        ToHub::Hello(hello.clone()),
        ToHub::Enrol {
            hello,
            token: Bytes::from_static(b"token"),
        },
    ]
}

fn to_edge() -> Vec<ToEdge> {
    let (stream, number) = (gate(), SegmentNumber(7));
    vec![
        ToEdge::Resume {
            stream: stream.clone(),
            number,
            length: 3,
            hash: SegmentHash::of(b"abc"),
        },
        ToEdge::Settled(Settled {
            stream: stream.clone(),
            ranges: vec![
                SegmentNumber(8)..=SegmentNumber(9),
                SegmentNumber(1)..=SegmentNumber(4),
            ],
            cursor: SegmentNumber(1),
            done: true,
        }),
        ToEdge::Stored {
            stream: stream.clone(),
            number,
        },
        ToEdge::Again {
            stream: stream.clone(),
            number,
            wait_ms: 10,
        },
        ToEdge::Hole {
            stream: stream.clone(),
            number,
            reason: HoleReason::Corrupt,
        },
        ToEdge::Collides {
            stream: stream.clone(),
            number,
            floor: SegmentNumber(40),
            compared: true,
        },
        ToEdge::Ended {
            stream: stream.clone(),
            last: Some(number),
        },
        ToEdge::Want {
            stream: stream.clone(),
            ranges: vec![SegmentNumber(7)..=SegmentNumber(9)],
        },
        ToEdge::Restamped {
            stream: stream.clone(),
            last: number,
        },
        ToEdge::StreamRefused {
            stream: stream.clone(),
            reason: "another's".into(),
        },
        ToEdge::Welcome {
            name: "gatehouse".parse().unwrap(),
            hub_time: WallTime(1_777_622_400_000),
            floors: vec![(stream, number)],
        },
        ToEdge::Enrolled,
        ToEdge::Refused {
            reason: "unknown".into(),
        },
    ]
}
