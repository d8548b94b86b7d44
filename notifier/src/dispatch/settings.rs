//! The settings `[dispatch]` and its services, and what can be wrong with them.
//!
//! In: the settings file. Out: what each lane needs to know, with the vendors' own values where nothing is said. Never: holds a
//! secret; a key is the path of a file.

use notifier_core::account::Service;
use notifier_core::lane::{LaneSettings, RATE_MAX};
use notifier_core::webpush::{Guard, Vapid};
use quietline_shared::address::Prefix;
use quietline_shared::service::config::read_key_32;
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
    pub huawei: Option<HuaweiSettings>,
    pub webpush: Option<WebpushSettings>,
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            timeout: ten_seconds(),
            apns: None,
            apns_sandbox: None,
            firebase: None,
            huawei: None,
            webpush: None,
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
        let huawei = self.huawei.iter_mut().flat_map(|one| {
            [
                one.client_secret_file.as_mut(),
                one.service_account_file.as_mut(),
                one.ca_file.as_mut(),
            ]
        });
        let webpush = self
            .webpush
            .iter_mut()
            .flat_map(|one| [Some(&mut one.key_file), one.ca_file.as_mut()]);
        for path in apns.chain(firebase).chain(huawei).chain(webpush).flatten() {
            // An absolute path stays as it is.
            *path = folder.join(&*path);
        }
    }

    /// How much the lane of a service may send; `None` if it is not on offer.
    pub fn lane(&self, service: Service) -> Option<LaneSettings> {
        let apns = |section: &Option<ApnsSettings>| {
            let section = section.as_ref()?;
            Some((section.concurrency, section.rate, Duration::ZERO, section.jitter))
        };
        let (concurrency, rate, ramp, jitter) = match service {
            Service::Apns => apns(&self.apns)?,
            Service::ApnsSandbox => apns(&self.apns_sandbox)?,
            Service::Firebase => {
                let section = self.firebase.as_ref()?;
                (section.concurrency, section.rate, section.ramp, section.jitter)
            }
            Service::Huawei => {
                let section = self.huawei.as_ref()?;
                (section.concurrency, section.rate, section.ramp, section.jitter)
            }
            Service::Webpush => {
                let section = self.webpush.as_ref()?;
                (section.concurrency, section.rate, Duration::ZERO, section.jitter)
            }
        };
        Some(LaneSettings {
            rate,
            ramp,
            jitter,
            // Each push comes to an end within the timeout, unless whoever has it is stuck.
            stall_after: self.timeout.saturating_mul(3).max(Duration::from_secs(30)),
            ..LaneSettings::with_concurrency(u32::try_from(concurrency).unwrap_or(u32::MAX))
        })
    }

    /// The services on offer.
    pub fn services(&self) -> Vec<Service> {
        let on_offer = |service: &Service| self.lane(*service).is_some();
        Service::ALL.into_iter().filter(on_offer).collect()
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
    /// Pushes a second at most. Default 50,000.
    #[serde(default = "fifty_thousand")]
    pub rate: u32,
    #[serde(default = "two")]
    pub connections: usize,
    /// A wakeup that is no call waits a random time up to this, at most a minute. Default none.
    #[serde(default, with = "humantime_serde")]
    pub jitter: Duration,
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
    /// Pushes a second at most. Default 9,000: Google's own bound is 600,000 a minute for a project.
    #[serde(default = "nine_thousand")]
    pub rate: u32,
    /// After a start the rate rises to its whole within this time, as Google asks. Default `"60s"`; zero = at once.
    #[serde(default = "one_minute", with = "humantime_serde")]
    pub ramp: Duration,
    #[serde(default = "two")]
    pub connections: usize,
    /// A wakeup that is no call waits a random time up to this, at most a minute. Default none.
    #[serde(default, with = "humantime_serde")]
    pub jitter: Duration,
}

/// `[dispatch.huawei]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HuaweiSettings {
    /// Which form of Push Kit. Default `"v1"`, which reaches EMUI and HarmonyOS up to 4, as `"v2"`; `"v3"` reaches HarmonyOS 5 and later.
    #[serde(default)]
    pub api: HuaweiApi,
    /// The app's OAuth client id; part of the path of `v1`, and of the credential with a secret.
    pub client_id: Option<String>,
    /// A file with the app's client secret; read once at start.
    pub client_secret_file: Option<PathBuf>,
    /// JSON of a service account key as the API Console gives it, instead of a client secret. `v3` takes nothing else.
    pub service_account_file: Option<PathBuf>,
    /// For `v2` and `v3`. Default: `project_id` of the service account.
    pub project: Option<String>,
    /// What a `v3` wakeup that shows something is sent as. Default `"alert"`.
    #[serde(default)]
    pub push_type: HuaweiPushType,
    #[serde(default = "huawei_host")]
    pub host: String,
    #[serde(default = "https")]
    pub port: u16,
    /// Only these roots are accepted, by the token endpoint too. Default: the public roots.
    pub ca_file: Option<PathBuf>,
    /// Where a client secret is exchanged. Default: Huawei's.
    pub token_uri: Option<String>,
    /// Pushes under way at once.
    #[serde(default = "five_hundred")]
    pub concurrency: usize,
    /// Pushes a second at most. Default 6,000. Huawei documents no figure; a 503 lowers it.
    #[serde(default = "six_thousand")]
    pub rate: u32,
    /// After a start the rate rises to its whole within this time. Default `"60s"`; zero = at once.
    #[serde(default = "one_minute", with = "humantime_serde")]
    pub ramp: Duration,
    #[serde(default = "two")]
    pub connections: usize,
    /// A wakeup that is no call waits a random time up to this, at most a minute. Default none.
    #[serde(default, with = "humantime_serde")]
    pub jitter: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HuaweiApi {
    #[default]
    V1,
    V2,
    V3,
}

