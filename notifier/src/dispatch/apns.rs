//! Apple Push Notification service.
//!
//! In: a `Push`. Out: its `Outcome`. Never: more provider tokens than Apple allows, or a second stream on a connection that has
//! not proved who it is for.

pub mod answer;
mod token;

use super::answer::{Answer, Effect};
use super::credential::{ApnsCredential, roots, tls};
use super::http2::{Endpoint, Pool, PoolSettings, Reply, ReplyBody};
use super::settings::{ApnsSettings, Fault, SettingsFault};
use super::{Meter, Provider, Push, TIMED_OUT, TOO_LARGE_HERE, base64_length, no_reply, put_base64, put_hex, unix_ms};
use answer::classify;
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, Uri, Version};
use notifier_core::account::Service;
use notifier_core::outbox::{Outcome, RetryReason};
use notifier_core::seal::Priority;
use std::time::Duration;
use token::{ProviderTokens, Renewal};
use tokio::time::{Instant, timeout_at};

/// One lane to APNs or to its sandbox.
pub struct Apns {
    service: Service,
    topic: HeaderValue,
    authority: Authority,
    /// `None` with a certificate: the connection itself proves who we are.
    tokens: Option<ProviderTokens>,
    pool: Pool,
    meter: Meter,
}

impl Apns {
    /// Reads and checks the credential; connects with the first push.
    pub fn new(service: Service, settings: &ApnsSettings, timeout: Duration) -> Result<Self, SettingsFault> {
        Self::open(service, settings, timeout, |pool| pool)
    }

    pub(super) fn open(
        service: Service,
        settings: &ApnsSettings,
        timeout: Duration,
        adjust: impl FnOnce(PoolSettings) -> PoolSettings,
    ) -> Result<Self, SettingsFault> {
        let named = |(setting, fault)| SettingsFault {
            service,
            setting,
            fault,
        };
        for (setting, number) in [
            ("concurrency", settings.concurrency),
            ("connections", settings.connections),
        ] {
            if !(1..=100_000).contains(&number) {
                return Err(named((setting, Fault::OutOfRange)));
            }
        }
        let credential = ApnsCredential::open(settings).map_err(named)?;
        let roots = roots(settings.ca_file.as_deref()).map_err(named)?;
        let identity = match &credential {
            ApnsCredential::Token(_) => None,
            ApnsCredential::Certificate(certificate) => Some(certificate),
        };
        let tls = tls(roots, identity, &[b"h2"]).map_err(|fault| named(("certificate_key_file", fault)))?;
        let host = settings.host.as_deref().unwrap_or(match service {
            Service::ApnsSandbox => "api.sandbox.push.apple.com",
            _ => "api.push.apple.com",
        });
        let bad_host = named(("host", Fault::BadHost));
        let endpoint = Endpoint::new(host, settings.port, tls).ok_or(bad_host)?;
        let bad_topic = named(("topic", Fault::BadText));
        let is_plain = !settings.topic.is_empty() && settings.topic.bytes().all(|byte| byte.is_ascii_graphic());
        let topic = HeaderValue::from_str(&settings.topic).map_err(|_| bad_topic)?;
        if !is_plain {
            return Err(bad_topic);
        }
        let tokens = match credential {
            ApnsCredential::Token(key) => Some(ProviderTokens::new(key)),
            ApnsCredential::Certificate(certificate) => {
                // Unix seconds; an alert compares it with the clock.
                metrics::gauge!("dispatch_certificate_expires_seconds", "service" => service.name())
                    .set(certificate.not_after as f64);
                None
            }
        };
        let pool = PoolSettings::new(service, settings.connections, tokens.is_some(), timeout);
        Ok(Self {
            service,
            topic,
            authority: authority(host, settings.port).ok_or(bad_host)?,
            tokens,
            pool: Pool::new(endpoint, adjust(pool)),
            meter: Meter::new(service),
        })
    }

