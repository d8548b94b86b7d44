//! Subscribe and unsubscribe, from a client's request to the nodes that watch and the push that comes or no longer comes.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use quietline_lab::bt;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::onion::{self, Cipher, OnionReply};
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::sodium::{self, SigningKey};
use quietline_lab::trial::{
    DAY, PATIENCE, ask, ask_directly, enroll, enrolled, is_stored, reach, receive, receive_sent, watched,
};
use serde_json::{Value, json};
use sqlx::Connection;
use std::path::Path;

const DAY_SECONDS: i64 = 24 * 3600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_object_is_answered_with_one_object_and_a_repetition_is_an_update() {
    let (_folder, lab) = lab(|settings| settings).await;
    let added = json!({"success": true, "added": true, "message": "Subscription successful"});
    let updated = json!({"success": true, "updated": true, "message": "Resubscription successful"});
    for cipher in Cipher::BOTH {
        let phone = lab.phone(PushService::Apns);
        for expected in [&added, &updated] {
            let answer = phone
                .subscribe(&lab.http, &lab.keys.onion_public, cipher)
                .await
                .unwrap();
            assert_eq!(answer.json().as_ref(), Some(expected), "{}", cipher.name());
            let reply = answer.reply.unwrap();
            assert_eq!((answer.outer_status, reply.code), (200, 200));
            assert_eq!(reply.content_type.as_deref(), Some("application/json"));
        }
        watched(&lab, &phone).await;
        reach(&lab, &phone).await;
    }
    let phone = lab.phone(PushService::Firebase);
    for expected in [&added, &updated] {
        let item = phone.subscribe_item(unix_seconds());
        assert_eq!(ask_directly(&lab, "/subscribe", &item).await, (200, expected.clone()));
    }
    watched(&lab, &phone).await;
    reach(&lab, &phone).await;
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_is_answered_item_by_item_in_its_order_and_each_good_item_counts() {
    let (_folder, lab) = lab(|settings| settings).await;
    let (group, member) = (sodium::random(), sodium::random());
    let person = lab.phone(PushService::Apns);
    let admin = Phone::group_admin(&sodium::random(), PushService::Apns);
    let member = Phone::group_member(&group, &member, PushService::Firebase);
    let liar = lab.phone(PushService::Apns);
    let now = unix_seconds();
    let mut bad = liar.subscribe_item(now);
    bad["signature"] = json!(STANDARD.encode([1; 64]));
    let batch = json!([
        person.subscribe_item(now),
        bad,
        admin.subscribe_item(now),
        member.subscribe_item(now),
        5,
    ]);
    let (code, answers) = ask(&lab, "/subscribe", &batch).await;
    let errors: Vec<_> = answers
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["error"].as_i64())
        .collect();
    assert_eq!((code, errors), (200, vec![None, Some(4), None, None, Some(4)]));
    for phone in [&person, &admin, &member] {
        watched(&lab, phone).await;
        reach(&lab, phone).await;
    }
    assert_eq!(lab.fleet.watchers(liar.account(), liar.session_ed25519()), [0; 0]);

    let (code, answers) = ask(
        &lab,
        "/unsubscribe",
        &json!([admin.unsubscribe_item(now), liar.unsubscribe_item(now)]),
    )
    .await;
    assert_eq!(
        (code, &answers[0]["removed"], &answers[1]["removed"]),
        (200, &json!(true), &json!(false))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_array_is_answered_with_an_empty_array() {
    let (_folder, lab) = lab(|settings| settings).await;
    for endpoint in ["/subscribe", "/unsubscribe"] {
        assert_eq!(ask(&lab, endpoint, &json!([])).await, (200, json!([])));
        assert_eq!(ask_directly(&lab, endpoint, &json!([])).await, (200, json!([])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_may_be_written_in_hex_or_any_base64_but_have_to_be_of_their_length() {
    let (_folder, lab) = lab(|settings| settings).await;
    let (group, member) = (sodium::random(), sodium::random());
    let person = lab.phone(PushService::Apns);
    let member = Phone::group_member(&group, &member, PushService::Apns);
    let person_fields = ["pubkey", "session_ed25519", "signature", "enc_key"];
    let member_fields = ["pubkey", "signature", "subaccount", "subaccount_sig", "enc_key"];
    for (phone, fields) in [(&person, &person_fields[..]), (&member, &member_fields[..])] {
        enroll(&lab, phone).await;
        for field in fields {
            let item = phone.subscribe_item(unix_seconds());
            let bytes = bytes_of(&item[field]);
            let good = [
                hex::encode(&bytes),
                hex::encode_upper(&bytes),
                STANDARD.encode(&bytes),
                STANDARD_NO_PAD.encode(&bytes),
                URL_SAFE.encode(&bytes),
                URL_SAFE_NO_PAD.encode(&bytes),
            ];
            for text in good {
                let (code, answer) = ask(&lab, "/subscribe", &with(&item, field, json!(text))).await;
                assert_eq!((code, &answer["updated"]), (200, &json!(true)), "{field}: {answer}");
            }
            let (shorter, mut longer) = (&bytes[1..], bytes.clone());
            longer.push(0);
            let bad = [
                hex::encode(shorter),
                hex::encode(longer),
                STANDARD.encode(shorter),
                String::new(),
                "?".into(),
            ];
            for text in bad {
                let (code, answer) = ask(&lab, "/subscribe", &with(&item, field, json!(text))).await;
                assert_eq!((code, &answer["error"]), (200, &json!(4)), "{field} = {text}: {answer}");
            }
        }
        reach(&lab, phone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_outside_of_its_window_is_425_and_inside_it_counts() {
    let (_folder, lab) = lab(|settings| settings).await;
    // A test may take a while between a look at the clock and the notifier's look.
    const SLACK: i64 = 120;
    let inside = [-14 * DAY_SECONDS + SLACK, DAY_SECONDS - SLACK];
    let outside = [-14 * DAY_SECONDS - SLACK, DAY_SECONDS + SLACK];
    for (off, code) in inside
        .map(|off| (off, 200))
        .into_iter()
        .chain(outside.map(|off| (off, 425)))
    {
        let phone = lab.phone(PushService::Apns);
        let item = phone.subscribe_item(unix_seconds() + off);
        for (got, answer) in [
            ask(&lab, "/subscribe", &item).await,
            ask_directly(&lab, "/subscribe", &item).await,
        ] {
            assert_eq!((got, answer["success"] == true), (code, code == 200), "{off}: {answer}");
            assert!(code == 200 || answer["error"] == 4, "{answer}");
        }
    }
    let phone = enrolled(&lab, PushService::Apns).await;
    for off in [-DAY_SECONDS - SLACK, DAY_SECONDS + SLACK] {
        let (code, answer) = ask(&lab, "/unsubscribe", &phone.unsubscribe_item(unix_seconds() + off)).await;
        assert_eq!((code, &answer["error"]), (425, &json!(4)));
    }
    // The first is older than the subscription, which stays.
    for (off, removed) in [(-DAY_SECONDS + SLACK, false), (DAY_SECONDS - SLACK, true)] {
        let (code, answer) = ask(&lab, "/unsubscribe", &phone.unsubscribe_item(unix_seconds() + off)).await;
        assert_eq!((code, &answer["removed"]), (200, &json!(removed)));
    }
    // In an array the others count all the same; the code makes the client set its clock and repeat.
    let (late, good) = (lab.phone(PushService::Apns), lab.phone(PushService::Apns));
    let batch = json!([
        late.subscribe_item(unix_seconds() + DAY_SECONDS + SLACK),
        good.subscribe_item(unix_seconds()),
    ]);
    let (code, answers) = ask(&lab, "/subscribe", &batch).await;
    assert_eq!(
        (code, &answers[0]["error"], &answers[1]["added"]),
        (425, &json!(4), &json!(true))
    );
    assert!(is_stored(&lab, &good).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_have_to_be_small_integers_in_ascending_order() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Apns);
    let item = phone.subscribe_item(unix_seconds());
    let bad = [
        (json!([5, 0]), 4),
        (json!([0, 0]), 4),
        (json!([]), 4),
        (json!([70_000]), 1),
        (json!([-32_769]), 1),
        (json!([1.5]), 1),
        (json!([true]), 1),
    ];
    for (namespaces, error) in bad {
        let (code, answer) = ask(&lab, "/subscribe", &with(&item, "namespaces", namespaces.clone())).await;
        assert_eq!((code, &answer["error"]), (200, &json!(error)), "{namespaces}: {answer}");
    }
    // A missing one is our number 1 too, where upstream says 4.
    let mut item = item;
    item.as_object_mut().unwrap().remove("namespaces");
    assert_eq!(ask(&lab, "/subscribe", &item).await.1["error"], 1);
    assert!(!is_stored(&lab, &phone).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subaccount_needs_the_right_to_read_the_right_network_and_the_groups_signature() {
    let (_folder, lab) = lab(|settings| settings).await;
    const READ: u8 = 1;
    const ANY_PREFIX: u8 = 8;
    let (group_seed, member_seed) = (sodium::random(), sodium::random());
    let group = SigningKey::from_seed(&group_seed);
    let stranger = SigningKey::from_seed(&sodium::random());
    let cases = [
        (0x03, READ, &group, true),
        (0x05, READ | ANY_PREFIX, &group, true),
        (0x03, 2, &group, false),
        (0x05, READ, &group, false),
        (0x03, READ, &stranger, false),
    ];
    for (prefix, flags, signer, good) in cases {
        let phone = Phone::group_member(&group_seed, &member_seed, PushService::Apns);
        let mut tag = [0; 36];
        tag[..2].copy_from_slice(&[prefix, flags]);
        tag[4..].copy_from_slice(SigningKey::from_seed(&member_seed).public());
        let mut item = phone.subscribe_item(unix_seconds());
        item["subaccount"] = json!(hex::encode(tag));
        item["subaccount_sig"] = json!(hex::encode(signer.sign(&tag)));
        let (code, answer) = ask(&lab, "/subscribe", &item).await;
        let expected = if good { Value::Null } else { json!(4) };
        assert_eq!((code, &answer["error"]), (200, &expected), "{prefix} {flags}: {answer}");
    }
    // Another member's tag does not go with this member's signature.
    let item = Phone::group_member(&group_seed, &member_seed, PushService::Apns).subscribe_item(unix_seconds());
    let other = Phone::group_member(&group_seed, &sodium::random(), PushService::Apns).subscribe_item(unix_seconds());
    let mixed = with(
        &with(&item, "subaccount", other["subaccount"].clone()),
        "subaccount_sig",
        other["subaccount_sig"].clone(),
    );
    assert_eq!(ask(&lab, "/subscribe", &mixed).await.1["error"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_key_has_to_be_the_accounts_own_and_a_good_point() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Apns);
    let item = phone.subscribe_item(unix_seconds());
    let another = lab.phone(PushService::Apns);
    let mut one = [0; 32];
    one[0] = 1;
    for key in [*another.session_ed25519().unwrap(), [0; 32], one, [0xFF; 32]] {
        let (code, answer) = ask(
            &lab,
            "/subscribe",
            &with(&item, "session_ed25519", json!(hex::encode(key))),
        )
        .await;
        assert_eq!((code, &answer["error"]), (200, &json!(4)), "{answer}");
    }
    let mut without = item.clone();
    without.as_object_mut().unwrap().remove("session_ed25519");
    assert_eq!(ask(&lab, "/subscribe", &without).await.1["error"], 1);
    assert!(!is_stored(&lab, &phone).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_counts_up_to_262_144_bytes_directly_and_in_an_onion() {
    let (_folder, lab) = lab(|settings| settings).await;
    for (length, taken) in [
        (99_999, true),
        (100_001, true),
        (262_144, true),
        (262_145, false),
        (300_000, false),
    ] {
        let phone = lab.phone(PushService::Firebase);
        let text = phone.subscribe_item(unix_seconds()).to_string();
        // Space before JSON means nothing.
        let body = format!("{}{text}", " ".repeat(length - text.len()));
        let direct = lab
            .http
            .post("/subscribe", "application/json", body.clone())
            .await
            .unwrap();
        let (status, reply) = onion_post(&lab, "POST", "/subscribe", body.as_bytes()).await;
        let reply = reply.unwrap();
        assert_eq!((direct.status, status, reply.code), (200, 200, 200));
        for body in [&direct.body[..], &reply.body] {
            let answer: Value = serde_json::from_slice(body).unwrap();
            assert_eq!(answer["success"] == true, taken, "{length}: {answer}");
            assert!(taken || answer["error"] == 1, "{length}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_a_hundred_groups_with_long_tokens_is_taken_whole() {
    let (_folder, lab) = lab(|settings| settings).await;
    let token = format!("{}:{}", "c".repeat(22), "A".repeat(277));
    assert_eq!(token.len(), 300);
    let phones: Vec<_> = (0..100)
        .map(|_| {
            let mut phone = Phone::group_member(&sodium::random(), &sodium::random(), PushService::Firebase);
            phone.token.clone_from(&token);
            phone
        })
        .collect();
    let now = unix_seconds();
    let batch: Value = phones.iter().map(|phone| phone.subscribe_item(now)).collect();
    let (code, answers) = ask(&lab, "/subscribe", &batch).await;
    let answers = answers.as_array().unwrap();
    assert_eq!((code, answers.len()), (200, 100));
    assert!(answers.iter().all(|item| item["added"] == true));
    for phone in &phones {
        watched(&lab, phone).await;
    }
    let last = phones.last().unwrap();
    let sent = lab.send(last, 11, b"to the last group", DAY);
    receive_sent(&lab, last, &sent, b"to the last group").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_decrypted_is_a_plain_400_and_what_can_is_answered_in_secret() {
    let (_folder, lab) = lab(|settings| settings).await;
    let item = lab.phone(PushService::Apns).subscribe_item(unix_seconds()).to_string();
    for cipher in Cipher::BOTH {
        let (good, _) = onion::request(cipher, &lab.keys.onion_public, "/subscribe", item.as_bytes());
        let mut damaged = good.clone();
        damaged[60] ^= 1;
        let (foreign, _) = onion::request(
            cipher,
            &sodium::x25519_public(&sodium::random()),
            "/subscribe",
            item.as_bytes(),
        );
        for bad in [
            damaged,
            foreign,
            good[..good.len() - 1].to_vec(),
            good[..40].to_vec(),
            b"x".to_vec(),
            vec![0xFF; 1000],
        ] {
            let answer = lab
                .http
                .post(onion::PATH, "application/octet-stream", bad)
                .await
                .unwrap();
            let text = String::from_utf8_lossy(&answer.body).to_lowercase();
            assert_eq!(answer.status, 400);
            // Words for which clients punish the nodes of their path.
            assert!(
                !text.contains("next node") && !text.contains("time out") && !text.contains("snode"),
                "{text}"
            );
        }
        let key = |plaintext: &[u8]| {
            let nonce = sodium::random::<24>();
            let nonce = &nonce[..if cipher == Cipher::AesGcm { 12 } else { 24 }];
            onion::build(cipher, &sodium::random(), &lab.keys.onion_public, nonce, plaintext).unwrap()
        };
        for plaintext in [
            &b""[..],
            b"l",
            b"le",
            b"l2:{}e",
            b"i5e",
            b"l9999999:{}e",
            b"l2:{}2:{}2:{}e",
        ] {
            let (bytes, key) = key(plaintext);
            let answer = lab
                .http
                .post(onion::PATH, "application/octet-stream", bytes)
                .await
                .unwrap();
            let reply = key.open_reply(&answer.body).unwrap();
            assert_eq!(
                (answer.status, reply.code),
                (200, 400),
                "{}",
                String::from_utf8_lossy(plaintext)
            );
        }
    }
    for (method, endpoint, code) in [
        ("GET", "/subscribe", 405),
        ("PUT", "/unsubscribe", 405),
        ("POST", "/", 404),
        ("POST", "/info", 404),
        ("POST", "/register", 404),
        ("POST", onion::PATH, 404),
    ] {
        let (status, reply) = onion_post(&lab, method, endpoint, item.as_bytes()).await;
        assert_eq!((status, reply.unwrap().code), (200, code), "{method} {endpoint}");
    }
    for text in ["", "{", "nonsense", "{}", "5"] {
        let (status, reply) = onion_post(&lab, "POST", "/subscribe", text.as_bytes()).await;
        let reply = reply.unwrap();
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            (status, reply.code, answer["error"].is_i64()),
            (200, 200, true),
            "{text}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_written_is_a_503_that_a_repetition_mends() {
    let (folder, lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Apns);
    let path = folder.path().join("data/subscriptions.db");
    let mut holder = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display()))
        .await
        .unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let item = phone.subscribe_item(unix_seconds());
    for (code, answer) in [
        ask(&lab, "/subscribe", &item).await,
        ask_directly(&lab, "/subscribe", &item).await,
    ] {
        assert_eq!((code, &answer["error"]), (503, &json!(2)), "{answer}");
    }
    let mut bad = lab.phone(PushService::Apns).subscribe_item(unix_seconds());
    bad["signature"] = json!(hex::encode([1; 64]));
    let (code, answers) = ask(&lab, "/subscribe", &json!([bad, item])).await;
    assert_eq!(
        (code, &answers[0]["error"], &answers[1]["error"]),
        (503, &json!(4), &json!(2))
    );
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    drop(holder);
    enroll(&lab, &phone).await;
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notifier_without_direct_requests_answers_onions_only() {
    let (_folder, lab) = lab(|settings| settings.with("http.direct", false)).await;
    let item = lab.phone(PushService::Apns).subscribe_item(unix_seconds());
    for endpoint in ["/subscribe", "/unsubscribe"] {
        let answer = lab
            .http
            .post(endpoint, "application/json", item.to_string())
            .await
            .unwrap();
        assert_eq!(answer.status, 404);
    }
    let phone = enrolled(&lab, PushService::Apns).await;
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_tells_the_onion_key_and_the_services() {
    let (_folder, lab) = lab(|settings| settings).await;
    let answer = lab.http.get("/info").await.unwrap();
    let info: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(info["onion_public_key"], hex::encode(lab.keys.onion_public));
    let services = json!(["apns", "apns-sandbox", "firebase", "webpush", "huawei"]);
    assert_eq!(info["services"], services);
    assert!(info["vapid_public_key"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_not_offered_is_error_2_and_one_whose_provider_is_down_is_offered() {
    let (_folder, lab) = lab(|settings| settings.without("dispatch.huawei")).await;
    let phone = lab.phone(PushService::Firebase);
    let item = with(&phone.subscribe_item(unix_seconds()), "service", json!("huawei"));
    let expected = json!({"error": 2, "message": "huawei notification service not currently available"});
    assert_eq!(ask(&lab, "/subscribe", &item).await, (200, expected));
    lab.fcm.set_down(true);
    enroll(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_unsubscribed_gets_nothing_more_and_its_neighbour_does() {
    let (_folder, lab) = lab(|settings| settings).await;
    let leaver = enrolled(&lab, PushService::Apns).await;
    let stayer = leaver.another_device(PushService::Firebase);
    enroll(&lab, &stayer).await;
    let answer = lab.unsubscribe(&leaver).await.unwrap().json().unwrap();
    let expected = json!({"success": true, "removed": true, "message": "Device unsubscribed from push notifications"});
    assert_eq!(answer, expected);
    assert_eq!(
        lab.unsubscribe(&leaver).await.unwrap().json().unwrap()["removed"],
        false
    );
    reach(&lab, &stayer).await;
    reach(&lab, &stayer).await;
    assert!(
        lab.deliveries
            .take_now(|delivery| delivery.token == leaver.token)
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsubscription_that_comes_late_or_again_stops_no_wakeup_of_a_newer_subscription() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Firebase).await;
    let off = phone.unsubscribe_item(unix_seconds() - 10);
    let (code, answer) = ask(&lab, "/unsubscribe", &off).await;
    assert_eq!(
        (code, &answer["success"], &answer["removed"]),
        (200, &json!(true), &json!(false))
    );
    reach(&lab, &phone).await;
    assert!(is_stored(&lab, &phone).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_signature_replaces_the_key_and_an_earlier_one_changes_nothing() {
    let (_folder, lab) = lab(|settings| settings).await;
    let mut phone = lab.phone(PushService::Apns);
    let old = phone.subscribe_item(unix_seconds() - 100);
    assert_eq!(ask(&lab, "/subscribe", &old).await.1["added"], true);
    phone.enc_key = sodium::random();
    enroll(&lab, &phone).await;
    reach(&lab, &phone).await;
    let (code, answer) = ask(&lab, "/subscribe", &old).await;
    assert_eq!((code, &answer["success"]), (200, &json!(true)));
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_was_answered_survives_a_power_cut() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Firebase);
    assert!(lab.subscribe(&phone).await.unwrap().is_success());
    lab.notifier().restart(PATIENCE).await.unwrap();
    watched(&lab, &phone).await;
    let sent = lab.send(&phone, 0, b"after the power cut", DAY);
    let (_, message) = receive(&lab, &phone).await;
    assert_eq!(message.hash, sent.hash);
    assert!(is_stored(&lab, &phone).await);
}

async fn lab(change: impl FnOnce(LabSettings) -> LabSettings) -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let lab = Lab::start(change(settings(folder.path()))).await.unwrap();
    (folder, lab)
}

fn settings(folder: &Path) -> LabSettings {
    let mut settings = LabSettings::in_folder(folder);
    settings.swarms = 2;
    settings.ready_within = PATIENCE;
    settings
}

fn with(item: &Value, field: &str, value: Value) -> Value {
    let mut item = item.clone();
    item[field] = value;
    item
}

/// Items are written in hex or padded base64.
fn bytes_of(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    hex::decode(text).or_else(|_| STANDARD.decode(text)).unwrap()
}

async fn onion_post(lab: &Lab, method: &str, endpoint: &str, body: &[u8]) -> (u16, Option<OnionReply>) {
    let metadata =
        json!({"method": method, "endpoint": endpoint, "headers": {"Content-Type": "application/json"}}).to_string();
    let mut plaintext = vec![b'l'];
    bt::put_bytes(&mut plaintext, metadata.as_bytes());
    bt::put_bytes(&mut plaintext, body);
    plaintext.push(b'e');
    let (bytes, key) = onion::build(
        Cipher::XChaCha20,
        &sodium::random(),
        &lab.keys.onion_public,
        &sodium::random::<24>(),
        &plaintext,
    )
    .unwrap();
    let answer = lab
        .http
        .post(onion::PATH, "application/octet-stream", bytes)
        .await
        .unwrap();
    (answer.status, key.open_reply(&answer.body))
}
