//! Enrolment: a device shows its token, stores who it is, and only then the token is used up.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use link_proto::{
    Bye, Channel, CloseReason, EdgeConfig, EdgeEndpoint, Endpoint, Event, SessionId,
    messages::{ToEdge, ToHub},
};
use model::{DeviceName, SegmentNumber, StreamName};

use crate::{
    ANSWER_TIMEOUT, EnrolUrl, KeyPair, LinkError, cipher, driver,
    driver::Application,
    hello,
    keys::random_bytes,
    reach,
    resolve::{any_port_towards, resolve},
    socket::UdpSocket,
};

/// `Bye` is said within this, or not.
const BYE_TIME: Duration = Duration::from_millis(500);

/// Who the hub says this device is, and where the hub is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub name: DeviceName,
    /// `HOST:PORT`, as the URL gave it.
    pub hub_address: String,
    pub hub_key: [u8; 32],
    /// Per stream of this device the lowest number that the hub has not seen used: a box that takes an old
    /// name over goes on above it (invariant 2).
    pub floors: Vec<(StreamName, SegmentNumber)>,
}

/// Enrols; `keep` makes the identity durable and is called before the hub is told that it was. The same key
/// may repeat it with the same URL if the last answer was lost.
pub async fn enrol(
    url: &EnrolUrl,
    key: &KeyPair,
    keep: impl FnOnce(&Enrolled) -> std::io::Result<()> + Send,
) -> Result<Enrolled, LinkError> {
    let hub = tokio::time::timeout(ANSWER_TIMEOUT, resolve(&url.address, None))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(LinkError::io(format!("failed to resolve {}", url.address)))?;
    let socket = UdpSocket::bind(any_port_towards(hub))
        .map_err(LinkError::io("failed to open a UDP socket"))?;
    let mut endpoint = endpoint(url, key, hub);
    let mut app = Enrolment {
        url,
        keep: Some(keep),
        deadline: Instant::now() + ANSWER_TIMEOUT,
        enrolled: None,
        unanswered: false,
        outcome: None,
    };
    driver::drive(&mut endpoint, &mut app, &socket)
        .await
        .map_err(LinkError::io("failed to read the UDP socket"))?;
    match app.outcome {
        Some(outcome) => outcome,
        None if app.unanswered => Err(LinkError::NoAnswer {
            reach: reach::look(&url.address).await,
            address: url.address.clone(),
        }),
        None => Err(LinkError::Closed),
    }
}

fn endpoint(url: &EnrolUrl, key: &KeyPair, hub_address: SocketAddr) -> EdgeEndpoint {
    let config = EdgeConfig {
        hub_address,
        hub_key: url.hub_key,
        secret_key: key.secret,
        cipher: cipher(),
    };
    EdgeEndpoint::new(config, Instant::now(), random_bytes())
}

struct Enrolment<'a, K> {
    url: &'a EnrolUrl,
    keep: Option<K>,
    /// No answer by then is none; with an outcome, when to stop saying `Bye`.
    deadline: Instant,
    /// The identity is stored; the hub has not answered to that.
    enrolled: Option<Enrolled>,
    /// The deadline has passed without an answer.
    unanswered: bool,
    outcome: Option<Result<Enrolled, LinkError>>,
}

impl<K: FnOnce(&Enrolled) -> std::io::Result<()> + Send> Enrolment<'_, K> {
    fn end(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        outcome: Result<Enrolled, LinkError>,
    ) {
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            self.deadline = now + BYE_TIME;
            endpoint.shutdown(now, Bye::Done);
        }
    }

    fn say(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        message: &ToHub,
    ) {
        self.deadline = now + ANSWER_TIMEOUT;
        if endpoint
            .send(now, session, Channel::Control, message.encode())
            .is_err()
        {
            self.end(now, endpoint, Err(LinkError::Closed));
        }
    }

    /// Where the enrolment stands, from its beginning: also after the channels were renewed.
    fn begin(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, session: SessionId) {
        let message = ToHub::Enrol {
            hello: hello(),
            token: Bytes::copy_from_slice(&self.url.token),
        };
        self.say(now, endpoint, session, &message);
    }

    fn on_message(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        message: ToEdge,
    ) {
        match message {
            ToEdge::Welcome { name, floors, .. } => {
                let enrolled = Enrolled {
                    name,
                    floors,
                    hub_address: self.url.address.clone(),
                    hub_key: self.url.hub_key,
                };
                // Kept once: a repeated welcome only means that the first confirmation was lost.
                if let Some(keep) = self.keep.take()
                    && let Err(error) = keep(&enrolled)
                {
                    let failed = LinkError::io("failed to store the identity")(error);
                    return self.end(now, endpoint, Err(failed));
                }
                self.enrolled = Some(enrolled);
                self.say(now, endpoint, session, &ToHub::EnrolConfirm);
            }
            ToEdge::Enrolled => {
                let outcome = self.enrolled.take().ok_or(LinkError::Closed);
                self.end(now, endpoint, outcome);
            }
            ToEdge::Refused { reason } => {
                self.end(now, endpoint, Err(LinkError::Refused { reason }));
            }
            // Of a later version: not for an enrolment.
            _ => {}
        }
    }
}

impl<K: FnOnce(&Enrolled) -> std::io::Result<()> + Send> Application<EdgeEndpoint>
    for Enrolment<'_, K>
{
    type Input = std::convert::Infallible;

    async fn input(&mut self) -> Option<Self::Input> {
        None
    }

    fn try_input(&mut self) -> Option<Self::Input> {
        None
    }

    fn handle_input(&mut self, _: Instant, _: &mut EdgeEndpoint, input: Self::Input) {
        match input {}
    }

    fn handle_event(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, event: Event) {
        match event {
            Event::Connected { session, .. } | Event::ChannelsReset { session } => {
                self.begin(now, endpoint, session);
            }
            Event::Message {
                session,
                channel,
                message,
            } => {
                endpoint.consumed(session, channel, message.len());
                match ToEdge::decode(message) {
                    Ok(Some(message)) => self.on_message(now, endpoint, session, message),
                    Ok(None) => {}
                    Err(error) => self.end(now, endpoint, Err(error.into())),
                }
            }
            Event::Closed { reason, .. } => {
                let error = match reason {
                    CloseReason::Peer(Bye::Refused) => LinkError::Refused {
                        reason: "it does not take this device".to_owned(),
                    },
                    _ => LinkError::Closed,
                };
                self.end(now, endpoint, Err(error));
            }
            _ => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        if self.outcome.is_none() && !self.unanswered && self.deadline <= now {
            self.unanswered = true;
            self.deadline = now + BYE_TIME;
            endpoint.shutdown(now, Bye::Shutdown);
        }
        if endpoint.is_finished() && (self.outcome.is_some() || self.unanswered) {
            self.deadline = now;
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.deadline)
    }

    fn finished(&self) -> bool {
        (self.outcome.is_some() || self.unanswered) && self.deadline <= Instant::now()
    }
}
