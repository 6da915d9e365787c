//! Who holds a listener's places, and who gives one up when all are taken.
//!
//! A connection with nothing in flight (kept alive, or still dribbling its request's head) makes room for a
//! new one, the longest idle first: thousands of them keep no viewer out. One that is being answered keeps
//! its place; how slowly an answer may be taken is for [`crate::stalled`] to say.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The places of one listener.
pub(crate) struct Places {
    limit: usize,
    started: Instant,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    holders: BTreeMap<u64, Arc<Holder>>,
}

struct Holder {
    in_flight: AtomicU32,
    /// Milliseconds since the start.
    idle_since_ms: AtomicU64,
    leave: CancellationToken,
}

/// A connection's place; given back when it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    holder: Arc<Holder>,
}

/// What became of a wish for a place.
pub(crate) enum Wish {
    Free(Place),
    /// Another connection was told to leave.
    Made(Place),
    /// Every place is being answered.
    None,
}

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            started: Instant::now(),
            taken: Mutex::default(),
        })
    }

    pub(crate) fn take(self: &Arc<Self>) -> Wish {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = taken.holders.len() >= self.limit;
        if full {
            let idlest = taken
                .holders
                .iter()
                .filter(|(_, holder)| holder.in_flight.load(Ordering::Relaxed) == 0)
                .min_by_key(|(_, holder)| holder.idle_since_ms.load(Ordering::Relaxed))
                .map(|(number, _)| *number);
            let Some(holder) = idlest.and_then(|number| taken.holders.remove(&number)) else {
                return Wish::None;
            };
            holder.leave.cancel();
        }
        let holder = Arc::new(Holder {
            in_flight: AtomicU32::new(0),
            idle_since_ms: AtomicU64::new(self.now_ms()),
            leave: CancellationToken::new(),
        });
        let number = taken.next;
        taken.next += 1;
        taken.holders.insert(number, holder.clone());
        let place = Place {
            places: self.clone(),
            number,
            holder,
        };
        if full {
            Wish::Made(place)
        } else {
            Wish::Free(place)
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Place {
    /// Cancelled when the connection must go.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.holder.leave.clone()
    }

    /// A request has begun; it ends when the answer's body is sent and what this gives is dropped.
    pub(crate) fn begin(&self) -> InFlight {
        self.holder.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight {
            places: self.places.clone(),
            holder: self.holder.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.holders.remove(&self.number);
    }
}

pub(crate) struct InFlight {
    places: Arc<Places>,
    holder: Arc<Holder>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.holder
            .idle_since_ms
            .store(self.places.now_ms(), Ordering::Relaxed);
        self.holder.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body with the request that it answers.
pub(crate) struct Answering {
    pub(crate) body: Body,
    pub(crate) _request: InFlight,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn place(wish: Wish) -> Place {
        match wish {
            Wish::Free(place) | Wish::Made(place) => place,
            Wish::None => panic!("no place"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_its_place_up_and_the_busy_keep_theirs() {
        let places = Places::new(3);
        let later = || tokio::time::sleep(Duration::from_millis(10));
        let first = place(places.take());
        later().await;
        let second = place(places.take());
        later().await;
        let third = place(places.take());
        later().await;
        // The first was busy until now, the second is: the third is the longest idle.
        let busy = second.begin();
        drop(first.begin());
        let fourth = places.take();
        assert!(matches!(fourth, Wish::Made(_)));
        let fourth = place(fourth);
        assert!(third.leave().is_cancelled());
        assert!(!first.leave().is_cancelled() && !second.leave().is_cancelled());
        let others = [first.begin(), fourth.begin()];
        assert!(matches!(places.take(), Wish::None));
        drop((busy, others));
        // One that was told to leave and goes frees nobody else's place.
        drop(third);
        assert!(matches!(places.take(), Wish::Made(_)));
        drop(second);
        assert!(matches!(places.take(), Wish::Free(_)));
    }
}
