use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::replicate::class::{ByClass, Class};

fn stream() -> StreamName {
    "gate".parse().unwrap()
}

fn run() -> RunInfo {
    RunInfo {
        run: SegmentNumber(5),
        codecs: "avc1.64001f,mp4a.40.2".into(),
        resolution: Some((1920, 1080)),
        target_duration_s: 2,
    }
}

fn info() -> SegmentInfo {
    SegmentInfo {
        number: SegmentNumber(7),
        run: SegmentNumber(5),
        wall_start: WallTime(1_777_000_000_123),
        media_start: MediaTime(-90),
        duration: MediaDuration(180_000),
        bytes: 1_000_000,
        hash: SegmentHash([3; 32]),
        independent: true,
    }
}

fn start() -> SegmentStart {
    SegmentStart {
        stream: stream(),
        number: SegmentNumber(7),
        run: run(),
        wall_start: WallTime(1_777_000_000_123),
        media_start: MediaTime(8_589_934_592),
        independent: true,
        offset: 32_768,
    }
}

fn chunk(bytes: usize) -> Chunk {
    Chunk {
        stream: stream(),
        number: SegmentNumber(7),
        offset: 65_536,
        data: Bytes::from(vec![0x47; bytes]),
        part_end: Some(PartEnd {
            duration: MediaDuration(29_970),
            independent: false,
        }),
    }
}

fn hello() -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        software: "edge-node 0.1.0".into(),
        clock: WallTime(0),
    }
}

fn every_to_hub() -> Vec<ToHub> {
    let range = SegmentNumber(1)..=SegmentNumber(1 << 62);
    vec![
        ToHub::Hello(hello()),
        ToHub::Enrol {
            hello: hello(),
            token: Bytes::from_static(&[9; MAX_TOKEN_BYTES]),
        },
        ToHub::EnrolConfirm,
        ToHub::StreamOpen { stream: stream() },
        ToHub::SettledNext {
            stream: stream(),
            cursor: SegmentNumber(9),
        },
        ToHub::Announce {
            stream: stream(),
            runs: vec![
                run(),
                RunInfo {
                    resolution: None,
                    ..run()
                },
            ],
            segments: vec![info(); MAX_ANNOUNCED],
        },
        ToHub::SegmentStart(start()),
        ToHub::Chunk(chunk(MAX_CHUNK_BYTES)),
        ToHub::Chunk(Chunk {
            part_end: None,
            ..chunk(1)
        }),
        ToHub::SegmentClosed {
            stream: stream(),
            info: info(),
        },
        ToHub::SegmentPaused {
            stream: stream(),
            number: SegmentNumber(9),
        },
        ToHub::Holes {
            stream: stream(),
            ranges: vec![range; MAX_RANGES],
            reason: HoleReason::Evicted,
        },
        ToHub::StreamEnd {
            stream: stream(),
            last: Some(SegmentNumber(7)),
        },
        ToHub::Restamp {
            stream: stream(),
            segments: (0..MAX_RESTAMPED as u64)
                .map(|n| (SegmentNumber(u64::MAX - 1_000 + n), WallTime::LATEST))
                .collect(),
        },
        ToHub::Holding {
            stream: stream(),
            within: SegmentNumber(0)..=SegmentNumber(u64::MAX),
            ranges: (0..MAX_RANGES as u64)
                .map(|i| SegmentNumber(i << 50)..=SegmentNumber((i << 50) + 9))
                .collect(),
        },
        ToHub::Report(report()),
    ]
}

