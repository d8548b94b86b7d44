//! Connectivity checks that were faster than their permission.
//!
//! In: an ICE check of one client of this server for another, which has not permitted it yet; later, the permission. Out: the check,
//! once. Never: a packet that came from outside, anything but a Binding request, more than one for a relayed address, or for longer
//! than [`HELD`].
//!
//! Both ends of a call learn each other's addresses at the same time, and then one sends its first check while the other asks for its
//! permission. Whoever comes a moment too early would repeat it after 50 ms at best (RFC 8445 §14.2, and browsers), and so much longer
//! would the call take to stand.

use crate::time::nanoseconds;
use crate::wire::{Class, Message, Method, PeerAddr, RelayAddr};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroize;

/// Then its sender asks again (RFC 8489 §6.2.1: 500 ms) or has long done so.
pub const HELD: Duration = Duration::from_millis(500);
/// Bytes of a check, at most: with a name of both ends' and an integrity it takes about 100.
pub const LONGEST: usize = 192;
/// Checks at once. Two whose ports meet on one place: the newer one stays.
const PLACES: usize = 256;

/// Shared by all shards; nothing of it is on the path of a packet that may pass.
pub struct Early {
    places: Mutex<Vec<Option<Box<Check>>>>,
    /// Nanoseconds of steady time at which something is to be forgotten; [`NEVER`] while nothing is held.
    next: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// What became of a packet that may not pass yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// No check, or too long: it does not wait.
    Refused,
    Waits,
    /// It waits, and one that waited before it is given up.
    Replaces,
}

/// One check, overwritten when it is gone.
pub struct Check {
    to: RelayAddr,
    /// The relayed address of its sender, as clients know it.
    pub source: PeerAddr,
    until: Duration,
    bytes: [u8; LONGEST],
    length: usize,
}

impl Check {
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.source.zeroize();
        self.bytes.zeroize();
    }
}

impl Default for Early {
    fn default() -> Self {
        let mut places = Vec::new();
        places.resize_with(PLACES, || None);
        Self {
            places: Mutex::new(places),
            next: AtomicU64::new(NEVER),
        }
    }
}

impl Early {
    /// Holds what is a check, in the place of one that was held for the same relayed address. The permission may have come since the
    /// caller looked for it, and found nothing that waits: so the caller looks once more.
    pub fn hold(&self, to: RelayAddr, source: PeerAddr, packet: &[u8], now: Duration) -> Hold {
        let is_check = Message::parse(packet)
            .is_ok_and(|message| (message.method, message.class) == (Method::Binding, Class::Request));
        if !is_check || packet.len() > LONGEST {
            return Hold::Refused;
        }
        let mut check = Box::new(Check {
            to,
            source,
            until: now.saturating_add(HELD),
            bytes: [0; LONGEST],
            length: packet.len(),
        });
        check.bytes.iter_mut().zip(packet).for_each(|(to, from)| *to = *from);
        let until = nanoseconds(check.until);
        let mut places = self.lock();
        let before = places.get_mut(place_of(to)).and_then(|place| place.replace(check));
        self.next.fetch_min(until, Ordering::Relaxed);
        // With the one in `take`: either who permits finds that something waits, or who looks now finds the permission.
        fence(Ordering::SeqCst);
        match before {
            None => Hold::Waits,
            Some(_) => Hold::Replaces,
        }
    }

    /// What waits for this relayed address, if its sender is permitted now. The permission is written before this is asked.
    pub fn take(&self, to: RelayAddr, is_permitted: impl Fn(&PeerAddr) -> bool, now: Duration) -> Option<Box<Check>> {
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return None;
        }
        let mut places = self.lock();
        places
            .get_mut(place_of(to))?
            .take_if(|check| check.to == to && check.until > now && is_permitted(&check.source))
    }

    /// The relayed address is nobody's any more: whether a check for it is given up.
    pub fn forget(&self, to: RelayAddr) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut places = self.lock();
        let place = places.get_mut(place_of(to));
        place.is_some_and(|place| place.take_if(|check| check.to == to).is_some())
    }

    /// Forgets what has waited long enough: how many are given up.
    pub fn handle_timeout(&self, now: Duration) -> u64 {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return 0;
        }
        let mut places = self.lock();
        let over = places
            .iter_mut()
            .filter_map(|place| place.take_if(|check| check.until <= now));
        let given_up = over.count() as u64;
        let next = places.iter().flatten().map(|check| nanoseconds(check.until)).min();
        self.next.store(next.unwrap_or(NEVER), Ordering::Relaxed);
        given_up
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let next = self.next.load(Ordering::Relaxed);
        (next != NEVER).then(|| Duration::from_nanos(next))
    }

    fn is_empty(&self) -> bool {
        self.next.load(Ordering::Relaxed) == NEVER
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Box<Check>>>> {
        // A place is whole between any two statements.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Relayed ports are random, so their low bits spread.
fn place_of(relay: RelayAddr) -> usize {
    usize::from(relay.port) % PLACES
}
