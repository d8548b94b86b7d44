//! Row keys while the notifier runs, and their exchange by command.
//!
//! In: the key file, the two databases, the kept node list. Out: all of it sealed under the newest key, without a pause for anybody; what
//! `check` and `rotate-key` say. Never: takes a ring that does not open what is there, or destroys a key that something is still under.
//!
//! The command changes the file and the notifier looks at it, so neither has to find the other: [`Exchange`] puts a new key first; a
//! notifier that runs sees it within [`LOOK_EVERY`], else the command moves the rows itself; when `sealing_key` of both databases names
//! the new key alone, the command takes the old one out of the file.

use crate::keyring::file::{Exchange, KeyFileFault};
use crate::keyring::{KeyId, Keyring, file};
use crate::outbox::{OutboxError, OutboxFile, OutboxHandle, OutboxSettings};
use crate::sqlite::SqliteFault;
use crate::sqlite::keys::{KeyUse, entered_in, in_file};
use crate::store::{self, StoreError, StoreSettings, SubscriptionStore};
use crate::watcher::nodes::kept;
use quietline_shared::service::config::{Faults, SettingsFile};
use serde::Deserialize;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, sleep};

/// Keeps everything under the newest key of the file.
pub struct KeyKeeper {
    pub path: PathBuf,
    pub store: Arc<dyn SubscriptionStore>,
    pub outbox: OutboxHandle,
    /// Where the watcher hears of another ring.
    pub ring: watch::Sender<Arc<Keyring>>,
}

