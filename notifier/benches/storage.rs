//! Plain timing of the two files: `cargo bench -p quietline-notifier --bench storage`, with `-- only-store`, `-- only-plain`,
//! `-- only-outbox`, `-- only-driver` or `-- only-seal` for one part of it. `plain` is the price of sealed rows: the same subscriptions as the version
//! before them kept and read them, then sealed, then read again.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use futures_util::StreamExt;
use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use notifier_core::lane::LaneSettings;
use notifier_core::outbox::{Entry, EntryId, Outcome, PushId};
use notifier_core::seal::{Class, Priority, Sealed};
use notifier_core::subscription::{DeviceId, Subscription};
use quietline_notifier::keyring::Keyring;
use quietline_notifier::outbox::sqlite::{Commit, open};
use quietline_notifier::outbox::{Lane, OutboxFile, OutboxSettings};
use quietline_notifier::sqlite::ERASE_AFTER;
use quietline_notifier::store::sqlite::SqliteStore;
use quietline_notifier::store::{LookupKey, StoreSettings, SubscriptionStore};
use quietline_shared::crypto::keyed_hash_32;
use quietline_shared::redact::Secret;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{ConnectOptions, Connection};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const SUBSCRIPTIONS: u32 = 1_000_000;
const RENEWALS: u32 = 100_000;
const WAKEUPS: i64 = 100_000;
const NOW: i64 = 1_760_000_000;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir_in(std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| ".".into())).unwrap();
    let wanted = |part: &str| std::env::args().all(|argument| !argument.starts_with("only-") || argument[5..] == *part);
    if wanted("store") {
        store(&folder.path().join("subscriptions.db")).await;
    }
    if wanted("plain") {
        plain(&folder.path().join("plain.db")).await;
    }
    if wanted("seal") {
        seal();
    }
    if wanted("outbox") {
        for group in [1, 16, 256, 1_024] {
            outbox(&folder.path().join(format!("outbox-{group}.db")), group).await;
        }
    }
    if wanted("driver") {
        driver(&folder.path().join("flood.db"), None).await;
        driver(&folder.path().join("steady.db"), Some(1_000)).await;
    }
}

async fn store(path: &std::path::Path) {
    let settings = StoreSettings::in_file(path.into());
    let store = SqliteStore::open(&settings, LookupKey::new(Secret::new([1; 32])), &keys(&[1]))
        .await
        .unwrap();

    puts(&store, "new, 2,000 in flight", 2_000, 0..SUBSCRIPTIONS, NOW).await;
    // A full period of a multiplier that is coprime to the count visits the rows as a shuffle would.
    let shuffled = |n: u32| (u64::from(n) * 7_368_787 % u64::from(SUBSCRIPTIONS)) as u32;
    puts(
        &store,
        "renewals, 50 in flight",
        50,
        (0..RENEWALS).map(shuffled),
        NOW + 1,
    )
    .await;
    puts(
        &store,
        "renewals, 1 in flight",
        1,
        (0..RENEWALS / 20).map(shuffled),
        NOW + 2,
    )
    .await;

    scan(&store, "scan").await;

    let began = Instant::now();
    let mut loaded = 0;
    for first in (0..50_000).step_by(500) {
        loaded += store
            .load((first..first + 500).map(|n| device(shuffled(n))).collect())
            .await
            .unwrap()
            .len();
    }
    report("load by 500", loaded, began.elapsed());

    let began = Instant::now();
    store.count().await.unwrap();
    report("count", 1, began.elapsed());
    let began = Instant::now();
    store.remove_expired(NOW).await.unwrap();
    report("look for expired rows", SUBSCRIPTIONS as usize, began.elapsed());
    let began = Instant::now();
    let moved = store.use_keys(&keys(&[2, 1])).await.unwrap();
    report("rows moved to a new key", moved as usize, began.elapsed());
    store.close().await;
}

async fn scan(store: &SqliteStore, what: &str) {
    for _ in 0..2 {
        let began = Instant::now();
        let (mut batches, mut rows) = (store.scan(), 0);
        while let Some(batch) = batches.recv().await {
            rows += batch.unwrap().len();
        }
        report(what, rows, began.elapsed());
    }
}

