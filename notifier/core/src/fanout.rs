//! Which devices one message concerns, and whether they heard of it already.
//!
//! In: `Subscription`s, `MessageEvent`s, the clock. Out: `DeviceView`s. Never: reads a store; holds signatures.
//!
//! [`Index`] has what a wakeup needs and nothing else, so that the store is off the hot path: about 220 bytes for an account with
//! one device. [`Dedupe`] remembers messages, not devices.

mod dedupe;
mod namespaces;

pub use dedupe::{Dedupe, DedupeCounters, DedupeSettings, Mark, MarkState};

use crate::account::{AccountId, DeviceToken, NamespaceSet, Service};
use crate::event::MessageEvent;
use crate::seeded::Seed;
use crate::subscription::{DeviceId, SIGNATURE_LIFETIME_SECONDS, Subscription};
use hashbrown::HashTable;
use namespaces::{Interned, Namespaces};
use quietline_shared::redact::Secret;

/// All devices by account, in memory.
pub struct Index {
    seed: Seed,
    /// The first device of each account. The key is in the device's record.
    heads: HashTable<Place>,
    /// In segments, so that growing neither copies what is there nor doubles what is taken.
    segments: Vec<Vec<Slot>>,
    /// The first of the places that were given back.
    free: Place,
    devices: usize,
    namespaces: Namespaces,
    /// Where [`expire`](Self::expire) goes on.
    cursor: Place,
}

/// What [`Index::upsert`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upserted {
    /// A device that was not there.
    Added,
    /// `watch_changed`: the nodes must be asked for something else now (other namespaces, or with or without bodies).
    Changed { watch_changed: bool },
    /// The same wish with a fresh signature.
    Renewed,
    /// The device is there, and stays as it is.
    Kept,
    /// The account has [`MAX_DEVICES`] already.
    Full,
}

/// What [`Index::remove`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    NotThere,
    /// The account has other devices.
    Device,
    /// The account is gone with it.
    LastDevice,
}

/// A device that wants a message. It has no `Debug`: everything in it is private.
pub struct DeviceView<'a> {
    pub service: Service,
    pub token: &'a [u8],
    pub enc_key: &'a [u8; 32],
    /// Without it the wakeup never carries a body.
    pub want_data: bool,
}

/// Most devices of one account. A group's members share its account: 100 members with a few devices each fit; more is a
/// signature that went astray, and each further device would make every message of the account more expensive.
pub const MAX_DEVICES: usize = 1024;

impl Index {
    pub fn new(seed: Seed) -> Self {
        Self {
            seed,
            heads: HashTable::new(),
            segments: Vec::new(),
            free: NOWHERE,
            devices: 0,
            namespaces: Namespaces::new(seed),
            cursor: 0,
        }
    }

    /// What the store has taken: it knows which of two wishes counts.
    pub fn upsert(&mut self, subscription: &Subscription) -> Upserted {
        self.insert(subscription, true)
    }

    /// A row read at the start. A device that is here already came with a request, which may have been later than the row was read.
    pub fn load(&mut self, subscription: &Subscription) -> Upserted {
        self.insert(subscription, false)
    }

    fn insert(&mut self, subscription: &Subscription, replaces: bool) -> Upserted {
        let device = &subscription.device;
        let head = self.head_of(&device.account);
        let mut count = 0;
        for (place, slot) in self.chain(head) {
            count += 1;
            if slot.is(device) {
                return match replaces {
                    true => self.renew(place, subscription),
                    false => Upserted::Kept,
                };
            }
        }
        if count >= MAX_DEVICES {
            return Upserted::Full;
        }
        let slot = Slot {
            record: Some(record(&device.account, &subscription.enc_key, &device.token)),
            next: NOWHERE,
            sig_ts: seconds(subscription.sig_ts),
            namespaces: self.namespaces.take(&subscription.namespaces),
            service: device.service,
            want_data: subscription.want_data,
        };
        let place = self.put(slot);
        if head == NOWHERE {
            let (seed, segments) = (self.seed, &self.segments);
            let hash = seed.hash_bytes(device.account.expose());
            self.heads
                .insert_unique(hash, place, |place| seed.hash_bytes(at(segments, *place).account()));
        } else {
            // Behind the first, so that the table need not change.
            let second = self.slot(head).next;
            self.slot_mut(place).next = second;
            self.slot_mut(head).next = place;
        }
        Upserted::Added
    }

