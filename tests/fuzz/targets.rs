//! One function over bytes for each parser that sees the network. The fuzzer calls them with its inventions, the ordinary test
//! `fuzz_corpus` with everything in `corpus/`.

use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use notifier_core::account::Service;
use notifier_core::outbox::Outcome;
use notifier_core::seal::Sealed;
use notifier_core::subscription::{self, Body, Subscription};
use notifier_core::swarm::{NodeList, SwarmRing};
use quietline_notifier::dispatch::answer::{self, Answer, RETRY_AFTER_MAX};
use quietline_notifier::dispatch::{apns, fcm};
use quietline_shared::crypto;
use quietline_shared::onion::{self, OnionError};
use quietline_shared::redact::Secret;
use std::sync::LazyLock;

/// A Unix time within the golden data's signatures.
const NOW: i64 = 1_795_200_000;

pub fn bencode(data: &[u8]) {
    let mut reader = quietline_shared::bencode::Reader::new(data);
    if reader.skip().is_ok() {
        assert!(reader.rest().len() < data.len(), "a value takes at least one byte");
    }
}

/// As a request, which a golden key opens; and as what stands inside of one, which no fuzzer could seal.
pub fn onion(data: &[u8]) {
    let key = Secret::new(ONION_KEYS[0]);
    let _ = onion::open(data, &key);
    let _ = onion::open(data, &Secret::new(ONION_KEYS[1]));
    static CLIENT: LazyLock<([u8; 32], [u8; 32])> = LazyLock::new(|| {
        let (client, key) = (Secret::new([7; 32]), Secret::new(ONION_KEYS[0]));
        let (client_public, public) = (crypto::x25519_public(&client), crypto::x25519_public(&key));
        let shared = crypto::x25519_shared(&client, &public).expect("both keys are good");
        let sealing = crypto::blake2b_256(&[shared.expose(), &client_public, &public]);
        (client_public, sealing)
    });
    let (client_public, sealing) = &*CLIENT;
    let sealed = crypto::xchacha_seal(sealing, &[0; 24], data);
    let routing = format!(r#"{{"enc_type":"xchacha20","ephemeral_key":"{}"}}"#, hex(client_public));
    let length = u32::try_from(sealed.len()).expect("the fuzzer gives short inputs");
    let request = [&length.to_le_bytes(), &*sealed, routing.as_bytes()].concat();
    match onion::open(&request, &key) {
        Ok(_) | Err(OnionError::Inner { .. }) => {}
        Err(OnionError::Outer(fault)) => panic!("the envelope is good: {fault:?}"),
    }
}

/// Server keys of the golden requests: of the whole ones, and of those with a bad envelope.
const ONION_KEYS: [[u8; 32]; 2] = [
    [
        0xf2, 0x2a, 0xcf, 0x8f, 0xe2, 0x60, 0x45, 0xc8, 0xcc, 0x5f, 0xeb, 0x6d, 0x8b, 0xfd, 0x21, 0x18, 0xd1, 0x85,
        0x20, 0xdc, 0xfa, 0x99, 0x82, 0x5b, 0x04, 0x83, 0x9a, 0x33, 0xa7, 0xd4, 0x09, 0x97,
    ],
    [
        0x78, 0x75, 0x2a, 0x51, 0x92, 0x8d, 0x02, 0x8e, 0x66, 0x5c, 0xd0, 0x34, 0x01, 0xf8, 0x23, 0x4c, 0x18, 0x39,
        0x47, 0x0d, 0x7c, 0xf0, 0x33, 0x01, 0x6e, 0x09, 0xf3, 0x97, 0x03, 0xdb, 0x7b, 0x7d,
    ],
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn requests(data: &[u8]) {
    let on_offer = |name: &str| Service::from_name(name).or((name == "test").then_some(Service::Firebase));
    let items = match subscription::parse_body(data) {
        Body::One(item) => vec![*item],
        Body::Many(items) => items,
        Body::Bad(_) => return,
    };
    for item in items {
        if let Ok(made) = subscription::subscribe(&item, NOW, &on_offer) {
            let row = made.encode_row();
            assert!(
                Subscription::decode_row(&row).is_ok(),
                "what was accepted can be stored and read"
            );
        }
        let _ = subscription::unsubscribe(&item, NOW, &on_offer);
    }
}

pub fn rows(data: &[u8]) {
    if let Ok(subscription) = Subscription::decode_row(data) {
        assert_eq!(subscription.encode_row(), data, "one subscription has one row");
    }
    if let Ok(sealed) = Sealed::decode_row(data) {
        assert_eq!(sealed.encode_row(), data, "one wakeup has one row");
    }
}

pub fn node_list(data: &[u8]) {
    if let Ok(list) = NodeList::from_json(data) {
        let again = NodeList::from_json(&list.to_json()).expect("what we write we read");
        assert!(list.difference(&again) == 0.0);
        let ring = SwarmRing::new(&list);
        assert_eq!(ring.nodes().len(), list.nodes.len());
    }
}

pub fn notification(data: &[u8]) {
    if let Ok(event) = notifier_core::event::parse(bytes::Bytes::copy_from_slice(data)) {
        let _ = event.hash_verifies();
        let _ = notifier_core::seal::payload(&event, true, notifier_core::seal::Limits::OF_PROVIDERS);
    }
}

pub fn link(data: &[u8]) {
    notifier_core::omq::fuzz_connection(data, std::time::Instant::now());
}

pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = text.parse::<notifier_core::omq::Address>();
}

/// A provider's answer under every status. What stands before the first line feed, if there is one, is its `Retry-After`.
pub fn answers(data: &[u8]) {
    let (header, body) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (Some(&data[..end]), &data[end + 1..]),
        None => (None, data),
    };
    let mut headers = HeaderMap::new();
    if let Some(value) = header.and_then(|value| HeaderValue::from_bytes(value).ok()) {
        headers.insert(RETRY_AFTER, value);
    }
    let now_ms = NOW * 1000;
    let pause = answer::retry_after(&headers, now_ms);
    assert!(pause.is_none_or(|pause| pause <= RETRY_AFTER_MAX));
    for status in STATUSES {
        for Answer { outcome, label, .. } in [
            apns::answer::classify(status, &headers, body, now_ms),
            fcm::answer::classify(status, &headers, body, now_ms),
        ] {
            assert!(
                label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(&byte)),
                "a label is ours"
            );
            match outcome {
                Outcome::Retry { after, .. } => assert!(after.is_none_or(|after| after <= RETRY_AFTER_MAX)),
                Outcome::Delivered => assert!((200..300).contains(&status), "only a success is a delivery"),
                _ => {}
            }
        }
    }
}

/// Every status that a table names, and some that none does.
const STATUSES: [u16; 24] = [
    100, 200, 204, 301, 400, 401, 403, 404, 405, 407, 408, 410, 413, 418, 421, 425, 429, 499, 500, 502, 503, 504, 599,
    999,
];
