//! The relay of this machine: what it is told to be, who stands where it listens, how the world sees it.
//!
//! In: settings of this machine. Out: lines of the report, and a relay with these settings where none runs. Never: takes another program
//! for the relay because it has the port.

use super::Report;
use super::client::Client;
use super::link::Link;
use super::trial::{leads_nowhere, resolved};
use crate::app::Relay;
use crate::hazards::{FileLimit, Hazard, Standing, Trouble};
use crate::machine::Machine;
use crate::offer::urls;
use crate::settings::{self, Place, Settings};
use quietline_shared::service::audit::live::Live;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime};
use turn_core::wire::Transport;

pub fn describe(settings: &Settings, report: &mut Report<'_>) -> io::Result<()> {
    for listener in &settings.place.listeners {
        let tls = if settings.certificate.is_some() { " and TLS" } else { "" };
        report.say(format_args!("listens on {listener} for UDP and TCP{tls}"))?;
    }
    let (first, last) = settings.place.relays.ports();
    for relay in (0..).map_while(|number| settings.place.relays.get(number)) {
        let told = match relay.bind == relay.advertised {
            true => String::new(),
            false => format!(", which clients know as {}", relay.advertised),
        };
        report.say(format_args!("relays on {} ports {first} to {last}{told}", relay.bind))?;
    }
    for url in urls(settings) {
        report.say(format_args!("clients use {url}"))?;
    }
    if let Some(group) = settings.key_exchange() {
        report.say(format_args!("a capable client gets {group} as the key exchange of TLS"))?;
    }
    Ok(())
}

/// What works and will hurt.
pub fn hazards(file: &Path, settings: &Settings, report: &mut Report<'_>) -> io::Result<()> {
    let limit = file_limit(settings.fixed.ops.listen)?;
    report.say(match limit {
        FileLimit::Relay(hard) => format!("the relay that runs may open {hard} files"),
        FileLimit::Own | FileLimit::Unknown => {
            "no relay that runs says how many files it may open: looked at is how many this check may".to_owned()
        }
    })?;
    let standing = Standing::new(file, settings).with_file_limit(limit);
    let hazards = standing.hazards(SystemTime::now());
    hazards.iter().try_for_each(|hazard| report.warn(hazard))
}

/// Of the relay that runs, if it says who it is: the shell of whoever checks has limits of its own.
fn file_limit(ops: SocketAddr) -> io::Result<FileLimit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let process = runtime.block_on(Live::ask(ops)).and_then(|live| live.process_id());
    let hard = process.and_then(|process| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).ok();
        // In a container a process has another number, and ours may have that one.
        let is_relay = read("comm")?.trim_end() == env!("CARGO_PKG_NAME");
        is_relay.then(|| hard_file_limit(&read("limits")?)).flatten()
    });
    Ok(hard.map_or(FileLimit::Unknown, FileLimit::Relay))
}

/// Of the kernel's table: name, soft limit, hard limit, unit.
fn hard_file_limit(limits: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match values.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        hard => hard.parse().ok(),
    }
}

/// Who serves the calls.
pub enum Host {
    /// Whoever is at the URLs.
    Others,
    Spare(#[expect(dead_code, reason = "it serves until it is dropped")] Box<Relay>),
    /// There is nobody to call.
    Nobody,
}

/// A relay with these settings, if none runs: whoever checks before the first start learns as much.
pub fn host(file: &Path, settings: &Settings, machine: &Machine, report: &mut Report<'_>) -> io::Result<Host> {
    let seats = seats(&settings.place.listeners);
    for (listener, _) in seats.iter().filter(|(_, seat)| *seat == Seat::Other) {
        report.fault(&Hazard::new(
            Trouble::OtherServer,
            format!("another program has {listener}, where the relay is to listen: ss -lntup says which"),
        ))?;
    }
    let is_any = |wanted: Seat| seats.iter().any(|(_, seat)| *seat == wanted);
    if is_any(Seat::Relay) {
        return Ok(Host::Others);
    }
    if is_any(Seat::Other) {
        return Ok(Host::Nobody);
    }
    let refused = seats.iter().find_map(|(listener, seat)| match seat {
        Seat::Refused(kind) => Some((listener, *kind)),
        _ => None,
    });
    match refused {
        Some((listener, ErrorKind::PermissionDenied)) => {
            report.say(format_args!(
                "no relay runs here, and this user may not listen on {listener}: start the relay, or check as root"
            ))?;
            return Ok(Host::Others);
        }
        Some((listener, _)) => {
            report.say(format_args!(
                "no relay can run here: {listener} is no address of this machine (check --url tries a relay elsewhere)"
            ))?;
            return Ok(Host::Others);
        }
        None => {}
    }
    let Ok((settings, _)) = settings::read(file, machine) else {
        return Ok(Host::Others);
    };
    match Relay::start(settings, file, machine.clone()) {
        Ok(relay) => {
            report.say("no relay runs here: one with these settings serves this check")?;
            Ok(Host::Spare(Box::new(relay)))
        }
        Err(fault) => {
            report.fault(&Hazard::new(Trouble::PortClosed, fault.to_string()))?;
            Ok(Host::Nobody)
        }
    }
}

/// Who stands where the relay is to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    Free,
    Relay,
    Other,
    /// Nobody may stand there, or this user may not.
    Refused(ErrorKind),
}

