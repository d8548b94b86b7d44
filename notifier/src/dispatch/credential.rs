//! Keys and certificates: read once, checked by use before the first push.
//!
//! In: the paths in the settings. Out: what signs and what proves who we are. Never: shows what a file holds, in any error.

mod expiry;

pub use expiry::not_after;

use crate::dispatch::oauth::Grant;
use crate::dispatch::settings::{ApnsSettings, Fault, FirebaseSettings, HuaweiSettings};
use crate::dispatch::signed::Signer;
use hyper::Uri;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use quietline_shared::redact::Secret;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A setting within its section, and its fault.
pub type Named<T> = Result<T, (&'static str, Fault)>;

/// What proves to APNs who we are.
pub enum ApnsCredential {
    Token(Box<ProviderKey>),
    Certificate(ClientCertificate),
}

impl ApnsCredential {
    pub fn open(settings: &ApnsSettings) -> Named<Self> {
        let wants_token = settings.key_file.is_some() || settings.key_id.is_some() || settings.team_id.is_some();
        let wants_certificate = settings.certificate_file.is_some() || settings.certificate_key_file.is_some();
        match (wants_token, wants_certificate) {
            (false, false) => Err(("key_file", Fault::NoCredential)),
            (true, true) => Err(("key_file", Fault::BothCredentials)),
            (true, false) => {
                let missing = |setting| (setting, Fault::Missing);
                let file = settings.key_file.as_deref().ok_or(missing("key_file"))?;
                let key_id = settings.key_id.as_deref().ok_or(missing("key_id"))?;
                let team_id = settings.team_id.as_deref().ok_or(missing("team_id"))?;
                ProviderKey::open(file, key_id, team_id).map(|key| Self::Token(Box::new(key)))
            }
            (false, true) => {
                let missing = |setting| (setting, Fault::Missing);
                let file = settings
                    .certificate_file
                    .as_deref()
                    .ok_or(missing("certificate_file"))?;
                let key = settings.certificate_key_file.as_deref();
                let key = key.ok_or(missing("certificate_key_file"))?;
                ClientCertificate::open(file, key).map(Self::Certificate)
            }
        }
    }
}

/// The P-256 key that signs provider tokens.
pub struct ProviderKey {
    key: EncodingKey,
    header: Header,
    team_id: Box<str>,
}

#[derive(Serialize)]
struct ProviderClaims<'a> {
    iss: &'a str,
    iat: i64,
}

impl ProviderKey {
    fn open(file: &Path, key_id: &str, team_id: &str) -> Named<Self> {
        for (setting, text) in [("key_id", key_id), ("team_id", team_id)] {
            if text.is_empty() || text.len() > 64 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err((setting, Fault::BadText));
            }
        }
        let pem = read(file).map_err(|fault| ("key_file", fault))?;
        let bad = ("key_file", Fault::BadP8);
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key_id.to_owned());
        let opened = Self {
            key: EncodingKey::from_ec_pem(pem.expose()).map_err(|_| bad)?,
            header,
            team_id: team_id.into(),
        };
        // A key of another curve is found only by signing.
        opened.sign(0).ok_or(bad)?;
        Ok(opened)
    }
}

impl Signer for ProviderKey {
    const SCHEME: &'static str = "bearer";
    /// Apple accepts a token for 60 minutes.
    const REUSED: Duration = Duration::from_secs(45 * 60);
    /// Apple answers TooManyProviderTokenUpdates to those who sign more often.
    const SIGNED_AT_MOST_EVERY: Duration = Duration::from_secs(20 * 60);

    fn sign(&self, unix_seconds: i64) -> Option<Secret<String>> {
        let claims = ProviderClaims {
            iss: &self.team_id,
            iat: unix_seconds,
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key);
        token.ok().map(Secret::new)
    }
}

/// A client certificate with its chain and key.
pub struct ClientCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Unix seconds.
    pub not_after: i64,
}

