//! Media time, wall time, and monotonic time as it is kept: [`BootTime`]. Within a program monotonic time is
//! `std::time::Instant`, always handed in.
//!
//! The three never mix (invariant 8): there is no conversion between them here but the arithmetic of
//! durations.

use std::{
    fmt,
    ops::{Add, AddAssign, Sub},
    str::FromStr,
    time::Duration,
};

use chrono::{DateTime, Datelike, Months, NaiveDate, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// The clock of MPEG-TS: 90 kHz.
pub const TICKS_PER_SECOND: i64 = 90_000;

/// A point on a camera's clock in 90 kHz ticks, unwrapped to 64 bits; its zero means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaTime(pub i64);

/// A span on a camera's clock in 90 kHz ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaDuration(pub i64);

impl MediaDuration {
    pub const ZERO: Self = Self(0);

    /// From whole milliseconds.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(90))
    }

    /// From a duration of a program's settings; below a tick is cut off.
    pub fn from_duration(d: Duration) -> Self {
        let ticks = d.as_nanos().saturating_mul(9) / 100_000;
        Self(i64::try_from(ticks).unwrap_or(i64::MAX))
    }

    /// Seconds, for display and EXTINF.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / TICKS_PER_SECOND as f64
    }

    /// Whole milliseconds, rounded to the nearest.
    pub const fn as_millis(self) -> i64 {
        self.0.saturating_add(45).div_euclid(90)
    }

    /// Seconds rounded to the nearest whole, as TARGETDURATION compares them (RFC 8216bis 4.4.3.1).
    pub const fn rounded_secs(self) -> i64 {
        self.0
            .saturating_add(TICKS_PER_SECOND / 2)
            .div_euclid(TICKS_PER_SECOND)
    }

    /// As a program's duration; negative becomes zero.
    pub fn to_duration(self) -> Duration {
        Duration::from_nanos((self.0.max(0) as u64).saturating_mul(100_000) / 9)
    }
}

impl Sub for MediaTime {
    type Output = MediaDuration;
    fn sub(self, earlier: Self) -> MediaDuration {
        MediaDuration(self.0.saturating_sub(earlier.0))
    }
}

impl Add<MediaDuration> for MediaTime {
    type Output = Self;
    fn add(self, d: MediaDuration) -> Self {
        Self(self.0.saturating_add(d.0))
    }
}

impl Sub<MediaDuration> for MediaTime {
    type Output = Self;
    fn sub(self, d: MediaDuration) -> Self {
        Self(self.0.saturating_sub(d.0))
    }
}

impl Add for MediaDuration {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for MediaDuration {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for MediaDuration {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// A point on our own clock: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(pub i64);

/// A wall time that could not be read. Whoever typed it is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: give RFC 3339 (2026-05-01T08:00:00Z) or Unix milliseconds")]
pub struct WallTimeError(String);

impl WallTime {
    /// The last millisecond of the year 9999: what a date can be written of.
    pub const LATEST: Self = Self(253_402_300_799_999);

    /// The first moment of 2024: a clock that shows less was never set.
    pub const PLAUSIBLE: Self = Self(1_704_067_200_000);

    /// Whether a clock that shows this may have been set.
    pub fn is_plausible(self) -> bool {
        (Self::PLAUSIBLE..=Self::LATEST).contains(&self)
    }

    /// The nearest time from 1970 to 9999. Times outside come from clocks that were never set, and no list
    /// or peer takes them.
    pub fn in_calendar(self) -> Self {
        Self(self.0.clamp(0, Self::LATEST.0))
    }

    /// The wall time `d` of media after this one.
    pub fn plus(self, d: MediaDuration) -> Self {
        Self(self.0.saturating_add(d.as_millis()))
    }

    /// The wall time `d` of media before this one.
    pub fn minus(self, d: MediaDuration) -> Self {
        Self(self.0.saturating_sub(d.as_millis()))
    }

