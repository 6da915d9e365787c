//! Noise IK over `snow` and `ring`: the handshake's two messages and the keys that come out of them.
//!
//! The edge knows the hub's key beforehand; the hub learns the edge's from the first message, which is
//! authentic but may be a replay until a datagram under the new keys has come.

use snow::{
    HandshakeState, StatelessTransportState,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::{CryptoResolver, DefaultResolver, RingResolver},
    types,
};

use crate::{
    api::Cipher,
    datagram::{
        HEADER_END, INITIATION_BYTES, INITIATION_PAYLOAD_BYTES, MACS_END, RESPONSE_BYTES,
        RESPONSE_PAYLOAD_BYTES, TAG_BYTES,
    },
    rng::Rng,
};

/// What the handshake says beside the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// In the first message: the session to go on with, if the hub has it still (0: none).
    /// In the answer: the session that these keys are for.
    pub(crate) session: u64,
    /// Only in the answer: the session is the one asked for.
    pub(crate) resumed: bool,
}

/// The peer's message doesn't fit: forged, for another hub, or of another version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forged;

pub(crate) struct Initiator {
    state: HandshakeState,
}

impl Initiator {
    /// Also gives the first message. `None` can't happen with keys of 32 bytes.
    pub(crate) fn new(
        cipher: Cipher,
        secret_key: &[u8; 32],
        hub_key: &[u8; 32],
        header: &[u8; HEADER_END],
        ticket: Ticket,
        seed: [u8; 32],
    ) -> Option<(Self, Vec<u8>)> {
        let prologue = prologue(header);
        let mut state = snow::Builder::with_resolver(params(cipher)?, Box::new(Resolver { seed }))
            .prologue(&prologue)
            .ok()?
            .local_private_key(secret_key)
            .ok()?
            .remote_public_key(hub_key)
            .ok()?
            .build_initiator()
            .ok()?;
        let mut payload = [0; INITIATION_PAYLOAD_BYTES];
        let (place, _) = payload.split_first_chunk_mut::<8>()?;
        *place = ticket.session.to_be_bytes();
        let mut message = vec![0; INITIATION_BYTES - MACS_END];
        let size = state.write_message(&payload, &mut message).ok()?;
        (size == message.len()).then_some((Self { state }, message))
    }

    /// A forged answer leaves the handshake as it was.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Result<Ticket, Forged> {
        let mut payload = [0; RESPONSE_BYTES];
        let size = self
            .state
            .read_message(message, &mut payload)
            .map_err(|_| Forged)?;
        let payload = payload.get(..size).ok_or(Forged)?;
        let (flags, rest) = payload.split_first_chunk::<8>().ok_or(Forged)?;
        let (session, _) = rest.split_first_chunk::<8>().ok_or(Forged)?;
        Ok(Ticket {
            session: u64::from_be_bytes(*session),
            resumed: flags.first() == Some(&1),
        })
    }

    pub(crate) fn into_keys(self) -> Result<Keys, Forged> {
        Keys::new(self.state)
    }
}

pub(crate) struct Responder {
    state: HandshakeState,
    pub(crate) peer_key: [u8; 32],
    pub(crate) ticket: Ticket,
}

impl Responder {
    pub(crate) fn new(
        cipher: Cipher,
        secret_key: &[u8; 32],
        header: &[u8; HEADER_END],
        message: &[u8],
        seed: [u8; 32],
    ) -> Result<Self, Forged> {
        let prologue = prologue(header);
        let mut state = snow::Builder::with_resolver(
            params(cipher).ok_or(Forged)?,
            Box::new(Resolver { seed }),
        )
        .prologue(&prologue)
        .and_then(|builder| builder.local_private_key(secret_key))
        .and_then(|builder| builder.build_responder())
        .map_err(|_| Forged)?;
        let mut payload = [0; INITIATION_BYTES];
        state
            .read_message(message, &mut payload)
            .map_err(|_| Forged)?;
        let (session, _) = payload.split_first_chunk::<8>().ok_or(Forged)?;
        let peer_key = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .ok_or(Forged)?;
        Ok(Self {
            state,
            peer_key,
            ticket: Ticket {
                session: u64::from_be_bytes(*session),
                resumed: false,
            },
        })
    }

    pub(crate) fn answer(mut self, ticket: Ticket) -> Result<(Keys, Vec<u8>), Forged> {
        let mut payload = [0; RESPONSE_PAYLOAD_BYTES];
        let (flags, session) = payload.split_at_mut(8);
        if let Some(flag) = flags.first_mut() {
            *flag = u8::from(ticket.resumed);
        }
        session.copy_from_slice(&ticket.session.to_be_bytes());
        let mut message = vec![0; RESPONSE_BYTES];
        let size = self
            .state
            .write_message(&payload, &mut message)
            .map_err(|_| Forged)?;
        message.truncate(size);
        Ok((Keys::new(self.state)?, message))
    }
}

/// A key for each direction.
pub(crate) struct Keys(StatelessTransportState);

impl Keys {
    fn new(state: HandshakeState) -> Result<Self, Forged> {
        state
            .into_stateless_transport_mode()
            .map(Self)
            .map_err(|_| Forged)
    }

