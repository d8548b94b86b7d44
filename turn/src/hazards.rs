//! What is allowed and will hurt all the same.
//!
//! In: good settings, and what the machine allows. Out: [`Hazard`]s for the operator: a name, and a sentence that says what to do. Never:
//! changes anything, or sees a secret.

use crate::offer::urls;
use crate::settings::{Certificate, Chain, Place, Settings, SocketsSettings, Trust};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use turn_core::peers::PeerPolicy;
use turn_core::wire::Transport;

/// What keeps clients from calling, or will. `check`, the page and docs/operating.md name them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The host name leads nowhere.
    Name,
    /// Nothing answers at the address, over no transport.
    PortClosed,
    UdpBlocked,
    TcpBlocked,
    TlsBlocked,
    NoTls,
    CertificateExpired,
    /// Within two weeks; it is good until then.
    CertificateEnding,
    CertificateEarly,
    CertificateName,
    CertificatePrivate,
    CertificateUnreadable,
    /// What is served is not what the settings name.
    CertificateOther,
    ChainIncomplete,
    WrongSecret,
    ClockOff,
    ExternalWrong,
    ExternalMissing,
    NoIpv4,
    RelayPortsBlocked,
    /// The relay answers and has no room: limits, files or ports.
    Full,
    /// Something else than a TURN relay answers, or a relay with another realm.
    OtherServer,
    /// Requests are answered and packets do not come through.
    NoMedia,
    FileLimit,
    Buffers,
}

impl Trouble {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::PortClosed => "port-closed",
            Self::UdpBlocked => "udp-blocked",
            Self::TcpBlocked => "tcp-blocked",
            Self::TlsBlocked => "tls-blocked",
            Self::NoTls => "no-tls",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateEnding => "certificate-ending",
            Self::CertificateEarly => "certificate-early",
            Self::CertificateName => "certificate-name",
            Self::CertificatePrivate => "certificate-private",
            Self::CertificateUnreadable => "certificate-unreadable",
            Self::CertificateOther => "certificate-other",
            Self::ChainIncomplete => "chain-incomplete",
            Self::WrongSecret => "wrong-secret",
            Self::ClockOff => "clock-off",
            Self::ExternalWrong => "external-wrong",
            Self::ExternalMissing => "external-missing",
            Self::NoIpv4 => "no-ipv4",
            Self::RelayPortsBlocked => "relay-ports-blocked",
            Self::Full => "full",
            Self::OtherServer => "other-server",
            Self::NoMedia => "no-media",
            Self::FileLimit => "file-limit",
            Self::Buffers => "buffers",
        }
    }

    /// It keeps only those from calling who use TLS, and of them those who were not given the certificate.
    pub const fn is_about_a_certificate(self) -> bool {
        matches!(
            self,
            Self::CertificateExpired
                | Self::CertificateEnding
                | Self::CertificateEarly
                | Self::CertificateName
                | Self::CertificatePrivate
                | Self::CertificateUnreadable
                | Self::CertificateOther
                | Self::ChainIncomplete
        )
    }
}

/// One thing that hurts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    pub trouble: Trouble,
    /// What is wrong, and what to do.
    pub advice: String,
}

impl Hazard {
    pub fn new(trouble: Trouble, advice: impl Into<String>) -> Self {
        Self {
            trouble,
            advice: advice.into(),
        }
    }
}

/// What is looked at, of settings that may be in use elsewhere.
pub struct Standing {
    file: PathBuf,
    place: Place,
    /// What clients use for TLS.
    hosts: Vec<String>,
    sockets: SocketsSettings,
    certificate: Option<Certificate>,
    open_files: u64,
    file_limit: FileLimit,
}

/// Whose limit of open files is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLimit {
    /// This process serves.
    Own,
    /// Another does, with this hard limit.
    Relay(u64),
    /// None serves that says its own, so this process's has to do.
    Unknown,
}

impl Standing {
    pub fn new(file: &Path, settings: &Settings) -> Self {
        Self {
            file: file.to_owned(),
            place: settings.place.clone(),
            hosts: tls_hosts(settings),
            sockets: settings.fixed.sockets,
            certificate: settings.certificate.clone(),
            open_files: open_files(settings),
            file_limit: FileLimit::Own,
        }
    }

