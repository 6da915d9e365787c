//! Shipping over real sockets: backlogs, live parts, restarts of either end, a line that is cut.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::{Edge, Hub, Recorder, assert_replicated, runtime, until_stored};
use link::uplink::UplinkConfig;
use model::{MediaDuration, SegmentNumber};

#[test]
fn a_backlog_and_what_follows_arrive_whole_and_the_stream_ends() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        let (mut gate, mut yard) = (
            Recorder::new(edge.store(), "gate", 0),
            Recorder::new(edge.store(), "yard", 1_000),
        );
        for _ in 0..50 {
            gate.segment(edge.store());
            yard.segment(edge.store());
        }
        edge.connected().await;
        for _ in 0..20 {
            gate.segment(edge.store());
        }
        gate.end(edge.store());
        yard.end(edge.store());
        assert_replicated(&edge, &hub, &gate.stream).await;
        assert_replicated(&edge, &hub, &yard.stream).await;
        let owner = hub.store().stream(&gate.stream).unwrap().unwrap().owner;
        assert_eq!(owner.unwrap().as_str(), "site-1");
        let status = &mut edge.running.as_mut().unwrap().status;
        common::until(status, "all counted", |s| s.counters.segments_stored == 120).await;
    });
}

#[test]
fn parts_are_at_the_hub_before_their_segment_is_closed() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        edge.connected().await;
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        let mut writer = gate.open(edge.store());
        for part in 0..3 {
            writer.append(&gate.bytes(part)).unwrap();
            writer
                .finish_part(MediaDuration::from_millis(333), part == 0)
                .unwrap();
            until_stored(hub.store(), "the part is there", |store| {
                let view = store.open_view(&gate.stream);
                view.is_ok_and(|view| view.is_some_and(|v| v.parts.len() as u64 == part + 1))
            })
            .await;
        }
        writer
            .close(MediaDuration::from_millis(1_000), None)
            .unwrap();
        gate.next += 1;
        gate.end(edge.store());
        assert_replicated(&edge, &hub, &gate.stream).await;
    });
}

#[test]
fn a_restart_of_either_end_loses_nothing_and_repeats_nothing() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        gate.part_bytes = 400_000;
        for round in 0..3 {
            for _ in 0..10 {
                gate.segment(edge.store());
            }
            edge.connected().await;
            let some = SegmentNumber(10 * round + 3);
            until_stored(hub.store(), "some are there", |store| {
                store.segment(&gate.stream, some).unwrap().is_some()
            })
            .await;
            if round % 2 == 0 {
                hub.stop().await;
                hub.start_again().await;
            } else {
                edge.stop().await;
                edge.start_again();
            }
        }
        gate.end(edge.store());
        assert_replicated(&edge, &hub, &gate.stream).await;
    });
}

#[test]
fn an_edge_that_starts_before_its_hub_finds_it() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        hub.stop().await;
        let mut edge = Edge::start(&hub, key);
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        gate.segment(edge.store());
        gate.end(edge.store());
        edge.until("unreachable", |state| {
            matches!(state, link::uplink::LinkState::Unreachable { why } if why.contains("no answer from 127.0.0.1"))
        })
        .await;
        hub.start_again().await;
        assert_replicated(&edge, &hub, &gate.stream).await;
    });
}

/// Prints how long a closed segment takes to be listed; asserts that all are.
#[test]
fn closed_segments_are_listed_soon() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        edge.connected().await;
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        gate.part_bytes = 300_000;
        let mut took = Vec::new();
        for _ in 0..60 {
            // A camera's pace, ten times as fast.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let info = gate.segment(edge.store());
            let closed = Instant::now();
            until_stored(hub.store(), "listed", |store| {
                store
                    .segment(&gate.stream, info.number)
                    .is_ok_and(|s| s.is_some())
            })
            .await;
            took.push(closed.elapsed());
        }
        let first = took[0];
        took.sort();
        println!("first {first:?}");
        println!(
            "listed after: p50 {:?}, p90 {:?}, longest {:?}",
            took[30], took[54], took[59]
        );
        assert_eq!(took.len(), 60);
    });
}

#[test]
fn what_a_viewer_waits_for_comes_before_the_older_backlog() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        hub.stop().await;
        let slow = link::uplink::Orders {
            max_rate_bps: Some(4_000_000),
            ..link::uplink::Orders::default()
        };
        let edge = Edge::start_with(UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: hub.key.public,
            key,
            answer_timeout: Duration::from_millis(500),
            orders: tokio::sync::watch::channel(slow).1,
        });
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        gate.part_bytes = 10_000;
        let stream = gate.stream.clone();
        for _ in 0..300 {
            gate.segment(edge.store());
        }
        gate.end(edge.store());
        hub.start_again().await;
        let asked = SegmentNumber(280)..=SegmentNumber(281);
        // Nobody can wait for what the hub has not been told of.
        until_stored(hub.store(), "what is asked for is announced", |store| {
            store.want(&stream, asked.clone()).unwrap_or(false)
        })
        .await;
        let here = |store: &store::Store| -> Vec<u64> {
            let all = store.list(&stream, SegmentNumber(0), 1_000).unwrap();
            all.iter().map(|info| info.number.0).collect()
        };
        until_stored(hub.store(), "what is asked for is here", |store| {
            here(store).contains(&281)
        })
        .await;
        let now = here(hub.store());
        assert!(now.contains(&280), "{now:?}");
        assert!(now.len() < 200, "the backlog waits: {}", now.len());
        assert_replicated(&edge, &hub, &stream).await;
    });
}
