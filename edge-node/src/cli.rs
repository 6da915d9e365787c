//! The command line: what can be said, its help, and where it goes.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use model::{StreamName, WallTime, WallTimeError};
use program::{config::ConfigError, exit::Failure, logging::LogArgs, output, scrub::ByteRate};

use crate::{
    config::{self, Overrides, Settings},
    enroll, push, run as daemon, status,
};

/// Cuts camera video into HLS segments on site, keeps them, and ships them to a hub over bad networks.
#[derive(Debug, Parser)]
#[command(
    name = "edge-node",
    version,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  edge-node enroll 'penstock://hub.example.org:9710/KEY#TOKEN'   the line that `hub enroll NAME` printed
  edge-node push --stream gate recording.mp4                     ship a file; ends once the hub has it all
  ffmpeg -i rtsp://10.0.0.9/main -c copy -f mpegts - | edge-node push --stream gate -
  edge-node run --config edge.toml                               record its streams, ship them, serve the page
  edge-node status                                               what is here, what the hub has

Settings come from flags, then PENSTOCK_* variables, then the config file (edge.example.toml documents
every key). Exit codes: 0 done, 1 failed, 2 usage, 78 bad configuration."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Flags of every subcommand.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common")]
struct Common {
    /// Settings file; `edge.example.toml` documents every key
    #[arg(long, global = true, value_name = "FILE", env = "PENSTOCK_CONFIG")]
    config: Option<PathBuf>,
    /// Where identity, catalog and segments are [default: /var/lib/penstock-edge]
    #[arg(long, global = true, value_name = "DIR", env = "PENSTOCK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrol with a hub, with the URL that `hub enroll NAME` printed there
    #[command(after_help = "\
Examples:
  edge-node enroll 'penstock://hub.example.org:9710/KEY#TOKEN'
  PENSTOCK_ENROLL_URL='penstock://…' edge-node enroll      a command line shows in `ps`, a variable does not
  ssh hub hub enroll pole-7 | edge-node enroll -           the URL on standard input

The identity (a key of this device's own, the hub's address and key) is kept in DATA_DIR/identity.
Enrolling again replaces hub and key once the new hub has answered; streams and their numbers stay.")]
    Enroll {
        /// The URL, or `-` to read it from standard input
        #[arg(
            value_name = "URL|-",
            env = "PENSTOCK_ENROLL_URL",
            hide_env_values = true
        )]
        url: String,
    },
    /// Record the streams of the settings file, serve the local page and ship, until SIGTERM or Ctrl-C
    #[command(after_help = "\
Examples:
  edge-node run                                          ships what is left on this disk, serves the page
  edge-node run --config /etc/penstock/edge.toml --http 0.0.0.0:8081

In edge.toml, a [[stream]] for each input, up to 256:
  [[stream]]
  name = \"gate\"
  source = \"udp://0.0.0.0:5000\"                          MPEG-TS in datagrams, in RTP or not
  [[stream]]
  name = \"yard\"
  source = \"udp://239.1.1.1:5000?interface=eth0\"        a multicast group
  [[stream]]
  name = \"recorder\"
  source = \"watch:/srv/footage\"                          files put into a folder
  done = \"delete\"                                        once the hub has all of one (default: keep)

Each is recorded on its own: one that fails is tried again after 1 to 30 s. Stopping ends no stream; one
that is taken out of the file is ended at the next start.
The page and the playlists are at http://127.0.0.1:8081/ unless --http says otherwise.
The log goes to standard error; PENSTOCK_LOG=debug says more.")]
    Run(RunArgs),
    /// Cut files or live MPEG-TS into a stream and ship it; ends once the hub has it all
    #[command(after_help = "\
Examples:
  edge-node push --stream gate recording.mp4
  edge-node push --stream gate --start 2026-05-01T08:00:00Z morning.ts noon.ts
  edge-node push --stream gate --realtime clip.mp4                    at its own pace, like a camera
  ffmpeg -i rtsp://10.0.0.9/main -c copy -f mpegts - | edge-node push --stream gate -
  edge-node push --stream gate udp://0.0.0.0:5000                     until Ctrl-C

Sources are .ts and .mp4 files (told apart by content, not by name), `-` for MPEG-TS on standard
input, or udp://HOST:PORT for MPEG-TS in datagrams. Several files follow one another; one whose timestamps go on from the last stays in its run.

Exit code 0: the hub has stored everything and ended the stream. Exit code 1: a source was bad, or a
file left before its end, or \"N segments stay on this disk\" because the hub could not be reached; the
next `push` or `run` ships them. The first Ctrl-C (or SIGTERM) ends the stream and ships for up to 10 s; the second ends at once.")]
    Push(PushArgs),
    /// Show what is on this disk, what the hub has, and how the link is
    #[command(
        after_help = "Examples:\n  edge-node status\n  edge-node status --json | jq .streams"
    )]
    Status {
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Check a settings file without starting anything
    #[command(after_help = "\
Examples:
  edge-node check-config /etc/penstock/edge.toml

Exits 0 and says so, or 78 with the line and the key that are wrong.")]
    CheckConfig {
        /// The file to check
        file: PathBuf,
    },
    /// Cut one file to disk without a hub, for `scripts/bench`
    #[command(hide = true)]
    BenchCut { file: PathBuf },
}

