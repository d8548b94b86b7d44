//! The http stage on real sockets, with a shelf in memory where the store would be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ed25519_dalek::{Signer, SigningKey};
use notifier_core::account::Service;
use notifier_core::subscription::{DeviceId, Subscription, TestWish, Unsubscription};
use notifier_core::webpush::Guard;
use quietline_notifier::http::{Http, Settings, Stored, Subscriptions, Tested, Unavailable, WebPush, serve};
use quietline_shared::crypto::x25519_public;
use quietline_shared::redact::Secret;
use quietline_shared::service::audit::PublicationSettings;
use quietline_shared::service::config::SettingsFile;
use quietline_shared::service::lifecycle;
use quietline_shared::service::telemetry::{LogSettings, Metrics, OpsSettings};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, oneshot};

mod canaries;
mod envelope;
mod hostile;
mod vectors;

use envelope::{Cipher, Client};

const NOW: i64 = 1_800_000_000;
const ONION_KEY: [u8; 32] = [0x42; 32];

/// Keeps devices in memory, or behaves as a store in trouble.
#[derive(Default)]
struct Shelf {
    devices: Mutex<HashSet<DeviceId>>,
    trouble: Mutex<Trouble>,
}

#[derive(Clone, Default)]
enum Trouble {
    #[default]
    None,
    Refuses,
    Hangs,
    /// Goes on once so many calls are under way at the same time.
    WaitsFor(Arc<Barrier>),
    /// Refuses accounts whose key begins with this byte.
    RefusesSome(u8),
    /// Takes no further device of accounts whose key begins with this byte.
    FullFor(u8),
    /// Panics with a text about a device.
    Panics,
}

impl Shelf {
    async fn pass(&self, device: &DeviceId) -> Result<(), Unavailable> {
        let trouble = self.trouble.lock().unwrap().clone();
        match trouble {
            Trouble::None => Ok(()),
            Trouble::Refuses => Err(Unavailable),
            Trouble::Hangs => std::future::pending().await,
            Trouble::WaitsFor(barrier) => {
                barrier.wait().await;
                Ok(())
            }
            Trouble::RefusesSome(first) if device.account.key()[0] == first => Err(Unavailable),
            Trouble::RefusesSome(_) | Trouble::FullFor(_) => Ok(()),
            Trouble::Panics => panic!("lost {}", String::from_utf8_lossy(device.token.expose())),
        }
    }
}

#[derive(Clone, Default)]
struct SharedShelf(Arc<Shelf>);

impl Subscriptions for SharedShelf {
    async fn subscribe(&self, subscription: Subscription) -> Result<Stored, Unavailable> {
        self.0.pass(&subscription.device).await?;
        if matches!(*self.0.trouble.lock().unwrap(), Trouble::FullFor(first) if subscription.device.account.key()[0] == first)
        {
            return Ok(Stored::Full);
        }
        let new = self.0.devices.lock().unwrap().insert(subscription.device);
        Ok(if new { Stored::Added } else { Stored::Updated })
    }

    async fn unsubscribe(&self, wish: Unsubscription) -> Result<bool, Unavailable> {
        self.0.pass(&wish.device).await?;
        Ok(self.0.devices.lock().unwrap().remove(&wish.device))
    }

    async fn test(&self, wish: TestWish) -> Result<Tested, Unavailable> {
        self.0.pass(&wish.device).await?;
        let is_there = self.0.devices.lock().unwrap().contains(&wish.device);
        Ok(if is_there {
            Tested::Accepted
        } else {
            Tested::NotSubscribed
        })
    }
}

struct Server {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    client: Client,
    _stop: oneshot::Sender<()>,
}

async fn start(settings: &str) -> Server {
    start_with_key(settings, ONION_KEY).await
}

