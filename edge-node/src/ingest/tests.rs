//! Live sources that misbehave, at the pace of a simulated clock: into a real store, without a socket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use model::{MediaDuration, SegmentInfo, SegmentNumber, StreamName};
use store::{Store, StoreOptions};
use tokio_util::sync::CancellationToken;

use super::{
    Feed, Gate, Halt, SourceError, SourceName,
    live::{IDLE_CLOSE, Live},
};
use crate::{
    inputs::{Count, Input, InputState},
    numbers::Numbers,
    progress::Tally,
    recorder::{Recorder, RecorderConfig},
};

const PACKET: usize = 188;
/// The cap on a list's TARGETDURATION.
const LONGEST: MediaDuration = MediaDuration::from_millis(6_000);

const H264: &[u8] = include_bytes!("../../../fixtures/media/demux-h264-aac.ts");
const H265: &[u8] = include_bytes!("../../../fixtures/media/demux-h265.ts");

fn gate() -> StreamName {
    "gate".parse().unwrap()
}

/// A store and a clock.
struct Site {
    _dir: tempfile::TempDir,
    store: Store,
    numbers: Numbers,
    input: Arc<Input>,
    now: Instant,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            local_playlists: true,
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        Self {
            _dir: dir,
            store,
            numbers,
            input: Input::new(gate(), "udp://127.0.0.1:5000".to_owned()),
            now: Instant::now(),
        }
    }

    /// Runs a source from its beginning to its end.
    fn run(
        &mut self,
        work: impl FnOnce(&mut Source<'_, '_>) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let config = RecorderConfig::new(gate());
        let clock = crate::clock::Clock::start(self.store.clone()).unwrap();
        let recorder =
            Recorder::new(config, self.store.clone(), self.numbers.clone(), clock).unwrap();
        let (tally, gate, stop) = (Tally::default(), Gate::default(), CancellationToken::new());
        let mut feed = Feed::new(recorder, &tally, &gate, &self.input, &stop);
        let live = Live::begin(true, self.now, &mut feed);
        let mut source = Source {
            name: SourceName::parse("udp://127.0.0.1:5000".as_ref()).unwrap(),
            live,
            feed: &mut feed,
            now: self.now,
        };
        let result = work(&mut source);
        let finished = source.live.finish(&source.name, source.feed);
        self.now = source.now;
        finished?;
        feed.recorder.finish().unwrap();
        result
    }

    fn segments(&self) -> Vec<SegmentInfo> {
        let all = self.store.list(&gate(), SegmentNumber(0), 10_000).unwrap();
        for segment in &all {
            assert!(segment.duration <= LONGEST, "{segment:?}");
        }
        all
    }

    fn runs(&self) -> usize {
        let mut runs: Vec<_> = self.segments().iter().map(|s| s.run).collect();
        runs.dedup();
        runs.len()
    }

    fn seconds(&self) -> f64 {
        self.segments()
            .iter()
            .map(|s| s.duration.as_secs_f64())
            .sum()
    }
}

struct Source<'a, 'f> {
    name: SourceName,
    live: Live,
    feed: &'a mut Feed<'f>,
    now: Instant,
}

impl Source<'_, '_> {
    /// Sends in datagrams over so much time.
    fn send(&mut self, bytes: &[u8], over: Duration) -> Result<(), Halt> {
        let count = bytes.len().div_ceil(7 * PACKET) as u32;
        for datagram in bytes.chunks(7 * PACKET) {
            self.live.push(&self.name, datagram, self.now, self.feed)?;
            self.live.tick(&self.name, self.now, self.feed)?;
            self.now += over / count;
        }
        Ok(())
    }

    fn pause(&mut self, long: Duration) -> Result<(), Halt> {
        let until = self.now + long;
        while self.now < until {
            self.now += Duration::from_millis(50);
            self.live.tick(&self.name, self.now, self.feed)?;
        }
        Ok(())
    }

    fn closed(&self) -> u64 {
        self.feed.recorder.closed()
    }
}

/// The clip with other timestamps.
fn stamped(clip: &[u8], other: impl Fn(u64) -> u64) -> Vec<u8> {
    let mut bytes = clip.to_vec();
    for packet in bytes.as_chunks_mut::<PACKET>().0 {
        let skip = if packet[3] & 0x20 != 0 {
            5 + usize::from(packet[4])
        } else {
            4
        };
        let Some(pes) = packet.get_mut(skip..) else {
            continue;
        };
        if pes.len() < 19 || pes[..3] != [0, 0, 1] || pes[3] < 0xc0 {
            continue;
        }
        for (at, there) in [(9, pes[7] & 0x80 != 0), (14, pes[7] & 0x40 != 0)] {
            if !there {
                continue;
            }
            let b: Vec<u64> = pes[at..at + 5].iter().map(|b| u64::from(*b)).collect();
            let time =
                (b[0] >> 1 & 7) << 30 | b[1] << 22 | (b[2] >> 1) << 15 | b[3] << 7 | b[4] >> 1;
            let t = other(time) & ((1 << 33) - 1);
            let stamp = [
                (b[0] & 0xf0) as u8 | ((t >> 30) as u8 & 7) << 1 | 1,
                (t >> 22) as u8,
                ((t >> 15) as u8) << 1 | 1,
                (t >> 7) as u8,
                (t as u8) << 1 | 1,
            ];
            pes[at..at + 5].copy_from_slice(&stamp);
        }
    }
    bytes
}

