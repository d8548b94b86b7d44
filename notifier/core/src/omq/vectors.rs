//! Runs the recorded wire sessions, scenarios and addresses against the client.

use super::connection::{Connection, Event, Limits, Mechanism};
use super::curve::Identity;
use super::fault::LinkFault;
use super::frames;
use super::listener::Listener;
use super::rpc::{Entropy, RequestFailure, Rpc, RpcEvent, RpcLimits};
use super::{Address, AddressError, Transport};
use quietline_shared::redact::Secret;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FILE: &str = "oxenmq-frames.json";

#[test]
fn every_address_is_read_or_refused_as_oxenmq_does() {
    let vectors = vectors();
    let mut count = 0;
    for case in vectors["addresses"].as_array().unwrap() {
        count += 1;
        let text = case["in"].as_str().unwrap();
        let parsed = text.parse::<Address>();
        if case["ok"] == false {
            assert_eq!(parsed.err(), Some(refusal(case["error"].as_str().unwrap())), "{text}");
            continue;
        }
        let address = parsed.unwrap_or_else(|error| panic!("{text}: {error}"));
        match &address.transport {
            Transport::Tcp { host, port } => {
                let bracketed = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.clone()
                };
                assert_eq!(
                    (case["tcp"].as_bool(), case["host"].as_str()),
                    (Some(true), Some(bracketed.as_str()))
                );
                assert_eq!(case["port"].as_u64(), Some(u64::from(*port)));
            }
            Transport::Ipc(path) => {
                assert_eq!(
                    (case["tcp"].as_bool(), case["socket"].as_str()),
                    (Some(false), Some(path.as_str()))
                );
            }
        }
        assert_eq!(
            case.get("pubkey_hex").map(|key| key.as_str().unwrap().to_owned()),
            address.server_key.map(hex::encode)
        );
        // All ways in which OxenMQ writes this address name the same listener.
        for written in ["full", "full_hex", "full_base64", "qr"]
            .into_iter()
            .filter_map(|form| case[form].as_str())
        {
            assert!(written.parse() == Ok(address.clone()), "{written}");
        }
    }
    assert_eq!(count, 27);
}

#[test]
fn a_curve_session_is_byte_for_byte_the_recorded_one() {
    let vectors = vectors();
    let session = case(&vectors, "wire", "curve_session");
    replay(
        session,
        &[
            "HELLO",
            "REPLY pong",
            "REPLY ld7:successi1eee",
            "notify.message",
            "notify.message",
        ],
    );
}

#[test]
fn a_null_session_is_byte_for_byte_the_recorded_one() {
    let vectors = vectors();
    replay(case(&vectors, "wire", "null_session"), &["HELLO", "REPLY pong"]);
}

#[test]
fn a_refused_key_ends_the_recorded_session_with_its_status() {
    let vectors = vectors();
    let session = case(&vectors, "wire", "curve_denied");
    let (mut connection, now) = connection_of(session);
    let mut answer = stream(session, "server_to_client_hex");
    assert_eq!(
        connection.handle_bytes(&mut answer, now),
        Err(LinkFault::RefusedByPeer { status: 400 })
    );
    assert_eq!(connection.output(), stream(session, "client_to_server_hex"));
}

#[test]
fn a_wrong_server_key_ends_the_recorded_session_in_the_handshake() {
    let vectors = vectors();
    let session = case(&vectors, "wire", "curve_wrong_server_key");
    let (mut connection, now) = connection_of(session);
    assert_eq!(
        connection.handle_bytes(&mut stream(session, "server_to_client_hex"), now),
        Ok(())
    );
    assert_eq!(connection.output(), stream(session, "client_to_server_hex"));
    assert_eq!(connection.handle_end(), LinkFault::ClosedInHandshake);
}

