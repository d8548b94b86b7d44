//! Which peer addresses a client may reach.
//!
//! In: an address as it stood on the wire. Out: allowed, or a named refusal. Never: resolves a name, or trusts an embedding.
//!
//! Canonicalise first, then policy: an IPv4 address hides in IPv6 in many ways (CVE-2026-27624 and others), and each of them must meet
//! the same rule as the plain form. RFC 8656 §21.4, IANA special-purpose registries.

use crate::wire::RelayAddr;
use quietline_shared::address::{Canonical, canonical, is_isatap, is_special};
use std::net::{IpAddr, SocketAddr};

pub use quietline_shared::address::Prefix;

/// Why a peer may not be reached. The names are metric labels; on the wire all of them are 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerRefusal {
    /// Loopback, private, link-local, multicast, documentation …: IANA special-purpose space.
    Special,
    /// Teredo, 6to4, NAT64, mapped and compatible forms whose inner address is refused, or that are refused as such.
    Embedded,
    /// On the operator's deny list.
    Denied,
    /// One of our own listeners or admin ports.
    OwnService,
    /// A port that abuse needs and calls do not.
    Port,
}

impl PeerRefusal {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Special => "special",
            Self::Embedded => "embedded",
            Self::Denied => "denied",
            Self::OwnService => "own_service",
            Self::Port => "port",
        }
    }
}

/// Ports refused by default: reflection and amplification live there.
pub const DENIED_PORTS: [u16; 16] = [
    0, 19, 53, 69, 111, 123, 137, 138, 139, 161, 389, 445, 1900, 5353, 11211, 3702,
];

/// Most relay addresses of one server.
pub const MAX_RELAY_ADDRESSES: usize = 8;
/// RFC 8656 §7.2: the dynamic range, and never below 1024.
pub const RELAY_PORTS: (u16, u16) = (49_152, 65_535);

/// One address that we relay on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// What the shell binds.
    pub bind: IpAddr,
    /// What clients are told: the outer address of a 1:1 NAT, or the same.
    pub advertised: IpAddr,
}

/// Why a table of relay addresses cannot be. The names are for an operator who starts the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayTableFault {
    #[error("no relay address is given")]
    Empty,
    #[error("more than 8 relay addresses are given")]
    TooMany,
    #[error("a relay address is given twice")]
    Twice,
    #[error("an advertised address has another family than the address it stands for")]
    Families,
    #[error("the relay ports are an empty range or begin below 1024")]
    Ports,
}

/// All addresses that we relay on and their ports. Fixed from start to stop.
#[derive(Clone)]
pub struct RelayTable {
    addresses: Vec<RelayAddress>,
    first: u16,
    last: u16,
    is_translated: bool,
}

impl RelayTable {
    pub fn new(addresses: Vec<RelayAddress>, (first, last): (u16, u16)) -> Result<Self, RelayTableFault> {
        if addresses.is_empty() {
            return Err(RelayTableFault::Empty);
        }
        if addresses.len() > MAX_RELAY_ADDRESSES {
            return Err(RelayTableFault::TooMany);
        }
        if first < 1024 || first > last {
            return Err(RelayTableFault::Ports);
        }
        for (at, one) in addresses.iter().enumerate() {
            if one.bind.is_ipv4() != one.advertised.is_ipv4() {
                return Err(RelayTableFault::Families);
            }
            let same = |other: &RelayAddress| other.bind == one.bind || other.advertised == one.advertised;
            if addresses.iter().skip(at + 1).any(same) {
                return Err(RelayTableFault::Twice);
            }
        }
        let is_translated = addresses.iter().any(|one| one.bind != one.advertised);
        Ok(Self {
            addresses,
            first,
            last,
            is_translated,
        })
    }

    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    pub const fn ports(&self) -> (u16, u16) {
        (self.first, self.last)
    }

    pub const fn ports_per_address(&self) -> usize {
        (self.last - self.first) as usize + 1
    }

