//! A link's last hour: one [`Sample`] every ten seconds, made of what the ends of a session count.
//!
//! Values only: who takes readings, and for how many links, is the programs' business. No clock is read here.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

pub use link_proto::{
    messages::{LineReport, Report, SentReport, StreamReport},
    replicate::class::{ByClass, Class},
};
use model::WallTime;
use serde::{Serialize, Serializer, ser::SerializeMap};
use store::Backlog;

/// A reading is taken this often.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// Samples of one link: an hour's. Some 62 KB.
pub const MAX_SAMPLES: usize = 360;
/// What is older is forgotten.
pub const KEPT: Duration = Duration::from_secs(3_600);
/// Counts are compared over so much time at least, or one datagram more or less would be seen.
const LEAST_WINDOW: Duration = Duration::from_secs(2);

/// What a session shows at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub at: WallTime,
    /// The same on the monotonic clock.
    pub taken: Instant,
    /// When the session began: another one counts anew.
    pub session: WallTime,
    /// None where the device has not told of it.
    pub line: Option<LineReport>,
    pub sent: SentReport,
    /// Packets that the hub rebuilt from parity; None where that is not known here.
    pub recovered: Option<u64>,
    /// None where nothing is live.
    pub live_lag: Option<Duration>,
    pub backlog: Backlog,
    /// Bytes of IP and UDP headers before each datagram's payload.
    pub header_bytes: u64,
}

/// How a link stood, as JSON shows it. `null` is what was not known, or did not apply.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    #[serde(rename = "at_ms")]
    pub at: WallTime,
    /// What the pacer let out, and what arrived, in bits per second of UDP payload.
    #[serde(serialize_with = "whole")]
    pub rate_bps: Option<f32>,
    #[serde(serialize_with = "whole")]
    pub delivery_bps: Option<f32>,
    /// Share of datagrams lost, 0 to 1.
    pub loss: Option<f32>,
    pub rtt_ms: Option<f32>,
    pub queueing_delay_ms: Option<f32>,
    /// The largest datagram that the path was known to carry, in bytes of UDP payload.
    pub datagram_bytes: Option<u32>,
    /// How late live media was at the hub, of the latest stream.
    pub live_lag_ms: Option<f32>,
    #[serde(serialize_with = "backlog")]
    pub backlog: Backlog,
    /// What was counted since the sample before; nulls in a session's first.
    #[serde(flatten)]
    pub window: Window,
}

/// What was counted over some seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Window {
    /// Bits per second that the edge sent, with IP and UDP headers; and bits of media in them.
    #[serde(serialize_with = "whole")]
    pub sent_bps: Option<f32>,
    #[serde(serialize_with = "whole")]
    pub media_bps: Option<f32>,
    /// Bytes of parity for each byte sent for the first time.
    pub parity_ratio: Option<f32>,
    /// Bytes sent again for each of them.
    pub resent_ratio: Option<f32>,
    /// Packets that the hub rebuilt from parity.
    pub recovered: Option<u32>,
    /// IP bytes sent for each byte of media.
    pub overhead: Option<f32>,
    /// Shares of the messages' bytes, by class.
    pub shares: Option<Shares>,
}

/// Each class' share, 0 to 1, in the order of [`Class::ALL`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares([f32; Class::ALL.len()]);

impl Shares {
    fn of(counts: &ByClass) -> Option<Self> {
        let total = counts.total();
        let share = |class| rounded(counts.get(class) as f64 / total as f64);
        (total > 0).then(|| Self(Class::ALL.map(share)))
    }
}

impl Serialize for Shares {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (class, share) in Class::ALL.iter().zip(self.0) {
            map.serialize_entry(class.name(), &share)?;
        }
        map.end()
    }
}

/// The samples of one link.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// At most [`MAX_SAMPLES`].
    samples: VecDeque<Sample>,
    last: Option<Reading>,
}

impl History {
    /// One more sample.
    pub fn take(&mut self, reading: Reading) {
        let sample = self.now(&reading);
        if self.samples.len() >= MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.last = Some(reading);
    }

