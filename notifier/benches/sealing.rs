//! What sealed rows and overwritten memory add to a subscription: `cargo bench -p quietline-notifier --bench sealing`.
//!
//! Requests are parsed, verified and stored at 1,000 a second, by turns in plain (the schema of the version before sealed rows, freed memory
//! and stacks left as they are) and as they are now, in one process, on the same kind of group commit. `-- rate=N` for another rate,
//! `rounds=N` for more than 8 rounds of each; the first of each is dropped.

#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![expect(
    unsafe_code,
    reason = "an allocator that can be told not to overwrite, and its trait is unsafe"
)]

use ed25519_dalek::{Signer, SigningKey};
use notifier_core::account::Service;
use notifier_core::subscription::{self, Body, Subscription};
use quietline_notifier::keyring::Keyring;
use quietline_notifier::sqlite::{ERASE_AFTER, Packed, SqliteFile, Writer, json_hex};
use quietline_notifier::store::sqlite::SqliteStore;
use quietline_notifier::store::{LookupKey, StoreSettings, SubscriptionStore};
use quietline_shared::crypto::{ed25519_to_x25519, keyed_hash_32};
use quietline_shared::redact::Secret;
use quietline_shared::service::hygiene;
use sqlx::migrate::Migrator;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use zeroizing_alloc::ZeroAlloc;

const NOW: i64 = 1_760_000_000;

/// Whether what is given back is overwritten, as both servers do.
static OVERWRITE: AtomicBool = AtomicBool::new(false);

struct Switch;

#[global_allocator]
static MEMORY: Switch = Switch;

// SAFETY: each call goes to one of two allocators that take and give memory of `System` alone.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe {
            if OVERWRITE.load(Ordering::Relaxed) {
                ZeroAlloc(System).dealloc(pointer, layout);
            } else {
                System.dealloc(pointer, layout);
            }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if OVERWRITE.load(Ordering::Relaxed) {
                ZeroAlloc(System).realloc(pointer, layout, size)
            } else {
                System.realloc(pointer, layout, size)
            }
        }
    }
}

fn main() {
    let number = |name: &str, default: u32| {
        let given = std::env::args().find_map(|argument| argument.strip_prefix(name)?.parse().ok());
        given.unwrap_or(default)
    };
    let (rate, rounds) = (number("rate=", 1_000), number("rounds=", 8));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_park(|| {
            if OVERWRITE.load(Ordering::Relaxed) {
                hygiene::wipe_stack();
            }
        })
        .build()
        .unwrap();
    runtime.block_on(compare(rate, rounds));
}

async fn compare(rate: u32, rounds: u32) {
    let folder = tempfile::tempdir_in(std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| ".".into())).unwrap();
    let settings = StoreSettings::in_file(folder.path().join("sealed.db"));
    let rows = Keyring::new(vec![Secret::new([1; 32])]).unwrap();
    let key = LookupKey::new(Secret::new([1; 32]));
    let sealed = Arc::new(SqliteStore::open(&settings, key, &rows).await.unwrap());
    let plain = PlainStore::open(&folder.path().join("plain.db")).await;
    let item = Item::new();
    let (mut in_plain, mut as_now) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        for overwrite in [false, true] {
            OVERWRITE.store(overwrite, Ordering::SeqCst);
            let first = round * 10_000_000;
            let (sealed, plain) = (Arc::clone(&sealed), plain.clone());
            let put = move |new: Subscription| {
                let (sealed, plain) = (Arc::clone(&sealed), plain.clone());
                async move {
                    if overwrite {
                        sealed.put(&new, new.sig_ts).await.unwrap();
                    } else {
                        plain.put(new).await;
                    }
                }
            };
            let times = paced(rate, first, &item, put).await;
            OVERWRITE.store(false, Ordering::SeqCst);
            if round > 0 {
                (if overwrite { &mut as_now } else { &mut in_plain }).push(times);
            }
        }
    }
    let median = |rounds: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(which).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    for (name, which) in [("p50", (|at| at.0) as fn(&(f64, f64)) -> f64), ("p99", |at| at.1)] {
        let (before, now) = (median(&in_plain, which), median(&as_now, which));
        println!(
            "a subscription at {rate}/s, {name}: {now:.2} ms sealed and overwritten, {before:.2} ms in plain: {:+.2} ms, ratio {:.2}",
            now - before,
            now / before
        );
    }
    println!(
        "    medians of {rounds} rounds of {} s each, alternating; goal: p99 at most +1 ms",
        ROUND.as_secs()
    );
    sealed.close().await;
}

