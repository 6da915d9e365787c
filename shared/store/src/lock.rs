//! One daemon per data directory: a lock that says who holds it, and goes with its process.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    path::Path,
};

use crate::error::{AtPath, Result, StoreError};

/// Held while it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a directory; the error names the holder.
    pub(crate) fn take(data_dir: &Path, holder: &str) -> Result<Self> {
        let path = data_dir.join("lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .at(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => "another program",
                    known => known,
                };
                return Err(StoreError::Locked {
                    path: data_dir.to_owned(),
                    holder: holder.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(error).at(&path),
        }
        file.set_len(0).at(&path)?;
        writeln!(file, "{holder} (process {})", std::process::id()).at(&path)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hears_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), "hub serve").unwrap();
        let error = Lock::take(dir.path(), "hub serve").unwrap_err().to_string();
        assert!(error.contains("in use by hub serve (process"), "{error}");
        drop(first);
        Lock::take(dir.path(), "hub serve").unwrap();
    }
}
