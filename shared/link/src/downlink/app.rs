//! What the hub does above its sessions: lets devices in, has their messages dealt with, carries answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Bye, Channel, CloseReason, Endpoint, Event, HubEndpoint, SessionId,
    messages::{ToEdge, ToHub},
};
use model::DeviceName;
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    DownlinkStatus,
    admission::{self, Question, Registry, Verdict, disabled},
    desk::Desk,
    doubles::Doubles,
    flood::{FloodWatch, News},
    session::{Left, Session, State, welcome},
    sight::Sight,
    worker::{Done, Pool, Work, Worker},
};
use crate::{
    Counters, LinkError, driver::Application, socket::SocketCounters, throttle::Throttle, wall_now,
};

/// Whether devices have changed is asked this often, so a change acts within 2 s; numbers are told as often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// It is asked and told sooner where sessions come or go, but not sooner than this.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// What all threads have said and the loop has not taken.
const INPUTS: usize = 1_024;
/// `Bye` is repeated within this.
const BYE_TIME: Duration = Duration::from_millis(200);
/// A device's `last_seen` is written this often while it stays.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Downlink {
    store: Store,
    listening: SocketAddr,
    status: watch::Sender<DownlinkStatus>,
    shutdown: CancellationToken,
    sessions: BTreeMap<SessionId, Session>,
    /// The session of each device that is connected.
    members: BTreeMap<DeviceName, SessionId>,
    /// Sessions with answers to send, and refused ones to close.
    busy: BTreeSet<SessionId>,
    pool: Pool,
    /// Of devices whose session has ended, and whose work on the disk has not.
    retired: BTreeMap<DeviceName, Worker<Input>>,
    questions: mpsc::Sender<Question>,
    admission: JoinHandle<()>,
    inputs: mpsc::Receiver<Input>,
    input: mpsc::Sender<Input>,
    /// Changes with viewers' asks.
    wants: watch::Receiver<u64>,
    check_at: Instant,
    checked_at: Instant,
    socket: Arc<SocketCounters>,
    segments_stored: u64,
    /// Segments that the store had found damaged by the last check.
    segments_lost: u64,
    floods: FloodWatch,
    /// Of lines that strangers can cause.
    complaints: Throttle,
    doubles: Doubles,
    violations: u64,
    stop_at: Option<Instant>,
    ended: bool,
}

pub(super) enum Input {
    Done(Done),
    Verdict(Verdict),
    /// Viewers wait for something that is not here.
    Wanted,
    Shutdown,
}

impl From<Done> for Input {
    fn from(done: Done) -> Self {
        Self::Done(done)
    }
}

impl From<Verdict> for Input {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl Downlink {
    pub(super) fn new(
        store: &Store,
        listening: SocketAddr,
        status: watch::Sender<DownlinkStatus>,
        shutdown: CancellationToken,
        pool: Pool,
        socket: Arc<SocketCounters>,
        now: Instant,
    ) -> Result<Self, LinkError> {
        let (input, inputs) = mpsc::channel(INPUTS);
        let (questions, admission) = admission::start(store.clone(), input.clone())
            .map_err(LinkError::io("failed to start the admission thread"))?;
        Ok(Self {
            store: store.clone(),
            listening,
            status,
            shutdown,
            sessions: BTreeMap::new(),
            members: BTreeMap::new(),
            busy: BTreeSet::new(),
            pool,
            retired: BTreeMap::new(),
            questions,
            admission,
            inputs,
            input,
            wants: store.wants(),
            check_at: now,
            checked_at: now,
            socket,
            segments_stored: 0,
            segments_lost: store.scrub_totals().lost,
            floods: FloodWatch::default(),
            complaints: Throttle::new(),
            doubles: Doubles::default(),
            violations: 0,
            stop_at: None,
            ended: false,
        })
    }

    /// Waits for the disk: a segment that is being closed is closed, and the store is let go of.
    pub(super) async fn end(self) -> Result<(), LinkError> {
        let Self {
            pool,
            sessions,
            questions,
            admission,
            inputs,
            ..
        } = self;
        drop((inputs, questions));
        for session in sessions.into_values() {
            if let State::Member { worker, .. } = session.state {
                worker.stop();
            }
        }
        pool.end().await;
        tokio::task::spawn_blocking(move || {
            if admission.join().is_err() {
                tracing::error!("the admission thread had panicked");
            }
        })
        .await
        .map_err(|_| LinkError::DiskThread)
    }

