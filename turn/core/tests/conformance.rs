//! What RFC 8489 and RFC 8656 demand of a TURN server, case by case, over the whole server with time as an argument.

mod world;

use std::net::SocketAddr;
use turn_core::control::{Icmp, Limits};
use turn_core::wire::{FiveTuple, Transport};
use world::*;

const CLIENT: &str = "8.8.4.4:40000";
const PEER_A: &str = "1.2.3.4:5000";

fn client() -> Client {
    Client::new(CLIENT)
}

#[test]
fn case_1_binding_tells_the_source_and_nothing_else() {
    let mut world = World::new();
    for (source, size) in [(CLIENT, 32), ("[2a00:1::5]:40000", 44)] {
        let mut client = Client::new(source);
        let bare = client.draft(BINDING).0;
        let reply = world.exchange(&client.tuple, &bare).unwrap();
        assert_eq!(reply.kind, 0x0101);
        assert_eq!(reply.addresses(MAPPED), [source.parse::<SocketAddr>().unwrap()]);
        assert_eq!(reply.bytes.len(), size);
        let marked = client.draft(BINDING).fingerprint().0;
        let reply = world.exchange(&client.tuple, &marked).unwrap();
        assert!(reply.has(FINGERPRINT));
        assert_eq!(reply.bytes.len(), size + 8);
    }
}

#[test]
fn case_2_unknown_attributes_of_binding() {
    let mut world = World::new();
    let mut client = client();
    let required = client.draft(BINDING).with(0x7FFF, b"x").with(0x7FFE, b"").0;
    let reply = world.exchange(&client.tuple, &required).unwrap();
    assert_eq!(reply.code(), 420);
    assert_eq!(reply.get(UNKNOWN).unwrap(), [0x7F, 0xFF, 0x7F, 0xFE]);
    let optional = client.draft(BINDING).with(0xFFFE, b"x").0;
    assert_eq!(world.exchange(&client.tuple, &optional).unwrap().code(), 0);
    for indication in [
        client.draft(BINDING | 0x10),
        client.draft(BINDING | 0x10).with(0x7FFF, b""),
    ] {
        assert!(world.exchange(&client.tuple, &indication.0).is_none());
    }
}

#[test]
fn case_3_what_is_malformed_gets_silence() {
    let mut world = World::new();
    let mut client = client();
    let good = client.draft(BINDING).with(0x8022, b"soft").0;
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let mut bad_fingerprint = client.draft(BINDING).fingerprint().0;
    bad_fingerprint[27] ^= 1;
    for bytes in [
        with(4, 0x20),
        with(3, 7),
        with(3, 4),
        with(3, 12),
        with(0, 0x80),
        with(0, 0xC0),
        with(23, 0xFF),
        bad_fingerprint,
        good[..19].to_vec(),
        vec![],
        // A last attribute without its padding must not lead beyond the end.
        {
            let mut bytes = client.draft(BINDING).with(0x8022, b"s").0;
            bytes.truncate(25);
            bytes
        },
    ] {
        assert_eq!(world.packet(&client.tuple, &bytes), None);
        assert!(world.replies.is_empty());
    }
    assert!(world.exchange(&client.tuple, &good).is_some());
}

#[test]
fn case_4_without_integrity_there_is_a_challenge() {
    let mut world = World::new();
    let mut client = client();
    let reply = client.greet(&mut world);
    assert_eq!(reply.get(REALM_ATTRIBUTE).unwrap(), REALM.as_bytes());
    assert!(reply.get(NONCE).unwrap().starts_with(b"obMatJos2wAAA"));
    assert_eq!(reply.get(ALGORITHMS).unwrap(), [0, 2, 0, 0, 0, 1, 0, 0]);
    for absent in [USERNAME, USERHASH, INTEGRITY, INTEGRITY_SHA256] {
        assert!(!reply.has(absent));
    }
    assert!(reply.bytes.len() <= 112, "{}", reply.bytes.len());
    let mut other = Client::new("8.8.4.4:40001");
    assert_ne!(other.greet(&mut world).get(NONCE), reply.get(NONCE));
    let bare = client.draft(ALLOCATE).fingerprint().0;
    let marked = world.exchange(&client.tuple, &bare).unwrap();
    assert!(marked.bytes.len() <= 112, "{}", marked.bytes.len());
    for method in [REFRESH, PERMIT, BIND] {
        let bare = client.draft(method).0;
        assert_eq!(world.exchange(&client.tuple, &bare).unwrap().code(), 401);
    }
}

#[test]
fn case_5_an_integrity_without_its_companions_is_a_bad_request() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    let nonce = client.nonce.clone();
    let whole: [(u16, &[u8]); 3] = [
        (USERNAME, b"alice"),
        (REALM_ATTRIBUTE, REALM.as_bytes()),
        (NONCE, &nonce),
    ];
    for missing in 0..3 {
        let mut draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
        for (at, (kind, value)) in whole.iter().enumerate() {
            if at != missing {
                draft = draft.with(*kind, value);
            }
        }
        let reply = world
            .exchange(&client.tuple, &draft.sign(&client.key(), false).0)
            .unwrap();
        assert_eq!(reply.code(), 400);
        for absent in [USERNAME, USERHASH, REALM_ATTRIBUTE, NONCE, INTEGRITY] {
            assert!(!reply.has(absent));
        }
    }
    // A name that is too long, or no text, is no name.
    for name in [vec![b'a'; 509], vec![0xFF, 0xFE]] {
        let draft = client.draft(ALLOCATE).with(USERNAME, &name);
        let draft = draft
            .with(REALM_ATTRIBUTE, REALM.as_bytes())
            .with(NONCE, &nonce)
            .sign(b"k", false);
        assert_eq!(world.exchange(&client.tuple, &draft.0).unwrap().code(), 400);
    }
}

