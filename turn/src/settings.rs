//! The settings file: one section a stage, all faults at once.
//!
//! In: a path, and what the machine says about itself. Out: [`Settings`] with every secret and certificate read, or every fault. Never:
//! prints what a secret file holds, or an address.
//!
//! A reload reads all of it again. What cannot change while calls run is [`Fixed`] as written, and [`Place`] as it came to be.

mod bounds;
mod certificate;
mod fixed;
mod handshake;
mod page;
mod place;

use crate::machine::Machine;
use crate::sockets::Buffers;
use crate::streams::StreamSettings;
use bounds::{Count, DAY, HOUR, MINUTE, SECOND, Span};
pub use certificate::{Certificate, Chain, Trust};
pub use fixed::Fixed;
pub use page::PageSettings;
pub use place::Place;
use quietline_shared::redact::Secret;
use quietline_shared::service::audit::PublicationSettings;
use quietline_shared::service::config::{Faults, SettingsFile, Warnings};
use quietline_shared::service::published::{self, metrics_period, warn_of_period};
use quietline_shared::service::telemetry::LogSettings;
use quietline_shared::timed::{MIN_TIMED_SECRET, TimedAlgorithm, TimedSecret};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use turn_core::auth::{CredentialFault, Credentials, StaticUser, check_realm};
use turn_core::control::Limits;
use turn_core::peers::{DENIED_PORTS, PeerPolicy, Prefix, RELAY_PORTS, RelayAddress, RelayTable, RelayTableFault};

/// Everything `run` needs, checked.
pub struct Settings {
    pub fixed: Fixed,
    pub place: Place,
    pub certificate: Option<Certificate>,
    pub credentials: Credentials,
    pub peers: PeersSettings,
    pub limits: Limits,
    pub streams: StreamSettings,
    pub drain: Duration,
}

impl Settings {
    pub fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.certificate
            .as_ref()
            .map(|certificate| Arc::clone(&certificate.config))
    }

    /// The group of the key exchange that a capable client gets over TLS, tried with ourselves.
    pub fn key_exchange(&self) -> Option<String> {
        let group = self.certificate.as_ref()?.key_exchange()?;
        group.as_str().map(str::to_owned)
    }
}

/// `[listen]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSettings {
    /// Addresses of this machine. Default: all that are neither loopback nor link-local.
    pub addresses: Vec<IpAddr>,
    /// For UDP and TCP; TLS is told apart from TCP by its first byte. Default 3478.
    pub ports: Vec<u16>,
    /// The host name that clients are told. Default: the addresses.
    pub name: Option<String>,
    /// PEM, the server's own certificate first. With its key it switches TLS on.
    pub certificate_file: Option<PathBuf>,
    /// PEM.
    pub certificate_key_file: Option<PathBuf>,
}

impl Default for ListenSettings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            ports: vec![3478],
            name: None,
            certificate_file: None,
            certificate_key_file: None,
        }
    }
}

/// `[relay]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// Default 49152 (RFC 8656 §7.2).
    pub first_port: u16,
    /// Default 65535.
    pub last_port: u16,
    /// Default: one address of each family, the one that leads to the internet.
    pub address: Vec<RelayAddressSettings>,
}

impl Default for RelaySettings {
    fn default() -> Self {
        let (first_port, last_port) = RELAY_PORTS;
        Self {
            first_port,
            last_port,
            address: Vec::new(),
        }
    }
}

/// `[[relay.address]]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RelayAddressSettings {
    /// An address of this machine. Default: the one of the family of `advertised` that leads to the internet.
    pub bind: Option<IpAddr>,
    /// What clients are told: the outer address of a 1:1 NAT. Default: `bind`.
    pub advertised: Option<IpAddr>,
}

/// `[auth]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthSettings {
    realm: String,
    nonce_epoch: Span<{ 5 * SECOND }, DAY>,
    user: Vec<UserSettings>,
    timed: Vec<TimedSettings>,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            realm: "quietline".to_owned(),
            nonce_epoch: Span::seconds(30 * 60),
            user: Vec::new(),
            timed: Vec::new(),
        }
    }
}

