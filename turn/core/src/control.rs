//! The server: each call takes what happened and the time, and gives what is to be done.
//!
//! In: datagrams and frames with their source, what the shell's sockets met, the time, randomness. Out: a [`Hop`] for the packet in
//! hand; [`Output`]s to poll; the next deadline; counters. Never: answers what it need not, keeps anything about who has shown no valid
//! integrity, or names a client in a counter.
//!
//! After each `handle_*` the shell polls outputs until there are none and does them in order.

mod counters;
pub mod early;
mod fuzz;
mod outcome;
mod outputs;
mod requests;
mod settings;

#[doc(hidden)]
pub use fuzz::fuzz_server;

pub use counters::{Counters, Refusal, Tally};
pub use outcome::{Answer, HEADROOM, Hop, Icmp, Output, Prefix};
pub use settings::{Limits, Settings};

use crate::allocation::Allocations;
use crate::allocation::pool::Pool;
use crate::attributes::{self, Fault};
use crate::auth::Nonces;
use crate::forwarding::{Dropped, Forwarding, Index, Route, Run, View};
use crate::peers::RelayTable;
use crate::table::HashKey;
use crate::time::{Now, Random, Rate, Seconds, nanoseconds};
use crate::wire::{Class, FiveTuple, Kind, Message, Method, PeerAddr, RelayAddr, demux};
use early::{Early, Hold};
use outputs::Outputs;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What all shards of one server share.
pub struct Shared {
    index: Arc<Index>,
    pool: Pool,
    nonces: Nonces,
    hash_key: HashKey,
    /// One rate per source prefix, by its keyed hash: the same size idle and under a flood.
    strangers: Vec<AtomicU64>,
    early: Early,
}

/// Packets wait for what a timer does, and its outputs wait in memory.
const ENDED_AT_ONCE: usize = 128;

/// Places for source prefixes. Two that meet on one share its rate.
const STRANGERS: usize = 65_536;

impl Shared {
    /// The hash key is random; so is the key within `nonces`.
    pub fn new(relays: RelayTable, nonces: Nonces, hash_key: [u64; 2]) -> Self {
        let mut strangers = Vec::new();
        strangers.resize_with(STRANGERS, AtomicU64::default);
        Self {
            index: Arc::new(Index::new(relays.clone())),
            pool: Pool::new(relays),
            nonces,
            hash_key: HashKey::new(hash_key),
            strangers,
            early: Early::default(),
        }
    }

    pub fn relays(&self) -> &RelayTable {
        self.index.relays()
    }

    /// Allocations of all shards.
    pub fn allocations(&self) -> u32 {
        self.pool.allocations()
    }

    /// Keyed hash of the /24 or /56 of a client: what quotas count.
    fn prefix(&self, client: IpAddr) -> u64 {
        match client {
            IpAddr::V4(ip) => self.hash_key.hash(&[4, u64::from(ip.to_bits() >> 8)]),
            IpAddr::V6(ip) => self.hash_key.hash(&[6, (ip.to_bits() >> 72) as u64]),
        }
    }

    /// Whether one more answer may go to a source prefix that has shown nothing.
    fn admits(&self, what: Stranger, client: IpAddr, rate: &Rate, now: Duration) -> bool {
        let hash = self.hash_key.hash(&[what as u64, self.prefix(client)]);
        let Some(state) = self.strangers.get(hash as usize % STRANGERS) else {
            return false;
        };
        let now = nanoseconds(now);
        // A few tries: whoever loses all of them is in a flood.
        for _ in 0..8 {
            let before = state.load(Ordering::Relaxed);
            let Some(after) = rate.admit(before, now, 1) else {
                return false;
            };
            let exchanged = state.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed);
            if exchanged.is_ok() {
                return true;
            }
        }
        false
    }
}

/// What a stranger asks for.
#[derive(Clone, Copy)]
enum Stranger {
    Challenge = 1,
    Binding = 2,
}

/// One shard of the server. All clients of one source address and port must come to one shard.
pub struct Server {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    /// Made from the settings once.
    strangers: Rate,
    allocations: Allocations,
    forwarding: Forwarding,
    outputs: Outputs,
    counters: Counters,
    is_draining: bool,
}

impl Server {
    pub fn new(shared: Arc<Shared>, settings: Arc<Settings>, shard: u16) -> Self {
        let limits = &settings.limits;
        let forwarding = Forwarding::new(
            shared.index.clone(),
            shard,
            shared.hash_key.clone(),
            limits.per_allocation(),
            limits.total(),
        );
        Self {
            strangers: limits.challenges(),
            allocations: Allocations::new(shared.hash_key.clone()),
            forwarding,
            outputs: Outputs::default(),
            counters: Counters::default(),
            is_draining: false,
            shared,
            settings,
        }
    }

