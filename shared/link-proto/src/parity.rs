//! Forward error correction: parity over runs of a conversation's KCP packets (RFC 6363's block codes).
//!
//! A group is named by packet numbers: `count` packets from `first`, `stride` apart. So data datagrams carry
//! nothing for it, a packet that was sent again fills its group as well as the first copy, and what is
//! recovered is an ordinary KCP packet. Groups close where the application pauses (the end of an access
//! unit) or after [`GROUP_TIME`], so nothing waits for parity; where losses come in bursts, several groups
//! are open at once and take packets in turn, so that a burst is shared among them.
//!
//! A shard is what of a packet is the same each time it is sent: length u16, fragment u8, data.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    arrivals::Arrivals,
    erasure::{self, MAX_PARITIES, MAX_SHARDS},
};

/// A group stays open for so long at most.
pub(crate) const GROUP_TIME: Duration = Duration::from_millis(10);

/// Groups that are open at once.
pub(crate) const MAX_STRIDE: u8 = 4;

/// Interleaved groups have this many packets each at least: smaller ones waste parity.
const MIN_INTERLEAVED: usize = 16;

/// Bytes of a shard before its data.
pub(crate) const SHARD_OVERHEAD: usize = 3;

/// What a receiver keeps for groups whose parity may yet come, per channel.
pub(crate) const MAX_RECENT_PACKETS: usize = 512;

/// Parities kept for groups that lack too much yet, per channel.
pub(crate) const MAX_KEPT_PARITIES: usize = 256;

/// A group that isn't whole after so long was given up, or came by other ways.
const GROUP_AGE: Duration = Duration::from_secs(2);

/// Without parity for so long, nothing is kept for it.
const UNUSED_AGE: Duration = Duration::from_secs(10);

/// Which packets a parity covers, and its number among the group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cover {
    pub(crate) conv: u32,
    pub(crate) first: u32,
    pub(crate) stride: u8,
    pub(crate) count: u8,
    pub(crate) number: u8,
}

impl Cover {
    fn is_sane(&self) -> bool {
        (1..=MAX_STRIDE).contains(&self.stride)
            && (1..=MAX_SHARDS).contains(&usize::from(self.count))
            && usize::from(self.number) < MAX_PARITIES
    }

    pub(crate) fn packets(&self) -> impl Iterator<Item = u32> + use<> {
        let Self { first, stride, .. } = *self;
        (0..u32::from(self.count)).map(move |at| first.wrapping_add(at * u32::from(stride)))
    }

    fn has(&self, sn: u32) -> bool {
        let ahead = sn.wrapping_sub(self.first);
        let stride = u32::from(self.stride);
        ahead < u32::from(self.count) * stride && ahead.is_multiple_of(stride)
    }
}

/// The shard of a packet.
pub(crate) fn shard(fragment: u8, data: &[u8]) -> Vec<u8> {
    let mut shard = Vec::with_capacity(SHARD_OVERHEAD + data.len());
    shard.extend_from_slice(&(data.len() as u16).to_be_bytes());
    shard.push(fragment);
    shard.extend_from_slice(data);
    shard
}

/// A parity that waits to leave.
pub(crate) struct Parity {
    pub(crate) cover: Cover,
    pub(crate) bytes: Vec<u8>,
    /// The group's last one.
    pub(crate) last: bool,
}

/// The sender's half.
pub(crate) struct Encoder {
    conv: u32,
    /// Open groups, filled in turn: (first packet, shards).
    groups: Vec<(u32, Vec<Vec<u8>>)>,
    stride: u8,
    packets: usize,
    /// The packet that comes after those of the open groups.
    next: u32,
    opened: Option<Instant>,
    ready: VecDeque<Parity>,
}

impl Encoder {
    pub(crate) fn new(conv: u32) -> Self {
        Self {
            conv,
            groups: Vec::new(),
            stride: 1,
            packets: 0,
            next: 0,
            opened: None,
            ready: VecDeque::new(),
        }
    }

