//! A few long-lived HTTP/2 connections to one provider.
//!
//! In: requests, one at a time or a thousand. Out: bounded replies, or why there is none. Never: logs an address, opens a
//! connection faster than its pace, or has more streams under way than the peer allows.

mod dial;

pub use dial::{DialFault, Endpoint, authority, open, tls_fault};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use notifier_core::account::Service;
use quietline_shared::backoff::Backoff;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

/// How the connections of one lane behave.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    pub service: Service,
    /// Connections at most.
    pub connections: usize,
    /// One stream at a time until the provider has accepted one request on a connection (APNs with a provider token).
    pub prove_first: bool,
    /// Longest time a connection may take to be up; also the silence after which one with streams under way is replaced.
    pub patience: Duration,
    /// Pauses between attempts, and after a connection that ended before it was settled. After one that was, the next is tried
    /// at once, but not within `pace.base` of its beginning.
    pub pace: Backoff,
    /// A connection is settled once it is so old, or has brought [`SETTLED_ANSWERS`].
    pub settled: Duration,
    /// A connection without a byte for this long is pinged, and dead after [`PING_PATIENCE`] without an answer.
    pub ping_after: Duration,
}

impl PoolSettings {
    pub const fn new(service: Service, connections: usize, prove_first: bool, patience: Duration) -> Self {
        Self {
            service,
            connections,
            prove_first,
            patience,
            pace: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
            },
            settled: Duration::from_secs(30),
            ping_after: Duration::from_secs(60),
        }
    }
}

/// Largest body of a reply that is read. All providers answer with less than one kilobyte.
pub const REPLY_MAX: usize = 8 * 1024;
const HEADERS_MAX: u32 = 16 * 1024;
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams until the peer has said how many it allows: the least that RFC 9113 §6.5.2 recommends.
const FIRST_LIMIT: usize = 100;
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// So many answers say that a connection was of use, however soon it ends: then its end is no reason to wait, and each dial has been
/// paid for.
const SETTLED_ANSWERS: u64 = 100;
/// How often one request is sent anew because a connection ended before the provider looked at it.
const RESENDS: u32 = 2;

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeFault {
    /// No connection is up, and the next attempt is this far away.
    Paused(Duration),
    /// The provider did not look at the request, time and again.
    Unprocessed,
    /// The stream was reset: the provider may or may not have acted on it.
    Reset,
    /// The connection ended: the same.
    Closed,
}

impl ExchangeFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Paused(_) => "unreachable",
            Self::Unprocessed => "unprocessed",
            Self::Reset => "reset",
            Self::Closed => "closed",
        }
    }
}

/// What came of a reply's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    Whole(Bytes),
    /// More than [`REPLY_MAX`]: not read on.
    TooLarge,
    Broken(ExchangeFault),
}

/// Status and headers of a reply. Its stream counts as under way until this is dropped.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    incoming: Incoming,
    lease: Lease,
}

impl Reply {
    pub async fn body(&mut self) -> ReplyBody {
        let mut whole = Bytes::new();
        while !self.incoming.is_end_stream() {
            let Some(frame) = self.incoming.frame().await else {
                break;
            };
            let data = match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => data,
                Ok(Err(_trailers)) => continue,
                Err(error) => return ReplyBody::Broken(fault_of(&error).0),
            };
            if whole.len() + data.len() > REPLY_MAX {
                return ReplyBody::TooLarge;
            }
            if whole.is_empty() {
                whole = data;
            } else {
                let mut joined = BytesMut::with_capacity(whole.len() + data.len());
                joined.extend_from_slice(&whole);
                joined.extend_from_slice(&data);
                whole = joined.freeze();
            }
        }
        ReplyBody::Whole(whole)
    }

    /// The provider has accepted who we are on this connection.
    pub fn prove_connection(&self) {
        if !self.lease.live.gauge.proven.swap(true, Ordering::Relaxed) {
            self.lease.pool.changed.notify_waiters();
        }
    }

    /// The connection takes no further request.
    pub fn leave_connection(&self) {
        self.lease.pool.leave(&self.lease.live.gauge);
    }
}

