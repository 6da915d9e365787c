//! The four kinds of datagram on the wire: checked views of bytes, and how to write them.
//!
//! Numbers are in network order. What is parsed here is not authentic yet: nothing may be done with it but
//! to find the key that it must fit (invariant 6).
//!
//! ```text
//! initiation  type 1 | version | cipher | 0 | sender u32 | mac1 16 | mac2 16 | Noise IK message 1   = 1200
//! response    type 2 | 0 0 0 | receiver u32 | sender u32 | Noise IK message 2                       =   76
//! cookie      type 3 | 0 0 0 | receiver u32 | masked cookie 16 | tag 16                             =   40
//! transport   type 4 | 0 0 0 | receiver u32 | counter u64 | ciphertext | tag 16                    <= 1472
//! ```

use crate::api::Cipher;

/// Raised with each change that the other end could misread.
pub(crate) const PROTOCOL_VERSION: u8 = 2;

/// What a datagram has at most where nothing is known of the path: as long as the handshake's first message, so
/// that where that passed, the rest does.
pub const BASE_DATAGRAM_BYTES: usize = INITIATION_BYTES;

/// What a datagram has at most on any path: Ethernet's 1,500 bytes behind IPv4 and UDP headers.
pub const MAX_DATAGRAM_BYTES: usize = 1472;

/// First messages are padded to this, so that no answer is longer than its question.
pub(crate) const INITIATION_BYTES: usize = 1200;
pub(crate) const INITIATION_PAYLOAD_BYTES: usize = INITIATION_BYTES - MACS_END - 96;
pub(crate) const RESPONSE_PAYLOAD_BYTES: usize = 16;
pub(crate) const RESPONSE_BYTES: usize = 12 + 48 + RESPONSE_PAYLOAD_BYTES;
pub(crate) const COOKIE_REPLY_BYTES: usize = 40;
pub(crate) const TRANSPORT_HEADER_BYTES: usize = 16;
pub(crate) const TAG_BYTES: usize = 16;

pub(crate) const HEADER_END: usize = 8;
pub(crate) const MACS_END: usize = 40;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE_REPLY: u8 = 3;
const TRANSPORT: u8 = 4;

pub(crate) type Mac = [u8; 16];

#[derive(Debug, PartialEq)]
pub(crate) enum Datagram<'a> {
    Initiation(Initiation<'a>),
    Response {
        receiver: u32,
        sender: u32,
        noise: &'a [u8],
    },
    CookieReply {
        receiver: u32,
        masked: Mac,
        tag: Mac,
    },
    Transport(Transport<'a>),
}

/// Frames under the receiver's keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transport<'a> {
    pub(crate) receiver: u32,
    pub(crate) counter: u64,
    pub(crate) sealed: &'a [u8],
}

#[derive(Debug, PartialEq)]
pub(crate) struct Initiation<'a> {
    pub(crate) cipher: Cipher,
    pub(crate) sender: u32,
    pub(crate) header: [u8; HEADER_END],
    pub(crate) mac1: Mac,
    pub(crate) mac2: Mac,
    pub(crate) noise: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// `None`: not one of ours, of another version, or of a wrong size.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match *bytes.first()? {
            INITIATION if bytes.len() == INITIATION_BYTES => {
                let (header, rest) = bytes.split_first_chunk::<HEADER_END>()?;
                let (mac1, rest) = rest.split_first_chunk::<16>()?;
                let (mac2, noise) = rest.split_first_chunk::<16>()?;
                let [_, version, cipher, zero, sender @ ..] = *header;
                if version != PROTOCOL_VERSION || zero != 0 {
                    return None;
                }
                Some(Self::Initiation(Initiation {
                    cipher: cipher_of(cipher)?,
                    sender: u32::from_be_bytes(sender),
                    header: *header,
                    mac1: *mac1,
                    mac2: *mac2,
                    noise,
                }))
            }
            RESPONSE if bytes.len() == RESPONSE_BYTES => {
                let (receiver, rest) = after_type(bytes)?;
                let (sender, noise) = rest.split_first_chunk::<4>()?;
                Some(Self::Response {
                    receiver,
                    sender: u32::from_be_bytes(*sender),
                    noise,
                })
            }
            COOKIE_REPLY if bytes.len() == COOKIE_REPLY_BYTES => {
                let (receiver, rest) = after_type(bytes)?;
                let (masked, rest) = rest.split_first_chunk::<16>()?;
                let (tag, _) = rest.split_first_chunk::<16>()?;
                Some(Self::CookieReply {
                    receiver,
                    masked: *masked,
                    tag: *tag,
                })
            }
            TRANSPORT
                if bytes.len() >= TRANSPORT_HEADER_BYTES + TAG_BYTES
                    && bytes.len() <= MAX_DATAGRAM_BYTES =>
            {
                let (receiver, rest) = after_type(bytes)?;
                let (counter, sealed) = rest.split_first_chunk::<8>()?;
                Some(Self::Transport(Transport {
                    receiver,
                    counter: u64::from_be_bytes(*counter),
                    sealed,
                }))
            }
            _ => None,
        }
    }
}

