//! What this relay holds, looked up in its own files and its own process.
//!
//! In: settings, what the running process says. Out: an `Audit`. Never: an address, a name, or anything of one call.

use crate::settings::{self, Settings};
use quietline_shared::service::audit::live::Live;
use quietline_shared::service::audit::process::Process;
use quietline_shared::service::audit::{Adversary, Audit, Fact, Holding, Scale, Who, files, sentences};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What an audit must know of the settings.
#[derive(Clone, Debug)]
pub struct View {
    ops: SocketAddr,
    keys: Vec<(&'static str, PathBuf)>,
    has_timed: bool,
    has_users: bool,
    tls: Option<String>,
    metrics_period: Duration,
}

impl View {
    /// `path`: where the settings are from, as they do not keep the paths of secrets.
    pub fn of(settings: &Settings, path: &Path) -> Self {
        let keys = settings::secret_files(path);
        let has = |name| keys.iter().any(|(known, _)| *known == name);
        Self {
            ops: settings.fixed.ops.listen,
            has_timed: has(settings::TIMED_SECRET),
            has_users: has(settings::USER_PASSWORD),
            tls: settings.key_exchange(),
            metrics_period: settings.fixed.ops.metrics_period,
            keys,
        }
    }
}

/// As the operator asks for it: exact, and with what the running relay says, if one answers.
pub async fn audit_now(view: &View) -> Audit {
    let live = Live::ask(view.ops).await;
    audit(view, live.as_ref(), Scale::Exact)
}

/// Looks everything up. `live`: what the running process says, if one runs.
pub fn audit(view: &View, live: Option<&Live>, scale: Scale) -> Audit {
    let process = live.and_then(|live| Some(Process::of(live.process_id()?, live.dumpable())));
    let keys = view
        .keys
        .iter()
        .map(|(name, file)| files::key(name, purpose(name), file, None));
    let mut audit = Audit {
        server: "quietline-turn",
        version: env!("CARGO_PKG_VERSION"),
        at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
        running: live.is_some(),
        held: live.map(in_memory).unwrap_or_default(),
        keys: keys.collect(),
        facts: vec![],
        adversaries: vec![],
    };
    audit.facts = facts(view, &audit, process.as_ref());
    audit.adversaries = adversaries(view, &audit, process.as_ref(), scale);
    audit
}

fn purpose(name: &str) -> &'static str {
    match name {
        settings::TIMED_SECRET => "makes credentials that name nobody",
        settings::USER_PASSWORD => "lets in whoever has it",
        _ => "shows that it is us, over TLS",
    }
}

fn in_memory(live: &Live) -> Vec<Holding> {
    [
        (
            ALLOCATIONS,
            "about one for each end of a call: the client's address, its relayed port, its peers' addresses, a key",
            "allocation_live",
            "until the client ends it or stops refreshing it; overwritten then",
        ),
        (
            "TCP and TLS clients",
            "a client's address and a buffer",
            "streams_open",
            "while they are connected",
        ),
    ]
    .into_iter()
    .map(|(what, of, metric, kept)| sentences::in_memory(what, of, live.sum(metric), kept))
    .collect()
}

const ALLOCATIONS: &str = "Live allocations";

fn facts(view: &View, audit: &Audit, process: Option<&Process>) -> Vec<Fact> {
    let mut facts = sentences::facts(process, &audit.keys, view.metrics_period);
    facts.push(match &view.tls {
        Some(group) => Fact {
            what: "TLS to clients",
            good: Some(group == settings::POST_QUANTUM),
            says: format!("a client that knows it gets {group}"),
        },
        None => Fact {
            what: "TLS to clients",
            good: Some(false),
            says: "there is none: the network before the relay sees usernames".to_owned(),
        },
    });
    facts
}

