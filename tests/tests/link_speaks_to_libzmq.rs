//! The link to a node against libzmq, which is what every node runs, and against peers that mean no good.
#![allow(clippy::unwrap_used, reason = "the helpers of a test are outside of its functions")]

use bytes::Bytes;
use notifier_core::omq::{Address, Identity, LinkFault, RequestFailure, Transport};
use quietline_lab::ports;
use quietline_notifier::watcher::link::{
    DownReason, FromLink, LinkClosed, LinkHandle, LinkId, LinkSettings, Notify, spawn,
};
use quietline_shared::redact::Secret;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

#[test]
fn over_every_transport_a_link_comes_up_asks_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let ipc = |name: &str| format!("ipc://{}/{name}", folder.path().display());
    for (endpoint, curve) in [
        ("tcp://127.0.0.1:*".to_owned(), true),
        ("tcp://127.0.0.1:*".to_owned(), false),
        (ipc("a"), true),
        (ipc("b"), false),
    ] {
        let node = Node::bind(&endpoint, curve);
        let mut lab = Lab::new();
        let link = lab.dial(node.address());
        let id = node.say_hello();
        assert_eq!(id.first(), Some(&b'L'));
        assert_eq!(
            id.get(1..),
            Some(&lab.identity.public()[..]),
            "the name of the connection is our key"
        );
        assert!(matches!(lab.event(), FromLink::Up));

        link.request(1, "ping.ping", None).unwrap();
        let asked = node.receive();
        assert_eq!((asked.len(), asked[1].as_slice()), (3, &b"ping.ping"[..]));
        node.send(&[&id, b"REPLY", &asked[2], b"pong"]);
        assert_eq!(lab.reply(), (1, Ok(vec![Bytes::from("pong")])));

        node.send(&[&id, b"notify.message", b"d1:@3:abce"]);
        assert_eq!(lab.notify(), "d1:@3:abce");
        node.send(&[&id, b"notify.block", b"1234", &[0; 32]]);
        assert!(matches!(lab.event(), FromLink::BlockNotify));
        node.send(&[&id, b"notify.nosuch", b"x"]);
        assert_eq!(
            node.receive()[1..],
            [b"UNKNOWNCOMMAND".to_vec(), b"notify.nosuch".to_vec()]
        );
    }
}

#[test]
fn large_requests_and_replies_arrive_whole() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    // As for an oxend, whose node list is large.
    lab.settings.max_frame = 10 << 20;
    let link = lab.dial(node.address());
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    for size in [254, 255, 256, 65_535, 65_536, 5_000_000] {
        let body: Vec<u8> = (0..size).map(|position| position as u8).collect();
        link.request(size, "monitor.messages", Some(Bytes::from(body.clone())))
            .unwrap();
        let asked = node.receive();
        assert!(asked[3] == body, "{size} bytes arrive as they were sent");
        node.send(&[&id, b"REPLY", &asked[2], &body, b"", &body]);
        let (request, result) = lab.reply();
        assert_eq!(request, size);
        assert!(result.unwrap() == [Bytes::from(body.clone()), Bytes::new(), Bytes::from(body)]);
    }
}

#[test]
fn refusals_and_missing_replies_fail_the_request_and_keep_the_link() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    lab.settings.request_timeout = Duration::from_secs(2);
    let link = lab.dial(node.address());
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    link.request(1, "monitor.messages", None).unwrap();
    node.send(&[&id, b"FORBIDDEN", b"REPLY", &node.receive()[2]]);
    assert_eq!(lab.reply(), (1, Err(RequestFailure::Forbidden)));
    link.request(2, "monitor.messages", None).unwrap();
    node.receive();
    node.send(&[&id, b"UNKNOWNCOMMAND", b"monitor.messages"]);
    assert_eq!(lab.reply(), (2, Err(RequestFailure::UnknownCommand)));
    link.request(3, "monitor.messages", None).unwrap();
    assert_eq!(lab.reply(), (3, Err(RequestFailure::TimedOut)));
    link.request(4, "ping.ping", None).unwrap();
    node.receive();
    let tag = &node.receive()[2];
    node.send(&[&id, b"REPLY", tag]);
    assert_eq!(lab.reply(), (4, Ok(Vec::new())));
}

