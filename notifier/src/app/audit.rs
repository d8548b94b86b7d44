//! What this notifier holds, looked up in its own files and its own process.
//!
//! In: settings, what the running process says. Out: an `Audit`. Never: takes the settings' word for what a file holds.

mod opened;
mod remains;

use crate::keyring::{self, KeyId, Keyring};
use crate::settings::Settings;
use crate::sqlite::census::{self, Rows, Table};
use crate::{dispatch, watcher};
use notifier_core::account::Service;
use notifier_core::seal::{Padding, Sealed};
use notifier_core::subscription::Subscription;
use opened::Kind;
use quietline_shared::service::audit::live::Live;
use quietline_shared::service::audit::process::Process;
use quietline_shared::service::audit::{
    Adversary, Audit, Fact, Group, Holding, Key, Place, Protection, Scale, Who, files, sentences,
};
use quietline_shared::service::telemetry::Level;
use remains::{FreePages, Remains};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an audit must know of the settings.
#[derive(Clone, Debug)]
pub struct View {
    pub ops: SocketAddr,
    store: PathBuf,
    outbox: PathBuf,
    node_list: PathBuf,
    keys: Vec<KeyFile>,
    services: Vec<(Service, Duration)>,
    padding: Padding,
    log: Level,
    metrics_period: Duration,
    direct: bool,
    nodes_per_swarm: usize,
    dedupe_window: Duration,
    /// After which time a log of changes is emptied; the longer one of both files.
    erase_after: Duration,
}

#[derive(Clone, Debug)]
struct KeyFile {
    name: &'static str,
    purpose: &'static str,
    path: PathBuf,
    kind: KeyKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    /// Protects rows of the store.
    Rows,
    /// Seals rows; the file may hold an older key as well, and rows name theirs.
    Ring,
    /// 32 random bytes for something else.
    Random,
    /// Given by a provider.
    Credential,
}

impl View {
    pub fn of(settings: &Settings) -> Self {
        let dispatch = &settings.dispatch;
        let mut keys = vec![
            KeyFile {
                name: "http.onion_key_file",
                purpose: "opens onion requests, also recorded ones: the onion layer has no forward secrecy",
                path: settings.http.onion_key_file.clone(),
                kind: KeyKind::Random,
            },
            KeyFile {
                name: "watcher.key_file",
                purpose: "shows storage nodes that it is us",
                path: settings.watcher.key_file.clone(),
                kind: KeyKind::Random,
            },
            KeyFile {
                name: "store.lookup_key_file",
                purpose: "names of rows and marks: without it no guess can be tried on them",
                path: settings.store.lookup_key_file.clone(),
                kind: KeyKind::Rows,
            },
            KeyFile {
                name: "store.row_key_file",
                purpose: "opens every sealed row, entry of the outbox and the kept node list",
                path: settings.row_key_file.clone(),
                kind: KeyKind::Ring,
            },
        ];
        let mut credential = |name, path: &Option<PathBuf>| {
            keys.extend(path.clone().map(|path| KeyFile {
                name,
                purpose: "pushes to any token of our app",
                path,
                kind: KeyKind::Credential,
            }));
        };
        for (section, names) in [
            (
                &dispatch.apns,
                ["dispatch.apns.key_file", "dispatch.apns.certificate_key_file"],
            ),
            (
                &dispatch.apns_sandbox,
                [
                    "dispatch.apns-sandbox.key_file",
                    "dispatch.apns-sandbox.certificate_key_file",
                ],
            ),
        ] {
            let [key, certificate] = names;
            credential(key, &section.as_ref().and_then(|one| one.key_file.clone()));
            credential(
                certificate,
                &section.as_ref().and_then(|one| one.certificate_key_file.clone()),
            );
        }
        let firebase = dispatch.firebase.as_ref().map(|one| one.service_account_file.clone());
        credential("dispatch.firebase.service_account_file", &firebase);
        let huawei = dispatch.huawei.as_ref();
        let secret = huawei.and_then(|one| one.client_secret_file.clone());
        credential("dispatch.huawei.client_secret_file", &secret);
        let account = huawei.and_then(|one| one.service_account_file.clone());
        credential("dispatch.huawei.service_account_file", &account);
        keys.extend(dispatch.webpush.as_ref().map(|one| KeyFile {
            name: "dispatch.webpush.key_file",
            purpose: "pushes to any Web Push endpoint made for us",
            path: one.key_file.clone(),
            kind: KeyKind::Random,
        }));
        let lane = |service: Service| dispatch.lane(service).map(|lane| (service, lane.jitter));
        Self {
            ops: settings.ops.listen,
            store: settings.store.path.clone(),
            outbox: settings.outbox.path.clone(),
            node_list: settings.watcher.node_list_file.clone(),
            keys,
            services: Service::ALL.into_iter().filter_map(lane).collect(),
            padding: settings.seal.padding,
            log: settings.log.level,
            metrics_period: settings.ops.metrics_period,
            direct: settings.http.direct,
            nodes_per_swarm: settings.watcher.nodes_per_swarm,
            dedupe_window: settings.fanout.window,
            erase_after: settings.store.erase_after.max(settings.outbox.erase_after),
        }
    }
}

