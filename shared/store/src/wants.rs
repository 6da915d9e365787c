//! What viewers wait for that is still on its device (hub): the link asks the device for it ahead of the rest.
//!
//! Kept in memory, and only for as long as somebody asks again: whoever loses it loses nothing but time. Viewers are
//! strangers, so all of it is bounded (invariant 5); which device ships a stream, and what of it is not here, is the
//! catalog's word.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use model::{DeviceName, RangeSet, SegmentNumber, StreamName, WallTime};
use tokio::sync::watch;

use crate::{
    Store,
    catalog::{segments, streams},
    error::Result,
};

/// For how long an ask holds unless it is renewed: a player asks again within some seconds.
pub const WANT_EXPIRES: Duration = Duration::from_secs(60);
/// Most ranges of one stream that are asked for at a time; of more the oldest ask is forgotten.
pub const MAX_WANTED_RANGES: usize = 64;
/// Most streams of which anything is; of more the one asked for longest ago is forgotten.
const MAX_WANTED_STREAMS: usize = 1_024;

/// What is asked for.
pub(crate) struct Wants {
    streams: Mutex<BTreeMap<StreamName, Asks>>,
    /// The number of the last new ask.
    last: watch::Sender<u64>,
}

struct Asks {
    device: DeviceName,
    /// In the order of the asks; at most [`MAX_WANTED_RANGES`].
    ranges: VecDeque<Ask>,
}

struct Ask {
    range: RangeInclusive<SegmentNumber>,
    /// Counts asks that are not renewals.
    number: u64,
    until: Instant,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            streams: Mutex::default(),
            last: watch::channel(0).0,
        }
    }
}

impl Wants {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamName, Asks>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(
        &self,
        now: Instant,
        device: DeviceName,
        stream: &StreamName,
        ranges: impl Iterator<Item = RangeInclusive<SegmentNumber>>,
    ) {
        let mut streams = self.lock();
        streams.retain(|_, asks| asks.expire(now));
        if streams.len() >= MAX_WANTED_STREAMS && !streams.contains_key(stream) {
            let newest = |asks: &Asks| asks.ranges.iter().map(|ask| ask.until).max();
            let oldest = streams.iter().min_by_key(|(_, asks)| newest(asks));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                streams.remove(&oldest);
            }
        }
        let asks = streams.entry(stream.clone()).or_insert_with(|| Asks {
            device: device.clone(),
            ranges: VecDeque::new(),
        });
        // It may have been given to another one.
        asks.device = device;
        let before = *self.last.borrow();
        let mut last = before;
        for range in ranges.take(MAX_WANTED_RANGES) {
            let until = now + WANT_EXPIRES;
            let mut known = asks.ranges.iter_mut();
            match known.find(|ask| ask.range == range) {
                Some(ask) => ask.until = until,
                None => {
                    last += 1;
                    if asks.ranges.len() >= MAX_WANTED_RANGES {
                        asks.ranges.pop_front();
                    }
                    asks.ranges.push_back(Ask {
                        range,
                        number: last,
                        until,
                    });
                }
            }
        }
        if last != before {
            self.last.send_replace(last);
        }
    }

    fn of(&self, now: Instant, device: &DeviceName, after: u64) -> (u64, Vec<Wanted>) {
        let streams = self.lock();
        let of_device = streams.iter().filter(|(_, asks)| asks.device == *device);
        let wanted = of_device.map(|(stream, asks)| {
            let new = asks
                .ranges
                .iter()
                .filter(|ask| ask.number > after && ask.until > now);
            (stream.clone(), new.map(|ask| ask.range.clone()).collect())
        });
        let wanted = wanted.filter(|(_, ranges): &Wanted| !ranges.is_empty());
        let wanted = wanted.collect();
        (*self.last.borrow(), wanted)
    }

    fn devices(&self) -> Vec<DeviceName> {
        let streams = self.lock();
        let mut devices: Vec<_> = streams.values().map(|asks| asks.device.clone()).collect();
        devices.sort();
        devices.dedup();
        devices
    }
}

impl Asks {
    /// False: nothing is asked for any more.
    fn expire(&mut self, now: Instant) -> bool {
        self.ranges.retain(|ask| ask.until > now);
        !self.ranges.is_empty()
    }
}

/// Ranges of a stream that somebody waits for, at most [`MAX_WANTED_RANGES`], in the order of the asks.
pub type Wanted = (StreamName, Vec<RangeInclusive<SegmentNumber>>);