#[test]
fn every_variation_of_a_peer_that_oxenmq_accepts_is_accepted() {
    let vectors = vectors();
    for variation in vectors["pure_client_variations"].as_array().unwrap() {
        let id = variation["id"].as_str().unwrap();
        let now = start();
        let mut connection = curve_connection(now);
        let mut listener = Listener::new();
        let mut greeting = Listener::greeting();
        // The recorded peer varied as a client; a listener may vary in the same way.
        match id {
            "greeting_3.7" => greeting[11] = 7,
            "greeting_4.0" => (greeting[10], greeting[11]) = (4, 0),
            "as_server_1" => greeting[32] = 1,
            _ => {}
        }
        let metadata = match id {
            "no_identity_property" => b"\x0bSocket-Type\0\0\0\x06ROUTER".to_vec(),
            "identity_starts_with_zero" => frames::metadata(b"ROUTER", b"\0abc"),
            // REQ talks to a ROUTER as REP does to our DEALER.
            "socket_type_REQ" => frames::metadata(b"REP", b""),
            _ => frames::metadata(b"ROUTER", b""),
        };
        shake_hands(&mut connection, &mut listener, greeting, &metadata, now);
        if id == "heartbeat_unanswered" {
            // A client that does not answer is cut off, so each PING is answered, with its context.
            for context in [&b""[..], b"0123456789abcdef"] {
                let mut ping = listener.frame(2, &[b"\x04PING\x00\x08", context].concat());
                assert_eq!(connection.handle_bytes(&mut ping, now), Ok(()));
                let answer = take_output(&mut connection);
                assert_eq!(listener.open(&answer), [(2, [b"\x04PONG", context].concat())]);
            }
        }
        assert_eq!(
            connection.handle_bytes(&mut listener.message(&[b"HELLO"]), now),
            Ok(()),
            "{id}"
        );
        assert!(
            matches!(connection.poll_event(), Some(Event::Message(parts)) if parts == ["HELLO"]),
            "{id}"
        );
    }
}

#[test]
fn every_client_scenario_ends_as_recorded_or_is_a_listed_deviation() {
    let vectors = vectors();
    let mut differences = BTreeMap::new();
    let mut run = |section: &str, run: fn(&Value) -> Result<(), String>| {
        for scenario in vectors[section].as_array().unwrap() {
            if let Err(difference) = run(scenario) {
                differences.insert(format!("{section}/{}", scenario["id"].as_str().unwrap()), difference);
            }
        }
    };
    run("client_scenarios", run_scenario);
    run("listener_scenarios", run_listener_scenario);
    let listed = deviations();
    let unlisted: Vec<_> = differences.iter().filter(|(case, _)| !listed.contains(*case)).collect();
    assert!(unlisted.is_empty(), "deviations that are not listed: {unlisted:#?}");
    let unused: Vec<_> = listed.iter().filter(|case| !differences.contains_key(*case)).collect();
    assert!(unused.is_empty(), "listed deviations that are none: {unused:?}");
}

/// Feeds the recorded listener, chunk by chunk, and sends the recorded messages when the client did.
fn replay(session: &Value, messages: &[&str]) {
    let (mut connection, now) = connection_of(session);
    let mut heard = Vec::new();
    let (mut sent, mut expected) = (take_output(&mut connection), Vec::new());
    let mut application = client_messages(session);
    for chunk in session["chunks"].as_array().unwrap() {
        let Some(mut bytes) = chunk["hex"].as_str().map(|text| hex::decode(text).unwrap()) else {
            continue;
        };
        if chunk["dir"] == "c2s" {
            expected.extend(bytes);
            // What the client said of its own accord is said when it was said then.
            while sent.len() < expected.len() && !application.is_empty() && connection.is_open() {
                let parts = application.remove(0);
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                assert!(connection.send_message(&parts));
                sent.extend(take_output(&mut connection));
            }
            if sent.len() < expected.len() && connection.is_open() {
                connection.handle_timeout(connection.next_deadline()).unwrap();
                sent.extend(take_output(&mut connection));
            }
        } else {
            connection.handle_bytes(&mut bytes, now).unwrap();
            sent.extend(take_output(&mut connection));
        }
        while let Some(event) = connection.poll_event() {
            heard.push(event);
        }
    }
    assert_eq!(hex::encode(sent), session["client_to_server_hex"].as_str().unwrap());
    assert_eq!(heard.remove(0), Event::HandshakeDone);
    let heard: Vec<_> = heard
        .into_iter()
        .map(|event| match event {
            Event::Message(parts) if parts[0] == "REPLY" => format!("REPLY {}", String::from_utf8_lossy(&parts[2])),
            Event::Message(parts) => String::from_utf8_lossy(&parts[0]).into_owned(),
            Event::HandshakeDone => panic!("a second handshake"),
        })
        .collect();
    assert_eq!(heard, messages);
}

