//! Connections: those that end, stall, lie, or never come about.

use super::super::fake::server::{Root, Server};
use super::*;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use std::convert::Infallible;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHORT: Duration = Duration::from_millis(300);

async fn fake(files: &Files, handler: Handler) -> Server {
    Server::start(files.root.server(2090, &["h2"], false), 100, handler).await
}

#[tokio::test]
async fn a_goaway_between_pushes_costs_none() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    for _ in 0..5 {
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
        server.goaway.notify_waiters();
    }
    assert_eq!(log.lock().unwrap().len(), 5);
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END: u8 = 0x5;
/// `:status: 200` in HPACK.
const STATUS_200: &[u8] = &[0x88];

/// Reads frames until `count` requests have begun; returns their streams.
async fn requests(stream: &mut (impl AsyncReadExt + Unpin), count: usize) -> Vec<u32> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            found.push(u32::from_be_bytes(head[5..9].try_into().unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn a_goaway_in_flight_resends_only_what_was_not_looked_at() {
    let files = Files::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = Server::raw(files.root.server(2090, &["h2"], true), move |mut stream, connection| {
        let tell = tell.clone();
        async move {
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let count = if connection == 0 { 2 } else { 1 };
            let streams = requests(&mut stream, count).await;
            let first = streams[0];
            tell.send((connection, count)).unwrap();
            if connection == 0 {
                let goaway = [&first.to_be_bytes()[..], &[0; 4], b"{\"reason\":\"Shutdown\"}"].concat();
                stream.write_all(&frame(GOAWAY, 0, 0, &goaway)).await.unwrap();
            }
            stream.write_all(&frame(HEADERS, END, first, STATUS_200)).await.unwrap();
            stream.flush().await.unwrap();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    })
    .await;
    let settings = ApnsSettings {
        connections: 1,
        ..files.apns_with_certificate(server.port)
    };
    let provider = apns(&settings, LONG);
    let (first, second) = (one(), one());
    let outcomes = tokio::join!(send(&provider, &first, LONG), send(&provider, &second, LONG));
    assert_eq!(outcomes, (Outcome::Delivered, Outcome::Delivered));
    assert_eq!(told.recv().await, Some((0, 2)));
    assert_eq!(told.recv().await, Some((1, 1)));
}

#[tokio::test]
async fn a_reset_stream_is_tried_again_later_and_keeps_its_connection() {
    let files = Files::new();
    let (handler, _log) = handler(|_, before| match before {
        1 => Err(h2::Error::from(h2::Reason::INTERNAL_ERROR)),
        _ => reply(200, ""),
    });
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    let outcome = send(&provider, &one(), LONG).await;
    assert_eq!(
        outcome,
        Outcome::Retry {
            after: None,
            reason: RetryReason::Connection
        }
    );
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_at_once_but_not_for_ever() {
    let files = Files::new();
    let (handler, log) = handler(|_, before| match before {
        0 | 2.. => Err(h2::Error::from(h2::Reason::REFUSED_STREAM)),
        _ => reply(200, ""),
    });
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    assert_eq!(log.lock().unwrap().len(), 2);
    let outcome = send(&provider, &one(), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::Connection));
    assert_eq!(log.lock().unwrap().len(), 5);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stalled_connection_times_out_and_is_replaced() {
    let files = Files::new();
    let handler: Handler = Arc::new(|received| match received.connection {
        0 => std::future::pending().boxed(),
        _ => async { reply(200, "") }.boxed(),
    });
    let server = fake(&files, handler).await;
    let settings = ApnsSettings {
        connections: 1,
        ..files.apns(server.port)
    };
    let provider = apns(&settings, SHORT);
    assert_eq!(
        reason(&send(&provider, &one(), SHORT).await),
        Some(RetryReason::Timeout)
    );
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_peer_that_stops_within_the_handshake_times_out() {
    let files = Files::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let provider = apns(&files.apns(port), SHORT);
    let outcome = send(&provider, &one(), SHORT).await;
    assert!(
        reason(&outcome) == Some(RetryReason::Timeout) || is_unreached(&outcome),
        "{outcome:?}"
    );
}

fn endless(status: u16) -> Replied {
    let chunks = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b' '; 4096]))));
    Ok(Response::builder()
        .status(status)
        .body(StreamBody::new(chunks).boxed_unsync())
        .unwrap())
}

