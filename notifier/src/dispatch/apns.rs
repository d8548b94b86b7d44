//! Apple Push Notification service.
//!
//! In: a `Push`. Out: its request, and what an answer means. Never: more provider tokens than Apple allows, or a second stream on a
//! connection that has not proved who it is for.

pub mod answer;

use super::answer::{Answer, Effect};
use super::credential::{ApnsCredential, ProviderKey, roots, tls};
use super::exchange::{Exchange, Provider};
use super::http2::{Endpoint, Pool, PoolSettings, authority};
use super::settings::{ApnsSettings, Fault, SettingsFault, in_range};
use super::signed::{Renewal, SignedTokens};
use super::{Push, TOO_LARGE_HERE, base64_length, put_base64, put_hex, unix_ms};
use answer::classify;
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, Uri, Version};
use notifier_core::account::Service;
use notifier_core::outbox::RetryReason;
use notifier_core::seal::{Priority, time_to_live};
use std::time::Duration;
use tokio::time::Instant;

/// One lane to APNs or to its sandbox.
pub struct Apns {
    service: Service,
    topic: HeaderValue,
    authority: Authority,
    /// `None` with a certificate: the connection itself proves who we are.
    tokens: Option<SignedTokens<ProviderKey>>,
    pool: Pool,
}

impl Apns {
    /// Reads and checks the credential; connects with the first push.
    pub fn new(service: Service, settings: &ApnsSettings, timeout: Duration) -> Result<Exchange<Self>, SettingsFault> {
        Self::open(service, settings, timeout, |pool| pool)
    }

    pub(super) fn open(
        service: Service,
        settings: &ApnsSettings,
        timeout: Duration,
        adjust: impl FnOnce(PoolSettings) -> PoolSettings,
    ) -> Result<Exchange<Self>, SettingsFault> {
        let named = |(setting, fault)| SettingsFault {
            service,
            setting,
            fault,
        };
        in_range(
            settings.concurrency,
            settings.connections,
            settings.rate,
            settings.jitter,
        )
        .map_err(named)?;
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
            ApnsCredential::Token(key) => Some(SignedTokens::new(key)),
            ApnsCredential::Certificate(certificate) => {
                // Unix seconds; an alert compares it with the clock.
                metrics::gauge!("dispatch_certificate_expires_seconds", "service" => service.name())
                    .set(certificate.not_after as f64);
                None
            }
        };
        let pool = PoolSettings::new(service, settings.connections, tokens.is_some(), timeout);
        Ok(Exchange::new(Self {
            service,
            topic,
            authority: authority(host, settings.port).ok_or(bad_host)?,
            tokens,
            pool: Pool::new(endpoint, adjust(pool)),
        }))
    }
}

impl Provider for Apns {
    type Form = Form;
    /// `None` with a certificate.
    type Credential = Option<HeaderValue>;

    fn service(&self) -> Service {
        self.service
    }

    fn form(&self, push: &Push, now_ms: i64) -> Result<Form, Answer> {
        if body_length(push) > PAYLOAD_MAX {
            return Err(TOO_LARGE_HERE);
        }
        Ok(Form::new(push, now_ms))
    }

    async fn credential(&self, _: &Form) -> Result<Self::Credential, Answer> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        match tokens.current(unix_ms() / 1000, Instant::now()) {
            Some(bearer) => Ok(Some(bearer)),
            None => Err(Answer::retry(RetryReason::CredentialRefused, "unsigned").and(Effect::Alert)),
        }
    }

    async fn renew(&self, spent: &Self::Credential, answer: &Answer) -> Result<Self::Credential, Answer> {
        let (Some(tokens), Some(spent)) = (&self.tokens, spent) else {
            return Err(answer.clone());
        };
        match tokens.renew(spent, unix_ms() / 1000, Instant::now()) {
            Renewal::Renewed(next) => Ok(Some(next)),
            Renewal::Failed => Err(Answer::retry(RetryReason::CredentialRefused, answer.label).and(Effect::Alert)),
            Renewal::TooEarly(wait) => Err(Answer::retry_after(
                RetryReason::CredentialExpired,
                Some(wait),
                answer.label,
            )),
        }
    }

    async fn pool(&self, _: &Form) -> Result<Pool, Answer> {
        Ok(self.pool.clone())
    }

    fn request(&self, form: &Form, bearer: &Self::Credential) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(7);
        headers.insert(APNS_TOPIC, self.topic.clone());
        headers.insert(APNS_PUSH_TYPE, HeaderValue::from_static("alert"));
        headers.insert(APNS_PRIORITY, HeaderValue::from_static(form.priority));
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

    fn read(&self, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
        classify(status, headers, body, now_ms)
    }

    /// Apple looks at the token of the device only after ours.
    fn proves_connection(&self, status: u16) -> bool {
        matches!(status, 200 | 410)
    }
}

/// What is the same each time one push is sent.
pub struct Form {
    path: PathAndQuery,
    id: HeaderValue,
    priority: &'static str,
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
            priority: match push.priority {
                Priority::High => "10",
                Priority::Normal => "5",
            },
            expiration,
            body: buffer.freeze(),
        }
    }
}

/// Unix seconds; 0 = Apple is not to keep it.
fn expiration(expires_at_ms: i64, now_ms: i64) -> i64 {
    match time_to_live(expires_at_ms, now_ms) {
        0 => 0,
        seconds => now_ms.div_euclid(1_000).saturating_add(seconds).max(0),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apns_is_told_a_moment_that_says_when_it_was_sent_and_one_of_three_lives() {
        let now_ms = 1_800_000_000_999;
        assert_eq!(expiration(now_ms + 200_000, now_ms), 1_800_000_300);
        assert_eq!(expiration(now_ms + 3_600_000, now_ms), 1_800_086_400);
        assert_eq!(expiration(i64::MAX, now_ms), 1_801_209_600);
        for (expires_at_ms, now_ms) in [(-1, now_ms), (i64::MIN, now_ms), (now_ms, now_ms), (5_000, i64::MIN)] {
            assert_eq!(expiration(expires_at_ms, now_ms), 0);
        }
    }
}