/// The application's messages of a recorded client, in order.
fn client_messages(session: &Value) -> Vec<Vec<Vec<u8>>> {
    let mut messages = vec![Vec::new()];
    for frame in session["frames"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|frame| frame["dir"] == "c2s")
    {
        let (payload, more) = match (frame["command"].as_str(), frame["inner_flags"].as_u64()) {
            (Some("MESSAGE"), Some(flags)) if flags < 2 => (&frame["inner_hex"], flags == 1),
            (None, None) if frame["more"].is_boolean() => (&frame["body_hex"], frame["more"] == true),
            _ => continue,
        };
        messages
            .last_mut()
            .unwrap()
            .push(hex::decode(payload.as_str().unwrap()).unwrap());
        if !more {
            messages.push(Vec::new());
        }
    }
    messages.pop();
    messages
}

/// Both sides of one recorded exchange: what the client says must be what was recorded, tags apart, and what it makes
/// of the listener's messages too.
fn run_scenario(scenario: &Value) -> Result<(), String> {
    match scenario["id"].as_str() {
        Some("max-msg-size") => return run_frame_limit(scenario),
        Some("queued-while-down") => return Err("a connection is never made a second time".to_owned()),
        _ => {}
    }
    let null = scenario["id"] == "plain-tcp";
    let mut pair = Pair::new(null);
    if !null && scenario["id"] != "before-hello" && scenario["id"] != "connect" {
        pair.hello();
        pair.take_events();
        pair.take_messages();
    }
    for step in scenario["exchange"].as_array().unwrap() {
        if step.get("nothing_for_s").is_some() {
            let said = pair.take_messages();
            if !said.is_empty() {
                return Err(format!("the client said {} messages more", said.len()));
            }
            continue;
        }
        // The first frame is the routing id that a ROUTER puts in front.
        let frames = frames_of(&step["frames_hex"]);
        let parts = frames.get(1..).unwrap();
        if step["from"] == "server" {
            pair.feed(parts);
            continue;
        }
        pair.says(parts)?;
    }
    let recorded = scenario["client_events"].as_array().unwrap();
    let mut events = pair.take_events().into_iter();
    for event in recorded {
        let data: Vec<Vec<u8>> = event.get("data").map(frames_of).unwrap_or_default();
        match event["event"].as_str().unwrap() {
            "connected" => expect(events.next(), &RpcEvent::Up)?,
            "notify.message" => {
                for part in data {
                    expect(events.next(), &RpcEvent::Notify(part.into()))?;
                }
            }
            "notify.block" => expect(events.next(), &RpcEvent::BlockNotify)?,
            "reply" => {
                let result = match (event["ok"] == true, data.first().map(Vec::as_slice)) {
                    (true, _) => Ok(data.into_iter().map(Into::into).collect()),
                    (false, Some(b"FORBIDDEN")) => Err(RequestFailure::Forbidden),
                    (false, Some(b"FORBIDDEN_SN")) => Err(RequestFailure::ForbiddenServiceNode),
                    (false, Some(b"NOT_A_SERVICE_NODE")) => Err(RequestFailure::NotAServiceNode),
                    (false, Some(b"TIMEOUT")) => Err(RequestFailure::TimedOut),
                    other => return Err(format!("unknown failure {other:?}")),
                };
                expect(events.next(), &RpcEvent::Reply { request: 7, result })?;
            }
            other => return Err(format!("the client has no {other}")),
        }
    }
    match events.next() {
        Some(event) => Err(format!("the client reported {event:?} too")),
        None => Ok(()),
    }
}

