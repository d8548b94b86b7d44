//! The arrows of docs/architecture.md that manifests and clippy cannot hold, read from the `use` lines and paths of the source.
//!
//! - a core module imports only modules listed above it in its `lib.rs`;
//! - a file in a server's `src/` imports no other stage: only `app` joins;
//! - `expose()` stands only in the listed files;
//! - the lab's own source knows nothing of the product.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that write to a wire, a row or a provider, or compute with keys. Everything else carries values unopened.
const MAY_EXPOSE: &[&str] = &[
    "shared/src/crypto.rs",
    "shared/src/crypto/p256.rs",
    "shared/src/onion.rs",
    "shared/src/timed.rs",
    "notifier/core/src/account.rs",
    "notifier/core/src/confirm.rs",
    "notifier/core/src/endpoint.rs",
    "notifier/core/src/event.rs",
    "notifier/core/src/fanout.rs",
    "notifier/core/src/fanout/dedupe.rs",
    "notifier/core/src/seal/payload.rs",
    "notifier/core/src/seal/row.rs",
    "notifier/core/src/subscription/monitor.rs",
    "notifier/core/src/subscription/row.rs",
    "notifier/core/src/subscription/signature.rs",
    "notifier/core/src/webpush.rs",
    "notifier/src/app/relay.rs",
    "notifier/src/app/trial.rs",
    "notifier/src/dispatch/apns.rs",
    "notifier/src/dispatch/credential.rs",
    "notifier/src/dispatch/fcm.rs",
    "notifier/src/dispatch/huawei.rs",
    "notifier/src/dispatch/huawei/signed.rs",
    "notifier/src/dispatch/oauth.rs",
    "notifier/src/dispatch/webpush.rs",
    "notifier/src/dispatch/webpush/connections.rs",
    "notifier/src/http/limits.rs",
    "notifier/src/store.rs",
    "turn/core/src/auth.rs",
    "turn/src/offer.rs",
    "turn/src/settings.rs",
    "turn/src/settings/certificate.rs",
];

/// Modules of `notifier/src` that are tools or wiring, not stages.
const NOTIFIER_TOOLS: &[&str] = &["app", "settings", "command", "sqlite", "tls", "main", "lib", "clock"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// What ships: a module's tests may stand in a `tests.rs` or in a folder `tests` of its own, and open what they made up.
fn sources(folder: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("tests") || path.ends_with("tests.rs") {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "no source in {folder}");
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (
                path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
                shipped(&text),
            )
        })
        .collect()
}

/// Without comments and without the tests at the end of a file.
fn shipped(text: &str) -> String {
    text.split("#[cfg(test)]")
        .next()
        .unwrap()
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first word after each `crate::`, also within `crate::{a::b, c}`.
fn imports(text: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut found = Vec::new();
    for part in text.split("crate::").skip(1) {
        if let Some(group) = part.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for character in group.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(word(item.trim()));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(character);
            }
            found.push(word(item.trim()));
        } else {
            found.push(word(part));
        }
    }
    found.retain(|name| !name.is_empty() && name.chars().next().is_some_and(char::is_lowercase));
    found
}

/// `notifier/src/watcher/link.rs` belongs to `watcher`.
fn stage(path: &str, folder: &str) -> String {
    let rest = path.strip_prefix(folder).unwrap().trim_start_matches('/');
    rest.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

fn core_faults(folder: &str) -> Vec<String> {
    let files = sources(folder);
    let order: Vec<String> = files[&format!("{folder}/lib.rs")]
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("pub mod ")
                .or_else(|| line.trim().strip_prefix("mod "))
        })
        .map(|name| name.trim_end_matches(';').to_owned())
        .collect();
    let place = |name: &str| order.iter().position(|module| module == name);
    let mut faults = Vec::new();
    for (path, text) in &files {
        let own = stage(path, folder);
        if own == "lib" {
            continue;
        }
        for import in imports(text) {
            if import == own {
                continue;
            }
            if let (Some(theirs), Some(ours)) = (place(&import), place(&own))
                && theirs > ours
            {
                faults.push(format!("{path} imports {import}, which is listed below it"));
            }
        }
    }
    faults
}

