//! A request inside a v4 onion: which of our endpoints it means, and the sealed reply.
//!
//! In: the body of POST /oxen/v4/lsrpc. Out: the body of the reply, or why there is none. Never: follows another endpoint, its
//! own among them.

use super::Operation;
use super::subscribe::{Answer, Desk, WholeFault};
use super::{Subscriptions, code_label};
use axum::http::StatusCode;
use quietline_shared::onion::{self, OnionError, OnionRequest, OuterFault, ReplyKey};
use quietline_shared::redact::Secret;
use tokio::time::Instant;

/// Why an onion request gets no sealed reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnionRefusal {
    Outer(OuterFault),
    /// The operating system gave no random bytes for the reply.
    NoRandomness,
}

/// Opening takes about 100 µs of computing, which is less than it costs to hand it to another thread and be woken again.
pub async fn answer<S: Subscriptions>(
    request: &[u8],
    key: &Secret<[u8; 32]>,
    desk: &Desk<S>,
    body_limit: usize,
    deadline: Instant,
) -> Result<Vec<u8>, OnionRefusal> {
    match onion::open(request, key) {
        Ok(OnionRequest {
            method,
            endpoint,
            body,
            reply,
        }) => match target(&method, &endpoint) {
            Ok(operation) if !desk.offers(operation) => seal(&reply, &InnerRefusal::UnknownEndpoint.answer(), TEXT),
            Ok(operation) => {
                let text = body.map(|body| body.0).unwrap_or_default();
                let answer = if text.len() > body_limit {
                    desk.refuse(operation, WholeFault::TooLarge)
                } else {
                    desk.answer(operation, &text, deadline).await
                };
                seal(&reply, &answer, JSON)
            }
            Err(refusal) => seal(&reply, &refusal.answer(), TEXT),
        },
        Err(OnionError::Inner { fault, reply }) => {
            metrics::counter!("http_onion_refused_total", "reason" => fault.label()).increment(1);
            seal(&reply, &InnerRefusal::Malformed.answer(), TEXT)
        }
        Err(OnionError::Outer(fault)) => {
            metrics::counter!("http_onion_refused_total", "reason" => fault.label()).increment(1);
            Err(OnionRefusal::Outer(fault))
        }
    }
}

fn seal(reply: &ReplyKey, answer: &Answer, content_type: &str) -> Result<Vec<u8>, OnionRefusal> {
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce).map_err(|_| OnionRefusal::NoRandomness)?;
    metrics::counter!("http_onion_replies_total", "code" => code_label(answer.code)).increment(1);
    Ok(reply.seal(answer.code.as_u16(), content_type, answer.json.as_bytes(), &nonce))
}

/// Refusals of a request that could be read, told in secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InnerRefusal {
    Malformed,
    UnknownEndpoint,
    WrongMethod,
}

impl InnerRefusal {
    fn answer(self) -> Answer {
        let (code, text) = match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, super::INVALID_ONION),
            Self::UnknownEndpoint => (StatusCode::NOT_FOUND, "Not Found"),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
        };
        Answer {
            code,
            json: text.to_owned(),
        }
    }
}

fn target(method: &str, endpoint: &str) -> Result<Operation, InnerRefusal> {
    let path = endpoint.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decoded(path).ok_or(InnerRefusal::UnknownEndpoint)?;
    let operation = Operation::ALL
        .into_iter()
        .find(|operation| operation.path().as_bytes() == path);
    let operation = operation.ok_or(InnerRefusal::UnknownEndpoint)?;
    if method.eq_ignore_ascii_case("POST") {
        Ok(operation)
    } else {
        Err(InnerRefusal::WrongMethod)
    }
}

/// `None` where a `%` is not followed by two hex digits. Decoded once: `%2573` is `%73`.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>()?;
            let mut value = [0];
            hex::decode_to_slice(digits, &mut value).ok()?;
            decoded.extend(value);
            rest = after;
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_four_endpoints_exist() {
        assert_eq!(target("POST", "/subscribe"), Ok(Operation::Subscribe));
        assert_eq!(target("post", "/%75nsubscribe?a=b/../c#d"), Ok(Operation::Unsubscribe));
        assert_eq!(target("POST", "/test"), Ok(Operation::Test));
        assert_eq!(target("POST", "/turn/credentials"), Ok(Operation::Credentials));
        assert_eq!(target("GET", "/subscribe"), Err(InnerRefusal::WrongMethod));
        for unknown in [
            "",
            "/",
            "subscribe",
            "/subscribe/",
            "//subscribe",
            "/SUBSCRIBE",
            "/oxen/v4/lsrpc",
            "/info",
            "/turn",
            "/%",
            "/%7",
            "/%zz",
            "/%2573ubscribe",
        ] {
            assert_eq!(target("POST", unknown), Err(InnerRefusal::UnknownEndpoint), "{unknown}");
            assert_eq!(target("GET", unknown), Err(InnerRefusal::UnknownEndpoint), "{unknown}");
        }
    }
}
