//! One notifier under all the bad input at once that its sockets can get: from clients, onions, operators' ports, storage nodes,
//! sources of the node list and providers. Throughout it lives, its memory is bounded, and who behaves is served.
#![allow(clippy::unwrap_used, reason = "the helpers of a test are outside of its functions")]

mod clients;
mod nodes;

use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::notifier::Metrics;
use quietline_lab::oxend::OxendMood;
use quietline_lab::phone::{Phone, PushService};
use quietline_lab::provider::Answer;
use quietline_lab::sodium;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// For everything that is awaited: generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const FORTNIGHT: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long everything goes on at once.
const STORM: Duration = Duration::from_secs(20);
/// What stays in memory afterwards, and what is in use at any moment, beyond what it was before.
const STAYS: u64 = 64 << 20;
const PEAK: u64 = 192 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_all_bad_input_at_once_the_notifier_serves_who_behaves() {
    let folder = tempfile::tempdir().unwrap();
    let liars = nodes::Liars::start();
    let mut settings = LabSettings::in_folder(folder.path().join("lab"))
        .with("watcher.nodes_per_swarm", 20)
        .with("watcher.dial_timeout", "2s")
        .with("event.node_rate", 500)
        .with("event.node_burst", 1000)
        .with("http.request_timeout", "5s")
        .with("dispatch.timeout", "3s");
    settings.swarms = 2;
    settings.nodes_per_swarm = 4;
    settings.ready_within = PATIENCE;
    // Each has memory of its own that it does not give back, and the bounds know nothing of the machine's cores.
    settings.workers = Some(4);
    let mut lab = Lab::surround(settings).unwrap();
    add_bad_sources(&lab, &liars);
    lab.start_notifier().await.unwrap();

    // Who behaves: woken all the time. Who waits: their provider is away until the end.
    let mut good = Vec::new();
    for service in [PushService::Apns, PushService::Firebase] {
        for _ in 0..4 {
            good.push(subscribed(&lab, service).await);
        }
    }
    let mut waiting = Vec::new();
    let mut victims = Vec::new();
    for _ in 0..4 {
        waiting.push(subscribed(&lab, PushService::ApnsSandbox).await);
        victims.push(subscribed(&lab, PushService::Apns).await);
    }
    let arrivals = Arrivals::of(&lab, good.iter().chain(&waiting));
    for phone in &good {
        let sent = arrivals.send(&lab, phone);
        arrivals.wait(&sent).await;
    }
    lab.apns_sandbox.set_down(true);
    for _ in 0..5 {
        for phone in &waiting {
            arrivals.send(&lab, phone);
        }
    }
    let before = lab.notifier().resident_bytes().unwrap();

    liars.join_swarms(&lab);
    let listed = lab.list.lock().unwrap().nodes.len() as f64;
    wait_metric(&mut lab, "watch_nodes", "", listed).await;
    let over = Arc::new(AtomicBool::new(false));
    let tasks = clients::attack(lab.http_address(), lab.ops_address(), lab.keys.onion_public, &over);
    let began = Instant::now();
    let (mut round, mut peak) = (0u32, before);
    while began.elapsed() < STORM {
        nodes::flood(&lab, round);
        bad_lists(&lab, round);
        bad_answers(&lab, &victims, round);
        let sent: Vec<_> = good.iter().map(|phone| arrivals.send(&lab, phone)).collect();
        for hash in &sent {
            arrivals.wait(hash).await;
        }
        peak = peak.max(lab.notifier().resident_bytes().expect("it lives"));
        round += 1;
    }
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert!(round > 3, "{round} rounds");
    expect_refusals(&mut lab).await;

    // Afterwards everything is as it was.
    lab.oxend.set_mood(OxendMood::Helpful);
    lab.apns.script().clear();
    lab.apns_sandbox.set_down(false);
    arrivals.wait_all().await;
    // Ready means that as many nodes as are wanted watch; with liars in their places they never would.
    let ours = lab.fleet.addresses().len();
    lab.oxend.change(|list| list.nodes.truncate(ours));
    wait_metric_below(&mut lab, "watch_nodes", ours as f64 + 1.0).await;
    let after = lab.notifier().resident_bytes().unwrap();
    println_figures(before, peak, after);
    assert!(peak < before + PEAK, "memory rose from {before} to {peak} bytes");
    assert!(after < before + STAYS, "memory went from {before} to {after} bytes");
    assert_eq!(metrics(&mut lab).await.sum("service_panics_total"), Some(0.0));
    assert!(lab.stop_notifier(PATIENCE).await.unwrap().unwrap().success());
    lab.start_notifier().await.unwrap();
    assert_eq!(
        lab.notifier()
            .metrics()
            .await
            .unwrap()
            .sum("store_damaged_rows_total")
            .unwrap_or(0.0),
        0.0
    );
    for phone in good.iter().chain(&waiting) {
        let sent = arrivals.send(&lab, phone);
        arrivals.wait(&sent).await;
    }
}

