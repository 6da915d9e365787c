//! After a cut: the real programs start on what is left, and everything that was promised is asked for.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::{
    cut::{Mode, cut},
    disk::Disk,
    log::{Log, Promise, Side},
    mount::Mount,
    random::Random,
    record::{Key, Recording, STREAMS, listed},
    site::{self, Ports, Program, data_dir},
};
use crate::{fixture, get, wait_for};

const SHIP_LIMIT: Duration = Duration::from_secs(60);
const TS_PACKET_BYTES: u64 = 188;
/// `HoleReason::Corrupt` in the catalog: no retention says so.
const CORRUPT: i64 = 6;

/// Whose power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOf {
    Hub,
    Edge,
    Both,
}

/// Checks what cuts of one recording leave.
pub struct Checker<'a> {
    pub recording: &'a Recording,
    pub work: PathBuf,
    /// The longest that a program took to open its store, by its own log.
    pub longest_open_ms: u64,
}

impl<'a> Checker<'a> {
    pub fn new(recording: &'a Recording, work: &Path) -> Self {
        Self {
            recording,
            work: work.to_owned(),
            longest_open_ms: 0,
        }
    }

    /// The disk of one side after a cut.
    pub fn cut(&self, side: Side, point: usize, mode: Mode, random: &mut Random) -> Disk {
        let entries = &self.recording.entries;
        cut(&Disk::default(), entries, side, point, mode, random)
    }

    /// Cuts the power again while the program starts on what the first cut left.
    pub fn cut_again(
        &self,
        side: Side,
        disk: Disk,
        mode: Mode,
        random: &mut Random,
    ) -> Result<Disk> {
        let log = Log::default();
        let mount = Mount::new(&self.work.join("again"), side, disk.clone(), log.clone())?;
        let dir = data_dir(mount.path());
        match side {
            Side::Hub => {
                site::hub(&dir, Ports::free()?, &[], Log::default())?.kill();
            }
            Side::Edge if is_enrolled(&disk) => {
                site::edge_run(&dir, Log::default())?.0.kill();
            }
            Side::Edge => {}
        }
        mount.end()?;
        let entries = log.snapshot();
        let point = random.below(entries.len() as u64 + 1) as usize;
        Ok(cut(&disk, &entries, side, point, mode, random))
    }

    /// A hub that starts on this disk keeps what was promised before the point.
    pub fn hub(&mut self, disk: Disk, point: usize) -> Result<()> {
        let mount = Mount::new(&self.work.join("hub"), Side::Hub, disk, Log::default())?;
        let ports = Ports::free()?;
        let hub = site::hub(&data_dir(mount.path()), ports, &[], Log::default())?;
        let base = format!("http://127.0.0.1:{}", ports.http);
        let mut missing = Vec::new();
        for promise in self.recording.promised(point) {
            if let Promise::Closed {
                side: Side::Hub,
                stream,
                number,
            }
            | Promise::Stored { stream, number } = promise
                && !self.serves(&base, (Side::Hub, stream.clone(), *number))?
            {
                missing.push((stream.clone(), *number));
            }
        }
        self.lists(&base, Side::Hub, point)?;
        self.in_order(&hub)?;
        hub.kill();
        let catalog = Catalog::of(&mount.end()?)?;
        self.explained(Side::Hub, &missing, &catalog)
    }

