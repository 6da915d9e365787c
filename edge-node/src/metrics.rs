//! What `/metrics` tells: read from the uplink's status and the store when somebody asks.
//!
//! Nothing is counted here. Names are `penstock_` and the word used everywhere else; the streams that are
//! labels are names that the operator gave.

use std::fmt;

use link::uplink::{LinkState, UplinkStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use store::Store;
use tokio::sync::watch;

/// The registry of a running edge-node.
pub(crate) fn registry(store: Store, link: watch::Receiver<UplinkStatus>) -> Registry {
    let mut registry = Registry::with_prefix("penstock");
    registry.register_collector(Box::new(Link(link)));
    registry.register_collector(Box::new(Disk(store.clone())));
    registry.register_collector(Box::new(Streams(store)));
    registry
}

struct Link(watch::Receiver<UplinkStatus>);

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
                "Datagrams sent to the hub",
                c.datagrams_sent,
            ),
            (
                "link_datagrams_received",
                "Datagrams received, good or bad",
                c.datagrams_received,
            ),
            (
                "link_bytes_sent",
                "Bytes of datagrams sent to the hub",
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
                "link_segments_shipped",
                "Segments sent whole",
                c.segments_shipped,
            ),
            (
                "link_segments_stored",
                "Segments that the hub said it stored",
                c.segments_stored,
            ),
        ] {
            let counter = ConstCounter::new(count);
            let one = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(one)?;
        }
        let connected = matches!(status.state, LinkState::Connected { .. });
        for (name, help, unit, value) in [
            (
                "link_connected",
                "1 while the hub is connected",
                None,
                f64::from(u8::from(connected)),
            ),
            (
                "link_rtt",
                "Round trip to the hub",
                Some(&Unit::Seconds),
                status.rtt.unwrap_or_default().as_secs_f64(),
            ),
            (
                "link_rate_bps",
                "Rate that the link is paced to, bits per second",
                None,
                status.rate_bps as f64,
            ),
            (
                "link_loss",
                "Share of datagrams lost on the way to the hub",
                None,
                f64::from(status.loss),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            let one = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(one)?;
        }
        Ok(())
    }
}

struct Disk(Store);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Collector for Disk {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (memory, through) = (self.0.in_memory(), self.0.memory_counters());
        for (name, help, value) in [
            (
                "disk_failing",
                "1 while the disk fails: full, read-only, gone, or slow",
                u64::from(self.0.disk_trouble().is_some()),
            ),
            (
                "memory_segments",
                "Whole segments in memory that the disk has not taken",
                memory.segments,
            ),
            ("memory_bytes", "Bytes of segments in memory", memory.bytes),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let one = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(one)?;
        }
        for (name, help, value) in [
            (
                "memory_through_segments",
                "Segments that went through memory while the disk failed",
                through.segments,
            ),
            (
                "memory_lost_segments",
                "Segments that memory dropped before the hub had them",
                through.lost,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let one = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(one)?;
        }
        Ok(())
    }
}

struct Streams(Store);

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streams")
    }
}

impl Collector for Streams {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A store that can't be read is told by its absence here and by the log.
        let streams = self.0.streams().unwrap_or_default();
        for (name, help, value) in [
            ("stream_segments", "Segments on this disk", 0),
            ("stream_bytes", "Bytes of segments on this disk", 1),
            (
                "stream_unshipped",
                "Segments that the hub has not stored",
                2,
            ),
            (
                "stream_unshipped_bytes",
                "Bytes of segments that the hub has not stored",
                3,
            ),
        ] {
            let mut family =
                encoder.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
            for stream in &streams {
                let labels = [("stream", stream.name.as_str())];
                let value = match value {
                    0 => stream.segments,
                    1 => stream.bytes,
                    2 => stream.unshipped,
                    _ => stream.unshipped_bytes,
                };
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
