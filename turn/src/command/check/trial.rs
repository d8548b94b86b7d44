//! One URL tried as a client would: an address, a call through it, packets from outside.
//!
//! In: a URL, tickets, what the settings say. Out: [`Trial`]: what was found wrong, and how well it goes. Never: waits for anything
//! without a deadline.

use super::client::{Client, ClientFault};
use super::link::{Link, any};
use crate::hazards::{Hazard, Trouble, chain_hazard, is_private};
use crate::offer::{NoTicket, Ticket, TurnUrl, expiry};
use crate::settings::{self, Chain, Settings};
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use turn_core::wire::{ChannelNumber, Transport};

/// What is known before.
pub struct Known {
    /// The first is right; the others would be if the clock of the relay were off.
    pub tickets: Vec<Ticket>,
    realm: String,
    /// What the settings name, if they are of the relay that is tried.
    chain: Option<Chain>,
}

impl Known {
    pub fn new(file: &Path, settings: &Settings, is_ours: bool) -> Result<Self, NoTicket> {
        let (now, longest) = (expiry(Duration::ZERO), settings.limits.timed_max_life);
        let short = expiry(CREDENTIAL_LIFE.min(longest));
        let off = [
            expiry(longest.saturating_sub(CREDENTIAL_LIFE)),
            now.saturating_sub(longest.as_secs() / 2),
        ];
        let made = |expiry| Ticket::new(&settings.credentials, expiry);
        let tickets = match made(short) {
            Ok(first) => std::iter::once(first)
                .chain(off.into_iter().filter_map(|expiry| made(expiry).ok()))
                .collect(),
            Err(fault) => {
                let (name, password) = settings::first_user(file).ok_or(fault)?;
                vec![Ticket::of_user(name, password)]
            }
        };
        let certificate = settings.certificate.as_ref().filter(|_| is_ours);
        Ok(Self {
            tickets,
            realm: settings.credentials.realm().to_owned(),
            chain: certificate.map(|certificate| certificate.chain.clone()),
        })
    }
}

pub struct Trial {
    pub url: TurnUrl,
    pub found: Vec<Hazard>,
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

impl Trial {
    /// The library knows UDP alone.
    pub fn is_for_webrtc(&self) -> bool {
        self.figures.is_some() && self.url.transport == Transport::Udp
    }

    fn find(&mut self, trouble: Trouble, advice: impl Into<String>) {
        self.found.push(Hazard::new(trouble, advice));
    }
}

impl Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.url;
        let Some(figures) = &self.figures else {
            return write!(f, "{url}: no call");
        };
        let passage = passage(&figures.round_trips, figures.sent);
        write!(
            f,
            "{url}: a call works: set up in {}, {passage}",
            milliseconds(figures.set_up)
        )?;
        match self.outside {
            Outside::Reached => f.write_str("; packets of others arrive"),
            Outside::NotReached => f.write_str("; packets of others do not arrive"),
            Outside::Refused | Outside::NotTried => Ok(()),
        }
    }
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

