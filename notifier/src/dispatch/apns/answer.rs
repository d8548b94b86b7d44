//! The table of APNs' answers (push.md §2.1).
//!
//! In: status, headers, body. Out: an `Answer`. Never: waits, or looks at a clock.

use crate::dispatch::answer::{Answer, Effect, by_status, by_status_explained, retry_after};
use hyper::header::HeaderMap;
use notifier_core::outbox::{Outcome, RetryReason};
use serde::Deserialize;
use std::borrow::Cow;

/// What APNs writes beside any status but 200.
#[derive(Deserialize)]
struct Explanation<'a> {
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
    /// Unix milliseconds: since when APNs knows the token as dead. Only with 410.
    #[serde(default)]
    timestamp: Option<serde_json::Value>,
}

pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
    if status == 200 {
        return Answer::DELIVERED;
    }
    let after = retry_after(headers, now_ms);
    let Ok(Explanation { reason, timestamp }) = serde_json::from_slice::<Explanation<'_>>(body) else {
        return unexplained(status, after);
    };
    match (status, &*reason) {
        (_, "") => unexplained(status, after),
        // Often a sandbox token on the production host: a wrong host would say this of every token.
        (400, "BadDeviceToken") => Answer::gone_guarded("BadDeviceToken"),
        (400, "DeviceTokenNotForTopic") => Answer::gone_guarded("DeviceTokenNotForTopic").and(Effect::Alert),
        (400 | 403, "TopicDisallowed") => Answer::gone_guarded("TopicDisallowed").and(Effect::Alert),
        (400, "BadTopic") => Answer::fault_of_ours("BadTopic"),
        (400, "MissingTopic") => Answer::fault_of_ours("MissingTopic"),
        (400, "BadPriority") => Answer::fault_of_ours("BadPriority"),
        (400, "BadExpirationDate") => Answer::fault_of_ours("BadExpirationDate"),
        (400, "BadCollapseId") => Answer::fault_of_ours("BadCollapseId"),
        (400, "BadMessageId") => Answer::fault_of_ours("BadMessageId"),
        (400, "InvalidPushType") => Answer::fault_of_ours("InvalidPushType"),
        (400, "DuplicateHeaders") => Answer::fault_of_ours("DuplicateHeaders"),
        (400, "PayloadEmpty") => Answer::fault_of_ours("PayloadEmpty"),
        (400, "MissingDeviceToken") => Answer::fault_of_ours("MissingDeviceToken"),
        (404, "BadPath") => Answer::fault_of_ours("BadPath"),
        (405, _) => Answer::fault_of_ours("MethodNotAllowed"),
        (400, "IdleTimeout") => Answer::retry(RetryReason::Connection, "IdleTimeout").and(Effect::LeaveConnection),
        (403, "ExpiredProviderToken") => Answer::retry(RetryReason::CredentialExpired, "ExpiredProviderToken"),
        (403, "InvalidProviderToken") => refused("InvalidProviderToken"),
        (403, "MissingProviderToken") => refused("MissingProviderToken"),
        (400 | 403, "BadCertificate") => refused("BadCertificate"),
        (400 | 403, "BadCertificateEnvironment") => refused("BadCertificateEnvironment"),
        (403, "Forbidden") => refused("Forbidden"),
        // Apple documents the first and sends the second.
        (403, "BadEnvironmentKeyIdInToken" | "BadEnvironmentKeyInToken") => refused("BadEnvironmentKeyIdInToken"),
        // The connection is bound to another key: a new one is not.
        (403, "UnrelatedKeyIdInToken") => {
            Answer::retry(RetryReason::Connection, "UnrelatedKeyIdInToken").and(Effect::LeaveConnection)
        }
        (410, "Unregistered") => gone("Unregistered", timestamp),
        (410, "ExpiredToken") => gone("ExpiredToken", timestamp),
        (413, _) => Answer::new(Outcome::TryFallback, "PayloadTooLarge").and(Effect::Alert),
        // The old token stays good; only its successors come too fast.
        (429, "TooManyProviderTokenUpdates") => {
            Answer::retry_after(RetryReason::LaneRate, after, "TooManyProviderTokenUpdates").and(Effect::Alert)
        }
        (429, "TooManyRequests") => Answer::retry_after(RetryReason::TokenRate, after, "TooManyRequests"),
        (500, "InternalServerError") => Answer::retry_after(RetryReason::Unavailable, after, "InternalServerError"),
        (503, "ServiceUnavailable") => Answer::retry_after(RetryReason::Unavailable, after, "ServiceUnavailable"),
        (503, "Shutdown") => {
            Answer::retry_after(RetryReason::Unavailable, after, "Shutdown").and(Effect::LeaveConnection)
        }
        (410, _) => Answer::gone_guarded("other-gone"),
        _ => by_status_explained(status, after),
    }
}

