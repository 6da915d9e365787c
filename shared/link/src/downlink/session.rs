//! One session as the loop sees it: how far its peer has come, and what waits to be said to it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Channel, Endpoint, HubEndpoint, MAX_CREDIT_BYTES, SessionId, SessionStats, messages::ToEdge,
};
use model::{DeviceName, SegmentNumber, StreamName, WallTime};
use store::Store;

use super::{
    SessionStatus,
    app::Input,
    sight::Sight,
    turns::{News, Turn, Turns},
    worker::{Work, Worker},
};
use crate::wall_now;

/// A peer that has keys but does not say who it is, or does not confirm, is sent away after this.
const STRANGER_TIME: Duration = Duration::from_secs(20);
/// A refusal is heard within this, or not.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// Answers that wait for a session's control channel from which on its messages are not paid back.
const MAX_ANSWERS: usize = 256;

/// Answers that wait for a peer that takes none: from here on it is at fault. An honest one has some hundreds.
const MAX_ANSWERS_HELD: usize = 4_096;
/// Bytes of messages that a session's thread has not dealt with. Credit bounds them to one set of windows; a
/// renewal of the channels gives new credit, so two sets may be there, and no more.
const MAX_IN_HAND_BYTES: usize = 2 * MAX_CREDIT_BYTES;
/// What a message costs beside its bytes, as the link's credit counts it.
const MESSAGE_OVERHEAD: usize = 64;
/// A change of address is logged and written down this often at most.
const MOVE_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Session {
    pub(super) peer_key: [u8; 32],
    pub(super) peer: SocketAddr,
    pub(super) since: WallTime,
    pub(super) seen_at: Instant,
    /// Its clock less ours, as it said who it is.
    pub(super) clock_ahead_ms: i64,
    /// Counts renewals of the channels: what was asked before is not answered after.
    pub(super) generation: u64,
    pub(super) state: State,
    pub(super) answers: VecDeque<ToEdge>,
    /// Messages dealt with whose credit is given once the answers are on their way.
    pub(super) owed: Vec<(Channel, usize)>,
    in_hand_bytes: usize,
    moved_at: Option<Instant>,
    turns: Turns,
    /// The last of viewers' asks that it was told.
    wants_told: u64,
}

pub(super) enum State {
    /// Has not said who it is; `asked`: it has, and the catalog is looked at.
    Stranger { until: Instant, asked: bool },
    /// Its token is good; it stores its identity.
    Enrolling { until: Instant, token: Bytes },
    /// Has confirmed; it ends the session.
    Enrolled { until: Instant },
    Member {
        device: DeviceName,
        worker: Worker<Input>,
        sight: Arc<Sight>,
    },
    /// Was told why it may not stay.
    Leaving { until: Instant },
}

impl Session {
    pub(super) fn new(now: Instant, peer_key: [u8; 32], peer: SocketAddr) -> Self {
        Self {
            peer_key,
            peer,
            since: wall_now(),
            seen_at: now,
            clock_ahead_ms: 0,
            generation: 0,
            state: State::Stranger {
                until: now + STRANGER_TIME,
                asked: false,
            },
            answers: VecDeque::new(),
            owed: Vec::new(),
            in_hand_bytes: 0,
            moved_at: None,
            turns: Turns::default(),
            wants_told: 0,
        }
    }

    /// What viewers wait for and it has not told its device; none while much else waits to be said.
    pub(super) fn wants(&mut self, store: &Store) -> Vec<ToEdge> {
        let State::Member { device, .. } = &self.state else {
            return Vec::new();
        };
        if self.answers.len() >= MAX_ANSWERS {
            return Vec::new();
        }
        let (told, wanted) = store.wants_of(device, self.wants_told);
        self.wants_told = told;
        let wants = wanted.into_iter();
        wants
            .map(|(stream, ranges)| ToEdge::Want { stream, ranges })
            .collect()
    }

    /// Its device has forgotten what was asked of it.
    pub(super) fn forget_wants(&mut self) {
        self.wants_told = 0;
    }

    /// Its thread has got a message; false: it has too much in hand.
    pub(super) fn hand(&mut self, bytes: usize) -> bool {
        self.in_hand_bytes += bytes + MESSAGE_OVERHEAD;
        self.in_hand_bytes <= MAX_IN_HAND_BYTES
    }

    /// Its thread has dealt with a message.
    pub(super) fn dealt(&mut self, bytes: usize) {
        self.in_hand_bytes = self.in_hand_bytes.saturating_sub(bytes + MESSAGE_OVERHEAD);
    }

    pub(super) fn takes_no_answers(&self) -> bool {
        self.answers.len() > MAX_ANSWERS_HELD
    }

    /// Its peer has another address; whether to tell of it.
    pub(super) fn moved(&mut self, now: Instant, to: SocketAddr) -> bool {
        self.peer = to;
        let told = self.moved_at.is_some_and(|at| now < at + MOVE_INTERVAL);
        if !told {
            self.moved_at = Some(now);
        }
        !told
    }

