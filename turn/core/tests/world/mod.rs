//! A server with time and chance under control, and clients that know nothing of its code: they write and sign their messages on
//! their own and have the integrity of every answer checked by a foreign library.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests: what cannot be unwrapped is a failed test"
)]

use hmac::{Hmac, KeyInit, Mac};
use md5::Digest;
use quietline_shared::redact::Secret;
use quietline_shared::timed::{TimedAlgorithm, TimedSecret};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use stun_types::attribute::Attribute;
use turn_core::Server;
use turn_core::auth::{Credentials, NONCE_EPOCH, Nonces, StaticUser};
use turn_core::control::{Hop, Limits, Output, Refusal, Settings, Shared};
use turn_core::peers::{PeerPolicy, RELAY_PORTS, RelayAddress, RelayTable};
use turn_core::time::Now;
use turn_core::wire::{FiveTuple, PeerAddr, RelayAddr, Transport};

pub const REALM: &str = "quietline";
pub const SECRET: &[u8] = b"0f1e2d3c4b5a69788796a5b4c3d2e1f0";
pub const UNIX_START: u64 = 1_800_000_000;

pub const BINDING: u16 = 0x001;
pub const ALLOCATE: u16 = 0x003;
pub const REFRESH: u16 = 0x004;
pub const SEND: u16 = 0x016;
pub const DATA: u16 = 0x017;
pub const PERMIT: u16 = 0x008;
pub const BIND: u16 = 0x009;

pub const USERNAME: u16 = 0x0006;
pub const INTEGRITY: u16 = 0x0008;
pub const ERROR: u16 = 0x0009;
pub const UNKNOWN: u16 = 0x000A;
pub const CHANNEL: u16 = 0x000C;
pub const LIFETIME: u16 = 0x000D;
pub const PEER: u16 = 0x0012;
pub const PAYLOAD: u16 = 0x0013;
pub const REALM_ATTRIBUTE: u16 = 0x0014;
pub const NONCE: u16 = 0x0015;
pub const RELAYED: u16 = 0x0016;
pub const FAMILY: u16 = 0x0017;
pub const EVEN_PORT: u16 = 0x0018;
pub const TRANSPORT: u16 = 0x0019;
pub const DONT_FRAGMENT: u16 = 0x001A;
pub const INTEGRITY_SHA256: u16 = 0x001C;
pub const ALGORITHM: u16 = 0x001D;
pub const USERHASH: u16 = 0x001E;
pub const MAPPED: u16 = 0x0020;
pub const TOKEN: u16 = 0x0022;
pub const ADDITIONAL: u16 = 0x8000;
pub const ADDRESS_ERROR: u16 = 0x8001;
pub const ALGORITHMS: u16 = 0x8002;
pub const ICMP: u16 = 0x8004;
pub const FINGERPRINT: u16 = 0x8028;

pub const UDP: (u16, &[u8]) = (TRANSPORT, &[17, 0, 0, 0]);

/// A message as a client writes it.
#[derive(Clone)]
pub struct Draft(pub Vec<u8>);