    /// Until an answer stands. `is_accepted` is set as soon as a 200 is seen: whatever comes after it, the push is delivered.
    async fn attempt(&self, push: &Push, is_accepted: &mut bool) -> Answer {
        let form = Form::new(push, unix_ms());
        let mut bearer = match self.bearer() {
            Ok(bearer) => bearer,
            Err(answer) => return answer,
        };
        let mut is_renewed = false;
        loop {
            let reply = self.pool.exchange(|| self.request(&form, bearer.as_ref(), push)).await;
            let mut reply = match reply {
                Ok(reply) => reply,
                Err(fault) => return no_reply(fault),
            };
            let answer = read_answer(&mut reply, is_accepted).await;
            drop(reply);
            let is_expired = matches!(
                answer.outcome,
                Outcome::Retry {
                    reason: RetryReason::CredentialExpired,
                    ..
                }
            );
            if !is_expired {
                return answer;
            }
            let (Some(tokens), Some(spent)) = (&self.tokens, &bearer) else {
                return answer;
            };
            match tokens.renew(spent, unix_ms() / 1000, Instant::now()) {
                Renewal::Renewed(next) if !is_renewed => {
                    is_renewed = true;
                    bearer = Some(next);
                }
                // A token minted a moment ago cannot have expired, unless our clock is wrong.
                Renewal::Renewed(_) | Renewal::Failed => {
                    return Answer::retry(RetryReason::CredentialRefused, answer.label).and(Effect::Alert);
                }
                Renewal::TooEarly(wait) => {
                    return Answer::retry_after(RetryReason::CredentialExpired, Some(wait), answer.label);
                }
            }
        }
    }

    fn bearer(&self) -> Result<Option<HeaderValue>, Answer> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        match tokens.current(unix_ms() / 1000, Instant::now()) {
            Some(bearer) => Ok(Some(bearer)),
            None => Err(Answer::retry(RetryReason::CredentialRefused, "unsigned").and(Effect::Alert)),
        }
    }

    fn request(&self, form: &Form, bearer: Option<&HeaderValue>, push: &Push) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(7);
        headers.insert(APNS_TOPIC, self.topic.clone());
        headers.insert(APNS_PUSH_TYPE, HeaderValue::from_static("alert"));
        let priority = match push.priority {
            Priority::High => "10",
            Priority::Normal => "5",
        };
        headers.insert(APNS_PRIORITY, HeaderValue::from_static(priority));
        headers.insert(APNS_ID, form.id.clone());
        headers.insert(APNS_EXPIRATION, form.expiration.clone());
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, bearer.clone());
        }
        let mut request = Request::new(Full::new(form.body.clone()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        let mut parts = hyper::http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(form.path.clone());
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request
    }
}

impl Provider for Apns {
    fn service(&self) -> Service {
        self.service
    }

    async fn push(&self, push: &Push, deadline: Instant) -> Outcome {
        if body_length(push) > PAYLOAD_MAX {
            return self.meter.record(push, TOO_LARGE_HERE);
        }
        let mut is_accepted = false;
        let answer = match timeout_at(deadline, self.attempt(push, &mut is_accepted)).await {
            Ok(answer) => answer,
            Err(_) if is_accepted => Answer::DELIVERED,
            Err(_) => TIMED_OUT,
        };
        self.meter.record(push, answer)
    }
}

async fn read_answer(reply: &mut Reply, is_accepted: &mut bool) -> Answer {
    let status = reply.status.as_u16();
    *is_accepted = status == 200;
    if matches!(status, 200 | 410) {
        // Apple looks at the token of the device only after ours.
        reply.prove_connection();
    }
    let answer = match reply.body().await {
        ReplyBody::Whole(body) => classify(status, &reply.headers, &body, unix_ms()),
        _ if status == 200 => Answer::DELIVERED,
        ReplyBody::TooLarge => classify(status, &reply.headers, b"", unix_ms()),
        ReplyBody::Broken(fault) => no_reply(fault),
    };
    if answer.effect == Effect::LeaveConnection {
        reply.leave_connection();
    }
    answer
}

