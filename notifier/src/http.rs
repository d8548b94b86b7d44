//! Where requests come in: subscriptions and relays for calls, through an onion or directly, and what anybody may know of us.
//!
//! In: bytes of clients and storage nodes. Out: verified `Subscription`s and `Unsubscription`s to whoever keeps them, and answers.
//! Never: keeps or logs an address, waits without a deadline, or reads more than a bounded number of bytes.
//!
//! | request | answer |
//! |---|---|
//! | POST /subscribe, /unsubscribe, /test | the HTTP status says whether to repeat; JSON of the form of the request |
//! | POST /turn/credentials | relays and credentials for a call, or a refusal of the same length |
//! | POST /oxen/v4/lsrpc | 200 with a sealed reply, whose code is the one above; 400 if it cannot be opened |
//! | GET /info | JSON |
//! | GET /transparency | a page for people, if the settings want it |
//!
//! Without direct requests (a setting) the first two do not exist: 404. Nor does the second without relays.

mod body;
mod info;
mod limits;
mod onion;
mod subscribe;
mod turn;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use body::{BodyFault, BodyReader};
use bytes::Bytes;
use limits::{CommonLimit, SourceLimit, Wait, network_of};
use notifier_core::account::Service;
use notifier_core::subscription::{Subscription, TestWish, Unsubscription};
use notifier_core::webpush::Guard;
use onion::OnionRefusal;
use quietline_shared::crypto::x25519_public;
use quietline_shared::redact::Secret;
use quietline_shared::service::server::{self, Limits, SourceAddr};
use serde::{Deserialize, Deserializer};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use subscribe::{Desk, Operation, WholeFault};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use turn::TurnDesk;
pub use turn::{TurnOffer, TurnSettings, read as read_turn};

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Plain HTTP; a TLS proxy stands before it. Default 127.0.0.1:8000.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// X25519 key of the onion layer; clients pin its public half.
    pub onion_key_file: PathBuf,
    /// Whether requests outside of onions are answered. Default yes.
    #[serde(default = "yes")]
    pub direct: bool,
    /// Bytes; 1,024 to 16 MiB, default 262,144.
    #[serde(default = "default_body_limit", deserialize_with = "body_limit")]
    pub body_limit: usize,
    /// Direct requests a second by source network. Default 20.
    #[serde(default = "default_direct_rate")]
    pub direct_rate: NonZeroU32,
    /// Direct requests of one source network at once. Default 200.
    #[serde(default = "default_direct_burst")]
    pub direct_burst: NonZeroU32,
    /// Onion requests a second of all sources. Default 20,000.
    #[serde(default = "default_onion_rate")]
    pub onion_rate: NonZeroU32,
    /// Onion requests at once. Default 40,000.
    #[serde(default = "default_onion_burst")]
    pub onion_burst: NonZeroU32,
    /// Longest time one request may take, its body included. Default 15 s.
    #[serde(default = "fifteen_seconds", deserialize_with = "time_to_answer")]
    pub request_timeout: Duration,
    /// Connections at once. Default 4,096.
    #[serde(default = "default_connections")]
    pub connections: NonZeroUsize,
}

/// What happened to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Added,
    Updated,
    /// Not stored: the account has as many devices as it may have.
    Full,
    /// Not stored: the signer used a binding before, and this subscription has none.
    BindingRequired,
}

/// What became of a test wakeup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tested {
    /// The push service took it: if nothing is seen, look at the phone.
    Accepted,
    /// There is no such subscription: subscribe again.
    NotSubscribed,
    /// The push service says that the token is dead: get another one and subscribe again.
    Dead,
    /// The push service refused it, or our settings do.
    Refused,
    /// The push service could not be reached, or wants less; wakeups wait for it.
    Unreachable,
}

impl Tested {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NotSubscribed => "not_subscribed",
            Self::Dead => "dead",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }

    pub const fn message(self) -> &'static str {
        match self {
            Self::Accepted => "Test notification accepted by the push service",
            Self::NotSubscribed => "Device was not subscribed to push notifications",
            Self::Dead => "The push service does not know the device any more",
            Self::Refused => "The push service refused the test notification",
            Self::Unreachable => "The push service cannot be reached at the moment",
        }
    }
}

