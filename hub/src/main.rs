//! `hub`: receives segments from edge-nodes, keeps them and serves them as HLS.

mod admin;
mod backup;
mod beside;
mod cli;
mod config;
mod device;
mod enroll;
mod keys;
mod link_metrics;
mod links;
mod metrics;
mod serve;
mod stream;
mod table;
mod tasks;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    program::exit::finish(cli::run(cli::Cli::parse()))
}
