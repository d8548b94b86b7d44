//! Pushes a second through each provider's lane, alone, to a fake in the same process, over TLS and HTTP/2, beside a bare client that sends
//! as many bytes. The fake takes its share of the cores in both. At least 5,000 a second are wanted of each.
//!
//! `cargo bench -p quietline-notifier --bench dispatch -- [pushes] [concurrency]`

// A bench that cannot go on has nothing better to do than to stop.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "../src/dispatch/fake/server.rs"]
mod server;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::{EntryId, Outcome, PushId};
use notifier_core::seal::{Class, Priority};
use quietline_notifier::dispatch::http2::{Endpoint, open};
use quietline_notifier::dispatch::{
    Apns, ApnsSettings, Deliver, Fcm, FirebaseSettings, Huawei, HuaweiSettings, Push, credential, run_lane,
};
use server::{Handler, Root, Server, reply};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// As sealed today: the larger of the two classes.
const PAYLOAD: usize = 2816 + 40;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<usize>().ok());
    let pushes = numbers.next().unwrap_or(200_000);
    let concurrency = numbers.next().unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let root = Root::new();
        let handler: Handler = Arc::new(|received| {
            let token = received.path.ends_with("/token");
            let body = match token {
                true => r#"{"access_token":"a","expires_in":3600}"#,
                false => r#"{"code":"80000000"}"#,
            };
            std::future::ready(reply(200, body)).boxed()
        });
        let server = Server::start(root.server(2090, &["h2"], false), 1000, handler).await;
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            folder: folder.path(),
            root: &root,
            port: server.port,
            concurrency,
        };
        let timeout = Duration::from_secs(10);
        let (apns, fcm, huawei) = (place.apns(), place.firebase(), place.huawei());
        for service in [Service::Apns, Service::Firebase, Service::Huawei] {
            let mut runs = Vec::new();
            for _ in 0..3 {
                let bare = bare(&apns, pushes, concurrency).await;
                let lane = match service {
                    Service::Firebase => lane(Fcm::new(&fcm, timeout).unwrap(), pushes, concurrency).await,
                    Service::Huawei => lane(Huawei::new(&huawei, timeout).unwrap(), pushes, concurrency).await,
                    _ => lane(Apns::new(service, &apns, timeout).unwrap(), pushes, concurrency).await,
                };
                runs.push((lane / bare, lane));
            }
            runs.sort_by(|one, other| one.0.total_cmp(&other.0));
            let (ratio, speed) = runs.get(1).copied().unwrap_or_default();
            let verdict = if speed >= WANTED { "" } else { ", TOO SLOW" };
            println!(
                "{}: {speed:.0} pushes/s, {ratio:.2} of a bare client{verdict}",
                service.name()
            );
        }
    });
}

/// Pushes a second that each provider's lane must sustain.
const WANTED: f64 = 5_000.0;

/// Where the fake is and the files lie.
struct Place<'a> {
    folder: &'a Path,
    root: &'a Root,
    port: u16,
    concurrency: usize,
}

impl Place<'_> {
    fn put(&self, name: &str, content: String) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn apns(&self) -> ApnsSettings {
        ApnsSettings {
            topic: "org.example.app".to_owned(),
            key_file: Some(self.put("apns.p8", rcgen::KeyPair::generate().unwrap().serialize_pem())),
            key_id: Some("ABCDE12345".to_owned()),
            team_id: Some("FGHIJ67890".to_owned()),
            certificate_file: None,
            certificate_key_file: None,
            host: Some("localhost".to_owned()),
            port: self.port,
            ca_file: Some(self.put("ca.pem", self.root.pem())),
            concurrency: self.concurrency,
            rate: 1_000_000,
            connections: 2,
            jitter: Duration::ZERO,
        }
    }

    fn firebase(&self) -> FirebaseSettings {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let account = serde_json::json!({
            "client_email": "push@example.org", "private_key": key.serialize_pem(), "project_id": "example",
            "token_uri": format!("https://localhost:{}/token", self.port),
        });
        self.section(serde_json::json!({ "service_account_file": self.put("firebase.json", account.to_string()) }))
    }

    fn huawei(&self) -> HuaweiSettings {
        self.section(serde_json::json!({
            "client_id": "1", "client_secret_file": self.put("huawei.secret", "secret".to_owned()),
            "token_uri": format!("https://localhost:{}/token", self.port),
        }))
    }

    /// JSON stands for TOML here: the shape is the same.
    fn section<T: serde::de::DeserializeOwned>(&self, mut own: serde_json::Value) -> T {
        own["host"] = "localhost".into();
        own["port"] = self.port.into();
        own["concurrency"] = self.concurrency.into();
        own["ca_file"] = self.folder.join("ca.pem").to_str().into();
        serde_json::from_value(own).unwrap()
    }
}

