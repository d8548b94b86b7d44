//! Where a relay is.
//!
//! In: the addresses that it listens on and relays, those of its machine, and where its operator is served. Out: which of them are no
//! peers. Never: asks the system.

use crate::machine::Machine;
use std::net::{IpAddr, SocketAddr};
use turn_core::peers::RelayTable;

/// Where a relay is, from its start to its end.
#[derive(Clone)]
pub struct Place {
    /// Where clients reach us.
    pub listeners: Vec<SocketAddr>,
    pub relays: RelayTable,
    /// Addresses of this machine on which we neither listen nor relay, temporary ones included. They are no peers: what serves there
    /// trusts what comes from the machine itself.
    pub others: Vec<IpAddr>,
    /// Where the operator and the page are served, if it is none of the above: no peers, whatever is allowed.
    pub admins: Vec<IpAddr>,
}

impl Place {
    pub fn new(
        listeners: Vec<SocketAddr>,
        relays: RelayTable,
        served: impl Iterator<Item = SocketAddr>,
        machine: &Machine,
    ) -> Self {
        let mut place = Self {
            listeners,
            relays,
            others: Vec::new(),
            admins: Vec::new(),
        };
        place.admins = served.map(|own| own.ip()).filter(|ip| place.is_other(ip)).collect();
        place.look_again(machine);
        place
    }

    /// What the machine got since the start is no peer either.
    pub fn look_again(&mut self, machine: &Machine) {
        let addresses = machine.addresses().iter().copied();
        self.others = addresses.filter(|ip| self.is_other(ip)).collect();
    }

    fn is_other(&self, ip: &IpAddr) -> bool {
        let is_listened_on = self.listeners.iter().any(|own| own.ip() == *ip);
        !ip.is_unspecified() && !is_listened_on && self.relays.number_of(*ip).is_none()
    }
}
