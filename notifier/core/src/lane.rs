//! One lane to a push service: how many pushes at once and a second, when it rests, when it is stopped, whether its credential is
//! healthy, and what an answer means for it.
//!
//! In: what became of pushes, the clock (Unix milliseconds), randomness. Out: whether one more may go. Never: sees a wakeup.
//!
//! A lane is slowed by what the provider says of all ([`Lane::slow_down`]), rests when the provider cannot be reached or cannot work, and
//! stops when the credential is refused. A resting or stopped lane sends one push at a time, its probe; what waited meanwhile
//! goes at a pace that rises slowly. One token that fails time and again is no reason to rest: the breaker counts tokens, not failures.

mod health;
mod outcome;
mod pace;

pub use outcome::{Outcome, Refusal, RetryReason, Scope};
pub use pace::RATE_MAX;

use health::Health;
use outcome::seconds;
use pace::Pace;
use quietline_shared::backoff::Backoff;
use std::time::Duration;

/// How much a lane may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSettings {
    /// Pushes under way at once; 0 = the service is not on offer.
    pub concurrency: u32,
    /// Pushes a second at most.
    pub rate: u32,
    /// After a start the rate rises to its whole within this time; zero = at once.
    pub ramp: Duration,
    /// The lane rests after so many tokens whose pushes failed with no answer between them.
    pub breaker_failures: u32,
    /// A push without an outcome for so long is taken back: whoever had it is stuck.
    pub stall_after: Duration,
    /// A wakeup that is no call waits a random time up to this before its first turn; zero = none does.
    pub jitter: Duration,
}

impl LaneSettings {
    pub const ABSENT: Self = Self::with_concurrency(0);

    pub const fn with_concurrency(concurrency: u32) -> Self {
        Self {
            concurrency,
            rate: 50_000,
            ramp: Duration::ZERO,
            breaker_failures: 8,
            stall_after: Duration::from_secs(60),
            jitter: Duration::ZERO,
        }
    }
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
    pub const ALL: [Self; 5] = [Self::Absent, Self::Open, Self::Paused, Self::Resting, Self::Stopped];

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

/// One push that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Names the push while it is under way.
    pub push: i64,
    /// Keyed hash of its token.
    pub target: u64,
    /// Unix milliseconds.
    pub sent_at_ms: i64,
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
    /// It cannot work now, or was too slow. `until_ms`: it asked to be left alone so long.
    Outage {
        until_ms: Option<i64>,
    },
    /// Its connection ended before the answer.
    Broken,
    /// Nothing was sent: there is no connection, and the next is not tried before `until_ms`.
    Unreachable {
        until_ms: i64,
    },
    CredentialRefused,
}

impl Sign {
    pub fn of(outcome: &Outcome, now_ms: i64) -> Self {
        let until_ms = |after: Duration| now_ms.saturating_add(millis(after));
        match outcome {
            // None of these answers comes before the credential was accepted.
            Outcome::Delivered
            | Outcome::TryFallback
            | Outcome::Gone { certain: true, .. }
            | Outcome::Retry {
                reason: RetryReason::TokenRate,
                ..
            } => Self::Healthy,
            Outcome::Held { pause } => Self::Unreachable {
                until_ms: until_ms((*pause).clamp(SHORTEST_HOLD, LONGEST_PAUSE)),
            },
            Outcome::Retry { reason, after } => match reason {
                RetryReason::CredentialRefused => Self::CredentialRefused,
                RetryReason::Connection => Self::Broken,
                RetryReason::Timeout | RetryReason::Unavailable => Self::Outage {
                    until_ms: after.map(|after| until_ms(after.min(LONGEST_PAUSE))),
                },
                RetryReason::LaneRate
                | RetryReason::Origin
                | RetryReason::CredentialExpired
                | RetryReason::TokenRate => Self::Reached,
            },
            Outcome::Expired | Outcome::Later { .. } => Self::Unknown,
            Outcome::Gone { .. } | Outcome::Refused(_) => Self::Reached,
        }
    }
}

