//! Push Kit: what is sent in each form, how its two kinds of credential are used, and that a code within a 200 is heard.

use super::super::fake::rsa;
use super::super::fake::server::Server;
use super::super::settings::{Fault, HuaweiApi, HuaweiSettings};
use super::*;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use notifier_core::outbox::Refusal;
use notifier_core::seal::Priority;

async fn fake(files: &Files, handler: Handler) -> Server {
    Server::start(files.root.server(2090, &["h2"], false), 100, handler).await
}

fn granted(number: usize) -> Replied {
    reply(
        200,
        format!("{{\"access_token\":\"token-{number}\",\"expires_in\":3600,\"token_type\":\"Bearer\"}}"),
    )
}

fn code(status: u16, code: &str) -> Replied {
    reply(
        status,
        format!("{{\"code\":\"{code}\",\"msg\":\"x\",\"requestId\":\"1\"}}"),
    )
}

fn success() -> Replied {
    code(200, "80000000")
}

fn huawei(settings: &HuaweiSettings, timeout: Duration) -> Exchange<Huawei> {
    Huawei::open(settings, timeout, eager).unwrap()
}

fn one() -> Push {
    push(1, Service::Huawei, b"device:1")
}

fn body(received: &Received) -> serde_json::Value {
    serde_json::from_slice(&received.body).unwrap()
}

#[tokio::test]
async fn a_push_of_v1_is_exactly_this_and_its_token_is_fetched_with_the_secret() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, log) = handler(|_, _| success());
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = huawei(&files.huawei(server.port, token_server.port), LONG);
    for _ in 0..3 {
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    }
    let token_log = token_log.lock().unwrap();
    assert_eq!(token_log.len(), 1, "one access token for all");
    assert_eq!(
        (&*token_log[0].method, &*token_log[0].path),
        ("POST", "/oauth2/v3/token")
    );
    assert_eq!(token_log[0].headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert_eq!(
        std::str::from_utf8(&token_log[0].body).unwrap(),
        "grant_type=client_credentials&client_id=107205081&client_secret=s3cret%2B%26%2F"
    );
    let log = log.lock().unwrap();
    assert_eq!(
        (&*log[0].method, &*log[0].path),
        ("POST", "/v1/107205081/messages:send")
    );
    assert_eq!(log[0].headers[AUTHORIZATION], "Bearer token-0");
    assert_eq!(log[0].headers[CONTENT_TYPE], "application/json");
    assert!(log[0].headers.get("push-type").is_none());
    let message = &body(&log[0])["message"];
    assert_eq!(message["token"], serde_json::json!(["device:1"]));
    assert_eq!(message["android"]["urgency"], "HIGH");
}

#[tokio::test]
async fn a_push_of_v3_shows_what_the_service_account_signed_and_says_its_type() {
    #[derive(serde::Deserialize)]
    struct Claims {
        iss: String,
        iat: i64,
        exp: i64,
    }
    let files = Files::new();
    let (pushes, log) = handler(|_, _| success());
    let server = fake(&files, pushes).await;
    let provider = huawei(&files.huawei_v3(server.port), LONG);
    let quiet = Push {
        priority: Priority::Normal,
        ..one()
    };
    for push in [one(), quiet] {
        assert_eq!(send(&provider, &push, LONG).await, Outcome::Delivered);
    }
    let log = log.lock().unwrap();
    assert_eq!(log[0].path, "/v3/example-project/messages:send");
    // What shows nothing may not be sent as an alert.
    assert_eq!([&log[0].headers["push-type"], &log[1].headers["push-type"]], ["0", "6"]);
    assert_eq!(log[0].headers[AUTHORIZATION], log[1].headers[AUTHORIZATION]);
    let bearer = log[0].headers[AUTHORIZATION].to_str().unwrap();
    let key = DecodingKey::from_rsa_pem(rsa().public_key_pem().as_bytes()).unwrap();
    let mut validation = Validation::new(Algorithm::PS256);
    validation.set_audience(&["https://oauth.example.org/oauth2/v3/token"]);
    let token = bearer.strip_prefix("Bearer ").unwrap();
    let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation).unwrap();
    assert_eq!(decoded.header.kid.as_deref(), Some("5f1e"));
    assert_eq!(
        (&*decoded.claims.iss, decoded.claims.exp - decoded.claims.iat),
        ("101", 3600)
    );
}

