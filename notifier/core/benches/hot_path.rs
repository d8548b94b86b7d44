//! What a copy of a message, a device and a wakeup cost: `cargo bench -p notifier-core`. Prints figures, asserts none.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark reads the clock and prints"
)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use notifier_core::confirm::{Confirm, ConfirmSettings, Verdict};
use notifier_core::event;
use notifier_core::fanout::{Dedupe, DedupeSettings, Index, Mark, MarkState};
use notifier_core::outbox::{EntryId, Outbox, OutboxSettings, Outcome, PushId};
use notifier_core::seal::{Class, Priority, Sealed};
use notifier_core::seeded::Seed;
use notifier_core::subscription::{DeviceId, Subscription};
use notifier_core::swarm::NodeKey;
use quietline_shared::bencode::{put_bytes, put_int};
use quietline_shared::crypto::blake2b_256;
use quietline_shared::redact::Secret;
use std::hint::black_box;
use std::time::Instant;

const ACCOUNTS: u32 = 1_000_000;
const NOW: i64 = 1_800_000_000;

fn main() {
    let index = devices();
    copies(&index);
    drop(index);
    marks();
    wakeups();
}

/// One device for each account, half with Apple's 32-byte tokens and half with Google's of 163 characters.
fn devices() -> Index {
    let before = resident();
    let mut index = Index::new(Seed::new([1; 16]));
    let started = Instant::now();
    for number in 0..ACCOUNTS {
        index.upsert(&subscription(number));
    }
    report("index: upserts (subscription made each time)", ACCOUNTS, started);
    let taken = index.memory() / ACCOUNTS as usize;
    println!(
        "index: bytes for an account with one device: {taken} asked for, {} resident",
        (resident() - before) / ACCOUNTS as usize
    );
    let started = Instant::now();
    for number in 0..ACCOUNTS {
        black_box(index.upsert(&subscription(number)));
    }
    report("index: renewals (subscription made each time)", ACCOUNTS, started);
    index
}

/// Three nodes report each message: one copy is fanned out, two are seen.
fn copies(index: &Index) {
    let notifications: Vec<Bytes> = (0..100_000u32)
        .map(|number| notification(scattered(number), 400))
        .collect();
    let nodes: Vec<NodeKey> = (0..3).map(|node| NodeKey([node; 32])).collect();
    // What no implementation can do without: reading each copy, and the hash of each message once.
    let started = Instant::now();
    for notification in &notifications {
        for _ in &nodes {
            black_box(notification.iter().fold(0u8, |sum, byte| sum ^ byte));
        }
        black_box(blake2b_256(&[notification]));
    }
    let bare = f64::from(3 * 100_000u32) / started.elapsed().as_secs_f64();
    for (name, dedupe_first) in [("confirm before dedupe", false), ("dedupe before confirm", true)] {
        let mut confirm = Confirm::new(ConfirmSettings::default(), Seed::new([2; 16]));
        let mut dedupe = Dedupe::new(DedupeSettings::default());
        let key = Secret::new([3; 32]);
        let (mut copies, mut devices) = (0u32, 0u32);
        let started = Instant::now();
        for notification in &notifications {
            for node in &nodes {
                copies += 1;
                let event = event::parse(notification.clone()).unwrap();
                let mark = Mark::new(&key, &event);
                if dedupe_first && dedupe.check(&mark, NOW * 1000) != MarkState::New {
                    continue;
                }
                let Verdict::Release(event) = confirm.handle(*node, false, event, true, started) else {
                    continue;
                };
                if dedupe.check(&mark, NOW * 1000) == MarkState::New {
                    dedupe.begin(mark, NOW * 1000);
                    for device in index.fan_out(&event) {
                        black_box(device.token);
                        devices += 1;
                    }
                    dedupe.commit(&mark, NOW * 1000);
                }
            }
        }
        report(
            &format!("copies: parse + confirm + dedupe + fan-out, {name}"),
            copies,
            started,
        );
        let rate = f64::from(copies) / started.elapsed().as_secs_f64();
        println!(
            "hot path: copies on one core, {name}: {rate:.0} /s; goal >= 50,000 ({}); bare loop that reads and hashes {bare:.0} /s, \
             ratio {:.3}",
            if rate >= 50_000.0 { "met" } else { "NOT met" },
            rate / bare
        );
        assert_eq!(devices, 100_000);
    }
    let started = Instant::now();
    for notification in &notifications {
        black_box(event::parse(notification.clone()).is_ok());
    }
    report("copies: parse alone", 100_000, started);
    let events: Vec<_> = notifications
        .into_iter()
        .map(|bytes| event::parse(bytes).unwrap())
        .collect();
    let started = Instant::now();
    for event in &events {
        black_box(event.hash_verifies());
    }
    report("copies: hash of 400 bytes alone", 100_000, started);
    let started = Instant::now();
    for event in &events {
        black_box(index.fan_out(event).count());
    }
    report("copies: fan-out alone, 1,000,000 accounts", 100_000, started);
}

fn marks() {
    let mut dedupe = Dedupe::new(DedupeSettings::default());
    let started = Instant::now();
    for number in 0..2_000_000u32 {
        let mark = Mark::from_bytes(mark_bytes(number));
        dedupe.begin(mark, NOW * 1000);
        dedupe.commit(&mark, NOW * 1000);
    }
    report("dedupe: begin + commit", 2_000_000, started);
    println!("dedupe: bytes a mark: {}", dedupe.memory() / dedupe.len());
}

