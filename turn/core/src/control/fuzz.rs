//! Bytes as a life of the server: clients with and without credentials, peers, failing ports, jumping time.
//!
//! In: any bytes. Out: nothing; a fault is a panic. Never: part of a running server.

use super::{Hop, Icmp, Limits, Output, Server, Settings, Shared};
use crate::attributes::kind;
use crate::auth::{Credentials, IntegrityKind, Key, NONCE_EPOCH, Nonces, PASSWORD_ALGORITHMS, StaticUser, sign};
use crate::framing::{Framer, STRANGER_FRAME};
use crate::peers::{PeerPolicy, RelayAddress, RelayTable};
use crate::time::Now;
use crate::wire::{Class, FiveTuple, Method, PeerAddr, RelayAddr, TransactionId, Transport, Writer};
use quietline_shared::redact::Secret;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Lives through the bytes and checks after each step that the index says what the allocations say.
pub fn fuzz_server(bytes: &[u8]) {
    let Some(mut life) = Life::begin() else {
        return;
    };
    let mut script = Script(bytes);
    while let Some(step) = script.next() {
        life.step(step, &mut script);
        life.check();
    }
    life.pass(Duration::from_secs(3_600), true);
    life.check();
    assert!(life.server.allocations.is_empty(), "an allocation outlived its time");
    assert!(life.open.is_empty(), "a port stays open");
    assert_eq!(life.server.shared.pool.allocations(), 0, "a quota leaks");
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Life {
    server: Server,
    settings: [Arc<Settings>; 2],
    key: Key,
    steady: Duration,
    chance: u64,
    open: Vec<RelayAddr>,
    failing: u8,
    framer: Framer,
}

const REALM: &str = "quietline";
const KINDS: [u16; 16] = [
    kind::LIFETIME,
    kind::XOR_PEER_ADDRESS,
    kind::CHANNEL_NUMBER,
    kind::REQUESTED_TRANSPORT,
    kind::REQUESTED_ADDRESS_FAMILY,
    kind::ADDITIONAL_ADDRESS_FAMILY,
    kind::EVEN_PORT,
    kind::RESERVATION_TOKEN,
    kind::DONT_FRAGMENT,
    kind::DATA,
    kind::PASSWORD_ALGORITHM,
    kind::PASSWORD_ALGORITHMS,
    kind::USERHASH,
    kind::FINGERPRINT,
    0x7FFF,
    0xFFFE,
];

impl Life {
    fn begin() -> Option<Self> {
        let same = |ip: IpAddr| RelayAddress {
            bind: ip,
            advertised: ip,
        };
        let addresses = vec![
            same(Ipv4Addr::new(9, 9, 9, 9).into()),
            same(Ipv6Addr::new(0x2A00, 0, 0, 0, 0, 0, 0, 9).into()),
        ];
        let relays = RelayTable::new(addresses, (50_000, 50_015)).ok()?;
        let settings = |deny: Vec<_>| {
            let user = StaticUser::new("alice", Secret::new(b"wonderland".to_vec())).ok()?;
            let credentials = Credentials::new(REALM, vec![user], vec![]).ok()?;
            let limits = Limits {
                allocations: 12,
                permissions_per_allocation: 4,
                channels_per_allocation: 2,
                ..Limits::default()
            };
            let policy = PeerPolicy {
                deny,
                ..PeerPolicy::default()
            };
            Some(Arc::new(Settings::new(
                credentials,
                limits,
                policy,
                vec![],
                &relays,
                true,
            )))
        };
        let deny = crate::peers::Prefix::parse("1.2.3.160").into_iter().collect();
        let settings = [settings(Vec::new())?, settings(deny)?];
        let nonces = Nonces::new(Secret::new([7; 32]), NONCE_EPOCH);
        let shared = Arc::new(Shared::new(relays.clone(), nonces, [1, 2]));
        Some(Self {
            server: Server::new(shared, settings.first()?.clone(), 0),
            key: Key::of_client(b"alice", REALM.as_bytes(), b"wonderland"),
            settings,
            steady: Duration::from_secs(1),
            chance: 1,
            open: Vec::new(),
            failing: 0,
            framer: Framer::new(STRANGER_FRAME),
        })
    }

    fn now(&self) -> Now {
        Now {
            steady: self.steady,
            unix_seconds: 1_800_000_000 + self.steady.as_secs(),
        }
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 10 {
            0 => {
                let from = client(script.number());
                let length = usize::from(script.number());
                self.receive(&from, script.take(length));
            }
            1..=3 => self.request(script),
            4 => {
                let from = client(script.number());
                let header = [0x40, script.number() % 3, 0, script.number()];
                let data = [header.as_slice(), &vec![0; usize::from(header[3])]].concat();
                self.receive(&from, &data);
            }
            5 => self.peer_packet(script),
            6 => {
                let seconds = match u64::from(script.number()) {
                    short @ 0..=243 => short / 8,
                    long => long * 5,
                };
                let with_timers = !script.number().is_multiple_of(4);
                self.pass(Duration::from_secs(seconds), with_timers);
            }
            7 => self.failing = script.number() % 8,
            8 => {
                let which = usize::from(script.number() % 2);
                if let Some(settings) = self.settings.get(which) {
                    self.server.reload(settings.clone());
                }
            }
            _ => {
                let length = usize::from(script.number());
                let bytes = script.take(length);
                let space = self.framer.space();
                let length = bytes.len().min(space.len());
                for (place, byte) in space.iter_mut().zip(bytes) {
                    *place = *byte;
                }
                self.framer.filled(length);
                while let Ok(Some(frame)) = self.framer.next_frame() {
                    let frame = frame.to_vec();
                    self.receive(&client(200), &frame);
                }
                if self.framer.next_frame().is_err() {
                    self.framer = Framer::new(STRANGER_FRAME);
                    let now = self.now();
                    self.server.handle_stream_closed(&client(200), now);
                    self.outputs();
                }
            }
        }
    }

    /// A request or a Send indication of somebody who knows the password, with attributes from the script.
    fn request(&mut self, script: &mut Script<'_>) {
        let from = client(script.number());
        let what = script.number();
        let (method, class) = match what % 8 {
            0 | 1 => (Method::Allocate, Class::Request),
            2 => (Method::Refresh, Class::Request),
            3 | 4 => (Method::CreatePermission, Class::Request),
            5 | 6 => (Method::ChannelBind, Class::Request),
            _ => (Method::Send, Class::Indication),
        };
        let transaction = TransactionId([script.number() % 4; 12]);
        let mut buffer = [0; 2_048];
        let mut writer = Writer::new(&mut buffer, method, class, transaction);
        if method == Method::Allocate && what & 8 == 0 {
            writer.attribute(kind::REQUESTED_TRANSPORT, &[&[17, 0, 0, 0]]);
        }
        if matches!(method, Method::CreatePermission | Method::ChannelBind | Method::Send) {
            let address = self.peer(script.number());
            super::outcome::put_address(&mut writer, kind::XOR_PEER_ADDRESS, address, &transaction);
        }
        if method == Method::ChannelBind {
            writer.attribute(kind::CHANNEL_NUMBER, &[&[0x40, script.number() % 3, 0, 0]]);
        }
        if method == Method::Send {
            writer.attribute(kind::DATA, &[script.take(usize::from(what))]);
        }
        for _ in 0..(script.number() % 8).saturating_sub(4) {
            let number = script.number();
            let attribute = KINDS.get(usize::from(number % 16)).copied().unwrap_or(0);
            // Mostly of a good length.
            let length = match number / 16 {
                0..=7 => 4,
                8..=9 => 8,
                10 => 0,
                11 => 1,
                other => usize::from(other),
            };
            let mut value = script.take(length).to_vec();
            value.resize(length, 1);
            writer.attribute(attribute, &[&value]);
        }
        if class == Class::Request {
            let now = self.now();
            let features = self.server.settings.credentials.features();
            let nonce = self.server.shared.nonces.make(&from, features, now);
            writer.attribute(kind::USERNAME, &[b"alice"]);
            writer.attribute(kind::REALM, &[REALM.as_bytes()]);
            writer.attribute(kind::NONCE, &[&nonce]);
            if what & 16 != 0 {
                writer.attribute(kind::PASSWORD_ALGORITHMS, &[&PASSWORD_ALGORITHMS]);
                writer.attribute(kind::PASSWORD_ALGORITHM, &[&[0, 1, 0, 0]]);
            }
            sign(&mut writer, IntegrityKind::Sha1, &self.key);
        }
        if let Some(bytes) = writer.finish().map(<[u8]>::to_vec) {
            self.receive(&from, &bytes);
        }
    }

    fn peer_packet(&mut self, script: &mut Script<'_>) {
        let (which, peer, length) = (script.number(), script.number(), usize::from(script.number()) * 300);
        let Some(relay) = self.open.get(usize::from(which) % self.open.len().max(1)).copied() else {
            return;
        };
        let peer = PeerAddr::new(self.peer(peer));
        let (now, mut chance) = (self.now(), self.chance);
        let icmp = Icmp {
            kind: which & 3,
            code: 0,
            mtu: 0,
            is_v6: peer.is_v6(),
        };
        let random = &mut |bytes: &mut [u8]| fill(&mut chance, bytes);
        let hop = self.server.handle_peer(relay, peer, length, now, random);
        let told = self.server.handle_icmp(relay, peer, icmp, now, random);
        self.chance = chance;
        for hop in hop.into_iter().chain(told) {
            let Hop::Client { recipient, .. } = hop else {
                panic!("a peer's packet went to a peer");
            };
            let truth = self.server.allocations.find(&recipient.client, now.seconds());
            let truth = truth.and_then(|place| self.server.allocations.get(place));
            assert!(
                truth.is_some_and(|truth| truth.relays().contains(&Some(relay))),
                "to another client"
            );
            assert!(
                truth.is_some_and(|truth| truth.is_permitted(&peer, now.seconds())),
                "without permission"
            );
        }
    }

    fn receive(&mut self, from: &FiveTuple, bytes: &[u8]) {
        let (now, mut chance) = (self.now(), self.chance);
        let hop = self
            .server
            .handle_client(from, bytes, now, &mut |bytes| fill(&mut chance, bytes));
        self.chance = chance;
        self.outputs();
        let Some(hop) = hop else {
            return;
        };
        let sender = self.server.allocations.find(from, now.seconds());
        let sender = sender.and_then(|place| self.server.allocations.get(place));
        let sender = sender.expect("a packet left for a client without allocation");
        let payload = match hop {
            Hop::Peer {
                relay, peer, payload, ..
            } => {
                assert!(sender.relays().contains(&Some(relay)), "out of a foreign port");
                assert!(sender.is_permitted(&peer, now.seconds()), "without permission");
                payload
            }
            Hop::Client { recipient, payload, .. } => {
                let receiver = self.server.allocations.find(&recipient.client, now.seconds());
                let receiver = receiver.and_then(|place| self.server.allocations.get(place));
                let receiver = receiver.expect("to a client without allocation");
                let relays = self.server.shared.relays();
                let permits = |one: &crate::allocation::Allocation, other: &crate::allocation::Allocation| {
                    let mut addresses = other.relays().into_iter().flatten();
                    addresses.any(|relay| {
                        let address = relays.advertised(relay).map(PeerAddr::new);
                        address.is_some_and(|address| one.is_permitted(&address, now.seconds()))
                    })
                };
                assert!(
                    permits(receiver, sender) && permits(sender, receiver),
                    "without permission"
                );
                payload
            }
        };
        assert!(bytes.get(payload).is_some(), "a payload beyond the packet");
    }

    fn outputs(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { answer, .. } => {
                    assert!(crate::wire::Message::parse(answer.as_bytes()).is_ok(), "no message");
                }
                Output::OpenRelay(relay) if self.failing > 0 => {
                    self.failing -= 1;
                    let (now, mut chance) = (self.now(), self.chance);
                    self.server
                        .handle_relay_failed(relay, now, &mut |bytes| fill(&mut chance, bytes));
                    self.chance = chance;
                }
                Output::OpenRelay(relay) => {
                    assert!(!self.open.contains(&relay), "opened twice");
                    self.open.push(relay);
                }
                // One that failed to open was never open.
                Output::CloseRelay(relay) => self.open.retain(|open| *open != relay),
            }
        }
    }

    fn pass(&mut self, time: Duration, with_timers: bool) {
        self.steady += time;
        if with_timers {
            let now = self.now();
            self.server.handle_timeout(now);
            self.outputs();
            let next = self.server.next_deadline();
            assert!(next.is_none_or(|next| next > self.steady), "a timer that never rests");
        }
    }

    fn check(&self) {
        let now = self.now().seconds();
        let live = self
            .server
            .allocations
            .iter()
            .filter(|(_, allocation)| allocation.expires() > now);
        for (place, allocation) in live {
            let relays = allocation.relays();
            assert!(relays.iter().flatten().next().is_some(), "an allocation without a port");
            for relay in relays.into_iter().flatten() {
                assert_eq!(
                    self.server.forwarding.place_of(relay),
                    Some(place),
                    "the index lost a port"
                );
                assert!(self.open.contains(&relay), "a live port is closed");
                for permission in allocation.permissions() {
                    let reached = self
                        .server
                        .forwarding
                        .icmp(relay, permission.peer(), self.steady)
                        .is_ok();
                    assert_eq!(reached, permission.until() > now, "the index disagrees");
                }
            }
        }
    }

    fn peer(&self, number: u8) -> SocketAddr {
        let last = number % 3;
        match number / 8 {
            0..=11 => SocketAddr::from(([1, 2, 3, last * 80], 5_000 + u16::from(number / 64))),
            12..=15 => SocketAddr::new(Ipv6Addr::new(0x2A00, 1, 0, 0, 0, 0, 0, u16::from(last)).into(), 5_000),
            16..=17 => SocketAddr::from(([127, 0, 0, last], 5_000)),
            // Another allocation of this server.
            _ => {
                let relay = self.open.get(usize::from(number) % self.open.len().max(1));
                let relayed = relay.and_then(|relay| self.server.shared.relays().advertised(*relay));
                relayed.unwrap_or(SocketAddr::from(([9, 9, 9, 9], 50_000)))
            }
        }
    }
}

