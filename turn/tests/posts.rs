//! Frames for clients of streams, many at once, of a plane whose streams are this test.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod net;

use net::world::{ALLOCATE, BIND, CHANNEL, Client, Draft, PEER, Reply, UDP, USERS, channel_data};
use net::{PATIENCE, receive, send_burst, settings};
use quietline_shared::redact::Secret;
use quietline_turn::plane::{Clock, Loss, Parts, Plane, token};
use quietline_turn::sockets::{Buffers, listen_udp};
use quietline_turn::sys::{Epoll, Events};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use turn_core::auth::{NONCE_EPOCH, Nonces};
use turn_core::control::{Limits, Shared};
use turn_core::peers::{RELAY_PORTS, RelayAddress, RelayTable};
use turn_core::wire::Transport;

/// A plane that does nothing unless it is told to, and what it handed out.
struct Still {
    plane: Plane,
    events: Events,
    server: SocketAddr,
    /// Where callers and peers are. Not where the relay is: there only relayed ports are peers.
    elsewhere: IpAddr,
    frames: Vec<Vec<u8>>,
}

impl Still {
    fn new() -> Self {
        static HOSTS: AtomicU8 = AtomicU8::new(1);
        let (process, host) = (std::process::id(), HOSTS.fetch_add(1, Ordering::Relaxed));
        let [own, elsewhere] = [250, 251].map(|net| IpAddr::from([127, (process % 250) as u8 + 1, net, host]));
        let relay = RelayAddress {
            bind: own,
            advertised: own,
        };
        let relays = RelayTable::new(vec![relay], RELAY_PORTS).unwrap();
        let listener = listen_udp(SocketAddr::new(own, 0), Buffers::default(), false).unwrap();
        let server = listener.local_addr().unwrap().as_socket().unwrap();
        let nonces = Nonces::new(Secret::new([7; 32]), NONCE_EPOCH);
        let plane = Plane::new(Parts {
            shard: 0,
            settings: settings(USERS, Limits::default(), &relays),
            shared: Arc::new(Shared::new(relays, nonces, [3, 4])),
            epoll: Epoll::new().unwrap(),
            listeners: vec![listener.into()],
            clock: Clock::new(Instant::now()),
        });
        Self {
            plane,
            events: Events::new(16),
            server,
            elsewhere,
            frames: Vec::new(),
        }
    }

    fn host(&self) -> UdpSocket {
        let socket = UdpSocket::bind((self.elsewhere, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn datagram_caller(&self) -> Caller {
        let socket = self.host();
        Caller {
            client: Client::new(&socket.local_addr().unwrap().to_string()),
            socket: Some(socket),
        }
    }

    fn ask(&mut self, caller: &mut Caller, draft: Draft) -> Reply {
        if caller.client.nonce.is_empty() {
            let bare = caller.client.draft(ALLOCATE).with(UDP.0, UDP.1);
            let challenge = self.exchange(caller, &bare.0);
            caller.client.learn(&challenge);
        }
        let signed = caller.client.sign(draft);
        let reply = self.exchange(caller, &signed.0);
        assert_eq!(reply.code(), 0);
        reply
    }

    /// The plane does not ask how a request came to it, but an answer goes to where the client is.
    fn exchange(&mut self, caller: &Caller, request: &[u8]) -> Reply {
        self.plane.handle_frame(&caller.client.tuple, request);
        self.plane.flush();
        hand_out(&mut self.plane, &mut self.frames);
        let reply = match &caller.socket {
            Some(socket) => receive(socket).0,
            None => self.frames.pop().unwrap(),
        };
        Reply::read(&reply)
    }

    fn allocate(&mut self, caller: &mut Caller) -> SocketAddr {
        let draft = caller.client.draft(ALLOCATE).with(UDP.0, UDP.1);
        self.ask(caller, draft).relayed()
    }

    fn bind(&mut self, caller: &mut Caller, number: u16, peer: SocketAddr) {
        let [n0, n1] = number.to_be_bytes();
        let draft = caller.client.draft(BIND).with(CHANNEL, &[n0, n1, 0, 0]);
        self.ask(caller, draft.address(PEER, peer));
    }

    /// One round, as a shard makes it, until so many frames were handed out; everything that has arrived is in the first.
    fn run_until(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.frames.len() < count {
            assert!(Instant::now() < deadline, "{} frames", self.frames.len());
            assert_eq!(self.plane.losses().iter().count(), 0);
            self.plane.wait(&mut self.events).unwrap();
            let frames = &mut self.frames;
            self.plane.handle_listener(0, &mut |plane| hand_out(plane, frames));
            hand_out(&mut self.plane, frames);
            for at in 0..self.events.len() {
                let (event, ready) = self.events.get(at).unwrap();
                assert_eq!(event & token::KIND, token::RELAY);
                let frames = &mut self.frames;
                self.plane
                    .handle_relay(event as u32, ready, &mut |plane| hand_out(plane, frames));
                hand_out(&mut self.plane, frames);
            }
            self.plane.flush();
        }
        assert_eq!(self.plane.losses().count(Loss::StreamQueueFull), 0);
    }
}

/// Over a stream, if there is no socket.
struct Caller {
    client: Client,
    socket: Option<UdpSocket>,
}

impl Caller {
    fn over_a_stream() -> Self {
        Self {
            client: Client::over("127.0.0.1:4000", Transport::Tcp),
            socket: None,
        }
    }
}

fn hand_out(plane: &mut Plane, frames: &mut Vec<Vec<u8>>) {
    while let Some(posts) = plane.take_posts() {
        frames.extend(posts.iter().map(|(_, frame)| frame.to_vec()));
        plane.give_back(posts);
    }
}

/// So many at once that a kernel keeps in one piece, and as many of them as a socket has room for: more frames than may wait for streams.
const TOGETHER: usize = 64;
const BURSTS: usize = 40;

fn payload(burst: usize, number: usize) -> Vec<u8> {
    [burst as u8, number as u8].repeat(8)
}

fn burst(number: usize, framed: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<Vec<u8>> {
    (0..TOGETHER).map(|at| framed(payload(number, at))).collect()
}

fn expected() -> Vec<Vec<u8>> {
    let all = (0..BURSTS).flat_map(|number| burst(number, |payload| channel_data(0x4002, &payload)));
    all.collect()
}

#[test]
fn packets_of_a_datagram_client_for_a_stream_all_pass_however_many_came_at_once() {
    let mut still = Still::new();
    let (mut alice, mut bob) = (still.datagram_caller(), Caller::over_a_stream());
    let (ra, rb) = (still.allocate(&mut alice), still.allocate(&mut bob));
    still.bind(&mut alice, 0x4001, rb);
    still.bind(&mut bob, 0x4002, ra);
    for number in 0..BURSTS {
        let frames = burst(number, |payload| channel_data(0x4001, &payload));
        send_burst(alice.socket.as_ref().unwrap(), still.server, &frames);
    }
    still.run_until(BURSTS * TOGETHER);
    assert!(still.frames == expected());
}

#[test]
fn packets_of_a_peer_for_a_stream_all_pass_however_many_came_at_once() {
    let mut still = Still::new();
    let (mut bob, peer) = (Caller::over_a_stream(), still.host());
    let relayed = still.allocate(&mut bob);
    still.bind(&mut bob, 0x4002, peer.local_addr().unwrap());
    for number in 0..BURSTS {
        send_burst(&peer, relayed, &burst(number, |payload| payload));
    }
    still.run_until(BURSTS * TOGETHER);
    assert!(still.frames == expected());
}
