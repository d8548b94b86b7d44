use super::*;
use crate::sys::Watch;
use quietline_shared::redact::Secret;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU8;
use turn_core::auth::{Credentials, NONCE_EPOCH, Nonces, StaticUser};
use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::Dropped;
use turn_core::peers::{PeerPolicy, RELAY_PORTS, RelayAddress, RelayTable};
use turn_core::wire::{Method, Transport};
use world::{ALLOCATE, BINDING, Client, Draft, Reply, UDP};
use zeroize::Zeroize;

#[path = "../../core/tests/world/mod.rs"]
mod world;

fn plan(address: SocketAddr) -> Plan {
    let relay = RelayAddress {
        bind: address.ip(),
        advertised: address.ip(),
    };
    let relays = RelayTable::new(vec![relay], (50_000, 50_100)).unwrap();
    let user = StaticUser::new("alice", Secret::new(b"wonderland".to_vec())).unwrap();
    let credentials = Credentials::new("quietline", vec![user], Vec::new()).unwrap();
    let settings = Settings::new(
        credentials,
        Limits::default(),
        PeerPolicy::default(),
        vec![],
        &relays,
        true,
    );
    Plan {
        shards: 2,
        listeners: vec![Listener { address }],
        buffers: Buffers::default(),
        shared: Arc::new(Shared::new(
            relays,
            Nonces::new(Secret::new([7; 32]), NONCE_EPOCH),
            [3, 4],
        )),
        settings: Arc::new(settings),
        streams: StreamSettings::default(),
        tls: None,
    }
}

#[test]
fn a_shard_that_panics_is_told() {
    let shards = start(plan("127.0.0.1:0".parse().unwrap())).unwrap();
    assert!(!shards.has_failed());
    assert_eq!(shards.report().shards, 2);
    let last = shards.handles.last().unwrap();
    assert!(last.order(Order::Trial(Box::new(|| panic!("a test asked for it")))));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(shards.failed());
    assert_eq!(shards.report().shards, 1);
}

#[test]
fn an_address_that_somebody_has_is_an_error_that_names_no_address() {
    let first = start(plan("127.0.0.1:0".parse().unwrap())).unwrap();
    let taken = *first.addresses().first().unwrap();
    let error = start(plan(taken)).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    first.stop();
    start(plan(taken)).unwrap().stop();
    let unspecified = start(plan("0.0.0.0:0".parse().unwrap())).err().unwrap();
    assert_eq!(unspecified.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_shard_that_hangs_makes_nobody_wait_and_obeys_when_it_is_back() {
    let shards = start(plan("127.0.0.1:0".parse().unwrap())).unwrap();
    let release = hang(&shards);
    let began = Instant::now();
    // One report waits for an answer; no second one does, and there is room for other orders.
    let others: Vec<_> = (0..100).map(|_| shards.report().shards).collect();
    assert_eq!(others, [1; 100]);
    assert!(
        shards
            .handles
            .iter()
            .all(|handle| handle.order(Order::Trial(Box::new(|| ()))))
    );
    let settings = plan("127.0.0.1:0".parse().unwrap()).settings;
    for _ in 0..1_000 {
        shards.reload(&settings, &StreamSettings::default(), None);
    }
    shards.drain();
    assert!(began.elapsed() < 2 * PATIENCE);
    drop(release);
    let deadline = began + Duration::from_secs(20);
    while shards.report().shards < 2 {
        assert!(Instant::now() < deadline, "it never came back");
    }
    assert!(
        !shards
            .handles
            .iter()
            .any(|handle| handle.word.drain.load(Ordering::Acquire))
    );
    shards.stop();
}

#[test]
fn a_shard_that_hangs_is_left_behind_by_a_stop() {
    let mut shards = start(plan("127.0.0.1:0".parse().unwrap())).unwrap();
    let release = hang(&shards);
    shards.end(Duration::from_millis(50));
    // The other one has ended.
    let has_ended = |handle: &Handle| Arc::strong_count(&handle.word) == 1;
    let ended: Vec<_> = shards.handles.iter().map(has_ended).collect();
    assert_eq!(ended, [true, false]);
    drop(release);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !shards.handles.iter().all(has_ended) {
        assert!(Instant::now() < deadline, "it never ended");
        thread::sleep(LOOK_EVERY);
    }
    assert!(!shards.has_failed());
}

/// Until what this returns is dropped, the last shard does nothing.
fn hang(shards: &Shards) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (tell, hangs) = mpsc::channel();
    let trial = move || {
        tell.send(()).unwrap();
        let _ = held.recv();
    };
    let last = shards.handles.last().unwrap();
    assert!(last.order(Order::Trial(Box::new(trial))));
    hangs.recv().unwrap();
    release
}

#[test]
fn after_a_report_nothing_of_a_packet_is_in_memory() {
    let shards = start(plan("127.0.0.1:0".parse().unwrap())).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut packet: Vec<u8> = (0..LENGTH).map(byte_at).collect();
    sender.send_to(&packet, shards.addresses()[0]).unwrap();
    packet.zeroize();
    let deadline = Instant::now() + Duration::from_secs(20);
    while places_of_packet() == 0 {
        assert!(Instant::now() < deadline, "the search never found what is there");
    }
    let refusals = shards.report().counters.refusals;
    assert_eq!(refusals.count(Refusal::NotOurs), 1);
    assert_eq!(places_of_packet(), 0);
}

/// Bytes of a packet that stands nowhere else in this process, not even in what searches for it.
fn byte_at(at: usize) -> u8 {
    (at * 89 % 251) as u8 ^ 0xF5
}

const LENGTH: usize = 48;

fn places_of_packet() -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut chunk = vec![0; 1 << 20];
    let mut found = 0;
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut words = line.split(' ');
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [mut start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        while start + (LENGTH as u64) < end {
            let length = chunk.len().min((end - start) as usize);
            // What has been given back meanwhile has nothing.
            let Ok(length) = memory.read_at(&mut chunk[..length], start) else {
                break;
            };
            let bytes = &chunk[..length];
            let is_packet = |at: &usize| {
                let bytes = bytes.get(*at..at + LENGTH);
                bytes.is_some_and(|bytes| bytes.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)))
            };
            let first = byte_at(0);
            let begins = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
            found += begins.filter(|(at, _)| is_packet(at)).count();
            start += length.saturating_sub(LENGTH).max(1) as u64;
        }
    }
    // It is memory as well, and had a copy of what was found.
    chunk.zeroize();
    found
}

