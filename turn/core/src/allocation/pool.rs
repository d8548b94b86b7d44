//! What all shards share when an allocation begins or ends: relay ports, reservations, quotas.
//!
//! In: wishes behind a valid integrity. Out: a port nobody can guess, or a refusal. Never: on the path of a packet; its lock is taken
//! only to begin and to end an allocation.

use super::QuotaFault;
use crate::auth::UserId;
use crate::peers::RelayTable;
use crate::time::{Now, Random, Seconds};
use crate::wire::RelayAddr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A client that asked for a pair has this long to ask for the second port (RFC 8656 §7.2: at least 30 s).
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(60);
/// Of the ports of one relay address, one in so many may be reserved, on all addresses together, and always one: a reservation outlives
/// its allocation, so no quota counts it.
const PORTS_PER_RESERVATION: usize = 16;

/// Which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWish {
    Any,
    Even,
    /// An even one, and the next one kept for later.
    Pair,
}

/// A port given out, with the token of its neighbour if that was wished.
#[derive(Clone, Copy)]
pub struct Taken {
    pub relay: RelayAddr,
    pub token: Option<[u8; 8]>,
}

/// Shared by all shards.
pub struct Pool {
    relays: RelayTable,
    state: Mutex<State>,
}

struct State {
    /// By the number of the relay address.
    free: Vec<PortSet>,
    /// Ports of ended allocations, soonest first: a late packet for the old client must not reach a new one.
    cooling: VecDeque<(Seconds, RelayAddr)>,
    reservations: BTreeMap<[u8; 8], Reservation>,
    /// When each of them ends.
    reservation_ends: BTreeSet<(Seconds, [u8; 8])>,
    total: u32,
    by_prefix: BTreeMap<u64, u32>,
}

struct Reservation {
    relay: RelayAddr,
    user: UserId,
    until: Seconds,
}

impl Pool {
    pub fn new(relays: RelayTable) -> Self {
        let (first, _) = relays.ports();
        let ports = PortSet::full(first, relays.ports_per_address());
        let state = State {
            free: vec![ports; relays.len()],
            cooling: VecDeque::new(),
            reservations: BTreeMap::new(),
            reservation_ends: BTreeSet::new(),
            total: 0,
            by_prefix: BTreeMap::new(),
        };
        Self {
            relays,
            state: Mutex::new(state),
        }
    }

    /// Counts one more allocation of a source prefix (as its keyed hash), unless a quota is reached.
    pub fn enter(&self, prefix: u64, most: u32, most_per_prefix: u32) -> Result<(), QuotaFault> {
        let mut state = self.lock();
        if state.total >= most {
            return Err(QuotaFault::Total);
        }
        let of_prefix = state.by_prefix.entry(prefix).or_default();
        if *of_prefix >= most_per_prefix {
            if *of_prefix == 0 {
                state.by_prefix.remove(&prefix);
            }
            return Err(QuotaFault::Prefix);
        }
        *of_prefix += 1;
        state.total += 1;
        Ok(())
    }

    pub fn leave(&self, prefix: u64) {
        let mut state = self.lock();
        state.total = state.total.saturating_sub(1);
        if let Some(of_prefix) = state.by_prefix.get_mut(&prefix) {
            *of_prefix -= 1;
            if *of_prefix == 0 {
                state.by_prefix.remove(&prefix);
            }
        }
    }

    /// A random free port of that family; where all others are taken, the one that has rested longest: who begins and ends allocations
    /// as fast as they can must not leave the others without. `None`: there is none.
    pub fn take(&self, is_v6: bool, wish: PortWish, user: UserId, now: Now, random: Random<'_>) -> Option<Taken> {
        let mut state = self.lock();
        state.settle(now.seconds());
        let addresses: Vec<u8> = self.relays.of_family(is_v6).collect();
        let begin = below(random, addresses.len());
        if !addresses.iter().any(|address| state.has(*address, wish)) {
            state.wake_rested(&addresses, wish);
        }
        for address in addresses.iter().cycle().skip(begin).take(addresses.len()).copied() {
            let Some(port) = state
                .free
                .get(usize::from(address))
                .and_then(|free| free.pick(wish, random))
            else {
                continue;
            };
            let relay = RelayAddr { address, port };
            state.mark(relay, false);
            let mut token = None;
            if wish == PortWish::Pair {
                let mut bytes = [0; 8];
                random(&mut bytes);
                let relay = RelayAddr {
                    address,
                    port: port.saturating_add(1),
                };
                let reservation = Reservation {
                    relay,
                    user,
                    until: now.after(RESERVATION_LIFETIME),
                };
                // A token met twice is one in 2^64; the older one wins and this port stays free.
                if state.reservations.contains_key(&bytes) {
                    state.mark(RelayAddr { address, port }, true);
                    return None;
                }
                // Whoever asks for a pair claims its second port within a round trip or two, so the longest standing reservation is most
                // likely nobody's any more. To refuse the new one would let who asks for that many a minute keep pairs from all others;
                // to end one before its client claims it takes a whole set of new ones within that round trip. Only then are the 30 s of
                // RFC 8656 §7.2 not held, and its client hears 508, upon which it may ask without the token.
                if state.reservations.len() >= (self.relays.ports_per_address() / PORTS_PER_RESERVATION).max(1) {
                    state.end_first_reservation();
                }
                state.mark(relay, false);
                state.reservation_ends.insert((reservation.until, bytes));
                state.reservations.insert(bytes, reservation);
                token = Some(bytes);
            }
            return Some(Taken { relay, token });
        }
        None
    }

