//! What the kernel dropped since a socket's receive buffer was full: the column `drops` of `/proc/net/udp`, looked
//! at now and then. (The socket's own count, SO_RXQ_OVFL, comes with each datagram, and `quinn-udp` leaves it out.)
//! Nothing is known of it on systems other than Linux.

use std::time::{Duration, Instant};

use crate::socket::UdpSocket;

/// The table is read this often at most; reading it takes the kernel up to a millisecond.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A warning is written this often at most.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Watches one socket.
pub(crate) struct DropWatch {
    /// The socket's inode, which is how its line is found.
    inode: Option<u64>,
    look_at: Instant,
    tally: Tally,
}

impl DropWatch {
    pub(crate) fn new(socket: &UdpSocket, now: Instant) -> Self {
        Self {
            inode: socket.inode(),
            look_at: now + LOOK_INTERVAL,
            tally: Tally::default(),
        }
    }

    /// Looks if it is time, counts, and warns.
    pub(crate) fn look(&mut self, now: Instant, socket: &UdpSocket) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_INTERVAL;
        let Some(total) = self.inode.and_then(dropped) else {
            return;
        };
        let (new, warn) = self.tally.take(now, total);
        socket.counters().count_kernel_drops(new);
        if let Some(datagrams) = warn {
            tracing::warn!(
                datagrams,
                source = "/proc/net/udp",
                "the kernel has dropped datagrams, since the link's receive buffer was full: raise net.core.rmem_max to {} and restart, or give this program more of the processor",
                crate::socket::BUFFER_BYTES
            );
        }
    }
}

/// Datagrams that the kernel has dropped for this socket so far, modulo 2^32.
fn dropped(inode: u64) -> Option<u32> {
    ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| drops_of(&table, inode))
}

/// The last column in the line of a socket (Linux, `net/ipv4/udp.c`, `udp4_format_sock`).
fn drops_of(table: &str, inode: u64) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(9);
        if fields.next()?.parse() != Ok(inode) {
            return None;
        }
        fields.last()?.parse().ok()
    })
}

#[derive(Debug, Default)]
struct Tally {
    total: u32,
    untold: u64,
    told: Option<Instant>,
}

impl Tally {
    /// What is new, and what to warn of: all since the last warning.
    fn take(&mut self, now: Instant, total: u32) -> (u64, Option<u64>) {
        let new = u64::from(total.wrapping_sub(self.total));
        self.total = total;
        self.untold += new;
        let due = self.told.is_none_or(|told| now >= told + WARN_INTERVAL);
        if !due || self.untold == 0 {
            return (new, None);
        }
        self.told = Some(now);
        (new, Some(std::mem::take(&mut self.untold)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_own_line() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n 2044: 0100007F:B259 0100007F:A0F7 01 00000000:00000000 00:00000000 00000000     0        0 1873366 2 00000000bebd7c47 0       \n 2382: 0100007F:B3AB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1829620 2 000000002c0bf028 4294967295       \n";
        assert_eq!(drops_of(table, 1_829_620), Some(u32::MAX));
        assert_eq!(drops_of(table, 1_873_366), Some(0));
        assert_eq!(drops_of(table, 7), None);
        assert_eq!(drops_of("", 7), None);
        assert_eq!(drops_of("head\n 1: 2 3", 3), None);
    }

    #[test]
    fn warns_once_a_minute_with_all_since() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tally = Tally::default();
        assert_eq!(tally.take(at(0), 0), (0, None));
        assert_eq!(tally.take(at(5), 10), (10, Some(10)));
        assert_eq!(tally.take(at(10), 15), (5, None));
        assert_eq!(tally.take(at(64), 16), (1, None));
        assert_eq!(tally.take(at(65), 16), (0, Some(6)));
        assert_eq!(tally.take(at(200), 16), (0, None));
        assert_eq!(
            tally.take(at(205), 15),
            (u64::from(u32::MAX), Some(u64::from(u32::MAX))),
            "the count has wrapped"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_buffer_costs_is_counted() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let start = Instant::now();
            let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let to = socket.local_addr().unwrap();
            let mut watch = DropWatch::new(&socket, start);
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            // Far more than the buffer holds, whatever the kernel counts for each.
            let sent = 40_000;
            for _ in 0..sent {
                sender.send_to(&[0; 1_200], to).unwrap();
            }
            watch.look(start, &socket);
            assert_eq!(socket.counters().kernel_drops(), 0, "not looked yet");
            watch.look(start + LOOK_INTERVAL, &socket);
            let dropped = socket.counters().kernel_drops();
            let mut received = 0;
            let mut buffer = socket.recv_buffer();
            while received + dropped < sent {
                socket
                    .recv(&mut buffer, |_, _| received += 1)
                    .await
                    .unwrap();
            }
            assert!(
                dropped > 0 && received + dropped == sent,
                "{dropped} {received}"
            );
        });
    }
}