impl ClientCertificate {
    fn open(file: &Path, key_file: &Path) -> Named<Self> {
        let bad = ("certificate_file", Fault::BadCertificate);
        let chain = certificates(file).map_err(|fault| ("certificate_file", fault))?;
        let not_after = chain.first().and_then(|leaf| not_after(leaf)).ok_or(bad)?;
        let pem = read(key_file).map_err(|fault| ("certificate_key_file", fault))?;
        let key = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| ("certificate_key_file", Fault::BadKey))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(("certificate_key_file", Fault::ForeignKey)),
            Err(rustls::Error::InvalidCertificate(_)) => return Err(bad),
            Err(_) => return Err(("certificate_key_file", Fault::BadKey)),
        }
        Ok(Self { chain, key, not_after })
    }
}

/// What Google gives a project to sign with.
pub struct ServiceAccount {
    key: EncodingKey,
    header: Header,
    client_email: Box<str>,
    /// The audience of an assertion, whatever address it is sent to.
    audience: Box<str>,
    pub project: Box<str>,
    pub token_uri: Uri,
}

#[derive(Deserialize)]
struct ServiceAccountFile {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    project_id: String,
    token_uri: String,
}

#[derive(Serialize)]
struct AssertionClaims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

const FCM_SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// Life of an assertion: the longest Google takes.
const ASSERTION_SECONDS: i64 = 3600;

impl ServiceAccount {
    pub fn open(settings: &FirebaseSettings) -> Named<Self> {
        let in_file = |fault| ("service_account_file", fault);
        let text = read(&settings.service_account_file).map_err(in_file)?;
        let file: ServiceAccountFile =
            serde_json::from_slice(text.expose()).map_err(|_| in_file(Fault::BadServiceAccount))?;
        let private_key = Secret::new(file.private_key);
        let mut header = Header::new(Algorithm::RS256);
        header.kid = file.private_key_id;
        let (project_setting, project) = match &settings.project {
            Some(project) => ("project", project.as_str()),
            None => ("service_account_file", file.project_id.as_str()),
        };
        if !is_path_part(project) {
            return Err((project_setting, Fault::BadText));
        }
        let token_uri = match &settings.token_uri {
            Some(uri) => https_uri(uri).ok_or(("token_uri", Fault::BadUri))?,
            None => https_uri(&file.token_uri).ok_or(in_file(Fault::BadServiceAccount))?,
        };
        let opened = Self {
            key: EncodingKey::from_rsa_pem(private_key.expose().as_bytes())
                .map_err(|_| in_file(Fault::BadServiceAccountKey))?,
            header,
            client_email: file.client_email.into(),
            audience: file.token_uri.into(),
            project: project.into(),
            token_uri,
        };
        opened.assertion(0).ok_or(in_file(Fault::BadServiceAccountKey))?;
        Ok(opened)
    }

    /// What the token endpoint exchanges for an access token.
    pub fn assertion(&self, unix_seconds: i64) -> Option<Secret<String>> {
        let claims = AssertionClaims {
            iss: &self.client_email,
            scope: FCM_SCOPE,
            aud: &self.audience,
            iat: unix_seconds,
            exp: unix_seconds.saturating_add(ASSERTION_SECONDS),
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key)
            .ok()
            .map(Secret::new)
    }
}

impl Grant for ServiceAccount {
    fn token_uri(&self) -> &Uri {
        &self.token_uri
    }

    fn form(&self, unix_seconds: i64) -> Option<Secret<String>> {
        let assertion = self.assertion(unix_seconds)?;
        let form = format!("grant_type={JWT_BEARER}&assertion={}", assertion.expose());
        Some(Secret::new(form))
    }
}

/// RFC 7523 §2.1, as a form writes it.
const JWT_BEARER: &str = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";

/// What proves to Huawei who we are.
pub enum HuaweiCredential {
    /// Is exchanged for an access token.
    Secret(ClientSecret),
    /// Signs what is sent with each push.
    Signed(Box<HuaweiAccount>),
}

impl HuaweiCredential {
    pub fn open(settings: &HuaweiSettings) -> Named<Self> {
        match (&settings.client_secret_file, &settings.service_account_file) {
            (None, None) => Err(("client_secret_file", Fault::NoHuaweiCredential)),
            (Some(_), Some(_)) => Err(("client_secret_file", Fault::BothHuaweiCredentials)),
            (Some(file), None) => {
                let client_id = settings.client_id.as_deref().ok_or(("client_id", Fault::Missing))?;
                ClientSecret::open(file, client_id, settings.token_uri.as_deref()).map(Self::Secret)
            }
            (None, Some(file)) => HuaweiAccount::open(file).map(|account| Self::Signed(Box::new(account))),
        }
    }
}

