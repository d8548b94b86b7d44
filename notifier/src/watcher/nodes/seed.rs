//! One seed node, asked over HTTPS.
//!
//! In: its URL and, if it is pinned, its certificate. Out: node lists. Never: follows a redirect, or accepts another
//! certificate than the pinned one.

use super::{SourceFault, parse};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use notifier_core::swarm::NodeList;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A seed, ready to be asked.
pub struct SeedSource {
    host: String,
    name: ServerName<'static>,
    port: u16,
    path: String,
    tls: TlsConnector,
    deadline: Duration,
}

/// Why a seed cannot be asked, or did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedFault {
    #[error("the URL is not https://HOST[:PORT][/PATH]")]
    BadUrl,
    #[error("the file holds no PEM certificate")]
    BadCertificate,
    #[error("the TLS library refuses its own settings")]
    Tls,
    #[error("the TLS handshake failed")]
    Handshake,
    #[error("the certificate is not the pinned one, or not valid")]
    WrongCertificate,
    #[error("the answer is not HTTP")]
    Http,
    #[error("the answer is not 200")]
    Status,
    #[error("the answer is too long")]
    TooLong,
}

impl SeedFault {
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadUrl => "bad_url",
            Self::BadCertificate => "bad_certificate",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
            Self::WrongCertificate => "wrong_certificate",
            Self::Http => "http",
            Self::Status => "status",
            Self::TooLong => "too_long",
        }
    }
}

impl SeedSource {
    /// `pinned`: PEM text; only the certificates in it are accepted, whoever signed them. Without it the public roots decide.
    pub fn new(url: &str, pinned: Option<&[u8]>) -> Result<Self, SeedFault> {
        let uri: Uri = url.parse().map_err(|_| SeedFault::BadUrl)?;
        let authority = uri.authority().ok_or(SeedFault::BadUrl)?;
        if uri.scheme_str() != Some("https") || authority.as_str().contains('@') {
            return Err(SeedFault::BadUrl);
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| SeedFault::BadUrl)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            name,
            port: authority.port_u16().unwrap_or(443),
            path: if path == "/" { "/json_rpc".into() } else { path.into() },
            tls: TlsConnector::from(Arc::new(tls_settings(pinned)?)),
            host,
            deadline: DEADLINE,
        })
    }

    pub(super) async fn list(&self) -> Result<NodeList, SourceFault> {
        let text = timeout(self.deadline, self.ask())
            .await
            .map_err(|_| SourceFault::Timeout)??;
        parse(text).await
    }

    async fn ask(&self) -> Result<Bytes, SourceFault> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|_| SourceFault::Unreachable)?;
        let stream = self.tls.connect(self.name.clone(), stream).await.map_err(|error| {
            let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            SourceFault::Seed(match reason {
                Some(rustls::Error::InvalidCertificate(_)) => SeedFault::WrongCertificate,
                _ => SeedFault::Handshake,
            })
        })?;
        let http = |_| SourceFault::Seed(SeedFault::Http);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        // Gone with this function, whatever state it is in.
        let mut task = JoinSet::new();
        task.spawn(connection);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(HOST, format!("{host}:{}", self.port))
            .header(USER_AGENT, "quietline")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(QUESTION)))
            .map_err(|_| SourceFault::Seed(SeedFault::BadUrl))?;
        let reply = sender.send_request(request).await.map_err(http)?;
        if reply.status() != StatusCode::OK {
            return Err(SourceFault::Seed(SeedFault::Status));
        }
        let body = Limited::new(reply.into_body(), LONGEST_ANSWER)
            .collect()
            .await
            .map_err(|error| {
                SourceFault::Seed(if error.is::<LengthLimitError>() {
                    SeedFault::TooLong
                } else {
                    SeedFault::Http
                })
            })?;
        Ok(body.to_bytes())
    }
}

/// The groups of key exchange that we offer to seeds, the preferred one first.
pub fn offered_groups() -> Vec<String> {
    tls_settings(None).map_or_else(|_| vec![], |settings| crate::tls::offered_groups(Arc::new(settings)))
}

fn tls_settings(pinned: Option<&[u8]>) -> Result<ClientConfig, SeedFault> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|_| SeedFault::Tls)?;
    let Some(pem) = pinned else {
        let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| SeedFault::BadCertificate)?;
    if certificates.is_empty() {
        return Err(SeedFault::BadCertificate);
    }
    let verifier = Arc::new(Pinned { certificates, provider });
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Accepts exactly these certificates. Their names and dates do not count: the operator chose them, not a name.
#[derive(Debug)]
struct Pinned {
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self
            .certificates
            .iter()
            .any(|pinned| pinned.as_ref() == end_entity.as_ref())
        {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    // The certificate is public: that the server holds its key is proven only here.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

const QUESTION: &[u8] = br#"{"method":"get_service_nodes","params":{"active_only":true,"fields":{"public_ip":true,"storage_lmq_port":true,"pubkey_x25519":true,"swarm_id":true,"block_hash":true,"height":true}}}"#;
/// Everything together: name, connect, handshake, answer.
const DEADLINE: Duration = Duration::from_secs(20);
const LONGEST_ANSWER: usize = 16 << 20;

#[cfg(test)]
mod tests;
