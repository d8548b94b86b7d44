//! What a push server's answer means (RFC 8030 §5, §7.2 and §8.4; push.md §2.4).
//!
//! In: status and `Retry-After`. Out: an `Answer`, and what it says about its server. Never: looks at a body: no two servers agree on one.

use crate::dispatch::answer::Answer;
use notifier_core::outbox::{Outcome, Refusal, RetryReason};
use notifier_core::webpush::{Death, Verdict};
use std::time::Duration;

/// What to do about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The push is answered.
    Answer(Answer, Verdict),
    /// The endpoint is dead, if its server can be believed.
    Dead(Death),
    /// Our token is refused: another one may not be.
    Forbidden,
}

/// `after`: what the server asked for.
pub fn read(status: u16, after: Option<Duration>) -> Reading {
    let of_push = |answer| Reading::Answer(answer, Verdict::Answered);
    match status {
        // RFC 8030 says 201, or 202 where a receipt was asked for; 200 is seen as well.
        200..=299 => Reading::Answer(Answer::DELIVERED, Verdict::Delivered),
        // Followed nowhere: who registered an endpoint may not choose a second address after the first was checked.
        300..=399 => Reading::Answer(origin(after, "redirect"), Verdict::Outage(after)),
        401 | 403 => Reading::Forbidden,
        404 => Reading::Dead(Death::NotFound),
        410 => Reading::Dead(Death::Gone),
        413 => of_push(Answer::new(Outcome::TryFallback, "too-large")),
        429 => {
            let pause = after.unwrap_or(PAUSE);
            Reading::Answer(origin(Some(pause), "origin-rate"), Verdict::TooFast(pause))
        }
        // ntfy: nobody listens to the topic now. It concerns this one alone.
        507 => of_push(Answer::retry_after(RetryReason::TokenRate, after, "no-subscriber")),
        408 | 425 | 500..=599 => Reading::Answer(origin(after, "unavailable"), Verdict::Outage(after)),
        400..=499 => of_push(Answer::refused(Refusal::OurFault, "bad-request")),
        _ => Reading::Answer(origin(after, "no-http"), Verdict::Outage(after)),
    }
}

/// This push waits; no other server's does.
pub const fn origin(after: Option<Duration>, label: &'static str) -> Answer {
    Answer::retry_after(RetryReason::Origin, after, label)
}

/// Set aside: tried again now and then, with the newest of its wakeups alone, until its subscription ends.
pub const fn parked(label: &'static str) -> Answer {
    Answer::retry_after(RetryReason::TokenRate, Some(PARKED), label)
}

/// Pause of an origin that says "too many" and not for how long.
const PAUSE: Duration = Duration::from_secs(60);
const PARKED: Duration = Duration::from_secs(1_800);

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, after: Option<u64>) -> Outcome {
        match read(status, after.map(Duration::from_secs)) {
            Reading::Answer(answer, _) => answer.outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_row_of_the_table_has_its_action() {
        for status in [200, 201, 202, 204] {
            assert_eq!(outcome(status, None), Outcome::Delivered, "{status}");
        }
        let retry = |reason, after: Option<u64>| Outcome::Retry {
            after: after.map(Duration::from_secs),
            reason,
        };
        for status in [301, 302, 303, 307, 308, 500, 502, 503, 504, 599, 408, 425, 999] {
            assert_eq!(outcome(status, None), retry(RetryReason::Origin, None), "{status}");
            assert_eq!(
                outcome(status, Some(7)),
                retry(RetryReason::Origin, Some(7)),
                "{status}"
            );
        }
        assert_eq!(outcome(429, None), retry(RetryReason::Origin, Some(60)));
        assert_eq!(outcome(429, Some(5)), retry(RetryReason::Origin, Some(5)));
        assert_eq!(outcome(507, None), retry(RetryReason::TokenRate, None));
        assert_eq!(outcome(413, None), Outcome::TryFallback);
        for status in [400, 402, 405, 415, 422, 451] {
            assert_eq!(outcome(status, None), Outcome::Refused(Refusal::OurFault), "{status}");
        }
        assert_eq!(
            [401, 403].map(|status| read(status, None)),
            [Reading::Forbidden, Reading::Forbidden]
        );
        assert_eq!(read(404, None), Reading::Dead(Death::NotFound));
        assert_eq!(read(410, None), Reading::Dead(Death::Gone));
    }

    #[test]
    fn only_what_concerns_all_of_a_server_slows_it() {
        let verdict = |status| match read(status, None) {
            Reading::Answer(_, verdict) => verdict,
            other => panic!("{other:?}"),
        };
        assert_eq!(verdict(201), Verdict::Delivered);
        assert_eq!(verdict(429), Verdict::TooFast(PAUSE));
        for status in [507, 400, 413] {
            assert_eq!(verdict(status), Verdict::Answered, "{status}");
        }
        for status in [500, 503, 301] {
            assert_eq!(verdict(status), Verdict::Outage(None), "{status}");
        }
    }
}
