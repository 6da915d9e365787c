//! Segment numbers, reserved a thousand at a time in a file that lies apart from the segments.
//!
//! Keeps invariant 2 where the catalog can't: a wiped disk loses the catalog, not `identity/numbers.toml`.
//! A reservation is durable before its first number is used; what is not used of it is given back when the
//! program ends in order, and lost when it is killed: while the disk failed its numbers went out from memory,
//! and no catalog tells of them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use model::{SegmentNumber, StreamName};
use program::durable;

/// Numbers a reservation holds: one durable write in half an hour of video.
const STEP: u64 = 1_000;
/// A reservation is renewed while this many of its numbers are left: with two-second segments a disk that
/// takes no reservation is gone on without for half an hour.
const RENEW_BELOW: u64 = 1_000;
const FILE: &str = "numbers.toml";
/// Longest file that is read; [`crate::config::MAX_STREAMS`] lines of 100 bytes fit many times.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Numbers that can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NumbersError {
    /// The disk is at fault.
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Somebody edited it, or the disk lost it.
    #[error(
        "{path} is damaged ({what}): move it away; numbers then go on above what catalog and hub have seen",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error("stream {stream} has used all numbers")]
    Exhausted { stream: StreamName },
}

/// The reservations of one identity; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    path: PathBuf,
    streams: Arc<Mutex<BTreeMap<StreamName, Reservation>>>,
}

#[derive(Debug, Clone, Copy)]
struct Reservation {
    next: u64,
    /// The first number that is not reserved, as the file says.
    end: u64,
    /// The lowest number that the hub has not seen used.
    hub_floor: u64,
}

