//! The 25 conformance cases of a TURN server, over real sockets. Each quotes its number; RFC 8489 and RFC 8656 are behind them.
//!
//! In: a site with a relay, whichever it is. Out: what it does differently. Never: sleeps where an answer can prove that nothing came.

use crate::findings::Findings;
use quietline_lab::turn::client::{Client, Login, Packet, SILENCE, UDP, Who, describe, payload, send_indication};
use quietline_lab::turn::server::{
    CLIENT, CLIENT_V6, OTHER_PEER, PEER, PEER_V6, SERVER_V6, Site, Transport, alice, bob,
};
use quietline_lab::turn::stun::{Answer, Builder, Integrity, attribute, channel_data, kind, random};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A client of this site over UDP.
pub fn alice_at(site: &Site) -> Client {
    site.client(Transport::Udp, alice())
}

fn over_udp(builder: Builder) -> Builder {
    builder.attribute(attribute::REQUESTED_TRANSPORT, UDP)
}

fn code(answer: Option<&Answer>) -> u16 {
    answer.map_or(SILENCE, Answer::outcome)
}

fn far(port: u16) -> SocketAddr {
    SocketAddr::from((PEER, port))
}

/// Binding, no auth: XOR-MAPPED-ADDRESS is the source. RFC 8489 §6.3.1.1, §14.2
pub fn case_1(site: &Site, found: &mut Findings) {
    let clients = [
        ("UDP", CLIENT.into(), Transport::Udp),
        ("UDP over IPv6", IpAddr::V6(CLIENT_V6), Transport::Udp),
        ("TCP", CLIENT.into(), Transport::Tcp),
        ("TLS", CLIENT.into(), Transport::Tls),
    ];
    for (name, local, transport) in clients {
        let mut client = site.client_at(local, transport, alice());
        let size = if local.is_ipv4() { 32 } else { 44 };
        for (with, more) in [("", 0), (" with FINGERPRINT", 8)] {
            let mut request = Builder::new(kind::BINDING);
            if more > 0 {
                request = request.fingerprint();
            }
            let Some(answer) = client.ask(&request.build()) else {
                found.that(format!("1 Binding over {name}{with} is answered"), false);
                continue;
            };
            found.equal(
                format!("1 Binding over {name}{with} succeeds"),
                answer.message_type,
                0x0101,
            );
            let mapped = answer.address(attribute::XOR_MAPPED_ADDRESS);
            found.equal(
                format!("1 XOR-MAPPED-ADDRESS over {name}{with}"),
                mapped,
                Some(client.local()),
            );
            found.equal(format!("1 size over {name}{with}"), answer.bytes.len(), size + more);
            let is_printed = !answer.has(attribute::FINGERPRINT) || answer.is_fingerprinted();
            found.that(format!("1 a FINGERPRINT over {name}{with} is right"), is_printed);
        }
    }
}

/// Unknown attributes of Binding, and Binding indications. RFC 8489 §6.3.1, §6.3.2
pub fn case_2(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let answer = client.ask(&Builder::new(kind::BINDING).attribute(0x7FFF, b"what").build());
    found.equal("2 an unknown required attribute is 420", code(answer.as_ref()), 420);
    let unknown = answer.and_then(|answer| answer.get(attribute::UNKNOWN_ATTRIBUTES).map(<[u8]>::to_vec));
    found.equal("2 UNKNOWN-ATTRIBUTES lists it", unknown, Some(vec![0x7F, 0xFF]));
    let answer = client.ask(&Builder::new(kind::BINDING).attribute(0xFFFE, b"what").build());
    found.equal("2 an unknown optional attribute is nothing", code(answer.as_ref()), 0);
    for (name, message) in [
        ("plain", Builder::new(kind::BINDING_INDICATION)),
        (
            "with an unknown attribute",
            Builder::new(kind::BINDING_INDICATION).attribute(0x7FFF, b"what"),
        ),
    ] {
        let silence = client.stays_silent_to(&message.build());
        found.outcome(format!("2 a Binding indication {name} gets no answer"), silence);
    }
}

/// Malformed messages are discarded. RFC 8489 §6.3, §14.7
pub fn case_3(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let good = Builder::new(kind::BINDING)
        .attribute(attribute::SOFTWARE, b"four")
        .build();
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let mut bad_print = Builder::new(kind::BINDING).fingerprint().build();
    bad_print[27] ^= 1;
    for (name, bytes) in [
        ("a wrong cookie", changed(4, &[0x21, 0x12, 0xA4, 0x43])),
        (
            "a length that is not a multiple of 4",
            [changed(2, &[0, 9]), vec![0]].concat(),
        ),
        ("a length beyond the datagram", changed(2, &[0, 12])),
        ("a length short of the datagram", changed(2, &[0, 4])),
        ("top bits 10", changed(0, &[0x80])),
        ("top bits 11", changed(0, &[0xC0])),
        ("a bad FINGERPRINT", bad_print),
        ("half a header", good[..10].to_vec()),
        ("nothing", Vec::new()),
    ] {
        found.outcome(format!("3 {name} gets silence"), client.stays_silent_to(&bytes));
    }
}

/// Allocate without integrity: 401 with a challenge. RFC 8489 §9.2.4
pub fn case_4(site: &Site, found: &mut Findings) {
    let mut nonces = Vec::new();
    for transport in [Transport::Udp, Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut client = site.client(transport, alice());
        let Some(answer) = client.challenge() else {
            found.that("4 an Allocate without integrity is answered", false);
            continue;
        };
        found.equal("4 without integrity is 401", answer.outcome(), 401);
        found.that(
            "4 REALM and NONCE are there",
            answer.has(attribute::REALM) && answer.has(attribute::NONCE),
        );
        let algorithms = answer.get(attribute::PASSWORD_ALGORITHMS).map(<[u8]>::to_vec);
        found.that(
            "4 PASSWORD-ALGORITHMS offers MD5 and SHA-256",
            algorithms.is_some_and(|list| {
                let mut numbers: Vec<u16> = list.chunks(4).map(|one| u16::from_be_bytes([one[0], one[1]])).collect();
                numbers.sort_unstable();
                numbers == [1, 2]
            }),
        );
        found.that(
            "4 the nonce begins with its cookie and the features",
            client.nonce.starts_with(b"obMatJos2") && client.nonce.len() > 13,
        );
        let unwanted = [
            attribute::USERNAME,
            attribute::USERHASH,
            attribute::MESSAGE_INTEGRITY,
            attribute::MESSAGE_INTEGRITY_SHA256,
        ];
        found.that(
            "4 no USERNAME, USERHASH or integrity in a 401",
            unwanted.iter().all(|kind| !answer.has(*kind)),
        );
        nonces.push(client.nonce);
    }
    nonces.sort();
    let all = nonces.len();
    nonces.dedup();
    found.equal("4 each source has its own nonce", nonces.len(), all);
}

