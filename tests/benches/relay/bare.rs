//! The bare forwarder: what a relay's sockets cost when nothing is decided.
//!
//! In: datagrams of registered clients and of their peers. Out: the same without, or with, four bytes in front; as they came where the
//! peer is another client, as the channels of both have one number here. Never: authenticates, expires, counts or limits anything. One listener and one thread per shard, one socket per client, epoll, recvmmsg and sendmmsg of 64,
//! GRO in, GSO out for equal datagrams of one batch to one destination, and one hash lookup per datagram received.

use crate::batch::{BATCH, Batch, Inbox, Outbox, Poll, Wish, bind_shared, set};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// First byte of a registration: `REGISTER`, peer's address (4), peer's port (2). The answer: `REGISTER`, relayed port (2).
pub const REGISTER: u8 = 0xB0;
/// Answered with itself: is it there?
pub const HELLO: u8 = 0xB1;
/// The channel of each client's only peer.
const CHANNEL: u16 = 0x4000;
const HEADER: usize = 4;
const BUFFER: i32 = 4 << 20;

/// Serves until its process is ended.
pub fn run(listen: SocketAddrV4, threads: usize) -> io::Result<()> {
    let forwarders = (0..threads)
        .map(|_| Forwarder::new(listen))
        .collect::<io::Result<Vec<_>>>()?;
    let running: Vec<_> = forwarders
        .into_iter()
        .map(|mut forwarder| std::thread::spawn(move || forwarder.serve()))
        .collect();
    for thread in running {
        let ended = thread.join().map_err(|_| io::Error::other("a thread has panicked"))?;
        ended?;
    }
    Ok(())
}

struct Forwarder {
    listen: SocketAddrV4,
    listener: UdpSocket,
    poll: Poll,
    relays: Vec<Relay>,
    relay_by_client: HashMap<SocketAddrV4, usize>,
    relay_by_peer: HashMap<(usize, SocketAddrV4), usize>,
    relay_by_port: HashMap<u16, usize>,
}

struct Relay {
    socket: UdpSocket,
    client: SocketAddrV4,
    peer: SocketAddrV4,
    /// The client behind `peer`, if that is a relay of this forwarder.
    within: Option<SocketAddrV4>,
}

