//! A value made from the store, kept until the store has changed, and made by one request at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::answer::Refusal;

/// How long a value is trusted though the store says nothing has changed: what depends on the clock (a
/// stream that falls idle) is at most this late.
const MAX_UNCHECKED: Duration = Duration::from_secs(1);

/// When a value was made: the store's count of changes, read before it was made, and the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    version: u64,
    at: Instant,
}

impl Made {
    /// Takes the marks; make the value after this.
    pub(crate) fn begin(changes: &watch::Receiver<u64>) -> Self {
        Self {
            version: *changes.borrow(),
            at: Instant::now(),
        }
    }

    /// Whether a value that was made then still holds.
    pub(crate) fn holds(self, changes: &watch::Receiver<u64>) -> bool {
        self.version == *changes.borrow() && self.at.elapsed() < MAX_UNCHECKED
    }

    pub(crate) fn age(self) -> Duration {
        self.at.elapsed()
    }
}

/// One such value.
pub(crate) struct Watched<T> {
    made: Mutex<Option<(Arc<T>, Made)>>,
    /// Held by the request that makes it anew; the others wait for what it makes.
    turn: tokio::sync::Mutex<()>,
}

impl<T> Watched<T> {
    pub(crate) fn new() -> Self {
        Self {
            made: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// The value, if it still holds: no waiting, no disk.
    pub(crate) fn fresh(&self, changes: &watch::Receiver<u64>) -> Option<Arc<T>> {
        self.lock()
            .as_ref()
            .filter(|(_, made)| made.holds(changes))
            .map(|(value, _)| value.clone())
    }

    /// The value, made anew by `make` (which is given the last one) if it no longer holds.
    pub(crate) async fn get<F>(
        &self,
        changes: &watch::Receiver<u64>,
        make: impl FnOnce(Option<Arc<T>>) -> F,
    ) -> Result<Arc<T>, Refusal>
    where
        F: Future<Output = Result<Arc<T>, Refusal>>,
    {
        if let Some(value) = self.fresh(changes) {
            return Ok(value);
        }
        let _turn = self.turn.lock().await;
        if let Some(value) = self.fresh(changes) {
            return Ok(value);
        }
        let begun = Made::begin(changes);
        let last = self.lock().as_ref().map(|(value, _)| value.clone());
        let value = make(last).await?;
        *self.lock() = Some((value.clone(), begun));
        Ok(value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Arc<T>, Made)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn is_made_once_per_change_however_many_ask() {
        let (sender, changes) = watch::channel(0u64);
        let watched = Watched::new();
        let made = AtomicUsize::new(0);
        let ask = || {
            watched.get(&changes, |last| async {
                tokio::task::yield_now().await;
                made.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(last.map_or(0, |n: Arc<u32>| *n + 1)))
            })
        };
        for round in 0..3u32 {
            let (a, b, c) = tokio::join!(ask(), ask(), ask());
            assert_eq!([*a.unwrap(), *b.unwrap(), *c.unwrap()], [round; 3]);
            assert_eq!(made.load(Ordering::Relaxed), round as usize + 1);
            sender.send_modify(|n| *n += 1);
        }
    }

    #[tokio::test]
    async fn a_failure_is_not_kept_and_a_dropped_maker_frees_its_turn() {
        let (_sender, changes) = watch::channel(0u64);
        let watched = Watched::<u32>::new();
        let refused = watched.get(&changes, |_| async { Err(Refusal::busy()) });
        assert!(refused.await.is_err());
        {
            let stuck = watched.get(&changes, |_| std::future::pending());
            let waited = tokio::time::timeout(Duration::from_millis(1), stuck).await;
            assert!(waited.is_err());
        }
        let value = watched.get(&changes, |_| async { Ok(Arc::new(7)) }).await;
        assert_eq!(*value.unwrap(), 7);
    }
}
