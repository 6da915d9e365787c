//! Going on within a source that is read again from its beginning: what of it is in the store already.
//!
//! Pure. The same file is cut the same way, so segments and bytes are counted off; nothing of it is
//! recorded twice, nothing is left out.

use model::{MediaDuration, MediaTime, SegmentNumber};
use store::Progress;

/// What is still to be passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resume(Progress);

/// How far a segment was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) start: MediaTime,
    /// Where the next part begins.
    pub(crate) at: MediaTime,
    bytes: u64,
}

impl Passed {
    pub(crate) fn at(start: MediaTime) -> Self {
        Self {
            start,
            at: start,
            bytes: 0,
        }
    }
}

impl Resume {
    /// None: nothing is here.
    pub(crate) fn behind(progress: Progress) -> Option<Self> {
        (progress.segments > 0 || progress.bytes > 0).then_some(Self(progress))
    }

    /// The run of what is here last.
    pub(crate) fn run(self) -> SegmentNumber {
        self.0.run.unwrap_or_default()
    }

    /// Whether a part is here; if so, it is passed.
    pub(crate) fn has(self, passed: &mut Passed, bytes: u64, duration: MediaDuration) -> bool {
        let whole_segment = self.0.segments > 0;
        if !whole_segment && passed.bytes.saturating_add(bytes) > self.0.bytes {
            if passed.bytes != self.0.bytes {
                tracing::warn!(
                    here = self.0.bytes,
                    passed = passed.bytes,
                    "it is cut otherwise than before: up to a part of it is there twice"
                );
            }
            return false;
        }
        passed.bytes = passed.bytes.saturating_add(bytes);
        passed.at = passed.at + duration;
        true
    }

    /// A segment was passed to its end: what is left, if anything.
    pub(crate) fn passed_one(self) -> Option<Self> {
        let Self(progress) = self;
        match progress.segments {
            // The one that was here in part was here in whole.
            0 => None,
            segments => Self::behind(Progress {
                segments: segments - 1,
                ..progress
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: MediaDuration = MediaDuration(30_000);

    #[test]
    fn whole_segments_then_parts_are_passed() {
        let progress = Progress {
            segments: 1,
            bytes: 100,
            run: Some(SegmentNumber(7)),
        };
        let resume = Resume::behind(progress).unwrap();
        assert_eq!(resume.run(), SegmentNumber(7));
        let mut passed = Passed::at(MediaTime(0));
        for _ in 0..6 {
            assert!(resume.has(&mut passed, 1_000, PART));
        }
        let resume = resume.passed_one().unwrap();
        let mut passed = Passed::at(MediaTime(180_000));
        assert!(resume.has(&mut passed, 60, PART));
        assert!(resume.has(&mut passed, 40, PART));
        assert!(!resume.has(&mut passed, 50, PART));
        assert_eq!(passed.at, MediaTime(240_000));
        assert_eq!(resume.passed_one(), None);
        assert_eq!(Resume::behind(Progress::default()), None);
    }
}