pub fn tried(url: &TurnUrl, known: &Known) -> Trial {
    let mut trial = Trial {
        url: url.clone(),
        found: Vec::new(),
        answers: false,
        figures: None,
        outside: Outside::NotTried,
        seen_from: Ipv4Addr::UNSPECIFIED.into(),
    };
    let servers = resolved(&url.host, url.port);
    match servers.first() {
        Some(server) => run(&mut trial, *server, &servers, known),
        None => trial.find(
            Trouble::Name,
            format!("{} leads nowhere: look at its A and AAAA records", url.host),
        ),
    }
    trial
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

fn run(trial: &mut Trial, server: SocketAddr, servers: &[SocketAddr], known: &Known) {
    let Some(ticket) = known.tickets.first() else {
        return;
    };
    let began = Instant::now();
    let Some(mut first) = opened(trial, server, ticket, known) else {
        return;
    };
    let mapped = match first.mapped() {
        Ok(mapped) => mapped,
        Err(fault) => return silent(trial, fault),
    };
    trial.answers = true;
    trial.seen_from = mapped.ip();
    let Some(relayed) = allocated(trial, &mut first, server, known) else {
        return;
    };
    match call(trial, &mut first, relayed, server, known) {
        Ok(round_trips) if !round_trips.is_empty() => {
            let set_up = began.elapsed().saturating_sub(round_trips.iter().sum());
            trial.figures = Some(Figures {
                set_up,
                round_trips,
                sent: PACKETS,
            });
        }
        Ok(_) | Err(_) => trial.find(
            Trouble::NoMedia,
            format!(
                "{} gives relayed addresses, and nothing comes through them: look at the log and shard_lost_total",
                trial.url
            ),
        ),
    }
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

fn opened(trial: &mut Trial, server: SocketAddr, ticket: &Ticket, known: &Known) -> Option<Client> {
    match Link::open(server, &trial.url.host, trial.url.transport, PATIENCE) {
        Ok((link, chain)) => {
            // Once is enough: the second client of a call is shown the same.
            if let Some(chain) = chain.filter(|_| !trial.answers) {
                judge(trial, &chain, known);
            }
            Some(Client::new(link, ticket, PATIENCE))
        }
        Err(fault) => {
            silent(trial, fault.into());
            None
        }
    }
}

fn judge(trial: &mut Trial, chain: &Chain, known: &Known) {
    trial.found.extend(chain_hazard(chain, expiry(Duration::ZERO)));
    let host = trial.url.host.clone();
    if !chain.is_for(&host) {
        trial.find(
            Trouble::CertificateName,
            format!("the certificate is not for {host}: clients refuse it. Get one for that name"),
        );
    }
    if known.chain.as_ref().is_some_and(|ours| ours != chain) {
        trial.find(
            Trouble::CertificateOther,
            "another certificate is served than the settings name: reload the relay (SIGHUP), or another program has the port",
        );
    }
}

/// Nothing came back, or nothing that makes sense.
fn silent(trial: &mut Trial, fault: ClientFault) {
    let (url, transport) = (trial.url.clone(), trial.url.transport);
    let trouble = match (fault, transport) {
        (ClientFault::NotTurn | ClientFault::Refused(_), Transport::Udp | Transport::Tcp) => Trouble::OtherServer,
        (_, Transport::Udp) => Trouble::UdpBlocked,
        (_, Transport::Tcp) => Trouble::TcpBlocked,
        (_, Transport::Tls) => Trouble::TlsBlocked,
    };
    let protocol = if transport == Transport::Udp { "UDP" } else { "TCP" };
    let advice = match (trouble, fault) {
        (Trouble::OtherServer, _) => format!("what answers at {url} is no TURN server: which program has the port?"),
        (Trouble::TlsBlocked, ClientFault::NotTurn) => {
            format!("no TLS handshake at {url}: has the relay a certificate, and is it the relay that answers?")
        }
        (_, ClientFault::Closed) => format!(
            "{url} refuses: nothing listens there, or a firewall turns {protocol} away. Is the relay running, is port {} in [listen] ports?",
            url.port
        ),
        _ => format!(
            "nothing comes back from {url}: let {protocol} in to port {} in the firewall of the machine and of its provider",
            url.port
        ),
    };
    trial.find(trouble, advice);
}

fn allocated(trial: &mut Trial, client: &mut Client, server: SocketAddr, known: &Known) -> Option<SocketAddr> {
    let fault = match client.allocate() {
        Ok(relayed) => return Some(relayed),
        Err(fault) => fault,
    };
    match fault {
        ClientFault::Refused(_) if client.realm != known.realm => {
            let advice = format!(
                "what answers at {} has the realm \"{}\", and the settings have \"{}\": it is another relay, or it was not restarted",
                trial.url,
                client.realm.escape_default(),
                known.realm
            );
            trial.find(Trouble::OtherServer, advice);
        }
        ClientFault::Refused(401) if accepts_another_time(&trial.url, server, known) => trial.find(
            Trouble::ClockOff,
            "the relay takes only credentials of another time: its clock and this one differ. Set both right (timedatectl)",
        ),
        ClientFault::Refused(401) => {
            let advice = format!(
                "{} refuses a credential made with these settings: the relay there has another secret, or was not reloaded (SIGHUP)",
                trial.url
            );
            trial.find(Trouble::WrongSecret, advice);
        }
        ClientFault::Refused(code @ (486 | 508)) => {
            let advice = format!("the relay answers and gives no address ({code}): [limits], files or ports are used up");
            trial.find(Trouble::Full, advice);
        }
        fault => trial.find(Trouble::NoMedia, format!("{} gives no relayed address: {fault}", trial.url)),
    }
    None
}

/// Whether a name with another end is good where the right one is not.
fn accepts_another_time(url: &TurnUrl, server: SocketAddr, known: &Known) -> bool {
    known.tickets.iter().skip(1).any(|ticket| {
        let link = Link::open(server, &url.host, url.transport, PATIENCE);
        let mut client = match link {
            Ok((link, _)) => Client::new(link, ticket, PATIENCE),
            Err(_) => return false,
        };
        let is_good = client.allocate().is_ok();
        client.release();
        is_good
    })
}

/// Two clients, a channel each way, packets as a call has them.
fn call(
    trial: &mut Trial,
    first: &mut Client,
    relayed: SocketAddr,
    server: SocketAddr,
    known: &Known,
) -> Result<Vec<Duration>, ClientFault> {
    let ticket = known.tickets.first().ok_or(ClientFault::NotTurn)?;
    let mut second = opened(trial, server, ticket, known).ok_or(ClientFault::Closed)?;
    let theirs = second.allocate()?;
    let channel = ChannelNumber::new(0x4000).ok_or(ClientFault::NotTurn)?;
    first.bind(channel, theirs)?;
    second.bind(channel, relayed)?;
    let mut round_trips = Vec::new();
    for number in 0..PACKETS {
        let mut packet = number.to_be_bytes().to_vec();
        packet.resize(LENGTH, 0);
        let sent = Instant::now();
        let passed = first
            .send(channel, &packet)
            .and_then(|()| second.arrival(LATE))
            .and_then(|came| second.send(channel, &came))
            .and_then(|()| first.arrival(LATE));
        match passed {
            Ok(back) if back == packet => round_trips.push(sent.elapsed()),
            // One that was given up before.
            Ok(_) | Err(ClientFault::Silence) => {}
            Err(fault) => return Err(fault),
        }
        // After a few that are lost the rest would be too, and each takes its time.
        if number as usize > 4 + 2 * round_trips.len() {
            break;
        }
    }
    second.release();
    Ok(round_trips)
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