#[tokio::test]
async fn v2_goes_to_the_project_with_either_credential() {
    let files = Files::new();
    let (tokens, _) = handler(|_, before| granted(before));
    let (pushes, log) = handler(|_, _| success());
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let with_secret = HuaweiSettings {
        api: HuaweiApi::V2,
        project: Some("a-project".to_owned()),
        ..files.huawei(server.port, token_server.port)
    };
    let with_account = HuaweiSettings {
        api: HuaweiApi::V2,
        ..files.huawei_v3(server.port)
    };
    for settings in [with_secret, with_account] {
        assert_eq!(send(&huawei(&settings, LONG), &one(), LONG).await, Outcome::Delivered);
    }
    let log = log.lock().unwrap();
    assert_eq!(log[0].path, "/v2/a-project/messages:send");
    assert_eq!(log[1].path, "/v2/example-project/messages:send");
    assert!(log[1].headers.get("push-type").is_none());
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let files = Files::new();
    let good = || files.huawei(443, 443);
    let v3 = || files.huawei_v3(443);
    let account = v3().service_account_file;
    type Change = Box<dyn Fn(&mut HuaweiSettings)>;
    let change = |change: fn(&mut HuaweiSettings)| -> Change { Box::new(change) };
    let cases: Vec<(HuaweiSettings, Change, &str, Fault)> = vec![
        (
            good(),
            change(|one| one.client_secret_file = None),
            "client_secret_file",
            Fault::NoHuaweiCredential,
        ),
        (
            good(),
            Box::new(move |one| one.service_account_file.clone_from(&account)),
            "client_secret_file",
            Fault::BothHuaweiCredentials,
        ),
        (good(), change(|one| one.client_id = None), "client_id", Fault::Missing),
        (
            good(),
            change(|one| one.client_id = Some("a/b".into())),
            "client_id",
            Fault::BadText,
        ),
        (
            good(),
            change(|one| one.client_secret_file = Some("/nonexistent".into())),
            "client_secret_file",
            Fault::Unreadable,
        ),
        (
            good(),
            change(|one| one.token_uri = Some("http://a/".into())),
            "token_uri",
            Fault::BadUri,
        ),
        (good(), change(|one| one.api = HuaweiApi::V2), "project", Fault::Missing),
        (
            good(),
            change(|one| (one.api, one.project) = (HuaweiApi::V3, Some("p".into()))),
            "api",
            Fault::NeedsServiceAccount,
        ),
        (v3(), change(|one| one.api = HuaweiApi::V1), "client_id", Fault::Missing),
        (
            v3(),
            change(|one| one.project = Some("a b".into())),
            "project",
            Fault::BadText,
        ),
        (
            good(),
            change(|one| one.host = "not a host".into()),
            "host",
            Fault::BadHost,
        ),
        (
            good(),
            change(|one| one.rate = 0),
            "rate",
            Fault::OutOfRange { most: 1_000_000 },
        ),
    ];
    for (mut settings, change, setting, fault) in cases {
        change(&mut settings);
        let found = Huawei::new(&settings, LONG).err().unwrap();
        assert_eq!((found.setting, found.fault), (setting, fault));
    }
    for content in ["", "{}", "[]"] {
        let mut settings = v3();
        settings.service_account_file = Some(files.put("bad.json", content));
        let found = Huawei::new(&settings, LONG).err().unwrap();
        assert_eq!(
            (found.setting, found.fault),
            ("service_account_file", Fault::BadHuaweiAccount)
        );
    }
    let mut settings = good();
    settings.client_secret_file = Some(files.put("bad.secret", "two words"));
    assert_eq!(Huawei::new(&settings, LONG).err().unwrap().fault, Fault::BadText);
}

