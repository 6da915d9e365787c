//! `scripts/netem`'s program: runs cells over the kernel's netem, prints a table and a verdict. It must be
//! started in a mount and a network namespace of its own.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use system_tests::netem::{Cell, Net, Row, ci, table};

#[derive(Parser)]
struct Cli {
    /// Pushed at its own pace
    #[arg(long)]
    clip: PathBuf,
    /// Of the clip
    #[arg(long)]
    seconds: u32,
    /// A longer clip, for cells in which the line is cut
    #[arg(long, requires = "long_seconds")]
    long_clip: Option<PathBuf>,
    #[arg(long)]
    long_seconds: Option<u32>,
    /// The six cells that CI runs
    #[arg(long)]
    ci: bool,
    /// All cells
    #[arg(long)]
    table: bool,
    #[command(flatten)]
    cell: Cell,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let net = Net::lay()?;
    let cells = match (cli.ci, cli.table) {
        (true, _) => ci(),
        (_, true) => table(),
        _ => vec![cli.cell],
    };
    println!("{:<44} {}", "loss, delay each way", Row::HEAD);
    let mut failed = 0;
    for cell in &cells {
        let long = cli.long_clip.as_ref().zip(cli.long_seconds);
        let (clip, seconds) = match long {
            Some(long) if cell.cut > 0 => long,
            _ => (&cli.clip, cli.seconds),
        };
        match cell.run(&net, clip, seconds) {
            Ok(row) => println!("{cell:<44} {row}"),
            Err(error) => {
                failed += 1;
                println!("{cell:<44} FAILED");
                eprintln!("{cell}: {error:?}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} cells failed", cells.len());
    }
    println!(
        "every segment is at the hub, hash for hash, in {} of {} cells",
        cells.len(),
        cells.len()
    );
    Ok(())
}