    /// A new packet has left, of so many that will leave soon; bursts have this length on average.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        sn: u32,
        shard: Vec<u8>,
        waiting: usize,
        burst: f64,
    ) {
        debug_assert!(
            self.groups.is_empty() || sn == self.next,
            "a group is a run of packets"
        );
        self.next = sn.wrapping_add(1);
        if self.groups.is_empty() {
            self.opened = Some(now);
            let by_size = (waiting / MIN_INTERLEAVED).clamp(1, usize::from(MAX_STRIDE)) as u8;
            let by_burst = (burst.ceil() as u8).clamp(1, MAX_STRIDE);
            self.stride = by_size.min(by_burst);
        }
        if self.groups.len() < usize::from(self.stride) {
            self.groups.push((sn, vec![shard]));
        } else if let Some((_, shards)) = {
            let turn = self.packets % usize::from(self.stride);
            self.groups.get_mut(turn)
        } {
            shards.push(shard);
        }
        self.packets += 1;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.packets >= MAX_SHARDS * usize::from(self.stride)
    }

    pub(crate) fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// No packet follows soon: makes as many parities for each group as `plan` says for its size and the
    /// bytes of its longest shard. `bare` is told of packets that get none.
    pub(crate) fn close(
        &mut self,
        mut plan: impl FnMut(usize, usize) -> usize,
        mut bare: impl FnMut(u32),
    ) {
        self.opened = None;
        self.packets = 0;
        let mut rounds: Vec<VecDeque<Parity>> = Vec::new();
        for (first, shards) in std::mem::take(&mut self.groups) {
            let cover = Cover {
                conv: self.conv,
                first,
                stride: self.stride,
                count: shards.len() as u8,
                number: 0,
            };
            let longest = shards.iter().map(Vec::len).max().unwrap_or(0);
            let parities = plan(shards.len(), longest).min(MAX_PARITIES);
            if parities == 0 {
                cover.packets().for_each(&mut bare);
                continue;
            }
            let made = (0..parities as u8).map(|number| Parity {
                cover: Cover { number, ..cover },
                bytes: erasure::parity(number, shards.iter().map(Vec::as_slice)),
                last: usize::from(number) + 1 == parities,
            });
            rounds.push(made.collect());
        }
        // A burst should not take all parities of one group.
        while !rounds.is_empty() {
            for parities in &mut rounds {
                self.ready.extend(parities.pop_front());
            }
            rounds.retain(|parities| !parities.is_empty());
        }
    }

    pub(crate) fn next_bytes(&self) -> Option<usize> {
        self.ready.front().map(|parity| parity.bytes.len())
    }

    pub(crate) fn pop(&mut self) -> Option<Parity> {
        self.ready.pop_front()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.ready.len()
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let open = self.groups.iter().flat_map(|(_, shards)| shards);
        let ready = self.ready.iter().map(|parity| &parity.bytes);
        open.chain(ready).map(Vec::capacity).sum()
    }
}

/// An authentic peer covered what can't be: its fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The receiver's half.
pub(crate) struct Decoder {
    /// Shards of packets that came lately, while there is parity at all.
    recent: BTreeMap<u32, Vec<u8>>,
    groups: VecDeque<Group>,
    kept: usize,
    used: Option<Instant>,
}

