//! Allocations: the one truth about who relays, through which address, to whom and until when.
//!
//! In: what control has checked. Out: what holds now, and the next deadline. Never: sends, parses, or looks at the forwarding index,
//! which control derives from here.
//!
//! RFC 8656 §3.2, §6, §9, §12.

pub mod pool;

use crate::auth::{IntegrityKind, Key, UserId};
use crate::table::{HashKey, Places};
use crate::time::{Now, Seconds};
use crate::wire::{ChannelNumber, FiveTuple, PeerAddr, RelayAddr, TransactionId};
use pool::PortWish;
use std::collections::BTreeSet;
use std::time::Duration;
use zeroize::Zeroize;

/// Life of a permission after CreatePermission or ChannelBind: 300 s, fixed by RFC 8656 §9.
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// Life of a channel binding after ChannelBind: 600 s, fixed by RFC 8656 §12.
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Why there is no room for one more allocation: 486. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaFault {
    Total,
    Prefix,
}

/// Why a channel was not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelFault {
    /// 400: the number has another peer, or the peer another number.
    Conflict,
    /// 508.
    Full,
}

/// 508: the table of permissions is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermissionsFull;

/// Whom a client wants to hear, for 300 s at a time.
#[derive(Clone, Copy, Zeroize)]
pub struct Permission {
    /// Its port is 0: permissions know none.
    peer: PeerAddr,
    until: u32,
}

impl Permission {
    pub const fn peer(&self) -> PeerAddr {
        self.peer
    }

    pub const fn until(&self) -> Seconds {
        Seconds(self.until)
    }
}

/// A number in place of a peer's address, for 600 s at a time.
#[derive(Clone, Copy, Zeroize)]
pub struct Channel {
    number: u16,
    peer: PeerAddr,
    until: u32,
}

impl Channel {
    pub const fn number(&self) -> Option<ChannelNumber> {
        ChannelNumber::new(self.number)
    }

    pub const fn peer(&self) -> PeerAddr {
        self.peer
    }

    pub const fn until(&self) -> Seconds {
        Seconds(self.until)
    }
}

/// One allocation. Overwritten when it ends.
pub struct Allocation {
    client: FiveTuple,
    user: UserId,
    key: Key,
    /// The request that made it: the same one again gets the same answer.
    transaction: TransactionId,
    answer: IntegrityKind,
    has_fingerprint: bool,
    /// At most one of each family.
    relays: [Option<RelayAddr>; 2],
    /// Given out with the first answer.
    token: Option<[u8; 8]>,
    /// Error code with which the second address of a dual allocation was refused.
    refused_second: Option<u16>,
    /// `None`: no other port than the first would do.
    wish: Option<PortWish>,
    failed_opens: u8,
    prefix: u64,
    expires: Seconds,
    /// What the ordered set holds for this one.
    deadline: Seconds,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

/// What control knows when it makes an allocation.
pub struct Beginning {
    pub client: FiveTuple,
    pub user: UserId,
    pub key: Key,
    pub transaction: TransactionId,
    pub answer: IntegrityKind,
    /// The request had one, so the answer does.
    pub has_fingerprint: bool,
    pub relays: [Option<RelayAddr>; 2],
    pub token: Option<[u8; 8]>,
    pub refused_second: Option<u16>,
    pub wish: Option<PortWish>,
    /// Keyed hash of the source prefix, for the quota.
    pub prefix: u64,
    pub expires: Seconds,
}

impl Allocation {
    pub const fn client(&self) -> FiveTuple {
        self.client
    }

    pub const fn user(&self) -> UserId {
        self.user
    }

    pub const fn key(&self) -> &Key {
        &self.key
    }

    pub const fn transaction(&self) -> TransactionId {
        self.transaction
    }

    pub const fn answer(&self) -> IntegrityKind {
        self.answer
    }

    pub const fn has_fingerprint(&self) -> bool {
        self.has_fingerprint
    }

    pub const fn token(&self) -> Option<[u8; 8]> {
        self.token
    }

    pub const fn refused_second(&self) -> Option<u16> {
        self.refused_second
    }

    pub const fn prefix(&self) -> u64 {
        self.prefix
    }

    pub const fn expires(&self) -> Seconds {
        self.expires
    }