#[test]
fn requests_made_before_the_link_is_up_are_sent_and_too_many_are_refused() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    lab.settings.max_outstanding = 4;
    let link = lab.dial(node.address());
    // Nothing is sent before HELLO: the link has four, and its inbox another four once it has taken the first.
    let (mut taken, deadline) = (0, Instant::now() + PATIENCE);
    while taken < 8 {
        match link.request(taken, "ping.ping", None) {
            Ok(()) => taken += 1,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
        assert!(Instant::now() < deadline, "only {taken} were taken");
    }
    assert_eq!(link.request(1000, "ping.ping", None), Err(LinkClosed::Full));
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    for request in 0..taken {
        let tag = &node.receive()[2];
        node.send(&[&id, b"REPLY", tag]);
        assert_eq!(lab.reply(), (request, Ok(Vec::new())));
    }
}

#[test]
fn heartbeats_of_both_sides_keep_an_idle_link() {
    for curve in [true, false] {
        let node = Node::bind_for_long(curve);
        node.socket.set_heartbeat_ivl(100).unwrap();
        node.socket.set_heartbeat_timeout(5000).unwrap();
        let node = node.rebind();
        let mut lab = Lab::new();
        lab.settings.ping_after = Duration::from_millis(150);
        lab.settings.dead_after = Duration::from_secs(15);
        let _link = lab.dial(node.address());
        let id = node.say_hello();
        assert!(matches!(lab.event(), FromLink::Up));
        assert!(!node.disconnected_within(Duration::from_secs(6)), "libzmq gave us up");
        node.send(&[&id, b"notify.message", b"still here"]);
        assert_eq!(lab.notify(), "still here");
    }
}

#[test]
fn our_pings_are_answered_by_libzmq() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    lab.settings.ping_after = Duration::from_millis(20);
    lab.settings.dead_after = Duration::from_secs(3);
    let _link = lab.dial(node.address());
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    // Without answers the link would go down before.
    assert!(!node.disconnected_within(Duration::from_secs(4)));
    node.send(&[&id, b"notify.message", b"still here"]);
    assert_eq!(lab.notify(), "still here");
}

#[test]
fn a_reader_that_pauses_holds_the_node_back_and_loses_none_of_20000_pushes() {
    const PUSHES: u32 = 20_000;
    let node = Node::bind_for_long(true);
    node.socket.set_heartbeat_ivl(100).unwrap();
    node.socket.set_heartbeat_timeout(5000).unwrap();
    let node = node.rebind();
    let mut lab = Lab::new();
    lab.settings.ping_after = Duration::from_millis(100);
    lab.settings.dead_after = Duration::from_secs(15);
    let _link = lab.dial(node.address());
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));

    let push = |number: u32, flags: i32| {
        let body = [&number.to_be_bytes()[..], &[b'x'; 2000]].concat();
        node.socket.send_multipart([&id[..], b"notify.message", &body], flags)
    };
    // With ROUTER_MANDATORY libzmq says when it can send no more instead of dropping.
    let mut sent = 0;
    while sent < PUSHES && push(sent, zmq::DONTWAIT).is_ok() {
        sent += 1;
    }
    assert!((1..PUSHES).contains(&sent), "the node was held back after {sent}");
    assert!(
        !node.disconnected_within(Duration::from_secs(6)),
        "a link that pauses is not given up"
    );
    let reader = thread::spawn(move || {
        for number in 0..PUSHES {
            assert_eq!(lab.notify().get(..4), Some(&number.to_be_bytes()[..]));
        }
    });
    for number in sent..PUSHES {
        push(number, 0).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn a_node_that_goes_is_reported_and_can_be_dialled_again() {
    let node = Node::bind_for_long(true);
    let address = node.address();
    let mut lab = Lab::new();
    let link = lab.dial(address.clone());
    node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    let node = node.rebind();
    assert_eq!(lab.down(), DownReason::Fault(LinkFault::Closed));
    lab.wait_for_end(&link);
    assert_eq!(link.request(1, "ping.ping", None), Err(LinkClosed::Closed));

    assert!(node.address() == address);
    let _link = lab.dial(address);
    node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
}

#[test]
fn bye_closes_the_link() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    let _link = lab.dial(node.address());
    let id = node.say_hello();
    assert!(matches!(lab.event(), FromLink::Up));
    node.send(&[&id, b"BYE"]);
    assert_eq!(lab.down(), DownReason::Fault(LinkFault::Bye));
    assert!(node.disconnected_within(PATIENCE));
}

