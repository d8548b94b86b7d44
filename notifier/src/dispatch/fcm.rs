//! Firebase Cloud Messaging, HTTP v1.
//!
//! In: a `Push`. Out: its request, and what an answer means. Never: asks for an access token per push, or drops a push because there is none.

pub mod answer;

use super::answer::{Answer, Effect};
use super::credential::{ServiceAccount, roots, tls};
use super::exchange::{Exchange, Provider};
use super::http2::{Endpoint, Pool, PoolSettings, authority};
use super::oauth::{AccessToken, AccessTokens, no_token};
use super::settings::{Fault, FirebaseSettings, SettingsFault, in_range};
use super::{Push, TOO_LARGE_HERE, base64_length, put_base64};
use answer::classify;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Uri, Version};
use notifier_core::account::Service;
use notifier_core::outbox::RetryReason;
use notifier_core::seal::{Priority, time_to_live};
use std::time::Duration;

/// The lane to FCM.
pub struct Fcm {
    uri: Uri,
    tokens: AccessTokens,
    pool: Pool,
}

impl Fcm {
    /// Reads and checks the service account; connects with the first push.
    pub fn new(settings: &FirebaseSettings, timeout: Duration) -> Result<Exchange<Self>, SettingsFault> {
        Self::open(settings, timeout, |pool| pool)
    }

    pub(super) fn open(
        settings: &FirebaseSettings,
        timeout: Duration,
        adjust: impl FnOnce(PoolSettings) -> PoolSettings,
    ) -> Result<Exchange<Self>, SettingsFault> {
        let service = Service::Firebase;
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
        let account = ServiceAccount::open(settings).map_err(named)?;
        let roots = roots(settings.ca_file.as_deref()).map_err(named)?;
        let in_roots = |fault| named(("ca_file", fault));
        let token_tls = tls(roots.clone(), None, &[b"h2", b"http/1.1"]).map_err(in_roots)?;
        let tls = tls(roots, None, &[b"h2"]).map_err(in_roots)?;
        let bad_host = named(("host", Fault::BadHost));
        let endpoint = Endpoint::new(&settings.host, settings.port, tls).ok_or(bad_host)?;
        let uri = Uri::builder()
            .scheme("https")
            .authority(authority(&settings.host, settings.port).ok_or(bad_host)?)
            .path_and_query(format!("/v1/projects/{}/messages:send", account.project))
            .build()
            .map_err(|_| named(("project", Fault::BadText)))?;
        let pool = adjust(PoolSettings::new(service, settings.connections, false, timeout));
        Ok(Exchange::new(Self {
            uri,
            tokens: AccessTokens::new(account, token_tls, timeout, pool.pace)
                .ok_or(named(("token_uri", Fault::BadUri)))?,
            pool: Pool::new(endpoint, pool),
        }))
    }
}

impl Provider for Fcm {
    /// The body.
    type Form = Bytes;
    type Credential = AccessToken;

    fn service(&self) -> Service {
        Service::Firebase
    }

    fn form(&self, push: &Push, now_ms: i64) -> Result<Bytes, Answer> {
        if data_length(push) > DATA_MAX {
            return Err(TOO_LARGE_HERE);
        }
        body(push, now_ms).ok_or(Answer::fault_of_ours("token-not-text"))
    }

    async fn credential(&self, _: &Bytes) -> Result<AccessToken, Answer> {
        self.tokens.current().await.map_err(no_token)
    }

    async fn renew(&self, spent: &AccessToken, answer: &Answer) -> Result<AccessToken, Answer> {
        if !self.tokens.spoil(spent) {
            return Err(Answer::retry(RetryReason::CredentialRefused, answer.label).and(Effect::Alert));
        }
        self.tokens.current().await.map_err(no_token)
    }

    async fn pool(&self, _: &Bytes) -> Result<Pool, Answer> {
        Ok(self.pool.clone())
    }