    /// A datagram, or one frame of a stream, from a client.
    pub fn handle_client(&mut self, from: &FiveTuple, bytes: &[u8], now: Now, random: Random<'_>) -> Option<Hop> {
        let handled = match demux(bytes) {
            Kind::ChannelData => self.handle_channel_data(from, bytes, now, random),
            Kind::Stun => self.handle_stun(from, bytes, now, random),
            Kind::Other => Err(Refusal::NotOurs),
        };
        self.counted(handled)
    }

    /// A datagram of so many bytes from a peer.
    pub fn handle_peer(
        &mut self,
        relay: RelayAddr,
        peer: PeerAddr,
        length: usize,
        now: Now,
        random: Random<'_>,
    ) -> Option<Hop> {
        let route = self.forwarding.peer_packet(relay, peer, length, Run::ONE, now.steady);
        let handled = route.map(|route| hop(route, 0..length, false, random));
        self.counted(handled.map(Some).map_err(Refusal::Dropped))
    }

    /// Several ChannelData messages of one client that came together and begin with the same four bytes; `first` is one of them. The
    /// hop is that of each. `None`: nothing was decided or counted, and each is to be handled for itself.
    pub fn handle_client_run(&mut self, from: &FiveTuple, first: &[u8], run: Run, now: Now) -> Option<Hop> {
        if demux(first) != Kind::ChannelData {
            return None;
        }
        let (route, payload) = self.forwarding.client_packet(from, first, run, now.steady).ok()?;
        Some(hop(route, payload, false, &mut |_| {}))
    }

    /// Several datagrams of so many bytes each that came together from one peer: as [`Server::handle_client_run`].
    pub fn handle_peer_run(
        &mut self,
        relay: RelayAddr,
        peer: PeerAddr,
        length: usize,
        run: Run,
        now: Now,
    ) -> Option<Hop> {
        let route = self.forwarding.peer_packet(relay, peer, length, run, now.steady).ok()?;
        // No hop of a run needs randomness: it is no indication.
        Some(hop(route, 0..length, false, &mut |_| {}))
    }

    /// An ICMP message about a packet from the relayed address to the peer; the port is 0 where the system does not say it.
    pub fn handle_icmp(
        &mut self,
        relay: RelayAddr,
        peer: PeerAddr,
        icmp: Icmp,
        now: Now,
        random: Random<'_>,
    ) -> Option<Hop> {
        if !icmp.is_relayed() {
            return self.counted(Err(Refusal::NothingAsked));
        }
        let about = self.forwarding.icmp(relay, peer, now.steady).map_err(Refusal::Dropped);
        self.counted(about.map(|(recipient, peer)| Some(Hop::icmp(recipient, peer, icmp, random))))
    }

    /// The stream of a client is gone, and its allocation with it.
    pub fn handle_stream_closed(&mut self, from: &FiveTuple, now: Now) {
        if let Some(place) = self.allocations.place_of(from) {
            self.end(place, now);
        }
    }

    /// Ends what has ended, a bounded number at a time: while the next deadline is past, this is to be called again, after the outputs.
    pub fn handle_timeout(&mut self, now: Now) {
        let given_up = self.shared.early.handle_timeout(now.steady);
        self.count_given_up(given_up);
        for _ in 0..ENDED_AT_ONCE {
            let Some((place, is_over)) = self.allocations.next_ended(now.seconds()) else {
                return;
            };
            if is_over {
                self.end(place, now);
            } else {
                self.derive(place);
            }
        }
    }

