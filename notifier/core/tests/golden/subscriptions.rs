//! `subscriptions.json`: requests with the incumbent's answers, signatures, and keys converted to session ids.

use crate::deviations::Deviations;
use crate::{array, bytes, list, text, vectors};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use notifier_core::account::Service;
use notifier_core::subscription::{Body, DeviceId, ErrorKind, ItemError, parse_body, subscribe, unsubscribe};
use quietline_shared::crypto::{ed25519_to_x25519, verify_ed25519};
use serde_json::{Value, json};
use std::collections::HashSet;

const FILE: &str = include_str!("../../../../tests/vectors/subscriptions.json");
const NOW: i64 = 1_800_000_000;

#[test]
fn every_request_is_answered_as_the_incumbent_answers_it() {
    let file = vectors(FILE);
    let mut deviations = Deviations::of("subscriptions.json");
    let mut devices = HashSet::new();
    let cases = list(&file, "cases");
    for case in cases {
        devices.extend(device_of_absent_case(&file, case));
        let ours = answer(&request(case), text(case, "op"), &mut devices);
        deviations.check(text(case, "id"), case.get("expect").unwrap(), &ours);
    }
    deviations.finish();
    assert_eq!(cases.len(), 90);
}

#[test]
fn just_the_requests_with_a_wrong_clock_are_told_to_set_it() {
    let file = vectors(FILE);
    let mut told = Vec::new();
    for case in list(&file, "cases") {
        let Body::One(item) = parse_body(&request(case)) else {
            continue;
        };
        let outcome = match text(case, "op") {
            "subscribe" => subscribe(&item, NOW, &on_offer).err(),
            _ => unsubscribe(&item, NOW, &on_offer).err(),
        };
        if outcome.is_some_and(|error| error.kind() == ErrorKind::Clock) {
            told.push(text(case, "id"));
        }
    }
    assert_eq!(
        told,
        ["ts-zero", "ts-negative", "ts-24h-ahead", "ts-1y-ahead", "ts-millis"]
    );
}

#[test]
fn signatures_are_judged_as_libsodium_judges_them() {
    let file = vectors(FILE);
    let cases = list(&file, "static_signatures");
    for case in cases {
        let (public, signature) = (array(case, "ed25519_public"), array(case, "signature"));
        let valid = verify_ed25519(&public, text(case, "message").as_bytes(), &signature);
        assert_eq!(
            Some(valid),
            case.get("valid").and_then(Value::as_bool),
            "{}",
            text(case, "id")
        );
    }
    assert_eq!(cases.len(), 18);
}

#[test]
fn an_ed25519_key_becomes_its_session_id_or_is_refused() {
    let file = vectors(FILE);
    let good = list(&file, "ed25519_to_session_id");
    let special = list(&file, "ed25519_special");
    for case in good.iter().chain(special) {
        let session_id = ed25519_to_x25519(&array(case, "ed25519_public")).map(|key| format!("05{}", hex::encode(key)));
        assert_eq!(
            session_id.as_deref(),
            case.get("session_id").and_then(Value::as_str),
            "{}",
            text(case, "id")
        );
    }
    assert_eq!((good.len(), special.len()), (16, 7));
}

#[test]
fn without_the_field_data_a_device_wants_none() {
    let file = vectors(FILE);
    let case = list(&file, "cases")
        .iter()
        .find(|case| text(case, "id") == "ok-no-data")
        .unwrap();
    let mut item: Value = serde_json::from_slice(&request(case)).unwrap();
    for absent in [Some(Value::Null), None] {
        item.as_object_mut().unwrap().remove("data");
        item.as_object_mut()
            .unwrap()
            .extend(absent.map(|null| ("data".to_owned(), null)));
        assert!(!subscribe(&item, NOW, &on_offer).unwrap().want_data);
    }
}

#[test]
fn an_apple_device_is_known_by_the_bytes_of_its_token() {
    let file = vectors(FILE);
    let mut item: Value = serde_json::from_slice(&request(list(&file, "cases").first().unwrap())).unwrap();
    // Neither service nor token is part of what the owner signed.
    *item.pointer_mut("/service").unwrap() = json!("apns");
    *item.pointer_mut("/service_info/token").unwrap() = json!("AB".repeat(32));
    let device = subscribe(&item, NOW, &Service::from_name).unwrap().device;
    assert_eq!(
        (device.service, device.token.expose()),
        (Service::Apns, &[0xab; 32][..])
    );
}

