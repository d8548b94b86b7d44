//! `push-payload.json`: what the incumbent seals and its clients open.

use crate::{array, bytes, list, text, vectors};
use bytes::Bytes;
use notifier_core::account::{AccountId, DeviceToken, MessageHash, Namespace, Service};
use notifier_core::event::{Body, MessageEvent};
use notifier_core::seal::{DeviceView, Limits, Padding, SealSettings, payload, seal};
use quietline_shared::crypto::{xchacha_open, xchacha_seal};
use serde_json::Value;

const FILE: &str = include_str!("../../../../tests/vectors/push-payload.json");

#[test]
fn every_payload_has_the_incumbents_plaintext() {
    for_each_case(|id, case, event| {
        let payload = payload(event, true, limits(case));
        let included = case.get("body_included").and_then(Value::as_bool).unwrap();
        assert_eq!(payload.with_body.is_some(), included, "{id}");
        let text = payload.with_body.unwrap_or(payload.without_body);
        assert_eq!(hex::encode(text), hex::encode(bytes(case, "plaintext_hex")), "{id}");
    });
}

#[test]
fn with_upstreams_padding_every_wakeup_is_the_incumbents_byte_for_byte() {
    for_each_case(|id, case, event| {
        let sealed = wake(case, event, Padding::Upstream);
        assert_eq!(hex::encode(sealed), hex::encode(bytes(case, "enc_payload_hex")), "{id}");
    });
}

#[test]
fn with_two_classes_a_client_opens_the_same_text() {
    for_each_case(|id, case, event| {
        let sealed = wake(case, event, Padding::TwoClasses);
        assert!(
            limits(case).text > 2_816 || [512, 2_816].contains(&(sealed.len() - 40)),
            "{id}"
        );
        let padded = xchacha_open(&array(case, "enc_key_hex"), &sealed).unwrap();
        let end = padded.iter().rposition(|byte| *byte != 0).unwrap();
        assert_eq!(
            hex::encode(padded.get(..=end).unwrap()),
            hex::encode(bytes(case, "plaintext_hex")),
            "{id}"
        );
    });
}

#[test]
fn what_a_client_cannot_open_does_not_open() {
    let file = vectors(FILE);
    let cases = list(&file, "failures");
    for case in cases {
        let opened = bytes(case, "enc_key_hex")
            .try_into()
            .ok()
            .and_then(|key| xchacha_open(&key, &bytes(case, "enc_payload_hex")));
        assert_eq!(opened, None, "{}", text(case, "id"));
    }
    assert_eq!(cases.len(), 5);
}

fn for_each_case(mut check: impl FnMut(&str, &Value, &MessageEvent)) {
    let file = vectors(FILE);
    let cases = list(&file, "cases");
    for case in cases {
        check(text(case, "id"), case, &event(case.get("input").unwrap()));
    }
    assert_eq!(cases.len(), 24);
}

fn event(input: &Value) -> MessageEvent {
    let number = |key: &str| input.get(key).and_then(Value::as_i64);
    let body = match (input.get("body_hex").unwrap(), number("body_len")) {
        (Value::String(hex), _) => Some(hex::decode(hex).unwrap()),
        // The longest body is given by a rule; it is never carried, so its bytes do not count.
        (_, length) => length.map(|length| vec![0; usize::try_from(length).unwrap()]),
    };
    MessageEvent {
        account: AccountId::new(array(input, "account_hex")),
        hash: MessageHash::from_slice(text(input, "hash").as_bytes()).unwrap(),
        namespace: Namespace(number("namespace").unwrap().try_into().unwrap()),
        timestamp_ms: number("timestamp_ms").unwrap(),
        expiry_ms: number("expiry_ms").unwrap(),
        body: body.map(|body| Body(Bytes::from(body))),
    }
}

fn limits(case: &Value) -> Limits {
    match case.pointer("/input/max_msg_size").and_then(Value::as_i64).unwrap() {
        2_500 => Limits::OF_PROVIDERS,
        -1 => Limits {
            body: usize::MAX,
            text: usize::MAX,
        },
        body => Limits {
            body: body.try_into().unwrap(),
            ..Limits::OF_PROVIDERS
        },
    }
}

/// What the device is sent.
fn wake(case: &Value, event: &MessageEvent, padding: Padding) -> Box<[u8]> {
    let enc_key = &array(case, "enc_key_hex");
    let nonce: [u8; 24] = array(case, "nonce_hex");
    if limits(case) != Limits::OF_PROVIDERS {
        // `seal` has no other limits; of such a case the steps are compared.
        let payload = payload(event, true, limits(case));
        return xchacha_seal(
            enc_key,
            &nonce,
            &padding.pad(payload.with_body.unwrap_or(payload.without_body)),
        )
        .into();
    }
    let mut random = [0; 48];
    random.split_at_mut(24).0.copy_from_slice(&nonce);
    let token = &DeviceToken::new(*b"token");
    let device = DeviceView {
        service: Service::Firebase,
        token,
        enc_key,
        want_data: true,
    };
    let settings = SealSettings {
        padding,
        skip_typing: false,
        skip_too_long_config: false,
        ..SealSettings::default()
    };
    seal(event, device, &settings, random).unwrap().body
}