#[test]
fn case_6_unknown_users_and_wrong_passwords_look_the_same() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    let draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
    let mut replies = Vec::new();
    for (user, password) in [
        ("alice", "wrong"),
        ("nobody", "wonderland"),
        ("1800000600", "wrong"),
        ("1700000000", "wrong"),
    ] {
        let liar = client.clone().named(user, password);
        replies.push(world.exchange(&client.tuple, &liar.sign(draft.clone()).0).unwrap());
    }
    // Expired long ago, and too far in the future: the integrity is good.
    for user in ["1700000000", "1900000000:x"] {
        let late = client.clone().timed(user);
        replies.push(world.exchange(&client.tuple, &late.sign(draft.clone()).0).unwrap());
    }
    let hashed = draft.with(USERHASH, &[9; 32]).with(REALM_ATTRIBUTE, REALM.as_bytes());
    let hashed = hashed.with(NONCE, &client.nonce).sign(&client.key(), false);
    replies.push(world.exchange(&client.tuple, &hashed.0).unwrap());
    assert_eq!(replies[0].code(), 401);
    assert!(replies[0].has(NONCE) && replies[0].has(REALM_ATTRIBUTE) && replies[0].has(ALGORITHMS));
    assert!(replies.iter().all(|reply| reply.bytes == replies[0].bytes));
}

#[test]
fn case_7_stale_foreign_and_random_nonces() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    let mut foreign = Client::new("8.8.4.4:40001");
    foreign.greet(&mut world);
    let own = client.nonce.clone();
    for nonce in [foreign.nonce.clone(), b"random".to_vec(), vec![b'x'; 763]] {
        client.nonce = nonce;
        let reply = client.ask_with(&mut world, ALLOCATE, &[UDP]);
        assert_eq!(reply.code(), 438);
        assert!(reply.has(REALM_ATTRIBUTE) && reply.has(ALGORITHMS));
        assert_eq!(reply.get(NONCE).unwrap(), own);
        assert!(reply.bytes.len() <= 112);
    }
    client.nonce = own;
    world.jump(2 * 1800);
    let reply = client.ask_with(&mut world, ALLOCATE, &[UDP]);
    assert_eq!(reply.code(), 438);
    client.learn(&reply);
    client.allocate(&mut world);
    // One that was given at the end of an epoch survives into the next.
    world.pass(1799 - 1);
    let mut late = Client::new("8.8.4.4:40003");
    late.greet(&mut world);
    world.pass(300);
    late.allocate(&mut world);
}

#[test]
fn case_8_sha256_userhash_and_bidding_down() {
    let mut world = World::new();
    let mut client = client().with_sha256();
    client.greet(&mut world);
    let reply = client.ask_with(&mut world, ALLOCATE, &[UDP]);
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.get(INTEGRITY_SHA256).unwrap().len(), 32);
    assert!(!reply.has(INTEGRITY));
    // The list altered, the algorithm alone, the list alone, an algorithm that is not on it.
    let lists: [&[(u16, &[u8])]; 4] = [
        &[(ALGORITHMS, &[0, 1, 0, 0]), (ALGORITHM, &[0, 1, 0, 0])],
        &[(ALGORITHM, &[0, 2, 0, 0])],
        &[(ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0])],
        &[(ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0]), (ALGORITHM, &[0, 9, 0, 0])],
    ];
    for list in lists {
        let mut draft = client
            .draft(REFRESH)
            .with(USERNAME, b"alice")
            .with(REALM_ATTRIBUTE, REALM.as_bytes());
        draft = draft.with(NONCE, &client.nonce);
        draft = list.iter().fold(draft, |draft, (kind, value)| draft.with(*kind, value));
        let reply = world
            .exchange(&client.tuple, &draft.sign(&client.key(), true).0)
            .unwrap();
        assert_eq!(reply.code(), 400);
    }
    // USERHASH in place of USERNAME.
    use sha2::Digest;
    let hash = sha2::Sha256::digest(format!("alice:{REALM}"));
    let draft = client
        .draft(REFRESH)
        .with(USERHASH, &hash)
        .with(REALM_ATTRIBUTE, REALM.as_bytes());
    let draft = draft
        .with(NONCE, &client.nonce)
        .with(ALGORITHMS, &client.algorithms)
        .with(ALGORITHM, &[0, 2, 0, 0]);
    let reply = world
        .exchange(&client.tuple, &draft.sign(&client.key(), true).0)
        .unwrap();
    assert_eq!(reply.code(), 0);
    client.check_integrity(&reply);
}

#[test]
fn case_9_what_stands_behind_the_integrity_is_ignored() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    let draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
    let draft = client.sign(draft).with(LIFETIME, &3600u32.to_be_bytes());
    assert_eq!(world.exchange(&client.tuple, &draft.0).unwrap().lifetime(), 600);
    let draft = client.draft(REFRESH);
    let draft = client.sign(draft).with(LIFETIME, &[0; 4]);
    assert_eq!(world.exchange(&client.tuple, &draft.0).unwrap().lifetime(), 600);
    let draft = client.draft(PERMIT).address(PEER, address("1.1.1.1"));
    let draft = client.sign(draft).address(PEER, address("2.2.2.2"));
    assert_eq!(world.exchange(&client.tuple, &draft.0).unwrap().code(), 0);
    assert!(client.send(&mut world, "1.1.1.1:99", b"x").is_some());
    assert!(client.send(&mut world, "2.2.2.2:99", b"x").is_none());
}

#[test]
fn case_10_an_allocation_has_a_random_high_port() {
    let mut world = World::new();
    let mut ports = Vec::new();
    for number in 0..20 {
        let mut client = Client::new(&format!("8.8.4.4:{}", 40_000 + number));
        client.greet(&mut world);
        let reply = client.ask_with(&mut world, ALLOCATE, &[UDP]);
        assert_eq!(reply.lifetime(), 600);
        assert_eq!(reply.addresses(MAPPED), [client.tuple.client()]);
        assert_eq!(reply.relayed().ip(), v4_relay().advertised);
        assert!(reply.relayed().port() >= 49_152);
        assert!(world.open.contains(&(0, reply.relayed().port())));
        ports.push(reply.relayed().port());
    }
    assert!(ports.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1));
    let mut over_v6 = Client::new("[2a00:1::5]:40000");
    assert!(over_v6.allocate(&mut world).is_ipv4());
}