/// Settings that have a key in the file too.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// Let segments take at most this much of the disk, e.g. 200GB [default: all but the reserve]
    #[arg(long, value_name = "SIZE", env = "PENSTOCK_MAX_BYTES")]
    max_bytes: Option<ByteSize>,
    /// Keep this much of the disk free [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "PENSTOCK_RESERVE_BYTES")]
    reserve_bytes: Option<ByteSize>,
    /// Read segments again at this rate and compare their hashes, 0 for never [default: 1MB/s]
    #[arg(long, value_name = "SIZE/s", env = "PENSTOCK_SCRUB_RATE")]
    scrub_rate: Option<ByteRate>,
    /// Read each segment again after this, at the earliest [default: 7d]
    #[arg(long, value_name = "DURATION", env = "PENSTOCK_SCRUB_EVERY", value_parser = humantime::parse_duration)]
    scrub_every: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Address of page and playlists [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_HTTP")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    disk: DiskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The stream's name: 1 to 64 of a-z, 0-9, '.', '_', '-'
    #[arg(long, value_name = "NAME")]
    pub(crate) stream: StreamName,
    /// Take files in at their own pace, like a camera, instead of as fast as disk and link allow
    #[arg(long)]
    pub(crate) realtime: bool,
    /// When the material was taken: a time (RFC 3339 or Unix milliseconds), `now` (it begins now), or
    /// `mtime` (each file ends at its modification time) [default: files end now; live begins now]
    #[arg(long, value_name = "T|now|mtime")]
    pub(crate) start: Option<Start>,
    /// How long to go on trying, once all is cut, while the hub takes nothing more
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
    /// Serve page and playlists on this address meanwhile [default: not]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    #[command(flatten)]
    disk: DiskArgs,
    /// Files in order, or `-` for MPEG-TS on standard input, or udp://HOST:PORT
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<OsString>,
}

/// What `--start` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Now,
    Mtime,
    At(WallTime),
}

impl FromStr for Start {
    type Err = WallTimeError;

    fn from_str(text: &str) -> Result<Self, WallTimeError> {
        match text {
            "now" => Ok(Self::Now),
            "mtime" => Ok(Self::Mtime),
            time => time.parse().map(Self::At),
        }
    }
}

impl DiskArgs {
    fn overrides(&self, common: &Common) -> Overrides {
        Overrides {
            data_dir: common.data_dir.clone(),
            http: None,
            max_bytes: self.max_bytes,
            reserve_bytes: self.reserve_bytes,
            scrub_rate: self.scrub_rate,
            scrub_every: self.scrub_every,
        }
    }
}

/// Carries out what the command line says.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, common } = cli;
    let format = common.log.log_format;
    match command {
        Command::Enroll { url } => {
            program::logging::init(format);
            enroll::enroll(&plain(&common)?, &url)
        }
        Command::Run(args) => {
            program::logging::init(format);
            let overrides = Overrides {
                http: args.http,
                ..args.disk.overrides(&common)
            };
            daemon::run(&settings(&common, overrides)?)
        }
        Command::Push(args) => {
            let settings = settings(&common, args.disk.overrides(&common))?;
            push::push(&settings, &args, format)
        }
        Command::Status { json } => {
            program::logging::init(format);
            status::status(&plain(&common)?, json)
        }
        Command::CheckConfig { file } => check_config(&file),
        Command::BenchCut { file } => {
            program::logging::init(format);
            push::bench_cut(&plain(&common)?, &file)
        }
    }
}

fn check_config(file: &Path) -> Result<(), Failure> {
    let settings = resolve(Some(file), Overrides::default())?;
    let (file, data_dir) = (file.display(), settings.data_dir.display());
    let streams = match settings.streams.len() {
        1 => "1 stream".to_owned(),
        n => format!("{n} streams"),
    };
    output::line(&format!("{file}: good, {streams}, data goes to {data_dir}"))
        .map_err(|e| Failure::failed(format!("failed to write: {e}")))
}

fn plain(common: &Common) -> Result<Settings, ConfigError> {
    settings(
        common,
        Overrides {
            data_dir: common.data_dir.clone(),
            ..Overrides::default()
        },
    )
}

fn settings(common: &Common, overrides: Overrides) -> Result<Settings, ConfigError> {
    resolve(common.config.as_deref(), overrides)
}

fn resolve(file: Option<&Path>, overrides: Overrides) -> Result<Settings, ConfigError> {
    let read = match file {
        Some(path) => program::config::load(path)?,
        None => config::File::default(),
    };
    let from = file.unwrap_or(Path::new("(flags and variables)"));
    Settings::resolve(overrides, read).map_err(|e| ConfigError::key(from, e.key, e.rule))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_shows_an_example() {
        for command in Cli::command()
            .get_subcommands()
            .filter(|c| !c.is_hide_set())
        {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(
                    |h| h.contains("Examples:\n  edge-node ") || h.contains("edge-node")
                ),
                "{} has no example",
                command.get_name()
            );
        }
    }

    #[test]
    fn starts() {
        assert_eq!("now".parse(), Ok(Start::Now));
        assert_eq!("mtime".parse(), Ok(Start::Mtime));
        assert_eq!("1000".parse(), Ok(Start::At(WallTime(1000))));
        assert!("yesterday".parse::<Start>().is_err());
    }
}
