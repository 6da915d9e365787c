//! The accept loop over real sockets: what is too slow, too much or nonsense ends, and nothing else does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // a test's panic is its verdict

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use serve::{HttpCounters, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Nothing here may take this long; a test that does has hung.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

struct Running {
    address: SocketAddr,
    counters: HttpCounters,
    /// Told when a slow request has reached its handler.
    entered: Arc<Notify>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn limits() -> Limits {
    Limits {
        max_connections: 100,
        head_timeout: SHORT,
        stall_timeout: SHORT,
        answer_timeout: PATIENCE,
        shutdown_time: SHORT,
    }
}

async fn start(limits: Limits) -> Running {
    let entered = Arc::new(Notify::new());
    let (slow, never) = (entered.clone(), entered.clone());
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route(
            "/slow",
            get(|| async move {
                slow.notify_one();
                sleep(SHORT / 2).await;
                "late"
            }),
        )
        .route(
            "/never",
            get(|| async move {
                never.notify_one();
                std::future::pending::<String>().await
            }),
        )
        .route(
            "/echo",
            axum::routing::post(|body: axum::body::Bytes| async move { body }),
        )
        .route("/large", get(|| async { Body::from(vec![7; 64 << 20]) }));
    let listener = serve::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let counters = HttpCounters::default();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve::run_with(
        listener,
        router,
        shutdown.clone(),
        limits,
        counters.clone(),
    ));
    Running {
        address,
        counters,
        entered,
        shutdown,
        task,
    }
}

async fn connect(running: &Running) -> TcpStream {
    TcpStream::connect(running.address).await.unwrap()
}

async fn send(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
}

/// Everything until the server closes.
async fn rest(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = timeout(PATIENCE, socket.read_to_end(&mut text));
    let _ = read.await.expect("the server closes");
    String::from_utf8_lossy(&text).into_owned()
}

/// One answer with its body of five bytes.
async fn hello(socket: &mut TcpStream) {
    send(socket, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut text = String::new();
    while !text.ends_with("hello") {
        let mut piece = [0; 1024];
        let read = timeout(PATIENCE, socket.read(&mut piece)).await.unwrap();
        let read = read.unwrap();
        assert_ne!(read, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let running = start(limits()).await;
    let mut socket = connect(&running).await;
    for _ in 0..20 {
        hello(&mut socket).await;
    }
    assert_eq!(running.counters.requests(), 20);
    // Pipelined: three asked before the first is answered.
    send(&mut socket, &"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2)).await;
    send(
        &mut socket,
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(rest(&mut socket).await.matches("hello").count(), 3);
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let running = start(limits()).await;
    let mut socket = connect(&running).await;
    let begun = Instant::now();
    let (mut read, mut write) = socket.split();
    let trickle = async {
        for byte in "GET / HTTP/1.1\r\n".bytes().chain(std::iter::repeat(b'x')) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(SHORT / 10).await;
        }
    };
    let mut text = Vec::new();
    tokio::select! {
        () = trickle => {}
        _ = read.read_to_end(&mut text) => {}
        () = sleep(PATIENCE) => panic!("the server still waits"),
    }
    assert!(begun.elapsed() >= SHORT);
    assert!(!String::from_utf8_lossy(&text).contains("200 OK"));
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let running = start(limits()).await;
    let mut silent = connect(&running).await;
    assert_eq!(rest(&mut silent).await, "");
    let mut socket = connect(&running).await;
    hello(&mut socket).await;
    rest(&mut socket).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let running = start(limits()).await;
    let mut socket = connect(&running).await;
    send(&mut socket, "GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(SHORT * 4).await;
    let mut taken = Vec::new();
    let _ = timeout(PATIENCE, socket.read_to_end(&mut taken))
        .await
        .unwrap();
    assert!(
        taken.len() < 64 << 20,
        "{} bytes came all the same",
        taken.len()
    );
}

#[tokio::test]
async fn what_is_no_request_ends_its_connection_only() {
    let running = start(limits()).await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(40 << 10));
    let large = format!(
        "GET / HTTP/1.1\r\nhost: x\r\ncookie: {}\r\n\r\n",
        "x".repeat(40 << 10)
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    for (sent, status) in [
        (
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03 a TLS hello\r\n\r\n",
            "400",
        ),
        ("GET\r\n\r\n", "400"),
        ("\0\0\0\0\r\n\r\n", "400"),
        (long.as_str(), "4"),
        (large.as_str(), "431"),
        (many.as_str(), "431"),
    ] {
        let mut socket = connect(&running).await;
        // The server may close before it has taken everything.
        let _ = socket.write_all(sent.as_bytes()).await;
        let mut text = Vec::new();
        let _ = timeout(PATIENCE, socket.read_to_end(&mut text))
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.is_empty() || text.starts_with(&format!("HTTP/1.1 {status}")),
            "{:?}: {text}",
            &sent[..20.min(sent.len())]
        );
        assert!(!text.contains("200 OK"));
    }
    hello(&mut connect(&running).await).await;
}

#[tokio::test]
async fn one_connection_too_many_hears_so_and_the_others_go_on() {
    let running = start(Limits {
        max_connections: 2,
        head_timeout: PATIENCE,
        ..limits()
    })
    .await;
    // Both are being answered: nobody can make room.
    let mut busy = [connect(&running).await, connect(&running).await];
    for socket in &mut busy {
        send(socket, "GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        running.entered.notified().await;
    }
    for _ in 0..3 {
        let mut third = connect(&running).await;
        send(&mut third, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let text = rest(&mut third).await;
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("too many connections"), "{text}");
    }
    drop(busy);
    // The place is free again as soon as the server has seen the close.
    let freed = async {
        loop {
            let mut next = connect(&running).await;
            send(
                &mut next,
                "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )
            .await;
            if rest(&mut next).await.starts_with("HTTP/1.1 200") {
                break;
            }
        }
    };
    timeout(PATIENCE, freed).await.unwrap();
}

#[tokio::test]
async fn idle_connections_make_room_the_longest_idle_first() {
    let running = start(Limits {
        max_connections: 20,
        head_timeout: PATIENCE,
        ..limits()
    })
    .await;
    // Whoever is being answered stays, whatever comes.
    let mut busy = connect(&running).await;
    send(&mut busy, "GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.entered.notified().await;
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut socket = connect(&running).await;
        match n % 3 {
            0 => hello(&mut socket).await,
            1 => send(&mut socket, "GET / HTTP/1.1\r\nhost: ").await,
            _ => {}
        }
        idle.push(socket);
        if n % 10 == 0 {
            hello(&mut connect(&running).await).await;
        }
    }
    assert!(
        running.counters.displaced() >= 281,
        "{}",
        running.counters.displaced()
    );
    assert_eq!(rest(&mut idle[0]).await, "", "closed, and nothing said");
    let mut last = connect(&running).await;
    hello(&mut last).await;
    let mut piece = [0; 1];
    let said = timeout(SHORT, busy.read(&mut piece)).await;
    assert!(said.is_err(), "it still waits for its answer: {said:?}");
}

#[tokio::test]
async fn bodies_that_dribble_in_are_cut_off() {
    let running = start(Limits {
        answer_timeout: SHORT,
        ..limits()
    })
    .await;
    let mut socket = connect(&running).await;
    let head = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    send(&mut socket, head).await;
    let (mut read, mut write) = socket.split();
    let dribble = async {
        while write.write_all(b"x").await.is_ok() {
            sleep(SHORT / 10).await;
        }
        std::future::pending::<()>().await;
    };
    let mut text = Vec::new();
    tokio::select! {
        () = dribble => {}
        _ = read.read_to_end(&mut text) => {}
        () = sleep(PATIENCE) => panic!("the server still waits"),
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    // What never answers ends too.
    let mut socket = connect(&running).await;
    send(
        &mut socket,
        "GET /never HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    let text = rest(&mut socket).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
}

#[tokio::test]
async fn a_request_hidden_in_anothers_body_is_never_answered() {
    let running = start(limits()).await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n";
    let length = hidden.len();
    for head in [
        format!("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"),
        format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"),
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: {length}\r\n\r\n"
        ),
        format!("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: +{length}\r\n\r\n"),
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n"
        ),
        format!("GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n"),
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\ncontent-length: {length}\r\n\r\n"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\ncontent-length: {length}\r\n\r\n"
        ),
        format!("GET / HTTP/1.0\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"),
    ] {
        let before = running.counters.requests();
        let mut socket = connect(&running).await;
        send(&mut socket, &format!("{head}{hidden}")).await;
        let text = rest(&mut socket).await;
        // An echo shows what is hidden, a second status line would show that it was answered.
        let answers = text.matches("HTTP/1.1 ").count() + text.matches("HTTP/1.0 ").count();
        assert!(answers <= 1, "{head}: {text}");
        assert!(running.counters.requests() <= before + 1, "{head}");
    }
    hello(&mut connect(&running).await).await;
}

#[tokio::test]
async fn a_thousand_pipelined_requests_are_answered_one_by_one() {
    let running = start(limits()).await;
    let mut socket = connect(&running).await;
    let (mut read, mut write) = socket.split();
    let asked = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(999)
        + "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut text = Vec::new();
    let (wrote, _) = tokio::join!(write.write_all(asked.as_bytes()), async {
        timeout(PATIENCE, read.read_to_end(&mut text))
            .await
            .unwrap()
    });
    wrote.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&text).matches("hello").count(),
        1_000
    );
    assert_eq!(running.counters.failures(), 0);
}

#[tokio::test]
async fn shutdown_lets_requests_in_flight_end() {
    let running = start(Limits {
        shutdown_time: PATIENCE,
        head_timeout: PATIENCE,
        ..limits()
    })
    .await;
    let mut idle = connect(&running).await;
    hello(&mut idle).await;
    let mut busy = connect(&running).await;
    send(&mut busy, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.entered.notified().await;
    running.shutdown.cancel();
    let begun = Instant::now();
    assert!(rest(&mut busy).await.ends_with("late"));
    assert_eq!(rest(&mut idle).await, "");
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
    assert!(begun.elapsed() < PATIENCE / 2);
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn shutdown_cuts_what_does_not_end() {
    let running = start(limits()).await;
    let mut stuck = connect(&running).await;
    send(&mut stuck, "GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.entered.notified().await;
    running.shutdown.cancel();
    let begun = Instant::now();
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
    assert!(begun.elapsed() >= SHORT);
    assert_eq!(rest(&mut stuck).await, "");
}
