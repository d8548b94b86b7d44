//! One service's lane: how many pushes at once, when it rests, when it is stopped, and whether its credential is healthy.
//!
//! In: what became of pushes, the clock (Unix milliseconds), randomness. Out: whether one more may go. Never: sees an entry's content.

use super::counters::LaneCounters;
use super::entries::List;
use super::outcome::seconds;
use super::{EntryId, millis};
use quietline_shared::backoff::Backoff;
use std::time::Duration;

pub struct Lane {
    /// By class: entries with their bodies, older than those without.
    pub hot: [List; 4],
    /// By class: entries whose bodies are only on disk.
    pub cold: [List; 4],
    /// Bodies in memory or asked for.
    pub bytes: usize,
    /// Bodies asked for.
    pub loading: u32,
    pub in_flight: u32,
    pub counters: LaneCounters,
    max: u32,
    limit: u32,
    /// Deliveries towards one more in `limit`.
    credit: u32,
    paused_until_ms: i64,
    gate: Gate,
    breaker_failures: u32,
    failures: u32,
    health: Health,
}

/// For a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// The service is not on offer.
    Absent,
    Open,
    /// The provider asked for less.
    Paused,
    /// The provider cannot be reached: one entry at a time finds out when it can.
    Resting,
    /// The credential is refused: one entry at a time finds out when it works.
    Stopped,
}

impl LaneState {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Resting => "resting",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Open,
    Resting {
        probe_at_ms: i64,
        rests: u32,
        probe: Option<EntryId>,
    },
    Stopped {
        probe_at_ms: i64,
        probe: Option<EntryId>,
    },
}

/// What a provider's answer says about its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Reached, and the credential is good.
    Healthy,
    /// Reached; nothing is known of the credential.
    Reached,
    /// There was no time for an answer.
    Unknown,
    /// Not reached, or it cannot work now. `until_ms`: it asked to be left alone so long.
    Outage {
        until_ms: Option<i64>,
    },
    CredentialRefused,
}

/// What changed for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Stopped,
    Resumed,
}

impl Lane {
    pub fn new(max: u32, breaker_failures: u32) -> Self {
        Self {
            hot: [List::EMPTY; 4],
            cold: [List::EMPTY; 4],
            bytes: 0,
            loading: 0,
            in_flight: 0,
            counters: LaneCounters::default(),
            max,
            limit: max,
            credit: 0,
            paused_until_ms: i64::MIN,
            gate: Gate::Open,
            breaker_failures: breaker_failures.max(1),
            failures: 0,
            health: Health::default(),
        }
    }

    pub const fn exists(&self) -> bool {
        self.max > 0
    }

    pub const fn limit(&self) -> u32 {
        self.limit
    }

    pub const fn state(&self, now_ms: i64) -> LaneState {
        match self.gate {
            _ if self.max == 0 => LaneState::Absent,
            Gate::Stopped { .. } => LaneState::Stopped,
            Gate::Resting { .. } => LaneState::Resting,
            Gate::Open if now_ms < self.paused_until_ms => LaneState::Paused,
            Gate::Open => LaneState::Open,
        }
    }

    /// From when on one more may go; `None` = an outcome must come first.
    pub fn opens_at(&self) -> Option<i64> {
        if self.in_flight >= self.limit {
            return None;
        }
        match self.gate {
            Gate::Open => Some(self.paused_until_ms),
            Gate::Resting {
                probe: None,
                probe_at_ms,
                ..
            }
            | Gate::Stopped {
                probe: None,
                probe_at_ms,
            } => Some(probe_at_ms.max(self.paused_until_ms)),
            Gate::Resting { .. } | Gate::Stopped { .. } => None,
        }
    }

    pub fn may_send(&self, now_ms: i64) -> bool {
        self.opens_at().is_some_and(|opens_at| opens_at <= now_ms)
    }

    /// How many entries should have their bodies in memory: enough for two rounds, or for the next probe.
    pub fn window(&self, now_ms: i64) -> usize {
        match self.state(now_ms) {
            LaneState::Open => self.limit as usize * 2 + 64,
            LaneState::Absent => 0,
            LaneState::Paused | LaneState::Resting | LaneState::Stopped => 1,
        }
    }

