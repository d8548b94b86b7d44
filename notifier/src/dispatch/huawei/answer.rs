//! The table of Push Kit's answers (push.md §2.3).
//!
//! In: status, headers, body. Out: an `Answer`. Never: waits, or looks at a clock.

use crate::dispatch::answer::{Answer, Effect, by_status, by_status_explained, retry_after};
use hyper::header::HeaderMap;
use notifier_core::outbox::{Outcome, Refusal, RetryReason};
use serde::Deserialize;
use std::borrow::Cow;
use std::time::Duration;

#[derive(Deserialize)]
struct Explanation<'a> {
    #[serde(borrow)]
    code: Code<'a>,
    #[serde(borrow, default)]
    msg: Option<Cow<'a, str>>,
}

/// A text of digits, or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Number(u64),
}

impl Code<'_> {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(*number),
        }
    }
}

/// What `msg` holds where some tokens were not served.
#[derive(Deserialize)]
struct Partial<'a> {
    #[serde(borrow, default)]
    illegal_tokens: Vec<Cow<'a, str>>,
}

/// Pause after a flow control for which nothing else is asked.
const FLOW_PAUSE: Duration = Duration::from_secs(10);

pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
    let after = retry_after(headers, now_ms);
    let explained = serde_json::from_slice::<Explanation<'_>>(body).ok();
    let code = explained.as_ref().and_then(|explanation| explanation.code.number());
    let by_code = code.and_then(|code| {
        let msg = explained.as_ref().and_then(|explanation| explanation.msg.as_deref());
        by_code(code, msg.unwrap_or_default(), after)
    });
    match (by_code, status) {
        // A success within an error is none.
        (Some(answer), _) if answer != Answer::DELIVERED || status == 200 => answer,
        (_, 401) => Answer::retry(RetryReason::CredentialExpired, "unauthorized"),
        // The project or the app in the path is unknown: the settings are wrong, for every push.
        (_, 404) => Answer::retry(RetryReason::CredentialRefused, "not-found").and(Effect::Alert),
        (_, 503) => Answer::retry_after(RetryReason::LaneRate, Some(after.unwrap_or(FLOW_PAUSE)), "flow-control"),
        (_, 200..=299) if code.is_some() => Answer::refused(Refusal::Unknown, "other-code").and(Effect::Alert),
        // Whoever says this says nothing of the push: it may have arrived or not.
        (_, 200..=299) => Answer::retry_after(RetryReason::Unavailable, after, "no-code"),
        (_, 400) if code.is_some() => Answer::fault_of_ours("other-parameter"),
        _ if code.is_some() => by_status_explained(status, after),
        _ => by_status(status, after),
    }
}

fn by_code(code: u64, msg: &str, after: Option<Duration>) -> Option<Answer> {
    let expired = |label| Answer::retry(RetryReason::CredentialExpired, label);
    Some(match code {
        80_000_000 => Answer::DELIVERED,
        80_100_000 => partial(msg),
        80_300_007 => Answer::gone_guarded("80300007-invalid-tokens"),
        80_100_001 => Answer::fault_of_ours("80100001-parameter"),
        80_100_003 => Answer::fault_of_ours("80100003-structure"),
        80_100_004 => Answer::fault_of_ours("80100004-ttl"),
        80_100_013 => Answer::fault_of_ours("80100013-collapse-key"),
        80_100_016 => Answer::refused(Refusal::Content, "80100016-content"),
        80_100_018 => Answer::refused(Refusal::Content, "80100018-content"),
        80_200_001 => expired("80200001-auth"),
        80_600_003 => expired("80600003-auth"),
        80_200_003 => expired("80200003-expired"),
        80_200_005 => expired("80200005-expired"),
        80_300_002 => Answer::retry(RetryReason::CredentialRefused, "80300002-permission").and(Effect::Alert),
        // Once more without it. Should that be refused as well, it is no matter of urgency.
        80_300_011 => Answer::retry(RetryReason::CredentialRefused, "80300011-urgency").and(Effect::FormAnew),
        80_300_008 => Answer::new(Outcome::TryFallback, "80300008-too-large").and(Effect::Alert),
        // One is sent at a time.
        80_300_010 => Answer::fault_of_ours("80300010-too-many-tokens"),
        81_000_001 => Answer::retry_after(RetryReason::Unavailable, after, "81000001-internal"),
        _ => return None,
    })
}

