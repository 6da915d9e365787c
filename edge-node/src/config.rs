//! The edge's settings: what `edge.toml` may say, what flags and variables say over it, and the defaults.
//!
//! [`File`] is the file as written; [`Settings`] is what the program runs on, checked once. The order is
//! flags, then `PENSTOCK_*` variables, then the file, then the default. `edge.example.toml` documents
//! every key; a test holds the two together.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use model::StreamName;
use serde::Deserialize;
use store::DEFAULT_MEMORY_BYTES;

use crate::ingest::SourceName;

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
/// Streams of one edge; each costs a thread, a file and a playlist.
pub(crate) const MAX_STREAMS: usize = 256;

/// `edge.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    data_dir: Option<PathBuf>,
    http: HttpFile,
    disk: DiskFile,
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
    memory_bytes: Option<ByteSize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamFile {
    name: StreamName,
    source: String,
    #[serde(default, with = "humantime_serde")]
    target_duration: Option<Duration>,
}

/// What flags and variables say over the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) max_bytes: Option<ByteSize>,
    pub(crate) reserve_bytes: Option<ByteSize>,
}

/// What the program runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    /// Where `run` serves; `push` serves only where its own flag says.
    pub(crate) http: SocketAddr,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) reserve_bytes: u64,
    /// Memory in which live segments wait while the disk fails.
    pub(crate) memory_bytes: u64,
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
        check_streams(&file.stream)?;
        let settings = Self {
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

/// Checks every stream, then refuses what `run` does not read yet.
fn check_streams(streams: &[StreamFile]) -> Result<(), SettingError> {
    let wrong = |key, rule| Err(SettingError { key, rule });
    if streams.len() > MAX_STREAMS {
        let rule = format!(
            "{} streams; one edge takes at most {MAX_STREAMS}",
            streams.len()
        );
        return wrong("stream", rule);
    }
    let mut names = BTreeSet::new();
    for stream in streams {
        if !names.insert(&stream.name) {
            return wrong("stream.name", format!("{} is there twice", stream.name));
        }
        if let Some(target) = stream.target_duration
            && !(MIN_TARGET..=MAX_TARGET).contains(&target)
        {
            let given = humantime::format_duration(target);
            let rule = format!("stream {}: give 500ms to 6s, not {given}", stream.name);
            return wrong("stream.target_duration", rule);
        }
    }
    match streams.first() {
        None => Ok(()),
        Some(stream) => wrong(
            "stream.source",
            format!("stream {}: {}", stream.name, refusal(stream)),
        ),
    }
}

/// Why `run` does not take this source in this version, and what does.
fn refusal(stream: &StreamFile) -> String {
    let name = &stream.name;
    match SourceName::parse(stream.source.as_ref()) {
        Err(unread) => unread.hint(name),
        Ok(SourceName::Stdin) => {
            format!("`run` does not read standard input: type `edge-node push --stream {name} -`")
        }
        Ok(SourceName::File(_)) => format!(
            "`run` does not read files: `edge-node push --stream {name} FILE` ships one and ends"
        ),
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
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "data_dir = '/a'\nhttp.listen = '1.2.3.4:5'\ndisk.max_bytes = '200GB'\ndisk.reserve_bytes = '5GiB'";
        let settings = resolve(file, Overrides::default()).unwrap();
        assert_eq!(settings.data_dir.to_str(), Some("/a"));
        assert_eq!(settings.http.to_string(), "1.2.3.4:5");
        assert_eq!(settings.max_bytes, Some(200_000_000_000));
        assert_eq!(settings.reserve_bytes, 5 << 30);
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
                stream("source = 'udp://0.0.0.0:5000'"),
                "stream.source",
                "does not read udp://",
            ),
            (
                stream("source = 'watch:/srv/in'"),
                "stream.source",
                "does not read watch:",
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
                format!("{}\n{}", stream("source = '-'"), stream("source = '-'")),
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
        assert!(
            file.stream
                .iter()
                .all(|s| s.target_duration == Some(DEFAULT_TARGET))
        );
        assert_eq!(file.stream.len(), 1);
    }

    fn is_setting(line: &str) -> bool {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    }
}
