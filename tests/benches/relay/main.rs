//! The relay beside Debian's coturn and a bare forwarder, in one run, by turns.
//!
//! In: packets paced by an absolute schedule, and bursts of allocations. Out: per pattern, packets per processor second of each server
//! process and p99 latency; allocations per processor second; memory per idle allocation; each as a ratio, with its spread over the
//! rounds. Ends with a failure if the bare forwarder is too weak to be a yardstick, or a packet came back wrong.
//!
//! `-- only=PART` for patterns with this in their name (`client-to-peer-200-172-even`, `allocations`), `-- rounds=N`, `-- quick`,
//! `-- threads=N` (of each server), `-- servers=coturn,bare,ours`, `-- window=MS`, `-- tick=US`, `-- look=US`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on stops"
)]

#[path = "../support/report.rs"]
mod report;

mod allocations;
mod bare;
mod batch;
mod clients;
mod load;
mod pattern;
mod servers;
mod stun;

use clients::Crowd;
use load::{Direction, Outcome};
use pattern::{Field, Pace, Pattern, Readings, Times, measure};
use report::Goal;
use servers::{Kind, Place};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Of coturn at 200 clients: below, the bare forwarder is no yardstick.
const YARDSTICK: f64 = 1.9;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, address, threads] = arguments.as_slice()
        && word == "as-bare"
    {
        bare::run(address.parse().unwrap(), threads.parse().unwrap()).unwrap();
        return ExitCode::SUCCESS;
    }
    let plan = Plan::new(&arguments);
    plan.tell();
    let began = Instant::now();
    let mut rows = Vec::new();
    for pattern in Pattern::all().into_iter().filter(|pattern| plan.wants(&pattern.name())) {
        let row = Row::new(
            pattern,
            measure(
                &mut plan.fields(&pattern),
                &pattern,
                &plan.place.processors,
                &plan.players,
                plan.times,
            ),
        );
        row.tell(began.elapsed());
        rows.push(row);
    }
    if plan.wants("allocations") {
        tell_allocations(&plan);
    }
    println!("\nrelay: all patterns, as ratios");
    rows.iter().for_each(Row::summarize);
    let verdict = verdict(&rows);
    println!("took {:.0} s", began.elapsed().as_secs_f64());
    verdict
}

/// What this run does.
struct Plan {
    place: Place,
    players: Vec<usize>,
    times: Times,
    kinds: Vec<Kind>,
    only: String,
}

impl Plan {
    fn new(arguments: &[String]) -> Self {
        let is_quick = arguments.iter().any(|argument| argument == "quick");
        let named = |name: &str| {
            arguments
                .iter()
                .find_map(|argument| argument.strip_prefix(name).map(str::to_owned))
        };
        let number = |name: &str, default: usize| named(name).map_or(default, |value| value.parse().unwrap());
        quietline_lab::system::raise_open_files();
        let cores = batch::processors();
        let threads = number("threads=", 1);
        let (servers, players) = cores.split_at(threads.min(cores.len()));
        // One processor for both is enough to see that it runs, not to measure.
        let players = if players.is_empty() { servers } else { players };
        let mut kinds = vec![Kind::Coturn, Kind::Bare, Kind::Ours];
        if let Some(names) = named("servers=") {
            kinds.retain(|kind| names.contains(kind.name()));
        }
        Self {
            place: Place {
                folder: std::env::current_exe()
                    .unwrap()
                    .ancestors()
                    .nth(3)
                    .unwrap()
                    .join("bench-labs/relay"),
                threads,
                processors: servers.to_vec(),
            },
            players: players.iter().copied().take(number("players=", 3)).collect(),
            times: Times {
                rounds: number("rounds=", if is_quick { 2 } else { 8 }),
                tick: Duration::from_micros(number("tick=", 1000) as u64),
                look: Duration::from_micros(number("look=", 50) as u64),
                warm: Duration::from_millis(25),
                measured: Duration::from_millis(number("window=", if is_quick { 200 } else { 500 }) as u64),
            },
            kinds,
            only: named("only=").unwrap_or_default(),
        }
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    fn tell(&self) {
        let Times {
            rounds, tick, measured, ..
        } = self.times;
        report::note(&format!(
            "relay: Debian's coturn {}, a bare forwarder and ours, by turns; {rounds} rounds, the first dropped, {measured:?} each; each \
             server has {} thread(s) on processor(s) {:?}, the load runs on {:?}; what is due leaves every {tick:?}",
            servers::coturn_version(),
            self.place.threads,
            self.place.processors,
            self.players,
        ));
        report::note(&format!(
            "our limits that are lifted: {}",
            servers::LIFTED.replace('\n', ", ")
        ));
    }

    /// All servers with their clients, those that the pattern is about.
    fn fields(&self, pattern: &Pattern) -> Vec<Field> {
        let field = |kind: &Kind| {
            let server = self.place.start(*kind);
            let (pairs, share) = (pattern.clients / 2, self.players.len());
            let crowd = |number: usize| {
                let pairs = pairs * (number + 1) / share - pairs * number / share;
                let mut crowd = Crowd::new(&server, number, pairs * 2);
                crowd.allocate(AT_ONCE);
                if pattern.direction == Direction::Within {
                    crowd.pair();
                }
                crowd.bind(AT_ONCE);
                crowd
            };
            let crowds = (0..share).map(crowd).collect();
            Field { server, crowds }
        };
        self.kinds.iter().map(field).collect()
    }
}

const AT_ONCE: usize = 64;

/// One pattern, measured.
struct Row {
    pattern: Pattern,
    readings: Vec<Readings>,
}

impl Row {
    fn new(pattern: Pattern, readings: Vec<Readings>) -> Self {
        Self { pattern, readings }
    }