/// A shard that has no thread and no ticks: it does a round when it is told to.
struct Still {
    shard: Shard,
    address: SocketAddr,
    /// The listener's socket.
    datagrams: Watch,
    _listener: OwnedFd,
}

impl Still {
    fn new(limits: Limits) -> Self {
        static HOSTS: AtomicU8 = AtomicU8::new(1);
        let host = HOSTS.fetch_add(1, Ordering::Relaxed);
        let own = IpAddr::from([127, (std::process::id() % 250) as u8 + 1, 252, host]);
        let relay = RelayAddress {
            bind: own,
            advertised: own,
        };
        let relays = RelayTable::new(vec![relay], RELAY_PORTS).unwrap();
        let settings = Settings::new(
            world::credentials(world::USERS),
            limits,
            PeerPolicy::default(),
            vec![],
            &relays,
            true,
        );
        let bound = Bound::new(SocketAddr::new(own, 0), 1, Buffers::default()).unwrap();
        let listener = bound.udp.first().unwrap().try_clone().unwrap();
        let streams = Streams::of_all_shards(vec![bound.tcp], &StreamSettings::default(), None).unwrap();
        let word = Arc::new(Word::new().unwrap());
        let inbox = Inbox {
            orders: mpsc::sync_channel(ORDERS).1,
            word,
        };
        let epoll = Epoll::new().unwrap();
        epoll
            .add(inbox.word.waker.as_fd(), token::ORDERS, Interest::Read)
            .unwrap();
        let parts = Parts {
            shard: 0,
            shared: Arc::new(Shared::new(
                relays,
                Nonces::new(Secret::new([7; 32]), NONCE_EPOCH),
                [3, 4],
            )),
            settings: Arc::new(settings),
            epoll,
            listeners: bound.udp,
            clock: Clock::new(Instant::now()),
        };
        let streams = streams.into_iter().next().unwrap();
        Self {
            shard: Shard::new(parts, streams, inbox, Ticker::new(TICK).unwrap()).unwrap(),
            address: bound.address,
            datagrams: Watch::new(std::iter::once(listener.as_fd())),
            _listener: listener,
        }
    }

    /// A round in which the listener has something, answered.
    fn round_with_datagram(&mut self, caller: &UdpSocket) {
        caller.send_to(&binding(), self.address).unwrap();
        // A busy system may hand it over a moment later.
        self.datagrams.wait(false).unwrap();
        self.round();
        assert!(caller.recv(&mut [0; 100]).unwrap() > 20);
    }