fn stage_faults(folder: &str, tools: &[&str]) -> Vec<String> {
    let files = sources(folder);
    let mut faults = Vec::new();
    for (path, text) in &files {
        let own = stage(path, folder);
        if ["app", "settings", "command", "main", "lib"].contains(&own.as_str()) {
            continue;
        }
        for import in imports(text) {
            let is_stage =
                files.keys().any(|other| stage(other, folder) == import) && !tools.contains(&import.as_str());
            if import != own && is_stage {
                faults.push(format!("{path} imports the stage {import}: only app joins"));
            }
        }
    }
    faults
}

#[test]
fn a_core_module_imports_only_what_is_listed_above_it() {
    let mut faults = core_faults("notifier/core/src");
    faults.extend(core_faults("turn/core/src"));
    // The relay's shell keeps the same order: its shards join its stages.
    faults.extend(core_faults("turn/src"));
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The relay's shell is one thread from socket to socket: its modules stand on each other, as a core's do.
#[test]
fn a_module_of_the_relay_imports_only_what_is_listed_above_it() {
    let faults = core_faults("turn/src");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn no_packet_of_the_relay_meets_a_lock_or_a_shared_map() {
    let files = sources("turn/src");
    for file in ["sys", "sockets", "plane", "shard"] {
        let text = &files[&format!("turn/src/{file}.rs")];
        for never in [
            "Mutex",
            "RwLock",
            "Condvar",
            "HashMap",
            "BTreeMap",
            "dashmap",
            "tokio::spawn",
        ] {
            assert!(!text.contains(never), "{file}.rs has a {never}");
        }
    }
}

/// Only the file that says so.
#[test]
fn only_the_system_calls_of_the_relay_are_unsafe() {
    for folder in [
        "shared/src",
        "notifier/core/src",
        "notifier/src",
        "turn/core/src",
        "turn/call/src",
        "turn/src",
    ] {
        for (path, text) in sources(folder) {
            let is_unsafe = text.contains("unsafe {") || text.contains("unsafe impl") || text.contains("unsafe fn");
            assert!(!is_unsafe || path == "turn/src/sys.rs", "{path} has unsafe code");
        }
    }
}

#[test]
fn only_app_joins_stages() {
    let faults = stage_faults("notifier/src", NOTIFIER_TOOLS);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn private_values_are_opened_only_in_the_listed_files() {
    let mut found = Vec::new();
    for folder in [
        "shared/src",
        "notifier/core/src",
        "notifier/src",
        "turn/core/src",
        "turn/src",
    ] {
        for (path, text) in sources(folder) {
            if text.contains(".expose()") || text.contains(".into_exposed()") {
                found.push(path);
            }
        }
    }
    let listed = |path: &String| MAY_EXPOSE.contains(&path.as_str());
    let unlisted: Vec<_> = found.iter().filter(|path| !listed(path)).collect();
    assert!(
        unlisted.is_empty(),
        "these open private values and are not listed: {unlisted:#?}"
    );
    let unused: Vec<_> = MAY_EXPOSE
        .iter()
        .filter(|path| !found.iter().any(|other| other == *path))
        .collect();
    assert!(unused.is_empty(), "these are listed and open nothing: {unused:#?}");
}

#[test]
fn the_lab_shares_no_code_with_the_product() {
    let manifest = fs::read_to_string(root().join("tests/Cargo.toml")).unwrap();
    let own = manifest.split("[dev-dependencies]").next().unwrap();
    for product in [
        "notifier-core",
        "turn-core",
        "quietline-shared",
        "quietline-notifier",
        "quietline-turn",
    ] {
        assert!(!own.contains(product), "the lab's own source depends on {product}");
    }
    for (path, text) in sources("tests/src") {
        for product in [
            "notifier_core",
            "turn_core",
            "quietline_shared",
            "quietline_notifier",
            "quietline_turn",
        ] {
            assert!(!text.contains(product), "{path} names {product}");
        }
    }
}

#[test]
fn a_server_never_links_a_foreign_peer() {
    for server in ["shared", "notifier/core", "notifier", "turn/core", "turn"] {
        let manifest = fs::read_to_string(root().join(server).join("Cargo.toml")).unwrap();
        let linked = manifest.split("[dev-dependencies]").next().unwrap();
        for foreign in ["zmq", "libsodium", "rcgen", "stun-types", "turn-types"] {
            assert!(!linked.contains(foreign), "{server} links {foreign}");
        }
    }
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let text = "use crate::one::Thing;\nuse crate::{two::A, three::{b, c}, four};\nlet x = crate::five::f(); // crate::no::comment";
    assert_eq!(imports(&shipped(text)), ["one", "two", "three", "four", "five"]);
}
