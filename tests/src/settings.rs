//! The notifier's settings file for this lab.
//!
//! In: addresses of the fakes, a folder with keys. Out: `notifier.toml` with the names of deploy/notifier.toml.
//! Never: a value that is a secret.

use crate::keys::{APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC};
use std::net::SocketAddr;
use toml::{Table, Value, toml};

/// Where everything of one lab listens.
pub struct Addresses {
    pub http: SocketAddr,
    pub ops: SocketAddr,
    pub oxend: Vec<String>,
    /// URL and certificate file.
    pub seeds: Vec<(String, String)>,
    pub apns: SocketAddr,
    pub apns_sandbox: SocketAddr,
    pub fcm: SocketAddr,
}

/// Everything that is not a default. Paths are relative to the file's folder.
pub fn notifier_settings(addresses: &Addresses) -> Table {
    let mut settings = toml! {
        [http]
        onion_key_file = "keys/onion"
        direct = true

        [store]
        path = "data/subscriptions.db"
        lookup_key_file = "keys/lookup"

        [watcher]
        key_file = "keys/link"
        node_list_file = "data/nodes.json"

        [event]

        [fanout]

        [seal]

        [outbox]
        path = "data/outbox.db"

        [dispatch.apns]
        key_file = "keys/apns.p8"
        ca_file = "keys/ca.pem"

        [dispatch.apns-sandbox]
        key_file = "keys/apns.p8"
        ca_file = "keys/ca.pem"

        [dispatch.firebase]
        service_account_file = "keys/firebase.json"
        ca_file = "keys/ca.pem"

        [ops]

        [log]
        level = "info"

        [lifecycle]
    };
    set(&mut settings, "http.listen", addresses.http.to_string());
    set(&mut settings, "ops.listen", addresses.ops.to_string());
    let oxend = addresses
        .oxend
        .iter()
        .map(|address| Table::from_iter([("address".to_owned(), text(address))]));
    set(
        &mut settings,
        "watcher.oxend",
        Value::Array(oxend.map(Value::Table).collect()),
    );
    let seeds = addresses.seeds.iter().map(|(url, certificate)| {
        Table::from_iter([
            ("url".to_owned(), text(url)),
            ("certificate_file".to_owned(), text(certificate)),
        ])
    });
    let seeds: Vec<_> = seeds.map(Value::Table).collect();
    if !seeds.is_empty() {
        set(&mut settings, "watcher.seed", Value::Array(seeds));
    }
    for (lane, address) in [
        ("apns", addresses.apns),
        ("apns-sandbox", addresses.apns_sandbox),
        ("firebase", addresses.fcm),
    ] {
        set(
            &mut settings,
            &format!("dispatch.{lane}.host"),
            address.ip().to_string(),
        );
        set(
            &mut settings,
            &format!("dispatch.{lane}.port"),
            i64::from(address.port()),
        );
    }
    for lane in ["apns", "apns-sandbox"] {
        set(&mut settings, &format!("dispatch.{lane}.topic"), APNS_TOPIC);
        set(&mut settings, &format!("dispatch.{lane}.key_id"), APNS_KEY_ID);
        set(&mut settings, &format!("dispatch.{lane}.team_id"), APNS_TEAM_ID);
    }
    settings
}

/// Sets `section.key`, creating sections on the way.
pub fn set(settings: &mut Table, path: &str, value: impl Into<Value>) {
    let Some((section, rest)) = path.split_once('.') else {
        settings.insert(path.to_owned(), value.into());
        return;
    };
    let section = settings.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        set(section, rest, value);
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
