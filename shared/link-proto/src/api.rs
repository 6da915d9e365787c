//! The words between a session and its driver: ids, channels, events, transmits, errors, statistics.
//!
//! Both ends are an [`Endpoint`] with the same loop: one mutation (a datagram, a time-out or a command),
//! then drain `poll_transmit` and `poll_event`, then arm the timer with `poll_timeout`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;

/// The largest message a channel carries. A message is a run of KCP packets that all must arrive, so it
/// stays far below KCP's own limit of 127 fragments and below what one loss may hold up.
pub const MAX_MESSAGE_BYTES: usize = 24 * 1024;

/// One session of this endpoint; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) u64);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A conversation inside a session. Each delivers its messages whole, once and in order, independently of
/// the others; where the line is short, control goes before live and live before bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    Control,
    Live,
    Bulk,
}

impl Channel {
    pub const ALL: [Channel; 3] = [Channel::Control, Channel::Live, Channel::Bulk];

    pub(crate) fn index(self) -> usize {
        match self {
            Channel::Control => 0,
            Channel::Live => 1,
            Channel::Bulk => 2,
        }
    }
}

/// Datagrams for one peer, appended to the caller's buffer by `poll_transmit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    /// Bytes appended.
    pub size: usize,
    /// `Some` where there is more than one datagram: each has this size, only the last may be shorter (what
    /// generic segmentation offload takes).
    pub segment_size: Option<usize>,
}

/// What happened. Events come in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Keys are agreed with the holder of `peer_key`. At the hub this comes with the first datagram under
    /// the new keys, so the peer is there now and is no replay.
    Connected {
        session: SessionId,
        peer_key: [u8; 32],
        peer: SocketAddr,
    },
    /// A whole message. Say `consumed` once it is dealt with, or the peer runs out of credit.
    Message {
        session: SessionId,
        channel: Channel,
        message: Bytes,
    },
    /// A channel whose `send` was refused as full takes messages again.
    Writable {
        session: SessionId,
        channel: Channel,
    },
    /// The peer has not answered for [`crate::SILENCE`]; channels stand still and are renewed when
    /// it is heard again.
    Silent { session: SessionId },
    /// All channels were renewed at both ends. Messages not delivered yet are gone, credit is as at the
    /// start: go on from offsets.
    ChannelsReset { session: SessionId },
    /// The peer sends from another address now.
    PeerMoved {
        session: SessionId,
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Edge only: the n-th handshake in a row was not answered; the next one is on its way. Time to resolve
    /// the hub's name again (`EdgeEndpoint::set_hub_address`).
    Unanswered { attempts: u32 },
    /// The session is gone, and its id with it.
    Closed {
        session: SessionId,
        reason: CloseReason,
    },
}

/// Why a session ended without this end having closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer said `Bye`.
    Peer(Bye),
    /// Nothing authentic came for [`crate::KEYS_OUTLIVE`].
    TimedOut,
    /// The same peer made a new session: it was restarted, or has lost this one.
    Replaced,
    /// The peer broke the protocol (authenticated, but wrong): its fault.
    Violation,
}

/// The reason a peer gives for closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bye {
    /// Nothing is left to do.
    Done,
    /// The program is being stopped; it means to come back.
    Shutdown,
    /// This peer is not (or no longer) welcome.
    Refused,
    /// The other end broke the protocol.
    Violation,
    /// Another box has made a session with this one's key.
    Replaced,
    /// A reason of a later version.
    Other(u8),
}

/// Why a message was not taken. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Back-pressure, or silence: `Event::Writable` or `Event::ChannelsReset` tells when to go on.
    #[error("the channel's queue is full")]
    Full,
    /// The session is gone (its `Closed` event may still be queued).
    #[error("the session is closed")]
    Closed,
    /// The caller's fault.
    #[error("a message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
}

/// AEAD of a session: the edge chooses what its processor does faster, the hub speaks both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    #[default]
    AesGcm,
    ChaChaPoly,
}

