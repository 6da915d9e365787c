//! What a push tells while it goes on: a bar on a terminal, a log line every few seconds elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use program::logging::{self, Format};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// The rate is that of about this long.
const RATE_WINDOW: Duration = Duration::from_secs(4);
/// A time left that is longer says nothing any more.
const MAX_TIME_LEFT: Duration = Duration::from_secs(100 * 3600);

/// Counted by the ingest thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    read: AtomicU64,
    cut: AtomicU64,
    cut_bytes: AtomicU64,
}

impl Tally {
    pub(crate) fn add_read(&self, bytes: u64) {
        self.0.read.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn set_cut(&self, segments: u64, bytes: u64) {
        self.0.cut.store(segments, Relaxed);
        self.0.cut_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.read.load(Relaxed)
    }

    pub(crate) fn cut(&self) -> u64 {
        self.0.cut.load(Relaxed)
    }

    pub(crate) fn cut_bytes(&self) -> u64 {
        self.0.cut_bytes.load(Relaxed)
    }
}

/// How a push stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Standing {
    pub(crate) read: u64,
    /// Of all sources together; None when there is no end to know.
    pub(crate) total: Option<u64>,
    pub(crate) cut: u64,
    pub(crate) stored: u64,
    pub(crate) stored_bytes: u64,
    /// All is cut: what is left is shipping.
    pub(crate) all_cut: bool,
    pub(crate) cut_bytes: u64,
}

impl Standing {
    /// What is not on the hub yet, in bytes, as far as it is known.
    fn left(&self) -> Option<u64> {
        let all = if self.all_cut {
            self.cut_bytes
        } else {
            self.total?.max(self.cut_bytes)
        };
        Some(all.saturating_sub(self.stored_bytes))
    }

    fn text(&self, rate: Option<u64>) -> String {
        let mut text = format!("read {}", ByteSize::b(self.read));
        if let Some(total) = self.total {
            text.push_str(&format!(" of {}", ByteSize::b(total)));
        }
        text.push_str(&format!(
            ", cut {} segments, {} stored on the hub",
            self.cut, self.stored
        ));
        if let Some(rate) = rate {
            text.push_str(&format!(", {:.1} Mbit/s", rate as f64 * 8.0 / 1e6));
        }
        if let Some(left) = time_left(self.left(), rate) {
            text.push_str(&format!(", {left} left"));
        }
        text
    }
}

/// `4m 10s`; None when nothing sensible can be said.
fn time_left(left: Option<u64>, rate: Option<u64>) -> Option<humantime::FormattedDuration> {
    let (left, rate) = (left.filter(|&l| l > 0)?, rate.filter(|&r| r > 0)?);
    let left = Duration::from_secs(left.div_ceil(rate));
    (left <= MAX_TIME_LEFT).then(|| humantime::format_duration(left))
}

/// Stored bytes per second over the last seconds.
#[derive(Debug, Default)]
struct Rate {
    since: Option<(Instant, u64)>,
    per_second: Option<u64>,
}

impl Rate {
    fn update(&mut self, stored_bytes: u64, now: Instant) -> Option<u64> {
        match self.since {
            None => self.since = Some((now, stored_bytes)),
            Some((at, before)) => {
                let elapsed = now.saturating_duration_since(at);
                if elapsed >= RATE_WINDOW {
                    let bytes = stored_bytes.saturating_sub(before) as f64;
                    self.per_second = Some((bytes / elapsed.as_secs_f64()) as u64);
                    self.since = Some((now, stored_bytes));
                }
            }
        }
        self.per_second
    }
}

/// Shows how a push stands. Logs go around the bar.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rate: Rate,
    last_line: Option<(Instant, Standing)>,
}

impl Progress {
    /// Starts logging, and a bar if standard error is a terminal for people.
    pub(crate) fn start(format: Format) -> Self {
        let people = format == Format::Text && io::stderr().is_terminal();
        let bar = people.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            let style =
                ProgressStyle::with_template("{spinner} {wide_msg}\n  [{bar:40}] {percent}%");
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar
        });
        match &bar {
            Some(bar) => {
                let bar = bar.clone();
                logging::init_to(format, move || AroundBar(bar.clone()));
            }
            None => logging::init(format),
        }
        Self {
            bar,
            rate: Rate::default(),
            last_line: None,
        }
    }

    /// Call a few times a second.
    pub(crate) fn show(&mut self, standing: Standing, now: Instant) {
        let rate = self.rate.update(standing.stored_bytes, now);
        if let Some(bar) = &self.bar {
            bar.set_message(standing.text(rate));
            if let Some(left) = standing.left() {
                bar.set_length(standing.stored_bytes.saturating_add(left).max(1));
                bar.set_position(standing.stored_bytes);
            }
            bar.tick();
            return;
        }
        let due = match self.last_line {
            None => true,
            Some((at, before)) => {
                before != standing && now.saturating_duration_since(at) >= LINE_INTERVAL
            }
        };
        if due {
            if self.last_line.is_some() {
                tracing::info!("{}", standing.text(rate));
            }
            self.last_line = Some((now, standing));
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Standard error, with the bar out of the way while a log line is written.
struct AroundBar(ProgressBar);

impl Write for AroundBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known() {
        let mut standing = Standing {
            read: 1 << 20,
            total: Some(4 << 20),
            cut: 7,
            stored: 5,
            stored_bytes: 1 << 20,
            all_cut: false,
            cut_bytes: 1 << 20,
        };
        assert_eq!(
            standing.text(Some(1 << 20)),
            "read 1.0 MiB of 4.0 MiB, cut 7 segments, 5 stored on the hub, 8.4 Mbit/s, 3s left"
        );
        standing.total = None;
        assert_eq!(
            standing.text(None),
            "read 1.0 MiB, cut 7 segments, 5 stored on the hub"
        );
        standing.all_cut = true;
        standing.cut_bytes = 3 << 20;
        assert!(standing.text(Some(1 << 10)).ends_with(", 34m 8s left"));
        assert!(!standing.text(Some(1)).contains("left"));
        assert!(!standing.text(Some(0)).contains("left"));
    }

    #[test]
    fn the_rate_is_of_the_last_seconds() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.update(1_000, start), None);
        assert_eq!(rate.update(9_000, start + Duration::from_secs(1)), None);
        assert_eq!(
            rate.update(9_000, start + Duration::from_secs(4)),
            Some(2_000)
        );
        assert_eq!(
            rate.update(9_500, start + Duration::from_secs(6)),
            Some(2_000)
        );
        assert_eq!(
            rate.update(9_500, start + Duration::from_secs(9)),
            Some(100)
        );
        assert_eq!(rate.update(0, start + Duration::from_secs(19)), Some(0));
    }
}
