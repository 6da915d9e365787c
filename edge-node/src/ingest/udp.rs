//! MPEG-TS in datagrams: a socket of its own, read by a thread of its own, within named limits.
//!
//! The socket's thread takes only what is MPEG-TS from one sender, in order, and at most at the rate
//! allowed; what is more stays in the kernel's buffer until that drops it, which is counted. So a sender
//! that floods costs others nothing but that rate.

use std::{
    fs, io,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc, Once,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use media::access_unit::{SourceEvent, SourceWarning};
use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::RxqOvfl,
    },
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::{
    Feed, Halt, MAX_SLEEP, SourceError, SourceName,
    intake::Intake,
    live::Live,
    udp_address::{Interface, UdpAddress},
};
use crate::inputs::{Count, Input, InputState};

/// Kernel buffer asked for: four seconds of 8 Mbit/s. The kernel may grant less (`net.core.rmem_max`).
const BUFFER_BYTES: usize = 4 << 20;
/// Below this a burst overruns the socket while its reader is away for a few milliseconds.
const BUFFER_WANTED: usize = 512 << 10;
/// Longest datagram that is read, a jumbo frame's; senders use 1,316 bytes or 12 more.
const MAX_DATAGRAM: usize = 9_000;
/// TS handed on at once, and how many of these may wait: 4 MiB or four seconds of 8 Mbit/s.
const BATCH_BYTES: usize = 56 << 10;
const MAX_QUEUED: usize = 64;
/// Between two looks of the socket's thread at whether to stop, and at RTP packets that wait.
const READ_TIMEOUT: Duration = Duration::from_millis(100);
/// The rate is held over stretches of this.
const RATE_STRETCH: Duration = Duration::from_millis(100);

/// Bytes a second that are taken of one sender unless the config says otherwise: 64 Mbit/s.
pub(crate) const DEFAULT_MAX_RATE: u64 = 8_000_000;

type Piece = io::Result<Vec<u8>>;

/// Feeds datagrams until told to stop; how many bytes came.
pub(super) fn read(
    source: &SourceName,
    address: &UdpAddress,
    max_rate: u64,
    feed: &mut Feed<'_>,
) -> Result<u64, Halt> {
    let mut receiving = Receiving::start(address, max_rate, feed.input.clone())?;
    let why = "nothing has come yet".to_owned();
    feed.input.set(InputState::Waiting { why });
    let mut live = Live::begin(true, Instant::now(), feed);
    let mut told = Told::default();
    loop {
        match receiving.pieces()?.recv_timeout(MAX_SLEEP) {
            Ok(Ok(bytes)) => live.push(source, &bytes, Instant::now(), feed)?,
            Ok(Err(error)) => {
                live.finish(source, feed)?;
                return Err(SourceError::Receive(error).into());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                live.finish(source, feed)?;
                return Err(SourceError::Receive(io::ErrorKind::BrokenPipe.into()).into());
            }
        }
        live.tick(source, Instant::now(), feed)?;
        told.tell(source, live.bytes(), feed)?;
        if feed.stop.is_cancelled() {
            live.finish(source, feed)?;
            return Ok(live.bytes());
        }
    }
}

