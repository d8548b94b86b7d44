//! Which peer addresses a client may reach.
//!
//! In: an address as it stood on the wire. Out: allowed, or a named refusal. Never: resolves a name, or trusts an embedding.
//!
//! Canonicalise first, then policy: an IPv4 address hides in IPv6 in many ways (CVE-2026-27624 and others), and each of them must meet
//! the same rule as the plain form. RFC 8656 §21.4, IANA special-purpose registries.

use crate::wire::RelayAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A network prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    network: u128,
    mask: u128,
    is_v6: bool,
}

impl Prefix {
    /// `None` for a length beyond the family's. Bits beyond the length are dropped.
    pub const fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width, is_v6) = match address {
            IpAddr::V4(ip) => ((ip.to_bits() as u128) << 96, 32, false),
            IpAddr::V6(ip) => (ip.to_bits(), 128, true),
        };
        if length > width {
            return None;
        }
        let mask = if length == 0 {
            0
        } else {
            u128::MAX << (128 - length as u32)
        };
        Some(Self {
            network: bits & mask,
            mask,
            is_v6,
        })
    }

    /// `10.0.0.0/8`, `fd00::/8`, or one address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text
            .split_once('/')
            .map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().ok()?;
        let length = match length {
            Some(length) => length.parse().ok()?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Self::new(address, length)
    }

    pub const fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => !self.is_v6 && ((ip.to_bits() as u128) << 96) & self.mask == self.network,
            IpAddr::V6(ip) => self.is_v6 && ip.to_bits() & self.mask == self.network,
        }
    }
}

/// Prints as nothing: an operator's networks are nobody's business in a log.
impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prefix(<private>)")
    }
}

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
                return match self.check_plain(IpAddr::V4(inner)) {
                    Ok(()) => Ok(()),
                    Err(_) => Err(PeerRefusal::Embedded),
                };
            }
        };
        self.check_plain(plain)
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
                .map(|p| p.mask.count_ones())
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

enum Canonical {
    Plain(IpAddr),
    /// An IPv6 form that carries this IPv4 address.
    Inner(Ipv4Addr),
    /// A form that no peer may have (RFC 8656 §21.4: Teredo and 6to4), or that hides an address we cannot see.
    Never,
}

fn canonical(address: IpAddr) -> Canonical {
    let IpAddr::V6(v6) = address else {
        return Canonical::Plain(address);
    };
    let segments = v6.segments();
    let low = Ipv4Addr::from_bits(v6.to_bits() as u32);
    match segments {
        // ::ffff:a.b.c.d and ::ffff:0:a.b.c.d
        [0, 0, 0, 0, 0, 0xFFFF, _, _] | [0, 0, 0, 0, 0xFFFF, 0, _, _] => Canonical::Inner(low),
        // ::a.b.c.d, with :: and ::1 among them: both are refused as what they are
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Canonical::Plain(address),
        [0, 0, 0, 0, 0, 0, _, _] => Canonical::Inner(low),
        // 64:ff9b::/96 and the local 64:ff9b:1::/48, whose layout only its operator knows
        [0x64, 0xFF9B, 0, 0, 0, 0, _, _] => Canonical::Inner(low),
        [0x64, 0xFF9B, 1, ..] => Canonical::Never,
        // 6to4 and Teredo
        [0x2002, ..] | [0x2001, 0, ..] => Canonical::Never,
        // ISATAP
        [_, _, _, _, 0 | 0x200, 0x5EFE, _, _] => Canonical::Inner(low),
        _ => Canonical::Plain(address),
    }
}

/// Everything that the IANA registries do not call globally reachable, and multicast.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => SPECIAL_V4.iter().any(|(network, length)| v4(*network, *length, ip)),
        // All unicast that is in use lies in 2000::/3; the rest is special by being elsewhere.
        IpAddr::V6(ip) => !v6(0x2000, 0, 3, ip) || SPECIAL_V6.iter().any(|(a, b, length)| v6(*a, *b, *length, ip)),
    }
}

const SPECIAL_V4: [([u8; 4], u32); 17] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // 224/4 multicast and 240/4 reserved with the broadcast address
    ([224, 0, 0, 0], 3),
];

/// Within 2000::/3, by the first two segments and a length.
const SPECIAL_V6: [(u16, u16, u32); 5] = [
    // 2001::/23: protocol assignments, Teredo, benchmarking, ORCHID
    (0x2001, 0, 23),
    (0x2001, 0x0DB8, 32),
    (0x2002, 0, 16),
    // 2620:4f:8000::/48 (AS112) is left to the deny list of who cares; 3fff::/20 is documentation
    (0x3FFF, 0, 20),
    (0x2620, 0x004F, 32),
];

fn v4(network: [u8; 4], length: u32, ip: Ipv4Addr) -> bool {
    (ip.to_bits() ^ u32::from_be_bytes(network)) >> (32 - length) == 0
}

fn v6(first: u16, second: u16, length: u32, ip: Ipv6Addr) -> bool {
    let network = (u128::from(first) << 112) | (u128::from(second) << 96);
    (ip.to_bits() ^ network) >> (128 - length) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        fn a_prefix_contains_what_its_bits_say(address: u32, other: u32, length in 0u8..=32) {
            let prefix = Prefix::new(IpAddr::V4(address.into()), length).unwrap();
            let same = (0..u32::from(length)).all(|bit| (address ^ other) & (1 << (31 - bit)) == 0);
            prop_assert_eq!(prefix.contains(IpAddr::V4(other.into())), same);
        }

        #[test]
        fn a_mapped_address_is_never_freer_than_the_plain_one(address: u32) {
            let plain = IpAddr::V4(address.into());
            let mapped = IpAddr::V6(Ipv4Addr::from(address).to_ipv6_mapped());
            let policy = PeerPolicy::default();
            prop_assert_eq!(policy.check_address(plain).is_ok(), policy.check_address(mapped).is_ok());
        }
    }
}
