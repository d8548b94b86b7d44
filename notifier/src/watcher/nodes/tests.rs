use super::super::fakes::FakeOxend;
use super::*;
use notifier_core::swarm::{Node, NodeKey, SwarmId};
use quietline_shared::redact::Secret;
use std::net::Ipv4Addr;
use std::path::Path;

fn list(numbers: std::ops::Range<u8>) -> NodeList {
    let node = |number: u8| Node {
        key: NodeKey([number; 32]),
        ip: Ipv4Addr::new(10, 0, 0, number),
        port: 22021,
        swarm: SwarmId(u64::from(number / 7)),
    };
    NodeList {
        nodes: numbers.map(node).collect(),
        height: 1,
        block_hash: [0; 32],
    }
}

fn settings(folder: &Path, oxends: &[&str]) -> NodesSettings {
    NodesSettings {
        oxends: oxends
            .iter()
            .map(|name| format!("ipc://{}", folder.join(name).display()).parse().unwrap())
            .collect(),
        seeds: Vec::new(),
        file: folder.join("nodes.json"),
        refresh_interval: Duration::from_secs(3600),
        max_list_change: 0.2,
        link: Arc::default(),
        identity: Arc::new(Identity::new(Secret::new([7; 32]))),
        keys: watch::channel(keys(1)).1,
    }
}

fn keys(number: u8) -> Arc<Keyring> {
    Arc::new(Keyring::new(vec![Secret::new([number; 32])]).unwrap())
}

async fn wait_for(nodes: &mut Nodes, length: usize) {
    let found = nodes
        .lists
        .wait_for(|list| list.as_ref().is_some_and(|list| list.nodes.len() == length));
    tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_list_comes_from_oxend_is_kept_and_serves_a_start_without_any_source() {
    let folder = tempfile::tempdir().unwrap();
    let oxend = FakeOxend::start(&folder.path().join("oxend"), list(1..50).to_json());
    let mut nodes = Nodes::spawn(settings(folder.path(), &["oxend"]));
    wait_for(&mut nodes, 49).await;
    assert_eq!(oxend.asked.lock().unwrap()[0], "ping.ping");
    let file = folder.path().join("nodes.json");
    while !file.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((nodes, oxend));

    let mut nodes = Nodes::spawn(settings(folder.path(), &[]));
    wait_for(&mut nodes, 49).await;
}

#[tokio::test]
async fn a_block_brings_the_next_list_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let oxend = FakeOxend::start(&folder.path().join("oxend"), list(1..50).to_json());
    let mut nodes = Nodes::spawn(settings(folder.path(), &["oxend"]));
    wait_for(&mut nodes, 49).await;
    *oxend.list.lock().unwrap() = list(1..52).to_json();
    oxend.announce_block();
    wait_for(&mut nodes, 51).await;
    assert!(oxend.asked.lock().unwrap().iter().any(|command| command == "sub.block"));
}

#[tokio::test]
async fn a_jump_waits_for_a_second_source_that_agrees() {
    let folder = tempfile::tempdir().unwrap();
    kept::write(&folder.path().join("nodes.json"), &list(1..50).to_json(), &keys(1)).unwrap();
    let first = FakeOxend::start(&folder.path().join("first"), list(100..150).to_json());
    let second = FakeOxend::start(&folder.path().join("second"), list(1..51).to_json());
    let mut nodes = Nodes::spawn(settings(folder.path(), &["first", "second"]));
    // The first jumped alone: the second is believed.
    wait_for(&mut nodes, 50).await;
    *second.list.lock().unwrap() = list(100..149).to_json();
    second.announce_block();
    wait_for(&mut nodes, 49).await;
    assert_eq!(nodes.lists.borrow().as_ref().unwrap().nodes[0].key, NodeKey([100; 32]));
    drop(first);
}

#[tokio::test]
async fn an_oxend_that_starts_late_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Nodes::spawn(settings(folder.path(), &["oxend"]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(nodes.lists.borrow().is_none());
    let _oxend = FakeOxend::start(&folder.path().join("oxend"), list(1..50).to_json());
    wait_for(&mut nodes, 49).await;
}

#[tokio::test]
async fn a_kept_list_goes_over_to_a_new_key_and_serves_a_start_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nodes.json");
    // As an earlier version left it.
    std::fs::write(&file, list(1..50).to_json()).unwrap();
    let (publish, current) = watch::channel(keys(1));
    let mut nodes = Nodes::spawn(NodesSettings {
        keys: current,
        ..settings(folder.path(), &[])
    });
    wait_for(&mut nodes, 49).await;
    for number in [1, 2] {
        publish.send_replace(keys(number));
        while kept::key_of(&file).unwrap() != keys(number).ids().first().copied() {
            tokio::task::yield_now().await;
        }
    }
    drop(nodes);
    let mut nodes = Nodes::spawn(NodesSettings {
        keys: watch::channel(keys(2)).1,
        ..settings(folder.path(), &[])
    });
    wait_for(&mut nodes, 49).await;
}
