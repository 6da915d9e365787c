//! The loop of both ends: drain transmits, drain events, arm the timer, wait for one of {datagram, timer,
//! input}, handle it, again. No decision is taken here; invariant 5's cap on work per turn is kept here.

use std::{io, time::Instant};

use link_proto::{Endpoint, Event};

use crate::{drops::DropWatch, socket::UdpSocket};

/// Batches sent before the loop looks at what came in again: some 4 MB.
const MAX_BATCHES_PER_TURN: usize = 64;

/// Events taken before the loop sends again.
const MAX_EVENTS_PER_TURN: usize = 1_024;

/// Inputs taken at one go, so that a busy disk thread doesn't hold the socket up.
const MAX_INPUTS_PER_TURN: usize = 64;

/// What is done above the session: replication and its disk threads.
pub(crate) trait Application<E: Endpoint> {
    /// What disk threads and the program say.
    type Input;

    /// Waits for the next input; must be safe to drop while waiting. `None`: nothing more will come.
    fn input(&mut self) -> impl Future<Output = Option<Self::Input>> + Send;

    /// An input that is there already.
    fn try_input(&mut self) -> Option<Self::Input>;

    fn handle_input(&mut self, now: Instant, endpoint: &mut E, input: Self::Input);

    fn handle_event(&mut self, now: Instant, endpoint: &mut E, event: Event);

    /// Called once each turn: hands the endpoint what its budgets take; acts on own deadlines that are past.
    fn pump(&mut self, now: Instant, endpoint: &mut E);

    /// The next own deadline.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The loop may end.
    fn finished(&self) -> bool;
}

/// Runs until the application has finished. An error: the socket can't be read any more.
pub(crate) async fn drive<E: Endpoint, A: Application<E>>(
    endpoint: &mut E,
    application: &mut A,
    socket: &UdpSocket,
) -> io::Result<()> {
    let mut buffer = socket.recv_buffer();
    let mut out = Vec::new();
    let mut more_input = true;
    let mut drops = DropWatch::new(socket, Instant::now());
    loop {
        drops.look(Instant::now(), socket);
        let mut busy = false;
        for taken in 0..=MAX_EVENTS_PER_TURN {
            let Some(event) = endpoint.poll_event() else {
                break;
            };
            application.handle_event(Instant::now(), endpoint, event);
            busy = taken == MAX_EVENTS_PER_TURN;
        }
        application.pump(Instant::now(), endpoint);
        busy |= transmit(endpoint, socket, &mut out).await;
        if application.finished() {
            return Ok(());
        }
        let deadline = if busy {
            Some(Instant::now())
        } else {
            earlier(endpoint.poll_timeout(), application.poll_timeout())
        };
        tokio::select! {
            received = socket.recv(&mut buffer, |from, datagram| {
                endpoint.handle_datagram(Instant::now(), from, datagram);
            }) => {
                if let Err(error) = received && !is_passing(&error) {
                    return Err(error);
                }
            }
            input = application.input(), if more_input => match input {
                Some(input) => {
                    application.handle_input(Instant::now(), endpoint, input);
                    for _ in 1..MAX_INPUTS_PER_TURN {
                        let Some(input) = application.try_input() else { break };
                        application.handle_input(Instant::now(), endpoint, input);
                    }
                }
                None => more_input = false,
            },
            () = sleep_until(deadline) => endpoint.handle_timeout(Instant::now()),
        }
    }
}

/// Sends what may go out now; true where more was left for the next turn.
async fn transmit<E: Endpoint>(endpoint: &mut E, socket: &UdpSocket, out: &mut Vec<u8>) -> bool {
    for _ in 0..MAX_BATCHES_PER_TURN {
        out.clear();
        let Some(transmit) = endpoint.poll_transmit(Instant::now(), socket.max_batch(), out) else {
            return false;
        };
        if let Err(error) = socket.send(transmit.to, out, transmit.segment_size).await {
            // Lost like any datagram on the way; the session's own timers go on.
            tracing::trace!(to = %transmit.to, %error, "failed to send");
        }
    }
    true
}

/// Errors of earlier sends that the kernel reports on a later receive: a port that is closed now may be open
/// in a second.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
    )
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
