//! The path of a packet: from a client to a peer, from a peer to a client, or from client to client within this server.
//!
//! In: who sent how many bytes, and a ChannelData header. Out: a [`Route`]. Never: allocates, locks, parses more than four bytes, or
//! decides who may talk: that stands in the index, which control writes from the allocations.
//!
//! Each shard has its own entries for its own clients. What other shards need to reach such a client lies in the [`Index`] they share:
//! one slot per relayed address.

pub mod slot;

use crate::peers::RelayTable;
use crate::table::{HashKey, Places};
use crate::time::{Rate, Seconds, nanoseconds};
use crate::wire::{CHANNEL_HEADER, ChannelData, ChannelNumber, FiveTuple, HEADER, PeerAddr, RelayAddr};
use slot::{Slot, Word};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zeroize::Zeroize;

/// Channels of one allocation to other allocations of this server, at most: what a slot holds.
pub const LOCAL_CHANNELS: usize = 8;

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of the relayed address.
    Peer { relay: RelayAddr, peer: PeerAddr },
    /// To a client: as ChannelData if a channel is bound to the source, otherwise as a Data indication.
    Client {
        recipient: Recipient,
        channel: Option<ChannelNumber>,
        source: PeerAddr,
    },
}

/// A client and the shard that owns it: over UDP any shard can send, over streams only that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroize)]
pub struct Recipient {
    pub client: FiveTuple,
    pub shard: u16,
}

/// How many packets one decision is for: they came together, from one source, and are equal in all that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run(u16);

impl Run {
    pub const ONE: Self = Self(1);
    /// With this many of the longest segments the rate of an allocation still has room for one run.
    pub const MOST: u16 = 64;

    /// `None` for none, or for more than [`Run::MOST`].
    pub const fn new(count: u16) -> Option<Self> {
        if matches!(count, 1..=Self::MOST) {
            Some(Self(count))
        } else {
            None
        }
    }

    pub const fn count(self) -> u16 {
        self.0
    }

    /// What follows must be the same for each: a Data indication has its own transaction, a frame of a stream its own place.
    fn check(self, route: &Route) -> Result<(), Dropped> {
        match route {
            _ if self == Self::ONE => Ok(()),
            Route::Client { recipient, channel, .. }
                if channel.is_none() || recipient.client.transport().is_stream() =>
            {
                Err(Dropped::NotTogether)
            }
            Route::Client { .. } | Route::Peer { .. } => Ok(()),
        }
    }
}

/// Bytes of each payload, and how many there are.
#[derive(Clone, Copy)]
struct Size {
    length: usize,
    run: Run,
}

impl Size {
    const fn bytes(self) -> u64 {
        self.length as u64 * self.run.0 as u64
    }

    /// What goes there must be one datagram, or one frame, with its header.
    fn check(self, route: &Route) -> Result<(), Dropped> {
        let (length, most) = match route {
            Route::Peer { peer, .. } => (self.length, longest_datagram(peer.is_v6())),
            Route::Client {
                recipient,
                channel,
                source,
            } => {
                let client = &recipient.client;
                let framed = match channel {
                    Some(_) => CHANNEL_HEADER + self.length,
                    None => indication_prefix(source.is_v6()) + self.length.next_multiple_of(4),
                };
                let most = match (client.transport().is_stream(), channel) {
                    (false, _) => longest_datagram(client.is_v6()),
                    (true, Some(_)) => CHANNEL_HEADER + LONGEST_CHANNEL_DATA,
                    (true, None) => HEADER + LONGEST_ATTRIBUTES,
                };
                (framed, most)
            }
        };
        if length > most {
            return Err(Dropped::TooLong);
        }
        // Datagrams that leave in one piece are told apart by their length, and nothing has none.
        if self.length == 0 && self.run != Run::ONE {
            return Err(Dropped::NotTogether);
        }
        self.run.check(route)
    }
}

/// Why a packet goes nowhere. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Number out of range, or a length beyond the end.
    BadChannelData,
    NoAllocation,
    NoChannel,
    /// The receiver, or the sender, has no permission for the other.
    NoPermission,
    /// One of our relayed addresses that nobody has now.
    NobodyThere,
    /// The allocation has none of the peer's family.
    OtherFamily,
    /// Above the rate of the allocation.
    AllocationBandwidth,
    /// Above the rate of the server.
    TotalBandwidth,
    /// The receiver's slot was written at every try.
    Contended,
    /// With its header it would be no datagram.
    TooLong,
    /// Several at once, of which each needs its own decision. Never counted: each is asked for then.
    NotTogether,
}

