//! A table with real sockets and a clock of its own: hours of streams in milliseconds.

use super::super::seats::Seats;
use super::super::tls::server_config;
use super::*;
use crate::sys::{Events, Ticker, Watch};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;
use turn_core::wire::{ChannelData, ChannelNumber, Class, Method, TransactionId, Writer};

const TOKENS: Tokens = Tokens {
    listeners: 1 << 32,
    streams: 0,
};
const TICK: u64 = 2 << 32;
/// Of a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shard of streams alone. What would be its server takes frames down, and answers each with what the test says.
struct Room {
    table: Table,
    epoll: Epoll,
    watch: Watch,
    ticker: Ticker,
    events: Events,
    address: SocketAddr,
    now: Duration,
    frames: Vec<Vec<u8>>,
    answer: Vec<u8>,
    /// All clients have allocations.
    has_allocation: Cell<bool>,
    ended: Vec<FiveTuple>,
    /// Who sent a frame last.
    last: Option<FiveTuple>,
}

impl Room {
    fn new(settings: StreamSettings) -> Self {
        Self::with_tls(settings, None)
    }

    fn with_tls(settings: StreamSettings, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let table = Table::new(vec![listener], TOKENS, settings, tls, Seats::new([1, 2]), [3, 4]);
        let (epoll, ticker) = (Epoll::new().unwrap(), Ticker::new(Duration::from_millis(5)).unwrap());
        table.register(&epoll).unwrap();
        epoll.add(ticker.as_fd(), TICK, Interest::Read).unwrap();
        Self {
            table,
            watch: Watch::new(std::iter::once(epoll.as_fd())),
            epoll,
            ticker,
            events: Events::new(64),
            address,
            now: Duration::from_secs(1_000),
            frames: Vec::new(),
            answer: Vec::new(),
            has_allocation: Cell::new(false),
            ended: Vec::new(),
            last: None,
        }
    }

    /// One round of the shard.
    fn round(&mut self) {
        self.watch.wait(false).unwrap();
        self.epoll.look(&mut self.events).unwrap();
        for at in 0..self.events.len() {
            let (token, ready) = self.events.get(at).unwrap();
            match token {
                TICK => self.ticker.clear(),
                token if token == TOKENS.listeners => self.table.accept(0, &self.epoll, self.now),
                token => self.stream(token as u32, ready),
            }
        }
        self.table.flush(&self.epoll, self.now);
        self.ended.extend(std::iter::from_fn(|| self.table.poll_ended()));
    }

    fn stream(&mut self, stream: u32, ready: Ready) {
        let Some(mut received) = self.table.receive(stream, ready, &self.epoll, self.now) else {
            return;
        };
        let from = received.from();
        while let Some(frame) = received.next_frame(|_| self.has_allocation.get()) {
            self.frames.push(frame.to_vec());
            self.last = Some(from);
            if !self.answer.is_empty() {
                self.table.deliver(&from, &self.answer);
            }
        }
        let has_allocation = self.has_allocation.get();
        self.table.put_back(received, |_| has_allocation, &self.epoll, self.now);
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}", self.table.counters());
            self.round();
        }
    }

    fn until_count(&mut self, event: StreamEvent, count: u64) {
        self.until(event.label(), |room| room.count(event) >= count);
        assert_eq!(self.count(event), count);
    }

    /// Time passes, and the table looks at its deadlines.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let has_allocation = self.has_allocation.get();
        self.table.handle_timeout(|_| has_allocation, &self.epoll, self.now);
        self.ended.extend(std::iter::from_fn(|| self.table.poll_ended()));
    }

    fn count(&self, event: StreamEvent) -> u64 {
        self.table.counters().count(event)
    }

    fn open(&self) -> u64 {
        self.table.counters().open_tcp + self.table.counters().open_tls
    }

    fn connect(&mut self) -> TcpStream {
        let accepted = self.table.counters().accepted;
        let client = self.knock();
        self.until("accepted", |room| room.table.counters().accepted > accepted);
        client
    }

    fn knock(&self) -> TcpStream {
        self.knock_from([127, 0, 0, 1])
    }

    fn knock_from(&self, ip: [u8; 4]) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let client = TcpStream::from(socket);
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client whose stream has an allocation.
    fn member(&mut self) -> TcpStream {
        self.has_allocation.set(true);
        let mut client = self.connect();
        self.ask(&mut client);
        client
    }

    /// A client without one that asks. Its name comes with it.
    fn stranger(&mut self) -> (TcpStream, FiveTuple) {
        self.has_allocation.set(false);
        let mut client = self.connect();
        self.ask(&mut client);
        (client, self.last.unwrap())
    }

    fn ask(&mut self, client: &mut TcpStream) {
        let frames = self.frames.len();
        client.write_all(&binding()).unwrap();
        self.until("a frame", |room| room.frames.len() > frames);
    }
}

