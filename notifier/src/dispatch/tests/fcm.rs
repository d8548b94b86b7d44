//! FCM: what is sent, how access tokens are fetched, and that none of it loses a push.

use super::super::fake::rsa;
use super::super::fake::server::Server;
use super::*;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

async fn fake(files: &Files, handler: Handler) -> Server {
    Server::start(files.root.server(2090, &["h2"], false), 100, handler).await
}

fn granted(number: usize) -> Replied {
    reply(
        200,
        format!("{{\"access_token\":\"token-{number}\",\"expires_in\":3599,\"token_type\":\"Bearer\"}}"),
    )
}

fn fcm(settings: &FirebaseSettings, timeout: Duration) -> Exchange<Fcm> {
    Fcm::open(settings, timeout, eager).unwrap()
}

fn one() -> Push {
    push(1, Service::Firebase, b"device:1")
}

#[tokio::test]
async fn a_push_is_exactly_this() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, log) = handler(|_, _| reply(200, "{\"name\":\"projects/example-project/messages/1\"}"));
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = fcm(&files.firebase(server.port, token_server.port), LONG);
    for _ in 0..3 {
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    }
    assert_eq!(token_log.lock().unwrap().len(), 1, "one access token for all");
    let log = log.lock().unwrap();
    let received = &log[0];
    assert_eq!(
        (&*received.method, &*received.path),
        ("POST", "/v1/projects/example-project/messages:send")
    );
    assert_eq!(
        received.authority.as_deref(),
        Some(&*format!("localhost:{}", server.port))
    );
    assert_eq!(received.group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert_eq!(
        token_log.lock().unwrap()[0].group,
        Some(rustls::NamedGroup::X25519MLKEM768)
    );
    assert_eq!(received.headers[AUTHORIZATION], "Bearer token-0");
    assert_eq!(received.headers[CONTENT_TYPE], "application/json");
    let body: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
    let message = &body["message"];
    assert_eq!(message["token"], "device:1");
    assert_eq!(message["data"].as_object().unwrap().len(), 2);
    assert_eq!(message["data"]["spns"], "1");
    assert_eq!(message["android"]["priority"], "high");
    assert_eq!(message["android"]["ttl"], "1209600s");
}