/// Apple explains everything but a 405.
fn unexplained(status: u16, after: Option<std::time::Duration>) -> Answer {
    match status {
        405 => Answer::fault_of_ours("MethodNotAllowed"),
        _ => by_status(status, after),
    }
}

fn refused(label: &'static str) -> Answer {
    Answer::retry(RetryReason::CredentialRefused, label).and(Effect::Alert)
}

/// Without a time nothing says whether the device has registered anew since.
fn gone(label: &'static str, timestamp: Option<serde_json::Value>) -> Answer {
    let since = timestamp.as_ref().and_then(serde_json::Value::as_i64);
    match since.filter(|since| *since > 0) {
        Some(since) => {
            let outcome = Outcome::Gone {
                provider_time_ms: Some(since),
                certain: true,
            };
            Answer::new(outcome, label)
        }
        None => Answer::gone_guarded(label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderValue, RETRY_AFTER};
    use notifier_core::outbox::Refusal;
    use std::time::Duration;

    fn answer(status: u16, reason: &str) -> Answer {
        classify(
            status,
            &HeaderMap::new(),
            format!("{{\"reason\":\"{reason}\"}}").as_bytes(),
            0,
        )
    }

    fn retry(reason: RetryReason) -> Outcome {
        Outcome::Retry { after: None, reason }
    }

    const GUARDED: Outcome = Outcome::Gone {
        provider_time_ms: None,
        certain: false,
    };

    #[test]
    fn a_200_is_delivered_whatever_its_body() {
        for body in [&b""[..], b"<html>", b"{\"reason\":\"BadDeviceToken\"}"] {
            assert_eq!(classify(200, &HeaderMap::new(), body, 0), Answer::DELIVERED);
        }
    }

    #[test]
    fn a_bad_device_token_is_deleted_only_under_the_guard() {
        assert_eq!(answer(400, "BadDeviceToken").outcome, GUARDED);
    }

    #[test]
    fn a_token_of_another_topic_is_deleted_only_under_the_guard_and_somebody_is_told() {
        for reason in ["DeviceTokenNotForTopic", "TopicDisallowed"] {
            let answer = answer(400, reason);
            assert_eq!(
                (&answer.outcome, answer.effect, answer.label),
                (&GUARDED, Effect::Alert, reason)
            );
        }
    }

    #[test]
    fn a_malformed_request_is_dropped_and_keeps_the_token() {
        let reasons = [
            "BadTopic",
            "MissingTopic",
            "BadPriority",
            "BadExpirationDate",
            "BadCollapseId",
            "BadMessageId",
            "InvalidPushType",
            "DuplicateHeaders",
            "PayloadEmpty",
            "MissingDeviceToken",
        ];
        let rows = reasons.map(|reason| (400, reason)).into_iter();
        for (status, reason) in rows.chain([(404, "BadPath"), (405, "MethodNotAllowed"), (405, "")]) {
            let answer = answer(status, reason);
            assert_eq!(answer.outcome, Outcome::Refused(Refusal::OurFault), "{status} {reason}");
            assert_eq!(answer.effect, Effect::Alert);
            assert!(reason.is_empty() || answer.label == reason);
        }
    }

    #[test]
    fn an_idle_or_unrelated_connection_is_left_and_the_push_tried_again() {
        for (status, reason) in [(400, "IdleTimeout"), (403, "UnrelatedKeyIdInToken")] {
            let answer = answer(status, reason);
            assert_eq!(answer.outcome, retry(RetryReason::Connection));
            assert_eq!((answer.effect, answer.label), (Effect::LeaveConnection, reason));
        }
    }

    #[test]
    fn an_expired_provider_token_is_minted_anew() {
        assert_eq!(
            answer(403, "ExpiredProviderToken").outcome,
            retry(RetryReason::CredentialExpired)
        );
    }

    #[test]
    fn a_refused_credential_stops_the_lane_in_both_spellings() {
        for reason in [
            "InvalidProviderToken",
            "MissingProviderToken",
            "BadCertificate",
            "BadCertificateEnvironment",
            "Forbidden",
            "BadEnvironmentKeyIdInToken",
            "BadEnvironmentKeyInToken",
            "SomethingNew",
        ] {
            let answer = answer(403, reason);
            assert_eq!(answer.outcome, retry(RetryReason::CredentialRefused), "{reason}");
            assert_eq!(answer.effect, Effect::Alert);
        }
        assert_eq!(
            answer(403, "BadEnvironmentKeyInToken").label,
            "BadEnvironmentKeyIdInToken"
        );
    }

    #[test]
    fn a_410_carries_since_when_the_token_is_dead() {
        for reason in ["Unregistered", "ExpiredToken"] {
            let body = format!("{{\"reason\":\"{reason}\",\"timestamp\":1700000000123}}");
            let answer = classify(410, &HeaderMap::new(), body.as_bytes(), 0);
            let outcome = Outcome::Gone {
                provider_time_ms: Some(1_700_000_000_123),
                certain: true,
            };
            assert_eq!((answer.outcome, answer.label), (outcome, reason));
        }
    }

    #[test]
    fn a_410_without_a_sensible_timestamp_is_deleted_only_under_the_guard() {
        for timestamp in ["\"x\"", "null", "18446744073709551615", "[]", "1.5", "0", "-1"] {
            let body = format!("{{\"reason\":\"Unregistered\",\"timestamp\":{timestamp}}}");
            let outcome = classify(410, &HeaderMap::new(), body.as_bytes(), 0).outcome;
            assert_eq!(outcome, GUARDED, "{timestamp}");
        }
        for reason in ["Unregistered", "ExpiredToken", "SomethingNew"] {
            assert_eq!(answer(410, reason).outcome, GUARDED);
        }
    }

    #[test]
    fn a_413_asks_for_the_fallback_once() {
        let answer = answer(413, "PayloadTooLarge");
        assert_eq!((&answer.outcome, answer.effect), (&Outcome::TryFallback, Effect::Alert));
        assert_eq!(answer.without_fallback().outcome, Outcome::Refused(Refusal::TooLarge));
    }

    #[test]
    fn too_many_requests_slow_one_token_and_too_many_updates_the_lane() {
        assert_eq!(answer(429, "TooManyRequests").outcome, retry(RetryReason::TokenRate));
        assert_eq!(
            answer(429, "TooManyProviderTokenUpdates").outcome,
            retry(RetryReason::LaneRate)
        );
        assert_eq!(answer(429, "SomethingNew").outcome, retry(RetryReason::LaneRate));
    }

    #[test]
    fn a_provider_in_trouble_is_tried_again_when_it_says() {
        for (status, reason) in [
            (500, "InternalServerError"),
            (503, "ServiceUnavailable"),
            (503, "Shutdown"),
            (502, ""),
            (504, "x"),
        ] {
            assert_eq!(answer(status, reason).outcome, retry(RetryReason::Unavailable));
        }
        assert_eq!(answer(503, "Shutdown").effect, Effect::LeaveConnection);
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let expected = Outcome::Retry {
            after: Some(Duration::from_secs(7)),
            reason: RetryReason::Unavailable,
        };
        assert_eq!(
            classify(503, &headers, b"{\"reason\":\"ServiceUnavailable\"}", 0).outcome,
            expected
        );
    }

    #[test]
    fn what_is_explained_in_unknown_words_is_dropped() {
        assert_eq!(answer(400, "SomethingNew").outcome, Outcome::Refused(Refusal::Unknown));
        assert_eq!(answer(404, "SomethingNew").outcome, Outcome::Refused(Refusal::Unknown));
    }

    #[test]
    fn garbage_costs_neither_push_nor_token() {
        for body in [&b""[..], b"<html>", b"{", b"[]", b"{\"reason\":5}", &[0xFF; 90]] {
            let outcome = |status| classify(status, &HeaderMap::new(), body, 0).outcome;
            assert_eq!(outcome(400), retry(RetryReason::Unavailable));
            assert_eq!(outcome(403), retry(RetryReason::CredentialRefused));
            assert_eq!(outcome(404), retry(RetryReason::Unavailable));
            assert_eq!(outcome(405), Outcome::Refused(Refusal::OurFault));
            assert_eq!(outcome(410), retry(RetryReason::Unavailable));
            assert_eq!(outcome(413), Outcome::TryFallback);
            assert_eq!(outcome(429), retry(RetryReason::LaneRate));
            assert_eq!(outcome(302), retry(RetryReason::Unavailable));
            assert_eq!(outcome(503), retry(RetryReason::Unavailable));
        }
    }

    #[test]
    fn no_text_of_the_provider_becomes_a_label() {
        for status in 100..=599 {
            let label = answer(status, "A device said 05ab").label;
            assert!(!label.contains("05ab"), "{label}");
        }
    }
}
