//! How many pushes a second: a token bucket whose rate falls by half when the provider says "too fast" and rises by small steps.
//!
//! In: the clock (Unix milliseconds). Out: when one more may go. Never: waits.

use std::time::Duration;

#[derive(Debug)]
pub struct Pace {
    /// Pushes a second.
    most: u32,
    rate: u32,
    /// Thousandths of a push: a millisecond brings `rate` of them, a push takes 1,000.
    level: i64,
    filled_at_ms: i64,
    /// Time from a rate of zero to `most`.
    rise_ms: i64,
    risen_at_ms: i64,
    second: Count,
    second_before: Count,
}

/// What was sent in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    second: i64,
    sent: u32,
}

impl Pace {
    /// With a ramp the first pushes go at a quarter of the rate.
    pub fn new(most: u32, ramp: Duration) -> Self {
        let most = most.clamp(1, RATE_MAX);
        let ramp_ms = i64::try_from(ramp.as_millis()).unwrap_or(i64::MAX);
        let rate = if ramp_ms == 0 { most } else { (most / 4).max(1) };
        Self {
            most,
            rate,
            level: capacity(rate),
            filled_at_ms: i64::MIN,
            rise_ms: if ramp_ms == 0 {
                RISE_MS
            } else {
                ramp_ms.saturating_mul(4) / 3
            },
            risen_at_ms: i64::MIN,
            second: Count::default(),
            second_before: Count::default(),
        }
    }

    pub const fn rate(&self) -> u32 {
        self.rate
    }

    /// From when on one more may go.
    pub const fn opens_at(&self) -> i64 {
        let missing = PUSH - self.level;
        if missing <= 0 {
            return i64::MIN;
        }
        let rate = self.rate as i64;
        self.filled_at_ms.saturating_add((missing + rate - 1) / rate)
    }

    /// One push goes.
    pub fn take(&mut self, now_ms: i64) {
        let elapsed_ms = now_ms.saturating_sub(self.filled_at_ms).clamp(0, 1_000);
        self.level = (self.level + elapsed_ms * i64::from(self.rate)).min(capacity(self.rate)) - PUSH;
        self.filled_at_ms = self.filled_at_ms.max(now_ms);
        let second = now_ms.div_euclid(1_000);
        if second != self.second.second {
            self.second_before = self.second;
            self.second = Count { second, sent: 0 };
        }
        self.second.sent = self.second.sent.saturating_add(1);
    }

    /// Half of what was sent lately, which may be far less than was allowed.
    pub fn slow_down(&mut self, now_ms: i64) {
        let sent = self.sent_lately(now_ms).unwrap_or(self.rate);
        self.fall_to(self.rate.min(sent) / 2, now_ms);
    }

    /// What waited during a rest does not go all at once, which would take the time of others: it begins with twice what went
    /// in a second before (`usual`), at least with a small part of the whole.
    pub fn ease_in(&mut self, usual: u32, now_ms: i64) {
        let gentle = usual.saturating_mul(2).max(self.most / EASY_PART);
        self.fall_to(self.rate.min(gentle), now_ms);
    }

    /// The pushes of the busiest of the last seconds; `None` = none went.
    pub fn sent_lately(&self, now_ms: i64) -> Option<u32> {
        let second = now_ms.div_euclid(1_000);
        [self.second, self.second_before]
            .into_iter()
            .filter(|count| count.sent > 0 && second.saturating_sub(count.second) <= 2)
            .map(|count| count.sent)
            .max()
    }

    fn fall_to(&mut self, rate: u32, now_ms: i64) {
        self.rate = rate.max(1);
        self.level = self.level.min(capacity(self.rate));
        self.risen_at_ms = now_ms;
    }

    /// A push was delivered: the rate may be a little higher. It does not rise while nothing is sent.
    pub fn rise(&mut self, now_ms: i64) {
        if self.rate == self.most {
            return;
        }
        let elapsed_ms = now_ms.saturating_sub(self.risen_at_ms).clamp(0, 1_000);
        let step = i64::from(self.most).saturating_mul(elapsed_ms) / self.rise_ms.max(1);
        if let Ok(step @ 1..) = u32::try_from(step) {
            self.rate = self.rate.saturating_add(step).min(self.most);
            self.risen_at_ms = now_ms;
        } else if elapsed_ms == 1_000 {
            // Less than one more a second in a second: one it is.
            self.rate += 1;
            self.risen_at_ms = now_ms;
        }
    }
}

