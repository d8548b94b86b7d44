//! A keyed hash for tables whose keys strangers choose, and a limit on how often something may happen.
//!
//! In: a random seed, bytes; the clock. Out: 64-bit hashes; yes or no. Never: makes the seed.

use siphasher::sip::SipHasher13;
use siphasher::sip128::Hasher128;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Key of SipHash-1-3. Without it nobody can choose accounts or tokens that meet in one bucket.
#[derive(Clone, Copy)]
pub struct Seed([u8; 16]);

impl Seed {
    /// `bytes` must be random and must not leave the process.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn hash_bytes(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }

    /// 128 bits, wide enough to stand for the parts themselves. Each part is told apart by its length.
    pub fn name_of(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = siphasher::sip128::SipHasher13::new_with_key(&self.0);
        for part in parts {
            hasher.write_u64(part.len() as u64);
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }
}

impl BuildHasher for Seed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(<secret>)")
    }
}

/// A token bucket in one instant: `rate` a second in the long run, `burst` at once.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// How much of the bucket one event takes, as time.
    interval: Duration,
    capacity: Duration,
    /// When the bucket is full again.
    full_at: Instant,
}

impl RateLimit {
    /// Starts full.
    pub fn new(rate: NonZeroU32, burst: NonZeroU32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / rate.get();
        Self {
            interval,
            capacity: interval.saturating_mul(burst.get()),
            full_at: now,
        }
    }

    /// Whether one more fits now; if so it is taken.
    pub fn allow(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.interval;
        let fits = full_at.saturating_duration_since(now) <= self.capacity;
        if fits {
            self.full_at = full_at;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do as the beginning of a test"
    )]
    fn some_instant() -> Instant {
        Instant::now()
    }

    fn limit(rate: u32, burst: u32, now: Instant) -> RateLimit {
        RateLimit::new(NonZeroU32::new(rate).unwrap(), NonZeroU32::new(burst).unwrap(), now)
    }

    #[test]
    fn a_full_bucket_lets_its_burst_through_and_then_its_rate() {
        let start = some_instant();
        let mut limit = limit(10, 3, start);
        assert_eq!((0..5).filter(|_| limit.allow(start)).count(), 3);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..5).filter(|_| limit.allow(later)).count(), 1);
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_burst() {
        let start = some_instant();
        let mut limit = limit(1000, 4, start);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| limit.allow(much_later)).count(), 4);
    }

    #[test]
    fn a_refused_event_takes_nothing() {
        let start = some_instant();
        let mut limit = limit(10, 1, start);
        assert!(limit.allow(start));
        for _ in 0..1000 {
            assert!(!limit.allow(start));
        }
        assert!(limit.allow(start + Duration::from_millis(100)));
    }

    #[test]
    fn the_hash_depends_on_the_seed() {
        assert_eq!(Seed::new([1; 16]).hash_bytes(b"x"), Seed::new([1; 16]).hash_bytes(b"x"));
        assert_ne!(Seed::new([1; 16]).hash_bytes(b"x"), Seed::new([2; 16]).hash_bytes(b"x"));
    }

    #[test]
    fn parts_are_not_run_together() {
        let seed = Seed::new([1; 16]);
        assert_ne!(seed.name_of(&[b"ab", b"c"]), seed.name_of(&[b"a", b"bc"]));
    }
}