fn binding() -> Vec<u8> {
    let mut buffer = [0; 128];
    let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Request, TransactionId([7; 12]));
    writer.attribute(0x8022, &[b"a name of 21 bytes.."]);
    writer.finish().unwrap().to_vec()
}

/// What a server does not answer.
fn unanswered() -> [Vec<u8>; 2] {
    [Class::Indication, Class::Success].map(|class| {
        let mut buffer = [0; 128];
        let writer = Writer::new(&mut buffer, Method::Binding, class, TransactionId([7; 12]));
        writer.finish().unwrap().to_vec()
    })
}

/// A success of some length.
fn answer(length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length + 24];
    let mut writer = Writer::new(&mut buffer, Method::Binding, Class::Success, TransactionId([7; 12]));
    writer.attribute(0x8022, &[&vec![5; length]]);
    writer.finish().unwrap().to_vec()
}

fn channel_data(length: usize) -> Vec<u8> {
    let header = ChannelData::header(ChannelNumber::new(0x4001).unwrap(), length as u16);
    let mut frame = [header.as_slice(), &vec![2; length]].concat();
    frame.resize(frame.len().next_multiple_of(4), 0);
    frame
}

/// The server's side, and a client that trusts it.
fn certificate() -> (Arc<ServerConfig>, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (server_config(vec![made.cert.der().clone()], key.into()).unwrap(), roots)
}

fn session(roots: RootCertStore) -> ClientConnection {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::try_from("relay.test").unwrap()).unwrap()
}

/// Handshakes while the room goes on.
fn handshaken(room: &mut Room, roots: RootCertStore) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = room.connect();
    let handshakes = room.table.counters().handshakes;
    let thread = std::thread::spawn(move || {
        let mut stream = StreamOwned::new(session(roots), socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    });
    room.until("handshake", |room| room.table.counters().handshakes > handshakes);
    thread.join().unwrap()
}

fn short() -> StreamSettings {
    StreamSettings::default()
}

#[test]
fn frames_that_are_split_at_every_byte_come_out_whole() {
    let mut room = Room::new(short());
    room.has_allocation.set(true);
    let frames = [binding(), channel_data(5), channel_data(0), binding()];
    let stream = frames.concat();
    for split in 1..stream.len() {
        let mut client = room.connect();
        room.frames.clear();
        client.write_all(&stream[..split]).unwrap();
        // Until the first part was read, the second is not there.
        let whole = (1..=frames.len())
            .take_while(|count| frames[..*count].concat().len() <= split)
            .count();
        room.until("the first part", |room| {
            room.frames.len() == whole && room.table.connections.iter().all(|(_, one)| !one.is_unknown())
        });
        client.write_all(&stream[split..]).unwrap();
        room.until("the second part", |room| room.frames.len() == frames.len());
        assert_eq!(room.frames, frames);
        drop(client);
        room.until("the end", |room| room.open() == 0);
    }
}

#[test]
fn several_frames_of_one_segment_come_out_one_by_one_also_over_tls() {
    let (config, roots) = certificate();
    let mut room = Room::with_tls(short(), Some(config));
    room.has_allocation.set(true);
    let frames: Vec<_> = (0..200).flat_map(|length| [binding(), channel_data(length)]).collect();
    let mut client = room.connect();
    client.write_all(&frames.concat()).unwrap();
    room.until("frames", |room| room.frames.len() == frames.len());
    assert_eq!(room.frames, frames);
    room.frames.clear();
    let mut client = handshaken(&mut room, roots);
    client.write_all(&frames.concat()).unwrap();
    room.until("frames over TLS", |room| room.frames.len() == frames.len());
    assert_eq!(room.frames, frames);
}

#[test]
fn the_longest_frame_passes_both_ways_over_tls() {
    let (config, roots) = certificate();
    let mut room = Room::with_tls(short(), Some(config));
    room.has_allocation.set(true);
    let mut client = handshaken(&mut room, roots);
    client.write_all(&binding()).unwrap();
    room.until("a frame", |room| room.frames.len() == 1);
    let long = channel_data(65_535);
    let sent = long.clone();
    let thread = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
    });
    room.until("the long frame", |room| room.frames.len() == 2);
    assert_eq!(room.frames[1], long);
    let to = room.last.unwrap();
    room.table.deliver(&to, &long);
    room.until("its way back", |_| thread.is_finished());
    thread.join().unwrap();
}