    pub fn note_sent(&mut self, id: EntryId) {
        self.in_flight += 1;
        if let Gate::Resting { probe, .. } | Gate::Stopped { probe, .. } = &mut self.gate {
            *probe = Some(id);
        }
    }

    /// Each push that was sent comes back here once.
    pub fn note_answer(&mut self, id: EntryId, sign: Sign, now_ms: i64, random: u64) -> Option<Turn> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let probed = match &mut self.gate {
            Gate::Resting { probe, .. } | Gate::Stopped { probe, .. } if *probe == Some(id) => probe.take().is_some(),
            _ => false,
        };
        self.failures = match sign {
            Sign::Outage { .. } => self.failures.saturating_add(1),
            Sign::Unknown => self.failures,
            Sign::Healthy | Sign::Reached | Sign::CredentialRefused => 0,
        };
        match (self.gate, sign) {
            (Gate::Stopped { .. }, Sign::Healthy) if probed => {
                self.gate = Gate::Open;
                return Some(Turn::Resumed);
            }
            (Gate::Stopped { .. }, _) if probed => {
                self.gate = Gate::Stopped {
                    probe_at_ms: now_ms.saturating_add(PROBE_PAUSE_MS),
                    probe: None,
                };
            }
            // Answers to what was sent before the stop say nothing about the credential now.
            (Gate::Stopped { .. }, _) => {}
            (_, Sign::CredentialRefused) => {
                self.counters.stops += 1;
                self.gate = Gate::Stopped {
                    probe_at_ms: now_ms.saturating_add(PROBE_PAUSE_MS),
                    probe: None,
                };
                return Some(Turn::Stopped);
            }
            (Gate::Resting { rests, .. }, Sign::Outage { until_ms }) => {
                if probed {
                    self.rest(rests.saturating_add(1), until_ms, now_ms, random);
                }
            }
            (Gate::Resting { rests, .. }, Sign::Unknown) => {
                if probed {
                    self.rest(rests, None, now_ms, random);
                }
            }
            (Gate::Resting { .. }, _) => self.gate = Gate::Open,
            (Gate::Open, Sign::Outage { until_ms }) => {
                if self.failures >= self.breaker_failures {
                    self.counters.rests += 1;
                    self.rest(0, until_ms, now_ms, random);
                }
            }
            (Gate::Open, _) => {}
        }
        None
    }

    /// The provider says that the lane is too fast.
    pub fn slow_down(&mut self, pause: Duration, now_ms: i64) {
        // The answers to all pushes under way say the same; they count once.
        if self.paused_until_ms <= now_ms {
            self.limit = (self.limit / 2).max(1);
            self.credit = 0;
        }
        self.paused_until_ms = self.paused_until_ms.max(now_ms.saturating_add(millis(pause)));
    }

    pub fn note_delivered(&mut self, now_ms: i64) {
        self.health.note(now_ms, false);
        self.health.delivered_at_ms = Some(now_ms);
        if self.limit < self.max {
            self.credit += 1;
            if self.credit >= self.limit {
                self.credit = 0;
                self.limit += 1;
            }
        }
    }

    /// Whether an answer may delete a token: only while the credential delivers. `certain` = a wrong credential cannot cause it;
    /// of others many at once are not believed.
    pub fn believes_gone(&mut self, certain: bool, now_ms: i64) -> bool {
        if certain {
            return self.health.is_recent(now_ms);
        }
        self.health.note(now_ms, true);
        self.health.is_recent(now_ms) && self.health.has_few_gone()
    }

    /// What was learnt with another credential counts no longer.
    pub fn forget_health(&mut self, now_ms: i64) {
        self.health = Health::default();
        if let Gate::Stopped { probe_at_ms, .. } = &mut self.gate {
            *probe_at_ms = now_ms;
        }
    }

    fn rest(&mut self, rests: u32, until_ms: Option<i64>, now_ms: i64, random: u64) {
        let pause = now_ms.saturating_add(millis(REST.delay(rests, random)));
        self.gate = Gate::Resting {
            probe_at_ms: pause.max(until_ms.unwrap_or(pause)),
            rests,
            probe: None,
        };
    }
}

/// Pauses between the probes of a lane that cannot reach its provider.
const REST: Backoff = seconds(2, 60);