/// `[[auth.user]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserSettings {
    name: String,
    #[expect(
        dead_code,
        reason = "all password files are read, those of items with other faults too"
    )]
    password_file: PathBuf,
}

/// `[[auth.timed]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimedSettings {
    #[expect(
        dead_code,
        reason = "all secret files are read, those of items with other faults too"
    )]
    secret_file: PathBuf,
    #[serde(default)]
    algorithm: TimedAlgorithm,
}

/// `[peers]`
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct PeersSettings {
    /// Networks that are peers although they are not globally reachable. Default: none.
    allow: Vec<Network>,
    /// Networks that are no peers; the longer prefix wins over `allow`, and this list if both are as long. Default: none.
    deny: Vec<Network>,
    /// Default: [`DENIED_PORTS`].
    denied_ports: Vec<u16>,
}

impl PeersSettings {
    pub fn policy(&self, place: &Place) -> PeerPolicy {
        let prefixes = |networks: &[Network]| networks.iter().map(|network| network.0).collect::<Vec<_>>();
        let allow = prefixes(&self.allow);
        let mut deny = prefixes(&self.deny);
        // Who allows them knows what serves there.
        let is_allowed = |address: &&IpAddr| allow.iter().any(|prefix| prefix.contains(**address));
        let others = place.others.iter().filter(|address| !is_allowed(address));
        let others = others.chain(&place.admins);
        deny.extend(others.filter_map(|address| Prefix::new(*address, if address.is_ipv4() { 32 } else { 128 })));
        PeerPolicy {
            allow,
            deny,
            denied_ports: self.denied_ports.clone(),
            ..PeerPolicy::default()
        }
    }
}

impl Default for PeersSettings {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            denied_ports: DENIED_PORTS.to_vec(),
        }
    }
}

/// A prefix such as `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network(Prefix);

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let prefix = Prefix::parse(&text);
        prefix
            .map(Self)
            .ok_or_else(|| D::Error::custom("a network such as \"10.0.0.0/8\" or an address"))
    }
}

/// `[limits]`, see [`Limits`].
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
struct LimitsSettings {
    allocations: Count<1, 500_000>,
    allocations_per_prefix: Count<1, 500_000>,
    permissions_per_allocation: Count<1, 1_024>,
    channels_per_allocation: Count<1, 1_024>,
    bandwidth_per_allocation: Count<1_000, RATE>,
    bandwidth: Count<1_000, RATE>,
    challenges_per_second: Count<1, 1_000_000_000>,
    challenge_burst: Count<1, 1_000_000_000>,
    default_lifetime: Span<SECOND, DAY>,
    max_lifetime: Span<SECOND, DAY>,
    port_cool_down: Span<0, HOUR>,
    timed_max_life: Span<MINUTE, { 366 * DAY }>,
}

/// Bytes a second, at most: ten times what the fastest network card moves.
const RATE: u64 = 1_000_000_000_000;

impl Default for LimitsSettings {
    fn default() -> Self {
        Self {
            allocations: Count::new(10_000),
            allocations_per_prefix: Count::new(1_024),
            permissions_per_allocation: Count::new(64),
            channels_per_allocation: Count::new(64),
            bandwidth_per_allocation: Count::new(1_000_000),
            bandwidth: Count::new(1_250_000_000),
            challenges_per_second: Count::new(50),
            challenge_burst: Count::new(200),
            default_lifetime: Span::seconds(600),
            max_lifetime: Span::seconds(3_600),
            port_cool_down: Span::seconds(60),
            timed_max_life: Span::seconds(86_400),
        }
    }
}

impl LimitsSettings {
    fn limits(&self) -> Limits {
        let count = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Limits {
            allocations: count(self.allocations.get()),
            allocations_per_prefix: count(self.allocations_per_prefix.get()),
            permissions_per_allocation: self.permissions_per_allocation.size(),
            channels_per_allocation: self.channels_per_allocation.size(),
            bandwidth_per_allocation: self.bandwidth_per_allocation.get(),
            bandwidth: self.bandwidth.get(),
            challenges_per_second: self.challenges_per_second.get(),
            challenge_burst: self.challenge_burst.get(),
            default_lifetime: self.default_lifetime.get(),
            max_lifetime: self.max_lifetime.get(),
            port_cool_down: self.port_cool_down.get(),
            timed_max_life: self.timed_max_life.get(),
        }
    }
}

