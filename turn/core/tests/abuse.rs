//! What attackers and accidents may not get out of the server, and what an operator may do while calls run.

mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use turn_core::auth::{Denied, NONCE_EPOCH, Nonces};
use turn_core::control::{Limits, Refusal, Settings, Shared};
use turn_core::forwarding::Dropped;
use turn_core::peers::{PeerPolicy, PeerRefusal, Prefix, RELAY_PORTS, RelayAddress, RelayTable};
use turn_core::wire::{Method, Transport};
use world::*;

const CLIENT: &str = "8.8.4.4:40000";
const PEER_A: &str = "1.2.3.4:5000";

fn client() -> Client {
    Client::new(CLIENT)
}

/// How many of so many bare requests are answered, and with how many bytes at most.
fn flood(world: &mut World, method: u16, count: u32, source: impl Fn(u32) -> String) -> (usize, usize) {
    let mut sizes = Vec::new();
    for number in 0..count {
        let mut client = Client::new(&source(number));
        let bytes = client.draft(method).0;
        if let Some(reply) = world.exchange(&client.tuple, &bytes) {
            sizes.push(reply.bytes.len());
        }
    }
    (sizes.len(), sizes.into_iter().max().unwrap_or(0))
}

#[test]
fn challenges_to_one_prefix_are_limited_and_then_silent() {
    let mut world = World::new();
    let one_prefix = |number: u32| format!("5.5.5.{}:{}", number % 200, 2000 + number % 60_000);
    assert_eq!(flood(&mut world, ALLOCATE, 1000, one_prefix), (200, 96));
    assert_eq!(world.refused(Refusal::ChallengeLimit), 800);
    world.jump(1);
    assert_eq!(flood(&mut world, ALLOCATE, 1000, one_prefix).0, 50);
    let one_v6_prefix = |number: u32| format!("[2a00:1:2:3400::{number:x}]:4000");
    assert_eq!(flood(&mut world, ALLOCATE, 1000, one_v6_prefix).0, 200);
    let other_v6_prefix = |number: u32| format!("[2a00:1:2:35{:02x}::1]:4000", number % 256);
    assert_eq!(flood(&mut world, ALLOCATE, 1000, other_v6_prefix).0, 200);
    // Another prefix is not touched by any of that.
    let other = |number: u32| format!("5.5.6.1:{}", 2000 + number);
    assert_eq!(flood(&mut world, ALLOCATE, 100, other).0, 100);
    // Wrong passwords and bad requests count too.
    let mut liar = Client::new("5.5.7.1:4000").named("alice", "wrong");
    let nonce = liar.greet(&mut world).get(NONCE).unwrap().to_vec();
    let answered = (0..300).filter(|_| {
        let draft = liar.draft(ALLOCATE);
        let bytes = liar.sign(draft).0;
        world.exchange(&liar.tuple, &bytes).is_some()
    });
    assert_eq!(answered.count(), 199);
    assert_eq!(liar.nonce, nonce);
}

#[test]
fn a_valid_integrity_is_never_limited() {
    let mut world = World::new();
    let mut client = client();
    client.allocate(&mut world);
    flood(&mut world, ALLOCATE, 1000, |number| {
        format!("8.8.4.4:{}", 2000 + number)
    });
    for _ in 0..1000 {
        assert_eq!(client.refresh(&mut world, 600).code(), 0);
    }
    client.nonce = b"stale".to_vec();
    for _ in 0..1000 {
        assert_eq!(client.refresh(&mut world, 600).code(), 438);
    }
}

#[test]
fn binding_is_limited_and_amplifies_little() {
    let mut world = World::new();
    let one_prefix = |number: u32| format!("5.5.5.{}:4000", number % 200);
    assert_eq!(flood(&mut world, BINDING, 1000, one_prefix), (200, 32));
    assert_eq!(world.refused(Refusal::BindingLimit), 800);
    // Its limit is its own.
    assert_eq!(flood(&mut world, ALLOCATE, 10, one_prefix).0, 10);
}

