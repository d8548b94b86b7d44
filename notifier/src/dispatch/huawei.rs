//! Huawei Push Kit: v1 and v2 for EMUI and HarmonyOS up to 4, v3 for HarmonyOS 5 and later.
//!
//! In: a `Push`. Out: its request, and what an answer means. Never: takes HTTP 200 alone for a delivery.

pub mod answer;

use super::answer::{Answer, Effect};
use super::credential::{HuaweiAccount, HuaweiCredential, is_path_part, roots, tls};
use super::exchange::{Exchange, Provider};
use super::http2::{Endpoint, Pool, PoolSettings, authority};
use super::oauth::{AccessToken, AccessTokens, no_token};
use super::settings::{Fault, HuaweiApi, HuaweiPushType, HuaweiSettings, SettingsFault, in_range};
use super::signed::{Renewal, SignedTokens};
use super::{Push, TOO_LARGE_HERE, base64_length, put_base64, unix_ms};
use answer::classify;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri, Version};
use notifier_core::account::Service;
use notifier_core::outbox::RetryReason;
use notifier_core::seal::{Priority, time_to_live};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The lane to Push Kit.
pub struct Huawei {
    uri: Uri,
    api: HuaweiApi,
    push_type: HuaweiPushType,
    tokens: Tokens,
    /// Unix milliseconds until which nothing is sent with urgency HIGH: the app has no right to it.
    plain_until_ms: AtomicI64,
    pool: Pool,
}

enum Tokens {
    Fetched(AccessTokens),
    Signed(SignedTokens<HuaweiAccount>),
}

/// What one request shows.
#[derive(Clone)]
pub enum Bearer {
    Fetched(AccessToken),
    Signed(HeaderValue),
}

impl Huawei {
    /// Reads and checks the credential; connects with the first push.
    pub fn new(settings: &HuaweiSettings, timeout: Duration) -> Result<Exchange<Self>, SettingsFault> {
        Self::open(settings, timeout, |pool| pool)
    }

    pub(super) fn open(
        settings: &HuaweiSettings,
        timeout: Duration,
        adjust: impl FnOnce(PoolSettings) -> PoolSettings,
    ) -> Result<Exchange<Self>, SettingsFault> {
        let service = Service::Huawei;
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
        let credential = HuaweiCredential::open(settings).map_err(named)?;
        let uri = uri(settings, &credential).map_err(named)?;
        let roots = roots(settings.ca_file.as_deref()).map_err(named)?;
        let in_roots = |fault| named(("ca_file", fault));
        let token_tls = tls(roots.clone(), None, &[b"h2", b"http/1.1"]).map_err(in_roots)?;
        let tls = tls(roots, None, &[b"h2"]).map_err(in_roots)?;
        let endpoint = Endpoint::new(&settings.host, settings.port, tls).ok_or(named(("host", Fault::BadHost)))?;
        let pool = adjust(PoolSettings::new(service, settings.connections, false, timeout));
        let tokens = match credential {
            HuaweiCredential::Signed(account) => Tokens::Signed(SignedTokens::new(account)),
            HuaweiCredential::Secret(secret) => Tokens::Fetched(
                AccessTokens::new(secret, token_tls, timeout, pool.pace).ok_or(named(("token_uri", Fault::BadUri)))?,
            ),
        };
        Ok(Exchange::new(Self {
            uri,
            api: settings.api,
            push_type: settings.push_type,
            tokens,
            plain_until_ms: AtomicI64::new(i64::MIN),
            pool: Pool::new(endpoint, pool),
        }))
    }
}

fn uri(settings: &HuaweiSettings, credential: &HuaweiCredential) -> Result<Uri, (&'static str, Fault)> {
    let own_project = match credential {
        HuaweiCredential::Signed(account) => Some(&*account.project),
        HuaweiCredential::Secret(_) => None,
    };
    let (setting, name) = match settings.api {
        HuaweiApi::V1 => ("client_id", settings.client_id.as_deref()),
        HuaweiApi::V2 | HuaweiApi::V3 => ("project", settings.project.as_deref().or(own_project)),
    };
    let name = name.ok_or((setting, Fault::Missing))?;
    if !is_path_part(name) {
        return Err((setting, Fault::BadText));
    }
    if settings.api == HuaweiApi::V3 && own_project.is_none() {
        return Err(("api", Fault::NeedsServiceAccount));
    }
    let version = match settings.api {
        HuaweiApi::V1 => "v1",
        HuaweiApi::V2 => "v2",
        HuaweiApi::V3 => "v3",
    };
    Uri::builder()
        .scheme("https")
        .authority(authority(&settings.host, settings.port).ok_or(("host", Fault::BadHost))?)
        .path_and_query(format!("/{version}/{name}/messages:send"))
        .build()
        .map_err(|_| (setting, Fault::BadText))
}

