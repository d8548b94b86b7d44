//! TCP and TLS clients on real sockets, and their calls with each other and with UDP clients.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod net;

use net::world::{
    self, ALLOCATE, BIND, CHANNEL, Client, DATA, Draft, PAYLOAD, PEER, PERMIT, RELAYED, Reply, SEND, UDP,
};
use net::{Net, PATIENCE, receive, settings};
use quietline_turn::streams::{StreamEvent, StreamSettings, server_config};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, ServerConfig,
    StreamOwned, SupportedProtocolVersion,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::Dropped;
use turn_core::wire::Transport;

/// What a client's messages travel by.
enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A client by any transport.
struct Talker {
    wire: Wire,
    client: Client,
    server: SocketAddr,
}

impl Talker {
    fn new(wire: Wire, server: SocketAddr) -> Self {
        let local = match &wire {
            Wire::Udp(socket) => socket.local_addr(),
            Wire::Tcp(socket) => socket.local_addr(),
            Wire::Tls(session) => session.sock.local_addr(),
        };
        let client = Client::over(&local.unwrap().to_string(), Transport::Tcp);
        Self { wire, client, server }
    }

    fn udp(net: &Net) -> Self {
        Self::new(Wire::Udp(net.host()), net.server)
    }

    fn tcp(net: &Net) -> Self {
        Self::new(Wire::Tcp(connect(net.server)), net.server)
    }

    fn tls(net: &Net, config: ClientConfig) -> Self {
        Self::new(Wire::Tls(Box::new(handshake(net.server, config).unwrap())), net.server)
    }

    fn socket(&self) -> &TcpStream {
        match &self.wire {
            Wire::Udp(_) => panic!("UDP has no stream"),
            Wire::Tcp(socket) => socket,
            Wire::Tls(session) => &session.sock,
        }
    }

    fn is_stream(&self) -> bool {
        !matches!(self.wire, Wire::Udp(_))
    }

    fn post(&mut self, bytes: &[u8]) {
        match &mut self.wire {
            Wire::Udp(socket) => assert_eq!(socket.send_to(bytes, self.server).unwrap(), bytes.len()),
            Wire::Tcp(socket) => socket.write_all(bytes).unwrap(),
            Wire::Tls(session) => session.write_all(bytes).unwrap(),
        }
    }

    /// The next message or frame. Over a stream its padding is there and zero, and is taken off.
    fn next(&mut self) -> Vec<u8> {
        match &mut self.wire {
            Wire::Udp(socket) => receive(socket).0,
            Wire::Tcp(socket) => next_frame(socket),
            Wire::Tls(session) => next_frame(session),
        }
    }

    fn ask(&mut self, draft: Draft) -> Reply {
        if self.client.nonce.is_empty() {
            let bare = self.client.draft(ALLOCATE).with(UDP.0, UDP.1);
            self.post(&bare.0);
            let challenge = Reply::read(&self.next());
            assert_eq!(challenge.code(), 401);
            self.client.learn(&challenge);
        }
        let signed = self.client.sign(draft);
        self.post(&signed.0);
        let reply = Reply::read(&self.next());
        assert_eq!(reply.bytes[4..20], signed.0[4..20], "another transaction");
        self.client.check_integrity(&reply);
        reply
    }

    fn allocate(&mut self) -> SocketAddr {
        let draft = self.client.draft(ALLOCATE).with(UDP.0, UDP.1);
        let reply = self.ask(draft);
        assert_eq!(reply.code(), 0);
        assert!(reply.has(RELAYED));
        reply.relayed()
    }

    fn permit(&mut self, peer: SocketAddr) {
        let draft = self.client.draft(PERMIT).address(PEER, peer);
        assert_eq!(self.ask(draft).code(), 0);
    }

    fn bind(&mut self, number: u16, peer: SocketAddr) {
        let [n0, n1] = number.to_be_bytes();
        let draft = self.client.draft(BIND).with(CHANNEL, &[n0, n1, 0, 0]);
        assert_eq!(self.ask(draft.address(PEER, peer)).code(), 0);
    }

    fn indicate(&mut self, peer: SocketAddr, data: &[u8]) {
        let draft = self.client.draft(SEND).address(PEER, peer).with(PAYLOAD, data);
        self.post(&draft.0);
    }

    fn channel(&mut self, number: u16, data: &[u8]) {
        let mut frame = world::channel_data(number, data);
        if self.is_stream() {
            frame.resize(frame.len().next_multiple_of(4), 0);
        }
        self.post(&frame);
    }

    /// The data of the Data indication that comes next, and its peer.
    fn next_data(&mut self) -> (Vec<u8>, SocketAddr) {
        let data = Reply::read(&self.next());
        assert_eq!(data.kind, DATA);
        (data.get(PAYLOAD).unwrap().to_vec(), data.addresses(PEER)[0])
    }

