//! Whether the relay works: settings, the machine, and calls through it as clients make them.
//!
//! In: settings of this machine and what clients are told; or `--url` and a copy of settings; or what was given out for calls. Out: for
//! each URL how well a call goes or what is wrong, in words that say what to do. Never: changes anything, judges this machine for the
//! relay's, or waits for anything without a deadline. Where no relay runs, one with these settings serves the trial and ends with it.
//! Only here, to the operator, are addresses printed.

mod client;
mod given;
mod here;
mod link;
mod trial;

use super::read_settings;
use crate::hazards::{Hazard, Trouble};
use crate::machine::Machine;
use crate::offer::{TurnUrl, urls};
use crate::settings::{self, CallSettings, Chain, Place};
use clap::Args;
use here::Host;
use quietline_shared::service::command::{Exit, report_faults, report_memory, report_warnings};
use quietline_shared::service::config::Faults;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
#[cfg(feature = "call")]
use std::time::Duration;
use trial::{Known, Outside, Trial, tried};
use turn_core::wire::Transport;

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The settings, TOML. With --url a copy with a secret is enough: only [auth] and [limits] are read.
    #[arg(long, value_name = "FILE", required_unless_present = "credentials")]
    pub settings: Option<PathBuf>,
    /// Read the settings and look at the machine, and make no call.
    #[arg(long, conflicts_with_all = ["url", "stun"])]
    pub settings_only: bool,
    /// A relay elsewhere to try, in place of those that clients are told. This machine is not looked at. May be given several times.
    #[arg(long, value_name = "URL", conflicts_with = "stun")]
    pub url: Vec<TurnUrl>,
    /// A STUN server out in the world, host:port, that says which address it sees: does it agree with what clients are told?
    #[arg(long, value_name = "HOST:PORT")]
    pub stun: Option<String>,
    /// What was given out for calls: JSON as POST /turn/credentials answers and the command credentials prints it. Its URLs are tried with
    /// its names and passwords; with --settings it is said which of their secrets made them. - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["settings_only", "url", "stun"])]
    pub credentials: Option<PathBuf>,
}

