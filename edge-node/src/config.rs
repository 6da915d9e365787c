//! The edge's settings: what `edge.toml` may say, what flags and variables say over it, and the defaults.
//!
//! [`File`] is the file as written; [`Settings`] is what the program runs on, checked once. The order is
//! flags, then `PENSTOCK_*` variables, then the file, then the default. `edge.example.toml` documents
//! every key; a test holds the two together.

use std::{
    collections::BTreeSet, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration,
};

use bytesize::ByteSize;
use link::uplink::{DEFAULT_LIVE_DEADLINE, DEFAULT_MAX_REDUNDANCY, MAX_WEIGHT, Orders, Policy};
use model::StreamName;
use program::scrub::{ByteRate, ScrubSettings};
use serde::Deserialize;
use store::DEFAULT_MEMORY_BYTES;

use crate::{
    allowance::{Allowance, WhenSpent},
    ingest::{DEFAULT_MAX_RATE, SourceName},
};

const DEFAULT_DATA_DIR: &str = "/var/lib/penstock-edge";
const DEFAULT_HTTP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8081);
/// A disk that fills up takes the catalog with it: this much stays free.
const DEFAULT_RESERVE: ByteSize = ByteSize::gib(1);
/// Below it not even one segment of a good camera fits.
const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Two seconds: short enough to be live, long enough to be worth a file.
pub(crate) const DEFAULT_TARGET: Duration = Duration::from_secs(2);
/// Below it, segments cost more than they carry.
const MIN_TARGET: Duration = Duration::from_millis(500);
/// The cap on a live list's TARGETDURATION.
const MAX_TARGET: Duration = Duration::from_secs(6);
/// Streams of one edge; each costs two threads, a file, a playlist and the memory that `ingest` states.
pub(crate) const MAX_STREAMS: usize = 256;
/// A folder is looked at so often, whatever the kernel tells of it.
const DEFAULT_SCAN: Duration = Duration::from_secs(5);
/// A file whose writer is not known to be done is whole once it has stayed as it is for so long.
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
/// Bounds of both.
const SCAN_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3_600);
/// Below it, no video comes through.
const MIN_RATE: ByteSize = ByteSize::kb(100);

/// Below it a hiccup of the line would cost live video, above it nothing is live.
const DEADLINE_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Below it, no video comes through.
const MIN_RATE_BPS: u64 = 100_000;
/// What a file can say of bytes counted.
const MAX_MONTHLY_BYTES: u64 = 1 << 60;

/// `edge.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    data_dir: Option<PathBuf>,
    http: HttpFile,
    disk: DiskFile,
    uplink: UplinkFile,
    stream: Vec<StreamFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpFile {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DiskFile {
    max_bytes: Option<ByteSize>,
    reserve_bytes: Option<ByteSize>,
    sync_parts: Option<bool>,
    scrub_rate: Option<ByteRate>,
    #[serde(with = "humantime_serde")]
    scrub_every: Option<Duration>,
    memory_bytes: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UplinkFile {
    #[serde(with = "humantime_serde")]
    live_deadline: Option<Duration>,
    max_rate_bps: Option<u64>,
    max_redundancy: Option<f64>,
    monthly_bytes: Option<ByteSize>,
    month_begins_on: Option<u32>,
    when_spent: Option<WhenSpent>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamFile {
    name: StreamName,
    source: String,
    weight: Option<u32>,
    #[serde(default, with = "humantime_serde")]
    target_duration: Option<Duration>,
    max_bytes_per_second: Option<ByteSize>,
    #[serde(default, with = "humantime_serde")]
    scan_interval: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    settle: Option<Duration>,
    done: Option<DoneFile>,
    move_to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DoneFile {
    Keep,
    Delete,
    Move,
}

/// What becomes of a watched folder's file once the hub has all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    Keep,
    Delete,
    Move(PathBuf),
}

/// A stream that `run` records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamSettings {
    pub(crate) name: StreamName,
    pub(crate) source: SourceName,
    pub(crate) target_duration: Duration,
    /// Its share of the uplink beside other streams.
    pub(crate) weight: u32,
    /// Datagrams only: bytes a second that are taken at most.
    pub(crate) max_rate: u64,
    /// Folders only.
    pub(crate) scan_interval: Duration,
    pub(crate) settle: Duration,
    pub(crate) done: Done,
}

/// What may go over the line to the hub.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UplinkSettings {
    pub(crate) live_deadline: Duration,
    pub(crate) max_rate_bps: Option<u64>,
    pub(crate) max_redundancy: f64,
    pub(crate) allowance: Option<Allowance>,
}

/// What flags and variables say over the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) max_bytes: Option<ByteSize>,
    pub(crate) reserve_bytes: Option<ByteSize>,
    pub(crate) scrub_rate: Option<ByteRate>,
    pub(crate) scrub_every: Option<Duration>,
}

