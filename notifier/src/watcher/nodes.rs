//! Where the node list comes from: oxend first, then seeds, the kept file at the start.
//!
//! In: sources, a file. Out: the newest list that may be believed. Never: follows a single source to a quite different
//! network.
//!
//! A list that differs from the last good one by more than `max_list_change` is taken only if a second source gives one that
//! is within the same distance of it. Where there is no last list: an oxend is ours and is believed; a seed is believed
//! if another source agrees or no other answers. So with one source a jump is never taken: an operator who knows it to be right
//! deletes the kept file and restarts.

mod choice;
pub mod kept;
mod oxend;
mod seed;

pub use seed::{SeedFault, SeedSource, offered_groups};

use super::link::LinkSettings;
use crate::keyring::Keyring;
use bytes::Bytes;
use choice::{Choice, Round};
use notifier_core::omq::{Address, Identity};
use notifier_core::swarm::{NodeList, NodeListError};
use oxend::{Oxend, OxendContext};
use quietline_shared::backoff::Backoff;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Everything the node list needs.
pub struct NodesSettings {
    pub oxends: Vec<Address>,
    pub seeds: Vec<SeedSource>,
    pub file: PathBuf,
    pub refresh_interval: Duration,
    /// 0 to 1, see [`NodeList::difference`].
    pub max_list_change: f64,
    pub link: Arc<LinkSettings>,
    pub identity: Arc<Identity>,
    /// The kept list is sealed under the newest of them, and again when they change.
    pub keys: watch::Receiver<Arc<Keyring>>,
}

/// The newest list; `None` until there is one.
pub type Lists = watch::Receiver<Option<Arc<NodeList>>>;

