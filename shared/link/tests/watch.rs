//! What the hub shows of a device's link: what it lacks, how late live media is, what the device says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use common::{Edge, Hub, PATIENCE, Recorder, assert_replicated, now, runtime, until};
use link::{
    downlink::{DownlinkStatus, SessionStatus},
    history::{Class, History},
    uplink::{Allowed, Orders, Policy, UplinkConfig, default_orders},
};
use model::{MediaDuration, MediaTime, SegmentNumber, WallTime};
use store::{Backlog, OpenSegment};
use tokio::sync::watch;

/// Waits until the only device's session is so.
async fn until_shown(hub: &mut Hub, what: &str, met: impl Fn(&SessionStatus) -> bool) {
    let status = &mut hub.running.as_mut().unwrap().status;
    until(status, what, |shown: &DownlinkStatus| {
        shown.sessions.first().is_some_and(&met)
    })
    .await;
}

fn shown(hub: &Hub) -> SessionStatus {
    let status = hub.running.as_ref().unwrap().status.borrow();
    status.sessions[0].clone()
}

fn orders(allowed: Allowed) -> Orders {
    Orders {
        policy: Policy {
            allowed,
            ..Policy::default()
        },
        ..Orders::default()
    }
}

#[test]
fn the_hub_knows_what_is_missing_and_what_its_devices_say() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let (order, listens) = watch::channel(orders(Allowed::Nothing));
        let mut edge = Edge::start_with(UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: hub.key.public,
            key,
            answer_timeout: PATIENCE,
            orders: listens,
        });
        let mut gate = Recorder::new(edge.store(), "gate", 0);
        let segments: Vec<_> = (0..5).map(|_| gate.segment(edge.store())).collect();
        let bytes = segments.iter().map(|info| info.bytes).sum();
        edge.connected().await;
        let lacking = Backlog {
            segments: 5,
            bytes,
            oldest: Some(segments[0].wall_start),
        };
        until_shown(&mut hub, "announced and not shipped", |s| {
            s.said.is_some() && s.backlog() == lacking
        })
        .await;
        let held = shown(&hub);
        assert_eq!(held.said.unwrap().sent.by_class.media(), 0);
        assert_eq!(held.streams.len(), 1);
        assert_eq!(held.streams[0].stream, gate.stream);

        order.send(orders(Allowed::All)).unwrap();
        gate.end(edge.store());
        assert_replicated(&edge, &hub, &gate.stream).await;
        until_shown(&mut hub, "nothing is missing, and all is told", |s| {
            let told = s.said.unwrap().sent.by_class.media();
            s.backlog() == Backlog::default() && told >= bytes
        })
        .await;
        let now_shown = shown(&hub);
        let said = now_shown.said.unwrap();
        assert!(
            said.line.rate_bps > 0 && said.line.rtt.is_some(),
            "{said:?}"
        );
        assert!(said.sent.bytes > bytes && said.sent.packet_bytes > bytes);
        let of_stream = now_shown.streams[0].by_class;
        assert_eq!(of_stream.media(), said.sent.by_class.media());
        assert_eq!(now_shown.live_lag(), None, "the stream has ended");

        // Both ends make the same of it.
        let mut hour = History::default();
        let start = std::time::Instant::now();
        let reading = |s: &SessionStatus, seconds: u64| {
            let passed = std::time::Duration::from_secs(seconds);
            s.reading(WallTime(1_000 * seconds as i64), start + passed)
        };
        hour.take(reading(&held, 0));
        hour.take(reading(&now_shown, 10));
        let window = hour.last().unwrap().window;
        assert!(window.overhead.unwrap() > 1.0, "{window:?}");
        let media_bps = said.sent.by_class.media() as f32 * 8.0 / 10.0;
        assert!((window.media_bps.unwrap() / media_bps - 1.0).abs() < 1e-3);
        let edge_shows = edge.status();
        assert_eq!(
            edge_shows.report.sent.by_class.media(),
            said.sent.by_class.media()
        );
        let control = edge_shows.report.sent.by_class.get(Class::Control);
        assert!(control >= said.sent.by_class.get(Class::Control) && control > 0);
    });
}

#[test]
fn live_media_has_a_lag_while_it_is_live() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        edge.connected().await;
        let gate = Recorder::new(edge.store(), "gate", 0);
        let part = MediaDuration::from_millis(333);
        let open = OpenSegment {
            number: SegmentNumber(0),
            run: SegmentNumber(0),
            wall_start: now().minus(part),
            media_start: MediaTime(0),
            independent: true,
        };
        let mut writer = edge.store().open_segment(&gate.stream, open).unwrap();
        writer.append(&gate.bytes(0)).unwrap();
        writer.finish_part(part, true).unwrap();
        until_shown(&mut hub, "it is live", |s| s.live_lag().is_some()).await;
        let stream = shown(&hub).streams[0].clone();
        assert!(stream.live);
        assert!(stream.live_lag.unwrap() < PATIENCE, "{stream:?}");
        writer.close(part, None).unwrap();
        edge.store()
            .end_stream(&gate.stream, Some(SegmentNumber(0)))
            .unwrap();
        until_shown(&mut hub, "it has ended", |s| s.live_lag().is_none()).await;
        let class = shown(&hub).streams[0].by_class;
        assert!(class.get(Class::Live) > 0, "{class:?}");
    });
}

#[test]
fn a_session_that_ends_is_no_longer_shown_by_its_edge() {
    runtime().block_on(async {
        let mut hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start_with(UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: hub.key.public,
            key,
            answer_timeout: PATIENCE,
            orders: default_orders(),
        });
        let reading = |status: &link::uplink::UplinkStatus| {
            status.reading(now(), std::time::Instant::now(), Backlog::default())
        };
        assert_eq!(reading(&edge.status()), None);
        edge.connected().await;
        let status = &mut edge.running.as_mut().unwrap().status;
        until(status, "a session", |s| reading(s).is_some()).await;
        hub.stop().await;
        let status = &mut edge.running.as_mut().unwrap().status;
        until(status, "no session", |s| reading(s).is_none()).await;
    });
}
