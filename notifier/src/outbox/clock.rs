//! Unix time that never goes back.
//!
//! In: the monotonic clock and the wall clock. Out: Unix milliseconds. Never: reads a clock itself.

use super::millis;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses are kept as times: a wall clock that steps back would make them as much longer.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    anchor: Instant,
    anchor_ms: i64,
}

impl SteadyClock {
    pub const fn new(now: Instant, wall_ms: i64) -> Self {
        Self {
            anchor: now,
            anchor_ms: wall_ms,
        }
    }

    /// Follows the wall clock where that is more than [`DRIFT`] ahead: it was set, or the machine slept.
    pub fn now_ms(&mut self, now: Instant, wall_ms: i64) -> i64 {
        let passed_ms = millis(now.saturating_duration_since(self.anchor));
        let steady_ms = self.anchor_ms.saturating_add(passed_ms);
        if wall_ms.saturating_sub(steady_ms) <= millis(DRIFT) {
            return steady_ms;
        }
        *self = Self::new(now, wall_ms);
        wall_ms
    }
}

const DRIFT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: i64 = 1_800_000_000_000;

    #[test]
    fn it_goes_with_the_monotonic_clock_while_the_wall_clock_is_near() {
        let (mut clock, start) = started();
        assert_eq!(clock.now_ms(start, START_MS), START_MS);
        for wall_ms in [START_MS + 1_000, START_MS + 6_000, START_MS - 4_000] {
            assert_eq!(clock.now_ms(start + SECOND, wall_ms), START_MS + 1_000);
        }
    }

    #[test]
    fn a_wall_clock_that_steps_back_changes_nothing() {
        let (mut clock, start) = started();
        for seconds in 1..10 {
            let now_ms = clock.now_ms(start + SECOND * seconds, START_MS - 86_400_000);
            assert_eq!(now_ms, START_MS + 1_000 * i64::from(seconds));
        }
    }

    #[test]
    fn a_wall_clock_that_steps_forward_is_followed_once_it_is_five_seconds_ahead() {
        let (mut clock, start) = started();
        assert_eq!(clock.now_ms(start, START_MS + 5_000), START_MS);
        assert_eq!(clock.now_ms(start, START_MS + 5_001), START_MS + 5_001);
        assert_eq!(clock.now_ms(start + SECOND, START_MS), START_MS + 6_001);
    }

    #[test]
    fn it_never_goes_back_whatever_the_wall_clock_does() {
        let (mut clock, start) = started();
        let mut last_ms = START_MS;
        for (second, wall_ms) in [i64::MIN, i64::MAX - 10_000, 0, START_MS, i64::MAX]
            .into_iter()
            .enumerate()
        {
            let now_ms = clock.now_ms(start + SECOND * second as u32, wall_ms);
            assert!(now_ms >= last_ms);
            last_ms = now_ms;
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn started() -> (SteadyClock, Instant) {
        let start = Instant::now();
        (SteadyClock::new(start, START_MS), start)
    }
}
