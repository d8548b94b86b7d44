//! A TLS handshake with ourselves.
//!
//! In: what streams are served with. Out: the group of the key exchange that a client as capable as we are gets. Never: leaves the process.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, NamedGroup, ServerConfig,
    ServerConnection, SignatureScheme,
};
use std::sync::Arc;

/// `own`: the certificate of `config`, which alone is accepted, whatever its name and date.
pub fn key_exchange(config: &Arc<ServerConfig>, own: &CertificateDer<'static>) -> Option<NamedGroup> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Ourselves {
        own: own.clone(),
        provider: Arc::clone(&provider),
    };
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::try_from("turn.example.org").ok()?;
    let mut client = ClientConnection::new(Arc::new(client), name).ok()?;
    let mut server = ServerConnection::new(Arc::clone(config)).ok()?;
    // Three flights do it; more would be a fault of ours.
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).ok()?;
        }
        feed(&mut server, &bytes)?;
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).ok()?;
        }
        feed(&mut client, &bytes)?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return client.negotiated_key_exchange_group().map(|group| group.name());
        }
    }
    None
}

fn feed<D>(end: &mut rustls::ConnectionCommon<D>, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        end.read_tls(&mut bytes).ok()?;
        end.process_new_packets().ok()?;
    }
    Some(())
}

#[derive(Debug)]
struct Ourselves {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Ourselves {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if shown.as_ref() == self.own.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