    /// What a sample would be now; where the last one was just taken, with its counts.
    pub fn now(&self, reading: &Reading) -> Sample {
        let before = self.last.filter(|last| last.session == reading.session);
        let window = match before {
            None => Window::default(),
            Some(before) => {
                let passed = reading.taken.saturating_duration_since(before.taken);
                if passed >= LEAST_WINDOW {
                    Window::between(&before, reading, passed)
                } else {
                    self.samples.back().map(|s| s.window).unwrap_or_default()
                }
            }
        };
        let line = reading.line;
        let delivery_bps = line.map(|line| line.delivery_bps as f32);
        let rtt = line.and_then(|line| line.rtt);
        Sample {
            at: reading.at,
            rate_bps: line.map(|line| line.rate_bps as f32),
            delivery_bps: delivery_bps.filter(|&bps| bps > 0.0),
            loss: line.map(|line| rounded(line.loss())),
            rtt_ms: rtt.map(millis),
            // Without a round trip nothing is known of it.
            queueing_delay_ms: rtt.and(line).map(|line| millis(line.queueing_delay)),
            datagram_bytes: line.map(|line| line.datagram_bytes),
            live_lag_ms: reading.live_lag.map(millis),
            backlog: reading.backlog,
            window,
        }
    }

    /// Forgets what is older than [`KEPT`]; false: nothing is left.
    pub fn keep_hour(&mut self, now: WallTime) -> bool {
        let kept_ms = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        let oldest = WallTime(now.0.saturating_sub(kept_ms));
        // The clock may have been set back: what seems to come is older than it looks, and bounded all the same.
        self.samples.retain(|sample| sample.at >= oldest);
        !self.samples.is_empty()
    }

    /// Oldest first.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = &Sample> {
        self.samples.iter()
    }

    pub fn last(&self) -> Option<&Sample> {
        self.samples.back()
    }
}

impl Window {
    fn between(before: &Reading, now: &Reading, passed: Duration) -> Self {
        let sent = now.sent.since(&before.sent);
        let bps = |bytes: u64| Some((bytes as f64 * 8.0 / passed.as_secs_f64()) as f32);
        let ratio = |bytes: u64, of: u64| (of > 0).then(|| rounded(bytes as f64 / of as f64));
        let ip_bytes = sent.bytes + sent.datagrams.saturating_mul(now.header_bytes);
        let media = sent.by_class.media();
        Self {
            sent_bps: bps(ip_bytes),
            media_bps: bps(media),
            parity_ratio: ratio(sent.parity_bytes, sent.packet_bytes),
            resent_ratio: ratio(sent.resent_bytes, sent.packet_bytes),
            recovered: now.recovered.map(|count| {
                let more = count.saturating_sub(before.recovered.unwrap_or(0));
                u32::try_from(more).unwrap_or(u32::MAX)
            }),
            overhead: ratio(ip_bytes, media),
            shares: Shares::of(&sent.by_class),
        }
    }
}

/// Bytes of IP and UDP headers on the way to an address (RFC 791, RFC 8200, RFC 768).
pub(crate) fn header_bytes(to: std::net::IpAddr) -> u64 {
    match to.to_canonical() {
        std::net::IpAddr::V4(_) => 20 + 8,
        std::net::IpAddr::V6(_) => 40 + 8,
    }
}

/// A sample's number as metrics show it: with its four places, not with what 32 bits make of them.
pub fn metric(value: f32) -> f64 {
    (f64::from(value) * 1e4).round() / 1e4
}

/// Four places are more than is measured.
fn rounded(value: f64) -> f32 {
    ((value * 1e4).round() / 1e4) as f32
}

fn millis(delay: Duration) -> f32 {
    rounded(delay.as_secs_f64() * 1e3)
}

/// Without a fraction.
fn whole<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|value| value as u64).serialize(serializer)
}

/// As the API shows it.
#[derive(Serialize)]
struct ShownBacklog {
    segments: u64,
    bytes: u64,
    oldest_ms: Option<WallTime>,
}

/// A backlog in JSON: `segments`, `bytes`, `oldest_ms`.
pub fn backlog<S: Serializer>(backlog: &Backlog, serializer: S) -> Result<S::Ok, S::Error> {
    let shown = ShownBacklog {
        segments: backlog.segments,
        bytes: backlog.bytes,
        oldest_ms: backlog.oldest,
    };
    shown.serialize(serializer)
}

