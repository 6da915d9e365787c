//! `edge-node enroll`: makes a key, meets the hub, keeps the identity before the hub is told so.

use std::{
    io::{self, BufRead},
    path::Path,
};

use link::{EnrolUrl, LinkError};
use program::{exit::Failure, output};

use crate::{
    config::Settings,
    identity::{self, Identity, IdentityError},
    numbers::Numbers,
};

/// Longest URL that is read from standard input.
const MAX_URL_BYTES: u64 = 4096;

/// Enrols with the hub of `url`, `-` meaning a line on standard input.
pub(crate) fn enroll(settings: &Settings, url: &str) -> Result<(), Failure> {
    let url = match url {
        "-" => read_url(io::stdin().lock())?,
        given => given.trim().to_owned(),
    };
    // The text holds a token: it is not repeated in the message.
    let parsed: EnrolUrl = url.parse().map_err(|error| {
        Failure::usage(format!(
            "that is not the URL that `hub enroll NAME` prints (penstock://HOST:PORT/HUBKEY#TOKEN; \
             quote it, a shell may cut it at '#'): {error}"
        ))
    })?;
    let before = match Identity::load(&settings.data_dir) {
        Ok(identity) => Some(identity),
        Err(IdentityError::NotEnrolled { .. } | IdentityError::Damaged { .. }) => None,
        Err(error) => return Err(failed(error)),
    };
    let enrolled = meet(&settings.data_dir, &url, &parsed)?;
    identity::forget_enrolling_key(&settings.data_dir).map_err(failed)?;
    let data_dir = settings.data_dir.display();
    let mut text = format!(
        "enrolled as {} with the hub at {}\n",
        enrolled.device, enrolled.hub_address
    );
    if let Some(before) = before {
        text.push_str(&format!(
            "this replaces {} at {}; an `edge-node run` that is up takes it on when restarted\n",
            before.device, before.hub_address
        ));
    }
    text.push_str(&format!(
        "next: edge-node push --data-dir {data_dir} --stream NAME FILE\n"
    ));
    output::print(&text).map_err(|e| Failure::failed(format!("failed to write: {e}")))
}

fn meet(data_dir: &Path, url: &str, parsed: &EnrolUrl) -> Result<Identity, Failure> {
    let key = identity::enrolling_key(data_dir, url).map_err(failed)?;
    let of = |enrolled: &link::enrol::Enrolled| Identity {
        device: enrolled.name.clone(),
        hub_address: enrolled.hub_address.clone(),
        hub_key: enrolled.hub_key,
        key: key.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("failed to start: {e}")))?;
    let enrolled = runtime
        .block_on(link::enrol::enrol(parsed, &key, |enrolled| {
            keep_floors(data_dir, enrolled)?;
            of(enrolled).store(data_dir)
        }))
        .map_err(|error| refused(&error))?;
    Ok(of(&enrolled))
}

/// Before the identity: once that is there, the numbers are safe to use.
fn keep_floors(data_dir: &Path, enrolled: &link::enrol::Enrolled) -> io::Result<()> {
    let folder = identity::make_folder(data_dir).map_err(io::Error::other)?;
    Numbers::open(&folder)
        .and_then(|numbers| numbers.raise(&enrolled.floors))
        .map_err(io::Error::other)
}

fn refused(error: &LinkError) -> Failure {
    let hint = match error {
        LinkError::NoAnswer { .. } => "; the same URL works again once the hub answers",
        _ => "",
    };
    Failure::failed(format!("failed to enrol: {error}{hint}"))
}

fn failed(error: IdentityError) -> Failure {
    Failure::failed(format!("failed to enrol: {error}"))
}

fn read_url(input: impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    input
        .take(MAX_URL_BYTES)
        .read_line(&mut line)
        .map_err(|e| Failure::failed(format!("failed to read the URL: {e}")))?;
    match line.trim() {
        "" => Err(Failure::usage(
            "no URL came on standard input: `hub enroll NAME` prints one",
        )),
        url => Ok(url.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_read() {
        assert_eq!(
            read_url(&b" penstock://x \nmore\n"[..]).unwrap(),
            "penstock://x"
        );
        assert!(read_url(&b"\n"[..]).is_err());
        assert!(read_url(&b""[..]).is_err());
        assert!(read_url(&b"\xff\xfe\n"[..]).is_err());
        assert_eq!(
            read_url(&[b'x'; 10_000][..]).unwrap().len() as u64,
            MAX_URL_BYTES
        );
    }
}
