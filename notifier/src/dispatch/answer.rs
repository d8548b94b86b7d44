//! What a provider's answer means, and what of it all providers share.
//!
//! In: status, headers, body. Out: an `Answer`. Never: waits, or looks at a clock.

use hyper::header::{HeaderMap, RETRY_AFTER};
use notifier_core::outbox::{Outcome, Refusal, RetryReason};
use std::time::{Duration, UNIX_EPOCH};

/// One answer, or the lack of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    /// Metric label, from the closed sets in this folder; never a provider's own text.
    pub label: &'static str,
    pub effect: Effect,
}

/// What an answer does besides its own push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// The connection takes no further push; those under way on it may end.
    LeaveConnection,
    /// The provider's own part has learnt from it and makes another request of the same push, once. Somebody must look as well.
    FormAnew,
    /// A fault of ours or of the settings: somebody must look.
    Alert,
}

impl Answer {
    pub const DELIVERED: Self = Self::new(Outcome::Delivered, "delivered");

    pub const fn new(outcome: Outcome, label: &'static str) -> Self {
        Self {
            outcome,
            label,
            effect: Effect::None,
        }
    }

    pub const fn retry(reason: RetryReason, label: &'static str) -> Self {
        Self::new(Outcome::Retry { after: None, reason }, label)
    }

    pub const fn retry_after(reason: RetryReason, after: Option<Duration>, label: &'static str) -> Self {
        Self::new(Outcome::Retry { after, reason }, label)
    }

    /// Nothing was sent: nothing can be, for `pause`.
    pub const fn held(pause: Duration, label: &'static str) -> Self {
        Self::new(Outcome::Held { pause }, label)
    }

    pub const fn refused(refusal: Refusal, label: &'static str) -> Self {
        Self::new(Outcome::Refused(refusal), label)
    }

    pub const fn fault_of_ours(label: &'static str) -> Self {
        Self::refused(Refusal::OurFault, label).and(Effect::Alert)
    }

    /// The token is dead, but a wrong credential would be answered in the same way.
    pub const fn gone_guarded(label: &'static str) -> Self {
        let outcome = Outcome::Gone {
            provider_time_ms: None,
            certain: false,
        };
        Self::new(outcome, label)
    }

    pub const fn and(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    pub const fn has_expired_credential(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Retry {
                reason: RetryReason::CredentialExpired,
                ..
            }
        )
    }

    /// For a wakeup that is in its "too long" form already there is no smaller one.
    pub fn without_fallback(self) -> Self {
        match self.outcome {
            Outcome::TryFallback => Self {
                outcome: Outcome::Refused(Refusal::TooLarge),
                ..self
            },
            _ => self,
        }
    }
}

/// The answer to a status whose provider explained it in words that the tables do not know.
pub fn by_status_explained(status: u16, after: Option<Duration>) -> Answer {
    let answer = by_status(status, after);
    if answer.label == UNEXPLAINED {
        return Answer::refused(Refusal::Unknown, "other-refused").and(Effect::Alert);
    }
    answer
}

/// Whoever says this is perhaps no provider but something in between, and it says nothing of the push.
const UNEXPLAINED: &str = "other-unexplained";

/// The answer to a status without an explanation.
pub fn by_status(status: u16, after: Option<Duration>) -> Answer {
    match status {
        200..=299 => Answer::DELIVERED,
        // Somebody between us and the provider: it may be gone later.
        100..=199 | 300..=399 => Answer::retry(RetryReason::Unavailable, "other-redirect"),
        401 | 403 | 407 => Answer::retry(RetryReason::CredentialRefused, "other-forbidden").and(Effect::Alert),
        408 | 425 => Answer::retry(RetryReason::Unavailable, "other-timeout"),
        413 => Answer::new(Outcome::TryFallback, "too-large").and(Effect::Alert),
        421 => Answer::retry(RetryReason::Connection, "misdirected").and(Effect::LeaveConnection),
        429 => Answer::retry_after(RetryReason::LaneRate, after, "other-rate"),
        500..=599 => Answer::retry_after(RetryReason::Unavailable, after, "other-unavailable"),
        _ => Answer::retry_after(RetryReason::Unavailable, after, UNEXPLAINED).and(Effect::Alert),
    }
}

/// Longest pause a provider may ask for. Longer ones are cut: a slip of theirs must not silence us for days.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// `Retry-After`, as seconds or as a date (RFC 9110 §10.2.3).
pub fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        RETRY_AFTER_MAX
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(now_ms).ok()?);
        date.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn asked(text: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
        // 1994-11-06T08:49:37Z
        retry_after(&headers, 784_111_777_000)
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:51:37 GMT"), Some(Duration::from_secs(120)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after(&HeaderMap::new(), 0), None);
    }

    #[test]
    fn retry_after_is_bounded_and_garbage_is_ignored() {
        assert_eq!(asked("999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(asked("99999999999999999999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(asked("Sat, 06 Nov 2094 08:49:37 GMT"), Some(RETRY_AFTER_MAX));
        for text in ["", "-1", "soon", "1.5", "\u{1}"] {
            if let Ok(value) = HeaderValue::from_str(text) {
                let mut headers = HeaderMap::new();
                headers.insert(RETRY_AFTER, value);
                assert_eq!(retry_after(&headers, 0), None, "{text:?}");
            }
        }
    }
}