#[test]
fn tls_that_comes_byte_by_byte_is_served() {
    let (config, roots) = certificate();
    let mut room = Room::with_tls(short(), Some(config));
    let mut socket = room.connect();
    let thread = std::thread::spawn(move || {
        let mut session = session(roots);
        while session.is_handshaking() {
            let mut flight = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut flight).unwrap();
            }
            for byte in flight {
                socket.write_all(&[byte]).unwrap();
            }
            if session.is_handshaking() {
                session.read_tls(&mut socket).unwrap();
                session.process_new_packets().unwrap();
            }
        }
        session.writer().write_all(&binding()).unwrap();
        let mut flight = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut flight).unwrap();
        }
        for byte in flight {
            socket.write_all(&[byte]).unwrap();
        }
        socket
    });
    room.until("a frame", |room| room.frames.len() == 1);
    assert_eq!(room.frames, [binding()]);
    thread.join().unwrap();
}

#[test]
fn what_begins_as_nothing_of_ours_is_closed_without_a_word() {
    let mut room = Room::new(short());
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"\x80",
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0",
        b"\x7f",
    ] {
        let mut client = room.connect();
        let refused = room.count(StreamEvent::NotOurs);
        client.write_all(garbage).unwrap();
        room.until_count(StreamEvent::NotOurs, refused + 1);
        let mut got = Vec::new();
        // A reset is an end as well.
        let _ = client.read_to_end(&mut got);
        assert_eq!(got, b"");
    }
    // A STUN header with a wrong cookie.
    let mut client = room.connect();
    client.write_all(&[0, 1, 0, 0, 1, 2, 3, 4]).unwrap();
    room.until_count(StreamEvent::NotOurs, 6);
    assert!(room.frames.is_empty());
    assert_eq!(room.open(), 0);
}

#[test]
fn tls_without_a_certificate_and_broken_tls_are_closed() {
    let mut room = Room::new(short());
    let mut client = room.connect();
    client.write_all(&[22, 3, 1, 0, 5]).unwrap();
    room.until_count(StreamEvent::TlsOff, 1);
    let mut room = Room::with_tls(short(), Some(certificate().0));
    let mut client = room.connect();
    client.write_all(&[22, 3, 1, 0, 5, 9, 9, 9, 9, 9]).unwrap();
    room.until_count(StreamEvent::TlsFault, 1);
    // A handshake message that claims 16 MB and never ends.
    let mut client = room.connect();
    let record = [&[22, 3, 1, 0x20, 0][..], &[1, 0xFF, 0xFF, 0xFF], &[7; 0x2000 - 4]].concat();
    for _ in 0..8 {
        // Once it is closed, writing fails.
        let _ = client.write_all(&record);
    }
    room.until_count(StreamEvent::TlsFault, 2);
    assert_eq!(room.open(), 0);
}

#[test]
fn who_shows_nothing_in_time_is_closed() {
    let (config, roots) = certificate();
    let mut room = Room::with_tls(short(), Some(config));
    let silent = room.connect();
    let mut one_byte = room.connect();
    one_byte.write_all(&[0]).unwrap();
    let mut half_hello = room.connect();
    half_hello.write_all(&[22, 3, 1, 1, 0, 1, 0, 0]).unwrap();
    let established = handshaken(&mut room, roots);
    room.until("first bytes", |room| {
        room.table
            .connections
            .iter()
            .filter(|(_, one)| one.is_unknown())
            .count()
            == 1
    });
    room.pass(Duration::from_millis(9_900));
    assert_eq!(room.open(), 4);
    // More bytes that show nothing win no time.
    one_byte.write_all(&[1]).unwrap();
    half_hello.write_all(&[0, 3]).unwrap();
    for _ in 0..20 {
        room.round();
    }
    room.pass(Duration::from_millis(200));
    assert_eq!(room.count(StreamEvent::NoHandshake), 2);
    assert_eq!(room.count(StreamEvent::NoMessage), 2);
    assert_eq!(room.open(), 0);
    drop((silent, established));
}