/// An integrity without its companions: 400. RFC 8489 §9.2.4
pub fn case_5(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let _ = client.challenge();
    let key = client.key();
    for missing in [attribute::USERNAME, attribute::REALM, attribute::NONCE] {
        let mut request = over_udp(Builder::new(kind::ALLOCATE));
        for (kind, value) in [
            (attribute::USERNAME, client.who.user.as_bytes()),
            (attribute::REALM, client.realm.as_bytes()),
            (attribute::NONCE, &client.nonce),
        ] {
            if kind != missing {
                request = request.attribute(kind, value);
            }
        }
        let answer = client.ask(&request.integrity(&key).build());
        found.equal(format!("5 without {missing:#06x} is 400"), code(answer.as_ref()), 400);
        let unwanted = [
            attribute::USERNAME,
            attribute::USERHASH,
            attribute::REALM,
            attribute::NONCE,
            attribute::MESSAGE_INTEGRITY,
            attribute::MESSAGE_INTEGRITY_SHA256,
        ];
        let is_bare = answer.is_some_and(|answer| unwanted.iter().all(|kind| !answer.has(*kind)));
        found.that(format!("5 the 400 without {missing:#06x} tells nothing"), is_bare);
    }
}

/// Unknown users and wrong passwords look alike. RFC 8489 §9.2.4
pub fn case_6(site: &Site, found: &mut Findings) {
    let refusals = |login: Login, found: &mut Findings| {
        let mut client = alice_at(site);
        let _ = client.challenge();
        let transaction = random();
        let mut refusal = |who: Who| {
            client.who = who.with(login);
            let request = over_udp(Builder::with_transaction(kind::ALLOCATE, transaction));
            let answer = client.ask(&client.signed(request).build());
            found.equal(format!("6 {login:?}: wrong is 401"), code(answer.as_ref()), 401);
            answer
        };
        let unknown = refusal(Who::new("nobody", "of that name"));
        let wrong = refusal(Who::new(&alice().user, "wrong"));
        (unknown, wrong)
    };
    for login in [Login::Md5, Login::Sha256, Login::UserHash] {
        let (Some(unknown), Some(wrong)) = refusals(login, found) else {
            continue;
        };
        found.that(
            format!("6 {login:?}: REALM and NONCE are there"),
            unknown.has(attribute::REALM) && unknown.has(attribute::NONCE),
        );
        let without_nonce = |answer: &Answer| {
            let mut attributes = answer.attributes.clone();
            for (kind, value) in &mut attributes {
                if *kind == attribute::NONCE {
                    value.fill(0);
                }
            }
            (answer.message_type, answer.bytes.len(), attributes)
        };
        found.equal(
            format!("6 {login:?}: unknown user and wrong password look the same"),
            without_nonce(&unknown),
            without_nonce(&wrong),
        );
    }
}

/// Foreign and random nonces with a valid integrity: 438, and the retry succeeds. RFC 8489 §9.2.4
pub fn case_7(site: &Site, found: &mut Findings) {
    let mut other = alice_at(site);
    let _ = other.challenge();
    let mut client = alice_at(site);
    let _ = client.challenge();
    let own = client.nonce.clone();
    let mut forged = own.clone();
    if let Some(last) = forged.last_mut() {
        *last = if *last == b'A' { b'B' } else { b'A' };
    }
    for (name, nonce) in [
        ("another source's", other.nonce.clone()),
        ("a random", b"0123456789abcdef".to_vec()),
        ("a forged", forged),
        ("an empty", Vec::new()),
    ] {
        client.nonce = nonce;
        let answer = client.ask(&client.signed(over_udp(Builder::new(kind::ALLOCATE))).build());
        found.equal(format!("7 {name} nonce is 438"), code(answer.as_ref()), 438);
        let Some(answer) = answer else { continue };
        found.that(
            format!("7 the 438 for {name} nonce has REALM and NONCE"),
            answer.has(attribute::REALM) && answer.has(attribute::NONCE),
        );
        found.that(
            format!("7 the 438 for {name} nonce has PASSWORD-ALGORITHMS"),
            answer.has(attribute::PASSWORD_ALGORITHMS),
        );
        client.learn(&answer);
    }
    let answer = client.ask(&client.signed(over_udp(Builder::new(kind::ALLOCATE))).build());
    found.equal("7 the retry with the new nonce succeeds", code(answer.as_ref()), 0);
}

/// SHA-256, USERHASH and bidding down. RFC 8489 §9.2.4, §14.4-6, §14.11-12
pub fn case_8(site: &Site, found: &mut Findings) {
    for login in [Login::Sha256, Login::UserHash] {
        let mut client = site.client(Transport::Udp, alice().with(login));
        let answer = client.allocate_with(|builder| builder);
        found.equal(format!("8 {login:?} allocates"), code(answer.as_ref()), 0);
        let is_signed = answer.is_some_and(|answer| answer.is_signed(&client.key(), Integrity::Sha256));
        found.that(
            format!("8 the answer to {login:?} has MESSAGE-INTEGRITY-SHA256"),
            is_signed,
        );
    }
    let mut client = alice_at(site);
    let _ = client.challenge();
    let (user, realm, list) = (alice().user, client.realm.clone(), client.algorithms.clone());
    let sha256_key = alice().with(Login::Sha256).key(&realm);
    let mut altered = list.clone();
    altered.drain(..altered.len().min(4));
    let three = [0, 3, 0, 0];
    let two = [0, 2, 0, 0];
    let mut reversed: Vec<u8> = list.chunks(4).rev().flatten().copied().collect();
    if reversed == list {
        reversed.extend(three);
    }
    for (name, algorithms, algorithm) in [
        ("an algorithm without the list", None, Some(two)),
        ("the list without an algorithm", Some(list.clone()), None),
        ("a shortened list", Some(altered), Some(two)),
        ("a list in another order", Some(reversed), Some(two)),
        ("an algorithm that is not on the list", Some(list.clone()), Some(three)),
    ] {
        let mut request = over_udp(Builder::new(kind::ALLOCATE))
            .attribute(attribute::USERNAME, &user)
            .attribute(attribute::REALM, &realm)
            .attribute(attribute::NONCE, &client.nonce);
        if let Some(algorithms) = algorithms {
            request = request.attribute(attribute::PASSWORD_ALGORITHMS, algorithms);
        }
        if let Some(algorithm) = algorithm {
            request = request.attribute(attribute::PASSWORD_ALGORITHM, algorithm);
        }
        let answer = client.ask(&request.integrity_with(&sha256_key, Integrity::Sha256).build());
        found.equal(format!("8 {name} is 400"), code(answer.as_ref()), 400);
    }
    let answer = client.ask(&client.signed(over_udp(Builder::new(kind::ALLOCATE))).build());
    found.equal("8 neither list nor algorithm means MD5", code(answer.as_ref()), 0);
    let is_signed = answer.is_some_and(|answer| answer.is_signed(&client.key(), Integrity::Sha1));
    found.that("8 the answer to MD5 has MESSAGE-INTEGRITY", is_signed);
    // SHA-256's key with HMAC-SHA1 is nobody's.
    let mut mixed = alice_at(site);
    let _ = mixed.challenge();
    let request = mixed
        .named(over_udp(Builder::new(kind::ALLOCATE)))
        .integrity(&sha256_key);
    let answer = mixed.ask(&request.build());
    found.equal(
        "8 the wrong key under the right name is 401",
        code(answer.as_ref()),
        401,
    );
}

