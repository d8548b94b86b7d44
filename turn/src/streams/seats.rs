//! How many streams there may be, in all and from one source prefix.
//!
//! In: an address. Out: a seat, or a refusal. Never: keeps an address: a prefix is one of 65,536 places by its keyed hash, and two that
//! meet on one share it. All shards count in the same numbers, without a lock.

use super::counters::StreamEvent;
use super::settings::StreamSettings;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use turn_core::table::HashKey;
use turn_core::time::{Rate, nanoseconds};

const PLACES: usize = 65_536;
/// Tries to pay for a stream. Who loses all of them is in a flood.
const TRIES: usize = 8;

/// The seats of all shards.
pub struct Seats {
    hash_key: HashKey,
    total: AtomicU32,
    prefixes: Vec<Prefix>,
}

#[derive(Default)]
struct Prefix {
    streams: AtomicU32,
    rate: AtomicU64,
}

/// One stream's seat, free again when it is dropped.
pub struct Seat {
    seats: Arc<Seats>,
    place: usize,
}

/// A seat that is counted already, and may be one too many.
pub struct Claim(Seat);

impl Claim {
    /// The seat, if there are not more than there may be now; else the claim stands, until somebody has made room or it is dropped.
    pub fn seat(self, settings: &StreamSettings) -> Result<Seat, Self> {
        match self.0.seats.total.load(Ordering::Relaxed) > settings.total {
            true => Err(self),
            false => Ok(self.0),
        }
    }
}

impl Seats {
    /// The key is random.
    pub fn new(hash_key: [u64; 2]) -> Arc<Self> {
        let mut prefixes = Vec::new();
        prefixes.resize_with(PLACES, Prefix::default);
        Arc::new(Self {
            hash_key: HashKey::new(hash_key),
            total: AtomicU32::new(0),
            prefixes,
        })
    }

    /// A claim to a seat for one more stream, or why its prefix has none.
    pub fn claim(
        self: &Arc<Self>,
        client: IpAddr,
        settings: &StreamSettings,
        now: Duration,
    ) -> Result<Claim, StreamEvent> {
        let hash = match client {
            IpAddr::V4(ip) => self.hash_key.hash(&[4, u64::from(ip.to_bits() >> 8)]),
            IpAddr::V6(ip) => self.hash_key.hash(&[6, (ip.to_bits() >> 72) as u64]),
        };
        let place = hash as usize % PLACES;
        let prefix = self.prefixes.get(place).ok_or(StreamEvent::TooManyOfPrefix)?;
        if !prefix.pays(settings.per_prefix_per_second, now) {
            return Err(StreamEvent::TooFast);
        }
        // Taken first and given back by the drop: two shards that ask at once cannot both get the last seat.
        self.total.fetch_add(1, Ordering::Relaxed);
        let of_prefix = prefix.streams.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            seats: self.clone(),
            place,
        };
        if of_prefix >= settings.per_prefix {
            return Err(StreamEvent::TooManyOfPrefix);
        }
        Ok(Claim(seat))
    }
}

impl Prefix {
    fn pays(&self, per_second: u32, now: Duration) -> bool {
        let rate = Rate::new(u64::from(per_second), u64::from(per_second) * 4);
        let now = nanoseconds(now);
        for _ in 0..TRIES {
            let before = self.rate.load(Ordering::Relaxed);
            let Some(after) = rate.admit(before, now, 1) else {
                return false;
            };
            let exchanged = self
                .rate
                .compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed);
            if exchanged.is_ok() {
                return true;
            }
        }
        false
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.total.fetch_sub(1, Ordering::Relaxed);
        if let Some(prefix) = self.seats.prefixes.get(self.place) {
            prefix.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn settings() -> StreamSettings {
        StreamSettings {
            total: 5,
            per_prefix: 3,
            per_prefix_per_second: 100,
            ..StreamSettings::default()
        }
    }

    fn take(seats: &Arc<Seats>, ip: IpAddr, settings: &StreamSettings, now: Duration) -> Result<Seat, StreamEvent> {
        let claim = seats.claim(ip, settings, now)?;
        claim.seat(settings).map_err(|_| StreamEvent::TooMany)
    }

    fn fault(taken: Result<Seat, StreamEvent>) -> Option<StreamEvent> {
        taken.err()
    }

    #[test]
    fn a_prefix_and_all_have_their_bounds_and_a_seat_is_free_again() {
        let (seats, settings) = (Seats::new([1, 2]), settings());
        let take = |ip: &str| take(&seats, ip.parse().unwrap(), &settings, NOW);
        let mut held: Vec<_> = ["1.2.3.4", "1.2.3.5", "1.2.3.255"]
            .map(|ip| take(ip).ok().unwrap())
            .into();
        assert_eq!(fault(take("1.2.3.6")), Some(StreamEvent::TooManyOfPrefix));
        held.push(take("1.2.4.6").ok().unwrap());
        held.push(take("2a00:1:2:3::1").ok().unwrap());
        assert_eq!(fault(take("9.9.9.9")), Some(StreamEvent::TooMany));
        held.remove(0);
        held.push(take("1.2.3.6").ok().unwrap());
        drop(held);
        assert_eq!(seats.total.load(Ordering::Relaxed), 0);
        assert!(
            seats
                .prefixes
                .iter()
                .all(|prefix| prefix.streams.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn a_prefix_of_ipv6_is_a_56() {
        let (seats, settings) = (Seats::new([1, 2]), settings());
        let take = |ip: &str| take(&seats, ip.parse().unwrap(), &settings, NOW);
        let held: Vec<_> = ["2a00:1:2:300::1", "2a00:1:2:3ff::1", "2a00:1:2:310::9"]
            .map(|ip| take(ip).ok().unwrap())
            .into();
        assert_eq!(fault(take("2a00:1:2:342::5")), Some(StreamEvent::TooManyOfPrefix));
        assert_eq!(fault(take("2a00:1:2:442::5")), None);
        drop(held);
    }

    #[test]
    fn new_streams_of_a_prefix_have_a_rate() {
        let (seats, mut settings) = (Seats::new([1, 2]), settings());
        settings.per_prefix_per_second = 2;
        let take = |now| take(&seats, "1.2.3.4".parse().unwrap(), &settings, now);
        assert_eq!((0..20).filter(|_| take(NOW).is_ok()).count(), 8);
        assert_eq!(fault(take(NOW)), Some(StreamEvent::TooFast));
        assert_eq!(
            (0..20).filter(|_| take(NOW + Duration::from_secs(1)).is_ok()).count(),
            2
        );
    }

    #[test]
    fn threads_that_ask_at_once_get_no_more_than_there_are() {
        let seats = Seats::new([1, 2]);
        let settings = StreamSettings {
            per_prefix: 1_000,
            per_prefix_per_second: 1_000_000,
            total: 100,
            ..StreamSettings::default()
        };
        let taken: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4u8)
                .map(|thread| {
                    let (seats, settings) = (&seats, &settings);
                    scope.spawn(move || {
                        let from = IpAddr::from([1, 2, thread, 4]);
                        (0..50)
                            .filter_map(|_| take(seats, from, settings, NOW).ok())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(taken.len() <= 100);
        assert_eq!(seats.total.load(Ordering::Relaxed) as usize, taken.len());
    }
}
