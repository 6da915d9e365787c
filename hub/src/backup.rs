//! `hub backup DIR`: what a hub can't get back from its edges: its key, its devices, its catalog.
//!
//! Works beside a running `hub serve`. Every file is written under a temporary name and renamed, the note that
//! says that the folder is a backup of ours last: a backup that was cut off leaves the one before it as it was.
//! No segment is copied.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use program::{clock, durable, output};
use serde_json::json;
use store::{BACKUP_NOTE, Store};

use crate::{beside, config::Settings, keys};

/// What a copied settings file is called.
const CONFIG_FILE: &str = "hub.toml";
/// Longest secret or settings file that is copied.
const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Between two looks at how far the copy is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Makes a backup in `dir`.
pub(crate) fn run(dir: &Path, settings: &Settings, config: Option<&Path>) -> Result<()> {
    let catalog = Store::catalog_path(&settings.data_dir);
    ensure!(
        catalog.exists(),
        "there is no hub in {}: nothing to back up (--data-dir)",
        settings.data_dir.display()
    );
    claim(dir)?;
    ensure!(
        dir.canonicalize().ok() != settings.data_dir.canonicalize().ok(),
        "{} is the data directory itself: give another folder",
        dir.display()
    );
    let store = beside::open(&settings.data_dir)?;
    let copied = {
        let temporary = dir.join("catalog.db.new");
        remove(&temporary)?;
        let _bar = Bar::start(&temporary, store.catalog_bytes()?);
        let copied = store
            .copy_catalog(&temporary)
            .context("failed to copy the catalog")?;
        private(&temporary)?;
        rename(&temporary, &dir.join("catalog.db"))?;
        copied
    };
    let mut files = vec!["catalog.db"];
    for name in [keys::HUB_KEY_FILE, keys::ADMIN_TOKEN_FILE] {
        if copy_small(&settings.data_dir.join(name), &dir.join(name))? {
            files.push(name);
        }
    }
    if let Some(config) = config
        && copy_small(config, &dir.join(CONFIG_FILE))?
    {
        files.push(CONFIG_FILE);
    }
    let now = clock::wall_now();
    let note = json!({
        "made_ms": now,
        "made": now.to_string(),
        "software": concat!("hub ", env!("CARGO_PKG_VERSION")),
        "devices": copied.devices,
        "streams": copied.streams,
        "segments_known": copied.segments,
    });
    let note = serde_json::to_string_pretty(&note)? + "\n";
    durable::write(&dir.join(BACKUP_NOTE), note.as_bytes(), durable::PRIVATE)
        .with_context(|| format!("failed to write {}", dir.join(BACKUP_NOTE).display()))?;
    output::line(&format!(
        "{}: {} ({} devices, {} streams, {} segments known; {})",
        dir.display(),
        files.join(", "),
        copied.devices,
        copied.streams,
        copied.segments,
        ByteSize(copied.bytes)
    ))?;
    output::error(&format!(
        "keep it secret: it holds the hub's key. No segment is in it. To restore: stop the hub;\n  \
         rm -f {data}/catalog.db-wal {data}/catalog.db-shm\n  cp {from}/catalog.db {from}/*.key {from}/*.token {data}/\n\
         and start it: what came since is taken in from the segments and from the edges.",
        data = settings.data_dir.display(),
        from = dir.display(),
    ));
    Ok(())
}

/// Makes the folder, or takes one that is empty or a backup of ours.
fn claim(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            let mut names: Vec<String> = Vec::new();
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            let ours = |name: &String| {
                name == BACKUP_NOTE || name == "catalog.db.new" || name == "lost+found"
            };
            let unfinished = names.iter().all(ours);
            if !unfinished && !dir.join(BACKUP_NOTE).exists() {
                // The catalog of one that was cut off before its first note.
                let begun = names.iter().all(|name| {
                    ours(name)
                        || [
                            "catalog.db",
                            keys::HUB_KEY_FILE,
                            keys::ADMIN_TOKEN_FILE,
                            CONFIG_FILE,
                        ]
                        .contains(&name.as_str())
                });
                if !begun || names.iter().any(|name| name == "lock") {
                    bail!(
                        "{} is neither empty nor a backup of a hub: give another folder",
                        dir.display()
                    );
                }
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => durable::private_folder(dir)
            .with_context(|| format!("failed to make {}", dir.display())),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", dir.display())),
    }
}

/// Copies a small file whole or not at all; false: there is none.
fn copy_small(from: &Path, to: &Path) -> Result<bool> {
    let failed = || format!("failed to copy {} to {}", from.display(), to.display());
    match fs::metadata(from) {
        Ok(meta) => ensure!(
            meta.len() <= MAX_SMALL_BYTES,
            "{} is longer than any of its kind",
            from.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(failed),
    }
    let bytes = fs::read(from).with_context(failed)?;
    durable::write(to, &bytes, durable::PRIVATE).with_context(failed)?;
    Ok(true)
}

fn private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(durable::PRIVATE))
        .with_context(|| format!("failed to close {} to others", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .and_then(|()| durable::sync_folder(to.parent().unwrap_or(Path::new("."))))
        .with_context(|| format!("failed to write {}", to.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Shows on a terminal how far a file has grown, until it is dropped.
struct Bar {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Bar {
    fn start(path: &Path, total: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::io::stderr().is_terminal().then(|| {
            let (over, path) = (over.clone(), path.to_owned());
            thread::spawn(move || show(&path, total, &over))
        });
        Self { over, thread }
    }
}

fn show(path: &PathBuf, total: u64, over: &AtomicBool) {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(
        "copying the catalog [{bar:30}] {bytes}/{total_bytes}, {eta} left",
    ) {
        bar.set_style(style);
    }
    while !over.load(Relaxed) {
        bar.set_position(fs::metadata(path).map_or(0, |meta| meta.len()));
        thread::sleep(PROGRESS_INTERVAL);
    }
    bar.finish_and_clear();
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let free = dir.path().join("not/yet");
        claim(&free).unwrap();
        claim(&free).unwrap();
        fs::write(free.join("holiday.jpg"), b"x").unwrap();
        let error = claim(&free).unwrap_err().to_string();
        assert!(error.contains("neither empty nor a backup"), "{error}");
        fs::write(free.join(BACKUP_NOTE), b"{}").unwrap();
        claim(&free).unwrap();
        // A data directory is none.
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        for name in ["catalog.db", "hub.key", "lock"] {
            fs::write(data.join(name), b"x").unwrap();
        }
        claim(&data).unwrap_err();
        // One that was cut off before its note is.
        fs::remove_file(data.join("lock")).unwrap();
        claim(&data).unwrap();
    }
}
