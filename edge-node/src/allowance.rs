//! A metered line: what has gone over it this month, and what may go once the allowance is spent.
//!
//! [`Ledger`] is pure. The file is written ahead of the counting, a step at a time: a month costs about a
//! thousand small writes at most, and a kill counts up to a step too much, never too little. Clocks: a month
//! that has begun never goes back, and a clock that was never set begins none.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use link::uplink::{Allowed, Orders, UplinkStatus};
use model::WallTime;
use program::{clock::wall_now, durable};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Where the count is kept, in the identity's folder: segments may be wiped, and it stays.
const FILE: &str = "allowance.toml";
/// The allowance is looked at this often: what goes over it is what the line carries in so long.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Headers of IPv4 and UDP on each datagram.
const HEADER_BYTES: u64 = 28;
/// The file is ahead of the count by a share of the allowance, and at least by this.
const MIN_STEP_BYTES: u64 = 1 << 20;
const STEPS: u64 = 1_024;

/// What goes once the allowance is spent. Comparing and announcing always go on, so that the hub knows what it
/// lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WhenSpent {
    /// Live, no backfill.
    LiveOnly,
    /// Segments of events; as long as no source tells of events, as good as nothing.
    EventsOnly,
    /// No media.
    Nothing,
}

impl WhenSpent {
    fn allowed(self) -> Allowed {
        match self {
            Self::LiveOnly => Allowed::LiveOnly,
            Self::EventsOnly => Allowed::EventsOnly,
            Self::Nothing => Allowed::Nothing,
        }
    }

    fn what_waits(self) -> &'static str {
        match self {
            Self::LiveOnly => "all but live video",
            Self::EventsOnly => "all video but events",
            Self::Nothing => "all video",
        }
    }
}

/// What may go over a line in a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Both ways, with the headers of IP and UDP.
    pub(crate) bytes: u64,
    /// The day on which it begins anew at midnight UTC, 1 to 28.
    pub(crate) begins_on: u32,
    pub(crate) when_spent: WhenSpent,
}

/// What was counted of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ledger {
    /// When the month began, Unix milliseconds; nought: no clock was set yet.
    month_ms: i64,
    /// Bytes of it, or up to a step more.
    bytes: u64,
}

impl Ledger {
    /// Counts. True: a month has begun.
    fn note(&mut self, now: WallTime, allowance: &Allowance, bytes: u64) -> bool {
        let began = now
            .is_plausible()
            .then(|| now.month(allowance.begins_on))
            .flatten()
            .map(|(began, _)| began.0);
        let anew = began.is_some_and(|began| began > self.month_ms);
        if let Some(began) = began.filter(|_| anew) {
            // What went while no month was known is this one's.
            let known = self.month_ms != 0;
            self.month_ms = began;
            self.bytes = if known { 0 } else { self.bytes };
        }
        self.bytes = self.bytes.saturating_add(bytes);
        anew
    }

    fn is_spent(&self, allowance: &Allowance) -> bool {
        self.bytes >= allowance.bytes
    }

    /// When the next month begins.
    fn until(&self, allowance: &Allowance) -> Option<WallTime> {
        let month = WallTime(self.month_ms).month(allowance.begins_on);
        month.map(|(_, next)| next).filter(|_| self.month_ms != 0)
    }

    /// What is to be written before so much is counted; None: what is written covers it.
    fn cover(&self, written: &Self, allowance: &Allowance) -> Option<Self> {
        let step = (allowance.bytes / STEPS).max(MIN_STEP_BYTES);
        let covered = written.month_ms == self.month_ms && written.bytes > self.bytes;
        (!covered).then(|| Self {
            bytes: self.bytes.saturating_add(step),
            ..*self
        })
    }
}

/// Bytes on the line so far, as IP packets; counters begin anew with each uplink.
fn on_the_line(status: &UplinkStatus) -> u64 {
    let counters = &status.counters;
    let datagrams = counters.datagrams_sent + counters.datagrams_received;
    counters.bytes_sent + counters.bytes_received + HEADER_BYTES * datagrams
}

/// The ledger with its file.
#[derive(Debug)]
pub(crate) struct Meter {
    path: PathBuf,
    allowance: Allowance,
    ledger: Ledger,
    written: Ledger,
}

impl Meter {
    /// Reads what was counted.
    pub(crate) fn open(folder: &Path, allowance: Allowance) -> io::Result<Self> {
        let path = folder.join(FILE);
        let ledger = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                let why = format!(
                    "{}: {error}; delete it to begin the count anew",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, why)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ledger::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            allowance,
            ledger,
            written: ledger,
        })
    }

    /// Counts, and writes where that is due.
    fn note(&mut self, now: WallTime, bytes: u64) -> io::Result<()> {
        self.ledger.note(now, &self.allowance, bytes);
        match self.ledger.cover(&self.written, &self.allowance) {
            Some(ahead) => self.write(ahead),
            None => Ok(()),
        }
    }

    /// The exact count, as the program ends.
    fn close(&mut self) -> io::Result<()> {
        self.write(self.ledger)
    }

    fn write(&mut self, ledger: Ledger) -> io::Result<()> {
        let text = toml::to_string(&ledger).map_err(io::Error::other)?;
        durable::write(&self.path, text.as_bytes(), durable::PRIVATE)?;
        self.written = ledger;
        Ok(())
    }

    /// What waits, and until when; None: nothing does.
    fn held_back(&self) -> Option<String> {
        let Allowance {
            bytes, when_spent, ..
        } = self.allowance;
        self.ledger.is_spent(&self.allowance).then(|| {
            let until = self.ledger.until(&self.allowance);
            let until = until.map_or("the next month".to_owned(), |until| until.to_string());
            format!(
                "the line's allowance of {} is spent: {} waits until {until}",
                ByteSize::b(bytes),
                when_spent.what_waits()
            )
        })
    }
}