#[test]
fn case_11_lifetimes_are_clamped() {
    let mut world = World::new();
    for (number, (asked, given)) in [(10u32, 600), (0, 600), (601, 601), (100_000, 3600)]
        .into_iter()
        .enumerate()
    {
        let mut client = Client::new(&format!("8.8.4.4:{}", 40_000 + number));
        let reply = client.ask_with(&mut world, ALLOCATE, &[UDP, (LIFETIME, &asked.to_be_bytes())]);
        assert_eq!(reply.lifetime(), given);
    }
}

#[test]
fn case_12_only_udp_is_relayed() {
    let mut world = World::new();
    let mut client = client();
    assert_eq!(client.ask_with(&mut world, ALLOCATE, &[]).code(), 400);
    assert_eq!(
        client.ask_with(&mut world, ALLOCATE, &[(TRANSPORT, &[17, 0])]).code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[(TRANSPORT, &[6, 0, 0, 0])])
            .code(),
        442
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[(TRANSPORT, &[99, 0, 0, 0])])
            .code(),
        442
    );
    let mut over_tcp = Client::over("8.8.4.4:50000", Transport::Tcp);
    assert_eq!(
        over_tcp
            .ask_with(&mut world, ALLOCATE, &[(TRANSPORT, &[6, 0, 0, 0])])
            .code(),
        442
    );
}

#[test]
fn case_13_the_same_five_tuple_again() {
    let mut world = World::new();
    let mut client = client();
    client.greet(&mut world);
    let draft = client.draft(ALLOCATE).with(UDP.0, UDP.1);
    let request = client.sign(draft).0;
    let first = world.exchange(&client.tuple, &request).unwrap();
    assert_eq!(first.code(), 0);
    let again = world.exchange(&client.tuple, &request).unwrap();
    assert!(again == first);
    assert_eq!(world.open.len(), 1);
    assert_eq!(client.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 437);
}

#[test]
fn case_14_another_user_on_the_same_five_tuple() {
    let mut world = World::new();
    let mut alice = client();
    alice.allocate(&mut world);
    let mut bob = alice.clone().named("bob", "the builder");
    assert_eq!(bob.refresh(&mut world, 0).code(), 441);
    assert_eq!(bob.permit(&mut world, &["1.1.1.1"]).code(), 441);
    assert_eq!(bob.bind(&mut world, 0x4000, PEER_A).code(), 441);
    assert_eq!(bob.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 437);
    assert_eq!(alice.refresh(&mut world, 600).code(), 0);
}

#[test]
fn case_15_address_families() {
    let v4_only = || {
        World::with(Options {
            relays: vec![v4_relay()],
            ..Options::default()
        })
    };
    let v6: (u16, &[u8]) = (FAMILY, &[2, 0, 0, 0]);
    let both: (u16, &[u8]) = (ADDITIONAL, &[2, 0, 0, 0]);
    let mut world = v4_only();
    let mut client = client();
    assert_eq!(client.ask_with(&mut world, ALLOCATE, &[UDP, v6]).code(), 440);
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, (FAMILY, &[9, 0, 0, 0])])
            .code(),
        440
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, v6, (TOKEN, &[1; 8])])
            .code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, both, (TOKEN, &[1; 8])])
            .code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, (EVEN_PORT, &[0]), (TOKEN, &[1; 8])])
            .code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, (FAMILY, &[1, 0, 0, 0]), both])
            .code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, (ADDITIONAL, &[1, 0, 0, 0])])
            .code(),
        400
    );
    assert_eq!(
        client
            .ask_with(&mut world, ALLOCATE, &[UDP, (EVEN_PORT, &[0x80]), both])
            .code(),
        400
    );
    let reply = client.ask_with(&mut world, ALLOCATE, &[UDP, both]);
    assert_eq!(reply.addresses(RELAYED).len(), 1);
    assert_eq!(reply.get(ADDRESS_ERROR).unwrap(), [2, 0, 4, 40]);

    let mut world = World::new();
    let mut dual = Client::new("8.8.4.4:40001");
    let reply = dual.ask_with(&mut world, ALLOCATE, &[UDP, both]);
    let relayed = reply.addresses(RELAYED);
    assert!(relayed[0].is_ipv4() && relayed[1].is_ipv6());
    assert!(!reply.has(ADDRESS_ERROR));
    assert_eq!(world.open.len(), 2);
    let mut only_v6 = Client::new("8.8.4.4:40002");
    assert!(only_v6.ask_with(&mut world, ALLOCATE, &[UDP, v6]).relayed().is_ipv6());
    let mut v6_server = World::with(Options {
        relays: vec![v6_relay()],
        ..Options::default()
    });
    let mut plain = Client::new("8.8.4.4:40003");
    assert_eq!(plain.ask_with(&mut v6_server, ALLOCATE, &[UDP]).code(), 440);

    // One family has no port left: 508 for that one.
    let mut scarce = World::with(Options {
        ports: (50_000, 50_000),
        ..Options::default()
    });
    Client::new("8.8.4.4:40004").allocate(&mut scarce);
    let mut late = Client::new("8.8.4.4:40005");
    let reply = late.ask_with(&mut scarce, ALLOCATE, &[UDP, both]);
    assert!(reply.relayed().is_ipv6());
    assert_eq!(reply.get(ADDRESS_ERROR).unwrap(), [1, 0, 5, 8]);
}

