//! A link's bad turns, told once when they begin and once when they end: loss, a round trip that is a multiple of
//! the usual one, silence. Looked at once a second; nothing is logged here.

use std::time::{Duration, Instant};

use link_proto::SessionStats;

/// Of what the device sent, this share did not arrive: where forward error correction gets expensive.
const LOSS_BEGINS: f64 = 0.10;
const LOSS_ENDS: f64 = 0.05;
/// Loss is judged by so many datagrams at least: one in fifty is 2 %.
const MIN_DATAGRAMS: u64 = 50;

/// A round trip of so many times the usual one, and longer by more than jitter.
const RTT_BEGINS: f64 = 3.0;
const RTT_ENDS: f64 = 2.0;
const RTT_LONGER: Duration = Duration::from_millis(100);
/// How fast the usual round trip follows: half a minute; during a bad turn ten minutes, so that a route that has
/// become longer for good becomes the usual one.
const USUAL_GAIN: f64 = 1.0 / 32.0;
const USUAL_GAIN_IN_TURN: f64 = 1.0 / 600.0;

/// Bad for so long, a turn has begun; good for so long, it has ended.
const BEGIN_TIME: Duration = Duration::from_secs(3);
const END_TIME: Duration = Duration::from_secs(10);

/// What is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Loss,
    Rtt,
    Silence,
}

/// What to log. `worst`: the share lost, the multiple of the usual round trip; nought for silence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum News {
    Began {
        turn: Turn,
        worst: f64,
    },
    Ended {
        turn: Turn,
        worst: f64,
        lasted: Duration,
    },
}

/// What is known of one session's turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Received and expected when loss was last judged.
    counted: (u64, u64),
    usual_rtt_s: Option<f64>,
    loss: Spell,
    rtt: Spell,
    silent_since: Option<Instant>,
}

impl Turns {
    /// Looks at a session's numbers, about once a second.
    pub(super) fn look(&mut self, now: Instant, stats: &SessionStats) -> Vec<News> {
        let mut news = Vec::new();
        let mut tell = |turn, turned: Option<Turned>| {
            news.extend(turned.map(|turned| match turned {
                Turned::Bad { worst } => News::Began { turn, worst },
                Turned::Good { worst, lasted } => News::Ended {
                    turn,
                    worst,
                    lasted,
                },
            }));
        };
        tell(Turn::Silence, self.silence(now, stats.silent));
        if let Some(loss) = self.loss_since(stats) {
            tell(
                Turn::Loss,
                self.loss.look(now, loss, LOSS_BEGINS, LOSS_ENDS),
            );
        }
        if let Some(times) = self.rtt_against_usual(stats) {
            tell(Turn::Rtt, self.rtt.look(now, times, RTT_BEGINS, RTT_ENDS));
        }
        news
    }

    fn silence(&mut self, now: Instant, silent: bool) -> Option<Turned> {
        match (silent, self.silent_since) {
            (true, None) => {
                self.silent_since = Some(now);
                Some(Turned::Bad { worst: 0.0 })
            }
            (false, Some(since)) => {
                self.silent_since = None;
                let lasted = now.saturating_duration_since(since);
                Some(Turned::Good { worst: 0.0, lasted })
            }
            _ => None,
        }
    }

    /// The share lost since this was last judged, if enough was sent.
    fn loss_since(&mut self, stats: &SessionStats) -> Option<f64> {
        let (received, expected) = self.counted;
        let sent = stats.datagrams_expected.saturating_sub(expected);
        if sent < MIN_DATAGRAMS {
            return None;
        }
        self.counted = (stats.datagrams_received, stats.datagrams_expected);
        let came = stats.datagrams_received.saturating_sub(received);
        Some(1.0 - (came.min(sent) as f64 / sent as f64))
    }

    /// The round trip as a multiple of the usual one, 1 where it is hardly longer.
    fn rtt_against_usual(&mut self, stats: &SessionStats) -> Option<f64> {
        let rtt = stats.rtt?.as_secs_f64();
        let usual = self.usual_rtt_s.get_or_insert(rtt);
        let longer = rtt - *usual > RTT_LONGER.as_secs_f64();
        let times = if longer { rtt / usual.max(1e-3) } else { 1.0 };
        let gain = if longer {
            USUAL_GAIN_IN_TURN
        } else {
            USUAL_GAIN
        };
        *usual += (rtt - *usual) * gain;
        Some(times)
    }
}

#[derive(Debug)]
enum Turned {
    Bad { worst: f64 },
    Good { worst: f64, lasted: Duration },
}

