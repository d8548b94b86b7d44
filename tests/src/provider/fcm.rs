//! A fake FCM with its OAuth endpoint: checks requests as strictly as Google, answers as the script says.
//!
//! In: `POST /token`, `POST /v1/projects/PROJECT/messages:send`. Out: deliveries, complaints, Google's answers.
//! Never: accepts a bearer it did not give out.

use super::{
    Answer, Deliveries, Fake, Read, Received, Script, Server, Verdict, accepts, carry_out, jwt, take, text_response,
};
use crate::keys::{FIREBASE_EMAIL, FIREBASE_PROJECT, KeyError, Keys};
use crate::phone::{PushService, unix_seconds};
use crate::sodium;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response};
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Keys and values of `data` together.
const PAYLOAD_LIMIT: usize = 4096;
/// Four weeks, in seconds.
const LONGEST_TTL: u64 = 2_419_200;
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

pub struct Fcm {
    state: Arc<State>,
    server: Server,
}

struct State {
    public_key: Vec<u8>,
    token_uri: OnceLock<String>,
    script: Script,
    token_answers: Mutex<VecDeque<Answer>>,
    bearers: Mutex<HashSet<String>>,
    bearers_given: AtomicU64,
    messages: AtomicU64,
    deliveries: Arc<Deliveries>,
}

impl Fcm {
    /// `streams` is what the server allows under way on one connection.
    pub fn start(keys: &Keys, deliveries: Arc<Deliveries>, streams: u32) -> Result<Self, KeyError> {
        let state = Arc::new(State {
            public_key: keys.firebase_public.clone(),
            token_uri: OnceLock::new(),
            script: Script::default(),
            token_answers: Mutex::default(),
            bearers: Mutex::default(),
            bearers_given: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            deliveries,
        });
        let server = Server::start(Arc::clone(&state), keys.authority.server_config()?, streams)?;
        let fcm = Self { state, server };
        fcm.state.token_uri.get_or_init(|| fcm.token_uri());
        Ok(fcm)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Where bearers are given out; belongs into the service account.
    pub fn token_uri(&self) -> String {
        format!("https://{}/token", self.server.address)
    }

    pub fn script(&self) -> &Script {
        &self.state.script
    }

    /// The next request for a bearer gets this answer; several wait in line.
    pub fn queue_token_answer(&self, answer: Answer) {
        self.state
            .token_answers
            .lock()
            .expect("nobody panics while holding the answers")
            .push_back(answer);
    }

    /// Every bearer given out so far is refused from now on.
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
        if request.method == Method::POST && request.path == "/token" {
            return self.give_bearer(&request).await;
        }
        match self.check(&request) {
            Ok(push) => {
                let answer = self.script.answer(&push.token);
                let number = self.messages.fetch_add(1, Ordering::Relaxed);
                let name = format!("projects/{FIREBASE_PROJECT}/messages/{number}");
                let push = Read {
                    service: PushService::Firebase,
                    token: push.token,
                    id: Some(name.clone()),
                    enc_payload: push.enc_payload,
                    body: push.body,
                    accepted: accepts(&answer),
                };
                take(&self.deliveries, &request, push, answer, || {
                    json_response(&json!({ "name": name }))
                })
                .await
            }
            Err((answer, why)) => {
                // A revoked bearer is a part of life, not a fault of the notifier.
                if !matches!(answer, Answer::Refuse { status: 401, .. }) {
                    self.deliveries.complain(format!("firebase: {why}"));
                }
                carry_out(answer, || text_response(200, "")).await
            }
        }
    }
}

struct Push {
    token: String,
    enc_payload: Vec<u8>,
    body: Value,
}

