//! What Apple and Google answer, and what becomes of the push, its device and its lane.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use bytes::Bytes;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::phone::{Phone, PhoneBody, PushService, unix_milliseconds};
use quietline_lab::provider::{Answer, Delivery};
use quietline_lab::trial::{
    DAY, PATIENCE, enroll, enrolled, figure, is_stored, reach, receive, receive_sent, until_figure,
};
use std::time::Duration;

const HOUR_MS: i64 = 3_600_000;

/// Gives each answer once, to a phone of its own, whose wakeup comes again.
async fn each_is_repeated(lab: &Lab, service: PushService, answers: impl IntoIterator<Item = Answer>) {
    let mut phones = Vec::new();
    for answer in answers {
        let phone = enrolled(lab, service).await;
        lab.script(service).queue(&phone.token, answer);
        let sent = lab.send(&phone, 0, b"again", DAY);
        assert!(!attempt(lab, &phone).await.accepted);
        phones.push((phone, sent));
    }
    for (phone, sent) in &phones {
        receive_sent(lab, phone, sent, b"again").await;
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_died_after_it_was_registered_is_deleted_and_one_that_died_before_is_kept() {
    let (_folder, lab) = lab(|settings| settings).await;
    let now = unix_milliseconds();
    for reason in ["Unregistered", "ExpiredToken"] {
        let (dead, reborn) = (
            enrolled(&lab, PushService::Apns).await,
            enrolled(&lab, PushService::Apns).await,
        );
        let deleted = figure(&lab, "store_dead_devices_total", "").await;
        // Nothing is deleted before the credential has delivered something.
        reach(&lab, &reborn).await;
        lab.apns
            .script()
            .queue(&reborn.token, Answer::apns_gone(reason, now - HOUR_MS));
        lab.apns
            .script()
            .queue(&dead.token, Answer::apns_gone(reason, now + HOUR_MS));
        for phone in [&reborn, &dead] {
            lab.send(phone, 0, b"perhaps nobody", DAY);
            assert!(!attempt(&lab, phone).await.accepted);
        }
        until_figure(&lab, "store_dead_devices_total", "", |count| count > deleted).await;
        reach(&lab, &reborn).await;
        assert!(is_stored(&lab, &reborn).await);
        assert!(!is_stored(&lab, &dead).await);
        // Only a device that is told again is there again.
        reach(&lab, &dead).await;
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_token_is_deleted_from_every_account_and_watching_ends_with_the_last_device() {
    let (_folder, lab) = lab(|settings| settings).await;
    let person = enrolled(&lab, PushService::Firebase).await;
    let mut group = Phone::group_admin(&[9; 32], PushService::Firebase);
    group.token.clone_from(&person.token);
    enroll(&lab, &group).await;
    let neighbour = enrolled(&lab, PushService::Firebase).await;
    let script = lab.fcm.script();
    // Nothing is deleted before the credential has delivered something.
    reach(&lab, &neighbour).await;
    script.queue(&person.token, Answer::fcm(404, "NOT_FOUND", Some("UNREGISTERED"), None));
    lab.send(&person, 0, b"to a dead token", DAY);
    until_figure(&lab, "store_dead_devices_total", "", |count| count == 2.0).await;
    until_figure(&lab, "watch_accounts", "", |accounts| accounts == 1.0).await;
    lab.send(&group, 11, b"nobody is there", DAY);
    reach(&lab, &neighbour).await;
    assert!(!is_stored(&lab, &person).await && !is_stored(&lab, &group).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_topic_or_project_deletes_nobody() {
    let (_folder, lab) = lab(|settings| settings).await;
    let script = lab.apns.script();
    script.everyone(Answer::apns(400, "BadDeviceToken"));
    lab.apns_sandbox
        .script()
        .everyone(Answer::apns(400, "DeviceTokenNotForTopic"));
    lab.fcm
        .script()
        .everyone(Answer::fcm(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"), None));
    lab.huawei
        .script()
        .everyone(Answer::huawei(200, "80300007", "all the tokens are invalid"));
    let mut phones = Vec::new();
    for service in PushService::ALL {
        for _ in 0..10 {
            phones.push(enrolled(&lab, service).await);
        }
    }
    for phone in &phones {
        lab.send(phone, 0, b"to everybody", DAY);
    }
    for phone in &phones {
        attempt(&lab, phone).await;
    }
    until_figure(&lab, "outbox_accepted_total", "", |count| count == 40.0).await;
    until_figure(&lab, "outbox_entries", "", |count| count == 0.0).await;
    assert_eq!(figure(&lab, "store_dead_devices_total", "").await, 0.0);
    script.clear();
    lab.apns_sandbox.script().clear();
    lab.fcm.script().clear();
    lab.huawei.script().clear();
    for phone in &phones {
        assert!(is_stored(&lab, phone).await);
        reach(&lab, phone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_token_among_good_ones_is_deleted_and_harms_none_of_them() {
    let (_folder, lab) = lab(|settings| settings).await;
    let apns = Answer::apns(400, "BadDeviceToken");
    let fcm = Answer::fcm(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), Some("message.token"));
    let huawei = Answer::huawei(200, "80300007", "all the tokens are invalid");
    for (service, answer) in [
        (PushService::Apns, apns),
        (PushService::Firebase, fcm),
        (PushService::Huawei, huawei),
    ] {
        let bad = enrolled(&lab, service).await;
        let mut good = Vec::new();
        for _ in 0..20 {
            good.push(enrolled(&lab, service).await);
        }
        let script = lab.script(service);
        for phone in &good {
            reach(&lab, phone).await;
        }
        script.always(&bad.token, answer);
        let deleted = figure(&lab, "store_dead_devices_total", "").await;
        lab.send(&bad, 0, b"bad", DAY);
        let sent: Vec<_> = good.iter().map(|phone| lab.send(phone, 0, b"good", DAY)).collect();
        for (phone, sent) in good.iter().zip(&sent) {
            receive_sent(&lab, phone, sent, b"good").await;
        }
        until_figure(&lab, "store_dead_devices_total", "", |count| count == deleted + 1.0).await;
        script.clear();
        assert!(!is_stored(&lab, &bad).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_apple_token_waits_at_least_as_long_as_asked_and_no_other_waits() {
    let (_folder, lab) = lab(|settings| settings).await;
    let (slowed, free) = (
        enrolled(&lab, PushService::Apns).await,
        enrolled(&lab, PushService::Apns).await,
    );
    let wait = Duration::from_secs(5);
    lab.apns.script().queue(
        &slowed.token,
        Answer::apns(429, "TooManyRequests").with_retry_after("5"),
    );
    let sent = lab.send(&slowed, 0, b"later", DAY);
    let refused = attempt(&lab, &slowed).await;
    reach(&lab, &free).await;
    let delivery = receive_sent(&lab, &slowed, &sent, b"later").await;
    assert!(delivery.at - refused.at >= wait);
    assert_eq!(delivery.id, refused.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_google_holds_up_its_lane_at_least_as_long_as_asked_and_no_other_lane() {
    let (_folder, lab) = lab(|settings| settings).await;
    let free = enrolled(&lab, PushService::Apns).await;
    let wait = Duration::from_secs(5);
    let (first, second) = (
        enrolled(&lab, PushService::Firebase).await,
        enrolled(&lab, PushService::Firebase).await,
    );
    let quota = Answer::fcm(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), None).with_retry_after("5");
    lab.fcm.script().queue(&first.token, quota);
    let sent = lab.send(&first, 0, b"later", DAY);
    let refused = attempt(&lab, &first).await;
    until_figure(&lab, "outbox_retried_total", "reason=\"lane_rate\"", |count| {
        count == 1.0
    })
    .await;
    let other = lab.send(&second, 0, b"waits too", DAY);
    reach(&lab, &free).await;
    for (phone, sent, body) in [(&first, &sent, &b"later"[..]), (&second, &other, b"waits too")] {
        let delivery = receive_sent(&lab, phone, sent, body).await;
        assert!(delivery.at - refused.at >= wait);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_in_trouble_gets_the_same_push_again() {
    let (_folder, lab) = lab(|settings| settings).await;
    let answers = [
        Answer::apns(500, "InternalServerError"),
        Answer::apns(503, "ServiceUnavailable"),
        Answer::apns(503, "Shutdown"),
        Answer::apns(400, "IdleTimeout"),
        Answer::apns(403, "UnrelatedKeyIdInToken"),
        Answer::html(400),
        Answer::html(410),
        Answer::html(502),
        Answer::huge_body(503, 1_000_000),
        Answer::huge_body(410, 1_000_000),
        Answer::RefuseStream,
        Answer::Reset,
        Answer::Cut,
    ];
    for answer in answers {
        let phone = enrolled(&lab, PushService::Apns).await;
        lab.apns.script().queue(&phone.token, answer.clone());
        let sent = lab.send(&phone, 0, b"again", DAY);
        let first = attempt(&lab, &phone).await;
        let second = attempt(&lab, &phone).await;
        assert!(!first.accepted && second.accepted, "{answer:?}");
        assert_eq!((&first.id, first.enc_payload == second.enc_payload), (&second.id, true));
        assert_eq!(phone.open(&second.enc_payload).unwrap().hash, sent.hash);
        reach(&lab, &phone).await;
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_in_trouble_gets_the_same_push_again() {
    let (_folder, lab) = lab(|settings| settings.with("dispatch.timeout", "2s")).await;
    let answers = [
        Answer::fcm(503, "UNAVAILABLE", Some("UNAVAILABLE"), None).with_retry_after("1"),
        Answer::fcm(500, "INTERNAL", Some("INTERNAL"), None),
        Answer::html(502),
        Answer::html(404),
        Answer::Stall,
        Answer::Cut,
        Answer::fcm(401, "UNAUTHENTICATED", None, None),
    ];
    each_is_repeated(&lab, PushService::Firebase, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_gracefully_loses_and_repeats_nothing() {
    let (_folder, lab) = lab(|settings| settings).await;
    for service in PushService::ALL {
        let phone = enrolled(&lab, service).await;
        let script = lab.script(service);
        script.queue(&phone.token, Answer::GoAway);
        let mut sent = Vec::new();
        for number in 0..20 {
            sent.push(lab.send(&phone, 0, format!("number {number}").as_bytes(), DAY).hash);
        }
        let mut arrived = Vec::new();
        for _ in 0..20 {
            arrived.push(receive(&lab, &phone).await.1.hash);
        }
        sent.sort();
        arrived.sort();
        assert_eq!(arrived, sent);
        reach(&lab, &phone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_finds_too_large_is_sent_without_its_body() {
    let (_folder, lab) = lab(|settings| settings).await;
    let google = Answer::Refuse {
        status: 400,
        headers: Vec::new(),
        body: Bytes::from_static(
            br#"{"error":{"code":400,"message":"Message too big","status":"INVALID_ARGUMENT","details":[
                {"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"INVALID_ARGUMENT"}]}}"#,
        ),
    };
    for (service, answer) in [
        (PushService::Apns, Answer::apns(413, "PayloadTooLarge")),
        (PushService::Firebase, google),
        (PushService::Firebase, Answer::html(413)),
        (PushService::Huawei, Answer::huawei(200, "80300008", "too large")),
    ] {
        let phone = enrolled(&lab, service).await;
        let script = lab.script(service);
        script.queue(&phone.token, answer);
        let sent = lab.send(&phone, 0, b"too large for them", DAY);
        assert!(!attempt(&lab, &phone).await.accepted);
        let (_, message) = receive(&lab, &phone).await;
        assert_eq!(
            (message.hash, message.body, message.length),
            (sent.hash, PhoneBody::TooLong, Some(18))
        );
        reach(&lab, &phone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_credential_stops_its_lane_keeps_its_queue_and_leaves_the_others_alone() {
    let (_folder, lab) = lab(|settings| settings).await;
    let apple = enrolled(&lab, PushService::Apns).await;
    let others = [
        enrolled(&lab, PushService::ApnsSandbox).await,
        enrolled(&lab, PushService::Firebase).await,
    ];
    lab.apns.script().everyone(Answer::apns(403, "InvalidProviderToken"));
    let mut waiting = vec![lab.send(&apple, 0, b"the first", DAY).hash];
    assert!(!attempt(&lab, &apple).await.accepted);
    until_figure(
        &lab,
        "outbox_lane_state",
        "service=\"apns\",state=\"stopped\"",
        |state| state == 1.0,
    )
    .await;
    for number in 0..20 {
        waiting.push(lab.send(&apple, 0, format!("number {number}").as_bytes(), DAY).hash);
    }
    for other in &others {
        reach(&lab, other).await;
    }
    until_figure(&lab, "outbox_accepted_total", "service=\"apns\"", |count| count == 21.0).await;
    // Stopped means stopped: none of those was tried.
    assert!(
        lab.deliveries
            .take_now(|delivery| delivery.token == apple.token)
            .is_none()
    );
    lab.apns.script().clear();
    let mut arrived = Vec::new();
    for _ in 0..21 {
        arrived.push(receive(&lab, &apple).await.1.hash);
    }
    waiting.sort();
    arrived.sort();
    assert_eq!(arrived, waiting);
    assert!(is_stored(&lab, &apple).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_token_that_google_forgot_is_fetched_anew_once() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Firebase).await;
    reach(&lab, &phone).await;
    assert_eq!(lab.fcm.bearers_given(), 1);
    lab.fcm.revoke_bearers();
    let sent: Vec<_> = (0..10).map(|number| lab.send(&phone, 0, &[number], DAY).hash).collect();
    for _ in &sent {
        assert!(sent.contains(&receive(&lab, &phone).await.1.hash));
    }
    assert_eq!(lab.fcm.bearers_given(), 2);
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huawei_is_believed_by_the_code_within_its_200_and_gets_what_it_did_not_take_again() {
    let (_folder, lab) = lab(|settings| settings).await;
    let answers = [
        Answer::huawei(200, "81000001", "an inner fault"),
        Answer::huawei(500, "81000001", "an inner fault"),
        Answer::html(200),
        Answer::html(502),
        Answer::Cut,
    ];
    each_is_repeated(&lab, PushService::Huawei, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huaweis_access_token_is_fetched_anew_once_and_urgency_is_given_up_without_the_right_to_it() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Huawei).await;
    reach(&lab, &phone).await;
    lab.huawei.revoke_bearers();
    let sent: Vec<_> = (0..10).map(|number| lab.send(&phone, 0, &[number], DAY).hash).collect();
    for _ in &sent {
        assert!(sent.contains(&receive(&lab, &phone).await.1.hash));
    }
    assert_eq!(lab.huawei.bearers_given(), 2);
    lab.huawei.let_urge(false);
    let sent = lab.send(&phone, 0, b"without urgency", DAY);
    let delivery = receive_sent(&lab, &phone, &sent, b"without urgency").await;
    assert_eq!(delivery.body["message"]["android"]["urgency"], "NORMAL");
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_reaches_harmony_os_with_a_push_type() {
    let (_folder, lab) = lab(|settings| {
        settings
            .with("dispatch.huawei.api", "v3")
            .without("dispatch.huawei.client_secret_file")
            .with("dispatch.huawei.project", quietline_lab::keys::HUAWEI_PROJECT)
            .with("dispatch.huawei.service_account_file", "keys/huawei.json")
    })
    .await;
    let phone = enrolled(&lab, PushService::Huawei).await;
    let sent = lab.send(&phone, 0, b"hello", DAY);
    let delivery = receive_sent(&lab, &phone, &sent, b"hello").await;
    let push_type = delivery.headers.iter().find(|(name, _)| name == "push-type");
    assert_eq!(push_type.unwrap().1, "0");
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_provider_calls_malformed_is_dropped_and_the_device_kept() {
    let (_folder, lab) = lab(|settings| settings).await;
    let mut answers = Vec::new();
    for reason in [
        "BadTopic",
        "MissingTopic",
        "BadPriority",
        "BadExpirationDate",
        "BadCollapseId",
        "BadMessageId",
        "InvalidPushType",
        "DuplicateHeaders",
        "PayloadEmpty",
        "MissingDeviceToken",
    ] {
        answers.push((PushService::Apns, Answer::apns(400, reason)));
    }
    answers.push((PushService::Apns, Answer::apns(404, "BadPath")));
    answers.push((PushService::Apns, Answer::apns(405, "MethodNotAllowed")));
    let field = Answer::fcm(
        400,
        "INVALID_ARGUMENT",
        Some("INVALID_ARGUMENT"),
        Some("message.android.ttl"),
    );
    answers.push((PushService::Firebase, field));
    answers.push((PushService::Firebase, Answer::fcm(400, "INVALID_ARGUMENT", None, None)));
    answers.push((PushService::Huawei, Answer::huawei(400, "80100001", "a bad parameter")));
    answers.push((PushService::Huawei, Answer::huawei(200, "80100016", "contents")));
    let count = answers.len() as f64;
    let mut phones = Vec::new();
    for (service, answer) in answers {
        let phone = enrolled(&lab, service).await;
        let script = lab.script(service);
        script.queue(&phone.token, answer);
        lab.send(&phone, 0, b"dropped", DAY);
        assert!(!attempt(&lab, &phone).await.accepted);
        phones.push(phone);
    }
    until_figure(&lab, "outbox_dropped_total", "", |dropped| dropped == count).await;
    for phone in &phones {
        // Not the dropped one, which is not tried again.
        reach(&lab, phone).await;
        assert!(is_stored(&lab, phone).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_google_delays_no_push_of_apples() {
    let (_folder, lab) = lab(|settings| settings).await;
    let slow = enrolled(&lab, PushService::Firebase).await;
    let quick = enrolled(&lab, PushService::Apns).await;
    lab.fcm.script().everyone(Answer::Stall);
    for number in 0..100_u8 {
        lab.send(&slow, 0, &[number], DAY);
    }
    attempt(&lab, &slow).await;
    for _ in 0..20 {
        reach(&lab, &quick).await;
    }
    assert_eq!(
        figure(&lab, "outbox_delivered_total", "service=\"firebase\"").await,
        0.0
    );
    lab.fcm.script().clear();
    assert!(lab.next_delivery(&slow, PATIENCE).await.is_some());
}

async fn lab(change: impl FnOnce(LabSettings) -> LabSettings) -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path());
    settings.ready_within = PATIENCE;
    let lab = Lab::start(change(settings)).await.unwrap();
    (folder, lab)
}

/// The next push that reaches the provider for this token, whatever the answer.
async fn attempt(lab: &Lab, phone: &Phone) -> Delivery {
    let attempt = lab.deliveries.take(PATIENCE, |delivery| delivery.token == phone.token);
    attempt.await.unwrap()
}
