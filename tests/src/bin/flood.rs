//! The attacker of `scripts/bench flood`: `flood HUB ENROLMENT_URL PER_SECOND SECONDS`.
//!
//! Prints the address of a line to the hub, for a session that it may look into; waits for a line on standard
//! input; floods; prints what it sent as JSON.

use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::{Flood, Line, hub_key};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hub, url, per_second, seconds] = args.as_slice() else {
        anyhow::bail!("usage: flood HUB ENROLMENT_URL PER_SECOND SECONDS");
    };
    let hub = hub.parse().context("HUB")?;
    let line = Line::to(hub)?;
    println!("{}", line.address());
    std::io::stdin().read_line(&mut String::new())?;
    let captured = line.captured();
    let known = captured.len();
    let sent = Flood {
        hub,
        hub_key: hub_key(url)?,
        captured,
        per_second: per_second.parse().context("PER_SECOND")?,
        time: Duration::from_secs(seconds.parse().context("SECONDS")?),
    }
    .run()?;
    println!(
        "{}",
        serde_json::json!({
            "datagrams": sent.datagrams,
            "bytes": sent.bytes,
            "failed": sent.failed,
            "seconds": sent.elapsed.as_secs_f64(),
            "captured": known,
        })
    );
    Ok(())
}