/// As large as can be.
fn report() -> Report {
    let mut by_class = ByClass::default();
    for class in Class::ALL {
        by_class.add(class, 1 << 53);
    }
    Report {
        clock: WallTime::LATEST,
        line: LineReport {
            rate_bps: 1_000_000_000_000,
            delivery_bps: 999_999_999_999,
            loss_ppm: 1_000_000,
            rtt: Some(Duration::from_secs(600)),
            queueing_delay: Duration::from_micros(1_234),
            datagram_bytes: 65_535,
        },
        sent: SentReport {
            datagrams: 1 << 53,
            bytes: 1 << 53,
            packet_bytes: 1 << 53,
            resent_bytes: 1 << 53,
            parity_bytes: 1 << 53,
            by_class,
        },
        streams: (0..MAX_REPORTED_STREAMS)
            .map(|i| StreamReport {
                stream: format!("{i:x>64}").parse().unwrap(),
                live: true,
                by_class,
            })
            .collect(),
    }
}

fn every_to_edge() -> Vec<ToEdge> {
    let number = SegmentNumber(7);
    vec![
        ToEdge::Welcome {
            name: "site-1".parse().unwrap(),
            hub_time: WallTime(1_777_000_000_000),
            floors: vec![("x".repeat(64).parse().unwrap(), number); MAX_FLOORS],
        },
        ToEdge::Collides {
            stream: stream(),
            number,
            floor: SegmentNumber(1 << 62),
            compared: true,
        },
        ToEdge::Refused {
            reason: "this device is disabled".into(),
        },
        ToEdge::Enrolled,
        ToEdge::Resume {
            stream: stream(),
            number,
            length: 65_536,
            hash: SegmentHash([1; 32]),
        },
        ToEdge::Settled(Settled {
            stream: stream(),
            ranges: (0..MAX_RANGES as u64)
                .rev()
                .map(|n| SegmentNumber(10 + 2 * n)..=SegmentNumber(10 + 2 * n))
                .collect(),
            cursor: SegmentNumber(10),
            done: false,
        }),
        ToEdge::StreamRefused {
            stream: stream(),
            reason: "belongs to another".into(),
        },
        ToEdge::Stored {
            stream: stream(),
            number,
        },
        ToEdge::Again {
            stream: stream(),
            number,
            wait_ms: 5_000,
        },
        ToEdge::Hole {
            stream: stream(),
            number,
            reason: HoleReason::Corrupt,
        },
        ToEdge::Ended {
            stream: stream(),
            last: Some(number),
        },
        ToEdge::Ended {
            stream: stream(),
            last: None,
        },
        ToEdge::Want {
            stream: stream(),
            ranges: vec![
                SegmentNumber(7)..=SegmentNumber(9),
                SegmentNumber(0)..=SegmentNumber(u64::MAX),
            ],
        },
        ToEdge::Restamped {
            stream: stream(),
            last: number,
        },
    ]
}

#[test]
fn every_message_survives_the_wire_and_fits_a_channel() {
    for message in every_to_hub() {
        let bytes = message.encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
        assert_eq!(ToHub::decode(bytes), Ok(Some(message)));
    }
    for message in every_to_edge() {
        let bytes = message.encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
        assert_eq!(ToEdge::decode(bytes), Ok(Some(message)));
    }
}

#[test]
fn exact_bytes_of_a_small_message() {
    let stored = ToEdge::Stored {
        stream: stream(),
        number: SegmentNumber(300),
    };
    // Field 7 (Stored), 9 bytes: field 1 "gate", field 2 varint 300.
    assert_eq!(&stored.encode()[..], b"\x3a\x09\x0a\x04gate\x10\xac\x02");
}

#[test]
fn a_later_version_is_understood_as_far_as_it_is_known() {
    // Kind 99 with four bytes in it.
    assert_eq!(
        ToHub::decode(Bytes::from_static(b"\x9a\x06\x04abcd")),
        Ok(None)
    );
    assert_eq!(ToEdge::decode(Bytes::new()), Ok(None));
    // Field 15 inside Stored.
    let known = ToEdge::decode(Bytes::from_static(b"\x3a\x0a\x0a\x04gate\x10\x07\x78\x05"));
    assert_eq!(
        known,
        Ok(Some(ToEdge::Stored {
            stream: stream(),
            number: SegmentNumber(7)
        }))
    );
}

