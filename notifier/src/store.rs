//! Where subscriptions live.
//!
//! In: a `Subscription` or a `DeviceId`. Out: the same subscription, later. Never: on the way of a wakeup, or shows in a
//! column whose subscription a row is.

pub mod sqlite;

use crate::keyring::Keyring;
use crate::sqlite::keys::KeyUse;
use crate::sqlite::{ERASE_AFTER, LONGEST_ERASE_AFTER};
use futures_util::future::BoxFuture;
use notifier_core::subscription::{DeviceId, Subaccount, Subscription, Unsubscription};
use quietline_shared::crypto::keyed_hash_32;
use quietline_shared::redact::Secret;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// What every home of subscriptions can do. Changes of one device take effect in the order of the calls.
pub trait SubscriptionStore: Send + Sync + 'static {
    /// Stores or renews, unless a later signature is there. One that is ahead of `now` (Unix seconds) gives way to one of now, give or take
    /// [`CLOCKS_DIFFER_SECONDS`]. Durable when it returns.
    fn put(&self, subscription: &Subscription, now: i64) -> BoxFuture<'_, Result<Put, StoreError>>;

    /// Forgets a device whose owner wishes it, unless it was subscribed with a later signature: requests can overtake each other, and
    /// whoever saw one can send it again. A signature that is ahead of `now` (Unix seconds) gives way to a wish that was signed now, give or
    /// take [`CLOCKS_DIFFER_SECONDS`]. Durable when it returns.
    fn unsubscribe<'a>(&'a self, wish: &'a Unsubscription, now: i64)
    -> BoxFuture<'a, Result<Unsubscribed, StoreError>>;

    /// Forgets one device of one account; whether it was there. Durable when it returns.
    fn remove<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// As [`Self::remove`], but only if the row was signed before `provider_time_ms` (Unix ms): a device that
    /// registered again since then keeps its row.
    fn remove_if_older<'a>(
        &'a self,
        device: &'a DeviceId,
        provider_time_ms: i64,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Those of `devices` that are stored, in any order. Does not wait for changes under way.
    fn load(&self, devices: Vec<DeviceId>) -> BoxFuture<'_, Result<Vec<Subscription>, StoreError>>;

    /// Every subscription, in any order, in batches of about [`SCAN_BATCH`]. One that changes meanwhile may come in either
    /// form. An `Err` is the last item; without one, all have come.
    fn scan(&self) -> mpsc::Receiver<Result<Vec<Subscription>, StoreError>>;

    /// Forgets what expired before the day of `now` (Unix seconds) in bounded steps; how many.
    fn remove_expired(&self, now: i64) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// How many subscriptions there are; reads all of them.
    fn count(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Seals from now on under the newest of these keys, and moves every row to it, a few at a time; how many were moved. Rows that
    /// nobody can read stay. Takes up what an earlier call did not end; cheap when there is nothing to do.
    fn use_keys<'a>(&'a self, keys: &'a Keyring) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// How many rows are under which key, marks of signers among them.
    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyUse>, StoreError>>;

    /// Finishes what is under way and refuses what comes later.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What became of a `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    New,
    /// The row was there, with an older signature or other content.
    Renewed,
    /// The same row was there already.
    Unchanged,
    /// A newer signature was there, and stays.
    KeptNewer,
    /// Not stored: the signer used a binding before, and this subscription has none.
    BindingRequired,
}

/// What became of an `unsubscribe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    Removed,
    NotThere,
    /// The row was signed later, and stays.
    KeptNewer,
}

/// Why the store could not do it. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the disk of the subscriptions is full")]
    DiskFull,
    #[error("the subscriptions cannot be read or written now")]
    Unavailable,
    #[error("another notifier uses this file")]
    InUse,
    #[error("the file of the subscriptions is damaged or no database")]
    Damaged,
    #[error("the file of the subscriptions was written by another version of the notifier")]
    Version,
    #[error("the lookup key is not the one this file was written with")]
    ForeignLookupKey,
    #[error("the file of the subscriptions is sealed under a key that row_key_file does not hold: put that key back")]
    ForeignRowKey,
    #[error("the system gives no random numbers")]
    NoRandomness,
    #[error("another device has the same lookup hash")]
    LookupTaken,
    #[error("the store is closed")]
    Closed,
    #[error("the database refused a statement (code {code})")]
    Internal { code: i32 },
}

