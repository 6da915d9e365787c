//! Several flows on one line, each with as much to send as it takes: who gets what share of it.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use link_proto::Channel;
use serde::Serialize;

use crate::{
    carry::{PORT, Session, tcp_receiver, tcp_sender},
    line::{Line, Traffic},
};

/// A chunk of backfill, or what is written to TCP at one go.
const CHUNK: usize = 16 * 1024;

/// The flows find their rate first; not counted.
const SETTLE: Duration = Duration::from_secs(10);

/// One saturating flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Flow {
    /// A `link` session that backfills: the bulk channel.
    Penstock,
    TcpCubic,
    TcpBbr,
}

/// What one flow got.
#[derive(Debug, Serialize)]
pub struct Got {
    flow: String,
    mbps: f64,
    /// Of all that was received in the time that counts.
    share: f64,
    /// The lowest and the highest share in ten seconds.
    lowest: f64,
    highest: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    flows: Vec<Got>,
    traffic: Traffic,
}

/// Runs the flows beside each other, all from the edge's end to the hub's.
pub fn share(line: Line, flows: &[Flow], seconds: u32) -> Result<Report> {
    ensure!(flows.len() > 1, "sharing needs two flows");
    let line = Arc::new(line);
    let received: Vec<Arc<AtomicU64>> = flows.iter().map(|_| Arc::default()).collect();
    let mut sessions = Vec::new();
    for (at, (flow, received)) in flows.iter().zip(&received).enumerate() {
        let port = PORT + at as u16;
        match flow {
            Flow::Penstock => sessions.push(backfill(&line, port, received.clone())),
            Flow::TcpCubic => download(&line, port, "cubic", received.clone())?,
            Flow::TcpBbr => download(&line, port, "bbr", received.clone())?,
        }
    }
    thread::sleep(SETTLE);
    let read = || -> Vec<u64> {
        let now = received.iter().map(|bytes| bytes.load(Ordering::Relaxed));
        now.collect()
    };
    let mut seen = vec![read()];
    for _ in 0..seconds.div_ceil(10) {
        thread::sleep(Duration::from_secs(10));
        seen.push(read());
    }
    let traffic = line.traffic();
    Ok(Report {
        flows: flows
            .iter()
            .enumerate()
            .map(|(at, flow)| got(*flow, at, &seen))
            .collect(),
        traffic,
    })
}

fn got(flow: Flow, at: usize, seen: &[Vec<u64>]) -> Got {
    let share = |from: &[u64], to: &[u64]| {
        let each: Vec<u64> = from.iter().zip(to).map(|(from, to)| to - from).collect();
        let own = each.get(at).copied().unwrap_or_default() as f64;
        (own, own / (each.iter().sum::<u64>() as f64).max(1.0))
    };
    let (first, last) = (seen.first(), seen.last());
    let (bytes, all) = first.zip(last).map_or((0.0, 0.0), |(f, l)| share(f, l));
    let tens: Vec<f64> = seen
        .windows(2)
        .filter_map(|pair| Some(share(pair.first()?, pair.get(1)?).1))
        .collect();
    let name = flow.to_possible_value();
    Got {
        flow: name.map_or_else(String::new, |name| name.get_name().to_owned()),
        mbps: bytes * 8.0 / 1e6 / (10.0 * tens.len() as f64),
        share: all,
        lowest: tens.iter().copied().fold(1.0, f64::min),
        highest: tens.iter().copied().fold(0.0, f64::max),
    }
}

/// Ends with the program.
fn backfill(line: &Arc<Line>, port: u16, received: Arc<AtomicU64>) -> Session {
    let session = Session::open(line, port, move |_, message| {
        received.fetch_add(message.len() as u64, Ordering::Relaxed);
    });
    let outgoing = session.outgoing.clone();
    thread::spawn(move || {
        let chunk = bytes::Bytes::from(vec![7; CHUNK]);
        while outgoing
            .blocking_send((Channel::Bulk, chunk.clone()))
            .is_ok()
        {}
    });
    session
}

/// Ends with the program.
fn download(
    line: &Arc<Line>,
    port: u16,
    congestion: &'static str,
    received: Arc<AtomicU64>,
) -> Result<()> {
    let address = SocketAddr::from((line.hub.address, port));
    let (at_hub, at_edge) = (line.clone(), line.clone());
    let (listening, ready) = std::sync::mpsc::channel();
    thread::spawn(move || -> Result<()> {
        let listener = tcp_receiver(&at_hub, address)?;
        let _ = listening.send(());
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 4 * CHUNK];
        loop {
            let len = stream.read(&mut buffer)?;
            received.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    ensure!(ready.recv().is_ok(), "failed to listen on TCP {address}");
    let (connected, done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut stream = match tcp_sender(&at_edge, address, congestion) {
            Ok(stream) => stream,
            Err(error) => return drop(connected.send(Err(error))),
        };
        let _ = connected.send(Ok(()));
        while stream.write_all(&[7; CHUNK]).is_ok() {}
    });
    done.recv()?
}
