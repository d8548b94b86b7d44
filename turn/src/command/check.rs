//! Whether the relay works: settings, the machine, and calls through it as clients make them.
//!
//! In: settings, what clients are told or what `--url` says. Out: for each URL how well a call goes or what is wrong, in words that say what
//! to do. Never: changes anything, or waits for anything without a deadline. Where no relay runs, one with these settings serves the trial
//! and ends with it. Only here, to the operator, are addresses printed.

mod client;
mod link;
mod trial;

use super::read_settings;
use crate::app::Relay;
use crate::hazards::{Hazard, Standing, Trouble};
use crate::machine::Machine;
use crate::offer::{TurnUrl, urls};
use crate::settings::{self, Place, Settings};
use clap::Args;
use client::Client;
use link::Link;
use quietline_shared::service::command::{Exit, report_memory};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use trial::{Known, Outside, Trial, resolved, tried};

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The settings, TOML.
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
    /// Read the settings and look at the machine, and make no call.
    #[arg(long, conflicts_with_all = ["url", "stun"])]
    pub settings_only: bool,
    /// A relay to try, in place of those that clients are told: from elsewhere, with a copy of the settings. May be given several times.
    #[arg(long, value_name = "URL")]
    pub url: Vec<TurnUrl>,
    /// A STUN server out in the world, host:port, that says which address it sees: does it agree with what clients are told?
    #[arg(long, value_name = "HOST:PORT")]
    pub stun: Option<String>,
}

pub fn check(wish: &Check, machine: &Machine, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let settings = match read_settings(&wish.settings, machine, errors)? {
        Ok(settings) => settings,
        Err(exit) => return Ok(exit),
    };
    let mut report = Report {
        out,
        errors,
        warned: Vec::new(),
        faults: 0,
    };
    describe(&settings, &mut report)?;
    for hazard in Standing::new(&wish.settings, &settings).hazards(SystemTime::now()) {
        report.warn(&hazard)?;
    }
    report_memory(report.out, report.errors)?;
    report.say("settings are good")?;
    if wish.settings_only {
        return Ok(Exit::Done);
    }
    report.out.flush()?;
    calls(wish, &settings, machine, &mut report)?;
    if let Some(server) = &wish.stun {
        outer_address(server, &settings.place, &mut report)?;
    }
    match report.faults {
        0 => {
            report.say("the relay works")?;
            Ok(Exit::Done)
        }
        _ => {
            report.say("the relay does not work for everybody")?;
            Ok(Exit::Failed)
        }
    }
}

struct Report<'a> {
    out: &'a mut dyn Write,
    errors: &'a mut dyn Write,
    warned: Vec<Trouble>,
    faults: u32,
}

impl Report<'_> {
    fn say(&mut self, words: impl Display) -> io::Result<()> {
        writeln!(self.out, "{words}")
    }

    /// It works, and will hurt. Said once, by settings or by trial.
    fn warn(&mut self, hazard: &Hazard) -> io::Result<()> {
        self.warned.push(hazard.trouble);
        writeln!(self.errors, "warning: {}: {}", hazard.trouble.label(), hazard.advice)
    }

    fn fault(&mut self, hazard: &Hazard) -> io::Result<()> {
        self.faults += 1;
        writeln!(self.errors, "fault: {}: {}", hazard.trouble.label(), hazard.advice)
    }
}

