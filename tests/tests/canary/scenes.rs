//! Every path through the notifier, one scene each. Each scene asserts that it took place.

use crate::PATIENCE;
use crate::crash::{SIGNALS, assert_no_core};
use crate::world::World;
use quietline_lab::bt;
use quietline_lab::lab::CREDENTIALS;
use quietline_lab::node::{Fault, SwarmMessage};
use quietline_lab::oxend::OxendMood;
use quietline_lab::phone::{Phone, PushService, unix_milliseconds, unix_seconds};
use quietline_lab::provider::Answer;
use quietline_lab::sodium;
use quietline_lab::system;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use std::process::Command;
use std::time::Duration;

/// Phones that stay subscribed through all scenes.
pub struct Friends {
    pub person: Phone,
    pub android: Phone,
    pub group: Phone,
}

/// A notifier that does not start says why, and nothing of what is in its keys or settings.
pub async fn start_with_bad_keys(world: &mut World) {
    let folder = world.lab.settings.folder.clone();
    let settings = std::fs::read_to_string(world.lab.settings_file()).unwrap();
    let bad = folder.join("bad");
    std::fs::create_dir_all(bad.join("keys")).unwrap();
    let key = hex::encode(sodium::random::<32>());
    let token = PushService::Apns.new_token();
    world.values.mark("a damaged key", key.as_bytes());
    world.values.mark("a token in the settings", token.as_bytes());
    for (what, settings, key) in [
        ("a key of 63 digits", settings.clone(), key[..63].to_owned()),
        (
            "a key with a line too many",
            settings.clone(),
            format!("{key}\n{key}\n"),
        ),
        // Names of settings and of files are named to the operator; what stands where a value is expected is not.
        (
            "a key as an unknown setting",
            settings.replace("[http]", &format!("[http]\nonion_key = \"{key}\"")),
            key.clone(),
        ),
        (
            "a key instead of its file",
            settings.replace("keys/onion", &key),
            key.clone(),
        ),
        (
            "a token as the level",
            settings.replace("\"trace\"", &format!("\"{token}\"")),
            key.clone(),
        ),
        (
            "a token as an address",
            settings.replace("[http]", &format!("[http]\nbody_limit = \"{token}\"")),
            key.clone(),
        ),
        ("settings that are none", format!("[http]\nkey = {token}"), key.clone()),
    ] {
        for file in std::fs::read_dir(folder.join("keys")).unwrap().flatten() {
            std::fs::copy(file.path(), bad.join("keys").join(file.file_name())).unwrap();
        }
        std::fs::write(bad.join("keys/onion"), &key).unwrap();
        std::fs::write(bad.join("notifier.toml"), settings).unwrap();
        for verb in ["check", "run"] {
            let binary = quietline_lab::notifier::Notifier::find_binary(None).unwrap();
            let ended = Command::new(binary)
                .arg(verb)
                .arg("--settings")
                .arg(bad.join("notifier.toml"))
                .output()
                .unwrap();
            assert!(!ended.status.success(), "{what} is refused");
            world.sinks.add(format!("refusal of {what}"), &ended.stdout);
            world.sinks.add(format!("refusal of {what}"), &ended.stderr);
        }
    }
    std::fs::remove_dir_all(bad).unwrap();
}

