//! `scripts/bench link`'s program: one row of its table, over one emulated line, as one line of JSON.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use bench_link::{
    carry,
    line::{Line, Loss, Shape},
    outage::{self, Plan},
    share,
    video::Video,
};
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Carries video over an emulated line; needs root or `unshare --map-root-user`")]
struct Cli {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    line: LineArgs,
}

#[derive(Subcommand)]
enum What {
    /// A video by one transport: latency of its access units, what is missing, bytes on the line.
    Carry {
        #[arg(long)]
        row: carry::Row,
        /// Of the video that counts; some are carried before it.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Of the video, Mbit/s.
        #[arg(long, default_value_t = 4.0)]
        video: f64,
    },
    /// Flows that saturate the line together: what each gets.
    Share {
        /// Two or more.
        #[arg(long, value_delimiter = ',')]
        flows: Vec<share::Flow>,
        /// Counted, after ten to settle.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Hub and edge-node with a camera: how live comes back after a cut, and how a hole or a backlog is filled.
    Outage {
        /// MPEG-TS with a key frame each second.
        #[arg(long)]
        clip: PathBuf,
        #[command(flatten)]
        plan: Plan,
    },
}

#[derive(Args)]
struct LineArgs {
    /// Milliseconds each way.
    #[arg(long, default_value_t = 50, global = true)]
    delay: u64,
    /// Percent of packets lost, each way.
    #[arg(long, default_value_t = 0.0, global = true)]
    loss: f64,
    /// Percent lost from hub to edge, if it is another share.
    #[arg(long, global = true)]
    loss_back: Option<f64>,
    /// Losses come in runs of this mean length (Gilbert); 0: each for itself.
    #[arg(long, default_value_t = 0.0, global = true)]
    burst: f64,
    /// Mbit/s each way; 0: no limit.
    #[arg(long, default_value_t = 20.0, global = true)]
    rate: f64,
    /// Mbit/s from hub to edge, if it is another.
    #[arg(long, global = true)]
    rate_back: Option<f64>,
    /// Thousands of bytes that wait before the bottleneck.
    #[arg(long, default_value_t = 256, global = true)]
    queue: u64,
    /// Percent of packets held back by up to 20 ms, so that others overtake them.
    #[arg(long, default_value_t = 0.0, global = true)]
    reorder: f64,
    /// Percent of packets that arrive twice.
    #[arg(long, default_value_t = 0.0, global = true)]
    duplicate: f64,
    /// Nothing passes from this second on, counted from the start …
    #[arg(long, requires = "cut_for", global = true)]
    cut_at: Option<f64>,
    /// … for so many seconds.
    #[arg(long, requires = "cut_at", global = true)]
    cut_for: Option<f64>,
    /// Of the line's randomness.
    #[arg(long, default_value_t = 1, global = true)]
    seed: u64,
}

impl LineArgs {
    fn lay(&self) -> Result<Line> {
        for percent in [self.loss, self.reorder, self.duplicate] {
            ensure!((0.0..100.0).contains(&percent), "{percent} is no share");
        }
        ensure!(
            self.burst == 0.0 || self.burst >= 1.0,
            "a burst has at least 1 packet"
        );
        let up = self.shape(self.loss, self.rate);
        let down = self.shape(
            self.loss_back.unwrap_or(self.loss),
            self.rate_back.unwrap_or(self.rate),
        );
        Line::lay(up, down, self.seed)
    }

    fn shape(&self, loss: f64, rate: f64) -> Shape {
        let share = loss / 100.0;
        Shape {
            delay: Duration::from_millis(self.delay),
            rate_bps: (rate > 0.0).then_some((rate * 1e6) as u64),
            queue_bytes: self.queue * 1_000,
            loss: if self.burst > 0.0 {
                Loss::Bursts {
                    share,
                    mean_len: self.burst,
                }
            } else {
                Loss::Single { share }
            },
            reorder: self.reorder / 100.0,
            duplicate: self.duplicate / 100.0,
            cut: self
                .cut_at
                .zip(self.cut_for)
                .map(|(at, length)| (Duration::from_secs_f64(at), Duration::from_secs_f64(length))),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            // One line: it stands in the table where the row would.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let cli = Cli::parse();
    let line = cli.line.lay()?;
    Ok(match cli.what {
        What::Carry {
            row,
            seconds,
            video,
        } => {
            let video = Video {
                bit_rate: (video * 1e6) as u32,
                seconds,
            };
            // Four round trips.
            let srt_latency_ms = u128::from(cli.line.delay) * 8;
            serde_json::to_string(&carry::carry(line, row, video, srt_latency_ms)?)?
        }
        What::Share { flows, seconds } => {
            serde_json::to_string(&share::share(line, &flows, seconds)?)?
        }
        What::Outage { clip, plan } => serde_json::to_string(&outage::run(
            line,
            &clip,
            &plan,
            (cli.line.rate * 1e6) as u64,
        )?)?,
    })
}
