//! Bare sessions: messages of one channel or another between two programs, with no store at either end.
//!
//! For measuring the transport beside others (`scripts/bench link`), over the sockets and the loop that
//! replication uses. What to send and when is not decided here: messages go out in the order in which they
//! came, each channel as far as its budget takes them.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Bye, Channel, EdgeConfig, EdgeEndpoint, Endpoint, Event, HubConfig, HubEndpoint, SessionId,
    SessionStats,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    KeyPair, LinkError, cipher, driver, keys::random_bytes, resolve::any_port_towards,
    socket::UdpSocket,
};

/// Bytes that wait here for their channels' budgets; beyond it no more are taken from the program. Longer
/// than any backlog that a live picture outlives: 16 s of 4 Mbit/s.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// Time for `Bye` and what is under way before it, at the end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a program gives and takes.
pub struct Bare<F> {
    /// Messages of at most [`link_proto::MAX_MESSAGE_BYTES`] to send.
    pub outgoing: mpsc::Receiver<(Channel, Bytes)>,
    /// Called with each message as soon as it is there, whole and in its channel's order.
    pub deliver: F,
    /// Ends the session.
    pub stop: CancellationToken,
}

/// An edge's end, until `stop`; the session's last numbers, if there was one.
pub async fn edge<F: FnMut(Channel, Bytes) + Send>(
    hub: SocketAddr,
    hub_key: [u8; 32],
    key: &KeyPair,
    bare: Bare<F>,
) -> Result<Option<SessionStats>, LinkError> {
    let socket = UdpSocket::bind(any_port_towards(hub))
        .map_err(LinkError::io("failed to open a UDP socket"))?;
    let config = EdgeConfig {
        hub_address: hub,
        hub_key,
        secret_key: key.secret,
        cipher: cipher(),
    };
    let endpoint = EdgeEndpoint::new(config, Instant::now(), random_bytes());
    run(endpoint, bare, &socket).await
}

/// A hub's end, until `stop`. Whoever has a key may connect; the newest session is the one that is spoken to.
pub async fn hub<F: FnMut(Channel, Bytes) + Send>(
    listen: SocketAddr,
    key: &KeyPair,
    bare: Bare<F>,
) -> Result<Option<SessionStats>, LinkError> {
    let socket = UdpSocket::bind(listen)
        .map_err(LinkError::io(format!("failed to listen on UDP {listen}")))?;
    let endpoint = HubEndpoint::new(HubConfig::new(key.secret), Instant::now(), random_bytes());
    run(endpoint, bare, &socket).await
}

async fn run<E: Endpoint, F: FnMut(Channel, Bytes) + Send>(
    mut endpoint: E,
    bare: Bare<F>,
    socket: &UdpSocket,
) -> Result<Option<SessionStats>, LinkError> {
    let mut application = Application {
        bare,
        session: None,
        waiting: Default::default(),
        waiting_bytes: 0,
        end: None,
        last: None,
    };
    driver::drive(&mut endpoint, &mut application, socket)
        .await
        .map_err(LinkError::io("failed to read the UDP socket"))?;
    Ok(application.last)
}

enum Input {
    Send(Channel, Bytes),
    Stop,
}

struct Application<F> {
    bare: Bare<F>,
    session: Option<SessionId>,
    /// By channel, in the order of [`Channel::ALL`].
    waiting: [VecDeque<Bytes>; 3],
    waiting_bytes: usize,
    /// When the loop ends, once it was told to.
    end: Option<Instant>,
    last: Option<SessionStats>,
}

impl<F: FnMut(Channel, Bytes)> Application<F> {
    fn has_room(&self) -> bool {
        self.waiting_bytes < MAX_WAITING_BYTES
    }
}

impl<E: Endpoint, F: FnMut(Channel, Bytes) + Send> driver::Application<E> for Application<F> {
    type Input = Input;

