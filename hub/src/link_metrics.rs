//! What `/metrics` tells of each connected device's link and of the streams that it ships.
//!
//! Labels are names that the operator gave, of devices that are connected, at most [`MAX_SERIES`] streams of them.
//! What a device says of its end is told as such and nothing more.

use std::{fmt, time::Instant};

use link::{
    downlink::{DownlinkStatus, Said, SessionStatus, StreamStatus},
    history::{Class, Sample, metric},
};
use program::clock::wall_now;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use tokio::sync::watch;

use crate::links::Links;

/// Most streams told one by one: some 80,000 lines. Those beyond it are counted only.
const MAX_SERIES: usize = 10_000;

pub(crate) struct Lines {
    pub(crate) link: watch::Receiver<DownlinkStatus>,
    pub(crate) links: Links,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

/// A gauge of each device: name, help, unit, value where there is one.
type OfDevice = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&SessionStatus, &Sample) -> Option<f64>,
);

/// A counter of each device.
type CountOfDevice = (&'static str, &'static str, fn(&Said) -> u64);

/// A gauge of each stream.
type OfStream = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&StreamStatus) -> Option<f64>,
);

const OF_DEVICE: [OfDevice; 9] = [
    (
        "link_rate_bps",
        "Rate that a device paces to, as it says, bits per second",
        None,
        |session, _| session.said.map(|said| said.line.rate_bps as f64),
    ),
    (
        "link_delivery_bps",
        "Rate at which what a device sends arrives, as it says, bits per second",
        None,
        |_, sample| sample.delivery_bps.map(metric),
    ),
    (
        "link_loss",
        "Share of a device's datagrams lost on the way, as it says",
        None,
        |session, _| session.said.map(|said| said.line.loss()),
    ),
    (
        "link_device_rtt",
        "Round trip as a device says",
        Some(Unit::Seconds),
        |session, _| session.said?.line.rtt.map(|rtt| rtt.as_secs_f64()),
    ),
    (
        "link_queueing_delay",
        "What waits in the queues on the way from a device, as it says",
        Some(Unit::Seconds),
        |session, _| {
            let line = session.said?.line;
            line.rtt.map(|_| line.queueing_delay.as_secs_f64())
        },
    ),
    (
        "link_datagram_bytes",
        "Largest datagram that the path from a device carries, as it says, UDP payload",
        None,
        |session, _| session.said.map(|said| f64::from(said.line.datagram_bytes)),
    ),
    (
        "link_parity_ratio",
        "Bytes of parity for each byte that a device sent for the first time, over the last seconds",
        None,
        |_, sample| sample.window.parity_ratio.map(metric),
    ),
    (
        "link_overhead",
        "IP bytes that a device sent for each byte of media, over the last seconds",
        None,
        |_, sample| sample.window.overhead.map(metric),
    ),
    (
        "link_report_age",
        "Time since a device told of its link",
        Some(Unit::Seconds),
        |session, sample| {
            let ms = |said: Said| sample.at.0.saturating_sub(said.at.0);
            session.said.map(|said| ms(said) as f64 / 1e3)
        },
    ),
];

const COUNTS_OF_DEVICE: [CountOfDevice; 5] = [
    (
        "link_device_datagrams_sent",
        "Datagrams that a device says it sent in this session",
        |said| said.sent.datagrams,
    ),
    (
        "link_device_bytes_sent",
        "Bytes of UDP payload that a device says it sent in this session",
        |said| said.sent.bytes,
    ),
    (
        "link_device_packet_bytes_sent",
        "Bytes of KCP packets that a device says it sent for the first time in this session",
        |said| said.sent.packet_bytes,
    ),
    (
        "link_device_packet_bytes_resent",
        "Bytes of KCP packets that a device says it sent again in this session",
        |said| said.sent.resent_bytes,
    ),
    (
        "link_device_parity_bytes_sent",
        "Bytes of parity that a device says it sent in this session",
        |said| said.sent.parity_bytes,
    ),
];

const OF_STREAM: [OfStream; 4] = [
    (
        "link_live_lag",
        "How late live media is here; none where nothing is live",
        Some(Unit::Seconds),
        |stream| stream.live_lag.map(|lag| lag.as_secs_f64()),
    ),
    (
        "link_backlog_segments",
        "Segments that were announced and are not here",
        None,
        |stream| Some(stream.backlog.segments as f64),
    ),
    (
        "link_backlog_bytes",
        "Bytes of segments that were announced and are not here",
        None,
        |stream| Some(stream.backlog.bytes as f64),
    ),
    (
        "link_backlog_oldest_timestamp",
        "When the oldest of them begins",
        Some(Unit::Seconds),
        |stream| stream.backlog.oldest.map(|oldest| oldest.0 as f64 / 1e3),
    ),
];

