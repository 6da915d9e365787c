//! The hub's end: one UDP socket, many sessions, each device's segments into the store.
//!
//! Here the socket and blocking disk work meet `link_proto`'s endpoint and receivers; they decide. A
//! session's disk work is done in batches, one at a time and in order; its peer's credit grows only as it
//! is done, so what waits here is bounded by the receive windows (invariant 5).

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Bye, Channel, Endpoint, Event, HubConfig, HubEndpoint, SessionId,
    messages::{ProtocolError, ToEdge, ToHub},
    replicate::receiver::Receiver,
};
use model::{DeviceName, WallTime};
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, KeyPair, LinkError,
    driver::{Application, drive},
    intake::{Done, Intake, Work},
    keys::random_bytes,
    socket::UdpSocket,
    wall_now,
};

/// How often the status is brought up to date.
const STATUS_EVERY: Duration = Duration::from_millis(500);

/// A device that was disabled or removed is looked for at least this often (the public face says 2 s).
const DEVICES_EVERY: Duration = Duration::from_secs(1);

/// Jobs that one batch takes to the disk at most.
const MAX_BATCH: usize = 128;

/// A refused session stays open this long, so that the reason arrives.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// Where the hub listens and who it is.
#[derive(Debug, Clone)]
pub struct DownlinkConfig {
    pub listen: SocketAddr,
    pub key: KeyPair,
}

/// One connected device.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    pub device: DeviceName,
    pub peer: SocketAddr,
    pub since: WallTime,
    pub rtt: Option<Duration>,
    pub loss: f32,
    pub bytes_received: u64,
}

/// What pages and metrics show.
#[derive(Debug, Clone, Default)]
pub struct DownlinkStatus {
    /// None until the socket is bound.
    pub listening: Option<SocketAddr>,
    pub sessions: Vec<SessionStatus>,
    pub counters: Counters,
}

/// Serves devices until `shutdown`, then says `Bye` to each and returns. The error: the socket can't be bound
/// or read.
pub async fn run(
    config: DownlinkConfig,
    store: Store,
    status: watch::Sender<DownlinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    let socket = UdpSocket::bind(config.listen).map_err(|error| {
        LinkError::io(format!("failed to listen on UDP {}", config.listen), error)
    })?;
    let listening = socket
        .local_addr()
        .map_err(|error| LinkError::io("failed to ask for the UDP address", error))?;
    status.send_modify(|status| status.listening = Some(listening));
    let mut endpoint = HubEndpoint::new(
        HubConfig::new(config.key.secret),
        Instant::now(),
        random_bytes(),
    );
    let (batch_sender, batches) = mpsc::channel(1_024);
    let now = Instant::now();
    let mut application = Downlink {
        devices: store.changes(),
        store,
        status,
        shutdown,
        batch_sender,
        batches,
        sessions: HashMap::new(),
        at_work: HashMap::new(),
        stored: 0,
        next_status: now,
        next_devices: now,
        devices_stale: false,
        ending: false,
        finished: false,
    };
    drive(&mut endpoint, &mut application, &socket)
        .await
        .map_err(|error| LinkError::io("failed to read the UDP socket", error))
}

/// A message waits to be sent, or work to be done.
struct Session {
    key: [u8; 32],
    peer: SocketAddr,
    /// Present unless a batch is at work with it.
    intake: Option<Intake>,
    work: VecDeque<Queued>,
    answers: VecDeque<ToEdge>,
    receiver: Receiver,
    /// Known and let in.
    device: Option<(DeviceName, WallTime)>,
    token: Option<Bytes>,
    /// Refused: closed then.
    close_at: Option<Instant>,
}

/// Work with the credit that its message holds.
struct Queued {
    work: Work,
    channel: Channel,
    bytes: usize,
}

/// A batch that is done.
struct Batch {
    session: SessionId,
    key: [u8; 32],
    intake: Intake,
    done: Vec<(Option<Done>, Channel, usize)>,
}

struct Downlink {
    store: Store,
    devices: watch::Receiver<u64>,
    status: watch::Sender<DownlinkStatus>,
    shutdown: CancellationToken,
    batch_sender: mpsc::Sender<Batch>,
    batches: mpsc::Receiver<Batch>,
    sessions: HashMap<SessionId, Session>,
    /// Keys whose batch is at the disk: a device's new session waits until the old one's work is done.
    at_work: HashMap<[u8; 32], SessionId>,
    stored: u64,
    next_status: Instant,
    next_devices: Instant,
    devices_stale: bool,
    ending: bool,
    finished: bool,
}

enum Input {
    Batch(Box<Batch>),
    Changed,
    Shutdown,
}

impl Application<HubEndpoint> for Downlink {
    type Input = Input;

