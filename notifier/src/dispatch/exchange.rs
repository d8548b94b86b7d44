//! What is the same for every provider: a request, an answer, once more with a new credential, and never a word too late.
//!
//! In: a `Push`, and a [`Provider`] that knows its service. Out: the push's `Outcome`. Never: decides when to try again, or asks twice
//! for one push unless the first request was certainly not acted on.

use super::answer::{Answer, Effect};
use super::http2::{ExchangeFault, Pool, Reply, ReplyBody};
use super::lane::Deliver;
use super::{Push, unix_ms};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::HeaderMap;
use notifier_core::account::Service;
use notifier_core::outbox::{Outcome, RetryReason};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tokio::time::{Instant, timeout_at};

/// What is particular to one push service.
///
/// For each push, in this order: [`form`](Self::form) once; [`credential`](Self::credential); [`pool`](Self::pool) and
/// [`request`](Self::request) for each time it is sent; [`read`](Self::read) for each answer; [`renew`](Self::renew) at most once. An `Err` at any
/// step is the push's answer.
pub trait Provider: Send + Sync + 'static {
    /// What is the same each time one push is sent.
    type Form: Send + Sync;
    /// What proves in a request who we are. A clone is cheap.
    type Credential: Clone + Send + Sync;

    fn service(&self) -> Service;

    /// `Err`: no provider need be asked, such as [`TOO_LARGE_HERE`](super::TOO_LARGE_HERE).
    fn form(&self, push: &Push, now_ms: i64) -> Result<Self::Form, Answer>;

    /// The credential now. If there is none for a while nothing can be sent: [`Answer::held`].
    fn credential(&self, form: &Self::Form) -> impl Future<Output = Result<Self::Credential, Answer>> + Send;

    /// The provider said of `spent` that it has expired ([`RetryReason::CredentialExpired`]), in `answer`: another one, or what becomes of the push.
    fn renew(
        &self,
        spent: &Self::Credential,
        answer: &Answer,
    ) -> impl Future<Output = Result<Self::Credential, Answer>> + Send;

    /// Where this push goes.
    fn pool(&self, form: &Self::Form) -> impl Future<Output = Result<Pool, Answer>> + Send;

    fn request(&self, form: &Self::Form, credential: &Self::Credential) -> Request<Full<Bytes>>;

    /// The service's table of answers. An empty `body` may also be one that is too large to be read.
    fn read(&self, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer;

    /// Whether the status alone says that the push is delivered: whatever becomes of the body.
    fn accepts(&self, status: u16) -> bool {
        status == 200
    }

    /// Whether the status says that the credential is good on this connection (see `PoolSettings::prove_first`).
    fn proves_connection(&self, _status: u16) -> bool {
        false
    }
}

/// One provider's way of sending.
pub struct Exchange<P> {
    provider: P,
    meter: Meter,
}

impl<P: Provider> Exchange<P> {
    pub fn new(provider: P) -> Self {
        let meter = Meter::new(provider.service());
        Self { provider, meter }
    }

    /// Whether somebody was told of a fault.
    #[cfg(test)]
    pub(super) fn has_alerted(&self) -> bool {
        self.meter.alerted.load(Ordering::Relaxed)
    }

    /// Until an answer stands. `is_accepted` is set as soon as the status says so.
    async fn attempt(&self, push: &Push, is_accepted: &mut bool) -> Result<Answer, Answer> {
        let mut form = self.provider.form(push, unix_ms())?;
        let mut credential = self.provider.credential(&form).await?;
        let (mut is_renewed, mut is_changed) = (false, false);
        loop {
            let pool = self.provider.pool(&form).await?;
            let sent = pool.exchange(|| self.provider.request(&form, &credential)).await;
            let mut reply = sent.map_err(no_reply)?;
            let answer = self.read(&mut reply, is_accepted).await;
            // Its stream is free for others while this one asks for a credential.
            drop(reply);
            if answer.effect == Effect::FormAnew && !is_changed {
                is_changed = true;
                self.meter.note(&answer);
                form = self.provider.form(push, unix_ms())?;
            } else if answer.has_expired_credential() {
                if is_renewed {
                    // A fresh one is refused as well: it is not its age.
                    return Err(Answer::retry(RetryReason::CredentialRefused, answer.label).and(Effect::Alert));
                }
                is_renewed = true;
                credential = self.provider.renew(&credential, &answer).await?;
            } else {
                return Ok(answer);
            }
        }
    }

    async fn read(&self, reply: &mut Reply, is_accepted: &mut bool) -> Answer {
        let status = reply.status.as_u16();
        *is_accepted = self.provider.accepts(status);
        if self.provider.proves_connection(status) {
            reply.prove_connection();
        }
        let answer = match reply.body().await {
            ReplyBody::Whole(body) => self.provider.read(status, &reply.headers, &body, unix_ms()),
            _ if *is_accepted => Answer::DELIVERED,
            ReplyBody::TooLarge => self.provider.read(status, &reply.headers, b"", unix_ms()),
            ReplyBody::Broken(fault) => no_reply(fault),
        };
        if answer.effect == Effect::LeaveConnection {
            reply.leave_connection();
        }
        answer
    }
}

impl<P: Provider> Deliver for Exchange<P> {
    fn service(&self) -> Service {
        self.provider.service()
    }

    async fn push(&self, push: &Push, deadline: Instant) -> Outcome {
        let mut is_accepted = false;
        let answer = match timeout_at(deadline, self.attempt(push, &mut is_accepted)).await {
            Ok(Ok(answer) | Err(answer)) => answer,
            Err(_) if is_accepted => Answer::DELIVERED,
            Err(_) => TIMED_OUT,
        };
        self.meter.record(push, answer)
    }
}

const TIMED_OUT: Answer = Answer::retry(RetryReason::Timeout, "timeout");

fn no_reply(fault: ExchangeFault) -> Answer {
    match fault {
        ExchangeFault::Paused(pause) => Answer::held(pause, fault.label()),
        ExchangeFault::Unprocessed | ExchangeFault::Reset | ExchangeFault::Closed => {
            Answer::retry(RetryReason::Connection, fault.label())
        }
    }
}

/// Counts a lane's answers, and says once what an operator must know.
pub(super) struct Meter {
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
    pub fn new(service: Service) -> Self {
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

    pub fn record(&self, push: &Push, answer: Answer) -> Outcome {
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
        self.count(label, effect);
        outcome
    }

    /// An answer after which the same push is sent once more.
    fn note(&self, answer: &Answer) {
        self.count(answer.label, Effect::Alert);
    }

    fn count(&self, label: &'static str, effect: Effect) {
        metrics::counter!("dispatch_answers_total", "service" => self.service, "reason" => label).increment(1);
        // The counter tells how often; the log says it once a run.
        if effect == Effect::Alert && !self.alerted.swap(true, Ordering::Relaxed) {
            tracing::warn!(service = self.service, reason = label, "provider refuses what we send");
        }
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
