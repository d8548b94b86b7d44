//! What a running relay keeps until its restart.
//!
//! In: settings as they run, and as the file has them now. Out: what differs; the new ones with what stays. Never: reads a file.

use super::{
    ListenSettings, LogSettings, OpsSettings, PageSettings, Place, PublicationSettings, RelaySettings, Settings,
    ShardSettings, SocketsSettings,
};
use std::time::Duration;

/// What only a restart changes, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub listen: ListenSettings,
    pub relay: RelaySettings,
    pub realm: String,
    pub nonce_epoch: Duration,
    pub shard: ShardSettings,
    pub sockets: SocketsSettings,
    pub ops: OpsSettings,
    pub page: PageSettings,
    pub transparency: PublicationSettings,
    pub log: LogSettings,
}

impl Fixed {
    /// The names of those settings that differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("listen.addresses", self.listen.addresses != other.listen.addresses),
            ("listen.ports", self.listen.ports != other.listen.ports),
            ("relay", self.relay != other.relay),
            ("auth.realm", self.realm != other.realm),
            ("auth.nonce_epoch", self.nonce_epoch != other.nonce_epoch),
            ("shard", self.shard != other.shard),
            ("sockets", self.sockets != other.sockets),
            ("ops", self.ops != other.ops),
            ("page", self.page != other.page),
            ("transparency", self.transparency != other.transparency),
            ("log", self.log != other.log),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

impl Settings {
    /// Where it is stays where it is until a restart, whatever the file says now.
    pub fn stay(&mut self, fixed: &Fixed, place: &Place) {
        self.place = place.clone();
        self.fixed = Fixed {
            listen: ListenSettings {
                addresses: fixed.listen.addresses.clone(),
                ports: fixed.listen.ports.clone(),
                ..self.fixed.listen.clone()
            },
            ..fixed.clone()
        };
    }
}