    fn on_connected(&mut self, now: Instant, id: SessionId, peer_key: [u8; 32], peer: SocketAddr) {
        self.sessions.insert(id, Session::new(now, peer_key, peer));
    }

    fn on_message(
        &mut self,
        now: Instant,
        endpoint: &mut HubEndpoint,
        id: SessionId,
        channel: Channel,
        message: Bytes,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let key = session.peer_key;
        let question = match &mut session.state {
            State::Member { worker, .. } => {
                let bytes = message.len();
                let given = worker.give(Work::Message {
                    generation: session.generation,
                    channel,
                    message,
                });
                if given.is_err() || !session.hand(bytes) {
                    self.overrun(now, endpoint, id);
                }
                return;
            }
            State::Leaving { .. } | State::Enrolled { .. } => return,
            State::Stranger { asked, .. } => {
                let question = match ToHub::decode(message) {
                    Ok(Some(ToHub::Hello(hello))) => {
                        tracing::debug!(session = %id, peer = %session.peer, software = hello.software, clock = %hello.clock, "hello");
                        session.clock_ahead_ms = hello.clock.0.saturating_sub(wall_now().0);
                        Question::Hello { session: id, key }
                    }
                    Ok(Some(ToHub::Enrol { hello, token })) => {
                        tracing::debug!(session = %id, peer = %session.peer, software = hello.software, "wants to enrol");
                        Question::Enrol {
                            session: id,
                            key,
                            token,
                        }
                    }
                    _ => return self.violation(now, endpoint, id, "it did not say who it is"),
                };
                if std::mem::replace(asked, true) {
                    return self.violation(now, endpoint, id, "it said twice who it is");
                }
                question
            }
            State::Enrolling { token, .. } => match ToHub::decode(message) {
                Ok(Some(ToHub::EnrolConfirm)) => Question::Confirm {
                    session: id,
                    key,
                    token: token.clone(),
                },
                _ => return self.violation(now, endpoint, id, "it did not confirm"),
            },
        };
        if self.questions.try_send(question).is_err() {
            // Too many at once, or the thread is gone: the device comes back by itself.
            if let Some(left_out) = self.complaints.allows(now) {
                tracing::warn!(session = %id, left_out, "too many devices at once");
            }
            self.close(now, endpoint, id, Bye::Shutdown);
        }
    }

    fn on_verdict(&mut self, now: Instant, endpoint: &mut HubEndpoint, verdict: Verdict) {
        match verdict {
            Verdict::Known {
                session,
                device,
                floors,
            } => self.welcome(now, endpoint, session, device, floors),
            Verdict::MayEnrol {
                session: id,
                device,
                floors,
                token,
            } => {
                let Some(session) = self.sessions.get_mut(&id) else {
                    return;
                };
                session.may_enrol(now, token);
                self.answer(id, welcome(device, floors));
            }
            Verdict::Enrolled {
                session: id,
                device,
            } => {
                let Some(session) = self.sessions.get_mut(&id) else {
                    return;
                };
                tracing::info!(%device, peer = %session.peer, "device enrolled");
                session.enrolled(now);
                self.answer(id, ToEdge::Enrolled);
            }
            Verdict::Refused { session, reason } => self.refuse(now, session, reason),
            Verdict::Changed(registry) => self.check_devices(now, &registry),
        }
    }