/// Looks everything up. `live`: what the running process says, if one runs.
pub async fn audit(view: &View, live: Option<&Live>, scale: Scale, now: i64) -> Audit {
    let process = live.and_then(|live| Some(Process::of(live.process_id()?, live.dumpable())));
    let remains = remains_of(view).await;
    let mut held = holdings_of_store(view, scale).await;
    held.extend(holdings_of_outbox(view).await);
    held.push(node_list(view));
    held.extend(in_memory(live));
    let keys = view.keys.iter().map(|key| match key.kind {
        KeyKind::Credential => files::key(key.name, key.purpose, &key.path, None),
        KeyKind::Random => files::random_key(key.name, key.purpose, &key.path, None),
        KeyKind::Rows => files::random_key(key.name, key.purpose, &key.path, Some(&view.store)),
        KeyKind::Ring => Key {
            id: ids_of_ring(&key.path),
            ..files::key(key.name, key.purpose, &key.path, Some(&view.store))
        },
    });
    let mut audit = Audit {
        server: "quietline-notifier",
        version: env!("CARGO_PKG_VERSION"),
        at: now,
        running: live.is_some(),
        held,
        keys: keys.collect(),
        facts: vec![],
        adversaries: vec![],
    };
    audit.facts = facts(view, &audit, process.as_ref());
    audit.facts.extend(erasure(view, &remains, live.is_some(), scale));
    audit.adversaries = adversaries(view, &audit, process.as_ref(), scale);
    audit
}

/// Of both databases: pages are read, a few of them again.
async fn remains_of(view: &View) -> Vec<Remains> {
    let files = [view.store.clone(), view.outbox.clone()];
    let looked = tokio::task::spawn_blocking(move || files.iter().map(|file| remains::look(file)).collect());
    // A panic has been reported where it happened.
    looked.await.unwrap_or_default()
}

/// As rows name them, the newest first. The file is read anew: keys are exchanged while the notifier runs.
fn ids_of_ring(file: &Path) -> Option<String> {
    let ids = keyring::file::read(file).ok()?.ids();
    Some(ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", then "))
}

/// As the operator asks for it: exact, and with what the running notifier says, if one answers.
pub async fn audit_now(view: &View) -> Audit {
    let live = Live::ask(view.ops).await;
    audit(view, live.as_ref(), Scale::Exact, super::unix_ms() / 1000).await
}

async fn holdings_of_store(view: &View, scale: Scale) -> Vec<Holding> {
    let readable = |row: &[u8]| Subscription::decode_row(row).is_ok();
    let mut tables = census::take(&view.store, readable).await.ok();
    // Each row is opened for the operator alone: the page may be asked for at any time.
    let opened = match (scale, ring(view)) {
        (Scale::Exact, Some(ring)) => opened::count(&view.store, &ring).await.ok(),
        _ => None,
    };
    if opened.is_some() {
        let known = tables.iter_mut().flatten().flatten();
        known.for_each(|table| table.groups.retain(|_| table.name != "subscription"));
    }
    let mut held = tables_as(tables, &view.store, |table| match table {
        "subscription" if opened.is_some() => Some((SUBSCRIPTIONS, WHAT_A_SUBSCRIPTION_IS, kept_subscription())),
        // What an earlier version wrote stands in a table of its own until it is sealed.
        "subscription" | "plain_subscription" => {
            Some((SUBSCRIPTIONS, WHAT_A_SUBSCRIPTION_OR_MARK_IS, kept_subscription()))
        }
        _ => None,
    });
    for ((kind, key_id), count) in opened.unwrap_or_default() {
        let group = Group {
            protection: match (kind, KeyId::from_column(key_id)) {
                (Kind::Plain, _) | (_, None) => Protection::Plain,
                (_, Some(key)) => Protection::Sealed { key: key.to_string() },
            },
            count: Some(count),
        };
        let (what, of, kept) = match kind {
            Kind::Subscription | Kind::Plain => (SUBSCRIPTIONS, WHAT_A_SUBSCRIPTION_IS, kept_subscription()),
            Kind::BindingMark => (
                "Marks of accounts that bind",
                "a keyed hash of the account's key: its subscriptions need a binding; beside it the day it expires",
                "until the day ends on which the last signature with a binding is 14 days old".to_owned(),
            ),
            Kind::Unopened => (
                "Rows that do not open",
                "unknown: sealed under a key that is not in the file, or damaged",
                "until their day is over".to_owned(),
            ),
        };
        match held.iter_mut().rfind(|holding| holding.what == what) {
            Some(holding) => holding.groups.push(group),
            None => held.push(Holding {
                what,
                of,
                place: Place::Disk,
                file: Some(view.store.clone()),
                groups: vec![group],
                kept,
            }),
        }
    }
    held
}

