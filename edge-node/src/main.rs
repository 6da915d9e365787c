//! `edge-node`: cuts a site's video into segments, keeps them, and ships them to a hub.

mod allowance;
mod cli;
mod clock;
mod config;
mod enroll;
mod identity;
mod ingest;
mod inputs;
mod link_view;
mod metrics;
mod node;
mod numbers;
mod plan;
mod progress;
mod push;
mod recorder;
mod resume;
mod run;
mod shipping;
mod status;
mod supervisor;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    program::exit::finish(cli::run(cli::Cli::parse()))
}
