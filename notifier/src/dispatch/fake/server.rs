//! A provider on a real socket: TLS with a root of its own, HTTP/2, and a handler that says what it answers.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A root that signs the certificates of fakes.
pub struct Root {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Root {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub fn issue(&self, name: &str, last_year: i32) -> (rcgen::Certificate, rcgen::KeyPair) {
        // A name under .example for those who do not take a bare one.
        let names = [name.to_owned(), format!("{name}.example")];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server named `localhost` until `last_year`. With `clients`, each client must show a certificate of this root.
    pub fn server(&self, last_year: i32, protocols: &[&str], clients: bool) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue("localhost", last_year);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// One request as a fake saw it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Counts the connections from 0.
    pub connection: usize,
    /// Streams of this connection under way, this one included, when it came in.
    pub streams: usize,
    /// The key exchange of the connection.
    pub group: Option<rustls::NamedGroup>,
    pub method: String,
    pub path: String,
    pub authority: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub type ReplyStream = UnsyncBoxBody<Bytes, Infallible>;
/// An error resets the stream, with its reason.
pub type Replied = Result<Response<ReplyStream>, h2::Error>;
pub type Handler = Arc<dyn Fn(Received) -> BoxFuture<'static, Replied> + Send + Sync>;

pub fn reply(status: u16, body: impl Into<Bytes>) -> Replied {
    Ok(Response::builder()
        .status(status)
        .body(Full::new(body.into()).boxed_unsync())
        .unwrap())
}

pub struct Server {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    /// Ends each open connection with a GOAWAY.
    pub goaway: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// HTTP/2, or HTTP/1.1 with a client that does not ask for HTTP/2.
    pub async fn start(tls: Arc<ServerConfig>, max_streams: u32, handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, tls, max_streams, handler).await
    }

    pub async fn on(listener: TcpListener, tls: Arc<ServerConfig>, max_streams: u32, handler: Handler) -> Self {
        let goaway = Arc::new(Notify::new());
        let told = Arc::clone(&goaway);
        Self::accept(listener, tls, goaway, move |stream, connection| {
            let (handler, goaway) = (Arc::clone(&handler), Arc::clone(&told));
            serve(stream, connection, max_streams, handler, goaway)
        })
        .await
    }

    /// Any conversation after the TLS handshake.
    pub async fn raw<F>(
        tls: Arc<ServerConfig>,
        talk: impl Fn(TlsStream<TcpStream>, usize) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::accept(listener, tls, Arc::new(Notify::new()), talk).await
    }

    async fn accept<F>(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        goaway: Arc<Notify>,
        talk: impl Fn(TlsStream<TcpStream>, usize) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(tls);
            // Dropped with this task: a stopped server talks to nobody.
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                talks.spawn(talk(stream, counted.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self {
            port,
            connections,
            goaway,
            task,
        }
    }
}

async fn serve(
    stream: TlsStream<TcpStream>,
    connection: usize,
    max_streams: u32,
    handler: Handler,
    goaway: Arc<Notify>,
) {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let group = stream.get_ref().1.negotiated_key_exchange_group();
    let group = group.map(|group| group.name());
    let under_way = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, under_way) = (Arc::clone(&handler), Arc::clone(&under_way));
        async move {
            let _stream = Stream::new(&under_way);
            let streams = under_way.load(Ordering::SeqCst);
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(|_| h2::Error::from(h2::Reason::CANCEL))?;
            let body = body.to_bytes();
            handler(Received {
                connection,
                streams,
                group,
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                authority: head.uri.authority().map(ToString::to_string),
                headers: head.headers,
                body,
            })
            .await
        }
    });
    let stream = TokioIo::new(stream);
    if !is_http2 {
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(stream, service)
            .await;
        return;
    }
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(max_streams)
        .serve_connection(stream, service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = &mut served => return,
        () = goaway.notified() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

struct Stream(Arc<AtomicUsize>);

impl Stream {
    fn new(under_way: &Arc<AtomicUsize>) -> Self {
        under_way.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(under_way))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
