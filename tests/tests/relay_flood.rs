//! A million packets from a million sources, most of which do not exist: the relay's memory stays flat, and live calls lose nothing
//! (reference/turn.md §4, rows 9 to 11).
//!
//! The sources are spoofed on a raw socket in the world's network, where every address is local, so that each answer is counted. The
//! flood waits for the relay where its queue grows, so that what is lost is the relay's fault and not the machine's.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::settings::set;
use quietline_lab::turn::client::{Client, PATIENCE, Packet, QUIET, Who};
use quietline_lab::turn::net::give_room;
use quietline_lab::turn::server::{PORT, REALM, SERVER, Site, Transport, alice, bob};
use quietline_lab::turn::stun::{Builder, attribute, channel_data, kind, random};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PACKETS: u32 = 1_000_000;
/// All spoofed packets come from it, so that one socket sees the answers.
const SOURCE_PORT: u16 = 40_000;
/// Bytes that may wait in the relay's sockets before the flood pauses.
const MOST_WAITING: u64 = 64 << 10;
/// Answers that a prefix may have at once.
const BURST: u32 = 200;
/// Between two packets of a live call.
const PAUSE: Duration = Duration::from_millis(10);

/// The network card of somebody who lies about their address.
struct Spoofer {
    socket: Socket,
    to: SockAddr,
    sent: u64,
}

impl Spoofer {
    fn new(site: &Site) -> Self {
        // The header is ours with this protocol.
        let raw = site
            .world
            .run(|| Socket::new(Domain::IPV4, Type::RAW, Some(libc::IPPROTO_RAW.into())));
        Self {
            socket: raw.unwrap_or_else(|fault| panic!("this test makes raw sockets, so it must run as root: {fault}")),
            to: SocketAddr::from((SERVER, 0)).into(),
            sent: 0,
        }
    }

    fn send(&mut self, from: Ipv4Addr, payload: &[u8]) {
        let length = 28 + payload.len() as u16;
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        // Identification and checksum are filled in by the kernel.
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(from.octets());
        packet.extend(SERVER.octets());
        packet.extend(SOURCE_PORT.to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend((length - 20).to_be_bytes());
        // No checksum, which IPv4 allows.
        packet.extend([0, 0]);
        packet.extend(payload);
        // A full queue of the card: what is sent is counted by who receives it.
        while self.socket.send_to(&packet, &self.to).is_err() {
            std::thread::yield_now();
        }
        self.sent += 1;
    }
}

/// What waits in the relay's UDP sockets at its port, and what they have dropped so far.
fn queue(site: &Site) -> (u64, u64) {
    let table = site
        .home
        .run(|| std::fs::read_to_string("/proc/thread-self/net/udp"))
        .unwrap();
    let port = format!(":{PORT:04X}");
    table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(1).is_some_and(|local| local.ends_with(&port)))
        .fold((0, 0), |(waiting, dropped), words| {
            let bytes = words[4]
                .split(':')
                .nth(1)
                .and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let drops = words.last().and_then(|drops| drops.parse::<u64>().ok());
            (waiting + bytes.unwrap_or(0), dropped + drops.unwrap_or(0))
        })
}

