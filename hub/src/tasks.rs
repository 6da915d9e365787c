//! The daemon's tasks: they run together and end together.

use std::{future::Future, time::Duration};

use anyhow::{Result, anyhow};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Time for sessions to hear `Bye` and requests to end, above HTTP's own limit.
const MAX_SHUTDOWN: Duration = Duration::from_secs(10);

/// Tasks by name.
#[derive(Default)]
pub(crate) struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for `stop`, or for a task that ends before it, which is an error and stops the others;
    /// then for all, within [`MAX_SHUTDOWN`].
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        // One that only ended may have ended because another fails, and be seen before it.
        let (first, is_cause) = tokio::select! {
            () = stop.cancelled() => (Ok(()), true),
            Some(ended) = self.set.join_next() => {
                let failed = !matches!(ended, Ok((_, Ok(()))));
                (outcome(ended, stop), failed)
            }
        };
        stop.cancel();
        tracing::info!("stopping");
        let rest = timeout(MAX_SHUTDOWN, async {
            let mut result = Ok(());
            while let Some(ended) = self.set.join_next().await {
                result = result.and(outcome(ended, stop));
            }
            result
        });
        let late = |_| {
            Err(anyhow!(
                "could not stop in order within {} s",
                MAX_SHUTDOWN.as_secs()
            ))
        };
        let rest = rest.await.unwrap_or_else(late);
        let result = if is_cause {
            first.and(rest)
        } else {
            rest.and(first)
        };
        if result.is_ok() {
            tracing::info!("stopped");
        }
        result
    }
}

/// Whether a task's end is in order: asked to stop, and without an error.
fn outcome(
    ended: Result<(&'static str, Result<()>), JoinError>,
    stop: &CancellationToken,
) -> Result<()> {
    match ended {
        Ok((name, Err(error))) => Err(error.context(format!("{name} failed"))),
        // The first that obeys may be seen before the asking itself is.
        Ok((_, Ok(()))) if stop.is_cancelled() => Ok(()),
        Ok((name, Ok(()))) => Err(anyhow!("{name} ended by itself")),
        Err(error) => Err(anyhow!(error).context("a task failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_task_that_fails_stops_the_others_and_is_named() {
        let stop = CancellationToken::new();
        let result = block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("link", async { Err(anyhow!("port in use")) });
            let stopped = stop.clone();
            tasks.spawn("http", async move {
                stopped.cancelled().await;
                Ok(())
            });
            tasks.run(&stop).await
        });
        assert_eq!(
            format!("{:#}", result.unwrap_err()),
            "link failed: port in use"
        );
        assert!(stop.is_cancelled());
    }

    #[test]
    fn asked_to_stop_all_end_well() {
        let stop = CancellationToken::new();
        let result = block_on(async {
            let mut tasks = Tasks::default();
            let stopped = stop.clone();
            tasks.spawn("http", async move {
                stopped.cancelled().await;
                Ok(())
            });
            stop.cancel();
            tasks.run(&stop).await
        });
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn one_that_obeys_at_once_has_not_ended_by_itself() {
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let result = block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("http", async move {
                asked.cancel();
                Ok(())
            });
            tasks.run(&stop).await
        });
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn one_that_ends_by_itself_is_an_error() {
        let stop = CancellationToken::new();
        let result = block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("janitor", async { Ok(()) });
            tasks.run(&stop).await
        });
        assert_eq!(result.unwrap_err().to_string(), "janitor ended by itself");
    }

    #[test]
    fn one_that_does_not_stop_is_left_behind() {
        let stop = CancellationToken::new();
        stop.cancel();
        let result = block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("http", std::future::pending());
            tasks.run(&stop).await
        });
        assert!(result.unwrap_err().to_string().contains("within 10 s"));
    }
}
