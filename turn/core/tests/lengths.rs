//! The longest packet of each way: what is one datagram or one frame with its header passes, and one byte more does not.

mod world;

use turn_core::control::{Limits, Refusal};
use turn_core::forwarding::Dropped;
use turn_core::wire::Transport;
use world::*;

const PEER_V4: &str = "1.2.3.4:5000";

fn world() -> World {
    World::with(Options {
        limits: Limits {
            bandwidth_per_allocation: 1_000_000_000,
            ..Limits::default()
        },
        ..Options::default()
    })
}

/// A client with a relayed address of each family; two channels, and permissions for two peers without.
fn caller(world: &mut World, address: &str, transport: Transport) -> (Client, [std::net::SocketAddr; 2]) {
    let mut client = Client::over(address, transport);
    let reply = client.ask_with(
        world,
        ALLOCATE,
        &[(TRANSPORT, &[17, 0, 0, 0]), (ADDITIONAL, &[2, 0, 0, 0])],
    );
    let relayed = reply.addresses(RELAYED);
    assert_eq!(client.bind(world, 0x4001, PEER_V4).code(), 0);
    assert_eq!(client.bind(world, 0x4002, "[2a00:1::4]:5000").code(), 0);
    (client, relayed.try_into().expect("one of each family"))
}

/// A packet of `most` bytes passes, one of a byte more is too long.
fn holds(world: &mut World, what: &str, most: usize, mut passes: impl FnMut(&mut World, &[u8]) -> bool) {
    let before = world.refused(Refusal::Dropped(Dropped::TooLong));
    assert!(passes(world, &vec![7; most]), "{what}: {most} bytes pass");
    assert!(!passes(world, &vec![7; most + 1]), "{what}: {} bytes do not", most + 1);
    assert_eq!(world.refused(Refusal::Dropped(Dropped::TooLong)), before + 1, "{what}");
}

#[test]
fn a_peer_gets_the_longest_datagram_of_its_family() {
    let mut world = world();
    let (mut alice, _) = caller(&mut world, "8.8.4.4:40000", Transport::Tcp);
    for (number, most) in [(0x4001, 65_507), (0x4002, 65_527)] {
        holds(&mut world, "over a channel", most, |world, data| {
            alice.channel_data(world, number, data).is_some()
        });
    }
    holds(&mut world, "by indication", 65_507, |world, data| {
        // As long as a frame of STUN can be; the attribute is padded, the datagram is not.
        alice.send(world, PEER_V4, data).is_some()
    });
}

#[test]
fn a_client_over_udp_gets_what_is_a_datagram_with_its_header() {
    for (address, longest) in [("8.8.4.4:40000", 65_507), ("[2a00:2::4]:40000", 65_527)] {
        let mut world = world();
        let (_, [v4, v6]) = caller(&mut world, address, Transport::Udp);
        for (relayed, peer, header) in [(v4, "1.2.3.4", 36), (v6, "[2a00:1::4]", 48)] {
            holds(&mut world, "over a channel", longest - 4, |world, data| {
                world.peer_packet(relayed, &format!("{peer}:5000"), data).is_some()
            });
            // Without a channel the data is padded to a multiple of 4.
            holds(
                &mut world,
                "by indication",
                (longest - header) / 4 * 4,
                |world, data| world.peer_packet(relayed, &format!("{peer}:5001"), data).is_some(),
            );
        }
    }
}

#[test]
fn a_client_over_a_stream_gets_whatever_a_peer_can_send() {
    let mut world = world();
    let (_, [v4, v6]) = caller(&mut world, "8.8.4.4:40000", Transport::Tls);
    for (relayed, peer, longest) in [(v4, "1.2.3.4", 65_507), (v6, "[2a00:1::4]", 65_527)] {
        let mut passes = |port: u16, length: usize| {
            let peer = format!("{peer}:{port}");
            world.peer_packet(relayed, &peer, &vec![7; length]).is_some()
        };
        assert!(passes(5000, longest));
        // But a Data indication counts its bytes, 28 of which are not data, in two bytes of its own.
        assert!(passes(5001, longest.min(65_504)));
        assert_eq!(passes(5001, longest), longest == 65_507);
    }
    assert_eq!(world.refused(Refusal::Dropped(Dropped::TooLong)), 1);
}