fn ring(view: &View) -> Option<Keyring> {
    let file = view.keys.iter().find(|key| key.kind == KeyKind::Ring)?;
    keyring::file::read(&file.path).ok()
}

fn kept_subscription() -> String {
    "until the client unsubscribes, the provider calls the token dead, or the day (UTC) ends on which the signature is 14 days \
     old"
        .to_owned()
}

async fn holdings_of_outbox(view: &View) -> Vec<Holding> {
    let readable = |row: &[u8]| Sealed::decode_row(row).is_ok();
    let tables = census::take(&view.outbox, readable).await;
    tables_as(tables.ok(), &view.outbox, |table| {
        match table {
        "entry" | "plain_entry" => Some((
            WAKEUPS,
            "one for each that no provider has taken yet: push token, a text that only the phone can read, deadline",
            "until the provider has answered, an hour for Apple, a day for the others, never longer than the message lives"
                .to_owned(),
        )),
        "marks" | "plain_marks" => Some((
            MARKS,
            "rows of hashes of messages seen, under a key, so that none wakes a phone twice",
            humantime_serde::re::humantime::format_duration(view.dedupe_window).to_string(),
        )),
        _ => None,
    }
    })
}

const SUBSCRIPTIONS: &str = "Subscriptions";
const WHAT_A_SUBSCRIPTION_IS: &str = "one for each device of each account: account id, push token, wakeup key, namespaces, the client's \
    signature; beside it a keyed hash and the day it expires";
const WHAT_A_SUBSCRIPTION_OR_MARK_IS: &str = "one for each device of each account: account id, push token, wakeup key, namespaces, the \
    client's signature; beside it a keyed hash and the day it expires. Counted with them: one with nothing but hash and day for each account \
    that binds its subscriptions";
const WAKEUPS: &str = "Wakeups on their way";
const MARKS: &str = "Marks of messages";

const KEY_IDS: &str = "sealing_key";
fn names_of_keys() -> Known {
    (
        "Names of row keys",
        "hashes that tell two keys apart and say nothing about either",
        "as long as a row is under that key".to_owned(),
    )
}

/// What, of what, how long.
type Known = (&'static str, &'static str, String);

/// `tables`: `None` = the file cannot be read, `Some(None)` = it is not there.
fn tables_as(tables: Option<Option<Vec<Table>>>, file: &Path, known: impl Fn(&str) -> Option<Known>) -> Vec<Holding> {
    let holding = |(what, of, kept): Known, groups| Holding {
        what,
        of,
        place: Place::Disk,
        file: Some(file.to_owned()),
        groups,
        kept,
    };
    let Some(tables) = tables else {
        let unread = Group {
            protection: Protection::Plain,
            count: None,
        };
        return vec![holding(
            (
                "A file that cannot be read",
                "taken for rows in plain until it can",
                "unknown".to_owned(),
            ),
            vec![unread],
        )];
    };
    let groups_of = |table: &Table| table.groups.iter().map(|rows| group(&table.name, rows)).collect();
    let tables = tables.unwrap_or_default();
    tables
        .iter()
        .map(|table| {
            // What a later version, or somebody else, has put there.
            let unknown = || {
                (
                    "A table that this version does not know",
                    "unknown",
                    "unknown".to_owned(),
                )
            };
            let known = known(&table.name).or_else(|| (table.name == KEY_IDS).then(names_of_keys));
            holding(known.unwrap_or_else(unknown), groups_of(table))
        })
        .collect()
}