#[test]
fn case_16_dont_fragment_even_ports_and_reservations() {
    let mut world = World::with(Options {
        dont_fragment: false,
        ..Options::default()
    });
    let mut unsupported = client();
    let reply = unsupported.ask_with(&mut world, ALLOCATE, &[UDP, (DONT_FRAGMENT, b"")]);
    assert_eq!(
        (reply.code(), reply.get(UNKNOWN).unwrap()),
        (420, [0x00, 0x1A].as_slice())
    );

    let mut world = World::new();
    let mut first = client();
    let reply = first.ask_with(&mut world, ALLOCATE, &[UDP, (DONT_FRAGMENT, b""), (EVEN_PORT, &[0x80])]);
    assert_eq!(reply.code(), 0);
    let port = reply.relayed().port();
    assert_eq!(port % 2, 0);
    let token = reply.get(TOKEN).unwrap().to_vec();
    let mut second = Client::new("8.8.4.4:40001").named("bob", "the builder");
    assert_eq!(
        second.ask_with(&mut world, ALLOCATE, &[UDP, (TOKEN, &token)]).code(),
        508
    );
    let mut second = Client::new("8.8.4.4:40002");
    assert_eq!(
        second.ask_with(&mut world, ALLOCATE, &[UDP, (TOKEN, &[0; 8])]).code(),
        508
    );
    world.pass(29);
    let reply = second.ask_with(&mut world, ALLOCATE, &[UDP, (TOKEN, &token)]);
    assert_eq!(reply.relayed().port(), port + 1);
    let mut third = Client::new("8.8.4.4:40003");
    assert_eq!(
        third.ask_with(&mut world, ALLOCATE, &[UDP, (TOKEN, &token)]).code(),
        508
    );
    let reply = third.ask_with(&mut world, ALLOCATE, &[UDP, (EVEN_PORT, &[0])]);
    assert_eq!(reply.relayed().port() % 2, 0);
    assert!(!reply.has(TOKEN));
}

