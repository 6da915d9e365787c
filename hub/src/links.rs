//! The last hour of each device's link: samples taken every ten seconds, and what
//! `GET /api/v1/devices/{name}/link` tells of them.
//!
//! What a device says of its end is its claim: it is shown, and nothing follows from it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use link::{
    downlink::{DownlinkStatus, SessionStatus},
    history::{History, SAMPLE_INTERVAL, Sample},
    view::{LinkView, StreamView},
};
use model::{DeviceName, WallTime};
use program::clock::wall_now;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Devices of which an hour is kept: some 32 MB when all are full. Further ones show how they stand now.
const MAX_HISTORIES: usize = 512;

/// The histories of all devices; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Mutex<BTreeMap<DeviceName, History>>>);

impl Links {
    /// One sample of each device that is connected.
    fn take(&self, status: &DownlinkStatus, at: WallTime, taken: Instant) {
        let mut histories = self.lock();
        histories.retain(|_, history| history.keep_hour(at));
        let connected = |name: &DeviceName| {
            let sessions = &status.sessions;
            sessions
                .binary_search_by(|session| session.device.cmp(name))
                .is_ok()
        };
        let gone = histories.iter().filter(|(name, _)| !connected(name));
        let mut gone: Vec<_> = gone
            .map(|(name, history)| (history.last().map(|sample| sample.at), name.clone()))
            .collect();
        gone.sort_by(|one, other| other.cmp(one));
        for session in &status.sessions {
            if let Some(history) = place(&mut histories, session, &mut gone) {
                history.take(session.reading(at, taken));
            }
        }
    }

    /// How a connected device's link stands.
    pub(crate) fn now(&self, session: &SessionStatus, at: WallTime, taken: Instant) -> Sample {
        let reading = session.reading(at, taken);
        let histories = self.lock();
        match histories.get(&session.device) {
            Some(history) => history.now(&reading),
            None => History::default().now(&reading),
        }
    }