/// The real listener's answers, given to our client after the same request.
fn run_listener_scenario(scenario: &Value) -> Result<(), String> {
    let id = scenario["id"].as_str().unwrap();
    if id == "plain-command" {
        return Err("the client sends requests only".to_owned());
    }
    let Some(exchange) = scenario["exchange"].as_array() else {
        return Err("no exchange of messages".to_owned());
    };
    let mut pair = Pair::new(false);
    pair.open();
    let mut asked = 0;
    for step in exchange {
        if step.get("nothing_for_s").is_some() {
            continue;
        }
        let parts = frames_of(&step["frames_hex"]);
        if step["from"] == "client" {
            pair.says(&parts)?;
            asked += u64::from(parts.len() > 1);
        } else {
            pair.feed(&parts);
            let events = pair.take_events();
            let word = parts[0].as_slice();
            let failure = match word {
                b"HELLO" => {
                    expect(events.into_iter().next(), &RpcEvent::Up)?;
                    continue;
                }
                b"REPLY" => {
                    let result = Ok(parts.into_iter().skip(2).map(Into::into).collect());
                    expect(events.into_iter().next(), &RpcEvent::Reply { request: 7, result })?;
                    continue;
                }
                b"notify.message" => {
                    expect(events.into_iter().next(), &RpcEvent::Notify(parts[1].clone().into()))?;
                    continue;
                }
                b"FORBIDDEN" => RequestFailure::Forbidden,
                b"NOT_A_SERVICE_NODE" => RequestFailure::NotAServiceNode,
                b"UNKNOWNCOMMAND" => RequestFailure::UnknownCommand,
                _ => return Err("the client has no such request".to_owned()),
            };
            expect(
                events.into_iter().next(),
                &RpcEvent::Reply {
                    request: 7,
                    result: Err(failure),
                },
            )?;
        }
    }
    if asked == 0 && id != "hi-with-parts" {
        Err("the client never says this".to_owned())
    } else {
        Ok(())
    }
}

/// `max-msg-size` with the listener's and the client's roles exchanged: our limit counts the same bytes.
fn run_frame_limit(scenario: &Value) -> Result<(), String> {
    for (size, arrived) in scenario["payload_size_arrived"].as_object().unwrap() {
        let now = start();
        let mut listener = Listener::new();
        let limits = Limits {
            max_frame: 1000,
            ..Limits::default()
        };
        let mut connection = curve_connection_with(limits, now);
        let metadata = frames::metadata(b"ROUTER", b"");
        shake_hands(&mut connection, &mut listener, Listener::greeting(), &metadata, now);
        let size: usize = size.parse().unwrap();
        let taken = connection.handle_bytes(&mut listener.frame(0, &vec![b'x'; size]), now);
        let expected = match arrived.as_bool() {
            Some(true) => Ok(()),
            // The sizes after the first that is too large found no connection any more.
            _ => Err(LinkFault::FrameTooLarge {
                length: size as u64 + 33,
                limit: 1000,
            }),
        };
        if taken != expected {
            return Err(format!("{size} bytes: {taken:?}"));
        }
    }
    Ok(())
}

/// Our client and a listener's boxes, with a window on the messages of both.
struct Pair {
    rpc: Rpc,
    listener: Option<Listener>,
    metadata: Vec<u8>,
    now: Instant,
    /// The tag of the recorded request, and ours.
    tags: Vec<(Vec<u8>, Vec<u8>)>,
    said: Vec<Vec<Vec<u8>>>,
    open: bool,
}

impl Pair {
    fn new(null: bool) -> Self {
        let now = start();
        let mechanism = if null {
            Mechanism::Null
        } else {
            Mechanism::Curve {
                server_key: Listener::public(),
            }
        };
        let entropy = Entropy {
            ephemeral_secret: Secret::new([1; 32]),
            vouch_nonce: [2; 16],
            tag_prefix: [3; 7],
        };
        let rpc = Rpc::new(mechanism, identity(), entropy, RpcLimits::default(), now);
        let listener = (!null).then(Listener::new);
        let metadata = frames::metadata(b"ROUTER", b"");
        Self {
            rpc,
            listener,
            metadata,
            now,
            tags: Vec::new(),
            said: Vec::new(),
            open: false,
        }
    }

    fn open(&mut self) {
        if std::mem::replace(&mut self.open, true) {
            return;
        }
        self.take_bytes();
        match &mut self.listener {
            Some(listener) => {
                self.rpc.handle_bytes(&mut Listener::greeting(), self.now).unwrap();
                let hello = self.rpc.output().to_vec();
                self.rpc.output_written(hello.len());
                self.rpc.handle_bytes(&mut listener.welcome(&hello), self.now).unwrap();
                self.rpc.output_written(usize::MAX);
                self.rpc
                    .handle_bytes(&mut listener.ready(&self.metadata), self.now)
                    .unwrap();
            }
            None => {
                let mut bytes = Vec::new();
                frames::put_greeting(&mut bytes, frames::NULL_NAME, 0);
                self.rpc.handle_bytes(&mut bytes, self.now).unwrap();
                self.rpc.output_written(usize::MAX);
                let mut bytes = Vec::new();
                frames::put_command(&mut bytes, b"READY", &self.metadata);
                self.rpc.handle_bytes(&mut bytes, self.now).unwrap();
            }
        }
    }