const ROUND: Duration = Duration::from_secs(3);

/// p50 and p99 in milliseconds, from when a request should have come to when it is durable.
async fn paced<F: Future<Output = ()> + Send + 'static>(
    rate: u32,
    first: u32,
    item: &Item,
    put: impl Fn(Subscription) -> F + Clone + Send + 'static,
) -> (f64, f64) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = tokio::task::JoinSet::new();
    let count = rate * ROUND.as_secs() as u32;
    for number in first..first + count {
        let due = ticks.tick().await.into_std();
        let (text, put) = (item.text(number), put.clone());
        running.spawn(async move {
            let Body::One(item) = subscription::parse_body(text.as_bytes()) else {
                unreachable!("it is one object");
            };
            put(subscription::subscribe(&item, NOW, &Service::from_name).unwrap()).await;
            due.elapsed()
        });
    }
    let mut times: Vec<Duration> = running.join_all().await;
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}

/// A signed item for any number of devices of one account: the signature does not cover the token.
struct Item {
    account: String,
    session: String,
    signature: String,
}

impl Item {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let account = format!("05{}", hex::encode(ed25519_to_x25519(&public).unwrap()));
        let text = format!("MONITOR{account}{NOW}10");
        Self {
            signature: hex::encode(key.sign(text.as_bytes()).to_bytes()),
            session: hex::encode(public),
            account,
        }
    }

    fn text(&self, number: u32) -> String {
        let (account, session, signature) = (&self.account, &self.session, &self.signature);
        format!(
            r#"{{"pubkey":"{account}","session_ed25519":"{session}","namespaces":[0],"data":true,"sig_ts":{NOW},"signature":"{signature}","service":"firebase","service_info":{{"token":"{number:0>142}"}},"enc_key":"{}"}}"#,
            "9f".repeat(32)
        )
    }
}

/// Rows in plain, with group commits and copies of the WAL like those of the store.
#[derive(Clone)]
struct PlainStore(mpsc::Sender<(Subscription, oneshot::Sender<()>)>);

impl PlainStore {
    async fn open(path: &Path) -> Self {
        let file = SqliteFile::claim(path, 16_384, ERASE_AFTER).unwrap();
        let first = MIGRATIONS.iter().next().unwrap().clone();
        let mut writer = file.writer(&Migrator::with_migrations(vec![first])).await.unwrap();
        writer.copy_beside(&file);
        let (jobs, queue) = mpsc::channel(1_024);
        tokio::spawn(write(file, writer, queue));
        Self(jobs)
    }

    async fn put(&self, new: Subscription) {
        let (done, answer) = oneshot::channel();
        self.0.send((new, done)).await.unwrap();
        answer.await.unwrap();
    }
}

async fn write(_file: SqliteFile, mut writer: Writer, mut queue: mpsc::Receiver<(Subscription, oneshot::Sender<()>)>) {
    let key = Secret::new([1; 32]);
    let mut jobs = Vec::new();
    while queue.recv_many(&mut jobs, 512).await > 0 {
        let name = |new: &Subscription| {
            let device = &new.device;
            let parts = [
                device.account.expose(),
                &[device.service.code()][..],
                device.token.expose(),
            ];
            keyed_hash_32(&key, &parts)
        };
        let names: Vec<[u8; 32]> = jobs.iter().map(|(new, _)| name(new)).collect();
        let known: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
            "SELECT lookup, row FROM subscription WHERE lookup IN (SELECT unhex(value) FROM json_each(?))",
        )
        .bind(json_hex(names.iter().map(<[u8; 32]>::as_slice)))
        .fetch_all(&mut writer.connection)
        .await
        .unwrap();
        std::hint::black_box(known);
        let mut rows = Packed::default();
        for ((new, _), name) in jobs.iter().zip(&names) {
            rows.push(&[new.expires_at() / 86_400], name, &new.encode_row());
        }
        let (table, blob) = rows.finish();
        writer.note_write();
        sqlx::query(
            "INSERT INTO subscription (row, lookup, expires_day, key_id)
             SELECT substr(?, value->>2, value->>3), unhex(value->>1), value->>0, 0 FROM json_each(?) WHERE true
             ON CONFLICT (lookup) DO UPDATE SET row = excluded.row, expires_day = excluded.expires_day",
        )
        .bind(blob)
        .bind(table)
        .execute(&mut writer.connection)
        .await
        .unwrap();
        let changes = jobs.len();
        for (_, done) in jobs.drain(..) {
            let _ = done.send(());
        }
        writer.tidy(changes).await;
    }
}

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite/store");