    /// What the API shows of a device that is known here.
    pub(crate) fn view(&self, device: DeviceName, session: Option<&SessionStatus>) -> LinkView {
        let apart = LinkView::apart(device.clone(), self.lock().get(&device));
        let Some(session) = session else {
            return apart;
        };
        let streams = session.streams.iter().map(|stream| StreamView {
            name: stream.stream.clone(),
            live: stream.live,
            live_lag: stream.live_lag,
            backlog: stream.backlog,
            sent_bytes: stream.by_class,
        });
        LinkView {
            connected: true,
            peer: Some(session.peer),
            since_ms: Some(session.since),
            reported_ms: session.said.map(|said| said.at),
            now: Some(self.now(session, wall_now(), Instant::now())),
            streams: streams.collect(),
            ..apart
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceName, History>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a device's samples go. Where there is no room, a device that is gone makes place: the last of `gone`.
fn place<'a>(
    histories: &'a mut BTreeMap<DeviceName, History>,
    session: &SessionStatus,
    gone: &mut Vec<(Option<WallTime>, DeviceName)>,
) -> Option<&'a mut History> {
    if !histories.contains_key(&session.device) && histories.len() >= MAX_HISTORIES {
        let (_, name) = gone.pop()?;
        histories.remove(&name);
    }
    Some(histories.entry(session.device.clone()).or_default())
}

/// Takes samples until it is told to stop.
pub(crate) async fn keep(
    links: Links,
    link: watch::Receiver<DownlinkStatus>,
    stop: CancellationToken,
) {
    let mut timer = interval(SAMPLE_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let status = link.borrow().clone();
        links.take(&status, wall_now(), Instant::now());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use link::{
        downlink::{Said, StreamStatus},
        history::{ByClass, Class, LineReport, SentReport},
    };
    use store::Backlog;

    use super::*;

    const NOON: i64 = 1_777_636_800_000;

    /// A connected device with a live stream that is late by a third of a second.
    pub(crate) fn session(device: &str) -> SessionStatus {
        let mut by_class = ByClass::default();
        by_class.add(Class::Live, 900);
        let mut sent = by_class;
        sent.add(Class::Control, 100);
        SessionStatus {
            device: device.parse().unwrap(),
            peer: ([10, 0, 0, 9], 4_000).into(),
            since: WallTime(NOON),
            rtt: None,
            loss: 0.0,
            bytes_received: 0,
            clock_ahead_ms: -1_500,
            packets_recovered: 3,
            said: Some(Said {
                at: WallTime(NOON),
                line: LineReport {
                    rate_bps: 8_000_000,
                    delivery_bps: 4_000_000,
                    loss_ppm: 50_000,
                    rtt: Some(Duration::from_millis(100)),
                    queueing_delay: Duration::from_millis(5),
                    datagram_bytes: 1_400,
                },
                sent: SentReport {
                    datagrams: 10,
                    bytes: 1_100,
                    packet_bytes: 1_000,
                    resent_bytes: 20,
                    parity_bytes: 50,
                    by_class: sent,
                },
            }),
            streams: [StreamStatus {
                stream: "gate".parse().unwrap(),
                live: true,
                live_lag: Some(Duration::from_millis(333)),
                backlog: Backlog {
                    segments: 2,
                    bytes: 5_000,
                    oldest: Some(WallTime(NOON - 4_000)),
                },
                by_class,
            }]
            .into(),
        }
    }

    fn connected(sessions: impl IntoIterator<Item = SessionStatus>) -> DownlinkStatus {
        DownlinkStatus {
            sessions: sessions.into_iter().collect(),
            ..DownlinkStatus::default()
        }
    }

    #[test]
    fn a_device_keeps_its_hour_after_it_has_gone() {
        let (links, start) = (Links::default(), Instant::now());
        let pole = session("pole-7");
        let at = |s: u64| {
            (
                WallTime(NOON + 1_000 * s as i64),
                start + Duration::from_secs(s),
            )
        };
        let take = |status: &DownlinkStatus, s| links.take(status, at(s).0, at(s).1);
        take(&connected([pole.clone()]), 0);
        let mut later = pole.clone();
        let said = later.said.as_mut().unwrap();
        said.sent.bytes += 1_000_000;
        later.packets_recovered += 4;
        take(&connected([later.clone()]), 10);
        let shown = serde_json::to_string(&links.view(pole.device.clone(), Some(&later))).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["connected"], true);
        assert_eq!(shown["interval_ms"], 10_000);
        assert_eq!(shown["now"]["loss"], 0.05);
        assert_eq!(
            shown["streams"],
            serde_json::json!([{
                "name": "gate", "live": true, "live_lag_ms": 333,
                "backlog": { "segments": 2, "bytes": 5_000, "oldest_ms": NOON - 4_000 },
                "sent_bytes": { "control": 0, "event": 0, "live": 900, "want": 0, "backfill": 0 },
            }])
        );
        let samples = shown["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[1]["recovered"], 4);
        assert_eq!(samples[1]["sent_bps"], 800_000);
        assert_eq!(samples[1]["live_lag_ms"], 333.0);

        take(&connected([]), 3_600);
        let gone = serde_json::to_value(links.view(pole.device.clone(), None)).unwrap();
        assert_eq!(
            (&gone["connected"], &gone["now"]),
            (&false.into(), &().into())
        );
        assert_eq!(gone["samples"].as_array().unwrap().len(), 2);
        take(&connected([]), 3_611);
        let gone = serde_json::to_value(links.view(pole.device, None)).unwrap();
        assert_eq!(gone["samples"], serde_json::json!([]));
        assert!(links.lock().is_empty());
    }

    #[test]
    fn so_many_devices_have_a_history_and_who_has_gone_makes_place() {
        let (links, start) = (Links::default(), Instant::now());
        let name = |n: usize| format!("pole-{n:05}");
        let all = connected((0..MAX_HISTORIES + 9).map(|n| session(&name(n))));
        links.take(&all, WallTime(NOON), start);
        assert_eq!(links.lock().len(), MAX_HISTORIES);
        let last: DeviceName = name(MAX_HISTORIES + 8).parse().unwrap();
        assert!(!links.lock().contains_key(&last));
        let fewer = connected(all.sessions.iter().skip(5).cloned());
        links.take(&fewer, WallTime(NOON + 10_000), start);
        assert_eq!(links.lock().len(), MAX_HISTORIES);
        assert!(!links.lock().contains_key(&name(0).parse().unwrap()));
        let got: DeviceName = name(MAX_HISTORIES + 4).parse().unwrap();
        assert!(links.lock().contains_key(&got));
        assert!(!links.lock().contains_key(&last), "five places for nine");
    }
}
