//! What the running server says of itself, asked as its operator would ask.
//!
//! In: the address of its ops listener, or its own metrics. Out: numbers by name. Never: waits long for an answer, or reads a long one.

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// One reading of the metrics.
#[derive(Clone, Debug, Default)]
pub struct Live(String);

impl Live {
    pub fn from_text(metrics: String) -> Self {
        Self(metrics)
    }

    /// Asks a server of this machine; `None` if none answers as ours does.
    pub async fn ask(ops: SocketAddr) -> Option<Self> {
        let text = tokio::time::timeout(PATIENCE, metrics_of(ops)).await.ok()??;
        let live = Self(text);
        live.process_id().is_some().then_some(live)
    }

    /// The sum over all labels.
    pub fn sum(&self, name: &str) -> Option<u64> {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        let values: Vec<f64> = values.collect();
        // Below 2^53, as every count of things in memory is.
        (!values.is_empty()).then(|| values.iter().sum::<f64>().max(0.0) as u64)
    }

    pub fn process_id(&self) -> Option<u32> {
        self.sum("service_process_id").and_then(|id| u32::try_from(id).ok())
    }

    pub fn dumpable(&self) -> Option<bool> {
        self.sum("service_dumpable").map(|dumpable| dumpable != 0)
    }
}

async fn metrics_of(ops: SocketAddr) -> Option<String> {
    let stream = TcpStream::connect(ops).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let driven = tokio::spawn(connection);
    let request = hyper::Request::get("/metrics")
        .header(hyper::header::HOST, ops.to_string())
        .body(http_body_util::Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request).await.ok();
    let body = match answer {
        Some(answer) if answer.status().is_success() => Limited::new(answer.into_body(), LONGEST).collect().await.ok(),
        _ => None,
    };
    driven.abort();
    String::from_utf8(body?.to_bytes().to_vec()).ok()
}

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of metrics; a server has less than 200,000.
const LONGEST: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_over_labels() {
        let live = Live::from_text("# TYPE a gauge\na{b=\"c\"} 2\na{b=\"d\"} 3\nab 7\nservice_dumpable 0\n".to_owned());
        assert_eq!(
            (live.sum("a"), live.sum("ab"), live.sum("missing")),
            (Some(5), Some(7), None)
        );
        assert_eq!((live.dumpable(), live.process_id()), (Some(false), None));
    }

    #[tokio::test]
    async fn nobody_there_is_no_answer() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(Live::ask(free).await.is_none());
    }
}
