//! Enrolment: one session in which a token turns this machine's key into a device of the hub.
//!
//! The token is used up only when the identity is durable here and the hub was told so; until then the same
//! key may repeat.

use std::time::Instant;

use bytes::Bytes;
use link_proto::{
    Bye, Channel, EdgeConfig, EdgeEndpoint, Endpoint, Event, SessionId,
    messages::{ToEdge, ToHub},
};
use model::DeviceName;

use crate::{
    ANSWER_TIMEOUT, EnrolUrl, KeyPair, LinkError,
    driver::{Application, drive},
    hello,
    keys::random_bytes,
    resolve::resolve,
    uplink::{cipher, open_socket},
};

/// What a device knows once it is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub name: DeviceName,
    pub hub_address: String,
    pub hub_key: [u8; 32],
}

/// Enrols. `keep` makes the identity durable; it is called before the hub is told so.
pub async fn enrol(
    url: &EnrolUrl,
    key: &KeyPair,
    keep: impl FnOnce(&Enrolled) -> std::io::Result<()> + Send,
) -> Result<Enrolled, LinkError> {
    let address = resolve(&url.address)
        .await
        .map_err(|error| LinkError::io(format!("failed to resolve {}", url.address), error))?;
    let socket = open_socket(address)?;
    let now = Instant::now();
    let mut endpoint = EdgeEndpoint::new(
        EdgeConfig {
            hub_address: address,
            hub_key: url.hub_key,
            secret_key: key.secret,
            cipher: cipher(),
        },
        now,
        random_bytes(),
    );
    let mut application = Enrolment {
        url,
        keep: Some(keep),
        deadline: now + ANSWER_TIMEOUT,
        enrolled: None,
        result: None,
    };
    drive(&mut endpoint, &mut application, &socket)
        .await
        .map_err(|error| LinkError::io("failed to read the UDP socket", error))?;
    application.result.unwrap_or_else(|| {
        Err(LinkError::NoAnswer {
            address: url.address.clone(),
        })
    })
}

struct Enrolment<'a, K> {
    url: &'a EnrolUrl,
    keep: Option<K>,
    deadline: Instant,
    /// Durable here; the hub's last word is waited for.
    enrolled: Option<Enrolled>,
    result: Option<Result<Enrolled, LinkError>>,
}

impl<K: FnOnce(&Enrolled) -> std::io::Result<()> + Send> Application<EdgeEndpoint>
    for Enrolment<'_, K>
{
    type Input = ();

    async fn input(&mut self) -> Option<()> {
        None
    }

    fn try_input(&mut self) -> Option<()> {
        None
    }

    fn handle_input(&mut self, _: Instant, _: &mut EdgeEndpoint, (): ()) {}

    fn handle_event(&mut self, now: Instant, endpoint: &mut EdgeEndpoint, event: Event) {
        match event {
            Event::Connected { session, .. } | Event::ChannelsReset { session } => {
                let token = Bytes::copy_from_slice(&self.url.token);
                let hello = hello();
                self.say(now, endpoint, session, &ToHub::Enrol { hello, token });
            }
            Event::Message {
                session, message, ..
            } => self.hear(now, endpoint, session, message),
            _ => {}
        }
    }

    fn pump(&mut self, now: Instant, endpoint: &mut EdgeEndpoint) {
        if self.result.is_none() && now >= self.deadline {
            self.result = Some(Err(LinkError::NoAnswer {
                address: self.url.address.clone(),
            }));
        }
        if self.result.is_some() {
            endpoint.shutdown(now, Bye::Done);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.deadline)
    }

    fn finished(&self) -> bool {
        self.result.is_some()
    }
}

impl<K: FnOnce(&Enrolled) -> std::io::Result<()> + Send> Enrolment<'_, K> {
    fn say(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        message: &ToHub,
    ) {
        if let Err(error) = endpoint.send(now, session, Channel::Control, message.encode()) {
            tracing::debug!(%error, "failed to say what enrolment needs; said again with the next session");
        }
    }

    fn hear(
        &mut self,
        now: Instant,
        endpoint: &mut EdgeEndpoint,
        session: SessionId,
        message: Bytes,
    ) {
        match ToEdge::decode(message) {
            Ok(Some(ToEdge::Welcome { name, .. })) => {
                let enrolled = Enrolled {
                    name,
                    hub_address: self.url.address.clone(),
                    hub_key: self.url.hub_key,
                };
                if let Some(keep) = self.keep.take()
                    && let Err(error) = keep(&enrolled)
                {
                    let error = LinkError::io("failed to keep the identity", error);
                    self.result = Some(Err(error));
                    return;
                }
                self.enrolled = Some(enrolled);
                self.say(now, endpoint, session, &ToHub::EnrolConfirm);
            }
            Ok(Some(ToEdge::Enrolled)) => {
                self.result = self.enrolled.take().map(Ok);
            }
            Ok(Some(ToEdge::Refused { reason })) => {
                self.result = Some(Err(LinkError::Refused { reason }));
            }
            Ok(_) => {}
            Err(error) => {
                let reason = format!("its answer can't be read: {error}");
                self.result = Some(Err(LinkError::Refused { reason }));
            }
        }
    }
}