/// The figures belong into the log of a run that fails; cargo shows them only then.
#[allow(clippy::print_stdout, reason = "a test's own figures")]
fn println_figures(before: u64, peak: u64, after: u64) {
    println!(
        "resident MiB: {} before, {} at most, {} after",
        before >> 20,
        peak >> 20,
        after >> 20
    );
}

/// An oxend that speaks nonsense stands before the good one.
fn add_bad_sources(lab: &Lab, liars: &nodes::Liars) {
    let text = std::fs::read_to_string(lab.settings_file()).unwrap();
    let mut settings: toml::Table = text.parse().unwrap();
    let oxends = settings["watcher"]["oxend"].as_array_mut().unwrap();
    for port in liars.ports() {
        let entry = toml::Table::from_iter([("address".to_owned(), format!("tcp://127.0.0.1:{port}").into())]);
        oxends.push(entry.into());
    }
    std::fs::write(lab.settings_file(), settings.to_string()).unwrap();
}

async fn subscribed(lab: &Lab, service: PushService) -> Phone {
    let phone = lab.phone(service);
    assert!(lab.subscribe(&phone).await.unwrap().is_success());
    assert!(lab.wait_watched(&phone, 4, PATIENCE).await.is_some());
    phone
}

/// Lists that are none, that are empty, huge or nested, or that name a node twice.
fn bad_lists(lab: &Lab, round: u32) {
    let node =
        |key: &str| format!(r#"{{"pubkey_x25519":"{key}","public_ip":"127.0.0.1","storage_lmq_port":1,"swarm_id":0}}"#);
    let key = hex::encode(sodium::random::<32>());
    let list = |nodes: &str| format!(r#"{{"height":1,"service_node_states":[{nodes}],"status":"OK"}}"#);
    let text = match round % 7 {
        0 => "no list".to_owned(),
        1 => list(""),
        2 => list(&format!("{},{}", node(&key), node(&key))),
        3 => "[".repeat(100_000),
        4 => list(&vec![node(&key); 60_000].join(",")),
        5 => "x".repeat(9 << 20),
        _ => list(&node("zz")),
    };
    lab.oxend.set_mood(OxendMood::Lying(text));
    lab.oxend.announce_block();
}

/// Answers that are huge, slow, cut off, in a wrong form, or none.
fn bad_answers(lab: &Lab, victims: &[Phone], round: u32) {
    let answers = [
        Answer::huge_body(400, 4 << 20),
        Answer::html(404),
        Answer::Late(Duration::from_secs(1), Box::new(Answer::huge_body(400, 1 << 20))),
        Answer::Stall,
        Answer::Reset,
        Answer::RefuseStream,
        Answer::Refuse {
            status: 400,
            headers: vec![
                ("content-type", "application/json".into()),
                ("x-long", "y".repeat(12 << 10)),
            ],
            body: "[".repeat(7_000).into(),
        },
    ];
    for (number, phone) in victims.iter().enumerate() {
        let answer = answers[(round as usize + number) % answers.len()].clone();
        lab.apns.script().queue(&phone.token, answer);
        lab.send(phone, 0, &sodium::random::<64>(), FORTNIGHT);
    }
}

/// What was done to it shows where an operator looks.
async fn expect_refusals(lab: &mut Lab) {
    for (kind, label) in ["frame_too_large", "too_many_parts", "message_too_large"]
        .into_iter()
        .enumerate()
    {
        let deadline = Instant::now() + PATIENCE;
        // A link that has just ended hears nothing: it is said until somebody hears it.
        while metrics(lab).await.sum_where("watch_link_ends_total", label).is_none() {
            assert!(Instant::now() < deadline, "no link ends for {label}");
            lab.fleet.push_raw(0, nodes::beyond_limits(kind as u32));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    for (metric, label) in [
        ("http_refused_total", "source_limit"),
        ("http_refused_total", "unreadable"),
        ("http_refused_total", "too_large"),
        ("http_refused_total", "too_slow"),
        ("http_refused_total", "broken"),
        ("http_items_total", "invalid_json"),
        ("http_items_total", "too_large"),
        ("event_refused_total", "node_rate"),
        ("event_refused_total", "unexpected_byte"),
        ("event_refused_total", "foreign_account"),
        ("watch_link_ends_total", "not_zmtp"),
        ("watch_link_ends_total", "old_version"),
        ("watch_link_ends_total", "mechanism_mismatch"),
        ("watch_link_ends_total", "frame_too_large"),
        ("watch_link_ends_total", "handshake_timeout"),
        ("watch_link_ends_total", "closed_in_greeting"),
        ("watch_link_ends_total", "closed_in_handshake"),
        ("watch_node_list_answers_total", "source=\"oxend\""),
        ("dispatch_answers_total", "reset"),
    ] {
        wait_metric(lab, metric, label, 1.0).await;
    }
}

async fn wait_metric(lab: &mut Lab, metric: &str, label: &str, least: f64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = metrics(lab).await;
        if metrics.sum_where(metric, label).unwrap_or(0.0) >= least {
            return;
        }
        let known: Vec<_> = metrics.text().lines().filter(|line| line.starts_with(metric)).collect();
        assert!(
            Instant::now() < deadline,
            "{metric} {label} does not reach {least}; {}",
            known.join("\n")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn wait_metric_below(lab: &mut Lab, metric: &str, limit: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metrics(lab).await.sum(metric).is_none_or(|value| value >= limit) {
        assert!(Instant::now() < deadline, "{metric} stays at {limit} or above");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn metrics(lab: &mut Lab) -> Metrics {
    // Strangers sit on this port too: it may take a few attempts.
    for _ in 0..100 {
        if let Ok(metrics) = lab.notifier().metrics().await {
            return metrics;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the metrics are not to be had");
}

/// Which messages were sent, and which arrived at their phone.
struct Arrivals {
    sent: Mutex<HashSet<String>>,
    arrived: Arc<Mutex<HashSet<String>>>,
    changed: Arc<tokio::sync::Notify>,
}

impl Arrivals {
    fn of<'a>(lab: &Lab, phones: impl Iterator<Item = &'a Phone>) -> Self {
        let phones: HashMap<String, Phone> = phones.map(|phone| (phone.token.clone(), phone.clone())).collect();
        let (arrived, changed) = (
            Arc::new(Mutex::new(HashSet::new())),
            Arc::new(tokio::sync::Notify::new()),
        );
        let (inner, ring) = (Arc::clone(&arrived), Arc::clone(&changed));
        let fresh = lab.deliveries.observe(move |push| {
            if let Some(phone) = phones.get(&push.token).filter(|_| push.accepted) {
                let message = phone
                    .open(&push.enc_payload)
                    .expect("a push to a phone opens with its key");
                inner.lock().unwrap().insert(message.hash);
                ring.notify_waiters();
            }
        });
        assert!(fresh);
        Self {
            sent: Mutex::default(),
            arrived,
            changed,
        }
    }

    fn send(&self, lab: &Lab, phone: &Phone) -> String {
        let hash = lab.send(phone, 0, &sodium::random::<200>(), FORTNIGHT).hash;
        self.sent.lock().unwrap().insert(hash.clone());
        hash
    }

    async fn wait(&self, hash: &str) {
        self.until(|arrived| arrived.contains(hash)).await;
    }

    async fn wait_all(&self) {
        let sent = self.sent.lock().unwrap().clone();
        self.until(|arrived| sent.is_subset(arrived)).await;
    }

    async fn until(&self, done: impl Fn(&HashSet<String>) -> bool) {
        let search = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if done(&self.arrived.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        let (sent, arrived) = (self.sent.lock().unwrap().len(), self.arrived.lock().unwrap().len());
        tokio::time::timeout(PATIENCE, search)
            .await
            .unwrap_or_else(|_| panic!("not all arrives: {arrived} of {sent} had before"));
    }
}