fn describe(settings: &Settings, report: &mut Report<'_>) -> io::Result<()> {
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

fn calls(wish: &Check, settings: &Settings, machine: &Machine, report: &mut Report<'_>) -> io::Result<()> {
    let is_ours = wish.url.is_empty();
    let told = if is_ours { urls(settings) } else { wish.url.clone() };
    let known = match Known::new(&wish.settings, settings, is_ours) {
        Ok(known) => known,
        Err(fault) => return report.fault(&Hazard::new(Trouble::WrongSecret, fault.to_string())),
    };
    // Serves until the end of the calls.
    let spare = match is_ours {
        true => spare_relay(wish, settings, machine, report)?,
        false => None,
    };
    let mut trials: Vec<Trial> = std::thread::scope(|scope| {
        let threads: Vec<_> = told.iter().map(|url| scope.spawn(|| tried(url, &known))).collect();
        // A trial that panics is a bug that has told where it is; the others are as good.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    if let Some(hazard) = nobody(&trials, settings, is_ours) {
        report.fault(&hazard)?;
        trials
            .iter_mut()
            .for_each(|trial| trial.found.retain(|hazard| !is_silence(hazard)));
    }
    for trial in &trials {
        report.say(trial)?;
        for hazard in &trial.found {
            if !hazard.trouble.is_about_a_certificate() {
                report.fault(hazard)?;
            } else if !report.warned.contains(&hazard.trouble) {
                // It keeps those from calling who use TLS and were not given the certificate.
                report.warn(hazard)?;
            }
        }
    }
    // What a TURN client finds, WebRTC finds no other way.
    if let Some(trial) = trials.iter().find(|trial| trial.is_for_webrtc()) {
        webrtc(&trial.url, &known, report)?;
    }
    drop(spare);
    if trials.iter().any(|trial| trial.outside == Outside::Refused) {
        report.say(
            "whether the world reaches relayed addresses cannot be told from here: check --url on another machine",
        )?;
    } else if trials
        .iter()
        .any(|trial| machine.addresses().contains(&trial.seen_from))
        && is_ours
    {
        report.say("no firewall stands between this machine and itself: check --url on another machine as well")?;
    }
    Ok(())
}

/// If not one URL gave any answer, that is one fault.
fn nobody(trials: &[Trial], settings: &Settings, is_ours: bool) -> Option<Hazard> {
    if trials.is_empty() || !trials.iter().all(|trial| trial.found.iter().any(is_silence)) {
        return None;
    }
    let host = trials.first().map_or("", |trial| &trial.url.host);
    let here = settings
        .place
        .listeners
        .iter()
        .find(|listener| is_ours && answers(**listener));
    Some(match here {
        Some(here) => Hazard::new(
            Trouble::ExternalWrong,
            format!(
                "the relay answers at {here} of this machine and not at {host}, which clients are told: is that its outer address? A NAT \
                 that does not let this machine reach its own outer address looks the same: then check --url on another machine"
            ),
        ),
        None => Hazard::new(
            Trouble::PortClosed,
            format!(
                "nothing answers at {host}: does it lead to the relay, does the relay run, does the firewall let UDP and TCP in?"
            ),
        ),
    })
}

fn is_silence(hazard: &Hazard) -> bool {
    matches!(
        hazard.trouble,
        Trouble::UdpBlocked | Trouble::TcpBlocked | Trouble::TlsBlocked
    )
}

/// Whether a STUN server answers there over UDP.
fn answers(server: SocketAddr) -> bool {
    seen_by(server, None).is_some()
}

/// How a STUN server sees a new socket of this machine's, bound to this address.
fn seen_by(server: SocketAddr, from: Option<IpAddr>) -> Option<SocketAddr> {
    let link = Link::udp_from(server, from).ok()?;
    Client::stranger(link, STUN_PATIENCE).mapped().ok()
}

/// What a STUN server sees is what clients must be told.
fn outer_address(server: &str, place: &Place, report: &mut Report<'_>) -> io::Result<()> {
    let name_and_port = server
        .rsplit_once(':')
        .and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let Some((name, port)) = name_and_port else {
        return report.fault(&Hazard::new(Trouble::Name, "--stun is host:port"));
    };
    let servers = resolved(name.trim_matches(['[', ']']), port);
    for relay in (0..).map_while(|number| place.relays.get(number)) {
        let Some(server) = servers.iter().find(|server| server.is_ipv4() == relay.bind.is_ipv4()) else {
            continue;
        };
        match seen_by(*server, Some(relay.bind)) {
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

/// A relay with these settings, if none runs: whoever checks before the first start learns as much.
fn spare_relay(
    wish: &Check,
    settings: &Settings,
    machine: &Machine,
    report: &mut Report<'_>,
) -> io::Result<Option<Relay>> {
    let refused = settings.place.listeners.iter().find_map(|listener| {
        let udp = UdpSocket::bind(listener).err();
        udp.or_else(|| TcpListener::bind(listener).err())
            .map(|error| (*listener, error.kind()))
    });
    match refused {
        Some((_, ErrorKind::AddrInUse)) => return Ok(None),
        Some((listener, ErrorKind::PermissionDenied)) => {
            report.say(format_args!(
                "no relay runs here, and this user may not listen on {listener}: start the relay, or check as root"
            ))?;
            return Ok(None);
        }
        Some((listener, _)) => {
            report.say(format_args!(
                "no relay can run here: {listener} is no address of this machine (check --url tries a relay elsewhere)"
            ))?;
            return Ok(None);
        }
        None => {}
    }
    let Ok((settings, _)) = settings::read(&wish.settings, machine) else {
        return Ok(None);
    };
    match Relay::start(settings, &wish.settings, machine.clone()) {
        Ok(relay) => {
            report.say("no relay runs here: one with these settings serves this check")?;
            Ok(Some(relay))
        }
        Err(fault) => {
            report.fault(&Hazard::new(Trouble::PortClosed, fault.to_string()))?;
            Ok(None)
        }
    }
}

#[cfg(feature = "call")]
fn webrtc(url: &TurnUrl, known: &Known, report: &mut Report<'_>) -> io::Result<()> {
    // Its library asks for one of the process; it brings a second kind of its own.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Some(ticket) = known.tickets.first() else {
        return Ok(());
    };
    let server = turn_call::Server {
        url: url.to_string(),
        username: ticket.username.clone(),
        credential: ticket.password().to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let call = runtime.block_on(turn_call::call(&server, WEBRTC_PACKETS, WEBRTC_PATIENCE));
    runtime.shutdown_background();
    match call {
        Ok(call) => report.say(format_args!(
            "{url}: WebRTC works: set up in {}, {}",
            trial::milliseconds(call.set_up),
            trial::passage(&call.round_trips, call.sent)
        )),
        Err(fault) => report.fault(&Hazard::new(
            Trouble::NoMedia,
            format!("{url} serves a TURN client, and no WebRTC call comes about: {fault}"),
        )),
    }
}

#[cfg(not(feature = "call"))]
fn webrtc(_: &TurnUrl, _: &Known, report: &mut Report<'_>) -> io::Result<()> {
    report.say("this program was built without its WebRTC client: only the TURN client has called")
}

const STUN_PATIENCE: Duration = Duration::from_secs(2);
#[cfg(feature = "call")]
const WEBRTC_PACKETS: u32 = 50;
#[cfg(feature = "call")]
const WEBRTC_PATIENCE: Duration = Duration::from_secs(20);
