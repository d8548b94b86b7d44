//! The lab against golden data made by the upstream code: what checks the product is itself checked.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use quietline_lab::bt::Bt;
use quietline_lab::node::{SwarmMessage, message_hash, monitor};
use quietline_lab::onion::{self, Cipher, OnionKey};
use quietline_lab::phone::{self, OpenError, PhoneBody, PushService};
use quietline_lab::sodium::{self, SigningKey};
use quietline_lab::swarms;
use serde_json::Value;

#[test]
fn onion_requests_are_byte_equal_to_those_of_the_real_builder() {
    let vectors = load(include_str!("../vectors/onion-v4.json"));
    for case in items(&vectors["built"]) {
        let (cipher, secret, public) = onion_case(case);
        let request = bytes(&case["request_hex"]);
        let nonce_length = if cipher == Cipher::AesGcm { 12 } else { 24 };
        let (built, key) = onion::build(
            cipher,
            &secret,
            &public,
            &request[4..4 + nonce_length],
            &bytes(&case["plaintext_hex"]),
        )
        .unwrap();
        assert_eq!(built, request, "{}", case["id"]);
        assert!(request.ends_with(text(&case["trailing_json"]).as_bytes()));
        assert_eq!(
            key.open(&bytes(&case["reply_encrypted_hex"])),
            Some(bytes(&case["reply_plaintext_hex"]))
        );
        let reply = key.open_reply(&bytes(&case["reply_encrypted_hex"])).unwrap();
        assert_eq!((reply.code, reply.body.as_slice()), (200, &b"ok"[..]));
    }
    assert_eq!(items(&vectors["built"]).len(), 4);
}

#[test]
fn the_inner_request_is_written_as_clients_write_it() {
    let vectors = load(include_str!("../vectors/onion-v4.json"));
    for case in items(&vectors["built"]) {
        let plaintext = bytes(&case["plaintext_hex"]);
        let Some(Bt::List(parts)) = Bt::parse(&plaintext) else {
            panic!("a list")
        };
        assert_eq!(onion::inner("/subscribe", parts[1].as_bytes().unwrap()), plaintext);
    }
}

#[test]
fn answers_to_onion_requests_open_with_the_key_of_the_request() {
    let vectors = load(include_str!("../vectors/onion-v4.json"));
    let mut opened = 0;
    for case in items(&vectors["requests"]) {
        let (cipher, secret, public) = onion_case(case);
        let key = OnionKey::derive(cipher, &secret, &public).unwrap();
        // A body of 100,001 bytes is described instead of given; its answer is given.
        if let (Some(request), Some(plaintext)) = (case["request_hex"].as_str(), case["plaintext_hex"].as_str()) {
            let request = hex::decode(request).unwrap();
            let length = u32::from_le_bytes(request[..4].try_into().unwrap()) as usize;
            assert_eq!(
                key.open(&request[4..4 + length]),
                hex::decode(plaintext).ok(),
                "{}",
                case["id"]
            );
        }
        if let Some(sealed) = case["upstream_reply"]["encrypted_hex"].as_str() {
            let reply = key.open_reply(&hex::decode(sealed).unwrap()).unwrap();
            assert_eq!(Some(reply.code), case["upstream_reply"]["metadata"]["code"].as_u64());
            opened += 1;
        }
    }
    assert!(opened > 20, "{opened}");
}

#[test]
fn replies_of_the_real_server_open() {
    let vectors = load(include_str!("../vectors/onion-v4.json"));
    for case in items(&vectors["replies"]) {
        let (cipher, secret, public) = onion_case(case);
        let key = OnionKey::derive(cipher, &secret, &public).unwrap();
        let mut sealed = bytes(&case["reply_encrypted_hex"]);
        assert_eq!(
            key.open(&sealed),
            Some(bytes(&case["reply_plaintext_hex"])),
            "{}",
            case["id"]
        );
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(key.open(&sealed), None);
    }
    for case in items(&vectors["derived_keys"]) {
        let (secret, public) = (array(&case["client_secret"]), array(&case["server_public"]));
        assert_eq!(
            sodium::x25519_shared(&secret, &public),
            Some(array(&case["x25519_shared"]))
        );
        for (cipher, name) in [(Cipher::AesGcm, "aes_gcm_key"), (Cipher::XChaCha20, "xchacha20_key")] {
            assert_eq!(
                OnionKey::derive(cipher, &secret, &public).unwrap().bytes(),
                &array(&case[name])
            );
        }
    }
}

