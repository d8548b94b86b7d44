//! From a message in a swarm to a push that the phone can open: what wakes whom, how often, and what never does.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use quietline_lab::bt::{self, Bt};
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::node::SwarmMessage;
use quietline_lab::phone::{Phone, PhoneBody, PushService, unix_milliseconds};
use quietline_lab::provider::{Answer, Delivery};
use quietline_lab::sodium;
use quietline_lab::trial::{
    DAY, PATIENCE, enroll, enroll_beside, enrolled, reach, receive, receive_sent, until_figure, until_figure_within,
    watched,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_message_arrives_whole_with_urgency_and_its_own_end() {
    let (_folder, lab) = lab(|settings| settings).await;
    for service in PushService::ALL.into_iter().chain([PushService::Webpush]) {
        let phone = enrolled(&lab, service).await;
        let before = unix_milliseconds();
        let sent = lab.send(&phone, 0, b"hello", DAY);
        let (delivery, message) = receive(&lab, &phone).await;
        assert_eq!((&message.account, message.hash), (phone.account(), sent.hash));
        assert_eq!((message.namespace, message.length), (Some(0), Some(5)));
        assert_eq!(message.body, PhoneBody::Data(b"hello".to_vec()));
        assert_eq!(message.expiry_ms - message.timestamp_ms, 24 * 3_600_000);
        match service {
            PushService::Firebase => {
                let android = &delivery.body["message"]["android"];
                assert!(android["priority"].as_str().unwrap().eq_ignore_ascii_case("HIGH"));
                assert_eq!(android["ttl"], "86400s");
            }
            PushService::Huawei => {
                let android = &delivery.body["message"]["android"];
                assert_eq!(
                    (&android["urgency"], &android["collapse_key"]),
                    (&"HIGH".into(), &(-1).into())
                );
                assert_eq!(android["ttl"], "86400s");
            }
            PushService::Webpush => {
                assert_eq!(header(&delivery, "urgency"), "high");
                assert_eq!(header(&delivery, "ttl"), "86400");
            }
            PushService::Apns | PushService::ApnsSandbox => {
                assert_eq!(header(&delivery, "apns-priority"), "10");
                assert_eq!(header(&delivery, "apns-push-type"), "alert");
                // Apple takes a moment: a day after it was sent, whenever the message ends.
                let kept_until: i64 = header(&delivery, "apns-expiration").parse().unwrap();
                let (from, to) = (before / 1000 + 86_400, unix_milliseconds() / 1000 + 86_400);
                assert!((from..=to).contains(&kept_until), "{kept_until}");
            }
        }
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

/// What the incumbent would have put inside is compared byte for byte; the fakes refuse what is larger than a provider takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_2_500_bytes_is_carried_and_one_of_2_501_is_told() {
    let (_folder, lab) = lab(|settings| settings).await;
    for service in [PushService::Apns, PushService::Firebase] {
        let phone = enrolled(&lab, service).await;
        for length in [2_499, 2_500, 2_501, 10_000, 76_800] {
            let body = vec![b'b'; length];
            let sent = lab.send(&phone, 0, &body, DAY);
            let (delivery, message) = receive(&lab, &phone).await;
            assert_eq!((&message.hash, message.length), (&sent.hash, Some(length as i64)));
            let expected = if length <= 2_500 {
                PhoneBody::Data(body.clone())
            } else {
                PhoneBody::TooLong
            };
            assert_eq!(message.body, expected, "{length}");

            let (account, hash) = (phone.account_hex(), &sent.hash);
            let (at, end) = (message.timestamp_ms, message.expiry_ms);
            let plaintext = if length <= 2_500 {
                let json =
                    format!(r##"{{"@": "{account}", "#": "{hash}", "n": 0, "t": {at}, "z": {end}, "l": {length}}}"##);
                let mut text = vec![b'l'];
                bt::put_bytes(&mut text, json.as_bytes());
                bt::put_bytes(&mut text, &body);
                text.push(b'e');
                text
            } else {
                format!("ld1:#43:{hash}1:@66:{account}1:Bi1e1:li{length}e1:ni0e1:ti{at}e1:zi{end}eee").into_bytes()
            };
            assert_eq!(
                String::from_utf8_lossy(&opened(&phone, &delivery)),
                String::from_utf8_lossy(&plaintext)
            );
        }
    }
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_of_a_group_arrives_as_a_number_with_and_without_data() {
    let (_folder, lab) = lab(|settings| settings).await;
    let group = sodium::random();
    let with_data = Phone::group_admin(&group, PushService::Apns);
    let mut without_data = Phone::group_member(&group, &sodium::random(), PushService::Firebase);
    without_data.want_data = false;
    without_data.namespaces = vec![-11, 0, 11, 12, 13, 14];
    enroll(&lab, &with_data).await;
    enroll_beside(&lab, &without_data).await;
    for namespace in [-11, 11, 12, 13, 14] {
        let body = format!("in {namespace}");
        let sent = lab.send(&with_data, namespace, body.as_bytes(), DAY);
        let (_, message) = receive(&lab, &with_data).await;
        assert_eq!((&message.hash, message.namespace), (&sent.hash, Some(namespace.into())));
        assert_eq!(message.body, PhoneBody::Data(body.into_bytes()));
        let (_, message) = receive(&lab, &without_data).await;
        assert_eq!((&message.hash, message.namespace), (&sent.hash, Some(namespace.into())));
        assert_eq!((message.body, message.length), (PhoneBody::None, None));
    }
    // Only the member asked for 0.
    let sent = lab.send(&with_data, 0, b"in 0", DAY);
    let (_, message) = receive(&lab, &without_data).await;
    assert_eq!((message.hash, message.namespace), (sent.hash, Some(0)));
    reach(&lab, &with_data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_wakes_the_devices_that_asked_for_it_and_no_other() {
    let (_folder, lab) = lab(|settings| settings).await;
    let android = enrolled(&lab, PushService::Firebase).await;
    let mut ios = android.another_device(PushService::Apns);
    ios.namespaces = vec![0, 2, 3];
    enroll_beside(&lab, &ios).await;
    let sent = lab.send(&ios, 3, b"settings", DAY);
    let delivery = receive_sent(&lab, &ios, &sent, b"settings").await;
    assert_eq!(header(&delivery, "apns-priority"), "5");
    let sent = lab.send(&ios, 0, b"a message", DAY);
    receive_sent(&lab, &ios, &sent, b"a message").await;
    // The message is the first that comes to Android.
    receive_sent(&lab, &android, &sent, b"a message").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_several_nodes_are_one_push_for_each_device() {
    let (_folder, lab) = lab(|settings| settings.with("watcher.nodes_per_swarm", 5)).await;
    let phone = lab.phone(PushService::Apns);
    let second = phone.another_device(PushService::Firebase);
    for device in [&phone, &second] {
        assert!(lab.subscribe(device).await.unwrap().is_success());
    }
    let nodes = lab.wait_watched(&phone, 5, PATIENCE).await.unwrap();
    assert_eq!(nodes.len(), 5);
    let once = message(&phone, 0, b"once", DAY);
    for repetition in 1..=3 {
        lab.send_message(&once);
        until_figure(&lab, "event_notifications_total", "", |count| {
            count == f64::from(5 * repetition)
        })
        .await;
        if repetition == 1 {
            for device in [&phone, &second] {
                assert_eq!(receive(&lab, device).await.1.hash, once.hash());
            }
        }
    }
    // The next that comes to each is the next message.
    let next = lab.send(&phone, 0, b"next", DAY);
    for device in [&phone, &second] {
        assert_eq!(receive(&lab, device).await.1.hash, next.hash);
    }
    until_figure(&lab, "event_notifications_total", "", |count| count == 20.0).await;
    until_figure(&lab, "outbox_accepted_total", "", |count| count == 4.0).await;
    assert!(lab.deliveries.take_all().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_after_a_restart_wakes_nobody_again() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let message = message(&phone, 0, b"once", DAY);
    let sent = lab.send_message(&message);
    receive_sent(&lab, &phone, &sent, b"once").await;
    // After a clean stop first: a power cut right after the push could repeat it, as its end may not be on disk yet.
    for power_cut in [false, true] {
        if power_cut {
            lab.notifier().kill().await.unwrap();
        } else {
            assert!(lab.stop_notifier(PATIENCE).await.unwrap().unwrap().success());
        }
        for node in 0..lab.fleet.addresses().len() {
            lab.fleet.restart(node);
        }
        lab.notifier().restart(PATIENCE).await.unwrap();
        watched(&lab, &phone).await;
        lab.send_message(&message);
        // What comes next is new, so the copy woke nobody.
        reach(&lab, &phone).await;
        until_figure(&lab, "fanout_copies_total", "", |count| count >= 3.0).await;
        until_figure(&lab, "outbox_accepted_total", "", |count| count == 1.0).await;
        assert!(lab.deliveries.take_all().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_while_the_provider_is_down_arrives_when_it_is_up() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let apns = enrolled(&lab, PushService::Apns).await;
    let firebase = enrolled(&lab, PushService::Firebase).await;
    lab.apns.set_down(true);
    lab.fcm.set_down(true);
    let mut expected = Vec::new();
    for phone in [&apns, &firebase] {
        let message = message(phone, 0, b"while it was down", DAY);
        expected.push(lab.send_message(&message).hash);
        // A second copy while the first waits.
        lab.send_message(&message);
    }
    until_figure(&lab, "outbox_accepted_total", "", |count| count == 2.0).await;
    until_figure(&lab, "outbox_held_total", "", |count| count >= 2.0).await;
    // What waits outlives the process.
    lab.notifier().restart(PATIENCE).await.unwrap();
    lab.apns.set_down(false);
    lab.fcm.set_down(false);
    for (phone, hash) in [&apns, &firebase].into_iter().zip(expected) {
        assert_eq!(receive(&lab, phone).await.1.hash, hash);
        watched(&lab, phone).await;
        reach(&lab, phone).await;
    }
    assert!(lab.deliveries.take_all().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_only_for_accounts_of_its_swarm() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let inside = watched(&lab, &phone).await;
    let forged = message(&phone, 0, b"forged", DAY);
    for node in 0..lab.fleet.addresses().len() {
        if !lab.list.lock().unwrap().nodes_of(phone.account()).contains(&node) {
            lab.fleet
                .push_raw(node, vec![b"notify.message".to_vec(), forged.notification(true)]);
            lab.fleet
                .push_raw(node, vec![b"notify.message".to_vec(), forged.notification(false)]);
        }
    }
    // All watched nodes of the other swarms were heard.
    until_figure(&lab, "event_refused_total", "reason=\"foreign_account\"", |count| {
        count >= 6.0
    })
    .await;
    reach(&lab, &phone).await;
    // From inside the same message is good.
    lab.fleet
        .push_raw(inside[0], vec![b"notify.message".to_vec(), forged.notification(true)]);
    assert_eq!(receive(&lab, &phone).await.1.hash, forged.hash());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_that_does_not_hold_goes_out_only_after_a_second_node() {
    let (_folder, lab) = lab(|settings| settings.with("event.hold_for", "2s")).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let nodes = watched(&lab, &phone).await;
    let lie = |text: &str| {
        let mut body = Bt::parse(&message(&phone, 0, text.as_bytes(), DAY).notification(true)).unwrap();
        let Bt::Dict(fields) = &mut body else {
            unreachable!("a notification is a dict")
        };
        fields.insert(
            b"h".to_vec(),
            Bt::text(format!("{text}{}", "h".repeat(43 - text.len()))),
        );
        vec![b"notify.message".to_vec(), body.write()]
    };
    // One node alone, however often it says so.
    for _ in 0..3 {
        lab.fleet.push_raw(nodes[0], lie("alone"));
    }
    until_figure(&lab, "confirm_messages_total", "outcome=\"expired\"", |count| {
        count >= 1.0
    })
    .await;
    reach(&lab, &phone).await;
    // Two agree: perhaps a later storage server hashes otherwise.
    lab.fleet.push_raw(nodes[0], lie("two"));
    lab.fleet.push_raw(nodes[1], lie("two"));
    let (_, message) = receive(&lab, &phone).await;
    assert!(message.hash.starts_with("twoh"));
    assert_eq!(message.body, PhoneBody::Data(b"two".to_vec()));
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_huge_frames_of_a_node_change_nothing() {
    let (_folder, mut lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Firebase).await;
    let nodes = watched(&lab, &phone).await;
    let process = lab.notifier().process_id();
    let good = message(&phone, 0, b"good", DAY).notification(true);
    let notify = |body: &[u8]| vec![b"notify.message".to_vec(), body.to_vec()];
    let mut bodies = vec![
        b"".to_vec(),
        b"d".to_vec(),
        b"de".to_vec(),
        b"not bencode".to_vec(),
        b"i5e".to_vec(),
        b"l".repeat(100_000),
        b"d1:@99999999999:".to_vec(),
        b"d1:@33:shorte".to_vec(),
        good[..good.len() - 1].to_vec(),
        good[..good.len() / 2].to_vec(),
    ];
    for field in ["@", "h", "n", "t", "z"] {
        let Some(Bt::Dict(mut fields)) = Bt::parse(&good) else {
            unreachable!("a notification is a dict")
        };
        fields.insert(field.as_bytes().to_vec(), Bt::List(vec![]));
        bodies.push(Bt::Dict(fields.clone()).write());
        fields.remove(field.as_bytes());
        bodies.push(Bt::Dict(fields).write());
    }
    let refused = bodies.len() as f64;
    for body in &bodies {
        lab.fleet.push_raw(nodes[0], notify(body));
    }
    until_figure(&lab, "event_refused_total", "", |count| count == refused).await;
    // Strange frames may end the link; it is opened anew.
    let strange = [
        vec![b"notify.message".to_vec()],
        vec![vec![]],
        vec![b"notify.unheard".to_vec(), good.clone()],
        vec![b"REPLY".to_vec()],
        vec![b"REPLY".to_vec(), b"tag".to_vec(), b"l".to_vec()],
        vec![vec![0xFF; 300], vec![0; 300]],
        vec![b"BYE".to_vec(), vec![0xFF; 1000]],
        (0..200).map(|_| b"notify.message".to_vec()).collect(),
    ];
    for frames in strange {
        lab.fleet.push_raw(nodes[1], frames);
    }
    // Larger than anything a node may send.
    lab.fleet.push_raw(nodes[2], notify(&vec![b'x'; 100_000_000]));
    until_figure(&lab, "watch_link_ends_total", "", |count| count >= 1.0).await;
    lab.fleet.push_raw(nodes[0], notify(&vec![b'x'; 1_000_000]));
    until_figure(&lab, "watch_notifications_too_large_total", "", |count| count >= 1.0).await;
    reach(&lab, &phone).await;
    // Each of the three is heard, also those whose link had ended, once it is back.
    for node in nodes {
        let body = format!("from {node}");
        let message = message(&phone, 0, body.as_bytes(), DAY);
        let heard = async {
            loop {
                lab.fleet.store([node], &message);
                let patience = Duration::from_millis(500);
                if let Some((_, message)) = lab.next_delivery(&phone, patience).await {
                    return message;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, heard).await.unwrap();
        assert_eq!(heard.hash, message.hash());
    }
    assert_eq!(lab.notifier().process_id(), process);
    assert_eq!(lab.deliveries.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_wakes_nobody_and_neither_does_a_config_message_that_cannot_be_carried() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    lab.send(&phone, 0, b"typing", Duration::from_secs(20));
    for namespace in [2, 3, 4, 5] {
        lab.send(&phone, namespace, &[b'c'; 2_501], DAY);
    }
    // Each node's copy is judged anew: what wakes nobody leaves no mark.
    until_figure(&lab, "seal_suppressed_total", "reason=\"typing\"", |count| count == 3.0).await;
    until_figure(&lab, "seal_suppressed_total", "reason=\"too_long_config\"", |count| {
        count == 12.0
    })
    .await;
    // A short life alone is not typing: only in namespace 0.
    let sent = lab.send(&phone, 3, b"short-lived settings", Duration::from_secs(25));
    receive_sent(&lab, &phone, &sent, b"short-lived settings").await;
    reach(&lab, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_wakes_where_the_operator_wants_it() {
    let (_folder, lab) = lab(|settings| {
        settings
            .with("seal.skip_typing", false)
            .with("seal.skip_too_long_config", false)
    })
    .await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let sent = lab.send(&phone, 0, b"typing", Duration::from_secs(20));
    receive_sent(&lab, &phone, &sent, b"typing").await;
    let sent = lab.send(&phone, 3, &[b'c'; 2_501], DAY);
    let (_, message) = receive(&lab, &phone).await;
    assert_eq!((message.hash, message.body), (sent.hash, PhoneBody::TooLong));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_goes_before_messages_and_messages_before_settings() {
    let narrow = |settings: LabSettings| {
        settings
            .with("dispatch.apns.concurrency", 1)
            .with("dispatch.apns.connections", 1)
            .with("dispatch.timeout", "60s")
    };
    let (_folder, lab) = lab(narrow).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    let blocker = enrolled(&lab, PushService::Apns).await;
    let held_for = Duration::from_secs(10);
    let slow = Answer::Late(held_for, Box::new(Answer::Accept));
    lab.apns.script().queue(&blocker.token, slow);
    lab.send(&blocker, 0, b"holds the lane", DAY);
    let holds = lab
        .deliveries
        .take(PATIENCE, |delivery| delivery.token == blocker.token);
    holds.await.unwrap();

    let mut sent = Vec::new();
    for (number, (namespace, life)) in [(3, DAY), (0, DAY), (0, DAY), (0, Duration::from_secs(300))]
        .into_iter()
        .enumerate()
    {
        let body = format!("number {number}");
        sent.push(lab.send(&phone, namespace, body.as_bytes(), life).hash);
    }
    until_figure(&lab, "outbox_accepted_total", "", |count| count == 5.0).await;
    let mut arrived = Vec::new();
    for _ in 0..4 {
        arrived.push(receive(&lab, &phone).await.1.hash);
    }
    sent.rotate_right(1);
    sent[1..].rotate_left(1);
    assert_eq!(
        arrived, sent,
        "the call, then both messages in their order, then the settings"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_never_sent() {
    let (_folder, lab) = lab(|settings| settings).await;
    let phone = enrolled(&lab, PushService::Apns).await;
    // Expired when it is heard of.
    let mut late = message(&phone, 0, b"too late", DAY);
    (late.timestamp_ms, late.expiry_ms) = (late.timestamp_ms - 2 * 86_400_000, unix_milliseconds() - 1000);
    lab.send_message(&late);
    until_figure(&lab, "event_notifications_total", "", |count| count == 3.0).await;
    // Expires while the provider is down: 35 s would be a call, so this is a namespace whose messages may be that short.
    lab.apns.set_down(true);
    lab.send(&phone, 3, b"expires on the way", Duration::from_secs(6));
    until_figure(&lab, "outbox_accepted_total", "", |count| count >= 1.0).await;
    // What a message says of its end is its node's word: a wakeup has a minute.
    until_figure_within(2 * PATIENCE, &lab, "outbox_entries", "", |count| count == 0.0).await;
    lab.apns.set_down(false);
    reach(&lab, &phone).await;
    until_figure(&lab, "outbox_delivered_total", "", |count| count >= 1.0).await;
    assert!(lab.deliveries.take_all().is_empty());
}

async fn lab(change: impl FnOnce(LabSettings) -> LabSettings) -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path());
    settings.ready_within = PATIENCE;
    let lab = Lab::start(change(settings)).await.unwrap();
    (folder, lab)
}

fn message(phone: &Phone, namespace: i16, data: &[u8], life: Duration) -> SwarmMessage {
    let timestamp_ms = unix_milliseconds();
    SwarmMessage {
        account: *phone.account(),
        session_ed25519: phone.session_ed25519().copied(),
        namespace,
        timestamp_ms,
        expiry_ms: timestamp_ms + i64::try_from(life.as_millis()).unwrap(),
        data: data.to_vec(),
    }
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> &'a str {
    let found = delivery.headers.iter().find(|(header, _)| header == name);
    found.map(|(_, value)| value.as_str()).unwrap_or_default()
}

/// The text inside, without its padding.
fn opened(phone: &Phone, delivery: &Delivery) -> Vec<u8> {
    let (nonce, sealed) = delivery.enc_payload.split_first_chunk::<24>().unwrap();
    let mut text = sodium::xchacha20_open(&phone.enc_key, nonce, sealed).unwrap();
    let end = text.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    text.truncate(end);
    text
}