fn group(table: &str, rows: &Rows) -> Group {
    let protection = match rows.key_id {
        // What can be read is in plain, whatever the column says.
        _ if rows.is_readable => Protection::Plain,
        Some(0) => Protection::Plain,
        Some(id) => Protection::Sealed {
            key: format!("{id:08x}"),
        },
        None if table == "marks" => Protection::KeyedHash,
        None if table == KEY_IDS => Protection::Public,
        None => Protection::Plain,
    };
    Group {
        protection,
        count: Some(rows.count),
    }
}

fn node_list(view: &View) -> Holding {
    let mut head = Vec::new();
    let read = std::fs::File::open(&view.node_list).and_then(|file| file.take(5).read_to_end(&mut head));
    let groups = match (read, head.as_slice()) {
        (Err(_), _) => vec![],
        // A version and the key; what is in plain is JSON.
        (Ok(_), [1, key @ ..]) => vec![Group {
            protection: Protection::Sealed { key: hex::encode(key) },
            count: Some(1),
        }],
        (Ok(_), _) => vec![Group {
            protection: Protection::Public,
            count: Some(1),
        }],
    };
    Holding {
        what: "The list of storage nodes",
        of: "addresses and keys of all nodes of the network; nothing of whom they serve",
        place: Place::Disk,
        file: Some(view.node_list.clone()),
        groups,
        kept: "until a newer one comes".to_owned(),
    }
}

fn in_memory(live: Option<&Live>) -> Vec<Holding> {
    let Some(live) = live else { return vec![] };
    [
        (
            "Accounts in memory",
            "account ids, to know which messages wake somebody",
            "fanout_accounts",
            "while a device of theirs is subscribed",
        ),
        (
            "Devices in memory",
            "account, push token, wakeup key",
            "fanout_devices",
            "while they are subscribed",
        ),
        (
            "Wakeups in memory",
            "push token, a text that only the phone can read",
            "outbox_entries",
            "until the provider has answered",
        ),
    ]
    .into_iter()
    .map(|(what, of, metric, kept)| sentences::in_memory(what, of, live.sum(metric), kept))
    .collect()
}

/// (rows that anybody with the file reads, rows that are sealed).
fn plain_and_sealed(audit: &Audit, what: &str) -> (Option<u64>, Option<u64>) {
    let sum = |which: fn(&Protection) -> bool| {
        let held = audit.held.iter().filter(|holding| holding.what == what);
        held.map(|holding| holding.count(which)).sum()
    };
    (
        sum(|kept| *kept == Protection::Plain),
        sum(|kept| matches!(kept, Protection::Sealed { .. })),
    )
}

fn facts(view: &View, audit: &Audit, process: Option<&Process>) -> Vec<Fact> {
    let mut facts = sentences::facts(process, &audit.keys, view.metrics_period);
    let disk = audit.held.iter().filter(|holding| holding.place == Place::Disk);
    let plain = disk
        .map(|holding| holding.count(|kept| *kept == Protection::Plain))
        .sum();
    facts.push(match plain {
        Some(0) => Fact {
            what: "rows on disk",
            good: Some(true),
            says: "none is in plain".to_owned(),
        },
        Some(_) => Fact {
            what: "rows on disk",
            good: Some(false),
            says: "some are in plain: whoever has the file reads them".to_owned(),
        },
        None => Fact {
            what: "rows on disk",
            good: None,
            says: "a file cannot be read".to_owned(),
        },
    });
    let protecting = view.keys.iter().zip(&audit.keys);
    let protecting = protecting.filter(|(file, _)| matches!(file.kind, KeyKind::Rows | KeyKind::Ring));
    let beside: Vec<Option<bool>> = protecting.map(|(_, key)| key.beside_data).collect();
    let (good, says) = if beside.contains(&Some(true)) {
        (
            Some(false),
            "a key of the rows lies on the same disk as they do: one theft gets both",
        )
    } else if beside.iter().all(|beside| *beside == Some(false)) && !beside.is_empty() {
        (Some(true), "they lie on different disks")
    } else {
        (
            None,
            "cannot be told: a key is not there, or was handed over in memory by something that has it elsewhere",
        )
    };
    facts.push(Fact {
        what: "keys and rows",
        good,
        says: says.to_owned(),
    });
    for (what, groups) in [
        ("TLS to push services", dispatch::offered_groups()),
        ("TLS to seeds", watcher::offered_groups()),
    ] {
        facts.push(Fact {
            what,
            good: Some(groups.first().is_some_and(|group| group == crate::tls::POST_QUANTUM)),
            says: format!("offers {}", groups.join(", ")),
        });
    }
    facts
}

