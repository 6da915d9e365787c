//! Hub and edge-node as processes on mounted disks; what their logs say is promised goes into the write log.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::log::{Log, Promise, Side};
use crate::{http, program, programs::free_port, wait_for};

/// What the programs log for the marks.
const LOG_FILTER: &str = "info,store=trace";

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running program and what it logged.
pub struct Program {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Program {
    /// Starts it; its log lines become promises of `side` in `log`.
    pub fn start(command: &mut Command, side: Side, log: Log) -> Result<Self> {
        let mut child = command
            .env("PENSTOCK_LOG", LOG_FILTER)
            .env("PENSTOCK_LOG_FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let lines = BufReader::new(child.stderr.take().context("stderr")?);
        let text = Arc::new(Mutex::new(String::new()));
        let kept = text.clone();
        let reader = thread::spawn(move || read_log(lines, side, &log, &kept));
        Ok(Self {
            child,
            text,
            reader: Some(reader),
        })
    }

    pub fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    /// Log lines that are JSON.
    pub fn lines(&self) -> Vec<Value> {
        let text = self.text();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its own end; all of its log is read then.
    pub fn wait(mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let child = &mut self.child;
        let status = wait_for("a program to end", limit, || {
            child.try_wait().ok().flatten()
        })
        .with_context(|| self.text())?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok((status, self.text()))
    }

    /// SIGTERM, then waits.
    pub fn stop(self) -> Result<()> {
        let id = self.child.id().to_string();
        ensure!(Command::new("kill").arg(id).status()?.success(), "kill");
        self.wait(Duration::from_secs(30)).map(|_| ())
    }

    /// `kill -9`; nothing of it is left when this returns.
    pub fn kill(mut self) -> String {
        self.end();
        self.text()
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_log(lines: BufReader<impl Read>, side: Side, log: &Log, kept: &Mutex<String>) {
    for line in lines.lines().map_while(Result::ok) {
        if let Ok(event) = serde_json::from_str(&line)
            && let Some(promise) = promise(side, &event)
        {
            log.promise(promise);
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_str(&line);
        kept.push('\n');
    }
}

/// A log line comes after what it tells of: the promise is never older than the fact.
fn promise(side: Side, event: &Value) -> Option<Promise> {
    let stream = || Some(event.get("stream")?.as_str()?.to_owned());
    let number = |name: &str| event.get(name)?.as_u64();
    Some(match event.get("message")?.as_str()? {
        "segment closed" => Promise::Closed {
            side,
            stream: stream()?,
            number: number("number")?,
        },
        "segment stored on the hub" => Promise::Stored {
            stream: stream()?,
            number: number("number")?,
        },
        "part finished" if side == Side::Edge => Promise::Part {
            stream: stream()?,
            number: number("number")?,
            bytes: number("bytes")?,
        },
        _ => return None,
    })
}

/// A hub's addresses; kept over restarts, since devices know them.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub link: u16,
    pub http: u16,
    admin: u16,
}

impl Ports {
    pub fn free() -> Result<Self> {
        Ok(Self {
            link: free_port()?,
            http: free_port()?,
            admin: free_port()?,
        })
    }
}

/// `hub serve` on a data directory, ready.
pub fn hub(data_dir: &Path, ports: Ports, more: &[&str], log: Log) -> Result<Program> {
    let mut command = Command::new(program("hub"));
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--link", &format!("127.0.0.1:{}", ports.link)])
        .args(["--http", &format!("127.0.0.1:{}", ports.http)])
        .args(["--admin", &format!("127.0.0.1:{}", ports.admin)])
        .args(["--live-window", "10s"])
        .args(more)
        .stdin(Stdio::null());
    let mut hub = Program::start(&mut command, Side::Hub, log)?;
    let url = format!("http://127.0.0.1:{}/readyz", ports.http);
    let ready = wait_for("the hub to be ready", START_LIMIT, || {
        let ready = http::get(&url).is_ok_and(|answer| answer.status == 200);
        (ready || hub.ended()).then_some(ready)
    });
    ensure!(ready.with_context(|| hub.text())?, "{}", hub.text());
    Ok(hub)
}

/// `hub ARGS`: what it printed.
pub(super) fn hub_command(data_dir: &Path, args: &[&str]) -> Result<String> {
    let out = Command::new(program("hub"))
        .args(args)
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()?;
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "hub {args:?}: {errors}");
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// `edge-node COMMAND` with its data directory, not yet started.
pub(super) fn edge(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("edge-node"));
    command
        .args(args.iter().take(1))
        .arg("--data-dir")
        .arg(data_dir)
        .args(args.iter().skip(1))
        .stdin(Stdio::null());
    command
}

/// `edge-node run`, its page bound, and where that is.
pub(super) fn edge_run(data_dir: &Path, log: Log) -> Result<(Program, SocketAddr)> {
    let mut command = edge(data_dir, &["run", "--http", "127.0.0.1:0"]);
    let mut run = Program::start(&mut command, Side::Edge, log)?;
    let address = wait_for("the edge's page", START_LIMIT, || {
        let at = page_address(&run.text());
        (at.is_some() || run.ended()).then_some(at)
    });
    let address = address.with_context(|| run.text())?;
    let address = address.with_context(|| format!("edge-node run ended: {}", run.text()))?;
    Ok((run, address))
}

/// Where a log says that the local page is.
pub(super) fn page_address(log: &str) -> Option<SocketAddr> {
    let at = log.split("the local page is at http://").nth(1)?;
    at.split('/').next()?.parse().ok()
}

/// `DATA_DIR` below a mount: the programs make it themselves.
pub(super) fn data_dir(mount: &Path) -> PathBuf {
    mount.join("data")
}