/// What changed for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Rests,
    Stopped,
    Resumed,
}

#[derive(Debug)]
pub struct Lane {
    max: u32,
    limit: u32,
    in_flight: u32,
    /// Deliveries towards one more in `limit`.
    credit: u32,
    pace: Pace,
    /// Pushes a second before the gate closed.
    usual: u32,
    paused_until_ms: i64,
    gate: Gate,
    breaker_failures: usize,
    /// Tokens whose pushes failed since the last answer.
    failed: Vec<u64>,
    /// What was sent before was lost with a connection that was counted already.
    broken_at_ms: i64,
    health: Health,
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Open,
    Resting {
        probe_at_ms: i64,
        rests: u32,
        probe: Option<i64>,
    },
    Stopped {
        probe_at_ms: i64,
        probe: Option<i64>,
    },
}

impl Lane {
    pub fn new(settings: &LaneSettings) -> Self {
        Self {
            max: settings.concurrency,
            limit: settings.concurrency,
            in_flight: 0,
            credit: 0,
            pace: Pace::new(settings.rate, settings.ramp),
            usual: 0,
            paused_until_ms: i64::MIN,
            gate: Gate::Open,
            breaker_failures: settings.breaker_failures.clamp(1, 1024) as usize,
            failed: Vec::new(),
            broken_at_ms: i64::MIN,
            health: Health::default(),
        }
    }

    pub const fn exists(&self) -> bool {
        self.max > 0
    }

    /// Pushes that may be under way at once; falls below the setting while the provider complains.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Pushes a second that may go now; falls below the setting while the provider complains.
    pub const fn rate(&self) -> u32 {
        self.pace.rate()
    }

    pub const fn in_flight(&self) -> u32 {
        self.in_flight
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
        let gate_ms = match self.gate {
            Gate::Open => i64::MIN,
            Gate::Resting {
                probe: None,
                probe_at_ms,
                ..
            }
            | Gate::Stopped {
                probe: None,
                probe_at_ms,
            } => probe_at_ms,
            Gate::Resting { .. } | Gate::Stopped { .. } => return None,
        };
        Some(gate_ms.max(self.paused_until_ms).max(self.pace.opens_at()))
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

    pub fn note_sent(&mut self, push: i64, now_ms: i64) {
        self.in_flight += 1;
        self.pace.take(now_ms);
        if let Gate::Resting { probe, .. } | Gate::Stopped { probe, .. } = &mut self.gate {
            *probe = Some(push);
        }
    }

    /// Each push that was sent comes back here once.
    pub fn note_answer(&mut self, flight: Flight, sign: Sign, now_ms: i64, random: u64) -> Option<Turn> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let probed = match &mut self.gate {
            Gate::Resting { probe, .. } | Gate::Stopped { probe, .. } if *probe == Some(flight.push) => {
                probe.take().is_some()
            }
            _ => false,
        };
        self.count_failure(flight, sign, now_ms);
        match (self.gate, sign) {
            (Gate::Stopped { .. }, Sign::Healthy) if probed => {
                self.open(now_ms);
                return Some(Turn::Resumed);
            }
            (Gate::Stopped { .. }, _) if probed => self.stop(now_ms),
            // Answers to what was sent before the stop say nothing about the credential now.
            (Gate::Stopped { .. }, _) => {}
            (gate, Sign::CredentialRefused) => {
                if matches!(gate, Gate::Open) {
                    self.note_usual(now_ms);
                }
                self.stop(now_ms);
                return Some(Turn::Stopped);
            }
            (Gate::Resting { .. }, Sign::Unreachable { until_ms }) => {
                if probed {
                    self.rest_until(until_ms);
                }
            }
            (Gate::Resting { rests, .. }, Sign::Outage { .. } | Sign::Broken) => {
                if probed {
                    self.rest(rests.saturating_add(1), sign, now_ms, random);
                }
            }
            (Gate::Resting { rests, .. }, Sign::Unknown) => {
                if probed {
                    self.rest(rests, sign, now_ms, random);
                }
            }
            (Gate::Resting { .. }, _) => self.open(now_ms),
            (Gate::Open, Sign::Unreachable { until_ms }) => {
                self.note_usual(now_ms);
                self.rest_until(until_ms);
                return Some(Turn::Rests);
            }
            (Gate::Open, Sign::Outage { .. } | Sign::Broken) if self.failed.len() >= self.breaker_failures => {
                self.note_usual(now_ms);
                self.rest(0, sign, now_ms, random);
                return Some(Turn::Rests);
            }
            (Gate::Open, _) => {}
        }
        None
    }

