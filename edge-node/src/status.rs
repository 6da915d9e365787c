//! `edge-node status`: asks the program that runs on this data directory, or reads its catalog.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use link::uplink::{HubTime, LinkState, UplinkStatus};
use model::{DeviceName, MediaDuration};
use program::{clock::wall_now, exit::Failure, output};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{DiskTrouble, InMemory, MemoryCounters, Store, StreamState, StreamSummary};

use crate::{
    config::Settings,
    identity::{Identity, IdentityError},
    inputs::Inputs,
    node,
};

/// The program is on this machine: it answers at once or not at all.
const HTTP_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer that is read; 256 streams with 64 ranges each fit.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// What does not change while the program runs.
pub(crate) struct About {
    pub(crate) device: DeviceName,
    pub(crate) hub_address: String,
    pub(crate) data_dir: PathBuf,
    /// The page of the link's last hour is served.
    pub(crate) plots: bool,
}

/// How the disk stands.
#[derive(Debug, Default)]
pub(crate) struct DiskState {
    trouble: Option<DiskTrouble>,
    memory: InMemory,
    counters: MemoryCounters,
}

impl DiskState {
    pub(crate) fn of(store: &Store) -> Self {
        Self {
            trouble: store.disk_trouble(),
            memory: store.in_memory(),
            counters: store.memory_counters(),
        }
    }
}

/// The edge's part of `GET /api/v1/status`.
pub(crate) fn json(about: &About, link: &UplinkStatus, inputs: &Inputs, disk: &DiskState) -> Value {
    let (state, reason, since) = match &link.state {
        LinkState::Connecting => ("connecting", None, None),
        LinkState::Connected { since, .. } => ("connected", None, Some(since.to_string())),
        LinkState::Unreachable { why } => ("unreachable", Some(why.clone()), None),
        LinkState::Refused { reason } => ("refused", Some(reason.clone()), None),
    };
    let refused: Vec<Value> = link
        .refused_streams
        .iter()
        .map(|(stream, reason)| json!({ "stream": stream, "reason": reason }))
        .collect();
    json!({
        "device": about.device,
        "data_dir": about.data_dir.display().to_string(),
        "link": {
            "hub": about.hub_address,
            "state": state,
            "reason": reason,
            "since": since,
            "clock": link.hub_time.map(clock_json),
            "rtt_ms": link.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            "rate_bps": link.rate_bps,
            "loss": link.loss,
            "segments_stored": link.counters.segments_stored,
            "refused_streams": refused,
            "live_bytes": link.progress.live_bytes,
            "backfill_bytes": link.progress.backfill_bytes,
            "event_bytes": link.progress.event_bytes,
            "want_bytes": link.progress.want_bytes,
            "segments_demoted": link.progress.segments_demoted,
            "held_back": link.held_back,
            "plots": about.plots,
        },
        "disk": {
            "state": disk.trouble.as_ref().map_or("ok", |trouble| trouble.kind.as_str()),
            "reason": disk.trouble.as_ref().map(|trouble| trouble.what.clone()),
            "since": disk.trouble.as_ref().map(|trouble| trouble.since.to_string()),
            "memory_segments": disk.memory.segments,
            "memory_bytes": disk.memory.bytes,
            "through_memory": disk.counters.segments,
            "lost": disk.counters.lost,
        },
        "inputs": inputs.json(),
    })
}

/// How far this machine's clock is ahead of the hub's, as far as can be known, in milliseconds.
pub(crate) fn clock_ahead_ms(hub: &HubTime) -> i64 {
    let since = MediaDuration::from_duration(hub.at.elapsed());
    wall_now().0.saturating_sub(hub.time.plus(since).0)
}

fn clock_json(hub: HubTime) -> Value {
    json!({
        "ahead_of_hub_ms": clock_ahead_ms(&hub),
        "uncertainty_ms": hub.uncertainty.as_secs_f64() * 1e3,
    })
}

/// Prints how things stand.
pub(crate) fn status(settings: &Settings, as_json: bool) -> Result<(), Failure> {
    let answer = match ask_running(settings)? {
        Some(answer) => answer,
        None => read_catalog(settings)?,
    };
    let text = if as_json {
        let pretty = serde_json::to_string_pretty(&answer).context("failed to write JSON")?;
        format!("{pretty}\n")
    } else {
        let shown: Shown = serde_json::from_value(answer).context("failed to read the answer")?;
        shown.text()
    };
    output::print(&text).map_err(|e| Failure::failed(format!("failed to write: {e}")))
}

