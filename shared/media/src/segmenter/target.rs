//! How long a segment may and should be.

use model::{MediaDuration, TICKS_PER_SECOND};

use super::SegmenterConfig;

/// A list compares EXTINF rounded to whole seconds with TARGETDURATION, so a segment may be almost half a
/// second longer (RFC 8216bis 4.4.3.1); a millisecond is kept back for whoever rounds EXTINF first.
const ROUNDING: MediaDuration = MediaDuration::from_millis(499);
/// A key frame this fraction of the target before it will do, if it is nearer than the next: cameras are
/// not exact, and 59 pictures of 29.97 a second would double the segment otherwise.
const EARLY_FRACTION: i64 = 10;

/// The target duration, and the TARGETDURATION that it led to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    wanted: MediaDuration,
    cap_s: u32,
    /// Of key frames, where an index tells it.
    expected_distance: MediaDuration,
    /// None until the first segment is whole.
    settled_s: Option<u32>,
}

/// What is known of key frames when one comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyFrame {
    /// Since the segment began.
    pub(super) elapsed: MediaDuration,
    /// Since the key frame before.
    pub(super) distance: MediaDuration,
    /// The longest distance of this source that a segment could hold, as far as is known.
    pub(super) longest_distance: MediaDuration,
}

impl Target {
    pub(super) fn new(config: &SegmenterConfig) -> Self {
        let mut target = Self {
            wanted: config.target_duration.max(MediaDuration(1)),
            cap_s: config.cap_s.max(1),
            expected_distance: config.expected_longest.unwrap_or_default(),
            settled_s: None,
        };
        if let Some(list) = config.list_target_s {
            let list = list.max(1);
            target.settled_s = Some(list);
            target.wanted = target.wanted.min(seconds(list));
        } else if let Some(longest) = config.expected_longest {
            target.first_segment(longest);
        }
        target
    }

    /// The longest distance between key frames that a segment can hold, as far as an index tells it.
    pub(super) fn expected_distance(&self) -> MediaDuration {
        if self.expected_distance <= self.limit() {
            self.expected_distance
        } else {
            MediaDuration::ZERO
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled_s.is_some()
    }

    /// TARGETDURATION; while it isn't settled, the least that it can be.
    pub(super) fn seconds(&self) -> u32 {
        self.settled_s.unwrap_or_else(|| self.rounded(self.wanted))
    }

    /// No segment is longer than this.
    pub(super) fn limit(&self) -> MediaDuration {
        seconds(self.settled_s.unwrap_or(self.cap_s)) + ROUNDING
    }

    /// A segment is whole: the first one settles TARGETDURATION.
    pub(super) fn first_segment(&mut self, duration: MediaDuration) {
        if self.settled_s.is_none() {
            self.settled_s = Some(self.rounded(self.wanted.max(duration)));
        }
    }

    /// A segment has come so far without being whole: once it is as long as the cap, that settles it.
    pub(super) fn at_least(&mut self, elapsed: MediaDuration) {
        if elapsed.rounded_secs() >= i64::from(self.cap_s) {
            self.first_segment(elapsed);
        }
    }

    pub(super) fn settle_at_cap(&mut self) {
        self.first_segment(seconds(self.cap_s));
    }

    /// Whether a segment ends before this key frame.
    pub(super) fn cuts_before(&self, key: KeyFrame) -> bool {
        let KeyFrame {
            elapsed,
            distance,
            longest_distance,
        } = key;
        if elapsed >= self.wanted {
            return true;
        }
        let missing = self.wanted - elapsed;
        let near = missing.0 <= self.wanted.0 / EARLY_FRACTION && missing <= distance - missing;
        // Waiting for the next key frame would end in a cut where none is.
        let last_chance = elapsed + distance > self.limit()
            || (elapsed.0 >= self.wanted.0 / 2 && elapsed + longest_distance > self.limit());
        near || last_chance
    }

    fn rounded(&self, duration: MediaDuration) -> u32 {
        let seconds = u32::try_from(duration.rounded_secs()).unwrap_or(0);
        seconds.clamp(1, self.cap_s)
    }
}

fn seconds(s: u32) -> MediaDuration {
    MediaDuration(i64::from(s) * TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i64) -> MediaDuration {
        MediaDuration::from_millis(ms)
    }

    fn target(list_target_s: Option<u32>, expected_ms: Option<i64>) -> Target {
        Target::new(&SegmenterConfig {
            list_target_s,
            expected_longest: expected_ms.map(ms),
            ..SegmenterConfig::default()
        })
    }

    fn cuts(target: &Target, elapsed: i64, distance: i64) -> bool {
        target.cuts_before(KeyFrame {
            elapsed: ms(elapsed),
            distance: ms(distance),
            longest_distance: ms(distance),
        })
    }

    #[test]
    fn settles_on_the_first_that_is_known() {
        for (list, expected, wanted) in [
            (Some(4), Some(6_000), 4),
            (Some(0), None, 1),
            (None, Some(500), 2),
            (None, Some(2_500), 3),
            (None, Some(3_499), 3),
            (None, Some(60_000), 6),
        ] {
            assert_eq!(
                target(list, expected).settled_s,
                Some(wanted),
                "{list:?} {expected:?}"
            );
        }
        let mut open = target(None, None);
        assert_eq!((open.seconds(), open.limit()), (2, ms(6_499)));
        open.at_least(ms(5_499));
        assert!(!open.is_settled());
        open.first_segment(ms(3_000));
        open.first_segment(ms(5_000));
        assert_eq!((open.seconds(), open.limit()), (3, ms(3_499)));
    }

    #[test]
    fn cuts_at_the_key_frame_nearest_to_the_target() {
        let two = target(Some(2), None);
        for (what, elapsed, distance, wanted) in [
            ("exact", 2_000, 2_000, true),
            ("jitter", 1_980, 1_980, true),
            ("every picture a key frame, early", 1_840, 40, false),
            ("every picture a key frame, there", 2_000, 40, true),
            ("half a second each", 1_500, 500, false),
            ("half a second each, jitter", 1_980, 480, true),
            ("the next would be too late", 1_500, 1_500, true),
            ("the next is in time", 1_200, 1_200, false),
            ("behind a forced cut", 120, 2_600, true),
        ] {
            assert_eq!(cuts(&two, elapsed, distance), wanted, "{what}");
        }
    }
}