/// Bad after a while above one bound, good after a while below the other.
#[derive(Debug, Default)]
struct Spell {
    /// Since when, and the worst.
    bad: Option<(Instant, f64)>,
    told: bool,
    good_since: Option<Instant>,
}

impl Spell {
    fn look(&mut self, now: Instant, value: f64, begins: f64, ends: f64) -> Option<Turned> {
        let Some((since, worst)) = &mut self.bad else {
            if value >= begins {
                self.bad = Some((now, value));
            }
            return None;
        };
        *worst = worst.max(value);
        let (since, worst) = (*since, *worst);
        if !self.told {
            if value < begins {
                self.bad = None;
            } else if now >= since + BEGIN_TIME {
                self.told = true;
                return Some(Turned::Bad { worst });
            }
            return None;
        }
        if value >= ends {
            self.good_since = None;
            return None;
        }
        let good_since = *self.good_since.get_or_insert(now);
        if now < good_since + END_TIME {
            return None;
        }
        *self = Self::default();
        let lasted = good_since.saturating_duration_since(since);
        Some(Turned::Good { worst, lasted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds at which something is told.
    fn told(stats: impl Fn(u64, &mut SessionStats)) -> Vec<(u64, News)> {
        let start = Instant::now();
        let mut turns = Turns::default();
        let mut now = SessionStats {
            rtt: Some(Duration::from_millis(50)),
            ..SessionStats::default()
        };
        let mut news = Vec::new();
        for second in 0..120 {
            now.datagrams_expected += 500;
            now.datagrams_received += 500;
            stats(second, &mut now);
            let at = start + Duration::from_secs(second);
            news.extend(turns.look(at, &now).into_iter().map(|told| (second, told)));
        }
        news
    }

    #[test]
    fn a_good_line_is_not_told_of() {
        assert_eq!(
            told(|second, now| now.datagrams_received -= 20 * (second % 2)),
            []
        );
    }

    #[test]
    fn loss_is_told_once_when_it_begins_and_once_when_it_ends() {
        let news = told(|second, now| {
            now.datagrams_received -= match second {
                5..7 => 200, // too short
                20..60 => 100,
                64 => 50, // not over yet
                _ => 10,
            };
        });
        let (turn, worst, lasted) = (Turn::Loss, 1.0 - 0.8, Duration::from_secs(45));
        assert_eq!(
            news,
            [
                (23, News::Began { turn, worst }),
                (
                    75,
                    News::Ended {
                        turn,
                        worst,
                        lasted
                    }
                ),
            ]
        );
    }

    #[test]
    fn a_longer_round_trip_is_told_and_becomes_the_usual_one_in_time() {
        let news = told(|second, now| {
            if (20..50).contains(&second) {
                now.rtt = Some(Duration::from_millis(400));
            } else {
                now.rtt = Some(Duration::from_millis(50));
            }
        });
        let [
            (
                23,
                News::Began {
                    turn: Turn::Rtt,
                    worst,
                },
            ),
            (
                60,
                News::Ended {
                    turn: Turn::Rtt, ..
                },
            ),
        ] = news.as_slice()
        else {
            panic!("{news:?}");
        };
        assert!((7.0..=8.0).contains(worst), "{worst}");
        let mut turns = Turns::default();
        let start = Instant::now();
        let mut now = SessionStats {
            rtt: Some(Duration::from_millis(50)),
            ..SessionStats::default()
        };
        turns.look(start, &now);
        now.rtt = Some(Duration::from_millis(400));
        let ended = (1..3_600).find(|second| {
            let news = turns.look(start + Duration::from_secs(*second), &now);
            news.iter().any(|news| matches!(news, News::Ended { .. }))
        });
        assert!(ended.is_some_and(|second| second > 60), "{ended:?}");
    }

    #[test]
    fn silence_and_return_are_told() {
        let news = told(|second, now| now.silent = (30..40).contains(&second));
        let lasted = Duration::from_secs(10);
        assert_eq!(
            news,
            [
                (
                    30,
                    News::Began {
                        turn: Turn::Silence,
                        worst: 0.0
                    }
                ),
                (
                    40,
                    News::Ended {
                        turn: Turn::Silence,
                        worst: 0.0,
                        lasted
                    }
                ),
            ]
        );
    }

    #[test]
    fn an_idle_line_has_no_loss() {
        let start = Instant::now();
        let mut turns = Turns::default();
        for second in 0..600 {
            let stats = SessionStats {
                datagrams_expected: second / 15,
                datagrams_received: second / 30,
                ..SessionStats::default()
            };
            assert_eq!(turns.look(start + Duration::from_secs(second), &stats), []);
            if second / 15 >= MIN_DATAGRAMS - 1 {
                break;
            }
        }
    }
}
