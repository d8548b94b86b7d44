//! What end-to-end tests do again and again.
//!
//! In: a running `Lab`. Out: phones that are watched, messages that arrived, answers. Never: waits without an end; what does not
//! come within [`PATIENCE`] fails the test.

use crate::lab::{Lab, LabError, Sent};
use crate::onion::Cipher;
use crate::phone::{Phone, PhoneBody, PhoneMessage, PushService, send_direct, send_onion};
use crate::provider::Delivery;
use crate::sodium;
use serde_json::Value;
use std::time::Duration;

/// Generous: test runs share a small machine. Nothing waits this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// The notifier offers no event for its figures.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Subscribes, and waits until the usual three nodes watch.
///
/// # Panics
/// If either does not happen.
pub async fn enroll(lab: &Lab, phone: &Phone) {
    let answer = lab.subscribe(phone).await.expect("the notifier answers");
    assert!(answer.is_success(), "{:?}", answer.json());
    watched(lab, phone).await;
}

pub async fn enrolled(lab: &Lab, service: PushService) -> Phone {
    let phone = lab.phone(service);
    enroll(lab, &phone).await;
    phone
}

/// As [`enroll`], for a device whose account is watched already: waits until three nodes were told what the device wants.
///
/// # Panics
/// If they are not.
pub async fn enroll_beside(lab: &Lab, phone: &Phone) {
    let before = lab.fleet.counts().records;
    enroll(lab, phone).await;
    let told = lab.fleet.wait_counts(PATIENCE, |counts| counts.records >= before + 3);
    assert!(told.await.is_some(), "three nodes are told");
}

/// The three nodes, or more, that watch the phone's account, once there are three.
///
/// # Panics
/// If there are fewer in the end.
pub async fn watched(lab: &Lab, phone: &Phone) -> Vec<usize> {
    let nodes = lab.wait_watched(phone, 3, PATIENCE).await;
    nodes.expect("three nodes watch the account")
}

/// The next push that is for this phone.
///
/// # Panics
/// If none comes, or one that the phone cannot open.
pub async fn receive(lab: &Lab, phone: &Phone) -> (Delivery, PhoneMessage) {
    lab.next_delivery(phone, PATIENCE)
        .await
        .expect("a push comes to the phone")
}

/// The next push to this phone is `sent` with this body.
///
/// # Panics
/// If it is another, or none comes.
pub async fn receive_sent(lab: &Lab, phone: &Phone, sent: &Sent, body: &[u8]) -> Delivery {
    let (delivery, message) = receive(lab, phone).await;
    assert_eq!(message.hash, sent.hash, "this message is the next to arrive");
    assert_eq!(message.body, PhoneBody::Data(body.to_vec()));
    assert_eq!(&message.account, phone.account());
    delivery
}

/// A fresh message in the phone's first namespace is the next that arrives. As the last step of a test it also says that nothing
/// arrived before it.
pub async fn reach(lab: &Lab, phone: &Phone) {
    let namespace = phone.namespaces.first().copied().unwrap_or_default();
    let body = sodium::random::<40>();
    let sent = lab.send(phone, namespace, &body, DAY);
    receive_sent(lab, phone, &sent, &body).await;
}

/// Through an onion: the inner code and the JSON.
///
/// # Panics
/// If there is no answer that opens, or no JSON in it.
pub async fn ask(lab: &Lab, endpoint: &str, request: &Value) -> (u64, Value) {
    let cipher = Cipher::BOTH[usize::from(sodium::random::<1>()[0] & 1)];
    let answer = send_onion(&lab.http, &lab.keys.onion_public, cipher, endpoint, request).await;
    let answer = answer.expect("the notifier answers");
    assert_eq!(answer.outer_status, 200);
    let json = answer.json().expect("the answer is JSON");
    (answer.reply.expect("the answer opens").code, json)
}

/// Without an onion: the HTTP status and the JSON.
///
/// # Panics
/// If there is no answer, or no JSON in it.
pub async fn ask_directly(lab: &Lab, endpoint: &str, request: &Value) -> (u64, Value) {
    let answer = send_direct(&lab.http, endpoint, request)
        .await
        .expect("the notifier answers");
    (answer.outer_status.into(), answer.json().expect("the answer is JSON"))
}

/// Whether the notifier still has this device: a repeated subscription updates what is there and adds what is not.
///
/// # Panics
/// If it answers neither.
pub async fn is_stored(lab: &Lab, phone: &Phone) -> bool {
    let answer = lab.subscribe(phone).await.expect("the notifier answers");
    let json = answer.json().expect("the answer is JSON");
    match (json["updated"] == true, json["added"] == true) {
        (true, false) => true,
        (false, true) => false,
        _ => panic!("neither added nor updated: {json}"),
    }
}

/// The figure now; 0 if it was never counted.
///
/// # Panics
/// If the notifier does not tell its figures.
pub async fn figure(lab: &Lab, name: &str, label: &str) -> f64 {
    told(lab, name, label).await.expect("the notifier tells its figures")
}

async fn told(lab: &Lab, name: &str, label: &str) -> Result<f64, LabError> {
    Ok(lab.metrics().await?.sum_where(name, label).unwrap_or(0.0))
}

/// Waits until the figure is `wanted`. A notifier that does not tell it yet may still be starting.
///
/// # Panics
/// If it never is.
pub async fn until_figure(lab: &Lab, name: &str, label: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    until_figure_within(PATIENCE, lab, name, label, wanted).await
}

/// For what takes longer by nature.
pub async fn until_figure_within(
    patience: Duration,
    lab: &Lab,
    name: &str,
    label: &str,
    wanted: impl Fn(f64) -> bool,
) -> f64 {
    let mut last = None;
    let search = async {
        loop {
            let told = told(lab, name, label).await;
            match told {
                Ok(figure) if wanted(figure) => return figure,
                _ => last = Some(told),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let found = tokio::time::timeout(patience, search).await;
    found.unwrap_or_else(|_| panic!("{name}{{{label}}} stays at {last:?}"))
}