type Refused = (Answer, &'static str);

fn invalid(field: &str, why: &'static str) -> Refused {
    (Answer::fcm(400, "INVALID_ARGUMENT", None, Some(field)), why)
}

impl State {
    fn check(&self, request: &Received) -> Result<Push, Refused> {
        let path = format!("/v1/projects/{FIREBASE_PROJECT}/messages:send");
        if request.method != Method::POST || request.path != path {
            return Err((Answer::html(404), "the path is /v1/projects/PROJECT/messages:send"));
        }
        let bearer = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or("");
        if !self
            .bearers
            .lock()
            .expect("nobody panics while holding the bearers")
            .contains(bearer)
        {
            return Err((Answer::fcm(401, "UNAUTHENTICATED", None, None), "an unknown bearer"));
        }
        let body: Value =
            serde_json::from_slice(&request.body).map_err(|_| invalid("message", "the body is not JSON"))?;
        let message = &body["message"];
        let token = message["token"].as_str().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| invalid("message.token", "no token"))?.to_owned();
        let data = message["data"]
            .as_object()
            .ok_or_else(|| invalid("message.data", "no data"))?;
        let texts: Option<Vec<_>> = data
            .iter()
            .map(|(key, value)| Some(key.len() + value.as_str()?.len()))
            .collect();
        let length: usize = texts
            .ok_or_else(|| invalid("message.data", "values of data are strings"))?
            .iter()
            .sum();
        if length > PAYLOAD_LIMIT {
            return Err(invalid("message.data", "more than 4,096 bytes of data"));
        }
        if message.get("notification").is_some() {
            return Err(invalid("message.notification", "the client wants data only"));
        }
        let android = &message["android"];
        let priority = android["priority"].as_str().unwrap_or("");
        if !["HIGH", "NORMAL"].contains(&priority.to_ascii_uppercase().as_str()) {
            return Err(invalid(
                "message.android.priority",
                "priority is HIGH or NORMAL, and given",
            ));
        }
        let ttl = android["ttl"]
            .as_str()
            .and_then(|ttl| ttl.strip_suffix('s')?.parse::<u64>().ok());
        if ttl.is_none_or(|ttl| ttl > LONGEST_TTL) {
            return Err(invalid(
                "message.android.ttl",
                "ttl is given, in seconds, at most four weeks",
            ));
        }
        if data.get("spns") != Some(&json!("1")) {
            return Err(invalid("message.data", "the client wants spns as the text 1"));
        }
        let enc_payload = data
            .get("enc_payload")
            .and_then(|text| STANDARD.decode(text.as_str()?).ok())
            .ok_or_else(|| invalid("message.data", "the client wants enc_payload in padded base64"))?;
        Ok(Push {
            token,
            enc_payload,
            body,
        })
    }

    async fn give_bearer(&self, request: &Received) -> Verdict {
        let scripted = self
            .token_answers
            .lock()
            .expect("nobody panics while holding the answers")
            .pop_front();
        let answer = match (scripted, self.check_assertion(&request.body)) {
            (Some(answer), _) => answer,
            (None, Ok(())) => Answer::Accept,
            (None, Err(why)) => {
                self.deliveries.complain(format!("oauth: {why}"));
                Answer::Refuse {
                    status: 400,
                    headers: vec![("content-type", "application/json".into())],
                    body: json!({ "error": "invalid_grant", "error_description": why })
                        .to_string()
                        .into(),
                }
            }
        };
        let bearer = format!("ya29.{}", hex::encode(sodium::random::<24>()));
        if accepts(&answer) {
            self.bearers_given.fetch_add(1, Ordering::Relaxed);
            self.bearers
                .lock()
                .expect("nobody panics while holding the bearers")
                .insert(bearer.clone());
        }
        carry_out(answer, || {
            json_response(&json!({ "access_token": bearer, "expires_in": 3599, "token_type": "Bearer" }))
        })
        .await
    }

    fn check_assertion(&self, form: &[u8]) -> Result<(), &'static str> {
        let form = std::str::from_utf8(form).map_err(|_| "the form is not text")?;
        let field = |name: &str| {
            form.split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        let grant = field("grant_type")
            .unwrap_or("")
            .replace("%3A", ":")
            .replace("%3a", ":");
        if grant != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
            return Err("grant_type is not jwt-bearer");
        }
        let token = jwt::verify_rs256(field("assertion").unwrap_or(""), &self.public_key)
            .ok_or("the assertion's signature does not hold")?;
        let (claims, now) = (&token.claims, unix_seconds());
        if claims["iss"] != FIREBASE_EMAIL {
            return Err("iss is not the service account");
        }
        if claims["aud"].as_str() != self.token_uri.get().map(String::as_str) {
            return Err("aud is not the token_uri");
        }
        if !claims["scope"]
            .as_str()
            .is_some_and(|scopes| scopes.split(' ').any(|scope| scope == SCOPE))
        {
            return Err("scope is not firebase.messaging");
        }
        let (Some(issued), Some(ends)) = (claims["iat"].as_i64(), claims["exp"].as_i64()) else {
            return Err("iat or exp is missing");
        };
        if issued > now + 60 || ends <= now || ends - issued > 3600 {
            return Err("the assertion is not of this hour");
        }
        Ok(())
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
