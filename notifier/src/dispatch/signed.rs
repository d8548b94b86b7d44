//! What a key signs to say who we are: reused for most of its life, and signed anew when it is called expired.
//!
//! In: the clock, twice (Unix seconds for the provider, a monotonic one for us). Out: the `authorization` of a request. Never: signs for
//! each push, or more often than the provider allows.

use hyper::header::HeaderValue;
use quietline_shared::redact::Secret;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A key that signs what a provider takes instead of a password.
pub trait Signer {
    /// Before the token, spelled as the provider's own documents do.
    const SCHEME: &'static str;
    /// How long one signature is used.
    const REUSED: Duration;
    /// What is younger is not replaced, even if it is refused: another would be refused as well.
    const SIGNED_AT_MOST_EVERY: Duration;

    /// A token issued at `unix_seconds`. `None` if the key cannot sign.
    fn sign(&self, unix_seconds: i64) -> Option<Secret<String>>;
}

pub struct SignedTokens<S> {
    signer: Box<S>,
    current: Mutex<Option<Signed>>,
}

struct Signed {
    bearer: HeaderValue,
    /// Unix seconds, as it says.
    issued_at: i64,
    at: Instant,
}

/// What becomes of a token that the provider says has expired.
pub enum Renewal {
    Renewed(HeaderValue),
    /// A new one may be signed after this time.
    TooEarly(Duration),
    Failed,
}

impl<S: Signer> SignedTokens<S> {
    pub fn new(signer: Box<S>) -> Self {
        Self {
            signer,
            current: Mutex::new(None),
        }
    }

    /// `None` if the key cannot sign.
    pub fn current(&self, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*current {
            let age = now.saturating_duration_since(signed.at);
            // The clocks part when the machine sleeps or its time is set: then the provider's view is the Unix one.
            let stated_age = unix_seconds.saturating_sub(signed.issued_at);
            let is_fresh = age < S::REUSED && (0..S::REUSED.as_secs() as i64).contains(&stated_age);
            if is_fresh || age < S::SIGNED_AT_MOST_EVERY {
                return Some(signed.bearer.clone());
            }
        }
        self.sign(&mut current, unix_seconds, now)
    }

    /// The provider refused `spent` as expired.
    pub fn renew(&self, spent: &HeaderValue, unix_seconds: i64, now: Instant) -> Renewal {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*current {
            if signed.bearer != spent {
                return Renewal::Renewed(signed.bearer.clone());
            }
            let age = now.saturating_duration_since(signed.at);
            if age < S::SIGNED_AT_MOST_EVERY {
                return Renewal::TooEarly(S::SIGNED_AT_MOST_EVERY - age);
            }
        }
        self.sign(&mut current, unix_seconds, now)
            .map_or(Renewal::Failed, Renewal::Renewed)
    }

    fn sign(&self, current: &mut Option<Signed>, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let token = self.signer.sign(unix_seconds)?;
        let text = Secret::new(format!("{} {}", S::SCHEME, token.expose()));
        let mut bearer = HeaderValue::from_str(text.expose()).ok()?;
        bearer.set_sensitive(true);
        *current = Some(Signed {
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
    use std::cell::Cell;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Signs with a number.
    struct Counting(Cell<u32>);

    impl Signer for Counting {
        const SCHEME: &'static str = "bearer";
        const REUSED: Duration = Duration::from_secs(45 * 60);
        const SIGNED_AT_MOST_EVERY: Duration = Duration::from_secs(20 * 60);

        fn sign(&self, unix_seconds: i64) -> Option<Secret<String>> {
            self.0.set(self.0.get() + 1);
            (unix_seconds >= 0).then(|| Secret::new(format!("number {}", self.0.get())))
        }
    }

    fn tokens() -> (SignedTokens<Counting>, Instant) {
        (SignedTokens::new(Box::new(Counting(Cell::new(0)))), Instant::now())
    }

    #[test]
    fn a_token_is_reused_for_its_time() {
        let (tokens, start) = tokens();
        let first = tokens.current(1000, start).unwrap();
        assert_eq!(first, "bearer number 1");
        assert!(first.is_sensitive());
        assert_eq!(tokens.current(1000 + 44 * 60, start + MINUTE * 44).unwrap(), first);
        assert_eq!(
            tokens.current(1000 + 45 * 60, start + MINUTE * 45).unwrap(),
            "bearer number 2"
        );
    }

    #[test]
    fn an_expired_token_is_signed_anew_but_not_too_often() {
        let (tokens, start) = tokens();
        let first = tokens.current(1000, start).unwrap();
        match tokens.renew(&first, 1000 + 60, start + MINUTE) {
            Renewal::TooEarly(wait) => assert_eq!(wait, MINUTE * 19),
            _ => panic!("signed too early"),
        }
        // Those who still hold the first one get the second, not a third.
        for _ in 0..2 {
            let Renewal::Renewed(second) = tokens.renew(&first, 1000 + 1200, start + MINUTE * 20) else {
                panic!("not signed");
            };
            assert_eq!(second, "bearer number 2");
        }
    }

    #[test]
    fn a_clock_that_was_set_costs_one_new_token_and_no_more_than_allowed() {
        let (tokens, start) = tokens();
        let first = tokens.current(100_000, start).unwrap();
        assert_eq!(tokens.current(50_000, start + MINUTE * 19).unwrap(), first);
        assert_eq!(tokens.current(50_000, start + MINUTE * 20).unwrap(), "bearer number 2");
    }

    #[test]
    fn a_key_that_cannot_sign_gives_none() {
        let (tokens, start) = tokens();
        assert!(tokens.current(-1, start).is_none());
        let spent = HeaderValue::from_static("bearer number 0");
        assert!(matches!(tokens.renew(&spent, -1, start), Renewal::Failed));
    }
}