    /// Its token is good; it has to confirm within some time.
    pub(super) fn may_enrol(&mut self, now: Instant, token: Bytes) {
        self.state = State::Enrolling {
            until: now + STRANGER_TIME,
            token,
        };
    }

    /// It has confirmed; it should go now.
    pub(super) fn enrolled(&mut self, now: Instant) {
        self.state = State::Enrolled {
            until: now + STRANGER_TIME,
        };
    }

    /// It may not stay: what it was until now.
    pub(super) fn leave(&mut self, now: Instant) -> State {
        self.answers.clear();
        let leaving = State::Leaving {
            until: now + REFUSAL_TIME,
        };
        std::mem::replace(&mut self.state, leaving)
    }

    /// Sends what the control channel takes and pays credit back. Gives what is left to do.
    pub(super) fn send(&mut self, now: Instant, endpoint: &mut HubEndpoint, id: SessionId) -> Left {
        while !self.answers.is_empty() && endpoint.send_budget(id, Channel::Control) > 0 {
            let Some(answer) = self.answers.pop_front() else {
                break;
            };
            if let Err(error) = endpoint.send(now, id, Channel::Control, answer.encode()) {
                tracing::debug!(session = %id, %error, "failed to answer");
                break;
            }
        }
        if self.answers.len() < MAX_ANSWERS {
            for (channel, bytes) in self.owed.drain(..) {
                endpoint.consumed(id, channel, bytes);
            }
        }
        let unheard = || {
            endpoint
                .stats(id)
                .is_some_and(|stats| stats.outstanding_bytes > 0)
        };
        match self.state {
            State::Leaving { until } if until <= now => Left::Close,
            State::Leaving { .. } if self.answers.is_empty() && !unheard() => Left::Close,
            State::Leaving { .. } => Left::More,
            _ if self.answers.is_empty() => Left::Nothing,
            _ => Left::More,
        }
    }

    /// It had its time to say who it is, to confirm, or to go.
    pub(super) fn is_too_slow(&self, now: Instant) -> bool {
        match self.state {
            State::Stranger { until, .. }
            | State::Enrolling { until, .. }
            | State::Enrolled { until } => until <= now,
            State::Member { .. } | State::Leaving { .. } => false,
        }
    }

    /// Logs where its link has turned bad, or good again.
    pub(super) fn tell_turns(&mut self, now: Instant, stats: &SessionStats) {
        let State::Member { device, .. } = &self.state else {
            return;
        };
        for news in self.turns.look(now, stats) {
            match news {
                News::Began {
                    turn: Turn::Loss,
                    worst: loss,
                } => {
                    tracing::warn!(%device, peer = %self.peer, loss, "a link has turned bad: much of what the device sends is lost");
                }
                News::Began {
                    turn: Turn::Rtt,
                    worst: times,
                } => {
                    tracing::warn!(%device, peer = %self.peer, rtt = ?stats.rtt, times, "a link has turned bad: its round trip is a multiple of the usual one");
                }
                News::Began {
                    turn: Turn::Silence,
                    ..
                } => {
                    tracing::warn!(%device, peer = %self.peer, "a link has turned bad: the device is silent");
                }
                News::Ended {
                    turn: Turn::Loss,
                    worst: worst_loss,
                    lasted,
                } => {
                    tracing::info!(%device, ?lasted, worst_loss, "a link is good again: little is lost");
                }
                News::Ended {
                    turn: Turn::Rtt,
                    worst: worst_times,
                    lasted,
                } => {
                    tracing::info!(%device, ?lasted, worst_times, "a link is good again: its round trip is as usual");
                }
                News::Ended {
                    turn: Turn::Silence,
                    lasted,
                    ..
                } => {
                    tracing::info!(%device, ?lasted, "a link is good again: the device is heard");
                }
            }
        }
    }

    /// Has what is missing counted, where that has changed.
    pub(super) fn count_backlogs(&self) {
        if let State::Member { worker, sight, .. } = &self.state
            && sight.take_wants_count()
        {
            // Where there is no room the next message finds that out.
            let _ = worker.give(Work::Count);
        }
    }

    /// For the status page, if it is a member.
    pub(super) fn status(&self, now: Instant, stats: &SessionStats) -> Option<SessionStatus> {
        let State::Member { device, sight, .. } = &self.state else {
            return None;
        };
        let (said, streams) = sight.look(now);
        Some(SessionStatus {
            device: device.clone(),
            peer: self.peer,
            since: self.since,
            rtt: stats.rtt,
            loss: stats.loss,
            bytes_received: stats.bytes_received,
            clock_ahead_ms: self.clock_ahead_ms,
            packets_recovered: stats.packets_recovered,
            said,
            streams,
        })
    }
}

/// What a session has left to do once its channel is full or its answers are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    More,
    /// It was refused, and has heard it or had its time.
    Close,
}

pub(super) fn welcome(name: DeviceName, floors: Vec<(StreamName, SegmentNumber)>) -> ToEdge {
    ToEdge::Welcome {
        name,
        hub_time: wall_now(),
        floors,
    }
}