#[test]
fn reflections_into_services_and_into_ourselves_are_silent() {
    let mut world = World::new();
    assert_eq!(flood(&mut world, BINDING, 10, |_| "5.5.5.5:53".into()).0, 0);
    assert_eq!(flood(&mut world, BINDING, 10, |_| "5.5.5.5:1023".into()).0, 0);
    assert_eq!(flood(&mut world, BINDING, 10, |_| "5.5.5.5:1024".into()).0, 10);
    for method in [BINDING, ALLOCATE] {
        assert_eq!(flood(&mut world, method, 10, |_| "9.9.9.9:3478".into()).0, 0);
    }
    assert_eq!(world.refused(Refusal::LowPort), 20);
    assert_eq!(world.refused(Refusal::OwnEcho), 20);
    // A client behind a NAT with low ports is no stranger.
    let mut low = Client::new("6.6.6.6:700");
    low.allocate(&mut world);
    let bytes = low.draft(BINDING).0;
    assert!(world.exchange(&low.tuple, &bytes).is_some());
}

#[test]
fn strangers_leave_no_state() {
    let mut world = World::new();
    for number in 0..20_000u32 {
        let [_, a, b, c] = number.wrapping_mul(2_654_435_761).to_be_bytes();
        let mut client = Client::new(&format!("5.{a}.{b}.{c}:4000"));
        for method in [ALLOCATE, REFRESH, SEND] {
            let bytes = client.draft(method).0;
            world.packet(&client.tuple, &bytes);
        }
        world.replies.clear();
        assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), None);
    }
    assert_eq!(world.server.counters().allocations, 0);
    assert_eq!(world.server.next_deadline(), None);
}

#[test]
fn the_port_is_checked_again_for_each_packet() {
    let mut world = World::new();
    let mut client = client();
    client.allocate(&mut world);
    client.permit(&mut world, &["1.2.3.4", "9.9.9.9"]);
    assert!(client.send(&mut world, PEER_A, b"x").is_some());
    for port in [0, 19, 53, 69, 111, 123, 137, 138, 139, 161, 389, 445, 1900, 5353, 11211] {
        assert_eq!(client.send(&mut world, &format!("1.2.3.4:{port}"), b"x"), None);
        let code = client.bind(&mut world, 0x4000, &format!("1.2.3.4:{port}")).code();
        assert_eq!(code, if port == 0 { 400 } else { 403 });
    }
    assert_eq!(world.refused(Refusal::Peer(PeerRefusal::Port)), 15 + 14);
    // Our own listener: a loop. A relayed port that nobody has: nothing.
    assert_eq!(client.send(&mut world, "9.9.9.9:3478", b"x"), None);
    assert_eq!(client.send(&mut world, "9.9.9.9:22", b"x"), None);
    assert_eq!(world.refused(Refusal::Peer(PeerRefusal::OwnService)), 2);
    let nobody = (49_152..).find(|port| !world.open.contains(&(0, *port))).unwrap();
    assert_eq!(client.send(&mut world, &format!("9.9.9.9:{nobody}"), b"x"), None);
    assert_eq!(world.refused(Refusal::Dropped(Dropped::NobodyThere)), 1);
}

