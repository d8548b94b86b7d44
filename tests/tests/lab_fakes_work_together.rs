//! The lab's fakes among themselves, without a notifier: raw libzmq and HTTP/2 clients stand in for it.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself")]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quietline_lab::bt::Bt;
use quietline_lab::keys::{
    APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, FIREBASE_EMAIL, FIREBASE_PROJECT, Keys, client_config,
};
use quietline_lab::node::{CurveKey, Fault, Fleet, NodeAddress, NodeSettings, SwarmMessage};
use quietline_lab::oxend::{Oxend, OxendMood, OxendTransport};
use quietline_lab::phone::{Phone, PushService, unix_milliseconds, unix_seconds};
use quietline_lab::provider::apns::Apns;
use quietline_lab::provider::fcm::Fcm;
use quietline_lab::provider::{Answer, Deliveries};
use quietline_lab::seed::Seed;
use quietline_lab::swarms::NodeList;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_subscriber_gets_the_message_that_its_swarm_stores() {
    let fleet = Fleet::start(2, &NodeSettings::default()).unwrap();
    let link = Link::dial(&fleet.addresses()[0]);
    assert_eq!(link.exchange(&[b"HI"]), [b"HELLO"]);
    let phone = Phone::new(PushService::Firebase);
    assert_eq!(link.watch(&phone), "ld7:successi1eee");

    let message = message_for(&phone, 0, b"ciphertext");
    fleet.store([0, 1], &message);
    assert_eq!(link.receive(), [b"notify.message".to_vec(), message.notification(true)]);

    fleet.store([0], &message_for(&phone, 5, b"a namespace nobody asked for"));
    let second = message_for(&phone, 0, b"second");
    fleet.store([0], &second);
    assert_eq!(link.receive()[1], second.notification(true));
    fleet.settle().unwrap();
    let counts = fleet.counts();
    assert_eq!(
        (
            counts.records,
            counts.verified,
            counts.watched,
            counts.pushed,
            counts.lost
        ),
        (1, 1, 1, 2, 0)
    );
}

#[test]
fn a_subscriber_without_data_gets_none() {
    let fleet = Fleet::start(1, &NodeSettings::default()).unwrap();
    let link = Link::dial(&fleet.addresses()[0]);
    let mut phone = Phone::group_admin(&[7; 32], PushService::Apns);
    phone.want_data = false;
    assert_eq!(link.watch(&phone), "ld7:successi1eee");
    let message = message_for(&phone, -11, b"revoked");
    fleet.store([0], &message);
    assert_eq!(link.receive()[1], message.notification(false));
}

#[test]
fn a_restarted_node_has_the_same_address_and_no_subscriptions() {
    let fleet = Fleet::start(1, &NodeSettings::default()).unwrap();
    let link = Link::dial(&fleet.addresses()[0]);
    let phone = Phone::new(PushService::Firebase);
    assert_eq!(link.watch(&phone), "ld7:successi1eee");
    fleet.restart(0);
    fleet.settle().unwrap();
    assert_eq!(fleet.counts().watched, 0);
    link.await_handshake();
    assert_eq!(link.watch(&phone), "ld7:successi1eee");
    let message = message_for(&phone, 0, b"after the restart");
    fleet.store([0], &message);
    assert_eq!(link.receive()[1], message.notification(true));
}

#[test]
fn a_stopped_node_keeps_its_subscriptions() {
    let fleet = Fleet::start(1, &NodeSettings::default()).unwrap();
    let link = Link::dial(&fleet.addresses()[0]);
    let phone = Phone::new(PushService::Firebase);
    assert_eq!(link.watch(&phone), "ld7:successi1eee");
    fleet.stop(0);
    fleet.resume(0);
    link.await_handshake();
    assert_eq!(link.exchange(&[b"HI"]), [b"HELLO"]);
    let message = message_for(&phone, 0, b"still there");
    fleet.store([0], &message);
    assert_eq!(link.receive()[1], message.notification(true));
}