    /// The numbers of the addresses of one family.
    pub fn of_family(&self, is_v6: bool) -> impl Iterator<Item = u8> + '_ {
        (0u8..)
            .zip(&self.addresses)
            .filter(move |(_, one)| one.bind.is_ipv6() == is_v6)
            .map(|(number, _)| number)
    }

    pub fn get(&self, address: u8) -> Option<RelayAddress> {
        self.addresses.get(usize::from(address)).copied()
    }

    /// Which of ours this is, as bound or as advertised.
    pub fn number_of(&self, ip: IpAddr) -> Option<u8> {
        (0u8..)
            .zip(&self.addresses)
            .find(|(_, one)| one.advertised == ip || one.bind == ip)
            .map(|(number, _)| number)
    }

    /// The relayed address that a peer address is, if it is ours and within the relay ports.
    pub fn relay_of(&self, peer: SocketAddr) -> Option<RelayAddr> {
        let address = self.number_of(peer.ip())?;
        (self.first..=self.last).contains(&peer.port()).then_some(RelayAddr {
            address,
            port: peer.port(),
        })
    }

    /// One of ours by the name that clients know; any other address as it is.
    pub fn as_advertised(&self, peer: SocketAddr) -> SocketAddr {
        if !self.is_translated {
            return peer;
        }
        match self.number_of(peer.ip()).and_then(|number| self.get(number)) {
            Some(ours) => SocketAddr::new(ours.advertised, peer.port()),
            None => peer,
        }
    }

    /// What clients are told.
    pub fn advertised(&self, relay: RelayAddr) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.get(relay.address)?.advertised, relay.port))
    }

    /// What the shell binds.
    pub fn bind(&self, relay: RelayAddr) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.get(relay.address)?.bind, relay.port))
    }

    /// Place of a relayed address in an array over all of them.
    pub fn place(&self, relay: RelayAddr) -> Option<usize> {
        let port = usize::from(relay.port.checked_sub(self.first)?);
        (port < self.ports_per_address() && usize::from(relay.address) < self.len())
            .then(|| usize::from(relay.address) * self.ports_per_address() + port)
    }

    /// The relayed address of a place.
    pub fn at(&self, place: usize) -> Option<RelayAddr> {
        let address = place / self.ports_per_address();
        let port = (place % self.ports_per_address()) as u16;
        (address < self.len()).then(|| RelayAddr {
            address: address as u8,
            port: self.first + port,
        })
    }

    /// All addresses that are ours, for a [`PeerPolicy`].
    pub fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().flat_map(|one| [one.bind, one.advertised])
    }
}

/// What the operator decided, and what we are.
#[derive(Clone)]
pub struct PeerPolicy {
    /// Reachable although special: a peer in a private net, a test on loopback.
    pub allow: Vec<Prefix>,
    /// Never reachable; wins over `allow` where the prefix is the longer one or equal.
    pub deny: Vec<Prefix>,
    pub denied_ports: Vec<u16>,
    /// Our addresses, external ones too.
    pub own_addresses: Vec<IpAddr>,
    /// On our addresses only these ports are peers: those we relay on.
    pub relay_ports: Option<(u16, u16)>,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            denied_ports: DENIED_PORTS.to_vec(),
            own_addresses: Vec::new(),
            relay_ports: None,
        }
    }
}

impl PeerPolicy {
    /// May a permission for this address be installed? Ports do not count here (RFC 8656 §9).
    pub fn check_address(&self, address: IpAddr) -> Result<(), PeerRefusal> {
        let plain = match canonical(address) {
            Canonical::Plain(plain) => plain,
            // An operator who allows the very form allows it.
            Canonical::Never if !self.is_allowed(address) => return Err(PeerRefusal::Embedded),
            Canonical::Never => address,
            Canonical::Inner(inner) => {
                self.check_plain(IpAddr::V4(inner)).map_err(|_| PeerRefusal::Embedded)?;
                return self.check_disguise(address);
            }
        };
        self.check_plain(plain)
    }

    /// What the packet would be sent to, when what it carries is fine. The forms with a prefix of their own lie in no network that the world
    /// reaches, and are judged by the inner address alone, unless the operator denies them; ISATAP's form is at home in every network.
    fn check_disguise(&self, address: IpAddr) -> Result<(), PeerRefusal> {
        match self.check_plain(address) {
            Err(PeerRefusal::Special) if !is_isatap(address) => Ok(()),
            other => other,
        }
    }

