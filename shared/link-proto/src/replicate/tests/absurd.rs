//! Messages that are authentic and make no sense: each ends the session or is dropped, and asks nothing of a
//! store that it should not.

use bytes::Bytes;
use model::{
    HoleReason, MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber,
    StreamName, WallTime,
};

use crate::{
    Channel,
    messages::{Chunk, MAX_ANNOUNCED, ProtocolError, SegmentStart, ToEdge, ToHub},
    replicate::{
        MAX_STREAMS,
        receiver::{Job, Outcome, Receiver},
    },
};

fn gate() -> StreamName {
    "gate".parse().unwrap()
}

/// A receiver with `gate` open.
fn opened() -> Receiver {
    let mut receiver = Receiver::new();
    assert!(
        receiver
            .handle_message(Channel::Bulk, ToHub::StreamOpen { stream: gate() })
            .unwrap()
            .is_some()
    );
    receiver
}

fn info(number: u64, bytes: u64) -> SegmentInfo {
    SegmentInfo {
        number: SegmentNumber(number),
        run: SegmentNumber(0),
        wall_start: WallTime(0),
        media_start: MediaTime(0),
        duration: MediaDuration(180_000),
        bytes,
        hash: SegmentHash([1; 32]),
        independent: true,
    }
}

fn start(number: u64, offset: u64) -> ToHub {
    ToHub::SegmentStart(SegmentStart {
        stream: gate(),
        number: SegmentNumber(number),
        run: RunInfo {
            run: SegmentNumber(0),
            codecs: "avc1.64001f".into(),
            resolution: None,
            target_duration_s: 2,
        },
        wall_start: WallTime(0),
        media_start: MediaTime(0),
        independent: true,
        offset,
    })
}

fn chunk(number: u64, offset: u64, bytes: usize) -> ToHub {
    ToHub::Chunk(Chunk {
        stream: gate(),
        number: SegmentNumber(number),
        offset,
        data: Bytes::from(vec![0x47; bytes]),
        part_end: None,
    })
}

fn closed(stream: &StreamName, number: u64, bytes: u64) -> ToHub {
    ToHub::SegmentClosed {
        stream: stream.clone(),
        info: info(number, bytes),
    }
}

/// The error that the last of these leads to; all before it are taken.
fn error(messages: Vec<ToHub>) -> String {
    let mut receiver = opened();
    let mut messages = messages.into_iter().peekable();
    while let Some(message) = messages.next() {
        let done = receiver.handle_message(Channel::Bulk, message);
        if messages.peek().is_none() {
            return done.unwrap_err().to_string();
        }
        done.unwrap();
    }
    panic!("no message");
}

#[test]
fn bytes_that_do_not_follow_one_another_end_the_session() {
    let not_there = "its offset is not where the last one ended";
    let not_started = "the segment was not started";
    for (messages, why) in [
        (vec![start(7, 0), chunk(7, 10, 5)], not_there),
        (vec![start(7, 0), chunk(7, 0, 5), chunk(7, 0, 5)], not_there),
        (vec![start(7, 90), chunk(7, 0, 5)], not_there),
        (vec![start(7, 0), chunk(8, 0, 5)], not_started),
        (vec![chunk(7, 0, 5)], not_started),
        (vec![start(7, 0), closed(&gate(), 8, 5)], not_started),
        (
            vec![start(7, 0), chunk(7, 0, 5), closed(&gate(), 7, 4)],
            "its length is not what was sent",
        ),
        (
            vec![start(7, 0), chunk(7, 0, 5), closed(&gate(), 7, 6)],
            "its length is not what was sent",
        ),
    ] {
        let error = error(messages);
        assert!(error.contains(why) && error.contains("gate"), "{error}");
    }
}

