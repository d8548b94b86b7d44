//! The list of storage nodes as oxend, a seed or our own disk gives it.
//!
//! In: JSON text. Out: `NodeList` or a named refusal. Never: trusts a number in it.

use super::{Node, NodeKey, SwarmId};
use serde_json::{Map, Value, json};
use std::net::Ipv4Addr;

/// The usable nodes at one height of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeList {
    /// In the order of their keys, which are all different.
    pub nodes: Vec<Node>,
    pub height: u64,
    pub block_hash: [u8; 32],
}

/// Why a text is no node list. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeListError {
    #[error("text of the node list is longer than {MAX_TEXT} bytes")]
    TooLong,
    #[error("node list is not JSON")]
    NotJson,
    #[error("node list lacks its nodes, height or block hash")]
    MissingField,
    #[error("node list has more than {MAX_NODES} nodes")]
    TooManyNodes,
    #[error("node list has no usable node")]
    Empty,
}

impl NodeListError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::NotJson => "not_json",
            Self::MissingField => "missing_field",
            Self::TooManyNodes => "too_many_nodes",
            Self::Empty => "empty",
        }
    }
}

impl NodeList {
    /// Reads the reply of `rpc.get_service_nodes`, a seed's `{"result": …}` around it, or what [`Self::to_json`] wrote.
    ///
    /// A node without a usable address, key or swarm is left out. Where two claim one key the first counts: a list that
    /// were refused for it could be spoiled by any one of its nodes.
    pub fn from_json(text: &[u8]) -> Result<Self, NodeListError> {
        if text.len() > MAX_TEXT {
            return Err(NodeListError::TooLong);
        }
        let reply: Value = serde_json::from_slice(text).map_err(|_| NodeListError::NotJson)?;
        let reply = reply.get("result").unwrap_or(&reply);
        let height = reply
            .get("height")
            .and_then(Value::as_u64)
            .ok_or(NodeListError::MissingField)?;
        let block_hash = reply
            .get("block_hash")
            .and_then(key_of_hex)
            .ok_or(NodeListError::MissingField)?;
        let states = reply
            .get("service_node_states")
            .and_then(Value::as_array)
            .ok_or(NodeListError::MissingField)?;
        if states.len() > MAX_NODES {
            return Err(NodeListError::TooManyNodes);
        }
        let mut nodes: Vec<Node> = states.iter().filter_map(Value::as_object).filter_map(node).collect();
        // Stable, so the first of several stays the first.
        nodes.sort_by_key(|node| node.key);
        nodes.dedup_by_key(|node| node.key);
        if nodes.is_empty() {
            return Err(NodeListError::Empty);
        }
        Ok(Self {
            nodes,
            height,
            block_hash,
        })
    }

    /// The text that [`Self::from_json`] reads, for keeping the last good list on disk.
    pub fn to_json(&self) -> Vec<u8> {
        let states: Vec<Value> = self
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "pubkey_x25519": hex::encode(node.key.0),
                    "public_ip": node.ip.to_string(),
                    "storage_lmq_port": node.port,
                    "swarm_id": node.swarm.0,
                })
            })
            .collect();
        let reply = json!({
            "height": self.height,
            "block_hash": hex::encode(self.block_hash),
            "service_node_states": states,
        });
        reply.to_string().into_bytes()
    }

    /// How far two lists are apart, 0 to 1: the nodes that one has and the other has not, over the length of the longer one.
    ///
    /// A node that changed its address or swarm counts once, as does one that took the place of another.
    pub fn difference(&self, other: &Self) -> f64 {
        let longer = self.nodes.len().max(other.nodes.len());
        if longer == 0 {
            return 0.0;
        }
        only_in(self, other).max(only_in(other, self)) as f64 / longer as f64
    }
}

fn node(state: &Map<String, Value>) -> Option<Node> {
    let key = NodeKey(state.get("pubkey_x25519").and_then(key_of_hex)?);
    let ip: Ipv4Addr = state.get("public_ip")?.as_str()?.parse().ok()?;
    let port = u16::try_from(state.get("storage_lmq_port")?.as_u64()?).ok()?;
    let swarm = state.get("swarm_id")?.as_u64()?;
    let reachable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && port != 0;
    (reachable && swarm != NO_SWARM).then_some(Node {
        key,
        ip,
        port,
        swarm: SwarmId(swarm),
    })
}

fn key_of_hex(value: &Value) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(value.as_str()?, &mut key).ok().map(|()| key)
}

fn only_in(list: &NodeList, other: &NodeList) -> usize {
    let known = |node: &Node| {
        let at = other.nodes.binary_search_by_key(&node.key, |node| node.key).ok();
        at.and_then(|at| other.nodes.get(at)) == Some(node)
    };
    list.nodes.iter().filter(|node| !known(node)).count()
}

/// The network has about 2,000.
pub const MAX_NODES: usize = 20_000;
/// [`MAX_NODES`] of about 250 bytes, and some room for fields we do not ask for.
const MAX_TEXT: usize = 8 << 20;
/// The swarm of a node that waits for one.
const NO_SWARM: u64 = u64::MAX;
