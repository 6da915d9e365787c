//! A UDP line between edge and hub that a test can cut.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// Forwards datagrams between any number of edges and one hub, one by one, unchanged.
pub struct Line {
    address: SocketAddr,
    whole: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    forwarded: Arc<AtomicU64>,
    captured: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Datagrams of edges that a line remembers: the first ones, handshakes among them, and the newest ones.
const MAX_CAPTURED: usize = 512;

impl Line {
    /// A whole line to the hub's link port.
    pub fn to(hub: SocketAddr) -> Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
        front.set_read_timeout(Some(Duration::from_millis(100)))?;
        let line = Self {
            address: front.local_addr()?,
            whole: Arc::new(AtomicBool::new(true)),
            stop: Arc::new(AtomicBool::new(false)),
            forwarded: Arc::new(AtomicU64::new(0)),
            captured: Arc::default(),
        };
        let (whole, stop, forwarded, captured) = (
            line.whole.clone(),
            line.stop.clone(),
            line.forwarded.clone(),
            line.captured.clone(),
        );
        thread::spawn(move || {
            let backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>> = Mutex::new(HashMap::new());
            let mut buffer = [0u8; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = front.recv_from(&mut buffer) else {
                    continue;
                };
                if !whole.load(Ordering::Relaxed) {
                    continue;
                }
                let mut backs = backs.lock().unwrap_or_else(PoisonError::into_inner);
                let back = match backs.get(&from) {
                    Some(back) => back.clone(),
                    None => {
                        let Ok(back) = open_back(hub, from, &front, &whole, &stop) else {
                            continue;
                        };
                        backs.insert(from, back.clone());
                        back
                    }
                };
                if back.send(&buffer[..n]).is_ok() {
                    let count = forwarded.fetch_add(1, Ordering::Relaxed) as usize;
                    let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                    if captured.len() < MAX_CAPTURED {
                        captured.push(buffer[..n].to_vec());
                    } else {
                        let newer = MAX_CAPTURED / 2 + count % (MAX_CAPTURED / 2);
                        captured[newer] = buffer[..n].to_vec();
                    }
                }
            }
        });
        Ok(line)
    }

    /// Where the edge sends to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing passes any more, either way.
    pub fn cut(&self) {
        self.whole.store(false, Ordering::Relaxed);
    }

    /// All passes again.
    pub fn mend(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    /// Datagrams that were seen to go from edges to the hub.
    pub fn captured(&self) -> Vec<Vec<u8>> {
        self.captured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Datagrams that went from edges to the hub.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

fn open_back(
    hub: SocketAddr,
    edge: SocketAddr,
    front: &Arc<UdpSocket>,
    whole: &Arc<AtomicBool>,
    stop: &Arc<AtomicBool>,
) -> Result<Arc<UdpSocket>> {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
    back.connect(hub)?;
    back.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (reader, front, whole, stop) = (back.clone(), front.clone(), whole.clone(), stop.clone());
    thread::spawn(move || {
        let mut buffer = [0u8; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(n) = reader.recv(&mut buffer)
                && whole.load(Ordering::Relaxed)
            {
                let _ = front.send_to(&buffer[..n], edge);
            }
        }
    });
    Ok(back)
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
