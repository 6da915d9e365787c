//! [`Report`]: what an edge says of its link, for whoever watches it. Nothing is done about it.
//!
//! It is a claim of one device. Numbers beyond sense are cut to what makes sense rather than refused: a device
//! whose clock or line is odd is to be seen, not sent away.

use std::time::Duration;

use model::{StreamName, WallTime};

use super::{ProtocolError, check, wire};
use crate::{
    SessionStats,
    replicate::class::{ByClass, Class},
};

/// Most streams in one report: it stays below 2 KB, and a device with more tells of the others in the next ones.
pub const MAX_REPORTED_STREAMS: usize = 16;

/// Highest count: a thousand years at 200 Mbit/s, and exact in JSON.
const MAX_COUNT: u64 = 1 << 53;
/// Highest rate: a terabit a second.
const MAX_RATE_BPS: u64 = 1_000_000_000_000;
/// Longest delay.
const MAX_DELAY: Duration = Duration::from_secs(600);
/// Largest UDP payload.
const MAX_UDP_BYTES: u32 = 65_535;
/// All of it.
const MILLION: u32 = 1_000_000;

/// How the link stands, and what was sent since the session began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// By the clock that stamps what live sources record, as this was said.
    pub clock: WallTime,
    pub line: LineReport,
    pub sent: SentReport,
    /// Some of the streams; at most [`MAX_REPORTED_STREAMS`] on the wire.
    pub streams: Vec<StreamReport>,
}

/// The way to the hub, as the edge measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineReport {
    /// What the pacer lets out, in bits per second of UDP payload.
    pub rate_bps: u64,
    /// What arrived lately, in the same; nought: not known.
    pub delivery_bps: u64,
    /// Share of datagrams lost, in millionths.
    pub loss_ppm: u32,
    /// None before the first answer.
    pub rtt: Option<Duration>,
    /// What waits in the path's queues beyond the bare delay.
    pub queueing_delay: Duration,
    /// The largest datagram that the path is known to carry, in bytes of UDP payload.
    pub datagram_bytes: u32,
}

/// Counts since the session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SentReport {
    pub datagrams: u64,
    /// UDP payload of all datagrams.
    pub bytes: u64,
    /// In KCP packets: sent for the first time, and again.
    pub packet_bytes: u64,
    pub resent_bytes: u64,
    pub parity_bytes: u64,
    /// Messages handed to the channels: media by class, and control.
    pub by_class: ByClass,
}

/// One stream, counted since the session began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReport {
    pub stream: StreamName,
    /// A source that can't wait writes it now.
    pub live: bool,
    pub by_class: ByClass,
}

impl LineReport {
    pub fn of(stats: &SessionStats) -> Self {
        Self {
            rate_bps: stats.rate_bps,
            delivery_bps: stats.delivery_bps,
            loss_ppm: (f64::from(stats.loss) * f64::from(MILLION)) as u32,
            rtt: stats.rtt,
            queueing_delay: stats.queueing_delay,
            datagram_bytes: u32::try_from(stats.datagram_bytes).unwrap_or(u32::MAX),
        }
    }

    /// Share of datagrams lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        f64::from(self.loss_ppm) / f64::from(MILLION)
    }
}

impl SentReport {
    pub fn of(stats: &SessionStats, by_class: ByClass) -> Self {
        Self {
            datagrams: stats.datagrams_sent,
            bytes: stats.bytes_sent,
            packet_bytes: stats.packet_bytes_sent,
            resent_bytes: stats.packet_bytes_resent,
            parity_bytes: stats.parity_bytes_sent,
            by_class,
        }
    }

    /// What came on top of an earlier count.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_sub(earlier.datagrams),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            packet_bytes: self.packet_bytes.saturating_sub(earlier.packet_bytes),
            resent_bytes: self.resent_bytes.saturating_sub(earlier.resent_bytes),
            parity_bytes: self.parity_bytes.saturating_sub(earlier.parity_bytes),
            by_class: self.by_class.since(&earlier.by_class),
        }
    }

    /// Counts that never go back: the higher one of each.
    pub fn raise(&mut self, to: &Self) {
        for (held, to) in [
            (&mut self.datagrams, to.datagrams),
            (&mut self.bytes, to.bytes),
            (&mut self.packet_bytes, to.packet_bytes),
            (&mut self.resent_bytes, to.resent_bytes),
            (&mut self.parity_bytes, to.parity_bytes),
        ] {
            *held = to.max(*held);
        }
        self.by_class.raise(&to.by_class);
    }
}

