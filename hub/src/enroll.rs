//! `hub enroll NAME`: a one-time invitation for a device, as one URL.
//!
//! The token is kept as a hash and expires; a known name gets a new key once the device has used it, and
//! keeps its streams and numbers. The same invitation is behind `POST /api/v1/devices`.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use link::{EnrolUrl, KeyPair};
use model::{DeviceName, MediaDuration, StreamName, WallTime};
use store::Store;

use program::{clock, exit::Failure, output};

use crate::{
    beside,
    cli::EnrollArgs,
    config::{PublicAddress, Settings},
    keys,
};

/// How long a token waits to be used, unless `--expires` says.
pub(crate) const DEFAULT_EXPIRES: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest life of a token: less can't be typed in on a device.
const MIN_EXPIRES: Duration = Duration::from_secs(60);
/// Longest life of a token: a URL in a drawer must not open the hub for ever.
const MAX_EXPIRES: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Streams reserved with one token; a device ships a handful.
pub(crate) const MAX_RESERVED: usize = 64;

/// What a device enrols with.
pub(crate) struct Invitation {
    pub(crate) url: EnrolUrl,
    pub(crate) expires: WallTime,
}

/// Runs the subcommand: the URL on standard output, what to do with it on standard error.
pub(crate) fn run(args: EnrollArgs, settings: &Settings) -> Result<(), Failure> {
    check_expires(args.expires).map_err(Failure::usage)?;
    let address = address(args.address.clone(), settings)?;
    Ok(enroll(args, &address, settings)?)
}

fn enroll(args: EnrollArgs, address: &PublicAddress, settings: &Settings) -> Result<()> {
    let store = beside::open(&settings.data_dir)?;
    let key = KeyPair::from_secret(keys::load_or_create(
        &settings.data_dir,
        keys::HUB_KEY_FILE,
    )?);
    let now = clock::wall_now();
    let known = store
        .devices()?
        .into_iter()
        .any(|d| d.name == args.name && d.key.is_some());
    let invitation = invite(
        &store,
        &key,
        &args.name,
        address,
        &args.streams,
        args.expires,
        now,
    )?;
    output::line(&invitation.url.to_string())?;
    output::error(&format!(
        "on the device, before {}: edge-node enroll 'URL' (the line above; it works once)",
        invitation.expires
    ));
    if known {
        output::error(&format!(
            "{} is enrolled already: its key is replaced when this URL is used, its streams stay",
            args.name
        ));
    }
    Ok(())
}

/// Makes a token for `name`, durably, and the URL that carries it.
pub(crate) fn invite(
    store: &Store,
    key: &KeyPair,
    name: &DeviceName,
    address: &PublicAddress,
    streams: &[StreamName],
    valid_for: Duration,
    now: WallTime,
) -> Result<Invitation> {
    check_expires(valid_for)?;
    if streams.len() > MAX_RESERVED {
        bail!(
            "{} streams are too many for one device: reserve at most {MAX_RESERVED}",
            streams.len()
        );
    }
    let token = keys::random_secret()?;
    let expires = now.plus(MediaDuration::from_duration(valid_for));
    store
        .create_token(name, &token, expires, streams, now)
        .with_context(|| format!("failed to enrol {name}"))?;
    let url = EnrolUrl {
        address: address.to_string(),
        hub_key: key.public,
        token: token.to_vec(),
    };
    Ok(Invitation { url, expires })
}

fn check_expires(valid_for: Duration) -> Result<()> {
    if !(MIN_EXPIRES..=MAX_EXPIRES).contains(&valid_for) {
        bail!(
            "a token lives 1m to 30d, not {}",
            humantime::format_duration(valid_for)
        );
    }
    Ok(())
}

/// Where the device will find this hub: the flag, the config, or the link's address if it is one.
fn address(flag: Option<PublicAddress>, settings: &Settings) -> Result<PublicAddress, Failure> {
    if let Some(address) = flag.or_else(|| known_address(settings)) {
        return Ok(address);
    }
    let guess = match guess_own_address(settings.link.port()) {
        Some(guess) => format!("this machine seems to be {guess}"),
        None => "for example hub.example.org:9710".to_owned(),
    };
    Err(Failure::usage(format_args!(
        "where will the device find this hub? Pass --address HOST:PORT, or set link.public_address in hub.toml ({guess})"
    )))
}

/// The address that settings alone tell.
pub(crate) fn known_address(settings: &Settings) -> Option<PublicAddress> {
    let concrete = !settings.link.ip().is_unspecified() && settings.link.port() != 0;
    settings
        .public_address
        .clone()
        .or_else(|| concrete.then(|| settings.link.into()))
}

/// The address this machine would send from; asking sends nothing.
fn guess_own_address(port: u16) -> Option<SocketAddr> {
    /// TEST-NET-1 (RFC 5737): routed like any far address, belongs to nobody.
    const FAR: (&str, u16) = ("192.0.2.1", 9);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(FAR).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{File, Overrides};

    fn settings(file: &str) -> Settings {
        let file: File = program::config::parse("hub.toml".as_ref(), file).unwrap();
        Settings::resolve(None, Overrides::default(), file).unwrap()
    }

    #[test]
    fn the_address_is_told_or_asked_for() {
        let wildcard = settings("");
        let error = address(None, &wildcard).unwrap_err().to_string();
        assert!(
            error.contains("--address HOST:PORT") && error.contains("link.public_address"),
            "{error}"
        );

        let flag: PublicAddress = "flag.example:1".parse().unwrap();
        let public = settings("link.public_address = 'hub.example.org'");
        assert_eq!(
            address(Some(flag), &public).unwrap().to_string(),
            "flag.example:1"
        );
        assert_eq!(
            address(None, &public).unwrap().to_string(),
            "hub.example.org:9710"
        );
        assert_eq!(
            address(None, &settings("link.listen = '10.1.2.3:99'"))
                .unwrap()
                .to_string(),
            "10.1.2.3:99"
        );
        assert!(address(None, &settings("link.listen = '10.1.2.3:0'")).is_err());
    }

    #[test]
    fn a_token_lives_between_a_minute_and_a_month() {
        for (seconds, good) in [
            (0, false),
            (59, false),
            (60, true),
            (86_400, true),
            (30 * 86_400, true),
            (31 * 86_400, false),
        ] {
            assert_eq!(
                check_expires(Duration::from_secs(seconds)).is_ok(),
                good,
                "{seconds}"
            );
        }
    }
}
