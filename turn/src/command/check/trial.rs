//! One URL tried as a client would: an address, a call through it, packets from outside.
//!
//! In: a URL, tickets, what the settings say. Out: a [`Trial`] of each address family that the URL leads to: what was found wrong, and how
//! well it goes. Never: waits for anything without a deadline.

use super::client::{Client, ClientFault};
use super::link::{Link, Stage, any, has_route};
use crate::hazards::{Hazard, Trouble, chain_hazard, is_private};
use crate::offer::{NoTicket, Ticket, TurnUrl, expiry};
use crate::settings::{CallSettings, Caller, Chain};
use quietline_shared::timed;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use turn_core::wire::{ChannelNumber, Transport};

/// What is known before.
pub struct Known {
    /// The first is right; the others would be if the clock of the relay were off.
    pub tickets: Vec<Ticket>,
    /// `None`: there are no settings to say it.
    realm: Option<String>,
    /// What the settings name, if they are of the relay that is tried.
    chain: Option<Chain>,
}

impl Known {
    pub fn new(settings: CallSettings, chain: Option<Chain>) -> Result<Self, NoTicket> {
        let (now, longest) = (expiry(Duration::ZERO), settings.timed_max_life);
        let tickets = match settings.caller {
            Caller::User { name, password } => vec![Ticket::of_user(name, password)],
            Caller::Timed(credentials) => {
                let ends = [
                    expiry(CREDENTIAL_LIFE.min(longest)),
                    expiry(longest.saturating_sub(CREDENTIAL_LIFE)),
                    now.saturating_sub(longest.as_secs() / 2),
                ];
                let tickets = ends.into_iter().map(|end| Ticket::new(&credentials, end));
                tickets.collect::<Result<_, _>>()?
            }
        };
        Ok(Self {
            tickets,
            realm: Some(settings.realm),
            chain,
        })
    }

    /// One that somebody gave out.
    pub fn given(ticket: Ticket) -> Self {
        Self {
            tickets: vec![ticket],
            realm: None,
            chain: None,
        }
    }
}

pub struct Trial<'a> {
    pub url: &'a TurnUrl,
    /// Of the addresses of one family to which the URL leads, the first.
    pub server: SocketAddr,
    pub known: &'a Known,
    pub found: Vec<Hazard>,
    /// Without a way to addresses of that family nothing was tried.
    pub has_route: bool,
    /// Whether nothing at all came back, not even a connection.
    pub is_silent: bool,
    /// Whether anything of TURN came back.
    pub answers: bool,
    pub figures: Option<Figures>,
    pub outside: Outside,
    /// This machine, as the server sees it.
    pub seen_from: IpAddr,
}

/// A call of two clients.
pub struct Figures {
    pub set_up: Duration,
    /// Of each packet that came back.
    pub round_trips: Vec<Duration>,
    pub sent: u32,
}

/// Whether packets of somebody who is no client reach a relayed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    Reached,
    NotReached,
    /// The relay lets nobody talk to this machine: it is its own, or its address is private.
    Refused,
    NotTried,
}

impl Trial<'_> {
    /// The URL, and where its name leads.
    pub fn told(&self) -> String {
        let ip = self.server.ip();
        match self.url.host.parse::<IpAddr>() {
            Ok(_) => self.url.to_string(),
            Err(_) => format!("{} at {ip}", self.url),
        }
    }

    pub const fn family(&self) -> &'static str {
        if self.server.is_ipv6() { "IPv6" } else { "IPv4" }
    }

    fn find(&mut self, trouble: Trouble, advice: impl Into<String>) {
        self.found.push(Hazard::new(trouble, advice));
    }
}

impl Display for Trial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.told();
        let Some(figures) = &self.figures else {
            return match self.has_route {
                true => write!(f, "{told}: no call"),
                false => write!(
                    f,
                    "{told}: not tried, as this machine has no way to {} addresses",
                    self.family()
                ),
            };
        };
        let passage = passage(&figures.round_trips, figures.sent);
        write!(
            f,
            "{told}: a call works: set up in {}, {passage}",
            milliseconds(figures.set_up)
        )?;
        match self.outside {
            Outside::Reached => f.write_str("; packets of others arrive"),
            Outside::NotReached => f.write_str("; packets of others do not arrive"),
            Outside::Refused | Outside::NotTried => Ok(()),
        }
    }
}

/// Whether one understands a call of which so many packets came; the page draws the line there too.
pub const fn is_a_call(round_trips: &[Duration], sent: u32) -> bool {
    round_trips.len() > sent as usize / 2
}

