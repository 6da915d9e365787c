//! What an edge does above its session: greets the hub, then lets the sender replicate.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use link_proto::{
    Bye, Channel, CloseReason, EdgeEndpoint, Endpoint, Event, SessionId,
    messages::{ToEdge, ToHub},
    replicate::sender::{Command, Sender},
};
use model::{MediaDuration, StreamName};
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Clocks, HubTime, LinkState, Orders, UplinkConfig, UplinkStatus,
    disk::{self, Answer, Disk, Work},
    report::Reporter,
    way::{News, Way},
};
use crate::{Counters, LinkError, driver::Application, hello, socket::SocketCounters, wall_now};

/// The list of streams is read at most this often, however fast parts are cut.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// Numbers of a running session are told this often.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// At the end, what was said last is given this long to be acknowledged.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// `Bye` is said within this, or not.
const BYE_TIME: Duration = Duration::from_millis(500);

pub(super) struct Uplink {
    sender: Sender,
    phase: Phase,
    disk: Disk,
    /// A command that the disk thread's queue had no room for.
    waiting: Option<Command>,
    scan: Scan,
    changes: watch::Receiver<u64>,
    orders: watch::Receiver<Orders>,
    /// They have changed.
    ordered: bool,
    /// Messages dealt with whose credit is given once the disk thread keeps up.
    owed: Vec<(Channel, usize)>,
    way: Way,
    socket: Arc<SocketCounters>,
    status: watch::Sender<UplinkStatus>,
    state: LinkState,
    /// The state that the last welcome gave.
    welcomed: Option<LinkState>,
    floors: Vec<(model::StreamName, model::SegmentNumber)>,
    left_out: Vec<model::StreamName>,
    /// When `Hello` was said last.
    greeted_at: Instant,
    hub_time: Option<HubTime>,
    clocks: Clocks,
    /// The hub's time that the disk thread's queue had no room for.
    untold: Option<HubTime>,
    status_at: Instant,
    reporter: Reporter,
    shutdown: CancellationToken,
    ending: Option<Ending>,
    failed: Option<LinkError>,
    ended: bool,
}

/// Where the session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    /// `Hello` is said, `Welcome` has not come.
    Greeting(SessionId),
    /// `Welcome` has come; the store's wall times are being looked at.
    Clocking(SessionId),
    Up(SessionId),
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    LastWords { until: Instant },
    Bye { until: Instant },
}

/// When to read the list of streams again.
struct Scan {
    wanted: bool,
    not_before: Instant,
}

pub(super) enum Input {
    Answer(Answer),
    Changed,
    Ordered,
    Way(News),
    Shutdown,
    DiskGone,
}

impl Uplink {
    pub(super) fn new(
        config: UplinkConfig,
        hub: SocketAddr,
        store: &Store,
        status: watch::Sender<UplinkStatus>,
        shutdown: CancellationToken,
        clocks: Clocks,
        socket: Arc<SocketCounters>,
    ) -> Result<Self, LinkError> {
        let now = Instant::now();
        let disk =
            disk::start(store.clone()).map_err(LinkError::io("failed to start the disk thread"))?;
        let way = Way::new(now, config.hub_address, hub, config.answer_timeout);
        Ok(Self {
            sender: Sender::new(),
            phase: Phase::Down,
            disk,
            waiting: None,
            scan: Scan {
                wanted: true,
                not_before: now,
            },
            changes: store.changes(),
            orders: config.orders,
            ordered: true,
            owed: Vec::new(),
            way,
            socket,
            status,
            state: LinkState::Connecting,
            welcomed: None,
            floors: Vec::new(),
            left_out: Vec::new(),
            greeted_at: now,
            hub_time: None,
            clocks,
            untold: None,
            status_at: now,
            reporter: Reporter::new(now),
            shutdown,
            ending: None,
            failed: None,
            ended: false,
        })
    }

    /// How it ended. The store is let go of then.
    pub(super) async fn end(self) -> Result<(), LinkError> {
        let Self { disk, failed, .. } = self;
        let joined = tokio::task::spawn_blocking(|| disk.end()).await;
        match (failed, joined) {
            (Some(failed), _) => Err(failed),
            (None, Ok(Ok(()))) => Ok(()),
            (None, _) => Err(LinkError::DiskThread),
        }
    }

    fn greet(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, session: SessionId) {
        self.phase = Phase::Greeting(session);
        self.greeted_at = now;
        let hello = ToHub::Hello(hello()).encode();
        if let Err(error) = endpoint.send(now, session, Channel::Control, hello) {
            tracing::debug!(%error, "failed to greet the hub");
        }
    }