impl Store {
    /// Hub: a viewer waits for these segments. True: some of them are still on the stream's device, and it is asked
    /// for them ahead of its backlog for [`WANT_EXPIRES`], as soon as there is a link.
    pub fn want(&self, stream: &StreamName, range: RangeInclusive<SegmentNumber>) -> Result<bool> {
        let owner = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let waits = segments::any_not_here(c, row.id, &range)?;
            Ok(row.owner.filter(|_| waits))
        })?;
        Ok(self.ask_for(owner, stream, std::iter::once(range)))
    }

    /// Hub: the same of what began within these times; no bound: of the newest stretch, as
    /// [`Store::recording`] lists it.
    pub fn want_recording(
        &self,
        stream: &StreamName,
        from: Option<WallTime>,
        to: Option<WallTime>,
    ) -> Result<bool> {
        let (owner, numbers) = self.inner().catalog.read(|c| {
            let row = streams::get(c, stream)?;
            let mut numbers = RangeSet::new();
            if row.owner.is_some() {
                let newest = from.is_none() && to.is_none();
                for waiting in segments::list_not_here(c, row.id)? {
                    let at = waiting.info.wall_start;
                    let within = from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to);
                    if within && (!newest || waiting.info.number >= row.stretch_first) {
                        numbers.insert(waiting.info.number);
                    }
                }
            }
            Ok((row.owner, numbers))
        })?;
        let owner = owner.filter(|_| !numbers.is_empty());
        Ok(self.ask_for(owner, stream, numbers.iter()))
    }

    /// Asks of viewers have come in if this number is another one.
    pub fn wants(&self) -> watch::Receiver<u64> {
        self.inner().wants.last.subscribe()
    }

    /// What is to be asked of a device that was not with ask number `after`, and the number to give the next time.
    pub fn wants_of(&self, device: &DeviceName, after: u64) -> (u64, Vec<Wanted>) {
        self.inner().wants.of(Instant::now(), device, after)
    }

    /// The devices of which something is asked.
    pub fn wanted_devices(&self) -> Vec<DeviceName> {
        self.inner().wants.devices()
    }

    fn ask_for(
        &self,
        owner: Option<DeviceName>,
        stream: &StreamName,
        ranges: impl Iterator<Item = RangeInclusive<SegmentNumber>>,
    ) -> bool {
        let Some(device) = owner else {
            return false;
        };
        let wants = &self.inner().wants;
        wants.ask(Instant::now(), device, stream, ranges);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(n: u64) -> RangeInclusive<SegmentNumber> {
        SegmentNumber(n)..=SegmentNumber(n)
    }

    fn named<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> T {
        name.parse().unwrap()
    }

    #[test]
    fn asks_are_told_once_and_again_to_a_new_session_until_they_expire() {
        let (wants, mut now) = (Wants::default(), Instant::now());
        let (device, gate): (DeviceName, StreamName) = (named("site-1"), named("gate"));
        let news = wants.last.subscribe();
        wants.ask(now, device.clone(), &gate, [range(7), range(3)].into_iter());
        assert!(news.has_changed().unwrap());
        let (told, wanted) = wants.of(now, &device, 0);
        assert_eq!(wanted, [(gate.clone(), vec![range(7), range(3)])]);
        assert_eq!(wants.of(now, &named("site-2"), 0).1, []);
        assert_eq!(wants.devices(), std::slice::from_ref(&device));
        // Asked again it holds longer and is not told again.
        now += WANT_EXPIRES / 2;
        wants.ask(now, device.clone(), &gate, [range(3)].into_iter());
        assert_eq!(wants.of(now, &device, told), (told, Vec::new()));
        wants.ask(now, device.clone(), &gate, [range(9)].into_iter());
        let (told, wanted) = wants.of(now, &device, told);
        assert_eq!(wanted, [(gate.clone(), vec![range(9)])]);
        now += WANT_EXPIRES / 2;
        let again = wants.of(now, &device, 0).1;
        assert_eq!(again, [(gate.clone(), vec![range(3), range(9)])]);
        now += WANT_EXPIRES;
        assert_eq!(wants.of(now, &device, 0), (told, Vec::new()));
    }

    #[test]
    fn viewers_can_ask_for_no_more_than_fits() {
        let (wants, now) = (Wants::default(), Instant::now());
        let device: DeviceName = named("site-1");
        for n in 0..2 * MAX_WANTED_STREAMS as u64 {
            let stream = named(&format!("s{n}"));
            let later = now + Duration::from_millis(n);
            wants.ask(later, device.clone(), &stream, (0..100).map(range));
        }
        let streams = wants.lock();
        assert_eq!(streams.len(), MAX_WANTED_STREAMS);
        assert!(!streams.contains_key(&named::<StreamName>("s0")));
        assert!(
            streams
                .values()
                .all(|asks| asks.ranges.len() == MAX_WANTED_RANGES)
        );
    }
}
