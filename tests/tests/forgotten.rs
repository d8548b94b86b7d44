//! Nothing of a device that is gone is in the memory of a running notifier.
//!
//! The memory is read from outside, as root may. What a provider, a node or a client was told is out of our hands.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::sodium::random;
use quietline_lab::trial::{DAY, PATIENCE, ask, enroll, enrolled, figure, reach, receive, until_figure, watched};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const SERVICES: [PushService; 4] = [
    PushService::Apns,
    PushService::Firebase,
    PushService::Huawei,
    PushService::Webpush,
];

/// What is overwritten by the next that goes the same way, such as the buffer of a connection to a provider, is gone after so many.
const ORDINARY: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_unsubscribed_is_not_in_memory_any_more() {
    let (_folder, mut lab) = lab().await;
    let (mut stay, mut gone) = (Vec::new(), Vec::new());
    for service in SERVICES {
        stay.push(enrolled(&lab, service).await);
        let phone = enrolled(&lab, service).await;
        lab.send(&phone, 0, &random::<300>(), DAY);
        receive(&lab, &phone).await;
        gone.push(phone);
    }
    let process = lab.notifier().process_id().unwrap();
    for phone in &gone {
        let account = ("account".to_owned(), phone.account()[1..].to_vec());
        assert!(
            !places(process, &[account]).is_empty(),
            "the search finds what is there"
        );
    }
    let needles: Vec<_> = gone.iter().flat_map(private_values).collect();
    for phone in &gone {
        assert!(lab.unsubscribe(phone).await.unwrap().is_success());
    }
    for _ in 0..ORDINARY {
        for phone in &stay {
            let passing = lab.phone(phone.service);
            assert!(lab.subscribe(&passing).await.unwrap().is_success());
            assert!(lab.unsubscribe(&passing).await.unwrap().is_success());
            lab.send(phone, 0, &random::<300>(), DAY);
            receive(&lab, phone).await;
        }
    }
    // Whatever still runs comes to its end, and every thread to its rest.
    let (mut left, deadline) = (places(process, &needles), Instant::now() + PATIENCE);
    while !left.is_empty() && Instant::now() < deadline {
        reach(&lab, &stay[0]).await;
        left = places(process, &needles);
    }
    assert!(left.is_empty(), "{left:#?}");
}

/// One phone has one token for all its accounts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_token_is_dropped_when_its_last_account_is_gone_and_not_before() {
    let (_folder, lab) = lab().await;
    let kept = enrolled(&lab, PushService::Apns).await;
    let phones = [
        enrolled(&lab, PushService::Apns).await,
        enrolled(&lab, PushService::Apns).await,
    ];
    let groups = phones.each_ref().map(|phone| {
        let mut group = Phone::new(PushService::Apns);
        group.token.clone_from(&phone.token);
        group
    });
    for group in &groups {
        enroll(&lab, group).await;
    }
    lab.apns.set_down(true);
    for phone in phones.iter().chain(&groups).chain([&kept]) {
        lab.send(phone, 0, &random::<300>(), DAY);
    }
    until_figure(&lab, "outbox_entries", "", |entries| entries == 5.0).await;
    // Of the first phone everything, of the second one account.
    for phone in [&phones[0], &groups[0], &phones[1]] {
        assert!(lab.unsubscribe(phone).await.unwrap().is_success());
    }
    until_figure(&lab, "outbox_dropped_total", "reason=\"unsubscribed\"", |count| {
        count == 2.0
    })
    .await;
    assert_eq!(figure(&lab, "outbox_entries", "").await, 3.0);
    lab.apns.set_down(false);
    // The other phone's, and both of the second: nobody knows whose they are.
    until_figure(&lab, "outbox_delivered_total", "service=\"apns\"", |count| count == 3.0).await;
    assert_eq!(figure(&lab, "outbox_dropped_total", "").await, 2.0);
}