/// `[shard]`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ShardSettings {
    /// Threads that move packets. Default: one a core.
    pub count: Option<Count<1, 256>>,
}

impl ShardSettings {
    pub fn count(&self) -> u16 {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(256) as u64);
        self.count.map_or_else(cores, Count::get) as u16
    }
}

/// `[sockets]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct SocketsSettings {
    /// Bytes asked for each listening socket; the system gives at most `net.core.rmem_max`. Default 4 MiB: 50 ms of 60,000 packets a
    /// second.
    pub receive_buffer: Count<4_096, { 1 << 30 }>,
    /// As `receive_buffer`, at most `net.core.wmem_max`. Default 4 MiB.
    pub send_buffer: Count<4_096, { 1 << 30 }>,
}

impl Default for SocketsSettings {
    fn default() -> Self {
        Self {
            receive_buffer: Count::new(4 << 20),
            send_buffer: Count::new(4 << 20),
        }
    }
}

impl SocketsSettings {
    pub fn buffers(&self) -> Buffers {
        Buffers {
            receive: self.receive_buffer.size(),
            send: self.send_buffer.size(),
        }
    }
}

/// `[ops]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct OpsSettings {
    /// Default 127.0.0.1:9101: the notifier's is 9100. Loopback, unless a proxy guards it.
    pub listen: SocketAddr,
    /// How often metrics that one client can move show a new value. Default 1 min, at least that; zero = at once, for tests.
    #[serde(deserialize_with = "metrics_period")]
    pub metrics_period: Duration,
}

impl Default for OpsSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9101)),
            metrics_period: published::MINUTE,
        }
    }
}

/// `[lifecycle]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
struct LifecycleSettings {
    /// After the first signal to stop: how long calls may go on. Default 10 min.
    drain: Span<0, DAY>,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            drain: Span::seconds(600),
        }
    }
}

/// Reads the file and every secret and certificate it names.
pub fn read(path: &Path, machine: &Machine) -> Result<(Settings, Warnings), Faults> {
    read_for(path, machine, None)
}

/// For a relay that runs with this realm, from which the keys of all users are made: another one would end the calls of those who still
/// name the old.
pub fn read_again(path: &Path, machine: &Machine, realm: &str) -> Result<(Settings, Warnings), Faults> {
    read_for(path, machine, Some(realm))
}

