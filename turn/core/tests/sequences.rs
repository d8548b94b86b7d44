//! Lives of several clients beside a model that knows only the RFC: what may pass, passes; what may not, does not.

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use world::*;

/// One client as the RFC has it.
#[derive(Default)]
struct Model {
    relayed: Option<SocketAddr>,
    expires: u64,
    permissions: BTreeMap<IpAddr, u64>,
    channels: BTreeMap<u16, (SocketAddr, u64)>,
}

impl Model {
    fn live(&self, now: u64) -> bool {
        self.relayed.is_some() && self.expires > now
    }

    fn permits(&self, ip: IpAddr, now: u64) -> bool {
        self.live(now) && self.permissions.get(&ip).is_some_and(|until| *until > now)
    }

    fn channel(&self, number: u16, now: u64) -> Option<SocketAddr> {
        let (peer, until) = self.channels.get(&number)?;
        (self.live(now) && *until > now).then_some(*peer)
    }

    fn number(&self, peer: SocketAddr, now: u64) -> Option<u16> {
        let mut bound = self.channels.iter().filter(|(_, (_, until))| *until > now);
        bound.find(|(_, (other, _))| *other == peer).map(|(number, _)| *number)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Refresh(usize, u32),
    Permit(usize, usize),
    Bind(usize, u16, usize),
    ChannelData(usize, u16),
    Send(usize, usize),
    FromPeer(usize, usize),
    Pass(u64, bool),
}

const CLIENTS: usize = 3;
/// Four outside, then the relayed addresses of the clients.
const PEERS: usize = 4 + CLIENTS;

fn step() -> impl Strategy<Value = Step> {
    let (client, peer, number) = (0..CLIENTS, 0..PEERS, 0x4000u16..0x4003);
    prop_oneof![
        3 => client.clone().prop_map(Step::Allocate),
        1 => (client.clone(), prop_oneof![Just(0u32), 1u32..4000]).prop_map(|(c, l)| Step::Refresh(c, l)),
        4 => (client.clone(), peer.clone()).prop_map(|(c, p)| Step::Permit(c, p)),
        4 => (client.clone(), number.clone(), peer.clone()).prop_map(|(c, n, p)| Step::Bind(c, n, p)),
        4 => (client.clone(), number).prop_map(|(c, n)| Step::ChannelData(c, n)),
        4 => (client.clone(), peer.clone()).prop_map(|(c, p)| Step::Send(c, p)),
        4 => (client, 0usize..4).prop_map(|(c, p)| Step::FromPeer(c, p)),
        3 => (prop_oneof![0u64..30, 0u64..700], any::<bool>()).prop_map(|(s, t)| Step::Pass(s, t)),
    ]
}

struct Life {
    world: World,
    clients: Vec<Client>,
    models: Vec<Model>,
}

impl Life {
    fn peer(&self, number: usize) -> Option<SocketAddr> {
        match number.checked_sub(4) {
            Some(client) => self.models[client].relayed,
            None => Some(SocketAddr::from((
                [1, 2, 3, 4 + (number / 2) as u8],
                5000 + (number % 2) as u16,
            ))),
        }
    }

    /// What must come of data from one client to a peer that it may reach.
    fn expected(&self, client: usize, peer: SocketAddr, now: u64) -> Option<(SocketAddr, bool)> {
        let source = self.models[client].relayed?;
        let Some(receiver) = (0..CLIENTS).find(|other| self.models[*other].relayed == Some(peer)) else {
            return (peer.ip() != source.ip()).then_some((peer, false));
        };
        let model = &self.models[receiver];
        let as_channel = model.number(source, now).is_some();
        model
            .permits(source.ip(), now)
            .then(|| (self.clients[receiver].tuple.client(), as_channel))
    }

