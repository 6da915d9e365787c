//! One row of the table: the video over the line by one transport.

mod kcp;
mod penstock;
mod srt;
mod tcp;

use std::{net::SocketAddr, sync::Arc, thread};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    line::{Line, Traffic},
    video::{Arrivals, Verdict, Video},
};

pub use penstock::{Session, SessionNumbers};
pub use tcp::{receiver as tcp_receiver, sender as tcp_sender};

/// Where the hub's end listens.
pub const PORT: u16 = 9710;

/// Who carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// A `link` session, live channel.
    Penstock,
    /// The kernel's TCP with its congestion control `cubic`.
    TcpCubic,
    /// The same with `bbr`.
    TcpBbr,
    /// `srt-live-transmit` at both ends, latency four round trips.
    Srt,
    /// KCP without anything around it: no delay, 10 ms, fast resend at 2, no congestion control.
    Kcp,
}

/// The line, what is carried over it, and what came of it.
#[derive(Clone)]
pub struct Course {
    pub line: Arc<Line>,
    pub video: Video,
    pub arrivals: Arc<Arrivals>,
}

impl Course {
    pub fn hub_address(&self) -> SocketAddr {
        (self.line.hub.address, PORT).into()
    }
}

/// A row as one line of JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    verdict: Verdict,
    media_bytes: u64,
    /// IP bytes that the edge's end gave to the line after the warm-up, per byte of media.
    overhead: f64,
    traffic: Traffic,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionNumbers>,
}

/// Carries the video; returns when all of it is there or too late to count.
pub fn carry(line: Line, row: Row, video: Video, srt_latency_ms: u128) -> Result<Report> {
    let course = Course {
        line: Arc::new(line),
        video,
        arrivals: Arc::default(),
    };
    let before = mark_after_warm_up(&course);
    let session = match row {
        Row::Penstock => penstock::carry(&course)?,
        Row::TcpCubic => tcp::carry(&course, "cubic").map(|()| None)?,
        Row::TcpBbr => tcp::carry(&course, "bbr").map(|()| None)?,
        Row::Srt => srt::carry(&course, srt_latency_ms).map(|()| None)?,
        Row::Kcp => kcp::carry(&course).map(|()| None)?,
    };
    let Ok(before) = before.join() else {
        bail!("the thread that counts has died");
    };
    let traffic = course.line.traffic();
    let bytes = traffic.edge_to_hub.bytes_in - before.edge_to_hub.bytes_in;
    Ok(Report {
        verdict: course.arrivals.verdict(&video),
        media_bytes: video.media_bytes(),
        overhead: bytes as f64 / video.media_bytes() as f64,
        traffic,
        session,
    })
}

/// What the line had counted as the first access unit that counts was due.
fn mark_after_warm_up(course: &Course) -> thread::JoinHandle<Traffic> {
    let course = course.clone();
    thread::spawn(move || {
        course.arrivals.wait_for_warm_up(&course.video);
        course.line.traffic()
    })
}