    fn hello(&mut self) {
        self.open();
        self.feed(&[b"HELLO".to_vec()]);
    }

    fn feed(&mut self, parts: &[Vec<u8>]) {
        self.open();
        // An answer names the tag of the request that was recorded; ours has another.
        let parts: Vec<Vec<u8>> = parts
            .iter()
            .map(|part| {
                self.tags
                    .iter()
                    .find(|(theirs, _)| theirs == part)
                    .map_or(part, |(_, ours)| ours)
                    .clone()
            })
            .collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut bytes = match &mut self.listener {
            Some(listener) => listener.message(&parts),
            None => parts
                .iter()
                .enumerate()
                .flat_map(|(number, part)| {
                    let mut frame = Vec::new();
                    frames::put_header(&mut frame, u8::from(number + 1 < parts.len()), part.len());
                    frame.extend_from_slice(part);
                    frame
                })
                .collect(),
        };
        self.rpc.handle_bytes(&mut bytes, self.now).unwrap();
    }

    /// Lets the client say what was recorded: requests are made, the rest it must say by itself.
    fn says(&mut self, parts: &[Vec<u8>]) -> Result<(), String> {
        self.open();
        let command = String::from_utf8_lossy(&parts[0]).into_owned();
        let is_request = !matches!(&*command, "HI" | "HELLO" | "REPLY" | "UNKNOWNCOMMAND" | "FORBIDDEN");
        if is_request && parts.len() > 1 {
            let command: &'static str = command.clone().leak();
            let body = parts.get(2).map(Vec::as_slice);
            self.rpc
                .request(7, command, body, self.now)
                .map_err(|error| error.to_string())?;
        }
        self.collect();
        let Some(position) = self.said.iter().position(|said| said[0] == parts[0]) else {
            return Err(format!("the client did not say {command}"));
        };
        let said = self.said.remove(position);
        if said.len() != parts.len() {
            return Err(format!(
                "the client said {} parts, recorded were {}",
                said.len(),
                parts.len()
            ));
        }
        for (number, (ours, theirs)) in said.iter().zip(parts).enumerate() {
            if number == 1 && is_request {
                assert_eq!(ours.len(), 15, "tags are as long as OxenMQ's");
                self.tags.push((theirs.clone(), ours.clone()));
            } else if ours != theirs {
                return Err(format!("part {number} of {command} differs"));
            }
        }
        Ok(())
    }

    fn take_messages(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.collect();
        std::mem::take(&mut self.said)
    }

    fn take_events(&mut self) -> Vec<RpcEvent> {
        std::iter::from_fn(|| self.rpc.poll_event()).collect()
    }

    fn take_bytes(&mut self) -> Vec<u8> {
        let bytes = self.rpc.output().to_vec();
        self.rpc.output_written(bytes.len());
        bytes
    }

    fn collect(&mut self) {
        let bytes = self.take_bytes();
        let frames: Vec<(u8, Vec<u8>)> = match &self.listener {
            Some(listener) => listener.open(&bytes),
            None => null_frames(&bytes),
        };
        let mut message = Vec::new();
        for (flags, payload) in frames {
            message.push(payload);
            if flags == 0 {
                self.said.push(std::mem::take(&mut message));
            }
        }
    }
}

fn null_frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Ok(frames::HeaderRead::Whole(header)) = frames::read_header(bytes) {
        let (frame, rest) = bytes.split_at(header.length + header.body_length as usize);
        frames.push((u8::from(header.more), frame[header.length..].to_vec()));
        bytes = rest;
    }
    frames
}

fn expect(event: Option<RpcEvent>, expected: &RpcEvent) -> Result<(), String> {
    if event.as_ref() == Some(expected) {
        Ok(())
    } else {
        Err(format!("{event:?} instead of {expected:?}"))
    }
}

