//! What the fake providers have in common: TLS, HTTP/2, answers on demand, and a record of what was delivered.
//!
//! In: requests of the notifier; a script of answers from the lab. Out: `Delivery`s. Never: opens a payload; only phones can.

pub mod apns;
pub mod counting;
pub mod fcm;
pub mod huawei;
mod jwt;
pub mod webpush;

use crate::phone::PushService;
use crate::ports;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Largest request a fake reads; the providers' own limits are far below.
const BODY_LIMIT: usize = 1 << 20;
/// Different complaints kept.
const COMPLAINTS_KEPT: usize = 1000;

/// What a provider says to one push.
#[derive(Clone, Debug)]
pub enum Answer {
    Accept,
    Refuse {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    },
    /// The connection ends gracefully: what is under way is answered, nothing new is taken. This push is accepted.
    GoAway,
    /// This push was certainly not processed (REFUSED_STREAM).
    RefuseStream,
    /// Nobody knows whether this push was processed (INTERNAL_ERROR).
    Reset,
    /// The TCP connection is dropped without a word.
    Cut,
    /// No answer, ever.
    Stall,
    Late(Duration, Box<Answer>),
}

impl Answer {
    pub fn apns(status: u16, reason: &str) -> Self {
        Self::refuse(status, format!(r#"{{"reason":"{reason}"}}"#))
    }

    /// 410 with the time at which the token was last known to be dead, Unix milliseconds.
    pub fn apns_gone(reason: &str, timestamp_ms: i64) -> Self {
        Self::refuse(410, format!(r#"{{"reason":"{reason}","timestamp":{timestamp_ms}}}"#))
    }

    /// `error_code` goes into an `FcmError` detail, `violation` names a field in a `BadRequest` detail.
    pub fn fcm(status: u16, name: &str, error_code: Option<&str>, violation: Option<&str>) -> Self {
        let mut details = Vec::new();
        if let Some(code) = error_code {
            details.push(serde_json::json!({
                "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
                "errorCode": code,
            }));
        }
        if let Some(field) = violation {
            details.push(serde_json::json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{ "field": field, "description": "Invalid value" }],
            }));
        }
        let error = serde_json::json!({ "error": {
            "code": status, "message": name, "status": name, "details": details,
        }});
        Self::refuse(status, error.to_string())
    }

    /// Huawei's code stands within a 200 as well.
    pub fn huawei(status: u16, code: &str, msg: &str) -> Self {
        let answer = serde_json::json!({ "code": code, "msg": msg, "requestId": "160000000000000000001" });
        Self::refuse(status, answer.to_string())
    }

    /// What a proxy in between would say.
    pub fn html(status: u16) -> Self {
        Self::Refuse {
            status,
            headers: vec![("content-type", "text/html".into())],
            body: Bytes::from_static(b"<!doctype html><title>Error</title><p>Something went wrong."),
        }
    }

    pub fn huge_body(status: u16, length: usize) -> Self {
        Self::Refuse {
            status,
            headers: Vec::new(),
            body: Bytes::from(vec![b'x'; length]),
        }
    }

    pub fn with_retry_after(self, value: &str) -> Self {
        match self {
            Self::Refuse {
                status,
                mut headers,
                body,
            } => {
                headers.push(("retry-after", value.to_owned()));
                Self::Refuse { status, headers, body }
            }
            other => other,
        }
    }

    fn refuse(status: u16, json: String) -> Self {
        Self::Refuse {
            status,
            headers: vec![("content-type", "application/json".into())],
            body: json.into(),
        }
    }
}

/// Which answer meets which push. The first that applies: queued for the token, fixed for the token, by chance, for everyone.
#[derive(Default)]
pub struct Script(Mutex<ScriptRules>);

#[derive(Default)]
struct ScriptRules {
    queued: HashMap<String, VecDeque<Answer>>,
    fixed: HashMap<String, Answer>,
    chances: Vec<(f64, Answer)>,
    everyone: Option<Answer>,
    /// State of a small generator; the same pushes in the same order meet the same luck.
    luck: u64,
}

impl Script {
    /// The next push to `token` gets this answer; several wait in line.
    pub fn queue(&self, token: &str, answer: Answer) {
        self.rules(|rules| rules.queued.entry(token.to_owned()).or_default().push_back(answer));
    }

    pub fn always(&self, token: &str, answer: Answer) {
        self.rules(|rules| rules.fixed.insert(token.to_owned(), answer));
    }

    /// A share of all pushes, 0 to 1.
    pub fn sometimes(&self, share: f64, answer: Answer) {
        self.rules(|rules| rules.chances.push((share, answer)));
    }

    pub fn everyone(&self, answer: Answer) {
        self.rules(|rules| rules.everyone = Some(answer));
    }

    /// Back to accepting everything.
    pub fn clear(&self) {
        self.rules(|rules| *rules = ScriptRules::default());
    }

