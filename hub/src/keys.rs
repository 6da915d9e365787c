//! The hub's secrets on disk: its link key and the token of the admin listener.
//!
//! Each is 32 random bytes in a file of its own that only the hub's user can read. Made once, durably
//! and atomically: a `hub enroll` and a `hub serve` that start at the same moment agree on one secret,
//! and a crash leaves either none or a whole one. Never logged.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use program::durable;

/// The hub's static X25519 secret; whoever holds it is this hub.
pub(crate) const HUB_KEY_FILE: &str = "hub.key";
/// The bearer token for writes on the admin listener.
pub(crate) const ADMIN_TOKEN_FILE: &str = "admin.token";

/// A secret's length in bytes: an X25519 key, and beyond guessing as a token.
pub(crate) const SECRET_BYTES: usize = 32;
/// Longest secret file that is read; a whole one is 44 bytes.
const MAX_FILE_BYTES: u64 = 256;

/// A secret that can't be had. The disk or the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a whole key: put it back from a backup (a new hub key means enrolling every device again)"
    )]
    Malformed { path: PathBuf },
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
}

/// 32 random bytes from the system.
pub(crate) fn random_secret() -> Result<[u8; SECRET_BYTES], KeyError> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(KeyError::Random)?;
    Ok(secret)
}

/// The secret in `dir`'s file `name`; made, durably, if there is none yet. `dir` is made too.
pub(crate) fn load_or_create(dir: &Path, name: &str) -> Result<[u8; SECRET_BYTES], KeyError> {
    let path = dir.join(name);
    if let Some(secret) = load(&path)? {
        return Ok(secret);
    }
    store::make_data_dir(dir).map_err(io_at(dir))?;
    create(dir, &path)?;
    load(&path)?.ok_or(KeyError::Malformed { path })
}

/// Reads a secret; None if there is no file. Closes a file that others could read.
fn load(path: &Path) -> Result<Option<[u8; SECRET_BYTES]>, KeyError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_at(path)(e)),
    };
    if file.metadata().map_err(io_at(path))?.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read this secret: closing it (mode 0600)");
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(io_at(path))?;
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(io_at(path))?;
    let bytes = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(secret) => Ok(Some(secret)),
        None => Err(KeyError::Malformed {
            path: path.to_owned(),
        }),
    }
}

/// Makes a new secret under its final name unless another process was quicker.
fn create(dir: &Path, path: &Path) -> Result<(), KeyError> {
    let text = format!("{}\n", BASE64URL_NOPAD.encode(&random_secret()?));
    let temporary = path.with_extension(format!(
        "{:08x}.tmp",
        getrandom::u32().map_err(KeyError::Random)?
    ));
    let made = durable::write(&temporary, text.as_bytes(), durable::PRIVATE).and_then(|()| {
        // A link, not a rename: it never replaces a secret that is there already.
        let linked = match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        };
        linked.and(fs::remove_file(&temporary))
    });
    made.and_then(|()| durable::sync_folder(dir))
        .map_err(io_at(path))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("not/yet/there");
        let first = load_or_create(&data, HUB_KEY_FILE).unwrap();
        assert_eq!(load_or_create(&data, HUB_KEY_FILE).unwrap(), first);
        assert_ne!(load_or_create(&data, ADMIN_TOKEN_FILE).unwrap(), first);
        let mode = fs::metadata(data.join(HUB_KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut names: Vec<_> = fs::read_dir(&data)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [ADMIN_TOKEN_FILE, HUB_KEY_FILE]);
    }

    #[test]
    fn two_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let secrets: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_create(dir.path(), HUB_KEY_FILE)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap().unwrap())
                .collect()
        });
        let kept = load_or_create(dir.path(), HUB_KEY_FILE).unwrap();
        assert!(secrets.iter().all(|s| *s == kept));
    }

    #[test]
    fn an_open_file_is_closed_and_a_broken_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HUB_KEY_FILE);
        let secret = load_or_create(dir.path(), HUB_KEY_FILE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_create(dir.path(), HUB_KEY_FILE).unwrap(), secret);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for broken in ["", "short", "?????????", &"A".repeat(300)] {
            fs::write(&path, broken).unwrap();
            let error = load_or_create(dir.path(), HUB_KEY_FILE).unwrap_err();
            assert!(
                matches!(error, KeyError::Malformed { .. }),
                "{broken:?}: {error}"
            );
            assert!(
                error.to_string().contains("hub.key is not a whole key"),
                "{error}"
            );
        }
    }
}
