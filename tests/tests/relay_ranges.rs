//! Every forbidden range of peers is tried from the edges inwards, in each way a client can name a peer (reference/turn.md §4, rows 1 to
//! 5). The relay stands in a network of its own, whose every packet is seen, before a world in which every address answers.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use quietline_lab::settings::set;
use quietline_lab::turn::client::{Client, PATIENCE, QUIET};
use quietline_lab::turn::net::Sniffer;
use quietline_lab::turn::server::{Site, Transport, alice};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// IANA's special-purpose registry and multicast, as RFC 6890 and its successors have them.
const FORBIDDEN_V4: &[(&str, u32)] = &[
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.31.196.0", 24),
    ("192.52.193.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("192.175.48.0", 24),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
];

const FORBIDDEN_V6: &[(&str, u32)] = &[
    ("::", 128),
    ("::1", 128),
    ("64:ff9b:1::", 48),
    ("100::", 64),
    ("2001::", 23),
    ("2001:db8::", 32),
    ("2002::", 16),
    ("3fff::", 20),
    ("4000::", 3),
    ("5f00::", 16),
    ("fc00::", 7),
    ("fe80::", 10),
    ("fec0::", 10),
    ("ff00::", 8),
];

/// Well-known addresses within them.
const FAMOUS: &[&str] = &[
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "192.168.1.1",
    "224.0.0.1",
    "224.0.0.251",
    "239.255.255.250",
    "255.255.255.255",
    "fd00:ec2::254",
    "fe80::a9fe:a9fe",
    "ff02::1",
    "ff0e::1",
];

/// First, second, middle and last address of a range.
fn edges_v4((network, length): (&str, u32)) -> [Ipv4Addr; 4] {
    let first = network.parse::<Ipv4Addr>().unwrap().to_bits();
    let last = first | (u32::MAX >> length);
    [first, first + 1, first + (last - first) / 2, last].map(Ipv4Addr::from_bits)
}

fn edges_v6((network, length): (&str, u32)) -> [Ipv6Addr; 4] {
    let first = network.parse::<Ipv6Addr>().unwrap().to_bits();
    let last = first | u128::MAX.checked_shr(length).unwrap_or(0);
    [first, (first + 1).min(last), first + (last - first) / 2, last].map(Ipv6Addr::from_bits)
}

fn is_forbidden_v4(ip: Ipv4Addr) -> bool {
    FORBIDDEN_V4
        .iter()
        .any(|(network, length)| (ip.to_bits() ^ network.parse::<Ipv4Addr>().unwrap().to_bits()) >> (32 - length) == 0)
}

/// Each way to write an IPv4 address as an IPv6 one.
fn embeddings(ip: Ipv4Addr) -> Vec<Ipv6Addr> {
    let low = u128::from(ip.to_bits());
    let [a, b, c, d] = ip.octets();
    let (high_half, low_half) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let within = |prefix: &str| Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | low);
    vec![
        within("::ffff:0:0"),
        within("::ffff:0:0:0"),
        within("::"),
        within("64:ff9b::"),
        within("2a00:1:2:3:0:5efe::"),
        within("2a00:1:2:3:200:5efe::"),
        // 6to4, and Teredo with the client's address turned over, as it stands there.
        Ipv6Addr::new(0x2002, high_half, low_half, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, 0x0102, 0x0506, 0, 0x1234, !high_half, !low_half),
    ]
}

fn forbidden() -> Vec<IpAddr> {
    let v4: Vec<Ipv4Addr> = FORBIDDEN_V4.iter().flat_map(|range| edges_v4(*range)).collect();
    let famous: Vec<IpAddr> = FAMOUS.iter().map(|ip| ip.parse().unwrap()).collect();
    let mut all: Vec<IpAddr> = v4.iter().map(|ip| IpAddr::V4(*ip)).collect();
    all.extend(FORBIDDEN_V6.iter().flat_map(|range| edges_v6(*range)).map(IpAddr::V6));
    all.extend(v4.iter().flat_map(|ip| embeddings(*ip)).map(IpAddr::V6));
    for ip in &famous {
        if let IpAddr::V4(ip) = ip {
            all.extend(embeddings(*ip).into_iter().map(IpAddr::V6));
        }
    }
    all.extend(famous);
    // Public within, and refused as such: RFC 8656 §21.4.
    let public = Ipv4Addr::new(8, 8, 8, 8);
    all.extend(embeddings(public).into_iter().skip(6).map(IpAddr::V6));
    all.sort_unstable();
    all.dedup();
    all
}