#[test]
fn bandwidth_is_bounded_for_each_and_for_all() {
    let limits = Limits {
        bandwidth_per_allocation: 200_000,
        bandwidth: 300_000,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut relayed = BTreeMap::new();
    let mut clients: Vec<Client> = (0..3)
        .map(|n| Client::new(&format!("8.8.4.4:{}", 40_000 + n)))
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        relayed.insert(number, client.allocate(&mut world));
        client.bind(&mut world, 0x4000, PEER_A);
    }
    let through = |world: &mut World, client: &mut Client| {
        (0..1000)
            .filter(|_| client.channel_data(world, 0x4000, &[0; 1000]).is_some())
            .count()
    };
    assert_eq!(through(&mut world, &mut clients[0]), 200);
    assert!(world.refused(Refusal::Dropped(Dropped::AllocationBandwidth)) == 800);
    // The total is taken in portions of 64 KiB.
    let rest = through(&mut world, &mut clients[1]) + through(&mut world, &mut clients[2]);
    assert!((60..=160).contains(&rest), "{rest}");
    assert!(world.refused(Refusal::Dropped(Dropped::TotalBandwidth)) > 0);
    world.pass(1);
    assert!(through(&mut world, &mut clients[0]) >= 190);
    // The other direction has its own rate.
    world.pass(1);
    let down = (0..1000)
        .filter(|_| world.peer_packet(relayed[&0], PEER_A, &[0; 1000]).is_some())
        .count();
    assert_eq!(down, 200);
}