impl Draft {
    pub fn new(kind: u16, transaction: [u8; 12]) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0x21, 0x12, 0xA4, 0x42]);
        bytes.extend(transaction);
        Self(bytes)
    }

    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(kind.to_be_bytes());
        self.0.extend((value.len() as u16).to_be_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.set_length(0);
        self
    }

    pub fn address(self, kind: u16, address: SocketAddr) -> Self {
        let value = xor(address, &self.0[4..20]);
        self.with(kind, &value)
    }

    pub fn sign(mut self, key: &[u8], sha256: bool) -> Self {
        if sha256 {
            self.set_length(36);
            let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
            mac.update(&self.0);
            let mac = mac.finalize().into_bytes();
            self.with(INTEGRITY_SHA256, &mac)
        } else {
            self.set_length(24);
            let mut mac = Hmac::<sha1::Sha1>::new_from_slice(key).unwrap();
            mac.update(&self.0);
            let mac = mac.finalize().into_bytes();
            self.with(INTEGRITY, &mac)
        }
    }

    pub fn fingerprint(mut self) -> Self {
        self.set_length(8);
        let crc = crc32fast::hash(&self.0) ^ 0x5354_554E;
        self.with(FINGERPRINT, &crc.to_be_bytes())
    }

    fn set_length(&mut self, more: usize) {
        let length = (self.0.len() - 20 + more) as u16;
        self.0[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

pub fn xor(address: SocketAddr, mask: &[u8]) -> Vec<u8> {
    let port = address.port() ^ 0x2112;
    let (family, ip) = match address {
        SocketAddr::V4(v4) => (1, v4.ip().octets().to_vec()),
        SocketAddr::V6(v6) => (2, v6.ip().octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(port.to_be_bytes());
    value.extend(ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    value
}

/// A message as a client reads it.
#[derive(Clone, PartialEq)]
pub struct Reply {
    pub kind: u16,
    pub attributes: Vec<(u16, Vec<u8>)>,
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn read(bytes: &[u8]) -> Self {
        // The foreign parser must agree that this is a message.
        let oracle = stun_types::message::Message::from_bytes(bytes).expect("a message");
        let attributes = oracle
            .iter_attributes()
            .map(|(_, attribute)| (attribute.get_type().value(), attribute.value.to_vec()))
            .collect();
        Self {
            kind: u16::from_be_bytes([bytes[0], bytes[1]]),
            attributes,
            bytes: bytes.to_vec(),
        }
    }

    pub fn is_success(&self) -> bool {
        self.kind & 0x110 == 0x100
    }

    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes
            .iter()
            .find(|(other, _)| *other == kind)
            .map(|(_, value)| value.as_slice())
    }

    pub fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    /// 0 for a success.
    pub fn code(&self) -> u16 {
        match self.get(ERROR) {
            Some([0, 0, class, number]) => {
                assert_eq!(self.kind & 0x110, 0x110);
                u16::from(*class) * 100 + u16::from(*number)
            }
            Some(other) => panic!("an error with a reason phrase: {other:?}"),
            None => {
                assert!(self.is_success());
                0
            }
        }
    }

    pub fn lifetime(&self) -> u32 {
        u32::from_be_bytes(self.get(LIFETIME).unwrap().try_into().unwrap())
    }

    pub fn addresses(&self, kind: u16) -> Vec<SocketAddr> {
        let values = self.attributes.iter().filter(|(other, _)| *other == kind);
        values
            .map(|(_, value)| {
                let ip: Vec<u8> = value[4..]
                    .iter()
                    .zip(&self.bytes[4..20])
                    .map(|(byte, mask)| byte ^ mask)
                    .collect();
                let port = u16::from_be_bytes([value[2], value[3]]) ^ 0x2112;
                match value[1] {
                    1 => SocketAddr::from((<[u8; 4]>::try_from(ip).unwrap(), port)),
                    _ => SocketAddr::from((<[u8; 16]>::try_from(ip).unwrap(), port)),
                }
            })
            .collect()
    }

    pub fn relayed(&self) -> SocketAddr {
        self.addresses(RELAYED)[0]
    }
}

/// What came out of the server as a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    ToPeer {
        from: SocketAddr,
        to: SocketAddr,
        data: Vec<u8>,
        dont_fragment: bool,
    },
    ToClient {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
}

pub struct World {
    pub server: Server,
    pub shared: Arc<Shared>,
    pub steady: Duration,
    pub open: BTreeSet<(u8, u16)>,
    /// Replies not yet taken, with who they go to.
    pub replies: Vec<(SocketAddr, Vec<u8>)>,
    /// How many of the next relays do not open.
    pub failing_relays: usize,
    /// Ports that cannot be opened.
    pub is_taken_by_others: fn(u16) -> bool,
    state: u64,
}

pub fn v4_relay() -> RelayAddress {
    RelayAddress {
        bind: "9.9.9.9".parse().unwrap(),
        advertised: "9.9.9.9".parse().unwrap(),
    }
}

pub fn v6_relay() -> RelayAddress {
    RelayAddress {
        bind: "2a00::9".parse().unwrap(),
        advertised: "2a00::9".parse().unwrap(),
    }
}

pub fn credentials(users: &[(&str, &str)]) -> Credentials {
    let user =
        |(name, password): &(&str, &str)| StaticUser::new(name, Secret::new(password.as_bytes().to_vec())).unwrap();
    let timed = TimedSecret::new(TimedAlgorithm::Sha1, Secret::new(SECRET.to_vec())).unwrap();
    Credentials::new(REALM, users.iter().map(user).collect(), vec![timed]).unwrap()
}

pub const USERS: &[(&str, &str)] = &[("alice", "wonderland"), ("bob", "the builder")];

pub struct Options {
    pub relays: Vec<RelayAddress>,
    pub ports: (u16, u16),
    pub limits: Limits,
    pub policy: PeerPolicy,
    pub dont_fragment: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            relays: vec![v4_relay(), v6_relay()],
            ports: RELAY_PORTS,
            limits: Limits::default(),
            policy: PeerPolicy::default(),
            dont_fragment: true,
        }
    }
}

impl Options {
    pub fn settings(self, users: &[(&str, &str)], relays: &RelayTable) -> Arc<Settings> {
        let listeners = vec!["9.9.9.9:3478".parse().unwrap()];
        Arc::new(Settings::new(
            credentials(users),
            self.limits,
            self.policy,
            listeners,
            relays,
            self.dont_fragment,
        ))
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let relays = RelayTable::new(options.relays.clone(), options.ports).unwrap();
        let nonces = Nonces::new(Secret::new([7; 32]), NONCE_EPOCH);
        let shared = Arc::new(Shared::new(relays.clone(), nonces, [3, 4]));
        let settings = options.settings(USERS, &relays);
        Self::shard(shared, settings, 0)
    }

    pub fn shard(shared: Arc<Shared>, settings: Arc<Settings>, shard: u16) -> Self {
        Self {
            server: Server::new(shared.clone(), settings, shard),
            shared,
            steady: Duration::from_secs(1),
            open: BTreeSet::new(),
            replies: Vec::new(),
            failing_relays: 0,
            is_taken_by_others: |_| false,
            state: 0x9E37_79B9_7F4A_7C15 ^ u64::from(shard),
        }
    }

    pub fn now(&self) -> Now {
        Now {
            steady: self.steady,
            unix_seconds: UNIX_START + self.steady.as_secs(),
        }
    }

    /// Time passes; timers run at each deadline, as the shell would run them.
    pub fn pass(&mut self, seconds: u64) {
        let end = self.steady + Duration::from_secs(seconds);
        while let Some(deadline) = self.server.next_deadline().filter(|deadline| *deadline <= end) {
            self.steady = self.steady.max(deadline);
            self.server.handle_timeout(self.now());
            self.drain_outputs();
        }
        self.steady = end;
    }

    /// Time passes without timers.
    pub fn jump(&mut self, seconds: u64) {
        self.steady += Duration::from_secs(seconds);
    }

    pub fn drain_outputs(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { to, answer } => self.replies.push((to.client(), answer.as_bytes().to_vec())),
                Output::OpenRelay(relay) if self.failing_relays > 0 || (self.is_taken_by_others)(relay.port) => {
                    self.failing_relays = self.failing_relays.saturating_sub(1);
                    let (now, mut state) = (self.now(), self.state);
                    self.server
                        .handle_relay_failed(relay, now, &mut |bytes| fill(&mut state, bytes));
                    self.state = state;
                }
                Output::OpenRelay(relay) => assert!(self.open.insert((relay.address, relay.port)), "opened twice"),
                Output::CloseRelay(relay) => {
                    self.open.remove(&(relay.address, relay.port));
                }
            }
        }
    }

    pub fn packet(&mut self, from: &FiveTuple, bytes: &[u8]) -> Option<Packet> {
        let (now, mut state) = (self.now(), self.state);
        let hop = self
            .server
            .handle_client(from, bytes, now, &mut |bytes| fill(&mut state, bytes));
        self.state = state;
        self.drain_outputs();
        hop.map(|hop| self.carry_out(hop, bytes))
    }

    pub fn peer_packet(&mut self, relayed: SocketAddr, peer: &str, data: &[u8]) -> Option<Packet> {
        let relay = self.shared.relays().relay_of(relayed).unwrap();
        let (now, mut state) = (self.now(), self.state);
        let peer = PeerAddr::new(peer.parse().unwrap());
        let hop = self
            .server
            .handle_peer(relay, peer, data.len(), now, &mut |bytes| fill(&mut state, bytes));
        self.state = state;
        hop.map(|hop| self.carry_out(hop, data))
    }

    pub fn icmp(&mut self, relayed: SocketAddr, peer: &str, icmp: turn_core::control::Icmp) -> Option<Packet> {
        let relay = self.shared.relays().relay_of(relayed).unwrap();
        let (now, mut state) = (self.now(), self.state);
        let peer = PeerAddr::new(peer.parse().unwrap());
        let hop = self
            .server
            .handle_icmp(relay, peer, icmp, now, &mut |bytes| fill(&mut state, bytes));
        self.state = state;
        hop.map(|hop| self.carry_out(hop, b""))
    }

    /// As the shell does it.
    pub fn carry_out(&self, hop: Hop, bytes: &[u8]) -> Packet {
        match hop {
            Hop::Peer {
                relay,
                peer,
                payload,
                dont_fragment,
            } => Packet::ToPeer {
                from: self.shared.relays().bind(relay).unwrap(),
                to: peer.socket(),
                data: bytes[payload].to_vec(),
                dont_fragment,
            },
            Hop::Client {
                recipient,
                prefix,
                payload,
                padding,
            } => Packet::ToClient {
                to: recipient.client.client(),
                bytes: [prefix.as_bytes(), &bytes[payload], &[0; 3][..padding]].concat(),
            },
        }
    }

    /// The one reply to the client, if there is one.
    pub fn exchange(&mut self, from: &FiveTuple, bytes: &[u8]) -> Option<Reply> {
        assert_eq!(self.packet(from, bytes), None);
        assert!(self.replies.len() <= 1, "more than one reply");
        let (to, reply) = self.replies.pop()?;
        assert_eq!(to, from.client());
        assert_eq!(reply[4..20], bytes[4..20], "another transaction");
        Some(Reply::read(&reply))
    }

    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.server.counters().refusals.count(refusal)
    }

    pub fn relay(&self, relayed: SocketAddr) -> RelayAddr {
        self.shared.relays().relay_of(relayed).unwrap()
    }
}

