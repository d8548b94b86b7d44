//! APNs: what is sent, to the byte, and how provider tokens and connections follow its answers.

use super::super::fake::server::Server;
use super::*;
use base64::Engine;
use hyper::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use notifier_core::outbox::Refusal;
use notifier_core::seal::Priority;

async fn fake(files: &Files, handler: Handler) -> Server {
    Server::start(files.root.server(2090, &["h2"], false), 100, handler).await
}

fn because(status: u16, reason: &str) -> Replied {
    reply(status, format!("{{\"reason\":\"{reason}\"}}"))
}

#[tokio::test]
async fn a_push_is_exactly_this() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let sent_at = unix_ms() / 1000;
    let push = Push {
        expires_at_ms: (sent_at + 3_600) * 1000,
        ..one()
    };
    assert_eq!(send(&provider, &push, LONG).await, Outcome::Delivered);
    let answered_at = unix_ms() / 1000;

    let log = log.lock().unwrap();
    let [received] = &log[..] else {
        panic!("not one request")
    };
    assert_eq!(received.group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert_eq!(received.method, "POST");
    assert_eq!(received.path, format!("/3/device/{}", "ab".repeat(32)));
    assert_eq!(
        received.authority.as_deref(),
        Some(&*format!("localhost:{}", server.port))
    );
    let payload = base64::engine::general_purpose::STANDARD.encode(&push.payload);
    let expected = format!(
        "{{\"aps\": {{\"alert\": {{\"title\": \"Session\", \"body\": \"You've got a new message\"}}, \"badge\": 1, \
         \"sound\": \"default\", \"mutable-content\": 1, \"category\": \"SECRET\"}}, \"spns\": 1, \
         \"enc_payload\": \"{payload}\"}}"
    );
    assert_eq!(std::str::from_utf8(&received.body).unwrap(), expected);
    serde_json::from_slice::<serde_json::Value>(&received.body).unwrap();

    let mut headers: Vec<_> = received
        .headers
        .iter()
        .filter(|(name, _)| *name != AUTHORIZATION)
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    headers.sort_unstable();
    let kept_until = received.headers["apns-expiration"].to_str().unwrap();
    let day = 86_400;
    assert!(
        (sent_at + day..=answered_at + day).contains(&kept_until.parse().unwrap()),
        "{kept_until}"
    );
    let length = expected.len().to_string();
    assert_eq!(
        headers,
        [
            ("apns-expiration", kept_until),
            ("apns-id", "01112131-4151-6171-8191-a1b1c1d1e1f1"),
            ("apns-priority", "10"),
            ("apns-push-type", "alert"),
            ("apns-topic", "org.example.app"),
            ("content-length", &*length),
        ]
    );
}

#[tokio::test]
async fn the_priority_follows_the_push_and_the_largest_wakeup_fits() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let mut push = one();
    push.priority = Priority::Normal;
    push.payload = vec![7; 2816 + 40].into();
    assert_eq!(send(&provider, &push, LONG).await, Outcome::Delivered);
    let log = log.lock().unwrap();
    assert_eq!(log[0].headers["apns-priority"], "5");
    assert_eq!(log[0].body.len(), 3990);
}

#[tokio::test]
async fn a_wakeup_too_large_is_not_sent_but_falls_back() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let mut push = one();
    push.payload = vec![7; 2950].into();
    assert_eq!(send(&provider, &push, LONG).await, Outcome::TryFallback);
    push.too_long = true;
    assert_eq!(send(&provider, &push, LONG).await, Outcome::Refused(Refusal::TooLarge));
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_provider_token_is_signed_by_our_key_and_reused() {
    #[derive(serde::Deserialize)]
    struct Claims {
        iss: String,
        iat: i64,
    }
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    for _ in 0..3 {
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    }
    let log = log.lock().unwrap();
    let bearer = log[0].headers[AUTHORIZATION].to_str().unwrap();
    assert!(log.iter().all(|one| one.headers[AUTHORIZATION] == bearer));
    let key = DecodingKey::from_ec_pem(files.apns_public.as_bytes()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    let token = bearer.strip_prefix("bearer ").unwrap();
    let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation).unwrap();
    assert_eq!(decoded.header.kid.as_deref(), Some("ABCDE12345"));
    assert_eq!(decoded.claims.iss, "FGHIJ67890");
    assert!((unix_ms() / 1000 - decoded.claims.iat).abs() < 60);
}

/// A provider that holds each answer until the test lets go, and tells of each request.
struct Held {
    arrived: mpsc::UnboundedReceiver<Received>,
    answers: Arc<tokio::sync::Semaphore>,
    handler: Handler,
}

fn held() -> Held {
    let (tell, arrived) = mpsc::unbounded_channel();
    let answers = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&answers);
    let handler: Handler = Arc::new(move |received| {
        let gate = Arc::clone(&gate);
        tell.send(received).unwrap();
        async move {
            gate.acquire().await.unwrap().forget();
            reply(200, "")
        }
        .boxed()
    });
    Held {
        arrived,
        answers,
        handler,
    }
}