#[tokio::test]
async fn the_assertion_is_signed_by_the_service_account() {
    #[derive(serde::Deserialize)]
    struct Claims {
        iss: String,
        scope: String,
        iat: i64,
        exp: i64,
    }
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(ok);
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = fcm(&files.firebase(server.port, token_server.port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    let log = token_log.lock().unwrap();
    assert_eq!((&*log[0].method, &*log[0].path), ("POST", "/token"));
    assert_eq!(log[0].headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
    let form = std::str::from_utf8(&log[0].body).unwrap();
    let (grant, assertion) = form.split_once("&assertion=").unwrap();
    assert_eq!(
        grant,
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer"
    );
    let key = DecodingKey::from_rsa_pem(rsa().public_key_pem().as_bytes()).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["https://oauth.example.org/token"]);
    let decoded = jsonwebtoken::decode::<Claims>(assertion, &key, &validation).unwrap();
    assert_eq!(decoded.header.kid.as_deref(), Some("1a2b"));
    assert_eq!(decoded.claims.iss, "push@example.org");
    assert_eq!(
        decoded.claims.scope,
        "https://www.googleapis.com/auth/firebase.messaging"
    );
    assert_eq!(decoded.claims.exp - decoded.claims.iat, 3600);
}

#[tokio::test]
async fn a_token_endpoint_that_speaks_only_http_1_serves_too() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(ok);
    let token_server = Server::start(files.root.server(2090, &["http/1.1"], false), 100, tokens).await;
    let server = fake(&files, pushes).await;
    let provider = fcm(&files.firebase(server.port, token_server.port), LONG);
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    let log = token_log.lock().unwrap();
    assert_eq!(
        (&*log[0].path, log[0].headers[HOST].to_str().unwrap()),
        ("/token", &*format!("localhost:{}", token_server.port))
    );
}

#[tokio::test]
async fn a_401_refreshes_the_token_once_for_all_who_hold_it() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(|received, _| match received.headers[AUTHORIZATION].as_bytes() {
        b"Bearer token-0" => reply(401, "{\"error\":{\"code\":401,\"status\":\"UNAUTHENTICATED\"}}"),
        _ => reply(200, ""),
    });
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = Arc::new(fcm(&files.firebase(server.port, token_server.port), LONG));
    let pushes = (0..50).map(|entry| push(entry, Service::Firebase, b"t")).collect();
    let found = through_lane(provider, pushes, 50).await;
    assert_eq!(found.len(), 50);
    assert!(
        found.iter().all(|(_, outcome)| *outcome == Outcome::Delivered),
        "{found:?}"
    );
    assert_eq!(token_log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_401_to_a_fresh_token_stops_the_lane_without_more_fetches() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(|_, _| reply(401, ""));
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = fcm(&files.firebase(server.port, token_server.port), LONG);
    for _ in 0..5 {
        let outcome = send(&provider, &one(), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::CredentialRefused), "{outcome:?}");
    }
    assert_eq!(token_log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn without_an_access_token_a_push_is_tried_again_and_not_lost() {
    for (answer, expected) in [
        (reply(500, ""), None),
        (reply(200, "<html>"), None),
        (reply(200, vec![b'x'; 100_000]), None),
        (
            reply(400, "{\"error\":\"invalid_grant\"}"),
            Some(RetryReason::CredentialRefused),
        ),
    ] {
        let files = Files::new();
        let answer = Mutex::new(Some(answer));
        let (tokens, _) = handler(move |_, before| answer.lock().unwrap().take().unwrap_or_else(|| granted(before)));
        let (pushes, log) = handler(ok);
        let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
        let provider = fcm(&files.firebase(server.port, token_server.port), LONG);
        let outcome = send(&provider, &one(), LONG).await;
        assert_eq!(reason(&outcome), expected, "{outcome:?}");
        assert_eq!(
            expected.is_none(),
            matches!(outcome, Outcome::Held { .. }),
            "{outcome:?}"
        );
        assert!(log.lock().unwrap().is_empty());
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    }
}

#[tokio::test]
async fn a_silent_or_absent_token_endpoint_costs_no_push() {
    let files = Files::new();
    let (pushes, _log) = handler(ok);
    let (token_server, server) = (fake(&files, silent()).await, fake(&files, pushes).await);
    let short = Duration::from_millis(200);
    let provider = fcm(&files.firebase(server.port, token_server.port), short);
    let outcome = send(&provider, &one(), short).await;
    assert!(
        reason(&outcome) == Some(RetryReason::Timeout) || matches!(outcome, Outcome::Held { .. }),
        "{outcome:?}"
    );
    let settings = files.firebase(server.port, token_server.port);
    drop(token_server);
    let outcome = send(&fcm(&settings, LONG), &one(), LONG).await;
    assert!(matches!(outcome, Outcome::Held { .. }), "{outcome:?}");
}

#[tokio::test]
async fn one_bad_token_among_five_hundred_pushes_harms_no_other() {
    let files = Files::new();
    let (tokens, _) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(|received, _| {
        let body: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
        match body["message"]["token"].as_str().unwrap() {
            "t250" => reply(
                404,
                "{\"error\":{\"code\":404,\"status\":\"NOT_FOUND\",\"details\":[{\"errorCode\":\"UNREGISTERED\"}]}}",
            ),
            "t251" => reply(500, "<html>"),
            _ => reply(200, "{}"),
        }
    });
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = Arc::new(fcm(&files.firebase(server.port, token_server.port), LONG));
    let pushes = (0..500)
        .map(|entry| push(entry, Service::Firebase, format!("t{entry}").as_bytes()))
        .collect();
    let found = through_lane(provider, pushes, 100).await;
    assert_eq!(found.len(), 500);
    for (entry, outcome) in found {
        match entry.0 {
            250 => assert!(matches!(outcome, Outcome::Gone { certain: true, .. })),
            251 => assert_eq!(reason(&outcome), Some(RetryReason::Unavailable)),
            _ => assert_eq!(outcome, Outcome::Delivered),
        }
    }
}