fn wakeups() {
    let settings = OutboxSettings {
        memory: 512 << 20,
        ..OutboxSettings::default()
    };
    let mut outbox = Outbox::new(settings, Seed::new([4; 16]), EntryId(1));
    let count = 100_000u32;
    let sealed: Vec<Sealed> = (0..count).map(wakeup).collect();
    let started = Instant::now();
    for sealed in sealed {
        let entry = outbox.accept(sealed, PushId([0; 16]), NOW * 1000).unwrap();
        outbox.handle_written([entry.id]);
    }
    report("outbox: accept + written", count, started);
    println!(
        "outbox: bytes an entry besides its body: {}",
        outbox.overhead() / outbox.len()
    );
    let started = Instant::now();
    while !outbox.is_empty() {
        for _ in 0..500 {
            let Some(push) = outbox.poll_send(NOW * 1000) else {
                break;
            };
            outbox.handle_outcome(push.id, Outcome::Delivered, NOW * 1000, 0);
        }
        while outbox.poll_write().is_some() {}
        black_box(outbox.next_deadline());
    }
    report("outbox: send + delivered", count, started);
    let started = Instant::now();
    let mut bodies = std::collections::HashMap::new();
    let settings = OutboxSettings {
        memory: 1 << 20,
        max_entries: count as usize,
        ..OutboxSettings::default()
    };
    let mut outbox = Outbox::new(settings, Seed::new([4; 16]), EntryId(1));
    for number in 0..count {
        let entry = outbox.accept(wakeup(number), PushId([0; 16]), NOW * 1000).unwrap();
        outbox.handle_written([entry.id]);
        bodies.insert(entry.id, entry.sealed);
    }
    while !outbox.is_empty() {
        for id in outbox.poll_load(64, NOW * 1000) {
            outbox.handle_loaded(id, (*bodies[&id]).clone());
        }
        while let Some(push) = outbox.poll_send(NOW * 1000) {
            outbox.handle_outcome(push.id, Outcome::Delivered, NOW * 1000, 0);
        }
        while outbox.poll_write().is_some() {}
    }
    report(
        "outbox: a whole life with the body read back from disk (disk not counted)",
        count,
        started,
    );
}

fn report(what: &str, count: u32, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{what}: {:.0} a second, {:.0} ns each",
        f64::from(count) / seconds,
        seconds * 1e9 / f64::from(count)
    );
}

/// Neighbours in time are no neighbours in memory.
fn scattered(number: u32) -> u32 {
    (u64::from(number) * 7_368_787 % u64::from(ACCOUNTS)) as u32
}

fn account(number: u32) -> AccountId {
    let mut bytes = [5; 33];
    bytes[1..].copy_from_slice(&blake2b_256(&[&number.to_le_bytes()]));
    AccountId::new(bytes)
}

fn subscription(number: u32) -> Subscription {
    let account = account(number);
    let (service, token) = match number % 2 {
        0 => (Service::Apns, account.key().to_vec()),
        _ => (
            Service::Firebase,
            account.key().iter().copied().cycle().take(163).collect(),
        ),
    };
    let namespaces: &[i16] = if number.is_multiple_of(2) {
        &[0, 2, 3, 4, 5]
    } else {
        &[0]
    };
    Subscription {
        device: DeviceId {
            account,
            service,
            token: DeviceToken::new(token),
        },
        session_ed25519: None,
        subaccount: None,
        namespaces: NamespaceSet::new(namespaces.iter().map(|n| Namespace(*n)).collect::<Vec<_>>()).unwrap(),
        want_data: true,
        sig_ts: NOW,
        signature: [0; 64],
        enc_key: Secret::new([9; 32]),
        is_bound: false,
    }
}

fn notification(number: u32, length: usize) -> Bytes {
    let account = account(number);
    let body = vec![number as u8; length];
    let hash = STANDARD_NO_PAD.encode(blake2b_256(&[account.expose(), &body]));
    let mut out = b"d".to_vec();
    put_bytes(&mut out, b"@");
    put_bytes(&mut out, account.expose());
    put_bytes(&mut out, b"h");
    put_bytes(&mut out, hash.as_bytes());
    for (key, value) in [(b"n", 0), (b"t", NOW * 1000), (b"z", (NOW + 1_209_600) * 1000)] {
        put_bytes(&mut out, key);
        put_int(&mut out, value);
    }
    put_bytes(&mut out, b"~");
    put_bytes(&mut out, &body);
    out.push(b'e');
    out.into()
}

fn mark_bytes(number: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake2b_256(&[&number.to_le_bytes()])[..16]);
    bytes
}

fn wakeup(number: u32) -> Sealed {
    Sealed {
        service: if number.is_multiple_of(2) {
            Service::Apns
        } else {
            Service::Firebase
        },
        token: DeviceToken::new(number.to_le_bytes().repeat(8)),
        body: vec![7; 552].into(),
        fallback: Some(vec![8; 552].into()),
        class: Class::ALL[number as usize % 4],
        priority: Priority::High,
        expires_at_ms: NOW * 1000 + 60_000 + i64::from(number) * 10,
    }
}

/// Bytes of memory the process holds, where the system tells.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .unwrap_or(0)
        * 4096
}
