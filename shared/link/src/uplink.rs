//! The edge's end: keeps a session with the hub and ships what the store holds.
//!
//! Here sockets, name resolution and the disk thread meet `link_proto`'s endpoint and sender; they decide.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Bye, Channel, Cipher, CloseReason, EdgeConfig, EdgeEndpoint, Endpoint, Event, SessionId,
    messages::{ToEdge, ToHub},
    replicate::sender::Sender,
};
use model::{DeviceName, StreamName, WallTime};
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, KeyPair, LinkError,
    driver::{Application, drive},
    hello,
    keys::random_bytes,
    resolve::{ResolvePlan, resolve},
    shelf::{Answer, Errand, KEPT_FREE, Shelf},
    socket::UdpSocket,
    wall_now,
};

/// How often the status is brought up to date.
const STATUS_EVERY: Duration = Duration::from_millis(250);

/// A clean end waits this long for what was said last to be acknowledged.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How to reach the hub.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// `HOST:PORT`.
    pub hub_address: String,
    pub hub_key: [u8; 32],
    pub key: KeyPair,
    /// Without an answer for this long the state says so. Default [`crate::ANSWER_TIMEOUT`].
    pub answer_timeout: Duration,
}

/// Where the link stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    #[default]
    Connecting,
    Connected {
        device: DeviceName,
        since: WallTime,
    },
    /// Tried again with back-off.
    Unreachable {
        why: String,
    },
    /// Unknown, disabled: tried again slowly, somebody may change it.
    Refused {
        reason: String,
    },
}

/// What pages, progress bars and metrics show.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UplinkStatus {
    pub state: LinkState,
    pub refused_streams: Vec<(StreamName, String)>,
    pub rtt: Option<Duration>,
    pub rate_bps: u64,
    pub loss: f32,
    pub counters: Counters,
}

/// Ships what the store holds until `shutdown`; then says `Bye` and returns. A lost link never ends it.
pub async fn run(
    config: UplinkConfig,
    store: Store,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    let mut plan = ResolvePlan::default();
    let address = tokio::select! {
        address = first_address(&config, &mut plan, &status) => address,
        () = shutdown.cancelled() => return Ok(()),
    };
    let socket = open_socket(address)?;
    let mut endpoint = EdgeEndpoint::new(
        EdgeConfig {
            hub_address: address,
            hub_key: config.hub_key,
            secret_key: config.key.secret,
            cipher: cipher(),
        },
        Instant::now(),
        random_bytes(),
    );
    let shelf = Shelf::start(store.clone())
        .map_err(|error| LinkError::io("failed to start the disk thread", error))?;
    let (resolved_sender, resolved) = mpsc::channel(1);
    let mut application = Uplink {
        changes: store.changes(),
        config,
        plan,
        shelf,
        resolved_sender,
        resolved,
        status,
        shutdown,
        sender: Sender::new(),
        greeted: false,
        device: None,
        unanswered_since: Some(Instant::now()),
        names_asked: false,
        names_stale: true,
        next_status: Instant::now(),
        ending: None,
        finished: false,
    };
    drive(&mut endpoint, &mut application, &socket)
        .await
        .map_err(|error| LinkError::io("failed to read the UDP socket", error))
}

