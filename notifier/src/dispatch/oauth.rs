//! An access token (RFC 6749): fetched once for all pushes, and again before it ends.
//!
//! In: what is exchanged for it. Out: the `authorization` of a request. Never: two fetches at once, a fetch for each push, or a push
//! lost because there is no token.

use crate::dispatch::answer::{Answer, Effect};
use crate::dispatch::http2::{Endpoint, REPLY_MAX, open};
use crate::dispatch::unix_ms;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use notifier_core::outbox::RetryReason;
use quietline_shared::backoff::Backoff;
use quietline_shared::redact::Secret;
use rustls::ClientConfig;
use serde::Deserialize;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Clone)]
pub struct AccessToken {
    pub bearer: HeaderValue,
    /// Counts the fetches: tells an old token from a new one.
    generation: u64,
    /// From then on a new one is fetched while this one is used.
    stale_at: Instant,
    dead_at: Instant,
}

/// Why there is no token. `pause` = until the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    Unreachable { pause: Duration },
    Refused { pause: Duration },
}

/// Tokens live 60 minutes and are replaced at 50.
const LIFE: Duration = Duration::from_secs(3600);
const MARGIN: Duration = Duration::from_secs(600);
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A refused token is replaced at most this often: a new one is refused as well if its age is not the reason.
const SPOILED_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// What proves to the token endpoint who we are.
pub trait Grant: Send + Sync {
    fn token_uri(&self) -> &Uri;

    /// The form that the endpoint exchanges for a token (RFC 6749 §4.4, RFC 7523 §2.1). `None` if the key cannot sign.
    fn form(&self, unix_seconds: i64) -> Option<Secret<String>>;
}

pub struct AccessTokens(Arc<Shared>);

struct Shared {
    grant: Box<dyn Grant>,
    endpoint: Endpoint,
    patience: Duration,
    pace: Backoff,
    state: Mutex<State>,
}

struct State {
    current: Option<AccessToken>,
    /// Ends with the fetch that is under way.
    fetching: Option<watch::Receiver<()>>,
    generation: u64,
    spoiled_at: Option<Instant>,
    failures: u32,
    not_before: Instant,
    last_was_refused: bool,
}

enum Step {
    Have(AccessToken),
    Wait(watch::Receiver<()>),
    Fail(TokenFault),
}

impl AccessTokens {
    /// `None` if the token URI has no host.
    pub fn new(grant: impl Grant + 'static, tls: Arc<ClientConfig>, patience: Duration, pace: Backoff) -> Option<Self> {
        let host = grant.token_uri().host()?;
        let endpoint = Endpoint::new(host, grant.token_uri().port_u16().unwrap_or(443), tls)?;
        Some(Self(Arc::new(Shared {
            grant: Box::new(grant),
            endpoint,
            patience,
            pace,
            state: Mutex::new(State {
                current: None,
                fetching: None,
                generation: 0,
                spoiled_at: None,
                failures: 0,
                not_before: Instant::now(),
                last_was_refused: false,
            }),
        })))
    }

    /// Waits for a fetch that is under way; the fetch goes on if the one who waits is dropped.
    pub async fn current(&self) -> Result<AccessToken, TokenFault> {
        let mut has_waited = false;
        loop {
            match self.0.step(has_waited) {
                Step::Have(token) => return Ok(token),
                Step::Fail(fault) => return Err(fault),
                // An error means the same: the fetch has ended.
                Step::Wait(mut fetch) => drop(fetch.changed().await),
            }
            has_waited = true;
        }
    }

