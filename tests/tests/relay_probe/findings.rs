//! What a probe found: each check has a name, and the names of those that failed are kept.

use quietline_lab::turn::server::Site;

/// Failed checks, by name, with what was seen instead.
#[derive(Default)]
pub struct Findings {
    failed: Vec<(String, String)>,
    checks: usize,
}

impl Findings {
    pub fn that(&mut self, name: impl Into<String>, holds: bool) {
        self.outcome(name, if holds { Ok(()) } else { Err("it is not so".to_owned()) });
    }

    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: impl Into<String>, seen: T, wanted: T) {
        let outcome = if seen == wanted {
            Ok(())
        } else {
            Err(format!("{seen:?} instead of {wanted:?}"))
        };
        self.outcome(name, outcome);
    }

    pub fn outcome(&mut self, name: impl Into<String>, outcome: Result<(), String>) {
        self.checks += 1;
        if let Err(seen) = outcome {
            self.failed.push((name.into(), seen));
        }
    }

    /// Names of the checks that failed.
    pub fn names(&self) -> Vec<&str> {
        self.failed.iter().map(|(name, _)| &**name).collect()
    }

    pub fn checks(&self) -> usize {
        self.checks
    }

    /// Nothing was found, and the relay lives and has not panicked.
    ///
    /// # Panics
    /// Otherwise.
    pub fn conclude(mut self, mut site: Site) {
        assert!(self.checks > 0, "nothing was asked");
        self.that("the relay is alive", site.is_running());
        self.that("it did not panic", !site.log().contains("panicked"));
        assert!(self.failed.is_empty(), "\n{}\n{}", self.report(), site.log());
    }

    pub fn report(&self) -> String {
        let lines: Vec<_> = self
            .failed
            .iter()
            .map(|(name, seen)| format!("  {name}: {seen}"))
            .collect();
        lines.join("\n")
    }
}