    /// The provider says that the lane is too fast: nothing goes for `pause`, then less than before.
    pub fn slow_down(&mut self, pause: Duration, now_ms: i64) {
        // The answers to all pushes under way say the same; they count once.
        if self.paused_until_ms <= now_ms {
            self.limit = (self.limit / 2).max(1);
            self.credit = 0;
            self.pace.slow_down(now_ms);
        }
        self.paused_until_ms = self.paused_until_ms.max(now_ms.saturating_add(millis(pause)));
    }

    pub fn note_delivered(&mut self, now_ms: i64) {
        self.health.note_delivered(now_ms);
        self.pace.rise(now_ms);
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
        self.health.believes_gone(certain, now_ms)
    }

    /// What was learnt with another credential counts no longer.
    pub fn forget_health(&mut self, now_ms: i64) {
        self.health = Health::default();
        if let Gate::Stopped { probe_at_ms, .. } = &mut self.gate {
            *probe_at_ms = now_ms;
        }
    }

    fn count_failure(&mut self, flight: Flight, sign: Sign, now_ms: i64) {
        let is_failure = match sign {
            Sign::Outage { .. } => true,
            // All that was under way on one connection is lost at once, and says one thing.
            Sign::Broken => flight.sent_at_ms >= self.broken_at_ms,
            Sign::Unknown | Sign::Unreachable { .. } => false,
            Sign::Healthy | Sign::Reached | Sign::CredentialRefused => {
                self.failed.clear();
                false
            }
        };
        if !is_failure {
            return;
        }
        if sign == Sign::Broken {
            self.broken_at_ms = now_ms;
        }
        if self.failed.len() < self.breaker_failures && !self.failed.contains(&flight.target) {
            self.failed.push(flight.target);
        }
    }

    fn note_usual(&mut self, now_ms: i64) {
        self.usual = self.pace.sent_lately(now_ms).unwrap_or(0);
    }

    fn open(&mut self, now_ms: i64) {
        self.gate = Gate::Open;
        self.pace.ease_in(self.usual, now_ms);
    }

    fn stop(&mut self, now_ms: i64) {
        self.gate = Gate::Stopped {
            probe_at_ms: now_ms.saturating_add(PROBE_PAUSE_MS),
            probe: None,
        };
    }

    fn rest(&mut self, rests: u32, sign: Sign, now_ms: i64, random: u64) {
        let pause = now_ms.saturating_add(millis(REST.delay(rests, random)));
        let asked = match sign {
            Sign::Outage { until_ms } => until_ms,
            _ => None,
        };
        self.gate = Gate::Resting {
            probe_at_ms: pause.max(asked.unwrap_or(pause)),
            rests,
            probe: None,
        };
    }

    /// Whoever makes the connections paces them.
    fn rest_until(&mut self, probe_at_ms: i64) {
        self.gate = Gate::Resting {
            probe_at_ms,
            rests: 0,
            probe: None,
        };
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The longest pause that is followed, whoever asks for it.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A lane that cannot send asks again after this time at the earliest.
const SHORTEST_HOLD: Duration = Duration::from_millis(10);

/// Pauses between the probes of a lane that cannot reach its provider.
const REST: Backoff = seconds(2, 60);

/// Pause between the probes of a lane whose credential is refused.
const PROBE_PAUSE_MS: i64 = 30_000;

#[cfg(test)]
mod tests;
