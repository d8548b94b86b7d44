//! The provider token: when it is reused, when a new one is minted.
//!
//! In: the clock, twice (Unix seconds for Apple, a monotonic one for us). Out: the `authorization` of a request. Never: mints
//! more often than every 20 minutes.

use crate::dispatch::credential::ProviderKey;
use hyper::header::HeaderValue;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Apple accepts a token for 60 minutes.
const REUSED: Duration = Duration::from_secs(45 * 60);
/// Apple answers TooManyProviderTokenUpdates to those who mint more often.
const MINTED_AT_MOST_EVERY: Duration = Duration::from_secs(20 * 60);

pub struct ProviderTokens {
    key: Box<ProviderKey>,
    minted: Mutex<Option<Minted>>,
}

struct Minted {
    bearer: HeaderValue,
    /// Unix seconds, as the token says.
    issued_at: i64,
    at: Instant,
}

/// What becomes of a token that Apple says has expired.
pub enum Renewal {
    Renewed(HeaderValue),
    /// A new one may be minted after this time.
    TooEarly(Duration),
    Failed,
}

impl ProviderTokens {
    pub fn new(key: Box<ProviderKey>) -> Self {
        Self {
            key,
            minted: Mutex::new(None),
        }
    }

    /// `None` if the key cannot sign.
    pub fn current(&self, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(minted) = &*minted {
            let age = now.saturating_duration_since(minted.at);
            // The clocks part when the machine sleeps or its time is set: then Apple's view is the Unix one.
            let stated_age = unix_seconds.saturating_sub(minted.issued_at);
            let is_fresh = age < REUSED && (0..REUSED.as_secs() as i64).contains(&stated_age);
            if is_fresh || age < MINTED_AT_MOST_EVERY {
                return Some(minted.bearer.clone());
            }
        }
        self.mint(&mut minted, unix_seconds, now)
    }

    /// Apple refused `spent` as expired.
    pub fn renew(&self, spent: &HeaderValue, unix_seconds: i64, now: Instant) -> Renewal {
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(minted) = &*minted {
            if minted.bearer != spent {
                return Renewal::Renewed(minted.bearer.clone());
            }
            let age = now.saturating_duration_since(minted.at);
            if age < MINTED_AT_MOST_EVERY {
                return Renewal::TooEarly(MINTED_AT_MOST_EVERY - age);
            }
        }
        self.mint(&mut minted, unix_seconds, now)
            .map_or(Renewal::Failed, Renewal::Renewed)
    }

    fn mint(&self, minted: &mut Option<Minted>, unix_seconds: i64, now: Instant) -> Option<HeaderValue> {
        let token = self.key.sign(unix_seconds)?;
        let mut bearer = HeaderValue::try_from(format!("bearer {token}")).ok()?;
        bearer.set_sensitive(true);
        *minted = Some(Minted {
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
    use crate::dispatch::credential::ApnsCredential;
    use crate::dispatch::fake::Files;

    const MINUTE: Duration = Duration::from_secs(60);

    fn tokens() -> ProviderTokens {
        let files = Files::new();
        match ApnsCredential::open(&files.apns(443)) {
            Ok(ApnsCredential::Token(key)) => ProviderTokens::new(key),
            _ => panic!("the fake's credential is a token"),
        }
    }

    #[test]
    fn a_token_is_reused_for_45_minutes() {
        let (tokens, start) = (tokens(), Instant::now());
        let first = tokens.current(1000, start).unwrap();
        assert!(tokens.current(1000 + 44 * 60, start + MINUTE * 44).unwrap() == first);
        let second = tokens.current(1000 + 45 * 60, start + MINUTE * 45).unwrap();
        assert!(second != first);
        assert!(second.is_sensitive());
    }

    #[test]
    fn an_expired_token_is_minted_anew_only_after_20_minutes() {
        let (tokens, start) = (tokens(), Instant::now());
        let first = tokens.current(1000, start).unwrap();
        match tokens.renew(&first, 1000 + 60, start + MINUTE) {
            Renewal::TooEarly(wait) => assert_eq!(wait, MINUTE * 19),
            _ => panic!("minted too early"),
        }
        let Renewal::Renewed(second) = tokens.renew(&first, 1000 + 1200, start + MINUTE * 20) else {
            panic!("not minted");
        };
        assert!(second != first);
        // Those who still hold the first one get the second, not a third.
        let Renewal::Renewed(again) = tokens.renew(&first, 1000 + 1200, start + MINUTE * 20) else {
            panic!("not handed out");
        };
        assert!(again == second);
    }

    #[test]
    fn a_clock_that_was_set_costs_one_new_token_and_no_more_than_apple_allows() {
        let (tokens, start) = (tokens(), Instant::now());
        let first = tokens.current(100_000, start).unwrap();
        assert!(tokens.current(50_000, start + MINUTE * 19).unwrap() == first);
        assert!(tokens.current(50_000, start + MINUTE * 20).unwrap() != first);
    }
}