#[test]
fn closing_and_dropping_the_handle_ends_the_connection() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    for round in 0..2 {
        let link = lab.dial(node.address());
        node.say_hello();
        assert!(matches!(lab.event(), FromLink::Up));
        if round == 0 {
            link.close()
        } else {
            drop(link)
        }
        assert_eq!(lab.down(), DownReason::ClosedByUs);
        assert!(node.disconnected_within(PATIENCE));
    }
}

#[test]
fn a_wrong_server_key_ends_in_the_handshake() {
    let node = Node::bind("tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    let mut address = node.address();
    address.server_key = Some(lab.identity.public().to_owned());
    let _link = lab.dial(address);
    assert_eq!(lab.down(), DownReason::Fault(LinkFault::ClosedInHandshake));
}

#[test]
fn another_mechanism_ends_in_the_greeting() {
    for curve in [true, false] {
        let node = Node::bind("tcp://127.0.0.1:*", curve);
        let mut lab = Lab::new();
        let mut address = node.address();
        address.server_key = if curve { None } else { Some([9; 32]) };
        let _link = lab.dial(address);
        // libzmq closes when it has read our greeting, often before the rest of its own is out.
        let expected = [LinkFault::MechanismMismatch, LinkFault::ClosedInGreeting].map(DownReason::Fault);
        assert!(expected.contains(&lab.down()));
    }
}

#[test]
fn a_key_that_the_node_refuses_is_told_with_its_status() {
    let context = zmq::Context::new();
    let gate = context.socket(zmq::REP).unwrap();
    gate.bind("inproc://zeromq.zap.01").unwrap();
    gate.set_linger(0).unwrap();
    let node = Node::bind_in(context, "tcp://127.0.0.1:*", true);
    let mut lab = Lab::new();
    let _link = lab.dial(node.address());
    let question = gate.recv_multipart(0).unwrap();
    assert_eq!(question.last().map(Vec::as_slice), Some(&lab.identity.public()[..]));
    gate.send_multipart([&question[0][..], &question[1], b"400", b"", b"", b""], 0)
        .unwrap();
    assert_eq!(lab.down(), DownReason::Fault(LinkFault::RefusedByPeer { status: 400 }));
}

#[test]
fn a_closed_port_and_a_missing_socket_are_failed_dials() {
    let mut lab = Lab::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _link = lab.dial(clear(port));
    assert_eq!(lab.down(), DownReason::DialFailed(ErrorKind::ConnectionRefused));
    let folder = tempfile::tempdir().unwrap();
    let _link = lab.dial(format!("ipc://{}/none", folder.path().display()).parse().unwrap());
    assert_eq!(lab.down(), DownReason::DialFailed(ErrorKind::NotFound));
}

#[test]
fn bytes_that_are_no_zmtp_are_named_at_once() {
    let cases: [(&[u8], LinkFault); 5] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", LinkFault::NotZmtp),
        (&[0; 64], LinkFault::NotZmtp),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x01", LinkFault::OldVersion { major: 1 }),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01PLAIN", LinkFault::MechanismMismatch),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL", LinkFault::ClosedInGreeting),
    ];
    for (bytes, fault) in cases {
        let reason = meet(Duration::from_secs(10), move |mut peer| peer.write_all(bytes).unwrap());
        assert_eq!(reason, DownReason::Fault(fault));
    }
}

