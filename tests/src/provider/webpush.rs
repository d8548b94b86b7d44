//! A fake push server (RFC 8030), as ntfy or a browser's: gives out endpoints, checks requests strictly, answers as the script says.
//!
//! In: `POST /up/ID` over HTTP/2 or HTTP/1.1. Out: deliveries, opened with a foreign implementation of RFC 8291; complaints. Never: more
//! lenient than the RFCs.

use super::{
    Answer, Deliveries, Fake, Read, Received, Script, Server, Verdict, accepts, carry_out, jwt, take, text_response,
};
use crate::keys::{KeyError, Keys, PUSH_CONTACT};
use crate::phone::{PushService, Reader, unix_seconds};
use crate::sodium;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::Method;
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use web_push_native::Auth;
use web_push_native::p256::SecretKey;

/// Largest body of a push (RFC 8030 §7.2).
const BODY_LIMIT: usize = 4096;
const DAY: i64 = 24 * 3600;

pub struct Webpush {
    state: Arc<State>,
    server: Server,
}

struct State {
    origin: OnceLock<String>,
    script: Script,
    deliveries: Arc<Deliveries>,
    readers: Mutex<HashMap<String, Reader>>,
    checks: AtomicU64,
}

impl Webpush {
    /// `streams` is what the server allows under way on one connection.
    pub fn start(keys: &Keys, deliveries: Arc<Deliveries>, streams: u32) -> Result<Self, KeyError> {
        let state = Arc::new(State {
            origin: OnceLock::new(),
            script: Script::default(),
            deliveries,
            readers: Mutex::default(),
            checks: AtomicU64::new(0),
        });
        let server = Server::start(Arc::clone(&state), keys.authority.server_config()?, streams)?;
        let webpush = Self { state, server };
        webpush
            .state
            .origin
            .get_or_init(|| format!("https://{}", webpush.server.address));
        Ok(webpush)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub fn script(&self) -> &Script {
        &self.state.script
    }

    pub fn set_down(&self, down: bool) {
        self.server.set_down(down);
    }

    /// Questions whether an endpoint lives, so far.
    pub fn checks(&self) -> u64 {
        self.state.checks.load(Ordering::Relaxed)
    }

    /// What a distributor would hand to an app: an endpoint here, and keys of its own.
    pub fn reader(&self) -> Reader {
        let id = URL_SAFE_NO_PAD.encode(sodium::random::<24>());
        let origin = self.state.origin.get().map_or("", String::as_str);
        let secret = std::iter::repeat_with(sodium::random::<32>)
            .find_map(|random| SecretKey::from_slice(&random).ok())
            .expect("nearly every number is a key");
        let reader = Reader {
            endpoint: format!("{origin}/up/{id}?up=1"),
            secret: secret.to_bytes().into(),
            public: secret.public_key().to_sec1_bytes().to_vec(),
            auth: sodium::random(),
        };
        self.readers().insert(format!("/up/{id}"), reader.clone());
        reader
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Reader>> {
        self.state
            .readers
            .lock()
            .expect("nobody panics while holding the readers")
    }
}

impl Fake for State {
    async fn answer(&self, request: Received) -> Verdict {
        match self.check(&request) {
            Ok((reader, text)) => {
                let answer = self.script.answer(&reader.endpoint);
                if text.get("enc_payload").is_none() {
                    self.checks.fetch_add(1, Ordering::Relaxed);
                    return carry_out(answer, || text_response(201, "")).await;
                }
                let enc_payload = text["enc_payload"].as_str().and_then(|text| STANDARD.decode(text).ok());
                if enc_payload.is_none() || text["spns"] != "1" {
                    self.deliveries
                        .complain("webpush: the client wants enc_payload and spns".to_owned());
                }
                let push = Read {
                    service: PushService::Webpush,
                    token: reader.endpoint,
                    id: None,
                    enc_payload: enc_payload.unwrap_or_default(),
                    body: text,
                    accepted: accepts(&answer),
                };
                take(&self.deliveries, &request, push, answer, || text_response(201, "")).await
            }
            Err((status, why)) => {
                self.deliveries.complain(format!("webpush: {why}"));
                carry_out(Answer::html(status), || text_response(201, "")).await
            }
        }
    }
}

impl State {
    fn check(&self, request: &Received) -> Result<(Reader, Value), (u16, &'static str)> {
        if request.method != Method::POST {
            return Err((405, "a push is a POST"));
        }
        let readers = self.readers.lock().expect("nobody panics while holding the readers");
        let reader = readers.get(&request.path).ok_or((404, "no such endpoint"))?.clone();
        drop(readers);
        self.check_vapid(request.header("authorization").unwrap_or(""))
            .map_err(|why| (403, why))?;
        let ttl = request.header("ttl").and_then(|ttl| ttl.parse::<u64>().ok());
        if ttl.is_none_or(|ttl| ttl > 2_419_200) {
            return Err((400, "TTL is given, in seconds, at most four weeks"));
        }
        if !["very-low", "low", "normal", "high"].contains(&request.header("urgency").unwrap_or("normal")) {
            return Err((400, "Urgency is one of four words"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let topic = request.header("topic").unwrap_or("");
        if topic.len() > 32 || !topic.bytes().all(plain) {
            return Err((400, "Topic has at most 32 characters of base64url"));
        }
        if request.header("content-encoding") != Some("aes128gcm") {
            return Err((400, "the content encoding is aes128gcm"));
        }
        if request.body.len() > BODY_LIMIT {
            return Err((413, "more than 4,096 bytes"));
        }
        let text = reader.open(&request.body).ok_or((400, "the reader cannot open it"))?;
        let text = serde_json::from_slice(&text).map_err(|_| (400, "what the reader opens is no JSON"))?;
        Ok((reader, text))
    }

    fn check_vapid(&self, value: &str) -> Result<(), &'static str> {
        let (token, key) = value
            .strip_prefix("vapid t=")
            .and_then(|value| value.split_once(", k="))
            .ok_or("no VAPID token")?;
        let point = URL_SAFE_NO_PAD
            .decode(key)
            .map_err(|_| "the key of VAPID is base64url")?;
        let token = jwt::verify_es256(token, &point).ok_or("the signature of VAPID does not hold")?;
        if token.claims["aud"].as_str() != self.origin.get().map(String::as_str) {
            return Err("aud is not this origin");
        }
        let ends = token.claims["exp"].as_i64().unwrap_or(0) - unix_seconds();
        if !(0..=DAY).contains(&ends) {
            return Err("exp is not within a day");
        }
        if token.claims["sub"] != PUSH_CONTACT {
            return Err("sub is not the contact");
        }
        Ok(())
    }
}

impl Reader {
    /// As another project's implementation of RFC 8291 opens it.
    pub fn open(&self, body: &[u8]) -> Option<Vec<u8>> {
        let secret = SecretKey::from_slice(&self.secret).ok()?;
        web_push_native::decrypt(body.to_vec(), &secret, &Auth::clone_from_slice(&self.auth)).ok()
    }
}