fn adversaries(view: &View, audit: &Audit, process: Option<&Process>, scale: Scale) -> Vec<Adversary> {
    let disk = vec!["that a relay runs here, where, and by which rules".to_owned()];
    let not_disk = vec!["anything of a call: nothing of one is written".to_owned()];
    let mut with_key = Vec::new();
    if view.has_timed {
        with_key.push("how to make credentials, and so to use the relay; not to whom any was given".to_owned());
    }
    if view.has_users {
        with_key.push("names and passwords of static users: a name that is a person's names that person".to_owned());
    }
    if view.tls.is_some() {
        with_key.push("how to pose as this relay; recorded TLS stays closed".to_owned());
    }
    let live = audit.held.iter().find(|holding| holding.what == ALLOCATIONS);
    let memory = match live {
        Some(live) => {
            let count = live.count(|_| true);
            let count = count.map_or_else(|| "an unknown number of".to_owned(), |count| scale.count(count));
            vec![
                format!("{count} live allocations: which address sends to which, how much, and under which username"),
                "every key of this relay".to_owned(),
            ]
        }
        None => vec!["nothing: no process runs that answers".to_owned()],
    };
    let moment = sentences::moment(view.metrics_period);
    let no_media = "what is said: it is encrypted from end to end";
    let adversary = |who, learns, does_not_learn: &[&str]| Adversary {
        who,
        learns,
        does_not_learn: does_not_learn.iter().map(|text| (*text).to_owned()).collect(),
    };
    vec![
        sentences::with_the_disk(disk, not_disk, process),
        adversary(Who::DiskAndKey, with_key, &["calls, earlier or under way"]),
        adversary(Who::Memory, memory, &[no_media, "calls that have ended: their memory is overwritten"]),
        adversary(
            Who::Logs,
            vec![format!("counts of all clients together, {moment}; starts, stops, faults")],
            &["addresses, ports, names, peers: no line and no label has one"],
        ),
        adversary(
            Who::Provider,
            vec![
                "the network or host we run on: addresses, moments and sizes of packets at both sides of the relay, and so who calls whom"
                    .to_owned(),
            ],
            &[no_media],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn view(folder: &Path) -> View {
        let secret = folder.join("secret");
        std::fs::write(&secret, "0f1e2d3c4b5a69788796a5b4c3d2e1f0").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        View {
            ops: SocketAddr::from(([127, 0, 0, 1], 9)),
            keys: vec![(settings::TIMED_SECRET, secret)],
            has_timed: true,
            has_users: false,
            tls: Some(settings::POST_QUANTUM.to_owned()),
            metrics_period: Duration::from_secs(60),
        }
    }

    fn fact<'a>(audit: &'a Audit, what: &str) -> &'a Fact {
        audit.facts.iter().find(|fact| fact.what == what).unwrap()
    }

    fn learns(audit: &Audit, who: Who) -> String {
        let found = audit.adversaries.iter().find(|adversary| adversary.who == who).unwrap();
        found.learns.join("\n")
    }

    #[test]
    fn each_sentence_follows_from_what_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut view = view(folder.path());
        let live = Live::from_text(format!(
            "service_process_id {}\nservice_dumpable 0\nallocation_live 23\n",
            std::process::id()
        ));
        let good = audit(&view, Some(&live), Scale::Exact);
        assert!(good.running);
        assert_eq!(fact(&good, "core dumps").good, Some(true));
        assert_eq!(fact(&good, "key files").good, Some(true));
        assert_eq!(fact(&good, "TLS to clients").good, Some(true));
        assert!(learns(&good, Who::Memory).starts_with("23 live allocations"));
        assert!(!learns(&good, Who::DiskAndKey).contains("passwords"));
        let public = audit(&view, Some(&live), Scale::Rounded);
        assert!(learns(&public, Who::Memory).starts_with("about 20 live allocations"));

        view.has_users = true;
        view.tls = None;
        view.metrics_period = Duration::ZERO;
        let secret = folder.path().join("secret");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
        let dumpable = Live::from_text(format!(
            "service_process_id {}\nservice_dumpable 1\n",
            std::process::id()
        ));
        let bad = audit(&view, Some(&dumpable), Scale::Exact);
        for what in ["access by other processes", "key files", "metrics", "TLS to clients"] {
            assert_eq!(fact(&bad, what).good, Some(false), "{what}");
        }
        assert!(learns(&bad, Who::DiskAndKey).contains("passwords"));
        assert!(learns(&bad, Who::Logs).contains("at the moment it happens"));
    }

    #[test]
    fn a_relay_that_does_not_run_holds_nothing_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(&view(folder.path()), None, Scale::Exact);
        assert!(!audit.running && audit.held.is_empty());
        assert_eq!(fact(&audit, "the process").good, None);
        assert!(learns(&audit, Who::Memory).starts_with("nothing"));
    }
}