/// What is left on the disk of what was deleted.
fn erasure(view: &View, remains: &[Remains], is_running: bool, scale: Scale) -> [Fact; 2] {
    let free: Option<Vec<FreePages>> = remains.iter().map(|file| file.free).collect();
    let free = free.filter(|free| !free.is_empty());
    let exact = |numbers: String| match scale {
        Scale::Exact => numbers,
        Scale::Rounded => String::new(),
    };
    let (good, says) = match &free {
        None => (None, "they cannot be looked at".to_owned()),
        Some(free) => {
            let sum = |count: fn(&FreePages) -> u64| free.iter().map(count).sum();
            let (pages, holding): (u64, u64) = (sum(|free| free.pages), sum(|free| free.holding));
            let words = match holding {
                0 => "all are overwritten: nothing is left there of what was deleted",
                _ => "some hold what was deleted",
            };
            let numbers = exact(format!(
                " ({} pages, {} of them hold something)",
                scale.count(pages),
                scale.count(holding)
            ));
            (Some(holding == 0), format!("{words}{numbers}"))
        }
    };
    let pages = Fact {
        what: "free pages",
        good,
        says,
    };
    // It is emptied so long after the first write, and tried again at once where a reader was in the way.
    let longest = view.erase_after + LOG_PATIENCE;
    let bytes = remains.iter().map(|file| file.log_bytes).sum();
    let is_overdue =
        |file: &Remains| file.log_bytes > 0 && (!is_running || file.log_age.is_none_or(|age| age > longest));
    let is_good = !remains.iter().any(is_overdue);
    let words = match (is_good, is_running) {
        (true, _) => format!(
            "what was deleted is gone from them after {}",
            humantime_serde::re::humantime::format_duration(view.erase_after)
        ),
        (false, true) => "one holds what was deleted for longer than it should".to_owned(),
        (false, false) => "one holds what was deleted, and no process runs that empties it".to_owned(),
    };
    let numbers = exact(format!(" (now {} bytes)", scale.count(bytes)));
    let logs = Fact {
        what: "logs of changes",
        good: (!remains.is_empty()).then_some(is_good),
        says: format!("{words}{numbers}"),
    };
    [pages, logs]
}

/// For an emptying that a reader was in the way of.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

