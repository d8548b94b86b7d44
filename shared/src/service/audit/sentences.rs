//! What both servers say in the same words.
//!
//! In: what was found. Out: facts, holdings and sentences. Never: says more than was found.

use super::process::Process;
use super::{Adversary, Fact, Group, Holding, Key, KeyState, Place, Protection, Who};
use std::time::Duration;

/// Things in the memory of the running process; `count`: `None` if it does not say.
pub fn in_memory(what: &'static str, of: &'static str, count: Option<u64>, kept: &str) -> Holding {
    Holding {
        what,
        of,
        place: Place::Memory,
        file: None,
        groups: vec![Group {
            protection: Protection::Memory,
            count,
        }],
        kept: kept.to_owned(),
    }
}

/// `process`: `None` if none runs that answers.
pub fn facts(process: Option<&Process>, keys: &[Key], metrics_period: Duration) -> Vec<Fact> {
    let mut facts = process.map(Process::facts).unwrap_or_else(|| {
        vec![Fact {
            what: "the process",
            good: None,
            says: "none runs that answers: nothing can be said about its memory".to_owned(),
        }]
    });
    facts.extend([key_files(keys), metrics(metrics_period)]);
    facts
}

fn key_files(keys: &[Key]) -> Fact {
    let is_any = |wanted: &[KeyState]| keys.iter().any(|key| wanted.contains(&key.state));
    let (good, says) = if is_any(&[KeyState::OpenToOthers]) {
        (Some(false), "one can be read by other users of the machine")
    } else if is_any(&[KeyState::Missing, KeyState::Unreadable]) {
        (None, "one cannot be looked at")
    } else {
        (Some(true), "no other user of the machine reads them")
    };
    Fact {
        what: "key files",
        good,
        says: says.to_owned(),
    }
}

fn metrics(period: Duration) -> Fact {
    let says = match period.is_zero() {
        true => "show at once what a single account or client does".to_owned(),
        false => format!(
            "what a single account or client can move is shown every {}",
            humantime_serde::re::humantime::format_duration(period)
        ),
    };
    Fact {
        what: "metrics",
        good: Some(!period.is_zero()),
        says,
    }
}

/// How soon metrics tell.
pub fn moment(metrics_period: Duration) -> &'static str {
    match metrics_period.is_zero() {
        true => "at the moment it happens",
        false => "by the minute or coarser",
    }
}

/// Who has the disk, with what of the memory can come to lie there. `process`: `None` if none runs.
pub fn with_the_disk(learns: Vec<String>, does_not_learn: Vec<String>, process: Option<&Process>) -> Adversary {
    let mut adversary = Adversary {
        who: Who::Disk,
        learns,
        does_not_learn,
    };
    let Some(process) = process else { return adversary };
    for (is_safe, safe, open, unknown) in [
        (
            process.stays_in_memory(),
            "the memory: none of it can lie in swap",
            "those parts of the memory that lie in swap, keys among them",
            "perhaps parts of the memory, in swap: that could not be looked up",
        ),
        (
            process.leaves_no_core(),
            "a copy of the memory from a crash: none is written",
            "after a crash a copy of the whole memory",
            "perhaps a copy of the memory from a crash: that could not be looked up",
        ),
    ] {
        match is_safe {
            Some(true) => adversary.does_not_learn.push(safe.to_owned()),
            Some(false) => adversary.learns.push(open.to_owned()),
            None => adversary.learns.push(unknown.to_owned()),
        }
    }
    adversary
}