async fn plain(path: &std::path::Path) {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(4_096)
        .journal_mode(SqliteJournalMode::Wal)
        .pragma("cache_size", "-16384");
    let mut connection = options.connect().await.unwrap();
    let first = MIGRATIONS.iter().next().unwrap().clone();
    Migrator::with_migrations(vec![first])
        .run(&mut connection)
        .await
        .unwrap();
    for from in (0..SUBSCRIPTIONS).step_by(10_000) {
        let mut rows = connection.begin().await.unwrap();
        for n in from..from + 10_000 {
            let subscription = subscription(n, NOW);
            let device = &subscription.device;
            let parts = [
                device.account.expose(),
                &[device.service.code()][..],
                device.token.expose(),
            ];
            sqlx::query("INSERT INTO subscription (lookup, expires_day, key_id, row) VALUES (?, ?, 0, ?)")
                .bind(keyed_hash_32(&Secret::new([1; 32]), &parts).to_vec())
                .bind(subscription.expires_at() / 86_400)
                .bind(subscription.encode_row())
                .execute(&mut *rows)
                .await
                .unwrap();
        }
        rows.commit().await.unwrap();
    }
    let size = |path: &std::path::Path| std::fs::metadata(path).unwrap().len() >> 20;
    connection.close().await.unwrap();
    let pool = SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options);
    for _ in 0..2 {
        let began = Instant::now();
        // Two readers with shares of the row numbers in turn, as that version had them.
        let shares = [0, 1].map(|reader| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut count = 0;
                for start in (reader * 1_024..=i64::from(SUBSCRIPTIONS)).step_by(2_048) {
                    let rows: Vec<(Vec<u8>,)> =
                        sqlx::query_as("SELECT row FROM subscription WHERE rowid >= ? AND rowid < ?")
                            .bind(start)
                            .bind(start + 1_024)
                            .fetch_all(&pool)
                            .await
                            .unwrap();
                    let decoded = rows.iter().map(|(row,)| Subscription::decode_row(row).unwrap());
                    count += decoded.map(std::hint::black_box).count();
                }
                count
            })
        });
        let [even, odd] = shares;
        let count = even.await.unwrap() + odd.await.unwrap();
        report("scan of plain rows", count, began.elapsed());
    }
    pool.close().await;
    println!("    {} MB", size(path));

    let began = Instant::now();
    let settings = StoreSettings::in_file(path.into());
    let store = SqliteStore::open(&settings, LookupKey::new(Secret::new([1; 32])), &keys(&[1]))
        .await
        .unwrap();
    report("plain rows sealed at a start", SUBSCRIPTIONS as usize, began.elapsed());
    scan(&store, "scan of the same rows, sealed").await;
    store.close().await;
    println!("    {} MB", size(path));
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite/store");

fn keys(keys: &[u8]) -> Keyring {
    Keyring::new(keys.iter().map(|key| Secret::new([*key; 32])).collect()).unwrap()
}

async fn puts(store: &SqliteStore, what: &str, in_flight: usize, numbers: impl Iterator<Item = u32>, sig_ts: i64) {
    let began = Instant::now();
    let timed = numbers.map(async |n| {
        let began = Instant::now();
        store.put(&subscription(n, sig_ts), sig_ts).await.unwrap();
        began.elapsed()
    });
    let times: Vec<Duration> = futures_util::stream::iter(timed)
        .buffer_unordered(in_flight)
        .collect()
        .await;
    report(&format!("puts: {what}"), times.len(), began.elapsed());
    spread(times);
}

fn spread(mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 1_000];
    println!(
        "    p50 {:?}  p99 {:?}  p99.9 {:?}  max {:?}",
        at(500),
        at(990),
        at(999),
        at(1_000)
    );
}

/// What a wakeup costs beyond a version without row keys: its head and its row are sealed, and opened again if it waits on disk.
fn seal() {
    let (keys, place) = (keys(&[1]), [7; 17]);
    let sealer = keys.sealer("bench");
    let key = Some(sealer.newest());
    for (what, size, length) in [("head", 31, 60), ("short row", 733, 864), ("long row", 3_593, 3_776)] {
        let content = vec![9; size];
        let sealed: Vec<Vec<u8>> = timed(&format!("seal: {what}"), || {
            sealer.seal(&place, &content, &[length]).unwrap()
        });
        let mut sealed = sealed.into_iter();
        timed(&format!("open: {what}"), || {
            sealer.open(key, &place, sealed.next().unwrap()).unwrap()
        });
    }
}

fn timed<T>(what: &str, mut call: impl FnMut() -> T) -> Vec<T> {
    const COUNT: usize = 20_000;
    let began = Instant::now();
    let made = (0..COUNT).map(|_| call()).collect();
    report(what, COUNT, began.elapsed());
    made
}

async fn outbox(path: &std::path::Path, group: i64) {
    let (mut writer, reader) = open(path, &keys(&[1]), ERASE_AFTER).await.unwrap();
    let rounds = (WAKEUPS / group).min(4_000);
    let began = Instant::now();
    for round in 0..rounds {
        let ids = |round: i64| round * group + 1..=(round + 1) * group;
        let commit = Commit {
            add: ids(round).map(entry).collect(),
            marks: ids(round).map(|id| u128::to_le_bytes(id as u128)).collect(),
            at_ms: round,
            // What a quick provider answered meanwhile.
            remove: if round > 1 {
                ids(round - 2).map(EntryId).collect()
            } else {
                Vec::new()
            },
            ..Commit::default()
        };
        writer.commit(&commit).await.unwrap();
    }
    let took = began.elapsed();
    report(
        &format!("outbox: wakeups in and out, {group} a commit"),
        (rounds * group) as usize,
        took,
    );
    println!("    {:?} a commit", took / rounds as u32);
    reader.close().await;
    writer.close().await;
}