    fn answer(&self, token: &str) -> Answer {
        self.rules(|rules| {
            if let Some(answer) = rules.queued.get_mut(token).and_then(VecDeque::pop_front) {
                return answer;
            }
            if let Some(answer) = rules.fixed.get(token) {
                return answer.clone();
            }
            for (share, answer) in &rules.chances {
                rules.luck = rules
                    .luck
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                if ((rules.luck >> 11) as f64) / ((1_u64 << 53) as f64) < *share {
                    return answer.clone();
                }
            }
            rules.everyone.clone().unwrap_or(Answer::Accept)
        })
    }

    fn rules<T>(&self, with: impl FnOnce(&mut ScriptRules) -> T) -> T {
        with(&mut self.0.lock().expect("nobody panics while holding the script"))
    }
}

/// One push as the provider got it.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub service: PushService,
    pub token: String,
    /// `apns-id`, or the message name FCM gave.
    pub id: Option<String>,
    pub enc_payload: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub body: serde_json::Value,
    pub at: Instant,
    /// What the script said to it.
    pub answer: Answer,
    /// Whether that was a success.
    pub accepted: bool,
    /// When a success was answered; the notifier hears of it a moment later.
    pub answered: Arc<OnceLock<Instant>>,
}

/// Called for each push, before it is answered.
type Observer = Box<dyn Fn(&Delivery) + Send + Sync>;

