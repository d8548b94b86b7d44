//! What is allowed and will hurt all the same.
//!
//! In: good settings, and what the machine allows. Out: sentences for the operator, each with what to do. Never: changes anything.

use crate::settings::Settings;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use turn_core::peers::PeerPolicy;

pub fn hazards(file: &Path, settings: &Settings) -> Vec<String> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut found = Vec::new();
    found.extend(unreachable_addresses(settings));
    found.extend(certificate(settings, now));
    found.extend(open_files(settings));
    found.extend(buffers(settings));
    found.extend(clock(file));
    found
}

/// Addresses that the internet does not reach.
fn unreachable_addresses(settings: &Settings) -> Vec<String> {
    let relays = (0..).map_while(|number| settings.place.relays.get(number));
    let advertised: Vec<IpAddr> = relays.map(|relay| relay.advertised).collect();
    let is_private = |address: &&IpAddr| PeerPolicy::default().check_address(**address).is_err();
    let private = advertised.iter().filter(is_private);
    let mut found: Vec<String> = private
        .map(|address| {
            format!(
                "clients are told {address}, which the internet does not reach: behind a NAT set [[relay.address]] advertised to the \
                 outer address (in a net of your own this is as it should be)"
            )
        })
        .collect();
    if !advertised.iter().any(IpAddr::is_ipv4) {
        found.push(
            "there is no IPv4 address to relay on: clients that do not ask for IPv6, as browsers, are refused"
                .to_owned(),
        );
    }
    found
}

fn certificate(settings: &Settings, now: u64) -> Vec<String> {
    let Some(certificate) = &settings.certificate else {
        return vec!["there is no TLS: clients behind firewalls that let only TLS pass cannot call".to_owned()];
    };
    let mut found = Vec::new();
    match certificate.validity() {
        Some((from, _)) if now < from => found.push("the certificate is not good yet: look at the clock".to_owned()),
        Some((_, until)) if until <= now => found.push("the certificate has expired: renew it".to_owned()),
        Some((_, until)) if until - now < EXPIRES_SOON.as_secs() => {
            let days = (until - now) / 86_400;
            found.push(format!("the certificate expires in {days} days: renew it, then SIGHUP"));
        }
        Some(_) if !certificate.is_publicly_trusted(now) => found.push(
            "the certificate does not lead to a public root: browsers refuse it unless they were given its own (is the chain in the \
             file?)"
                .to_owned(),
        ),
        Some(_) => {}
        None => found.push("the certificate cannot be understood by our own library: clients may fail as well".to_owned()),
    }
    match &settings.fixed.listen.name {
        Some(name) if !certificate.is_for(name) => {
            found.push(format!("the certificate is not for {name}: clients refuse it"));
        }
        Some(_) => {}
        None => found.push(
            "there is a certificate and no listen.name: clients are told addresses, and few certificates name those"
                .to_owned(),
        ),
    }
    found
}

/// An allocation is a file, and so is a stream.
fn open_files(settings: &Settings) -> Option<String> {
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).ok()?;
    let needed = crate::app::open_files(settings);
    (hard < needed).then(|| {
        format!("the settings allow for {needed} open files, the system for {hard}: raise the hard limit (LimitNOFILE, ulimit -Hn)")
    })
}

/// The system gives less than is asked for, and says nothing.
fn buffers(settings: &Settings) -> Vec<String> {
    let sockets = &settings.fixed.sockets;
    [
        ("receive_buffer", sockets.receive_buffer, "rmem_max"),
        ("send_buffer", sockets.send_buffer, "wmem_max"),
    ]
    .into_iter()
    .filter_map(|(setting, asked, name)| {
        let (asked, limit) = (asked.get(), std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?);
        let limit: u64 = limit.trim().parse().ok()?;
        (limit < asked).then(|| {
            format!("sockets.{setting} is {asked} bytes and the system gives {limit}: bursts are lost. sysctl -w net.core.{name}={asked}")
        })
    })
    .collect()
}

/// A clock that is behind refuses good credentials, one that is ahead takes old ones.
fn clock(settings: &Path) -> Option<String> {
    let written = settings.metadata().ok()?.modified().ok()?;
    if written > SystemTime::now() + Duration::from_secs(60) {
        return Some(
            "the clock is behind: the settings file is of the future. Timed credentials need the right time".to_owned(),
        );
    }
    // systemd-timesyncd keeps this folder, and this file in it once it knows the time.
    let timesync = Path::new("/run/systemd/timesync");
    let is_unsure = timesync.is_dir() && !timesync.join("synchronized").exists();
    is_unsure.then(|| "the clock is not synchronised: timed credentials need the right time (timedatectl)".to_owned())
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

    #[test]
    fn a_certificate_is_watched_over_its_whole_life() {
        let settings = with_certificate("listen.name = 'turn.example.org'");
        for (now, words) in [
            (BEGIN - 1, "is not good yet"),
            (BEGIN + DAY, "does not lead to a public root"),
            (END - 15 * DAY, "does not lead to a public root"),
            (END - 13 * DAY, "expires in 13 days"),
            (END, "has expired"),
        ] {
            let found = certificate(&settings, now);
            assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        }
    }

    #[test]
    fn a_certificate_for_another_name_or_for_none_is_named() {
        let now = BEGIN + DAY;
        let other = certificate(&with_certificate("listen.name = 'example.org'"), now);
        assert!(
            other.iter().any(|hazard| hazard.contains("is not for example.org")),
            "{other:?}"
        );
        let unnamed = certificate(&with_certificate(""), now);
        assert!(
            unnamed.iter().any(|hazard| hazard.contains("no listen.name")),
            "{unnamed:?}"
        );
        assert!(certificate(&settings(""), now)[0].contains("there is no TLS"));
    }

    #[test]
    fn an_address_that_the_internet_does_not_reach_is_named() {
        assert_eq!(unreachable_addresses(&settings("")), Vec::<String>::new());
        let private = unreachable_addresses(&settings("relay.address = [{ bind = '10.0.0.5' }]"));
        assert!(private.len() == 1 && private[0].contains("10.0.0.5"), "{private:?}");
        let mapped = settings("relay.address = [{ bind = '10.0.0.5', advertised = '9.9.9.9' }]");
        assert_eq!(unreachable_addresses(&mapped), Vec::<String>::new());
        let only_v6 = unreachable_addresses(&settings("relay.address = [{ bind = '2a00::9' }]"));
        assert!(
            only_v6.len() == 1 && only_v6[0].contains("no IPv4 address"),
            "{only_v6:?}"
        );
    }

    #[test]
    fn a_settings_file_of_the_future_means_a_clock_that_is_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("turn.toml");
        let written = std::fs::File::create(&file).unwrap();
        assert!(clock(&file).is_none_or(|hazard| !hazard.contains("behind")));
        written
            .set_modified(SystemTime::now() + Duration::from_secs(3_600))
            .unwrap();
        assert!(clock(&file).is_some_and(|hazard| hazard.contains("behind")));
    }
}