impl Forwarder {
    fn new(listen: SocketAddrV4) -> io::Result<Self> {
        let listener = bind_shared(listen)?;
        for wish in [Wish::Gro, Wish::ReceiveBuffer(BUFFER), Wish::SendBuffer(BUFFER)] {
            set(&listener, wish)?;
        }
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER)?;
        Ok(Self {
            listen,
            listener,
            poll,
            relays: Vec::new(),
            relay_by_client: HashMap::new(),
            relay_by_peer: HashMap::new(),
            relay_by_port: HashMap::new(),
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut inbox = Inbox::new();
        let mut outbox = Outbox::new();
        let headers: Vec<[u8; HEADER]> = (0..=u16::MAX).map(channel_data).collect();
        let mut arrived = Vec::new();
        // The relay of each datagram in the inbox that waits to be sent to its client.
        let mut waiting = Vec::with_capacity(BATCH);
        let mut is_more = false;
        loop {
            arrived.clear();
            arrived.extend(self.poll.wait(!is_more));
            if is_more || arrived.contains(&LISTENER) {
                let count = inbox.receive(&self.listener, 0);
                is_more = count == BATCH;
                self.send_to_peers(&inbox, count, &mut outbox)?;
            }
            for relay in arrived.iter().filter(|token| **token != LISTENER) {
                let relay = *relay as usize;
                loop {
                    let free = BATCH - waiting.len();
                    let count = inbox.receive(&self.relays[relay].socket, waiting.len());
                    waiting.extend(std::iter::repeat_n(relay, count));
                    if waiting.len() == BATCH {
                        self.send_to_clients(&inbox, &mut waiting, &mut outbox, &headers);
                    }
                    if count < free {
                        break;
                    }
                }
            }
            self.send_to_clients(&inbox, &mut waiting, &mut outbox, &headers);
        }
    }

    fn send_to_peers(&mut self, inbox: &Inbox, count: usize, outbox: &mut Outbox) -> io::Result<()> {
        let mut batch = outbox.batch();
        let mut run = Run::default();
        // The socket of what is in the batch.
        let mut through = None;
        for place in 0..count {
            let datagram = inbox.datagram(place);
            let to = self.relay_by_client.get(&datagram.source).copied();
            let Some(to) = to.filter(|_| datagram.bytes.len() != REGISTRATION) else {
                self.register(datagram.source, datagram.bytes, to)?;
                continue;
            };
            let relay = &self.relays[to];
            let (socket, to, skipped) = match relay.within {
                Some(client) => (LISTENER, client, 0),
                None => (to as u64, relay.peer, HEADER),
            };
            if through != Some(socket) {
                run.end(&mut batch);
                if let Some(before) = through.replace(socket) {
                    batch.send(self.socket(before));
                    batch = outbox.batch();
                }
            }
            for segment in datagram.segments() {
                let payload = segment.get(skipped..).unwrap_or_default();
                if !run.continues(to, payload.len()) {
                    run.end(&mut batch);
                    run.begin(to, payload.len(), &mut batch);
                }
                batch.part(payload);
            }
        }
        run.end(&mut batch);
        if let Some(through) = through {
            batch.send(self.socket(through));
        }
        Ok(())
    }

    fn socket(&self, token: u64) -> &UdpSocket {
        match token {
            LISTENER => &self.listener,
            relay => &self.relays[relay as usize].socket,
        }
    }

    fn send_to_clients(&self, inbox: &Inbox, waiting: &mut Vec<usize>, outbox: &mut Outbox, headers: &[[u8; HEADER]]) {
        let mut batch = outbox.batch();
        let mut run = Run::default();
        for (place, relay) in waiting.drain(..).enumerate() {
            let datagram = inbox.datagram(place);
            let Some(to) = self.relay_by_peer.get(&(relay, datagram.source)) else {
                continue;
            };
            let client = self.relays[*to].client;
            for segment in datagram.segments() {
                if !run.continues(client, segment.len() + HEADER) {
                    run.end(&mut batch);
                    run.begin(client, segment.len() + HEADER, &mut batch);
                }
                batch.part(&headers[segment.len()]);
                batch.part(segment);
            }
        }
        run.end(&mut batch);
        batch.send(&self.listener);
    }

    fn register(&mut self, client: SocketAddrV4, bytes: &[u8], known: Option<usize>) -> io::Result<()> {
        let &[REGISTER, a, b, c, d, high, low] = bytes else {
            self.listener.send_to(&[HELLO], client)?;
            return Ok(());
        };
        let peer = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]));
        let place = match known {
            Some(place) => place,
            None => {
                let socket = UdpSocket::bind(SocketAddrV4::new(*self.listen.ip(), 0))?;
                for wish in [Wish::Gro, Wish::ReceiveBuffer(BUFFER)] {
                    set(&socket, wish)?;
                }
                let place = self.relays.len();
                self.poll.add(&socket, place as u64)?;
                self.relay_by_client.insert(client, place);
                self.relay_by_port.insert(socket.local_addr()?.port(), place);
                self.relays.push(Relay {
                    socket,
                    client,
                    peer,
                    within: None,
                });
                place
            }
        };
        let other = self.relay_by_port.get(&peer.port());
        let other = other.filter(|_| peer.ip() == self.listen.ip());
        self.relays[place].within = other.map(|other| self.relays[*other].client);
        self.relays[place].peer = peer;
        self.relay_by_peer.insert((place, peer), place);
        let [high, low] = self.relays[place].socket.local_addr()?.port().to_be_bytes();
        self.listener.send_to(&[REGISTER, high, low], client)?;
        Ok(())
    }
}

/// Datagrams of one size to one destination, on their way to be one call to the kernel.
#[derive(Default)]
struct Run {
    to: Option<SocketAddrV4>,
    size: usize,
    count: usize,
    is_closed: bool,
}

impl Run {
    fn continues(&mut self, to: SocketAddrV4, size: usize) -> bool {
        let fits = self.to == Some(to)
            && !self.is_closed
            && size <= self.size
            && self.count < SEGMENTS
            && (self.count + 1) * self.size <= MAX_DATAGRAM;
        if fits {
            self.count += 1;
            self.is_closed = size < self.size;
        }
        fits
    }

    fn begin(&mut self, to: SocketAddrV4, size: usize, batch: &mut Batch<'_, '_>) {
        *self = Self {
            to: Some(to),
            size,
            count: 1,
            is_closed: size == 0,
        };
        batch.begin(to, None);
    }

    fn end(&mut self, batch: &mut Batch<'_, '_>) {
        if self.count > 1 {
            batch.split(self.size);
        }
        *self = Self::default();
    }
}

fn channel_data(length: u16) -> [u8; HEADER] {
    let ([a, b], [c, d]) = (CHANNEL.to_be_bytes(), length.to_be_bytes());
    [a, b, c, d]
}

const REGISTRATION: usize = 7;
const LISTENER: u64 = u64::MAX;
/// The kernel's own bound was 64 until 2023.
const SEGMENTS: usize = 64;
const MAX_DATAGRAM: usize = 65_000;