/// Pause between the probes of a lane whose credential is refused.
const PROBE_PAUSE_MS: i64 = 30_000;

/// Whether pushes succeed with the present credential: a wrong key or topic may never empty the table of tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    delivered_at_ms: Option<i64>,
    /// Lately: halved every ten minutes.
    delivered: u64,
    gone: u64,
    halved_at_ms: i64,
}

impl Health {
    fn note(&mut self, now_ms: i64, gone: bool) {
        let halvings = now_ms.saturating_sub(self.halved_at_ms) / HALVING_MS;
        if halvings > 0 {
            let shift = u32::try_from(halvings).unwrap_or(u32::MAX);
            self.delivered = self.delivered.checked_shr(shift).unwrap_or(0);
            self.gone = self.gone.checked_shr(shift).unwrap_or(0);
            self.halved_at_ms = now_ms;
        }
        if gone {
            self.gone += 1;
        } else {
            self.delivered += 1;
        }
    }

    fn is_recent(&self, now_ms: i64) -> bool {
        self.delivered_at_ms
            .is_some_and(|at| now_ms.saturating_sub(at) <= HEALTHY_MS)
    }

    fn has_few_gone(&self) -> bool {
        self.gone <= GONE_FEW || self.gone * 100 <= (self.gone + self.delivered) * GONE_PERCENT
    }
}

const HALVING_MS: i64 = 600_000;

/// A credential is healthy for an hour after a delivery.
const HEALTHY_MS: i64 = 3_600_000;

/// More dead tokens among the answers than this are not believed: few devices disappear at once.
const GONE_PERCENT: u64 = 20;