#[tokio::test]
async fn a_body_without_end_is_cut_and_the_status_counts() {
    let files = Files::new();
    let (handler, _log) = handler(|_, before| match before {
        0 => endless(200),
        1 => endless(503),
        _ => reply(200, ""),
    });
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    assert_eq!(
        reason(&send(&provider, &one(), LONG).await),
        Some(RetryReason::Unavailable)
    );
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

fn unfinished(status: u16) -> Replied {
    let chunks = stream::pending::<Result<Frame<Bytes>, Infallible>>();
    Ok(Response::builder()
        .status(status)
        .body(StreamBody::new(chunks).boxed_unsync())
        .unwrap())
}

#[tokio::test]
async fn a_body_that_never_comes_does_not_undo_a_200() {
    let files = Files::new();
    let (handler, _log) = handler(|_, before| unfinished(if before == 0 { 200 } else { 410 }));
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    assert_eq!(send(&provider, &one(), SHORT).await, Outcome::Delivered);
    assert_eq!(
        reason(&send(&provider, &one(), SHORT).await),
        Some(RetryReason::Timeout)
    );
}

#[tokio::test]
async fn garbage_after_the_handshake_is_a_broken_connection() {
    let files = Files::new();
    for garbage in [&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], &[0xFF; 64], b""] {
        let server = Server::raw(
            files.root.server(2090, &["h2"], false),
            move |mut stream, _| async move {
                let _ = stream.write_all(garbage).await;
                let _ = stream.shutdown().await;
            },
        )
        .await;
        let provider = apns(&files.apns(server.port), LONG);
        let outcome = send(&provider, &one(), LONG).await;
        assert!(is_unreached(&outcome), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_peer_that_speaks_only_http_1_is_a_clean_error() {
    let files = Files::new();
    for protocols in [&["http/1.1"][..], &[]] {
        let (handler, log) = handler(ok);
        let server = Server::start(files.root.server(2090, protocols, false), 100, handler).await;
        let provider = apns(&files.apns(server.port), LONG);
        let outcome = send(&provider, &one(), LONG).await;
        assert!(is_unreached(&outcome), "{outcome:?}");
        assert!(log.lock().unwrap().is_empty());
    }
}

/// What one attempt to connect comes to.
async fn dialed(files: &Files, port: u16) -> Option<http2::DialFault> {
    let roots = credential::roots(files.apns(port).ca_file.as_deref()).ok().unwrap();
    let tls = credential::tls(roots, None, &[b"h2"]).unwrap();
    let endpoint = http2::Endpoint::new("localhost", port, tls).unwrap();
    http2::open(&endpoint).await.err()
}

#[tokio::test]
async fn nobody_without_a_valid_certificate_of_our_root_gets_a_push() {
    let files = Files::new();
    for tls in [
        Root::new().server(2090, &["h2"], false),
        files.root.server(2020, &["h2"], false),
    ] {
        let (handler, log) = handler(ok);
        let server = Server::start(tls, 100, handler).await;
        assert_eq!(dialed(&files, server.port).await, Some(http2::DialFault::Certificate));
        let provider = apns(&files.apns(server.port), LONG);
        let outcome = send(&provider, &one(), LONG).await;
        assert!(matches!(outcome, Outcome::Held { .. }), "{outcome:?}");
        assert!(log.lock().unwrap().is_empty());
    }
    let (handler, _log) = handler(ok);
    let server = Server::start(files.root.server(2090, &["http/1.1"], false), 100, handler).await;
    assert_eq!(dialed(&files, server.port).await, Some(http2::DialFault::NotHttp2));
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_not_faster_than_the_pace() {
    let files = Files::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    assert_eq!(dialed(&files, port).await, Some(http2::DialFault::Refused));
    // The vendor's pace this time: the second push does not even try.
    let provider = Apns::new(Service::Apns, &files.apns(port), LONG).unwrap();
    for _ in 0..2 {
        let outcome = send(&provider, &one(), LONG).await;
        let Outcome::Held { pause } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(pause > Duration::ZERO && pause <= Duration::from_secs(1));
    }
}

/// The pauses before a push is delivered again each time the provider has ended a connection after so many answers.
async fn pauses_after(answers: usize, rounds: usize) -> Vec<Duration> {
    let files = Files::new();
    let (handler, _log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = Apns::open(Service::Apns, &files.apns(server.port), LONG, |mut pool| {
        pool.pace.base = PACE;
        pool
    });
    let provider = provider.unwrap();
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        let mut answered = 0;
        while answered < answers {
            match send(&provider, &one(), LONG).await {
                Outcome::Delivered => answered += 1,
                Outcome::Held { pause } => {
                    pauses.push(pause);
                    tokio::time::sleep(pause).await;
                }
                // It was on its way when the connection ended.
                outcome => assert!(is_unreached(&outcome), "{outcome:?}"),
            }
        }
        server.goaway.notify_waiters();
    }
    pauses
}

const PACE: Duration = Duration::from_millis(5);

#[tokio::test]
async fn a_connection_that_brought_a_hundred_answers_is_replaced_at_once_however_young_it_was() {
    let pauses = pauses_after(120, 8).await;
    assert!(pauses.iter().all(|pause| *pause <= PACE), "{pauses:?}");
}

#[tokio::test]
async fn connections_that_bring_next_to_nothing_are_replaced_ever_more_slowly() {
    let pauses = pauses_after(5, 8).await;
    assert!(pauses.iter().any(|pause| *pause > PACE * 8), "{pauses:?}");
}

#[tokio::test]
async fn a_provider_that_comes_back_is_used_again() {
    let files = Files::new();
    let (first, _) = handler(ok);
    let server = fake(&files, first).await;
    let port = server.port;
    let provider = apns(&files.apns(port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    drop(server);
    // Until the socket is closed on our side, a push may still find the old connection.
    loop {
        let outcome = send(&provider, &one(), LONG).await;
        assert!(is_unreached(&outcome), "{outcome:?}");
        if matches!(outcome, Outcome::Held { .. }) {
            break;
        }
    }
    let (second, _) = handler(ok);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let _server = Server::on(listener, files.root.server(2090, &["h2"], false), 100, second).await;
    loop {
        let outcome = send(&provider, &one(), LONG).await;
        if outcome == Outcome::Delivered {
            break;
        }
        assert!(is_unreached(&outcome), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_reset_before_any_answer_is_no_loss_either() {
    let files = Files::new();
    let server = Server::raw(files.root.server(2090, &["h2"], false), |mut stream, _| async move {
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        let streams = requests(&mut stream, 1).await;
        stream
            .write_all(&frame(RST_STREAM, 0, streams[0], &8u32.to_be_bytes()))
            .await
            .unwrap();
        // The rest of what the client says is read until it leaves.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let provider = apns(&files.apns(server.port), LONG);
    let outcome = send(&provider, &one(), LONG).await;
    assert!(is_unreached(&outcome), "{outcome:?}");
}
