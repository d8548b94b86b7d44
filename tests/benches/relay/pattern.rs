//! The patterns, and how one is measured on all servers in turn.
//!
//! In: servers with their crowds. Out: a reading per server, round and pace. Never: gives one server a rate that another does not get,
//! but at saturation, where each has its own.

use crate::batch::Awake;
use crate::clients::Crowd;
use crate::load::{Direction, Load, Outcome, run};
use crate::report::percentile;
use crate::servers::{Kind, Server};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    pub direction: Direction,
    pub clients: usize,
    pub payload: usize,
    pub burst: usize,
}

impl Pattern {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for direction in [Direction::ToPeer, Direction::ToClient, Direction::Within] {
            for clients in [200, 2_000] {
                for payload in [172, 1_200] {
                    for burst in [1, 16] {
                        all.push(Self {
                            direction,
                            clients,
                            payload,
                            burst,
                        });
                    }
                }
            }
        }
        all
    }

    /// As `only=` names it.
    pub fn name(&self) -> String {
        let direction = match self.direction {
            Direction::ToPeer => "client-to-peer",
            Direction::ToClient => "peer-to-client",
            Direction::Within => "within",
        };
        let pace = if self.burst > 1 { "bursts" } else { "even" };
        format!("{direction}-{}-{}-{pace}", self.clients, self.payload)
    }

    /// Packets a second that every server carries with ease: what a relay has to do most of its days.
    pub fn easy_rate(&self) -> f64 {
        if self.clients > 1_000 { 60_000.0 } else { 30_000.0 }
    }

    fn load(&self, rate: f64, times: Times, measured: Duration) -> Load {
        Load {
            direction: self.direction,
            payload: self.payload,
            burst: self.burst,
            rate,
            tick: times.tick,
            look: times.look,
            warm: times.warm,
            measured,
        }
    }
}

/// One server and who plays on it.
pub struct Field {
    pub server: Server,
    pub crowds: Vec<Crowd>,
}

impl Field {
    fn run(&mut self, processors: &[usize], load: &Load) -> Outcome {
        run(&mut self.crowds, self.server.process(), processors, load)
    }

    /// A load that fell behind its schedule shows what the machine did, not what the server does: then once more, a few times.
    fn run_in_time(&mut self, processors: &[usize], load: &Load) -> Outcome {
        let mut best = self.run(processors, load);
        for _ in 1..TRIES {
            if best.late <= BEARABLE_LATE {
                break;
            }
            let mut again = self.run(processors, load);
            // What came wrong counts, whenever it came.
            again.wrong += best.wrong;
            if again.late < best.late {
                best = again;
            } else {
                best.wrong = again.wrong;
            }
        }
        best
    }
}

/// How fast packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    Easy,
    /// Half of what the slowest server can.
    Half,
    /// As much as this server can.
    Saturated,
    /// Half again, on processors that do not go to sleep: what latency is measured at.
    Awake,
}

impl Pace {
    /// Those at which packets per processor second are measured.
    pub const CARRYING: [Self; 3] = [Self::Easy, Self::Half, Self::Saturated];
    const ALL: [Self; 4] = [Self::Easy, Self::Half, Self::Saturated, Self::Awake];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Half => "half",
            Self::Saturated => "saturated",
            Self::Awake => "awake",
        }
    }
}

/// All readings of one server.
pub struct Readings {
    pub kind: Kind,
    /// Packets a second at saturation.
    pub saturation: f64,
    /// By pace, a value per round.
    pub rounds: [Vec<Outcome>; Pace::ALL.len()],
}

impl Readings {
    pub fn packets(&self, pace: Pace) -> Vec<f64> {
        self.rounds[pace as usize]
            .iter()
            .map(Outcome::per_processor_second)
            .collect()
    }

    /// p99 of each round, microseconds: the median of its turns, as a moment in which the machine stands still spoils its own turn and no
    /// other.
    pub fn latencies(&self, pace: Pace) -> Vec<f64> {
        let of = |outcome: &Outcome| percentile(&mut outcome.p99s.clone(), 500).as_secs_f64() * 1e6;
        self.rounds[pace as usize].iter().map(of).collect()
    }
}

