//! Hub and edge-node as processes with their data directories, ports and logs.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{clock::FakeClock, http};

/// The path of a program of this workspace, built beside this program or test.
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let folder = exe.parent().unwrap_or(&exe);
    // Tests lie one folder deeper.
    let is_test = folder.file_name().is_some_and(|name| name == "deps");
    let folder = folder.parent().filter(|_| is_test).unwrap_or(folder);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: run cargo build --workspace first",
        path.display()
    );
    path
}

/// Asks until it is so, or says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return Ok(found);
        }
        ensure!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program that is started in a network namespace (the path of its file).
pub fn command_in(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace.display()))
        .arg(program);
    command
}

/// A port that nobody listens on now, for TCP and UDP.
pub(crate) fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}

/// A hub with its directory; it keeps its ports across restarts.
pub struct Hub {
    dir: PathBuf,
    config: PathBuf,
    log: PathBuf,
    link: SocketAddr,
    http: u16,
    admin: u16,
    clock: Option<FakeClock>,
    args: Vec<String>,
    child: Option<Child>,
}

impl Hub {
    /// Starts a hub in `dir` and waits until it is ready.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_as(dir, &dir.join("log"), "", &[], None)
    }

    /// The same with its log elsewhere: the disk of `dir` is about to fail.
    pub fn start_logging(dir: &Path, log: &Path) -> Result<Self> {
        Self::start_as(dir, log, "", &[], None)
    }

    /// The same with a configuration: the text of its `hub.toml`, without addresses.
    pub fn start_configured(dir: &Path, config: &str) -> Result<Self> {
        Self::start_as(dir, &dir.join("log"), config, &[], None)
    }

    /// The same with more flags of `hub serve`, also when it is started again.
    pub fn start_with(dir: &Path, args: &[&str]) -> Result<Self> {
        Self::start_as(dir, &dir.join("log"), "", args, None)
    }

    /// The same with a wall clock of its own.
    pub fn start_by(dir: &Path, clock: Option<&FakeClock>) -> Result<Self> {
        Self::start_as(dir, &dir.join("log"), "", &[], clock)
    }

    /// The same with more flags, its link port at another address than loopback.
    pub fn start_at(host: IpAddr, dir: &Path, args: &[&str]) -> Result<Self> {
        let mut hub = Self::prepared(dir, &dir.join("log"), "", args, None)?;
        hub.link.set_ip(host);
        hub.up()?;
        Ok(hub)
    }

    fn start_as(
        dir: &Path,
        log: &Path,
        config: &str,
        args: &[&str],
        clock: Option<&FakeClock>,
    ) -> Result<Self> {
        let mut hub = Self::prepared(dir, log, config, args, clock)?;
        hub.up()?;
        Ok(hub)
    }

    fn prepared(
        dir: &Path,
        log: &Path,
        config: &str,
        args: &[&str],
        clock: Option<&FakeClock>,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let file = dir.with_extension("toml");
        fs::write(&file, config)?;
        Ok(Self {
            dir: dir.to_owned(),
            config: file,
            log: log.to_owned(),
            link: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            http: free_port()?,
            admin: free_port()?,
            clock: clock.cloned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            child: None,
        })
    }

    /// From the next `up` on it is a hub in another directory, at the same ports.
    pub fn relocate(&mut self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        self.dir = dir.to_owned();
        Ok(())
    }

    /// Waits until it ends by itself; the exit status.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the hub is not running")?;
        let ended = wait_for("the hub to end", limit, || child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child = Some(child);
        }
        ended.with_context(|| self.log())
    }

    /// Starts the program again after `kill` or `stop`, and waits until it is ready.
    pub fn up(&mut self) -> Result<()> {
        self.begin()?;
        let url = self.url("/readyz");
        wait_for("the hub to be ready", Duration::from_secs(20), || {
            http::get(&url).ok().filter(|answer| answer.status == 200)
        })
        .with_context(|| self.log())?;
        Ok(())
    }

    /// Starts the program again and waits for nothing.
    pub fn begin(&mut self) -> Result<()> {
        let log = append(&self.log)?;
        let mut command = Command::new(program("hub"));
        command
            .arg("serve")
            .args(["--config", &self.config.display().to_string()])
            .arg("--data-dir")
            .arg(&self.dir)
            .args(["--link", &self.link.to_string()])
            .args(["--http", &format!("127.0.0.1:{}", self.http)])
            .args(["--admin", &format!("127.0.0.1:{}", self.admin)])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(clock) = &self.clock {
            clock.put_on(&mut command);
        }
        let child = command.spawn().context("hub serve")?;
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; the exit status.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let child = self.child.take().context("the hub is not running")?;
        terminate(child)
    }

    /// The most memory that was in use, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.child.as_ref().context("the hub is not running")?.id())
    }

    /// Memory in use now, in bytes, and open files.
    pub fn usage(&self) -> Result<(u64, u64)> {
        usage(self.child.as_ref().context("the hub is not running")?.id())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin)
    }

    pub fn link_address(&self) -> SocketAddr {
        self.link
    }

    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// `hub ARGS --data-dir DIR`: its standard output, or its error text as the error.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        let out = Command::new(program("hub"))
            .args(args)
            .arg("--data-dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            out.status.success(),
            "hub {args:?}: {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8(out.stdout)?)
    }

    /// The URL with which a device enrols over `address` (the hub itself or a line to it).
    pub fn enrolment(&self, name: &str, address: SocketAddr) -> Result<String> {
        let out = self.command(&["enroll", name, "--address", &address.to_string()])?;
        Ok(out.trim().to_owned())
    }

    /// All that the hub logged, for a failing test's message.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- hub log\n{}", tail(&self.log()));
        }
        let _ = self.kill();
    }
}

