//! From the start of the process until every one of 1,000,000 accounts is acknowledged by three nodes, and the memory that
//! takes. The file of subscriptions is made once, through the product's store, and kept under target/.
//!
//! `-- accounts=100000` for fewer, `-- nodes=252` for one of the two networks.

#[path = "support/report.rs"]
mod report;
#[path = "support/world.rs"]
mod world;

use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use notifier_core::subscription::{DeviceId, Subscription};
use quietline_lab::lab::Lab;
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::sodium;
use quietline_notifier::keyring::Keyring;
use quietline_notifier::store::sqlite::SqliteStore;
use quietline_notifier::store::{LookupKey, StoreSettings, SubscriptionStore};
use quietline_shared::redact::Secret;
use report::Goal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// With it goes what an older file does not have.
const VERSION: u32 = 4;
/// Signatures count for 14 days.
const OLDEST_FILE: Duration = Duration::from_secs(10 * 86_400);
/// Not all the same, which the notifier takes for a placeholder.
const LOOKUP_KEY: [u8; 32] = [
    0x3f, 0x05, 0xae, 0x41, 0xac, 0x53, 0x3f, 0x7b, 0x4f, 0xde, 0x78, 0xab, 0x95, 0xb7, 0x37, 0xf5, 0xc4, 0x53, 0xbd,
    0xc8, 0x48, 0x9b, 0xcd, 0xe5, 0xf1, 0xba, 0x98, 0x24, 0xfb, 0x5f, 0x2e, 0x3f,
];

const ROW_KEY: [u8; 32] = [
    0x91, 0x6c, 0x0b, 0xe2, 0x57, 0x9d, 0x20, 0x48, 0xc6, 0x13, 0xfa, 0x3e, 0x7d, 0xd1, 0x84, 0x65, 0x2f, 0xb0, 0x99,
    0x0e, 0x71, 0xda, 0x36, 0xab, 0xcc, 0x42, 0x18, 0xe7, 0x5a, 0x03, 0xbd, 0x6f,
];

fn main() {
    let number = |name: &str| std::env::args().find_map(|argument| argument.strip_prefix(name)?.parse::<usize>().ok());
    let accounts = number("accounts=").unwrap_or(1_000_000);
    let file = world::runtime().block_on(subscriptions(accounts));
    for (nodes, goal) in [(252, 15.0), (1_800, 60.0)] {
        if number("nodes=").is_none_or(|wanted| wanted == nodes) {
            world::runtime().block_on(start(&file, accounts, nodes, goal));
        }
    }
}

async fn start(file: &Path, accounts: usize, nodes: usize, goal: f64) {
    let mut settings = world::settings("cold-start", nodes / 7);
    settings.nodes_per_swarm = 7;
    settings.nodes.count_only = true;
    let lab = Lab::surround(settings).expect("the lab is built");
    // 1,800 nodes are 257 swarms of seven and one that lacks a node.
    let folder = &lab.settings.folder;
    std::fs::write(folder.join("keys/lookup"), LOOKUP_KEY).expect("the folder is ours");
    std::fs::write(folder.join("keys/rows"), ROW_KEY).expect("the folder is ours");
    std::fs::copy(file, folder.join("data/subscriptions.db")).expect("the disk has room");
    let binary = Notifier::find_binary(None).expect("it is built");
    let log = folder.join("notifier.log");
    let began = Instant::now();
    let mut notifier =
        Notifier::spawn(&binary, &lab.settings_file(), &log, lab.ops_address()).expect("the notifier starts");
    let records = 3 * accounts as u64;
    let acknowledged = async {
        let counts = lab
            .fleet
            .wait_counts(world::PATIENCE, |counts| counts.records - counts.refused >= records)
            .await;
        (counts.is_some(), began.elapsed())
    };
    let covered = async {
        // Says why, if it ends.
        notifier
            .wait_ready(world::PATIENCE)
            .await
            .expect("the notifier gets ready");
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let Ok(metrics) = notifier.metrics().await else {
                continue;
            };
            if metrics.sum("watch_accounts_covered") == Some(accounts as f64) || began.elapsed() > world::PATIENCE {
                return began.elapsed();
            }
        }
    };
    let ((complete, took), covered) = tokio::join!(acknowledged, covered);
    let cpu = notifier.processor_time().unwrap_or_default();
    let most = notifier.most_resident_bytes().unwrap_or(0);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let resident = notifier.resident_bytes().unwrap_or(0);
    let counts = lab.fleet.counts();
    let name = format!("cold start: {accounts} accounts on {nodes} nodes");
    let reference = bare_read(file);
    report::figure(
        &name,
        if complete { took.as_secs_f64() } else { f64::INFINITY },
        "s",
        Goal::AtMost(goal),
        &[("reading the file's bytes and hashing them", reference)],
    );
    report::note(&format!(
        "the notifier says so after {:.1} s; its processor time {:.1} s, {} a record; the nodes counted {} records in {} requests, \
         checked {}, refused {}",
        covered.as_secs_f64(),
        cpu.as_secs_f64(),
        report::each(cpu, records),
        counts.records,
        counts.requests,
        counts.verified,
        counts.refused
    ));
    report::figure(
        &format!("memory: {accounts} accounts with a device each"),
        resident as f64 / f64::from(1 << 20),
        "MB",
        Goal::AtMost(500.0),
        &[(
            "accounts, tokens and keys alone",
            accounts as f64 * (33.0 + 32.0 + (32.0 + 163.0) / 2.0) / f64::from(1 << 20),
        )],
    );
    report::note(&format!(
        "with {} links; the most at any time {} MB",
        lab.fleet.counts().greetings,
        most >> 20
    ));
    notifier.stop(Duration::from_secs(60)).await.expect("it stops");
}

