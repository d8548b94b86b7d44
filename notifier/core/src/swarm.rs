//! The node list as a ring of swarms: who serves an account, and what changed between two lists.
//!
//! In: nodes. Out: `NodeList`, `SwarmRing`. Never: asks anybody.

use crate::account::AccountId;
use quietline_shared::crypto::blake2b_256;
use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::ops::Range;

mod list;

pub use list::{MAX_NODES, NodeList, NodeListError};

/// Which swarm serves an account, and which nodes make up a swarm.
#[derive(Debug, Default)]
pub struct SwarmRing {
    /// By swarm, then by key.
    nodes: Vec<Node>,
    /// Ascending.
    places_by_swarm: Vec<(SwarmId, Range<usize>)>,
    /// Ascending.
    place_by_key: Vec<(NodeKey, usize)>,
}

impl SwarmRing {
    pub fn new(list: &NodeList) -> Self {
        let mut nodes = list.nodes.clone();
        nodes.sort_by_key(|node| (node.swarm, node.key));
        let mut places_by_swarm = Vec::new();
        let mut start = 0;
        for swarm in nodes.chunk_by(|a, b| a.swarm == b.swarm) {
            let end = start + swarm.len();
            places_by_swarm.extend(swarm.first().map(|node| (node.swarm, start..end)));
            start = end;
        }
        let mut place_by_key: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| (node.key, place))
            .collect();
        place_by_key.sort_unstable();
        Self {
            nodes,
            places_by_swarm,
            place_by_key,
        }
    }

    /// The swarm nearest to the account on the circle, of two equally near ones the left. `None` if the list was empty.
    pub fn swarm_of(&self, account: &AccountId) -> Option<SwarmId> {
        let place = place_of(account);
        let swarms = &self.places_by_swarm;
        let at = swarms.partition_point(|(swarm, _)| swarm.0 < place);
        let (right, _) = swarms.get(at).or(swarms.first())?;
        let (left, _) = at
            .checked_sub(1)
            .and_then(|before| swarms.get(before))
            .or(swarms.last())?;
        let to_right = right.0.wrapping_sub(place);
        let to_left = place.wrapping_sub(left.0);
        Some(if to_right == 0 || to_right < to_left {
            *right
        } else {
            *left
        })
    }

    /// In the order of their keys; empty for a swarm that is not there.
    pub fn nodes_of(&self, swarm: SwarmId) -> &[Node] {
        let found = self.places_by_swarm.binary_search_by_key(&swarm, |(id, _)| *id).ok();
        let places = found.and_then(|at| self.places_by_swarm.get(at));
        places
            .and_then(|(_, places)| self.nodes.get(places.clone()))
            .unwrap_or_default()
    }

    pub fn node(&self, key: &NodeKey) -> Option<&Node> {
        let at = self.place_by_key.binary_search_by_key(key, |(key, _)| *key).ok()?;
        self.place_by_key.get(at).and_then(|(_, place)| self.nodes.get(*place))
    }

    /// Ascending.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmId> + '_ {
        self.places_by_swarm.iter().map(|(swarm, _)| *swarm)
    }

    /// By swarm, then by key.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

/// The order in which this notifier prefers a swarm's nodes; `instance` is the public key of its links.
///
/// A node's rank depends on nothing but these three, so nodes that come and go do not move the others, and notifiers with
/// other keys prefer other nodes.
pub fn rendezvous<'a>(instance: &[u8; 32], swarm: SwarmId, nodes: &'a [Node]) -> Vec<&'a Node> {
    let score = |node: &Node| blake2b_256(&[RENDEZVOUS_DOMAIN, instance, &swarm.0.to_be_bytes(), &node.key.0]);
    let mut order: Vec<&Node> = nodes.iter().collect();
    order.sort_by_cached_key(|node| Reverse((score(node), node.key)));
    order
}

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

/// An account's place on the circle: its key's four big-endian words, xored. The prefix does not count.
fn place_of(account: &AccountId) -> u64 {
    let (words, _) = account.key().as_chunks::<8>();
    words.iter().fold(0, |place, word| place ^ u64::from_be_bytes(*word))
}