/// The header `push-type` of `v3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HuaweiPushType {
    /// The system shows a constant text; the client gets the wakeup when it is touched.
    #[default]
    Alert,
    /// The client's notification extension gets the wakeup first. Needs a right that Huawei grants.
    Extension,
    /// Nothing is shown; the client gets the wakeup if it runs.
    Background,
}

/// `[dispatch.webpush]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebpushSettings {
    /// P-256 key of VAPID, as `keygen` makes it; clients give its public half to their push service. Read once at start.
    pub key_file: PathBuf,
    /// Where operators of push servers reach ours: `mailto:` or `https://`.
    pub contact: String,
    /// Ports of push servers beside 443. Default: none.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Private networks with push servers of the operator's own, `10.1.0.0/16`. Default: none.
    #[serde(default)]
    pub allowed_networks: Vec<String>,
    /// Names that are never contacted, with all below them. Default: none.
    #[serde(default)]
    pub denied_hosts: Vec<String>,
    /// Only these roots are accepted. Default: the public roots.
    pub ca_file: Option<PathBuf>,
    /// Pushes under way at once, to all servers. Default 2,000.
    #[serde(default = "two_thousand")]
    pub concurrency: usize,
    /// Pushes a second at most, to all servers. Default 20,000.
    #[serde(default = "twenty_thousand")]
    pub rate: u32,
    /// Servers to which connections are kept. Default 1,000.
    #[serde(default = "one_thousand")]
    pub connections: usize,
    /// Servers whose pace is remembered. Default 4,096.
    #[serde(default = "four_thousand")]
    pub origins: usize,
    /// Pushes under way at once to one server. Default 64.
    #[serde(default = "sixty_four")]
    pub origin_concurrency: u32,
    /// Pushes a second to one server; less where it asks for less. Default 1,000.
    #[serde(default = "one_thousand_u32")]
    pub origin_rate: u32,
    /// A wakeup that is no call waits a random time up to this, at most a minute. Default none.
    #[serde(default, with = "humantime_serde")]
    pub jitter: Duration,
}

impl WebpushSettings {
    pub(super) fn origin_lane(&self) -> Result<LaneSettings, (&'static str, Fault)> {
        for (setting, number, most) in [
            ("origins", self.origins, 1_000_000),
            ("origin_concurrency", self.origin_concurrency as usize, 100_000),
            ("origin_rate", self.origin_rate as usize, RATE_MAX),
        ] {
            if !(1..=most as usize).contains(&number) {
                return Err((setting, Fault::OutOfRange { most }));
            }
        }
        Ok(LaneSettings {
            rate: self.origin_rate,
            breaker_failures: 3,
            ..LaneSettings::with_concurrency(self.origin_concurrency)
        })
    }

    pub(super) fn vapid(&self) -> Result<Vapid, (&'static str, Fault)> {
        let key = read_key_32(&self.key_file).map_err(|_| ("key_file", Fault::BadVapidKey))?;
        if Vapid::new(&key, "mailto:").is_none() {
            return Err(("key_file", Fault::BadVapidKey));
        }
        Vapid::new(&key, &self.contact).ok_or(("contact", Fault::BadContact))
    }

    /// The key that clients are told.
    pub fn vapid_public_key(&self) -> Option<String> {
        self.vapid().ok().map(|vapid| vapid.public_key())
    }