impl Dropped {
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadChannelData => "bad_channel_data",
            Self::NoAllocation => "no_allocation",
            Self::NoChannel => "no_channel",
            Self::NoPermission => "no_permission",
            Self::NobodyThere => "nobody_there",
            Self::OtherFamily => "other_family",
            Self::AllocationBandwidth => "allocation_bandwidth",
            Self::TotalBandwidth => "total_bandwidth",
            Self::Contended => "contended",
            Self::TooLong => "too_long",
            Self::NotTogether => "not_together",
        }
    }
}

/// What left, in packets and bytes of payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// One shard's forwarding.
pub struct Forwarding {
    index: Arc<Index>,
    shard: u16,
    hash_key: HashKey,
    per_allocation: Rate,
    total: Rate,
    /// Bytes already taken from the total.
    credit: u64,
    /// By the place of the allocation.
    entries: Vec<Option<Box<Entry>>>,
    by_client: Places,
    /// Place by relayed address.
    by_relay: Vec<u32>,
    pub to_peers: Traffic,
    pub to_clients: Traffic,
    /// From client to client.
    pub within: Traffic,
}

/// One allocation as a packet needs it.
struct Entry {
    client: FiveTuple,
    relays: [Option<RelayAddr>; 2],
    expires: Seconds,
    permissions: Few<Permitted>,
    channels: Few<Bound>,
    /// States of the two rates.
    up: u64,
    down: u64,
}

#[derive(Clone, Copy, Zeroize)]
struct Permitted {
    peer: PeerAddr,
    until: u32,
}

#[derive(Clone, Copy, Zeroize)]
struct Bound {
    number: u16,
    peer: PeerAddr,
    until: u32,
    /// Of the permission for the same address, so that a packet needs one look.
    permitted_until: u32,
    /// The peer is this relayed address of ours.
    local: Option<RelayAddr>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.client.zeroize();
        self.relays.zeroize();
        self.permissions.zeroize();
        self.channels.zeroize();
    }
}

/// A list whose first item lies where the list does: most clients talk to one peer, and their packets then look at one place in memory.
#[derive(Zeroize)]
struct Few<T: Zeroize> {
    first: Option<T>,
    others: Vec<T>,
}

impl<T: Copy + Zeroize> Few<T> {
    const EMPTY: Self = Self {
        first: None,
        others: Vec::new(),
    };

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.others)
    }

    /// Overwrites the list; room grows before anything is in it.
    fn refill(&mut self, mut items: impl Iterator<Item = T>) {
        self.zeroize();
        self.first = items.next();
        for item in items {
            if self.others.len() == self.others.capacity() {
                let mut larger = Vec::with_capacity(self.others.len() + self.others.len().max(1));
                larger.extend_from_slice(&self.others);
                std::mem::swap(&mut self.others, &mut larger);
                larger.zeroize();
            }
            self.others.push(item);
        }
    }
}

/// What control writes for one allocation.
pub struct View<P, C> {
    pub client: FiveTuple,
    pub relays: [Option<RelayAddr>; 2],
    pub expires: Seconds,
    pub permissions: P,
    pub channels: C,
}

const NOWHERE: u32 = u32::MAX;
/// Taken from the total at a time, so that shards seldom meet on its one number.
const CREDIT: u64 = 65_536;
/// Tries to read a slot.
const TRIES: usize = 64;
/// What the two bytes of a ChannelData header, and of a STUN header, can say at most; the latter counts in fours.
const LONGEST_CHANNEL_DATA: usize = 65_535;
const LONGEST_ATTRIBUTES: usize = 65_532;

/// What UDP carries: an IPv4 header is part of its packet's length, an IPv6 header is not.
const fn longest_datagram(is_v6: bool) -> usize {
    if is_v6 { 65_527 } else { 65_507 }
}

/// Before the data of a Data indication: the STUN header, XOR-PEER-ADDRESS, and the header of DATA.
const fn indication_prefix(is_v6: bool) -> usize {
    HEADER + if is_v6 { 24 } else { 12 } + 4
}

