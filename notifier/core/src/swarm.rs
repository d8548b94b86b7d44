//! The node list as a ring of swarms: who serves an account, and what changed between two lists.
//!
//! In: nodes. Out: `NodeList`, `SwarmRing`. Never: asks anybody.

use std::net::Ipv4Addr;

/// A storage node's X25519 key: its name on the network and the key of its CURVE link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(pub [u8; 32]);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(<private>)")
    }
}

/// A swarm's place on the 2^64 circle. `u64::MAX` means "no swarm" and never occurs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SwarmId(pub u64);

/// A storage node that is in charge of a swarm and reachable over OxenMQ.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub key: NodeKey,
    pub ip: Ipv4Addr,
    /// `storage_lmq_port`, never 0.
    pub port: u16,
    pub swarm: SwarmId,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node(<private>)")
    }
}