    /// For who looks and does not serve.
    #[must_use]
    pub fn with_file_limit(self, file_limit: FileLimit) -> Self {
        Self { file_limit, ..self }
    }

    pub fn hazards(&self, now: SystemTime) -> Vec<Hazard> {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut found = unreachable_addresses(&self.place);
        found.extend(certificate(self.certificate.as_ref(), &self.hosts, seconds));
        found.extend(file_limit(self.open_files, self.file_limit));
        found.extend(buffers(&self.sockets));
        found.extend(clock(&self.file, now));
        found
    }
}

/// Allocations and streams are files, and a few more.
pub fn open_files(settings: &Settings) -> u64 {
    let sockets = 2 * settings.place.listeners.len() as u64 + 8;
    u64::from(settings.limits.allocations)
        + u64::from(settings.streams.total)
        + sockets * u64::from(settings.fixed.shard.count())
        + 64
}

fn tls_hosts(settings: &Settings) -> Vec<String> {
    let urls = urls(settings).into_iter();
    urls.filter(|url| url.transport == Transport::Tls)
        .map(|url| url.host)
        .collect()
}

/// Whether the internet has no way to this address.
pub fn is_private(address: IpAddr) -> bool {
    PeerPolicy::default().check_address(address).is_err()
}

/// Addresses that the internet does not reach.
fn unreachable_addresses(place: &Place) -> Vec<Hazard> {
    let relays: Vec<_> = (0..).map_while(|number| place.relays.get(number)).collect();
    let mut found = Vec::new();
    for relay in &relays {
        let (bind, advertised) = (relay.bind, relay.advertised);
        if is_private(advertised) {
            found.push(Hazard::new(
                Trouble::ExternalMissing,
                format!(
                    "clients are told {advertised}, which the internet does not reach: behind a NAT set [[relay.address]] advertised to \
                     the outer address (in a net of your own this is as it should be)"
                ),
            ));
        } else if advertised != bind && !is_private(bind) {
            found.push(Hazard::new(
                Trouble::ExternalWrong,
                format!(
                    "clients are told {advertised}, and {bind} of this machine is a public address itself: unless a NAT stands before \
                     it, take [[relay.address]] advertised out"
                ),
            ));
        }
    }
    if !relays.iter().any(|relay| relay.advertised.is_ipv4()) {
        found.push(Hazard::new(
            Trouble::NoIpv4,
            "there is no IPv4 address to relay on: clients that do not ask for IPv6, as browsers, are refused",
        ));
    }
    found
}

fn certificate(certificate: Option<&Certificate>, hosts: &[String], now: u64) -> Vec<Hazard> {
    let Some(certificate) = certificate else {
        return vec![Hazard::new(
            Trouble::NoTls,
            "there is no TLS: clients behind firewalls that let only TLS pass cannot call",
        )];
    };
    let mut found: Vec<Hazard> = chain_hazard(&certificate.chain, now).into_iter().collect();
    if let Some(host) = hosts.iter().find(|host| !certificate.chain.is_for(host)) {
        found.push(Hazard::new(
            Trouble::CertificateName,
            format!(
                "the certificate is not for {host}, which clients use: they refuse it. Get one for that name, or set listen.name to a \
                 name that it is for"
            ),
        ));
    }
    found
}

