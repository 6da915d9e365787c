//! The way to the store: blocking work on blocking threads, a bounded number at a time (invariant 5).

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

use crate::answer::Refusal;

/// Jobs at the store at once. More would only wait for one another on the disk and the catalog's lock,
/// each with a thread's stack.
const MAX_DISK_JOBS: usize = 32;
/// How long a request waits for its turn before it hears that the server is busy.
const MAX_WAIT_FOR_TURN: Duration = Duration::from_secs(5);

/// Runs work that may block; clones share the limit.
#[derive(Clone)]
pub(crate) struct Disk {
    turns: Arc<Semaphore>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_DISK_JOBS)),
        }
    }

    /// Runs `work` on a blocking thread. A request that is given up meanwhile leaves its work to finish,
    /// and its turn is taken until then.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let Ok(Ok(turn)) = timeout(MAX_WAIT_FOR_TURN, self.turns.clone().acquire_owned()).await
        else {
            return Err(Refusal::busy());
        };
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        })
        .await
        .unwrap_or_else(|error| Err(Refusal::internal("finish a request", &error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_too_long_for_a_turn_hears_that_it_is_busy() {
        let disk = Disk::new();
        let held = disk.turns.acquire_many(MAX_DISK_JOBS as u32).await.unwrap();
        let refused = disk.run(|| Ok(())).await.unwrap_err();
        assert_eq!(refused.status(), 503);
        drop(held);
        assert_eq!(disk.run(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_of_its_request_only() {
        let disk = Disk::new();
        let refused = disk.run::<()>(|| panic!("a bug")).await.unwrap_err();
        assert_eq!(refused.status(), 500);
        assert_eq!(disk.turns.available_permits(), MAX_DISK_JOBS);
    }
}
