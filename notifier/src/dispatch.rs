//! From a sealed wakeup to a provider's answer.
//!
//! In: `Push`es of one service. Out: one `Outcome` for each, in the order of the answers. Never: decides when to try again,
//! touches the outbox or the store, or shows a token, an address or a key.
//!
//! One lane a service, with its own connections and its own limit: a slow or broken provider delays no other.

pub mod answer;
pub mod apns;
pub mod credential;
pub mod fcm;
pub mod http2;
pub mod settings;

pub use apns::Apns;
pub use fcm::Fcm;
pub use settings::{ApnsSettings, DispatchSettings, Fault, FirebaseSettings, SettingsFault};

use answer::{Answer, Effect};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http2::ExchangeFault;
use notifier_core::account::{DeviceToken, Service};
use notifier_core::outbox::{self, EntryId, Outcome, PushId, RetryReason};
use notifier_core::seal::{Class, Priority};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Sends the jobs of one service until `shutdown` or the end of `jobs`, and then ends what is under way.
///
/// At most `concurrency` pushes are under way; each takes at most `timeout`, and less if its deadline is nearer.
pub async fn run_lane<P: Provider, J: Into<Push> + Send>(
    provider: Arc<P>,
    mut jobs: mpsc::Receiver<J>,
    outcomes: mpsc::Sender<(EntryId, Outcome)>,
    concurrency: usize,
    timeout: Duration,
    shutdown: impl Future<Output = ()> + Send,
) {
    let service = provider.service().name();
    let seconds = metrics::histogram!("dispatch_push_seconds", "service" => service);
    let in_flight = metrics::gauge!("dispatch_in_flight", "service" => service);
    let mut under_way = FuturesUnordered::new();
    let mut shutdown = pin!(shutdown);
    let mut is_open = true;
    loop {
        tokio::select! {
            biased;
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                in_flight.decrement(1.0);
                if outcomes.send(done).await.is_err() {
                    return;
                }
            }
            () = &mut shutdown, if is_open => is_open = false,
            job = jobs.recv(), if is_open && under_way.len() < concurrency => match job {
                None => is_open = false,
                Some(job) => {
                    let push: Push = job.into();
                    in_flight.increment(1.0);
                    let (provider, seconds) = (&provider, &seconds);
                    under_way.push(async move {
                        let start = Instant::now();
                        let patience = push.patience(timeout, unix_ms());
                        let outcome = match provider.push(&push, start + patience).await {
                            Outcome::Retry {
                                reason: RetryReason::Timeout,
                                ..
                            } if patience < timeout => Outcome::Expired,
                            outcome => outcome,
                        };
                        seconds.record(start.elapsed().as_secs_f64());
                        (push.entry, outcome)
                    });
                }
            },
            else => return,
        }
    }
}

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
    fn patience(&self, timeout: Duration, now_ms: i64) -> Duration {
        let left = self.deadline_ms.saturating_sub(now_ms);
        timeout.min(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }
}

/// A push service.
pub trait Provider: Send + Sync {
    fn service(&self) -> Service;

    /// Sends one push and tells what the answer means, not later than at `deadline`.
    fn push(&self, push: &Push, deadline: Instant) -> impl Future<Output = Outcome> + Send;
}

/// The clock as providers need it: Unix milliseconds.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Counts a lane's answers, and says once what an operator must know.
struct Meter {
    service: &'static str,
    delivered: metrics::Counter,
    /// [`UNKNOWN`], [`HEALTHY`] or [`REFUSED`].
    credential: AtomicU8,
    credential_state: metrics::Gauge,
    alerted: AtomicBool,
}

const UNKNOWN: u8 = 0;
const HEALTHY: u8 = 1;
const REFUSED: u8 = 2;

impl Meter {
    fn new(service: Service) -> Self {
        let service = service.name();
        let credential_state = metrics::gauge!("dispatch_credential_state", "service" => service);
        credential_state.set(f64::from(UNKNOWN));
        Self {
            service,
            delivered: metrics::counter!("dispatch_answers_total", "service" => service, "reason" => "delivered"),
            credential: AtomicU8::new(UNKNOWN),
            credential_state,
            alerted: AtomicBool::new(false),
        }
    }

    fn record(&self, push: &Push, answer: Answer) -> Outcome {
        let answer = if push.too_long {
            answer.without_fallback()
        } else {
            answer
        };
        let Answer { outcome, label, effect } = answer;
        match &outcome {
            Outcome::Delivered => {
                self.delivered.increment(1);
                self.turn_credential(HEALTHY, label);
                return outcome;
            }
            Outcome::Retry {
                reason: RetryReason::CredentialRefused,
                ..
            } => self.turn_credential(REFUSED, label),
            _ => {}
        }
        metrics::counter!("dispatch_answers_total", "service" => self.service, "reason" => label).increment(1);
        // The counter tells how often; the log says it once a run.
        if effect == Effect::Alert && !self.alerted.swap(true, Ordering::Relaxed) {
            tracing::warn!(service = self.service, reason = label, "provider refuses what we send");
        }
        outcome
    }

    fn turn_credential(&self, state: u8, label: &'static str) {
        if self.credential.load(Ordering::Relaxed) == state || self.credential.swap(state, Ordering::Relaxed) == state {
            return;
        }
        self.credential_state.set(f64::from(state));
        if state == REFUSED {
            tracing::error!(
                service = self.service,
                reason = label,
                "provider refuses the credential"
            );
        } else {
            tracing::info!(service = self.service, "provider accepts the credential");
        }
    }
}

/// By our own count, so that no provider has to say it.
const TOO_LARGE_HERE: Answer = Answer::new(Outcome::TryFallback, "too-large-here").and(Effect::Alert);
const TIMED_OUT: Answer = Answer::retry(RetryReason::Timeout, "timeout");

fn no_reply(fault: ExchangeFault) -> Answer {
    let after = match fault {
        ExchangeFault::Paused(pause) => Some(pause),
        // Safe to send again, and certainly not delivered.
        ExchangeFault::Unprocessed => Some(Duration::ZERO),
        ExchangeFault::Reset | ExchangeFault::Closed => None,
    };
    Answer::retry_after(RetryReason::Connection, after, fault.label())
}

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
