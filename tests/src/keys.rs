//! Everything secret that a notifier needs, generated.
//!
//! In: a folder. Out: key files as Apple, Google and `quietline-notifier keygen` would give them, and the public halves for the
//! fakes that check what is signed with them. Never: reads a key that somebody else made.

use crate::sodium;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names the fakes and the notifier have to agree on.
pub const APNS_TOPIC: &str = "com.loki-project.loki-messenger";
pub const APNS_KEY_ID: &str = "LABKEY0001";
pub const APNS_TEAM_ID: &str = "LABTEAM001";
pub const FIREBASE_PROJECT: &str = "quietline-lab";
pub const FIREBASE_EMAIL: &str = "pusher@quietline-lab.example";
pub const HUAWEI_CLIENT_ID: &str = "107205081";
pub const HUAWEI_CLIENT_SECRET: &str = "hms7Kq2vXz94LwTbN1cRy8GdJfUe5MpA";
pub const HUAWEI_PROJECT: &str = "99536292102";
pub const HUAWEI_SUB_ACCOUNT: &str = "101783233";

pub const PUSH_CONTACT: &str = "mailto:push@quietline-lab.example";

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("RSA key")]
    Rsa,
    #[error("file: {0}")]
    File(#[from] std::io::Error),
}

/// A certificate authority that only the lab trusts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Result<Self, KeyError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Quietline lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a server on this machine, or for a client that proves who it is.
    pub fn issue(&self) -> Result<Issued, KeyError> {
        self.issue_for(&["localhost".to_owned(), "127.0.0.1".to_owned()])
    }

    /// The same under these names and addresses.
    pub fn issue_for(&self, names: &[String]) -> Result<Issued, KeyError> {
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        })
    }

    /// TLS for a fake on this machine: HTTP/2 preferred, client certificates of this authority welcome.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, KeyError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(only(&self.certificate)?), provider)
            .allow_unauthenticated()
            .build()?;
        self.issue()?.into_server_config(clients)
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

impl Issued {
    /// For a server that nobody vouches for; who pins the certificate may trust it.
    pub fn self_signed() -> Result<Self, KeyError> {
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn into_anonymous_server_config(self) -> Result<Arc<ServerConfig>, KeyError> {
        self.into_server_config(WebPkiClientVerifier::no_client_auth())
    }

    fn into_server_config(self, clients: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, KeyError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![self.certificate], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What an HTTP/2 client that trusts only this certificate, and what it signed, uses.
pub fn client_config(trusted: &CertificateDer<'static>) -> Result<Arc<ClientConfig>, KeyError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(only(trusted)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a TURN client that trusts only this certificate, and what it signed, uses.
pub fn turn_client_config(trusted: &CertificateDer<'static>) -> Result<Arc<ClientConfig>, KeyError> {
    let mut config = ClientConfig::clone(&*client_config(trusted)?);
    config.alpn_protocols = vec![b"stun.turn".to_vec()];
    Ok(Arc::new(config))
}

fn only(trusted: &CertificateDer<'static>) -> Result<RootCertStore, KeyError> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    Ok(roots)
}

/// A notifier's key files in one folder, and what the fakes and phones need of them.
pub struct Keys {
    pub folder: PathBuf,
    pub authority: Authority,
    /// Clients pin it.
    pub onion_public: [u8; 32],
    /// Uncompressed point of the APNs signing key.
    pub apns_public: Vec<u8>,
    /// PKCS#1 public key of the service accounts.
    pub firebase_public: Vec<u8>,
    firebase_key_pem: String,
}

impl Keys {
    /// Writes `onion`, `lookup`, `rows`, `link`, `vapid`, `apns.p8`, `apns.pem`, `apns-key.pem`, `huawei.secret`, `huawei.json` and `ca.pem` into `folder`;
    /// `firebase.json` follows when it is known where tokens are given out.
    pub fn generate(folder: &Path) -> Result<Self, KeyError> {
        std::fs::create_dir_all(folder)?;
        let authority = Authority::new()?;
        let onion_secret = sodium::random::<32>();
        write_secret(&folder.join("onion"), &onion_secret)?;
        write_secret(&folder.join("lookup"), &sodium::random::<32>())?;
        write_secret(&folder.join("rows"), &sodium::random::<32>())?;
        write_secret(&folder.join("link"), &sodium::random::<32>())?;
        write_secret(&folder.join("vapid"), &sodium::random::<32>())?;
        let apns = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        write_secret(&folder.join("apns.p8"), apns.serialize_pem().as_bytes())?;
        let client = authority.issue()?;
        write_secret(&folder.join("apns.pem"), client.certificate_pem.as_bytes())?;
        write_secret(&folder.join("apns-key.pem"), client.key_pem.as_bytes())?;
        write_secret(&folder.join("ca.pem"), authority.pem().as_bytes())?;
        // Making one takes long: Huawei's service account has the same.
        let firebase = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Rsa)?;
        let pkcs8 = firebase.as_der().map_err(|_| KeyError::Rsa)?;
        write_secret(&folder.join("huawei.secret"), HUAWEI_CLIENT_SECRET.as_bytes())?;
        let huawei = json!({
            "project_id": HUAWEI_PROJECT,
            "key_id": hex::encode(sodium::random::<16>()),
            "private_key": pem("PRIVATE KEY", pkcs8.as_ref()),
            "sub_account": HUAWEI_SUB_ACCOUNT,
            "token_uri": "https://oauth-login.cloud.huawei.com/oauth2/v3/token",
        });
        write_secret(&folder.join("huawei.json"), huawei.to_string().as_bytes())?;
        Ok(Self {
            folder: folder.to_owned(),
            authority,
            onion_public: sodium::x25519_public(&onion_secret),
            apns_public: apns.public_key_raw().to_vec(),
            firebase_public: firebase.public_key().as_ref().to_vec(),
            firebase_key_pem: pem("PRIVATE KEY", pkcs8.as_ref()),
        })
    }

    /// `firebase.json`, in the form Google gives it.
    pub fn write_service_account(&self, token_uri: &str) -> Result<(), KeyError> {
        let account = json!({
            "type": "service_account",
            "project_id": FIREBASE_PROJECT,
            "private_key_id": hex::encode(sodium::random::<20>()),
            "private_key": self.firebase_key_pem,
            "client_email": FIREBASE_EMAIL,
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        });
        let text = serde_json::to_string_pretty(&account).expect("a map of texts is JSON");
        Ok(write_secret(&self.folder.join("firebase.json"), text.as_bytes())?)
    }
}

/// Readable by its owner only, as a careful operator would have it.
pub fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let lines: Vec<_> = encoded
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