fn read_for(path: &Path, machine: &Machine, running: Option<&str>) -> Result<(Settings, Warnings), Faults> {
    let mut file = SettingsFile::read(path)?;
    let listen = file.section::<ListenSettings>("listen");
    let relay = file.section::<RelaySettings>("relay");
    let auth = file.section::<AuthSettings>("auth");
    let peers = file.section::<PeersSettings>("peers");
    let limits = file.section::<LimitsSettings>("limits");
    let streams = file.section::<StreamSettings>("streams");
    for fault in streams.iter().flat_map(StreamSettings::faults) {
        let place = format!("streams.{}", fault.setting);
        file.fault(&place, "is too small", format!("at least {}", fault.least));
    }
    let shard = file.section::<ShardSettings>("shard");
    let sockets = file.section::<SocketsSettings>("sockets");
    let ops = file.section::<OpsSettings>("ops");
    if let Some(ops) = &ops {
        warn_of_period(&mut file, ops.metrics_period);
    }
    let page = file.section::<PageSettings>("page");
    let transparency = PublicationSettings::read(&mut file);
    let log = file.section::<LogSettings>("log");
    let lifecycle = file.section::<LifecycleSettings>("lifecycle");

    let certificate = read_certificate(&mut file);
    let credentials = read_credentials(&mut file, auth.as_ref(), running);
    if let Some(limits) = &limits
        && limits.max_lifetime.get() < limits.default_lifetime.get()
    {
        file.fault("limits.max_lifetime", "cannot work", "at least limits.default_lifetime");
    }
    let listeners = listen.as_ref().and_then(|listen| listeners(&mut file, listen, machine));
    let relays = match (&relay, &listen) {
        (Some(relay), Some(listen)) => relay_table(&mut file, relay, listen, machine),
        _ => None,
    };
    if let Some(name) = page.as_ref().and_then(|page| page.public_host.as_deref())
        && rustls::pki_types::DnsName::try_from(name).is_err()
    {
        file.fault(
            "page.public_host",
            "has a wrong value",
            "a host name such as turn.example.org",
        );
    }
    let place = match (listeners, relays, &ops) {
        (Some(listeners), Some(relays), Some(ops)) => {
            keep_apart(&mut file, &listeners, &relays, ("ops.listen", ops.listen));
            let page = page.as_ref().and_then(|page| page.listen);
            if let Some(page) = page {
                keep_apart(&mut file, &listeners, &relays, ("page.listen", page));
            }
            let served = page.into_iter().chain([ops.listen]);
            Some(Place::new(listeners, relays, served, machine))
        }
        _ => None,
    };
    let warnings = file.finish()?;
    // `finish` reports a fault for each section and file that is missing, so from here on all are there.
    let all = (|| {
        Some(Settings {
            fixed: Fixed {
                listen: listen?,
                relay: relay?,
                realm: auth.as_ref()?.realm.clone(),
                nonce_epoch: auth.as_ref()?.nonce_epoch.get(),
                shard: shard?,
                sockets: sockets?,
                ops: ops?,
                page: page?,
                transparency: transparency?,
                log: log?,
            },
            place: place?,
            certificate: certificate?,
            credentials: credentials?,
            peers: peers?,
            streams: streams?,
            limits: limits?.limits(),
            drain: lifecycle?.drain.get(),
        })
    })();
    Ok((all.expect("a part that is missing is a fault"), warnings))
}

/// What a call needs. All else in the file is about the relay's own machine, and the files it names may be there alone.
pub struct CallSettings {
    pub realm: String,
    pub timed_max_life: Duration,
    pub caller: Caller,
}

/// As whom one calls. A relay keeps only what it derives from a password.
pub enum Caller {
    /// Under names that one timed secret is good for.
    Timed(Credentials),
    User {
        name: String,
        password: Secret<String>,
    },
}

/// Reads what a call needs, with the first secret that is on this machine, or else the first password.
pub fn read_for_calls(path: &Path) -> Result<(CallSettings, Warnings), Faults> {
    let mut file = SettingsFile::read(path)?;
    let auth = file.section::<AuthSettings>("auth");
    let limits = file.section::<LimitsSettings>("limits");
    let caller = auth.as_ref().and_then(|auth| read_caller(&mut file, auth));
    let warnings = file.finish_partly()?;
    let all = (|| {
        Some(CallSettings {
            realm: auth?.realm,
            timed_max_life: limits?.timed_max_life.get(),
            caller: caller?,
        })
    })();
    Ok((all.expect("a part that is missing is a fault"), warnings))
}

/// `None` is a fault.
fn read_caller(file: &mut SettingsFile, auth: &AuthSettings) -> Option<Caller> {
    let timed = file.paths("auth.timed", "secret_file");
    let users = file.paths("auth.user", "password_file");
    let is_here = |(_, path): &(String, Option<PathBuf>)| path.as_ref().is_some_and(|path| path.exists());
    let (timed_here, user_here) = (timed.iter().position(is_here), users.iter().position(is_here));
    // If nothing is here, the first is named as missing.
    let is_timed = timed_here.is_some() || user_here.is_none() && !timed.is_empty();
    if is_timed {
        let number = timed_here.unwrap_or_default();
        let (place, path) = timed.into_iter().nth(number)?;
        let secret = file.secret_text(&place, &path?, SECRET_LIMIT)?;
        let secret = match TimedSecret::new(auth.timed.get(number)?.algorithm, secret) {
            Ok(secret) => secret,
            Err(fault) => {
                file.fault(&place, fault.to_string(), "the secret that the relay has");
                return None;
            }
        };
        match Credentials::new(&auth.realm, Vec::new(), vec![secret]) {
            Ok(credentials) => return Some(Caller::Timed(credentials)),
            Err(fault) => {
                file.fault("auth.realm", fault.to_string(), "a short word");
                return None;
            }
        }
    }
    let number = user_here.unwrap_or_default();
    let Some((place, path)) = users.into_iter().nth(number) else {
        file.fault("auth", "has nobody who may call", "[[auth.timed]] or [[auth.user]]");
        return None;
    };
    let password = file.secret_text(&place, &path?, SECRET_LIMIT)?;
    let name = auth.user.get(number)?.name.clone();
    match std::str::from_utf8(password.expose()) {
        Ok(password) => Some(Caller::User {
            name,
            password: Secret::new(password.to_owned()),
        }),
        Err(_) => {
            file.fault(&place, "is not text", "a password in UTF-8");
            None
        }
    }
}