/// What is the same each time one push is sent.
struct Form {
    path: PathAndQuery,
    id: HeaderValue,
    expiration: HeaderValue,
    body: Bytes,
}

/// Clients show this text where their own extension cannot run, so every byte of it is part of the contract (push.md §3 Q6).
const BODY_START: &[u8] = br#"{"aps": {"alert": {"title": "Session", "body": "You've got a new message"}, "badge": 1, "sound": "default", "mutable-content": 1, "category": "SECRET"}, "spns": 1, "enc_payload": ""#;
const BODY_END: &[u8] = br#""}"#;

/// Largest body of an alert, bytes.
const PAYLOAD_MAX: usize = 4096;

const PATH: &[u8] = b"/3/device/";
const ID_LENGTH: usize = 36;

const APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");
const APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const APNS_ID: HeaderName = HeaderName::from_static("apns-id");
const APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");

fn body_length(push: &Push) -> usize {
    BODY_START.len() + base64_length(push.payload.len()) + BODY_END.len()
}

impl Form {
    fn new(push: &Push, now_ms: i64) -> Self {
        let token = push.token.expose();
        let mut buffer = BytesMut::with_capacity(PATH.len() + token.len() * 2 + ID_LENGTH + body_length(push));
        buffer.extend_from_slice(PATH);
        put_hex(&mut buffer, token);
        let path = buffer.split().freeze();
        put_uuid(&mut buffer, &push.push_id.0);
        let id = buffer.split().freeze();
        buffer.extend_from_slice(BODY_START);
        put_base64(&mut buffer, &push.payload);
        buffer.extend_from_slice(BODY_END);
        let mut id = HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static(""));
        let mut expiration = HeaderValue::from(expiration(push.expires_at_ms, now_ms));
        // Each is used once: in the compression table they would only push out what stays.
        id.set_sensitive(true);
        expiration.set_sensitive(true);
        Self {
            path: PathAndQuery::from_maybe_shared(path).unwrap_or(PathAndQuery::from_static("/")),
            id,
            expiration,
            body: buffer.freeze(),
        }
    }
}

/// Unix seconds. Apple keeps nothing longer than [`KEPT_MAX_MS`], and refuses what is no time.
fn expiration(expires_at_ms: i64, now_ms: i64) -> i64 {
    let latest_ms = now_ms.saturating_add(KEPT_MAX_MS);
    expires_at_ms.min(latest_ms).div_euclid(1000).max(0)
}

/// 30 days.
const KEPT_MAX_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// 8-4-4-4-12 lower-case hex digits.
fn put_uuid(buffer: &mut BytesMut, id: &[u8; 16]) {
    let mut rest = &id[..];
    for (place, length) in [4, 2, 2, 2, 6].into_iter().enumerate() {
        if place > 0 {
            buffer.extend_from_slice(b"-");
        }
        let (part, more) = rest.split_at(length);
        put_hex(buffer, part);
        rest = more;
    }
}

pub(super) fn authority(host: &str, port: u16) -> Option<Authority> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    match port {
        443 => host.parse().ok(),
        _ => format!("{host}:{port}").parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apns_is_asked_to_keep_a_push_30_days_at_most_and_never_before_1970() {
        let now_ms = 1_800_000_000_999;
        assert_eq!(expiration(now_ms + 3_600_000, now_ms), 1_800_003_600);
        for far in [now_ms + KEPT_MAX_MS + 5_000, i64::MAX] {
            assert_eq!(expiration(far, now_ms), 1_800_000_000 + 2_592_000);
        }
        for (expires_at_ms, now_ms) in [(-1, now_ms), (i64::MIN, now_ms), (5_000, i64::MIN)] {
            assert_eq!(expiration(expires_at_ms, now_ms), 0);
        }
    }
}