struct Group {
    cover: Cover,
    parities: Vec<(u8, Vec<u8>)>,
    since: Instant,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            recent: BTreeMap::new(),
            groups: VecDeque::new(),
            kept: 0,
            used: None,
        }
    }

    /// A packet came; `shard` is made only where it is of use.
    pub(crate) fn on_packet(&mut self, sn: u32, shard: impl FnOnce() -> Vec<u8>) {
        if self.used.is_none() || self.recent.contains_key(&sn) {
            return;
        }
        self.recent.insert(sn, shard());
        if self.recent.len() > MAX_RECENT_PACKETS {
            self.recent.pop_first();
        }
    }

    pub(crate) fn on_parity(
        &mut self,
        now: Instant,
        cover: Cover,
        bytes: &[u8],
        arrivals: &Arrivals,
    ) -> Result<(), Malformed> {
        if !cover.is_sane() || bytes.len() < SHARD_OVERHEAD {
            return Err(Malformed);
        }
        self.used = Some(now);
        self.forget(now);
        if cover.packets().all(|sn| arrivals.has(sn)) {
            return Ok(());
        }
        let of_group = |group: &&mut Group| Cover { number: 0, ..cover } == group.cover;
        match self.groups.iter_mut().find(of_group) {
            Some(group) => {
                if group
                    .parities
                    .iter()
                    .any(|(number, _)| *number == cover.number)
                {
                    return Ok(());
                }
                group.parities.push((cover.number, bytes.to_vec()));
            }
            None => self.groups.push_back(Group {
                cover: Cover { number: 0, ..cover },
                parities: vec![(cover.number, bytes.to_vec())],
                since: now,
            }),
        }
        self.kept += 1;
        while self.kept > MAX_KEPT_PARITIES {
            self.drop_oldest();
        }
        Ok(())
    }

    /// What can be had back now of groups with packet `sn`, or of any: (packet, fragment, data).
    pub(crate) fn recover(
        &mut self,
        sn: Option<u32>,
        arrivals: &Arrivals,
    ) -> Vec<(u32, u8, Vec<u8>)> {
        let mut recovered = Vec::new();
        let Self {
            recent,
            groups,
            kept,
            ..
        } = self;
        groups.retain(|group| {
            if sn.is_some_and(|sn| !group.cover.has(sn)) {
                return true;
            }
            let missing = group
                .cover
                .packets()
                .filter(|sn| !arrivals.has(*sn))
                .count();
            if missing > group.parities.len() {
                return true;
            }
            *kept -= group.parities.len();
            if missing > 0 {
                recovered.extend(group.recover(recent, arrivals));
            }
            false
        });
        recovered
    }

    /// Lets go of what is too old to be of use.
    pub(crate) fn forget(&mut self, now: Instant) {
        while self
            .groups
            .front()
            .is_some_and(|group| now >= group.since + GROUP_AGE)
        {
            self.drop_oldest();
        }
        if self.used.is_some_and(|used| now >= used + UNUSED_AGE) {
            *self = Self::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let parities = self.groups.iter().flat_map(|group| &group.parities);
        let parities = parities.map(|(_, bytes)| bytes.capacity());
        let recent = self.recent.values().map(Vec::capacity);
        recent.chain(parities).sum()
    }

    /// When there is something to forget.
    pub(crate) fn forget_at(&self) -> Option<Instant> {
        self.used.map(|used| used + UNUSED_AGE)
    }

    fn drop_oldest(&mut self) {
        if let Some(group) = self.groups.pop_front() {
            self.kept -= group.parities.len();
        } else {
            self.kept = 0;
        }
    }
}