/// An edge-node's directory, enrolled.
pub struct Edge {
    dir: PathBuf,
    clock: Option<FakeClock>,
    log: PathBuf,
    env: Vec<(String, String)>,
    namespace: Option<PathBuf>,
}

impl Edge {
    /// Enrols `name` with the hub, straight.
    pub fn enrol(dir: &Path, hub: &Hub, name: &str) -> Result<Self> {
        Self::enrol_over(dir, hub, name, hub.link_address())
    }

    /// Enrols over another address than the hub's own, such as a [`crate::Line`]'s.
    pub fn enrol_over(dir: &Path, hub: &Hub, name: &str, address: SocketAddr) -> Result<Self> {
        let edge = Self::unknown(dir);
        edge.enroll(hub, name, address)?;
        Ok(edge)
    }

    /// Enrols from a network namespace (the path of its file), and lives there.
    pub fn enrol_in(namespace: &Path, dir: &Path, hub: &Hub, name: &str) -> Result<Self> {
        let mut edge = Self::unknown(dir);
        edge.namespace = Some(namespace.to_owned());
        edge.enroll(hub, name, hub.link_address())?;
        Ok(edge)
    }

    fn enroll(&self, hub: &Hub, name: &str, address: SocketAddr) -> Result<()> {
        let url = hub.enrolment(name, address)?;
        let out = self.command(&["enroll", &url])?;
        ensure!(out.0.success(), "enroll: {}\n{}", out.1, hub.log());
        Ok(())
    }

