//! Who this edge-node is: its key, its name, its hub. Kept in `DATA_DIR/identity`, apart from the segments.
//!
//! One file, replaced whole and durably, so that key and hub always fit together. Secrets never reach a log:
//! nothing here implements `Debug` over them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use link::KeyPair;
use model::DeviceName;
use program::durable;
use serde::{Deserialize, Serialize};

const FOLDER: &str = "identity";
const FILE: &str = "identity.toml";
/// The key of an enrolment under way: trying again with the same URL must bring the same key, since the
/// hub lets only the key that began with a token repeat it.
const PENDING_FILE: &str = "enrolling.toml";
/// Longest identity file that is read.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// Who this edge-node is.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) device: DeviceName,
    /// `HOST:PORT`.
    pub(crate) hub_address: String,
    pub(crate) hub_key: [u8; 32],
    pub(crate) key: KeyPair,
}

/// An identity that can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The disk or its rights are at fault.
    #[error("{path}: {source}{hint}", path = path.display(), hint = data_dir_hint(source))]
    Io { path: PathBuf, source: io::Error },
    /// Somebody edited it, or the disk lost it.
    #[error("{path} is damaged ({what}): enrol again with a new URL from `hub enroll NAME`", path = path.display())]
    Damaged { path: PathBuf, what: String },
    /// The operator has yet to enrol it.
    #[error(
        "this edge-node is not enrolled with a hub: type `hub enroll NAME` at the hub, then here \
         `edge-node enroll URL --data-dir {data_dir}` with the URL it prints",
        data_dir = data_dir.display()
    )]
    NotEnrolled { data_dir: PathBuf },
}

/// Adds the way out where the default data directory is not this user's.
pub(crate) fn data_dir_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (give a directory of your own with --data-dir, or run as the user that owns it)"
        }
        _ => "",
    }
}

/// `DATA_DIR/identity`.
pub(crate) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Makes `DATA_DIR/identity` for its owner alone.
pub(crate) fn make_folder(data_dir: &Path) -> Result<PathBuf, IdentityError> {
    let folder = folder(data_dir);
    store::make_data_dir(data_dir)
        .and_then(|()| durable::private_folder(&folder))
        .map_err(|source| io_error(&folder, source))?;
    Ok(folder)
}

impl Identity {
    /// The identity in a data directory.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = folder(data_dir).join(FILE);
        let written: Written = read(&path)?.ok_or_else(|| IdentityError::NotEnrolled {
            data_dir: data_dir.to_owned(),
        })?;
        let damaged = |what: &str| IdentityError::Damaged {
            path: path.clone(),
            what: what.to_owned(),
        };
        Ok(Self {
            hub_key: key_from_text(&written.hub_key).ok_or_else(|| damaged("hub_key"))?,
            key: KeyPair::from_secret(
                key_from_text(&written.secret_key).ok_or_else(|| damaged("secret_key"))?,
            ),
            device: written.device,
            hub_address: written.hub_address,
        })
    }

    /// Replaces the identity in a data directory, durably.
    pub(crate) fn store(&self, data_dir: &Path) -> io::Result<()> {
        let written = Written {
            device: self.device.clone(),
            hub_address: self.hub_address.clone(),
            hub_key: BASE64URL_NOPAD.encode(&self.hub_key),
            secret_key: BASE64URL_NOPAD.encode(&self.key.secret),
        };
        write(&folder(data_dir).join(FILE), &written)
    }
}

/// The key to enrol with: the one of an earlier try with the same URL, or a new one that is kept first.
pub(crate) fn enrolling_key(data_dir: &Path, url: &str) -> Result<KeyPair, IdentityError> {
    let path = make_folder(data_dir)?.join(PENDING_FILE);
    let url_hash = blake3::hash(url.as_bytes()).to_hex().to_string();
    // A damaged one is of no use: it is replaced like one of another URL.
    if let Ok(Some(pending)) = read::<Pending>(&path)
        && pending.url_hash == url_hash
        && let Some(secret) = key_from_text(&pending.secret_key)
    {
        return Ok(KeyPair::from_secret(secret));
    }
    let key = KeyPair::generate();
    let pending = Pending {
        url_hash,
        secret_key: BASE64URL_NOPAD.encode(&key.secret),
    };
    write(&path, &pending).map_err(|source| io_error(&path, source))?;
    Ok(key)
}