impl Forwarding {
    pub fn new(index: Arc<Index>, shard: u16, hash_key: HashKey, per_allocation: Rate, total: Rate) -> Self {
        let relayed = index.relays.len() * index.relays.ports_per_address();
        Self {
            index,
            shard,
            hash_key,
            per_allocation,
            total,
            credit: 0,
            entries: Vec::new(),
            by_client: Places::default(),
            by_relay: vec![NOWHERE; relayed],
            to_peers: Traffic::default(),
            to_clients: Traffic::default(),
            within: Traffic::default(),
        }
    }

    /// A ChannelData message of a client, or the first of several that begin with the same four bytes. The range is its payload.
    pub fn client_packet(
        &mut self,
        from: &FiveTuple,
        bytes: &[u8],
        run: Run,
        now: Duration,
    ) -> Result<(Route, Range<usize>), Dropped> {
        let frame = ChannelData::parse(bytes).ok_or(Dropped::BadChannelData)?;
        let place = self.find(from).ok_or(Dropped::NoAllocation)?;
        let seconds = Seconds::at(now);
        let entry = self.entry(place).filter(|entry| entry.expires > seconds);
        let entry = entry.ok_or(Dropped::NoAllocation)?;
        let number = frame.number.raw();
        let bound = entry.channels.iter().find(|bound| bound.number == number);
        let bound = *bound
            .filter(|bound| bound.until > seconds.0)
            .ok_or(Dropped::NoChannel)?;
        if bound.permitted_until <= seconds.0 {
            return Err(Dropped::NoPermission);
        }
        let payload = CHANNEL_HEADER..CHANNEL_HEADER + frame.data.len();
        let size = Size {
            length: payload.len(),
            run,
        };
        self.leave(place, bound.peer, bound.local, size, now)
            .map(|route| (route, payload))
    }

    /// The data of a Send indication, which control has read and checked against the policy.
    pub fn send(&mut self, from: &FiveTuple, peer: PeerAddr, length: usize, now: Duration) -> Result<Route, Dropped> {
        let place = self.find(from).ok_or(Dropped::NoAllocation)?;
        let seconds = Seconds::at(now);
        let entry = self.entry(place).filter(|entry| entry.expires > seconds);
        if !entry.ok_or(Dropped::NoAllocation)?.permits(&peer, seconds) {
            return Err(Dropped::NoPermission);
        }
        let local = self.index.relays.relay_of(peer.socket());
        let size = Size { length, run: Run::ONE };
        self.leave(place, peer, local, size, now)
    }