#[test]
fn a_silent_and_a_slow_peer_end_at_the_deadline() {
    let reason = meet(Duration::from_secs(1), |mut peer| drain(&mut peer));
    assert_eq!(reason, DownReason::Fault(LinkFault::HandshakeTimeout));
    let reason = meet(Duration::from_secs(1), |mut peer| {
        for byte in greeting() {
            thread::sleep(Duration::from_millis(50));
            if peer.write_all(&[byte]).is_err() {
                break;
            }
        }
    });
    assert_eq!(reason, DownReason::Fault(LinkFault::HandshakeTimeout));
    // A ZMTP peer that is no OxenMQ listener talks and never says HELLO.
    let reason = meet(Duration::from_secs(2), |mut peer| {
        peer.write_all(&opening()).unwrap();
        while peer.write_all(&[0, 0].repeat(1000)).is_ok() {}
    });
    assert_eq!(reason, DownReason::Fault(LinkFault::NoHello));
}

#[test]
fn endless_frames_and_messages_are_cut_off() {
    let limit = LinkSettings::default().max_frame;
    let cases: [(Vec<u8>, LinkFault); 3] = [
        (
            [&[2][..], &[255; 8]].concat(),
            LinkFault::FrameTooLarge {
                length: u64::MAX,
                limit,
            },
        ),
        ([1, 0].repeat(20), LinkFault::TooManyParts { limit: 16 }),
        (vec![0xff; 100], LinkFault::ReservedFlags),
    ];
    for (bytes, fault) in cases {
        let reason = meet(Duration::from_secs(10), move |mut peer| {
            peer.write_all(&opening()).unwrap();
            peer.write_all(&bytes).unwrap();
            drain(&mut peer);
        });
        assert_eq!(reason, DownReason::Fault(fault));
    }
}

#[test]
fn a_peer_that_falls_silent_after_hello_is_dead() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lab = Lab::new();
    lab.settings.ping_after = Duration::from_millis(50);
    lab.settings.dead_after = Duration::from_millis(100);
    let _link = lab.dial(clear(listener.local_addr().unwrap().port()));
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&opening()).unwrap();
    peer.write_all(b"\0\x05HELLO").unwrap();
    assert!(matches!(lab.event(), FromLink::Up));
    assert_eq!(lab.down(), DownReason::Fault(LinkFault::PeerSilent));
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).unwrap();
    assert!(
        heard.ends_with(b"\x04\x07\x04PING\0\0"),
        "it was asked before it was given up"
    );
}

#[test]
fn a_request_that_the_peer_does_not_read_keeps_no_push_from_coming() {
    const PUSHES: usize = 200;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lab = Lab::new();
    let link = lab.dial(clear(listener.local_addr().unwrap().port()));
    let (mut peer, _) = listener.accept().unwrap();
    // More than the kernel takes, so that the link is stuck in writing.
    let body = Bytes::from(vec![b'r'; 9 << 20]);
    for request in 0..3 {
        link.request(request, "monitor.messages", Some(body.clone())).unwrap();
    }
    peer.write_all(&opening()).unwrap();
    let mut push = b"\x01\x0enotify.message".to_vec();
    push.extend([2, 0, 0, 0, 0, 0, 1, 0, 0]);
    push.extend([b'p'; 65_536]);
    let sender = thread::spawn(move || {
        for _ in 0..PUSHES {
            peer.write_all(&push).unwrap();
        }
        peer
    });
    for _ in 0..PUSHES {
        assert_eq!(lab.notify().len(), 65_536);
    }
    let mut peer = sender.join().unwrap();
    // Now it reads, and gets all three whole: greeting, READY, HI, and 3 × command, tag, body.
    let expected = 64 + 76 + 4 + 3 * (2 + 16 + 2 + 15 + 9 + (9 << 20));
    let mut heard = vec![0; expected];
    peer.read_exact(&mut heard).unwrap();
    assert!(heard.ends_with(&body));
}