/// What the program runs on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    /// Where `run` serves; `push` serves only where its own flag says.
    pub(crate) http: SocketAddr,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) reserve_bytes: u64,
    pub(crate) sync_parts: bool,
    /// At most [`MAX_STREAMS`].
    pub(crate) streams: Vec<StreamSettings>,
    pub(crate) scrub: ScrubSettings,
    /// Memory in which live segments wait while the disk fails.
    pub(crate) memory_bytes: u64,
    pub(crate) uplink: UplinkSettings,
}

/// A setting whose value can't be. The operator is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {rule}")]
pub(crate) struct SettingError {
    pub(crate) key: &'static str,
    pub(crate) rule: String,
}

impl Settings {
    /// Layers flags and variables over the file over the defaults, and checks what comes out.
    pub(crate) fn resolve(over: Overrides, file: File) -> Result<Self, SettingError> {
        let streams = streams(file.stream)?;
        let uplink = file.uplink.checked()?;
        let settings = Self {
            streams,
            uplink,
            data_dir: over
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            http: over.http.or(file.http.listen).unwrap_or(DEFAULT_HTTP),
            max_bytes: over
                .max_bytes
                .or(file.disk.max_bytes)
                .map(|size| size.as_u64()),
            reserve_bytes: over
                .reserve_bytes
                .or(file.disk.reserve_bytes)
                .unwrap_or(DEFAULT_RESERVE)
                .as_u64(),
            sync_parts: file.disk.sync_parts.unwrap_or(true),
            scrub: ScrubSettings::resolve(
                over.scrub_rate.or(file.disk.scrub_rate),
                over.scrub_every.or(file.disk.scrub_every),
            ),
            memory_bytes: file
                .disk
                .memory_bytes
                .map_or(DEFAULT_MEMORY_BYTES, |size| size.as_u64()),
        };
        if settings.memory_bytes < MIN_MEMORY_BYTES {
            let rule = "give 1MiB or more: a segment must fit".to_owned();
            return Err(SettingError {
                key: "disk.memory_bytes",
                rule,
            });
        }
        if settings.max_bytes == Some(0) {
            let rule = "give a size above 0, or leave it out".to_owned();
            return Err(SettingError {
                key: "disk.max_bytes",
                rule,
            });
        }
        Ok(settings)
    }
}

/// Checks every stream.
fn streams(files: Vec<StreamFile>) -> Result<Vec<StreamSettings>, SettingError> {
    if files.len() > MAX_STREAMS {
        let given = files.len();
        let rule = format!("{given} streams; one edge takes at most {MAX_STREAMS}");
        return Err(SettingError {
            key: "stream",
            rule,
        });
    }
    let mut streams: Vec<StreamSettings> = Vec::new();
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        let stream = file.checked()?;
        if !names.insert(stream.name.clone()) {
            let rule = format!("{} is there twice", stream.name);
            return Err(SettingError {
                key: "stream.name",
                rule,
            });
        }
        if !places.insert(stream.source.to_string()) {
            let (name, source) = (&stream.name, &stream.source);
            let rule = format!("stream {name}: {source} is another stream's already");
            return Err(SettingError {
                key: "stream.source",
                rule,
            });
        }
        streams.push(stream);
    }
    Ok(streams)
}