    /// An edge that starts on this disk keeps what was promised before the point.
    pub fn edge(&mut self, disk: Disk, point: usize) -> Result<()> {
        let enrolled = self
            .recording
            .promised(point)
            .any(|p| *p == Promise::Enrolled);
        if !is_enrolled(&disk) {
            ensure!(!enrolled, "the edge said that it is enrolled, and is not");
            return Ok(());
        }
        let mount = Mount::new(&self.work.join("edge"), Side::Edge, disk, Log::default())?;
        let (run, address) = site::edge_run(&data_dir(mount.path()), Log::default())?;
        let base = format!("http://{address}");
        let mut missing = Vec::new();
        let mut open: BTreeMap<(String, u64), Vec<u64>> = BTreeMap::new();
        for promise in self.recording.promised(point) {
            match promise {
                Promise::Closed {
                    side: Side::Edge,
                    stream,
                    number,
                } => {
                    open.remove(&(stream.clone(), *number));
                    if !self.serves(&base, (Side::Edge, stream.clone(), *number))? {
                        missing.push((stream.clone(), *number));
                    }
                }
                Promise::Part {
                    stream,
                    number,
                    bytes,
                } => {
                    let parts = open.entry((stream.clone(), *number)).or_default();
                    parts.push(*bytes);
                }
                _ => {}
            }
        }
        for ((stream, number), parts) in open {
            self.parts_kept(&base, stream, number, &parts)?;
        }
        self.lists(&base, Side::Edge, point)?;
        self.in_order(&run)?;
        run.kill();
        let disk = mount.end()?;
        for (path, bytes) in disk.files() {
            if path.ends_with("/live.m3u8") {
                let parsed = m3u8_rs::parse_media_playlist(bytes);
                ensure!(
                    matches!(parsed, Ok(([], _))),
                    "{path} is torn: {:?}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
        self.explained(Side::Edge, &missing, &Catalog::of(&disk)?)
    }

    /// Both go on from their disks until the hub has everything; then the edge records more.
    pub fn pair(&mut self, hub_disk: Disk, edge_disk: Disk, point: usize) -> Result<()> {
        let invited = self
            .recording
            .promised(point)
            .any(|p| *p == Promise::Invited);
        let hub_mount = Mount::new(&self.work.join("hub"), Side::Hub, hub_disk, Log::default())?;
        let enrolled = is_enrolled(&edge_disk);
        let edge_mount = Mount::new(
            &self.work.join("edge"),
            Side::Edge,
            edge_disk,
            Log::default(),
        )?;
        let edge_dir = data_dir(edge_mount.path());
        let ports = self.recording.ports;
        let hub = site::hub(&data_dir(hub_mount.path()), ports, &[], Log::default())?;
        if !enrolled && !invited {
            return Ok(());
        }
        let told = self
            .recording
            .promised(point)
            .any(|p| *p == Promise::Enrolled);
        if !enrolled || (invited && !told) {
            // The same URL again, as the operator would who was not told that it is done.
            let args = ["enroll", &self.recording.url];
            let enrol = Program::start(
                &mut site::edge(&edge_dir, &args),
                Side::Edge,
                Log::default(),
            )?;
            let (status, text) = enrol.wait(Duration::from_secs(30))?;
            // With an identity the token may be used up: then the hub knows the device, as shipping shows.
            ensure!(
                status.success() || enrolled,
                "the enrolment can't be repeated: {text}\n{}",
                hub.text()
            );
        }
        let (run, address) = site::edge_run(&edge_dir, Log::default())?;
        let url = format!("http://{address}/api/v1/streams");
        wait_for("the hub to have all", SHIP_LIMIT, || all_shipped(&url))
            .with_context(|| format!("edge: {}\nhub: {}", run.text(), hub.text()))?;
        self.in_order(&run)?;
        run.stop()?;

        let before = segments(&edge_mount.disk());
        let clip = fixture("h264-2997.ts");
        let clip = clip.to_str().context("path")?;
        let args = ["push", "--stream", "cam", clip];
        let push = Program::start(
            &mut site::edge(&edge_dir, &args),
            Side::Edge,
            Log::default(),
        )?;
        let (status, text) = push.wait(SHIP_LIMIT)?;
        ensure!(status.success(), "push: {text}\nhub: {}", hub.text());
        self.in_order(&hub)?;
        hub.kill();

        let (hub_disk, edge_disk) = (hub_mount.end()?, edge_mount.end()?);
        let (at_hub, at_edge) = (segments(&hub_disk), segments(&edge_disk));
        let fresh = at_edge.keys().filter(|key| !before.contains_key(*key));
        let used = self.recording.opened.iter();
        let highest = used
            .filter(|((stream, _), at)| stream == "cam" && **at < point)
            .map(|((_, number), _)| *number)
            .max();
        for (_, number) in fresh {
            ensure!(
                highest.is_none_or(|highest| *number > highest),
                "number {number} was used before the cut (up to {highest:?}; invariant 2)"
            );
        }
        let expired = Catalog::of(&hub_disk)?;
        for (key, bytes) in &at_edge {
            match at_hub.get(key) {
                Some(theirs) => ensure!(theirs == bytes, "{key:?} differs between edge and hub"),
                None => ensure!(
                    expired
                        .tombstone(&key.0, key.1)?
                        .is_some_and(|why| why != CORRUPT),
                    "{key:?} is not on the hub"
                ),
            }
        }
        for promise in self.recording.promised(point) {
            if let Promise::Closed {
                side: Side::Edge,
                stream,
                number,
            } = promise
                && let Some(bytes) = at_hub.get(&(stream.clone(), *number))
            {
                let truth = &self.recording.truth[&(Side::Edge, stream.clone(), *number)];
                ensure!(
                    truth == bytes,
                    "{stream} {number} at the hub is not what was recorded"
                );
            }
        }
        Ok(())
    }

    /// Whether a segment is served with the bytes that it was closed with.
    fn serves(&self, base: &str, key: Key) -> Result<bool> {
        let (_, stream, number) = &key;
        let answer = get(&format!("{base}/s/{stream}/{number}.ts"))?;
        match answer.status {
            200 => {
                let truth = self.recording.truth.get(&key);
                let truth = truth.with_context(|| format!("{key:?} has no file in the log"))?;
                ensure!(answer.body == *truth, "{key:?} is here with other bytes");
                Ok(true)
            }
            404 => Ok(false),
            status => bail!("{key:?}: {status}: {}", answer.text()),
        }
    }

    /// What is not served was taken by retention, and the catalog says so.
    fn explained(&self, side: Side, missing: &[(String, u64)], catalog: &Catalog) -> Result<()> {
        for (stream, number) in missing {
            let why = catalog.tombstone(stream, *number)?;
            let chosen = self
                .recording
                .removed
                .contains(&(side, stream.clone(), *number));
            ensure!(
                chosen && why.is_some_and(|why| why != CORRUPT),
                "{side:?}: {stream} {number} was promised and is gone (tombstone {why:?})"
            );
        }
        Ok(())
    }

    /// The open segment lost no more than what follows its last finished part.
    fn parts_kept(&self, base: &str, stream: String, number: u64, parts: &[u64]) -> Result<()> {
        let key = (Side::Edge, stream, number);
        let truth = self
            .recording
            .truth
            .get(&key)
            .context("an open segment was never closed")?;
        let finished = parts.last().copied().unwrap_or(0);
        // A unit that fills its last packet to the brim can't be told from one that goes on.
        let least = match is_stuffed(truth, finished) {
            true => finished,
            false => parts.iter().rev().nth(1).copied().unwrap_or(0),
        };
        let answer = get(&format!("{base}/s/{}/{number}.ts", key.1))?;
        if least == 0 && answer.status == 404 {
            return Ok(());
        }
        ensure!(
            answer.status == 200,
            "{key:?}: {finished} bytes were in finished parts, and it is gone"
        );
        let kept = answer.body.len();
        ensure!(
            kept as u64 >= least,
            "{key:?}: {finished} bytes were in finished parts, {kept} are left"
        );
        ensure!(
            truth.starts_with(&answer.body),
            "{key:?}: what is left is not what was written"
        );
        Ok(())
    }

    /// No live list went back behind what was served, and all it listed is served.
    fn lists(&self, base: &str, side: Side, point: usize) -> Result<()> {
        let mut last: HashMap<&str, &Promise> = HashMap::new();
        for promise in self.recording.promised(point) {
            if let Promise::Listed {
                side: of, stream, ..
            } = promise
                && *of == side
            {
                last.insert(stream, promise);
            }
        }
        for (stream, served) in last {
            let url = format!("{base}/s/{stream}/live.m3u8");
            let now = listed(&url, side, stream)
                .with_context(|| format!("{side:?}: {stream} had a live list and has none"))?;
            let (
                Promise::Listed {
                    sequences: was,
                    discontinuity_sequence: was_discontinuity,
                    numbers: were,
                    ..
                },
                Promise::Listed {
                    sequences: is,
                    discontinuity_sequence: is_discontinuity,
                    numbers: are,
                    ..
                },
            ) = (served, &now)
            else {
                bail!("not a list");
            };
            ensure!(
                is.0 >= was.0 && is.1 >= was.1 && is_discontinuity >= was_discontinuity,
                "{side:?}: {stream}'s live list went back from {served:?} to {now:?} (invariant 4)"
            );
            for number in were.iter().chain(are) {
                ensure!(
                    get(&format!("{base}/s/{stream}/{number}.ts"))?.status == 200,
                    "{side:?}: {stream} {number} was listed and is gone (invariant 1)"
                );
            }
        }
        Ok(())
    }

    /// No error in the log, and a summary of what was found.
    fn in_order(&mut self, program: &Program) -> Result<()> {
        let lines = program.lines();
        let errors: Vec<&Value> = lines.iter().filter(|l| l["level"] == "ERROR").collect();
        ensure!(errors.is_empty(), "errors in the log: {errors:?}");
        let summary = lines.iter().find(|l| l["message"] == "opened the store");
        let took = summary.and_then(|l| l["took_ms"].as_u64());
        let took = took.with_context(|| format!("no summary in the log: {}", program.text()))?;
        self.longest_open_ms = self.longest_open_ms.max(took);
        Ok(())
    }
}

fn is_enrolled(disk: &Disk) -> bool {
    disk.files().contains_key("/data/identity/identity.toml")
}

/// Whether the TS packet that ends at `end` is filled up with stuffing: the last one of its unit.
fn is_stuffed(bytes: &[u8], end: u64) -> bool {
    let Some(start) = end.checked_sub(TS_PACKET_BYTES) else {
        return false;
    };
    match bytes.get(start as usize..end as usize) {
        Some([_, _, _, control, length, rest @ ..]) if control & 0x20 != 0 => {
            let length = usize::from(*length);
            length == 0 || rest.get(length - 1) == Some(&0xff)
        }
        _ => false,
    }
}

fn all_shipped(url: &str) -> Option<()> {
    let answer: Value = serde_json::from_slice(&get(url).ok()?.body).ok()?;
    let streams = answer["streams"].as_array()?;
    let all = streams.iter().all(|stream| stream["unshipped"] == 0);
    all.then_some(())
}

/// Closed segments on a disk, by stream and number.
fn segments(disk: &Disk) -> BTreeMap<(String, u64), Vec<u8>> {
    let mut found = BTreeMap::new();
    for (path, bytes) in disk.files() {
        let parts: Vec<&str> = path.split('/').collect();
        if let [_, "data", "segments", stream, _, name] = parts[..]
            && let Some(number) = name.strip_suffix(".ts").and_then(|n| n.parse().ok())
        {
            found.insert((stream.to_owned(), number), bytes.to_vec());
        }
    }
    found
}

/// The catalog on a disk, looked at with nothing of ours.
struct Catalog {
    _dir: tempfile::TempDir,
    connection: Connection,
}

impl Catalog {
    /// Opens a copy, checks it, and that every row that says *here* has its file.
    fn of(disk: &Disk) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let files = disk.files();
        for name in ["catalog.db", "catalog.db-wal"] {
            if let Some(bytes) = files.get(&format!("/data/{name}")) {
                fs::write(dir.path().join(name), bytes)?;
            }
        }
        let connection = Connection::open(dir.path().join("catalog.db"))?;
        let verdict: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(verdict == "ok", "the catalog is damaged: {verdict}");
        let catalog = Self {
            _dir: dir,
            connection,
        };
        catalog.agrees_with(disk)?;
        Ok(catalog)
    }

    fn agrees_with(&self, disk: &Disk) -> Result<()> {
        let here = segments(disk);
        let mut rows = self.connection.prepare(
            "SELECT stream.name, number, hash FROM segment JOIN stream ON stream.id = stream WHERE state = 1",
        )?;
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        for row in rows {
            let (stream, number, hash): (String, i64, Vec<u8>) = row?;
            ensure!(
                STREAMS.contains(&stream.as_str()),
                "an unknown stream {stream}"
            );
            let file = here.get(&(stream.clone(), number as u64));
            let found = file.map(|bytes| blake3::hash(bytes).as_bytes().to_vec());
            ensure!(
                found.as_ref() == Some(&hash),
                "{stream} {number} is in the catalog, its file is {}",
                if found.is_some() { "another" } else { "gone" }
            );
        }
        Ok(())
    }

    /// Why a number will never be here, as the catalog's code.
    fn tombstone(&self, stream: &str, number: u64) -> Result<Option<i64>> {
        let why = self.connection.query_row(
            "SELECT reason FROM tombstone JOIN stream ON stream.id = stream
             WHERE stream.name = ?1 AND ?2 BETWEEN first AND last",
            (stream, number as i64),
            |row| row.get(0),
        );
        Ok(why.optional()?)
    }
}
