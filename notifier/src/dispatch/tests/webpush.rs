//! Push servers of every kind: good, slow, broken, and such as are none.

use super::*;
use crate::dispatch::fake::vapid;
use crate::dispatch::webpush::Resolve;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use jsonwebtoken::{DecodingKey, Validation};
use notifier_core::endpoint::PushEndpoint;
use notifier_core::seal::Priority;
use quietline_shared::crypto::P256Key;
use quietline_shared::redact::Secret;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers in turn, the last one for ever.
struct Names {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Names {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |list: &&[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Arc::new(Self {
            answers: answers.iter().map(parse).collect(),
            asked: AtomicUsize::new(0),
        })
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.get(asked).or(self.answers.last()).cloned();
        async move { answer.ok_or(io::ErrorKind::NotFound.into()) }.boxed()
    }
}

fn home() -> Arc<Names> {
    Names::new(&[&["127.0.0.1"]])
}

fn token(url: &str) -> Vec<u8> {
    let key = P256Key::new(&Secret::new([9; 32])).unwrap();
    let public = URL_SAFE_NO_PAD.encode(key.public());
    let endpoint = PushEndpoint::parse(url, &public, &URL_SAFE_NO_PAD.encode([3; 16])).unwrap();
    endpoint.token().expose().to_vec()
}

fn push_to(port: u16, path: &str) -> Push {
    let mut one = push(
        1,
        Service::Webpush,
        &token(&format!("https://localhost.example:{port}/{path}")),
    );
    one.expires_at_ms = unix_ms() + 3_600_999;
    one
}

async fn server(protocols: &[&str], handler: Handler) -> (Files, Server) {
    let files = Files::new();
    let server = Server::start(files.root.server(2090, protocols, false), 100, handler).await;
    (files, server)
}

fn lane(files: &Files, server: &Server) -> Webpush {
    Webpush::open(&files.webpush(server.port), home()).unwrap()
}

fn after(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Retry { after, .. } => *after,
        _ => None,
    }
}

const BOTH: [&str; 2] = ["h2", "http/1.1"];

#[tokio::test]
async fn a_push_carries_what_the_rfcs_ask_for_over_either_http() {
    for protocols in [&["h2"][..], &["http/1.1"], &[]] {
        let (handler, log) = handler(|_, _| reply(201, ""));
        let (files, server) = server(protocols, handler).await;
        let lane = lane(&files, &server);
        let mut quiet = push_to(server.port, "up2?up=1");
        quiet.priority = Priority::Normal;
        quiet.too_long = true;
        for one in [&push_to(server.port, "up1"), &quiet] {
            assert_eq!(send(&lane, one, LONG).await, Outcome::Delivered, "{protocols:?}");
        }
        let log = log.lock().unwrap();
        let [first, second] = &log[..] else { panic!("{log:?}") };
        let authority = format!("localhost.example:{}", server.port);
        for (received, path, urgency, topic) in [
            (first, "/up1", "high", None),
            (second, "/up2", "normal", Some("something-came")),
        ] {
            let header = |name: &str| received.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", path));
            let host = received.authority.as_deref().or(header("host"));
            assert_eq!(host, Some(authority.as_str()));
            assert_eq!(header("content-encoding"), Some("aes128gcm"));
            assert_eq!((header("urgency"), header("topic")), (Some(urgency), topic));
            assert_eq!(header("ttl"), Some("86400"));
            assert_eq!(received.group, Some(rustls::NamedGroup::X25519MLKEM768));
            assert_eq!(received.body.len(), 868);
            check_vapid(header("authorization").unwrap(), &format!("https://{authority}"));
        }
        assert_ne!(first.body, second.body, "salt and key are fresh");
        assert_eq!(
            first.headers["authorization"], second.headers["authorization"],
            "one token an origin"
        );
        assert_eq!(
            server.connections.load(Ordering::SeqCst),
            1,
            "{protocols:?}: the connection is kept"
        );
    }
}

