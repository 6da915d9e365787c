//! The video that every row carries, and when its access units arrived.
//!
//! 25 pictures a second, 4 Mbit/s, a key frame each two seconds that is six times the mean; the bytes are the
//! same in every run.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

const PER_SECOND: u32 = 25;
const GOP: u32 = 50;
const KEY_FRAME_TIMES_MEAN: usize = 6;

/// Carried before the first access unit that counts: connections are made, the line is learnt.
pub const WARM_UP_SECONDS: u32 = 4;

/// What is not there so long after the last access unit was sent counts as missing.
const GRACE: Duration = Duration::from_secs(10);

/// In front of each piece of an access unit: its number, the piece's offset, the whole length.
pub const PIECE_HEADER: usize = 12;

/// A deterministic video.
#[derive(Debug, Clone, Copy)]
pub struct Video {
    pub bit_rate: u32,
    pub seconds: u32,
}

impl Video {
    /// Access units of the warm-up.
    pub fn warm_up(&self) -> u32 {
        WARM_UP_SECONDS * PER_SECOND
    }

    /// All access units, the warm-up's too.
    pub fn count(&self) -> u32 {
        self.warm_up() + self.seconds * PER_SECOND
    }

    /// Bytes of those that count.
    pub fn media_bytes(&self) -> u64 {
        (self.warm_up()..self.count())
            .map(|number| self.size(number) as u64)
            .sum()
    }

    pub fn size(&self, number: u32) -> usize {
        let mean = (self.bit_rate / 8 / PER_SECOND) as usize;
        let key = mean * KEY_FRAME_TIMES_MEAN;
        if number.is_multiple_of(GOP) {
            key
        } else {
            (mean * GOP as usize - key) / (GOP as usize - 1)
        }
    }

    /// The bytes of an access unit; what is received is compared with them.
    pub fn bytes(&self, number: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.size(number)];
        fastrand::Rng::with_seed(number.into()).fill(&mut bytes);
        bytes
    }

    /// Hands each access unit out at its time, as a camera would, however long the last one took.
    pub fn play(
        &self,
        arrivals: &Arrivals,
        mut give: impl FnMut(u32, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        arrivals.begin(start);
        for number in 0..self.count() {
            let bytes = self.bytes(number);
            let due = start + Self::at(number);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            give(number, bytes)?;
        }
        Ok(())
    }

    /// When the camera has an access unit, counted from the first.
    fn at(number: u32) -> Duration {
        Duration::from_secs(1) * number / PER_SECOND
    }
}

/// An access unit in pieces of at most `len` bytes, headers included.
pub fn pieces(number: u32, bytes: &[u8], len: usize) -> impl Iterator<Item = Vec<u8>> {
    let body = len - PIECE_HEADER;
    let total = bytes.len() as u32;
    bytes.chunks(body).enumerate().map(move |(at, chunk)| {
        let mut piece = Vec::with_capacity(PIECE_HEADER + chunk.len());
        piece.extend_from_slice(&number.to_be_bytes());
        piece.extend_from_slice(&((at * body) as u32).to_be_bytes());
        piece.extend_from_slice(&total.to_be_bytes());
        piece.extend_from_slice(chunk);
        piece
    })
}

/// Puts pieces together again, in whatever order they come.
pub struct Assembler<'a> {
    video: Video,
    arrivals: &'a Arrivals,
    open: HashMap<u32, (usize, Vec<u8>)>,
}

impl<'a> Assembler<'a> {
    pub fn new(video: Video, arrivals: &'a Arrivals) -> Self {
        Self {
            video,
            arrivals,
            open: HashMap::new(),
        }
    }

    pub fn take(&mut self, piece: &[u8]) {
        let Some((head, body)) = piece.split_at_checked(PIECE_HEADER) else {
            return;
        };
        let word = |at: usize| {
            let word = head.get(at * 4..at * 4 + 4)?;
            Some(u32::from_be_bytes(word.try_into().ok()?))
        };
        let (Some(number), Some(offset), Some(total)) = (word(0), word(1), word(2)) else {
            return;
        };
        if number >= self.video.count() || total as usize != self.video.size(number) {
            return;
        }
        let (have, bytes) = self
            .open
            .entry(number)
            .or_insert_with(|| (0, vec![0; total as usize]));
        let end = offset as usize + body.len();
        if let Some(place) = bytes.get_mut(offset as usize..end) {
            place.copy_from_slice(body);
            *have += body.len();
        }
        if *have == total as usize
            && let Some((_, bytes)) = self.open.remove(&number)
        {
            self.whole(number, &bytes);
        }
    }

