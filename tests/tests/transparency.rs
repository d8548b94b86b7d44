//! What the servers say of themselves, while they work: the audit, the page, the labels of the metrics.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::http::HttpClient;
use quietline_lab::lab::{Lab, LabSettings};
use quietline_lab::notifier::Notifier;
use quietline_lab::phone::{Phone, PushService, unix_seconds};
use quietline_lab::trial::{DAY, PATIENCE, ask, enrolled, receive, until_figure, watched};
use quietline_lab::turn::relay::Relay;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notifier_says_what_it_holds_and_nothing_of_whom() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path());
    settings.ready_within = PATIENCE;
    let mut lab = Lab::start(settings).await.unwrap();
    let mut phones = Vec::new();
    for service in PushService::ALL {
        let phone = enrolled(&lab, service).await;
        lab.send(&phone, 0, b"hello", DAY);
        receive(&lab, &phone).await;
        phones.push(phone);
    }

    // The gauge follows within a second.
    until_figure(&lab, "fanout_devices", "", |devices| devices == phones.len() as f64).await;

    let audit = audit_of(&lab);
    assert_eq!(audit["running"], true);
    assert_eq!(count(&audit, "Subscriptions"), phones.len() as u64);
    assert_eq!(count(&audit, "Devices in memory"), phones.len() as u64);
    assert_eq!(key_of(&audit, "Subscriptions"), id_of(&audit, "store.row_key_file"));
    for what in [
        "core dumps",
        "access by other processes",
        "key files",
        "TLS to push services",
        "TLS to seeds",
    ] {
        assert_eq!(fact(&audit, what), &Value::Bool(true), "{what}: {audit:#}");
    }
    // The lab wants its metrics at once, and has its keys beside its rows.
    for what in ["metrics", "keys and rows"] {
        assert_eq!(fact(&audit, what), &Value::Bool(false), "{what}: {audit:#}");
    }

    let page = HttpClient::new(lab.http_address()).get("/transparency").await.unwrap();
    assert_eq!(page.status, 200);
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(page.contains("<dd>&lt; 20, "), "{page}");
    assert!(
        !page.contains(&*folder.path().to_string_lossy()),
        "a path of this machine is on the page"
    );
    let metrics = lab.metrics().await.unwrap();
    labels_are_words_of_the_source(metrics.text());
    for phone in &phones {
        for text in [&page, &audit.to_string(), metrics.text()] {
            assert!(!text.contains(&phone.account_hex()) && !text.contains(phone.token.as_str()));
        }
    }

    assert!(
        lab.stop_notifier(PATIENCE)
            .await
            .unwrap()
            .is_some_and(|status| status.success())
    );
    let audit = audit_of(&lab);
    assert_eq!(audit["running"], false);
    assert_eq!(count(&audit, "Subscriptions"), phones.len() as u64);
    assert!(fact(&audit, "the process").is_null());
}

#[test]
fn a_relay_says_what_it_holds_and_nothing_of_whom() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::prepare(folder.path(), None, |_| {}).unwrap();
    let audit = |relay: &Relay| -> Value {
        let output = relay.command("audit").arg("--json").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(audit(&relay)["running"], false);
    relay.start(Duration::from_secs(60)).unwrap();
    let found = audit(&relay);
    assert_eq!(found["running"], true);
    for what in ["core dumps", "access by other processes", "key files", "TLS to clients"] {
        assert_eq!(fact(&found, what), &Value::Bool(true), "{what}: {found:#}");
    }
    let page = relay.tells("/transparency").unwrap();
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("default-src 'none'"),
        "{page}"
    );
    assert!(page.contains("<dd>&lt; 20, in memory only</dd>"), "{page}");
    labels_are_words_of_the_source(&relay.tells("/metrics").unwrap());
    let checked = relay.command("check").arg("--settings-only").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("a capable client gets X25519MLKEM768"), "{said}");
}

