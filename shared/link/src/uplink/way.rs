//! The way to the hub: its address, asked for again when it is lost, and why nothing comes back from it.
//!
//! What a session is, and what is said in it, is none of its business.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{
    LinkError,
    reach::{self, Reach},
    resolve::{ResolvePlan, resolve},
};

/// While nothing comes back, it is looked this often why.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);

pub(super) struct Way {
    /// `HOST:PORT`, as it was enrolled.
    hub: String,
    address: SocketAddr,
    answer_timeout: Duration,
    plan: ResolvePlan,
    resolving: bool,
    resolved: (
        mpsc::Sender<io::Result<SocketAddr>>,
        mpsc::Receiver<io::Result<SocketAddr>>,
    ),
    /// Since when the hub is waited for, while it has not answered.
    unanswered_since: Option<Instant>,
    /// Why nothing comes back: asked, and when to ask again.
    reach: (mpsc::Sender<Reach>, mpsc::Receiver<Reach>),
    look_at: Option<Instant>,
}

/// What was asked for has come.
pub(super) enum News {
    Resolved(io::Result<SocketAddr>),
    Looked(Reach),
}

impl Way {
    /// To a hub that was resolved just now, and has not answered yet.
    pub(super) fn new(
        now: Instant,
        hub: String,
        address: SocketAddr,
        answer_timeout: Duration,
    ) -> Self {
        let mut plan = ResolvePlan::default();
        plan.due(now, 0);
        Self {
            hub,
            address,
            answer_timeout,
            plan,
            resolving: false,
            resolved: mpsc::channel(1),
            unanswered_since: Some(now),
            reach: mpsc::channel(1),
            look_at: None,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, unless it was so before.
    pub(super) fn wait_for_answer(&mut self, now: Instant) {
        if self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
            self.look_at = None;
        }
    }

    pub(super) fn answered(&mut self) {
        self.unanswered_since = None;
    }

    /// Asks for the hub's name again when it is time.
    pub(super) fn resolve_again(&mut self, now: Instant, attempts: u32) {
        if self.resolving || !self.plan.due(now, attempts) {
            return;
        }
        self.resolving = true;
        let (hub, like) = (self.hub.clone(), self.address);
        let answer = self.resolved.0.clone();
        tokio::spawn(async move {
            // Nobody listens any more where the uplink has ended.
            let _ = answer.send(resolve(&hub, Some(like)).await).await;
        });
    }

    /// The hub's address by now, if its name has one.
    pub(super) fn on_resolved(&mut self, found: io::Result<SocketAddr>) -> Option<SocketAddr> {
        self.resolving = false;
        match found {
            Ok(address) => {
                if address != self.address {
                    tracing::info!(from = %self.address, to = %address, "the hub has another address");
                }
                self.address = address;
                Some(address)
            }
            Err(error) => {
                tracing::debug!(%error, hub = self.hub, "failed to resolve");
                None
            }
        }
    }

    /// Nothing has come back for so long: looks why, and again now and then.
    pub(super) fn look_why(&mut self, now: Instant) {
        if self.look_why_at().is_none_or(|at| at > now) {
            return;
        }
        self.look_at = Some(now + LOOK_INTERVAL);
        let (hub, answer) = (self.hub.clone(), self.reach.0.clone());
        tokio::spawn(async move {
            // Nobody listens any more where the uplink has ended.
            let _ = answer.send(reach::look(&hub).await).await;
        });
    }

    /// What to say of it; nothing if it answered, or was not waited for, while it was looked why it did not.
    pub(super) fn on_looked(&self, now: Instant, reach: Reach) -> Option<String> {
        let unreachable = self.unreachable_at().is_some_and(|at| at <= now);
        let address = self.hub.clone();
        unreachable.then(|| LinkError::NoAnswer { address, reach }.to_string())
    }

    /// When it is looked why nothing comes back, while something is waited for.
    pub(super) fn look_why_at(&self) -> Option<Instant> {
        let at = self.unreachable_at()?;
        Some(self.look_at.map_or(at, |look_at| look_at.max(at)))
    }

    /// The next answer to what was asked. Nothing is lost if this is dropped.
    pub(super) async fn news(&mut self) -> Option<News> {
        tokio::select! {
            found = self.resolved.1.recv() => found.map(News::Resolved),
            reach = self.reach.1.recv() => reach.map(News::Looked),
        }
    }

    /// When the hub counts as unreachable, while it is waited for.
    fn unreachable_at(&self) -> Option<Instant> {
        Some(self.unanswered_since? + self.answer_timeout)
    }
}