impl Collector for Lines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.link.borrow().clone();
        let (at, taken) = (wall_now(), Instant::now());
        let sessions: Vec<_> = status
            .sessions
            .iter()
            .map(|session| (session, self.links.now(session, at, taken)))
            .collect();
        let gauge = || ConstGauge::new(0f64).metric_type();
        let counter = || ConstCounter::new(0u64).metric_type();
        for (name, help, unit, value) in OF_DEVICE {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), gauge())?;
            for (session, sample) in &sessions {
                if let Some(value) = value(session, sample) {
                    let labels = [("device", session.device.as_str())];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let said = || {
            let all = status.sessions.iter();
            all.filter_map(|session| Some((session.device.as_str(), session.said.as_ref()?)))
        };
        for (name, help, count) in COUNTS_OF_DEVICE {
            let mut family = encoder.encode_descriptor(name, help, None, counter())?;
            for (device, said) in said() {
                let labels = [("device", device)];
                ConstCounter::new(count(said)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Packets from a device rebuilt from parity in this session";
        let mut family =
            encoder.encode_descriptor("link_packets_recovered", help, None, counter())?;
        for session in &status.sessions {
            let labels = [("device", session.device.as_str())];
            let count = ConstCounter::new(session.packets_recovered);
            count.encode(family.encode_family(&labels)?)?;
        }
        let help = "Bytes of messages that a device says it sent in this session, by class";
        let mut family = encoder.encode_descriptor("link_class_bytes", help, None, counter())?;
        for (device, said) in said() {
            for (class, count) in said.sent.by_class.iter() {
                let labels = [("device", device), ("class", class.name())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        streams(&mut encoder, &status)
    }
}

fn streams(encoder: &mut DescriptorEncoder<'_>, status: &DownlinkStatus) -> fmt::Result {
    let all = || {
        let sessions = status.sessions.iter();
        sessions.flat_map(|session| session.streams.iter().map(|s| (session.device.as_str(), s)))
    };
    for (name, help, unit, value) in OF_STREAM {
        let kind = ConstGauge::new(0f64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (device, stream) in all().take(MAX_SERIES) {
            if let Some(value) = value(stream) {
                let labels = [("device", device), ("stream", stream.stream.as_str())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    let help = "Media bytes that a device says it sent of a stream in this session, by class";
    let kind = ConstCounter::new(0u64).metric_type();
    let mut family = encoder.encode_descriptor("link_stream_bytes", help, None, kind)?;
    for (device, stream) in all().take(MAX_SERIES) {
        for (class, count) in stream.by_class.iter().filter(|(c, _)| *c != Class::Control) {
            let labels = [
                ("device", device),
                ("stream", stream.stream.as_str()),
                ("class", class.name()),
            ];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let untold = ConstGauge::new(all().skip(MAX_SERIES).count() as i64);
    let help = "Streams of connected devices that are left out above, since there are too many";
    let kind = untold.metric_type();
    untold.encode(encoder.encode_descriptor("link_streams_untold", help, None, kind)?)
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;
    use crate::links::tests::session;

    fn shown(status: DownlinkStatus) -> String {
        let mut registry = Registry::with_prefix("penstock");
        registry.register_collector(Box::new(Lines {
            link: watch::channel(status).1,
            links: Links::default(),
        }));
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        shown
    }

    #[test]
    fn every_device_and_stream_is_told_with_its_units() {
        let mut silent = session("pole-8");
        silent.said = None;
        silent.streams = [].into();
        let shown = shown(DownlinkStatus {
            sessions: vec![session("pole-7"), silent],
            ..DownlinkStatus::default()
        });
        for line in [
            "# TYPE penstock_link_rate_bps gauge",
            "penstock_link_rate_bps{device=\"pole-7\"} 8000000.0",
            "penstock_link_delivery_bps{device=\"pole-7\"} 4000000.0",
            "penstock_link_loss{device=\"pole-7\"} 0.05",
            "penstock_link_device_rtt_seconds{device=\"pole-7\"} 0.1",
            "penstock_link_queueing_delay_seconds{device=\"pole-7\"} 0.005",
            "penstock_link_datagram_bytes{device=\"pole-7\"} 1400.0",
            "penstock_link_device_datagrams_sent_total{device=\"pole-7\"} 10",
            "penstock_link_device_bytes_sent_total{device=\"pole-7\"} 1100",
            "penstock_link_device_packet_bytes_sent_total{device=\"pole-7\"} 1000",
            "penstock_link_device_packet_bytes_resent_total{device=\"pole-7\"} 20",
            "penstock_link_device_parity_bytes_sent_total{device=\"pole-7\"} 50",
            "penstock_link_packets_recovered_total{device=\"pole-7\"} 3",
            "penstock_link_packets_recovered_total{device=\"pole-8\"} 3",
            "penstock_link_class_bytes_total{device=\"pole-7\",class=\"control\"} 100",
            "penstock_link_class_bytes_total{device=\"pole-7\",class=\"live\"} 900",
            "penstock_link_stream_bytes_total{device=\"pole-7\",stream=\"gate\",class=\"live\"} 900",
            "penstock_link_live_lag_seconds{device=\"pole-7\",stream=\"gate\"} 0.333",
            "penstock_link_backlog_segments{device=\"pole-7\",stream=\"gate\"} 2.0",
            "penstock_link_backlog_bytes{device=\"pole-7\",stream=\"gate\"} 5000.0",
            "penstock_link_backlog_oldest_timestamp_seconds{device=\"pole-7\",stream=\"gate\"} 1777636796.0",
            "penstock_link_streams_untold 0",
            "# EOF",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
        }
        assert!(
            !shown.contains("link_loss{device=\"pole-8\"}"),
            "what a device has not said is not told: {shown}"
        );
        assert!(
            !shown.contains("stream=\"gate\",class=\"control\""),
            "{shown}"
        );
    }

    #[test]
    fn series_are_bounded_and_what_is_left_out_is_counted() {
        let one = session("pole-7");
        let stream = &one.streams[0];
        let many = (0..MAX_SERIES + 5).map(|n| StreamStatus {
            stream: format!("cam-{n}").parse().unwrap(),
            ..stream.clone()
        });
        let shown = shown(DownlinkStatus {
            sessions: vec![SessionStatus {
                streams: many.collect(),
                ..one
            }],
            ..DownlinkStatus::default()
        });
        assert!(shown.contains("penstock_link_streams_untold 5\n"));
        let told = "penstock_link_backlog_bytes{";
        assert_eq!(shown.matches(told).count(), MAX_SERIES);
    }
}