/// The neighbours of each range that are in none, and some public addresses.
fn allowed() -> Vec<IpAddr> {
    let neighbours = FORBIDDEN_V4.iter().flat_map(|range| {
        let [first, .., last] = edges_v4(*range);
        [first.to_bits().checked_sub(1), last.to_bits().checked_add(1)]
    });
    let neighbours = neighbours.flatten().map(Ipv4Addr::from_bits);
    let mut all: Vec<IpAddr> = neighbours.filter(|ip| !is_forbidden_v4(*ip)).map(IpAddr::V4).collect();
    let public = ["2a00:9::1", "2606:4700:4700::1111", "2001:4860:4860::8888", "2600::"];
    all.extend(public.map(|ip| ip.parse::<IpAddr>().unwrap()));
    all
}

/// What a peer would have to have done to a packet to be told from every other.
fn marked(address: SocketAddr) -> Vec<u8> {
    format!("<<scan of {address}>>").into_bytes()
}

const PORT: u16 = 8_080;

/// Every address answers in the world, and the relay's own network has a service on each of its addresses.
struct Scene {
    site: Site,
    at_home: Sniffer,
    world: Vec<std::net::UdpSocket>,
    home: Vec<std::net::UdpSocket>,
}

impl Scene {
    fn new(site: Site) -> Self {
        site.world.ip("route add local 0.0.0.0/0 dev lo");
        site.world.ip("-6 route add local ::/0 dev lo");
        let everywhere: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        let listeners = |network: &quietline_lab::turn::net::Network| -> Vec<_> {
            everywhere
                .iter()
                .map(|ip| {
                    let socket = network.run(|| {
                        let domain = socket2::Domain::for_address(SocketAddr::new(*ip, PORT));
                        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
                        if ip.is_ipv6() {
                            socket.set_only_v6(true)?;
                        }
                        socket.bind(&SocketAddr::new(*ip, PORT).into())?;
                        Ok::<_, std::io::Error>(socket)
                    });
                    socket.unwrap().into()
                })
                .collect()
        };
        Self {
            at_home: site.home.sniffer(),
            world: listeners(&site.world),
            home: listeners(&site.home),
            site,
        }
    }

    /// A client with both families, if the relay gives them to one allocation, or one for each.
    fn clients(&self) -> [Client; 2] {
        let mut v4 = self.site.client(Transport::Udp, alice());
        let mut v6 = self.site.client(Transport::Udp, alice());
        v4.allocate();
        v6.allocate_v6();
        [v4, v6]
    }

    /// Tries one address in every way; what was not refused.
    fn attempt(clients: &mut [Client; 2], ip: IpAddr, channel: u16) -> Vec<String> {
        let client = &mut clients[usize::from(ip.is_ipv6())];
        let peer = SocketAddr::new(ip, PORT);
        let mut open = Vec::new();
        for (name, outcome) in [
            ("CreatePermission", client.permit(peer)),
            ("ChannelBind", client.bind(channel, peer)),
        ] {
            if outcome != 403 {
                open.push(format!("{name}: {outcome}"));
            }
        }
        client.send_to(peer, &marked(peer));
        client.send_on(channel, &marked(peer));
        open
    }

