//! The golden data that concerns swarm notifications: `monitor.json`, sections `notifications` (from a real storage server) and
//! `hivemind_notify` (what the incumbent made of each). The other sections are about links and subscriptions.
//!
//! Where we mean to differ, the case stands in `tests/vectors/deviations.toml` with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that fails may panic and reads a clock"
)]

use bytes::Bytes;
use notifier_core::account::{AccountId, DeviceToken, Namespace, NamespaceSet, Service};
use notifier_core::confirm::{Confirm, ConfirmSettings, Verdict};
use notifier_core::event::{self, MessageEvent};
use notifier_core::fanout::{Dedupe, DedupeSettings, Index, Mark, MarkState, Upserted};
use notifier_core::seeded::Seed;
use notifier_core::subscription::{DeviceId, Subscription};
use notifier_core::swarm::NodeKey;
use quietline_shared::bencode::Reader;
use quietline_shared::redact::Secret;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const NOW: i64 = 1_700_000_000;

/// One wakeup as the incumbent hands it to a provider's lane: the dict of its bytes and numbers.
type Wakeup = BTreeMap<Vec<u8>, Vec<u8>>;

#[test]
fn every_hash_of_a_real_storage_server_verifies() {
    let file = vectors();
    let cases = list(&file, "notifications");
    let mut notifications = 0;
    for case in cases {
        let stored = case.get("stored").unwrap();
        let second = case.get("second_connection_frames");
        for frames in list(case, "notify_frames_hex").iter().chain(second) {
            let [command, body] = frames.as_array().unwrap().as_slice() else {
                panic!("{}", text(case, "id"))
            };
            assert_eq!(hex::decode(command.as_str().unwrap()).unwrap(), b"notify.message");
            let event = event::parse(whole(body.as_str().unwrap())).unwrap();
            assert_eq!(
                event.account.expose().as_slice(),
                hex::decode(text(stored, "account_hex")).unwrap()
            );
            assert_eq!(i64::from(event.namespace.0), number(stored, "namespace"));
            assert_eq!(event.timestamp_ms, number(stored, "timestamp_ms"));
            assert_eq!(
                event.expiry_ms,
                number(stored, "timestamp_ms") + number(stored, "ttl_ms")
            );
            let with_body = event.body.is_some();
            assert_eq!(event.hash_verifies(), with_body, "{}", text(case, "id"));
            assert!(
                !MessageEvent {
                    namespace: Namespace(77),
                    ..event.clone()
                }
                .hash_verifies()
            );
            notifications += 1;
        }
    }
    assert_eq!((cases.len(), notifications), (4, 4));
}

#[test]
fn every_notification_wakes_whom_the_incumbent_wakes() {
    let file = vectors();
    let cases = list(&file, "hivemind_notify");
    let mut deviations = deviations();
    let mut faults = Vec::new();
    let mut relay = Relay::new(cases);
    for case in cases {
        let id = text(case, "id");
        let incumbents: BTreeSet<_> = list(case, "pushes").iter().map(told).collect();
        let survived = case.get("hivemind_alive").unwrap().as_bool().unwrap();
        let frames = list(case, "frames_hex");
        let ours = frames
            .get(1)
            .map_or_else(BTreeSet::new, |body| relay.handle(whole(body.as_str().unwrap())));
        let cut = id == "big-data";
        let ours: BTreeSet<_> = ours.into_iter().map(|wakeup| tell(wakeup, cut)).collect();
        let differs = !survived || ours != incumbents;
        if differs != deviations.remove(id) {
            faults.push(format!("{id}: {} wakeups instead of {}", ours.len(), incumbents.len()));
        }
        assert!(survived || ours.is_empty(), "{id}: there is nothing to compare with");
    }
    assert!(faults.is_empty(), "not as listed: {faults:?}");
    assert!(deviations.is_empty(), "listed, but no case: {deviations:?}");
    assert_eq!(cases.len(), 22);
}

/// What stands between a link and sealing.
struct Relay {
    confirm: Confirm,
    dedupe: Dedupe,
    index: Index,
    mark_key: Secret<[u8; 32]>,
}

impl Relay {
    /// With the devices that the incumbent had: they are named in its pushes.
    fn new(cases: &[Value]) -> Self {
        let seed = Seed::new([1; 16]);
        let mut index = Index::new(seed);
        let mut devices = BTreeSet::new();
        for case in cases {
            for push in list(case, "pushes").iter().filter(|push| !is_cut(push)) {
                let push = wakeup(push);
                if devices.insert((push[b"@".as_slice()].clone(), push[b"&".as_slice()].clone())) {
                    assert_eq!(index.upsert(&subscription(&push)), Upserted::Added);
                }
            }
        }
        assert_eq!(devices.len(), 3);
        Self {
            confirm: Confirm::new(ConfirmSettings::default(), seed),
            dedupe: Dedupe::new(DedupeSettings::default()),
            index,
            mark_key: Secret::new([2; 32]),
        }
    }