/// None if nobody answers as a program on this data directory.
fn ask_running(settings: &Settings) -> Result<Option<Value>> {
    let Some(address) = node::running_http(&settings.data_dir) else {
        return Ok(None);
    };
    let Ok(mut status) = get(address, "/api/v1/status") else {
        return Ok(None);
    };
    let own = settings.data_dir.display().to_string();
    if status.get("data_dir").and_then(Value::as_str) != Some(&own) {
        return Ok(None);
    }
    let streams = get(address, "/api/v1/streams")
        .with_context(|| format!("failed to ask http://{address}/"))?;
    if let (Some(status), Some(streams)) = (status.as_object_mut(), streams.get("streams")) {
        status.insert("running".to_owned(), json!(true));
        status.insert("http".to_owned(), json!(format!("http://{address}/")));
        status.insert("streams".to_owned(), streams.clone());
    }
    Ok(Some(status))
}

fn read_catalog(settings: &Settings) -> Result<Value, Failure> {
    let data_dir = &settings.data_dir;
    let identity = match Identity::load(data_dir) {
        Ok(identity) => Some(identity),
        Err(IdentityError::NotEnrolled { .. }) => None,
        Err(error) => return Err(Failure::failed(error)),
    };
    let streams = if data_dir.is_dir() {
        // A push without --http may be at work: the catalog is read beside it.
        let beside = Store::open_beside(data_dir).and_then(|store| store.streams());
        beside.context("failed to read the catalog")?
    } else {
        Vec::new()
    };
    let streams: Vec<Value> = streams.iter().map(stream_json).collect();
    let hub = identity.as_ref().map(|i| i.hub_address.clone());
    Ok(json!({
        "running": false,
        "device": identity.map(|i| i.device),
        "data_dir": data_dir.display().to_string(),
        "link": { "hub": hub, "state": "not known: nothing that serves here is running" },
        "streams": streams,
    }))
}

/// The fields of `GET /api/v1/streams` that need no program running.
fn stream_json(stream: &StreamSummary) -> Value {
    let state = match stream.state {
        StreamState::Ended => "ended",
        StreamState::Live | StreamState::Idle => "idle",
    };
    let first = stream.ranges.iter().map(|(from, _)| *from).min();
    let last = stream.ranges.iter().map(|(_, to)| *to).max();
    json!({
        "name": stream.name,
        "state": state,
        "segments": stream.segments,
        "bytes": stream.bytes,
        "first": first.map(|t| t.to_string()),
        "last": last.map(|t| t.to_string()),
        "unshipped": stream.unshipped,
        "unshipped_bytes": stream.unshipped_bytes,
        "given_up": stream.given_up,
    })
}

/// What of the answer the text shows.
#[derive(Debug, Deserialize)]
struct Shown {
    device: Option<String>,
    data_dir: String,
    http: Option<String>,
    link: ShownLink,
    #[serde(default)]
    inputs: Vec<ShownInput>,
    disk: Option<ShownDisk>,
    streams: Vec<ShownStream>,
}

#[derive(Debug, Deserialize)]
struct ShownDisk {
    state: String,
    reason: Option<String>,
    memory_segments: u64,
    memory_bytes: u64,
    lost: u64,
}

