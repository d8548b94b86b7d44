//! Wall time that is believed only once it has stood.
//!
//! In: the monotonic clock and the wall clock. Out: Unix seconds. Never: reads a clock itself.

use std::time::{Duration, Instant};

/// By which signatures run out. What is removed because of them comes back only when its owner subscribes again: a wall clock that is wrong for
/// a moment, or until it is set right, must not remove it.
#[derive(Clone, Copy, Debug)]
pub struct SettledClock {
    anchor: Instant,
    anchor_s: i64,
    /// Since when the wall clock has been ahead of what is believed.
    ahead_since: Option<Instant>,
}

impl SettledClock {
    pub const fn new(now: Instant, wall_s: i64) -> Self {
        Self {
            anchor: now,
            anchor_s: wall_s,
            ahead_since: None,
        }
    }

    /// Follows the wall clock at once where it is near, or behind: then signatures run out later, which costs nothing. Where it is ahead by more
    /// than [`NEAR`] it is followed once it has been so for [`STANDS`].
    pub fn now_s(&mut self, now: Instant, wall_s: i64) -> i64 {
        let passed = now.saturating_duration_since(self.anchor).as_secs();
        let believed_s = self.anchor_s.saturating_add_unsigned(passed);
        if wall_s > believed_s.saturating_add_unsigned(NEAR.as_secs()) {
            let since = *self.ahead_since.get_or_insert(now);
            if now.saturating_duration_since(since) < STANDS {
                return believed_s;
            }
        }
        *self = Self::new(now, wall_s);
        wall_s
    }
}

/// What a clock that is right may be set by.
const NEAR: Duration = Duration::from_secs(60);

/// Long enough for a time server to be heard, and little beside the life of a signature.
const STANDS: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_wall_clock_that_jumps_ahead_for_less_than_an_hour_is_not_believed() {
        let (mut clock, start) = started();
        assert_eq!(clock.now_s(start, WALL), WALL);
        for minute in 1..60 {
            let passed = MINUTE * minute;
            let steady = WALL + i64::from(minute) * 60;
            assert_eq!(clock.now_s(start + passed, steady + 15 * DAY), steady);
        }
        assert_eq!(clock.now_s(start + MINUTE * 60, WALL + 3_600), WALL + 3_600);
        // It was right in between, so the hour begins anew.
        let steady = WALL + 61 * 60;
        assert_eq!(clock.now_s(start + MINUTE * 61, steady + 15 * DAY), steady);
    }

    #[test]
    fn a_wall_clock_that_stays_ahead_is_followed_after_an_hour() {
        let (mut clock, start) = started();
        assert_eq!(clock.now_s(start + MINUTE, WALL + DAY), WALL + 60);
        let hour = start + MINUTE * 61;
        assert_eq!(clock.now_s(hour, WALL + DAY + 3_600), WALL + DAY + 3_600);
        assert_eq!(clock.now_s(hour + MINUTE, WALL + DAY + 3_660), WALL + DAY + 3_660);
    }

    #[test]
    fn a_wall_clock_that_is_near_or_behind_is_followed_at_once() {
        let (mut clock, start) = started();
        for wall in [WALL + 60, WALL - DAY, WALL - DAY + 30, 0, i64::MIN] {
            assert_eq!(clock.now_s(start, wall), wall);
        }
        assert_eq!(
            SettledClock::new(start, i64::MAX).now_s(start + MINUTE, i64::MAX),
            i64::MAX
        );
    }

    fn started() -> (SettledClock, Instant) {
        let start = Instant::now();
        (SettledClock::new(start, WALL), start)
    }
}