/// Seven clients, some over streams.
fn client(number: u8) -> FiveTuple {
    let transport = match number % 7 {
        0..=4 => Transport::Udp,
        5 => Transport::Tcp,
        _ => Transport::Tls,
    };
    let address = SocketAddr::from(([8, 8, 4, number % 7], 40_000));
    FiveTuple::new(address, transport, 0)
}

fn fill(chance: &mut u64, bytes: &mut [u8]) {
    for byte in bytes {
        *chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (*chance >> 33) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_life_breaks_the_server(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            fuzz_server(&bytes);
        }
    }

    #[test]
    fn lives_are_not_empty() {
        // One long life meets successes of every method, hops both ways and within.
        let mut bytes = vec![0; 200_000];
        fill(&mut 5, &mut bytes);
        let mut life = Life::begin().unwrap();
        let mut script = Script(&bytes);
        while let Some(step) = script.next() {
            life.step(step, &mut script);
            life.check();
        }
        let counters = life.server.counters();
        let refusals: Vec<_> = counters.refusals.iter().collect();
        assert!(refusals.len() > 15, "{refusals:?}");
        for method in [
            Method::Allocate,
            Method::Refresh,
            Method::CreatePermission,
            Method::ChannelBind,
        ] {
            assert!(counters.successes.count(method) > 20, "{method:?} {refusals:?}");
        }
        assert!(counters.to_peers.packets > 10, "{counters:?}");
        assert!(counters.to_clients.packets > 5, "{:?}", counters.to_clients);
        assert!(counters.within.packets > 0, "{:?}", counters.within);
    }
}
