//! Waiting for the hub: how a stream stands, and when to give up.
//!
//! [`Patience`] is pure; the clock is an argument.

use std::time::{Duration, Instant};

use anyhow::Result;
use link::uplink::{LinkState, UplinkStatus};
use model::{HoleReason, StreamName};
use store::TroubleKind;
use tokio::task::spawn_blocking;

use crate::{ingest, node::Node};

/// Media bytes sent for the first time that count as going on although no segment was stored yet: a large
/// segment over a thin link takes its time. What goes again and again, to a hub whose disk is full, does not
/// count.
const PROGRESS_BYTES: u64 = 64 << 10;

/// How a stream stands between this disk and the hub.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    pub(crate) unshipped: u64,
    pub(crate) unshipped_bytes: u64,
    pub(crate) link: UplinkStatus,
    pub(crate) disk_full: bool,
    /// The hub has confirmed the end that the stream was told.
    pub(crate) ended_on_hub: bool,
    /// Segments on this disk that the hub settled without having them, by reason.
    pub(crate) given_up: Vec<(HoleReason, u64)>,
}

impl Standing {
    /// Asks store and uplink.
    pub(crate) async fn look(node: &Node, stream: &StreamName) -> Result<Self> {
        let (store, name) = (node.store.clone(), stream.clone());
        let (summary, disk_full, ended_on_hub, given_up) = spawn_blocking(move || {
            let summary = store.stream(&name)?;
            let ended = summary.is_some() && store.ended_on_hub(&name)?;
            let given_up = match &summary {
                Some(_) => store.given_up(&name)?,
                None => Vec::new(),
            };
            let trouble = store.disk_trouble();
            let full = trouble.is_some_and(|trouble| trouble.kind == TroubleKind::Full)
                || store.should_hold_back()?;
            Ok::<_, store::StoreError>((summary, full, ended, given_up))
        })
        .await??;
        let (unshipped, unshipped_bytes) =
            summary.map_or((0, 0), |s| (s.unshipped, s.unshipped_bytes));
        Ok(Self {
            unshipped,
            unshipped_bytes,
            link: node.link.borrow().clone(),
            disk_full,
            ended_on_hub,
            given_up,
        })
    }

    pub(crate) fn connected(&self) -> bool {
        matches!(self.link.state, LinkState::Connected { .. })
    }

    /// What the ingest thread goes by.
    pub(crate) fn for_gate(&self) -> ingest::Standing {
        ingest::Standing {
            unshipped: self.unshipped,
            unshipped_bytes: self.unshipped_bytes,
            connected: self.connected(),
            disk_full: self.disk_full,
        }
    }

    /// Why the hub will not take this stream however long one waits; an operator has to act.
    pub(crate) fn refusal(&self, stream: &StreamName) -> Option<String> {
        if let LinkState::Refused { reason } = &self.link.state {
            return Some(format!("the hub refuses this device: {reason}"));
        }
        let mut refused = self.link.refused_streams.iter();
        let (_, reason) = refused.find(|(name, _)| name == stream)?;
        Some(format!("the hub refuses stream {stream}: {reason}"))
    }

    /// Why nothing goes on, as a fragment.
    pub(crate) fn trouble(&self, stream: &StreamName) -> String {
        if let Some(refusal) = self.refusal(stream) {
            return refusal;
        }
        match &self.link.state {
            LinkState::Unreachable { why } => why.clone(),
            LinkState::Connecting => "the hub has not answered yet".to_owned(),
            _ if self.unshipped == 0 => "the hub has not confirmed the stream's end".to_owned(),
            _ => "the hub has not taken them yet".to_owned(),
        }
    }
}

/// Gives up once nothing has gone on for so long.
#[derive(Debug)]
pub(crate) struct Patience {
    wait: Duration,
    since: Instant,
    least_unshipped: u64,
    sent: u64,
}

impl Patience {
    pub(crate) fn new(wait: Duration, now: Instant) -> Self {
        Self {
            wait,
            since: now,
            least_unshipped: u64::MAX,
            sent: 0,
        }
    }

    /// Whether to go on waiting.
    pub(crate) fn goes_on(&mut self, standing: &Standing, now: Instant) -> bool {
        let sent = standing.link.counters.new_bytes_sent;
        let stored = standing.unshipped < self.least_unshipped;
        let sending = standing.connected() && sent.saturating_sub(self.sent) >= PROGRESS_BYTES;
        if stored || sending {
            self.since = now;
            self.sent = sent;
        }
        self.least_unshipped = self.least_unshipped.min(standing.unshipped);
        now.saturating_duration_since(self.since) < self.wait
    }
}

#[cfg(test)]
mod tests {
    use model::WallTime;

    use super::*;

    fn standing(unshipped: u64, sent: u64, connected: bool) -> Standing {
        let mut standing = Standing {
            unshipped,
            ..Standing::default()
        };
        standing.link.counters.new_bytes_sent = sent;
        standing.link.counters.bytes_sent = 1 << 40;
        if connected {
            standing.link.state = LinkState::Connected {
                device: "pole-7".parse().unwrap(),
                since: WallTime(0),
            };
        }
        standing
    }

    #[test]
    fn patience_ends_when_nothing_goes_on() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut patience = Patience::new(Duration::from_secs(60), start);
        assert!(patience.goes_on(&standing(9, 0, false), at(0)));
        assert!(patience.goes_on(&standing(9, 0, false), at(59)));
        assert!(
            patience.goes_on(&standing(8, 0, true), at(59)),
            "one stored"
        );
        assert!(patience.goes_on(&standing(8, 50_000, true), at(100)));
        assert!(
            patience.goes_on(&standing(8, 70_000, true), at(118)),
            "sending"
        );
        assert!(patience.goes_on(&standing(8, 80_000, true), at(177)));
        assert!(!patience.goes_on(&standing(8, 80_000, true), at(178)));
    }

    #[test]
    fn what_is_sent_to_nobody_is_no_progress() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(5), start);
        assert!(patience.goes_on(&standing(1, 0, false), start));
        let later = start + Duration::from_secs(5);
        assert!(!patience.goes_on(&standing(1, 1 << 30, false), later));
    }

    #[test]
    fn refusals_name_who_is_refused() {
        let gate: StreamName = "gate".parse().unwrap();
        let mut standing = standing(1, 0, true);
        assert_eq!(standing.refusal(&gate), None);
        let reason = "it belongs to pole-8".to_owned();
        standing.link.refused_streams = vec![(gate.clone(), reason)];
        assert_eq!(
            standing.trouble(&gate),
            "the hub refuses stream gate: it belongs to pole-8"
        );
        assert_eq!(standing.refusal(&"yard".parse().unwrap()), None);
        standing.link.state = LinkState::Refused {
            reason: "disabled".to_owned(),
        };
        assert!(standing.trouble(&gate).contains("this device: disabled"));
    }
}
