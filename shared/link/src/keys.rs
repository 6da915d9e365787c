//! Key pairs and the line an operator carries from hub to edge. Text only: no I/O but fresh random bytes.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;

const SCHEME: &str = "penstock://";

/// Longest token taken, in bytes; the hub makes 32.
const MAX_TOKEN_BYTES: usize = 64;

/// Longest `HOST:PORT`: a DNS name of 253 bytes and a port.
const MAX_ADDRESS_BYTES: usize = 260;

/// X25519 secret key with its public half.
#[derive(Clone)]
pub struct KeyPair {
    pub secret: [u8; 32],
    pub public: [u8; 32],
}

impl KeyPair {
    /// A fresh pair.
    pub fn generate() -> Self {
        Self::from_secret(random_bytes())
    }

    pub fn from_secret(secret: [u8; 32]) -> Self {
        let public = link_proto::public_key(&secret);
        Self { secret, public }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", BASE64URL_NOPAD.encode(&self.public))
    }
}

/// 32 bytes from the operating system's random source.
///
/// # Panics
/// Where the system has none: no key can be made there, and nothing may go on with a guessable one.
#[allow(clippy::expect_used)]
pub(crate) fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// `penstock://HOST:PORT/HUBKEY#TOKEN`, key and token in base64url without padding. Display shows the token;
/// Debug hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolUrl {
    /// `HOST:PORT`; a literal IPv6 address stands in brackets.
    pub address: String,
    pub hub_key: [u8; 32],
    pub token: Vec<u8>,
}

/// An enrolment line that can't be read. Whoever copied it is at fault. Never shows the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an enrolment URL: {0}; copy the whole line that `hub enroll` printed: penstock://HOST:PORT/HUBKEY#TOKEN"
)]
pub struct EnrolUrlError(&'static str);

impl FromStr for EnrolUrl {
    type Err = EnrolUrlError;

    fn from_str(text: &str) -> Result<Self, EnrolUrlError> {
        let rest = text
            .trim()
            .strip_prefix(SCHEME)
            .ok_or(EnrolUrlError("it does not begin with penstock://"))?;
        let (rest, token) = rest
            .split_once('#')
            .ok_or(EnrolUrlError("the token after # is missing"))?;
        let (address, key) = rest
            .split_once('/')
            .ok_or(EnrolUrlError("the hub's key after / is missing"))?;
        let (host, port) = address
            .rsplit_once(':')
            .ok_or(EnrolUrlError("the port is missing"))?;
        if host.is_empty() || address.len() > MAX_ADDRESS_BYTES {
            return Err(EnrolUrlError("the host is missing or too long"));
        }
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err(EnrolUrlError("the port is not a number from 1 to 65535"));
        }
        let hub_key = BASE64URL_NOPAD
            .decode(key.as_bytes())
            .ok()
            .and_then(|key| key.try_into().ok())
            .ok_or(EnrolUrlError(
                "the hub's key is not 43 characters of base64url",
            ))?;
        let token = BASE64URL_NOPAD
            .decode(token.as_bytes())
            .ok()
            .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN_BYTES)
            .ok_or(EnrolUrlError("the token is not base64url"))?;
        Ok(Self {
            address: address.to_owned(),
            hub_key,
            token,
        })
    }
}

impl fmt::Display for EnrolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}{}/{}#{}",
            self.address,
            BASE64URL_NOPAD.encode(&self.hub_key),
            BASE64URL_NOPAD.encode(&self.token)
        )
    }
}

impl fmt::Debug for EnrolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}{}/{}#(hidden)",
            self.address,
            BASE64URL_NOPAD.encode(&self.hub_key)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(address: &str) -> EnrolUrl {
        EnrolUrl {
            address: address.into(),
            hub_key: [7; 32],
            token: vec![9; 32],
        }
    }

    #[test]
    fn it_reads_what_it_writes() {
        for address in ["hub.example.org:9710", "10.0.0.1:1", "[2001:db8::1]:65535"] {
            let url = url(address);
            let text = url.to_string();
            assert_eq!(text.parse::<EnrolUrl>(), Ok(url.clone()));
            assert_eq!(format!(" {text}\n").parse::<EnrolUrl>(), Ok(url.clone()));
            let token = text.split_once('#').unwrap().1;
            assert!(!format!("{url:?}").contains(token));
        }
    }

    #[test]
    fn each_missing_piece_is_named() {
        let good = url("hub:9710").to_string();
        let (head, _) = good.split_once('#').unwrap();
        for (bad, reason) in [
            (String::new(), "begin with"),
            ("http://hub:9710/x#y".into(), "begin with"),
            (head.into(), "token after #"),
            ("penstock://hub:9710#abcd".into(), "key after /"),
            (good.replace(":9710", ""), "port is missing"),
            (good.replace("hub:", ":"), "host is missing"),
            (good.replace("9710", "97100"), "not a number"),
            (good.replace("9710/Bw", "9710/"), "43 characters"),
            (format!("{head}#"), "not base64url"),
            (format!("{head}#!!"), "not base64url"),
        ] {
            let error = bad.parse::<EnrolUrl>().unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
            assert!(error.contains("hub enroll"), "{error}");
        }
    }
}