#[test]
fn case_17_quotas_and_ports_run_out_and_come_back() {
    let limits = Limits {
        allocations: 3,
        allocations_per_prefix: 2,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut clients: Vec<Client> = [
        "8.8.4.1:1025",
        "8.8.4.2:1025",
        "8.8.4.3:1025",
        "8.8.5.1:1025",
        "8.8.6.1:1025",
    ]
    .map(Client::new)
    .to_vec();
    let mut codes = |world: &mut World, which: usize| clients[which].ask_with(world, ALLOCATE, &[UDP]).code();
    assert_eq!(
        (codes(&mut world, 0), codes(&mut world, 1), codes(&mut world, 2)),
        (0, 0, 486)
    );
    assert_eq!((codes(&mut world, 3), codes(&mut world, 4)), (0, 486));
    assert_eq!(clients[0].refresh(&mut world, 0).code(), 0);
    assert_eq!(clients[2].ask_with(&mut world, ALLOCATE, &[UDP]).code(), 0);

    let mut world = World::with(Options {
        ports: (50_000, 50_001),
        ..Options::default()
    });
    let mut clients: Vec<Client> = (0..3)
        .map(|n| Client::new(&format!("8.8.4.4:{}", 40_000 + n)))
        .collect();
    clients[0].allocate(&mut world);
    clients[1].allocate(&mut world);
    assert_eq!(clients[2].ask_with(&mut world, ALLOCATE, &[UDP]).code(), 508);
    clients[1].refresh(&mut world, 0);
    // It has not rested, but there is no other.
    assert_eq!(clients[2].ask_with(&mut world, ALLOCATE, &[UDP]).code(), 0);
}

#[test]
fn case_18_refresh() {
    let mut world = World::new();
    let mut client = client();
    assert_eq!(client.refresh(&mut world, 600).code(), 437);
    let relayed = client.allocate(&mut world);
    client.permit(&mut world, &["1.2.3.4"]);
    assert_eq!(client.refresh(&mut world, 100_000).lifetime(), 3600);
    assert_eq!(client.refresh(&mut world, 10).lifetime(), 600);
    assert_eq!(
        client.ask_with(&mut world, REFRESH, &[(FAMILY, &[2, 0, 0, 0])]).code(),
        443
    );
    assert_eq!(
        client.ask_with(&mut world, REFRESH, &[(FAMILY, &[7, 0, 0, 0])]).code(),
        443
    );
    assert_eq!(
        client
            .ask_with(&mut world, REFRESH, &[(FAMILY, &[1, 0, 0, 0])])
            .lifetime(),
        600
    );
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
    let reply = client.refresh(&mut world, 0);
    assert_eq!((reply.code(), reply.lifetime()), (0, 0));
    assert_eq!(client.refresh(&mut world, 0).code(), 437);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    assert!(world.open.is_empty());
}

/// RFC 8656 §8.1: "Deleting a single allocation destroys any permissions or channels associated with that particular allocation; it MUST
/// NOT affect any permissions or channels associated with allocations for the other address family."
#[test]
fn case_18_one_address_of_two_ends_and_the_other_lives_on() {
    const PEER_V6: &str = "[2a00:1::7]:5000";
    let limits = Limits {
        allocations: 1,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let (mut client, mut other) = (client(), Client::new("8.8.5.5:40000"));
    let both: (u16, &[u8]) = (ADDITIONAL, &[2, 0, 0, 0]);
    let v6: (u16, &[u8]) = (FAMILY, &[2, 0, 0, 0]);
    let ended: (u16, &[u8]) = (LIFETIME, &[0; 4]);
    let relayed = client.ask_with(&mut world, ALLOCATE, &[UDP, both]).addresses(RELAYED);
    assert_eq!(client.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert_eq!(client.bind(&mut world, 0x4001, PEER_V6).code(), 0);
    assert_eq!(client.permit(&mut world, &["1.2.3.5", "2a00:1::8"]).code(), 0);
    assert!(world.peer_packet(relayed[1], PEER_V6, b"x").is_some());

    let reply = client.ask_with(&mut world, REFRESH, &[ended, v6]);
    assert_eq!((reply.code(), reply.lifetime()), (0, 0));
    let left = world.relay(relayed[0]);
    assert_eq!(world.open.iter().collect::<Vec<_>>(), [&(left.address, left.port)]);
    let data = Packet::ToClient {
        to: CLIENT.parse().unwrap(),
        bytes: channel_data(0x4000, b"x"),
    };
    assert_eq!(world.peer_packet(relayed[0], PEER_A, b"x"), Some(data));
    assert!(world.peer_packet(relayed[0], "1.2.3.5:1", b"x").is_some());
    assert!(client.channel_data(&mut world, 0x4000, b"x").is_some());
    assert_eq!(world.peer_packet(relayed[1], PEER_V6, b"x"), None);
    assert_eq!(client.channel_data(&mut world, 0x4001, b"x"), None);
    assert_eq!(client.send(&mut world, "[2a00:1::8]:1", b"x"), None);
    assert_eq!(client.permit(&mut world, &["2a00:1::8"]).code(), 443);
    // The number is free again.
    assert_eq!(client.bind(&mut world, 0x4001, "1.2.3.6:5000").code(), 0);

    assert_eq!(client.ask_with(&mut world, REFRESH, &[ended, v6]).code(), 443);
    assert_eq!(client.ask_with(&mut world, REFRESH, &[v6]).code(), 443);
    assert_eq!(client.refresh(&mut world, 600).lifetime(), 600);
    assert_eq!(world.shared.allocations(), 1);
    assert_eq!(other.ask_with(&mut world, ALLOCATE, &[UDP]).code(), 486);

    // The last one takes the allocation with it, named or not.
    let v4: (u16, &[u8]) = (FAMILY, &[1, 0, 0, 0]);
    assert_eq!(client.ask_with(&mut world, REFRESH, &[ended, v4]).code(), 0);
    assert_eq!(client.refresh(&mut world, 0).code(), 437);
    assert!(world.open.is_empty());
    assert_eq!(world.shared.allocations(), 0);
    assert_eq!(other.ask_with(&mut world, ALLOCATE, &[UDP, both]).code(), 0);
    assert_eq!(other.ask_with(&mut world, REFRESH, &[ended, v4]).code(), 0);
    assert_eq!(world.open.len(), 1);
    assert_eq!(other.refresh(&mut world, 0).code(), 0);
    assert!(world.open.is_empty());
    assert_eq!(world.shared.allocations(), 0);
}

/// RFC 8656 §8.1: the family named is the one "that should be refreshed".
#[test]
fn case_18_who_refreshes_one_address_of_two_does_not_shorten_the_life_of_the_other() {
    let mut world = World::new();
    let mut client = client();
    let hour = 3600u32.to_be_bytes();
    let long: (u16, &[u8]) = (LIFETIME, &hour);
    let both: (u16, &[u8]) = (ADDITIONAL, &[2, 0, 0, 0]);
    let v6: (u16, &[u8]) = (FAMILY, &[2, 0, 0, 0]);
    client.ask_with(&mut world, ALLOCATE, &[UDP, both, long]);
    world.pass(100);
    // "A LIFETIME attribute containing the current value of the time-to-expiry timer" (§8.2).
    assert_eq!(client.ask_with(&mut world, REFRESH, &[v6]).lifetime(), 3500);
    assert_eq!(client.ask_with(&mut world, REFRESH, &[v6, long]).lifetime(), 3600);
    assert_eq!(client.refresh(&mut world, 600).lifetime(), 600);
}

#[test]
fn case_19_create_permission() {
    let limits = Limits {
        permissions_per_allocation: 3,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut client = client();
    let relayed = client.allocate(&mut world);
    assert_eq!(client.permit(&mut world, &[]).code(), 400);
    assert_eq!(
        client
            .ask_with(&mut world, PERMIT, &[(PEER, &[0, 3, 0, 0, 1, 2, 3, 4])])
            .code(),
        400
    );
    for v6 in ["2a00::1", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"] {
        assert_eq!(client.permit(&mut world, &[v6]).code(), 443);
    }
    for forbidden in [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        assert_eq!(client.permit(&mut world, &[forbidden]).code(), 403, "{forbidden}");
    }
    // All or none.
    assert_eq!(client.permit(&mut world, &["1.2.3.4", "127.0.0.1"]).code(), 403);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    assert_eq!(
        client
            .permit(&mut world, &["1.2.3.4", "1.2.3.5", "1.2.3.6", "1.2.3.7"])
            .code(),
        508
    );
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    assert_eq!(
        client
            .permit(&mut world, &["1.2.3.4", "1.2.3.4:7", "1.2.3.5", "1.2.3.6"])
            .code(),
        0
    );
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
    assert_eq!(client.permit(&mut world, &["1.2.3.4"]).code(), 0);
    assert_eq!(client.permit(&mut world, &["1.2.3.9"]).code(), 508);
    world.pass(301);
    assert_eq!(client.permit(&mut world, &["1.2.3.9"]).code(), 0);

    let mut dual = Client::new("8.8.4.4:40001");
    dual.ask_with(&mut world, ALLOCATE, &[UDP, (ADDITIONAL, &[2, 0, 0, 0])]);
    for hidden in [
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:808:808::1",
        "2001::1",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
    ] {
        assert_eq!(dual.permit(&mut world, &[hidden]).code(), 403, "{hidden}");
    }
    assert_eq!(dual.permit(&mut world, &["2a00::1", "1.1.1.1"]).code(), 0);
}

/// RFC 8656 §13.1 to §13.3: "the DONT-FRAGMENT attribute MUST be ignored by the server"; §15 has it for streams.
#[test]
fn dont_fragment_is_ignored_where_a_datagram_is_or_becomes_ipv6() {
    let (v4, v6) = ("8.8.4.4:40001", "[2a00:1::5]:40001");
    let (v4_peer, v6_peer) = ("1.2.3.4:8000", "[2a00:9::1]:8000");
    for (client, transport, peer, expected) in [
        (v4, Transport::Udp, v4_peer, true),
        (v4, Transport::Udp, v6_peer, false),
        (v6, Transport::Udp, v4_peer, false),
        (v6, Transport::Udp, v6_peer, false),
        (v4, Transport::Tcp, v6_peer, true),
        (v6, Transport::Tcp, v4_peer, true),
    ] {
        let mut world = World::new();
        let mut dual = Client::over(client, transport);
        let reply = dual.ask_with(&mut world, ALLOCATE, &[UDP, (ADDITIONAL, &[2, 0, 0, 0])]);
        assert!(reply.is_success());
        let peer: SocketAddr = peer.parse().unwrap();
        assert_eq!(dual.permit(&mut world, &[&peer.to_string()]).code(), 0);
        let draft = dual.draft(SEND).with(DONT_FRAGMENT, b"");
        let draft = draft.address(PEER, peer).with(PAYLOAD, b"x");
        let Some(Packet::ToPeer { dont_fragment, .. }) = dual.post(&mut world, &draft.0) else {
            panic!("nothing goes from {client} to {peer}");
        };
        assert_eq!(dont_fragment, expected, "{transport:?} from {client} to {peer}");
    }
}

#[test]
fn case_20_send_indications() {
    let mut world = World::new();
    let mut client = client();
    assert!(client.send(&mut world, PEER_A, b"early").is_none());
    let relayed = client.allocate(&mut world);
    assert!(client.send(&mut world, PEER_A, b"no permission").is_none());
    client.permit(&mut world, &["1.2.3.4"]);
    let expected = |data: &[u8]| {
        Some(Packet::ToPeer {
            from: relayed,
            to: PEER_A.parse().unwrap(),
            data: data.to_vec(),
            dont_fragment: false,
        })
    };
    assert_eq!(client.send(&mut world, PEER_A, b"hello"), expected(b"hello"));
    assert_eq!(client.send(&mut world, PEER_A, b""), expected(b""));
    let draft = client
        .draft(SEND)
        .with(DONT_FRAGMENT, b"")
        .address(PEER, PEER_A.parse().unwrap())
        .with(PAYLOAD, b"x");
    assert!(matches!(
        client.post(&mut world, &draft.0),
        Some(Packet::ToPeer {
            dont_fragment: true,
            ..
        })
    ));
    let no_data = client.draft(SEND).address(PEER, PEER_A.parse().unwrap());
    let no_peer = client.draft(SEND).with(PAYLOAD, b"x");
    let unknown = client
        .draft(SEND)
        .address(PEER, PEER_A.parse().unwrap())
        .with(PAYLOAD, b"x")
        .with(0x7FFF, b"");
    for bad in [no_data, no_peer, unknown] {
        assert!(client.post(&mut world, &bad.0).is_none());
    }
    let mut stranger = Client::new("8.8.4.4:40001");
    assert!(stranger.send(&mut world, PEER_A, b"x").is_none());
    // Sending does not refresh.
    world.pass(299);
    assert!(client.send(&mut world, PEER_A, b"x").is_some());
    world.pass(1);
    assert!(client.send(&mut world, PEER_A, b"x").is_none());
}

#[test]
fn case_21_packets_from_peers() {
    let mut world = World::new();
    let mut client = client();
    let relayed = client.allocate(&mut world);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    client.permit(&mut world, &["1.2.3.4"]);
    for (peer, data) in [
        (PEER_A, b"hello".as_slice()),
        ("1.2.3.4:6000", b""),
        ("1.2.3.4:6001", b"four"),
    ] {
        let Some(Packet::ToClient { to, bytes }) = world.peer_packet(relayed, peer, data) else {
            panic!("nothing")
        };
        assert_eq!(to, client.tuple.client());
        let indication = Reply::read(&bytes);
        assert_eq!(indication.kind, DATA);
        assert_eq!(indication.addresses(PEER), [peer.parse().unwrap()]);
        assert_eq!(indication.get(PAYLOAD).unwrap(), data);
        assert!(!indication.has(INTEGRITY));
    }
    client.bind(&mut world, 0x4001, PEER_A);
    let expected = Packet::ToClient {
        to: client.tuple.client(),
        bytes: channel_data(0x4001, b"hello"),
    };
    assert_eq!(world.peer_packet(relayed, PEER_A, b"hello"), Some(expected));
    let Some(Packet::ToClient { bytes, .. }) = world.peer_packet(relayed, "1.2.3.4:6000", b"x") else {
        panic!("nothing")
    };
    assert_eq!(Reply::read(&bytes).kind, DATA);
    assert!(world.peer_packet(relayed, "1.2.3.5:5000", b"x").is_none());
}

#[test]
fn case_22_channel_bind() {
    let limits = Limits {
        channels_per_allocation: 3,
        ..Limits::default()
    };
    let mut world = World::with(Options {
        limits,
        ..Options::default()
    });
    let mut client = client();
    let relayed = client.allocate(&mut world);
    assert_eq!(
        client.ask_with(&mut world, BIND, &[(CHANNEL, &[0x40, 0, 0, 0])]).code(),
        400
    );
    let draft = client.draft(BIND).address(PEER, PEER_A.parse().unwrap());
    assert_eq!(client.ask(&mut world, draft).code(), 400);
    for number in [0x0000, 0x3FFF, 0x5000, 0x7FFF, 0xFFFF] {
        assert_eq!(client.bind(&mut world, number, PEER_A).code(), 400);
    }
    assert_eq!(client.bind(&mut world, 0x4000, "1.2.3.4:0").code(), 400);
    assert_eq!(client.bind(&mut world, 0x4000, "127.0.0.1:5000").code(), 403);
    assert_eq!(client.bind(&mut world, 0x4000, "1.2.3.4:53").code(), 403);
    assert_eq!(client.bind(&mut world, 0x4000, "9.9.9.9:3478").code(), 403);
    assert_eq!(client.bind(&mut world, 0x4000, "[2a00::1]:5000").code(), 443);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    assert_eq!(client.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_some());
    assert!(world.peer_packet(relayed, "1.2.3.4:9", b"x").is_some());
    assert_eq!(client.bind(&mut world, 0x4000, "1.2.3.4:5001").code(), 400);
    assert_eq!(client.bind(&mut world, 0x4001, PEER_A).code(), 400);
    assert_eq!(client.bind(&mut world, 0x4000, PEER_A).code(), 0);
    assert_eq!(client.bind(&mut world, 0x4FFF, "1.2.3.4:5001").code(), 0);
    assert_eq!(client.bind(&mut world, 0x4002, "1.2.3.4:5002").code(), 0);
    assert_eq!(client.bind(&mut world, 0x4003, "1.2.3.4:5003").code(), 508);
}

#[test]
fn case_23_channel_data() {
    let mut world = World::new();
    let mut client = client();
    let relayed = client.allocate(&mut world);
    client.bind(&mut world, 0x4000, PEER_A);
    let expected = |data: &[u8]| {
        Some(Packet::ToPeer {
            from: relayed,
            to: PEER_A.parse().unwrap(),
            data: data.to_vec(),
            dont_fragment: false,
        })
    };
    assert_eq!(client.channel_data(&mut world, 0x4000, b"hello"), expected(b"hello"));
    assert_eq!(client.channel_data(&mut world, 0x4000, b""), expected(b""));
    assert_eq!(client.channel_data(&mut world, 0x4001, b"hello"), None);
    let mut padded = channel_data(0x4000, b"hello");
    padded.extend([0; 3]);
    assert_eq!(client.post(&mut world, &padded), expected(b"hello"));
    assert_eq!(client.post(&mut world, &padded[..8]), None);
    assert_eq!(client.post(&mut world, &padded[..3]), None);
    // The permission ends at 300 s, the binding at 600 s, and neither is refreshed by data.
    world.pass(299);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), expected(b"x"));
    world.pass(1);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), None);
    assert!(world.peer_packet(relayed, PEER_A, b"x").is_none());
    client.refresh(&mut world, 3600);
    client.permit(&mut world, &["1.2.3.4"]);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), expected(b"x"));
    world.pass(299);
    client.permit(&mut world, &["1.2.3.4"]);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), expected(b"x"));
    world.pass(1);
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), None);
    let Some(Packet::ToClient { bytes, .. }) = world.peer_packet(relayed, PEER_A, b"x") else {
        panic!("nothing")
    };
    assert_eq!(Reply::read(&bytes).kind, DATA);
    // The number is free for another peer.
    assert_eq!(client.bind(&mut world, 0x4000, "1.2.3.4:7000").code(), 0);

    // Over streams both ways are padded.
    let mut stream = Client::over("8.8.4.4:40001", Transport::Tls);
    let relayed = stream.allocate(&mut world);
    stream.bind(&mut world, 0x4000, PEER_A);
    let Some(Packet::ToClient { bytes, .. }) = world.peer_packet(relayed, PEER_A, b"hello") else {
        panic!("nothing")
    };
    assert_eq!(bytes, [channel_data(0x4000, b"hello"), vec![0; 3]].concat());
}

