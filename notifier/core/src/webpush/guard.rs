//! Which push servers may be contacted at all: nobody may make us talk to our own networks.
//!
//! In: an origin as it was registered, addresses as its name resolved. Out: allowed, or a named refusal. Never: resolves a name.

use crate::endpoint::{Host, Origin};
use quietline_shared::address::{Canonical, Prefix, canonical, is_isatap, is_special};
use std::net::IpAddr;

/// What the operator allows beyond global unicast addresses at port 443, and what not even there.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Private networks with push servers of the operator's own.
    pub allowed_networks: Vec<Prefix>,
    /// Ports beside 443.
    pub ports: Vec<u16>,
    /// Names, in lower case, that are never contacted, and everything below them: our own.
    pub denied_hosts: Vec<Box<str>>,
}

/// Why an origin is not contacted. The names are metric labels; a client is told none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardRefusal {
    Port,
    Host,
    /// Loopback, private, link-local, multicast …, in whatever form.
    Address,
}

impl GuardRefusal {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Port => "guard-port",
            Self::Host => "guard-host",
            Self::Address => "guard-address",
        }
    }
}

impl Guard {
    /// What can be said before a name is resolved.
    pub fn check(&self, origin: &Origin) -> Result<(), GuardRefusal> {
        if origin.port() != 443 && !self.ports.contains(&origin.port()) {
            return Err(GuardRefusal::Port);
        }
        match origin.host() {
            Host::Address(address) if !self.permits(*address) => Err(GuardRefusal::Address),
            Host::Name(name) if self.denies(name) => Err(GuardRefusal::Host),
            Host::Address(_) | Host::Name(_) => Ok(()),
        }
    }

    /// Whether a connection may be made to this address.
    pub fn permits(&self, address: IpAddr) -> bool {
        let allows = |address: IpAddr| self.allowed_networks.iter().any(|network| network.contains(address));
        let plain = match canonical(address) {
            Canonical::Plain(plain) => plain,
            Canonical::Inner(inner) => IpAddr::V4(inner),
            Canonical::Never => return allows(address),
        };
        // ISATAP's form is at home in every network, a private one too.
        let is_disguised = is_isatap(address) && is_special(address);
        allows(address) || allows(plain) || !is_special(plain) && !is_disguised
    }

    fn denies(&self, name: &str) -> bool {
        self.denied_hosts.iter().any(|denied| {
            name.strip_suffix(&**denied)
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::PushEndpoint;

    fn refusal(guard: &Guard, url: &str) -> Option<GuardRefusal> {
        let public = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        let endpoint = PushEndpoint::parse(url, public, "BTBZMqHH6r4Tts7J_aSIgg").unwrap();
        guard.check(endpoint.origin()).err()
    }

    #[test]
    fn only_global_unicast_addresses_are_contacted() {
        let guard = Guard::default();
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "2002:a00:1::1",
            "2001::1",
            "2a00::5efe:10.0.0.1",
            "2001:db8::1",
            "fd00:1:2:3:0:5efe:9.9.9.9",
            "fe80::5efe:9.9.9.9",
        ] {
            assert!(!guard.permits(address.parse().unwrap()), "{address}");
        }
        for address in [
            "9.9.9.9",
            "2a00::1",
            "::ffff:9.9.9.9",
            "64:ff9b::909:909",
            "2a00::5efe:9.9.9.9",
        ] {
            assert!(guard.permits(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_operator_can_allow_a_private_network_in_all_its_forms() {
        let guard = Guard {
            allowed_networks: ["10.1.0.0/16", "fd00::/8"]
                .into_iter()
                .filter_map(Prefix::parse)
                .collect(),
            ..Guard::default()
        };
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            assert!(guard.permits(address.parse().unwrap()), "{address}");
        }
        for address in ["10.2.0.1", "::ffff:10.2.0.1", "127.0.0.1", "fe80::1"] {
            assert!(!guard.permits(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn ports_literals_and_names_are_judged_before_a_name_is_resolved() {
        let guard = Guard {
            ports: vec![8443],
            denied_hosts: vec!["push.example.org".into()],
            ..Guard::default()
        };
        for (url, expected) in [
            ("https://a.b/x", None),
            ("https://a.b:8443/x", None),
            ("https://a.b:22/x", Some(GuardRefusal::Port)),
            ("https://a.b:80/x", Some(GuardRefusal::Port)),
            ("https://127.0.0.1/x", Some(GuardRefusal::Address)),
            ("https://[::1]/x", Some(GuardRefusal::Address)),
            ("https://[::ffff:10.0.0.1]/x", Some(GuardRefusal::Address)),
            ("https://169.254.169.254/latest/meta-data/", Some(GuardRefusal::Address)),
            ("https://9.9.9.9/x", None),
            ("https://PUSH.example.org/x", Some(GuardRefusal::Host)),
            ("https://a.push.example.org/x", Some(GuardRefusal::Host)),
            ("https://xpush.example.org/x", None),
        ] {
            assert_eq!(refusal(&guard, url), expected, "{url}");
        }
    }
}
