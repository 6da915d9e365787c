//! One UDP socket for many datagrams at once: offloads (GSO, GRO) where the kernel has them, single sends
//! where a device refuses them, buffers sized and checked. No protocol here.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

/// Kernel buffers asked for, each way: 130 ms of 500 Mbit/s. The kernel may grant less (`net.core.rmem_max`,
/// `net.core.wmem_max`).
pub(crate) const BUFFER_BYTES: usize = 8 << 20;

/// Below this a burst of video overruns the socket while its reader is away for a few milliseconds.
const BUFFER_WANTED: usize = 1 << 20;

/// The largest datagram of the link, on any path (see link-proto's datagrams), with room to see that one is
/// too large.
const DATAGRAM_BYTES: usize = 1_500;

/// Datagrams taken at one go before the loop does something else; a batch is never cut.
const MAX_DATAGRAMS_PER_WAKE_UP: usize = 512;

/// A bound UDP socket with its offload state.
pub(crate) struct UdpSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    counters: Arc<SocketCounters>,
}

/// What the socket counted, for whoever publishes it.
#[derive(Debug, Default)]
pub(crate) struct SocketCounters {
    gso_refused: AtomicU64,
    kernel_drops: AtomicU64,
}

impl SocketCounters {
    /// Batches that the device refused to cut into datagrams, sent singly instead. After the first the others
    /// are not tried as batches.
    pub(crate) fn gso_refused(&self) -> u64 {
        self.gso_refused.load(Relaxed)
    }

    /// Datagrams that the kernel dropped, since the receive buffer was full.
    pub(crate) fn kernel_drops(&self) -> u64 {
        self.kernel_drops.load(Relaxed)
    }

    pub(crate) fn count_kernel_drops(&self, datagrams: u64) {
        self.kernel_drops.fetch_add(datagrams, Relaxed);
    }
}

/// Room for the datagrams of one `recv`.
pub(crate) struct RecvBuffer {
    bytes: Vec<u8>,
    meta: Vec<RecvMeta>,
    /// Bytes for each entry: GRO packs several datagrams into one.
    entry: usize,
}