/// The setting of the timed secret that makes this password of this name, of those whose files are on this machine.
pub fn timed_secret_of(path: &Path, username: &str, password: &str) -> Result<Option<String>, Faults> {
    let mut file = SettingsFile::read(path)?;
    let auth = file.section::<AuthSettings>("auth");
    let timed = auth.map(|auth| auth.timed).unwrap_or_default();
    let mut found = None;
    for ((place, path), settings) in file.paths("auth.timed", "secret_file").into_iter().zip(timed) {
        let Some(path) = path.filter(|path| path.exists()) else {
            continue;
        };
        let secret = file.secret_text(&place, &path, SECRET_LIMIT);
        let secret = secret.and_then(|secret| TimedSecret::new(settings.algorithm, secret).ok());
        if secret.is_some_and(|secret| secret.password(username.as_bytes()).text() == password) {
            found = Some(place);
        }
    }
    file.finish_partly().map(|_| found)
}

/// The files with secrets that the settings name, each with its setting.
pub fn secret_files(path: &Path) -> Vec<(&'static str, PathBuf)> {
    let Ok(file) = SettingsFile::read(path) else {
        return vec![];
    };
    let of_list = |name, list, key| {
        let files = file.paths(list, key).into_iter();
        files.filter_map(move |(_, path)| Some((name, path?)))
    };
    of_list(TIMED_SECRET, "auth.timed", "secret_file")
        .chain(of_list(USER_PASSWORD, "auth.user", "password_file"))
        .chain(file.path(CERTIFICATE_KEY).map(|path| (CERTIFICATE_KEY, path)))
        .collect()
}

pub const TIMED_SECRET: &str = "auth.timed.secret_file";
pub const USER_PASSWORD: &str = "auth.user.password_file";
const CERTIFICATE_KEY: &str = "listen.certificate_key_file";
/// The name of the key exchange that we want.
pub const POST_QUANTUM: &str = "X25519MLKEM768";

/// `None` is a fault, `Some(None)` no TLS.
fn read_certificate(file: &mut SettingsFile) -> Option<Option<Certificate>> {
    const CERTIFICATE: &str = "listen.certificate_file";
    const KEY: &str = CERTIFICATE_KEY;
    let (certificate, key) = match (file.path(CERTIFICATE), file.path(KEY)) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            file.fault(KEY, "is missing", "the key of listen.certificate_file");
            return None;
        }
        (None, Some(_)) => {
            file.fault(
                CERTIFICATE,
                "is missing",
                "the certificate of listen.certificate_key_file",
            );
            return None;
        }
    };
    let certificates = file.public_file(CERTIFICATE, &certificate, PEM_LIMIT);
    let key = file.secret_file(KEY, &key, PEM_LIMIT);
    match Certificate::read(&certificates?, &key?) {
        Ok(certificate) => Some(Some(certificate)),
        Err(fault) => {
            let place = if fault.is_about_the_key() { KEY } else { CERTIFICATE };
            file.fault(
                place,
                fault.to_string(),
                "PEM: a certificate with its chain, and its key",
            );
            None
        }
    }
}