    /// The port behind a token, once, for the user who reserved it.
    pub fn claim(&self, token: &[u8; 8], user: UserId, now: Now) -> Option<RelayAddr> {
        let mut state = self.lock();
        state.settle(now.seconds());
        if state.reservations.get(token)?.user != user {
            return None;
        }
        let reservation = state.reservations.remove(token)?;
        state.reservation_ends.remove(&(reservation.until, *token));
        Some(reservation.relay)
    }

    /// After its cool-down the port is free again.
    pub fn give_back(&self, relay: RelayAddr, free_at: Seconds) {
        let mut state = self.lock();
        let at = state.cooling.partition_point(|(other, _)| *other <= free_at);
        state.cooling.insert(at, (free_at, relay));
    }

    pub fn allocations(&self) -> u32 {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters and bits are whole between any two statements: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Frees what has cooled down and what nobody claimed.
    fn settle(&mut self, now: Seconds) {
        while self.cooling.front().is_some_and(|(free_at, _)| *free_at <= now) {
            if let Some((_, relay)) = self.cooling.pop_front() {
                self.mark(relay, true);
            }
        }
        while self.reservation_ends.first().is_some_and(|(until, _)| *until <= now) {
            self.end_first_reservation();
        }
    }

    /// Its port was open for nobody: it need not rest.
    fn end_first_reservation(&mut self) {
        if let Some((_, token)) = self.reservation_ends.pop_first()
            && let Some(reservation) = self.reservations.remove(&token)
        {
            self.mark(reservation.relay, true);
        }
    }

    fn mark(&mut self, relay: RelayAddr, is_free: bool) {
        if let Some(ports) = self.free.get_mut(usize::from(relay.address)) {
            ports.mark(relay.port, is_free);
        }
    }

    fn has(&self, address: u8, wish: PortWish) -> bool {
        self.free.get(usize::from(address)).is_some_and(|ports| ports.has(wish))
    }

    /// Ends the rest of the port, or the two, that rested longest of those that would do.
    fn wake_rested(&mut self, addresses: &[u8], wish: PortWish) {
        let at = self.cooling.iter().position(|(_, relay)| {
            let ports = self.free.get(usize::from(relay.address));
            addresses.contains(&relay.address) && ports.is_some_and(|ports| ports.would_suit(relay.port, wish))
        });
        if let Some((_, relay)) = at.and_then(|at| self.cooling.remove(at)) {
            self.mark(relay, true);
        }
    }
}

/// A bitmap of free ports.
#[derive(Clone)]
struct PortSet {
    first: u16,
    ports: usize,
    bits: Vec<u64>,
    free: usize,
}

impl PortSet {
    fn full(first: u16, ports: usize) -> Self {
        let mut set = Self {
            first,
            ports,
            bits: vec![0; ports.div_ceil(64)],
            free: 0,
        };
        for place in 0..ports {
            set.mark(first.saturating_add(place as u16), true);
        }
        set
    }

    fn mark(&mut self, port: u16, is_free: bool) {
        let place = usize::from(port.wrapping_sub(self.first));
        if place >= self.ports {
            return;
        }
        if let Some(word) = self.bits.get_mut(place / 64) {
            let bit = 1 << (place % 64);
            match (*word & bit == 0, is_free) {
                (true, true) => {
                    *word |= bit;
                    self.free += 1;
                }
                (false, false) => {
                    *word &= !bit;
                    self.free -= 1;
                }
                _ => {}
            }
        }
    }