    /// The stream ends; what may have come before does not count.
    fn until_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = match &mut self.wire {
            Wire::Udp(_) => panic!("UDP has no end"),
            Wire::Tcp(socket) => socket.read_to_end(&mut rest),
            Wire::Tls(session) => session.read_to_end(&mut rest),
        };
    }
}

fn next_frame(stream: &mut impl Read) -> Vec<u8> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).expect("a frame in time");
    let length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
    let whole = if frame[0] < 4 { 20 + length } else { 4 + length };
    frame.resize(whole.next_multiple_of(4), 0xEE);
    stream.read_exact(&mut frame[4..]).unwrap();
    assert!(frame[whole..].iter().all(|byte| *byte == 0), "padding that is not zero");
    frame.truncate(whole);
    frame
}

fn connect(server: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(server).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn handshake(server: SocketAddr, config: ClientConfig) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from("relay.test").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(session, connect(server));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// A new certificate of its own, and who trusts it.
struct Certificate {
    server: Arc<ServerConfig>,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let der = made.cert.der().clone();
        Self {
            server: server_config(vec![der.clone()], key.into()).unwrap(),
            der,
        }
    }

    fn client(&self) -> ClientConfig {
        self.client_of(&[&TLS13, &TLS12], &[])
    }

    fn client_of(&self, versions: &[&'static SupportedProtocolVersion], protocols: &[&[u8]]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config
    }
}

fn net_with(shards: u16, certificate: &Certificate) -> Net {
    let streams = StreamSettings::default();
    Net::with_streams(shards, Limits::default(), streams, Some(certificate.server.clone()))
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn clients_of_every_transport_call_each_other_on_two_shards() {
    let certificate = Certificate::new();
    let net = net_with(2, &certificate);
    // Which shard a client meets is the kernel's choice; with as many as these both have some of each kind.
    let mut talkers: Vec<Talker> = (0..5)
        .flat_map(|_| {
            [
                Talker::udp(&net),
                Talker::tcp(&net),
                Talker::tls(&net, certificate.client()),
            ]
        })
        .collect();
    let relayed: Vec<_> = talkers.iter_mut().map(Talker::allocate).collect();
    for (number, talker) in talkers.iter_mut().enumerate() {
        for peer in relayed.iter().skip(number % 2) {
            talker.permit(*peer);
        }
    }
    for first in 0..talkers.len() {
        for second in first + 1..talkers.len() {
            let (left, right) = talkers.split_at_mut(second);
            let (a, b) = (&mut left[first], &mut right[0]);
            let (of_a, of_b) = (relayed[first], relayed[second]);
            // Lengths that need every padding.
            for length in [0, 1, 2, 3, 4, 1_200] {
                let data = vec![length as u8; length];
                a.indicate(of_b, &data);
                assert_eq!(b.next_data(), (data.clone(), of_a));
                b.indicate(of_a, &data);
                assert_eq!(a.next_data(), (data, of_b));
            }
        }
    }
    // By channel: each has one to the next.
    for at in 0..talkers.len() {
        let next = (at + 1) % talkers.len();
        talkers[at].bind(0x4001, relayed[next]);
        talkers[next].bind(0x4002, relayed[at]);
        for length in [0, 1, 2, 3, 4, 1_200, 9_000] {
            let data = vec![length as u8; length];
            talkers[at].channel(0x4001, &data);
            assert_eq!(talkers[next].next(), world::channel_data(0x4002, &data));
            talkers[next].channel(0x4002, &data);
            assert_eq!(talkers[at].next(), world::channel_data(0x4001, &data));
        }
    }
    let report = net.report();
    assert_eq!(report.losses.iter().count(), 0);
    assert_eq!(report.streams.iter().filter(|(_, count)| *count > 0).count(), 0);
    assert_eq!((report.streams.open_tcp, report.streams.open_tls), (5, 5));
    assert!(report.counters.within.packets > 1_000);
}

#[test]
fn a_stream_client_and_a_peer_talk_and_nobody_else_does() {
    let certificate = Certificate::new();
    let net = net_with(2, &certificate);
    for mut talker in [Talker::tcp(&net), Talker::tls(&net, certificate.client())] {
        let relayed = talker.allocate();
        let (peer, stranger) = (net.host(), net.host());
        let address = peer.local_addr().unwrap();
        talker.permit(address);
        stranger.send_to(b"nobody asked", relayed).unwrap();
        net.until(|report| report.counters.refusals.count(Refusal::Dropped(Dropped::NoPermission)) > 0);
        for length in [0, 5, 1_400, 60_000] {
            let data = vec![9; length];
            talker.indicate(address, &data);
            assert_eq!(receive(&peer), (data.clone(), relayed));
            peer.send_to(&data, relayed).unwrap();
            assert_eq!(talker.next_data(), (data, address));
        }
        talker.bind(0x4ABC, address);
        for length in [0, 5, 1_400, 60_000] {
            let data = vec![7; length];
            talker.channel(0x4ABC, &data);
            assert_eq!(receive(&peer), (data.clone(), relayed));
            peer.send_to(&data, relayed).unwrap();
            assert_eq!(talker.next(), world::channel_data(0x4ABC, &data));
        }
    }
}

#[test]
fn without_the_receivers_permission_nothing_passes_within_the_server() {
    let certificate = Certificate::new();
    let net = net_with(2, &certificate);
    let (mut a, mut b) = (Talker::tcp(&net), Talker::tls(&net, certificate.client()));
    // Two relayed addresses of one host: a permission knows no ports, so b permits another host only.
    let (_, of_b) = (a.allocate(), b.allocate());
    a.permit(of_b);
    a.indicate(of_b, b"psst");
    net.until(|report| report.counters.refusals.count(Refusal::Dropped(Dropped::NoPermission)) == 1);
    // What b hears next is the answer to its own question.
    let host = net.host().local_addr().unwrap();
    b.permit(host);
}

#[test]
fn both_versions_of_tls_are_served_with_and_without_alpn_and_nobody_is_known_again() {
    let certificate = Certificate::new();
    let net = net_with(1, &certificate);
    let versions = [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)];
    for (version, expected) in versions {
        for protocols in [&[][..], &[b"stun.turn".as_slice()], &[b"h2", b"stun.turn"]] {
            let config = certificate.client_of(&[version], protocols);
            // The second time the client would come back with what it was given.
            for _ in 0..2 {
                let mut talker = Talker::tls(&net, config.clone());
                talker.allocate();
                let Wire::Tls(session) = &talker.wire else {
                    panic!("not over TLS");
                };
                assert_eq!(session.conn.protocol_version(), Some(expected));
                assert_ne!(session.conn.handshake_kind(), Some(HandshakeKind::Resumed));
                assert_eq!(session.conn.tls13_tickets_received(), 0);
                let agreed = session.conn.alpn_protocol();
                assert_eq!(agreed, (!protocols.is_empty()).then_some(b"stun.turn".as_slice()));
                let group = session.conn.negotiated_key_exchange_group().map(|group| group.name());
                if expected == ProtocolVersion::TLSv1_3 {
                    assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
                }
            }
        }
        let foreign = certificate.client_of(&[version], &[b"http/1.1"]);
        assert!(handshake(net.server, foreign).is_err());
    }
    net.until(|report| report.streams.count(StreamEvent::TlsFault) == 2);
}

#[test]
fn the_client_of_openssl_is_served() {
    let certificate = Certificate::new();
    let net = net_with(1, &certificate);
    for arguments in [
        &["-tls1_2"][..],
        &["-tls1_3"],
        &["-tls1_2", "-alpn", "stun.turn"],
        &["-tls1_3", "-alpn", "stun.turn"],
    ] {
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &net.server.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's openssl");
        let request = Draft::new(world::BINDING, [7; 12]);
        openssl.stdin.as_mut().unwrap().write_all(&request.0).unwrap();
        let mut answer = [0; 32];
        openssl.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        let reply = Reply::read(&answer);
        assert!(reply.is_success());
        assert!(reply.addresses(world::MAPPED)[0].ip().is_loopback());
        openssl.kill().unwrap();
        openssl.wait().unwrap();
    }
    let older = Command::new("openssl")
        .args([
            "s_client",
            "-tls1_1",
            "-cipher",
            "ALL:@SECLEVEL=0",
            "-connect",
            &net.server.to_string(),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!older.status.success(), "TLS 1.1 is served");
}

#[test]
fn the_end_of_a_stream_is_the_end_of_its_allocation() {
    let certificate = Certificate::new();
    let net = net_with(2, &certificate);
    // Some keep their socket: then it is what they said that ends the allocation.
    let ends: [fn(Talker) -> Option<Talker>; 4] = [
        |_| None,
        |talker| {
            talker.socket().shutdown(Shutdown::Write).unwrap();
            Some(talker)
        },
        |talker| {
            let socket = socket2::SockRef::from(talker.socket());
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            None
        },
        |mut talker| {
            if let Wire::Tls(session) = &mut talker.wire {
                session.conn.send_close_notify();
                session.conn.complete_io(&mut session.sock).unwrap();
                assert_eq!(session.read(&mut [0; 8]).unwrap(), 0);
                return Some(talker);
            }
            None
        },
    ];
    for end in ends {
        for mut talker in [Talker::tcp(&net), Talker::tls(&net, certificate.client())] {
            let relayed = talker.allocate();
            assert_eq!(net.shards().allocations(), 1);
            let kept = end(talker);
            until("an allocation outlived its stream", || net.shards().allocations() == 0);
            // Its port is closed.
            let peer = net.host();
            peer.connect(relayed).unwrap();
            until("the port is open", || {
                let _ = peer.send(b"?");
                peer.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                peer.recv(&mut [0; 8])
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            });
            drop(kept);
        }
    }
}

#[test]
fn another_certificate_is_for_new_streams_and_the_old_go_on() {
    let (first, second) = (Certificate::new(), Certificate::new());
    let net = net_with(2, &first);
    let mut old = Talker::tls(&net, first.client());
    let relayed = old.allocate();
    let settings = settings(world::USERS, Limits::default(), &net.relays);
    let reload = |tls| net.shards().reload(&settings, &StreamSettings::default(), tls);
    reload(Some(&second.server));
    // A report comes after what was ordered before.
    net.until(|report| report.shards == 2);
    for _ in 0..4 {
        assert!(handshake(net.server, first.client()).is_err());
        Talker::tls(&net, second.client()).allocate();
    }
    let peer = net.host();
    old.permit(peer.local_addr().unwrap());
    old.indicate(peer.local_addr().unwrap(), b"still here");
    assert_eq!(receive(&peer), (b"still here".to_vec(), relayed));
    // Without one, TLS is off, and those that speak it go on.
    reload(None);
    net.until(|report| report.shards == 2);
    assert!(handshake(net.server, second.client()).is_err());
    net.until(|report| report.streams.count(StreamEvent::TlsOff) == 1);
    old.permit(peer.local_addr().unwrap());
}

#[test]
fn a_prefix_has_its_streams_in_all_shards_together() {
    let streams = StreamSettings {
        per_prefix: 6,
        ..StreamSettings::default()
    };
    let net = Net::with_streams(2, Limits::default(), streams, None);
    let mut talkers: Vec<_> = (0..6).map(|_| Talker::tcp(&net)).collect();
    for talker in &mut talkers {
        talker.allocate();
    }
    for _ in 0..6 {
        Talker::tcp(&net).until_closed();
    }
    net.until(|report| report.streams.count(StreamEvent::TooManyOfPrefix) == 6);
    drop(talkers.pop());
    net.until(|report| report.streams.open_tcp == 5);
    Talker::tcp(&net).allocate();
}

#[test]
fn a_client_that_stalls_loses_its_packets_and_nobody_elses() {
    let certificate = Certificate::new();
    let limits = Limits {
        bandwidth_per_allocation: 1_000_000_000,
        ..Limits::default()
    };
    let streams = StreamSettings {
        send_buffer: 4_096,
        stall: Duration::from_secs(1),
        ..StreamSettings::default()
    };
    let net = Net::with_streams(2, limits, streams, Some(certificate.server.clone()));
    let (mut stalled, mut well) = (Talker::tls(&net, certificate.client()), Talker::tcp(&net));
    let (of_stalled, of_well) = (stalled.allocate(), well.allocate());
    let peer = net.host();
    let address = peer.local_addr().unwrap();
    stalled.bind(0x4000, address);
    well.bind(0x4000, address);
    // The well one is answered all along; the other one's buffers fill until it is taken for dead.
    let deadline = Instant::now() + PATIENCE;
    let mut round = 0u64;
    while net.report().streams.count(StreamEvent::Stalled) == 0 {
        assert!(Instant::now() < deadline, "it still lives");
        for _ in 0..200 {
            peer.send_to(&[1; 1_200], of_stalled).unwrap();
        }
        round += 1;
        peer.send_to(&round.to_be_bytes(), of_well).unwrap();
        assert_eq!(well.next(), world::channel_data(0x4000, &round.to_be_bytes()));
    }
    let report = net.report();
    assert!(report.streams.count(StreamEvent::QueueFull) > 0);
    until("its allocation stays", || net.shards().allocations() == 1);
    stalled.until_closed();
}

#[test]
fn while_the_server_drains_new_streams_are_refused_and_calls_go_on() {
    let net = Net::new(2);
    let mut talker = Talker::tcp(&net);
    talker.allocate();
    net.shards().drain();
    net.until(|report| report.shards == 2);
    assert!(TcpStream::connect(net.server).is_err());
    let peer = net.host();
    talker.permit(peer.local_addr().unwrap());
    talker.indicate(peer.local_addr().unwrap(), b"to the end");
    assert_eq!(receive(&peer).0, b"to the end");
}