    /// The provider refused `token`. False if that is no reason to fetch another.
    pub fn spoil(&self, token: &AccessToken) -> bool {
        let now = Instant::now();
        let mut state = self.0.state();
        match &state.current {
            Some(current) if current.generation == token.generation => {
                let is_early = |at| now.saturating_duration_since(at) < SPOILED_AT_MOST_EVERY;
                if state.spoiled_at.is_some_and(is_early) {
                    return false;
                }
                state.spoiled_at = Some(now);
                state.current = None;
                true
            }
            // Somebody else has seen to it.
            _ => true,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One who has waited for a fetch that failed does not wait for the next.
    fn step(self: &Arc<Self>, has_waited: bool) -> Step {
        let now = Instant::now();
        let mut state = self.state();
        let usable = state.current.as_ref().filter(|token| now < token.dead_at).cloned();
        if let Some(token) = &usable
            && now < token.stale_at
        {
            return Step::Have(token.clone());
        }
        // A fetch that broke off has closed its end.
        if state
            .fetching
            .as_ref()
            .is_some_and(|fetch| fetch.has_changed().is_err())
        {
            state.fetching = None;
        }
        let may_fetch = now >= state.not_before && !(has_waited && state.failures > 0);
        if state.fetching.is_none() && may_fetch {
            let (ended, fetch) = watch::channel(());
            state.fetching = Some(fetch);
            tokio::spawn(Arc::clone(self).fetch(ended));
        }
        match (usable, &state.fetching) {
            (Some(token), _) => Step::Have(token),
            (None, Some(fetch)) if !has_waited || state.failures == 0 => Step::Wait(fetch.clone()),
            (None, _) => {
                let pause = state.not_before.saturating_duration_since(now);
                Step::Fail(match state.last_was_refused {
                    true => TokenFault::Refused { pause },
                    false => TokenFault::Unreachable { pause },
                })
            }
        }
    }

    async fn fetch(self: Arc<Self>, ended: watch::Sender<()>) {
        let fetched = match tokio::time::timeout(self.patience, self.exchange()).await {
            Ok(fetched) => fetched,
            Err(_) => Err(FetchFault::Timeout),
        };
        let label = fetched.as_ref().err().map_or("fetched", |fault| fault.label());
        metrics::counter!("dispatch_access_tokens_total", "result" => label).increment(1);
        let now = Instant::now();
        let mut state = self.state();
        state.fetching = None;
        match fetched {
            Ok((bearer, life)) => {
                if state.failures > 0 {
                    tracing::info!("access token is fetched again");
                }
                state.failures = 0;
                state.generation += 1;
                state.current = Some(AccessToken {
                    bearer,
                    generation: state.generation,
                    stale_at: now + life.saturating_sub(MARGIN).max(life / 2),
                    dead_at: now + life,
                });
            }
            Err(fault) => {
                if state.failures == 0 {
                    tracing::warn!(reason = label, "access token cannot be fetched");
                }
                let random = getrandom::u64().unwrap_or(u64::MAX);
                state.not_before = now + self.pace.delay(state.failures, random);
                state.failures = state.failures.saturating_add(1);
                state.last_was_refused = fault == FetchFault::Refused;
            }
        }
        drop(state);
        drop(ended);
    }

    async fn exchange(&self) -> Result<(HeaderValue, Duration), FetchFault> {
        let stream = open(&self.endpoint).await.map_err(|_| FetchFault::Unreachable)?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let request = self.request(is_http2).ok_or(FetchFault::Unsigned)?;
        let stream = TokioIo::new(stream);
        let response = if is_http2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(|_| FetchFault::Unreachable)?;
            answered(sender.send_request(request), connection).await?
        } else {
            let (mut sender, connection) = http1::handshake(stream).await.map_err(|_| FetchFault::Unreachable)?;
            answered(sender.send_request(request), connection).await?
        };
        let (status, body) = response;
        match status {
            200 => token_of(&body),
            400 | 401 | 403 => Err(FetchFault::Refused),
            _ => Err(FetchFault::Unavailable),
        }
    }

    fn request(&self, is_http2: bool) -> Option<Request<Full<Bytes>>> {
        let uri = self.grant.token_uri();
        let form = self.grant.form(unix_ms() / 1000)?;
        // HTTP/1.1 names the host in a header, HTTP/2 in the URI.
        let request = match is_http2 {
            true => Request::post(uri.clone()),
            false => Request::post(uri.path_and_query()?.as_str()).header(HOST, uri.authority()?.as_str()),
        };
        request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::copy_from_slice(form.expose().as_bytes())))
            .ok()
    }
}

/// What becomes of a push without a token.
pub fn no_token(fault: TokenFault) -> Answer {
    match fault {
        TokenFault::Unreachable { pause } => Answer::held(pause, "token-unreachable"),
        TokenFault::Refused { pause } => {
            Answer::retry_after(RetryReason::CredentialRefused, Some(pause), "token-refused").and(Effect::Alert)
        }
    }
}

/// Why a fetch failed. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchFault {
    Unsigned,
    Unreachable,
    Timeout,
    Unavailable,
    Refused,
    Garbage,
}

impl FetchFault {
    const fn label(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Garbage => "garbage",
        }
    }
}

#[derive(Deserialize)]
struct Granted<'a> {
    #[serde(borrow)]
    access_token: std::borrow::Cow<'a, str>,
    /// Seconds.
    #[serde(default)]
    expires_in: Option<u64>,
}

fn token_of(body: &[u8]) -> Result<(HeaderValue, Duration), FetchFault> {
    let granted: Granted<'_> = serde_json::from_slice(body).map_err(|_| FetchFault::Garbage)?;
    let is_plain = !granted.access_token.is_empty() && granted.access_token.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain {
        return Err(FetchFault::Garbage);
    }
    let text = format!("Bearer {}", granted.access_token);
    let mut bearer = HeaderValue::try_from(text).map_err(|_| FetchFault::Garbage)?;
    bearer.set_sensitive(true);
    let life = granted.expires_in.map_or(LIFE, Duration::from_secs);
    Ok((bearer, life.clamp(Duration::from_secs(60), LIFE_MAX)))
}

/// Runs the connection as long as the reply needs it, and no longer.
async fn answered<C, E>(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: C,
) -> Result<(u16, Bytes), FetchFault>
where
    C: Future<Output = Result<(), E>>,
{
    let whole = async {
        let response = response.await.map_err(|_| FetchFault::Unreachable)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), REPLY_MAX).collect().await;
        Ok((status, body.map_err(|_| FetchFault::Garbage)?.to_bytes()))
    };
    let mut whole = std::pin::pin!(whole);
    tokio::select! {
        biased;
        done = &mut whole => done,
        _ = connection => whole.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_granted_token_is_bounded_and_plain() {
        let (bearer, life) = token_of(br#"{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}"#).unwrap();
        assert_eq!(bearer.as_bytes(), b"Bearer ya29.x");
        assert!(bearer.is_sensitive());
        assert_eq!(life, Duration::from_secs(3599));
        for (seconds, expected) in [("0", 60), ("18446744073709551615", 24 * 3600)] {
            let body = format!("{{\"access_token\":\"a\",\"expires_in\":{seconds}}}");
            assert_eq!(token_of(body.as_bytes()).unwrap().1, Duration::from_secs(expected));
        }
        for garbage in [
            "",
            "[]",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\r\nb: c"}"#,
            r#"{"access_token":5}"#,
        ] {
            assert_eq!(
                token_of(garbage.as_bytes()).err(),
                Some(FetchFault::Garbage),
                "{garbage}"
            );
        }
    }
}
