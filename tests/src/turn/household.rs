//! Clients as people have them: in a private network, behind a router that gives each conversation an outer port of its own.
//!
//! In: the world that relays are in, how the router is joined to it. Out: a [`Household`] whose packets come from the router's outer address.
//! Never: an address of the world for the client itself.

use super::impaired::{ImpairedLink, Impairment};
use super::net::Network;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// How a router is joined to the world.
#[derive(Clone, Copy, Debug)]
pub enum Uplink {
    /// A cable that takes packets up to this size (bytes). Who sends longer ones with DF is told by ICMP; others are fragmented.
    Cable {
        mtu: u32,
    },
    Impaired(Impairment),
}

pub const ETHERNET: Uplink = Uplink::Cable { mtu: 1_500 };

/// A client's network and its router.
pub struct Household {
    pub home: Arc<Network>,
    pub router: Network,
    pub link: Option<ImpairedLink>,
    interface: String,
    number: u8,
}

impl Household {
    /// Household `number` of this world, with an interface of this name. Each number once, each interface once in a home.
    pub fn new(world: &Network, number: u8, interface: &str, uplink: Uplink) -> Self {
        Self::around(&Arc::new(Network::new(&[])), world, number, interface, uplink)
    }

    /// Another router for a home that is there already; its packets go this way from now on.
    pub fn around(home: &Arc<Network>, world: &Network, number: u8, interface: &str, uplink: Uplink) -> Self {
        let router = Network::new(&[]);
        router.set("net/ipv4/ip_forward", "1");
        world.set("net/ipv4/ip_forward", "1");
        let (inner, host) = (format!("192.168.{number}.1"), format!("192.168.{number}.2"));
        let (near, far) = (format!("{host}/24"), format!("{inner}/24"));
        home.connect((interface, &[&near]), &router, ("in", &[&far]));
        home.ip(&format!("route replace default via {inner}"));
        let (near, far) = (format!("{}/24", outer(number, 2)), format!("{}/24", outer(number, 1)));
        let at_world = format!("house-{number}");
        let link = match uplink {
            Uplink::Cable { mtu } => {
                router.connect(("out", &[&near]), world, (&at_world, &[&far]));
                router.ip(&format!("link set out mtu {mtu}"));
                world.ip(&format!("link set {at_world} mtu {mtu}"));
                None
            }
            Uplink::Impaired(impairment) => {
                let ends = ((&router, "out", &*near), (world, &*at_world, &*far));
                Some(ImpairedLink::join(ends.0, ends.1, impairment))
            }
        };
        router.ip(&format!("route add default via {}", outer(number, 1)));
        // Endpoint-dependent mapping (RFC 4787 §4.1): a random outer port for each pair of endpoints, and nothing comes in from another one.
        router.nft(
            "table ip nat { chain out { type nat hook postrouting priority srcnat; oifname \"out\" masquerade fully-random; }; }",
        );
        Self {
            home: Arc::clone(home),
            router,
            link,
            interface: interface.to_owned(),
            number,
        }
    }

    /// IPv6 as providers give it: a prefix of its own, which the router does not translate. Only over a cable.
    pub fn add_v6(&self, world: &Network) -> Ipv6Addr {
        let number = self.number;
        let (prefix, gate) = (format!("2a00:10:{number}:"), format!("2a00:11:{number}:"));
        for network in [&self.router, world] {
            network.set("net/ipv6/conf/all/forwarding", "1");
        }
        self.home
            .ip(&format!("-6 addr add {prefix}:2/64 dev {} nodad", self.interface));
        self.router.ip(&format!("-6 addr add {prefix}:1/64 dev in nodad"));
        self.router.ip(&format!("-6 addr add {gate}:2/64 dev out nodad"));
        world.ip(&format!("-6 addr add {gate}:1/64 dev house-{number} nodad"));
        self.home.ip(&format!("-6 route add default via {prefix}:1"));
        self.router.ip(&format!("-6 route add default via {gate}:1"));
        world.ip(&format!("-6 route add {prefix}:/64 via {gate}:2"));
        Ipv6Addr::new(0x2a00, 0x10, number.into(), 0, 0, 0, 0, 2)
    }

    /// What the world sees of it.
    pub fn outer(&self) -> Ipv4Addr {
        outer(self.number, 2)
    }

    /// The router gets another outer address, as behind a line that is dialled each night; what it knew of conversations is gone.
    pub fn renumber(&self) {
        self.router
            .ip(&format!("addr del {}/24 dev out", outer(self.number, 2)));
        self.router
            .ip(&format!("addr add {}/24 dev out", outer(self.number, 3)));
        self.router
            .ip(&format!("route replace default via {}", outer(self.number, 1)));
    }
}

/// Beside the networks of relays and of everybody else.
const fn outer(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(1, 3, number, host)
}
