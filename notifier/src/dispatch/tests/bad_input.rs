//! Answers that no provider should give: HTML, huge, slow, truncated, in HTTP/1.1, with a GOAWAY in the middle, under an expired
//! certificate. None loses a wakeup or a valid token, at any provider.

use super::super::fake::server::{ReplyStream, Server};
use super::table::Any;
use super::*;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use std::convert::Infallible;

const PROVIDERS: [Service; 4] = [Service::Apns, Service::ApnsSandbox, Service::Firebase, Service::Huawei];

/// Patience for what never ends.
const SHORT: Duration = Duration::from_millis(500);

const HTML: &str = "<!doctype html><title>Error</title><p>Something went wrong.";

fn one(service: Service) -> Push {
    push(1, service, &[b'A'; 32])
}

/// The push is still ours, and its token too.
fn is_kept(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Retry { .. } | Outcome::Held { .. })
}

fn success() -> Replied {
    reply(200, r#"{"code":"80000000"}"#)
}

fn granted() -> Replied {
    reply(200, r#"{"access_token":"a","expires_in":3600}"#)
}

struct World {
    provider: Any,
    server: Server,
    _tokens: Server,
}

/// The first answer is `bad`, all others are good.
async fn world(files: &Files, service: Service, bad: impl Fn() -> Replied + Send + Sync + 'static) -> World {
    let (handler, _) = handler(move |_, before| if before == 0 { bad() } else { success() });
    let (tokens, _) = super::handler(|_, _| granted());
    let server = Server::start(files.root.server(2090, &["h2"], false), 100, handler).await;
    let tokens = Server::start(files.root.server(2090, &["h2"], false), 100, tokens).await;
    World {
        provider: Any::open(files, service, server.port, tokens.port),
        server,
        _tokens: tokens,
    }
}

fn streamed(status: u16, chunks: impl futures_util::Stream<Item = &'static str> + Send + 'static) -> Replied {
    let frames = chunks.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
    let body: ReplyStream = StreamBody::new(frames).boxed_unsync();
    Ok(Response::builder().status(status).body(body).unwrap())
}

#[tokio::test]
async fn html_under_any_status_loses_nothing() {
    let files = Files::new();
    for service in PROVIDERS {
        for status in [
            302, 400, 401, 403, 404, 407, 408, 410, 418, 421, 429, 500, 502, 503, 504,
        ] {
            let world = world(&files, service, move || reply(status, HTML)).await;
            let outcome = world.provider.send(&one(service), LONG).await;
            // A 401 is worth a new access token, with which it is delivered.
            let renewed = status == 401 && outcome == Outcome::Delivered;
            assert!(is_kept(&outcome) || renewed, "{service:?} {status}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_huge_body_is_not_read_on_and_loses_nothing() {
    let files = Files::new();
    for service in PROVIDERS {
        for status in [400, 404, 410, 500] {
            let world = world(&files, service, move || reply(status, vec![b'{'; 2_000_000])).await;
            let outcome = world.provider.send(&one(service), LONG).await;
            assert!(
                is_kept(&outcome) || (service == Service::Huawei && status == 404),
                "{service:?} {status}: {outcome:?}"
            );
            assert_eq!(world.provider.send(&one(service), LONG).await, Outcome::Delivered);
        }
    }
}

#[tokio::test]
async fn a_slow_body_ends_with_the_pushs_own_time_and_loses_nothing() {
    let files = Files::new();
    for service in PROVIDERS {
        for status in [400, 410, 503] {
            let drip = || stream::iter(["{\"rea"]).chain(stream::pending());
            let world = world(&files, service, move || streamed(status, drip())).await;
            let outcome = world.provider.send(&one(service), SHORT).await;
            assert_eq!(reason(&outcome), Some(RetryReason::Timeout), "{service:?} {status}");
            assert_eq!(world.provider.send(&one(service), LONG).await, Outcome::Delivered);
        }
    }
}

#[tokio::test]
async fn a_truncated_body_loses_nothing() {
    let files = Files::new();
    let cut = [
        (400, "{\"reason\":\"BadDeviceTok"),
        (410, "{\"reason\":\"Unregistered\",\"timest"),
        (
            404,
            "{\"error\":{\"status\":\"NOT_FOUND\",\"details\":[{\"errorCode\":\"UNREGIST",
        ),
        (400, "{\"code\":\"80300007"),
    ];
    for service in PROVIDERS {
        for (status, text) in cut {
            let world = world(&files, service, move || streamed(status, stream::iter([text]))).await;
            let outcome = world.provider.send(&one(service), LONG).await;
            assert!(is_kept(&outcome), "{service:?} {status}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_in_a_reset_loses_nothing() {
    let files = Files::new();
    for service in PROVIDERS {
        let reset = || Err(h2::Error::from(h2::Reason::INTERNAL_ERROR));
        let world = world(&files, service, reset).await;
        let outcome = world.provider.send(&one(service), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::Connection), "{service:?}");
        assert_eq!(world.provider.send(&one(service), LONG).await, Outcome::Delivered);
        assert_eq!(world.server.connections.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_goaway_in_the_middle_loses_nothing_and_repeats_nothing() {
    let files = Files::new();
    for service in PROVIDERS {
        let (handler, log) = handler(|_, _| success());
        let (tokens, _) = super::handler(|_, _| granted());
        let server = Server::start(files.root.server(2090, &["h2"], false), 100, handler).await;
        let tokens = Server::start(files.root.server(2090, &["h2"], false), 100, tokens).await;
        let provider = Any::open(&files, service, server.port, tokens.port);
        for number in 0..10 {
            if number % 3 == 1 {
                server.goaway.notify_waiters();
            }
            assert_eq!(
                provider.send(&one(service), LONG).await,
                Outcome::Delivered,
                "{service:?}"
            );
        }
        assert_eq!(log.lock().unwrap().len(), 10);
    }
}

#[tokio::test]
async fn a_provider_of_http_1_or_with_an_expired_or_foreign_certificate_holds_the_lane_and_hears_no_push() {
    let files = Files::new();
    let foreign = fake::server::Root::new();
    for service in PROVIDERS {
        for tls in [
            files.root.server(2090, &["http/1.1"], false),
            files.root.server(2020, &["h2"], false),
            foreign.server(2090, &["h2"], false),
        ] {
            let (handler, log) = handler(|_, _| success());
            let (tokens, _) = super::handler(|_, _| granted());
            let server = Server::start(tls, 100, handler).await;
            let tokens = Server::start(files.root.server(2090, &["h2"], false), 100, tokens).await;
            let provider = Any::open(&files, service, server.port, tokens.port);
            let outcome = provider.send(&one(service), LONG).await;
            assert!(matches!(outcome, Outcome::Held { .. }), "{service:?}: {outcome:?}");
            assert!(log.lock().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn an_access_token_that_is_html_huge_slow_or_under_an_expired_certificate_holds_the_lane() {
    let files = Files::new();
    for service in [Service::Firebase, Service::Huawei] {
        let bad: [(i32, fn() -> Replied); 5] = [
            (2090, || reply(200, HTML)),
            (2090, || reply(200, vec![b'{'; 2_000_000])),
            (2090, || streamed(200, stream::iter(["{\"access_token\":\"a"]))),
            (2090, || reply(503, HTML)),
            (2020, granted),
        ];
        for (last_year, bad) in bad {
            let (handler, log) = handler(|_, _| success());
            let (tokens, _) = super::handler(move |_, _| bad());
            let server = Server::start(files.root.server(2090, &["h2"], false), 100, handler).await;
            let tokens = Server::start(files.root.server(last_year, &["h2"], false), 100, tokens).await;
            let provider = Any::open(&files, service, server.port, tokens.port);
            let outcome = provider.send(&one(service), LONG).await;
            assert!(matches!(outcome, Outcome::Held { .. }), "{service:?}: {outcome:?}");
            assert!(log.lock().unwrap().is_empty());
        }
    }
}
