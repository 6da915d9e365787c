//! SRT's row: `srt-live-transmit` at both ends, as it is used: datagrams of 1,316 bytes (seven TS packets) from
//! an encoder beside it, and to a player beside it.

use std::{
    net::UdpSocket,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use socket2::Socket;

use super::Course;
use crate::video::{Assembler, pieces};

const DATAGRAM: usize = 1_316;
const ENCODER_PORT: u16 = 5_000;
const PLAYER_PORT: u16 = 5_001;

/// Of the sockets beside it: a key frame comes in one burst.
const BUFFER_BYTES: usize = 4 << 20;

/// The time both programs take to start and shake hands; the encoder begins then.
const START: Duration = Duration::from_secs(2);

pub(super) fn carry(course: &Course, latency_ms: u128) -> Result<()> {
    let hub = course.hub_address();
    let at_hub = course.clone();
    let (listening, ready) = std::sync::mpsc::channel();
    let _receiver = thread::spawn(move || -> Result<()> {
        at_hub.line.hub.enter()?;
        let player = socket(PLAYER_PORT)?;
        let from = format!("srt://{hub}?mode=listener&latency={latency_ms}&transtype=live");
        let to = format!("udp://127.0.0.1:{PLAYER_PORT}?sndbuf={BUFFER_BYTES}");
        let _ = listening.send(Program::start(&from, &to)?);
        let mut assembler = Assembler::new(at_hub.video, &at_hub.arrivals);
        let mut buffer = [0; 2 * DATAGRAM];
        loop {
            let len = player.recv(&mut buffer)?;
            assembler.take(buffer.get(..len).unwrap_or_default());
        }
    });
    let Ok(mut listener) = ready.recv() else {
        bail!("failed to start srt-live-transmit (Debian's srt-tools) at the hub's end");
    };
    course.line.edge.enter()?;
    let from = format!("udp://127.0.0.1:{ENCODER_PORT}?rcvbuf={BUFFER_BYTES}");
    let to = format!("srt://{hub}?mode=caller&latency={latency_ms}&transtype=live");
    let mut caller = Program::start(&from, &to)?;
    thread::sleep(START);
    let encoder = socket(0)?;
    encoder.connect(("127.0.0.1", ENCODER_PORT))?;
    course.video.play(&course.arrivals, |number, bytes| {
        for piece in pieces(number, &bytes, DATAGRAM) {
            encoder
                .send(&piece)
                .context("srt-live-transmit has ended at the edge's end")?;
        }
        Ok(())
    })?;
    // What was dropped as too late never comes: no longer than anything can be under way.
    thread::sleep(Duration::from_millis(2 * latency_ms as u64) + Duration::from_secs(1));
    listener.still_runs()?;
    caller.still_runs()
}

fn socket(port: u16) -> Result<UdpSocket> {
    let socket: Socket = UdpSocket::bind(("127.0.0.1", port))?.into();
    // Asking for more than allowed is no error: the kernel gives what it may.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    Ok(socket.into())
}

/// Ends with this value.
struct Program(Child);

impl Program {
    fn start(from: &str, to: &str) -> Result<Self> {
        let child = Command::new("srt-live-transmit")
            .args(["-loglevel:fatal", "-a:no", from, to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to run srt-live-transmit (Debian's srt-tools)")?;
        Ok(Self(child))
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("srt-live-transmit ended by itself: {status}"),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
