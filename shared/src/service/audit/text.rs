//! The audit as an operator reads it.
//!
//! In: an audit. Out: lines. Never: shortens.

use super::{Audit, KeyState, Place, Scale};
use std::fmt::{self, Display, Formatter};

impl Display for Audit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let running = if self.running { "runs" } else { "does not run" };
        writeln!(f, "{} {}: {running}", self.server, self.version)?;

        writeln!(f, "\nWhat is held")?;
        for holding in &self.held {
            let place = match holding.place {
                Place::Disk => "on disk",
                Place::Memory => "in memory",
            };
            writeln!(f, "  {} ({place}): {}", holding.what, holding.of)?;
            if let Some(file) = &holding.file {
                writeln!(f, "    file: {}", file.display())?;
            }
            if holding.groups.is_empty() {
                writeln!(f, "    none")?;
            }
            for group in &holding.groups {
                let count = group
                    .count
                    .map_or_else(|| "not counted".to_owned(), |count| Scale::Exact.count(count));
                writeln!(f, "    {count} {}", group.protection.words())?;
            }
            writeln!(f, "    kept: {}", holding.kept)?;
        }

        writeln!(f, "\nKeys")?;
        for key in &self.keys {
            let id = key.id.as_ref().map_or_else(String::new, |id| format!(", id {id}"));
            let state = match key.state {
                KeyState::OwnerOnly => "only its owner reads it",
                KeyState::OpenToOthers => "NOT GOOD: other users of this machine can read it",
                KeyState::Missing => "NOT GOOD: is missing",
                KeyState::Unreadable => "cannot be read by who runs this audit",
            };
            writeln!(f, "  {}: {}{id}", key.name, key.purpose)?;
            writeln!(f, "    file: {}, {state}", key.file.display())?;
            if key.beside_data == Some(true) {
                writeln!(f, "    lies on the same disk as what it protects")?;
            }
        }

        writeln!(f, "\nThe process and its surroundings")?;
        for fact in &self.facts {
            let mark = match fact.good {
                Some(true) => "good",
                Some(false) => "NOT GOOD",
                None => "unknown",
            };
            writeln!(f, "  {mark}: {}: {}", fact.what, fact.says)?;
        }

        writeln!(f, "\nWho would learn what")?;
        for adversary in &self.adversaries {
            writeln!(f, "  {}", adversary.who.words())?;
            for line in &adversary.learns {
                writeln!(f, "    learns: {line}")?;
            }
            for line in &adversary.does_not_learn {
                writeln!(f, "    does not learn: {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;

    #[test]
    fn the_operator_sees_exact_numbers_files_and_what_is_not_good() {
        let text = sample().to_string();
        for line in [
            "quietline-test 0.0.0: runs",
            "    7 in plain",
            "    123,456 sealed under row key 00c0ffee",
            "    not counted in memory only",
            "    file: /var/lib/test/rows.db",
            "  store.lookup_key_file: names of rows, id 1a2b3c4d",
            "    file: /etc/test/keys/lookup, NOT GOOD: other users of this machine can read it",
            "    lies on the same disk as what it protects",
            "  NOT GOOD: swap: 12 kB lie in swap",
            "  unknown: TLS: cannot be told",
            "  Somebody with the disk",
            "    learns: 7 subscriptions",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