impl UplinkFile {
    fn checked(self) -> Result<UplinkSettings, SettingError> {
        let wrong = |key, rule: String| Err(SettingError { key, rule });
        let live_deadline = self.live_deadline.unwrap_or(DEFAULT_LIVE_DEADLINE);
        if !DEADLINE_RANGE.contains(&live_deadline) {
            return wrong("uplink.live_deadline", "give 1s to 1m".to_owned());
        }
        if self.max_rate_bps.is_some_and(|rate| rate < MIN_RATE_BPS) {
            let rule = format!("give {MIN_RATE_BPS} or more: no video comes through less");
            return wrong("uplink.max_rate_bps", rule);
        }
        let max_redundancy = self.max_redundancy.unwrap_or(DEFAULT_MAX_REDUNDANCY);
        if !(0.0..=1.0).contains(&max_redundancy) {
            let rule = "give a share of the video's bytes: 0 to 1".to_owned();
            return wrong("uplink.max_redundancy", rule);
        }
        let begins_on = self.month_begins_on.unwrap_or(1);
        if !(1..=28).contains(&begins_on) {
            let rule = "give a day that every month has: 1 to 28".to_owned();
            return wrong("uplink.month_begins_on", rule);
        }
        let Some(bytes) = self.monthly_bytes.map(|size| size.as_u64()) else {
            let of_months = [
                ("uplink.month_begins_on", self.month_begins_on.is_some()),
                ("uplink.when_spent", self.when_spent.is_some()),
            ];
            return match of_months.iter().find(|(_, given)| *given) {
                Some((key, _)) => wrong(key, "needs monthly_bytes".to_owned()),
                None => Ok(UplinkSettings {
                    live_deadline,
                    max_rate_bps: self.max_rate_bps,
                    max_redundancy,
                    allowance: None,
                }),
            };
        };
        if !(1..=MAX_MONTHLY_BYTES).contains(&bytes) {
            let rule = "give a size above 0, at most 1EiB, or leave it out".to_owned();
            return wrong("uplink.monthly_bytes", rule);
        }
        Ok(UplinkSettings {
            live_deadline,
            max_rate_bps: self.max_rate_bps,
            max_redundancy,
            allowance: Some(Allowance {
                bytes,
                begins_on,
                when_spent: self.when_spent.unwrap_or(WhenSpent::LiveOnly),
            }),
        })
    }
}

impl UplinkSettings {
    /// What the uplink goes by while nothing is held back.
    pub(crate) fn orders(&self, streams: &[StreamSettings]) -> Orders {
        let weights = streams.iter().map(|s| (s.name.clone(), s.weight));
        Orders {
            policy: Policy {
                live_deadline: self.live_deadline,
                weights: weights.collect(),
                ..Policy::default()
            },
            max_rate_bps: self.max_rate_bps,
            max_redundancy: self.max_redundancy,
            held_back: None,
        }
    }
}

