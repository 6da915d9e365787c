//! What `/metrics` tells: read from the link's status and the store when somebody asks.
//!
//! Nothing is counted here. Names are `penstock_` and the word used everywhere else; no label's values
//! grow without limit: devices and streams are names that the operator gave.

use std::fmt;

use link::downlink::DownlinkStatus;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use serve::HttpCounters;
use store::{Store, StreamState};
use tokio::sync::watch;

use crate::{link_metrics::Lines, links::Links};

/// The registry of a running hub.
pub(crate) fn registry(
    store: Store,
    link: watch::Receiver<DownlinkStatus>,
    links: Links,
    http: &HttpCounters,
    admin: &HttpCounters,
) -> Registry {
    let mut registry = Registry::with_prefix("penstock");
    http.register(&mut registry);
    admin.register(registry.sub_registry_with_prefix("admin"));
    registry.register_collector(Box::new(Link(link.clone())));
    registry.register_collector(Box::new(Lines { link, links }));
    registry.register_collector(Box::new(Totals(store)));
    registry
}

/// The link's counters and sessions.
struct Link(watch::Receiver<DownlinkStatus>);

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

impl Collector for Link {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.borrow().clone();
        let c = status.counters;
        for (name, help, count) in [
            (
                "link_datagrams_sent",
                "Datagrams sent to devices",
                c.datagrams_sent,
            ),
            (
                "link_datagrams_received",
                "Datagrams received, good or bad",
                c.datagrams_received,
            ),
            (
                "link_bytes_sent",
                "Bytes of datagrams sent to devices",
                c.bytes_sent,
            ),
            (
                "link_bytes_received",
                "Bytes of datagrams received",
                c.bytes_received,
            ),
            (
                "link_datagrams_bad",
                "Datagrams that were not authentic or made no sense",
                c.datagrams_bad,
            ),
            (
                "link_datagrams_replayed",
                "Authentic datagrams that had come before",
                c.datagrams_replayed,
            ),
            (
                "link_handshakes",
                "Handshakes that ended in a session",
                c.handshakes,
            ),
            (
                "link_handshakes_refused",
                "Handshakes refused with a reason",
                c.handshakes_refused,
            ),
            (
                "link_cookies_sent",
                "First messages answered with a cookie, since there were many",
                c.cookies_sent,
            ),
            (
                "link_strangers_dropped",
                "Sessions that had not said who they are when newer ones needed their place",
                c.strangers_dropped,
            ),
            (
                "link_segments_stored",
                "Segments received whole and made durable",
                c.segments_stored,
            ),
            (
                "link_identity_conflicts",
                "Times that a box came back after another one with its identity",
                c.identity_conflicts,
            ),
            (
                "link_violations",
                "Sessions ended because a device said what makes no sense",
                c.violations,
            ),
            (
                "link_datagrams_dropped_by_kernel",
                "Datagrams that the kernel dropped, since the receive buffer was full",
                c.datagrams_dropped_by_kernel,
            ),
            (
                "link_gso_refused",
                "Batches that the network device refused to cut into datagrams, sent singly",
                c.gso_refused,
            ),
        ] {
            one(&mut encoder, name, help, &ConstCounter::new(count))?;
        }
        let mut dropped = encoder.encode_descriptor(
            "link_datagrams_dropped",
            "Datagrams that were dropped, by reason",
            None,
            ConstCounter::new(0u64).metric_type(),
        )?;
        for (reason, count) in c.dropped.by_reason() {
            let labels = [("reason", reason)];
            ConstCounter::new(count).encode(dropped.encode_family(&labels)?)?;
        }
        one(
            &mut encoder,
            "link_sessions",
            "Devices connected now",
            &gauge(status.sessions.len() as u64),
        )?;
        let mut rtt = encoder.encode_descriptor(
            "link_rtt",
            "Round trip to a connected device",
            Some(&Unit::Seconds),
            ConstGauge::new(0f64).metric_type(),
        )?;
        for session in &status.sessions {
            if let Some(time) = session.rtt {
                let labels = [("device", session.device.as_str())];
                ConstGauge::new(time.as_secs_f64()).encode(rtt.encode_family(&labels)?)?;
            }
        }
        let mut ahead = encoder.encode_descriptor(
            "link_clock_ahead",
            "How far a connected device's clock was ahead of the hub's as it connected",
            Some(&Unit::Seconds),
            ConstGauge::new(0f64).metric_type(),
        )?;
        for session in &status.sessions {
            let labels = [("device", session.device.as_str())];
            let ahead_s = session.clock_ahead_ms as f64 / 1e3;
            ConstGauge::new(ahead_s).encode(ahead.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// What is in the store.
struct Totals(Store);

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Totals")
    }
}

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let streams = match self.0.streams() {
            Ok(streams) => streams,
            Err(error) => {
                // The link's part is still worth having: a scrape with less in it, and a line in the log.
                tracing::error!(%error, "failed to read the store's totals for /metrics");
                return Ok(());
            }
        };
        let sum = |of: fn(&store::StreamSummary) -> u64| {
            streams.iter().map(of).fold(0, u64::saturating_add)
        };
        let live = streams
            .iter()
            .filter(|s| s.state == StreamState::Live)
            .count();
        one(
            &mut encoder,
            "streams",
            "Streams in the catalog",
            &gauge(streams.len() as u64),
        )?;
        one(
            &mut encoder,
            "streams_live",
            "Streams whose segments are coming",
            &gauge(live as u64),
        )?;
        one(
            &mut encoder,
            "store_segments",
            "Segments here",
            &gauge(sum(|s| s.segments)),
        )?;
        one(
            &mut encoder,
            "store_bytes",
            "Bytes of the segments here",
            &gauge(sum(|s| s.bytes)),
        )?;
        let scrubbed = self.0.scrub_totals();
        for (name, help, count) in [
            (
                "scrub_segments",
                "Stored segments that were read again",
                scrubbed.segments,
            ),
            ("scrub_bytes", "Their bytes", scrubbed.bytes),
            (
                "scrub_corrupt",
                "Stored segments found damaged or gone by scrubbing",
                scrubbed.corrupt,
            ),
            (
                "store_segments_lost",
                "Stored segments found damaged or gone, at start-up too",
                scrubbed.lost,
            ),
        ] {
            one(&mut encoder, name, help, &ConstCounter::new(count))?;
        }
        Ok(())
    }
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use link::{Counters, Dropped, downlink::SessionStatus};
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn every_counter_and_session_is_told_with_its_type() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_beside(dir.path()).unwrap();
        store
            .register_stream(&"gate".parse().unwrap(), None)
            .unwrap();
        let session = |device: &str, rtt| SessionStatus {
            rtt,
            ..crate::links::tests::session(device)
        };
        let counters = Counters {
            datagrams_sent: 1,
            datagrams_received: 2,
            bytes_sent: 3,
            bytes_received: 4,
            datagrams_bad: 5,
            datagrams_replayed: 6,
            handshakes: 7,
            handshakes_refused: 8,
            dropped: Dropped {
                handshake_over_budget: 11,
                ..Dropped::default()
            },
            cookies_sent: 12,
            strangers_dropped: 13,
            segments_shipped: 9,
            segments_stored: 10,
            new_bytes_sent: 11,
            identity_conflicts: 12,
            violations: 13,
            datagrams_dropped_by_kernel: 14,
            gso_refused: 15,
        };
        let sessions = vec![
            session("pole-7", Some(Duration::from_millis(40))),
            session("pole-8", None),
        ];
        let status = DownlinkStatus {
            listening: None,
            sessions,
            counters,
        };
        let http = HttpCounters::default();
        let links = Links::default();
        let registry = registry(store, watch::channel(status).1, links, &http, &http);
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            "penstock_link_datagrams_sent_total 1",
            "penstock_link_datagrams_received_total 2",
            "penstock_link_bytes_sent_total 3",
            "penstock_link_bytes_received_total 4",
            "penstock_link_datagrams_bad_total 5",
            "penstock_link_datagrams_replayed_total 6",
            "penstock_link_handshakes_total 7",
            "penstock_link_handshakes_refused_total 8",
            "penstock_link_segments_stored_total 10",
            "penstock_link_datagrams_dropped_total{reason=\"forged\"} 0",
            "penstock_link_datagrams_dropped_total{reason=\"handshake_over_budget\"} 11",
            "penstock_link_cookies_sent_total 12",
            "penstock_link_strangers_dropped_total 13",
            "penstock_link_identity_conflicts_total 12",
            "penstock_link_violations_total 13",
            "penstock_link_datagrams_dropped_by_kernel_total 14",
            "penstock_link_gso_refused_total 15",
            "penstock_link_sessions 2",
            "# TYPE penstock_link_rtt_seconds gauge",
            "penstock_link_rtt_seconds{device=\"pole-7\"} 0.04",
            "penstock_link_clock_ahead_seconds{device=\"pole-8\"} -1.5",
            "penstock_link_loss{device=\"pole-8\"} 0.05",
            "penstock_http_connections_open 0",
            "penstock_admin_http_connections_failed_total{reason=\"malformed\"} 0",
            "penstock_streams 1",
            "penstock_streams_live 0",
            "penstock_store_segments 0",
            "# TYPE penstock_store_bytes gauge",
            "penstock_scrub_segments_total 0",
            "penstock_scrub_bytes_total 0",
            "penstock_scrub_corrupt_total 0",
            "penstock_store_segments_lost_total 0",
            "# EOF",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
        }
        assert!(
            !shown.contains("link_rtt_seconds{device=\"pole-8\"}"),
            "a round trip that isn't known is not told: {shown}"
        );
    }
}