#[tokio::test]
async fn one_stream_is_open_until_the_first_push_is_accepted() {
    let files = Files::new();
    let mut held = held();
    let server = fake(&files, Arc::clone(&held.handler)).await;
    let settings = ApnsSettings {
        connections: 1,
        ..files.apns(server.port)
    };
    let provider = Arc::new(apns(&settings, LONG));
    let sends: Vec<_> = (0..20)
        .map(|_| {
            let provider = Arc::clone(&provider);
            tokio::spawn(async move { send(&*provider, &one(), LONG).await })
        })
        .collect();
    let first = held.arrived.recv().await.unwrap();
    assert_eq!(first.streams, 1);
    // All others have asked for a stream by the time a whole new exchange with another connection is over.
    let (other, _) = handler(ok);
    let bystander = fake(&files, other).await;
    send(&apns(&files.apns(bystander.port), LONG), &one(), LONG).await;
    assert!(held.arrived.try_recv().is_err());

    held.answers.add_permits(1);
    let mut most = 0;
    for _ in 1..20 {
        most = held.arrived.recv().await.unwrap().streams.max(most);
    }
    assert_eq!(most, 19, "after that all streams are open at once");
    held.answers.add_permits(19);
    for send in sends {
        assert_eq!(send.await.unwrap(), Outcome::Delivered);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_certificate_needs_no_token_and_no_proof() {
    let files = Files::new();
    let held = held();
    let mut arrived = held.arrived;
    let server = Server::start(files.root.server(2090, &["h2"], true), 100, held.handler).await;
    let settings = ApnsSettings {
        connections: 1,
        ..files.apns_with_certificate(server.port)
    };
    let provider = Arc::new(apns(&settings, LONG));
    held.answers.add_permits(1);
    assert_eq!(send(&*provider, &one(), LONG).await, Outcome::Delivered);
    assert!(arrived.recv().await.unwrap().headers.get(AUTHORIZATION).is_none());
}

#[tokio::test]
async fn a_client_without_the_right_certificate_is_told_to_try_again_later() {
    let files = Files::new();
    let (handler, log) = handler(ok);
    let server = Server::start(files.root.server(2090, &["h2"], true), 100, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let outcome = send(&provider, &one(), LONG).await;
    assert!(is_unreached(&outcome), "{outcome:?}");
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_token_that_expired_right_after_it_was_minted_waits_for_apples_20_minutes() {
    let files = Files::new();
    let (handler, log) = handler(|_, _| because(403, "ExpiredProviderToken"));
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let outcome = send(&provider, &one(), LONG).await;
    let Outcome::Retry {
        after: Some(after),
        reason: RetryReason::CredentialExpired,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(after > Duration::from_secs(19 * 60) && after <= Duration::from_secs(20 * 60));
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_connection_bound_to_another_key_or_shutting_down_is_left_for_a_new_one() {
    for (status, left_for, expected) in [
        (403, "UnrelatedKeyIdInToken", RetryReason::Connection),
        (503, "Shutdown", RetryReason::Unavailable),
    ] {
        let files = Files::new();
        let (handler, log) = handler(move |received, _| match received.connection {
            0 => because(status, left_for),
            _ => reply(200, ""),
        });
        let server = fake(&files, handler).await;
        let provider = apns(&files.apns(server.port), LONG);
        assert_eq!(reason(&send(&provider, &one(), LONG).await), Some(expected));
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
        let log = log.lock().unwrap();
        assert_eq!(
            log[0].headers["apns-id"], log[1].headers["apns-id"],
            "the same push keeps its id"
        );
    }
}

#[tokio::test]
async fn an_answer_reaches_the_outcome_over_the_wire() {
    let files = Files::new();
    let (handler, _log) = handler(|_, before| match before {
        0 => reply(410, "{\"reason\":\"Unregistered\",\"timestamp\":1700000000123}"),
        1 => because(400, "BadDeviceToken"),
        2 => because(429, "TooManyRequests"),
        3 => because(403, "InvalidProviderToken"),
        4 => because(413, "PayloadTooLarge"),
        _ => because(503, "Shutdown"),
    });
    let server = fake(&files, handler).await;
    let provider = apns(&files.apns(server.port), LONG);
    let gone = Outcome::Gone {
        provider_time_ms: Some(1_700_000_000_123),
        certain: true,
    };
    assert_eq!(send(&provider, &one(), LONG).await, gone);
    let guarded = Outcome::Gone {
        provider_time_ms: None,
        certain: false,
    };
    assert_eq!(send(&provider, &one(), LONG).await, guarded);
    assert_eq!(
        reason(&send(&provider, &one(), LONG).await),
        Some(RetryReason::TokenRate)
    );
    assert_eq!(
        reason(&send(&provider, &one(), LONG).await),
        Some(RetryReason::CredentialRefused)
    );
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::TryFallback);
    assert_eq!(
        reason(&send(&provider, &one(), LONG).await),
        Some(RetryReason::Unavailable)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pushes_over_two_connections_are_all_answered_within_the_peers_limit() {
    let files = Files::new();
    let (handler, log) = handler(|received, _| {
        let dead = received.path.ends_with("00");
        if dead {
            because(400, "BadDeviceToken")
        } else {
            reply(200, "")
        }
    });
    let server = Server::start(files.root.server(2090, &["h2"], false), 20, handler).await;
    let provider = Arc::new(apns(&files.apns(server.port), LONG));
    let pushes = (0..1000u32)
        .map(|entry| {
            push(
                i64::from(entry),
                Service::Apns,
                &[[1; 28].as_slice(), &entry.to_be_bytes()].concat(),
            )
        })
        .collect();
    let found = through_lane(provider, pushes, 100).await;
    assert_eq!(found.len(), 1000);
    for (place, (entry, outcome)) in found.iter().enumerate() {
        assert_eq!(entry.0, place as i64);
        match place % 256 {
            0 => assert!(matches!(outcome, Outcome::Gone { .. }), "{outcome:?}"),
            _ => assert_eq!(*outcome, Outcome::Delivered),
        }
    }
    let log = log.lock().unwrap();
    assert!(log.iter().all(|one| one.streams <= 20));
    assert!(log.iter().any(|one| one.streams > 1));
    assert!(server.connections.load(Ordering::SeqCst) <= 2);
}
