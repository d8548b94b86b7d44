//! Every row of the providers' tables (push.md §2.1 to §2.3), over the wire and through the outbox: what becomes of the wakeup, its
//! token, its lane and its neighbours, and whether somebody is told.

use super::super::fake::server::Server;
use super::super::settings::HuaweiSettings;
use super::*;
use notifier_core::outbox::{DropReason, Effect, LaneState, Outbox, OutboxSettings, Push as Sent};
use notifier_core::seal::Sealed;
use notifier_core::seeded::Seed;

/// What an answer does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Does {
    Deliver,
    /// The same push is sent again at once; the lane goes on.
    AgainAtOnce,
    /// The same push is sent again after so many milliseconds; the lane goes on.
    AgainAfter(i64),
    /// The token gets nothing for so many milliseconds; the lane goes on.
    TokenRests(i64),
    /// The lane sends nothing for so many milliseconds, then less than before.
    LaneSlows(i64),
    /// The lane keeps its queue and tries one push after half a minute.
    LaneStops,
    /// The short form is sent.
    Shorten,
    Drop(DropReason),
    /// The token is deleted if the credential delivers, and not otherwise.
    Delete,
    /// As `Delete`, but no answer of a wrong credential: however many there are.
    DeleteForCertain,
}

use Does::{
    AgainAfter, AgainAtOnce, Delete, DeleteForCertain, Deliver, Drop, LaneSlows, LaneStops, Shorten, TokenRests,
};

/// Whether somebody is told, in the log or by a stopped lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Yes,
    No,
}

use Told::{No, Yes};

struct Row {
    name: &'static str,
    status: u16,
    retry_after: Option<&'static str>,
    body: String,
    does: Does,
    told: Told,
}

fn row(name: &'static str, status: u16, body: impl Into<String>, does: Does, told: Told) -> Row {
    Row {
        name,
        status,
        retry_after: None,
        body: body.into(),
        does,
        told,
    }
}

impl Row {
    fn with_retry_after(self, seconds: &'static str) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    fn reply(&self) -> Replied {
        let mut replied = reply(self.status, self.body.clone());
        if let (Ok(response), Some(seconds)) = (&mut replied, self.retry_after) {
            response.headers_mut().insert("retry-after", seconds.parse().unwrap());
        }
        replied
    }
}

const OURS: Does = Drop(DropReason::OurFault);

fn of_apple() -> Vec<Row> {
    let apple = |name: &'static str, status, does, told| {
        let reason = name.split(' ').next().unwrap();
        row(name, status, format!("{{\"reason\":\"{reason}\"}}"), does, told)
    };
    let gone = |reason| format!("{{\"reason\":\"{reason}\",\"timestamp\":1700000000000}}");
    vec![
        row("200", 200, "", Deliver, No),
        apple("BadDeviceToken", 400, Delete, No),
        apple("DeviceTokenNotForTopic", 400, Delete, Yes),
        apple("TopicDisallowed", 400, Delete, Yes),
        apple("BadTopic", 400, OURS, Yes),
        apple("MissingTopic", 400, OURS, Yes),
        apple("BadPriority", 400, OURS, Yes),
        apple("BadExpirationDate", 400, OURS, Yes),
        apple("BadCollapseId", 400, OURS, Yes),
        apple("BadMessageId", 400, OURS, Yes),
        apple("InvalidPushType", 400, OURS, Yes),
        apple("DuplicateHeaders", 400, OURS, Yes),
        apple("PayloadEmpty", 400, OURS, Yes),
        apple("MissingDeviceToken", 400, OURS, Yes),
        apple("BadPath", 404, OURS, Yes),
        apple("MethodNotAllowed", 405, OURS, Yes),
        apple("IdleTimeout", 400, AgainAtOnce, No),
        // Minted a moment ago, so that a new one is minted only after Apple's twenty minutes.
        apple("ExpiredProviderToken", 403, AgainAfter(1_200_000), No),
        apple("InvalidProviderToken", 403, LaneStops, Yes),
        apple("MissingProviderToken", 403, LaneStops, Yes),
        apple("BadCertificate", 403, LaneStops, Yes),
        apple("BadCertificateEnvironment", 403, LaneStops, Yes),
        apple("Forbidden", 403, LaneStops, Yes),
        apple("BadEnvironmentKeyIdInToken", 403, LaneStops, Yes),
        apple("BadEnvironmentKeyInToken", 403, LaneStops, Yes),
        apple("UnrelatedKeyIdInToken", 403, AgainAtOnce, No),
        row("Unregistered", 410, gone("Unregistered"), DeleteForCertain, No),
        row("ExpiredToken", 410, gone("ExpiredToken"), DeleteForCertain, No),
        apple("Unregistered without a time", 410, Delete, No),
        apple("PayloadTooLarge", 413, Shorten, Yes),
        apple("TooManyProviderTokenUpdates", 429, LaneSlows(60_000), Yes),
        apple("TooManyRequests", 429, TokenRests(30_000), No),
        apple("TooManyRequests for 7 s", 429, TokenRests(7_000), No).with_retry_after("7"),
        apple("InternalServerError", 500, AgainAfter(1_000), No),
        apple("ServiceUnavailable", 503, AgainAfter(1_000), No),
        apple("ServiceUnavailable for 7 s", 503, AgainAfter(7_000), No).with_retry_after("7"),
        apple("Shutdown", 503, AgainAfter(1_000), No),
    ]
}