/// What is the same each time one push is sent.
pub struct Form {
    body: Bytes,
    /// Of v3.
    push_type: Option<&'static str>,
}

impl Provider for Huawei {
    type Form = Form;
    type Credential = Bearer;

    fn service(&self) -> Service {
        Service::Huawei
    }

    fn form(&self, push: &Push, now_ms: i64) -> Result<Form, Answer> {
        let token = std::str::from_utf8(push.token.expose()).map_err(|_| Answer::fault_of_ours("token-not-text"))?;
        let urgent = push.priority == Priority::High && self.plain_until_ms.load(Ordering::Relaxed) <= now_ms;
        let push_type = match push.priority {
            // An alert shows something in any case.
            Priority::Normal => HuaweiPushType::Background,
            Priority::High => self.push_type,
        };
        let body = match self.api {
            HuaweiApi::V1 | HuaweiApi::V2 => message(push, token, urgent, now_ms),
            HuaweiApi::V3 => scene(push, token, push_type, now_ms),
        }
        .ok_or(Answer::fault_of_ours("token-not-text"))?;
        if body.len() - token.len() > BODY_MAX {
            return Err(TOO_LARGE_HERE);
        }
        let push_type = (self.api == HuaweiApi::V3).then_some(match push_type {
            HuaweiPushType::Alert => "0",
            HuaweiPushType::Extension => "2",
            HuaweiPushType::Background => "6",
        });
        Ok(Form { body, push_type })
    }

    async fn credential(&self, _: &Form) -> Result<Bearer, Answer> {
        match &self.tokens {
            Tokens::Fetched(tokens) => tokens.current().await.map(Bearer::Fetched).map_err(no_token),
            Tokens::Signed(tokens) => {
                let signed = tokens.current(unix_ms() / 1000, Instant::now());
                let unsigned = Answer::retry(RetryReason::CredentialRefused, "unsigned").and(Effect::Alert);
                signed.map(Bearer::Signed).ok_or(unsigned)
            }
        }
    }

    async fn renew(&self, spent: &Bearer, answer: &Answer) -> Result<Bearer, Answer> {
        let refused = Answer::retry(RetryReason::CredentialRefused, answer.label).and(Effect::Alert);
        match (&self.tokens, spent) {
            (Tokens::Fetched(tokens), Bearer::Fetched(spent)) if tokens.spoil(spent) => {
                tokens.current().await.map(Bearer::Fetched).map_err(no_token)
            }
            (Tokens::Signed(tokens), Bearer::Signed(spent)) => {
                match tokens.renew(spent, unix_ms() / 1000, Instant::now()) {
                    Renewal::Renewed(next) => Ok(Bearer::Signed(next)),
                    Renewal::TooEarly(_) | Renewal::Failed => Err(refused),
                }
            }
            _ => Err(refused),
        }
    }

    async fn pool(&self, _: &Form) -> Result<Pool, Answer> {
        Ok(self.pool.clone())
    }