/// What may go at once after a rest: a tenth of a second's worth.
const fn capacity(rate: u32) -> i64 {
    let tenth = rate as i64 * 100;
    if tenth < PUSH { PUSH } else { tenth }
}

const PUSH: i64 = 1_000;

/// The part of the whole rate that goes at least after a rest.
const EASY_PART: u32 = 32;

/// From nothing to the whole rate, after the provider complained or the lane rested.
const RISE_MS: i64 = 60_000;

/// Beyond what any provider takes, and far from an overflow.
pub const RATE_MAX: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes that go in one second when there are always more, and are all delivered.
    fn in_a_second(pace: &mut Pace, from_ms: i64) -> u32 {
        let mut sent = 0;
        for now_ms in from_ms..from_ms + 1_000 {
            while pace.opens_at() <= now_ms {
                pace.take(now_ms);
                pace.rise(now_ms);
                sent += 1;
            }
        }
        sent
    }

    #[test]
    fn no_more_goes_in_a_second_than_the_rate_and_a_tenth_at_once() {
        for rate in [1, 7, 1_000, 9_000] {
            let mut pace = Pace::new(rate, Duration::ZERO);
            let first = in_a_second(&mut pace, 0);
            assert!(first >= rate && first <= rate + rate / 10 + 1, "{first} of {rate}");
            let next = in_a_second(&mut pace, 1_000);
            assert!(next.abs_diff(rate) <= 1, "{next} of {rate}");
        }
    }

    #[test]
    fn an_idle_lane_saves_up_a_tenth_of_a_second_at_most() {
        let mut pace = Pace::new(1_000, Duration::ZERO);
        pace.take(0);
        let mut sent = 0;
        while pace.opens_at() <= 3_600_000 {
            pace.take(3_600_000);
            sent += 1;
        }
        assert_eq!(sent, 100);
    }

    #[test]
    fn a_start_begins_at_a_quarter_and_reaches_the_whole_rate_within_the_ramp() {
        let mut pace = Pace::new(9_000, Duration::from_secs(60));
        assert_eq!(pace.rate(), 2_250);
        let mut last = 0;
        for second in 0..59 {
            let sent = in_a_second(&mut pace, second * 1_000);
            assert!(sent >= last && sent < 9_000, "second {second}: {sent}");
            last = sent - 250;
        }
        for second in 59..64 {
            in_a_second(&mut pace, second * 1_000);
        }
        assert_eq!(pace.rate(), 9_000);
    }

    #[test]
    fn a_complaint_halves_what_was_really_sent_and_a_minute_of_deliveries_wins_it_back() {
        let mut pace = Pace::new(9_000, Duration::ZERO);
        for now_ms in (0..1_000).step_by(10) {
            pace.take(now_ms);
        }
        pace.slow_down(1_000);
        assert_eq!(pace.rate(), 50);
        let mut second = 1;
        while pace.rate() < 9_000 {
            in_a_second(&mut pace, second * 1_000);
            second += 1;
        }
        assert!((55..70).contains(&second), "{second}");
    }

    #[test]
    fn the_rate_never_falls_below_one_and_rises_only_while_something_is_delivered() {
        let mut pace = Pace::new(10, Duration::ZERO);
        for second in 0..20 {
            pace.slow_down(second * 1_000);
        }
        assert_eq!(pace.rate(), 1);
        pace.rise(3_600_000);
        assert_eq!(pace.rate(), 2);
        assert!(Pace::new(0, Duration::MAX).rate() == 1);
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_opens_nothing_early() {
        let mut pace = Pace::new(10, Duration::ZERO);
        pace.take(10_000);
        assert_eq!(pace.opens_at(), 10_100);
        pace.take(9_000);
        assert_eq!(pace.opens_at(), 10_200);
    }
}
