//! One function over bytes for each parser that sees the network. The fuzzer calls them with its inventions, the ordinary test
//! `fuzz_corpus` with everything in `corpus/`.

use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::endpoint::PushEndpoint;
use notifier_core::outbox::Outcome;
use notifier_core::seal::Sealed;
use notifier_core::subscription::{self, Body, Subscription};
use notifier_core::swarm::{NodeList, SwarmRing};
use notifier_core::webpush::Guard;
use quietline_notifier::dispatch::answer::{self, Answer, RETRY_AFTER_MAX};
use quietline_notifier::dispatch::{apns, fcm, huawei, webpush};
use quietline_shared::crypto;
use quietline_shared::onion::{self, OnionError};
use quietline_shared::redact::Secret;
use std::sync::LazyLock;
use turn_core::attributes::{self, MAX_PEERS, MAX_UNKNOWN};
use turn_core::framing::{Framer, Half, MAX_FRAME, STRANGER_FRAME};
use turn_core::wire::{ChannelData, Class, HEADER, MAGIC_COOKIE, Message, Method, TransactionId, Writer};

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

/// As the endpoint of a subscription, and as a token that a row holds.
pub fn endpoints(data: &[u8]) {
    const PUBLIC: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    let _ = PushEndpoint::of_token(&DeviceToken::new(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(made) = PushEndpoint::parse(text, PUBLIC, "BTBZMqHH6r4Tts7J_aSIgg") {
        let again = PushEndpoint::of_token(&made.token()).expect("what was accepted can be stored and read");
        assert!(again.to_url() == made.to_url(), "an endpoint has one form");
        assert!(made.to_url().expose().is_ascii(), "it goes into headers");
        let _ = Guard::default().check(made.origin());
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
        let webpush = match webpush::answer::read(status, pause) {
            webpush::answer::Reading::Answer(answer, _) => answer,
            _ => webpush::answer::parked("forbidden"),
        };
        for Answer { outcome, label, .. } in [
            webpush,
            apns::answer::classify(status, &headers, body, now_ms),
            fcm::answer::classify(status, &headers, body, now_ms),
            huawei::answer::classify(status, &headers, body, now_ms),
        ] {
            assert!(
                label.len() <= 40
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
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

/// What we read of a message we can write, and read again.
pub fn wire(data: &[u8]) {
    if let Some(frame) = ChannelData::parse(data) {
        let header = ChannelData::header(frame.number, frame.data.len() as u16);
        let again = [&header, frame.data].concat();
        assert!(ChannelData::parse(&again).is_some_and(|again| again == frame));
        assert!(data.starts_with(&again));
    }
    let Ok(message) = Message::parse(data) else { return };
    let mut buffer = vec![0xAA; data.len()];
    let mut writer = Writer::new(&mut buffer, message.method, message.class, message.transaction);
    for attribute in message.attributes() {
        writer.attribute(attribute.kind, &[attribute.value]);
    }
    let written = writer.finish().expect("it takes as much room as before");
    assert_eq!(written.len(), data.len());
    let again = Message::parse(written).expect("what we write we read");
    assert!((again.method, again.class, again.transaction) == (message.method, message.class, message.transaction));
    let both = message.attributes().zip(again.attributes());
    for (before, after) in both {
        assert_eq!(
            (before.kind, before.value, before.at),
            (after.kind, after.value, after.at)
        );
    }
}

/// As a whole message, and as what stands in one: behind a good header of each kind, and with a good fingerprint at the end.
pub fn attributes(data: &[u8]) {
    read_attributes(data);
    let body = &data[..data.len().min(60_000) / 4 * 4];
    for (method, class) in [
        (Method::Allocate, Class::Request),
        (Method::ChannelBind, Class::Request),
        (Method::Send, Class::Indication),
    ] {
        let mut header = [0; HEADER];
        let begun = Writer::new(&mut header, method, class, TransactionId([3; 12])).finish();
        let message = [begun.expect("a header fits"), body].concat();
        read_attributes(&with_length(message.clone()));
        let mut signed = [message.as_slice(), &[0x80, 0x28, 0, 4, 0, 0, 0, 0]].concat();
        signed = with_length(signed);
        let end = signed.len() - 8;
        let crc = attributes::fingerprint(&signed[..end]);
        signed[end + 4..].copy_from_slice(&crc);
        read_attributes(&signed);
    }
}

fn with_length(mut message: Vec<u8>) -> Vec<u8> {
    let length = (message.len() - HEADER) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    message
}

fn read_attributes(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    for attribute in message.attributes() {
        if let Some(address) = attributes::read_xor_address(attribute.value, &message.transaction) {
            let (value, length) = attributes::xor_address(address, &message.transaction);
            // The first byte means nothing (RFC 8489 §14.1).
            assert_eq!(value[1..length], attribute.value[1..]);
        }
    }
    let Ok(found) = attributes::read(&message) else { return };
    assert!(found.peers.len() <= MAX_PEERS && found.unknown.len() <= MAX_UNKNOWN);
    if let Some(data) = found.data {
        assert_eq!(bytes.get(data.start..data.start + data.value.len()), Some(data.value));
    }
    for integrity in [found.integrity_sha1, found.integrity_sha256].into_iter().flatten() {
        assert!(integrity.at >= HEADER && integrity.at + 4 + integrity.mac.len() <= bytes.len());
        // Nothing behind an integrity counts.
        let mut behind = bytes[..integrity.at + 4 + integrity.mac.len()].to_vec();
        behind.extend([0x00, 0x0D, 0, 4, 0, 0, 0x0E, 0x10]);
        let behind = with_length(behind);
        let message = Message::parse(&behind).expect("a message with one more attribute");
        if let Ok(again) = attributes::read(&message) {
            assert_eq!(
                again.lifetime, found.lifetime,
                "an attribute behind the integrity counts"
            );
        }
    }
    if found.has_fingerprint {
        let end = bytes.len() - 8;
        assert_eq!(bytes[end + 4..], attributes::fingerprint(&bytes[..end]));
    }
}

/// A stream: the first byte says how it is cut, the second whether it is a stranger's. However it is cut, the same frames come out.
pub fn framing(data: &[u8]) {
    let Some(([cut, who], stream)) = data.split_first_chunk() else {
        return;
    };
    let limit = if who & 1 == 0 { STRANGER_FRAME } else { MAX_FRAME };
    let whole = frames(stream, limit, usize::MAX);
    // A long stream byte by byte would take seconds.
    let cut = usize::from(*cut).max(stream.len() / 512).max(1);
    assert_eq!(whole, frames(stream, limit, cut));
    let (found, rest, has_fault) = whole;
    let taken: usize = found.iter().map(Vec::len).sum();
    assert_eq!(found.concat(), stream[..taken], "frames are what came, in order");
    for frame in &found {
        assert!(frame.len() <= limit && frame.len() % 4 == 0);
        assert!(frame[0] >= 64 || frame[4..8] == MAGIC_COOKIE.to_be_bytes());
    }
    assert!(has_fault || (rest.len() < limit && taken + rest.len() == stream.len()));
}

/// Frames, what of the stream is in none, and whether it has ended with a fault: its name may hang on the cut, as a length comes before a
/// cookie.
type Frames = (Vec<Vec<u8>>, Vec<u8>, bool);

/// As a shard reads: one buffer, which between two reads is another stream's.
fn frames(stream: &[u8], limit: usize, cut: usize) -> Frames {
    let mut framer = Framer::new(STRANGER_FRAME);
    let (mut found, mut half, mut coming) = (Vec::new(), Half::default(), stream);
    while !coming.is_empty() {
        framer.begin(limit);
        let space = framer.space();
        let length = cut.min(space.len()).min(coming.len());
        space[..length].copy_from_slice(&coming[..length]);
        framer.filled(length);
        coming = &coming[length..];
        framer.join(&mut half);
        loop {
            match framer.next_frame() {
                Ok(Some(frame)) => found.push(frame.to_vec()),
                Ok(None) => break,
                Err(_) => return (found, Vec::new(), true),
            }
        }
        framer.leave(&mut half);
    }
    let taken: usize = found.iter().map(Vec::len).sum();
    (found, stream[taken..].to_vec(), false)
}

/// A life of the whole server: requests, packets, failing ports, reloads, jumps of time.
pub fn turn_server(data: &[u8]) {
    turn_core::control::fuzz_server(data);
}
