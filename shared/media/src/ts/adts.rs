//! AAC frames out of PES payloads: one access unit per ADTS frame, each with its own time.

use bytes::{Bytes, BytesMut};
use model::{MediaTime, TICKS_PER_SECOND};

use crate::aac::{ADTS_HEADER_BYTES, AdtsHeader};

/// A frame cut out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) time: MediaTime,
    pub(super) header: AdtsHeader,
    pub(super) data: Bytes,
}

/// Cuts a track's payloads into frames; a frame may go on in the next payload.
#[derive(Debug, Default)]
pub(super) struct AdtsCutter {
    /// The beginning of a frame, or what may be one: less than [`MAX_ADTS_FRAME_BYTES`].
    carry: Bytes,
    /// The time of what is carried, if its payload said one.
    carry_time: Option<MediaTime>,
    clock: Option<Clock>,
    /// The last frame's header, to know the next by.
    last: Option<AdtsHeader>,
}

/// Counts samples from a time that the source gave: no rounding adds up.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: MediaTime,
    samples: i64,
    rate: i64,
}

impl Clock {
    fn now(&self) -> MediaTime {
        let ticks = (self.samples * TICKS_PER_SECOND + self.rate / 2) / self.rate;
        MediaTime(self.start.0.saturating_add(ticks))
    }
}

impl AdtsCutter {
    /// Something was lost or the time base changed: what was begun is void. Whether anything was.
    pub(super) fn reset(&mut self) -> bool {
        self.clock = None;
        self.carry_time = None;
        !std::mem::take(&mut self.carry).is_empty()
    }

    /// Takes a payload, gives its frames, and says how many bytes were none. `time` is of the first frame
    /// that begins in the payload; frames before any time is known count among what was none.
    pub(super) fn push(
        &mut self,
        time: Option<MediaTime>,
        payload: Bytes,
        mut give: impl FnMut(Frame),
    ) -> usize {
        let carried = self.carry.len();
        let bytes = join(std::mem::take(&mut self.carry), payload);
        let (mut at, mut lost) = (0, 0);
        let (mut carry_time, mut time) = (self.carry_time.take(), time);
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let header = match self.frame_at(rest) {
                Look::Frame(header) => header,
                Look::Short => break,
                Look::Nothing => {
                    (at, lost) = (at + 1, lost + 1);
                    continue;
                }
            };
            let rate = i64::from(header.sample_rate());
            let said = if at < carried {
                &mut carry_time
            } else {
                &mut time
            };
            if let Some(start) = said.take() {
                self.clock = Some(Clock {
                    start,
                    samples: 0,
                    rate,
                });
            }
            let end = at + header.frame_bytes;
            match &mut self.clock {
                Some(clock) => {
                    if clock.rate != rate {
                        *clock = Clock {
                            start: clock.now(),
                            samples: 0,
                            rate,
                        };
                    }
                    give(Frame {
                        time: clock.now(),
                        header,
                        data: bytes.slice(at..end),
                    });
                    clock.samples += i64::from(header.samples());
                }
                None => lost += header.frame_bytes,
            }
            self.last = Some(header);
            at = end;
        }
        self.carry_time = if at < carried { carry_time } else { time };
        self.carry = bytes.slice(at..);
        lost
    }

    /// What `rest` begins with. A header unlike the last one counts only if another like it follows where
    /// it says, or nothing does: a sync word can stand in sound.
    fn frame_at(&self, rest: &[u8]) -> Look {
        let Some(header) = AdtsHeader::parse(rest) else {
            let could_be = rest.len() < ADTS_HEADER_BYTES
                && [0xff, 0xf0].iter().zip(rest).all(|(a, b)| a & b == *a);
            return if could_be { Look::Short } else { Look::Nothing };
        };
        if self.last.is_some_and(|last| last.same_format(&header)) {
            return if rest.len() < header.frame_bytes {
                Look::Short
            } else {
                Look::Frame(header)
            };
        }
        match rest.get(header.frame_bytes..) {
            // Once the format is known, nothing else is waited for.
            None if self.last.is_some() => Look::Nothing,
            None => Look::Short,
            Some(next) if next.len() < ADTS_HEADER_BYTES => Look::Frame(header),
            Some(next) => match AdtsHeader::parse(next) {
                Some(next) if next.same_format(&header) => Look::Frame(header),
                _ => Look::Nothing,
            },
        }
    }
}