    fn handle(&mut self, notification: Bytes) -> BTreeSet<Wakeup> {
        let Ok(event) = event::parse(notification) else {
            return BTreeSet::new();
        };
        // The hashes of this section are made up; there is one link.
        let Verdict::Release(event) = self
            .confirm
            .handle(NodeKey([1; 32]), false, event, false, Instant::now())
        else {
            panic!("without a second link nothing is held");
        };
        let mark = Mark::new(&self.mark_key, &event);
        if self.dedupe.check(&mark, NOW * 1000) != MarkState::New {
            return BTreeSet::new();
        }
        self.dedupe.begin(mark, NOW * 1000);
        let devices = self.index.fan_out(&event);
        let wakeups = devices.map(|device| {
            let mut wakeup = Wakeup::from([
                (b"@".to_vec(), event.account.expose().to_vec()),
                (b"#".to_vec(), event.hash.expose().as_bytes().to_vec()),
                (b"n".to_vec(), event.namespace.0.to_string().into_bytes()),
                (b"t".to_vec(), event.timestamp_ms.to_string().into_bytes()),
                (b"z".to_vec(), event.expiry_ms.to_string().into_bytes()),
                (b"&".to_vec(), device.token.to_vec()),
                (b"^".to_vec(), device.enc_key.to_vec()),
            ]);
            if let Some(body) = event.body.as_ref().filter(|_| device.want_data) {
                wakeup.insert(b"~".to_vec(), body.0.to_vec());
            }
            wakeup
        });
        let wakeups = wakeups.collect();
        self.dedupe.commit(&mark, NOW * 1000);
        wakeups
    }
}

fn subscription(push: &Wakeup) -> Subscription {
    let field = |key: &[u8]| push[key].as_slice();
    let account = AccountId::from_slice(field(b"@")).unwrap();
    // Namespace 1 as well, so that the case of one hash in two namespaces is about the hash.
    let namespaces: &[i16] = if account.is_session() { &[0, 1] } else { &[11] };
    Subscription {
        device: DeviceId {
            account,
            service: Service::Firebase,
            token: DeviceToken::new(field(b"&")),
        },
        session_ed25519: None,
        subaccount: None,
        namespaces: NamespaceSet::new(namespaces.iter().map(|n| Namespace(*n)).collect::<Vec<_>>()).unwrap(),
        want_data: true,
        sig_ts: NOW,
        signature: [0; 64],
        enc_key: Secret::new(field(b"^").try_into().unwrap()),
        is_bound: false,
    }
}

/// What is compared of a wakeup: its fields, or of one that the file cuts short its device and whether it has a body.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Whole(Wakeup),
    Device(Vec<u8>, bool),
}

fn tell(wakeup: Wakeup, cut: bool) -> Told {
    match cut {
        false => Told::Whole(wakeup),
        true => Told::Device(
            wakeup[b"&".as_slice()].clone(),
            wakeup[b"~".as_slice()].len() == event::MAX_BODY,
        ),
    }
}

fn told(push: &Value) -> Told {
    match is_cut(push) {
        false => Told::Whole(wakeup(push)),
        true => Told::Device(text(push, "svcid").into(), push["has_data"].as_bool().unwrap()),
    }
}

fn is_cut(push: &Value) -> bool {
    text(push, "dict_hex").contains("...")
}

/// The incumbent's push without what belongs to its own providers.
fn wakeup(push: &Value) -> Wakeup {
    let bytes = hex::decode(text(push, "dict_hex")).unwrap();
    let mut fields = Wakeup::new();
    let mut reader = Reader::new(&bytes);
    let mut dict = reader.dict().unwrap();
    while let Some(key) = dict.next_key().unwrap() {
        let value = match key {
            b"n" | b"t" | b"z" => dict.value().int().unwrap().to_string().into_bytes(),
            _ => dict.value().bytes().unwrap().to_vec(),
        };
        fields.insert(key.to_vec(), value);
    }
    fields.retain(|key, _| !matches!(key.as_slice(), b"" | b"!"));
    fields
}

/// The file cuts bodies of one repeated letter short.
fn whole(hex: &str) -> Bytes {
    match hex.split_once("...") {
        None => hex::decode(hex).unwrap().into(),
        Some((beginning, _)) => filled_up(beginning).into(),
    }
}

/// `…1:~<length>:xxx` becomes the whole dict.
fn filled_up(beginning: &str) -> Vec<u8> {
    let even = beginning.len() / 2 * 2;
    let mut bytes = hex::decode(&beginning[..even]).unwrap();
    let key = bytes.windows(3).rposition(|window| window == b"1:~").unwrap() + 3;
    let colon = key + bytes[key..].iter().position(|byte| *byte == b':').unwrap();
    let length: usize = std::str::from_utf8(&bytes[key..colon]).unwrap().parse().unwrap();
    assert!(bytes[colon + 1..].iter().all(|byte| *byte == b'x'));
    bytes.truncate(colon + 1);
    bytes.extend(std::iter::repeat_n(b'x', length));
    bytes.push(b'e');
    bytes
}

fn deviations() -> Listed {
    let table: toml::Table = toml::from_str(include_str!("../../../tests/vectors/deviations.toml")).unwrap();
    let mut cases = BTreeSet::new();
    for entry in table["deviation"].as_array().unwrap() {
        // Whole sections, and other files, are for other tests.
        if entry.get("case").is_none() || entry["file"].as_str() != Some("monitor.json") {
            continue;
        }
        let field = |key: &str| entry[key].as_str().filter(|text| !text.is_empty()).unwrap().to_owned();
        let (_row, _why) = (field("row"), field("why"));
        assert!(cases.insert(field("case")), "listed twice");
    }
    cases
}

type Listed = BTreeSet<String>;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/monitor.json")).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text {key}"))
}

fn number(value: &Value, key: &str) -> i64 {
    value
        .get(key)
        .and_then(Value::as_i64)
        .unwrap_or_else(|| panic!("no number {key}"))
}