#[tokio::test]
async fn a_token_called_expired_within_a_200_is_fetched_anew_once_for_all_who_hold_it() {
    for refused in [("80200003", 200), ("80200001", 200), ("80200005", 401), ("", 401)] {
        let files = Files::new();
        let (tokens, token_log) = handler(|_, before| granted(before));
        let (pushes, _log) = handler(move |received, _| match received.headers[AUTHORIZATION].as_bytes() {
            b"Bearer token-0" => code(refused.1, refused.0),
            _ => success(),
        });
        let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
        let provider = Arc::new(huawei(&files.huawei(server.port, token_server.port), LONG));
        let pushes = (0..30).map(|entry| push(entry, Service::Huawei, b"t")).collect();
        let found = through_lane(provider, pushes, 30).await;
        assert!(
            found.iter().all(|(_, outcome)| *outcome == Outcome::Delivered),
            "{found:?}"
        );
        assert_eq!(token_log.lock().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_credential_refused_though_it_is_fresh_stops_the_lane() {
    let files = Files::new();
    let (tokens, token_log) = handler(|_, before| granted(before));
    let (pushes, log) = handler(|_, _| code(200, "80600003"));
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = huawei(&files.huawei(server.port, token_server.port), LONG);
    for _ in 0..3 {
        let outcome = send(&provider, &one(), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::CredentialRefused), "{outcome:?}");
    }
    assert_eq!(token_log.lock().unwrap().len(), 2);
    let signed = huawei(&files.huawei_v3(server.port), LONG);
    let before = log.lock().unwrap().len();
    let outcome = send(&signed, &one(), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::CredentialRefused), "{outcome:?}");
    assert_eq!(log.lock().unwrap().len(), before + 1, "signed a moment ago");
}

#[tokio::test]
async fn without_the_right_to_urgency_high_a_push_goes_at_once_as_normal_and_the_next_ones_too() {
    let files = Files::new();
    let (tokens, _) = handler(|_, before| granted(before));
    let (pushes, log) = handler(
        |received, _| match body(received)["message"]["android"]["urgency"].as_str() {
            Some("HIGH") => code(200, "80300011"),
            _ => success(),
        },
    );
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = huawei(&files.huawei(server.port, token_server.port), LONG);
    for _ in 0..3 {
        assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
    }
    let log = log.lock().unwrap();
    let urgencies: Vec<_> = log
        .iter()
        .map(|one| body(one)["message"]["android"]["urgency"].clone())
        .collect();
    assert_eq!(urgencies, ["HIGH", "NORMAL", "NORMAL", "NORMAL"]);
}

#[tokio::test]
async fn a_200_that_says_nothing_is_no_delivery() {
    let files = Files::new();
    let (tokens, _) = handler(|_, before| granted(before));
    let (pushes, _log) = handler(|_, before| match before {
        0 => reply(200, "<html>"),
        1 => reply(200, vec![b'x'; 100_000]),
        2 => code(200, "80300007"),
        3 => code(200, "80300002"),
        4 => code(200, "80100001"),
        _ => success(),
    });
    let (token_server, server) = (fake(&files, tokens).await, fake(&files, pushes).await);
    let provider = huawei(&files.huawei(server.port, token_server.port), LONG);
    for _ in 0..2 {
        let outcome = send(&provider, &one(), LONG).await;
        assert_eq!(reason(&outcome), Some(RetryReason::Unavailable), "{outcome:?}");
    }
    let gone = send(&provider, &one(), LONG).await;
    assert!(matches!(gone, Outcome::Gone { certain: false, .. }));
    let outcome = send(&provider, &one(), LONG).await;
    assert_eq!(reason(&outcome), Some(RetryReason::CredentialRefused));
    let outcome = send(&provider, &one(), LONG).await;
    assert_eq!(outcome, Outcome::Refused(Refusal::OurFault));
    assert_eq!(send(&provider, &one(), LONG).await, Outcome::Delivered);
}
