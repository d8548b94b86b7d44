//! A TURN client that blocks, holds nothing back, and forgives nothing.
//!
//! In: one socket to a relay, over UDP, TCP or TLS; who it says it is. Out: requests as told, good or bad, and everything that comes
//! back, one packet at a time. Never: sends what it was not told to, or repeats it.

use super::stun::{
    Answer, Builder, Integrity, Key, attribute, channel_data, hmac_sha1, hmac_sha256, kind, random, read_channel_data,
    sha256,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long something that must come is waited for: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What never comes is waited for so long where no later answer can prove that it did not come.
pub const QUIET: Duration = Duration::from_millis(300);

/// A socket to a relay.
pub enum Link {
    Udp(UdpSocket),
    Stream { stream: Stream, buffer: Vec<u8> },
}

pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Link {
    /// A connected socket.
    pub fn udp(socket: UdpSocket, server: SocketAddr) -> io::Result<Self> {
        socket.connect(server)?;
        Ok(Self::Udp(socket))
    }

    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Stream {
            stream: Stream::Tcp(stream),
            buffer: Vec::new(),
        })
    }

    /// The handshake is done with the first byte sent.
    pub fn tls(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Self::Stream {
            stream: Stream::Tls(Box::new(StreamOwned::new(connection, stream))),
            buffer: Vec::new(),
        })
    }

    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream { .. })
    }

    pub fn local(&self) -> SocketAddr {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Stream { stream, .. } => stream.tcp().local_addr(),
        }
        .expect("a connected socket has an address")
    }

    /// As it is: over a stream these bytes need not be a frame.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(bytes).map(|_| ()),
            Self::Stream { stream, .. } => stream.write(bytes),
        }
    }

    /// One datagram, or one frame of a stream; `None` if nothing comes or the stream has ended.
    pub fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Self::Stream { buffer, .. } = self
                && let Some(frame) = take_frame(buffer)
            {
                return Some(frame);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut room = vec![0; 70_000];
            match self {
                Self::Udp(socket) => {
                    socket.set_read_timeout(Some(left)).ok()?;
                    match socket.recv(&mut room) {
                        Ok(length) => return Some(room[..length].to_vec()),
                        // A port that is closed says so by ICMP; that is not a packet.
                        Err(fault) if is_nothing(&fault) => {}
                        Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => return None,
                        Err(fault) => panic!("a socket of the test: {fault}"),
                    }
                }
                Self::Stream { stream, buffer } => match stream.read(&mut room, left) {
                    Err(fault) if is_nothing(&fault) => {}
                    Ok(0) | Err(_) => return None,
                    Ok(length) => buffer.extend_from_slice(&room[..length]),
                },
            }
        }
    }

    /// Waits until the other side has ended the stream; what it says before is thrown away. `false` if it does not in time.
    pub fn has_ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let Self::Stream { stream, .. } = self else {
            return false;
        };
        let mut room = [0; 4096];
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match stream.read(&mut room, left) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(fault) if is_nothing(&fault) => {}
                Err(fault) => return !matches!(fault.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
        false
    }
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn read(&mut self, room: &mut [u8], patience: Duration) -> io::Result<usize> {
        self.tcp()
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        match self {
            Self::Tcp(stream) => stream.read(room),
            Self::Tls(stream) => stream.read(room),
        }
    }
}

/// What a socket says that is neither a packet nor an end: a signal of the process, or ICMP about what was sent.
fn is_nothing(fault: &io::Error) -> bool {
    matches!(
        fault.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
    )
}

/// RFC 8656 §12.5, RFC 8489 §6.2.2: both kinds say their length.
fn take_frame(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [first, _, l0, l1] = *buffer.first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let length = match first {
        0x40..0x80 => 4 + length.next_multiple_of(4),
        _ => 20 + length,
    };
    (buffer.len() >= length).then(|| buffer.drain(..length).collect())
}

/// Who a client says it is.
#[derive(Clone, Debug)]
pub struct Who {
    pub user: String,
    pub password: String,
    pub login: Login,
}

/// How a client proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// RFC 5389: MD5 and HMAC-SHA1, no list of algorithms.
    Md5,
    /// RFC 8489 with SHA-256 both times.
    Sha256,
    /// And with the name hashed.
    UserHash,
}

