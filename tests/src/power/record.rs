//! One recording: hub and edge-node at work on logged disks, with what was promised meanwhile.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    disk::{Disk, Op, ROOT},
    log::{Entry, Log, Promise, Side},
    mount::Mount,
    site::{self, Ports, Program, data_dir},
};
use crate::{fixture, playlist, wait_for};

const PUSH_LIMIT: Duration = Duration::from_secs(90);
/// Streams of the recording: from files, and from a camera.
pub(super) const STREAMS: [&str; 2] = ["files", "cam"];
/// Between two looks at a live list.
const LOOK: Duration = Duration::from_millis(40);

/// A segment of one side.
pub(super) type Key = (Side, String, u64);

/// What was logged, and what can be read from it once for all cuts.
pub struct Recording {
    pub entries: Vec<Entry>,
    pub ports: Ports,
    pub url: String,
    /// The bytes of each segment when it last got its final name.
    pub truth: HashMap<Key, Vec<u8>>,
    /// Segments whose files were removed: retention chose them.
    pub removed: HashSet<Key>,
    /// When each number's file was first made on the edge.
    pub opened: HashMap<(String, u64), usize>,
}

/// Runs the pair for about half a minute.
pub fn record(work: &Path) -> Result<Recording> {
    let log = Log::default();
    let mount = |name: &str, side| Mount::new(&work.join(name), side, Disk::default(), log.clone());
    let (hub_disk, edge_disk) = (mount("hub", Side::Hub)?, mount("edge", Side::Edge)?);
    let (hub_dir, edge_dir) = (data_dir(hub_disk.path()), data_dir(edge_disk.path()));
    let ports = Ports::free()?;
    let hub = site::hub(&hub_dir, ports, &["--max-bytes", "2MB"], log.clone())?;

    let address = format!("127.0.0.1:{}", ports.link);
    let url = site::hub_command(&hub_dir, &["enroll", "pole-7", "--address", &address])?;
    log.promise(Promise::Invited);
    let enrol = Program::start(
        &mut site::edge(&edge_dir, &["enroll", &url]),
        Side::Edge,
        log.clone(),
    )?;
    let (status, text) = enrol.wait(Duration::from_secs(30))?;
    ensure!(status.success(), "enroll: {text}");
    log.promise(Promise::Enrolled);

    let stop = Arc::new(AtomicBool::new(false));
    let watched = STREAMS.map(|stream| {
        let url = format!("http://127.0.0.1:{}/s/{stream}/live.m3u8", ports.http);
        watch(url, Side::Hub, stream, log.clone(), stop.clone())
    });
    push_file(&edge_dir, &log, "live.ts")?;
    push_camera(&edge_dir, &log, 12)?;
    site::hub_command(&hub_dir, &["device", "disable", "pole-7"])?;
    site::hub_command(&hub_dir, &["device", "enable", "pole-7"])?;
    push_file(&edge_dir, &log, "h264-2997.ts")?;
    push_camera(&edge_dir, &log, 6)?;
    site::hub_command(&hub_dir, &["stream", "list"])?;
    // A round of both janitors.
    let (run, _) = site::edge_run(&edge_dir, log.clone())?;
    thread::sleep(Duration::from_secs(6));
    run.stop()?;
    stop.store(true, Ordering::Relaxed);
    for watched in watched {
        watched
            .join()
            .map_err(|_| anyhow::anyhow!("a watcher panicked"))?;
    }
    hub.stop()?;

    let seen = [read_tree(hub_disk.path())?, read_tree(edge_disk.path())?];
    hub_disk.end()?;
    edge_disk.end()?;
    let entries = log.snapshot();
    prove_whole(&entries, seen)?;
    let mut recording = Recording {
        entries,
        ports,
        url,
        truth: HashMap::new(),
        removed: HashSet::new(),
        opened: HashMap::new(),
    };
    recording.index();
    Ok(recording)
}

fn push_file(edge_dir: &Path, log: &Log, name: &str) -> Result<()> {
    let file = fixture(name);
    let file = file.to_str().context("path")?;
    let args = ["push", "--stream", "files", "--max-bytes", "2MB", file];
    let push = Program::start(&mut site::edge(edge_dir, &args), Side::Edge, log.clone())?;
    let (status, text) = push.wait(PUSH_LIMIT)?;
    ensure!(status.success(), "push of {file}: {status}: {text}");
    log.promise(Promise::Pushed {
        stream: "files".to_owned(),
    });
    Ok(())
}