/// What clients do not like about a chain, but for its names.
pub fn chain_hazard(chain: &Chain, now: u64) -> Option<Hazard> {
    let (trouble, advice) = match chain.validity() {
        Some((from, _)) if now < from => (
            Trouble::CertificateEarly,
            "the certificate is not good yet: look at the clock".to_owned(),
        ),
        Some((_, until)) if until <= now => (
            Trouble::CertificateExpired,
            "the certificate has expired: renew it, then SIGHUP".to_owned(),
        ),
        Some((_, until)) if until - now < EXPIRES_SOON.as_secs() => {
            let days = (until - now) / 86_400;
            (
                Trouble::CertificateEnding,
                format!("the certificate expires in {days} days: renew it, then SIGHUP"),
            )
        }
        Some(_) => match chain.trust(now) {
            Trust::Public => return None,
            Trust::Private => (
                Trouble::CertificatePrivate,
                "the certificate does not lead to a public root: browsers refuse it unless they were given its own".to_owned(),
            ),
            Trust::Incomplete => (
                Trouble::ChainIncomplete,
                "the certificate does not lead to a public root, and its issuer is not in the file: put the whole chain there (an \
                 issuer of your own too, if clients trust it)"
                    .to_owned(),
            ),
        },
        None => (
            Trouble::CertificateUnreadable,
            "the certificate cannot be understood by our own library: clients may fail as well".to_owned(),
        ),
    };
    Some(Hazard::new(trouble, advice))
}

/// An allocation is a file, and so is a stream.
fn file_limit(needed: u64, limit: FileLimit) -> Option<Hazard> {
    let own = || rlimit::getrlimit(rlimit::Resource::NOFILE).map(|(_, hard)| hard).ok();
    let (hard, mend) = match limit {
        FileLimit::Own => (own()?, "raise the hard limit (LimitNOFILE, ulimit -Hn)"),
        FileLimit::Relay(hard) => (hard, "raise the hard limit of the relay (LimitNOFILE) and restart it"),
        FileLimit::Unknown => (
            own()?,
            "no relay runs that says its own limit, so this is of who asks: see to that of the relay (LimitNOFILE, ulimit -Hn)",
        ),
    };
    (hard < needed).then(|| {
        Hazard::new(
            Trouble::FileLimit,
            format!("the settings allow for {needed} open files, the system for {hard}: {mend}"),
        )
    })
}

/// The system gives less than is asked for, and says nothing.
fn buffers(sockets: &SocketsSettings) -> Vec<Hazard> {
    [
        ("receive_buffer", sockets.receive_buffer, "rmem_max"),
        ("send_buffer", sockets.send_buffer, "wmem_max"),
    ]
    .into_iter()
    .filter_map(|(setting, asked, name)| {
        let (asked, limit) = (asked.get(), std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?);
        let limit: u64 = limit.trim().parse().ok()?;
        (limit < asked).then(|| {
            Hazard::new(
                Trouble::Buffers,
                format!("sockets.{setting} is {asked} bytes and the system gives {limit}: bursts are lost. sysctl -w net.core.{name}={asked}"),
            )
        })
    })
    .collect()
}

/// A clock that is behind refuses good credentials, one that is ahead takes old ones.
fn clock(settings: &Path, now: SystemTime) -> Option<Hazard> {
    let written = settings.metadata().ok()?.modified().ok()?;
    let advice = if written > now + Duration::from_secs(60) {
        "the clock is behind: the settings file is of the future. Timed credentials need the right time (timedatectl)"
    } else {
        // systemd-timesyncd keeps this folder, and this file in it once it knows the time.
        let timesync = Path::new("/run/systemd/timesync");
        if !timesync.is_dir() || timesync.join("synchronized").exists() {
            return None;
        }
        "the clock is not synchronised: timed credentials need the right time (timedatectl)"
    };
    Some(Hazard::new(Trouble::ClockOff, advice))
}

