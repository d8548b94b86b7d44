//! Wakeups not yet delivered: their order, retries, deadlines, and why one is dropped.
//!
//! In: `Sealed` wakeups, provider outcomes, the clock (Unix milliseconds). Out: what to send now, what to write, what
//! to forget. Never: sends, or touches a disk.

use crate::account::{DeviceToken, Service};
use crate::seal::Sealed;
use std::time::Duration;

/// An entry's row number in the outbox file. Grows, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub i64);

/// The name a provider sees for one wakeup, the same on each retry (APNs `apns-id`). 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PushId(pub [u8; 16]);

impl std::fmt::Debug for PushId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PushId(<private>)")
    }
}

/// A wakeup as the outbox file holds it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: EntryId,
    pub push_id: PushId,
    pub sealed: Sealed,
    /// Unix milliseconds: min(message expiry, accepted + the service's cap).
    pub deadline_ms: i64,
    /// How many times a provider was asked.
    pub attempt: u32,
}

/// What a provider's answer means. Each variant says what happens to the entry; what happens to the lane is [`RetryReason::scope`]
/// and [`Refusal::stops_lane`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// `after`: what the provider asked for (Retry-After), if it did.
    Retry {
        after: Option<Duration>,
        reason: RetryReason,
    },
    /// Too large for the provider: send the "too long" form, once.
    TryFallback,
    /// The token is dead. `provider_time_ms` (Unix ms): since when, where the provider says so.
    /// `certain` = an answer that a wrong credential or topic cannot cause; others delete only while the credential is healthy.
    Gone {
        provider_time_ms: Option<i64>,
        certain: bool,
    },
    /// The entry is dropped, the token kept.
    Refused(Refusal),
}

/// Why an entry is tried again. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryReason {
    /// Connect, TLS, reset, GOAWAY with this stream unprocessed.
    Connection,
    Timeout,
    /// 500, 502, 503, Shutdown.
    Unavailable,
    /// This one token gets too many.
    TokenRate,
    /// The whole project or lane is over its quota.
    LaneRate,
    /// The provider token had expired; a new one is minted.
    CredentialExpired,
    /// The credential is refused: the lane stops, its queue stays, an operator must act.
    CredentialRefused,
}

/// Whom a retry slows down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Entry,
    Token,
    Lane,
    /// Nothing more is sent until the credential works again (probed with one entry at a time).
    LaneStopped,
}

impl RetryReason {
    pub const fn scope(self) -> Scope {
        match self {
            Self::Connection | Self::Timeout | Self::Unavailable | Self::CredentialExpired => Scope::Entry,
            Self::TokenRate => Scope::Token,
            Self::LaneRate => Scope::Lane,
            Self::CredentialRefused => Scope::LaneStopped,
        }
    }
}

/// Why an entry is dropped although its token is fine. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A 4xx that says the request is malformed: ours to mend.
    OurFault,
    /// Said to be too large even in its "too long" form.
    TooLarge,
    /// A token of another app or project while the credential is not known to be healthy.
    ForeignToken,
    /// An answer the tables do not know.
    Unknown,
}

/// Which device a lane waits for or forgets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub service: Service,
    pub token: DeviceToken,
}
