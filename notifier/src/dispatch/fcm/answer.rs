//! The table of FCM's answers (push.md §2.2).
//!
//! In: status, headers, body. Out: an `Answer`. Never: waits, or looks at a clock.

use crate::dispatch::answer::{Answer, Effect, by_status, by_status_explained, retry_after};
use hyper::header::HeaderMap;
use notifier_core::outbox::{Outcome, RetryReason};
use serde::Deserialize;
use std::borrow::Cow;
use std::time::Duration;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    error: Explanation<'a>,
}

#[derive(Default, Deserialize)]
struct Explanation<'a> {
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    details: Vec<Detail<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail<'a> {
    #[serde(borrow, default)]
    error_code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    field_violations: Vec<Violation<'a>>,
}

#[derive(Deserialize)]
struct Violation<'a> {
    #[serde(borrow, default)]
    field: Cow<'a, str>,
    #[serde(borrow, default)]
    description: Cow<'a, str>,
}

impl Explanation<'_> {
    /// FCM's own code, which says more than the general status.
    fn error_code(&self) -> Option<&str> {
        self.details.iter().find_map(|detail| detail.error_code.as_deref())
    }

    fn violations(&self) -> impl Iterator<Item = &Violation<'_>> {
        self.details.iter().flat_map(|detail| &detail.field_violations)
    }

    fn names_a_size(&self) -> bool {
        let too_large = |text: &str| {
            let text = text.to_ascii_lowercase();
            ["too big", "too large", "too long", "payload size", "exceed"]
                .iter()
                .any(|words| text.contains(words))
        };
        too_large(&self.message) || self.violations().any(|violation| too_large(&violation.description))
    }

    fn blames_the_token(&self) -> bool {
        self.violations().any(|violation| violation.field.ends_with("token"))
    }
}

/// First pause after an INTERNAL and, for want of a Retry-After, after a quota: Google's own advice.
const INTERNAL_PAUSE: Duration = Duration::from_secs(10);
const QUOTA_PAUSE: Duration = Duration::from_secs(60);

pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
    if status == 200 {
        return Answer::DELIVERED;
    }
    let after = retry_after(headers, now_ms);
    let explained = serde_json::from_slice::<Envelope<'_>>(body).ok();
    let is_explained = explained.is_some();
    let error = explained.map(|envelope| envelope.error).unwrap_or_default();
    match (status, error.error_code(), &*error.status) {
        (404, Some("UNREGISTERED"), _) => {
            let outcome = Outcome::Gone {
                provider_time_ms: None,
                certain: true,
            };
            Answer::new(outcome, "UNREGISTERED")
        }
        // Without FCM's own code it may as well be the project or the path that is not found.
        (404, _, "NOT_FOUND") => Answer::gone_guarded("NOT_FOUND"),
        (400, code, "INVALID_ARGUMENT") => invalid_argument(&error, code.is_some()),
        (400, Some("INVALID_ARGUMENT"), _) => invalid_argument(&error, true),
        // About tokens of Apple devices in this project; none of ours is one.
        (401, Some("THIRD_PARTY_AUTH_ERROR"), _) => Answer::fault_of_ours("THIRD_PARTY_AUTH_ERROR"),
        (401, ..) => Answer::retry(RetryReason::CredentialExpired, "UNAUTHENTICATED"),
        (403, Some("SENDER_ID_MISMATCH"), _) => Answer::gone_guarded("SENDER_ID_MISMATCH").and(Effect::Alert),
        (403, ..) => Answer::retry(RetryReason::CredentialRefused, "PERMISSION_DENIED").and(Effect::Alert),
        (413, ..) => Answer::new(Outcome::TryFallback, "too-large").and(Effect::Alert),
        (429, ..) if error.message.to_ascii_lowercase().contains("device") => {
            Answer::retry_after(RetryReason::TokenRate, after, "DEVICE_QUOTA_EXCEEDED")
        }
        (429, ..) => Answer::retry_after(
            RetryReason::LaneRate,
            Some(after.unwrap_or(QUOTA_PAUSE)),
            "QUOTA_EXCEEDED",
        ),
        (500, ..) => {
            let after = after.unwrap_or_default().max(INTERNAL_PAUSE);
            Answer::retry_after(RetryReason::Unavailable, Some(after), "INTERNAL")
        }
        (503, ..) => Answer::retry_after(RetryReason::Unavailable, after, "UNAVAILABLE"),
        _ if is_explained => by_status_explained(status, after),
        _ => by_status(status, after),
    }
}