/// What stands behind the integrity is ignored. RFC 8489 §14.5
pub fn case_9(site: &Site, found: &mut Findings) {
    let behind = |lifetime: u32| {
        let [a, b, c, d] = lifetime.to_be_bytes();
        [0, 0x0D, 0, 4, a, b, c, d]
    };
    let mut client = alice_at(site);
    let _ = client.challenge();
    let request = client.signed(over_udp(Builder::new(kind::ALLOCATE))).raw(&behind(3600));
    let lifetime = client
        .ask(&request.build())
        .and_then(|answer| answer.number(attribute::LIFETIME));
    found.equal(
        "9 LIFETIME behind an Allocate's integrity is ignored",
        lifetime,
        Some(600),
    );
    let request = client
        .signed(Builder::new(kind::REFRESH).attribute(attribute::LIFETIME, 700u32.to_be_bytes()))
        .raw(&behind(0));
    let lifetime = client
        .ask(&request.build())
        .and_then(|answer| answer.number(attribute::LIFETIME));
    found.equal(
        "9 LIFETIME=0 behind a Refresh's integrity is ignored",
        lifetime,
        Some(700),
    );
}

/// An allocation has a random port of the dynamic range, and is IPv4. RFC 8656 §7.2, §7.3
pub fn case_10(site: &Site, found: &mut Findings) {
    let mut clients: Vec<_> = (0..8).map(|_| alice_at(site)).collect();
    let mut ports = Vec::new();
    for client in &mut clients {
        let Some(answer) = client.allocate_with(|builder| builder) else {
            found.that("10 an Allocate is answered", false);
            continue;
        };
        found.equal("10 Allocate succeeds", answer.outcome(), 0);
        let mapped = answer.address(attribute::XOR_MAPPED_ADDRESS);
        found.equal("10 XOR-MAPPED-ADDRESS", mapped, Some(client.local()));
        found.that("10 LIFETIME is there", answer.number(attribute::LIFETIME).is_some());
        found.that(
            "10 the answer is signed",
            answer.is_signed(&client.key(), Integrity::Sha1),
        );
        found.that("10 no SOFTWARE", !answer.has(attribute::SOFTWARE));
        match answer.address(attribute::XOR_RELAYED_ADDRESS) {
            Some(relayed) => {
                found.equal(
                    "10 the relayed address is the server's",
                    relayed.ip(),
                    site.server().ip(),
                );
                found.that("10 the port is in the dynamic range", relayed.port() >= 49_152);
                ports.push(relayed.port());
            }
            None => found.that("10 XOR-RELAYED-ADDRESS is there", false),
        }
    }
    let neighbours = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 2).count();
    // By chance two of eight random ports are neighbours once in 460 runs, three once in 300,000.
    found.that("10 ports do not follow each other", neighbours < 2);
    let mut over_v6 = site.client_at(CLIENT_V6, Transport::Udp, alice());
    let answer = over_v6.allocate_with(|builder| builder);
    let relayed = answer.and_then(|answer| answer.address(attribute::XOR_RELAYED_ADDRESS));
    found.that(
        "10 over IPv6 too the relayed address is IPv4",
        relayed.is_some_and(|relayed| relayed.is_ipv4()),
    );
}

/// Lifetimes are clamped. RFC 8656 §7.2
pub fn case_11(site: &Site, found: &mut Findings) {
    for (asked, least, most) in [
        (None, 600, 600),
        (Some(10), 600, 600),
        (Some(0), 1, 3600),
        (Some(1000), 1000, 1000),
        (Some(100_000), 600, 3600),
        (Some(u32::MAX), 600, 3600),
    ] {
        let mut client = alice_at(site);
        let answer = client.allocate_with(|builder| match asked {
            Some(lifetime) => builder.attribute(attribute::LIFETIME, u32::to_be_bytes(lifetime)),
            None => builder,
        });
        let lifetime = answer
            .and_then(|answer| answer.number(attribute::LIFETIME))
            .unwrap_or(u32::MAX);
        found.outcome(
            format!("11 LIFETIME {asked:?} is between {least} and {most}"),
            if (least..=most).contains(&lifetime) {
                Ok(())
            } else {
                Err(lifetime.to_string())
            },
        );
    }
}

/// Only UDP is relayed. RFC 8656 §7.2; RFC 6062 §5.1
pub fn case_12(site: &Site, found: &mut Findings) {
    for (name, value, wanted) in [
        ("no REQUESTED-TRANSPORT", None, 400),
        ("a short REQUESTED-TRANSPORT", Some(vec![17]), 400),
        ("REQUESTED-TRANSPORT 6", Some(vec![6, 0, 0, 0]), 442),
        ("REQUESTED-TRANSPORT 99", Some(vec![99, 0, 0, 0]), 442),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut client = site.client(transport, alice());
            let outcome = client.outcome(kind::ALLOCATE, |builder| match &value {
                Some(value) => builder.attribute(attribute::REQUESTED_TRANSPORT, value),
                None => builder,
            });
            found.equal(format!("12 {name} over {transport:?} is {wanted}"), outcome, wanted);
        }
    }
}