/// What Web Push needs at the door.
pub struct WebPush {
    /// 87 characters.
    pub vapid_public_key: String,
    pub guard: Guard,
}

/// The wish could not be stored now; a repetition may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("subscriptions cannot be changed at the moment")]
pub struct Unavailable;

/// Who keeps subscriptions. `Ok` means durable, or never to be. Calls of one request come at once and are safe to drop or repeat.
pub trait Subscriptions: Send + Sync + 'static {
    fn subscribe(&self, subscription: Subscription) -> impl Future<Output = Result<Stored, Unavailable>> + Send;

    /// `true` if there was such a subscription.
    fn unsubscribe(&self, wish: Unsubscription) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Sends one wakeup now and says what its provider answered.
    fn test(&self, wish: TestWish) -> impl Future<Output = Result<Tested, Unavailable>> + Send;
}

/// Unix seconds.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Everything the stage needs besides its listener.
pub struct Http<S> {
    pub settings: Settings,
    pub onion_key: Secret<[u8; 32]>,
    /// The services on offer. One whose provider is down stays on offer: its wakeups wait in the outbox.
    pub services: Vec<Service>,
    pub web_push: Option<WebPush>,
    /// Relays for calls; without any that endpoint does not exist.
    pub turn: watch::Receiver<Option<Arc<TurnOffer>>>,
    pub subscriptions: S,
    pub clock: Clock,
    /// Pages for people, of whoever knows what stands on them.
    pub pages: Router,
}

/// Answers until `stop`, then what is under way. Dropping the future closes every connection.
pub async fn serve<S: Subscriptions>(listener: TcpListener, http: Http<S>, stop: impl Future<Output = ()>) {
    let limits = Limits {
        name: "http",
        connections: http.settings.connections.get(),
        header_timeout: HEADER_TIMEOUT.min(http.settings.request_timeout),
        write_timeout: http.settings.request_timeout,
    };
    describe_metrics();
    server::serve(listener, router(http), limits, stop).await;
}

fn router<S: Subscriptions>(http: Http<S>) -> Router {
    let direct = http.settings.direct;
    let pages = http.pages.clone();
    let state = Arc::new(State::new(http));
    let mut router = pages;
    if direct {
        for operation in Operation::ALL {
            let state = Arc::clone(&state);
            let handler = async move |request: Request| state.direct(operation, request).await;
            router = router.route(operation.path(), post(handler));
        }
    }
    let info =
        async move |state: Arc<State<S>>| answer("info", Instant::now(), StatusCode::OK, JSON, state.info.clone());
    let info_state = Arc::clone(&state);
    router
        .route(
            "/oxen/v4/lsrpc",
            post(async move |request: Request| state.onion(request).await),
        )
        .route("/info", get(move || info(info_state)))
}

struct State<S> {
    desk: Desk<S>,
    onion_key: Secret<[u8; 32]>,
    body_limit: usize,
    request_timeout: Duration,
    bodies: BodyReader,
    by_source: SourceLimit,
    onions: CommonLimit,
    info: Bytes,
}

impl<S: Subscriptions> State<S> {
    fn new(http: Http<S>) -> Self {
        let Http {
            settings,
            onion_key,
            services,
            web_push,
            turn,
            subscriptions,
            clock,
            pages: _,
        } = http;
        let start = std::time::Instant::now();
        let vapid_public_key = web_push.as_ref().map(|web_push| web_push.vapid_public_key.as_str());
        Self {
            info: info::info(&x25519_public(&onion_key), &services, vapid_public_key),
            desk: Desk {
                subscriptions,
                services,
                clock,
                guard: web_push.map(|web_push| web_push.guard),
                tests: SourceLimit::every(TEST_EVERY, TEST_BURST, start),
                turn: TurnDesk::new(turn),
            },
            onion_key,
            body_limit: settings.body_limit,
            request_timeout: settings.request_timeout,
            bodies: BodyReader::new(),
            by_source: SourceLimit::new(settings.direct_rate, settings.direct_burst, start),
            onions: CommonLimit::new(settings.onion_rate, settings.onion_burst, start),
        }
    }