#[test]
fn phones_read_what_the_incumbent_sealed() {
    let vectors = load(include_str!("../vectors/push-payload.json"));
    for case in items(&vectors["cases"]) {
        let input = &case["input"];
        let message = phone::open_payload(&array(&case["enc_key_hex"]), &bytes(&case["enc_payload_hex"])).unwrap();
        assert_eq!(message.account.to_vec(), bytes(&input["account_hex"]), "{}", case["id"]);
        assert_eq!(message.hash, text(&input["hash"]));
        assert_eq!(Some(message.timestamp_ms), input["timestamp_ms"].as_i64());
        assert_eq!(Some(message.expiry_ms), input["expiry_ms"].as_i64());
        let namespace = input["namespace"].as_i64();
        // The incumbent loses negative namespaces in the JSON form only; the dict form keeps them.
        if case["body_included"] == true && namespace.is_some_and(i64::is_negative) {
            assert_eq!(message.namespace, None);
        } else {
            assert_eq!(message.namespace, namespace, "{}", case["id"]);
        }
        let length = input["body_len"].as_u64().unwrap_or(0);
        match &message.body {
            PhoneBody::Data(data) => {
                assert_eq!(case["body_included"], true);
                assert_eq!(data.len() as u64, length);
                if let Some(body) = input["body_hex"].as_str() {
                    assert_eq!(hex::encode(data), body);
                }
            }
            PhoneBody::TooLong => assert!(length > 0 && case["body_included"] == false),
            PhoneBody::None => assert_eq!(length, 0),
        }
        if length > 0 {
            assert_eq!(message.length, Some(length as i64));
        }
    }
}

#[test]
fn phones_refuse_what_the_client_library_refuses() {
    let vectors = load(include_str!("../vectors/push-payload.json"));
    for case in items(&vectors["failures"]) {
        // A key of 31 bytes has no type to be given in.
        let Ok(key) = <[u8; 32]>::try_from(bytes(&case["enc_key_hex"])) else {
            continue;
        };
        let opened = phone::open_payload(&key, &bytes(&case["enc_payload_hex"]));
        let expected = if case["id"] == "bad-short" {
            OpenError::TooShort
        } else {
            OpenError::NotForMe
        };
        assert_eq!(opened, Err(expected), "{}", case["id"]);
    }
}

#[test]
fn signatures_and_session_ids_are_those_of_the_clients() {
    let vectors = load(include_str!("../vectors/subscriptions.json"));
    for case in items(&vectors["static_signatures"]) {
        let (message, signature) = (text(&case["message"]), array(&case["signature"]));
        let valid = case["valid"] == true;
        let public = array(&case["ed25519_public"]);
        assert_eq!(
            sodium::verify_ed25519(&public, message.as_bytes(), &signature),
            valid,
            "{}",
            case["id"]
        );
        // A key of small order has no seed.
        if case["seed"].is_null() {
            continue;
        }
        let key = SigningKey::from_seed(&array(&case["seed"]));
        assert_eq!(key.public(), &public);
        if valid {
            assert_eq!(key.sign(message.as_bytes()), signature);
        }
    }
    for case in items(&vectors["ed25519_to_session_id"]) {
        let phone = phone::Phone::person(&array(&case["seed"]), PushService::Firebase);
        assert_eq!(phone.account_hex(), text(&case["session_id"]));
        assert_eq!(phone.session_ed25519(), Some(&array(&case["ed25519_public"])));
    }
    for case in items(&vectors["ed25519_special"]) {
        let converted = sodium::ed25519_to_x25519(&array(&case["ed25519_public"]));
        assert_eq!(
            converted.map(|key| format!("05{}", hex::encode(key))),
            case["session_id"].as_str().map(Into::into)
        );
    }
}

