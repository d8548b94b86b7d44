//! A lane for each push server: whether one more push may go there, and when to come again if not.
//!
//! In: origins, what became of pushes, a clock that nobody sets (milliseconds), randomness. Out: `Admission`s, whether a dead endpoint is
//! believed. Never: grows beyond its bound, or holds a push.
//!
//! A push that may not go is not kept here: it goes back to the outbox with a time of its own, one after the other at the pace of its
//! origin, but at most for about as long as others have waited already. So a long queue for a slow server costs each push few rounds
//! and no other server any, and a short trouble costs a short wait.

use crate::endpoint::Origin;
use crate::lane::{Flight, Lane, LaneSettings, Sign};
use crate::seeded::Seed;
use std::collections::HashMap;
use std::time::Duration;

/// How much one push server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginSettings {
    /// Push servers remembered at once. One more takes the place of an idle one.
    pub origins: usize,
    pub lane: LaneSettings,
}

pub struct Origins {
    settings: OriginSettings,
    place_by_origin: HashMap<Origin, usize, Seed>,
    lanes: Vec<OriginLane>,
    /// Where the search for an idle one goes on.
    cursor: usize,
    next_push: i64,
}

/// May this push go?
#[derive(Debug)]
pub enum Admission {
    /// It is under way until [`Origins::settle`] is told of its end.
    Go(Ticket),
    /// Not now: its turn comes after this time.
    Later(Duration),
}

/// One push under way to an origin.
#[derive(Debug)]
pub struct Ticket {
    place: usize,
    push: i64,
    sent_at_ms: i64,
}

/// What became of a push, as far as its server is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// It answered; the answer concerns the push alone.
    Answered,
    /// It wants less, and nothing at all for this time.
    TooFast(Duration),
    /// It was not reached, or could not work.
    Outage(Option<Duration>),
    /// The connection ended before the answer.
    Broken,
    /// There was no time for an answer.
    Unknown,
}

/// What an origin says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// 410: the push resource was there and is gone.
    Gone,
    /// 404: so answers a server that never had it, or that lost its way.
    NotFound,
}

struct OriginLane {
    origin: Origin,
    lane: Lane,
    used_at_ms: i64,
    /// When the last of those that were sent away comes again.
    reserved_until_ms: i64,
    /// Since when somebody has always been sent away.
    crowded_since_ms: i64,
    /// Time to an answer, as an average that follows.
    latency_ms: i64,
    /// Pushes under way at most, while it has not delivered anything, or failed since: many servers that swallow requests may not
    /// hold all that the service may have under way. `None` = it delivers.
    trial: Option<u32>,
    delivered_at_ms: Option<i64>,
    /// Lately: halved every ten minutes.
    delivered: u32,
    dead: u32,
    halved_at_ms: i64,
}