/// Wakeups through the whole outbox to a provider that answers at once; `rate` a second, or as many as go with 4,096 messages
/// waiting.
async fn driver(path: &std::path::Path, rate: Option<u32>) {
    let settings = OutboxSettings {
        path: path.into(),
        ..OutboxSettings::default()
    };
    let (pushes, mut lane) = mpsc::channel(500);
    let (effects, _effects) = mpsc::channel(16);
    let lanes = vec![Lane {
        service: Service::Firebase,
        settings: LaneSettings::with_concurrency(500),
        pushes,
    }];
    let file = OutboxFile::open(&settings, &keys(&[1])).await.unwrap();
    let running = file.start(lanes, effects, Duration::from_secs(3_600)).await.unwrap();
    let count = rate.map_or(WAKEUPS, |rate| i64::from(rate) * 5);

    let outcomes = running.handle.outcomes.clone();
    let provider = tokio::spawn(async move {
        for _ in 0..count {
            let push = lane.recv().await.unwrap();
            outcomes.send((push.id, Outcome::Delivered)).await.unwrap();
        }
    });
    let cpu = processor_time();
    let began = Instant::now();
    let mut pause = rate.map(|rate| tokio::time::interval(Duration::from_secs(1) / rate));
    let mut answers = tokio::task::JoinSet::new();
    let mut times = Vec::new();
    for id in 1..=count {
        match &mut pause {
            Some(pause) => drop(pause.tick().await),
            None if answers.len() >= 4_096 => times.extend(answers.join_next().await.unwrap()),
            None => {}
        }
        let handle = running.handle.clone();
        let sealed = Sealed::clone(&entry(id).sealed);
        answers.spawn(async move {
            let began = Instant::now();
            handle
                .accept(vec![sealed], vec![u128::to_le_bytes(id as u128)])
                .await
                .unwrap();
            began.elapsed()
        });
    }
    while let Some(time) = answers.join_next().await {
        times.push(time.unwrap());
    }
    provider.await.unwrap();
    let cpu = processor_time() - cpu;
    let what = rate.map_or("as fast as it goes".to_owned(), |rate| format!("at {rate}/s"));
    report(
        &format!("driver: wakeups accepted and delivered, {what}"),
        count as usize,
        began.elapsed(),
    );
    spread(times);
    println!("    {:.2?} of processor time each", cpu / count as u32);
    running
        .shutdown(tokio::time::Instant::now() + Duration::from_secs(10))
        .await;
}

/// Of all threads, in hundredths of a second.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn report(what: &str, count: usize, took: Duration) {
    println!(
        "{what}: {count} in {took:.2?} = {:.0}/s",
        count as f64 / took.as_secs_f64()
    );
}

fn device(n: u32) -> DeviceId {
    let mut account = [5; 33];
    account[1..5].copy_from_slice(&n.to_be_bytes());
    // As long as FCM's.
    let token = format!("{n:0>142}").into_bytes();
    DeviceId {
        account: AccountId::new(account),
        service: Service::Firebase,
        token: DeviceToken::new(token),
    }
}

fn subscription(n: u32, sig_ts: i64) -> Subscription {
    Subscription {
        device: device(n),
        session_ed25519: Some([3; 32]),
        subaccount: None,
        namespaces: NamespaceSet::new([-10, 0, 2, 3, 5].map(Namespace)).unwrap(),
        want_data: true,
        sig_ts,
        signature: [9; 64],
        enc_key: Secret::new([1; 32]),
        is_bound: false,
    }
}

/// Two sizes, as the default padding makes them: 552 and 2,856 bytes.
fn entry(id: i64) -> Entry {
    let size = if id % 4 == 0 { 2_856 } else { 552 };
    Entry {
        id: EntryId(id),
        push_id: PushId(u128::to_le_bytes(id as u128)),
        sealed: Arc::new(Sealed {
            service: Service::Firebase,
            token: DeviceToken::new(vec![b'x'; 142]),
            body: vec![id as u8; size].into(),
            fallback: (size > 552).then(|| vec![id as u8; 552].into()),
            class: Class::Visible,
            priority: Priority::High,
            expires_at_ms: i64::MAX,
        }),
        deadline_ms: i64::MAX,
        attempt: 0,
    }
}
