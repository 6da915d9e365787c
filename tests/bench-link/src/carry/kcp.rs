//! Bare KCP's row: the crate's own loop on a UDP socket, as its users run it for games ("turbo").

use std::{
    io::{self, Write},
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use kcp::Kcp;

use super::{Course, PORT};
use crate::video::{Assembler, PIECE_HEADER, pieces};

/// Packets each way; at 1,376 bytes some 1.4 MB, three times what is under way here.
const WINDOW: u16 = 1_024;
const CONVERSATION: u32 = 7;
/// A message, as large as Penstock's.
const CHUNK: usize = 16 * 1024 + PIECE_HEADER;
/// KCP's clock in turbo mode.
const TICK: Duration = Duration::from_millis(10);

pub(super) fn carry(course: &Course) -> Result<()> {
    let done = Arc::new(AtomicBool::new(false));
    let at_hub = course.clone();
    let hub_done = done.clone();
    let (listening, ready) = channel();
    let receiver = thread::spawn(move || -> Result<()> {
        at_hub.line.hub.enter()?;
        let socket = UdpSocket::bind(at_hub.hub_address())?;
        let _ = listening.send(());
        // The first datagram says who speaks.
        let mut first = [0; 2_048];
        let (_, peer) = socket.peek_from(&mut first)?;
        socket.connect(peer)?;
        let mut assembler = Assembler::new(at_hub.video, &at_hub.arrivals);
        let (_nothing, none) = channel();
        run(socket, &none, &hub_done, |message| assembler.take(message))
    });
    if ready.recv().is_err() {
        bail!("the receiver: {:?}", receiver.join());
    }
    let at_edge = course.line.clone();
    let edge_done = done.clone();
    let hub = (course.line.hub.address, PORT);
    let (outgoing, messages) = channel();
    let sender = thread::spawn(move || -> Result<()> {
        at_edge.edge.enter()?;
        let socket = UdpSocket::bind((at_edge.edge.address, 0))?;
        socket.connect(hub)?;
        run(socket, &messages, &edge_done, |_| {})
    });
    course.video.play(&course.arrivals, |number, bytes| {
        for piece in pieces(number, &bytes, CHUNK) {
            outgoing.send(piece).context("the sender has ended")?;
        }
        Ok(())
    })?;
    course.arrivals.wait(&course.video);
    done.store(true, Ordering::Relaxed);
    for thread in [sender, receiver] {
        match thread.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("a thread has died"),
        }
    }
    Ok(())
}

fn run(
    socket: UdpSocket,
    outgoing: &Receiver<Vec<u8>>,
    done: &AtomicBool,
    mut deliver: impl FnMut(&[u8]),
) -> Result<()> {
    let mut kcp = Kcp::new(CONVERSATION, Datagrams(socket.try_clone()?));
    kcp.set_nodelay(true, 10, 2, true);
    kcp.set_wndsize(WINDOW, WINDOW);
    let start = Instant::now();
    let mut message = vec![0; 2 * CHUNK];
    let mut datagram = [0; 2_048];
    let mut next = start;
    while !done.load(Ordering::Relaxed) {
        while let Ok(piece) = outgoing.try_recv() {
            kcp.send(&piece)?;
        }
        let now = Instant::now();
        kcp.update((now - start).as_millis() as u32)?;
        if now >= next {
            next = now + TICK;
        }
        // At most a millisecond, so that what the camera gives is not left lying.
        let wait = (next - now).clamp(Duration::from_micros(100), Duration::from_millis(1));
        socket.set_read_timeout(Some(wait))?;
        match socket.recv(&mut datagram) {
            Ok(len) => {
                kcp.update((Instant::now() - start).as_millis() as u32)?;
                kcp.input(datagram.get(..len).unwrap_or_default())?;
                while let Ok(len) = kcp.recv(&mut message) {
                    deliver(message.get(..len).unwrap_or_default());
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error).context("failed to read the UDP socket"),
        }
    }
    Ok(())
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
    )
}

/// KCP writes a datagram at a time.
struct Datagrams(UdpSocket);

impl Write for Datagrams {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        // What the kernel does not take is lost, as on any line.
        let _ = self.0.send(datagram);
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
