//! How fast scrubbing goes: its settings, and the loop that keeps to them. What is read, and what becomes of
//! damage, is the store's.

use std::{fmt, future::Future, str::FromStr, time::Duration};

use bytesize::ByteSize;
use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A share of a disk's reading that nobody notices, an SD card's included.
const DEFAULT_RATE: ByteRate = ByteRate(1_000_000);
/// Often enough that an edge that keeps a week or two still has what a hub's disk has lost.
const DEFAULT_EVERY: Duration = Duration::from_secs(7 * 24 * 3_600);
/// After a whole round in which nothing was due; and never longer than the interval between two readings.
const IDLE: Duration = Duration::from_secs(600);
/// However short the interval: the loop doesn't spin.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// After a failure of disk or catalog.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Bytes a second, written `4MB/s` or `4MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteRate(pub u64);

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let size: ByteSize = size
            .parse()
            .map_err(|_| format!("{text:?} is no rate, for example 4MB/s; 0 for none"))?;
        Ok(Self(size.as_u64()))
    }
}

impl TryFrom<String> for ByteRate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// How segments are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubSettings {
    /// 0: never.
    pub rate: ByteRate,
    /// Each segment at the earliest after this.
    pub every: Duration,
}

impl ScrubSettings {
    /// What is not said is as by default.
    pub fn resolve(rate: Option<ByteRate>, every: Option<Duration>) -> Self {
        Self {
            rate: rate.unwrap_or(DEFAULT_RATE),
            every: every.unwrap_or(DEFAULT_EVERY),
        }
    }

    /// The pause after a batch; `bytes` read, at the end of a round of the whole ledger or not.
    fn pause(&self, bytes: u64, round: bool) -> Duration {
        if bytes == 0 && round {
            return IDLE.min(self.every).max(LEAST_PAUSE);
        }
        let ms = bytes.saturating_mul(1_000) / self.rate.0.max(1);
        Duration::from_millis(ms).max(LEAST_PAUSE)
    }
}

/// Calls `batch` again and again, at the settings' rate, until `stop`. It gives the bytes that it read and
/// whether it reached the ledger's end; None: it failed, and has said so.
pub async fn keep_pace<F: Future<Output = Option<(u64, bool)>>>(
    settings: ScrubSettings,
    stop: CancellationToken,
    mut batch: impl FnMut() -> F,
) {
    if settings.rate.0 == 0 {
        return stop.cancelled().await;
    }
    loop {
        let pause = match batch().await {
            Some((bytes, round)) => settings.pause(bytes, round),
            None => FAILED_PAUSE,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_a_second() {
        for (text, rate) in [
            ("4MB/s", 4_000_000),
            ("1 MiB/s", 1 << 20),
            ("0", 0),
            ("7kB", 7_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteRate(rate)), "{text}");
        }
        for text in ["", "fast", "4MB/min", "-1MB/s"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_rate_holds_and_an_idle_round_rests() {
        let settings = ScrubSettings::resolve(Some(ByteRate(4_000_000)), None);
        assert_eq!(settings.pause(8_000_000, false), Duration::from_secs(2));
        assert_eq!(settings.pause(0, false), LEAST_PAUSE);
        assert_eq!(settings.pause(0, true), IDLE);
        let often = ScrubSettings::resolve(None, Some(Duration::from_secs(1)));
        assert_eq!(often.pause(0, true), Duration::from_secs(1));
        assert_eq!(often.pause(500_000, true), Duration::from_millis(500));
    }
}