/// Direct and through onions, each service, each kind of account; short, long and unwanted messages; and gone again.
pub async fn subscribe_and_be_woken(world: &mut World) -> Friends {
    let group_seed = sodium::random::<32>();
    let person = world.subscribed("a person", Phone::new(PushService::Apns)).await;
    let android = world
        .subscribed("somebody with Android", Phone::new(PushService::Firebase))
        .await;
    let group = world
        .subscribed(
            "a group's admin",
            Phone::group_admin(&group_seed, PushService::ApnsSandbox),
        )
        .await;
    let member = Phone::group_member(&group_seed, &sodium::random(), PushService::Firebase);
    let member = world.subscribed("a group's member", member).await;
    let second = world
        .subscribed("a second device", person.another_device(PushService::Firebase))
        .await;
    let mut frugal = Phone::new(PushService::Apns);
    frugal.want_data = false;
    let frugal = world.subscribed("somebody who wants no data", frugal).await;

    let direct = Phone::new(PushService::Apns);
    world.mark_phone("a direct client", &direct);
    let item = direct.subscribe_item(unix_seconds());
    world.mark_item("a direct client", &item);
    let (status, body) = world.direct("/subscribe", "", item.to_string().as_bytes()).await;
    assert!(status == 200 && body.contains("\"success\":true"), "{body}");
    assert!(world.lab.wait_watched(&direct, 1, PATIENCE).await.is_some());

    for (name, phone) in [
        ("person", &person),
        ("android", &android),
        ("second", &second),
        ("direct", &direct),
    ] {
        world.wake(&format!("a short message to {name}"), phone, 0, 300).await;
        world
            .wake(&format!("a message too long for {name}"), phone, 0, 3500)
            .await;
    }
    world.wake("a message without its body", &frugal, 0, 300).await;
    world.wake("a message to a group", &group, 11, 300).await;
    world.wake("a message to a member", &member, -11, 300).await;
    world.send("a configuration too long", &person, 3, 3900);
    let typing = sodium::random::<100>();
    let sent = world.lab.send(&person, 0, &typing, Duration::from_secs(20));
    world.mark_message("somebody types", &sent.hash, &typing);
    world.wait_metric("seal_suppressed_total", "", 2.0).await;

    let item = direct.unsubscribe_item(unix_seconds());
    world.mark_item("a direct client, unsubscribing", &item);
    let (_, body) = world.direct("/unsubscribe", "", item.to_string().as_bytes()).await;
    assert!(body.contains("\"removed\":true"), "{body}");
    let item = frugal.unsubscribe_item(unix_seconds());
    world.mark_item("somebody who wants no data, unsubscribing", &item);
    assert_eq!(world.onion("/unsubscribe", &item).await["removed"], true);
    // Subscribed again with the same and with other wishes.
    let mut more = person.clone();
    more.namespaces.push(11);
    for (name, phone) in [("the same again", &person), ("more namespaces", &more)] {
        let item = phone.subscribe_item(unix_seconds());
        world.mark_item(name, &item);
        assert_eq!(world.onion("/subscribe", &item).await["success"], true);
    }
    Friends { person, android, group }
}

