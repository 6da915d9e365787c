//! Notices a flood in what was dropped, so that the log tells of its beginning and its end, not of datagrams.

use std::time::{Duration, Instant};

use crate::Dropped;

/// More dropped datagrams a second than bad lines and old sessions of many edges bring about.
const FLOOD_PER_SECOND: u64 = 1_000;
/// Below that for so long, a flood is over.
const CALM_TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct FloodWatch {
    last: Option<(Instant, Dropped)>,
    flood: Option<Flood>,
}

#[derive(Debug)]
struct Flood {
    since: Instant,
    before: Dropped,
    peak_per_second: u64,
    /// When it was last above the limit.
    above: Instant,
}

/// What to log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Began {
        per_second: u64,
        dropped: Dropped,
    },
    Ended {
        lasted: Duration,
        peak_per_second: u64,
        dropped: Dropped,
    },
}

impl FloodWatch {
    /// Looks at the counters, about once a second.
    pub(super) fn look(&mut self, now: Instant, dropped: Dropped) -> Option<News> {
        let (then, before) = *self.last.get_or_insert((now, dropped));
        let elapsed = now.saturating_duration_since(then).as_secs_f64();
        if elapsed < 0.5 {
            return None;
        }
        self.last = Some((now, dropped));
        let per_second = (dropped.since(&before).total() as f64 / elapsed) as u64;
        match &mut self.flood {
            None if per_second >= FLOOD_PER_SECOND => {
                self.flood = Some(Flood {
                    since: then,
                    before,
                    peak_per_second: per_second,
                    above: now,
                });
                Some(News::Began {
                    per_second,
                    dropped: dropped.since(&before),
                })
            }
            None => None,
            Some(flood) => {
                flood.peak_per_second = flood.peak_per_second.max(per_second);
                if per_second >= FLOOD_PER_SECOND {
                    flood.above = now;
                }
                if now.saturating_duration_since(flood.above) < CALM_TIME {
                    return None;
                }
                let news = News::Ended {
                    lasted: flood.above.saturating_duration_since(flood.since),
                    peak_per_second: flood.peak_per_second,
                    dropped: dropped.since(&flood.before),
                };
                self.flood = None;
                Some(news)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_and_its_end_once() {
        let start = Instant::now();
        let mut watch = FloodWatch::default();
        let mut dropped = Dropped::default();
        let mut told = Vec::new();
        for second in 0..60u64 {
            dropped.malformed += 10;
            if (10..20).contains(&second) || second == 25 {
                dropped.unknown_session += 50_000;
            }
            let now = start + Duration::from_secs(second);
            told.extend(watch.look(now, dropped).map(|news| (second, news)));
        }
        let [(10, News::Began { per_second, .. }), (35, ended)] = told.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!(*per_second, 50_010);
        assert_eq!(
            *ended,
            News::Ended {
                lasted: Duration::from_secs(16),
                peak_per_second: 50_010,
                dropped: Dropped {
                    malformed: 260,
                    unknown_session: 550_000,
                    ..Dropped::default()
                },
            }
        );
    }
}