pub(super) fn from_wire(m: wire::Report) -> Result<Report, ProtocolError> {
    check::at_most("reported streams", m.streams.len(), MAX_REPORTED_STREAMS)?;
    let stream = |s: wire::StreamReport| {
        Ok(StreamReport {
            stream: check::stream(s.stream)?,
            live: s.live,
            by_class: by_class(s.by_class.unwrap_or_default()),
        })
    };
    Ok(Report {
        clock: WallTime(m.clock_ms).in_calendar(),
        line: LineReport {
            rate_bps: m.rate_bps.min(MAX_RATE_BPS),
            delivery_bps: m.delivery_bps.min(MAX_RATE_BPS),
            loss_ppm: m.loss_ppm.min(MILLION),
            rtt: m.rtt_us.map(delay),
            queueing_delay: delay(m.queueing_delay_us),
            datagram_bytes: m.datagram_bytes.min(MAX_UDP_BYTES),
        },
        sent: SentReport {
            datagrams: count(m.datagrams),
            bytes: count(m.bytes),
            packet_bytes: count(m.packet_bytes),
            resent_bytes: count(m.resent_bytes),
            parity_bytes: count(m.parity_bytes),
            by_class: by_class(m.by_class.unwrap_or_default()),
        },
        streams: m
            .streams
            .into_iter()
            .map(stream)
            .collect::<Result<_, ProtocolError>>()?,
    })
}

pub(super) fn to_wire(report: &Report) -> wire::Report {
    let Report {
        clock,
        line,
        sent,
        streams,
    } = report;
    let streams = streams.iter().take(MAX_REPORTED_STREAMS);
    wire::Report {
        clock_ms: clock.0,
        rate_bps: line.rate_bps,
        delivery_bps: line.delivery_bps,
        loss_ppm: line.loss_ppm,
        rtt_us: line.rtt.map(micros),
        queueing_delay_us: micros(line.queueing_delay),
        datagram_bytes: line.datagram_bytes,
        datagrams: sent.datagrams,
        bytes: sent.bytes,
        packet_bytes: sent.packet_bytes,
        resent_bytes: sent.resent_bytes,
        parity_bytes: sent.parity_bytes,
        by_class: Some(by_class_to_wire(&sent.by_class)),
        streams: streams
            .map(|s| wire::StreamReport {
                stream: s.stream.to_string(),
                live: s.live,
                by_class: Some(by_class_to_wire(&s.by_class)),
            })
            .collect(),
    }
}

fn by_class(m: wire::ByClass) -> ByClass {
    let mut counts = ByClass::default();
    for (class, value) in [
        (Class::Control, m.control),
        (Class::Event, m.event),
        (Class::Live, m.live),
        (Class::Want, m.want),
        (Class::Backfill, m.backfill),
    ] {
        counts.add(class, count(value));
    }
    counts
}

fn by_class_to_wire(counts: &ByClass) -> wire::ByClass {
    wire::ByClass {
        control: counts.get(Class::Control),
        event: counts.get(Class::Event),
        live: counts.get(Class::Live),
        want: counts.get(Class::Want),
        backfill: counts.get(Class::Backfill),
    }
}

fn count(value: u64) -> u64 {
    value.min(MAX_COUNT)
}

fn delay(us: u64) -> Duration {
    Duration::from_micros(us).min(MAX_DELAY)
}

fn micros(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::ToHub;

    #[test]
    fn what_is_beyond_sense_is_cut() {
        let report = Report {
            clock: WallTime(i64::MIN),
            line: LineReport {
                rate_bps: u64::MAX,
                delivery_bps: u64::MAX,
                loss_ppm: u32::MAX,
                rtt: Some(Duration::MAX),
                queueing_delay: Duration::MAX,
                datagram_bytes: u32::MAX,
            },
            sent: SentReport {
                bytes: u64::MAX,
                ..SentReport::default()
            },
            streams: Vec::new(),
        };
        let read = ToHub::decode(ToHub::Report(report).encode());
        let Ok(Some(ToHub::Report(read))) = read else {
            panic!("{read:?}");
        };
        assert_eq!(read.clock, WallTime(i64::MIN).in_calendar());
        let most = LineReport {
            rate_bps: MAX_RATE_BPS,
            delivery_bps: MAX_RATE_BPS,
            loss_ppm: MILLION,
            rtt: Some(MAX_DELAY),
            queueing_delay: MAX_DELAY,
            datagram_bytes: MAX_UDP_BYTES,
        };
        assert_eq!((read.line, read.sent.bytes), (most, MAX_COUNT));
    }

    #[test]
    fn more_streams_than_a_report_has_are_refused_and_never_sent() {
        let stream = StreamReport {
            stream: "gate".parse().unwrap(),
            live: true,
            by_class: ByClass::default(),
        };
        let report = Report {
            streams: vec![stream; MAX_REPORTED_STREAMS + 1],
            ..Report::default()
        };
        let mut wire = to_wire(&report);
        assert_eq!(wire.streams.len(), MAX_REPORTED_STREAMS);
        wire.streams.push(wire.streams[0].clone());
        assert!(matches!(
            from_wire(wire),
            Err(ProtocolError::TooLong { length: 17, .. })
        ));
    }

    #[test]
    fn counts_are_taken_as_what_came_on_top() {
        let mut by_class = ByClass::default();
        by_class.add(Class::Live, 700);
        let before = SentReport {
            datagrams: 1,
            bytes: 1_000,
            by_class,
            ..SentReport::default()
        };
        let mut after = before;
        after.bytes += 500;
        after.by_class.add(Class::Live, 300);
        let since = after.since(&before);
        assert_eq!((since.datagrams, since.bytes), (0, 500));
        assert_eq!(since.by_class.media(), 300);
        let mut held = after;
        held.raise(&before);
        assert_eq!(held, after, "counts do not go back");
    }
}