    /// A directory that was never enrolled.
    pub fn unknown(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            clock: None,
            log: dir.join("log"),
            env: Vec::new(),
            namespace: None,
        }
    }

    /// The program, without arguments yet.
    fn program(&self) -> Command {
        let program = program("edge-node");
        match &self.namespace {
            Some(namespace) => command_in(namespace, program),
            None => Command::new(program),
        }
    }

    /// What is pushed from now on goes by this wall clock.
    pub fn set_clock(&mut self, clock: &FakeClock) {
        self.clock = Some(clock.clone());
    }

    /// Logs elsewhere from now on: the disk of its directory is about to fail.
    pub fn log_to(&mut self, log: &Path) {
        log.clone_into(&mut self.log);
    }

    /// A variable for what is started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `edge-node ARGS --data-dir DIR` to its end: status and all that it printed.
    pub fn command(&self, args: &[&str]) -> Result<(ExitStatus, String)> {
        let out = self
            .program()
            .args(args.iter().take(1))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .arg("--data-dir")
            .arg(&self.dir)
            .args(args.iter().skip(1))
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        Ok((out.status, text))
    }

    /// Starts `edge-node push ARGS`, its standard input from `stdin`.
    pub fn push(&self, args: &[&str], stdin: Stdio) -> Result<Push> {
        self.spawn("push", args, stdin)
    }

    /// Starts `edge-node run ARGS`.
    pub fn run(&self, args: &[&str]) -> Result<Push> {
        self.spawn("run", args, Stdio::null())
    }

    /// Starts any subcommand and waits for nothing.
    pub fn begin(&self, command: &str, args: &[&str]) -> Result<Push> {
        self.spawn(command, args, Stdio::null())
    }

    fn spawn(&self, command: &str, args: &[&str], stdin: Stdio) -> Result<Push> {
        fs::create_dir_all(&self.dir)?;
        let log = append(&self.log)?;
        let mut edge = self.program();
        edge.arg(command)
            .arg("--data-dir")
            .arg(&self.dir)
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(clock) = &self.clock {
            clock.put_on(&mut edge);
        }
        let child = edge
            .spawn()
            .with_context(|| format!("edge-node {command}"))?;
        Ok(Push {
            child: Some(child),
            log: self.log.clone(),
        })
    }

    /// BLAKE3 of every closed segment of a stream on this disk, by number.
    pub fn segments(&self, stream: &str) -> Result<Vec<(u64, String)>> {
        segments(&self.dir, stream)
    }
}

/// BLAKE3 of every closed segment of a stream below a data directory, by number.
pub fn segments(data_dir: &Path, stream: &str) -> Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    let root = data_dir.join("segments").join(stream);
    for folder in fs::read_dir(&root).with_context(|| format!("{}", root.display()))? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|e| e == "ts") {
                let number = path
                    .file_stem()
                    .and_then(|s| s.to_str())
                    .context("name")?
                    .parse()?;
                found.push((number, blake3::hash(&fs::read(&path)?).to_string()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A running `edge-node push` (or another subcommand).
pub struct Push {
    child: Option<Child>,
    log: PathBuf,
}

impl Push {
    /// Waits for its own end.
    pub fn wait(mut self, limit: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().context("ended already")?;
        let ended = wait_for("edge-node push to end", limit, || {
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.with_context(|| self.log())
    }

    /// It has ended by itself, however.
    pub fn has_ended(&mut self) -> bool {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        self.child.as_mut().is_none_or(ended)
    }

    pub fn kill(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; the exit status.
    pub fn stop(mut self) -> Result<ExitStatus> {
        terminate(self.child.take().context("ended already")?)
    }

    pub fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.child.as_ref().context("ended already")?.id())
    }

    /// Memory in use now, in bytes, and open files.
    pub fn usage(&self) -> Result<(u64, u64)> {
        usage(self.child.as_ref().context("ended already")?.id())
    }

    /// Where it logs; stays after its end.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if thread::panicking() {
                eprintln!("--- edge log\n{}", tail(&self.log()));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn append(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("{}", path.display()))
}

fn terminate(mut child: Child) -> Result<ExitStatus> {
    ensure!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()?
            .success(),
        "kill"
    );
    let ended = wait_for("a clean end after SIGTERM", Duration::from_secs(30), || {
        child.try_wait().ok().flatten()
    });
    if ended.is_err() {
        let _ = child.kill();
    }
    ended
}

fn resident_bytes(pid: u32) -> Result<u64> {
    of_status(pid, "VmHWM:")
}

fn usage(pid: u32) -> Result<(u64, u64)> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok((of_status(pid, "VmRSS:")?, files))
}

fn of_status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|l| l.starts_with(field))
        .with_context(|| format!("no {field}"))?;
    let kib: u64 = line.split_whitespace().nth(1).context("value")?.parse()?;
    Ok(kib * 1024)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