/// Forgets the key of an enrolment under way, once the hub has confirmed it.
pub(crate) fn forget_enrolling_key(data_dir: &Path) -> Result<(), IdentityError> {
    let path = folder(data_dir).join(PENDING_FILE);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error(&path, source)),
        _ => Ok(()),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    device: DeviceName,
    hub_address: String,
    hub_key: String,
    secret_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    url_hash: String,
    secret_key: String,
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, IdentityError> {
    let damaged = |what: &str| IdentityError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(damaged("too long")),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, source)),
    }
    let bytes = fs::read(path).map_err(|source| io_error(path, source))?;
    // The parser's message quotes the text, which holds the key: say only where.
    toml::from_slice(&bytes).map(Some).map_err(|e| {
        damaged(&e.span().map_or_else(
            || "not TOML".to_owned(),
            |span| format!("at byte {}", span.start),
        ))
    })
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let text = toml::to_string(value).map_err(io::Error::other)?;
    let text = format!("# Whoever holds this file is this device: keep it secret.\n{text}");
    durable::write(path, text.as_bytes(), durable::PRIVATE)
}

fn key_from_text(text: &str) -> Option<[u8; 32]> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()?
        .try_into()
        .ok()
}

fn io_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn identity(device: &str) -> Identity {
        Identity {
            device: device.parse().unwrap(),
            hub_address: "hub.example.org:9710".to_owned(),
            hub_key: [7; 32],
            key: KeyPair::generate(),
        }
    }

    #[test]
    fn what_is_stored_is_loaded_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("edge");
        let error = Identity::load(&data_dir).err().unwrap();
        assert!(matches!(error, IdentityError::NotEnrolled { .. }));
        assert!(error.to_string().contains("hub enroll NAME"), "{error}");
        make_folder(&data_dir).unwrap();
        for name in ["pole-7", "gate-house"] {
            let stored = identity(name);
            stored.store(&data_dir).unwrap();
            let loaded = Identity::load(&data_dir).unwrap();
            assert_eq!(loaded.device, stored.device);
            assert_eq!(loaded.hub_address, stored.hub_address);
            assert_eq!(loaded.hub_key, stored.hub_key);
            assert_eq!(loaded.key.secret, stored.key.secret);
            assert_eq!(loaded.key.public, stored.key.public);
        }
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder(&data_dir)), 0o700);
        assert_eq!(mode(folder(&data_dir).join(FILE)), 0o600);
    }

    #[test]
    fn trying_again_with_the_same_url_brings_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = enrolling_key(dir.path(), "penstock://a").unwrap();
        let again = enrolling_key(dir.path(), "penstock://a").unwrap();
        assert_eq!(first.secret, again.secret);
        let other = enrolling_key(dir.path(), "penstock://b").unwrap();
        assert_ne!(first.secret, other.secret);
        forget_enrolling_key(dir.path()).unwrap();
        forget_enrolling_key(dir.path()).unwrap();
        let fresh = enrolling_key(dir.path(), "penstock://b").unwrap();
        assert_ne!(other.secret, fresh.secret);
    }

    #[test]
    fn a_damaged_identity_is_said_without_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(dir.path()).unwrap();
        let path = folder(dir.path()).join(FILE);
        identity("pole-7").store(dir.path()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let secret = good.lines().last().unwrap().split('"').nth(1).unwrap();
        for bad in [
            String::new(),
            good.replace("hub_key", "hubkey"),
            good.replace(secret, "short"),
            good.replace(&format!("\"{secret}\""), secret),
            good.replace("pole-7", "../up"),
            "x".repeat(20_000),
        ] {
            fs::write(&path, bad).unwrap();
            let error = Identity::load(dir.path()).err().unwrap().to_string();
            assert!(error.contains("is damaged"), "{error}");
            assert!(!error.contains(secret), "{error}");
        }
    }
}