    fn check(&self, packet: Option<Packet>, expected: Option<(SocketAddr, bool)>) -> Result<(), TestCaseError> {
        let got = match packet {
            None => None,
            Some(Packet::ToPeer { to, .. }) => Some((to, false)),
            Some(Packet::ToClient { to, bytes }) => Some((to, bytes[0] == 0x40)),
        };
        prop_assert_eq!(got, expected);
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.world.steady.as_secs();
        // A nonce lives at least half an hour; a client with an old one asks again.
        match step {
            Step::Allocate(at) => {
                self.clients[at].greet(&mut self.world);
                let reply = self.clients[at].ask_with(&mut self.world, ALLOCATE, &[UDP]);
                let was_live = self.models[at].live(now);
                prop_assert_eq!(reply.code(), if was_live { 437 } else { 0 });
                if !was_live {
                    self.models[at] = Model {
                        relayed: Some(reply.relayed()),
                        expires: now + 600,
                        ..Model::default()
                    };
                }
            }
            Step::Refresh(at, lifetime) => {
                self.clients[at].greet(&mut self.world);
                let reply = self.clients[at].refresh(&mut self.world, lifetime);
                let model = &mut self.models[at];
                prop_assert_eq!(reply.code(), if model.live(now) { 0 } else { 437 });
                if model.live(now) {
                    let given = if lifetime == 0 { 0 } else { lifetime.clamp(600, 3600) };
                    prop_assert_eq!(reply.lifetime(), given);
                    model.expires = now + u64::from(given);
                }
            }
            Step::Permit(at, peer) => {
                let Some(peer) = self.peer(peer) else { return Ok(()) };
                self.clients[at].greet(&mut self.world);
                let reply = self.clients[at].permit(&mut self.world, &[&peer.to_string()]);
                let model = &mut self.models[at];
                prop_assert_eq!(reply.code(), if model.live(now) { 0 } else { 437 });
                if model.live(now) {
                    model.permissions.insert(peer.ip(), now + 300);
                }
            }
            Step::Bind(at, number, peer) => {
                let Some(peer) = self.peer(peer) else { return Ok(()) };
                self.clients[at].greet(&mut self.world);
                let reply = self.clients[at].bind(&mut self.world, number, &peer.to_string());
                let model = &mut self.models[at];
                let fits = model.channel(number, now).is_none_or(|bound| bound == peer)
                    && model.number(peer, now).is_none_or(|bound| bound == number);
                let code = match (model.live(now), fits) {
                    (false, _) => 437,
                    (true, false) => 400,
                    (true, true) => 0,
                };
                prop_assert_eq!(reply.code(), code);
                if code == 0 {
                    model.permissions.insert(peer.ip(), now + 300);
                    model.channels.insert(number, (peer, now + 600));
                }
            }
            Step::ChannelData(at, number) => {
                let packet = self.clients[at].channel_data(&mut self.world, number, b"data");
                let peer = self.models[at].channel(number, now);
                let peer = peer.filter(|peer| self.models[at].permits(peer.ip(), now));
                self.check(packet, peer.and_then(|peer| self.expected(at, peer, now)))?;
            }
            Step::Send(at, peer) => {
                let Some(peer) = self.peer(peer) else { return Ok(()) };
                let packet = self.clients[at].send(&mut self.world, &peer.to_string(), b"data");
                let is_permitted = self.models[at].permits(peer.ip(), now);
                let expected = if is_permitted {
                    self.expected(at, peer, now)
                } else {
                    None
                };
                self.check(packet, expected)?;
            }
            Step::FromPeer(at, peer) => {
                let (Some(relayed), Some(peer)) = (self.models[at].relayed, self.peer(peer)) else {
                    return Ok(());
                };
                let packet = self.world.peer_packet(relayed, &peer.to_string(), b"data");
                let model = &self.models[at];
                let expected = model
                    .permits(peer.ip(), now)
                    .then(|| (self.clients[at].tuple.client(), model.number(peer, now).is_some()));
                self.check(packet, expected)?;
            }
            Step::Pass(seconds, true) => self.world.pass(seconds),
            Step::Pass(seconds, false) => self.world.jump(seconds),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_server_does_what_the_rfc_says_whatever_the_order(steps in proptest::collection::vec(step(), 1..80)) {
        let mut life = Life {
            world: World::new(),
            clients: (0..CLIENTS).map(|n| Client::new(&format!("8.8.4.{n}:40000"))).collect(),
            models: (0..CLIENTS).map(|_| Model::default()).collect(),
        };
        for step in steps {
            // Challenges are limited; the model is not about that.
            life.world.jump(1);
            life.step(step)?;
        }
    }
}