impl Who {
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            login: Login::Md5,
        }
    }

    pub fn with(mut self, login: Login) -> Self {
        self.login = login;
        self
    }

    /// The password that a timed secret gives to this name, with HMAC-SHA1.
    pub fn timed(user: &str, secret: &str) -> Self {
        Self::new(user, &STANDARD.encode(hmac_sha1(secret.as_bytes(), user.as_bytes())))
    }

    /// And with HMAC-SHA256.
    pub fn timed_sha256(user: &str, secret: &str) -> Self {
        Self::new(user, &STANDARD.encode(hmac_sha256(secret.as_bytes(), user.as_bytes())))
    }

    pub fn key(&self, realm: &str) -> Key {
        match self.login {
            Login::Md5 => Key::md5(&self.user, realm, &self.password),
            Login::Sha256 | Login::UserHash => Key::sha256(&self.user, realm, &self.password),
        }
    }

    pub fn integrity(&self) -> Integrity {
        match self.login {
            Login::Md5 => Integrity::Sha1,
            Login::Sha256 | Login::UserHash => Integrity::Sha256,
        }
    }
}

/// One packet from a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A Data indication with data.
    Data {
        peer: SocketAddr,
        data: Vec<u8>,
    },
    /// A Data indication that tells of an ICMP error: type, code, and the data.
    Icmp {
        peer: SocketAddr,
        icmp: Vec<u8>,
    },
    Channel(u16, Vec<u8>),
    Answer(Answer),
    /// Neither, or badly made.
    Other(Vec<u8>),
}

impl Packet {
    fn read(bytes: Vec<u8>) -> Self {
        if let Some((channel, data)) = read_channel_data(&bytes) {
            return Self::Channel(channel, data.to_vec());
        }
        let Ok(answer) = Answer::parse(&bytes) else {
            return Self::Other(bytes);
        };
        if answer.message_type != kind::DATA_INDICATION {
            return Self::Answer(answer);
        }
        match (
            answer.address(attribute::XOR_PEER_ADDRESS),
            answer.get(attribute::DATA),
            answer.get(attribute::ICMP),
        ) {
            (Some(peer), Some(data), None) => Self::Data {
                peer,
                data: data.to_vec(),
            },
            (Some(peer), None, Some(icmp)) => Self::Icmp {
                peer,
                icmp: icmp.to_vec(),
            },
            _ => Self::Other(bytes),
        }
    }
}

pub struct Client {
    pub link: Link,
    pub who: Who,
    pub realm: String,
    pub nonce: Vec<u8>,
    /// The list that the server sent, to be sent back.
    pub algorithms: Vec<u8>,
    patience: Duration,
    waiting: VecDeque<Packet>,
}