#[test]
fn media_is_a_slice_of_the_message() {
    let bytes = ToHub::Chunk(chunk(1000)).encode();
    let within = bytes.as_ptr_range();
    let Ok(Some(ToHub::Chunk(chunk))) = ToHub::decode(bytes.clone()) else {
        panic!("not a chunk");
    };
    assert!(within.contains(&chunk.data.as_ptr()));
}

#[test]
fn nonsense_is_named() {
    let spoil = |message: ToHub, with: &dyn Fn(&mut wire::to_hub::Kind)| {
        let mut wire = to_hub::to_wire(&message);
        with(wire.kind.as_mut().unwrap());
        to_hub::from_wire(wire).unwrap_err().to_string()
    };
    use wire::to_hub::Kind;
    macro_rules! spoiled {
        ($message:expr, $kind:ident, $m:ident => $change:expr) => {
            spoil($message, &|kind| {
                let Kind::$kind($m) = kind else { panic!() };
                $change;
            })
        };
    }
    let closed = || ToHub::SegmentClosed {
        stream: stream(),
        info: info(),
    };
    let restamp = || ToHub::Restamp {
        stream: stream(),
        segments: [3, 4].map(|n| (SegmentNumber(n), WallTime(0))).to_vec(),
    };
    let holes = || ToHub::Holes {
        stream: stream(),
        ranges: std::iter::once(SegmentNumber(2)..=SegmentNumber(4)).collect(),
        reason: HoleReason::Evicted,
    };
    let holding = || ToHub::Holding {
        stream: stream(),
        within: SegmentNumber(2)..=SegmentNumber(9),
        ranges: vec![
            SegmentNumber(2)..=SegmentNumber(4),
            SegmentNumber(7)..=SegmentNumber(8),
        ],
    };
    let of =
        |m: &mut wire::SegmentClosed, f: fn(&mut wire::Segment)| f(m.segment.as_mut().unwrap());
    let errors = [
        spoiled!(ToHub::Hello(hello()), Hello, m => m.version = 0),
        spoiled!(ToHub::Hello(hello()), Hello, m => m.software = "x".repeat(129)),
        spoiled!(ToHub::Hello(hello()), Hello, m => m.software = "a\nb".into()),
        spoiled!(ToHub::Hello(hello()), Hello, m => m.clock_ms = -1),
        spoiled!(closed(), SegmentClosed, m => m.stream = "../etc".into()),
        spoiled!(closed(), SegmentClosed, m => m.segment = None),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.length = 0)),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.length = (256 << 20) + 1)),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.run = 8)),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.hash = Bytes::from_static(&[1; 31]))),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.duration_90k = u64::MAX)),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.wall_start_ms = i64::MAX)),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.media_start_90k = i64::MIN)),
        spoiled!(ToHub::Chunk(chunk(1)), Chunk, m => m.offset = 256 << 20),
        spoiled!(ToHub::Chunk(chunk(1)), Chunk, m => m.offset = u64::MAX),
        spoiled!(ToHub::Chunk(chunk(1)), Chunk, m => m.data = Bytes::new()),
        spoiled!(ToHub::Chunk(chunk(1)), Chunk, m => m.data = vec![0; MAX_CHUNK_BYTES + 1].into()),
        spoiled!(ToHub::SegmentStart(start()), SegmentStart, m => m.run.as_mut().unwrap().codecs = "a\"\nb".into()),
        spoiled!(ToHub::SegmentStart(start()), SegmentStart, m => m.run.as_mut().unwrap().width = 0),
        spoiled!(ToHub::SegmentStart(start()), SegmentStart, m => m.run.as_mut().unwrap().target_duration_s = 0),
        spoiled!(restamp(), Restamp, m => m.segments.clear()),
        spoiled!(restamp(), Restamp, m => m.segments.swap(0, 1)),
        spoiled!(restamp(), Restamp, m => m.segments[1].wall_start_ms = -1),
        spoiled!(restamp(), Restamp, m => m.segments = vec![m.segments[0]; MAX_RESTAMPED + 1]),
        spoiled!(ToHub::SegmentStart(start()), SegmentStart, m => m.number = u64::MAX),
        spoiled!(ToHub::Chunk(chunk(1)), Chunk, m => m.number = i64::MAX as u64),
        spoiled!(closed(), SegmentClosed, m => of(m, |s| s.number = (1 << 62) + 1)),
        spoiled!(holes(), Holes, m => m.ranges[0].last = u64::MAX),
        spoiled!(holes(), Holes, m => m.ranges[0].first = 9),
        spoiled!(holding(), Holding, m => m.ranges.reverse()),
        spoiled!(holding(), Holding, m => m.first = 4),
        spoiled!(holding(), Holding, m => m.ranges[1].first = 4),
    ];
    assert_eq!(
        errors,
        [
            "version 0 is out of range",
            "software has 129 bytes or entries, over the limit of 128",
            "software is malformed",
            "device clock -1 is out of range",
            "stream name is malformed",
            "segment is missing",
            "segment length 0 is out of range",
            "segment length 268435457 is out of range",
            "run 8 is out of range",
            "hash is malformed",
            "duration 18446744073709551615 is out of range",
            "wall start 9223372036854775807 is out of range",
            "media start -9223372036854775808 is out of range",
            "offset 268435457 is out of range",
            "offset 18446744073709551615 is out of range",
            "data is missing",
            "data has 16385 bytes or entries, over the limit of 16384",
            "codecs is malformed",
            "width 0 is out of range",
            "target duration 0 is out of range",
            "restamped segments is missing",
            "order of restamped segments is malformed",
            "wall start -1 is out of range",
            "restamped segments has 257 bytes or entries, over the limit of 256",
            "segment number 18446744073709551615 is out of range",
            "segment number 9223372036854775807 is out of range",
            "segment number 4611686018427387905 is out of range",
            "segment number 18446744073709551615 is out of range",
            "range end 4 is out of range",
            "order of held ranges is malformed",
            "order of held ranges is malformed",
            "order of held ranges is malformed",
        ]
    );
}