fn push_camera(edge_dir: &Path, log: &Log, seconds: u32) -> Result<()> {
    let mut camera = camera(seconds)?;
    let video = camera.stdout.take().context("stdout")?;
    let args = [
        "push",
        "--stream",
        "cam",
        "--max-bytes",
        "2MB",
        "--http",
        "127.0.0.1:0",
        "-",
    ];
    let mut command = site::edge(edge_dir, &args);
    let push = Program::start(command.stdin(video), Side::Edge, log.clone())?;
    let address = wait_for("the edge's page", Duration::from_secs(20), || {
        site::page_address(&push.text())
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let url = format!("http://{address}/s/cam/live.m3u8");
    let watched = watch(url, Side::Edge, "cam", log.clone(), stop.clone());
    let (status, text) = push.wait(PUSH_LIMIT)?;
    stop.store(true, Ordering::Relaxed);
    let _ = watched.join();
    camera.wait()?;
    ensure!(status.success(), "push from a camera: {status}: {text}");
    log.promise(Promise::Pushed {
        stream: "cam".to_owned(),
    });
    Ok(())
}

fn camera(seconds: u32) -> Result<Child> {
    Command::new("ffmpeg")
        .args("-hide_banner -loglevel error -nostdin -re -i".split(' '))
        .arg(fixture("live.ts"))
        .args(["-t", &seconds.to_string()])
        .args("-c copy -f mpegts -flush_packets 1 -".split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("ffmpeg")
}

/// Logs each new state of a live list that a viewer got.
fn watch(
    url: String,
    side: Side,
    stream: &str,
    log: Log,
    stop: Arc<AtomicBool>,
) -> thread::JoinHandle<()> {
    let stream = stream.to_owned();
    thread::spawn(move || {
        let mut last = None;
        while !stop.load(Ordering::Relaxed) {
            let listed = listed(&url, side, &stream);
            if let Some(listed) = listed.filter(|listed| last.as_ref() != Some(listed)) {
                log.promise(listed.clone());
                last = Some(listed);
            }
            thread::sleep(LOOK);
        }
    })
}

/// A live list as served now; None where there is none.
pub(super) fn listed(url: &str, side: Side, stream: &str) -> Option<Promise> {
    let list = playlist(url).ok()?;
    let first = list.media_sequence;
    let numbers = list.segments.iter();
    Some(Promise::Listed {
        side,
        stream: stream.to_owned(),
        sequences: (first, first + list.segments.len() as u64),
        discontinuity_sequence: list.discontinuity_sequence,
        numbers: numbers
            .filter_map(|segment| segment.uri.strip_suffix(".ts")?.parse().ok())
            .collect(),
    })
}

/// All files below a folder, as a program reads them.
fn read_tree(root: &Path) -> Result<HashMap<String, Vec<u8>>> {
    let mut found = HashMap::new();
    let mut to_do = vec![root.to_owned()];
    while let Some(folder) = to_do.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                to_do.push(path);
            } else {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                found.insert(format!("/{name}"), fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// The log is whole: run from an empty disk, it gives what the programs' disks held, byte for byte.
fn prove_whole(entries: &[Entry], seen: [HashMap<String, Vec<u8>>; 2]) -> Result<()> {
    for (side, seen) in [Side::Hub, Side::Edge].into_iter().zip(seen) {
        let mut disk = Disk::default();
        for entry in entries {
            if let Entry::Op(of, op) = entry
                && *of == side
            {
                disk.apply(op);
            }
        }
        let files = disk.files();
        ensure!(!seen.is_empty(), "{side:?}: nothing on the disk");
        let names: HashSet<&str> = files.keys().map(String::as_str).collect();
        let theirs: HashSet<&str> = seen.keys().map(String::as_str).collect();
        ensure!(
            names == theirs,
            "{side:?}: files {names:?}, on the disk {theirs:?}"
        );
        for (name, bytes) in &files {
            ensure!(
                seen[name] == *bytes,
                "{side:?}: {name} differs from its log"
            );
        }
    }
    Ok(())
}

/// `/data/segments/STREAM/FOLDER` to the stream.
fn stream_of(folder: &str) -> Option<String> {
    let mut parts = folder.split('/').skip(2);
    (parts.next() == Some("segments")).then(|| parts.next().map(str::to_owned))?
}

impl Recording {
    fn index(&mut self) {
        let mut disks =
            HashMap::from([(Side::Hub, Disk::default()), (Side::Edge, Disk::default())]);
        let mut folders: HashMap<(Side, u64), String> = HashMap::new();
        for side in [Side::Hub, Side::Edge] {
            folders.insert((side, ROOT), String::new());
        }
        for (at, entry) in self.entries.iter().enumerate() {
            let Entry::Op(side, op) = entry else { continue };
            let disk = disks.entry(*side).or_default();
            disk.apply(op);
            let number = |parent: &u64, name: &str, kind: &str| -> Option<(String, u64)> {
                let number = name.strip_suffix(kind)?.parse().ok()?;
                Some((stream_of(folders.get(&(*side, *parent))?)?, number))
            };
            match op {
                Op::Create {
                    parent,
                    name,
                    ino,
                    folder: true,
                    ..
                } => {
                    let above = folders.get(&(*side, *parent)).cloned().unwrap_or_default();
                    folders.insert((*side, *ino), format!("{above}/{name}"));
                }
                Op::Create { parent, name, .. } if *side == Side::Edge => {
                    if let Some(key) = number(parent, name, ".part") {
                        self.opened.entry(key).or_insert(at);
                    }
                }
                Op::Rename {
                    new_parent,
                    new_name,
                    ino,
                    ..
                } => {
                    if let Some((stream, number)) = number(new_parent, new_name, ".ts") {
                        let bytes = disk.file(*ino).cloned().unwrap_or_default();
                        self.truth.insert((*side, stream, number), bytes);
                    }
                }
                Op::Unlink { parent, name, .. } => {
                    if let Some((stream, number)) = number(parent, name, ".ts") {
                        self.removed.insert((*side, stream, number));
                    }
                }
                _ => {}
            }
        }
    }

    /// Positions in the log right after an operation of one side.
    pub fn points(&self, side: Side) -> Vec<usize> {
        let ops = self.entries.iter().enumerate();
        ops.filter(|(_, entry)| matches!(entry, Entry::Op(of, _) if *of == side))
            .map(|(at, _)| at + 1)
            .collect()
    }

    /// What was promised before a point.
    pub fn promised(&self, point: usize) -> impl Iterator<Item = &Promise> {
        self.entries
            .iter()
            .take(point)
            .filter_map(|entry| match entry {
                Entry::Promise(promise) => Some(promise),
                Entry::Op(..) => None,
            })
    }
}
