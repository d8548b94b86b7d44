//! `monitor.json`, section `hivemind_requests`: the records the incumbent sends for a subscription. The other sections
//! are about links and events.

use crate::{bytes, list, text, vectors};
use notifier_core::account::Service;
use notifier_core::subscription::{Subscription, subscribe};
use serde_json::Value;

#[test]
fn a_subscriptions_record_is_the_incumbents_byte_for_byte() {
    let file = vectors(include_str!("../../../../tests/vectors/monitor.json"));
    let cases = list(&file, "hivemind_requests");
    for case in cases {
        let request = case.get("subscribe_request").unwrap();
        let signed_at = request.get("sig_ts").and_then(Value::as_i64).unwrap();
        let subscription = subscribe(request, signed_at, &|_| Some(Service::Firebase)).unwrap();
        let from_row = Subscription::decode_row(&subscription.encode_row()).unwrap();
        for subscription in [subscription, from_row] {
            let mut body = vec![b'l'];
            subscription.monitor_record(&mut body);
            body.push(b'e');
            assert_eq!(
                hex::encode(body),
                hex::encode(bytes(case, "body_hex")),
                "{}",
                text(case, "id")
            );
        }
    }
    assert_eq!(cases.len(), 5);
}
