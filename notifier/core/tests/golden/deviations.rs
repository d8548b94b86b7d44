//! Cases in which our answer differs from the incumbent's on purpose.

use serde_json::Value;
use std::collections::BTreeMap;

/// The entries of one golden file that are not used up yet, by case, and what was found wrong so far.
pub struct Deviations {
    listed: BTreeMap<String, Value>,
    faults: Vec<String>,
}

impl Deviations {
    pub fn of(file: &str) -> Self {
        let table: toml::Table = toml::from_str(include_str!("../../../../tests/vectors/deviations.toml")).unwrap();
        let entries = table.get("deviation").and_then(toml::Value::as_array).unwrap();
        let field = |entry: &toml::Value, key: &str| {
            let value = entry.get(key).and_then(toml::Value::as_str);
            value
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| panic!("an entry lacks {key}"))
                .to_owned()
        };
        let mut by_case = BTreeMap::new();
        for entry in entries {
            // Whole sections, and other files, are for other tests.
            if entry.get("case").is_none() || field(entry, "file") != file {
                continue;
            }
            let ours = serde_json::from_str(&field(entry, "ours")).unwrap();
            let (case, _row, _why) = (field(entry, "case"), field(entry, "row"), field(entry, "why"));
            assert!(by_case.insert(case.clone(), ours).is_none(), "{case} is listed twice");
        }
        Self {
            listed: by_case,
            faults: Vec::new(),
        }
    }

    /// Our answer must be the incumbent's, or differ from it just as listed.
    pub fn check(&mut self, case: &str, incumbents: &Value, ours: &Value) {
        let fault = match self.listed.remove(case) {
            None if ours == incumbents => return,
            None => "a deviation that is not listed",
            Some(_) if ours == incumbents => "listed, but no deviation",
            Some(listed) if *ours == listed => return,
            Some(_) => "another deviation than the one listed",
        };
        self.faults
            .push(format!("{case}: {fault}: ours {ours}, the incumbent's {incumbents}"));
    }

    /// Fails with all faults at once.
    pub fn finish(mut self) {
        self.faults
            .extend(self.listed.keys().map(|case| format!("{case}: listed, but no case")));
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}