#[test]
fn without_an_allocation_only_requests_keep_a_stream_open() {
    let mut room = Room::new(short());
    let mut client = room.connect();
    for round in 1..=5 {
        client.write_all(&binding()).unwrap();
        room.until("a message", |room| room.frames.len() == round);
        room.pass(Duration::from_secs(59));
        assert_eq!(room.open(), 1);
    }
    // An indication, a response, ChannelData of somebody without a channel, and half a request.
    client.write_all(&unanswered().concat()).unwrap();
    client.write_all(&channel_data(8)).unwrap();
    client.write_all(&binding()[..20]).unwrap();
    room.until("channel data", |room| room.frames.len() == 8);
    room.pass(Duration::from_secs(2));
    assert_eq!(room.count(StreamEvent::Idle), 1);
    assert_eq!(room.ended.len(), 1);
}

#[test]
fn a_stream_with_an_allocation_may_be_silent_for_hours_and_has_the_whole_time_afterwards() {
    let mut room = Room::new(short());
    let client = room.member();
    for _ in 0..200 {
        room.pass(Duration::from_secs(59));
    }
    assert_eq!(room.open(), 1);
    room.has_allocation.set(false);
    // The next look finds no allocation; from then on a minute is left.
    room.pass(Duration::from_secs(60));
    room.pass(Duration::from_secs(59));
    assert_eq!(room.open(), 1);
    room.pass(Duration::from_secs(2));
    assert_eq!(room.count(StreamEvent::Idle), 1);
    drop(client);
}

#[test]
fn only_a_client_with_an_allocation_may_send_long_frames_even_in_one_go() {
    let mut room = Room::new(short());
    let mut client = room.connect();
    client.write_all(&[binding(), channel_data(3_000)].concat()).unwrap();
    room.until_count(StreamEvent::FrameTooLong, 1);
    room.frames.clear();
    // Behind the request that allocates, in one segment.
    let mut client = room.connect();
    room.has_allocation.set(true);
    let sent = [binding(), channel_data(3_000)];
    client.write_all(&sent.concat()).unwrap();
    room.until("both", |room| room.frames.len() == 2);
    assert_eq!(room.frames, sent);
}

#[test]
fn packets_for_a_client_that_does_not_read_are_dropped_and_then_it_is_closed() {
    let settings = StreamSettings {
        queue: 100_000,
        send_buffer: 4_096,
        ..short()
    };
    let mut room = Room::new(settings);
    let client = room.member();
    let to = room.last.unwrap();
    let packet = channel_data(1_200);
    // More than all buffers of the kernel can take.
    for _ in 0..20_000 {
        room.table.deliver(&to, &packet);
        if room.table.dirty.len() == 1 {
            room.table.flush(&room.epoll, room.now);
        }
    }
    let waiting = |room: &Room| {
        room.table
            .connections
            .iter()
            .map(|(_, one)| one.waiting())
            .sum::<usize>()
    };
    assert!(room.count(StreamEvent::QueueFull) > 1_000);
    assert!(waiting(&room) <= 100_000, "{}", waiting(&room));
    room.pass(Duration::from_secs(29));
    assert_eq!(room.open(), 1);
    room.pass(Duration::from_secs(2));
    assert_eq!(room.count(StreamEvent::Stalled), 1);
    assert_eq!(room.ended, [to]);
    drop(client);
}

#[test]
fn a_client_that_reads_late_gets_whole_frames_and_stays() {
    let settings = StreamSettings {
        queue: 100_000,
        send_buffer: 4_096,
        ..short()
    };
    let mut room = Room::new(settings);
    let mut client = room.member();
    let to = room.last.unwrap();
    for _ in 0..20_000 {
        room.table.deliver(&to, &channel_data(1_200));
        room.table.flush(&room.epoll, room.now);
    }
    let dropped = room.count(StreamEvent::QueueFull);
    let whole = (20_000 - dropped as usize) * channel_data(1_200).len();
    let thread = std::thread::spawn(move || {
        let mut got = vec![0; whole];
        client.read_exact(&mut got).unwrap();
        assert!(got.chunks(1_204).all(|frame| frame == channel_data(1_200)));
        client
    });
    room.until("all that was not dropped", |_| thread.is_finished());
    let client = thread.join().unwrap();
    room.until("all written", |room| {
        room.table.connections.iter().all(|(_, one)| !one.is_blocked())
    });
    room.pass(Duration::from_secs(31));
    assert_eq!(room.open(), 1);
    drop(client);
}

