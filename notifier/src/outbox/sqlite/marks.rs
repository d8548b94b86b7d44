//! Until which commit marks are older than a moment: their times are sealed in their rows.
//!
//! In: numbers of commits and their times. Out: the last number of what is too old. Never: keeps more than one pair for each
//! second of the time that marks are kept.

use std::collections::VecDeque;

/// The last commit of a stretch and the latest time in it.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    began_ms: i64,
    last: i64,
    latest_ms: i64,
}

#[derive(Debug, Default)]
pub struct MarkTimes {
    stretches: VecDeque<Stretch>,
    /// Everything up to here is too old.
    forgotten: i64,
}

impl MarkTimes {
    /// Numbers ascend. Nothing was seen later than this: what a wall clock that was ahead said so counts as seen now, or it and all that comes
    /// after it would stay until the clock is there again. So times ascend, too.
    pub fn note(&mut self, commit: i64, at_ms: i64) {
        while self
            .stretches
            .pop_back_if(|stretch| stretch.latest_ms > at_ms)
            .is_some()
        {}
        match self.stretches.back_mut() {
            Some(stretch) if at_ms.saturating_sub(stretch.began_ms) < STRETCH_MS => {
                stretch.last = commit;
                stretch.latest_ms = at_ms;
            }
            _ => self.stretches.push_back(Stretch {
                began_ms: at_ms,
                last: commit,
                latest_ms: at_ms,
            }),
        }
    }

    /// The last commit of those that are older, 0 if none is.
    pub fn last_before(&mut self, before_ms: i64) -> i64 {
        while let Some(stretch) = self.stretches.front()
            && stretch.latest_ms < before_ms
        {
            self.forgotten = stretch.last;
            self.stretches.pop_front();
        }
        self.forgotten
    }
}

const STRETCH_MS: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_a_second_go_together_when_the_latest_is_too_old() {
        let mut times = MarkTimes::default();
        for (commit, at_ms) in [(1, 10_000), (2, 10_400), (3, 10_900), (4, 11_000), (5, 30_000)] {
            times.note(commit, at_ms);
        }
        assert_eq!(times.last_before(10_000), 0);
        assert_eq!(times.last_before(10_900), 0);
        assert_eq!(times.last_before(10_901), 3);
        assert_eq!(times.last_before(10_901), 3, "asked again, it says the same");
        assert_eq!(times.last_before(30_000), 4);
        assert_eq!(times.last_before(i64::MAX), 5);
    }

    #[test]
    fn what_a_clock_that_was_ahead_said_is_forgotten_as_if_it_came_when_the_clock_was_set_right() {
        let year = 365 * 86_400_000;
        for ahead in [vec![(2, 10_000 + year)], vec![(2, 10_000 + year), (3, 40_000 + year)]] {
            let mut times = MarkTimes::default();
            times.note(1, 10_000);
            for (commit, at_ms) in ahead {
                times.note(commit, at_ms);
            }
            for (commit, at_ms) in [(4, 12_000), (5, 12_500), (6, 30_000)] {
                times.note(commit, at_ms);
            }
            assert_eq!(times.last_before(10_001), 1);
            assert_eq!(times.last_before(12_500), 1, "none goes before its time");
            assert_eq!(times.last_before(20_000), 5);
            assert_eq!(times.last_before(30_001), 6);
        }
    }

    #[test]
    fn a_clock_that_steps_back_for_a_moment_keeps_all_in_order() {
        let mut times = MarkTimes::default();
        for (commit, at_ms) in [(1, 18_000), (2, 20_500), (3, 20_200), (4, 22_000)] {
            times.note(commit, at_ms);
        }
        assert_eq!(times.last_before(20_200), 1);
        assert_eq!(times.last_before(20_201), 3);
        assert_eq!(times.last_before(22_001), 4);
    }
}