/// The connections. Dropping the last clone ends them once their streams have ended.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl Pool {
    pub fn new(endpoint: Endpoint, settings: PoolSettings) -> Self {
        Self(Arc::new(Shared {
            endpoint,
            open: metrics::gauge!("dispatch_connections", "service" => settings.service.name()),
            settings,
            state: Mutex::new(State {
                live: Vec::new(),
                dialing: false,
                failures: 0,
                not_before: Instant::now(),
                failed_dials: 0,
            }),
            changed: Notify::new(),
        }))
    }

    /// Sends what `request` makes; `request` is asked again where the first one was certainly not looked at.
    ///
    /// May be dropped at any time: the stream is reset then.
    pub async fn exchange<F>(&self, mut request: F) -> Result<Reply, ExchangeFault>
    where
        F: FnMut() -> Request<Full<Bytes>>,
    {
        let mut sends = 0;
        loop {
            let lease = self.0.lease().await?;
            sends += 1;
            match lease.send(request()).await {
                Err(ExchangeFault::Unprocessed) if sends <= RESENDS => {
                    metrics::counter!("dispatch_resends_total", "service" => self.0.settings.service.name())
                        .increment(1);
                }
                other => return other,
            }
        }
    }
}

struct Shared {
    endpoint: Endpoint,
    settings: PoolSettings,
    open: metrics::Gauge,
    state: Mutex<State>,
    /// A stream or a connection became free, or the last hope of one ended.
    changed: Notify,
}

struct State {
    /// Those that take requests, at most `settings.connections`.
    live: Vec<Live>,
    dialing: bool,
    /// Attempts and short-lived connections since one was settled.
    failures: u32,
    not_before: Instant,
    /// Attempts that failed, ever: one who waited for such an attempt does not wait for the next.
    failed_dials: u64,
}

#[derive(Clone)]
struct Live {
    sender: SendRequest<Full<Bytes>>,
    gauge: Arc<Gauge>,
}

/// What is known of one connection.
struct Gauge {
    born: Instant,
    in_flight: AtomicUsize,
    /// Streams the peer allows.
    limit: AtomicUsize,
    proven: AtomicBool,
    /// Requests that were answered.
    answers: AtomicU64,
    /// Milliseconds from `born` to the last headers of a reply.
    last_answer_ms: AtomicU64,
    /// Asks the connection's task to read the peer's limit again.
    look: Notify,
    /// The task that owns the socket.
    socket: OnceLock<AbortHandle>,
}

impl Gauge {
    fn capacity(&self, prove_first: bool) -> usize {
        if prove_first && !self.proven.load(Ordering::Relaxed) {
            1
        } else {
            self.limit.load(Ordering::Relaxed)
        }
    }