    async fn direct(&self, operation: Operation, request: Request) -> Response {
        let start = Instant::now();
        if !self.desk.offers(operation) {
            return Refusal::NotOffered.answer(operation.label(), start);
        }
        let deadline = start + self.request_timeout;
        let (parts, body) = request.into_parts();
        let allowed = match parts.extensions.get::<SourceAddr>() {
            Some(source) => self
                .by_source
                .take(network_of(*source, &parts.headers), start.into_std()),
            // Only a router without our server under it has no source, and that has no strangers either.
            None => Ok(()),
        };
        let kept = if allowed.is_ok() { self.body_limit } else { 0 };
        let body = self.bodies.read(body, kept, deadline).await;
        let answered = match (allowed, body) {
            (Err(wait), _) => Err(Refusal::SourceLimit(wait)),
            (Ok(()), Ok(text)) if text.bytes().is_empty() => Ok(self.desk.refuse(operation, WholeFault::NoBody)),
            (Ok(()), Ok(text)) => Ok(self.desk.answer(operation, text.bytes(), deadline).await),
            (Ok(()), Err(BodyFault::TooLarge)) => Ok(self.desk.refuse(operation, WholeFault::TooLarge)),
            (Ok(()), Err(BodyFault::TooSlow)) => Err(Refusal::TooSlow),
            (Ok(()), Err(BodyFault::Broken)) => Err(Refusal::Broken),
            (Ok(()), Err(BodyFault::NoRoom)) => Err(Refusal::NoRoom),
        };
        match answered {
            Ok(made) => answer(operation.label(), start, made.code, JSON, Bytes::from(made.json)),
            Err(refusal) => refusal.answer(operation.label(), start),
        }
    }

    async fn onion(&self, request: Request) -> Response {
        let start = Instant::now();
        let deadline = start + self.request_timeout;
        // A client counts any outer answer but 200 against the path. Where everybody asks too much, saying so in secret would cost
        // what we do not have, so the refusal comes before the decryption.
        let allowed = self.onions.take(start.into_std());
        let kept = if allowed.is_ok() {
            self.body_limit + ONION_ROOM
        } else {
            0
        };
        let body = self.bodies.read(request.into_body(), kept, deadline).await;
        let answered = match (allowed, body) {
            (Err(wait), _) => Err(Refusal::OnionLimit(wait)),
            (Ok(()), Ok(sealed)) => {
                onion::answer(sealed.bytes(), &self.onion_key, &self.desk, self.body_limit, deadline)
                    .await
                    .map_err(Refusal::from)
            }
            (Ok(()), Err(BodyFault::TooLarge)) => Err(Refusal::TooLarge),
            (Ok(()), Err(BodyFault::TooSlow)) => Err(Refusal::TooSlow),
            (Ok(()), Err(BodyFault::Broken)) => Err(Refusal::Broken),
            (Ok(()), Err(BodyFault::NoRoom)) => Err(Refusal::NoRoom),
        };
        match answered {
            Ok(sealed) => answer(ONION, start, StatusCode::OK, OCTETS, Bytes::from(sealed)),
            Err(refusal) => refusal.answer(ONION, start),
        }
    }
}

/// A request that is answered with an HTTP status and a constant text. None of the texts is one for which a client punishes the
/// nodes of its path ("Next node not found", "Request time out", …).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    SourceLimit(Wait),
    OnionLimit(Wait),
    TooLarge,
    TooSlow,
    Broken,
    NoRoom,
    Unreadable,
    NoRandomness,
    NotOffered,
}

impl From<OnionRefusal> for Refusal {
    fn from(refusal: OnionRefusal) -> Self {
        match refusal {
            OnionRefusal::Outer(_) => Self::Unreadable,
            OnionRefusal::NoRandomness => Self::NoRandomness,
        }
    }
}