/// The same 5-tuple again. RFC 8656 §7.2
pub fn case_13(site: &Site, found: &mut Findings) {
    for transport in Transport::ALL {
        let mut client = site.client(transport, alice());
        let _ = client.challenge();
        let request = client
            .signed(Builder::new(kind::ALLOCATE).attribute(attribute::REQUESTED_TRANSPORT, UDP))
            .build();
        let first = client.ask(&request);
        let again = client.ask(&request);
        let relayed = |answer: &Option<Answer>| answer.as_ref()?.address(attribute::XOR_RELAYED_ADDRESS);
        found.that(
            format!("13 {transport:?}: the first succeeds"),
            relayed(&first).is_some(),
        );
        found.equal(
            format!("13 {transport:?}: a retransmission gets the same answer"),
            relayed(&again),
            relayed(&first),
        );
        let other = client.allocate_with(|builder| builder);
        found.equal(
            format!("13 {transport:?}: a new transaction is 437"),
            code(other.as_ref()),
            437,
        );
    }
}

/// Another user on the same 5-tuple. RFC 8656 §5, §7.2
pub fn case_14(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let _ = client.allocate();
    client.who = bob();
    let refresh = client.refresh(600);
    found.equal("14 another user's Refresh is 441", code(refresh.as_ref()), 441);
    found.equal(
        "14 another user's CreatePermission is 441",
        client.permit(far(1000)),
        441,
    );
    found.equal(
        "14 another user's ChannelBind is 441",
        client.bind(0x4000, far(1000)),
        441,
    );
    let allocate = code(client.allocate_with(|builder| builder).as_ref());
    found.that(
        "14 another user's Allocate is 437 or 441",
        [437, 441].contains(&allocate),
    );
    client.who = alice();
    found.equal("14 the first user goes on", client.permit(far(1000)), 0);
}

/// Address families, where IPv6 is relayed. RFC 8656 §7.2
pub fn case_15_with_ipv6(site: &Site, found: &mut Findings) {
    case_15(site, true, found);
}

/// And where it is not.
pub fn case_15_without_ipv6(site: &Site, found: &mut Findings) {
    case_15(site, false, found);
}

fn case_15(site: &Site, has_v6: bool, found: &mut Findings) {
    let requested = |family: u8| (attribute::REQUESTED_ADDRESS_FAMILY, vec![family, 0, 0, 0]);
    let additional = |family: u8| (attribute::ADDITIONAL_ADDRESS_FAMILY, vec![family, 0, 0, 0]);
    let token = (attribute::RESERVATION_TOKEN, vec![1; 8]);
    let pair = (attribute::EVEN_PORT, vec![0x80]);
    let v6 = if has_v6 { 0 } else { 440 };
    let named = if has_v6 { "with IPv6" } else { "without IPv6" };
    for (name, attributes, wanted) in [
        ("IPv4", vec![requested(1)], 0),
        ("IPv6", vec![requested(2)], v6),
        ("family 9", vec![requested(9)], 440),
        ("a family and a token", vec![requested(1), token], 400),
        ("a family and another", vec![requested(1), additional(2)], 400),
        ("IPv4 in addition", vec![additional(1)], 400),
        ("IPv6 in addition and a pair of ports", vec![additional(2), pair], 400),
    ] {
        let mut client = alice_at(site);
        let outcome = client.allocate_with(|builder| {
            attributes
                .iter()
                .fold(builder, |builder, (kind, value)| builder.attribute(*kind, value))
        });
        found.equal(
            format!("15 {named}: {name} is {wanted}"),
            code(outcome.as_ref()),
            wanted,
        );
    }
    let mut client = alice_at(site);
    let both = client.allocate_with(|builder| {
        let (kind, value) = additional(2);
        builder.attribute(kind, value)
    });
    found.equal(
        format!("15 {named}: both families are answered"),
        code(both.as_ref()),
        0,
    );
    let Some(both) = both else {
        return;
    };
    let relayed = both.addresses(attribute::XOR_RELAYED_ADDRESS);
    let families: Vec<_> = relayed.iter().map(SocketAddr::is_ipv6).collect();
    let error = both.get(attribute::ADDRESS_ERROR_CODE).map(<[u8]>::to_vec);
    if has_v6 {
        found.equal("15 with IPv6: two relayed addresses", families, vec![false, true]);
        found.equal("15 with IPv6: no ADDRESS-ERROR-CODE", error, None);
    } else {
        found.equal("15 without IPv6: one relayed address", families, vec![false]);
        let error = error.map(|value| value.get(..4).map(<[u8]>::to_vec));
        found.equal(
            "15 without IPv6: ADDRESS-ERROR-CODE",
            error,
            Some(Some(vec![2, 0, 4, 40])),
        );
    }
}

/// DONT-FRAGMENT, even ports, reservations. RFC 8656 §7.2, §18.7
pub fn case_16(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let answer = client.allocate_with(|builder| builder.attribute(attribute::DONT_FRAGMENT, []));
    found.equal("16 DONT-FRAGMENT is supported", code(answer.as_ref()), 0);

    let even =
        |client: &mut Client, bit: u8| client.allocate_with(|builder| builder.attribute(attribute::EVEN_PORT, [bit]));
    let mut client = alice_at(site);
    let answer = even(&mut client, 0);
    let port = |answer: &Option<Answer>| Some(answer.as_ref()?.address(attribute::XOR_RELAYED_ADDRESS)?.port());
    found.equal(
        "16 EVEN-PORT gives an even port",
        port(&answer).map(|port| port % 2),
        Some(0),
    );
    found.that(
        "16 EVEN-PORT without its bit reserves nothing",
        answer.is_some_and(|answer| !answer.has(attribute::RESERVATION_TOKEN)),
    );
    let mut client = alice_at(site);
    let first = even(&mut client, 0x80);
    let token = first
        .as_ref()
        .and_then(|answer| answer.get(attribute::RESERVATION_TOKEN).map(<[u8]>::to_vec));
    found.equal(
        "16 a pair begins with an even port",
        port(&first).map(|port| port % 2),
        Some(0),
    );
    found.equal(
        "16 a pair has a token of 8 bytes",
        token.as_ref().map(Vec::len),
        Some(8),
    );
    let token = token.unwrap_or_default();
    let claim = |token: &[u8]| {
        let mut client = alice_at(site);
        let answer = client.allocate_with(|builder| builder.attribute(attribute::RESERVATION_TOKEN, token));
        // It must live until all are compared.
        (client, answer)
    };
    let (_second, second) = claim(&token);
    found.equal(
        "16 the token gives the next port",
        port(&second),
        port(&first).map(|port| port.wrapping_add(1)),
    );
    let (_third, third) = claim(&token);
    found.equal("16 a token is good once", code(third.as_ref()), 508);
    let (_fourth, fourth) = claim(&[0x5A; 8]);
    found.equal("16 a bogus token is 508", code(fourth.as_ref()), 508);
}