    /// The month around this time, where months begin at midnight UTC of a day (1 to 28): when it began, and when
    /// the next one begins. None for another day, or outside the years chrono knows.
    pub fn month(self, begins_on: u32) -> Option<(Self, Self)> {
        let midnight = |date: NaiveDate| {
            let at = date.and_hms_opt(0, 0, 0)?.and_utc();
            Some(Self(at.timestamp_millis()))
        };
        let today = self.to_utc()?.date_naive();
        let this = today.with_day(begins_on).filter(|_| begins_on <= 28)?;
        let began = match today.day() >= begins_on {
            true => this,
            false => this.checked_sub_months(Months::new(1))?,
        };
        let next = began.checked_add_months(Months::new(1))?;
        Some((midnight(began)?, midnight(next)?))
    }

    /// As a date, for PROGRAM-DATE-TIME and file names; None outside the years chrono knows.
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_millis(self.0)
    }
}

/// One boot of one machine: a hash of the kernel's name for it, never below nought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId(pub i64);

/// A point on the clock that runs from a machine's boot on and that no step moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTime {
    pub boot: BootId,
    /// Milliseconds since that boot, sleep included.
    pub ms: i64,
}

impl BootTime {
    /// The boot time `d` of media after this one.
    pub fn plus(self, d: MediaDuration) -> Self {
        Self {
            ms: self.ms.saturating_add(d.as_millis()),
            ..self
        }
    }

    /// The wall time of this point where the boot began at `zero`.
    pub fn wall(self, zero: WallTime) -> WallTime {
        WallTime(zero.0.saturating_add(self.ms)).in_calendar()
    }
}

impl FromStr for WallTime {
    type Err = WallTimeError;
    fn from_str(text: &str) -> Result<Self, WallTimeError> {
        let wrong = || WallTimeError(text.chars().take(64).collect());
        // A time of five digits' years would be shown as no RFC 3339 has it, and could not be read again.
        let dated = |t: &DateTime<Utc>| (0..=9_999).contains(&t.year());
        if let Ok(ms) = text.parse::<i64>() {
            return DateTime::from_timestamp_millis(ms)
                .filter(dated)
                .map(|_| Self(ms))
                .ok_or_else(wrong);
        }
        DateTime::parse_from_rfc3339(text)
            .ok()
            .filter(|t| dated(&t.to_utc()))
            .map(|t| Self(t.timestamp_millis()))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_utc() {
            Some(t) => f.write_str(&t.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{} ms", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_on_any_day_that_each_has() {
        let at = |text: &str| text.parse::<WallTime>().unwrap();
        for (time, day, began, next) in [
            (
                "2026-03-01T00:00:00Z",
                1,
                "2026-03-01T00:00:00Z",
                "2026-04-01T00:00:00Z",
            ),
            (
                "2026-01-09T12:00:00Z",
                10,
                "2025-12-10T00:00:00Z",
                "2026-01-10T00:00:00Z",
            ),
            (
                "2024-02-29T23:59:59Z",
                28,
                "2024-02-28T00:00:00Z",
                "2024-03-28T00:00:00Z",
            ),
        ] {
            assert_eq!(at(time).month(day), Some((at(began), at(next))), "{time}");
        }
        assert_eq!(at("2026-03-30T00:00:00Z").month(29), None);
        assert_eq!(at("2026-03-30T00:00:00Z").month(0), None);
    }

    #[test]
    fn wall_time_reads_what_it_writes_and_milliseconds() {
        let t: WallTime = "2026-05-01T08:00:00.250Z".parse().unwrap();
        assert_eq!(t.to_string(), "2026-05-01T08:00:00.250Z");
        assert_eq!(t.0.to_string().parse::<WallTime>().unwrap(), t);
        assert_eq!(
            "2026-05-01T10:00:00.250+02:00".parse::<WallTime>().unwrap(),
            t
        );
        for bad in [
            "",
            "yesterday",
            "2026-05-01",
            "99999999999999999",
            "253402300800000",
            "9999-12-31T23:59:59-01:00",
        ] {
            assert!(bad.parse::<WallTime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_convert_and_round() {
        assert_eq!(
            MediaDuration::from_duration(Duration::from_millis(333)),
            MediaDuration(29_970)
        );
        assert_eq!(
            MediaDuration(29_970).to_duration(),
            Duration::from_millis(333)
        );
        assert_eq!(MediaDuration(584_100).rounded_secs(), 6); // 6.49 s
        assert_eq!(MediaDuration(585_000).rounded_secs(), 7); // 6.5 s
        assert_eq!(MediaDuration(89).as_millis(), 1);
    }
}