#[test]
fn a_client_that_asks_and_does_not_read_is_not_read_either() {
    let settings = StreamSettings {
        send_buffer: 4_096,
        ..short()
    };
    let mut room = Room::new(settings);
    room.answer = answer(100);
    let mut client = room.connect();
    let thread = std::thread::spawn(move || {
        client.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // Until nobody takes any more of it; a write that was cut off in a request goes on there.
        let requests = binding().repeat(100);
        let mut sent = 0;
        while let Ok(more) = client.write(&requests[sent % requests.len()..]) {
            sent += more;
        }
        (client, sent)
    });
    room.until("the client gives up", |_| thread.is_finished());
    let (client, sent) = thread.join().unwrap();
    let asked = sent / binding().len();
    assert!(room.frames.len() < asked, "all {asked} requests were read");
    let connection = room.table.connections.iter().next().unwrap().1;
    assert_eq!(connection.interest, Interest::Write);
    assert!(connection.waiting() < 30_000, "{}", connection.waiting());
    // It reads again, and gets an answer to each request.
    let mut reader = client.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let mut got = vec![0; answer(100).len() * asked];
        reader.read_exact(&mut got).unwrap();
        assert!(got.chunks(answer(100).len()).all(|one| one == answer(100)));
    });
    room.until("the rest", |_| thread.is_finished());
    thread.join().unwrap();
    drop(client);
}

#[test]
fn who_takes_a_byte_now_and_then_may_not_hold_answers_for_ever() {
    let settings = StreamSettings {
        send_buffer: 4_096,
        ..short()
    };
    let mut room = Room::new(settings);
    room.answer = answer(2_000);
    let mut client = room.connect();
    client.write_all(&binding().repeat(4_096)[..]).ok();
    room.until("paused", |room| {
        let mut connections = room.table.connections.iter();
        connections.any(|(_, one)| one.interest == Interest::Write)
    });
    for _ in 0..40 {
        let _ = client.read(&mut [0; 64]);
        room.pass(Duration::from_secs(1));
        room.round();
    }
    assert_eq!(room.count(StreamEvent::Stalled), 1);
}

#[test]
fn one_prefix_cannot_take_all_streams() {
    let settings = StreamSettings {
        per_prefix: 3,
        ..short()
    };
    let mut room = Room::new(settings);
    let held: Vec<_> = (0..3).map(|_| room.connect()).collect();
    let mut refused = room.knock();
    room.until_count(StreamEvent::TooManyOfPrefix, 1);
    let closed = refused.read(&mut [0; 1]);
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    drop(held);
    room.until("places", |room| room.open() == 0);
    let served = room.connect();
    assert_eq!(room.open(), 1);
    drop(served);
}

fn four_seats() -> StreamSettings {
    StreamSettings {
        total: 4,
        per_prefix: 4,
        ..short()
    }
}

#[test]
fn strangers_cannot_keep_all_seats_whatever_they_send() {
    let mut room = Room::new(four_seats());
    let mut strangers: Vec<_> = (0..4).map(|_| room.stranger()).collect();
    for _ in 0..5 {
        room.pass(Duration::from_secs(50));
        // The first one has asked last.
        for (client, _) in strangers.iter_mut().rev() {
            room.ask(client);
        }
    }
    assert_eq!(room.open(), 4);
    let accepted = room.table.counters().accepted;
    let mut fifth = room.knock_from([127, 0, 1, 1]);
    room.until("the fifth", |room| room.table.counters().accepted > accepted);
    let (mut first, name) = strangers.remove(0);
    assert_eq!(
        (room.count(StreamEvent::Displaced), room.count(StreamEvent::TooMany)),
        (1, 0)
    );
    assert_eq!((room.open(), room.ended.as_slice()), (4, [name].as_slice()));
    assert!(matches!(first.read(&mut [0; 1]), Ok(0) | Err(_)));
    // Who has only come is not the next to go, although all others have sent something since.
    room.pass(Duration::from_secs(1));
    for (client, _) in &mut strangers {
        room.ask(client);
    }
    let sixth = room.knock_from([127, 0, 2, 1]);
    room.until("the sixth", |room| room.table.counters().accepted > accepted + 1);
    assert_eq!(room.count(StreamEvent::Displaced), 2);
    assert_eq!(room.ended, [name, strangers[0].1]);
    room.ask(&mut fifth);
    assert_eq!(room.open(), 4);
    drop((strangers, sixth));
    drop(fifth);
    room.until("the end", |room| room.open() == 0);
    assert!(room.table.strangers.is_empty());
}