/// Of packets that were sent, those that came back.
pub fn passage(round_trips: &[Duration], sent: u32) -> String {
    let mut sorted = round_trips.to_vec();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let lost = (sent as usize).saturating_sub(sorted.len());
    format!("{} round trip, {lost} of {sent} packets lost", milliseconds(median))
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

/// One trial of each address family; `Err`: the name leads nowhere.
pub fn tried<'a>(url: &'a TurnUrl, known: &'a Known) -> Result<Vec<Trial<'a>>, Hazard> {
    let servers = resolved(&url.host, url.port);
    if servers.is_empty() {
        return Err(leads_nowhere(&url.host));
    }
    let first = |is_v6| servers.iter().find(|server| server.is_ipv6() == is_v6);
    let trial = |server: SocketAddr| {
        let mut trial = Trial {
            url,
            server,
            known,
            found: Vec::new(),
            has_route: has_route(server),
            is_silent: false,
            answers: false,
            figures: None,
            outside: Outside::NotTried,
            seen_from: Ipv4Addr::UNSPECIFIED.into(),
        };
        if trial.has_route {
            run(&mut trial, &servers);
        }
        trial
    };
    Ok(std::thread::scope(|scope| {
        let firsts = [false, true].into_iter().filter_map(first);
        let threads: Vec<_> = firsts.map(|server| scope.spawn(|| trial(*server))).collect();
        // A trial that panics is a bug that has told where it is; the others are as good.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    }))
}

pub fn leads_nowhere(host: &str) -> Hazard {
    Hazard::new(
        Trouble::Name,
        format!("{host} leads nowhere: look at its A and AAAA records"),
    )
}

/// IPv4 first: everybody has it. Empty if the name is not known in time.
pub fn resolved(host: &str, port: u16) -> Vec<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return vec![SocketAddr::new(address, port)];
    }
    let (tell, told) = mpsc::channel();
    let host = host.to_owned();
    // The system's resolver has no deadline; a thread that is left behind ends by itself.
    std::thread::spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        let _ = tell.send(found.map(Iterator::collect::<Vec<_>>).unwrap_or_default());
    });
    let mut found = told.recv_timeout(PATIENCE).unwrap_or_default();
    found.sort_by_key(SocketAddr::is_ipv6);
    found
}

fn run(trial: &mut Trial<'_>, servers: &[SocketAddr]) {
    let began = Instant::now();
    let Some(mut first) = opened(trial) else {
        return;
    };
    let mapped = match first.mapped() {
        Ok(mapped) => mapped,
        Err(fault) => return silent(trial, Stage::Asking, fault),
    };
    trial.answers = true;
    trial.seen_from = mapped.ip();
    let Some(relayed) = allocated(trial, &mut first) else {
        return;
    };
    trial.figures = call(trial, &mut first, relayed, began);
    trial.outside = outside(&mut first, mapped, relayed);
    first.release();
    if trial.outside == Outside::NotReached {
        let (trouble, advice) = unreached(relayed.ip(), servers);
        trial.find(trouble, advice);
    }
}

/// Why nobody reaches a relayed address of a server that answers.
fn unreached(relayed: IpAddr, servers: &[SocketAddr]) -> (Trouble, String) {
    let known_as: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
    if known_as.contains(&relayed) {
        let advice = format!(
            "packets do not reach relayed addresses of {relayed}: let UDP in to the [relay] ports, in the firewall of the machine and of its \
             provider"
        );
        (Trouble::RelayPortsBlocked, advice)
    } else if is_private(relayed) && !known_as.iter().all(|address| is_private(*address)) {
        let advice = format!(
            "clients are told {relayed}, which nobody outside reaches: set [[relay.address]] advertised to the outer address"
        );
        (Trouble::ExternalMissing, advice)
    } else {
        let seen = known_as.first().map_or_else(String::new, IpAddr::to_string);
        let advice = format!(
            "clients are told {relayed}, and packets sent there do not arrive, while the relay answers at {seen}: set [[relay.address]] \
             advertised to the outer address"
        );
        (Trouble::ExternalWrong, advice)
    }
}

fn opened(trial: &mut Trial<'_>) -> Option<Client> {
    let ticket = trial.known.tickets.first()?;
    match Link::open(trial.server, &trial.url.host, trial.url.transport, PATIENCE) {
        Ok((link, chain)) => {
            // Once is enough: the second client of a call is shown the same.
            if let Some(chain) = chain.filter(|_| !trial.answers) {
                judge(trial, &chain);
            }
            Some(Client::new(link, ticket, PATIENCE))
        }
        Err((stage, fault)) => {
            silent(trial, stage, fault.into());
            None
        }
    }
}

fn judge(trial: &mut Trial<'_>, chain: &Chain) {
    trial.found.extend(chain_hazard(chain, expiry(Duration::ZERO)));
    let host = trial.url.host.clone();
    if !chain.is_for(&host) {
        trial.find(
            Trouble::CertificateName,
            format!("the certificate is not for {host}: clients refuse it. Get one for that name"),
        );
    }
    if trial.known.chain.as_ref().is_some_and(|ours| ours != chain) {
        trial.find(
            Trouble::CertificateOther,
            "another certificate is served than the settings name: reload the relay (SIGHUP), or another program has the port",
        );
    }
}

