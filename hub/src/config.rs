//! The hub's settings: what `hub.toml` may say, what flags and variables say over it, and the defaults.
//!
//! [`File`] is the file as written; [`Settings`] is what the program runs on, checked once. The order is
//! flags, then `PENSTOCK_*` variables, then the file, then the default. `hub.example.toml` documents
//! every key; a test holds the two together.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use clap::Args;
use program::scrub::{ByteRate, ScrubSettings};
use serde::Deserialize;

/// UDP port of the link.
pub(crate) const DEFAULT_LINK_PORT: u16 = 9710;

const DEFAULT_DATA_DIR: &str = "/var/lib/penstock-hub";
const DEFAULT_LINK: &str = "0.0.0.0:9710";
const DEFAULT_HTTP: &str = "127.0.0.1:8080";
const DEFAULT_ADMIN: &str = "127.0.0.1:8079";
/// A disk that fills up takes its database with it: this much stays free.
const DEFAULT_RESERVE: ByteSize = ByteSize::gib(1);
/// What a player can step back in the live playlist.
const DEFAULT_LIVE_WINDOW: Duration = Duration::from_secs(120);

/// Shortest live window: below it players that start behind the live edge find nothing.
const MIN_LIVE_WINDOW: Duration = Duration::from_secs(10);
/// Longest live window: 3,600 entries of 2 s, which every viewer fetches with every segment.
const MAX_LIVE_WINDOW: Duration = Duration::from_secs(2 * 60 * 60);
/// Shortest age at which a recording may be deleted: well above a live window's grace.
const MIN_MAX_AGE: Duration = Duration::from_secs(60);

