//! One swarm notification, parsed and bounded.
//!
//! In: the body of `notify.message`. Out: `MessageEvent` or a named refusal. Never: knows who is subscribed.

use crate::account::{AccountId, MessageHash, Namespace};
use bytes::Bytes;

/// A new message in a swarm, as one storage node reports it.
#[derive(Clone, Debug)]
pub struct MessageEvent {
    pub account: AccountId,
    pub hash: MessageHash,
    pub namespace: Namespace,
    /// Unix milliseconds; may be negative.
    pub timestamp_ms: i64,
    /// Unix milliseconds.
    pub expiry_ms: i64,
    /// Private by what carries it: never in a log; at most [`MAX_BODY`] bytes.
    pub body: Option<Body>,
}

/// The encrypted message itself.
#[derive(Clone)]
pub struct Body(pub Bytes);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(<private>)")
    }
}

/// Largest body a storage server keeps: 76,800 bytes.
pub const MAX_BODY: usize = 76_800;
