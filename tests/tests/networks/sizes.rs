//! Links that take 1,280 bytes and no more: the least that IPv6 asks of a link (RFC 8200 §5). Tunnels and mobile networks often have no more.

use crate::ends::Least;
use crate::{Scene, both, figures, is_undisturbed, relayed, share_lost, tell};
use quietline_lab::settings::set;
use quietline_lab::turn::call::CHANNEL;
use quietline_lab::turn::client::{Client, Link, PATIENCE, Packet, arrived};
use quietline_lab::turn::household::{Household, Uplink};
use quietline_lab::turn::impaired::Impairment;
use quietline_lab::turn::server::{PEER, PEER_V6, PORT, SERVER, SERVER_V6, Site, Transport, alice};
use quietline_lab::turn::stun::{Builder, attribute, channel_data, kind};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const MTU: u32 = 1_280;

#[test]
fn calls_pass_where_no_packet_is_longer_than_1280_bytes() {
    // The caller's router says so when a packet is too long, the callee's link says nothing.
    let black_hole = Impairment {
        longest: MTU as usize,
        ..Impairment::NONE
    };
    let scene = Scene::new(Uplink::Cable { mtu: MTU }, Uplink::Impaired(black_hole));
    let [near, far] = &scene.relays;
    let routers = [&scene.caller.router, &*near.world];
    // A stream through a black hole is its two kernels' to mend (RFC 4821), so only the caller has one.
    let streamed = [relayed(&[near], Transport::Tls), relayed(&[far], Transport::Udp)];
    // Twenty bytes less for each packet, and no router cuts one.
    scene.caller.add_v6(&near.world);
    let over_v6 = [relayed_over_v6(near), relayed(&[far], Transport::Udp)];
    let calls = [
        scene.relayed_call("UDP", Transport::Udp),
        scene.call("TLS to UDP", streamed),
        scene.call("UDP over IPv6 to UDP", over_v6),
    ];
    for call in &calls {
        let ends = call.heard(Least::seconds(4));
        tell(&format!("1,280 bytes, {}: {}", call.name, figures(&ends)));
        assert!(
            share_lost(&ends) < 0.01 && is_undisturbed(&ends),
            "{}: {ends:#?}",
            call.name
        );
    }
    let count = |name: &str| routers.iter().map(|router| router.count(name)).sum::<u64>();
    let (fragments, told) = (count("Ip: FragCreates"), count("Icmp: OutDestUnreachs"));
    let link = both(scene.callee.link.as_ref().unwrap().passages());
    tell(&format!(
        "1,280 bytes, the links: {fragments} fragments made at the caller's, {told} times somebody was told; \
         {} vanished in the callee's black hole, the longest of {} others had {} bytes",
        link.too_long, link.passed, link.longest
    ));
    // Browsers fill packets up to what every link takes, and what the relay adds does not make them longer.
    assert!(
        link.longest > 1_200 && link.too_long == 0 && fragments == 0,
        "{link:?}, {fragments}"
    );
    // A stream's segments are cut to what its two hosts have on their own cables, until a router on the way tells them.
    assert!(told > 0);
}

fn relayed_over_v6(relay: &Site) -> Value {
    let mut config = relayed(&[relay], Transport::Udp);
    config["iceServers"][0]["urls"] = json!([format!("turn:[{SERVER_V6}]:{PORT}?transport=udp")]);
    config
}

/// A relay, and a household behind a short link.
struct Short {
    household: Household,
    /// Of the household, of the relay, and of a peer in the world.
    v6: [IpAddr; 3],
    v4: [IpAddr; 3],
    site: Site,
    _folder: tempfile::TempDir,
}

impl Short {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::quietline(folder.path(), |_| {});
        let household = Household::new(&site.world, 1, "eth0", Uplink::Cable { mtu: MTU });
        let home = household.add_v6(&site.world);
        Self {
            v6: [home.into(), SERVER_V6.into(), PEER_V6.into()],
            v4: [Ipv4Addr::UNSPECIFIED.into(), SERVER.into(), PEER.into()],
            household,
            site,
            _folder: folder,
        }
    }

    /// In the household, and a peer in the world with which it has a channel; the client's relayed address.
    fn client([home, relay, peer]: [IpAddr; 3], short: &Self) -> (Client, SocketAddr, UdpSocket) {
        let socket = short.household.home.udp(home, 0);
        let link = Link::udp(socket, (relay, PORT).into()).unwrap();
        let mut client = Client::new(link, alice(), PATIENCE);
        let relayed = if peer.is_ipv6() {
            client.allocate_v6()
        } else {
            client.allocate()
        };
        let peer = short.site.peer_at(peer);
        assert_eq!(client.bind(CHANNEL, peer.local_addr().unwrap()), 0);
        (client, relayed, peer)
    }
}

