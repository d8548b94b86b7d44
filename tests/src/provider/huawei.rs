//! A fake Huawei Push Kit with its OAuth endpoint: checks requests as strictly as Huawei documents, answers as the script says.
//!
//! In: `POST /oauth2/v3/token`, `POST /v1/CLIENT/messages:send`, `POST /v2/PROJECT/messages:send`, `POST /v3/PROJECT/messages:send`. Out:
//! deliveries, complaints, Huawei's answers, whose code stands within a 200. Never: accepts a bearer it did not give out.

use super::{
    Answer, Deliveries, Fake, Read, Received, Script, Server, Verdict, accepts, carry_out, jwt, take, text_response,
};
use crate::keys::{HUAWEI_CLIENT_ID, HUAWEI_CLIENT_SECRET, HUAWEI_PROJECT, HUAWEI_SUB_ACCOUNT, KeyError, Keys};
use crate::phone::{PushService, unix_seconds};
use crate::sodium;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A body without its tokens.
const BODY_LIMIT: usize = 4096;
/// Fifteen days, in seconds.
const LONGEST_TTL: u64 = 1_296_000;

pub struct Huawei {
    state: Arc<State>,
    server: Server,
}

struct State {
    public_key: Vec<u8>,
    script: Script,
    bearers: Mutex<HashSet<String>>,
    bearers_given: AtomicU64,
    messages: AtomicU64,
    may_urge: AtomicBool,
    deliveries: Arc<Deliveries>,
}