/// Runs until it is dropped.
pub struct Nodes {
    pub lists: Lists,
    refresh: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Nodes {
    pub fn spawn(settings: NodesSettings) -> Self {
        let (publish, lists) = watch::channel(None);
        let refresh = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        task.spawn(run(settings, publish, Arc::clone(&refresh)));
        Self {
            lists,
            refresh,
            _task: task,
        }
    }

    /// Asks again soon: somebody has reason to think that the list is old.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }
}

async fn run(mut settings: NodesSettings, publish: watch::Sender<Option<Arc<NodeList>>>, refresh: Arc<Notify>) {
    let keys = Arc::clone(&settings.keys.borrow_and_update());
    let mut last = read_kept(settings.file.clone(), keys).await.map(Arc::new);
    if let Some(list) = &last {
        tracing::info!(nodes = list.nodes.len(), "node list read from the kept file");
        publish.send_replace(Some(Arc::clone(list)));
    }
    let context = Arc::new(OxendContext {
        link: Arc::clone(&settings.link),
        identity: Arc::clone(&settings.identity),
        refresh: Arc::clone(&refresh),
    });
    let oxends: Vec<Oxend> = settings
        .oxends
        .iter()
        .map(|address| Oxend::spawn(address.clone(), &context))
        .collect();
    let mut failures = 0;
    loop {
        let asked = Instant::now();
        let mut round = Round::new(last.clone(), settings.max_list_change);
        let choice = ask_all(&oxends, &settings.seeds, &mut round).await;
        let wait = match choice {
            Choice::Take(list) => {
                failures = 0;
                let is_new = take(list, &mut last, &publish);
                if is_new && let Some(list) = &last {
                    let keys = Arc::clone(&settings.keys.borrow_and_update());
                    keep(Arc::clone(list), settings.file.clone(), keys).await;
                }
                settings.refresh_interval
            }
            Choice::AskAnother | Choice::Refuse if round.heard() == 0 => {
                failures += 1;
                metrics::counter!("watch_node_list_failures_total").increment(1);
                tracing::warn!(failures, "no source gave a node list");
                RETRY.delay(failures - 1, random()).min(settings.refresh_interval)
            }
            Choice::AskAnother | Choice::Refuse => {
                failures += 1;
                metrics::counter!("watch_node_list_refused_total").increment(1);
                tracing::warn!(
                    sources = round.heard(),
                    "a node list differs too much from the last one and no second source agrees; if it is right, delete \
                     node_list_file and restart"
                );
                RETRY.delay(failures - 1, random()).min(settings.refresh_interval)
            }
        };
        let waited = sleep(wait);
        tokio::pin!(waited);
        loop {
            tokio::select! {
                () = &mut waited => break,
                () = refresh.notified() => {
                    sleep_until(asked + LEAST_INTERVAL).await;
                    break;
                }
                Ok(()) = settings.keys.changed() => if let Some(list) = &last {
                    let keys = Arc::clone(&settings.keys.borrow_and_update());
                    keep(Arc::clone(list), settings.file.clone(), keys).await;
                },
            }
        }
    }
}

/// One source after the other until a list may be believed.
async fn ask_all(oxends: &[Oxend], seeds: &[SeedSource], round: &mut Round) -> Choice {
    for oxend in oxends {
        let choice = hear(round, Kind::Oxend, oxend.list().await);
        if let Choice::Take(_) = choice {
            return choice;
        }
    }
    let mut order: Vec<&SeedSource> = seeds.iter().collect();
    order.sort_by_cached_key(|_| random());
    for seed in order {
        let choice = hear(round, Kind::Seed, seed.list().await);
        if let Choice::Take(_) = choice {
            return choice;
        }
    }
    round.finish()
}

fn hear(round: &mut Round, kind: Kind, answer: Result<NodeList, SourceFault>) -> Choice {
    match answer {
        Ok(list) => {
            metrics::counter!("watch_node_list_answers_total", "source" => kind.label(), "outcome" => "ok")
                .increment(1);
            round.hear(list, kind)
        }
        Err(fault) => {
            metrics::counter!("watch_node_list_answers_total", "source" => kind.label(), "outcome" => fault.label())
                .increment(1);
            tracing::info!(
                source = kind.label(),
                reason = fault.label(),
                "a source of the node list failed"
            );
            Choice::AskAnother
        }
    }
}

/// Whether it is another one than the last.
fn take(list: Arc<NodeList>, last: &mut Option<Arc<NodeList>>, publish: &watch::Sender<Option<Arc<NodeList>>>) -> bool {
    let changed = last.as_ref().is_none_or(|last| last.nodes != list.nodes);
    if changed {
        let difference = last.as_ref().map_or(1.0, |last| last.difference(&list));
        tracing::info!(
            nodes = list.nodes.len(),
            percent = difference * 100.0,
            "node list changed"
        );
        publish.send_replace(Some(Arc::clone(&list)));
    }
    *last = Some(list);
    changed
}

async fn keep(list: Arc<NodeList>, file: PathBuf, keys: Arc<Keyring>) {
    let written = tokio::task::spawn_blocking(move || kept::write(&file, &list.to_json(), &keys)).await;
    if !matches!(written, Ok(Ok(()))) {
        metrics::counter!("watch_node_list_write_failures_total").increment(1);
        tracing::warn!("the node list could not be kept: a start without sources would fail");
    }
}

async fn read_kept(file: PathBuf, keys: Arc<Keyring>) -> Option<NodeList> {
    let (place, ring) = (file.clone(), Arc::clone(&keys));
    let read = tokio::task::spawn_blocking(move || kept::read(&place, &ring))
        .await
        .ok()?;
    let kept = match read {
        Ok(kept) => kept?,
        Err(fault) => {
            metrics::counter!("watch_node_list_unreadable_total").increment(1);
            tracing::warn!(reason = %fault, "the kept node list cannot be used");
            return None;
        }
    };
    let list = parse(kept.text.into()).await;
    match &list {
        Ok(list) if kept.is_old => keep(Arc::new(list.clone()), file, keys).await,
        Ok(_) => {}
        Err(_) => tracing::warn!("the kept node list is damaged"),
    }
    list.ok()
}

/// A large list takes long enough to parse to disturb the links.
async fn parse(text: Bytes) -> Result<NodeList, SourceFault> {
    tokio::task::spawn_blocking(move || NodeList::from_json(&text))
        .await
        .map_err(|_| SourceFault::Stopped)?
        .map_err(SourceFault::List)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Oxend,
    Seed,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Oxend => "oxend",
            Self::Seed => "seed",
        }
    }
}

/// Why a source gave no list.
#[derive(Debug, PartialEq, Eq)]
enum SourceFault {
    Unreachable,
    Timeout,
    /// The request was refused, or its status is not 200.
    Refused,
    Seed(SeedFault),
    List(NodeListError),
    Stopped,
}

impl SourceFault {
    const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Seed(fault) => fault.label(),
            Self::List(fault) => fault.label(),
            Self::Stopped => "stopped",
        }
    }
}

/// Spreads timers and the order of seeds; nothing secret hangs on it.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

/// Blocks may come in bursts: the sources are asked this often at most.
const LEAST_INTERVAL: Duration = Duration::from_secs(2);
/// Pauses while no source gives a list that may be believed.
const RETRY: Backoff = Backoff {
    base: Duration::from_secs(2),
    cap: Duration::from_secs(120),
};

#[cfg(test)]
mod tests;