    pub fn remove(&mut self, device: &DeviceId) -> Removed {
        let head = self.head_of(&device.account);
        let found = self
            .chain(head)
            .find(|(_, slot)| slot.is(device))
            .map(|(place, _)| place);
        found.map_or(Removed::NotThere, |place| self.unlink(place))
    }

    /// The devices that asked for this message's namespace.
    pub fn fan_out(&self, event: &MessageEvent) -> impl Iterator<Item = DeviceView<'_>> {
        let namespace = event.namespace;
        self.subscribed(&event.account)
            .filter(move |(_, namespaces)| namespaces.contains(namespace))
            .map(|(device, _)| device)
    }

    /// An account's devices and what they asked for.
    pub fn subscribed(&self, account: &AccountId) -> impl Iterator<Item = (DeviceView<'_>, &NamespaceSet)> {
        self.chain(self.head_of(account))
            .map(|(_, slot)| (slot.view(), self.namespaces.set(slot.namespaces)))
    }

    /// Everything the account's renewals are read from the store by.
    pub fn devices(&self, account: &AccountId) -> impl Iterator<Item = DeviceId> {
        self.chain(self.head_of(account)).map(|(_, slot)| slot.device())
    }

    /// Looks at `places` places from `from` and gives the devices whose service and token are `wanted`; and where to go on, `None` at
    /// the end.
    pub fn devices_from(
        &self,
        from: usize,
        places: usize,
        wanted: impl Fn(Service, &[u8]) -> bool,
    ) -> (Vec<DeviceId>, Option<usize>) {
        let end = self.end() as usize;
        let to = from.saturating_add(places).min(end);
        let found = (from..to)
            .filter_map(|place| {
                let slot = at(&self.segments, Place::try_from(place).ok()?);
                slot.record.as_ref()?;
                let view = slot.view();
                wanted(slot.service, view.token).then(|| slot.device())
            })
            .collect();
        (found, (to < end).then_some(to))
    }

    pub fn contains(&self, account: &AccountId) -> bool {
        self.head_of(account) != NOWHERE
    }

    /// In no order.
    pub fn accounts(&self) -> impl Iterator<Item = AccountId> {
        self.heads
            .iter()
            .map(|head| AccountId::new(*self.slot(*head).account()))
    }

    pub fn account_count(&self) -> usize {
        self.heads.len()
    }

    /// Devices.
    pub const fn len(&self) -> usize {
        self.devices
    }

    pub const fn is_empty(&self) -> bool {
        self.devices == 0
    }

    /// Looks at the next `places` places and removes the devices whose signature ran out at `now` (Unix seconds). Says which, and
    /// whether the account is gone.
    pub fn expire(&mut self, now: i64, places: usize) -> Vec<(DeviceId, Removed)> {
        let limit = seconds(now.saturating_sub(SIGNATURE_LIFETIME_SECONDS));
        let end = self.end();
        let mut removed = Vec::new();
        for _ in 0..places.min(end as usize) {
            self.cursor = if self.cursor >= end { 0 } else { self.cursor };
            let place = self.cursor;
            self.cursor += 1;
            let slot = self.slot(place);
            if slot.record.is_some() && slot.sig_ts <= limit {
                let device = slot.device();
                removed.push((device, self.unlink(place)));
            }
        }
        removed
    }

    /// What is taken on the heap, bytes, without what the allocator adds.
    pub fn memory(&self) -> usize {
        let slots = self.segments.iter().flatten();
        let records: usize = slots
            .filter_map(|slot| slot.record.as_ref())
            .map(|record| record.expose().len())
            .sum();
        self.segments.len() * SEGMENT * size_of::<Slot>() + self.heads.allocation_size() + records
    }

    fn renew(&mut self, place: Place, subscription: &Subscription) -> Upserted {
        let slot = self.slot(place);
        let watch_changed = *self.namespaces.set(slot.namespaces) != subscription.namespaces
            || slot.want_data != subscription.want_data;
        let view = slot.view();
        let key_changed =
            view.enc_key != subscription.enc_key.expose() || view.token != subscription.device.token.expose();
        let old = slot.namespaces;
        let namespaces = self.namespaces.take(&subscription.namespaces);
        self.namespaces.give_back(old);
        let slot = self.slot_mut(place);
        slot.sig_ts = seconds(subscription.sig_ts);
        slot.namespaces = namespaces;
        slot.want_data = subscription.want_data;
        if key_changed {
            let device = &subscription.device;
            slot.record = Some(record(&device.account, &subscription.enc_key, &device.token));
        }
        if watch_changed || key_changed {
            Upserted::Changed { watch_changed }
        } else {
            Upserted::Renewed
        }
    }

    fn head_of(&self, account: &AccountId) -> Place {
        let hash = self.seed.hash_bytes(account.expose());
        self.heads
            .find(hash, |place| self.slot(*place).account() == account.expose())
            .copied()
            .unwrap_or(NOWHERE)
    }

    fn chain(&self, head: Place) -> Chain<'_> {
        Chain {
            segments: &self.segments,
            next: head,
        }
    }

    /// Takes a device out of its account's chain and wipes it.
    fn unlink(&mut self, place: Place) -> Removed {
        let account = *self.slot(place).account();
        let next = self.slot(place).next;
        let head = self.head_of(&AccountId::new(account));
        let removed = if head != place {
            let before = self
                .chain(head)
                .find(|(_, slot)| slot.next == place)
                .map(|(before, _)| before);
            if let Some(before) = before {
                self.slot_mut(before).next = next;
            }
            Removed::Device
        } else {
            let hash = self.seed.hash_bytes(&account);
            let entry = self.heads.find_entry(hash, |head| *head == place);
            match (entry, next) {
                (Ok(entry), NOWHERE) => {
                    entry.remove();
                    Removed::LastDevice
                }
                (Ok(mut entry), next) => {
                    *entry.get_mut() = next;
                    Removed::Device
                }
                (Err(_), _) => Removed::NotThere,
            }
        };
        let namespaces = self.slot(place).namespaces;
        self.namespaces.give_back(namespaces);
        let free = self.free;
        let slot = self.slot_mut(place);
        slot.record = None;
        slot.next = free;
        self.free = place;
        self.devices -= 1;
        removed
    }

    fn put(&mut self, slot: Slot) -> Place {
        self.devices += 1;
        if self.free != NOWHERE {
            let place = self.free;
            self.free = self.slot(place).next;
            *self.slot_mut(place) = slot;
            return place;
        }
        let place = self.end();
        match self.segments.last_mut() {
            Some(segment) if segment.len() < SEGMENT => segment.push(slot),
            _ => {
                let mut segment = Vec::with_capacity(SEGMENT);
                segment.push(slot);
                self.segments.push(segment);
            }
        }
        place
    }

    fn end(&self) -> Place {
        let last = self.segments.last().map_or(0, Vec::len);
        let end = self.segments.len().saturating_sub(1) * SEGMENT + last;
        Place::try_from(end).expect("four thousand million devices do not fit in memory")
    }

    fn slot(&self, place: Place) -> &Slot {
        at(&self.segments, place)
    }

    fn slot_mut(&mut self, place: Place) -> &mut Slot {
        let place = place as usize;
        &mut self.segments[place / SEGMENT][place % SEGMENT]
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

/// Where a device is in the segments.
type Place = u32;

const NOWHERE: Place = Place::MAX;

/// Slots in one segment: 128 KiB.
const SEGMENT: usize = 4096;

/// One device: 32 bytes here and one allocation.
struct Slot {
    /// account (33) ‖ key (32) ‖ token: one allocation, wiped when it ends. `None` = the place is free.
    record: Option<Secret<Box<[u8]>>>,
    /// The account's next device, or the next free place.
    next: Place,
    /// Unix seconds, up to the year 2106.
    sig_ts: u32,
    namespaces: Interned,
    service: Service,
    want_data: bool,
}

impl Slot {
    fn parts(&self) -> (&[u8; 33], &[u8; 32], &[u8]) {
        self.record
            .as_ref()
            .and_then(|record| {
                let (account, rest) = record.expose().split_first_chunk()?;
                let (key, token) = rest.split_first_chunk()?;
                Some((account, key, token))
            })
            .expect("places in a chain are taken, and `record` writes account and key first")
    }

    fn account(&self) -> &[u8; 33] {
        self.parts().0
    }

    fn view(&self) -> DeviceView<'_> {
        let (_, enc_key, token) = self.parts();
        DeviceView {
            service: self.service,
            token,
            enc_key,
            want_data: self.want_data,
        }
    }

    fn device(&self) -> DeviceId {
        DeviceId {
            account: AccountId::new(*self.account()),
            service: self.service,
            token: DeviceToken::new(self.view().token),
        }
    }

    fn is(&self, device: &DeviceId) -> bool {
        self.service == device.service
            && DeviceToken::identity_of(self.service, self.view().token) == device.token.identity(self.service)
    }
}

