//! A whole data plane on loopback, and clients and peers on real sockets around it. The clients write, sign and check their messages as
//! those of the core's tests do, without any code of the server.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests: what cannot be unwrapped is a failed test"
)]

#[path = "../../core/tests/world/mod.rs"]
pub mod world;

use quietline_shared::redact::Secret;
use quietline_turn::shard::{Listener, Plan, Report, Shards, start};
use quietline_turn::sockets::Buffers;
use quietline_turn::streams::StreamSettings;
use quietline_turn::sys::{Message, Outgoing, Piece};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use turn_core::auth::{NONCE_EPOCH, Nonces};
use turn_core::control::{Limits, Settings, Shared};
use turn_core::peers::{PeerPolicy, Prefix, RELAY_PORTS, RelayAddress, RelayTable};
use world::{ALLOCATE, BIND, CHANNEL, Client, Draft, PAYLOAD, PEER, PERMIT, Reply, SEND, UDP, credentials};

/// Shared machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One server on a loopback network that no other test uses.
pub struct Net {
    pub shards: Option<Shards>,
    /// Of them.
    count: usize,
    pub server: SocketAddr,
    pub relays: RelayTable,
    network: [u8; 3],
    hosts: AtomicU8,
}

impl Net {
    pub fn new(shards: u16) -> Self {
        Self::with(shards, Limits::default())
    }

    pub fn with(shards: u16, limits: Limits) -> Self {
        Self::with_streams(shards, limits, StreamSettings::default(), None)
    }

    pub fn with_streams(
        shards: u16,
        limits: Limits,
        streams: StreamSettings,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        Self::planned(shards, limits, |plan| (plan.streams, plan.tls) = (streams, tls))
    }

    /// With changes of the plan.
    pub fn planned(shards: u16, limits: Limits, change: impl FnOnce(&mut Plan)) -> Self {
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = [127, (std::process::id() % 250) as u8 + 1, number];
        let own = IpAddr::V4(Ipv4Addr::new(network[0], network[1], network[2], 1));
        let relay = RelayAddress {
            bind: own,
            advertised: own,
        };
        let relays = RelayTable::new(vec![relay], RELAY_PORTS).unwrap();
        let nonces = Nonces::new(Secret::new([7; 32]), NONCE_EPOCH);
        let mut plan = Plan {
            shards,
            listeners: vec![Listener {
                address: SocketAddr::new(own, 0),
            }],
            buffers: Buffers::default(),
            shared: Arc::new(Shared::new(relays.clone(), nonces, [3, 4])),
            settings: settings(world::USERS, limits, &relays),
            streams: StreamSettings::default(),
            tls: None,
        };
        change(&mut plan);
        let count = usize::from(plan.shards);
        let shards = start(plan).unwrap();
        Self {
            server: shards.addresses()[0],
            count,
            shards: Some(shards),
            relays,
            network,
            hosts: AtomicU8::new(1),
        }
    }

    pub fn shards(&self) -> &Shards {
        self.shards.as_ref().unwrap()
    }