#[test]
fn case_24_requests_without_allocation_unknown_methods_and_classes() {
    let mut world = World::new();
    let mut client = client();
    assert_eq!(client.refresh(&mut world, 600).code(), 437);
    assert_eq!(client.permit(&mut world, &["1.2.3.4"]).code(), 437);
    assert_eq!(client.bind(&mut world, 0x4000, PEER_A).code(), 437);
    assert_eq!(client.ask_with(&mut world, REFRESH, &[(0x7FFF, b"")]).code(), 420);
    // CONNECT of RFC 6062, a method of nobody, Send and Data as requests, responses, indications of requests.
    for kind in [
        0x000A, 0x0080, 0x0006, 0x0007, 0x0101, 0x0111, 0x0103, 0x0113, 0x0013, 0x0014, 0x0017, 0x0018,
    ] {
        let draft = client.draft(kind).with(UDP.0, UDP.1);
        assert!(
            world.exchange(&client.tuple, &client.sign(draft).0).is_none(),
            "{kind:#06x}"
        );
    }
    assert_eq!(client.channel_data(&mut world, 0x4000, b"x"), None);
}

/// Both sides of a call through one server; `a` and `b` may live in different shards.
fn call(a: &mut World, b: &mut World, mut alice: Client, mut bob: Client) {
    let ra = alice.allocate(a);
    let rb = bob.allocate(b);
    let (ra_text, rb_text) = (ra.to_string(), rb.to_string());
    assert_eq!(alice.permit(a, &[&rb_text]).code(), 0);
    // Bob has not permitted her yet.
    assert_eq!(alice.send(a, &rb_text, b"early"), None);
    assert_eq!(bob.permit(b, &[&ra_text]).code(), 0);
    let indication = |packet: Option<Packet>, to: &Client, from: SocketAddr, data: &[u8]| {
        let Some(Packet::ToClient { to: address, bytes }) = packet else {
            panic!("nothing: {packet:?}")
        };
        assert_eq!(address, to.tuple.client());
        let reply = Reply::read(&bytes);
        assert_eq!((reply.kind, reply.addresses(PEER)), (DATA, vec![from]));
        assert_eq!(reply.get(PAYLOAD), Some(data));
    };
    let packet = alice.send(a, &rb_text, b"hello");
    indication(packet, &bob, ra, b"hello");
    let packet = bob.send(b, &ra_text, b"hi");
    indication(packet, &alice, rb, b"hi");
    assert_eq!(alice.bind(a, 0x4000, &rb_text).code(), 0);
    let packet = alice.channel_data(a, 0x4000, b"one");
    indication(packet, &bob, ra, b"one");
    assert_eq!(bob.bind(b, 0x4007, &ra_text).code(), 0);
    let framed = |to: &Client, number: u16, data: &[u8]| {
        let mut bytes = channel_data(number, data);
        if to.tuple.transport().is_stream() {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Some(Packet::ToClient {
            to: to.tuple.client(),
            bytes,
        })
    };
    assert_eq!(alice.channel_data(a, 0x4000, b"media"), framed(&bob, 0x4007, b"media"));
    assert_eq!(
        bob.channel_data(b, 0x4007, b"media back"),
        framed(&alice, 0x4000, b"media back")
    );
    assert_eq!(alice.send(a, &rb_text, b"x"), framed(&bob, 0x4007, b"x"));
    // Permissions end for both, then the allocation of one.
    bob.permit(b, &["1.1.1.1"]);
    for world in [&mut *a, &mut *b] {
        world.pass(300);
    }
    assert_eq!(alice.permit(a, &[&rb_text]).code(), 0);
    assert_eq!(alice.channel_data(a, 0x4000, b"x"), None);
    bob.refresh(b, 600);
    bob.permit(b, &[&ra_text]);
    assert!(alice.channel_data(a, 0x4000, b"x").is_some());
    bob.refresh(b, 0);
    assert_eq!(alice.channel_data(a, 0x4000, b"x"), None);
}

#[test]
fn case_25_two_clients_of_one_server() {
    for (left, right) in [
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Tcp),
        (Transport::Tls, Transport::Udp),
        (Transport::Tcp, Transport::Tls),
    ] {
        // In one shard: the second world is not used, so both clients take turns on one.
        let relays = turn_core::peers::RelayTable::new(vec![v4_relay(), v6_relay()], (50_000, 59_999)).unwrap();
        let nonces = turn_core::auth::Nonces::new(
            quietline_shared::redact::Secret::new([7; 32]),
            turn_core::auth::NONCE_EPOCH,
        );
        let shared = std::sync::Arc::new(turn_core::control::Shared::new(relays.clone(), nonces, [1, 2]));
        let settings = Options::default().settings(USERS, &relays);
        let mut a = World::shard(shared.clone(), settings.clone(), 0);
        let mut b = World::shard(shared, settings, 1);
        call(
            &mut a,
            &mut b,
            Client::over("8.8.4.4:40000", left),
            Client::over("7.7.4.4:40000", right).named("bob", "the builder"),
        );
        assert_eq!(a.server.counters().to_peers.packets, 0);
    }
}