    fn of(&self, kind: Kind) -> Option<&Readings> {
        self.readings.iter().find(|one| one.kind == kind)
    }

    /// Of the same rounds, so that a slow moment of the machine is in both.
    fn ratio(&self, one: Kind, other: Kind, values: impl Fn(&Readings) -> Vec<f64>) -> Option<Spread> {
        let (one, other) = (values(self.of(one)?), values(self.of(other)?));
        Some(Spread::of(
            one.iter().zip(other).map(|(one, other)| one / other).collect(),
        ))
    }

    fn tell(&self, since: Duration) {
        println!("\nrelay {} (after {:.0} s)", self.pattern.name(), since.as_secs_f64());
        for one in &self.readings {
            let paces = Pace::CARRYING.map(|pace| {
                let outcomes = &one.rounds[pace as usize];
                let busy = outcomes.iter().map(Outcome::busy).sum::<f64>() / outcomes.len() as f64;
                format!(
                    "{} {} (busy {busy:.2})",
                    pace.name(),
                    Spread::of(one.packets(pace)).thousands()
                )
            });
            let all = || one.rounds.iter().flatten();
            println!(
                "  {:6} carries {:>7.0}/s; packets per processor second, thousands: {}; p99 {} us, asleep {} us; lost {:.3} %, wrong {}, late {:.1} ms",
                one.kind.name(),
                one.saturation,
                paces.join(", "),
                Spread::of(one.latencies(Pace::Awake)),
                Spread::of(one.latencies(Pace::Half)),
                all()
                    .map(|outcome| outcome.sent.saturating_sub(outcome.received))
                    .sum::<u64>() as f64
                    * 100.0
                    / all().map(|outcome| outcome.sent).sum::<u64>().max(1) as f64,
                all().map(|outcome| outcome.wrong).sum::<u64>(),
                all()
                    .map(|outcome| outcome.late)
                    .max()
                    .unwrap_or_default()
                    .as_secs_f64()
                    * 1e3,
            );
        }
        self.summarize();
    }