enum Look {
    Frame(AdtsHeader),
    Nothing,
    /// Perhaps a frame, of which more is to come.
    Short,
}

fn join(carry: Bytes, payload: Bytes) -> Bytes {
    if carry.is_empty() {
        return payload;
    }
    let mut both = BytesMut::with_capacity(carry.len() + payload.len());
    both.extend_from_slice(&carry);
    both.extend_from_slice(&payload);
    both.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aac::AacConfig;

    fn frame(rate: u8, len: usize) -> Vec<u8> {
        let asc = [0x10 | rate >> 1, rate << 7 | 0x10];
        AacConfig::parse(&asc)
            .unwrap()
            .to_adts(&vec![9; len])
            .unwrap()
            .to_vec()
    }

    /// (time, length) of each frame, and the bytes that were none.
    fn cut(pushes: &[(Option<i64>, &[u8])]) -> (Vec<(i64, usize)>, usize) {
        let (mut cutter, mut frames, mut lost) = (AdtsCutter::default(), vec![], 0);
        for &(time, payload) in pushes {
            lost += cutter.push(time.map(MediaTime), Bytes::copy_from_slice(payload), |f| {
                frames.push((f.time.0, f.data.len()));
            });
        }
        (frames, lost)
    }

    #[test]
    fn times_of_frames_do_not_drift() {
        // 44.1 kHz: 2089.796 ticks a frame.
        let thousand: Vec<u8> = (0..1000).flat_map(|_| frame(4, 20)).collect();
        let (frames, lost) = cut(&[(Some(5), &thousand)]);
        assert_eq!((frames.len(), lost), (1000, 0));
        assert_eq!((frames[1].0, frames[2].0), (5 + 2090, 5 + 4180));
        assert_eq!(
            frames[999].0,
            5 + (999 * 1024 * 90_000i64 + 22_050) / 44_100
        );
    }

    #[test]
    fn a_frame_over_payloads_keeps_the_old_clock() {
        let (a, b) = (frame(3, 50), frame(3, 60));
        let all = [&a[..], &a, &b, &b].concat();
        // The second payload begins inside the third frame: its time is of the fourth.
        assert_eq!(
            cut(&[(Some(0), &all[..130]), (Some(10_000), &all[130..])]),
            (vec![(0, 57), (1920, 57), (3840, 67), (10_000, 67)], 0)
        );
        // Without a time the clock runs on; before any time there is none.
        assert_eq!(
            cut(&[(None, &a), (Some(7), &a), (None, &a)]),
            (vec![(7, 57), (1927, 57)], 57)
        );
    }

    #[test]
    fn junk_is_passed_over() {
        let a = frame(3, 50);
        let junk = [
            &a[..],
            &a,
            &[1, 2, 0xff, 0xf1, 3, 0xff],
            &a,
            &[0xff, 0xf1, 0],
            &a,
        ]
        .concat();
        assert_eq!(
            cut(&[(Some(0), &junk)]),
            (vec![(0, 57), (1920, 57), (3840, 57), (5760, 57)], 9)
        );
        // A changed format counts once the next frame confirms it.
        let changed = [&a[..], &a, &frame(4, 9), &frame(4, 9), &frame(4, 9)].concat();
        assert_eq!(cut(&[(Some(0), &changed)]).0.len(), 5);
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same_frames(cuts in prop::collection::vec(0usize..400, 0..12)) {
            let all = [frame(3, 50), frame(3, 20), frame(3, 100), frame(3, 9)].concat();
            let whole = cut(&[(Some(5), &all)]);
            prop_assert_eq!((whole.0.len(), whole.1), (4, 0));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| 1 + c % (all.len() - 1)).collect();
            cuts.sort_unstable();
            let (mut pushes, mut from) = (vec![], 0);
            for to in cuts.into_iter().chain([all.len()]) {
                pushes.push(((from == 0).then_some(5), &all[from..to]));
                from = to;
            }
            prop_assert_eq!(cut(&pushes), whole);
        }

        #[test]
        fn any_bytes_are_safe(payloads in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0xffu8), Just(0xf1), any::<u8>()], 0..300), 0..10)) {
            let mut cutter = AdtsCutter::default();
            for payload in payloads {
                cutter.push(Some(MediaTime(0)), payload.into(), |_| {});
                prop_assert!(cutter.carry.len() < 2 * crate::aac::MAX_ADTS_FRAME_BYTES);
            }
        }
    }
}
