//! What anybody may know about this server.
//!
//! In: the key of the onion layer, the key of Web Push, the services on offer. Out: the answer of GET /info. Never: a word about users.

use bytes::Bytes;
use notifier_core::account::Service;
use serde_json::json;

/// Made once: it does not change while the process runs.
/// `vapid_public`: what a client gives to its push service, so that no other sender can use the endpoint.
pub fn info(onion_public: &[u8; 32], services: &[Service], vapid_public: Option<&str>) -> Bytes {
    let services: Vec<&str> = services.iter().map(|service| service.name()).collect();
    let mut info = json!({
        "name": "quietline-notifier",
        "version": env!("CARGO_PKG_VERSION"),
        "onion_public_key": hex::encode(onion_public),
        "services": services,
    });
    if let (Some(key), Some(fields)) = (vapid_public, info.as_object_mut()) {
        fields.insert("vapid_public_key".to_owned(), key.into());
    }
    Bytes::from(info.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_version_key_and_services() {
        let made = |vapid| -> serde_json::Value {
            serde_json::from_slice(&info(&[7; 32], &[Service::Apns, Service::Firebase], vapid)).unwrap()
        };
        assert_eq!(made(Some("BAbc"))["vapid_public_key"], "BAbc");
        let info = made(None);
        assert_eq!(info["onion_public_key"], "07".repeat(32));
        assert_eq!(info["services"], json!(["apns", "firebase"]));
        assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(info.as_object().unwrap().len(), 4);
    }
}
