//! Penstock's own row: bare sessions of `link`, an access unit in chunks of 16 KiB on the live channel.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use link::{
    KeyPair,
    bare::{self, Bare},
};
use link_proto::{Channel, SessionStats};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Course, PORT};
use crate::{
    line::Line,
    video::{Assembler, PIECE_HEADER, pieces},
};

/// An application's chunk, as architecture has it, with our header.
const CHUNK: usize = 16 * 1024 + PIECE_HEADER;

/// Messages that wait between the camera and the session's loop.
const MAX_WAITING: usize = 1_024;

/// What the edge's session said of itself at its end.
#[derive(Debug, Serialize)]
pub struct SessionNumbers {
    rtt_ms: Option<f64>,
    rate_mbps: f64,
    loss: f32,
    packets_sent: u64,
    packets_resent: u64,
    /// How often its channels were renewed after a silence; what was under way then is lost to this bench.
    renewals: u32,
}

impl From<SessionStats> for SessionNumbers {
    fn from(stats: SessionStats) -> Self {
        Self {
            rtt_ms: stats.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            rate_mbps: stats.rate_bps as f64 / 1e6,
            loss: stats.loss,
            packets_sent: stats.packets_sent,
            packets_resent: stats.packets_resent,
            renewals: stats.generation,
        }
    }
}

/// A link over the line: an edge's thread and a hub's, each at its end.
pub struct Session {
    pub outgoing: mpsc::Sender<(Channel, Bytes)>,
    stop: CancellationToken,
    edge: thread::JoinHandle<Result<Option<SessionStats>>>,
    hub: thread::JoinHandle<Result<Option<SessionStats>>>,
}

impl Session {
    /// Starts both; `deliver` is called at the hub's end with each message.
    pub fn open(
        line: &Arc<Line>,
        port: u16,
        deliver: impl FnMut(Channel, Bytes) + Send + 'static,
    ) -> Self {
        let key = KeyPair::generate();
        let hub_key = key.public;
        let stop = CancellationToken::new();
        let (outgoing, messages) = mpsc::channel(MAX_WAITING);
        let (silent, nothing) = mpsc::channel(1);
        let (at_hub, at_edge) = (line.clone(), line.clone());
        let (hub_stop, edge_stop) = (stop.clone(), stop.clone());
        let address = (line.hub.address, port).into();
        let hub = thread::spawn(move || {
            at_hub.hub.enter()?;
            // Kept until the end: the hub has nothing to say.
            let _silent = silent;
            let bare = Bare {
                outgoing: nothing,
                deliver,
                stop: hub_stop,
            };
            Ok(runtime()?.block_on(bare::hub(address, &key, bare))?)
        });
        let edge = thread::spawn(move || {
            at_edge.edge.enter()?;
            let bare = Bare {
                outgoing: messages,
                deliver: |_, _| {},
                stop: edge_stop,
            };
            let key = KeyPair::generate();
            Ok(runtime()?.block_on(bare::edge(address, hub_key, &key, bare))?)
        });
        Self {
            outgoing,
            stop,
            edge,
            hub,
        }
    }

    /// Ends both; the edge's last numbers.
    pub fn close(self) -> Result<Option<SessionStats>> {
        // The receiver's end lasts a little longer, or its silence would be the last thing seen.
        thread::sleep(Duration::from_millis(100));
        self.stop.cancel();
        let (Ok(edge), Ok(hub)) = (self.edge.join(), self.hub.join()) else {
            bail!("a thread of the link has died");
        };
        hub.context("hub's end")?;
        edge.context("edge's end")
    }
}

pub(super) fn carry(course: &Course) -> Result<Option<SessionNumbers>> {
    let (video, arrivals) = (course.video, course.arrivals.clone());
    let (deliver, delivered) = std::sync::mpsc::channel::<Bytes>();
    let receiver = thread::spawn(move || {
        let mut assembler = Assembler::new(video, &arrivals);
        delivered.iter().for_each(|piece| assembler.take(&piece));
    });
    let session = Session::open(&course.line, PORT, move |_, message| {
        // The receiver lasts as long as this closure.
        let _ = deliver.send(message);
    });
    let played = video.play(&course.arrivals, |number, bytes| {
        for piece in pieces(number, &bytes, CHUNK) {
            session
                .outgoing
                .blocking_send((Channel::Live, piece.into()))
                .context("the edge's end has ended")?;
        }
        Ok(())
    });
    if played.is_ok() {
        course.arrivals.wait(&video);
    }
    let stats = session.close()?;
    played?;
    let _ = receiver.join();
    Ok(stats.map(SessionNumbers::from))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start a runtime")
}