/// Nothing came back, or nothing that makes sense.
fn silent(trial: &mut Trial<'_>, stage: Stage, fault: ClientFault) {
    let (told, transport, port) = (trial.told(), trial.url.transport, trial.url.port);
    let blocked = match transport {
        Transport::Udp => Trouble::UdpBlocked,
        Transport::Tcp => Trouble::TcpBlocked,
        Transport::Tls => Trouble::TlsBlocked,
    };
    let protocol = if transport == Transport::Udp { "UDP" } else { "TCP" };
    let (trouble, advice) = match (stage, fault) {
        (Stage::ShakingHands, ClientFault::NotTurn) => (
            Trouble::OtherServer,
            format!("what answers at {told} speaks no TLS: which program has the port?"),
        ),
        (Stage::ShakingHands, _) => (
            blocked,
            format!(
                "{told} takes a connection and no TLS handshake comes about: has the relay a certificate, and is it the relay that answers?"
            ),
        ),
        (Stage::Asking, ClientFault::NotTurn | ClientFault::Refused(_)) => (
            Trouble::OtherServer,
            format!("what answers at {told} is no TURN server: which program has the port?"),
        ),
        // No firewall lets a connection come about.
        (Stage::Asking, ClientFault::Closed) if transport.is_stream() => (
            Trouble::OtherServer,
            format!(
                "{told} takes a connection and ends it without an answer: which program has the port? A relay does so when [streams] are used up"
            ),
        ),
        (Stage::Asking, _) if transport.is_stream() => (
            Trouble::OtherServer,
            format!(
                "{told} takes a connection and answers nothing: which program has the port, or what on the way lets no TURN pass?"
            ),
        ),
        (_, ClientFault::Closed) => (
            blocked,
            format!(
                "{told} refuses: nothing listens there, or a firewall turns {protocol} away. Is the relay running, is port {port} in [listen] \
                 ports?"
            ),
        ),
        _ => (
            blocked,
            format!(
                "nothing comes back from {told}: let {protocol} in to port {port} in the firewall of the machine and of its provider"
            ),
        ),
    };
    trial.is_silent = !trial.answers && trouble == blocked && stage != Stage::ShakingHands;
    trial.find(trouble, advice);
}

fn allocated(trial: &mut Trial<'_>, client: &mut Client) -> Option<SocketAddr> {
    let fault = match client.allocate() {
        Ok(relayed) => return Some(relayed),
        Err(fault) => fault,
    };
    let told = trial.told();
    match (fault, &trial.known.realm) {
        (ClientFault::Refused(_), Some(realm)) if *realm != client.realm => {
            let advice = format!(
                "what answers at {told} has the realm \"{}\", and the settings have \"{realm}\": it is another relay, or it was not restarted",
                client.realm.escape_default(),
            );
            trial.find(Trouble::OtherServer, advice);
        }
        (ClientFault::Refused(401), Some(_)) if accepts_another_time(trial) => trial.find(
            Trouble::ClockOff,
            "the relay takes only credentials of another time: its clock and this one differ. Set both right (timedatectl)",
        ),
        (ClientFault::Refused(401), Some(_)) => {
            let advice = format!(
                "{told} refuses a credential made with these settings: the relay there has another secret, or was not reloaded (SIGHUP)"
            );
            trial.find(Trouble::WrongSecret, advice);
        }
        (ClientFault::Refused(401), None) => {
            let (trouble, advice) = given_refused(trial, &told);
            trial.find(trouble, advice);
        }
        (ClientFault::Refused(code @ (486 | 508)), _) => {
            let advice = format!("the relay answers and gives no address ({code}): [limits], files or ports are used up");
            trial.find(Trouble::Full, advice);
        }
        (fault, _) => trial.find(Trouble::NoMedia, format!("{told} gives no relayed address: {fault}")),
    }
    None
}

/// Why a credential that somebody gave out may be refused.
fn given_refused(trial: &Trial<'_>, told: &str) -> (Trouble, String) {
    let ticket = trial.known.tickets.first();
    let end = ticket.and_then(|ticket| timed::expiry(ticket.username.as_bytes()));
    let over = end.and_then(|end| expiry(Duration::ZERO).checked_sub(end));
    match over {
        Some(over) => (
            Trouble::ClockOff,
            format!(
                "{told} refuses the credential, which ended {over} s ago: get a new one, or set the clock right where it was made"
            ),
        ),
        None => (
            Trouble::WrongSecret,
            format!(
                "{told} refuses the credential: the relay there has another secret than who gave it out, was not reloaded (SIGHUP), or lets \
                 none live so long ([limits] timed_max_life)"
            ),
        ),
    }
}