/// Sends so many packets, each kind in turn, each from the source that `source` gives; waits where the relay does not keep up.
fn flood(site: &Site, spoofer: &mut Spoofer, kinds: &[Vec<u8>], packets: u32, source: impl Fn() -> Ipv4Addr) {
    for number in 0..packets {
        spoofer.send(source(), &kinds[number as usize % kinds.len()]);
        if number % 128 == 0 {
            let deadline = Instant::now() + PATIENCE;
            while queue(site).0 > MOST_WAITING {
                assert!(Instant::now() < deadline, "the relay reads no more");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

/// Public, and in no prefix that a client has.
fn anywhere() -> Ipv4Addr {
    let [a, b, c, d] = random::<4>();
    Ipv4Addr::new(20 + a % 80, b, c, d)
}

fn badly_signed() -> Vec<u8> {
    Builder::new(kind::ALLOCATE)
        .attribute(attribute::REQUESTED_TRANSPORT, [17, 0, 0, 0])
        .attribute(attribute::USERNAME, "alice")
        .attribute(attribute::REALM, REALM)
        .attribute(attribute::NONCE, "obMatJos2AAAA0123456789")
        .integrity(&Who::new("alice", "not her password").key(REALM))
        .build()
}

/// The sizes of all answers to spoofed packets, until told to stop and for a moment longer; the answers that must come have all the time
/// they need.
fn count_answers(socket: &UdpSocket, stop: &AtomicBool, is_enough: impl Fn(&Sizes) -> bool) -> Sizes {
    let mut sizes = Sizes::new();
    let mut room = [0; 2_048];
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let mut deadline = None;
    loop {
        match socket.recv(&mut room) {
            Ok(length) => *sizes.entry(length).or_insert(0) += 1,
            Err(_) if stop.load(Ordering::Relaxed) => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                if is_enough(&sizes) || Instant::now() >= deadline {
                    return sizes;
                }
            }
            Err(_) => {}
        }
    }
}

/// How many answers of each size.
type Sizes = BTreeMap<usize, u32>;

/// Binding answers and challenges.
fn kinds_of(sizes: &Sizes) -> [u32; 2] {
    let bindings = sizes.get(&32).copied().unwrap_or(0);
    [bindings, sizes.values().sum::<u32>() - bindings]
}

/// Of each kind that is counted there is at least one answer.
fn has_each_kind(sizes: &Sizes) -> bool {
    kinds_of(sizes).iter().all(|count| *count > 0)
}

/// Two clients of the relay that talk until told to stop: what was sent and what arrived.
struct Call {
    caller: Client,
    callee: Client,
}

impl Call {
    fn new(site: &Site, caller: Transport, callee: Transport) -> Self {
        let (mut caller, mut callee) = (site.client(caller, alice()), site.client(callee, bob()));
        let (near, far) = (caller.allocate(), callee.allocate());
        assert_eq!((caller.bind(0x4000, far), callee.bind(0x4000, near)), (0, 0));
        Self { caller, callee }
    }

    /// One side talks, the other notes the numbers it hears.
    fn talk(&mut self, stop: &AtomicBool) -> (u32, u32) {
        let sent = AtomicU32::new(0);
        let ended = AtomicBool::new(false);
        let (caller, callee) = (&mut self.caller, &mut self.callee);
        std::thread::scope(|scope| {
            let hearing = scope.spawn(|| {
                let mut heard = std::collections::BTreeSet::new();
                let mut deadline = None;
                loop {
                    match callee.next_within(QUIET) {
                        Some(Packet::Channel(0x4000, data)) => {
                            heard.insert(data);
                        }
                        Some(_) => {}
                        None if ended.load(Ordering::Acquire) => {
                            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                            let count = heard.len() as u32;
                            if count >= sent.load(Ordering::Relaxed) || Instant::now() >= deadline {
                                return count;
                            }
                        }
                        None => {}
                    }
                }
            });
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                caller.send_on(0x4000, format!("packet {number} of a call").as_bytes());
                std::thread::sleep(PAUSE);
            }
            ended.store(true, Ordering::Release);
            (sent.load(Ordering::Relaxed), hearing.join().unwrap())
        })
    }
}

/// A relay with the limits that the figures below follow from, where every source address leads back to us.
fn site_of_all_addresses(folder: &Path) -> Site {
    let site = Site::quietline(folder, |settings| {
        set(settings, "limits.challenges_per_second", 50);
        set(settings, "limits.challenge_burst", BURST);
    });
    site.world.ip("route add local 0.0.0.0/0 dev lo");
    site
}

#[test]
fn a_million_packets_of_spoofed_sources_leave_no_trace_and_cost_no_call_a_packet() {
    let folder = tempfile::tempdir().unwrap();
    let site = site_of_all_addresses(folder.path());
    let answers = site.world.udp(Ipv4Addr::UNSPECIFIED, SOURCE_PORT);
    let answers = Socket::from(answers);
    give_room(&answers);
    let answers = UdpSocket::from(answers);
    let mut spoofer = Spoofer::new(&site);
    let kinds = vec![
        Builder::new(kind::ALLOCATE).build(),
        Builder::new(kind::BINDING).build(),
        badly_signed(),
        channel_data(0x4000, b"from nowhere", false),
        Builder::new(kind::SEND_INDICATION).build(),
        Builder::new(kind::BINDING | kind::SUCCESS).build(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Builder::new(kind::ALLOCATE).build()[..15].to_vec(),
    ];
    let mut calls = [
        Call::new(&site, Transport::Udp, Transport::Udp),
        Call::new(&site, Transport::Udp, Transport::Tls),
        Call::new(&site, Transport::Tcp, Transport::Udp),
    ];
    // What is made once is made by now: every place of the table of strangers has been touched.
    flood(&site, &mut spoofer, &kinds, 50_000, anywhere);
    count_answers(&answers, &AtomicBool::new(true), has_each_kind);
    let before = site.resident_bytes().unwrap();
    let (_, dropped_before) = queue(&site);
    let stop = AtomicBool::new(false);
    let (sizes, talked) = std::thread::scope(|scope| {
        let counting = scope.spawn(|| count_answers(&answers, &stop, has_each_kind));
        let talking: Vec<_> = calls.iter_mut().map(|call| scope.spawn(|| call.talk(&stop))).collect();
        flood(&site, &mut spoofer, &kinds, PACKETS, anywhere);
        stop.store(true, Ordering::Relaxed);
        let talked: Vec<_> = talking.into_iter().map(|call| call.join().unwrap()).collect();
        (counting.join().unwrap(), talked)
    });
    let after = site.resident_bytes().unwrap();
    let (_, dropped) = queue(&site);
    let dropped = dropped - dropped_before;
    println!(
        "memory {before} -> {after} bytes; answers by size {sizes:?}; calls {talked:?}; dropped by the kernel {dropped}"
    );

    assert!(
        after < before + (256 << 10),
        "memory grew from {before} to {after} bytes"
    );
    for (sent, heard) in talked {
        assert!(sent > 100, "a call had only {sent} packets");
        // What the relay's socket had no room for is the machine's fault, and the kernel has counted it.
        assert!(
            u64::from(sent - heard) <= dropped,
            "{heard} of {sent} packets, {dropped} dropped by the kernel"
        );
    }
    assert!(sizes.keys().all(|size| *size <= 112), "{sizes:?}");
    assert!(has_each_kind(&sizes), "{sizes:?}");
    let all: u32 = sizes.values().sum();
    assert!(all <= 3 * PACKETS / 8, "{all} answers to {} questions", 3 * PACKETS / 8);
    let next = site.client(Transport::Udp, alice()).allocate_with(|builder| builder);
    assert_eq!(
        next.map(|answer| answer.outcome()),
        Some(0),
        "the next client is served"
    );
}

#[test]
fn a_flood_from_one_prefix_is_answered_at_the_limit_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let site = site_of_all_addresses(folder.path());
    let answers = Socket::from(site.world.udp(Ipv4Addr::UNSPECIFIED, SOURCE_PORT));
    give_room(&answers);
    let answers = UdpSocket::from(answers);
    let mut spoofer = Spoofer::new(&site);
    let kinds = [
        Builder::new(kind::ALLOCATE).build(),
        badly_signed(),
        Builder::new(kind::BINDING).build(),
    ];
    let mut call = Call::new(&site, Transport::Udp, Transport::Udp);
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let is_enough = |sizes: &Sizes| kinds_of(sizes).iter().all(|count| *count >= BURST);
    let (sizes, (sent, heard)) = std::thread::scope(|scope| {
        let counting = scope.spawn(|| count_answers(&answers, &stop, is_enough));
        let talking = scope.spawn(|| call.talk(&stop));
        flood(&site, &mut spoofer, &kinds, 150_000, || {
            Ipv4Addr::new(77, 7, 7, random::<1>()[0])
        });
        stop.store(true, Ordering::Relaxed);
        (counting.join().unwrap(), talking.join().unwrap())
    });
    let most = BURST + 50 * (started.elapsed().as_secs() as u32 + 1);
    let [bindings, challenges] = kinds_of(&sizes);
    println!(
        "{bindings} Binding answers and {challenges} challenges of at most {most}; the call heard {heard} of {sent}"
    );
    for count in [bindings, challenges] {
        assert!(
            (BURST..=most).contains(&count),
            "{count} answers, the limit allows {most}"
        );
    }
    let bytes: usize = sizes.iter().map(|(size, count)| size * *count as usize).sum();
    let asked = spoofer.sent as usize * 20;
    assert!(
        bytes < asked,
        "{bytes} bytes of answers to more than {asked} bytes of questions"
    );
    assert!(u64::from(sent - heard) <= queue(&site).1, "{heard} of {sent} packets");
}
