//! What `/metrics` tells: read from the uplink's status and the store when somebody asks.
//!
//! Nothing is counted here. Names are `penstock_` and the word used everywhere else; the streams that are
//! labels are names that the operator gave.

use std::fmt;

use link::{
    history::{Class, metric},
    uplink::{LinkState, UplinkStatus},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use store::Store;
use tokio::sync::watch;

use crate::{
    inputs::{Count, InputState, Inputs},
    link_view::LinkWatch,
    status::clock_ahead_ms,
};

/// The registry of a running edge-node.
pub(crate) fn registry(
    store: Store,
    link: watch::Receiver<UplinkStatus>,
    watch: LinkWatch,
    inputs: Inputs,
) -> Registry {
    let mut registry = Registry::with_prefix("penstock");
    registry.register_collector(Box::new(Link(link.clone())));
    registry.register_collector(Box::new(Line { link, watch }));
    registry.register_collector(Box::new(Disk(store.clone())));
    registry.register_collector(Box::new(Streams(store)));
    registry.register_collector(Box::new(Taken(inputs)));
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
                "link_clock_ahead",
                "How far this machine's clock is ahead of the hub's",
                Some(&Unit::Seconds),
                status.hub_time.map_or(0, |hub| clock_ahead_ms(&hub)) as f64 / 1e3,
            ),
            (
                "link_clock_uncertainty",
                "How far off that may be; 0: the hub has not told its time",
                Some(&Unit::Seconds),
                status
                    .hub_time
                    .map_or(0.0, |hub| hub.uncertainty.as_secs_f64()),
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

/// What the session measures and counts.
struct Line {
    link: watch::Receiver<UplinkStatus>,
    watch: LinkWatch,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Collector for Line {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(sample) = self.watch.now() else {
            return Ok(());
        };
        let report = self.link.borrow().report.clone();
        for (name, help, unit, value) in [
            (
                "link_delivery_bps",
                "Rate at which what is sent arrives, bits per second",
                None,
                sample.delivery_bps.map(metric),
            ),
            (
                "link_queueing_delay",
                "What waits in the queues on the way to the hub",
                Some(&Unit::Seconds),
                sample.queueing_delay_ms.map(|ms| metric(ms) / 1e3),
            ),
            (
                "link_datagram_bytes",
                "Largest datagram that the path to the hub carries, UDP payload",
                None,
                sample.datagram_bytes.map(f64::from),
            ),
            (
                "link_parity_ratio",
                "Bytes of parity for each byte sent for the first time, over the last seconds",
                None,
                sample.window.parity_ratio.map(metric),
            ),
            (
                "link_overhead",
                "IP bytes sent for each byte of media, over the last seconds",
                None,
                sample.window.overhead.map(metric),
            ),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let one = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(one)?;
        }
        let sent = &report.sent;
        for (name, help, count) in [
            (
                "link_packet_bytes_sent",
                "Bytes of KCP packets sent for the first time in this session",
                sent.packet_bytes,
            ),
            (
                "link_packet_bytes_resent",
                "Bytes of KCP packets sent again in this session",
                sent.resent_bytes,
            ),
            (
                "link_parity_bytes_sent",
                "Bytes of parity sent in this session",
                sent.parity_bytes,
            ),
        ] {
            let counter = ConstCounter::new(count);
            let one = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(one)?;
        }
        let kind = || ConstCounter::new(0u64).metric_type();
        let help = "Bytes of messages sent in this session, by class";
        let mut family = encoder.encode_descriptor("link_class_bytes", help, None, kind())?;
        for (class, count) in sent.by_class.iter() {
            let labels = [("class", class.name())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Media bytes of a stream sent in this session, by class";
        let mut family = encoder.encode_descriptor("link_stream_bytes", help, None, kind())?;
        for stream in &report.streams {
            let media = stream.by_class.iter();
            for (class, count) in media.filter(|(class, _)| *class != Class::Control) {
                let labels = [("stream", stream.stream.as_str()), ("class", class.name())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
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
        let scrubbed = self.0.scrub_totals();
        for (name, help, count) in [
            (
                "scrub_segments",
                "Segments on this disk that were read again",
                scrubbed.segments,
            ),
            ("scrub_bytes", "Their bytes", scrubbed.bytes),
            (
                "scrub_corrupt",
                "Segments on this disk found damaged or gone by scrubbing",
                scrubbed.corrupt,
            ),
            (
                "store_segments_lost",
                "Segments on this disk found damaged or gone, at start-up too",
                scrubbed.lost,
            ),
        ] {
            let counter = ConstCounter::new(count);
            let one = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(one)?;
        }
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
            (
                "stream_given_up",
                "Segments here that the hub settled without having them",
                4,
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
                    3 => stream.unshipped_bytes,
                    _ => stream.given_up,
                };
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// What is taken in.
#[derive(Debug)]
struct Taken(Inputs);

impl Collector for Taken {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (count, name, help) in Count::ALL {
            let name = format!("input_{name}");
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
            for input in self.0.iter() {
                let labels = [("stream", input.stream.as_str())];
                ConstCounter::new(input.count(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 at what the input does now";
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor("input_state", help, None, kind)?;
        for input in self.0.iter() {
            let state = input.state();
            for word in InputState::WORDS {
                let labels = [("stream", input.stream.as_str()), ("state", word)];
                let is = i64::from(state.word() == word);
                ConstGauge::new(is).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