#[test]
fn a_stream_that_was_not_opened_or_was_refused_takes_nothing() {
    let yard: StreamName = "yard".parse().unwrap();
    let hole = SegmentNumber(0)..=SegmentNumber(9);
    for message in [
        closed(&yard, 7, 5),
        ToHub::Announce {
            stream: yard.clone(),
            runs: Vec::new(),
            segments: vec![info(1, 1)],
        },
        ToHub::Holes {
            stream: yard.clone(),
            ranges: vec![hole.clone()],
            reason: HoleReason::Evicted,
        },
        ToHub::Holding {
            stream: yard.clone(),
            within: hole,
            ranges: Vec::new(),
        },
        ToHub::StreamEnd {
            stream: yard.clone(),
            last: None,
        },
    ] {
        let mut receiver = opened();
        let error = receiver
            .handle_message(Channel::Bulk, message.clone())
            .unwrap_err();
        assert!(matches!(error, ProtocolError::OutOfOrder(_)), "{error}");
        let open = ToHub::StreamOpen {
            stream: yard.clone(),
        };
        receiver.handle_message(Channel::Bulk, open).unwrap();
        receiver.handle_outcome(Outcome::StreamRefused {
            stream: yard.clone(),
            reason: "it belongs to another device".into(),
        });
        assert_eq!(
            receiver.handle_message(Channel::Bulk, message).unwrap(),
            None
        );
    }
}

#[test]
fn streams_without_end_end_the_session() {
    let mut receiver = opened();
    let opened = (0..=MAX_STREAMS).find_map(|i| {
        let stream = format!("s{i}").parse().unwrap();
        let open = ToHub::StreamOpen { stream };
        receiver.handle_message(Channel::Bulk, open).err()
    });
    let error = opened.unwrap().to_string();
    assert_eq!(
        error,
        "list of streams has 257 bytes or entries, over the limit of 256"
    );
}

#[test]
fn held_ranges_that_overlap_are_refused_and_holes_that_do_are_one() {
    let range = |first, last| SegmentNumber(first)..=SegmentNumber(last);
    let held = |ranges: Vec<_>| {
        let message = ToHub::Holding {
            stream: gate(),
            within: range(0, 100),
            ranges,
        };
        ToHub::decode(message.encode())
    };
    assert!(held(vec![range(1, 5), range(4, 9)]).is_err());
    assert!(held(vec![range(90, 101)]).is_err());
    let good = held(vec![range(1, 5), range(7, 9)]).unwrap().unwrap();
    let Some(Job::KeepOnly { held, .. }) = opened().handle_message(Channel::Bulk, good).unwrap()
    else {
        panic!("another job");
    };
    assert_eq!(held.count(), 8);
}

/// A segment whose number is used is answered once and what still comes of it is dropped; the answer never says
/// that it is stored.
#[test]
fn a_number_that_is_used_is_not_stored_by_being_offered() {
    let mut receiver = opened();
    receiver.handle_message(Channel::Bulk, start(7, 0)).unwrap();
    let number = SegmentNumber(7);
    let used = Outcome::NumberUsed {
        stream: gate(),
        number,
        floor: SegmentNumber(50),
    };
    let collides = ToEdge::Collides {
        stream: gate(),
        number,
        floor: SegmentNumber(50),
        compared: false,
    };
    assert_eq!(receiver.handle_outcome(used), [collides]);
    for message in [chunk(7, 0, 5), chunk(7, 5, 5), closed(&gate(), 7, 10)] {
        assert_eq!(
            receiver.handle_message(Channel::Bulk, message).unwrap(),
            None
        );
    }
    // The answers to an announcement are as many as its segments at most.
    let numbers = (0..MAX_ANNOUNCED as u64).map(SegmentNumber);
    let outcome = Outcome::Announced {
        stream: gate(),
        stored: numbers.collect(),
        holes: Vec::new(),
        collides: None,
        floor: SegmentNumber(64),
    };
    assert_eq!(receiver.handle_outcome(outcome).len(), MAX_ANNOUNCED);
}