    fn request(&self, form: &Form, bearer: &Bearer) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(3);
        let bearer = match bearer {
            Bearer::Fetched(token) => &token.bearer,
            Bearer::Signed(bearer) => bearer,
        };
        headers.insert(AUTHORIZATION, bearer.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(push_type) = form.push_type {
            headers.insert(PUSH_TYPE, HeaderValue::from_static(push_type));
        }
        let mut request = Request::new(Full::new(form.body.clone()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        *request.uri_mut() = self.uri.clone();
        request
    }

    fn read(&self, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Answer {
        let answer = classify(status, headers, body, now_ms);
        if answer.effect == Effect::FormAnew {
            self.plain_until_ms
                .store(now_ms.saturating_add(PLAIN_MS), Ordering::Relaxed);
        }
        answer
    }

    /// The code within says whether it is a success.
    fn accepts(&self, _status: u16) -> bool {
        false
    }
}

/// Largest body without the token, bytes.
const BODY_MAX: usize = 4096;

/// How long an app without the right to urgency HIGH is not asked about again.
const PLAIN_MS: i64 = 3_600_000;

/// The group of which the device gets only the newest after it was off.
const TOO_LONG_GROUP: i64 = 1;

const PUSH_TYPE: HeaderName = HeaderName::from_static("push-type");

/// What clients show where they cannot open the wakeup: as APNs' (push.md §3 Q6).
const TITLE: &str = "Session";
const TEXT: &str = "You've got a new message";

/// Push Kit takes no 0.
fn ttl(push: &Push, now_ms: i64) -> i64 {
    time_to_live(push.expires_at_ms, now_ms).max(1)
}

/// The map of the wakeup as the text of a JSON value: what clients parse is a map, what Push Kit takes is a text.
fn put_map(buffer: &mut BytesMut, push: &Push) {
    buffer.put_slice(br#""{\"enc_payload\":\""#);
    put_base64(buffer, &push.payload);
    buffer.put_slice(br#"\",\"spns\":\"1\"}""#);
}

fn capacity(push: &Push, token: &str) -> usize {
    384 + token.len() + base64_length(push.payload.len())
}

/// A data message of v1 and v2.
fn message(push: &Push, token: &str, urgent: bool, now_ms: i64) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(capacity(push, token));
    buffer.put_slice(br#"{"message":{"data":"#);
    put_map(&mut buffer, push);
    buffer.put_slice(br#","android":{"urgency":""#);
    buffer.put_slice(if urgent { b"HIGH" } else { b"NORMAL" });
    buffer.put_slice(br#"","ttl":""#);
    serde_json::to_writer((&mut buffer).writer(), &ttl(push, now_ms)).ok()?;
    buffer.put_slice(br#"s","collapse_key":"#);
    serde_json::to_writer(
        (&mut buffer).writer(),
        if push.too_long { &TOO_LONG_GROUP } else { &-1 },
    )
    .ok()?;
    buffer.put_slice(br#"},"token":["#);
    // As JSON: a client may have registered anything.
    serde_json::to_writer((&mut buffer).writer(), token).ok()?;
    buffer.put_slice(b"]}}");
    Some(buffer.freeze())
}

/// A message of v3, whose form depends on `push-type`.
fn scene(push: &Push, token: &str, push_type: HuaweiPushType, now_ms: i64) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(capacity(push, token));
    buffer.put_slice(br#"{"payload":{"#);
    let notification = serde_json::json!({ "category": "IM", "title": TITLE, "body": TEXT });
    match push_type {
        HuaweiPushType::Background | HuaweiPushType::Extension => {
            buffer.put_slice(br#""extraData":"#);
            put_map(&mut buffer, push);
            if push_type == HuaweiPushType::Extension {
                buffer.put_slice(br#","notification":{"clickAction":{"actionType":0}"#);
                put_members(&mut buffer, &notification)?;
            }
        }
        HuaweiPushType::Alert => {
            buffer.put_slice(br#""notification":{"clickAction":{"actionType":0,"data":{"enc_payload":""#);
            put_base64(&mut buffer, &push.payload);
            buffer.put_slice(br#"","spns":"1"}}"#);
            put_members(&mut buffer, &notification)?;
        }
    }
    buffer.put_slice(br#"},"target":{"token":["#);
    serde_json::to_writer((&mut buffer).writer(), token).ok()?;
    buffer.put_slice(br#"]},"pushOptions":{"ttl":"#);
    serde_json::to_writer((&mut buffer).writer(), &ttl(push, now_ms)).ok()?;
    if push.too_long && push_type != HuaweiPushType::Background {
        buffer.put_slice(br#","collapseKey":"#);
        serde_json::to_writer((&mut buffer).writer(), &TOO_LONG_GROUP).ok()?;
    }
    buffer.put_slice(b"}}");
    Some(buffer.freeze())
}

/// The members of an object that has some already, and its end.
fn put_members(buffer: &mut BytesMut, members: &serde_json::Value) -> Option<()> {
    let text = members.to_string();
    buffer.put_slice(b",");
    buffer.put_slice(text.strip_prefix('{')?.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fake::push;

    fn one() -> Push {
        let mut one = push(1, Service::Huawei, b"token:1");
        one.payload = Box::from([0xFB, 0xFF, 0xFE, 0x01]);
        one.expires_at_ms = 61_999;
        one
    }

    fn text(body: Option<Bytes>) -> String {
        String::from_utf8(body.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn the_body_of_v1_and_v2_is_exactly_this() {
        let mut one = one();
        assert_eq!(
            text(message(&one, "token:1", true, 1000)),
            r#"{"message":{"data":"{\"enc_payload\":\"+//+AQ==\",\"spns\":\"1\"}","android":{"urgency":"HIGH","ttl":"300s","collapse_key":-1},"token":["token:1"]}}"#
        );
        one.too_long = true;
        let body: serde_json::Value = serde_json::from_str(&text(message(&one, "t", false, 1000))).unwrap();
        assert_eq!(body["message"]["android"]["urgency"], "NORMAL");
        assert_eq!(body["message"]["android"]["collapse_key"], 1);
        // Clients parse the text as a map.
        let data = body["message"]["data"].as_str().unwrap();
        let map: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!((&map["enc_payload"], &map["spns"]), (&"+//+AQ==".into(), &"1".into()));
    }

    #[test]
    fn the_body_of_v3_follows_its_push_type() {
        let mut one = one();
        assert_eq!(
            text(scene(&one, "t", HuaweiPushType::Alert, 1000)),
            r#"{"payload":{"notification":{"clickAction":{"actionType":0,"data":{"enc_payload":"+//+AQ==","spns":"1"}},"body":"You've got a new message","category":"IM","title":"Session"}},"target":{"token":["t"]},"pushOptions":{"ttl":300}}"#
        );
        assert_eq!(
            text(scene(&one, "t", HuaweiPushType::Background, 1000)),
            r#"{"payload":{"extraData":"{\"enc_payload\":\"+//+AQ==\",\"spns\":\"1\"}"},"target":{"token":["t"]},"pushOptions":{"ttl":300}}"#
        );
        one.too_long = true;
        let body = text(scene(&one, "t", HuaweiPushType::Extension, 1000));
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["payload"]["notification"]["title"], "Session");
        assert_eq!(body["payload"]["extraData"], r#"{"enc_payload":"+//+AQ==","spns":"1"}"#);
        assert_eq!(body["pushOptions"]["collapseKey"], 1);
    }

    #[test]
    fn a_ttl_is_one_of_three_and_never_nothing() {
        let mut one = one();
        for (expires_at_ms, expected) in [(i64::MIN, 1), (999, 1), (i64::MAX, 1_209_600), (5_000, 300)] {
            one.expires_at_ms = expires_at_ms;
            assert_eq!(ttl(&one, 1000), expected, "{expires_at_ms}");
        }
    }

    #[test]
    fn a_token_cannot_break_out_of_its_text() {
        let token = "a\"],\"x\":\"\\\u{7}é";
        for body in [
            message(&one(), token, true, 0),
            scene(&one(), token, HuaweiPushType::Alert, 0),
        ] {
            let body: serde_json::Value = serde_json::from_str(&text(body)).unwrap();
            let tokens = [&body["message"]["token"], &body["target"]["token"]];
            assert!(tokens.iter().any(|tokens| **tokens == serde_json::json!([token])));
        }
    }

    #[test]
    fn the_largest_wakeup_of_the_incumbent_fits_in_every_form() {
        let mut one = one();
        one.payload = vec![0; 2816 + 40].into();
        for body in [
            message(&one, "t", true, 0),
            scene(&one, "t", HuaweiPushType::Alert, 0),
            scene(&one, "t", HuaweiPushType::Extension, 0),
            scene(&one, "t", HuaweiPushType::Background, 0),
        ] {
            let length = body.unwrap().len();
            assert!(length <= BODY_MAX, "{length}");
        }
    }
}