    async fn input(&mut self) -> Option<Input> {
        tokio::select! {
            Some(batch) = self.batches.recv() => Some(Input::Batch(Box::new(batch))),
            Ok(()) = self.devices.changed(), if !self.devices_stale => Some(Input::Changed),
            () = self.shutdown.cancelled(), if !self.ending => Some(Input::Shutdown),
        }
    }

    fn try_input(&mut self) -> Option<Input> {
        let batch = self.batches.try_recv().ok()?;
        Some(Input::Batch(Box::new(batch)))
    }

    fn handle_input(&mut self, now: Instant, endpoint: &mut HubEndpoint, input: Input) {
        match input {
            Input::Batch(batch) => self.take(now, endpoint, *batch),
            Input::Changed => self.devices_stale = true,
            Input::Shutdown => self.ending = true,
        }
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut HubEndpoint, event: Event) {
        match event {
            Event::Connected {
                session,
                peer_key,
                peer,
            } => {
                self.sessions.insert(
                    session,
                    Session {
                        key: peer_key,
                        peer,
                        intake: Some(Intake::new(self.store.clone(), peer_key, peer.to_string())),
                        work: VecDeque::new(),
                        answers: VecDeque::new(),
                        receiver: Receiver::new(),
                        device: None,
                        token: None,
                        close_at: None,
                    },
                );
            }
            Event::ChannelsReset { session } => {
                // Messages that wait are of the old channels, and their credit is gone with them.
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.work.clear();
                    state.answers.clear();
                    state.receiver.reset();
                }
            }
            Event::Message {
                session,
                channel,
                message,
            } => {
                if let Err(error) = self.hear(session, channel, message) {
                    let device = self.name_of(session);
                    tracing::warn!(device, %error, "a device broke the protocol; its session ends");
                    endpoint.close(now, session, Bye::Violation);
                    self.sessions.remove(&session);
                }
            }
            Event::PeerMoved { session, to, .. } => {
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.peer = to;
                }
            }
            Event::Closed { session, reason } => {
                let device = self.name_of(session);
                tracing::info!(device, ?reason, "a session has ended");
                self.sessions.remove(&session);
            }
            Event::Silent { .. } | Event::Writable { .. } | Event::Unanswered { .. } => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut HubEndpoint) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.start_batch(id);
            self.answer(now, endpoint, id);
        }
        if now >= self.next_devices && self.devices_stale {
            self.next_devices = now + DEVICES_EVERY;
            self.devices_stale = false;
            self.check_devices(now);
        }
        if self.ending && !self.finished {
            for &session in self.sessions.keys() {
                endpoint.close(now, session, Bye::Shutdown);
            }
            self.sessions.clear();
            self.finished = true;
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_EVERY;
            self.report(endpoint);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let devices = self.devices_stale.then_some(self.next_devices);
        let refusals = self.sessions.values().filter_map(|s| s.close_at).min();
        [Some(self.next_status), devices, refusals]
            .into_iter()
            .flatten()
            .min()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

impl Downlink {
    fn name_of(&self, session: SessionId) -> String {
        let device = self.sessions.get(&session).and_then(|s| s.device.as_ref());
        device.map_or_else(|| "(stranger)".to_owned(), |(name, _)| name.to_string())
    }

    /// Turns a message into work.
    fn hear(
        &mut self,
        id: SessionId,
        channel: Channel,
        message: Bytes,
    ) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(());
        };
        let bytes = message.len();
        let work = match ToHub::decode(message)? {
            Some(ToHub::Hello(hello)) => {
                session.receiver.reset();
                session.answers.clear();
                Some(Work::Greet(hello))
            }
            Some(ToHub::Enrol { hello, token }) => {
                session.token = Some(token.clone());
                Some(Work::Enrol { hello, token })
            }
            Some(ToHub::EnrolConfirm) => match session.token.clone() {
                Some(token) => Some(Work::EnrolConfirm { token }),
                None => return Err(ProtocolError::OutOfOrder("a confirmation")),
            },
            // Nothing else from a stranger; what a refused one still sends is dropped.
            Some(_) if session.close_at.is_some() => None,
            Some(_) if session.device.is_none() => {
                return Err(ProtocolError::OutOfOrder("replication before a welcome"));
            }
            Some(message) => session
                .receiver
                .handle_message(message)?
                .map(Work::Replicate),
            // A kind that a later edge knows.
            None => None,
        };
        // What asks for nothing still gives its credit back in its turn.
        session.work.push_back(Queued {
            work: work.unwrap_or(Work::Nothing),
            channel,
            bytes,
        });
        Ok(())
    }

    /// Sends the next batch of a session's work to the disk, unless one is there.
    fn start_batch(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.work.is_empty() || self.at_work.contains_key(&session.key) {
            return;
        }
        let Some(mut intake) = session.intake.take() else {
            return;
        };
        let count = session.work.len().min(MAX_BATCH);
        let work: Vec<Queued> = session.work.drain(..count).collect();
        let (key, result) = (session.key, self.batch_sender.clone());
        self.at_work.insert(key, id);
        tokio::task::spawn_blocking(move || {
            let done = work
                .into_iter()
                .map(|queued| (intake.carry_out(queued.work), queued.channel, queued.bytes))
                .collect();
            let batch = Batch {
                session: id,
                key,
                intake,
                done,
            };
            // The loop is gone: partials stay on the disk, as after any end.
            let _ = result.blocking_send(batch);
        });
    }

    fn take(&mut self, now: Instant, endpoint: &mut HubEndpoint, batch: Batch) {
        self.at_work.remove(&batch.key);
        let id = batch.session;
        let Some(session) = self.sessions.get_mut(&id) else {
            return; // Ended meanwhile: its writers are dropped, its partials wait.
        };
        session.intake = Some(batch.intake);
        for (done, channel, bytes) in batch.done {
            endpoint.consumed(id, channel, bytes);
            match done {
                Some(Done::Outcome(outcome)) => {
                    if let link_proto::replicate::receiver::Outcome::Stored { .. } = outcome {
                        self.stored += 1;
                    }
                    session
                        .answers
                        .extend(session.receiver.handle_outcome(outcome));
                }
                Some(Done::Welcome {
                    name,
                    floors,
                    software,
                    enrolling,
                }) => {
                    if !enrolling {
                        endpoint.admit(id);
                        tracing::info!(device = %name, peer = %session.peer, software, "a device is connected");
                        session.device = Some((name.clone(), wall_now()));
                    }
                    session.answers.push_back(ToEdge::Welcome {
                        name,
                        hub_time: wall_now(),
                        floors,
                    });
                }
                Some(Done::Enrolled { name }) => {
                    tracing::info!(device = %name, peer = %session.peer, "a device has enrolled");
                    session.answers.push_back(ToEdge::Enrolled);
                }
                Some(Done::Refused { reason }) => {
                    tracing::warn!(peer = %session.peer, reason, "refused a device");
                    session.refuse(now, reason);
                }
                None => {}
            }
        }
    }

    /// Sends what the channel takes; closes a refused session once its reason has arrived or its time is up.
    fn answer(&mut self, now: Instant, endpoint: &mut HubEndpoint, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        while endpoint.send_budget(id, Channel::Control) > 0
            && let Some(answer) = session.answers.pop_front()
        {
            if let Err(error) = endpoint.send(now, id, Channel::Control, answer.encode()) {
                tracing::debug!(%error, "failed to answer");
                break;
            }
        }
        let heard = || {
            endpoint
                .stats(id)
                .is_none_or(|stats| stats.outstanding_bytes == 0)
        };
        if let Some(close_at) = session.close_at
            && session.answers.is_empty()
            && (now >= close_at || heard())
        {
            endpoint.close(now, id, Bye::Refused);
            self.sessions.remove(&id);
        }
    }

    /// Devices that were disabled or removed, or whose key was replaced, are told and dropped.
    fn check_devices(&mut self, now: Instant) {
        let known = match self.store.devices() {
            Ok(known) => known,
            Err(error) => {
                tracing::error!(%error, "failed to look at the devices");
                return;
            }
        };
        for session in self.sessions.values_mut() {
            let Some((name, _)) = session.device.clone() else {
                continue;
            };
            let device = known.iter().find(|device| device.name == name);
            let reason = match device {
                Some(device) if device.key != Some(session.key) => {
                    format!("device {name} was enrolled anew with another key")
                }
                Some(device) if device.enabled => continue,
                Some(_) => format!(
                    "device {name} is disabled: `hub device enable {name}` lets it in again"
                ),
                None => format!("device {name} was removed"),
            };
            tracing::warn!(device = %name, reason, "a device is not welcome any more");
            session.device = None;
            session.refuse(now, reason);
        }
    }

    fn report(&self, endpoint: &HubEndpoint) {
        let mut sessions: Vec<SessionStatus> = self
            .sessions
            .iter()
            .filter_map(|(&id, session)| {
                let (device, since) = session.device.clone()?;
                let stats = endpoint.stats(id)?;
                Some(SessionStatus {
                    device,
                    peer: session.peer,
                    since,
                    rtt: stats.rtt,
                    loss: stats.loss,
                    bytes_received: stats.bytes_received,
                })
            })
            .collect();
        sessions.sort_by(|a, b| a.device.cmp(&b.device));
        let counters = Counters {
            segments_stored: self.stored,
            ..Counters::of(endpoint.counters())
        };
        self.status.send_modify(|status| {
            status.sessions = sessions;
            status.counters = counters;
        });
    }
}

impl Session {
    fn refuse(&mut self, now: Instant, reason: String) {
        self.work.clear();
        self.answers.clear();
        self.answers.push_back(ToEdge::Refused { reason });
        self.close_at = Some(now + REFUSAL_TIME);
    }
}
