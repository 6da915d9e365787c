//! The command line: what can be said, its help, and where it goes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use model::{DeviceName, StreamName};
use program::{config::ConfigError, exit::Failure, logging::LogArgs, output};

use crate::{
    backup, beside,
    config::{self, Overrides, PublicAddress, Settings},
    device, enroll, serve, stream,
};

/// Receives camera video from edge-nodes over bad networks, keeps it, and serves it as HLS.
#[derive(Debug, Parser)]
#[command(
    name = "hub",
    version,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  hub serve --data-dir /var/lib/penstock-hub          start the hub
  hub enroll gate-house --address hub.example.org     invite a device; prints one URL
  hub device list                                     who ships here
  hub stream list                                     what is here
  hub backup /mnt/backup/hub                          key, devices and catalog, while it runs

Every flag of `hub serve` has a PENSTOCK_* variable and a key in hub.toml; flags win over variables,
variables over the file. Exit codes: 0 done, 1 failed, 2 usage, 78 bad configuration."
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
    /// Settings file; `hub.example.toml` documents every key
    #[arg(long, global = true, value_name = "FILE", env = "PENSTOCK_CONFIG")]
    config: Option<PathBuf>,
    /// Where catalog, segments and keys are [default: /var/lib/penstock-hub]
    #[arg(long, global = true, value_name = "DIR", env = "PENSTOCK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub until SIGTERM or Ctrl-C
    #[command(after_help = "\
Examples:
  hub serve --data-dir ./hub-data
  hub serve --config /etc/penstock/hub.toml --http 0.0.0.0:8080
  PENSTOCK_MAX_AGE=7d hub serve --log-format json

Segments go to DATA_DIR/segments, the catalog to DATA_DIR/catalog.db; the hub's key is in
DATA_DIR/hub.key (back it up), the token for writes on the admin API in DATA_DIR/admin.token.
The log goes to standard error; PENSTOCK_LOG=debug says more.")]
    Serve(Overrides),
    /// Invite a device: prints one URL that enrols it once
    #[command(after_help = "\
Examples:
  hub enroll gate-house --address hub.example.org:9710
  hub enroll pole-7 --address 203.0.113.5 --stream gate --stream yard --expires 1h

The URL goes to standard output, alone: `edge-node enroll URL` on the device takes it. It works once
and then never again. Works beside a running `hub serve` and before the first. Inviting a name that
is enrolled already gives it a new key; its streams and their numbers stay.")]
    Enroll(EnrollArgs),
    /// List, enable, disable or remove devices
    #[command(
        subcommand,
        after_help = "\
Examples:
  hub device list
  hub device list --json | jq -r '.[].name'
  hub device disable pole-7

A running `hub serve` acts on a change within 2 s."
    )]
    Device(DeviceCommand),
    /// List, move, end or remove streams
    #[command(
        subcommand,
        after_help = "\
Examples:
  hub stream list
  hub stream move gate pole-8
  hub stream end gate

A running `hub serve` acts on a change within 2 s."
    )]
    Stream(StreamCommand),
    /// Copy the hub's key, devices and catalog to a folder, also while it runs
    #[command(after_help = "\
Examples:
  hub backup /mnt/backup/hub
  hub backup /mnt/backup/hub --config /etc/penstock/hub.toml      the settings file too
  0 3 * * *  hub backup /mnt/backup/hub                           each night, in a crontab

The folder is made, or is one that is empty or a backup already; a backup that is cut off leaves the one
before it as it was. It holds catalog.db, hub.key and admin.token (keep it secret), no segments.
Enrolment URLs that wait to be used are left out: make new ones.