    /// What has left the relay so far, by address. A last packet to a good peer shows that all before it have been looked at.
    fn left(&self, clients: &mut [Client; 2]) -> Vec<String> {
        let last: SocketAddr = "9.9.9.9:8080".parse().unwrap();
        assert_eq!(clients[0].permit(last), 0, "a good peer is permitted");
        clients[0].is_silent().unwrap();
        clients[1].is_silent().unwrap();
        clients[0].send_to(last, b"<<the last>>");
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let packet = self.at_home.next_with(b"<<", deadline - Instant::now());
            let packet = packet.expect("the last packet passes");
            let text = String::from_utf8_lossy(&packet).into_owned();
            // A client's own packet comes in with the same words; what leaves, leaves from a relayed port.
            let header = if packet[0] >> 4 == 4 {
                usize::from(packet[0] & 15) * 4
            } else {
                40
            };
            let (source, destination) = (&packet[header..header + 2], &packet[header + 2..header + 4]);
            if u16::from_be_bytes([source[0], source[1]]) < 49_152 || destination != PORT.to_be_bytes() {
                continue;
            }
            if text.contains("<<the last>>") {
                break;
            }
            let words = text.split("<<").nth(1).and_then(|rest| rest.split(">>").next());
            seen.push(words.unwrap_or_default().to_owned());
        }
        seen.dedup();
        seen
    }

    /// What arrived at services in these sockets.
    fn arrived(sockets: &[std::net::UdpSocket]) -> Vec<String> {
        let mut all = Vec::new();
        for socket in sockets {
            socket.set_read_timeout(Some(QUIET)).unwrap();
            let mut room = [0; 256];
            while let Ok(length) = socket.recv(&mut room) {
                all.push(String::from_utf8_lossy(&room[..length]).into_owned());
            }
        }
        all
    }
}

#[test]
fn every_forbidden_peer_is_refused_and_nothing_reaches_it() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::new(Site::quietline(folder.path(), |_| {}));
    let mut clients = scene.clients();
    let addresses = forbidden();
    assert!(addresses.len() > 600, "{} addresses", addresses.len());
    let mut open = BTreeMap::new();
    for (number, ip) in addresses.iter().enumerate() {
        let ways = Scene::attempt(&mut clients, *ip, 0x4000 + number as u16 % 0x1000);
        if !ways.is_empty() {
            open.insert(*ip, ways);
        }
    }
    assert!(open.is_empty(), "these are not refused: {open:#?}");
    let left = scene.left(&mut clients);
    assert!(left.is_empty(), "packets left the relay: {left:#?}");
    let at_home = Scene::arrived(&scene.home);
    assert!(at_home.is_empty(), "services of the machine were reached: {at_home:#?}");
    let arrived = Scene::arrived(&scene.world);
    assert_eq!(arrived, ["<<the last>>"], "somebody was reached");
}

#[test]
fn neighbours_of_forbidden_ranges_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::new(Site::quietline(folder.path(), |_| {}));
    let mut clients = scene.clients();
    for (number, ip) in allowed().into_iter().enumerate() {
        let client = &mut clients[usize::from(ip.is_ipv6())];
        let peer = SocketAddr::new(ip, PORT);
        let channel = 0x4000 + number as u16;
        assert_eq!(client.permit(peer), 0, "{ip}");
        assert_eq!(client.bind(channel, peer), 0, "{ip}");
        let socket = &scene.world[usize::from(ip.is_ipv4())];
        for way in ["Send", "channel"] {
            match way {
                "Send" => client.send_to(peer, &marked(peer)),
                _ => client.send_on(channel, &marked(peer)),
            }
            assert_eq!(scene.site.first_at(socket), Some(marked(peer)), "{ip} by {way}");
        }
    }
}

#[test]
fn a_family_that_an_allocation_has_not_is_refused_before_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), |_| {});
    let mut client = site.client(Transport::Udp, alice());
    client.allocate();
    for ip in embeddings(Ipv4Addr::LOCALHOST)
        .into_iter()
        .chain([Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED])
    {
        assert_eq!(client.permit((ip, PORT).into()), 443, "{ip}");
        assert_eq!(client.bind(0x4000, (ip, PORT).into()), 443, "{ip}");
    }
}

