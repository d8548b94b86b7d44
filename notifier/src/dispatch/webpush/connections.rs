//! Connections to push servers: few to each, to many servers, over HTTP/2 or HTTP/1.1.
//!
//! In: a request for an origin. Out: status and `Retry-After`, or why there is none. Never: follows a redirect, asks a proxy, reads a body
//! beyond a bound, or connects to an address that was not checked.

use super::resolve::{Resolve, ResolveFault, addresses};
use crate::dispatch::answer::retry_after;
use crate::dispatch::credential::server_name;
use crate::dispatch::http2::{DialFault, ExchangeFault, fault_of, tls_fault};
use crate::dispatch::unix_ms;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use notifier_core::endpoint::{Host, Origin, PushEndpoint};
use notifier_core::webpush::Guard;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::hash::RandomState;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What a push server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    pub retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Resolve(ResolveFault),
    Dial(DialFault),
    Exchange(ExchangeFault),
}

impl Fault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Resolve(ResolveFault::Unresolved) => "resolve",
            Self::Resolve(ResolveFault::Guarded) => "guard-resolved",
            Self::Dial(fault) => fault.label(),
            Self::Exchange(fault) => fault.label(),
        }
    }
}

/// What one push sends: the headers beside `Host`, and the body.
pub struct Form {
    pub endpoint: PushEndpoint,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub struct Connections {
    sites: Mutex<HashMap<Origin, Arc<Site>, RandomState>>,
    guard: Guard,
    resolver: Arc<dyn Resolve>,
    tls: TlsConnector,
    /// Servers to which connections are kept.
    most: usize,
    open: metrics::Gauge,
}

/// What leads to one server.
struct Site {
    kept: Mutex<Kept>,
    /// One HTTP/1.1 exchange each; a dial takes one too.
    places: Semaphore,
    /// One dial at a time: its outcome may serve all who wait.
    dial: tokio::sync::Mutex<Option<(Instant, Fault)>>,
}

struct Kept {
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    http1: Vec<http1::SendRequest<Full<Bytes>>>,
    used_at: Instant,
    users: usize,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connections {
    pub fn new(guard: Guard, resolver: Arc<dyn Resolve>, tls: Arc<ClientConfig>, most: usize) -> Arc<Self> {
        let all = Arc::new(Self {
            sites: Mutex::default(),
            guard,
            resolver,
            tls: TlsConnector::from(tls),
            most: most.max(1),
            open: metrics::gauge!("dispatch_connections", "service" => "webpush"),
        });
        // Without a runtime nothing is sent either: settings are only tried.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(sweep(Arc::downgrade(&all)));
        }
        all
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Sends `form`, once more if the server certainly did not look at it. The caller bounds the time.
    pub async fn exchange(&self, form: &Form) -> Result<Said, Fault> {
        let origin = form.endpoint.origin();
        let site = self.site(origin);
        let _user = User::new(&site);
        for _ in 0..RESENDS {
            match self.exchange_once(&site, form).await {
                Err(Fault::Exchange(ExchangeFault::Unprocessed)) => {
                    metrics::counter!("dispatch_resends_total", "service" => "webpush").increment(1);
                }
                other => return other,
            }
        }
        self.exchange_once(&site, form).await
    }

    async fn exchange_once(&self, site: &Arc<Site>, form: &Form) -> Result<Said, Fault> {
        if let Some(sender) = site.http2() {
            return ask_http2(site, sender, form).await;
        }
        let _place = site.places.acquire().await.map_err(|_| closed())?;
        let connection = match site.http1() {
            Some(sender) => Connection::Http1(sender),
            None => self.dial(site, form.endpoint.origin()).await?,
        };
        match connection {
            Connection::Http2(sender) => ask_http2(site, sender, form).await,
            Connection::Http1(sender) => ask_http1(site, sender, form).await,
        }
    }

    async fn dial(&self, site: &Arc<Site>, origin: &Origin) -> Result<Connection, Fault> {
        let asked_at = Instant::now();
        let mut last = site.dial.lock().await;
        if let Some(sender) = site.http2() {
            return Ok(Connection::Http2(sender));
        }
        // Somebody failed while this one waited: it would fare no better.
        if let Some((at, fault)) = *last
            && at >= asked_at
        {
            return Err(fault);
        }
        let dialed = match timeout(DIAL_PATIENCE, self.open(origin)).await {
            Ok(dialed) => dialed,
            Err(_) => Err(Fault::Dial(DialFault::Timeout)),
        };
        let label = dialed.as_ref().err().map_or("up", |fault| fault.label());
        metrics::counter!("dispatch_dials_total", "service" => "webpush", "result" => label).increment(1);
        match dialed {
            Ok(connection) => {
                *last = None;
                if let Connection::Http2(sender) = &connection {
                    site.kept().http2 = Some(sender.clone());
                }
                Ok(connection)
            }
            Err(fault) => {
                *last = Some((Instant::now(), fault));
                Err(fault)
            }
        }
    }

    async fn open(&self, origin: &Origin) -> Result<Connection, Fault> {
        let addresses = addresses(origin, &self.guard, &*self.resolver)
            .await
            .map_err(Fault::Resolve)?;
        let stream = reach(&addresses).await.map_err(Fault::Dial)?;
        let name = name_of(origin).ok_or(Fault::Dial(DialFault::Resolve))?;
        stream.set_nodelay(true).map_err(|_| Fault::Dial(DialFault::Connect))?;
        let stream = self.tls.connect(name, stream).await;
        let stream = stream.map_err(|error| Fault::Dial(tls_fault(&error)))?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.start_http2(stream).await
        } else {
            self.start_http1(stream).await
        }
    }

