//! The settings `[dispatch]` and its services, and what can be wrong with them.
//!
//! In: the settings file. Out: what each lane needs to know, with the vendors' own values where nothing is said. Never: holds a
//! secret; a key is the path of a file.

use notifier_core::account::Service;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `[dispatch]`. A service is on offer if its section is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchSettings {
    /// Longest time one push may take, connecting included. Default `"10s"`.
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    pub apns: Option<ApnsSettings>,
    #[serde(rename = "apns-sandbox")]
    pub apns_sandbox: Option<ApnsSettings>,
    pub firebase: Option<FirebaseSettings>,
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            timeout: ten_seconds(),
            apns: None,
            apns_sandbox: None,
            firebase: None,
        }
    }
}

impl DispatchSettings {
    /// Makes relative paths start at `folder`, where the settings file lies.
    pub fn start_paths_at(&mut self, folder: &Path) {
        let apns = self.apns.iter_mut().chain(self.apns_sandbox.iter_mut());
        let apns = apns.flat_map(|one| {
            [
                one.key_file.as_mut(),
                one.certificate_file.as_mut(),
                one.certificate_key_file.as_mut(),
                one.ca_file.as_mut(),
            ]
        });
        let firebase = self
            .firebase
            .iter_mut()
            .flat_map(|one| [Some(&mut one.service_account_file), one.ca_file.as_mut()]);
        for path in apns.chain(firebase).flatten() {
            // An absolute path stays as it is.
            *path = folder.join(&*path);
        }
    }

    /// The services on offer.
    pub fn services(&self) -> Vec<Service> {
        Service::ALL
            .into_iter()
            .filter(|service| match service {
                Service::Apns => self.apns.is_some(),
                Service::ApnsSandbox => self.apns_sandbox.is_some(),
                Service::Firebase => self.firebase.is_some(),
            })
            .collect()
    }
}

/// `[dispatch.apns]` and `[dispatch.apns-sandbox]`: either a provider token or a certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApnsSettings {
    /// The app's bundle id.
    pub topic: String,
    /// PKCS#8 PEM (`.p8`) of the P-256 key that signs provider tokens; read once at start.
    pub key_file: Option<PathBuf>,
    pub key_id: Option<String>,
    pub team_id: Option<String>,
    /// PEM of a client certificate and its chain, instead of the three above.
    pub certificate_file: Option<PathBuf>,
    pub certificate_key_file: Option<PathBuf>,
    /// Default: Apple's host of this environment.
    pub host: Option<String>,
    #[serde(default = "https")]
    pub port: u16,
    /// Only these roots are accepted. Default: the public roots.
    pub ca_file: Option<PathBuf>,
    /// Pushes under way at once.
    #[serde(default = "one_thousand")]
    pub concurrency: usize,
    #[serde(default = "two")]
    pub connections: usize,
}

/// `[dispatch.firebase]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirebaseSettings {
    /// JSON as Google gives it; read once at start.
    pub service_account_file: PathBuf,
    /// Default: `project_id` of the service account.
    pub project: Option<String>,
    #[serde(default = "fcm_host")]
    pub host: String,
    #[serde(default = "https")]
    pub port: u16,
    /// Only these roots are accepted, by the token endpoint too. Default: the public roots.
    pub ca_file: Option<PathBuf>,
    /// Default: `token_uri` of the service account.
    pub token_uri: Option<String>,
    /// Pushes under way at once.
    #[serde(default = "five_hundred")]
    pub concurrency: usize,
    #[serde(default = "two")]
    pub connections: usize,
}

/// A setting that cannot work: which one and why, never its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dispatch.{}.{setting}: {fault}", service.name())]
pub struct SettingsFault {
    pub service: Service,
    pub setting: &'static str,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the file cannot be read")]
    Unreadable,
    #[error("the file is larger than any file of this kind")]
    TooLarge,
    #[error("not a P-256 key in PKCS#8 PEM")]
    BadP8,
    #[error("holds no certificate in PEM")]
    BadCertificate,
    #[error("holds no key in PEM, or one that cannot be used")]
    BadKey,
    #[error("the key does not belong to the certificate")]
    ForeignKey,
    #[error("not a service account in JSON with client_email, private_key, project_id and token_uri")]
    BadServiceAccount,
    #[error("the private_key in it is not an RSA key in PKCS#8 PEM")]
    BadServiceAccountKey,
    #[error("give either key_file, key_id and team_id, or certificate_file and certificate_key_file")]
    NoCredential,
    #[error("key_file and certificate_file exclude each other")]
    BothCredentials,
    #[error("needed because the other half of the credential is there")]
    Missing,
    #[error("not a host name or address")]
    BadHost,
    #[error("not an https:// URI with a host")]
    BadUri,
    #[error("holds characters that a request cannot carry")]
    BadText,
    #[error("must be at least 1 and at most 100000")]
    OutOfRange,
}

const fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

const fn https() -> u16 {
    443
}

const fn two() -> usize {
    2
}

const fn five_hundred() -> usize {
    500
}

const fn one_thousand() -> usize {
    1000
}

fn fcm_host() -> String {
    "fcm.googleapis.com".to_owned()
}