impl Numbers {
    /// Reads the reservations in an identity folder; none is there at first.
    pub(crate) fn open(identity_dir: &Path) -> Result<Self, NumbersError> {
        let path = identity_dir.join(FILE);
        let damaged = |what: String| NumbersError::Damaged {
            path: path.clone(),
            what,
        };
        let text = match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(damaged("too long".to_owned())),
            _ => match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return Err(damaged("not text".to_owned()));
                }
                Err(source) => return Err(NumbersError::Io { path, source }),
            },
        };
        let ends: BTreeMap<StreamName, u64> =
            toml::from_str(&text).map_err(|e| damaged(e.message().trim().to_owned()))?;
        let streams = ends
            .into_iter()
            .map(|(stream, end)| {
                let known = Reservation {
                    next: end,
                    end,
                    hub_floor: 0,
                };
                (stream, known)
            })
            .collect();
        Ok(Self {
            path,
            streams: Arc::new(Mutex::new(streams)),
        })
    }

    /// The next number of a stream, never handed out before and not below `floor` (the lowest number that
    /// the catalog knows to be unused).
    ///
    /// At a start numbers go on at the end of the last reservation, which is where the last number was used
    /// if the program ended in order.
    pub(crate) fn take(
        &self,
        stream: &StreamName,
        floor: SegmentNumber,
    ) -> Result<SegmentNumber, NumbersError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = streams.get(stream).copied().unwrap_or(Reservation {
            next: 0,
            end: 0,
            hub_floor: 0,
        });
        let number = known.next.max(floor.0).max(known.hub_floor);
        let exhausted = || NumbersError::Exhausted {
            stream: stream.clone(),
        };
        let next = number.checked_add(1).ok_or_else(exhausted)?;
        let mut end = known.end;
        if next.saturating_add(RENEW_BELOW) > end {
            let new_end = next.checked_add(RENEW_BELOW + STEP).ok_or_else(exhausted)?;
            match self.write(&streams, stream, new_end) {
                Ok(()) => end = new_end,
                // There are some left: the disk may be well again before they are used.
                Err(error) if next <= end => {
                    tracing::debug!(%stream, left = end - next, %error, "failed to reserve numbers");
                }
                Err(error) => return Err(error),
            }
        }
        streams.insert(stream.clone(), Reservation { next, end, ..known });
        Ok(SegmentNumber(number))
    }

    /// Takes over what the hub has seen used: numbers go on at or above these, whatever was lost here.
    pub(crate) fn raise(&self, floors: &[(StreamName, SegmentNumber)]) -> Result<(), NumbersError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for (stream, floor) in floors {
            if let Some(known) = streams.get_mut(stream)
                && known.end >= floor.0
            {
                known.hub_floor = known.hub_floor.max(floor.0);
            } else {
                self.write(&streams, stream, floor.0)?;
                let raised = Reservation {
                    next: floor.0,
                    end: floor.0,
                    hub_floor: floor.0,
                };
                streams.insert(stream.clone(), raised);
            }
        }
        Ok(())
    }

    /// Gives back what a stream has not used of its reservation, so that the next start leaves no gap.
    pub(crate) fn give_back(&self, stream: &StreamName) -> Result<(), NumbersError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = streams.get(stream).copied() else {
            return Ok(());
        };
        let Reservation { next, end, .. } = known;
        if next < end {
            self.write(&streams, stream, next)?;
            streams.insert(stream.clone(), Reservation { end: next, ..known });
        }
        Ok(())
    }

    fn write(
        &self,
        streams: &BTreeMap<StreamName, Reservation>,
        changed: &StreamName,
        end: u64,
    ) -> Result<(), NumbersError> {
        let mut text = String::from(
            "# The first number not reserved, by stream. Numbers below are used up.\n",
        );
        let mut ends: BTreeMap<_, _> = streams.iter().map(|(s, r)| (s, r.end)).collect();
        ends.insert(changed, end);
        for (stream, end) in ends {
            text.push_str(&format!("\"{stream}\" = {end}\n"));
        }
        durable::write(&self.path, text.as_bytes(), durable::PRIVATE).map_err(|source| {
            NumbersError::Io {
                path: self.path.clone(),
                source,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> StreamName {
        "gate".parse().unwrap()
    }

    #[test]
    fn an_identity_made_anew_goes_on_above_what_the_hub_has_seen() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        numbers.raise(&[(gate(), SegmentNumber(5_000))]).unwrap();
        drop(numbers);
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!(take(&numbers, 0), 5_000);
        // A hub that has seen less changes nothing.
        numbers.raise(&[(gate(), SegmentNumber(10))]).unwrap();
        assert_eq!(take(&numbers, 0), 5_001);
    }

    fn take(numbers: &Numbers, floor: u64) -> u64 {
        numbers.take(&gate(), SegmentNumber(floor)).unwrap().0
    }

    #[test]
    fn a_restored_box_goes_on_above_what_the_hub_has_seen_within_its_reservation_too() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!((take(&numbers, 0), take(&numbers, 1)), (0, 1));
        numbers.raise(&[(gate(), SegmentNumber(200))]).unwrap();
        assert_eq!((take(&numbers, 2), take(&numbers, 2)), (200, 201));
        drop(numbers);
        // As the file says only.
        let numbers = Numbers::open(dir.path()).unwrap();
        numbers.raise(&[(gate(), SegmentNumber(300))]).unwrap();
        assert!(take(&numbers, 202) >= 300);
        numbers.raise(&[(gate(), SegmentNumber(9_000))]).unwrap();
        assert_eq!(take(&numbers, 202), 9_000);
    }

    #[test]
    fn reserved_durably_before_use() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        for expected in 0..2_500 {
            assert_eq!(take(&numbers, 0), expected);
            // Killed here, with the catalog lost too: nothing below is handed out again.
            if expected % 499 == 0 {
                let after = Numbers::open(dir.path()).unwrap();
                let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
                assert!(take(&after, 0) > expected);
                fs::write(dir.path().join(FILE), text).unwrap();
            }
        }
    }

    #[test]
    fn goes_on_without_a_gap_when_ended_in_order_and_above_all_when_killed() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!((take(&numbers, 0), take(&numbers, 0)), (0, 1));
        numbers.give_back(&gate()).unwrap();
        numbers.give_back(&gate()).unwrap();
        assert_eq!(take(&numbers, 0), 2);
        drop(numbers);
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!(take(&numbers, 0), 2_003, "killed: over the reservation");
        drop(numbers);
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!(
            take(&numbers, 2_004),
            4_004,
            "the catalog may not have seen all: numbers went out from memory"
        );
        drop(numbers);
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!(take(&numbers, 7_000), 7_000, "the hub has seen more");
        assert_eq!(take(&numbers, 0), 7_001);
        assert_eq!(take(&numbers, 9_000), 9_000);
    }

    #[test]
    fn a_reservation_that_cannot_be_renewed_is_used_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        fs::create_dir(&identity).unwrap();
        let numbers = Numbers::open(&identity).unwrap();
        assert_eq!(take(&numbers, 0), 0);
        // A folder that is gone takes no file, whoever asks.
        let away = dir.path().join("away");
        fs::rename(&identity, &away).unwrap();
        for expected in 1..=RENEW_BELOW + STEP {
            assert_eq!(take(&numbers, 0), expected);
        }
        let error = numbers.take(&gate(), SegmentNumber(0)).unwrap_err();
        assert!(matches!(error, NumbersError::Io { .. }), "{error}");
        fs::rename(&away, &identity).unwrap();
        assert_eq!(take(&numbers, 0), RENEW_BELOW + STEP + 1);
    }

    #[test]
    fn streams_are_apart_and_dots_in_names_are_no_tables() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        let low: StreamName = "cam.low".parse().unwrap();
        assert_eq!(numbers.take(&low, SegmentNumber(5)).unwrap().0, 5);
        assert_eq!(take(&numbers, 0), 0);
        let numbers = Numbers::open(dir.path()).unwrap();
        assert_eq!(numbers.take(&low, SegmentNumber(0)).unwrap().0, 2_006);
        assert_eq!(take(&numbers, 0), 2_001);
    }

    #[test]
    fn a_damaged_file_and_the_last_number_are_said() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["gate = -1", "gate = \"x\"", "\u{0}\u{1}", "UPPER = 1"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Numbers::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("is damaged"), "{error}");
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        let error = numbers.take(&gate(), SegmentNumber(u64::MAX)).unwrap_err();
        assert!(matches!(error, NumbersError::Exhausted { .. }));
    }
}