#[test]
fn optional_icmp_reaches_the_client_as_an_indication() {
    let mut world = World::new();
    let mut client = client();
    let relayed = client.allocate(&mut world);
    let unreachable = Icmp {
        kind: 3,
        code: 3,
        mtu: 1400,
        is_v6: false,
    };
    assert!(world.icmp(relayed, PEER_A, unreachable).is_none());
    client.bind(&mut world, 0x4000, PEER_A);
    let Some(Packet::ToClient { bytes, .. }) = world.icmp(relayed, PEER_A, unreachable) else {
        panic!("nothing")
    };
    let reply = Reply::read(&bytes);
    assert_eq!(
        (reply.kind, reply.addresses(PEER)),
        (DATA, vec![PEER_A.parse().unwrap()])
    );
    assert_eq!(reply.get(ICMP).unwrap(), [0, 0, 3, 3, 0, 0, 0, 0]);
    assert!(!reply.has(PAYLOAD));
    let too_big = Icmp {
        kind: 3,
        code: 4,
        mtu: 1400,
        is_v6: false,
    };
    let Some(Packet::ToClient { bytes, .. }) = world.icmp(relayed, PEER_A, too_big) else {
        panic!("nothing")
    };
    assert_eq!(Reply::read(&bytes).get(ICMP).unwrap(), [0, 0, 3, 4, 0, 0, 5, 120]);
    assert!(
        world
            .icmp(
                relayed,
                PEER_A,
                Icmp {
                    kind: 8,
                    code: 0,
                    mtu: 0,
                    is_v6: false
                }
            )
            .is_none()
    );
    assert!(world.icmp(relayed, "1.2.3.5:1", unreachable).is_none());
}