/// Times of one measurement.
#[derive(Clone, Copy)]
pub struct Times {
    pub rounds: usize,
    pub tick: Duration,
    pub look: Duration,
    pub warm: Duration,
    pub measured: Duration,
}

/// `servers` and `processors`: where the servers run, and the load.
pub fn measure(
    fields: &mut [Field],
    pattern: &Pattern,
    servers: &[usize],
    processors: &[usize],
    times: Times,
) -> Vec<Readings> {
    let mut readings: Vec<Readings> = fields
        .iter_mut()
        .map(|field| Readings {
            kind: field.server.kind,
            saturation: saturation(field, pattern, processors, times),
            rounds: [const { Vec::new() }; Pace::ALL.len()],
        })
        .collect();
    let slowest = readings.iter().map(|one| one.saturation).fold(f64::INFINITY, f64::min);
    for round in 0..times.rounds {
        for pace in Pace::ALL {
            let mut outcomes = vec![Outcome::default(); fields.len()];
            let _awake = (pace == Pace::Awake).then(|| Awake::keep(servers));
            for slice in 0..SLICES {
                for step in 0..fields.len() {
                    // Each slice begins with another server.
                    let place = (round + slice + step) % fields.len();
                    let rate = match pace {
                        Pace::Easy => pattern.easy_rate().min(slowest * 0.8),
                        Pace::Half | Pace::Awake => slowest / 2.0,
                        Pace::Saturated => readings[place].saturation,
                    };
                    let load = pattern.load(rate, times, times.measured / SLICES as u32);
                    outcomes[place].merge(&fields[place].run_in_time(processors, &load));
                }
            }
            // The first round only makes everything warm.
            if round == 0 && times.rounds > 1 {
                continue;
            }
            for (one, outcome) in readings.iter_mut().zip(outcomes) {
                one.rounds[pace as usize].push(outcome);
            }
        }
    }
    readings
}

/// The highest paced rate that loses nothing to speak of. Begins at what comes through when far too much is sent, goes up by what its
/// processors have left, and then halves the distance between what went and what did not.
fn saturation(field: &mut Field, pattern: &Pattern, processors: &[usize], times: Times) -> f64 {
    let measured = times.measured.min(Duration::from_millis(200));
    let too_much = if pattern.burst > 1 { 4_000_000.0 } else { 1_500_000.0 };
    let flood = field.run(processors, &pattern.load(too_much, times, measured));
    let mut rate = flood.per_second().max(LEAST);
    let (mut carried, mut refused) = (None, None);
    for _ in 0..PROBES {
        let load = pattern.load(rate, times, measured);
        let is_carried = |outcome: &Outcome| outcome.loss() < BEARABLE_LOSS && outcome.per_second() > rate * 0.97;
        // One moment in which the machine stands still would look like a loss of the server's.
        let outcome = (0..TRIES).map(|_| field.run(processors, &load)).find(is_carried);
        match outcome {
            Some(outcome) => {
                carried = Some(rate);
                let busy = outcome.busy() / field.server.threads as f64;
                rate *= (1.0 / busy.max(0.1)).clamp(STEP, 2.0);
            }
            None => {
                refused = Some(rate);
                rate /= STEP;
            }
        }
        if let (Some(carried), Some(refused)) = (carried, refused) {
            if refused < carried * STEP * STEP {
                break;
            }
            rate = (carried * refused).sqrt();
        }
    }
    carried.unwrap_or(rate)
}

/// The servers take turns within a round, so that a moment when the machine is slow is nobody's own.
const SLICES: usize = 4;
/// Whatever else the machine does, this must go.
const LEAST: f64 = 10_000.0;
const BEARABLE_LOSS: f64 = 0.005;
const STEP: f64 = 1.05;
const PROBES: usize = 12;
/// Of a probe that fails, or a slice that is late.
const TRIES: usize = 4;
/// Two ticks.
const BEARABLE_LATE: Duration = Duration::from_millis(2);