fn after_type(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let [_, 0, 0, 0, index @ ..] = *head else {
        return None;
    };
    Some((u32::from_be_bytes(index), rest))
}

fn cipher_of(byte: u8) -> Option<Cipher> {
    match byte {
        0 => Some(Cipher::AesGcm),
        1 => Some(Cipher::ChaChaPoly),
        _ => None,
    }
}

pub(crate) fn initiation_header(cipher: Cipher, sender: u32) -> [u8; HEADER_END] {
    let [a, b, c, d] = sender.to_be_bytes();
    let cipher = match cipher {
        Cipher::AesGcm => 0,
        Cipher::ChaChaPoly => 1,
    };
    [INITIATION, PROTOCOL_VERSION, cipher, 0, a, b, c, d]
}

pub(crate) fn emit_initiation(
    header: &[u8; HEADER_END],
    mac1: &Mac,
    mac2: &Mac,
    noise: &[u8],
) -> Vec<u8> {
    [&header[..], mac1, mac2, noise].concat()
}

pub(crate) fn emit_response(receiver: u32, sender: u32, noise: &[u8]) -> Vec<u8> {
    [
        &[RESPONSE, 0, 0, 0][..],
        &receiver.to_be_bytes(),
        &sender.to_be_bytes(),
        noise,
    ]
    .concat()
}

pub(crate) fn emit_cookie_reply(receiver: u32, masked: &Mac, tag: &Mac) -> Vec<u8> {
    [
        &[COOKIE_REPLY, 0, 0, 0][..],
        &receiver.to_be_bytes(),
        masked,
        tag,
    ]
    .concat()
}

pub(crate) fn transport_header(receiver: u32, counter: u64) -> [u8; TRANSPORT_HEADER_BYTES] {
    let [a, b, c, d] = receiver.to_be_bytes();
    let [e, f, g, h, i, j, k, l] = counter.to_be_bytes();
    [TRANSPORT, 0, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exact_bytes() {
        assert_eq!(
            transport_header(0x0102_0304, 0x1122_3344_5566_7788),
            [
                4, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88
            ]
        );
        assert_eq!(
            initiation_header(Cipher::ChaChaPoly, 0xa0b0_c0d0),
            [1, 2, 1, 0, 0xa0, 0xb0, 0xc0, 0xd0]
        );
        assert_eq!(emit_response(1, 2, &[9; 64]).len(), RESPONSE_BYTES);
        assert_eq!(
            emit_response(1, 2, &[9; 64])[..12],
            [2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]
        );
        assert_eq!(
            emit_cookie_reply(1, &[2; 16], &[3; 16]).len(),
            COOKIE_REPLY_BYTES
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let noise = vec![7; INITIATION_BYTES - MACS_END];
        let header = initiation_header(Cipher::AesGcm, 77);
        let bytes = emit_initiation(&header, &[1; 16], &[2; 16], &noise);
        assert_eq!(bytes.len(), INITIATION_BYTES);
        assert_eq!(
            Datagram::parse(&bytes),
            Some(Datagram::Initiation(Initiation {
                cipher: Cipher::AesGcm,
                sender: 77,
                header,
                mac1: [1; 16],
                mac2: [2; 16],
                noise: &noise
            }))
        );
        assert_eq!(
            Datagram::parse(&emit_response(5, 6, &[9; 64])),
            Some(Datagram::Response {
                receiver: 5,
                sender: 6,
                noise: &[9; 64]
            })
        );
        assert_eq!(
            Datagram::parse(&emit_cookie_reply(5, &[1; 16], &[2; 16])),
            Some(Datagram::CookieReply {
                receiver: 5,
                masked: [1; 16],
                tag: [2; 16]
            })
        );
    }

    #[test]
    fn wrong_sizes_types_and_versions_are_refused() {
        let good = emit_initiation(
            &initiation_header(Cipher::AesGcm, 1),
            &[0; 16],
            &[0; 16],
            &[0; 1160],
        );
        assert!(Datagram::parse(&good).is_some());
        for (at, value) in [(0, 0), (0, 5), (1, 1), (2, 2), (3, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Datagram::parse(&bad), None, "byte {at} = {value}");
        }
        assert_eq!(Datagram::parse(&good[..1199]), None);
        assert_eq!(Datagram::parse(&[good, vec![0]].concat()), None);
        let mut transport = transport_header(1, 2).to_vec();
        transport.resize(31, 0);
        assert_eq!(Datagram::parse(&transport), None, "no room for a tag");
        transport.resize(MAX_DATAGRAM_BYTES, 0);
        assert!(Datagram::parse(&transport).is_some());
        transport.push(0);
        assert_eq!(Datagram::parse(&transport), None, "oversized");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            let _ = Datagram::parse(&bytes);
        }
    }
}
