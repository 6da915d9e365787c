//! A program's wall clock that a test sets and steps; monotonic clocks and this machine's own stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

/// The wall clock of the programs that are started with it.
#[derive(Clone)]
pub struct FakeClock {
    library: PathBuf,
    offset: PathBuf,
}

impl FakeClock {
    /// A clock that is right; `file` holds how far it is off.
    pub fn new(file: &Path) -> Result<Self> {
        let clock = Self {
            library: library().context("libfaketime is missing: scripts/test installs it")?,
            offset: file.to_owned(),
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// Steps: from now on it is this many seconds ahead of this machine's clock, behind if below nought.
    pub fn set(&self, ahead_s: i64) -> Result<()> {
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{ahead_s:+}\n"))?;
        fs::rename(&new, &self.offset)?;
        Ok(())
    }

    /// A machine without a battery: it booted in 1970, `ago` before now.
    pub fn unset(&self, ago: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        self.set(ago.as_secs() as i64 - now as i64)
    }

    pub(crate) fn put_on(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

/// Debian's package `libfaketime`, for whichever machine.
fn library() -> Option<PathBuf> {
    fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}