async fn start_with_key(settings: &str, onion_key: [u8; 32]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shelf = SharedShelf::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let http = Http {
        pages: axum::Router::new(),
        settings: parse_settings(settings),
        onion_key: Secret::new(onion_key),
        services: vec![Service::Apns, Service::Firebase, Service::Webpush],
        web_push: Some(WebPush {
            vapid_public_key: "B".repeat(87),
            guard: Guard::default(),
        }),
        turn: tokio::sync::watch::channel(None).1,
        subscriptions: shelf.clone(),
        clock: Arc::new(|| NOW),
    };
    tokio::spawn(serve(listener, http, async {
        let _ = stopped.await;
    }));
    let client = Client::new(x25519_public(&Secret::new(onion_key)));
    Server {
        address,
        shelf: shelf.0,
        client,
        _stop: stop,
    }
}

fn parse_settings(text: &str) -> Settings {
    toml::from_str(&format!("onion_key_file = \"keys/onion\"\n{text}")).unwrap()
}

struct Reply {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn parse_reply(bytes: &[u8]) -> Reply {
    let split = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a whole head");
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply {
        code,
        head,
        body: bytes[split + 4..].to_vec(),
    }
}

impl Server {
    /// What the server says until it closes.
    async fn raw(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server that has heard enough may close early.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }

    async fn request(&self, method: &str, path: &str, extra: &str, body: &[u8]) -> Reply {
        let length = body.len();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        parse_reply(&self.raw(&request).await)
    }

    async fn post(&self, path: &str, body: &[u8]) -> Reply {
        self.request("POST", path, "", body).await
    }

    async fn post_json(&self, path: &str, body: &Value) -> Reply {
        self.post(path, body.to_string().as_bytes()).await
    }

