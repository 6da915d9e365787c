//! A week offline under a disk cap of 200 MB, in fast motion: the order of eviction, the cap, and that the
//! hub can explain every hole afterwards.
//!
//! A hundredth of a week's segments and of the cap by default; `scripts/soak week` runs all 302,400.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Edge, Hub, PATIENCE, now, runtime, until_stored};
use link::uplink::UplinkConfig;
use model::{
    HoleReason, MediaDuration, MediaTime, RangeSet, RunInfo, SegmentNumber, StreamName, WallTime,
};
use store::{OpenSegment, RetentionLimits, SourceKind, Store};

/// Two-second segments of a week.
const WEEK: u64 = 302_400;
const CAP: u64 = 200_000_000;
/// A week of these is six times the cap: one part in seven of what was cut offline stays.
const SEGMENT_BYTES: u64 = 4_000;
/// Segments between two rounds of retention, as at one every five seconds of a camera of 26 streams.
const ROUND: u64 = 64;

fn record(store: &Store, stream: &StreamName, run: &RunInfo, numbers: std::ops::Range<u64>) {
    let monday = now().0 - WEEK as i64 * 2_000;
    for number in numbers {
        let open = OpenSegment {
            number: SegmentNumber(number),
            run: run.run,
            wall_start: WallTime(monday + number as i64 * 2_000),
            media_start: MediaTime(number as i64 * 180_000),
            independent: true,
        };
        let two_seconds = MediaDuration(180_000);
        let bytes: Vec<u8> = (0..SEGMENT_BYTES).map(|i| (i * 7 + number) as u8).collect();
        let mut writer = store.record(stream, run, open, None, SourceKind::Live);
        writer.append_part(Bytes::from(bytes), two_seconds, true);
        writer.close(two_seconds).unwrap();
    }
    assert!(store.wait_for_all(stream, Duration::from_secs(60)).unwrap());
}

/// Waits until the hub has stored everything, for as long as it stores something.
async fn until_shipped(store: &Store, stream: &StreamName) {
    let (mut left, mut since) = (u64::MAX, Instant::now());
    loop {
        let now = store.stream(stream).unwrap().unwrap().unshipped;
        if now == 0 {
            return;
        }
        if now < left {
            (left, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{now} segments stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_week_offline_evicts_in_order_keeps_the_cap_and_leaves_no_hole_unexplained() {
    let segments: u64 =
        std::env::var("PENSTOCK_WEEK_SEGMENTS").map_or(WEEK / 100, |n| n.parse().unwrap());
    let cap = CAP * segments / WEEK;
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let config = UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: hub.key.public,
            key: hub.enrol("site-1").await,
            answer_timeout: Duration::from_millis(500),
            orders: link::uplink::default_orders(),
        };
        let limits = RetentionLimits {
            max_bytes: Some(cap),
            keep_unshipped: true,
            ..RetentionLimits::default()
        };
        let mut edge = Edge::start_within(config, limits);
        edge.connected().await;
        let stream: StreamName = "gate".parse().unwrap();
        let run = RunInfo {
            run: SegmentNumber(0),
            codecs: "avc1.64001f".to_owned(),
            resolution: None,
            target_duration_s: 2,
        };

        // The first tenth of what fits is shipped before the line is gone.
        let stored = cap / SEGMENT_BYTES / 10;
        let store = edge.store().clone();
        record(&store, &stream, &run, 0..stored);
        until_shipped(&store, &stream).await;
        hub.stop().await;

        let mut most = 0;
        let mut next = stored;
        // A day later for the lists: what left them may go.
        let later = || WallTime(now().0 + 86_400_000);
        while next < segments {
            let to = segments.min(next + ROUND);
            record(&store, &stream, &run, next..to);
            next = to;
            let used = store.stream(&stream).unwrap().unwrap().bytes;
            most = most.max(used);
            let report = store.run_janitor(later()).unwrap();
            let left = store.stream(&stream).unwrap().unwrap();
            assert!(
                left.bytes <= cap,
                "{} bytes over a cap of {cap}",
                left.bytes
            );
            let first = store.list(&stream, SegmentNumber(0), 1).unwrap()[0].number;
            if report.forced > 0 {
                assert!(first.0 >= stored, "{first} is stored and still here");
            }
            // From the oldest on: what is here is one stretch.
            let holes: u64 = store
                .holes(&stream)
                .unwrap()
                .iter()
                .map(|(r, _)| r.end().0 - r.start().0 + 1)
                .sum();
            assert_eq!(left.segments + stored.min(first.0) + holes, next);
        }
        let slack = ROUND * SEGMENT_BYTES;
        assert!(most <= cap + slack, "{most} bytes, the cap is {cap}");

        let evicted = store.holes(&stream).unwrap();
        assert!(evicted.iter().all(|(_, why)| *why == HoleReason::Evicted));
        assert_eq!(evicted.len(), 1, "{evicted:?}");
        let (hole, _) = evicted[0].clone();
        assert_eq!(hole.start().0, stored);
        println!(
            "{segments} segments offline, cap {cap}: {} evicted, at most {most} bytes on the disk",
            hole.end().0 - hole.start().0 + 1
        );

        hub.start_again().await;
        until_shipped(&store, &stream).await;
        until_stored(hub.store(), "the hub knows of the hole", |hub| {
            !hub.holes(&stream).unwrap().is_empty()
        })
        .await;
        assert_eq!(hub.store().holes(&stream).unwrap(), evicted);
        // Here or explained, from the first to the last.
        let all: RangeSet = [SegmentNumber(0)..=SegmentNumber(segments - 1)]
            .into_iter()
            .collect();
        assert_eq!(hub.store().settled(&stream).unwrap(), all);
        let here = hub.store().stream(&stream).unwrap().unwrap();
        assert_eq!(
            here.segments,
            segments - (hole.end().0 - hole.start().0 + 1)
        );
        drop(store);
        edge.stop().await;
    });
}