    /// The sums over all shards. One that is held up by the machine is left out of a report, so it is asked for again.
    pub fn report(&self) -> Report {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.shards().report();
            if report.shards == self.count {
                return report;
            }
            assert!(Instant::now() < deadline, "{} of {} shards", report.shards, self.count);
        }
    }

    /// Waits until the shards report this.
    pub fn until(&self, is_so: impl Fn(&Report) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.report()) {
            assert!(Instant::now() < deadline, "it was never so");
            // Each report costs the shards a moment and a channel.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A socket on an address of its own.
    pub fn host(&self) -> UdpSocket {
        let host = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        let [a, b, c] = self.network;
        let socket = UdpSocket::bind((Ipv4Addr::new(a, b, c, host), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// One of many: hosts run out, ports do not.
    pub fn caller_of_host(&self, number: u16) -> Caller {
        let [a, b, c] = self.network;
        let host = 2 + (number % 250) as u8;
        let socket = UdpSocket::bind((Ipv4Addr::new(a, b, c, host), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = Client::new(&socket.local_addr().unwrap().to_string());
        Caller {
            server: self.server,
            socket,
            client,
        }
    }

    pub fn caller(&self) -> Caller {
        self.caller_named("alice", "wonderland")
    }

    pub fn caller_named(&self, user: &str, password: &str) -> Caller {
        let socket = self.host();
        let client = Client::new(&socket.local_addr().unwrap().to_string()).named(user, password);
        Caller {
            server: self.server,
            socket,
            client,
        }
    }
}

/// Loopback peers are allowed here.
pub fn settings(users: &[(&str, &str)], limits: Limits, relays: &RelayTable) -> Arc<Settings> {
    let policy = PeerPolicy {
        allow: vec![Prefix::parse("127.0.0.0/8").unwrap()],
        ..PeerPolicy::default()
    };
    Arc::new(Settings::new(credentials(users), limits, policy, vec![], relays, true))
}

/// A client on a real socket.
pub struct Caller {
    pub socket: UdpSocket,
    pub client: Client,
    server: SocketAddr,
}

impl Caller {
    pub fn post(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.server).unwrap();
    }

    /// All in one call, which loopback hands over in one piece.
    pub fn post_burst(&self, packets: &[Vec<u8>]) {
        send_burst(&self.socket, self.server, packets);
    }

    /// The next datagram from the server.
    pub fn next(&self) -> Vec<u8> {
        let (bytes, from) = receive(&self.socket);
        assert_eq!(from, self.server, "from somewhere else");
        bytes
    }

    /// Nothing comes that was sent before what this asks: answers overtake nothing on loopback.
    pub fn nothing_waits(&mut self) {
        let draft = self.client.draft(world::BINDING);
        self.post(&draft.0);
        let reply = Reply::read(&self.next());
        assert_eq!(reply.bytes[4..20], draft.0[4..20], "something else came first");
    }

    pub fn exchange(&mut self, bytes: &[u8]) -> Reply {
        self.post(bytes);
        let reply = Reply::read(&self.next());
        assert_eq!(reply.bytes[4..20], bytes[4..20], "another transaction");
        reply
    }

    pub fn ask(&mut self, draft: Draft) -> Reply {
        if self.client.nonce.is_empty() {
            let bare = self.client.draft(ALLOCATE).with(UDP.0, UDP.1);
            let challenge = self.exchange(&bare.0);
            assert_eq!(challenge.code(), 401);
            self.client.learn(&challenge);
        }
        let signed = self.client.sign(draft);
        let reply = self.exchange(&signed.0);
        self.client.check_integrity(&reply);
        reply
    }

    pub fn try_allocate(&mut self) -> Reply {
        let draft = self.client.draft(ALLOCATE).with(UDP.0, UDP.1);
        self.ask(draft)
    }

    pub fn allocate(&mut self) -> SocketAddr {
        let reply = self.try_allocate();
        assert_eq!(reply.code(), 0);
        reply.relayed()
    }

    pub fn permit(&mut self, peer: SocketAddr) {
        let draft = self.client.draft(PERMIT).address(PEER, peer);
        assert_eq!(self.ask(draft).code(), 0);
    }

    pub fn bind(&mut self, number: u16, peer: SocketAddr) {
        let [n0, n1] = number.to_be_bytes();
        let draft = self.client.draft(BIND).with(CHANNEL, &[n0, n1, 0, 0]);
        let draft = draft.address(PEER, peer);
        assert_eq!(self.ask(draft).code(), 0);
    }

    pub fn refresh(&mut self, lifetime: u32) -> Reply {
        let draft = self
            .client
            .draft(world::REFRESH)
            .with(world::LIFETIME, &lifetime.to_be_bytes());
        self.ask(draft)
    }

    pub fn send_indication(&mut self, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        self.client.draft(SEND).address(PEER, peer).with(PAYLOAD, data).0
    }
}

pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram in time");
    (buffer[..length].to_vec(), from)
}

/// All of one length but the last.
pub fn send_burst(socket: &UdpSocket, to: SocketAddr, packets: &[Vec<u8>]) {
    let memory = packets.concat();
    let piece = Piece {
        start: 0,
        length: memory.len() as u32,
    };
    let message = Message {
        to,
        pieces: 0..1,
        segment: packets[0].len() as u16,
        ecn: 0,
    };
    let sent = Outgoing::new(1, 1).send(socket.as_fd(), &memory, &[piece], &[message]);
    assert_eq!(sent.unwrap(), 1);
}