fn audit_of(lab: &Lab) -> Value {
    let output = Command::new(Notifier::find_binary(None).unwrap())
        .args(["audit", "--json", "--settings"])
        .arg(lab.settings_file())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(audit: &Value, what: &str) -> u64 {
    let held = audit["held"].as_array().unwrap();
    let holding = held.iter().find(|holding| holding["what"] == what).unwrap();
    let groups = holding["groups"].as_array().unwrap();
    groups.iter().map(|group| group["count"].as_u64().unwrap()).sum()
}

/// Under which key all of it is sealed.
fn key_of<'a>(audit: &'a Value, what: &str) -> &'a str {
    let held = audit["held"].as_array().unwrap();
    let holding = held.iter().find(|holding| holding["what"] == what).unwrap();
    let [group] = holding["groups"].as_array().unwrap().as_slice() else {
        panic!("{holding:#}");
    };
    group["protection"]["key"]
        .as_str()
        .unwrap_or_else(|| panic!("{group:#}"))
}

/// What rows call the key in the file of this setting.
fn id_of<'a>(audit: &'a Value, setting: &str) -> &'a str {
    let keys = audit["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["name"] == setting).unwrap();
    key["id"].as_str().unwrap()
}

fn fact<'a>(audit: &'a Value, what: &str) -> &'a Value {
    let facts = audit["facts"].as_array().unwrap();
    &facts.iter().find(|fact| fact["what"] == what).unwrap()["good"]
}

/// What came from a client, a node or a provider stands in no source.
fn labels_are_words_of_the_source(metrics: &str) {
    let words = words_of_the_source();
    let mut seen = 0;
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, rest)) = line.split_once('{') else {
            continue;
        };
        let (labels, _) = rest.rsplit_once('}').unwrap();
        for label in labels.split("\",") {
            let (key, value) = label.split_once("=\"").unwrap();
            let value = value.trim_end_matches('"');
            // The bounds of histograms are numbers of our own.
            if key != "le" && key != "quantile" {
                assert!(words.contains(value), "{line}: {value:?} is no word of the source");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "hardly any label was seen: {seen}");
}

/// Every string literal of what ships.
fn words_of_the_source() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in [
        "shared/src",
        "notifier/core/src",
        "notifier/src",
        "turn/core/src",
        "turn/src",
    ] {
        walk(&root.join(folder), &mut files);
    }
    let mut words = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for line in text.lines() {
            words.extend(line.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    words
}

#[test]
fn a_value_that_is_no_word_of_the_source_is_found() {
    let mut lines: String = (0..25)
        .map(|number| format!("a_total{{reason=\"refused\",le=\"{number}\"}} 1\n"))
        .collect();
    labels_are_words_of_the_source(&lines);
    lines.push_str("a_total{reason=\"05abcdef0123\"} 1\n");
    assert!(std::panic::catch_unwind(|| labels_are_words_of_the_source(&lines)).is_err());
}

/// Python reads the same files with the same key, by sqlite3 and libsodium; what it finds is what the audit says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_key_the_audit_says_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = LabSettings::in_folder(folder.path().join("lab"))
        .with("store.erase_after", "1s")
        .with("outbox.erase_after", "1s");
    settings.ready_within = PATIENCE;
    let mut lab = Lab::start(settings).await.unwrap();
    let mut phones = Vec::new();
    for number in 0..SOME {
        let phone = lab.phone(PushService::ALL[number % PushService::ALL.len()]);
        let mut item = phone.subscribe_item(unix_seconds());
        // Each of these leaves a mark beside its row.
        if number % 10 == 3 {
            item["binding"] = phone.binding(unix_seconds()).into();
        }
        assert_eq!(ask(&lab, "/subscribe", &item).await.1["success"], true);
        phones.push(phone);
    }
    for phone in &phones {
        watched(&lab, phone).await;
    }
    for phone in phones.split_off(SOME - GONE) {
        assert!(lab.unsubscribe(&phone).await.unwrap().is_success());
    }
    // It runs, and wakeups wait.
    lab.set_providers_down(true);
    for phone in &phones {
        lab.send(phone, 0, b"a message for the outbox", DAY);
    }
    until_figure(&lab, "outbox_entries", "", |entries| entries == phones.len() as f64).await;
    the_logs_are_empty(&lab).await;
    agrees(&lab, &phones, phones.len());

    // All was sent: its pages are free.
    lab.set_providers_down(false);
    until_figure(&lab, "outbox_entries", "", |entries| entries == 0.0).await;
    the_logs_are_empty(&lab).await;
    let read = agrees(&lab, &phones, 0);
    assert!(read["free_pages"].as_u64() > Some(0), "{read:#}");
    assert!(fact(&audit_of(&lab), "logs of changes").as_bool().unwrap());

    // Another key, and an end in the middle of work: the log stays, and the audit says so.
    let rotated = Command::new(Notifier::find_binary(None).unwrap())
        .args(["rotate-key", "--settings"])
        .arg(lab.settings_file())
        .output()
        .unwrap();
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    let last = enrolled(&lab, PushService::Firebase).await;
    lab.notifier().kill().await.unwrap();
    phones.push(last);
    let read = agrees(&lab, &phones, 0);
    let audit = audit_of(&lab);
    assert_eq!(
        fact(&audit, "logs of changes"),
        &Value::Bool(read["log_bytes"].as_u64() == Some(0)),
        "{audit:#}"
    );
}

