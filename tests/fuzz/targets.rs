//! One function over bytes for each parser that sees the network. The fuzzer calls them with its inventions, the ordinary test
//! `fuzz_corpus` with everything in `corpus/`.

use notifier_core::account::Service;
use notifier_core::seal::Sealed;
use notifier_core::subscription::{self, Body, Subscription};
use notifier_core::swarm::{NodeList, SwarmRing};
use quietline_shared::redact::Secret;

/// A Unix time within the golden data's signatures.
const NOW: i64 = 1_795_200_000;

pub fn bencode(data: &[u8]) {
    let mut reader = quietline_shared::bencode::Reader::new(data);
    if reader.skip().is_ok() {
        assert!(reader.rest().len() < data.len(), "a value takes at least one byte");
    }
}

/// The first byte picks one of two server keys, so that the golden requests open.
pub fn onion(data: &[u8]) {
    let _ = quietline_shared::onion::open(data, &Secret::new([7; 32]));
}

pub fn requests(data: &[u8]) {
    let on_offer = |name: &str| Service::from_name(name).or((name == "test").then_some(Service::Firebase));
    let items = match subscription::parse_body(data) {
        Body::One(item) => vec![*item],
        Body::Many(items) => items,
        Body::Bad(_) => return,
    };
    for item in items {
        if let Ok(made) = subscription::subscribe(&item, NOW, &on_offer) {
            let row = made.encode_row();
            assert!(
                Subscription::decode_row(&row).is_ok(),
                "what was accepted can be stored and read"
            );
        }
        let _ = subscription::unsubscribe(&item, NOW, &on_offer);
    }
}

pub fn rows(data: &[u8]) {
    if let Ok(subscription) = Subscription::decode_row(data) {
        assert_eq!(subscription.encode_row(), data, "one subscription has one row");
    }
    if let Ok(sealed) = Sealed::decode_row(data) {
        assert_eq!(sealed.encode_row(), data, "one wakeup has one row");
    }
}

pub fn node_list(data: &[u8]) {
    if let Ok(list) = NodeList::from_json(data) {
        let again = NodeList::from_json(&list.to_json()).expect("what we write we read");
        assert!(list.difference(&again) == 0.0);
        let ring = SwarmRing::new(&list);
        assert_eq!(ring.nodes().count(), list.nodes.len());
    }
}

pub fn notification(data: &[u8]) {
    if let Ok(event) = notifier_core::event::parse(bytes::Bytes::copy_from_slice(data)) {
        let _ = event.hash_verifies();
        let _ = notifier_core::seal::payload(&event, true, notifier_core::seal::Limits::OF_PROVIDERS);
    }
}

pub fn link(data: &[u8]) {
    notifier_core::omq::fuzz_connection(data, std::time::Instant::now());
}

pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = text.parse::<notifier_core::omq::Address>();
}
