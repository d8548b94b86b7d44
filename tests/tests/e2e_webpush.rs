//! Web Push from a subscription to what another project's decryptor reads; tests that somebody asks for; bindings.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use notifier_core::endpoint::PushEndpoint;
use notifier_core::webpush::{BODY_MAX, Message, encrypt};
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PhoneBody, PushService, unix_seconds};
use quietline_lab::provider::{Answer, Delivery};
use quietline_lab::sodium;
use quietline_lab::trial::{
    DAY, PATIENCE, ask, ask_directly, enrolled, is_stored, reach, receive, receive_sent, until_figure,
};
use quietline_shared::redact::Secret;
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;
use web_push_native::Auth;
use web_push_native::p256::SecretKey;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_web_push_gets_the_same_payload_as_everybody() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Webpush).await;
    for (length, expected) in [(5, true), (2_500, true), (2_501, false)] {
        let body = vec![b'b'; length];
        let sent = lab.send(&phone, 0, &body, DAY);
        let (delivery, message) = receive(&lab, &phone).await;
        assert_eq!(message.hash, sent.hash);
        assert_eq!(message.body == PhoneBody::Data(body), expected, "{length}");
        let topic = delivery.headers.iter().any(|(name, _)| name == "topic");
        assert_eq!(topic, !expected, "one of those that say nothing is as good as another");
    }
    let info = lab.http.get("/info").await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.body).unwrap();
    assert_eq!(info["vapid_public_key"].as_str().unwrap().len(), 87);
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
    assert_eq!(lab.webpush.checks(), 1, "the fresh endpoint was asked about, once");
}