    fn request(&self, body: &Bytes, token: &AccessToken) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(AUTHORIZATION, token.bearer.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        *request.uri_mut() = self.uri.clone();
        request
    }

    fn read(&self, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
        classify(status, headers, body, now_ms)
    }
}

/// Largest sum of keys and values in `data`, bytes.
const DATA_MAX: usize = 4096;

fn data_length(push: &Push) -> usize {
    "enc_payload".len() + base64_length(push.payload.len()) + "spns".len() + "1".len()
}

/// `None` if the token is no text.
fn body(push: &Push, now_ms: i64) -> Option<Bytes> {
    let token = std::str::from_utf8(push.token.expose()).ok()?;
    let mut buffer = BytesMut::with_capacity(192 + token.len() + data_length(push));
    buffer.put_slice(br#"{"message":{"token":"#);
    // As JSON: a client may have registered anything.
    serde_json::to_writer((&mut buffer).writer(), token).ok()?;
    buffer.put_slice(br#","data":{"enc_payload":""#);
    put_base64(&mut buffer, &push.payload);
    buffer.put_slice(br#"","spns":"1"},"android":{"priority":""#);
    buffer.put_slice(match push.priority {
        Priority::High => b"high",
        Priority::Normal => b"normal",
    });
    buffer.put_slice(br#"","ttl":""#);
    let ttl = time_to_live(push.expires_at_ms, now_ms);
    serde_json::to_writer((&mut buffer).writer(), &ttl).ok()?;
    buffer.put_slice(b"s\"");
    if push.too_long {
        // They say nothing but that something came: of many, a device that was off needs one. The backlog is 100.
        buffer.put_slice(br#","collapse_key":"too-long""#);
    }
    buffer.put_slice(b"}}}");
    Some(buffer.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fake::push;

    fn text(push: &Push, now_ms: i64) -> String {
        String::from_utf8(body(push, now_ms).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn the_body_is_exactly_this() {
        let mut one = push(1, Service::Firebase, b"token:1");
        one.payload = Box::from([0xFB, 0xFF, 0xFE, 0x01]);
        one.expires_at_ms = 61_999;
        assert_eq!(
            text(&one, 1000),
            r#"{"message":{"token":"token:1","data":{"enc_payload":"+//+AQ==","spns":"1"},"android":{"priority":"high","ttl":"300s"}}}"#
        );
        one.priority = Priority::Normal;
        one.too_long = true;
        assert_eq!(
            text(&one, 1000),
            r#"{"message":{"token":"token:1","data":{"enc_payload":"+//+AQ==","spns":"1"},"android":{"priority":"normal","ttl":"300s","collapse_key":"too-long"}}}"#
        );
    }

    #[test]
    fn a_ttl_is_one_of_three() {
        let mut one = push(1, Service::Firebase, b"t");
        for (expires_at_ms, expected) in [
            (i64::MIN, "0s"),
            (i64::MAX, "1209600s"),
            (5_000, "300s"),
            (500_000, "86400s"),
        ] {
            one.expires_at_ms = expires_at_ms;
            assert!(
                text(&one, 1000).contains(&format!("\"ttl\":\"{expected}\"")),
                "{expires_at_ms}"
            );
        }
    }

    #[test]
    fn a_token_cannot_break_out_of_its_text() {
        let token = "a\"},\"x\":\"\\\u{7}é";
        let one = push(1, Service::Firebase, token.as_bytes());
        let parsed: serde_json::Value = serde_json::from_str(&text(&one, 0)).unwrap();
        assert_eq!(parsed["message"]["token"], token);
        assert!(body(&push(1, Service::Firebase, &[0xFF]), 0).is_none());
    }

    #[test]
    fn the_largest_wakeup_of_the_incumbent_fits() {
        let mut one = push(1, Service::Firebase, b"t");
        one.payload = vec![0; 2816 + 40].into();
        assert_eq!(data_length(&one), 3824);
    }
}