/// A subscription bound to its token and one that is stolen; a test that a subscriber asks for, and one that an operator asks for.
pub async fn bindings_and_tests(world: &mut World) {
    for (name, service) in [
        ("a bound phone", PushService::Apns),
        ("a bound phone with Web Push", PushService::Webpush),
    ] {
        let bound = world.lab.phone(service);
        let checks = world.lab.webpush.checks();
        world.mark_phone(name, &bound);
        let now = unix_seconds();
        let mut item = bound.subscribe_item(now);
        item["binding"] = json!(bound.binding(now));
        world.mark_item(name, &item);
        assert_eq!(world.onion("/subscribe", &item).await["success"], true);
        // The question whether a fresh endpoint lives would take the first answer that is queued.
        while service == PushService::Webpush && world.lab.webpush.checks() == checks {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let thief = Phone::new(PushService::Firebase);
        world.mark_phone("a thief", &thief);
        let mut stolen = bound.subscribe_item(now);
        stolen["service"] = json!("firebase");
        stolen["service_info"] = json!({ "token": thief.token });
        for binding in [Value::Null, item["binding"].clone(), json!(bound.account_hex())] {
            stolen["binding"] = binding;
            assert_eq!(world.onion("/subscribe", &stolen).await["success"], Value::Null);
        }

        let test = bound.test_item(unix_seconds());
        world.mark_item(&format!("{name}, testing"), &test);
        assert_eq!(world.onion("/test", &test).await["accepted"], true);
        let mut forged = test.clone();
        forged["signature"] = item["signature"].clone();
        assert_eq!(world.onion("/test", &forged).await["error"], 4);
        world
            .lab
            .script(bound.service)
            .queue(&bound.token, quoting(bound.service, &bound.token));
        assert_eq!(world.onion("/test", &test).await["accepted"], false);
        world.direct("/test", "", bound.token.as_bytes()).await;
    }
    for (service, answers) in [("apns", true), ("firebase", false), ("webpush", false)] {
        let phone = Phone::new(PushService::Firebase);
        world.mark_phone(&format!("an operator's token of {service}"), &phone);
        let token = if service == "apns" {
            PushService::Apns.new_token()
        } else {
            phone.token.clone()
        };
        world
            .values
            .mark(format!("a token that an operator tests at {service}"), token.as_bytes());
        if service == "firebase" {
            let quoting = quoting(PushService::Firebase, &token);
            world.lab.script(PushService::Firebase).queue(&token, quoting);
        }
        let file = world.lab.settings_file().with_file_name("token");
        std::fs::write(&file, &token).unwrap();
        let binary = quietline_lab::notifier::Notifier::find_binary(None).unwrap();
        let ended = Command::new(binary)
            .args(["push", "--service", service, "--token-file"])
            .arg(&file)
            .arg("--settings")
            .arg(world.lab.settings_file())
            .output()
            .unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(ended.status.success(), answers, "a push to {service}");
        world.sinks.add("operator's push", &ended.stdout);
        world.sinks.add("operator's push", &ended.stderr);
    }
}

/// Relays for calls, a request for them that says too much, and settings read again.
pub async fn relays_for_calls(world: &mut World, friends: &Friends) {
    for _ in 0..4 {
        // Whoever asks is told; nobody else and nothing else is.
        let reply = world.lab.credentials().await.unwrap().reply.unwrap();
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        for server in answer["iceServers"].as_array().unwrap() {
            let (_, random) = server["username"].as_str().unwrap().split_once(':').unwrap();
            world.values.mark("name for a relay", random.as_bytes());
            let password = server["credential"].as_str().unwrap();
            world.values.mark("password for a relay", password.as_bytes());
        }
    }
    let told = json!({ "pubkey": friends.person.account_hex(), "token": friends.person.token });
    assert_ne!(world.onion(CREDENTIALS, &told).await["success"], true);
    world
        .wait_metric("http_items_total", "operation=\"turn_credentials\"", 5.0)
        .await;
    system::ask_to_reload(world.lab.notifier().process_id().unwrap());
    world.wait_metric("settings_reloads_total", "", 1.0).await;
}

/// Requests that are wrong in one way each, all of them full of private values.
pub async fn refused_requests(world: &mut World, friends: &Friends) {
    let now = unix_seconds();
    let stranger = Phone::new(PushService::Apns);
    world.mark_phone("a stranger", &stranger);
    let good = stranger.subscribe_item(now);
    world.mark_item("a stranger", &good);
    let stale = stranger.subscribe_item(now - 30 * 24 * 3600);
    world.mark_item("a stranger, long ago", &stale);
    let changed = |field: &str, value: Value| {
        let mut item = good.clone();
        item[field] = value;
        item
    };
    let without = |field: &str| {
        let mut item = good.clone();
        item.as_object_mut().unwrap().remove(field);
        item
    };
    let token = stranger.token.clone();
    let bad = [
        changed("signature", friends.person.subscribe_item(now)["signature"].clone()),
        changed("pubkey", json!(friends.android.account_hex())),
        changed("pubkey", json!(token)),
        changed("pubkey", json!(&stranger.account_hex()[..64])),
        changed("session_ed25519", json!(token)),
        changed(
            "session_ed25519",
            friends.person.subscribe_item(now)["session_ed25519"].clone(),
        ),
        changed("service", json!(token)),
        changed("service", json!({ (token.clone()): 1 })),
        changed("service_info", json!(token)),
        changed("service_info", json!({ "token": [token] })),
        changed("service_info", json!({ "token": format!("{token}\u{1}\"\n{token}") })),
        changed("enc_key", json!(format!("{token}{token}"))),
        changed("enc_key", json!(&token[..20])),
        changed("namespaces", json!([5, 3, token])),
        changed("namespaces", json!([5, 3])),
        changed("namespaces", json!(token)),
        changed("sig_ts", json!(token)),
        changed("data", json!(token)),
        changed("subaccount", json!(token)),
        changed("subaccount", json!(format!("{token}{}", &token[..8]))),
        without("signature"),
        without("pubkey"),
        without("service_info"),
        stale,
        json!([without("enc_key"), token]),
        json!(token),
        json!({ (token.clone()): token }),
    ];
    for item in &bad {
        for endpoint in ["/subscribe", "/unsubscribe"] {
            let answer = world.onion(endpoint, item).await;
            assert!(
                !answer.to_string().contains("added\":true"),
                "{item} is refused: {answer}"
            );
            world.direct(endpoint, "", item.to_string().as_bytes()).await;
        }
    }
    let text = good.to_string();
    let account = stranger.account_hex();
    world.onion(&format!("/{account}"), &good).await;
    world.onion(&format!("/{}", "x".repeat(5000)), &good).await;
    for headers in [
        format!("{account}: {token}\r\n"),
        format!("Content-Encoding: {token}\r\n"),
        format!("Transfer-Encoding: {token}\r\n"),
        format!("X-Forwarded-For: {token}\r\n"),
        format!("Expect: {token}\r\n"),
    ] {
        world
            .direct("/subscribe", &headers, &text.as_bytes()[..text.len() - 9])
            .await;
    }
    for path in [
        format!("/{account}"),
        format!("/subscribe/{token}"),
        format!("/subscribe?{token}={account}"),
    ] {
        world.direct(&path, "", text.as_bytes()).await;
        for verb in ["GET", "DELETE", &token] {
            let request = format!("{verb} {path} HTTP/1.1\r\nHost: {token}\r\nConnection: close\r\n\r\n");
            world.direct_bytes(request.as_bytes(), true).await;
        }
    }
    // Onions that are none, that are cut short, and that are for somebody else.
    for body in [text.as_bytes(), &[0xff; 400], account.as_bytes()] {
        let (status, _) = world.direct("/oxen/v4/lsrpc", "", body).await;
        assert_eq!(status, 400);
    }
    let cipher = quietline_lab::onion::Cipher::AesGcm;
    let (for_another, _) = quietline_lab::onion::request(
        cipher,
        &sodium::x25519_public(&sodium::random()),
        "/subscribe",
        text.as_bytes(),
    );
    assert_eq!(world.direct("/oxen/v4/lsrpc", "", &for_another).await.0, 400);
    let public = world.lab.keys.onion_public;
    let (cut, _) = quietline_lab::onion::request(cipher, &public, "/subscribe", text.as_bytes());
    assert_eq!(world.direct("/oxen/v4/lsrpc", "", &cut[..cut.len() - 5]).await.0, 400);
    // Broken off, endless, never begun, no HTTP.
    let announced = format!("POST /subscribe HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{text}");
    for (request, ends) in [
        (announced.clone(), true),
        (announced, false),
        (
            format!("POST /subscribe HTTP/1.1\r\nHost: x\r\nContent-Length: {token}\r\n\r\n{text}"),
            true,
        ),
        (format!("{text}\r\n\r\n"), true),
        (format!("POST /subscribe HTTP/9.9\r\n{token}: {token}\r\n\r\n"), true),
        (
            format!(
                "POST /subscribe HTTP/1.1\r\nHost: x\r\n{}\r\n",
                format!("{account}: {token}\r\n").repeat(90)
            ),
            true,
        ),
    ] {
        world.direct_bytes(request.as_bytes(), ends).await;
    }
    let large = format!("[{text}{}]", format!(",{text}").repeat(900));
    let (_, body) = world.direct("/subscribe", "", large.as_bytes()).await;
    assert!(body.contains("too large"), "{body}");
    world.wait_metric("http_items_total", "", 60.0).await;
}

/// Each kind of answer that a provider gives, those that quote the request among them.
pub async fn answers_of_the_providers(world: &mut World) {
    let quoting = |token: &str| {
        vec![
            Answer::apns(400, token),
            Answer::apns(500, token),
            Answer::fcm(400, token, Some(token), Some(token)),
            Answer::Refuse {
                status: 503,
                headers: vec![
                    ("retry-after", token.to_owned()),
                    ("apns-id", token.to_owned()),
                    ("location", token.to_owned()),
                ],
                body: token.to_owned().into(),
            },
        ]
    };
    let now = unix_milliseconds();
    let mut apns = vec![
        Answer::apns(400, "BadDeviceToken"),
        Answer::apns(400, "DeviceTokenNotForTopic"),
        Answer::apns(400, "PayloadEmpty"),
        Answer::apns(403, "ExpiredProviderToken"),
        Answer::apns_gone("Unregistered", now + 3_600_000),
        Answer::apns_gone("ExpiredToken", now - 3_600_000_000),
        Answer::apns(413, "PayloadTooLarge"),
        Answer::apns(429, "TooManyRequests").with_retry_after("1"),
        Answer::apns(500, "InternalServerError"),
        Answer::apns(503, "Shutdown"),
        Answer::html(502),
        Answer::huge_body(500, 100_000),
        Answer::RefuseStream,
        Answer::GoAway,
        Answer::Reset,
        Answer::Cut,
        Answer::Stall,
    ];
    let mut fcm = vec![
        Answer::fcm(404, "NOT_FOUND", Some("UNREGISTERED"), None),
        Answer::fcm(404, "NOT_FOUND", None, None),
        Answer::fcm(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), Some("message.token")),
        Answer::fcm(400, "INVALID_ARGUMENT", None, Some("message.data")),
        Answer::fcm(401, "UNAUTHENTICATED", None, None),
        Answer::fcm(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"), None),
        Answer::fcm(429, "RESOURCE_EXHAUSTED", None, None).with_retry_after("1"),
        Answer::fcm(500, "INTERNAL", None, None).with_retry_after("1"),
        Answer::fcm(503, "UNAVAILABLE", None, None).with_retry_after("1"),
        Answer::html(404),
        Answer::huge_body(503, 100_000),
        Answer::Reset,
        Answer::Cut,
        Answer::Stall,
    ];
    let example = PushService::Apns.new_token();
    apns.extend(quoting(&example));
    fcm.extend(quoting(&example));
    let illegal = format!(r#"{{"success":0,"failure":1,"illegal_tokens":["{example}"]}}"#);
    let mut huawei = vec![
        Answer::huawei(200, "80100000", &illegal),
        Answer::huawei(200, "80300007", "all the tokens are invalid"),
        Answer::huawei(200, "80100001", "a bad parameter"),
        Answer::huawei(200, "80200003", "the token has expired"),
        Answer::huawei(500, "81000001", "an inner fault"),
        Answer::html(200),
    ];
    huawei.extend(quoting(&example));
    // Not 503: one push server is behind all of them, and would rest.
    let webpush = vec![
        Answer::html(410),
        Answer::html(400),
        Answer::html(507).with_retry_after("1"),
        Answer::html(413),
        Answer::html(201),
    ];
    let mut asked = Vec::new();
    let all = [
        (PushService::Apns, apns),
        (PushService::Firebase, fcm),
        (PushService::Huawei, huawei),
        (PushService::Webpush, webpush),
    ];
    for (service, answers) in all {
        for (number, answer) in answers.into_iter().enumerate() {
            let name = format!("{} number {number}", service.name());
            let fresh = world.lab.phone(service);
            let phone = world.subscribed(&name, fresh).await;
            let answer = about(answer, &example, &phone.token);
            world.lab.script(service).queue(&phone.token, answer);
            asked.push((name, phone));
        }
    }
    for (name, phone) in &asked {
        world.send(&format!("a message to {name}"), phone, 0, 200);
    }
    // Each was asked at least once; what may be repeated is repeated by itself.
    for (name, phone) in &asked {
        let reached = world
            .lab
            .deliveries
            .take(PATIENCE, |push| push.token == phone.token)
            .await;
        assert!(reached.is_some(), "the push to {name} reached its provider");
    }
    world.wait_metric("store_dead_devices_total", "", 2.0).await;
    world.wait_metric("outbox_dropped_total", "", 1.0).await;
    world.wait_metric("outbox_retried_total", "", 5.0).await;

    // A lane whose provider is away, and one whose provider refuses our key.
    let phone = world
        .subscribed("a phone of a silent provider", Phone::new(PushService::ApnsSandbox))
        .await;
    world.lab.apns_sandbox.set_down(true);
    world.send("a message that waits", &phone, 0, 200);
    world
        .wait_metric("dispatch_dials_total", "service=\"apns-sandbox\"", 2.0)
        .await;
    world.lab.apns_sandbox.set_down(false);
    assert!(world.lab.next_delivery(&phone, PATIENCE).await.is_some());
    world
        .lab
        .apns_sandbox
        .script()
        .everyone(Answer::apns(403, "InvalidProviderToken"));
    world.send("a message refused with its key", &phone, 0, 200);
    world.wait_metric("outbox_stops_total", "", 1.0).await;
}

/// The answer with the token that is really asked about.
fn about(answer: Answer, example: &str, token: &str) -> Answer {
    match answer {
        Answer::Refuse { status, headers, body } => Answer::Refuse {
            status,
            headers: headers
                .into_iter()
                .map(|(name, value)| (name, value.replace(example, token)))
                .collect(),
            body: String::from_utf8_lossy(&body).replace(example, token).into(),
        },
        other => other,
    }
}

/// Notifications that are wrong in one way each, words that nobody asked for.
pub async fn lying_nodes(world: &mut World, friends: &Friends) {
    let watchers = world.lab.wait_watched(&friends.person, 2, PATIENCE).await.unwrap();
    let node = watchers[0];
    let message = SwarmMessage {
        account: *friends.person.account(),
        session_ed25519: friends.person.session_ed25519().copied(),
        namespace: 0,
        timestamp_ms: unix_milliseconds(),
        expiry_ms: unix_milliseconds() + 1_000_000,
        data: sodium::random::<200>().to_vec(),
    };
    world.mark_message("a forged message", &message.hash(), &message.data);
    let good = message.notification(true);
    let (account, token) = (friends.person.account_hex(), friends.person.token.clone());
    let mut wrong_hash = good.clone();
    let end = wrong_hash.len() - 20;
    wrong_hash[end] ^= 1;
    let mut foreign = message.clone();
    foreign.account = flipped(&message.account);
    let mut long_hash = good.clone();
    long_hash.extend_from_slice(token.as_bytes());
    let text = |text: &str| text.as_bytes().to_vec();
    let word = |word: &str| word.as_bytes().to_vec();
    let notify = || word("notify.message");
    for frames in [
        vec![notify(), wrong_hash],
        vec![notify(), foreign.notification(true)],
        vec![notify(), long_hash],
        vec![notify(), good[..good.len() / 2].to_vec()],
        vec![notify(), text(&account)],
        vec![notify(), format!("d1:@33:{account}e").into_bytes()],
        vec![notify()],
        vec![notify(), vec![], text(&token), good.clone()],
        vec![text(&account), text(&token)],
        vec![word("REPLY"), text(&account), text(&token)],
        vec![word("FORBIDDEN"), word("REPLY"), text(&account)],
        vec![word("UNKNOWNCOMMAND"), text(&account)],
        vec![word("notify.block"), text(&account)],
    ] {
        world.lab.fleet.push_raw(node, frames);
    }
    world.wait_metric("event_refused_total", "", 3.0).await;
    world.wait_metric("confirm_failed_hashes_total", "", 1.0).await;
    world.lab.fleet.push_raw(node, vec![word("BYE"), text(&account)]);
    world.wait_metric("watch_link_ends_total", "", 1.0).await;
    world.wake("a message after the lies", &friends.person, 0, 200).await;
}

fn flipped(account: &[u8; 33]) -> [u8; 33] {
    let mut other = *account;
    // The other side of the circle: another swarm.
    other[1] ^= 0x80;
    other
}

/// Nodes that refuse, answer nonsense or nothing, and go away.
pub async fn broken_nodes(world: &mut World, friends: &Friends) {
    let account = friends.person.account_hex();
    let mut refusal = b"ld7:errcodei400e7:message".to_vec();
    bt::put_bytes(&mut refusal, account.as_bytes());
    refusal.extend_from_slice(b"ee");
    for node in 0..6 {
        for fault in [
            Fault::Garbage(refusal.clone()),
            Fault::Garbage(account.clone().into_bytes()),
            Fault::RefuseAll { code: 421 },
            Fault::UnknownCommand,
            Fault::Forbidden,
            Fault::RefuseItem { index: 0, code: 500 },
        ] {
            world.lab.fleet.inject(node, fault, 1);
        }
    }
    world.lab.fleet.settle().unwrap();
    for number in 0..3 {
        let phone = Phone::new(PushService::Apns);
        let name = format!("a phone at broken nodes, {number}");
        world.mark_phone(&name, &phone);
        let item = phone.subscribe_item(unix_seconds());
        world.mark_item(&name, &item);
        assert_eq!(world.onion("/subscribe", &item).await["success"], true);
    }
    world.wait_metric("watch_requests_failed_total", "", 1.0).await;
    world.wait_metric("watch_records_refused_total", "", 1.0).await;
    for node in 0..6 {
        world.lab.fleet.clear_faults(node);
    }
    let watchers = world.lab.wait_watched(&friends.android, 1, PATIENCE).await.unwrap();
    let ends = world.metrics().await.sum("watch_links_lost_total").unwrap_or(0.0);
    world.lab.fleet.stop(watchers[0]);
    world.wait_metric("watch_links_lost_total", "", ends + 1.0).await;
    world.lab.fleet.resume(watchers[0]);
    world.lab.fleet.restart(watchers[1 % watchers.len()]);
    world
        .wake("a message after the failures", &friends.android, 0, 200)
        .await;
}

/// An oxend that is silent, fails and lies.
pub async fn no_node_list(world: &mut World, seeds: usize) {
    let account = Phone::new(PushService::Apns).account_hex();
    world.values.mark("an account in a node list", account.as_bytes());
    let mut strange = quietline_lab::swarms::NodeList::clone(&world.lab.list.lock().unwrap());
    for node in &mut strange.nodes {
        node.public_key = sodium::random();
    }
    let garbage =
        format!("{{\"service_node_states\":[{{\"pubkey_x25519\":\"{account}\",\"public_ip\":\"{account}\"}}]}}");
    let mut failed = 0.0;
    for mood in [
        OxendMood::Lying(garbage),
        OxendMood::Lying(account.clone()),
        OxendMood::Failing,
        OxendMood::Lying(strange.to_json().to_string()),
    ] {
        let is_strange = matches!(&mood, OxendMood::Lying(text) if text.len() > 500);
        world.lab.oxend.set_mood(mood);
        world.lab.oxend.announce_block();
        if !is_strange {
            failed += 1.0;
            world.wait_failed_lists(failed).await;
        } else if seeds == 0 {
            world.wait_metric("watch_node_list_refused_total", "", 1.0).await;
        }
    }
    world.lab.oxend.set_mood(OxendMood::Helpful);
}

/// A store and an outbox that cannot be written.
pub async fn full_disk(world: &mut World, friends: &Friends) {
    let data = world.lab.settings.folder.join("data");
    let open = |file: &str| format!("sqlite://{}", data.join(file).display());
    let mut store = SqliteConnection::connect(&open("subscriptions.db")).await.unwrap();
    let mut outbox = SqliteConnection::connect(&open("outbox.db")).await.unwrap();
    for file in [&mut store, &mut outbox] {
        sqlx::query("BEGIN IMMEDIATE").execute(file).await.unwrap();
    }
    let phone = Phone::new(PushService::Firebase);
    world.mark_phone("a phone that cannot be stored", &phone);
    let item = phone.subscribe_item(unix_seconds());
    world.mark_item("a phone that cannot be stored", &item);
    let answer = world.onion("/subscribe", &item).await;
    assert_ne!(answer["success"], true, "{answer}");
    world.send("a message that cannot be stored", &friends.person, 0, 300);
    world.wait_metric("store_failed_total", "", 1.0).await;
    world.wait_metric("outbox_faults_total", "", 1.0).await;
    for file in [&mut store, &mut outbox] {
        sqlx::query("ROLLBACK").execute(file).await.unwrap();
    }
    store.close().await.unwrap();
    outbox.close().await.unwrap();
    world.wake("a message after the disk", &friends.person, 0, 300).await;
}

/// A power cut, and the start after it.
pub async fn kill(world: &mut World, friends: &Friends) {
    world.lab.apns.script().everyone(Answer::Stall);
    world.send("a message before the kill", &friends.person, 0, 300);
    world.wait_metric("dispatch_in_flight", "service=\"apns\"", 1.0).await;
    world.lab.notifier().restart(PATIENCE).await.unwrap();
    world.lab.apns.script().clear();
    assert!(
        world.lab.next_delivery(&friends.person, PATIENCE).await.is_some(),
        "what was accepted arrives"
    );
    world.wake("a message after the kill", &friends.android, 0, 300).await;
}

/// SIGTERM with work under way, which is left in the outbox file.
pub async fn drain(world: &mut World, friends: &Friends) {
    world.lab.apns.script().everyone(Answer::Stall);
    for number in 0..5 {
        world.send(&format!("message {number} before the end"), &friends.person, 0, 300);
        world.send(
            &format!("group message {number} before the end"),
            &friends.group,
            11,
            300,
        );
    }
    world.wait_metric("dispatch_in_flight", "service=\"apns\"", 1.0).await;
    let ended = world.lab.stop_notifier(PATIENCE).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}

/// A refusal that says the token, in a form that the service would use.
fn quoting(service: PushService, token: &str) -> Answer {
    match service {
        PushService::Apns | PushService::ApnsSandbox => Answer::apns(400, token),
        PushService::Firebase => Answer::fcm(400, token, Some(token), Some(token)),
        PushService::Huawei | PushService::Webpush => Answer::Refuse {
            status: 400,
            headers: vec![("location", token.to_owned())],
            body: token.to_owned().into(),
        },
    }
}

/// A program that faults and one that gives up: nothing of their memory reaches the disk, and the next start goes on.
pub async fn crash(world: &mut World, friends: &Friends) {
    let folder = world.lab.settings.folder.clone();
    for (name, number) in SIGNALS {
        let process = world.lab.notifier().process_id().unwrap();
        tokio::task::spawn_blocking(move || crate::crash::crash(name, process, PATIENCE))
            .await
            .unwrap();
        let ended = world.lab.notifier().wait(PATIENCE).await.unwrap().unwrap();
        assert_no_core(ended, number, &folder);
        world.lab.notifier().restart(PATIENCE).await.unwrap();
        world
            .wake(&format!("a message after {name}"), &friends.android, 0, 300)
            .await;
    }
}