#[test]
fn nodes_misbehave_on_demand_and_then_stop() {
    let fleet = Fleet::start(1, &NodeSettings::default()).unwrap();
    let link = Link::dial(&fleet.addresses()[0]);
    let phones = [Phone::new(PushService::Firebase), Phone::new(PushService::Firebase)];
    let body = Bt::List(
        phones
            .iter()
            .map(|phone| phone.monitor_record(unix_seconds()))
            .collect(),
    )
    .write();
    let request: &[&[u8]] = &[b"monitor.messages", b"tag", &body];

    fleet.inject(0, Fault::RefuseItem { index: 1, code: 4 }, 1);
    fleet.inject(0, Fault::UnknownCommand, 1);
    fleet.inject(0, Fault::Forbidden, 1);
    fleet.inject(0, Fault::Garbage(b"junk".to_vec()), 1);
    fleet.inject(0, Fault::Silence, 1);
    fleet.inject(0, Fault::Delay(Duration::from_millis(20)), 1);
    fleet.settle().unwrap();
    assert_eq!(
        text(&link.exchange(request)[2]),
        "ld7:successi1eed7:errcodei4e5:error18:refused by the labee"
    );
    assert_eq!(fleet.counts().watched, 1);
    assert_eq!(link.exchange(request), [&b"UNKNOWNCOMMAND"[..], b"monitor.messages"]);
    assert_eq!(link.exchange(request), [&b"FORBIDDEN"[..], b"REPLY", b"tag"]);
    assert_eq!(link.exchange(request), [&b"REPLY"[..], b"tag", b"junk"]);
    // The silent one is not answered: the next answer is the delayed one.
    link.send(request);
    assert_eq!(text(&link.exchange(request)[2]), "ld7:successi1eed7:successi1eee");
    assert_eq!(text(&link.exchange(request)[2]), "ld7:successi1eed7:successi1eee");
    fleet.push_raw(0, vec![b"notify.message".to_vec(), b"not bencode".to_vec()]);
    assert_eq!(link.receive()[1], b"not bencode");
}

#[test]
fn more_nodes_than_one_context_holds_listen_in_one_process() {
    quietline_lab::system::raise_open_files();
    let settings = NodeSettings {
        io_threads: 1,
        ..NodeSettings::default()
    };
    let fleet = Fleet::start(1100, &settings).unwrap();
    for node in [0, 899, 900, 1099] {
        assert_eq!(Link::dial(&fleet.addresses()[node]).exchange(&[b"HI"]), [b"HELLO"]);
    }
    assert_eq!(fleet.counts().greetings, 4);
}