/// Whether a name with another end is good where the right one is not.
fn accepts_another_time(trial: &Trial<'_>) -> bool {
    trial.known.tickets.iter().skip(1).any(|ticket| {
        let link = Link::open(trial.server, &trial.url.host, trial.url.transport, PATIENCE);
        let mut client = match link {
            Ok((link, _)) => Client::new(link, ticket, PATIENCE),
            Err(_) => return false,
        };
        let is_good = client.allocate().is_ok();
        client.release();
        is_good
    })
}

/// Two clients, a channel each way, packets as a call has them. `None`: what keeps it from being a call was found.
fn call(trial: &mut Trial<'_>, first: &mut Client, relayed: SocketAddr, began: Instant) -> Option<Figures> {
    let mut second = opened(trial)?;
    let theirs = allocated(trial, &mut second)?;
    let channel = ChannelNumber::new(0x4000)?;
    let joined = first.bind(channel, theirs).and_then(|()| second.bind(channel, relayed));
    let set_up = began.elapsed();
    let figures = joined.map(|()| echoes(first, &mut second, channel, set_up));
    second.release();
    let advice = match figures {
        Ok(figures) if is_a_call(&figures.round_trips, figures.sent) => return Some(figures),
        Ok(Figures { round_trips, sent, .. }) => {
            let came = match round_trips.len() {
                0 => "nothing comes".to_owned(),
                came => format!("{came} of {sent} packets come"),
            };
            format!(
                "{} gives relayed addresses, and {came} through them: look at the log and shard_lost_total",
                trial.told()
            )
        }
        Err(fault) => format!(
            "{} gives relayed addresses, and no channel between them: {fault}",
            trial.told()
        ),
    };
    trial.find(Trouble::NoMedia, advice);
    None
}

/// Packets through both relayed addresses and back, one after the other.
fn echoes(first: &mut Client, second: &mut Client, channel: ChannelNumber, set_up: Duration) -> Figures {
    let mut figures = Figures {
        set_up,
        round_trips: Vec::new(),
        sent: 0,
    };
    while figures.sent < PACKETS {
        let mut packet = figures.sent.to_be_bytes().to_vec();
        packet.resize(LENGTH, 0);
        let sent = Instant::now();
        let passed = first
            .send(channel, &packet)
            .and_then(|()| second.arrival(LATE))
            .and_then(|came| second.send(channel, &came))
            .and_then(|()| first.arrival(LATE));
        figures.sent += 1;
        match passed {
            Ok(back) if back == packet => figures.round_trips.push(sent.elapsed()),
            // One that was given up before.
            Ok(_) | Err(ClientFault::Silence) => {}
            Err(_) => break,
        }
        // After a few that are lost the rest would be too, and each takes its time.
        if figures.sent as usize > 5 + 2 * figures.round_trips.len() {
            break;
        }
    }
    figures
}

/// Packets from a socket that is no client's to the relayed address, the way every caller's go.
fn outside(client: &mut Client, mapped: SocketAddr, relayed: SocketAddr) -> Outside {
    if mapped.is_ipv4() != relayed.is_ipv4() {
        return Outside::NotTried;
    }
    match client.permit(mapped) {
        Ok(()) => {}
        Err(ClientFault::Refused(403)) => return Outside::Refused,
        Err(_) => return Outside::NotTried,
    }
    let Ok(stranger) = UdpSocket::bind(any(relayed)) else {
        return Outside::NotTried;
    };
    for number in 0..KNOCKS {
        let mut knock = *b"quietline-turn check, knock 0000";
        if let Some(end) = knock.last_chunk_mut() {
            *end = number.to_be_bytes();
        }
        // Refused by ICMP is not reached; the next knock says the same.
        let _ = stranger.send_to(&knock, relayed);
        if client
            .arrival(BETWEEN_KNOCKS)
            .is_ok_and(|came| came.starts_with(b"quietline-turn check"))
        {
            return Outside::Reached;
        }
    }
    Outside::NotReached
}

/// Every answer is waited for so long.
const PATIENCE: Duration = Duration::from_secs(4);
/// As an audio call has them.
const PACKETS: u32 = 50;
const LENGTH: usize = 172;
const LATE: Duration = Duration::from_millis(500);
const KNOCKS: u32 = 20;
const BETWEEN_KNOCKS: Duration = Duration::from_millis(100);
/// Of a credential that is made for one check.
const CREDENTIAL_LIFE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_more_than_half_of_its_packets() {
        let came = |count| vec![Duration::from_millis(1); count];
        assert!(!is_a_call(&came(1), 50) && !is_a_call(&came(25), 50) && !is_a_call(&came(0), 0));
        assert!(is_a_call(&came(26), 50) && is_a_call(&came(1), 1));
    }
}