impl Client {
    pub fn new(link: Link, who: Who, patience: Duration) -> Self {
        Self {
            link,
            who,
            patience,
            realm: String::new(),
            nonce: Vec::new(),
            algorithms: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    pub fn local(&self) -> SocketAddr {
        self.link.local()
    }

    pub fn key(&self) -> Key {
        self.who.key(&self.realm)
    }

    /// The next packet that comes, or came while an answer was awaited.
    #[expect(clippy::should_implement_trait, reason = "nobody iterates over what has no end")]
    pub fn next(&mut self) -> Option<Packet> {
        self.next_within(self.patience)
    }

    pub fn next_within(&mut self, patience: Duration) -> Option<Packet> {
        match self.waiting.pop_front() {
            Some(packet) => Some(packet),
            None => self.link.receive(patience).map(Packet::read),
        }
    }

    /// Sends a request as it is, and gives its answer. What else comes meanwhile is kept.
    pub fn ask(&mut self, request: &[u8]) -> Option<Answer> {
        self.ask_within(request, self.patience)
    }

    pub fn ask_within(&mut self, request: &[u8], patience: Duration) -> Option<Answer> {
        self.link.send(request).ok()?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            match Packet::read(self.link.receive(left)?) {
                Packet::Answer(answer) if request.get(8..20) == Some(&answer.transaction) => return Some(answer),
                packet => self.waiting.push_back(packet),
            }
        }
    }

    /// Sends bytes that must not be answered, then a Binding request. `Err` is what came before that one's answer: a relay answers one
    /// client's packets in order.
    pub fn stays_silent_to(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.link.send(bytes).map_err(|fault| fault.to_string())?;
        self.is_silent()
    }

    /// Whether nothing has come, up to the answers to two Binding requests that are sent now, one after the other: what a relay was
    /// about to do when it read the first is done when it reads the second.
    pub fn is_silent(&mut self) -> Result<(), String> {
        self.answers_next().and_then(|()| self.answers_next())
    }

    fn answers_next(&mut self) -> Result<(), String> {
        let sentinel = Builder::new(kind::BINDING);
        let transaction = sentinel.transaction();
        self.link.send(&sentinel.build()).map_err(|fault| fault.to_string())?;
        let mut before = Ok(());
        loop {
            match self.next() {
                Some(Packet::Answer(answer)) if answer.transaction == transaction => return before,
                Some(other) => before = before.and_then(|()| Err(format!("came {}", describe(&other)))),
                None => return Err("not even the request behind it was answered".to_owned()),
            }
        }
    }

    /// Fetches realm and nonce with a request that nobody signed.
    pub fn challenge(&mut self) -> Option<Answer> {
        let request = Builder::new(kind::ALLOCATE)
            .attribute(attribute::REQUESTED_TRANSPORT, UDP)
            .build();
        let answer = self.ask(&request)?;
        self.learn(&answer);
        Some(answer)
    }

    /// Takes realm, nonce and algorithms over from a 401 or 438.
    pub fn learn(&mut self, answer: &Answer) {
        if let Some(realm) = answer.get(attribute::REALM) {
            self.realm = String::from_utf8_lossy(realm).into_owned();
        }
        if let Some(nonce) = answer.get(attribute::NONCE) {
            self.nonce = nonce.to_vec();
        }
        if let Some(algorithms) = answer.get(attribute::PASSWORD_ALGORITHMS) {
            self.algorithms = algorithms.to_vec();
        }
    }

    /// With name, realm and nonce, but no integrity yet.
    pub fn named(&self, builder: Builder) -> Builder {
        let builder = match self.who.login {
            Login::Md5 | Login::Sha256 => builder.attribute(attribute::USERNAME, &self.who.user),
            Login::UserHash => builder.attribute(
                attribute::USERHASH,
                sha256(format!("{}:{}", self.who.user, self.realm).as_bytes()),
            ),
        };
        let builder = builder
            .attribute(attribute::REALM, &self.realm)
            .attribute(attribute::NONCE, &self.nonce);
        match self.who.login {
            Login::Md5 => builder,
            Login::Sha256 | Login::UserHash => builder
                .attribute(attribute::PASSWORD_ALGORITHMS, &self.algorithms)
                .attribute(attribute::PASSWORD_ALGORITHM, [0, 2, 0, 0]),
        }
    }

    pub fn signed(&self, builder: Builder) -> Builder {
        self.named(builder).integrity_with(&self.key(), self.who.integrity())
    }

    /// Signs and sends; fetches a nonce first if there is none, and once more if it has gone stale. `None` is silence.
    pub fn request(&mut self, message_type: u16, content: impl Fn(Builder) -> Builder) -> Option<Answer> {
        if self.nonce.is_empty() {
            self.challenge()?;
        }
        let answer = self.ask(&self.signed(content(Builder::new(message_type))).build())?;
        if answer.code() != Some(438) {
            return Some(answer);
        }
        self.learn(&answer);
        self.ask(&self.signed(content(Builder::new(message_type))).build())
    }

    /// The number of the answer: 0 for success, an error code, or [`SILENCE`].
    pub fn outcome(&mut self, message_type: u16, content: impl Fn(Builder) -> Builder) -> u16 {
        self.request(message_type, content)
            .map_or(SILENCE, |answer| answer.outcome())
    }

    pub fn allocate_with(&mut self, content: impl Fn(Builder) -> Builder) -> Option<Answer> {
        self.request(kind::ALLOCATE, |builder| {
            content(builder.attribute(attribute::REQUESTED_TRANSPORT, UDP))
        })
    }

    /// An IPv4 allocation over UDP; its relayed address.
    ///
    /// # Panics
    /// If there is none.
    pub fn allocate(&mut self) -> SocketAddr {
        let answer = self.allocate_with(|builder| builder).expect("an Allocate is answered");
        answer
            .address(attribute::XOR_RELAYED_ADDRESS)
            .unwrap_or_else(|| panic!("no allocation: {}", answer.outcome()))
    }

    /// An IPv6 allocation.
    ///
    /// # Panics
    /// If there is none.
    pub fn allocate_v6(&mut self) -> SocketAddr {
        let answer = self.allocate_with(|builder| builder.attribute(attribute::REQUESTED_ADDRESS_FAMILY, [2, 0, 0, 0]));
        let answer = answer.expect("an Allocate is answered");
        answer
            .address(attribute::XOR_RELAYED_ADDRESS)
            .unwrap_or_else(|| panic!("no allocation: {}", answer.outcome()))
    }

    pub fn refresh(&mut self, lifetime: u32) -> Option<Answer> {
        self.request(kind::REFRESH, |builder| {
            builder.attribute(attribute::LIFETIME, lifetime.to_be_bytes())
        })
    }

    pub fn permit(&mut self, peer: SocketAddr) -> u16 {
        self.outcome(kind::CREATE_PERMISSION, |builder| {
            builder.address(attribute::XOR_PEER_ADDRESS, peer)
        })
    }

    pub fn bind(&mut self, channel: u16, peer: SocketAddr) -> u16 {
        self.outcome(kind::CHANNEL_BIND, |builder| bound(builder, channel, peer))
    }

    /// # Panics
    /// If the socket is gone.
    pub fn send_to(&mut self, peer: SocketAddr, data: &[u8]) {
        self.link
            .send(&send_indication(peer, data))
            .expect("the socket takes it");
    }

    /// # Panics
    /// If the socket is gone.
    pub fn send_on(&mut self, channel: u16, data: &[u8]) {
        let is_stream = self.link.is_stream();
        self.link
            .send(&channel_data(channel, data, is_stream))
            .expect("the socket takes it");
    }
}

/// REQUESTED-TRANSPORT: the number of UDP.
pub const UDP: [u8; 4] = [17, 0, 0, 0];
/// The outcome of a request that nobody answers.
pub const SILENCE: u16 = 999;

pub fn bound(builder: Builder, channel: u16, peer: SocketAddr) -> Builder {
    let [n0, n1] = channel.to_be_bytes();
    builder
        .attribute(attribute::CHANNEL_NUMBER, [n0, n1, 0, 0])
        .address(attribute::XOR_PEER_ADDRESS, peer)
}

pub fn send_indication(peer: SocketAddr, data: &[u8]) -> Vec<u8> {
    Builder::new(kind::SEND_INDICATION)
        .address(attribute::XOR_PEER_ADDRESS, peer)
        .attribute(attribute::DATA, data)
        .build()
}

/// What came, in a few words for whoever reads a failed test.
pub fn describe(packet: &Packet) -> String {
    match packet {
        Packet::Answer(answer) => format!("message {:#06x}, outcome {}", answer.message_type, answer.outcome()),
        Packet::Data { peer, data } => format!("{} bytes of data from {peer}", data.len()),
        Packet::Icmp { peer, icmp } => format!("ICMP {icmp:?} about {peer}"),
        Packet::Channel(channel, data) => format!("{} bytes on channel {channel:#06x}", data.len()),
        Packet::Other(bytes) => format!("{} bytes that are nothing", bytes.len()),
    }
}

/// One packet at a peer: where it came from, and what it is.
pub fn arrived(peer: &UdpSocket, patience: Duration) -> Option<(SocketAddr, Vec<u8>)> {
    let mut room = vec![0; 70_000];
    peer.set_read_timeout(Some(patience)).ok()?;
    loop {
        match peer.recv_from(&mut room) {
            Ok((length, from)) => return Some((from, room[..length].to_vec())),
            Err(fault) if is_nothing(&fault) => {}
            Err(_) => return None,
        }
    }
}

/// A payload that occurs nowhere else.
pub fn payload() -> Vec<u8> {
    random::<24>().to_vec()
}