#[derive(Debug, Deserialize)]
struct ShownLink {
    hub: Option<String>,
    state: String,
    reason: Option<String>,
    rtt_ms: Option<f64>,
    rate_bps: Option<u64>,
    loss: Option<f64>,
    clock: Option<ShownClock>,
    #[serde(default)]
    refused_streams: Vec<ShownRefusal>,
    #[serde(default)]
    live_bytes: u64,
    #[serde(default)]
    backfill_bytes: u64,
    #[serde(default)]
    event_bytes: u64,
    #[serde(default)]
    want_bytes: u64,
    held_back: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ShownClock {
    ahead_of_hub_ms: i64,
    uncertainty_ms: f64,
}

impl ShownClock {
    fn text(&self) -> String {
        let Self {
            ahead_of_hub_ms: ahead,
            uncertainty_ms,
        } = self;
        let way = if *ahead < 0 { "behind" } else { "ahead of" };
        format!(
            "{:.3} s {way} the hub's, give or take {:.3} s",
            ahead.unsigned_abs() as f64 / 1e3,
            uncertainty_ms / 1e3
        )
    }
}

#[derive(Debug, Deserialize)]
struct ShownRefusal {
    stream: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct ShownInput {
    stream: String,
    source: String,
    state: String,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ShownStream {
    name: String,
    state: String,
    segments: u64,
    bytes: u64,
    last: Option<String>,
    unshipped: u64,
    unshipped_bytes: u64,
    #[serde(default)]
    given_up: u64,
}

impl Shown {
    fn text(&self) -> String {
        let mut text = match (&self.device, &self.link.hub) {
            (Some(device), Some(hub)) => format!("device  {device}, enrolled with the hub at {hub}\n"),
            _ => "device  not enrolled: `hub enroll NAME` at the hub, then `edge-node enroll URL` here\n".to_owned(),
        };
        text.push_str(&format!("data    {}\n", self.data_dir));
        if let Some(http) = &self.http {
            text.push_str(&format!("page    {http}\n"));
        }
        if let Some(disk) = self.disk.as_ref().filter(|disk| disk.state != "ok") {
            text.push_str(&format!(
                "disk    {}: {}; {} segments ({}) in memory, {} lost\n",
                disk.state,
                disk.reason.as_deref().unwrap_or("no reason given"),
                disk.memory_segments,
                ByteSize::b(disk.memory_bytes),
                disk.lost
            ));
        }
        text.push_str(&format!("link    {}\n", self.link.text()));
        let link = &self.link;
        let sent = link.event_bytes + link.live_bytes + link.want_bytes + link.backfill_bytes;
        if sent > 0 {
            let live = self.link.live_bytes as f64 / sent as f64;
            text.push_str(&format!(
                "sent    {} of media since the start, {:.0} % of it live\n",
                ByteSize::b(sent),
                100.0 * live
            ));
        }
        if let Some(held_back) = &self.link.held_back {
            text.push_str(&format!("waits   {held_back}\n"));
        }
        if let Some(clock) = &self.link.clock {
            text.push_str(&format!("clock   {}\n", clock.text()));
        }
        for refusal in &self.link.refused_streams {
            text.push_str(&format!(
                "        the hub refuses {}: {}\n",
                refusal.stream, refusal.reason
            ));
        }
        for input in &self.inputs {
            let (stream, source, state) = (&input.stream, &input.source, &input.state);
            text.push_str(&format!("input   {stream} from {source}: {state}"));
            if let Some(reason) = &input.reason {
                text.push_str(&format!(" ({reason})"));
            }
            text.push('\n');
        }
        if self.streams.is_empty() {
            text.push_str("\nno streams yet: edge-node push --stream NAME FILE\n");
            return text;
        }
        let width = self
            .streams
            .iter()
            .map(|s| s.name.len())
            .max()
            .unwrap_or(0)
            .max(6);
        text.push_str(&format!(
            "\n{:width$}  STATE  SEGMENTS        SIZE  NOT ON THE HUB          LAST\n",
            "STREAM"
        ));
        for s in &self.streams {
            let left = match s.unshipped {
                0 => "-".to_owned(),
                n => format!("{n} ({})", ByteSize::b(s.unshipped_bytes)),
            };
            text.push_str(&format!(
                "{:width$}  {:5}  {:>8}  {:>10}  {left:22}  {}\n",
                s.name,
                s.state,
                s.segments,
                ByteSize::b(s.bytes).to_string(),
                s.last.as_deref().unwrap_or("-"),
            ));
            if s.given_up > 0 {
                text.push_str(&format!(
                    "{:width$}  the hub gave up {} of them: see the log for each with its reason\n",
                    "", s.given_up
                ));
            }
        }
        text
    }
}

impl ShownLink {
    fn text(&self) -> String {
        let mut text = self.state.clone();
        if let Some(reason) = &self.reason {
            text.push_str(&format!(": {reason}"));
        }
        if self.state == "connected" {
            if let Some(rtt) = self.rtt_ms {
                text.push_str(&format!(", round trip {rtt:.1} ms"));
            }
            if let Some(rate) = self.rate_bps.filter(|&rate| rate > 0) {
                text.push_str(&format!(", paced to {:.1} Mbit/s", rate as f64 / 1e6));
            }
            if let Some(loss) = self.loss {
                text.push_str(&format!(", loss {:.1} %", loss * 100.0));
            }
        }
        text
    }
}

/// One GET of JSON, with HTTP/1.0 so that the answer ends where the connection does.
fn get(address: SocketAddr, path: &str) -> Result<Value> {
    let mut socket = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
    socket.set_read_timeout(Some(HTTP_TIMEOUT))?;
    socket.set_write_timeout(Some(HTTP_TIMEOUT))?;
    write!(
        socket,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    socket.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    body(&answer)
}

fn body(answer: &[u8]) -> Result<Value> {
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let (head, body) = answer.split_at(end);
    let line = String::from_utf8_lossy(head);
    if line.split(' ').nth(1) != Some("200") {
        bail!("{}", line.lines().next().unwrap_or_default());
    }
    Ok(serde_json::from_slice(body.get(4..).unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use model::WallTime;

    use super::*;
    use crate::inputs::{Input, InputState};

    fn about() -> About {
        About {
            device: "pole-7".parse().unwrap(),
            hub_address: "hub.example.org:9710".to_owned(),
            data_dir: "/data".into(),
            plots: true,
        }
    }

    #[test]
    fn the_text_shows_what_the_api_says() {
        let mut link = UplinkStatus {
            state: LinkState::Connected {
                device: "pole-7".parse().unwrap(),
                since: WallTime(0),
            },
            rtt: Some(Duration::from_millis(42)),
            rate_bps: 8_000_000,
            loss: 0.013,
            ..UplinkStatus::default()
        };
        link.refused_streams = vec![("yard".parse().unwrap(), "it belongs to pole-8".to_owned())];
        link.progress.live_bytes = 3 << 20;
        link.progress.backfill_bytes = 1 << 20;
        link.held_back = Some("the line's allowance of 50.0 GB is spent".to_owned());
        let input = Input::new("gate".parse().unwrap(), "udp://0.0.0.0:5000".to_owned());
        input.set(InputState::Waiting {
            why: "no data for 10 s".to_owned(),
        });
        let mut answer = json(
            &about(),
            &link,
            &Inputs::new(vec![input]),
            &DiskState::default(),
        );
        answer["http"] = json!("http://127.0.0.1:8081/");
        answer["streams"] = json!([{
            "name": "gate", "state": "live", "segments": 120, "bytes": 300_000_000u64,
            "last": "2026-05-01T08:00:00.000Z", "unshipped": 3, "unshipped_bytes": 7_500_000u64,
        }]);
        let text = serde_json::from_value::<Shown>(answer).unwrap().text();
        let expected = "\
device  pole-7, enrolled with the hub at hub.example.org:9710
data    /data
page    http://127.0.0.1:8081/
link    connected, round trip 42.0 ms, paced to 8.0 Mbit/s, loss 1.3 %
sent    4.0 MiB of media since the start, 75 % of it live
waits   the line's allowance of 50.0 GB is spent
        the hub refuses yard: it belongs to pole-8
input   gate from udp://0.0.0.0:5000: waiting (no data for 10 s)

STREAM  STATE  SEGMENTS        SIZE  NOT ON THE HUB          LAST
gate    live        120   286.1 MiB  3 (7.2 MiB)             2026-05-01T08:00:00.000Z
";
        assert_eq!(text, expected);
    }

    #[test]
    fn trouble_is_told() {
        let link = UplinkStatus {
            state: LinkState::Unreachable {
                why: "no answer from hub:9710".to_owned(),
            },
            ..UplinkStatus::default()
        };
        let mut answer = json(&about(), &link, &Inputs::default(), &DiskState::default());
        answer["streams"] = json!([]);
        let text = serde_json::from_value::<Shown>(answer).unwrap().text();
        assert!(
            text.contains("link    unreachable: no answer from hub:9710\n"),
            "{text}"
        );
        assert!(text.contains("no streams yet"), "{text}");
    }

    #[test]
    fn a_disk_that_fails_is_told() {
        let disk = DiskState {
            trouble: Some(DiskTrouble {
                kind: store::TroubleKind::Full,
                what: "/data/x: No space left on device".to_owned(),
                since: WallTime(0),
            }),
            memory: InMemory {
                segments: 3,
                bytes: 3 << 20,
            },
            counters: MemoryCounters::default(),
        };
        let mut answer = json(
            &about(),
            &UplinkStatus::default(),
            &Inputs::default(),
            &disk,
        );
        answer["streams"] = json!([]);
        let text = serde_json::from_value::<Shown>(answer).unwrap().text();
        let line = "disk    full: /data/x: No space left on device; 3 segments (3.0 MiB) in memory, 0 lost\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn answers_are_read_and_refused() {
        let good = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\":1}";
        assert_eq!(body(good).unwrap(), json!({ "a": 1 }));
        for bad in [
            &b""[..],
            b"HTTP/1.0 404 Not Found\r\n\r\n{}",
            b"HTTP/1.0 200 OK\r\n\r\nnot json",
            b"HTTP/1.0 200 OK\r\n{}",
        ] {
            assert!(body(bad).is_err());
        }
    }
}
