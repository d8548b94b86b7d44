//! One connection: name, TCP, TLS.
//!
//! In: an `Endpoint`. Out: a stream whose peer has proved its name. Never: logs where it leads.

use super::super::credential::server_name;
use hyper::http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where a provider listens and how it proves who it is.
#[derive(Clone)]
pub struct Endpoint {
    host: Box<str>,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Endpoint {
    /// `None` if `host` is neither a name nor an address. An IPv6 address may stand in brackets.
    pub fn new(host: &str, port: u16, tls: Arc<ClientConfig>) -> Option<Self> {
        Some(Self {
            name: server_name(host)?,
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            port,
            tls: TlsConnector::from(tls),
        })
    }
}

/// How a URI names the host and port. `None` if it cannot.
pub fn authority(host: &str, port: u16) -> Option<Authority> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    match port {
        443 => host.parse().ok(),
        _ => format!("{host}:{port}").parse().ok(),
    }
}

/// Why a connection is not up. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFault {
    Resolve,
    Refused,
    Connect,
    /// The certificate is not one we accept: another root, another name, expired.
    Certificate,
    Tls,
    NotHttp2,
    Handshake,
    Timeout,
}

impl DialFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::Certificate => "certificate",
            Self::Tls => "tls",
            Self::NotHttp2 => "not-http2",
            Self::Handshake => "handshake",
            Self::Timeout => "timeout",
        }
    }
}

/// Addresses of one name that are tried, and how long each may take before the next.
const ADDRESSES: usize = 4;
const ADDRESS_PATIENCE: Duration = Duration::from_millis(2500);

/// The caller bounds the time.
pub async fn open(endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, DialFault> {
    let stream = reach(endpoint).await?;
    // A push is one small write.
    stream.set_nodelay(true).map_err(|_| DialFault::Connect)?;
    let opened = endpoint.tls.connect(endpoint.name.clone(), stream).await;
    opened.map_err(|error| tls_fault(&error))
}

async fn reach(endpoint: &Endpoint) -> Result<TcpStream, DialFault> {
    let found = lookup_host((&*endpoint.host, endpoint.port)).await;
    let mut fault = DialFault::Resolve;
    for address in found.map_err(|_| DialFault::Resolve)?.take(ADDRESSES) {
        match tokio::time::timeout(ADDRESS_PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fault = DialFault::Refused,
            Ok(Err(_)) => fault = DialFault::Connect,
            Err(_) => fault = DialFault::Timeout,
        }
    }
    Err(fault)
}

/// What a handshake that failed says.
pub fn tls_fault(error: &io::Error) -> DialFault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => DialFault::Certificate,
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => DialFault::NotHttp2,
        _ => DialFault::Tls,
    }
}