/// There was one token: it is the one that was not served, if any is named.
fn partial(msg: &str) -> Answer {
    let named = serde_json::from_str::<Partial<'_>>(msg).is_ok_and(|partial| !partial.illegal_tokens.is_empty());
    if named {
        Answer::gone_guarded("80100000-illegal-token")
    } else {
        Answer::refused(Refusal::Unknown, "80100000-partial").and(Effect::Alert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> Answer {
        let body = format!(r#"{{"code":"{code}","msg":"x","requestId":"1"}}"#);
        classify(status, &HeaderMap::new(), body.as_bytes(), 0)
    }

    fn retry(reason: RetryReason) -> Outcome {
        Outcome::Retry { after: None, reason }
    }

    const GUARDED: Outcome = Outcome::Gone {
        provider_time_ms: None,
        certain: false,
    };

    #[test]
    fn only_the_code_of_a_success_within_a_200_is_a_delivery() {
        assert_eq!(answer(200, "80000000"), Answer::DELIVERED);
        let number = br#"{"code":80000000,"msg":"Success"}"#;
        assert_eq!(classify(200, &HeaderMap::new(), number, 0), Answer::DELIVERED);
        assert_ne!(answer(500, "80000000").outcome, Outcome::Delivered);
        for body in ["", "{}", "<html>", "[]", r#"{"code":null}"#, r#"{"code":"success"}"#] {
            let outcome = classify(200, &HeaderMap::new(), body.as_bytes(), 0).outcome;
            assert_eq!(outcome, retry(RetryReason::Unavailable), "{body}");
        }
    }

    #[test]
    fn an_unknown_code_drops_the_push_keeps_the_token_and_tells_somebody() {
        let answer = answer(200, "89999999");
        assert_eq!(
            (answer.outcome, answer.effect),
            (Outcome::Refused(Refusal::Unknown), Effect::Alert)
        );
    }

    #[test]
    fn a_partial_success_deletes_the_one_token_it_names_under_the_guard() {
        let partial = |msg: &str| {
            let body = serde_json::json!({ "code": "80100000", "msg": msg }).to_string();
            classify(200, &HeaderMap::new(), body.as_bytes(), 0).outcome
        };
        let named = r#"{"success":0,"failure":1,"illegal_tokens":["abc"]}"#;
        assert_eq!(partial(named), GUARDED);
        for msg in [
            "",
            "some tokens failed",
            r#"{"illegal_tokens":[]}"#,
            r#"{"illegal_tokens":5}"#,
        ] {
            assert_eq!(partial(msg), Outcome::Refused(Refusal::Unknown), "{msg}");
        }
    }

    #[test]
    fn invalid_tokens_are_deleted_only_under_the_guard() {
        for status in [200, 400] {
            assert_eq!(answer(status, "80300007").outcome, GUARDED);
        }
    }

    #[test]
    fn a_malformed_request_is_dropped_and_keeps_the_token() {
        for code in ["80100001", "80100003", "80100004", "80100013", "80300010"] {
            let answer = answer(400, code);
            assert_eq!(answer.outcome, Outcome::Refused(Refusal::OurFault), "{code}");
            assert!(answer.effect == Effect::Alert && answer.label.starts_with(code));
        }
        assert_eq!(answer(400, "89999999").outcome, Outcome::Refused(Refusal::OurFault));
        let html = classify(400, &HeaderMap::new(), b"<html>", 0);
        assert_eq!(html.outcome, retry(RetryReason::Unavailable));
    }

    #[test]
    fn what_the_review_of_contents_refuses_is_dropped_and_counted() {
        for code in ["80100016", "80100018"] {
            assert_eq!(answer(200, code).outcome, Outcome::Refused(Refusal::Content));
        }
    }

    #[test]
    fn a_refused_or_expired_credential_is_renewed() {
        for (status, code) in [
            (200, "80200001"),
            (200, "80600003"),
            (200, "80200003"),
            (401, "80200005"),
            (401, ""),
        ] {
            assert_eq!(
                answer(status, code).outcome,
                retry(RetryReason::CredentialExpired),
                "{code}"
            );
        }
    }

    #[test]
    fn a_missing_permission_or_app_stops_the_lane_and_deletes_nobody() {
        for (status, code) in [(200, "80300002"), (404, ""), (403, "")] {
            let answer = answer(status, code);
            assert_eq!(
                (answer.outcome, answer.effect),
                (retry(RetryReason::CredentialRefused), Effect::Alert)
            );
        }
    }

    #[test]
    fn without_the_right_to_urgency_the_push_is_formed_anew() {
        assert_eq!(answer(200, "80300011").effect, Effect::FormAnew);
    }

    #[test]
    fn a_push_too_large_asks_for_the_fallback() {
        assert_eq!(answer(200, "80300008").outcome, Outcome::TryFallback);
        assert_eq!(answer(413, "").outcome, Outcome::TryFallback);
    }

    #[test]
    fn a_flow_control_slows_the_lane_and_an_inner_fault_is_tried_again() {
        let slowed = Outcome::Retry {
            after: Some(FLOW_PAUSE),
            reason: RetryReason::LaneRate,
        };
        assert_eq!(answer(503, "").outcome, slowed);
        for (status, code) in [(500, ""), (502, ""), (200, "81000001"), (500, "81000001")] {
            assert_eq!(answer(status, code).outcome, retry(RetryReason::Unavailable));
        }
    }
}