/// Quotas run out and come back. RFC 8656 §7.2. `quota`: how many allocations this site gives to one source.
pub fn case_17(site: &Site, quota: usize, found: &mut Findings) {
    let mut clients: Vec<_> = (0..quota).map(|_| alice_at(site)).collect();
    for client in &mut clients {
        found.equal(
            "17 within the quota",
            code(client.allocate_with(|builder| builder).as_ref()),
            0,
        );
    }
    let mut last = alice_at(site);
    let over = last.allocate_with(|builder| builder);
    found.equal("17 one more than the quota is 486", code(over.as_ref()), 486);
    let ended = clients.first_mut().and_then(|client| client.refresh(0));
    found.equal("17 one ends", code(ended.as_ref()), 0);
    let again = last.allocate_with(|builder| builder);
    found.equal("17 then there is room again", code(again.as_ref()), 0);
}

/// Ports run out and come back. RFC 8656 §7.2. `ports`: how many this site has.
pub fn case_17_ports(site: &Site, ports: usize, found: &mut Findings) {
    let mut clients: Vec<_> = (0..ports).map(|_| alice_at(site)).collect();
    for client in &mut clients {
        found.equal(
            "17 a port is free",
            code(client.allocate_with(|builder| builder).as_ref()),
            0,
        );
    }
    let mut last = alice_at(site);
    let over = last.allocate_with(|builder| builder);
    found.equal("17 without a free port is 508", code(over.as_ref()), 508);
    let ended = clients.first_mut().and_then(|client| client.refresh(0));
    found.equal("17 one port becomes free", code(ended.as_ref()), 0);
    let again = last.allocate_with(|builder| builder);
    found.equal("17 then it is given again", code(again.as_ref()), 0);
}

/// Refresh. RFC 8656 §8.2
pub fn case_18(site: &Site, found: &mut Findings) {
    let mut client = alice_at(site);
    let nothing = client.refresh(600);
    found.equal("18 Refresh without allocation is 437", code(nothing.as_ref()), 437);
    let relayed = client.allocate();
    let lifetime = |answer: Option<Answer>| answer.and_then(|answer| answer.number(attribute::LIFETIME));
    let long = lifetime(client.refresh(100_000)).unwrap_or(u32::MAX);
    found.that("18 LIFETIME=100000 is clamped", (600..=3600).contains(&long));
    let other = client.outcome(kind::REFRESH, |builder| {
        builder
            .attribute(attribute::LIFETIME, 600u32.to_be_bytes())
            .attribute(attribute::REQUESTED_ADDRESS_FAMILY, [2, 0, 0, 0])
    });
    found.equal("18 Refresh of a family that is not there is 443", other, 443);
    found.equal("18 LIFETIME=0 says 0", lifetime(client.refresh(0)), Some(0));
    let gone = client.refresh(600);
    found.equal("18 after it Refresh is 437", code(gone.as_ref()), 437);
    let peer = site.peer();
    found.that(
        "18 after it the port is closed to peers",
        is_closed(site, &peer, relayed),
    );
}

/// Whether the kernel says that nobody has that port: it does so by ICMP, to a socket that is connected.
pub fn is_closed(site: &Site, peer: &std::net::UdpSocket, port: SocketAddr) -> bool {
    if peer.connect(port).is_err() {
        return false;
    }
    let _ = peer.set_read_timeout(Some(site.patience));
    let _ = peer.send(b"anybody there?");
    loop {
        match peer.recv(&mut [0; 64]).map_err(|fault| fault.kind()) {
            Err(std::io::ErrorKind::Interrupted) => {}
            outcome => return outcome == Err(std::io::ErrorKind::ConnectionRefused),
        }
    }
}

/// CreatePermission. RFC 8656 §10.2
pub fn case_19(site: &Site, found: &mut Findings) {
    let (peer, other) = (site.peer(), site.peer_at(OTHER_PEER));
    let (peer_address, other_address) = (peer.local_addr().expect("bound"), other.local_addr().expect("bound"));
    let mut client = alice_at(site);
    let relayed = client.allocate();
    let empty = client.outcome(kind::CREATE_PERMISSION, |builder| builder);
    found.equal("19 no XOR-PEER-ADDRESS is 400", empty, 400);
    let v6 = SocketAddr::from((PEER_V6, 1000));
    found.equal("19 an IPv6 peer of an IPv4 allocation is 443", client.permit(v6), 443);
    for ip in [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
    ] {
        let denied: Ipv4Addr = ip.parse().expect("an address");
        found.equal(format!("19 {ip} is 403"), client.permit((denied, 1000).into()), 403);
    }
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:1000".parse().expect("an address");
    found.equal(
        "19 ::ffff:127.0.0.1 of an IPv4 allocation is 443",
        client.permit(mapped),
        443,
    );
    let two = client.outcome(kind::CREATE_PERMISSION, |builder| {
        builder.address(attribute::XOR_PEER_ADDRESS, peer_address).address(
            attribute::XOR_PEER_ADDRESS,
            "127.0.0.1:1000".parse().expect("an address"),
        )
    });
    found.equal("19 a good and a bad peer are 403", two, 403);
    // Neither way: what is sent to the good one, and what it sends.
    client.send_to(peer_address, b"not yet");
    let _ = peer.send_to(b"not yet", relayed);
    found.outcome("19 nothing is permitted yet", client.is_silent());
    found.equal("19 then the other is permitted", client.permit(other_address), 0);
    client.send_to(other_address, b"by permission");
    found.equal(
        "19 data goes to the permitted peer",
        site.first_at(&other),
        Some(b"by permission".to_vec()),
    );
    let _ = other.send_to(b"back", relayed);
    found.equal(
        "19 and what it sends is the first to come back",
        client.next(),
        Some(Packet::Data {
            peer: other_address,
            data: b"back".to_vec(),
        }),
    );
    // The port does not count.
    let elsewhere = SocketAddr::new(peer_address.ip(), 9);
    found.equal("19 a permission is for an address", client.permit(elsewhere), 0);
    client.send_to(peer_address, b"now");
    found.equal(
        "19 none of the two was installed; any port of a permitted address is reached",
        site.first_at(&peer),
        Some(b"now".to_vec()),
    );
    let mut dual = alice_at(site);
    let both = dual.allocate_with(|builder| builder.attribute(attribute::ADDITIONAL_ADDRESS_FAMILY, [2, 0, 0, 0]));
    found.equal("19 an allocation of both families", code(both.as_ref()), 0);
    found.equal("19 ::ffff:127.0.0.1 of both families is 403", dual.permit(mapped), 403);
    found.equal("19 an IPv6 peer of both families", dual.permit(v6), 0);
}