impl Origins {
    pub fn new(settings: OriginSettings, seed: Seed) -> Self {
        Self {
            settings: OriginSettings {
                origins: settings.origins.max(1),
                ..settings
            },
            place_by_origin: HashMap::with_hasher(seed),
            lanes: Vec::new(),
            cursor: 0,
            next_push: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub fn admit(&mut self, origin: &Origin, now_ms: i64, random: u64) -> Admission {
        let Some(place) = self.place(origin, now_ms) else {
            return Admission::Later(spread(FULL, random));
        };
        self.next_push += 1;
        let push = self.next_push;
        let Some(one) = self.lanes.get_mut(place) else {
            return Admission::Later(spread(FULL, random));
        };
        one.used_at_ms = now_ms;
        if one.is_on_trial_and_busy() || !one.lane.may_send(now_ms) {
            return Admission::Later(one.turn(now_ms, random));
        }
        one.lane.note_sent(push, now_ms);
        Admission::Go(Ticket {
            place,
            push,
            sent_at_ms: now_ms,
        })
    }

    /// Each ticket comes back here once.
    pub fn settle(&mut self, ticket: Ticket, verdict: Verdict, now_ms: i64, random: u64) {
        // A lane with a push under way is not given to another origin.
        let Some(one) = self.lanes.get_mut(ticket.place) else {
            return;
        };
        let sign = match verdict {
            Verdict::Delivered => Sign::Healthy,
            Verdict::Answered | Verdict::TooFast(_) => Sign::Reached,
            Verdict::Outage(after) => Sign::Outage {
                until_ms: after.map(|after| now_ms.saturating_add(millis(after))),
            },
            Verdict::Broken => Sign::Broken,
            Verdict::Unknown => Sign::Unknown,
        };
        let flight = Flight {
            push: ticket.push,
            // Each failure counts: an origin may have one reader only.
            target: ticket.push.unsigned_abs(),
            sent_at_ms: ticket.sent_at_ms,
        };
        one.lane.note_answer(flight, sign, now_ms, random);
        match verdict {
            Verdict::Delivered => {
                one.lane.note_delivered(now_ms);
                one.halve(now_ms);
                one.delivered = one.delivered.saturating_add(1);
                one.delivered_at_ms = Some(now_ms);
                one.trial = None;
            }
            Verdict::TooFast(pause) => one.lane.slow_down(pause, now_ms),
            Verdict::Outage(_) | Verdict::Broken | Verdict::Unknown => {
                // What others got since says that it was this push alone.
                if one.delivered_at_ms.is_some_and(|at_ms| at_ms > ticket.sent_at_ms) {
                    return;
                }
                one.distrust();
            }
            Verdict::Answered => {}
        }
        let latency_ms = now_ms.saturating_sub(ticket.sent_at_ms).clamp(0, LATENCY_MAX_MS);
        one.latency_ms = (one.latency_ms * 7 + latency_ms) / 8;
    }

    /// Whether what the origin of this push says of its endpoint may delete the subscription. A server that lost its table, or a
    /// proxy before it, may not empty ours: many dead at once are not believed, and a 404 only where pushes are delivered.
    pub fn believes_dead(&mut self, ticket: &Ticket, death: Death, now_ms: i64) -> bool {
        let Some(one) = self.lanes.get_mut(ticket.place) else {
            return false;
        };
        one.halve(now_ms);
        one.dead = one.dead.saturating_add(1);
        let are_few = one.dead <= DEAD_FEW || one.dead.saturating_mul(4) <= one.delivered;
        let delivers = one
            .delivered_at_ms
            .is_some_and(|at_ms| now_ms.saturating_sub(at_ms) <= HEALTHY_MS);
        are_few && (death == Death::Gone || delivers)
    }

    fn place(&mut self, origin: &Origin, now_ms: i64) -> Option<usize> {
        if let Some(place) = self.place_by_origin.get(origin) {
            return Some(*place);
        }
        let fresh = OriginLane {
            origin: origin.clone(),
            lane: Lane::new(&self.settings.lane),
            used_at_ms: now_ms,
            reserved_until_ms: now_ms,
            crowded_since_ms: now_ms,
            latency_ms: 0,
            trial: Some(TRIAL),
            delivered_at_ms: None,
            delivered: 0,
            dead: 0,
            halved_at_ms: now_ms,
        };
        let place = if self.lanes.len() < self.settings.origins {
            self.lanes.push(fresh);
            self.lanes.len() - 1
        } else {
            let place = self.idle_place()?;
            let old = std::mem::replace(self.lanes.get_mut(place)?, fresh);
            self.place_by_origin.remove(&old.origin);
            place
        };
        self.place_by_origin.insert(origin.clone(), place);
        Some(place)
    }

    /// Of the next few lanes with nothing under way the one that rested longest.
    fn idle_place(&mut self) -> Option<usize> {
        let count = self.lanes.len();
        let from = self.cursor;
        self.cursor = (from + LOOKED_AT) % count.max(1);
        (from..from + LOOKED_AT)
            .map(|place| place % count.max(1))
            .filter_map(|place| Some((place, self.lanes.get(place)?)))
            .filter(|(_, one)| one.lane.in_flight() == 0)
            .min_by_key(|(_, one)| one.used_at_ms)
            .map(|(place, _)| place)
    }
}

impl OriginLane {
    /// The next free time at this origin's pace.
    fn turn(&mut self, now_ms: i64, random: u64) -> Duration {
        if self.reserved_until_ms <= now_ms {
            self.crowded_since_ms = now_ms;
        }
        let by_rate = 1_000 / i64::from(self.lane.rate().max(1));
        let limit = self.trial.unwrap_or(self.lane.limit());
        let by_latency = self.latency_ms / i64::from(limit.max(1));
        let step = by_rate.max(by_latency).max(1);
        let opens_at = self
            .lane
            .opens_at()
            .filter(|_| !self.is_on_trial_and_busy())
            .unwrap_or_else(|| now_ms.saturating_add(self.latency_ms.max(SHORTEST_MS)))
            .max(now_ms);
        let crowded_ms = now_ms.saturating_sub(self.crowded_since_ms);
        let horizon_ms = crowded_ms.clamp(millis(SHORTEST_HORIZON), millis(LONGEST_HORIZON));
        let last = opens_at.saturating_add(horizon_ms);
        let turn = self.reserved_until_ms.max(opens_at).saturating_add(step);
        if turn > last {
            let wait = Duration::from_millis(last.saturating_sub(now_ms).unsigned_abs());
            return wait + part(Duration::from_millis(horizon_ms.unsigned_abs()), random);
        }
        self.reserved_until_ms = turn;
        Duration::from_millis(turn.saturating_sub(now_ms).unsigned_abs())
    }

    fn is_on_trial_and_busy(&self) -> bool {
        self.trial.is_some_and(|most| self.lane.in_flight() >= most)
    }

    /// It failed: of what is under way it may keep all, and get a few more, then fewer with each failure.
    fn distrust(&mut self) {
        let few_more = self.lane.in_flight().saturating_add(TRIAL);
        let most = self.trial.map_or(few_more, |most| few_more.min(most.saturating_sub(1)));
        self.trial = Some(most.max(TRIAL));
    }

    fn halve(&mut self, now_ms: i64) {
        let halvings = now_ms.saturating_sub(self.halved_at_ms) / HALVING_MS;
        if halvings > 0 {
            let shift = u32::try_from(halvings).unwrap_or(u32::MAX);
            self.delivered = self.delivered.checked_shr(shift).unwrap_or(0);
            self.dead = self.dead.checked_shr(shift).unwrap_or(0);
            self.halved_at_ms = now_ms;
        }
    }
}

/// Between `least` and half as much again, so that many do not come at once.
fn spread(least: Duration, random: u64) -> Duration {
    least + part(least / 2, random)
}

fn part(whole: Duration, random: u64) -> Duration {
    whole.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Turns are given this far ahead of the time at which the origin may be asked again, and no farther than others have waited
/// already; who finds none asks again then.
const SHORTEST_HORIZON: Duration = Duration::from_secs(2);
const LONGEST_HORIZON: Duration = Duration::from_secs(120);
/// All lanes are busy with other origins.
const FULL: Duration = Duration::from_secs(2);
const SHORTEST_MS: i64 = 50;
const LATENCY_MAX_MS: i64 = 60_000;
/// Pushes under way to an origin that has delivered nothing.
const TRIAL: u32 = 4;
/// Lanes looked at for an idle one.
const LOOKED_AT: usize = 64;
const HALVING_MS: i64 = 600_000;
/// An origin that delivered within the hour knows its endpoints.
const HEALTHY_MS: i64 = 3_600_000;
/// So few dead endpoints are believed whatever their share is; more only up to a quarter of the deliveries.
const DEAD_FEW: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::PushEndpoint;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    fn origin(name: &str) -> Origin {
        let public = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        let made = PushEndpoint::parse(&format!("https://{name}.example/x"), public, "BTBZMqHH6r4Tts7J_aSIgg");
        made.unwrap().origin().clone()
    }

    fn origins(most: usize) -> Origins {
        let lane = LaneSettings {
            rate: 1_000,
            breaker_failures: 3,
            ..LaneSettings::with_concurrency(16)
        };
        Origins::new(OriginSettings { origins: most, lane }, Seed::new([7; 16]))
    }

    fn go(origins: &mut Origins, name: &str, now_ms: i64) -> Ticket {
        match origins.admit(&origin(name), now_ms, 0) {
            Admission::Go(ticket) => ticket,
            Admission::Later(after) => panic!("{name} only after {after:?}"),
        }
    }

    fn later(origins: &mut Origins, name: &str, now_ms: i64) -> Duration {
        match origins.admit(&origin(name), now_ms, 0) {
            Admission::Go(_) => panic!("{name} may send"),
            Admission::Later(after) => after,
        }
    }

    /// Sends once and settles at once.
    fn once(origins: &mut Origins, name: &str, verdict: Verdict, now_ms: i64) {
        let ticket = go(origins, name, now_ms);
        origins.settle(ticket, verdict, now_ms, 0);
    }

    #[test]
    fn a_server_that_fails_rests_and_no_other_does() {
        let mut origins = origins(10);
        for _ in 0..3 {
            once(&mut origins, "bad", Verdict::Outage(None), 0);
        }
        assert!(later(&mut origins, "bad", 0) >= Duration::from_secs(1));
        once(&mut origins, "good", Verdict::Delivered, 0);
        // One probe at a time, and a success opens it.
        let probe = go(&mut origins, "bad", 10_000);
        assert!(later(&mut origins, "bad", 10_000) > Duration::ZERO);
        origins.settle(probe, Verdict::Delivered, 10_001, 0);
        once(&mut origins, "bad", Verdict::Delivered, 10_010);
    }

    #[test]
    fn a_server_that_wants_less_is_left_alone_for_as_long() {
        let mut origins = origins(10);
        once(&mut origins, "a", Verdict::TooFast(Duration::from_secs(60)), 0);
        assert!(later(&mut origins, "a", 59_000) >= Duration::from_secs(1));
        once(&mut origins, "b", Verdict::Delivered, 59_000);
        once(&mut origins, "a", Verdict::Delivered, 60_000);
    }

    #[test]
    fn those_who_wait_come_one_after_the_other_and_not_without_end() {
        let mut origins = origins(10);
        for now_ms in -500..0 {
            once(&mut origins, "a", Verdict::Delivered, now_ms);
        }
        once(&mut origins, "a", Verdict::TooFast(Duration::from_secs(10)), 0);
        let turns: Vec<_> = (0..100).map(|_| later(&mut origins, "a", 0)).collect();
        assert!(turns.is_sorted_by(|a, b| a < b), "{turns:?}");
        assert!(turns[0] > Duration::from_secs(10) && turns[99] <= Duration::from_secs(12));
        for _ in 0..1_000_000 {
            assert!(later(&mut origins, "a", 0) <= Duration::from_secs(14));
        }
    }

    /// Wakeups at an even pace to one server that answers each in `latency_ms`; those `lost` says get no answer within 2 s. How long
    /// each took, and how many times those were sent away on average, until all are delivered.
    fn waits(
        seconds: i64,
        gap_ms: i64,
        latency_ms: impl Fn(i64) -> i64,
        lost: impl Fn(i64, i64) -> bool,
    ) -> (Vec<i64>, f64) {
        let mut origins = origins(1);
        let mut comes: BinaryHeap<Reverse<(i64, i64)>> = (0..seconds * 1_000 / gap_ms)
            .map(|push| Reverse((push * gap_ms, push)))
            .collect();
        let mut ends: BinaryHeap<Reverse<(i64, i64)>> = BinaryHeap::new();
        let mut under_way = HashMap::new();
        let (mut waits, mut rounds) = (Vec::new(), 0);
        while let Some(now_ms) = [comes.peek(), ends.peek()]
            .into_iter()
            .flatten()
            .map(|next| next.0.0)
            .min()
        {
            if ends.peek().is_some_and(|end| end.0.0 == now_ms) {
                let Reverse((_, push)) = ends.pop().unwrap();
                let (ticket, is_lost) = under_way.remove(&push).unwrap();
                let verdict = if is_lost { Verdict::Unknown } else { Verdict::Delivered };
                origins.settle(ticket, verdict, now_ms, 0);
                if is_lost {
                    comes.push(Reverse((now_ms + 1_000, push)));
                } else {
                    waits.push(now_ms - push * gap_ms);
                }
                continue;
            }
            let Reverse((_, push)) = comes.pop().unwrap();
            let random = push.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15);
            match origins.admit(&origin("a"), now_ms, random) {
                Admission::Go(ticket) => {
                    let is_lost = lost(push, now_ms);
                    let end = now_ms + if is_lost { 2_000 } else { latency_ms(now_ms) };
                    under_way.insert(push, (ticket, is_lost));
                    ends.push(Reverse((end, push)));
                }
                Admission::Later(after) => {
                    rounds += 1;
                    comes.push(Reverse((now_ms + after.as_millis() as i64, push)));
                }
            }
        }
        let average = f64::from(rounds) / waits.len() as f64;
        (waits, average)
    }

    #[test]
    fn single_pushes_without_an_answer_delay_no_neighbour() {
        let is_lost = |push: i64, now_ms| push % 200 == 7 && now_ms < push * 3 + 500;
        let (mut waits, rounds) = waits(60, 3, |_| 1, is_lost);
        waits.sort_unstable();
        assert_eq!(waits[waits.len() * 98 / 100], 1, "each but the lost ones goes at once");
        assert!(rounds < 0.01, "{rounds}");
    }

    #[test]
    fn a_trouble_of_seconds_costs_a_wait_of_seconds() {
        let is_lost = |_, now_ms| (10_000..13_000).contains(&now_ms);
        let (waits, rounds) = waits(60, 3, |_| 1, is_lost);
        let longest = waits.iter().max().unwrap();
        assert!(*longest < 20_000, "{longest} ms, {rounds} rounds");
    }

    #[test]
    fn a_long_queue_for_a_slow_server_costs_each_push_few_rounds() {
        // 16 at once in two seconds are 8 a second; 100 come for a minute.
        let (waits, rounds) = waits(60, 10, |_| 2_000, |_, _| false);
        assert_eq!(waits.len(), 6_000);
        let longest = waits.iter().max().unwrap();
        assert!(*longest < 1_000_000 && rounds < 20.0, "{longest} ms, {rounds} rounds");
    }

    #[test]
    fn a_connection_that_broke_counts_once_however_many_pushes_it_took_along() {
        let mut origins = origins(10);
        once(&mut origins, "a", Verdict::Delivered, 0);
        let tickets: Vec<_> = (0..10).map(|_| go(&mut origins, "a", 10)).collect();
        for ticket in tickets {
            origins.settle(ticket, Verdict::Broken, 20, 0);
        }
        once(&mut origins, "a", Verdict::Delivered, 30);
    }

    #[test]
    fn few_wait_for_a_server_that_has_not_delivered() {
        let mut origins = origins(10);
        let tickets: Vec<_> = (0..4).map(|_| go(&mut origins, "new", 0)).collect();
        assert!(later(&mut origins, "new", 0) >= Duration::from_millis(50));
        for ticket in tickets {
            origins.settle(ticket, Verdict::Delivered, 100, 0);
        }
        let tickets: Vec<_> = (0..16).map(|_| go(&mut origins, "new", 1_000)).collect();
        later(&mut origins, "new", 1_000);
        for ticket in tickets {
            origins.settle(ticket, Verdict::Outage(None), 11_000, 0);
        }
        // Slow answers make the turns of those who wait longer.
        assert!(later(&mut origins, "new", 11_000) >= Duration::from_millis(500));
    }

    #[test]
    fn the_table_keeps_its_bound_and_never_drops_who_has_a_push_under_way() {
        let mut origins = origins(100);
        let busy = go(&mut origins, "busy", 0);
        for number in 0..10_000 {
            once(
                &mut origins,
                &format!("n{number}"),
                Verdict::Delivered,
                i64::from(number),
            );
        }
        assert_eq!(origins.len(), 100);
        origins.settle(busy, Verdict::Delivered, 10_000, 0);
        let mut full = super::tests::origins(3);
        let _held: Vec<_> = ["a", "b", "c"].map(|name| go(&mut full, name, 0)).into();
        assert!(later(&mut full, "d", 0) >= FULL);
    }

    #[test]
    fn a_gone_endpoint_is_believed_unless_many_are_gone_at_once() {
        let mut origins = origins(10);
        let ticket = go(&mut origins, "a", 0);
        for number in 1..=5 {
            assert!(origins.believes_dead(&ticket, Death::Gone, 0), "{number}");
        }
        assert!(!origins.believes_dead(&ticket, Death::Gone, 0), "all of them");
        origins.settle(ticket, Verdict::Answered, 0, 0);
        let ticket = go(&mut origins, "a", HALVING_MS * 4);
        assert!(
            origins.believes_dead(&ticket, Death::Gone, HALVING_MS * 4),
            "later again"
        );
    }

    #[test]
    fn a_404_counts_only_from_a_server_that_delivers() {
        let mut origins = origins(10);
        let ticket = go(&mut origins, "a", 0);
        assert!(!origins.believes_dead(&ticket, Death::NotFound, 0));
        origins.settle(ticket, Verdict::Delivered, 0, 0);
        let ticket = go(&mut origins, "a", 10);
        assert!(origins.believes_dead(&ticket, Death::NotFound, 10));
        assert!(!origins.believes_dead(&ticket, Death::NotFound, HEALTHY_MS + 1));
    }
}