/// `auth` is `None` if the section has faults; the files are read all the same, so that one reading names all faults.
/// `running`: the realm of a relay that runs already.
fn read_credentials(
    file: &mut SettingsFile,
    auth: Option<&AuthSettings>,
    running: Option<&str>,
) -> Option<Credentials> {
    let passwords = read_secrets(file, "auth.user", "password_file");
    let secrets = read_secrets(file, "auth.timed", "secret_file");
    let auth = auth?;
    let mut users = Vec::new();
    for (number, (user, password)) in auth.user.iter().zip(passwords).enumerate() {
        let place = |key: &str| format!("auth.user[{number}].{key}");
        let Some(password) = password else { continue };
        match password.expose().len() {
            SHORTEST_PASSWORD.. => {}
            // An empty one has its own name.
            0 => {}
            _ => file.fault(
                &place("password_file"),
                "holds a short password",
                format!("at least {SHORTEST_PASSWORD} bytes"),
            ),
        }
        match StaticUser::new(&user.name, password) {
            Ok(user) => users.push(user),
            Err(fault @ (CredentialFault::EmptyName | CredentialFault::LongName)) => {
                file.fault(&place("name"), fault.to_string(), "1 to 508 bytes");
            }
            Err(fault) => file.fault(&place("password_file"), fault.to_string(), "a password nobody guesses"),
        }
    }
    let mut timed = Vec::new();
    for (number, (settings, secret)) in auth.timed.iter().zip(secrets).enumerate() {
        let Some(secret) = secret else { continue };
        match TimedSecret::new(settings.algorithm, secret) {
            Ok(secret) => timed.push(secret),
            Err(fault) => file.fault(
                &format!("auth.timed[{number}].secret_file"),
                fault.to_string(),
                format!("at least {MIN_TIMED_SECRET} random bytes, as setup makes them"),
            ),
        }
    }
    let all_are_faulty = (users.len(), timed.len()) == (0, 0) && !(auth.user.is_empty() && auth.timed.is_empty());
    let credentials =
        check_realm(&auth.realm).and_then(|()| Credentials::new(running.unwrap_or(&auth.realm), users, timed));
    match credentials {
        Ok(credentials) => Some(credentials),
        Err(CredentialFault::NoCredentials) if all_are_faulty => None,
        Err(fault) => {
            let (place, expected) = match fault {
                CredentialFault::EmptyRealm | CredentialFault::BadRealm => ("auth.realm", "a short word"),
                CredentialFault::UserTwice => ("auth.user", "each name once"),
                _ => ("auth", "[[auth.timed]] or [[auth.user]]; setup makes one"),
            };
            file.fault(place, fault.to_string(), expected);
            None
        }
    }
}

/// One for each item of the list; a file that cannot be used has left a fault.
fn read_secrets(file: &mut SettingsFile, list: &str, key: &str) -> Vec<Option<Secret<Vec<u8>>>> {
    let paths = file.paths(list, key);
    paths
        .into_iter()
        .map(|(place, path)| file.secret_text(&place, &path?, SECRET_LIMIT))
        .collect()
}

fn listeners(file: &mut SettingsFile, listen: &ListenSettings, machine: &Machine) -> Option<Vec<SocketAddr>> {
    let mut is_good = true;
    let mut fault = |place: &str, problem: &str, expected: &str| {
        file.fault(place, problem, expected);
        is_good = false;
    };
    for (number, address) in listen.addresses.iter().enumerate() {
        // An answer must come from the address that was asked, and of a socket bound to all nobody knows which that was.
        if address.is_unspecified() || address.is_multicast() {
            fault(
                &format!("listen.addresses[{number}]"),
                "is no address of one machine",
                "an address of this machine, or nothing for all of them",
            );
        }
    }
    if listen.ports.contains(&0) || listen.ports.is_empty() || has_twice(&listen.ports) {
        fault(
            "listen.ports",
            "cannot work",
            "at least one port, none of them 0, each once",
        );
    }
    if has_twice(&listen.addresses) {
        fault("listen.addresses", "cannot work", "each address once");
    }
    if let Some(name) = &listen.name
        && rustls::pki_types::DnsName::try_from(name.as_str()).is_err()
    {
        fault(
            "listen.name",
            "has a wrong value",
            "a host name such as turn.example.org",
        );
    }
    let addresses = if listen.addresses.is_empty() {
        machine.lasting()
    } else {
        &listen.addresses
    };
    if addresses.is_empty() {
        fault(
            "listen.addresses",
            "is empty, and this machine has no address but its own loopback",
            "an address",
        );
    }
    if addresses.len() * listen.ports.len() > MOST_LISTENERS {
        fault(
            "listen",
            "names too many listeners",
            "at most 64 pairs of address and port",
        );
    }
    let pairs = addresses
        .iter()
        .flat_map(|address| listen.ports.iter().map(|port| SocketAddr::new(*address, *port)));
    is_good.then(|| pairs.collect())
}