fn seats(listeners: &[SocketAddr]) -> Vec<(SocketAddr, Seat)> {
    // At most as many threads as listeners, of which settings have 64: each may wait for an answer.
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .iter()
            .map(|listener| scope.spawn(|| (*listener, seat(*listener))))
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn seat(listener: SocketAddr) -> Seat {
    let refused = [UdpSocket::bind(listener).err(), TcpListener::bind(listener).err()];
    let kinds: Vec<ErrorKind> = refused.iter().flatten().map(io::Error::kind).collect();
    let Some(kind) = kinds.first() else {
        return Seat::Free;
    };
    let is_taken = kinds.contains(&ErrorKind::AddrInUse);
    let may_be_taken = is_taken || kinds.contains(&ErrorKind::PermissionDenied);
    // The relay answers over both.
    if may_be_taken && (answers(listener, Transport::Udp) || answers(listener, Transport::Tcp)) {
        Seat::Relay
    } else if is_taken {
        Seat::Other
    } else {
        Seat::Refused(*kind)
    }
}

/// The first of these listeners, of one family, at which a relay answers.
pub fn answering(listeners: &[SocketAddr], is_v6: bool) -> Option<SocketAddr> {
    let of_family: Vec<SocketAddr> = listeners
        .iter()
        .copied()
        .filter(|listener| listener.is_ipv6() == is_v6)
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = of_family
            .iter()
            .map(|listener| scope.spawn(|| answers(*listener, Transport::Udp).then_some(*listener)))
            .collect();
        threads.into_iter().find_map(|thread| thread.join().ok().flatten())
    })
}

/// Whether a STUN server answers there.
fn answers(server: SocketAddr, transport: Transport) -> bool {
    let link = Link::open(server, "", transport, STUN_PATIENCE);
    link.is_ok_and(|(link, _)| Client::stranger(link, STUN_PATIENCE).mapped().is_ok())
}

/// What a STUN server sees is what clients must be told.
pub fn outer_address(server: &str, place: &Place, report: &mut Report<'_>) -> io::Result<()> {
    let name_and_port = server
        .rsplit_once(':')
        .and_then(|(name, port)| Some((name.trim_matches(['[', ']']), port.parse().ok()?)));
    let Some((name, port)) = name_and_port else {
        return report.fault(&Hazard::new(Trouble::Name, "--stun is host:port"));
    };
    let servers = resolved(name, port);
    if servers.is_empty() {
        return report.fault(&leads_nowhere(name));
    }
    for relay in (0..).map_while(|number| place.relays.get(number)) {
        let Some(server) = servers.iter().find(|server| server.is_ipv4() == relay.bind.is_ipv4()) else {
            report.say(format_args!("{name} has no address that {} can ask", relay.bind))?;
            continue;
        };
        match seen_by(*server, relay.bind) {
            Some(seen) if seen.ip() == relay.advertised => {
                report.say(format_args!(
                    "{} is seen as {}, as clients are told",
                    relay.bind,
                    seen.ip()
                ))?;
            }
            Some(seen) => report.fault(&Hazard::new(
                match relay.bind == relay.advertised {
                    true => Trouble::ExternalMissing,
                    false => Trouble::ExternalWrong,
                },
                format!(
                    "the world sees {} as {}, and clients are told {}: set [[relay.address]] advertised = \"{}\"",
                    relay.bind,
                    seen.ip(),
                    relay.advertised,
                    seen.ip()
                ),
            ))?,
            None => report.say(format_args!("{server} does not say how it sees {}", relay.bind))?,
        }
    }
    Ok(())
}

/// How a STUN server sees a new socket of this machine's, bound to this address.
fn seen_by(server: SocketAddr, from: IpAddr) -> Option<SocketAddr> {
    let link = Link::udp_from(server, Some(from)).ok()?;
    Client::stranger(link, STUN_PATIENCE).mapped().ok()
}

const STUN_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_of_files_is_read_from_the_kernels_table() {
        let table = |hard: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 {hard}               files\n"
            )
        };
        assert_eq!(hard_file_limit(&table("524288")), Some(524_288));
        assert_eq!(hard_file_limit(&table("unlimited")), Some(u64::MAX));
        assert_eq!(hard_file_limit("nothing"), None);
        assert!(std::fs::read_to_string("/proc/self/limits").is_ok_and(|own| hard_file_limit(&own).is_some()));
    }

    #[test]
    fn a_program_that_has_one_port_of_a_listener_is_not_the_relay() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(seat(other.local_addr().unwrap()), Seat::Other);
        let nowhere = "192.0.2.1:3478".parse().unwrap();
        assert!(matches!(seat(nowhere), Seat::Refused(ErrorKind::AddrNotAvailable)));
    }
}
