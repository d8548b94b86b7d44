//! What clients are told: where the relay is, and a name that is nobody's with its password.
//!
//! In: settings, the time. Out: [`TurnUrl`]s, the fastest way first, and a [`Ticket`]. Never: a name that says more than when it ends.

use crate::settings::Settings;
use quietline_shared::redact::Secret;
use quietline_shared::timed;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use turn_core::auth::Credentials;
use turn_core::wire::Transport;

/// A relay as an ICE server has it (RFC 7065): `turn:host:port?transport=…`, or `turns:` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnUrl {
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    pub port: u16,
    pub transport: Transport,
}

impl fmt::Display for TurnUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, transport) = match self.transport {
            Transport::Udp => ("turn", "udp"),
            Transport::Tcp => ("turn", "tcp"),
            Transport::Tls => ("turns", "tcp"),
        };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(
            f,
            "{scheme}:{open}{}{close}:{}?transport={transport}",
            self.host, self.port
        )
    }
}

/// What such a URL looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a URL such as turn:turn.example.org:3478?transport=udp, …?transport=tcp or turns:turn.example.org:443")]
pub struct NoTurnUrl;

impl FromStr for TurnUrl {
    type Err = NoTurnUrl;

    fn from_str(text: &str) -> Result<Self, NoTurnUrl> {
        let (rest, is_tls) = match (text.strip_prefix("turn:"), text.strip_prefix("turns:")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(NoTurnUrl),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let transport = match (is_tls, query) {
            (false, "" | "transport=udp") => Transport::Udp,
            (false, "transport=tcp") => Transport::Tcp,
            (true, "" | "transport=tcp") => Transport::Tls,
            _ => return Err(NoTurnUrl),
        };
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => {
                let (host, rest) = v6.split_once(']').ok_or(NoTurnUrl)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| NoTurnUrl)?;
                match rest {
                    "" => (host, None),
                    port => (host, Some(port.strip_prefix(':').ok_or(NoTurnUrl)?)),
                }
            }
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        // RFC 7065 §3.1: 3478, with TLS 5349.
        let usual = if is_tls { 5349 } else { 3478 };
        let port = port.map_or(Ok(usual), str::parse).map_err(|_| NoTurnUrl)?;
        let is_address = host.parse::<IpAddr>().is_ok();
        if port == 0 || !is_address && rustls::pki_types::DnsName::try_from(host).is_err() {
            return Err(NoTurnUrl);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            transport,
        })
    }
}

/// Where clients find us, the fastest way first.
pub fn urls(settings: &Settings) -> Vec<TurnUrl> {
    let ports = &settings.fixed.listen.ports;
    let Some(port) = ports.first() else {
        return Vec::new();
    };
    let hosts = hosts(settings);
    let all = |transport, port: u16| {
        hosts.iter().map(move |host| TurnUrl {
            host: host.clone(),
            port,
            transport,
        })
    };
    let mut urls: Vec<TurnUrl> = all(Transport::Udp, *port).chain(all(Transport::Tcp, *port)).collect();
    if settings.certificate.is_some() {
        // What firewalls let through, if it is there.
        let port = [443, 5349].iter().find(|known| ports.contains(known)).unwrap_or(port);
        urls.extend(all(Transport::Tls, *port));
    }
    urls
}

/// The name; without one the addresses by which the world knows those that we listen and relay on; or all that we listen on.
fn hosts(settings: &Settings) -> Vec<String> {
    if let Some(name) = &settings.fixed.listen.name {
        return vec![name.clone()];
    }
    let relays = || (0..).map_while(|number| settings.place.relays.get(number));
    let is_listened_on = |address: IpAddr| settings.place.listeners.iter().any(|listener| listener.ip() == address);
    let mut addresses: Vec<IpAddr> = relays()
        .filter(|relay| is_listened_on(relay.bind))
        .map(|relay| relay.advertised)
        .collect();
    if addresses.is_empty() {
        addresses = settings.place.listeners.iter().map(|listener| listener.ip()).collect();
        addresses.dedup();
    }
    addresses.iter().map(IpAddr::to_string).collect()
}

/// A timed name, a time and 128 random bits, with its password.
pub struct Ticket {
    pub username: String,
    password: Secret<String>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTicket {
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    #[error("these settings have users and no timed secret: add [[auth.timed]]")]
    NoTimedSecret,
}

impl Ticket {
    /// Good until `expiry`, seconds since 1970.
    pub fn new(credentials: &Credentials, expiry: u64) -> Result<Self, NoTicket> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| NoTicket::NoRandomness)?;
        let username = timed::username(expiry, &random);
        let password = credentials.timed_password(username.as_bytes());
        Ok(Self {
            password: password.ok_or(NoTicket::NoTimedSecret)?,
            username,
        })
    }

    /// Of a user who has a name and password of their own.
    pub fn of_user(username: String, password: Secret<String>) -> Self {
        Self { username, password }
    }

    pub fn password(&self) -> &str {
        self.password.expose()
    }

    /// One of a browser's `iceServers`.
    pub fn ice_server(&self, urls: &[TurnUrl]) -> serde_json::Value {
        let urls: Vec<String> = urls.iter().map(TurnUrl::to_string).collect();
        serde_json::json!({ "urls": urls, "username": self.username, "credential": self.password() })
    }
}

/// Seconds since 1970 at which what begins now and lasts so long ends.
pub fn expiry(life: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().saturating_add(life).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_it_is_written() {
        for text in [
            "turn:turn.example.org:3478?transport=udp",
            "turn:192.0.2.1:80?transport=tcp",
            "turns:[2001:db8::1]:443?transport=tcp",
        ] {
            let url: TurnUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
        let written = |text: &str| text.parse::<TurnUrl>().map(|url| url.to_string());
        assert_eq!(
            written("turn:a.example"),
            Ok("turn:a.example:3478?transport=udp".to_owned())
        );
        assert_eq!(written("turns:[::1]"), Ok("turns:[::1]:5349?transport=tcp".to_owned()));
        for wrong in [
            "",
            "turn:",
            "stun:a.example",
            "turns:a.example?transport=udp",
            "turn:a.example:0",
            "turn:a.example:70000",
            "turn:[::1",
            "turn:[nonsense]:5",
            "turn:[::1]x",
            "turn:a b",
            "turn:::1",
        ] {
            assert_eq!(written(wrong), Err(NoTurnUrl), "{wrong}");
        }
    }
}
