//! The arrows of docs/architecture.md that manifests and clippy cannot hold, read from the `use` lines and paths of the source.
//!
//! - a core module imports only modules listed above it in its `lib.rs`;
//! - a file in a server's `src/` imports no other stage: only `app` joins;
//! - `expose()` stands only in the listed files;
//! - the lab's own source knows nothing of the product.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "arrows/leaks.rs"]
mod leaks;

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
    "notifier/core/src/outbox/queue.rs",
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
    "notifier/src/dispatch/oauth.rs",
    "notifier/src/dispatch/signed.rs",
    "notifier/src/dispatch/webpush.rs",
    "notifier/src/dispatch/webpush/connections.rs",
    "notifier/src/http/limits.rs",
    "notifier/src/keyring/file.rs",
    "notifier/src/store.rs",
    "turn/core/src/auth.rs",
    "turn/src/offer.rs",
    "turn/src/settings.rs",
    "turn/src/settings/certificate.rs",
];

/// Modules of `notifier/src` that are tools or wiring, not stages.
const NOTIFIER_TOOLS: &[&str] = &[
    "app", "settings", "command", "keyring", "sqlite", "tls", "main", "lib", "clock",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// What ships: a module's tests may stand in a `tests.rs` or in a folder `tests` of its own, and open what they made up; so may a module
/// that only tests have.
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
    let texts: Vec<_> = found
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap(), path))
        .collect();
    let only_tests: Vec<PathBuf> = texts
        .iter()
        .flat_map(|(text, path)| modules_of_tests(text).map(|name| folder_of_modules(path).join(name)))
        .collect();
    texts
        .into_iter()
        .filter(|(_, path)| {
            !only_tests
                .iter()
                .any(|module| path.with_extension("").starts_with(module))
        })
        .map(|(text, path)| {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            (name.to_owned(), shipped(&text))
        })
        .collect()
}

/// `#[cfg(test)] mod fakes;`
fn modules_of_tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let rest = rest
            .trim_start()
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub(crate) ");
        let (name, _) = rest.strip_prefix("mod ")?.split_once(';')?;
        (!name.contains(char::is_whitespace)).then_some(name)
    })
}

fn folder_of_modules(file: &Path) -> PathBuf {
    let is_root = ["lib.rs", "main.rs"].iter().any(|name| file.ends_with(name));
    if is_root {
        file.parent().unwrap().to_path_buf()
    } else {
        file.with_extension("")
    }
}

/// Without comments and without the tests at the end of a file.
fn shipped(text: &str) -> String {
    let end = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\n#[path"]
        .iter()
        .filter_map(|tests| text.find(tests))
        .min();
    let text = &text[..end.unwrap_or(text.len())];
    text.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

/// A `//` within a text is none.
fn without_comment(line: &str) -> &str {
    let (mut is_text, mut before) = (false, ' ');
    for (at, character) in line.char_indices() {
        match character {
            '"' if before != '\\' && !line[..at].ends_with("b'") => is_text = !is_text,
            '/' if !is_text && before == '/' => return &line[..at - 1],
            _ => {}
        }
        before = if before == '\\' { ' ' } else { character };
    }
    line
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
    for file in ["sys", "sockets", "sockets/sending", "plane", "shard"] {
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

/// Only the files that say so, and the folder of one.
#[test]
fn only_the_system_calls_of_the_relay_and_one_of_the_allocator_are_unsafe() {
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
            let may_be = path == "turn/src/sys.rs" || path == "shared/src/service/heap.rs";
            let may_be = may_be || path.starts_with("turn/src/sys/");
            assert!(!is_unsafe || may_be, "{path} has unsafe code");
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
    let address = r#"let a = "https://x"; b() // c"#;
    assert_eq!(without_comment(address), r#"let a = "https://x"; b() "#);
    let whole = "a\n#[cfg(test)]\nfn helper() {}\nb\n#[cfg(test)]\nmod tests {\nc";
    assert_eq!(shipped(whole), "a\n#[cfg(test)]\nfn helper() {}\nb");
    assert_eq!(
        modules_of_tests("#[cfg(test)]\nmod fakes;\n#[cfg(test)]\nmod tests {").collect::<Vec<_>>(),
        ["fakes"]
    );
    let text = "use crate::one::Thing;\nuse crate::{two::A, three::{b, c}, four};\nlet x = crate::five::f(); // crate::no::comment";
    assert_eq!(imports(&shipped(text)), ["one", "two", "three", "four", "five"]);
}