    /// Where a ChannelData message of a client wants to go, and its payload; whether it may is not said.
    pub fn bound<'a>(&self, from: &FiveTuple, bytes: &'a [u8]) -> Option<(PeerAddr, &'a [u8])> {
        let frame = ChannelData::parse(bytes)?;
        let entry = self.entry(self.find(from)?)?;
        let number = frame.number.raw();
        let bound = entry.channels.iter().find(|bound| bound.number == number)?;
        Some((bound.peer, frame.data))
    }

    /// For a packet from client to client whose sender has permitted the receiver: the relayed address of the receiver, and that of the
    /// sender as clients know it.
    pub fn within(&self, from: &FiveTuple, peer: PeerAddr, now: Seconds) -> Option<(RelayAddr, PeerAddr)> {
        let relays = &self.index.relays;
        let to = relays.relay_of(peer.socket())?;
        let entry = self.entry(self.find(from)?).filter(|entry| entry.permits(&peer, now))?;
        let relay = entry.relay_of_family(peer.is_v6(), relays)?;
        Some((to, PeerAddr::new(relays.advertised(relay)?)))
    }

    /// Whether the receiver of such a packet has permitted its sender by now.
    pub fn is_admitted(&self, from: &FiveTuple, peer: PeerAddr, now: Seconds) -> bool {
        let relays = &self.index.relays;
        let entry = self.find(from).and_then(|place| self.entry(place));
        let relay = entry.and_then(|entry| entry.relay_of_family(peer.is_v6(), relays));
        let Some((relay, to)) = relay.zip(relays.relay_of(peer.socket())) else {
            return false;
        };
        let words = self.index.read(to);
        words.is_ok_and(|words| admitted(&words, relay, now).is_ok())
    }

    /// A datagram that came to a relayed address, or the first of several of one length.
    pub fn peer_packet(
        &mut self,
        relay: RelayAddr,
        source: PeerAddr,
        length: usize,
        run: Run,
        now: Duration,
    ) -> Result<Route, Dropped> {
        let (entry, source) = self.permitted(relay, source, Seconds::at(now))?;
        let seconds = Seconds::at(now);
        let recipient = Recipient {
            client: entry.client,
            shard: self.shard,
        };
        let channel = entry
            .channels
            .iter()
            .find(|bound| bound.peer == source && bound.until > seconds.0);
        let channel = channel.and_then(|bound| ChannelNumber::new(bound.number));
        let place = self.place_of(relay).unwrap_or(NOWHERE);
        let route = Route::Client {
            recipient,
            channel,
            source,
        };
        let size = Size { length, run };
        size.check(&route)?;
        self.pay(place, size, now, |entry| &mut entry.down)?;
        self.to_clients.add(size);
        Ok(route)
    }

    /// Who is told about an ICMP message that says that a packet from this relayed address did not reach its peer.
    pub fn icmp(&self, relay: RelayAddr, peer: PeerAddr, now: Duration) -> Result<(Recipient, PeerAddr), Dropped> {
        let (entry, peer) = self.permitted(relay, peer, Seconds::at(now))?;
        let recipient = Recipient {
            client: entry.client,
            shard: self.shard,
        };
        Ok((recipient, peer))
    }

    /// Puts one allocation in, or as it is now.
    pub fn write<P, C>(&mut self, place: u32, view: View<P, C>)
    where
        P: Iterator<Item = (PeerAddr, Seconds)>,
        C: Iterator<Item = (ChannelNumber, PeerAddr, Seconds)>,
    {
        let at = place as usize;
        if self.entries.len() <= at {
            self.entries.resize_with(at + 1, || None);
        }
        if self.entry(place).is_none() {
            let entry = Entry {
                client: view.client,
                relays: [None; 2],
                expires: view.expires,
                permissions: Few::EMPTY,
                channels: Few::EMPTY,
                up: 0,
                down: 0,
            };
            if let Some(slot) = self.entries.get_mut(at) {
                *slot = Some(Box::new(entry));
            }
            let (key, entries) = (&self.hash_key, &self.entries);
            let hash = key.of_client(&view.client);
            self.by_client.insert(hash, place, |place| hash_of(key, entries, place));
        }
        let Some(Some(entry)) = self.entries.get_mut(at) else {
            return;
        };
        entry.expires = view.expires;
        entry
            .permissions
            .refill(view.permissions.map(|(peer, until)| Permitted { peer, until: until.0 }));
        let (permissions, relays) = (&entry.permissions, &self.index.relays);
        let bound = view.channels.map(|(number, peer, until)| Bound {
            number: number.raw(),
            peer,
            until: until.0,
            permitted_until: permissions
                .iter()
                .find(|permitted| permitted.peer.same_ip(&peer))
                .map_or(0, |permitted| permitted.until),
            local: relays.relay_of(peer.socket()),
        });
        entry.channels.refill(bound);
        let before = std::mem::replace(&mut entry.relays, view.relays);
        let words = words_of(entry, self.shard, &self.index.relays);
        for relay in before
            .into_iter()
            .flatten()
            .filter(|relay| !view.relays.contains(&Some(*relay)))
        {
            self.vacate(relay);
        }
        for relay in view.relays.into_iter().flatten() {
            if let Some(place_of) = self.index.relays.place(relay).and_then(|at| self.by_relay.get_mut(at)) {
                *place_of = place;
            }
            self.index.write(relay, &words);
        }
    }

    /// Takes one out, and leaves nothing of it.
    pub fn erase(&mut self, place: u32) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let (client, relays) = (entry.client, entry.relays);
        for relay in relays.into_iter().flatten() {
            self.vacate(relay);
        }
        let (key, entries) = (&self.hash_key, &self.entries);
        self.by_client
            .remove(key.of_client(&client), place, |place| hash_of(key, entries, place));
        if let Some(slot) = self.entries.get_mut(place as usize) {
            *slot = None;
        }
    }

    pub fn set_rates(&mut self, per_allocation: Rate, total: Rate) {
        self.per_allocation = per_allocation;
        self.total = total;
    }

    /// The place of the allocation that has this relayed address.
    pub fn place_of(&self, relay: RelayAddr) -> Option<u32> {
        let at = self.index.relays.place(relay)?;
        self.by_relay.get(at).copied().filter(|place| *place != NOWHERE)
    }

    fn find(&self, client: &FiveTuple) -> Option<u32> {
        let hash = self.hash_key.of_client(client);
        self.by_client.find(hash, |place| {
            self.entry(place).is_some_and(|entry| entry.client == *client)
        })
    }

    fn entry(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize)?.as_deref()
    }

    /// The live entry of a relayed address, if it permits this peer; and the peer by the name that clients know.
    fn permitted(&self, relay: RelayAddr, peer: PeerAddr, now: Seconds) -> Result<(&Entry, PeerAddr), Dropped> {
        let entry = self.place_of(relay).and_then(|place| self.entry(place));
        let entry = entry.filter(|entry| entry.expires > now).ok_or(Dropped::NoAllocation)?;
        let peer = PeerAddr::new(self.index.relays.as_advertised(peer.socket()));
        if !entry.permits(&peer, now) {
            return Err(Dropped::NoPermission);
        }
        Ok((entry, peer))
    }

    /// Out of the server, or over to the allocation that has the peer's address.
    fn leave(
        &mut self,
        place: u32,
        peer: PeerAddr,
        local: Option<RelayAddr>,
        size: Size,
        now: Duration,
    ) -> Result<Route, Dropped> {
        let relay = self
            .entry(place)
            .and_then(|entry| entry.relay_of_family(peer.is_v6(), &self.index.relays));
        let relay = relay.ok_or(Dropped::OtherFamily)?;
        let Some(local) = local else {
            let route = Route::Peer { relay, peer };
            size.check(&route)?;
            self.pay(place, size, now, |entry| &mut entry.up)?;
            self.to_peers.add(size);
            return Ok(route);
        };
        let words = self.index.read(local)?;
        let (recipient, channel) = admitted(&words, relay, Seconds::at(now))?;
        let source = self.index.relays.advertised(relay).ok_or(Dropped::OtherFamily)?;
        let route = Route::Client {
            recipient,
            channel,
            source: PeerAddr::new(source),
        };
        size.check(&route)?;
        self.pay(place, size, now, |entry| &mut entry.up)?;
        self.within.add(size);
        Ok(route)
    }

    /// One rate of the allocation, and the server's. The receiver of an in-process hop does not pay: its rate belongs to another shard,
    /// and it has permitted the sender, who pays.
    fn pay(
        &mut self,
        place: u32,
        size: Size,
        now: Duration,
        rate: impl Fn(&mut Entry) -> &mut u64,
    ) -> Result<(), Dropped> {
        let now = nanoseconds(now);
        let length = size.bytes();
        let Some(Some(entry)) = self.entries.get_mut(place as usize) else {
            return Err(Dropped::NoAllocation);
        };
        let state = rate(entry);
        let paid = self.per_allocation.admit(*state, now, length);
        let paid = paid.ok_or(Dropped::AllocationBandwidth)?;
        while self.credit < length {
            self.index
                .take_credit(&self.total, now)
                .ok_or(Dropped::TotalBandwidth)?;
            self.credit += CREDIT;
        }
        // Nothing is paid for what is refused.
        *state = paid;
        self.credit -= length;
        Ok(())
    }

    fn vacate(&mut self, relay: RelayAddr) {
        if let Some(place) = self.index.relays.place(relay).and_then(|at| self.by_relay.get_mut(at)) {
            *place = NOWHERE;
        }
        self.index.write(relay, &[0; WORDS]);
    }
}