/// The socket's thread; ends, and frees the port, when this is dropped.
struct Receiving {
    pieces: Option<Receiver<Piece>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Receiving {
    fn start(address: &UdpAddress, max_rate: u64, input: Arc<Input>) -> Result<Self, SourceError> {
        let socket = open(address).map_err(SourceError::Listen)?;
        let (sender, receiver) = sync_channel(MAX_QUEUED);
        let stop = CancellationToken::new();
        let reader = Reader {
            socket,
            input,
            stop: stop.clone(),
            pieces: sender,
            intake: Intake::default(),
            dropped: 0,
            rate: Rate::new(max_rate, Instant::now()),
        };
        let span = tracing::Span::current();
        let thread = thread::Builder::new()
            .name("udp".to_owned())
            .spawn(move || span.in_scope(|| reader.run()))
            .map_err(SourceError::Open)?;
        Ok(Self {
            pieces: Some(receiver),
            stop,
            thread: Some(thread),
        })
    }

    fn pieces(&mut self) -> Result<&Receiver<Piece>, SourceError> {
        self.pieces
            .as_ref()
            .ok_or_else(|| SourceError::Receive(io::ErrorKind::NotConnected.into()))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.stop.cancel();
        // A reader that waits for room in the queue is let go.
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader {
    socket: Socket,
    input: Arc<Input>,
    stop: CancellationToken,
    pieces: SyncSender<Piece>,
    intake: Intake,
    /// As the kernel counted, over the socket's life.
    dropped: u32,
    rate: Rate,
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        while !self.stop.is_cancelled() {
            let mut batch = Vec::new();
            let result = self.fill(&mut buffer, &mut batch);
            if !batch.is_empty() && self.pieces.send(Ok(batch)).is_err() {
                return;
            }
            if let Err(error) = result {
                let _ = self.pieces.send(Err(error));
                return;
            }
        }
    }

    /// Waits for a datagram, then takes what else is there.
    fn fill(&mut self, buffer: &mut [u8], batch: &mut Vec<u8>) -> io::Result<()> {
        let mut flags = MsgFlags::empty();
        while batch.len() < BATCH_BYTES && !self.stop.is_cancelled() {
            let wait = self.rate.wait(Instant::now());
            if !wait.is_zero() {
                // What is gathered goes on first.
                if !batch.is_empty() {
                    return Ok(());
                }
                thread::sleep(wait);
            }
            match self.receive(buffer, flags) {
                Ok(Some((from, length))) => {
                    self.rate.take(length as u64);
                    let datagram = buffer.get(..length).unwrap_or_default();
                    let now = Instant::now();
                    self.intake.take(from, datagram, now, &self.input, batch);
                }
                Ok(None) => {}
                Err(Errno::EAGAIN) => {
                    self.intake.expire(Instant::now(), &self.input, batch);
                    return Ok(());
                }
                // An answer to nothing that we sent.
                Err(Errno::EINTR | Errno::ECONNREFUSED) => {}
                Err(error) => return Err(error.into()),
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
        Ok(())
    }

    fn receive(
        &mut self,
        buffer: &mut [u8],
        flags: MsgFlags,
    ) -> nix::Result<Option<(SocketAddr, usize)>> {
        let mut control = [0; 64];
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
        for told in message.cmsgs()? {
            if let ControlMessageOwned::RxqOvfl(dropped) = told {
                let more = dropped.wrapping_sub(self.dropped);
                self.dropped = dropped;
                if more > 0 {
                    self.input.add(Count::KernelDropped, u64::from(more));
                }
            }
        }
        let from = message.address.as_ref().and_then(address_of);
        Ok(from.map(|from| (from, message.bytes)))
    }
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::from(*a));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::from(*a)))
}

/// Bytes that may still be read in this stretch of time. Each datagram counts for at least a full TS
/// packet's share, so that floods of small ones end too.
#[derive(Debug)]
struct Rate {
    each_stretch: u64,
    left: u64,
    until: Instant,
}

/// What a datagram costs at least.
const LEAST_COST: u64 = 400;

impl Rate {
    fn new(per_second: u64, now: Instant) -> Self {
        let stretches = 1_000 / RATE_STRETCH.as_millis().max(1) as u64;
        let each_stretch = (per_second / stretches).max(MAX_DATAGRAM as u64);
        Self {
            each_stretch,
            left: each_stretch,
            until: now + RATE_STRETCH,
        }
    }

    /// How long to leave the socket alone.
    fn wait(&mut self, now: Instant) -> Duration {
        if now >= self.until {
            self.left = self.each_stretch;
            self.until = now + RATE_STRETCH;
        }
        if self.left > 0 {
            return Duration::ZERO;
        }
        self.until.saturating_duration_since(now)
    }

    fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes.max(LEAST_COST));
    }
}

/// Counts that were told already.
#[derive(Debug, Default)]
struct Told([u64; 4]);

impl Told {
    /// Tells what has been counted since, as warnings of a kind.
    fn tell(&mut self, source: &SourceName, offset: u64, feed: &mut Feed<'_>) -> Result<(), Halt> {
        let kinds: [(Count, &str); 4] = [
            (
                Count::KernelDropped,
                "datagrams were dropped before they were read: the sender is faster than max_bytes_per_second, or this machine is too slow",
            ),
            (
                Count::Foreign,
                "datagrams of a second sender were left out: give each stream a port of its own",
            ),
            (Count::Garbage, "datagrams were no MPEG-TS"),
            (Count::RtpLost, "RTP packets were lost on the way"),
        ];
        for (told, (count, what)) in self.0.iter_mut().zip(kinds) {
            let counted = feed.input.count(count);
            let more = counted.saturating_sub(std::mem::replace(told, counted));
            if more > 0 {
                let warning = SourceWarning {
                    offset,
                    pid: None,
                    what: format!("{more} {what}"),
                };
                feed.take(source, SourceEvent::Warning(warning))?;
            }
        }
        Ok(())
    }
}

