//! Steady packets through relayed pairs: how long each takes from one end to the other.
//!
//! In: two servers, how many pairs. Out: latency of the packets of both directions. Never: more than one server at work.

use crate::batch::Awake;
use crate::clients::Crowd;
use crate::load::{Direction, Histogram, Load, run};
use crate::servers::{Kind, Place, Server};
use crate::{BOTH, report};
use report::{Goal, percentile};
use std::time::Duration;

/// As sound is sent: one packet each 20 ms.
const PACKETS_PER_SECOND: f64 = 50.0;
/// Opus at 64 kbit/s, with its headers.
const PAYLOAD: usize = 172;
/// What is due leaves together, so often: packets of different calls know nothing of each other.
const TICK: Duration = Duration::from_micros(50);
const LOOK: Duration = Duration::from_micros(50);
const WARM: Duration = Duration::from_millis(100);
const MEASURED: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 64;
/// A turn whose load fell behind its schedule shows what the machine did: then once more, a few times.
const BEARABLE_LATE: Duration = Duration::from_millis(2);
const TRIES: usize = 4;

pub fn measure(place: &Place, players: &[usize], pairs: usize, rounds: usize) {
    let mut fields = BOTH.map(|kind| {
        let server = place.start(kind);
        let share = players.len();
        let crowd = |number: usize| {
            let pairs = pairs * (number + 1) / share - pairs * number / share;
            let mut crowd = Crowd::new(&server, number, pairs * 2);
            crowd.allocate(AT_ONCE);
            crowd.pair();
            crowd.bind(AT_ONCE);
            crowd
        };
        let crowds: Vec<Crowd> = (0..share).map(crowd).collect();
        (server, crowds)
    });
    let load = Load {
        direction: Direction::Within,
        payload: PAYLOAD,
        burst: 1,
        rate: PACKETS_PER_SECOND * 2.0 * pairs as f64,
        tick: TICK,
        look: LOOK,
        warm: WARM,
        measured: MEASURED,
    };
    report::note(&format!(
        "media: {pairs} pairs, {PACKETS_PER_SECOND} packets a second from each end, {rounds} rounds of {MEASURED:?}"
    ));
    // A processor that halts when it has nothing to do is woken late by the host of a virtual machine: that is the machine's.
    let awake = Awake::keep(&place.processors);
    tell(&mut fields, players, &load, rounds, &format!("{pairs} pairs"));
    drop(awake);
    let asleep = format!("{pairs} pairs, processor sleeps between packets");
    tell(&mut fields, players, &load, rounds, &asleep);
}

fn tell(fields: &mut [(Server, Vec<Crowd>); 2], players: &[usize], load: &Load, rounds: usize, name: &str) {
    let mut latencies: [Vec<Histogram>; 2] = Default::default();
    let (mut sent, mut lost) = ([0; 2], [0; 2]);
    for round in 0..=rounds {
        for step in 0..fields.len() {
            let at = (round + step) % fields.len();
            let (server, crowds) = &mut fields[at];
            let mut once = || run(crowds, server.process(), players, load);
            let mut outcome = once();
            for _ in 1..TRIES {
                if outcome.late <= BEARABLE_LATE {
                    break;
                }
                outcome = once();
            }
            assert_eq!(
                outcome.wrong,
                0,
                "{}: packets came, but not as they were sent",
                server.kind.name()
            );
            // The first round only makes everything warm.
            if round > 0 {
                sent[at] += outcome.sent;
                lost[at] += outcome.sent.saturating_sub(outcome.received);
                latencies[at].push(outcome.latency);
            }
        }
    }
    report::note(&format!(
        "packets: coturn {}, {} lost; ours {}, {} lost",
        sent[0], lost[0], sent[1], lost[1]
    ));
    // A moment in which the machine stands still spoils its own round and no other.
    let of = |kind: Kind, share| {
        let at = BOTH.iter().position(|one| *one == kind).unwrap_or_default();
        let mut each: Vec<Duration> = latencies[at].iter().map(|one| one.at(share)).collect();
        percentile(&mut each, 500).as_secs_f64() * 1e6
    };
    for (what, share, is_goal) in [("p50", 0.5, false), ("p99", 0.99, true)] {
        let coturn = of(Kind::Coturn, share);
        report::figure(
            &format!("calls: media latency with {name}, {what}, median of rounds"),
            of(Kind::Ours, share),
            "us",
            if is_goal { Goal::AtMost(coturn) } else { Goal::None },
            &[("coturn", coturn)],
        );
    }
}