    fn welcome(
        &mut self,
        now: Instant,
        endpoint: &mut HubEndpoint,
        id: SessionId,
        device: DeviceName,
        floors: Vec<(model::StreamName, model::SegmentNumber)>,
    ) {
        if !self.sessions.contains_key(&id) {
            return;
        }
        // Another key of the same device: enrolled anew, and the old one has not gone yet.
        if let Some(&older) = self.members.get(&device) {
            self.close(now, endpoint, older, Bye::Refused);
        }
        let before = self.retired.remove(&device);
        if let Some(before) = &before
            && !before.has_begun()
        {
            tracing::debug!(%device, "sent away: two of its former sessions still write");
            self.retired.extend([(device, before.clone())]);
            return self.close(now, endpoint, id, Bye::Shutdown);
        }
        let ahead_ms = self.sessions.get(&id).map_or(0, |s| s.clock_ahead_ms);
        let sight = Arc::new(Sight::new(ahead_ms));
        let desk = Desk::new(self.store.clone(), id, device.clone(), Arc::clone(&sight));
        let worker = Worker::start(
            &self.pool,
            id,
            Box::new(desk),
            before.as_ref(),
            self.input.clone(),
        );
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        tracing::info!(%device, peer = %session.peer, "device connected");
        self.doubles.connected(&device, session.peer);
        session.since = wall_now();
        session.state = State::Member {
            device: device.clone(),
            worker,
            sight,
        };
        self.members.insert(device.clone(), id);
        endpoint.admit(id);
        self.seen(now, &[id]);
        self.answer(id, welcome(device, floors));
        self.tell_wants_to(id);
        self.check_soon(now);
    }

    /// Asks each connected device for what viewers wait for and it was not asked for.
    fn tell_wants(&mut self) {
        for device in self.store.wanted_devices() {
            if let Some(&id) = self.members.get(&device) {
                self.tell_wants_to(id);
            }
        }
    }

    fn tell_wants_to(&mut self, id: SessionId) {
        let wants = match self.sessions.get_mut(&id) {
            Some(session) => session.wants(&self.store),
            None => Vec::new(),
        };
        for want in wants {
            self.answer(id, want);
        }
    }

    /// Something about devices or whose streams are is different.
    fn check_devices(&mut self, now: Instant, registry: &Registry) {
        let mut gone = Vec::new();
        for (id, session) in &self.sessions {
            let State::Member { device, worker, .. } = &session.state else {
                continue;
            };
            match registry.devices.get(device) {
                Some(known) if known.key != Some(session.peer_key) => {
                    gone.push((
                        *id,
                        format!("device {device} was enrolled with another key"),
                    ));
                }
                Some(known) if !known.enabled => gone.push((*id, disabled(device))),
                Some(_) if registry.robbed.contains(device) => {
                    // Where there is no room the next message finds that out.
                    let _ = worker.give(Work::CheckOwner);
                }
                Some(_) => {}
                None => gone.push((*id, format!("device {device} was removed at the hub"))),
            }
        }
        for (id, reason) in gone {
            self.refuse(now, id, reason);
        }
    }

    fn on_done(&mut self, now: Instant, endpoint: &mut HubEndpoint, done: Done) {
        match done {
            Done::Taken {
                session: id,
                generation,
                channel,
                bytes,
                answers,
            } => {
                let Some(session) = self.sessions.get_mut(&id) else {
                    return;
                };
                let stored = |answer: &&ToEdge| matches!(answer, ToEdge::Stored { .. });
                self.segments_stored += answers.iter().filter(stored).count() as u64;
                session.dealt(bytes);
                if generation != session.generation {
                    return;
                }
                session.answers.extend(answers);
                if session.takes_no_answers() {
                    return self.violation(now, endpoint, id, "it takes no answers");
                }
                session.owed.push((channel, bytes));
                self.busy.insert(id);
            }
            Done::Refused { session, answers } => {
                for answer in answers {
                    self.answer(session, answer);
                }
            }
            Done::Violation { session, error } => {
                self.violation(now, endpoint, session, &error.to_string());
            }
            Done::Failed { session } => self.close(now, endpoint, session, Bye::Shutdown),
        }
    }

