//! A fake seed node: the node list over HTTPS JSON-RPC.
//!
//! In: `POST /json_rpc`. Out: `{"result": …}` around the same list as oxend's. Never: its own list.

use crate::keys::{Issued, KeyError};
use crate::ports;
use crate::swarms::NodeList;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// It ends with this value.
pub struct Seed {
    address: SocketAddr,
    certificate: Issued,
    asked: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Seed {
    /// Its certificate is self-signed; who asks it has to pin it.
    pub fn start(list: Arc<Mutex<NodeList>>) -> Result<Self, KeyError> {
        let certificate = Issued::self_signed()?;
        let listener = ports::listener();
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(certificate.clone().into_anonymous_server_config()?);
        let asked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (acceptor, list, counted) = (acceptor.clone(), Arc::clone(&list), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| answer(request, Arc::clone(&list), Arc::clone(&counted)));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self {
            address,
            certificate,
            asked,
            task,
        })
    }

    /// As the notifier's settings want it.
    pub fn url(&self) -> String {
        format!("https://{}/json_rpc", self.address)
    }

    pub fn certificate(&self) -> &Issued {
        &self.certificate
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    list: Arc<Mutex<NodeList>>,
    asked: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let is_list = request.uri().path() == "/json_rpc";
    let body = Limited::new(request.into_body(), 1 << 20)
        .collect()
        .await
        .map(|body| body.to_bytes());
    let call: Value = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body).ok())
        .unwrap_or_default();
    let known = ["get_service_nodes", "get_n_service_nodes"]
        .iter()
        .any(|method| call["method"] == *method);
    let reply = if is_list && known {
        asked.fetch_add(1, Ordering::Relaxed);
        let list = list.lock().expect("nobody panics while holding the list").to_json();
        json!({ "jsonrpc": "2.0", "id": call["id"], "result": list })
    } else {
        json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": -32601, "message": "Method not found" } })
    };
    let mut response = Response::new(Full::new(Bytes::from(reply.to_string())));
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    Ok(response)
}
