//! What the machine says about itself where the settings leave it open: its addresses.
//!
//! In: the operating system, at the start, and every ten seconds for what is new. Out: addresses that are ours; those of them on which
//! clients could reach us. Never: sends a packet, or prints an address.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The addresses of the machine we run on.
#[derive(Clone, Default)]
pub struct Machine {
    /// Without loopback and link-local addresses; IPv4 first.
    addresses: Vec<IpAddr>,
    /// Those of them that the system does not take away by itself, as they were at the start.
    lasting: Vec<IpAddr>,
    outward: Vec<IpAddr>,
}

impl Machine {
    /// Asks the system.
    pub fn look() -> io::Result<Self> {
        let (addresses, passing) = (reachable()?, short_lived());
        let is_lasting = |address: &IpAddr| !passing.contains(address);
        let lasting = addresses.iter().copied().filter(is_lasting).collect();
        let outward = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let outward = outward.into_iter().filter_map(source_to_the_internet).collect();
        Ok(Self {
            addresses,
            ..Self::new(lasting, outward)
        })
    }

    /// With no other addresses than these. `outward`: what the system would send from to the internet, at most one of each family.
    pub fn new(lasting: Vec<IpAddr>, outward: Vec<IpAddr>) -> Self {
        Self {
            addresses: lasting.clone(),
            lasting,
            outward,
        }
    }

    /// With more addresses, none of which lasts.
    #[must_use]
    pub fn and_passing(mut self, passing: &[IpAddr]) -> Self {
        self.addresses.extend(passing);
        self
    }

    /// Asks the system once more which addresses it has; if it does not say, they are those of before. Where a relay is was decided at its
    /// start, so what lasts stays. Whether they are others than before.
    pub fn look_again(&mut self) -> bool {
        reachable().is_ok_and(|addresses| {
            let before = std::mem::replace(&mut self.addresses, addresses);
            before != self.addresses
        })
    }

    /// All, also those that come and go.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Those that are worth telling anybody.
    pub fn lasting(&self) -> &[IpAddr] {
        &self.lasting
    }

    /// The one address of a family that the rest of the world is most likely to reach. A machine has more, such as those of its bridges
    /// to containers: what is relayed there would arrive nowhere.
    pub fn outward(&self, is_v6: bool) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| address.is_ipv6() == is_v6;
        let is_lasting = |address: &&IpAddr| self.lasting.contains(address);
        let chosen = self.outward.iter().filter(of_family).find(is_lasting);
        // The system prefers short-lived IPv6 addresses: then the lasting one of the same network.
        let beside = || {
            let outward = self.outward.iter().find(of_family)?;
            let same_network = |address: &&IpAddr| network_v6(**address) == network_v6(*outward);
            self.lasting.iter().filter(of_family).find(same_network)
        };
        chosen
            .or_else(beside)
            .or_else(|| self.lasting.iter().find(of_family))
            .copied()
    }
}

/// In order, each once.
fn reachable() -> io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?.into_iter();
    let addresses: BTreeSet<IpAddr> = interfaces
        .map(|interface| interface.ip())
        .filter(|address| is_reachable(*address))
        .collect();
    Ok(addresses.into_iter().collect())
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
    }
}

fn network_v6(address: IpAddr) -> Option<u128> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip.to_bits() >> 64),
    }
}

/// Connecting a UDP socket asks the system for a route and sends nothing.
fn source_to_the_internet(any: IpAddr) -> Option<IpAddr> {
    // Of the ranges kept for documentation: they follow the default route.
    let somewhere: IpAddr = match any {
        IpAddr::V4(_) => Ipv4Addr::new(198, 51, 100, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 1).into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(somewhere, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    is_reachable(address).then_some(address)
}

/// IPv6 addresses that the system will take away by itself: temporary, deprecated or not yet checked ones.
fn short_lived() -> BTreeSet<IpAddr> {
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    table.lines().filter_map(short_lived_in).collect()
}

/// One line: address, interface, length of prefix, scope, flags, name; numbers in hex.
fn short_lived_in(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
    (flags & SHORT_LIVED != 0).then(|| Ipv6Addr::from_bits(address).into())
}

/// IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED and IFA_F_TENTATIVE of linux/if_addr.h.
const SHORT_LIVED: u32 = 0x01 | 0x08 | 0x20 | 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_address_of_each_family_is_the_outward_one() {
        let addresses = ips(&["10.0.0.5", "172.17.0.1", "2001:db8:1::5", "fd00::5"]);
        let machine = Machine::new(addresses.clone(), ips(&["10.0.0.5", "fd00::5"]));
        assert_eq!(machine.outward(false), "10.0.0.5".parse().ok());
        assert_eq!(machine.outward(true), "fd00::5".parse().ok());
        // What comes and goes is not told to anybody, even if the system prefers it.
        let machine = Machine::new(addresses.clone(), ips(&["fd00::1234"])).and_passing(&ips(&["fd00::1234"]));
        assert_eq!(machine.outward(true), "fd00::5".parse().ok());
        assert_eq!(Machine::new(addresses, vec![]).outward(false), "10.0.0.5".parse().ok());
        assert_eq!(Machine::default().outward(false), None);
    }

    #[test]
    fn a_temporary_address_is_told_by_its_flags() {
        let line = |flags: &str| format!("20010db8000000000000000000000005 02 40 00 {flags}     eth0");
        let address: IpAddr = "2001:db8::5".parse().unwrap();
        assert_eq!(short_lived_in(&line("80")), None);
        for flags in ["01", "21", "40", "08"] {
            assert_eq!(short_lived_in(&line(flags)), Some(address), "{flags}");
        }
        assert_eq!(short_lived_in("nonsense"), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let machine = Machine::look().unwrap();
        assert!(machine.addresses().iter().all(|address| is_reachable(*address)));
        for is_v6 in [false, true] {
            let outward = machine.outward(is_v6);
            assert!(outward.is_none_or(|address| machine.lasting().contains(&address)));
        }
        assert!(
            machine
                .lasting()
                .iter()
                .all(|address| machine.addresses().contains(address))
        );
    }

    #[test]
    fn a_second_look_finds_what_is_new_and_moves_nothing() {
        let mut machine = Machine::new(ips(&["192.0.2.1"]), ips(&["192.0.2.1"]));
        assert!(machine.look_again() && !machine.look_again());
        assert_eq!(machine.addresses(), Machine::look().unwrap().addresses());
        assert_eq!(machine.lasting(), ips(&["192.0.2.1"]));
        assert_eq!(machine.outward(false), "192.0.2.1".parse().ok());
    }
}