#[test]
fn settled_ranges_must_descend_to_their_cursor() {
    let with = |ranges: &[(u64, u64)], cursor| {
        let message = wire::ToEdge {
            kind: Some(wire::to_edge::Kind::Settled(wire::Settled {
                stream: "gate".into(),
                ranges: ranges
                    .iter()
                    .map(|&(first, last)| wire::Range { first, last })
                    .collect(),
                cursor,
                done: true,
            })),
        };
        to_edge::from_wire(message).is_ok()
    };
    assert!(with(&[(8, 9), (3, 5)], 3));
    assert!(with(&[], 0));
    assert!(!with(&[(3, 5), (8, 9)], 3), "ascending");
    assert!(!with(&[(5, 9), (3, 5)], 3), "overlapping");
    assert!(!with(&[(8, 9), (3, 5)], 4), "below the cursor");
    assert!(!with(&[(9, 8)], 0), "backwards");
}

#[test]
fn reasons_are_printable_and_cut_at_a_character() {
    assert_eq!(reason_text("a\nb"), "a b");
    let long = reason_text(&"é".repeat(300));
    assert_eq!((long.len(), long.chars().count()), (512, 256));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = ToHub::decode(bytes.clone()).is_ok() | ToEdge::decode(bytes).is_ok();
    }

    #[test]
    fn damaged_messages_are_refused_or_still_sense(pick in 0usize..12, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let message = every_to_hub().swap_remove(pick);
        let mut bytes = message.encode().to_vec();
        if bytes.is_empty() { return Ok(()); }
        let i = at.index(bytes.len());
        bytes[i] ^= flip;
        if let Ok(Some(read)) = ToHub::decode(bytes.into()) {
            // Whatever was read can be said again and means the same.
            prop_assert_eq!(ToHub::decode(read.encode()), Ok(Some(read)));
        }
    }
}