    fn answer(&mut self, id: SessionId, answer: ToEdge) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answers.push_back(answer);
            self.busy.insert(id);
        }
    }

    /// Says why, then closes once that was heard.
    fn refuse(&mut self, now: Instant, id: SessionId, reason: String) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Some(left_out) = self.complaints.allows(now) {
            tracing::warn!(peer = %session.peer, %reason, left_out, "device refused");
        }
        let state = session.leave(now);
        self.retire(state);
        self.answer(id, ToEdge::Refused { reason });
    }

    fn violation(&mut self, now: Instant, endpoint: &mut HubEndpoint, id: SessionId, what: &str) {
        self.violations += 1;
        if let Some(session) = self.sessions.get(&id)
            && let Some(left_out) = self.complaints.allows(now)
        {
            tracing::warn!(peer = %session.peer, what, left_out, "a device broke the protocol");
        }
        self.close(now, endpoint, id, Bye::Violation);
    }

    /// Its thread does not come after: the disk hangs. The device comes back by itself.
    fn overrun(&mut self, now: Instant, endpoint: &mut HubEndpoint, id: SessionId) {
        tracing::warn!(session = %id, "a session is ended: the disk is too slow for what waits for it");
        self.close(now, endpoint, id, Bye::Shutdown);
    }

    fn close(&mut self, now: Instant, endpoint: &mut HubEndpoint, id: SessionId, reason: Bye) {
        endpoint.close(now, id, reason);
        self.forget(id);
    }

    fn forget(&mut self, id: SessionId) {
        self.busy.remove(&id);
        if let Some(session) = self.sessions.remove(&id) {
            self.retire(session.state);
        }
    }

    fn retire(&mut self, state: State) {
        if let State::Member { device, worker, .. } = state {
            tracing::info!(%device, "device gone");
            self.members.remove(&device);
            worker.stop();
            self.retired.insert(device, worker);
        }
    }

    /// Has it written down when and where these devices were heard from.
    fn seen(&mut self, now: Instant, ids: &[SessionId]) {
        let mut seen = Vec::new();
        for id in ids {
            if let Some(session) = self.sessions.get_mut(id)
                && let State::Member { device, .. } = &session.state
            {
                session.seen_at = now;
                seen.push((device.clone(), session.peer.to_string()));
            }
        }
        if !seen.is_empty() {
            // Told again in a minute where there is no room now.
            let _ = self.questions.try_send(Question::Seen(seen));
        }
    }

    /// Sends what the control channels take, pays credit back, closes who was refused.
    fn send(&mut self, now: Instant, endpoint: &mut HubEndpoint) {
        let mut done = Vec::new();
        let mut refused = Vec::new();
        for &id in &self.busy {
            let left = match self.sessions.get_mut(&id) {
                Some(session) => session.send(now, endpoint, id),
                None => Left::Nothing,
            };
            match left {
                Left::Nothing => done.push(id),
                Left::More => {}
                Left::Close => refused.push(id),
            }
        }
        for id in done {
            self.busy.remove(&id);
        }
        for id in refused {
            self.close(now, endpoint, id, Bye::Refused);
        }
    }

    /// Who is connected has changed: tells it soon, but not each of ten thousand devices that come at once.
    fn check_soon(&mut self, now: Instant) {
        let soon = (self.checked_at + MIN_CHECK_INTERVAL).max(now);
        self.check_at = self.check_at.min(soon);
    }

    /// Once a second: who may not be here any more, who was too slow, and the numbers.
    fn check(&mut self, now: Instant, endpoint: &mut HubEndpoint) {
        if now < self.check_at {
            return;
        }
        self.checked_at = now;
        self.check_at = now + CHECK_INTERVAL;
        self.retired.retain(|_, retired| !retired.has_ended());
        let lost = self.store.scrub_totals().lost;
        let damaged = std::mem::replace(&mut self.segments_lost, lost) != lost;
        let mut slow = Vec::new();
        let mut seen = Vec::new();
        for (&id, session) in &self.sessions {
            if session.is_too_slow(now) {
                slow.push(id);
            }
            if let State::Member { worker, .. } = &session.state {
                if session.seen_at + SEEN_INTERVAL <= now {
                    seen.push(id);
                }
                if damaged {
                    // Where there is no room the next message finds that out.
                    let _ = worker.give(Work::CheckOwner);
                }
            }
        }
        for id in slow {
            self.close(now, endpoint, id, Bye::Refused);
        }
        self.seen(now, &seen);
        // Asked again in a second where there is no room now.
        let _ = self.questions.try_send(Question::Changes);
        // To those who had too much else to hear.
        self.tell_wants();
        self.publish(now, endpoint);
        self.watch_for_floods(now, endpoint);
    }

    fn watch_for_floods(&mut self, now: Instant, endpoint: &HubEndpoint) {
        let dropped = Counters::of(endpoint.counters(), &self.socket).dropped;
        match self.floods.look(now, dropped) {
            Some(News::Began {
                per_second,
                dropped,
            }) => {
                tracing::warn!(
                    per_second,
                    ?dropped,
                    "a flood of datagrams that are dropped"
                );
            }
            Some(News::Ended {
                lasted,
                peak_per_second,
                dropped,
            }) => {
                tracing::info!(?lasted, peak_per_second, ?dropped, "the flood is over");
            }
            None => {}
        }
    }

    fn publish(&mut self, now: Instant, endpoint: &HubEndpoint) {
        let mut sessions = Vec::with_capacity(self.members.len());
        for &id in self.members.values() {
            if let (Some(session), Some(stats)) = (self.sessions.get_mut(&id), endpoint.stats(id)) {
                session.tell_turns(now, &stats);
                session.count_backlogs();
                sessions.extend(session.status(now, &stats));
            }
        }
        let counters = Counters {
            segments_stored: self.segments_stored,
            identity_conflicts: self.doubles.count,
            violations: self.violations,
            ..Counters::of(endpoint.counters(), &self.socket)
        };
        self.status.send_replace(DownlinkStatus {
            listening: Some(self.listening),
            sessions,
            counters,
        });
    }
}