/// An app's id and secret, as AppGallery Connect shows them.
pub struct ClientSecret {
    form: Secret<String>,
    token_uri: Uri,
}

impl ClientSecret {
    fn open(file: &Path, client_id: &str, token_uri: Option<&str>) -> Named<Self> {
        // It becomes part of a path and of a form.
        if !is_path_part(client_id) {
            return Err(("client_id", Fault::BadText));
        }
        let secret = read(file).map_err(|fault| ("client_secret_file", fault))?;
        let secret = secret.expose().trim_ascii();
        if secret.is_empty() || secret.len() > 1024 || !secret.iter().all(u8::is_ascii_graphic) {
            return Err(("client_secret_file", Fault::BadText));
        }
        let mut form = format!("grant_type=client_credentials&client_id={client_id}&client_secret=");
        for byte in secret {
            if byte.is_ascii_alphanumeric() || b"-_.".contains(byte) {
                form.push(char::from(*byte));
            } else {
                form.push_str(&format!("%{byte:02X}"));
            }
        }
        let token_uri = https_uri(token_uri.unwrap_or(HUAWEI_TOKEN_URI)).ok_or(("token_uri", Fault::BadUri))?;
        Ok(Self {
            form: Secret::new(form),
            token_uri,
        })
    }
}

impl Grant for ClientSecret {
    fn token_uri(&self) -> &Uri {
        &self.token_uri
    }

    fn form(&self, _: i64) -> Option<Secret<String>> {
        Some(Secret::new(self.form.expose().clone()))
    }
}

/// Also the audience of what a service account signs.
const HUAWEI_TOKEN_URI: &str = "https://oauth-login.cloud.huawei.com/oauth2/v3/token";

/// A service account key, as the API Console gives it.
pub struct HuaweiAccount {
    key: EncodingKey,
    header: Header,
    sub_account: Box<str>,
    audience: Box<str>,
    pub project: Box<str>,
}

#[derive(Deserialize)]
struct HuaweiAccountFile {
    project_id: String,
    key_id: String,
    private_key: String,
    sub_account: String,
    token_uri: Option<String>,
}

#[derive(Serialize)]
struct HuaweiClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

impl HuaweiAccount {
    fn open(file: &Path) -> Named<Self> {
        let in_file = |fault| ("service_account_file", fault);
        let text = read(file).map_err(in_file)?;
        let file: HuaweiAccountFile =
            serde_json::from_slice(text.expose()).map_err(|_| in_file(Fault::BadHuaweiAccount))?;
        let private_key = Secret::new(file.private_key);
        let mut header = Header::new(Algorithm::PS256);
        header.kid = Some(file.key_id);
        if !is_path_part(&file.project_id) {
            return Err(in_file(Fault::BadText));
        }
        let bad_key = in_file(Fault::BadServiceAccountKey);
        let opened = Self {
            key: EncodingKey::from_rsa_pem(private_key.expose().as_bytes()).map_err(|_| bad_key)?,
            header,
            sub_account: file.sub_account.into(),
            audience: file.token_uri.unwrap_or_else(|| HUAWEI_TOKEN_URI.to_owned()).into(),
            project: file.project_id.into(),
        };
        opened.sign(0).ok_or(bad_key)?;
        Ok(opened)
    }
}

impl Signer for HuaweiAccount {
    const SCHEME: &'static str = "Bearer";
    /// Huawei accepts what is signed for an hour.
    const REUSED: Duration = Duration::from_secs(50 * 60);
    /// What was signed so lately is refused for another reason than its age.
    const SIGNED_AT_MOST_EVERY: Duration = Duration::from_secs(60);

    fn sign(&self, unix_seconds: i64) -> Option<Secret<String>> {
        let claims = HuaweiClaims {
            iss: &self.sub_account,
            aud: &self.audience,
            iat: unix_seconds,
            exp: unix_seconds.saturating_add(ASSERTION_SECONDS),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key);
        token.ok().map(Secret::new)
    }
}

/// Whether a text may stand between two slashes.
pub fn is_path_part(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(is_plain)
}