pub fn check(wish: &Check, machine: &Machine, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<Exit> {
    let report = Report {
        out,
        errors,
        warned: Vec::new(),
        faults: Vec::new(),
        calls: 0,
    };
    match (&wish.settings, &wish.credentials) {
        (settings, Some(file)) => as_given(file, settings.as_deref(), report),
        (Some(file), _) if wish.url.is_empty() => here(wish, file, machine, report),
        (Some(file), _) => elsewhere(wish, file, report),
        // The command line asks for one of them.
        (None, None) => Ok(Exit::Failed),
    }
}

/// The relay of this machine.
fn here(wish: &Check, file: &Path, machine: &Machine, mut report: Report<'_>) -> io::Result<Exit> {
    let settings = match read_settings(file, machine, report.errors)? {
        Ok(settings) => settings,
        Err(exit) => return Ok(exit),
    };
    here::describe(&settings, &mut report)?;
    here::hazards(file, &settings, &mut report)?;
    report_memory(report.out, report.errors)?;
    report.say("settings are good")?;
    if wish.settings_only {
        return Ok(Exit::Done);
    }
    report.out.flush()?;
    let chain = settings.certificate.as_ref().map(|certificate| &certificate.chain);
    // What there is to warn of was said.
    let to_call = settings::read_for_calls(file).map(|(to_call, _)| to_call);
    let known = match known(to_call, chain, &mut report)? {
        Ok(known) => known,
        Err(exit) => return Ok(exit),
    };
    // Serves until the end of the calls.
    let host = here::host(file, &settings, machine, &mut report)?;
    if !matches!(host, Host::Nobody) {
        let told = urls(&settings);
        let jobs: Vec<_> = told.iter().map(|url| (url, &known)).collect();
        let trials = calls(&jobs, Some(&settings.place), &mut report)?;
        let is_refused = trials.iter().any(|trial| trial.outside == Outside::Refused);
        let is_ours = |trial: &Trial<'_>| machine.addresses().contains(&trial.seen_from);
        if !is_refused && trials.iter().any(is_ours) {
            report.say("no firewall stands between this machine and itself: check --url on another machine as well")?;
        }
    }
    drop(host);
    if let Some(server) = &wish.stun {
        here::outer_address(server, &settings.place, &mut report)?;
    }
    report.verdict()
}

/// Relays of other machines, as who may call through them.
fn elsewhere(wish: &Check, file: &Path, mut report: Report<'_>) -> io::Result<Exit> {
    let to_call = match settings::read_for_calls(file) {
        Ok((to_call, warnings)) => {
            report_warnings(&warnings, report.errors)?;
            Ok(to_call)
        }
        Err(faults) => Err(faults),
    };
    let known = match known(to_call, None, &mut report)? {
        Ok(known) => known,
        Err(exit) => return Ok(exit),
    };
    let jobs: Vec<_> = wish.url.iter().map(|url| (url, &known)).collect();
    calls(&jobs, None, &mut report)?;
    report.verdict()
}

/// Relays that somebody gave out credentials for. `settings`: where the secrets are, of which one may have made them.
fn as_given(file: &Path, settings: Option<&Path>, mut report: Report<'_>) -> io::Result<Exit> {
    let given = match given::read(file) {
        Ok(given) => given,
        Err(fault) => {
            writeln!(report.errors, "--credentials: {fault}")?;
            return Ok(Exit::Failed);
        }
    };
    for server in &given {
        let (Some(settings), Some(url)) = (settings, server.urls.first()) else {
            continue;
        };
        match settings::timed_secret_of(settings, &server.ticket.username, server.ticket.password()) {
            Ok(Some(secret)) => report.say(format_args!("the credential for {url} was made with {secret}"))?,
            Ok(None) => report.say(format_args!(
                "the credential for {url} was made with no secret of these settings"
            ))?,
            Err(faults) => return report_faults(&faults, report.errors),
        }
    }
    let given = given.into_iter().map(|given| (given.urls, Known::given(given.ticket)));
    let given: Vec<_> = given.collect();
    let jobs = given
        .iter()
        .flat_map(|(urls, known)| urls.iter().map(move |url| (url, known)));
    calls(&jobs.collect::<Vec<_>>(), None, &mut report)?;
    report.verdict()
}

/// `chain`: what the settings name, if they are of the relay that is called.
fn known(
    to_call: Result<CallSettings, Faults>,
    chain: Option<&Chain>,
    report: &mut Report<'_>,
) -> io::Result<Result<Known, Exit>> {
    let to_call = match to_call {
        Ok(to_call) => to_call,
        Err(faults) => return report_faults(&faults, report.errors).map(Err),
    };
    match Known::new(to_call, chain.cloned()) {
        Ok(known) => Ok(Ok(known)),
        Err(fault) => {
            writeln!(report.errors, "{fault}")?;
            Ok(Err(Exit::Failed))
        }
    }
}

struct Report<'a> {
    out: &'a mut dyn Write,
    errors: &'a mut dyn Write,
    warned: Vec<Trouble>,
    faults: Vec<Hazard>,
    /// That came about.
    calls: usize,
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

    /// Said once, however many trials find it.
    fn fault(&mut self, hazard: &Hazard) -> io::Result<()> {
        if self.faults.contains(hazard) {
            return Ok(());
        }
        self.faults.push(hazard.clone());
        writeln!(self.errors, "fault: {}: {}", hazard.trouble.label(), hazard.advice)
    }

    fn verdict(mut self) -> io::Result<Exit> {
        let (words, exit) = match (self.faults.is_empty(), self.calls) {
            (true, 1..) => ("the relay works", Exit::Done),
            (true, 0) => ("no call was tried: nothing is known of the relay", Exit::Failed),
            (false, _) => ("the relay does not work for everybody", Exit::Failed),
        };
        self.say(words)?;
        Ok(exit)
    }
}