    fn is_free(&self, place: usize) -> bool {
        place < self.ports
            && self
                .bits
                .get(place / 64)
                .is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    fn suits(&self, place: usize, wish: PortWish) -> bool {
        let is_even = (usize::from(self.first) + place).is_multiple_of(2);
        self.is_free(place)
            && match wish {
                PortWish::Any => true,
                PortWish::Even => is_even,
                PortWish::Pair => is_even && self.is_free(place + 1),
            }
    }

    fn has(&self, wish: PortWish) -> bool {
        self.free > 0 && (wish == PortWish::Any || (0..self.ports).any(|place| self.suits(place, wish)))
    }

    /// Whether a wish that cannot be met could be, if this port were free.
    fn would_suit(&self, port: u16, wish: PortWish) -> bool {
        let is_even = port.is_multiple_of(2);
        let place = usize::from(port.wrapping_sub(self.first));
        match wish {
            PortWish::Any => true,
            PortWish::Even => is_even,
            PortWish::Pair if is_even => self.is_free(place + 1),
            PortWish::Pair => place.checked_sub(1).is_some_and(|before| self.is_free(before)),
        }
    }

    /// Draws until a port suits; when nearly all are taken, the first one behind the last draw.
    fn pick(&self, wish: PortWish, random: Random<'_>) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        const DRAWS: usize = 32;
        let mut last = 0;
        for _ in 0..DRAWS {
            last = below(random, self.ports);
            if self.suits(last, wish) {
                return self.port(last);
            }
        }
        (last..self.ports)
            .chain(0..last)
            .find(|place| self.suits(*place, wish))
            .and_then(|place| self.port(place))
    }

    fn port(&self, place: usize) -> Option<u16> {
        self.first.checked_add(u16::try_from(place).ok()?)
    }
}

/// A number below the bound. 64 random bits make its bias less than 2^-47 for any count of ports.
fn below(random: Random<'_>, bound: usize) -> usize {
    let mut bytes = [0; 8];
    random(&mut bytes);
    (u64::from_le_bytes(bytes) % (bound.max(1) as u64)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::RelayAddress;

    const NOW: Now = Now {
        steady: Duration::ZERO,
        unix_seconds: 0,
    };

    fn pool(ports: (u16, u16)) -> Pool {
        let ip = "9.9.9.9".parse().unwrap();
        Pool::new(
            RelayTable::new(
                vec![RelayAddress {
                    bind: ip,
                    advertised: ip,
                }],
                ports,
            )
            .unwrap(),
        )
    }

    fn user(name: &[u8]) -> UserId {
        UserId::for_tests(name)
    }

    /// Not random at all, but spread.
    fn generator() -> impl FnMut(&mut [u8]) {
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        move |bytes| {
            for byte in bytes {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 33) as u8;
            }
        }
    }

    fn at(seconds: u64) -> Now {
        Now {
            steady: Duration::from_secs(seconds),
            ..NOW
        }
    }

    #[test]
    fn every_port_is_given_once_and_never_in_order() {
        let pool = pool((50_000, 50_999));
        let mut random = generator();
        let ports: Vec<u16> = (0..1000)
            .map(|_| {
                pool.take(false, PortWish::Any, user(b"a"), NOW, &mut random)
                    .unwrap()
                    .relay
                    .port
            })
            .collect();
        assert!(pool.take(false, PortWish::Any, user(b"a"), NOW, &mut random).is_none());
        assert!(pool.take(true, PortWish::Any, user(b"a"), NOW, &mut random).is_none());
        let mut sorted = ports.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (50_000..=50_999).collect::<Vec<_>>());
        let in_order = ports
            .windows(2)
            .filter(|pair| pair[1] == pair[0].wrapping_add(1))
            .count();
        assert!(in_order < 50, "{in_order}");
    }

    #[test]
    fn a_port_cools_down_before_it_is_given_again() {
        let pool = pool((50_000, 50_049));
        let mut random = generator();
        let mut take = |now| pool.take(false, PortWish::Any, user(b"a"), now, &mut random);
        let relay = take(NOW).unwrap().relay;
        pool.give_back(relay, at(10).after(Duration::from_secs(60)));
        for second in 11..60 {
            assert_ne!(take(at(second)).unwrap().relay, relay);
        }
        assert_eq!(take(at(70)).unwrap().relay, relay);
        assert!(take(at(70)).is_none());
    }

