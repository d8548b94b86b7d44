//! From a request's JSON to a signed, fresh, sorted subscription.
//!
//! In: the JSON text of `/subscribe` or `/unsubscribe`, the clock. Out: `Subscription`s, `Unsubscription`s and errors, item
//! by item. Never: stores, or answers HTTP.

use crate::account::{AccountId, DeviceToken, NamespaceSet, Service};
use quietline_shared::redact::Secret;

/// How long a MONITOR signature counts: 14 days (push.md §3 Q25).
pub const SIGNATURE_LIFETIME_SECONDS: i64 = 14 * 24 * 3600;

/// One device of one account, as its owner signed it.
#[derive(Debug)]
pub struct Subscription {
    pub device: DeviceId,
    /// For an 05 account: its Ed25519 key, which converts to the account's X25519 key.
    pub session_ed25519: Option<[u8; 32]>,
    pub subaccount: Option<Subaccount>,
    pub namespaces: NamespaceSet,
    pub want_data: bool,
    /// Unix seconds.
    pub sig_ts: i64,
    pub signature: [u8; 64],
    /// XChaCha20-Poly1305 key of this device's wakeups.
    pub enc_key: Secret<[u8; 32]>,
}

/// What makes a subscription unique: a renewal with the same three values replaces the old one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    pub account: AccountId,
    pub service: Service,
    pub token: DeviceToken,
}

/// Delegated access: `tag` is signed by the account and holds flags and the delegate's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subaccount {
    pub tag: [u8; 36],
    pub signature: [u8; 64],
}

/// A verified wish to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscription {
    pub device: DeviceId,
}

impl Subscription {
    /// Unix seconds after which the storage network refuses the signature.
    pub fn expires_at(&self) -> i64 {
        self.sig_ts.saturating_add(SIGNATURE_LIFETIME_SECONDS)
    }
}
