//! Everything the lab says, in lines that need no knowledge of push or swarms.
//!
//! In: what happened, and when. Out: lines on standard output. Never: keys; ids and tokens only of phones that it made up.

use quietline_lab::lab::Lab;
use quietline_lab::ledger::Ledger;
use quietline_lab::provider::Delivery;
use std::io::Write;
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
    say(&format!("             metrics  http://{}/metrics\n", lab.ops_address()));
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

pub fn head() {
    say("   time     sent  delivered  on the way     p50       p99   lost  twice  notifier's memory");
}

/// Counts after each second. Lost is what is on the way for more than ten seconds.
pub fn second(second: u64, ledger: &Ledger, memory: Option<u64>) {
    let (totals, latency) = (ledger.totals(), ledger.take_latency());
    let memory = memory.map_or_else(|| "-".into(), |bytes| format!("{} MB", bytes / 1_000_000));
    say(&format!(
        "{second:>5} s {:>8} {:>10} {:>11} {:>8}  {:>8} {:>6} {:>6}  {memory}",
        totals.sent,
        totals.delivered,
        ledger.on_the_way(),
        milliseconds(latency.median),
        milliseconds(latency.p99),
        ledger.overdue(Duration::from_secs(10)),
        totals.duplicates,
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

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
