//! Clients of one server and their peers, played by one thread with two sockets.
//!
//! In: a server, how many clients. Out: clients with allocations and channels. Never: waits without repeating its request.
//!
//! The sockets are bound to 0.0.0.0, and each client and each peer is an address of 127/8 of its own: what a server sees are as many
//! five-tuples as there are clients, and what receives them is one queue, as a network card would be.

use crate::bare;
use crate::batch::{self, BATCH, Inbox, Outbox, Wish};
use crate::servers::{Kind, Server};
use crate::stun::{Ask, Key, Response, Transaction, request};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// Each client has one channel.
pub const CHANNEL: u16 = 0x4000;

/// Clients, and what one thread needs to play them.
pub struct Crowd {
    pub server: SocketAddrV4,
    pub kind: Kind,
    pub clients: Vec<Client>,
    pub client_socket: UdpSocket,
    pub peer_socket: UdpSocket,
    pub inbox: Inbox,
    pub outbox: Outbox,
    key: Key,
    first: u32,
    asked: u64,
}

#[derive(Clone)]
pub struct Client {
    pub address: Ipv4Addr,
    /// Its only peer, if no other client is.
    pub peer: SocketAddrV4,
    pub relayed: SocketAddrV4,
    nonce: Option<Vec<u8>>,
    /// The request without an answer.
    request: Vec<u8>,
    transaction: Transaction,
    sent: Instant,
}

impl Crowd {
    /// The `number`th crowd of a server.
    pub fn new(server: &Server, number: usize, clients: usize) -> Self {
        let socket = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
            for wish in [
                Wish::Destination,
                Wish::Arrival,
                Wish::Gro,
                Wish::ReceiveBuffer(64 << 20),
            ] {
                batch::set(&socket, wish).expect("Linux has this option since 5.0");
            }
            socket
        };
        let (client_socket, peer_socket) = (socket(), socket());
        let first = Ipv4Addr::new(127, 16 + number as u8, 0, 0).to_bits();
        let peer_port = peer_socket.local_addr().expect("it is bound").port();
        let peers = Ipv4Addr::new(127, 128 + number as u8, 0, 0).to_bits();
        let client = |place: u32| Client {
            address: Ipv4Addr::from(first + place),
            peer: SocketAddrV4::new(Ipv4Addr::from(peers + place), peer_port),
            relayed: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            nonce: None,
            request: Vec::new(),
            transaction: [0; 12],
            sent: Instant::now(),
        };
        Self {
            server: server.address,
            kind: server.kind,
            clients: (0..clients as u32).map(client).collect(),
            client_socket,
            peer_socket,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            key: Key::new(),
            first,
            asked: 0,
        }
    }

    /// All clients allocate, at most `at_once` of them at a time.
    pub fn allocate(&mut self, at_once: usize) {
        self.ask_all(|_| Ask::Allocate, at_once);
    }

    /// All clients bind their channel to their peer, or do it again so that it lives on.
    pub fn bind(&mut self, at_once: usize) {
        self.ask_all(|client| Ask::Bind(CHANNEL, client.peer), at_once);
    }

    /// Clients become each other's peers, two by two.
    pub fn pair(&mut self) {
        for pair in self.clients.chunks_exact_mut(2) {
            if let [one, other] = pair {
                (one.peer, other.peer) = (other.relayed, one.relayed);
            }
        }
    }

    fn ask_all(&mut self, ask: impl Fn(&Client) -> Ask, at_once: usize) {
        let deadline = Instant::now() + PATIENCE;
        let (mut next, mut done, mut looked) = (0, 0, Instant::now());
        let mut again: Vec<usize> = Vec::new();
        while done < self.clients.len() {
            while next < self.clients.len() && next - done < at_once && again.len() < BATCH {
                self.prepare(next, &ask);
                again.push(next);
                next += 1;
            }
            self.send(&mut again);
            let count = self.inbox.receive(&self.client_socket, 0);
            for place in 0..count {
                let Some((client, answer)) = self.answer(place) else {
                    continue;
                };
                let known = &mut self.clients[client];
                known.request.clear();
                match answer.error {
                    None => {
                        known.relayed = answer.relayed.unwrap_or(known.relayed);
                        done += 1;
                    }
                    Some(401 | 438) if answer.nonce.is_some() => {
                        known.nonce = answer.nonce;
                        self.prepare(client, &ask);
                        again.push(client);
                    }
                    Some(code) => panic!("{} answers {code}", self.kind.name()),
                }
            }
            if count == 0 {
                std::thread::yield_now();
            }
            if looked.elapsed() > PAUSE {
                looked = Instant::now();
                let waits = |client: &Client| !client.request.is_empty() && client.sent.elapsed() > REPEAT;
                again.extend((0..next).filter(|place| waits(&self.clients[*place])));
                assert!(
                    Instant::now() < deadline,
                    "{} answers {done} of {next} clients",
                    self.kind.name()
                );
            }
        }
    }

    fn prepare(&mut self, place: usize, ask: &impl Fn(&Client) -> Ask) {
        self.asked += 1;
        let client = &mut self.clients[place];
        client.transaction[..4].copy_from_slice(&(place as u32).to_be_bytes());
        client.transaction[4..].copy_from_slice(&self.asked.to_be_bytes());
        let ask = ask(client);
        client.request = match (self.kind, ask) {
            (Kind::Bare, Ask::Bind(_, peer)) => registration(peer),
            (Kind::Bare, _) => registration(client.peer),
            _ => request(ask, client.transaction, &self.key, client.nonce.as_deref()),
        };
    }

    fn send(&mut self, places: &mut Vec<usize>) {
        let now = Instant::now();
        for some in places.chunks(BATCH) {
            for place in some {
                self.clients[*place].sent = now;
            }
            let mut batch = self.outbox.batch();
            for place in some {
                let client = &self.clients[*place];
                batch.begin(self.server, Some(client.address));
                batch.part(&client.request);
            }
            batch.send(&self.client_socket);
        }
        places.clear();
    }

    /// An answer to the request that its client waits for.
    fn answer(&self, place: usize) -> Option<(usize, Response)> {
        let datagram = self.inbox.datagram(place);
        let number = datagram.destination.to_bits().checked_sub(self.first)? as usize;
        let client = self.clients.get(number).filter(|client| !client.request.is_empty())?;
        if let (Kind::Bare, &[bare::REGISTER, high, low]) = (self.kind, datagram.bytes) {
            let port = u16::from_be_bytes([high, low]);
            let answer = Response {
                transaction: client.transaction,
                error: None,
                nonce: None,
                relayed: Some(SocketAddrV4::new(*self.server.ip(), port)),
            };
            return Some((number, answer));
        }
        let answer = Response::read(datagram.bytes)?;
        (answer.transaction == client.transaction).then_some((number, answer))
    }
}

fn registration(peer: SocketAddrV4) -> Vec<u8> {
    let mut bytes = vec![bare::REGISTER];
    bytes.extend(peer.ip().octets());
    bytes.extend(peer.port().to_be_bytes());
    bytes
}

/// Between two looks for requests without an answer.
const PAUSE: Duration = Duration::from_millis(50);
/// RFC 8489 §6.2.1.
const REPEAT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(120);