fn record(account: &AccountId, enc_key: &Secret<[u8; 32]>, token: &DeviceToken) -> Secret<Box<[u8]>> {
    Secret::new(
        [account.expose().as_slice(), enc_key.expose(), token.expose()]
            .concat()
            .into_boxed_slice(),
    )
}

fn seconds(unix: i64) -> u32 {
    u32::try_from(unix.max(0)).unwrap_or(u32::MAX)
}

fn at(segments: &[Vec<Slot>], place: Place) -> &Slot {
    let place = place as usize;
    &segments[place / SEGMENT][place % SEGMENT]
}

struct Chain<'a> {
    segments: &'a [Vec<Slot>],
    next: Place,
}

impl<'a> Iterator for Chain<'a> {
    type Item = (Place, &'a Slot);

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.next;
        (place != NOWHERE).then(|| {
            let slot = at(self.segments, place);
            self.next = slot.next;
            (place, slot)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{MessageHash, Namespace};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_slot_takes_32_bytes() {
        assert_eq!(size_of::<Slot>(), 32);
    }

    #[test]
    fn a_message_concerns_the_devices_that_asked_for_its_namespace() {
        let mut index = index();
        index.upsert(&subscription(1, b"one", &[0, 1], NOW));
        index.upsert(&subscription(1, b"two", &[1], NOW));
        index.upsert(&subscription(1, b"three", &[-11], NOW));
        index.upsert(&subscription(2, b"four", &[1], NOW));
        let tokens = |account, namespace| {
            let event = event(account, namespace);
            let mut tokens: Vec<_> = index.fan_out(&event).map(|device| device.token.to_vec()).collect();
            tokens.sort();
            tokens
        };
        assert_eq!(tokens(1, 0), [b"one"]);
        assert_eq!(tokens(1, 1), [b"one", b"two"]);
        assert_eq!(tokens(1, -11), [b"three".as_slice()]);
        assert_eq!(tokens(2, 1), [b"four".as_slice()]);
        assert!(tokens(2, 0).is_empty() && tokens(3, 0).is_empty());
    }

    #[test]
    fn a_view_has_the_key_and_the_wish_of_its_device() {
        let mut index = index();
        let wish = Subscription {
            want_data: false,
            ..subscription(1, b"one", &[0], NOW)
        };
        index.upsert(&wish);
        let event = event(1, 0);
        let device = index.fan_out(&event).next().unwrap();
        assert_eq!(
            (device.service, device.enc_key, device.want_data),
            (Service::Apns, &[9; 32], false)
        );
    }

    #[test]
    fn one_token_on_one_account_and_service_is_one_device() {
        let mut index = index();
        assert_eq!(index.upsert(&subscription(1, b"one", &[0], NOW)), Upserted::Added);
        assert_eq!(index.upsert(&subscription(1, b"one", &[0], NOW)), Upserted::Renewed);
        let mut other_service = subscription(1, b"one", &[0], NOW);
        other_service.device.service = Service::Firebase;
        assert_eq!(index.upsert(&other_service), Upserted::Added);
        assert_eq!((index.len(), index.account_count()), (2, 1));
    }

    #[test]
    fn a_renewal_says_what_the_nodes_must_learn() {
        let mut index = index();
        index.upsert(&subscription(1, b"one", &[0], NOW));
        assert_eq!(index.upsert(&subscription(1, b"one", &[0], NOW + 1)), Upserted::Renewed);
        let namespaces = subscription(1, b"one", &[0, 1], NOW + 2);
        assert_eq!(index.upsert(&namespaces), Upserted::Changed { watch_changed: true });
        let without_data = Subscription {
            want_data: false,
            ..subscription(1, b"one", &[0, 1], NOW + 3)
        };
        assert_eq!(index.upsert(&without_data), Upserted::Changed { watch_changed: true });
        let key = Subscription {
            enc_key: Secret::new([8; 32]),
            is_bound: false,
            want_data: false,
            ..subscription(1, b"one", &[0, 1], NOW + 4)
        };
        assert_eq!(index.upsert(&key), Upserted::Changed { watch_changed: false });
        assert_eq!(index.fan_out(&event(1, 1)).next().unwrap().enc_key, &[8; 32]);
    }

    #[test]
    fn a_row_read_at_the_start_never_replaces_what_came_with_a_request() {
        let mut index = index();
        index.upsert(&subscription(1, b"one", &[0], NOW));
        // Whenever it was signed: it may have been by a clock that was ahead.
        for sig_ts in [NOW - 1, NOW, NOW + 1] {
            assert_eq!(index.load(&subscription(1, b"one", &[5], sig_ts)), Upserted::Kept);
        }
        assert_eq!(index.fan_out(&event(1, 0)).count(), 1);
        assert_eq!(index.fan_out(&event(1, 5)).count(), 0);
        // A request counts as the store says.
        let answer = index.upsert(&subscription(1, b"one", &[5], NOW - 1));
        assert_eq!(answer, Upserted::Changed { watch_changed: true });
        assert_eq!(index.fan_out(&event(1, 5)).count(), 1);
    }

    #[test]
    fn removing_says_whether_the_account_is_gone() {
        let mut index = index();
        let (one, two, three) = (
            subscription(1, b"one", &[0], NOW),
            subscription(1, b"two", &[0], NOW),
            subscription(1, b"three", &[0], NOW),
        );
        for each in [&one, &two, &three] {
            index.upsert(each);
        }
        assert_eq!(index.devices(&one.device.account).count(), 3);
        assert_eq!(index.remove(&one.device), Removed::Device);
        assert_eq!(index.remove(&one.device), Removed::NotThere);
        assert_eq!(index.remove(&three.device), Removed::Device);
        assert!(index.contains(&one.device.account));
        assert_eq!(index.remove(&two.device), Removed::LastDevice);
        assert!(!index.contains(&one.device.account) && index.is_empty());
        assert_eq!(index.accounts().count(), 0);
    }

    #[test]
    fn signatures_run_out_after_fourteen_days_a_slice_at_a_time() {
        let mut index = index();
        for account in 0..100 {
            index.upsert(&subscription(account, b"one", &[0], NOW + i64::from(account) % 2));
        }
        index.upsert(&subscription(0, b"two", &[0], NOW + 10));
        let end = NOW + SIGNATURE_LIFETIME_SECONDS;
        assert!(index.expire(end - 1, 1000).is_empty());
        assert_eq!(index.expire(end, 10).len(), 5);
        assert_eq!(index.expire(end, 1000).len(), 45);
        assert_eq!((index.len(), index.account_count()), (51, 51));
        let rest = index.expire(end + 1, 1000);
        assert_eq!((rest.len(), index.len()), (50, 1));
        assert!(rest.iter().all(|(_, removed)| *removed == Removed::LastDevice));
    }

    #[test]
    fn an_account_has_only_so_many_devices() {
        let mut index = index();
        for number in 0..MAX_DEVICES {
            assert_eq!(
                index.upsert(&subscription(1, number.to_string().as_bytes(), &[0], NOW)),
                Upserted::Added
            );
        }
        assert_eq!(index.upsert(&subscription(1, b"one more", &[0], NOW)), Upserted::Full);
        assert_eq!(index.upsert(&subscription(1, b"7", &[0], NOW)), Upserted::Renewed);
        assert_eq!(index.len(), MAX_DEVICES);
    }

    #[test]
    fn places_and_namespace_sets_are_used_again() {
        let mut index = index();
        for round in 0..10i16 {
            for account in 0..50 {
                index.upsert(&subscription(account, b"one", &[round], NOW));
            }
            for account in 0..50 {
                index.remove(&subscription(account, b"one", &[round], NOW).device);
            }
        }
        assert_eq!(index.end(), 50);
        assert_eq!(index.namespaces.len(), 0);
    }

    #[test]
    fn a_round_through_the_index_finds_every_account_of_a_token() {
        let mut index = index();
        for number in 0..50 {
            index.upsert(&subscription(
                number,
                if number % 10 == 3 { b"dead" } else { b"good" },
                &[0],
                NOW,
            ));
        }
        index.remove(&subscription(3, b"dead", &[0], NOW).device);
        let (mut found, mut from, mut rounds) = (Vec::new(), Some(0), 0);
        while let Some(place) = from {
            let (devices, next) =
                index.devices_from(place, 7, |service, token| service == Service::Apns && token == b"dead");
            found.extend(devices.into_iter().map(|device| device.account));
            from = next;
            rounds += 1;
        }
        assert_eq!(found, [13, 23, 33, 43].map(account));
        assert_eq!(rounds, 8);
        assert!(
            Index::new(Seed::new([3; 16]))
                .devices_from(0, 7, |_, _| true)
                .0
                .is_empty()
        );
    }

    #[test]
    fn an_index_prints_no_device() {
        let mut index = index();
        index.upsert(&subscription(1, b"secret", &[0], NOW));
        assert_eq!(format!("{index:?}"), "Index { devices: 1, .. }");
    }

    proptest! {
        #[test]
        fn the_index_holds_what_a_plain_map_holds(
            steps in prop::collection::vec((0u8..6, 0u8..4, 0i16..3, 0i64..4, 0u8..5), 1..200)
        ) {
            let mut index = index();
            let mut plain: BTreeMap<(u8, u8), (i16, i64)> = BTreeMap::new();
            for (account, token, namespace, age, action) in steps {
                let signed = NOW + age;
                let wish = subscription(account, &[token], &[namespace], signed);
                match action {
                    0 => {
                        let expected = match plain.remove(&(account, token)) {
                            None => Removed::NotThere,
                            Some(_) if plain.keys().any(|(other, _)| *other == account) => Removed::Device,
                            Some(_) => Removed::LastDevice,
                        };
                        prop_assert_eq!(index.remove(&wish.device), expected);
                    }
                    1 => {
                        let limit = NOW + age - 2;
                        index.expire(limit + SIGNATURE_LIFETIME_SECONDS, 1000);
                        plain.retain(|_, (_, signed)| *signed > limit);
                    }
                    _ => {
                        index.upsert(&wish);
                        plain.insert((account, token), (namespace, signed));
                    }
                }
                prop_assert_eq!(index.len(), plain.len());
            }
            for account in 0..6 {
                for namespace in 0..3 {
                    let event = event(account, namespace);
                    let mut found: Vec<u8> = index.fan_out(&event).map(|device| device.token[0]).collect();
                    found.sort_unstable();
                    let expected: Vec<u8> = plain
                        .iter()
                        .filter(|((owner, _), (wanted, _))| *owner == account && *wanted == namespace)
                        .map(|((_, token), _)| *token)
                        .collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    fn index() -> Index {
        Index::new(Seed::new([3; 16]))
    }

    fn account(number: u8) -> AccountId {
        let mut bytes = [5; 33];
        bytes[32] = number;
        AccountId::new(bytes)
    }

    fn subscription(number: u8, token: &[u8], namespaces: &[i16], sig_ts: i64) -> Subscription {
        let device = DeviceId {
            account: account(number),
            service: Service::Apns,
            token: DeviceToken::new(token),
        };
        let namespaces = namespaces
            .iter()
            .map(|namespace| Namespace(*namespace))
            .collect::<Vec<_>>();
        Subscription {
            device,
            session_ed25519: None,
            subaccount: None,
            namespaces: NamespaceSet::new(namespaces).unwrap(),
            want_data: true,
            sig_ts,
            signature: [0; 64],
            enc_key: Secret::new([9; 32]),
            is_bound: false,
        }
    }

    fn event(number: u8, namespace: i16) -> MessageEvent {
        MessageEvent {
            account: account(number),
            hash: MessageHash::from_slice(&[b'h'; 43]).unwrap(),
            namespace: Namespace(namespace),
            timestamp_ms: 0,
            expiry_ms: 0,
            body: None,
        }
    }
}