pub fn fill(state: &mut u64, bytes: &mut [u8]) {
    for byte in bytes {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (*state >> 33) as u8;
    }
}

/// A client with long-term credentials.
#[derive(Clone)]
pub struct Client {
    pub tuple: FiveTuple,
    pub user: String,
    pub password: String,
    pub sha256: bool,
    pub nonce: Vec<u8>,
    pub algorithms: Vec<u8>,
    pub transactions: u64,
}

impl Client {
    pub fn new(address: &str) -> Self {
        Self::over(address, Transport::Udp)
    }

    pub fn over(address: &str, transport: Transport) -> Self {
        Self {
            tuple: FiveTuple::new(address.parse().unwrap(), transport, 0),
            user: "alice".into(),
            password: "wonderland".into(),
            sha256: false,
            nonce: Vec::new(),
            algorithms: Vec::new(),
            transactions: 0,
        }
    }

    pub fn named(mut self, user: &str, password: &str) -> Self {
        (self.user, self.password) = (user.into(), password.into());
        self
    }

    pub fn timed(self, user: &str) -> Self {
        use base64::Engine;
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(SECRET).unwrap();
        mac.update(user.as_bytes());
        let password = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        self.named(user, &password)
    }

    pub fn with_sha256(mut self) -> Self {
        self.sha256 = true;
        self
    }