/// Permissions have a cap. RFC 8656 §10.2. `cap`: how many this site gives to an allocation.
pub fn case_19_capacity(site: &Site, cap: u8, found: &mut Findings) {
    let mut client = alice_at(site);
    let _ = client.allocate();
    let peer = |number: u8| SocketAddr::from((Ipv4Addr::new(1, 2, 6, number), 1000));
    for number in 0..cap {
        found.equal("19 within the cap", client.permit(peer(number)), 0);
    }
    found.equal("19 one more than the cap is 508", client.permit(peer(cap)), 508);
    found.equal("19 one that is there is refreshed", client.permit(peer(0)), 0);
}

/// Send indications. RFC 8656 §11.2, §9
pub fn case_20(site: &Site, found: &mut Findings) {
    for transport in Transport::ALL {
        let peer = site.peer();
        let address = peer.local_addr().expect("bound");
        let mut client = site.client(transport, alice());
        let relayed = client.allocate();
        let indication = Builder::new(kind::SEND_INDICATION);
        let to_peer = indication.clone().address(attribute::XOR_PEER_ADDRESS, address);
        let from_nowhere = send_indication(address, b"from nowhere");
        found.outcome(
            format!("20 {transport:?}: without permission no reply"),
            client.stays_silent_to(&send_indication(address, b"without permission")),
        );
        found.equal(format!("20 {transport:?}: the permission"), client.permit(address), 0);
        for (name, bytes) in [
            ("DATA", to_peer.clone().build()),
            (
                "XOR-PEER-ADDRESS",
                indication.clone().attribute(attribute::DATA, b"nowhere").build(),
            ),
            ("anything", indication.clone().build()),
            (
                "understanding",
                to_peer
                    .clone()
                    .attribute(attribute::DATA, b"unknown")
                    .attribute(0x7FFF, b"")
                    .build(),
            ),
        ] {
            found.outcome(
                format!("20 {transport:?}: without {name} no reply"),
                client.stays_silent_to(&bytes),
            );
        }
        let mut stranger = site.client(transport, alice());
        let silence = stranger.stays_silent_to(&from_nowhere);
        found.outcome(format!("20 {transport:?}: from an unknown 5-tuple no reply"), silence);
        for data in [payload(), Vec::new(), vec![0x5A; 1200], vec![7; 3]] {
            client.send_to(address, &data);
            let came = site.arrived(&peer);
            found.equal(
                format!(
                    "20 {transport:?}: {} bytes are the next to arrive, from the relayed address",
                    data.len()
                ),
                came,
                Some((relayed, data)),
            );
        }
    }
}

/// What peers send. RFC 8656 §11.3, §12.6-7
pub fn case_21(site: &Site, found: &mut Findings) {
    for transport in Transport::ALL {
        let (peer, same_ip, foreign) = (site.peer(), site.peer(), site.peer_at(OTHER_PEER));
        let address = peer.local_addr().expect("bound");
        let mut client = site.client(transport, alice());
        let relayed = client.allocate();
        let _ = foreign.send_to(b"without permission", relayed);
        let _ = peer.send_to(b"without permission", relayed);
        found.outcome(
            format!("21 {transport:?}: without permission nothing comes"),
            client.is_silent(),
        );
        found.equal(format!("21 {transport:?}: the permission"), client.permit(address), 0);
        let _ = foreign.send_to(b"without permission", relayed);
        for (name, socket) in [("the peer", &peer), ("another port of it", &same_ip)] {
            for data in [payload(), Vec::new(), vec![1, 2, 3]] {
                let _ = socket.send_to(&data, relayed);
                let wanted = Packet::Data {
                    peer: socket.local_addr().expect("bound"),
                    data,
                };
                found.equal(
                    format!("21 {transport:?}: the next is a Data indication from {name}"),
                    client.next(),
                    Some(wanted),
                );
            }
        }
        found.equal(
            format!("21 {transport:?}: the channel"),
            client.bind(0x4ABC, address),
            0,
        );
        let data = payload();
        let _ = peer.send_to(&data, relayed);
        found.equal(
            format!("21 {transport:?}: then it is ChannelData"),
            client.next(),
            Some(Packet::Channel(0x4ABC, data.clone())),
        );
        let _ = same_ip.send_to(&data, relayed);
        let wanted = Packet::Data {
            peer: same_ip.local_addr().expect("bound"),
            data,
        };
        found.equal(
            format!("21 {transport:?}: from another port still a Data indication"),
            client.next(),
            Some(wanted),
        );
    }
}