/// `place`: where the relay of this machine is, if it is the one that is called.
fn calls<'a>(
    jobs: &[(&'a TurnUrl, &'a Known)],
    place: Option<&Place>,
    report: &mut Report<'_>,
) -> io::Result<Vec<Trial<'a>>> {
    let ended: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .iter()
            .map(|(url, known)| scope.spawn(|| tried(url, known)))
            .collect();
        // A trial that panics is a bug that has told where it is; the others are as good.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut trials = Vec::new();
    for of_url in ended {
        match of_url {
            Ok(of_url) => trials.extend(of_url),
            Err(leads_nowhere) => report.fault(&leads_nowhere)?,
        }
    }
    for hazard in silent_hosts(&mut trials, place) {
        report.fault(&hazard)?;
    }
    for trial in &trials {
        report.calls += usize::from(trial.figures.is_some());
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
    // What a TURN client finds, WebRTC finds no other way. The library knows UDP alone, and binds to IPv4.
    let over_udp = || {
        trials
            .iter()
            .filter(|trial| trial.figures.is_some() && trial.url.transport == Transport::Udp)
    };
    match over_udp().find(|trial| trial.server.is_ipv4()) {
        Some(trial) => webrtc(trial, report)?,
        None if over_udp().next().is_some() => {
            report.say("the WebRTC client knows IPv4 alone: only the TURN client has called")?;
        }
        None => {}
    }
    if trials.iter().any(|trial| trial.outside == Outside::Refused) {
        report.say(
            "whether the world reaches relayed addresses cannot be told from here: check --url on another machine",
        )?;
    }
    Ok(trials)
}

/// If of a host's one address family not one URL gave any answer, that is one fault in place of one of each transport.
fn silent_hosts(trials: &mut [Trial<'_>], place: Option<&Place>) -> Vec<Hazard> {
    let mut silent: Vec<(String, SocketAddr)> = Vec::new();
    for trial in trials.iter() {
        let is_known = silent.iter().any(|(host, server)| is_of(trial, host, *server));
        let of_host = || {
            trials
                .iter()
                .filter(|other| is_of(other, &trial.url.host, trial.server))
        };
        if !is_known && of_host().all(|other| other.is_silent) {
            silent.push((trial.url.host.clone(), trial.server));
        }
    }
    for (host, server) in &silent {
        for trial in trials.iter_mut().filter(|trial| is_of(trial, host, *server)) {
            trial.found.clear();
        }
    }
    let hazards = silent.iter().map(|(host, server)| {
        let ip = server.ip().to_string();
        let host = if *host == ip { ip } else { format!("{host} ({ip})") };
        let here = place.and_then(|place| here::answering(&place.listeners, server.is_ipv6()));
        match here {
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
        }
    });
    hazards.collect()
}

fn is_of(trial: &Trial<'_>, host: &str, server: SocketAddr) -> bool {
    trial.url.host == host && trial.server.is_ipv6() == server.is_ipv6()
}

#[cfg(feature = "call")]
fn webrtc(trial: &Trial<'_>, report: &mut Report<'_>) -> io::Result<()> {
    // Its library asks for one of the process; it brings a second kind of its own.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Some(ticket) = trial.known.tickets.first() else {
        return Ok(());
    };
    // Not the name: of its addresses the library would take one that it cannot reach.
    let url = TurnUrl {
        host: trial.server.ip().to_string(),
        ..trial.url.clone()
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
    let told = trial.told();
    let what = match call {
        Ok(call) if trial::is_a_call(&call.round_trips, call.sent) => {
            return report.say(format_args!(
                "{told}: WebRTC works: set up in {}, {}",
                trial::milliseconds(call.set_up),
                trial::passage(&call.round_trips, call.sent)
            ));
        }
        Ok(call) => format!("of its packets {} of {} come back", call.round_trips.len(), call.sent),
        Err(fault) => fault.to_string(),
    };
    report.fault(&Hazard::new(
        Trouble::NoMedia,
        format!("{told} serves a TURN client, and no WebRTC call comes about: {what}"),
    ))
}

#[cfg(not(feature = "call"))]
fn webrtc(_: &Trial<'_>, report: &mut Report<'_>) -> io::Result<()> {
    report.say("this program was built without its WebRTC client: only the TURN client has called")
}

#[cfg(feature = "call")]
const WEBRTC_PACKETS: u32 = 50;
#[cfg(feature = "call")]
const WEBRTC_PATIENCE: Duration = Duration::from_secs(20);