    fn on_message(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        message: ToEdge,
    ) {
        match (message, self.phase) {
            (
                ToEdge::Welcome {
                    name,
                    hub_time,
                    floors,
                },
                Phase::Greeting(greeted),
            ) if greeted == session => {
                let uncertainty = now.saturating_duration_since(self.greeted_at) / 2;
                let time = hub_time.plus(MediaDuration::from_duration(uncertainty));
                let ahead_ms = wall_now().0.saturating_sub(time.0);
                tracing::info!(device = %name, ahead_ms, ?uncertainty, "welcome at the hub");
                self.phase = Phase::Clocking(session);
                let hub_time = HubTime {
                    time,
                    at: now,
                    uncertainty,
                };
                self.hub_time = Some(hub_time);
                self.untold = Some(hub_time);
                self.way.answered();
                self.sender.set_floors(&floors);
                self.floors = floors;
                // Streams that only the hub knows are compared too.
                self.scan.wanted = true;
                let connected = LinkState::Connected {
                    device: name,
                    since: wall_now(),
                };
                self.welcomed = Some(connected.clone());
                self.reporter = Reporter::new(now);
                self.set_state(now, connected);
            }
            (ToEdge::Refused { reason }, _) => {
                self.leave();
                self.way.answered();
                self.set_state(now, LinkState::Refused { reason });
            }
            (message, Phase::Up(up)) if up == session => {
                if let ToEdge::Hole {
                    stream,
                    number,
                    reason,
                } = &message
                {
                    tracing::warn!(%stream, number = number.0, reason = reason.as_str(), "the hub has given a segment up");
                }
                if let ToEdge::StreamRefused { stream, reason } = &message {
                    tracing::warn!(%stream, %reason, "the hub refuses a stream");
                }
                if let Err(error) = self.sender.handle_message(now, message) {
                    self.violation(now, endpoint, session, &error);
                }
            }
            (message, _) => tracing::debug!(?message, "came before the hub's welcome"),
        }
    }

    fn violation(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        error: &dyn std::error::Error,
    ) {
        tracing::warn!(%error, "the hub broke the protocol");
        endpoint.close(now, session, Bye::Violation);
        self.leave();
        self.lost(now);
    }

    /// The session is over for the sender.
    fn leave(&mut self) {
        self.phase = Phase::Down;
        self.owed.clear();
        self.sender.disconnected();
    }

    fn lost(&mut self, now: Instant) {
        self.way.wait_for_answer(now);
        if self.is_connected() {
            self.set_state(now, LinkState::Connecting);
        }
    }

    fn is_connected(&self) -> bool {
        matches!(self.state, LinkState::Connected { .. })
    }

    /// The streams in the store, and those of this device that only the hub has: a disk that was wiped holds
    /// nothing of them, and that is to be said.
    fn with_lost(&self, mut names: Vec<StreamName>) -> Vec<StreamName> {
        let lost: Vec<_> = self
            .floors
            .iter()
            .filter(|(name, floor)| floor.0 > 0 && !names.contains(name))
            .map(|(name, _)| name.clone())
            .collect();
        names.extend(lost);
        names
    }

    fn set_state(&mut self, now: Instant, state: LinkState) {
        self.state = state;
        self.status_at = now;
    }

    /// Gives the disk thread what it has room for.
    fn hand_out_work(&mut self, now: Instant) {
        if let Some(time) = self.untold {
            let work = Work::HubTime(self.clocks.on_hub_time.clone(), time);
            if self.disk.work.try_send(work).is_err() {
                return;
            }
            self.untold = None;
        }
        if self.scan.wanted && now >= self.scan.not_before {
            self.scan = Scan {
                wanted: self.disk.work.try_send(Work::Streams).is_err(),
                not_before: now + SCAN_INTERVAL,
            };
        }
        loop {
            let Some(command) = self
                .waiting
                .take()
                .or_else(|| self.sender.poll_command(now))
            else {
                return;
            };
            if let Err(mpsc::error::TrySendError::Full(Work::Do(command))) =
                self.disk.work.try_send(Work::Do(command))
            {
                self.waiting = Some(command);
                return;
            }
        }
    }

    /// Takes new orders over.
    fn obey(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        if std::mem::take(&mut self.ordered) {
            let orders = self.orders.borrow_and_update().clone();
            endpoint.set_max_rate(now, orders.max_rate_bps);
            endpoint.set_max_redundancy(orders.max_redundancy);
            self.sender.set_policy(orders.policy);
        }
    }