#[test]
fn a_request_that_cannot_even_be_sent_fails_in_time_and_the_link_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lab = Lab::new();
    lab.settings.request_timeout = Duration::from_millis(300);
    let link = lab.dial(clear(listener.local_addr().unwrap().port()));
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&opening()).unwrap();
    peer.write_all(b"\x00\x05HELLO").unwrap();
    assert!(matches!(lab.event(), FromLink::Up));
    // More than the kernel takes.
    let body = Bytes::from(vec![b'r'; 9 << 20]);
    for request in 0..3 {
        link.request(request, "monitor.messages", Some(body.clone())).unwrap();
        assert_eq!(lab.reply(), (request, Err(RequestFailure::TimedOut)));
    }
    // What it says is heard still.
    peer.write_all(b"\x01\x0enotify.message\x00\x04push").unwrap();
    assert_eq!(lab.notify().as_ref(), b"push");
}

/// One listener in libzmq, as a node has it.
struct Node {
    context: zmq::Context,
    socket: zmq::Socket,
    monitor: zmq::Socket,
    curve: bool,
}

impl Node {
    fn bind(endpoint: &str, curve: bool) -> Self {
        Self::bind_in(zmq::Context::new(), endpoint, curve)
    }

    /// At a port that nobody is given by chance while it is closed for a moment.
    fn bind_for_long(curve: bool) -> Self {
        Self::bind(&format!("tcp://127.0.0.1:{}", ports::free()), curve)
    }

    fn bind_in(context: zmq::Context, endpoint: &str, curve: bool) -> Self {
        let socket = context.socket(zmq::ROUTER).unwrap();
        Self::start(context, socket, endpoint, curve)
    }

    fn start(context: zmq::Context, socket: zmq::Socket, endpoint: &str, curve: bool) -> Self {
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.set_sndtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.set_router_mandatory(true).unwrap();
        socket.set_router_handover(true).unwrap();
        if curve {
            socket.set_curve_server(true).unwrap();
            socket.set_curve_secretkey(&SERVER_SECRET).unwrap();
        }
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let events = format!("inproc://monitor{number}");
        socket
            .monitor(&events, i32::from(zmq::SocketEvent::DISCONNECTED.to_raw()))
            .unwrap();
        let monitor = context.socket(zmq::PAIR).unwrap();
        monitor.set_linger(0).unwrap();
        monitor.connect(&events).unwrap();
        socket.bind(endpoint).unwrap();
        Self {
            context,
            socket,
            monitor,
            curve,
        }
    }

    /// Stops listening, drops all connections, and starts again at the same place with the same heartbeats.
    fn rebind(self) -> Self {
        let Self {
            context,
            socket,
            monitor,
            curve,
        } = self;
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        let (interval, timeout) = (
            socket.get_heartbeat_ivl().unwrap(),
            socket.get_heartbeat_timeout().unwrap(),
        );
        drop(monitor);
        drop(socket);
        // The port is free when the context has closed the socket for good.
        drop(context);
        let context = zmq::Context::new();
        let socket = context.socket(zmq::ROUTER).unwrap();
        socket.set_heartbeat_ivl(interval).unwrap();
        if timeout >= 0 {
            socket.set_heartbeat_timeout(timeout).unwrap();
        }
        Self::start(context, socket, &endpoint, curve)
    }

    fn address(&self) -> Address {
        let endpoint = self.socket.get_last_endpoint().unwrap().unwrap();
        let mut address: Address = endpoint.parse().unwrap();
        if self.curve {
            address.server_key = Some(Identity::new(Secret::new(SERVER_SECRET)).public().to_owned());
        }
        address
    }

    /// Waits for HI and answers it. Returns the name of the connection.
    fn say_hello(&self) -> Vec<u8> {
        let mut hi = self.receive();
        assert_eq!(hi[1..], [b"HI".to_vec()]);
        self.send(&[&hi[0], b"HELLO"]);
        hi.swap_remove(0)
    }