    async fn input(&mut self) -> Option<Input> {
        let has_room = self.has_room();
        let stopped = self.end.is_some();
        tokio::select! {
            () = self.bare.stop.cancelled(), if !stopped => Some(Input::Stop),
            Some((channel, message)) = self.bare.outgoing.recv(), if has_room => {
                Some(Input::Send(channel, message))
            }
            else => std::future::pending().await,
        }
    }

    fn try_input(&mut self) -> Option<Input> {
        if !self.has_room() {
            return None;
        }
        let (channel, message) = self.bare.outgoing.try_recv().ok()?;
        Some(Input::Send(channel, message))
    }

    fn handle_input(&mut self, now: Instant, endpoint: &mut E, input: Input) {
        match input {
            Input::Send(channel, message) => {
                let at = Channel::ALL.iter().position(|known| *known == channel);
                if let Some(queue) = at.and_then(|at| self.waiting.get_mut(at)) {
                    self.waiting_bytes += message.len();
                    queue.push_back(message);
                }
            }
            Input::Stop => {
                self.end = Some(now + LAST_WORDS);
                if let Some(session) = self.session {
                    endpoint.close(now, session, Bye::Done);
                }
            }
        }
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut E, event: Event) {
        match event {
            // The other end was told to stop first, and this one has begun anew.
            Event::Connected { session, .. } if self.bare.stop.is_cancelled() => {
                endpoint.close(now, session, Bye::Done);
            }
            Event::Connected { session, .. } => {
                endpoint.admit(session);
                self.session = Some(session);
            }
            Event::Message {
                session,
                channel,
                message,
            } => {
                endpoint.consumed(session, channel, message.len());
                (self.bare.deliver)(channel, message);
            }
            Event::Closed { session, .. } if self.session == Some(session) => self.session = None,
            _ => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut E) {
        let Some(session) = self.session else {
            return;
        };
        self.last = endpoint.stats(session).or(self.last);
        for (channel, queue) in Channel::ALL.into_iter().zip(&mut self.waiting) {
            while endpoint.send_budget(session, channel) > 0 {
                let Some(message) = queue.pop_front() else {
                    break;
                };
                self.waiting_bytes -= message.len();
                // Refused only where the session has just ended; its `Closed` follows.
                let _ = endpoint.send(now, session, channel, message);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.end
    }

    fn finished(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages on each of two channels; more than their budgets and the mpsc channel hold at once.
    const MESSAGES: u32 = 300;

    fn message(number: u32) -> Bytes {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.resize(10_000, number as u8);
        bytes.into()
    }

    #[test]
    fn messages_come_whole_and_in_their_channels_order() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let (key, edge_key) = (KeyPair::generate(), KeyPair::generate());
        let hub_key = key.public;
        let stop = CancellationToken::new();
        let mut got = Vec::new();
        let edge_stats = runtime.block_on(async {
            let (give, outgoing) = mpsc::channel(8);
            let (_silent, nothing) = mpsc::channel(1);
            let camera = async move {
                for number in 0..MESSAGES {
                    for channel in [Channel::Live, Channel::Bulk] {
                        give.send((channel, message(number))).await.unwrap();
                    }
                }
            };
            let all = stop.clone();
            let at_hub = Bare {
                outgoing: nothing,
                deliver: |channel, message| {
                    got.push((channel, message));
                    if got.len() == 2 * MESSAGES as usize {
                        all.cancel();
                    }
                },
                stop: stop.clone(),
            };
            let at_edge = Bare {
                outgoing,
                deliver: |_, _| {},
                stop: stop.clone(),
            };
            let (hub, edge, ()) = tokio::join!(
                hub(address, &key, at_hub),
                edge(address, hub_key, &edge_key, at_edge),
                camera,
            );
            hub.unwrap();
            edge.unwrap().unwrap()
        });
        assert_eq!(edge_stats.messages_sent, u64::from(2 * MESSAGES));
        for channel in [Channel::Live, Channel::Bulk] {
            let here = got.iter().filter(|(on, _)| *on == channel);
            assert!(
                here.map(|(_, bytes)| bytes)
                    .eq(&(0..MESSAGES).map(message).collect::<Vec<_>>())
            );
        }
    }
}