    fn round(&mut self) {
        assert!(self.shard.round().unwrap());
    }

    fn counters(&self) -> Counters {
        self.shard.plane.counters()
    }

    fn exchange(&mut self, client: &Client, request: &[u8]) -> Reply {
        let plane = &mut self.shard.plane;
        plane.handle_frame(&client.tuple, request);
        let posts = plane.take_posts().unwrap();
        let reply = Reply::read(posts.iter().next().unwrap().1);
        plane.give_back(posts);
        reply
    }

    /// As a client whose stream is this test.
    fn allocate(&mut self, from: &str) -> SocketAddr {
        let mut client = Client::over(from, Transport::Tcp);
        let bare = client.draft(ALLOCATE).with(UDP.0, UDP.1);
        let challenge = self.exchange(&client, &bare.0);
        client.learn(&challenge);
        let draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
        let signed = client.sign(draft);
        self.exchange(&client, &signed.0).relayed()
    }
}

fn binding() -> Vec<u8> {
    Draft::new(BINDING, [7; 12]).0
}

#[test]
fn what_ends_at_once_is_closed_in_pieces_and_packets_move_in_between() {
    let limits = Limits {
        default_lifetime: Duration::from_secs(1),
        max_lifetime: Duration::from_secs(1),
        ..Limits::default()
    };
    let mut still = Still::new(limits);
    for number in 0..300 {
        still.allocate(&format!("8.{}.{}.4:40000", number / 250, number % 250));
    }
    thread::sleep(Duration::from_millis(2_100));
    let caller = UdpSocket::bind((still.address.ip(), 0)).unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let round = |still: &mut Still| {
        still.round_with_datagram(&caller);
        still.counters().allocations
    };
    assert_eq!(round(&mut still), 300, "nothing ends before a tick");
    still.shard.plane.handle_tick();
    assert_eq!([round(&mut still), round(&mut still)], [300 - 128, 300 - 256]);
    // The rest waits for nothing that is ready.
    still.round();
    assert_eq!(still.counters().allocations, 0);
}

/// A stream that asks again as soon as it has its answer.
struct Asking {
    socket: TcpStream,
    answers: usize,
}

impl Asking {
    fn new(from: [u8; 4], to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let mut socket = TcpStream::from(socket);
        socket.write_all(&binding()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, answers: 0 }
    }

    fn go_on(&mut self) {
        if self.socket.read(&mut [0; 100]).is_ok_and(|length| length > 20) {
            self.answers += 1;
            self.socket.write_all(&binding()).unwrap();
        }
    }
}

#[test]
fn a_round_serves_a_few_streams_and_all_others_have_their_turn_as_well() {
    const STREAMS: u8 = 100;
    let mut still = Still::new(Limits::default());
    let IpAddr::V4(own) = still.address.ip() else {
        panic!("the test is of IPv4")
    };
    let [a, b, ..] = own.octets();
    let relayed = still.allocate("8.8.4.4:40000");
    let caller = UdpSocket::bind((own, 0)).unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|number| Asking::new([a, b, number, 1], still.address))
        .collect();
    let unheard = Refusal::Dropped(Dropped::NoPermission);
    let mut before = (0, 0);
    for round in 0..40 {
        // A relayed address and a listener always have something, and a third of the streams.
        (0..3).for_each(|_| assert_eq!(caller.send_to(b"buy now", relayed).unwrap(), 7));
        still.round_with_datagram(&caller);
        streams.iter_mut().take(33).for_each(Asking::go_on);
        let counters = still.counters();
        let after = (
            counters.successes.count(Method::Binding),
            counters.refusals.count(unheard),
        );
        let (answers, heard) = (after.0 - before.0, after.1 - before.1);
        assert!(answers <= 1 + 16, "{answers} in round {round}");
        assert!(heard > 0, "round {round}");
        // Until then they are accepted, 64 at a time.
        assert!(answers > 1 || round < 3, "round {round}");
        before = after;
    }
    streams.iter_mut().skip(33).for_each(Asking::go_on);
    let answers: Vec<_> = streams.iter().map(|stream| stream.answers).collect();
    assert!(answers.iter().all(|count| *count > 0), "{answers:?}");
    assert!(answers.iter().take(33).all(|count| *count > 3), "{answers:?}");
}