To restore, with the hub stopped (DATA_DIR may be new, with or without the segments):
  rm -f DATA_DIR/catalog.db-wal DATA_DIR/catalog.db-shm
  cp /mnt/backup/hub/catalog.db /mnt/backup/hub/*.key /mnt/backup/hub/*.token DATA_DIR/
  hub serve --data-dir DATA_DIR
Segments in DATA_DIR that are newer than the backup are taken in; what is missing is asked of the edges,
which ship what they still have. Numbers are not used twice: edges keep their own.")]
    Backup {
        /// Where to
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Check a settings file without starting anything
    #[command(after_help = "\
Examples:
  hub check-config /etc/penstock/hub.toml

Exits 0 and says so, or 78 with the line and the key that are wrong.")]
    CheckConfig {
        /// The file to check
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// The device's name: 1 to 64 of a-z, 0-9, '.', '_', '-'
    pub(crate) name: DeviceName,
    /// Where the device finds this hub [default: link.public_address, or link.listen if it is one address]
    #[arg(long, value_name = "HOST:PORT", env = "PENSTOCK_PUBLIC_ADDRESS")]
    pub(crate) address: Option<PublicAddress>,
    /// Reserve a stream for this device; may be repeated
    #[arg(long = "stream", value_name = "NAME")]
    pub(crate) streams: Vec<StreamName>,
    /// How long the URL waits to be used, 1m to 30d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) expires: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// All devices: state, streams, when and from where they were last seen
    #[command(after_help = "Examples:\n  hub device list\n  hub device list --json")]
    List {
        /// A JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Let a disabled device ship again
    #[command(after_help = "Examples:\n  hub device enable pole-7")]
    Enable { name: DeviceName },
    /// Refuse a device until it is enabled; what it shipped stays
    #[command(after_help = "Examples:\n  hub device disable pole-7")]
    Disable { name: DeviceName },
    /// Forget a device and its key; its streams stay
    #[command(after_help = "Examples:\n  hub device remove pole-7")]
    Remove { name: DeviceName },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// All streams: owner, state, size and span
    #[command(after_help = "Examples:\n  hub stream list\n  hub stream list --json")]
    List {
        /// A JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Give a stream to another device
    #[command(after_help = "Examples:\n  hub stream move gate pole-8")]
    Move {
        name: StreamName,
        device: DeviceName,
    },
    /// End a stream's live playlist; recordings stay
    #[command(after_help = "Examples:\n  hub stream end gate")]
    End { name: StreamName },
    /// Delete a stream and everything recorded of it, for good
    #[command(after_help = "Examples:\n  hub stream remove gate")]
    Remove { name: StreamName },
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, common } = cli;
    program::logging::init(common.log.log_format);
    let settings = |over| settings(&common, over);
    let catalog =
        || -> Result<_, Failure> { Ok(beside::open(&settings(Overrides::default())?.data_dir)?) };
    match command {
        Command::Serve(over) => Ok(serve::run(settings(over)?)?),
        Command::Enroll(args) => enroll::run(args, &settings(Overrides::default())?),
        Command::Device(command) => Ok(device::run(command, &catalog()?)?),
        Command::Stream(command) => Ok(stream::run(command, &catalog()?)?),
        Command::Backup { dir } => {
            let settings = settings(Overrides::default())?;
            Ok(backup::run(&dir, &settings, common.config.as_deref())?)
        }
        Command::CheckConfig { file } => check_config(&file),
    }
}

/// Flags over variables over the file over the defaults; who is at fault decides the exit code.
fn settings(common: &Common, over: Overrides) -> Result<Settings, Failure> {
    let file = match &common.config {
        Some(path) => checked_file(path)?,
        None => config::File::default(),
    };
    Settings::resolve(common.data_dir.clone(), over, file).map_err(Failure::usage)
}

/// The file, good by itself.
fn checked_file(path: &Path) -> Result<config::File, ConfigError> {
    let file: config::File = program::config::load(path)?;
    Settings::resolve(None, Overrides::default(), file.clone())
        .map_err(|error| ConfigError::key(path, error.key, error.rule))?;
    Ok(file)
}

fn check_config(path: &Path) -> Result<(), Failure> {
    checked_file(path)?;
    output::line(&format!("{}: good", path.display())).map_err(Failure::failed)
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
    fn every_subcommand_has_examples() {
        fn walk(command: &clap::Command, path: &str) -> usize {
            let help = command.clone().render_help().to_string();
            assert!(help.contains("Examples:"), "{path}: {help}");
            1 + command
                .get_subcommands()
                .map(|sub| walk(sub, &format!("{path} {}", sub.get_name())))
                .sum::<usize>()
        }
        assert_eq!(walk(&Cli::command(), "hub"), 15);
    }
}
