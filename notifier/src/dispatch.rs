//! From a sealed wakeup to a provider's answer.
//!
//! In: `Push`es of one service. Out: one `Outcome` for each, in the order of the answers. Never: decides when to try again,
//! touches the outbox or the store, or shows a token, an address or a key.
//!
//! One lane a service ([`lane`]), with its own connections ([`http2`]): a slow or broken provider delays no other. What is the same for every
//! provider is in [`exchange`]; what is its own is a [`Provider`].

pub mod answer;
pub mod apns;
pub mod credential;
pub mod exchange;
pub mod fcm;
pub mod http2;
pub mod huawei;
pub mod lane;
mod oauth;
pub mod settings;
mod signed;
pub mod webpush;

pub use apns::Apns;
pub use credential::offered_groups;
pub use exchange::{Exchange, Provider};
pub use fcm::Fcm;
pub use huawei::Huawei;
pub use lane::{Deliver, run_lane};
pub use settings::{
    ApnsSettings, DispatchSettings, Fault, FirebaseSettings, HuaweiSettings, SettingsFault, WebpushSettings,
};
pub use webpush::Webpush;

use answer::{Answer, Effect};
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::{self, EntryId, Outcome, PushId};
use notifier_core::seal::{Class, Priority, Sealed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One wakeup on its way to a provider.
#[derive(Clone, Debug)]
pub struct Push {
    pub entry: EntryId,
    pub push_id: PushId,
    pub service: Service,
    pub token: DeviceToken,
    /// The sealed bytes: the body, or the "too long" form.
    pub payload: Box<[u8]>,
    pub priority: Priority,
    pub class: Class,
    /// `payload` is the "too long" form: there is no smaller one, and one such wakeup is as good as another.
    pub too_long: bool,
    /// Unix milliseconds after which nobody waits for an outcome.
    pub deadline_ms: i64,
    /// Unix milliseconds after which the provider should not deliver it.
    pub expires_at_ms: i64,
}

impl From<outbox::Push> for Push {
    fn from(push: outbox::Push) -> Self {
        let sealed = &push.sealed;
        Self {
            entry: push.id,
            push_id: push.push_id,
            service: sealed.service,
            token: sealed.token.clone(),
            payload: push.body().into(),
            priority: sealed.priority,
            class: sealed.class,
            too_long: push.fallback || sealed.fallback.is_none(),
            deadline_ms: push.deadline_ms,
            expires_at_ms: sealed.expires_at_ms,
        }
    }
}

impl Push {
    /// One that is in no outbox.
    pub fn alone(sealed: Sealed, push_id: PushId) -> Self {
        Self {
            entry: EntryId(0),
            push_id,
            service: sealed.service,
            token: sealed.token,
            payload: sealed.body,
            priority: sealed.priority,
            class: sealed.class,
            too_long: sealed.fallback.is_none(),
            deadline_ms: sealed.expires_at_ms,
            expires_at_ms: sealed.expires_at_ms,
        }
    }

    fn patience(&self, timeout: Duration, now_ms: i64) -> Duration {
        let left = self.deadline_ms.saturating_sub(now_ms);
        timeout.min(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }
}

/// The clock as providers need it: Unix milliseconds.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// By our own count, so that no provider has to say it.
const TOO_LARGE_HERE: Answer = Answer::new(Outcome::TryFallback, "too-large-here").and(Effect::Alert);
/// `bytes` in standard base64 with padding, without a copy in between.
fn put_base64(buffer: &mut bytes::BytesMut, bytes: &[u8]) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let start = buffer.len();
    buffer.resize(start + base64_length(bytes.len()), 0);
    if let Some(space) = buffer.get_mut(start..) {
        let written = STANDARD.encode_slice(bytes, space);
        debug_assert!(written.is_ok(), "the space was measured");
    }
}

const fn base64_length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn put_hex(buffer: &mut bytes::BytesMut, bytes: &[u8]) {
    let start = buffer.len();
    buffer.resize(start + bytes.len() * 2, 0);
    if let Some(space) = buffer.get_mut(start..) {
        let written = hex::encode_to_slice(bytes, space);
        debug_assert!(written.is_ok(), "the space was measured");
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
