//! Everything the lab says, in lines that need no knowledge of push, swarms or TURN.
//!
//! In: what happened, and when. Out: lines on standard output. Never: keys; ids and tokens only of phones that it made up.

use quietline_lab::lab::Lab;
use quietline_lab::ledger::Ledger;
use quietline_lab::provider::Delivery;
use quietline_lab::turn::call::Call;
use quietline_lab::turn::relay::Relay;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One line. Who has closed the pipe does not want it any more.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub fn world(lab: &Lab, phones: u32) {
    let settings = &lab.settings;
    let nodes = settings.swarms * settings.nodes_per_swarm;
    say(&format!(
        "  folder     {}  (new keys, settings, databases, the notifier's log)",
        settings.folder.display()
    ));
    say(&format!(
        "  network    {nodes} storage nodes in {} swarms, 1 oxend, {} seed: fakes on libzmq, encrypted with CURVE",
        settings.swarms, settings.seeds
    ));
    say("  providers  Apple, Apple's sandbox, Google: fakes over TLS and HTTP/2, as strict as the real ones");
    say(&format!(
        "  phones     {phones}, on libsodium; not a line of code shared with the notifier"
    ));
}

pub fn notifier(lab: &Lab, took: Duration) {
    say(&format!(
        "  notifier   the real one, ready after {:.2} s",
        took.as_secs_f64()
    ));
    say(&format!("             settings {}", lab.settings_file().display()));
    say(&format!("             metrics  http://{}/metrics", lab.ops_address()));
}

pub fn relay(relay: &Relay, took: Duration) {
    say(&format!(
        "  relay      the real one, ready after {:.2} s, for UDP, TCP and TLS on {}",
        took.as_secs_f64(),
        relay.address
    ));
    say(&format!("             settings {}", relay.settings_file().display()));
    say(&format!("             metrics  http://{}/metrics\n", relay.ops));
}

pub fn everybody(phones: usize, took: Duration, rate: u32) {
    say(&format!(
        "\nNow all {phones} phones are subscribed and watched ({:.2} s). From here on {rate} messages a second; Ctrl-C ends.\n",
        took.as_secs_f64()
    ));
}

/// The steps of one message, with the time since its phone asked to be woken.
pub struct Journey {
    began: Instant,
}

impl Journey {
    pub fn begin() -> Self {
        say("One message, step by step:");
        Self { began: Instant::now() }
    }

    pub fn subscribed(&self) {
        self.step(
            Instant::now(),
            "subscribed",
            "an iPhone asked, through an onion request, to be woken for its account",
        );
    }

    pub fn watched(&self, watching: usize, swarm: usize) {
        let what = format!(
            "the notifier asked {watching} of the {swarm} storage nodes that keep this account's messages to tell it of new ones"
        );
        self.step(Instant::now(), "watched", &what);
    }

    pub fn stored(&self, nodes: usize, at: Instant) {
        let what = format!("somebody wrote to the account: its {nodes} nodes now keep the encrypted message");
        self.step(at, "stored", &what);
    }

    pub fn notified(&self, pushes: u64) {
        self.more(
            "notified",
            &format!("{pushes} nodes told the notifier; it kept the first copy, the others are the same message"),
        );
    }

    pub fn sealed(&self, sealed: usize, text: usize) {
        let what =
            format!("the {text} bytes became {sealed} bytes that only this phone opens; a shorter text gives as many");
        self.more("sealed", &what);
    }

    pub fn delivered(&self, delivery: &Delivery) {
        let shown: String = delivery.token.chars().take(8).collect();
        let what = format!("Apple got them for device {shown}… and knows neither account nor text nor sender");
        self.step(delivery.at, "delivered", &what);
    }

    pub fn decrypted(&self, text: &str, took: Duration) {
        self.step(Instant::now(), "decrypted", &format!("the iPhone reads: \"{text}\""));
        say(&format!("\n  From the storage nodes to Apple: {}.", milliseconds(took)));
    }

    fn step(&self, at: Instant, name: &str, what: &str) {
        let since = at.saturating_duration_since(self.began).as_secs_f64();
        say(&format!("  {since:>7.3} s  {name:<11}{what}"));
    }

    /// A step inside the notifier: nobody outside can take its time.
    fn more(&self, name: &str, what: &str) {
        say(&format!("        …    {name:<11}{what}"));
    }
}

/// The steps of one call, with the time since it was begun.
pub struct RelayJourney {
    began: Instant,
}

impl RelayJourney {
    pub fn begin() -> Self {
        say("\nOne call, step by step:");
        Self { began: Instant::now() }
    }