/// Binds, joins, sizes the buffer.
fn open(address: &UdpAddress) -> io::Result<Socket> {
    let at = address.at;
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    // Asking for more than allowed is no error: the kernel gives what it may.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let granted = socket.recv_buffer_size()?;
    if granted < BUFFER_WANTED {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                granted_bytes = granted,
                "the kernel grants small UDP receive buffers: raise net.core.rmem_max to {BUFFER_BYTES} or datagrams may be dropped"
            );
        });
    }
    let ip = at.ip();
    if ip.is_multicast() {
        // Several programs may listen to one group.
        socket.set_reuse_address(true)?;
    }
    // A group's own address as the local one: other groups on that port stay out.
    socket.bind(&at.into())?;
    match ip {
        IpAddr::V4(group) if group.is_multicast() => {
            let on = match &address.interface {
                None => InterfaceIndexOrAddress::Index(0),
                Some(Interface::Address(own)) => InterfaceIndexOrAddress::Address(*own),
                Some(Interface::Name(name)) => InterfaceIndexOrAddress::Index(index_of(name)?),
            };
            socket.join_multicast_v4_n(&group, &on)?;
        }
        IpAddr::V6(group) if group.is_multicast() => {
            let index = match &address.interface {
                Some(Interface::Name(name)) => index_of(name)?,
                None | Some(Interface::Address(_)) => 0,
            };
            socket.join_multicast_v6(&group, index)?;
        }
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    setsockopt(&socket, RxqOvfl, &1)?;
    Ok(socket)
}

fn index_of(interface: &str) -> io::Result<u32> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    let unknown = |_| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no network interface {interface}"),
        )
    };
    let text = fs::read_to_string(path).map_err(unknown)?;
    text.trim()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_rate_is_held() {
        let start = Instant::now();
        let mut rate = Rate::new(1_000_000, start);
        assert_eq!(rate.wait(start), Duration::ZERO);
        rate.take(99_999);
        assert_eq!(rate.wait(start), Duration::ZERO);
        rate.take(1);
        assert_eq!(rate.wait(start), RATE_STRETCH);
        assert_eq!(rate.wait(start + RATE_STRETCH), Duration::ZERO);
        for _ in 0..250 {
            rate.take(1);
        }
        assert_ne!(
            rate.wait(start + RATE_STRETCH),
            Duration::ZERO,
            "small ones cost too"
        );
    }

    fn local(port: u16) -> UdpAddress {
        UdpAddress::parse(&format!("127.0.0.1:{port}")).unwrap()
    }

    fn free_port() -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    #[test]
    fn what_the_kernel_dropped_is_counted_and_the_port_is_free_afterwards() {
        let port = free_port();
        let input = Input::new("gate".parse().unwrap(), String::new());
        // Slower than what comes: its buffer overflows.
        let mut receiving = Receiving::start(&local(port), 2_000_000, input.clone()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut datagram = vec![0; 7 * 188];
        datagram.iter_mut().step_by(188).for_each(|b| *b = 0x47);
        let start = Instant::now();
        while input.count(Count::KernelDropped) == 0 {
            assert!(start.elapsed() < Duration::from_secs(30));
            for _ in 0..1_000 {
                let _ = sender.send_to(&datagram, ("127.0.0.1", port));
            }
            let _ = receiving.pieces().unwrap().recv_timeout(MAX_SLEEP);
        }
        assert!(
            Receiving::start(&local(port), 1, input.clone()).is_err(),
            "in use"
        );
        drop(receiving);
        let input = Input::new("gate".parse().unwrap(), String::new());
        assert!(Receiving::start(&local(port), 1, input).is_ok());
    }

    #[test]
    fn a_group_is_joined_on_an_interface() {
        let port = free_port();
        let text = format!("239.255.77.7:{port}?interface=lo");
        let address = UdpAddress::parse(&text).unwrap();
        let input = Input::new("gate".parse().unwrap(), String::new());
        let mut receiving = Receiving::start(&address, DEFAULT_MAX_RATE, input).unwrap();
        let sender = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        sender.set_multicast_if_v4(&[127, 0, 0, 1].into()).unwrap();
        let mut datagram = vec![0xff; 188];
        datagram[0] = 0x47;
        let to: SocketAddr = format!("239.255.77.7:{port}").parse().unwrap();
        sender.send_to(&datagram, &to.into()).unwrap();
        let got = receiving
            .pieces()
            .unwrap()
            .recv_timeout(Duration::from_secs(10));
        assert_eq!(got.unwrap().unwrap(), datagram);
        let nowhere = UdpAddress::parse("239.255.77.7:9?interface=nosuch0").unwrap();
        let error = open(&nowhere).unwrap_err().to_string();
        assert!(error.contains("no network interface nosuch0"), "{error}");
    }
}