/// A session's numbers, for status pages and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SessionStats {
    /// Smoothed round trip; none before the first answer.
    pub rtt: Option<Duration>,
    pub min_rtt: Option<Duration>,
    /// What waits in the path's queues beyond its bare delay, as last measured.
    pub queueing_delay: Duration,
    /// What the pacer lets out now.
    pub rate_bps: u64,
    /// The largest datagram that the path is known to carry, in bytes of UDP payload.
    pub datagram_bytes: usize,
    /// What arrived lately, as the peer tells; nought before it has.
    pub delivery_bps: u64,
    /// Somebody else fills the path's queue: the rate follows losses and holds a share.
    pub competes: bool,
    /// Share of this end's datagrams that did not arrive lately, 0 to 1.
    pub loss: f32,
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    /// What the peer has sent so far, as its newest datagram that came tells: what is missing of these was lost,
    /// or is late.
    pub datagrams_expected: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Bytes sent before any loss was known: parity, and packets that tail probes repeated.
    pub bytes_beforehand: u64,
    /// Dropped because they were seen before or are too old.
    pub datagrams_replayed: u64,
    /// Authentic, but of an older generation or malformed inside.
    pub datagrams_bad: u64,
    pub messages_sent: u64,
    pub messages_received: u64,
    /// KCP packets with data, and how many of them were sent again.
    pub packets_sent: u64,
    pub packets_resent: u64,
    /// Their bytes: sent for the first time, and again.
    pub packet_bytes_sent: u64,
    pub packet_bytes_resent: u64,
    /// Parity datagrams sent, and packets that the peer's parity gave back here.
    pub parities_sent: u64,
    pub parity_bytes_sent: u64,
    pub packets_recovered: u64,
    /// How many datagrams the line loses in a row, on average.
    pub loss_burst: f32,
    /// Message bytes taken by `send` that the peer has not acknowledged.
    pub outstanding_bytes: usize,
    /// How often the channels were renewed.
    pub generation: u32,
    pub silent: bool,
}

/// What an endpoint counted over all its sessions, and what never reached one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointCounters {
    pub datagrams_received: u64,
    pub bytes_received: u64,
    pub datagrams_sent: u64,
    pub bytes_sent: u64,
    /// Wrong size, type or version.
    pub datagrams_malformed: u64,
    /// For a session index that is not in use.
    pub datagrams_unknown: u64,
    /// A MAC, tag or key that doesn't fit.
    pub datagrams_forged: u64,
    pub datagrams_replayed: u64,
    /// Handshakes that gave keys.
    pub handshakes: u64,
    /// Refused for a limit: half-open table, sessions.
    pub handshakes_refused: u64,
    /// First messages that had come before: dropped without arithmetic.
    pub handshakes_replayed: u64,
    /// First messages over the budget of a second, in all or of their network: not answered.
    pub handshakes_over_budget: u64,
    pub cookies_sent: u64,
    /// Answers to first messages for which the socket had no room.
    pub answers_dropped: u64,
    /// Sessions that had not said who they are when newer ones needed their place.
    pub strangers_dropped: u64,
}

impl EndpointCounters {
    /// Datagrams that were dropped, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.datagrams_malformed
            + self.datagrams_unknown
            + self.datagrams_forged
            + self.datagrams_replayed
            + self.handshakes_replayed
            + self.handshakes_over_budget
    }

    pub(crate) fn count_sent(&mut self, transmit: &Transmit) {
        let datagrams = transmit
            .segment_size
            .map_or(1, |size| transmit.size.div_ceil(size.max(1)));
        self.datagrams_sent += datagrams as u64;
        self.bytes_sent += transmit.size as u64;
    }
}

/// What both ends of the link have in common.
///
/// `now` never goes back between calls. Session commands for an id that is gone do nothing.
pub trait Endpoint {
    /// A datagram came in. Garbage changes nothing but a counter.
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]);

    /// The time of `poll_timeout` has come (being early or late does no harm).
    fn handle_timeout(&mut self, now: Instant);

    /// When to call `handle_timeout`, asked after the transmits were drained.
    fn poll_timeout(&mut self) -> Option<Instant>;

    /// Appends up to `max_datagrams` datagrams for one peer to `out`; `None` when nothing may go out now.
    fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit>;

    fn poll_event(&mut self) -> Option<Event>;

    /// Queues a message. Whether it fits is for [`Endpoint::send_budget`] to say beforehand.
    fn send(
        &mut self,
        now: Instant,
        session: SessionId,
        channel: Channel,
        message: Bytes,
    ) -> Result<(), SendError>;

    /// Bytes that the channel's queue takes now. It is short on purpose (some 50 ms at the present rate):
    /// what is queued can't be reordered any more. A message is taken whole where the budget is not nought.
    fn send_budget(&self, session: SessionId, channel: Channel) -> usize;

    /// The application has dealt with a message of this length: call it once for each `Event::Message`.
    /// The peer's credit grows only by this.
    fn consumed(&mut self, session: SessionId, channel: Channel, message_bytes: usize);

    /// Opens the full receive windows. Until then a peer has [`crate::STRANGER_CREDIT`] only:
    /// enough to say who it is.
    fn admit(&mut self, session: SessionId);

    /// Says `Bye` and forgets the session; what is still queued is dropped (see
    /// [`SessionStats::outstanding_bytes`]). No `Closed` event follows.
    fn close(&mut self, now: Instant, session: SessionId, reason: Bye);

    fn stats(&self, session: SessionId) -> Option<SessionStats>;

    fn counters(&self) -> EndpointCounters;
}