/// What the client reads, with `devices` in the place of a store.
fn answer(request: &[u8], op: &str, devices: &mut HashSet<DeviceId>) -> Value {
    let mut one = |item: &Value| match op {
        "subscribe" => subscribe(item, NOW, &on_offer).map_or_else(refused, |subscription| {
            if devices.insert(subscription.device) {
                json!({ "success": true, "added": true, "message": "Subscription successful" })
            } else {
                json!({ "success": true, "updated": true, "message": "Resubscription successful" })
            }
        }),
        "unsubscribe" => unsubscribe(item, NOW, &on_offer).map_or_else(refused, |unsubscription| {
            let removed = devices.remove(&unsubscription.device);
            let message = if removed {
                "Device unsubscribed from push notifications"
            } else {
                "Device was not subscribed to push notifications"
            };
            json!({ "success": true, "removed": removed, "message": message })
        }),
        other => panic!("unknown op {other}"),
    };
    match parse_body(request) {
        Body::One(item) => one(&item),
        Body::Many(items) => items.iter().map(one).collect(),
        Body::Bad(error) => refused(error),
    }
}

/// Where a case builds on one that the file does not hold: the device that one subscribed.
fn device_of_absent_case(file: &Value, case: &Value) -> Option<DeviceId> {
    let held = |id: &Value| list(file, "cases").iter().any(|case| case.get("id") == Some(id));
    case.get("after")?.as_array()?.iter().find(|id| !held(id))?;
    let Body::One(item) = parse_body(&request(case)) else {
        return None;
    };
    unsubscribe(&item, NOW, &on_offer)
        .ok()
        .map(|unsubscription| unsubscription.device)
}

fn refused(error: ItemError) -> Value {
    json!({ "error": error.code(), "message": error.message() })
}

/// The data's own two services stand for one whose tokens are plain text.
fn on_offer(name: &str) -> Option<Service> {
    ["test", "hmm"].contains(&name).then_some(Service::Firebase)
}

/// The request of a case, signed now.
fn request(case: &Value) -> Vec<u8> {
    if let Some(raw) = case.get("request_raw").and_then(Value::as_str) {
        return raw.as_bytes().to_vec();
    }
    let ts = NOW + case.get("sig_ts_offset").and_then(Value::as_i64).unwrap();
    let mut request = case.get("request").unwrap().to_string();
    // The longest name first: $SIG is the beginning of others.
    for (name, replacement) in [
        ("$SIG_TS_FLOAT", format!("{ts}.75")),
        ("$SIG_TS_MS", format!("{ts}000")),
        ("$SIG_TS", ts.to_string()),
    ] {
        request = request.replace(&format!("\"{name}\""), &replacement);
    }
    for (name, rule) in case.get("sigs").and_then(Value::as_object).unwrap() {
        request = request.replace(&format!("\"{name}\""), &json!(signature(rule, ts)).to_string());
    }
    request.into_bytes()
}

fn signature(rule: &Value, ts: i64) -> String {
    let message = text(rule, "message")
        .replace("{ts}", &ts.to_string())
        .replace("{ts-1}", &(ts - 1).to_string());
    let mut signature = SigningKey::from_bytes(&array(rule, "seed"))
        .sign(message.as_bytes())
        .to_bytes();
    let known = ["seed", "message", "encoding", "flip_bit", "add_order"];
    assert!(
        rule.as_object()
            .unwrap()
            .keys()
            .all(|key| known.contains(&key.as_str()))
    );
    if let Some(bit) = rule.get("flip_bit").and_then(Value::as_u64) {
        *signature.get_mut(bit as usize / 8).unwrap() ^= 1 << (bit % 8);
    }
    if rule.get("add_order").is_some() {
        add_order(signature.split_at_mut(32).1);
    }
    match text(rule, "encoding") {
        "hex" => hex::encode(signature),
        "base64" => STANDARD.encode(signature),
        "base64-nopad" => STANDARD_NO_PAD.encode(signature),
        other => panic!("unknown encoding {other}"),
    }
}

/// Adds the group order to a little-endian number: the same signature to a careless verifier.
fn add_order(scalar: &mut [u8]) {
    let order = bytes(
        &json!({ "L": "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010" }),
        "L",
    );
    let mut carry = 0;
    for (digit, summand) in scalar.iter_mut().zip(order) {
        let sum = u16::from(*digit) + u16::from(summand) + carry;
        *digit = sum as u8;
        carry = sum >> 8;
    }
}
