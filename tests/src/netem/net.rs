//! Three network namespaces in a row, `edge`, `line` and `hub`, with the kernel's netem on both ways out of
//! the middle one.
//!
//! The line has a place of its own since netem takes what a host sends with segmentation offload for one
//! packet: here packets are cut as they leave the edge, and netem sees each.

use std::{
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::Cell;

/// Where edges start.
pub(super) const EDGE: &str = "edge";
/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Where the hub's link listens.
pub(super) const HUB_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 2, 2);
const EDGE_ADDRESSES: [&str; 2] = ["10.78.1.2/24", "10.78.1.3/24"];
/// Packets that wait before a bottleneck; without one, those that are under way.
const QUEUE_PACKETS: u32 = 200;
const UNDER_WAY_PACKETS: u32 = 10_000;
/// Of each packet that an Ethernet device counts and IP does not.
const ETHERNET_HEADER: u64 = 14;

/// The namespaces; they go with the mount namespace that they were made in.
pub struct Net(());

/// What edge or hub gave to the line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub packets: u64,
    /// Of IP.
    pub bytes: u64,
}

impl Net {
    /// Makes them, and goes into the hub's. Call it before any thread is started.
    pub fn lay() -> Result<Self> {
        for name in [EDGE, "line", "hub"] {
            ip(&["netns", "add", name]).context(
                "failed to make network namespaces: scripts/netem does it with the rights it takes",
            )?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        for (end, in_line, address, gateway) in [
            (EDGE, "to-edge", EDGE_ADDRESSES[0], "10.78.1.1"),
            ("hub", "to-hub", "10.78.2.2/24", "10.78.2.1"),
        ] {
            ip(&[
                "link", "add", "eth", "netns", end, "type", "veth", "peer", "name", in_line,
                "netns", "line",
            ])?;
            ip(&["-n", end, "address", "add", address, "dev", "eth"])?;
            // Packets are cut here, not behind the queue that loses them.
            ip(&["-n", end, "link", "set", "eth", "up", "gso_max_segs", "1"])?;
            let gateway_network = format!("{gateway}/24");
            let add = ["-n", "line", "address", "add", &gateway_network];
            ip(&[&add[..], &["dev", in_line]].concat())?;
            ip(&["-n", "line", "link", "set", in_line, "up"])?;
            ip(&["-n", end, "route", "add", "default", "via", gateway])?;
        }
        run(
            "ip",
            &[
                "netns",
                "exec",
                "line",
                "sysctl",
                "-qw",
                "net.ipv4.ip_forward=1",
            ],
        )?;
        let hub = namespace("hub");
        let hub = File::open(&hub).with_context(|| hub.display().to_string())?;
        setns(&hub, CloneFlags::CLONE_NEWNET).context("failed to enter the hub's namespace")?;
        Ok(Self(()))
    }

    /// Both directions, from now on.
    pub fn shape(&self, cell: &Cell) -> Result<()> {
        self.netem(&netem_args(cell))
    }

    /// Nothing passes any more, until it is shaped again.
    pub fn cut(&self) -> Result<()> {
        self.netem(&["loss".to_owned(), "100%".to_owned()])
    }

    fn netem(&self, what: &[String]) -> Result<()> {
        for device in ["to-hub", "to-edge"] {
            // Not changed in place: netem keeps a rate that it isn't told anew.
            let made = run("tc", &["-n", "line", "qdisc", "del", "dev", device, "root"]);
            let mut args = vec!["-n", "line", "qdisc", "add", "dev", device, "root", "netem"];
            args.extend(what.iter().map(String::as_str));
            run("tc", &args).with_context(|| match made {
                Ok(_) => "netem".to_owned(),
                Err(error) => format!("netem, after: {error}"),
            })?;
        }
        Ok(())
    }

    /// The edge loses its address and gets another.
    pub fn move_edge(&self) -> Result<()> {
        self.address(EDGE_ADDRESSES[1])
    }

    /// The address of the start, for the next cell.
    pub fn move_back(&self) -> Result<()> {
        self.address(EDGE_ADDRESSES[0])
    }

    fn address(&self, new: &str) -> Result<()> {
        // With its last address a device loses its routes.
        ip(&["-n", EDGE, "address", "flush", "dev", "eth"])?;
        ip(&["-n", EDGE, "address", "add", new, "dev", "eth"])?;
        ip(&["-n", EDGE, "route", "add", "default", "via", "10.78.1.1"])
    }

    /// What an end's device has sent since it was made.
    pub fn sent(&self, end: &str) -> Result<Sent> {
        let out = run("ip", &["-n", end, "-s", "-j", "link", "show", "eth"])?;
        let all: Value = serde_json::from_str(&out).context("ip -j")?;
        let tx = &all[0]["stats64"]["tx"];
        let (packets, bytes) = tx["packets"]
            .as_u64()
            .zip(tx["bytes"].as_u64())
            .with_context(|| format!("no counters in {out}"))?;
        Ok(Sent {
            packets,
            bytes: bytes - packets * ETHERNET_HEADER,
        })
    }
}

/// The file of a namespace.
pub(super) fn namespace(end: &str) -> PathBuf {
    Path::new(NAMESPACES).join(end)
}

/// As `tc netem` wants it.
fn netem_args(cell: &Cell) -> Vec<String> {
    let mut args = vec![format!("delay {}ms", cell.delay)];
    if cell.burst > 0.0 {
        // Gilbert's model: out of the bad state with 1/length, into it so often that the share is lost.
        let leave = 100.0 / cell.burst;
        let enter = cell.loss * leave / (100.0 - cell.loss);
        args.push(format!("loss gemodel {enter:.4}% {leave:.4}%"));
    } else if cell.loss > 0.0 {
        args.push(format!("loss random {}%", cell.loss));
    }
    if cell.duplicate > 0.0 {
        args.push(format!("duplicate {}%", cell.duplicate));
    }
    if cell.reorder > 0.0 {
        args.push(format!("reorder {}%", cell.reorder));
    }
    if cell.rate > 0.0 {
        args.push(format!("rate {}kbit", (cell.rate * 1e3).round()));
        args.push(format!("limit {QUEUE_PACKETS}"));
    } else {
        args.push(format!("limit {UNDER_WAY_PACKETS}"));
    }
    let words = args.iter().flat_map(|part| part.split(' '));
    words.map(str::to_owned).collect()
}

fn ip(args: &[&str]) -> Result<()> {
    run("ip", args).map(|_| ())
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("failed to run {program} (Debian's iproute2, procps)"))?;
    ensure!(
        out.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8(out.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netem_is_told_what_the_cell_says() {
        let cell = Cell {
            delay: 50,
            loss: 10.0,
            ..Cell::default()
        };
        let told = |cell: &Cell| netem_args(cell).join(" ");
        assert_eq!(told(&cell), "delay 50ms loss random 10% limit 10000");
        let bursts = Cell { burst: 8.0, ..cell };
        assert_eq!(
            told(&bursts),
            "delay 50ms loss gemodel 1.3889% 12.5000% limit 10000"
        );
        let narrow = Cell {
            rate: 2.0,
            reorder: 5.0,
            duplicate: 2.0,
            loss: 0.0,
            ..cell
        };
        assert_eq!(
            told(&narrow),
            "delay 50ms duplicate 2% reorder 5% rate 2000kbit limit 200"
        );
    }
}