#[test]
fn members_keep_their_seats_until_their_allocations_have_ended() {
    let mut room = Room::new(four_seats());
    let (stranger, name) = room.stranger();
    let members: Vec<_> = (0..3).map(|_| room.member()).collect();
    let mut fourth = room.knock_from([127, 0, 1, 1]);
    room.until_count(StreamEvent::Displaced, 1);
    assert_eq!(room.ended, [name]);
    room.ask(&mut fourth);
    let mut refused = room.knock_from([127, 0, 2, 1]);
    room.until_count(StreamEvent::TooMany, 1);
    assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!((room.open(), room.count(StreamEvent::Displaced)), (4, 1));
    room.has_allocation.set(false);
    room.pass(Duration::from_secs(60));
    assert_eq!(room.open(), 4);
    let served = room.knock_from([127, 0, 2, 1]);
    room.until_count(StreamEvent::Displaced, 2);
    assert_eq!((room.open(), room.count(StreamEvent::TooMany)), (4, 1));
    drop((stranger, members, fourth, served));
}

#[test]
fn closed_half_closed_and_reset_streams_are_told_once_and_leave_nothing() {
    let (config, roots) = certificate();
    let mut room = Room::with_tls(short(), Some(config));
    let closed = room.member();
    let first = room.last.unwrap();
    drop(closed);
    room.until_count(StreamEvent::ClosedByClient, 1);
    assert_eq!(room.ended, [first]);
    let half = room.member();
    half.shutdown(Shutdown::Write).unwrap();
    room.until_count(StreamEvent::ClosedByClient, 2);
    let reset = room.member();
    SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    room.until_count(StreamEvent::Reset, 1);
    let mut goodbye = handshaken(&mut room, roots.clone());
    goodbye.write_all(&binding()).unwrap();
    goodbye.conn.send_close_notify();
    goodbye.conn.write_tls(&mut goodbye.sock).unwrap();
    room.until_count(StreamEvent::ClosedByClient, 3);
    assert_eq!(
        room.frames.last(),
        Some(&binding()),
        "what came before the goodbye counts"
    );
    assert_eq!(room.ended.len(), 4);
    // And the server says goodbye, too.
    assert_eq!(goodbye.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(room.open(), 0);
    assert!(room.table.due.is_empty());
    assert_eq!(room.table.counters().accepted, 4);
}

#[test]
fn an_answer_reaches_only_its_client_and_nobody_who_is_gone() {
    let mut room = Room::new(short());
    let mut first = room.member();
    let to_first = room.last.unwrap();
    let mut second = room.member();
    let to_second = room.last.unwrap();
    room.table.deliver(&to_first, &channel_data(4));
    room.table.deliver(&to_second, &channel_data(8));
    room.round();
    let mut got = [0; 12];
    first.read_exact(&mut got[..8]).unwrap();
    assert_eq!(got[..8], channel_data(4));
    second.read_exact(&mut got).unwrap();
    assert_eq!(got[..], channel_data(8));
    drop(first);
    room.until_count(StreamEvent::ClosedByClient, 1);
    room.table.deliver(&to_first, &channel_data(4));
    assert_eq!(room.count(StreamEvent::StreamGone), 1);
}

#[test]
fn nothing_of_a_client_stays_in_the_buffers_of_a_shard() {
    let mut room = Room::new(short());
    let client = room.member();
    assert!(room.table.scratch.iter().all(|byte| *byte == 0));
    let framer = room.table.framer.as_mut().unwrap();
    assert_eq!(framer.rest(), b"");
    assert!(framer.space().iter().all(|byte| *byte == 0));
    drop(client);
}

#[test]
fn other_limits_hold_for_streams_that_are_open() {
    let mut room = Room::new(short());
    let mut client = room.connect();
    client.write_all(&binding()).unwrap();
    room.until("a message", |room| room.frames.len() == 1);
    let stricter = StreamSettings {
        idle: Duration::from_secs(5),
        ..short()
    };
    room.table.reload(stricter, None, &room.epoll, room.now);
    room.pass(Duration::from_secs(6));
    assert_eq!(room.count(StreamEvent::Idle), 1);
}

#[test]
fn once_shut_the_door_stays_shut_and_who_is_in_stays_in() {
    let mut room = Room::new(short());
    let mut client = room.member();
    room.table.shut();
    assert!(TcpStream::connect(room.address).is_err());
    client.write_all(&binding()).unwrap();
    room.until("a message", |room| room.frames.len() == 2);
}
