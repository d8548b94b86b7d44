//! Which nodes watch an account, and that they go on to: nodes that stop, forget, refuse or leave, lists that change or lie.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use quietline_lab::keys::Issued;
use quietline_lab::lab::{Lab, LabError, LabSettings, OxendKind};
use quietline_lab::node::{Fault, SwarmMessage};
use quietline_lab::oxend::OxendMood;
use quietline_lab::phone::{Phone, PhoneBody, PushService, unix_milliseconds};
use quietline_lab::provider::Answer;
use quietline_lab::trial::{
    DAY, PATIENCE, enroll, enroll_beside, enrolled, figure, reach, receive_sent, until_figure, watched,
};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_of_an_accounts_swarm_watch_it_and_no_other_node_is_told() {
    let (_folder, lab) = lab(|settings| settings).await;
    for service in PushService::ALL {
        let phone = enrolled(&lab, service).await;
        reach(&lab, &phone).await;
        let nodes = watched(&lab, &phone).await;
        assert_eq!(nodes.len(), 3);
        let swarm = swarm_of(&lab, &phone);
        assert!(nodes.iter().all(|node| swarm.contains(node)), "{nodes:?} {swarm:?}");
    }
    assert_eq!(lab.fleet.counts().refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_has_a_stand_in() {
    let (_folder, lab) = lab(quick_pings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let before = watched(&lab, &phone).await;
    lab.fleet.stop(before[0]);
    lab.fleet.mute(before[1], true);
    // Subscriptions at the stopped and the mute one stay, so two more make five.
    let nodes = lab.wait_watched(&phone, 4, PATIENCE).await.unwrap();
    let stand_in = *nodes.iter().find(|node| !before.contains(node)).unwrap();
    hears(&lab, &phone, stand_in).await;
    hears(&lab, &phone, before[2]).await;
    lab.fleet.resume(before[0]);
    lab.fleet.mute(before[1], false);
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_subscriptions_is_asked_again_at_once() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    for node in swarm_of(&lab, &phone) {
        lab.fleet.restart(node);
    }
    lab.fleet.settle().unwrap();
    for node in watched(&lab, &phone).await {
        hears(&lab, &phone, node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_broke_is_opened_anew() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let nodes = watched(&lab, &phone).await;
    for node in swarm_of(&lab, &phone) {
        lab.fleet.stop(node);
    }
    until_figure(&lab, "watch_links_lost_total", "", |lost| lost >= 3.0).await;
    for node in swarm_of(&lab, &phone) {
        lab.fleet.resume(node);
    }
    for node in nodes {
        hears(&lab, &phone, node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_whose_swarm_changed_is_watched_in_the_new_one_only_once_two_sources_agree() {
    let (_folder, lab) = lab(|settings| {
        settings
            .with("watcher.renew_after_min", "1s")
            .with("watcher.renew_after_max", "2s")
    })
    .await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let old = swarm_of(&lab, &phone);
    // The swarms change places. Oxend and the seed agree on it.
    lab.oxend.change(|list| {
        let ids: Vec<_> = list.nodes.iter().map(|node| node.swarm).collect();
        let next = |id: u64| *ids.iter().find(|other| **other > id).unwrap_or(&ids[0]);
        for node in &mut list.nodes {
            node.swarm = next(node.swarm);
        }
    });
    let new = swarm_of(&lab, &phone);
    assert!(old.iter().all(|node| !new.contains(node)));
    until_watched_at_least(&lab, &phone, &new, 3).await;
    reach(&lab, &phone).await;
    assert_no_more_records(&lab, &old, &new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_left_are_replaced_and_not_asked_again() {
    let (_folder, lab) = lab(|settings| {
        settings
            .with("watcher.renew_after_min", "1s")
            .with("watcher.renew_after_max", "2s")
    })
    .await;
    let phone = enrolled(&lab, PushService::Firebase).await;
    let before = watched(&lab, &phone).await;
    let gone = &before[..2];
    let keys: Vec<_> = gone
        .iter()
        .map(|node| lab.fleet.addresses()[*node].public_key)
        .collect();
    lab.oxend
        .change(|list| list.nodes.retain(|node| !keys.contains(&node.public_key)));
    // The two that are left in the swarm join the one that stayed.
    let nodes = lab.wait_watched(&phone, 5, PATIENCE).await.unwrap();
    let stayed: Vec<_> = nodes.into_iter().filter(|node| !gone.contains(node)).collect();
    for node in &stayed {
        hears(&lab, &phone, *node).await;
    }
    assert_no_more_records(&lab, gone, &stayed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_devices_is_renewed_no_more() {
    let (_folder, lab) = lab(|settings| {
        settings
            .with("watcher.renew_after_min", "1s")
            .with("watcher.renew_after_max", "2s")
    })
    .await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let second = phone.another_device(PushService::Firebase);
    enroll(&lab, &second).await;
    let nodes = swarm_of(&lab, &phone);
    let elsewhere = loop {
        let other = lab.phone(PushService::Apns);
        if swarm_of(&lab, &other) != nodes {
            enroll(&lab, &other).await;
            break swarm_of(&lab, &other);
        }
    };
    // One device is left: renewals go on.
    assert!(lab.unsubscribe(&phone).await.unwrap().is_success());
    let before = records(&lab, &nodes);
    until_records(&lab, &nodes, before + 6).await;
    // The last is dead, says its provider, which is believed once it has delivered something.
    reach(&lab, &second).await;
    lab.fcm
        .script()
        .always(&second.token, Answer::fcm(404, "NOT_FOUND", Some("UNREGISTERED"), None));
    lab.send(&second, 0, b"to a dead token", DAY);
    until_figure(&lab, "store_dead_devices_total", "", |dead| dead == 1.0).await;
    until_figure(&lab, "watch_accounts", "", |accounts| accounts == 1.0).await;
    assert_no_more_records(&lab, &nodes, &elsewhere).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_namespaces_reach_the_nodes_with_the_renewal_that_brings_them() {
    let (_folder, lab) = lab(|settings| settings).await;
    let mut phone = lab.phone(PushService::Apns);
    phone.namespaces = vec![0];
    phone.want_data = false;
    enroll(&lab, &phone).await;
    // Signatures are of one second; a renewal is signed later.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    phone.namespaces = vec![0, 3];
    phone.want_data = true;
    enroll_beside(&lab, &phone).await;
    let sent = lab.send(&phone, 3, b"a new namespace", DAY);
    receive_sent(&lab, &phone, &sent, b"a new namespace").await;
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_refused_in_part_is_repeated() {
    let (_folder, lab) = lab(|settings| settings).await;
    let first = lab.phone(PushService::Apns);
    for node in swarm_of(&lab, &first) {
        lab.fleet.inject(node, Fault::RefuseItem { index: 0, code: 6 }, 1);
    }
    enroll(&lab, &first).await;
    reach(&lab, &first).await;
    let second = lab.phone(PushService::Apns);
    for node in swarm_of(&lab, &second) {
        lab.fleet.inject(node, Fault::RefuseAll { code: 99 }, 2);
    }
    enroll(&lab, &second).await;
    reach(&lab, &second).await;
    assert!(lab.fleet.counts().refused >= 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_nonsense_or_nothing_is_asked_again() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let process = lab.notifier().process_id();
    let faults = [
        Fault::UnknownCommand,
        Fault::Forbidden,
        Fault::Garbage(b"not bencode".to_vec()),
        Fault::Garbage(Vec::new()),
        Fault::Garbage(b"le".to_vec()),
        Fault::Garbage(b"d7:successi1ee".repeat(100)),
        Fault::Garbage(b"l".repeat(1_000_000)),
        Fault::Delay(Duration::from_secs(1)),
        Fault::Silence,
    ];
    let count = faults.len();
    for fault in faults {
        let phone = lab.phone(PushService::Apns);
        for node in swarm_of(&lab, &phone) {
            lab.fleet.inject(node, fault.clone(), 1);
        }
        enroll(&lab, &phone).await;
        reach(&lab, &phone).await;
        for node in swarm_of(&lab, &phone) {
            lab.fleet.clear_faults(node);
        }
    }
    until_figure(&lab, "watch_accounts_covered", "", |covered| covered == count as f64).await;
    assert_eq!(lab.notifier().process_id(), process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oxend_is_reached_over_ipc_tcp_and_curve() {
    for kind in [OxendKind::Ipc, OxendKind::Tcp, OxendKind::Curve] {
        let alone = |mut settings: LabSettings| {
            settings.oxend = kind;
            settings.seeds = 0;
            settings
        };
        let (_folder, lab) = lab(alone).await;
        assert!(lab.oxend.address().starts_with(match kind {
            OxendKind::Ipc => "ipc://",
            OxendKind::Tcp => "tcp://",
            OxendKind::Curve => "curve://",
        }));
        let phone = enrolled(&lab, PushService::Apns).await;
        reach(&lab, &phone).await;
        let counters = lab.oxend.counters();
        assert!(
            counters.lists.load(Ordering::Relaxed) >= 1 && counters.block_subscriptions.load(Ordering::Relaxed) >= 1
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_oxend_a_seed_with_the_pinned_certificate_is_enough() {
    let (_folder, lab) = lab(|settings| settings.with("watcher.oxend", toml::Value::Array(vec![]))).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    reach(&lab, &phone).await;
    assert!(lab.seeds[0].asked() >= 1);
    assert_eq!(lab.oxend.counters().lists.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_with_another_certificate_is_not_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path()).with("watcher.oxend", toml::Value::Array(vec![]));
    settings.ready_within = Duration::from_secs(5);
    let mut lab = Lab::surround(settings).unwrap();
    let another = Issued::self_signed().unwrap();
    std::fs::write(folder.path().join("keys/seed1.pem"), &another.certificate_pem).unwrap();
    assert!(matches!(lab.start_notifier().await, Err(LabError::Notifier(_))));
    until_figure(&lab, "watch_node_list_failures_total", "", |failures| failures >= 1.0).await;
    assert_eq!((lab.seeds[0].asked(), lab.fleet.counts().greetings), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_any_source_works_from_the_kept_list() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    assert!(lab.stop_notifier(PATIENCE).await.unwrap().unwrap().success());
    lab.oxend.set_mood(OxendMood::Silent);
    lab.seeds.clear();
    for node in swarm_of(&lab, &phone) {
        lab.fleet.restart(node);
    }
    lab.start_notifier().await.unwrap();
    watched(&lab, &phone).await;
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_jumps_is_refused_while_only_one_source_tells_it() {
    let quick = |mut settings: LabSettings| {
        settings.seeds = 0;
        settings.with("watcher.refresh_interval", "10s")
    };
    let (_folder, lab) = lab(quick).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let old = swarm_of(&lab, &phone);
    let honest = lab.list.lock().unwrap().clone();
    let greetings = lab.fleet.counts().greetings;
    lab.oxend.change(|list| list.nodes.truncate(5));
    until_figure(&lab, "watch_node_list_refused_total", "", |refused| refused >= 1.0).await;
    assert_eq!(figure(&lab, "watch_nodes", "").await, 15.0);
    assert_eq!(lab.fleet.counts().greetings, greetings);
    hears(
        &lab,
        &phone,
        lab.fleet.watchers(phone.account(), phone.session_ed25519())[0],
    )
    .await;
    // Back again: nothing had happened.
    lab.oxend.change(|list| list.nodes.clone_from(&honest.nodes));
    assert_eq!(swarm_of(&lab, &phone), old);
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_oxend_does_not_keep_a_seed_from_being_believed() {
    let (_folder, lab) = lab(|settings| settings.with("watcher.refresh_interval", "10s")).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let mut lie = lab.list.lock().unwrap().clone();
    for node in &mut lie.nodes {
        node.port = 9;
    }
    let asked = lab.seeds[0].asked();
    for mood in [
        OxendMood::Lying(lie.to_json().to_string()),
        OxendMood::Lying("[".repeat(1_000_000)),
        OxendMood::Failing,
    ] {
        lab.oxend.set_mood(mood);
        lab.oxend.announce_block();
    }
    // One node leaves, which only the seed tells.
    let left = lab.fleet.addresses()[0].public_key;
    lab.oxend
        .change(|list| list.nodes.retain(|node| node.public_key != left));
    until_figure(&lab, "watch_nodes", "", |nodes| nodes == 14.0).await;
    assert!(lab.seeds[0].asked() > asked);
    reach(&lab, &phone).await;
}

async fn lab(change: impl FnOnce(LabSettings) -> LabSettings) -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let lab = Lab::start(change(settings(folder.path()))).await.unwrap();
    (folder, lab)
}

fn settings(folder: &std::path::Path) -> LabSettings {
    let mut settings = LabSettings::in_folder(folder);
    settings.ready_within = PATIENCE;
    settings
}

fn quick_pings(settings: LabSettings) -> LabSettings {
    settings
        .with("watcher.ping_after", "1s")
        .with("watcher.dead_after", "1s")
        .with("watcher.dial_timeout", "2s")
}

fn swarm_of(lab: &Lab, phone: &Phone) -> Vec<usize> {
    let list = lab.list.lock().unwrap();
    let keys: Vec<_> = list
        .nodes_of(phone.account())
        .into_iter()
        .map(|at| list.nodes[at].public_key)
        .collect();
    let addresses = lab.fleet.addresses();
    (0..addresses.len())
        .filter(|node| keys.contains(&addresses[*node].public_key))
        .collect()
}

/// A message that only this node stores arrives. Stored again until then: a link may not be back yet, and the copies are one push.
async fn hears(lab: &Lab, phone: &Phone, node: usize) {
    let timestamp_ms = unix_milliseconds();
    let data = format!("at {node} {timestamp_ms}").into_bytes();
    let message = SwarmMessage {
        account: *phone.account(),
        session_ed25519: phone.session_ed25519().copied(),
        namespace: 0,
        timestamp_ms,
        expiry_ms: timestamp_ms + 86_400_000,
        data: data.clone(),
    };
    let arrival = async {
        loop {
            lab.fleet.store([node], &message);
            if let Some((_, arrived)) = lab.next_delivery(phone, Duration::from_millis(500)).await {
                return arrived;
            }
        }
    };
    let arrived = tokio::time::timeout(PATIENCE, arrival).await.unwrap();
    assert_eq!((arrived.hash, arrived.body), (message.hash(), PhoneBody::Data(data)));
}

async fn until_watched_at_least(lab: &Lab, phone: &Phone, nodes: &[usize], enough: usize) {
    let search = async {
        loop {
            let watching = lab.fleet.watchers(phone.account(), phone.session_ed25519());
            if watching.iter().filter(|node| nodes.contains(node)).count() >= enough {
                return;
            }
            let before = lab.fleet.counts().requests;
            lab.fleet.wait_counts(PATIENCE, |counts| counts.requests > before).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap();
}

fn records(lab: &Lab, nodes: &[usize]) -> u64 {
    nodes
        .iter()
        .map(|node| lab.fleet.node_counters(*node).records.load(Ordering::Relaxed))
        .sum()
}

async fn until_records(lab: &Lab, nodes: &[usize], enough: u64) {
    let reached = lab.fleet.wait_counts(PATIENCE, |_| records(lab, nodes) >= enough);
    assert!(reached.await.is_some(), "renewals go on");
}

/// While `others` are asked again and again, `nodes` are not.
async fn assert_no_more_records(lab: &Lab, nodes: &[usize], others: &[usize]) {
    // What was on its way when the watch ended has arrived when the next renewal of the others has.
    until_records(lab, others, records(lab, others) + 3).await;
    let (before, others_before) = (records(lab, nodes), records(lab, others));
    until_records(lab, others, others_before + 9).await;
    assert_eq!(records(lab, nodes), before);
}
