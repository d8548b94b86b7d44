//! Time and rates as values.
//!
//! In: what the shell's clocks said. Out: points in time, and whether a rate still admits something. Never: reads a clock.

use std::time::Duration;

/// Fills a buffer with unpredictable bytes: the shell's generator.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// What the clocks said when a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Steady time since a start that all shards share.
    pub steady: Duration,
    /// Seconds since 1970, for credentials that name their expiry.
    pub unix_seconds: u64,
}

impl Now {
    pub const fn seconds(self) -> Seconds {
        Seconds::at(self.steady)
    }

    /// When something that lives this long from now has ended: never earlier, up to a second later; what lives no time, now.
    pub fn after(self, lifetime: Duration) -> Seconds {
        if lifetime.is_zero() {
            return self.seconds();
        }
        Seconds::until(self.steady.saturating_add(lifetime))
    }
}

/// A point in steady time, in whole seconds. RFC 8656 §9 counts permissions "down once per second".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

impl Seconds {
    pub const fn at(steady: Duration) -> Self {
        let seconds = steady.as_secs();
        Self(if seconds > u32::MAX as u64 {
            u32::MAX
        } else {
            seconds as u32
        })
    }

    fn until(steady: Duration) -> Self {
        let floor = Self::at(steady);
        Self(floor.0.saturating_add(u32::from(steady.subsec_nanos() > 0)))
    }

    pub const fn steady(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// Seconds from `now` to this point; 0 if it is past.
    pub const fn since(self, now: Self) -> u32 {
        self.0.saturating_sub(now.0)
    }
}

/// So many units a second, with a burst. The whole state of one rate is one number, so that it fits an atomic:
/// the nanosecond up to which what was admitted is paid for.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// 1/1024 ns per unit.
    cost: u64,
    /// Nanoseconds that may be owed.
    tolerance: u64,
}

impl Rate {
    pub fn new(units_per_second: u64, burst: u64) -> Self {
        let cost = (1_024_000_000_000 / units_per_second.max(1)).max(1);
        Self {
            cost,
            tolerance: (u128::from(burst) * u128::from(cost) / 1024).min(u128::from(u64::MAX)) as u64,
        }
    }

    /// The new state, or `None` if it is too much now.
    pub fn admit(&self, paid_until: u64, now: u64, units: u64) -> Option<u64> {
        let owed = paid_until.saturating_sub(now);
        let cost = (u128::from(units) * u128::from(self.cost) / 1024).min(u128::from(u64::MAX)) as u64;
        let owed = owed.saturating_add(cost);
        (owed <= self.tolerance).then(|| now.saturating_add(owed))
    }
}

/// Steady nanoseconds: 584 years fit.
pub fn nanoseconds(steady: Duration) -> u64 {
    u64::try_from(steady.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_admits_its_burst_and_then_its_rate() {
        let rate = Rate::new(50, 200);
        let mut state = 0;
        let mut admitted = |now: u64| match rate.admit(state, now, 1) {
            Some(next) => {
                state = next;
                true
            }
            None => false,
        };
        let start = 1_000_000_000;
        assert_eq!((0..300).filter(|_| admitted(start)).count(), 200);
        assert_eq!((0..300).filter(|_| admitted(start + 1_000_000_000)).count(), 50);
        assert_eq!((0..300).filter(|_| admitted(start + 60_000_000_000)).count(), 200);
    }

    #[test]
    fn no_rate_overflows() {
        let _ = Rate::new(0, u64::MAX).admit(u64::MAX, 0, u64::MAX);
        let _ = Rate::new(u64::MAX, 0).admit(0, u64::MAX, u64::MAX);
    }

    #[test]
    fn what_lives_300_seconds_never_ends_earlier() {
        let now = Now {
            steady: Duration::from_millis(1_900),
            unix_seconds: 0,
        };
        assert_eq!(now.after(Duration::from_secs(300)), Seconds(302));
        let whole = Now {
            steady: Duration::from_secs(2),
            unix_seconds: 0,
        };
        assert_eq!(whole.after(Duration::from_secs(300)), Seconds(302));
    }

    #[test]
    fn what_lives_no_time_ends_now() {
        let now = Now {
            steady: Duration::from_millis(1_900),
            unix_seconds: 0,
        };
        assert_eq!(now.after(Duration::ZERO), now.seconds());
    }
}