fn invalid_argument(error: &Explanation<'_>, is_fcm_error: bool) -> Answer {
    if error.blames_the_token() {
        Answer::gone_guarded("INVALID_TOKEN")
    } else if error.names_a_size() {
        Answer::new(Outcome::TryFallback, "too-large").and(Effect::Alert)
    } else if is_fcm_error && error.violations().next().is_none() {
        Answer::gone_guarded("INVALID_TOKEN")
    } else {
        Answer::fault_of_ours("INVALID_ARGUMENT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderValue, RETRY_AFTER};
    use notifier_core::outbox::Refusal;

    fn body(status: &str, message: &str, details: &str) -> String {
        format!(
            "{{\"error\":{{\"code\":0,\"message\":\"{message}\",\"status\":\"{status}\",\"details\":[{details}]}}}}"
        )
    }

    fn fcm_error(code: &str) -> String {
        format!("{{\"@type\":\"type.googleapis.com/google.firebase.fcm.v1.FcmError\",\"errorCode\":\"{code}\"}}")
    }

    fn violation(field: &str, description: &str) -> String {
        format!(
            "{{\"@type\":\"type.googleapis.com/google.rpc.BadRequest\",\"fieldViolations\":[{{\"field\":\"{field}\",\"description\":\"{description}\"}}]}}"
        )
    }

    fn answer(status: u16, body: &str) -> Answer {
        classify(status, &HeaderMap::new(), body.as_bytes(), 0)
    }

    fn asked_to_wait(status: u16, body: &str, seconds: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        classify(status, &headers, body.as_bytes(), 0)
    }

    fn retry(reason: RetryReason, seconds: Option<u64>) -> Outcome {
        Outcome::Retry {
            after: seconds.map(Duration::from_secs),
            reason,
        }
    }

    const fn gone(certain: bool) -> Outcome {
        Outcome::Gone {
            provider_time_ms: None,
            certain,
        }
    }

    const NOT_A_TOKEN: &str = "The registration token is not a valid FCM registration token";

    #[test]
    fn a_200_is_delivered() {
        assert_eq!(answer(200, "{\"name\":\"projects/p/messages/1\"}"), Answer::DELIVERED);
        assert_eq!(answer(200, "<html>"), Answer::DELIVERED);
    }

    #[test]
    fn an_unregistered_token_is_deleted_now() {
        let unregistered = body(
            "NOT_FOUND",
            "Requested entity was not found.",
            &fcm_error("UNREGISTERED"),
        );
        assert_eq!(answer(404, &unregistered).outcome, gone(true));
    }

    #[test]
    fn a_404_without_fcms_own_code_is_not_certain() {
        assert_eq!(answer(404, &body("NOT_FOUND", "x", "")).outcome, gone(false));
        assert_eq!(
            answer(404, &body("SOMETHING_NEW", "x", "")).outcome,
            Outcome::Refused(Refusal::Unknown)
        );
    }

    #[test]
    fn a_token_that_is_none_is_deleted_only_under_the_guard() {
        let plain = body("INVALID_ARGUMENT", NOT_A_TOKEN, &fcm_error("INVALID_ARGUMENT"));
        assert_eq!(answer(400, &plain).outcome, gone(false));
        let details = format!(
            "{},{}",
            fcm_error("INVALID_ARGUMENT"),
            violation("message.token", "Invalid registration token")
        );
        assert_eq!(
            answer(400, &body("INVALID_ARGUMENT", NOT_A_TOKEN, &details)).outcome,
            gone(false)
        );
    }

    #[test]
    fn a_malformed_field_of_ours_is_dropped_and_keeps_the_token() {
        for field in ["message.data[0].value", "message.android.ttl", "message.data"] {
            for details in [
                violation(field, "Invalid value"),
                format!(
                    "{},{}",
                    fcm_error("INVALID_ARGUMENT"),
                    violation(field, "Invalid value")
                ),
            ] {
                let answer = answer(400, &body("INVALID_ARGUMENT", "Invalid value", &details));
                assert_eq!(answer.outcome, Outcome::Refused(Refusal::OurFault));
                assert_eq!(answer.effect, Effect::Alert);
            }
        }
        assert_eq!(
            answer(400, &body("INVALID_ARGUMENT", "Invalid JSON payload received.", "")).outcome,
            Outcome::Refused(Refusal::OurFault)
        );
    }

    #[test]
    fn a_message_too_big_asks_for_the_fallback() {
        let details = violation("message.data", "Android message is too big");
        assert_eq!(
            answer(400, &body("INVALID_ARGUMENT", "x", &details)).outcome,
            Outcome::TryFallback
        );
        let plain = body("INVALID_ARGUMENT", "Message too big", &fcm_error("INVALID_ARGUMENT"));
        assert_eq!(answer(400, &plain).outcome, Outcome::TryFallback);
        assert_eq!(answer(413, "").outcome, Outcome::TryFallback);
    }

    #[test]
    fn an_unauthenticated_request_needs_a_new_access_token() {
        let plain = body("UNAUTHENTICATED", "Request had invalid authentication credentials.", "");
        assert_eq!(answer(401, &plain).outcome, retry(RetryReason::CredentialExpired, None));
        assert_eq!(answer(401, "").outcome, retry(RetryReason::CredentialExpired, None));
    }

    #[test]
    fn a_third_party_auth_error_is_not_ours_to_refresh() {
        let plain = body("UNAUTHENTICATED", "x", &fcm_error("THIRD_PARTY_AUTH_ERROR"));
        let answer = answer(401, &plain);
        assert_eq!(answer.outcome, Outcome::Refused(Refusal::OurFault));
        assert_eq!((answer.effect, answer.label), (Effect::Alert, "THIRD_PARTY_AUTH_ERROR"));
    }

    #[test]
    fn a_token_of_another_project_is_deleted_only_under_the_guard() {
        let plain = body(
            "PERMISSION_DENIED",
            "SenderId mismatch",
            &fcm_error("SENDER_ID_MISMATCH"),
        );
        assert_eq!(answer(403, &plain).outcome, gone(false));
    }

    #[test]
    fn a_denied_permission_stops_the_lane() {
        for text in [body("PERMISSION_DENIED", "x", ""), String::new()] {
            let answer = answer(403, &text);
            assert_eq!(answer.outcome, retry(RetryReason::CredentialRefused, None));
            assert_eq!(answer.effect, Effect::Alert);
        }
    }

    #[test]
    fn a_quota_slows_the_lane_for_as_long_as_asked_or_a_minute() {
        for (status, code) in [("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), ("QUOTA_EXCEEDED", "")] {
            let text = body(status, "Quota exceeded for quota metric", &fcm_error(code));
            assert_eq!(answer(429, &text).outcome, retry(RetryReason::LaneRate, Some(60)));
            assert_eq!(
                asked_to_wait(429, &text, "17").outcome,
                retry(RetryReason::LaneRate, Some(17))
            );
        }
        assert_eq!(answer(429, "<html>").outcome, retry(RetryReason::LaneRate, Some(60)));
    }

    #[test]
    fn a_devices_own_quota_slows_only_its_token() {
        let text = body(
            "RESOURCE_EXHAUSTED",
            "Device message rate exceeded",
            &fcm_error("QUOTA_EXCEEDED"),
        );
        assert_eq!(answer(429, &text).outcome, retry(RetryReason::TokenRate, None));
        assert_eq!(
            asked_to_wait(429, &text, "9").outcome,
            retry(RetryReason::TokenRate, Some(9))
        );
    }

    #[test]
    fn an_internal_error_waits_ten_seconds_at_least() {
        let text = body("INTERNAL", "x", &fcm_error("INTERNAL"));
        assert_eq!(answer(500, &text).outcome, retry(RetryReason::Unavailable, Some(10)));
        assert_eq!(
            asked_to_wait(500, &text, "3").outcome,
            retry(RetryReason::Unavailable, Some(10))
        );
        assert_eq!(
            asked_to_wait(500, &text, "30").outcome,
            retry(RetryReason::Unavailable, Some(30))
        );
    }

    #[test]
    fn an_unavailable_service_is_tried_again_when_it_says() {
        let text = body("UNAVAILABLE", "x", &fcm_error("UNAVAILABLE"));
        assert_eq!(answer(503, &text).outcome, retry(RetryReason::Unavailable, None));
        assert_eq!(
            asked_to_wait(503, &text, "5").outcome,
            retry(RetryReason::Unavailable, Some(5))
        );
        assert_eq!(answer(502, "<html>").outcome, retry(RetryReason::Unavailable, None));
    }

    #[test]
    fn garbage_costs_neither_push_nor_token() {
        for body in ["", "<html>", "{", "[]", "{\"error\":5}", "{\"error\":{\"details\":7}}"] {
            assert_eq!(
                answer(400, body).outcome,
                retry(RetryReason::Unavailable, None),
                "{body}"
            );
            assert_eq!(answer(401, body).outcome, retry(RetryReason::CredentialExpired, None));
            assert_eq!(answer(404, body).outcome, retry(RetryReason::Unavailable, None));
            assert_eq!(answer(429, body).outcome, retry(RetryReason::LaneRate, Some(60)));
            assert_eq!(answer(504, body).outcome, retry(RetryReason::Unavailable, None));
        }
    }
}