    #[test]
    fn who_begins_and_ends_all_the_time_leaves_no_other_without_a_port() {
        let pool = pool((50_000, 50_003));
        let mut random = generator();
        let mut take = |wish, now| pool.take(false, wish, user(b"a"), now, &mut random);
        let rest = |relay, now: Now| pool.give_back(relay, now.after(Duration::from_secs(60)));
        let taken: Vec<RelayAddr> = (0..4).map(|_| take(PortWish::Any, NOW).unwrap().relay).collect();
        for (second, relay) in (1..).zip(&taken) {
            rest(*relay, at(second));
        }
        // The longest rested first.
        for relay in &taken {
            assert_eq!(take(PortWish::Any, at(5)).unwrap().relay, *relay);
        }
        assert!(take(PortWish::Any, at(5)).is_none());
        for port in [50_003, 50_001, 50_002] {
            rest(RelayAddr { address: 0, port }, at(6));
        }
        assert_eq!(take(PortWish::Even, at(7)).unwrap().relay.port, 50_002);
        assert!(take(PortWish::Even, at(7)).is_none());
        assert!(take(PortWish::Pair, at(7)).is_none());
    }

    #[test]
    fn a_pair_is_even_and_its_token_is_good_once_for_its_user() {
        let pool = pool((50_001, 50_004));
        let mut random = generator();
        let taken = pool.take(false, PortWish::Pair, user(b"a"), NOW, &mut random).unwrap();
        assert_eq!(taken.relay.port, 50_002);
        let token = taken.token.unwrap();
        assert!(pool.claim(&token, user(b"b"), NOW).is_none());
        assert!(pool.claim(&[0; 8], user(b"a"), NOW).is_none());
        assert_eq!(pool.claim(&token, user(b"a"), NOW).unwrap().port, 50_003);
        assert!(pool.claim(&token, user(b"a"), NOW).is_none());
        // 50001 and 50004 are left: no pair, one even port.
        assert!(pool.take(false, PortWish::Pair, user(b"a"), NOW, &mut random).is_none());
        assert_eq!(
            pool.take(false, PortWish::Even, user(b"a"), NOW, &mut random)
                .unwrap()
                .relay
                .port,
            50_004
        );
        assert!(pool.take(false, PortWish::Even, user(b"a"), NOW, &mut random).is_none());
    }

    #[test]
    fn an_unclaimed_reservation_ends_and_its_port_is_free_again() {
        let pool = pool((50_000, 50_001));
        let mut random = generator();
        let token = pool
            .take(false, PortWish::Pair, user(b"a"), NOW, &mut random)
            .unwrap()
            .token
            .unwrap();
        assert!(
            pool.take(false, PortWish::Any, user(b"a"), at(59), &mut random)
                .is_none()
        );
        assert_eq!(
            pool.take(false, PortWish::Any, user(b"a"), at(60), &mut random)
                .unwrap()
                .relay
                .port,
            50_001
        );
        assert!(pool.claim(&token, user(b"a"), at(60)).is_none());
    }

    #[test]
    fn of_too_many_reservations_the_longest_standing_ends() {
        // Four may stand.
        let pool = pool((50_000, 50_063));
        let mut random = generator();
        let mut pair = |second| {
            pool.take(false, PortWish::Pair, user(b"a"), at(second), &mut random)
                .unwrap()
        };
        let [first, second, third, fourth, fifth] = [1, 2, 3, 4, 5].map(|second| pair(second).token.unwrap());
        let is_good = |token: &[u8; 8]| pool.claim(token, user(b"a"), at(5)).is_some();
        assert!(!is_good(&first));
        assert!(is_good(&third));
        // One is claimed, so there is room for one.
        let sixth = pair(5).token.unwrap();
        assert!(
            [&second, &fourth, &fifth, &sixth]
                .map(is_good)
                .into_iter()
                .all(|good| good)
        );
    }

    #[test]
    fn where_one_reservation_may_stand_the_newest_does() {
        let pool = pool((50_000, 50_009));
        let mut random = generator();
        for _ in 0..5 {
            let taken = pool.take(false, PortWish::Pair, user(b"a"), NOW, &mut random).unwrap();
            let token = taken.token.unwrap();
            assert_eq!(pool.lock().reservations.keys().collect::<Vec<_>>(), [&token]);
        }
    }

    #[test]
    fn quotas_count_prefixes_and_all() {
        let pool = pool((50_000, 50_001));
        assert_eq!(pool.enter(1, 3, 2), Ok(()));
        assert_eq!(pool.enter(1, 3, 2), Ok(()));
        assert_eq!(pool.enter(1, 3, 2), Err(QuotaFault::Prefix));
        assert_eq!(pool.enter(2, 3, 2), Ok(()));
        assert_eq!(pool.enter(3, 3, 2), Err(QuotaFault::Total));
        pool.leave(1);
        assert_eq!(pool.enter(1, 3, 2), Ok(()));
        assert_eq!(pool.allocations(), 3);
        assert_eq!(pool.enter(9, 9, 0), Err(QuotaFault::Prefix));
    }
}