#[test]
fn an_address_that_the_machine_gets_is_no_peer_any_more_and_nobody_has_to_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::new(Site::quietline(folder.path(), |_| {}));
    let mut clients = scene.clients();
    let new: [SocketAddr; 2] = ["9.9.9.10:8080", "[2a00:9::2]:8080"].map(|peer| peer.parse().unwrap());
    for (client, peer) in clients.iter_mut().zip(new) {
        assert_eq!(client.permit(peer), 0, "{peer}");
    }
    scene.site.home.ip("addr add 9.9.9.10/32 dev lo");
    scene.site.home.ip("addr add 2a00:9::2/128 dev lo nodad");
    let deadline = Instant::now() + PATIENCE;
    for (client, peer) in clients.iter_mut().zip(new) {
        while client.permit(peer) == 0 {
            assert!(Instant::now() < deadline, "{peer} is still a peer");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Neither with the permission that stands.
        client.send_to(peer, &marked(peer));
        assert_eq!(client.permit(peer), 403, "{peer}");
    }
    assert!(scene.left(&mut clients).is_empty());
    assert!(
        Scene::arrived(&scene.home).is_empty(),
        "a service of the machine was reached"
    );
}

#[test]
fn an_operator_may_open_a_range_and_close_another_while_calls_run() {
    let folder = tempfile::tempdir().unwrap();
    let open = |settings: &mut toml::Table| {
        set(
            settings,
            "peers.allow",
            toml::Value::Array(vec!["10.0.0.0/8".into(), "fd00::/8".into()]),
        );
        set(settings, "peers.deny", toml::Value::Array(vec!["10.1.0.0/16".into()]));
    };
    let scene = Scene::new(Site::quietline(folder.path(), open));
    let mut clients = scene.clients();
    let [ten, eleven]: [SocketAddr; 2] = ["10.0.0.1:8080", "11.0.0.1:8080"].map(|peer| peer.parse().unwrap());
    let ten_v6: SocketAddr = "[fd00::1]:8080".parse().unwrap();
    let v4 = &scene.world[1];
    for peer in [ten, eleven] {
        assert_eq!(clients[0].permit(peer), 0, "{peer}");
        clients[0].send_to(peer, &marked(peer));
        assert_eq!(scene.site.first_at(v4), Some(marked(peer)), "{peer}");
    }
    assert_eq!(clients[1].permit(ten_v6), 0);
    assert_eq!(clients[0].permit("10.1.0.1:8080".parse().unwrap()), 403);
    assert_eq!(clients[0].permit("192.168.0.1:8080".parse().unwrap()), 403);
    scene
        .site
        .reload(|settings| set(settings, "peers.deny", toml::Value::Array(vec!["11.0.0.0/8".into()])));
    let deadline = Instant::now() + PATIENCE;
    while clients[0].permit(eleven) == 0 {
        assert!(Instant::now() < deadline, "a reload changes nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Neither of them any more, although both were permitted.
    for peer in [ten, eleven] {
        clients[0].send_to(peer, &marked(peer));
    }
    let left = scene.left(&mut clients);
    let denied = left.iter().filter(|words| words.contains("11.0.0.1")).count();
    // One of each was sent while that was allowed.
    assert_eq!((left.len(), denied), (2, 1), "{left:#?}");
}

#[test]
fn the_scan_sees_what_another_relay_lets_through() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::new(Site::coturn(folder.path(), &[]));
    let mut clients = scene.clients();
    let open: [IpAddr; 4] = ["10.0.0.1", "100.64.0.1", "192.0.2.1", "192.168.1.1"].map(|ip| ip.parse().unwrap());
    for (number, ip) in open.iter().enumerate() {
        let ways = Scene::attempt(&mut clients, *ip, 0x4000 + number as u16);
        assert_eq!(ways, ["CreatePermission: 0", "ChannelBind: 0"], "{ip}");
    }
    let left = scene.left(&mut clients);
    assert_eq!(left.len(), open.len(), "{left:#?}");
    assert_eq!(Scene::arrived(&scene.world).len(), 2 * open.len() + 1);
}
