//! Unix time as it was at the start, carried on by the monotonic clock.
//!
//! In: the monotonic clock. Out: milliseconds that nobody sets. Never: reads a clock itself, or follows a wall clock.

use tokio::time::Instant;

/// Pauses and deadlines are kept as times: a wall clock that is set back would make them as much longer, one that is set forward would end
/// them all. What a machine sleeps is no time here either: a wakeup that waited goes late rather than not at all, and its provider is told
/// its message's own expiry.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    start: Instant,
    start_ms: i64,
}

impl SteadyClock {
    pub const fn new(now: Instant, wall_ms: i64) -> Self {
        Self {
            start: now,
            start_ms: wall_ms,
        }
    }

    pub fn now_ms(&self, now: Instant) -> i64 {
        let passed = now.saturating_duration_since(self.start).as_millis();
        self.start_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_begins_with_the_wall_clock_and_goes_with_the_monotonic_one() {
        let (start, start_ms) = (Instant::now(), 1_800_000_000_000);
        let clock = SteadyClock::new(start, start_ms);
        for seconds in [0, 1, 86_400] {
            let now_ms = clock.now_ms(start + Duration::from_secs(seconds));
            assert_eq!(now_ms, start_ms + 1_000 * i64::try_from(seconds).unwrap());
        }
        assert_eq!(
            SteadyClock::new(start, i64::MAX).now_ms(start + Duration::from_secs(1)),
            i64::MAX
        );
    }
}
