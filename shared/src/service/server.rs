//! A small HTTP/1 server that bounds what one client can hold: connections, headers, time.
//!
//! In: a listener, a router, limits, a stop. Out: answered requests; when stopped, those under way are finished. Never: logs
//! an address, or waits for a client without a deadline.
//!
//! HTTP/2 is not spoken: clients come through a proxy or a storage node, and both speak HTTP/1 to what is behind them.

use crate::redact::Private;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

/// Where a connection comes from; each request carries it as an extension.
#[derive(Clone, Copy, Debug)]
pub struct SourceAddr(pub Private<IpAddr>);

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Label of the metrics: which server of the process this is.
    pub name: &'static str,
    /// Connections at once; a further one waits in the kernel's queue.
    pub connections: usize,
    /// From the first byte a connection could send to the end of a request's headers. An idle connection ends with it too.
    pub header_timeout: Duration,
    /// How long a client may leave our answer unread.
    pub write_timeout: Duration,
}

/// Serves until `stop` is ready, then until the requests under way are answered. Dropping the future closes everything.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            // Finished connections are taken out as they end, so the set is as large as what is open.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, source, permit)) = accepted else {
            continue;
        };
        let connection = one_connection(stream, source, router.clone(), limits, stopped.clone());
        connections.spawn(async move {
            let open = metrics::gauge!("server_connections", "server" => limits.name);
            open.increment(1.0);
            let _open = Decrement(open);
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    // Nobody listens for an error here: a receiver that is gone is a connection that has ended.
    let _ = stopping.send(true);
    while connections.join_next().await.is_some() {}
}

type Accepted = (TcpStream, SourceAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<Accepted> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // An answer is one write: waiting for more of it would only delay it.
            let _ = stream.set_nodelay(true);
            Some((stream, SourceAddr(Private::new(peer.ip())), permit))
        }
        Err(error) => {
            metrics::counter!("server_accept_errors_total").increment(1);
            if !matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
            ) {
                // Out of descriptors, most likely: trying again at once would only burn the processor.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None
        }
    }
}

async fn one_connection(
    stream: TcpStream,
    source: SourceAddr,
    router: Router,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let service = WithSource {
        inner: TowerToHyperService::new(router),
        source,
    };
    let stream = Guarded {
        stream,
        write_timeout: limits.write_timeout,
        stalled: None,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        // A client that has sent its request and closed its half still gets the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // How a connection ends is the client's business; what it did to a request, the request's metrics say.
    let asked_to_stop = tokio::select! {
        _ = &mut connection => false,
        _ = stopped.wait_for(|stopped| *stopped) => true,
    };
    if asked_to_stop {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

struct Decrement(metrics::Gauge);

impl Drop for Decrement {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

struct WithSource {
    inner: TowerToHyperService<Router>,
    source: SourceAddr,
}

impl hyper::service::Service<Request<Incoming>> for WithSource {
    type Response = Response<axum::body::Body>;
    type Error = std::convert::Infallible;
    type Future = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.source);
        self.inner.call(request)
    }
}

/// A stream that fails when a write makes no progress for too long. Reading has its deadlines above.
struct Guarded {
    stream: TcpStream,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    fn progress<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let write_timeout = self.write_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + write_timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.progress(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.progress(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.progress(context, result)
    }
}

/// A storage node or a proxy sends about ten.
const MAX_HEADERS: usize = 64;
/// Bytes of headers, and of a body read at once.
const MAX_BUFFER: usize = 32 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits {
        name: "test",
        connections: 2,
        header_timeout: Duration::from_millis(200),
        write_timeout: Duration::from_millis(200),
    };

    async fn start(
        router: Router,
        limits: Limits,
    ) -> (std::net::SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, router, limits, async {
            let _ = stopped.await;
        }));
        (address, stop, task)
    }

    fn hello() -> Router {
        Router::new().route("/", get(|| async { "hello" }))
    }

    async fn read_all(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset instead of an end is as good an end.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn a_connection_that_sends_nothing_or_half_a_header_is_closed() {
        let (address, _stop, _task) = start(hello(), LIMITS).await;
        for sent in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\nX"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let answer = read_all(&mut stream).await;
            assert!(!answer.contains("200 OK"), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_after_its_answer() {
        let (address, _stop, _task) = start(hello(), LIMITS).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_all(&mut stream).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn http_1_0_pipelines_and_half_closed_connections_are_answered() {
        let (address, _stop, _task) = start(hello(), LIMITS).await;
        let mut old = TcpStream::connect(address).await.unwrap();
        old.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        old.shutdown().await.unwrap();
        assert!(read_all(&mut old).await.ends_with("hello"));
        let mut pipeline = TcpStream::connect(address).await.unwrap();
        pipeline
            .write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20))
            .await
            .unwrap();
        assert_eq!(read_all(&mut pipeline).await.matches("hello").count(), 20);
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_until_another_ends() {
        let (address, _stop, _task) = start(hello(), LIMITS).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        third
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        // The first two end at their header timeout; only then is there room.
        assert!(read_all(&mut third).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn too_many_or_too_long_headers_are_refused() {
        let (address, _stop, _task) = start(hello(), LIMITS).await;
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(MAX_BUFFER * 2));
        for request in [many, long] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The server may close before it has read it all.
            let _ = stream.write_all(request.as_bytes()).await;
            let answer = read_all(&mut stream).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_client_that_never_reads_is_closed() {
        let router = Router::new().route("/", get(|| async { vec![7u8; 64 << 20] }));
        let (address, stop, task) = start(router, LIMITS).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        stream.readable().await.unwrap();
        drop(stop);
        // The server ends although its client holds the connection open: the write timeout has ended that.
        task.await.unwrap();
        drop(stream);
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_after_the_stop() {
        let (entered, mut inside) = tokio::sync::mpsc::channel(1);
        let release = Arc::new(tokio::sync::Notify::new());
        let waiting = Arc::clone(&release);
        let router = Router::new().route(
            "/",
            get(move || async move {
                let _ = entered.send(()).await;
                waiting.notified().await;
                "late"
            }),
        );
        let (address, stop, task) = start(router, LIMITS).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        inside.recv().await.unwrap();
        drop(stop);
        release.notify_one();
        assert!(read_all(&mut stream).await.ends_with("late"));
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