const RENDEZVOUS_DOMAIN: &[u8] = b"quietline rendezvous 1";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const FULL_REPLY: &str = r#"{
    "block_hash": "abababababababababababababababababababababababababababababababab", "height": 1234, "status": "OK",
    "service_node_states": [
        {"pubkey_x25519": "0000000000000000000000000000000000000000000000000000000000000002", "public_ip": "10.0.0.2",
         "storage_lmq_port": 22020, "swarm_id": 18446744073709551614},
        {"pubkey_x25519": "0000000000000000000000000000000000000000000000000000000000000001", "public_ip": "10.0.0.1",
         "storage_lmq_port": 22020, "swarm_id": 7}
    ]}"#;

    #[test]
    fn a_reply_becomes_a_list_in_the_order_of_keys() {
        let list = NodeList::from_json(FULL_REPLY.as_bytes()).unwrap();
        assert_eq!((list.height, list.block_hash), (1234, [0xab; 32]));
        let ips: Vec<_> = list.nodes.iter().map(|node| node.ip.to_string()).collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(list.nodes.last().unwrap().swarm, SwarmId(u64::MAX - 1));
    }

    #[test]
    fn a_seeds_reply_is_unwrapped() {
        let wrapped = format!(r#"{{"jsonrpc":"2.0","id":0,"result":{FULL_REPLY}}}"#);
        assert_eq!(
            NodeList::from_json(wrapped.as_bytes()),
            NodeList::from_json(FULL_REPLY.as_bytes())
        );
    }

    #[test]
    fn a_list_survives_the_way_to_the_disk_and_back() {
        let list = NodeList::from_json(FULL_REPLY.as_bytes()).unwrap();
        assert_eq!(NodeList::from_json(&list.to_json()).unwrap(), list);
    }

    #[test]
    fn nodes_without_address_port_key_or_swarm_are_left_out() {
        let good = state("01", "10.0.0.1", "1", "1");
        for bad in [
            state("02", "", "1", "1"),
            state("02", "0.0.0.0", "1", "1"),
            state("02", "::1", "1", "1"),
            state("02", "224.0.0.1", "1", "1"),
            state("02", "10.0.0.2", "0", "1"),
            state("02", "10.0.0.2", "65536", "1"),
            state("02", "10.0.0.2", "1", "18446744073709551615"),
            state("02", "10.0.0.2", "1", "-1"),
            state("", "10.0.0.2", "1", "1"),
            state("zz", "10.0.0.2", "1", "1"),
            "5".to_owned(),
        ] {
            let list = NodeList::from_json(reply(&[good.clone(), bad]).as_bytes()).unwrap();
            assert_eq!(list.nodes.len(), 1);
        }
    }

    #[test]
    fn of_two_nodes_with_one_key_the_first_counts() {
        let text = reply(&[state("01", "10.0.0.1", "1", "1"), state("01", "10.0.0.2", "1", "2")]);
        let list = NodeList::from_json(text.as_bytes()).unwrap();
        assert_eq!(
            list.nodes.iter().map(|node| node.ip.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1"]
        );
    }

    #[test]
    fn what_is_no_list_is_refused_by_name() {
        let refusal = |text: &str| NodeList::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(refusal("{"), NodeListError::NotJson);
        assert_eq!(refusal("[]"), NodeListError::MissingField);
        assert_eq!(refusal(&FULL_REPLY.replace("height", "h")), NodeListError::MissingField);
        assert_eq!(
            refusal(&FULL_REPLY.replace("ababab", "zzabab")),
            NodeListError::MissingField
        );
        assert_eq!(refusal(&reply(&[])), NodeListError::Empty);
        assert_eq!(
            refusal(&reply(&vec!["0".to_owned(); MAX_NODES + 1])),
            NodeListError::TooManyNodes
        );
        assert_eq!(refusal(&" ".repeat((8 << 20) + 1)), NodeListError::TooLong);
    }

    #[test]
    fn the_difference_counts_each_node_that_came_went_or_changed_once() {
        let list = |nodes: Vec<Node>| NodeList {
            nodes,
            height: 1,
            block_hash: [0; 32],
        };
        let ten: Vec<_> = (0..10).map(|n| node(n, 1)).collect();
        assert_eq!(list(ten.clone()).difference(&list(ten.clone())), 0.0);
        let nine: Vec<_> = ten.iter().take(9).cloned().collect();
        assert_eq!(list(ten.clone()).difference(&list(nine.clone())), 0.1);
        assert_eq!(list(nine).difference(&list(ten.clone())), 0.1);
        let moved: Vec<_> = (0..10).map(|n| node(n, if n == 0 { 2 } else { 1 })).collect();
        assert_eq!(list(ten.clone()).difference(&list(moved)), 0.1);
        assert_eq!(
            list(ten.clone()).difference(&list((2..12).map(|n| node(n, 1)).collect())),
            0.2
        );
        assert_eq!(list(ten).difference(&list((10..20).map(|n| node(n, 1)).collect())), 1.0);
        assert_eq!(list(vec![]).difference(&list(vec![])), 0.0);
    }

    #[test]
    fn the_ring_finds_nodes_by_swarm_and_by_key() {
        let nodes = vec![node(1, 5), node(2, 3), node(3, 5)];
        let ring = SwarmRing::new(&NodeList {
            nodes,
            height: 1,
            block_hash: [0; 32],
        });
        assert_eq!(ring.swarms().collect::<Vec<_>>(), [SwarmId(3), SwarmId(5)]);
        assert_eq!(ring.nodes_of(SwarmId(5)), [node(1, 5), node(3, 5)]);
        assert_eq!(ring.nodes_of(SwarmId(4)), []);
        assert_eq!(ring.node(&node(2, 3).key), Some(&node(2, 3)));
        assert_eq!(ring.node(&NodeKey([9; 32])), None);
    }

    #[test]
    fn an_empty_ring_serves_nobody() {
        assert_eq!(SwarmRing::default().swarm_of(&AccountId::new([5; 33])), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_a_refusal(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = NodeList::from_json(&text);
        }

        #[test]
        fn a_node_that_leaves_does_not_move_the_others(
            instance: [u8; 32], swarm: u64, keys in prop::collection::btree_set(any::<u32>(), 1..20), gone: prop::sample::Index,
        ) {
            let nodes: Vec<_> = keys.iter().map(|key| node(*key, 1)).collect();
            let gone = gone.get(&nodes).key;
            let rest: Vec<_> = nodes.iter().filter(|node| node.key != gone).cloned().collect();
            let mut before = rendezvous(&instance, SwarmId(swarm), &nodes);
            before.retain(|node| node.key != gone);
            prop_assert_eq!(before, rendezvous(&instance, SwarmId(swarm), &rest));
        }

        #[test]
        fn the_order_of_preference_does_not_depend_on_the_order_of_the_list(
            instance: [u8; 32], keys in prop::collection::btree_set(any::<u32>(), 1..20),
        ) {
            let nodes: Vec<_> = keys.iter().map(|key| node(*key, 1)).collect();
            let reversed: Vec<_> = nodes.iter().rev().cloned().collect();
            let order = rendezvous(&instance, SwarmId(1), &nodes);
            prop_assert_eq!(&order, &rendezvous(&instance, SwarmId(1), &reversed));
            prop_assert_eq!(order.len(), nodes.len());
        }

        #[test]
        fn the_swarm_of_an_account_is_the_nearest_of_all(key: [u8; 32], swarms in prop::collection::btree_set(0..u64::MAX, 1..30)) {
            let mut id = [5; 33];
            id.split_at_mut(1).1.copy_from_slice(&key);
            let account = AccountId::new(id);
            let place = place_of(&account);
            let distance = |swarm: u64| place.wrapping_sub(swarm).min(swarm.wrapping_sub(place));
            let nearest = swarms.iter().map(|swarm| distance(*swarm)).min();
            prop_assert_eq!(ring_of(&swarms).swarm_of(&account).map(|swarm| distance(swarm.0)), nearest);
        }
    }

    #[test]
    fn notifiers_with_other_keys_prefer_other_nodes() {
        let nodes: Vec<_> = (0..7).map(|n| node(n, 1)).collect();
        let first = |instance: u8| {
            rendezvous(&[instance; 32], SwarmId(1), &nodes)
                .first()
                .map(|node| node.key)
        };
        let firsts: BTreeSet<_> = (0..40).map(first).collect();
        assert!(
            firsts.len() >= 5,
            "only {} of 7 nodes were anybody's first choice",
            firsts.len()
        );
    }

    fn ring_of(swarms: &BTreeSet<u64>) -> SwarmRing {
        let nodes = swarms.iter().zip(0..).map(|(swarm, n)| node(n, *swarm)).collect();
        SwarmRing::new(&NodeList {
            nodes,
            height: 1,
            block_hash: [0; 32],
        })
    }

    fn node(n: u32, swarm: u64) -> Node {
        let mut key = [0; 32];
        key.split_at_mut(4).0.copy_from_slice(&n.to_be_bytes());
        Node {
            key: NodeKey(key),
            ip: Ipv4Addr::LOCALHOST,
            port: 22020,
            swarm: SwarmId(swarm),
        }
    }

    fn state(key: &str, ip: &str, port: &str, swarm: &str) -> String {
        let key = key.repeat(32);
        format!(r#"{{"pubkey_x25519":"{key}","public_ip":"{ip}","storage_lmq_port":{port},"swarm_id":{swarm}}}"#)
    }

    fn reply(states: &[String]) -> String {
        let hash = "ab".repeat(32);
        format!(
            r#"{{"height":1,"block_hash":"{hash}","service_node_states":[{}]}}"#,
            states.join(",")
        )
    }
}