    /// Appends ciphertext and tag to `out`. A counter must be used once only.
    pub(crate) fn seal(&self, counter: u64, plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + plain.len() + TAG_BYTES, 0);
        let size = out
            .get_mut(start..)
            .and_then(|place| self.0.write_message(counter, plain, place).ok())
            .unwrap_or(0);
        assert_eq!(size, plain.len() + TAG_BYTES, "the cipher takes a datagram");
    }

    /// Opens into `plain`, which keeps its memory.
    pub(crate) fn open(
        &self,
        counter: u64,
        sealed: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), Forged> {
        plain.resize(sealed.len(), 0);
        let size = self
            .0
            .read_message(counter, sealed, plain)
            .map_err(|_| Forged)?;
        plain.truncate(size);
        Ok(())
    }
}

/// X25519 public key of a secret key (any 32 random bytes are one).
pub fn public_key(secret_key: &[u8; 32]) -> [u8; 32] {
    let mut public = [0; 32];
    if let Some(mut dh) = DefaultResolver.resolve_dh(&DHChoice::Curve25519) {
        dh.set(secret_key);
        public.copy_from_slice(dh.pubkey());
    }
    public
}

/// The unencrypted header is bound in, so that nobody can change version or cipher on the way.
fn prologue(header: &[u8; HEADER_END]) -> [u8; 16] {
    let mut prologue = *b"penstock\0\0\0\0\0\0\0\0";
    let (_, place) = prologue.split_at_mut(8);
    place.copy_from_slice(header);
    prologue
}

fn params(cipher: Cipher) -> Option<NoiseParams> {
    match cipher {
        Cipher::AesGcm => "Noise_IK_25519_AESGCM_SHA256",
        Cipher::ChaChaPoly => "Noise_IK_25519_ChaChaPoly_SHA256",
    }
    .parse()
    .ok()
}

/// `ring` for what touches every byte, randomness from the seed.
struct Resolver {
    seed: [u8; 32],
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn types::Random>> {
        Some(Box::new(Rng::new(self.seed)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn types::Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn types::Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn types::Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::initiation_header;

    const EDGE: [u8; 32] = [11; 32];
    const HUB: [u8; 32] = [22; 32];

    #[test]
    fn two_messages_give_both_ends_the_same_keys() {
        for cipher in [Cipher::AesGcm, Cipher::ChaChaPoly] {
            let header = initiation_header(cipher, 5);
            let asked = Ticket {
                session: 99,
                resumed: false,
            };
            let (mut edge, first) =
                Initiator::new(cipher, &EDGE, &public_key(&HUB), &header, asked, [1; 32]).unwrap();
            let hub = Responder::new(cipher, &HUB, &header, &first, [2; 32]).unwrap();
            assert_eq!(hub.peer_key, public_key(&EDGE));
            assert_eq!(hub.ticket, asked);
            let given = Ticket {
                session: 100,
                resumed: true,
            };
            let (hub, second) = hub.answer(given).unwrap();
            assert_eq!(second.len() + 12, RESPONSE_BYTES);

            let mut forged = second.clone();
            forged[40] ^= 1;
            assert_eq!(edge.finish(&forged), Err(Forged), "and it can still finish");
            assert_eq!(edge.finish(&second), Ok(given));
            let edge = edge.into_keys().ok().unwrap();

            let (mut sealed, mut plain) = (Vec::new(), Vec::new());
            edge.seal(7, b"segment", &mut sealed);
            assert_eq!(hub.open(8, &sealed, &mut plain), Err(Forged));
            assert_eq!(hub.open(7, &sealed, &mut plain), Ok(()));
            assert_eq!(plain, b"segment");
            assert_eq!(
                edge.open(7, &sealed, &mut plain),
                Err(Forged),
                "the other direction's key"
            );
        }
    }

    #[test]
    fn another_hub_or_a_changed_header_reads_nothing() {
        let header = initiation_header(Cipher::AesGcm, 5);
        let ticket = Ticket {
            session: 0,
            resumed: false,
        };
        let (_, first) = Initiator::new(
            Cipher::AesGcm,
            &EDGE,
            &public_key(&HUB),
            &header,
            ticket,
            [1; 32],
        )
        .unwrap();
        assert!(Responder::new(Cipher::AesGcm, &[23; 32], &header, &first, [2; 32]).is_err());
        let other = initiation_header(Cipher::AesGcm, 6);
        assert!(Responder::new(Cipher::AesGcm, &HUB, &other, &first, [2; 32]).is_err());
        assert!(Responder::new(Cipher::ChaChaPoly, &HUB, &header, &first, [2; 32]).is_err());
    }

    #[test]
    fn public_key_is_x25519() {
        // Made with `openssl genpkey -algorithm X25519 -text`.
        let secret = key("b0ba202acdb44e41b3949b034b73c87c837911b40010698a84fe921d9a44e752");
        let public = key("af6f0f535df65995baeba592bf2a9c804b297bd43bdf878cdb52060ccd6f3823");
        assert_eq!(public_key(&secret), public);
    }

    fn key(hex: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }
}
