//! From request to answer, for each message that a client sends before a call stands.
//!
//! In: two servers, how many clients. Out: p50 and p99 of each message. Never: two requests under way, or an allocation that stays behind.

use crate::servers::{Kind, LIFTED, Place, Server};
use crate::stun::{Ask, Key, Response, request};
use crate::{BOTH, batch, report};
use report::{Goal, percentile};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// Microseconds, the middle of all.
const GOAL: f64 = 200.0;
/// Clients that only make everything warm.
const WARM: usize = 100;
const PATIENCE: Duration = Duration::from_secs(5);
/// Nothing listens there: permissions and channels ask for no answer.
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 128, 0, 1), 9_999);

/// What is asked, in the order of a call.
const MESSAGES: [&str; 6] = [
    "Binding",
    "Allocate, not signed (401)",
    "Allocate",
    "CreatePermission",
    "ChannelBind",
    "Refresh",
];

pub fn measure(place: &Place, players: &[usize], clients: usize) {
    report::note(&format!(
        "answers: {clients} clients of each, one request at a time, from send to recv; our limits that are lifted: {}",
        LIFTED.replace('\n', ", ")
    ));
    let servers = BOTH.map(|kind| place.start(kind));
    // The client must not run where the servers do.
    let mut times = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            batch::pin(players);
            let mut times: [[Vec<Duration>; MESSAGES.len()]; 2] = Default::default();
            for number in 0..WARM + clients {
                for step in 0..servers.len() {
                    let at = (number + step) % servers.len();
                    let took = ask_all(&servers[at], number);
                    if number >= WARM {
                        times[at].iter_mut().zip(took).for_each(|(all, one)| all.push(one));
                    }
                }
            }
            times
        });
        asking.join().expect("the client does not panic")
    });
    let mut of = |kind: Kind, message: usize, share| {
        let at = BOTH.iter().position(|one| *one == kind).unwrap_or_default();
        percentile(&mut times[at][message], share).as_secs_f64() * 1e6
    };
    for (message, name) in MESSAGES.iter().enumerate() {
        let mut line = |what: &str, share, goal| {
            report::figure(
                &format!("calls: {name}, request to answer, {what}"),
                of(Kind::Ours, message, share),
                "us",
                goal,
                &[("coturn", of(Kind::Coturn, message, share))],
            );
        };
        line("p50", 500, Goal::AtMost(GOAL));
        line("p99", 990, Goal::None);
    }
}

/// One client from its first question to the end of its allocation.
fn ask_all(server: &Server, number: usize) -> [Duration; MESSAGES.len()] {
    // Each at an address of its own: coturn still knows a five-tuple for a while after its end, so who is given a port again would be
    // answered with 437.
    let address = Ipv4Addr::from(Ipv4Addr::new(127, 16, 0, 0).to_bits() + number as u32);
    let mut client = Client::new(server, address);
    let binding = client.asks(Ask::Binding, None);
    let stranger = client.asks(Ask::Allocate, Some(401));
    let allocate = client.asks(Ask::Allocate, None);
    let permission = client.asks(Ask::Permit(PEER), None);
    let channel = client.asks(Ask::Bind(crate::clients::CHANNEL, PEER), None);
    let refresh = client.asks(Ask::Refresh(600), None);
    client.asks(Ask::Refresh(0), None);
    [binding, stranger, allocate, permission, channel, refresh]
}

struct Client {
    socket: UdpSocket,
    kind: Kind,
    key: Key,
    nonce: Option<Vec<u8>>,
    asked: u64,
}

impl Client {
    fn new(server: &Server, address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 0)).expect("a port is free");
        socket.connect(server.address).expect("the loopback leads there");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        Self {
            socket,
            kind: server.kind,
            key: Key::new(),
            nonce: None,
            asked: 0,
        }
    }

    /// How long the answer took, which must be this error, or a success.
    fn asks(&mut self, ask: Ask, error: Option<u16>) -> Duration {
        self.asked += 1;
        let mut transaction = [0x5A; 12];
        transaction[4..].copy_from_slice(&self.asked.to_be_bytes());
        let nonce = self.nonce.as_deref().filter(|_| ask != Ask::Binding);
        let question = request(ask, transaction, &self.key, nonce);
        let mut answer = [0; 1_500];
        let sent = Instant::now();
        self.socket.send(&question).expect("the server listens");
        let length = self.socket.recv(&mut answer);
        let took = sent.elapsed();
        let length = length.unwrap_or_else(|fault| panic!("{} does not answer {ask:?}: {fault}", self.kind.name()));
        let answer = Response::read(&answer[..length]).expect("an answer is STUN");
        assert_eq!(
            (answer.error, answer.transaction),
            (error, transaction),
            "{} to {ask:?}",
            self.kind.name()
        );
        self.nonce = answer.nonce.or(self.nonce.take());
        took
    }
}