    async fn start_http2(&self, stream: TlsStream<TcpStream>) -> Result<Connection, Fault> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_PATIENCE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Fault::Dial(DialFault::Handshake))?;
        self.keep(connection);
        Ok(Connection::Http2(sender))
    }

    async fn start_http1(&self, stream: TlsStream<TcpStream>) -> Result<Connection, Fault> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEADERS_MAX as usize)
            .max_headers(MOST_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Fault::Dial(DialFault::Handshake))?;
        self.keep(connection);
        Ok(Connection::Http1(sender))
    }

    /// Drives a connection to its end; whoever waits for an answer hears of it.
    fn keep(&self, connection: impl Future + Send + 'static) {
        let counted = Counted::new(&self.open);
        tokio::spawn(async move {
            let _counted = counted;
            let _ = connection.await;
        });
    }

    fn site(&self, origin: &Origin) -> Arc<Site> {
        let mut sites = self.sites();
        if let Some(site) = sites.get(origin) {
            return Arc::clone(site);
        }
        if sites.len() >= self.most {
            let idle = sites
                .iter()
                .take(LOOKED_AT)
                .map(|(origin, site)| (origin, site.kept()))
                .filter(|(_, kept)| kept.users == 0)
                .min_by_key(|(_, kept)| kept.used_at)
                .map(|(origin, _)| origin.clone());
            // If all are in use, this one is used once and not kept: then it costs a connection of its own.
            let Some(idle) = idle else {
                return Arc::new(Site::new());
            };
            sites.remove(&idle);
        }
        let site = Arc::new(Site::new());
        sites.insert(origin.clone(), Arc::clone(&site));
        site
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<Origin, Arc<Site>, RandomState>> {
        // Nothing panics while it holds the lock; if something did, the map is still whole.
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    fn new() -> Self {
        Self {
            kept: Mutex::new(Kept {
                http2: None,
                http1: Vec::new(),
                used_at: Instant::now(),
                users: 0,
            }),
            places: Semaphore::new(HTTP1_CONNECTIONS),
            dial: tokio::sync::Mutex::new(None),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http2(&self) -> Option<http2::SendRequest<Full<Bytes>>> {
        let mut kept = self.kept();
        if kept.http2.as_ref().is_some_and(http2::SendRequest::is_closed) {
            kept.http2 = None;
        }
        kept.http2.clone()
    }

    fn http1(&self) -> Option<http1::SendRequest<Full<Bytes>>> {
        let mut kept = self.kept();
        std::iter::from_fn(|| kept.http1.pop()).find(|sender| !sender.is_closed())
    }

    fn leave_http2(&self) {
        self.kept().http2 = None;
    }
}

/// One who needs a site: it is not given up meanwhile.
struct User<'a>(&'a Site);

impl<'a> User<'a> {
    fn new(site: &'a Site) -> Self {
        site.kept().users += 1;
        Self(site)
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let mut kept = self.0.kept();
        kept.users -= 1;
        kept.used_at = Instant::now();
    }
}

/// An open connection, in the gauge.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(gauge: &metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

async fn ask_http2(site: &Site, mut sender: http2::SendRequest<Full<Bytes>>, form: &Form) -> Result<Said, Fault> {
    let authority = form.endpoint.origin().authority();
    let mut request = request(form).ok_or_else(closed)?;
    let uri = Uri::builder()
        .scheme("https")
        .authority(authority.expose().as_str())
        .path_and_query(form.endpoint.path());
    *request.uri_mut() = uri.build().map_err(|_| closed())?;
    *request.version_mut() = Version::HTTP_2;
    sender.ready().await.map_err(|_| {
        site.leave_http2();
        Fault::Exchange(ExchangeFault::Unprocessed)
    })?;
    match sender.try_send_request(request).await {
        Ok(response) => {
            let said = said(&response);
            // A stream that is reset although it was answered looks like an attack to some servers.
            read_on(response.into_body(), |_| {});
            Ok(said)
        }
        Err(mut error) => {
            let fault = match error.take_message() {
                Some(_unsent) => ExchangeFault::Unprocessed,
                None => fault_of(error.error()).0,
            };
            if matches!(fault, ExchangeFault::Closed) || sender.is_closed() {
                site.leave_http2();
            }
            Err(Fault::Exchange(fault))
        }
    }
}

async fn ask_http1(site: &Arc<Site>, mut sender: http1::SendRequest<Full<Bytes>>, form: &Form) -> Result<Said, Fault> {
    let mut request = request(form).ok_or_else(closed)?;
    let host = HeaderValue::from_str(form.endpoint.origin().authority().expose()).map_err(|_| closed())?;
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = form.endpoint.path().parse().map_err(|_| closed())?;
    sender
        .ready()
        .await
        .map_err(|_| Fault::Exchange(ExchangeFault::Unprocessed))?;
    match sender.try_send_request(request).await {
        Ok(response) => {
            let said = said(&response);
            let site = Arc::clone(site);
            // Only a connection that is read to the end of an answer can be used again; a long or slow rest costs more than another.
            read_on(response.into_body(), move |to_its_end| {
                let mut kept = site.kept();
                if to_its_end && kept.http1.len() < HTTP1_CONNECTIONS {
                    kept.http1.push(sender);
                }
            });
            Ok(said)
        }
        Err(mut error) => Err(Fault::Exchange(match error.take_message() {
            Some(_unsent) => ExchangeFault::Unprocessed,
            None => ExchangeFault::Closed,
        })),
    }
}

fn request(form: &Form) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(form.body.clone()));
    *request.method_mut() = Method::POST;
    *request.headers_mut() = form.headers.clone();
    Some(request)
}