impl Traffic {
    const fn add(&mut self, size: Size) {
        self.packets += size.run.0 as u64;
        self.bytes += size.bytes();
    }

    /// Adds what another shard has counted.
    pub const fn merge(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Entry {
    fn permits(&self, peer: &PeerAddr, now: Seconds) -> bool {
        self.permissions
            .iter()
            .any(|permitted| permitted.peer.same_ip(peer) && permitted.until > now.0)
    }

    fn relay_of_family(&self, is_v6: bool, relays: &RelayTable) -> Option<RelayAddr> {
        self.relays
            .into_iter()
            .flatten()
            .find(|relay| relays.get(relay.address).is_some_and(|one| one.bind.is_ipv6() == is_v6))
    }
}

fn hash_of(key: &HashKey, entries: &[Option<Box<Entry>>], place: u32) -> u64 {
    match entries.get(place as usize) {
        Some(Some(entry)) => key.of_client(&entry.client),
        _ => 0,
    }
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn fence(order: Ordering) {
        std::sync::atomic::fence(order);
    }

    fn pause() {
        std::hint::spin_loop();
    }
}

/// Client and owner (3), expiry (1), permissions by our own addresses (4), channels to our own addresses (8).
const WORDS: usize = 16;
const EXPIRY: usize = 3;
const PERMISSIONS: usize = 4;
const CHANNELS: usize = 8;
/// A slot or channel that is in use.
const IN_USE: u64 = 1 << 63;

/// What all shards share: for each relayed address, what it takes to reach its client.
pub struct Index {
    relays: RelayTable,
    slots: Vec<Slot<AtomicU64, WORDS>>,
    total: AtomicU64,
}

impl Index {
    pub fn new(relays: RelayTable) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(relays.len() * relays.ports_per_address(), Slot::default);
        Self {
            relays,
            slots,
            total: AtomicU64::new(0),
        }
    }

    pub const fn relays(&self) -> &RelayTable {
        &self.relays
    }

    fn read(&self, relay: RelayAddr) -> Result<[u64; WORDS], Dropped> {
        let slot = self.relays.place(relay).and_then(|at| self.slots.get(at));
        slot.ok_or(Dropped::NobodyThere)?.read(TRIES).ok_or(Dropped::Contended)
    }

    fn write(&self, relay: RelayAddr, words: &[u64; WORDS]) {
        if let Some(slot) = self.relays.place(relay).and_then(|at| self.slots.get(at)) {
            slot.write(words);
        }
    }

    fn take_credit(&self, rate: &Rate, now: u64) -> Option<()> {
        for _ in 0..TRIES {
            let state = self.total.load(Ordering::Relaxed);
            let next = rate.admit(state, now, CREDIT)?;
            let taken = self
                .total
                .compare_exchange_weak(state, next, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                return Some(());
            }
        }
        None
    }
}

/// What a slot says about an entry.
fn words_of(entry: &Entry, shard: u16, relays: &RelayTable) -> [u64; WORDS] {
    let [high, low, rest] = entry.client.words();
    let mut words = [0; WORDS];
    let (client, others) = words.split_at_mut(EXPIRY);
    client.copy_from_slice(&[high, low, rest | u64::from(shard) << 32]);
    let (expiry, others) = others.split_at_mut(PERMISSIONS - EXPIRY);
    expiry.copy_from_slice(&[IN_USE | u64::from(entry.expires.0)]);
    let (permissions, channels) = others.split_at_mut(CHANNELS - PERMISSIONS);
    for permitted in entry.permissions.iter() {
        if let Some(number) = relays.number_of(permitted.peer.ip())
            && let Some(word) = permissions.get_mut(usize::from(number / 2))
        {
            let shift = u32::from(number % 2) * 32;
            let until = u64::from(permitted.until).max(*word >> shift & 0xFFFF_FFFF);
            *word = *word & !(0xFFFF_FFFF << shift) | until << shift;
        }
    }
    let local = entry.channels.iter().filter_map(|bound| Some((bound, bound.local?)));
    for (word, (bound, peer)) in channels.iter_mut().zip(local) {
        *word = IN_USE
            | u64::from(bound.until)
            | u64::from(peer.port) << 32
            | u64::from(bound.number & 0x0FFF) << 48
            | u64::from(peer.address & 7) << 60;
    }
    words
}

/// May a packet from this relayed address of ours reach the client of the slot, and by which channel?
fn admitted(
    words: &[u64; WORDS],
    from: RelayAddr,
    now: Seconds,
) -> Result<(Recipient, Option<ChannelNumber>), Dropped> {
    let [high, low, rest, expiry, others @ ..] = *words;
    let lives = |word: u64| word as u32 > now.0;
    if expiry & IN_USE == 0 || !lives(expiry) {
        return Err(Dropped::NobodyThere);
    }
    let (permissions, channels) = others.split_at(CHANNELS - PERMISSIONS);
    let permission = permissions.get(usize::from(from.address / 2)).copied().unwrap_or(0);
    if !lives(permission >> (u32::from(from.address % 2) * 32)) {
        return Err(Dropped::NoPermission);
    }
    let ours = IN_USE | u64::from(from.address & 7) << 60 | u64::from(from.port) << 32;
    const WHO: u64 = IN_USE | 7 << 60 | 0xFFFF << 32;
    let channel = channels
        .iter()
        .find(|word| **word & WHO == ours && lives(**word))
        .and_then(|word| ChannelNumber::new(0x4000 | (word >> 48) as u16 & 0x0FFF));
    let recipient = Recipient {
        client: FiveTuple::from_words([high, low, rest]),
        shard: (rest >> 32) as u16,
    };
    Ok((recipient, channel))
}