fn refusal(text: &str) -> AddressError {
    match text {
        "Invalid address: found unexpected trailing data after pubkey" => AddressError::TrailingAfterKey,
        "Invalid address: found unexpected trailing data after port" => AddressError::TrailingAfterPort,
        "Could not determine host (no following ':port' found)" => AddressError::NoPort,
        "Invalid port: port must be in range 1-65535" => AddressError::PortOutOfRange,
        "Host cannot be empty" => AddressError::EmptyHost,
        "Invalid protocol 'udp'" => AddressError::UnknownProtocol,
        "Invalid address: no protocol found" => AddressError::NoProtocol,
        "Invalid address: no value specified after protocol" => AddressError::NothingAfterProtocol,
        "Found non-QR-alphanumeric value in QR TCP:// or CURVE:// address" => AddressError::NotQrAlphabet,
        "icp+curve:// requires a trailing /PUBKEY value, got: /run/x.sock" => AddressError::NoKey,
        other => panic!("a refusal without a name: {other}"),
    }
}

fn connection_of(session: &Value) -> (Connection, Instant) {
    let now = start();
    let keys = &session["keys"];
    let (mechanism, secret, ephemeral, vouch) = if keys.is_null() {
        // The client of the sessions in clear is the same as in the others.
        let client = vectors()["keys"]["client_secret"].as_str().unwrap().to_owned();
        (Mechanism::Null, bytes_of(&Value::from(client)), [0; 32], [0; 16])
    } else {
        let server_key = bytes_of(&keys["client_thinks_server_public"]);
        // The session that ends after HELLO has no vouch.
        let vouch = keys.get("client_vouch_nonce_16").map(bytes_of).unwrap_or_default();
        let ephemeral = bytes_of(&keys["client_ephemeral_secret"]);
        (
            Mechanism::Curve { server_key },
            bytes_of(&keys["client_long_term_secret"]),
            ephemeral,
            vouch,
        )
    };
    let identity = Arc::new(Identity::new(Secret::new(secret)));
    (
        Connection::new(
            mechanism,
            identity,
            Secret::new(ephemeral),
            vouch,
            Limits::default(),
            now,
        ),
        now,
    )
}

fn curve_connection(now: Instant) -> Connection {
    curve_connection_with(Limits::default(), now)
}

pub(super) fn curve_connection_with(limits: Limits, now: Instant) -> Connection {
    let mechanism = Mechanism::Curve {
        server_key: Listener::public(),
    };
    Connection::new(mechanism, identity(), Secret::new([1; 32]), [2; 16], limits, now)
}

/// Brings a connection to where messages flow.
pub(super) fn shake_hands(
    connection: &mut Connection,
    listener: &mut Listener,
    mut greeting: Vec<u8>,
    metadata: &[u8],
    now: Instant,
) {
    take_output(connection);
    connection.handle_bytes(&mut greeting, now).unwrap();
    let hello = take_output(connection);
    connection.handle_bytes(&mut listener.welcome(&hello), now).unwrap();
    take_output(connection);
    connection.handle_bytes(&mut listener.ready(metadata), now).unwrap();
    assert_eq!(connection.poll_event(), Some(Event::HandshakeDone));
}

pub(super) fn take_output(connection: &mut Connection) -> Vec<u8> {
    let bytes = connection.output().to_vec();
    connection.output_written(bytes.len());
    bytes
}

pub(super) fn identity() -> Arc<Identity> {
    Arc::new(Identity::new(Secret::new([4; 32])))
}

#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
pub(super) fn start() -> Instant {
    Instant::now() + Duration::from_secs(1000)
}

fn case<'a>(vectors: &'a Value, section: &str, id: &str) -> &'a Value {
    vectors[section]
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["id"] == id)
        .unwrap()
}

fn stream(session: &Value, key: &str) -> Vec<u8> {
    hex::decode(session[key].as_str().unwrap()).unwrap()
}

fn bytes_of<const N: usize>(value: &Value) -> [u8; N] {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

fn frames_of(value: &Value) -> Vec<Vec<u8>> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|frame| hex::decode(frame.as_str().unwrap()).unwrap())
        .collect()
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/oxenmq-frames.json")).unwrap()
}

/// The cases in which this client does on purpose what was not recorded.
fn deviations() -> BTreeSet<String> {
    let table: toml::Table = include_str!("../../../../tests/vectors/deviations.toml")
        .parse()
        .unwrap();
    table["deviation"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["file"].as_str() == Some(FILE) && entry.get("case").is_some())
        .map(|entry| {
            assert!(entry["why"].as_str().is_some_and(|why| !why.is_empty()));
            entry["case"].as_str().unwrap().to_owned()
        })
        .collect()
}
