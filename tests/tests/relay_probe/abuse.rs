//! Known attacks on TURN servers, row by row (reference/turn.md §4), on our relay. Rows 1 to 5, the forbidden peers, are in
//! `relay_ranges`; row 11, the flood, in `relay_flood`; rows 7, 12 and 23 name what we do not build: its refusal is shown.

use crate::cases::alice_at;
use crate::findings::Findings;
use crate::holds;
use quietline_lab::settings::set;
use quietline_lab::turn::client::{
    Client, Link, Login, PATIENCE, Packet, QUIET, SILENCE, UDP, Who, bound, payload, send_indication,
};
use quietline_lab::turn::server::{
    CLIENT, CLIENT_V6, OTHER_PEER, PEER, PORT, REALM, SERVER, Site, Transport, alice, bob, check, networks,
    relay_settings, write_keys,
};
use quietline_lab::turn::stun::{Answer, Builder, attribute, channel_data, kind, random};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};
use toml::{Table, Value};

fn outcome(answer: Option<&Answer>) -> u16 {
    answer.map_or(SILENCE, Answer::outcome)
}

/// Default limits for strangers, which the other tests raise.
fn default_limits(settings: &mut Table) {
    set(settings, "limits.challenges_per_second", 50);
    set(settings, "limits.challenge_burst", BURST as i64);
}

// ---- Row 6

#[test]
fn row_6_nothing_of_the_server_itself_is_a_peer_but_relayed_ports() {
    // The operator's listener stands on the public address here, so that it would be in reach.
    let settings = |settings: &mut Table| set(settings, "ops.listen", format!("{SERVER}:9101"));
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), settings);
    let mut found = Findings::default();
    let mut client = alice_at(&site);
    let relayed = client.allocate();
    // A permission has no port, and relayed ports of this address are good.
    found.equal(
        "6 a permission for the server's address",
        client.permit(site.server()),
        0,
    );
    for (name, port) in [
        ("listener", PORT),
        ("operator's listener", 9101),
        ("SSH port", 22),
        ("port below the relayed", 49_151),
    ] {
        let own = SocketAddr::from((SERVER, port));
        found.equal(
            format!("6 a channel to the {name} is 403"),
            client.bind(0x4000, own),
            403,
        );
        // What answers there would answer this.
        let question = Builder::new(kind::BINDING).build();
        found.outcome(
            format!("6 what is sent to the {name} goes nowhere"),
            client.stays_silent_to(&send_indication(own, &question)),
        );
    }
    found.equal(
        "6 IPv6: a channel to the listener",
        client.bind(0x4000, site.server_v6()),
        443,
    );
    let mut over_v6 = alice_at(&site);
    let _ = over_v6.allocate_v6();
    found.equal(
        "6 IPv6: a channel to the listener is 403",
        over_v6.bind(0x4000, site.server_v6()),
        403,
    );
    found.equal(
        "6 a channel to a relayed port, its own",
        client.bind(0x4001, relayed),
        0,
    );
    let data = payload();
    client.send_on(0x4001, &data);
    found.equal(
        "6 a client reaches itself",
        client.next(),
        Some(Packet::Channel(0x4001, data)),
    );
    found.conclude(site);
}

#[test]
fn row_6_other_addresses_of_the_machine_are_no_peers() {
    let folder = tempfile::tempdir().unwrap();
    // The address is there before the relay starts, and nothing names it.
    let networks = networks();
    networks.0.ip("addr add 1.2.3.99/32 dev lo");
    let site = Site::quietline_within(networks, folder.path(), |_| {});
    let mut client = alice_at(&site);
    let _ = client.allocate();
    assert_eq!(client.permit("1.2.3.99:5000".parse().unwrap()), 403);
    assert_eq!(client.bind(0x4000, "1.2.3.99:5000".parse().unwrap()), 403);
}

// ---- Row 8

#[test]
fn row_8_ports_that_reflect_are_refused_and_others_are_not() {
    holds(
        |_| {},
        |site, found| {
            let peer = site.peer();
            let address = peer.local_addr().unwrap();
            let mut client = alice_at(site);
            let _ = client.allocate();
            found.equal(
                "8 a permission ignores the port",
                client.permit(SocketAddr::from((PEER, 53))),
                0,
            );
            let zero = SocketAddr::from((PEER, 0));
            found.equal("8 a channel to port 0 is 400", client.bind(0x4000, zero), 400);
            let denied = [19, 53, 69, 111, 123, 137, 138, 139, 161, 389, 445, 1900, 5353, 11_211];
            let listeners: Vec<_> = denied.iter().map(|port| site.world.udp(PEER, *port)).collect();
            for port in denied {
                let to = SocketAddr::from((PEER, port));
                found.equal(
                    format!("8 a channel to port {port} is 403"),
                    client.bind(0x4000, to),
                    403,
                );
                client.send_to(to, b"reflect this");
            }
            client.send_to(zero, b"reflect this");
            client.send_to(address, b"behind them");
            found.equal(
                "8 what went to an allowed port arrives",
                site.first_at(&peer),
                Some(b"behind them".to_vec()),
            );
            for listener in listeners {
                listener.set_nonblocking(true).unwrap();
                let port = listener.local_addr().unwrap().port();
                found.that(
                    format!("8 nothing arrives at port {port}"),
                    listener.recv(&mut [0; 64]).is_err(),
                );
            }
            for port in [1, 443, 1000, 3478] {
                let low = site.world.udp(OTHER_PEER, port);
                let to = low.local_addr().unwrap();
                found.equal(
                    format!("8 a channel to port {port} is good"),
                    client.bind(0x4100 + port, to),
                    0,
                );
                client.send_on(0x4100 + port, b"to a low port");
                found.equal(
                    format!("8 data arrives at port {port}"),
                    site.first_at(&low),
                    Some(b"to a low port".to_vec()),
                );
            }
        },
    );
}

// ---- Rows 9 and 10