/// ChannelBind. RFC 8656 §12.2
pub fn case_22(site: &Site, found: &mut Findings) {
    let peer = site.peer();
    let address = peer.local_addr().expect("bound");
    let mut client = alice_at(site);
    let relayed = client.allocate();
    let without_number = client.outcome(kind::CHANNEL_BIND, |builder| {
        builder.address(attribute::XOR_PEER_ADDRESS, address)
    });
    found.equal("22 without CHANNEL-NUMBER is 400", without_number, 400);
    let without_peer = client.outcome(kind::CHANNEL_BIND, |builder| {
        builder.attribute(attribute::CHANNEL_NUMBER, [0x40, 0, 0, 0])
    });
    found.equal("22 without a peer is 400", without_peer, 400);
    for number in [0x0000, 0x3FFF, 0x5000, 0x7FFF, 0x8000, 0xFFFF] {
        found.equal(
            format!("22 channel {number:#06x} is 400"),
            client.bind(number, address),
            400,
        );
    }
    let denied: SocketAddr = "127.0.0.1:1000".parse().expect("an address");
    found.equal("22 a denied peer is 403", client.bind(0x4000, denied), 403);
    found.equal(
        "22 an IPv6 peer is 443",
        client.bind(0x4000, (PEER_V6, 1000).into()),
        443,
    );
    found.equal(
        "22 port 0 is 400",
        client.bind(0x4000, SocketAddr::new(address.ip(), 0)),
        400,
    );
    // None of these has permitted anything.
    let _ = peer.send_to(b"not yet", relayed);
    found.outcome("22 nothing is permitted yet", client.is_silent());
    for number in [0x4000, 0x4FFF] {
        let peer = SocketAddr::new(address.ip(), address.port() ^ (number & 1));
        found.equal(
            format!("22 channel {number:#06x} is good"),
            client.bind(number, peer),
            0,
        );
        found.equal(
            format!("22 channel {number:#06x} again is good"),
            client.bind(number, peer),
            0,
        );
    }
    found.equal(
        "22 a channel of another peer is 400",
        client.bind(0x4000, far(1000)),
        400,
    );
    found.equal("22 a peer of another channel is 400", client.bind(0x4001, address), 400);
    let data = payload();
    let _ = peer.send_to(&data, relayed);
    found.equal(
        "22 binding installs the permission",
        client.next(),
        Some(Packet::Channel(0x4000, data)),
    );
}

/// ChannelData over UDP. RFC 8656 §12.4-12.6
pub fn case_23(site: &Site, found: &mut Findings) {
    let peer = site.peer();
    let address = peer.local_addr().expect("bound");
    let mut client = alice_at(site);
    let relayed = client.allocate();
    found.equal("23 the channel", client.bind(0x4001, address), 0);
    let mut too_long = channel_data(0x4001, b"longer than it is", false);
    too_long[3] += 1;
    for (name, bytes) in [
        ("an unbound channel", channel_data(0x4002, b"unbound", false)),
        ("a length beyond the datagram", too_long),
        ("half a header", vec![0x40, 0x01]),
    ] {
        found.outcome(format!("23 {name} gets silence"), client.stays_silent_to(&bytes));
    }
    for (name, data, padding) in [
        ("data", payload(), 0),
        ("nothing", Vec::new(), 0),
        ("one byte", vec![9], 0),
        ("padding", b"five!".to_vec(), 3),
        ("a big packet", vec![0x77; 1300], 0),
    ] {
        let mut bytes = channel_data(0x4001, &data, false);
        bytes.resize(bytes.len() + padding, 0);
        let _ = client.link.send(&bytes);
        found.equal(
            format!("23 {name} is the next to arrive, without padding"),
            site.arrived(&peer),
            Some((relayed, data.clone())),
        );
        let _ = peer.send_to(&data, relayed);
        found.equal(
            format!("23 {name} comes back"),
            client.next(),
            Some(Packet::Channel(0x4001, data)),
        );
    }
}

/// ChannelData over streams: padding, several frames in a segment, split frames. RFC 8656 §12.5
pub fn case_23_streams(site: &Site, found: &mut Findings) {
    for transport in [Transport::Tcp, Transport::Tls] {
        let peer = site.peer();
        let address = peer.local_addr().expect("bound");
        let mut client = site.client(transport, alice());
        let relayed = client.allocate();
        found.equal(
            format!("23 {transport:?}: the channel"),
            client.bind(0x4001, address),
            0,
        );
        let all: Vec<Vec<u8>> = (0..9).map(|length| vec![length; usize::from(length)]).collect();
        let mut bytes: Vec<u8> = all.iter().flat_map(|data| channel_data(0x4001, data, true)).collect();
        // An unbound channel in between is nothing, and no reason to lose what follows.
        bytes.extend(channel_data(0x4002, b"unbound", true));
        bytes.extend(send_indication(address, b"a Send indication behind them"));
        let _ = client.link.send(&bytes);
        for data in &all {
            found.equal(
                format!("23 {transport:?}: {} bytes of many in one segment", data.len()),
                site.arrived(&peer),
                Some((relayed, data.clone())),
            );
        }
        found.equal(
            format!("23 {transport:?}: a message behind frames"),
            site.first_at(&peer),
            Some(b"a Send indication behind them".to_vec()),
        );
        let data = payload();
        for part in channel_data(0x4001, &data, true).chunks(5) {
            let _ = client.link.send(part);
        }
        found.equal(
            format!("23 {transport:?}: a split frame"),
            site.first_at(&peer),
            Some(data),
        );
        for data in [vec![1, 2, 3, 4, 5], Vec::new(), payload()] {
            let _ = peer.send_to(&data, relayed);
            found.equal(
                format!("23 {transport:?}: {} bytes come back framed", data.len()),
                client.next(),
                Some(Packet::Channel(0x4001, data)),
            );
        }
    }
}

/// Requests without allocation, unknown methods, classes that are not allowed. RFC 8656 §5; RFC 8489 §6.3
pub fn case_24(site: &Site, found: &mut Findings) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut client = site.client(transport, alice());
        let refresh = client.refresh(600);
        found.equal(
            format!("24 {transport:?}: Refresh without allocation is 437"),
            code(refresh.as_ref()),
            437,
        );
        let permit = client.permit(far(1000));
        found.equal(
            format!("24 {transport:?}: CreatePermission without allocation is 437"),
            permit,
            437,
        );
        let bind = client.bind(0x4000, far(1000));
        found.equal(
            format!("24 {transport:?}: ChannelBind without allocation is 437"),
            bind,
            437,
        );
        for (name, message_type) in [
            ("an unknown method", 0x02CE),
            ("another unknown method", 0x0002),
            ("Connect (RFC 6062)", kind::CONNECT),
            ("a Send request", 0x0006),
            ("a Data request", 0x0007),
            ("an Allocate indication", 0x0013),
            ("a Data indication", kind::DATA_INDICATION),
            ("a Binding success", kind::BINDING | kind::SUCCESS),
            ("an Allocate error", kind::ALLOCATE | kind::ERROR),
            ("a Refresh success", kind::REFRESH | kind::SUCCESS),
        ] {
            let bare = over_udp(Builder::new(message_type));
            let signed = client.signed(bare.clone());
            for (how, message) in [("", bare), (", signed,", signed)] {
                let silence = client.stays_silent_to(&message.build());
                found.outcome(format!("24 {transport:?}: {name}{how} gets silence"), silence);
            }
        }
    }
}