fn of_google() -> Vec<Row> {
    let error = |status: &str, message: &str, details: serde_json::Value| {
        serde_json::json!({ "error": { "status": status, "message": message, "details": details } }).to_string()
    };
    let fcm = |code: &str| serde_json::json!({ "errorCode": code });
    let field =
        |field: &str| serde_json::json!({ "fieldViolations": [{ "field": field, "description": "Invalid value" }] });
    let plain = |status: &str| error(status, "x", serde_json::json!([]));
    let of = |status: &str, code: &str| error(status, "x", serde_json::json!([fcm(code)]));
    let quota = || of("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED");
    let device = error(
        "RESOURCE_EXHAUSTED",
        "Device message rate exceeded",
        serde_json::json!([fcm("QUOTA_EXCEEDED")]),
    );
    let malformed = error(
        "INVALID_ARGUMENT",
        "Invalid value",
        serde_json::json!([field("message.android.ttl")]),
    );
    let too_big = error(
        "INVALID_ARGUMENT",
        "Android message is too big",
        serde_json::json!([field("message.data")]),
    );
    let mismatch = of("PERMISSION_DENIED", "SENDER_ID_MISMATCH");
    vec![
        row("200 name", 200, "{\"name\":\"projects/p/messages/1\"}", Deliver, No),
        row(
            "404 UNREGISTERED",
            404,
            of("NOT_FOUND", "UNREGISTERED"),
            DeleteForCertain,
            No,
        ),
        row("404 NOT_FOUND", 404, plain("NOT_FOUND"), Delete, No),
        row(
            "400 INVALID_ARGUMENT of the token",
            400,
            of("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            Delete,
            No,
        ),
        row("400 INVALID_ARGUMENT of a field", 400, malformed, OURS, Yes),
        row("400 INVALID_ARGUMENT of the size", 400, too_big, Shorten, Yes),
        // Once: the fake accepts the next token.
        row("401 UNAUTHENTICATED", 401, plain("UNAUTHENTICATED"), Deliver, No),
        row(
            "401 THIRD_PARTY_AUTH_ERROR",
            401,
            of("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
            OURS,
            Yes,
        ),
        row("403 SENDER_ID_MISMATCH", 403, mismatch, Delete, Yes),
        row("403 PERMISSION_DENIED", 403, plain("PERMISSION_DENIED"), LaneStops, Yes),
        row("429 QUOTA_EXCEEDED", 429, quota(), LaneSlows(60_000), No),
        row("429 QUOTA_EXCEEDED for 17 s", 429, quota(), LaneSlows(17_000), No).with_retry_after("17"),
        row("429 of the device", 429, device, TokenRests(30_000), No),
        row("500 INTERNAL", 500, of("INTERNAL", "INTERNAL"), AgainAfter(10_000), No),
        row(
            "503 UNAVAILABLE",
            503,
            of("UNAVAILABLE", "UNAVAILABLE"),
            AgainAfter(10_000),
            No,
        ),
        row(
            "503 UNAVAILABLE for 5 s",
            503,
            plain("UNAVAILABLE"),
            AgainAfter(5_000),
            No,
        )
        .with_retry_after("5"),
    ]
}

fn of_huawei() -> Vec<Row> {
    let huawei = |name: &'static str, status, does, told| {
        let code = name.split(' ').next().unwrap();
        row(
            name,
            status,
            format!("{{\"code\":\"{code}\",\"msg\":\"x\"}}"),
            does,
            told,
        )
    };
    let partial = serde_json::json!({
        "code": "80100000", "msg": "{\"success\":0,\"failure\":1,\"illegal_tokens\":[\"device:1\"]}",
    });
    vec![
        huawei("80000000 success", 200, Deliver, No),
        row("80100000 partial, this token", 200, partial.to_string(), Delete, No),
        huawei("80100000 partial, no token", 200, Drop(DropReason::Unknown), Yes),
        huawei("80300007 all invalid", 200, Delete, No),
        huawei("80100001 parameter", 400, OURS, Yes),
        huawei("80100003 structure", 400, OURS, Yes),
        huawei("80100004 ttl", 400, OURS, Yes),
        huawei("80100013 collapse_key", 400, OURS, Yes),
        huawei("80100016 content", 200, Drop(DropReason::Content), No),
        huawei("80100018 content", 200, Drop(DropReason::Content), No),
        // Once: the fake accepts the next token.
        huawei("80200001 auth", 200, Deliver, No),
        huawei("80600003 auth", 200, Deliver, No),
        huawei("80200003 token expired", 200, Deliver, No),
        huawei("80200005 JWT expired", 401, Deliver, No),
        row("401", 401, "", Deliver, No),
        huawei("80300002 no permission", 200, LaneStops, Yes),
        // Once more, as NORMAL.
        huawei("80300011 no right to HIGH", 200, Deliver, Yes),
        huawei("80300008 too large", 200, Shorten, Yes),
        huawei("80300010 too many tokens", 400, OURS, Yes),
        row("404", 404, "", LaneStops, Yes),
        row("503 flow control", 503, "", LaneSlows(10_000), No),
        row("502", 502, "<html>", AgainAfter(1_000), No),
        row("500", 500, "", AgainAfter(1_000), No),
        huawei("81000001 internal", 200, AgainAfter(1_000), No),
    ]
}

#[tokio::test]
async fn each_answer_of_apple_does_what_its_row_says() {
    each_does_what_it_says(Service::Apns, of_apple(), 37).await;
}

#[tokio::test]
async fn each_answer_of_google_does_what_its_row_says() {
    each_does_what_it_says(Service::Firebase, of_google(), 16).await;
}

#[tokio::test]
async fn each_answer_of_huawei_does_what_its_row_says() {
    each_does_what_it_says(Service::Huawei, of_huawei(), 24).await;
}

async fn each_does_what_it_says(service: Service, rows: Vec<Row>, count: usize) {
    assert_eq!(rows.len(), count, "a row was added or lost");
    let files = Files::new();
    for row in rows {
        let name = row.name;
        let met = meet(&files, service, &row, Credential::Delivers).await;
        assert_eq!((&met.does, met.told), (&row.does, row.told), "{service:?} {name}");
        if matches!(row.does, Delete | DeleteForCertain) {
            // A wrong key or topic may never empty the table.
            let met = meet(&files, service, &row, Credential::Unproven).await;
            assert_eq!(met.does, Drop(DropReason::GoneUnproven), "{service:?} {name}");
            let met = meet(&files, service, &row, Credential::ManyGone).await;
            let expected = match row.does {
                Delete => Drop(DropReason::GoneUnproven),
                _ => DeleteForCertain,
            };
            assert_eq!(met.does, expected, "{service:?} {name}");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Credential {
    /// Twenty pushes were delivered with it.
    Delivers,
    Unproven,
    /// It delivered, and then one token after the other was called dead.
    ManyGone,
}

struct Met {
    does: Does,
    told: Told,
}

const NOW: i64 = 1_800_000_000_000;
const HALF_A_MINUTE: i64 = 30_000;

/// One wakeup meets the answer, a second one to another device waits behind it; then the provider is well again.
async fn meet(files: &Files, service: Service, row: &Row, credential: Credential) -> Met {
    let replies = Arc::new(Mutex::new(vec![row.reply()]));
    let kept = Arc::clone(&replies);
    let (handler, log) = handler(move |_, _| {
        let success = || reply(200, r#"{"code":"80000000"}"#);
        kept.lock().unwrap().pop().unwrap_or_else(success)
    });
    let (tokens, _) = super::handler(|_, before| {
        reply(
            200,
            format!("{{\"access_token\":\"token-{before}\",\"expires_in\":3600}}"),
        )
    });
    let server = fake(files, handler).await;
    let token_server = fake(files, tokens).await;
    let provider = Any::open(files, service, server.port, token_server.port);

    let mut outbox = Outbox::new(OutboxSettings::default(), Seed::new([1; 16]), EntryId(1));
    if credential != Credential::Unproven {
        for _ in 0..20 {
            answered(&mut outbox, service, Outcome::Delivered);
        }
    }
    if credential == Credential::ManyGone {
        for _ in 0..100 {
            let gone = Outcome::Gone {
                provider_time_ms: None,
                certain: false,
            };
            answered(&mut outbox, service, gone);
        }
    }
    drain(&mut outbox);

    let before = outbox.counters(service).clone();
    let first = queue(&mut outbox, service, 1);
    let neighbour = queue(&mut outbox, service, 2);
    let sent = outbox.poll_send(NOW).unwrap();
    assert_eq!(sent.id, first);
    let outcome = provider.push(&sent).await;
    outbox.handle_outcome(first, outcome.clone(), NOW, 0);

    let effects = drain(&mut outbox);
    let counters = outbox.counters(service).clone();
    let has_stopped = effects.contains(&Effect::LaneStopped(service));
    let gone = effects
        .iter()
        .find(|effect| matches!(effect, Effect::TokenGone { target, .. } if target.token == sent.sealed.token));
    let dropped = DropReason::ALL
        .into_iter()
        .find(|reason| counters.dropped(*reason) > before.dropped(*reason));
    let state = outbox.lane_state(service, NOW);
    let does = if gone.is_some() {
        match outcome {
            Outcome::Gone { certain: true, .. } => DeleteForCertain,
            _ => Delete,
        }
    } else if let Some(reason) = dropped {
        Drop(reason)
    } else if counters.delivered > before.delivered {
        Deliver
    } else if has_stopped {
        LaneStops
    } else if state == LaneState::Paused {
        LaneSlows(outbox.next_deadline().unwrap() - NOW)
    } else {
        comes_again(&mut outbox, &sent, neighbour)
    };
    match &does {
        LaneSlows(after_ms) => {
            assert!(outbox.poll_send(NOW + after_ms - 1).is_none());
            assert!(outbox.limit(service) < 1_000);
            same_again(&mut outbox, &provider, &sent, NOW + after_ms).await;
        }
        LaneStops => {
            assert_eq!(outbox.next_deadline(), Some(NOW + HALF_A_MINUTE));
            assert!(outbox.poll_send(NOW + HALF_A_MINUTE - 1).is_none());
            // Should the one be at fault and not the credential, the next probe is another.
            let probe = outbox.poll_send(NOW + HALF_A_MINUTE).unwrap();
            assert_eq!(probe.id, neighbour);
            assert_eq!(provider.push(&probe).await, Outcome::Delivered);
            outbox.handle_outcome(probe.id, Outcome::Delivered, NOW + HALF_A_MINUTE, 0);
            same_again(&mut outbox, &provider, &sent, NOW + HALF_A_MINUTE).await;
        }
        AgainAfter(after_ms) | TokenRests(after_ms) => {
            // How long Apple's twenty minutes still last depends on the wall clock.
            if row.name == "ExpiredProviderToken" {
                return met(&provider, does, has_stopped);
            }
            outbox.handle_timeout(NOW + after_ms - 1);
            assert!(outbox.poll_send(NOW + after_ms - 1).is_none());
            outbox.handle_timeout(NOW + after_ms);
            same_again(&mut outbox, &provider, &sent, NOW + after_ms).await;
        }
        AgainAtOnce | Shorten => {}
        Deliver | Drop(_) | Delete | DeleteForCertain => {
            let next = outbox.poll_send(NOW).unwrap();
            assert_eq!(next.id, neighbour, "one bad token delays no neighbour");
        }
    }
    if service == Service::Apns {
        let log = log.lock().unwrap();
        let named = |push: &Sent| put_together(&push.push_id.0);
        let of_first = log.iter().filter(|one| one.path.ends_with(&token_text(1)));
        assert!(of_first.into_iter().all(|one| one.headers["apns-id"] == *named(&sent)));
    }
    met(&provider, does, has_stopped)
}

fn met(provider: &Any, does: Does, has_stopped: bool) -> Met {
    let told = if has_stopped || provider.has_alerted() { Yes } else { No };
    Met { does, told }
}

/// The lane goes on: how the wakeup comes back.
fn comes_again(outbox: &mut Outbox, sent: &Sent, neighbour: EntryId) -> Does {
    let next = outbox.poll_send(NOW).unwrap();
    if next.id == sent.id {
        assert_eq!(outbox.poll_send(NOW).unwrap().id, neighbour);
        assert_eq!((next.push_id, next.attempt), (sent.push_id, 1));
        if next.fallback {
            assert_eq!(next.body(), b"short");
            return Shorten;
        }
        return AgainAtOnce;
    }
    assert_eq!(next.id, neighbour, "one bad token delays no neighbour");
    outbox.handle_outcome(next.id, Outcome::Delivered, NOW, 0);
    let after_ms = outbox.next_deadline().unwrap() - NOW;
    let rests = outbox.counters(sent.sealed.service).retried(RetryReason::TokenRate);
    match rests {
        0 => AgainAfter((after_ms + 500) / 1_000 * 1_000),
        _ => TokenRests(after_ms),
    }
}

/// The same push, under its name, and this time it is delivered.
async fn same_again(outbox: &mut Outbox, provider: &Any, sent: &Sent, now_ms: i64) {
    let again = outbox.poll_send(now_ms).unwrap();
    assert_eq!((again.id, again.push_id, again.attempt), (sent.id, sent.push_id, 1));
    assert_eq!(again.body(), sent.body());
    assert_eq!(provider.push(&again).await, Outcome::Delivered);
    outbox.handle_outcome(again.id, Outcome::Delivered, now_ms, 0);
}

/// One of the providers.
pub(super) enum Any {
    Apns(Exchange<Apns>),
    Fcm(Exchange<Fcm>),
    Huawei(Exchange<Huawei>),
}

impl Any {
    pub(super) fn open(files: &Files, service: Service, port: u16, token_port: u16) -> Self {
        match service {
            Service::Apns | Service::ApnsSandbox => Self::Apns(apns(&files.apns(port), LONG)),
            Service::Firebase => Self::Fcm(Fcm::open(&files.firebase(port, token_port), LONG, eager).unwrap()),
            Service::Huawei => {
                let settings: HuaweiSettings = files.huawei(port, token_port);
                Self::Huawei(Huawei::open(&settings, LONG, eager).unwrap())
            }
            Service::Webpush => panic!("its servers are many, and so are its tables: see webpush.rs"),
        }
    }

    async fn push(&self, sent: &Sent) -> Outcome {
        let push = Push {
            // The outbox' clock is not the wall's.
            deadline_ms: i64::MAX,
            ..Push::from(sent.clone())
        };
        self.send(&push, LONG).await
    }

    pub(super) async fn send(&self, push: &Push, patience: Duration) -> Outcome {
        match self {
            Self::Apns(one) => send(one, push, patience).await,
            Self::Fcm(one) => send(one, push, patience).await,
            Self::Huawei(one) => send(one, push, patience).await,
        }
    }

    fn has_alerted(&self) -> bool {
        match self {
            Self::Apns(one) => one.has_alerted(),
            Self::Fcm(one) => one.has_alerted(),
            Self::Huawei(one) => one.has_alerted(),
        }
    }
}

async fn fake(files: &Files, handler: Handler) -> Server {
    Server::start(files.root.server(2090, &["h2"], false), 100, handler).await
}

fn token_text(number: u8) -> String {
    hex::encode([number; 32])
}

fn put_together(id: &[u8; 16]) -> String {
    let hex = hex::encode(id);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn queue(outbox: &mut Outbox, service: Service, number: u8) -> EntryId {
    let token = match service {
        Service::Apns | Service::ApnsSandbox => vec![number; 32],
        _ => format!("device:{number}").into_bytes(),
    };
    let sealed = Sealed {
        service,
        token: DeviceToken::new(token),
        body: Box::new([7; 100]),
        fallback: Some(b"short".as_slice().into()),
        class: Class::Visible,
        priority: Priority::High,
        expires_at_ms: i64::MAX,
    };
    let id = outbox.accept(sealed, PushId([number; 16]), NOW).unwrap().id;
    outbox.handle_written([id]);
    id
}

/// A push to some other device that got this outcome.
fn answered(outbox: &mut Outbox, service: Service, outcome: Outcome) {
    let id = queue(outbox, service, 9);
    assert_eq!(outbox.poll_send(NOW).unwrap().id, id);
    outbox.handle_outcome(id, outcome, NOW, 0);
}

fn drain(outbox: &mut Outbox) -> Vec<Effect> {
    while outbox.poll_write().is_some() {}
    std::iter::from_fn(|| outbox.poll_effect()).collect()
}