    pub fn transaction(&mut self) -> [u8; 12] {
        self.transactions += 1;
        let mut transaction = [0; 12];
        transaction[..8].copy_from_slice(&self.transactions.to_be_bytes());
        transaction[8..10].copy_from_slice(&self.tuple.client().port().to_be_bytes());
        transaction
    }

    pub fn draft(&mut self, method: u16) -> Draft {
        Draft::new(method, self.transaction())
    }

    pub fn key(&self) -> Vec<u8> {
        let text = format!("{}:{REALM}:{}", self.user, self.password);
        if self.sha256 {
            sha2::Sha256::digest(&text).to_vec()
        } else {
            md5::Md5::digest(&text).to_vec()
        }
    }

    /// Puts on what authenticates.
    pub fn sign(&self, draft: Draft) -> Draft {
        let mut draft = draft
            .with(USERNAME, self.user.as_bytes())
            .with(REALM_ATTRIBUTE, REALM.as_bytes())
            .with(NONCE, &self.nonce);
        if self.sha256 {
            draft = draft.with(ALGORITHMS, &self.algorithms).with(ALGORITHM, &[0, 2, 0, 0]);
        }
        draft.sign(&self.key(), self.sha256)
    }

    /// Learns the nonce as the first request of every client does.
    pub fn greet(&mut self, world: &mut World) -> Reply {
        let bare = self.draft(ALLOCATE).with(UDP.0, UDP.1).0;
        let reply = world.exchange(&self.tuple, &bare).expect("a challenge");
        assert_eq!(reply.code(), 401);
        self.learn(&reply);
        reply
    }

