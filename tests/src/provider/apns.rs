//! A fake APNs: checks requests as strictly as Apple, answers as the script says.
//!
//! In: `POST /3/device/TOKEN`. Out: deliveries, complaints, Apple's answers. Never: more lenient than Apple's documentation.

use super::{
    Answer, Deliveries, Fake, Read, Received, Script, Server, Verdict, accepts, carry_out, jwt, take, text_response,
};
use crate::keys::{APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, KeyError, Keys};
use crate::phone::{PushService, unix_seconds};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

/// Largest body of an alert push.
const PAYLOAD_LIMIT: usize = 4096;
/// A provider token counts for an hour.
const TOKEN_LIFETIME_SECONDS: i64 = 3600;

pub struct Apns {
    state: Arc<State>,
    server: Server,
}

struct State {
    service: PushService,
    public_point: Vec<u8>,
    script: Script,
    deliveries: Arc<Deliveries>,
    /// Provider tokens whose signature held, with their time of issue.
    provider_tokens: Mutex<HashMap<String, i64>>,
    token_lifetime: AtomicI64,
}

impl Apns {
    /// `service` is `Apns` or `ApnsSandbox`; `streams` is what the server allows under way on one connection.
    pub fn start(
        service: PushService,
        keys: &Keys,
        deliveries: Arc<Deliveries>,
        streams: u32,
    ) -> Result<Self, KeyError> {
        let state = Arc::new(State {
            service,
            public_point: keys.apns_public.clone(),
            script: Script::default(),
            deliveries,
            provider_tokens: Mutex::default(),
            token_lifetime: AtomicI64::new(TOKEN_LIFETIME_SECONDS),
        });
        let server = Server::start(Arc::clone(&state), keys.authority.server_config()?, streams)?;
        Ok(Self { state, server })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub fn script(&self) -> &Script {
        &self.state.script
    }

    /// A provider that is down drops every connection, those that stand and those that come.
    pub fn set_down(&self, down: bool) {
        self.server.set_down(down);
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u64 {
        self.server.connections.load(Ordering::Relaxed)
    }

    /// Different provider tokens so far; Apple wants at most one in 20 minutes.
    pub fn provider_tokens_seen(&self) -> usize {
        self.state
            .provider_tokens
            .lock()
            .expect("nobody panics while holding the tokens")
            .len()
    }

    /// Provider tokens older than this are answered ExpiredProviderToken; an hour unless changed.
    pub fn set_token_lifetime(&self, seconds: i64) {
        self.state.token_lifetime.store(seconds, Ordering::Relaxed);
    }
}

impl Fake for State {
    async fn answer(&self, request: Received) -> Verdict {
        match self.check(&request) {
            Ok(push) => {
                let answer = self.script.answer(&push.token);
                let id = push.id.clone();
                let push = Read {
                    service: self.service,
                    token: push.token,
                    id: push.id,
                    enc_payload: push.enc_payload,
                    body: push.body,
                    accepted: accepts(&answer),
                };
                take(&self.deliveries, &request, push, answer, || {
                    let mut response = text_response(200, "");
                    if let Some(id) = id.and_then(|id| id.parse().ok()) {
                        response.headers_mut().insert("apns-id", id);
                    }
                    response
                })
                .await
            }
            Err(Refused { status, reason, why }) => {
                self.deliveries
                    .complain(format!("{}: {reason}: {why}", self.service.name()));
                carry_out(Answer::apns(status, reason), || text_response(200, "")).await
            }
        }
    }
}

struct Push {
    token: String,
    id: Option<String>,
    enc_payload: Vec<u8>,
    body: Value,
}

struct Refused {
    status: u16,
    reason: &'static str,
    why: &'static str,
}

fn refused(status: u16, reason: &'static str, why: &'static str) -> Refused {
    Refused { status, reason, why }
}

impl State {
    fn check(&self, request: &Received) -> Result<Push, Refused> {
        if request.method != Method::POST {
            return Err(refused(405, "MethodNotAllowed", "only POST"));
        }
        let token = request
            .path
            .strip_prefix("/3/device/")
            .ok_or_else(|| refused(404, "BadPath", "the path is /3/device/TOKEN"))?;
        let is_hex = token.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !(64..=200).contains(&token.len()) || !is_hex {
            return Err(refused(400, "BadDeviceToken", "64 to 200 hex digits"));
        }
        self.check_provider_token(request)?;
        match request.header("apns-topic") {
            None => return Err(refused(400, "MissingTopic", "apns-topic")),
            Some(APNS_TOPIC) => {}
            Some(_) => return Err(refused(400, "DeviceTokenNotForTopic", "another app's topic")),
        }
        if request.header("apns-push-type") != Some("alert") {
            return Err(refused(
                400,
                "InvalidPushType",
                "a notification extension runs for alert only",
            ));
        }
        if !matches!(request.header("apns-priority"), Some("10" | "5" | "1")) {
            return Err(refused(400, "BadPriority", "10, 5 or 1"));
        }
        let expiration = request.header("apns-expiration");
        if expiration.is_some_and(|time| time.parse::<u32>().is_err()) {
            return Err(refused(400, "BadExpirationDate", "Unix seconds"));
        }
        let id = request.header("apns-id").map(str::to_owned);
        if id.as_deref().is_some_and(|id| !is_uuid(id)) {
            return Err(refused(400, "BadMessageId", "apns-id is a UUID"));
        }
        if request.header("apns-collapse-id").is_some() {
            return Err(refused(
                400,
                "BadCollapseId",
                "each payload is needed: nothing may collapse",
            ));
        }
        if request.body.is_empty() {
            return Err(refused(400, "PayloadEmpty", "no body"));
        }
        if request.body.len() > PAYLOAD_LIMIT {
            return Err(refused(413, "PayloadTooLarge", "more than 4,096 bytes"));
        }
        let body: Value =
            serde_json::from_slice(&request.body).map_err(|_| refused(400, "PayloadEmpty", "the body is not JSON"))?;
        if body["aps"]["mutable-content"] != 1 || !body["spns"].is_i64() {
            return Err(refused(
                400,
                "PayloadEmpty",
                "the client needs mutable-content 1 and spns as a number",
            ));
        }
        let enc_payload = body["enc_payload"]
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok())
            .ok_or_else(|| refused(400, "PayloadEmpty", "the client needs enc_payload in padded base64"))?;
        Ok(Push {
            token: token.to_owned(),
            id,
            enc_payload,
            body,
        })
    }

    fn check_provider_token(&self, request: &Received) -> Result<(), Refused> {
        let Some(authorization) = request.header("authorization") else {
            if request.has_client_certificate {
                return Ok(());
            }
            return Err(refused(
                403,
                "MissingProviderToken",
                "neither a token nor a certificate",
            ));
        };
        let token = authorization
            .strip_prefix("bearer ")
            .or_else(|| authorization.strip_prefix("Bearer "))
            .ok_or_else(|| refused(403, "InvalidProviderToken", "authorization is not a bearer token"))?;
        let mut known = self
            .provider_tokens
            .lock()
            .expect("nobody panics while holding the tokens");
        let issued_at = match known.get(token) {
            Some(issued_at) => *issued_at,
            None => {
                let read = jwt::verify_es256(token, &self.public_point)
                    .ok_or_else(|| refused(403, "InvalidProviderToken", "the signature does not hold"))?;
                if read.header["kid"] != APNS_KEY_ID || read.claims["iss"] != APNS_TEAM_ID {
                    return Err(refused(403, "InvalidProviderToken", "kid or iss is another's"));
                }
                let issued_at = read.claims["iat"]
                    .as_i64()
                    .ok_or_else(|| refused(403, "InvalidProviderToken", "iat is missing"))?;
                known.insert(token.to_owned(), issued_at);
                issued_at
            }
        };
        let age = unix_seconds() - issued_at;
        if age > self.token_lifetime.load(Ordering::Relaxed) {
            return Err(refused(403, "ExpiredProviderToken", "issued too long ago"));
        }
        if age < -60 {
            return Err(refused(403, "InvalidProviderToken", "issued in the future"));
        }
        Ok(())
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let groups: Vec<_> = text.split('-').collect();
    groups.len() == lengths.len()
        && groups
            .iter()
            .zip(lengths)
            .all(|(group, length)| group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