    fn receive(&self) -> Vec<Vec<u8>> {
        self.socket.recv_multipart(0).expect("a message of the link")
    }

    fn send(&self, parts: &[&[u8]]) {
        self.socket.send_multipart(parts, 0).unwrap();
    }

    fn disconnected_within(&self, time: Duration) -> bool {
        let came = self.monitor.poll(zmq::POLLIN, time.as_millis() as i64).unwrap() > 0;
        if came {
            self.monitor.recv_multipart(0).unwrap();
        }
        came
    }
}

/// A runtime with links in it, and the ends of their channels.
struct Lab {
    runtime: Runtime,
    settings: LinkSettings,
    identity: Arc<Identity>,
    next_id: u64,
    to_events: mpsc::Sender<(LinkId, FromLink)>,
    events: mpsc::Receiver<(LinkId, FromLink)>,
    to_notifies: mpsc::Sender<Notify>,
    notifies: mpsc::Receiver<Notify>,
}

impl Lab {
    fn new() -> Self {
        let (to_events, events) = mpsc::channel(4);
        let (to_notifies, notifies) = mpsc::channel(4);
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            settings: LinkSettings::default(),
            identity: Arc::new(Identity::new(Secret::new([77; 32]))),
            next_id: 0,
            to_events,
            events,
            to_notifies,
            notifies,
        }
    }

    fn dial(&mut self, address: Address) -> LinkHandle {
        self.next_id += 1;
        let _entered = self.runtime.enter();
        let settings = Arc::new(self.settings);
        let (to_events, to_notifies) = (self.to_events.clone(), self.to_notifies.clone());
        spawn(
            LinkId(self.next_id),
            address,
            settings,
            self.identity.clone(),
            to_events,
            to_notifies,
        )
    }

    fn event(&mut self) -> FromLink {
        let event = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.events.recv()).await });
        let (id, event) = event.expect("an event of the link").unwrap();
        assert_eq!(id, LinkId(self.next_id));
        event
    }

    fn reply(&mut self) -> (u64, Result<Vec<Bytes>, RequestFailure>) {
        match self.event() {
            FromLink::Reply { request, result } => (request, result),
            other => panic!("{other:?} instead of a reply"),
        }
    }

    fn down(&mut self) -> DownReason {
        match self.event() {
            FromLink::Down(reason) => reason,
            other => panic!("{other:?} instead of the end"),
        }
    }

    fn notify(&mut self) -> Bytes {
        let notify = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.notifies.recv()).await });
        let Notify { link, body } = notify.expect("a push").unwrap();
        assert_eq!(link, LinkId(self.next_id));
        body
    }

    /// `Down` is sent by the task as its last act; its end is seen a moment later.
    fn wait_for_end(&self, link: &LinkHandle) {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, link.ended()).await.unwrap() });
    }
}

/// Lets a link in clear dial a peer of the worst kind, and tells how it ended.
fn meet(dial_timeout: Duration, peer: impl FnOnce(TcpStream) + Send + 'static) -> DownReason {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = thread::spawn(move || peer(listener.accept().unwrap().0));
    let mut lab = Lab::new();
    lab.settings.dial_timeout = dial_timeout;
    let _link = lab.dial(clear(port));
    let reason = lab.down();
    peer.join().unwrap();
    reason
}

fn drain(peer: &mut TcpStream) {
    let _ = std::io::copy(peer, &mut std::io::sink());
}

fn clear(port: u16) -> Address {
    Address {
        transport: Transport::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        },
        server_key: None,
    }
}

fn greeting() -> Vec<u8> {
    let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL".to_vec();
    greeting.resize(64, 0);
    greeting
}

fn opening() -> Vec<u8> {
    [&greeting()[..], b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"].concat()
}

/// Any X25519 secret will do.
const SERVER_SECRET: [u8; 32] = [42; 32];
/// No test waits longer for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