/// The public roots, or only those in `file`.
pub fn roots(file: Option<&Path>) -> Named<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in certificates(file).map_err(|fault| ("ca_file", fault))? {
                roots.add(certificate).map_err(|_| ("ca_file", Fault::BadCertificate))?;
            }
        }
    }
    Ok(roots)
}

/// TLS 1.2 or 1.3 to one of our providers, speaking one of `protocols`.
pub fn tls(
    roots: RootCertStore,
    identity: Option<&ClientCertificate>,
    protocols: &[&[u8]],
) -> Result<Arc<rustls::ClientConfig>, Fault> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Fault::BadKey)?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|_| Fault::BadKey)?,
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The groups of key exchange that we offer to push services, the preferred one first.
pub fn offered_groups() -> Vec<String> {
    tls(RootCertStore::empty(), None, &[b"h2"]).map_or_else(|_| vec![], crate::tls::offered_groups)
}

/// The name whose certificate is asked for.
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

fn https_uri(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_https = uri.scheme_str() == Some("https");
    (is_https && uri.host().is_some_and(|host| server_name(host).is_some())).then_some(uri)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.expose()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Fault::BadCertificate),
    }
}

/// Larger than any bundle of roots.
const FILE_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<Secret<Vec<u8>>, Fault> {
    let file = std::fs::File::open(path).map_err(|_| Fault::Unreadable)?;
    let mut content = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut content);
    let content = Secret::new(content);
    match read {
        Err(_) => Err(Fault::Unreadable),
        Ok(length) if length as u64 > FILE_MAX => Err(Fault::TooLarge),
        Ok(_) => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::settings::DispatchSettings;
    use std::path::PathBuf;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    /// JSON stands for TOML here: the shape is the same.
    fn settings(json: &str) -> DispatchSettings {
        serde_json::from_str(json).unwrap()
    }

    fn apns() -> ApnsSettings {
        settings(r#"{"apns":{"topic":"org.example"}}"#).apns.unwrap()
    }

    fn firebase(file: PathBuf) -> FirebaseSettings {
        let mut found = settings(r#"{"firebase":{"service_account_file":"x"}}"#)
            .firebase
            .unwrap();
        found.service_account_file = file;
        found
    }

    fn p256() -> rcgen::KeyPair {
        rcgen::KeyPair::generate().unwrap()
    }

    fn fault<T>(named: Named<T>) -> (&'static str, Fault) {
        named.err().unwrap()
    }

    fn with_key(content: &str) -> (Folder, ApnsSettings) {
        let folder = Folder::new();
        let mut settings = apns();
        settings.key_file = Some(folder.put("key.p8", content));
        settings.key_id = Some("ABCDE12345".to_owned());
        settings.team_id = Some("FGHIJ67890".to_owned());
        (folder, settings)
    }

    #[test]
    fn neither_or_both_credentials_are_refused_by_name() {
        assert_eq!(fault(ApnsCredential::open(&apns())), ("key_file", Fault::NoCredential));
        let (_folder, mut settings) = with_key(&p256().serialize_pem());
        assert!(ApnsCredential::open(&settings).is_ok());
        settings.certificate_file = Some("x".into());
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("key_file", Fault::BothCredentials)
        );
    }

    #[test]
    fn half_a_credential_names_the_missing_half() {
        let (_folder, mut settings) = with_key(&p256().serialize_pem());
        settings.team_id = None;
        assert_eq!(fault(ApnsCredential::open(&settings)), ("team_id", Fault::Missing));
        let mut settings = apns();
        settings.certificate_file = Some("x".into());
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("certificate_key_file", Fault::Missing)
        );
    }

    #[test]
    fn a_key_that_cannot_sign_is_refused_at_the_start() {
        let other_curve = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for content in ["", "garbage", &other_curve.serialize_pem(), &p256().public_key_pem()] {
            let (_folder, settings) = with_key(content);
            assert_eq!(
                fault(ApnsCredential::open(&settings)),
                ("key_file", Fault::BadP8),
                "{content}"
            );
        }
    }

    #[test]
    fn a_missing_or_boundless_file_is_named() {
        let (_folder, mut settings) = with_key(&"x".repeat(FILE_MAX as usize + 1));
        assert_eq!(fault(ApnsCredential::open(&settings)), ("key_file", Fault::TooLarge));
        settings.key_file = Some("/nonexistent/key.p8".into());
        assert_eq!(fault(ApnsCredential::open(&settings)), ("key_file", Fault::Unreadable));
    }

    #[test]
    fn a_certificate_tells_when_it_ends_and_must_match_its_key() {
        let folder = Folder::new();
        let key = p256();
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2033, 5, 18);
        let certificate = params.self_signed(&key).unwrap();
        let mut settings = apns();
        settings.certificate_file = Some(folder.put("cert.pem", certificate.pem()));
        settings.certificate_key_file = Some(folder.put("key.pem", key.serialize_pem()));
        let Ok(ApnsCredential::Certificate(opened)) = ApnsCredential::open(&settings) else {
            panic!("not a certificate");
        };
        assert_eq!(opened.not_after, 1_999_987_200);

        settings.certificate_key_file = Some(folder.put("other.pem", p256().serialize_pem()));
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("certificate_key_file", Fault::ForeignKey)
        );
        settings.certificate_key_file = Some(folder.put("bad.pem", "garbage"));
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("certificate_key_file", Fault::BadKey)
        );
        settings.certificate_file = Some(folder.put("nocert.pem", "garbage"));
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("certificate_file", Fault::BadCertificate)
        );
        let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        settings.certificate_file = Some(folder.put("hollow.pem", hollow));
        assert_eq!(
            fault(ApnsCredential::open(&settings)),
            ("certificate_file", Fault::BadCertificate)
        );
    }

    fn service_account(key: &str, token_uri: &str) -> String {
        serde_json::json!({
            "type": "service_account", "client_email": "a@example.org", "private_key": key,
            "project_id": "example-project", "token_uri": token_uri
        })
        .to_string()
    }

    #[test]
    fn a_service_account_is_checked_by_signing() {
        let folder = Folder::new();
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
            .unwrap()
            .serialize_pem();
        let good = folder.put("good.json", service_account(&rsa, "https://oauth.example.org/token"));
        let mut settings = firebase(good);
        let opened = ServiceAccount::open(&settings).ok().unwrap();
        assert_eq!(&*opened.project, "example-project");
        assert_eq!(opened.token_uri.host(), Some("oauth.example.org"));

        settings.project = Some("other".to_owned());
        settings.token_uri = Some("https://127.0.0.1:9/t".to_owned());
        let opened = ServiceAccount::open(&settings).ok().unwrap();
        assert_eq!((&*opened.project, opened.token_uri.port_u16()), ("other", Some(9)));

        settings.token_uri = Some("http://127.0.0.1:9/t".to_owned());
        assert_eq!(fault(ServiceAccount::open(&settings)), ("token_uri", Fault::BadUri));
        settings.token_uri = None;
        settings.project = Some("a/b".to_owned());
        assert_eq!(fault(ServiceAccount::open(&settings)), ("project", Fault::BadText));
        for (content, expected) in [
            ("{}".to_owned(), Fault::BadServiceAccount),
            (service_account(&rsa, "nowhere"), Fault::BadServiceAccount),
            (service_account("garbage", "https://a/"), Fault::BadServiceAccountKey),
            (
                service_account(&p256().serialize_pem(), "https://a/"),
                Fault::BadServiceAccountKey,
            ),
        ] {
            let settings = firebase(folder.put("bad.json", content));
            assert_eq!(
                fault(ServiceAccount::open(&settings)),
                ("service_account_file", expected)
            );
        }
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_refused() {
        let folder = Folder::new();
        let file = folder.put("ca.pem", p256().serialize_pem());
        assert_eq!(fault(roots(Some(&file))), ("ca_file", Fault::BadCertificate));
        assert!(!roots(None).ok().unwrap().is_empty());
    }

    #[test]
    fn relative_paths_start_at_the_folder_of_the_settings() {
        let mut found = settings(
            r#"{"apns":{"topic":"t","key_file":"a.p8","ca_file":"/x/ca"},"firebase":{"service_account_file":"b"}}"#,
        );
        found.start_paths_at(Path::new("/etc/q"));
        let apns = found.apns.unwrap();
        assert_eq!(apns.key_file.unwrap(), Path::new("/etc/q/a.p8"));
        assert_eq!(apns.ca_file.unwrap(), Path::new("/x/ca"));
        assert_eq!(found.firebase.unwrap().service_account_file, Path::new("/etc/q/b"));
    }
}