/// Nobody takes it back, and no provider speaks of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_device_is_dropped_when_its_signature_runs_out() {
    let (_folder, lab) = lab().await;
    let kept = enrolled(&lab, PushService::Apns).await;
    lab.apns.set_down(true);
    let old = lab.phone(PushService::Apns);
    let item = old.subscribe_item(unix_seconds() - SIGNATURE_LIFETIME + LEFT);
    assert_eq!(ask(&lab, "/subscribe", &item).await.1["success"], true);
    watched(&lab, &old).await;
    for phone in [&old, &kept] {
        lab.send(phone, 0, &random::<300>(), DAY);
    }
    until_figure(&lab, "outbox_entries", "", |entries| entries == 2.0).await;
    until_figure(&lab, "outbox_dropped_total", "reason=\"unsubscribed\"", |count| {
        count == 1.0
    })
    .await;
    until_figure(&lab, "fanout_devices", "", |devices| devices == 1.0).await;
    lab.apns.set_down(false);
    until_figure(&lab, "outbox_delivered_total", "service=\"apns\"", |count| count == 1.0).await;
    assert_eq!(figure(&lab, "outbox_entries", "").await, 0.0);
}

/// Seconds: 14 days, as everybody has it; and what is left of them for a machine that is busy.
const SIGNATURE_LIFETIME: i64 = 14 * 24 * 3600;
const LEFT: i64 = 25;

async fn lab() -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path().join("lab")).with("log.level", "trace");
    settings.swarms = 2;
    settings.nodes_per_swarm = 3;
    settings.ready_within = PATIENCE;
    let lab = Lab::start(settings).await.unwrap();
    (folder, lab)
}

/// By name, in the forms in which they come, go and are kept.
fn private_values(phone: &Phone) -> Vec<(String, Vec<u8>)> {
    let service = phone.service.name();
    let item = phone.subscribe_item(unix_seconds());
    let mut values = vec![
        (
            format!("account of {service}, hex"),
            phone.account_hex().as_bytes()[2..].to_vec(),
        ),
        (
            format!("key of {service}, hex"),
            hex::encode(phone.enc_key).into_bytes(),
        ),
    ];
    values.push((format!("token of {service}"), phone.token.clone().into_bytes()));
    values.push((format!("account of {service}"), phone.account()[1..].to_vec()));
    values.push((format!("key of {service}"), phone.enc_key.to_vec()));
    if let Ok(raw) = hex::decode(&phone.token) {
        values.push((format!("token of {service}, raw"), raw));
    }
    if let Some(Value::String(text)) = item.get("session_ed25519") {
        values.push((format!("Ed25519 key of {service}"), hex::decode(text).unwrap()));
    }
    values
}

/// Where in the writable memory of the process each value stands.
fn places(process: u32, needles: &[(String, Vec<u8>)]) -> Vec<(String, String)> {
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let name = words.nth(3).unwrap_or("anonymous");
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut at = from;
        while at < to {
            // What begins in a piece may end in the next.
            let mut piece = vec![0; (PIECE + OVERLAP).min(usize::try_from(to - at).unwrap())];
            let length = memory.read_at(&mut piece, at).unwrap_or(0);
            piece.truncate(length);
            for (value, bytes) in needles {
                let hits = piece
                    .windows(bytes.len())
                    .enumerate()
                    .filter(|(_, window)| window == bytes);
                for (offset, _) in hits.filter(|(offset, _)| *offset < PIECE) {
                    let around = &piece[offset.saturating_sub(48)..(offset + 80).min(piece.len())];
                    found.push((
                        value.clone(),
                        format!(
                            "{name} {:x} (+{:x}): {}",
                            at + offset as u64,
                            at + offset as u64 - from,
                            around.escape_ascii()
                        ),
                    ));
                }
            }
            at += PIECE as u64;
        }
    }
    found
}

const PIECE: usize = 1 << 20;
const OVERLAP: usize = 4 << 10;
