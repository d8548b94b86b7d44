//! What the machine says about itself where the settings leave it open: its addresses.
//!
//! In: the operating system, once, at the start. Out: addresses on which clients could reach us. Never: sends a packet, or prints an
//! address.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The addresses of the machine we run on.
#[derive(Clone, Default)]
pub struct Machine {
    /// Without loopback, link-local and short-lived addresses; IPv4 first.
    addresses: Vec<IpAddr>,
    outward: Vec<IpAddr>,
}

impl Machine {
    /// Asks the system.
    pub fn look() -> io::Result<Self> {
        let passing = short_lived();
        let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()?
            .into_iter()
            .map(|interface| interface.ip())
            .filter(|address| is_reachable(*address) && !passing.contains(address))
            .collect();
        addresses.sort();
        addresses.dedup();
        let outward = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let outward = outward.into_iter().filter_map(source_to_the_internet).collect();
        Ok(Self::new(addresses, outward))
    }

    /// `outward`: what the system would send from to the internet, at most one of each family.
    pub fn new(addresses: Vec<IpAddr>, outward: Vec<IpAddr>) -> Self {
        Self { addresses, outward }
    }

    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The one address of a family that the rest of the world is most likely to reach. A machine has more, such as those of its bridges
    /// to containers: what is relayed there would arrive nowhere.
    pub fn outward(&self, is_v6: bool) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| address.is_ipv6() == is_v6;
        let lasting = |address: &&IpAddr| self.addresses.contains(address);
        let chosen = self.outward.iter().filter(of_family).find(lasting);
        // The system prefers short-lived IPv6 addresses: then the lasting one of the same network.
        let beside = || {
            let outward = self.outward.iter().find(of_family)?;
            let same_network = |address: &&IpAddr| network_v6(**address) == network_v6(*outward);
            self.addresses.iter().filter(of_family).find(same_network)
        };
        chosen
            .or_else(beside)
            .or_else(|| self.addresses.iter().find(of_family))
            .copied()
    }
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
        // A short-lived address is none of `addresses`.
        let machine = Machine::new(addresses.clone(), ips(&["fd00::1234"]));
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
            assert!(outward.is_none_or(|address| machine.addresses().contains(&address)));
        }
    }
}