/// Counts in JSON: a number for each class.
pub fn by_class<S: Serializer>(counts: &ByClass, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(Class::ALL.len()))?;
    for (class, count) in counts.iter() {
        map.serialize_entry(class.name(), &count)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: u64, start: Instant) -> Reading {
        let mut by_class = ByClass::default();
        by_class.add(Class::Control, 100 * second);
        by_class.add(Class::Live, 900_000 * second);
        Reading {
            at: WallTime(1_777_622_400_000 + 1_000 * second as i64),
            taken: start + Duration::from_secs(second),
            session: WallTime(1_777_622_400_000),
            line: Some(LineReport {
                rate_bps: 9_000_000,
                delivery_bps: 0,
                loss_ppm: 12_345,
                rtt: Some(Duration::from_micros(40_500)),
                queueing_delay: Duration::from_millis(3),
                datagram_bytes: 1_200,
            }),
            sent: SentReport {
                datagrams: 1_000 * second,
                bytes: 1_100_000 * second,
                packet_bytes: 1_000_000 * second,
                resent_bytes: 20_000 * second,
                parity_bytes: 50_000 * second,
                by_class,
            },
            recovered: Some(7 * second),
            live_lag: None,
            backlog: Backlog {
                segments: 2,
                bytes: 5,
                oldest: None,
            },
            header_bytes: 28,
        }
    }

    #[test]
    fn a_sample_tells_what_was_counted_since_the_one_before() {
        let start = Instant::now();
        let mut history = History::default();
        history.take(reading(0, start));
        assert_eq!(history.last().unwrap().window, Window::default());
        history.take(reading(10, start));
        let shown = serde_json::to_string(history.last().unwrap()).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            shown,
            serde_json::json!({
                "at_ms": 1_777_622_410_000_i64,
                "rate_bps": 9_000_000, "delivery_bps": null, "loss": 0.0123,
                "rtt_ms": 40.5, "queueing_delay_ms": 3.0,
                "datagram_bytes": 1_200, "live_lag_ms": null,
                "backlog": { "segments": 2, "bytes": 5, "oldest_ms": null },
                "sent_bps": 9_024_000, "media_bps": 7_200_000,
                "parity_ratio": 0.05, "resent_ratio": 0.02, "recovered": 70,
                "overhead": 1.2533,
                "shares": {
                    "control": 0.0001, "event": 0.0, "live": 0.9999, "want": 0.0, "backfill": 0.0,
                },
            })
        );
        let soon = history.now(&reading(11, start));
        assert_eq!(soon.window, history.last().unwrap().window, "too soon");
        assert_eq!(history.now(&reading(15, start)).window.recovered, Some(35));
    }

    #[test]
    fn another_session_counts_anew_and_an_idle_one_divides_by_nothing() {
        let start = Instant::now();
        let mut history = History::default();
        history.take(reading(10, start));
        let mut other = reading(1, start);
        other.session = WallTime(1_777_622_500_000);
        other.taken = start + Duration::from_secs(20);
        history.take(other);
        assert_eq!(history.last().unwrap().window, Window::default());
        let idle = Reading {
            taken: start + Duration::from_secs(30),
            ..other
        };
        let window = history.now(&idle).window;
        assert_eq!((window.sent_bps, window.media_bps), (Some(0.0), Some(0.0)));
        assert_eq!((window.overhead, window.parity_ratio), (None, None));
        assert_eq!(window.shares, None);
    }

    #[test]
    fn what_a_device_has_not_told_is_null() {
        let start = Instant::now();
        let silent = Reading {
            line: None,
            sent: SentReport::default(),
            ..reading(0, start)
        };
        let shown = History::default().now(&silent);
        assert_eq!(
            (shown.rate_bps, shown.loss, shown.rtt_ms),
            (None, None, None)
        );
        assert_eq!(shown.queueing_delay_ms, None);
        assert!(size_of::<Sample>() * MAX_SAMPLES <= 64_000);
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let start = Instant::now();
        let mut history = History::default();
        for n in 0..2 * MAX_SAMPLES as u64 {
            history.take(reading(10 * n, start));
        }
        assert_eq!(history.samples().len(), MAX_SAMPLES);
        let last = history.last().unwrap().at;
        assert!(history.keep_hour(WallTime(last.0 + 1_800_000)));
        assert_eq!(history.samples().len(), 181);
        assert!(!history.keep_hour(WallTime(last.0 + 3_600_001)));
    }
}
