//! The accept loop: hyper's HTTP/1 on TCP, with a limit on everything that a client could make grow.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    response::Response,
};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::{
    answer::Refusal,
    counters::{Failure, HttpCounters, Kind, OpenConnection},
    places::{Answering, InFlight, Place, Places, Wish},
    stalled::Stalled,
};

/// Connections at once; each costs some 20 kB. Never more than half of the process's file descriptors, or
/// the store could open no segment.
const MAX_CONNECTIONS: usize = 1_024;
/// Refusals being said at once; beyond that, connections over the limit are just closed.
const MAX_REFUSALS: usize = 64;
/// How long a refusal may take.
const MAX_REFUSAL_TIME: Duration = Duration::from_secs(1);
/// A request's line and headers in bytes and lines: ours fit a tenth, browsers' cookies of a shared origin
/// the rest. Beyond: 431.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 100;
/// hyper's buffer per direction.
const MAX_BUFFER_BYTES: usize = 32 << 10;
/// How long a connection may be idle and how long a request's head may take, together (hyper has one clock
/// for both): longer than any player's reload interval (6 s at most).
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take next to nothing of an answer, and what it has to take in that time: a tenth of
/// the poorest video's rate.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
const LEAST_TAKEN_BYTES: usize = 32 << 10;
/// How long a request's body may take to come and its answer to begin, together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests in flight may go on after shutdown was asked for.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 74\r\nretry-after: 2\r\ncache-control: no-store\r\nconnection: close\r\n\r\n\
    {\"error\":\"busy\",\"reason\":\"too many connections are open: try again later\"}";

/// What bounds a listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; default 1,024, or half the file descriptors the process may open if that is
    /// less. Each costs some 20 kB. For one more, the longest idle is closed; where none is, it is answered
    /// 503 and closed.
    pub max_connections: usize,
    /// For idling between requests and sending a request's head, together; default 20 s. Longer lets slow
    /// or dead clients hold their place longer.
    pub head_timeout: Duration,
    /// For taking next to nothing (less than 32 KiB) of an answer; default 20 s.
    pub stall_timeout: Duration,
    /// For a request's body to come and its answer to begin, together; default 60 s. Then: 408 or 503.
    pub answer_timeout: Duration,
    /// For requests in flight at shutdown; default 5 s.
    pub shutdown_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX);
        Self {
            max_connections: MAX_CONNECTIONS.min(descriptors / 2).max(1),
            head_timeout: HEAD_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            answer_timeout: ANSWER_TIMEOUT,
            shutdown_time: SHUTDOWN_TIME,
        }
    }
}

/// Binds; the error names address and what to do.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let what_to_do = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there: stop it, or give another port"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need root or CAP_NET_BIND_SERVICE: give a higher port"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: give one of its own, 127.0.0.1 or 0.0.0.0"
            }
            _ => "give another address",
        };
        io::Error::new(
            error.kind(),
            format!("cannot listen on {address}: {error}; {what_to_do}"),
        )
    })
}

/// Serves until `shutdown`, then takes no more connections, closes the idle ones and lets requests in
/// flight end within [`Limits::shutdown_time`].
pub async fn run_with(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    limits: Limits,
    counters: HttpCounters,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .pipeline_flush(true);
    let places = Places::new(limits.max_connections);
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let graceful = GracefulShutdown::new();
    // Cut when it drops: whatever is still open when the time for shutdown is over.
    let cut = CancellationToken::new();
    let _cut_at_end = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection that went away at once, or of the whole process: then a pause lets
                // connections end instead of spinning.
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let place = match places.take() {
            Wish::Free(place) => place,
            Wish::Made(place) => {
                counters.displaced.inc();
                place
            }
            Wish::None => {
                counters.refused.inc();
                if let Ok(turn) = refusals.clone().try_acquire_owned() {
                    tokio::spawn(async move {
                        let _ = timeout(MAX_REFUSAL_TIME, refuse(socket)).await;
                        drop(turn);
                    });
                }
                continue;
            }
        };
        // Small answers leave at once. A socket that refuses this is about to fail anyway.
        let _ = socket.set_nodelay(true);
        let open = OpenConnection::new(&counters);
        let leave = place.leave();
        let service = Counted {
            router: router.clone(),
            counters: counters.clone(),
            answer_timeout: limits.answer_timeout,
            place,
        };
        let io = TokioIo::new(Stalled::new(
            socket,
            limits.stall_timeout,
            LEAST_TAKEN_BYTES,
        ));
        let connection = graceful.watch(http.serve_connection(io, service));
        let (cut, counters) = (cut.clone(), counters.clone());
        tokio::spawn(async move {
            let connection = leave.run_until_cancelled(connection);
            let ended = cut.run_until_cancelled(connection).await.flatten();
            if let Some(Err(error)) = ended {
                counters.count_failure(Failure::of(&error));
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(open);
        });
    }
    drop(listener);
    if timeout(limits.shutdown_time, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            open = counters.open.get(),
            "cut connections that did not end in time"
        );
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Says 503 and closes. The request's head is read first: a socket closed with unread bytes resets the
/// connection, and the client would never see the answer.
async fn refuse(mut socket: TcpStream) -> io::Result<()> {
    let mut head = [0; 1024];
    let _ = socket.read(&mut head).await?;
    socket.write_all(REFUSAL).await?;
    socket.shutdown().await?;
    while socket.read(&mut head).await? > 0 {}
    Ok(())
}

/// The router as hyper calls it, with its answers counted.
struct Counted {
    router: Router,
    counters: HttpCounters,
    answer_timeout: Duration,
    place: Place,
}

impl Service<hyper::Request<Incoming>> for Counted {
    type Response = Response;
    type Error = Infallible;
    type Future = CountedFuture;

    fn call(&self, request: hyper::Request<Incoming>) -> CountedFuture {
        let kind = Kind::of(request.uri().path());
        let has_body = !request.body().is_end_stream();
        let request: Request = request.map(Body::new);
        CountedFuture {
            // A router is always ready.
            answer: self.router.clone().call(request),
            counters: self.counters.clone(),
            kind,
            has_body,
            limit: self.answer_timeout,
            deadline: None,
            in_flight: Some(self.place.begin()),
        }
    }
}

struct CountedFuture {
    answer: axum::routing::future::RouteFuture<Infallible>,
    counters: HttpCounters,
    kind: Kind,
    has_body: bool,
    limit: Duration,
    /// Made when there is something to wait for.
    deadline: Option<Pin<Box<Sleep>>>,
    in_flight: Option<InFlight>,
}

impl Future for CountedFuture {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match Pin::new(&mut self.answer).poll(cx) {
            Poll::Ready(Ok(response)) => response,
            Poll::Pending => {
                let limit = self.limit;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(deadline.as_mut().poll(cx));
                Refusal::too_slow(self.has_body).respond()
            }
        };
        self.counters.count(self.kind, response.status());
        let response = match self.in_flight.take() {
            Some(request) => response.map(|body| {
                Body::new(Answering {
                    body,
                    _request: request,
                })
            }),
            None => response,
        };
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"], "busy");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_what_to_do() {
        let first = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("give another port"), "{text}");
    }
}