    /// When [`Server::handle_timeout`] is due, in steady time.
    pub fn next_deadline(&self) -> Option<Duration> {
        let ended = self.allocations.next_deadline().map(Seconds::steady);
        ended.into_iter().chain(self.shared.early.next_deadline()).min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// From now on there are no new allocations; those that are live go on.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Other users, secrets, policy and limits. Live allocations stay, without what the new policy refuses them.
    pub fn reload(&mut self, settings: Arc<Settings>) {
        self.settings = settings;
        let limits = &self.settings.limits;
        self.strangers = limits.challenges();
        self.forwarding.set_rates(limits.per_allocation(), limits.total());
        for place in self.allocations.places() {
            let policy = &self.settings.policy;
            self.allocations.change(place, |allocation| {
                allocation.retain(
                    |peer| policy.check_address(peer.ip()).is_ok(),
                    |peer| policy.check(peer.socket()).is_ok(),
                );
            });
            self.derive(place);
        }
    }

    pub fn counters(&self) -> Counters {
        Counters {
            to_peers: self.forwarding.to_peers,
            to_clients: self.forwarding.to_clients,
            within: self.forwarding.within,
            allocations: self.allocations.len(),
            ..self.counters.clone()
        }
    }

    /// Whether the client of a stream has shown who it is: then longer frames are good.
    pub fn has_allocation(&self, from: &FiveTuple, now: Now) -> bool {
        self.allocations.find(from, now.seconds()).is_some()
    }

    fn handle_channel_data(
        &mut self,
        from: &FiveTuple,
        bytes: &[u8],
        now: Now,
        random: Random<'_>,
    ) -> Result<Option<Hop>, Refusal> {
        let mut routed = self.forwarding.client_packet(from, bytes, Run::ONE, now.steady);
        if matches!(routed, Err(Dropped::NoPermission))
            && let Some((peer, data)) = self.forwarding.bound(from, bytes)
        {
            match self.hold_early(from, peer, data, now) {
                TooEarly::IsRefused => {}
                TooEarly::Waits => return Ok(None),
                TooEarly::MayPassNow => routed = self.forwarding.client_packet(from, bytes, Run::ONE, now.steady),
            }
        }
        let (route, payload) = routed.map_err(Refusal::Dropped)?;
        Ok(Some(hop(route, payload, false, random)))
    }

    fn handle_stun(
        &mut self,
        from: &FiveTuple,
        bytes: &[u8],
        now: Now,
        random: Random<'_>,
    ) -> Result<Option<Hop>, Refusal> {
        let message = Message::parse(bytes).map_err(Refusal::Malformed)?;
        // Two servers that answer each other's answers never stop.
        if self.settings.listeners.contains(&from.client()) {
            return Err(Refusal::OwnEcho);
        }
        let attributes = attributes::read(&message).map_err(Refusal::Fault)?;
        match (message.method, message.class) {
            (Method::Send, Class::Indication) => self.send(from, &attributes, now, random),
            (Method::Send | Method::Data, _) | (_, Class::Indication | Class::Success | Class::Error) => {
                Err(Refusal::NothingAsked)
            }
            (_, Class::Request) => {
                let request = requests::Request {
                    from: *from,
                    message,
                    attributes,
                    now,
                };
                self.handle_request(&request, random).map(|()| None)
            }
        }
    }

    /// RFC 8656 §11.2. The permission knows no port, so the policy is asked again for each packet.
    fn send(
        &mut self,
        from: &FiveTuple,
        attributes: &attributes::Attributes<'_>,
        now: Now,
        random: Random<'_>,
    ) -> Result<Option<Hop>, Refusal> {
        let is_good =
            attributes.unknown.is_empty() && attributes.fault.is_none_or(|fault| fault == Fault::TooManyPeers);
        let (Some(peer), Some(data), true) = (attributes.peers.iter().next(), attributes.data, is_good) else {
            return Err(Refusal::BadIndication);
        };
        if attributes.dont_fragment && !self.settings.dont_fragment {
            return Err(Refusal::BadIndication);
        }
        if self.allocations.find(from, now.seconds()).is_none() {
            return Err(Refusal::Dropped(Dropped::NoAllocation));
        }
        let peer = self.shared.relays().as_advertised(peer);
        self.settings.policy.check(peer).map_err(Refusal::Peer)?;
        let to = PeerAddr::new(peer);
        let mut route = self.forwarding.send(from, to, data.value.len(), now.steady);
        if matches!(route, Err(Dropped::NoPermission)) {
            match self.hold_early(from, to, data.value, now) {
                TooEarly::IsRefused => {}
                TooEarly::Waits => return Ok(None),
                TooEarly::MayPassNow => route = self.forwarding.send(from, to, data.value.len(), now.steady),
            }
        }
        let route = route.map_err(Refusal::Dropped)?;
        let payload = data.start..data.start + data.value.len();
        // RFC 8656 §13: where a datagram changes its family, or is IPv6 on both sides, the attribute is ignored; of a stream it is not (§15).
        let is_heeded = from.transport().is_stream() || !from.is_v6() && peer.is_ipv4();
        Ok(Some(hop(route, payload, attributes.dont_fragment && is_heeded, random)))
    }

    /// A check for another client that has not permitted its sender yet waits a moment for that. It is counted when it is given up.
    fn hold_early(&mut self, from: &FiveTuple, peer: PeerAddr, packet: &[u8], now: Now) -> TooEarly {
        let Some((to, source)) = self.forwarding.within(from, peer, now.seconds()) else {
            return TooEarly::IsRefused;
        };
        match self.shared.early.hold(to, source, packet, now.steady) {
            Hold::Refused => return TooEarly::IsRefused,
            Hold::Waits => {}
            Hold::Replaces => self.count_given_up(1),
        }
        // Another shard may have written the permission meanwhile; what it found is on its way.
        let is_own = |other: &PeerAddr| *other == source;
        if self.forwarding.is_admitted(from, peer, now.seconds())
            && self.shared.early.take(to, is_own, now.steady).is_some()
        {
            return TooEarly::MayPassNow;
        }
        TooEarly::Waits
    }

    fn count_given_up(&mut self, checks: u64) {
        if checks > 0 {
            let refusal = Refusal::Dropped(Dropped::NoPermission);
            self.counters.refusals.add_many(refusal, checks);
        }
    }

    /// What came for an allocation before a permission that it has now: as if it came now, behind the answer.
    fn release_early(&mut self, place: u32, now: Now, random: Random<'_>) {
        let relays = self.allocations.get(place).map(|allocation| allocation.relays());
        for relay in relays.into_iter().flatten().flatten() {
            let is_permitted = |source: &PeerAddr| {
                let allocation = self.allocations.get(place);
                allocation.is_some_and(|allocation| allocation.is_permitted(source, now.seconds()))
            };
            let Some(check) = self.shared.early.take(relay, is_permitted, now.steady) else {
                continue;
            };
            let packet = check.as_bytes();
            if let Some(Hop::Client {
                recipient,
                prefix,
                padding,
                ..
            }) = self.handle_peer(relay, check.source, packet.len(), now, random)
            {
                self.outputs.push_back(Output::Send {
                    to: recipient.client,
                    answer: Answer::carry(&prefix, packet, padding),
                });
            }
        }
    }

    fn counted(&mut self, handled: Result<Option<Hop>, Refusal>) -> Option<Hop> {
        match handled {
            Ok(hop) => hop,
            Err(refusal) => {
                self.counters.refusals.add(refusal);
                None
            }
        }
    }

    /// Writes one allocation into the forwarding index as it is now.
    fn derive(&mut self, place: u32) {
        let Some(allocation) = self.allocations.get(place) else {
            return;
        };
        let permissions = allocation.permissions().iter();
        let channels = allocation.channels().iter();
        self.forwarding.write(
            place,
            View {
                client: allocation.client(),
                relays: allocation.relays(),
                expires: allocation.expires(),
                permissions: permissions.map(|permission| (permission.peer(), permission.until())),
                channels: channels.filter_map(|channel| Some((channel.number()?, channel.peer(), channel.until()))),
            },
        );
    }

    /// Ends one allocation: no packet passes from here on.
    fn end(&mut self, place: u32, now: Now) {
        self.forwarding.erase(place);
        let Some(allocation) = self.allocations.remove(place) else {
            return;
        };
        self.shared.pool.leave(allocation.prefix());
        for relay in allocation.relays().into_iter().flatten() {
            self.close(relay, now);
        }
    }

    /// Ends one of two relayed addresses, with what its family was permitted and bound; the other lives on (RFC 8656 §8.1).
    fn end_one(&mut self, place: u32, relay: RelayAddr, now: Now) {
        let Some(ended) = self.shared.relays().get(relay.address) else {
            return;
        };
        let stays = |peer: &PeerAddr| peer.is_v6() != ended.bind.is_ipv6();
        self.allocations.change(place, |allocation| {
            allocation.replace_relay(relay, None);
            allocation.retain(stays, stays);
        });
        self.derive(place);
        self.close(relay, now);
    }

    /// The index has forgotten the relayed address before: whoever gets it next writes there.
    fn close(&mut self, relay: RelayAddr, now: Now) {
        let is_given_up = self.shared.early.forget(relay);
        self.count_given_up(is_given_up.into());
        let free_at = now.after(self.settings.limits.port_cool_down);
        self.shared.pool.give_back(relay, free_at);
        self.outputs.push_back(Output::CloseRelay(relay));
    }
}

/// What becomes of a packet that came before its permission.
enum TooEarly {
    IsRefused,
    Waits,
    /// The permission came while it was laid aside.
    MayPassNow,
}

/// A route with what stands before its payload.
fn hop(route: Route, payload: Range<usize>, dont_fragment: bool, random: Random<'_>) -> Hop {
    match route {
        Route::Peer { relay, peer } => Hop::Peer {
            relay,
            peer,
            payload,
            dont_fragment,
        },
        Route::Client {
            recipient,
            channel,
            source,
        } => Hop::to_client(recipient, channel, source, payload, random),
    }
}