    pub fn guard(&self) -> Result<Guard, (&'static str, Fault)> {
        let network = |text: &String| Prefix::parse(text).ok_or(("allowed_networks", Fault::BadNetwork));
        let host = |text: &String| {
            let name = text.to_ascii_lowercase();
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_plain);
            is_name.then(|| name.into()).ok_or(("denied_hosts", Fault::BadHost))
        };
        if self.ports.contains(&0) {
            return Err(("ports", Fault::OutOfRange { most: 65_535 }));
        }
        Ok(Guard {
            allowed_networks: self.allowed_networks.iter().map(network).collect::<Result<_, _>>()?,
            ports: self.ports.clone(),
            denied_hosts: self.denied_hosts.iter().map(host).collect::<Result<_, _>>()?,
        })
    }
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
    #[error("give either client_id and client_secret_file, or service_account_file")]
    NoHuaweiCredential,
    #[error("client_secret_file and service_account_file exclude each other")]
    BothHuaweiCredentials,
    #[error("not a service account key in JSON with project_id, key_id, private_key and sub_account")]
    BadHuaweiAccount,
    #[error("v3 takes a service account only")]
    NeedsServiceAccount,
    #[error("needed because the other half of the credential is there")]
    Missing,
    #[error("not a host name or address")]
    BadHost,
    #[error("not an https:// URI with a host")]
    BadUri,
    #[error("holds characters that a request cannot carry")]
    BadText,
    #[error("not a P-256 key of 32 bytes, as keygen makes it")]
    BadVapidKey,
    #[error("not a mailto: or https:// address of at most 200 plain characters")]
    BadContact,
    #[error("not a network such as 10.1.0.0/16")]
    BadNetwork,
    #[error("must be at least 1 and at most {most}")]
    OutOfRange { most: u32 },
    #[error("must be at most {most:?}")]
    TooLong { most: Duration },
}

/// The limits that every lane has.
pub(super) fn in_range(
    concurrency: usize,
    connections: usize,
    rate: u32,
    jitter: Duration,
) -> Result<(), (&'static str, Fault)> {
    if jitter > LONGEST_JITTER {
        return Err(("jitter", Fault::TooLong { most: LONGEST_JITTER }));
    }
    for (setting, number, most) in [
        ("concurrency", concurrency, 100_000),
        ("connections", connections, 100_000),
        ("rate", rate as usize, RATE_MAX),
    ] {
        if !(1..=most as usize).contains(&number) {
            return Err((setting, Fault::OutOfRange { most }));
        }
    }
    Ok(())
}

/// A message that comes a minute late is late.
const LONGEST_JITTER: Duration = Duration::from_secs(60);

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

const fn one_minute() -> Duration {
    Duration::from_secs(60)
}

const fn nine_thousand() -> u32 {
    9_000
}

const fn six_thousand() -> u32 {
    6_000
}

const fn fifty_thousand() -> u32 {
    50_000
}

const fn two_thousand() -> usize {
    2_000
}

const fn twenty_thousand() -> u32 {
    20_000
}

const fn four_thousand() -> usize {
    4_096
}

const fn sixty_four() -> u32 {
    64
}

const fn one_thousand_u32() -> u32 {
    1_000
}

const fn one_thousand() -> usize {
    1000
}

fn huawei_host() -> String {
    "push-api.cloud.huawei.com".to_owned()
}

fn fcm_host() -> String {
    "fcm.googleapis.com".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a section that the example shows as a comment.
    fn shown(section: &str) -> toml::Table {
        let example = include_str!("../../../deploy/notifier.toml");
        let head = format!("# [{section}]");
        let lines = example.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
        let lines = lines.take_while(|line| line.starts_with("# "));
        let text: Vec<_> = lines.filter_map(|line| line.strip_prefix("# ")).collect();
        text.join("\n").parse().unwrap()
    }

    #[test]
    fn the_example_shows_every_setting_of_huawei_with_its_default() {
        let shown = shown("dispatch.huawei");
        assert_eq!(shown.len(), 15);
        let settings: HuaweiSettings = shown.clone().try_into().unwrap();
        let default: HuaweiSettings = toml::Table::new().try_into().unwrap();
        let with_what_has_none = HuaweiSettings {
            client_id: settings.client_id.clone(),
            client_secret_file: settings.client_secret_file.clone(),
            service_account_file: settings.service_account_file.clone(),
            project: settings.project.clone(),
            ca_file: settings.ca_file.clone(),
            token_uri: settings.token_uri.clone(),
            ..default
        };
        assert_eq!(format!("{settings:?}"), format!("{with_what_has_none:?}"));
    }

    #[test]
    fn a_lane_is_as_wide_and_fast_as_its_section_says() {
        let settings: DispatchSettings = "[huawei]\nrate = 7\nramp = \"5s\"\nconcurrency = 3\njitter = \"2s\""
            .parse::<toml::Table>()
            .unwrap()
            .try_into()
            .unwrap();
        let lane = settings.lane(Service::Huawei).unwrap();
        assert_eq!((lane.rate, lane.ramp, lane.concurrency), (7, Duration::from_secs(5), 3));
        assert_eq!(lane.jitter, Duration::from_secs(2));
        let minute = Duration::from_secs(60);
        assert_eq!(in_range(1, 1, 1, minute), Ok(()));
        let too_long = in_range(1, 1, 1, minute + Duration::from_millis(1)).unwrap_err();
        assert_eq!(too_long, ("jitter", Fault::TooLong { most: minute }));
        assert!(settings.lane(Service::Apns).is_none());
        assert_eq!(settings.services(), [Service::Huawei]);
    }
}