impl Group {
    fn recover(
        &self,
        recent: &BTreeMap<u32, Vec<u8>>,
        arrivals: &Arrivals,
    ) -> Vec<(u32, u8, Vec<u8>)> {
        let mut shards = Vec::with_capacity(self.cover.count.into());
        for sn in self.cover.packets() {
            let shard = recent.get(&sn).map(Vec::as_slice);
            if shard.is_none() && arrivals.has(sn) {
                return Vec::new(); // it came before anything was kept
            }
            shards.push(shard);
        }
        let parities: Vec<_> = self
            .parities
            .iter()
            .map(|(number, bytes)| (*number, bytes.as_slice()))
            .collect();
        erasure::recover(&shards, &parities)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(place, bytes)| {
                let ([high, low, fragment], data) = bytes.split_first_chunk::<SHARD_OVERHEAD>()?;
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let sn = self.cover.packets().nth(place)?;
                Some((sn, *fragment, data.get(..length)?.to_vec()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim;

    const CONV: u32 = 5;
    const WINDOW: u16 = 1024;

    fn data(sn: u32) -> Vec<u8> {
        vec![sn as u8 + 1; 10 + sn as usize % 7]
    }

    /// Parities over packets from `from` on.
    fn parities(from: u32, packets: u32, each: usize, waiting: usize, burst: f64) -> Vec<Parity> {
        let now = sim::start();
        let mut encoder = Encoder::new(CONV);
        for sn in from..from + packets {
            encoder.add(now, sn, shard(sn as u8, &data(sn)), waiting, burst);
        }
        assert_eq!(encoder.opened(), Some(now));
        encoder.close(|_, _| each, |_| panic!("none is bare"));
        assert_eq!(encoder.opened(), None);
        std::iter::from_fn(|| encoder.pop()).collect()
    }

    fn receive(decoder: &mut Decoder, arrivals: &mut Arrivals, sn: u32) {
        arrivals.on_packet(sn, WINDOW);
        decoder.on_packet(sn, || shard(sn as u8, &data(sn)));
    }

    #[test]
    fn lost_packets_come_back_from_parity_and_from_a_late_copy() {
        let now = sim::start();
        let (mut decoder, mut arrivals) = (Decoder::new(), Arrivals::new());
        let give = |decoder: &mut Decoder, arrivals: &Arrivals, parity: &Parity| {
            decoder
                .on_parity(now, parity.cover, &parity.bytes, arrivals)
                .unwrap();
            decoder.recover(None, arrivals)
        };
        for parity in parities(0, 4, 1, 4, 1.0) {
            assert!(give(&mut decoder, &arrivals, &parity).is_empty());
        }
        for sn in (4..16).filter(|sn| ![5, 9, 15].contains(sn)) {
            receive(&mut decoder, &mut arrivals, sn);
        }
        let all = parities(4, 12, 2, 12, 1.0);
        assert!(all[1].last && !all[0].last);
        assert!(give(&mut decoder, &arrivals, &all[0]).is_empty());
        assert!(give(&mut decoder, &arrivals, &all[0]).is_empty(), "a copy");
        assert!(give(&mut decoder, &arrivals, &all[1]).is_empty());
        receive(&mut decoder, &mut arrivals, 9);
        assert!(
            decoder.recover(Some(3), &arrivals).is_empty(),
            "another group's"
        );
        assert_eq!(
            decoder.recover(Some(9), &arrivals),
            [(5, 5, data(5)), (15, 15, data(15))]
        );
        assert_eq!(
            decoder.kept, 1,
            "of the first, whose packets came before any parity"
        );
    }

    #[test]
    fn groups_take_packets_in_turn_where_losses_come_in_bursts() {
        let all = parities(0, 34, 1, 34, 7.5);
        let covers: Vec<_> = all
            .iter()
            .map(|parity| (parity.cover.first, parity.cover.stride, parity.cover.count))
            .collect();
        assert_eq!(covers, [(0, 2, 17), (1, 2, 17)]);
        assert_eq!(parities(0, 15, 1, 15, 7.5)[0].cover.stride, 1);
        assert_eq!(parities(0, 64, 1, 64, 1.0)[0].cover.stride, 1);
    }

    #[test]
    fn what_is_kept_is_bounded_by_count_and_age() {
        let now = sim::start();
        let (mut decoder, arrivals) = (Decoder::new(), Arrivals::new());
        for first in 0..1000 {
            let cover = Cover {
                conv: CONV,
                first,
                stride: 1,
                count: 9,
                number: 3,
            };
            decoder.on_parity(now, cover, &[0; 9], &arrivals).unwrap();
            decoder.on_packet(first, || vec![0; 9]);
        }
        assert_eq!(decoder.kept, MAX_KEPT_PARITIES);
        assert_eq!(decoder.recent.len(), MAX_RECENT_PACKETS);
        decoder.forget(now + GROUP_AGE);
        assert_eq!((decoder.kept, decoder.groups.len()), (0, 0));
        decoder.forget(decoder.forget_at().unwrap());
        assert!(decoder.recent.is_empty() && decoder.forget_at().is_none());
    }

    #[test]
    fn what_no_sender_covers_is_refused() {
        let (mut decoder, arrivals) = (Decoder::new(), Arrivals::new());
        let good = Cover {
            conv: CONV,
            first: 0,
            stride: 1,
            count: 1,
            number: 0,
        };
        for (cover, bytes) in [
            (Cover { stride: 0, ..good }, 9),
            (Cover { stride: 5, ..good }, 9),
            (Cover { count: 0, ..good }, 9),
            (Cover { count: 65, ..good }, 9),
            (Cover { number: 64, ..good }, 9),
            (good, 2),
        ] {
            assert_eq!(
                decoder.on_parity(sim::start(), cover, &vec![0; bytes], &arrivals),
                Err(Malformed)
            );
        }
        assert_eq!(decoder.kept, 0);
    }
}
