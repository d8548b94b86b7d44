//! A small HTTP/1.1 client with kept connections: the last hop of the onion network, and the operator's browser.
//!
//! In: a path and a body. Out: status and body. Never: TLS (the notifier stands behind a proxy), redirects, retries of what was
//! already sent, except on a kept connection that the server had closed.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Connections kept for reuse; more may be open at once.
const KEPT: usize = 64;
/// A connection that lay idle for longer is not used again: its server may be closing it at this moment (the operators' port does after 5 s),
/// and then the request on it is lost.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct HttpClient {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<Idle>>>,
}

/// A connection, and since when it lies idle.
struct Idle {
    since: Instant,
    connection: SendRequest<Full<Bytes>>,
}

#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
}

impl HttpClient {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            idle: Arc::default(),
        }
    }

    pub async fn get(&self, path: &str) -> Result<HttpAnswer, HttpError> {
        self.send(Method::GET, path, "text/plain", Bytes::new()).await
    }

    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Result<HttpAnswer, HttpError> {
        self.send(Method::POST, path, content_type, body.into()).await
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<HttpAnswer, HttpError> {
        let mut connection = match self.kept() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        if connection.ready().await.is_err() {
            connection = self.connect().await?;
        }
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", content_type)
            .body(Full::new(body))
            .expect("the lab's own paths and headers are well-formed");
        let (parts, body) = connection.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.keep(connection);
        let content_type = parts
            .headers
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        Ok(HttpAnswer {
            status: parts.status.as_u16(),
            content_type,
            body,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().expect("nobody panics while holding it");
        idle.retain(|kept| !kept.connection.is_closed() && kept.since.elapsed() < FRESH);
        idle.pop().map(|kept| kept.connection)
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().expect("nobody panics while holding it");
        if idle.len() < KEPT && !connection.is_closed() {
            idle.push(Idle {
                since: Instant::now(),
                connection,
            });
        }
    }
}