/// Packets that were sent until one arrived, if one of twenty does.
fn first_of_twenty(mut send: impl FnMut(), mut arrives: impl FnMut() -> bool) -> u32 {
    (1..=20)
        .find(|_| {
            send();
            arrives()
        })
        .expect("one of twenty packets arrives")
}

#[test]
fn packets_too_long_for_a_link_arrive_whole() {
    let short = Short::new();
    let long = vec![7; 1_400];
    for (name, addresses) in [("IPv4", short.v4), ("IPv6", short.v6)] {
        let (mut client, relayed, peer) = Short::client(addresses, &short);
        let from_peer = first_of_twenty(
            || drop(peer.send_to(&long, relayed)),
            || client.next_within(SOON) == Some(Packet::Channel(CHANNEL, long.clone())),
        );
        let from_client = first_of_twenty(
            // What ICMP has said is told once as an error, and that packet is not sent.
            || drop(client.link.send(&channel_data(CHANNEL, &long, false))),
            || arrived(&peer, SOON) == Some((relayed, long.clone())),
        );
        tell(&format!(
            "1,280 bytes, {name}: datagrams of {} bytes arrive whole, to the client number {from_peer}, from it number {from_client}",
            long.len()
        ));
    }
}

/// A packet that is not there by then is lost.
const SOON: Duration = Duration::from_millis(500);

#[test]
fn who_forbids_fragments_is_told_of_a_short_link() {
    let short = Short::new();
    let router = short.household.router.udp(Ipv4Addr::UNSPECIFIED, 4_000);
    let peer = SocketAddr::from((short.household.outer(), 4_000));
    let mut client = short.site.client(Transport::Udp, alice());
    client.allocate_with(|builder| builder.attribute(attribute::DONT_FRAGMENT, []));
    assert_eq!(client.permit(peer), 0);
    let unfragmented = |length: usize| {
        Builder::new(kind::SEND_INDICATION)
            .address(attribute::XOR_PEER_ADDRESS, peer)
            .attribute(attribute::DONT_FRAGMENT, [])
            .attribute(attribute::DATA, vec![7; length])
            .build()
    };
    client.link.send(&unfragmented(1_400)).unwrap();
    // Destination unreachable (3), fragmentation needed (4), and the MTU: RFC 8656 §18.13.
    let mut icmp = vec![0, 0, 3, 4];
    icmp.extend(MTU.to_be_bytes());
    assert_eq!(client.next(), Some(Packet::Icmp { peer, icmp }));
    // What fits passes: 20 and 8 bytes are headers.
    let fits = MTU as usize - 28;
    client.link.send(&unfragmented(fits)).unwrap();
    assert_eq!(arrived(&router, PATIENCE).unwrap().1.len(), fits);
}

#[test]
fn a_relay_whose_own_link_is_short_loses_no_burst() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), |settings| {
        set(settings, "limits.bandwidth_per_allocation", 1_000_000_000);
    });
    site.home.ip(&format!("link set out mtu {MTU}"));
    let mut client = site.client(Transport::Udp, alice());
    let relayed = client.allocate();
    let peer = site.peer_at(PEER);
    assert_eq!(client.bind(CHANNEL, peer.local_addr().unwrap()), 0);
    // As long as the link takes: with the four bytes of its channel each is longer than that.
    let length = MTU as usize - 28;
    for round in 0..BURSTS {
        for number in 0..BURST {
            let mut data = vec![round; length];
            data[0] = number;
            peer.send_to(&data, relayed).unwrap();
        }
        for number in 0..BURST {
            let packet = client.next();
            let Some(Packet::Channel(CHANNEL, data)) = &packet else {
                panic!(
                    "packet {number} of burst {round}: {packet:?}\n{}",
                    site.metrics().text()
                );
            };
            assert_eq!((data.len(), data[0], data[1]), (length, number, round));
        }
    }
}

/// More than the relay takes at once, less than sockets hold.
const BURST: u8 = 80;
const BURSTS: u8 = 20;