/// Two clients of one server, by every pair of transports. RFC 8656 §2
pub fn case_25(site: &Site, found: &mut Findings) {
    calls(site, None, found);
}

/// The same on two servers.
pub fn case_25_two_servers(site: &Site, other: &Site, found: &mut Findings) {
    calls(site, Some(other), found);
}

fn calls(site: &Site, other: Option<&Site>, found: &mut Findings) {
    let pairs = [
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Tcp),
        (Transport::Tls, Transport::Udp),
        (Transport::Tcp, Transport::Tls),
        (Transport::Tcp, Transport::Tcp),
        (Transport::Tls, Transport::Tls),
        // More clients of the commonest kind, so that they meet in several workers.
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Udp),
        (Transport::Udp, Transport::Udp),
    ];
    for (a, b) in pairs {
        let name = match other {
            None => format!("{a:?} and {b:?} on one server"),
            Some(_) => format!("{a:?} and {b:?} on two servers"),
        };
        let mut alice = site.client(a, alice());
        let mut bob = other.unwrap_or(site).client(b, bob());
        let (at_alice, at_bob) = (alice.allocate(), bob.allocate());
        found.equal(format!("25 {name}: A permits B"), alice.permit(at_bob), 0);
        alice.send_to(at_bob, b"without B's permission");
        found.outcome(format!("25 {name}: A goes on"), alice.is_silent());
        // If it came all the same, it would come before the next.
        found.outcome(
            format!("25 {name}: without B's permission nothing comes"),
            bob.is_silent(),
        );
        found.equal(format!("25 {name}: B permits A"), bob.permit(at_alice), 0);
        let (data, back) = (payload(), payload());
        alice.send_to(at_bob, &data);
        let wanted = Packet::Data { peer: at_alice, data };
        found.equal(
            format!("25 {name}: B gets a Data indication from A"),
            bob.next(),
            Some(wanted),
        );
        bob.send_to(at_alice, &back);
        let wanted = Packet::Data {
            peer: at_bob,
            data: back,
        };
        found.equal(
            format!("25 {name}: A gets a Data indication from B"),
            alice.next(),
            Some(wanted),
        );
        found.equal(format!("25 {name}: A binds"), alice.bind(0x4000, at_bob), 0);
        let (data, back) = (payload(), payload());
        alice.send_on(0x4000, &data);
        let wanted = Packet::Data { peer: at_alice, data };
        found.equal(format!("25 {name}: B without a channel"), bob.next(), Some(wanted));
        bob.send_to(at_alice, &back);
        found.equal(
            format!("25 {name}: A has a channel"),
            alice.next(),
            Some(Packet::Channel(0x4000, back)),
        );
        found.equal(format!("25 {name}: B binds"), bob.bind(0x4FFF, at_alice), 0);
        for data in [payload(), Vec::new(), vec![3; 3], vec![0xA5; 1200]] {
            alice.send_on(0x4000, &data);
            let wanted = Packet::Channel(0x4FFF, data.clone());
            found.equal(format!("25 {name}: channel to channel"), bob.next(), Some(wanted));
            bob.send_on(0x4FFF, &data);
            found.equal(
                format!("25 {name}: and back"),
                alice.next(),
                Some(Packet::Channel(0x4000, data)),
            );
        }
    }
}

/// ICMP errors reach the client as an indication. RFC 8656 §11.5
pub fn icmp(site: &Site, found: &mut Findings) {
    let closed = SocketAddr::from((PEER, 9));
    let mut client = alice_at(site);
    let _ = client.allocate();
    found.equal("ICMP: the permission", client.permit(closed), 0);
    client.send_to(closed, b"to a closed port");
    match client.next() {
        Some(Packet::Icmp { peer, icmp }) => {
            found.equal("ICMP: about the peer's address", peer.ip(), closed.ip());
            found.equal(
                "ICMP: port unreachable",
                icmp.get(2..4).map(<[u8]>::to_vec),
                Some(vec![3, 3]),
            );
        }
        Some(other) => found.outcome("ICMP: an indication", Err(describe(&other))),
        None => found.that("ICMP: an indication", false),
    }
    let v6 = SocketAddr::from((PEER_V6, 9));
    let mut client = alice_at(site);
    let _ = client.allocate_v6();
    found.equal("ICMPv6: the permission", client.permit(v6), 0);
    client.send_to(v6, b"to a closed port");
    match client.next() {
        Some(Packet::Icmp { peer, icmp }) => {
            found.equal("ICMPv6: about the peer's address", peer.ip(), v6.ip());
            found.equal(
                "ICMPv6: port unreachable",
                icmp.get(2..4).map(<[u8]>::to_vec),
                Some(vec![1, 4]),
            );
        }
        Some(other) => found.outcome("ICMPv6: an indication", Err(describe(&other))),
        None => found.that("ICMPv6: an indication", false),
    }
}

/// An IPv6 relay: data both ways, and relay to relay.
pub fn ipv6_relay(site: &Site, found: &mut Findings) {
    let peer = site.peer_at(PEER_V6);
    let address = peer.local_addr().expect("bound");
    for local in [CLIENT.into(), IpAddr::V6(CLIENT_V6)] {
        let mut client = site.client_at(local, Transport::Udp, alice());
        let relayed = client.allocate_v6();
        found.equal(
            "IPv6: the relayed address is the server's",
            relayed.ip(),
            SERVER_V6.into(),
        );
        found.equal("IPv6: an IPv4 peer is 443", client.permit(far(1000)), 443);
        found.equal("IPv6: the channel", client.bind(0x4000, address), 0);
        let data = payload();
        client.send_on(0x4000, &data);
        found.equal("IPv6: data arrives", site.arrived(&peer), Some((relayed, data.clone())));
        let _ = peer.send_to(&data, relayed);
        found.equal(
            "IPv6: data comes back",
            client.next(),
            Some(Packet::Channel(0x4000, data)),
        );
        let mut other = site.client(Transport::Udp, bob());
        let far = other.allocate_v6();
        found.equal("IPv6: one way", client.permit(far), 0);
        found.equal("IPv6: other way", other.permit(relayed), 0);
        let data = payload();
        client.send_to(far, &data);
        found.equal(
            "IPv6: relay to relay",
            other.next(),
            Some(Packet::Data { peer: relayed, data }),
        );
    }
}