    fn send(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        let Phase::Up(session) = self.phase else {
            return;
        };
        let under_way = || {
            let stats = endpoint.stats(session).unwrap_or_default();
            (stats.outstanding_bytes, stats.rate_bps)
        };
        if self.sender.wants_renewal(now, under_way) {
            tracing::info!("the line has become too slow for what is under way: live begins anew");
            endpoint.renew_channels(now);
            return;
        }
        for channel in Channel::ALL {
            while endpoint.send_budget(session, channel) > 0 {
                let Some(message) = self.sender.poll_message(now, channel) else {
                    break;
                };
                let message = message.encode();
                if channel == Channel::Control {
                    self.reporter.count_control(message.len());
                }
                if let Err(error) = endpoint.send(now, session, channel, message) {
                    // Its `Closed` event is on its way, and with it a new beginning.
                    tracing::debug!(%error, "failed to send a message");
                    return;
                }
            }
        }
        if !self.sender.is_backed_up() {
            for (channel, bytes) in self.owed.drain(..) {
                endpoint.consumed(session, channel, bytes);
            }
        }
    }

    /// Tells the hub how the link stands, where it is time.
    fn report(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        let Phase::Up(session) = self.phase else {
            return;
        };
        if !self.reporter.is_due(now) || endpoint.send_budget(session, Channel::Control) == 0 {
            return;
        }
        let Some(stats) = endpoint.stats(session) else {
            return;
        };
        let whole = self.reporter.whole(&stats, &self.sender);
        let clock = self.clocks.recording.as_ref();
        if let Some(report) = self.reporter.next(now, whole, clock) {
            let message = report.encode();
            self.reporter.count_control(message.len());
            self.reporter.said(now, message.len(), stats.rate_bps);
            if let Err(error) = endpoint.send(now, session, Channel::Control, message) {
                tracing::debug!(%error, "failed to tell the hub how the link stands");
            }
        }
    }

    fn publish(&mut self, now: Instant, endpoint: &EdgeEndpoint) {
        if now < self.status_at {
            return;
        }
        self.status_at = now + STATUS_INTERVAL;
        let stats = endpoint.session().and_then(|id| endpoint.stats(id));
        let stats = stats.unwrap_or_default();
        let progress = self.sender.progress();
        let session = match &self.welcomed {
            Some(LinkState::Connected { since, .. }) if matches!(self.phase, Phase::Up(_)) => {
                Some((*since, self.way.address()))
            }
            _ => None,
        };
        let refused = self
            .sender
            .refused()
            .map(|(stream, reason)| (stream.clone(), reason.to_owned()));
        let too_many = self.left_out.iter().map(|stream| {
            let reason = "a device ships at most 256 streams".to_owned();
            (stream.clone(), reason)
        });
        let status = UplinkStatus {
            state: self.state.clone(),
            refused_streams: refused.chain(too_many).collect(),
            floors: self.floors.clone(),
            hub_time: self.hub_time,
            rtt: stats.rtt,
            rate_bps: stats.rate_bps,
            loss: stats.loss,
            counters: Counters {
                segments_shipped: progress.segments_shipped,
                segments_stored: progress.segments_stored,
                new_bytes_sent: progress.new_bytes_sent,
                ..Counters::of(endpoint.counters(), &self.socket)
            },
            progress,
            held_back: self.orders.borrow().held_back.clone(),
            session,
            report: Arc::new(self.reporter.whole(&stats, &self.sender)),
        };
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    /// Last words, `Bye`, end.
    fn end_if_due(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        match self.ending {
            None => {}
            Some(Ending::LastWords { until }) => {
                let stats = endpoint.session().and_then(|id| endpoint.stats(id));
                let heard = stats.is_none_or(|stats| stats.outstanding_bytes == 0 || stats.silent);
                if heard || until <= now {
                    let done = self.sender.is_done();
                    self.leave();
                    endpoint.shutdown(now, if done { Bye::Done } else { Bye::Shutdown });
                    let until = now + BYE_TIME;
                    self.ending = Some(Ending::Bye { until });
                }
            }
            Some(Ending::Bye { until }) => self.ended |= until <= now || endpoint.is_finished(),
        }
    }
}

impl Ending {
    fn until(self) -> Instant {
        match self {
            Self::LastWords { until } | Self::Bye { until } => until,
        }
    }
}

impl Application<EdgeEndpoint> for Uplink {
    type Input = Input;

    async fn input(&mut self) -> Option<Input> {
        tokio::select! {
            () = self.shutdown.cancelled(), if self.ending.is_none() => Some(Input::Shutdown),
            answer = self.disk.answers.recv() => Some(answer.map_or(Input::DiskGone, Input::Answer)),
            Some(news) = self.way.news() => Some(Input::Way(news)),
            // The store's end of it lives as long as the disk thread.
            Ok(()) = self.changes.changed() => Some(Input::Changed),
            Ok(()) = self.orders.changed() => Some(Input::Ordered),
        }
    }