#[test]
fn oxend_gives_its_list_and_announces_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let addresses = [NodeAddress {
        public_key: [9; 32],
        port: 20_000,
    }];
    let list = Arc::new(Mutex::new(NodeList::in_swarms(&addresses, 7)));
    for transport in [
        OxendTransport::Ipc(folder.path().join("oxend.sock")),
        OxendTransport::Tcp,
        OxendTransport::Curve,
    ] {
        let oxend = Oxend::start(&transport, Arc::clone(&list)).unwrap();
        let link = Link::dial_oxend(oxend.address());
        assert_eq!(link.exchange(&[b"HI"]), [b"HELLO"]);
        assert_eq!(link.exchange(&[b"ping.ping", b"1"]), [&b"REPLY"[..], b"1", b"pong"]);
        let answer = link.exchange(&[b"rpc.get_service_nodes", b"2", b"{}"]);
        let given: Value = serde_json::from_slice(&answer[3]).unwrap();
        assert_eq!(answer[2], b"200");
        assert_eq!(given["service_node_states"][0]["pubkey_x25519"], hex::encode([9; 32]));
        assert_eq!(given["service_node_states"][0]["storage_lmq_port"], 20_000);
        assert_eq!(link.exchange(&[b"sub.block", b"3"])[2], b"OK");
        assert_eq!(link.exchange(&[b"sub.block", b"4"])[2], b"ALREADY");
        let height = given["height"].as_u64().unwrap();
        oxend.change(|list| list.nodes[0].swarm = 77);
        assert_eq!(text(&link.receive()[1]), (height + 1).to_string());
        let answer = link.exchange(&[b"rpc.get_service_nodes", b"5", b"{}"]);
        assert!(text(&answer[3]).contains(r#""swarm_id":77"#));
        oxend.set_mood(OxendMood::Failing);
        assert_eq!(link.exchange(&[b"rpc.get_service_nodes", b"6", b"{}"])[2], b"500");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_gives_the_same_list_over_https() {
    let list = NodeList::in_swarms(
        &[NodeAddress {
            public_key: [9; 32],
            port: 20_000,
        }],
        7,
    );
    let seed = Seed::start(Arc::new(Mutex::new(list.clone()))).unwrap();
    let address = seed
        .url()
        .replace("https://", "")
        .replace("/json_rpc", "")
        .parse()
        .unwrap();
    let mut client = Http2::connect_to(seed.certificate().certificate(), address).await;
    let call = json!({ "method": "get_service_nodes", "params": { "active_only": true } }).to_string();
    let (status, body) = client.post("/json_rpc", &[], call).await.unwrap();
    let reply: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &reply["result"]), (200, &list.to_json()));
}

#[tokio::test(flavor = "multi_thread")]
async fn apns_takes_a_good_push_and_answers_as_scripted() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate(folder.path()).unwrap();
    let deliveries = Deliveries::new(100);
    let apns = Apns::start(PushService::Apns, &keys, Arc::clone(&deliveries), 1000).unwrap();
    let mut client = Http2::connect(&keys, apns.address()).await;
    let token = PushService::Apns.new_token();
    let path = format!("/3/device/{token}");
    let provider_token = format!("bearer {}", apns_jwt(folder.path()));
    let id = "7c2fd2a3-8b58-4f8e-9d43-0d1f6a2b3c4d";
    let headers = [
        ("authorization", provider_token.as_str()),
        ("apns-topic", APNS_TOPIC),
        ("apns-push-type", "alert"),
        ("apns-priority", "10"),
        ("apns-expiration", "1900000000"),
        ("apns-id", id),
    ];
    let body = json!({
        "aps": { "alert": { "title": "Session", "body": "You've got a new message" }, "mutable-content": 1 },
        "spns": 1,
        "enc_payload": STANDARD.encode(b"sealed"),
    })
    .to_string();

    assert_eq!(client.post(&path, &headers, body.clone()).await.unwrap().0, 200);
    let delivery = deliveries.take(PATIENCE, |delivery| delivery.accepted).await.unwrap();
    assert_eq!(
        (delivery.token.as_str(), delivery.id.as_deref()),
        (token.as_str(), Some(id))
    );
    assert_eq!(delivery.enc_payload, b"sealed");

    apns.script()
        .queue(&token, Answer::apns_gone("Unregistered", 1_700_000_000_000));
    let (status, reply) = client.post(&path, &headers, body.clone()).await.unwrap();
    assert_eq!(
        (status, text(&reply)),
        (410, r#"{"reason":"Unregistered","timestamp":1700000000000}"#.into())
    );
    apns.script()
        .queue(&token, Answer::apns(429, "TooManyRequests").with_retry_after("7"));
    assert_eq!(client.post(&path, &headers, body.clone()).await.unwrap().0, 429);
    apns.script().queue(&token, Answer::huge_body(500, 3_000_000));
    assert_eq!(
        client.post(&path, &headers, body.clone()).await.unwrap().1.len(),
        3_000_000
    );
    apns.script().queue(&token, Answer::RefuseStream);
    assert!(client.post(&path, &headers, body.clone()).await.is_err());
    assert!(deliveries.complaints().is_empty(), "{:?}", deliveries.complaints());

    // What Apple refuses by itself.
    assert_eq!(
        client.post("/3/device/xyz", &headers, body.clone()).await.unwrap().0,
        400
    );
    assert_eq!(client.post(&path, &headers[1..], body.clone()).await.unwrap().0, 403);
    assert_eq!(client.post(&path, &headers[..1], body.clone()).await.unwrap().0, 400);
    let forged = provider_token.replace("bearer ey", "bearer fy");
    assert_eq!(
        client
            .post(&path, &[("authorization", &forged)], body.clone())
            .await
            .unwrap()
            .0,
        403
    );
    apns.set_token_lifetime(-1);
    let (status, reply) = client.post(&path, &headers, body.clone()).await.unwrap();
    assert_eq!(
        (status, text(&reply)),
        (403, r#"{"reason":"ExpiredProviderToken"}"#.into())
    );
    apns.set_token_lifetime(3600);

    apns.script().queue(&token, Answer::GoAway);
    assert_eq!(client.post(&path, &headers, body.clone()).await.unwrap().0, 200);
    client.closed().await;
    let mut client = Http2::connect(&keys, apns.address()).await;
    apns.script().queue(&token, Answer::Cut);
    assert!(client.post(&path, &headers, body).await.is_err());
    assert_eq!(apns.connections(), 2);

    let client = Http2::connect(&keys, apns.address()).await;
    apns.set_down(true);
    client.closed().await;
    assert!(
        Http2::try_connect_to(keys.authority.certificate(), apns.address())
            .await
            .is_err()
    );
    apns.set_down(false);
    Http2::connect(&keys, apns.address()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fcm_takes_a_push_only_with_a_bearer_it_gave_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate(folder.path()).unwrap();
    let deliveries = Deliveries::new(100);
    let fcm = Fcm::start(&keys, Arc::clone(&deliveries), 1000).unwrap();
    keys.write_service_account(&fcm.token_uri()).unwrap();
    let mut client = Http2::connect(&keys, fcm.address()).await;
    let path = format!("/v1/projects/{FIREBASE_PROJECT}/messages:send");
    let push = json!({ "message": {
        "token": "device",
        "data": { "enc_payload": STANDARD.encode(b"sealed"), "spns": "1" },
        "android": { "priority": "HIGH", "ttl": "60s" },
    }})
    .to_string();
    assert_eq!(
        client
            .post(&path, &[("authorization", "Bearer guessed")], push.clone())
            .await
            .unwrap()
            .0,
        401
    );

    let form = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={}",
        firebase_jwt(folder.path(), &fcm.token_uri())
    );
    let (status, reply) = client.post("/token", &[], form.clone()).await.unwrap();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(status, 200, "{reply}");
    let bearer = format!("Bearer {}", reply["access_token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(client.post(&path, &headers, push.clone()).await.unwrap().0, 200);
    assert_eq!(
        deliveries
            .take(PATIENCE, |delivery| delivery.accepted)
            .await
            .unwrap()
            .enc_payload,
        b"sealed"
    );

    fcm.script()
        .always("device", Answer::fcm(404, "NOT_FOUND", Some("UNREGISTERED"), None));
    let (status, reply) = client.post(&path, &headers, push.clone()).await.unwrap();
    assert_eq!((status, text(&reply).contains("UNREGISTERED")), (404, true));
    fcm.script().clear();
    assert!(deliveries.complaints().is_empty(), "{:?}", deliveries.complaints());
    let slow = push.replace("HIGH", "whenever");
    assert_eq!(client.post(&path, &headers, slow).await.unwrap().0, 400);
    assert_eq!(deliveries.complaints().len(), 1);

    fcm.revoke_bearers();
    assert_eq!(client.post(&path, &headers, push).await.unwrap().0, 401);
    fcm.queue_token_answer(Answer::html(503));
    assert_eq!(client.post("/token", &[], form.clone()).await.unwrap().0, 503);
    let forged = form.replace("assertion=ey", "assertion=fy");
    assert_eq!(client.post("/token", &[], forged).await.unwrap().0, 400);
}

fn message_for(phone: &Phone, namespace: i16, data: &[u8]) -> SwarmMessage {
    let timestamp_ms = unix_milliseconds();
    SwarmMessage {
        account: *phone.account(),
        session_ed25519: phone.session_ed25519().copied(),
        namespace,
        timestamp_ms,
        expiry_ms: timestamp_ms + 60_000,
        data: data.to_vec(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An OxenMQ link as liboxenmq makes it: a DEALER with its key as routing id.
struct Link {
    socket: zmq::Socket,
    handshakes: zmq::Socket,
}

impl Link {
    fn dial(node: &NodeAddress) -> Self {
        Self::connect(&format!("tcp://127.0.0.1:{}", node.port), Some(node.public_key))
    }

    fn dial_oxend(address: &str) -> Self {
        match address.strip_prefix("curve://").and_then(|rest| rest.split_once('/')) {
            Some((host, key)) => Self::connect(
                &format!("tcp://{host}"),
                Some(hex::decode(key).unwrap().try_into().unwrap()),
            ),
            None => Self::connect(address, None),
        }
    }

    fn connect(endpoint: &str, server_key: Option<[u8; 32]>) -> Self {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::DEALER).unwrap();
        socket
            .monitor(
                "inproc://handshakes",
                zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw().into(),
            )
            .unwrap();
        let handshakes = context.socket(zmq::PAIR).unwrap();
        handshakes.connect("inproc://handshakes").unwrap();
        handshakes.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        let key = CurveKey::new();
        let routing_id = [b"L", key.public.as_slice()].concat();
        socket.set_identity(&routing_id).unwrap();
        if let Some(server_key) = server_key {
            socket.set_curve_serverkey(&server_key).unwrap();
            socket.set_curve_publickey(&key.public).unwrap();
            socket.set_curve_secretkey(&key.secret).unwrap();
        }
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.connect(endpoint).unwrap();
        let link = Self { socket, handshakes };
        link.await_handshake();
        link
    }

    /// Returns after each new connection of libzmq, the first one and those it makes by itself, once.
    fn await_handshake(&self) {
        self.handshakes.recv_multipart(0).unwrap();
    }

    fn send(&self, frames: &[&[u8]]) {
        self.socket.send_multipart(frames, 0).unwrap();
    }

    fn receive(&self) -> Vec<Vec<u8>> {
        self.socket.recv_multipart(0).unwrap()
    }

    fn exchange(&self, frames: &[&[u8]]) -> Vec<Vec<u8>> {
        self.send(frames);
        self.receive()
    }

    fn watch(&self, phone: &Phone) -> String {
        let body = Bt::List(vec![phone.monitor_record(unix_seconds())]).write();
        let reply = self.exchange(&[b"monitor.messages", b"a tag", &body]);
        assert_eq!(reply[..2], [&b"REPLY"[..], b"a tag"]);
        text(&reply[2])
    }
}

struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Http2 {
    async fn connect(keys: &Keys, address: SocketAddr) -> Self {
        Self::connect_to(keys.authority.certificate(), address).await
    }

    async fn connect_to(trusted: &CertificateDer<'static>, address: SocketAddr) -> Self {
        Self::try_connect_to(trusted, address).await.unwrap()
    }

    async fn try_connect_to(trusted: &CertificateDer<'static>, address: SocketAddr) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        let tls = TlsConnector::from(client_config(trusted).unwrap());
        let tls = tls.connect("localhost".try_into().unwrap(), tcp).await?;
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, connection })
    }

    async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: String) -> Result<(u16, Bytes), hyper::Error> {
        let mut request = hyper::Request::post(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    async fn closed(self) {
        let Self { sender, connection } = self;
        tokio::time::timeout(PATIENCE, connection).await.unwrap().unwrap();
        drop(sender);
    }
}

fn apns_jwt(folder: &std::path::Path) -> String {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let signed = jwt_text(
        &json!({ "alg": "ES256", "kid": APNS_KEY_ID }),
        &json!({ "iss": APNS_TEAM_ID, "iat": unix_seconds() }),
    );
    let der = read_pem(&folder.join("apns.p8"));
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
    let signature = key
        .sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes())
        .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn firebase_jwt(folder: &std::path::Path, token_uri: &str) -> String {
    use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
    let now = unix_seconds();
    let signed = jwt_text(
        &json!({ "alg": "RS256" }),
        &json!({
            "iss": FIREBASE_EMAIL, "aud": token_uri, "iat": now, "exp": now + 3600,
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
        }),
    );
    let account: Value = serde_json::from_slice(&std::fs::read(folder.join("firebase.json")).unwrap()).unwrap();
    let pem = folder.join("firebase.pem");
    std::fs::write(&pem, account["private_key"].as_str().unwrap()).unwrap();
    let key = RsaKeyPair::from_pkcs8(&read_pem(&pem)).unwrap();
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &aws_lc_rs::rand::SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn jwt_text(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    )
}

fn read_pem(path: &std::path::Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).unwrap();
    let base64: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(base64).unwrap()
}