const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::settings::{self, Certificate};
    use quietline_shared::redact::Secret;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    /// 2030-01-01 and 2031-01-01.
    const BEGIN: u64 = 1_893_456_000;
    const END: u64 = 1_924_992_000;
    const DAY: u64 = 86_400;

    fn settings(text: &str) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("turn.toml");
        std::fs::write(folder.path().join("secret"), "0f1e2d3c4b5a69788796a5b4c3d2e1f0").unwrap();
        std::fs::write(&file, format!("auth.timed = [{{ secret_file = 'secret' }}]\n{text}")).unwrap();
        let addresses = ["9.9.9.9", "2a00::9"].map(|text| text.parse().unwrap());
        settings::read(&file, &Machine::new(addresses.to_vec(), vec![]))
            .unwrap()
            .0
    }

    fn with_certificate(text: &str) -> Settings {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["turn.example.org".to_owned()]).unwrap();
        parameters.not_before = date_time_ymd(2030, 1, 1);
        parameters.not_after = date_time_ymd(2031, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        let key = Secret::new(key.serialize_pem().into_bytes());
        Settings {
            certificate: Certificate::read(certificate.as_bytes(), &key).ok(),
            ..settings(text)
        }
    }

    fn watched(settings: &Settings, now: u64) -> Vec<Hazard> {
        certificate(settings.certificate.as_ref(), &tls_hosts(settings), now)
    }

    #[test]
    fn a_certificate_is_watched_over_its_whole_life() {
        let settings = with_certificate("listen.name = 'turn.example.org'");
        for (now, trouble, words) in [
            (BEGIN - 1, Trouble::CertificateEarly, "is not good yet"),
            (
                BEGIN + DAY,
                Trouble::CertificatePrivate,
                "does not lead to a public root",
            ),
            (
                END - 15 * DAY,
                Trouble::CertificatePrivate,
                "does not lead to a public root",
            ),
            (END - 13 * DAY, Trouble::CertificateEnding, "expires in 13 days"),
            (END, Trouble::CertificateExpired, "has expired"),
        ] {
            let found = watched(&settings, now);
            assert!(
                found.len() == 1 && found[0].trouble == trouble && found[0].advice.contains(words),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_certificate_for_another_name_than_clients_use_is_named() {
        let now = BEGIN + DAY;
        let other = watched(&with_certificate("listen.name = 'example.org'"), now);
        assert!(
            other
                .iter()
                .any(|hazard| hazard.advice.contains("is not for example.org")),
            "{other:?}"
        );
        let unnamed = watched(&with_certificate(""), now);
        assert!(
            unnamed
                .iter()
                .any(|hazard| hazard.advice.contains("is not for 9.9.9.9")),
            "{unnamed:?}"
        );
        assert!(watched(&settings(""), now)[0].advice.contains("there is no TLS"));
    }

    #[test]
    fn an_address_that_the_internet_does_not_reach_is_named() {
        let found = |text: &str| unreachable_addresses(&settings(text).place);
        assert_eq!(found(""), []);
        let private = found("relay.address = [{ bind = '10.0.0.5' }]");
        assert!(
            private.len() == 1 && private[0].advice.contains("10.0.0.5"),
            "{private:?}"
        );
        assert_eq!(
            found("relay.address = [{ bind = '10.0.0.5', advertised = '9.9.9.9' }]"),
            []
        );
        let odd = found("relay.address = [{ bind = '9.9.9.9', advertised = '8.8.8.8' }]");
        assert_eq!(odd.len(), 1);
        assert_eq!(odd[0].trouble, Trouble::ExternalWrong);
        let only_v6 = found("relay.address = [{ bind = '2a00::9' }]");
        assert!(
            only_v6.len() == 1 && only_v6[0].trouble == Trouble::NoIpv4,
            "{only_v6:?}"
        );
    }

    #[test]
    fn the_limit_of_files_that_counts_is_that_of_the_relay() {
        let found = |limit| file_limit(1_000, limit).map(|hazard| hazard.advice);
        assert_eq!(found(FileLimit::Relay(1_000)), None);
        let small = found(FileLimit::Relay(999)).unwrap();
        assert!(
            small.contains("the system for 999: raise the hard limit of the relay"),
            "{small}"
        );
        let unknown = file_limit(u64::MAX, FileLimit::Unknown).map(|hazard| hazard.advice);
        assert!(unknown.is_none_or(|advice| advice.contains("this is of who asks")));
    }

    #[test]
    fn a_settings_file_of_the_future_means_a_clock_that_is_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("turn.toml");
        let written = std::fs::File::create(&file).unwrap();
        assert!(clock(&file, SystemTime::now()).is_none_or(|hazard| !hazard.advice.contains("behind")));
        written
            .set_modified(SystemTime::now() + Duration::from_secs(3_600))
            .unwrap();
        assert!(clock(&file, SystemTime::now()).is_some_and(|hazard| hazard.advice.contains("behind")));
    }
}