    pub fn rung(&self, took: Duration) {
        let what = format!(
            "somebody calls: Apple had the ring {} after the storage nodes, before whatever else waits",
            milliseconds(took)
        );
        self.step("rung", &what);
    }

    pub fn told(&self, bytes: usize) {
        let what = format!(
            "caller and callee each asked for relays, through onions and without a name: {bytes} bytes for everybody"
        );
        self.step("told", &what);
    }

    pub fn challenged(&self, bytes: usize) {
        let what = format!(
            "a client asked for a relayed address and did not say who it is: {bytes} bytes say what is missing"
        );
        self.step("challenged", &what);
    }

    pub fn allocated(&self, relayed: SocketAddr) {
        let what = format!("with what it was told it got {relayed}, a socket of the relay's for this client alone");
        self.step("allocated", &what);
    }

    pub fn bound(&self, peer: SocketAddr, channel: u16) {
        let what = format!("it named its peer {peer}, whom nobody else may answer for: channel {channel:#06x}");
        self.step("bound", &what);
    }

    pub fn at_peer(&self, bytes: usize, took: Duration, from: SocketAddr) {
        let what = format!(
            "{bytes} bytes went client → relay → peer in {}; the peer sees {from} and not the client",
            microseconds(took)
        );
        self.step("relayed", &what);
    }

    pub fn back(&self, bytes: usize, took: Duration) {
        let what = format!(
            "and peer → relay → client in {}, {bytes} bytes behind 4 of the channel",
            microseconds(took)
        );
        self.step("answered", &what);
    }

    pub fn joined(&self) {
        self.step(
            "joined",
            "a second client, over TLS, and the first named each other as peers",
        );
    }

    pub fn within(&self, took: Duration, back: Duration) {
        let what = format!(
            "client → relay → client in {}, back in {}: from allocation to allocation without leaving the process",
            microseconds(took),
            microseconds(back)
        );
        self.step("within", &what);
    }

    fn step(&self, name: &str, what: &str) {
        say(&format!(
            "  {:>7.3} s  {name:<11}{what}",
            self.began.elapsed().as_secs_f64()
        ));
    }
}

pub fn head() {
    say("                              messages                                 | packets of the call |   memory, MB");
    say(
        "   time     sent  delivered  on the way     p50       p99   lost  twice |  relayed       lost | notifier  relay",
    );
}

/// Counts after each second. Lost is what is on the way for more than ten seconds.
pub fn second(second: u64, ledger: &Ledger, call: &Call, memory: [Option<u64>; 2]) {
    let (totals, latency) = (ledger.totals(), ledger.take_latency());
    let [notifier, relay] =
        memory.map(|memory| memory.map_or_else(|| "-".into(), |bytes| (bytes / 1_000_000).to_string()));
    say(&format!(
        "{second:>5} s {:>8} {:>10} {:>11} {:>8}  {:>8} {:>6} {:>6} | {:>8} {:>10} | {notifier:>5} MB {relay:>3} MB",
        totals.sent,
        totals.delivered,
        ledger.on_the_way(),
        milliseconds(latency.median),
        milliseconds(latency.p99),
        ledger.overdue(Duration::from_secs(10)),
        totals.duplicates,
        call.arrived(),
        call.lost(),
    ));
}

pub fn summary(ledger: &Ledger, lost: usize, ended_well: bool, complaints: &[String]) {
    let (totals, latency) = (ledger.totals(), ledger.whole_latency());
    for complaint in complaints {
        say(&format!("  a provider complained: {complaint}"));
    }
    if totals.strange > 0 {
        say(&format!(
            "  {} pushes could not be read by their phone, or were never sent",
            totals.strange
        ));
    }
    if !ended_well {
        say("  the notifier ended with an error");
    }
    say(&format!(
        "\nDone: {} sent, {} delivered ({} as \"too long, fetch it\"), {lost} lost, {} twice; p50 {}, p99 {}, longest {}.",
        totals.sent,
        totals.delivered,
        totals.too_long,
        totals.duplicates,
        milliseconds(latency.median),
        milliseconds(latency.p99),
        milliseconds(latency.longest),
    ));
}

pub fn relay_summary(relayed: u64, lost: u64, ended_well: bool) {
    if !ended_well {
        say("  the relay ended with an error");
    }
    say(&format!("      {relayed} packets of the call relayed, {lost} lost."));
}

fn microseconds(time: Duration) -> String {
    format!("{} µs", time.as_micros())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