/// Counts what the uplink sends and receives, and tells it what may go.
pub(crate) async fn keep(
    mut meter: Meter,
    link: watch::Receiver<UplinkStatus>,
    orders: watch::Sender<Orders>,
    stop: CancellationToken,
) {
    let mut timer = interval(LOOK_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = 0;
    let mut failing = None;
    loop {
        let ends = tokio::select! {
            () = stop.cancelled() => true,
            _ = timer.tick() => false,
        };
        let now = on_the_line(&link.borrow());
        // Below what was seen: another uplink counts anew.
        let bytes = if now >= seen { now - seen } else { now };
        seen = now;
        let noted = spawn_blocking(move || {
            let noted = meter.note(wall_now(), bytes);
            let noted = if ends { meter.close() } else { noted };
            (meter, noted)
        });
        let Ok((back, noted)) = noted.await else {
            tracing::error!("failed to count what the line carries: the thread has panicked");
            return;
        };
        meter = back;
        // A disk that fails fails each time.
        let error = noted.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| failing != error) {
            tracing::error!("failed to write what the line has carried this month: {error}");
        }
        failing = error;
        if ends {
            return;
        }
        let held_back = meter.held_back();
        orders.send_if_modified(|orders| {
            if orders.held_back == held_back {
                return false;
            }
            match &held_back {
                Some(what) => tracing::warn!("{what}"),
                None => tracing::info!("the line's allowance begins anew: everything goes again"),
            }
            orders.policy.allowed = match &held_back {
                Some(_) => meter.allowance.when_spent.allowed(),
                None => Allowed::All,
            };
            orders.held_back = held_back;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn at(text: &str) -> WallTime {
        text.parse().unwrap()
    }

    fn allowance() -> Allowance {
        Allowance {
            bytes: GB,
            begins_on: 15,
            when_spent: WhenSpent::LiveOnly,
        }
    }

    #[test]
    fn a_month_is_counted_and_begins_anew_on_its_day() {
        let allowance = allowance();
        let mut ledger = Ledger::default();
        ledger.note(at("2026-05-14T23:59:59Z"), &allowance, GB - 1);
        assert!(!ledger.is_spent(&allowance));
        assert!(!ledger.note(at("2026-05-14T23:59:59Z"), &allowance, 1));
        assert!(ledger.is_spent(&allowance));
        assert_eq!(ledger.until(&allowance), Some(at("2026-05-15T00:00:00Z")));
        assert!(ledger.note(at("2026-05-15T00:00:00Z"), &allowance, 7));
        assert_eq!(ledger.bytes, 7);
        assert_eq!(ledger.until(&allowance), Some(at("2026-06-15T00:00:00Z")));
    }

    #[test]
    fn a_clock_that_goes_back_or_was_never_set_begins_no_month() {
        let allowance = allowance();
        let mut ledger = Ledger::default();
        ledger.note(at("1970-01-01T00:01:00Z"), &allowance, 3);
        assert_eq!(ledger.until(&allowance), None);
        assert!(ledger.note(at("2026-05-20T00:00:00Z"), &allowance, 4));
        assert_eq!(ledger.bytes, 7, "what went before the clock was set counts");
        for earlier in ["2026-04-01T00:00:00Z", "1970-01-01T00:01:00Z"] {
            assert!(!ledger.note(at(earlier), &allowance, 1));
        }
        assert_eq!(ledger.bytes, 9);
    }

    #[test]
    fn a_kill_counts_too_much_by_a_step_at_most_and_an_end_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Meter::open(dir.path(), allowance()).unwrap();
        let now = at("2026-05-20T00:00:00Z");
        let mut meter = open();
        let mut writes = 0;
        for _ in 0..1_000 {
            let before = meter.written;
            meter.note(now, 100_000).unwrap();
            writes += u32::from(meter.written != before);
        }
        assert!((90..=100).contains(&writes), "{writes}");
        // Killed here.
        let counted = open().ledger.bytes;
        assert!(
            (100_000_000..=100_000_000 + MIN_STEP_BYTES).contains(&counted),
            "{counted}"
        );
        meter.close().unwrap();
        assert_eq!(open().ledger.bytes, 100_000_000);
        std::fs::write(dir.path().join(FILE), "bytes = -1").unwrap();
        let error = Meter::open(dir.path(), allowance()).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }

    #[test]
    fn what_waits_and_until_when_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = Meter::open(dir.path(), allowance()).unwrap();
        meter.note(at("2026-05-20T00:00:00Z"), GB - 1).unwrap();
        assert_eq!(meter.held_back(), None);
        meter.note(at("2026-05-20T00:00:00Z"), 1).unwrap();
        let told = meter.held_back().unwrap();
        assert!(
            told.contains("all but live video waits until 2026-06-15T00:00:00.000Z"),
            "{told}"
        );
    }
}
