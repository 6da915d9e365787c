//! A link as JSON shows it: a hub's `GET /api/v1/devices/{name}/link` and an edge's `GET /api/v1/link` have the
//! same words. Values only: each program fills in what it knows, and the rest is `null`.

use std::{net::SocketAddr, time::Duration};

use model::{DeviceName, StreamName, WallTime};
use serde::Serialize;
use store::Backlog;

use crate::history::{ByClass, History, SAMPLE_INTERVAL, Sample, backlog, by_class};

/// How a link stands, and its last hour.
#[derive(Debug, Serialize)]
pub struct LinkView {
    pub device: DeviceName,
    pub connected: bool,
    /// The other end, and when the session with it began.
    pub peer: Option<SocketAddr>,
    pub since_ms: Option<WallTime>,
    /// Hub: when the device last told of its end.
    pub reported_ms: Option<WallTime>,
    /// The last ten seconds.
    pub now: Option<Sample>,
    pub streams: Vec<StreamView>,
    /// Between two samples.
    pub interval_ms: u64,
    /// Oldest first.
    pub samples: Vec<Sample>,
}

/// A stream's part in it.
#[derive(Debug, Serialize)]
pub struct StreamView {
    pub name: StreamName,
    pub live: bool,
    /// Hub: how late live media was there.
    #[serde(rename = "live_lag_ms", serialize_with = "whole_ms")]
    pub live_lag: Option<Duration>,
    #[serde(serialize_with = "backlog")]
    pub backlog: Backlog,
    /// Media bytes sent since the session began, by class.
    #[serde(serialize_with = "by_class")]
    pub sent_bytes: ByClass,
}

impl LinkView {
    /// Of a device with no session.
    pub fn apart(device: DeviceName, history: Option<&History>) -> Self {
        let samples = history.map(|history| history.samples().copied().collect());
        Self {
            device,
            connected: false,
            peer: None,
            since_ms: None,
            reported_ms: None,
            now: None,
            streams: Vec::new(),
            interval_ms: u64::try_from(SAMPLE_INTERVAL.as_millis()).unwrap_or(u64::MAX),
            samples: samples.unwrap_or_default(),
        }
    }
}

fn whole_ms<S: serde::Serializer>(
    lag: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))
        .serialize(serializer)
}