    /// The inner code and body of an onion request.
    async fn through_onion(&self, cipher: Cipher, endpoint: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let (sealed, key) = self.client.seal(cipher, "POST", endpoint, Some(body));
        let reply = self.post("/oxen/v4/lsrpc", &sealed).await;
        assert_eq!(reply.code, 200, "{}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
        let inner = key.open(&reply.body);
        assert_eq!(inner.content_type, "application/json");
        (inner.code, inner.body)
    }

    fn trouble(&self, trouble: Trouble) {
        *self.shelf.trouble.lock().unwrap() = trouble;
    }
}

fn signed(seed: u8, text: impl Fn(&str) -> String) -> (String, String) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let account = format!("03{}", hex::encode(key.verifying_key().to_bytes()));
    let signature = hex::encode(key.sign(text(&account).as_bytes()).to_bytes());
    (account, signature)
}

fn key_byte(seed: u8) -> u8 {
    SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes()[0]
}

/// A subscription of a group account made from `seed`, signed at `sig_ts`.
fn subscription_at(seed: u8, sig_ts: i64) -> Value {
    let (account, signature) = signed(seed, |account| format!("MONITOR{account}{sig_ts}10,1"));
    json!({
        "pubkey": account, "namespaces": [0, 1], "data": true, "sig_ts": sig_ts, "signature": signature,
        "service": "firebase", "service_info": {"token": format!("device-{seed}-of-the-test")}, "enc_key": "9f".repeat(32),
    })
}

fn subscription(seed: u8) -> Value {
    subscription_at(seed, NOW)
}

fn unsubscription(seed: u8) -> Value {
    let (account, signature) = signed(seed, |account| format!("UNSUBSCRIBE{account}{NOW}"));
    json!({
        "pubkey": account, "sig_ts": NOW, "signature": signature,
        "service": "firebase", "service_info": {"token": format!("device-{seed}-of-the-test")},
    })
}

fn added() -> Value {
    json!({"success": true, "added": true, "message": "Subscription successful"})
}

fn updated() -> Value {
    json!({"success": true, "updated": true, "message": "Resubscription successful"})
}

fn unavailable() -> Value {
    json!({"error": 2, "message": "Notifications cannot be changed at the moment"})
}

#[tokio::test]
async fn a_device_is_added_updated_removed_and_then_absent() {
    let server = start("").await;
    for expected in [added(), updated()] {
        let reply = server.post_json("/subscribe", &subscription(1)).await;
        assert_eq!((reply.code, reply.json()), (200, expected));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    for (removed, message) in [
        (true, "Device unsubscribed from push notifications"),
        (false, "Device was not subscribed to push notifications"),
    ] {
        let reply = server.post_json("/unsubscribe", &unsubscription(1)).await;
        assert_eq!(
            (reply.code, reply.json()),
            (200, json!({"success": true, "removed": removed, "message": message}))
        );
    }
}

#[tokio::test]
async fn the_answer_has_the_form_of_the_request() {
    let server = start("").await;
    let reply = server.post_json("/subscribe", &json!([subscription(1)])).await;
    assert_eq!((reply.code, reply.json()), (200, json!([added()])));
    let reply = server.post_json("/subscribe", &json!([])).await;
    assert_eq!((reply.code, reply.json()), (200, json!([])));
    let reply = server
        .post_json("/unsubscribe", &json!([unsubscription(1), unsubscription(2)]))
        .await;
    assert_eq!(reply.json()[0]["removed"], true);
    assert_eq!(reply.json()[1]["removed"], false);
}

#[tokio::test]
async fn one_bad_item_leaves_the_others_alone() {
    let server = start("").await;
    let mut forged = subscription(2);
    forged["sig_ts"] = json!(NOW - 1);
    let reply = server
        .post_json("/subscribe", &json!([subscription(1), forged, 5, {}, subscription(3)]))
        .await;
    assert_eq!(reply.code, 200);
    let answers = reply.json();
    assert_eq!((&answers[0], &answers[4]), (&added(), &added()));
    let errors: Vec<i64> = (1..4).map(|index| answers[index]["error"].as_i64().unwrap()).collect();
    assert_eq!(errors, [4, 4, 1]);
    assert_eq!(answers.as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn items_of_an_array_are_stored_together_and_answered_in_order() {
    let server = start("").await;
    server.post_json("/subscribe", &subscription(30)).await;
    server.trouble(Trouble::WaitsFor(Arc::new(Barrier::new(40))));
    let items: Vec<Value> = (1..=40).map(subscription).collect();
    let reply = server.post_json("/subscribe", &json!(items)).await;
    let mut expected = vec![added(); 40];
    expected[29] = updated();
    assert_eq!((reply.code, reply.json()), (200, json!(expected)));
}

#[tokio::test]
async fn a_store_in_trouble_is_503_with_the_same_body() {
    let server = start("").await;
    server.trouble(Trouble::Refuses);
    for (path, item) in [("/subscribe", subscription(1)), ("/unsubscribe", unsubscription(1))] {
        let reply = server.post_json(path, &item).await;
        assert_eq!((reply.code, reply.json()), (503, unavailable()));
    }
    server.trouble(Trouble::RefusesSome(key_byte(2)));
    let reply = server
        .post_json("/subscribe", &json!([subscription(1), subscription(2), {}]))
        .await;
    let missing = json!({"error": 1, "message": "Missing required parameter"});
    assert_eq!(
        (reply.code, reply.json()),
        (503, json!([added(), unavailable(), missing]))
    );
}

#[tokio::test]
async fn a_full_account_is_told_so_with_200_because_a_repetition_does_not_help() {
    let server = start("").await;
    server.trouble(Trouble::FullFor(key_byte(2)));
    let full = json!({"error": 4, "message": "Too many devices for this account"});
    let reply = server.post_json("/subscribe", &subscription(2)).await;
    assert_eq!((reply.code, reply.json()), (200, full.clone()));
    let reply = server
        .post_json("/subscribe", &json!([subscription(1), subscription(2)]))
        .await;
    assert_eq!((reply.code, reply.json()), (200, json!([added(), full])));
}

#[tokio::test]
async fn a_time_outside_the_window_is_425_unless_something_must_be_repeated_anyway() {
    let server = start("").await;
    let late = subscription_at(1, NOW - 14 * 86_400);
    let early = subscription_at(1, NOW + 86_400);
    for item in [&late, &early] {
        let reply = server.post_json("/subscribe", item).await;
        assert_eq!((reply.code, &reply.json()["error"]), (425, &json!(4)));
        let reply = server.post_json("/subscribe", &json!([subscription(2), item])).await;
        assert_eq!((reply.code, reply.json().as_array().unwrap().len()), (425, 2));
    }
    for inside in [NOW - 14 * 86_400 + 1, NOW + 86_400 - 1] {
        assert_eq!(
            server.post_json("/subscribe", &subscription_at(3, inside)).await.code,
            200
        );
    }
    server.trouble(Trouble::Refuses);
    assert_eq!(
        server
            .post_json("/subscribe", &json!([late, subscription(2)]))
            .await
            .code,
        503
    );
    let mut old = unsubscription(1);
    old["sig_ts"] = json!(NOW - 86_401);
    assert_eq!(server.post_json("/unsubscribe", &old).await.code, 425);
}

#[tokio::test]
async fn a_service_is_on_offer_even_while_its_provider_is_down_and_others_are_not() {
    let server = start("").await;
    let mut item = subscription(1);
    for name in ["apns-sandbox", "huawei", "Firebase"] {
        item["service"] = json!(name);
        let reply = server.post_json("/subscribe", &item).await;
        let message = format!("{name} notification service not currently available");
        assert_eq!(
            (reply.code, reply.json()),
            (200, json!({"error": 2, "message": message}))
        );
    }
}

#[tokio::test]
async fn both_ciphers_carry_the_code_inside() {
    let server = start("").await;
    for (seed, cipher) in [(1, Cipher::AesGcm), (2, Cipher::XChaCha20)] {
        let text = |value: &Value| value.to_string().into_bytes();
        let (code, body) = server
            .through_onion(cipher, "/subscribe", &text(&json!([subscription(seed)])))
            .await;
        assert_eq!(
            (code, serde_json::from_slice::<Value>(&body).unwrap()),
            (200, json!([added()]))
        );
        let (code, _) = server
            .through_onion(cipher, "/subscribe", &text(&subscription_at(seed, 5)))
            .await;
        assert_eq!(code, 425);
        let (code, body) = server.through_onion(cipher, "/subscribe", b"[]").await;
        assert_eq!((code, &body[..]), (200, &b"[]"[..]));
        let (code, body) = server
            .through_onion(cipher, "/unsubscribe", &text(&unsubscription(seed)))
            .await;
        assert_eq!(
            (code, serde_json::from_slice::<Value>(&body).unwrap()["removed"].clone()),
            (200, json!(true))
        );
        server.trouble(Trouble::Refuses);
        let (code, _) = server
            .through_onion(cipher, "/unsubscribe", &text(&unsubscription(seed)))
            .await;
        assert_eq!(code, 503);
        server.trouble(Trouble::None);
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_in_time() {
    let server = start("request_timeout = \"300ms\"").await;
    server.trouble(Trouble::Hangs);
    let timed_out = json!({"error": 3, "message": "The request took too long"});
    let reply = server.post_json("/subscribe", &json!([subscription(1)])).await;
    assert_eq!((reply.code, reply.json()), (503, timed_out.clone()));
    let text = subscription(1).to_string();
    let (code, body) = server
        .through_onion(Cipher::XChaCha20, "/subscribe", text.as_bytes())
        .await;
    assert_eq!(
        (code, serde_json::from_slice::<Value>(&body).unwrap()),
        (503, timed_out)
    );
}

#[tokio::test]
async fn one_source_is_limited_and_another_is_not() {
    let server = start("direct_rate = 1\ndirect_burst = 2").await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let ask = |extra: String| {
        let server = &server;
        async move { server.request("POST", "/subscribe", &extra, b"[]").await }
    };
    assert_eq!(ask(from("203.0.113.1")).await.code, 200);
    assert_eq!(ask(from("203.0.113.2")).await.code, 200);
    let refused = ask(from("203.0.113.3")).await;
    assert_eq!((refused.code, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(ask(from("198.51.100.1")).await.code, 200);
    // The limit is for direct requests; onions come from the storage nodes, many from each.
    let (code, _) = server.through_onion(Cipher::AesGcm, "/subscribe", b"[]").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn too_many_onions_are_refused_before_they_are_opened() {
    let server = start("onion_rate = 1\nonion_burst = 1").await;
    let (sealed, _) = server.client.seal(Cipher::AesGcm, "POST", "/subscribe", Some(b"[]"));
    assert_eq!(server.post("/oxen/v4/lsrpc", &sealed).await.code, 200);
    let refused = server.post("/oxen/v4/lsrpc", &sealed).await;
    assert_eq!(
        (refused.code, refused.header("retry-after"), &refused.body[..]),
        (503, Some("1"), &b"Busy"[..])
    );
    assert_eq!(server.post("/subscribe", b"[]").await.code, 200);
}

#[tokio::test]
async fn without_direct_requests_only_onions_are_answered() {
    let server = start("direct = false").await;
    for path in ["/subscribe", "/unsubscribe"] {
        assert_eq!(server.post(path, b"[]").await.code, 404);
    }
    let (code, _) = server.through_onion(Cipher::AesGcm, "/subscribe", b"[]").await;
    assert_eq!(code, 200);
    assert_eq!(server.request("GET", "/info", "", b"").await.code, 200);
}

#[tokio::test]
async fn other_paths_and_methods_do_not_exist() {
    let server = start("").await;
    for path in [
        "/",
        "/subscribe/",
        "/oxen/v4",
        "/oxen/v3/lsrpc",
        "/metrics",
        "/health/live",
        "/subscribe_closed_group",
    ] {
        assert_eq!(server.post(path, b"{}").await.code, 404, "{path}");
    }
    for path in ["/subscribe", "/unsubscribe", "/oxen/v4/lsrpc"] {
        let reply = server.request("GET", path, "", b"").await;
        assert_eq!((reply.code, reply.header("allow")), (405, Some("POST")), "{path}");
    }
    assert_eq!(server.post("/info", b"").await.code, 405);
}

#[tokio::test]
async fn info_is_about_the_server_only() {
    let server = start("").await;
    server.post_json("/subscribe", &subscription(1)).await;
    let reply = server.request("GET", "/info", "", b"").await;
    let expected = json!({
        "name": "quietline-notifier",
        "version": env!("CARGO_PKG_VERSION"),
        "onion_public_key": hex::encode(x25519_public(&Secret::new(ONION_KEY))),
        "services": ["apns", "firebase", "webpush"],
        "vapid_public_key": "B".repeat(87),
    });
    assert_eq!((reply.code, reply.json()), (200, expected));
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn pipelined_and_http_1_0_requests_are_answered() {
    let server = start("").await;
    let one = "POST /subscribe HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]";
    let last = "POST /subscribe HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    let answer = server.raw(format!("{}{last}", one.repeat(5)).as_bytes()).await;
    let text = String::from_utf8(answer).unwrap();
    assert_eq!(
        (
            text.matches("HTTP/1.1 200 OK").count(),
            text.matches("\r\n\r\n[]").count()
        ),
        (6, 5)
    );
    assert!(
        text.ends_with(r#"{"error":1,"message":"Missing required parameter"}"#),
        "{text}"
    );
    let old = server
        .raw(b"POST /subscribe HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]")
        .await;
    assert!(
        old.starts_with(b"HTTP/1.0 200 OK") && old.ends_with(b"[]"),
        "{:?}",
        String::from_utf8_lossy(&old)
    );
}

#[tokio::test]
async fn content_type_does_not_matter() {
    let server = start("").await;
    for extra in ["", "Content-Type: text/plain\r\n", "Content-Type: \u{1}\r\n"] {
        let reply = server.request("POST", "/subscribe", extra, b"[]").await;
        assert!(
            reply.code == 200 || extra.contains('\u{1}') && reply.code == 400,
            "{extra:?}: {}",
            reply.code
        );
    }
}

#[tokio::test]
async fn requests_are_counted_without_a_word_about_people() {
    let metrics = Metrics::install().unwrap();
    let server = start("direct_burst = 9\ndirect_rate = 1").await;
    let before = metrics.render();
    server.post_json("/subscribe", &subscription(77)).await;
    server.post_json("/unsubscribe", &unsubscription(77)).await;
    server.post("/subscribe", b"{}").await;
    server.post("/oxen/v4/lsrpc", b"garbage").await;
    server.through_onion(Cipher::AesGcm, "/subscribe", b"[]").await;
    while server.post("/subscribe", b"[]").await.code != 429 {}
    let after = metrics.render();
    for line in [
        r#"http_items_total{operation="subscribe",outcome="added"}"#,
        r#"http_items_total{operation="unsubscribe",outcome="removed"}"#,
        r#"http_items_total{operation="subscribe",outcome="missing_parameter"}"#,
        r#"http_onion_refused_total{reason="length_beyond_end"}"#,
        r#"http_onion_replies_total{code="200"}"#,
        r#"http_requests_total{path="subscribe",code="200"}"#,
        r#"http_requests_total{path="onion",code="400"}"#,
        r#"http_refused_total{path="subscribe",reason="source_limit"}"#,
        r#"http_request_seconds_count{path="onion"}"#,
        r#"server_connections{server="http"}"#,
    ] {
        assert!(
            value(&after, line) > value(&before, line) || line.starts_with("server_"),
            "{line} in {after}"
        );
        assert!(after.contains(line), "{line} in {after}");
    }
    let (account, _) = signed(77, |_| String::new());
    for canary in [&account[2..20], "device-77", "9f9f", "127.0.0.1"] {
        assert!(!after.contains(canary), "{canary}");
    }
}

fn value(metrics: &str, line: &str) -> f64 {
    let found = metrics
        .lines()
        .find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_default()
}

#[test]
fn the_example_shows_what_is_published_by_default() {
    let example: toml::Table = toml::from_str(include_str!("../../../deploy/notifier.toml")).unwrap();
    let shown: PublicationSettings = example["transparency"].clone().try_into().unwrap();
    assert_eq!(shown, PublicationSettings::default());
}

#[test]
fn the_example_settings_show_the_defaults() {
    let example: toml::Table = toml::from_str(include_str!("../../../deploy/notifier.toml")).unwrap();
    let shown: Settings = example["http"].clone().try_into().unwrap();
    let default = parse_settings("");
    assert_eq!(format!("{shown:?}"), format!("{default:?}"));
}

#[test]
fn the_example_settings_are_read_with_paths_that_start_at_their_folder() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/notifier.toml");
    let mut file = SettingsFile::read(path.as_ref()).unwrap();
    let http = file.section::<Settings>("http");
    let ops = file.section::<OpsSettings>("ops");
    let log = file.section::<LogSettings>("log");
    let lifecycle = file.section::<lifecycle::Settings>("lifecycle");
    assert!(file.finish_partly().unwrap().0.is_empty());
    assert!(http.unwrap().onion_key_file.ends_with("deploy/keys/onion"));
    assert_eq!((ops, log), (Some(OpsSettings::default()), Some(LogSettings::default())));
    assert_eq!(lifecycle.unwrap().drain, std::time::Duration::from_secs(20));
}

#[test]
fn settings_outside_their_bounds_are_refused() {
    for text in [
        "body_limit = 1023",
        "body_limit = 16777217",
        "request_timeout = \"0s\"",
        "request_timeout = \"1h\"",
        "connections = 0",
        "direct_rate = 0",
        "direct_burst = 0",
        "onion_rate = 0",
        "onion_burst = -1",
        "bodylimit = 5000",
    ] {
        let text = format!("onion_key_file = \"keys/onion\"\n{text}");
        assert!(toml::from_str::<Settings>(&text).is_err(), "{text}");
    }
}
