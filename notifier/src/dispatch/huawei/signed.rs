//! What a service account signs: reused for most of its hour, and signed anew when it is called expired.
//!
//! In: the clock, twice (Unix seconds for Huawei, a monotonic one for us). Out: the `authorization` of a request. Never: signs for each
//! push.

use crate::dispatch::credential::HuaweiAccount;
use hyper::header::HeaderValue;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Huawei accepts what is signed for an hour.
const REUSED: Duration = Duration::from_secs(50 * 60);

/// What was signed so lately is refused for another reason than its age.
const FRESH: Duration = Duration::from_secs(60);

pub struct SignedTokens {
    account: Box<HuaweiAccount>,
    signed: Mutex<Option<Signed>>,
}

struct Signed {
    bearer: HeaderValue,
    /// Unix seconds, as it says.
    issued_at: i64,
    at: Instant,
}

impl SignedTokens {
    pub fn new(account: Box<HuaweiAccount>) -> Self {
        Self {
            account,
            signed: Mutex::new(None),
        }
    }

    /// `None` if the key cannot sign.
    pub fn current(&self, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*signed {
            // The clocks part when the machine sleeps or its time is set.
            let stated_age = unix_seconds.saturating_sub(signed.issued_at);
            let is_fresh = (0..REUSED.as_secs() as i64).contains(&stated_age);
            if is_fresh && now.saturating_duration_since(signed.at) < REUSED {
                return Some(signed.bearer.clone());
            }
        }
        self.sign(&mut signed, unix_seconds, now)
    }

    /// Huawei refused `spent`. `None` if a new one would be refused as well.
    pub fn renew(&self, spent: &HeaderValue, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*signed {
            if signed.bearer != spent {
                return Some(signed.bearer.clone());
            }
            if now.saturating_duration_since(signed.at) < FRESH {
                return None;
            }
        }
        self.sign(&mut signed, unix_seconds, now)
    }

    fn sign(&self, signed: &mut Option<Signed>, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let token = self.account.sign(unix_seconds)?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
        bearer.set_sensitive(true);
        *signed = Some(Signed {
            bearer: bearer.clone(),
            issued_at: unix_seconds,
            at: now,
        });
        Some(bearer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::credential::HuaweiCredential;
    use crate::dispatch::fake::Files;

    const MINUTE: Duration = Duration::from_secs(60);

    fn tokens() -> SignedTokens {
        let files = Files::new();
        match HuaweiCredential::open(&files.huawei_v3(443)) {
            Ok(HuaweiCredential::Signed(account)) => SignedTokens::new(account),
            _ => panic!("the fake's credential signs"),
        }
    }

    #[test]
    fn a_signature_is_reused_for_fifty_minutes() {
        let (tokens, start) = (tokens(), Instant::now());
        let first = tokens.current(1000, start).unwrap();
        assert!(tokens.current(1000 + 49 * 60, start + MINUTE * 49).unwrap() == first);
        let second = tokens.current(1000 + 50 * 60, start + MINUTE * 50).unwrap();
        assert!(second != first && second.is_sensitive());
        assert!(
            tokens.current(0, start + MINUTE * 50).unwrap() != second,
            "a clock that was set"
        );
    }

    #[test]
    fn a_refused_signature_is_made_anew_unless_it_was_made_a_moment_ago() {
        let (tokens, start) = (tokens(), Instant::now());
        let first = tokens.current(1000, start).unwrap();
        assert!(tokens.renew(&first, 1059, start + Duration::from_secs(59)).is_none());
        let second = tokens.renew(&first, 1060, start + MINUTE).unwrap();
        assert!(second != first);
        // Those who still hold the first one get the second.
        assert!(tokens.renew(&first, 1060, start + MINUTE).unwrap() == second);
    }
}
