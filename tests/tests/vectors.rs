//! Every section of the golden data is run by a test that is named here, or is not ours to run and says why in
//! `tests/vectors/deviations.toml`; a case that nobody runs fails here, and so does an entry that is not used.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// File, section, how many cases, and the test's source, which names the section.
const RUN: &[(&str, &str, usize, &str)] = &[
    ("onion-v4.json", "requests", 41, "notifier/tests/http/vectors.rs"),
    ("onion-v4.json", "outer", 34, "shared/src/onion.rs"),
    ("onion-v4.json", "built", 4, "shared/src/onion.rs"),
    ("onion-v4.json", "replies", 11, "shared/src/onion.rs"),
    ("onion-v4.json", "derived_keys", 2, "shared/src/onion.rs"),
    (
        "subscriptions.json",
        "cases",
        90,
        "notifier/core/tests/golden/subscriptions.rs",
    ),
    (
        "subscriptions.json",
        "static_signatures",
        18,
        "notifier/core/tests/golden/subscriptions.rs",
    ),
    (
        "subscriptions.json",
        "ed25519_to_session_id",
        16,
        "notifier/core/tests/golden/subscriptions.rs",
    ),
    (
        "subscriptions.json",
        "ed25519_special",
        7,
        "notifier/core/tests/golden/subscriptions.rs",
    ),
    (
        "push-payload.json",
        "cases",
        24,
        "notifier/core/tests/golden/push_payload.rs",
    ),
    (
        "push-payload.json",
        "failures",
        5,
        "notifier/core/tests/golden/push_payload.rs",
    ),
    (
        "swarm-mapping.json",
        "cases",
        43,
        "notifier/core/tests/golden/swarm_mapping.rs",
    ),
    (
        "monitor.json",
        "hivemind_requests",
        5,
        "notifier/core/tests/golden/monitor.rs",
    ),
    (
        "monitor.json",
        "storage_server_requests",
        37,
        "notifier/core/src/watch/reply.rs",
    ),
    (
        "monitor.json",
        "notifications",
        4,
        "notifier/core/tests/notifications.rs",
    ),
    (
        "monitor.json",
        "hivemind_notify",
        22,
        "notifier/core/tests/notifications.rs",
    ),
    ("oxenmq-frames.json", "wire", 4, "notifier/core/src/omq/vectors.rs"),
    (
        "oxenmq-frames.json",
        "pure_client_variations",
        8,
        "notifier/core/src/omq/vectors.rs",
    ),
    (
        "oxenmq-frames.json",
        "client_scenarios",
        21,
        "notifier/core/src/omq/vectors.rs",
    ),
    (
        "oxenmq-frames.json",
        "listener_scenarios",
        23,
        "notifier/core/src/omq/vectors.rs",
    ),
    (
        "oxenmq-frames.json",
        "addresses",
        27,
        "notifier/core/src/omq/vectors.rs",
    ),
];

/// How to read a file; no cases.
const PROSE: &[&str] = &["about", "sources", "quirk", "upstream_quirk", "fill_rule"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn files() -> Vec<(String, Value)> {
    let mut files: Vec<_> = fs::read_dir(root().join("tests/vectors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

fn deviations() -> Vec<toml::Table> {
    let text = fs::read_to_string(root().join("tests/vectors/deviations.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let entries = table["deviation"].as_array().unwrap();
    entries.iter().map(|entry| entry.as_table().unwrap().clone()).collect()
}

fn text(entry: &toml::Table, key: &str) -> Option<String> {
    entry
        .get(key)
        .and_then(toml::Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

#[test]
fn every_section_is_run_whole_or_is_listed_as_not_ours() {
    let not_ours: BTreeSet<_> = deviations()
        .iter()
        .filter_map(|entry| Some((text(entry, "file")?, text(entry, "section")?)))
        .collect();
    let mut seen = BTreeSet::new();
    for (file, content) in files() {
        for (section, cases) in content.as_object().unwrap() {
            if PROSE.contains(&section.as_str()) {
                continue;
            }
            let run = RUN.iter().find(|(name, part, ..)| *name == file && part == section);
            let listed = not_ours.contains(&(file.clone(), section.clone()));
            match run {
                Some((_, _, count, _)) => {
                    assert!(!listed, "{file} {section} is run and listed as not ours");
                    assert_eq!(
                        cases.as_array().unwrap().len(),
                        *count,
                        "{file} {section} has other cases than are run"
                    );
                }
                None => assert!(listed, "nobody runs {file} {section}"),
            }
            seen.insert((file.clone(), section.clone()));
        }
    }
    for (file, section, ..) in RUN {
        assert!(
            seen.contains(&((*file).to_owned(), (*section).to_owned())),
            "there is no {file} {section}"
        );
    }
    assert!(not_ours.is_subset(&seen), "listed sections that do not exist");
    let cases: usize = RUN.iter().map(|(_, _, count, _)| count).sum();
    assert_eq!(cases, 446);
}

#[test]
fn the_tests_that_run_a_section_exist_and_name_it() {
    for (file, section, _, source) in RUN {
        let code = fs::read_to_string(root().join(source)).unwrap_or_else(|_| panic!("{source} is missing"));
        assert!(code.contains(section), "{source} does not name {section} of {file}");
    }
}

#[test]
fn every_deviation_says_its_row_and_why_and_belongs_to_a_file_that_is_run() {
    let known: BTreeSet<_> = RUN.iter().map(|(file, ..)| (*file).to_owned()).collect();
    for entry in deviations() {
        let file = text(&entry, "file").expect("a file");
        assert!(known.contains(&file), "{file}");
        assert!(
            text(&entry, "case").is_some() != text(&entry, "section").is_some(),
            "{file}: a case or a section"
        );
        assert!(text(&entry, "row").is_some_and(|row| row.starts_with('Q') || row.starts_with("wire §")));
        assert!(text(&entry, "why").is_some());
    }
}