fn bare_read(file: &Path) -> f64 {
    let began = Instant::now();
    let bytes = std::fs::read(file).expect("the file is there");
    std::hint::black_box(sodium::blake2b_256(&bytes));
    began.elapsed().as_secs_f64()
}

/// The file with `accounts` signed subscriptions; made if there is none that is young enough.
async fn subscriptions(accounts: usize) -> PathBuf {
    let folder = world::folder("kept");
    std::fs::create_dir_all(&folder).expect("target/ is ours");
    let path = folder.join(format!("subscriptions-{accounts}-v{VERSION}.db"));
    let young = |path: &Path| {
        let age = path.metadata().and_then(|data| data.modified()).ok()?.elapsed().ok()?;
        (age < OLDEST_FILE).then_some(())
    };
    if young(&path).is_some() {
        return path;
    }
    report::note("making the file of subscriptions; this takes minutes, once");
    let unfinished = path.with_extension("making");
    let _ = std::fs::remove_file(&unfinished);
    let settings = StoreSettings::in_file(unfinished.clone());
    let rows = Keyring::new(vec![Secret::new(ROW_KEY)]).expect("it is one key");
    let store = SqliteStore::open(&settings, LookupKey::new(Secret::new(LOOKUP_KEY)), &rows)
        .await
        .expect("the store opens");
    let now = unix_seconds();
    for from in (0..accounts).step_by(20_000) {
        let count = (accounts - from).min(20_000);
        let some = world::in_threads(count, |number| subscription(from + number, now));
        let puts = some.iter().map(|subscription| store.put(subscription, now));
        futures_util::future::try_join_all(puts).await.expect("they are stored");
    }
    store.close().await;
    std::fs::rename(unfinished, &path).expect("target/ is ours");
    path
}

/// Half with Apple's 32 bytes, half with Google's 163 characters.
fn subscription(number: usize, now: i64) -> Subscription {
    let (service, token) = match number % 2 {
        0 => (Service::Apns, sodium::random::<32>().to_vec()),
        _ => {
            let random = hex::encode(sodium::random::<78>());
            (
                Service::Firebase,
                format!("{}:APA91b{}", &random[..22], &random[22..]).into_bytes(),
            )
        }
    };
    let phone = Phone::new(if number.is_multiple_of(2) {
        PushService::Apns
    } else {
        PushService::Firebase
    });
    let item = phone.subscribe_item(now);
    let signature = item["signature"].as_str().expect("a text");
    let namespaces: Vec<Namespace> = phone.namespaces.iter().map(|number| Namespace(*number)).collect();
    Subscription {
        device: DeviceId {
            account: AccountId::new(*phone.account()),
            service,
            token: DeviceToken::new(token),
        },
        session_ed25519: phone.session_ed25519().copied(),
        subaccount: None,
        namespaces: NamespaceSet::new(namespaces).expect("ascending"),
        want_data: true,
        sig_ts: now,
        signature: base64::Engine::decode(&base64::engine::general_purpose::STANDARD, signature)
            .expect("base64")
            .try_into()
            .expect("64 bytes"),
        enc_key: Secret::new(phone.enc_key),
        is_bound: false,
    }
}