/// Everything that reached the fakes: the last ones in full, all of them as counts.
pub struct Deliveries {
    kept: Mutex<VecDeque<Delivery>>,
    arrived: Notify,
    keep: usize,
    counting_only: AtomicBool,
    observer: OnceLock<Observer>,
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    /// Dropped from `kept` unread.
    pub overflowed: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

impl Deliveries {
    pub fn new(keep: usize) -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::default(),
            arrived: Notify::new(),
            keep,
            counting_only: AtomicBool::new(false),
            observer: OnceLock::new(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            complaints: Mutex::default(),
        })
    }

    /// For load: nothing is kept from now on; counts and the observer go on.
    pub fn count_only(&self, on: bool) {
        self.counting_only.store(on, Ordering::Relaxed);
    }

    /// `false` if there is one already.
    pub fn observe(&self, observer: impl Fn(&Delivery) + Send + Sync + 'static) -> bool {
        self.observer.set(Box::new(observer)).is_ok()
    }

    /// Takes out the oldest kept push that is `wanted`, waiting for it as long as `patience`.
    pub async fn take(&self, patience: Duration, wanted: impl Fn(&Delivery) -> bool) -> Option<Delivery> {
        let search = async {
            loop {
                let mut arrived = pin!(self.arrived.notified());
                // Before looking: a push that arrives in between wakes us all the same.
                arrived.as_mut().enable();
                if let Some(found) = self.take_now(&wanted) {
                    return found;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }

    pub fn take_now(&self, wanted: impl Fn(&Delivery) -> bool) -> Option<Delivery> {
        let mut kept = self.kept.lock().expect("nobody panics while holding the deliveries");
        let at = kept.iter().position(wanted)?;
        kept.remove(at)
    }

    pub fn take_all(&self) -> Vec<Delivery> {
        self.kept
            .lock()
            .expect("nobody panics while holding the deliveries")
            .drain(..)
            .collect()
    }

    /// What the providers would not have liked about the requests. Empty after a good run.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints
            .lock()
            .expect("nobody panics while holding the complaints")
            .clone()
    }

    fn complain(&self, what: String) {
        let mut complaints = self
            .complaints
            .lock()
            .expect("nobody panics while holding the complaints");
        if complaints.len() < COMPLAINTS_KEPT && !complaints.contains(&what) {
            complaints.push(what);
        }
    }

    fn record(&self, delivery: Delivery) {
        let counter = if delivery.accepted {
            &self.accepted
        } else {
            &self.refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = self.observer.get() {
            observer(&delivery);
        }
        if self.counting_only.load(Ordering::Relaxed) {
            return;
        }
        let mut kept = self.kept.lock().expect("nobody panics while holding the deliveries");
        if kept.len() >= self.keep {
            kept.pop_front();
            self.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        kept.push_back(delivery);
        drop(kept);
        self.arrived.notify_waiters();
    }
}

/// A request, read to its end.
struct Received {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    has_client_certificate: bool,
    at: Instant,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn header_list(&self) -> Vec<(String, String)> {
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect()
    }
}

/// What a handler wants done to the exchange or its connection.
enum Verdict {
    Respond(Response<Full<Bytes>>),
    GoAway(Response<Full<Bytes>>),
    Reset(h2::Reason),
    Cut,
    Stall,
}

/// One fake provider: answers requests.
trait Fake: Send + Sync + 'static {
    fn answer(&self, request: Received) -> impl Future<Output = Verdict> + Send;
}

/// A running TLS server; it ends with this value.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    /// A provider that is down drops its connections, and each new one before TLS.
    down: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Tells one connection's task what to do.
#[derive(Default)]
struct ConnectionControl {
    go_away: Notify,
    cut: Notify,
}

impl Server {
    /// `streams`: how many requests a connection may have under way.
    fn start<F: Fake>(fake: Arc<F>, tls: Arc<rustls::ServerConfig>, streams: u32) -> std::io::Result<Self> {
        let listener = ports::listener();
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(tls);
        let connections = Arc::new(AtomicU64::new(0));
        let (down, is_down) = watch::channel(false);
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        if *is_down.borrow() {
                            continue;
                        }
                        counted.fetch_add(1, Ordering::Relaxed);
                        running.spawn(serve_connection(Arc::clone(&fake), acceptor.clone(), stream, streams, is_down.clone()));
                    }
                    Some(_) = running.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            connections,
            down,
            task,
        })
    }

    fn set_down(&self, down: bool) {
        self.down
            .send_if_modified(|is_down| std::mem::replace(is_down, down) != down);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_connection<F: Fake>(
    fake: Arc<F>,
    tls: TlsAcceptor,
    stream: tokio::net::TcpStream,
    streams: u32,
    mut is_down: watch::Receiver<bool>,
) {
    is_down.mark_unchanged();
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let has_client_certificate = stream.get_ref().1.peer_certificates().is_some();
    let control = Arc::new(ConnectionControl::default());
    let inner = Arc::clone(&control);
    let service = service_fn(move |request: Request<Incoming>| {
        let (fake, control) = (Arc::clone(&fake), Arc::clone(&inner));
        async move {
            let Some(received) = read_request(request, has_client_certificate).await else {
                return Ok(text_response(413, ""));
            };
            match fake.answer(received).await {
                Verdict::Respond(response) => Ok(response),
                Verdict::GoAway(response) => {
                    control.go_away.notify_one();
                    Ok(response)
                }
                Verdict::Reset(reason) => Err(h2::Error::from(reason)),
                Verdict::Cut => {
                    control.cut.notify_one();
                    std::future::pending().await
                }
                Verdict::Stall => std::future::pending().await,
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(streams);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = control.go_away.notified() => connection.as_mut().graceful_shutdown(),
            () = control.cut.notified() => return,
            // Also if it was down for a moment only.
            _ = is_down.changed() => return,
        }
    }
}

/// `None` if the body is too large or broke off.
async fn read_request(request: Request<Incoming>, has_client_certificate: bool) -> Option<Received> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.ok()?.to_bytes();
    Some(Received {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
        has_client_certificate,
        at: Instant::now(),
    })
}

/// A push as its provider reads it.
struct Read {
    service: PushService,
    token: String,
    id: Option<String>,
    enc_payload: Vec<u8>,
    body: serde_json::Value,
    /// Whether the provider takes it.
    accepted: bool,
}

/// Records a push, then answers it as its script says. `accept` makes the provider's own success.
async fn take(
    deliveries: &Deliveries,
    request: &Received,
    push: Read,
    answer: Answer,
    accept: impl FnOnce() -> Response<Full<Bytes>>,
) -> Verdict {
    let answered = Arc::new(OnceLock::new());
    deliveries.record(Delivery {
        service: push.service,
        token: push.token,
        id: push.id,
        enc_payload: push.enc_payload,
        headers: request.header_list(),
        body: push.body,
        at: request.at,
        accepted: push.accepted,
        answer: answer.clone(),
        answered: Arc::clone(&answered),
    });
    carry_out(answer, || {
        answered.get_or_init(Instant::now);
        accept()
    })
    .await
}

/// Carries out a scripted answer. `accept` makes the provider's own success.
async fn carry_out(answer: Answer, accept: impl FnOnce() -> Response<Full<Bytes>>) -> Verdict {
    let mut answer = answer;
    loop {
        match answer {
            Answer::Accept => return Verdict::Respond(accept()),
            Answer::GoAway => return Verdict::GoAway(accept()),
            Answer::Refuse { status, headers, body } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                let response = response.body(Full::new(body));
                return Verdict::Respond(response.unwrap_or_else(|_| text_response(500, "a script's bad header")));
            }
            Answer::RefuseStream => return Verdict::Reset(h2::Reason::REFUSED_STREAM),
            Answer::Reset => return Verdict::Reset(h2::Reason::INTERNAL_ERROR),
            Answer::Cut => return Verdict::Cut,
            Answer::Stall => return Verdict::Stall,
            Answer::Late(delay, later) => {
                tokio::time::sleep(delay).await;
                answer = *later;
            }
        }
    }
}

/// Whether this answer, in the end, is a success.
fn accepts(answer: &Answer) -> bool {
    match answer {
        Answer::Accept | Answer::GoAway => true,
        Answer::Late(_, later) => accepts(later),
        Answer::Refuse { status, .. } => (200..300).contains(status),
        _ => false,
    }
}

fn text_response(status: u16, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
}