    fn try_input(&mut self) -> Option<Input> {
        self.disk.answers.try_recv().ok().map(Input::Answer)
    }

    fn handle_input(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, input: Input) {
        match input {
            Input::Answer(answer) => {
                if let (Answer::HubTimeTaken(taken), Phase::Clocking(session)) =
                    (&answer, self.phase)
                    && self.hub_time == Some(*taken)
                {
                    self.phase = Phase::Up(session);
                    self.sender.connected();
                }
                let scanned = matches!(answer, Answer::Streams(_));
                let answer = match answer {
                    Answer::Streams(names) => Answer::Streams(self.with_lost(names)),
                    other => other,
                };
                let left_out = answer.give(now, &mut self.sender);
                if scanned {
                    self.left_out = left_out;
                }
            }
            Input::Changed => {
                self.sender.changed();
                self.scan.wanted = true;
            }
            Input::Ordered => self.ordered = true,
            Input::Way(News::Resolved(found)) => {
                if let Some(address) = self.way.on_resolved(found) {
                    endpoint.set_hub_address(now, address);
                }
            }
            Input::Way(News::Looked(reach)) => {
                if !self.is_connected()
                    && let Some(why) = self.way.on_looked(now, reach)
                {
                    self.set_state(now, LinkState::Unreachable { why });
                }
            }
            Input::Shutdown => {
                let until = now + LAST_WORDS;
                self.ending = Some(Ending::LastWords { until });
            }
            Input::DiskGone => {
                self.failed = Some(LinkError::DiskThread);
                self.ended = true;
            }
        }
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, event: Event) {
        match event {
            Event::Connected { session, .. } => self.greet(now, endpoint, session),
            Event::Message {
                session,
                channel,
                message,
            } => {
                self.owed.push((channel, message.len()));
                match ToEdge::decode(message) {
                    Ok(Some(message)) => self.on_message(now, endpoint, session, message),
                    Ok(None) => tracing::debug!("a message of a later version"),
                    Err(error) => self.violation(now, endpoint, session, &error),
                }
            }
            Event::Silent { .. } => self.lost(now),
            Event::ChannelsReset { session } => {
                self.owed.clear();
                match self.phase {
                    Phase::Up(_) => {
                        self.way.answered();
                        self.sender.connected();
                        if let Some(connected) = self.welcomed.clone() {
                            self.set_state(now, connected);
                        }
                    }
                    // What was asked of the disk thread is still to be answered.
                    Phase::Clocking(_) => {}
                    Phase::Down | Phase::Greeting(_) => self.greet(now, endpoint, session),
                }
            }
            Event::Unanswered { attempts } => {
                self.way.wait_for_answer(now);
                self.way.resolve_again(now, attempts);
            }
            Event::Closed { reason, .. } => {
                tracing::info!(?reason, "the session has ended");
                self.leave();
                match (reason, &self.state) {
                    // Told with its reason already; the next attempt comes much later.
                    (CloseReason::Peer(Bye::Refused), LinkState::Refused { .. }) => {}
                    (CloseReason::Peer(Bye::Replaced), _) => {
                        self.way.answered();
                        let reason = "another box uses this identity and has taken its place at the hub: enrol one of the two anew (`hub enroll NAME`); this one tries again in some minutes".to_owned();
                        tracing::error!("{reason}");
                        self.set_state(now, LinkState::Refused { reason });
                    }
                    (CloseReason::Peer(Bye::Refused), _) => {
                        let reason = "this device is not welcome any more".to_owned();
                        self.set_state(now, LinkState::Refused { reason });
                    }
                    _ => self.lost(now),
                }
            }
            Event::PeerMoved { from, to, .. } => {
                tracing::info!(%from, %to, "the hub answers from another address");
            }
            Event::Writable { .. } => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        if self.sender.poll_timeout().is_some_and(|at| at <= now) {
            self.sender.handle_timeout(now);
        }
        if !self.is_connected() {
            self.way.look_why(now);
        }
        self.obey(now, endpoint);
        self.hand_out_work(now);
        self.send(now, endpoint);
        self.report(now, endpoint);
        // What was sent makes room for reading ahead.
        self.hand_out_work(now);
        self.publish(now, endpoint);
        self.end_if_due(now, endpoint);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let scan = self.scan.wanted.then_some(self.scan.not_before);
        let look_why = self.way.look_why_at().filter(|_| !self.is_connected());
        [
            self.sender.poll_timeout(),
            look_why,
            scan,
            Some(self.status_at),
            self.ending.map(Ending::until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn finished(&self) -> bool {
        self.ended
    }
}