fn adversaries(view: &View, audit: &Audit, process: Option<&Process>, scale: Scale) -> Vec<Adversary> {
    let told = |count: Option<u64>| count.map_or_else(|| "an unknown number of".to_owned(), |count| scale.count(count));
    let (plain_rows, sealed_rows) = plain_and_sealed(audit, SUBSCRIPTIONS);
    let (plain_wakeups, sealed_wakeups) = plain_and_sealed(audit, WAKEUPS);
    let unread = audit
        .held
        .iter()
        .any(|holding| holding.place == Place::Disk && holding.count(|_| true).is_none());
    let both = |one: Option<u64>, other: Option<u64>| Some(one? + other?);

    let mut disk = vec![
        "that a notifier runs here, which push services it uses, how many rows there are and on which day each expires"
            .to_owned(),
    ];
    let mut not_disk = vec![NEVER_HERE.to_owned()];
    if unread {
        disk.push("whatever is in the file that could not be read for this audit".to_owned());
    }
    if plain_rows != Some(0) {
        disk.push(format!(
            "{} subscriptions in plain: {WHAT_A_ROW_SAYS}",
            told(plain_rows)
        ));
    }
    if plain_wakeups != Some(0) {
        disk.push(format!(
            "{} wakeups in plain: {WHAT_A_WAKEUP_SAYS}",
            told(plain_wakeups)
        ));
    }
    if sealed_rows != Some(0) {
        not_disk.push(format!("what {} sealed subscriptions hold", told(sealed_rows)));
    }
    if sealed_wakeups != Some(0) {
        not_disk.push(format!("what {} sealed wakeups hold", told(sealed_wakeups)));
    }
    if audit.keys.iter().any(|key| key.beside_data == Some(true)) {
        disk.push("the keys, which lie on the same disk: all of the next list as well".to_owned());
    }
    let rows = both(plain_rows, sealed_rows);
    let is_erased = |what: &str| {
        audit
            .facts
            .iter()
            .any(|fact| fact.what == what && fact.good == Some(true))
    };
    let gone_not_yet = match is_erased("free pages") && is_erased("logs of changes") {
        true => format!(
            "what was deleted within the last {}, from the logs of changes; nothing older is in the files",
            humantime_serde::re::humantime::format_duration(view.erase_after)
        ),
        false => "what was deleted and is still in free pages or in the logs of changes".to_owned(),
    };
    let with_key = vec![
        format!("{} subscriptions: {WHAT_A_ROW_SAYS}", told(rows)),
        format!(
            "{} wakeups: {WHAT_A_WAKEUP_SAYS}",
            told(both(plain_wakeups, sealed_wakeups))
        ),
        "whether a given message woke somebody lately, by its mark".to_owned(),
        gone_not_yet,
"rows deleted since the row key was last exchanged, where the disk keeps copies of what is written over, as flash may".to_owned(),
        "what onion requests said that were recorded on their way to us: the onion key opens them".to_owned(),
        "how to pose as this server, to clients and to push services".to_owned(),
    ];

    let live = |what: &str| {
        let holding = audit.held.iter().find(|holding| holding.what == what);
        holding.and_then(|holding| holding.count(|_| true))
    };
    let memory = match audit.running {
        true => vec![
            format!(
                "{} accounts and {} devices: {WHAT_A_ROW_SAYS}",
                told(live("Accounts in memory")),
                told(live("Devices in memory"))
            ),
            "every key of this server".to_owned(),
            "from then on: which account gets a message when, and its encrypted text".to_owned(),
        ],
        false => vec!["nothing: no process runs that answers".to_owned()],
    };

    let moment = sentences::moment(view.metrics_period);
    let mut logs = vec![format!(
        "counts of all accounts together, {moment}; starts, stops, faults of disks and providers"
    )];
    if matches!(view.log, Level::Debug | Level::Trace) {
        logs.push("the log is finer than usual: when a group of requests came, not whose".to_owned());
    }
    if view.direct {
        logs.push(
            "from the log of a proxy before us, if it keeps one: addresses of clients that do not use onion requests"
                .to_owned(),
        );
    }

    let mut provider = vec![];
    let sizes = match view.padding {
        Padding::TwoClasses => "one of two sizes",
        Padding::Upstream => "its size to 256 bytes",
    };
    for (service, jitter) in &view.services {
        let when = match jitter.is_zero() {
            true => "its moment".to_owned(),
            false => format!(
                "its moment, up to {} late unless it is a call",
                humantime_serde::re::humantime::format_duration(*jitter)
            ),
        };
        provider.push(format!(
            "{}: of each wakeup its token, {when}, {sizes}, its priority, one of three times to live; and to whom the token belongs",
            service.name()
        ));
    }
    provider.push(format!(
        "storage nodes, {} of each swarm: which accounts use push",
        view.nodes_per_swarm
    ));
    provider.push("with one of the lists above as well: which account is whose".to_owned());

    let adversary = |who, learns, does_not_learn: Vec<String>| Adversary {
        who,
        learns,
        does_not_learn,
    };
    vec![
        sentences::with_the_disk(disk, not_disk, process),
        adversary(Who::DiskAndKey, with_key, vec![NEVER_HERE.to_owned()]),
        adversary(Who::Memory, memory, vec![NEVER_HERE.to_owned()]),
        adversary(
            Who::Logs,
            logs,
            vec!["accounts, tokens, messages, keys, addresses: what holds one cannot be printed".to_owned()],
        ),
        adversary(
            Who::Provider,
            provider,
            vec!["accounts, senders, texts: what they carry is encrypted for the phone".to_owned()],
        ),
    ]
}

const NEVER_HERE: &str = "what messages say, who sent them, who knows whom, where clients are: that never comes here";
const WHAT_A_ROW_SAYS: &str = "which account has which phone, and the key of its wakeups";
const WHAT_A_WAKEUP_SAYS: &str = "that a phone is to be woken, not why and not for which account";

#[cfg(test)]
#[path = "audit/tests.rs"]
mod tests;
