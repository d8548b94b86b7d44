//! The certificate of TLS listeners.
//!
//! In: PEM, or what a server showed. Out: what each stream is served with, what is wrong with the files, and what a client will think of
//! the chain. Never: says what a key file holds.

use crate::streams::server_config;
use quietline_shared::redact::Secret;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, NamedGroup, RootCertStore, ServerConfig};
use std::sync::Arc;
use std::time::Duration;
use webpki::EndEntityCert;

/// What TLS clients are shown, and the key to it.
#[derive(Clone)]
pub struct Certificate {
    pub chain: Chain,
    pub config: Arc<ServerConfig>,
}

/// Certificates in the order in which they are sent, the server's own first.
#[derive(Clone, PartialEq, Eq)]
pub struct Chain(Vec<CertificateDer<'static>>);

/// Where a chain leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// To a root that browsers come with.
    Public,
    /// To a certificate that signed itself: clients must have been given it.
    Private,
    /// Nowhere: a certificate between the server's own and its root is not sent.
    Incomplete,
}

/// Which of the two files is wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error("holds no certificate")]
    NoCertificate,
    #[error("holds a certificate that cannot be read")]
    BadCertificate,
    #[error("holds no private key")]
    NoKey,
    #[error("holds a key that is not of the certificate")]
    OtherKey,
    #[error("holds a key of a kind that TLS cannot use")]
    UnusableKey,
}

impl CertificateFault {
    pub const fn is_about_the_key(self) -> bool {
        matches!(self, Self::NoKey | Self::OtherKey | Self::UnusableKey)
    }
}

impl Certificate {
    pub fn read(certificates: &[u8], key: &Secret<Vec<u8>>) -> Result<Self, CertificateFault> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateFault::BadCertificate)?;
        let own = chain.first().ok_or(CertificateFault::NoCertificate)?;
        ParsedCertificate::try_from(own).map_err(|_| CertificateFault::BadCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| CertificateFault::NoKey)?;
        let config = server_config(chain.clone(), key).map_err(|fault| match fault {
            Error::InconsistentKeys(_) => CertificateFault::OtherKey,
            _ => CertificateFault::UnusableKey,
        })?;
        Ok(Self {
            chain: Chain(chain),
            config,
        })
    }

    /// What a client as capable as we are gets as key exchange.
    pub fn key_exchange(&self) -> Option<NamedGroup> {
        super::handshake::key_exchange(&self.config, self.chain.0.first()?)
    }
}

impl Chain {
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self(certificates)
    }

    /// Whether it is made for this name or address.
    pub fn is_for(&self, host: &str) -> bool {
        let (Ok(name), Some(own)) = (ServerName::try_from(host), self.own()) else {
            return false;
        };
        rustls::client::verify_server_name(&own, &name).is_ok()
    }

    /// Seconds since 1970 at which it begins and ends to be good.
    pub fn validity(&self) -> Option<(u64, u64)> {
        let asked_at = |seconds| self.verify(&RootCertStore::empty(), seconds).err();
        let CertificateError::NotValidYetContext { not_before, .. } = asked_at(0)? else {
            return None;
        };
        let CertificateError::ExpiredContext { not_after, .. } = asked_at(FAR_FUTURE)? else {
            return None;
        };
        Some((not_before.as_secs(), not_after.as_secs()))
    }

    /// What a client thinks that knows only the public roots.
    pub fn trust(&self, unix_seconds: u64) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if self.verify(&roots, unix_seconds).is_ok() {
            return Trust::Public;
        }
        // A private root that is not sent looks like a public chain with a hole in it: both end at an issuer nobody shows.
        match self.0.iter().any(is_signed_by_itself) {
            true => Trust::Private,
            false => Trust::Incomplete,
        }
    }

    fn own(&self) -> Option<ParsedCertificate<'_>> {
        ParsedCertificate::try_from(self.0.first()?).ok()
    }

    fn verify(&self, roots: &RootCertStore, unix_seconds: u64) -> Result<(), CertificateError> {
        let own = self.own().ok_or(CertificateError::BadEncoding)?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds));
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let intermediates = self.0.get(1..).unwrap_or_default();
        rustls::client::verify_server_cert_signed_by_trust_anchor(&own, roots, intermediates, now, algorithms.all)
            .map_err(|fault| match fault {
                Error::InvalidCertificate(fault) => fault,
                _ => CertificateError::BadEncoding,
            })
    }
}

fn is_signed_by_itself(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| certificate.issuer() == certificate.subject())
}

/// The year 9998: every certificate has ended.
const FAR_FUTURE: u64 = 253_340_000_000;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    /// For `turn.example.org`, good in the year 2030; certificate and key as PEM.
    pub(crate) fn pem() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["turn.example.org".to_owned()]).unwrap();
        parameters.not_before = date_time_ymd(2030, 1, 1);
        parameters.not_after = date_time_ymd(2031, 1, 1);
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn read(certificate: &str, key: &str) -> Result<Certificate, CertificateFault> {
        Certificate::read(certificate.as_bytes(), &Secret::new(key.as_bytes().to_vec()))
    }

    #[test]
    fn a_certificate_says_its_name_and_its_time() {
        let (certificate, key) = pem();
        let certificate = read(&certificate, &key).ok().unwrap().chain;
        assert!(certificate.is_for("turn.example.org"));
        assert!(!certificate.is_for("example.org") && !certificate.is_for("192.0.2.1"));
        assert_eq!(certificate.validity(), Some((1_893_456_000, 1_924_992_000)));
        assert_eq!(
            certificate.trust(1_900_000_000),
            Trust::Private,
            "it is signed by itself"
        );
    }

    #[test]
    fn files_that_do_not_go_together_are_told_apart() {
        let ((certificate, key), (other, other_key)) = (pem(), pem());
        let fault = |certificate: &str, key: &str| read(certificate, key).err();
        assert_eq!(fault("", &key), Some(CertificateFault::NoCertificate));
        assert_eq!(fault(&key, &key), Some(CertificateFault::NoCertificate));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(fault(garbage, &key), Some(CertificateFault::BadCertificate));
        assert_eq!(fault(&certificate, ""), Some(CertificateFault::NoKey));
        assert_eq!(fault(&certificate, &other), Some(CertificateFault::NoKey));
        assert_eq!(fault(&certificate, &other_key), Some(CertificateFault::OtherKey));
    }
}