/// How long the clip plays, as it is cut.
fn clip_seconds(clip: &[u8]) -> f64 {
    let mut site = Site::new();
    site.run(|source| source.send(clip, Duration::from_secs(2)))
        .unwrap();
    assert_eq!(site.runs(), 1);
    site.seconds()
}

#[test]
fn silence_closes_the_segment_and_what_comes_next_is_a_new_run() {
    let mut site = Site::new();
    let input = site.input.clone();
    site.run(|source| {
        source.send(H264, Duration::from_secs(2))?;
        assert_eq!(input.state(), InputState::Recording);
        let before = source.closed();
        source.pause(IDLE_CLOSE + Duration::from_millis(100))?;
        assert_eq!(source.closed(), before + 1, "what was open goes to the hub");
        assert_eq!(input.state(), InputState::Recording);
        source.pause(Duration::from_secs(60))?;
        assert!(matches!(input.state(), InputState::Waiting { .. }));
        assert_eq!(source.closed(), before + 1);
        source.send(H264, Duration::from_secs(2))?;
        assert_eq!(input.state(), InputState::Recording);
        Ok(())
    })
    .unwrap();
    assert_eq!((site.runs(), input.count(Count::Silences)), (2, 1));
    assert!((site.seconds() - 2.0 * clip_seconds(H264)).abs() < 0.01);
}

#[test]
fn clocks_that_jump_or_begin_again_are_new_runs_and_lose_nothing() {
    let mut site = Site::new();
    site.run(|source| {
        for offset in [0, 90_000 * 1_000, 90_000 * 10, 0, (1 << 33) - 200_000, 0] {
            let clip = stamped(H264, |time| time.wrapping_add(offset));
            source.send(&clip, Duration::from_secs(2))?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(site.runs(), 6, "{:?}", site.segments());
    let expected = 6.0 * clip_seconds(H264);
    // Where a file's end and the next one's beginning meet, a picture may be joined to neither.
    assert!(
        (site.seconds() - expected).abs() < 0.5,
        "{} of {expected}",
        site.seconds()
    );
}

#[test]
fn a_clock_that_stands_still_makes_no_endless_segment() {
    let mut site = Site::new();
    site.run(|source| {
        for _ in 0..60 {
            source.send(&stamped(H264, |_| 900_000), Duration::from_secs(2))?;
        }
        assert!(source.closed() >= 3, "{} in two minutes", source.closed());
        Ok(())
    })
    .unwrap();
    assert!(site.input.count(Count::Warnings) > 0);
}

#[test]
fn times_without_sense_end_in_short_segments_or_in_a_pause() {
    let mut seed: u64 = 3;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 20
    };
    let noise: Vec<u64> = (0..10_000).map(|_| random()).collect();
    let next = std::cell::Cell::new(0);
    let mut site = Site::new();
    let result = site.run(|source| {
        for _ in 0..20 {
            let clip = stamped(H264, |_| {
                next.set((next.get() + 1) % noise.len());
                noise[next.get()]
            });
            source.send(&clip, Duration::from_secs(2))?;
        }
        Ok(())
    });
    assert!(
        matches!(result, Err(Halt::Source(SourceError::Restless))),
        "{result:?}"
    );
    assert!(site.segments().len() < 100);
}

#[test]
fn other_tracks_are_a_new_run_and_endless_changes_are_refused() {
    let mut site = Site::new();
    site.run(|source| {
        for clip in [H264, H265, H264] {
            source.send(clip, Duration::from_secs(2))?;
        }
        Ok(())
    })
    .unwrap();
    // The times of each begin before the last one's end: that alone may be a run too.
    assert!((3..=5).contains(&site.runs()), "{:?}", site.segments());
    let result = site.run(|source| {
        for _ in 0..60 {
            source.send(H264, Duration::from_millis(100))?;
            source.send(H265, Duration::from_millis(100))?;
        }
        Ok(())
    });
    assert!(
        matches!(result, Err(Halt::Source(SourceError::Restless))),
        "{result:?}"
    );
    // The next attempt goes on.
    site.run(|source| source.send(H264, Duration::from_secs(2)))
        .unwrap();
}

#[test]
fn loss_costs_what_was_lost_and_garbage_nothing_more() {
    let mut site = Site::new();
    site.run(|source| {
        // Every fortieth datagram is lost; packets of noise under the same PIDs come between.
        for round in 0..5u64 {
            for (i, datagram) in H264.chunks(7 * PACKET).enumerate() {
                let i = i as u64 + round;
                if i % 40 == 39 {
                    continue;
                }
                if i % 40 == 20 {
                    let mut noise = datagram.to_vec();
                    for (at, byte) in noise.iter_mut().enumerate() {
                        if at % PACKET > 3 {
                            *byte = (at as u64 * 31 + i) as u8;
                        }
                    }
                    source.send(&noise, Duration::from_millis(1))?;
                }
                source.send(datagram, Duration::from_millis(20))?;
            }
            source.pause(IDLE_CLOSE + Duration::from_secs(1))?;
        }
        Ok(())
    })
    .unwrap();
    assert!(!site.segments().is_empty());
    assert!(site.input.count(Count::Warnings) > 0);
}