impl Huawei {
    /// `streams` is what the server allows under way on one connection.
    pub fn start(keys: &Keys, deliveries: Arc<Deliveries>, streams: u32) -> Result<Self, KeyError> {
        let state = Arc::new(State {
            public_key: keys.firebase_public.clone(),
            script: Script::default(),
            bearers: Mutex::default(),
            bearers_given: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            may_urge: AtomicBool::new(true),
            deliveries,
        });
        let server = Server::start(Arc::clone(&state), keys.authority.server_config()?, streams)?;
        Ok(Self { state, server })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Where bearers are given out.
    pub fn token_uri(&self) -> String {
        format!("https://{}/oauth2/v3/token", self.server.address)
    }

    pub fn script(&self) -> &Script {
        &self.state.script
    }

    /// Every bearer given out so far is called expired from now on.
    pub fn revoke_bearers(&self) {
        self.state
            .bearers
            .lock()
            .expect("nobody panics while holding the bearers")
            .clear();
    }

    pub fn bearers_given(&self) -> u64 {
        self.state.bearers_given.load(Ordering::Relaxed)
    }

    /// Whether the app has the right to urgency HIGH.
    pub fn let_urge(&self, may: bool) {
        self.state.may_urge.store(may, Ordering::Relaxed);
    }

    /// A provider that is down drops every connection, those that stand and those that come.
    pub fn set_down(&self, down: bool) {
        self.server.set_down(down);
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u64 {
        self.server.connections.load(Ordering::Relaxed)
    }
}

impl Fake for State {
    async fn answer(&self, request: Received) -> Verdict {
        if request.method == Method::POST && request.path == "/oauth2/v3/token" {
            return self.give_bearer(&request).await;
        }
        match self.check(&request) {
            Ok(push) => {
                let answer = self.script.answer(&push.token);
                let number = self.messages.fetch_add(1, Ordering::Relaxed).to_string();
                let push = Read {
                    service: PushService::Huawei,
                    token: push.token,
                    id: Some(number.clone()),
                    enc_payload: push.enc_payload,
                    body: push.body,
                    accepted: is_success(&answer),
                };
                take(&self.deliveries, &request, push, answer, || {
                    json_response(&json!({ "code": "80000000", "msg": "Success", "requestId": number }))
                })
                .await
            }
            Err((code, why)) => {
                // A bearer that ran out and a right that is missing are a part of life, not faults of the notifier.
                if !["80200003", "80300011"].contains(&code) {
                    self.deliveries.complain(format!("huawei: {code}: {why}"));
                }
                carry_out(Answer::huawei(200, code, why), || text_response(200, "")).await
            }
        }
    }
}

/// Within a 200 only one code is a success.
fn is_success(answer: &Answer) -> bool {
    match answer {
        Answer::Refuse { .. } => false,
        Answer::Late(_, later) => is_success(later),
        other => accepts(other),
    }
}

struct Push {
    token: String,
    enc_payload: Vec<u8>,
    body: Value,
}

type Refused = (&'static str, &'static str);

const PARAMETER: &str = "80100001";
const STRUCTURE: &str = "80100003";

impl State {
    fn check(&self, request: &Received) -> Result<Push, Refused> {
        let bearer = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or("");
        let version = [
            (1, format!("/v1/{HUAWEI_CLIENT_ID}/messages:send")),
            (2, format!("/v2/{HUAWEI_PROJECT}/messages:send")),
            (3, format!("/v3/{HUAWEI_PROJECT}/messages:send")),
        ]
        .into_iter()
        .find(|(_, path)| request.method == Method::POST && request.path == *path)
        .map(|(version, _)| version)
        .ok_or((PARAMETER, "no such path"))?;
        let is_given_out = self
            .bearers
            .lock()
            .expect("nobody panics while holding the bearers")
            .contains(bearer);
        // HarmonyOS 5 and later take no access token.
        if !(is_given_out && version < 3) {
            self.check_signed(bearer)?;
        }
        if request
            .header("content-type")
            .is_none_or(|kind| !kind.starts_with("application/json"))
        {
            return Err((PARAMETER, "the content-type is application/json"));
        }
        let body: Value = serde_json::from_slice(&request.body).map_err(|_| (STRUCTURE, "the body is not JSON"))?;
        let (tokens, map) = if version < 3 {
            if request.header("push-type").is_some() {
                return Err((PARAMETER, "push-type belongs to v3"));
            }
            (&body["message"]["token"], self.check_message(&body["message"])?)
        } else {
            (
                &body["target"]["token"],
                check_scene(request.header("push-type"), &body)?,
            )
        };
        let token = match tokens.as_array().map(Vec::as_slice) {
            Some([Value::String(token)]) if !token.is_empty() => token.clone(),
            _ => return Err((PARAMETER, "one token, please")),
        };
        if request.body.len() - token.len() > BODY_LIMIT {
            return Err(("80300008", "more than 4,096 bytes without the token"));
        }
        if map["spns"] != "1" {
            return Err((STRUCTURE, "the client wants spns as the text 1"));
        }
        let enc_payload = map["enc_payload"].as_str().and_then(|text| STANDARD.decode(text).ok());
        Ok(Push {
            token,
            enc_payload: enc_payload.ok_or((STRUCTURE, "the client wants enc_payload in padded base64"))?,
            body,
        })
    }

    /// A data message of v1 and v2; its map.
    fn check_message(&self, message: &Value) -> Result<Value, Refused> {
        if message.get("notification").is_some() {
            return Err((STRUCTURE, "the client wants data only"));
        }
        let data = message["data"].as_str().ok_or((STRUCTURE, "data is a text"))?;
        let android = &message["android"];
        match android["urgency"].as_str() {
            Some("HIGH") if !self.may_urge.load(Ordering::Relaxed) => {
                return Err(("80300011", "no right to urgency HIGH"));
            }
            Some("HIGH" | "NORMAL") => {}
            _ => return Err((PARAMETER, "urgency is HIGH or NORMAL, and given")),
        }
        let ttl = android["ttl"]
            .as_str()
            .and_then(|ttl| ttl.strip_suffix('s')?.parse().ok());
        if !ttl.is_some_and(|ttl| (1..=LONGEST_TTL).contains(&ttl)) {
            return Err(("80100004", "ttl is given, in seconds, at most fifteen days"));
        }
        if !android["collapse_key"]
            .as_i64()
            .is_some_and(|key| (-1..=100).contains(&key))
        {
            return Err(("80100013", "collapse_key is -1 to 100"));
        }
        serde_json::from_str(data).map_err(|_| (STRUCTURE, "the client wants a map in data"))
    }

    /// What a service account signed.
    fn check_signed(&self, bearer: &str) -> Result<(), Refused> {
        let Some(token) = jwt::verify_ps256(bearer, &self.public_key) else {
            return Err(("80200003", "an unknown bearer"));
        };
        let (claims, now) = (&token.claims, unix_seconds());
        let times = (claims["iat"].as_i64(), claims["exp"].as_i64());
        match times {
            _ if claims["iss"] != HUAWEI_SUB_ACCOUNT => Err(("80200001", "iss is not the service account")),
            (Some(issued), Some(ends)) if issued <= now + 60 && ends > now && ends - issued <= 3600 => Ok(()),
            _ => Err(("80200005", "the token is not of this hour")),
        }
    }

    async fn give_bearer(&self, request: &Received) -> Verdict {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let expected = [
            "grant_type=client_credentials".to_owned(),
            format!("client_id={HUAWEI_CLIENT_ID}"),
            format!("client_secret={HUAWEI_CLIENT_SECRET}"),
        ];
        if !expected.iter().all(|pair| form.split('&').any(|given| given == pair)) {
            self.deliveries.complain("huawei oauth: a wrong form".to_owned());
            let refused = Answer::Refuse {
                status: 400,
                headers: Vec::new(),
                body: Bytes::from_static(br#"{"error":1101,"sub_error":20001}"#),
            };
            return carry_out(refused, || text_response(200, "")).await;
        }
        let bearer = format!("CF{}", hex::encode(sodium::random::<24>()));
        self.bearers_given.fetch_add(1, Ordering::Relaxed);
        self.bearers
            .lock()
            .expect("nobody panics while holding the bearers")
            .insert(bearer.clone());
        Verdict::Respond(json_response(
            &json!({ "access_token": bearer, "expires_in": 3600, "token_type": "Bearer" }),
        ))
    }
}

/// A message of v3; the map of the wakeup.
fn check_scene(push_type: Option<&str>, body: &Value) -> Result<Value, Refused> {
    let payload = &body["payload"];
    let ttl = body["pushOptions"]["ttl"].as_u64();
    if !ttl.is_some_and(|ttl| (1..=LONGEST_TTL).contains(&ttl)) {
        return Err(("80100004", "ttl is given, in seconds, at most fifteen days"));
    }
    let shows = payload["notification"]["title"].is_string() && payload["notification"]["category"].is_string();
    let extra = || {
        let text = payload["extraData"]
            .as_str()
            .ok_or((STRUCTURE, "extraData is a text"))?;
        serde_json::from_str(text).map_err(|_| (STRUCTURE, "the client wants a map in extraData"))
    };
    match push_type {
        Some("0") if shows => Ok(payload["notification"]["clickAction"]["data"].clone()),
        Some("2") if shows => extra(),
        Some("6") if payload.get("notification").is_none() => extra(),
        _ => Err((PARAMETER, "the payload is not what push-type says")),
    }
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text_response(200, &value.to_string());
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}