#[test]
fn what_is_not_built_is_refused() {
    let mut world = World::new();
    let mut client = client();
    // RFC 8016 MOBILITY-TICKET, RFC 7635 ACCESS-TOKEN, RFC 5780 CHANGE-REQUEST and RESPONSE-PORT, RFC 6062 CONNECTION-ID.
    for required in [0x8030u16, 0x001B, 0x0003, 0x0027, 0x002A] {
        let reply = client.ask_with(&mut world, ALLOCATE, &[UDP, (required, &[0; 4])]);
        // Optional ones are passed over and change nothing.
        assert_eq!(reply.code(), if required < 0x8000 { 420 } else { 0 });
        assert!(!reply.has(required));
        let bare = client.draft(BINDING).with(required, &[0, 0, 0, 6]).0;
        let reply = world.exchange(&client.tuple, &bare).unwrap();
        assert_eq!(reply.code(), if required < 0x8000 { 420 } else { 0 });
        if required >= 0x8000 {
            client.refresh(&mut world, 0);
        }
    }
    // A DTLS ClientHello, an HTTP request and RTP are not ours.
    for bytes in [
        b"\x16\xfe\xfd\x00\x00".as_slice(),
        b"POST / HTTP/1.1\r\n\r\n",
        &[0x80, 0, 0, 0],
    ] {
        assert_eq!(client.post(&mut world, bytes), None);
    }
    let _: FiveTuple = client.tuple;
}