#[test]
fn timed_credentials_end_for_new_allocations_only() {
    let mut world = World::new();
    let mut timed = client().timed(&format!("{}:a1b2", UNIX_START + 100));
    let relayed = timed.allocate(&mut world);
    world.pass(200);
    assert_eq!(timed.refresh(&mut world, 600).code(), 0);
    assert_eq!(timed.permit(&mut world, &["1.2.3.4"]).code(), 0);
    assert_eq!(timed.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
    let mut late = Client::new("8.8.4.4:40001").timed(&format!("{}", UNIX_START + 100));
    assert_eq!(late.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 401);
    assert_eq!(world.refused(Refusal::TimedOver), 1);
    let mut far = Client::new("8.8.4.4:40002").timed(&format!("{}", UNIX_START + 90_000));
    assert_eq!(far.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 401);
    assert_eq!(world.refused(Refusal::TimedTooFar), 1);
    let mut good = Client::new("8.8.4.4:40003").timed(&format!("{}", UNIX_START + 86_400));
    good.allocate(&mut world);
    for nonsense in ["", ":", "abc", "-1", "99999999999999999999999", "18000006 00"] {
        let mut client = Client::new("8.8.4.4:40004").timed(nonsense);
        let code = client.ask_with(&mut world, ALLOCATE, &[UDP]).code();
        assert_eq!(code, if nonsense.is_empty() { 400 } else { 401 }, "{nonsense}");
    }
}

#[test]
fn a_reload_changes_who_may_come_and_keeps_who_is_there() {
    let mut world = World::new();
    let mut alice = client();
    let relayed = alice.allocate(&mut world);
    alice.bind(&mut world, 0x4000, PEER_A);
    alice.permit(&mut world, &["2.2.2.2"]);
    let options = Options {
        limits: Limits {
            max_lifetime: Duration::from_secs(700),
            ..Limits::default()
        },
        policy: PeerPolicy {
            deny: vec![Prefix::parse("2.2.2.0/24").unwrap()],
            ..PeerPolicy::default()
        },
        ..Options::default()
    };
    let settings = options.settings(&[("carol", "a singer")], world.shared.relays());
    world.server.reload(settings);
    assert_eq!(alice.refresh(&mut world, 3600).lifetime(), 700);
    assert!(alice.channel_data(&mut world, 0x4000, b"x").is_some());
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
    // What the new policy refuses is over.
    assert!(world.peer_packet(relayed, "2.2.2.2:5", b"x").is_none());
    assert_eq!(alice.permit(&mut world, &["2.2.2.2"]).code(), 403);
    let mut gone = Client::new("8.8.4.4:40001");
    assert_eq!(gone.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 401);
    let mut carol = Client::new("8.8.4.4:40002").named("carol", "a singer");
    carol.allocate(&mut world);
    assert_eq!(alice.refresh(&mut world, 0).code(), 0);
    assert_eq!(alice.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 401);
}

#[test]
fn a_draining_server_finishes_what_it_has() {
    let mut world = World::new();
    let mut alice = client();
    alice.allocate(&mut world);
    world.server.drain();
    let mut late = Client::new("8.8.4.4:40001");
    assert_eq!(late.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 508);
    assert_eq!(alice.refresh(&mut world, 600).code(), 0);
    assert_eq!(alice.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert!(alice.channel_data(&mut world, 0x4000, b"x").is_some());
    world.pass(600);
    assert_eq!(world.server.counters().allocations, 0);
    assert_eq!(world.shared.allocations(), 0);
}

#[test]
fn an_allocation_ends_in_time_with_and_without_its_timer() {
    for with_timer in [true, false] {
        let mut world = World::new();
        let mut client = client();
        let relayed = client.allocate(&mut world);
        client.bind(&mut world, 0x4000, PEER_A);
        client.permit(&mut world, &["1.2.3.4"]);
        if with_timer {
            world.pass(299)
        } else {
            world.jump(299)
        }
        assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
        client.permit(&mut world, &["1.2.3.4"]);
        if with_timer {
            world.pass(301)
        } else {
            world.jump(301)
        }
        assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
        assert!(client.channel_data(&mut world, 0x4000, b"x").is_none());
        assert_eq!(client.refresh(&mut world, 600).code(), 437);
        assert_eq!(world.open.is_empty(), with_timer);
        // The same five-tuple may begin again at once.
        client.allocate(&mut world);
        assert_eq!(world.open.len(), 1);
        assert_eq!(world.shared.allocations(), 1);
    }
}

#[test]
fn what_has_ended_takes_no_room_and_does_nothing_before_its_timer_comes() {
    let limits = Limits {
        permissions_per_allocation: 1,
        channels_per_allocation: 1,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut client = client();
    let relayed = client.allocate(&mut world);
    client.refresh(&mut world, 3600);
    client.bind(&mut world, 0x4000, PEER_A);
    world.jump(300);
    assert_eq!(client.permit(&mut world, &["1.2.3.9"]).code(), 0);
    world.jump(299);
    // The other permission lives, so there is no room.
    assert_eq!(client.permit(&mut world, &["1.2.3.4"]).code(), 508);
    world.jump(1);
    assert_eq!(client.permit(&mut world, &["1.2.3.4"]).code(), 0);
    // The channel ended in this second: data comes as an indication, and its number is free.
    let Some(Packet::ToClient { bytes, .. }) = world.peer_packet(relayed, PEER_A, b"x") else {
        panic!("nothing")
    };
    assert_eq!(Reply::read(&bytes).kind, DATA);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), None);
    assert_eq!(client.bind(&mut world, 0x4001, PEER_A).code(), 0);
}

#[test]
fn a_channel_ends_on_time_although_no_timer_came() {
    let mut world = World::new();
    let mut client = client();
    let relayed = client.allocate(&mut world);
    client.refresh(&mut world, 3600);
    client.bind(&mut world, 0x4000, PEER_A);
    world.jump(299);
    client.permit(&mut world, &["1.2.3.4"]);
    world.jump(299);
    client.permit(&mut world, &["1.2.3.4"]);
    let first = |packet: Option<Packet>| match packet {
        Some(Packet::ToClient { bytes, .. }) => bytes[0],
        other => panic!("{other:?}"),
    };
    world.jump(1);
    assert_eq!(first(world.peer_packet(relayed, PEER_A, b"x")), 0x40);
    world.jump(1);
    assert_eq!(first(world.peer_packet(relayed, PEER_A, b"x")), 0x00);
}

#[test]
fn a_port_that_does_not_open_is_replaced_before_the_client_hears() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    world.failing_relays = 2;
    let reply = client.ask_with(&mut world, ALLOCATE, &[UDP, (EVEN_PORT, &[0x80])]);
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.relayed().port() % 2, 0);
    assert!(reply.has(TOKEN));
    assert_eq!(world.open.iter().next().unwrap().1, reply.relayed().port());
    assert_eq!(world.open.len(), 1);
    client.permit(&mut world, &["1.2.3.4"]);
    assert!(world.peer_packet(reply.relayed(), PEER_A, b"x").is_some());

    let mut unlucky = Client::new("8.8.4.4:40001");
    unlucky.greet(&mut world);
    world.failing_relays = 100;
    assert_eq!(unlucky.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 508);
    assert_eq!(world.failing_relays, 83);
    assert_eq!(world.refused(Refusal::PortsDoNotOpen), 1);
    assert_eq!(world.shared.allocations(), 1);
    assert_eq!(world.server.counters().successes.count(Method::Allocate), 1);

    // One address of two opens.
    world.failing_relays = 17;
    let mut dual = Client::new("8.8.4.4:40002");
    let reply = dual.ask_with(&mut world, ALLOCATE, &[UDP, (ADDITIONAL, &[2, 0, 0, 0])]);
    assert_eq!(reply.code(), 0);
    assert_eq!(
        reply.addresses(RELAYED).len(),
        2 - usize::from(reply.has(ADDRESS_ERROR))
    );
}