impl UdpSocket {
    /// Binds; warns where the kernel grants buffers too small for video.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        socket.set_nonblocking(true)?;
        // Asking for more than allowed is no error: the kernel gives what it may.
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
        // With CAP_NET_ADMIN the limit can be passed: the buffer is what a flood has to fill first.
        #[cfg(target_os = "linux")]
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
        socket.bind(&address.into())?;
        warn_if_small("receive", "net.core.rmem_max", socket.recv_buffer_size()?);
        warn_if_small("send", "net.core.wmem_max", socket.send_buffer_size()?);
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        Ok(Self {
            io,
            state,
            counters: Arc::default(),
        })
    }

    pub(crate) fn counters(&self) -> &Arc<SocketCounters> {
        &self.counters
    }

    /// By which the kernel's tables name this socket.
    pub(crate) fn inode(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        return rustix::fs::fstat(&self.io).ok().map(|stat| stat.st_ino);
        #[cfg(not(target_os = "linux"))]
        None
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// How many datagrams of one size the kernel takes in one call.
    pub(crate) fn max_batch(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// A buffer that fits this socket's offloads.
    pub(crate) fn recv_buffer(&self) -> RecvBuffer {
        let entry = DATAGRAM_BYTES * self.state.gro_segments();
        RecvBuffer {
            bytes: vec![0; entry * BATCH_SIZE],
            meta: vec![RecvMeta::default(); BATCH_SIZE],
            entry,
        }
    }

    /// Sends datagrams to one peer: all of `segment_size` but the last, or a single one. An error says that
    /// they are lost, as on any network; the link's own feedback deals with that.
    pub(crate) async fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let offloads = self.max_batch() > 1;
        let sent = self.send_as_is(to, contents, segment_size).await;
        match (sent, segment_size) {
            // A device that refuses segmentation offload (EIO, EINVAL) drops the whole batch, and quinn-udp
            // turns the offload off only for later ones.
            (Err(error), Some(size)) if offloads && self.max_batch() == 1 => {
                tracing::info!(%error, "the network device refuses to cut batches into datagrams (GSO): they are sent one by one from now on, which costs processor time");
                self.counters.gso_refused.fetch_add(1, Relaxed);
                for datagram in contents.chunks(size.max(1)) {
                    self.send_as_is(to, datagram, None).await?;
                }
                Ok(())
            }
            (sent, _) => sent,
        }
    }

    async fn send_as_is(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.io
            .async_io(Interest::WRITABLE, || {
                self.state.try_send((&self.io).into(), &transmit)
            })
            .await
    }

    /// Waits for datagrams, takes what is there up to a limit, and hands each to `each` with its sender.
    pub(crate) async fn recv(
        &self,
        buffer: &mut RecvBuffer,
        mut each: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let count = self
            .io
            .async_io(Interest::READABLE, || self.recv_batch(buffer))
            .await?;
        let mut taken = buffer.each(count, &mut each);
        // A flood is drained many batches at a time, or the loop's own work would be done for each of them.
        while taken < MAX_DATAGRAMS_PER_WAKE_UP {
            let more = self
                .io
                .try_io(Interest::READABLE, || self.recv_batch(buffer));
            match more {
                Ok(count) => taken += buffer.each(count, &mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn recv_batch(&self, buffer: &mut RecvBuffer) -> io::Result<usize> {
        let RecvBuffer { bytes, meta, entry } = buffer;
        let mut slices: Vec<IoSliceMut<'_>> =
            bytes.chunks_mut(*entry).map(IoSliceMut::new).collect();
        self.state.recv((&self.io).into(), &mut slices, meta)
    }
}

/// What the kernel grants may be less than what was asked for. (Linux grants and tells twice that, for its own
/// overhead.)
fn warn_if_small(which: &str, limit: &str, granted_bytes: usize) {
    if granted_bytes < BUFFER_WANTED {
        tracing::warn!(
            granted_bytes,
            "the kernel grants a small UDP {which} buffer: raise {limit} to {BUFFER_BYTES} (sysctl -w {limit}={BUFFER_BYTES}), or datagrams may be dropped"
        );
    }
}

impl RecvBuffer {
    /// Hands out the datagrams of `count` entries; gives how many there were.
    fn each(&self, count: usize, each: &mut impl FnMut(SocketAddr, &[u8])) -> usize {
        let mut datagrams = 0;
        for (entry, meta) in self.bytes.chunks(self.entry).zip(&self.meta).take(count) {
            let packed = entry.get(..meta.len).unwrap_or_default();
            for datagram in packed.chunks(meta.stride.max(1)) {
                each(meta.addr, datagram);
                datagrams += 1;
            }
        }
        datagrams.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn batches_arrive_datagram_by_datagram() {
        block_on(async {
            let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let batch = a.max_batch().min(5);
            let contents: Vec<u8> = (0..batch).flat_map(|i| [i as u8; 1_200]).collect();
            a.send(b.local_addr().unwrap(), &contents, Some(1_200))
                .await
                .unwrap();
            a.send(b.local_addr().unwrap(), b"single", None)
                .await
                .unwrap();
            let mut got = Vec::new();
            let mut buffer = b.recv_buffer();
            while got.last().map(Vec::as_slice) != Some(b"single") {
                b.recv(&mut buffer, |from, datagram| {
                    assert_eq!(from, a.local_addr().unwrap());
                    got.push(datagram.to_vec());
                })
                .await
                .unwrap();
            }
            assert_eq!(got.len(), batch + 1);
            for (i, datagram) in got.iter().take(batch).enumerate() {
                assert_eq!(datagram, &vec![i as u8; 1_200]);
            }
        });
    }

    /// More datagrams than the kernel cuts a batch into (UDP_MAX_SEGMENTS, 128 at most) is refused as a device does
    /// that can't cut any: EINVAL, and nothing sent.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_batch_that_is_refused_goes_out_singly_and_so_do_later_ones() {
        block_on(async {
            let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            assert!(a.max_batch() > 1);
            let to = b.local_addr().unwrap();
            let contents: Vec<u8> = (0..200).flat_map(|i| [i; 20]).collect();
            a.send(to, &contents, Some(20)).await.unwrap();
            assert_eq!((a.max_batch(), a.counters().gso_refused()), (1, 1));
            a.send(to, b"single", None).await.unwrap();
            let mut got = Vec::new();
            let mut buffer = b.recv_buffer();
            while got.last().map(Vec::as_slice) != Some(b"single") {
                b.recv(&mut buffer, |_, datagram| got.push(datagram.to_vec()))
                    .await
                    .unwrap();
            }
            got.pop();
            assert_eq!(got.concat(), contents);
            assert_eq!(got.len(), 200);
            assert_eq!(a.counters().gso_refused(), 1, "not tried again");
        });
    }

    #[test]
    fn a_bound_port_is_refused() {
        block_on(async {
            let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let again = UdpSocket::bind(a.local_addr().unwrap());
            assert_eq!(again.err().unwrap().kind(), io::ErrorKind::AddrInUse);
        });
    }
}