async fn lane<D: Deliver + 'static>(provider: D, pushes: usize, concurrency: usize) -> f64 {
    let timeout = Duration::from_secs(10);
    let (service, provider) = (provider.service(), Arc::new(provider));
    let (jobs, taken) = mpsc::channel(1024);
    let (outcomes, mut answered) = mpsc::channel(1024);
    tokio::spawn(run_lane(
        provider,
        taken,
        outcomes,
        concurrency,
        timeout,
        std::future::pending(),
    ));
    let start = Instant::now();
    tokio::spawn(async move {
        for entry in 0..pushes {
            jobs.send(push(service, entry)).await.unwrap();
        }
    });
    let mut delivered = 0;
    while let Some((_, outcome)) = answered.recv().await {
        assert_eq!(outcome, Outcome::Delivered);
        delivered += 1;
    }
    assert_eq!(delivered, pushes);
    pushes as f64 / start.elapsed().as_secs_f64()
}

fn push(service: Service, entry: usize) -> Push {
    let mut id = [0; 16];
    let mut token = [7; 32];
    for (place, byte) in entry.to_be_bytes().into_iter().enumerate() {
        id[place] = byte;
        token[place] = byte;
    }
    let token = match service {
        Service::Apns => DeviceToken::new(token),
        _ => DeviceToken::new(hex::encode(token).into_bytes()),
    };
    Push {
        entry: EntryId(entry as i64),
        push_id: PushId(id),
        service,
        token,
        payload: vec![0x5A; PAYLOAD].into(),
        priority: Priority::High,
        class: Class::Visible,
        too_long: false,
        deadline_ms: i64::MAX,
        expires_at_ms: 1_900_000_000_000,
    }
}

/// Two connections, a request built once and cloned, nothing read but the status.
async fn bare(settings: &ApnsSettings, requests: usize, concurrency: usize) -> f64 {
    let roots = credential::roots(settings.ca_file.as_deref()).ok().unwrap();
    let tls = credential::tls(roots, None, &[b"h2"]).unwrap();
    let endpoint = Endpoint::new("localhost", settings.port, tls).unwrap();
    let mut senders = Vec::new();
    for _ in 0..2 {
        let stream = TokioIo::new(open(&endpoint).await.unwrap());
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        senders.push(sender);
    }
    let request: Request<Full<Bytes>> = Request::post(format!(
        "https://localhost:{}/3/device/{}",
        settings.port,
        "07".repeat(32)
    ))
    .header("authorization", "bearer ".to_owned() + &"x".repeat(200))
    .header("apns-topic", "org.example.app")
    .header("apns-push-type", "alert")
    .header("apns-priority", "10")
    .header("apns-id", "01112131-4151-6171-8191-a1b1c1d1e1f1")
    .header("apns-expiration", "1900000000")
    .body(Full::new(Bytes::from(vec![b'x'; 3990])))
    .unwrap();
    let start = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for number in 0..requests {
        if under_way.len() >= concurrency {
            under_way.next().await;
        }
        let sent = senders[number % 2].send_request(request.clone());
        under_way.push(async move {
            let response = sent.await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap();
        });
    }
    while under_way.next().await.is_some() {}
    requests as f64 / start.elapsed().as_secs_f64()
}
