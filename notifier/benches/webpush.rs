//! Web Push on one core: pushes a second to many servers, each for a reader with keys of its own, beside a bare client that sends as many bytes
//! over as many connections and encrypts nothing. The servers have a thread of their own. At least 2,000 a second are wanted.
//!
//! `cargo bench -p quietline-notifier --bench webpush -- [pushes] [servers]`

// A bench that cannot go on has nothing better to do than to stop.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "../src/dispatch/fake/server.rs"]
mod server;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::endpoint::PushEndpoint;
use notifier_core::outbox::{EntryId, Outcome, PushId};
use notifier_core::seal::{Class, Priority};
use quietline_notifier::dispatch::http2::{Endpoint, open};
use quietline_notifier::dispatch::webpush::Resolve;
use quietline_notifier::dispatch::{Deliver, Push, Webpush, WebpushSettings, credential};
use quietline_shared::crypto::P256Key;
use quietline_shared::redact::Secret;
use server::{Handler, Root, Server, reply};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As sealed today: the larger of the two classes, and what becomes of it.
const PAYLOAD: usize = 2816 + 40;
const BODY: usize = 3_940;
const UNDER_WAY: usize = 256;
const WANTED: f64 = 2_000.0;

struct Home;

impl Resolve for Home {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) }.boxed()
    }
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<usize>().ok());
    let pushes = numbers.next().unwrap_or(20_000);
    let servers = numbers.next().unwrap_or(200);
    let root = Root::new();
    let tls = root.server(2090, &["h2"], false);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let handler: Handler = Arc::new(|_| std::future::ready(reply(201, "")).boxed());
            let mut running = Vec::new();
            for _ in 0..servers {
                running.push(Server::start(Arc::clone(&tls), 1000, Arc::clone(&handler)).await);
            }
            tell.send(running.iter().map(|server| server.port).collect::<Vec<u16>>())
                .unwrap();
            std::future::pending::<()>().await;
        });
    });
    let ports = told.recv().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let key: Vec<u8> = (1..=32).map(|byte: u8| byte.wrapping_mul(37)).collect();
    let settings: WebpushSettings = serde_json::from_value(serde_json::json!({
        "key_file": put("vapid", hex::encode(key)), "contact": "mailto:push@example.org", "ports": ports,
        "allowed_networks": ["127.0.0.0/8"], "ca_file": put("ca.pem", root.pem()),
        "rate": 1_000_000, "origin_rate": 1_000_000, "origin_concurrency": 1_000,
    }))
    .unwrap();
    // As many readers as pushes: nothing about one helps with the next.
    let tokens: Vec<_> = (0..pushes).map(|number| token(number, &ports)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let way = Webpush::open(&settings, Arc::new(Home)).unwrap();
        // Connections stand and tokens are signed before the clock starts, as in a service that runs.
        for token in tokens.iter().take(servers) {
            assert_eq!(send(&way, token, 0).await, Outcome::Delivered);
        }
        let roots = credential::roots(settings.ca_file.as_deref()).unwrap();
        let tls = credential::tls(roots, None, &[b"h2"]).unwrap();
        let mut senders = Vec::new();
        for port in &ports {
            let stream = open(&Endpoint::new("localhost", *port, Arc::clone(&tls)).unwrap()).await.unwrap();
            let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            senders.push(sender);
        }
        let mut runs = Vec::new();
        for _ in 0..3 {
            let bare = measured(pushes, async |number| {
                let mut sender = senders[number % senders.len()].clone();
                sender.ready().await.unwrap();
                let request = Request::post("https://localhost/up")
                    .body(Full::new(Bytes::from_static(&[7; BODY])))
                    .unwrap();
                assert!(sender.send_request(request).await.unwrap().status().is_success());
            })
            .await;
            let ours = measured(pushes, async |number| {
                assert_eq!(send(&way, &tokens[number], number).await, Outcome::Delivered);
            })
            .await;
            runs.push((ours / bare, ours));
        }
        runs.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (ratio, speed) = runs.get(1).copied().unwrap_or_default();
        let verdict = if speed >= WANTED { "" } else { ", TOO SLOW" };
        println!(
            "webpush: {speed:.0} pushes/s to {servers} servers and {pushes} readers on one core, {ratio:.2} of a bare client{verdict}"
        );
    });
}

/// Pushes a second.
async fn measured(pushes: usize, one: impl AsyncFn(usize)) -> f64 {
    let start = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for number in 0..pushes {
        if under_way.len() >= UNDER_WAY {
            under_way.next().await;
        }
        under_way.push(one(number));
    }
    while under_way.next().await.is_some() {}
    pushes as f64 / start.elapsed().as_secs_f64()
}

async fn send(way: &Webpush, token: &DeviceToken, number: usize) -> Outcome {
    let push = Push {
        entry: EntryId(number as i64),
        push_id: PushId([1; 16]),
        service: Service::Webpush,
        token: token.clone(),
        payload: vec![0x5A; PAYLOAD].into(),
        priority: Priority::High,
        class: Class::Visible,
        too_long: false,
        deadline_ms: i64::MAX,
        expires_at_ms: i64::MAX,
    };
    way.push(&push, tokio::time::Instant::now() + Duration::from_secs(60))
        .await
}

fn token(number: usize, ports: &[u16]) -> DeviceToken {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut secret = [3; 32];
    for (place, byte) in number.to_be_bytes().into_iter().enumerate() {
        secret[place + 20] = byte;
    }
    let key = P256Key::new(&Secret::new(secret)).unwrap();
    let url = format!("https://localhost.example:{}/up/{number}", ports[number % ports.len()]);
    let endpoint = PushEndpoint::parse(&url, &base64.encode(key.public()), &base64.encode([9; 16]));
    endpoint.unwrap().token()
}