impl Refusal {
    const fn table(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::SourceLimit(_) => (StatusCode::TOO_MANY_REQUESTS, "Too many requests", "source_limit"),
            Self::OnionLimit(_) => (StatusCode::SERVICE_UNAVAILABLE, "Busy", "onion_limit"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Request too large", "too_large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "Request too slow", "too_slow"),
            Self::Broken => (StatusCode::BAD_REQUEST, "Request broken off", "broken"),
            Self::NoRoom => (StatusCode::SERVICE_UNAVAILABLE, "Busy", "no_room"),
            Self::Unreadable => (StatusCode::BAD_REQUEST, INVALID_ONION, "unreadable"),
            Self::NoRandomness => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error", "no_randomness"),
            Self::NotOffered => (StatusCode::NOT_FOUND, "Not Found", "not_offered"),
        }
    }

    fn answer(self, path: &'static str, start: Instant) -> Response {
        let (code, text, label) = self.table();
        metrics::counter!("http_refused_total", "path" => path, "reason" => label).increment(1);
        let mut response = answer(path, start, code, TEXT, Bytes::from_static(text.as_bytes()));
        let headers = response.headers_mut();
        match self {
            Self::SourceLimit(Wait(wait)) | Self::OnionLimit(Wait(wait)) => {
                let seconds = wait.as_secs().saturating_add(1);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            // What is left of the body would be read as the next request.
            Self::TooLarge | Self::TooSlow | Self::Broken | Self::NotOffered => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::NoRoom | Self::Unreadable | Self::NoRandomness => {}
        }
        response
    }
}

fn answer(path: &'static str, start: Instant, code: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    metrics::counter!("http_requests_total", "path" => path, "code" => code_label(code)).increment(1);
    metrics::histogram!("http_request_seconds", "path" => path).record(start.elapsed());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Every code this stage answers with, for metrics.
fn code_label(code: StatusCode) -> &'static str {
    match code.as_u16() {
        200 => "200",
        400 => "400",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        425 => "425",
        429 => "429",
        500 => "500",
        503 => "503",
        _ => "other",
    }
}

fn describe_metrics() {
    metrics::describe_counter!("http_requests_total", "Requests answered, by path and HTTP status.");
    metrics::describe_histogram!("http_request_seconds", "From the headers of a request to its answer.");
    metrics::describe_counter!(
        "http_items_total",
        "Items of subscribe and unsubscribe requests, by outcome."
    );
    metrics::describe_counter!("http_refused_total", "Requests refused before their content counted.");
    metrics::describe_counter!("http_onion_refused_total", "Onion requests that could not be read.");
    metrics::describe_counter!("http_onion_replies_total", "Sealed replies, by inner code.");
}

fn body_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let limit = u32::deserialize(deserializer)?;
    let limit = usize::try_from(limit)
        .ok()
        .filter(|limit| (1024..=16 << 20).contains(limit));
    limit.ok_or_else(|| serde::de::Error::custom("bytes, from 1024 to 16777216"))
}

fn time_to_answer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time: Duration = humantime_serde::deserialize(deserializer)?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(300);
    allowed
        .contains(&time)
        .then_some(time)
        .ok_or_else(|| serde::de::Error::custom("from \"100ms\" to \"5m\""))
}

const fn default_listen() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000)
}

const fn yes() -> bool {
    true
}

const fn default_body_limit() -> usize {
    262_144
}

const fn default_direct_rate() -> NonZeroU32 {
    NonZeroU32::new(20).expect("20 is not zero")
}

const fn default_direct_burst() -> NonZeroU32 {
    NonZeroU32::new(200).expect("200 is not zero")
}

const fn default_onion_rate() -> NonZeroU32 {
    NonZeroU32::new(20_000).expect("20,000 is not zero")
}

const fn default_onion_burst() -> NonZeroU32 {
    NonZeroU32::new(40_000).expect("40,000 is not zero")
}

const fn fifteen_seconds() -> Duration {
    Duration::from_secs(15)
}

const fn default_connections() -> NonZeroUsize {
    NonZeroUsize::new(4096).expect("4,096 is not zero")
}

/// Tests of one account: three at once, and one more each minute.
const TEST_EVERY: Duration = Duration::from_secs(60);
const TEST_BURST: NonZeroU32 = NonZeroU32::new(3).expect("3 is not zero");
/// The text with which upstream meant to answer.
const INVALID_ONION: &str = "Invalid v4 onion request";
const ONION: &str = "onion";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";
/// From a connection's start, or its last answer, to the end of the next request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an onion request beyond its inner body: keys and metadata take 500; the rest lets a body that is a little too large be
/// told so in secret.
const ONION_ROOM: usize = 64 * 1024;