    /// An access unit that came in one.
    pub fn whole(&self, number: u32, bytes: &[u8]) {
        let now = Instant::now();
        if *bytes == self.video.bytes(number) {
            self.arrivals.arrived(number, now);
        }
    }
}

/// When the camera began, and when each access unit was at the receiver, whole.
#[derive(Default)]
pub struct Arrivals {
    known: Mutex<Known>,
    more: Condvar,
}

#[derive(Default)]
struct Known {
    began: Option<Instant>,
    arrived: HashMap<u32, Instant>,
}

impl Arrivals {
    fn begin(&self, at: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.began = Some(at);
        drop(known);
        self.more.notify_all();
    }

    fn arrived(&self, number: u32, at: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.arrived.entry(number).or_insert(at);
        drop(known);
        self.more.notify_all();
    }

    /// Waits until the camera has the first access unit that counts, whether the transport takes it or not.
    pub fn wait_for_warm_up(&self, video: &Video) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.more.wait_while(known, |known| known.began.is_none());
        let began = known.unwrap_or_else(PoisonError::into_inner).began;
        let due = began.map(|began| began + Video::at(video.warm_up()));
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        thread::sleep(left.unwrap_or_default());
    }

    /// Waits until all that count are there, at most [`GRACE`].
    pub fn wait(&self, video: &Video) {
        let end = Instant::now() + GRACE;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |known: &Known| {
            (video.warm_up()..video.count()).any(|number| !known.arrived.contains_key(&number))
        };
        while missing(&known) && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            let waited = self.more.wait_timeout(known, left);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The latencies of those that count and arrived, and how many did not.
    pub fn verdict(&self, video: &Video) -> Verdict {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut late: Vec<f64> = Vec::new();
        let (mut missing, mut in_order) = (0, None);
        for number in video.warm_up()..video.count() {
            let Some((began, arrived)) = known.began.zip(known.arrived.get(&number)) else {
                missing += 1;
                continue;
            };
            let due = began + Video::at(number);
            // In order: what overtook another is of use only when that one is there.
            let usable = in_order.map_or(*arrived, |before: Instant| before.max(*arrived));
            in_order = Some(usable);
            late.push(usable.saturating_duration_since(due).as_secs_f64() * 1e3);
        }
        late.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * late.len() as f64).ceil() as usize;
            late.get(rank.saturating_sub(1)).copied()
        };
        Verdict {
            access_units: video.count() - video.warm_up(),
            missing,
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: late.last().copied(),
        }
    }
}

/// How a row did. Latencies are of what arrived, from when the camera had it to when it and all before it
/// were there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    pub access_units: u32,
    pub missing: u32,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIDEO: Video = Video {
        bit_rate: 4_000_000,
        seconds: 2,
    };

    #[test]
    fn a_group_of_pictures_has_its_rate_and_its_key_frame() {
        let sizes: Vec<usize> = (0..GOP).map(|number| VIDEO.size(number)).collect();
        assert_eq!(sizes[0], 120_000);
        let total: usize = sizes.iter().sum();
        assert!((999_000..=1_000_000).contains(&total), "{total}");
    }

    #[test]
    fn pieces_in_any_order_make_the_access_unit_and_a_wrong_byte_does_not() {
        let arrivals = Arrivals::default();
        arrivals.begin(Instant::now());
        let mut assembler = Assembler::new(VIDEO, &arrivals);
        for number in VIDEO.warm_up()..VIDEO.count() {
            let mut made: Vec<_> = pieces(number, &VIDEO.bytes(number), 1_316).collect();
            made.reverse();
            if number == VIDEO.count() - 1 {
                made[0][PIECE_HEADER] ^= 1;
            }
            made.iter().for_each(|piece| assembler.take(piece));
        }
        let verdict = arrivals.verdict(&VIDEO);
        assert_eq!((verdict.access_units, verdict.missing), (50, 1));
    }

    #[test]
    fn what_overtook_waits_for_what_was_before_it() {
        let arrivals = Arrivals::default();
        let start = Instant::now();
        arrivals.begin(start);
        let warm = VIDEO.warm_up();
        let due = start + Video::at(warm);
        arrivals.arrived(warm, due + Duration::from_millis(300));
        arrivals.arrived(warm + 1, due + Duration::from_millis(100));
        let verdict = arrivals.verdict(&VIDEO);
        assert_eq!(verdict.missing, 48);
        assert_eq!((verdict.p50_ms, verdict.max_ms), (Some(260.0), Some(300.0)));
    }
}
