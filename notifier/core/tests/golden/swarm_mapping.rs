//! `swarm-mapping.json`: which swarm serves an account.

use crate::{array, list, text, vectors};
use notifier_core::account::AccountId;
use notifier_core::swarm::{Node, NodeKey, NodeList, SwarmId, SwarmRing};
use serde_json::Value;
use std::net::Ipv4Addr;

#[test]
fn every_account_is_served_by_the_swarm_the_incumbent_names() {
    let file = vectors(include_str!("../../../../tests/vectors/swarm-mapping.json"));
    let cases = list(&file, "cases");
    for case in cases {
        let ring = ring(list(case, "swarm_ids"));
        let swarm = ring.swarm_of(&AccountId::new(array(case, "account_hex")));
        let expected = match case.get("swarm_is_invalid").and_then(Value::as_bool) {
            Some(true) => None,
            _ => Some(SwarmId(text(case, "swarm").parse().unwrap())),
        };
        assert_eq!(swarm, expected, "{}", text(case, "id"));
    }
    assert_eq!(cases.len(), 43);
}

/// One node in each swarm.
fn ring(swarm_ids: &[Value]) -> SwarmRing {
    let node = |(n, id): (u8, &Value)| Node {
        key: NodeKey([n; 32]),
        ip: Ipv4Addr::LOCALHOST,
        port: 22020,
        swarm: SwarmId(id.as_str().unwrap().parse().unwrap()),
    };
    let nodes = (0..).zip(swarm_ids).map(node).collect();
    SwarmRing::new(&NodeList {
        nodes,
        height: 1,
        block_hash: [0; 32],
    })
}
