//! The notifier's settings file for this lab.
//!
//! In: addresses of the fakes, a folder with keys. Out: `notifier.toml` with the names of deploy/notifier.toml.
//! Never: a value that is a secret.

use crate::keys::{APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, HUAWEI_CLIENT_ID, PUSH_CONTACT};
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
    pub huawei: SocketAddr,
    pub huawei_token_uri: String,
    pub webpush: SocketAddr,
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
        row_key_file = "keys/rows"

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

        [dispatch.huawei]
        client_secret_file = "keys/huawei.secret"
        ca_file = "keys/ca.pem"

        [dispatch.webpush]
        key_file = "keys/vapid"
        allowed_networks = ["127.0.0.0/8"]
        ca_file = "keys/ca.pem"

        [ops]
        // Tests wait for what happens, not for the minute.
        metrics_period = "0s"

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
        ("huawei", addresses.huawei),
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
    set(&mut settings, "dispatch.webpush.contact", PUSH_CONTACT);
    let port = Value::Integer(addresses.webpush.port().into());
    set(&mut settings, "dispatch.webpush.ports", Value::Array(vec![port]));
    set(&mut settings, "dispatch.huawei.client_id", HUAWEI_CLIENT_ID);
    set(
        &mut settings,
        "dispatch.huawei.token_uri",
        addresses.huawei_token_uri.as_str(),
    );
    for lane in ["apns", "apns-sandbox"] {
        set(&mut settings, &format!("dispatch.{lane}.topic"), APNS_TOPIC);
        set(&mut settings, &format!("dispatch.{lane}.key_id"), APNS_KEY_ID);
        set(&mut settings, &format!("dispatch.{lane}.team_id"), APNS_TEAM_ID);
    }
    settings
}

/// One `[[turn.server]]` of the notifier.
pub fn turn_server(operator: &str, urls: &[String], secret_file: &str) -> Value {
    let urls = urls.iter().map(|url| text(url)).collect();
    Value::Table(Table::from_iter([
        ("operator".to_owned(), text(operator)),
        ("urls".to_owned(), Value::Array(urls)),
        ("secret_file".to_owned(), text(secret_file)),
    ]))
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

/// Removes `section.key`, if it is there.
pub fn remove(settings: &mut Table, path: &str) {
    match path.split_once('.') {
        None => drop(settings.remove(path)),
        Some((section, rest)) => {
            if let Some(Value::Table(section)) = settings.get_mut(section) {
                remove(section, rest);
            }
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
