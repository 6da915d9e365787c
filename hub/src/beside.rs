//! The catalog, opened by a subcommand beside a `hub serve` that may or may not be running.
//!
//! No lock is taken here: SQLite keeps two writers apart, and the daemon notices the change.

use std::path::Path;

use anyhow::{Context, Result};
use chrono::SecondsFormat;
use model::WallTime;
use store::Store;

/// When a running daemon acts on a change, for the line that confirms it.
pub(crate) const SOON: &str = "a running `hub serve` acts on it within 2 s";

/// Opens the catalog in `dir`; makes one if there is none yet, since the first device may be invited before
/// the first start.
pub(crate) fn open(dir: &Path) -> Result<Store> {
    Store::open_beside(dir)
        .with_context(|| format!("failed to open the catalog in {}", dir.display()))
}

/// A time in a table, to the second; `-` for none.
pub(crate) fn time_cell(time: Option<WallTime>) -> String {
    match time.and_then(WallTime::to_utc) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Secs, true),
        None => "-".to_owned(),
    }
}