fn said(response: &Response<Incoming>) -> Said {
    Said {
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers(), unix_ms()),
    }
}

/// The status says all, so nobody waits for the rest.
fn read_on(body: Incoming, then: impl FnOnce(bool) + Send + 'static) {
    if body.is_end_stream() {
        return then(true);
    }
    tokio::spawn(async move { then(matches!(timeout(BODY_PATIENCE, is_read(body)).await, Ok(true))) });
}

/// Whether the body ended within its bound.
async fn is_read(mut body: Incoming) -> bool {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > BODY_MAX {
            return false;
        }
    }
    true
}

/// The first address that answers; no other is asked.
async fn reach(addresses: &[SocketAddr]) -> Result<TcpStream, DialFault> {
    let mut fault = DialFault::Connect;
    for address in addresses {
        match timeout(ADDRESS_PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fault = DialFault::Refused,
            Ok(Err(_)) => fault = DialFault::Connect,
            Err(_) => fault = DialFault::Timeout,
        }
    }
    Err(fault)
}

fn name_of(origin: &Origin) -> Option<ServerName<'static>> {
    match origin.host() {
        Host::Name(name) => server_name(name),
        Host::Address(address) => Some(ServerName::IpAddress((*address).into())),
    }
}

/// Closes what nobody used for a while.
async fn sweep(all: std::sync::Weak<Connections>) {
    let mut rounds = tokio::time::interval(SWEEP_EVERY);
    loop {
        rounds.tick().await;
        let Some(all) = all.upgrade() else { return };
        all.sites().retain(|_, site| {
            let kept = site.kept();
            kept.users > 0 || kept.used_at.elapsed() < IDLE_MAX
        });
    }
}

const fn closed() -> Fault {
    Fault::Exchange(ExchangeFault::Closed)
}

/// How often one request is sent anew because a connection ended before the server looked at it.
const RESENDS: u32 = 2;
const HTTP1_CONNECTIONS: usize = 8;
const DIAL_PATIENCE: Duration = Duration::from_secs(8);
const ADDRESS_PATIENCE: Duration = Duration::from_millis(2_500);
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(10);
const WINDOW: u32 = 65_535;
const HEADERS_MAX: u32 = 16 * 1024;
const MOST_HEADERS: usize = 64;
/// Bytes of an answer's body that are read so that a connection can be used again.
const BODY_MAX: usize = 4_096;
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// Sites looked at for an idle one.
const LOOKED_AT: usize = 64;
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const IDLE_MAX: Duration = Duration::from_secs(300);
