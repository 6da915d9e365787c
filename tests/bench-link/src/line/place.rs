//! One end of the line: a network namespace with a TUN device, made by a thread that goes into it.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::PathBuf,
    process::{self, Command},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use tun_rs::{DeviceBuilder, SyncDevice};

/// The device's name in its namespace.
const DEVICE: &str = "line";

/// Of the device, and so of the largest packet: Ethernet's.
const MTU: u16 = 1_500;

/// A namespace; it lives as long as this value, its threads and programs.
pub struct Place {
    namespace: File,
    pub address: Ipv4Addr,
}

impl Place {
    /// Makes the namespace and its device, whose packets the caller carries.
    pub fn make(address: Ipv4Addr) -> Result<(Self, SyncDevice)> {
        let made = thread::spawn(move || make_here(address)).join();
        made.unwrap_or_else(|_| bail!("the thread of {address} has died"))
    }

    /// The namespace's file, while this value lives; for programs of their own.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.namespace.as_raw_fd()).into()
    }

    /// This thread's sockets, and the programs it starts, are at this end from now on.
    pub fn enter(&self) -> Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("failed to enter the namespace of {}", self.address))
    }
}

fn make_here(address: Ipv4Addr) -> Result<(Place, SyncDevice)> {
    unshare(CloneFlags::CLONE_NEWNET).context(
        "failed to make a network namespace: be root, or start it by `unshare --map-root-user`",
    )?;
    let namespace = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .mtu(MTU)
        .enable(false)
        .build_sync()
        .context("failed to make a TUN device: /dev/net/tun must be there and open to this user")?;
    ip(&["link", "set", "lo", "up"])?;
    let network = format!("{address}/24");
    ip(&["address", "add", &network, "dev", DEVICE])?;
    // A burst of a key frame waits in the line's own queue, not in the device's.
    ip(&["link", "set", DEVICE, "up", "txqueuelen", "5000"])?;
    Ok((Place { namespace, address }, device))
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip")
        .args(args)
        .output()
        .context("failed to run `ip` (Debian's iproute2)")?;
    if !out.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}