const SOME: usize = 50;
const GONE: usize = 20;

/// Each figure of the audit is what the other reader finds; and the people it finds are those who subscribed.
fn agrees(lab: &Lab, phones: &[Phone], waiting: usize) -> Value {
    let audit = audit_of(lab);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/sealed_rows.py");
    let output = Command::new("python3")
        .arg(script)
        .args(["keys/rows", "data"].map(|name| lab.settings.folder.join(name)))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();

    let mut said = BTreeMap::new();
    for holding in audit["held"].as_array().unwrap() {
        for group in holding["groups"].as_array().unwrap() {
            if let (Some(key), Some(count @ 1..)) = (group["protection"]["key"].as_str(), group["count"].as_u64()) {
                said.insert(format!("{} under {key}", holding["what"].as_str().unwrap()), count);
            }
        }
    }
    let mut found: BTreeMap<String, u64> = serde_json::from_value(read["store"].clone()).unwrap();
    found.extend(serde_json::from_value::<BTreeMap<String, u64>>(read["outbox"].clone()).unwrap());
    let nodes_key = read["node_list"].as_str().unwrap();
    found.insert(format!("The list of storage nodes under {nodes_key}"), 1);
    assert_eq!(said, found, "{audit:#}");
    let key = id_of(&audit, "store.row_key_file");
    assert!(said.keys().all(|what| what.ends_with(key)), "{said:?} {key}");
    assert_eq!(said[&format!("Subscriptions under {key}")], phones.len() as u64);
    assert_eq!(
        said.get(&format!("Wakeups on their way under {key}")),
        (waiting > 0).then_some(&(waiting as u64))
    );

    let free = (
        read["free_pages"].as_u64().unwrap(),
        read["free_pages_holding"].as_u64().unwrap(),
    );
    let pages = says(&audit, "free pages");
    assert!(
        pages.ends_with(&format!("({} pages, {} of them hold something)", free.0, free.1)),
        "{pages} {free:?}"
    );
    assert_eq!(fact(&audit, "free pages"), &Value::Bool(free.1 == 0));
    let log = says(&audit, "logs of changes").replace(',', "");
    assert!(
        log.ends_with(&format!("(now {} bytes)", read["log_bytes"])),
        "{log} {read:#}"
    );
    assert_eq!(fact(&audit, "rows on disk"), &Value::Bool(true));

    let mut people: Vec<Value> = read["people"].as_array().unwrap().clone();
    let mut expected: Vec<Value> = phones
        .iter()
        .map(|phone| serde_json::json!([phone.account_hex(), hex::encode(phone.enc_key)]))
        .collect();
    for person in &mut people {
        let token = person.as_array_mut().unwrap().remove(1);
        let token = hex::decode(token.as_str().unwrap()).unwrap();
        let is_known = |phone: &Phone| {
            let own = hex::decode(&phone.token).unwrap_or_else(|_| phone.token.clone().into_bytes());
            token.windows(own.len()).any(|window| window == own)
        };
        assert!(phones.iter().any(is_known), "a token of nobody");
    }
    people.sort_by_key(Value::to_string);
    expected.sort_by_key(Value::to_string);
    assert_eq!(people, expected);
    read
}

async fn the_logs_are_empty(lab: &Lab) {
    let is_empty = |name: &str| {
        let log = std::fs::metadata(lab.settings.folder.join(name));
        log.is_ok_and(|log| log.len() == 0)
    };
    let emptied = async {
        while !["data/subscriptions.db-wal", "data/outbox.db-wal"]
            .iter()
            .all(|name| is_empty(name))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, emptied).await.expect("logs are emptied");
}

fn says(audit: &Value, what: &str) -> String {
    let facts = audit["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact["what"] == what).unwrap();
    fact["says"].as_str().unwrap().to_owned()
}