    pub const fn relays(&self) -> [Option<RelayAddr>; 2] {
        self.relays
    }

    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    pub fn is_permitted(&self, peer: &PeerAddr, now: Seconds) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.peer.same_ip(peer) && permission.until() > now)
    }

    /// A relayed address gives way to another one, or to none.
    pub fn replace_relay(&mut self, old: RelayAddr, new: Option<RelayAddr>) {
        for relay in &mut self.relays {
            if *relay == Some(old) {
                *relay = new;
            }
        }
    }

    pub const fn wish(&self) -> Option<PortWish> {
        self.wish
    }

    /// How many of its ports could not be opened, this one included.
    pub fn count_failed_open(&mut self) -> u8 {
        self.failed_opens = self.failed_opens.saturating_add(1);
        self.failed_opens
    }

    pub fn set_token(&mut self, token: Option<[u8; 8]>) {
        self.token = token;
    }

    pub fn refuse_second(&mut self, code: u16) {
        self.refused_second = Some(code);
    }

    /// All or none. The caller has checked the addresses.
    pub fn permit(
        &mut self,
        peers: impl Iterator<Item = PeerAddr> + Clone,
        most: usize,
        now: Now,
    ) -> Result<(), PermissionsFull> {
        let seconds = now.seconds();
        self.forget_ended(seconds);
        let mut new = 0;
        for (at, peer) in peers.clone().enumerate() {
            let is_first = !peers.clone().take(at).any(|other| other.same_ip(&peer));
            if is_first && !self.is_permitted(&peer, seconds) {
                new += 1;
            }
        }
        // What is there may stay when a reload lowers the limit.
        if new > 0 && self.permissions.len() + new > most {
            return Err(PermissionsFull);
        }
        let until = now.after(PERMISSION_LIFETIME).0;
        for peer in peers {
            match self
                .permissions
                .iter_mut()
                .find(|permission| permission.peer.same_ip(&peer))
            {
                Some(permission) => permission.until = until,
                None => push(
                    &mut self.permissions,
                    Permission {
                        peer: peer.without_port(),
                        until,
                    },
                ),
            }
        }
        Ok(())
    }

    /// Binds or refreshes, and permits the peer. `is_local` says of any peer whether it is another allocation of this server:
    /// `most_local` of those fit.
    pub fn bind(
        &mut self,
        number: ChannelNumber,
        peer: PeerAddr,
        limits: ChannelLimits,
        is_local: impl Fn(&PeerAddr) -> bool,
        now: Now,
    ) -> Result<(), ChannelFault> {
        self.forget_ended(now.seconds());
        let by_number = self.channels.iter().position(|channel| channel.number == number.raw());
        let by_peer = self.channels.iter().position(|channel| channel.peer == peer);
        if by_number != by_peer {
            return Err(ChannelFault::Conflict);
        }
        if by_number.is_none() {
            let local = self.channels.iter().filter(|channel| is_local(&channel.peer)).count();
            if self.channels.len() >= limits.channels || (is_local(&peer) && local >= limits.local_channels) {
                return Err(ChannelFault::Full);
            }
        }
        self.permit(std::iter::once(peer), limits.permissions, now)
            .map_err(|PermissionsFull| ChannelFault::Full)?;
        let until = now.after(CHANNEL_LIFETIME).0;
        match by_number.and_then(|at| self.channels.get_mut(at)) {
            Some(channel) => channel.until = until,
            None => push(
                &mut self.channels,
                Channel {
                    number: number.raw(),
                    peer,
                    until,
                },
            ),
        }
        Ok(())
    }

    /// After a change of policy, or without one of two relayed addresses: what is refused now ends now.
    pub fn retain(&mut self, is_permitted: impl Fn(&PeerAddr) -> bool, is_bindable: impl Fn(&PeerAddr) -> bool) {
        retain(&mut self.permissions, |permission| is_permitted(&permission.peer));
        retain(&mut self.channels, |channel| is_bindable(&channel.peer));
    }

    fn forget_ended(&mut self, now: Seconds) {
        retain(&mut self.permissions, |permission| permission.until() > now);
        retain(&mut self.channels, |channel| channel.until() > now);
    }

    /// When something of it ends next.
    fn next_end(&self) -> Seconds {
        let permissions = self.permissions.iter().map(Permission::until);
        let channels = self.channels.iter().map(Channel::until);
        permissions.chain(channels).fold(self.expires, Seconds::min)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.client.zeroize();
        self.user.zeroize();
        self.transaction.0.zeroize();
        self.token.zeroize();
        self.relays.zeroize();
        self.permissions.zeroize();
        self.channels.zeroize();
    }
}

/// Bounds of one ChannelBind.
#[derive(Clone, Copy)]
pub struct ChannelLimits {
    pub channels: usize,
    pub local_channels: usize,
    pub permissions: usize,
}

/// Grows by a few, and overwrites what it leaves: `Vec::push` would leave a copy behind.
fn push<T: Copy + Zeroize>(list: &mut Vec<T>, item: T) {
    const FEW: usize = 2;
    if list.len() == list.capacity() {
        let mut larger = Vec::with_capacity(list.len() + list.len().max(FEW));
        larger.extend_from_slice(list);
        std::mem::swap(list, &mut larger);
        larger.zeroize();
    }
    list.push(item);
}

/// `Vec::retain` that overwrites what falls out.
fn retain<T: Copy + Zeroize>(list: &mut Vec<T>, stays: impl Fn(&T) -> bool) {
    if list.iter().all(&stays) {
        return;
    }
    let kept = list.iter().filter(|item| stays(item)).count();
    let mut to = 0;
    for from in 0..list.len() {
        if list.get(from).is_some_and(&stays) {
            list.swap(to, from);
            to += 1;
        }
    }
    if let Some(fallen) = list.get_mut(kept..) {
        fallen.iter_mut().for_each(Zeroize::zeroize);
    }
    list.truncate(kept);
}

