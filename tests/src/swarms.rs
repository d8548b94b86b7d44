//! The node list, and which swarm serves an account.
//!
//! In: nodes with their swarm ids, an account. Out: the list as oxend prints it, a swarm id. Never: talks to anybody.

use crate::node::NodeAddress;
use crate::sodium;
use serde_json::{Value, json};

/// The id of nodes that are in no swarm yet.
pub const NO_SWARM: u64 = u64::MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNode {
    pub public_key: [u8; 32],
    pub ip: String,
    pub port: u16,
    pub swarm: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeList {
    pub height: u64,
    pub nodes: Vec<ListedNode>,
}

impl NodeList {
    /// `per_swarm` nodes after each other form one swarm; the ids stand at equal distances on the circle.
    pub fn in_swarms(addresses: &[NodeAddress], per_swarm: usize) -> Self {
        let swarms = addresses.len().div_ceil(per_swarm.max(1)).max(1) as u64;
        let step = u64::MAX / swarms;
        let nodes = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| ListedNode {
                public_key: address.public_key,
                ip: "127.0.0.1".into(),
                port: address.port,
                swarm: (index / per_swarm.max(1)) as u64 * step,
            })
            .collect();
        Self { height: 1000, nodes }
    }

    /// As `rpc.get_service_nodes` answers for the fields a push server asks for.
    pub fn to_json(&self) -> Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "pubkey_x25519": hex::encode(node.public_key),
                    "public_ip": node.ip,
                    "storage_lmq_port": node.port,
                    "swarm_id": node.swarm,
                })
            })
            .collect();
        json!({
            "block_hash": self.block_hash_hex(),
            "height": self.height,
            "service_node_states": nodes,
            "status": "OK",
        })
    }

    pub fn block_hash_hex(&self) -> String {
        hex::encode(self.block_hash())
    }

    pub fn block_hash(&self) -> [u8; 32] {
        sodium::blake2b_256(&self.height.to_le_bytes())
    }

    pub fn swarm_of(&self, account: &[u8; 33]) -> Option<u64> {
        let ids: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.swarm)
            .filter(|id| *id != NO_SWARM)
            .collect();
        nearest_swarm(swarm_space(account), &ids)
    }

    /// Positions in the list of the nodes that serve `account`.
    pub fn nodes_of(&self, account: &[u8; 33]) -> Vec<usize> {
        let swarm = self.swarm_of(account);
        (0..self.nodes.len())
            .filter(|index| Some(self.nodes[*index].swarm) == swarm)
            .collect()
    }
}

/// Where an account stands on the circle: its four 64-bit words, combined by exclusive or.
pub fn swarm_space(account: &[u8; 33]) -> u64 {
    account[1..].chunks_exact(8).fold(0, |space, word| {
        space ^ u64::from_be_bytes(word.try_into().expect("chunks_exact gives eight bytes"))
    })
}

/// The nearest id on the circle; of two at the same distance the lower one, counted from the space downwards.
pub fn nearest_swarm(space: u64, ids: &[u64]) -> Option<u64> {
    ids.iter().copied().min_by_key(|id| {
        let (below, above) = (space.wrapping_sub(*id), id.wrapping_sub(space));
        (below.min(above), below > above)
    })
}
