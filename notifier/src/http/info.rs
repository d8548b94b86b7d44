//! What anybody may know about this server.
//!
//! In: the key of the onion layer, the services on offer. Out: the answer of GET /info. Never: a word about users.

use bytes::Bytes;
use notifier_core::account::Service;
use serde_json::json;

/// Made once: it does not change while the process runs.
pub fn info(onion_public: &[u8; 32], services: &[Service]) -> Bytes {
    let services: Vec<&str> = services.iter().map(|service| service.name()).collect();
    let info = json!({
        "name": "quietline-notifier",
        "version": env!("CARGO_PKG_VERSION"),
        "onion_public_key": hex::encode(onion_public),
        "services": services,
    });
    Bytes::from(info.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_version_key_and_services() {
        let info: serde_json::Value =
            serde_json::from_slice(&info(&[7; 32], &[Service::Apns, Service::Firebase])).unwrap();
        assert_eq!(info["onion_public_key"], "07".repeat(32));
        assert_eq!(info["services"], json!(["apns", "firebase"]));
        assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(info.as_object().unwrap().len(), 4);
    }
}