/// The text a phone signs is rebuilt from each request's fields and compared with the one the clients sign.
#[test]
fn phones_sign_the_text_that_clients_sign() {
    let vectors = load(include_str!("../vectors/subscriptions.json"));
    let mut compared = 0;
    for case in items(&vectors["cases"]) {
        let request = &case["request"];
        let Some(expected) = case["sigs"]["$SIG"]["message"].as_str() else {
            continue;
        };
        let accepted = case["expect"]["success"] == true;
        let Ok(account) =
            <[u8; 33]>::try_from(hex::decode(request["pubkey"].as_str().unwrap_or("")).unwrap_or_default())
        else {
            continue;
        };
        let expected = expected.replace("{ts}", "1700000000");
        if case["op"] == "unsubscribe" && accepted {
            assert_eq!(
                phone::unsubscribe_message(&account, 1_700_000_000),
                expected,
                "{}",
                case["id"]
            );
            compared += 1;
        }
        let namespaces: Option<Vec<i16>> = request["namespaces"].as_array().map(|list| {
            list.iter()
                .filter_map(|number| number.as_i64()?.try_into().ok())
                .collect()
        });
        let (Some(namespaces), Some(want_data)) = (namespaces, request["data"].as_bool()) else {
            continue;
        };
        let complete = Some(namespaces.len()) == request["namespaces"].as_array().map(Vec::len);
        if case["op"] == "subscribe" && accepted && complete && request["sig_ts"] == "$SIG_TS" {
            let message = phone::monitor_message(&account, 1_700_000_000, want_data, &namespaces);
            assert_eq!(message, expected, "{}", case["id"]);
            compared += 1;
        }
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn fake_nodes_answer_monitor_requests_as_the_real_storage_server() {
    let vectors = load(include_str!("../vectors/monitor.json"));
    for case in items(&vectors["storage_server_requests"]) {
        let parts: Vec<Vec<u8>> = match &case["body_hex"] {
            Value::Array(parts) => parts.iter().map(bytes).collect(),
            part => vec![bytes(part)],
        };
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let now = case["signed_at"].as_i64().unwrap_or(1_795_198_167);
        let answers = monitor::read(&parts, now, || true);
        let expected = String::from_utf8(bytes(&case["reply"][0])).unwrap();
        assert_eq!(String::from_utf8(answers.write()).unwrap(), expected, "{}", case["id"]);
    }
}

#[test]
fn fake_nodes_accept_what_the_incumbent_sends() {
    let vectors = load(include_str!("../vectors/monitor.json"));
    for case in items(&vectors["hivemind_requests"]) {
        let body = bytes(&case["body_hex"]);
        let signed_at = case["subscribe_request"]["sig_ts"].as_i64().unwrap_or(1_795_196_921);
        let answers = monitor::read(&[&body], signed_at, || true);
        assert!(!answers.items().is_empty());
        for answer in answers.items() {
            let record = answer
                .as_ref()
                .unwrap_or_else(|refusal| panic!("{}: {refusal:?}", case["id"]));
            assert_eq!(
                record.want_data,
                case["subscribe_request"]["data"].as_bool().unwrap_or(record.want_data),
                "{}",
                case["id"]
            );
        }
    }
}

#[test]
fn the_record_a_phone_would_make_passes_at_a_storage_server() {
    let seeds = [sodium::random(), sodium::random()];
    let phones = [
        phone::Phone::person(&seeds[0], PushService::Apns),
        phone::Phone::group_admin(&seeds[0], PushService::Firebase),
        phone::Phone::group_member(&seeds[0], &seeds[1], PushService::Firebase),
    ];
    let body = Bt::List(phones.iter().map(|phone| phone.monitor_record(1_700_000_000)).collect()).write();
    let answers = monitor::read(&[&body], 1_700_000_000, || true);
    assert_eq!(answers.write(), b"ld7:successi1eed7:successi1eed7:successi1eee");
}

#[test]
fn fake_nodes_push_byte_for_byte_what_the_real_one_pushed() {
    let vectors = load(include_str!("../vectors/monitor.json"));
    let mut compared = 0;
    for case in items(&vectors["notifications"]) {
        let stored = &case["stored"];
        let Some(dict) = case["notify_dicts"].get(0) else {
            continue;
        };
        let data = hex::decode(text(&stored["data_hex"])).unwrap_or_else(|_| vec![b'x'; 70_000]);
        let timestamp_ms = stored["timestamp_ms"].as_i64().unwrap();
        let message = SwarmMessage {
            account: array(&stored["account_hex"]),
            session_ed25519: None,
            namespace: stored["namespace"].as_i64().unwrap().try_into().unwrap(),
            timestamp_ms,
            expiry_ms: timestamp_ms + stored["ttl_ms"].as_i64().unwrap(),
            data,
        };
        assert_eq!(message.hash(), text(&dict["h"]), "{}", case["id"]);
        let pushed = text(&case["notify_frames_hex"][0][1]);
        let built = hex::encode(message.notification(true));
        // The vector keeps the head of the 70,000 bytes only, followed by dots.
        match pushed.strip_suffix("...") {
            Some(head) => assert!(built.starts_with(head) && message.data.len() == 70_000),
            None => assert_eq!(built, pushed, "{}", case["id"]),
        }
        compared += 1;
    }
    assert_eq!(compared, 3);
    assert_ne!(message_hash(&[5; 33], 0, b"x"), message_hash(&[5; 33], 1, b"x"));
}

#[test]
fn accounts_belong_to_the_swarm_the_push_server_finds() {
    let vectors = load(include_str!("../vectors/swarm-mapping.json"));
    let mut compared = 0;
    for case in items(&vectors["cases"]) {
        let account: [u8; 33] = array(&case["account_hex"]);
        assert_eq!(
            swarms::swarm_space(&account).to_string(),
            text(&case["swarm_space"]),
            "{}",
            case["id"]
        );
        let ids: Vec<u64> = items(&case["swarm_ids"])
            .iter()
            .map(|id| text(id).parse().unwrap())
            .collect();
        if case["swarm_is_invalid"] == true {
            continue;
        }
        let found = swarms::nearest_swarm(swarms::swarm_space(&account), &ids).map(|id| id.to_string());
        assert_eq!(found.as_deref(), case["swarm"].as_str(), "{}", case["id"]);
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
}

fn onion_case(case: &Value) -> (Cipher, [u8; 32], [u8; 32]) {
    let cipher = Cipher::from_name(&text(&case["enc_type"])).unwrap();
    (
        cipher,
        array(&case["client_ephemeral_secret"]),
        array(&case["server_public"]),
    )
}

fn load(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}