    pub fn learn(&mut self, challenge: &Reply) {
        self.nonce = challenge.get(NONCE).unwrap().to_vec();
        self.algorithms = challenge.get(ALGORITHMS).unwrap().to_vec();
    }

    pub fn ask(&mut self, world: &mut World, draft: Draft) -> Reply {
        if self.nonce.is_empty() {
            self.greet(world);
        }
        let reply = world.exchange(&self.tuple, &self.sign(draft).0).expect("a reply");
        self.check_integrity(&reply);
        reply
    }

    /// Every answer that is no challenge carries the integrity of its request, and the foreign library finds it good.
    pub fn check_integrity(&self, reply: &Reply) {
        let signed = reply.has(INTEGRITY) || reply.has(INTEGRITY_SHA256);
        if [400, 401, 438].contains(&reply.code()) && !signed {
            return;
        }
        let oracle = stun_types::message::Message::from_bytes(&reply.bytes).unwrap();
        let key =
            stun_types::message::LongTermKeyCredentials::new(self.user.clone(), self.password.clone(), REALM.into());
        oracle.validate_integrity(&key.into()).expect("a good integrity");
        assert_eq!(self.sha256, reply.has(INTEGRITY_SHA256));
    }

    pub fn ask_with(&mut self, world: &mut World, method: u16, attributes: &[(u16, &[u8])]) -> Reply {
        let draft = self.draft(method);
        let draft = attributes
            .iter()
            .fold(draft, |draft, (kind, value)| draft.with(*kind, value));
        self.ask(world, draft)
    }

    pub fn allocate(&mut self, world: &mut World) -> SocketAddr {
        let reply = self.ask_with(world, ALLOCATE, &[UDP]);
        assert_eq!(reply.code(), 0);
        reply.relayed()
    }

    pub fn permit(&mut self, world: &mut World, peers: &[&str]) -> Reply {
        let draft = self.draft(PERMIT);
        let draft = peers
            .iter()
            .fold(draft, |draft, peer| draft.address(PEER, address(peer)));
        self.ask(world, draft)
    }

    pub fn bind(&mut self, world: &mut World, number: u16, peer: &str) -> Reply {
        let [n0, n1] = number.to_be_bytes();
        let draft = self
            .draft(BIND)
            .with(CHANNEL, &[n0, n1, 0, 0])
            .address(PEER, address(peer));
        self.ask(world, draft)
    }

    pub fn refresh(&mut self, world: &mut World, lifetime: u32) -> Reply {
        self.ask_with(world, REFRESH, &[(LIFETIME, &lifetime.to_be_bytes())])
    }

    pub fn send(&mut self, world: &mut World, peer: &str, data: &[u8]) -> Option<Packet> {
        let draft = self.draft(SEND).address(PEER, address(peer)).with(PAYLOAD, data);
        self.post(world, &draft.0)
    }

    pub fn channel_data(&mut self, world: &mut World, number: u16, data: &[u8]) -> Option<Packet> {
        self.post(world, &channel_data(number, data))
    }

    /// A packet that is never answered.
    pub fn post(&mut self, world: &mut World, bytes: &[u8]) -> Option<Packet> {
        let packet = world.packet(&self.tuple, bytes);
        assert!(world.replies.is_empty(), "an answer to what asks for none");
        packet
    }
}

pub fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), &(data.len() as u16).to_be_bytes(), data].concat()
}

/// An address, or an IP with a port of no meaning.
pub fn address(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| SocketAddr::new(text.parse().unwrap(), 1111))
}