#[test]
fn who_allocates_and_ends_all_the_time_leaves_ports_to_others() {
    let mut world = World::with(Options {
        ports: (50_000, 50_009),
        ..Options::default()
    });
    let mut busy = client();
    for _ in 0..50 {
        busy.allocate(&mut world);
        assert_eq!(busy.refresh(&mut world, 0).code(), 0);
    }
    let mut other = Client::new("8.8.4.5:40000");
    other.allocate(&mut world);
    assert_eq!(world.refused(Refusal::NoPort), 0);
}

#[test]
fn who_reserves_and_ends_all_the_time_leaves_ports_to_others() {
    let mut world = World::with(Options {
        ports: (50_000, 50_063),
        ..Options::default()
    });
    let mut busy = client();
    for _ in 0..64 {
        let reply = busy.ask_with(&mut world, ALLOCATE, &[UDP, (EVEN_PORT, &[0x80])]);
        assert!(reply.has(TOKEN));
        assert_eq!(busy.refresh(&mut world, 0).code(), 0);
    }
    // Of 64 ports, four may be reserved.
    for number in 0..60 {
        Client::new(&format!("8.8.5.{number}:40000")).allocate(&mut world);
    }
    let mut late = Client::new("8.8.6.1:40000");
    assert_eq!(late.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 508);
    world.pass(60);
    assert_eq!(late.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 0);
}

#[test]
fn an_answer_has_a_fingerprint_like_its_request_although_a_port_did_not_open() {
    for failing in [1, 100] {
        let mut world = World::new();
        let mut client = client();
        client.greet(&mut world);
        world.failing_relays = failing;
        let draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
        let bytes = client.sign(draft).fingerprint().0;
        assert!(world.exchange(&client.tuple, &bytes).unwrap().has(FINGERPRINT));
    }
}