impl StoreError {
    pub const fn label(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::Unavailable => "unavailable",
            Self::InUse => "in_use",
            Self::Damaged => "damaged",
            Self::Version => "version",
            Self::ForeignLookupKey => "foreign_lookup_key",
            Self::ForeignRowKey => "foreign_row_key",
            Self::NoRandomness => "no_randomness",
            Self::LookupTaken => "lookup_taken",
            Self::Closed => "closed",
            Self::Internal { .. } => "internal",
        }
    }

    /// Whether the same request can succeed later: the client is told to come again (HTTP 503).
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::DiskFull | Self::Unavailable | Self::Closed)
    }

    /// Whether it stays until somebody changes a setting or a key file.
    pub const fn is_of_settings(self) -> bool {
        matches!(self, Self::ForeignLookupKey | Self::ForeignRowKey)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    #[serde(default = "default_path")]
    pub path: PathBuf,
    /// Key of the lookup hashes: 32 random bytes. Without it the file does not tell who is in it.
    pub lookup_key_file: PathBuf,
    /// Keys that rows, outbox and kept node list are sealed under. Default: `rows` beside `lookup_key_file`.
    #[serde(default)]
    row_key_file: Option<PathBuf>,
    /// What is deleted or written over is gone from the WAL too after this time. Default 30 s.
    #[serde(default = "default_erase_after", with = "humantime_serde")]
    pub erase_after: Duration,
}

impl StoreSettings {
    /// The defaults, for a file that is used without a settings file.
    pub fn in_file(path: PathBuf) -> Self {
        Self {
            path,
            lookup_key_file: PathBuf::new(),
            row_key_file: None,
            erase_after: ERASE_AFTER,
        }
    }

    pub fn row_key_file(&self) -> PathBuf {
        self.row_key_file
            .clone()
            .unwrap_or_else(|| row_key_beside(&self.lookup_key_file))
    }

    pub fn is_erased_in_time(&self) -> bool {
        self.erase_after <= LONGEST_ERASE_AFTER
    }
}

/// Where the row keys are if no setting says it.
pub fn row_key_beside(lookup_key_file: &Path) -> PathBuf {
    lookup_key_file.with_file_name("rows")
}

const fn default_erase_after() -> Duration {
    ERASE_AFTER
}

fn default_path() -> PathBuf {
    "data/subscriptions.db".into()
}

/// Turns a device into the name of its row.
#[derive(Debug)]
pub struct LookupKey(Secret<[u8; 32]>);

/// A row's whole name, sealed in it. The file shows 63 bits of it, which say nothing without the key.
type Name = [u8; 32];

impl LookupKey {
    pub const fn new(key: Secret<[u8; 32]>) -> Self {
        Self(key)
    }

    /// Another key for another purpose, so that one more file need not be kept.
    pub fn derive(&self, purpose: &str) -> Secret<[u8; 32]> {
        Secret::new(keyed_hash_32(&self.0, &[purpose.as_bytes()]))
    }

    fn name(&self, device: &DeviceId) -> Name {
        keyed_hash_32(
            &self.0,
            &[
                device.account.expose(),
                &[device.service.code()],
                device.token.identity(device.service),
            ],
        )
    }

    /// The name of the mark of who signed: the account's own key, or a delegate's.
    fn binding_mark(&self, subscription: &Subscription) -> Name {
        let delegate = subscription.subaccount.as_ref().map(Subaccount::delegate);
        keyed_hash_32(
            &self.0,
            &[
                b"binding",
                subscription.device.account.expose(),
                delegate.map_or(&[], <[u8; 32]>::as_slice),
            ],
        )
    }
}

/// The last day on which a signature can count: days since 1970-01-01.
fn expires_day(subscription: &Subscription) -> i64 {
    day_of(subscription.expires_at())
}

/// Days since 1970-01-01 UTC.
pub fn day_of(unix_seconds: i64) -> i64 {
    unix_seconds.div_euclid(86_400)
}

/// How far a client's clock that is right may be from ours when its request is judged: the way through an onion request and a slow disk,
/// and what is left when a network has set the clock. Small, because so long an old request can be repeated against a row that is ahead.
pub const CLOCKS_DIFFER_SECONDS: i64 = 60;

/// Devices named in one statement of `load`.
pub const LOAD_BATCH: usize = 500;

/// Subscriptions in one item of `scan`.
pub const SCAN_BATCH: i64 = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_need_the_key_file_and_refuse_unknown_keys() {
        let read = |text: &str| serde_json::from_str::<StoreSettings>(text);
        assert_eq!(
            read(r#"{"lookup_key_file": "k"}"#).unwrap().path,
            PathBuf::from("data/subscriptions.db")
        );
        assert!(read("{}").is_err());
        let keys = |text: &str| read(text).unwrap().row_key_file();
        assert_eq!(keys(r#"{"lookup_key_file": "a/k"}"#), PathBuf::from("a/rows"));
        assert_eq!(
            keys(r#"{"lookup_key_file": "a/k", "row_key_file": "b/r"}"#),
            PathBuf::from("b/r")
        );
        let erased = |after: &str| read(&format!(r#"{{"lookup_key_file": "k", "erase_after": "{after}"}}"#)).unwrap();
        assert!(erased("50s").is_erased_in_time() && !erased("51s").is_erased_in_time());
        assert!(read(r#"{"lookup_key_file": "k", "paht": "x"}"#).is_err());
    }

    #[test]
    fn a_day_ends_at_midnight_also_before_1970() {
        assert_eq!(
            [-86_401, -86_400, -1, 0, 86_399, 86_400].map(day_of),
            [-2, -1, -1, 0, 0, 1]
        );
    }
}