fn check_vapid(value: &str, audience: &str) {
    let (token, key) = value.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
    let point = URL_SAFE_NO_PAD.decode(key).unwrap();
    assert_eq!(point[..], *P256Key::new(&Secret::new(vapid())).unwrap().public());
    let (x, y) = (
        URL_SAFE_NO_PAD.encode(&point[1..33]),
        URL_SAFE_NO_PAD.encode(&point[33..]),
    );
    let mut validation = Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&[audience]);
    let key = DecodingKey::from_ec_components(&x, &y).unwrap();
    let claims = jsonwebtoken::decode::<HashMap<String, serde_json::Value>>(token, &key, &validation)
        .unwrap()
        .claims;
    assert_eq!(claims["sub"], "mailto:push@example.org");
    let left = claims["exp"].as_i64().unwrap() - unix_ms() / 1000;
    assert!(left > 0 && left <= 24 * 3600, "{left}");
}

#[tokio::test]
async fn each_answer_has_its_outcome() {
    let (handler, _) = handler(|received, _| {
        let (status, retry_after) = received.path[1..].split_once('-').unwrap();
        let mut answer = reply(status.parse().unwrap(), "<!doctype html><title>Error</title>").unwrap();
        if !retry_after.is_empty() {
            answer.headers_mut().insert("retry-after", retry_after.parse().unwrap());
        }
        Ok(answer)
    });
    for (status, expected, pause) in [
        ("201-", Outcome::Delivered, None),
        ("200-", Outcome::Delivered, None),
        ("202-", Outcome::Delivered, None),
        ("301-", Answer::retry(RetryReason::Origin, "").outcome, None),
        ("400-", Outcome::Refused(notifier_core::outbox::Refusal::OurFault), None),
        ("413-", Outcome::TryFallback, None),
        ("429-", Answer::retry(RetryReason::Origin, "").outcome, Some(60)),
        ("429-7", Answer::retry(RetryReason::Origin, "").outcome, Some(7)),
        ("507-", Answer::retry(RetryReason::TokenRate, "").outcome, None),
        ("507-300", Answer::retry(RetryReason::TokenRate, "").outcome, Some(300)),
        ("500-", Answer::retry(RetryReason::Origin, "").outcome, None),
        ("503-30", Answer::retry(RetryReason::Origin, "").outcome, Some(30)),
        ("401-", Answer::retry(RetryReason::TokenRate, "").outcome, Some(1_800)),
        ("403-", Answer::retry(RetryReason::TokenRate, "").outcome, Some(1_800)),
        ("404-", Answer::retry(RetryReason::TokenRate, "").outcome, Some(1_800)),
        (
            "410-",
            Outcome::Gone {
                provider_time_ms: None,
                certain: true,
            },
            None,
        ),
    ] {
        let (files, server) = server(&BOTH, Arc::clone(&handler)).await;
        let lane = lane(&files, &server);
        let outcome = send(&lane, &push_to(server.port, status), LONG).await;
        match (&outcome, &expected) {
            (Outcome::Retry { reason, .. }, Outcome::Retry { reason: wanted, .. }) => {
                assert_eq!(reason, wanted, "{status}");
                assert_eq!(after(&outcome), pause.map(Duration::from_secs), "{status}");
            }
            _ => assert_eq!(outcome, expected, "{status}"),
        }
    }
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let (target_handler, target_log) = handler(ok);
    let (_target_files, target) = server(&BOTH, target_handler).await;
    let port = target.port;
    let (handler, log) = handler(move |_, _| {
        let mut answer = reply(307, "").unwrap();
        let location = format!("https://localhost.example:{port}/elsewhere");
        answer.headers_mut().insert("location", location.parse().unwrap());
        Ok(answer)
    });
    let (files, server) = server(&BOTH, handler).await;
    let outcome = send(&lane(&files, &server), &push_to(server.port, "x"), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::Origin));
    assert_eq!(log.lock().unwrap().len(), 1);
    assert!(target_log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_a_dead_endpoint_is_believed_where_pushes_arrive() {
    let (handler, log) = handler(|received, _| {
        reply(
            if received.path == "/dead" {
                404
            } else {
                [403, 201][usize::from(received.streams > 9)]
            },
            "",
        )
    });
    let (files, server) = server(&BOTH, handler).await;
    let lane = lane(&files, &server);
    let outcome = send(&lane, &push_to(server.port, "x"), LONG).await;
    assert_eq!(
        (reason(&outcome), log.lock().unwrap().len()),
        (Some(RetryReason::TokenRate), 2)
    );
    let tokens: Vec<_> = log
        .lock()
        .unwrap()
        .iter()
        .map(|one| one.headers["authorization"].clone())
        .collect();
    assert_ne!(
        tokens[0], tokens[1],
        "ECDSA draws a nonce, so a second token is another one"
    );
    drop(server);

    let (handler, _) = super::handler(|received, _| reply(if received.path == "/dead" { 404 } else { 201 }, ""));
    let (files, server) = super::webpush::server(&BOTH, handler).await;
    let lane = super::webpush::lane(&files, &server);
    assert_eq!(send(&lane, &push_to(server.port, "x"), LONG).await, Outcome::Delivered);
    let outcome = send(&lane, &push_to(server.port, "dead"), LONG).await;
    assert!(matches!(outcome, Outcome::Gone { certain: true, .. }), "{outcome:?}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_again_and_again_is_set_aside() {
    let (handler, log) = handler(|received, _| reply(if received.path == "/bad" { 400 } else { 201 }, ""));
    let (files, server) = server(&BOTH, handler).await;
    let lane = lane(&files, &server);
    for _ in 0..5 {
        let outcome = send(&lane, &push_to(server.port, "bad"), LONG).await;
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    let outcome = send(&lane, &push_to(server.port, "bad"), LONG).await;
    assert_eq!(
        (reason(&outcome), log.lock().unwrap().len()),
        (Some(RetryReason::TokenRate), 5)
    );
    assert_eq!(
        send(&lane, &push_to(server.port, "good"), LONG).await,
        Outcome::Delivered
    );
}

#[tokio::test]
async fn a_server_that_fails_rests_alone() {
    let (bad_handler, bad_log) = handler(|_, _| reply(503, ""));
    let (files, bad) = server(&BOTH, bad_handler).await;
    let (good_handler, _) = handler(ok);
    let good = Server::start(files.root.server(2090, &BOTH, false), 100, good_handler).await;
    let mut settings = files.webpush(bad.port);
    settings.ports.push(good.port);
    let lane = Webpush::open(&settings, home()).unwrap();
    for _ in 0..3 {
        let outcome = send(&lane, &push_to(bad.port, "x"), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::Origin));
    }
    let outcome = send(&lane, &push_to(bad.port, "x"), LONG).await;
    assert!(matches!(outcome, Outcome::Later { .. }), "{outcome:?}");
    assert_eq!(bad_log.lock().unwrap().len(), 3, "it is not asked again");
    assert_eq!(send(&lane, &push_to(good.port, "x"), LONG).await, Outcome::Delivered);
}

#[tokio::test]
async fn a_server_that_swallows_requests_holds_few_and_delays_no_other() {
    let (files, bad) = server(&BOTH, silent()).await;
    let (good_handler, _) = handler(ok);
    let good = Server::start(files.root.server(2090, &BOTH, false), 100, good_handler).await;
    let mut settings = files.webpush(bad.port);
    settings.ports.push(good.port);
    let lane = Arc::new(Webpush::open(&settings, home()).unwrap());
    let stuck: Vec<_> = (0..50)
        .map(|number| {
            let lane = Arc::clone(&lane);
            let one = push_to(bad.port, &number.to_string());
            tokio::spawn(async move { send(&*lane, &one, Duration::from_secs(6)).await })
        })
        .collect();
    assert_eq!(send(&*lane, &push_to(good.port, "x"), LONG).await, Outcome::Delivered);
    let mut turned_away = 0;
    for one in stuck {
        match one.await.unwrap() {
            Outcome::Later { .. } => turned_away += 1,
            outcome => assert_eq!(reason(&outcome), Some(RetryReason::Origin)),
        }
    }
    assert_eq!(turned_away, 46, "four find out that it is stuck");
    let outcome = send(&*lane, &push_to(bad.port, "x"), LONG).await;
    assert!(matches!(outcome, Outcome::Later { .. }), "now it rests: {outcome:?}");
}

#[tokio::test]
async fn no_address_of_our_own_is_contacted_whatever_a_name_says() {
    let (handler, log) = handler(ok);
    let (files, server) = server(&BOTH, handler).await;
    let mut settings = files.webpush(server.port);
    settings.allowed_networks.clear();
    for addresses in [
        &["127.0.0.1"][..],
        &["::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"],
        &["169.254.169.254", "10.0.0.1", "fd00::1", "0.0.0.0"],
        &[],
    ] {
        let lane = Webpush::open(&settings, Names::new(&[addresses])).unwrap();
        let outcome = send(&lane, &push_to(server.port, "x"), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::Origin), "{addresses:?}");
    }
    let lane = Webpush::open(&settings, home()).unwrap();
    for url in [
        format!("https://127.0.0.1:{}/x", server.port),
        format!("https://[::1]:{}/x", server.port),
        "https://localhost.example:22/x".to_owned(),
    ] {
        let outcome = send(&lane, &push(1, Service::Webpush, &token(&url)), LONG).await;
        assert_eq!(
            outcome,
            Outcome::Refused(notifier_core::outbox::Refusal::Unknown),
            "{url}"
        );
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_name_that_changes_its_mind_leads_where_it_was_checked() {
    let (handler, _) = handler(ok);
    let (files, server) = server(&BOTH, handler).await;
    let mut settings = files.webpush(server.port);
    settings.allowed_networks = vec!["127.0.0.1".to_owned()];
    // First good, then where only we can get to: the first connection is kept, so nobody asks again.
    let names = Names::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let lane = Webpush::open(&settings, Arc::clone(&names) as Arc<dyn Resolve>).unwrap();
    for _ in 0..3 {
        assert_eq!(send(&lane, &push_to(server.port, "x"), LONG).await, Outcome::Delivered);
    }
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    // A new connection asks again, and checks again.
    server.goaway.notify_waiters();
    let mut outcome = Outcome::Delivered;
    while outcome == Outcome::Delivered {
        outcome = send(&lane, &push_to(server.port, "x"), LONG).await;
    }
    assert_eq!(reason(&outcome), Some(RetryReason::Origin));
    assert!(names.asked.load(Ordering::SeqCst) >= 2);
    // Of good and bad ones only the good are tried.
    let mixed = Webpush::open(&settings, Names::new(&[&["10.0.0.1", "127.0.0.2", "127.0.0.1"]])).unwrap();
    assert_eq!(send(&mixed, &push_to(server.port, "x"), LONG).await, Outcome::Delivered);
}

#[tokio::test]
async fn a_certificate_must_be_for_the_name_and_of_today() {
    let (handler, _) = handler(ok);
    let files = Files::new();
    let expired = Server::start(files.root.server(2020, &BOTH, false), 100, Arc::clone(&handler)).await;
    let stranger = Server::start(Files::new().root.server(2090, &BOTH, false), 100, handler).await;
    for server in [expired, stranger] {
        let outcome = send(&lane(&files, &server), &push_to(server.port, "x"), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::Origin));
        assert_eq!(server.connections.load(Ordering::SeqCst), 0, "the handshake fails");
    }
}

#[tokio::test]
async fn broken_answers_of_every_kind_lose_nothing() {
    type Talk = &'static [u8];
    let endless_headers: Talk = Box::leak(
        format!("HTTP/1.1 201 Created\r\nx: {}", "y".repeat(40_000))
            .into_bytes()
            .into(),
    );
    for (talk, delivered) in [
        (b"".as_slice(), false),
        (b"HTTP/1.1", false),
        (b"HTTP/1.1 201 Created\r\ncontent-le", false),
        (b"this is no HTTP at all\r\n\r\n", false),
        (b"HTTP/1.1 99999 What\r\n\r\n", false),
        (endless_headers, false),
        // What was said in time counts, whatever becomes of the rest.
        (b"HTTP/1.1 201 Created\r\ncontent-length: 1000000\r\n\r\nshort", true),
        (
            b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            true,
        ),
        (b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", true),
    ] {
        let files = Files::new();
        let tls = files.root.server(2090, &["http/1.1"], false);
        let server = Server::raw(tls, move |mut stream, _| async move {
            let mut request = vec![0; 8_192];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(talk).await;
            let _ = stream.shutdown().await;
        })
        .await;
        let outcome = send(&lane(&files, &server), &push_to(server.port, "x"), LONG).await;
        let text = String::from_utf8_lossy(&talk[..talk.len().min(50)]);
        if delivered {
            assert_eq!(outcome, Outcome::Delivered, "{text}");
        } else {
            assert_eq!(reason(&outcome), Some(RetryReason::Origin), "{text}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_huge_body_is_not_read_and_costs_a_connection_at_most() {
    let (handler, _) = handler(|_, _| reply(201, vec![b'x'; 10 << 20]));
    for protocols in [["h2"], ["http/1.1"]] {
        let (files, server) = server(&protocols, Arc::clone(&handler)).await;
        let lane = lane(&files, &server);
        for _ in 0..3 {
            assert_eq!(
                send(&lane, &push_to(server.port, "x"), LONG).await,
                Outcome::Delivered,
                "{protocols:?}"
            );
        }
    }
}

#[tokio::test]
async fn after_a_goaway_what_was_not_looked_at_goes_over_a_new_connection() {
    let (handler, log) = handler(ok);
    let (files, server) = server(&["h2"], handler).await;
    let lane = lane(&files, &server);
    for round in 1..=5 {
        assert_eq!(send(&lane, &push_to(server.port, "x"), LONG).await, Outcome::Delivered);
        server.goaway.notify_waiters();
        assert_eq!(log.lock().unwrap().len(), round);
    }
    let refusing = Arc::new(|_| async { Err(h2::Error::from(h2::Reason::REFUSED_STREAM)) }.boxed());
    let (files, server) = super::webpush::server(&["h2"], refusing).await;
    let outcome = send(&super::webpush::lane(&files, &server), &push_to(server.port, "x"), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::Origin));
}

#[tokio::test]
async fn nobody_listening_or_speaking_another_protocol_is_an_outage_of_that_server() {
    let files = Files::new();
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let lane = Webpush::open(&files.webpush(closed), home()).unwrap();
    let outcome = send(&lane, &push_to(closed, "x"), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::Origin));
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        }
    });
    let lane = Webpush::open(&files.webpush(port), home()).unwrap();
    let outcome = send(&lane, &push_to(port, "x"), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::Origin));
}

