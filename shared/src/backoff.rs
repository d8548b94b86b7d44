//! When to try again, as a value.
//!
//! In: how often it failed, a random number. Out: a pause. Never: waits.

use std::time::Duration;

/// Exponential pauses with jitter: attempt 0 waits between half of `base` and `base`, each further one twice as long, up to `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let whole = self
            .base
            .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX))
            .min(self.cap);
        let half = whole / 2;
        // 2^32 steps of jitter are enough, and the product fits.
        let step = u128::from(random >> 32);
        let jitter = (half.as_nanos() * step) >> 32;
        half + Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: Backoff = Backoff {
        base: Duration::from_secs(2),
        cap: Duration::from_secs(60),
    };

    #[test]
    fn a_pause_lies_between_half_and_whole() {
        assert_eq!(SECONDS.delay(0, 0), Duration::from_secs(1));
        let most = SECONDS.delay(0, u64::MAX);
        assert!(most > Duration::from_millis(1999) && most <= Duration::from_secs(2));
    }

    #[test]
    fn pauses_double_up_to_the_cap_and_never_overflow() {
        assert_eq!(SECONDS.delay(3, 0), Duration::from_secs(8));
        assert_eq!(SECONDS.delay(5, 0), Duration::from_secs(30));
        assert_eq!(SECONDS.delay(u32::MAX, 0), Duration::from_secs(30));
        let endless = Backoff {
            base: Duration::MAX,
            cap: Duration::MAX,
        };
        assert!(endless.delay(40, u64::MAX) <= Duration::MAX);
    }
}