/// `hub.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    data_dir: Option<PathBuf>,
    link: LinkFile,
    http: ListenFile,
    admin: ListenFile,
    retention: RetentionFile,
    disk: DiskFile,
    live: LiveFile,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LinkFile {
    listen: Option<SocketAddr>,
    public_address: Option<PublicAddress>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenFile {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetentionFile {
    #[serde(with = "humantime_serde")]
    max_age: Option<Duration>,
    max_bytes: Option<ByteSize>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DiskFile {
    reserve_bytes: Option<ByteSize>,
    scrub_rate: Option<ByteRate>,
    #[serde(with = "humantime_serde")]
    scrub_every: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LiveFile {
    #[serde(with = "humantime_serde")]
    window: Option<Duration>,
}

/// What the command line and the environment say over the file: one flag and one variable for each key.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings (these win over the config file)")]
pub(crate) struct Overrides {
    /// UDP address that devices ship to [default: 0.0.0.0:9710]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_LINK")]
    pub(crate) link: Option<SocketAddr>,
    /// Address of page, playlists and segments; loopback unless told otherwise [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTP")]
    pub(crate) http: Option<SocketAddr>,
    /// Address of the admin API and /metrics; keep it off the internet [default: 127.0.0.1:8079]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN")]
    pub(crate) admin: Option<SocketAddr>,
    /// Where devices find the link from outside; goes into enrolment URLs
    #[arg(long, value_name = "HOST:PORT", env = "PENSTOCK_PUBLIC_ADDRESS")]
    pub(crate) public_address: Option<PublicAddress>,
    /// Delete what is older, for example 7d [default: keep]
    #[arg(long, value_name = "DURATION", env = "PENSTOCK_MAX_AGE", value_parser = humantime::parse_duration)]
    pub(crate) max_age: Option<Duration>,
    /// Delete the oldest above this many bytes in all, for example 500GB [default: the disk's size]
    #[arg(long, value_name = "SIZE", env = "PENSTOCK_MAX_BYTES")]
    pub(crate) max_bytes: Option<ByteSize>,
    /// Keep this much of the disk free [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "PENSTOCK_RESERVE_BYTES")]
    pub(crate) reserve_bytes: Option<ByteSize>,
    /// Read stored segments again at this rate and compare their hashes, 0 for never [default: 1MB/s]
    #[arg(long, value_name = "SIZE/s", env = "PENSTOCK_SCRUB_RATE")]
    pub(crate) scrub_rate: Option<ByteRate>,
    /// Read each segment again after this, at the earliest [default: 7d]
    #[arg(long, value_name = "DURATION", env = "PENSTOCK_SCRUB_EVERY", value_parser = humantime::parse_duration)]
    pub(crate) scrub_every: Option<Duration>,
    /// How much the live playlist lists [default: 2m]
    #[arg(long, value_name = "DURATION", env = "PENSTOCK_LIVE_WINDOW", value_parser = humantime::parse_duration)]
    pub(crate) live_window: Option<Duration>,
}

/// What `hub serve` and its subcommands run on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) link: SocketAddr,
    pub(crate) public_address: Option<PublicAddress>,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) max_age: Option<Duration>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) reserve_bytes: u64,
    pub(crate) scrub: ScrubSettings,
    pub(crate) live_window: Duration,
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
    pub(crate) fn resolve(
        data_dir: Option<PathBuf>,
        over: Overrides,
        file: File,
    ) -> Result<Self, SettingError> {
        let settings = Self {
            data_dir: data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            link: over
                .link
                .or(file.link.listen)
                .unwrap_or_else(|| fixed(DEFAULT_LINK)),
            public_address: over.public_address.or(file.link.public_address),
            http: over
                .http
                .or(file.http.listen)
                .unwrap_or_else(|| fixed(DEFAULT_HTTP)),
            admin: over
                .admin
                .or(file.admin.listen)
                .unwrap_or_else(|| fixed(DEFAULT_ADMIN)),
            max_age: over.max_age.or(file.retention.max_age),
            max_bytes: over
                .max_bytes
                .or(file.retention.max_bytes)
                .map(|size| size.as_u64()),
            reserve_bytes: over
                .reserve_bytes
                .or(file.disk.reserve_bytes)
                .unwrap_or(DEFAULT_RESERVE)
                .as_u64(),
            scrub: ScrubSettings::resolve(
                over.scrub_rate.or(file.disk.scrub_rate),
                over.scrub_every.or(file.disk.scrub_every),
            ),
            live_window: over
                .live_window
                .or(file.live.window)
                .unwrap_or(DEFAULT_LIVE_WINDOW),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingError> {
        let wrong = |key, rule: String| Err(SettingError { key, rule });
        if !(MIN_LIVE_WINDOW..=MAX_LIVE_WINDOW).contains(&self.live_window) {
            return wrong(
                "live.window",
                format!(
                    "give 10s to 2h, not {}",
                    humantime::format_duration(self.live_window)
                ),
            );
        }
        if let Some(age) = self.max_age
            && age < MIN_MAX_AGE.max(self.live_window)
        {
            let least = humantime::format_duration(MIN_MAX_AGE.max(self.live_window));
            return wrong(
                "retention.max_age",
                format!(
                    "give at least {least} (a minute and live.window), or leave it out to keep all"
                ),
            );
        }
        if self.max_bytes == Some(0) {
            return wrong(
                "retention.max_bytes",
                "give a size above 0, or leave it out".to_owned(),
            );
        }
        if self.http == self.admin && self.http.port() != 0 {
            return wrong(
                "admin.listen",
                format!(
                    "{} is http.listen already: the admin API needs an address of its own",
                    self.admin
                ),
            );
        }
        Ok(())
    }
}

/// A constant address of this file; the unspecified one can't come out (a test reads each).
fn fixed(address: &str) -> SocketAddr {
    address
        .parse()
        .unwrap_or(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0))
}

/// `HOST:PORT` as devices reach it: a name or an address, with the link's port if none is given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PublicAddress(String);

/// Longest host name (RFC 1035 2.3.4).
const MAX_HOST_BYTES: usize = 253;

impl std::fmt::Display for PublicAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for PublicAddress {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl TryFrom<String> for PublicAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for PublicAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || {
            format!(
                "{text:?} is not HOST:PORT, for example hub.example.org:9710 or [2001:db8::1]:9710"
            )
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(SocketAddr::new(address, DEFAULT_LINK_PORT).into());
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.ip().is_unspecified() || address.port() == 0 {
                Err(rule())
            } else {
                Ok(address.into())
            };
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().map_err(|_| rule())?),
            None => (text, DEFAULT_LINK_PORT),
        };
        let letters = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let whole =
            !host.is_empty() && host.len() <= MAX_HOST_BYTES && !host.starts_with(['.', '-']);
        // All digits and dots that isn't an address was meant to be one.
        let name = host.bytes().any(|b| b.is_ascii_alphabetic());
        if letters && whole && name && port != 0 {
            Ok(Self(format!("{host}:{port}")))
        } else {
            Err(rule())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<File, program::config::ConfigError> {
        program::config::parse("hub.toml".as_ref(), text)
    }

    fn resolve(text: &str, over: Overrides) -> Result<Settings, SettingError> {
        Settings::resolve(None, over, parse(text).unwrap())
    }

    #[test]
    fn defaults_are_the_public_face() {
        let settings = resolve("", Overrides::default()).unwrap();
        assert_eq!(settings.link.to_string(), DEFAULT_LINK);
        assert_eq!(settings.http.to_string(), DEFAULT_HTTP);
        assert_eq!(settings.admin.to_string(), DEFAULT_ADMIN);
        assert_eq!(settings.link.port(), DEFAULT_LINK_PORT);
        assert_eq!(settings.data_dir.to_str(), Some(DEFAULT_DATA_DIR));
        assert_eq!(
            (settings.max_age, settings.max_bytes, settings.reserve_bytes),
            (None, None, 1 << 30)
        );
        assert_eq!(settings.live_window, Duration::from_secs(120));
    }

    #[test]
    fn the_example_is_the_defaults_and_knows_every_variable() {
        let example = include_str!("../hub.example.toml");
        assert_eq!(
            resolve(example, Overrides::default()),
            resolve("", Overrides::default())
        );
        let command = Overrides::augment_args(clap::Command::new("hub"));
        let names: Vec<_> = command
            .get_arguments()
            .filter_map(|a| a.get_env()?.to_str())
            .collect();
        assert_eq!(names.len(), 10);
        for name in names {
            assert!(example.contains(name), "{name} is not in hub.example.toml");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "data_dir = '/a'\nlink.listen = '1.2.3.4:5'\nhttp.listen = '1.2.3.4:6'\nlive.window = '30s'\nretention.max_age = '7d'\nretention.max_bytes = '2TB'\ndisk.reserve_bytes = '5GiB'";
        let over = Overrides {
            http: Some(fixed("127.0.0.1:7")),
            max_bytes: Some(ByteSize::gb(1)),
            ..Overrides::default()
        };
        let settings = resolve(file, over.clone()).unwrap();
        assert_eq!(settings.link.to_string(), "1.2.3.4:5");
        assert_eq!(settings.http.to_string(), "127.0.0.1:7");
        assert_eq!(settings.max_age, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(settings.max_bytes, Some(1_000_000_000));
        assert_eq!(settings.reserve_bytes, 5 << 30);
        assert_eq!(settings.live_window, Duration::from_secs(30));
        assert_eq!(settings.data_dir.to_str(), Some("/a"));
        let flagged = Settings::resolve(Some("/b".into()), over, parse(file).unwrap()).unwrap();
        assert_eq!(flagged.data_dir.to_str(), Some("/b"));
    }

    #[test]
    fn values_that_cannot_be_name_their_key() {
        for (file, key) in [
            ("live.window = '2s'", "live.window: give 10s to 2h, not 2s"),
            ("live.window = '3h'", "live.window: give 10s to 2h"),
            (
                "retention.max_age = '1s'",
                "retention.max_age: give at least 2m",
            ),
            ("retention.max_bytes = 0", "retention.max_bytes"),
            (
                "http.listen = '127.0.0.1:8079'",
                "admin.listen: 127.0.0.1:8079 is http.listen already",
            ),
        ] {
            let error = resolve(file, Overrides::default()).unwrap_err().to_string();
            assert!(error.starts_with(key), "{file}: {error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for file in [
            "nosuch = 1",
            "[link]\nlisten_on = '0.0.0.0:1'",
            "[retention]\nmax_days = 7",
            "[https]",
        ] {
            let error = parse(file).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{file}: {error}");
        }
    }

    #[test]
    fn public_addresses() {
        for (given, kept) in [
            ("hub.example.org:9711", "hub.example.org:9711"),
            ("hub.example.org", "hub.example.org:9710"),
            ("10.0.0.1", "10.0.0.1:9710"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[2001:db8::1]:9710", "[2001:db8::1]:9710"),
            ("2001:db8::1", "[2001:db8::1]:9710"),
            ("localhost:9710", "localhost:9710"),
        ] {
            assert_eq!(given.parse::<PublicAddress>().unwrap().to_string(), kept);
        }
        for bad in [
            "",
            ":9710",
            "host:",
            "host:0",
            "host:99999",
            "0.0.0.0:9710",
            "[::]:1",
            "a b:1",
            "http://host:1",
            "host/x:1",
            "host#x:1",
            "1.2.3:4",
            "-a:1",
            &format!("{}:1", "x".repeat(254)),
        ] {
            let error = bad.parse::<PublicAddress>().unwrap_err();
            assert!(error.contains("is not HOST:PORT"), "{bad}: {error}");
        }
    }
}
