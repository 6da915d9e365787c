//! The emulated line: two network namespaces, a TUN device in each, and threads that carry packets between
//! them as [`Shape`] says. What is sent over it is none of its business.

mod model;
mod place;

use std::{
    collections::BinaryHeap,
    net::Ipv4Addr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use tun_rs::SyncDevice;

use model::Direction;
pub use model::{Counters, Loss, Shape};
pub use place::Place;

const EDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// A packet that this machine delivers so much after its time counts as late: the figures are then of the
/// machine too.
const LATE: Duration = Duration::from_millis(5);

/// The line with its two ends.
pub struct Line {
    pub edge: Place,
    pub hub: Place,
    up: Arc<Flow>,
    down: Arc<Flow>,
}

/// What the line did in both directions.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Traffic {
    pub edge_to_hub: Counters,
    pub hub_to_edge: Counters,
    /// Packets that this machine delivered more than 5 ms late, and the latest, in milliseconds.
    pub late: u64,
    pub latest_ms: f64,
}

impl Line {
    /// Makes both ends and begins to carry. Needs root, or root's rights in a user namespace.
    pub fn lay(up: Shape, down: Shape, seed: u64) -> Result<Self> {
        let (edge, edge_device) = Place::make(EDGE)?;
        let (hub, hub_device) = Place::make(HUB)?;
        let (edge_device, hub_device) = (Arc::new(edge_device), Arc::new(hub_device));
        Ok(Self {
            edge,
            hub,
            up: Flow::begin(up, seed, edge_device.clone(), hub_device.clone())?,
            down: Flow::begin(down, seed.wrapping_add(1), hub_device, edge_device)?,
        })
    }

    /// From now on nothing passes, or everything again that would; both ways.
    pub fn set_cut(&self, cut: bool) {
        for flow in [&self.up, &self.down] {
            lock(&flow.state).direction.set_cut(cut);
        }
    }

    pub fn traffic(&self) -> Traffic {
        let (up, down) = (lock(&self.up.state), lock(&self.down.state));
        Traffic {
            edge_to_hub: up.direction.counters,
            hub_to_edge: down.direction.counters,
            late: up.late + down.late,
            latest_ms: up.latest.max(down.latest).as_secs_f64() * 1e3,
        }
    }
}

/// One direction: a thread that reads, one that writes when it is time.
struct Flow {
    state: Mutex<State>,
    more: Condvar,
}

struct State {
    direction: Direction,
    under_way: BinaryHeap<Parcel>,
    under_way_bytes: u64,
    next: u64,
    late: u64,
    latest: Duration,
}

impl Flow {
    fn begin(
        shape: Shape,
        seed: u64,
        from: Arc<SyncDevice>,
        to: Arc<SyncDevice>,
    ) -> Result<Arc<Self>> {
        let flow = Arc::new(Self {
            state: Mutex::new(State {
                direction: Direction::new(shape, seed),
                under_way: BinaryHeap::new(),
                under_way_bytes: 0,
                next: 0,
                late: 0,
                latest: Duration::ZERO,
            }),
            more: Condvar::new(),
        });
        let (reader, writer) = (flow.clone(), flow.clone());
        thread::Builder::new()
            .name("line-in".to_owned())
            .spawn(move || reader.read(&from))
            .context("thread")?;
        thread::Builder::new()
            .name("line-out".to_owned())
            .spawn(move || writer.write(&to))
            .context("thread")?;
        Ok(flow)
    }

    fn read(&self, from: &SyncDevice) {
        let start = Instant::now();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        while let Ok(len) = from.recv(&mut buffer) {
            let packet = buffer.get(..len).unwrap_or_default();
            // A namespace speaks of itself in IPv6; that is nobody's traffic.
            if packet.first().is_none_or(|byte| byte >> 4 != 4) {
                continue;
            }
            let mut state = lock(&self.state);
            let arrivals = state.direction.offer(start.elapsed(), len);
            for at in arrivals.into_iter().flatten() {
                if state.under_way_bytes + len as u64 > Direction::under_way_limit() {
                    state.direction.counters.queue_full += 1;
                    continue;
                }
                let parcel = Parcel {
                    due: start + at,
                    order: state.next,
                    packet: packet.to_vec(),
                };
                state.next += 1;
                state.under_way_bytes += len as u64;
                state.under_way.push(parcel);
            }
            drop(state);
            self.more.notify_one();
        }
    }

    fn write(&self, to: &SyncDevice) {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            match state.under_way.peek().map(|parcel| parcel.due) {
                Some(due) if due <= now => {}
                Some(due) => {
                    let waited = self.more.wait_timeout(state, due - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                None => {
                    let waited = self.more.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            let Some(parcel) = state.under_way.pop() else {
                continue;
            };
            state.under_way_bytes -= parcel.packet.len() as u64;
            let late = now - parcel.due;
            state.latest = state.latest.max(late);
            state.late += u64::from(late > LATE);
            drop(state);
            // An end that has gone takes no more; that is like any loss.
            let _ = to.send(&parcel.packet);
            state = lock(&self.state);
        }
    }
}

/// A packet with its time; the earliest is the greatest, as a heap wants it.
struct Parcel {
    due: Instant,
    order: u64,
    packet: Vec<u8>,
}

impl Ord for Parcel {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Parcel {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