fn has_twice<T: Ord>(items: &[T]) -> bool {
    items.iter().collect::<BTreeSet<_>>().len() < items.len()
}

fn relay_table(
    file: &mut SettingsFile,
    relay: &RelaySettings,
    listen: &ListenSettings,
    machine: &Machine,
) -> Option<RelayTable> {
    // Who names the address to listen on means this one.
    let default = |is_v6: bool| match listen.addresses.as_slice() {
        [] => machine.outward(is_v6),
        named => named.iter().find(|address| address.is_ipv6() == is_v6).copied(),
    };
    let mut addresses = Vec::new();
    for (number, given) in relay.address.iter().enumerate() {
        let bind = given.bind.or_else(|| default(given.advertised?.is_ipv6()));
        match (bind, given.advertised) {
            (Some(bind), _) if bind.is_unspecified() => file.fault(
                &format!("relay.address[{number}].bind"),
                "is no address of one machine",
                "an address of this machine",
            ),
            (Some(bind), advertised) => addresses.push(RelayAddress {
                bind,
                advertised: advertised.unwrap_or(bind),
            }),
            (None, Some(_)) => file.fault(
                &format!("relay.address[{number}]"),
                "has a family of which this machine has no address",
                "bind = an address of this machine",
            ),
            (None, None) => file.fault(
                &format!("relay.address[{number}]"),
                "is empty",
                "bind or advertised or both",
            ),
        }
    }
    if relay.address.is_empty() {
        let found = [false, true].into_iter().filter_map(default);
        addresses.extend(found.map(|address| RelayAddress {
            bind: address,
            advertised: address,
        }));
    } else if addresses.len() < relay.address.len() {
        return None;
    }
    match RelayTable::new(addresses, (relay.first_port, relay.last_port)) {
        Ok(table) => Some(table),
        // What is listened on has said so already.
        Err(RelayTableFault::Empty) if listen.addresses.is_empty() && machine.lasting().is_empty() => None,
        Err(fault) => {
            let (place, expected) = match fault {
                RelayTableFault::Ports => ("relay.first_port", "1024 or more, and at most relay.last_port"),
                _ => ("relay.address", "up to 8 different addresses of this machine"),
            };
            file.fault(place, fault.to_string(), expected);
            None
        }
    }
}

/// A relayed port is a good peer; a port where we serve is none. So none may be both.
fn keep_apart(
    file: &mut SettingsFile,
    listeners: &[SocketAddr],
    relays: &RelayTable,
    (setting, served): (&str, SocketAddr),
) {
    let is_relayed = |address: SocketAddr| {
        let (first, last) = relays.ports();
        let is_ours = address.ip().is_unspecified() || relays.number_of(address.ip()).is_some();
        is_ours && (first..=last).contains(&address.port())
    };
    if listeners.iter().any(|listener| is_relayed(*listener)) {
        file.fault(
            "listen.ports",
            "are among the ports that are relayed",
            "a port outside of [relay]",
        );
    }
    if is_relayed(served) {
        file.fault(
            setting,
            "is among the ports that are relayed",
            "a port outside of [relay]",
        );
    }
}

const MOST_LISTENERS: usize = 64;
/// Of a static password. Anybody who sees one request may guess at leisure.
const SHORTEST_PASSWORD: usize = 8;
/// Bytes of a password or secret file.
const SECRET_LIMIT: usize = 4_096;
/// Bytes of a PEM file.
const PEM_LIMIT: usize = 1 << 20;

#[cfg(test)]
#[path = "settings/tests.rs"]
mod tests;
