//! What it takes until a call stands, and what the relay adds to it: ours beside Debian's coturn, in one run, by turns.
//!
//! In: a client that asks one thing after the other; a browser that calls itself; pairs of clients with steady packets. Out: time from
//! request to answer for each message of a setup, time until a browser is connected, latency of packets; each beside coturn's.
//!
//! `-- only=PART` of `answers`, `browser`, `media`; `-- clients=N` that ask, `-- calls=N` of the browser through each relay,
//! `-- pairs=N`, `-- rounds=N` of media, `-- threads=N` (of each server).

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on stops"
)]

#[path = "../relay/bare.rs"]
#[allow(dead_code, reason = "what a relay carries is another benchmark")]
mod bare;
#[path = "../relay/batch.rs"]
#[allow(dead_code, reason = "what a relay carries is another benchmark")]
mod batch;
#[path = "../../tests/browser/calls.rs"]
#[allow(dead_code, reason = "what the browser is asked in tests is more")]
mod calls;
#[path = "../../tests/browser/chromium.rs"]
mod chromium;
#[path = "../relay/clients.rs"]
mod clients;
#[path = "../../browser/headless.rs"]
mod headless;
#[path = "../relay/load.rs"]
#[allow(dead_code, reason = "what a relay carries is another benchmark")]
mod load;
#[path = "../support/report.rs"]
mod report;
#[path = "../relay/servers.rs"]
#[allow(dead_code, reason = "what a relay carries is another benchmark")]
mod servers;
#[path = "../relay/stun.rs"]
mod stun;

mod answers;
mod browser;
mod media;

use servers::{Kind, Place};

/// Who is measured, in the order of each round.
const BOTH: [Kind; 2] = [Kind::Coturn, Kind::Ours];

/// Calls at once.
const PAIRS: [usize; 2] = [50, 200];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let named = |name: &str| arguments.iter().find_map(|argument| argument.strip_prefix(name));
    let number = |name: &str, default: usize| named(name).map_or(default, |value| value.parse().unwrap());
    let only = named("only=").unwrap_or_default();
    let wants = |part: &str| part.contains(only);
    quietline_lab::system::raise_open_files();
    let cores = batch::processors();
    let threads = number("threads=", 1);
    let (servers, players) = cores.split_at(threads.min(cores.len()));
    // One processor for both is enough to see that it runs, not to measure.
    let players = if players.is_empty() { servers } else { players };
    let folder = std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(3)
        .unwrap()
        .join("bench-labs/calls");
    let place = Place {
        folder: folder.clone(),
        threads,
        processors: servers.to_vec(),
    };
    report::note(&format!(
        "calls: Debian's coturn {} and ours, by turns; each has {threads} thread(s)",
        servers::coturn_version()
    ));
    if wants("answers") {
        answers::measure(&place, players, number("clients=", 2_000));
    }
    if wants("browser") {
        browser::measure(&folder, threads, number("calls=", 20));
    }
    if wants("media") {
        // One processor is left to the rest of the machine, whose work would look like latency.
        let players = players.get(..2).unwrap_or(players);
        for pairs in number("pairs=", 0)
            .checked_sub(1)
            .map_or_else(|| PAIRS.to_vec(), |less| vec![less + 1])
        {
            media::measure(&place, players, pairs, number("rounds=", 15));
        }
    }
}