/// Each length, many keys: what we encrypt, another implementation opens.
#[test]
fn another_projects_decryptor_opens_each_length_up_to_the_largest() {
    for sealed in [0, 1, 552, 553, 2_856, 2_857, 2_973]
        .into_iter()
        .chain((0..2_973).step_by(97))
    {
        let secret = SecretKey::from_slice(&sodium::random::<32>()).unwrap();
        let auth = sodium::random::<16>();
        let endpoint = PushEndpoint::parse(
            "https://push.example.org/x",
            &url_safe(&secret.public_key().to_sec1_bytes()),
            &url_safe(&auth),
        )
        .unwrap();
        let payload = vec![7; sealed];
        let body = encrypt(&endpoint, Message::Wakeup(&payload), &Secret::new(sodium::random())).unwrap();
        assert!(body.len() <= BODY_MAX, "{sealed}");
        let opened = web_push_native::decrypt(body, &secret, &Auth::clone_from_slice(&auth)).unwrap();
        let text: serde_json::Value = serde_json::from_slice(&opened).unwrap();
        assert_eq!(text["spns"], "1");
        assert_eq!(base64_decode(text["enc_payload"].as_str().unwrap()), payload);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_endpoint_that_is_gone_is_forgotten_before_its_first_wakeup() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Webpush);
    lab.webpush.script().queue(&phone.token, Answer::html(410));
    assert!(lab.subscribe(&phone).await.unwrap().is_success());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while is_stored(&lab, &phone).await {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_of_a_push_server_does_what_its_row_says() {
    let (_folder, lab) = lab(|settings| settings).await;
    let neighbour = checked(&lab, 1).await;
    reach(&lab, &neighbour).await;
    let mut phones = 1;
    let mut fresh = async || {
        phones += 1;
        checked(&lab, phones).await
    };
    let seconds = Duration::from_secs;
    let mut rows = Vec::new();
    for (answer, pause, concerns_all) in [
        (Answer::html(401), seconds(0), false),
        (Answer::html(507).with_retry_after("2"), seconds(2), false),
        (Answer::html(301), seconds(1), false),
        (Answer::html(500), seconds(1), false),
        (Answer::html(503).with_retry_after("2"), seconds(2), false),
        // The last one: afterwards the server gets little, and a fresh endpoint would not be asked.
        (Answer::html(429).with_retry_after("2"), seconds(2), true),
    ] {
        rows.push((fresh().await, answer, pause, concerns_all));
    }
    let [long, dropped, missing, gone] = [fresh().await, fresh().await, fresh().await, fresh().await];
    lab.webpush.script().queue(&long.token, Answer::html(413));
    lab.send(&long, 0, b"long", DAY);
    assert_eq!(receive(&lab, &long).await.1.body, PhoneBody::TooLong);

    lab.webpush.script().queue(&dropped.token, Answer::html(400));
    lab.send(&dropped, 0, b"dropped", DAY);
    let our_fault = r#"service="webpush",reason="our_fault""#;
    until_figure(&lab, "outbox_dropped_total", our_fault, |count| count == 1.0).await;
    reach(&lab, &dropped).await;

    for (before, (status, phone)) in (0u8..).zip([(404, missing), (410, gone)]) {
        lab.webpush.script().always(&phone.token, Answer::html(status));
        lab.send(&phone, 0, b"to nobody", DAY);
        let count = f64::from(before + 1);
        until_figure(&lab, "outbox_dropped_total", r#"reason="gone""#, |gone| gone == count).await;
        let forgotten = async {
            while is_stored(&lab, &phone).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    }

    for (phone, answer, pause, concerns_all) in rows {
        let told = format!("{answer:?}");
        lab.webpush.script().queue(&phone.token, answer);
        let sent = lab.send(&phone, 0, b"first", DAY);
        let refused = |delivery: &Delivery| delivery.token == phone.token && !delivery.accepted;
        let refused = lab.deliveries.take(PATIENCE, refused).await.unwrap();
        reach(&lab, &neighbour).await;
        if concerns_all {
            assert!(refused.at.elapsed() >= pause, "all of this server wait");
        }
        let delivery = receive_sent(&lab, &phone, &sent, b"first").await;
        assert!(delivery.at - refused.at >= pause, "{told}");
        assert_eq!(delivery.enc_payload, refused.enc_payload, "the same again");
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

/// A phone whose endpoint, the `number`th of this server, has been asked whether it lives.
async fn checked(lab: &Lab, number: u64) -> Phone {
    let phone = enrolled(lab, PushService::Webpush).await;
    let asked_about = async {
        while lab.webpush.checks() < number {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked_about).await.unwrap();
    phone
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_are_none_or_not_for_us_are_refused() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = lab.phone(PushService::Webpush);
    let port = lab.webpush.address().port();
    for endpoint in [
        "http://push.example.org/x".to_owned(),
        format!("https://user:word@127.0.0.1:{port}/x"),
        "https://127.0.0.1:22/x".to_owned(),
        format!("https://10.0.0.1:{port}/x"),
        format!("https://[::1]:{port}/x"),
        format!("https://169.254.169.254:{port}/latest/meta-data"),
        "https://localhost/x".to_owned(),
        "https://müller.example/x".to_owned(),
        format!("https://push.example.org/{}", "x".repeat(10_240)),
    ] {
        let mut item = phone.subscribe_item(unix_seconds());
        item["service_info"]["endpoint"] = json!(endpoint);
        let answer = asked(&lab, "/subscribe", &item).await;
        assert_eq!(answer["error"], 4, "{endpoint}: {answer}");
    }
    assert_eq!(lab.webpush.checks(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_can_ask_whether_its_fast_mode_works() {
    let (_folder, lab) = lab(|settings| settings).await;
    for service in PushService::ALL.into_iter().chain([PushService::Webpush]) {
        let phone = enrolled(&lab, service).await;
        let answer = asked(&lab, "/test", &phone.test_item(unix_seconds())).await;
        assert_eq!(
            (&answer["success"], &answer["accepted"]),
            (&json!(true), &json!(true)),
            "{answer}"
        );
        let (_, message) = receive(&lab, &phone).await;
        assert_eq!(&message.account, phone.account());
    }
    let phone = enrolled(&lab, PushService::Webpush).await;
    // Or the question whether the fresh endpoint lives would be answered with its death.
    let asked_about = async {
        while lab.webpush.checks() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked_about).await.unwrap();
    lab.webpush.script().always(&phone.token, Answer::html(410));
    let answer = asked(&lab, "/test", &phone.test_item(unix_seconds())).await;
    assert_eq!(
        (&answer["accepted"], &answer["result"]),
        (&json!(false), &json!("dead"))
    );
    // Of one account three at once; a request that is not signed uses up none.
    let mut forged = phone.test_item(unix_seconds());
    forged["signature"] = json!("00".repeat(64));
    for _ in 0..5 {
        assert_eq!(asked(&lab, "/test", &forged).await["error"], 4);
    }
    for expected in [true, true, false] {
        let (_, answer) = ask_directly(&lab, "/test", &phone.test_item(unix_seconds())).await;
        assert_eq!(answer["success"] == json!(true), expected, "{answer}");
    }
    let stranger = lab.phone(PushService::Firebase);
    let answer = asked(&lab, "/test", &stranger.test_item(unix_seconds())).await;
    assert_eq!(answer["result"], "not_subscribed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_can_push_to_one_token() {
    let (_folder, lab) = lab(|settings| settings).await;
    let reader = lab.webpush.reader();
    let web = json!({
        "endpoint": reader.endpoint, "keys": { "p256dh": url_safe(&reader.public), "auth": url_safe(&reader.auth) },
    });
    for (service, token) in [
        ("webpush", web.to_string()),
        ("apns", PushService::Apns.new_token()),
        ("apns-sandbox", PushService::ApnsSandbox.new_token()),
        ("firebase", PushService::Firebase.new_token()),
        ("huawei", PushService::Huawei.new_token()),
    ] {
        let (done, said) = push(&lab, service, &token);
        assert_eq!(
            (done, said.as_str()),
            (true, &*format!("{service} accepted the notification\n"))
        );
    }
    lab.webpush.script().always(&reader.endpoint, Answer::html(507));
    let (done, said) = push(&lab, "webpush", &web.to_string());
    assert!(!done && said.contains("token_rate"), "{said}");
    let (done, _) = push(&lab, "webpush", "no token at all");
    assert!(!done);
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

/// Through standard input; whether it went well, and what was said.
fn push(lab: &Lab, service: &str, token: &str) -> (bool, String) {
    let mut child = Command::new(Notifier::find_binary(None).unwrap())
        .args(["push", "--service", service, "--token-file", "-", "--settings"])
        .arg(lab.settings_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    assert!(
        !String::from_utf8_lossy(&said).contains(token),
        "a token is not repeated"
    );
    (ended.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_monitor_signature_repoints_nobody_who_uses_bindings() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    for service in [PushService::Firebase, PushService::Webpush] {
        let phone = lab.phone(service);
        let now = unix_seconds();
        let mut bound = phone.subscribe_item(now);
        bound["binding"] = json!(phone.binding(now));
        assert_eq!(asked(&lab, "/subscribe", &bound).await["success"], true);
        // What a node of the swarm saw: the MONITOR signature. The thief brings token and key.
        let stolen = |lab: &Lab, phone: &Phone| {
            let thief = lab.phone(PushService::Firebase);
            let mut item = phone.subscribe_item(now);
            item["service"] = json!("firebase");
            item["service_info"] = json!({ "token": thief.token });
            item["enc_key"] = json!(hex_of(&thief.enc_key));
            item
        };
        let answer = asked(&lab, "/subscribe", &stolen(&lab, &phone)).await;
        assert_eq!(answer["error"], 4, "{answer}");
        let mut with_the_old_binding = stolen(&lab, &phone);
        with_the_old_binding["binding"] = bound["binding"].clone();
        assert_eq!(asked(&lab, "/subscribe", &with_the_old_binding).await["error"], 4);
        lab.stop_notifier(PATIENCE).await.unwrap();
        lab.start_notifier().await.unwrap();
        let answer = asked(&lab, "/subscribe", &stolen(&lab, &phone)).await;
        assert_eq!(answer["error"], 4, "after a restart: {answer}");
        assert_eq!(asked(&lab, "/subscribe", &bound).await["success"], true);
    }
}

async fn asked(lab: &Lab, endpoint: &str, request: &serde_json::Value) -> serde_json::Value {
    ask(lab, endpoint, request).await.1
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn url_safe(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

async fn lab(change: impl FnOnce(LabSettings) -> LabSettings) -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path());
    settings.ready_within = PATIENCE;
    let lab = Lab::start(change(settings)).await.unwrap();
    (folder, lab)
}