/// A socket of the hub's address family; the edge listens on no known port.
pub(crate) fn open_socket(hub: SocketAddr) -> Result<UdpSocket, LinkError> {
    let any: IpAddr = match hub {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind(SocketAddr::new(any, 0))
        .map_err(|error| LinkError::io("failed to open a UDP socket", error))
}

/// AES where the processor does it in hardware, ChaCha20 elsewhere.
pub(crate) fn cipher() -> Cipher {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    let aes = false;
    if aes {
        Cipher::AesGcm
    } else {
        Cipher::ChaChaPoly
    }
}

/// Resolves the hub's name until it has an address.
async fn first_address(
    config: &UplinkConfig,
    plan: &mut ResolvePlan,
    status: &watch::Sender<UplinkStatus>,
) -> SocketAddr {
    loop {
        if plan.due(Instant::now(), 0) {
            match resolve(&config.hub_address).await {
                Ok(address) => return address,
                Err(error) => {
                    let why = format!("failed to resolve {}: {error}", config.hub_address);
                    status.send_modify(|s| s.state = LinkState::Unreachable { why });
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

struct Uplink {
    config: UplinkConfig,
    plan: ResolvePlan,
    shelf: Shelf,
    changes: watch::Receiver<u64>,
    resolved_sender: mpsc::Sender<std::io::Result<SocketAddr>>,
    resolved: mpsc::Receiver<std::io::Result<SocketAddr>>,
    status: watch::Sender<UplinkStatus>,
    shutdown: CancellationToken,
    sender: Sender,
    /// The hub has welcomed this session.
    greeted: bool,
    device: Option<(DeviceName, WallTime)>,
    /// Nothing was heard since then; None while the session is well.
    unanswered_since: Option<Instant>,
    names_asked: bool,
    names_stale: bool,
    next_status: Instant,
    /// Shutting down: last words until then.
    ending: Option<Instant>,
    finished: bool,
}

/// What the loop is told beside datagrams and time.
enum Input {
    Answer(Answer),
    Changed,
    Resolved(std::io::Result<SocketAddr>),
    Shutdown,
}

impl Application<EdgeEndpoint> for Uplink {
    type Input = Input;

    async fn input(&mut self) -> Option<Input> {
        let ending = self.ending.is_some();
        tokio::select! {
            Some(answer) = self.shelf.answers.recv() => Some(Input::Answer(answer)),
            Ok(()) = self.changes.changed() => Some(Input::Changed),
            Some(resolved) = self.resolved.recv() => Some(Input::Resolved(resolved)),
            () = self.shutdown.cancelled(), if !ending => Some(Input::Shutdown),
        }
    }

    fn try_input(&mut self) -> Option<Input> {
        self.shelf.answers.try_recv().ok().map(Input::Answer)
    }

    fn handle_input(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, input: Input) {
        match input {
            Input::Answer(answer) => self.take(now, answer),
            Input::Changed => {
                self.names_stale = true;
                self.sender.changed();
            }
            Input::Resolved(Ok(address)) => endpoint.set_hub_address(now, address),
            Input::Resolved(Err(error)) => {
                tracing::warn!(hub = %self.config.hub_address, %error, "failed to resolve the hub's name");
            }
            Input::Shutdown => self.ending = Some(now + LAST_WORDS),
        }
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, event: Event) {
        match event {
            Event::Connected { session, .. } | Event::ChannelsReset { session } => {
                self.unanswered_since = None;
                self.greet(now, endpoint, session);
            }
            Event::Message {
                session,
                channel,
                message,
            } => {
                let length = message.len();
                if let Err(error) = self.hear(now, message) {
                    tracing::error!(%error, "the hub broke the protocol; the session ends");
                    endpoint.close(now, session, Bye::Violation);
                    self.lost();
                } else {
                    endpoint.consumed(session, channel, length);
                }
            }
            Event::Silent { .. } => {
                self.unanswered_since.get_or_insert(now);
                self.lost();
            }
            Event::Unanswered { attempts } => {
                self.unanswered_since.get_or_insert(now);
                if self.plan.due(now, attempts) {
                    self.resolve_again();
                }
            }
            Event::Closed { reason, .. } => {
                self.lost();
                self.unanswered_since.get_or_insert(now);
                if reason != CloseReason::Peer(Bye::Refused) {
                    tracing::info!(?reason, "the session with the hub has ended");
                    self.status.send_modify(|s| {
                        if matches!(s.state, LinkState::Connected { .. }) {
                            s.state = LinkState::Connecting;
                        }
                    });
                }
            }
            Event::Writable { .. } | Event::PeerMoved { .. } => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        self.sender.handle_timeout(now);
        self.run_errands();
        if let Some(session) = endpoint.session().filter(|_| self.greeted) {
            self.speak(now, endpoint, session);
            // Room in the sender's hands may ask for more reading.
            self.run_errands();
        }
        if let Some(until) = self.ending {
            let heard = endpoint
                .session()
                .and_then(|session| endpoint.stats(session))
                .is_none_or(|stats| stats.outstanding_bytes == 0 || stats.silent);
            if (heard || now >= until) && !self.finished {
                endpoint.shutdown(now, Bye::Shutdown);
                self.finished = true;
            }
        }
        if now >= self.next_status || self.finished {
            self.next_status = now + STATUS_EVERY;
            self.report(now, endpoint);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [
            Some(self.next_status),
            self.sender.poll_timeout(),
            self.ending,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

impl Uplink {
    /// Each session, and each renewal of its channels, begins with a greeting.
    fn greet(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, session: SessionId) {
        self.lost();
        let hello = ToHub::Hello(hello()).encode();
        if let Err(error) = endpoint.send(now, session, Channel::Control, hello) {
            tracing::debug!(%error, "failed to greet the hub");
        }
    }

    fn lost(&mut self) {
        self.greeted = false;
        self.sender.disconnected();
    }

    fn hear(
        &mut self,
        now: Instant,
        message: Bytes,
    ) -> Result<(), link_proto::messages::ProtocolError> {
        match ToEdge::decode(message)? {
            // A kind that a later hub knows.
            None => Ok(()),
            Some(ToEdge::Welcome { name, hub_time, .. }) => {
                tracing::debug!(device = %name, clock_offset_ms = hub_time.0 - wall_now().0, "the hub welcomes this device");
                self.greeted = true;
                self.names_stale = true;
                self.sender.connected();
                let since = wall_now();
                self.device = Some((name.clone(), since));
                let state = LinkState::Connected {
                    device: name,
                    since,
                };
                self.status.send_modify(|s| s.state = state);
                Ok(())
            }
            Some(ToEdge::Refused { reason }) => {
                self.lost();
                self.status
                    .send_modify(|s| s.state = LinkState::Refused { reason });
                Ok(())
            }
            Some(message) => self.sender.handle_message(now, message),
        }
    }

    fn take(&mut self, now: Instant, answer: Answer) {
        match answer {
            Answer::Names(names) => {
                self.names_asked = false;
                let left_out = self.sender.set_streams(names);
                if !left_out.is_empty() {
                    tracing::error!(streams = ?left_out, "too many streams on one device: these are not shipped");
                }
            }
            Answer::Looked {
                ticket,
                stream,
                looked,
            } => self.sender.handle_looked(now, ticket, &stream, looked),
            Answer::Listed {
                ticket,
                stream,
                listed,
            } => self.sender.handle_listed(now, ticket, &stream, listed),
            Answer::Hashed { ticket, hash } => self.sender.handle_hashed(ticket, hash),
            Answer::Read {
                ticket,
                from,
                bytes,
            } => self.sender.handle_read(now, ticket, from, bytes),
        }
    }

    fn run_errands(&mut self) {
        if self.names_stale && !self.names_asked && self.greeted {
            self.names_stale = false;
            self.names_asked = true;
            self.ask(Errand::Names);
        }
        while self.shelf.errands.capacity() > KEPT_FREE
            && let Some(command) = self.sender.poll_command()
        {
            self.ask(Errand::Command(command));
        }
    }

    fn ask(&mut self, errand: Errand) {
        if let Err(error) = self.shelf.errands.try_send(errand) {
            tracing::error!(%error, "the disk thread does not take more work");
        }
    }

    fn speak(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, session: SessionId) {
        for channel in Channel::ALL {
            while endpoint.send_budget(session, channel) > 0
                && let Some(message) = self.sender.poll_message(channel)
            {
                if let Err(error) = endpoint.send(now, session, channel, message.encode()) {
                    // The sender believes it sent: compare anew.
                    tracing::warn!(%error, "failed to send a message; the session starts over");
                    endpoint.close(now, session, Bye::Violation);
                    self.lost();
                    return;
                }
            }
        }
    }

    fn resolve_again(&self) {
        let (address, result) = (
            self.config.hub_address.clone(),
            self.resolved_sender.clone(),
        );
        tokio::spawn(async move {
            let _ = result.send(resolve(&address).await).await;
        });
    }

    fn report(&mut self, now: Instant, endpoint: &EdgeEndpoint) {
        let stats = endpoint
            .session()
            .and_then(|session| endpoint.stats(session));
        let overdue = self.unanswered_since.is_some_and(|since| {
            now.saturating_duration_since(since) >= self.config.answer_timeout
        });
        let progress = self.sender.progress();
        let counters = Counters {
            segments_shipped: progress.segments_shipped,
            segments_stored: progress.segments_stored,
            ..Counters::of(endpoint.counters())
        };
        let refused: Vec<_> = self
            .sender
            .refused()
            .map(|(stream, reason)| (stream.clone(), reason.to_owned()))
            .collect();
        let address = self.config.hub_address.clone();
        self.status.send_if_modified(|status| {
            let before = status.clone();
            if overdue && !matches!(status.state, LinkState::Refused { .. }) {
                let why = LinkError::NoAnswer { address }.to_string();
                status.state = LinkState::Unreachable { why };
            }
            status.refused_streams = refused;
            status.rtt = stats.and_then(|stats| stats.rtt);
            status.rate_bps = stats.map_or(0, |stats| stats.rate_bps);
            status.loss = stats.map_or(0.0, |stats| stats.loss);
            status.counters = counters;
            *status != before
        });
    }
}
