//! The real program, run and watched.
#![allow(dead_code)] // each test file uses its part
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)] // all of it is test

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longest wait for anything the program is asked to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// `hub ARGS`, in an environment without settings.
pub(crate) fn hub(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hub"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PENSTOCK_")) {
        command.env_remove(name);
    }
    command
}

/// Runs to the end: exit code, standard output, standard error.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("killed"), text(stdout), text(stderr))
}

/// `hub ARGS --data-dir DIR`, run to the end.
pub(crate) fn hub_in(dir: &Path, args: &[&str]) -> (i32, String, String) {
    run(hub(args).arg("--data-dir").arg(dir))
}

/// A `hub serve` on free ports.
pub(crate) struct Daemon {
    child: Child,
    /// What it logs; the line that its end leaves is not JSON and comes as a string.
    log: Receiver<Value>,
    /// `http://ADDRESS`, without a slash at its end.
    pub(crate) http: String,
    pub(crate) admin: String,
    /// `ADDRESS:PORT` of the link.
    pub(crate) link: String,
}

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    pub(crate) fn start(dir: &Path) -> Self {
        let mut child = serve(dir).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, log) = mpsc::channel();
        // Reads on whoever listens: the pipe must not fill up.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let mut daemon = Self {
            child,
            log,
            http: String::new(),
            admin: String::new(),
            link: String::new(),
        };
        daemon.link = daemon.says("devices ship")["address"]
            .as_str()
            .unwrap()
            .to_owned();
        daemon.admin = daemon.says("admin API")["url"]
            .as_str()
            .unwrap()
            .trim_end_matches("/metrics")
            .to_owned();
        daemon.http = daemon.says("ready")["url"]
            .as_str()
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        daemon
    }

    /// Waits for a line that begins so; those before it are gone.
    pub(crate) fn says(&self, begin: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            let Ok(entry) = self.log.recv_timeout(PATIENCE) else {
                panic!("no {begin:?}: {seen:#?}")
            };
            if entry["message"]
                .as_str()
                .is_some_and(|text| text.starts_with(begin))
            {
                return entry;
            }
            seen.push(entry);
        }
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let kill = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(kill.success());
    }

    /// Waits for its end: the exit code.
    pub(crate) fn end(mut self) -> i32 {
        let code = self.child.wait().unwrap().code();
        code.expect("it ends by itself, not by the signal")
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(self) -> i32 {
        self.terminate();
        self.end()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if std::thread::panicking() {
            // The reader's end of the pipe comes after the program's.
            let log: Vec<_> = self.log.iter().collect();
            eprintln!("hub serve: {status:?}; its last lines: {log:#?}");
        }
    }
}

/// `hub serve` on free ports, JSON log, not started yet.
pub(crate) fn serve(dir: &Path) -> Command {
    let any = "127.0.0.1:0";
    let mut command = hub(&[
        "serve",
        "--link",
        any,
        "--http",
        any,
        "--admin",
        any,
        "--log-format",
        "json",
    ]);
    command.arg("--data-dir").arg(dir);
    command
}

/// An HTTP answer: status, content type, body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|_| panic!("not JSON: {} {}", self.status, self.text))
    }

    /// The reason in a refusal.
    pub(crate) fn error(&self) -> String {
        self.json()["reason"]
            .as_str()
            .unwrap_or_else(|| panic!("no reason: {}", self.text))
            .to_owned()
    }
}

/// One request; `token` as the bearer, `body` as JSON.
pub(crate) fn http(method: &str, url: &str, token: Option<&str>, body: Option<&Value>) -> Answer {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut answer = agent
        .run(request.body(body).unwrap())
        .unwrap_or_else(|e| panic!("{method} {url}: {e}"));
    let content_type = answer
        .headers()
        .get("content-type")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    Answer {
        status: answer.status().as_u16(),
        content_type,
        text: answer.body_mut().read_to_string().unwrap(),
    }
}

pub(crate) fn get(url: &str) -> Answer {
    http("GET", url, None, None)
}

/// Asks again until `done` or [`PATIENCE`] is over.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    begin.elapsed()
}
