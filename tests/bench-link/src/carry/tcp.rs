//! The rows of the kernel's TCP: each access unit written as it is there, with number and length before it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::Course;
use crate::{
    line::Line,
    video::{Assembler, WARM_UP_SECONDS},
};

/// A connection is tried for so long: a lossy line takes several handshakes.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Listens at the hub's end. The thread that calls this stays there.
pub fn receiver(line: &Line, address: SocketAddr) -> Result<TcpListener> {
    line.hub.enter()?;
    TcpListener::bind(address).with_context(|| format!("failed to listen on TCP {address}"))
}

/// Connects from the edge's end, with a congestion control. The thread that calls this stays there.
pub fn sender(line: &Line, to: SocketAddr, congestion: &str) -> Result<TcpStream> {
    line.edge.enter()?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket
        .set_tcp_congestion(congestion.as_bytes())
        .with_context(|| format!("this kernel has no TCP congestion control {congestion:?}"))?;
    socket.set_tcp_nodelay(true)?;
    let since = Instant::now();
    loop {
        match socket.connect(&to.into()) {
            Ok(()) => return Ok(socket.into()),
            Err(error) if since.elapsed() > CONNECT_LIMIT => {
                return Err(error).with_context(|| format!("failed to connect to {to}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

pub(super) fn carry(course: &Course, congestion: &str) -> Result<()> {
    let at_hub = course.clone();
    let (listening, ready) = std::sync::mpsc::channel();
    let receiver = thread::spawn(move || -> Result<()> {
        let listener = receiver(&at_hub.line, at_hub.hub_address())?;
        let _ = listening.send(());
        let (stream, _) = listener.accept()?;
        receive(&at_hub, stream)
    });
    if ready.recv().is_err() {
        bail!("the receiver: {:?}", receiver.join());
    }
    let mut stream = sender(&course.line, course.hub_address(), congestion)?;
    let at_edge = course.clone();
    // A line that does not carry the video blocks its writer: nobody waits for that. Both threads end with the
    // program; what they did not carry shows as access units that are missing.
    let writer = thread::spawn(move || {
        at_edge.video.play(&at_edge.arrivals, |number, bytes| {
            let mut head = number.to_be_bytes().to_vec();
            head.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            head.extend_from_slice(&bytes);
            Ok(stream.write_all(&head)?)
        })
    });
    let length = Duration::from_secs(1) * (course.video.seconds + WARM_UP_SECONDS);
    let end = Instant::now() + length;
    while !writer.is_finished() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    course.arrivals.wait(&course.video);
    Ok(())
}

fn receive(course: &Course, mut stream: TcpStream) -> Result<()> {
    let assembler = Assembler::new(course.video, &course.arrivals);
    loop {
        let (mut number, mut len) = ([0; 4], [0; 4]);
        stream.read_exact(&mut number)?;
        stream.read_exact(&mut len)?;
        let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut bytes)?;
        assembler.whole(u32::from_be_bytes(number), &bytes);
    }
}