/// So few are believed whatever their share is: where little is sent, one is half of it.
const GONE_FEW: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const OUTAGE: Sign = Sign::Outage { until_ms: None };

    #[test]
    fn a_lane_rests_after_failures_in_a_row_and_probes_with_one_entry_at_a_time() {
        let mut lane = Lane::new(100, 3);
        for id in 0..10 {
            lane.note_sent(EntryId(id));
        }
        lane.note_answer(EntryId(0), OUTAGE, 0, 0);
        lane.note_answer(EntryId(1), OUTAGE, 0, 0);
        lane.note_answer(EntryId(2), Sign::Reached, 0, 0);
        lane.note_answer(EntryId(3), OUTAGE, 0, 0);
        lane.note_answer(EntryId(4), OUTAGE, 0, 0);
        assert_eq!(lane.state(0), LaneState::Open);
        lane.note_answer(EntryId(5), OUTAGE, 0, 0);
        assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Resting, Some(1000)));
        lane.note_answer(EntryId(6), OUTAGE, 500, 0);
        assert_eq!(lane.opens_at(), Some(1000));
        lane.note_sent(EntryId(10));
        assert_eq!(lane.opens_at(), None);
        lane.note_answer(EntryId(10), OUTAGE, 1000, 0);
        assert_eq!(lane.opens_at(), Some(3000));
        lane.note_sent(EntryId(11));
        lane.note_answer(EntryId(11), Sign::Reached, 3000, 0);
        assert_eq!((lane.state(3000), lane.counters.rests), (LaneState::Open, 1));
    }

    #[test]
    fn a_push_without_time_for_an_answer_says_nothing_and_ends_its_probe() {
        let mut lane = Lane::new(100, 2);
        for id in 0..10 {
            lane.note_sent(EntryId(id));
            lane.note_answer(EntryId(id), Sign::Unknown, 0, 0);
        }
        assert_eq!((lane.state(0), lane.in_flight), (LaneState::Open, 0));
        for (id, sign) in [(0, OUTAGE), (1, Sign::Unknown), (2, OUTAGE)] {
            lane.note_sent(EntryId(id));
            lane.note_answer(EntryId(id), sign, 0, 0);
        }
        assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Resting, Some(1000)));
        lane.note_sent(EntryId(3));
        assert_eq!(lane.opens_at(), None);
        lane.note_answer(EntryId(3), Sign::Unknown, 1000, 0);
        assert_eq!((lane.state(1000), lane.opens_at()), (LaneState::Resting, Some(2000)));

        let mut lane = Lane::new(100, 2);
        lane.note_sent(EntryId(0));
        lane.note_answer(EntryId(0), Sign::CredentialRefused, 0, 0);
        lane.note_sent(EntryId(1));
        assert_eq!(lane.note_answer(EntryId(1), Sign::Unknown, 30_000, 0), None);
        assert_eq!(
            (lane.state(30_000), lane.opens_at()),
            (LaneState::Stopped, Some(60_000))
        );
    }

    #[test]
    fn a_provider_that_asks_for_rest_gets_it() {
        let mut lane = Lane::new(100, 1);
        lane.note_sent(EntryId(0));
        lane.note_answer(EntryId(0), Sign::Outage { until_ms: Some(70_000) }, 0, 0);
        assert_eq!(lane.opens_at(), Some(70_000));
    }

    #[test]
    fn only_the_probes_own_success_resumes_a_stopped_lane() {
        let mut lane = Lane::new(100, 3);
        lane.note_sent(EntryId(0));
        lane.note_sent(EntryId(1));
        assert_eq!(
            lane.note_answer(EntryId(0), Sign::CredentialRefused, 0, 0),
            Some(Turn::Stopped)
        );
        assert_eq!(lane.note_answer(EntryId(1), Sign::Healthy, 0, 0), None);
        assert_eq!((lane.state(0), lane.opens_at()), (LaneState::Stopped, Some(30_000)));
        lane.note_sent(EntryId(2));
        assert_eq!(lane.opens_at(), None);
        assert_eq!(lane.note_answer(EntryId(2), Sign::CredentialRefused, 31_000, 0), None);
        assert_eq!(lane.opens_at(), Some(61_000));
        lane.note_sent(EntryId(3));
        assert_eq!(
            lane.note_answer(EntryId(3), Sign::Healthy, 61_000, 0),
            Some(Turn::Resumed)
        );
        assert_eq!((lane.state(61_000), lane.counters.stops), (LaneState::Open, 1));
    }

    #[test]
    fn too_fast_halves_the_limit_once_and_deliveries_win_it_back() {
        let mut lane = Lane::new(8, 3);
        for _ in 0..5 {
            lane.slow_down(Duration::from_secs(60), 0);
        }
        assert_eq!(
            (lane.limit(), lane.state(59_999), lane.state(60_000)),
            (4, LaneState::Paused, LaneState::Open)
        );
        lane.slow_down(Duration::from_secs(60), 60_000);
        assert_eq!(lane.limit(), 2);
        for _ in 0..1000 {
            lane.note_delivered(130_000);
        }
        assert_eq!(lane.limit(), 8);
        for hour in 1..20 {
            lane.slow_down(Duration::from_secs(1), hour * 3_600_000);
        }
        assert_eq!(lane.limit(), 1);
    }

    #[test]
    fn dead_tokens_are_believed_only_from_a_healthy_credential() {
        let mut lane = Lane::new(8, 3);
        assert!(!lane.believes_gone(false, 0) && !lane.believes_gone(true, 0));
        let mut lane = Lane::new(8, 3);
        lane.note_delivered(0);
        for gone in 1..=5 {
            assert!(lane.believes_gone(false, 0), "{gone} are few");
        }
        assert!(!lane.believes_gone(false, 0), "six of seven");
        assert!(lane.believes_gone(true, 0));
        for _ in 0..100 {
            lane.note_delivered(0);
        }
        assert!(lane.believes_gone(false, 1000));
        lane.forget_health(1000);
        assert!(!lane.believes_gone(false, 1000) && !lane.believes_gone(true, 1000));
    }

    #[test]
    fn a_delivery_of_long_ago_proves_nothing() {
        let mut lane = Lane::new(8, 3);
        for _ in 0..1_000_000 {
            lane.note_delivered(0);
        }
        for certain in [true, false] {
            assert!(lane.believes_gone(certain, HEALTHY_MS));
            assert!(!lane.believes_gone(certain, HEALTHY_MS + 1));
        }
    }

    #[test]
    fn a_wrong_topic_empties_no_table() {
        let mut lane = Lane::new(8, 3);
        for _ in 0..1000 {
            lane.note_delivered(0);
        }
        let believed = (0..100_000).filter(|push| lane.believes_gone(false, push * 10)).count();
        assert!(believed <= 250, "{believed}");
    }
}