/// Answers that a prefix may have at once.
const BURST: usize = 200;

/// Sends so many copies of what nobody signed, each from another socket of this prefix in turn; the answers' sizes, and how long it took.
/// `at_least` so many answers must come, and have all the time they need.
fn stranger_flood(
    site: &Site,
    sources: &[IpAddr],
    request: impl Fn() -> Vec<u8>,
    copies: usize,
    at_least: usize,
) -> (Vec<usize>, Duration) {
    let mut links: Vec<Link> = sources.iter().map(|ip| site.link(*ip, Transport::Udp)).collect();
    let started = Instant::now();
    for copy in 0..copies {
        let link = copy % links.len();
        links[link].send(&request()).unwrap();
        // The socket's buffers are not what is measured here.
        if copy % 64 == 63 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut sizes = Vec::new();
    let mut read_all = |sizes: &mut Vec<usize>, quiet| {
        for link in &mut links {
            while let Some(bytes) = link.receive(quiet) {
                sizes.push(bytes.len());
            }
        }
    };
    let deadline = Instant::now() + PATIENCE;
    while sizes.len() < at_least && Instant::now() < deadline {
        read_all(&mut sizes, Duration::from_millis(10));
    }
    read_all(&mut sizes, QUIET);
    (sizes, started.elapsed())
}

fn bare_allocate() -> Vec<u8> {
    Builder::new(kind::ALLOCATE).build()
}

fn badly_signed() -> Vec<u8> {
    let nobody = Who::new("nobody", "nothing").key(REALM);
    Builder::new(kind::ALLOCATE)
        .attribute(attribute::REQUESTED_TRANSPORT, UDP)
        .attribute(attribute::USERNAME, "nobody")
        .attribute(attribute::REALM, REALM)
        .attribute(attribute::NONCE, "obMatJos2AAAA0123456789")
        .integrity(&nobody)
        .build()
}

/// The burst, and no more than the rate allows in that time.
fn within_the_rate(name: &str, answers: usize, took: Duration, found: &mut Findings) {
    let most = BURST + (50.0 * took.as_secs_f64()).ceil() as usize + 1;
    found.outcome(
        format!("{name}: at least the burst and at most the rate"),
        if (BURST..=most).contains(&answers) {
            Ok(())
        } else {
            Err(format!("{answers} of at most {most}"))
        },
    );
}

#[test]
fn row_9_challenges_are_short_and_few_and_a_valid_integrity_is_never_limited() {
    holds(default_limits, |site, found| {
        let mut settled = alice_at(site);
        let _ = settled.challenge();
        let mut live = alice_at(site);
        let _ = live.allocate();
        let prefix: Vec<IpAddr> = (10..20).map(|last| Ipv4Addr::new(1, 2, 4, last).into()).collect();
        // Three came before, from the same prefix.
        let (mut sizes, took) = stranger_flood(site, &prefix, bare_allocate, 3_000, BURST - 3);
        let (more, took_more) = stranger_flood(site, &prefix, badly_signed, 3_000, 0);
        sizes.extend(more);
        within_the_rate("9 bare and badly signed", sizes.len() + 3, took + took_more, found);
        let most = sizes.iter().max().copied().unwrap_or(0);
        found.outcome(
            "9 a challenge takes at most 112 bytes",
            if most <= 112 { Ok(()) } else { Err(most.to_string()) },
        );
        // With a nonce from before, and with an allocation, nothing is limited.
        for _ in 0..300 {
            found.equal(
                "9 a live client is served",
                live.refresh(600).map(|answer| answer.outcome()),
                Some(0),
            );
        }
        let answer = settled.allocate_with(|builder| builder);
        found.equal("9 a client with a nonce is served", outcome(answer.as_ref()), 0);
        let mut elsewhere = site.client_at(Ipv4Addr::new(1, 2, 6, 1), Transport::Udp, alice());
        let answer = elsewhere.allocate_with(|builder| builder);
        found.equal("9 another prefix is served", outcome(answer.as_ref()), 0);
        site.wait_metric("control_refused_total", "reason=\"challenge_limit\"", 5_000.0);
    });
}

#[test]
fn row_9_prefixes_of_ipv6_are_56_bits_long() {
    holds(default_limits, |site, found| {
        let sources: Vec<Ipv6Addr> = (0..8)
            .map(|number| Ipv6Addr::new(0x2a00, 9, 0, number, 0, 0, 0, 1))
            .collect();
        for source in &sources {
            site.world.ip(&format!("addr add {source}/128 dev lo nodad"));
        }
        let prefix: Vec<IpAddr> = sources.into_iter().map(IpAddr::V6).collect();
        let (sizes, took) = stranger_flood(site, &prefix, bare_allocate, 2_000, BURST);
        within_the_rate("9 eight networks of one /56", sizes.len(), took, found);
    });
}

#[test]
fn row_10_binding_answers_are_32_or_44_bytes_and_limited_by_prefix() {
    holds(default_limits, |site, found| {
        let prefix: Vec<IpAddr> = (10..20).map(|last| Ipv4Addr::new(1, 2, 6, last).into()).collect();
        let binding = || Builder::new(kind::BINDING).build();
        let (sizes, took) = stranger_flood(site, &prefix, binding, 3_000, BURST);
        within_the_rate("10 Binding", sizes.len(), took, found);
        found.that("10 each is 32 bytes", sizes.iter().all(|size| *size == 32));
        let (sizes, _) = stranger_flood(site, &[CLIENT_V6.into()], binding, 20, 20);
        found.equal("10 over IPv6 each is 44", sizes, vec![44; 20]);
        let with_print = || Builder::new(kind::BINDING).fingerprint().build();
        let (sizes, _) = stranger_flood(site, &[CLIENT.into()], with_print, 20, 20);
        found.equal("10 with FINGERPRINT each is 8 more", sizes, vec![40; 20]);
        let unknown = || Builder::new(kind::BINDING).attribute(0x7FFF, b"").build();
        let (sizes, _) = stranger_flood(site, &[CLIENT.into()], unknown, 20, 20);
        found.equal("10 an error is no longer", sizes, vec![36; 20]);
    });
}

#[test]
fn row_10_services_on_low_ports_are_not_answered() {
    holds(
        |_| {},
        |site, found| {
            for port in [7, 53, 123, 1023] {
                let link = Link::udp(site.world.udp(CLIENT, port), site.server()).unwrap();
                let mut client = Client::new(link, alice(), QUIET);
                let answer = client.ask(&Builder::new(kind::BINDING).build());
                found.equal(format!("10 Binding from port {port} gets silence"), answer, None);
            }
            let link = Link::udp(site.world.udp(CLIENT, 1024), site.server()).unwrap();
            let answer = Client::new(link, alice(), PATIENCE).ask(&Builder::new(kind::BINDING).build());
            found.equal("10 Binding from port 1024 is answered", outcome(answer.as_ref()), 0);
        },
    );
}

// ---- Rows 7, 12 and 23: what we do not build

/// A DTLS 1.2 ClientHello without cookie.
const CLIENT_HELLO: &str = "16feff000000000000000000360100002a000000000000002afefd\
    4a5b6c7d8e9f00112233445566778899aabbccddeeff0011223344556677889900000002c02b0100";

#[test]
fn row_12_dtls_is_not_built_and_gets_silence() {
    holds(
        |_| {},
        |site, found| {
            let mut client = alice_at(site);
            let hello = hex::decode(CLIENT_HELLO).unwrap();
            for _ in 0..20 {
                found.outcome("12 a DTLS ClientHello gets silence", client.stays_silent_to(&hello));
            }
        },
    );
}

#[test]
fn row_7_tcp_relaying_is_not_built_and_is_refused() {
    for transport in [Transport::Tcp, Transport::Tls] {
        holds(
            |_| {},
            |site, found| {
                let mut client = site.client(transport, alice());
                let asked = client.outcome(kind::ALLOCATE, |builder| {
                    builder.attribute(attribute::REQUESTED_TRANSPORT, [6, 0, 0, 0])
                });
                found.equal("7 REQUESTED-TRANSPORT of TCP is 442", asked, 442);
                let _ = client.allocate();
                for (name, method) in [("Connect", kind::CONNECT), ("ConnectionBind", 0x000B)] {
                    let request = client.signed(bound(Builder::new(method), 0x4000, SocketAddr::from((PEER, 80))));
                    found.outcome(
                        format!("7 {name} gets silence"),
                        client.stays_silent_to(&request.build()),
                    );
                }
            },
        );
    }
}

#[test]
fn what_rfc_5780_7635_and_8016_ask_for_is_refused_or_ignored() {
    holds(
        |_| {},
        |site, found| {
            let mut client = alice_at(site);
            for (name, kind_of_it, value) in [
                ("CHANGE-REQUEST", attribute::CHANGE_REQUEST, vec![0, 0, 0, 6]),
                ("RESPONSE-PORT", attribute::RESPONSE_PORT, vec![0x12, 0x34, 0, 0]),
                ("PADDING", attribute::PADDING, vec![0; 64]),
            ] {
                let answer = client.ask(&Builder::new(kind::BINDING).attribute(kind_of_it, value).build());
                found.equal(format!("RFC 5780: {name} is 420"), outcome(answer.as_ref()), 420);
                let listed = answer.and_then(|answer| answer.get(attribute::UNKNOWN_ATTRIBUTES).map(<[u8]>::to_vec));
                found.equal(
                    format!("RFC 5780: {name} is listed"),
                    listed,
                    Some(kind_of_it.to_be_bytes().to_vec()),
                );
            }
            let answer = client.ask(&Builder::new(kind::BINDING).build()).unwrap();
            found.equal(
                "RFC 5780: no other address is told",
                answer.kinds(),
                vec![attribute::XOR_MAPPED_ADDRESS],
            );
            let challenge = client.challenge().unwrap();
            found.that(
                "RFC 7635: no THIRD-PARTY-AUTHORIZATION",
                !challenge.has(attribute::THIRD_PARTY_AUTHORIZATION),
            );
            let token = client.allocate_with(|builder| builder.attribute(attribute::ACCESS_TOKEN, [0; 64]));
            found.equal("RFC 7635: ACCESS-TOKEN is 420", outcome(token.as_ref()), 420);
            let mobile = client.allocate_with(|builder| builder.attribute(attribute::MOBILITY_TICKET, []));
            found.equal(
                "RFC 8016: an Allocate with MOBILITY-TICKET is one without",
                outcome(mobile.as_ref()),
                0,
            );
            let kinds = mobile.map(|answer| answer.kinds()).unwrap_or_default();
            found.that(
                "RFC 8016: no ticket is given",
                !kinds.contains(&attribute::MOBILITY_TICKET),
            );
            // From another address with a ticket: no resumption.
            let mut moved = site.client_at(Ipv4Addr::new(1, 2, 6, 1), Transport::Udp, alice());
            let resumed = moved.outcome(kind::REFRESH, |builder| {
                builder.attribute(attribute::MOBILITY_TICKET, [7; 16])
            });
            found.equal("RFC 8016: a Refresh from elsewhere is 437", resumed, 437);
        },
    );
}

#[test]
fn row_23_no_answer_sends_a_client_elsewhere() {
    let draining = |settings: &mut Table| set(settings, "limits.allocations", 1);
    holds(draining, |site, found| {
        let mut client = alice_at(site);
        let _ = client.allocate();
        let mut other = alice_at(site);
        let answer = other.allocate_with(|builder| builder);
        found.equal("23 a full server says 486", outcome(answer.as_ref()), 486);
        let kinds = answer.map(|answer| answer.kinds()).unwrap_or_default();
        found.that(
            "23 no ALTERNATE-SERVER",
            !kinds.contains(&0x8023) && !kinds.contains(&0x000E),
        );
    });
}

#[test]
fn row_23_a_port_rests_before_it_is_given_again() {
    let two_ports = |settings: &mut Table| {
        set(settings, "relay.first_port", 50_000);
        set(settings, "relay.last_port", 50_001);
    };
    holds(two_ports, |site, found| {
        let mut client = alice_at(site);
        let first = client.allocate();
        let _ = client.refresh(0);
        let mut next = alice_at(site);
        let second = next.allocate();
        found.that(
            "23 the port that just ended is not given again",
            first.port() != second.port(),
        );
        let mut last = alice_at(site);
        let third = last.allocate();
        found.that(
            "23 unless it is the only one: a client without a port is worse",
            first.port() == third.port(),
        );
        let mut over = alice_at(site);
        let answer = over.allocate_with(|builder| builder);
        found.equal("23 both are taken", outcome(answer.as_ref()), 508);
    });
}

// ---- Row 12: streams

#[test]
fn row_12_streams_of_one_prefix_are_limited() {
    holds(
        |settings| set(settings, "streams.per_prefix", 5),
        |site, found| {
            let mut first: Vec<_> = (0..5).map(|_| site.client(Transport::Tcp, alice())).collect();
            for client in &mut first {
                found.outcome("12 five streams are served", client.is_silent());
            }
            let mut sixth = site.client(Transport::Tcp, alice());
            found.that("12 the sixth is ended", sixth.link.has_ended_within(PATIENCE));
            let mut elsewhere = site.client_at(Ipv4Addr::new(1, 2, 6, 1), Transport::Tcp, alice());
            found.outcome("12 another prefix is served", elsewhere.is_silent());
            first.pop();
            // The relay hears of the end a moment later.
            let deadline = Instant::now() + PATIENCE;
            while site.client(Transport::Tcp, alice()).is_silent().is_err() {
                assert!(Instant::now() < deadline, "a place that became free is not given again");
            }
        },
    );
}

#[test]
fn row_12_slow_and_half_open_streams_are_ended() {
    let quick = |settings: &mut Table| {
        for name in ["handshake", "first_message", "idle"] {
            set(settings, &format!("streams.{name}"), "4s");
        }
    };
    holds(quick, |site, found| {
        let mut silent = site.client(Transport::Tcp, alice());
        // One byte now and then, and never a message.
        let mut slow = site.tcp(CLIENT.into(), site.server());
        let mut half_tls = site.tcp(CLIENT.into(), site.server());
        half_tls.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).unwrap();
        let mut asked = site.client(Transport::Tls, alice());
        found.outcome("12 a first message", asked.is_silent());
        let mut live = site.client(Transport::Tcp, alice());
        let _ = live.allocate();
        let message = bare_allocate();
        let deadline = Instant::now() + PATIENCE;
        let mut ended = false;
        for byte in message.iter().cycle().take(19) {
            ended = slow.write_all(&[*byte]).is_err();
            if ended || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let mut slow = Link::tcp(slow).unwrap();
        found.that("12 a slow stream is ended", ended || slow.has_ended_within(PATIENCE));
        found.that("12 a silent stream is ended", silent.link.has_ended_within(PATIENCE));
        let mut half_tls = Link::tcp(half_tls).unwrap();
        found.that("12 half a handshake is ended", half_tls.has_ended_within(PATIENCE));
        found.that(
            "12 an idle stream without allocation is ended",
            asked.link.has_ended_within(PATIENCE),
        );
        let refreshed = live.refresh(600);
        found.equal("12 one with an allocation lives on", outcome(refreshed.as_ref()), 0);
    });
}

#[test]
fn row_12_a_closed_stream_ends_its_allocation() {
    for transport in [Transport::Tcp, Transport::Tls] {
        holds(
            |_| {},
            |site, found| {
                let mut client = site.client(transport, alice());
                let relayed = client.allocate();
                drop(client);
                let deadline = Instant::now() + PATIENCE;
                let mut closed = false;
                while !closed && Instant::now() < deadline {
                    closed = is_closed_now(site, relayed);
                }
                found.that(format!("12 {transport:?}: its port is closed"), closed);
            },
        );
    }
}

fn is_closed_now(site: &Site, port: SocketAddr) -> bool {
    let peer = site.peer();
    peer.connect(port).unwrap();
    peer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let _ = peer.send(b"anybody there?");
    peer.recv(&mut [0; 64])
        .is_err_and(|fault| fault.kind() == std::io::ErrorKind::ConnectionRefused)
}

// ---- Rows 13 to 15

#[test]
fn row_14_channels_have_a_cap() {
    holds(
        |settings| set(settings, "limits.channels_per_allocation", 8),
        |site, found| {
            let mut client = alice_at(site);
            let _ = client.allocate();
            for number in 0..8 {
                let peer = SocketAddr::from((PEER, 1000 + number));
                found.equal("14 within the cap", client.bind(0x4000 + number, peer), 0);
            }
            let over = client.bind(0x4008, SocketAddr::from((PEER, 1008)));
            found.equal("14 one more channel is 508", over, 508);
            let again = client.bind(0x4000, SocketAddr::from((PEER, 1000)));
            found.equal("14 one that is there is refreshed", again, 0);
        },
    );
}

#[test]
fn row_14_many_peers_in_one_request_are_refused_whole() {
    holds(
        |settings| set(settings, "limits.permissions_per_allocation", 4),
        |site, found| {
            let mut client = alice_at(site);
            let relayed = client.allocate();
            let many = |count: u8| {
                move |builder: Builder| {
                    (1..=count).fold(builder, |builder, last| {
                        builder.address(
                            attribute::XOR_PEER_ADDRESS,
                            SocketAddr::from((Ipv4Addr::new(1, 2, 5, last), 7)),
                        )
                    })
                }
            };
            found.equal(
                "14 five of four are 508",
                client.outcome(kind::CREATE_PERMISSION, many(5)),
                508,
            );
            found.equal(
                "14 two hundred are 508",
                client.outcome(kind::CREATE_PERMISSION, many(200)),
                508,
            );
            let peer = site.peer();
            let _ = peer.send_to(b"not permitted", relayed);
            found.outcome("14 nothing is permitted yet", client.is_silent());
            found.equal(
                "14 four of four are good",
                client.outcome(kind::CREATE_PERMISSION, many(4)),
                0,
            );
            let _ = peer.send_to(b"permitted", relayed);
            found.equal(
                "14 the refused ones installed nothing",
                client.next(),
                Some(Packet::Data {
                    peer: peer.local_addr().unwrap(),
                    data: b"permitted".to_vec(),
                }),
            );
        },
    );
}

/// One second's worth may come at once, at least 131,072 bytes (two of the longest datagrams).
const LEAST_BURST: usize = 131_072;
/// So many packets of a thousand bytes pass for certain, each way.
const LEAST_PACKETS: usize = 100;

#[test]
fn row_14_bandwidth_of_an_allocation_is_bounded_both_ways() {
    holds(
        |settings| set(settings, "limits.bandwidth_per_allocation", 1_000),
        |site, found| {
            let peer = site.peer();
            let address = peer.local_addr().unwrap();
            let mut client = alice_at(site);
            let relayed = client.allocate();
            assert_eq!(client.bind(0x4000, address), 0);
            let started = Instant::now();
            let data = vec![0x5A; 1_000];
            let (mut to_peer, mut to_client) = (0, 0);
            for round in 1..=20 {
                for _ in 0..20 {
                    client.send_on(0x4000, &data);
                    let _ = peer.send_to(&data, relayed);
                }
                // What the allowance lets through is waited for; of the rest nobody knows what comes. Taken at once, so that no socket overflows.
                let expected = LEAST_PACKETS.min(20 * round);
                let patience = |count| {
                    if count < expected {
                        PATIENCE
                    } else {
                        Duration::from_millis(5)
                    }
                };
                loop {
                    peer.set_read_timeout(Some(patience(to_peer))).unwrap();
                    if peer.recv(&mut [0; 2_000]).is_err() {
                        break;
                    }
                    to_peer += 1;
                }
                while client.next_within(patience(to_client)).is_some() {
                    to_client += 1;
                }
            }
            // What a relay that was held up still had to forward has come before its second answer.
            for _ in 0..2 {
                let answer = client.ask(&Builder::new(kind::BINDING).build());
                found.equal("14 the relay answers", outcome(answer.as_ref()), 0);
            }
            while client.next_within(Duration::from_millis(5)).is_some() {
                to_client += 1;
            }
            found.outcome("14 the relay goes on", client.is_silent());
            let most = (LEAST_BURST + 1_000 * (started.elapsed().as_secs() as usize + 1)) / 1_000 + 1;
            for (name, count) in [("to the peer", to_peer), ("to the client", to_client)] {
                found.outcome(
                    format!("14 packets {name} fill the allowance and no more"),
                    if (LEAST_PACKETS..=most).contains(&count) {
                        Ok(())
                    } else {
                        Err(format!("{count} of at most {most}"))
                    },
                );
            }
            site.wait_metric("control_refused_total", "stage=\"forwarding\"", 400.0);
        },
    );
}

// ---- Row 16

/// Any of these may be met with silence or an error, but none may end the relay, or cost the next client anything.
#[test]
fn row_16_malformed_messages_cost_nobody_anything() {
    holds(
        |_| {},
        |site, found| {
            let mut client = alice_at(site);
            let _ = client.challenge();
            let attribute_at_the_end = |kind: u16, length: u16, bytes: &[u8]| {
                let [k0, k1] = kind.to_be_bytes();
                let [l0, l1] = length.to_be_bytes();
                Builder::new(kind::BINDING)
                    .raw(&[&[k0, k1, l0, l1], bytes].concat())
                    .build()
            };
            for (name, bytes) in [
                (
                    "an attribute longer than the message",
                    attribute_at_the_end(0x8022, 400, b"four"),
                ),
                (
                    "an attribute of 65,535 bytes",
                    attribute_at_the_end(0x0006, 65_535, b"four"),
                ),
                (
                    "a last attribute without its padding",
                    attribute_at_the_end(0x8022, 3, b"abc"),
                ),
                (
                    "an attribute of length 5 in 4 bytes",
                    attribute_at_the_end(0x8022, 5, b"four"),
                ),
                (
                    "half an attribute header",
                    Builder::new(kind::BINDING).raw(&[0x80, 0x22]).build(),
                ),
            ] {
                found.outcome(format!("16 {name} gets silence"), client.stays_silent_to(&bytes));
            }
            let named = |kind_of_it: u16, value: &[u8]| {
                let mut request = Builder::new(kind::ALLOCATE).attribute(attribute::REQUESTED_TRANSPORT, UDP);
                for (kind, good) in [
                    (attribute::USERNAME, client.who.user.as_bytes()),
                    (attribute::REALM, client.realm.as_bytes()),
                    (attribute::NONCE, &client.nonce),
                ] {
                    request = request.attribute(kind, if kind == kind_of_it { value } else { good });
                }
                request.integrity(&client.key()).build()
            };
            let requests = [
                ("a USERNAME of 600 bytes", named(attribute::USERNAME, &[b'a'; 600])),
                (
                    "a USERNAME that is no UTF-8",
                    named(attribute::USERNAME, &[0xFF, 0xFE, 0xC0, 0x80]),
                ),
                ("an empty USERNAME", named(attribute::USERNAME, b"")),
                ("a USERNAME with a format string", named(attribute::USERNAME, b"%s%n%x")),
                ("a REALM of 800 bytes", named(attribute::REALM, &[b'r'; 800])),
                ("a NONCE of 800 bytes", named(attribute::NONCE, &[b'n'; 800])),
                ("a NONCE that is no text", named(attribute::NONCE, &[0; 40])),
            ];
            for (name, request) in requests {
                let answer = client.ask_within(&request, QUIET);
                let code = outcome(answer.as_ref());
                found.that(
                    format!("16 {name} is silence or an error, not {code}"),
                    [400, 401, 438, SILENCE].contains(&code),
                );
            }
            // Each bit of a good request, turned.
            let good = client
                .signed(Builder::new(kind::ALLOCATE).attribute(attribute::REQUESTED_TRANSPORT, UDP))
                .build();
            for bit in 0..good.len() * 8 {
                let mut bytes = good.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                client.link.send(&bytes).unwrap();
            }
            // Each length of it, and random bytes.
            for length in 0..good.len() {
                client.link.send(&good[..length]).unwrap();
            }
            for _ in 0..2_000 {
                let noise = random::<96>();
                let length = usize::from(noise[0]) % 96;
                client.link.send(&noise[..length]).unwrap();
                let mut headed = channel_data(0x4000 | u16::from(noise[1]), &noise[2..length.max(2)], false);
                headed[3] = noise[3];
                client.link.send(&headed).unwrap();
            }
            // Answers to those whose turned bit did not matter wait before it.
            while client.next_within(QUIET).is_some() {}
            found.outcome("16 the relay answers after all of them", client.is_silent());
            let mut next = alice_at(site);
            found.equal(
                "16 the next client is served",
                outcome(next.allocate_with(|builder| builder).as_ref()),
                0,
            );
        },
    );
}

#[test]
fn row_16_streams_without_sense_or_end_are_ended() {
    holds(
        |_| {},
        |site, found| {
            let streams: [(&str, Vec<u8>); 7] = [
                ("HTTP", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec()),
                ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
                ("top bits 10", vec![0x80; 64]),
                ("top bits 11", vec![0xC0; 64]),
                ("a STUN message of 65,532 bytes", endless_stun()),
                ("a wrong cookie", [&[0, 1, 0, 0][..], &[9; 16]].concat()),
                ("TLS without sense", [&[0x16, 3, 1, 0, 200][..], &[0xEE; 200]].concat()),
            ];
            for (name, bytes) in streams {
                let mut stream = site.tcp(CLIENT.into(), site.server());
                let _ = stream.write_all(&bytes);
                let mut link = Link::tcp(stream).unwrap();
                found.that(
                    format!("16 a stream of {name} is ended"),
                    link.has_ended_within(PATIENCE),
                );
            }
            let mut next = site.client(Transport::Tcp, alice());
            found.equal(
                "16 the next client is served",
                outcome(next.allocate_with(|builder| builder).as_ref()),
                0,
            );
        },
    );
}

fn endless_stun() -> Vec<u8> {
    let mut bytes = Builder::new(kind::ALLOCATE).build();
    bytes[2..4].copy_from_slice(&65_532u16.to_be_bytes());
    bytes.resize(40_000, 0x80);
    bytes
}

#[test]
fn row_16_frames_of_every_length_pass_a_stream_with_an_allocation() {
    holds(
        |_| {},
        |site, found| {
            let peer = site.peer();
            let mut client = site.client(Transport::Tcp, alice());
            let _ = client.allocate();
            assert_eq!(client.bind(0x4000, peer.local_addr().unwrap()), 0);
            // The last one is the longest datagram of IPv4.
            for length in [1, 1_472, 9_000, 60_000, 65_507] {
                let data = vec![0x42; length];
                client.send_on(0x4000, &data);
                found.equal(
                    format!("16 {length} bytes"),
                    site.first_at(&peer).map(|data| data.len()),
                    Some(length),
                );
            }
            // No datagram is that long: the frame is good and goes nowhere.
            client.send_on(0x4000, &[0x42; 65_535]);
            client.send_on(0x4000, b"behind it");
            found.equal(
                "16 what comes behind a frame that is too long",
                site.first_at(&peer),
                Some(b"behind it".to_vec()),
            );
        },
    );
}

// ---- Row 17

#[test]
fn row_17_a_peer_behind_the_integrity_is_not_permitted() {
    holds(
        |_| {},
        |site, found| {
            let (peer, other) = (site.peer(), site.peer_at(OTHER_PEER));
            let mut client = alice_at(site);
            let relayed = client.allocate();
            let unsigned = Builder::new(kind::CREATE_PERMISSION);
            let transaction = unsigned.transaction();
            let behind = quietline_lab::turn::stun::xor_address(other.local_addr().unwrap(), transaction);
            let request = client
                .signed(unsigned.address(attribute::XOR_PEER_ADDRESS, peer.local_addr().unwrap()))
                .attribute(attribute::XOR_PEER_ADDRESS, behind);
            let answer = client.ask(&request.build());
            found.equal("17 the signed peer is permitted", outcome(answer.as_ref()), 0);
            let _ = other.send_to(b"from the unsigned", relayed);
            let _ = peer.send_to(b"from the signed", relayed);
            found.equal(
                "17 the unsigned peer is not",
                client.next(),
                Some(Packet::Data {
                    peer: peer.local_addr().unwrap(),
                    data: b"from the signed".to_vec(),
                }),
            );
        },
    );
}

// ---- Rows 19 and 20

#[test]
fn row_19_nonces_and_live_calls_survive_a_reload_and_new_users_are_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), |_| {});
    let peer = site.peer();
    let mut live = alice_at(&site);
    let relayed = live.allocate();
    assert_eq!(live.bind(0x4000, peer.local_addr().unwrap()), 0);
    let mut waiting = site.client(Transport::Udp, bob());
    let _ = waiting.challenge();
    let mut gone = alice_at(&site);
    let _ = gone.challenge();
    std::fs::write(site.folder.join("alice.password"), "another password").unwrap();
    site.reload(|_| {});
    // Nothing tells when it is done: alice's old password stops to be good then.
    let deadline = Instant::now() + PATIENCE;
    while outcome(alice_at(&site).allocate_with(|builder| builder).as_ref()) != 401 {
        assert!(Instant::now() < deadline, "a reload changes nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut found = Findings::default();
    let answer = waiting.ask(&waiting.signed(Builder::new(kind::REFRESH)).build());
    found.equal("19 a nonce from before is good", outcome(answer.as_ref()), 437);
    let answer = gone.ask(&gone.signed(Builder::new(kind::REFRESH)).build());
    found.equal("19 a password from before is not", outcome(answer.as_ref()), 401);
    found.equal("19 a live call goes on with it", outcome(live.refresh(600).as_ref()), 0);
    let data = payload();
    live.send_on(0x4000, &data);
    found.equal("19 and its data flows", site.arrived(&peer), Some((relayed, data)));
    found.conclude(site);
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

const SECRET: &str = "a timed secret of the relay, 31d7 40aa 9e02";
const OLD_SECRET: &str = "the timed secret before it, 77b0 12c4 58ef";
const SHA256_SECRET: &str = "a timed secret with SHA-256, 0fd1 7c22 b6a9";

fn timed_secrets(folder: &std::path::Path) -> impl Fn(&mut Table) {
    let secrets = [
        ("new", SECRET, "sha1"),
        ("old", OLD_SECRET, "sha1"),
        ("sha256", SHA256_SECRET, "sha256"),
    ];
    for (name, secret, _) in secrets {
        std::fs::write(folder.join(name), secret).unwrap();
    }
    move |settings: &mut Table| {
        let timed = secrets.map(|(name, _, algorithm)| {
            let mut one = Table::new();
            one.insert("secret_file".to_owned(), name.into());
            one.insert("algorithm".to_owned(), algorithm.into());
            Value::Table(one)
        });
        set(settings, "auth.timed", Value::Array(timed.to_vec()));
    }
}

#[test]
fn row_20_timed_credentials_are_checked_once_with_every_secret() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::quietline(folder.path(), timed_secrets(folder.path()));
    let mut found = Findings::default();
    let now = unix_seconds();
    let allocate = |who: Who| {
        outcome(
            site.client(Transport::Udp, who)
                .allocate_with(|builder| builder)
                .as_ref(),
        )
    };
    let soon = (now + 600).to_string();
    let named = format!("{soon}:somebody");
    for (name, who, wanted) in [
        ("the first secret", Who::timed(&soon, SECRET), 0),
        ("a name behind the time", Who::timed(&named, SECRET), 0),
        ("the second secret", Who::timed(&soon, OLD_SECRET), 0),
        ("SHA-256", Who::timed_sha256(&soon, SHA256_SECRET), 0),
        ("RFC 8489's integrity", Who::timed(&soon, SECRET).with(Login::Sha256), 0),
        ("a static user beside them", alice(), 0),
        ("the wrong algorithm", Who::timed_sha256(&soon, SECRET), 401),
        (
            "a foreign secret",
            Who::timed(&soon, "not a secret of this relay at all, I fear"),
            401,
        ),
        ("yesterday", Who::timed(&(now - 86_400).to_string(), SECRET), 401),
        ("a moment ago", Who::timed(&(now - 1).to_string(), SECRET), 401),
        ("next year", Who::timed(&(now + 365 * 86_400).to_string(), SECRET), 401),
        ("the end of all numbers", Who::timed(&u64::MAX.to_string(), SECRET), 401),
        (
            "more than all numbers",
            Who::timed("99999999999999999999999", SECRET),
            401,
        ),
        ("a name without time", Who::timed("somebody", SECRET), 401),
        ("a time with a sign", Who::timed(&format!("+{soon}"), SECRET), 401),
        ("a name of nothing but a colon", Who::timed(":", SECRET), 401),
    ] {
        found.equal(format!("20 {name} is {wanted}"), allocate(who), wanted);
    }
    // The allocation outlives its credential: libwebrtc drops the call if a Refresh is refused.
    let brief = Who::timed(&(unix_seconds() + 5).to_string(), SECRET);
    let mut live = site.client(Transport::Udp, brief.clone());
    let _ = live.allocate();
    let deadline = Instant::now() + PATIENCE;
    while allocate(brief.clone()) == 0 {
        assert!(Instant::now() < deadline, "a timed credential never ends");
        std::thread::sleep(Duration::from_millis(100));
    }
    found.equal(
        "20 after its end a live allocation is refreshed",
        outcome(live.refresh(600).as_ref()),
        0,
    );
    found.equal(
        "20 and gets permissions",
        live.permit(SocketAddr::from((PEER, 1000))),
        0,
    );
    found.equal("20 and channels", live.bind(0x4000, SocketAddr::from((PEER, 1000))), 0);
    found.conclude(site);
}

#[test]
fn row_20_a_relay_without_or_with_weak_secrets_does_not_start() {
    let weak = |change: &dyn Fn(&mut Table, &std::path::Path)| {
        let folder = tempfile::tempdir().unwrap();
        write_keys(folder.path()).unwrap();
        let mut settings = relay_settings(SERVER);
        change(&mut settings, folder.path());
        check(folder.path(), &settings)
    };
    let (code, said) = weak(&|_, _| {});
    assert_eq!(code, Some(0), "{said}");
    let no_users = |settings: &mut Table, _: &std::path::Path| set(settings, "auth.user", Value::Array(Vec::new()));
    let write = |name: &'static str, text: &'static str| {
        move |settings: &mut Table, folder: &std::path::Path| {
            std::fs::write(folder.join(name), text).unwrap();
            if name == "secret" {
                let mut one = Table::new();
                one.insert("secret_file".to_owned(), "secret".into());
                set(settings, "auth.timed", Value::Array(vec![Value::Table(one)]));
            }
        }
    };
    let (empty, short) = (write("alice.password", ""), write("alice.password", "secret"));
    let (no_secret, short_secret) = (write("secret", ""), write("secret", "0123456789"));
    let placeholder = write("secret", "CHANGE-ME-CHANGE-ME-CHANGE-ME-CHANGE-ME");
    for (name, change) in [
        ("no users at all", &no_users as &dyn Fn(&mut Table, &std::path::Path)),
        ("an empty password", &empty),
        ("a short password", &short),
        ("an empty secret", &no_secret),
        ("a short secret", &short_secret),
        ("a placeholder", &placeholder),
    ] {
        let (code, said) = weak(change);
        assert_eq!(code, Some(78), "{name}: {said}");
        assert!(
            !said.contains("CHANGE-ME-CHANGE") && !said.contains("0123456789"),
            "{name}: {said}"
        );
    }
}

// ---- Row 22

#[test]
fn row_22_reservations_leak_no_port_and_belong_to_their_user() {
    let few_ports = |settings: &mut Table| {
        set(settings, "relay.first_port", 50_000);
        set(settings, "relay.last_port", 50_007);
        set(settings, "limits.port_cool_down", "0s");
    };
    holds(few_ports, |site, found| {
        for _ in 0..40 {
            let mut client = alice_at(site);
            let answer = client.allocate_with(|builder| builder.attribute(attribute::EVEN_PORT, [0]));
            found.equal("22 an even port", outcome(answer.as_ref()), 0);
            found.equal("22 and its end", outcome(client.refresh(0).as_ref()), 0);
        }
        let mut clients: Vec<_> = (0..8).map(|_| alice_at(site)).collect();
        for client in &mut clients {
            found.equal(
                "22 all ports are still there",
                outcome(client.allocate_with(|b| b).as_ref()),
                0,
            );
        }
        for client in &mut clients {
            let _ = client.refresh(0);
        }
        let mut first = alice_at(site);
        let answer = first.allocate_with(|builder| builder.attribute(attribute::EVEN_PORT, [0x80]));
        let token = answer.and_then(|answer| answer.get(attribute::RESERVATION_TOKEN).map(<[u8]>::to_vec));
        let token = token.unwrap_or_default();
        let claim = |who: Who| {
            let mut client = site.client(Transport::Udp, who);
            outcome(
                client
                    .allocate_with(|builder| builder.attribute(attribute::RESERVATION_TOKEN, &token))
                    .as_ref(),
            )
        };
        found.equal("22 another user's token is 508", claim(bob()), 508);
        found.equal("22 its own user's is good", claim(alice()), 0);
    });
}

// ---- Row 24

#[test]
fn row_24_what_comes_from_nowhere_gets_silence() {
    for transport in Transport::ALL {
        holds(
            |_| {},
            |site, found| {
                let mut client = site.client(transport, alice());
                let peer = SocketAddr::from((PEER, 1000));
                let is_stream = transport != Transport::Udp;
                // A stream must begin with a message.
                found.outcome(format!("24 {transport:?}: a first message"), client.is_silent());
                for (name, bytes) in [
                    ("ChannelData", channel_data(0x4000, b"from nowhere", is_stream)),
                    ("a Send indication", send_indication(peer, b"from nowhere")),
                    (
                        "a Data indication",
                        Builder::new(kind::DATA_INDICATION)
                            .attribute(attribute::DATA, b"x")
                            .build(),
                    ),
                    ("a Refresh error", Builder::new(kind::REFRESH | kind::ERROR).build()),
                    ("a Binding success", Builder::new(kind::BINDING | kind::SUCCESS).build()),
                ] {
                    found.outcome(
                        format!("24 {transport:?}: {name} gets silence"),
                        client.stays_silent_to(&bytes),
                    );
                }
            },
        );
    }
}

// ---- Headers of relayed packets (RFC 8656 §13 to §16)

#[test]
fn ecn_is_copied_dscp_and_hop_limit_are_not_and_df_is_set_when_asked_for() {
    holds(
        |_| {},
        |site, found| {
            let peer = site.peer();
            let address = peer.local_addr().unwrap();
            let sniffer = site.world.sniffer();
            let socket = site.world.udp(CLIENT, 0);
            let with_tos = socket2::Socket::from(socket);
            with_tos.set_ttl_v4(7).unwrap();
            let link = Link::udp(with_tos.try_clone().unwrap().into(), site.server()).unwrap();
            let mut client = Client::new(link, alice(), PATIENCE);
            let relayed = client.allocate();
            assert_eq!(client.bind(0x4000, address), 0);
            let header_of = |data: &[u8], from: SocketAddr| loop {
                let packet = sniffer.next_with(data, PATIENCE).expect("the packet passes");
                let SocketAddr::V4(from) = from else {
                    panic!("an IPv4 address")
                };
                if packet[12..16] == from.ip().octets() && packet[20..22] == from.port().to_be_bytes() {
                    return (packet[1], packet[6] & 0x40 != 0, packet[8]);
                }
            };
            for ecn in [0, 1, 2, 3] {
                with_tos.set_tos_v4(u32::from(0xB8 | ecn)).unwrap();
                let data = payload();
                client.send_on(0x4000, &data);
                let (tos, df, hops) = header_of(&data, relayed);
                found.equal(format!("ECN {ecn} is copied, DSCP is not"), tos, ecn);
                found.that("DF is not set unless asked for", !df);
                found.equal("the hop limit is a fresh one", hops, 64);
            }
            let data = payload();
            let asked = Builder::new(kind::SEND_INDICATION)
                .address(attribute::XOR_PEER_ADDRESS, address)
                .attribute(attribute::DONT_FRAGMENT, [])
                .attribute(attribute::DATA, &data);
            client.link.send(&asked.build()).unwrap();
            found.that("DF is set when asked for", header_of(&data, relayed).1);
            let back = socket2::Socket::from(peer);
            for ecn in [1, 3, 0] {
                back.set_tos_v4(u32::from(0x28 | ecn)).unwrap();
                let data = payload();
                back.send_to(&data, &relayed.into()).unwrap();
                let (tos, ..) = header_of(&data, site.server());
                found.equal(format!("back: ECN {ecn} is copied, DSCP is not"), tos, ecn);
            }
        },
    );
}
