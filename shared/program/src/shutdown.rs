//! Ctrl-C and SIGTERM: the first asks to end in order, the second to end at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the operator asked for so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: stop taking in, finish what is begun.
    pub first: CancellationToken,
    /// Cancelled by the second: end now.
    pub second: CancellationToken,
}

impl Shutdown {
    /// Asks as a signal would.
    pub fn ask(&self) {
        if self.first.is_cancelled() {
            self.second.cancel();
        } else {
            self.first.cancel();
        }
    }
}

/// Listens for SIGINT and SIGTERM from here on. Call within a tokio runtime.
pub fn signals() -> io::Result<Shutdown> {
    let shutdown = Shutdown::default();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        while !asked.second.is_cancelled() {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            asked.ask();
        }
    });
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_asks_the_second_insists() {
        let shutdown = Shutdown::default();
        shutdown.ask();
        assert!(shutdown.first.is_cancelled() && !shutdown.second.is_cancelled());
        shutdown.clone().ask();
        assert!(shutdown.second.is_cancelled());
    }
}