    fn is_settled(&self, settings: &PoolSettings) -> bool {
        self.born.elapsed() >= settings.settled || self.answers.load(Ordering::Relaxed) >= SETTLED_ANSWERS
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

enum Leased {
    Now(Lease),
    Wait { failed_dials: u64 },
    Paused(Duration),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lease(self: &Arc<Self>) -> Result<Lease, ExchangeFault> {
        let known_failures = match self.try_lease(None) {
            Leased::Now(lease) => return Ok(lease),
            Leased::Paused(pause) => return Err(ExchangeFault::Paused(pause)),
            Leased::Wait { failed_dials } => failed_dials,
        };
        let mut changed = pin!(self.changed.notified());
        loop {
            // Listen first, look second: what changes in between is heard.
            changed.as_mut().enable();
            match self.try_lease(Some(known_failures)) {
                Leased::Now(lease) => return Ok(lease),
                Leased::Paused(pause) => return Err(ExchangeFault::Paused(pause)),
                Leased::Wait { .. } => changed.as_mut().await,
            }
            changed.set(self.changed.notified());
        }
    }

    fn try_lease(self: &Arc<Self>, known_failures: Option<u64>) -> Leased {
        let now = Instant::now();
        let mut state = self.state();
        let prove_first = self.settings.prove_first;
        let free = state
            .live
            .iter()
            .map(|live| (live, live.gauge.in_flight.load(Ordering::Relaxed)))
            .filter(|(live, in_flight)| *in_flight < live.gauge.capacity(prove_first))
            .min_by_key(|(_, in_flight)| *in_flight);
        if let Some((live, _)) = free {
            live.gauge.in_flight.fetch_add(1, Ordering::Relaxed);
            return Leased::Now(Lease {
                pool: Arc::clone(self),
                live: live.clone(),
                sent_ms: live.gauge.age_ms(),
                answered: false,
            });
        }
        let has_failed = known_failures.is_some_and(|known| known != state.failed_dials);
        if state.live.is_empty() && has_failed {
            return Leased::Paused(state.not_before.saturating_duration_since(now));
        }
        if state.live.len() < self.settings.connections && !state.dialing && now >= state.not_before {
            state.dialing = true;
            tokio::spawn(Arc::clone(self).dial());
        }
        if state.live.is_empty() && !state.dialing {
            return Leased::Paused(state.not_before.saturating_duration_since(now));
        }
        Leased::Wait {
            failed_dials: state.failed_dials,
        }
    }

    async fn dial(self: Arc<Self>) {
        let result = match tokio::time::timeout(self.settings.patience, self.connect()).await {
            Ok(result) => result,
            Err(_) => Err(DialFault::Timeout),
        };
        let service = self.settings.service.name();
        let label = result.as_ref().err().map_or("up", |fault| fault.label());
        metrics::counter!("dispatch_dials_total", "service" => service, "result" => label).increment(1);
        let mut state = self.state();
        state.dialing = false;
        match result {
            Ok(live) => {
                if state.failures > 0 && state.live.is_empty() {
                    tracing::info!(service, "provider is reached again");
                }
                state.live.push(live);
                self.open.increment(1.0);
            }
            Err(fault) => {
                if state.failures == 0 {
                    tracing::warn!(service, reason = label, ?fault, "provider cannot be reached");
                }
                state.failed_dials += 1;
                self.slow_down(&mut state);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    async fn connect(self: &Arc<Self>) -> Result<Live, DialFault> {
        let stream = open(&self.endpoint).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(DialFault::NotHttp2);
        }
        let first_limit = if self.settings.prove_first { 1 } else { FIRST_LIMIT };
        let gauge = Arc::new(Gauge {
            born: Instant::now(),
            in_flight: AtomicUsize::new(0),
            limit: AtomicUsize::new(first_limit),
            proven: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            last_answer_ms: AtomicU64::new(0),
            look: Notify::new(),
            socket: OnceLock::new(),
        });
        let (sender, connection) = Builder::new(Tasks(Arc::clone(&gauge)))
            .timer(TokioTimer::new())
            .initial_max_send_streams(first_limit)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .keep_alive_interval(self.settings.ping_after)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| DialFault::Handshake)?;
        tokio::spawn(drive(Arc::downgrade(self), Arc::clone(&gauge), connection));
        Ok(Live { sender, gauge })
    }

    /// The connection takes no further request. Does nothing the second time.
    fn leave(&self, gauge: &Arc<Gauge>) {
        let mut state = self.state();
        let before = state.live.len();
        state.live.retain(|live| !Arc::ptr_eq(&live.gauge, gauge));
        if state.live.len() == before {
            return;
        }
        self.open.decrement(1.0);
        if gauge.is_settled(&self.settings) {
            state.failures = 0;
            state.not_before = gauge.born + self.settings.pace.base;
        } else {
            self.slow_down(&mut state);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn slow_down(&self, state: &mut State) {
        let random = getrandom::u64().unwrap_or(u64::MAX);
        state.not_before = Instant::now() + self.settings.pace.delay(state.failures, random);
        state.failures = state.failures.saturating_add(1);
    }
}

type Http2 = Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>, Tasks>;

/// Runs one connection until its end.
async fn drive(pool: Weak<Shared>, gauge: Arc<Gauge>, connection: Http2) {
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            _ = &mut connection => break,
            () = gauge.look.notified() => {}
        }
        let limit = connection.current_max_send_streams();
        if gauge.limit.swap(limit, Ordering::Relaxed) < limit
            && let Some(pool) = pool.upgrade()
        {
            pool.changed.notify_waiters();
        }
    }
    if let Some(pool) = pool.upgrade() {
        pool.leave(&gauge);
    }
}

/// Starts the tasks of one connection and remembers the first, which owns the socket.
#[derive(Clone)]
struct Tasks(Arc<Gauge>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let task = tokio::spawn(future);
        if self.0.socket.get().is_none() {
            // Only the handshake gets here, and it starts one task.
            let _ = self.0.socket.set(task.abort_handle());
        }
    }
}

/// The right to one stream.
struct Lease {
    pool: Arc<Shared>,
    live: Live,
    sent_ms: u64,
    answered: bool,
}

impl Lease {
    async fn send(mut self, request: Request<Full<Bytes>>) -> Result<Reply, ExchangeFault> {
        let sent = self.live.sender.try_send_request(request).await;
        match sent {
            Ok(response) => {
                self.heard();
                self.live.gauge.answers.fetch_add(1, Ordering::Relaxed);
                let (head, incoming) = response.into_parts();
                Ok(Reply {
                    status: head.status,
                    headers: head.headers,
                    incoming,
                    lease: self,
                })
            }
            Err(mut error) => {
                let (fault, end) = match error.take_message() {
                    Some(_unsent) => (ExchangeFault::Unprocessed, End::Connection),
                    None => fault_of(error.error()),
                };
                match end {
                    End::Stream => self.heard(),
                    End::Connection => {
                        self.answered = true;
                        self.pool.leave(&self.live.gauge);
                    }
                }
                Err(fault)
            }
        }
    }

    fn heard(&mut self) {
        self.answered = true;
        let gauge = &self.live.gauge;
        gauge.last_answer_ms.fetch_max(gauge.age_ms(), Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let gauge = &self.live.gauge;
        let before = gauge.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            // Given up. If nothing at all came in that time, the connection is stuck and the next would be too.
            let silent_ms = gauge
                .age_ms()
                .saturating_sub(self.sent_ms.max(gauge.last_answer_ms.load(Ordering::Relaxed)));
            // Half, because a push may have spent the other half on waiting for its stream.
            if u128::from(silent_ms) >= self.pool.settings.patience.as_millis() / 2 {
                metrics::counter!("dispatch_stalls_total", "service" => self.pool.settings.service.name()).increment(1);
                self.pool.leave(gauge);
                if let Some(socket) = gauge.socket.get() {
                    socket.abort();
                }
            }
        }
        if before >= gauge.limit.load(Ordering::Relaxed) {
            gauge.look.notify_one();
        }
        self.pool.changed.notify_one();
    }
}

/// What ended with a fault.
pub(super) enum End {
    Stream,
    Connection,
}

pub(super) fn fault_of(error: &hyper::Error) -> (ExchangeFault, End) {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(h2) = one.downcast_ref::<h2::Error>() {
            return match h2 {
                // Streams above the last one that a GOAWAY names were not looked at (RFC 9113 §6.8).
                h2 if h2.is_go_away() && h2.is_remote() => (ExchangeFault::Unprocessed, End::Connection),
                h2 if h2.reason() == Some(h2::Reason::REFUSED_STREAM) => (ExchangeFault::Unprocessed, End::Stream),
                h2 if h2.is_reset() => (ExchangeFault::Reset, End::Stream),
                _ => (ExchangeFault::Closed, End::Connection),
            };
        }
        cause = one.source();
    }
    (ExchangeFault::Closed, End::Connection)
}