#[tokio::test]
async fn a_check_is_as_long_as_a_small_wakeup_and_wakes_nobody() {
    let (handler, log) = handler(|_, _| reply(201, ""));
    let (files, server) = server(&BOTH, handler).await;
    let lane = lane(&files, &server);
    let one = push_to(server.port, "x");
    assert_eq!(lane.check(&one.token, Instant::now() + LONG).await, Outcome::Delivered);
    let log = log.lock().unwrap();
    assert_eq!(log[0].body.len(), 868);
    assert_eq!(
        (&log[0].headers["ttl"], &log[0].headers["urgency"]),
        (&"0".parse().unwrap(), &"very-low".parse().unwrap())
    );
}

#[tokio::test]
async fn servers_beyond_the_bound_take_turns_with_idle_ones() {
    let (handler, log) = handler(ok);
    let (files, server) = server(&BOTH, handler).await;
    let mut settings = files.webpush(server.port);
    (settings.origins, settings.connections) = (3, 2);
    let lane = Webpush::open(&settings, home()).unwrap();
    for number in 0..20 {
        // Each name is another origin; the certificate is for none but one of them.
        let name = ["localhost.example", "other.example", "third.example", "fourth.example"][number % 4];
        let one = push(
            1,
            Service::Webpush,
            &token(&format!("https://{name}:{}/x", server.port)),
        );
        let outcome = send(&lane, &one, LONG).await;
        assert_eq!(outcome == Outcome::Delivered, number % 4 == 0, "{name}: {outcome:?}");
    }
    assert_eq!(log.lock().unwrap().len(), 5);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let files = Files::new();
    let fault = |change: fn(&mut WebpushSettings)| {
        let mut settings = files.webpush(443);
        change(&mut settings);
        let fault = Webpush::open(&settings, home()).err().unwrap();
        (fault.setting, fault.fault)
    };
    assert_eq!(
        fault(|one| one.key_file = "/nowhere".into()),
        ("key_file", Fault::BadVapidKey)
    );
    assert_eq!(
        fault(|one| one.contact = "push@example.org".into()),
        ("contact", Fault::BadContact)
    );
    assert_eq!(
        fault(|one| one.ports = vec![0]),
        ("ports", Fault::OutOfRange { most: 65_535 })
    );
    assert_eq!(
        fault(|one| one.allowed_networks = vec!["10.0.0.0/33".into()]),
        ("allowed_networks", Fault::BadNetwork)
    );
    assert_eq!(
        fault(|one| one.denied_hosts = vec!["a b".into()]),
        ("denied_hosts", Fault::BadHost)
    );
    assert_eq!(
        fault(|one| one.origins = 0),
        ("origins", Fault::OutOfRange { most: 1_000_000 })
    );
    assert_eq!(
        fault(|one| one.origin_concurrency = 0),
        ("origin_concurrency", Fault::OutOfRange { most: 100_000 })
    );
}