impl StreamFile {
    fn checked(self) -> Result<StreamSettings, SettingError> {
        let name = self.name.clone();
        let wrong = |key, rule: String| {
            Err(SettingError {
                key,
                rule: format!("stream {name}: {rule}"),
            })
        };
        let target_duration = self.target_duration.unwrap_or(DEFAULT_TARGET);
        if !(MIN_TARGET..=MAX_TARGET).contains(&target_duration) {
            let given = humantime::format_duration(target_duration);
            return wrong(
                "stream.target_duration",
                format!("give 500ms to 6s, not {given}"),
            );
        }
        let source = match SourceName::parse(self.source.as_ref()) {
            Err(unread) => return wrong("stream.source", unread.hint(&name)),
            Ok(SourceName::Stdin) => {
                return wrong(
                    "stream.source",
                    format!(
                        "`run` does not read standard input: type `edge-node push --stream {name} -`"
                    ),
                );
            }
            Ok(SourceName::File(_)) => {
                return wrong(
                    "stream.source",
                    format!(
                        "`run` does not read files: `edge-node push --stream {name} FILE` ships one and ends; watch:/dir takes those of a folder"
                    ),
                );
            }
            Ok(source) => source,
        };
        let weight = self.weight.unwrap_or(1);
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return wrong("stream.weight", format!("give 1 to {MAX_WEIGHT}"));
        }
        let folder = match &source {
            SourceName::Folder(path) => Some(path),
            _ => None,
        };
        let of_folders = [
            ("stream.scan_interval", self.scan_interval.is_some()),
            ("stream.settle", self.settle.is_some()),
            ("stream.done", self.done.is_some()),
            ("stream.move_to", self.move_to.is_some()),
        ];
        if let Some((key, _)) = of_folders
            .iter()
            .find(|(_, given)| *given && folder.is_none())
        {
            return wrong(key, "is for watch: sources only".to_owned());
        }
        if self.max_bytes_per_second.is_some() && !matches!(source, SourceName::Udp(_)) {
            return wrong(
                "stream.max_bytes_per_second",
                "is for udp:// sources only".to_owned(),
            );
        }
        if self
            .max_bytes_per_second
            .is_some_and(|rate| rate < MIN_RATE)
        {
            return wrong(
                "stream.max_bytes_per_second",
                format!("give {MIN_RATE} or more"),
            );
        }
        for (key, given) in [
            ("stream.scan_interval", self.scan_interval),
            ("stream.settle", self.settle),
        ] {
            if given.is_some_and(|given| !SCAN_RANGE.contains(&given)) {
                return wrong(key, "give 100ms to 1h".to_owned());
            }
        }
        let done = match (self.done, self.move_to) {
            (Some(DoneFile::Move), Some(to)) if folder == Some(&to) => {
                return wrong("stream.move_to", "is the watched folder itself".to_owned());
            }
            (Some(DoneFile::Move), Some(to)) => Done::Move(to),
            (Some(DoneFile::Move), None) => {
                return wrong(
                    "stream.done",
                    "\"move\" needs move_to = \"/a/folder\"".to_owned(),
                );
            }
            (_, Some(_)) => {
                return wrong("stream.move_to", "needs done = \"move\"".to_owned());
            }
            (Some(DoneFile::Delete), None) => Done::Delete,
            (Some(DoneFile::Keep) | None, None) => Done::Keep,
        };
        Ok(StreamSettings {
            source,
            weight,
            target_duration,
            max_rate: self
                .max_bytes_per_second
                .map_or(DEFAULT_MAX_RATE, |rate| rate.as_u64()),
            scan_interval: self.scan_interval.unwrap_or(DEFAULT_SCAN),
            settle: self.settle.unwrap_or(DEFAULT_SETTLE),
            done,
            name: self.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, over: Overrides) -> Result<Settings, SettingError> {
        Settings::resolve(over, toml::from_str(text).unwrap())
    }

    #[test]
    fn defaults_are_the_public_face() {
        let settings = resolve("", Overrides::default()).unwrap();
        assert_eq!(settings.http.to_string(), "127.0.0.1:8081");
        assert_eq!(settings.data_dir.to_str(), Some(DEFAULT_DATA_DIR));
        assert_eq!(
            (settings.max_bytes, settings.reserve_bytes),
            (None, 1 << 30)
        );
        assert!(settings.sync_parts);
    }

    #[test]
    fn the_line_may_have_a_deadline_a_cap_and_an_allowance() {
        let settings = resolve("", Overrides::default()).unwrap();
        assert_eq!(settings.uplink.orders(&settings.streams), Orders::default());
        assert_eq!(settings.uplink.allowance, None);
        let file = "uplink.live_deadline = '8s'\nuplink.max_rate_bps = 2000000\nuplink.max_redundancy = 0.2\nuplink.monthly_bytes = '50GB'\nuplink.month_begins_on = 7\nuplink.when_spent = 'events-only'\n[[stream]]\nname = 'gate'\nsource = 'udp://0.0.0.0:5000'\nweight = 3";
        let settings = resolve(file, Overrides::default()).unwrap();
        let orders = settings.uplink.orders(&settings.streams);
        assert_eq!(orders.policy.live_deadline, Duration::from_secs(8));
        assert_eq!(orders.max_rate_bps, Some(2_000_000));
        assert_eq!(orders.max_redundancy, 0.2);
        let gate = settings.streams[0].name.clone();
        assert_eq!(orders.policy.weights, [(gate, 3)].into());
        let allowance = Allowance {
            bytes: 50_000_000_000,
            begins_on: 7,
            when_spent: WhenSpent::EventsOnly,
        };
        assert_eq!(settings.uplink.allowance, Some(allowance));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "data_dir = '/a'\nhttp.listen = '1.2.3.4:5'\ndisk.max_bytes = '200GB'\ndisk.reserve_bytes = '5GiB'\ndisk.sync_parts = false";
        let settings = resolve(file, Overrides::default()).unwrap();
        assert_eq!(settings.data_dir.to_str(), Some("/a"));
        assert_eq!(settings.http.to_string(), "1.2.3.4:5");
        assert_eq!(settings.max_bytes, Some(200_000_000_000));
        assert_eq!(settings.reserve_bytes, 5 << 30);
        assert!(!settings.sync_parts);
        let over = Overrides {
            data_dir: Some("/b".into()),
            max_bytes: Some(ByteSize::gb(1)),
            ..Overrides::default()
        };
        let settings = resolve(file, over).unwrap();
        assert_eq!(settings.data_dir.to_str(), Some("/b"));
        assert_eq!(settings.max_bytes, Some(1_000_000_000));
        assert_eq!(settings.http.to_string(), "1.2.3.4:5");
    }

    #[test]
    fn what_cannot_be_names_its_key_and_the_way_out() {
        let stream = |rest: &str| format!("[[stream]]\nname = 'gate'\n{rest}");
        for (file, key, says) in [
            ("disk.max_bytes = 0".to_owned(), "disk.max_bytes", "above 0"),
            (
                "uplink.live_deadline = '0s'".to_owned(),
                "uplink.live_deadline",
                "1s to 1m",
            ),
            (
                "uplink.max_rate_bps = 1000".to_owned(),
                "uplink.max_rate_bps",
                "or more",
            ),
            (
                "uplink.max_redundancy = 1.5".to_owned(),
                "uplink.max_redundancy",
                "0 to 1",
            ),
            (
                "uplink.max_redundancy = nan".to_owned(),
                "uplink.max_redundancy",
                "0 to 1",
            ),
            (
                "uplink.monthly_bytes = 0".to_owned(),
                "uplink.monthly_bytes",
                "above 0",
            ),
            (
                "uplink.month_begins_on = 31".to_owned(),
                "uplink.month_begins_on",
                "1 to 28",
            ),
            (
                "uplink.when_spent = 'nothing'".to_owned(),
                "uplink.when_spent",
                "needs monthly_bytes",
            ),
            (
                stream("source = 'udp://:5000'\nweight = 0"),
                "stream.weight",
                "1 to 1000",
            ),
            (
                "disk.memory_bytes = '1kB'".to_owned(),
                "disk.memory_bytes",
                "1MiB or more",
            ),
            (
                stream("source = 'rtsp://u:secret@10.0.0.9/main'"),
                "stream.source",
                "does not read rtsp://",
            ),
            (
                stream("source = 'udp://camera:5000'"),
                "stream.source",
                "give an IP address",
            ),
            (
                stream("source = 'udp://:5000'\ndone = 'keep'"),
                "stream.done",
                "for watch: sources",
            ),
            (
                stream("source = 'udp://:5000'\nmax_bytes_per_second = '1kB'"),
                "stream.max_bytes_per_second",
                "or more",
            ),
            (
                stream("source = 'watch:/in'\nmax_bytes_per_second = '1MB'"),
                "stream.max_bytes_per_second",
                "for udp:// sources",
            ),
            (
                stream("source = 'watch:/in'\nscan_interval = '1ms'"),
                "stream.scan_interval",
                "100ms to 1h",
            ),
            (
                stream("source = 'watch:/in'\ndone = 'move'"),
                "stream.done",
                "needs move_to",
            ),
            (
                stream("source = 'watch:/in'\nmove_to = '/out'"),
                "stream.move_to",
                "needs done",
            ),
            (
                stream("source = 'watch:/in'\ndone = 'move'\nmove_to = '/in'"),
                "stream.move_to",
                "the watched folder itself",
            ),
            (
                format!(
                    "{}\n[[stream]]\nname = 'yard'\nsource = 'udp://0.0.0.0:5000'",
                    stream("source = 'udp://:5000'")
                ),
                "stream.source",
                "stream yard: udp://0.0.0.0:5000 is another stream's already",
            ),
            (
                stream("source = '/srv/a.ts'"),
                "stream.source",
                "push --stream gate",
            ),
            (
                stream("source = '-'"),
                "stream.source",
                "push --stream gate -",
            ),
            (
                stream("source = '-'\ntarget_duration = '7s'"),
                "stream.target_duration",
                "500ms to 6s, not 7s",
            ),
            (
                format!(
                    "{}\n{}",
                    stream("source = 'udp://:1'"),
                    stream("source = 'udp://:2'")
                ),
                "stream.name",
                "gate is there twice",
            ),
        ] {
            let error = resolve(&file, Overrides::default()).unwrap_err();
            assert_eq!(error.key, key, "{file}");
            assert!(error.rule.contains(says), "{file}: {error}");
            assert!(!error.rule.contains("secret"), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for file in [
            "nosuch = 1",
            "[http]\nlisten_on = '0.0.0.0:1'",
            "[[stream]]\nname = 'a'\nsource = '-'\nfps = 25",
        ] {
            let error = toml::from_str::<File>(file).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{file}: {error}");
        }
    }

    /// The example is read as it is (all defaults) and with every commented-out key put in.
    #[test]
    fn the_example_documents_every_key() {
        let example = include_str!("../edge.example.toml");
        let settings = resolve(example, Overrides::default()).unwrap();
        assert_eq!(settings, resolve("", Overrides::default()).unwrap());
        let all: String = example
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.starts_with("[[") || is_setting(key) => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let file: File = toml::from_str(&all).unwrap();
        assert!(file.data_dir.is_some() && file.http.listen.is_some());
        assert!(file.disk.max_bytes.is_some() && file.disk.reserve_bytes.is_some());
        assert!(file.disk.memory_bytes.is_some());
        assert!(file.disk.scrub_rate.is_some() && file.disk.scrub_every.is_some());
        assert!(file.disk.sync_parts.is_some());
        let [udp, folder] = &file.stream[..] else {
            panic!("{:?}", file.stream);
        };
        assert_eq!(udp.target_duration, Some(DEFAULT_TARGET));
        let rate = udp.max_bytes_per_second.map(|rate| rate.as_u64());
        assert_eq!(rate, Some(DEFAULT_MAX_RATE));
        assert_eq!(folder.scan_interval, Some(DEFAULT_SCAN));
        assert_eq!(folder.settle, Some(DEFAULT_SETTLE));
        assert!(folder.done.is_some() && folder.move_to.is_some());
        assert_eq!(streams(file.stream).unwrap().len(), 2);
    }

    #[test]
    fn streams_are_what_run_records() {
        let file = "[[stream]]\nname = 'gate'\nsource = 'udp://@239.1.1.1:5000?interface=eth0'\nmax_bytes_per_second = '2MB'\n[[stream]]\nname = 'yard'\nsource = 'watch:/srv/in'\ndone = 'delete'\nsettle = '1s'";
        let streams = resolve(file, Overrides::default()).unwrap().streams;
        assert_eq!(
            streams[0].source.to_string(),
            "udp://239.1.1.1:5000?interface=eth0"
        );
        assert_eq!(streams[0].max_rate, 2_000_000);
        assert_eq!(
            (
                &streams[1].done,
                streams[1].settle,
                streams[1].scan_interval
            ),
            (&Done::Delete, Duration::from_secs(1), DEFAULT_SCAN)
        );
        let many: String = (0..=MAX_STREAMS)
            .map(|i| {
                format!(
                    "[[stream]]\nname = 's{i}'\nsource = 'udp://:{}'\n",
                    5_000 + i
                )
            })
            .collect();
        let error = resolve(&many, Overrides::default()).unwrap_err();
        assert!(error.rule.contains("at most 256"), "{error}");
    }

    fn is_setting(line: &str) -> bool {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    }
}