    fn summarize(&self) {
        let name = self.pattern.name();
        for pace in Pace::CARRYING {
            let ratio = |one, other| self.ratio(one, other, |readings| readings.packets(pace));
            let to_bare = ratio(Kind::Ours, Kind::Bare);
            let to_coturn = ratio(Kind::Ours, Kind::Coturn);
            let yardstick = ratio(Kind::Bare, Kind::Coturn);
            let coturn_goal = match self.pattern.direction {
                Direction::Within => Goal::AtLeast(3.2),
                _ => Goal::None,
            };
            let texts: Vec<String> = [
                ("ours/bare", to_bare, Goal::AtLeast(0.85)),
                ("ours/coturn", to_coturn, coturn_goal),
                ("bare/coturn", yardstick, Goal::None),
            ]
            .into_iter()
            .filter_map(|(what, ratio, goal)| Some(format!("{what} {}{}", ratio?, met(&goal, ratio?.median))))
            .collect();
            if !texts.is_empty() {
                println!("{name:34} {:9} {}", pace.name(), texts.join("   "));
            }
        }
        let latencies = |readings: &Readings| readings.latencies(Pace::Awake);
        if let Some(ratio) = self.ratio(Kind::Ours, Kind::Bare, latencies) {
            println!(
                "{name:34} p99       ours/bare {ratio}{}",
                met(&Goal::AtMost(1.2), ratio.median)
            );
        }
    }
}

fn tell_allocations(plan: &Plan) {
    let kinds: Vec<Kind> = plan.kinds.iter().copied().filter(|kind| *kind != Kind::Bare).collect();
    let readings = allocations::measure(&plan.place, &kinds, plan.times.rounds, plan.players[0]);
    let of = |kind| readings.iter().find(|one| one.kind == kind);
    println!();
    for one in &readings {
        report::note(&format!(
            "{}: {} thousand allocations a processor second; bytes each: {} idle, {} with a channel",
            one.kind.name(),
            Spread::of(one.allocations.clone()).thousands(),
            Spread::of(one.bytes.clone()),
            Spread::of(one.bytes_bound.clone())
        ));
    }
    if let (Some(ours), Some(coturn)) = (of(Kind::Ours), of(Kind::Coturn)) {
        let median = |values: &[f64]| Spread::of(values.to_vec()).median;
        report::figure(
            "relay: allocations per processor second",
            median(&ours.allocations),
            "/s",
            Goal::AtLeast(5.0 * median(&coturn.allocations)),
            &[("coturn", median(&coturn.allocations))],
        );
        report::figure(
            "relay: memory of an idle allocation",
            median(&ours.bytes),
            "B",
            Goal::AtMost(1024.0),
            &[("coturn", median(&coturn.bytes))],
        );
    }
}

fn met(goal: &Goal, value: f64) -> &'static str {
    match goal {
        Goal::AtLeast(least) if value >= *least => " (met)",
        Goal::AtMost(most) if value <= *most => " (met)",
        Goal::None => "",
        _ => " (NOT met)",
    }
}

/// Whether the figures mean anything.
fn verdict(rows: &[Row]) -> ExitCode {
    let wrong: u64 = rows
        .iter()
        .flat_map(|row| &row.readings)
        .flat_map(|one| one.rounds.iter().flatten())
        .map(|outcome| outcome.wrong)
        .sum();
    if wrong > 0 {
        println!("VOID: {wrong} packets came, but not as they were sent");
        return ExitCode::FAILURE;
    }
    let logarithms: Vec<f64> = rows
        .iter()
        // Within it has half the work of coturn, so that says nothing.
        .filter(|row| row.pattern.clients == 200 && row.pattern.direction != Direction::Within)
        .filter_map(|row| row.ratio(Kind::Bare, Kind::Coturn, |one| one.packets(Pace::Saturated)))
        .map(|ratio| ratio.median.ln())
        .collect();
    if logarithms.is_empty() {
        return ExitCode::SUCCESS;
    }
    let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
    println!(
        "bare/coturn at 200 clients to and from peers, saturated, geometric mean of {} patterns: {mean:.2}",
        logarithms.len()
    );
    if mean < YARDSTICK {
        println!("VOID: the bare forwarder must reach {YARDSTICK} times coturn to be a yardstick");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A median with the least and the most.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self {
            median: (at(last / 2) + at(last.div_ceil(2))) / 2.0,
            least: at(0),
            most: at(last),
        }
    }

    fn thousands(self) -> Self {
        Self {
            median: self.median / 1e3,
            least: self.least / 1e3,
            most: self.most / 1e3,
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.most < 10.0 {
            2
        } else if self.most < 100.0 {
            1
        } else {
            0
        };
        write!(
            f,
            "{:.digits$} [{:.digits$}-{:.digits$}]",
            self.median, self.least, self.most
        )
    }
}