#[test]
fn a_limit_that_a_reload_lowered_ends_no_permission() {
    let mut world = World::new();
    let mut client = client();
    client.allocate(&mut world);
    client.permit(&mut world, &["1.2.3.4", "1.2.3.5"]);
    client.bind(&mut world, 0x4000, PEER_A);
    let limits = Limits {
        permissions_per_allocation: 1,
        channels_per_allocation: 0,
        ..Limits::default()
    };
    let options = Options {
        limits,
        ..Options::default()
    };
    let relays = world.shared.relays().clone();
    world.server.reload(options.settings(USERS, &relays));
    assert_eq!(client.permit(&mut world, &["1.2.3.4", "1.2.3.5"]).code(), 0);
    assert_eq!(client.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert_eq!(client.permit(&mut world, &["1.2.3.6"]).code(), 508);
}

#[test]
fn every_client_gets_a_port_though_others_have_half_of_the_range() {
    let mut world = World::new();
    world.is_taken_by_others = |port| port % 4 < 2;
    for number in 0..500u16 {
        let mut client = Client::new(&format!("8.8.{}.{}:40001", number / 100, number % 100));
        client.greet(&mut world);
        let reply = client.ask_with(&mut world, ALLOCATE, &[UDP]);
        assert_eq!(reply.code(), 0);
        assert!(reply.relayed().port() % 4 >= 2);
    }
    assert_eq!(world.refused(Refusal::PortsDoNotOpen), 0);
}

#[test]
fn a_closed_stream_takes_its_allocation_with_it() {
    let mut world = World::new();
    let mut client = Client::over(CLIENT, Transport::Tcp);
    client.allocate(&mut world);
    assert!(world.server.has_allocation(&client.tuple, world.now()));
    let now = world.now();
    world.server.handle_stream_closed(&client.tuple, now);
    world.drain_outputs();
    assert!(world.open.is_empty());
    assert!(!world.server.has_allocation(&client.tuple, world.now()));
}

#[test]
fn outer_addresses_of_a_nat_are_ours_too() {
    let address = RelayAddress {
        bind: "10.0.0.9".parse().unwrap(),
        advertised: "9.9.9.9".parse().unwrap(),
    };
    let mut world = World::with(Options {
        relays: vec![address],
        ..Options::default()
    });
    let mut alice = client();
    let mut bob = Client::new("8.8.4.5:40000").named("bob", "the builder");
    let (ra, rb) = (alice.allocate(&mut world), bob.allocate(&mut world));
    assert_eq!(ra.ip(), address.advertised);
    // Alice names the outer address, Bob the inner one; both are the same.
    alice.bind(&mut world, 0x4000, &rb.to_string());
    let inner = SocketAddr::new(address.bind, ra.port());
    assert_eq!(bob.bind(&mut world, 0x4001, &inner.to_string()).code(), 0);
    let expected = Packet::ToClient {
        to: bob.tuple.client(),
        bytes: channel_data(0x4001, b"x"),
    };
    assert_eq!(alice.channel_data(&mut world, 0x4000, b"x"), Some(expected.clone()));
    // The same packet, had it come through the kernel.
    assert_eq!(world.peer_packet(rb, &inner.to_string(), b"x"), Some(expected));
    alice.permit(&mut world, &["1.2.3.4"]);
    let Some(Packet::ToPeer { from, .. }) = alice.send(&mut world, PEER_A, b"x") else {
        panic!("nothing")
    };
    assert_eq!(from, inner);
}

#[test]
fn a_server_that_listens_on_loopback_for_tests_relays_there_only_when_allowed() {
    let address = RelayAddress {
        bind: "127.0.0.1".parse().unwrap(),
        advertised: "127.0.0.1".parse().unwrap(),
    };
    let policy = PeerPolicy {
        allow: vec![Prefix::parse("127.0.0.2").unwrap()],
        ..PeerPolicy::default()
    };
    let mut world = World::with(Options {
        relays: vec![address],
        policy,
        ..Options::default()
    });
    let mut client = Client::new("127.0.0.1:50000");
    client.allocate(&mut world);
    assert_eq!(client.permit(&mut world, &["127.0.0.2"]).code(), 0);
    assert_eq!(client.permit(&mut world, &["127.0.0.3"]).code(), 403);
    assert_eq!(client.bind(&mut world, 0x4000, "127.0.0.1:80").code(), 403);
}

#[test]
fn two_clients_of_one_shard_and_one_with_itself() {
    let mut world = World::new();
    let mut alice = client();
    let mut bob = Client::new("8.8.4.5:40000").named("bob", "the builder");
    let (ra, rb) = (
        alice.allocate(&mut world).to_string(),
        bob.allocate(&mut world).to_string(),
    );
    alice.bind(&mut world, 0x4000, &rb);
    bob.bind(&mut world, 0x4000, &ra);
    let to_bob = Packet::ToClient {
        to: bob.tuple.client(),
        bytes: channel_data(0x4000, b"x"),
    };
    assert_eq!(alice.channel_data(&mut world, 0x4000, b"x"), Some(to_bob));
    alice.bind(&mut world, 0x4001, &ra);
    let to_herself = Packet::ToClient {
        to: alice.tuple.client(),
        bytes: channel_data(0x4001, b"x"),
    };
    assert_eq!(alice.channel_data(&mut world, 0x4001, b"x"), Some(to_herself));
    assert_eq!(world.server.counters().within.packets, 2);
}

#[test]
fn more_local_channels_than_a_slot_holds_are_refused() {
    let mut world = World::new();
    let mut alice = client();
    alice.allocate(&mut world);
    for number in 0..9 {
        let mut other = Client::new(&format!("8.8.4.5:{}", 40_000 + number));
        let relayed = other.allocate(&mut world).to_string();
        let code = alice.bind(&mut world, 0x4000 + number, &relayed).code();
        assert_eq!(code, if number < 8 { 0 } else { 508 });
    }
    assert_eq!(alice.bind(&mut world, 0x4100, PEER_A).code(), 0);
}

#[test]
fn shards_share_quotas_reservations_and_nonces() {
    let relays = RelayTable::new(vec![v4_relay()], RELAY_PORTS).unwrap();
    let nonces = Nonces::new(quietline_shared::redact::Secret::new([7; 32]), NONCE_EPOCH);
    let shared = Arc::new(Shared::new(relays.clone(), nonces, [1, 2]));
    let options = Options {
        limits: Limits {
            allocations: 2,
            ..Limits::default()
        },
        ..Options::default()
    };
    let settings: Arc<Settings> = options.settings(USERS, &relays);
    let mut one = World::shard(shared.clone(), settings.clone(), 0);
    let mut two = World::shard(shared, settings, 1);
    let mut first = client();
    first.greet(&mut one);
    let token = first
        .ask_with(&mut two, ALLOCATE, &[UDP, (EVEN_PORT, &[0x80])])
        .get(TOKEN)
        .unwrap()
        .to_vec();
    let mut second = Client::new("8.8.4.5:40000");
    assert_eq!(second.ask_with(&mut one, ALLOCATE, &[UDP, (TOKEN, &token)]).code(), 0);
    let mut third = Client::new("8.8.4.6:40000");
    assert_eq!(third.ask_with(&mut two, ALLOCATE, &[UDP]).code(), 486);
    second.refresh(&mut one, 0);
    assert_eq!(third.ask_with(&mut two, ALLOCATE, &[UDP]).code(), 0);
    assert_eq!(two.server.counters().allocations, 2);
}

#[test]
fn nothing_that_prints_names_a_client() {
    let mut world = World::new();
    let mut client = Client::new("88.77.66.55:40404");
    let relayed = client.allocate(&mut world);
    client.bind(&mut world, 0x4000, "11.22.33.44:5555");
    let now = world.now();
    let bytes = channel_data(0x4000, b"x");
    let hop = world
        .server
        .handle_client(&client.tuple, &bytes, now, &mut |_| {})
        .unwrap();
    let draft = client.draft(REFRESH);
    let bytes = client.sign(draft).0;
    world.server.handle_client(&client.tuple, &bytes, now, &mut |_| {});
    let output = world.server.poll_output().unwrap();
    let text = format!("{hop:?} {output:?} {:?} {:?}", client.tuple, world.server.counters());
    let port = relayed.port().to_string();
    for canary in [
        "88.77",
        "40404",
        "11.22",
        "5555",
        "alice",
        port.as_str(),
        "88, 77",
        "11, 22",
    ] {
        assert!(!text.contains(canary), "{canary} in {text}");
    }
    let denied = Refusal::Denied(Denied::Credential);
    assert_eq!(
        (denied.stage(), denied.label(), denied.code()),
        ("auth", "credential", Some(401))
    );
}