impl Application<HubEndpoint> for Downlink {
    type Input = Input;

    async fn input(&mut self) -> Option<Input> {
        tokio::select! {
            () = self.shutdown.cancelled(), if self.stop_at.is_none() => Some(Input::Shutdown),
            input = self.inputs.recv() => input,
            Ok(()) = self.wants.changed() => Some(Input::Wanted),
        }
    }

    fn try_input(&mut self) -> Option<Input> {
        self.inputs.try_recv().ok()
    }

    fn handle_input(&mut self, now: Instant, endpoint: &mut HubEndpoint, input: Input) {
        match input {
            Input::Done(done) => self.on_done(now, endpoint, done),
            Input::Verdict(verdict) => self.on_verdict(now, endpoint, verdict),
            Input::Wanted => self.tell_wants(),
            Input::Shutdown => {
                let ids: Vec<_> = self.sessions.keys().copied().collect();
                for id in ids {
                    self.close(now, endpoint, id, Bye::Shutdown);
                }
                self.stop_at = Some(now + BYE_TIME);
            }
        }
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut HubEndpoint, event: Event) {
        if self.stop_at.is_some() {
            return;
        }
        match event {
            Event::Connected {
                session,
                peer_key,
                peer,
            } => self.on_connected(now, session, peer_key, peer),
            Event::Message {
                session,
                channel,
                message,
            } => self.on_message(now, endpoint, session, channel, message),
            Event::ChannelsReset { session: id } => {
                let Some(session) = self.sessions.get_mut(&id) else {
                    return;
                };
                session.generation += 1;
                session.owed.clear();
                session.forget_wants();
                match &mut session.state {
                    State::Member { worker, .. } => {
                        session.answers.clear();
                        if worker.give(Work::Reset).is_err() {
                            self.overrun(now, endpoint, id);
                        }
                    }
                    // What it said may be lost; it says it again.
                    State::Stranger { asked, .. } => *asked = false,
                    _ => {}
                }
                self.tell_wants_to(id);
            }
            Event::PeerMoved { session, from, to } => {
                let tell = self
                    .sessions
                    .get_mut(&session)
                    .is_some_and(|session| session.moved(now, to));
                if tell {
                    tracing::info!(%session, %from, %to, "a device has another address");
                    self.seen(now, &[session]);
                }
            }
            Event::Closed { session, reason } => {
                tracing::debug!(%session, ?reason, "session closed");
                if reason == CloseReason::Replaced
                    && let Some(old) = self.sessions.get(&session)
                    && let State::Member { device, .. } = &old.state
                {
                    self.doubles.replaced(device, old.peer);
                }
                self.forget(session);
                self.check_soon(now);
            }
            Event::Writable { .. } | Event::Silent { .. } | Event::Unanswered { .. } => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut HubEndpoint) {
        self.send(now, endpoint);
        self.check(now, endpoint);
        self.ended |= self.stop_at.is_some_and(|at| at <= now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(
            self.stop_at
                .map_or(self.check_at, |at| at.min(self.check_at)),
        )
    }

    fn finished(&self) -> bool {
        self.ended
    }
}