    /// May a packet go to this address and port? Asked for each Send, ChannelBind and in-process hop's setup.
    pub fn check(&self, peer: SocketAddr) -> Result<(), PeerRefusal> {
        self.check_address(peer.ip())?;
        let plain = match canonical(peer.ip()) {
            Canonical::Plain(plain) => plain,
            Canonical::Inner(inner) => IpAddr::V4(inner),
            Canonical::Never => peer.ip(),
        };
        if self.own_addresses.contains(&plain) {
            let relayed = self
                .relay_ports
                .is_some_and(|(first, last)| (first..=last).contains(&peer.port()));
            return if relayed { Ok(()) } else { Err(PeerRefusal::OwnService) };
        }
        if peer.port() == 0 || self.denied_ports.contains(&peer.port()) {
            return Err(PeerRefusal::Port);
        }
        Ok(())
    }

    fn check_plain(&self, address: IpAddr) -> Result<(), PeerRefusal> {
        let longest = |list: &[Prefix]| {
            list.iter()
                .filter(|prefix| prefix.contains(address))
                .map(|prefix| prefix.length())
                .max()
        };
        match (longest(&self.allow), longest(&self.deny)) {
            (Some(allowed), Some(denied)) if denied >= allowed => Err(PeerRefusal::Denied),
            (None, Some(_)) => Err(PeerRefusal::Denied),
            (Some(_), _) => Ok(()),
            // Relay to relay on one server is the common call, whatever address the server has.
            (None, None) if self.own_addresses.contains(&address) => Ok(()),
            (None, None) if is_special(address) => Err(PeerRefusal::Special),
            (None, None) => Ok(()),
        }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|prefix| prefix.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn refusal(text: &str) -> Option<PeerRefusal> {
        PeerPolicy::default().check_address(text.parse().unwrap()).err()
    }

    #[test]
    fn special_addresses_are_refused_by_default() {
        for text in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "fec0::1",
            "ff02::1",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "2001:2::1",
        ] {
            assert_eq!(refusal(text), Some(PeerRefusal::Special), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_allowed() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "172.32.0.1",
            "193.0.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00::1",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn every_embedding_meets_the_rule_of_what_it_carries() {
        for text in [
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2a00::5efe:10.0.0.1",
            "2a00::200:5efe:a9fe:a9fe",
            "2002:a00:1::1",
            "2002:808:808::1",
            "2001::1",
            "2001:0:808:808::1",
            "64:ff9b:1::8.8.8.8",
        ] {
            assert_eq!(refusal(text), Some(PeerRefusal::Embedded), "{text}");
        }
        assert_eq!(refusal("::ffff:8.8.8.8"), None);
        assert_eq!(refusal("64:ff9b::8.8.8.8"), None);
    }

    #[test]
    fn what_stands_around_a_public_address_is_judged_too() {
        for text in [
            "fd00:1:2:3:0:5efe:808:808",
            "2001:db8::5efe:808:808",
            "ff05::200:5efe:808:808",
        ] {
            assert_eq!(refusal(text), Some(PeerRefusal::Special), "{text}");
        }
        let policy = PeerPolicy {
            deny: ["2a00:1:2::/48", "64:ff9b::/96"]
                .into_iter()
                .filter_map(Prefix::parse)
                .collect(),
            ..PeerPolicy::default()
        };
        for text in ["2a00:1:2:3:0:5efe:808:808", "64:ff9b::8.8.8.8"] {
            assert_eq!(refusal(text), None, "{text}");
            assert_eq!(
                policy.check_address(text.parse().unwrap()),
                Err(PeerRefusal::Denied),
                "{text}"
            );
        }
        assert_eq!(
            policy.check_address("2a00:1:3:3:0:5efe:808:808".parse().unwrap()),
            Ok(())
        );
    }

    #[test]
    fn the_longer_prefix_wins_and_deny_wins_a_tie() {
        let prefixes = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| Prefix::parse(text).unwrap())
                .collect::<Vec<_>>()
        };
        let policy = PeerPolicy {
            allow: prefixes(&["10.1.0.0/16", "10.2.3.4", "8.8.8.8"]),
            deny: prefixes(&["10.0.0.0/8", "10.1.5.0/24", "8.8.8.8", "9.0.0.0/8"]),
            ..PeerPolicy::default()
        };
        let refusal = |text: &str| policy.check_address(text.parse().unwrap()).err();
        assert_eq!(refusal("10.1.1.1"), None);
        assert_eq!(refusal("10.1.5.1"), Some(PeerRefusal::Denied));
        assert_eq!(refusal("10.2.3.4"), None);
        assert_eq!(refusal("10.2.3.5"), Some(PeerRefusal::Denied));
        assert_eq!(refusal("8.8.8.8"), Some(PeerRefusal::Denied));
        assert_eq!(refusal("9.9.9.9"), Some(PeerRefusal::Denied));
        assert_eq!(refusal("::ffff:10.1.5.1"), Some(PeerRefusal::Embedded));
    }

    #[test]
    fn on_our_own_addresses_only_relayed_ports_are_peers() {
        let own: IpAddr = "198.51.100.1".parse().unwrap();
        let policy = PeerPolicy {
            own_addresses: vec![own],
            relay_ports: Some((49152, 65535)),
            ..PeerPolicy::default()
        };
        assert_eq!(policy.check_address(own), Ok(()));
        assert_eq!(policy.check(SocketAddr::new(own, 50_000)), Ok(()));
        assert_eq!(policy.check(SocketAddr::new(own, 3478)), Err(PeerRefusal::OwnService));
        assert_eq!(policy.check("8.8.8.8:53".parse().unwrap()), Err(PeerRefusal::Port));
        assert_eq!(policy.check("8.8.8.8:0".parse().unwrap()), Err(PeerRefusal::Port));
        assert_eq!(policy.check("8.8.8.8:1000".parse().unwrap()), Ok(()));
    }

    #[test]
    fn a_table_of_relay_addresses_knows_both_names_of_each() {
        let one = |bind: &str, advertised: &str| RelayAddress {
            bind: bind.parse().unwrap(),
            advertised: advertised.parse().unwrap(),
        };
        let table = RelayTable::new(vec![one("10.0.0.1", "9.9.9.9"), one("2a00::1", "2a00::1")], RELAY_PORTS).unwrap();
        let inner: SocketAddr = "10.0.0.1:50000".parse().unwrap();
        let outer: SocketAddr = "9.9.9.9:50000".parse().unwrap();
        let relay = table.relay_of(inner).unwrap();
        assert_eq!(Some(relay), table.relay_of(outer));
        assert_eq!(table.as_advertised(inner), outer);
        assert_eq!((table.bind(relay), table.advertised(relay)), (Some(inner), Some(outer)));
        assert_eq!(table.relay_of("9.9.9.9:3478".parse().unwrap()), None);
        assert_eq!(table.of_family(true).collect::<Vec<_>>(), [1]);
        assert_eq!(
            table.place(RelayAddr {
                address: 1,
                port: 49_153
            }),
            Some(16_385)
        );
        assert_eq!(
            table.place(RelayAddr {
                address: 2,
                port: 49_153
            }),
            None
        );
        assert_eq!(
            table.place(RelayAddr {
                address: 0,
                port: 49_151
            }),
            None
        );
        let fault = |addresses, ports| RelayTable::new(addresses, ports).err().unwrap();
        assert_eq!(fault(vec![], RELAY_PORTS), RelayTableFault::Empty);
        assert_eq!(
            fault(vec![one("10.0.0.1", "2a00::1")], RELAY_PORTS),
            RelayTableFault::Families
        );
        assert_eq!(
            fault(vec![one("10.0.0.1", "10.0.0.1"); 2], RELAY_PORTS),
            RelayTableFault::Twice
        );
        assert_eq!(
            fault(vec![one("10.0.0.1", "10.0.0.1")], (1000, 2000)),
            RelayTableFault::Ports
        );
        assert_eq!(
            fault(vec![one("10.0.0.1", "10.0.0.1")], (3000, 2000)),
            RelayTableFault::Ports
        );
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_never_freer_than_the_plain_one(address: u32) {
            let plain = IpAddr::V4(address.into());
            let mapped = IpAddr::V6(Ipv4Addr::from(address).to_ipv6_mapped());
            let policy = PeerPolicy::default();
            prop_assert_eq!(policy.check_address(plain).is_ok(), policy.check_address(mapped).is_ok());
        }
    }
}