/// All allocations of one shard.
pub struct Allocations {
    hash_key: HashKey,
    slab: Vec<Option<Box<Allocation>>>,
    vacant: Vec<u32>,
    by_client: Places,
    deadlines: BTreeSet<(Seconds, u32)>,
}

impl Allocations {
    pub fn new(hash_key: HashKey) -> Self {
        Self {
            hash_key,
            slab: Vec::new(),
            vacant: Vec::new(),
            by_client: Places::default(),
            deadlines: BTreeSet::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.slab.len() - self.vacant.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place of the allocation of a client; ended ones do not count, even before their timer ran.
    pub fn find(&self, client: &FiveTuple, now: Seconds) -> Option<u32> {
        self.place_of(client)
            .filter(|place| self.get(*place).is_some_and(|allocation| allocation.expires > now))
    }

    /// As [`Allocations::find`], ended ones too.
    pub fn place_of(&self, client: &FiveTuple) -> Option<u32> {
        let hash = self.hash_key.of_client(client);
        self.by_client.find(hash, |place| {
            self.get(place).is_some_and(|allocation| allocation.client == *client)
        })
    }

    pub fn get(&self, place: u32) -> Option<&Allocation> {
        self.slab.get(place as usize)?.as_deref()
    }

    /// Changes one, and keeps the order of deadlines.
    pub fn change<R>(&mut self, place: u32, change: impl FnOnce(&mut Allocation) -> R) -> Option<R> {
        let allocation = self.slab.get_mut(place as usize)?.as_deref_mut()?;
        let result = change(allocation);
        let next = allocation.next_end();
        if next != allocation.deadline {
            self.deadlines.remove(&(allocation.deadline, place));
            self.deadlines.insert((next, place));
            allocation.deadline = next;
        }
        Some(result)
    }

    pub fn set_expiry(&mut self, place: u32, expires: Seconds) {
        self.change(place, |allocation| allocation.expires = expires);
    }

    /// The caller knows that the client has none. An ended one that its timer has not met yet must have been removed before.
    pub fn insert(&mut self, beginning: Beginning) -> u32 {
        let Beginning {
            client,
            user,
            key,
            transaction,
            answer,
            has_fingerprint,
            relays,
            token,
            refused_second,
            wish,
            prefix,
            expires,
        } = beginning;
        let allocation = Box::new(Allocation {
            client,
            user,
            key,
            transaction,
            answer,
            has_fingerprint,
            relays,
            token,
            refused_second,
            wish,
            failed_opens: 0,
            prefix,
            expires,
            deadline: expires,
            permissions: Vec::new(),
            channels: Vec::new(),
        });
        let place = match self.vacant.pop() {
            Some(place) => place,
            None => {
                self.slab.push(None);
                (self.slab.len() - 1) as u32
            }
        };
        if let Some(slot) = self.slab.get_mut(place as usize) {
            *slot = Some(allocation);
        }
        let (key, slab) = (&self.hash_key, &self.slab);
        self.by_client
            .insert(key.of_client(&client), place, |place| hash_of(key, slab, place));
        self.deadlines.insert((expires, place));
        place
    }

    pub fn remove(&mut self, place: u32) -> Option<Box<Allocation>> {
        let client = self.get(place)?.client;
        let (key, slab) = (&self.hash_key, &self.slab);
        self.by_client
            .remove(key.of_client(&client), place, |place| hash_of(key, slab, place));
        let allocation = self.slab.get_mut(place as usize)?.take()?;
        self.deadlines.remove(&(allocation.deadline, place));
        self.vacant.push(place);
        Some(allocation)
    }

    /// When something ends next.
    pub fn next_deadline(&self) -> Option<Seconds> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// One allocation of which something has ended: all of it, or permissions and channels, which are gone on return.
    pub fn next_ended(&mut self, now: Seconds) -> Option<(u32, bool)> {
        let (deadline, place) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        let is_over = self.change(place, |allocation| {
            allocation.forget_ended(now);
            allocation.expires <= now
        })?;
        Some((place, is_over))
    }

    pub fn places(&self) -> impl Iterator<Item = u32> + use<> {
        let places: Vec<u32> = (0u32..)
            .zip(&self.slab)
            .filter(|(_, slot)| slot.is_some())
            .map(|(place, _)| place)
            .collect();
        places.into_iter()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Allocation)> {
        (0u32..)
            .zip(&self.slab)
            .filter_map(|(place, slot)| Some((place, slot.as_deref()?)))
    }
}

fn hash_of(key: &HashKey, slab: &[Option<Box<Allocation>>], place: u32) -> u64 {
    match slab.get(place as usize) {
        Some(Some(allocation)) => key.of_client(&allocation.client),
        _ => 0,
    }
}