/// Tells one state of a file from another: a file that was replaced has another inode.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl KeyKeeper {
    /// Runs as long as the notifier.
    pub async fn keep(self) {
        let mut stamp = stamp(&self.path);
        let mut ring = Arc::clone(&self.ring.borrow());
        // An exchange that a restart has cut off goes on.
        let mut is_settled = self.use_ring(&ring).await;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let now = self::stamp(&self.path);
            if now != stamp {
                stamp = now;
                if let Some(other) = self.read_ring().await {
                    ring = Arc::new(other);
                    is_settled = false;
                }
            }
            if !is_settled {
                is_settled = self.use_ring(&ring).await;
            }
        }
    }

    /// What the file holds, if that is another ring than the one in use.
    async fn read_ring(&self) -> Option<Keyring> {
        let path = self.path.clone();
        match tokio::task::spawn_blocking(move || file::read(&path)).await.ok()? {
            Ok(ring) => (ring.ids() != self.ring.borrow().ids()).then_some(ring),
            Err(fault) => {
                metrics::counter!("keyring_refused_total").increment(1);
                tracing::error!(%fault, "row_key_file cannot be used: the keys that were read before stay in use");
                None
            }
        }
    }

    /// Whether there is nothing left to do with this ring.
    async fn use_ring(&self, ring: &Arc<Keyring>) -> bool {
        let (store, outbox) = tokio::join!(self.store.use_keys(ring), self.outbox.use_keys(ring));
        match (store, outbox) {
            (Ok(subscriptions), Ok(wakeups)) => {
                metrics::gauge!("keyring_keys").set(ring.ids().len() as f64);
                self.ring.send_if_modified(|current| {
                    let is_other = current.ids() != ring.ids();
                    *current = Arc::clone(ring);
                    is_other
                });
                if subscriptions + wakeups > 0 {
                    tracing::info!(subscriptions, wakeups, "all rows are under the newest row key");
                }
                true
            }
            (Err(StoreError::ForeignRowKey), _) | (_, Err(OutboxError::ForeignRowKey)) => {
                metrics::counter!("keyring_refused_total").increment(1);
                tracing::error!(
                    "row_key_file lacks a key that rows are under: the keys that were read before stay in use"
                );
                // Asking again would say the same until the file is another one.
                true
            }
            // A full disk, or the end of the process.
            _ => false,
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    Some(Stamp(data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// What of the settings concerns row keys. The rest may be wrong, or out of reach, where keys are exchanged.
#[derive(Debug)]
pub struct KeyPlaces {
    pub key_file: PathBuf,
    pub store: StoreSettings,
    pub outbox: OutboxSettings,
    pub node_list_file: PathBuf,
}

#[derive(Deserialize)]
struct Watcher {
    node_list_file: PathBuf,
}

impl KeyPlaces {
    /// `key_file` stands for the one that the settings name: where that is a credential of systemd, only the service can read it there.
    pub fn read(settings: &Path, key_file: Option<PathBuf>) -> Result<Self, Faults> {
        let mut file = SettingsFile::read(settings)?;
        let store = file.section::<StoreSettings>("store");
        let outbox = file.section::<OutboxSettings>("outbox");
        let watcher = file.section::<Watcher>("watcher");
        let faults = file.finish_partly();
        // Each section that is not there has left a fault.
        let (Some(store), Some(outbox), Some(watcher)) = (store, outbox, watcher) else {
            return faults.and(Err(Faults(Vec::new())));
        };
        // Only reading the files that settings name gives warnings, and none is read here.
        faults.map(|_warnings| Self {
            key_file: key_file.unwrap_or_else(|| store.row_key_file()),
            store,
            outbox,
            node_list_file: watcher.node_list_file,
        })
    }
}

/// Why an exchange did not come to its end. It goes on where it was when it is asked for again; no key is lost.
#[derive(Debug, thiserror::Error)]
pub enum RotateFault {
    #[error("row_key_file {0}")]
    KeyFile(#[from] KeyFileFault),
    #[error("[store] {0}")]
    Store(#[from] StoreError),
    #[error("[outbox] {0}")]
    Outbox(#[from] OutboxError),
    #[error("the kept node list cannot be written ({})", .0.kind())]
    NodeList(io::Error),
    #[error(
        "the notifier that runs has not taken up the new key in {} s. If its row_key_file is a credential of systemd, restart it; then run \
         this again",
        PATIENCE.as_secs()
    )]
    NotTakenUp,
    #[error("this output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl RotateFault {
    /// Whether the same command would fail again.
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::KeyFile(fault) => matches!(fault, KeyFileFault::Unusable(_) | KeyFileFault::Repeated),
            Self::Store(fault) => fault.is_of_settings(),
            Self::Outbox(fault) => fault.is_of_settings(),
            _ => false,
        }
    }
}

/// Puts everything under a new key and destroys the old one, beside a running notifier or without one.
pub async fn rotate(places: &KeyPlaces, out: &mut (dyn Write + Send)) -> Result<(), RotateFault> {
    let (exchange, resumed) = Exchange::begin(&places.key_file)?;
    let new = exchange.new_key();
    let how = if resumed { "goes on" } else { "begins" };
    writeln!(out, "the exchange {how}: new row key {new}")?;
    let ring = file::read(&places.key_file)?;

    let subscriptions = async || match is_there(&places.store.path) {
        true => Ok(store::sqlite::change_keys(&places.store, &ring).await?),
        false => Ok(0),
    };
    let how = until_moved(subscriptions, &places.store.path, new).await?;
    writeln!(out, "subscriptions: {how}")?;
    let outbox = async || match is_there(&places.outbox.path) {
        true => Ok(OutboxFile::open(&places.outbox, &ring).await?.change_keys().await?),
        false => Ok(0),
    };
    let how = until_moved(outbox, &places.outbox.path, new).await?;
    writeln!(out, "outbox: {how}")?;
    // A notifier that runs does the same; either way the file is whole and under the new key.
    kept::change_keys(&places.node_list_file, &ring).map_err(RotateFault::NodeList)?;

    exchange.finish()?;
    writeln!(out, "done: everything is under row key {new}, the old one is destroyed")?;
    Ok(())
}

/// A file is not made by who only exchanges keys: it would be somebody else's. What cannot be looked at is for the opening to name.
fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

/// Moves the rows of a file that nobody uses; otherwise waits until the notifier that uses it has moved them, or has ended.
async fn until_moved(
    move_rows: impl AsyncFn() -> Result<u64, RotateFault>,
    path: &Path,
    new: KeyId,
) -> Result<String, RotateFault> {
    let began = Instant::now();
    loop {
        match move_rows().await {
            Ok(rows) => return Ok(format!("{rows} rows moved")),
            Err(RotateFault::Store(StoreError::InUse) | RotateFault::Outbox(OutboxError::InUse)) => {}
            Err(fault) => return Err(fault),
        }
        match entered_in(path).await {
            Ok(entered) if entered == [new] => return Ok("moved by the notifier that runs".to_owned()),
            Ok(entered) if !entered.contains(&new) && began.elapsed() > PATIENCE => {
                return Err(RotateFault::NotTakenUp);
            }
            // A million rows take a while; and the file may be busy just now.
            Ok(_) => {}
            Err(fault) if fault.is_retryable() => {}
            Err(fault) => return Err(StoreError::from(fault).into()),
        }
        sleep(ASK_EVERY).await;
    }
}

/// What `check` says of row keys: one line each.
pub async fn report(places: &KeyPlaces, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let ring = match file::read(&places.key_file) {
        Ok(ring) => ring.ids(),
        Err(fault) => return writeln!(out, "row keys: the file {fault}"),
    };
    let names: Vec<String> = ring.iter().map(KeyId::to_string).collect();
    writeln!(out, "row keys: {}", names.join(", then "))?;
    let mut used = Vec::new();
    for (name, path) in [("subscriptions", &places.store.path), ("outbox", &places.outbox.path)] {
        match in_file(path).await {
            Ok(uses) if uses.is_empty() => writeln!(out, "{name}: no rows")?,
            Ok(uses) => {
                used.extend(uses.iter().filter_map(|known| known.key));
                let uses: Vec<String> = uses.iter().map(|known| describe(known, &ring)).collect();
                writeln!(out, "{name}: {}", uses.join(", "))?;
            }
            Err(fault) => writeln!(out, "{name}: {}", SqliteFault::to_string(&fault))?,
        }
    }
    let kept = kept::key_of(&places.node_list_file)?;
    if let Some(id) = kept {
        writeln!(out, "kept node list: under {id}")?;
    }
    if ring.len() > 1 {
        writeln!(out, "an exchange of row keys has not ended: run rotate-key again")?;
    }
    Ok(())
}

fn describe(known: &KeyUse, ring: &[KeyId]) -> String {
    match known.key {
        None => format!("{} rows in plain, sealed at the next start", known.rows),
        Some(id) if ring.contains(&id) => format!("{} rows under {id}", known.rows),
        Some(id) => format!("{} rows under {id}, which is not in the file", known.rows),
    }
}

/// A look costs a microsecond.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long a running notifier may take to see the new key.
const PATIENCE: Duration = Duration::from_secs(30);
